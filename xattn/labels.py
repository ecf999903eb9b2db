"""What methods and metrics are called, name and parameters as one value, and names in paths and in sentences."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xattn.errors import ParameterError

TOLD = {"told": True}
"""Metadata of a parameter that labels tell also where it is the default, since scores are not compared across it."""


@dataclass(frozen=True, order=True)
class Label:
    """A registered name and the parameters that are not the default.

    Args:
        name: as registered.
        settings: the parameters as text, such as `"steps=8,baseline=black"`.

    >>> label = Label.parse("deletion:steps=8,baseline=black")
    >>> str(label), label.short, label.parameters()
    ('deletion:steps=8,baseline=black', 'deletion (steps=8,baseline=black)', {'steps': '8', 'baseline': 'black'})
    """

    name: str
    settings: str = ""

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read the long form; parameters are read by `parameters`, so that any text has a name."""
        name, _, settings = text.partition(":")
        return cls(name.strip(), settings.strip())

    @classmethod
    def of(cls, thing: Any) -> Label:
        """The label of a method or metric; parameters that do not change the result, such as `chunk`, are left out."""
        return cls(thing.name, ",".join(f"{name}={value}" for name, value in changed(thing).items()))

    def __str__(self) -> str:
        """The long form, which configurations and tables use and `parse` reads."""
        return f"{self.name}:{self.settings}" if self.settings else self.name

    @property
    def short(self) -> str:
        """The form for headings: parameters in brackets."""
        return f"{self.name} ({self.settings})" if self.settings else self.name

    def parameters(self, kind: str = "label") -> dict[str, str]:
        """The parameters by name.

        Args:
            kind: what messages call it.

        Raises:
            ParameterError: for a part that is not `parameter=value`.
        """
        items = [[part.strip() for part in item.partition("=")] for item in self.settings.split(",") if self.settings]
        for name, equals, _ in items:
            if not equals:
                raise ParameterError(f"{kind} '{self.name}': expected parameter=value but got '{name}'.")
        return {name: value for name, _, value in items}


def label_of(thing: Any) -> str:
    """Label of a method or metric in tables and row keys, in its long form."""
    return str(Label.of(thing))


def changed(thing: Any) -> dict[str, Any]:
    """The parameters of a method or metric that change the result and are not the default, or are told always."""
    fields = [f for f in dataclasses.fields(thing) if f.init and f.compare] if dataclasses.is_dataclass(thing) else []
    values = {f.name: getattr(thing, f.name) for f in fields}
    return {f.name: values[f.name] for f in fields if values[f.name] != _default(f) or f.metadata.get("told")}


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def file_stems(methods: Sequence[Any]) -> list[str]:
    """Names for files: that of the method, with its parameters where two share it."""
    counts = Counter(method.name for method in methods)
    stems = []
    for method in methods:
        settings = [slug(f"{key}-{value}") for key, value in changed(method).items()]
        stems.append("-".join([slug(method.name), *(settings if counts[method.name] > 1 else ())]))
    return stems


def slug(text: str, limit: int = 100) -> str:
    """A name as part of a path: letters, digits and `-_.+`, no dot at its ends, cut with a digest where it is long.

    >>> slug("tiny-imagenet, across models"), slug("../../etc"), len(slug("a" * 10**5))
    ('tiny-imagenet-across-models', 'etc', 100)
    """
    name = "-".join("".join(c if c.isalnum() or c in "-_.+" else " " for c in text).split()).strip(".-") or "unnamed"
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return name.encode()[: limit - 9].decode(errors="ignore") + f"-{digest}"


def listing(names: Sequence[str], most: int | None = None) -> str:
    """Names in a sentence; with `most`, of a list that is longer by more than one the first so many.

    >>> listing(["a", "b", "c"]), listing(list("abcdefgh"), most=3), listing([])
    ('a, b and c', 'a, b, c and 5 others', '')
    """
    shown = list(names) if most is None or len(names) <= most + 1 else [*names[:most], f"{len(names) - most} others"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "image"), counted(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def first_name(name: str) -> str:
    """The first of the names of a class, for lines and tables that people read.

    >>> first_name("tabby, tabby cat"), first_name("daisy")
    ('tabby', 'daisy')
    """
    return name.partition(",")[0].strip() or name
