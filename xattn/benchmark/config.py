"""What a benchmark run is: data sets, models, methods and metrics, from a TOML file."""

from __future__ import annotations

import os
import re
import reprlib
import shlex
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from xattn.errors import DataError, ParameterError, XattnError, nearest, unknown
from xattn.files import read_regular
from xattn.schema import read_toml, toml


class _Section(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Count = Annotated[int, Field(ge=0, le=10**12, strict=True)]
Text = Annotated[str, Field(max_length=4096)]
Texts = Annotated[tuple[Text, ...], Field(max_length=1000)]
Switch = Annotated[bool, Field(strict=True)]


class MetricEntry(_Section):
    """One metric; in a configuration its name alone will do.

    Args:
        name: a registered metric with parameters, as `"deletion:steps=49"`, or `"all"`: every registered metric
            with its default parameters for which the data have what it needs.
        limit: score the first so many images of the sample only; 0 for all. For expensive metrics.
        without: methods that it does not score, by name or label; for metrics that explain again and methods of
            thousands of passes.
    """

    name: Text
    limit: Count = 0
    without: Texts = ()


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Metrics = Annotated[tuple[Annotated[MetricEntry, BeforeValidator(_named)], ...], Field(max_length=1000)]


class DataEntry(_Section):
    """One data set.

    Args:
        source: as for `xattn train --data`; `$XATTN_DATA` and other variables are replaced.
        split: part of it; None is the part to test on, or all of data without parts.
        limit: a seeded sample of so many images; 0 for all. The sample for a larger limit contains the smaller one.
        fit: how images are brought to the input size of the model.
        mosaic: cells on each side of mosaics of the images, which are scored in their place; 0 for the images
            themselves. The label of one cell is explained, and the model sees every cell at its own input size.
        metrics: metrics for this data set; empty takes those of the run.
        label: name in tables; empty takes the source.
    """

    source: Text
    split: Text | None = None
    limit: Count = 0
    fit: Literal["crop", "squash"] = "crop"
    mosaic: Count = Field(default=0, le=64)
    metrics: Metrics = ()
    label: Text = ""

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.label or Path(self.source).name or self.source


class ModelEntry(_Section):
    """One model; the fields are the arguments of `xattn.create_model`.

    Args:
        name: name or weights file; a `package.module:factory` only where the command line gives it.
        weights: `"DEFAULT"` or a file.
        head: name of a registered head: `linear`, `bcnn`, `brnpa`.
        resolution: `low` or `high`.
        methods: methods for this model; empty takes those of the run.
        scorer: weights file of a copy of this model that was fine-tuned to images that lack cells (`xattn train
            --augment removal`). Every metric that scores changed images is measured with it too.
        label: name in tables; empty takes the name.
    """

    name: Text
    weights: Text | None = None
    head: Text | None = None
    resolution: Literal["low", "high"] = "low"
    methods: Texts = ()
    scorer: Text | None = None
    label: Text = ""

    @field_validator("head")
    @classmethod
    def _known_head(cls, name: str | None) -> str | None:
        from xattn.models.heads import heads

        if name is not None and name not in heads:
            raise ValueError(str(unknown("head", name, heads)))
        return name

    @property
    def title(self) -> str:
        """How tables call it."""
        return self.label or self.name


class RunSection(_Section):
    """How scores are computed.

    Args:
        seed: of the sample of images and of everything random.
        target: the class explained, `"predicted"` or the `"label"`.
        score: the scalar explained.
        batch: images in one recorded pass. Another number gives the same scores but for rounding.
        block: images in one part file; what a killed run loses at most, per process.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
        precision: of the forward passes.
        fast: score perturbed images with a cheaper copy of the model (`xattn.models.fast`): about twice as fast or more
            on a CPU, areas under curves move by less than 0.005 on average. Maps that read layers are as ever.
        controls: score the random, centre and edge controls beside the methods.
    """

    seed: Count = 0
    target: Literal["predicted", "label"] = "predicted"
    score: Literal["logit", "prob", "sigmoid", "margin"] = "logit"
    batch: Count = Field(default=16, ge=1)
    block: Count = Field(default=64, ge=1)
    device: Text = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    fast: Switch = False
    controls: Switch = True


class Config(_Section):
    """A whole run.

    `limits` gives methods of many passes fewer images: their name or label, and how many of the first to score.
    `ladder` names methods whose maps are scored in five degrees of degradation too: an order that metrics should find.

    >>> config = Config.build({"data": [{"source": "d"}], "models": [{"name": "m"}], "methods": ["gradcam"],
    ...                        "metrics": ["sparsity"]})
    >>> config.metrics[0].name
    'sparsity'
    """

    data: tuple[DataEntry, ...] = Field(min_length=1, max_length=1000)
    models: tuple[ModelEntry, ...] = Field(min_length=1, max_length=1000)
    methods: Texts = Field(min_length=1)
    metrics: Metrics = Field(min_length=1)
    limits: Annotated[dict[Text, Count], Field(max_length=1000)] = {}
    ladder: Texts = ()
    run: RunSection = RunSection()

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "configuration") -> Config:
        """A configuration from nested values.

        Raises:
            ParameterError: with all faults at once, unknown keys with the nearest name.
        """
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(f"{source}: {'; '.join(_fault(cls, e) for e in error.errors())}.") from None
        faults = [
            f"{kind} '{name}' is there twice, give one another label"
            for kind, names in (
                ("data set", [d.name for d in config.data]),
                ("model", [m.title for m in config.models]),
                ("metric", [m.name for m in config.metrics]),
                *(("metric", [m.name for m in d.metrics]) for d in config.data),
            )
            for name in sorted({n for n in names if names.count(n) > 1})
        ]
        if faults:
            raise ParameterError(f"{source}: {'; '.join(faults)}.")
        return config

    @classmethod
    def read(cls, path: str | Path, changes: Sequence[str] = ()) -> Config:
        """A configuration from a TOML file.

        Args:
            path: the file.
            changes: texts `key=value` that replace what the file says: `run.batch=7`, `data.0.limit=100`. A value that
                is no TOML is text.

        Raises:
            ParameterError: if the file is missing or not a valid configuration.
        """
        path = Path(path)
        try:
            values = read_toml(read_regular(path, 2**20).decode())
        except FileNotFoundError:
            raise ParameterError(f"there is no configuration '{path}'.") from None
        except DataError:
            raise
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise ParameterError(f"'{path}' is no valid TOML: {error}.") from None
        for change in changes:
            _change(values, change)
        _refuse_factories(values, changes, path)
        return cls.build(values, str(path))

    def to_toml(self) -> str:
        """The run as a TOML file that `read` reads; what is the default is left out."""
        values = self.model_dump(exclude_defaults=True, mode="json")
        for section in (values, *values["data"]):
            if "metrics" in section:
                section["metrics"] = [m["name"] if [*m] == ["name"] else m for m in section["metrics"]]
        lines = []
        for key in ("methods", "metrics"):
            lines += [f"{key} = [", *(f"    {toml(entry)}," for entry in values[key]), "]"]
        tables = [(f"[{key}]", values[key]) for key in ("limits", "run") if values.get(key)]
        tables += [(f"[[{key}]]", entry) for key in ("data", "models") for entry in values[key]]
        for head, table in tables:
            lines += ["", head, *(f"{_key(key)} = {toml(value)}" for key, value in table.items())]
        return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key of a TOML file, quoted where it has to be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def _refuse_factories(values: Any, changes: Sequence[str], path: Path) -> None:
    """A file does not choose what code is run: a factory is called only if a person names it on the command line.

    Raises:
        ParameterError: with the option that names it.
    """
    from xattn.models.named import is_factory  # brings torch, which reading a configuration does not need otherwise

    models = values.get("models")
    given = {change.partition("=")[0].strip() for change in changes}
    for i, model in enumerate(models if isinstance(models, list) else ()):
        name = model.get("name") if isinstance(model, dict) else None
        key = f"models.{i}.name"
        if isinstance(name, str) and is_factory(name) and key not in given:
            raise ParameterError(
                f"'{path}' names '{name}' as {key}, and a file does not choose what code is run here; if you trust "
                f"that code, name it yourself: --set {shlex.quote(f'{key}={name}')}"
            )


