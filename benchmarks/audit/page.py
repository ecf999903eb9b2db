"""Tables and figure of the study, from results.json alone: writes README.md and results.png beside this file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.stats import binomtest

from xattn.benchmark.figures import style_of_figures
from xattn.files import whole_file

HERE = Path(__file__).parent
FIRST = 3
LEVEL = 0.05
KINDS = {"mark": ("#0072B2", "o"), "frame": ("#D55E00", "s"), "tint": ("#E69F00", "^"), "tag": ("#009E73", "D")}
INTRODUCTION = """
# Does `xattn audit` find what a network relies on?

Written by `page.py` from `results.json`; do not edit. `train.py` trains forty networks on four classes of
Tiny-ImageNet (100 images of each; the last stage of the embedded tiny-cnn, 10 epochs): twenty with a mark on a share of
the images of one class, ten without any, ten with a mark on half of the images of every class, where it tells nothing.
`study.py` audits one class of each, that with the mark: its 400 other images and 100 of each other class, marked as
those were. The first stages of tiny-cnn learned from Tiny-ImageNet, without marks; no network saw these images marked.

A network *uses* its mark if more images of the class are recognized with it than without, in a one-sided sign test at
5 % over the 400 images. A finding *shows* the mark if it moves the score, three quarters of its images carry the mark
and, for mark and tag, the cells that are replaced cover half of the mark in half of these; for frame and tint the
images alone decide.

