"""How a model is run: by one thread at a time, in evaluation mode, neither compiled nor checkpointed, and put back."""

from __future__ import annotations

import copy
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from xattn.errors import NotApplicableError, ShapeError, SpecError

M = TypeVar("M", bound=nn.Module)


class FunctionModel(nn.Module):
    """A model that is no module: any callable from images to outputs, which may be NumPy arrays.

    Args:
        function: it gets images (N, C, H, W) and is run as it is, in whatever mode it has.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.spec = getattr(function, "spec", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the callable gives, arrays as tensors."""
        try:
            outputs = self.function(*args, **kwargs)
        except RuntimeError as error:
            if not torch.is_grad_enabled() or "numpy()" not in str(error):
                raise
            with torch.no_grad():  # it makes arrays of tensors, which it cannot where these have a gradient
                args, kwargs = tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, (args, kwargs))
                outputs = self.function(*args, **kwargs)
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        return _as_tensors(outputs, next((value.device for value in given), None))


class FixedBatch(FunctionModel):
    """A program of `torch.export` that takes a fixed number of images, for any number: the last ones are repeated."""

    def __init__(self, function: Callable[..., Any], size: int) -> None:
        super().__init__(function)
        self.size = size

    def forward(self, x: Any) -> Any:
        """Its outputs for all images."""
        parts = x.split(self.size)
        more = self.size - len(parts[-1])
        padded = [*parts[:-1], torch.cat([parts[-1], parts[-1][-1:].expand(more, *x.shape[1:])])] if more else parts
        outputs = [self.function(part) for part in padded]
        return tree_map(lambda *rows: torch.cat(rows)[: len(x)] if _rows(rows[0], self.size) else rows[0], *outputs)


def _rows(value: Any, images: int) -> bool:
    """Whether a value has a row for each image; what else a program returns is no answer about them."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == images


def _is_exported(model: nn.Module) -> bool:
    return any(base.__name__ == "_StatefulGraphModule" for base in type(model).__mro__)


def _batch_of(program: nn.Module) -> int | None:
    """How many images a program of `torch.export` takes, if it is a fixed number."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]  # type: ignore[union-attr]
    shape = getattr(inputs[0].meta.get("val"), "shape", None) if inputs else None
    return shape[0] if shape and type(shape[0]) is int else None


def _as_tensors(output: Any, device: torch.device | None) -> Any:
    if isinstance(output, np.ndarray):
        return torch.as_tensor(output, device=device)
    if type(output) in (list, tuple):
        return type(output)(_as_tensors(item, device) for item in output)
    return {key: _as_tensors(item, device) for key, item in output.items()} if type(output) is dict else output


def as_module(model: Any) -> nn.Module:
    """A module as it is, any other callable as a `FunctionModel` that errors call by its name.

    Raises:
        NotApplicableError: for what is no model.
    """
    if isinstance(model, nn.Module):
        size = _batch_of(model) if _is_exported(model) else None
        return model if size is None else type("Program", (FixedBatch,), {})(model, size)
    if isinstance(model, type):
        raise NotApplicableError(f"model: {model.__name__} is a class and not a model; create it, {model.__name__}(…).")
    if not callable(model):
        raise NotApplicableError(
            f"model: expected a module, or a function from images to class scores, but got {type(model).__name__}."
        )
    name = getattr(model, "__name__", type(model).__name__)
    return type(name.strip("<>"), (FunctionModel,), {})(model)


def opaque(model: nn.Module) -> str | None:
    """Why the layers of a model cannot be seen, as what its name is put before; None if they can."""
    if isinstance(model, FixedBatch) or _is_exported(model):
        return (
            "is a program of torch.export, whose layers cannot be seen; pass torch.export.unflatten(program) of one "
            "with a dynamic batch"
        )
    if isinstance(model, FunctionModel):
        return "is a function, whose layers cannot be seen; pass the module behind it, if there is one"
    if isinstance(model, torch.jit.ScriptModule):
        return "is TorchScript, whose layers cannot be seen; pass the Python module that it was made from"
    return None


