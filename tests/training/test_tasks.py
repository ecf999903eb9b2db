"""Re-identification and few-shot classification: batches, losses, whole runs, resuming, and data that do not suit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.training.colours import environment, same_tensors, tiny_recipe, write_recipe
from tests.training.individuals import write_individuals
from xattn.cli import app
from xattn.errors import DataError, ParameterError, XattnWarning
from xattn.models import create_model, load_model
from xattn.models.embedded import FOLDER
from xattn.training import loop
from xattn.training.augment import crop_boxes, cut, draw, erase
from xattn.training.data import Source, open_source
from xattn.training.evaluation import features_of, load_trained
from xattn.training.losses import triplet_loss
from xattn.training.recipe import AugmentSection, DataSection, Recipe
from xattn.training.stopping import RunStoppedError
from xattn.training.tasks import tasks
from xattn.training.tasks.task import groups_of_classes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def individuals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_individuals(tmp_path_factory.mktemp("individuals"))


def reid_recipe(data: Path, out: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "data__held_out": 0.3,
        "run__task": "reid:instances=2,margin=0.3",
        "run__image_size": [32, 16],
        "augment__crop": "random",
        "augment__erase": 0.3,
        "augment__flip": False,
    }
    return tiny_recipe(data, out, **{**values, **changes})


def fewshot_recipe(data: Path, out: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "data__held_out": 0.3,
        "run__task": "fewshot:way=2,shot=1,queries=2,episodes=50",
        "run__image_size": [32, 16],
        "model__head": "linear",
    }
    return tiny_recipe(data, out, **{**values, **changes})


# ------------------------------------------------------------------------------------------------- batches and losses


def test_batches_hold_some_images_of_different_classes_equally_often() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 8 + [4] * 1 + [5] * 4)  # class 3 has no image
    order = groups_of_classes(labels, 6, 3, 50, torch.Generator().manual_seed(0))
    batches = labels[order].view(50, 2, 3)
    assert bool((batches == batches[..., :1]).all())
    assert bool((batches[:, 0, 0] != batches[:, 1, 0]).all())
    used = torch.bincount(batches[..., 0].flatten(), minlength=6)
    assert used[3] == 0
    assert used[used > 0].max() - used[used > 0].min() <= 10  # the rest of a round is dropped
    of_two = torch.bincount(order, minlength=len(labels))[labels == 2]
    assert of_two.max() - of_two.min() <= 1
    assert torch.equal(order, groups_of_classes(labels, 6, 3, 50, torch.Generator().manual_seed(0)))


def naive_triplet(points: list[list[float]], target: list[int], margin: float) -> float:
    losses = []
    for a in range(len(points)):
        away = [math.dist(points[a], p) for p in points]
        positive = [d for i, d in enumerate(away) if target[i] == target[a] and i != a]
        negative = [d for i, d in enumerate(away) if target[i] != target[a]]
        if positive and negative:
            gap = max(positive) - min(negative)
            losses.append(max(0.0, gap + margin) if margin else math.log1p(math.exp(gap)))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_the_triplet_loss_is_that_of_the_loop(margin: float) -> None:
    points = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0])  # 2 has no positive
    loss = triplet_loss(points, target, margin)
    assert float(loss.detach()) == pytest.approx(naive_triplet(points.tolist(), target.tolist(), margin), abs=1e-12)
    assert torch.autograd.gradcheck(lambda p: triplet_loss(p, target, margin), (points,))
    assert float(triplet_loss(points, torch.arange(9), margin).detach()) == 0
    same = torch.ones(4, 3, requires_grad=True)
    triplet_loss(same, torch.tensor([0, 0, 1, 1]), margin).backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())


def test_triplets_of_unit_vectors_do_not_fall_by_shrinking_all_features() -> None:
    points = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    target = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 0])
    plain, unit = (tasks.parse(f"reid:instances=2,unit={word}") for word in ("no", "yes"))
    zero = torch.tensor(0.0)
    assert plain.loss(zero, points * 1e-3, target) < plain.loss(zero, points, target)
    found = unit.loss(zero, points, target)
    torch.testing.assert_close(unit.loss(zero, points * 1e-3, target), found)
    rows = [[v / math.hypot(*row) for v in row] for row in points.double().tolist()]
    exact = naive_triplet(rows, target.tolist(), 0.3)
    assert float(found) == pytest.approx(exact, abs=1e-6)
    assert float(unit.loss(zero.double(), points.double(), target)) == pytest.approx(exact, abs=1e-12)


def test_prototypes_learn_by_the_loss_of_their_episode() -> None:
    task = tasks.parse("fewshot:method=prototypes,shot=2,queries=1")
    embedding = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = task.loss(torch.tensor(99.0), embedding, torch.tensor([7, 7, 7, 3, 3, 3]))
    means = [embedding[:2].mean(0), embedding[3:5].mean(0)]
    expected = 0.0
    for right, query in enumerate((embedding[2], embedding[5])):
        scores = [-float(((query - m) ** 2).sum()) for m in means]
        expected -= (scores[right] - math.log(sum(math.exp(s) for s in scores))) / 2
    assert float(found) == pytest.approx(expected)


def test_a_box_of_some_images_becomes_the_mean() -> None:
    x = torch.ones(2000, 3, 20, 10)
    numbers = torch.rand(2000, 5, generator=torch.Generator().manual_seed(3))
    gone = erase(x, 0.4, numbers)[:, 0] == 0
    area = gone.double().mean((1, 2))
    assert torch.equal(area > 0, numbers[:, 0] < 0.4)
    assert 0.15 < float(area[area > 0].mean()) < 0.25  # 0.21 less what sides longer than the image lose
    assert float(area.max()) < 0.5
    for box in gone[area > 0][:50]:  # a box and nothing else
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)


def test_boxes_and_batches_have_the_shape_of_the_image() -> None:
    sizes = torch.tensor([[128, 64], [100, 100], [40, 90]])
    left, top, right, bottom = crop_boxes(AugmentSection(crop="none"), None, sizes, (64, 32)).unbind(1)
    torch.testing.assert_close((bottom - top) / (right - left), torch.full((3,), 2.0))
    assert (right - left).tolist() == [64, 50, 20]
    section = AugmentSection(crop="random", resize=40)
    drawn = draw(section, 3, torch.Generator().manual_seed(0))
    left, top, right, bottom = crop_boxes(section, drawn, sizes, (64, 32)).unbind(1)
    torch.testing.assert_close(right - left, torch.tensor([64.0, 50.0, 20.0]) * 0.8)
    assert cut(torch.zeros(3, 3, 128, 64), torch.zeros(3, 4), (64, 32)).shape == (3, 3, 64, 32)


# ----------------------------------------------------------------------------------------------------------- whole runs


class StopAt:
    """A monitor that sends Ctrl-C after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.when = (epoch, step)

    def begin(self, *_: Any) -> None:
        pass

    def step(self, epoch: int, step: int, *_: Any) -> None:
        if (epoch, step) == self.when:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, *_: Any) -> None:
        pass


