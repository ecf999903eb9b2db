"""What is stored survives kills, full disks and flipped bits, and what is read back is checked."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.benchmark.runs import made_up, rows, small, table
from xattn.benchmark import manifest
from xattn.benchmark.plan import plan
from xattn.benchmark.run import run
from xattn.benchmark.schemas import Manifest
from xattn.benchmark.store import SCHEMA, Row, Store
from xattn.errors import DataError, ParameterError, XattnWarning

ROOT = Path(__file__).parents[2]
TINY = (
    'methods = ["gradcam"]\nmetrics = ["sparsity"]\n[[data]]\nsource = "synthetic:length=2"\n[[models]]\n'
    'name = "tiny-cnn"\n[run]\ntarget = "predicted"\nblock = 1\nbatch = 1\ncontrols = false\n'
)


def test_a_full_disk_leaves_whole_files(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pq.write_table
    left = 1

    def full(data: Any, file: Any, **options: Any) -> None:
        nonlocal left
        if left == 0:
            file.write(b"PAR1 half a fi")
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        write(data, file, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run(small(), tmp_path)
    names = [path.name for path in tmp_path.rglob("*block-*")]
    assert len(names) == 1
    assert names[0].startswith("block-00000-")
    monkeypatch.undo()
    run(small(), tmp_path)
    assert table(tmp_path) == table(whole)


def test_what_a_killed_process_leaves_is_not_read(whole: Path, tmp_path: Path) -> None:
    run(small(), tmp_path, rank=0, world=3)
    cell = next((tmp_path / "parts").iterdir())
    (cell / ".xattn-abcdef01.parquet").write_bytes(b"PAR1 half")
    run(small(), tmp_path)
    assert table(tmp_path) == table(whole)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    run(small(), tmp_path, rank=0, world=3)
    part = next(tmp_path.glob("parts/*/block-*"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(Exception, match=rf"{part.name}' is no whole part of a run .*remove it and run again"):
        run(small(), tmp_path)
    with pytest.raises(Exception, match=f"{part.name}' is no whole part"):
        Store(tmp_path).table()


def test_of_two_runs_that_start_together_one_comes_first(tmp_path: Path) -> None:
    cells = plan(small())
    manifest.check_manifest(Store(tmp_path), small(), cells, torch.device("cpu"))
    kept = json.loads((tmp_path / "manifest.json").read_text())
    assert not Store(tmp_path).create_manifest(Manifest())
    assert json.loads((tmp_path / "manifest.json").read_text()) == kept
    assert {p.name for p in tmp_path.iterdir()} == {"manifest.json"}
    assert kept["config"]["run"]["seed"] == 0
    assert kept["environments"][0]["versions"]["torch"] == version("torch")
    torch.set_num_threads(2)  # another machine, as it were
    for _ in range(2):
        manifest.check_manifest(Store(tmp_path), small(), cells, torch.device("cpu"))
    found = json.loads((tmp_path / "manifest.json").read_text())
    assert [e["threads"] for e in found["environments"]] == [1, 2]
    assert found["identity"] == kept["identity"]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json' is damaged"):
        manifest.check_manifest(Store(tmp_path), small(), cells, torch.device("cpu"))


@pytest.mark.slow
def test_kill_anywhere_and_go_on(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'methods = ["gradcam", "saliency", "brnpa"]\nmetrics = ["sparsity", "gini", "deletion:steps=64"]\n'
        '[[data]]\nsource = "synthetic:length=24"\n[[models]]\nname = "tiny-cnn"\n'
        "[run]\ntarget = 'predicted'\nblock = 2\nbatch = 2\n"
    )
    words = [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), str(path), "--kills", "4", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills" in done.stdout
    assert "the same tables" in done.stdout


def test_what_a_killed_process_left_is_removed_after_an_hour(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = next((tmp_path / "parts").iterdir())
    old, new = folder / ".xattn-1.parquet", folder / ".xattn-2.parquet"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    run(small(), tmp_path)
    assert not old.exists()
    assert new.exists()


def test_exchanged_images_are_noticed_and_copies_are_not(folder: Path, tmp_path: Path) -> None:
    def scored(source: Path) -> int:
        return run(small(data={"source": str(source), "label": "pets"}, metrics=["sparsity"]), tmp_path / "run").blocks

    assert scored(folder) == 1
    for path in folder.rglob("*.png"):
        os.utime(path, (0, 0))
    assert scored(folder) == 0
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert scored(copy) == 0
    first, second = copy / "cat" / "a.png", copy / "dog" / "c.png"
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    with pytest.raises(ParameterError, match="the files of pets have changed"):
        scored(copy)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    Image.effect_noise((40, 40), 50).convert("RGB").save(folder / os.fsdecode(b"\xe9.png"))
    run(small(data={"source": str(tmp_path / "images"), "label": "pets"}, metrics=["sparsity"]), tmp_path / "run")
    assert {row.image for row in rows(tmp_path / "run")} == {"cat/\\xe9.png"}


def test_kill_at_each_file_operation_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TINY)
    words = [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), str(tmp_path / "run.toml"), "--operations"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    count = int(done.stdout.split("each of ")[1].split()[0])
    assert count > 30
    assert "the same tables" in done.stdout


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("flip_test", ROOT / "benchmarks" / "flip_test.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    outcome = script.flip(made_up(tmp_path / "run", images=4, metrics=["sparsity"]), 300, 1)
    assert outcome["harmful"] == 0
    assert outcome["noticed"] > 250


def _part(folder: Path) -> Path:
    return next(folder.glob("parts/*/block-*"))


def _renamed(path: Path, content: bytes | None = None) -> Path:
    """A part under the name that its content asks for, as somebody would write it who means harm."""
    content = path.read_bytes() if content is None else content
    path.unlink()
    import hashlib

    path = path.with_name(f"block-00000-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet")
    path.write_bytes(content)
    return path


def _rewritten(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = _part(folder)
    stream = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(path, partitioning=None)), stream)
    _renamed(path, stream.getvalue().to_pybytes())


def _column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = SCHEMA.field(name)
        return table.set_column(SCHEMA.get_field_index(name), field, pa.array([values] * len(table), field.type))

    return change


def _footer(text: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({b"xattn": text.encode()})


HOSTILE: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "another model": (_column("model", "m"), "another data set or model than its folder"),
    "a value is missing": (_column("method", None), "values are missing"),
    "a long text": (_column("note", "x" * 10**6), "a text is too long"),
    "other columns": (lambda t: t.drop_columns(["note"]), "no whole part"),
    "another type": (lambda t: t.set_column(7, "value", pa.array([1] * len(t))), "it has other columns"),
    "no footer": (lambda t: t.replace_schema_metadata(None), "no whole part"),
    "footer of another block": (_footer('{"block": 3, "pairs": []}'), "it is of block 3"),
    "footer is a list": (_footer("[]"), "its footer is damaged"),
    "footer deep": (_footer("[" * 100_000), "its footer is damaged"),
    "pairs text": (_footer('{"block": 0, "pairs": [["a", "b", "3"]]}'), "its footer is damaged"),
    "count negative": (_footer('{"block": 0, "pairs": [["a", "b", -3]]}'), "its footer is damaged"),
    "unknown key": (_footer('{"block": 0, "pairs": [], "run": "os:abort"}'), "its footer is damaged"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_part_that_was_made_by_hand(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    folder = made_up(tmp_path, images=3, metrics=["sparsity"])
    Store(folder).table()
    _rewritten(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        Store(folder).table()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_only_regular_files_named_as_parts_are_read(tmp_path: Path) -> None:
    folder = made_up(tmp_path, images=3, metrics=["sparsity"])
    cell = _part(folder).parent
    for name, make, message in (
        ("block-1.parquet", os.mkfifo, "not named as a part"),
        (f"block-00001-{'0' * 32}.parquet", os.mkfifo, "no regular file"),
        (f"block-00002-{'0' * 32}.parquet", os.mkdir, "no regular file"),
    ):
        make(cell / name)
        with pytest.raises(DataError, match=message):
            Store(folder).table()
        (cell / name).rmdir() if (cell / name).is_dir() else (cell / name).unlink()
    Store(folder).manifest.unlink()
    os.mkfifo(Store(folder).manifest)
    with pytest.raises(DataError, match="no regular file"):
        Store(folder).read_manifest()


COSTS: dict[str, str] = {
    "a list": "[]",
    "methods a list": '{"methods": []}',
    "methods a text": '{"methods": {"cam": "x"}}',
    "seconds text": '{"methods": {"cam": {"seconds": "1", "forwards": 1, "backwards": 1}}}',
    "seconds null": '{"methods": {"cam": {"seconds": null, "forwards": 1, "backwards": 1}}}',
    "seconds NaN": '{"methods": {"cam": {"seconds": NaN, "forwards": 1, "backwards": 1}}}',
    "seconds negative": '{"methods": {"cam": {"seconds": -1, "forwards": 1, "backwards": 1}}}',
    "infinite": '{"methods": {"cam": {"seconds": 1e999, "forwards": 1, "backwards": 1}}}',
    "deep": "[" * 100_000,
    "not JSON": "x",
    "another digest": '{"methods": {}, "digest": "00"}',
    "unknown key": '{"methods": {}, "import": "os"}',
}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted on Linux")
def test_reading_starts_no_thread(whole: Path) -> None:
    """A thread of Arrow's pool now and then ends the process at its exit by an abort, after all its work."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from xattn.benchmark.scores import Scores\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "scores = Scores(Path(sys.argv[1]))\n"
        "rows = len(scores.frame())\n"
        "assert rows == scores.rows\n"
        "print(count() - before, rows)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True)
    more, rows_read = map(int, done.stdout.split())
    assert rows_read
    assert not more


