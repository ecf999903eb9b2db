"""What it costs to find the facts about a model, in forward passes of the model at its own input size.

    python benchmarks/speed/inference.py [--rounds 7] [--networks resnet50 timm/convnext_tiny]

Networks of torchvision and timm with random weights, one image of 224 px. `infer_spec` runs three images in all, one
of them with autograd's graph; everything that it does beside, hooks, experiments and reading them, is in the time.
The ratio is taken within a round, to one forward pass over one image without a graph. Processor time of one thread.
The bar: a median of at most three over the networks. A run of all networks writes `results/inference.json`.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable

import timing
import torch
import torchvision

import xattn

NETWORKS = [
    "resnet18", "resnet50", "mobilenet_v3_large", "densenet121", "regnet_y_800mf", "vit_b_16", "timm/convnext_tiny",
    "timm/efficientnet_b0", "timm/vit_small_patch16_224", "timm/swin_tiny_patch4_window7_224", "timm/mixer_s16_224",
    "timm/resnetv2_50",
]  # fmt: skip


def contestants(name: str) -> dict[str, Callable[[], object]]:
    """A forward pass over one image and over two, and the inference."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/")).eval()
    else:
        model = torchvision.models.get_model(name, weights=None).eval()
    one, two = torch.randn(1, 3, 224, 224), torch.randn(2, 3, 224, 224)

    def forward(x: torch.Tensor) -> None:
        with torch.no_grad():
            model(x)

    return {
        "forward": lambda: forward(one),
        "forward of two": lambda: forward(two),
        "infer_spec": lambda: xattn.infer_spec(model, one),
    }


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
        table = timing.interleaved(contestants(name), "forward", rounds=arguments.rounds)
        two, cost = table["forward of two"], table["infer_spec"]
        runs.append({"network": name, "times": table})
        print(
            f"{name:36s} forward {table['forward']['cpu_seconds'] * 1e3:6.0f} ms, of two {two['cpu_ratio']:.2f}, "
            f"infer_spec {cost['cpu_ratio']:.2f} [{cost['cpu_q25']:.2f}, {cost['cpu_q75']:.2f}]",
            flush=True,
        )
    median = statistics.median(run["times"]["infer_spec"]["cpu_ratio"] for run in runs)
    print(f"median over {len(runs)} networks: {median:.2f} forward passes")
    if arguments.networks == NETWORKS:
        environment = timing.environment("cpu", "torchvision", "timm")
        print("wrote", timing.write("inference", {"environment": environment, "median": median, "runs": runs}))


if __name__ == "__main__":
    main()
