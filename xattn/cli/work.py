"""What `explain` and `compare` share: the images, the loop over them, what failed, the summary and the exit status."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn import __version__
from xattn.cli import EXIT_BAD_INPUT, EXIT_SOME_FAILED, console
from xattn.labels import label_of, listing
from xattn.looks import RANKS

if TYPE_CHECKING:
    from xattn.explanation import Explanation
    from xattn.file_loop import Column, Explained, Measure, Settings


@dataclasses.dataclass
class Work:
    """One run over images.

    Args:
        settings: what is asked of every image.
        err: what people read goes to stderr, because stdout is for machines.
        columns: the methods with their networks.
        entries: what the summary says of each image that was explained.
        failed: the images that were not, with the reason.
        places: folders of each image below the one that was given; empty for an image that was given by itself.
    """

    settings: Settings
    err: bool
    columns: list[Column] = dataclasses.field(default_factory=list)
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, str]] = dataclasses.field(default_factory=list)
    places: dict[Path, Path] = dataclasses.field(default_factory=dict)

    def say(self, text: str) -> None:
        """Tell people something."""
        console.say(text, err=self.err)

    def find(self, paths: Sequence[str]) -> list[Path]:
        """The images that the paths stand for; the rest is noted."""
        from xattn.data.finding import find_images
        from xattn.data.tree import places

        files, problems = find_images(list(paths))
        for problem in problems:
            if problem.note:
                console.warn(str(problem))
            else:
                self.fail(problem.path, problem.reason)
        self.places = places(files, paths)
        return files

    def fail(self, path: str | Path, reason: str) -> None:
        """Note an image that could not be explained."""
        self.failed.append({"file": str(path), "reason": reason})
        console.fail(f"{path}: {reason}")

    def results(
        self, files: Sequence[Path], measure: Measure | None = None
    ) -> Iterator[tuple[Explained, dict[str, Any]]]:
        """Explain the images; what came of each, and its entry in the summary, to which maps are added."""
        from xattn.file_loop import Unread, explain_files

        with console.progress(shown=len(files) >= 4 and console.is_watched(), count=True) as bar:
            bar.update(what="explaining", total=len(files))
            for result in explain_files(files, self.columns, self.settings, measure):
                if isinstance(result, Unread):
                    self.fail(result.file, result.reason)
                else:
                    entry = {"file": str(result.file), **self._judged(result), "maps": []}
                    yield result, entry
                    self.entries.append(entry)
                bar.update(more=1)

    def _judged(self, result: Explained) -> dict[str, Any]:
        """What networks predict, whether that is what the folder says, and what it says."""
        from xattn.data.tree import class_of, label_of

        folders = self.places.get(result.file, Path())
        if not folders.parts:
            return {"predicted": result.predicted}
        specs = {column.network.name: column.network.spec for column in self.columns}
        predicted = {}
        for name, row in result.predicted.items():
            index = class_of(folders, specs[name])
            known = index is not None and row["index"] is not None
            predicted[name] = {**row, "right": row["index"] == index if known else None}
        return {"label": label_of(folders, [*specs.values()]), "predicted": predicted}

    def tell_labels(self) -> None:
        """Say what the folders do not tell of the classes, before the work."""
        from xattn.data.tree import strangers

        folders = sorted({place for place in self.places.values() if place.parts})
        for network in dict.fromkeys(column.network for column in self.columns) if folders else ():
            unknown = strangers(folders, network.spec)
            names = listing(list(dict.fromkeys(Path(folder).name for folder in unknown)), most=5)
            if not network.spec.classes:
                self.say(
                    f"{network.name} does not name its classes, so right and wrong are not told; pass --classes, in "
                    "the order in which it was trained on them."
                )
            elif len(unknown) == len(folders):
                self.say(f"no folder ({names}) names a class of {network.name}, so right and wrong are not told.")
            elif unknown:
                guesses = [guess for guess in unknown.values() if guess]
                hint = f" Did you mean '{guesses[0]}'?" if len(unknown) == 1 and guesses else ""
                console.warn(f"{names} {'names' if len(unknown) == 1 else 'name'} no class of {network.name}.{hint}")

    def tallies(self) -> list[str]:
        """For each network how many images it names as their folders do, class by class where there are few."""
        texts = []
        for name in dict.fromkeys(column.network.name for column in self.columns):
            judged = [(e["label"], e["predicted"][name]["right"]) for e in self.entries if "label" in e]
            judged = [(label, right) for label, right in judged if right is not None]
            labels = list(dict.fromkeys(label for label, _ in judged))
            each = [
                f"{label} {sum(r for k, r in judged if k == label)} of {sum(k == label for k, _ in judged)}"
                for label in labels
            ]
            if judged:
                detail = f" ({', '.join(each)})" if 1 < len(each) <= 8 else ""
                texts.append(f"{name} is right on {sum(r for _, r in judged)} of {len(judged)} images{detail}")
        return texts

    def tell_left_out(self) -> None:
        """Say which methods could not be used."""
        for column in self.columns:
            if column.refused is not None:
                self.say(f"left out: {column.refused}")

    def agreements(self) -> list[str]:
        """For each changed copy that was explained how it answers beside the network itself."""
        texts = []
        for network in dict.fromkeys(column.network for column in self.columns):
            rows = [entry["predicted"].get(network.name) for entry in self.entries]
            pairs = [(row, row["original"]) for row in rows if row and row.get("original")]
            if network.original is not None and pairs and pairs[0][1]["index"] is not None:
                same = sum(row["index"] == own["index"] for row, own in pairs)
                texts.append(
                    f"{network.name}: maps of a changed copy that names the same class as {network.original.name} in "
                    f"{same} of {len(pairs)} images; the class of {network.original.name} is explained"
                )
        return texts

    def summary(self) -> dict[str, Any]:
        """The machine-readable result."""
        left_out = [{"method": c.method.name, "reason": c.refused} for c in self.columns if c.refused is not None]
        return {
            "xattn": __version__,
            "images": self.entries,
            "failed": self.failed,
            "left_out": left_out,
            "score": self.settings.score,
            "status": self.status(),
        }

    def status(self) -> int:
        """The exit status."""
        if not self.entries:
            return EXIT_BAD_INPUT
        return EXIT_SOME_FAILED if self.failed else 0


def facts_of(column: Column, explanation: Explanation) -> dict[str, Any]:
    """What a summary says of the map of an image."""
    return {
        "method": column.method.name,
        "label": label_of(column.method),
        "parameters": dataclasses.asdict(column.method),  # type: ignore[call-overload]
        "model": column.network.name,
        "target": described(explanation),
        "status": explanation.status[0],
        "told": explanation.told(),
        "parts": part_levels(explanation),
    }


def described(explanation: Explanation) -> dict[str, Any]:
    """What is explained: a class, or what else; a map that is not class-specific is the same for every class."""
    probability = explanation.probability
    return {
        "index": int(explanation.target[0]),
        "class": explanation.class_name(),
        "class_specific": explanation.method.class_specific,
        "probability": None if probability is None else float(probability[0]),
    }


def part_levels(explanation: Explanation) -> list[dict[str, Any]]:
    """Rank, colour and share in the activation of each part that is drawn in rank colours."""
    from xattn.viz import shares

    if explanation.parts is None or not explanation.method.rank_colors:
        return []
    return [
        {"rank": rank + 1, "color": [*RANKS][rank % len(RANKS)], "share": level}
        for rank, level in enumerate(shares(explanation.parts[0]))
    ]
