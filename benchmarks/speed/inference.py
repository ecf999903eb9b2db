"""What it costs to find the facts about a model, in forward passes of the model at its own input size.

    python benchmarks/speed/inference.py [--rounds 7] [--networks resnet50 timm/convnext_tiny]

Networks of torchvision and timm with random weights, one image of 224 px. `infer_spec` runs three images in all, one
of them with autograd's graph; everything that it does beside, hooks, experiments and reading them, is in the time.
The images are counted as they go into the network; the ratio is taken within a round, to one forward pass over one
image without a graph, in processor time of one thread. The least time of all rounds is what a calm machine takes: on a
busy one small calls in between cost several times as much.
The bar: three images, and a median of at most three forward passes over the networks. A run of all networks writes
`results/inference.json`, with the median and the worst of each kind.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timing
import torch
import torchvision
from torch import nn

import xattn

KINDS = {
    "convolutions": ["resnet18", "resnet50", "densenet121", "timm/convnext_tiny", "timm/resnetv2_50"],
    "small convolutions": ["mobilenet_v3_large", "regnet_y_800mf", "timm/efficientnet_b0"],
    "tokens": [
        "vit_b_16", "timm/vit_small_patch16_224", "timm/swin_tiny_patch4_window7_224", "timm/mixer_s16_224",
    ],
}  # fmt: skip
NETWORKS = [name for names in KINDS.values() for name in names]


def network(name: str) -> nn.Module:
    """A network of torchvision or timm with random weights."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/")).eval()
    return torchvision.models.get_model(name, weights=None).eval()


def images_of(model: nn.Module, run: Callable[[], object]) -> int:
    """How many images go through a network in a call."""
    images = []
    handle = model.register_forward_pre_hook(lambda module, given: images.append(len(given[0])))
    run()
    handle.remove()
    return sum(images)


def contestants(model: nn.Module) -> dict[str, Callable[[], object]]:
    """A forward pass over one image and over two, and the inference."""
    one, two = torch.randn(1, 3, 224, 224), torch.randn(2, 3, 224, 224)

    def forward(x: torch.Tensor) -> None:
        with torch.no_grad():
            model(x)

    return {
        "forward": lambda: forward(one),
        "forward of two": lambda: forward(two),
        "infer_spec": lambda: xattn.infer_spec(model, one),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Median and worst number of forward passes and of images, by kind and over all."""
    rows = {}
    for kind, names in {**KINDS, "all": NETWORKS}.items():
        own = [run for run in runs if run["network"] in names]
        if own:
            ratios = [run["times"]["infer_spec"]["cpu_ratio"] for run in own]
            least = [run["times"]["infer_spec"]["cpu_least"] / run["times"]["forward"]["cpu_least"] for run in own]
            images = [run["images"] for run in own]
            rows[kind] = {
                "networks": len(own),
                "median": statistics.median(ratios),
                "worst": max(ratios),
                "median of least times": statistics.median(least),
                "worst of least times": max(least),
                "images": statistics.median(images),
                "most images": max(images),
            }
    return rows


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = []
    for name in arguments.networks:
        model = network(name)
        cases = contestants(model)
        images = images_of(model, cases["infer_spec"])
        table = timing.interleaved(cases, "forward", rounds=arguments.rounds)
        two, cost = table["forward of two"], table["infer_spec"]
        runs.append({"network": name, "images": images, "times": table})
        print(
            f"{name:36s} forward {table['forward']['cpu_seconds'] * 1e3:6.0f} ms, of two {two['cpu_ratio']:.2f}, "
            f"infer_spec {cost['cpu_ratio']:.2f} [{cost['cpu_q25']:.2f}, {cost['cpu_q75']:.2f}], "
            f"of least times {cost['cpu_least'] / table['forward']['cpu_least']:.2f}, {images} images",
            flush=True,
        )
    found = summary(runs)
    for kind, row in found.items():
        print(f"{kind:20s} {', '.join(f'{key} {value:.3g}' for key, value in row.items())}")
    if arguments.networks == NETWORKS:
        environment = timing.environment("cpu", "torchvision", "timm")
        print("wrote", timing.write("inference", {"environment": environment, "summary": found, "runs": runs}))


if __name__ == "__main__":
    main()
