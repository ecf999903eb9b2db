"""Methods of other libraries: `captum/IntegratedGradients`, `grad-cam/GradCAMPlusPlus`, `zennit/EpsilonPlusFlat`.

They run by themselves, on a copy of the model, outside of the pass that xattn's own methods share; what they return is
made a map and gets the same status. Their parameters are those of the library whose default is a number, a text or a
switch: `captum/IntegratedGradients:n_steps=20`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError, XattnError, needs, reason_of, unknown
from xattn.explainer import Explainer, Family, feature_layer
from xattn.running import copied
from xattn.score import SCORES, apply_score
from xattn.spec import ModelSpec
from xattn.taps import split_call
from xattn.trace import Trace

_PLAIN = (bool, int, float, str)  # types of the parameters that a name can set
_SCORES = ("logit", "prob", "sigmoid")  # those that are a function of one class each


@dataclasses.dataclass(frozen=True)
class Peer(Explainer):
    """A method of another library.

    Attributes:
        peer: the class of the library.
        scattered: it draws random numbers, so that images are explained one by one, each with its own seed.
        reads_layer: it needs the layer of the features.
    """

    serves: ClassVar[str] = "all that the library can run"
    passes: ClassVar[str] = "its own forward and backward"
    peer: ClassVar[Any]
    scattered: ClassVar[bool] = False
    reads_layer: ClassVar[bool] = False

    def check(self, spec: ModelSpec) -> None:
        """Refuse where a layer is needed and there is none."""
        if self.reads_layer:
            feature_layer(spec, self.name)

    def attribute(self, trace: Trace) -> Tensor:
        """The maps (N, 1, h, w) that the library makes, channels summed."""
        scores = self._scores(trace)
        handle = scores.register_forward_hook(lambda *_: trace.count(forwards=1))
        try:
            with _quiet(), torch.enable_grad(), _own_numbers(trace):
                if not self.scattered:
                    return self._one(scores, trace, slice(None))
                maps = []
                for i in range(len(trace.x)):
                    torch.manual_seed(trace.seed(i) % 2**63)
                    np.random.seed(trace.seed(i) % 2**32)  # the libraries draw from the one of all
                    maps.append(self._one(scores, trace, slice(i, i + 1)))
                return torch.cat(maps)
        finally:
            handle.remove()

    def settings(self) -> dict[str, Any]:
        """The parameters by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _scores(self, trace: Trace) -> Scores:
        """The model as the library sees it; refused where a library cannot see what xattn does."""
        fitting = [name for name in _SCORES if trace.score_fn in (SCORES[name], trace.named(name))]
        if not trace.goal.by_class or trace.inputs is not None or not fitting:
            raise NotApplicableError(
                f"{self.name}: explains the logit or the probability of a class of a model of one input; for this use "
                "a method of xattn's own."
            )
        try:
            model = copied(trace.model).eval()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise NotApplicableError(f"{self.name}: the model cannot be copied ({reason_of(error)}).") from None
        return Scores(model, trace, fitting[0])

    def _one(self, scores: Scores, trace: Trace, some: slice) -> Tensor:
        """Maps of some images; whatever the library raises is told in one line."""
        x, target = trace.x[some].detach().clone(), trace.target[some]
        try:
            maps = self._maps(scores, x, target, trace)
        except XattnError:
            raise
        except Exception as error:  # anything: these are other people's
            raise NotApplicableError(
                f"{self.name}: {self.computed_by} fails on {type(trace.model).__name__} "
                f"({type(error).__name__}: {reason_of(error)})."
            ) from error
        return maps.detach().sum(dim=1, keepdim=True) if maps.shape[1] > 1 else maps.detach()

    @abstractmethod
    def _maps(self, scores: Scores, x: Tensor, target: Tensor, trace: Trace) -> Tensor:
        """What the library makes of a batch (N, C, h, w)."""


