"""Files that try to run something when they are read: each would leave a canary if it succeeded."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, CANARY, REFUSED, Call, Outcome, case, write_toml
from benchmarks.robustness.recipes import recipe
from benchmarks.robustness.results import copied, harmless
from benchmarks.robustness.weights import EXPLAIN, QUICK, inner, outer, rewritten

REFUSE = frozenset({REFUSED})
FACTORIES = (
    "evil:build",
    "evil:CANARY_AT_IMPORT",
    "evil",
    "package.evil:build",
    ".:evil",
    "evil:build:x",
    "./evil.py:build",
    "evil.py",
)


def plant(home: Path) -> None:
    """Modules in the working folder which leave a canary when they are imported."""
    code = f"open('{CANARY}-imported', 'w').close()\ndef build(*a, **k):\n    open('{CANARY}-called', 'w').close()\n"
    (home / "package").mkdir()
    (home / "package" / "__init__.py").write_text("")
    for path in ("evil.py", "package/evil.py"):
        (home / path).write_text(code)


def readers(rng: random.Random, home: Path, file: str) -> tuple[str, ...]:
    """A command that reads weights."""
    photo = stock.photograph(home)
    return rng.choice(
        [
            ("explain", photo, "--model", file, *EXPLAIN),
            ("explain", photo, "--model", "tiny-brnpa", "--weights", file, *EXPLAIN),
            ("compare", photo, "-m", "gradcam", "--model", file, "--no-curves", "--out", "page.html"),
            ("doctor", photo, "--model", file),
            ("evaluate", file, "--data", str(stock.folder() / "data")),
            ("train", "--data", "synthetic:length=16,size=32", "--backbone", "tiny-cnn", "--teacher", file, *QUICK),
            ("train", "--data", "synthetic:length=16,size=32", "--backbone", "tiny-cnn", "--start", file, *QUICK),
        ]
    )


@case("hostile", 3)
def factory_in_weights(rng: random.Random, home: Path) -> Call:
    """The header of weights names a factory."""
    plant(home)
    header, tensors = stock.weights("brnpa")
    values = inner(header)
    name = rng.choice(FACTORIES)
    place = rng.choice(["backbone", "backbone", "backbone", "head", "resolution"])
    values["architecture"][place] = name
    words = readers(rng, home, rewritten(home, outer(header, values), tensors))
    return Call(words, ANY | {1}, name=f"{place} = {name}")


@case("hostile")
def abort_in_weights(rng: random.Random, home: Path) -> Call:
    """The header of weights names a function of the standard library."""
    header, tensors = stock.weights("brnpa")
    values = inner(header)
    values["architecture"]["backbone"] = name = rng.choice(
        ["os:abort", "sys:exit", "os:getpid", "os:fork", "signal:pause", "antigravity:x"]
    )
    return Call(readers(rng, home, rewritten(home, outer(header, values), tensors)), ANY - {3} | {1}, name=name)


@case("hostile")
def options_in_weights(rng: random.Random, home: Path) -> Call:
    """The header of weights sets attributes of the network: refused."""
    header, tensors = stock.weights("brnpa")
    values = inner(header)
    name = rng.choice(
        ["forward", "_forward_hooks", "__class__", "_call_impl", "training", "register_forward_hook", "__dict__"]
    )
    values["architecture"]["options"] = {name: rng.choice([{}, "x", False, 5])}
    photo = stock.photograph(home)
    words = ("explain", photo, "--model", rewritten(home, outer(header, values), tensors), *EXPLAIN)
    return Call(words, REFUSE, name=f"options {values['architecture']['options']}")


class Trap:
    """Leaves a canary when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (f"{CANARY}-unpickled",)


@case("hostile", 2)
def pickled(rng: random.Random, home: Path) -> Call:
    """Weights, or what is called so, that are a pickle with code."""
    file = home / f"w.{rng.choice(['pt', 'pth', 'bin', 'ckpt', 'safetensors'])}"
    content: Any = rng.choice([Trap(), {"state_dict": Trap()}, {"a": torch.zeros(1), "b": Trap()}])
    how = rng.choice(["torch", "pickle", "legacy"])
    if how == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=rng.choice([0, 2, 4])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    return Call(readers(rng, home, file.name), REFUSE | {1}, name=f"{how} {file.name}")


