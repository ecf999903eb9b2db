"""Relevance of networks with attention, norms, gates and products: it adds up, in one backward pass, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError
from xattn.explainers import explainers
from xattn.explaining import explain
from xattn.spec import ModelSpec
from xattn.trace import record

METHODS = ("attnlrp", "cp-lrp", "libragrad")
SPEC = ModelSpec(feature_layer="conv")


class Net(nn.Module):
    """A part of which all is made between a convolution and a linear layer; no bias is zero."""

    def __init__(self, part: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.norm, self.group, self.instance = nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.rms, self.batch = nn.RMSNorm(8), nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query, self.token = nn.Linear(8, 24), nn.Parameter(torch.zeros(1, 1, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.part = part
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.2, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(self, self.conv(x))
        return self.fc(y.mean(1) if y.ndim == 3 else y.mean((2, 3)))


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def by_hand(net: Net, y: Tensor) -> Tensor:
    """Layer norm and GELU written out."""
    t = tokens(y)
    t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * net.norm.weight
    return 0.5 * t * (1 + torch.erf(t / 2**0.5)) + net.norm.bias


def first_dimension(net: Net, y: Tensor) -> Tensor:
    """Attention over tokens (T, N, C), as many tokens as would also make images."""
    q, k, v = net.query(net.norm(tokens(y))).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    mask = torch.zeros(q.shape[-2], q.shape[-2]).masked_fill(torch.eye(q.shape[-2], dtype=torch.bool), -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q)).transpose(1, 2).flatten(2)


def with_token(net: Net, y: Tensor) -> Tensor:
    t = torch.cat([net.token.expand(len(y), -1, -1), tokens(y)], dim=1)
    return net.attention(t, t, t, need_weights=False)[0] + t


def in_place(net: Net, y: Tensor) -> Tensor:
    """A bias, a position and a scale, all in one tensor."""
    return net.query(tokens(y))[..., :8].add_(net.norm.weight).mul_(net.norm.bias).add_(net.rms.weight)


PARTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "gelu": lambda net, y: F.gelu(y),
    "silu in place": lambda net, y: F.silu(y, inplace=True),
    "tanh and hardswish": lambda net, y: F.hardswish(torch.tanh(y)),
    "swish by hand": lambda net, y: y * torch.sigmoid(1.7 * y),
    "layer norm": lambda net, y: net.norm(tokens(y)),
    "layer norm by hand": by_hand,
    "group norm": lambda net, y: net.group(y),
    "instance norm": lambda net, y: F.relu(net.instance(y)),
    "rms norm": lambda net, y: net.rms(tokens(y)),
    "batch norm": lambda net, y: F.relu(net.batch(y)),
    "global response norm": lambda net, y: torch.addcmul(
        net.token.view(1, 8, 1, 1), net.norm.weight.view(1, 8, 1, 1), y * (y.norm(dim=(2, 3), keepdim=True) / 7)
    ),
    "sums in place": in_place,
    "added to a linear layer": lambda net, y: F.linear(tokens(y), net.norm.weight.diag(), net.norm.bias).add_(2.5),
    "squared relu": lambda net, y: net.norm(F.relu(tokens(y)).square()),
    "cube": lambda net, y: y**3 + y.pow(2.0),
    "rms norm by hand": lambda net, y: y * y.pow(2).mean(1, keepdim=True).add(1e-5) ** -0.5,
    "padded with ones": lambda net, y: F.avg_pool2d(F.pad(y, (1, 1, 1, 1), value=1.5), 3),
    "largest in a padded window": lambda net, y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=-torch.inf), 3),
    "windows that overlap": lambda net, y: (
        F.fold(F.gelu(F.unfold(y, 2)), y.shape[-2:], 2) + y.unfold(3, 2, 1).mean((2, 3, 4))[..., None, None]
    ),
    "clamped by a buffer": lambda net, y: y.clamp(torch.tensor(-0.5), torch.tensor(torch.inf)),
    "unit vectors": lambda net, y: F.normalize(tokens(y), dim=-1) * 3,
    "squeeze-excitation": lambda net, y: y * net.squeeze(y.mean((2, 3), keepdim=True)).sigmoid(),
    "gated linear unit": lambda net, y: F.glu(net.query(tokens(y)), dim=-1)[..., :8],
    "product of two": lambda net, y: y * net.squeeze(y) + 1.5,
    "multi-head attention": with_token,
    "masked attention": first_dimension,
    "encoder": lambda net, y: net.encoder(tokens(y)),
    "max pool": lambda net, y: F.max_pool2d(y, 2) - 0.3,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PARTS)
def test_relevance_adds_up_in_one_backward_pass(method: str, name: str) -> None:
    """With what biases and other constants keep, counted on the way back image by image."""
    net = tiny.seeded(lambda: Net(PARTS[name])).double().eval()
    trace = record(net, tiny.images(2, 16, 16).double(), [0, 2], spec=SPEC, grad=False)
    found = explainers.create(method)
    maps = found.attribute(trace)
    assert (trace.forwards, trace.backwards) == (2, 1)
    assert maps.abs().max() > 0
    absorbed, total, _ = found.books(trace)
    torch.testing.assert_close(maps.sum((1, 2, 3)) + absorbed, total)
    torch.testing.assert_close(total, trace.logits[[0, 1], [0, 2]])


@pytest.mark.parametrize("network", ["tiny_vit", "tiny_vit_mean", "tiny_cnn", "tiny_bcnn", "tiny_brnpa"])
def test_single_precision_adds_up_as_well(network: str) -> None:
    model = getattr(tiny, network)()
    for method in METHODS:
        assert explain(model, tiny.images(3), method, spec=model.spec).status == ("ok",) * 3


def test_what_is_not_counted_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn.explainers.balanced import Balance

    monkeypatch.setattr(Balance, "_keep", lambda self, y, constant: y)
    model = tiny.tiny_vit()
    with pytest.warns(match="non-conserving"):
        explain(model, tiny.images(2), "cp-lrp", spec=model.spec)


def test_what_the_three_share() -> None:
    """The softmax is all that AttnLRP adds to CP-LRP, which is LibraGrad where there is no product of two maps."""
    vit, cnn, x = tiny.tiny_vit(), tiny.tiny_cnn(), tiny.images(2)
    attn, cp, libra = (explain(vit, x, name, 1, spec=vit.spec).maps for name in METHODS)
    assert cp.equal(libra)
    assert not torch.allclose(attn, cp, rtol=0.1)
    attn, cp, libra = (explain(cnn, x, name, 1, spec=cnn.spec).maps for name in METHODS)
    assert attn.equal(cp)
    # All that a CNN of ReLUs and biases has is input x gradient.
    torch.testing.assert_close(cp, explain(cnn, x, "input-x-gradient", 1, spec=cnn.spec).maps)


def test_a_call_without_a_rule_is_refused() -> None:
    net = tiny.seeded(lambda: Net(lambda net, y: y.cumprod(1)))
    with pytest.raises(NotApplicableError, match=r"Net calls cumprod\(\), for which there is no relevance rule"):
        explain(net, tiny.images(2, 16, 16), "attnlrp", spec=SPEC)


@pytest.mark.parametrize("method", ["lrp", "deep-taylor"])
def test_lrp_says_what_to_use_and_it_works(method: str) -> None:
    vit = tiny.tiny_vit()
    norm = tiny.seeded(lambda: Net(PARTS["layer norm"])).eval()
    for model, x, spec in ((vit, tiny.images(2), vit.spec), (norm, tiny.images(2, 16, 16), SPEC)):
        with pytest.raises(NotApplicableError, match=r"attnlrp, cp-lrp (and|or) libragrad"):
            explain(model, x, method, spec=spec)
        for other in METHODS:
            assert explain(model, x, other, spec=spec).status == ("ok", "ok")


@pytest.mark.parametrize("architecture", ["swin", "convnext", "dinov2"])
def test_networks_of_timm(architecture: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = {
        "swin": lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(2, 2), num_heads=(2, 2), num_classes=5
        ),
        "convnext": lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5),
        "dinov2": lambda: timm.create_model(
            "vit_small_patch14_dinov2", img_size=56, embed_dim=12, depth=2, num_heads=2, num_classes=5, init_values=0.5
        ),
    }[architecture]().eval()  # fmt: skip
    x = tiny.images(2, 56, 56)
    for method in METHODS:
        trace = record(model, x, 1, spec=SPEC, grad=False)
        found = explainers.create(method)
        maps = found.attribute(trace)
        assert float(found.conservation(trace, maps).max()) < 1e-4
        assert maps.abs().max() > 0
        assert trace.backwards == 1
