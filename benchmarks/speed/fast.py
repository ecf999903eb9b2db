"""`xattn benchmark --fast` against the exact mode: how much faster, how far the areas move, and how both scale.

    python benchmarks/speed/fast.py [--device cuda] [--rounds 5] [--images 32] [--root $XATTN_DATA]

Deletion and insertion at 196 steps, for maps of Grad-CAM, saliency and the random control on real networks: the three
embedded ones on validation images of Tiny-ImageNet, SqueezeNet on photographs. The areas of both modes are compared
image by image. The time is held against a plain forward pass of as many images in batches of the same size, as in
perturbation.py. Peak memory and time are measured for a quarter of the images and for all of them: a benchmark works in
batches (`run.batch`), so that memory stays and time grows with the number of images.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn

import xattn
from xattn.data.opening import open_dataset
from xattn.data.sample import collate
from xattn.explainers import resolve
from xattn.explaining import explain_trace, record_for
from xattn.metrics import metrics
from xattn.models.fast import fast_copy

METHODS = ("gradcam", "saliency", "random")
STEPS = 196
BATCH = 8  # images in one recorded pass


def images(source: str, split: str | None, count: int, model: nn.Module, device: str) -> Tensor:
    """The first images of a data set, as the model wants them."""
    dataset = open_dataset(source, split) if split else open_dataset(source)
    samples = [dataset[i] for i in range(min(count, len(dataset)))]
    return collate(samples, model.spec).x.to(device)


def areas(model: nn.Module, x: Tensor, scoring: nn.Module | None, chunk: int) -> Tensor:
    """Deletion and insertion of every method on every image: (images, methods * 2)."""
    methods = resolve(list(METHODS))
    found = []
    for start in range(0, len(x), BATCH):
        batch = x[start : start + BATCH]
        trace = record_for(model, batch, methods, spec=model.spec, grad=True, scoring=scoring)
        explanations = explain_trace(trace, methods)
        values = [
            row[name]
            for name in ("deletion", "insertion")
            for row in metrics.create(name, steps=STEPS, chunk=chunk).measure_many(explanations, trace, None)
        ]
        found.append(torch.stack(values, dim=1))
    return torch.cat(found)


def passes(model: nn.Module, count: int, batch: Tensor) -> None:
    """A plain forward pass of so many images."""
    with torch.no_grad():
        for _ in range(count // len(batch)):
            model(batch)
        if rest := count % len(batch):
            model(batch[:rest])


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--photos", type=int, default=8, help="images for SqueezeNet, which are larger")
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("XATTN_DATA", "data")))
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    timing.quiet_allocator()
    chunk = 256 if given.device.startswith("cuda") else 32
    tiny = f"tiny-imagenet:{given.root}/tiny-imagenet"
    photos = f"csv:{given.root}/imagenet,table=photos,class_count=1000"
    cases = {name: (name, None, tiny, "val", given.images) for name in ("tiny-cnn", "tiny-bcnn", "tiny-brnpa")}
    weights = str(given.root / "imagenet" / "squeezenet1_0.safetensors")
    cases["squeezenet1_0"] = ("squeezenet1_0", weights, photos, None, given.photos)
    results: dict[str, Any] = {}
    for title, (name, file, source, split, count) in cases.items():
        if given.only and title not in given.only:
            continue
        model = xattn.create_model(name, weights=file).eval().to(given.device)
        x = images(source, split, count, model, given.device)
        lean = fast_copy(model, model.spec)
        exact, fast = areas(model, x, None, chunk), areas(model, x, lean, chunk)
        evaluated = len(x) * (len(METHODS) * 2 * (STEPS - 1) + 2)
        batch = x[:1].expand(chunk, -1, -1, -1).contiguous()
        quarter = x[: len(x) // 4]
        runs = {
            "forward": partial(passes, model, evaluated, batch),
            "exact": partial(areas, model, x, None, chunk),
            "fast": partial(areas, model, x, lean, chunk),
            "exact, a quarter of the images": partial(areas, model, quarter, None, chunk),
        }
        times = timing.interleaved(runs, "forward", rounds=given.rounds, warmup=0, device=given.device)
        memory = {
            label: timing.peak_bytes(partial(areas, model, some, None, chunk), given.device) / 2**20
            for label, some in (("all images", x), ("a quarter", quarter))
        }
        moved = (exact - fast).abs()
        # The processor's time is the steadier clock on a busy machine.
        clock, ratio = ("cpu_seconds", "cpu_ratio") if given.device == "cpu" else ("seconds", "ratio")
        results[title] = {
            "images": len(x),
            "size": list(x.shape[-2:]),
            "evaluated": evaluated,
            "mean_abs_change_of_area": float(moved.nanmean()),
            "largest_change_of_area": float(moved.nan_to_num().max()),
            "share_of_forward": {k: 1 / times[k][ratio] for k in ("exact", "fast")},
            "fast_over_exact": times["exact"][clock] / times["fast"][clock],
            "time_of_four_times_the_images": times["exact"][clock] / times["exact, a quarter of the images"][clock],
            "peak_mb": memory,
            "times": times,
        }
        row = results[title]
        print(
            f"{title:14s} share of the bare forward: exact {row['share_of_forward']['exact']:.2f}, "
            f"fast {row['share_of_forward']['fast']:.2f}; fast is {row['fast_over_exact']:.2f} x exact; areas move by "
            f"{row['mean_abs_change_of_area']:.4f} (at most {row['largest_change_of_area']:.3f}); four times the "
            f"images take {row['time_of_four_times_the_images']:.2f} x the time and "
            f"{memory['all images'] / memory['a quarter']:.2f} x the memory"
        )
    facts = {"steps": STEPS, "methods": METHODS, "batch": BATCH, "chunk": chunk, "rounds": given.rounds}
    suffix = "" if given.device == "cpu" else "_cuda"
    path = timing.write(
        f"fast{suffix}", {"environment": timing.environment(given.device), "parameters": facts, "networks": results}
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