@pytest.mark.parametrize("text", COSTS.values(), ids=COSTS)
def test_damaged_costs(tmp_path: Path, text: str) -> None:
    store = Store(made_up(tmp_path, images=3, metrics=["sparsity"]))
    assert store.read_costs("shapes", "cnn").methods["gradcam"].forwards == 1
    store.costs("shapes", "cnn").write_text(text)
    with pytest.raises(DataError, match=r"is damaged.*remove it to measure them again") as caught:
        store.read_costs("shapes", "cnn")
    assert "\n" not in str(caught.value)


def test_parts_of_an_earlier_version_are_read_with_a_warning(tmp_path: Path) -> None:
    import hashlib

    folder = made_up(tmp_path, images=3, metrics=["sparsity"])
    before = table(folder)
    path = _part(folder)
    footer = pq.read_schema(path).metadata[b"xattn"]
    old = path.with_name(f"block-00000-{hashlib.blake2b(footer, digest_size=4).hexdigest()}.parquet")
    path.rename(old)
    with pytest.warns(XattnWarning, match="1 parts are of an earlier version, without digests"):
        assert table(folder) == before
    old.rename(old.with_name("block-00000-00000000.parquet"))
    with pytest.raises(DataError, match="its footer is not as it was written"), pytest.warns(XattnWarning):
        Store(folder).table()


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "parts").symlink_to(outside, target_is_directory=True)
    with pytest.raises(DataError, match="a link out of"):
        run(small(), folder)
    assert list(outside.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real").mkdir()
    run(small(data={"limit": 2}, metrics=["gini"]), tmp_path / "link")  # the folder itself may be one
    assert rows(tmp_path / "real")


def test_two_images_of_one_name_are_told(tmp_path: Path) -> None:
    for block, value in enumerate((0.25, 0.5)):
        row = Row("d", "m", "a.png", 0, "cam", "gini", "gini", value)
        Store(tmp_path).write("d", "m", block, [row], {("cam", "gini"): 1})
    with pytest.raises(DataError, match=r"two images of d are called 'a\.png'"):
        Store(tmp_path).table()
