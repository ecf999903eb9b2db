"""`xattn doctor`: proves that a model can be explained before anyone believes a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import console, options
from xattn.errors import ParameterError, XattnError, reason_of
from xattn.statuses import told

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xattn.explainer import Explainer
    from xattn.file_loop import Network
    from xattn.spec import ModelSpec
    from xattn.trace import Trace

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn doctor --model resnet50 --weights DEFAULT",
        "xattn doctor --model mypackage.nets:build --weights mine.safetensors photos/*.jpg",
        "xattn doctor --model squeezenet1_0 --json",
        "xattn doctor --full",
        "Methods of many passes are only asked whether they fit; --full tries them too, which takes minutes.",
        "Without images it takes the two of examples/, where the repository is, else seeded smooth noise.",
        "Exit status: 0 unless the model cannot be explained at all, then 2.",
    )
)

OK, WARN, FAIL, UNTRIED = "ok", "warn", "fail", "untried"
_IMAGES = 3
_MANY = 5  # passes of a method that is tried with --full alone
_EXAMPLES = Path(__file__).parents[2] / "examples"
_TOLERANCE = 1e-3  # between an image alone and in a batch, relative to the largest value


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        name: of the check or the method.
        state: `ok`, `warn` or `fail`; `untried` for a method that fits but was not run.
        text: what was seen, and what to do about it.
        facts: numbers for machines.
    """

    name: str
    state: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def doctor(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Images to check with, three at most.", show_default="examples/")
    ] = None,
    model: options.Model = None,
    weights: options.Weights = None,
    head: options.Head = None,
    resolution: options.Finer = None,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    size: options.Size = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also try the methods of many passes, which takes minutes.")
    ] = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Check a model before you believe a picture: does its path work, and which methods are valid on it?"""
    from xattn.cli.choosing import default_model
    from xattn.cli.loading import load
    from xattn.device import find_device

    given = options.given(mean, std, classes, size)
    loaded = load(
        model or default_model(),
        weights=weights,
        head=head,
        resolution=resolution,
        device=find_device(device),
        given=given,
    )
    x = images_for(loaded, paths)
    with console.working("checking the model", shown=not as_json) as tell:
        checks = check_model(loaded, x)
        runs = not any(c.name == "forward pass" and c.state == FAIL for c in checks)
        methods = check_methods(loaded, x, full=full, tell=tell) if runs else []
    valid = [m.name for m in methods if m.state == OK and m.facts["family"] != "control"]
    if as_json:
        report = {
            "model": loaded.name,
            "spec": loaded.spec.to_dict(),
            "valid": valid,
            "checks": [asdict(c) for c in checks],
            "methods": [asdict(m) for m in methods],
        }
        console.show_json(report)
    else:
        print_report(loaded, checks, methods, valid)
    waiting = any(m.state == UNTRIED for m in methods) and all(c.state != FAIL for c in checks)
    if not valid and not waiting:
        from xattn.cli import EXIT_BAD_INPUT

        raise typer.Exit(EXIT_BAD_INPUT)


def images_for(loaded: Network, paths: list[str] | None) -> Tensor:
    """A batch (N, C, H, W): the given images, three at most, the example photographs, or smooth noise."""
    from xattn.data.finding import find_images
    from xattn.data.preprocessing import to_batch
    from xattn.trace import place_of

    device = place_of(loaded.model)[0]
    if paths:
        files, problems = find_images(paths)
        if real := [p for p in problems if not p.note]:
            raise ParameterError(str(real[0]))
        return to_batch(files[:_IMAGES], loaded.spec).to(device)
    examples = sorted(_EXAMPLES.glob("*.jpg"))
    if examples and loaded.spec.channels in (None, 1, 3):
        return to_batch(examples[:_IMAGES], loaded.spec).to(device)
    return noise(loaded.model, loaded.spec).to(device)


def noise(model: nn.Module, spec: ModelSpec) -> Tensor:
    """Seeded smooth noise (3, C, H, W) in the model's normalized space; the images differ in contrast."""
    import torch
    from torch import nn

    channels = spec.channels or next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(_IMAGES, channels, 8, 8, generator=generator)
    pixels = nn.functional.interpolate(coarse, spec.input_size, mode="bicubic", align_corners=False)
    pixels = pixels + 0.1 * torch.rand(pixels.shape, generator=generator)
    contrast = torch.linspace(0.5, 1, _IMAGES)[:, None, None, None]
    pixels = (0.5 + contrast * (pixels - 0.5)).clamp(0, 1)
    if spec.mean is None or spec.std is None or len(spec.mean) != channels:
        return pixels
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    return (pixels - mean) / std