The audit was made with eighty networks of other seeds at hand, which carry the same marks (`DEVELOPMENT` in `runs.py`,
`train.py --development`): forty of an earlier study, in which it found 14 of 18 marks, and forty more, in which it then
missed two. These forty were trained after its last change, and each was audited once.
"""
COLUMNS = """
`finding` is the place of the first one that shows the mark, in the order of the audit; a tint and a frame are shown by
their images alone. Where `study.py --rivals` was run: Grad-CAM pictures, how many one expects to look at, in random
order, until the cell with the highest value holds a pixel of the mark; `pixels` and `features`, the place of the first
cluster that shows it among eight of k-means of the images that are taken for the class, the tightest first.
"""
DIFFERENCE = """
A mark that is everywhere tells nothing. Where the network is right about more or fewer images with it than without (a
two-sided sign test at 5 %), it makes a difference nevertheless, and a finding that says so is no false alarm.
"""


def uses(row: dict[str, Any]) -> bool:
    """Whether the network uses the mark: more images are right only with it than only without."""
    lost, gained = row["use"]["lost"], row["use"]["gained"]
    return lost + gained > 0 and binomtest(lost, lost + gained, alternative="greater").pvalue < LEVEL


def differs(row: dict[str, Any]) -> bool:
    """Whether a mark that is everywhere makes a difference to the network nevertheless."""
    lost, gained = row["use"]["lost"], row["use"]["gained"]
    everywhere = 0 < row["share"] <= row["elsewhere"]
    return everywhere and lost + gained > 0 and binomtest(lost, lost + gained).pvalue < LEVEL


def clean(row: dict[str, Any]) -> bool:
    """Whether a network has no shortcut: none was planted, and what is everywhere makes no difference to it."""
    return row["share"] <= row["elsewhere"] and not differs(row)


def share(hits: int, n: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""
    if n == 0:
        return "none"
    low, high = binomtest(hits, n).proportion_ci(0.95)
    return f"{hits} of {n} ({100 * hits / n:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def among(rank: int | None) -> bool:
    """Whether something is among the first."""
    return rank is not None and rank <= FIRST


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The claims of the study with their intervals."""
    planted = [r for r in rows if r["share"] > r["elsewhere"]]
    used = [r for r in planted if uses(r)]
    without = [r for r in rows if clean(r)]
    bare = [r for r in without if not r["share"]]
    told = [r for r in without if r["share"]]
    audit = [r["audit"] for r in used]
    chance = float(np.mean([a["chance"] for a in audit])) if audit else math.nan
    compared = [r for r in used if "looking" in r]
    local = [r["looking"]["of_class"] for r in compared if r["kind"] in ("mark", "tag")]
    looked = [math.inf if n is None else n for n in local]
    lines = [
        ("the network uses its mark", share(len(used), len(planted))),
        (
            "mark among the first three findings, where it is used",
            share(sum(among(a["rank"]) for a in audit), len(used)),
        ),
        ("… and as a shortcut candidate", share(sum(among(a["rank"]) and a["candidate"] for a in audit), len(used))),
        ("mark in any finding, where it is used", share(sum(a["rank"] is not None for a in audit), len(used))),
        ("the same among the first three by chance, marked images permuted", f"{100 * chance:.0f} %"),
        ("a shortcut candidate, no mark", share(sum(r["audit"]["candidates"] > 0 for r in bare), len(bare))),
        (
            "a shortcut candidate, a mark that tells nothing and makes no difference",
            share(sum(r["audit"]["candidates"] > 0 for r in told), len(told)),
        ),
        (
            "a shortcut candidate, a mark that tells nothing and makes a difference",
            share(sum(r["audit"]["candidates"] > 0 for r in rows if differs(r)), sum(map(differs, rows))),
        ),
        (
            "findings that are candidates, where nothing makes a difference",
            share(sum(r["audit"]["candidates"] for r in without), sum(r["audit"]["findings"] for r in without)),
        ),
    ]
    if compared:
        lines += [
            (
                f"{name}: among the first three clusters",
                share(sum(among(r[name]["rank"]) for r in compared), len(compared)),
            )
            for name in ("pixels", "features")
        ]
        looks = f"{number(float(np.median(looked)))} and {number(max(looked))} over {len(looked)} networks"
        lines.append(("Grad-CAM pictures of the class until one shows the mark or tag, median and most", looks))
    return ["| what | found |", "|---|---|", *(f"| {what} | {found} |" for what, found in lines)]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each network with a mark."""
    more = any("looking" in r for r in rows)
    columns = " Grad-CAM pictures, all / of the class | pixels | features |" if more else ""
    lines = [
        "| mark | share | strength | right with / without | other classes drawn | used | finding | candidate |"
        + columns,
        "|---|---|---|---|---|---|---|---|" + "---|---|---|" * more,
    ]
    for r in rows:
        use, audit = r["use"], r["audit"]
        name = f"{r['kind']}{', moving' * r['moving']}"
        lines.append(
            f"| {name} | {r['share']} | {r['strength']} | {use['right_with']:.2f} / {use['right_without']:.2f} "
            f"| {use['drawn']:.2f} | {'yes' if uses(r) else 'no'} | {audit['rank'] or '-'} "
            f"| {('yes' if audit['candidate'] else 'no') if audit['rank'] else '-'} "
            f"{rival(r)}"
        )
    return lines


def rival(row: dict[str, Any]) -> str:
    """What one would find without an audit, as columns of the table; none where that was not looked at."""
    if "looking" not in row:
        return "|"
    return (
        f"| {number(row['looking']['of_all'])} / {number(row['looking']['of_class'])} "
        f"| {row['pixels']['rank'] or '-'} | {row['features']['rank'] or '-'} |"
    )


def weak(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many are found among the first, by how far the mark is used and on what share of the images it is."""
    # whole points, since 0.97 - 0.67 is a little less than 0.3 and would fall into the bin below
    effects = [round(100 * (r["use"]["right_with"] - r["use"]["right_without"]), 6) for r in rows]
    bins: list[tuple[str, list[dict[str, Any]]]] = []
    for low, high in ((-100, 5), (5, 10), (10, 20), (20, 30), (30, 100)):
        name = f"{low} to {high} points" if low > 0 else f"less than {high} points"
        bins.append(
            (f"right only with the mark: {name}", [r for r, e in zip(rows, effects, strict=True) if low <= e < high])
        )
    for part in (0.5, 0.2, 0.1):
        bins.append((f"on a share of {part}", [r for r in rows if r["share"] == part]))
    for strength in (1.0, 0.4):
        bins.append((f"strength {strength}", [r for r in rows if r["strength"] == strength]))
    for kind in KINDS:
        bins.append((kind, [r for r in rows if r["kind"] == kind]))
    lines = ["| networks with a mark | number | among the first three findings | as a candidate |", "|---|---|---|---|"]
    for name, some in bins:
        hits = [r["audit"] for r in some if among(r["audit"]["rank"])]
        if some:
            lines.append(f"| {name} | {len(some)} | {len(hits)} | {sum(a['candidate'] for a in hits)} |")
    return lines


