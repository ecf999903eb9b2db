"""Notebooks as pages: executed, with their outputs, in the style of the other pages."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from docs.generate.cache import ROOT, kept

HOME = ROOT / "notebooks"
_TIMEOUT_S = 1200  # of a cell, on a machine that is busy with other things
_WIDTH_PX = 1600
_LINK = re.compile(r"\]\((\.\./)?(?:docs/)?([\w-]+)\.(?:md|ipynb)")  # from beside the notebooks to beside the pages
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


def make() -> tuple[dict[str, str], dict[str, Path]]:
    """Text by path of the pages, and file by path of the pictures."""
    pages: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    with ThreadPoolExecutor(2) as pool:  # each in a process of its own
        runs = pool.map(executed, notebooks())
    for path, run in zip(notebooks(), runs, strict=True):
        text, files = _page(run)
        pages[f"notebooks/{path.stem}.md"] = text
        pictures |= {f"notebooks/{name}": file for name, file in files.items()}
    return pages, pictures


def notebooks() -> list[Path]:
    """All notebooks, in order."""
    return sorted(HOME.glob("*.ipynb"))


def executed(path: Path) -> Path:
    """The notebook with its outputs, run unless it was before with the same sources.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    weights = sorted((ROOT / "xattn" / "models" / "weights").glob("*.safetensors"))
    parts = (path, ROOT / "xattn", ROOT / "examples" / "chelsea.jpg", ROOT / "examples" / "coffee.jpg", *weights)
    return kept(f"notebooks/{path.stem}.ipynb", parts, lambda out: nbformat.write(_run(path), out))


def _run(path: Path) -> Any:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        resources={"metadata": {"path": str(HOME)}},
        extra_arguments=["--log-level=ERROR"],  # the kernel warns that others on this machine could listen
    )
    # The same outputs with and without a data root, and from any folder the package beside the notebooks.
    client.execute(env={**os.environ, "XATTN_DATA": "", "PYTHONPATH": str(ROOT)})
    return notebook


def _page(path: Path) -> tuple[str, dict[str, Path]]:
    """An executed notebook as Markdown, and its pictures by name."""
    notebook = nbformat.read(path, as_version=4)
    stem = path.name.split(".")[0]
    lines, files = [], {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            lines += [_LINK.sub(lambda m: f"]({m[1] or ''}{m[2]}.md", cell.source), ""]
            continue
        lines += ["```python", cell.source, "```", ""]
        for place, output in enumerate(_joined(cell.get("outputs", ()))):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{number}-{place}.webp"
                files[name] = _smaller(base64.b64decode(data["image/png"]), path.with_name(name))
                lines += [f"![]({name}){{ .output loading=lazy }}", ""]
            elif "text/markdown" in data:
                lines += [data["text/markdown"], ""]
            else:
                text = output.get("text") or data.get("text/plain", "")
                lines += ["```text", _CONTROL.sub("", text).rstrip(), "```", ""] if text.strip() else []
    return "\n".join(lines), files


def _joined(outputs: Iterable[Any]) -> list[Any]:
    """Outputs of a cell, with what was printed in one piece, and without warnings."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == kept[-1].get("name") == "stdout":
            kept[-1] = {**kept[-1], "text": kept[-1]["text"] + output["text"]}
        else:
            kept.append(output)
    return kept


def _smaller(png: bytes, path: Path) -> Path:
    """A picture as WebP, no wider than a page."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((_WIDTH_PX, 4 * _WIDTH_PX))
    picture.save(path, quality=85)
    return path