def unwrap(model: Any) -> nn.Module:
    """The plain module under `torch.compile` and `DistributedDataParallel`; hooks do not fire on compiled code.

    A callable that is no module becomes one.

    Raises:
        NotApplicableError: for `DataParallel`, whose replicas each see a part of the batch, and what is no model.
    """
    model = as_module(model)
    while True:
        if isinstance(model, nn.DataParallel):
            raise NotApplicableError(
                "DataParallel splits the batch over replicas whose layers cannot be recorded as one; "
                "pass model.module and spread images over processes instead."
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, each once, parents first; without the names, whose making is most of such a walk."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting.extend(reversed(module._modules.values()))
    return list(found)


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The parameters and buffers of modules themselves."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor


def check_loaded(model: nn.Module, grad: bool) -> None:
    """Check that all weights have values, and that autograd can use them where it is needed.

    Raises:
        SpecError: if some are on the device `meta`, or of lazy layers that have not run yet.
        NotApplicableError: if they were made under `torch.inference_mode`.
    """
    for tensor in tensors_of(modules_of(model)):
        lazy = torch.nn.parameter.is_lazy(tensor)
        if lazy or tensor.is_meta:
            why = "lazy layers that have not run; run it once" if lazy else "weights without values; load them"
            raise SpecError(f"{type(model).__name__} has {why} before it is explained.")
        if grad and tensor.is_inference():
            raise NotApplicableError(
                f"{type(model).__name__}: its weights were made under torch.inference_mode, so autograd cannot use "
                "them; load the model outside of it (no_grad is fine)."
            )


def refused_images(model: nn.Module, shape: Sequence[int], error: RuntimeError) -> ShapeError | None:
    """Why a model failed on images of a shape, where that is their number of channels."""
    told = re.search(r"to have (\d+) channels, but got (\d+) channels", str(error))
    if told is None or len(shape) not in (4, 5) or int(told[2]) != shape[1]:
        return None
    return ShapeError(
        f"{type(model).__name__} takes images of {told[1]} channels but x has {shape[1]}, shape "
        f"{tuple(shape)}; pass images as the model takes them."
    )


# ------------------------------------------------------------------------------------------------------ by one thread

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_registering = threading.Lock()


def lock_of(model: nn.Module) -> Any:
    """The lock of a model: what puts hooks on it or changes its modes holds it, so that threads take turns.

    The thread that holds it may take it again. It is kept beside the model, which can be copied and pickled as before.
    """
    with _registering:
        lock = _LOCKS.get(model)
        if lock is None:
            lock = _LOCKS[model] = threading.RLock()
        return lock


def _forget_locks() -> None:
    """In a forked process: the threads that held the locks are not there to give them back."""
    global _registering
    _registering = threading.Lock()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that sees the calls of the thread that made it: a prediction by another one passes as if it were gone."""
    own = threading.get_ident()

    def seen(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == own else None

    return seen


# ----------------------------------------------------------------------------------------------- without checkpointing


class _Threads(threading.local):
    """What is on in a thread."""

    plain = 0


_here = _Threads()
_patched = 0
_patching = threading.Lock()
_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """While it is entered, `torch.utils.checkpoint` runs what it is given as it is, in this thread alone.

    A checkpoint runs its part of the network once more in the backward pass, when nothing is tapped any more and the
    modes of the model are back: there would be no gradient by a layer in it, and batch norms would count twice.
    """
    global _patched
    with _patching:
        if not _patched:
            _patch()
        _patched += 1
    _here.plain += 1
    try:
        yield
    finally:
        _here.plain -= 1
        with _patching:
            _patched -= 1
            if not _patched:
                _unpatch()


_originals: dict[str, Any] = {}


def _patch() -> None:
    """Put a switch in front of both ways to checkpoint; the function that people import stays the same."""
    module, function = torch.utils.checkpoint, torch.utils.checkpoint.CheckpointFunction
    apply = function.apply

    def reentrant(run: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return run(*args) if _here.plain else apply(run, preserve, *args)

    function.apply = staticmethod(reentrant)
    for name in _GENERATORS:
        if (original := getattr(module, name, None)) is not None:
            _originals[name] = original
            setattr(module, name, _switched(original))


def _switched(original: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Any:
        return iter_once() if _here.plain else original(*args, **kwargs)

    def iter_once() -> Iterator[None]:
        yield  # what comes before the part that is checkpointed, and what comes behind it: nothing

    return generator


def _unpatch() -> None:
    del torch.utils.checkpoint.CheckpointFunction.apply
    for name, original in _originals.items():
        setattr(torch.utils.checkpoint, name, original)
    _originals.clear()


# --------------------------------------------------------------------------------------------------- in evaluation mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Hold the model alone, in evaluation mode, uncompiled; each module gets its own mode back at the end.

    It gives the modules of the model.
    """
    with lock_of(model), without_checkpointing():
        modules = modules_of(model)
        modes = [(module, module.training) for module in modules if hasattr(module, "training")]
        compiled = [(m, m._compiled_call_impl) for m, _ in modes if getattr(m, "_compiled_call_impl", None) is not None]
        # `torch.compile` of a part of the model wraps it in a module of its own, which can only be told to run eagerly.
        wrapped = any("_orig_mod" in module._modules for module in modules)
        try:
            if any(mode for _, mode in modes):
                _evaluate(model)
            for module, _ in compiled:
                module._compiled_call_impl = None
            with torch.compiler.set_stance("force_eager") if wrapped else nullcontext():
                yield modules
        finally:
            for module, mode in modes:
                if module.training is not mode:
                    module.training = mode
            for module, implementation in compiled:
                module._compiled_call_impl = implementation


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # a program of torch.export stays as it was exported
        for module in model.modules():
            module.training = False


def copied(model: M) -> M:
    """A deep copy of a model, also of one that keeps results of a pass, such as a table of positions looked up.

    >>> net = torch.nn.Linear(2, 2)
    >>> net.kept = 2 * net.weight
    >>> copied(net).kept.grad_fn is None
    True
    """
    leaves = (leaf for module in model.modules() for leaf in tree_leaves(vars(module)))
    kept = {id(t): t.detach().clone() for t in leaves if isinstance(t, Tensor) and t.grad_fn is not None}
    return copy.deepcopy(model, kept)