@case("hostile", 3)
def manifest(rng: random.Random, home: Path) -> Call:
    """A result folder whose manifest names a factory, weights or folders elsewhere, read with panels."""
    plant(home)
    run = copied(home)
    values = json.loads((run / "manifest.json").read_text())
    what = rng.choice(["name", "name", "weights", "source", "source module", "label"])
    model, data = values["config"]["models"][0], values["config"]["data"][0]
    if what == "name":
        model["name"] = rng.choice([*FACTORIES, "os:abort"])
        model["label"] = "tiny-cnn"
    elif what == "weights":
        header, tensors = stock.weights()
        about = inner(header)
        about["architecture"]["backbone"] = "evil:build"
        model["name"] = str(home / rewritten(home, outer(header, about), tensors))
        model["label"] = "tiny-cnn"
    elif what == "source":
        secret = home / "target"
        shutil.copytree(stock.folder() / "data", secret)
        data["source"] = rng.choice([str(secret), "../target", "$HOME", "run/../target", "/etc"])
    elif what == "source module":
        data["source"] = rng.choice(["evil:build", "package.evil:build,root=x", "csv:/etc,table=passwd"])
    else:
        model["label"] = "<script>document.title='OWNED'</script>"
    (run / "manifest.json").write_text(stock.signed(values))
    words = ("report", "run", "--out", "rep", "--panels", "1", "--resamples", "30", "-q")
    return Call(words, ANY - {3}, outside, name=f"manifest {what}")


def outside(home: Path, outcome: Outcome) -> str:
    """The report shows no image that does not lie in its folder."""
    panels = list((home / "rep").rglob("panels/*"))
    return f"reads outside of its folder: {panels[0].name}" if panels else pages(home)


def pages(home: Path) -> str:
    """No page has a script but its own."""
    text = "".join(path.read_text("utf-8", "replace") for path in home.rglob("*.html"))
    return "a page holds a payload" if "<script>document.title" in text or "<img src=x onerror" in text else ""


@case("hostile", 2)
def payloads(rng: random.Random, home: Path) -> Call:
    """Texts in part files that a page, a table or a terminal would run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = copied(home)
    name = rng.choice(["dataset", "model", "image", "method", "metric", "column", "note"])
    text = rng.choice(
        [
            "<script>document.title='OWNED'</script>",
            "<img src=x onerror=alert(1)>",
            '"><script>document.title=1</script>',
            '=HYPERLINK("x")',
            "\x1b]0;owned\x07",
            "\\input{/etc/passwd}",
            "[click](javascript:alert(1))",
            "</script><script>document.title=1",
        ]
    )
    for path in sorted(run.glob("parts/*/block-*.parquet")):
        table = pq.read_table(path, partitioning=None)
        metadata = table.schema.metadata
        changed = table.set_column(table.column_names.index(name), name, pa.array([text] * table.num_rows))
        stock.write_part(path, changed, metadata, old=rng.random() < 0.3)
    return Call(("report", "run", "--out", "rep", *stock.BRIEF), ANY - {3}, harmless, name=f"{name} {text[:20]!r}")


@case("hostile", 2)
def titles(rng: random.Random, home: Path) -> Call:
    """Names of files and titles that a page would run."""
    (home / "p").mkdir()
    names = ["<img src=x onerror=alert(1)>.jpg", "\"onload=alert(1) x='.jpg", "<script>document.title=1<script>.jpg"]
    stock.photograph(home / "p", rng.choice(names))
    title = rng.choice(
        ["<script>document.title='OWNED'</script>", "</title><script>document.title=1</script>", "{{7*7}}"]
    )
    words = (
        "compare",
        "p",
        "-m",
        "gradcam",
        "--model",
        "tiny-cnn",
        "--no-curves",
        "--out",
        "page.html",
        "--title",
        title,
    )
    return Call(words, frozenset({0}), lambda home, _: pages(home), name=title[:30])


@case("hostile", 2)
def in_recipes(rng: random.Random, home: Path) -> Call:
    """A recipe or a configuration that names a module, or goes out of its folder, by what it reads."""
    plant(home)
    header, tensors = stock.weights("brnpa")
    about = inner(header)
    about["architecture"]["backbone"] = "evil:build"
    file = rewritten(home, outer(header, about), tensors)
    if rng.random() < 0.5:
        values = recipe()
        values["distill" if rng.random() < 0.5 else "model"] |= {rng.choice(["teacher", "start"]): file}
        write_toml(home / "c.toml", values)
        return Call(("train", "c.toml", "-q"), ANY - {3}, name="recipe")  # it may start from the tensors
    values = stock.configuration(str(stock.folder() / "data"))
    values["models"] = [{"name": file}]
    write_toml(home / "c.toml", values)
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), REFUSE, name="configuration")


@case("hostile", 2)
def links(rng: random.Random, home: Path) -> Call:
    """Links planted where output or temporary files go: what they point to stays."""
    victim = home / "victim"
    victim.write_text("precious")
    run = copied(home)
    part = next(run.glob("parts/*/block-*.parquet"))
    names = [".manifest.json.tmp", f".manifest.json.{os.getpid()}", f".{part.name}.{os.getpid()}", f".{part.name}.tmp"]
    for name in names:
        for folder in (run, part.parent):
            (folder / name).symlink_to(victim)
    part.unlink()
    values = stock.configuration(str(stock.folder() / "data"), methods=["gradcam", "activation", "saliency"])
    write_toml(home / "c.toml", values)
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), ANY, unharmed, name="links")


def unharmed(home: Path, outcome: Outcome) -> str:
    """The file that the links point to is as it was."""
    return "" if (home / "victim").read_text() == "precious" else "wrote through a link"
