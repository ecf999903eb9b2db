"""A run on another file system: a local S3 server, and the memory of this process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmark.runs import small, table
from xattn import places
from xattn.benchmark.run import run
from xattn.benchmark.store import Store
from xattn.errors import DataError, ParameterError
from xattn.pages.report import full_report

pytest.importorskip("upath")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server in this process, which the environment names as it would name any other."""
    s3fs = pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "key"),
                           ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
            patch.setenv(key, value)
        s3fs.S3FileSystem().mkdir("scores")
        yield "s3://scores"
    server.stop()


@pytest.fixture
def memory() -> str:
    """A folder of its own in memory."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_run_in_a_bucket(bucket: str, whole: Path, tmp_path: Path) -> None:
    out = f"{bucket}/runs/small"
    run(small(), out, rank=0, world=2)
    assert len(Store(out).parts()) == 2
    run(small(), out, rank=1, world=2)
    assert run(small(), out).blocks == 0  # all of it is there
    assert table(out) == table(whole)
    with pytest.raises(ParameterError, match=r"'s3://scores/runs/small' holds scores of another run: run\.seed was 0"):
        run(small(run={"seed": 1}), out)
    part = Store(out).parts()[0]
    assert str(part).startswith(f"{out}/parts/shapes_cnn-")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{part.name}' is no whole part of a run"):
        Store(out).table()
    part.unlink()
    assert run(small(), out).blocks == 1
    with pytest.raises(ParameterError, match="pass a folder of this machine with --out"):
        full_report(out)
    page = full_report(out, tmp_path / "report", resamples=20, count=0)
    assert "gradcam" in page.read_text()


def test_files_appear_once_and_whole(memory: str) -> None:
    home = places.place(memory)
    assert places.is_remote(home)
    file = home / "a" / "manifest.json"
    places.make(file.parent, home)
    assert places.write_first(file, b"first")
    assert not places.write_first(file, b"second")
    assert places.read(file, 100) == b"first"
    places.write(file, b"third")
    assert places.read(file, 5) == b"third"
    with pytest.raises(DataError, match="is larger than 4 bytes"):
        places.read(file, 4)
    with pytest.raises(FileNotFoundError):
        places.read(home / "b", 4)
    assert [p.name for p in places.listed(home, "*/man*.json")] == ["manifest.json"]
    assert places.listed(home / "nowhere", "*") == []
    assert places.modified(file) is not None


def test_what_is_a_path(tmp_path: Path) -> None:
    assert places.place(str(tmp_path)) == tmp_path
    assert places.place(f"file://{tmp_path}") == tmp_path
    assert not places.is_remote(places.place(f"file://{tmp_path}"))
    url = places.place("memory://x/y")
    assert places.place(url) is url
    with pytest.raises(ParameterError, match="'nothing://x' is on a file system that cannot be opened here"):
        places.place("nothing://x")
