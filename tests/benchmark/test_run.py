"""A run gives one table however it is cut, stopped, extended and spread."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.benchmark.runs import differ, rows, small, table
from xattn.benchmark import costs
from xattn.benchmark import plan as planning
from xattn.benchmark import run as runs
from xattn.benchmark.config import Config
from xattn.benchmark.costs import estimate, measure_costs, write_costs
from xattn.benchmark.plan import plan, sample_of
from xattn.benchmark.run import run
from xattn.benchmark.store import Store
from xattn.data.folder import ImageFolder
from xattn.errors import ParameterError
from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.labels import label_of
from xattn.metrics import metrics

ROOT = Path(__file__).parents[2]
ELSEWHERE = {n for n in metrics.names() if metrics.get(n).needs & {"mosaic", "scenes"}}  # which photographs have not


def test_every_pair_is_scored_on_its_share_of_the_images(whole: Path) -> None:
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows(whole):
        counts[row.method, row.metric, row.column] = counts.get((row.method, row.metric, row.column), 0) + 1
    methods = ("gradcam", "saliency", "brnpa", "random", "center", "edges", "pooled-gradient")
    expected = {(m, "sparsity", c): 22 for m in methods for c in metrics.get("sparsity").columns}  # type: ignore[attr-defined]
    expected |= {(m, "pointing_game", c): 22 for m in methods for c in ("hit", "hit_exact")}
    expected |= {(m, "deletion:steps=8,grid=common", c): 13 for m in methods for c in metrics.get("deletion").columns}  # type: ignore[attr-defined]
    expected |= {(m, "status", "ok"): 22 for m in methods}
    expected |= {("", "prediction", c): 22 for c in ("probability", "correct", "object_share")}
    assert counts == expected


@pytest.mark.parametrize("world", [2, 3])
def test_processes_give_the_same_table(whole: Path, tmp_path: Path, world: int) -> None:
    for rank in reversed(range(world)):
        run(small(), tmp_path, rank=rank, world=world)
    assert table(tmp_path) == table(whole)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_sizes_give_the_same_table(whole: Path, tmp_path: Path, batch: int) -> None:
    run(small(run={"batch": batch}), tmp_path)
    # float32 sums are in another order: five digits stay, but for a few values that follow from the order of two pixels
    # which are equal but for rounding.
    off = differ(whole, tmp_path, 1e-4)
    assert {x.column for x, _ in off} <= {"dc", "tie_share", "hit_exact", "hit"}
    assert len(off) <= 0.005 * len(rows(whole))


def test_a_second_call_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert run(small(), whole).blocks == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


def test_an_exception_anywhere_loses_no_block(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    score = runs.score_batch

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return score(*args, **options)

    monkeypatch.setattr(runs, "score_batch", failing)
    stopped = 0
    while True:
        try:
            run(small(), tmp_path)
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped > 0
    assert table(tmp_path) == table(whole)


def test_metrics_methods_and_images_can_come_later(whole: Path, tmp_path: Path) -> None:
    run(small(methods=["gradcam"], metrics=["sparsity"], run={"controls": False}), tmp_path)
    run(small(methods=["gradcam", "saliency", "brnpa"], metrics=["sparsity"]), tmp_path)
    summary = run(small(), tmp_path)
    assert summary.rows == 7 * (2 * 22 + 4 * 13)  # nothing is scored twice
    assert table(tmp_path) == table(whole)


def test_a_larger_limit_keeps_the_smaller_sample(whole: Path, tmp_path: Path) -> None:
    for limit in (5, 13, 0):
        run(small(data={"limit": limit}), tmp_path)
    assert differ(whole, tmp_path, 1e-5) == []  # the last batch of a smaller sample is smaller
    assert sample_of(100, 10, 3) == sample_of(100, 50, 3)[:10]
    assert sorted(sample_of(100, 0, 3)) == list(range(100))
    assert sample_of(100, 10, 3) != sample_of(100, 10, 4)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"run": {"seed": 3}}, "run.seed was 0 and is 3"),
        ({"run": {"score": "prob", "block": 9}}, "run.score was logit and is prob; run.block was 8 and is 9"),
        ({"data": {"fit": "squash"}}, "fit of shapes was crop and is squash"),
        ({"data": {"source": "synthetic:length=23"}}, "images of shapes was 22 and is 23"),
        ({"models": {"name": "tests.cli.models:gelu2"}}, "weights of cnn was [0-9a-f]{16} and is [0-9a-f]{16}"),
    ],
)
def test_another_run_in_the_folder_is_refused(
    whole: Path, changes: dict[str, Any], difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli import models

    def other() -> torch.nn.Module:
        model = models.cnn()
        with torch.no_grad():
            model.classifier.bias[0] += 1e-3  # type: ignore[index, union-attr]
        return model

    monkeypatch.setattr(models, "gelu2", other, raising=False)
    before = table(whole)
    with pytest.raises(ParameterError, match=rf"holds scores of another run: .*{difference}.*another --out"):
        run(small(**changes), whole)
    assert table(whole) == before


def test_two_data_sets_and_models_in_one_table(tmp_path: Path) -> None:
    config = small(
        data=[
            {"source": "synthetic:length=3", "label": "a"},
            {"source": "synthetic:length=2,seed=1", "label": "b", "metrics": ["gini"]},
        ],
        models=[
            {"name": "tests.cli.models:cnn", "label": "cnn"},
            {"name": "tests.cli.models:brnpa", "methods": ["brnpa"]},
        ],
        metrics=["sparsity"],
    )
    run(config, tmp_path)
    found = {(r.dataset, r.model, r.metric) for r in rows(tmp_path) if r.metric in ("sparsity", "gini")}
    names = ("cnn", "tests.cli.models:brnpa")
    assert found == {("a", n, "sparsity") for n in names} | {("b", n, "gini") for n in names}
    assert {r.method for r in rows(tmp_path) if r.model != "cnn"} == {
        "",
        "brnpa",
        "random",
        "center",
        "edges",
        "pooled-gradient",
    }


def test_an_unreadable_image_is_a_row(folder: Path, tmp_path: Path) -> None:
    config = small(data={"source": str(folder), "label": "pets"}, metrics=["sparsity"])
    run(config, tmp_path / "run")
    found = rows(tmp_path / "run")
    (bad,) = (r for r in found if r.metric == "reading")
    assert math.isnan(bad.value)
    assert "b.png" in bad.note
    assert {r.image for r in found if r.metric == "sparsity"} == {"cat/a.png", "dog/c.png"}
    # The next metric meets it again, and it stays one row.
    run(small(data={"source": str(folder), "label": "pets"}, metrics=["sparsity", "gini"]), tmp_path / "run")
    assert [r.note for r in Store(tmp_path / "run").notes("reading")] == [bad.note]
    assert sum(r.metric == "reading" for r in rows(tmp_path / "run")) == 1


def test_labels_of_other_classes(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data": {"source": str(folder), "label": "pets"}, "metrics": ["sparsity"]}
    with pytest.raises(ParameterError, match=r'cnn has 5 classes but pets has 2.*run\.target = "predicted"'):
        plan(small(**changes, run={"target": "label"}))
    run(small(**changes), tmp_path / "run")
    correct = [r.value for r in rows(tmp_path / "run") if r.column == "correct"]
    assert len(correct) == 2
    assert all(map(math.isnan, correct))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no boxes": (
        {"data": {"source": "FOLDER"}, "metrics": ["pointing_game"]},
        "pointing_game needs masks, shapes has none",
    ),
    "no mosaic": ({"metrics": ["grid_pointing_game"]}, "needs mosaic, shapes has none; set mosaic = 2"),
    "method": ({"methods": ["gradkam"]}, "unknown method 'gradkam'. Did you mean 'gradcam'"),
    "metric": ({"metrics": ["delation"]}, "unknown metric 'delation'. Did you mean 'deletion'"),
    "parameter": ({"metrics": ["deletion:step=8"]}, "'step'. Did you mean 'steps'"),
    "metric twice": (
        {"metrics": ["deletion", "deletion:steps=196"]},
        "'deletion:steps=196' is there twice as deletion:grid=common",
    ),
    "model": ({"models": {"name": "tests.nowhere:cnn"}}, "'tests.nowhere' cannot be imported"),
    "model fails": ({"models": {"name": "tests.cli.models:failing"}}, r"cnn fails on images .*forward pass is broken"),
    "data": ({"data": {"source": "/nowhere"}}, "/nowhere: does not exist"),
    "variable": ({"data": {"source": "$NO_SUCH_ROOT/x"}}, "the environment variable NO_SUCH_ROOT is not set"),
    "device": ({"run": {"device": "gpu"}}, "run.device: expected auto, cpu, cuda or mps but got 'gpu'"),
    "few classes": ({"data": {"mosaic": 3}, "metrics": ["grid_pointing_game"]}, "mosaic: 9 cells need as many classes"),
}


@pytest.mark.parametrize(("changes", "message"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_run_is_said_before(changes: dict[str, Any], message: str, folder: Path) -> None:
    if changes.get("data", {}).get("source") == "FOLDER":
        changes = {**changes, "data": {"source": str(folder)}}
    with pytest.raises(ParameterError, match=message):
        plan(small(**changes))


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(ParameterError) as caught:
        plan(small(methods=["gradkam"], metrics=["delation", "grid_pointing_game"], data={"source": "/nowhere"}))
    for part in ("gradkam", "delation", "/nowhere"):
        assert part in str(caught.value)


def test_an_empty_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn.data.synthetic import Synthetic

    empty = Synthetic(length=3).subset([])
    monkeypatch.setattr(planning, "open_dataset", lambda *_: empty)
    with pytest.raises(ParameterError, match="data set shapes is empty"):
        plan(small())


def test_images_without_a_box_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows whether an image without a box is in a batch with others or alone."""
    import dataclasses

    from xattn.data.synthetic import Synthetic

    class Some(Synthetic):
        def sample(self, index: int) -> Any:
            found = super().sample(index)
            return dataclasses.replace(found, mask=None, boxes=None) if index % 3 == 1 else found

    monkeypatch.setattr(planning, "open_dataset", lambda *_: Some(length=7))
    for batch in (1, 7):
        chosen = {"methods": ["gradcam", "saliency"], "metrics": ["pointing_game", "max_box_accuracy"]}
        run(small(**chosen, run={"batch": batch}), tmp_path / str(batch))
    assert differ(tmp_path / "1", tmp_path / "7", 1e-4) == []
    hits = [r for r in rows(tmp_path / "1") if r.column == "hit_exact" and r.method == "random"]
    assert sum(math.isnan(r.value) for r in hits) == 2


