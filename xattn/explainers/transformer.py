"""Methods for vision transformers: they read the attention of all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from xattn.attention_taps import PROBABILITIES, SCORES, layer_of
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.explainers.token_relevance import token_relevance
from xattn.functional import transformer as formulas
from xattn.running import in_this_thread
from xattn.schema import Range
from xattn.score import apply_score
from xattn.spec import ModelSpec
from xattn.trace import Trace, promote


@dataclass(frozen=True)
class AttentionExplainer(Explainer):
    """A method that reads the attention probabilities of all layers, or of those from `start_layer` on."""

    family: ClassVar[Family] = Family.ATTENTION
    serves: ClassVar[str] = "vision transformers"

    def check(self, spec: ModelSpec) -> None:
        if not spec.probability_layers or spec.tokens is None:
            raise NotApplicableError(
                f"{self.name}: reads the attention of a vision transformer over all its tokens, and "
                f"{spec.name or 'the model'} has none that can be read (CNNs have no attention, Swin's is in windows); "
                f"use {'gradcam' if spec.feature_layer else 'occlusion'}."
            )

    def attention_layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the attention modules that are read."""
        return spec.probability_layers

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """The attention probabilities."""
        return tuple(layer_of(name, PROBABILITIES) for name in self.attention_layers(spec))

    def probabilities(self, trace: Trace) -> list[Tensor]:
        """Per layer (N, heads, T, T)."""
        return [trace.activation(layer) for layer in AttentionExplainer.layers(self, trace.spec)]

    def gradients(self, trace: Trace) -> list[Tensor]:
        """Of the score by the probabilities, likewise."""
        return [trace.gradient(layer) for layer in AttentionExplainer.layers(self, trace.spec)]

    def read(self, trace: Trace, matrix: Tensor) -> Tensor:
        """Map (N, 1, h, w) of what the classifier reads in a matrix (N, T, T)."""
        if trace.spec.tokens is None:
            raise NotApplicableError(f"{self.name}: ModelSpec.tokens does not say how the tokens lie on the image.")
        return trace.spec.tokens.read(matrix, trace.input_size)


