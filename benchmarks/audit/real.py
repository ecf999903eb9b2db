"""What `xattn audit` finds in photographs nobody planted anything in: findings to look at, not a measure of the audit.

    python benchmarks/audit/real.py [--only tiles animals birds] [--pages FOLDER]

EfficientNet-Lite0 with its trained features. On magnetic tiles and on twenty kinds of birds a linear classifier is
trained on the training part, and the test part is audited; on animals it is the network of ImageNet, asked about three
classes of Tiny-ImageNet's training part, enlarged, which became of photographs that the network may have seen at full
size. A class of which fewer than twenty images are taken for it is left out.
`$XATTN_DATA` is the folder that holds the data. `real.json` and `real.md` beside this file have the candidates and the
first findings of each; `--pages` writes the pages to look at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from xattn.audit import Audit, AuditSettings, audit
from xattn.data.dataset import Dataset, Subset
from xattn.data.opening import open_dataset
from xattn.data.preprocessing import preprocess
from xattn.files import whole_file
from xattn.models.factory import create_model
from xattn.pages.audit import audit_page
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
ROOT = os.environ.get("XATTN_DATA", "data")
SETTINGS = AuditSettings(per_group=32)
BATCH, FIRST = 32, 4
INTRODUCTION = """
# Findings in photographs

Written by `real.py`; do not edit. EfficientNet-Lite0: with a linear classifier trained on the training part of
magnetic tiles, or of twenty kinds of birds, of which the test part is audited; and as it comes, on goldfish, fire
salamanders, bullfrogs and others of Tiny-ImageNet's training part, enlarged. Up to 32 images test a group. The
candidates and the first four findings of each are told.
"""
Case = tuple[Any, Dataset, tuple[str, ...] | None]


def linear(source: str) -> Case:
    """EfficientNet-Lite0 with a linear classifier of the classes of a data set, and the part to audit."""
    learned, held = open_dataset(source, "train"), open_dataset(source, "test")
    model: Any = create_model("efficientnet_lite0")
    model.classifier = nn.Identity()
    parts = []
    with torch.no_grad():
        for start in range(0, len(learned), BATCH):
            some = range(start, min(start + BATCH, len(learned)))
            parts.append(model(torch.stack([preprocess(learned[i].image, model.spec) for i in some])))
    features = torch.cat(parts).double().numpy()
    spread = features.std(0) + 1e-3
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(features / spread, learned.labels)
    model.classifier = nn.Linear(features.shape[1], len(learned.classes))
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(fitted.coef_ / spread))
        model.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    model.spec = dataclasses.replace(model.spec, classes=learned.classes)
    return model, held, None


def tiles() -> Case:
    """Defects of magnetic tiles, with masks."""
    return linear(f"parquet:{ROOT}/magnetic-tile")


def birds() -> Case:
    """Twenty kinds of birds, with boxes."""
    return linear(f"parquet:{ROOT}/cub-20")


def animals() -> Case:
    """Goldfish, fire salamanders and bullfrogs among other images of Tiny-ImageNet, with boxes."""
    data = open_dataset(f"{ROOT}/tiny-imagenet", "train")
    asked = [np.flatnonzero(data.labels == k)[:400] for k in (0, 1, 2)]
    others = np.flatnonzero(data.labels > 2)[:300]
    places = np.sort(np.concatenate([*asked, others]))
    classes = ("goldfish", "European fire salamander", "bullfrog")
    return create_model("efficientnet_lite0"), Subset(data, tuple(places.tolist())), classes


CASES: dict[str, Callable[[], Case]] = {"tiles": tiles, "animals": animals, "birds": birds}


def row_of(found: Audit, seconds: float) -> dict[str, Any]:
    """What is kept of an audit."""
    shown = [f for f in found if f.candidate or f.rank <= FIRST]
    return {
        "images": found.provenance["images"],
        "classes": len(found.provenance["classes"]),
        "findings": len(found),
        "moving": sum(f.effect.moves for f in found),
        "beside": sum(f.background for f in found),
        "candidates": len(found.candidates),
        "seconds": round(seconds),
        "first": [{"level": f.level, "class": f.group.class_name, "kind": f.group.kind, "harm": round(f.harm, 3),
                   "sentence": f.sentence, "why": f.why} for f in shown],
    }  # fmt: skip


def page(rows: dict[str, Any], device: str) -> str:
    """The page."""
    lines = [
        *INTRODUCTION.strip().splitlines(), "", f"Device: {device}, one thread; processor seconds.", "",
        "| images | number | classes | findings | that move the score | beside the object | candidates | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, r in rows.items():
        lines.append(
            f"| {name} | {r['images']} | {r['classes']} | {r['findings']} | {r['moving']} | {r['beside']} "
            f"| {r['candidates']} | {r['seconds']} |"
        )
    for name, r in rows.items():
        lines += ["", f"## {name.capitalize()}", ""]
        lines += [f"- **{f['class'].split(',')[0]}, {f['level']}**: {f['sentence']}" for f in r["first"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Audit, keep what was found before of the others, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pages", type=Path, help="folder for the pages of the audits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "real.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    device = processor_name()
    for name in given.only:
        model, data, classes = CASES[name]()
        began = time.process_time()
        found = audit(model, data, classes=classes, settings=SETTINGS)
        rows[name] = row_of(found, time.process_time() - began)
        print(name, {k: v for k, v in rows[name].items() if k != "first"}, flush=True)
        if given.pages:
            given.pages.mkdir(parents=True, exist_ok=True)
            audit_page(found, data, model.spec, given.pages / f"{name}.html")
        rows = {n: rows[n] for n in CASES if n in rows}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        with whole_file(HERE / "real.md") as temporary:
            temporary.write_text(page(rows, device), encoding="utf-8")


if __name__ == "__main__":
    main()
