"""The state of a run in one safetensors file: nothing in it can run code, and no reader sees half of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError
from xattn.models.checkpoint import read_state, write_tensors
from xattn.models.header import read_metadata

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

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
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
    }
    write_tensors(tensors, path, {_KEY: json.dumps(state)})


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run read back.

    Args:
        tensors: by name, as written.
        progress: where it stands.
        optimizer: values of the optimizer's state that are no tensors, by parameter.
        recipe: as plain values.
        spec: as plain values.
    """

    tensors: dict[str, Tensor]
    progress: Progress
    optimizer: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    spec: dict[str, Any]

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
        except (RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"'{source}' does not fit this network: {first}") from None
        torch.set_rng_state(parts["random"]["torch"])


def load_run(path: Path) -> SavedRun:
    """Read a run back.

    Raises:
        CheckpointError: if the file is no checkpoint of a run or comes from another version of the format.
    """
    text = read_metadata(path).get(_KEY)
    if text is None:
        raise CheckpointError(f"'{path}' is no checkpoint of a training run; expected last.safetensors of one.")
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise CheckpointError(f"'{path}' has format {values['format']}; this version reads {FORMAT}.")
        progress = Progress(**values["progress"])
        return SavedRun(read_state(path), progress, values["optimizer"], values["recipe"], values["spec"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}': the header of the run is damaged ({error}).") from None
