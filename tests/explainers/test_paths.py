"""Steps of the path methods grow until the sum of a map is right, at no cost where it is at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from tests.explainers.test_integrated import SPEC, Linear, black, maps
from xattn.explainers import explainers
from xattn.explainers import passes as batches
from xattn.explaining import explain
from xattn.trace import record


class Peak(nn.Module):
    """A logit that jumps on the way from black to the image, within a share of about 4 / sharpness of it."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.sharpness = sharpness
        self.spec = SPEC

    def forward(self, x: Tensor) -> Tensor:
        lightness = (x - black(x)).mean((1, 2, 3))
        return torch.stack([lightness, torch.sigmoid(self.sharpness * (lightness - 0.73511))], dim=1)


def bright() -> Tensor:
    """An image of lightness 1."""
    light = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0)).double()
    return black(light) + light / light.mean()


def passes(model: nn.Module, x: Tensor, method: str) -> tuple[int, Tensor, float]:
    """Backward passes of a method beyond those of others, its attributions, and the largest error of their sums."""
    trace, found = record(model, x, 1, spec=model.spec), explainers.parse(method)
    attributions = found.attribute(trace)
    return trace.backwards, attributions, float(found.conservation(trace, attributions).max())


@pytest.mark.parametrize(
    ("method", "most"), [("integrated-gradients", 50), ("blur-ig:sigma=0.1", 51), ("guided-ig", 101)]
)
def test_a_smooth_model_needs_no_more_steps_than_ever(method: str, most: int) -> None:
    model, x = Linear(), tiny.images(1, 8, 12)
    count, _, error = passes(model, x, f"{method}{',' if ':' in method else ':'}chunk=1")
    assert (count, error < 1e-3) == (most, True)


@pytest.mark.parametrize(
    ("method", "few"),
    [
        ("integrated-gradients", 50),
        ("integrated-gradients:rule=gauss-legendre", 50),
        ("blur-ig", 50),
        ("guided-ig:reach=0.5", 100),
    ],
)
def test_steps_grow_until_the_sum_is_right(method: str, few: int) -> None:
    model, x = Peak(800).double(), bright()
    if method.startswith("blur"):
        model, x = tiny.tiny_cnn().double(), tiny.images(4).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.4)
    before = passes(model, x, f"{method}{',' if ':' in method else ':'}steps={few}")[2]
    after = passes(model, x, method)[2]
    assert before > type(explainers.parse(method)).aim >= after


def test_more_steps_use_those_before_again() -> None:
    """What is refined equals what so many steps give at once."""
    model, x = tiny.tiny_cnn().double(), tiny.images(1).double()
    for method, levels in (("ig", (50, 150, 450)), ("ig:rule=gauss-legendre", (50, 150)), ("blur-ig", (50, 100, 200))):
        trace, found = record(model, x, 1, spec=model.spec), explainers.parse(method)
        refined = found.refined(trace, torch.zeros(1, dtype=torch.long))
        for steps, attributions in zip(levels, refined, strict=False):
            torch.testing.assert_close(attributions, found.along(trace, steps))
    trace = record(model, x, 1, spec=model.spec)
    list(explainers.parse("ig:chunk=1").refined(trace, torch.zeros(1, dtype=torch.long)))
    assert trace.backwards == 450


def test_guided_steps_are_halved_where_they_miss_most_and_the_path_stays() -> None:
    model, x = Peak(4_000).double(), bright()
    trace, found = record(model, x, 1, spec=model.spec), explainers.parse("guided-ig")
    row = torch.zeros(1, dtype=torch.long)
    rounds = list(found.refined(trace, row))
    torch.testing.assert_close(rounds[0], found.along(trace, 100))
    errors = [float(found._error(trace, values, row)) for values in rounds]
    assert errors[0] > 0.05
    assert errors[-1] < 0.01
    assert trace.backwards == 101 + 6 + 101  # the path, six batches of halves, and the path once more


def test_how_many_steps_an_image_gets_depends_on_it_alone() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(5)
    together = maps(model, x, "ig", 1)
    for i in range(5):
        assert together[i : i + 1].equal(maps(model, x[i : i + 1], "ig", 1))


def test_what_is_wrong_with_a_sum_and_what_to_do() -> None:
    """The remedy of the warning, followed to the letter, works."""
    model, x = tiny.tiny_cnn(), tiny.images(4)
    with pytest.warns(
        match=r"non-conserving: adds up to -?[\d.e-]+ of -?[\d.e-]+: leave steps out and they grow until it does\)"
    ):
        explain(model, x, "integrated-gradients:steps=1", 1, spec=model.spec)
    assert explain(model, x, "integrated-gradients", 1, spec=model.spec).status == ("ok",) * 4
    steep = Peak(40_000).double()
    for method, steps in (("integrated-gradients", 2000), ("guided-ig", 1000)):
        with pytest.warns(match=rf"non-conserving: adds up to [\d.e-]+ of 1: try steps={steps}\)"):
            assert explain(steep, bright(), method, 1, spec=steep.spec).status == ("non-conserving",)


def test_large_images_go_through_a_processor_in_small_batches(monkeypatch):
    sizes = []
    run = batches.Trace.again

    def noted(self, images, *arguments, **options):
        sizes.append(len(images))
        return run(self, images, *arguments, **options)

    model, x = tiny.tiny_cnn(), torch.rand(1, 3, 32, 32)
    whole = explain(model, x, "integrated-gradients:steps=8", 1).maps
    monkeypatch.setattr(batches.Trace, "again", noted)
    monkeypatch.setattr(batches, "_PIXELS_WITH_GRAPH", 3 * 32 * 32)
    parts = explain(model, x, "integrated-gradients:steps=8", 1).maps
    explain(model, x, "smoothgrad:samples=8", 1)
    assert max(sizes) == 3
    assert sum(sizes) >= 16
    torch.testing.assert_close(parts, whole)
