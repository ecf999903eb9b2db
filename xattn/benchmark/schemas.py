"""What is read back from a result folder: its types, ranges and limits, checked before anything is made of it.

These records hold names, numbers and digests. Nothing that they say is imported, called or opened.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xattn.benchmark.config import Config
from xattn.errors import DataError

Name = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Amount = Annotated[float, Field(ge=0)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class Record(BaseModel):
    """Frozen, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, content: bytes | str, what: str, advice: str = "") -> Self:
        """A record from JSON.

        Args:
            content: of bounded size.
            what: how messages call it.
            advice: what to do if it is damaged.

        Raises:
            DataError: if it does not fit.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])[:100]
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise DataError(f"{what} is damaged ({reason}){'; ' if advice else ''}{advice}.") from None


class Signed(Record):
    """A record in a file of its own, with a digest of the rest of it.

    Args:
        digest: empty in files of earlier versions, whose damage may go unnoticed.
    """

    digest: Hex | Literal[""] = ""

    @classmethod
    def parse(cls, content: bytes | str, what: str, advice: str = "") -> Self:
        """As of `Record`; a file that is not as it was written is refused."""
        record = super().parse(content, what, advice)
        if record.digest and record.digest != _digest(json.loads(content)):
            raise DataError(f"{what} is damaged (it is not as it was written){'; ' if advice else ''}{advice}.")
        return record

    def text(self) -> bytes:
        """The record as JSON, signed."""
        values = self.model_dump(mode="json", exclude={"digest"})
        return (json.dumps({**values, "digest": _digest(values)}, indent=1) + "\n").encode()


def _digest(values: dict[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != "digest"}
    return hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16).hexdigest()


class Footer(Record):
    """What a part says about itself.

    Args:
        block: its number.
        pairs: (method, metric, number of images scored).
    """

    block: Count
    pairs: Annotated[tuple[tuple[Name, Name, Count], ...], Field(max_length=200_000)]


class RunIdentity(Record):
    """Settings of a run on which its scores depend."""

    seed: Count
    target: Name
    score: Name
    block: Count
    precision: Name
    fast: bool = False


class DataIdentity(Record):
    """What scores depend on in a data set.

    Args:
        split: as configured.
        fit: as configured.
        mosaic: as configured.
        images: how many.
        labels: a digest of all.
        content: a digest of every file that the images come from; empty in manifests of earlier versions.
        files: the same of their sizes and times, where it was last looked: as long as these stay, no file is read.
    """

    split: Name | None
    fit: Name
    mosaic: Count
    images: Count
    labels: Hex
    content: Hex | Literal[""] = ""
    files: Hex | Literal[""] = ""


class ModelIdentity(Record):
    """What scores depend on in a model: digests of its weights and of those of its scorer.

    Args:
        weights: of the model.
        scorer: of its copy that was fine-tuned to images that lack cells; empty without one.
        scorer_file: what that copy's file says of it: its accuracy on whole images held out of its training, and which
            cells went.
    """

    weights: Hex
    scorer: Hex | Literal[""] = ""
    scorer_file: Annotated[dict[Name, Name], Field(max_length=20)] = {}


class Identity(Record):
    """What scores depend on, other than methods and metrics: two runs in one folder must agree in it."""

    run: RunIdentity
    data: Annotated[dict[Name, DataIdentity], Field(max_length=1000)]
    models: Annotated[dict[Name, ModelIdentity], Field(max_length=1000)]


class Environment(Record):
    """Where and with what scores were computed."""

    versions: Annotated[dict[Name, Name | None], Field(max_length=100)]
    commit: Name | None = None
    device: Name
    threads: Count
    started: Name = ""


class Manifest(Signed):
    """What a run writes about itself.

    Args:
        identity: what its scores depend on.
        config: the last configuration, for reading; nothing is built from it.
        environments: all that took part.
    """

    identity: Identity | None = None
    config: Config | None = None
    environments: Annotated[tuple[Environment, ...], Field(max_length=10_000)] = ()


class MethodCost(Record):
    """What one method costs alone, per image: seconds (median), forward and backward passes, peak memory on CUDA."""

    seconds: Amount
    forwards: Amount
    backwards: Amount
    peak_mb: Amount | None = None


class Costs(Signed):
    """What the methods of a cell cost, and where that was measured."""

    dataset: Name = ""
    model: Name = ""
    threads: Count = 0
    device: Name = ""
    methods: Annotated[dict[Name, MethodCost], Field(max_length=10_000)] = {}