@dataclass(frozen=True)
class _LaterLayers(AttentionExplainer):
    start_layer: Annotated[int, Range(0, 10_000)] = 0

    def attention_layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the attention modules that are read."""
        if self.start_layer >= len(spec.probability_layers):
            raise ParameterError(
                f"{self.name}: start_layer={self.start_layer} leaves none of {len(spec.probability_layers)} layers; "
                "count from 0."
            )
        return spec.probability_layers[self.start_layer :]


@contextmanager
def _detached(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let no gradient pass the inputs of the named modules."""

    def detach(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        def cut(value: Any) -> Any:
            return value.detach() if isinstance(value, Tensor) else value

        return tuple(map(cut, args)), {key: cut(value) for key, value in kwargs.items()}

    handles = []
    try:
        for name in names:
            handles.append(
                model.get_submodule(name).register_forward_pre_hook(in_this_thread(detach), with_kwargs=True)
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(names: Sequence[str]) -> tuple[str, ...]:
    """The blocks around the attention modules: up to the part of the name that differs from layer to layer.

    >>> _blocks(["blocks.0.attn", "blocks.1.attn"])
    ('blocks.0', 'blocks.1')
    """
    paths = [name.split(".") for name in names]
    if len(paths) == 1:
        return (".".join(paths[0][:-1]) or names[0],)
    depth = next(i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1)
    return tuple(".".join(path[: depth + 1]) for path in paths)


@explainers.register("raw-attention")
@dataclass(frozen=True)
class RawAttention(AttentionExplainer):
    """Raw attention: the class token's probabilities, mean over the heads (Caron et al. 2021, arXiv:2104.14294).

    The same for every class. Without a class token the mean of all rows.

    Args:
        which: the `"last"` layer, or the `"mean"` of all.
    """

    class_specific: ClassVar[bool] = False
    paper: ClassVar[str] = "Caron et al. 2021, arXiv:2104.14294, fig. 1"
    which: Literal["last", "mean"] = "last"

    def attention_layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Names of the attention modules that are read."""
        return spec.probability_layers[-1:] if self.which == "last" else spec.probability_layers

    def attribute(self, trace: Trace) -> Tensor:
        return self.read(trace, formulas.raw_attention(self.probabilities(trace)))


@explainers.register("rollout", "attention-rollout")
@dataclass(frozen=True)
class Rollout(_LaterLayers):
    """Attention rollout: (A + I) / 2 multiplied through the layers (Abnar, Zuidema 2020, arXiv:2005.00928).

    The same for every class. Mean over the heads; without a class token the mean of all rows.

    Args:
        start_layer: first layer of the product, counted from 0.
    """

    class_specific: ClassVar[bool] = False

    def attribute(self, trace: Trace) -> Tensor:
        return self.read(trace, formulas.attention_rollout(self.probabilities(trace)))


@explainers.register("attention-x-gradient", "attention-gradient")
@dataclass(frozen=True)
class AttentionXGradient(_LaterLayers):
    """Attention x gradient: I + mean of (A x gradient)+, multiplied through (Chefer et al. 2021, arXiv:2103.15679).

    Transformer attribution with probabilities in place of relevance, at the price of one backward pass. Without a
    class token the mean of all rows.

    Args:
        start_layer: first layer of the product, counted from 0.
    """

    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward"

    def attribute(self, trace: Trace) -> Tensor:
        return self.read(trace, formulas.gradient_rollout(self.probabilities(trace), self.gradients(trace)))


@explainers.register("transformer-attribution", "ta")
@dataclass(frozen=True)
class TransformerAttribution(_LaterLayers):
    """Transformer attribution: relevance x gradient, multiplied through (Chefer et al. 2021, arXiv:2012.09838).

    Deep Taylor relevance of the target's logit for the probabilities: positive products in linear layers, both operands
    of a matrix product halved, residual sums split by the share of their absolute sums, norms, activations and softmax
    passed. Relevance starts at 1 whatever the score, which enters by the gradient, and is proven to be conserved: it
    sums to 1 behind each block. A model with another kind of layer in its blocks or behind them is refused.

    Args:
        start_layer: first layer of the product, counted from 0; the authors start at 1 in their evaluation.
    """

    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward, 1 forward, 1 backward in double precision"

    def _passage(self, trace: Trace) -> Trace:
        def run() -> Trace:
            names = trace.spec.probability_layers
            blocks = _blocks(names)
            return token_relevance(trace, [*(layer_of(name, PROBABILITIES) for name in names), *blocks], blocks[0])

        return trace.once("token relevance", run)

    def attribute(self, trace: Trace) -> Tensor:
        gradients = self.gradients(trace)
        relevance = [r.to(g.dtype) for r, g in zip(self.gradients(self._passage(trace)), gradients, strict=True)]
        return self.read(trace, formulas.gradient_rollout(relevance, gradients))

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor:
        """Largest error (N,) of the sum of the relevance behind a block, which is 1."""
        passage = self._passage(trace)
        sums = [
            passage.gradient(name).flatten(1).double().sum(dim=1) for name in _blocks(trace.spec.probability_layers)
        ]
        return (torch.stack(sums) - 1).abs().amax(dim=0)


@explainers.register("agcam")
@dataclass(frozen=True)
class AGCAM(AttentionExplainer):
    """AGCAM: sigmoid of the scores times positive gradients, all heads and layers (Leem, Seo 2024, arXiv:2402.04563).

    The sum over layers and heads of sigmoid(q k / sqrt(d)) ReLU(alpha), with alpha the gradient by the probabilities,
    of the class token's row; without a class token the mean of all rows.

    Args:
        detach: no gradient enters an attention module by its input, as in the authors' code, so that it comes by the
            residual sums alone and only the class token's rows are not zero. False is the gradient itself, which
            needs no pass of its own.
    """

    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "1 forward, 1 backward"
    detach: bool = True

    def _both(self, spec: ModelSpec) -> tuple[str, ...]:
        scores = (layer_of(name, SCORES) for name in self.attention_layers(spec))
        return *scores, *super().layers(spec)

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """The scores and the probabilities, unless it needs a pass of its own."""
        return () if self.detach else self._both(spec)

    def attribute(self, trace: Trace) -> Tensor:
        names = self.attention_layers(trace.spec)
        if self.detach:
            with _detached(trace.model, names):
                trace = trace.again(layers=self._both(trace.spec))
        scores = [trace.activation(layer_of(name, SCORES)) for name in names]
        return self.read(trace, formulas.agcam(scores, self.gradients(trace)))


@explainers.register("legrad")
@dataclass(frozen=True)
class LeGrad(AttentionExplainer):
    """LeGrad: positive gradient of each layer's own score by its attention (Bousselham et al. 2024, arXiv:2404.03214).

    The score of a layer is what the model's last norm and classifier make of the mean of its tokens; its gradient is
    taken by the probabilities of the same layer, and the mean over heads, rows and layers is the map. Not normalized.
    """

    passes: ClassVar[str] = "2 forwards, 1 backward"

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """None: it needs a pass of its own."""
        return ()

    def attribute(self, trace: Trace) -> Tensor:
        blocks = _blocks(trace.spec.probability_layers)
        formed: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if len(formed) == len(blocks):  # the pass of `_end`
                return
            if not isinstance(output, Tensor) or output.ndim != 3 or len(output) != len(trace.x):
                raise NotApplicableError(
                    f"{self.name}: the blocks of {type(trace.model).__name__} do not turn tokens (N, T, C) into "
                    "tokens, so a layer has no score of its own; use attention-x-gradient."
                )
            formed.append(output)

        def score(logits: Tensor, target: Tensor) -> Tensor:
            per_layer = promote(self._end(trace, blocks[-1], formed))
            scores = [apply_score(trace.score_fn, z, target) for z in per_layer.unflatten(0, (len(blocks), -1))]
            return torch.stack(scores).sum(dim=0)

        with _detached(trace.model, blocks):
            handles = [trace.model.get_submodule(name).register_forward_hook(in_this_thread(keep)) for name in blocks]
            try:
                again = trace.again(layers=super().layers(trace.spec), score=score)
            finally:
                for handle in handles:
                    handle.remove()
        gradients = self.gradients(again)
        trace.count(forwards=1)  # of `_end`
        everywhere = formulas.legrad(gradients).mean(dim=1, keepdim=True)
        return self.read(trace, everywhere.expand(-1, everywhere.shape[2], -1))

    @staticmethod
    def _end(trace: Trace, last: str, formed: list[Tensor]) -> Tensor:
        """What the model makes of the mean tokens of each layer: logits (layers * N, K).

        One image runs through the model; behind its last block the tokens are replaced.
        """
        tokens = torch.cat([layer.mean(dim=1, keepdim=True).expand_as(layer) for layer in formed])
        handle = trace.model.get_submodule(last).register_forward_hook(in_this_thread(lambda *_: tokens))
        try:
            return trace.read(trace.feed(trace.model, trace.x[:1], trace.target.new_zeros(1)), len(tokens))
        finally:
            handle.remove()