def test_maps_that_say_nothing_have_a_status_and_rows(tmp_path: Path) -> None:
    class _Odd(Explainer):
        family: ClassVar[Family] = Family.CONTROL
        value: ClassVar[float]

        def attribute(self, trace: Any) -> torch.Tensor:
            return torch.full((len(trace.x), 1, 4, 4), self.value)

    @dataclass(frozen=True)
    class Constant(_Odd):
        name: ClassVar[str] = "constant"
        value: ClassVar[float] = 0.5

    @dataclass(frozen=True)
    class NotANumber(_Odd):
        name: ClassVar[str] = "nan"
        value: ClassVar[float] = math.nan

    @dataclass(frozen=True)
    class Refusing(_Odd):
        name: ClassVar[str] = "refusing"

        def attribute(self, trace: Any) -> torch.Tensor:
            from xattn.errors import NotApplicableError

            raise NotApplicableError("refusing: not today")

    cells = plan(small(metrics=["sparsity", "gini", "pointing_game", "deletion:steps=4"], data={"limit": 3}))
    cells[0].methods.update({"constant": Constant(), "nan": NotANumber(), "refusing": Refusing()})
    run(small(), tmp_path, cells=cells)
    found = rows(tmp_path)
    status = {(r.method, r.note): r.value for r in found if r.metric == "status"}
    assert (
        status["constant", "constant"]
        == status["nan", "nan"]
        == status["refusing", "refused: refusing: not today"]
        == 0
    )
    assert status["gradcam", "ok"] == 1
    assert {r.metric for r in found if r.method == "refusing"} == {"status"}
    values = {r.value for r in found if r.method in ("constant", "nan") and r.column in ("deletion", "hit")}
    assert all(map(math.isnan, values))


