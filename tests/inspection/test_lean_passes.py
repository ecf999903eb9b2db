"""What the inference of facts keeps of its first pass, and that nothing that is found hangs on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from xattn.errors import SpecError
from xattn.inspection import infer_spec, probing
from xattn.spec import ModelSpec


class Block(nn.Module):
    """A block of a transformer whose norms have names of their own; attention is a softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.behind = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 8 * width), nn.GELU(), nn.Linear(8 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        x = x + (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        return x + self.mlp(self.behind(x))


class Tokens(nn.Module):
    """Patches and a class token that is read alone, so that the last block gives no gradient to the patches."""

    def __init__(self, blocks: int = 6, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.patches(x).flatten(2).mT
        return self.fc(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), cells], dim=1) + self.place)[:, 0])


def inferred(monkeypatch: pytest.MonkeyPatch, values: int) -> tuple[ModelSpec, int]:
    """The facts about it and the images that they took, when so many values are kept for gradients."""
    monkeypatch.setattr(probing, "_LAST_SAVED", values)
    torch.manual_seed(0)
    model, images = Tokens().eval(), []
    model.register_forward_pre_hook(lambda module, given: images.append(len(given[0])))
    return infer_spec(model, torch.randn(1, 3, 64, 64)), sum(images)


def test_what_is_kept_changes_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that gradients need, with the last of it, and with nothing, where another pass makes up for it."""
    everything, images = inferred(monkeypatch, 2**30)
    assert images == 3
    assert everything.tokens.prefix == everything.tokens.class_tokens == 1
    # The gradient of the score reaches all tokens here, and not behind the attention of the last block.
    assert everything.feature_layer == "blocks.5.before"
    some, images = inferred(monkeypatch, 2**16)
    assert (some, images) == (everything, 3)
    nothing, images = inferred(monkeypatch, 0)
    assert (nothing, images) == (everything, 4)


def test_what_was_changed_in_place_is_not_used() -> None:
    """Autograd itself refuses what was written into after it was saved; with hooks it would take it as it is."""
    x = torch.randn(4, requires_grad=True)
    for change, refused in ((lambda y: y, False), (lambda y: y.add_(1), True)):
        with probing._LastSaved(100):
            y = x.exp()
            z = change(y).sum()
        if refused:
            with pytest.raises(probing.DroppedError):
                torch.autograd.grad(z, x)
        else:
            torch.testing.assert_close(torch.autograd.grad(z, x)[0], x.detach().exp())


def test_the_first_tensors_are_dropped() -> None:
    """Of three steps the last ones can be gone back through, the first one not."""
    x = torch.randn(8, requires_grad=True)
    with probing._LastSaved(20):
        a = x.exp()
        b = a.exp()
        c = b.exp().sum()
    (gradient,) = torch.autograd.grad(c, a, retain_graph=True)
    torch.testing.assert_close(gradient, (b * b.exp()).detach())
    with pytest.raises(probing.DroppedError):
        torch.autograd.grad(c, x)


class Attends(nn.Module):
    """A module without layers of its own that attends by one fused call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return nnf.scaled_dot_product_attention(*((x @ self.weight)[:, None],) * 3)[:, 0]


def test_attention_is_noted_by_the_innermost_module() -> None:
    """A leaf without layers, a softmax as a layer, `nn.MultiheadAttention`; plain layers around them are not named."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.leaf = Attends(8)
            self.inner = nn.ModuleDict({"soft": nn.Softmax(dim=-1)})
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            t = self.leaf(self.norm(x.flatten(2).mT))
            t = self.inner["soft"](t @ t.mT) @ t
            return self.heads(t, t, t, need_weights=False)[0].mean(1)

    probe = probing.run(Several().eval(), torch.randn(1, 8, 4, 4), graph=True, attention=True)
    assert probe.attention == [
        ("leaf", torch.Size((1, 1, 16, 16))),
        ("inner.soft", torch.Size((1, 16, 16))),
        ("heads", torch.Size((1, 2, 16, 16))),
    ]


def test_layers_in_blocks_that_hand_on_are_recorded_when_named() -> None:
    """They are left out of the first pass, but one that a person names is still told for what it is."""
    torch.manual_seed(0)
    steps = (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Dropout(), nn.ReLU(), nn.Identity()) for _ in range(1))
    model = nn.Sequential(nn.Sequential(*steps), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 4))
    x = torch.randn(1, 3, 32, 32)
    names = [call.name for call in probing.run(model, x, graph=True, lean=True).calls]
    assert names == ["0.0.0", "0.0.2", "0.0", "0", "1", "2", "3", "4"]
    for layer in ("0.0.1", "0.0.3"):
        with pytest.raises(SpecError, match=f"layer '{layer}' gives no map"):
            infer_spec(model, x, feature_layer=layer)
