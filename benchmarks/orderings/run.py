"""Five orderings of methods or metrics that were published, tried on small networks here, one by one.

    python benchmarks/orderings/run.py score runs/orderings
    python benchmarks/orderings/run.py page

`score` needs `$XATTN_DATA` and takes some ten minutes of a processor; what is scored is not scored again. `page` makes
`docs/orderings.md` from `results.json`, and from `benchmarks/known_orders/results.json` for the ladder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page import write
from torch import Tensor, nn

from xattn.benchmark.config import Config
from xattn.benchmark.equivalence import exceeds
from xattn.benchmark.plan import plan
from xattn.benchmark.run import run
from xattn.benchmark.scores import Entry, Scores
from xattn.benchmark.statistics import intervals
from xattn.data import datasets
from xattn.functional.statistics import ALPHA, holm
from xattn.labels import label_of
from xattn.metrics import metrics
from xattn.spec import ModelSpec
from xattn.training.folder import processor_name

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "orderings.md"
LADDER = HERE.parent / "known_orders" / "results.json"
TINY = {"source": "tiny-imagenet:$XATTN_DATA/tiny-imagenet", "label": "Tiny-ImageNet"}
RUN = {"batch": 16, "block": 16, "fast": True, "device": "cpu"}
SCENARIOS = ("linear", "multiplicative", "translation", "xor")
PIXELS = ("saliency", "input-x-gradient", "guided-backprop", "integrated-gradients:steps=16")
LAYER = ("gradcam", "gradcam++", "layercam", "hirescam", "cam")
EXPECTED = "gradient-shap:samples=16"
FAITHFUL = [
    "idsds", "f_fidelity:sizes=3,samples=5", "insertion:steps=8", "deletion:steps=8", "insertion:baseline=mean,steps=8",
    "deletion:baseline=mean,steps=8",
]  # fmt: skip


class Net(nn.Module):
    """Three convolutions on 8 x 8 pixels and a linear layer on all of their features, so that places can matter."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.flat = nn.Flatten()
        self.classifier = nn.Linear(16 * 64, 2)
        self.spec = ModelSpec(
            feature_layer="features", input_size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, classes=("T", "L"),
            crop=1.0, name="tris-net",
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        return self.classifier(self.flat(self.features(x)))


def pixels_of(scenario: str, background: str, split: str, length: int) -> tuple[Tensor, Tensor]:
    """Normalized images (N, 3, 8, 8) and labels of a task."""
    data = datasets.create("xai-tris", scenario=scenario, background=background, size=8, length=length, split=split)
    images = np.stack([sample.image for sample in data])
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25, torch.from_numpy(
        data.labels.copy()
    )


def trained(scenario: str, background: str) -> tuple[Net, float]:
    """A network for a task, and the share of 1,000 other images on which it is right."""
    torch.manual_seed(0)
    net = Net()
    x, y = pixels_of(scenario, background, "train", 4000)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(8):
        for some in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[some]), y[some]).backward()
            optimizer.step()
    x, y = pixels_of(scenario, background, "test", 1000)
    with torch.no_grad():
        right = float((net(x).argmax(1) == y).double().mean())
    return net.eval(), right


