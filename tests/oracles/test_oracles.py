"""Each method against its oracle: a loop in float64 that was derived from the paper anew."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import typing
import warnings

import pytest
import torch
from torch import nn

import tests.oracles
from tests import tiny_models as tiny
from tests.oracles.naive import REPLICAS, Replica
from tests.oracles.network import Case
from xattn.explainers import explainers
from xattn.explaining import explain

for module in pkgutil.iter_modules(tests.oracles.__path__):
    if module.name.startswith("naive_"):  # the oracles of a family each
        importlib.import_module(f"tests.oracles.{module.name}")

# Not square, so that swapped axes show.
IMAGES = tiny.images(2, 16, 24, seed=3)
TARGETS = (2, 1)  # classes for which no map is all zero
SEEDS = (11, 12)


@functools.cache
def network(name: str) -> nn.Module:
    return getattr(tiny, name)().double()


@functools.cache
def case(name: str, layer: str | None, i: int) -> Case:
    return Case(network(name), IMAGES[i].double().numpy(), TARGETS[i], layer, SEEDS[i])


def places(replica: Replica) -> list[tuple[str, str | None]]:
    """The networks and layers on which an oracle is run."""
    if replica.networks is not None:
        return [(name, None) for name in replica.networks]
    if replica.method == "bcnn":
        return [("tiny_bcnn", None)]
    if replica.method == "part-cam":
        return [("tiny_bcnn", None), ("tiny_brnpa", None)]
    found: list[tuple[str, str | None]] = [("tiny_cnn", None), ("tiny_functional", None)]
    if replica.method == "brnpa":
        return [*found, ("tiny_brnpa", None), ("tiny_cnn", "conv3")]
    if "layer" in {f.name for f in dataclasses.fields(explainers.get(replica.method))} and replica.method != "cam":
        found.append(("tiny_cnn", "conv3"))  # signed features, and a gradient that varies over the cells
    return found


CASES = [(replica, *place) for replica in REPLICAS for place in places(replica)]


def label(value: object) -> str | None:
    if isinstance(value, Replica):
        return ":".join([value.method, ",".join(f"{k}={v}" for k, v in value.parameters.items())])
    return None


@pytest.mark.parametrize(("replica", "model", "layer"), CASES, ids=label)
def test_method_equals_its_oracle(replica: Replica, model: str, layer: str | None) -> None:
    parameters = replica.parameters | ({"layer": layer} if layer else {})
    method = explainers.create(replica.method, **parameters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Explanation.status")
        found = explain(network(model), IMAGES.double(), method, list(TARGETS), spec=network(model).spec, seeds=SEEDS)
    for i in range(2):
        expected = torch.from_numpy(replica.oracle(case(model, layer, i), **replica.parameters))
        assert expected.abs().max() > 0
        torch.testing.assert_close(found.maps[i, 0], expected, rtol=1e-8, atol=1e-10)


def test_every_method_has_an_oracle() -> None:
    assert {replica.method for replica in REPLICAS} == set(explainers.names())


@pytest.mark.parametrize("name", explainers.names())
def test_every_option_has_an_oracle(name: str) -> None:
    """Each value of a choice, and a value of each number, other than the default, where xattn itself computes."""
    kind = explainers.get(name)
    if kind.computed_by != "xattn":
        return
    hints = typing.get_type_hints(kind)
    covered = {(k, v) for replica in REPLICAS if replica.method == name for k, v in replica.parameters.items()}
    for option in dataclasses.fields(kind):
        if option.name == "layer":
            continue
        hint = hints[option.name]
        choices = (True, False) if hint is bool else typing.get_args(hint) if typing.get_origin(hint) else ()
        choices = choices if typing.get_origin(hint) is typing.Literal or hint is bool else ()
        for choice in choices:
            assert (option.name, choice) in covered
        assert any(k == option.name and v != option.default for k, v in covered)
