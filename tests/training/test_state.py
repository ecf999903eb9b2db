"""The state of a run on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from xattn.errors import CheckpointError
from xattn.models.checkpoint import write_tensors
from xattn.training.checkpoint import Progress, load_run, save_run


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_everything_comes_back(tmp_path: Path, kind: str) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 2)
        if kind == "sgd":
            return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, torch.optim.AdamW(model.parameters(), 0.1)

    model, optimizer = make()
    step(model, optimizer)
    progress = Progress(epoch=2, step=7, best=0.1 + 0.2, best_epoch=1, sums={"loss": 1 / 3}, history=[{"a": 0.1}])
    path = tmp_path / "last.safetensors"
    parts = {"recipe": {"run": {"epochs": 3}}, "spec": {"name": "x"}}
    save_run(path, model=model, average=model, optimizer=optimizer, progress=progress, **parts)
    expected = torch.rand(2)  # the state of the generator is kept too
    saved = load_run(path)
    assert saved.progress == progress
    assert (saved.recipe, saved.spec) == (parts["recipe"], parts["spec"])
    other, again = make()
    mean, _ = make()
    saved.restore(other, mean, again, "file")
    assert torch.equal(torch.rand(2), expected)
    for m, o in ((model, optimizer), (other, again)):
        step(m, o)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_is_no_state_of_a_run_is_refused(tmp_path: Path) -> None:
    weights = write_tensors({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {})
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        load_run(weights)
    damaged = write_tensors({}, tmp_path / "d.safetensors", {"xattn.training": '{"format": 1}'})
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(damaged)
    newer = write_tensors({}, tmp_path / "n.safetensors", {"xattn.training": '{"format": 99}'})
    with pytest.raises(CheckpointError, match="format 99; this version reads 1"):
        load_run(newer)
    pickled = tmp_path / "last.safetensors"
    pickled.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(CheckpointError, match="no safetensors"):
        load_run(pickled)


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = tmp_path / "last.safetensors"
    save_run(path, model=model, average=None, optimizer=optimizer, progress=Progress(), recipe={}, spec={})
    other = nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match="'file' does not fit this network"):
        load_run(path).restore(other, None, torch.optim.SGD(other.parameters(), 0.1), "file")
