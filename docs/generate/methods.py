"""Pages of the methods: words, formula, source, cost and a picture of each, from the registry."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from docs.generate.cache import ROOT, kept
from docs.generate.entries import facts, parameters, reference, slug, source, table, words
from docs.generate.formulas import display
from docs.generate.results import costs
from xattn.cli.loading import load
from xattn.data.preprocessing import view_of
from xattn.data.reading import read_image
from xattn.errors import NotApplicableError, XattnWarning
from xattn.explainer import Explainer, Family
from xattn.explainers import applicable, explainers
from xattn.explaining import explain
from xattn.file_loop import Network
from xattn.models.embedded import FOLDER
from xattn.viz import render

IMAGE = ROOT / "examples" / "chelsea.jpg"
TARGET = "Egyptian cat"
_PX = 336
_SHOWN_ON = {"brnpa": "tiny-brnpa"}
"""Embedded network of a picture where it is not the first one that takes the method."""

_FAMILIES = {
    Family.CAM: (
        "Class activation maps",
        "They read one layer: its features, and most of them the gradient of the score by it. All of them together "
        "cost one forward and one backward pass. Their grid is that of the layer, so that they are coarse.",
    ),
    Family.ACTIVATION: (
        "Activation",
        "They show what a layer responds to, whatever the class.",
    ),
    Family.ATTENTION: (
        "Attention",
        "They show what a network attends to: the maps that a B-CNN or BR-NPA head pools by, BR-NPA computed post hoc "
        "on any network, and the attention probabilities of transformers.",
    ),
    Family.GRADIENT: (
        "Gradients",
        "They follow the score down to the pixels by the rules of calculus: fine, and noisy.",
    ),
    Family.PROPAGATION: (
        "Propagation",
        "They go down to the pixels by rules of their own. Some of them look sharp because they find edges; compare "
        "them with the `edges` control, and see whether they move with the class.",
    ),
    Family.PERTURBATION: (
        "Perturbation",
        "They change the image and look at the score. No gradient is needed, and every change is a forward pass.",
    ),
    Family.CONTROL: (
        "Controls",
        "They know nothing about the model. A method that does not beat them explains nothing, so they stand in every "
        "benchmark.",
    ),
}


def make() -> tuple[dict[str, str], dict[str, Path]]:
    """Text by path of the pages, and file by path of the pictures."""
    entries = [Entry(name) for name in explainers.names()]
    pages = {"methods/index.md": _index(entries)}
    for family in Family:
        if mine := [e for e in entries if e.method.family is family]:
            pages[f"methods/{family.value.lower()}.md"] = _page(family, mine)
    pictures = {f"methods/{e.picture_name}": e.picture for e in entries if e.picture is not None}
    return pages, pictures


class Entry:
    """One registered method.

    Args:
        name: as it is registered.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind: Any = explainers.get(name)
        self.method = explainers.create(name)
        self.network, self.picture = _picture(self.method)

    @property
    def anchor(self) -> str:
        """Address of its section from the folder of the pages."""
        return f"{self.method.family.value.lower()}.md#{slug(self.name)}"

    @property
    def picture_name(self) -> str:
        """Path of its picture from the folder of the pages."""
        return f"images/{slug(self.name)}.jpg"

    @property
    def networks(self) -> list[str]:
        """Embedded networks that it is defined for."""
        return [name for name, network in embedded().items() if applicable(self.method, network.spec) is None]

    def section(self) -> str:
        """Its part of a page."""
        what, rest = words(self.kind)
        passes = "nothing" if self.method.passes == "none" else self.method.passes
        cost = f"{passes} beyond the shared forward pass"
        if self.name in costs():
            ratio, network = costs()[self.name]
            cost += f", alone {ratio:.3g} times a forward pass ({network})"
        about = facts(
            cost=cost,
            class_specific="yes" if self.method.class_specific else "no",
            defined_for=self.method.serves,
            embedded_networks=", ".join(f"`{n}`" for n in self.networks) or "none",
            computed_by=self.method.computed_by,
        )
        lines = [f"## `{self.name}` {{ #{slug(self.name)} }}", ""]
        if self.picture is not None:
            lines += [f"![{self.name}]({self.picture_name}){{ .map loading=lazy }}", ""]
        lines += [f"{what}.", "", f"*{source(self.kind)}*", ""]
        lines += [display("methods", self.name), ""]
        lines += [rest, "", about]
        if self.picture is not None:
            lines += [f"The picture is that of `{self.network}`.", "{ .small }", ""]
        lines += [parameters(self.kind), f"In Python: {reference(self.kind)}.", ""]
        return "\n".join(lines)


