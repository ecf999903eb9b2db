"""One door to all models: by registered name, torchvision or timm name, a factory of one's own, or a weights file."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from xattn.errors import CheckpointError, ParameterError, UnknownNameError, XattnWarning, unknown
from xattn.inspection import facts_about, infer_spec
from xattn.models import hugging_face, models, timm_models, torchvision_models
from xattn.models.checkpoint import WEIGHT_FILES, load_state, read_state, without_prefix
from xattn.models.converting import convert, with_room
from xattn.models.dilation import FACTORS, dilated
from xattn.models.header import Architecture, Resolution, is_file, read_header
from xattn.models.heads import Classifier, checked_options, create_head, heads
from xattn.models.named import import_named, is_factory, plain_name
from xattn.models.resolution import remove_strides, use_circular_padding
from xattn.models.trunk import cut, noise
from xattn.running import as_module
from xattn.schema import check_fields
from xattn.spec import ModelSpec, sides_of

_SMALL = 50_000_000  # weights of a network that any machine can hold


def create_model(
    name: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    head: str | None = None,
    parts: int = 3,
    resolution: Resolution = "low",
    circular: bool = False,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Create a classifier in evaluation mode, with the facts that explaining needs as `model.spec`.

    >>> model = create_model("tiny-cnn", head="brnpa", num_classes=10)
    >>> model.spec.attention_layer
    'head.attention'

    Args:
        name: a registered name (`tiny-brnpa`), a classifier of torchvision (`resnet50`) or timm
            (`timm/convnext_atto`), also as torch.hub calls it (`pytorch/vision:resnet50`), `hf/NAME` for a network of
            Hugging Face in the local cache, `hf/FOLDER` for one that `save_pretrained` wrote, `package.module:factory`
            for a model of one's own, or the `.safetensors` file of a training run, which names a network of xattn,
            torchvision or timm: a file does not choose what code is run.
        weights: `"DEFAULT"` or another name of published weights, which are downloaded where they are not in the
            cache; a file (safetensors, or a state dict of `torch.save`); None is random. The registered `tiny-*`
            networks come with their weights unless a head or a number of classes is given, and so do those of Hugging
            Face. The file of a training run with the factory `name` brings its head, parts and classes along.
        head: None keeps the model's own; `"linear"`, `"bcnn"` or `"brnpa"` replace all behind the feature map.
        parts: number of attention maps of the head.
        resolution: `"high"` removes the strides of the last two stages, as for training (arXiv:2106.02566); `"x2"`,
            `"x4"` and `"x8"` turn the last strides into dilation, which a trained network bears.
        circular: circular instead of zero padding.
        num_classes: number of logits; None is that of the weights.
        options: of the head, such as `{"refine": False}`, for ablations.
        input_size: height and width of the images, or the side of a square, where the model does not say it.

    Returns:
        A module from images (N, 3, H, W) to logits (N, K) with the attribute `spec`; with a head it is a
        `Classifier` and has `architecture`, the arguments of this function.

    Raises:
        UnknownNameError: if there is no such model; the nearest name is suggested.
        CheckpointError: if weights cannot be had or do not fit, or a file names a factory.
        NotApplicableError: if the model cannot take a head, a higher resolution or circular padding.
    """
    name = plain_name(os.fspath(name))
    if resolution not in get_args(Resolution):
        raise ParameterError(f"resolution must be one of {', '.join(get_args(Resolution))} but is '{resolution}'.")
    if head is not None:
        heads.get(head)
    asked = Architecture(name, head, parts, resolution, circular, num_classes, dict(options or {}))
    check_fields(asked, "create_model")
    if is_weights_file(name):
        if weights is not None:
            raise ParameterError(f"'{name}' has weights of its own; leave out weights={weights}.")
        return _from_file(name, asked)
    named = ":" in name or name.startswith(hugging_face.PREFIX)  # by a person, so that it may run
    if weights is not None and Path(weights).suffix == ".safetensors" and (named or is_file(Path(weights))):
        saved = read_header(weights).architecture
        if saved is not None and saved.backbone == name and (named or saved.converted):
            return _from_file(os.fspath(weights), asked, trusted=True)
    if name in models and _takes_head(factory := models.get(name)):
        if resolution in FACTORS and resolution not in ("low", "high"):
            return _finer(
                create_model(name, weights=weights, head=head, parts=parts, circular=circular, num_classes=num_classes,
                             options=options), resolution
            )  # fmt: skip
        given = asked.to_dict()
        given["num_classes"] = given.pop("classes")
        del given["backbone"]
        if weights is None or not _is_file(weights):
            return factory(weights=weights, **given).eval()
        own = factory(weights=None, **{**given, "num_classes": num_classes or _classes_in(weights)})
        fill(own, read_state(weights), str(weights), forgiving=True)
        return own.eval()
    sides = None if input_size is None else sides_of(input_size)
    return _assemble(asked, weights, sides)


