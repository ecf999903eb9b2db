"""Device and precision by their names, for the command line and for runs, and the default device of a session."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from xattn.errors import ParameterError


def find_device(name: str, option: str = "--device") -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Args:
        name: `auto` takes an accelerator if there is one; of several processes on a machine, each takes another.
        option: what messages call the name.

    Raises:
        ParameterError: if the machine has no such device.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        if there["cuda"]:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if there["mps"] else "cpu")
    kind, _, index = name.partition(":")
    if kind not in there or (index and not (index.isdigit() and kind == "cuda")):
        raise ParameterError(f"{option}: expected auto, cpu, cuda or mps but got '{name}'.")
    if not there[kind]:
        usable = ", ".join(k for k, ok in there.items() if ok)
        raise ParameterError(f"{option} {name}: this machine has none; usable are auto, {usable}.")
    if index and int(index) >= torch.cuda.device_count():
        raise ParameterError(f"{option} {name}: this machine has {torch.cuda.device_count()} CUDA devices, from 0.")
    return torch.device(name)


@contextmanager
def at_precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast to `bf16` or `fp16` inside; `fp32` changes nothing.

    Args:
        name: one of the three.
        device: on which the model computes.

    Raises:
        ParameterError: for another name.
    """
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in types:
        raise ParameterError(f"--precision must be fp32, bf16 or fp16 but is '{name}'.")
    with torch.autocast(device.type, types[name], enabled=name != "fp32"):
        yield


class _Session(threading.local):
    """What a person has set in a thread."""

    default: torch.device | None = None


_session = _Session()


@contextmanager
def on_cpu_by_default() -> Iterator[None]:
    """While it is entered, what names no device is made on the CPU, whatever `torch.set_default_device` says.

    Random numbers come from generators of the CPU, so that they are the same everywhere. The model itself runs as the
    person has set it: `as_set`.
    """
    if torch.empty(0).device.type == "cpu":
        yield
        return
    before, _session.default = _session.default, torch.get_default_device()
    try:
        with torch.device("cpu"):
            yield
    finally:
        _session.default = before


@contextmanager
def as_set() -> Iterator[None]:
    """While it is entered, the default device is again the one that `on_cpu_by_default` set aside."""
    with _session.default or nullcontext():
        yield
