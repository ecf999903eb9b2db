"""Pages of the API reference: one for each module that people import from, or write an entry of."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

_CORE = (
    "xattn.explaining", "xattn.storage", "xattn.explainer", "xattn.explanation", "xattn.spec", "xattn.trace",
    "xattn.score", "xattn.metric", "xattn.inspection", "xattn.registry", "xattn.errors", "xattn.watching",
)  # fmt: skip
_PAGES = {
    "core": ("The core", "`xattn.explain`, and what it takes and gives."),
    "explainers": ("Methods", "The classes behind the names of methods; their fields are the parameters."),
    "metrics": ("Metrics", "The classes behind the names of metrics; their fields are the parameters."),
    "functional": ("Formulas", "Functions of tensors, without a model: what the methods and metrics compute."),
    "models": ("Models", "Backbones, heads and adapters."),
    "data": ("Data", "Data sets, and how images become tensors."),
    "viz": ("Pictures", "Overlays, panels and legends."),
}


def make() -> tuple[dict[str, str], dict[str, Path]]:
    """Text by path of the pages; no pictures."""
    pages = {
        "api/index.md": "\n".join(
            [
                "# API reference",
                "",
                "`import xattn` gives `explain`, `record`, `create_model`, `infer_spec`, `Explainer`, "
                "`LayerExplainer`, `Explanation`, `Metric`, `ModelSpec`, `Trace`, `Watch`, `XattnError` and "
                "`XattnWarning`. Everything else is imported from where it stands here.",
                "",
                *(f"- [{title}]({name}.md): {about}" for name, (title, about) in _PAGES.items()),
            ]
        )
    }
    for name, (title, about) in _PAGES.items():
        modules = _CORE if name == "core" else _modules(f"xattn.{name}")
        parts = [f"# {title}", "", about, "", *(f"::: {module}\n" for module in modules)]
        pages[f"api/{name}.md"] = "\n".join(parts)
    return pages, {}


def _modules(package: str) -> list[str]:
    """A package, if it defines something itself, and its public modules."""
    home = importlib.import_module(package)
    names = [m.name for m in pkgutil.iter_modules(home.__path__, f"{package}.")]
    return [package, *(name for name in names if not name.rpartition(".")[2].startswith("_"))]
