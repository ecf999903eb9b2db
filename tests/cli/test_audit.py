"""`xattn audit` as a user meets it: a folder, findings in words and as JSON, and errors that say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.audit.synthetic import folder_of, pictures
from tests.cli.conftest import Run

MODEL = "tests.audit.synthetic:build"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "photos", pictures(80, share=0.5))


def test_a_shortcut_is_told_first(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run(
        "audit", MODEL, "--data", photos, "--parts", 3, "--keep", "evidence", "--out", "found.json", "--top", 2
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.match(r"known on 160 images: \d shortcut candidates? among \d+ groups of evidence in 2 classes", lines[0])
    assert "1. shortcut candidate (c0-parts-1): " in result.stdout
    said = " ".join(result.stdout.split())
    assert re.search(r"How sure: Significant with \d+ images that did not find the group: difference ", said)
    assert "Next: Look at the images" in result.stdout
    assert lines[-1] == "wrote found.json"
    plain = json.loads((tmp_path / "found.json").read_text())
    assert plain["findings"][0]["candidate"]
    assert plain["provenance"]["labels"].startswith("by n")
    assert list((tmp_path / "evidence").glob("evidence-*.parquet"))
    page = run("audit", MODEL, "--data", photos, "--parts", 3, "--keep", "evidence", "--top", 0)
    assert page.stdout.splitlines()[-1] == "wrote audit.html: open it in a browser"
    assert "shortcut candidate" in (tmp_path / "audit.html").read_text(encoding="utf-8")
    again = run(
        "audit", MODEL, "--data", photos, "--parts", 3, "--keep", "evidence", "--json", "--classes", "green thing"
    )
    assert json.loads(again.stdout)["findings"][0]["effect"]["n"] == plain["findings"][0]["effect"]["n"]
    assert {f["class"] for f in json.loads(again.stdout)["findings"]} == {"green thing"}


def test_images_that_cannot_be_read_are_told(run: Run, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        home = copy / path.parent.name
        home.mkdir(parents=True, exist_ok=True)
        (home / path.name).write_bytes(path.read_bytes())
    first = next(copy.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:40])
    result = run("audit", MODEL, "--data", copy, "--parts", 3)
    assert result.exit_code == 3
    assert "image " in result.stderr
    photo = photos / "green thing" / f"{int(pictures(80, share=0.5).marked.argmax()):03d}.png"
    result = run("audit", MODEL, "--data", copy, "--parts", 3, "--find", photo, "--box", "24,0,8,8")
    assert result.exit_code == 3
    assert "image " in result.stderr
    assert "have the same" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass the folder of your images with --data"),
        (("--data", "{photos}", "--replace", "noise"), "--replace must be mean or blur"),
        (("--data", "{photos}", "--out", "found.txt"), "expected the name of a page"),
        (("--data", "a={photos}", "--data", "{photos}"), "each needs a name"),
        (("--data", "a={photos}", "--data", "a={photos}"), "two sources are called 'a'"),
        (("--data", "{photos}", "--classes", "red thing"), "unknown class 'red thing'"),
        (("--data", "{photos}", "--smallest", "50"), "no class is predicted in 200 images"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, photos: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("audit", MODEL, *(a.format(photos=photos) for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_two_sources_are_compared(run: Run, photos: Path, tmp_path: Path) -> None:
    clean = folder_of(tmp_path / "clean", pictures(80, share=0.0, seed=3))
    result = run("audit", MODEL, "--data", f"old={photos}", "--data", f"new={clean}", "--parts", 3, "--json")
    assert result.exit_code == 0, result.stderr
    first = json.loads(result.stdout)["findings"][0]
    sign = next(s for s in first["signs"] if s["name"] == "sources")
    assert sign["speaks"]
    assert "of old have it, 0 % of new" in sign["text"]
    assert first["member_images"][0]["image"].startswith("old/green thing/")


def test_another_network_is_asked_of_each_finding(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run("audit", MODEL, "--data", photos, "--parts", 3, "--against", MODEL, "--top", 1)
    assert result.exit_code == 0, result.stderr
    assert "Against: known relies on it too: without it its score falls by " in result.stdout
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "relies on it too" in page
    assert "What only" not in result.stdout + page  # the same network has nothing that this one has not


def test_another_network_that_cannot_be_asked_is_told(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run("audit", MODEL, "--data", photos, "--parts", 3, "--against", "tiny-cnn")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"--against tiny-cnn: (\d+) of \1 findings are of a class that it does not have", result.stderr)
    gone = run("audit", MODEL, "--data", photos, "--against", "tiny-cn", "--keep", "evidence")
    assert gone.exit_code == 2
    assert not (tmp_path / "evidence").exists()  # told before the images are read


def test_from_a_box_to_the_images_that_have_the_same(run: Run, photos: Path, tmp_path: Path) -> None:
    images = pictures(80, share=0.5)
    index = int(images.marked.argmax())
    photo = photos / "green thing" / f"{index:03d}.png"
    arguments = ("audit", MODEL, "--data", photos, "--parts", 3, "--find", photo, "--keep", "evidence")
    result = run(*arguments, "--box", "24,0,8,8", "--out", "found.json", "--top", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.match(r"The box holds \d+% of what speaks for green thing; without it the score falls by ", lines[0])
    assert re.match(r"\d+ of \d+ images of green thing have the same\. Their score is shown to go with it", lines[1])
    assert lines[-1] == "wrote found.json"
    names = {Path(row["image"]).name for row in json.loads((tmp_path / "found.json").read_text())["found"]}
    assert names <= {f"{i:03d}.png" for i in images.marked.nonzero()[0]}
    assert photo.name in names


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--find", "a.png"], "--find IMAGE and --box X,Y,W,H go together"),
        (["--box", "0,0,8,8"], "--find IMAGE and --box X,Y,W,H go together"),
        (["--find", "a.png", "--box", "0,0,8"], "expected four numbers X,Y,W,H in pixels"),
        (["--find", "a.png", "--box", "0,0,8,8"], "does not exist"),
        (["--find", "a.png", "--box", "0,0,8,8", "--against", "tiny-cnn"], "leave one of them out"),
        (["--find", "a.png", "--box", "0,0,8,8", "--out", "a.html"], "found.json"),
        (["--find", "a.png", "--box", "0,0,8,8", "--classes", "green thing"], "leave out --classes"),
    ],
)
def test_a_box_that_cannot_be_looked_for_says_why(run: Run, photos: Path, arguments: list[str], why: str) -> None:
    result = run("audit", MODEL, "--data", photos, *arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())
