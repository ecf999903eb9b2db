"""The page of the audit: what was found, in one table, and what the rows amount to."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LAWS = Path(__file__).parent / "laws.json"

_HEAD = """# Which networks are read rightly

`xattn.explain` finds out by experiment which layer of a network to read and how it lies on the image. This is what it
found on networks with random weights: members of all families of timm and torchvision, small configurations of the
image classifiers of Hugging Face transformers, and home-made kinds that are easy to read wrongly.

"""

_CHECKS = """
Each network was checked by means of its own:

- *depth*: the share of the parameters that ran before the layer's output.
- *corners*: whether the four corners of the map come from the four corners of the image, by the gradient of the
  features of one cell by the pixels: `right` where each corner sees its own quadrant best in both images, or does so
  along random directions by four standard errors; `wrong` where another arrangement of the corners is better by 5 %
  and four standard errors; *all* where every cell sees all of the image about alike, so that this cannot tell. Then
  the network is tried once more with a larger image.
- *Grad-CAM*: the map of `explain` beside one computed in float64 by plain autograd at that layer, as the largest
  difference relative to the largest value. Where the family says how its tokens lie, that is how they are folded. In
  some deep random networks rounding in float32 makes more than 1 %; there both are compared in float64.
- *relevance*: for networks with attention, the first of `transformer-attribution`, `rollout`, `attnlrp`, `cp-lrp` and
  `libragrad` that gave a map with the status `ok`. The first two need global attention over all tokens.
- *cost*: images through the network while its facts were found, which happens once for each network.

