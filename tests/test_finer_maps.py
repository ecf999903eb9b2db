"""Finer maps of every layer method: of a copy with dilation, of the class that the network itself names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

import xattn
from tests import tiny_models as tiny
from tests.cli import models
from tests.cli.conftest import Run, photo, run  # noqa: F401 (fixtures)
from xattn.errors import NotApplicableError, XattnWarning
from xattn.models import create_model
from xattn.storage import load_explanation

CNN = "tests.cli.models:cnn"


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        return xattn.explain(*arguments, **options)


def test_maps_are_finer_and_keep_the_old_cells() -> None:
    model = models.cnn().double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain = xattn.explain(model, x, ["activation", "gradcam", "layercam", "brnpa", "eigencam"])
    finer = quiet(model, x, ["activation", "gradcam", "layercam", "brnpa", "eigencam"], resolution="x2")
    for old, new in zip(plain, finer, strict=True):
        assert new.maps.shape[2:] == (16, 16)
        assert torch.equal(new.target, old.target)
        assert set(new.status) == {"ok"}
        torch.testing.assert_close(new.original, old.probability)
        assert old.original is None
    torch.testing.assert_close(finer[0].maps[:, :, ::2, ::2], plain[0].maps)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert xattn.explain(model, x, "activation").maps.shape[2:] == (8, 8)


def test_the_probability_is_that_of_the_copy_and_a_target_stays() -> None:
    model = models.cnn()
    x = torch.randn(2, 3, 32, 32)
    copy = create_model(CNN, resolution="x4")
    found = quiet(model, x, "gradcam", "daisy", resolution="high")
    assert found.target.tolist() == [3, 3]
    torch.testing.assert_close(found.probability, copy(x).softmax(1)[:, 3])
    torch.testing.assert_close(found.original, model(x).softmax(1)[:, 3])


def test_another_class_of_the_copy_is_told() -> None:
    model = models.cnn().requires_grad_(False)
    x = torch.randn(64, 3, 32, 32)
    first, second = model(x)[:, :2].unbind(1)
    model.classifier.bias[0] -= (first - second).median()  # two classes that are all but equally probable
    model.classifier.bias[2:] -= 10
    copy = xattn.models.dilation.dilated(model, 4, feature_layer="features", input_size=(32, 32))
    count = int((model(x).argmax(1) != copy(x).argmax(1)).sum())
    assert count
    with pytest.warns(XattnWarning, match=rf"names another class than the model itself in {count} of 64 images"):
        found = xattn.explain(model, x, "gradcam", resolution="x4")
    assert torch.equal(found.target, model(x).argmax(1))


def test_a_head_with_attention_becomes_finer_too() -> None:
    model = tiny.tiny_brnpa()
    x = tiny.images(2)
    plain, finer = xattn.explain(model, x, "brnpa"), quiet(model, x, "brnpa", resolution="x2")
    assert finer.maps.shape[2] == 2 * plain.maps.shape[2]


def test_what_has_no_finer_maps_says_so() -> None:
    with pytest.raises(NotApplicableError, match="does not give one feature map"):
        xattn.explain(tiny.tiny_vit(), tiny.images(1), "gradcam", resolution="x2")
    with pytest.raises(NotApplicableError, match=r"resolution x2: .* has no feature map that could be made finer"):
        xattn.explain(lambda x: x.mean((2, 3)), torch.rand(1, 3, 32, 32), "occlusion", resolution="x2")


def test_the_command_says_how_the_copy_answers(run: Run, photo: Path) -> None:  # noqa: F811
    result = run("explain", photo, "-m", "gradcam", "--model", CNN, "--resolution", "x2", "--json")
    assert result.exit_code == 0, result.stderr
    (image,) = json.loads(result.stdout)["images"]
    row = image["predicted"]["cnn x2"]
    own = models.cnn()
    expected = quiet(own, str(photo), "gradcam", resolution="x2")
    assert row["original"]["probability"] == pytest.approx(float(expected.original[0]), abs=1e-6)
    assert row["original"]["index"] == image["maps"][0]["target"]["index"]
    assert "maps of a changed copy that names the same class as cnn in" in " ".join(result.stderr.split())


def test_the_usual_network_is_read_finer_as_well(run: Run, photo: Path) -> None:  # noqa: F811
    result = run("explain", photo, "-m", "activation", "--resolution", "x2", "--json")
    assert result.exit_code == 0, result.stderr
    ((name, predicted),) = json.loads(result.stdout)["images"][0]["predicted"].items()
    assert name.endswith(" x2")
    assert "original" in predicted


def test_a_trained_network_is_converted_where_a_head_is_asked_for(run: Run, photo: Path) -> None:  # noqa: F811
    arguments = ("--model", CNN, "--head", "brnpa", "--parts", 2, "--resolution", "high", "--json")
    result = run("explain", photo, *arguments)
    assert result.exit_code == 0, result.stderr
    (image,) = json.loads(result.stdout)["images"]
    assert len(image["maps"][0]["parts"]) == 2
    made = xattn.convert(models.cnn(), parts=2, resolution="high").requires_grad_(False)
    found = xattn.explain(made, str(photo), "brnpa")
    assert image["predicted"]["cnn brnpa high"]["probability"] == pytest.approx(
        float(made(found.inputs).softmax(1).max()), abs=1e-6
    )
    assert "random weights" not in result.stderr


def test_a_converted_file_is_as_fine_as_it_is_asked_to_be(run: Run, photo: Path) -> None:  # noqa: F811
    assert run("convert", CNN, "--resolution", "x2", "--out", "net.safetensors").exit_code == 0
    for resolution, side in (("x2", 16), ("x4", 32)):
        arguments = ("--model", CNN, "--weights", "net.safetensors", "--resolution", resolution, "-m", "activation")
        result = run("explain", photo, *arguments, "--save-maps", "--json", "-o", resolution)
        assert result.exit_code == 0, result.stderr
        (saved,) = (m["maps"] for m in json.loads(result.stdout)["images"][0]["maps"])
        assert load_explanation(saved).maps.shape[-2:] == (side, side)


def test_parts_of_a_network_that_has_its_own_are_refused(run: Run, photo: Path) -> None:  # noqa: F811
    result = run("explain", photo, "--model", "tiny-brnpa", "--head", "brnpa", "--parts", 2)
    assert result.exit_code == 2
    assert "leave out --head" in result.stderr


def test_the_page_says_how_the_copy_answers(run: Run, photo: Path) -> None:  # noqa: F811
    arguments = ("-m", "gradcam", "--no-curves", "--no-controls", "--model", CNN, "--resolution", "x2")
    assert run("compare", photo, *arguments, "--out", "page.html").exit_code == 0
    assert "maps of a changed copy that names the same class as cnn" in Path("page.html").read_text(encoding="utf-8")
