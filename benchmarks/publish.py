"""Take what a repository can carry of the report of a run: tables, the figures that are read first, the manifest.

    xattn report runs/embedded --panels 0 && python benchmarks/publish.py runs/embedded

They go to `benchmarks/results/<name of the run>/`. `report.html`, the panels and the other figures stay behind; the
scores go to `scores/` there, as `xattn publish` writes them, where they are small enough, and the documentation makes
the report of them again.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from xattn.benchmark.publication import About, publish
from xattn.benchmark.store import Store

RESULTS = Path(__file__).parent / "results"
TABLES = ("leaderboard", "columns", "protocols", "box_size", "cost")
FIGURES = ("leaderboard", "critical_difference", "curves", "protocols", "cost", "significance")
LIMIT_BYTES = 1_000_000
_PICTURE = re.compile(r"^!\[.*\]\((\S+)\)\n\n(?:\*.*\*\n\n?)?", re.MULTILINE)


def main() -> None:
    """Copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    report, out = Store(given.run).report, RESULTS / given.run.resolve().name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    manifest = Store(given.run).manifest
    shutil.copyfile(manifest, out / manifest.name)
    wanted = {f"{name}.{kind}" for name in TABLES for kind in ("csv", "md")} | {f"{name}.png" for name in FIGURES}
    for path in sorted(report.rglob("*")):
        if path.name in wanted and "panels" not in path.parts and path.stat().st_size < LIMIT_BYTES:
            target = out / path.relative_to(report)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    text = (report / "report.md").read_text(encoding="utf-8")
    (out / "report.md").write_text(
        _PICTURE.sub(lambda m: m[0] if (out / m[1]).exists() else "", text), encoding="utf-8"
    )
    name = out.name.replace("-", " ")
    about = About(f"Scores of the run {name}", license="Apache-2.0")
    scores = publish(given.run, out / "scores", about)
    if large := [path for path in scores.rglob("*") if path.is_file() and path.stat().st_size >= LIMIT_BYTES]:
        shutil.rmtree(scores)
        print(f"without its scores: {large[0].name} has {large[0].stat().st_size:,} bytes")
    print(f"{sum(1 for p in out.rglob('*') if p.is_file())} files in {out}")


if __name__ == "__main__":
    main()
