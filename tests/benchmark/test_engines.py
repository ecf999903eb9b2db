"""Every engine gives the same table, also when one of its workers is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.benchmark.runs import small, table
from xattn.benchmark.engine import Engine, Job
from xattn.benchmark.engines import engine_of, engines
from xattn.benchmark.plan import plan
from xattn.benchmark.run import run
from xattn.benchmark.store import Store
from xattn.errors import DataError, ParameterError, UnknownNameError

ROOT = Path(__file__).parents[2]


def ran(engine: Engine, folder: Path) -> None:
    """The small run by an engine; it measures costs too."""
    progress: list[tuple[float, float]] = []
    cells = plan(small())
    engine.run(Job(small(), str(folder)), cells, engine.part(None), lambda done, all_, _: progress.append((done, all_)))
    assert all(0 <= done <= total for done, total in progress)
    assert set(Store(folder).read_costs("shapes", "cnn").methods) == set(cells[0].methods)


def test_names_and_parameters() -> None:
    assert {"local", "torchrun", "submitit", "ray"} <= set(engines.names())
    assert engine_of("submitit:workers=3,cluster=local,partition=none").part(None) == (0, 1)
    with pytest.raises(UnknownNameError, match=r"unknown engine 'rays'\. Did you mean 'ray'"):
        engine_of("rays")
    with pytest.raises(ParameterError, match="engine submitit: workers must be"):
        engine_of("submitit:workers=0")
    with pytest.raises(ParameterError, match="--shard: engine ray shares out the work itself"):
        engine_of("ray").part("0/2")


def test_which_part_a_process_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert engine_of(None).part(None) == (0, 1)
    with pytest.raises(ParameterError, match="engine torchrun: RANK is not in the environment; start it as torchrun"):
        engine_of("torchrun").part(None)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert engine_of(None).part(None) == (2, 3)
    assert engine_of(None, "0/5").part("0/5") == (0, 5)
    for text in ("5/5", "1", "a/b", "-1/2", "1/0", "²/5", ""):
        with pytest.raises(ParameterError, match="--shard: expected i/n"):
            engine_of(None, text).part(text)
    for rank, world in (("a", "2"), ("0", "0"), ("0", "x"), ("2", "2")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ParameterError, match="RANK/WORLD_SIZE of the environment: expected i/n"):
            engine_of(None).part(None)


def test_torchrun(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(small(models={"name": "tiny-cnn"}).to_toml())
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m xattn benchmark run.toml --out run --quiet"
    words += " --set models.0.name=tests.cli.models:cnn"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words.split()], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "process 1 of 2: " in done.stdout
    assert table(tmp_path / "run") == table(whole)


def test_a_job_array(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    ran(engine_of("submitit:workers=2,cluster=local"), tmp_path)
    assert table(tmp_path) == table(whole)


def test_a_job_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    cells = plan(small())
    run(small(), tmp_path, rank=0, world=3)
    part = Store(tmp_path).parts()[0]
    job, engine = Job(small(), str(tmp_path)), engine_of("submitit:workers=2,cluster=local")

    def damage(done: float, total: float, what: str) -> None:
        part.write_bytes(b"PAR1")  # once the tasks are under way, and again

    with pytest.raises(DataError, match=rf"of 2 tasks failed; the first, \d+_?\d*, with: .*{part.name}' is no whole"):
        engine.run(job, cells, (0, 1), damage)


def _workers() -> dict[int, str]:
    """Processes below this one that Ray gives a title, by their number."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace").strip("\0")
        except OSError:
            continue  # it has ended

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return {pid: title for pid, title in titles.items() if title.startswith("ray::score_block") and ours(pid)}


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up in /proc")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_ray_with_a_worker_that_is_killed_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 else, by which a busy machine does not get to them for minutes
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 240
        while not killed and time.monotonic() < end:
            if Store(tmp_path).parts():  # some blocks are stored, others are not
                for pid in list(_workers())[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    config = small(run={"block": 2, "batch": 2})
    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        summary = engine_of("ray:workers=2").run(Job(config, str(tmp_path)), plan(config), (0, 1))
    finally:
        watcher.join()
    assert killed
    assert summary.blocks == 11
    assert len(Store(tmp_path).parts()) == 11
    run(config, tmp_path / "alone")
    assert table(tmp_path) == table(tmp_path / "alone")


def test_the_manifest_is_that_of_the_run(whole: Path, tmp_path: Path) -> None:
    ran(engine_of("local"), tmp_path)
    assert table(tmp_path) == table(whole)
    assert json.loads((tmp_path / "manifest.json").read_text())["identity"]["run"]["block"] == 8
