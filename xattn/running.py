"""How a model is run: by one thread at a time, in evaluation mode, neither compiled nor checkpointed, and put back."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from xattn.errors import NotApplicableError


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module under `torch.compile` and `DistributedDataParallel`; hooks do not fire on compiled code.

    Raises:
        NotApplicableError: for `DataParallel`, whose replicas each see a part of the batch.
    """
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
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model alone, in evaluation mode, uncompiled; each module gets its own mode back at the end."""
    with lock_of(model), without_checkpointing():
        modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
        compiled = [(m, m._compiled_call_impl) for m, _ in modes if getattr(m, "_compiled_call_impl", None) is not None]
        # `torch.compile` of a part of the model wraps it in a module of its own, which can only be told to run eagerly.
        wrapped = any("_orig_mod" in module._modules for module, _ in modes)
        try:
            _evaluate(model)
            for module, _ in compiled:
                module._compiled_call_impl = None
            with torch.compiler.set_stance("force_eager") if wrapped else nullcontext():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, implementation in compiled:
                module._compiled_call_impl = implementation


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # a program of torch.export stays as it was exported
        for module in model.modules():
            module.training = False
