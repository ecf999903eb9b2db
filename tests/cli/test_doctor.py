"""`xattn doctor` finds the fault of each faulty network, and none in a good one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import models
from tests.cli.conftest import Run
from tests.test_given import network
from xattn.cli.doctor import Snapshot, check_model
from xattn.explainers import explainers
from xattn.file_loop import Network
from xattn.inspection import infer_spec


def report(run: Run, name: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    result = run("doctor", "--model", f"tests.cli.models:{name}", "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def states(report: dict[str, Any], what: str) -> dict[str, str]:
    return {item["name"]: item["state"] for item in report[what]}


def test_good_network(run: Run) -> None:
    status, found = report(run, "cnn", "--full")
    assert status == 0
    assert set(states(found, "checks").values()) == {"ok"}
    by_name = states(found, "methods")
    assert set(by_name) == set(explainers.names())
    refused = {name for name, state in by_name.items() if state == "fail"}
    assert refused == {"bcnn", "part-cam"} | {
        name for name in explainers.names() if explainers.get(name).serves == "vision transformers"
    }
    facts = {item["name"]: item for item in found["methods"]}
    assert facts["cam"]["facts"]["conservation_error"] < 1e-5
    assert "sums to the logit" in facts["cam"]["text"]
    assert "B-CNN head" in facts["bcnn"]["text"]
    checks = {item["name"]: item for item in found["checks"]}
    assert checks["ReLUs guided"]["facts"] == {"guided": 3, "activations": 3}
    assert checks["forward pass"]["facts"] == {"classes": 5, "features": [12, 8, 8]}
    assert "gradcam" in found["valid"]
    assert "random" not in found["valid"]  # a control is no explanation


@pytest.mark.parametrize(
    ("name", "check", "state", "text"),
    [
        ("probabilities", "outputs", "warn", "look like probabilities"),
        ("coupled", "batch independence", "fail", "explain images one by one"),
        ("failing", "forward pass", "fail", "the forward pass is broken"),
        ("dead", "gradient", "fail", "all zero at 'features' for 2 of 2 images"),
        ("dead", "outputs", "fail", "different images give the same logits"),
        ("gelu", "ReLUs guided", "warn", "0 of 3 activations"),
        ("nan", "outputs", "fail", "NaN"),
        ("unknown", "spec", "warn", "normalization unknown"),
    ],
)
def test_faults_are_found(run: Run, name: str, check: str, state: str, text: str) -> None:
    _, found = report(run, name)
    item = next(item for item in found["checks"] if item["name"] == check)
    assert item["state"] == state
    assert text in item["text"]


@pytest.mark.parametrize("name", ["failing", "nan"])
def test_status_is_two_where_nothing_works(run: Run, name: str) -> None:
    status, found = report(run, name)
    assert status == 2
    assert found["valid"] == []


def test_methods_say_why_they_are_not_valid(run: Run) -> None:
    _, found = report(run, "gelu")
    reasons = {item["name"]: item["text"] for item in found["methods"] if item["state"] == "fail"}
    assert "0 ReLUs and 3 gelu" in reasons["guided-backprop"]
    _, found = report(run, "probabilities")
    reasons = {item["name"]: item["text"] for item in found["methods"] if item["state"] == "fail"}
    assert "not a linear function" in reasons["cam"]


def test_methods_of_many_passes_are_tried_with_full_alone(run: Run) -> None:
    _, found = report(run, "cnn")
    untried = {name for name, state in states(found, "methods").items() if state == "untried"}
    assert {"rise", "integrated-gradients", "ablationcam", "smoothgradcam++", "occlusion"} <= untried
    assert {"gradcam", "lrp", "saliency", "finercam", "bcnn"}.isdisjoint(untried)
    assert untried.isdisjoint(found["valid"])


def test_the_default_network_is_answered_on_photographs_in_seconds(run: Run) -> None:
    start = time.process_time()
    result = run("doctor")
    assert time.process_time() - start < 15
    assert result.exit_code == 0
    assert "model efficientnet_lite0" in result.stdout
    assert "2 images of 224x224 give 1000 logits" in " ".join(result.stdout.split())


def test_images_of_ones_own(run: Run, photo: Path) -> None:
    _, found = report(run, "cnn", photo)
    assert next(c for c in found["checks"] if c["name"] == "forward pass")["text"].startswith("1 images")


def test_table_for_people(run: Run) -> None:
    result = run("doctor", "--model", "tests.cli.models:cnn")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "valid on this model: activation, attnlrp, brnpa" in text
    assert "not tried, with many passes each (--full): ablationcam, blur-ig, deeplift-shap" in text
    failed = run("doctor", "--model", "tests.cli.models:failing")
    assert failed.exit_code == 2
    assert "no method is valid" in failed.stdout
    assert "mend first: forward pass" in failed.stdout


def test_snapshot_sees_every_kind_of_change() -> None:
    model = models.cnn()
    before = Snapshot(model)
    assert before.changes(model) == []
    handle = model.features.register_forward_hook(lambda *_: None)
    assert before.changes(model) == ["hooks"]
    handle.remove()
    model.classifier.bias.requires_grad_(False)
    assert before.changes(model) == ["requires_grad"]
    model.classifier.bias.requires_grad_(True)
    model.note = 1  # type: ignore[assignment]
    assert before.changes(model) == ["attributes"]
    del model.note
    with torch.no_grad():
        model.features[1].running_mean += 1
    assert before.changes(model) == ["weights or statistics"]


def test_each_fact_is_told_with_how_it_was_found() -> None:
    model = network()
    x = torch.randn(2, 3, 32, 32)
    facts = {c.name: c for c in check_model(Network(model, infer_spec(model, x), "own"), x)}
    assert facts["fact: classifier"].text == "proved (the class scores are its output)"
    assert facts["fact: normalization"].facts["how"] == "assumed"
    given = {c.name: c for c in check_model(Network(model, infer_spec(model, x, mean=0.5, std=0.5), "own"), x)}
    assert given["fact: normalization"].text == "given"


def test_a_network_without_a_feature_layer_and_a_function(run: Run) -> None:
    """What holds, and which methods go: those that need the input or scores alone."""
    status, found = report(run, "flat")
    by_name = states(found, "methods")
    assert status == 0
    assert by_name["saliency"] == by_name["input-x-gradient"] == "ok"
    assert by_name["gradcam"] == by_name["brnpa"] == "fail"
    assert states(found, "checks")["gradient"] == "ok"
    told = {item["name"]: item["text"] for item in found["methods"]}
    assert "no layer with a spatial output" in told["gradcam"]
    status, found = report(run, "scores_alone")
    by_name = states(found, "methods")
    assert status == 0
    assert by_name["gradcam"] == by_name["saliency"] == "fail"
    assert by_name["occlusion"] in ("ok", "untried")
    told = {item["name"]: item["text"] for item in found["methods"]}
    assert "is a function, whose layers cannot be seen" in told["gradcam"]


def test_a_status_is_explained_once(run: Run) -> None:
    result = run("doctor", "--model", "tests.cli.models:dead")
    assert result.stdout.count("maps are all-zero") > 3
    assert result.stdout.count("all-zero: no cell has any importance") == 1
    assert "try another class, or hirescam" in " ".join(result.stdout.split())
