"""One recorded pass through a model, from which every method that reads named layers takes what it needs."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xattn.attention_taps import attention_of
from xattn.device import on_cpu_by_default
from xattn.errors import DataError, NotApplicableError, ParameterError, ShapeError, SpecError, unknown
from xattn.functional.baselines import Baseline, Replace
from xattn.inputs import Inputs, Name, Volume, feed, split_inputs
from xattn.outputs import Which
from xattn.running import check_loaded, evaluating, refused_images, unwrap
from xattn.score import ScoreFn, apply_score, probabilities
from xattn.spec import BY_FUNCTION, ModelSpec
from xattn.taps import INPUT as INPUT
from xattn.taps import Taps
from xattn.targets import Class, Target, as_target, logits_of

T = TypeVar("T")
SCORES_ALONE = "Use a method that needs scores alone: occlusion, rise, lime or kernel-shap."


def promote(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of the first parameter or buffer; CPU and float32 where there is none."""
    weight = _weight(model)
    return (torch.device("cpu"), torch.float32) if weight is None else (weight.device, weight.dtype)


def _weight(model: nn.Module) -> Tensor | None:
    """The first floating parameter, or else buffer."""
    return next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)


class Trace:
    """What one forward pass left behind: inputs, logits, and the outputs of the tapped layers.

    Made by `record`. No hook is left on the model once a trace exists. The one backward pass for all tapped layers
    runs at the first request for a gradient.

    Attributes:
        model: the module itself, out of any `torch.compile` wrapper.
        spec: facts about it.
        x: images (N, C, H, W) in the model's normalized space.
        logits: (N, K), detached; what the target reads of the outputs.
        target: int64 (N,), the class explained, or the number of the image where the goal is none.
        goal: what is explained.
        which: the output that was named for this pass; None is that of the spec.
        inputs: the other inputs of the model, held fixed.
        forwards: forward passes that this trace and its reruns made.
        backwards: backward passes likewise.
        training: a part of the model stayed in training mode while it ran.
        calls: how often the layers that were tapped ran.
        uncut: gradients go through the `no_grad`, `inference_mode` or `detach()` inside the model that cut them off.
        scoring: a cheaper form of the model that `predict` and `score` run in its place; None is the model itself.
        scorer: a copy of the model that was fine-tuned to images that lack cells, for metrics that score with it; set
            by whoever measures.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        x: Tensor,
        target: Tensor,
        logits: Tensor,
        score: ScoreFn,
        scores: Tensor | None,
        kept: dict[str, Tensor],
        seeds: Sequence[int] | None,
        scoring: nn.Module | None,
        goal: Target,
        which: Which,
        inputs: Inputs | None,
    ) -> None:
        self.model = model
        self.spec = spec
        self.x = x
        self.target = target
        self.logits = logits
        self.score_fn = score
        self.scoring = scoring
        self.goal = goal
        self.which = which
        self.scorer: nn.Module | None = None
        self.uncut = False
        self.training = False
        self.calls: dict[str, int] = {}
        self.inputs = inputs
        self.forwards = 1
        self.backwards = 0
        self._scores = scores
        self._kept = kept
        self._gradients: dict[str, Tensor] | None = None
        self._seeds = seeds
        self._made: dict[Hashable, Any] = {}
        self._parent: Trace | None = None  # of a pass recorded again
        self._rows: Tensor | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def extent(self) -> tuple[int, ...]:
        """Height and width, of volumes depth, height and width."""
        return self.input_size if self.inputs is None else self.inputs.extent(self.input_size)

    def unfolded(self, tensor: Tensor, layers: Iterable[str] = ()) -> Tensor:
        """Maps or images (N, C, h, w) as they are; of volumes (N, C, d, h, w), by the depth of what has that grid.

        Args:
            tensor: on the grid of the input, or of one of the layers.
            layers: that were tapped.
        """
        if not isinstance(self.inputs, Volume):
            return tensor
        shapes = [self._kept[layer].shape for layer in layers if layer in self._kept]
        return self.inputs.unfolded(tensor, shapes, self.extent)

    @property
    def opposite(self) -> Tensor:
        """Where class 0 of a model with one output is explained, whose logit is -z: bool (N,)."""
        return (self.target == 0) & (self.goal.by_class and self.logits.shape[1] == 1)

    @property
    def probabilities(self) -> Tensor:
        """Probabilities (N, K) of the classes, (N, 2) of a binary model."""
        return probabilities(self.logits, self.spec.values)

    def named(self, score: str) -> ScoreFn:
        """The score of that name, of what is explained here."""
        return self.goal.scorer(score, self.spec.values)

    def read(self, output: Any, images: int, model: nn.Module | None = None) -> Tensor:
        """What the target reads (M, K) of what the model returned for that number of images."""
        model = self.model if model is None else model
        return promote(self.goal.read(output, model, images, self.spec.output if self.which is None else self.which))

    def _tapped(self, layer: str) -> Tensor:
        try:
            return self._kept[layer]
        except KeyError:
            raise unknown("recorded layer", layer, list(self._kept)) from None

    def _grid(self, layer: str, tensor: Tensor) -> Tensor:
        tensor = tensor if self.inputs is None else self.inputs.laid(tensor, len(self.x))
        tokens = None if layer == INPUT or attention_of(layer) else self.spec.layout(layer)
        return tokens.fold(tensor, self.input_size) if tokens is not None and tokens.folds(tensor) else tensor

    def dtype(self, layer: str) -> torch.dtype:
        """The dtype in which the model gave the output of a tapped layer: how exact a sum over it can be.

        Raises:
            UnknownNameError: if the layer was not tapped.
        """
        return self._tapped(layer).dtype

    def shape(self, layer: str) -> tuple[int, ...]:
        """Shape of what a tapped layer gave for one image, as the model gave it; of a volume as an image has it.

        Raises:
            UnknownNameError: if the layer was not tapped.
        """
        _, *shape = self._tapped(layer).shape
        solid = isinstance(self.inputs, Volume) and len(shape) == 4
        return (shape[0], shape[1] * shape[2], shape[3]) if solid else tuple(shape)

    def activation(self, layer: str) -> Tensor:
        """Output (N, C, h, w) of a tapped layer, detached, at least float32; tokens are folded to their grid.

        Scores and probabilities of attention are (N, heads, T, T).

        Raises:
            UnknownNameError: if the layer was not tapped.
        """
        return self._grid(layer, promote(self._tapped(layer).detach()))

    def gradient(self, layer: str) -> Tensor:
        """Gradient (N, C, h, w) of the score by the output of a tapped layer.

        The first call runs the one backward pass for all tapped layers, and only as deep as they are.

        Raises:
            UnknownNameError: if the layer was not tapped.
            NotApplicableError: if the score does not depend on the layer, or the pass was recorded without a graph.
        """
        self._tapped(layer)
        if self._gradients is None:
            self._gradients = self._backward()
        if layer not in self._gradients and not self.uncut:
            again = self.again(layers=list(self._kept), uncut=True)
            if through := {name: g for name, g in again._backward().items() if name not in self._gradients}:
                self.uncut = True
                self._gradients |= through
        if layer not in self._gradients:
            what = "its input" if layer == INPUT else f"layer '{layer}'"
            raise NotApplicableError(
                f"{type(self.model).__name__}: the score does not depend on {what} through operations that autograd "
                f"can follow (integers, arrays and quantized layers are none). {SCORES_ALONE}"
            )
        return self._grid(layer, promote(self._gradients[layer]))

    @on_cpu_by_default()
    def _backward(self) -> dict[str, Tensor]:
        if self._scores is None:
            raise NotApplicableError("gradient: the pass was recorded with grad=False; record it with grad=True.")
        if not self._scores.requires_grad:
            return {}
        with torch.inference_mode(False):
            # Images do not interact in evaluation mode, so the gradient of the sum is each image's own.
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                self._scores.sum(), list(self._kept.values()), allow_unused=True
            )
        self.count(backwards=1)
        self._scores = self._scores.detach()  # frees the graph
        self._kept = {layer: tensor.detach() for layer, tensor in self._kept.items()}
        return {layer: grad for layer, grad in zip(self._kept, grads, strict=True) if grad is not None}

    def feed(self, model: nn.Module, x: Tensor, rows: Tensor | None = None) -> Any:
        """What a model returns for images (M, C, H, W) beside the other inputs of the images `rows` (M,)."""
        inputs = self.inputs if rows is None or self.inputs is None else self.inputs.select(rows)
        return feed(model, _as_model_input(model, x), inputs)

    @on_cpu_by_default()
    def predict(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (M, K) of other images (M, C, H, W), without a graph; for methods and metrics of many passes.

        `rows` are the images of this pass that each is made from (M,); None is one of each, in order.
        """
        self.count(forwards=1)
        model = self.model if self.scoring is None else self.scoring
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            return self.read(self.feed(model, x, rows), len(x), model)

    def score(self, x: Tensor, target: Tensor, score: ScoreFn | None = None, rows: Tensor | None = None) -> Tensor:
        """Score (M,) of other images (M, C, H, W), made from the images `rows` of this pass, without a graph.

        `score` stands in for the score that is explained, where a metric measures another.
        """
        logits = self.predict(x, rows)
        with torch.inference_mode(False), torch.no_grad():
            return apply_score(self.score_fn if score is None else score, logits, target)

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Count passes that a method runs by itself; those of a trace recorded again count in the first one too."""
        self.forwards += forwards
        self.backwards += backwards
        if self._parent is not None:
            self._parent.count(forwards, backwards)

    def again(
        self,
        x: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        target: Tensor | None = None,
        model: nn.Module | None = None,
        spec: ModelSpec | None = None,
        layers: Sequence[str] = (),
        grad: bool = True,
        score: ScoreFn | None = None,
        seeds: Sequence[int] | None = None,
        uncut: bool = False,
    ) -> Trace:
        """Record again with something changed; what is None stays as it was, and all passes count here too.

        Random numbers stay those of the image, so that they do not count as a change.

        Args:
            x: other images (M, C, H, W).
            rows: the image of this trace that each of `x` is made from (M,); None is one of each, in order.
            target: other classes (M,); None is that of the image it is made from.
            model: another model; it is scored as it is, without `scoring`.
            spec: other facts.
            layers: names of the layers to tap.
            grad: keep the graph.
            score: another scalar.
            seeds: other random numbers, one for each image.
            uncut: as in `record`; also where that was found to be needed.
        """
        if target is None:
            target = self.target if rows is None else self.target.index_select(0, rows)
        result = record(
            self.model if model is None else model,
            self.x if x is None else x,
            target,
            spec=self.spec if spec is None else spec,
            layers=layers,
            grad=grad,
            score=self.score_fn if score is None else score,
            seeds=seeds,
            scoring=self.scoring if model is None else None,
            output=self.which,
            goal=self.goal,
            uncut=uncut or self.uncut,
            inputs=self.inputs if rows is None or self.inputs is None else self.inputs.select(rows),
        )
        result._parent, result._rows = self, rows
        self.count(result.forwards)
        return result

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made at the first request for `key` and kept as long as the trace lives."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def replacement(self, baseline: Baseline) -> Replace:
        """A baseline bound to the images of the pass; all metrics and methods share it."""
        spec = self.spec
        return self.once(
            ("baseline", baseline),
            lambda: baseline.prepare(self.x, spec.mean, spec.std, lambda i: self.generator(i, repr(baseline))),
        )

    def seed(self, i: int) -> int:
        """The number that the random numbers of image `i` start from: the one given, or one made of the image."""
        if self._seeds is not None:
            return int(self._seeds[i])
        if self._parent is not None:
            return self._parent.seed(i if self._rows is None else int(self._rows[i]))
        return zlib.crc32(self.x[i].float().contiguous().cpu().numpy().tobytes())  # the same image, the same numbers

    def generator(self, i: int, method: str) -> torch.Generator:
        """Random numbers (on the CPU) for image `i` and a method: they depend on these alone, never on the batch."""
        digest = hashlib.blake2b(f"{self.seed(i)}/{method}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _as_model_input(model: nn.Module, x: Tensor) -> Tensor:
    weight = _weight(model)
    if weight is None:
        return x  # a function, or a program whose weights are constants
    device, dtype = weight.device, weight.dtype
    if x.device != device:
        raise ParameterError(f"x is on {x.device} but {type(model).__name__} is on {device}; move one of them.")
    return x if torch.is_autocast_enabled(device.type) else x.to(dtype)


def _prepared(goal: Target, model: nn.Module, which: Which, inputs: Inputs | None) -> Target:
    """The target once it has run the model on what it needs of its own, such as an image to compare with."""

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            images = images.to(place_of(model)[0])
            returned = feed(model, _as_model_input(model, images), inputs)
            return promote(logits_of(returned, model, len(images), which))

    return goal.prepare(run)


@on_cpu_by_default()
def record(
    model: nn.Module,
    x: Tensor,
    target: Any = None,
    *,
    spec: ModelSpec,
    layers: Sequence[str] = (),
    grad: bool = True,
    score: str | ScoreFn = "logit",
    seeds: Sequence[int] | None = None,
    scoring: nn.Module | None = None,
    output: Which = None,
    inputs: Inputs | Name | None = None,
    goal: Target | None = None,
    uncut: bool = False,
) -> Trace:
    """Run the model once on `x` and keep the outputs of the named layers.

    The model runs in evaluation mode and leaves as it came: hooks, modes, `requires_grad`, `.grad` and weights, also
    after an exception. With `grad`, autograd records only what follows the first tapped layer, so frozen weights,
    an enclosing `no_grad` and `inference_mode` make no difference.

    Args:
        model: any module from images to logits (N, K); compiled modules are unwrapped.
        x: images (N, C, H, W) in the model's normalized space.
        target: class of each image (N,), one class for all (index or name), a target of `xattn.targets`, a function of
            the raw outputs, or None for the predicted class.
        spec: facts about the model.
        layers: names of the layers to tap; `""` is the input itself, `NAME:scores` and `NAME:probabilities` are those
            of the attention (N, heads, T, T) inside a module, which then runs step by step instead of fused.
        grad: keep the graph so that `Trace.gradient` works.
        score: name of the scalar to explain, or a callable of logits (N, K) and target (N,) that gives (N,).
        seeds: one number per image, for methods that draw random numbers; None derives it from the image.
        scoring: a cheaper form of the model that `Trace.predict` and `Trace.score` run in its place.
        output: which of the model's outputs is explained: a key, an index, a path of these or a function; None is
            `ModelSpec.output`.
        inputs: of a model of several inputs, for which `x` is a tuple or dictionary, the one that is explained; the
            others are held fixed.
        goal: what is explained, of a pass that is run again; `target` is then its index (N,).
        uncut: record through the model's own `no_grad`, `inference_mode` and `detach()`; `Trace.gradient` does so
            where they cut the layer off.

    Raises:
        ShapeError: if `x` is not (N, C, H, W), or targets and images differ in number.
        DataError: if `x` is not finite.
        UnknownNameError: if a layer does not exist.
        NotApplicableError: if a tapped layer does not run exactly once.
    """
    model = unwrap(model)
    if not isinstance(inputs, Inputs):
        x, inputs = split_inputs(x, inputs, model)
    if x.ndim != 4 or not x.is_floating_point() or x.layout != torch.strided or 0 in x.shape:
        kind = x.dtype if x.layout == torch.strided else f"{x.layout}, {x.dtype}"
        raise ShapeError(f"x: expected float images (N, C, H, W) but got {kind} of shape {tuple(x.shape)}.")
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DataError(f"x: image {bad} has values that are NaN or infinite; check how it was read and normalized.")
    if seeds is not None and len(seeds) != len(x):
        raise ShapeError(f"seeds: {len(seeds)} do not fit {len(x)} images; pass one for each.")
    again, which = goal is not None, spec.output if output is None else output
    if output is None and not again and spec.evidence.get("output") == BY_FUNCTION:
        raise SpecError(
            f"{type(model).__name__}: these facts are about an output that a function names; pass it here too, output=…"
        )
    check_loaded(model, grad)
    goal = as_target(target, spec) if goal is None else goal
    score_fn = goal.scorer(score, spec.values)
    layers = list(dict.fromkeys(layers))
    inner = [layer for layer in layers if layer != INPUT]
    with torch.inference_mode(False):
        x = promote(x.detach())
        x = x.clone() if x.is_inference() else x
        fed = _as_model_input(model, x)
        with evaluating(model) as modules, torch.set_grad_enabled(grad and (uncut or INPUT in layers)):
            if not again:
                goal = _prepared(goal, model, which, inputs)
            taps = Taps(model, inner, grad, uncut)
            try:
                if INPUT in layers:
                    fed = fed.detach().clone().requires_grad_(grad)
                    taps.kept[INPUT] = fed
                with taps:
                    returned = feed(model, fed, inputs)
            except RuntimeError as error:
                reason = refused_images(model, (*x.shape[:2], *_extent(x, inputs)), error)
                if reason is None:
                    raise
                raise reason from error
            finally:
                taps.remove()
            training = any(getattr(module, "training", False) for module in modules)
            torch.set_grad_enabled(grad)  # for the score; the model may have left it off
            logits = promote(goal.read(returned, model, len(x), which))
            logits = logits.clone() if logits.is_inference() else logits
            if missing := [layer for layer in inner if layer not in taps.kept]:
                if attention := attention_of(missing[0]):
                    raise NotApplicableError(
                        f"{type(model).__name__}: no attention that can be read ran in '{attention[0]}' (a softmax or "
                        "scaled_dot_product_attention without extra keys); correct ModelSpec.probability_layers."
                    )
                raise NotApplicableError(
                    f"{type(model).__name__}: layer '{missing[0]}' did not run in the forward pass, so there is "
                    "nothing to read; choose a layer that does."
                )
            if isinstance(target, Tensor) and again and not isinstance(goal, Class):
                chosen = target
            else:
                goal = replace(goal, classes=target) if again and isinstance(goal, Class) else goal
                goal, chosen = goal.bind(returned, logits.detach(), spec, which)
                score_fn = goal.scorer(score, spec.values)
            chosen = chosen.clone() if chosen.is_inference() else chosen
            scores = apply_score(score_fn, logits, chosen) if grad else None
    kept = taps.kept if grad else {layer: _plain(tensor) for layer, tensor in taps.kept.items()}
    trace = Trace(model, spec, x, chosen, logits.detach(), score_fn, scores, kept, seeds, scoring, goal, output, inputs)
    trace.uncut, trace.calls, trace.training = uncut, taps.calls, training
    return trace


def _extent(x: Tensor, inputs: Inputs | None) -> tuple[int, ...]:
    size = x.shape[-2], x.shape[-1]
    return size if inputs is None else inputs.extent(size)


def _plain(tensor: Tensor) -> Tensor:
    """Detached, and made outside of `inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
