"""Images and data sets: reading photographs, preprocessing, and labelled collections with boxes and masks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xattn.registry import Registry

if TYPE_CHECKING:
    from xattn.data.dataset import Dataset, Subset, split
    from xattn.data.finding import find_images
    from xattn.data.opening import open_dataset
    from xattn.data.preprocessing import preprocess, to_batch
    from xattn.data.reading import read_image
    from xattn.data.sample import Batch, Sample, collate

__all__ = [
    "Batch",
    "Dataset",
    "Sample",
    "Subset",
    "collate",
    "datasets",
    "find_images",
    "open_dataset",
    "preprocess",
    "read_image",
    "split",
    "to_batch",
]

datasets: Registry[Dataset] = Registry("data set", "xattn.data", "xattn.data")

_HOMES = {
    **dict.fromkeys(("Batch", "Sample", "collate"), "xattn.data.sample"),
    **dict.fromkeys(("Dataset", "Subset", "split"), "xattn.data.dataset"),
    **dict.fromkeys(("preprocess", "to_batch"), "xattn.data.preprocessing"),
    "find_images": "xattn.data.finding",
    "open_dataset": "xattn.data.opening",
    "read_image": "xattn.data.reading",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when first used."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
