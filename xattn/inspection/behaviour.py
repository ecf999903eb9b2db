"""How a model as a whole behaves: repeatable or not, its values, and whether the scores go with a layer alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xattn.inspection.findings import Findings
from xattn.inspection.probing import Call, last_operation, run
from xattn.outputs import Kind, Which, kind_of
from xattn.spec import ASSUMED, PROVED, Evidence

_SAME = 1e-3  # relative difference of results that are the same up to rounding
_ALONE = 0.99  # share of the change of the scores that goes with a layer through which everything goes
_NONE = 0.01  # share that is no influence


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors, relative to the larger of them."""
    largest = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
    return float((a - b).abs().max()) / largest


def check_repeatable(model: nn.Module, facts: Findings, which: Which) -> None:
    """Whether the image gave the same the second time, beside another one.

    Where everything goes through the layer whose outputs were exchanged, the scores of the image stand in the other
    row. Where there is a way around it they stand in neither, and a third pass has to tell.
    """
    which = facts.first.choice.path if which is None else which
    z0 = facts.first.values[0]
    if not bool(torch.isfinite(z0).all()):
        facts.evidence["repeatable"] = Evidence(ASSUMED, "the class scores are NaN or infinite")
        facts.warnings.append("the class scores are NaN or infinite; look at the weights and at the precision")
        return
    proved = Evidence(PROVED, "the same image gave the same twice, alone and beside another")
    if any(_relative(row, z0) < _SAME for row in facts.second.values):
        facts.evidence["repeatable"] = proved
        return
    plain = run(model, facts.second.x, which=which, inputs=facts.first.inputs)
    if _relative(plain.values[0], z0) < _SAME:
        facts.evidence["repeatable"] = proved
        return
    again = run(model, facts.first.x, which=which, inputs=facts.first.inputs)
    alone = _relative(again.values[0], facts.first.values[0])
    if alone >= _SAME:
        why = f"the same image gave class scores that differ by {alone:.1%} the second time"
        hint = (
            "dropout or noise stays on in evaluation mode, or the model keeps something from call to call; its maps "
            "differ from run to run"
        )
    else:
        why = "an image gives other class scores alone than beside another one"
        facts.evidence["independent"] = Evidence("contradicted", why)
        hint = (
            "batch norm without running statistics, or rounding by the range of the batch, couples the images; "
            "explain them one at a time"
        )
    facts.evidence["repeatable"] = Evidence("contradicted", why)
    facts.warnings.append(f"{why}: {hint}")


def check_alone(facts: Findings, guess: Call, layer: Call) -> None:
    """Whether the scores changed places with the outputs of the layer, which autograd's graph cannot be wrong about."""
    z0, lit_scores = facts.first.values[0], facts.second.values
    moved, stayed = float((lit_scores[0] - z0).norm()), float((lit_scores[1] - z0).norm())
    if guess is not layer or moved + stayed == 0:
        return
    share = moved / (moved + stayed)
    if share >= _ALONE:
        facts.evidence["alone"] = Evidence(PROVED, "the class scores change places with its outputs")
    elif share <= _NONE:
        facts.evidence["alone"] = Evidence("contradicted", "the class scores do not change with its outputs")
        facts.warnings.append(f"the score does not depend on what '{layer.name}' gives; name the layer to read")
    elif facts.evidence.get("repeatable", Evidence(PROVED)).how == PROVED:
        facts.evidence["alone"] = Evidence(
            PROVED, f"{share:.0%} of the change of the class scores goes with its outputs"
        )


def find_values(facts: Findings) -> Kind:
    """Logits, probabilities or log-probabilities: by the last operation, and by the values of three images."""
    last = last_operation(facts.first.raw.grad_fn)
    kind = kind_of(torch.cat([facts.first.values, facts.second.values]))
    if last is not None:
        facts.evidence["values"] = Evidence(PROVED, f"the last operation makes {last}")
        kind = Kind(last)
    elif kind is not Kind.LOGITS:
        facts.evidence["values"] = Evidence(PROVED, f"on three images they are {kind.value}")
    else:
        facts.evidence["values"] = Evidence(ASSUMED, "neither the last operation nor the values say otherwise")
    if kind is not Kind.LOGITS:
        facts.warnings.append(f"the model returns {kind.value}, not logits; they are used as they are")
    return kind


def say_what_is_explained(facts: Findings, kind: Kind) -> None:
    """Warn where nobody said what is to be explained and the outputs look like no class scores."""
    values = torch.cat([facts.first.values, facts.second.values])
    if kind is not Kind.LOGITS:
        return
    if values.shape[1] == 1:
        facts.warnings.append(
            "it gives one number for each image, which is explained as the logit of class 1, and its negative as that "
            "of class 0; if it is a regression, pass target='scalar'"
        )
    elif facts.classifier is None and (what := _embedding(facts, values)) is not None:
        facts.warnings.append(
            f"{what}; without a target the largest of its numbers is explained, as the score of a class: if they are "
            "an embedding, pass target=xattn.Similarity(image) for the likeness to another image"
        )


def _embedding(facts: Findings, values: Tensor) -> str | None:
    """What shows that outputs without a classifier are an embedding: their length, or that they are pooled features."""
    if values.shape[1] > 2 and _relative(values.norm(dim=1), torch.ones(len(values), device=values.device)) < _SAME:
        return "it gives vectors of length one"
    for call in facts.second.calls:
        if call.output.ndim == 4 and call.output.shape[:2] == facts.second.values.shape:
            pooled = call.output.float().mean((2, 3))
            if any(_relative(rows, facts.second.values.float()) < _SAME for rows in (pooled, pooled.flip(0))):
                return f"it gives the means of '{call.name}'"
    return None
