"""Copies of a network with random weights."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.inputs import Inputs, feed
from xattn.running import evaluating, in_this_thread
from xattn.trace import place_of


def layers_from_output(model: nn.Module, x: Tensor, inputs: Inputs | None = None) -> list[str]:
    """Names of the modules that own parameters, the last one to run first.

    The order is that of a forward pass, not of registration, which need not agree. A module that is read but not called
    (the output projection of `nn.MultiheadAttention`) comes with the module around it.

    Args:
        model: any module; it leaves as it came.
        x: one image (1, C, H, W) in the model's normalized space.
        inputs: the other inputs of the model.
    """
    calls: dict[str, int] = {}

    def note(name: str) -> None:
        calls.setdefault(name, len(calls))

    handles = [
        module.register_forward_pre_hook(in_this_thread(lambda *_, name=name: note(name)))
        for name, module in model.named_modules()
    ]
    try:
        with evaluating(model), torch.no_grad():
            feed(model, x.to(place_of(model)[1]), inputs)
    finally:
        for handle in handles:
            handle.remove()

    def called(name: str) -> int:
        while name not in calls and name:
            name = name.rpartition(".")[0]
        return calls.get(name, -1)

    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    # Sorted is stable: among modules of one call the later registered one counts as later.
    return sorted(owners, key=called)[::-1]


def stages_from_output(layers: list[str], stages: int) -> list[list[str]]:
    """Layers in stages: the first alone, the others in parts of equal number.

    >>> stages_from_output(["e", "d", "c", "b", "a"], 3)
    [['e'], ['d', 'c'], ['b', 'a']]
    """
    rest = layers[1:]
    many = min(stages - 1, len(rest))
    if not many:
        return [layers] if layers else []
    cuts = [round(i * len(rest) / many) for i in range(many + 1)]
    return [layers[:1], *(rest[a:b] for a, b in pairwise(cuts))]


def randomize(module: nn.Module, name: str, how: str, seed: int) -> None:
    """Make the parameters and buffers that a module itself owns random, in place.

    The numbers are drawn on the CPU from the seed and the name, so they are the same on every device.

    Args:
        module: the layer.
        name: its name, so that two layers of one shape differ.
        how: `"reset"` or `"permute"`.
        seed: of all layers.
    """
    own = {**module._parameters, **module._buffers}
    tensors = {k: t for k, t in own.items() if t is not None and t.is_floating_point()}
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little") >> 1
    reset = getattr(module, "reset_parameters", None)
    with torch.inference_mode(False), torch.no_grad():
        if how == "reset" and callable(reset):
            fresh = copy.deepcopy(module).cpu().float()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(start)
                fresh.reset_parameters()  # type: ignore[operator]
            drawn = {**fresh._parameters, **fresh._buffers}
            for key, tensor in tensors.items():
                tensor.copy_(drawn[key])  # type: ignore[arg-type]
            return
        for tensor in tensors.values():
            # One seed for all tensors of the layer: the mean and the deviation of a channel move together.
            order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(start))
            tensor.copy_(tensor.flatten()[order.to(tensor.device)].view_as(tensor))


def randomized(
    model: nn.Module,
    x: Tensor,
    *,
    stages: int,
    how: str = "reset",
    cascading: bool = True,
    seed: int = 0,
    inputs: Inputs | None = None,
) -> Iterator[nn.Module]:
    """One copy of the model whose layers become random stage by stage, from the output to the input.

    Args:
        model: any module; it leaves as it came.
        x: one image (1, C, H, W), which tells the order of the layers.
        stages: number of stages, at least one; fewer where there are fewer layers.
        how: `"reset"` or `"permute"`, as in `randomize`.
        cascading: earlier stages stay random; otherwise they get their weights back.
        seed: of the random numbers.
        inputs: the other inputs of the model.

    Yields:
        The same copy after each stage, good until the next.

    Raises:
        NotApplicableError: if the model has no parameters or cannot be copied.
    """
    groups = stages_from_output(layers_from_output(model, x, inputs), stages)
    if not groups:
        raise NotApplicableError(f"{type(model).__name__}: it has no parameters that could be randomized.")
    try:
        with torch.inference_mode(False):  # or autograd could not use the copy's weights
            network = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise NotApplicableError(
            f"{type(model).__name__}: cannot be copied to randomize its weights ({error}); leave this metric out."
        ) from None
    learned = dict(model.named_modules())
    modules = dict(network.named_modules())
    for group in groups:
        for name in group:
            randomize(modules[name], name, how, seed)
        yield network
        if cascading:
            continue
        with torch.inference_mode(False), torch.no_grad():
            for name in group:
                for kind in ("_parameters", "_buffers"):
                    for key, tensor in getattr(modules[name], kind).items():
                        if tensor is not None:
                            tensor.copy_(getattr(learned[name], kind)[key])
