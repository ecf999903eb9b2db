"""What every method costs: its time as a multiple of one plain forward pass of the same images, and its passes.

    python benchmarks/speed/methods.py [--device cuda] [--rounds 5] [--methods gradcam rise:samples=100]

A method runs alone, with default parameters, and its time includes the forward pass that methods otherwise share; the
class is the predicted one. Methods of less than 20 forward passes take turns with the forward pass, `--rounds` times,
on `--batch` images. The others are measured on `--dear-batch` images, once if they take more than a few seconds, with
forward passes before and after. A method that is not defined for one of the networks is recorded with its reason; if it
is defined for neither, it is measured on the first network with a head or attention that it serves.

A run of all methods writes `results/methods.json`; one of some methods is only printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn

import xattn
from xattn.data.preprocessing import to_batch
from xattn.errors import NotApplicableError, XattnError
from xattn.explainer import Explainer
from xattn.explainers import explainers, resolve
from xattn.explaining import record_for

DEAR = 20.0  # forward passes
LONG = 4.0  # seconds, after which a dear method is not run again
SPECIAL = ("tiny-bcnn", "tiny-brnpa", "tiny-vit", "timm/vit_tiny_patch16_224")
PHOTOS = [Path(__file__).parents[2] / "examples" / name for name in ("chelsea.jpg", "coffee.jpg")]


def network(name: str, batch: int, device: str) -> tuple[nn.Module, Tensor]:
    """A network with its own weights or seeded random ones, and two photographs, mirrored and turned, of its size."""
    torch.manual_seed(0)
    model = xattn.create_model(name).to(device)
    photos = to_batch(PHOTOS, model.spec)
    views = torch.cat([photos, photos.flip(3), photos.flip(2), photos.flip(2, 3)])
    return model, views.repeat(-(-batch // len(views)), 1, 1, 1)[:batch].to(device)


def forward_of(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """The reference."""

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    return forward


def seconds(call: Callable[[], object], device: str) -> float:
    timing.synchronize(device)
    start = time.perf_counter()
    call()
    timing.synchronize(device)
    return time.perf_counter() - start


def passes(model: nn.Module, x: Tensor, method: Explainer) -> dict[str, float]:
    """Passes that the trace counts, and how many images went through the network for each image explained.

    One pass of the trace is one call of the network, of as many images as fit in a batch. What a library runs on a copy
    of the network is not seen.
    """
    images = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal images
        images += len(inputs[0])

    handle = model.register_forward_pre_hook(count)
    try:
        method.check(model.spec)
        trace = record_for(model, x, [method], spec=model.spec)
        method.explanation(trace)
    finally:
        handle.remove()
    return {"forwards": trace.forwards, "backwards": trace.backwards, "images": images / len(x)}


def trial(model: nn.Module, x: Tensor, method: Explainer, device: str) -> tuple[dict[str, Any], float]:
    """What one call says of a method: its row, and how long it took; a refusal and a failure are rows too."""
    forward = forward_of(model, x)
    forward()
    before = [seconds(forward, device) for _ in range(3)]
    row: dict[str, Any] = {}
    try:
        took = seconds(lambda: row.update(passes(model, x, method)), device)
        if took < LONG:  # the first call may have imported a library
            took = min(took, seconds(lambda: xattn.explain(model, x, method), device))
    except NotApplicableError as reason:
        return {"refused": str(reason)}, 0.0
    except Exception as error:  # one broken method must not cost the run
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}, 0.0
    reference = statistics.median(before + [seconds(forward, device) for _ in range(3)])
    return {"ratio": took / reference, "seconds": took, "rounds": 1, "batch": len(x), **row}, took


def measure(name: str, methods: dict[str, Explainer], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A row for each method on one network."""
    model, x = network(name, options.batch, options.device)
    few = x[: options.dear_batch]
    rows: dict[str, dict[str, Any]] = {}
    cheap: dict[str, Callable[[], object]] = {}
    for text, method in methods.items():
        rows[text], took = trial(model, few, method, options.device)
        if "ratio" not in rows[text]:
            continue
        if rows[text]["ratio"] < DEAR:
            cheap[text] = lambda method=method: xattn.explain(model, x, method)
        elif took < LONG:
            cases = {"forward": forward_of(model, few), text: lambda method=method: xattn.explain(model, few, method)}
            found = timing.interleaved(cases, rounds=min(3, options.rounds), warmup=0, device=options.device)
            rows[text] |= found[text]
        print(f"  {name}: {text:24s} about {rows[text]['ratio']:.1f}", flush=True)
    found = timing.interleaved(
        {"forward": forward_of(model, x), **cheap}, rounds=options.rounds, inner=options.inner, device=options.device
    )
    for text, call in cheap.items():
        rows[text] |= found[text] | {"batch": len(x)}
        if options.memory:
            rows[text]["peak_mib"] = timing.peak_bytes(call, options.device) / 2**20
    rows["forward"] = found["forward"] | {"batch": len(x)}
    return rows


def show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """The rows by their cost."""
    print(f"\n{name}")
    for text, row in sorted(rows.items(), key=lambda item: item[1].get("ratio", float("inf"))):
        if "ratio" not in row:
            kind, reason = next(iter(row.items()))
            print(f"  {text:24s} {kind}: {reason}")
            continue
        spread = f"[{row['q25']:.2f}, {row['q75']:.2f}]" if "q25" in row else "once"
        memory = f"{row['peak_mib']:6.0f} MiB" if "peak_mib" in row else ""
        count = f"{row['forwards']:.0f} + {row['backwards']:.0f}, images {row['images']:.0f}" if "images" in row else ""
        print(f"  {text:24s} {row['ratio']:8.2f}  {spread:18s} batch {row['batch']}  passes {count:24s} {memory}")


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1, help="calls per measurement")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dear-batch", type=int, default=2)
    parser.add_argument("--methods", nargs="+", help="names, with parameters; all by default")
    # The small network first: libraries that a method imports are then in place for the large one.
    parser.add_argument("--networks", nargs="+", default=["tiny-cnn", "resnet18"])
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    options = parser.parse_args()
    timing.quiet_allocator()
    warnings.simplefilter("ignore")  # of peers, and of xattn about maps of random networks
    start = time.perf_counter()
    methods = dict(zip(options.methods or explainers.names(), resolve(options.methods or ["all"]), strict=True))
    results = {name: measure(name, methods, options) for name in options.networks}
    left = {t: m for t, m in methods.items() if all("refused" in rows[t] for rows in results.values())}
    for name in SPECIAL if left else ():
        try:
            found = measure(name, left, options)
        except XattnError as reason:
            print(f"  {name}: left out: {reason}")
            continue
        served = {text: row for text, row in found.items() if "refused" not in row}
        if len(served) > 1:  # than the forward pass
            results[name] = served
        left = {text: method for text, method in left.items() if text not in served}
        if not left:
            break
    for name, rows in results.items():
        show(name, rows)
    packages = ("torchvision", "captum", "grad-cam", "timm")
    content = {
        "environment": timing.environment(options.device, *packages),
        "minutes": (time.perf_counter() - start) / 60,
        "networks": results,
    }
    if options.methods is None:
        suffix = "" if options.device == "cpu" else f"_{options.device}"
        print(f"\nwrote {timing.write(f'methods{suffix}', content)}")


if __name__ == "__main__":
    main()
