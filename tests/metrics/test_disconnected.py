"""DiFull and DiPart against networks that were cut by hand."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.data.sample import Batch
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.functional.localization import energy_share
from xattn.functional.resize import resize
from xattn.metrics import metrics
from xattn.metrics.disconnected import disconnected
from xattn.trace import Trace, record

SIDE = 16


def setting(name: str, seed: int = 1) -> tuple[Explanation, Trace, Batch]:
    torch.manual_seed(0)
    model = tiny.TinyCNN().eval().double()
    x = tiny.images(3, 2 * SIDE, 2 * SIDE, seed=seed).double()
    target = torch.tensor([0, 1, 2])
    masks = torch.zeros(3, 1, 2 * SIDE, 2 * SIDE, dtype=torch.bool)
    for i, (row, column) in enumerate(((0, 1), (1, 1), (0, 1))):
        masks[i, 0, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = True
    (explanation,) = explain(model, x, [name], target, spec=model.spec)
    trace = record(model, x, target, spec=model.spec)
    return explanation, trace, Batch(x=x, target=target, ids=("a", "b", "c"), masks=masks)


def cell_of(x: Tensor, i: int) -> Tensor:
    row, column = ((0, 1), (1, 1), (0, 1))[i]
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    return x[..., row * h : (row + 1) * h, column * w : (column + 1) * w]


def features_and_rest(model: nn.Module) -> tuple[list[Tensor], nn.Module]:
    """A copy of the model and the list in which its features are kept."""
    network, kept = copy.deepcopy(model), []
    network.get_submodule(model.spec.feature_layer).register_forward_hook(lambda _, __, out: kept.append(out))
    return kept, network


def logits_of(model: nn.Module, features: Tensor) -> Tensor:
    """The rest of the network from other features on."""
    network = copy.deepcopy(model)
    network.get_submodule(model.spec.feature_layer).register_forward_hook(lambda _, __, out: features)
    return network(torch.zeros(1, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64))


@pytest.mark.parametrize("name", ["difull", "dipart"])
def test_input_x_gradient_is_that_of_a_network_cut_by_hand(name: str) -> None:
    explanation, trace, batch = setting("input-x-gradient")
    found = metrics.parse(name).measure(explanation, trace, batch)["cell"]
    for i in range(3):
        x = trace.x[i : i + 1].clone().requires_grad_()
        kept, network = features_and_rest(trace.model)
        network(cell_of(x, i) if name == "difull" else x)
        features = kept[0] if name == "difull" else cell_of(kept[0], i)
        score = logits_of(trace.model, features)[0, trace.target[i]]
        (gradient,) = torch.autograd.grad(score, x)
        maps = (x * gradient).detach().sum(1, keepdim=True)
        assert found[i].item() == pytest.approx(energy_share(maps, batch.masks[i : i + 1]).item(), rel=1e-9)
    assert (found == 1).all() == (name == "difull")


def test_gradcam_of_cells_that_went_through_alone() -> None:
    """The channel weights come from the one cell, the features from all: the map lies on all of them."""
    explanation, trace, batch = setting("gradcam", seed=5)
    found = metrics.parse("difull").measure(explanation, trace, batch)["cell"]
    for i in range(3):
        kept, network = features_and_rest(trace.model)
        x = trace.x[i : i + 1]
        for row in range(2):
            for column in range(2):
                network(x[..., row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE])
        whole = torch.cat([torch.cat(kept[:2], 3), torch.cat(kept[2:], 3)], 2).detach().requires_grad_()
        score = logits_of(trace.model, cell_of(whole, i))[0, trace.target[i]]
        (gradient,) = torch.autograd.grad(score, whole)
        maps = (gradient.mean((2, 3), keepdim=True) * whole).sum(1, keepdim=True).clamp(min=0).detach()
        expected = energy_share(resize(maps, (2 * SIDE, 2 * SIDE)), batch.masks[i : i + 1])
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-9, nan_ok=True)
    assert (found < 1).any()


def test_a_map_that_knows_no_network_has_the_share_of_a_cell() -> None:
    explanation, trace, batch = setting("center")
    for name in ("difull", "dipart"):
        found = metrics.parse(name).measure(explanation, trace, batch)["cell"]
        assert found.tolist() == pytest.approx([0.25] * 3, abs=1e-6)


def test_another_class_than_that_of_the_cell_has_no_value() -> None:
    explanation, trace, batch = setting("input-x-gradient")
    other = Batch(x=batch.x, target=(batch.target + 1) % tiny.CLASSES, ids=batch.ids, masks=batch.masks)
    assert metrics.parse("difull").measure(explanation, trace, other)["cell"].isnan().all()


def test_the_copy_is_cut_and_the_model_is_not() -> None:
    model = tiny.TinyCNN().eval()
    names = [name for name, _ in model.named_modules()]
    network = disconnected(model, model.spec.feature_layer, 2, (0, 0), apart=True)
    assert [name for name, _ in model.named_modules()] == names
    x = tiny.images(1, 2 * SIDE, 2 * SIDE)
    torch.testing.assert_close(network(x), model(x[..., :SIDE, :SIDE]))


def test_a_network_without_a_grid_gives_no_value() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * SIDE * SIDE, 3)).eval()
    spec = dataclasses.replace(tiny.TinyCNN().spec, feature_layer="0", classifier="1", input_size=(2 * SIDE, 2 * SIDE))
    explanation, trace, batch = setting("center")
    trace = record(model, trace.x.float(), trace.target, spec=spec)
    assert metrics.parse("dipart").measure(explanation, trace, batch)["cell"].isnan().all()