def load_model(path: str | os.PathLike[str], factory: str | None = None) -> nn.Module:
    """Build the network that a weights file describes and load it, in float32 and in evaluation mode.

    Args:
        path: a file that `save_weights` wrote, for example `best.safetensors` of a training run.
        factory: `package.module:factory`, where the network of the file is made by one; it runs only if named here.

    Returns:
        The network; it has `spec` and `architecture`.

    Raises:
        FactoryError: if the file names a factory and `factory` is another one, or None.
        CheckpointError: if the file does not say which network it belongs to, or does not fit it.
    """
    path = os.fspath(path)
    return _from_file(path, Architecture(factory or path), trusted=factory is not None)


class FactoryError(CheckpointError):
    """A weights file that names a factory, which is run only if a person names it.

    Args:
        path: the file.
        factory: `package.module:factory`.
        command: what to write instead.
    """

    def __init__(self, path: str, factory: str, command: str = "") -> None:
        self.path, self.factory = path, factory
        command = command or f"--model {shlex.quote(factory)} --weights {shlex.quote(path)}"
        super().__init__(
            f"'{path}' is of a network made by '{factory}', and a file does not choose what code is run here; if you "
            f"trust that code, name it yourself: {command}"
        )


def is_weights_file(name: str | os.PathLike[str]) -> bool:
    """Whether the name of a model is that of a file, `runs/best.safetensors`, and no `package.module:factory`."""
    path = Path(name)
    return path.suffix.lower() in WEIGHT_FILES and ":" not in path.name


def _assemble(
    asked: Architecture,
    weights: str | os.PathLike[str] | None,
    size: tuple[int, int] | None = None,
    filled: bool = False,
) -> nn.Module:
    """A plain network by name, then its weights, resolution, padding and head, in this order; `filled` later."""
    name, head, classes = asked.backbone, asked.head, asked.classes
    state = read_state(weights) if weights is not None and _is_file(weights) else None
    published = os.fspath(weights) if weights is not None and state is None else None
    # A head brings a classifier of its own, so the network keeps the one that its weights have.
    base = _build(name, published, None if head or published else classes, filled=filled or state is not None)
    base.eval()
    spec = _spec_of(base, name, published, size)
    whole = state is not None and any(key.startswith("backbone.") for key in state)
    if state is not None and not whole:
        free = spec.classifier if head or classes else None
        fill(base, state, str(weights), free=free, silent=head is not None)
    if published and classes and not head:
        _replace_classifier(base, spec, classes)
    if asked.resolution == "high":
        remove_strides(base, **_features(spec))
    elif asked.resolution != "low":
        base = dilated(base, FACTORS[asked.resolution], **_features(spec))
    if asked.circular:
        use_circular_padding(base)
    count = classes or len(spec.classes) or (_logits(base, spec) if spec.classifier else None)
    if len(spec.classes) != (count or 0):
        spec = dataclasses.replace(spec, classes=())
    model = base
    if head is not None:
        if count is None:
            raise ParameterError(f"{name} has no classifier that tells the number of classes; pass num_classes.")
        trunk, channels = cut(base, spec.feature_layer, spec.input_size, spec.tokens)
        made = create_head(head, channels, count, parts=asked.parts, options=asked.options)
        model = Classifier(trunk, made, spec)
        if state is not None and whole:
            fill(model, state, str(weights), forgiving=True)
    else:
        model.spec = spec  # type: ignore[assignment]
        if state is not None and whole:
            raise CheckpointError(
                f"'{weights}' is of a network with a head; pass that head=…, or the file as the name of the model."
            )
    model.architecture = dataclasses.replace(asked, classes=count).to_dict()  # type: ignore[assignment]
    return model.eval()


