"""A folder of images whose labels are in a table beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index, class_names, class_number, read_csv
from xattn.errors import DataError


@datasets.register("csv")
@dataclass(frozen=True)
class Listed(FileDataset):
    """Images named in `DIR/TABLE.csv` with columns `file` and `label` (a number), and perhaps `name` of the class.

    Files are in `DIR/TABLE/` if there is such a folder, else in `DIR`. Photographs of a few of the classes of a model,
    say of ImageNet, keep the numbers of the model.

    Args:
        root: the folder of the table.
        split: there is one part, `"all"`.
        table: name of the table without `.csv`; empty takes the only one there is.
        class_count: number of classes, where the highest label does not tell; 0 takes that.
    """

    split: str = "all"
    table: str = ""
    class_count: int = 0

    title: ClassVar[str] = "table of images"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    training: ClassVar[str] = "all"
    evaluation: ClassVar[str | None] = "all"
    upright: ClassVar[bool] = True
    annotations: ClassVar[tuple[str, ...]] = ("*.csv",)

    def _table(self) -> Path:
        tables = sorted(self.home.glob("*.csv"))
        chosen = [t for t in tables if self.table in ("", t.stem)]
        if len(chosen) != 1:
            there = ", ".join(t.stem for t in tables[:9]) or "none"
            wanted = f"the table '{self.table}.csv'" if self.table else "one table (name it with table=)"
            raise self._error(f"expected {wanted} in '{self.home}' but found {there}.")
        return chosen[0]

    def _list(self) -> Index:
        table = self._table()
        home = table.with_suffix("") if table.with_suffix("").is_dir() else self.home
        rows = read_csv(table, self.title, ("file", "label"))
        names: dict[int, str] = {}
        paths, labels = [], []
        for line, row in rows:
            where = f"{self.title}: line {line} of '{table}'"
            if "\0" in row["file"] or not row["file"]:
                raise DataError(f"{where} names no file.")
            paths.append(home / row["file"])
            labels.append(class_number(row["label"], where))
            names[labels[-1]] = row.get("name") or f"class {labels[-1]}"
        return Index(
            paths, np.array(labels, np.int64), class_names(names, self.class_count or max(names, default=-1) + 1)
        )
