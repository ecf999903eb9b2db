"""`infer_spec`: the facts about an unknown model, from two passes over three images.

The first pass keeps autograd's graph: through which layers everything goes that the class scores are made of is read
off it. The second one runs two images, the first one again and one with other content in one place, and exchanges
the outputs of the chosen layer between them. So it shows how every layer lies on the image (the place that was lit
must answer most), whether the scores go with that layer alone (they change places too), whether the model answers the
same twice, and whether the images of a batch see each other.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.device import on_cpu_by_default
from xattn.errors import NotApplicableError, ParameterError, SpecError, XattnError, XattnWarning
from xattn.inputs import Inputs, Name, Views, split_inputs
from xattn.inspection import declared
from xattn.inspection.behaviour import check_alone, check_repeatable, find_values, say_what_is_explained
from xattn.inspection.classifier import find_classifier
from xattn.inspection.features import (
    NoLayerError,
    attention_layers,
    class_tokens,
    find_feature_layer,
    likely_layer,
    likely_layers,
)
from xattn.inspection.findings import Findings
from xattn.inspection.layouts import Layout, lit
from xattn.inspection.placing import check_place
from xattn.inspection.probing import Call, Probe, Swap, run
from xattn.inspection.processors import Preprocessing, transformed
from xattn.outputs import Kind, Which, spelled
from xattn.running import FunctionModel, check_loaded, lock_of, modules_of, opaque, refused_images, tensors_of, unwrap
from xattn.spec import ASSUMED, BY_FUNCTION, CONTRADICTED, GIVEN, PROVED, Evidence, ModelSpec, Ran
from xattn.targets import Class, Function, as_target
from xattn.trace import place_of


@on_cpu_by_default()
def infer_spec(
    model: nn.Module | Callable[..., Any],
    x: Any = None,
    *,
    input_size: tuple[int, int] | None = None,
    feature_layer: str | None = None,
    output: Which = None,
    target: Any = None,
    inputs: Inputs | Name | None = None,
    name: str = "",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    transform: Callable[..., Any] | None = None,
) -> ModelSpec:
    """Find the facts about a classifier of torchvision, timm or Hugging Face, or of any module of one's own.

    The model runs in evaluation mode on three images in all: the first of `x`, or smooth noise, once alone and once
    beside a copy in which one place was changed. `ModelSpec.evidence` says how each fact was found. Mean and standard
    deviation are those of ImageNet for torchvision, those of its data config for timm, those of the image processor
    beside its weights for Hugging Face, and unknown (None) for others.

    Args:
        model: the network, or any function of images; it leaves as it came.
        x: images (N, C, H, W) in the model's normalized space, of which the first is used.
        input_size: height and width of the probe; None takes those of `x`, else tries what the model says, then 224,
            299, 64 and 32 pixels.
        feature_layer: the layer to read, if it is known; `pool[1]` is the second call of a layer that runs twice.
        output: which of the model's outputs is explained: a key, an index, a path of these or a function.
        target: what is to be explained, as in `explain`, where it is no class.
        inputs: of a model of several inputs, for which `x` is a tuple or dictionary, the one that is explained.
        name: for tables; the class name by default.
        mean: of images scaled to [0, 1], per channel or one for all, where it is known.
        std: likewise.
        classes: names of the classes, in order or by index.
        transform: makes an input of a Pillow image, as in `explain`; mean, std and size are read off what it gives.

    Raises:
        SpecError: if the model does not run, has no spatial layer, or the layer that was named is none.

    Warns:
        XattnWarning: once for what is only assumed, for a model that answers differently the second time, and for a
            layer that is one of several ways from the image to the scores.
    """
    model = unwrap(model)
    if not isinstance(inputs, Inputs):
        x, inputs = split_inputs(x, inputs, model)
    images = None if transform is None else transformed(transform)
    told = mean is not None
    spec, missing = _infer(model, x, input_size, feature_layer, output, target, name, inputs, images, classes, told)
    if missing is not None:
        raise missing
    return spec.given(mean=mean, std=std, classes=classes)


def _infer(
    model: nn.Module,
    x: Tensor | None,
    input_size: tuple[int, int] | None,
    feature_layer: str | None,
    output: Which,
    target: Any,
    name: str,
    inputs: Inputs | None,
    images: Preprocessing | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    told: bool = False,
) -> tuple[ModelSpec, NoLayerError | None]:
    """The facts, and why there is no feature layer in a model whose layers can be seen."""
    hidden = opaque(model)
    if hidden and feature_layer is not None:
        raise NotApplicableError(f"layer '{feature_layer}': {type(model).__name__} {hidden}.")
    one = None if inputs is None else inputs.select(torch.zeros(1, dtype=torch.int64))
    goal, given = as_target(target), output
    output = goal.which(model, output)
    images = declared.preprocessing(model) if images is None else images
    first = _first_pass(model, x, declared.input_sizes(model, input_size, images.size), output, one, feature_layer)
    evidence: dict[str, Evidence] = {}
    said: list[str] = []
    classifier = find_classifier(model, first, evidence)
    guess = likely_layer(first, classifier, feature_layer)
    candidates = None if guess is None or first.raw.grad_fn is None else likely_layers(first, classifier, guess)
    swap = None if guess is None else Swap(guess.name, guess.index)
    generator = torch.Generator().manual_seed(0)
    pair = torch.cat([first.x, lit(first.x.float().cpu(), generator).to(first.x)])
    which = first.choice.path if output is None else output
    second = run(model, pair, which=which, swap=swap, inputs=one, only=candidates)
    facts = Findings(
        first, classifier, second, evidence, said,
        whole=lambda: run(model, first.x, which=which, graph=True, inputs=one, uncut=first.uncut),
        everything=lambda: run(model, pair, which=which, inputs=one),
    )  # fmt: skip
    check_repeatable(model, facts, output)
    values = find_values(facts) if goal.has_classes else Kind.LOGITS
    if isinstance(goal, Class) and goal.classes is None:
        say_what_is_explained(facts, values)
    layer: Call | None = None
    layout: Layout | None = None
    missing: NoLayerError | None = None
    try:
        layer, layout = find_feature_layer(facts, feature_layer, type(model).__name__)
    except NoLayerError as reason:
        missing = None if hidden else reason
        why = f"{type(model).__name__} {hidden}" if hidden else str(reason).rstrip(".")
        evidence["feature_layer"] = Evidence(PROVED, why)
    _find_gradient(model, first, evidence)
    if guess is not None and layer is not None:
        check_alone(facts, guess, layer)
    if layer is not None and layout is not None:
        check_place(facts, layer, layout)
    tokens = None if layout is None else layout.tokens
    attention: tuple[str, ...] = ()
    if layout is not None and tokens is not None:
        attention = attention_layers(first, tokens, layout.grid)
        tokens = replace(tokens, class_tokens=class_tokens(facts, tokens, layout.grid))
    if first.choice.others:
        said.append(
            f"{spelled(first.choice.path)} is explained because {first.choice.why}; "
            f"output= names another one ({', '.join(first.choice.others[:3])})"
        )
    images = declared.for_channels(images, first.x.shape[1])
    evidence["normalization"] = images.evidence
    if images.evidence.how == "contradicted" and not told:
        said.append(f"{images.evidence.why}; pass what it gives, a float tensor (N, C, H, W), instead of images")
    evidence["output"] = Evidence(GIVEN if given is not None else ASSUMED if first.choice.others else PROVED)
    if callable(given):
        evidence["output"] = BY_FUNCTION
    for text in said:
        warnings.warn(f"{type(model).__name__}: {text}.", XattnWarning, stacklevel=2)
    plain = ""
    if layer is not None:
        plain = layer.name if facts.first.runs(layer.name) == 1 else f"{layer.name}[{layer.index}]"
    if classes is not None and len(classes) != first.values.shape[1]:
        raise ParameterError(f"classes: {len(classes)} names, but the model returns {first.values.shape[1]} values.")
    spec = ModelSpec(
        feature_layer=feature_layer or plain,
        classifier=None if classifier is None else classifier.name,
        probability_layers=attention,
        tokens=tokens,
        input_size=facts.size if one is None else (one.extent(facts.size)[-2], one.extent(facts.size)[-1]),
        mean=images.mean,
        std=images.std,
        classes=declared.class_names(model, first.values.shape[1]),
        crop=images.crop,
        interpolation=images.interpolation,
        fit=images.fit,
        name=name or type(model).__name__.lower(),
        channels=first.x.shape[1],
        output=() if callable(given) else _path(given) if given is not None else first.choice.path,
        values=values.value,
        evidence=evidence,
        ran={plain: Ran(first.runs(layer.name), tuple(layer.output.shape[1:]), facts.size)}
        if layer is not None
        else {},
    )
    return spec, missing


def _find_gradient(model: nn.Module, first: Probe, evidence: dict[str, Evidence]) -> None:
    """Whether autograd leads from the class scores back to the image."""
    if first.reaches_input:
        why = "through no_grad, inference_mode or detach() inside the model" if first.uncut else ""
        evidence["gradient"] = Evidence(PROVED, why)
    elif _usable(model):
        why = f"the class scores of {type(model).__name__} carry none back to the image"
        evidence["gradient"] = Evidence(CONTRADICTED, f"{why} (integers, arrays and quantized layers do not)")


def _path(output: Which) -> tuple[str | int, ...]:
    return output if isinstance(output, tuple) else (output,)  # type: ignore[return-value]


_MOST = 64  # sets of facts that are kept of one model
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, ModelSpec]] = weakref.WeakKeyDictionary()


@on_cpu_by_default()
def facts_about(
    model: nn.Module | Callable[..., Any],
    x: Tensor | None = None,
    layers: Sequence[str] = (),
    *,
    output: Which = None,
    target: Any = None,
    inputs: Inputs | None = None,
    input_size: tuple[int, int] | None = None,
) -> ModelSpec:
    """What `infer_spec` finds about a model, found once for each model, size of image, output and layer that is named.

    Args:
        model: the network.
        x: images (N, C, H, W) that are to be explained.
        layers: names of layers that are to be read beside the one that is chosen; how each lies is proved too.
        output: which of the model's outputs is explained, if it is known.
        target: what is to be explained.
        inputs: the other inputs of the model.
        input_size: height and width, where they are known and there are no images.

    Raises:
        SpecError: as `infer_spec`.
    """
    with lock_of(unwrap(model)):
        return _known_facts(unwrap(model), x, layers, output, target, inputs, input_size)


def _known_facts(
    model: nn.Module,
    x: Tensor | None,
    layers: Sequence[str],
    output: Which,
    target: Any,
    inputs: Inputs | None,
    size: tuple[int, int] | None,
) -> ModelSpec:
    # A head that was exchanged makes another model of it.
    modules = dict(model.named_modules())
    if isinstance(model, FunctionModel):
        del modules[""]  # made anew each time
    parts = hash(tuple((name, id(module), type(module)) for name, module in modules.items()))
    shape = size if x is None else tuple(x.shape[1:])
    known = _KNOWN.setdefault(model, {}) if not isinstance(model, FunctionModel) else _of_function(model.function)
    goal = as_target(target)
    # Targets of a kind read the same of the outputs; functions are each of their own kind.
    kind = goal.function if isinstance(goal, Function) else type(goal), goal.has_classes

    def found(layer: str | None) -> ModelSpec:
        key = parts, shape, layer, output, kind, None if inputs is None else inputs.shapes
        if key not in known:
            if len(known) >= _MOST:
                known.pop(next(iter(known)))
            known[key], _ = _infer(model, x, size, layer, output, goal, "", inputs)
        return known[key]

    spec = found(None)
    wanted = [layer for layer in dict.fromkeys(layers) if layer != spec.feature_layer]
    if not wanted:
        return spec
    ran = {name: how for layer in wanted for name, how in found(layer).ran.items()}
    return replace(spec, layouts=spec.layouts | {layer: found(layer).tokens for layer in wanted}, ran=ran | spec.ran)


def _of_function(function: Callable[..., Any]) -> dict[Hashable, ModelSpec]:
    """What is known of a function; of a method, what is known of it on its object."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    try:
        known = _KNOWN_FUNCTIONS.setdefault(function if owner is None else owner, {})
    except TypeError:  # it cannot be remembered
        return {}
    return known.setdefault("" if owner is None else name, {})


