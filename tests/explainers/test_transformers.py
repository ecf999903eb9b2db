"""Vision transformers of torchvision and timm: facts, recorded attention, methods that serve them and that refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from tests.cheap import cheap
from xattn.attention_taps import PROBABILITIES, SCORES, layer_of
from xattn.errors import NotApplicableError, ParameterError, SpecError
from xattn.explainers import explainers, resolve
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.inspection import infer_spec
from xattn.spec import ModelSpec, TokenGrid
from xattn.trace import Trace, record

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False, **(SIZE | options))


def torchvision_vit() -> nn.Module:
    module = pytest.importorskip("torchvision.models.vision_transformer")
    return module.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48, num_classes=5)


def torchvision_swin() -> nn.Module:
    return pytest.importorskip("torchvision.models").SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], TokenGrid]] = {
    "torchvision": (torchvision_vit, TokenGrid(patch=(8, 8), prefix=1)),
    "vit": (from_timm("vit_tiny_patch16_224"), TokenGrid(patch=(8, 8), prefix=1)),
    "deit distilled": (
        from_timm("deit_tiny_distilled_patch16_224"),
        TokenGrid(patch=(8, 8), prefix=2, class_tokens=2),
    ),
    "layer scale": (from_timm("deit3_small_patch16_224", init_values=0.5), TokenGrid(patch=(8, 8), prefix=1)),
    "registers": (from_timm("vit_small_patch14_reg4_dinov2"), TokenGrid(patch=(8, 8), prefix=5)),
    "no class token": (
        from_timm("vit_tiny_patch16_224", global_pool="avg", class_token=False),
        TokenGrid(patch=(8, 8)),
    ),
    "mean beside a class token": (
        from_timm("vit_tiny_patch16_224", global_pool="avg"),
        TokenGrid(patch=(8, 8), prefix=1, class_tokens=0),
    ),
    "position bias": (from_timm("beit_base_patch16_224"), TokenGrid(patch=(8, 8), prefix=1, class_tokens=0)),
}
CAMS = ("gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigencam", "activation")


def built(name: str) -> tuple[nn.Module, ModelSpec, Tensor]:
    model = seeded(MODELS[name][0])
    return model, infer_spec(model, name=name), tiny.images(2, seed=4)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Weights of usual size, and nothing that starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0, parameter[0].numel() ** -0.5)
            elif "bias" in name:
                nn.init.normal_(parameter, 0, 0.1)
    return model.eval()


def run(model: nn.Module, x: Tensor, method: str, spec: ModelSpec, target: Any = 1) -> Explanation:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Explanation.status")
        return explain(model, x, method, target, spec=spec)


def taps(spec: ModelSpec, kind: str = PROBABILITIES) -> list[str]:
    return [layer_of(name, kind) for name in spec.probability_layers]


@pytest.mark.parametrize("name", MODELS)
class TestEveryTransformer:
    def test_facts(self, name: str) -> None:
        _, spec, _ = built(name)
        assert spec.tokens == MODELS[name][1]
        assert len(spec.probability_layers) == 2
        assert ModelSpec.from_dict(spec.to_dict()) == spec

    def test_step_by_step_is_what_the_model_computes(self, name: str) -> None:
        model, spec, x = built(name)
        trace = record(model, x, 1, spec=spec, layers=[*taps(spec), *taps(spec, SCORES)])
        with torch.no_grad():
            torch.testing.assert_close(trace.logits, model(x), rtol=1e-5, atol=1e-5)
        count = 16 + MODELS[name][1].prefix
        for probabilities, scores in zip(taps(spec), taps(spec, SCORES), strict=True):
            found = trace.activation(probabilities)
            assert found.shape == (2, 2, count, count)
            torch.testing.assert_close(found, trace.activation(scores).softmax(dim=-1))
            # The gradient by a softmax's input, from that by its output.
            arriving = trace.gradient(probabilities)
            expected = found * (arriving - (found * arriving).sum(dim=-1, keepdim=True))
            torch.testing.assert_close(trace.gradient(scores), expected, rtol=1e-4, atol=1e-6)
            assert arriving.abs().max() > 0

    @pytest.mark.parametrize("method", tiny.ATTENTION_METHODS)
    def test_attention_methods(self, name: str, method: str) -> None:
        model, spec, x = built(name)
        found = run(model, x, method, spec)
        assert found.maps.shape == (2, 1, 4, 4)
        assert found.status == ("ok", "ok")
        alone = run(model, x[1:], method, spec)
        torch.testing.assert_close(found.maps[1:], alone.maps, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("method", CAMS)
    def test_cams_on_the_tokens(self, name: str, method: str) -> None:
        model, spec, x = built(name)
        found = run(model, x, method, spec)
        assert found.maps.shape == (2, 1, 4, 4)
        assert not set(found.status) & {"nan", "constant"}


@pytest.mark.parametrize("method", [m for m in explainers.names() if explainers.get(m).family.value == "CAM"])
def test_every_cam_serves_or_refuses_a_transformer(method: str) -> None:
    model, x = tiny.tiny_vit(), tiny.images(2)
    try:
        found = run(model, x, cheap(method), model.spec)
    except NotApplicableError:
        return
    assert found.maps.shape == (2, 1, 8, 8)
    assert "nan" not in found.status


@pytest.mark.parametrize("build", [torchvision_swin, from_timm("swin_tiny_patch4_window7_224")])
def test_swin_has_a_grid_but_no_attention_over_all_tokens(build: Callable[[], nn.Module]) -> None:
    if build is not torchvision_swin:
        timm = pytest.importorskip("timm")
        options = {"img_size": 32, "window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
        model = seeded(lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **options))
    else:
        model = seeded(build)
    x = tiny.images(2, seed=4)
    spec = infer_spec(model, input_size=(32, 32))
    assert spec.probability_layers == ()
    for method in CAMS:
        assert run(model, x, method, spec).maps.shape == (2, 1, 4, 4)
    for method in tiny.ATTENTION_METHODS:
        with pytest.raises(NotApplicableError, match=rf"^{method}: .*none that can be read .*Swin's is in windows"):
            run(model, x, method, spec)


@pytest.mark.parametrize("method", tiny.ATTENTION_METHODS)
def test_convolutional_networks_are_refused(method: str) -> None:
    model = tiny.tiny_cnn()
    with pytest.raises(NotApplicableError, match=rf"^{method}: reads the attention of a vision transformer"):
        explain(model, tiny.images(1), method, spec=model.spec)


def test_other_sizes_and_patches_that_are_not_square() -> None:
    model = seeded(from_timm("vit_tiny_patch16_224", dynamic_img_size=True))
    x = tiny.images(2, 32, 48)
    spec = infer_spec(model, input_size=(32, 48))
    for method in ("gradcam", *tiny.ATTENTION_METHODS):
        assert run(model, x, method, spec).maps.shape == (2, 1, 4, 6)
    model = seeded(from_timm("vit_tiny_patch16_224", img_size=(32, 32), patch_size=(4, 8)))
    spec = infer_spec(model)
    assert spec.tokens == TokenGrid(patch=(4, 8), prefix=1)
    assert run(model, tiny.images(2), "agcam", spec).maps.shape == (2, 1, 8, 4)


def test_a_layer_that_no_gradient_reaches_is_flagged() -> None:
    """Behind the last attention only the class token has a gradient, so that a CAM of the other tokens is all zero."""
    model, spec, x = built("vit")
    with pytest.warns(UserWarning, match=r"gradcam: 2 all-zero of 2 maps"):
        found = explain(model, x, "gradcam:layer=blocks.1", 1, spec=spec)
    assert found.status == ("all-zero", "all-zero")


# --- recorded attention ------------------------------------------------------------------------------------------


def test_the_model_is_not_touched_also_after_an_exception() -> None:
    model, spec, x = built("vit")
    fused = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    assert all(fused)
    model.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("the layer broke")))
    for method in tiny.ATTENTION_METHODS:
        with pytest.raises(RuntimeError, match="the layer broke"):
            run(model, x, method, spec)
    assert [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")] == fused
    assert [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks] == ["head"]
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.is_grad_enabled()


def test_nothing_before_the_first_tap_has_a_graph() -> None:
    model = tiny.tiny_vit()
    seen: list[bool] = []
    model.backbone.blocks[0].register_forward_hook(lambda _, inputs, output: seen.append(output.requires_grad))
    record(model, tiny.images(1), spec=model.spec, layers=taps(model.spec)[1:])
    assert seen == [False]


class Masked(nn.Module):
    """Attention by the fused kernel, with what it may be given besides."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.Identity()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).unflatten(1, (1, 3)).transpose(2, 3)
        return self.attn_over(tokens)[:, 0, 0]

    def attn_over(self, tokens: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(tokens, tokens, tokens, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.arange(16).view(4, 4) % 3 < 2},
        {"attn_mask": torch.arange(16.0).view(4, 4) / 5},
    ],
    ids=str,
)
def test_options_of_the_fused_kernel(options: dict[str, Any]) -> None:
    outer = nn.Sequential()
    outer.add_module("mixer", Masked(**options))
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    trace = record(outer, x, 0, spec=ModelSpec(feature_layer="mixer"), layers=["mixer:probabilities"], grad=False)
    torch.testing.assert_close(trace.logits, outer(x))


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 3, "vdim": 3}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_options_of_multi_head_attention(options: dict[str, Any], masked: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, **options).eval()
    query, other = torch.randn(2, 5, 6), torch.randn(2, 5, 3 if "kdim" in options else 6)
    shape = (5, 5) if "batch_first" in options else (2, 2)
    mask = torch.arange(shape[0] * shape[1]).view(shape) % 4 == 3 if masked else None

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            given = {"need_weights": x.sum() > 0, "attn_mask": mask}
            mixed, weights = self.attention(query, other, other, **given)
            mixed = mixed if attention.batch_first else mixed.transpose(0, 1)
            return torch.cat([mixed.flatten(1), *([] if weights is None else [weights.flatten(1)])], dim=1)

    model, spec = Outer(), ModelSpec(feature_layer="attention")
    for x in (torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4)):
        trace = record(model, x, 0, spec=spec, layers=["attention:probabilities"], grad=False)
        torch.testing.assert_close(trace.logits, model(x))