def test_a_mosaic_explains_the_label_of_its_cell(tmp_path: Path) -> None:
    config = small(
        data={"source": "synthetic:length=5,decides=colour,size=16", "mosaic": 1 + 1},
        models={"name": "xattn.data.synthetic:ColourModel"},
        metrics=["grid_pointing_game"],
    )
    with pytest.raises(ParameterError, match="mosaic: 4 cells need as many classes"):
        plan(config)
    config = small(
        data={"source": "synthetic:length=6", "mosaic": 2, "metrics": ["grid_pointing_game"]},
        models={"name": "xattn.data.synthetic:ColourModel"},
    )
    run(config, tmp_path)
    found = rows(tmp_path)
    # Four colour mosaics at twice the size, of which one cell is the label's.
    assert {r.image[-7:] for r in found} == {"#mosaic"}
    values = [r.value for r in found if r.column == "cell" and r.method == "gradcam"]
    assert len(values) == 6
    assert not any(map(math.isnan, values))
    random = [r.value for r in found if r.column == "cell" and r.method == "random"]
    assert sum(random) / 6 == pytest.approx(0.25, abs=0.05)


def test_labels_name_what_is_not_the_default() -> None:
    assert label_of(metrics.parse("deletion")) == "deletion:grid=common"  # told though it is the default
    assert label_of(metrics.parse("deletion:steps=8,baseline=black")) == "deletion:baseline=black,steps=8,grid=common"
    assert label_of(metrics.parse("deletion:chunk=8")) == "deletion:grid=common"  # no part of the result
    assert label_of(explainers.parse("brnpa:parts=4")) == "brnpa:parts=4"
    for name in metrics.names():
        label = label_of(metrics.create(name))
        assert label.removesuffix(":grid=common") == name
        assert label_of(metrics.parse(label)) == label


