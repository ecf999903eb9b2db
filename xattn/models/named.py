"""What a person names as `package.module:name`: factories of models and preparations of images."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xattn.errors import ParameterError, UnknownNameError, unknown


def is_factory(name: str) -> bool:
    """Whether a name has the form `package.module:factory`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute))


def import_named(name: str, what: str, role: str, expected: str) -> Callable[..., Any]:
    """What is called `package.module:name`, from the path or from the working folder; a person names it, no file does.

    Args:
        name: of it.
        what: it is, for messages.
        role: likewise.
        expected: likewise.

    Raises:
        UnknownNameError: if it cannot be imported.
        ParameterError: if it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not is_factory(name):
        raise UnknownNameError(f"{what} '{name}': expected package.module:{role}, names of Python.")
    try:
        with _working_folder():
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever foreign code raises
        reason = (str(error).splitlines() or [""])[0]
        raise UnknownNameError(
            f"{what} '{name}': '{module}' cannot be imported ({type(error).__name__}: {reason})."
        ) from error
    try:
        factory: Callable[..., Any] = getattr(imported, attribute)
    except AttributeError:
        raise unknown(f"{role} in {module}", attribute, [n for n in dir(imported) if not n.startswith("_")]) from None
    if not callable(factory):
        raise ParameterError(f"{name} is {type(factory).__name__}; expected {expected}.")
    return factory


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Let modules of the working folder be imported, as `python -m` does and an installed command does not."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
