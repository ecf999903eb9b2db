"""Explain some 250 architectures with random weights, and check what is read by means of its own.

    python benchmarks/models/audit.py [--part 1/4] [--only REGULAR_EXPRESSION] [--again] [--limit 120]

For each network: which layer `infer_spec` chose, how deep it lies (share of the parameters that ran before it), its
grid, whether the four corners of the grid come from the four corners of the image (by the gradient of one cell's
features by the pixels), whether Grad-CAM of `explain` equals one that is computed in float64 by plain autograd, what
an attention or relevance method says where there is attention, and what finding the facts cost. What is in
`audit.json` already is not done again unless `--again`. `docs/audit.md` is written from all that it holds.
Each network runs in a process of its own with a limit on its time. transformers is needed for the Hugging Face part.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import importlib
import itertools
import json
import os
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from catalogue import LARGER, SIDES, Architecture, architectures, images
from page import load_laws, written
from processes import alone, as_lines, short
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import xattn
from xattn.errors import XattnError, XattnWarning
from xattn.explainers import explainers
from xattn.inspection import facts_about
from xattn.outputs import take
from xattn.spec import ModelSpec
from xattn.taps import split_call

RESULTS = Path(__file__).parent / "audit.json"
PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
CLOSE = 1e-2  # largest difference to float64, relative to the largest value of the map; float32 in deep random networks
DIRECTIONS = (4, 12)  # how many random ones tell where the corners of a map come from, where the features do not
SURE = 4.0  # standard errors
MARGIN = 0.05  # by how much, as a logarithm, corners must see a wrong quadrant better: layers that mix all cells do so
# For networks with attention: the first of these that is defined for the network.
ATTENTION = ("transformer-attribution", "rollout", "attnlrp", "cp-lrp", "libragrad")


def audit(architecture: Architecture) -> dict[str, Any]:
    """All that is found out about one network: of a larger image, where the cells of a small one see all of it."""
    row = audit_at(architecture, SIDES)
    if row.get("corners") in ("see everything", "one row"):
        larger = audit_at(architecture, LARGER)
        if "corners" in larger and larger["size"] > row["size"]:
            return larger
    return row


def audit_at(architecture: Architecture, sides: Sequence[int]) -> dict[str, Any]:
    """All that is found out about one network at the first of several sizes of image at which it runs."""
    row: dict[str, Any] = {"name": architecture.name}
    torch.manual_seed(0)
    try:
        model, size = architecture.build(sides)
    except Exception as error:  # whatever a library raises
        return row | {"unbuilt": f"{type(error).__name__}: {short(error)}"}
    x = images(size, channels=architecture.channels)
    row |= {"size": list(size), "parameters": sum(p.numel() for p in model.parameters())}
    passes: list[int] = []
    counting = model.register_forward_pre_hook(_counter(passes), with_kwargs=True)
    started = time.process_time()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            spec = facts_about(model, x)
    except XattnError as error:
        return row | {"refused": short(error)}
    finally:
        counting.remove()
        row["inference_s"] = round(time.process_time() - started, 4)
    row["images"] = sum(passes)
    row["forward_s"] = round(_forward_time(model, x[:1]), 4)
    row["attention"] = attends(model, x[:1])
    row["warnings"] = [short(w.message) for w in said if issubclass(w.category, XattnWarning)]
    row |= {"layer": spec.feature_layer, "classifier": spec.classifier, "values": spec.values}
    row |= {"evidence": {k: v.how for k, v in spec.evidence.items()}, "tokens": _plain(spec)}
    row |= read(model, x, spec, size)
    row |= compared(model, x, spec, size, architecture)
    if row["attention"]:
        row |= related(model, x, spec)
    return row


class _Attention(TorchFunctionMode):
    """Notes calls of attention by its functions of torch."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
        return func(*args, **(kwargs or {}))


def attends(model: nn.Module, x: Tensor) -> bool:
    """Whether a network has attention: by the functions that it calls, or by what its modules are called."""
    with torch.no_grad(), _Attention() as attention:
        model(x)
    names = (type(module).__name__ for module in model.modules())
    return attention.seen or any(re.search("attention|attn|mhsa|gpsa|mhca|mla", n, re.IGNORECASE) for n in names)


def _counter(passes: list[int]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Sequence[Any], named: dict[str, Any]) -> None:
        passes.append(len(next(v for v in (*inputs, *named.values()) if isinstance(v, Tensor))))

    return hook


