"""Weights on disk: what is written comes back, and nothing foreign is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError, XattnWarning
from xattn.labels import counted
from xattn.models import create_model, load_model, save_weights
from xattn.models.checkpoint import load_state, read_state, write_tensors
from xattn.models.factory import fill
from xattn.models.header import read_header, read_metadata


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("tiny-cnn", head="brnpa", parts=2, resolution="high", num_classes=5)


@pytest.mark.parametrize("half", [False, True])
def test_a_network_comes_back_as_it_was(model: nn.Module, tmp_path: Path, half: bool) -> None:
    path = save_weights(model, tmp_path / "new" / "w.safetensors", half, extra={"epoch": 3})
    again = load_model(path)
    assert not again.training
    assert again.spec == model.spec
    assert again.architecture["parts"] == 2
    assert read_header(path).extra == {"epoch": 3}
    for name, tensor in again.state_dict().items():
        expected = model.state_dict()[name]
        if half and expected.is_floating_point():
            expected = expected.half().float()
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected), name
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert again.backbone(x).shape == (2, 256, 16, 16)
        torch.testing.assert_close(again(x), model.eval()(x), rtol=0.05, atol=0.02)


def test_files_can_be_read_by_others_and_no_temporary_file_is_left(model: nn.Module, tmp_path: Path) -> None:
    path = save_weights(model, tmp_path / "w.safetensors")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain", "w.safetensors"]


def test_a_value_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(CheckpointError, match="half precision"):
        save_weights(layer, tmp_path / "w.safetensors", half=True)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "run"
    path = tmp_path / "bomb.pt"
    if zipped:
        torch.save({"model": Bomb(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(CheckpointError, match=r"refused|cannot be read"):
        read_state(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap works: whoever unpickles it falls in


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"refused; save model\.state_dict"):
        read_state(tmp_path / "m.pt")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_state_dicts_of_torch_are_read(tmp_path: Path, wrap: str | None) -> None:
    state = {"module.weight": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({wrap: state, "epoch": 1} if wrap else state, tmp_path / "m.pth")
    with pytest.warns(XattnWarning, match=r"the prefix 'module\.' was taken off"):
        read = read_state(tmp_path / "m.pth")
    assert list(read) == ["weight"]
    assert read["weight"].dtype == torch.float32


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        read_state(tmp_path / "none.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a file of tensors")
    with pytest.raises(CheckpointError, match="no safetensors"):
        read_state(junk)
    whole = write_tensors({"w": torch.zeros(50)}, tmp_path / "w.safetensors", {})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(cut)
    with pytest.raises(CheckpointError, match="does not say which network"):
        load_model(whole)
    damaged = write_tensors({}, tmp_path / "d.safetensors", {"xattn": "{"})
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(damaged)
    assert read_metadata(whole) == {}


def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded() -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'bias'\).*1 unexpected.*'weight': \(3, 3\)"):
        load_state(layer, {"weight": torch.zeros(3, 3), "other": torch.zeros(1), "ranks.x": torch.zeros(1)}, "file")
    assert torch.equal(layer.weight, before)


class Parts(nn.Module):
    """A network whose own names begin like a prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 3)
        self.out = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("model.", {"criterion.weight": torch.ones(2), "val_accuracy.correct": torch.zeros(())}),
        ("net.", {}),
        ("module.", {}),
        ("_orig_mod.", {}),
        ("module.model.", {"module.loss.weight": torch.ones(1)}),
        ("network._orig_mod.", {}),
    ],
)
@pytest.mark.parametrize("wrap", [None, "state_dict"])
def test_networks_come_out_of_what_held_them_when_they_were_saved(
    tmp_path: Path, prefix: str, others: dict[str, Tensor], wrap: str | None
) -> None:
    torch.manual_seed(0)
    trained = Parts()
    state = {prefix + name: t for name, t in trained.state_dict().items()} | others
    lightning = {"epoch": 3, "pytorch-lightning_version": "2.5", "loops": {}, "optimizer_states": [{"lr": 0.1}]}
    torch.save({wrap: state, **lightning} if wrap else state, tmp_path / "last.ckpt")
    model = Parts()
    with pytest.warns(XattnWarning, match="was taken off the names of its tensors") as said:
        fill(model, read_state(tmp_path / "last.ckpt"), "last.ckpt")
    assert any(f"{counted(len(others), 'other tensor')} left out" in str(w.message) for w in said) == bool(others)
    assert all(torch.equal(t, trained.state_dict()[name]) for name, t in model.state_dict().items())


def test_names_of_the_network_itself_are_no_prefix(tmp_path: Path) -> None:
    torch.save(Parts().state_dict(), tmp_path / "w.pt")
    fill(Parts(), read_state(tmp_path / "w.pt"), "w.pt")  # without a word, which would be an error here
