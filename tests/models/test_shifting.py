"""Finer maps by shifted images: of networks whose layers cannot skip cells, against themselves and against dilation."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import xattn
from xattn.errors import NotApplicableError, ParameterError, XattnWarning
from xattn.models.agreement import relative_cost
from xattn.models.converting import convert, everywhere, finer
from xattn.models.dilated_layers import old_cells
from xattn.models.dilation import dilate, looks_at
from xattn.models.shifting import Shifts, shift
from xattn.models.split import split

SPEC = xattn.ModelSpec(feature_layer="last", classifier="fc", input_size=(32, 32))


class Fused(nn.Module):
    """Two resolutions side by side, each told of the other; its list of maps is written into, as that of HRNet is."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.up, self.down = nn.Upsample(scale_factor=2), nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        for i, layer in enumerate(self.own):
            maps[i] = layer(maps[i])
        return [(maps[0] + self.up(maps[1])).relu(), (maps[1] + self.down(maps[0])).relu()]


class Ladder(nn.Module):
    """A network that keeps a fine map beside the coarse one that it classifies by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.coarse = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.fused = nn.Sequential(Fused(), Fused())
        self.last, self.fc = nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x).relu()
        maps = self.fused([fine, self.coarse(fine)])
        return self.fc(self.last(maps[1]).mean((2, 3)))


class Patches(nn.Module):
    """Patches without overlap, with a stride that is not even."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.patch, self.last, self.fc = nn.Conv2d(3, 6, stride, stride), nn.Conv2d(6, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(self.patch(x).relu()).mean((2, 3)))


class Plain(nn.Module):
    """Layers that can skip cells."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1)
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.last(x).mean((2, 3)))


def exact(model: nn.Module) -> nn.Module:
    return model.eval().double().requires_grad_(False)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_network_whose_layers_cannot_skip_cells_is_read_on_shifted_images(factor):
    torch.manual_seed(0)
    model = exact(Ladder())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    low, made = (convert(model, parts=2, resolution=r, spec=SPEC, x=x) for r in ("low", f"x{factor}"))
    cells, old = made.backbone(x), old_cells(made.backbone)
    assert cells.shape[2:] == (8 * factor, 8 * factor)
    torch.testing.assert_close(cells[:, :, old, old], low.backbone(x))
    torch.testing.assert_close(everywhere(made)(x), model(x))
    assert relative_cost(model, made, x) == pytest.approx(factor**2, rel=0.1)
    again = copy.deepcopy(made).float()
    torch.testing.assert_close(again(x.float()), made(x).float(), rtol=1e-4, atol=1e-5)
    assert set(made.state_dict()) == set(low.state_dict())


def test_each_cell_is_that_of_the_image_moved_to_it():
    torch.manual_seed(0)
    model = exact(Ladder())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    trunk = split(model, SPEC, x).trunk
    plain = copy.deepcopy(trunk)
    assert shift(trunk, 2, x)
    (shifts,) = (m for m in trunk.modules() if isinstance(m, Shifts))
    finer = trunk(x)
    for down in (0, 1):
        for right in (0, 1):
            moved = x
            for axis, by in ((2, down), (3, right)):
                at = (torch.arange(32) + shifts.step * (by - shifts.first)).clamp(0, 31)
                moved = moved.index_select(axis, at)
            torch.testing.assert_close(finer[:, :, down::2, right::2], plain(moved))


@pytest.mark.parametrize("factor", [2, 4])
def test_within_the_image_it_is_what_dilation_gives(factor):
    torch.manual_seed(0)
    model = exact(Plain())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    dilated, shifted = (split(model, SPEC, x).trunk for _ in range(2))
    dilated, shifted = copy.deepcopy(dilated), copy.deepcopy(shifted)
    dilate(dilated, factor, x)
    assert shift(shifted, factor, x)
    assert old_cells(shifted) == old_cells(dilated)
    inner = slice(2 * factor, -2 * factor)  # one layer's neighbours of each stride, and what the border repeats
    torch.testing.assert_close(shifted(x)[:, :, inner, inner], dilated(x)[:, :, inner, inner])


def test_where_its_cells_look_is_told_by_its_layers():
    x = torch.randn(1, 3, 32, 32)
    trunk = split(Plain().eval(), SPEC, x).trunk
    assert looks_at(trunk, x) == (8, 0)
    patches = split(Patches(8).eval(), SPEC, x).trunk
    assert looks_at(patches, x) == (8, 3.5)
    assert shift(patches, 4, x)
    assert next(m for m in patches.modules() if isinstance(m, Shifts)).first == 2


def test_cells_that_cannot_be_divided_are_refused_as_before():
    x = torch.randn(1, 3, 35, 35)
    with pytest.raises(ParameterError, match=r"its strides .*5 at 35 cells.* do not make a map that is 2 times finer"):
        convert(Patches(5).eval(), resolution="x2", spec=SPEC, x=x)
    made = convert(exact(Patches(6)), resolution="x2", spec=SPEC, x=x.double())
    assert made.backbone(x.double()).shape[2:] == (10, 10)


def test_every_method_reads_the_finer_map_of_such_a_network():
    torch.manual_seed(0)
    model = Ladder().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    methods = ["activation", "cam", "gradcam", "brnpa", "part-cam"]
    plain = xattn.explain(model, x, methods[:-1], spec=SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        finer = xattn.explain(model, x, methods[:-1], spec=SPEC, resolution="x2")
    for old, new in zip(plain, finer, strict=True):
        assert new.maps.shape[2:] == (16, 16)
        assert set(new.status) == {"ok"}
        torch.testing.assert_close(new.original, old.probability)
    # At the old cells the copy has the network's own values; the CAM of a mean is one of each of them.
    trunk = convert(model, parts=1, resolution="x2", spec=SPEC, x=x).backbone
    old = old_cells(trunk)
    torch.testing.assert_close(finer[0].maps[:, :, old, old], plain[0].maps)
    cam = finer[1].maps[:, :, old, old]
    torch.testing.assert_close(cam / cam.abs().amax(), plain[1].maps / plain[1].maps.abs().amax())
    with pytest.raises(NotApplicableError, match="part-cam"):
        xattn.explain(model, x, "part-cam", spec=SPEC, resolution="x2")


class Joined(Ladder):
    """With layers between pooling and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x).relu()
        maps = self.fused([fine, self.coarse(fine)])
        return self.fc(self.hidden(self.last(maps[1]).mean((2, 3))))