A map is *wrong under `ok`* if its status is `ok` and Grad-CAM is another one, or its corners are `wrong`. Grad-CAM is
*right* if it is the same and its corners are not `wrong`. Squeeze-and-excitation or global attention behind the place
that is looked at let a cell see all of the image; that is no fault of a map, and so not counted as one. Random weights
say whether the right numbers are read, and nothing about whether a map explains anything.
"""


def load_laws() -> list[Row]:
    """What `laws.py` found."""
    return list(json.loads(LAWS.read_text(encoding="utf-8"))) if LAWS.exists() else []


def broken(row: Row) -> list[str]:
    """The laws that a network breaks while its maps are said to be fine and how its layer lies to be proved."""
    if row.get("status") != ["ok"] or row.get("blind"):
        return []
    laws = [law for law in ("images", "repetition") if not row[law]]
    if not row["places"] and not row["places, features"] and row["layout"] == "proved" and row["corners"] != "right":
        laws.append("places")
    return laws + ["layer"] * bool(row["refusals"])


def _laws(rows: Sequence[Row]) -> list[str]:
    """What the laws amount to, in Markdown."""
    tried = [row for row in rows if "status" in row and not row.get("blind")]
    blind = [row for row in rows if row.get("blind")]
    if not tried:
        return []
    counted = [row for row in tried if row["status"] == ["ok"]]
    larger = [row for row in counted if "smaller" in row]
    features = [row for row in counted if not row["places"] and row["places, features"]]
    cancelled = [row for row in larger if row["smaller"]["places, features"]]
    seen = [row for row in counted if not row["places"] and not row["places, features"] and not broken(row)]
    assumed = [row for row in seen if row["layout"] != "proved"]
    mixed = [row for row in seen if row["layout"] == "proved"]
    columns = {
        "places": "what changed in a quarter of the image changes the map most there",
        "images": "two images give two maps",
        "repetition": "the same call gives the same map, in a thread too",
        "layer": "no method of a pass or two that reads the layer refuses it for what it is",
    }
    table = []
    for law, says in columns.items():
        against = [f"`{row['name']}`" for row in counted if law in broken(row)]
        table.append(f"| {says} | {len(counted) - len(against)} of {len(counted)} | {', '.join(against)} |")
    other = [f"`{row['name']}` ({', '.join(row['status'])})" for row in tried if row["status"] != ["ok"]]
    refused = [f"`{row['name']}`" for row in rows if "refused" in row or "failed" in row]
    families = len({row["family"] for row in tried if not row["family"].startswith("home-made")})
    normed = [
        row["smaller"]["places, statistics held"] for row in larger if "places, statistics held" in row["smaller"]
    ]
    about = (
        f"Four laws that hold on any network, on {len(tried)} of these networks, from {families} modules of the "
        "libraries and home-made, by `python benchmarks/models/laws.py` (two images, random weights, one thread of a "
        "CPU). Counted are those whose map has the status `ok`."
    )
    small = (
        f"The map of the first law is the mean over the channels. It took 192 to 288 px in {len(larger)} "
        "networks: the grid of a small one has so few cells that each sees most of the image"
        + (", or changes of single channels cancel in their mean" if cancelled else "")
        + (
            f" (of {len(normed)} with group normalization, holding its statistics mends {sum(normed)})"
            if normed
            else ""
        )
        + (f". In {_listed(features)} the features change most there, and their mean does not" if features else "")
        + (
            f". In {_listed(mixed)} each cell mixes all places so much that none stands out in the features; that its "
            "corners are right is told by the gradients above"
            if mixed
            else ""
        )
        + (f". In {_listed(assumed)} how the layer lies is only assumed, and said to be" if assumed else "")
        + "."
        + (f" The features of {_listed(blind)} are the same for both images; not counted." if blind else "")
        + (f" Another status than `ok`: {', '.join(other)}." if other else "")
        + (f" Refused with a reason: {', '.join(refused)}." if refused else "")
    )
    lines = [textwrap.fill(text, 120, break_on_hyphens=False) for text in (about, small)]
    return ["## Laws", "", lines[0], "", "| law | holds | broken by |", "| --- | --- | --- |", *table, "", lines[1], ""]


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row['name']}`" for row in rows)


def written(rows: list[Row], unaudited: list[str], laws: Sequence[Row] = ()) -> str:
    """The page in Markdown, with the networks of the catalogue that have no row yet by name, and what the laws are."""
    built = [row for row in rows if "unbuilt" not in row]
    table = [
        "| network | input | layer | depth | grid | corners | Grad-CAM | relevance | cost | remarks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(row) for row in built),
    ]
    unbuilt = [f"- {row['name']}: {_cell(row['unbuilt'])}" for row in rows if "unbuilt" in row]
    missing = ["", "## Not built here", "", *unbuilt] if unbuilt else []
    names = ["", "## Not audited yet", "", ", ".join(f"`{name}`" for name in unaudited) + "."] if unaudited else []
    return "\n".join([_HEAD + _summary(built), _CHECKS, *_laws(laws), "## Networks", "", *table, *missing, *names, ""])


def wrong(row: Row) -> bool:
    """Whether a map was given as `ok` that is not what it is said to be."""
    return row.get("status") == ["ok"] and (
        str(row.get("corners")).startswith("wrong") or row.get("gradcam") == "different"
    )


def explained(row: Row) -> bool:
    """Whether Grad-CAM gave the map that it should."""
    return row.get("gradcam") == "equal" and not str(row.get("corners")).startswith("wrong")


def served(row: Row) -> bool:
    """Whether Grad-CAM is right and, where there is attention, an attention or relevance method gave a map."""
    return explained(row) and (not row.get("attention") or bool(row.get("relevance")))


def _summary(rows: list[Row]) -> str:
    count = len(rows)
    if not count:
        return "Nothing has been audited yet."
    good = sum(map(explained, rows))
    attention = [row for row in rows if row.get("attention")]
    related = sum(bool(row.get("relevance")) for row in attention)
    told = sum(row.get("corners") == "right" for row in rows)
    refused = sum("refused" in row or row.get("gradcam") == "refused" for row in rows)
    times = [row["inference_s"] / row["forward_s"] for row in rows if row.get("forward_s", 0) > 0.005]
    three = [row for row in rows if "images" in row]
    days = sorted({row["made"] for row in rows if "made" in row})
    made = f", made on {days[0]}" + (f" to {days[-1]}" if days[1:] else "") if days else ""
    older = sum(row.get("made") != days[-1] for row in rows) if days else 0
    lines = [
        f"Of {count} networks, Grad-CAM is right for {good} ({good / count:.1%}); {refused} are refused with a reason,",
        f"{sum(map(wrong, rows))} get a wrong map under the status `ok`.",
        f"Of {len(attention)} with attention, {related} get a map of an attention or relevance method; so",
        f"{sum(map(served, rows)) / count:.1%} of the networks have all that is asked for here. That the corners are",
        f"right could be told of {told}.",
        f"Finding the facts took three images through the network for {sum(r['images'] == 3 for r in three)} of",
        f"{len(three)}"
        + (f", and in the median {statistics.median(times):.1f} times the time of one" if times else ""),
        "forward pass of one image without gradients"
        + (f" (90 % of the networks: under {_tenth(times):.1f})." if times else "."),
        "",
        f"Two images for each network, one thread of a CPU{made}, by",
        "`python benchmarks/models/audit.py`, which also writes this page from `benchmarks/models/audit.json`."
        + (
            f"\n{older} of the rows are from before {days[-1]}, by an earlier state of the code and of the checks."
            if older
            else ""
        ),
    ]
    return "\n".join(lines)


def _tenth(times: list[float]) -> float:
    return sorted(times)[int(0.9 * (len(times) - 1))]


def _line(row: Row) -> str:
    if "failed" in row or "refused" in row:
        reason = f"refused: {row['refused']}" if "refused" in row else f"failed: {row['failed']}"
        return f"| {row['name']} | | | | | | | | | {_cell(reason)} |"
    h, w = row["grid"]
    status = ", ".join(row.get("status", []))
    equal = f"{row['error']:.0e}" if row.get("gradcam") == "equal" else row.get("gradcam", "")
    if row.get("gradcam") == "equal" and "error_double" in row:
        equal += f", in float64 {row['error_double']:.0e}"
    if status not in ("ok", ""):
        equal += f" ({status})"
    remarks = [*row.get("warnings", []), *([row["reason"]] if "reason" in row else [])]
    if row.get("attention") and not row.get("relevance"):
        remarks += row.get("relevance_reasons", [])[-1:]
    if row.get("gradcam") == "different":
        remarks.append(str(row.get("error")))
    tokens = row["tokens"]
    layer = f"`{row['layer']}`" + ("" if tokens == "maps" else f" ({tokens})")
    relevance = (row.get("relevance") or "none") if row.get("attention") else ""
    corners = {"see everything": "all"}.get(row["corners"], row["corners"])
    size = f"{row['size'][0]}x{row['size'][1]}"
    said = _cell(" ".join(_said(r) for r in remarks))
    cells = (
        row["name"],
        size,
        layer,
        f"{row['depth']:.0%}",
        f"{h}x{w}",
        corners,
        equal,
        relevance,
        row["images"],
        said,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _said(text: str) -> str:
    """A warning without the name of the network before it."""
    head, colon, rest = text.partition(": ")
    return rest if colon and " " not in head else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