_KNOWN_FUNCTIONS: weakref.WeakKeyDictionary[Any, dict[str, dict[Hashable, ModelSpec]]] = weakref.WeakKeyDictionary()


# ------------------------------------------------------------------------------------------------------ the passes


def _first_pass(
    model: nn.Module, x: Tensor | None, sizes: Sequence[tuple[int, int]], which: Which, inputs: Inputs | None,
    named: str | None,
) -> Probe:  # fmt: skip
    """One image through the model: the given one, or noise of the first size and number of channels that it takes."""
    check_loaded(model, grad=False)
    device, dtype = place_of(model)
    if x is not None:
        try:
            return _one(model, x[:1].detach().to(device, dtype), which, inputs, named)
        except RuntimeError as error:
            reason = refused_images(model, x.shape, error)
            if reason is None:
                raise
            raise reason from error
    failure: Exception | None = None
    channels = list(declared.input_channels(model))
    for height, width in sizes:
        for count in channels:
            noise = _smooth(count, (height, width)).to(device, dtype)
            try:
                return _one(model, noise, which, inputs, named)
            except XattnError:
                raise
            except Exception as error:  # whatever a foreign forward pass raises
                failure = failure or error
    tried = ", ".join(f"{h}x{w}" for h, w in sizes)
    what = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
    raise SpecError(
        f"{type(model).__name__} does not run on an image of {tried} pixels ({what}); give the size that it takes, "
        "infer_spec(model, input_size=(height, width)), or images, infer_spec(model, x)."
    )


def _one(model: nn.Module, x: Tensor, which: Which, inputs: Inputs | None, named: str | None) -> Probe:
    """A pass with autograd's graph, or without one where the weights do not allow it.

    Where the model itself cuts the graph off, as a linear probe does, a second pass looks through that. Of
    convolutional networks the shape of the graph is nearly always enough.
    """
    usable = _usable(model)
    lean = usable and not isinstance(inputs, Views)
    probe = run(model, x, which=which, graph=usable, attention=True, inputs=inputs, lean=lean, named=named)
    if lean and probe.reaches_input is None:
        probe = run(model, x, which=which, graph=usable, attention=True, inputs=inputs)
    if usable and not probe.reaches_input:
        uncut = run(model, x, which=which, graph=True, attention=True, uncut=True, inputs=inputs)
        probe = uncut if uncut.reaches_input else probe
    return probe


def _usable(model: nn.Module) -> bool:
    return not any(t.is_inference() for t in tensors_of(modules_of(model)))


def _smooth(channels: int, size: tuple[int, int]) -> Tensor:
    """An image (1, C, H, W) with patches of about an eighth of its side, roughly normalized."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, max(size[0] // 8, 2), max(size[1] // 8, 2), generator=generator)
    return nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
