"""Reductions over channels, the guided ReLU, and the maps of the controls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.control import center_map, sobel_map
from xattn.functional.gradient import guided_relu, reduce_channels


def test_reductions_by_hand() -> None:
    pixel = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
    values = {name: reduce_channels(pixel, name).item() for name in ("max", "sum", "mean_abs", "norm")}
    assert values == pytest.approx({"max": 4, "sum": -1, "mean_abs": 7 / 3, "norm": 5})


def test_reduction_refuses() -> None:
    with pytest.raises(ParameterError, match="max, sum, mean_abs, norm"):
        reduce_channels(torch.zeros(1, 3, 2, 2), "mean")
    with pytest.raises(ShapeError, match=r"\(3, 2, 2\)"):
        reduce_channels(torch.zeros(3, 2, 2))


@pytest.mark.parametrize("upper", [None, 6.0])
def test_guided_relu_in_all_four_cases(upper: float | None) -> None:
    x = torch.tensor([-1.0, -1.0, 0.0, 2.0, 2.0, 6.0, 7.0], requires_grad=True)
    r = torch.tensor([5.0, -5.0, 5.0, 5.0, -5.0, 5.0, 5.0])
    beyond = 5.0 if upper is None else 0.0
    y = guided_relu(x, upper)
    assert y.tolist() == [0, 0, 0, 2, 2, 6, 7 if upper is None else 6]
    assert torch.autograd.grad(y, x, r)[0].tolist() == [0, 0, 0, 5, 0, beyond, beyond]


def test_guided_relu_survives_a_later_in_place_change() -> None:
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    inner = x.clone()
    y = guided_relu(inner)
    inner.neg_()
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 0]


def test_center_is_symmetric_and_scales_with_the_image() -> None:
    wide = center_map((4, 8))
    assert wide.shape == (1, 1, 4, 8)
    torch.testing.assert_close(wide, wide.flip(2).flip(3))
    torch.testing.assert_close(center_map((8, 8))[0, 0].sum(0) / 2, wide[0, 0].sum(0), rtol=1e-2, atol=0)
    assert center_map((5, 5))[0, 0, 2, 2] == 1
    with pytest.raises(ParameterError, match="sigma must be positive"):
        center_map((4, 4), 0)


def test_sobel_of_a_step_and_of_a_plain_image() -> None:
    step = torch.zeros(1, 3, 5, 6)
    step[..., 3:] = 1
    expected = torch.tensor([0.0, 0, 4, 4, 0, 0]).expand(1, 1, 5, 6)
    torch.testing.assert_close(sobel_map(step), expected)
    torch.testing.assert_close(sobel_map(step.transpose(2, 3)), expected.transpose(2, 3))
    assert bool((sobel_map(torch.full((2, 1, 4, 4), 7.0)) == 0).all())  # no edge at the border
    with pytest.raises(ShapeError, match="sobel_map"):
        sobel_map(torch.zeros(3, 4, 4))


def test_sobel_weighs_the_colours() -> None:
    def of(channel: int) -> Tensor:
        image = torch.zeros(1, 3, 3, 4)
        image[:, channel, :, 2:] = 1
        return sobel_map(image).amax()

    torch.testing.assert_close(torch.stack([of(0), of(1), of(2)]), 4 * torch.tensor([0.299, 0.587, 0.114]))
