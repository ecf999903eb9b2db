"""What methods and metrics make once for all of them on a recorded pass, and how: baselines above all."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from xattn.functional.baselines import Baseline, Replace
from xattn.trace import Trace

T = TypeVar("T")

kept: WeakKeyDictionary[Trace, dict[Hashable, Any]] = WeakKeyDictionary()
"""By trace and key; it goes with the trace."""


def once(trace: Trace, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gives, made at the first request for `key` and kept as long as the trace lives."""
    made = kept.setdefault(trace, {})
    if key not in made:
        made[key] = make()
    return made[key]


def replacement(trace: Trace, baseline: Baseline) -> Replace:
    """A baseline bound to the images of the pass; all metrics and methods share it."""
    spec = trace.spec
    return once(
        trace, ("baseline", baseline),
        lambda: baseline.prepare(trace.x, spec.mean, spec.std, lambda i: trace.generator(i, repr(baseline))),
    )  # fmt: skip
