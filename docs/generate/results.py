"""Numbers in the pages come from committed results: a comment asks for them, and they take its place.

- `<!-- take: README.md # cams -->`: what is between `<!-- cams -->` and `<!-- /cams -->` in that file, or else its
  section of that title, which `*` may end; a sentence where the file is not there.
- `<!-- runs: leaderboard -->`: that table of every published benchmark run.
- `<!-- findings -->`: what the tables of the published runs say, in sentences.
- `<!-- standings -->`: where each method stands in every run, side by side.
- `<!-- citation -->`: CITATION.cff as BibTeX.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from docs.generate.cache import ROOT

RUNS = ROOT / "benchmarks" / "results"
_TAU = "median Kendall τ to the others"
_ASKED = re.compile(r"^<!-- (take|runs|findings|standings|citation)(?:: (.+?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def filled(text: str) -> str:
    """The text of a page with what it asks for.

    Raises:
        LookupError: for a file or a part that does not exist.
    """
    makers: dict[str, Callable[[str], str]] = {
        "take": lambda what: part(ROOT / what.split(" # ")[0], what.split(" # ")[1]),
        "runs": tables,
        "findings": lambda _: findings(),
        "standings": lambda _: standings(),
        "citation": lambda _: citation(),
    }
    return _ASKED.sub(lambda match: makers[match[1]](match[2] or ""), text)


def part(path: Path, name: str) -> str:
    """A marked part or a section of a Markdown file, without its links, whose targets are not in these pages."""
    if not path.exists():
        return "This has not been measured yet.\n"
    text = path.read_text(encoding="utf-8")
    title = re.escape(name.removesuffix("*")) + (r"[^\n]*" if name.endswith("*") else "")
    marked = re.search(rf"<!-- {title} -->\n(.*?)<!-- /{title} -->", text, re.DOTALL)
    section = re.search(rf"^#+ {title}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.DOTALL | re.MULTILINE)
    match = marked or section
    if match is None:
        raise LookupError(f"{path.name} has no part '{name}'.")
    return _LINK.sub(lambda m: "" if m[1] else m[2], _COMMENT.sub("", match[1])).strip() + "\n"


def tables(kind: str) -> str:
    """One table of all published runs, under the name of each; a sentence where there is none yet.

    Args:
        kind: file name without suffix of a table that `xattn report` writes.
    """
    paths = sorted(RUNS.glob(f"**/{kind}.md"))
    if not paths:
        return f"No published run has this table yet; `xattn report` writes it as `{kind}.md`.\n"
    return "\n".join(f"**{_title(path)}**\n\n{path.read_text(encoding='utf-8').strip()}\n" for path in paths)


def _title(path: Path) -> str:
    """Name of a run and of the panel in it."""
    return ": ".join(p.replace("-", " ") for p in path.parent.relative_to(RUNS).parts if p != "report")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def findings() -> str:
    """What the reports of the published runs answer, and how far their columns and protocols agree."""
    verdicts = [
        f"- **{match[1]}**: {match[2]}"
        for path in sorted(RUNS.glob("**/report.md"))
        for match in re.finditer(r"^## (.+)\n\n(\*\*.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    lines = [*verdicts, *(_agreement(path) for path in sorted(RUNS.glob("**/columns.csv")))]
    return "\n".join(lines) + "\n" if lines else "No benchmark run has been published yet.\n"


def standings() -> str:
    """Where each method that was measured on several networks stands on each of them, by the first question."""
    runs: dict[str, dict[str, str]] = {}
    for path in sorted(RUNS.glob("**/leaderboard.csv")):
        rows = [row for row in _rows(path) if row.get("standing", "control") != "control"]
        if rows and "across-models" not in path.parent.name:
            found = {row["method"].split(":")[0]: row["standing"].removeprefix("'") for row in rows}
            # Equal scores are told by the name of the first of a group.
            runs[path.parent.name] = {
                method: found.get(standing.removeprefix("= ").split(":")[0], standing)
                for method, standing in found.items()
            }
    shared = [m for m, n in Counter(m for run in runs.values() for m in run).items() if n > 1]
    if not shared:
        return "No two runs have a method in common yet.\n"
    held = {m: sum(run.get(m, "").startswith(("best", "beats", "in some")) for run in runs.values()) for m in shared}
    lines = ["| method | above the controls | " + " | ".join(runs) + " |", "| --- |" + " --- |" * (len(runs) + 1)]
    for method in sorted(shared, key=lambda m: (-held[m] / sum(m in run for run in runs.values()), m)):
        cells = [run.get(method, "-") for run in runs.values()]
        lines.append(f"| `{method}` | {held[method]} of {sum(c != '-' for c in cells)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _agreement(path: Path) -> str:
    columns = _rows(path)
    counts = [row["methods above controls"].split(" of ") for row in columns if row["methods above controls"]]
    above, pairs = (sum(int(count[i]) for count in counts) for i in (0, 1))
    controls = [row["column"] for row in columns if row["best"].endswith("(control)")]
    text = f"- **{_title(path)}**: {len({row['best'] for row in columns})} different entries come first in "
    text += f"{len(columns)} columns"
    text += f"; in {len(controls)} of them it is a control ({', '.join(controls)}). " if controls else ". "
    text += f"Of {pairs} pairs of a method and a column, {above} are above the best control."
    protocols = path.with_name("protocols.csv")
    if protocols.exists():
        rows = _rows(protocols)
        tau = sorted(float(row[_TAU]) for row in rows if row[_TAU])
        text += f" {len({row['best'] for row in rows})} different methods win the {len(rows)} perturbation protocols"
        text += (
            f", whose median agreement with the others (Kendall's τ) is {tau[0]:.2f} to {tau[-1]:.2f}" if tau else ""
        )
        text += "."
    return text


@cache
def costs() -> dict[str, tuple[float, str]]:
    """What methods were measured to take alone, in forward passes, and of which network: ResNet-18 if it serves."""
    path = ROOT / "benchmarks" / "speed" / "results" / "methods.json"
    if not path.exists():
        return {}
    costs_by_name: dict[str, tuple[float, str]] = {}
    networks = json.loads(path.read_text(encoding="utf-8"))["networks"]
    for network, rows in sorted(networks.items(), key=lambda item: item[0] != "resnet18"):
        for name, row in rows.items():
            if "ratio" in row:
                costs_by_name.setdefault(name, (row["ratio"], network))
    return costs_by_name


def citation() -> str:
    """CITATION.cff as BibTeX."""
    facts = dict(
        re.findall(r'^(\w[\w-]*): "?(.*?)"?$', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    )
    authors = re.findall(r"- name: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    fields = {
        "title": f"{{{facts['title']}}}", "author": " and ".join(f"{{{a}}}" for a in authors),
        "version": facts["version"], "license": facts["license"],
    }  # fmt: skip
    return "\n".join(
        ["```bibtex", "@software{xattn,", *(f"  {k} = {{{v}}}," for k, v in fields.items()), "}", "```", ""]
    )
