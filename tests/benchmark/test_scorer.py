"""A scorer in a benchmark: maps are the model's, scores of changed images are the scorer's, and its loss is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scipy.stats
import torch

from tests.benchmark.runs import rows, small
from xattn.benchmark.plan import plan
from xattn.benchmark.report import write_report
from xattn.benchmark.run import run
from xattn.benchmark.scores import Scores
from xattn.benchmark.store import SCORER, Store
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainers import resolve
from xattn.explaining import record_for
from xattn.labels import label_of
from xattn.metrics import metrics
from xattn.models import create_model, save_weights

METRICS = ["sparsity", "deletion:steps=4", "idsds", "brnpa2021"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A network, a copy of it with other weights in its classifier, and one with other classes."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    for name, classes, change in (("model", 4, 0.0), ("scorer", 4, 0.05), ("other", 5, 0.0)):
        torch.manual_seed(0)
        network = create_model("tiny-cnn", head="linear", num_classes=classes)
        with torch.no_grad():
            network.head.classifier.weight.add_(change * torch.randn(network.head.classifier.weight.shape))
        held = {"held_out": {"held_out_accuracy": 0.5}, "recipe": {"augment": {"removal": "mixed"}}}
        made[name] = str(save_weights(network, folder / f"{name}.safetensors", extra=held if name == "scorer" else {}))
    return made


def config(files: dict[str, str], scorer: str | None = "scorer", metrics: list[str] = METRICS):
    entry = {"name": files["model"], "label": "cnn"} | ({"scorer": files[scorer]} if scorer else {})
    return small(
        models=[entry], metrics=metrics, methods=["gradcam"], data={"source": "synthetic:length=6,size=64"},
        run={"controls": False},
    )  # fmt: skip


def test_every_column_of_changed_images_exists_with_the_scorer_too(files: dict[str, str], tmp_path: Path) -> None:
    (cell,) = plan(config(files))
    plain, judged = (label_of(metrics.parse(f"deletion:steps=4{end}")) for end in ("", ",scorer=in-domain"))
    assert list(cell.metrics) == ["sparsity", plain, judged, "idsds", "idsds:scorer=in-domain", "brnpa2021"]
    run(config(files), tmp_path)
    found = {(r.metric, r.column, r.image): r.value for r in rows(tmp_path) if r.method == "gradcam"}
    images = sorted({image for _, _, image in found})
    assert len(images) == 6
    for column, base, twin in (("deletion", plain, judged), ("idsds", "idsds", "idsds:scorer=in-domain")):
        assert any(not math.isclose(found[base, column, i], found[twin, column, i]) for i in images)
    # By hand: the map of the model, the passes of the scorer, the class that the model predicts.
    model, scorer = create_model(files["model"]).eval(), create_model(files["scorer"]).eval()
    dataset = cell.dataset
    for index in range(6):
        sample = dataset[index]
        batch = dataset.batch([index], model.spec, fit="crop")
        trace = record_for(model, batch.x, resolve(["gradcam"]), spec=model.spec, seeds=[0])
        (one,) = (m.explanation(trace) for m in resolve(["gradcam"]))
        with torch.no_grad():
            clean = scorer(batch.x)[0, trace.target[0]]
            falls = []
            for k in range(16):
                x = batch.x.clone()
                x[..., 16 * (k // 4) : 16 * (k // 4) + 16, 16 * (k % 4) : 16 * (k % 4) + 16] = 0
                falls.append(float(clean - scorer(x)[0, trace.target[0]]))
        assert one.maps.shape == (1, 1, 4, 4)  # the grid of the metric
        expected = float(scipy.stats.spearmanr(one.maps.flatten(), falls).statistic)
        assert found["idsds:scorer=in-domain", "idsds", sample.id] == pytest.approx(expected, abs=1e-6)


def test_what_the_scorer_loses_is_in_the_manifest_and_the_report(files: dict[str, str], tmp_path: Path) -> None:
    run(config(files), tmp_path / "run")
    identity = Store(tmp_path / "run").read_manifest().identity
    assert identity is not None
    known = identity.models["cnn"]
    assert known.scorer not in ("", known.weights)
    assert known.scorer_file == {"held_out_accuracy": "0.5", "removal": "mixed"}
    told = [r for r in rows(tmp_path / "run") if r.metric == SCORER]
    assert {r.column for r in told} == {"correct", "agrees"}
    assert len(told) == 12
    scores = Scores(tmp_path / "run")
    sentence = scores.scorer("shapes", "cnn")
    assert sentence.startswith("The scorer of cnn predicts the same class on ")
    assert "of 6 whole images and loses " in sentence
    text = write_report(scores, [], tmp_path / "report").read_text()
    assert "of 6 whole images and loses" in text
    assert all(entry.method == "gradcam" for entry in scores.entries("shapes", "cnn"))


def test_a_scorer_may_come_later_but_not_change(files: dict[str, str], tmp_path: Path) -> None:
    run(config(files, None), tmp_path)
    before = len(rows(tmp_path))
    assert not any("in-domain" in r.metric for r in rows(tmp_path))
    run(config(files), tmp_path)
    assert len(rows(tmp_path)) > before
    run(config(files, None), tmp_path)  # it stays away for a while
    assert run(config(files), tmp_path).rows == 0
    with pytest.raises(ParameterError, match="scorer of cnn was"):
        run(config(files, "model"), tmp_path)


def test_what_is_no_copy_is_refused_with_the_difference(files: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match=r"has 5 classes but the model has 4"):
        plan(config(files, "other"))
    with pytest.raises(ParameterError, match=r"nowhere\.safetensors"):
        plan(config(files | {"scorer": "nowhere.safetensors"}))
    with pytest.raises(ParameterError, match=r"needs a scorer and no model has one; set models\.0\.scorer"):
        plan(config(files, None, ["idsds:scorer=in-domain"]))
    with pytest.raises(ParameterError, match="a preset cannot be changed; set scorer on"):
        metrics.parse("brnpa2021:scorer=in-domain")


def test_without_a_scorer_the_metric_says_what_to_do(files: dict[str, str]) -> None:
    model = create_model(files["model"]).eval()
    trace = record_for(model, torch.zeros(1, 3, 64, 64), resolve(["gradcam"]), spec=model.spec)
    (one,) = (m.explanation(trace) for m in resolve(["gradcam"]))
    with pytest.raises(NotApplicableError, match="xattn train --augment removal"):
        metrics.parse("idsds:scorer=in-domain").measure(one, trace, None)
