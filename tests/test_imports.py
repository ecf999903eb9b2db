"""Imports point down and make no circle, the lower floors need torch, numpy and Pillow alone, `--help` none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "xattn"

# The floor of each module and package, the lowest first. A floor imports lower floors only; those of one line do not
# import each other. What is above `explaining` may need more than torch, numpy and Pillow.
ORDER = (
    ("__init__", "errors"),
    ("schema", "files", "outputs", "device"),
    ("inputs", "labels", "looks", "places", "statuses"),
    ("registry",),
    ("score", "spec"),
    ("functional",),
    ("data",),
    ("calls", "running"),
    ("attention_taps",),
    ("taps",),
    ("targets",),
    ("trace", "placed_targets"),
    ("doubts", "explanation", "inspection"),
    ("explainer", "metric"),
    ("explainers", "metrics", "models"),
    ("explaining", "storage"),
    ("file_loop",),
    ("benchmark", "training", "viz"),
    ("audit",),
    ("pages", "watching"),
    ("cli",),
    ("__main__",),
)
FLOORS = {name: floor for floor, names in enumerate(ORDER) for name in names}
# The two that reach up: the picture of an explanation, and the one that a notebook shows.
ALLOWED = {
    ("xattn.explanation", "overlay", "xattn.viz.render"),
    ("xattn.explanation", "_repr_png_", "xattn.viz.render"),
}
LIGHT = {"torch", "numpy", "PIL"}
MODULES = sorted(p for p in ROOT.rglob("*.py"))


def imports(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.Import | ast.ImportFrom]]:
    """Each import that can run, with the function that it is in; those under TYPE_CHECKING never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield inside, node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []), inside)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, inside or node.name)
        else:
            yield from imports(node, inside)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def exported(package: str) -> dict[str, str]:
    """What the `__init__` of a package hands on from its modules, also lazily: name and module."""
    path = ROOT.parent.joinpath(*package.split("."), "__init__.py")
    nodes = ast.walk(tree_of(path)) if path.exists() else ()
    return {a.name: n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names}


def names_of(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Full names of the modules that an import statement needs, those behind the names of a package too."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    module = node.module or ""
    if not module.startswith("xattn"):
        return {module}
    below = {alias.name: f"{module}.{alias.name}" for alias in node.names}
    files = set(map(module_name, MODULES))
    return {full if full in files else exported(module).get(name, module) for name, full in below.items()}


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports, less what is allowed: the function (empty at module level) and the name of the module."""
    for inside, node in imports(tree_of(path)):
        yield from ((inside, n) for n in sorted(names_of(node)) if (module_name(path), inside, n) not in ALLOWED)


def module_name(path: Path) -> str:
    return ".".join(("xattn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def top(name: str) -> str:
    """The module or package right below `xattn` that a full name is in."""
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_floor(path: Path) -> None:
    assert place(path) in FLOORS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = place(path)
    for inside, name in imported(path):
        if name.split(".")[0] == "xattn" and top(name) != here:
            where = f"{name_of(path)}, {inside or 'at module level'}"
            assert FLOORS[top(name)] < FLOORS[here], f"{where}: {name} is not below"


def test_only_the_pictures_of_an_explanation_reach_up() -> None:
    tree = tree_of(ROOT / "explanation.py")
    found = {("xattn.explanation", inside, name) for inside, node in imports(tree) for name in names_of(node)}
    assert found >= ALLOWED


def test_no_import_is_relative() -> None:
    nodes = [(path, node) for path in MODULES for _, node in imports(tree_of(path))]
    assert [name_of(path) for path, node in nodes if isinstance(node, ast.ImportFrom) and node.level] == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph that a walk in depth meets, each from the node where it closes."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
        elif node not in done:
            for after in sorted(graph.get(node, ())):
                walk(after, [*trail, node])
            done.add(node)

    for node in graph:
        walk(node, [])
    return found


def test_no_circle_of_imports() -> None:
    graph = {module_name(p): {name for _, name in imported(p) if name.startswith("xattn")} for p in MODULES}
    assert [" -> ".join(circle) for circle in circles(graph)] == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("path", [p for p in MODULES if FLOORS[place(p)] <= FLOORS["explaining"]], ids=name_of)
def test_lower_floors_need_torch_numpy_and_pillow_alone(path: Path) -> None:
    needed = {name.split(".")[0] for inside, name in imported(path) if not inside}
    foreign = needed - set(sys.stdlib_module_names) - LIGHT - {"xattn"}
    assert not foreign, f"{name_of(path)} imports {', '.join(sorted(foreign))} at module level"


def test_an_import_in_a_try_or_class_counts() -> None:
    code = """
try:
    import a
except ImportError:
    import b
class C:
    import c
    def m(self):
        import h
def f():
    import d
if TYPE_CHECKING:
    import e
else:
    import g
"""
    found = {(inside, alias.name) for inside, node in imports(ast.parse(code)) for alias in node.names}
    assert found == {("", "a"), ("", "b"), ("", "c"), ("m", "h"), ("f", "d"), ("", "g")}


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
