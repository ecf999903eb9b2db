"""The one hook of MkDocs: it adds the generated pages and puts results and formulas into the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # MkDocs runs this file alone, outside its package

from docs.generate import code, formulas, methods, metrics, notebooks, reports, results

_MAKERS = (methods, metrics, notebooks, reports, code)
_BESIDE: list[subprocess.Popen[bytes]] = []


def on_files(files: Files, config: Any) -> Files:
    """Add every generated page and picture, and fill in the entries `folder/*` of the navigation."""
    _BESIDE.append(reports.begin())
    for maker in _MAKERS:
        pages, pictures = maker.make()
        for path, text in pages.items():
            files.append(File.generated(config, path, content=text))
        for path, source in pictures.items():
            files.append(File.generated(config, path, abs_src_path=str(source)))
        config.nav = [_filled(entry, list(pages)) for entry in config.nav]
    return files


def _filled(entry: Any, pages: list[str]) -> Any:
    """An entry of the navigation with the pages of the folder that it asks for."""
    if not isinstance(entry, dict):
        return entry
    ((title, children),) = entry.items()
    if not isinstance(children, list):
        return entry
    wanted = [
        child.removesuffix("*") if isinstance(child, str) and child.endswith("/*") else None for child in children
    ]
    return {
        title: [
            found
            for child, folder in zip(children, wanted, strict=True)
            for found in (([p for p in pages if p.startswith(folder)] or [child]) if folder else [child])
        ]
    }


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Results in place of the comments that ask for them."""
    return results.filled(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""
    return formulas.to_mathml(html)


def on_post_build(config: Any) -> None:
    """Reports of benchmarks are pages of their own, beside those of MkDocs."""
    while _BESIDE:
        _BESIDE.pop().wait()
    reports.copy(Path(config.site_dir))
