"""Another package adds a method, a metric, a model and a data set by its entry points, and xattn is not touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from xattn.data import datasets
from xattn.explainers import explainers
from xattn.metrics import metrics
from xattn.models import models

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"
RUN = """
methods = ["best-channel", "best-channel:factor=-1"]
metrics = ["peak_on_dot"]
[[data]]
source = "dots:length=6"
[[models]]
name = "dot-net"
[run]
controls = false
device = "cpu"
"""
LIST = """
import json
from xattn.data import datasets, open_dataset
from xattn.errors import DataError
from xattn.explainers import explainers
from xattn.metrics import metrics
from xattn.models import models
try:
    fault = open_dataset("dots", "test")
except DataError as error:
    fault = str(error)
print(json.dumps([registry.names() for registry in (explainers, metrics, models, datasets)] + [fault]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the example as `pip install --target` would leave it, from the wheel that it builds."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(ROOT / "tests" / "plugin_example", folder / "source")
    (source / "dist").mkdir()
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def python(site: Path, folder: Path, *arguments: str) -> str:
    """What a Python that has the package in its path prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_not_here() -> None:
    assert "best-channel" not in explainers
    assert "peak_on_dot" not in metrics
    assert "dot-net" not in models
    assert "dots" not in datasets


def test_a_benchmark_of_nothing_but_the_example(site: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(RUN)
    python(site, tmp_path, "-m", "xattn", "benchmark", "own.toml", "--out", "out", "--quiet")
    rows = [row for file in (tmp_path / "out").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == "peak_on_dot":
            found.setdefault(row["method"], []).append(row["value"])
    assert found == {"best-channel": [1.0] * 6, "best-channel:factor=-1.0": [0.0] * 6}


def test_it_is_listed_with_the_rest(site: Path, tmp_path: Path) -> None:
    *lists, fault = json.loads(python(site, tmp_path, "-c", LIST))
    for names, name in zip(lists, ("best-channel", "peak_on_dot", "dot-net", "dots"), strict=True):
        assert name in names
        assert len(names) > 1
    assert fault.startswith("data set 'dots': has no 'test' part")
