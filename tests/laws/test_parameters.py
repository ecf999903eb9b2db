"""Every number that a method or metric takes has two ends, and what lies beyond them is one line, before any memory."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from xattn.errors import ParameterError
from xattn.explainers import explainers
from xattn.metrics import metrics
from xattn.registry import Registry
from xattn.schema import Range, hints_of

EVERYTHING: tuple[Registry[Any], ...] = (explainers, metrics)


def numbers() -> Iterator[Any]:
    """Registry, name, field and annotation of each number."""
    for registry in EVERYTHING:
        for name in registry.names():
            for field, hint in hints_of(registry.get(name)).items():
                kinds = {hint, *typing.get_args(hint), *(a for k in typing.get_args(hint) for a in typing.get_args(k))}
                if kinds & {int, float}:
                    yield pytest.param(registry, name, field, hint, id=f"{name}-{field}")


@pytest.mark.parametrize(("registry", "name", "field", "hint"), list(numbers()))
def test_numbers_have_two_ends(registry: Registry[Any], name: str, field: str, hint: Any) -> None:
    ends = [a for a in typing.get_args(hint)[1:] if isinstance(a, Range)]
    assert ends, "annotate the field with Range"
    assert ends[0].low is not None
    assert ends[0].high is not None
    for value in ("99999999999999999999", "-99999999999999999999", "1e308", "inf", "-inf", "nan"):
        with pytest.raises(ParameterError) as refused:
            registry.parse(f"{name}:{field}={value}")
        assert field in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize("registry", EVERYTHING, ids=lambda r: r.kind)
def test_names_and_defaults(registry: Registry[Any]) -> None:
    for name in registry.names():
        made = registry.create(name)
        assert made.name == name
        assert dataclasses.replace(made) == made  # the defaults lie within their own ends
