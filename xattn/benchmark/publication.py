"""A run as a data set for others: parquet, a card, checksums and a Croissant description in one folder.

The folder is a result folder too: `Store` and so `xattn report` read it as they read the run, row group by row group.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from xattn import __version__
from xattn.benchmark.schemas import Manifest
from xattn.benchmark.store import CHECKSUMS, PUBLISHED, READING, RESERVED, SCHEMA, Store
from xattn.errors import ParameterError
from xattn.files import whole_file
from xattn.labels import counted, slug
from xattn.places import is_remote, place

CARD, CROISSANT = "README.md", "croissant.json"
_TERMS = (
    "citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
    "samplingRate", "separator", "source", "subField", "transform", "equivalentProperty",
)  # fmt: skip
_SIZES = ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K"), (6, "100K<n<1M"), (7, "1M<n<10M"), (8, "10M<n<100M"))
_KINDS = {"string": "sc:Text", "int64": "sc:Integer", "double": "sc:Float"}
_MEANINGS = {
    "dataset": "name of the data set",
    "model": "name of the network",
    "image": "name of the image within the data set",
    "target": "index of the class that was explained",
    "method": "the explanation method with its parameters; empty for what is a fact about the image alone",
    "metric": "the metric with its parameters; status, prediction, scorer and reading are no metrics of methods",
    "column": "which value of the metric",
    "value": "the score; NaN where it is undefined",
    "note": "why a map is not sound, a method refused, or an image could not be read",
}


@dataclass(frozen=True)
class About:
    """What the folder says of itself.

    Args:
        title: of the data set.
        description: in a sentence or two; empty for what can be told from the run.
        license: an identifier of SPDX, or `other`.
        url: where it can be found; empty while it is nowhere.
    """

    title: str
    description: str = ""
    license: str = "other"
    url: str = ""


@dataclass(frozen=True)
class _File:
    """A parquet file of one data set and model, with how many images were read and metrics of methods are in it."""

    path: str
    dataset: str
    model: str
    rows: int
    images: int
    methods: int
    metrics: int
    digest: str


def publish(run: str | Path, out: str | Path, about: About) -> Path:
    """Write a run as a data set.

    Args:
        run: the folder of the scores.
        out: a new folder of this machine.
        about: what it says of itself.

    Returns:
        The folder.

    Raises:
        DataError: if there are no scores, or a part is damaged.
        ParameterError: if there is something in the folder already, or it is not one of this machine.
    """
    store, home = Store(run), place(out)
    if is_remote(home):
        raise ParameterError(f"'{out}' is not on this machine; pass a folder of this machine as --out, and copy that.")
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise ParameterError(f"'{home}' is there already; remove it, or choose another --out.")
    try:
        _publish(store, home, about)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)  # it is new, and half of a data set is of no use
        raise
    return home


def _publish(store: Store, home: Path, about: About) -> None:
    manifest = store.read_manifest()
    (home / PUBLISHED).mkdir(parents=True, exist_ok=True)
    files = _parquet(store, home)
    (home / store.manifest.name).write_bytes(manifest.text())
    copy = Store(home)
    for file in files:
        if (costs := store.read_costs(file.dataset, file.model)).methods:
            copy.write_costs(file.dataset, file.model, costs)
    _write(home / CROISSANT, json.dumps(croissant(files, about), indent=1, ensure_ascii=False) + "\n")
    _write(home / CARD, card(files, about, manifest))
    paths = sorted(p for p in home.rglob("*") if p.is_file())
    lines = [f"{digest_of(path)}  {path.relative_to(home).as_posix()}\n" for path in paths]
    _write(home / CHECKSUMS, "".join(lines))


def _parquet(store: Store, home: Path) -> list[_File]:
    """One file for each data set and model, with a row group for each block."""
    files: list[_File] = []
    open_for: tuple[str, str] | None = None
    writer: Any = None
    path, rows = home, 0
    found: dict[str, set[str]] = {}

    def close() -> None:
        if open_for is not None:
            writer.close()
            name = path.relative_to(home).as_posix()
            counts = len(found["image"]), len(found["method"] - {""}), len(found["metric"] - set(RESERVED))
            files.append(_File(name, *open_for, rows, *counts, digest_of(path)))

    try:
        for table in store.blocks():
            cell = table["dataset"][0].as_py(), table["model"][0].as_py()
            if cell != open_for:
                close()
                open_for, rows, found = cell, 0, {"image": set(), "method": set(), "metric": set()}
                path = home / PUBLISHED / f"{store.cell(*cell).name}.parquet"
                writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True)
            plain = table.cast(SCHEMA)
            writer.write_table(plain, row_group_size=len(plain))
            rows += len(plain)
            scored = plain.filter(
                pc.not_equal(plain["metric"], READING)
            )  # an unreadable image has no name but a number
            for name, texts in found.items():
                texts.update(scored[name].unique().to_pylist())
        close()
    finally:
        if writer is not None:
            writer.close()  # once more is no harm
    return files


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` tells it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def croissant(files: Sequence[_File], about: About) -> dict[str, Any]:
    """The description in JSON-LD that tools for data sets read (Croissant 1.0, mlcommons.org/croissant)."""
    context: dict[str, Any] = {
        "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo", "key": "cr:key", "md5": "cr:md5",
        "data": {"@id": "cr:data", "@type": "@json"}, "examples": {"@id": "cr:examples", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, **{term: f"cr:{term}" for term in _TERMS},
    }  # fmt: skip
    return {
        "@context": context,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": slug(about.title),
        "description": about.description or _told(files),
        "license": about.license,
        **({"url": about.url} if about.url else {}),
        "version": "1.0.0",
        "datePublished": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "citeAs": f"{about.title}. Made with xattn {__version__}.",
        "distribution": [
            {
                "@type": "cr:FileObject", "@id": file.path, "name": file.path, "contentUrl": file.path,
                "description": f"Scores of {file.model} on {file.dataset}.",
                "encodingFormat": "application/x-parquet", "sha256": file.digest,
            }
            for file in files
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet", "@id": _name(file), "name": _name(file),
                "description": f"{file.rows:,} scores of {file.model} on {file.dataset}, one a row.",
                "field": [
                    {
                        "@type": "cr:Field", "@id": f"{_name(file)}/{field.name}", "name": field.name,
                        "description": _MEANINGS[field.name], "dataType": _KINDS[str(field.type)],
                        "source": {"fileObject": {"@id": file.path}, "extract": {"column": field.name}},
                    }
                    for field in SCHEMA
                ],
            }
            for file in files
        ],
    }  # fmt: skip


def card(files: Sequence[_File], about: About, manifest: Manifest) -> str:
    """What the folder is, for people, with the front matter by which hubs of data sets list it."""
    rows = sum(file.rows for file in files)
    size = next((name for digits, name in _SIZES if rows < 10**digits), "100M<n<1B")
    lines = ["---", f"pretty_name: {json.dumps(about.title)}", f"license: {json.dumps(about.license)}"]
    lines += ["tags:", "- explainability", "- saliency", "- xattn", "size_categories:", f"- {size}", "configs:"]
    for file in files:
        lines += [f"- config_name: {json.dumps(_name(file))}", f"  data_files: {json.dumps(file.path)}"]
    lines += ["---", "", f"# {about.title}", "", about.description or _told(files), ""]
    lines += [
        "| file | data set | network | images | methods | metrics | rows |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for f in files:
        names = f"`{f.path}` | {_cell(f.dataset)} | {_cell(f.model)}"
        lines.append(f"| {names} | {f.images:,} | {f.methods} | {f.metrics} | {f.rows:,} |")
    lines += ["", "## Columns", "", *(f"- `{name}`: {text}" for name, text in _MEANINGS.items()), ""]
    lines += ["## Made with", ""]
    for where in manifest.environments:
        versions = ", ".join(f"{name} {v}" for name, v in where.versions.items() if v)
        commit = f", commit {where.commit}" if where.commit else ""
        lines.append(f"- {_cell(versions + commit)}, on {_cell(where.device)} ({counted(where.threads, 'thread')})")
    for name, data in (manifest.identity.data if manifest.identity else {}).items():
        lines.append(f"- data set {_cell(name)}: {data.images:,} images, content {data.content or 'unknown'}")
    for name, model in (manifest.identity.models if manifest.identity else {}).items():
        lines.append(f"- network {_cell(name)}: weights {model.weights}")
    lines += [
        "", "## To read it", "", "```sh", "sha256sum -c checksums.txt     # whole, as it was published",
        "xattn report . --out report    # tables, figures and a page from these scores", "```", "", "```python",
        "import pandas as pd", "", f'scores = pd.read_parquet("{files[0].path}")', "```", "",
        "`croissant.json` describes the same to tools that read Croissant. Scores are comparable within one data set, "
        "network and metric with all its parameters.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _told(files: Sequence[_File]) -> str:
    rows = sum(file.rows for file in files)
    models = len({file.model for file in files})
    return (
        f"{rows:,} scores of saliency methods for {counted(models, 'network')} on "
        f"{', '.join(dict.fromkeys(file.dataset for file in files))}, one for each image, method and column."
    )


def _name(file: _File) -> str:
    return Path(file.path).stem


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
