"""Networks as people bring them: the map is that of plain autograd in float64, or what is wrong with it is said."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import xattn
from tests.inspection import brought as nets
from tests.inspection.networks import grad_cam, made
from xattn import doubts
from xattn.errors import NotApplicableError, ShapeError, SpecError, XattnError, XattnWarning
from xattn.explanation import Explanation
from xattn.inspection import infer_spec
from xattn.inspection.placing import turned


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def said(model: nn.Module, x: Any, method: str = "gradcam", **given: Any) -> tuple[Explanation, str]:
    """The explanation of class 3, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explanation = xattn.explain(model, x, method, 3, **given)
    return explanation, " ".join(str(w.message) for w in caught if issubclass(w.category, XattnWarning))


def before(change: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: made(nets.Before, change)


def normed() -> nn.Module:
    model = made(nets.Plain)
    parametrizations.weight_norm(model.features[2])  # type: ignore[union-attr,index,arg-type]
    return model


def hooked() -> nn.Module:
    model = made(nets.Plain)
    model.features.register_forward_hook(lambda module, inputs, output: 2 * output)  # type: ignore[union-attr]
    return model


PIXELS = (50 * images(2, 3, 48, 64) + 128).clamp(0, 255)
SPACES = before(lambda x: x - F.avg_pool2d(x, 9, 1, 4))
RIGHT: dict[str, tuple[Callable[[], nn.Module], str, str, Tensor, dict[str, Any]]] = {
    "scores deep in a structure": (
        lambda: made(nets.Nested), "net.features", "net.features", images(2, 3, 48, 64),
        {"scores": lambda output: output[1][0]["aux"][1]},
    ),
    "tied weights": (lambda: made(nets.Tied), "features", "features", images(2, 3, 48, 64), {}),
    "squeeze and excitation": (lambda: made(nets.Excited), "features", "features", images(2, 3, 48, 64), {}),
    "normalization inside": (lambda: made(nets.Normalizes), "net.features", "net.features", PIXELS, {}),
    "average of weights": (
        lambda: made(nets.Averaged), "average.features", "average.features", images(2, 3, 48, 64), {},
    ),
    "averaged by torch": (
        lambda: torch.optim.swa_utils.AveragedModel(made(nets.Plain)).eval(), "module.features", "module.features",
        images(2, 3, 48, 64), {},
    ),
    "compiled": (
        lambda: torch.compile(made(nets.Plain), backend="eager"), "features", "_orig_mod.features",
        images(2, 3, 48, 64), {},
    ),
    "channels last in memory": (
        lambda: made(nets.Plain).to(memory_format=torch.channels_last), "features", "features",
        images(2, 3, 48, 64).to(memory_format=torch.channels_last), {},
    ),
    "wrapper": (
        lambda: nets.Wrapper(made(nets.Plain)), "inner.features", "inner.features", images(2, 3, 48, 64), {},
    ),
    "weight norm": (normed, "features", "features", images(2, 3, 48, 64), {}),
    "a hook of one's own": (hooked, "features", "features", images(2, 3, 48, 64), {}),
    "attention that pools": (lambda: made(nets.Pooled), "features", "features", images(2, 3, 48, 64), {}),
    "local contrast first": (SPACES, "net.features", "net.features", images(2, 3, 48, 64), {}),
    "windows that are shifted": (
        lambda: made(nets.Shifted), "last", "last", images(2, 3, 48, 64), {"fold": lambda t: t.permute(0, 3, 1, 2)},
    ),
    "traced": (
        lambda: torch.fx.symbolic_trace(made(nets.Plain)), "features.3", "features.3", images(2, 3, 48, 64), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_map_is_that_of_plain_autograd(name: str) -> None:
    make, layer, module, x, how = RIGHT[name]
    given = x.clone()
    explanation, _ = said(make(), x)
    assert explanation.spec is not None
    assert (explanation.spec.feature_layer, set(explanation.status)) == (layer, {"ok"})
    torch.testing.assert_close(explanation.maps.double(), grad_cam(make(), x, module, 3, **how), atol=1e-6, rtol=1e-3)
    assert torch.equal(x, given)


@pytest.mark.parametrize("method", ["gradcam", "saliency", "occlusion"])
def test_a_model_that_writes_into_its_input_gives_the_maps_of_one_that_does_not(method: str) -> None:
    x = images(2, 3, 48, 64)
    given = x.clone()
    maps = said(made(nets.Before, lambda x: x.sub_(0.5).div_(0.25)), x, method)[0].maps
    assert torch.equal(x, given)
    torch.testing.assert_close(maps, said(made(nets.Before, lambda x: (x - 0.5) / 0.25), x, method)[0].maps)


ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mirror": (before(lambda x: x.flip(3)), "is mirrored or turned"),
    "mirror by an index": (before(lambda x: x[..., torch.arange(63, -1, -1)]), "is put in another order"),
    "patches shuffled": (before(nets.shuffled), "is put in another order"),
    "rows shuffled": (before(lambda x: x.index_select(2, nets.order(48))), "is put in another order"),
    "laid into a larger one": (before(nets.letterboxed), "is laid into a larger one, by 16 rows and 0 columns"),
    "each laid into a larger one": (before(nets.collated), "is laid into a larger one, by 0 rows and 24 columns"),
    "joined with zeros": (before(lambda x: torch.cat([x, torch.zeros_like(x)], 2)), "is padded by 48 rows"),
    "beside its mirror image": (before(lambda x: torch.cat([x, x.flip(3)], 3)), "is laid beside itself"),
    "repeated": (before(lambda x: x.repeat(1, 1, 1, 2)), "is repeated"),
    "turned": (before(lambda x: x.transpose(2, 3).flip(3)), "is mirrored or turned"),
    "crop": (before(lambda x: x[..., 8:40, :]), r"is cut to its rows 8 to 40 of 48 \(67%\)"),
    "crop counted from the end": (before(lambda x: x[..., 4:-4, :]), r"is cut to its rows 4 to 44 of 48 \(83%\)"),
    "crop from the end on": (before(lambda x: x[..., -56:]), r"is cut to its columns 8 to 64 of 64 \(88%\)"),
    "crop along the last": (before(lambda x: x.narrow(-1, 8, 40)), r"is cut to its columns 8 to 48 of 64 \(62%\)"),
    "crop of an exported model": (
        before(lambda x: torch.ops.aten.slice(x, 2, None, 36)),
        r"is cut to its rows 0 to 36 of 48 \(75%\)",
    ),
    "negative padding": (before(lambda x: F.pad(x, (-12, -4))), "loses 16 of its 64 columns"),
    "padding": (before(lambda x: F.pad(x, (0, 0, 0, 16))), "is padded by 16 rows"),
    "padding by reflection": (before(lambda x: F.pad(x, (8, 8, 8, 8), mode="reflect")), "is padded by 16 columns"),
    "warp": (lambda: made(nets.Warps), "is warped"),
    "spectrum": (before(lambda x: torch.fft.fft2(x).abs().log1p()), "is turned into frequencies"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_cells_that_lie_elsewhere_on_the_image_are_told(name: str) -> None:
    make, why = ELSEWHERE[name]
    model, x = make(), images(2, 3, 48, 64)
    with pytest.warns(XattnWarning, match=why):
        spec = infer_spec(model, x)
    assert spec.evidence["layout"].how == "contradicted"
    assert set(said(model, x)[0].status) == {doubts.ELSEWHERE}
    # The remedies that the warning names.
    assert set(said(model, x, "occlusion")[0].status) == {"ok"}
    if isinstance(model, nets.Before):
        assert set(said(model.net, model.change(x))[0].status) == {"ok"}


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.interpolate(x, (80, 80), mode="bilinear"),
        lambda x: x[:, [2, 1, 0]],
        lambda x: F.pad(x, (3, 3, 3, 3)),
        lambda x: torch.cat([x[..., :32], x[..., 32:]], 3),
        lambda x: F.pad(x, (1, 1))[..., 1:-1],
        lambda x: x.flip(2).flip(2),
        lambda x: x[..., -63:],
        lambda x: torch.ops.aten.slice(x, 2, None, None),
        lambda x: x[:, :1].repeat(1, 3, 1, 1),
        nets.each_channel,
        lambda x: x.index_select(3, nets.order(64))[..., nets.order(64).argsort()],
        lambda x: x[..., torch.arange(128) // 2],
        lambda x: F.pad(x, (3, 3, 3, 3), mode="circular"),
        lambda x: torch.cat([x[:, :2], x.mean(1, keepdim=True)], 1),
    ],
    ids=[
        *("another size", "channels in another order", "margin", "halves", "margin taken back", "turned twice"),
        *("all but one column", "all of an exported model", "grey repeated", "each channel by itself in place"),
        *("put in another order and back", "larger by an index", "around the edge", "channels joined"),
    ],
)
def test_what_leaves_the_image_where_it_is_is_fine(change: Callable[[Tensor], Tensor]) -> None:
    assert set(said(made(nets.Before, change), images(2, 3, 48, 64))[0].status) == {"ok"}


def test_an_image_made_in_inference_mode_tells_the_same() -> None:
    x = images(2, 3, 48, 64)
    with torch.inference_mode():
        inside = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        assert infer_spec(made(nets.Before, torch.relu), inside) == infer_spec(made(nets.Before, torch.relu), x)


@pytest.mark.parametrize("seed", range(20))
def test_cells_that_answer_nowhere_are_not_said_to_be_turned(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert not any(turned(torch.rand(h, w, generator=generator)) for h, w in ((2, 2), (4, 4), (7, 7), (12, 16)))


@pytest.mark.parametrize("seed", range(6))
def test_steps_that_attention_mixes_are_no_cells(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = nets.Spoken().eval(), images(2, 3, 48, 64)
    explanation, _ = said(model, x)
    assert explanation.spec is not None
    assert (explanation.spec.feature_layer, explanation.spec.tokens) == ("features", None)
    torch.testing.assert_close(explanation.maps.double(), grad_cam(model, x, "features", 3), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("norm", [False, True])
def test_channels_before_steps_are_no_cells(norm: bool) -> None:
    """Twelve channels would make a grid of 3x4, to which the map of 12x16 before them could have been merged."""
    explanation, _ = said(made(nets.Rows, norm), x := images(2, 3, 48, 64))
    assert (explanation.spec.feature_layer, set(explanation.status)) == ("features", {"ok"})  # type: ignore[union-attr]
    right = grad_cam(made(nets.Rows, norm), x, "features", 3)
    torch.testing.assert_close(explanation.maps.double(), right, atol=1e-6, rtol=1e-3)


def test_ways_through_one_layer_are_told_apart_by_its_calls() -> None:
    explanation, what = said(made(nets.Flips), images(2, 3, 48, 64))
    assert explanation.spec is not None
    assert sorted({explanation.spec.feature_layer, what.partition("others: ")[2].partition(" (")[0]}) == [
        "net.features[0]", "net.features[1]",
    ]  # fmt: skip


def test_a_way_that_other_classes_take_is_told() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nets.Plain(2), nets.Plain(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.left(x) + 9, self.right(x)], 1)

    assert "'left.features' is one of several ways" in (what := said(made(Apart), images(1, 3, 48, 64))[1])
    assert "right.features (for other classes)" in what


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[XattnError], str]] = {
    "copies": (lambda: made(nets.Joint), NotApplicableError, "run on 2 pieces or copies of each image"),
    "by name": (lambda: made(nets.Named), NotApplicableError, r"by name alone; .* x=\{'pixel_values': images\}"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(5, 3), nn.Flatten()), SpecError, "lazy layers that have not run"),
    "meta": (lambda: made(nets.Plain).to("meta"), SpecError, "weights without values; load them"),
    "parallel": (lambda: nn.DataParallel(made(nets.Plain)), NotApplicableError, "pass model.module"),
    "maps alone": (lambda: made(nets.Pyramid, False), NotApplicableError, "name what is to be explained by output="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_says_why(name: str) -> None:
    make, kind, why = REFUSED[name]
    with pytest.raises(kind, match=why):
        said(make(), images(2, 3, 48, 64))


def test_the_remedies_of_these_work() -> None:
    x = images(2, 3, 48, 64)
    assert said(made(nets.Joint), x, "occlusion")[0].status == ("ok", "ok")
    named, _ = said(made(nets.Named), {"pixel_values": x})
    torch.testing.assert_close(named.maps, said(made(nets.Named).net, x)[0].maps)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)).eval()
    lazy(x)
    assert said(lazy, x)[0].status == ("ok", "ok")
    parallel = nn.DataParallel(made(nets.Plain))
    assert said(parallel.module, x)[0].status == ("ok", "ok")
    maps = said(made(nets.Pyramid, False), x, output=lambda levels: levels[1].mean((2, 3)))[0]
    assert maps.status == ("ok", "ok")


def test_images_of_different_experts_are_explained_one_at_a_time() -> None:
    model, x = made(nets.Routed), images(3, 3, 48, 64) + torch.tensor([1, -1, 1]).reshape(3, 1, 1, 1)
    with pytest.raises(ShapeError, match="on some of the images alone, explain them one at a time"):
        said(model, x)
    for image, expert in zip(x.split(1), (1, 0, 1), strict=True):
        explanation, _ = said(copy.deepcopy(model), image)
        expected = grad_cam(model, image, f"experts.{expert}.features", 3)
        torch.testing.assert_close(explanation.maps.double(), expected, atol=1e-6, rtol=1e-3)


def test_scores_that_are_no_numbers_are_told_by_their_true_reason() -> None:
    model = made(nets.Plain)
    nn.init.constant_(model.out.weight, float("nan"))  # type: ignore[union-attr,arg-type]
    explanation, what = said(model, images(2, 3, 48, 64))
    assert "the class scores are NaN or infinite" in what
    assert "batch norm" not in what
    assert set(explanation.status) == {"nan"}
