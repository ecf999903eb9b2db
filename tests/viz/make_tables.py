"""Write xattn/viz/_tables.py from matplotlib: `python tests/viz/make_tables.py`."""

from __future__ import annotations

import base64
from pathlib import Path

NAMES = ("plasma", "viridis", "magma", "inferno", "cividis", "turbo")
PATH = Path(__file__).parents[2] / "xattn" / "viz" / "_tables.py"
HEADER = '''"""Colour maps as 256 RGB bytes each, in base64; written by tests/viz/make_tables.py, not by hand.

plasma, viridis, magma, inferno: Smith, van der Walt and Firing 2015 (CC0). cividis: Nuñez, Anderton and Renslow 2018.
turbo: Mikhailov 2019 (Apache-2.0).
"""

from __future__ import annotations

TABLES: dict[str, str] = {
'''


def source() -> str:
    """The text of the module."""
    from matplotlib import colormaps

    lines = []
    for name in NAMES:
        entries = (colormaps[name](range(256))[:, :3] * 255).round().astype("uint8")
        text = base64.b64encode(entries.tobytes()).decode()
        chunks = "\n".join(f'        "{text[i : i + 104]}"' for i in range(0, len(text), 104))
        lines.append(f'    "{name}": (\n{chunks}\n    ),\n')
    return HEADER + "".join(lines) + "}\n"


if __name__ == "__main__":
    PATH.write_text(source(), encoding="utf-8")