def _index(entries: list[Entry]) -> str:
    figures = [
        f'<a href="{e.anchor.replace(".md", ".html")}"><img src="{e.picture_name}" alt="" loading="lazy">'
        f"<span>{e.name}</span></a>"
        for e in entries
        if e.picture is not None
    ]
    rows = [
        (
            f"[`{e.name}`]({e.anchor})",
            words(e.kind)[0],
            e.method.family.value,
            "yes" if e.method.class_specific else "no",
            e.method.passes,
            e.method.serves,
            e.method.computed_by,
            source(e.kind),
        )
        for e in entries
    ]
    header = ("name", "what", "kind", "class-specific", "cost", "defined for", "computed by", "paper")
    controls = sum(e.method.family is Family.CONTROL for e in entries)
    return "\n".join(
        [
            "# Methods",
            "",
            f"There are {len(entries)}, {controls} of them controls that know nothing about the model. "
            "`xattn list methods` prints this list, `xattn doctor` says which of them are valid on a model, and why "
            "not the rest. [Choosing a method](../choosing.md) says which to take.",
            "",
            f'Each picture explains the class "{TARGET}" in the same photograph, with one of the embedded networks, '
            "which see 64 x 64 pixels. They are here to be recognized, not to be ranked: that one picture looks better "
            "than another says nothing.",
            "",
            '<div class="gallery">',
            *figures,
            "</div>",
            "",
            "Cost is what a method adds to the one forward pass that all share.",
            "",
            table(header, rows),
        ]
    )


def _page(family: Family, entries: list[Entry]) -> str:
    title, about = _FAMILIES.get(family, (family.value.capitalize(), ""))
    return "\n".join([f"# {title}", "", about, "", *(e.section() for e in entries)])


# --- pictures


@cache
def embedded() -> dict[str, Network]:
    """The networks inside the package, the plain one first."""
    names = sorted((path.stem for path in FOLDER.glob("*.safetensors")), key=lambda n: (n != "tiny-cnn", n))
    return {name: load(name) for name in names}


def _candidates(method: Explainer) -> Iterator[tuple[str, Network]]:
    found = [(name, network) for name, network in embedded().items() if applicable(method, network.spec) is None]
    yield from sorted(found, key=lambda item: item[0] != _SHOWN_ON.get(method.name, item[0]))


def _picture(method: Explainer) -> tuple[str, Path | None]:
    """The network that a picture is made with, and the picture; none if no embedded network takes the method."""
    library = ROOT / "xattn"
    for name, network in _candidates(method):
        parts = (
            repr(method), str(_PX), IMAGE, FOLDER / f"{name}.safetensors", Path(inspect.getfile(type(method))),
            library / "functional", library / "viz", library / "trace.py",
        )  # fmt: skip
        try:
            path = kept(f"methods/{slug(method.name)}.jpg", parts, lambda path, n=network: _draw(method, n, path))
        except NotApplicableError:
            continue
        return name, path
    return "", None


def _draw(method: Explainer, network: Network, path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XattnWarning)  # an empty map is drawn as one
        found = explain(network.model, IMAGE, method, TARGET, spec=network.spec)
    view = view_of(read_image(IMAGE), network.spec)
    render(found, image=view, size=_PX).save(path, "JPEG", quality=85, optimize=True)
