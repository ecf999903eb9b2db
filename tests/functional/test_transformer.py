"""Identities of the formulas for vision transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xattn.errors import ShapeError
from xattn.functional import transformer as formulas
from xattn.spec import TokenGrid

DOUBLE = {"dtype": torch.float64}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def attention(seed: int = 0, heads: int = 3) -> Tensor:
    return (3 * random(2, heads, 7, 7, seed=seed)).softmax(dim=-1)


def test_rollout_rows_sum_to_one() -> None:
    for found in (
        formulas.attention_rollout([attention(0), attention(1, heads=2)]),
        formulas.raw_attention([attention(0), attention(1)]),
    ):
        torch.testing.assert_close(found.sum(-1), torch.ones(2, 7, **DOUBLE))
        assert found.min() > 0


def test_rollout_of_no_attention_is_the_identity() -> None:
    found = formulas.attention_rollout([torch.eye(5).expand(1, 2, 5, 5)] * 3)
    torch.testing.assert_close(found[0], torch.eye(5))


def test_later_layers_are_multiplied_from_the_left() -> None:
    """Token 2 takes from 1 in the last layer, 1 from 0 in the first: so 2 takes from 0."""
    first, last = torch.zeros(2, 1, 1, 3, 3)
    first[..., 1, 0] = last[..., 2, 1] = 1
    found = formulas.gradient_rollout([first, last], [torch.ones(1, 1, 3, 3)] * 2)
    assert found[0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_negative_gradients_count_for_nothing() -> None:
    gradient = -attention(2)
    assert not formulas.agcam([random(2, 3, 7, 7)], [gradient]).any()
    assert not formulas.legrad([gradient]).any()
    torch.testing.assert_close(formulas.gradient_rollout([attention()], [gradient])[0], torch.eye(7, **DOUBLE))


def test_half_precision_is_promoted_also_inside_autocast() -> None:
    layers = [attention(i).float() for i in range(3)]
    expected = formulas.attention_rollout(layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(formulas.attention_rollout(layers), expected)
    assert formulas.attention_rollout([layer.bfloat16() for layer in layers]).dtype == torch.float32


@pytest.mark.parametrize("layers", [[], [torch.rand(2, 3, 4, 5)], [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 5)]])
def test_layers_that_do_not_fit(layers: list[Tensor]) -> None:
    with pytest.raises(ShapeError, match=r"attention_rollout: expected a tensor \(N, heads, T, T\) for each layer"):
        formulas.attention_rollout(layers)


def test_linear_layers_conserve() -> None:
    x, weight, relevance = random(4, 6, 30), random(20, 30, seed=1), random(4, 6, 20, seed=2)
    found = formulas.linear_relevance(x, weight, relevance)
    torch.testing.assert_close(found.sum(-1), relevance.sum(-1))
    positive = formulas.linear_relevance(x.abs(), weight.abs(), relevance.abs())
    torch.testing.assert_close(positive, x.abs() * ((relevance.abs() / (x.abs() @ weight.abs().T)) @ weight.abs()))


def test_an_output_without_positive_products_hands_nothing_on() -> None:
    assert not formulas.linear_relevance(torch.ones(1, 3), -torch.ones(2, 3), torch.ones(1, 2)).any()


def test_matrix_products_conserve_half_for_each_operand() -> None:
    a, b, relevance = random(2, 3, 5, 4), random(2, 3, 4, 6, seed=1), random(2, 3, 5, 6, seed=2)
    for part in formulas.product_relevance(a, b, relevance):
        torch.testing.assert_close(part.sum((2, 3)), relevance.sum((2, 3)) / 2)


def test_sums_conserve_image_by_image() -> None:
    """With operands of opposite sign the parts would have a hundred times the size of the whole."""
    a, relevance = random(3, 7, 4), random(3, 7, 4, seed=2)
    b = -1.01 * a + 0.001 * random(3, 7, 4, seed=1)
    first, second = formulas.sum_relevance(a, b, relevance)
    whole = relevance.sum((1, 2))
    torch.testing.assert_close(first.sum((1, 2)) + second.sum((1, 2)), whole)
    assert (first.sum((1, 2)) / whole).min() > 0
    assert (second.sum((1, 2)) / whole).min() > 0
    alone, _ = formulas.sum_relevance(a[1:2], b[1:2], relevance[1:2])
    torch.testing.assert_close(first[1:2], alone)


def test_which_rows_the_classifier_reads() -> None:
    matrix = torch.arange(36.0).view(1, 6, 6)
    size = (8, 8)
    grid = TokenGrid(patch=(4, 4), prefix=2)
    assert grid.read(matrix, size).flatten().tolist() == [2, 3, 4, 5]
    both = TokenGrid(patch=(4, 4), prefix=2, class_tokens=2)
    assert both.read(matrix, size).flatten().tolist() == [5, 6, 7, 8]
    pooled = TokenGrid(patch=(4, 4), prefix=2, class_tokens=0)
    assert pooled.read(matrix, size).flatten().tolist() == [23, 24, 25, 26]
