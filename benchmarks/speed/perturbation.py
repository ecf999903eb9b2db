"""Deletion and insertion, and ROAD, beside other libraries: what share of the bare forward throughput is left.

    python benchmarks/speed/perturbation.py [--device cuda] [--rounds 7] [--images 2] [--size 224] [--network resnet18]

A network from torchvision with random weights. Every contestant has the same images and maps on the device; how many
images it sends through the network is counted, and its time is held against a plain forward pass of as many images in
batches of `--chunk`. A share of 1 means that the metric itself costs nothing. xattn starts from a recorded pass, as in
a benchmark; the score of the untouched image is taken from it.

RISE publishes a script, not a package: its protocol is written here as described, one image at a time. Quantus flips
features, not pixels, so that it is given about three times as many a step. The bars: xattn's deletion and insertion at
196 steps reach 0.95 on a CPU and 0.90 on a GPU, and more than each of the others; with `--fast` twice as much as each
of the others on a CPU. What `--fast` does to the scores is measured in fast.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import timing
import torch
import torchvision
from torch import Tensor, nn

import xattn
from xattn.explainers import resolve
from xattn.explanation import Explanation
from xattn.metrics import metrics
from xattn.models.fast import fast_copy
from xattn.trace import record

STEPS = 196
OURS = "xattn, deletion and insertion"
FAST = "xattn --fast, deletion and insertion"
Case = Callable[[], Any]


class FakeExtractor:
    """What torch-cam asks of an extractor, with a map that is already there."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


def rise(model: nn.Module, x: Tensor, maps: Tensor, target: Tensor, start: Tensor, finish: Tensor) -> np.ndarray:
    """RISE's protocol for each image by itself: rank on the host, one image a forward pass, pixels copied in place."""
    pixels = x.shape[-1] * x.shape[-2]
    step = -(-pixels // STEPS)
    areas = []
    with torch.no_grad():
        for i in range(len(x)):
            order = np.flip(np.argsort(maps[i].flatten().cpu().numpy()))
            image, other = start[i : i + 1].clone(), finish[i : i + 1].reshape(x.shape[1], -1)
            scores = np.empty(STEPS + 1)
            for k in range(STEPS + 1):
                scores[k] = model(image).softmax(1)[0, target[i]].item()
                places = torch.from_numpy(order[k * step : (k + 1) * step].copy()).to(x.device)
                image.view(1, x.shape[1], -1)[0, :, places] = other[:, places]
            areas.append((scores.sum() - scores[0] / 2 - scores[-1] / 2) / STEPS)
    return np.array(areas)


def contestants(model: nn.Module, lean: nn.Module, x: Tensor, chunk: int) -> dict[str, Case]:
    """The same task for each library that is installed; `lean` is the copy that `--fast` scores with."""
    spec = xattn.infer_spec(model, input_size=(x.shape[-2], x.shape[-1]))
    target = torch.arange(len(x), device=x.device)
    maps = torch.rand(len(x), 1, 7, 7, generator=torch.Generator().manual_seed(1)).to(x.device)
    full = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)
    trace = record(model, x, target, spec=spec, grad=False)
    method = resolve(["random"])[0]
    score = partial(torch.softmax, dim=-1)
    batch = x[:1].expand(chunk, -1, -1, -1).contiguous()

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    def ours(*names: str, scoring: nn.Module | None = None) -> Case:
        def run() -> None:
            # A trace keeps its curves: each run has its own, made of what was recorded outside the clock.
            fresh = xattn.Trace(model, spec, x, target, trace.logits, trace.score_fn, None, {}, [0] * len(x), scoring)
            explanation = Explanation(maps=maps, target=target, method=method, input_size=trace.input_size)
            for name in names:
                metrics.create(name, chunk=chunk).measure(explanation, fresh, None)

        return run

    cases: dict[str, Case] = {
        "forward": forward,
        OURS: ours("deletion", "insertion"),
        FAST: ours("deletion", "insertion", scoring=lean),
        "xattn, ROAD": ours("road"),
    }

    def rise_both() -> None:
        zeros = torch.zeros_like(x)
        rise(model, x, full, target, x, zeros)
        rise(model, x, full, target, zeros, x)

    cases["RISE's protocol, deletion and insertion"] = rise_both
    try:
        from torchcam.metrics import DeletionInsertionMetric

        def torch_cam() -> None:
            metric = DeletionInsertionMetric(
                FakeExtractor(model, maps[:, 0]), score, steps=STEPS, batch_size=chunk, baseline=torch.zeros_like
            )
            metric.update(x, target.tolist())

        cases["torch-cam, deletion and insertion"] = torch_cam
    except ImportError:
        print("torch-cam is not installed and left out")
    try:
        import quantus

        # It wants a number of features a step that divides the number of pixels.
        pixels = x.shape[-1] * x.shape[-2]
        wanted = x[0].numel() / STEPS
        features = min((n for n in range(1, pixels + 1) if pixels % n == 0), key=lambda n: abs(n - wanted))

        def pixel_flipping() -> None:
            metric = quantus.PixelFlipping(features_in_step=features, perturb_baseline="black", disable_warnings=True)
            given = full.expand_as(x).cpu().numpy()
            metric(model, x.cpu().numpy(), target.cpu().numpy(), a_batch=given, device=str(x.device), batch_size=chunk)

        cases["Quantus, pixel flipping"] = pixel_flipping
    except ImportError:
        print("Quantus is not installed and left out")
    try:
        from pytorch_grad_cam.metrics.road import ROADCombined
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

        def road() -> None:
            chosen = [ClassifierOutputSoftmaxTarget(int(t)) for t in target]
            ROADCombined()(x, full[:, 0].cpu().numpy(), chosen, model)

        cases["pytorch-grad-cam, ROAD"] = road
    except ImportError:
        print("pytorch-grad-cam is not installed and left out")
    return cases


