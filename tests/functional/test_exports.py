"""`xattn.functional` exports its formulas by name, each of them once and from where it is defined."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import xattn.functional as F


@pytest.mark.parametrize("name", F.__all__)
def test_a_name_is_the_formula_of_its_module(name: str) -> None:
    module = importlib.import_module(f"xattn.functional.{F._HOMES[name]}")
    assert getattr(F, name) is getattr(module, name)
    assert not inspect.ismodule(getattr(F, name))
    if inspect.isfunction(getattr(F, name)):
        assert getattr(F, name).__module__ == module.__name__
        assert inspect.getdoc(getattr(F, name))


def test_every_module_is_there_and_none_is_hidden_by_a_formula() -> None:
    modules = {m.name for m in pkgutil.iter_modules(F.__path__)}
    assert modules == {*F._FORMULAS}
    assert modules.isdisjoint(F.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gradkam'"):
        F.gradkam  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, xattn.functional; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
