"""The feature layer: on the way from the image to the score, and lying on the image as it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import SpecError, unknown
from xattn.inspection.findings import Findings
from xattn.inspection.layouts import Layout
from xattn.inspection.probing import Call, Probe, frontier, leads_to
from xattn.spec import ASSUMED, GIVEN, PROVED, Evidence, TokenGrid
from xattn.taps import split_call

# Where the attention of a transformer block still depends on all tokens: its first norm.
_FIRST_NORMS = (
    "norm1", "ln_1", "layernorm_before", "norm_1", "ln1", "layer_norm1", "layer_norm_1", "attn_norm", "norm_attn",
)  # fmt: skip
_NEAR = 8  # calls before several branches among which the one that they come from is looked for
_LATE = 16  # last layers whose answers are recorded at once
_BRANCH = 0.05  # share of the score of a branch that is told


def _spatial(probe: Probe, classifier: Call | None) -> list[Call]:
    """Calls for one image before the classifier that may give maps."""
    return [c for c in _before(probe, classifier) if c.may_be_a_map]


def _before(probe: Probe, classifier: Call | None) -> list[Call]:
    """Calls before the classifier, all of them where there is none."""
    limit = float("inf") if classifier is None else classifier.started
    return [c for c in probe.calls if c.ended < limit]


def _stops(calls: Sequence[Call]) -> dict[Any, Call]:
    """Calls by the node of autograd that made their output: of several the outermost whose output is one tensor.

    One of several tensors may have been read already before the call ended, so of such calls the innermost is taken.
    """
    stops: dict[Any, Call] = {}
    for call in calls:
        if call.node is None:
            continue
        other = stops.get(call.node)
        if other is None or (call.plain and (not other.plain or call.name.count(".") <= other.name.count("."))):
            stops[call.node] = call
    return stops


def likely_layer(first: Probe, classifier: Call | None, named: str | None) -> Call | None:
    """The layer whose outputs the second pass exchanges, before it is known how any layer lies on the image.

    None where autograd's graph shows several ways from the image to the scores: then they cannot change places.
    """
    if named is not None:
        return _named(first, named)
    calls = _spatial(first, classifier)
    if first.raw.grad_fn is not None:
        met, around = frontier(first.raw.grad_fn, _stops(calls))
        if met:
            return met[0] if len(met) == 1 and not around else None
    maps = [c for c in calls if c.output.ndim == 4] or calls
    return _outermost(maps) if maps else None


def likely_layers(first: Probe, classifier: Call | None, guess: Call) -> set[str]:
    """Names of the layers whose answers to the lit place will be read in all likelihood: the last ones that give maps.

    Of blocks of tokens the first norms, too. What else is asked for takes another pass.
    """
    calls = _spatial(first, classifier)
    norms = [c.name for c in calls if c.output.shape == calls[-1].output.shape and _is_first_norm(c)]
    return {guess.name, *(c.name for c in calls[-_LATE:]), *norms[-2:]}


def _outermost(calls: Sequence[Call]) -> Call:
    """Of the last output the outermost module that gives it."""
    last = calls[-1].output
    same = [c for c in calls if c.output.shape == last.shape and _is_same(c, calls[-1])]
    plain = [c for c in same if c.plain] or same
    return min(reversed(plain), key=lambda c: c.name.count("."))


def _is_same(call: Call, other: Call) -> bool:
    """Whether two calls gave the same tensor."""
    if call.output.is_meta:
        return call.node is other.node
    return call.output.data_ptr() == other.output.data_ptr()


def _is_first_norm(call: Call) -> bool:
    return call.name.rpartition(".")[2] in _FIRST_NORMS


def _named(first: Probe, layer: str) -> Call | None:
    """The call that a person named: `layer4`, or `pool[1]` for the second of several."""
    name, index = split_call(layer, {c.name: c for c in first.calls})
    return first.call(name, -1 if index is None else index)


def _share(facts: Findings, calls: Sequence[Call], of_all: bool = False) -> list[float]:
    """How much of the largest class score goes through each call: |gradient times output|, relative.

    Of all class scores at once, with signs by chance, if `of_all` is set.
    """

    def score(raw: Tensor) -> Tensor:
        if not of_all:
            return raw.amax(dim=1).sum()
        signs = torch.rand(raw.shape, generator=torch.Generator().manual_seed(0)).to(raw) - 0.5
        return (raw * signs).sum()

    weights = [
        float((g.view_as(c.output) * c.output).abs().sum()) if g is not None and g.numel() == c.output.numel() else 0.0
        for c, g in facts.gradients(score, calls, values=True)
    ]
    return [w / (sum(weights) or 1.0) for w in weights] if len(calls) > 1 else weights


class NoLayerError(SpecError):
    """No layer of a model gives a map."""


def find_feature_layer(facts: Findings, named: str | None, model: str) -> tuple[Call, Layout | None]:
    """The layer to read, and how it lies on the image.

    Raises:
        NoLayerError: if there is none.
    """
    first = facts.first
    if named is not None:
        call = _named(first, named)
        if call is None:
            raise unknown(f"layer of {model}", named, list(dict.fromkeys(c.name for c in first.calls)))
        layout = facts.layout(call)
        if layout is None or not layout.proved:
            seen = "gives no map" if layout is None else f"does not answer where the image was changed ({layout})"
            raise SpecError(f"{model}: layer '{named}' {seen} (output {tuple(call.output.shape)}); choose another one.")
        facts.evidence["feature_layer"] = Evidence(GIVEN)
        facts.evidence["layout"] = Evidence(PROVED, str(layout))
        return call, layout
    calls = _spatial(first, facts.classifier)
    chosen = _on_the_way(facts, calls) or _assumed(facts, calls)
    if chosen is None:
        copies = {len(c.output) for c in _before(first, facts.classifier) if c.output.ndim == 4} - {0, 1}
        if copies:
            raise NoLayerError(
                f"{model}: its layers run on {max(copies)} pieces or copies of each image (crops, mirror images, "
                "windows), so that there is no one map of it; explain the part of the model that takes one of them, "
                "or use a method that reads no layer, such as occlusion."
            )
        vectors = [c.name for c in first.calls if c.output.ndim >= 2][-6:]
        raise NoLayerError(
            f"{model} has no layer with a spatial output (N, C, h, w) that answers where the image is changed, so "
            "there is nothing to map; name one if there is, infer_spec(model, feature_layer=…) or "
            "ModelSpec.feature_layer: "
            f"{', '.join(vectors) or 'none'}. Methods that need the input alone still work."
        )
    if chosen.output.ndim == 3 and isinstance(chosen.module, nn.Linear):  # such as keys and values of a pooling head
        chosen = _joint(facts, calls, [chosen]) or chosen
    layout = facts.layout(chosen)
    if layout is not None and layout.tokens is not None and chosen.output.ndim == 3:
        chosen = _first_norm(facts, chosen, calls) or chosen
        layout = facts.layout(chosen) or layout
    if layout is not None and layout.proved:
        facts.evidence["layout"] = Evidence(PROVED, str(layout))
    elif layout is not None and (layout.blank or layout.tokens is not None):
        h, w = layout.grid
        why = f"its {h}x{w} cells do not answer more where the image was changed"
        facts.warnings.append(
            f"how '{chosen.name}' lies on the image is assumed: {why}, as where they are few or weights are zero"
        )
        facts.evidence["layout"] = Evidence(ASSUMED, f"by its shape: {why}")
    return chosen, layout


def _on_the_way(facts: Findings, calls: Sequence[Call]) -> Call | None:
    """The last layer through which the class scores come from the image, by autograd's graph.

    What does not lie on the image in a way that is proved is looked through.
    """
    first = facts.first
    if first.raw.grad_fn is None:
        return None
    stops = _stops(calls)
    while True:
        met, around = frontier(first.raw.grad_fn, stops)
        # What gives the same whatever the image shows is no way from the image.
        met = [call for call in met if facts.sees(call)] or met
        unproved = [call for call in met if not _believed(facts, call, calls)]
        if not unproved:
            break
        stops = {node: call for node, call in stops.items() if call not in unproved}
    if not met:
        return None
    if len(met) == 1 and not around:
        facts.evidence["feature_layer"] = Evidence(
            PROVED, "everything that the class scores are made of goes through it"
        )
        return met[0]
    # Of layers one behind the other the last one is read; the way that goes around it starts at the earlier one.
    before = [c for c in met if any(c is not d and leads_to(d.node, c.node) for d in met)]
    ends = [call for call in met if call not in before]
    if len(ends) > 1 and (joint := _joint(facts, calls, ends)) is not None:
        facts.evidence["feature_layer"] = Evidence(
            PROVED, "everything that the class scores are made of goes through it"
        )
        return joint
    if len(ends) == 1 and not around and (whole := _weighted(facts, before, ends[0])) is not None:
        facts.evidence["feature_layer"] = Evidence(
            PROVED, "everything that the class scores are made of goes through it"
        )
        return whole
    shares = _share(facts, ends) if len(ends) > 1 else [1.0]
    best = max(range(len(ends)), key=lambda i: shares[i])
    others = [
        f"{_label(first, c)} ({s:.0%})"
        for c, s in zip(ends, shares, strict=True)
        if c is not ends[best] and s >= _BRANCH
    ]
    if min(shares) < _BRANCH:  # where the largest score takes one of several ways, the others may take another one
        rest = _share(facts, ends, of_all=True)
        unseen = (c for c, s, r in zip(ends, shares, rest, strict=True) if s < _BRANCH <= r and c is not ends[best])
        others += [f"{_label(first, call)} (for other classes)" for call in unseen]
    others += [f"{_label(first, call)} (from where a way goes around it)" for call in before]
    if around:
        others.append("one that meets no layer with maps")
    facts.evidence["feature_layer"] = Evidence(PROVED, f"{shares[best]:.0%} of the score goes through it")
    if others:
        facts.warnings.append(
            f"'{_label(first, ends[best])}' is one of several ways from the image to the score"
            f"{f' ({shares[best]:.0%} of it)' if len(ends) > 1 else ''}; others: {', '.join(others[:5])}; "
            "maps show this one alone"
        )
    return ends[best]


def _label(first: Probe, call: Call) -> str:
    """The name of a call: that of its module, with its number where it ran more than once."""
    return call.name if first.runs(call.name) == 1 else f"{call.name}[{call.index}]"


def _believed(facts: Findings, call: Call, calls: Sequence[Call]) -> bool:
    """Whether the layout of a layer is proved, cannot be told, or is that of a layer of its shape before, less clearly.

    Where every block mixes all tokens, as in ResMLP, the place that was changed stands out less from block to block.
    """
    layout = facts.layout(call)
    if layout is None or layout.proved or layout.blank:
        return layout is not None
    before = (c for c in calls if c.output.shape == call.output.shape and c.ended < call.ended)
    same = (found for c in before if (found := facts.proved(c)) is not None)
    return layout.answer >= 0.5 and any((found.grid, found.tokens) == (layout.grid, layout.tokens) for found in same)


def _joint(facts: Findings, calls: Sequence[Call], ends: Sequence[Call]) -> Call | None:
    """The last layer of the same grid before several branches, such as keys and values, that all of them come from."""
    grids = {layout.grid for call in ends if (layout := facts.layout(call)) is not None}
    before = [c for c in calls if c.plain and c.node is not None and c.ended < min(end.started for end in ends)]
    for call in reversed(before[-_NEAR:]):
        layout = facts.proved(call)
        if layout is not None and grids == {layout.grid}:
            met, around = frontier(facts.first.raw.grad_fn, {call.node: call})
            if met and not around:
                return call
    return None


def _weighted(facts: Findings, before: Sequence[Call], end: Call) -> Call | None:
    """The map that everything goes through where the last one, of fewer channels, only weights its places.

    As a gate does, or attention that pools.
    """
    last = facts.proved(end)
    for call in reversed(before):
        layout = facts.proved(call)
        if last is None or layout is None or layout.grid != last.grid or call.output.numel() <= end.output.numel():
            continue
        met, around = frontier(facts.first.raw.grad_fn, {call.node: call})
        if met and not around:
            return call
    return None


def _assumed(facts: Findings, calls: Sequence[Call]) -> Call | None:
    """Without a graph, or where no layout is proved: the last map before the classifier, if it is one by its type."""
    proved = [c for c in calls if facts.proved(c) is not None]
    maps = [c for c in proved if c.output.ndim == 4] or proved
    if maps:
        facts.evidence["feature_layer"] = Evidence(ASSUMED, "the last map before the classifier")
        return _outermost(maps)
    # A place so small that its cells see all of the image answers nowhere most: the type of the layer must do.
    typed = [c for c in calls if c.output.ndim == 4 and (found := facts.layout(c)) and found.tokens is None]
    met, _ = frontier(facts.first.raw.grad_fn, _stops(typed)) if facts.first.raw.grad_fn is not None else ([], True)
    chosen = met[-1] if met else _outermost(typed) if typed else None
    if chosen is not None:
        answer = facts.layout(chosen)
        facts.evidence["feature_layer"] = Evidence(ASSUMED, "the last map before the classifier")
        facts.evidence["layout"] = Evidence(ASSUMED, str(answer))
        facts.warnings.append(
            f"that the cells of '{chosen.name}' lie as (N, C, h, w) is assumed: they see so much of the image that the "
            f"place that was changed does not stand out ({answer})"
        )
    return chosen


def _first_norm(facts: Findings, last: Call, calls: Sequence[Call]) -> Call | None:
    """In a transformer the first norm of its last block, where all tokens still matter to the score.

    Behind the attention of the last block the class token alone is read, so that the gradient of the others is zero.
    """
    shape = last.output.shape
    same = [c for c in calls if c.output.shape == shape and c.ended < last.ended]
    whole = facts.layout(last)  # a norm behind the attention, as in Swin v2, gives a mixture of tokens and not these

    def agrees(norm: Call) -> bool:
        layout = facts.layout(norm)
        if layout is None or whole is None or not (layout.proved or not whole.proved):
            return False
        return _believed(facts, norm, calls) and (layout.grid, layout.tokens) == (whole.grid, whole.tokens)

    named = (c for c in reversed(same) if _is_first_norm(c))
    late = [c for c in reversed(same[-40:]) if _normalizes(c.module)]
    if (norm := next((c for c in named if agrees(c)), None)) is not None:
        block = norm.name.rpartition(".")[0]
        # Numbered blocks of another kind behind it, whose norms have other names (the parallel blocks of CoaT).
        numbered = (c for c in late if c.ended > norm.ended and re.search(r"\.\d+\.", c.name))
        others = (c for c in numbered if not c.name.startswith(f"{block}."))
        later = next((c for c in others if agrees(c) and _reaches(facts, c)), None)
        return norm if later is None else later
    if facts.first.raw.grad_fn is None or _reaches(facts, last):
        return last
    # No such name: the last norm of that shape whose cells the score depends on, else the last such layer.
    norms = (c for c in late if agrees(c) and _reaches(facts, c))
    return next(norms, None) or next((c for c in reversed(same[-40:]) if _reaches(facts, c)), None)


def _normalizes(module: nn.Module) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) or "Norm" in type(module).__name__


def _token_gradient(facts: Findings, call: Call) -> Tensor | None:
    """Whether the score depends on each token of a call: bool (T,); None without a graph."""
    if facts.first.raw.grad_fn is None or call.node is None:
        return None
    for again, gradient in facts.gradients(lambda raw: raw.square().sum(), [call]):
        if gradient is not None and gradient.shape == again.output.shape:
            return torch.gt(gradient[0].abs().sum(dim=-1), 0)
    return None


def _reaches(facts: Findings, call: Call) -> bool:
    """Whether the score depends on the cells of a token layer, not on its class token alone."""
    reached = _token_gradient(facts, call)
    layout = facts.layout(call)
    if reached is None or layout is None or layout.tokens is None:
        return False
    return bool(reached[layout.tokens.prefix : len(reached) - layout.tokens.suffix].any())


def class_tokens(facts: Findings, tokens: TokenGrid, grid: tuple[int, int]) -> int:
    """How many of the prefix tokens the classifier reads: those that its gradient reaches, unless it reaches the grid.

    Found on the last layer that still gives all tokens; as many as is usual where that cannot be told.
    """
    usual = min(tokens.prefix, 1)
    if not tokens.prefix:
        return 0
    count = grid[0] * grid[1] + tokens.prefix + tokens.suffix
    full = [c for c in facts.first.calls if c.output.ndim == 3 and c.output.shape[1] == count]
    reached = _token_gradient(facts, full[-1]) if full else None
    if reached is None or not bool(reached.any()):
        return usual
    if bool(reached[tokens.prefix :].any()):
        return 0
    return int(reached.nonzero().max()) + 1


def attention_layers(first: Probe, tokens: TokenGrid, grid: tuple[int, int]) -> tuple[str, ...]:
    """Modules that mix all tokens by attention, in order; empty if some attention sees other tokens.

    As in windows, or where keys are fewer than queries (PVT): the rest would be a part of the way. One query pools.
    """
    count = grid[0] * grid[1] + tokens.prefix + tokens.suffix
    mixing = [(name, shape) for name, shape in first.attention if len(shape) == 4 and shape[2] > 1]
    if tokens.channels_last or tokens.blocks or any(shape != (1, shape[1], count, count) for _, shape in mixing):
        return ()
    mixers = {call.name for call in first.calls if call.output.ndim == 3 and count in call.output.shape[:2]}
    names = []
    for name, _ in mixing:
        while name and name not in mixers:  # a softmax of its own is inside of what turns tokens into tokens
            name = name.rpartition(".")[0]
        names.append(name)
    return tuple(names) if len(set(names)) == len(names) and "" not in names else ()
