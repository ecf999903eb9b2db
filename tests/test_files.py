"""Files appear whole or not at all, through no link, and nothing but a regular file is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xattn import files
from xattn.errors import DataError


def test_a_link_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.txt").symlink_to(outside)
    with files.whole_file(folder / "a.txt", durable=True) as temporary:
        temporary.write_text("new")
    assert outside.read_text() == "precious"
    assert (folder / "a.txt").read_text() == "new"
    assert not (folder / "a.txt").is_symlink()


def test_a_temporary_file_is_made_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".xattn-guessed.txt").symlink_to(outside)
    with pytest.raises(FileExistsError), files.whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert outside.read_text() == "precious"


def test_nothing_is_left_after_an_error_and_the_message_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), files.whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half" * 10_000 + "\udcff", encoding="utf-8")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"nowhere/a\.txt"), files.whole_file(tmp_path / "nowhere" / "a.txt"):
        pass


def test_what_killed_processes_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    old, new = tmp_path / ".xattn-1.png", tmp_path / ".xattn-2.png"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    with files.whole_file(tmp_path / "a.png") as temporary:
        temporary.write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", new.name}


def test_of_two_that_write_once_one_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    assert files.write_once(path, b"first")
    assert not files.write_once(path, b"second")
    monkeypatch.setattr(Path, "exists", lambda _: False)  # it came in between
    assert not files.write_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_regular_files_alone_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert files.read_regular(path, 5) == b"12345"
    with pytest.raises(DataError, match="larger than 4 bytes"):
        files.read_regular(path, 4)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(DataError, match="no regular file"):
            files.read_regular(tmp_path / name, 5)
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "nowhere", 5)