def test_attention_that_cannot_be_read_is_told() -> None:
    model = tiny.tiny_vit()
    with pytest.raises(NotApplicableError, match=r"no attention that can be read ran in 'backbone.blocks.0.mlp'"):
        record(model, tiny.images(1), spec=model.spec, layers=["backbone.blocks.0.mlp:scores"])
    with pytest.raises(SpecError, match="2 class tokens are not among 1 prefix tokens"):
        TokenGrid(patch=(4, 4), prefix=1, class_tokens=2)


# --- methods -----------------------------------------------------------------------------------------------------


def test_agcam_reads_the_class_token_alone() -> None:
    """With the detach the gradient comes by the residual sums, so that no other row of it is not zero."""
    from xattn.explainers.transformer import _detached

    model, spec, x = built("vit")
    with _detached(model, spec.probability_layers):
        trace = record(model, x, 1, spec=spec, layers=taps(spec))
    plain = record(model, x, 1, spec=spec, layers=taps(spec))
    for layer in taps(spec):
        rows = trace.gradient(layer).abs().sum((1, 3))
        assert rows[:, 0].min() > 0
        assert not rows[:, 1:].any()
    first, last = taps(spec)
    assert plain.gradient(first)[:, :, 1:].abs().max() > 0
    torch.testing.assert_close(plain.gradient(last), trace.gradient(last))  # nothing follows it that could differ
    assert not torch.allclose(run(model, x, "agcam", spec).maps, run(model, x, "agcam:detach=false", spec).maps)


