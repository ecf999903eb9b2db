"""Four laws that hold on any network, tried on the architectures of the audit.

    python benchmarks/models/laws.py [--only REGULAR_EXPRESSION] [--again] [--each-family] [--minutes 10]

For each network, of two images that differ in their lower left quarter alone:

- places: the mean activation of the layer that is read changes most in that quarter;
- images: the two get two maps (HiResCAM of class 0);
- repetition: the same call gives the same map again, and so does a thread;
- layer: no method that reads the layer in a pass or two refuses it for what it is (it may for the classifier or for the
  kind of its activations).

Where the places fail, a larger image is tried: on a grid of 4x4 cells each one sees most of it. The row tells also
whether they hold for the change of the features themselves, as their length over all channels, since the changes of
single channels may cancel in the mean; and whether they hold for the mean with the statistics of group normalization
as they are for the first image, since these are taken over all places.

What is in `laws.json` already is not done again unless `--again`; each row is written when it is there.
`docs/audit.md` is written anew. Networks are those of `catalogue.py`, with random weights; one thread of a CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from audit import PAGE, load
from catalogue import LARGER, SIDES, Architecture, architectures, prepared, settle
from page import LAWS, broken, load_laws, written
from quarter import moved, pair
from torch import Tensor, nn

import xattn
from xattn.errors import NotApplicableError, XattnError, XattnWarning
from xattn.explainer import LayerExplainer
from xattn.explainers import explainers
from xattn.explaining import record_for
from xattn.files import whole_file
from xattn.inspection import facts_about
from xattn.spec import ModelSpec

PLACES = "places", "places, features", "places, statistics held"
MANY = re.compile(
    r"per channel|its own|([3-9]|\d\d) (for|back)ward"
)  # passes of methods that are not tried on the layer
ALLOWED = re.compile(r"no linear layer gives|classifier reads|linear function|all activations")


@contextmanager
def held(model: nn.Module) -> Iterator[int]:
    """Group normalization with the statistics of the first image for all; it gives the number of such layers."""

    def hook(module: nn.GroupNorm, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        x = inputs[0]
        groups = x.unflatten(1, (module.num_groups, -1)).flatten(2)
        mean, variance = groups[:1].mean(2, keepdim=True), groups[:1].var(2, unbiased=False, keepdim=True)
        y = ((groups - mean) / (variance + module.eps).sqrt()).view_as(x)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return y if module.weight is None else y * module.weight.view(shape) + module.bias.view(shape)

    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    handles = [norm.register_forward_hook(hook) for norm in norms]
    try:
        yield len(norms)
    finally:
        for handle in handles:
            handle.remove()


def readers() -> list[LayerExplainer]:
    """The methods that read the layer in a pass or two."""
    kinds = [explainers.get(name) for name in explainers.names()]
    return [kind() for kind in kinds if issubclass(kind, LayerExplainer) and not MANY.search(kind.passes)]


def refusals(model: nn.Module, x: Tensor, spec: ModelSpec) -> list[str]:
    """Reasons for which methods refuse the layer, other than those that are no matter of the layer."""
    said, methods = [], []
    for method in readers():
        try:
            method.check(spec)
            method.layers(spec)
        except NotApplicableError as reason:
            said.append(f"{method.name}: {reason}")
        else:
            methods.append(method)
    trace = record_for(model, x, methods, 0, spec=spec, grad=True)
    for method in methods:
        try:
            method.explanation(trace)
        except NotApplicableError as reason:
            said.append(f"{method.name}: {reason}")
    return [" ".join(reason.split())[:200] for reason in said if not ALLOWED.search(reason)]


def obeyed(architecture: Architecture) -> dict[str, Any]:
    """What holds on one network; at a larger image, too, where the places fail on a small one."""
    row = obeyed_at(architecture, SIDES)
    if not row.get("places", True) and not row.get("blind"):
        larger = obeyed_at(architecture, LARGER)
        if larger.get("size", [0]) > row["size"] and "places" in larger:
            small = {key: row[key] for key in ("size", "grid", *PLACES) if key in row}
            return larger | {"seconds": round(row["seconds"] + larger["seconds"], 1), "smaller": small}
    return row


def obeyed_at(architecture: Architecture, sides: Sequence[int]) -> dict[str, Any]:
    """What holds on one network at the first of these sizes at which it runs."""
    row: dict[str, Any] = {"name": architecture.name}
    started = time.process_time()
    torch.manual_seed(0)
    try:
        model, size = architecture.build(sides)
    except Exception as error:  # whatever a library raises
        return row | {"unbuilt": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    model = prepared(model)
    x = pair(size, architecture.channels)
    settle(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)
        try:
            spec = facts_about(model, x)
            maps = xattn.explain(model, x, "activation", 0, spec=spec).maps
            first = xattn.explain(model, x, "hirescam", 0, spec=spec)
        except XattnError as error:
            return row | {"size": list(size), "refused": " ".join(str(error).split())[:200]}
        row |= {"family": family(model, architecture), "size": list(size), "layer": spec.feature_layer}
        row |= {"grid": list(maps.shape[2:]), "status": sorted(set(first.status)), "places": moved(maps)}
        row["layout"] = spec.evidence["layout"].how
        trace = record_for(model, x, [explainers.get("activation")()], 0, spec=spec)
        features = trace.activation(spec.feature_layer)
        if torch.equal(features[0], features[1]):  # as deep random networks may be
            return row | {"blind": True}
        if not row["places"]:
            with held(model) as count:
                if count:
                    row["places, statistics held"] = moved(xattn.explain(model, x, "activation", 0, spec=spec).maps)
            change = torch.stack([torch.zeros_like(features[0]), features[1] - features[0]])
            row["places, features"] = moved(change.norm(dim=1, keepdim=True))
            row["corners"] = load().get(architecture.name, {}).get("corners", "")
        row["images"] = not torch.allclose(first.maps[0], first.maps[1])
        again = [xattn.explain(model, x, "hirescam", 0, spec=spec).maps]
        thread = threading.Thread(target=lambda: again.append(xattn.explain(model, x, "hirescam", 0, spec=spec).maps))
        thread.start()
        thread.join()
        row["repetition"] = len(again) == 2 and all(torch.equal(maps, first.maps) for maps in again)
        row["refusals"] = refusals(model, x, spec)
    return row | {"seconds": round(time.process_time() - started, 1)}


def family(model: nn.Module, architecture: Architecture) -> str:
    """The module of its library that an architecture is from."""
    library, _, name = architecture.name.partition("/")
    if library == "hf":
        return f"hf/{type(model).__module__.split('.')[-2]}"
    return f"{library}/{type(model).__module__.rpartition('.')[2] if library != 'home-made' else name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that names must contain")
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--each-family", action="store_true", help="the cheapest of each family before all others")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of processor time after which to stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {row["name"]: row for row in load_laws()}
    wanted = [a for a in architectures() if re.search(options.only, a.name)]
    if options.each_family:  # the cheapest first; families by the first letters of their names
        cost = {name: row.get("forward_s", 0.0) for name, row in load().items()}
        wanted.sort(key=lambda a: cost.get(a.name, 0.0))
        stem = {a.name: re.split(r"v?\d|_", re.sub("test_|legacy_", "", a.name))[0] for a in wanted}
        seen: set[str] = set()
        wanted.sort(key=lambda a: stem[a.name] in seen or bool(seen.add(stem[a.name])))
    for architecture in wanted:
        if architecture.name in rows and not options.again:
            continue
        if time.process_time() > 60 * options.minutes:
            break
        try:
            row = obeyed(architecture)
        except Exception as error:  # a law that cannot be tried is a finding
            row = {"name": architecture.name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        rows[architecture.name] = row
        print(row["name"], broken(row) or row.get("failed") or row.get("refused") or "", row, flush=True)
        content = json.dumps(list(rows.values()), indent=1) + "\n"
        with whole_file(LAWS) as path:
            path.write_text(content, encoding="utf-8")
    audited = load()
    unaudited = [a.name for a in architectures() if a.name not in audited]
    PAGE.write_text(written(list(audited.values()), unaudited, list(rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
