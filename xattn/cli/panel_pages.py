"""Panels of `xattn explain`: a row an image and class, a column a method, on as many pages as it takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.cli.loading import picture_file
from xattn.cli.work import described
from xattn.labels import first_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from xattn.explanation import Explanation
    from xattn.file_loop import Column
    from xattn.viz import Cell

_PAGE_CELLS = 72  # pictures on a page, so that they stay legible
_PAGE_ROWS = 4, 10  # least and most rows of a page
_FOLD = 8  # methods beside one image; more are folded into several rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    line: list[Explanation | str]
    views: Mapping[str, Image]
    label: str
    predicted: Mapping[str, Mapping[str, Any]]


class PanelPages:
    """Pages in the making; rows are kept until a page is full.

    Args:
        out: folder of the pages.
        columns: the methods.
        style: options of `xattn.viz.render`.
        total: rows that there will be, at most.
    """

    def __init__(self, out: Path, columns: Sequence[Column], style: dict[str, Any], total: int) -> None:
        self.out, self.columns, self.style = out, columns, style
        self.paths: list[Path] = []
        width = 1 + sum(column.refused is None for column in columns)
        self._most = min(max(_PAGE_CELLS // width, _PAGE_ROWS[0]), _PAGE_ROWS[1])
        self._single = total <= self._most
        self._rows: list[_Row] = []

    def add(
        self,
        line: list[Explanation | str],
        views: Mapping[str, Image],
        label: str = "",
        predicted: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a row and write the page if it is full.

        Args:
            line: an entry a column.
            views: what the networks see.
            label: what the folder of the image says it shows.
            predicted: of each network `class`, and whether it is `right`.
        """
        self._rows.append(_Row(line, views, label, predicted or {}))
        if len(self._rows) == self._most:
            self.flush()

    def flush(self) -> None:
        """Write what there is as a page."""
        from xattn.viz import field_size, keys_of, panel, row, title

        # A method that no image of the whole run can show gets no column; it is listed with its reason.
        shown = [j for j, column in enumerate(self.columns) if column.refused is None]
        if self._rows and shown:
            names = [self.columns[j].network.name for j in shown]
            view = self._rows[0].views[names[0]]
            folded = len(self._rows) == 1 and len(shown) > _FOLD
            across = math.ceil(math.sqrt(1.6 * (len(shown) + 1))) if folded else len(shown) + 1
            count = -(-(len(shown) + 1) // across) if folded else len(self._rows)
            size = max(field_size(count, across, (view.height, view.width)))
            rows = [
                self._marked(
                    row(
                        [one.line[j] for j in shown],
                        image=[one.views[n] for n in names],
                        size=size,
                        **self._caption(one),
                        **self.style,
                    ),
                    names,
                    one.predicted,
                )
                for one in self._rows
            ]
            titles = ["Image", *(self._title(self.columns[j], title(self.columns[j].method)) for j in shown)]
            if folded:
                rows, titles = fold(rows[0], titles, across), []
            keys = keys_of([one.line[j] for one in self._rows for j in shown], colormap=self.style["colormap"])
            alone = self._single and not self.paths
            path = self.out / ("panel.png" if alone else f"panel-{len(self.paths) + 1:02d}.png")
            self.out.mkdir(parents=True, exist_ok=True)
            with picture_file(path) as temporary:
                panel(rows, titles, legend=keys).save(temporary)
            self.paths.append(path)
        self._rows.clear()

    def _marked(
        self, cells: list[Cell], names: Sequence[str], predicted: Mapping[str, Mapping[str, Any]]
    ) -> list[Cell]:
        """Right and wrong on the image, or of several networks on the pictures of each."""
        marks = {name: {True: "right", False: "wrong"}.get(row.get("right"), "") for name, row in predicted.items()}  # type: ignore[arg-type]
        if not any(marks.values()):
            return cells
        if len(set(names)) == 1:
            return [dataclasses.replace(cells[0], mark=marks.get(names[0], "")), *cells[1:]]
        named = zip(cells[1:], names, strict=True)
        return [cells[0], *(dataclasses.replace(c, mark=marks.get(n, "") if c.picture else "") for c, n in named)]

    def _title(self, column: Column, method: str) -> str:
        """What stands above a picture: the method, and the network or how its copy was changed, where that differs."""
        networks = {c.network for c in self.columns if c.refused is None}
        if len(networks) == 1:
            return method
        if len({(n.original or n).name for n in networks}) > 1:
            return f"{column.network.name}\n{method}"
        own = column.network
        return method if own.original is None else f"{method} {own.name.removeprefix(own.original.name).strip()}"

    def _caption(self, one: _Row) -> dict[str, Any]:
        """What stands below an image: the class explained and its probability, if all networks explain one."""
        from xattn.viz import percent

        several = len({(column.network.original or column.network).name for column in self.columns}) > 1
        pairs = [(c.network, e) for c, e in zip(self.columns, one.line, strict=True) if not isinstance(e, str)]
        if not several:  # a network speaks for its copies
            pairs = [(n, e) for n, e in pairs if n.original is None] or pairs
        told = [(n.name, described(e)) for n, e in pairs if e.method.class_specific or not several]
        specific = [(network, goal) for network, goal in told if goal["class_specific"]] or told
        labelled = f"labelled {one.label}" if one.label else ""
        if not specific:
            return {"caption": labelled} if labelled else {}
        if len({goal["class"] for _, goal in specific}) > 1:
            return {"caption": labelled, "detail": ""}  # classes stand below each picture
        shares = dict.fromkeys((n, percent(g["probability"])) for n, g in specific if g["probability"] is not None)
        texts = [f"{share} ({network})" if several else share for network, share in shares]
        explained = specific[0][1]["class"]
        guesses = {row["class"] for row in one.predicted.values() if row["class"] != explained}
        texts += [f"predicted {first_name(guess)}" for guess in sorted(guesses)] if labelled else []
        if any(row.get("right") is not True for row in one.predicted.values()) and labelled:
            texts.append(labelled)
        short = next(e.short_name() for _, e in pairs if e.class_name() == explained)
        return {"caption": short, "detail": ", ".join(texts)}


def fold(cells: Sequence[Cell], titles: Sequence[str], columns: int) -> list[list[Cell]]:
    """One long row of a panel as several rows, each picture with its title below it."""
    from PIL import Image as Pillow

    from xattn.viz import Cell
    from xattn.viz.text import PAPER

    titled = [
        cell if i == 0 else dataclasses.replace(cell, caption=name)
        for i, (cell, name) in enumerate(zip(cells, titles, strict=True))
    ]
    blank = Cell(Pillow.new("RGB", (8, 8), PAPER))
    titled += [blank] * (-len(titled) % columns)
    return [titled[i : i + columns] for i in range(0, len(titled), columns)]