class Table:
    """Scores of the methods of a run, column by column."""

    def __init__(self, folder: Path) -> None:
        self.scores = Scores(folder)
        (self.dataset,) = self.scores.datasets
        (self.model,) = self.scores.models(self.dataset)
        self.entries: list[Entry] = self.scores.entries(self.dataset, self.model)
        self.names = [e.method for e in self.entries]
        self.controls = [e.method for e in self.entries if e.control]

    def values(self, metric: str, column: str) -> np.ndarray:
        """(N, M), turned so that higher is better."""
        known = metrics.parse(metric)
        values, _ = self.scores.values(self.dataset, self.entries, label_of(known), column)
        return values * (-1 if known.columns[column].value == "lower" else 1)

    def rows(self, metric: str, column: str) -> list[dict[str, Any]]:
        """Mean, interval and number of images of each method."""
        spread = intervals(self.values(metric, column), resamples=1000, seed=0)
        found = zip(self.names, spread.mean, spread.low, spread.high, spread.n, strict=True)
        return [
            {"method": m, "mean": _round(mean), "low": _round(low), "high": _round(high), "images": int(n)}
            for m, mean, low, high, n in found
        ]

    def better(self, metric: str, column: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Whether the first of each pair is shown to be better (one-sided paired t tests, Holm over the pairs)."""
        values = self.values(metric, column)
        d = np.stack([values[:, self.names.index(a)] - values[:, self.names.index(b)] for a, b in pairs], 1)
        p = holm(exceeds(d))
        return [
            {"first": a, "second": b, "difference": _round(float(np.nanmean(d[:, i]))), "p": _round(float(p[i]))}
            for i, (a, b) in enumerate(pairs)
        ]


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def tris(folder: Path) -> list[dict[str, Any]]:
    """XAI-TRIS 8 x 8: which methods find the evidence better than a random map and than the edges of the image."""
    found = []
    for scenario in SCENARIOS:
        for background in ("white", "correlated"):
            name = f"{scenario}-{background}"
            net, accuracy = trained(scenario, background)
            source = f"xai-tris:scenario={scenario},background={background},size=8,length=400"
            config = Config.build(
                {
                    "data": [{"source": source, "split": "test", "label": name}], "models": [{"name": "tris-net"}],
                    "methods": [*PIXELS, "lrp", "deeplift", "gradcam", EXPECTED],
                    "metrics": ["relevance_rank", "pixel_auc"],
                    "run": {**RUN, "fast": False, "block": 200, "batch": 100},
                }
            )  # fmt: skip
            run(config, folder / name, cells=plan(config, {"tris-net": (net, net.spec)}))
            table = Table(folder / name)
            methods = [m for m in table.names if m not in table.controls]
            blind = ("random", "edges")
            pairs = [(m, c) for m in methods for c in blind]
            tested = table.better("relevance_rank", "rank", pairs)
            beaten = [m for m in methods if all(t["p"] < ALPHA for t in tested if t["first"] == m)]
            found.append(
                {
                    "scenario": scenario, "background": background, "accuracy": accuracy, "beats_both": beaten,
                    "rows": table.rows("relevance_rank", "rank"),
                }
            )  # fmt: skip
            print(name, accuracy, len(beaten), "of", len(methods))
    return found


def gridpg(folder: Path, images: int) -> dict[str, Any]:
    """Grid pointing, DiFull and DiPart of methods at the image and at the last layer."""
    columns = ("grid_pointing_game", "difull", "dipart")
    config = Config.build(
        {
            "data": [{**TINY, "limit": images, "mosaic": 2}], "models": [{"name": "tiny-cnn"}],
            "methods": [*PIXELS, *LAYER], "metrics": list(columns), "run": RUN,
        }
    )  # fmt: skip
    run(config, folder)
    table = Table(folder)
    pairs = [("gradcam", m) for m in PIXELS]
    return {
        "rows": {c: table.rows(c, "cell") for c in columns},
        "gradcam_above": table.better("grid_pointing_game", "cell", pairs),
    }


def faithful(folder: Path, images: int) -> dict[str, Any]:
    """In-domain single deletion with signs and without, and expected gradients beside the others."""
    signs = [("input-x-gradient", "input-x-gradient:reduce=mean_abs"), ("saliency:reduce=sum", "saliency")]
    methods = [
        *dict.fromkeys(m for pair in signs for m in pair), *PIXELS[2:], EXPECTED, "smoothgrad:samples=16", "lrp",
        "deeplift", "gradcam", "layercam", "brnpa", "activation",
    ]  # fmt: skip
    config = Config.build(
        {
            "data": [{**TINY, "limit": images}], "models": [{"name": "tiny-cnn"}], "methods": methods,
            "metrics": [*FAITHFUL, {"name": "max_sensitivity:samples=2", "limit": 24}], "run": RUN,
        }
    )  # fmt: skip
    run(config, folder)
    table = Table(folder)
    expected = next(m for m in table.names if m.startswith("gradient-shap"))
    others = [m for m in table.names if m not in table.controls and m != expected]
    columns = [(m, next(iter(metrics.parse(m).columns))) for m in [*FAITHFUL, "max_sensitivity:samples=2"]]
    known = {name: next(n for n in table.names if n == name) for pair in signs for name in pair}
    places = []
    for metric, column in columns:
        mean = np.nanmean(table.values(metric, column), axis=0)
        order = [
            m for m, _ in sorted(zip(table.names, mean, strict=True), key=lambda p: -p[1]) if m not in table.controls
        ]
        ahead = table.better(metric, column, [(m, expected) for m in others])
        places.append(
            {
                "metric": metric, "place": order.index(expected) + 1, "of": len(order), "first": order[0],
                "shown_better": [t["first"] for t in ahead if t["p"] < ALPHA],
            }
        )  # fmt: skip
    return {
        "idsds": table.rows("idsds", "idsds"),
        "signs": table.better("idsds", "idsds", [(known[a], known[b]) for a, b in signs]),
        "expected": places,
    }


def score(out: Path, images: int, mosaics: int) -> None:
    """Score everything that is not there yet, and write `results.json`."""
    torch.set_num_threads(1)
    result = {
        "device": f"{processor_name()}, one thread",
        "torch": torch.__version__,
        "tris": tris(out / "tris"),
        "gridpg": gridpg(out / "gridpg", mosaics),
        "faithful": faithful(out / "faithful", images),
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["score", "page"])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/orderings"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--mosaics", type=int, default=32)
    given = parser.parse_args()
    if given.what == "score":
        score(given.out, given.images, given.mosaics)
    else:
        write(json.loads((HERE / "results.json").read_text(encoding="utf-8")), LADDER, PAGE)


if __name__ == "__main__":
    main()