# ----------------------------------------------------------------------------------------------------- the model


def check_model(loaded: Network, x: Tensor) -> list[Finding]:
    """Checks that do not depend on a method."""
    from xattn.spec import CONTRADICTED
    from xattn.trace import INPUT, record

    model, spec = loaded.model, loaded.spec
    findings = [_weights(loaded), _spec(loaded), *_evidence(spec)]
    gradient = spec.evidence.get("gradient")
    followed = gradient is None or gradient.how != CONTRADICTED
    place = spec.feature_layer or INPUT
    layers = [name for name in (spec.feature_layer, spec.attention_layer) if name] + [INPUT] * followed
    before = Snapshot(model)
    model.train()
    modes = {name: m.training for name, m in model.named_modules()}
    try:
        trace = record(model, x, spec=spec, layers=layers, grad=followed)
        if followed:
            trace.gradient(place)
        kept = {name: m.training for name, m in model.named_modules()} == modes
    except (XattnError, RuntimeError) as error:
        return [*findings, Finding("forward pass", FAIL, reason_of(error))]
    finally:
        model.eval()
    features = list(trace.activation(spec.feature_layer).shape[1:]) if spec.feature_layer else []
    read = (
        f"hooks fire; '{spec.feature_layer}' is a map of {'x'.join(map(str, features))}"
        if features
        else "no layer is read"
    )
    findings.append(
        Finding(
            "forward pass",
            OK,
            f"{len(x)} images of {x.shape[-2]}x{x.shape[-1]} give {trace.logits.shape[1]} logits; {read}",
            {"classes": trace.logits.shape[1], "features": features},
        )
    )
    findings.append(
        Finding("evaluation mode", OK, "put on for the pass and taken back after it")
        if kept
        else Finding("evaluation mode", FAIL, "modules did not get their own mode back")
    )
    changed = before.changes(model)
    findings.append(
        Finding("model untouched", FAIL, f"changed: {', '.join(changed)}")
        if changed
        else Finding("model untouched", OK, "hooks, weights, statistics, requires_grad and .grad are as before")
    )
    findings.append(_outputs(trace))
    if bool(trace.logits.isfinite().all()):
        findings.append(_batch(model, spec, x, trace))
    if followed:
        findings += [_gradient(trace, place), _guided(model, x)]
    return findings


def _weights(loaded: Network) -> Finding:
    parameters = list(loaded.model.parameters())
    size = f"{type(loaded.model).__name__}, {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters"
    place = f", {parameters[0].dtype}, {parameters[0].device}".replace("torch.", "") if parameters else ""
    if loaded.random == "head":
        return Finding("weights", WARN, f"{size}{place}: its head is random, so maps mean nothing; train it")
    if loaded.random:
        return Finding(
            "weights", WARN, f"{size}{place}: random, so maps mean nothing; pass --weights DEFAULT or a file"
        )
    return Finding("weights", OK, size + place)


def _spec(loaded: Network) -> Finding:
    spec = loaded.spec
    facts = [f"features '{spec.feature_layer}'" if spec.feature_layer else "no feature layer"]
    facts.append(f"classifier '{spec.classifier}'" if spec.classifier else "no classifier")
    if spec.attention_layer:
        facts.append(f"attention '{spec.attention_layer}' ({spec.attention})")
    if spec.tokens:
        facts.append(f"tokens of {spec.tokens.patch[0]}x{spec.tokens.patch[1]} pixels")
    facts.append(f"input {spec.input_size[0]}x{spec.input_size[1]}")
    facts.append(f"{len(spec.classes)} class names" if spec.classes else "no class names")
    text = ", ".join(facts)
    if spec.mean is None:
        return Finding("spec", WARN, f"{text}; normalization unknown: state mean and std, or images are used in [0, 1]")
    return Finding("spec", OK, text)


def _evidence(spec: ModelSpec) -> list[Finding]:
    """How each fact was found; one that was contradicted is to be mended, but for gradients, which a model may lack."""
    findings = []
    for name, evidence in spec.evidence.items():
        state = OK if evidence.how != "contradicted" else WARN if name == "gradient" else FAIL
        findings.append(Finding(f"fact: {name}", state, str(evidence), asdict(evidence)))
    return findings


