"""Strides become dilation: every layer against the definition, and networks against themselves at the old cells."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from xattn.errors import NotApplicableError, ParameterError
from xattn.models import create_model
from xattn.models.dilated_layers import displacement, native, old_cells, pair, spread
from xattn.models.dilation import but_for_rounding, dilate, dilated, factor_of


def same_padded(channels: int, kernel: int, stride: int) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    return layers.Conv2dSame(channels, channels, kernel, stride, groups=channels, bias=True)


class SqueezeExcite(nn.Module):
    """Each channel by a number that depends on all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, 1, 1),
    "strided conv": lambda: nn.Conv2d(4, 6, 3, 2, 1),
    "valid conv": lambda: nn.Conv2d(4, 6, 3, 2),
    "even kernel": lambda: nn.Conv2d(4, 6, 2, 2),
    "depthwise, dilated": lambda: nn.Conv2d(4, 4, 3, 2, 2, dilation=2, groups=4),
    "grouped, of two shapes": lambda: nn.Conv2d(4, 6, (3, 5), 2, (1, 2), groups=2, bias=False),
    "shortcut": lambda: nn.Conv2d(4, 6, 1, 2),
    "circular": lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="circular"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "TensorFlow": lambda: same_padded(4, 3, 2),
    "TensorFlow, 5x5": lambda: same_padded(4, 5, 2),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool, stride 1": lambda: nn.MaxPool2d(3, 1, 1),
    "max pool, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool, ceil": lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "blur pool": lambda: pytest.importorskip("timm.layers").BlurPool2d(4, stride=2),
    "squeeze-excite": SqueezeExcite,
    "group norm": lambda: nn.GroupNorm(2, 4),
}  # fmt: skip


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("size", [(8, 6), (9, 7)])
@pytest.mark.parametrize("rate", [1, 2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_keeps_the_old_cells(name, rate, size, first):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    stride = pair(getattr(layer, "stride", 1))[0]
    if rate * stride == 1 or first >= stride:
        pytest.skip("nothing to change")
    x = torch.randn(2, 4, rate * size[0], rate * size[1], dtype=torch.float64)
    old = layer(x[:, :, ::rate, ::rate])
    changed = copy.deepcopy(layer)
    spread(changed, rate, stride, name, first=first)
    new, step = changed(x), rate * stride
    assert new.shape[2:] == (step * old.shape[2], step * old.shape[3])
    cells = slice(rate * first, None, step)
    torch.testing.assert_close(new[:, :, cells, cells], old, rtol=0, atol=1e-12)
    assert old_cells(changed) == (cells if stride > 1 else slice(0, None, 1))
    assert isinstance(changed, type(layer))
    assert [*changed.state_dict()] == [*layer.state_dict()]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", ["conv", "strided conv", "depthwise, dilated", "TensorFlow"])
def test_new_cells_are_those_of_a_dilated_convolution(name, first):
    torch.manual_seed(0)
    layer, rate = LAYERS[name]().double().requires_grad_(False), 2
    s, d, k = layer.stride[0], layer.dilation[0], layer.kernel_size[0]
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    before = 0 if name == "TensorFlow" else layer.padding[0]  # with 6 cells and stride 2 TensorFlow pads the end alone
    before += first if s > 1 else 0
    changed = copy.deepcopy(layer)
    spread(changed, rate, s, name, first=first)
    y = changed(x)
    per = layer.in_channels // layer.groups
    for o in range(layer.out_channels):
        group = o // (layer.out_channels // layer.groups)
        for i, j in ((0, 0), (1, 3), (5, 4), (11, 11), (7, 10)):
            total = 0.0 if layer.bias is None else float(layer.bias[o])
            for c in range(per):
                for a in range(k):
                    for b in range(k):
                        row, column = i + rate * (a * d - before), j + rate * (b * d - before)
                        if 0 <= row < 12 and 0 <= column < 12:
                            total += float(layer.weight[o, c, a, b] * x[0, group * per + c, row, column])
            assert float(y[0, o, i, j]) == pytest.approx(total, abs=1e-12)


def test_pools_run_on_interleaved_and_shifted_grids():
    layer = nn.AvgPool2d(2, 2)
    x = torch.arange(8.0).repeat(8, 1)[None, None]
    changed = copy.deepcopy(layer)
    spread(changed, 2, 2, "pool")
    # Means of cells i and i + 2; behind the border the last cells of each grid are repeated.
    assert changed(x)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 6, 7]
    changed = copy.deepcopy(layer)
    spread(changed, 2, 2, "pool", first=1)  # of cells i - 2 and i
    assert changed(x)[0, 0, 0].tolist() == [0, 1, 1, 2, 3, 4, 5, 6]


class Net(nn.Module):
    """Strides of a convolution, a pool and a shortcut, and a block that looks at all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.pool = nn.Conv2d(4, 4, 3, 2, 1), nn.AvgPool2d(2, 2)
        self.gate = SqueezeExcite()
        self.last = nn.Conv2d(4, 5, 3, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.last(self.gate(self.conv(x) + self.pool(x)).relu())


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_a_network_keeps_the_old_cells(factor, size):
    torch.manual_seed(0)
    model = Net().eval().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    before = {name: id(type(m)) for name, m in model.named_modules()}
    finer = dilated(model, factor, feature_layer="last", input_size=size, x=x)
    assert {name: id(type(m)) for name, m in model.named_modules()} == before
    cells = old_cells(finer)
    # A mean over the convolution and the pool, which stand half a cell apart.
    assert cells == slice(factor // 8, None, factor)
    torch.testing.assert_close(finer(x)[:, :, cells, cells], model(x), rtol=0, atol=1e-12)
    assert [*finer.state_dict()] == [*model.state_dict()]
    larger = torch.randn(1, 3, 64, 96, dtype=torch.float64)  # of another size than the check
    torch.testing.assert_close(finer(larger)[:, :, cells, cells], model(larger), rtol=0, atol=1e-12)
    again = copy.deepcopy(finer)
    assert torch.equal(again(x), finer(x))
    finer.zero_grad()
    finer(x).sum().backward()
    assert all(p.grad is not None for p in finer.parameters())


def padded_at_the_end() -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    return nn.Sequential(*(layers.Conv2dSame(1, 1, kernel, 2, bias=False) for kernel in (3, 3, 5)))


def unpadded() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2))


def padded() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 5, 2, 2), nn.MaxPool2d(3, 2, 1))


def patches() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.Conv2d(1, 1, 4, 4))


def halves() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.AvgPool2d(2), nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("network", "size", "first"),
    [
        (padded_at_the_end, 64, 3), (unpadded, 64, 1), (padded, 64, 0), (patches, 64, 2), (halves, 64, 2),
        (padded_at_the_end, 65, 2), (padded, 65, 2), (unpadded, 69, 2), (patches, 70, 0),
    ],
    ids=lambda v: str(v)[:20],
)  # fmt: skip
def test_new_cells_look_at_where_they_stand(network, size, first):
    torch.manual_seed(0)
    model = network().eval().double()
    for p in model.parameters():
        p.data.fill_(1.0)  # each cell sums up what it sees
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    finer = dilated(model, 4, feature_layer=str(len(model) - 1), input_size=(size, size), x=torch.rand_like(x))
    cells = old_cells(finer)
    assert cells == slice(first, None, 4)
    picture = torch.rand_like(x)
    torch.testing.assert_close(finer(picture)[:, :, cells, cells], model(picture))
    # What a cell reads, by the gradient of its row.
    picture.requires_grad_()
    made = finer(picture)
    side = made.shape[2]
    off = []
    for row in range(side // 3, side - side // 3):
        (seen,) = torch.autograd.grad(made[0, 0, row].sum(), picture, retain_graph=True)
        rows = seen[0, 0].abs().sum(1).nonzero()[:, 0]
        off.append(float(rows.min() + rows.max()) / 2 + 0.5 - (row + 0.5) * size / side)
    # A cell is two pixels, and the stride that stays may look half a cell on.
    assert abs(sum(off) / len(off)) <= 2
    assert max(map(abs, off)) <= 3.5


def test_displacement_is_by_padding():
    def same(kernel: int) -> nn.Module:
        return same_padded(4, kernel, 2)

    assert [displacement(same(kernel), 14) for kernel in (3, 5)] == [1, 1]
    assert [displacement(same(kernel), 15) for kernel in (3, 5)] == [0, 0]
    layers = nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 2, 2, dilation=2), nn.MaxPool2d(3, 2), nn.AvgPool2d(2)
    assert [displacement(layer, 14) for layer in layers] == [0, 0, 1, 0.5]
    assert displacement(nn.PixelUnshuffle(2), 14) is None


def test_a_wrong_rate_is_noticed(monkeypatch):
    model = Net().eval()
    monkeypatch.setattr("xattn.models.dilation._Rates.__call__", lambda self, cells: 1)
    with pytest.raises(NotApplicableError, match=r"its old cells differ by .* would be another network|instead of"):
        dilate(model, 4, torch.randn(1, 3, 32, 32))


class Functional(nn.Module):
    """A stride in its own forward, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return nn.functional.max_pool2d(self.conv(x), 2)


def test_a_block_that_pools_in_its_own_forward_is_a_layer():
    model = nn.Sequential(Functional(), nn.Conv2d(4, 4, 3, padding=1)).eval().double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    finer = dilated(model, 2, feature_layer="1", input_size=(16, 16), x=x)
    torch.testing.assert_close(finer(x)[:, :, ::2, ::2], model(x), rtol=0, atol=1e-12)


class Amplifying(nn.Module):
    """Makes large what differs by rounding, as deep networks do."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return torch.sin(self.gain * x)


def deep(gain: float) -> nn.Module:
    torch.manual_seed(0)
    first, second = (nn.Conv2d(channels, 64, 3, 2, 1) for channels in (3, 64))
    across = [nn.Conv2d(64, 64, 5, 1, 2, groups=64) for _ in range(2)]
    layers = first, across[0], second, across[1], nn.Conv2d(64, 96, 1), Amplifying(gain), nn.Conv2d(96, 8, 1)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_rounding_is_not_taken_for_another_network():
    model, x = deep(1e6), torch.randn(4, 3, 64, 64)
    finer = dilated(model, 4, feature_layer="6", input_size=(64, 64), x=x)
    cells = old_cells(finer)
    assert finer(x).dtype == torch.float32
    exact = [copy.deepcopy(m).double() for m in (finer, model)]
    torch.testing.assert_close(exact[0](x.double())[:, :, cells, cells], exact[1](x.double()), rtol=0, atol=1e-8)


def test_what_is_nothing_but_rounding_stays_refused():
    asked = []

    def measure(*things):
        asked.append([t.dtype for t in things])
        return 0.0

    x = torch.ones(1)
    assert [but_for_rounding(found, measure, x) for found in (1e-4, 5e-3, 0.5)] == [1e-4, 0.0, 0.5]
    assert asked == [[torch.float64]]
    assert but_for_rounding(math.inf, measure, x) == math.inf
    assert math.isnan(but_for_rounding(math.nan, measure, x))


class Pointed(nn.Module):
    """Adds to all cells what the brightest one has, as attention that is sure of itself does."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        weight = (1000 * x.mean(1, keepdim=True)).flatten(2).softmax(2)
        return x + self.gain * (x.flatten(2) * weight).sum(2)[:, :, None, None]


@pytest.mark.parametrize("brightest", [(0, 0), (1, 1), (1, 2), (2, 3)])
def test_a_layer_that_looks_at_one_cell_is_found_wherever_that_is(brightest):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, 2), Pointed(), nn.Conv2d(4, 4, 3, 1, 1)).eval().double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    bright = torch.linalg.pinv(model[0].weight.detach()[:, :, 0, 0]) @ torch.full((4,), 50.0, dtype=torch.float64)
    x[0, :, 2 * brightest[0], 2 * brightest[1]] = bright
    finer = dilated(model, 2, feature_layer="2", input_size=(8, 8), x=x)
    cells = old_cells(finer)
    torch.testing.assert_close(finer(x)[:, :, cells, cells], model(x))
    other = torch.rand(16, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(finer(other)[:, :, cells, cells], model(other))


class ResponseNorm(nn.Module):
    """Channels by their length over all cells, of maps (N, h, w, C) as in ConvNeXt V2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        length = x.norm(dim=(1, 2), keepdim=True)
        return x + self.weight * x * length / length.mean(-1, keepdim=True)


class ChannelsLast(nn.Module):
    """A block that turns its map around."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 8), ResponseNorm(8), nn.Linear(8, 4))

    def forward(self, x):
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
def test_a_layer_that_has_its_channels_last_is_run_with_the_block_around_it(size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), ChannelsLast(), nn.Conv2d(4, 4, 3, 1, 1)).eval().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    finer = dilated(model, 2, feature_layer="2", input_size=size, x=x)
    torch.testing.assert_close(finer(x)[:, :, ::2, ::2], model(x))


