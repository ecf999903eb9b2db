"""The compact ResNet, and torchvision's as a second witness."""

from __future__ import annotations

import pytest
import torch

from xattn.errors import ParameterError
from xattn.models.resnet import ResNet


def test_compact_network_has_the_size_that_it_is_embedded_with() -> None:
    model = ResNet()
    assert sum(p.numel() for p in model.parameters()) == 1_965_920
    assert [name for name, _ in model.named_children()] == [
        *("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4")
    ]


@pytest.mark.parametrize(("strides", "grid"), [((1, 2, 2, 2), 4), ((1, 2, 2, 1), 8), ((1, 2, 1, 1), 16)])
def test_strides_set_the_grid_and_leave_the_weights(strides: tuple[int, ...], grid: int) -> None:
    model = ResNet((4, 4, 8, 8), (1, 1, 1, 1), strides).eval()
    model.load_state_dict(ResNet((4, 4, 8, 8), (1, 1, 1, 1)).state_dict())
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 8, grid, grid)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_gives_the_same_features_with_the_same_weights(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, name)(weights=None).eval()
    bottleneck = name == "resnet50"
    blocks = (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)
    mine = ResNet((64, 128, 256, 512), blocks, stem="imagenet", bottleneck=bottleneck).eval()
    mine.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    trunk = torch.nn.Sequential(*list(theirs.children())[:-2]).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(mine(x), trunk(x))


def test_circular_padding_moves_with_the_image() -> None:
    torch.manual_seed(0)
    model = ResNet((4, 4, 4, 4), (1, 1, 1, 1), (1, 1, 1, 1), circular=True).double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x.roll(4, dims=3)), model(x).roll(2, dims=3))


def test_no_module_runs_twice() -> None:
    model = ResNet((4, 4, 8, 8), (2, 1, 1, 1))
    calls: dict[str, int] = {}

    def count(name: str) -> object:
        return lambda *_: calls.__setitem__(name, calls.get(name, 0) + 1)

    for name, module in model.named_modules():
        module.register_forward_hook(count(name))  # type: ignore[arg-type]
    model(torch.zeros(1, 3, 32, 32))
    assert set(calls.values()) == {1}


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ParameterError, match="4, 3 and 4"):
        ResNet(blocks=(1, 1, 1))
    with pytest.raises(ParameterError, match="stem must be"):
        ResNet(stem="large")
