"""The table of a run over a folder: a row an image, network and method, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn.cli.loading import picture_file
from xattn.data.finding import as_text

COLUMNS = (
    *("image", "label", "model", "predicted", "predicted_probability", "right", "method", "explained", "probability"),
    *("status", "picture", "maps"),
)


def write_index(path: Path, entries: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, str]]) -> None:
    """Write what is known of each map; an image that could not be read has one row with the reason as its status.

    Args:
        path: of the table.
        entries: of the summary.
        failed: files with reasons.

    Raises:
        DataError: if it cannot be written.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        for item in entry["maps"]:
            guess, goal = entry["predicted"][item["model"]], item["target"]
            rows.append(
                {
                    "image": entry["file"],
                    "label": entry.get("label"),
                    "model": item["model"],
                    "predicted": guess["class"],
                    "predicted_probability": _short(guess["probability"]),
                    "right": {True: "yes", False: "no"}.get(guess.get("right")),
                    "method": item["label"],
                    "explained": goal["class"] if goal["class_specific"] else None,
                    "probability": _short(goal["probability"]),
                    "status": item["status"],
                    "picture": item["picture"],
                    "maps": item["maps"],
                }
            )
    rows += [{"image": failure["file"], "status": failure["reason"]} for failure in failed]
    with picture_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: as_text(value) if isinstance(value, str) else value for key, value in row.items()})


def _short(probability: float | None) -> str | None:
    return None if probability is None else f"{probability:.6g}"
