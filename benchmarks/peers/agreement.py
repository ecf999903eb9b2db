"""How far a library's version of a method lies from xattn's, and whether that changes a verdict.

    XATTN_DATA=DATA python benchmarks/peers/agreement.py measure tiny-cnn --images 16
    XATTN_DATA=DATA python benchmarks/peers/agreement.py measure efficientnet_lite0 --images 6
    XATTN_DATA=DATA python benchmarks/peers/agreement.py measure resnet18 --images 4 --no-scores
    python benchmarks/peers/agreement.py page

`measure` explains the predicted class of the same images by both, each with the defaults of its own library but for
the steps of integrated gradients, and scores all maps and the three controls by deletion and insertion on one grid.
Maps are compared by Pearson's correlation over the cells of the finer of both grids, to which the other map is
enlarged bilinearly: scale and offset do not matter, for pytorch-grad-cam scales every map to [0, 1]. Where the
conventions of a library can be had by parameters of xattn, it is also compared with these. A verdict is whether a
method beats a control by a paired t test at 5 %: better, worse or undecided, against three controls by two metrics,
so six for each method. Images are validation images of Tiny-ImageNet for tiny-cnn, which was trained on the training
images, and ImageNet photographs for the others: efficientnet_lite0 was trained on such, resnet18 has random weights
(seed 0). Results go to NETWORK.json, and `page` makes README.md of these.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

import xattn
from xattn.data import datasets
from xattn.data.preprocessing import preprocess
from xattn.data.sample import Batch
from xattn.errors import XattnError
from xattn.explainers import explainers
from xattn.explaining import record_for
from xattn.explanation import Explanation
from xattn.functional.resize import resize
from xattn.metrics import metrics

HERE = Path(__file__).parent
PAIRS = (
    ("gradcam", "grad-cam/GradCAM"), ("gradcam", "captum/LayerGradCam"), ("gradcam++", "grad-cam/GradCAMPlusPlus"),
    ("hirescam", "grad-cam/HiResCAM"), ("xgradcam", "grad-cam/XGradCAM"), ("eigencam", "grad-cam/EigenCAM"),
    ("eigengradcam", "grad-cam/EigenGradCAM"), ("layercam", "grad-cam/LayerCAM"),
    ("gradcam-elementwise", "grad-cam/GradCAMElementWise"), ("fullgrad", "grad-cam/FullGrad"),
    ("kpca-cam", "grad-cam/KPCA_CAM"), ("fem", "grad-cam/FEM"), ("shapleycam", "grad-cam/ShapleyCAM"),
    ("saliency", "captum/Saliency"), ("input-x-gradient", "captum/InputXGradient"),
    ("integrated-gradients:steps=20", "captum/IntegratedGradients:n_steps=20"), ("deeplift", "captum/DeepLift"),
    ("guided-backprop", "captum/GuidedBackprop"), ("guided-backprop", "zennit/GuidedBackprop"),
    ("deconvolution", "captum/Deconvolution"), ("deconvolution", "zennit/DeconvNet"),
    ("guided-gradcam", "captum/GuidedGradCam"), ("excitation-backprop", "zennit/ExcitationBackprop"),
    ("lrp", "captum/LRP"), ("lrp", "zennit/EpsilonPlusFlat"), ("lrp", "zennit/EpsilonGammaBox"),
)  # fmt: skip
CONTROLS = ("random", "center", "edges")
SCORES = ("deletion", "insertion")
SAME = 0.999
CONVENTIONS = {
    "captum/LayerGradCam": "gradcam:relu=false",
    "grad-cam/HiResCAM": "hirescam:relu=true",
    "captum/Saliency": "saliency:reduce=mean_abs",
    "captum/IntegratedGradients:n_steps=20": "integrated-gradients:steps=20,baseline=mean",
    "captum/DeepLift": "deeplift:baseline=mean",
    "captum/GuidedBackprop": "guided-backprop:reduce=sum",
    "zennit/GuidedBackprop": "guided-backprop:reduce=sum",
    "captum/Deconvolution": "deconvolution:reduce=sum",
    "zennit/DeconvNet": "deconvolution:reduce=sum",
    "captum/GuidedGradCam": "guided-gradcam:reduce=sum",
    "grad-cam/ShapleyCAM": "shapleycam:utility=score",
}
"""xattn's method with the conventions of the library."""
RELU6 = {
    **dict.fromkeys(("captum/GuidedBackprop", "zennit/GuidedBackprop"), "saliency:reduce=sum"),
    **dict.fromkeys(("captum/Deconvolution", "zennit/DeconvNet"), "saliency:reduce=sum"),
    "captum/DeepLift": "input-x-gradient",
}
"""The same in a network whose activations are ReLU6, which the libraries pass by the plain gradient."""
WHY = {
    "captum/LayerGradCam": "no ReLU at the end unless asked",
    "captum/Saliency": "absolute values of each colour, summed here; xattn takes the largest",
    "captum/IntegratedGradients": "the path begins at zero, the mean colour; xattn's at black",
    "captum/DeepLift": "the baseline is zero, the mean colour; xattn's is black",
    "captum/GuidedBackprop": "colours are apart, summed with signs here; xattn takes the largest absolute value",
    "zennit/GuidedBackprop": "colours are apart, summed with signs here; xattn takes the largest absolute value",
    "captum/Deconvolution": "colours are apart, summed with signs here; xattn takes the largest absolute value",
    "zennit/DeconvNet": "colours are apart, summed with signs here; xattn takes the largest absolute value",
    "captum/GuidedGradCam": "colours are apart, summed with signs here, and coarse cells enlarged by the nearest one",
    "grad-cam/GradCAMPlusPlus": "an epsilon in the weights that is larger than the squared gradients",
    "grad-cam/HiResCAM": "the negative part is cut off; xattn's has a sign",
    "grad-cam/XGradCAM": "an epsilon for channels that sum to nearly zero",
    "grad-cam/EigenCAM": "the mean of the features is subtracted, and the sign of the component is open",
    "grad-cam/EigenGradCAM": "the mean is subtracted, and the sign of the component is open",
    "grad-cam/KPCA_CAM": "the sign of the component is open",
    "grad-cam/FEM": "features weighted by their share of strong cells; xattn gives strong cells the mean, as the paper",
    "grad-cam/FullGrad": "each channel is scaled by itself; xattn scales a layer as a whole",
    "grad-cam/ShapleyCAM": "of the logit; xattn's utility is the paper's, the logit plus the log-probability",
    "zennit/ExcitationBackprop": "down to the pixels; xattn stops at the last layer that has cells",
    "captum/LRP": "one rule, epsilon, for all layers; xattn's default is a composite",
    "zennit/EpsilonPlusFlat": "another composite: flat at the first layer",
    "zennit/EpsilonGammaBox": "another composite: gamma, and the box rule at the pixels",
}
"""Where it is known: from the formulas and the tests of `tests/explainers/`."""