def test_cost() -> None:
    model, x = tiny.tiny_vit(), tiny.images(2)
    expected = {
        "raw-attention": (1, 0), "rollout": (1, 0), "attention-x-gradient": (1, 1), "agcam:detach=false": (1, 1),
        "agcam": (2, 1), "transformer-attribution": (2, 2), "legrad": (3, 1),
    }  # fmt: skip
    for name, passes in expected.items():
        (method,) = resolve(name)
        trace = record(model, x, spec=model.spec, layers=method.layers(model.spec), grad=method.grad)
        method.explanation(trace)
        assert (trace.forwards, trace.backwards) == passes, name


def attribution(model: nn.Module, x: Tensor, spec: ModelSpec) -> tuple[Explanation, Tensor]:
    (method,) = resolve("transformer-attribution")
    trace = record(model, x, 1, spec=spec, layers=method.layers(spec))
    found = method.explanation(trace)
    return found, method.conservation(trace, found.maps)


@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_conserved(name: str) -> None:
    found, error = attribution(*(built(name)[i] for i in (0, 2, 1)))
    assert found.status == ("ok", "ok")
    assert error.max() < 1e-5


def test_relevance_that_is_lost_is_told() -> None:
    """A classifier without a positive product has nothing to hand its relevance to."""
    model, spec, x = built("vit")
    with torch.no_grad():
        model.head.weight.zero_()
    found, error = attribution(model, x, spec)
    assert error.min() == 1
    assert set(found.status) <= {"non-conserving", "all-zero"}


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("eva02_tiny_patch14_224", {}, r"computes mul\(\) of two tensors"),
        ("vit_base_patch16_siglip_224", {}, r"calls scaled_dot_product_attention\(\)"),
    ],
)
def test_layers_without_a_rule_are_refused(name: str, options: dict[str, Any], what: str) -> None:
    model = seeded(from_timm(name, **options))
    spec, x = infer_spec(model), tiny.images(1)
    with pytest.raises(NotApplicableError, match=rf"transformer-attribution: .* {what}.* in or behind its first block"):
        run(model, x, "transformer-attribution", spec)
    assert run(model, x, "attention-x-gradient", spec).status == ("ok",)


