"""The fitted classifier: ridge regression against its definition, and converted networks nearer to what they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import xattn
from xattn.errors import DataError, ParameterError
from xattn.models import create_model, load_model, save_weights
from xattn.models.converting import convert
from xattn.models.fitting import RIDGES, best_ridge, correction, divergence, fit
from xattn.models.shared_heads import SharedCellHead


def by_elimination(rows, wanted, penalty):
    """D of one output by the normal equations, solved by Gauss and Jordan in plain numbers."""
    size = len(rows[0])
    system = [
        [sum(r[i] * r[j] for r in rows) + (penalty if i == j else 0.0) for j in range(size)]
        + [sum(r[i] * w for r, w in zip(rows, wanted, strict=True))]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(system[k][i]))
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [v / system[i][i] for v in system[i]]
        for k in range(size):
            if k != i:
                system[k] = [a - system[k][i] * b for a, b in zip(system[k], system[i], strict=True)]
    return [row[-1] for row in system]


@pytest.mark.parametrize("images", [3, 9])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_correction_is_that_of_the_normal_equations(images, ridge):
    generator = torch.Generator().manual_seed(images)
    v = torch.randn(images, 5, generator=generator, dtype=torch.float64)
    m = torch.randn(images, 2, generator=generator, dtype=torch.float64)
    penalty = ridge * sum(a * a for row in v.tolist() for a in row) / images
    wanted = [by_elimination(v.tolist(), m[:, k].tolist(), penalty) for k in range(2)]
    torch.testing.assert_close(correction(v, m, ridge), torch.tensor(wanted, dtype=torch.float64))


def trained(name):
    """A network with classes that differ, and images."""
    torch.manual_seed(0)
    if name == "tiny-cnn":
        model = create_model("tiny-cnn")
        return model, torch.randn(24, 3, 64, 64)
    model = pytest.importorskip("torchvision").models.get_model(name, weights=None, num_classes=6).eval()
    x = torch.randn(24, 3, 64, 64) * torch.linspace(0.5, 3, 24)[:, None, None, None]
    model.spec = xattn.infer_spec(model, x[:2])
    return model, x


@pytest.mark.parametrize(("name", "resolution"), [("tiny-cnn", "x2"), ("squeezenet1_1", "low")])
def test_what_is_fitted_is_nearer_to_the_network(name, resolution):
    model, x = trained(name)
    made = convert(model, parts=2, resolution=resolution, weighting="equal", spec=model.spec)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        far = (made(x) - model(x)).square().mean()
        assert fit(model, made, x.split(10), spec=model.spec, ridge=1e-3).images == 24
        near = (made(x) - model(x)).square().mean()
    assert near < 0.1 * far
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_hard_ridge_changes_nothing():
    model, x = trained("tiny-cnn")
    made, same = (convert(model, weighting="equal") for _ in range(2))
    with torch.no_grad():
        fit(model, made, [x[:6]], spec=model.spec, ridge=1e12)
        torch.testing.assert_close(made(x), same(x))


def kl(wanted, given):
    """Kullback-Leibler divergence of two lists of logits, term by term."""
    p, q = ([math.exp(z) / sum(map(math.exp, row)) for z in row] for row in (wanted, given))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_the_ridge_is_the_one_that_suits_images_held_out():
    generator = torch.Generator().manual_seed(0)
    read, noise = (torch.randn(40, n, generator=generator, dtype=torch.float64) for n in (12, 3))
    given = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    matrix = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    chosen = {}
    for strength in (0.0, 0.05, 1.0):
        wanted = given + strength * read @ matrix.T + 0.5 * noise
        found = {None: sum(map(kl, wanted.tolist(), given.tolist())) / 40}
        for ridge in RIDGES:
            total = 0.0
            for k in range(5):
                kept = [i for i in range(40) if i % 5 != k]
                d = correction(read[kept], (wanted - given)[kept], ridge)
                for i in range(k, 40, 5):
                    total += kl(wanted[i].tolist(), (given[i] + d @ read[i]).tolist())
            found[ridge] = total / 40
        best = min(found, key=found.get)
        best = best if found[best] <= 0.95 * found[None] else None
        chosen[strength], after = best_ridge(read, wanted, given)
        assert (chosen[strength], after) == (best, pytest.approx(found[best]))
    assert chosen[0.0] is None  # there is nothing to learn from noise
    assert chosen[1.0] in RIDGES


def test_where_no_fit_is_nearer_the_classifier_stays():
    model, x = trained("tiny-cnn")
    made, same = convert(model), convert(model)  # parts that count as much as they cover: there is nothing to mend
    with torch.no_grad():
        found = fit(model, made, [x], spec=model.spec)
    assert (found.images, found.ridge) == (24, None)
    assert found.before == found.after < 1e-6
    assert torch.equal(made.head.classifier.weight, same.head.classifier.weight)


def test_of_a_single_logit_the_squared_difference_counts():
    wanted, given = torch.tensor([[1.0], [4.0]]), torch.tensor([[3.0], [4.0]])
    assert divergence(wanted, given).tolist() == [4.0, 0.0]


def test_a_fitted_network_is_kept_in_a_file(tmp_path):
    model = create_model("squeezenet1_1", num_classes=6)
    torch.manual_seed(0)
    x = torch.randn(8, 3, 64, 64)
    made = convert(model, weighting="equal")
    fit(model, made, [x], spec=model.spec, ridge=0.1)
    assert isinstance(made.head, SharedCellHead)
    assert made.head.rest is not None
    assert bool(made.head.rest.weight.any())
    save_weights(made, tmp_path / "net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "net.safetensors")(x), made(x))


def test_errors():
    model, x = trained("tiny-cnn")
    made = convert(model)
    with pytest.raises(ParameterError, match="ridge must be positive but is 0"):
        fit(model, made, [x], spec=model.spec, ridge=0)
    with pytest.raises(DataError, match="no image to fit on"):
        fit(model, made, [], spec=model.spec)
    with pytest.raises(DataError, match="one image is too few to hold some out; pass more of them, or set the ridge"):
        fit(model, made, [x[:1]], spec=model.spec)
    made.head = nn.Flatten()
    with pytest.raises(ParameterError, match="the head is Flatten; it is for what convert made"):
        fit(model, made, [x], spec=model.spec)
