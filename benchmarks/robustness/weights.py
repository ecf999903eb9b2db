"""Weights files with one thing wrong: the container, the header, the tensors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, HOSTILE_TEXTS, REFUSED, Call, case, damage, deep, mutate, nasty, paths
from benchmarks.robustness.images import has_picture

EXPLAIN = ("-m", "gradcam", "--out", "out")
BAD = frozenset({REFUSED})
NO_FAILURES = ANY - {3}


def attempt(rng: random.Random, home: Path, file: str, name: str, statuses: frozenset[int] = NO_FAILURES) -> Call:
    """Give the file to a command that reads weights."""
    photo = stock.photograph(home)
    how = rng.choice(["model"] * 5 + ["weights"] * 2 + ["compare", "evaluate", "teacher", "python"])
    if how == "model":
        return Call(("explain", photo, "--model", file, *EXPLAIN), statuses, has_picture, name=name)
    if how == "weights":
        words = ("explain", photo, "--model", "tiny-cnn", "--weights", file, *EXPLAIN)
        return Call(words, NO_FAILURES, has_picture, name=f"--weights {name}")  # which read the tensors and no more
    if how == "compare":
        words = ("compare", photo, "-m", "gradcam", "--model", file, "--no-curves", "--out", "page.html")
        return Call(words, statuses, name=f"compare {name}")
    if how == "evaluate":
        return Call(("evaluate", file, "--data", str(stock.folder() / "data")), NO_FAILURES, name=f"evaluate {name}")
    if how == "teacher":
        words = ("train", "--data", "synthetic:length=16,size=32", "--backbone", "tiny-cnn", "--teacher", file, *QUICK)
        return Call(words, NO_FAILURES, name=f"teacher {name}")

    def read() -> None:
        import xattn

        xattn.create_model(file)

    return Call((), statuses, function=read, name=f"create_model {name}")


QUICK = (
    "--head",
    "linear",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--image-size",
    "32",
    "--out",
    "r",
    "-q",
    "-s",
    "tensorboard=false",
    "--accelerator",
    "cpu",
)


def rewritten(home: Path, header: Any, tensors: bytes, length: int | None = None) -> str:
    """Write a weights file; its name."""
    (home / "w.safetensors").write_bytes(stock.joined(header, tensors, length))
    return "w.safetensors"


def inner(header: dict[str, Any]) -> dict[str, Any]:
    """What xattn wrote into the metadata."""
    return json.loads(header["__metadata__"]["xattn"])


def outer(header: dict[str, Any], values: Any) -> dict[str, Any]:
    """The header with other values, given as a tree or as text."""
    text = values if isinstance(values, str) else json.dumps(values)
    return {**header, "__metadata__": {**header["__metadata__"], "xattn": text}}


@case("weights", 8)
def header_field(rng: random.Random, home: Path) -> Call:
    """One field of xattn's header replaced, removed or added."""
    header, tensors = stock.weights(rng.choice(["cnn", "brnpa"]))
    values, what = mutate(rng, inner(header))
    return attempt(rng, home, rewritten(home, outer(header, values), tensors), what)


@case("weights", 4)
def architecture(rng: random.Random, home: Path) -> Call:
    """One argument of the network replaced by a value that it cannot have."""
    header, tensors = stock.weights("brnpa")
    values = inner(header)
    name = rng.choice(["backbone", "head", "parts", "resolution", "circular", "classes"])
    numbers = (-1, 0, 10**9, 10**18, 2.5, True, "many", None, [], {}, float("nan"), 2**70)
    known = {"head": ("linear", "none", 1, ["bcnn"]), "circular": ("yes", 2, None), "resolution": ("medium", 1, None)}
    backbones = (
        "w.safetensors",
        "./w.safetensors",
        "os:abort",
        "os:getcwd",
        "torchvision.models:resnet18",
        "",
        7,
        [],
        {},
        ".:x",
    )
    values["architecture"][name] = rng.choice(backbones if name == "backbone" else known.get(name, numbers))
    what = f"{name} = {values['architecture'][name]!r}"
    return attempt(rng, home, rewritten(home, outer(header, values), tensors), what)


@case("weights", 2)
def specification(rng: random.Random, home: Path) -> Call:
    """One fact about the network replaced by something that is none."""
    header, tensors = stock.weights("cnn")
    values = inner(header)
    name = rng.choice([*values["spec"], "nope"])
    sizes = ([0, 0], [-5, 5], [10**6, 10**6], "big", [64], [64, 64, 64], [1.5, 2], 64, [True, True])
    values["spec"][name] = rng.choice(sizes) if name == "input_size" else nasty(rng)
    what = f"spec.{name} = {str(values['spec'][name])[:60]!r}"
    return attempt(rng, home, rewritten(home, outer(header, values), tensors), what)


@case("weights", 2)
def options(rng: random.Random, home: Path) -> Call:
    """Attributes of the attention that no file may set."""
    header, tensors = stock.weights("brnpa")
    values = inner(header)
    name = rng.choice(
        ["forward", "_forward_hooks", "__class__", "parts", "training", "refine", "seed", "__dict__", "a.b"]
    )
    given = {name: rng.choice(["x", {}, 5, [], True, "os:abort", -1])}
    values["architecture"]["options"] = rng.choice([given, given, given, [], "text", 5, None, [["forward", 1]]])
    what = f"options {values['architecture']['options']!r}"
    return attempt(rng, home, rewritten(home, outer(header, values), tensors), what)