def network(name: str) -> nn.Module:
    """One of the three networks, in evaluation mode."""
    torch.manual_seed(0)
    model = xattn.create_model(name)
    if getattr(model, "spec", None) is None or model.spec.mean is None:
        model.spec = xattn.infer_spec(model, name=name).given(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return model.eval()


def images(name: str, model: nn.Module, count: int) -> Tensor:
    """The images of a network, normalized."""
    root = Path(os.environ["XATTN_DATA"])
    if name == "tiny-cnn":
        data = datasets.create("tiny-imagenet", root=root / "tiny-imagenet", split="val")
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        return torch.stack([preprocess(data[i].image, model.spec) for i in order[:count]])
    with (root / "imagenet" / "photos.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)]
    chosen = names[:: max(1, len(names) // count)][:count]
    return torch.stack([preprocess(root / "imagenet" / "photos" / file, model.spec) for file in chosen])


def correlation(ours: Tensor, theirs: Tensor) -> list[float]:
    """Pearson's correlation of the maps (N, 1, h, w) of each image, NaN of a constant map.

    The coarser ones are enlarged bilinearly to the grid of the finer ones, as pictures and pytorch-grad-cam do.
    """
    size = max(ours.shape[-2:], theirs.shape[-2:])
    a, b = (resize(m.double(), (size[0], size[1])).flatten(1) for m in (ours, theirs))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-12, (a * b).sum(1) / norm, torch.nan).tolist()


def conventions_of(name: str) -> dict[str, str]:
    """xattn's methods with the conventions of the libraries in a network."""
    return CONVENTIONS | (RELU6 if name == "efficientnet_lite0" else {})


def compare_conventions(name: str) -> dict[str, Any]:
    """The stored result of a network, with the comparison by conventions measured anew."""
    result: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    model, known = network(name), conventions_of(name)
    x = images(name, model, result["images"])
    trace = record_for(model, x, [explainers.parse(t) for t in (*known, *known.values())], spec=model.spec)
    for row in result["pairs"]:
        if (own := known.get(row["library"])) is not None and "refused" not in row:
            theirs, ours = (explained(trace, text) for text in (row["library"], own))
            if not isinstance(theirs, str) and not isinstance(ours, str):
                r = torch.tensor(correlation(ours.maps, theirs.maps), dtype=torch.float64)
                row |= {"conventions": own, "with them": float(r.nanmedian())}
    return result


def verdict(mine: Tensor, control: Tensor, lower: bool) -> str:
    """Whether scores (N,) beat those of a control on the same images."""
    gain = ((control - mine) if lower else (mine - control)).double()
    gain = gain[~gain.isnan()]
    if len(gain) < 3 or bool((gain == gain[0]).all()):
        return "undecided"
    p = float(stats.ttest_1samp(gain.numpy(), 0.0).pvalue)
    return "undecided" if p >= 0.05 else "better" if float(gain.mean()) > 0 else "worse"


def explained(trace: Any, name: str) -> Explanation | str:
    """The maps of a method, or why it refuses."""
    try:
        return explainers.parse(name).explanation(trace)
    except XattnError as error:
        return str(error)


def measure(name: str, count: int, steps: int, scored_too: bool = True) -> dict[str, Any]:
    """All pairs on one network, with scores or the maps alone."""
    model = network(name)
    x = images(name, model, count)
    wanted = list(dict.fromkeys([*(text for pair in PAIRS for text in pair), *CONTROLS]))
    scores: dict[str, dict[str, list[Tensor]]] = {text: {s: [] for s in SCORES} for text in wanted}
    maps: dict[str, list[Tensor]] = {text: [] for text in wanted}
    refused: dict[str, str] = {}
    every = list(dict.fromkeys([*wanted, *conventions_of(name).values()]))
    maps |= {text: [] for text in every if text not in maps}
    for some in x.split(8):
        trace = record_for(model, some, [explainers.parse(text) for text in every], spec=model.spec)
        found = {text: e for text in every if text not in refused and (e := explained(trace, text)) is not None}
        refused |= {text: e for text, e in found.items() if isinstance(e, str)}
        real = {text: e for text, e in found.items() if not isinstance(e, str)}
        batch = Batch(some, trace.target, tuple(map(str, range(len(some)))))
        for score in SCORES if scored_too else ():
            scored = {text: e for text, e in real.items() if text in scores}
            rows = metrics.parse(f"{score}:steps={steps}").measure_many([*scored.values()], trace, batch)
            for text, row in zip(scored, rows, strict=True):
                scores[text][score].append(row[score])
        for text, e in real.items():
            maps[text].append(e.maps)
        print(f"{name}: {sum(map(len, maps['random']))} of {len(x)} images", flush=True)
    pairs = []
    for ours, theirs in PAIRS:
        row: dict[str, Any] = {"xattn": ours, "library": theirs}
        if reason := refused.get(ours) or refused.get(theirs):
            pairs.append({**row, "refused": reason})
            continue
        r = torch.tensor(correlation(torch.cat(maps[ours]), torch.cat(maps[theirs])), dtype=torch.float64)
        row |= {"median correlation": float(r.nanmedian()), "lowest correlation": float(r[~r.isnan()].min()),
                "undefined": int(r.isnan().sum())}  # fmt: skip
        own = conventions_of(name).get(theirs)
        if own is not None and own not in refused:
            same = torch.tensor(correlation(torch.cat(maps[own]), torch.cat(maps[theirs])), dtype=torch.float64)
            row |= {"conventions": own, "with them": float(same.nanmedian())}
        if not scored_too:
            pairs.append(row)
            continue
        changed = []
        for score in SCORES:
            lower = score == "deletion"
            a, b = (torch.cat(scores[text][score]).double() for text in (ours, theirs))
            row[score] = [float(a.nanmean()), float(b.nanmean())]
            for control in CONTROLS:
                c = torch.cat(scores[control][score]).double()
                before, after = verdict(a, c, lower), verdict(b, c, lower)
                if before != after:
                    changed.append(f"{score} against {control}: {before}, of the library {after}")
        pairs.append({**row, "verdicts that change": changed})
    return {
        "network": name, "images": len(x), "steps": steps, "pairs": pairs,
        "device": f"CPU, {platform.processor() or platform.machine()}",
        "versions": {p: version(p) for p in ("torch", "captum", "grad-cam", "zennit")},
    }  # fmt: skip


ABOUT = {
    "tiny-cnn": "validation images of Tiny-ImageNet; trained on its training images",
    "resnet18": "ImageNet photographs; random weights",
    "efficientnet_lite0": "ImageNet photographs; trained on ImageNet",
}


UNSCORED = {
    "resnet18": "with random weights the score of a class says nothing of the image: there is no verdict to change."
}
"""Why maps were not scored."""


_LEGEND = (
    "Correlations are medians over the images, and the lowest one; *by its conventions* is that of xattn's method with "
    "the parameters in `CONVENTIONS` of the script. Deletion (lower is better) and insertion: xattn, library. "
    "Verdicts: how many of six change; with so few images a small difference can move one over the 5 %, so read "
    "it beside the correlation."
)


def page() -> str:
    """README.md of the results."""
    results = [json.loads((HERE / f"{name}.json").read_text()) for name in ABOUT if (HERE / f"{name}.json").is_file()]
    parts = [
        "# How far libraries lie from xattn",
        "",
        " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        "<!-- table -->",
    ]
    for result in results:
        pairs = [row for row in result["pairs"] if "refused" not in row]
        same = [row for row in pairs if row["lowest correlation"] >= SAME]
        moved = [row for row in pairs if row.get("verdicts that change")]
        scored = "deletion" in pairs[0]
        name = result["network"]
        told = (
            f"of {len(moved)} pairs a verdict changes."
            if scored
            else UNSCORED.get(name, "the maps were not scored here.")
        )
        about, torch_version = ABOUT[result["network"]], result["versions"]["torch"]
        parts += [
            f"**`{result['network']}`**, {result['images']} {about}; {result['device']}, torch {torch_version}. "
            f"{len(same)} of {len(pairs)} pairs are the same map (correlation of {SAME} or more on every image); "
            f"{told}",
            "",
            "| xattn | library | correlation | lowest | by its conventions | deletion | insertion | verdicts | why |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in sorted(pairs, key=lambda row: row["median correlation"]):
            why = WHY.get(row["library"].partition(":")[0], "not looked into")
            if row.get("conventions", "") == RELU6.get(row["library"]):
                why = f"ReLU6 is passed by the plain gradient, so that it is `{row['conventions']}`"
            elif row["library"] == "captum/GuidedGradCam" and result["network"] == "efficientnet_lite0":
                why = "ReLU6 is passed by the plain gradient, as in its guided backpropagation"
            why = "" if row["lowest correlation"] >= SAME else why
            deletion, insertion, changes = "-", "-", "-"
            if "deletion" in row:
                deletion, insertion = (f"{row[s][0]:.3f}, {row[s][1]:.3f}" for s in SCORES)
                changes = str(len(row["verdicts that change"]))
            by = f"{row['with them']:.3f}" if "with them" in row else ""
            parts.append(
                f"| `{row['xattn']}` | `{row['library']}` | {row['median correlation']:.3f} "
                f"| {row['lowest correlation']:.3f} | {by} | {deletion} | {insertion} | {changes} | {why} |"
            )
        for row in result["pairs"]:
            if "refused" in row:
                parts.append(
                    f"| `{row['xattn']}` | `{row['library']}` | - | - | - | - | - | - | refused: {row['refused']} |"
                )
        parts += ["", _LEGEND]
        if moved:
            parts += ["", "Verdicts that change:", ""]
            parts += [f"- `{r['xattn']}`, `{r['library']}`: {'; '.join(r['verdicts that change'])}" for r in moved]
        parts.append("")
    missing = [f"`{name}`" for name in ABOUT if name not in {result["network"] for result in results}]
    if missing:
        parts += [f"Not measured yet: {', '.join(missing)}.", ""]
    return "\n".join([*parts, "<!-- /table -->", ""])


def main() -> None:
    """Measure networks, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "conventions", "page"))
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scores", action=argparse.BooleanOptionalAction, default=True, help="or the maps alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in asked.networks if asked.what == "measure" else ():
        result = measure(name, asked.images, asked.steps, asked.scores)
        (HERE / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    for name in asked.networks if asked.what == "conventions" else ():
        (HERE / f"{name}.json").write_text(json.dumps(compare_conventions(name), indent=1) + "\n")
    if asked.what == "page":
        (HERE / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