def _outputs(trace: Trace) -> Finding:
    import torch

    logits = trace.logits.double()
    if not bool(torch.isfinite(logits).all()):
        return Finding("outputs", FAIL, "logits are NaN or infinite; check weights and normalization")
    if len(logits) > 1 and bool((logits - logits[:1]).abs().max() == 0):
        return Finding("outputs", FAIL, "different images give the same logits; check weights and normalization")
    in_range = bool(((logits >= 0) & (logits <= 1)).all())
    if logits.shape[1] > 1 and in_range and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        text = "they look like probabilities, whose gradient vanishes where the model is sure; end the model in logits"
        return Finding("outputs", WARN, text)
    if logits.shape[1] == 1 and in_range:
        text = "one output within [0, 1]: if it is a probability, end the model in its logit, before the sigmoid"
        return Finding("outputs", WARN, text)
    low, high = float(logits.min()), float(logits.max())
    return Finding("outputs", OK, f"logits from {low:.3g} to {high:.3g}", {"low": low, "high": high})


def _batch(model: nn.Module, spec: ModelSpec, x: Tensor, trace: Trace) -> Finding:
    import torch

    from xattn.trace import record

    alone = torch.cat([record(model, x[i : i + 1], spec=spec, grad=False).logits for i in range(len(x))])
    error = _difference(trace.logits, alone)
    facts = {"error": error}
    if error <= _TOLERANCE:
        return Finding("batch independence", OK, f"an image alone and in a batch agree within {error:.1e}", facts)
    text = f"an image alone and in a batch differ by {error:.1e} of the largest logit; explain images one by one"
    return Finding("batch independence", FAIL, text, facts)


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where there are NaN."""
    scale = float(a.abs().max())
    error = float((a - b).abs().max()) / (scale or 1.0)
    return error if math.isfinite(error) else math.inf


def _gradient(trace: Trace, layer: str) -> Finding:
    gradient, where = trace.gradient(layer).flatten(1), f"at '{layer}'" if layer else "at the image"
    zero = int((gradient == 0).all(dim=1).sum())
    if not bool(gradient.isfinite().all()):
        return Finding("gradient", FAIL, f"the gradient {where} is NaN or infinite")
    if zero:
        text = f"all zero {where} for {zero} of {len(gradient)} images: gradient methods see nothing"
        return Finding("gradient", FAIL if zero == len(gradient) else WARN, text, {"all_zero": zero})
    share = float((gradient != 0).double().mean())
    return Finding("gradient", OK, f"{share:.0%} of the values {where} are not zero", {"share": share})


def _guided(model: nn.Module, x: Tensor) -> Finding:
    from xattn.explainers.guided import guided_share

    try:
        guided, total = guided_share(model, x[:1])
    except XattnError as error:
        return Finding("ReLUs guided", WARN, reason_of(error))
    facts = {"guided": guided, "activations": total}
    if total and guided == total:
        return Finding("ReLUs guided", OK, f"{guided} of {total} activations, whoever calls them", facts)
    text = f"{guided} of {total} activations are ReLUs that can be guided, so guided backpropagation is refused"
    return Finding("ReLUs guided", WARN, text, facts)


_SAMPLES, _SEGMENTS = 24, 8


class Snapshot:
    """What must be the same about a model after it was recorded."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.rest = self._rest(model)

    @staticmethod
    def _rest(model: nn.Module) -> dict[str, Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "hooks": {name: [len(getattr(m, h)) for h in hooks] for name, m in model.named_modules()},
            "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
            "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
            ".grad": {name: p.grad is None for name, p in model.named_parameters()},
        }

    def changes(self, model: nn.Module) -> list[str]:
        """Names of what is not as it was."""
        import torch

        now = self._rest(model)
        changed = [what for what, value in self.rest.items() if now[what] != value]
        state = model.state_dict()
        if list(state) != list(self.state) or not all(
            torch.equal(state[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in self.state.items()
        ):
            changed.append("weights or statistics")
        return changed


# --------------------------------------------------------------------------------------------------- the methods


def check_methods(
    loaded: Network, x: Tensor, *, full: bool = True, tell: Callable[[str], None] = lambda text: None
) -> list[Finding]:
    """Which methods are valid on the model, and why not the rest.

    Args:
        loaded: the model.
        x: images (N, C, H, W).
        full: also run the methods of many passes, which else are only asked whether they fit.
        tell: is told which method is on.
    """
    from xattn.explainers import applicable, explainers
    from xattn.trace import record

    traces: dict[Any, Trace] = {}  # methods that read the same layers share a pass

    def trace_of(method: Explainer, count: int) -> Trace:
        layers = method.layers(loaded.spec)
        key = (layers, method.grad, count)
        if key not in traces:
            traces[key] = record(loaded.model, x[:count], spec=loaded.spec, layers=layers, grad=method.grad)
        return traces[key]

    found = []
    for name in explainers.names():
        method = explainers.create(name)
        tell(f"trying {name}")
        if not full and _is_long(method.passes) and applicable(method, loaded.spec) is None:
            text = f"fits; --full tries it ({method.passes})"
            found.append(Finding(name, UNTRIED, text, {"family": method.family.value}))
        else:
            found.append(_method(_brief(method), loaded, trace_of, len(x)))
    return found


def _is_long(passes: str) -> bool:
    """Whether a method takes many passes, by what it says of them.

    >>> _is_long("1 forward, 2 backward to the layer"), _is_long("1 forward per channel"), _is_long("169 forward")
    (False, True, True)
    """
    return " per " in passes or any(int(n) > _MANY for n in re.findall(r"(\d+) (?:forward|backward)", passes))


def _brief(method: Explainer) -> Explainer:
    """The method with fewer random samples and segments: whether it is sound does not depend on their number."""
    import dataclasses

    few = {"samples": _SAMPLES, "count": _SEGMENTS}
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    fewer = {name: most for name, most in few.items() if isinstance(values.get(name), int) and values[name] > 4 * most}
    return dataclasses.replace(method, **fewer) if fewer else method  # type: ignore[type-var]


def _method(method: Explainer, loaded: Network, trace_of: Callable[[Explainer, int], Trace], count: int) -> Finding:
    facts: dict[str, Any] = {"family": method.family.value}
    try:
        method.check(loaded.spec)
        trace = trace_of(method, count)
        together = method.explanation(trace)
        alone = method.explanation(trace_of(method, 1))
        conservation = method.conservation(trace, together.maps)
    except (XattnError, RuntimeError) as failure:
        return Finding(method.name, FAIL, reason_of(failure).removeprefix(f"{method.name}: "), facts)
    error = _difference(together.maps[:1], alone.maps)
    facts |= {"grid": list(together.maps.shape[-2:]), "batch_error": error, "status": list(together.status)}
    grid = f"{together.maps.shape[-2]}x{together.maps.shape[-1]}"
    if conservation is not None:
        facts["conservation_error"] = float(conservation.max())
        error_text = f"{facts['conservation_error']:.1e}" if facts["conservation_error"] else "rounding"
        grid += f", sums to the logit within {error_text}"
    trouble = [status for status in together.status if status != "ok"]
    if trouble:
        state = FAIL if len(trouble) == count and trouble[0] in ("nan", "non-conserving") else WARN
        first = together.status.index(trouble[0])
        numbers = f": {together.remarks[first]}" if together.remarks and together.remarks[first] else ""
        return Finding(method.name, state, f"{len(trouble)} of {count} maps are {trouble[0]}{numbers}", facts)
    if error > _TOLERANCE:
        return Finding(method.name, FAIL, f"an image's map depends on the rest of the batch, by {error:.1e}", facts)
    return Finding(method.name, OK, grid, facts)


def print_report(loaded: Network, checks: list[Finding], methods: list[Finding], valid: list[str]) -> None:
    """Tables for people."""
    styles = {OK: "green", WARN: "yellow", FAIL: "red", UNTRIED: "dim"}
    for title, findings in ((f"model {loaded.name}", checks), ("methods", methods)):
        if not findings:
            continue
        rows = [
            (f.name, ("no" if f.state == FAIL and findings is methods else f.state, styles[f.state]), f.text)
            for f in findings
        ]
        console.table(rows, {"no_wrap": True, "style": "cyan"}, {"no_wrap": True}, {}, title=title, heads=False)
        console.say("")
    words = dict.fromkeys(s for f in methods if ": " not in f.text for s in f.facts.get("status", ()) if s != "ok")
    for word in words:
        console.say(told(word), limit=4000)
    failures = [c.name for c in checks if c.state == FAIL]
    untried = [m.name for m in methods if m.state == UNTRIED]
    if valid:
        console.say(f"valid on this model: {', '.join(valid)}", limit=4000)
    elif not untried:
        console.say("no method is valid on this model.")
    if untried:
        console.say(f"not tried, with many passes each (--full): {', '.join(untried)}", limit=4000)
    if failures:
        console.say(f"mend first: {', '.join(failures)}")
