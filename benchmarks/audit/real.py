"""What networks rely on in data in which nobody planted anything: writes real.json and real.md beside this file.

    python benchmarks/audit/real.py

`$XATTN_DATA` is the folder that holds the data sets. A linear layer is fitted to the pooled features of a network that
stays as it is, on the images to train on, and the network with it is audited on those to test on. What is there is not
done again; `--again` does it anew, `--only NAME` one of them.

- `magnetic-tile`: six kinds of tiles; the masks tell whether evidence lies on the defect.
- `cub-20`: twenty birds; the boxes tell whether evidence lies on the bird.
- `holstein-reid`: faces of the ten cows with the most photographs, half of each to train on and half to test on; the
  day of a photograph is its source, so that a cow that is known by its day has a sign.
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
from torch import nn
from torch.nn import functional as F

from xattn.audit import Audit, AuditSettings, audit
from xattn.data.dataset import Dataset
from xattn.data.opening import open_dataset
from xattn.files import whole_file
from xattn.models.factory import create_model
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
BATCH, STEPS, DECAY = 50, 60, 1e-3
COWS = 10
Case = tuple[nn.Module, Dataset, tuple[str, ...] | None, float, str]
"""A network, what it is audited on, the sources of the images, its accuracy there, and what the network is."""


@torch.no_grad()
def pooled(model: Any, data: Dataset) -> torch.Tensor:
    """Mean features (n, C) of all images."""
    rows = []
    for start in range(0, len(data), BATCH):
        batch = data.batch(range(start, min(start + BATCH, len(data))), model.spec)
        rows.append(model.backbone(batch.x).mean((2, 3)))
    return torch.cat(rows)


def with_layer(train: Dataset, test: Dataset, sources: tuple[str, ...] | None) -> Case:
    """The embedded tiny-cnn with a linear layer for these classes: softmax regression on its pooled features."""
    torch.manual_seed(0)
    model: Any = create_model("tiny-cnn", weights="DEFAULT", head="linear", num_classes=len(train.classes))
    model.spec = dataclasses.replace(model.spec, classes=train.classes, name="tiny-cnn, new linear layer")
    features, labels = pooled(model, train), torch.from_numpy(np.asarray(train.labels))
    layer = next(m for m in model.head.modules() if isinstance(m, nn.Linear))
    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-4)
    weight = torch.zeros_like(layer.weight).requires_grad_()
    bias = torch.zeros(len(train.classes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy((features - mean) / deviation @ weight.T + bias, labels)
        value = value + DECAY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        layer.weight.copy_(weight / deviation)
        layer.bias.copy_(bias - layer.weight @ mean)
        right = layer(pooled(model, test)).argmax(1).numpy() == test.labels
    what = f"tiny-cnn as it is embedded, linear layer fitted to {len(train)} images"
    return model.eval(), test, sources, float(right.mean()), what


def tiles(root: Path) -> Case:
    """Magnetic tiles."""
    return with_layer(*(open_dataset(f"{root}/magnetic-tile", part) for part in ("train", "test")), None)


def birds(root: Path) -> Case:
    """Twenty birds."""
    return with_layer(*(open_dataset(f"{root}/cub-20", part) for part in ("train", "test")), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Cows(Dataset):
    """Some photographs of a few cows, numbered anew."""

    whole: Dataset
    places: tuple[int, ...]
    cows: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The cows by their numbers in the data."""
        return tuple(f"cow {cow}" for cow in self.cows)

    @property
    def labels(self) -> Any:
        """Which of them it is (n,)."""
        return np.array([self.cows.index(int(self.whole.labels[i])) for i in self.places], np.int64)

    def sample(self, index: int) -> Any:
        """Read one photograph."""
        found = self.whole[self.places[index]]
        return dataclasses.replace(found, label=self.cows.index(int(found.label)))


def cows(root: Path) -> Case:
    """The cows with the most photographs; the day of each is its source."""
    whole: Any = open_dataset(f"{root}/holstein-reid", "train")
    numbers, counts = np.unique(whole.labels, return_counts=True)
    most = tuple(int(k) for k in numbers[np.argsort(-counts, kind="stable")[:COWS]])
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(whole.labels, most)))
    parts: list[list[int]] = [[], []]
    seen = dict.fromkeys(most, 0)
    for i in drawn.tolist():
        cow = int(whole.labels[i])
        parts[seen[cow] % 2].append(i)
        seen[cow] += 1
    train, test = (Cows(whole, tuple(sorted(part)), most) for part in parts)
    return with_layer(train, test, tuple(f"day {whole.groups[i]}" for i in test.places))


CASES: dict[str, tuple[Callable[[Path], Case], int]] = {
    "magnetic-tile": (tiles, 32),
    "cub-20": (birds, 16),
    "holstein-reid": (cows, 32),
}
"""How each case is made, and on how many images a group is tested at most."""


def told(found: Audit, accuracy: float, what: str, seconds: float) -> dict[str, Any]:
    """What an audit found, as plain values."""
    moving = [f for f in found.findings if f.effect.moves]
    return {
        "network": what, "accuracy": accuracy, "images": found.provenance["images"],
        "classes": len(found.provenance["classes"]), "groups": len(found), "moving": len(moving),
        "candidates": len(found.candidates), "beside": sum(f.background for f in moving),
        "processor_seconds": round(seconds, 1),
        "first": [
            {"id": f.id, "level": f.level, "class": f.group.class_name, "kind": f.group.kind, "sentence": f.sentence,
             "why": f.why, "sure": f.sure, "harm": f.harm, "images": len(f.group.members)}
            for f in moving[:5]
        ],
    }  # fmt: skip


def page(results: dict[str, Any]) -> str:
    """The section of the documentation."""
    lines = [
        "| data | network | right | images audited | groups | move the score | beside the object | candidates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results["cases"].items():
        lines.append(
            f"| {name} | {r['network']} | {100 * r['accuracy']:.0f} % | {r['images']} in {r['classes']} classes "
            f"| {r['groups']} | {r['moving']} | {r['beside']} | {r['candidates']} |"
        )
    lines += ["", "The first three of each:", ""]
    for name, r in results["cases"].items():
        for k, f in enumerate(r["first"][:3], 1):
            why = f" {f['why'][0].upper()}{f['why'][1:]}." if f["why"] else ""
            lines.append(f"- **{name}, {k}, {f['level']}** ({f['id']}): {f['sentence']}{why} {f['sure']}")
    return "\n".join(["# In data in which nothing was planted", "", *lines, "", f"Device: {results['device']}.", ""])


def main() -> None:
    """Audit what was not audited yet, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("XATTN_DATA", "data"), help="root that holds the data sets")
    parser.add_argument("--only", choices=CASES, help="one of them")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--pages", type=Path, help="folder for the page of each audit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "real.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    for name, (make, per_group) in CASES.items():
        if given.only not in (None, name) or (name in results["cases"] and not given.again):
            continue
        began = time.process_time()
        model, data, sources, accuracy, what = make(Path(given.data))
        found = audit(model, data, settings=AuditSettings(per_group=per_group), sources=sources)
        results["cases"][name] = told(found, accuracy, what, time.process_time() - began)
        results["device"] = f"{processor_name()}, one thread"
        if given.pages is not None:
            from xattn.pages.audit import audit_page

            audit_page(found, data, model.spec, given.pages / f"{name}.html")
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
        with whole_file(HERE / "real.md") as temporary:
            temporary.write_text(page(results), encoding="utf-8")
        print(name, {k: v for k, v in results["cases"][name].items() if k != "first"}, flush=True)


if __name__ == "__main__":
    main()