def _from_file(path: str, asked: Architecture, *, trusted: bool = False) -> nn.Module:
    """The network that a weights file describes, or one that differs from it in some argument and has its weights.

    With `trusted` the person named `asked.backbone`, and it is taken if the file names the same.
    """
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(
            f"'{path}' does not say which network it belongs to; name the network and pass the file as its weights."
        )
    header = read_header(path)
    saved = header.architecture
    if saved is None:
        raise CheckpointError(
            f"'{path}' does not say which network it belongs to; create the model by name and load the tensors with "
            "xattn.models.checkpoint.load_state."
        )
    if not (trusted and saved.backbone == asked.backbone):
        _refuse_code(path, saved.backbone)
    same_head = asked.head in (None, saved.head)
    wanted = dataclasses.replace(
        saved,
        head=asked.head or saved.head,
        parts=asked.parts if asked.head else saved.parts,
        resolution=asked.resolution if asked.resolution != "low" else saved.resolution,
        circular=asked.circular or saved.circular,
        classes=asked.classes or saved.classes,
        options={**(saved.options if same_head else {}), **asked.options},
        converted=saved.converted and same_head,
    )
    if wanted.head is not None:
        checked_options(wanted.head, wanted.options)  # before anything is built
    changed = wanted != saved
    state = read_state(path)
    _refuse_giants(path, wanted, sum(t.numel() for t in state.values()))
    if wanted.converted:
        model = _converted(wanted, saved, state, path)
    else:
        # Which layers are dilated is found by running the network, so its weights come first.
        finer = wanted.resolution if wanted.resolution not in ("low", "high") else None
        model = _bare(dataclasses.replace(wanted, resolution="low") if finer else wanted)
        fill(model, state, path, forgiving=changed)
        model = _finer(model, finer) if finer else model
    if header.spec is not None and not changed:
        model.spec = _facts(model, header.spec, path)  # type: ignore[assignment]
    elif header.spec is not None and isinstance(model, Classifier) and not asked.classes:
        model.spec = _facts(model, header.spec, path)
    return model


def _bare(wanted: Architecture) -> nn.Module:
    """The network of an architecture, with weights that are still to be filled."""
    if wanted.backbone in models and _takes_head(models.get(wanted.backbone)):
        given = wanted.to_dict()
        return create_model(given.pop("backbone"), num_classes=given.pop("classes"), **given)
    return _assemble(wanted, None, filled=True)


def _features(spec: ModelSpec) -> dict[str, Any]:
    """Where the features of a network are and how they lie, for what makes them finer."""
    return {"feature_layer": spec.feature_layer, "input_size": spec.input_size, "tokens": spec.tokens}


def _finer(model: nn.Module, resolution: Resolution) -> nn.Module:
    """The same network with dilation in place of its last strides."""
    spec: ModelSpec = model.spec  # type: ignore[assignment]
    made = dilated(model, FACTORS[resolution], **_features(spec))
    made.architecture = {**model.architecture, "resolution": resolution}  # type: ignore[assignment, dict-item]
    return made


def _converted(wanted: Architecture, saved: Architecture, state: Mapping[str, Tensor], path: str) -> nn.Module:
    """The network that `xattn.convert` made and a file holds: built by name, converted again, filled."""
    if (wanted.parts, wanted.classes) != (saved.parts, saved.classes):
        raise ParameterError(
            f"'{path}' is a converted network of {saved.parts} parts and {saved.classes} classes; for others convert "
            f"{saved.backbone} again."
        )
    base = _bare(Architecture(wanted.backbone, circular=wanted.circular, classes=wanted.classes))
    own = base.state_dict()
    inner = state if isinstance(base, Classifier) else {key.removeprefix("backbone."): t for key, t in state.items()}
    base.load_state_dict({k: t for k, t in inner.items() if k in own and own[k].shape == t.shape}, strict=False)
    made = convert(
        base, head=wanted.head or "brnpa", parts=wanted.parts, resolution=wanted.resolution, weighting=wanted.weighting
    )
    model = with_room(made, state)
    fill(model, state, path)
    return model


