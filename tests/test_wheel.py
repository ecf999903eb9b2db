"""The wheel: built, installed into an empty environment, it explains a photograph with one's own network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from xattn.errors import EXTRAS

ROOT = Path(__file__).parent.parent
CODE = """
import sys
import torch
from torch import nn

sys.modules.update(dict.fromkeys({modules!r}))  # what comes with an extra cannot be imported
import xattn

assert {home!r} in xattn.__file__, xattn.__file__

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.classifier = nn.Linear(8, 5)
    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

torch.manual_seed(0)
e = xattn.explain(Own(), {photo!r}, "gradcam", size=64, mean=0.5, std=0.5, classes=["a", "b", "c", "d", "e"])
e.overlay().save("own.png")
xattn.explain(xattn.create_model("tiny-brnpa"), {photo!r}, "brnpa").overlay().save("embedded.png")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network from a copy of what belongs to it."""
    pytest.importorskip("setuptools", reason="nothing that builds wheels is installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "xattn", "*.cfg", "*.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if files.returncode:
        pytest.skip("this is no checkout of git")
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*build, "--wheel-dir", str(out), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("xattn-*.whl")
    return path


def test_the_wheel_holds_weights_templates_and_types_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "xattn/py.typed" in names
    assert sum(name.startswith("xattn/models/weights/") for name in names) >= 4
    assert any(name.startswith("xattn/pages/templates/") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_it_explains_a_photograph_with_the_light_core(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    site = Path(paths["purelib"])
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # torch and the like are those that are here; the checkout, which is installed beside them, is not.
    (site / "here.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    modules = sorted({name for names in EXTRAS.values() for name in names} - {"huggingface_hub"})
    photo = str(ROOT / "examples" / "chelsea.jpg")
    code = CODE.format(modules=modules, home=str(home), photo=photo)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ran = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "own.png").stat().st_size > 1000
    assert (tmp_path / "embedded.png").stat().st_size > 1000
