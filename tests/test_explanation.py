"""Status, resizing and files of explanations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xattn import storage
from xattn.errors import DataError, ParameterError, ShapeError, XattnError
from xattn.explainers import explainers
from xattn.explanation import Explanation, status_of
from xattn.spec import ModelSpec
from xattn.storage import load_explanation, save_explanation


def test_status() -> None:
    maps = torch.rand(5, 1, 2, 3)
    maps[1] = 0
    maps[2] = 4.0
    maps[3, 0, 1, 1] = torch.nan
    maps[4, 0, 0, 0] = torch.inf
    assert status_of(maps) == ["ok", "all-zero", "constant", "nan", "nan"]
    assert status_of(torch.ones(1, 1, 1, 1)) == ["ok"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_that_differs_by_rounding_alone_is_constant(dtype: torch.dtype) -> None:
    eps, shape = torch.finfo(dtype).eps, torch.linspace(-1, 1, 256, dtype=dtype).view(1, 1, 16, 16)
    assert status_of((1 + 27 * eps * shape) / 16) == ["constant"]
    assert status_of(-1e20 * (1 + 27 * eps * shape)) == ["constant"]
    # Small, but all of it is shape; and a small shape on a large pedestal.
    assert status_of(1e-30 * shape) == ["ok"]
    assert status_of(1e-30 * (1 + shape)) == ["ok"]
    assert status_of(1 + 1000 * eps * shape) == ["ok"]
    single = torch.zeros(1, 1, 16, 16, dtype=dtype)
    single[0, 0, 3, 4] = torch.finfo(dtype).tiny
    assert status_of(single) == ["ok"]


@pytest.fixture
def explanation() -> Explanation:
    return Explanation(
        maps=torch.rand(2, 1, 3, 4),
        target=torch.tensor([1, 0]),
        method=explainers.create("brnpa", parts=2),
        input_size=(12, 16),
        parts=torch.rand(2, 2, 3, 4),
        probability=torch.tensor([0.5, 0.25]),
        inputs=torch.rand(2, 3, 12, 16),
        spec=ModelSpec(feature_layer="f", mean=(0.0,) * 3, std=(1.0,) * 3, classes=("cat", "dog"), name="toy"),
    )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_give_back_what_was_saved(explanation: Explanation, tmp_path: Path, suffix: str) -> None:
    path = save_explanation(explanation, tmp_path / f"maps{suffix}", images=True)
    loaded = load_explanation(path)
    for name in ("maps", "target", "parts", "probability"):
        assert getattr(loaded, name).equal(getattr(explanation, name)), name
    assert loaded.method == explanation.method
    assert loaded.spec == explanation.spec
    assert loaded.status == ("ok", "ok")
    assert loaded.images.equal(explanation.images)
    assert loaded.class_name(0) == "dog"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_save_refuses_other_suffixes_and_leaves_nothing(explanation: Explanation, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"must end in \.npz or \.safetensors"):
        save_explanation(explanation, tmp_path / "maps.pkl")
    assert list(tmp_path.iterdir()) == []


def test_load_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        load_explanation(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="not a saved explanation"):
        load_explanation(tmp_path / "text.npz")
    np.savez(tmp_path / "pickle.npz", metadata=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not a saved explanation"):
        load_explanation(tmp_path / "pickle.npz")


def test_shapes_are_checked(explanation: Explanation) -> None:
    with pytest.raises(ShapeError, match=r"expected maps of shape \(N, 1, h, w\)"):
        Explanation(explanation.maps[0], explanation.target, explanation.method, (12, 16))
    with pytest.raises(ShapeError, match="2 maps do not fit 1 targets"):
        Explanation(explanation.maps, explanation.target[:1], explanation.method, (12, 16))


def test_resized_is_not_normalized(explanation: Explanation) -> None:
    up = explanation.resized()
    assert up.shape == (2, 1, 12, 16)
    expected = torch.nn.functional.interpolate(explanation.maps, (12, 16), mode="bilinear", align_corners=False)
    assert up.equal(expected)


def test_repr_names_method_model_and_trouble(explanation: Explanation) -> None:
    assert "2 maps of 3x4" in repr(explanation)
    assert "parts=2" in repr(explanation)
    assert "status ok" in repr(explanation)
    broken = Explanation(torch.zeros(2, 1, 2, 2), explanation.target, explanation.method, (12, 16))
    assert "2 all-zero" in repr(broken)


def test_notebooks_show_a_picture(explanation: Explanation) -> None:
    assert explanation._repr_png_().startswith(b"\x89PNG")


def test_images_of_a_bare_file_are_missed(explanation: Explanation, tmp_path: Path) -> None:
    loaded = load_explanation(save_explanation(explanation, tmp_path / "maps.npz"))
    with pytest.raises(DataError, match="holds no images"):
        _ = loaded.images


def rewritten(source: Path, path: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    """A saved explanation with something else in it."""
    with np.load(source) as arrays:
        kept = {**arrays, **tensors}
    metadata = {**json.loads(str(kept.pop("metadata"))), **changes}
    np.savez(path, metadata=np.array(json.dumps(metadata)), **kept)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        ({}, {"format": 2}, "format must be"),
        ({}, {"input_size": [12, -1]}, "input_size"),
        ({}, {"input_size": 10**30}, "input_size"),
        ({}, {"status": ["ok"]}, "for 1 images"),
        ({}, {"status": "ok"}, "status must be a list"),
        ({}, {"parameters": [1]}, "parameters must be a table"),
        ({}, {"spec": {"feature_layer": 3}}, "feature_layer"),
        ({}, {"surprise": 1}, "unknown key 'surprise'"),
        ({}, {"method": "os:abort"}, "unknown method"),
        ({}, {"parameters": {"parts": 10**9}}, "parts must be none or at least 1"),
        ({}, {"parameters": {"root": "/"}}, "unknown parameter"),
        ({"maps": np.zeros((2, 3, 4))}, {}, "'maps' is torch.float64"),
        ({"maps": np.zeros((2, 2, 3, 4), np.float32)}, {}, "'maps' is"),
        ({"target": np.zeros(2, np.float32)}, {}, "'target' is"),
        ({"parts": np.zeros((3, 2, 3, 4), np.float32)}, {}, "'parts' is"),
    ],
)
def test_load_checks_what_it_reads(
    explanation: Explanation, tmp_path: Path, tensors: dict[str, np.ndarray], changes: dict[str, object], message: str
) -> None:
    source = save_explanation(explanation, tmp_path / "maps.npz")
    with pytest.raises(XattnError, match=message):
        load_explanation(rewritten(source, tmp_path / "changed.npz", tensors, **changes))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_load_refuses_more_than_it_would_hold(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = save_explanation(explanation, tmp_path / f"maps{suffix}")
    monkeypatch.setattr(storage, "_LARGEST", 100)
    with pytest.raises(DataError, match="more than the 100 that are read"):
        load_explanation(path)
