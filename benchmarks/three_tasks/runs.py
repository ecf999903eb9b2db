"""The networks of the three tasks: which recipe, what is changed in it, and which network comes before.

The order is that in which they are trained: what is cheap and what others start from comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "configs" / "train"


@dataclass(frozen=True)
class Run:
    """One network.

    Args:
        task: `"cub-20"`, `"holstein-reid"` or `"cifar-fs"`.
        name: of the network in the table of its task.
        recipe: its file, without the suffix.
        changes: of keys of the recipe.
        start: name of the network of the task whose weights it starts from.
        teacher: name of the network of the task that it is distilled from, and starts from.
    """

    task: str
    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    start: str = ""
    teacher: str = ""

    def overrides(self, root: Path, seed: int) -> list[str]:
        """Changes of the recipe, with the folders below `root` and the seed."""
        found = [*self.changes, f'run.out="{self.folder(root, seed)}"', f"run.seed={seed}", "run.accelerator=cpu"]
        for key, other in (("model.start", self.start), ("distill.teacher", self.teacher)):
            if other:
                found.append(f'{key}="{root / self.task / f"{other}-{seed}" / "best.safetensors"}"')
        return found

    def folder(self, root: Path, seed: int) -> Path:
        """Where it is trained."""
        return root / self.task / f"{self.name}-{seed}"


_PLAIN = "run.task=reid:instances=4,margin=0.3"  # triplets of the features as they are
_FINE = ("model.resolution=high", "run.epochs=6")
_FEW = ("run.epochs=2", "optimizer.lr=0.05", "run.task=fewshot")
_STUDENT = ("model.resolution=high", "run.epochs=3")
# The norms of its attention have no statistics to keep: with those that they begin with it is zero after an epoch.
_NORMS = "model.freeze_batchnorm=false"
_NARROW = "model.attention_width=128"  # 1,280 channels as published would be 29 M weights for 540 photographs

RUNS: tuple[Run, ...] = (
    Run("holstein-reid", "linear-low", "holstein-reid"),
    Run("holstein-reid", "bcnn-low", "holstein-reid", ("model.head=bcnn",)),
    Run("holstein-reid", "brnpa-low", "holstein-reid", ("model.head=brnpa",)),
    Run("cifar-fs", "pretrained-2x2", "cifar-fs-small", ("run.epochs=12",)),
    Run("cub-20", "linear-low", "cub-20", ("model.head=linear", "model.ranks=false")),
    Run("cub-20", "brnpa-low", "cub-20", ()),
    Run("cub-20", "bcnn-low", "cub-20", ("model.head=bcnn", _NARROW, _NORMS)),
    Run("cifar-fs", "linear-8x8", "cifar-fs-small", (*_FEW, "model.resolution=high"), start="pretrained-2x2"),
    Run(
        "cifar-fs",
        "brnpa-8x8",
        "cifar-fs-small",
        (*_FEW, "model.resolution=high", "model.head=brnpa"),
        start="pretrained-2x2",
    ),
    Run("cub-20", "brnpa-high", "cub-20", _STUDENT, teacher="brnpa-low"),
    Run("holstein-reid", "brnpa-high", "holstein-reid", (*_FINE, "model.head=brnpa"), teacher="brnpa-low"),
    Run(
        "cifar-fs",
        "bcnn-8x8",
        "cifar-fs-small",
        (*_FEW, "model.resolution=high", "model.head=bcnn"),
        start="pretrained-2x2",
    ),
    Run("holstein-reid", "bcnn-high", "holstein-reid", (*_FINE, "model.head=bcnn"), teacher="bcnn-low"),
    Run("cub-20", "bcnn-high", "cub-20", (*_STUDENT, "model.head=bcnn", _NARROW, _NORMS), teacher="bcnn-low"),
    Run("holstein-reid", "linear-plain", "holstein-reid", (_PLAIN,)),
    Run("holstein-reid", "linear-high", "holstein-reid", _FINE, teacher="linear-low"),
)