class Smoothing(nn.Module):
    """A stage that smoothes what its block gives, in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ChannelsLast()

    def forward(self, x):
        return nn.functional.avg_pool2d(self.block(x), 3, 1, 1)


def test_what_a_layer_calls_is_its_own_after_another_was_tried():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Smoothing(), nn.Conv2d(4, 4, 3, 1, 1)).eval().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    finer = dilated(model, 2, feature_layer="2", input_size=(16, 16), x=x)
    torch.testing.assert_close(finer(x)[:, :, ::2, ::2], model(x))


def test_a_layer_is_not_told_by_a_map_that_is_the_same_all_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 3, 1, 1)).eval().double()
    even = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    finer = dilated(model, 2, feature_layer="2", input_size=(16, 16), x=even)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    cells = old_cells(finer)
    torch.testing.assert_close(finer(x)[:, :, cells, cells], model(x))


def test_what_cannot_be_made_finer_says_why():
    with pytest.raises(NotApplicableError, match="its own forward calls max_pool2d between its layers"):
        dilate(Functional().eval(), 2, torch.randn(1, 3, 16, 16))
    with pytest.raises(ParameterError, match=r"strides \(from the last one back: 2 at 8 cells.* 16 times finer"):
        dilate(Net().eval(), 16, torch.randn(1, 3, 32, 32))
    with pytest.raises(ParameterError, match="resolution must be one of low, x2, x4, x8, high but is 'x3'"):
        factor_of("x3")
    vit = create_model("tiny-vit")
    with pytest.raises(NotApplicableError, match="does not give one feature map"):
        dilated(vit, 2, feature_layer=vit.spec.feature_layer, input_size=(64, 64))


def test_native_layers_are_known():
    known = nn.Conv2d(3, 3, 3, 2), nn.MaxPool2d(2)
    others = nn.Conv2d(3, 3, 3, padding_mode="reflect"), nn.AvgPool2d(2), nn.MaxPool2d(2, return_indices=True)
    assert [native(layer) for layer in (*known, *others)] == [True, True, False, False, False]


def test_a_finer_network_can_be_copied_but_its_class_is_its_own():
    layer = nn.MaxPool2d(2)
    spread(layer, 2, 2, "pool")
    assert copy.deepcopy(layer).rate == 2
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(layer)
