"""What a person names as `package.module:name`: factories of models and preparations of images."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xattn.errors import ParameterError, UnknownNameError, unknown

# Repositories of torch.hub, perhaps with a version, whose networks an installed library has by the same names.
_HUBS = (
    (re.compile(r"(?:torchvision|pytorch/vision(?::[\w.-]+)?)[:/](\w+)"), ""),
    (re.compile(r"(?:huggingface|rwightman)/pytorch-image-models(?::[\w.-]+)?[:/]([\w.]+)"), "timm/"),
)


def plain_name(name: str) -> str:
    """A model of torchvision or timm as torch.hub calls it, by its name here; any other name as it is.

    >>> plain_name("pytorch/vision:v0.21.0:resnet18"), plain_name("torchvision/resnet18"), plain_name("nets:resnet18")
    ('resnet18', 'resnet18', 'nets:resnet18')
    >>> plain_name("huggingface/pytorch-image-models:vit_tiny_patch16_224")
    'timm/vit_tiny_patch16_224'
    """
    found = ((pattern.fullmatch(name), prefix) for pattern, prefix in _HUBS)
    return next((prefix + match[1] for match, prefix in found if match), name)


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
    if module.endswith(".py") and Path(module).is_file():
        dotted = ".".join(Path(module).with_suffix("").parts)
        raise UnknownNameError(f"{what} '{name}': name the module, not its file: {dotted}:{attribute}")
    if what == "model" and re.fullmatch(r"[\w.-]+/[\w.-]+", module):
        repository, _, entry = name.rpartition(":")
        raise UnknownNameError(
            f"model '{name}': names of torch.hub, which downloads code and runs it, are not called here; return "
            f"torch.hub.load('{repository}', '{entry}') in a function of your own and pass package.module:{role}."
        )
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
