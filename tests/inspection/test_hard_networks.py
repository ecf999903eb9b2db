"""Facts that shapes and names tell wrongly: the map is that of plain autograd, or the reason is said before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.inspection import networks as nets
from xattn.errors import NotApplicableError, SpecError, XattnWarning
from xattn.inspection import facts_about, infer_spec
from xattn.inspection.layouts import answer, layout_of, lit, lit_cells, readings
from xattn.outputs import Kind, choose, kind_of
from xattn.spec import TokenGrid, in_rows


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def suffix(tokens: Tensor) -> Tensor:
    """6 x 10 tokens with the class token behind them as a map."""
    return tokens[:, :-1].transpose(1, 2).unflatten(2, (6, 10))


def last(maps: Tensor) -> Tensor:
    """A map with its channels last as (N, C, h, w)."""
    return maps.permute(0, 3, 1, 2)


def label(output: dict[str, Tensor]) -> Tensor:
    """The class scores among the outputs."""
    return output["label"]


def windows(tokens: Tensor) -> Tensor:
    """16 x 16 tokens that come by windows of 4 x 4, as a map (N, C, 16, 16)."""
    return tokens.unflatten(1, (4, 4, 4, 4)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def prefix(tokens: Tensor) -> Tensor:
    """8 x 8 tokens behind the class token as a map."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (8, 8))


def rows(tokens: Tensor) -> Tensor:
    """A square of tokens, row by row, as a map."""
    return tokens.transpose(1, 2).unflatten(2, (round(tokens.shape[1] ** 0.5), -1))


