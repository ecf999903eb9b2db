"""Conversion: the trained classifier is shared by the parts, and with parts that cover everything nothing changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import xattn
from xattn.errors import NotApplicableError, ParameterError, UnknownNameError
from xattn.functional.br_npa import br_npa_maps
from xattn.inspection import infer_spec
from xattn.models import create_model, load_model, save_weights
from xattn.models.converting import convert, everywhere, recalibrated, weighting_of
from xattn.models.dilated_layers import old_cells
from xattn.models.shared_heads import SharedCellHead, SharedHead

# Small members of the families that the law is tested on here; benchmarks/convert/law.py has all.
NETWORKS = {
    "squeezenet1_1": SharedCellHead,
    "mobilenet_v3_small": SharedHead,
    "shufflenet_v2_x0_5": SharedHead,
    "timm/test_resnet": SharedHead,
    "timm/test_efficientnet": SharedHead,
    "timm/test_byobnet": SharedHead,
    "timm/test_convnext2": SharedHead,
    "timm/test_nfnet": SharedHead,
    "timm/lcnet_035": SharedHead,
    "timm/tf_mobilenetv3_small_minimal_100": SharedHead,
    "timm/ghostnet_050": SharedHead,
}
SIZE = 64


def network(name):
    """A network of a library in float64, with numbers for what starts as zero, and settled batch norm."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        model = pytest.importorskip("timm").create_model(name.removeprefix("timm/"), num_classes=7)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        model = pytest.importorskip("torchvision").models.get_model(name, weights=None, num_classes=7, **options)
    with torch.no_grad():
        for p in model.parameters():
            if not bool(p.any()):
                p.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.randn(4, 3, SIZE, SIZE))
    return model.eval().double()


