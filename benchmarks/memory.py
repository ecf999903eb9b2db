"""Peak memory of `explain`, `compare` and `report` against how many images there are and how large they are.

Each measurement is a process of its own, whose largest resident set the system tells: Python, torch and the network are
in it, so that the first row of each table is what a run costs at all. The images are noise, smooth enough to compress.

    python benchmarks/memory.py --counts 8 32 128 --sides 256 2048 8192
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "speed" / "results" / "memory.json"
FLAT_MB = 100  # more than the smallest run, and memory is not called flat

_BENCHMARK = """
[[data]]
label = "synthetic"
source = "synthetic:length={count}"
[[models]]
name = "tiny-cnn"
[run]
batch = 8
"""


def images(folder: Path, count: int, side: int) -> Path:
    """A folder of PNG files of `side` pixels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BILINEAR).save(folder / f"{i:05d}.png", compress_level=1)
    return folder


def peak_mb(arguments: Sequence[str]) -> float:
    """Largest resident set of `xattn` with these arguments, in MB.

    Raises:
        SystemExit: if the command fails.
    """
    command = [sys.executable, "-m", "xattn", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, environment, file_actions=quiet), 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return round(usage.ru_maxrss / (1000 if sys.platform == "linux" else 1_000_000), 1)


def image_command(name: str, folder: Path, out: Path) -> list[str]:
    """The command over a folder of images."""
    target = out / ("page.html" if name == "compare" else "pictures")
    extra = ["--no-curves"] if name == "compare" else []
    return [name, str(folder), "-m", "gradcam", "-m", "saliency", "-m", "brnpa", *extra, "-o", str(target)]


def report_command(folder: Path, count: int) -> list[str]:
    """The report of a benchmark run over `count` images, which is made first."""
    folder.mkdir(parents=True)
    config = folder / "run.toml"
    methods = 'methods = ["gradcam", "activation", "random", "center"]\nmetrics = ["sparsity", "gini"]\n'
    config.write_text(methods + _BENCHMARK.format(count=count), encoding="utf-8")
    peak_mb(["benchmark", str(config), "--out", str(folder / "scores"), "-q"])
    return ["report", str(folder / "scores"), "--panels", "1", "--resamples", "100", "-q"]


def measure(counts: Sequence[int], sides: Sequence[int], few: int = 8) -> list[dict[str, float | str]]:
    """Rows of command, images, side in pixels and peak memory in MB."""
    rows: list[dict[str, float | str]] = []

    def add(command: str, count: int, side: int, arguments: Sequence[str]) -> None:
        rows.append({"command": command, "images": count, "side_px": side, "peak_mb": peak_mb(arguments)})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for count, side in dict.fromkeys([*((n, sides[0]) for n in counts), *((few, s) for s in sides)]):
            folder = images(home / f"{count}-{side}", count, side)
            for command in ("explain", "compare"):
                add(command, count, side, image_command(command, folder, home / f"{command}-{count}-{side}"))
        for count in counts:
            add("report", count, 0, report_command(home / f"report-{count}", count))
    return rows


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 2048, 8192])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = measure(given.counts, given.sides)
    about = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "pillow")}
    given.out.write_text(json.dumps({"environment": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
