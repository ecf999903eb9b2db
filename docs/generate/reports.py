"""The reports of the published benchmark runs, made of their published scores, and the page that lists them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from docs.generate import results
from docs.generate.cache import ROOT, kept

_INTRO = """# Published reports

What `xattn report` makes of the scores in `benchmarks/results/`: the answer, and all behind it to sort and to filter.
Each page was made when this documentation was built, stands alone and needs no network; the photographs are not in it.
`xattn report benchmarks/results/NAME/scores --out report` makes it again.
"""
_ANSWER = re.compile(r"^## (.+)\n\n(\*\*.+)$", re.MULTILINE)


def make() -> tuple[dict[str, str], dict[str, Path]]:
    """Text by path of the page that lists them; no pictures."""
    homes = published()
    lines = [_INTRO, *(line for home in homes for line in _entry(home))]
    return {"reports/index.md": "\n".join(lines if homes else [*lines, "No run has been published yet.", ""])}, {}


def published() -> list[Path]:
    """Folders of the runs that are published, with their scores or with tables alone."""
    return [path.parent for path in sorted(results.RUNS.glob("*/report.md"))]


def begin() -> subprocess.Popen[bytes]:
    """Make the reports in a process beside this one, which has all other pages to make."""
    return subprocess.Popen([sys.executable, "-m", "docs.generate.reports"], cwd=ROOT)


def copy(site: Path) -> None:
    """Put the reports with their tables and figures into a site that was built."""
    for home in filter(_with_scores, published()):
        shutil.copytree(rendered(home), site / "reports" / home.name, dirs_exist_ok=True)


def rendered(home: Path) -> Path:
    """The folder of the report of a run, made unless it was before of the same scores by the same code."""

    def write(out: Path) -> None:
        from xattn.pages.report import full_report

        full_report(home / "scores", out, count=0)

    code = [ROOT / "xattn" / name for name in ("benchmark", "functional", "pages")]
    scores = [path for path in sorted((home / "scores").rglob("*")) if path.is_file()]
    return kept(f"reports/{home.name}", [*code, *sorted((code[-1] / "templates").iterdir()), *scores], write)


def _with_scores(home: Path) -> bool:
    return (home / "scores").is_dir()


def _entry(home: Path) -> list[str]:
    """A run on the page: its answers, its report, and with what it was made."""
    answers = _ANSWER.findall((home / "report.md").read_text(encoding="utf-8"))
    where = json.loads((home / "manifest.json").read_text(encoding="utf-8"))["environments"][0]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    # No link of Markdown, for the report is no page of MkDocs.
    button = f'<a class="md-button" href="{home.name}/report.html">Open the report of {home.name}</a>'
    made = f"On {where['device']}, with {versions}; "
    if _with_scores(home):
        made += f"scores in `benchmarks/results/{home.name}/scores`."
    else:
        button = "Its scores are not published; its tables are in [What was measured](../measured.md#leaderboards)."
        made += f"tables in `benchmarks/results/{home.name}`."
    return [
        f"## {home.name}", "", *(line for name, said in answers for line in (f"{name}: {said}", "")),
        button, "", made, "{ .facts }", "",
    ]  # fmt: skip


if __name__ == "__main__":
    for one in filter(_with_scores, published()):
        rendered(one)