class Scores(nn.Module):
    """A copy of a model that returns the scores (N, K) of its classes and nothing else.

    Args:
        model: the copy.
        trace: how its outputs are read.
        score: name of the score.
    """

    def __init__(self, model: nn.Module, trace: Trace, score: str) -> None:
        super().__init__()
        self.model = model
        self._trace = trace
        self._score = score

    def forward(self, x: Tensor) -> Tensor:
        """Scores of images (N, C, H, W); of both classes where the model has one output."""
        logits = self._trace.read(self._trace.feed(self.model, x), len(x), self.model)
        if logits.shape[1] == 1:  # the libraries would take class 0 for the one output, which speaks for class 1
            both = torch.arange(2, device=logits.device).unsqueeze(1).expand(-1, len(logits))
            return torch.stack([apply_score(self._trace.score_fn, logits, target) for target in both], dim=1)
        if self._score == "sigmoid":
            return logits.sigmoid()
        return logits.softmax(dim=1) if self._score == "prob" else logits

    def layer(self, spec: ModelSpec, method: str) -> nn.Module:
        """The module of the features in the copy."""
        name = feature_layer(spec, method)
        layer, call = split_call(name, dict(self.model.named_modules()))
        if call is not None:
            raise NotApplicableError(
                f"{method}: '{name}' is one call of a layer that runs several times, which the library cannot tell "
                "apart; name another layer, ModelSpec.feature_layer, or use a method of xattn's own."
            )
        return self.model.get_submodule(layer)


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries warn on every call, of things that are as they should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _own_numbers(trace: Trace) -> Iterator[None]:
    """Random numbers that the libraries draw, from torch and numpy, leave those of the caller as they are."""
    devices = [trace.x.device.index or 0] if trace.x.device.type == "cuda" else []
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(state)


def on_grid(trace: Trace, tensor: Tensor) -> Tensor:
    """The output of the feature layer as a grid (N, C, h, w), also where it is tokens."""
    tokens = trace.spec.layout(trace.spec.feature_layer)
    return tokens.fold(tensor, trace.input_size) if tokens is not None and tokens.folds(tensor) else tensor


def settable(*callables: Callable[..., Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The parameters of functions whose default is a number, a text or a switch."""
    found: dict[str, Any] = {}
    for function in callables:
        for name, parameter in inspect.signature(function).parameters.items():
            if isinstance(parameter.default, _PLAIN) and name not in without and not name.startswith("_"):
                found[name] = parameter.default
    return found


def build(base: type[Peer], library: str, name: str, peer: Any, fields: Mapping[str, Any], **facts: Any) -> type[Peer]:
    """The class of one method, with its parameters as fields."""
    said = (inspect.getdoc(peer) or "").strip().split("\n\n")[0]
    about = {
        "name": f"{library}/{name}",
        "title": name,
        "peer": peer,
        "computed_by": library,
        "paper": "",
        "family": Family.GRADIENT,
        "__doc__": f"{name} of {library}: {' '.join(said.split())[:200]}",
        **facts,
    }
    return dataclasses.make_dataclass(
        f"{base.__name__}{name}",
        [(key, type(value), dataclasses.field(default=value)) for key, value in fields.items()],
        bases=(base,),
        namespace=about,
        frozen=True,
    )


LIBRARIES = {
    "captum": "xattn.explainers.peers_captum",
    "grad-cam": "xattn.explainers.peers_others",
    "zennit": "xattn.explainers.peers_others",
}
"""Where the methods of each library are made."""
_ALIASES = {"pytorch-grad-cam": "grad-cam", "pytorch_grad_cam": "grad-cam", "gradcam": "grad-cam"}


def names(library: str) -> list[str]:
    """The methods of a library, as they are written.

    Raises:
        MissingExtraError: with the line that installs it.
        UnknownNameError: for a library that is not one of `LIBRARIES`.
    """
    if library not in LIBRARIES:
        raise unknown("library of methods", library, LIBRARIES)
    needs("peers", f"{library}/…")
    return sorted(f"{library}/{name}" for name in importlib.import_module(LIBRARIES[library]).found(library))


def peer(name: str) -> type[Peer]:
    """The class of a method by its name, `library/Class`.

    Raises:
        MissingExtraError: with the line that installs the libraries.
        UnknownNameError: with the nearest name.
    """
    library, _, own = name.partition("/")
    library = _ALIASES.get(library.strip().lower(), library.strip().lower())
    known = names(library)
    exact = {written.lower(): written for written in known}
    wanted = f"{library}/{own.strip()}".lower()
    if wanted not in exact:
        raise unknown("method", name, known)
    return _make(library, exact[wanted].partition("/")[2])


@functools.cache
def _make(library: str, name: str) -> type[Peer]:
    made: type[Peer] = importlib.import_module(LIBRARIES[library]).make(library, name)
    return made
