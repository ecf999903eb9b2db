"""Facts about a model that nobody gave, found by experiment: what is proved, and what is only assumed."""

from __future__ import annotations

from xattn.inspection.declared import IMAGENET_MEAN, IMAGENET_STD
from xattn.inspection.inferring import facts_about, infer_spec

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "facts_about", "infer_spec"]
