"""Five gradient CAMs from one pass, beside captum's single Grad-CAM and pytorch-grad-cam one after the other.

    python benchmarks/speed/cams.py [--device cuda] [--rounds 7]

Networks from torchvision with random weights, images of 224 px. All start from a batch on the device and the predicted
class; xattn and captum end with raw maps, pytorch-grad-cam with its own (scaled and resized, on the host).
The bars: xattn at most 1.2 times captum's one method, and at least 12 times less than pytorch-grad-cam's five.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import timing
import torch
import torchvision
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

import xattn
from xattn.explainers import resolve

METHODS = ["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam"]
PEERS = [GradCAM, GradCAMPlusPlus, HiResCAM, XGradCAM, LayerCAM]


def contestants(name: str, batch: int, device: str) -> dict[str, Callable[[], Any]]:
    """The same task for each library."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    spec = xattn.infer_spec(model)
    methods = resolve(METHODS)
    captum = LayerGradCam(model, model.layer4)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def captum_one() -> None:
        with torch.no_grad():
            target = model(x).argmax(1)
        captum.attribute(x, target=target, relu_attributions=True)

    def captum_one_given_target() -> None:
        captum.attribute(x, target=0, relu_attributions=True)

    def peers() -> None:
        for peer in PEERS:
            with peer(model=model, target_layers=[model.layer4]) as cam:
                cam(input_tensor=x, targets=None)

    return {
        "forward": forward,
        "xattn, five CAMs": lambda: xattn.explain(model, x, methods, spec=spec),
        "xattn, five CAMs, target given": lambda: xattn.explain(model, x, methods, 0, spec=spec),
        "captum, one LayerGradCam, target given": captum_one_given_target,
        "captum, forward for the target and one LayerGradCam": captum_one,
        "pytorch-grad-cam, five CAMs": peers,
    }


def main() -> None:
    """Measure all networks and batch sizes, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    arguments = parser.parse_args()
    timing.quiet_allocator()
    warnings.simplefilter("ignore")  # the peers' own; xattn's would concern maps of random networks
    runs = []
    for name in arguments.networks:
        for batch in arguments.batches:
            table = timing.interleaved(
                contestants(name, batch, arguments.device),
                "captum, one LayerGradCam, target given",
                rounds=arguments.rounds,
                device=arguments.device,
            )
            peers = table["pytorch-grad-cam, five CAMs"]["ratio"] / table["xattn, five CAMs"]["ratio"]
            print(f"\n{name}, batch {batch}: pytorch-grad-cam / xattn = {peers:.1f}")
            for who, row in table.items():
                spread = f"{row['ratio']:6.2f}  [{row['q25']:.2f}, {row['q75']:.2f}]"
                print(f"  {who:52s} {spread}  cpu {row['cpu_ratio']:.2f}  {row['seconds']:.3f} s")
            runs.append({"network": name, "batch": batch, "peers_over_xattn": round(peers, 2), "times": table})
    environment = timing.environment(arguments.device, "torchvision", "captum", "grad-cam")
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    path = timing.write(f"cams{suffix}", {"environment": environment, "runs": runs})
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
