"""Names for things: a registry maps a forgiving name to a factory, in this package and in others.

Another distribution adds an entry by declaring an entry point in the group of the registry, for example
``[project.entry-points."xattn.explainers"] mymethod = "mypackage.explainers:MyMethod"``.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from xattn.errors import ParameterError, unknown
from xattn.labels import Label

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# A bracket that names a source: by its year or its number in arXiv. It may hold brackets itself.
_SOURCE = re.compile(r"\s*\(((?:[^()]|\([^()]*\))*(?:\b(?:19|20)\d\d\b|arXiv:)(?:[^()]|\([^()]*\))*)\)")


def canonical(name: str) -> str:
    """Spelling under which names are compared: lower case, `++` as `pp`, no separators.

    >>> canonical("Grad-CAM++") == canonical("gradcam_pp") == canonical("GradCAMpp")
    True
    """
    return "".join(c for c in name.lower().replace("++", "pp") if c.isalnum())


def first_sentence(thing: Any) -> str:
    """The first sentence of a docstring, without the paper in brackets at its end.

    >>> def f():
    ...     '''Grad-CAM: channels by mean gradient, then ReLU (Selvaraju et al. 2017, arXiv:1610.02391, eqs. 1-2).
    ...
    ...     More.
    ...     '''
    >>> first_sentence(f)
    'Grad-CAM: channels by mean gradient, then ReLU'
    """
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    paragraph = _SOURCE.sub("", paragraph)
    return re.split(r"(?<=[^.\s]{2})\.(?:\s|$)", paragraph)[0].rstrip(".")


def paper_of(thing: Any) -> str:
    """The reference that a class names in `paper`, else the bracket with a source in its first paragraph."""
    return str(getattr(thing, "paper", "")) or _source(thing)


def _source(thing: Any) -> str:
    """The bracket with a source in the first paragraph of a docstring."""
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    match = _SOURCE.search(paragraph)
    return match[1] if match else ""


class Registry(Generic[T]):
    """A map from names to factories of `T`.

    Args:
        kind: what an entry is, in the singular, for messages ("method").
        package: package whose modules register entries; imported at the first look-up.
        group: group of entry points that other distributions use.
        named: a class that is registered gets its name as its attribute `name` and the source in its docstring as
            `paper`, unless it has its own.
    """

    def __init__(self, kind: str, package: str, group: str, *, named: bool = False) -> None:
        self.kind = kind
        self.package = package
        self.group = group
        self.named = named
        self._factories: dict[str, Callable[..., T]] = {}
        self._display: dict[str, str] = {}
        self._discovered = False

    def register(self, name: str, *aliases: str) -> Callable[[F], F]:
        """Decorator that enters a factory under a name and its aliases. A name used twice raises."""

        def enter(factory: F) -> F:
            for key in (canonical(name), *map(canonical, aliases)):
                if self._factories.get(key, factory) is not factory:
                    raise ParameterError(f"{self.kind} '{name}' is registered twice; choose another name.")
                self._factories[key] = factory
            self._display[canonical(name)] = name
            if self.named and isinstance(factory, type):
                for attribute, value in (("name", name), ("paper", _source(factory))):
                    if value and attribute not in vars(factory):
                        setattr(factory, attribute, value)
            return factory

        return enter

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # set first: the modules imported here may look names up themselves
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self.group):
            if canonical(point.name) not in self._factories:
                self.register(point.name)(point.load())

    def get(self, name: str) -> Callable[..., T]:
        """The factory called `name`.

        Raises:
            UnknownNameError: with the nearest known name.
        """
        self._discover()
        try:
            return self._factories[canonical(name)]
        except KeyError:
            raise unknown(self.kind, name, self.names()) from None

    def names(self) -> list[str]:
        """All names as they are written, sorted; aliases are left out."""
        self._discover()
        return sorted(self._display.values())

    def aliases(self, name: str) -> list[str]:
        """Other names of an entry, as they are compared."""
        factory = self.get(name)
        return [key for key, value in self._factories.items() if value is factory and key != canonical(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._discover()
        return isinstance(name, str) and canonical(name) in self._factories

    def create(self, name: str, **parameters: Any) -> T:
        """Call the factory called `name`; an unknown parameter raises with the nearest one.

        Raises:
            UnknownNameError: for the name or a parameter.
        """
        factory = self.get(name)
        if dataclasses.is_dataclass(factory):
            known = [f.name for f in dataclasses.fields(factory) if f.init]
            for parameter in parameters:
                if parameter not in known:
                    raise unknown(f"parameter of {self.kind} '{name}'", parameter, known)
        return factory(**parameters)

    def parse(self, text: str) -> T:
        """Create from the text of a command line: `name` or `name:parameter=value,parameter=value`.

        Values are read by the types of the dataclass fields.
        """
        label = Label.parse(text)
        factory = self.get(label.name)
        if not label.settings:
            return self.create(label.name)
        hints = typing.get_type_hints(factory)
        if dataclasses.is_dataclass(factory):  # not the class variables
            hints = {f.name: hints[f.name] for f in dataclasses.fields(factory) if f.init}
        parameters: dict[str, Any] = {}
        for key, value in label.parameters(self.kind).items():
            if key not in hints:
                raise unknown(f"parameter of {self.kind} '{label.name}'", key, [h for h in hints if h != "return"])
            parameters[key] = _read(value, hints[key], f"{self.kind} '{label.name}': {key}")
        return self.create(label.name, **parameters)


def _read(value: str, hint: Any, what: str) -> Any:
    """Read the text of a value by its type: bool, int, float, str, Literal or an optional of these."""
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        if value not in options:
            raise ParameterError(f"{what} must be one of {', '.join(map(str, options))} but got '{value}'.")
        return value
    kinds = options or [hint]
    if len(options) < len(typing.get_args(hint)) and value.lower() == "none":
        return None
    if bool in kinds:
        if value.lower() in ("true", "yes", "1"):
            return True
        if value.lower() in ("false", "no", "0"):
            return False
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(value)
            except ValueError:
                continue
    choices = [choice for k in kinds if typing.get_origin(k) is typing.Literal for choice in typing.get_args(k)]
    if str in kinds or value in choices:
        return value
    words = [f"one of {', '.join(map(str, choices))}"] if choices else []
    words += [getattr(k, "__name__", str(k)) for k in kinds if typing.get_origin(k) is not typing.Literal]
    names = " or ".join(words)
    raise ParameterError(f"{what} must be {names} but got '{value}'.")