@pytest.mark.parametrize("name", NETWORKS)
def test_with_parts_that_cover_everything_it_is_the_network_of_before(name):
    model = network(name)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    spec = infer_spec(model, x)
    wanted = model(x)
    low = convert(model, weighting="equal", spec=spec, x=x)
    assert isinstance(low.head, NETWORKS[name])
    features = low.backbone(x)
    for factor in (1, 4):
        finer = low if factor == 1 else convert(model, parts=2, resolution="high", spec=spec, x=x)
        cells = finer.backbone(x)
        assert cells.shape[2:] == tuple(factor * side for side in features.shape[2:])
        old = old_cells(finer.backbone)
        torch.testing.assert_close(cells[:, :, old, old], features, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(everywhere(finer)(x), wanted, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(finer(x), wanted, rtol=1e-6)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(model(x), wanted)


def by_definition(features, weight, bias, parts):
    """Logits of one image cell by cell: mean over the parts of W (sum_i A_i f_i) + b, features (C, h, w)."""
    cells = features.flatten(1).T.tolist()
    active = [math.hypot(*cell) + 1e-5 for cell in cells]
    norms = [*active]
    logits = [0.0] * len(weight)
    for _ in range(parts):
        seed = active.index(max(active))
        alike = [
            max(sum(a * b for a, b in zip(cell, cells[seed], strict=True)) / (n * norms[seed]), 0.0)
            for cell, n in zip(cells, norms, strict=True)
        ]
        active = [a * (1 - s) for a, s in zip(active, alike, strict=True)]
        vector = [
            sum(s * cell[c] for s, cell in zip(alike, cells, strict=True)) / sum(alike) for c in range(len(cells[0]))
        ]
        for k, row in enumerate(weight.tolist()):
            logits[k] += (sum(w * v for w, v in zip(row, vector, strict=True)) + float(bias[k])) / parts
    return logits


def test_the_classifier_is_shared_by_the_parts():
    torch.manual_seed(0)
    model = Plain().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    made = convert(model, parts=3, weighting="equal", x=x)
    with torch.no_grad():
        features, logits = model.features(x), made(x)
        for i in range(2):
            wanted = by_definition(features[i], model.fc.weight, model.fc.bias, 3)
            assert logits[i].tolist() == pytest.approx(wanted, abs=1e-9)
    assert (made.spec.attention, made.spec.classifier) == ("brnpa", "head.classifier")
    assert made.head.classifier.weight.shape == (5, 3 * 6)


def test_scores_of_cells_are_averaged_where_the_classifier_comes_before_the_pooling():
    model = network("squeezenet1_1").requires_grad_(False)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    made = convert(model, parts=2, weighting="equal", x=x)
    features = model.features(x)
    scores = model.classifier[1](features).relu()
    wanted = (scores[:, None] * br_npa_maps(features, 2)[:, :, None]).sum((3, 4)).mean(1)
    torch.testing.assert_close(made(x), wanted, rtol=1e-9, atol=1e-9)
    part = xattn.explain(made, x, "part-cam")
    assert part.status == ("ok", "ok")
    torch.testing.assert_close(part.maps.sum((1, 2, 3)), made(x).amax(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/test_resnet"])
def test_parts_that_count_as_much_as_they_cover_leave_the_logits(name):
    model = network(name).requires_grad_(False)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    made = convert(model, parts=3, weighting="coverage", spec=infer_spec(model, x), x=x)
    torch.testing.assert_close(made(x), model(x), rtol=1e-9, atol=1e-9)
    part, shown = xattn.explain(made, x, ["part-cam", "brnpa"])
    assert part.status == ("ok", "ok")
    features = made.backbone(x)
    torch.testing.assert_close(part.maps.sum((1, 2, 3)) + _bias(made, x), made(x).amax(1), rtol=1e-6, atol=1e-9)
    first = br_npa_maps(features, 3)[:, 0]
    wanted = first / first.amax((1, 2), keepdim=True) * features.norm(dim=1) * 3 / features[0, 0].numel()
    torch.testing.assert_close(shown.parts[:, 0], wanted, rtol=1e-6, atol=1e-9)
    # At a finer grid all cells count, those between the old ones, too.
    finer = convert(model, parts=3, weighting="coverage", resolution="x2", spec=infer_spec(model, x), x=x)
    cells = finer.backbone(x)
    scores = cells if name.startswith("timm") else finer.head.classifier(cells).relu()
    means = scores.mean((2, 3))
    wanted = model.get_classifier()(means) if name.startswith("timm") else means
    torch.testing.assert_close(finer(x), wanted, rtol=1e-9, atol=1e-9)


def _bias(made, x):
    """What is in the logit and in no cell: of a classifier behind the pooling."""
    return 0.0 if isinstance(made.head, SharedCellHead) else made.head.classifier.bias[made(x).argmax(1)]


def test_parts_are_weighted_by_what_they_cover_unless_asked_otherwise(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    for name in ("squeezenet1_1", "tiny-cnn"):
        assert weighting_of(convert(create_model(name, num_classes=4))) == "coverage"
        for weighting in ("equal", "coverage"):
            made = convert(create_model(name, num_classes=4), weighting=weighting)
            back = load_model(save_weights(made, tmp_path / "net.safetensors"))
            assert (weighting_of(back), back.architecture) == (weighting, made.architecture)
            assert torch.equal(back(x), made(x))
    with pytest.raises(ParameterError, match="weighting must be one of coverage, equal but is 'area'"):
        convert(create_model("tiny-cnn"), weighting="area")


def test_attention_that_is_to_be_trained_shares_the_classifier(tmp_path):
    torch.manual_seed(0)
    model = create_model("tiny-cnn", num_classes=4)
    x = torch.randn(2, 3, 64, 64)
    made, again = (convert(model, head="bcnn", parts=2, resolution="x2") for _ in range(2))
    assert made.spec.attention == "bcnn"
    with torch.no_grad():
        features = made.backbone(x)
        maps = made.head.attention(features)
        weight, bias = model.head.classifier.weight, model.head.classifier.bias
        for i in range(2):
            logits = bias.double().clone()
            for part in range(2):
                vector = sum(
                    float(maps[i, part, r, c]) * features[i, :, r, c].double()
                    for r in range(maps.shape[2])
                    for c in range(maps.shape[3])
                )
                logits += weight.double() @ vector / maps[0, 0].numel() / 2
            torch.testing.assert_close(made(x)[i].double(), logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(made(x), again(x))
    assert xattn.explain(made, x, "part-cam").status == ("ok", "ok")
    back = load_model(save_weights(made, tmp_path / "net.safetensors"))
    assert torch.equal(back(x), made(x))
    assert back.architecture == made.architecture


class Plain(nn.Module):
    """Features, mean, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def pool(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return self.fc(self.pool(self.features(x)))


class Largest(Plain):
    def pool(self, x):
        return x.amax((2, 3))


class Flattened(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6 * 64, 5)

    def pool(self, x):
        return x.flatten(1)


class TwoWays(Plain):
    def forward(self, x):
        features = self.features(x)
        return self.fc(features.mean((2, 3)) + features.amax((2, 3)))


class Shifted(Plain):
    def forward(self, x):
        return super().forward(x) + 1


class Branching(Plain):
    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return super().forward(x)


class Branches(Plain):
    """The last map is put together from two."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList([nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 3, padding=1)])

    def pool(self, x):
        return torch.cat([way(x) for way in self.ways], 1).mean((2, 3))


def test_an_image_that_leaves_one_cell_is_told():
    torch.manual_seed(0)
    model = Branches().eval()
    spec = xattn.ModelSpec(feature_layer="features", classifier="fc", input_size=(32, 32))
    with pytest.raises(NotApplicableError, match=r"ways meet .* to pool; images of 4x4 may be too small for it"):
        convert(model, spec=spec, x=torch.randn(2, 3, 4, 4))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(everywhere(convert(model, spec=spec, x=x))(x), model(x))


class Hidden(Plain):
    """A layer that is not linear between pooling and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(6, 9), nn.ReLU())
        self.fc = nn.Linear(9, 5)

    def pool(self, x):
        return self.hidden(F.adaptive_avg_pool2d(x, 1).flatten(1))


REFUSED = {
    Largest: "its last map .8x8. is not pooled by the mean but read by",
    Flattened: "is not pooled by the mean but read by",
    TwoWays: "several ways meet before its classifier",
    Shifted: "its class scores are not what its classifier 'fc' gives",
    Branching: "its forward cannot be followed",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_other_networks_are_refused_in_one_line(kind):
    torch.manual_seed(0)
    model = kind().eval()
    x = torch.randn(1, 3, 32, 32)
    spec = xattn.ModelSpec(feature_layer="features", classifier="fc", input_size=(32, 32))
    with pytest.raises(NotApplicableError, match=f"^{kind.__name__} cannot be converted: .*{REFUSED[kind]}[^\n]*$"):
        convert(model, x=x, spec=spec)


class Wide(Plain):
    """A classifier of 3x3 cells before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x):
        return self.fc(self.features(x)).mean((2, 3))


def test_a_classifier_of_several_cells_is_refused():
    x = torch.randn(1, 3, 32, 32)
    spec = xattn.ModelSpec(feature_layer="features", classifier="fc", input_size=(32, 32))
    with pytest.raises(NotApplicableError, match="its classifier 'fc' looks at several cells at once"):
        convert(Wide().eval(), x=x, spec=spec)


class TwoHeads(Plain):
    """The mean of two classifiers behind norms of their own, as in RepViT."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)) for _ in range(2))
        self.shared = nn.Identity()

    def forward(self, x):
        pooled = self.shared(self.features(x).mean((2, 3)))
        first, second = (head(pooled) for head in self.heads)
        return (first + second) / 2


class Voting(TwoHeads):
    """The same, but for a layer that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Hardswish()


@pytest.mark.parametrize("factor", [1, 2])
def test_several_heads_that_are_linear_together_are_one_classifier(factor):
    torch.manual_seed(0)
    model = TwoHeads()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model.double().train()(x)  # norms that are no identity
    model.eval().requires_grad_(False)
    spec = infer_spec(model, x)
    assert spec.classifier is None
    made = convert(model, resolution="low" if factor == 1 else "x2", spec=spec, x=x)
    assert isinstance(made.head, SharedHead)
    torch.testing.assert_close(everywhere(made)(x), model(x))
    if factor == 1:  # parts that count as much as they cover
        torch.testing.assert_close(made(x), model(x))
    found = xattn.explain(made, x, ["part-cam", "brnpa"])
    assert all(set(one.status) == {"ok"} for one in found)
    half = convert(model.bfloat16(), spec=spec, x=x.bfloat16()).head.classifier.weight
    torch.testing.assert_close(half, made.head.classifier.weight.bfloat16(), rtol=1e-2, atol=1e-3)
    other = Voting().double().eval()
    with pytest.raises(NotApplicableError, match=r"^Voting cannot be converted: no linear layer gives the"):
        convert(other, spec=infer_spec(other, x), x=x)


def test_one_logit_can_be_converted():
    torch.manual_seed(0)
    model = Plain().eval().double()
    model.fc = nn.Linear(6, 1).double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    spec = xattn.ModelSpec(feature_layer="features", classifier="fc", input_size=(32, 32))
    made = convert(model, x=x, spec=spec)
    torch.testing.assert_close(everywhere(made)(x), model(x))
    alike = x.float().repeat(2, 1, 1, 1)  # rounding is no difference where two images have the same logit
    convert(model.float(), x=alike, spec=spec, resolution="x2")


def test_statistics_are_refused_where_no_layer_is_dilated():
    with pytest.raises(NotApplicableError, match="no batch norm lies behind a layer with dilation"):
        recalibrated(convert(create_model("tiny-cnn")), [])


def test_what_is_no_plain_classifier_is_refused():
    for name, why in {"tiny-vit": "is a transformer", "tiny-brnpa": "pools by attention already .brnpa."}.items():
        with pytest.raises(NotApplicableError, match=why):
            convert(create_model(name))
    with pytest.raises(ParameterError, match="head linear is none that a trained classifier can be shared by"):
        convert(create_model("tiny-cnn"), head="linear")
    with pytest.raises(ParameterError, match="weighting coverage is for brnpa"):
        convert(create_model("tiny-cnn"), head="bcnn", weighting="coverage")
    with pytest.raises(NotApplicableError, match="SqueezeNet cannot be converted to bcnn: its classifier reads each"):
        convert(create_model("squeezenet1_1", num_classes=3), head="bcnn")
    with pytest.raises(UnknownNameError, match="Did you mean 'brnpa'"):
        convert(create_model("tiny-cnn"), head="brnps")
    with pytest.raises(ParameterError, match="resolution must be one of"):
        convert(create_model("tiny-cnn"), resolution="x16")


def test_layers_between_pooling_and_classifier_run_for_each_part():
    torch.manual_seed(0)
    model = Hidden().eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    made = convert(model, parts=2, x=x, resolution="x2")
    assert made.head.neck is not None
    torch.testing.assert_close(everywhere(made)(x), model(x), rtol=1e-9, atol=1e-9)
    covered = convert(model, parts=2, x=x, weighting="coverage")
    features = covered.backbone(x)
    similar = br_npa_maps(features, 2)[:, :1]
    similar = similar / similar.amax((2, 3), keepdim=True)
    wanted = 0
    for share in (similar, 1 - similar):
        vector = (share * features).sum((2, 3)) / share.sum((2, 3))
        wanted = wanted + share.mean((2, 3)) * model.fc(model.hidden(vector))
    torch.testing.assert_close(covered(x), wanted, rtol=1e-6, atol=1e-9)
    with pytest.raises(NotApplicableError, match=r"part-cam: the classifier reads 18 values .* is not linear"):
        xattn.explain(made, x, "part-cam")


@pytest.mark.parametrize(
    ("name", "resolution"), [("tiny-cnn", "low"), ("tiny-cnn", "x2"), ("mobilenet_v3_small", "x2")]
)
def test_a_file_brings_the_converted_network_back(tmp_path, name, resolution):
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = create_model(name, num_classes=4)
    x = torch.randn(2, 3, 64, 64)
    made = convert(model, parts=2, resolution=resolution)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.01)  # as after further training
        wanted = made(x)
    path = save_weights(made, tmp_path / "net.safetensors")
    for back in (load_model(path), create_model(path), create_model(name, weights=path)):
        assert torch.equal(back(x), wanted)
        assert (back.spec, back.architecture) == (made.spec, made.architecture)
    with pytest.raises(ParameterError, match="a converted network of 2 parts and 4 classes; for others convert"):
        create_model(path, num_classes=5)


def test_create_model_gives_finer_maps(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    for name in ("tiny-cnn", "squeezenet1_1"):
        plain = create_model(name, num_classes=4)
        path = save_weights(plain, tmp_path / f"{name}.safetensors")
        finer = create_model(path, resolution="x2")
        assert finer.architecture == {**plain.architecture, "resolution": "x2"}
        again = create_model(save_weights(finer, tmp_path / "finer.safetensors"))
        assert torch.equal(again(x), finer(x))
        cells = xattn.explain(finer, x, "activation").maps
        old = xattn.explain(plain, x, "activation").maps
        kept = old_cells(finer)
        torch.testing.assert_close(cells[:, :, kept, kept], old, rtol=1e-4, atol=1e-5)
        made = create_model(name, num_classes=4, resolution="x2")
        assert xattn.explain(made, x, "activation").maps.shape == cells.shape


class Keeping(nn.Module):
    """Keeps a table that it looked up, as the attention of LeViT does in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kept = nn.Parameter(torch.rand(2, 8)), {}

    def forward(self, x):
        if self.training or "row" not in self.kept:
            self.kept["row"] = self.table[0]
        return x * self.kept["row"][:, None, None]


def test_a_network_that_keeps_what_it_looked_up_is_copied():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Keeping())
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    x = torch.randn(2, 3, 16, 16)
    wanted = model(x)
    assert body[1].kept["row"].grad_fn is not None
    made = convert(model, parts=1, resolution="x2", x=x)
    torch.testing.assert_close(everywhere(made)(x), wanted)
    assert body[1].kept["row"].grad_fn is not None


def test_the_model_and_its_copies_stay_apart():
    model = create_model("tiny-cnn", num_classes=3)
    kept = copy.deepcopy(model.state_dict())
    made = convert(model)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in kept.items())
