"""Where the real data are, for the tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_root() -> Path | None:
    """The folder in `XATTN_DATA`, else one beside the repository where there is one, else None."""
    named = os.environ.get("XATTN_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return path if path.is_dir() else None


def need_data(name: str) -> Path:
    """A folder or file of the data root; skips the test where it is absent."""
    root = data_root()
    if root is None:
        pytest.skip("no data root; set XATTN_DATA")
    path = root / name
    if not path.exists():
        pytest.skip(f"the data root has no '{name}'")
    return path