@case("weights", 2)
def header_text(rng: random.Random, home: Path) -> Call:
    """xattn's header as a whole is no object, deep, long or not JSON."""
    header, tensors = stock.weights()
    text = rng.choice(
        [
            "",
            "[]",
            "5",
            "null",
            '"x"',
            "{",
            deep(100_000),
            deep(100_000, objects=True),
            deep(500),
            '{"spec": 5}',
            '{"architecture": ' + deep(50_000) + "}",
            '{"architecture": []}',
            '{"a": ' + "9" * 5_000 + "}",
            "NaN",
            "\ud800",
            json.dumps({"architecture": {"backbone": "x" * 100_000}}),
            *HOSTILE_TEXTS,
        ]
    )
    return attempt(rng, home, rewritten(home, outer(header, text), tensors), f"xattn header {text[:30]!r}", BAD)


@case("weights", 3)
def container(rng: random.Random, home: Path) -> Call:
    """The header of safetensors itself: its entries, or its metadata."""
    header, tensors = stock.weights()
    what = rng.choice(["entry", "metadata", "text", "length", "many", "names"])
    length = None
    if what == "entry":
        places = [p for p in paths(header) if p[0] != "__metadata__"]
        name = rng.choice(places)[0]
        entry, what = mutate(rng, {name: header[name]})
        header = {k: v for k, v in header.items() if k != name} | entry
    elif what == "metadata":
        header = {
            **header,
            "__metadata__": rng.choice([None, [], ["a"], "x", 5, {"xattn": 5}, {"xattn": None}, {"xattn": {}}, {}]),
        }
        what = f"metadata {header['__metadata__']!r}"
    elif what == "text":
        header = rng.choice(
            [deep(200_000), deep(200_000, objects=True), "{", "[]", "5", "", "{}" * 500, " " * 5_000, "\ud800"]
        )
        what = f"header {header[:20]!r}"
    elif what == "length":
        length = rng.choice([0, 1, 2, 2**63, 2**64 - 1, len(tensors) * 2, 100_000_001])
        what = f"header of {length} bytes"
    elif what == "many":
        header = header | {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
    else:
        text = rng.choice(["x" * 100_000, *HOSTILE_TEXTS])
        first = next(name for name in header if name != "__metadata__")
        header = {text if name == first else name: value for name, value in header.items()}
        what = f"tensor called {text[:20]!r}"
    return attempt(rng, home, rewritten(home, header, tensors, length), what)


@case("weights", 3)
def damaged(rng: random.Random, home: Path) -> Call:
    """Bytes of the file damaged."""
    header, tensors = stock.weights()
    data, what = damage(rng, stock.joined(header, tensors))
    (home / "w.safetensors").write_bytes(data)
    return attempt(rng, home, "w.safetensors", what)


@case("weights", 2)
def tensors(rng: random.Random, home: Path) -> Call:
    """Tensors of other types, shapes and values, or too few, or too many."""
    from safetensors.torch import load_file, save_file

    path = stock.folder() / "cnn.safetensors"
    state = load_file(path)
    metadata = stock.weights()[0]["__metadata__"]
    name = rng.choice(list(state))
    kinds = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.bool,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.complex64,
    ]
    what = rng.choice(["value", "type", "all types", "shape", "missing", "unexpected"])
    if what == "value":
        state[name] = torch.full_like(state[name].float(), rng.choice([float("nan"), float("inf"), 1e38, -1e38]))
    elif what == "type":
        state[name] = state[name].to(rng.choice(kinds))
    elif what == "all types":
        kind = rng.choice(kinds)
        state = {key: t.to(kind) for key, t in state.items()}
    elif what == "shape":
        state[name] = rng.choice(
            [state[name][None], state[name].flatten()[:1], torch.zeros(0), torch.zeros(()).clone()]
        )
    elif what == "missing":
        del state[name]
    else:
        state[rng.choice(["extra", "head.\x1b[2J", "x" * 5_000, "ranks.a"])] = torch.zeros(3)
    state = {key: t.contiguous() for key, t in state.items()}
    save_file(state, home / "w.safetensors", metadata)
    return attempt(rng, home, "w.safetensors", f"{what} of {name}")


@case("weights", 3)
def pickles(rng: random.Random, home: Path) -> Call:
    """Files of `torch.save`, damaged or of other things."""
    from safetensors.torch import load_file

    state = load_file(stock.folder() / "cnn.safetensors")
    name = next(n for n, tensor in state.items() if tensor.ndim > 1)
    contents: dict[str, Any] = {
        "good": state,
        "list": [state],
        "number": 5,
        "nested": {"state_dict": {"model": {"state_dict": state}}},
        "itself": None,
        "numbers by name": {"a": 5},
        "keys": {5: state[name], None: state[name]},
        "meta": {**state, name: state[name].to("meta")},
        "sparse": {**state, name: torch.atleast_2d(state[name]).to_sparse()},
        "complex": {**state, name: state[name].to(torch.complex64)},
        "huge view": {**state, name: torch.zeros(1).expand(1_000_000, 1_000_000)},
        "hard name": {"\x1b]0;owned\x07": state[name]},
        "parameter": {**state, name: torch.nn.Parameter(state[name])},
    }
    kind = rng.choice(list(contents))
    content = contents[kind]
    if kind == "itself":
        content = {}
        content["model"] = content
    file = home / f"w.{rng.choice(['pt', 'pth', 'ckpt', 'bin'])}"
    torch.save(content, file, _use_new_zipfile_serialization=rng.random() < 0.7)
    if rng.random() < 0.4:
        data, what = damage(rng, file.read_bytes())
        file.write_bytes(rng.choice([data, data, b"", b"text called weights", b"PK\x03\x04", b"\x80\x02."]))
        kind = f"{kind} {what}"
    return attempt(rng, home, file.name, f"torch {kind}", NO_FAILURES)