def test_all_stands_for_every_metric_that_the_data_allow(folder: Path) -> None:
    (cell,) = plan(small(metrics=["all", {"name": "deletion:steps=8", "limit": 3}]))
    every = {label_of(metrics.create(name)) for name in metrics.names()}
    assert set(cell.metrics) == {*every, "deletion:steps=8,grid=common"} - ELSEWHERE
    (cell,) = plan(small(metrics=["all"], data={"source": str(folder)}))
    assert "pointing_game" not in cell.metrics
    assert "deletion:grid=common" in cell.metrics


def test_a_metric_can_go_without_methods() -> None:
    entry = {"name": "sparsity", "without": ["Grad-CAM", "brnpa:parts=2"]}
    (cell,) = plan(
        small(methods=["gradcam", "brnpa", "brnpa:parts=2"], metrics=[entry, "gini"], run={"controls": False})
    )
    scored = {metric: [m for m, name in cell.pairs() if name == metric] for metric in ("status", "sparsity", "gini")}
    assert scored["sparsity"] == ["brnpa"]
    assert scored["gini"] == scored["status"] == ["gradcam", "brnpa", "brnpa:parts=2"]
    with pytest.raises(ParameterError, match="Did you mean 'gradcam'"):
        plan(small(metrics=[{"name": "sparsity", "without": ["gradcm"]}]))


def test_a_dear_method_can_have_fewer_images(tmp_path: Path) -> None:
    config = small(methods=["gradcam", "saliency"], limits={"Grad-CAM": 5})
    run(config, tmp_path)
    found = {
        m: {r.image for r in rows(tmp_path) if r.metric == "sparsity" and r.method == m}
        for m in ("gradcam", "saliency")
    }
    assert len(found["gradcam"]) == 5
    assert len(found["saliency"]) == 22
    assert found["gradcam"] < found["saliency"]
    assert run(config, tmp_path).blocks == 0
    run(small(methods=["gradcam", "saliency"]), tmp_path)
    whole = {r.image for r in rows(tmp_path) if r.metric == "sparsity" and r.method == "gradcam"}
    assert whole == found["saliency"]


