"""BR-NPA maps against the plain formula with elementwise products: time and peak memory, forward and backward.

    python benchmarks/speed/br_npa.py [--quick] [--quiet-allocator] [--device cuda] [--rounds 7]

writes results/br_npa.json (or br_npa_quiet_allocator.json, br_npa_cuda.json). The bars for (8, 2048, 56, 56) on the CPU
are 0.25 of the time and 0.1 of the memory forward, 0.75 and 0.5 forward and backward.
"""

from __future__ import annotations

import argparse
from typing import Any

import timing
import torch
from torch import Tensor

from xattn.functional.br_npa import br_npa_maps

FULL = [(8, 2048, 56, 56), (8, 2048, 14, 14), (8, 512, 14, 14), (8, 512, 28, 28), (8, 512, 56, 56)]
QUICK = [(2, 512, 28, 28)]
BARS = {"forward": {"time": 0.25, "memory": 0.1}, "forward and backward": {"time": 0.75, "memory": 0.5}}


def elementwise(features: Tensor, parts: int = 3) -> Tensor:
    """The formula as one writes it down: each similarity is a sum over products of the size of the features."""
    norm = features.pow(2).sum(1, keepdim=True).sqrt() + 1e-5
    activation, maps = norm, []
    for _ in range(parts):
        seed = activation.flatten(1).argmax(1)[:, None, None]
        vector = features.flatten(2).gather(2, seed.expand(-1, features.shape[1], 1))[..., None]
        length = norm.flatten(2).gather(2, seed)[..., None]
        similarity = (features * vector).sum(1, keepdim=True) / (norm * length)
        maps.append(similarity / similarity.sum((2, 3), keepdim=True))
        activation = (1 - similarity) * activation
    return torch.cat(maps, 1)


def cases(shape: tuple[int, ...], device: str) -> dict[str, dict[str, Any]]:
    """Functions by pass and name, on features as they come out of a ReLU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu_().to(device)
    pull = torch.randn((shape[0], 3, *shape[2:]), generator=generator).to(device)
    leaf = x.clone().requires_grad_()

    def forward(function: Any) -> Any:
        def run() -> Tensor:
            with torch.no_grad():
                return function(x)

        return run

    def both(function: Any) -> Any:
        return lambda: torch.autograd.grad(function(leaf), leaf, pull)

    torch.testing.assert_close(br_npa_maps(x), elementwise(x), rtol=1e-3, atol=1e-6)
    kinds = {"elementwise": elementwise, "xattn": br_npa_maps}
    return {
        "forward": {**{name: forward(f) for name, f in kinds.items()}, "mean": forward(lambda x: x.mean((2, 3)))},
        "forward and backward": {name: both(f) for name, f in kinds.items()},
    }


def main() -> None:
    """Measure, print one line a case, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it works; writes nothing")
    parser.add_argument("--quiet-allocator", action="store_true", help="with a C library that keeps freed memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.quiet_allocator:
        timing.quiet_allocator()
    rows = []
    for shape in QUICK if options.quick else FULL:
        for kind, functions in cases(shape, options.device).items():
            table = timing.interleaved(functions, rounds=options.rounds, device=options.device)
            memory = {name: timing.peak_bytes(function, options.device) for name, function in functions.items()}
            size = 4 * torch.Size(shape).numel()
            for name, row in table.items():
                row = {
                    "shape": shape,
                    "pass": kind,
                    "case": name,
                    **row,
                    "peak_to_features": memory[name] / size,
                    "peak_ratio": memory[name] / memory["elementwise"],
                }
                rows.append(row)
                print(
                    f"{shape!s:19} {kind:21} {name:12} cpu x{row['cpu_ratio']:.3f} "
                    f"[{row['cpu_q25']:.3f}, {row['cpu_q75']:.3f}]  wall x{row['ratio']:.3f} [{row['q25']:.3f}, "
                    f"{row['q75']:.3f}]  peak {row['peak_to_features']:.3f} of the features, x{row['peak_ratio']:.3f}",
                    flush=True,
                )
    name = (
        "br_npa"
        + "_quick" * options.quick
        + "_quiet_allocator" * options.quiet_allocator
        + f"_{options.device}" * (options.device != "cpu")
    )
    path = timing.write(name, {"environment": timing.environment(options.device), "bars": BARS, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