def _plain(spec: ModelSpec) -> str:
    t = spec.tokens
    if t is None:
        return "maps"
    return (
        "channels last" if t.channels_last else f"{t.prefix}+grid+{t.suffix}" + (f" by {t.blocks}" if t.blocks else "")
    )


def _forward_time(model: nn.Module, x: Tensor) -> float:
    times = []
    with torch.no_grad():
        for _ in range(3):
            started = time.process_time()
            model(x)
            times.append(time.process_time() - started)
    return statistics.median(times)


# --------------------------------------------------------------------------------------------------- what was read


def kept(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Any, list[str]]:
    """The output of a layer, of the model, and the modules in the order in which they ran up to that output."""
    name, call = split_call(layer, dict(model.named_modules()))
    order: list[str] = []
    outputs: list[tuple[Tensor, int]] = []

    def hook(own: str) -> Callable[..., Any]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> Any:
            order.append(own)
            if own != name:
                return None
            first = _first(output)
            outputs.append((first, len(order)))
            return output.clone() if isinstance(output, Tensor) else None

        return keep

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n]
    try:
        result = model(x)
    finally:
        for handle in handles:
            handle.remove()
    tensor, position = outputs[-1 if call is None else call]
    return tensor, result, order[:position]


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return next(v for v in (output.values() if isinstance(output, dict) else output) if isinstance(v, Tensor))


def folded(tensor: Tensor, spec: ModelSpec, size: tuple[int, int]) -> Tensor:
    """As (N, C, h, w), by the facts that were found."""
    tokens = spec.tokens
    return tokens.fold(tensor, size) if tokens is not None and tokens.folds(tensor) else tensor


