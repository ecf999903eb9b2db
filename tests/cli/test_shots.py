"""`xattn match --shot` as a user types it: the classes drawn, the answer, and the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tests.training.individuals import write_few_shot
from xattn.cli import app
from xattn.cli.shots import answer, draw_episode
from xattn.data import open_dataset, to_batch
from xattn.models import create_model
from xattn.models.embedder import Embedder
from xattn.viz.matches import FRAMES


def xattn(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_few_shot(tmp_path_factory.mktemp("shots") / "cifar-fs", images=6)


def test_an_episode_has_the_class_of_the_query_and_never_the_query(few: Path) -> None:
    data = open_dataset(few, "test")
    for query in (0, 20):
        for seed in range(5):
            episode = draw_episode(str(query), f"cifar-fs:{few}", 3, 4, seed)
            label = data.classes[data.labels[query]]
            assert label == episode.label == episode.classes[0]
            assert len(set(episode.classes)) == 4
            own = Image.fromarray(data[query].image).tobytes()
            shown = [p.tobytes() for row in episode.shown for p in row]
            assert own not in shown
            assert len(set(shown)) == 12
            for name, row in zip(episode.classes, episode.shown, strict=True):
                kind = {data[i].image.tobytes() for i in (data.labels == data.classes.index(name)).nonzero()[0]}
                assert {p.tobytes() for p in row} <= kind
    one, same, other = (draw_episode("0", str(few), 2, 5, seed) for seed in (1, 1, 2))
    assert [p.tobytes() for p in one.shown[0]] == [p.tobytes() for p in same.shown[0]]
    assert (one.classes, [p.tobytes() for p in one.shown[0]]) != (other.classes, [p.tobytes() for p in other.shown[0]])


def test_the_answer_is_the_class_whose_mean_is_most_alike(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "shots.png"
    words = ("match", 7, f"cifar-fs:{few}", "--model", "tiny-brnpa", "--device", "cpu", "--out", out)
    result = xattn(*words, "--shot", 2, "--way", 3, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["shot"] == 2
    episode = draw_episode("7", f"cifar-fs:{few}", 2, 3, 0)
    embedder = Embedder.of(create_model("tiny-brnpa")).eval()
    with torch.no_grad():
        asked = embedder(to_batch([episode.query], embedder.spec))
        for found in values["classes"]:
            row = episode.shown[episode.classes.index(found["name"])]
            vectors = [embedder(to_batch([p], embedder.spec)) for p in row]
            mean = sum(v / v.norm() for v in vectors)
            assert found["similarity"] == pytest.approx(float(torch.cosine_similarity(asked, mean)), abs=1e-4)
            assert sum(found["shares"]) == pytest.approx(found["similarity"], abs=1e-4)
            assert found["right"] == (found["name"] == episode.label)
    order = [found["similarity"] for found in values["classes"]]
    assert order == sorted(order, reverse=True)
    with Image.open(out) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24) or ()}
    assert {FRAMES[True], FRAMES[False]} <= colours
    told = xattn(*words, "--shot", 1, "-m", "gradcam")
    assert "5 classes by 1 images of each" in told.stdout
    assert told.stdout.count(" right") == 1
    assert told.stdout.count(" wrong") == 4


def test_the_maps_of_the_shown_images_are_theirs(few: Path) -> None:
    embedder = Embedder.of(create_model("tiny-cnn")).eval()
    episode = draw_episode("3", str(few), 2, 3, 4)
    matches, views, [(theirs, own)] = answer(embedder, episode, ["gradcam"])
    assert (len(theirs.maps), len(own.maps), len(views), len(views[0])) == (6, 3, 3, 2)
    from xattn.explaining import explain
    from xattn.targets import Similarity

    with torch.no_grad():
        asked = embedder(to_batch([episode.query], embedder.spec))
    for c, match in enumerate(matches):
        row: Any = episode.shown[episode.classes.index(match.name)]
        vectors = [embedder(to_batch([p], embedder.spec)).detach() for p in row]
        alike = sorted(range(2), key=lambda k: -float(torch.cosine_similarity(vectors[k], asked)))
        for k in range(2):
            x = to_batch([row[alike[k]]], embedder.spec)
            [one] = explain(embedder, x, ["gradcam"], Similarity(asked), spec=embedder.spec)
            torch.testing.assert_close(theirs.maps[k * 3 + c], one.maps[0], atol=1e-5, rtol=1e-3)


def test_a_file_of_the_folder_is_known_and_one_from_elsewhere_is_not(few: Path, tmp_path: Path) -> None:
    herd = tmp_path / "herd"
    for name in ("test_0", "test_1"):
        shutil.copytree(few / "data" / name, herd / name)
    query = sorted((herd / "test_1").iterdir())[2]
    episode = draw_episode(str(query), str(herd), 5, 2, 0)  # all that are left
    assert episode.label == "test_1"
    assert episode.query.tobytes() not in {p.tobytes() for row in episode.shown for p in row}
    elsewhere = tmp_path / "test_1.png"
    elsewhere.write_bytes(query.read_bytes())
    assert draw_episode(str(elsewhere), str(herd), 5, 2, 0).label is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("0", "--shot", "0"), "--shot must be from 1 to 100"),
        (("0", "--shot", "1", "--way", "1"), "--way must be from 2 to 20"),
        (("0", "--shot", "1", "--seed", "-1"), "--seed must be from 0"),
        (("0", "--shot", "1", "--way", "9"), "6 of 6 classes have 1 images; lower --way or --shot"),
        (("0", "--shot", "6"), "has 5 images besides the query; lower --shot"),
        (("999", "--shot", "1"), "has images 0 to 35, not 999"),
        (("nobody.png", "--shot", "1"), "nobody.png"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = xattn("match", words[0], f"cifar-fs:{few}", "--model", "tiny-cnn", *words[1:])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
