"""The state of a run in one safetensors file: nothing in it can run code, and no reader sees half of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError, reason_of
from xattn.models.checkpoint import read_state, write_tensors
from xattn.models.header import HEADER_BYTES, read_metadata
from xattn.schema import Range, build, read_json

FORMAT = 1
_KEY = "xattn.training"


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    All randomness of a step comes from the seed of the recipe and the number of the step, so that these numbers are
    the random state.

    Args:
        epoch: epochs finished.
        step: steps finished in the whole run.
        best: highest accuracy on the held-out images so far.
        best_epoch: epoch of it, counted from 1; 0 before the first.
        sums: running sums of the epoch under way: loss, correct, images, seconds.
        history: one row per finished epoch.
    """

    epoch: Annotated[int, Range(0)] = 0
    step: Annotated[int, Range(0)] = 0
    best: float = -1.0
    best_epoch: Annotated[int, Range(0)] = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def save_run(
    path: Path,
    *,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    recipe: Mapping[str, Any],
    spec: Mapping[str, Any],
    images: str = "",
) -> None:
    """Write everything that a run needs to go on: weights, their average, optimizer, progress, recipe and spec.

    Args:
        path: the file, replaced in one move.
        model: network in training, unwrapped.
        average: its moving average, if there is one.
        optimizer: with its momentum; the learning rate is a function of the step.
        progress: epoch, step and history.
        recipe: the recipe as plain values.
        spec: facts about the network as plain values.
        images: fingerprint of the images, by which a change of them is noticed.
    """
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    if average is not None:
        tensors.update({f"average/{k}": v for k, v in average.state_dict().items()})
    plain: dict[str, dict[str, Any]] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    tensors["random/torch"] = torch.get_rng_state()
    state = {
        "format": FORMAT,
        "progress": dataclasses.asdict(progress),
        "optimizer": plain,
        "recipe": dict(recipe),
        "spec": dict(spec),
        "images": images,
    }
    write_tensors(tensors, path, {_KEY: json.dumps(state)})


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run read back.

    Args:
        format: of the file.
        progress: where it stands.
        optimizer: values of the optimizer's state that are no tensors, by parameter.
        recipe: as plain values.
        spec: as plain values.
        images: fingerprint of the images; empty in older files.
        tensors: by name, as written.
    """

    format: int
    progress: Progress
    optimizer: dict[str, dict[str, Any]]
    recipe: dict[str, dict[str, Any]]
    spec: dict[str, Any]
    images: str = ""
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def restore(
        self, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer, source: str
    ) -> None:
        """Put weights, average, optimizer and random state back.

        Raises:
            CheckpointError: if the tensors do not fit.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "random": {}}
        for key, tensor in self.tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        try:
            model.load_state_dict(parts["model"])
            if average is not None:
                average.load_state_dict(parts["average"])
            state = optimizer.state_dict()
            state["state"] = {int(index): dict(values) for index, values in self.optimizer.items()}
            for key, tensor in parts["optimizer"].items():
                index, _, name = key.partition("/")
                state["state"].setdefault(int(index), {})[name] = tensor
            optimizer.load_state_dict(state)
            torch.set_rng_state(parts["random"]["torch"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"'{source}' does not fit this network: {reason_of(error)}") from None


def load_run(path: Path) -> SavedRun:
    """Read a run back.

    Raises:
        CheckpointError: if the file is no checkpoint of a run or comes from another version of the format.
    """
    text = read_metadata(path).get(_KEY)
    if text is None:
        raise CheckpointError(f"'{path}' is no checkpoint of a training run; expected last.safetensors of one.")
    what = f"'{path}': the header of the run is damaged"
    values = read_json(text, what, max_bytes=HEADER_BYTES, error=CheckpointError)
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' has format {values.get('format')}; this version reads {FORMAT}.")
    return dataclasses.replace(build(SavedRun, values, what, CheckpointError), tensors=read_state(path))