def _change(values: Any, change: str) -> None:
    """Replace one value in place."""
    key, equals, text = change.partition("=")
    *way, last = key.strip().split(".")
    if not (equals and last):
        raise ParameterError(f"--set: expected key=value, as run.batch=7, but got '{change}'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    try:
        for part in way:
            values = values.setdefault(part, {}) if isinstance(values, dict) else values[int(part)]
        values[last if isinstance(values, dict) else int(last)] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ParameterError(
            f"--set: the configuration has no place for '{key.strip()}'; write data.0.limit=9."
        ) from None


def _fault(config: type[BaseModel], error: Any) -> str:
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = config
        for part in error["loc"][:-1]:
            if isinstance(part, str):
                section = section.model_fields[part].annotation
                while not isinstance(section, type):  # Annotated[X, ...] and tuple[X, ...]
                    section = typing.get_args(section)[0]
        guess = nearest(str(error["loc"][-1]), section.model_fields)
        return f"unknown key '{where}'" + (f" (did you mean '{guess}'?)" if guess else "")
    got = "" if error["type"] == "missing" else f" but got {reprlib.repr(error['input'])}"
    return f"{where}: {error['msg']}{got}"


def expand(source: str) -> str:
    """Replace `$NAME` and `~` in a path.

    Raises:
        ParameterError: for a variable that is not set.
    """
    path = os.path.expanduser(os.path.expandvars(source))  # noqa: PTH111 (the text may be NAME:PATH)
    if "$" in path:
        missing = path.split("$", 1)[1].split("/")[0].strip("{}")
        raise ParameterError(f"'{source}': the environment variable {missing} is not set.")
    return path


def collect(faults: list[str], task: Any) -> Any:
    """Run `task`; an error that xattn raises on purpose is added to `faults` instead, and None returned."""
    try:
        return task()
    except XattnError as error:
        faults.append(str(error).rstrip("."))
        return None