class ByCells(Ladder):
    """The classifier comes before the pooling, with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x).relu()
        maps = self.fused([fine, self.coarse(fine)])
        return self.fc(self.last(maps[1])).relu().mean((2, 3))


class Flattened(Ladder):
    """Pooled by a layer and flattened then."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x).relu()
        maps = self.fused([fine, self.coarse(fine)])
        return self.fc(self.pool(self.last(maps[1])).flatten(1))


@pytest.mark.parametrize("kind", [Ladder, Joined, ByCells, Flattened], ids=lambda kind: kind.__name__)
def test_the_copy_pools_all_its_cells_as_the_network_pools_its_own(kind):
    torch.manual_seed(0)
    model = exact(kind())
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    made, spec = finer(model, 2, spec=SPEC, x=x)
    assert (spec.classifier, spec.attention) == (None if kind in (Joined, ByCells) else "head.classifier", None)
    moved = next(m for m in made.modules() if isinstance(m, Shifts))(x)
    if kind is Joined:  # what follows the pooling reads the mean of all cells
        wanted = model.fc(model.hidden(made.backbone(x).mean((2, 3))))
    else:  # linear: the mean over the shifted images
        wanted = model(moved).unflatten(0, (3, 4)).mean(1)
    torch.testing.assert_close(made(x), wanted)
    torch.testing.assert_close(everywhere(made)(x), model(x))


def test_another_layer_than_the_pooled_one_is_not_taken_for_it():
    torch.manual_seed(0)
    model = exact(Plain())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    early = dataclasses.replace(SPEC, feature_layer="last.0", input_size=(64, 64))
    with pytest.raises(ParameterError, match=r"strides .* do not make a map that is 8 times finer"):
        finer(model, 8, spec=early, x=x)


def test_a_network_that_was_taken_apart_already_keeps_its_reason():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    made = convert(Ladder().eval(), parts=2, resolution="x2", spec=SPEC, x=x)
    with pytest.raises((NotApplicableError, ParameterError), match=r"does not run with|cannot be made finer|calls"):
        xattn.explain(made, x, "gradcam", resolution="x2")


class Smoothed(nn.Module):
    """Strides whose padding is known, and a call between layers that cannot skip cells."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Linear(8, 5)
        self.aside = nn.AvgPool2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.first(x).relu()
        wide = F.interpolate(self.aside(fine), scale_factor=4.0)
        return self.fc(self.last(F.avg_pool2d(fine + wide, 3, 1, 1)).mean((2, 3)))


def test_cells_stand_by_the_layers_with_strides_whatever_is_between_them():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    trunk = split(Smoothed().eval(), SPEC, x).trunk
    assert looks_at(trunk, x) == (4, 0)  # what lowers the resolution further, aside, does not count
    made = convert(Smoothed().eval(), resolution="x4", spec=SPEC, x=x)
    assert old_cells(made.backbone) == slice(0, None, 4)


class EvenUp(Ladder):
    """Of images of any size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.stem(x).relu()
        coarse = self.coarse(fine)
        wide = F.interpolate(coarse, size=fine.shape[2:])
        return self.fc(self.last(self.coarse(fine + wide)).mean((2, 3)))


@pytest.mark.parametrize("size", [14, 18, 31])
def test_strides_that_do_not_divide_the_image_are_those_of_the_layers(size):
    torch.manual_seed(0)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    model = exact(EvenUp())
    made = convert(model, parts=2, resolution="x2", spec=SPEC, x=x)
    (shifts,) = (m for m in made.modules() if isinstance(m, Shifts))
    assert shifts.step == 2
    torch.testing.assert_close(everywhere(made)(x), model(x))


class Named(Ladder):
    """One of several outputs."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"other": x.mean((2, 3)), "scores": super().forward(x)}


def test_what_the_copy_lacks_is_said(capsys):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        found = xattn.explain(Named().eval(), x, "gradcam", spec=SPEC, output="scores", resolution="x2")
        assert found.maps.shape[2:] == (16, 16)
        model = Ladder().eval()
        with pytest.raises(NotApplicableError, match="'coarse' has no one map; leave the layer out, or the resolution"):
            xattn.explain(model, x, "gradcam:layer=coarse", spec=SPEC, resolution="x2")
        with pytest.raises(NotApplicableError, match="fullgrad: layers of Classifier run on 8 images for 2"):
            xattn.explain(model, x, "fullgrad", spec=SPEC, resolution="x2")
    assert capsys.readouterr().err == ""