def samples(networks: Sequence[nn.Module], case: Case) -> int:
    """Images that go through the networks in one run."""
    count = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += len(inputs[0])

    handles = [network.register_forward_pre_hook(add) for network in networks]
    try:
        case()
    finally:
        for handle in handles:
            handle.remove()
    return count


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=None, help="images a batch (16, 256 on a GPU)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--only", nargs="*", help="contestants whose name contains one of these; the forward stays")
    arguments = parser.parse_args()
    chunk = arguments.chunk or (256 if arguments.device.startswith("cuda") else 16)
    timing.quiet_allocator()
    warnings.simplefilter("ignore")  # the peers' own
    torch.manual_seed(0)
    model = torchvision.models.get_model(arguments.network, weights=None).eval().to(arguments.device)
    x = torch.randn(arguments.images, 3, arguments.size, arguments.size).to(arguments.device)
    lean = fast_copy(model, xattn.infer_spec(model, input_size=(arguments.size, arguments.size)))
    cases = contestants(model, lean, x, chunk)
    if arguments.only:
        cases = {n: c for n, c in cases.items() if n == "forward" or any(part in n for part in arguments.only)}
    counts = {name: samples((model, lean), case) for name, case in cases.items()}
    table = timing.interleaved(cases, "forward", rounds=arguments.rounds, device=arguments.device)
    rows: dict[str, dict[str, Any]] = {}
    for name, row in table.items():
        bare = counts[name] / counts["forward"]  # forward passes that a metric without cost of its own would take
        share = {f"share_{k}": bare / row[k] for k in ("ratio", "q25", "q75", "cpu_ratio")}
        rows[name] = {**row, "samples": counts[name], **share}
        print(
            f"{name:42s} {counts[name]:5d} images  share {share['share_ratio']:.2f} "
            f"[{share['share_q75']:.2f}, {share['share_q25']:.2f}]  cpu {share['share_cpu_ratio']:.2f}  "
            f"{row['seconds'] / counts[name] * 1000:.1f} ms an image"
        )
    if OURS in rows:
        clock = "cpu_seconds" if arguments.device == "cpu" else "seconds"  # the steadier one on a busy machine
        each = {name: row[clock] / row["samples"] for name, row in rows.items()}
        for row, seconds in zip(rows.values(), each.values(), strict=True):
            row["time_an_image_over_xattn"] = seconds / each[OURS]
            if FAST in each:
                row["time_an_image_over_xattn_fast"] = seconds / each[FAST]
    environment = timing.environment(arguments.device, "torchvision", "torchcam", "quantus", "grad-cam")
    facts = {k: v for k, v in vars(arguments).items() if k not in ("only", "chunk")} | {"chunk": chunk, "steps": STEPS}
    suffix = "" if arguments.device == "cpu" else "_cuda"
    path = timing.write(f"perturbation{suffix}", {"environment": environment, "parameters": facts, "times": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
