"""`xattn match` as a user types it: what is found, whether it is right, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tests.training.individuals import write_individuals
from xattn.cli import app
from xattn.data import open_dataset, to_batch
from xattn.errors import NotApplicableError
from xattn.functional.retrieval import part_shares
from xattn.models import create_model
from xattn.models.embedder import Embedder
from xattn.viz.matches import FRAMES


def xattn(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_individuals(tmp_path_factory.mktemp("match") / "people")


def test_a_number_of_a_data_set_is_searched_in_its_gallery(people: Path, tmp_path: Path) -> None:
    out = tmp_path / "match.png"
    result = xattn(
        *("match", 2, f"market1501:{people}", "--model", "tiny-brnpa", "--top", 4, "--out", out, "--json"),
        *("--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    gallery, query = open_dataset(people, "gallery"), open_dataset(people, "query")
    assert values["gallery"] == len(gallery) - 2  # those of the same camera are left out
    embedder = Embedder.of(create_model("tiny-brnpa"))
    with torch.no_grad():
        asked = embedder(to_batch([query[2].image], embedder.spec))
        found = embedder(to_batch([sample.image for sample in gallery], embedder.spec))
    likeness = torch.cosine_similarity(asked, found)
    for match in values["matches"]:
        name, _, number = match["name"].partition(" (")
        index = int(number.rstrip(")"))
        assert match["right"] == (gallery.classes[gallery.labels[index]] == query.classes[query.labels[2]])
        assert name == gallery.classes[gallery.labels[index]]
        assert match["similarity"] == pytest.approx(float(likeness[index]), abs=1e-5)
        assert sum(match["shares"]) == pytest.approx(match["similarity"], abs=1e-5)
        parts = part_shares(asked.unflatten(1, (3, -1)), found[index : index + 1].unflatten(1, (3, -1)))[0]
        assert match["shares"] == pytest.approx(parts.tolist(), abs=1e-5)
    order = [match["similarity"] for match in values["matches"]]
    assert order == sorted(order, reverse=True)
    with Image.open(out) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24) or ()}
    assert {FRAMES[match["right"]] for match in values["matches"]} <= colours


def test_files_are_told_apart_by_their_names_or_folders(people: Path, tmp_path: Path) -> None:
    query = people / "query" / "0011_c1s1_000000_00.png"
    common = ("--model", "tiny-cnn", "--device", "cpu", "-m", "gradcam")
    by_name = xattn("match", query, people / "bounding_box_test", *common, "--out", tmp_path / "a.png")
    assert by_name.exit_code == 0, by_name.output
    assert "right" in by_name.stdout
    assert "the best 5 of 36 images" in by_name.stdout
    for person in ("11", "12"):
        (tmp_path / "herd" / person).mkdir(parents=True)
        for i, file in enumerate(sorted((people / "bounding_box_test").glob(f"00{person}*"))[:3]):
            (tmp_path / "herd" / person / f"{i}.png").write_bytes(file.read_bytes())
    herd = xattn("match", tmp_path / "herd" / "11" / "0.png", tmp_path / "herd", *common, "--out", tmp_path / "b.png")
    assert "the best 5 of 5 images" in herd.stdout  # not the query itself
    assert sum(" right" in line for line in herd.stdout.splitlines()) == 2
    assert sum(" wrong" in line for line in herd.stdout.splitlines()) == 3
    flat = xattn(
        "match", tmp_path / "herd" / "11" / "0.png", tmp_path / "herd" / "12", *common, "-o", tmp_path / "c.png"
    )
    assert " wrong" not in flat.stdout  # nothing says whom one folder shows


def test_a_query_from_elsewhere_is_of_no_folder_of_the_gallery(people: Path, tmp_path: Path) -> None:
    files = sorted((people / "bounding_box_test").glob("0011*"))
    for i, folder in enumerate(("herd/11", "herd/12", "elsewhere")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(files[i].read_bytes())
    common = ("--model", "tiny-cnn", "--device", "cpu", "-m", "gradcam", "--json", "--out", tmp_path / "m.png")
    result = xattn("match", tmp_path / "elsewhere" / "a.png", tmp_path / "herd", *common)
    assert result.exit_code == 0, result.output
    assert [match["right"] for match in json.loads(result.stdout)["matches"]] == [None, None]


def test_a_damaged_image_of_the_gallery_is_left_out(people: Path, tmp_path: Path) -> None:
    files = sorted((people / "bounding_box_test").iterdir())[:3]
    for i, file in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(file.read_bytes()[: None if i else 200])
    common = ("--model", "tiny-cnn", "--device", "cpu", "-m", "gradcam", "--out", tmp_path / "out" / "m.png")
    result = xattn("match", files[0], tmp_path, *common)
    assert result.exit_code == 3, result.output
    assert "left out" in result.stderr
    assert "0.png" in result.stderr
    assert "the best 2 of 2 images" in result.stdout
    assert (tmp_path / "out" / "m.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("99", "market1501:{people}", "--model", "tiny-cnn"), "has images 0 to 3, not 99"),
        (("{people}/query", "{people}/query", "--model", "tiny-cnn"), "is 4 images; pass one query"),
        (("nobody.jpg", "{people}/query", "--model", "tiny-cnn"), "nobody.jpg"),
        (("0", "market1501:{people}"), "name the network with --model"),
        (("0", "market1501:{people}", "--model", "tiny-cnn", "--top", "0"), "--top must be from 1 to 20"),
        (("0", "market1501:{people}", "--model", "tiny-cnn", "--out", "a.txt"), "expected the name of a picture"),
        (("0", "market1501:{people}", "--model", "tests.cli.models:cnn"), "--head linear"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = xattn("match", *(word.format(people=people) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_head_has_no_features_to_compare() -> None:
    with pytest.raises(NotApplicableError, match=r"Linear has no head .* --head linear"):
        Embedder.of(torch.nn.Linear(3, 3))
