"""xattn: which saliency method can you trust for your model, and models whose attention can be read directly.

>>> import xattn
>>> model = xattn.create_model("tiny-brnpa")  # doctest: +SKIP
>>> xattn.explain(model, "photo.jpg", "brnpa").overlay()  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live; imported on first use, so that `import xattn` costs nothing.
_PUBLIC = {
    "explain": "xattn.explaining",
    "Explainer": "xattn.explainer",
    "LayerExplainer": "xattn.explainer",
    "Explanation": "xattn.explanation",
    "save_explanation": "xattn.storage",
    "load_explanation": "xattn.storage",
    "record": "xattn.trace",
    "Trace": "xattn.trace",
    **dict.fromkeys(("Class", "Difference", "MultiLabel", "Scalar", "Similarity", "Target"), "xattn.targets"),
    **dict.fromkeys(("Box", "Region"), "xattn.placed_targets"),
    "ModelSpec": "xattn.spec",
    "infer_spec": "xattn.inspection",
    "Metric": "xattn.metric",
    "Watch": "xattn.watching",
    "create_model": "xattn.models",
    "convert": "xattn.models",
    "XattnError": "xattn.errors",
    "XattnWarning": "xattn.errors",
}

__all__ = [*sorted(_PUBLIC), "__version__"]

if TYPE_CHECKING:
    from xattn.errors import XattnError as XattnError
    from xattn.errors import XattnWarning as XattnWarning
    from xattn.explainer import Explainer as Explainer
    from xattn.explainer import LayerExplainer as LayerExplainer
    from xattn.explaining import explain as explain
    from xattn.explanation import Explanation as Explanation
    from xattn.inspection import infer_spec as infer_spec
    from xattn.metric import Metric as Metric
    from xattn.models import convert as convert
    from xattn.models import create_model as create_model
    from xattn.placed_targets import Box as Box
    from xattn.placed_targets import Region as Region
    from xattn.spec import ModelSpec as ModelSpec
    from xattn.storage import load_explanation as load_explanation
    from xattn.storage import save_explanation as save_explanation
    from xattn.targets import Class as Class
    from xattn.targets import Difference as Difference
    from xattn.targets import MultiLabel as MultiLabel
    from xattn.targets import Scalar as Scalar
    from xattn.targets import Similarity as Similarity
    from xattn.targets import Target as Target
    from xattn.trace import Trace as Trace
    from xattn.trace import record as record
    from xattn.watching import Watch as Watch


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'xattn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