CASES: list[tuple[str, Callable[[], nn.Module], Tensor, str, str, dict[str, Any]]] = [
    ("shared", lambda: nets.made(nets.SharedNorm), images(2, 3, 32, 32), "norm[1]", "norm", {}),
    ("windows", lambda: nets.made(nets.Windows), images(2, 3, 64, 64), "mix", "mix", {"fold": windows}),
    ("suffix", lambda: nets.made(nets.ClassTokenLast), images(2, 3, 48, 80), "norm1", "norm1", {"fold": suffix}),
    ("last 8", lambda: nets.made(nets.ChannelsLast, 8), images(2, 3, 64, 96), "block", "block", {"fold": last}),
    ("last 20", lambda: nets.made(nets.ChannelsLast, 20), images(2, 3, 64, 96), "block", "block", {"fold": last}),
    ("cube", lambda: nets.made(nets.Cube), images(2, 3, 64, 64), "block", "block", {"fold": last}),
    ("decoder", lambda: nets.made(nets.Reconstructs), images(2, 3, 32, 32), "encoder", "encoder", {"scores": label}),
    ("blind", lambda: nets.made(nets.Blind), images(2, 3, 32, 32), "seeing", "seeing", {}),
    ("columns", lambda: nets.made(nets.Columns), images(2, 1, 24, 72), "features", "features", {}),
    ("several", lambda: nets.made(nets.Several), images(2, 3, 32, 32), "body.layers", "body.layers", {}),
    ("keys", lambda: nets.made(nets.Latents), images(2, 3, 32, 32), "inputs", "inputs", {"fold": rows}),
    ("values", lambda: nets.made(nets.Latents, True), images(2, 3, 32, 32), "inputs", "inputs", {"fold": rows}),
    (
        "reduced", lambda: nets.made(nets.Reduced), images(2, 3, 32, 32), "blocks.1.before", "blocks.1.before",
        {"fold": prefix},
    ),
    (
        "two kinds", lambda: nets.made(nets.Reduced, "norm1"), images(2, 3, 32, 32), "blocks.1.before",
        "blocks.1.before", {"fold": prefix},
    ),
    ("angles", lambda: nets.made(nets.Angles), images(2, 3, 32, 32), "features", "features", {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "x", "layer", "module", "how"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_map_is_that_of_plain_autograd(
    make: Callable[[], nn.Module], x: Tensor, layer: str, module: str, how: dict[str, Any]
) -> None:
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # of several outputs one is chosen, and said
        explanation = xattn.explain(model, x, "gradcam", target=3)
    assert explanation.spec is not None
    assert explanation.spec.feature_layer == layer
    torch.testing.assert_close(
        explanation.maps.double(), nets.grad_cam(model, x, module, 3, **how), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "name"),
    [(nets.SharedNorm, "out"), (nets.Blind, "out"), (nets.Angles, None), (nets.Columns, "out"), (nets.Coupled, "out")],
)
def test_the_classifier_is_what_the_scores_are_made_of(make: Callable[[], nn.Module], name: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        x = images(1, 1, 24, 72) if make is nets.Columns else images(1, 3, 32, 32)
        assert infer_spec(nets.made(make), x).classifier == name


@pytest.mark.parametrize("seed", range(12))
def test_the_last_of_blocks_that_mix_all_tokens_is_read_as_those_before(seed: int) -> None:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # said where it is assumed
        spec = infer_spec(nets.Mixes().eval(), images(1, 3, 32, 32))
    assert (spec.feature_layer, spec.tokens) == ("blocks.9.norm1", TokenGrid(patch=(4, 4)))


@pytest.mark.parametrize("seed", range(8))
def test_branches_that_are_joined_are_read_together(seed: int) -> None:
    torch.manual_seed(seed)
    assert infer_spec(nets.Joined().eval(), images(1, 3, 32, 32)).feature_layer == "act"


def test_attention_over_a_part_of_the_way_is_not_read() -> None:
    spec = infer_spec(nets.made(nets.Reduced), images(1, 3, 32, 32))
    assert spec.probability_layers == ()
    whole = nets.made(nets.Reduced)
    whole.blocks[0].reduce = 1  # type: ignore[union-attr]
    assert infer_spec(whole, images(1, 3, 32, 32)).probability_layers == ("blocks.0", "blocks.1")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [nets.Steps, nets.Columns])
def test_steps_in_time_are_no_cells(kind: Callable[[], nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    model = kind().eval()
    x = images(1, 1, 24, 96) if kind is nets.Columns else images(1, 3, 16, 96)
    assert infer_spec(model, x).feature_layer == "features"


def test_a_layer_that_is_one_of_several_ways_is_said_to_be() -> None:
    with pytest.warns(XattnWarning, match=r"'(left|right)' is one of several ways .* (left|right) \(\d+%\)"):
        infer_spec(nets.made(nets.TwoWays), input_size=(32, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [(nets.Noisy, "differ by .* the second time.*dropout"), (nets.Coupled, "alone than beside another.*batch norm")],
)
def test_a_model_that_cannot_be_repeated_is_told_before_its_maps(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.warns(XattnWarning, match=message):
        spec = infer_spec(nets.made(make), images(1, 3, 32, 32))
    assert spec.evidence["repeatable"].how == "contradicted"


@pytest.mark.parametrize(
    ("classes", "end", "values"),
    [
        (5, lambda z: z, "logits"),
        (5, lambda z: (20 * z).softmax(1), "probabilities"),
        (1, lambda z: z.sigmoid(), "probabilities"),
        (1, lambda z: z.sigmoid().squeeze(1), "probabilities"),
        (5, lambda z: z.log_softmax(1), "log-probabilities"),
        (5, lambda z: z.exp() / z.exp().sum(1, keepdim=True), "probabilities"),
        (5, lambda z: z.squeeze(), "logits"),
    ],
)
def test_what_the_values_are(classes: int, end: Callable[[Tensor], Tensor], values: str) -> None:
    model, x = nets.made(nets.Ends, classes, end), images(3, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        explanation = xattn.explain(model, x, "gradcam")
    assert explanation.spec is not None
    assert explanation.spec.values == values
    given = model(x).detach().reshape(3, -1)
    if values == "probabilities":  # never a softmax of them
        best = given.amax(1) if classes > 1 else torch.maximum(given, 1 - given)[:, 0]
        torch.testing.assert_close(explanation.probability, best)
    if values == "log-probabilities":
        torch.testing.assert_close(explanation.probability, given.exp().amax(1))


def test_an_output_is_chosen_by_what_it_is_and_can_be_named() -> None:
    model = nets.made(nets.Ends, 5, lambda z: (z.softmax(1), z))
    assert infer_spec(model, input_size=(32, 32)).output == (1,)
    with pytest.warns(XattnWarning, match="returns probabilities, not logits"):
        assert infer_spec(model, input_size=(32, 32), output=0).output == (0,)
    with pytest.raises(LookupError, match=r"unknown output 'output\[7\]'"):
        infer_spec(model, input_size=(32, 32), output=7)


def test_a_layer_that_is_named_is_read_or_refused() -> None:
    model = nets.made(nets.Windows)
    spec = facts_about(model, images(1, 3, 64, 64), ["mix.0"])
    assert spec.layout("mix.0") == TokenGrid(patch=(4, 4), blocks=(4,))
    assert spec.layout("mix") == spec.tokens
    with pytest.raises(SpecError, match="layer 'out' gives no map"):
        infer_spec(model, images(1, 3, 64, 64), feature_layer="out")
    with pytest.raises(LookupError, match="Did you mean 'mix'"):
        infer_spec(model, images(1, 3, 64, 64), feature_layer="mixx")


def test_cam_says_why_a_network_has_no_weights_of_channels() -> None:
    model, x = nets.made(nets.Angles), images(1, 3, 32, 32)
    with pytest.raises(NotApplicableError, match=r"cam: no linear layer gives the class scores, so .* use hirescam"):
        xattn.explain(model, x, "cam")
    assert xattn.explain(model, x, "hirescam").status == ("ok",)


@pytest.mark.parametrize(
    ("make", "cost"),
    [(lambda: nets.made(nets.Ends, 5, lambda z: z), 3), (lambda: nets.made(nets.TwoWays), 4)],
    ids=["one way", "two ways, whose shares take a gradient"],
)
def test_the_model_runs_on_three_images_and_once_for_each_object(make: Callable[[], nn.Module], cost: int) -> None:
    model, x = make(), images(4, 3, 32, 32)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # of several ways one is shown, and said
        xattn.explain(model, x, "gradcam")
    assert sum(seen) - len(x) == cost
    seen.clear()
    xattn.explain(model, x, "gradcam")
    assert seen == [len(x)]


def test_two_calls_of_one_layer_must_be_told_apart() -> None:
    model, x = nets.made(nets.SharedNorm), images(1, 3, 32, 32)
    spec = infer_spec(model, x)
    with pytest.raises(NotApplicableError, match=r"'norm' runs more than once .* 'norm\[1\]'"):
        xattn.record(model, x, spec=spec, layers=["norm"])
    trace = xattn.record(model, x, spec=spec, layers=["norm[0]", "norm[1]"])
    assert trace.activation("norm[0]").shape[-2:] == (16, 16)
    assert trace.activation("norm[1]").shape[-2:] == (8, 8)


# --- formulas --------------------------------------------------------------------------------------------------------


def test_the_lit_place_is_off_the_middle_and_the_diagonal() -> None:
    for grid in ((2, 2), (3, 5), (7, 7), (14, 14)):
        places = lit_cells(grid).double()
        h, w = grid
        row = (places.sum(1) * (torch.arange(h) + 0.5)).sum() / places.sum() / h
        column = (places.sum(0) * (torch.arange(w) + 0.5)).sum() / places.sum() / w
        assert row < 0.5 < column


def test_answer_is_the_share_of_pairs() -> None:
    change = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    inside, outside = change[lit_cells((6, 9))], change[~lit_cells((6, 9))]
    pairs = [(a > b).item() + 0.5 * (a == b).item() for a in inside for b in outside]
    assert answer(change, (6, 9)) == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize("blocks", [(), (2,), (4,), (4, 2)])
def test_the_order_of_tokens_is_read_off_their_answers(blocks: tuple[int, ...]) -> None:
    x = torch.zeros(1, 1, 64, 64)
    change = (lit(x, torch.Generator().manual_seed(0)) - x).square()
    cells = nn.functional.avg_pool2d(change, 8)[0, 0]  # (8, 8)
    places = in_rows(torch.arange(64)[None, :, None], (8, 8), blocks)[0, :, :, 0]
    tokens = torch.zeros(64, 1)
    tokens[places.flatten(), 0] = cells.flatten()
    layout = layout_of(tokens, (64, 64))
    assert layout is not None
    assert layout.tokens is not None
    assert layout.grid == (8, 8)
    shown = in_rows(tokens[None], (8, 8), layout.tokens.blocks)[0, :, :, 0]
    assert answer(shown, (8, 8)) == 1


@pytest.mark.parametrize("seed", range(40))
def test_few_tokens_that_answer_anyhow_are_not_put_in_another_order(seed: int) -> None:
    change = torch.rand(16, 1, generator=torch.Generator().manual_seed(seed))
    layout = layout_of(change, (64, 64), seen=((4, 4),))
    assert layout is None or not layout.proved or layout.tokens is None or not layout.tokens.blocks


@pytest.mark.parametrize("seed", range(40))
def test_tokens_that_fill_a_grid_are_not_put_on_another_one(seed: int) -> None:
    change = torch.rand(64, 1, generator=torch.Generator().manual_seed(seed))
    layout = layout_of(change, (128, 128), seen=((8, 8),))
    assert layout is None or layout.grid == (8, 8)


def test_a_map_lies_on_a_grid_that_others_had() -> None:
    change = torch.rand(6, 6, 12, generator=torch.Generator().manual_seed(0)).square()
    change[lit_cells((6, 6))] += 0.2  # the lit place answers, and others do as well
    change[:, lit_cells((6, 12))] += 0.2  # by luck rows of channels look like a better one
    read = {r.tokens is None: r.answer for r in readings(change, (96, 96))[:2]}
    assert 0.6 < read[False] < read[True]
    assert layout_of(change, (96, 96)).tokens is None
    found = layout_of(change, (96, 96), seen={(6, 6)})
    assert found.tokens is not None
    assert found.tokens.channels_last


def test_merged_patches_are_no_steps_though_as_many_as_a_map_had_columns() -> None:
    cells = 0.1 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    cells[1] += 0.5  # attention spreads the change along a row
    cells[lit_cells((4, 4))] += 1
    layout = layout_of(cells.reshape(16, 1), (64, 64), seen=((16, 16),))
    assert layout is not None
    assert (layout.grid, layout.proved) == ((4, 4), True)


def test_kinds_of_values() -> None:
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert kind_of(z) is Kind.LOGITS
    assert kind_of(z.softmax(1)) is Kind.PROBABILITIES
    assert kind_of(z.log_softmax(1)) is Kind.LOG_PROBABILITIES
    assert kind_of(z.sigmoid()) is Kind.LOGITS  # they do not sum to one


def test_scores_are_preferred_to_their_probabilities_and_names_to_order() -> None:
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert choose((z.softmax(1), z), 2).path == (1,)
    assert choose({"features": torch.randn(2, 9), "logits": z}, 2).path == ("logits",)
    assert choose([z], 2).path == (0,)
    with pytest.raises(NotApplicableError, match=r"one row of class scores per image.*\(2, 3, 8, 8\)"):
        choose(torch.randn(2, 3, 8, 8), 2)
