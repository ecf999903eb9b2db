"""The synthetic images say where their evidence is, and the hand-made model uses that and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from xattn.data.synthetic import COLOURS, Synthetic
from xattn.errors import ParameterError

DECIDES: Any = pytest.mark.parametrize("decides", ["place", "colour"])


@DECIDES
@pytest.mark.parametrize("size", [16, 32, 50])
def test_the_model_is_right_on_every_image(decides: Any, size: int) -> None:
    dataset = Synthetic(48, size, decides, seed=1)
    model = dataset.model()
    batch = dataset.batch(range(48), model.spec)
    logits = model(batch.x).detach()
    assert torch.equal(logits.argmax(1), batch.target)
    others = logits.scatter(1, batch.target[:, None], 0)
    assert (others == 0).all()  # nothing speaks for another class
    assert len(model.spec.classes) == logits.shape[1]


@DECIDES
def test_the_evidence_is_the_mask(decides: Any) -> None:
    dataset = Synthetic(12, 32, decides)
    model = dataset.model()
    batch = dataset.batch(range(12), model.spec)
    assert batch.masks is not None
    features = model.features(batch.x).detach().sum(1, keepdim=True)
    assert ((features > 0) == batch.masks).all()
    x = batch.x.clone().requires_grad_()
    model(x).gather(1, batch.target[:, None]).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(1, keepdim=True)[~batch.masks] == 0).all()
    grey = torch.where(batch.masks, batch.x.mean(1, keepdim=True), batch.x)
    assert (model(grey).abs() < 1e-4).all()  # without the shape there is nothing left
    only = torch.where(batch.masks, batch.x, torch.zeros(()))
    torch.testing.assert_close(model(only), model(batch.x))  # and the rest adds nothing


@DECIDES
def test_images(decides: Any) -> None:
    dataset = Synthetic(12, 32, decides)
    for sample in dataset:
        assert sample.image.shape == (32, 32, 3)
        assert sample.mask is not None
        assert sample.boxes is not None
        assert 10 <= sample.mask.sum() <= 64
        coloured = sample.image.max(2) != sample.image.min(2)
        np.testing.assert_array_equal(coloured, sample.mask)
        xmin, ymin, xmax, ymax = sample.boxes[0].astype(int)
        assert sample.mask[ymin:ymax, xmin:xmax].sum() == sample.mask.sum()
        if decides == "place":
            assert (ymin // 16, xmin // 16) == divmod(sample.label, 2) == ((ymax - 1) // 16, (xmax - 1) // 16)
        else:
            assert tuple(sample.image[sample.mask][0]) == COLOURS[dataset.classes[sample.label]]


def test_an_image_depends_on_its_number_and_the_seed_alone() -> None:
    np.testing.assert_array_equal(Synthetic(3)[2].image, Synthetic(50)[2].image)
    assert (Synthetic(3)[2].image != Synthetic(3, seed=1)[2].image).any()
    assert (Synthetic(3)[2].image != Synthetic(3, split="test")[2].image).any()
    assert np.bincount(Synthetic(40).labels).tolist() == [10] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 14}, "size must be even and at least 16 but is 14"),
        ({"size": 33}, "size must be even"),
        ({"length": 0}, "length must be at least 1"),
        ({"decides": "size"}, "decides must be place or colour"),
        ({"split": "val"}, "split must be train or test"),
    ],
)
def test_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Synthetic(**options)
