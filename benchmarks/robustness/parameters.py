"""Parameters of every registered method and metric: negative, zero, huge, infinite, and texts."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, Call, case, write_toml
from benchmarks.robustness.images import has_picture

VALUES = (
    "-1",
    "0",
    "-1e9",
    "1000000000",
    "99999999999999999999",
    "2147483648",
    "9223372036854775808",
    "1e308",
    "1e-320",
    "inf",
    "-inf",
    "nan",
    "many",
    "",
    "true",
    "²",
    "1_0",
    "0x10",
    "1e3",
    "[]",
    "\x1b[2J",
    "x" * 5_000,
    "9" * 5_000,
    "none",
    "None",
    "-0.0",
    "0.5",
)
USUAL = ("1", "2", "3", "0.1", "0.9", "7", "64", "100", "true", "false", "mean", "black", "grid", "max")  # some fit
MODELS = ("tiny-cnn", "tiny-brnpa", "tiny-bcnn", "tiny-vit")


def fields(kind: str) -> list[tuple[str, str]]:
    """Every registered name with each of its parameters."""
    from xattn.explainers import explainers
    from xattn.metrics import metrics

    registry = explainers if kind == "methods" else metrics
    found = []
    for name in registry.names():
        thing = registry.create(name)
        found += [(name, f.name) for f in dataclasses.fields(thing) if f.init]  # type: ignore[arg-type]
    return found


@case("parameters", 3)
def method(rng: random.Random, home: Path) -> Call:
    """One parameter of a method."""
    name, field = rng.choice(fields("methods"))
    value = rng.choice(VALUES if rng.random() < 0.7 else USUAL)
    model = "tiny-vit" if rng.random() < 0.2 else rng.choice(MODELS)
    photo = stock.photograph(home)
    words = ("explain", photo, "-m", f"{name}:{field}={value}", "--model", model, "--out", "out")
    return Call(words, ANY - {3}, has_picture, name=f"{name}:{field}={value[:20]!r}")


@case("parameters", 2)
def metric(rng: random.Random, home: Path) -> Call:
    """One parameter of a metric."""
    name, field = rng.choice(fields("metrics"))
    value = rng.choice(VALUES if rng.random() < 0.7 else USUAL)
    values = stock.configuration(
        str(stock.folder() / "data"), methods=["activation"], metrics=[f"{name}:{field}={value}"]
    )
    values["data"][0] |= {"mosaic": rng.choice([0, 0, 2]), "limit": 1}
    values["run"]["controls"] = False
    write_toml(home / "c.toml", values)
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), ANY - {3}, name=f"{name}:{field}={value[:20]!r}")


@case("parameters", 2)
def in_python(rng: random.Random, home: Path) -> Call:
    """One parameter given in Python, of any type."""
    kind = rng.choice(["methods", "metrics"])
    name, field = rng.choice(fields(kind))
    values = (
        -1,
        10**9,
        10**20,
        float("nan"),
        float("inf"),
        "many",
        None,
        [],
        {},
        b"x",
        True,
        0.5,
        object(),
        (1, 2),
        ["a"] * 10_000,
        -0.0,
    )
    value = rng.choice(values)

    def make() -> None:
        from xattn.explainers import explainers
        from xattn.metrics import metrics

        (explainers if kind == "methods" else metrics).create(name, **{field: value})

    return Call((), ANY - {3}, function=make, name=f"{name}({field}={str(value)[:20]})")


@case("parameters")
def inputs(rng: random.Random, home: Path) -> Call:
    """Images and targets given in Python that no model takes."""
    import torch

    images = (
        torch.zeros(0, 3, 64, 64),
        torch.zeros(3, 64, 64),
        torch.full((1, 3, 64, 64), float("nan")),
        torch.full((1, 3, 64, 64), float("inf")),
        torch.zeros(1, 3, 64, 64, dtype=torch.int64),
        torch.zeros(1, 3, 0, 64),
        torch.zeros(1, 3, 1, 1),
        torch.zeros(1, 3, 64, 64, dtype=torch.complex64),
        torch.zeros(1, 3, 64, 64).to_sparse(),
        "photo.jpg",
        None,
        [1],
    )
    targets = (
        None,
        None,
        None,
        -1,
        10**6,
        2**70,
        torch.tensor([0, 1]),
        torch.tensor([0.5]),
        "cat",
        [],
        torch.tensor([[0]]),
        True,
    )
    x, target = rng.choice(images), rng.choice(targets)
    name = rng.choice(["gradcam", "saliency", "brnpa", "occlusion", "rise", "lrp"])

    def call() -> None:
        import xattn

        model = xattn.create_model("tiny-cnn")
        xattn.explain(model, x, [name], target)

    shape = tuple(x.shape) if isinstance(x, torch.Tensor) else x
    return Call((), ANY - {3}, function=call, name=f"{name} {shape} target {str(target)[:20]}")