def _refuse_code(path: str, backbone: str) -> None:
    """Let a file name networks that are registered or a library's own, and nothing else that could be imported."""
    if backbone in models or backbone in torchvision_models.names() or timm_models.knows(backbone):
        return
    if is_factory(backbone) or backbone.startswith(hugging_face.PREFIX):
        raise FactoryError(path, backbone)
    names = [*models.names(), *torchvision_models.names(), *timm_models.names()]
    raise CheckpointError(f"'{path}': {unknown('network', backbone, names)}")


def _refuse_giants(path: str, wanted: Architecture, held: int) -> None:
    """Build no network that is far larger than its file: a trunk without its classifier has a 25th at the least."""
    name = wanted.backbone
    if name in models or ":" in name or name.startswith(hugging_face.PREFIX):
        return
    library = timm_models if name.startswith(timm_models.PREFIX) else torchvision_models
    number = library.count_parameters(name) + (0 if wanted.head else 4096 * (wanted.classes or 0))
    if number > 32 * held + _SMALL:
        raise CheckpointError(f"'{path}': {name} has {number:,} weights but the file holds {held:,}.")


def _facts(model: nn.Module, written: ModelSpec, path: str) -> ModelSpec:
    """Facts from a file, if the layers that they name exist and the channels are those of the network."""
    channels = noise(model, (1, 1)).shape[1]
    if written.mean is not None and len(written.mean) != channels:
        raise CheckpointError(f"'{path}': mean has {len(written.mean)} channels but the network reads {channels}.")
    if isinstance(model, Classifier):
        return model.facts_of(written)
    layers = dict(model.named_modules())
    named = (written.feature_layer, written.classifier, written.attention_layer, *written.probability_layers)
    for layer in named:
        if layer is not None and layer not in layers:
            raise CheckpointError(f"'{path}': {unknown('layer', layer, [name for name in layers if name])}")
    return written


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    free: str | None = None,
    forgiving: bool = False,
    silent: bool = False,
) -> None:
    """Load tensors into a model; all must fit, but the classifier may be another one.

    Args:
        model: changed in place.
        state: tensors by name.
        source: where they come from, for messages.
        free: a layer whose tensors stay as they are where the given ones do not fit.
        forgiving: the head of a `Classifier` is such a layer.
        silent: do not warn about it.
    """
    own = model.state_dict()
    state = without_prefix(state, own, source)
    if isinstance(model, Classifier) and forgiving:
        free = "head"
        if not any(key.startswith("backbone.") for key in state):
            state = {f"backbone.{key}": tensor for key, tensor in state.items()}
    if free is not None:
        inside = [key for key in {**own, **state} if key.startswith(f"{free}.")]
        if any(key not in own or key not in state or own[key].shape != state[key].shape for key in inside):
            if not silent:
                warnings.warn(
                    f"'{source}' is of another '{free}', which starts from random.", XattnWarning, stacklevel=2
                )
            state = {key: tensor for key, tensor in state.items() if key not in inside}
            state.update((key, own[key]) for key in inside if key in own)
    load_state(model, state, source)


def _is_file(weights: str | os.PathLike[str]) -> bool:
    path = Path(weights)
    return not isinstance(weights, str) or path.suffix.lower() in WEIGHT_FILES or len(path.parts) > 1 or is_file(path)


def _classes_in(path: str | os.PathLike[str]) -> int | None:
    """Number of logits of a network that was saved with its header."""
    if Path(path).suffix != ".safetensors":
        return None
    saved = read_header(path).architecture
    return saved.classes if saved else None


def _takes_head(factory: Callable[..., Any]) -> bool:
    """Whether a registered factory takes all options of `create_model`, and not a plain network to build on."""
    parameters = inspect.signature(factory).parameters.values()
    return any(p.name == "head" or p.kind is p.VAR_KEYWORD for p in parameters)


