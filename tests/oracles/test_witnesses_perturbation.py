"""Perturbation metrics against torch-cam, captum and pytorch-grad-cam."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.given import explained
from tests.oracles.naive_perturbation import (
    N,
    black,
    probability,
    some_maps,
)
from xattn.functional.imputation import linear_imputation
from xattn.metrics import metrics
from xattn.metrics.subsets import Infidelity
from xattn.trace import Trace

OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")


class FakeExtractor:
    """What torch-cam's metrics ask of an extractor: the model and a map."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


def test_torchcam_deletion_and_insertion(trace: Trace) -> None:
    """torch-cam takes ceil(cells / steps) cells a step: 320 pixels in 20 steps divide evenly."""
    torchcam = pytest.importorskip("torchcam.metrics")
    maps = some_maps(16, 20)  # full size: interpolation of few cells ties border pixels, which it orders as they come
    witness = torchcam.DeletionInsertionMetric(
        FakeExtractor(trace.model, maps[:, 0]), lambda logits: logits.softmax(-1), steps=20
    )
    witness.update(trace.x, trace.target.tolist())
    options = {"baseline": "mean", "steps": 20, "grid": "pixels"}
    mine = {
        name: metrics.create(name, **options).measure(explained(maps, trace), trace, None)[name]
        for name in ("deletion", "insertion")
    }
    summary = witness.summary()
    for name in mine:
        assert mine[name].mean().item() == pytest.approx(summary[f"{name}_auc"], rel=1e-6)


def test_torchcam_average_drop(trace: Trace) -> None:
    """torch-cam multiplies the normalized image (baseline `mean`) and adds 1e-7 to the score that it divides by."""
    torchcam = pytest.importorskip("torchcam.metrics")
    from xattn.functional.resize import normalize

    maps = some_maps(4, 5)
    witness = torchcam.ClassificationMetric(
        FakeExtractor(trace.model, normalize(maps)[:, 0]), lambda logits: logits.softmax(-1)
    )
    witness.update(trace.x, trace.target.tolist())
    mine = metrics.create("average_drop", baseline="mean").measure(explained(maps, trace), trace, None)
    assert mine["average_drop"].mean().item() == pytest.approx(witness.summary()["avg_drop"], rel=1e-5)
    assert mine["increase_in_confidence"].mean().item() == witness.summary()["conf_increase"]


def test_captum_infidelity(trace: Trace) -> None:
    """The same squares, with captum's optimal scaling; its attributions are per feature, here a third a channel."""
    captum = pytest.importorskip("captum.metrics")
    metric, maps = Infidelity(samples=20, grid="pixels"), some_maps(16, 20)
    squares = metric.squares(trace)
    other = torch.from_numpy(np.stack([black(trace, image.numpy()) for image in trace.x]))
    mine = metric.measure(explained(maps, trace), trace, None)["infidelity"]
    for i in range(N):
        rows = iter(squares[i].tolist())

        def perturb(inputs: Tensor, rows: Iterator[list[int]] = rows, i: int = i) -> tuple[Tensor, Tensor]:
            gone = torch.zeros_like(inputs)
            for k in range(len(inputs)):
                top, left, bottom, right = next(rows)
                gone[k, :, top:bottom, left:right] = 1
            return gone, torch.where(gone > 0, other[i], inputs)

        value = captum.infidelity(
            lambda images: trace.model(images).softmax(1),
            perturb,
            trace.x[i : i + 1],
            maps[i : i + 1].expand(-1, 3, -1, -1) / 3,
            target=int(trace.target[i]),
            n_perturb_samples=20,
            normalize=True,
        )
        assert value.item() == pytest.approx(mine[i].item(), rel=1e-6)


@OLD_NUMPY
def test_grad_cam_imputation() -> None:
    """pytorch-grad-cam solves the same equations by a sparse factorization, one image at a time."""
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    x = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(2, 1, 16, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    mine = linear_imputation(x, removed, tolerance=1e-6)
    for i in range(2):
        theirs = road.NoisyLinearImputer(noise=0.0)(x[i], (~removed[i, 0]).float())
        torch.testing.assert_close(mine[i], theirs, rtol=0, atol=1e-4)


@OLD_NUMPY
def test_grad_cam_road(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps what lies under a percentile, reports the change from the clean score, and halves the combined value.

    At percentile p it removes the top 100 - p %, so that its p = 75 is our first quarter. Its noise is switched off.
    """
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    x = trace.x.clone().requires_grad_()
    probabilities = trace.model(x).softmax(1).gather(1, trace.target[:, None])
    gradient = torch.autograd.grad(probabilities.sum(), x)[0]
    maps = (trace.x * gradient).sum(1, keepdim=True)  # a map that makes a difference
    chosen = [targets.ClassifierOutputSoftmaxTarget(int(t)) for t in trace.target]
    model = copy.deepcopy(trace.model).float()
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", (0.0, road.neighbors_weights))
    theirs = road.ROADCombined(percentiles=[25, 50, 75])(trace.x.float(), maps[:, 0].numpy(), chosen, model)
    metric = metrics.create("road", steps=4, baseline="linear:noise=0", grid="pixels")
    mine = metric.measure(explained(maps, trace), trace, None)["road"]
    np.testing.assert_allclose(mine.numpy() / 2, theirs, atol=2e-4)
    assert np.abs(theirs).min() > 2e-2


def test_grad_cam_drop_and_increase(trace: Trace) -> None:
    """It multiplies the normalized image with the map as it is, and does not divide the drop by the score."""
    module = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    from xattn.functional.resize import normalize

    maps = some_maps(16, 20)
    chosen = [targets.ClassifierOutputSoftmaxTarget(int(t)) for t in trace.target]
    scaled = normalize(maps)[:, 0].numpy()[:, None]
    drop = module.DropInConfidence()(trace.x, scaled, chosen, trace.model)
    increase = module.IncreaseInConfidence()(trace.x, scaled, chosen, trace.model)
    mine = metrics.create("average_drop", baseline="mean").measure(explained(maps, trace), trace, None)
    clean = np.array([probability(trace, trace.x[i].numpy(), i) for i in range(N)])
    np.testing.assert_allclose(mine["average_drop"].numpy() * clean, drop, atol=1e-6)
    np.testing.assert_array_equal(mine["increase_in_confidence"].numpy(), increase)
