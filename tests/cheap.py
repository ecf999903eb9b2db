"""Methods of many passes with as few of them as their tests need: name → the specification that tests run."""

from __future__ import annotations

CHEAP: dict[str, str] = {}


def cheap(method: str) -> str:
    """The specification to run in a test for a registered name."""
    return CHEAP.get(method, method)


CONTRASTS: set[str] = set()
"""Methods whose map depends on the logits of other classes by design."""
