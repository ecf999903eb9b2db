"""Attention pooling and the class map of a head that pools by attention."""

from __future__ import annotations

import pytest
import torch

from xattn.errors import ShapeError
from xattn.functional.attention import attention_pool, class_map


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(2, 5, 3, 4), make(2, 3, 3, 4), make(2, 15)


def test_pool_equals_loops():
    features, maps, _ = tensors()
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    for n in range(2):
        for m in range(3):
            for i in range(3):
                for j in range(4):
                    expected[n, m] += maps[n, m, i, j] * features[n, :, i, j]
    torch.testing.assert_close(attention_pool(features, maps), expected)
    torch.testing.assert_close(attention_pool(features.contiguous(memory_format=torch.channels_last), maps), expected)
    assert attention_pool(features.bfloat16(), maps.float()).dtype == torch.bfloat16


def test_class_map_equals_loops_and_sums_to_the_logit():
    features, maps, weight = tensors()
    expected = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    for n in range(2):
        for i in range(3):
            for j in range(4):
                for m in range(3):
                    row = weight[n, m * 5 : (m + 1) * 5]
                    expected[n, 0, i, j] += maps[n, m, i, j] * sum(row[c] * features[n, c, i, j] for c in range(5))
    found = class_map(features, maps, weight)
    torch.testing.assert_close(found, expected)
    logit = (attention_pool(features, maps).flatten(1) * weight).sum(1)
    torch.testing.assert_close(found.sum((1, 2, 3)), logit)


def test_class_map_is_float32_in_half_precision():
    features, maps, weight = tensors(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_map(features, maps, weight)
    torch.testing.assert_close(found, class_map(features.double(), maps.double(), weight.double()).float())


def test_shapes_that_disagree_are_named():
    features, maps, weight = tensors()
    with pytest.raises(ShapeError, match=r"attention_pool: .*\(2, 5, 3, 4\) and \(2, 3, 3, 3\)"):
        attention_pool(features, maps[..., :3])
    with pytest.raises(ShapeError, match="same images"):
        attention_pool(features[:1], maps)
    with pytest.raises(ShapeError, match=r"expected weights \(2, 15\) for 3 parts of 5 channels but got \(2, 14\)"):
        class_map(features, maps, weight[:, :14])
