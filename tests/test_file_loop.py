"""The one loop over image files."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import images_zoo as zoo
from tests.cli import models
from xattn import file_loop
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainers import resolve
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.file_loop import SAME, Column, Explained, Network, Settings, Unread, explain_files
from xattn.trace import Trace


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        zoo.rgb().rotate(20 * i).crop((0, 0, 40 + 20 * (i % 2), 40)).resize((80 + 40 * (i % 2), 80)).save(path)
    return paths


def columns(*texts: str) -> list[Column]:
    network = Network(models.cnn(), models.cnn().spec, "cnn")
    return [Column(method, network) for method in resolve(list(texts))]


def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are recorded from now on."""
    sizes: list[int] = []
    record = file_loop.record_for

    def counted(model: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> Trace:
        sizes.append(len(x))
        return record(model, x, *arguments, **options)

    monkeypatch.setattr(file_loop, "record_for", counted)
    return sizes


def test_agrees_with_explain(files: list[Path]) -> None:
    some = columns("gradcam", "activation")
    for result in explain_files(files, some, Settings(topk=2, batch_size=2)):
        assert isinstance(result, Explained)
        first, second = result.lines
        assert second[1] == SAME
        expected = explain(some[0].network.model, str(result.file), "gradcam")
        for entry, wanted in (
            (first[0], expected),
            (first[1], explain(some[0].network.model, str(result.file), "activation")),
        ):
            assert isinstance(entry, Explanation)
            assert len(entry) == 1
            torch.testing.assert_close(entry.maps, wanted.maps, rtol=1e-4, atol=1e-6)
            assert torch.equal(entry.target, wanted.target)
        assert isinstance(second[0], Explanation)
        assert int(second[0].target) != int(expected.target)
        assert result.predicted["cnn"]["index"] == int(expected.target)
        assert len(result.seconds) == 2
        assert set(result.pass_seconds) == {"cnn"}


def test_images_of_different_shapes_go_in_batches_of_their_own(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = batches(monkeypatch)
    results = list(explain_files(files, columns("gradcam"), Settings(fit="whole")))
    assert [r.file for r in results] == files
    assert sizes == [1] * 5  # shapes alternate
    del sizes[:]
    list(explain_files([*files[::2], *files[1::2]], columns("gradcam"), Settings(fit="whole")))
    assert sizes == [3, 2]


def test_a_batch_is_bounded_by_its_numbers(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batches(monkeypatch)
    monkeypatch.setattr(file_loop, "_BATCH_VALUES", 2 * 3 * 32 * 32 * 2)
    list(explain_files(files, columns("gradcam"), Settings()))
    assert sizes == [2, 2, 1]
    del sizes[:]
    list(explain_files(files, columns("gradcam"), Settings(topk=9)))
    assert sizes[0] == 1


def test_images_are_decoded_one_at_a_time(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read = file_loop.read_image
    decoded: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def counted(path: Path, window: tuple[float, float] | None = None) -> Image.Image:
        gc.collect()
        alive.append(sum(image() is not None for image in decoded))
        image = read(path)
        decoded.append(weakref.ref(image))
        return image

    monkeypatch.setattr(file_loop, "read_image", counted)
    list(explain_files(files, columns("gradcam"), Settings(batch_size=5)))
    assert alive == [0] * 5


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(files: list[Path]) -> None:
    files[1].write_bytes(b"no image")
    results = list(explain_files(files, columns("gradcam"), Settings(batch_size=2)))
    unread = [r for r in results if isinstance(r, Unread)]
    assert [u.file for u in unread] == [files[1]]
    assert str(files[1]) not in unread[0].reason
    assert [r.file for r in results if isinstance(r, Explained)] == [files[0], *files[2:]]


def test_measures_while_the_pass_is_at_hand(files: list[Path]) -> None:
    def measure(explanations: list[Explanation], trace: Trace) -> list[list[float]]:
        return [e.maps.mean(dim=(1, 2, 3)).tolist() for e in explanations]

    for result in explain_files(files, columns("gradcam", "activation"), Settings(topk=2), measure):
        assert isinstance(result, Explained)
        for line, values in zip(result.lines, result.measured, strict=True):
            for entry, value in zip(line, values, strict=True):
                assert value == (None if isinstance(entry, str) else pytest.approx(float(entry.maps.mean()), rel=1e-5))


def test_a_refusal_on_the_way(files: list[Path]) -> None:
    network = Network(models.gelu(), models.gelu().spec, "gelu")
    both = [Column(method, network) for method in resolve(["gradcam", "guided-backprop"])]
    with pytest.raises(NotApplicableError, match="ReLUs"):
        list(explain_files(files, both, Settings()))
    results = list(explain_files(files, both, Settings(tolerant=True, topk=2)))
    assert "ReLUs" in (both[1].refused or "")
    for result in results:
        assert isinstance(result, Explained)
        assert [line[1] for line in result.lines] == [both[1].reason] * 2
        assert isinstance(result.lines[0][0], Explanation)
    alone = [dataclasses.replace(both[1], refused=None)]
    with pytest.raises(NotApplicableError, match="no method fits the model"):
        list(explain_files(files, alone, Settings(tolerant=True)))


def test_memory_that_does_not_suffice_is_told(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    some = columns("gradcam")

    def greedy(*_: object) -> None:
        torch.empty(2**60, dtype=torch.float32)

    monkeypatch.setattr(type(some[0].method), "explanation", greedy)
    with pytest.raises(ParameterError, match=r"gradcam: out of memory with 5 images at once"):
        list(explain_files(files, some, Settings()))
