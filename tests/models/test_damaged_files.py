"""Damaged and extreme weights: one line that says what is wrong, in bounded time and memory."""

from __future__ import annotations

import contextlib
import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from xattn.cli import app
from xattn.errors import CheckpointError, ParameterError, XattnError, XattnWarning
from xattn.models import create_model, save_weights
from xattn.models.checkpoint import load_state, read_state, write_tensors
from xattn.models.header import MOST_TENSORS, read_metadata


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("tiny-cnn", head="linear", num_classes=3)
    return save_weights(model, tmp_path_factory.mktemp("good") / "good.safetensors")


@pytest.fixture
def altered(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """The good file with another value at a key of its header, `spec.mean`."""

    def write(key: str, value: Any) -> Path:
        header = json.loads(read_metadata(weights)["xattn"])
        section, _, name = key.partition(".")
        header[section][name] = value
        return write_tensors(read_state(weights), tmp_path / "w.safetensors", {"xattn": json.dumps(header)})

    return write


def raw(path: Path, header: bytes, tail: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + tail)
    return path


WRONG = {
    "architecture.classes": [-1, 0, 4, 10**9, 10**18, "many", 3.0, [3], True],
    "architecture.parts": [0, -1, 65, 10**9, "3", None, 2.5],
    "architecture.head": ["brnap", 1, "x" * 100],
    "architecture.resolution": ["higher", 1, None],
    "architecture.circular": [1, "yes", None],
    "architecture.wrong": [1],
    "spec.input_size": [[0, 0], [10**6, 10**6], [1025, 64], [-5, 5], "big", [64], [64, 64, 64], [64.0, 64], [1, 64]],
    "spec.mean": [["a", "b", "c"], [], [1e300, 0, 0], [0.5], 0.5, [0, 0, 0, 0]],
    "spec.std": [[0, 1, 1], [-1, 1, 1], [1, 1], ["1", "1", "1"]],
    "spec.tokens": [{"nope": 1}, {"patch": [0, 8]}, {"patch": [8, 8], "prefix": -1},
                    {"patch": [8, 8], "class_tokens": 5}, [8, 8]],
    "spec.classes": [["a"], ["x" * 100_000, "b", "c"], [1, 2, 3], "abc", None],
    "spec.crop": [0, 1e-9, 2, "all", None],
    "spec.feature_layer": [5, None, "x" * 2000],
    "spec.probability_layers": [["a"] * 1001, "abc"],
    "spec.wrong": [1],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_each_fact_has_a_type_and_limits(altered: Callable[..., Path], key: str, value: object) -> None:
    path = altered(key, value)
    with pytest.raises((CheckpointError, ParameterError, LookupError)) as caught:
        create_model(path)
    assert isinstance(caught.value, XattnError)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "1" * 10_000, "{", "NaN", ""])
def test_the_header_is_a_table_of_bounded_depth(tmp_path: Path, value: str) -> None:
    for path in (
        write_tensors({"w": torch.zeros(1)}, tmp_path / "a.safetensors", {"xattn": value}),
        raw(tmp_path / "b.safetensors", value.encode().ljust(2)),
        raw(tmp_path / "c.safetensors", b'{"__metadata__":' + value.encode() + b"}"),
    ):
        with pytest.raises(CheckpointError):
            create_model(path)
        with pytest.raises(CheckpointError):
            create_model("tiny-cnn", weights=path)


def test_a_million_tensors_are_refused_at_once(tmp_path: Path) -> None:
    for number in (MOST_TENSORS + 1, 1_000_000):
        entries = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(number))
        path = raw(tmp_path / "w.safetensors", f"{{{entries}}}".encode())
        began = time.perf_counter()
        with pytest.raises(CheckpointError, match="at most"):
            read_state(path)
        assert time.perf_counter() - began < 10


def test_a_network_far_larger_than_its_file_is_not_built(altered: Callable[..., Path]) -> None:
    for backbone in ("timm/eva02_enormous_patch14_clip_224", "regnet_y_128gf"):
        with pytest.raises(CheckpointError, match="weights but the file holds"):
            create_model(altered("architecture.backbone", backbone))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_flipped_bits_and_cut_ends(weights: Path, tmp_path: Path, suffix: str) -> None:
    good = tmp_path / f"good{suffix}"
    if suffix == ".pt":
        torch.save(create_model(weights).state_dict(), good)
    else:
        good.write_bytes(weights.read_bytes())
    data = good.read_bytes()
    rng = random.Random(0)
    path = tmp_path / f"bad{suffix}"
    for trial in range(60):
        bad = bytearray(data)
        if trial % 3:
            start = (
                0 if trial % 2 else max(0, len(bad) - 8000)
            )  # headers lie at the start, directories of zip at the end
            for _ in range(rng.randint(1, 8)):
                bad[start + rng.randrange(min(8000, len(bad)))] ^= 1 << rng.randrange(8)
        else:
            bad = bad[: rng.randrange(len(bad))]
        path.write_bytes(bytes(bad))
        with contextlib.suppress(XattnError, XattnWarning):  # anything else fails the test
            if suffix == ".safetensors":
                create_model(path)
            else:
                create_model("tiny-cnn", weights=path, num_classes=3)


@pytest.mark.parametrize("content", [b"", b"text", b"weights of mine\n" * 50, b"\x80\x02.", b"PK\x03\x04", bytes(5000)])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_files_that_are_something_else(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        create_model("tiny-cnn", weights=path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_without_values_are_refused(tmp_path: Path, zipped: bool) -> None:
    kinds = {
        "meta": torch.zeros(2, device="meta"),
        "sparse": torch.zeros(2, 2).to_sparse(),
        "expanded": torch.zeros(1).expand(10**12),
    }
    for name, tensor in kinds.items():
        torch.save({"weight": tensor}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"w\.pt"):
            read_state(tmp_path / "w.pt")
        assert name


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(CheckpointError, match="compressed"):
        read_state(tmp_path / "w.pt")


def test_weights_that_are_not_finite_are_refused(weights: Path, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        state = read_state(weights)
        state["head.classifier.weight"][0, 0] = value
        metadata = read_metadata(weights)
        path = write_tensors(state, tmp_path / "w.safetensors", metadata)
        with pytest.raises(CheckpointError, match=r"'head\.classifier\.weight' has values that are not finite"):
            create_model(path)
    layer = nn.BatchNorm1d(1)
    with pytest.raises(CheckpointError, match="running_mean"):
        load_state(layer, {**layer.state_dict(), "running_mean": torch.tensor([float("nan")])}, "file")


@pytest.mark.parametrize("command", [["doctor"], ["evaluate", "--data", "none"]])
def test_the_commands_say_it_in_one_line(altered: Callable[..., Path], command: list[str]) -> None:
    path = altered("spec.input_size", [0, 0])
    result = CliRunner().invoke(app, [*command, *(["--model"] if command == ["doctor"] else []), str(path)])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "input_size" in result.stderr


def test_names_that_are_no_files() -> None:
    for name in ("x" * 5000, "a\0b", "x" * 5000 + ".pt", "a\0b.safetensors", "/dev/null.pt"):
        with pytest.raises(XattnError):
            create_model(name)
        with pytest.raises(XattnError):
            create_model("squeezenet1_1", weights=name)


def test_factories_that_leave_the_program_or_are_no_names(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="left the program"):
        create_model("sys:exit")
    for name in (".:x", ":x", "a b:c", "os.path:", "os:__class__.mro"):
        with pytest.raises(LookupError, match="expected package"):
            create_model(name)
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="no weights at"):
        create_model(tmp_path / "w.safetensors")