def test_a_plan_counts_the_passes() -> None:
    (cell,) = plan(small())
    costs = estimate(cell, small())
    assert list(costs) == ["status", "sparsity", "pointing_game", "deletion:steps=8,grid=common"]
    # One pass for the maps; eight steps less the replaced end for seven methods, and that end once for all of them.
    assert [cost.passes for cost in costs.values()] == [1, 0, 0, 7 * 7 + 1]
    assert [cost.images for cost in costs.values()] == [22, 22, 22, 13]
    assert all(cost.seconds > 0 for cost in costs.values())


def test_costs_are_measured_alone_and_kept(tmp_path: Path) -> None:
    (cell,) = plan(small())
    found = measure_costs(cell, "cpu", batch=2, repeats=1)
    assert {name: (cost.forwards, cost.backwards) for name, cost in found.items()} == {
        "gradcam": (1, 1), "saliency": (1, 1), "brnpa": (1, 0), "random": (1, 0), "center": (1, 0), "edges": (1, 0),
        "pooled-gradient": (1, 1),
    }  # fmt: skip
    write_costs(Store(tmp_path), [cell], torch.device("cpu"))
    path = Store(tmp_path).costs(cell.data.name, cell.model.title)
    kept = json.loads(path.read_text())
    assert set(kept["methods"]) == set(cell.methods)
    assert kept["methods"]["gradcam"]["peak_mb"] is None
    before = path.stat().st_mtime_ns
    write_costs(Store(tmp_path), [cell], torch.device("cpu"))
    assert path.stat().st_mtime_ns == before


def test_seconds_of_a_cpu_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = plan(small(methods=["gradcam"]))
    record = costs.record_for

    def beside_others(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)  # the machine does something else
        return record(*arguments, **options)

    monkeypatch.setattr(costs, "record_for", beside_others)
    found = measure_costs(cell, "cpu", batch=2, repeats=1)
    assert 0 < found["gradcam"].seconds * 2 < 0.5


def test_the_configurations_of_the_repository_are_valid() -> None:
    paths = sorted((ROOT / "benchmarks" / "configs").glob("*.toml"))
    assert paths
    for path in paths:
        config = Config.read(path)
        for entry in (*config.metrics, *(m for d in config.data for m in d.metrics)):
            assert entry.name == "all" or label_of(metrics.parse(entry.name))
    for name in ("small",):
        config = Config.read(ROOT / "benchmarks" / "configs" / f"{name}.toml")
        assert {entry.name.split(":")[0] for entry in config.metrics} == {*metrics.names()} - ELSEWHERE


def test_folders_are_read_whole(folder: Path) -> None:
    assert isinstance(plan(small(data={"source": str(folder)}, metrics=["gini"]))[0].dataset, ImageFolder)


def test_fast_scores_are_near_and_need_a_folder_of_their_own(whole: Path, tmp_path: Path) -> None:
    run(small(run={"fast": True}), tmp_path)
    for a, b in zip(rows(whole), rows(tmp_path), strict=True):
        assert (a.image, a.method, a.column) == (b.image, b.method, b.column)
        if a.metric.startswith("deletion") and a.column == "deletion":
            assert abs(a.value - b.value) < 0.02
        elif not a.metric.startswith("deletion"):
            assert a.value == b.value or (math.isnan(a.value) and math.isnan(b.value))
    with pytest.raises(ParameterError, match=r"run\.fast was True and is False"):
        run(small(), tmp_path)


def test_a_metric_with_another_limit_gives_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run(small(metrics=["sparsity", "pointing_game", {"name": "deletion:steps=8", "limit": 5}]), tmp_path)
    few = [row for row in rows(tmp_path) if row.metric == "deletion:steps=8,grid=common"]
    assert len({row.image for row in few}) == 5
    assert set(map(repr, few)) < set(map(repr, rows(whole)))