def _build(name: str, published: str | None, classes: int | None, filled: bool = False) -> nn.Module:
    """A plain network by name, with published weights or random ones, which may be filled with others then."""
    if name.startswith(hugging_face.PREFIX):
        if published not in (None, "DEFAULT"):
            raise CheckpointError(f"{name}: weights must be DEFAULT or a file but is '{published}'.")
        model = hugging_face.build(name, weights=not filled, download=published is not None)
        if classes is not None:
            _replace_classifier(model, _spec_of(model, name, None), classes)
        return model
    if name.startswith(timm_models.PREFIX):
        if published not in (None, "DEFAULT"):
            raise CheckpointError(f"{name}: weights must be DEFAULT or a file but is '{published}'.")
        return timm_models.build(name, published is not None, classes)
    if ":" in name or name in models:
        factory = models.get(name) if name in models else _import(name)
        options: dict[str, Any] = {}
        known = inspect.signature(factory).parameters
        if name in models and "pretrained" in known:  # comes with its weights
            options["pretrained"] = not filled
            published = None if published == "DEFAULT" else published
        if published is not None:
            raise CheckpointError(f"{name}: weights must be a file but is '{published}', and there is no such file.")
        takes = classes is not None and "num_classes" in known
        if takes:
            options["num_classes"] = classes
        try:
            model = factory(**options)
        except SystemExit as error:
            raise ParameterError(f"{name} left the program ({error}) instead of returning a torch.nn.Module.") from None
        if not callable(model) or isinstance(model, type):
            raise ParameterError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module.")
        if classes is not None and not takes:
            _replace_classifier(model, _spec_of(model, name, None), classes)
        return as_module(model)
    if (Path(name) / "config.json").is_file():
        raise ParameterError(
            f"'{name}' is a folder of Hugging Face; its name as a model is {hugging_face.PREFIX}{name}"
        )
    if name not in torchvision_models.names():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            hub = hugging_face.PREFIX + name
            raise UnknownNameError(f"unknown model '{name}'. As a network of Hugging Face it is {hub}.")
        raise unknown("model", name, [*models.names(), *torchvision_models.names(), *timm_models.names()])
    return torchvision_models.build(name, published, classes)


def _import(name: str) -> Callable[..., Any]:
    """The factory called `package.module:factory`."""
    return import_named(name, "model", "factory", "a function that returns a torch.nn.Module")


def _spec_of(model: nn.Module, name: str, published: str | None, given: tuple[int, int] | None = None) -> ModelSpec:
    """The model's own spec, or the facts found by running it and those published with torchvision's weights."""
    if isinstance(own := getattr(model, "spec", None), ModelSpec):
        return own.given(size=given)
    if name in torchvision_models.names():
        size, crop, interpolation = torchvision_models.preprocessing(name, published)
        spec = infer_spec(model, input_size=given or size, name=name)
        return dataclasses.replace(spec, crop=crop, interpolation=interpolation)
    return dataclasses.replace(facts_about(model, input_size=given), name=name)


def _classifier_of(model: nn.Module, spec: ModelSpec) -> nn.Linear | nn.Conv2d:
    layer = model.get_submodule(spec.classifier) if spec.classifier else None
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise ParameterError(
            f"{type(model).__name__}: the layer that gives the logits was not found; leave out num_classes, or "
            "pass it with a head."
        )
    return layer


def _logits(model: nn.Module, spec: ModelSpec) -> int:
    """Number of logits K."""
    layer = _classifier_of(model, spec)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _replace_classifier(model: nn.Module, spec: ModelSpec, classes: int) -> None:
    """Put a new classifier with another number of logits in the place of the old one."""
    old = _classifier_of(model, spec)
    bias = old.bias is not None
    new = (
        nn.Linear(old.in_features, classes, bias=bias)
        if isinstance(old, nn.Linear)
        else nn.Conv2d(old.in_channels, classes, 1, bias=bias)
    )
    parent, _, child = str(spec.classifier).rpartition(".")
    setattr(model.get_submodule(parent), child, new.to(old.weight.device, old.weight.dtype))
