"""The law of `xattn convert` on the CNNs of torchvision and timm, with random weights: it is the same network.

    python benchmarks/convert/law.py [--only REGULAR_EXPRESSION] [--all] [--again] [--limit 90] [--minutes 30]

A converted network whose parts cover everything, with its dilated features read at the old cells, must be the network
of before. For each network and for one part at `low`, `x2` and `x4` this takes the trunk and the classifier of the
converted copy, puts a mean of its own between them, and compares the logits with those of the network: the largest
difference as a share of their spread, in float32, and in float64 where that is above 1e-5. Where that is more than
rounding, or `convert` refuses the network for it, batch norm takes the statistics of noise and it is tried again. The
networks are those of the audit (`benchmarks/models/catalogue.py`: members of all families); with `--all` every name
that torchvision and timm list, the smallest first. What is in `law.json` already is not done again unless `--again`.
Each network runs in a process of its own with a limit on its processor time. The table in `docs/convert.md` is written
from all rows.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import re
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import DOCS, put
from torch import Tensor, nn

import xattn
from xattn.errors import XattnError
from xattn.files import whole_file
from xattn.models import timm_models, torchvision_models
from xattn.models.dilated_layers import old_cells
from xattn.models.shifting import by_shifts
from xattn.outputs import take

sys.path.append(str(Path(__file__).parents[1] / "models"))
import catalogue
from processes import alone, as_lines, short

RESULTS = Path(__file__).parent / "law.json"
RESOLUTIONS = ("low", "x2", "x4")
SINGLE, DOUBLE = 1e-5, 1e-9  # largest differences that are rounding, as shares of the spread of the logits
ROUNDING = r"would be another network|cover everything"  # refusals that may be nothing but rounding


class Everywhere(nn.Module):
    """The mean over the old cells in place of attention: maps (N, 1, h, w) that are one share at each of them."""

    def __init__(self, cells: slice) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, features: Tensor) -> Tensor:
        maps = torch.zeros_like(features[:, :1])
        old = maps[:, :, self.cells, self.cells]
        old += 1 / old.shape[2:].numel()
        return maps


@torch.no_grad()
def difference(model: nn.Module, converted: nn.Module, x: Tensor) -> float:
    """Largest difference between the logits of a network and of its converted copy, as a share of their spread."""
    converted.head.attention = Everywhere(old_cells(converted.backbone))
    wanted, made = take(model(x), model.spec.output or None), converted(x)
    return float((made - wanted).abs().max() / (wanted.max() - wanted.min()).clamp(min=1e-30))


SIDES, LARGER = (96, 128, 112, 160, 192, 224), (256, 224, 240, 192)


def row_of(architecture: catalogue.Architecture) -> dict[str, Any]:
    """What one network gives; where something is refused for a small image, a larger one has the last word."""
    row = row_at(architecture, SIDES)
    if refusals(row) and row["size"] < min(LARGER):
        larger = row_at(architecture, LARGER)
        return larger if "low" in larger and refusals(larger) < refusals(row) else row
    return row


def refusals(row: dict[str, Any]) -> int:
    """At how many resolutions a network is refused."""
    if "low" not in row:
        return 0
    return sum("refused" in row.get(resolution, {"refused": ""}) for resolution in RESOLUTIONS)


def row_at(architecture: catalogue.Architecture, sides: tuple[int, ...]) -> dict[str, Any]:
    """What one network gives at the first of several sizes of image at which it runs."""
    row: dict[str, Any] = {"name": architecture.name}
    torch.manual_seed(0)
    try:
        model, size = architecture.build(sides)
    except Exception as error:  # whatever a library raises
        return row | {"unbuilt": f"{type(error).__name__}: {short(error)}"}
    x = catalogue.images(size, count=2 if max(size) < 200 else 1)
    row |= {"size": size[0], "parameters": sum(p.numel() for p in model.parameters())}
    try:
        model.spec = xattn.infer_spec(model, x)
    except XattnError as error:
        return row | {"refused": short(error)}
    for resolution in RESOLUTIONS:
        row[resolution] = cell_of(model, resolution, x)
        if resolution == "low" and "refused" in row[resolution]:
            break
    return row


def cell_of(model: nn.Module, resolution: str, x: Tensor) -> dict[str, Any]:
    """What one network gives at one resolution."""
    try:
        found = tried(model, resolution, x)
        if outcome(found) == "holds":
            return found
    except XattnError as refusal:
        if not re.search(ROUNDING, str(refusal)):
            return {"refused": short(refusal)}
    try:
        return tried(settled(model, x), resolution, x) | {"settled": True}
    except XattnError as refusal:
        return {"refused": short(refusal)}


def tried(model: nn.Module, resolution: str, x: Tensor) -> dict[str, Any]:
    """The difference that converting makes, in single precision and, where that is large, in double precision."""
    made = xattn.convert(model, parts=1, resolution=resolution, x=x)
    cell: dict[str, Any] = {"single": float(f"{difference(model, made, x):.2g}")}
    if by_shifts(made):
        cell["shifts"] = True
    if not cell["single"] <= SINGLE:
        del made
        exact = copy.deepcopy(model).double()
        double = xattn.convert(exact, parts=1, resolution=resolution, x=x.double())
        cell["double"] = float(f"{difference(exact, double, x.double()):.2g}")
    return cell


@torch.no_grad()
def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose batch norm has the statistics of noise: without any, deep random networks make chaos of rounding."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    model(torch.randn(8, *x.shape[1:]))
    return model.eval()


# -------------------------------------------------------------------------------------------------- what is tried


def everything(largest: int, only: str) -> list[catalogue.Architecture]:
    """Every name that torchvision's classification and timm list, the smallest first.

    Args:
        largest: networks of more parameters are left out.
        only: regular expression that names must contain.
    """
    names = [*timm_models.names(), *(f"torchvision/{name}" for name in torchvision_models.names())]
    sized = sorted((count(name), name) for name in names if re.search(only, name))
    return [architecture(name) for size, name in sized if 0 < size <= largest]


def count(name: str) -> int:
    """Number of parameters of a network, made without memory; 0 where it cannot be made so."""
    library, own = (timm_models, name) if name.startswith("timm/") else (torchvision_models, name.partition("/")[2])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.count_parameters(own)
    except Exception:  # whatever a library raises
        return 0


def architecture(name: str) -> catalogue.Architecture:
    """One network by its name in the table."""
    library, _, own = name.partition("/")
    if library == "timm":
        return catalogue.Architecture(name, lambda sides: catalogue._timm(own, "", "", sides))
    return catalogue.Architecture(name, lambda sides: catalogue._torchvision(own, sides))


# ------------------------------------------------------------------------------------------------------- results


def load() -> dict[str, dict[str, Any]]:
    """All rows so far, by name."""
    if not RESULTS.exists():
        return {}
    return {row["name"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}


def store(rows: dict[str, dict[str, Any]]) -> None:
    """All rows, in a file that appears whole."""
    head = json.dumps({"torch": torch.__version__, "device": "CPU"})[1:-1]
    with whole_file(RESULTS) as temporary:
        temporary.write_text(f'{{{head}, "rows": {as_lines(rows)}}}\n', encoding="utf-8")


def outcome(cell: dict[str, Any]) -> str:
    """Of one network at one resolution: `holds`, `broken` or `refused`."""
    if "refused" in cell:
        return "refused"
    return "holds" if cell["single"] <= SINGLE or cell.get("double", torch.inf) <= DOUBLE else "broken"


_REASONS = {
    "it is a transformer, or mixes tokens": r"transformer|token",
    "its class scores are not one linear layer, or it has no classifier": r"no classifier|not linear|class scores|"
    r"classifier '.*' gives|classifier '.*' runs|nothing that is pooled",
    "what is pooled is not pooled by the mean": r"weighs or selects|not pooled by the mean|pools by attention",
    "several ways meet before the classifier": r"several ways|leads around",
    "its forward cannot be followed": r"cannot be followed",
    "its strides do not make that resolution": r"do not make a map",
    "the layer of its features gives no map to make finer, or looks at cells between its layers": r"between its layers|"
    r"does not give one feature map|no stride shows|does not run with",
    "with dilation it differs from itself by more than rounding": ROUNDING,
    "its features cannot be told": r"feature layer|layer",
}


def reason(text: str) -> str:
    """The kind of reason of a refusal."""
    return next((kind for kind, pattern in _REASONS.items() if re.search(pattern, text)), "other")


def table(rows: list[dict[str, Any]]) -> str:
    """What the rows amount to, in Markdown."""
    built = [row for row in rows if "unbuilt" not in row]
    lines = [
        "| resolution | holds | of these by shifts | broken | refused | largest difference (float32, float64) |",
        "| --- " * 6 + "|",
    ]
    refusals: collections.Counter[tuple[str, str]] = collections.Counter()
    broken = [f"`{row['name']}` ({row['failed']})" for row in built if "failed" in row]
    for resolution in RESOLUTIONS:
        cells = {row["name"]: row[resolution] for row in built if resolution in row}
        found = {name: outcome(cell) for name, cell in cells.items()}
        for name, cell in cells.items():
            if found[name] == "refused":
                refusals[resolution, reason(cell["refused"])] += 1
        broken += [f"`{name}` at {resolution}" for name, what in found.items() if what == "broken"]
        single = [c["single"] for n, c in cells.items() if found[n] == "holds" and "double" not in c]
        double = [c["double"] for n, c in cells.items() if found[n] == "holds" and "double" in c]
        counts = collections.Counter(found.values())
        largest = f"{max(single, default=0):.0e}, {max(double, default=0):.0e} ({len(double)} networks)"
        shifted = sum("shifts" in cell for name, cell in cells.items() if found[name] == "holds")
        lines.append(
            f"| {resolution} | {counts['holds']} | {shifted} | {counts['broken']} | {counts['refused']} | {largest} |"
        )
    unread = sum("refused" in row for row in built)
    text = [
        f"{len(built)} networks with random weights, in {len({row['name'].split('/')[0] for row in built})} libraries "
        f"(torch {torch.__version__.split('+')[0]}, CPU; {len(rows) - len(built)} more could not be built, "
        f"{unread} could not be read):",
        "",
        *lines,
        "",
        "Broken: " + (", ".join(broken) or "none") + ". Refused, at `low` unless said:",
        "",
        *(
            f"- {'' if resolution == 'low' else f'{resolution}: '}{kind}: {n}"
            for (resolution, kind), n in sorted(refusals.items(), key=lambda item: (item[0][0], -item[1]))
        ),
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that names must contain")
    parser.add_argument("--all", action="store_true", help="every name that the libraries list")
    parser.add_argument("--largest", type=float, default=60, help="of --all: million parameters")
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--limit", type=int, default=90, help="seconds of processor time for one network")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no network is begun after that")
    options = parser.parse_args()
    rows, began = load(), time.monotonic()
    tried = [a for a in catalogue.architectures() if a.name.startswith(("torchvision/", "timm/"))]
    tried.sort(key=lambda a: not a.name.startswith("torchvision/"))
    if options.all:
        tried += everything(round(options.largest * 1e6), options.only)
    for one in tried:
        if time.monotonic() - began > 60 * options.minutes:
            break
        if re.search(options.only, one.name) and (options.again or one.name not in rows):
            row = alone(one.name, partial(row_of, one), options.limit)
            rows = load() | {one.name: row}
            store(rows)
            print(json.dumps(rows[one.name]), flush=True)
    put(DOCS / "convert.md", "law.py", table(list(rows.values())))


if __name__ == "__main__":
    main()
