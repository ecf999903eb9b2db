"""Images of any number of channels: every method, control and picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.inspection.networks import trunk
from xattn.errors import ParameterError
from xattn.explainers import explainers
from xattn.functional.pixels import denormalize
from xattn.viz import gallery, render

METHODS = [name for name in explainers.names() if explainers.create(name).family.value != "attention"]


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(trunk(channels=channels), head).eval()


def images(channels: int) -> Tensor:
    return torch.randn(2, channels, 28, 32, generator=torch.Generator().manual_seed(channels))


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
@pytest.mark.parametrize("channels", [1, 2, 5, 12])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_them(name: str, channels: int) -> None:
    fields = {"samples": 4, "steps": 4, "count": 9, "segments": "grid"}
    own = {k: v for k, v in fields.items() if k in explainers.create(name).__dataclass_fields__}
    model = network(channels)
    plain, known = (xattn.infer_spec(model, images(channels)) for _ in range(2))
    known = xattn.ModelSpec(**{**vars(known), "mean": (0.4,) * channels, "std": (0.2,) * channels})
    for spec in (plain, known):
        method = explainers.create(name, **own)
        maps = xattn.explain(model, images(channels), method, 1, spec=spec).maps
        assert maps.shape[:2] == (2, 1)
        assert torch.isfinite(maps).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_pictures_show_the_first_bands_or_those_that_are_chosen(channels: int, tmp_path: Path) -> None:
    x = images(channels)
    found = xattn.explain(network(channels), x, "saliency", 1)
    assert found.images.shape == (2, 28, 32, 3)
    first = denormalize(x[:, :3] if channels > 2 else x[:, :1])
    assert torch.equal(found.images, first)
    assert gallery([found]).size
    assert found._repr_png_()
    path = xattn.save_explanation(found, tmp_path / "maps.npz", images=True)
    assert torch.equal(xattn.load_explanation(path).images, first)
    last = channels - 1
    chosen = xattn.explain(network(channels), x, "saliency", 1, bands=(last, 0, last))
    assert torch.equal(chosen.images, denormalize(x[:, [last, 0, last]]))
    plain = np.asarray(render(found, 1, alpha=0, bands=(last,)))
    grey = np.asarray(render(found, 1, alpha=0, image=denormalize(x[1:, [last]])[0].numpy()))
    assert np.array_equal(plain, grey)


def test_mean_and_deviation_are_those_of_the_bands_that_are_drawn() -> None:
    x = torch.zeros(1, 4, 2, 2)
    shown = denormalize(x, (0.1, 0.2, 0.4, 0.8), (1.0,) * 4, (3, 2, 0))
    assert shown[0, 0, 0].tolist() == [204, 102, 26]


@pytest.mark.parametrize("bands", [(4, 0, 1), (0, 1), (-1, 0, 1), (True, 1, 2), ("a", 1, 2)])
def test_bands_that_do_not_exist(bands: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError, match="between 0 and 3"):
        xattn.explain(network(4), images(4), "saliency", 1, bands=bands)
