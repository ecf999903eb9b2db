"""Engines by name: what has the blocks of a benchmark scored, in this process or by others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from xattn.registry import Registry

if TYPE_CHECKING:
    from xattn.benchmark.engine import Engine

engines: Registry[Engine] = Registry("engine", "xattn.benchmark.engines", "xattn.engines", named=True)


def engine_of(text: str | None, shard: str | None = None) -> Engine:
    """The engine of that name and parameters; without one `torchrun` where that has started this process.

    Args:
        text: as `"ray:workers=4"`.
        shard: of the command line; where it is given, this process is told its part by hand.
    """
    return engines.parse(text or ("torchrun" if shard is None and "RANK" in os.environ else "local"))
