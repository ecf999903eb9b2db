"""Metrics that score explanations, by name: `metrics.names()` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.registry import Registry

if TYPE_CHECKING:
    from xattn.metric import Metric

metrics: Registry[Metric] = Registry("metric", "xattn.metrics", "xattn.metrics", named=True)