class Spelled(nn.Module):
    """One block of a transformer with its calls in unusual spellings."""

    def __init__(self, end: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.patch, self.end = nn.Conv2d(3, 8, 4, 4), end
        self.block = nn.ModuleDict({"attn": nn.Sequential(nn.LayerNorm(8), OneHead()), "mlp": nn.Linear(8, 8)})
        self.block.forward = self.mix
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        x = torch.add(x, self.block["attn"](x))
        y = F.gelu(input=self.block["mlp"](x))
        y *= 0.5
        y += x
        return self.end(y)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.block(self.patch(x).flatten(2).mT))
        return tokens.mean(dim=1) @ self.head.weight.T


class OneHead(nn.Module):
    """Attention without projections, by explicit products."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(torch.bmm(x, x.mT)[:, None] / 8**0.5, dim=3)
        return torch.matmul(weights, x[:, None]).squeeze(1)


def test_rules_see_calls_however_they_are_spelled() -> None:
    model, x = tiny.seeded(Spelled), tiny.images(2)
    spec = ModelSpec(
        feature_layer="patch", probability_layers=("block.attn",), tokens=TokenGrid(patch=(4, 4)), input_size=(32, 32)
    )
    found, error = attribution(model, x, spec)
    assert found.status == ("ok", "ok")
    assert error.max() < 1e-9
    for end, what in (
        (lambda y: torch.div(1, y), "divides a constant by a tensor"),
        (lambda y: y * y.sigmoid(), r"calls sigmoid\(\)"),
        (lambda y: y.sin_(), r"calls sin\(\)"),
        (lambda y: y @ y.mT @ y[:1], r"multiplies \(2, 64, 64\) by \(1, 64, 8\)"),
    ):
        model.end = end
        with pytest.raises(NotApplicableError, match=what):
            attribution(model, x, spec)


def test_a_binary_transformer() -> None:
    model = tiny.seeded(tiny.TinyViT)
    model.head.classifier = nn.Linear(16, 1)
    x = tiny.images(2)
    two = run(model, x, "agcam", model.spec, [0, 1]).maps
    torch.testing.assert_close(two[1:], run(model, x[1:], "agcam", model.spec, 1).maps)
    run(model, x, "transformer-attribution", model.spec, 1)
    with pytest.raises(NotApplicableError, match="class 0 of a model with one output"):
        run(model, x, "transformer-attribution", model.spec, 0)


@pytest.mark.parametrize("method", ["rollout", "attention-x-gradient", "transformer-attribution"])
def test_a_first_layer_that_does_not_exist(method: str) -> None:
    model = tiny.tiny_vit()
    with pytest.raises(ParameterError, match=f"{method}: start_layer=2 leaves none of 2 layers"):
        run(model, tiny.images(1), f"{method}:start_layer=2", model.spec)
    with pytest.raises(ParameterError, match="start_layer must be at least 0"):
        run(model, tiny.images(1), f"{method}:start_layer=-1", model.spec)


def test_one_block_is_enough() -> None:
    model = seeded(from_timm("vit_tiny_patch16_224", depth=1))
    spec = infer_spec(model)
    assert spec.probability_layers == ("blocks.0.attn",)
    for method in tiny.ATTENTION_METHODS:
        assert run(model, tiny.images(2), method, spec).status == ("ok", "ok")


def test_facts_of_a_trace_that_say_nothing_of_tokens() -> None:
    model = tiny.tiny_vit()
    (method,) = resolve("rollout")
    spec = replace(model.spec, tokens=None)
    trace: Trace = record(model, tiny.images(1), spec=spec, layers=method.layers(spec))
    with pytest.raises(NotApplicableError, match="none that can be read"):
        method.explanation(trace)
