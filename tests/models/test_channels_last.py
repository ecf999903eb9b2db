"""Networks whose maps have their channels last, (N, h, w, C): converted and made finer like any other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import xattn
from xattn.errors import NotApplicableError, XattnWarning
from xattn.inspection import infer_spec
from xattn.models import save_weights
from xattn.models.converting import convert, everywhere, finer
from xattn.models.dilated_layers import old_cells
from xattn.models.dilation import dilated
from xattn.models.shared_heads import SharedCellHead
from xattn.models.shifting import by_shifts, shift
from xattn.models.split import split
from xattn.models.trunk import as_map, features_of


class Gated(nn.Module):
    """A block that looks around in some of its channels, and puts them back beside the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.mix = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, mixed = self.norm(x).chunk(2, dim=-1)
        mixed = self.mix(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.out(torch.cat((left, mixed), dim=-1))


class Shuffled(Gated):
    """Looks at several cells in a way that only the whole map has: its rows are turned upside down."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * x.flip(1)


class Down(nn.Module):
    """A convolution with a stride between maps with their channels last."""

    def __init__(self, channels: int, made: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, made, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Head(nn.Module):
    """The mean over the cells, as a vector or as a map of one cell, a norm where asked for, and the classifier."""

    def __init__(self, channels: int, *, normed: bool, one_cell: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if normed else nn.Identity()
        self.fc, self.one_cell = nn.Linear(channels, 5), one_cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x.mean((1, 2), keepdim=self.one_cell))).flatten(1)


def network(block: type[Gated] = Gated, *, normed: bool = True, one_cell: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(Gated(8), Down(8, 12), Gated(12), Down(12, 16), block(16))
    head = Head(16, normed=normed, one_cell=one_cell)
    stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), Turned())
    return nn.Sequential(stem, body, head).eval().double().requires_grad_(False)


class Turned(nn.Module):
    """A map with its channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


def images(size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("one_cell", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_it_is_the_network_of_before(factor, normed, one_cell):
    model, x = network(normed=normed, one_cell=one_cell), images()
    made = convert(model, parts=2, resolution=f"x{factor}" if factor > 1 else "low", x=x)
    features, wanted = model[:2](x).permute(0, 3, 1, 2), model(x)
    cells, old = made.backbone(x), old_cells(made.backbone)
    assert cells.shape == (2, 16, 4 * factor, 6 * factor)
    assert not by_shifts(made)  # the layers skip cells
    torch.testing.assert_close(cells[:, :, old, old], features)
    torch.testing.assert_close(everywhere(made)(x), wanted)
    if factor == 1 and not normed:  # with parts by coverage
        torch.testing.assert_close(made(x), wanted)
    assert made.spec.tokens is None
    assert made.head.attention(cells).shape == (2, 2, 4 * factor, 6 * factor)


def test_finer_cells_are_those_of_the_image_moved_to_them():
    model, x = network(), images((192, 192))
    dilated = convert(model, resolution="x2", x=x).backbone
    spec = infer_spec(model, x)
    shifted = split(model, spec, x).trunk
    assert shift(shifted, 2, x)
    assert old_cells(shifted) == old_cells(dilated)
    inner = slice(6, -6)  # where no layer meets the border
    torch.testing.assert_close(shifted(x)[:, :, inner, inner], dilated(x)[:, :, inner, inner])


def test_where_layers_need_the_whole_map_the_image_is_shifted():
    model, x = network(Shuffled), images()
    made = convert(model, resolution="x2", x=x)
    old = old_cells(made.backbone)
    torch.testing.assert_close(made.backbone(x)[:, :, old, old], model[:2](x).permute(0, 3, 1, 2))


def test_methods_read_the_finer_map():
    model, x = network(), images()
    spec = infer_spec(model, x)
    made, facts = finer(model, 2, spec=spec, x=x)
    assert facts.tokens == spec.tokens
    cells, old = features_of(made, spec.feature_layer, x, spec.tokens), old_cells(made)
    torch.testing.assert_close(cells[:, :, old, old], features_of(model, spec.feature_layer, x, spec.tokens))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # random weights: the copy may name another class
        found = xattn.explain(model.float(), x[:1].float(), "gradcam", spec=spec, resolution="x2")
    assert found.maps.shape[-2:] == (8, 12)


POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum and division": lambda x: x.sum((1, 2)) / (x.shape[1] * x.shape[2]),
    "rows in a row": lambda x: x.flatten(1, 2).mean(1),
    "one side after the other": lambda x: x.mean(1).mean(1),
    "one side after the other, kept": lambda x: x.mean(1, keepdim=True).mean(2, keepdim=True),
    "channels first": lambda x: F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1),
    "viewed": lambda x: (lambda v: v.view(v.size(0), -1))(x.mean((1, 2), keepdim=True)),
}


class Pooled(nn.Module):
    """A network that pools in some way, with a hidden layer behind the mean or without."""

    def __init__(self, pooling: str, *, last: bool, hidden: bool) -> None:
        super().__init__()
        self.body, self.last, self.pool = network()[:2], last, POOLINGS[pooling]
        self.hidden = nn.Sequential(nn.Linear(16, 12), nn.ReLU()) if hidden else nn.Identity()
        self.fc = nn.Linear(12 if hidden else 16, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(x) if self.last else self.features(x).permute(0, 2, 3, 1)
        return self.fc(self.hidden(self.pool(maps).view(x.size(0), -1)))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_mean_may_be_taken_in_several_ways(pooling, last, hidden):
    torch.manual_seed(0)
    model, x = Pooled(pooling, last=last, hidden=hidden).double().eval(), images()
    made = convert(model, parts=2, resolution="x2", x=x[:1])
    cells, old = made.backbone(x), old_cells(made.backbone)
    torch.testing.assert_close(cells[:, :, old, old], model.features(x))
    torch.testing.assert_close(everywhere(made)(x), model(x))
    assert (made.head.neck is None) is not hidden


class Neck(nn.Module):
    """A pool that turns its map, and a neck that reads it so."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.body, self.last = network()[:2], last
        self.neck = nn.Sequential(nn.Conv2d(16, 12, 1) if last else nn.Linear(16, 12), nn.ReLU())
        self.fc = nn.Linear(12, 5)
        self.pool = Turning(last=last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.body(x)
        return self.fc(self.neck(self.pool(maps if self.last else maps.permute(0, 3, 1, 2).relu())).flatten(1))


class Turning(nn.Module):
    """The mean of a map as one cell in the other order of dimensions."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.last:
            return x.mean((1, 2), keepdim=True).permute(0, 3, 1, 2)
        return x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)


@pytest.mark.parametrize("last", [False, True])
def test_what_follows_a_pool_that_turns_its_map_reads_it_so(last):
    torch.manual_seed(0)
    model, x = Neck(last=last).double().eval(), images()
    made = convert(model, parts=2, x=x)
    assert made.backbone(x).shape == (2, 16, 4, 6)
    torch.testing.assert_close(everywhere(made)(x), model(x))


def test_scores_of_cells_are_averaged_where_a_linear_layer_gives_them():
    model, x = network(normed=False), images()
    by_cell = ByCell(model).double().eval()
    spec = infer_spec(model, x)
    made = convert(by_cell, parts=2, spec=replace(spec, classifier="fc", feature_layer="body"), x=x)
    assert isinstance(made.head, SharedCellHead)
    torch.testing.assert_close(everywhere(made)(x), by_cell(x))
    torch.testing.assert_close(made(x), model(x))


class ByCell(nn.Module):
    """Class scores of each cell, and their mean."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.body, self.fc = model[:2], model[2].fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x)).mean((1, 2))


class Named(nn.Module):
    """A network that has a layer of the name that the turn would have."""

    def __init__(self) -> None:
        super().__init__()
        self.channels_first, self.body = network()[:2].float()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.channels_first(x)).mean((1, 2)))


def test_a_layer_keeps_its_name():
    torch.manual_seed(0)
    made = xattn.create_model(f"{__name__}:Named", head="brnpa", num_classes=3).double()
    x = images()
    torch.testing.assert_close(made.backbone(x), network()[:2](x).permute(0, 3, 1, 2))


class Looked(Gated):
    """Knows one size of map alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + {(4, 6): 1.0}[tuple(x.shape[1:3])]


def test_a_layer_that_refuses_another_grid_in_a_way_of_its_own_is_read_on_shifted_images():
    model, x = network(Looked), images()
    spec = infer_spec(model, x)
    with pytest.raises(NotApplicableError, match="does not run with its last strides as dilation"):
        dilated(model, 2, feature_layer=spec.feature_layer, input_size=(64, 96), x=x, tokens=spec.tokens)
    made = convert(model, resolution="x2", spec=spec, x=x)
    assert by_shifts(made) == 4
    torch.testing.assert_close(everywhere(made)(x), model(x))


NAME = "tests.models.test_channels_last:network"


@pytest.mark.parametrize("head", ["linear", "bcnn", "brnpa"])
def test_heads_read_the_channels(head, tmp_path):
    torch.manual_seed(0)
    made = xattn.create_model(NAME, head=head, num_classes=3).double()
    x = images()
    features = made.backbone(x)
    torch.testing.assert_close(features, network()[:2](x).permute(0, 3, 1, 2))
    assert made.head.classifier.in_features == {"linear": 16}.get(head, 3 * 16)
    assert made(x).shape == (2, 3)
    save_weights(made, tmp_path / "made.safetensors")
    again = xattn.create_model(NAME, head=head, weights=tmp_path / "made.safetensors", num_classes=3).double()
    torch.testing.assert_close(again(x), made(x), rtol=1e-4, atol=1e-5)  # kept in single precision


@pytest.mark.parametrize("head", [None, "brnpa"])
def test_a_named_network_becomes_finer(head):
    x = images()
    for resolution, factor in (("x2", 2), ("x4", 4), ("high", 4)):
        made = xattn.create_model(NAME, head=head, num_classes=5, resolution=resolution).double()
        cells = as_map(features_of(made, made.spec.feature_layer, x), made.spec.tokens)
        assert cells.shape == (2, 16, 4 * factor, 6 * factor)
        if resolution != "high":
            old = old_cells(made)
            torch.testing.assert_close(cells[:, :, old, old], network()[:2](x).permute(0, 3, 1, 2))


def test_pooling_by_the_maximum_is_refused_with_the_cells_that_it_reads():
    class Largest(Head):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.amax((1, 2)))

    model, x = network(), images()
    model[2] = Largest(16, normed=False, one_cell=False).double()
    with pytest.raises(NotApplicableError, match=r"its last map \(4x6\) is not pooled by the mean but read by amax"):
        convert(model, x=x)


def test_tokens_in_a_row_are_refused():
    vit = xattn.create_model("tiny-vit", num_classes=5)
    with pytest.raises(NotApplicableError, match="transformer, whose features are tokens; use a CNN with feature maps"):
        convert(vit)