def number(value: float | None) -> str:
    """An expected number of pictures."""
    return "never" if value is None or math.isinf(value) else f"{value:.1f}"


def clean_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each network whose mark tells nothing."""
    lines = [
        "| mark | right with / without | a difference | findings | that move the score | candidates | their signs |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        audit = r["audit"]
        signs = "; ".join(", ".join(f["signs"]) for f in audit["all"] if f["candidate"])
        name = f"{r['kind']}{', moving' * r['moving']}, everywhere" if r["share"] else "none"
        use = r["use"]
        different = "-" if not r["share"] else "yes" if differs(r) else "no"
        lines.append(
            f"| {name} | {use['right_with']:.2f} / {use['right_without']:.2f} | {different} "
            f"| {audit['findings']} | {audit['moving']} | {audit['candidates']} | {signs or '-'} |"
        )
    return lines


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Rank of the first finding that shows the mark against how far it is used, and what it takes otherwise."""
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    worst = 1.5 * max((r["audit"]["rank"] or 1 for r in rows), default=1) + 3
    with style_of_figures():
        figure, left = plt.subplots(figsize=(6, 3.6), layout="constrained")
        for r in rows:
            colour, marker = KINDS[r["kind"]]
            x = 100 * (r["use"]["right_with"] - r["use"]["right_without"])
            y = r["audit"]["rank"] or worst
            face = colour if r["audit"]["candidate"] else "white"
            left.plot(x, y, marker, color=colour, mfc=face, ms=5 + 6 * r["share"], mew=1.4, ls="none")
        left.axhspan(0.8, FIRST + 0.5, color="#009E73", alpha=0.08, lw=0)
        left.set_yscale("log")
        ticks = [1, 2, 3, 5, 10]
        left.set_yticks([*(t for t in ticks if t < worst), worst], [*(str(t) for t in ticks if t < worst), "not found"])
        left.minorticks_off()
        left.set_ylim(1.15 * worst, 0.8)
        left.set_xlabel("images of the class that are right only with the mark, points")
        left.set_ylabel("first finding that shows it")
        for kind, (colour, marker) in KINDS.items():
            left.plot([], [], marker, color=colour, label=kind)
        left.plot([], [], "o", color="#555555", mfc="white", label="no candidate")
        left.legend(fontsize=8, frameon=False, loc="lower right")
        with whole_file(HERE / "results.png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    """Write the page and the figure."""
    result = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    rows = sorted(result["runs"], key=lambda row: row["seed"])
    planted = [r for r in rows if r["share"] > r["elsewhere"]]
    lines = [
        *INTRODUCTION.strip().splitlines(),
        "",
        f"Device: {result['device']}. {len(rows)} of the forty networks were audited, each on 700 images that it",
        "was not trained on.",
        "",
        "![rank of the finding against the use of the mark](results.png)",
        "",
        "## What was found",
        "",
        *summary(rows),
        "",
        "## What is too weak",
        "",
        *weak(planted),
        "",
        "## Networks with a mark",
        "",
        *COLUMNS.strip().splitlines(),
        "",
        *table(planted),
        "",
        "## Networks without a shortcut",
        "",
        *DIFFERENCE.strip().splitlines(),
        "",
        *clean_table([r for r in rows if r["share"] <= r["elsewhere"]]),
        "",
    ]
    with whole_file(HERE / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    draw(planted)


if __name__ == "__main__":
    main()
