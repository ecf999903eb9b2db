"""Meta-transfer learning: the weights of a trained network stay but for a number for each kernel."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.training.colours import tiny_recipe
from tests.training.individuals import write_individuals
from xattn.models import create_model
from xattn.models.checkpoint import read_state
from xattn.models.embedded import FOLDER
from xattn.training import loop
from xattn.training.network import parameter_groups
from xattn.training.scaling import folded, scale_weights


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("tiny-cnn", head="bcnn", num_classes=3)


def test_a_scaled_network_is_the_same_until_it_learns_and_is_written_as_a_plain_one() -> None:
    plain, scaled = network(), network()
    scale_weights(scaled)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(x), scaled(x))
        for name, parameter in scaled.named_parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter)).add_(0.1 * ("bias" in name))
        state = folded(scaled.state_dict())
        assert list(state) == [*plain.state_dict()] or set(state) == set(plain.state_dict())
        plain.load_state_dict(state)
        torch.testing.assert_close(plain(x), scaled(x))
        assert not torch.allclose(network()(x), scaled(x))
        torch.testing.assert_close(copy.deepcopy(scaled)(x), scaled(x))


def test_scales_and_shifts_alone_learn_and_no_decay_pulls_a_scale_to_zero() -> None:
    model = network()
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    kernels = sum(m.weight.shape[0] * m.weight.shape[1] for m in convolutions)
    shifts = sum(m.bias.numel() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    shifts += sum(m.bias.numel() for m in convolutions if m.bias is not None)
    scale_weights(model)
    decayed, free = parameter_groups(model, 0.1)
    assert decayed["params"] == []
    assert sum(p.numel() for p in free["params"]) == kernels + shifts


def test_a_run_changes_each_kernel_by_one_factor(tmp_path: Path) -> None:
    data = write_individuals(tmp_path / "data")
    start = FOLDER / "tiny-cnn.safetensors"
    recipe = tiny_recipe(
        data,
        tmp_path / "run",
        data__held_out=0.3,
        model__head="linear",
        model__start=str(start),
        optimizer__ema=0.0,
        optimizer__lr=0.05,
        run__task="fewshot:method=mtl,way=2,shot=1,queries=1,comparison=learned,episodes=50",
        run__batch_size=6,
        run__image_size=[32, 16],
        run__epochs=1,
    )
    result = loop.train(recipe)
    before, after = read_state(start), read_state(result.best)
    moved = 0
    for name, old in before.items():
        if not name.startswith("backbone."):
            continue
        if old.ndim == 4:
            usable = old.abs() > 1e-3
            factor = torch.where(usable, after[name] / old, torch.nan).flatten(2)
            low, high = (torch.nan_to_num(factor, nan=v).flatten(2) for v in (torch.inf, -torch.inf))
            spread = (high.amax(2) - low.amin(2))[usable.flatten(2).any(2)]
            assert float(spread.max()) == pytest.approx(0, abs=1e-3)
            moved += int((factor - 1).abs().nan_to_num().max() > 1e-4)
        elif "bias" not in name:
            assert torch.equal(old, after[name]), name
    assert moved > 5
    assert result.history[0]["train_loss"] < 2