RECIPES = {
    "reid": lambda data, out: reid_recipe(data, out),
    "fewshot": lambda data, out: fewshot_recipe(data, out),
    "prototypes": lambda data, out: fewshot_recipe(
        data, out, run__task="fewshot:method=prototypes,way=2,shot=1,queries=1", run__batch_size=6
    ),
    "mtl": lambda data, out: fewshot_recipe(
        data,
        out,
        run__task="fewshot:method=mtl,way=2,shot=1,queries=1,comparison=learned",
        run__batch_size=6,
        model__start=str(FOLDER / "tiny-cnn.safetensors"),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(
    individuals: Path, tmp_path: Path, name: str
) -> None:
    whole = loop.train(RECIPES[name](individuals, tmp_path / "whole"))
    with pytest.raises(RunStoppedError):
        loop.train(RECIPES[name](individuals, tmp_path / "stopped"), StopAt(2, 1))
    again = loop.train(RECIPES[name](individuals, tmp_path / "stopped"))
    assert all(
        same_tensors(tmp_path / "whole" / f, tmp_path / "stopped" / f) for f in ("last.safetensors", "best.safetensors")
    )
    assert whole.value == again.value
    assert whole.measure == ("mAP" if name == "reid" else "accuracy")
    assert f"held_out_{whole.measure}" in whole.history[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reid", "fewshot"])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    individuals: Path, tmp_path: Path, name: str
) -> None:
    whole = loop.train(RECIPES[name](individuals, tmp_path / "whole"))
    out = tmp_path / "killed"
    recipe = write_recipe(RECIPES[name](individuals, out), tmp_path / "recipe.toml")
    process = subprocess.Popen([sys.executable, "-m", "xattn", "train", "-q", str(recipe)], env=environment())
    deadline = time.monotonic() + 120
    while not (out / "log.csv").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    again = loop.train(Recipe.read(recipe))
    assert whole.value == again.value
    assert all(same_tensors(tmp_path / "whole" / f, out / f) for f in ("last.safetensors", "best.safetensors"))


@pytest.fixture(scope="module")
def run(individuals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of re-identification."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("reid") / "run"
    loop.train(reid_recipe(individuals, out, run__epochs=4))
    return out


def xattn(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def test_a_network_of_individuals_has_a_neck_and_knows_those_it_was_trained_on(run: Path) -> None:
    model, _ = load_trained(run / "best.safetensors")
    assert model.architecture["options"] == {"neck": True}
    assert len(model.spec.classes) == 8 - 2  # two of eight were held out
    assert model.spec.classifier is None
    assert model.spec.input_size == (32, 16)
    assert model.head.batch_norm.bias.abs().sum() == 0  # it stays as it began
    x = torch.rand(3, 3, 32, 16)
    with torch.no_grad():
        embedding = model.head.embed(model.backbone(x))
        neck = model.head.batch_norm
        plain = (embedding - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
        torch.testing.assert_close(model.head.compared(embedding), plain)
        torch.testing.assert_close(model(x), plain @ model.head.classifier.weight.T)
    again = load_model(run / "best.safetensors")
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_evaluate_follows_the_protocol(run: Path, individuals: Path) -> None:
    printed = xattn("evaluate", run / "best.safetensors", "--data", individuals, "--device", "cpu", "--json")
    assert printed.exit_code == 0, printed.output
    values = json.loads(printed.stdout)
    assert values["task"].startswith("Reid(instances=2")
    assert (values["queries"], values["gallery"], values["identities"]) == (4, 36, 4)
    assert 0.3 < values["mAP"] <= 1  # 4 matches of 34 images by chance
    assert values["rank1"] <= values["rank5"] <= values["rank10"] <= 1
    table = xattn("evaluate", run / "best.safetensors", "--data", individuals, "--device", "cpu")
    assert all(word in table.stdout for word in ("queries", "rank-1", "rank-5", "rank-10", "mAP"))
    few = xattn(
        *("evaluate", run / "best.safetensors", "--data", individuals, "--split", "gallery", "--device", "cpu"),
        *("--task", "fewshot:way=3,shot=2,queries=2,episodes=20"),
    )
    assert few.exit_code == 0, few.output
    assert "3-way 2-shot" in few.stdout
    assert "95 % interval" in few.stdout


def test_a_teacher_teaches_individuals_too(run: Path, individuals: Path, tmp_path: Path) -> None:
    recipe = reid_recipe(
        individuals,
        tmp_path / "high",
        run__epochs=1,
        model__resolution="high",
        distill__teacher=str(run / "best.safetensors"),
    )
    student = load_model(loop.train(recipe).best)
    assert student.backbone(torch.zeros(1, 3, 32, 16)).shape[2:] == (8, 4)


def test_a_part_of_its_own_chooses_the_epoch(individuals: Path, tmp_path: Path) -> None:
    result = loop.train(reid_recipe(individuals, tmp_path / "run", data__validation="gallery", run__epochs=1))
    assert len(load_model(result.best).spec.classes) == 8
    with pytest.raises(DataError, match=r"the gallery part of .* has other classes .* the task classify cannot be"):
        loop.train(reid_recipe(individuals, tmp_path / "no", data__validation="gallery", run__task="classify"))


def test_a_list_of_classes_divides_any_data_set(individuals: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0015\n0012\n")
    section = DataSection(source=str(individuals), class_list=str(tmp_path / "classes.txt"))
    source = open_source(section, "gallery")
    assert source.classes == ("0015", "0012")
    assert torch.bincount(source.labels).tolist() == [6, 6]
    assert source.groups is not None
    assert source.groups.unique().tolist() == [1, 2, 3]
    (tmp_path / "classes.txt").write_text("0021\n")
    with pytest.raises(LookupError, match=r"unknown class of .* '0021'"):
        open_source(section, "gallery")


def test_classes_in_another_order_are_judged_by_their_names(run: Path, individuals: Path, tmp_path: Path) -> None:
    model = create_model("tiny-cnn", head="linear", num_classes=2)
    model.spec = dataclasses.replace(model.spec, classes=("0012", "0015"))

    def part(names: str) -> Callable[[str | None], Source]:
        (tmp_path / "classes.txt").write_text(names)
        section = DataSection(source=str(individuals), class_list=str(tmp_path / "classes.txt"))
        return lambda split: open_source(section, "gallery")

    task = tasks.parse("classify")
    values, _ = task.evaluate(model, part("0012\n0015\n"), None, batch_size=4)
    assert values["images"] == 12
    turned, _ = task.evaluate(model, part("0015\n0012\n"), None, batch_size=4)
    assert turned["images"] == 12
    assert turned["top1"] == values["top1"]


def test_features_are_those_of_one_image_at_a_time(individuals: Path) -> None:
    model: Any = create_model("tiny-cnn", head="linear", num_classes=3)
    source = open_source(DataSection(source=str(individuals)), "query")
    together, alone = features_of(model, source), features_of(model, source, batch_size=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.shape == (4, 256)


# --------------------------------------------------------------------------------------------- data that do not suit


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("reid:instances=5", {}, "a batch of 8 images cannot be divided in two classes or more of 5 images each"),
        ("reid:instances=1", {}, "reid: instances"),
        ("reid:instance=2", {}, "run.task: unknown parameter of task 'reid' 'instance'. Did you mean 'instances'"),
        ("redi", {}, "run.task: unknown task 'redi'. Did you mean 'reid'"),
        ("reid:instances=2", {"run__batch_size": 16}, "there are 6 classes to train on; lower run.batch_size to 12"),
        ("reid:instances=2", {"data__held_out": 0.9}, "of 8 classes 7 are held out .* leaves 1 to train on"),
        ("fewshot:way=7", {}, "of 8 classes 7 are held out"),
        ("fewshot:way=2,queries=15", {}, "0 of 2 classes have so many, the smallest has 6; lower way, shot or queries"),
        ("fewshot:method=prototypes", {"distill__teacher": "x"}, "has no class scores that a teacher could teach by"),
        ("fewshot:method=mtl", {}, "scales a trained network; name its file as model.start"),
        ("reid", {"data__validation": "test"}, "reid: no held-out image has another one of its identity from another"),
    ],
)
def test_what_does_not_suit_is_one_line_before_training(
    individuals: Path, tmp_path: Path, task: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, ParameterError), match=message) as caught:
        loop.train(reid_recipe(individuals, tmp_path / "run", run__task=task, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_some_that_do_not_suit_are_a_warning() -> None:
    task = tasks.parse("reid:instances=2")
    labels, held = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1])
    with pytest.warns(XattnWarning, match="1 of 3 classes to train on have fewer than 2 images"):
        task.check(labels, held, None, 4, 1)
    with pytest.warns(XattnWarning, match=r"1 of 2 individuals that are held out have no second image"):
        task.check(labels[:4], held, torch.tensor([1, 2, 3, 3]), 4, 1)
    with pytest.raises(DataError, match="no held-out image has another one of its identity"):
        task.check(labels[:4], held, torch.tensor([1, 1, 3, 3]), 4, 1)


def test_a_gallery_without_a_match_is_told(run: Path, individuals: Path, tmp_path: Path) -> None:
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    source = individuals / "query" / "0011_c1s1_000000_00.png"
    for place in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "data" / place / source.name).write_bytes(source.read_bytes())
    result = xattn("evaluate", run / "best.safetensors", "--data", tmp_path / "data", "--device", "cpu")
    assert result.exit_code == 2
    assert "no query has an image of its identity from another camera or day in the gallery" in result.output
    (tmp_path / "data" / "query" / source.name).unlink()
    empty = xattn("evaluate", run / "best.safetensors", "--data", tmp_path / "data", "--device", "cpu")
    assert empty.exit_code == 2
    assert "the query part in" in empty.output
    assert "lists no image" in empty.output
