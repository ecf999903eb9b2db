"""Paths, folders and patterns become files, and what gives none is told."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import images_zoo as zoo
from xattn.data.finding import Problem, find_images, natural_key, nearest_path
from xattn.data.reading import read_image
from xattn.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b10.png", "b9.png", "a.JPG", "notes.txt", ".hidden.png", "deep/c2.jpg", "deep/c1.jpg", ".git/x.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened")
    return folder


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in paths]


def test_a_folder_gives_its_images_in_natural_order(photos: Path) -> None:
    found, problems = find_images(photos)
    assert names(found, photos) == ["a.JPG", "b9.png", "b10.png", "deep/c1.jpg", "deep/c2.jpg"]
    assert problems == []


def test_without_recursion_folders_are_left_out(photos: Path) -> None:
    found, _ = find_images([photos], recursive=False)
    assert names(found, photos) == ["a.JPG", "b9.png", "b10.png"]


def test_the_zoo_is_found(tmp_path: Path) -> None:
    zoo.build_good(tmp_path)
    found, problems = find_images(tmp_path)
    assert {p.name for p in found} == set(zoo.GOOD_IN_FOLDER)
    assert problems == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b9.png", "b10.png"]),
        ("b?.png", ["b9.png"]),
        ("[ab]*", ["a.JPG", "b9.png", "b10.png"]),
        ("**/c*.jpg", ["deep/c1.jpg", "deep/c2.jpg"]),
        ("d*", ["deep/c1.jpg", "deep/c2.jpg"]),
    ],
)
def test_patterns(photos: Path, pattern: str, expected: list[str]) -> None:
    found, problems = find_images([photos / pattern])
    assert names(found, photos) == expected
    assert problems == []


def test_relative_patterns_and_home(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setenv("HOME", str(photos))
    assert find_images("*.JPG")[0] == [Path("a.JPG")]
    assert find_images("~/a.JPG")[0] == [photos / "a.JPG"]


def test_a_pattern_without_a_match(photos: Path) -> None:
    found, problems = find_images([photos / "*.webp", photos / "notes*"])
    assert found == []
    assert [p.reason for p in problems] == ["no image matches this pattern."] * 2


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(photos: Path) -> None:
    path = photos / "shot[1].png"
    path.write_bytes(b"")
    assert find_images(path)[0] == [path]


def test_a_named_file_is_taken_whatever_its_ending(photos: Path) -> None:
    assert find_images(photos / "notes.txt") == ([photos / "notes.txt"], [])


def test_arguments_keep_their_order(photos: Path) -> None:
    found, _ = find_images([photos / "deep", photos / "b10.png", photos / "a.JPG"])
    assert names(found, photos) == ["deep/c1.jpg", "deep/c2.jpg", "b10.png", "a.JPG"]


def test_duplicates_are_used_once_with_a_note(photos: Path) -> None:
    link = photos / "zlink.png"
    link.symlink_to(photos / "b9.png")
    found, problems = find_images([photos / "b9.png", photos / "deep" / ".." / "b9.png", photos])
    assert names(found, photos)[0] == "b9.png"
    assert len(found) == 5
    assert len(problems) == 3  # the detour, the file again inside the folder, the link
    assert all(p.note and "given before" in p.reason for p in problems)


def test_missing_paths_suggest_the_nearest(photos: Path) -> None:
    found, problems = find_images([photos / "b99.png", photos.parent / "photo", photos / "a.JPG"])
    assert names(found, photos) == ["a.JPG"]
    assert [p.note for p in problems] == [False, False]
    assert f"Did you mean '{photos / 'b9.png'}'?" in problems[0].reason
    assert f"Did you mean '{photos}'?" in problems[1].reason
    assert str(problems[0]).startswith(f"{photos / 'b99.png'}: does not exist.")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.png").write_bytes(b"")
    assert find_images(tmp_path)[1] == []
    (problem,) = find_images(tmp_path, recursive=False)[1]
    assert problem.reason == (
        "holds no image (looked for .jpg, .png, .webp and the like). Its own folders were not looked into."
    )


def test_an_empty_path_is_not_the_current_folder() -> None:
    found, problems = find_images(["", " "])
    assert found == []
    assert [p.reason.split(";")[0] for p in problems] == ["is an empty path"] * 2


def test_an_unreadable_folder_is_told(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, problems = find_images(photos)
    assert len(found) == 3
    assert problems == [Problem(str(photos / "deep"), "cannot be read (Permission denied).")]


def test_a_path_too_long_is_one_problem() -> None:
    found, problems = find_images("x" * 5000)
    assert found == []
    assert len(problems) == 1
    assert "\n" not in problems[0].reason


def test_a_path_below_a_closed_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert find_images("a.png")[1][0].reason.startswith("permission denied")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_numbers_in_names_sort_as_numbers(numbers: list[int], shuffle: random.Random) -> None:
    expected = [f"img{n}.png" for n in sorted(numbers)]
    mixed = list(expected)
    shuffle.shuffle(mixed)
    assert sorted(mixed, key=natural_key) == expected


# --------------------------------------------------------------------------------------------------------- hardening


def test_links_that_go_round_in_circles(photos: Path) -> None:
    (photos / "bad.jpg").symlink_to("bad.jpg")
    (photos / "round").symlink_to(photos, target_is_directory=True)
    (photos / "deep" / "up").symlink_to("..", target_is_directory=True)
    (photos / "gone.png").symlink_to("nowhere.png")
    expected = {"a.JPG", "b9.png", "b10.png", "bad.jpg", "deep/c1.jpg", "gone.png"}
    for given_as in (photos, f"{photos}/**/*", f"{photos}/**/**/*.*"):
        files, problems = find_images(given_as)
        assert expected <= {os.path.relpath(os.path.realpath(f), photos) for f in files} | {"gone.png"}
        assert all(p.note for p in problems)
    with pytest.raises(DataError, match=r"bad\.jpg: is a link to 'bad\.jpg', which leads nowhere"):
        read_image(photos / "bad.jpg")
    with pytest.raises(DataError, match="which leads nowhere"):
        read_image(photos / "gone.png")


@pytest.mark.parametrize("pattern", ["***/x", "***", "a/***b/*", "**x", "[", "[]", "a\0*", "*\0", "\0", "*" * 300])
def test_patterns_of_any_kind_are_one_problem(photos: Path, pattern: str) -> None:
    files, problems = find_images(f"{photos}/{pattern}")
    assert files == []
    assert len(problems) == 1
    assert "\n" not in str(problems[0])


def test_a_folder_of_many_files_is_searched_in_bounded_time(photos: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image(photos / ("x" * 200))
    assert nearest_path(photos / ("b9.png" * 50)) is None


def test_names_and_patterns_at_random(photos: Path) -> None:
    generator = random.Random(3)
    letters = "ab9*?[]!-./~\0\n\x1bé\udcff{}$%" + "\u202e"
    for _ in range(300):
        text = "".join(generator.choice(letters) for _ in range(generator.randint(0, 12)))
        if text.startswith(("/", "~", "..")) or "/.." in text:
            continue  # stays in the folder
        files, problems = find_images(photos / text)
        assert all(f.is_relative_to(photos) for f in files)
        assert all(isinstance(p, Problem) for p in problems)
        with contextlib.suppress(DataError):
            read_image(photos / text)
