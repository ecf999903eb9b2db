"""Models from the command line, and files that appear whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn.errors import DataError, ParameterError, XattnError, reason_of
from xattn.files import whole_file

if TYPE_CHECKING:
    import torch

    from xattn.file_loop import Network

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def load(
    name: str,
    *,
    weights: str | None = None,
    head: str | None = None,
    resolution: str | None = None,
    parts: int | None = None,
    device: torch.device | None = None,
    given: Mapping[str, Any] | None = None,
) -> Network:
    """Load a model by name, by `package.module:factory`, or from a weights file that says what it is.

    Args:
        name: one of the three.
        weights: `DEFAULT` for the weights that a library offers, or a file; None leaves what the model comes with.
        head: `linear`, `bcnn` or `brnpa`.
        resolution: `low` or `high`.
        parts: number of attention maps of the head.
        device: where to put it.
        given: what a person says about its images and classes, as arguments of `ModelSpec.given`.

    Raises:
        UnknownNameError: for a model, module or factory that does not exist.
        CheckpointError: for weights that do not fit or cannot be loaded safely.
        SpecError: if facts about the model cannot be inferred.
    """
    from xattn.file_loop import Network
    from xattn.inspection import infer_spec
    from xattn.models import create_model, models
    from xattn.models.checkpoint import read_state
    from xattn.spec import ModelSpec

    file = Path(name).suffix.lower() in _WEIGHT_SUFFIXES and ":" not in Path(name).name
    own = ":" in name and not file
    if file:
        read_state(name)  # what is wrong with the file itself comes first
    given = given or {}
    asked = {
        "head": head, "resolution": resolution, "parts": parts if head is not None else None,
        "input_size": given.get("size"),
    }  # fmt: skip
    options: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    try:
        model = create_model(name, weights=weights, **options)
    except XattnError:
        raise
    except Exception as error:  # whatever foreign code raises
        if not own:
            raise
        raise ParameterError(
            f"--model {name} raised {type(error).__name__} ({reason_of(error)}); --debug shows where."
        ) from error
    hub = name.startswith("hf/")  # comes with its weights
    complete = file or own or hub or (name in models and head is None)
    label = name.rpartition(":")[2] if own else str(Path(*Path(name).with_suffix("").parts[-2:])) if file else name
    label = Path(name).name if hub else label
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        spec = infer_spec(model, name=label)
    spec = spec.given(**given)
    if device is not None:
        model = model.to(device)
    return Network(model.eval(), spec, label, random=weights is None and not complete)


@contextmanager
def picture_file(path: Path) -> Iterator[Path]:
    """As `whole_file`; a file that cannot be written is told by its own name.

    Raises:
        DataError: if the disk is full or the folder cannot be written to.
    """
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error
