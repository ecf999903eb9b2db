"""How a copy answers beside the network itself, against plain arithmetic; statistics of batch norm taken anew."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

import xattn
from xattn.errors import DataError
from xattn.models.agreement import agreement, relative_cost
from xattn.models.converting import recalibrated
from xattn.spec import ModelSpec


class Table(nn.Module):
    """Logits by the number in the first pixel."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x):
        return self.rows[x[:, 0, 0, 0].long()]


OLD = [[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.5, 4.0]]
NEW = [[2.0, 1.5, 0.0], [0.0, 1.0, 3.0], [0.0, 0.5, 4.0]]


def test_by_plain_arithmetic():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2)
    labels = torch.tensor([0, 2, -1])
    found = agreement(
        Table(OLD), Table(NEW), [(x[:2], labels[:2]), (x[2:], None)], spec=ModelSpec(feature_layer="rows")
    )

    def softmax(row):
        return [math.exp(v) / sum(map(math.exp, row)) for v in row]

    best = [0, 1, 2]
    assert (found.images, found.same) == (3, 2)
    assert (found.labelled, found.right_before, found.right_after) == (2, 1, 2)
    assert found.before == pytest.approx(statistics.mean(softmax(r)[b] for r, b in zip(OLD, best, strict=True)))
    assert found.after == pytest.approx(statistics.mean(softmax(r)[b] for r, b in zip(NEW, best, strict=True)))
    shares = [
        math.sqrt(statistics.mean((a - b) ** 2 for a, b in zip(old, new, strict=True))) / statistics.stdev(old)
        for old, new in zip(OLD, NEW, strict=True)
    ]
    assert found.change == pytest.approx(statistics.mean(shares))
    assert str(found).startswith("agrees on 2 of 3 images (probability of the class: ")


def test_without_images_there_is_nothing_to_say():
    with pytest.raises(DataError, match="no image to compare on"):
        agreement(Table(OLD), Table(NEW), [], spec=ModelSpec(feature_layer="rows"))


def test_cost_counts_multiplications():
    one, three = nn.Conv2d(3, 4, 1, bias=False), nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1))
    x = torch.rand(1, 3, 8, 8)
    assert relative_cost(one, three, x) == pytest.approx((12 + 24) / 12)
    plain = xattn.create_model("tiny-cnn", num_classes=4)
    x = torch.rand(1, 3, 64, 64)
    costs = [relative_cost(plain, xattn.convert(plain, resolution=r), x) for r in ("low", "x2", "x4")]
    assert costs[0] == pytest.approx(1, abs=0.05)
    assert 1 < costs[1] < 4
    assert costs[1] < costs[2] < 16


def test_statistics_of_batch_norm_are_those_of_the_images():
    torch.manual_seed(0)
    made = xattn.convert(xattn.create_model("tiny-cnn", num_classes=4), resolution="x2").double()
    batches = [torch.randn(4, 3, 64, 64, dtype=torch.float64) for _ in range(2)]
    before = {name: (m, m.running_mean.clone()) for name, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert recalibrated(made, batches) == 8
    changed = [name for name, (m, mean) in before.items() if not torch.equal(m.running_mean, mean)]
    first = changed[0]
    norm = made.get_submodule(first)
    assert 0 < len(changed) < len(before)  # those before the dilation stay
    assert not any(m.training for m in made.modules())
    seen = []
    handle = norm.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for x in batches:
            made(x)
    handle.remove()
    means = [x.mean((0, 2, 3)) for x in seen]
    torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2, rtol=1e-9, atol=1e-9)
    assert recalibrated(made, []) == 0
