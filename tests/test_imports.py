"""Imports point down, the lower floors need torch, numpy and Pillow alone, and `xattn --help` needs none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "xattn"

# Floor of each top-level name inside the package. A floor imports lower floors only; see also SAME_FLOOR.
FLOORS = {
    "device": 0,
    "errors": 0,
    "files": 0,
    "labels": 0,
    "looks": 0,
    "registry": 0,
    "schema": 0,
    "functional": 1,
    "spec": 1,
    "score": 1,
    "attention_taps": 2,
    "trace": 2,
    "inspection": 2,
    "explanation": 2,
    "explainer": 2,
    "shared": 2,
    "metric": 2,
    "explainers": 3,
    "metrics": 3,
    "models": 3,
    "data": 3,
    "viz": 4,
    "training": 4,
    "benchmark": 4,
    "pages": 5,
    "cli": 6,
}
SAME_FLOOR = {0, 1, 2}  # the four packages of floor 3 and those of floor 4 do not import each other
LIGHT = {"torch", "numpy", "PIL"}
MODULES = sorted(p for p in ROOT.rglob("*.py"))


def module_level(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting.extend(ast.iter_child_nodes(node))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports at module level."""
    names: set[str] = set()
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"xattn.{a.name}" for a in node.names} if module == "xattn" else {module}
    return names


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_floor(path: Path) -> None:
    assert place(path) in {*FLOORS, "__init__", "__main__"}


@pytest.mark.parametrize("path", [p for p in MODULES if place(p) in FLOORS], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here, floor = place(path), FLOORS[place(path)]
    for name in imported(path):
        if not name.startswith("xattn."):
            continue
        there = name.split(".")[1]
        if there in ("__version__", here):
            continue
        allowed = FLOORS[there] < floor or (FLOORS[there] == floor and floor in SAME_FLOOR)
        assert allowed, f"{name_of(path)} (floor {floor}) imports {name} (floor {FLOORS[there]})"


@pytest.mark.parametrize("path", [p for p in MODULES if FLOORS.get(place(p), 0) <= 3], ids=name_of)
def test_lower_floors_need_torch_numpy_and_pillow_alone(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - LIGHT - {"xattn"}
    assert not foreign, f"{name_of(path)} imports {', '.join(sorted(foreign))} at module level"


def test_an_import_in_a_try_or_class_counts() -> None:
    code = "try:\n    import a\nexcept ImportError:\n    import b\nclass C:\n    import c\n"
    code += "def f():\n    import d\nif TYPE_CHECKING:\n    import e\nelse:\n    import g\n"
    assert {alias.name for node in module_level(ast.parse(code)) for alias in node.names} == {"a", "b", "c", "g"}


def loaded_after(code: str) -> set[str]:
    """Names of the modules that are loaded after running `code` in a fresh interpreter."""
    tail = "\nimport sys\nprint('LOADED', *sorted(m.split('.')[0] for m in sys.modules), flush=True)"
    run = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("LOADED")[2].split())


HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "pyarrow", "lightning", "timm", "safetensors", "scipy"}


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["list", "scores", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"from xattn.cli import app\napp({arguments!r}, standalone_mode=False)"
    assert loaded_after(code).isdisjoint(HEAVY)


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import xattn\nimport xattn.explainers, xattn.models, xattn.data").isdisjoint(HEAVY - {"numpy"})


def test_numeric_core_imports_without_adapters() -> None:
    code = "import xattn\nfor name in xattn.__all__:\n    getattr(xattn, name)"
    assert loaded_after(code).isdisjoint({"torchvision", "timm", "matplotlib", "pyarrow", "lightning"})
