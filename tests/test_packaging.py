"""What is installed, what it needs, and that the README and the gate run the same tests."""

from __future__ import annotations

import ast
import configparser
import re
import sys
import tomllib
from pathlib import Path

import pytest

import xattn

ROOT = Path(__file__).parent.parent
# Names of modules whose distribution is called otherwise.
DISTRIBUTIONS = {
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
    "pytorch_grad_cam": "grad-cam",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def named(requirements: str) -> set[str]:
    """Distributions of a list of requirements."""
    return {re.split(r"[<>=!~;\[ ]", line)[0] for line in requirements.split("\n") if line and "%" not in line}


def third_party(folder: Path) -> set[str]:
    """Distributions that the modules of a folder import, at any level."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "xattn", "tests", "benchmarks"}
    return {DISTRIBUTIONS.get(name, name) for name in found}


def test_everything_imported_is_declared(config: configparser.ConfigParser) -> None:
    extras = config["options.extras_require"]
    required = named(config["options"]["install_requires"])
    optional = named(extras["timm"]) | named(extras["docs"]) | named(extras["metrics"])
    assert third_party(ROOT / "xattn") <= required | optional
    assert third_party(ROOT / "tests") <= required | optional | named(extras["test"])


def test_nothing_is_declared_that_is_not_imported(config: configparser.ConfigParser) -> None:
    through_lightning = {"tensorboard"}
    assert named(config["options"]["install_requires"]) <= third_party(ROOT / "xattn") | through_lightning


def test_version_has_one_source(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["version"] == "attr: xattn.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", xattn.__version__)


def test_license_and_type_marker_are_there(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "xattn" / "py.typed").exists()


def test_entry_point_exists(config: configparser.ConfigParser) -> None:
    from xattn.cli import main

    assert "xattn = xattn.cli:main" in config["options.entry_points"]["console_scripts"]
    assert callable(main)


def test_the_gate_runs_the_tests_as_the_readme_says() -> None:
    command = r"^\S*\.venv/bin/pytest\b.*$"
    gate = re.findall(command, (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(gate) == 1
    assert gate[0] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_gate_is_strict(config: configparser.ConfigParser) -> None:
    assert config["tool:pytest"]["filterwarnings"].split()[0] == "error"
    assert config["mypy"]["strict"] == "true"
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["line-length"] == 120
    assert {"D", "T20", "S101", "TID", "PTH"} <= set(ruff["lint"]["select"])
