"""What the heads cost beside plain pooling: parameters, multiply-adds, time and peak memory, forward and backward.

    python benchmarks/speed/attention.py [--quick] [--device cuda] [--batch 2] [--rounds 5]

Heads for 200 classes on features of C channels (512, 2048) and 14x14, 28x28, 56x56 cells. All ratios are to the
linear head's pooling alone, the mean over the cells. Writes results/attention.json, or attention_cuda.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xattn.models import create_head

CHANNELS = (512, 2048)
CELLS = (14, 28, 56)
HEADS = ("linear", "bcnn", "brnpa")


def multiply_adds(head: str, channels: int, cells: int) -> int:
    """Multiply-adds of a head for one image, without running it; a sum of the features counts as one per value."""
    with torch.device("meta"):
        module = create_head(head, channels, 200)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.empty(1, channels, cells, cells, device="meta"))
    # The counter sees matrix products and convolutions; the mean and the norms of BR-NPA are one pass each.
    return counter.get_total_flops() // 2 + (channels * cells**2 if head != "bcnn" else 0)


def passes(channels: int, cells: int, batch: int, device: str) -> dict[str, dict[str, Callable[[], Any]]]:
    """Functions by pass and head, in training mode as far as batch norm is concerned."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, cells, cells).relu_().to(device)
    leaf = x.clone().requires_grad_()
    heads = {name: create_head(name, channels, 200).to(device) for name in HEADS}
    pull = torch.randn(batch, 200, device=device)
    pull_mean = torch.randn(batch, channels, device=device)

    def forward(module: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        def run() -> Tensor:
            with torch.no_grad():
                return module(x)

        return run

    def both(module: nn.Module) -> Callable[[], Any]:
        weights = [leaf, *module.parameters()]
        return lambda: torch.autograd.grad(module(leaf), weights, pull)

    def pooling(features: Tensor) -> Tensor:
        return features.mean((2, 3))

    return {
        "forward": {"pooling": forward(pooling), **{name: forward(head) for name, head in heads.items()}},
        "forward and backward": {
            "pooling": lambda: torch.autograd.grad(pooling(leaf), leaf, pull_mean),
            **{name: both(head) for name, head in heads.items()},
        },
    }


def main() -> None:
    """Measure, print one line a case, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size, to see that it works; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    timing.quiet_allocator()
    rows = []
    for channels in (64,) if options.quick else CHANNELS:
        for cells in (7,) if options.quick else CELLS:
            size = 4 * options.batch * channels * cells**2
            for kind, functions in passes(channels, cells, options.batch, options.device).items():
                table = timing.interleaved(functions, "pooling", rounds=options.rounds, device=options.device)
                memory = {name: timing.peak_bytes(function, options.device) for name, function in functions.items()}
                for name, row in table.items():
                    facts = {} if name == "pooling" else cost(name, channels, cells)
                    peak = memory[name] / size
                    rows.append({
                        "channels": channels, "cells": cells, "batch": options.batch, "pass": kind, "head": name,
                        **facts, **row, "peak_to_features": peak, "peak_ratio": memory[name] / memory["pooling"],
                    })  # fmt: skip
                    print(
                        f"C={channels:4} {cells:2}x{cells:2} {kind:21} {name:8} cpu x{row['cpu_ratio']:9.1f} "
                        f"[{row['cpu_q25']:.1f}, {row['cpu_q75']:.1f}]  wall x{row['ratio']:9.1f}  "
                        f"peak {peak:7.3f} of the features  {facts}",
                        flush=True,
                    )
    if options.quick:
        return
    suffix = "" if options.device == "cpu" else f"_{options.device}"
    path = timing.write(f"attention{suffix}", {"environment": timing.environment(options.device), "rows": rows})
    print(f"wrote {path}")


def cost(head: str, channels: int, cells: int) -> dict[str, Any]:
    """Parameters before the classifier, and multiply-adds in all and as a ratio to pooling alone."""
    with torch.device("meta"):
        module = create_head(head, channels, 200)
    attention = getattr(module, "attention", nn.Identity())
    total = multiply_adds(head, channels, cells)
    return {
        "attention_parameters": sum(p.numel() for p in attention.parameters()),
        "classifier_parameters": sum(p.numel() for p in module.classifier.parameters()),
        "multiply_adds": total,
        "multiply_adds_ratio": total / (channels * cells**2),
    }


if __name__ == "__main__":
    main()
