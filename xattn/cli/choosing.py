"""Which methods the commands use, and which network each of them explains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xattn.cli import console
from xattn.errors import NotApplicableError, ParameterError

if TYPE_CHECKING:
    from xattn.explainer import Explainer
    from xattn.file_loop import Column, Network

# Which embedded network shows a method when no model is given: by its name, by what it serves, else the plain one.
_EMBEDDED = {
    "brnpa": "tiny-brnpa",
    "B-CNN and BR-NPA heads": "tiny-brnpa",
    "B-CNN heads": "tiny-bcnn",
    "vision transformers": "tiny-vit",
}
_EMBEDDED_ELSE = "tiny-cnn"


def asks_for_all(texts: Sequence[str]) -> bool:
    """Whether methods are asked for that need not all fit."""
    return any(text.strip().lower() == "all" for text in texts)


def choose_columns(
    texts: Sequence[str],
    *,
    parts: int | None,
    model: str | None,
    weights: str | None,
    head: str | None,
    resolution: str | None,
    device: str,
    given: Mapping[str, Any],
) -> list[Column]:
    """Turn names into methods and networks; everything that can be wrong with them is found here."""
    from xattn.cli.loading import load
    from xattn.device import find_device
    from xattn.explainers import applicable
    from xattn.file_loop import Column

    methods = chosen_methods(texts, parts if head is None else None)
    if parts is not None and head is None and not any(hasattr(m, "parts") for m in methods):
        raise ParameterError(f"--parts {parts}: none of the methods has parts; brnpa does.")
    if model is None:
        needed = {"--weights": weights, "--head": head, "--resolution": resolution}
        needed |= {f"--{name}": value for name, value in given.items()}
        if named := [option for option, value in needed.items() if value is not None]:
            hint = f" For a weights file that xattn wrote: --model {weights}" if weights and not head else ""
            raise ParameterError(f"{' and '.join(named)} needs --model.{hint}")
    networks: dict[str, Network] = {}
    columns = []
    for method in methods:
        name = model or _EMBEDDED.get(method.name) or _EMBEDDED.get(method.serves, _EMBEDDED_ELSE)
        if name not in networks:
            networks[name] = load(
                name, weights=weights, head=head, resolution=resolution, parts=parts, device=find_device(device),
                given=given,
            )  # fmt: skip
            _advise(networks[name])
        columns.append(Column(method, networks[name]))
    for column in columns:
        column.refused = applicable(column.method, column.network.spec)
        if column.refused is not None and not asks_for_all(texts):
            raise NotApplicableError(column.refused)
    return columns


def _advise(network: Network) -> None:
    """Warn of what a network does not say or does not know."""
    if network.random:
        console.warn(f"{network.name} has random weights, so its maps mean nothing; pass --weights DEFAULT or a file.")
    if network.spec.mean is None:
        console.warn(
            f"{network.name} does not say how its images are normalized; they are passed as they are, from 0 to 1. "
            "Pass --mean and --std if it was trained otherwise."
        )


def chosen_methods(texts: Sequence[str], parts: int | None) -> list[Explainer]:
    """Methods of the command line, each once; `--parts` goes to those that have parts and do not say how many."""
    from xattn.explainers import resolve

    methods: list[Explainer] = []
    for method in resolve(list(texts)):
        if parts is not None and getattr(method, "parts", parts) is None:
            method = dataclasses.replace(method, parts=parts)  # type: ignore[type-var]
        if method not in methods:
            methods.append(method)
    return methods
