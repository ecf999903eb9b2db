"""Facts about an unknown model, found by running it once on a small probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.attention_taps import PROBABILITIES, AttentionTaps
from xattn.errors import NotApplicableError, SpecError, XattnError
from xattn.spec import ModelSpec, TokenGrid
from xattn.trace import evaluating, logits_of, place_of, record, unwrap

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What follows the features in a classifier without changing what they are.
_AFTER_FEATURES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
# Where the attention of a transformer block still depends on all tokens: its first norm.
_FIRST_NORMS = ("norm1", "ln_1", "layernorm_before", "norm_1", "ln1")


@dataclass(eq=False)
class Call:
    """One call of a submodule during the probe, in the order in which the calls ended."""

    name: str
    module: nn.Module
    output: Tensor
    started: int


@dataclass
class Probe:
    """What the probe saw."""

    x: Tensor
    logits: Tensor
    calls: list[Call] = field(default_factory=list)
    attention: list[tuple[str, torch.Size]] = field(default_factory=list)
    """Where attention ran, by the innermost module, and the shape of its probabilities."""

    def spatial(self) -> list[Call]:
        """Calls whose output is a feature map of more than one cell."""
        return [c for c in self.calls if c.output.ndim == 4 and c.output.shape[-1] * c.output.shape[-2] > 1]


def probe(model: nn.Module, size: tuple[int, int]) -> Probe:
    """Run the model once on seeded noise of one image (1, C, *size) and record what each submodule gives."""
    model = unwrap(model)
    device, dtype = place_of(model)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    x = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    calls: list[Call] = []
    attention: list[tuple[str, torch.Size]] = []
    clock = 0
    starts: dict[str, int] = {}
    handles = []

    def before(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: Any) -> None:
            nonlocal clock
            clock += 1
            starts[name] = clock

        return hook

    def after(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(tensor, Tensor):
                calls.append(Call(name, module, tensor, starts[name]))

        return hook

    def see(name: str, kind: str, tensor: Tensor) -> Tensor:
        if kind == PROBABILITIES:
            attention.append((name, tensor.shape))
        return tensor

    modules = {name: module for name, module in model.named_modules() if name}
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after(name)))
        taps = AttentionTaps(modules if _mixes_tokens(modules.values()) else {}, see)
        with evaluating(model), torch.inference_mode(False), torch.no_grad(), taps:
            logits = logits_of(model(x), model)
    finally:
        for handle in handles:
            handle.remove()
    return Probe(x, logits, calls, attention)


def _mixes_tokens(modules: Iterable[nn.Module]) -> bool:
    """Whether there may be self-attention to look for: convolutional networks are spared the search."""
    return any(isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)) for module in modules)


def _origin(model: nn.Module) -> str:
    return type(model).__module__.split(".")[0]


def _candidate_sizes(model: nn.Module, given: tuple[int, int] | None) -> list[tuple[int, int]]:
    if given is not None:
        return [given]
    embedded = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm, also where it was overridden
    if isinstance(embedded, tuple):
        return [(embedded[0], embedded[1])]
    config = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(config, dict) and config.get("input_size"):
        return [(config["input_size"][1], config["input_size"][2])]
    size = getattr(model, "image_size", None)  # torchvision's vision transformers
    if isinstance(size, int):
        return [(size, size)]
    return [(224, 224), (299, 299), (64, 64), (32, 32)]


def _classifier(seen: Probe) -> Call | None:
    """The last linear layer or 1x1 convolution with one output per class."""
    classes = seen.logits.shape[1]
    for call in reversed(seen.calls):
        module = call.module
        if isinstance(module, nn.Linear) and module.out_features == classes and call.output.numel() == classes:
            return call
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == classes:
            return call
    return None


def _channels_last(call: Call, classifier: Call | None) -> bool:
    """Whether a 4-D output is (N, h, w, C), as in Swin, rather than (N, C, h, w)."""
    shape = call.output.shape
    if isinstance(call.module, nn.LayerNorm):
        return tuple(call.module.normalized_shape) == (shape[-1],)
    width = getattr(classifier.module, "in_features", None) if classifier is not None else None
    return width is not None and shape[-1] == width != shape[1]


def _tokens(seen: Probe) -> tuple[str, TokenGrid] | None:
    """For a network whose last layers work on tokens (N, T, C): the layer to read, and how its tokens lie."""
    norms = [c for c in seen.calls if isinstance(c.module, nn.LayerNorm) and c.output.ndim == 3]
    strided = [c for c in seen.calls if isinstance(c.module, nn.Conv2d) and c.module.stride[0] > 1]
    patches = next((c for c in reversed(strided) if norms and c.started < norms[0].started), None)
    if not norms or patches is None:
        return None
    h, w = patches.output.shape[-2:]
    grid = [c for c in norms if c.output.shape[1] >= h * w]
    if not grid:
        return None
    first = [c for c in grid if c.name.rpartition(".")[2] in _FIRST_NORMS]
    # Behind the last block's attention only the class token matters, so its gradient elsewhere would be zero.
    chosen = first[-1] if first else grid[max(len(grid) - 3, 0)]
    size = seen.x.shape[-2:]
    return chosen.name, TokenGrid(patch=(size[0] // h, size[1] // w), prefix=chosen.output.shape[1] - h * w)


def _attention(seen: Probe, tokens: TokenGrid) -> tuple[str, ...]:
    """Modules that mix all tokens by attention, in order; empty if some attention sees other tokens, as in windows."""
    h, w = (side // patch for side, patch in zip(seen.x.shape[-2:], tokens.patch, strict=True))
    count = h * w + tokens.prefix
    square = [(name, shape) for name, shape in seen.attention if len(shape) == 4 and shape[2] == shape[3]]
    if tokens.channels_last or any(shape[0] != 1 or shape[2] != count for _, shape in square):
        return ()
    mixers = {call.name for call in seen.calls if call.output.ndim == 3 and count in call.output.shape[:2]}
    names = []
    for name, _ in square:
        while name and name not in mixers:  # a softmax of its own is inside of what turns tokens into tokens
            name = name.rpartition(".")[0]
        names.append(name)
    return tuple(names) if len(set(names)) == len(names) and "" not in names else ()


def _class_tokens(model: nn.Module, seen: Probe, tokens: TokenGrid) -> int:
    """How many of the prefix tokens the classifier reads: those that its gradient reaches, unless it reaches the grid.

    Found on the last layer that still gives all tokens; as many as is usual where that cannot be told.
    """
    usual = min(tokens.prefix, 1)
    h, w = (side // patch for side, patch in zip(seen.x.shape[-2:], tokens.patch, strict=True))
    last = [c.name for c in seen.calls if c.output.ndim == 3 and c.output.shape[1] == h * w + tokens.prefix]
    if not tokens.prefix or not last:
        return usual
    spec = ModelSpec(feature_layer=last[-1])
    try:
        # All logits at once, so that no class has to be chosen.
        found = record(model, seen.x, spec=spec, layers=(last[-1],), score=lambda logits, _: logits.square().sum(1))
        reached = found.gradient(last[-1])[0].abs().sum(dim=-1) > 0
    except NotApplicableError:
        return usual
    if bool(reached[tokens.prefix :].any()) or not bool(reached.any()):
        return 0 if bool(reached.any()) else usual
    return int(reached.nonzero().max()) + 1


def _feature_layer(seen: Probe, classifier: Call | None) -> Call | None:
    """The last submodule with a spatial output before the classifier, as the outermost name for it."""
    limit = classifier.started if classifier is not None else float("inf")
    before = [c for c in seen.calls if c.started < limit and c.output.ndim == 4]
    ended = [c for c in before if classifier is None or seen.calls.index(c) < seen.calls.index(classifier)]
    cells = [c for c in ended if c.output.shape[1:3].numel() > 1 and c.output.shape[2:].numel() > 1]
    features = [c for c in cells if not isinstance(c.module, _AFTER_FEATURES) and "pool" not in _short(c).lower()]
    if not features:
        return None
    last = features[-1].output
    same = [c for c in features if c.output.data_ptr() == last.data_ptr() and c.output.shape == last.shape]
    return min(reversed(same), key=lambda c: c.name.count("."))  # the later of two: an in-place ReLU, not its input


def _short(call: Call) -> str:
    """Class name where it tells a global pooling layer of timm from a max pool inside the features."""
    name = type(call.module).__name__
    return name if "Adaptive" in name or "Global" in name else ""


def _class_names(model: nn.Module, count: int) -> tuple[str, ...]:
    names = getattr(model, "classes", None) or getattr(model, "class_names", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count:
        return tuple(map(str, names))
    if count == 1000 and _origin(model) in ("torchvision", "timm"):
        try:
            from torchvision.models._meta import _IMAGENET_CATEGORIES
        except ImportError:
            return ()
        return tuple(_IMAGENET_CATEGORIES)
    return ()


def infer_spec(
    model: nn.Module,
    *,
    input_size: tuple[int, int] | None = None,
    feature_layer: str | None = None,
    name: str = "",
) -> ModelSpec:
    """Find the facts about any torchvision or timm classifier, or any module that ends in logits (N, K).

    The model runs once, in evaluation mode, on one image of noise. Mean and standard deviation are those of ImageNet
    for torchvision, those of its configuration for timm, and unknown (None) for other models.

    Args:
        model: the classifier; it leaves as it came.
        input_size: height and width of the probe; None tries what the model says, then 224, 299, 64 and 32 pixels.
        feature_layer: the layer to read, if it is known.
        name: for tables; the class name by default.

    Raises:
        SpecError: naming the `ModelSpec` field to pass, if the model does not run or has no spatial layer.
    """
    model = unwrap(model)
    sizes = _candidate_sizes(model, input_size)
    seen, failure = None, None
    for size in sizes:
        try:
            seen = probe(model, size)
            break
        except XattnError:
            raise
        except Exception as error:  # whatever a foreign forward pass raises
            failure = failure or error
    if seen is None:
        tried = ", ".join(f"{h}x{w}" for h, w in sizes)
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise SpecError(
            f"{type(model).__name__} does not run on an image of {tried} pixels ({reason}); "
            "pass ModelSpec(input_size=…)."
        )
    classifier = _classifier(seen)
    tokens: TokenGrid | None = None
    if feature_layer is not None:
        layer: str | None = feature_layer
        call = next((c for c in seen.calls if c.name == feature_layer), None)
        if call is not None and call.output.ndim == 3 and (folded := _tokens(seen)):
            tokens = folded[1]
    else:
        call = _feature_layer(seen, classifier)
        sequence = _tokens(seen)
        if sequence is not None and (call is None or _stops_early(seen, call)):
            layer, tokens = sequence
        elif call is not None:
            layer = call.name
        else:
            layer = None
    if layer is None:
        vectors = [c.name for c in seen.calls if c.output.ndim >= 2][-6:]
        raise SpecError(
            f"{type(model).__name__} has no layer with a spatial output (N, C, h, w), so there is nothing to map; "
            f"pass ModelSpec(feature_layer=…) if one of these is: {', '.join(vectors) or 'none'}."
        )
    if tokens is None and call is not None and call.output.ndim == 4 and _channels_last(call, classifier):
        rows, columns = call.output.shape[1:3]
        patch = (seen.x.shape[-2] // rows, seen.x.shape[-1] // columns)
        tokens = TokenGrid(patch=patch, channels_last=True)
    attention = _attention(seen, tokens) if tokens is not None else ()
    if tokens is not None and attention:
        tokens = replace(tokens, class_tokens=_class_tokens(model, seen, tokens))
    mean, std, crop, interpolation = _normalization(model)
    return ModelSpec(
        feature_layer=layer,
        classifier=classifier.name if classifier is not None else None,
        probability_layers=attention,
        tokens=tokens,
        input_size=(seen.x.shape[-2], seen.x.shape[-1]),
        mean=mean,
        std=std,
        classes=_class_names(model, seen.logits.shape[1]),
        crop=crop,
        interpolation=interpolation,
        name=name or type(model).__name__.lower(),
    )


def _stops_early(seen: Probe, call: Call) -> bool:
    """Whether the last feature map comes before the token layers, as the patch embedding does."""
    last_norm = max(i for i, c in enumerate(seen.calls) if isinstance(c.module, nn.LayerNorm) and c.output.ndim == 3)
    return seen.calls.index(call) < last_norm


def _normalization(
    model: nn.Module,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, float, str]:
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("mean"):
        return (
            tuple(config["mean"]),
            tuple(config["std"]),
            float(config.get("crop_pct") or 0.875),
            str(config.get("interpolation") or "bilinear"),
        )
    if _origin(model) == "torchvision":
        return IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear"
    return None, None, 0.875, "bilinear"
