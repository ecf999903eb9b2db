"""From a model and images to explanations: any number of methods on one shared pass."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from xattn.data.finding import find_images
from xattn.data.preprocessing import Fit, listed, pictures, to_batch
from xattn.data.reading import read_image
from xattn.data.tree import class_of
from xattn.data.tree import places as places_of
from xattn.device import on_cpu_by_default
from xattn.errors import DataError, NotApplicableError, ParameterError, StatusWarning, XattnWarning
from xattn.explainer import Explainer, LayerExplainer, needs_of, refuse, refuse_volumes
from xattn.explainers import applicable, resolve
from xattn.explanation import OK, Explanation, joined
from xattn.functional.pixels import drawn_bands
from xattn.inputs import Inputs, Name, Volume, split_inputs
from xattn.inspection import facts_about
from xattn.inspection.processors import Preprocessing, apply_transform, prepared_by, transformed
from xattn.models.converting import finer
from xattn.models.dilation import factor_of
from xattn.models.heads import Classifier
from xattn.outputs import Which
from xattn.running import unwrap
from xattn.score import ScoreFn
from xattn.spec import ASSUMED, GIVEN, PROVED, Evidence, ModelSpec, sides_of
from xattn.targets import Similarity, as_target
from xattn.trace import Trace, place_of, record

_FOLDER_BATCH = 8  # images of a folder that are explained together


def record_for(
    model: nn.Module,
    x: Tensor,
    methods: Iterable[Explainer],
    target: Any = None,
    *,
    spec: ModelSpec,
    score: str | ScoreFn = "logit",
    seeds: Sequence[int] | None = None,
    scoring: nn.Module | None = None,
    grad: bool | None = None,
    output: Which = None,
    inputs: Inputs | Name | None = None,
) -> Trace:
    """Record one pass that keeps what all of these methods read.

    Args:
        model: any module from images to logits (N, K).
        x: images (N, C, H, W) in the model's normalized space.
        methods: that will read the pass.
        target: as in `record`.
        spec: facts about the model.
        score: the scalar to explain.
        seeds: one number per image, for methods that draw random numbers; None derives it from the image.
        scoring: as in `record`.
        grad: keep the graph; None does so where a method reads gradients.
        output: as in `record`.
        inputs: as in `record`.
    """
    needs = needs_of(methods, spec)
    if grad is not None:
        needs["grad"] = grad
    trace = record(
        model, x, target, spec=spec, score=score, seeds=seeds, scoring=scoring, output=output, inputs=inputs, **needs
    )
    named = spec.evidence.get("classes", Evidence(ASSUMED)).how == GIVEN and trace.goal.has_classes
    if named and len(spec.classes) != trace.logits.shape[1]:
        kind, count = type(unwrap(model)).__name__, trace.logits.shape[1]
        raise ParameterError(f"classes: {len(spec.classes)} names, but {kind} has {count} classes.")
    return trace


def explain_trace(trace: Trace, methods: Sequence[Explainer], *, skip: bool = False) -> list[Explanation]:
    """Explanations of one recorded pass, a warning for each method whose maps are not all `ok`.

    Args:
        trace: with the layers of all methods.
        methods: in the order of the result.
        skip: leave a method out that refuses the model only now, with a warning, instead of raising.
    """
    explanations = []
    for method in methods:
        try:
            explanation = method.explanation(trace)
        except NotApplicableError as reason:
            if not skip:
                raise
            warnings.warn(f"left out: {reason}", XattnWarning, stacklevel=4)
            continue
        if trouble := [i for i, status in enumerate(explanation.status) if status != OK]:
            warnings.warn(_told(explanation, trouble, f"image {trouble[0]}"), StatusWarning, stacklevel=4)
        explanations.append(explanation)
    return explanations


def _told(explanation: Explanation, trouble: Sequence[int], first: str) -> str:
    """A warning of maps that are not `ok`: how many, what happened to the first, what to do."""
    counts = Counter(explanation.status[i] for i in trouble)
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    found = f"{words} of {len(explanation)} maps (first: {first}, {explanation.told(trouble[0])})"
    return f"{explanation.method.name}: {found}; see Explanation.status before you read them."


def completed(spec: ModelSpec | None, find: Callable[[tuple[int, int] | None], ModelSpec]) -> ModelSpec:
    """The facts that were given, and those that are found in the place of the others.

    Args:
        spec: what was given; a fact that is its default counts as not given.
        find: finds the facts, for images of a size if it is known.
    """
    if spec is None:
        return find(None)
    given = {field.name: getattr(spec, field.name) for field in fields(spec)}
    plain = ModelSpec()
    given = {name: value for name, value in given.items() if value != getattr(plain, name)}
    return replace(find(given.get("input_size")), **given)


@overload
def explain(
    model: nn.Module | Callable[..., Any], x: Any,
    methods: str | Explainer, target: Any = None, *, spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None, score: str | ScoreFn = "logit", output: Which = None,
    inputs: Name | None = None, bands: Sequence[int] = (),
    mean: Any = None, std: Any = None, classes: Any = None, size: Any = None, fit: Fit | None = None,
    window: tuple[float, float] | None = None, transform: Callable[..., Any] | None = None, resolution: str = "low",
) -> Explanation: ...  # fmt: skip
@overload
def explain(
    model: nn.Module | Callable[..., Any], x: Any,
    methods: Sequence[str | Explainer], target: Any = None, *, spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None, score: str | ScoreFn = "logit", output: Which = None,
    inputs: Name | None = None, bands: Sequence[int] = (),
    mean: Any = None, std: Any = None, classes: Any = None, size: Any = None, fit: Fit | None = None,
    window: tuple[float, float] | None = None, transform: Callable[..., Any] | None = None, resolution: str = "low",
) -> list[Explanation]: ...  # fmt: skip
@on_cpu_by_default()
def explain(
    model: nn.Module | Callable[..., Any],
    x: Any,
    methods: str | Explainer | Sequence[str | Explainer],
    target: Any = None,
    *,
    spec: ModelSpec | None = None,
    seeds: Sequence[int] | None = None,
    score: str | ScoreFn = "logit",
    output: Which = None,
    inputs: Name | None = None,
    bands: Sequence[int] = (),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: Fit | None = None,
    window: tuple[float, float] | None = None,
    transform: Callable[..., Any] | None = None,
    resolution: str = "low",
) -> Explanation | list[Explanation]:
    """Explain what a model sees in images, with one forward and at most one backward pass for all layer methods.

    Args:
        model: any module from images to logits (N, K), which leaves as it came; or any function of images, for methods
            that need scores alone, and gradients of the input where autograd follows it.
        x: float tensor (N, C, H, W) in the model's normalized space, or images to be read and normalized: a path,
            a Pillow image, a uint8 array (H, W, C), or a list of these; a folder, of which all images are explained
            and folders with the name of a class are labels, for `Explanation.frame`; a tuple or dictionary of all
            inputs for a model of several; volumes (N, C, D, H, W) for one of 3-D convolutions.
        methods: a name such as `"gradcam"` or `"brnpa:parts=4"`, an `Explainer`, or a sequence of them; `["all"]`
            stands for every method, and `"all"` for every one that is defined for the model.
        target: class of each image, one class for all (index or name), None for the predicted class, an object of
            `xattn.targets` (`Scalar()`, `Difference(a, b)`, `Similarity(to)`, `Region(mask, class)`, …), its text
            (`"scalar"`, `"a - b"`), or a function of all that the model returns that gives (N,).
        spec: facts about the model; None takes `model.spec` or infers them.
        seeds: one number per image, for methods that draw random numbers; None derives it from the image.
        score: the scalar to explain: `"logit"`, `"prob"`, `"sigmoid"`, `"margin"`, or a callable.
        output: which of the model's outputs is explained: a key, an index, a path of these or a function; None finds
            the class scores.
        inputs: of several inputs the one that is explained, by its place in the tuple or its key; the others are held
            fixed for each image. None is the only one that is a batch of images.
        bands: the three channels of the images that pictures show, or one in grey; by default the first ones.
        mean: of images scaled to [0, 1], per channel or one for all, where the model does not say it.
        std: likewise.
        classes: names of the classes, in order or by index.
        size: height and width to which images are brought, or the side of a square.
        fit: how an image of another shape fits that: `"crop"`, `"squash"` or `"whole"`, as in `preprocess`.
        window: the values of images of more than 8 bits that are shown as black and white, as in `read_image`.
        transform: makes an input (C, H, W) of a Pillow image in place of all these, as those of torchvision,
            albumentations and image processors of Hugging Face do.
        resolution: `"x2"`, `"x4"` (or `"high"`) and `"x8"` explain a copy of the model whose last strides are dilation,
            or that runs on shifted copies of the image, so that its maps are finer. `Explanation.original` is then what
            the model itself gives the target, and the class that is explained by default is the model's own.

    Returns:
        One `Explanation` for one method, a list for a sequence and for `"all"`.

    Raises:
        UnknownNameError: for a method, class, layer or score that does not exist.
        SpecError: if a fact about the model cannot be inferred.
        NotApplicableError: if a method is not defined for the model.
    """
    every = isinstance(methods, str) and methods.strip().lower() == "all"
    single = isinstance(methods, (str, Explainer)) and not every
    chosen = resolve(methods)
    if not chosen:
        raise NotApplicableError("explain: no method given; see `xattn list methods`.")
    model = unwrap(model)
    if isinstance(x, (str, Path)) and Path(x).expanduser().is_dir():
        options = {
            "score": score, "output": output, "bands": bands, "mean": mean, "std": std, "classes": classes,
            "size": size, "fit": fit, "window": window, "transform": transform, "resolution": resolution,
        }  # fmt: skip
        return _explain_folder(Path(x).expanduser(), model, methods, target, spec, seeds, options)
    x, others = split_inputs(x, inputs, model)
    if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point():
        x = x[None]
    if spec is None:
        spec = getattr(model, "spec", None)
    prepared: Preprocessing | None = None
    photographs: tuple[Any, ...] = ()
    if transform is not None and not _is_input(x):
        prepared = transformed(transform)
        if prepared.evidence.how == PROVED and window is None:  # so that pictures of them fit the maps
            photographs = tuple(listed(x))
        x = torch.stack([apply_transform(transform, image) for image in pictures(x, window=window)])
        x = x.to(place_of(model)[0])
    sides = None if size is None else sides_of(size)
    known = spec if isinstance(spec, ModelSpec) else None
    if known is None or not known.feature_layer:
        images = x if _is_input(x) else None
        layers = [m.layer for m in chosen if isinstance(m, LayerExplainer) and m.layer]
        spec = completed(known, lambda given: facts_about(
            model, images, layers, output=output, target=target, inputs=others, input_size=sides or given
        ))  # fmt: skip
    else:
        spec = known
    if known is not None and output is not None and not callable(output):
        spec = replace(spec, output=output if isinstance(output, tuple) else (output,))
    spec = spec.given(mean=mean, std=std, classes=classes, size=size)
    if prepared is not None:
        spec = prepared_by(spec, prepared, normalized=mean is None)
    if not _is_input(x):
        if spec.mean is None or spec.std is None:
            warnings.warn(
                f"{type(model).__name__} does not say how its images are normalized; they are passed as they are, from "
                "0 to 1. Pass mean= and std=, or transform=, if it was trained otherwise.",
                XattnWarning,
                stacklevel=3,
            )
            spec = spec.given(mean=0.0, std=1.0)
        photographs = () if window is not None else tuple(listed(x))
        x = to_batch(x, spec, fit=fit, window=window).to(place_of(model)[0])
    predicted = target is None
    target = as_target(target, spec)
    if isinstance(target, Similarity) and not isinstance(target.to, (Tensor, np.ndarray)):
        target = Similarity(to_batch(target.to, spec))
    if every:
        solid = isinstance(others, Volume)
        chosen = [m for m in chosen if applicable(m, spec) is None and (m.volumes or not solid)]
    for method in chosen:
        refuse(method, spec)
        refuse_volumes(method, others)
    whole: Trace | None = None
    if resolution != "low":
        whole = record_for(model, x, (), target, spec=spec, score=score, output=output, inputs=others, grad=False)
        model, spec, output = _finer(model, spec, whole, resolution, chosen, output)
        target = whole.target if predicted else target
    trace = record_for(model, x, chosen, target, spec=spec, score=score, seeds=seeds, output=output, inputs=others)
    drawn = tuple(drawn_bands(trace.x.shape[1], bands)) if bands else ()
    explanations = explain_trace(trace, chosen, skip=every)
    if whole is not None:
        original = probability_by(whole, trace)
        if differing := int((trace.logits.argmax(1) != whole.logits.argmax(1)).sum()):
            warnings.warn(
                f"resolution {resolution}: the finer copy of {type(model).__name__} names another class than the model "
                f"itself in {differing} of {len(trace.x)} images; see Explanation.original.",
                XattnWarning,
                stacklevel=3,
            )
        explanations = [replace(explanation, original=original) for explanation in explanations]
    if drawn:
        explanations = [replace(explanation, bands=drawn) for explanation in explanations]
    if photographs and not drawn:
        names = [Path(item).parent.name if isinstance(item, (str, Path)) else "" for item in photographs]
        labels = _labels([Path(name) for name in names], spec)
        how = fit if prepared is None else None
        explanations = [replace(e, photographs=photographs, fit=how, labels=labels) for e in explanations]
    return explanations[0] if single else explanations


def _explain_folder(
    folder: Path, model: Any, methods: Any, target: Any, spec: Any, seeds: Any, options: Mapping[str, Any]
) -> Any:
    """Explanations of all images in a folder and below it, a few at a time, without their inputs."""
    files, problems = find_images(folder)
    if not files:
        raise DataError(str(problems[0]))
    for name, values in (("target", target), ("seeds", seeds)):
        if isinstance(values, (Tensor, Sequence)) and not isinstance(values, str) and len(values) != len(files):
            raise ParameterError(f"{name}: {len(values)} do not fit the {len(files)} images of '{folder}'.")
    found: list[list[Explanation]] = []
    read: list[Path] = []
    single = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, len(files), _FOLDER_BATCH):
            some = list(range(len(files)))[start : start + _FOLDER_BATCH]

            def explained(some: Sequence[int], spec: ModelSpec | None) -> Any:
                paths, own = [files[i] for i in some], {"target": _some(target, some), "seeds": _some(seeds, some)}
                return explain(model, paths, methods, spec=spec, **own, **options)

            try:
                made = explained(some, spec)
            except DataError:  # only then is it asked which image cannot be read, so that each is decoded once
                if not (some := [i for i in some if _readable(files[i], options["window"])]):
                    continue
                made = explained(some, spec)
            single = isinstance(made, Explanation)
            some_made = [made] if isinstance(made, Explanation) else made
            found.append([replace(e, inputs=None) for e in some_made])  # memory does not grow with the images' pixels
            spec = some_made[0].spec  # what was found out holds for all
            read += [files[i] for i in some]
    if not found:
        raise DataError(f"{folder}: none of its {len(files)} images can be read.")
    told = {str(w.message) for w in caught if not issubclass(w.category, StatusWarning)}
    for text in sorted(told):
        warnings.warn(text, XattnWarning, stacklevel=4)
    explanations = [joined(some) for some in zip(*found, strict=True)]
    for e in explanations:
        if trouble := [i for i, status in enumerate(e.status) if status != OK]:
            warnings.warn(_told(e, trouble, str(read[trouble[0]])), StatusWarning, stacklevel=4)
    if explanations[0].spec is not None:
        below = places_of(read, [folder])
        labels = _labels([below[file] for file in read], explanations[0].spec)
        explanations = [replace(e, labels=labels) for e in explanations]
    return explanations[0] if single else explanations


def _some(values: Any, indices: Sequence[int]) -> Any:
    """What of a value for each image belongs to some of them; one value for all as it is."""
    if isinstance(values, Tensor) and values.ndim:
        return values[list(indices)]
    return [values[i] for i in indices] if isinstance(values, Sequence) and not isinstance(values, str) else values


def _readable(file: Path, window: Any) -> bool:
    """Whether an image can be read; one that cannot is told."""
    try:
        read_image(file, window=window)
    except DataError as error:
        warnings.warn(f"left out: {error}", XattnWarning, stacklevel=2)
        return False
    return True


def _labels(folders: Sequence[Path], spec: ModelSpec) -> tuple[str, ...]:
    """The classes that folders of photographs name; empty where none does."""
    indices = [class_of(folder, spec) for folder in folders]
    return (
        tuple("" if i is None else spec.class_name(i) for i in indices) if any(i is not None for i in indices) else ()
    )


def probability_by(whole: Trace, trace: Trace) -> Tensor | None:
    """What a network gives the target of a pass of its copy (N,).

    Args:
        whole: pass of the network on the same images.
        trace: pass of the copy.
    """
    return trace.goal.probability(whole.logits, trace.target, whole.spec.values)


def _finer(
    model: nn.Module, spec: ModelSpec, whole: Trace, resolution: str, methods: Sequence[Explainer], output: Which
) -> tuple[nn.Module, ModelSpec, Which]:
    """A copy of the model with finer maps, what is known of it, and which of its outputs is explained."""
    if not spec.feature_layer:
        raise NotApplicableError(
            f"resolution {resolution}: {type(model).__name__} has no feature map that could be made finer."
        )
    copy, known = finer(model, factor_of(resolution), spec=spec, x=whole.x[:1])
    if isinstance(copy, Classifier) and not isinstance(model, Classifier):  # taken apart, with its logits alone
        output = None
        for method in methods:
            if layer := getattr(method, "layer", None):
                raise NotApplicableError(
                    f"{method.name}: at resolution {resolution} {type(model).__name__} is explained by a copy that was "
                    f"taken apart, in which '{layer}' has no one map; leave the layer out, or the resolution."
                )
    return copy, known, output


def _is_input(x: Any) -> bool:
    """Whether images are given as a model takes them, not as pictures."""
    return isinstance(x, Tensor) and x.is_floating_point()
