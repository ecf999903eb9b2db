"""Put trained networks into the package in half precision, and judge them once on the validation images.

    for name in cnn bcnn brnpa-low brnpa vit; do xattn train benchmarks/configs/train/tiny-imagenet-$name.toml; done
    python benchmarks/attention/embed.py --data tiny-imagenet:$XATTN_DATA/tiny-imagenet --runs runs/tiny-imagenet

What is judged is the file that is shipped. The validation images play no part in training or in choosing an epoch.
Logs, versions and results go to `embedded/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from xattn.models import load_model, save_weights
from xattn.models.checkpoint import RANKS, read_state
from xattn.models.embedded import FOLDER
from xattn.models.header import read_header
from xattn.models.heads import Classifier
from xattn.training.data import open_source
from xattn.training.evaluation import evaluate, load_trained
from xattn.training.recipe import DataSection, Recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "configs" / "train"
NETWORKS = {"tiny-cnn": "cnn", "tiny-bcnn": "bcnn", "tiny-brnpa": "brnpa", "tiny-vit": "vit"}
LIMIT_BYTES = 20_000_000


def embed(run: Path, name: str, recipe: Recipe) -> Path:
    """Write the best weights of a run, without rank heads, as `xattn/models/weights/<name>.safetensors`."""
    best = run / "best.safetensors"
    model, header = load_model(best), read_header(best)
    state = {k: t for k, t in read_state(best).items() if not k.startswith(RANKS)}
    return save_weights(
        model,
        FOLDER / f"{name}.safetensors",
        half=True,
        state=state,
        extra={
            "epoch": header.extra["epoch"],
            "held_out_accuracy": header.extra["held_out"]["held_out_accuracy"],
            "recipe": recipe.model_dump(mode="json"),
        },
    )


def judge(path: Path, run: Path, data: str) -> dict[str, Any]:
    """Accuracy and sparsity of a shipped file on the validation images; rank heads come from the run."""
    model = load_model(path)
    if not isinstance(model, Classifier):
        raise SystemExit(f"{path} is no classifier with a head of xattn")
    _, ranks = load_trained(run / "best.safetensors")
    values = evaluate(model, open_source(DataSection(source=data), "val"), ranks=ranks).to_dict()
    del values["images_per_second"]  # the machine may be doing other things
    return values


def page(results: dict[str, Any]) -> str:
    """The results as text, made from the JSON alone."""
    first = next(iter(results.values()))
    lines = [
        "# Embedded networks",
        "",
        "Written by `embed.py` from `embedded.json`; do not edit. Each file was made by its recipe and judged once, in",
        "the half precision that it is shipped in, on the "
        f"{first['validation']['images']:,} validation images of Tiny-ImageNet.",
        f"The epoch was chosen on {first['images']['held_out']:,} images held out of the training set. Trained on "
        f"{first['processor']},",
        f"torch {first['versions']['torch']}; the course of every run is in the CSV files beside this page.",
        "",
        "| network | recipe | parameters | MB | held out (%) | top-1 (%) | top-5 (%) | sparsity 1/x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        v = row["validation"]
        sparsity = "none" if v["sparsity"] is None else f"{v['sparsity']:.2f} ({v['maps']})"
        lines.append(
            f"| `{name}` | `{Path(row['recipe']).name}` | {v['parameters']:,} | {row['bytes'] / 1e6:.2f} | "
            f"{100 * row['held_out_accuracy']:.2f} | {100 * v['top1']:.2f} | {100 * v['top5']:.2f} | "
            f"{sparsity} |"
        )
    lines += [
        "",
        "Top-1 (%) by subset of the parts; those of BR-NPA are in order, 1 the most active, those of B-CNN are not:",
        "",
    ]
    for name, row in results.items():
        ranks = row["validation"]["ranks"]
        if ranks:
            values = ", ".join(f"{{{k.replace('+', ',')}}} {100 * value:.2f}" for k, value in ranks.items())
            how = {
                "trained": "linear heads trained beside the network",
                "masked": "its own classifier, the other parts masked",
            }[row["validation"]["rank_heads"]]
            lines.append(f"- `{name}` ({how}): {values}")
    lines += ["", *(f"`{name}`: {row['note']}" for name, row in results.items() if "note" in row), ""]
    return "\n".join(lines)


def main() -> None:
    """Embed them, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="tiny-imagenet:$XATTN_DATA/tiny-imagenet")
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny-imagenet"))
    parser.add_argument("--only", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    out = HERE / "embedded"
    out.mkdir(exist_ok=True)
    path = out / "embedded.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in arguments.only:
        run = arguments.runs / NETWORKS[name]
        recipe = Recipe.read(RECIPES / f"tiny-imagenet-{NETWORKS[name]}.toml")
        facts = json.loads((run / "run.json").read_text())
        if facts["epochs_done"] < recipe.run.epochs:
            raise SystemExit(f"{run} has {facts['epochs_done']} of {recipe.run.epochs} epochs; finish it first")
        file = embed(run, name, recipe)
        results[name] = {
            "recipe": f"benchmarks/configs/train/tiny-imagenet-{NETWORKS[name]}.toml",
            "bytes": file.stat().st_size,
            **{k: facts[k] for k in ("processor", "threads", "versions", "images", "best_epoch")},
            "held_out_accuracy": facts["best_held_out_accuracy"],
            **({"note": facts["note"]} if "note" in facts else {}),
            "validation": judge(file, run, arguments.data),
        }
        print(
            f"{name}: top-1 {results[name]['validation']['top1']:.2%}, {file.stat().st_size / 1e6:.2f} MB", flush=True
        )
    for run in sorted(set(NETWORKS.values()) | {"brnpa-low"}):
        if (arguments.runs / run / "log.csv").is_file():
            shutil.copyfile(arguments.runs / run / "log.csv", out / f"{run}.csv")
    total = sum(f.stat().st_size for f in FOLDER.glob("*.safetensors"))
    if total > LIMIT_BYTES:
        raise SystemExit(f"the embedded networks have {total / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.0f}")
    results = {name: results[name] for name in NETWORKS if name in results}
    path.write_text(json.dumps(results, indent=1) + "\n")
    (out / "README.md").write_text(page(results))


if __name__ == "__main__":
    main()