def read(model: nn.Module, x: Tensor, spec: ModelSpec, size: tuple[int, int]) -> dict[str, Any]:
    """Depth of the layer, its grid, and whether its corners come from the corners of the image."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        tensor, _, before = kept(model, leaf, spec.feature_layer)
        features = folded(tensor, spec, size)
        h, w = features.shape[-2:]
        row: dict[str, Any] = {"grid": [h, w]}
        seen = set(before)
        own = {n: sum(p.numel() for p in m.parameters(recurse=False)) for n, m in model.named_modules()}
        row["depth"] = round(sum(own[n] for n in seen) / max(sum(own.values()), 1), 3)
        if min(h, w) < 2:
            return row | {"corners": "one row"}
        return row | {"corners": corners(features, leaf)}


def corners(features: Tensor, leaf: Tensor) -> str:
    """From which quadrant of the image each corner of a map comes: `right`, `wrong [...]` or `see everything`.

    That is by the absolute gradient of the corner's features by the pixels. `right` at once if that of the squared
    features is largest in the own quadrant for each corner of each image. Else along random directions, as the
    logarithm of the mean in each quadrant, less what all corners see of that quadrant and less what that corner sees
    of all: `right` if the way in which corners and quadrants belong together is the best of all 24 and above zero by
    four standard errors, `wrong` if another one is better than the right one by a twentieth and four standard errors;
    else it cannot be told.
    """
    h, w = features.shape[-2:]
    cells = [features[:, :, i, j] for i, j in ((0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1))]
    own = seen(cells, [cell.detach() for cell in cells], leaf)
    if own is None:
        return "no gradient"
    right = torch.arange(4)
    if bool((own.argmax(2) == right).all()) and bool((own.argmax(1) == right).all()):
        return "right"
    generator = torch.Generator().manual_seed(0)
    samples: list[Tensor] = []
    ways = list(itertools.permutations(range(4)))
    for count in DIRECTIONS:
        while len(samples) < count:
            along = [torch.randn(cell.shape, generator=generator) for cell in cells]
            samples.append(seen(cells, along, leaf))
        logs = torch.cat(samples).clamp(min=1e-30).log()
        beside = logs - logs.mean(1, keepdim=True) - logs.mean(2, keepdim=True) + logs.mean((1, 2), keepdim=True)
        scores = torch.stack([beside[:, right, list(way)].mean(1) for way in ways], 1)  # (samples, 24)
        best = int(scores.mean(0).argmax())
        if best == 0 and beyond(scores[:, 0]) > SURE:
            return "right"
        better = scores[:, best] - scores[:, 0]
        if float(better.mean()) > MARGIN and beyond(better) > SURE:
            return f"wrong {list(ways[best])}"
    return "see everything"


def seen(cells: list[Tensor], along: list[Tensor], leaf: Tensor) -> Tensor | None:
    """Mean absolute gradient (N, 4 corners, 4 quadrants) of features along a direction by the pixels."""
    top, left = leaf.shape[-2] // 2, leaf.shape[-1] // 2
    rows = []
    for cell, direction in zip(cells, along, strict=True):
        (gradient,) = torch.autograd.grad((cell * direction).sum(), leaf, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        size = gradient.abs().sum(1).double()
        parts = (size[:, :top, :left], size[:, :top, left:], size[:, top:, :left], size[:, top:, left:])
        rows.append(torch.stack([part.mean((1, 2)) for part in parts], 1))
    return torch.stack(rows, 1)


def beyond(values: Tensor) -> float:
    """By how many standard errors a mean is above zero."""
    return float(values.mean() / (values.std() / len(values) ** 0.5).clamp(min=1e-12))


# ------------------------------------------------------------------------------------------------------- Grad-CAM


def oracle(
    model: nn.Module, x: Tensor, spec: ModelSpec, target: Tensor, fold: Callable[[Tensor], Tensor]
) -> tuple[Tensor, float]:
    """Grad-CAM (N, 1, h, w) in float64 by plain autograd, and how much of it rounding in float32 may change."""
    # What a network keeps of its last pass, such as biases of attention, cannot be copied; a change of mode drops it.
    twin = copy.deepcopy(model.train()).double().eval()
    model.eval()
    with torch.enable_grad():
        tensor, output, _ = kept(twin, x.double().requires_grad_(), spec.feature_layer)
        scores = take(output, spec.output or None)
        scores = scores if scores.ndim == 2 else scores.reshape(len(x), -1)
        (gradient,) = torch.autograd.grad(scores.gather(1, target[:, None]).sum(), tensor)
    features, gradient = fold(tensor.detach()), fold(gradient)
    terms = features * gradient.mean((2, 3), keepdim=True)
    return terms.sum(1, keepdim=True).relu(), float(terms.abs().sum(1).max())


def by_hand(
    model: nn.Module, spec: ModelSpec, size: tuple[int, int], architecture: Architecture
) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """How the layer lies, by what the family says of itself; by the facts that were found where it says nothing."""
    prefix = architecture.prefix
    if prefix is None and architecture.name.startswith("timm/"):
        prefix = getattr(model, "num_prefix_tokens", None)
    channels = getattr(model, "num_features", None)
    if channels is None:
        sizes = getattr(getattr(model, "config", None), "hidden_sizes", None)
        channels = sizes[-1] if sizes else None
    convolutional = not any(re.search("LayerNorm|RmsNorm|RMSNorm|Attention", type(m).__name__) for m in model.modules())

    def known(tensor: Tensor) -> Tensor | None:
        if tensor.ndim == 3 and prefix is not None:
            count = tensor.shape[1] - prefix
            h = round((count * size[0] / size[1]) ** 0.5)
            return tensor[:, prefix:].transpose(1, 2).unflatten(2, (h, -1)) if h and count % h == 0 else None
        if tensor.ndim == 4 and convolutional:
            return tensor
        if tensor.ndim == 4 and channels in (tensor.shape[1], tensor.shape[3]):
            if tensor.shape[1] == tensor.shape[3]:
                return None
            return tensor if tensor.shape[1] == channels else tensor.permute(0, 3, 1, 2)
        return None

    state = {"by": "spec"}

    def fold(tensor: Tensor) -> Tensor:
        maps = known(tensor)
        if maps is not None:
            state["by"] = "family"
            return maps
        return folded(tensor, spec, size)

    return fold, state


def compared(
    model: nn.Module, x: Tensor, spec: ModelSpec, size: tuple[int, int], architecture: Architecture
) -> dict[str, Any]:
    """Grad-CAM of `explain` beside that of plain autograd, of the predicted class or one whose map is not flat."""
    with torch.no_grad():
        scores = take(model(x[:1]), spec.output or None)
    classes = scores.numel()
    row: dict[str, Any] = {}
    try:
        for target in (None, *range(min(classes, 4))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XattnWarning)
                explanation = xattn.explain(model, x, "gradcam", target=target)
            row["status"] = sorted(set(explanation.status))
            if row["status"] == ["ok"]:
                break
    except XattnError as error:
        return {"gradcam": "refused", "reason": short(error)}
    maps = explanation.maps.double()
    fold, by = by_hand(model, spec, size, architecture)
    right, scale = oracle(model, x, spec, explanation.target, fold)
    row["fold"] = by["by"]
    if maps.shape != right.shape:
        return row | {"gradcam": "different", "error": f"shapes {tuple(maps.shape)} and {tuple(right.shape)}"}
    error = float((maps - right).abs().max() / right.abs().max().clamp(min=1e-2 * scale, max=None).clamp(min=1e-30))
    row["error"] = float(f"{error:.1e}")
    if error >= CLOSE:  # rounding, which deep random networks amplify, or another map?
        row["error_double"] = float(f"{_exact(model, x, spec, explanation.target, right):.1e}")
    row["gradcam"] = "equal" if error < CLOSE or row["error_double"] < 1e-6 else "different"
    row["images_differ"] = bool((maps[0] - maps[1]).abs().max() > 1e-6 * maps.abs().max()) if len(maps) > 1 else True
    return row


def _exact(model: nn.Module, x: Tensor, spec: ModelSpec, target: Tensor, right: Tensor) -> float:
    """Relative difference of Grad-CAM of `explain` in float64 from the right one."""
    twin = copy.deepcopy(model.train()).double().eval()
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        maps = xattn.explain(twin, x.double(), "gradcam", target=target.tolist(), spec=spec).maps
    return float((maps - right).abs().max() / right.abs().max().clamp(min=1e-30))


def related(model: nn.Module, x: Tensor, spec: ModelSpec) -> dict[str, Any]:
    """The first attention or relevance method that gives a map."""
    reasons = []
    for method in ATTENTION:
        if method not in list(explainers):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XattnWarning)
                explanation = xattn.explain(model, x, method, spec=spec)
        except XattnError as error:
            reasons.append(f"{method}: {short(error)}")
            continue
        if set(explanation.status) == {"ok"}:
            return {"relevance": method}
        reasons.append(f"{method}: {sorted(set(explanation.status))}")
    return {"relevance": None, "relevance_reasons": reasons}


def giving_way(architecture: Architecture) -> dict[str, Any]:
    """The row of one network, in a process that gives way to all others."""
    os.nice(max(10 - os.nice(0), 0))
    row = audit(architecture)
    return row | {"seconds": round(time.process_time(), 1)}


def load() -> dict[str, dict[str, Any]]:
    """All rows so far of what is in the catalogue, by name."""
    if not RESULTS.exists():
        return {}
    names = {architecture.name for architecture in architectures()}
    return {row["name"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8")) if row["name"] in names}


def store(row: dict[str, Any]) -> None:
    """Put one row to the others; several parts may do so at once."""
    with (Path(tempfile.gettempdir()) / "xattn-audit.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = load() | {row["name"]: row}
        temporary = RESULTS.with_suffix(".part")
        temporary.write_text(as_lines(rows) + "\n", encoding="utf-8")
        temporary.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n parts")
    parser.add_argument("--only", default="", help="regular expression that names must contain")
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time for one network")
    parser.add_argument("--jobs", type=int, default=1, help="processes, which give way to all others")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    known = {} if options.again else load()
    wanted = [a for a in architectures() if re.search(options.only, a.name) and a.name not in known][part - 1 :: parts]
    if wanted:
        for library in ("timm", "torchvision.models", "transformers"):  # once, before the processes are forked
            importlib.import_module(library)
        explainers.names()
    children = []
    for job in range(options.jobs):
        if options.jobs > 1 and (child := os.fork()):
            children.append(child)
            continue
        for architecture in wanted[job :: options.jobs]:
            row = alone(architecture.name, partial(giving_way, architecture), options.limit)
            row["made"] = time.strftime("%Y-%m-%d", time.gmtime())
            store(row)
            print(line(row), flush=True)
        if options.jobs > 1:
            os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    rows = load()
    unaudited = [a.name for a in architectures() if a.name not in rows]
    PAGE.write_text(written(list(rows.values()), unaudited, load_laws()), encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """One network in one line, for whoever waits."""
    keys = ("unbuilt", "failed", "refused", "size", "layer", "depth", "grid", "tokens", "corners", "gradcam", "error",
            "status", "fold", "relevance", "relevance_reasons", "images", "warnings", "reason", "seconds")  # fmt: skip
    return f"{row['name']:44s} " + " ".join(f"{k}={row[k]}" for k in keys if row.get(k) not in (None, [], ""))


if __name__ == "__main__":
    main()
