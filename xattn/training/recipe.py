"""A training run as a value: everything that decides its result, from a TOML file and the command line."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xattn.errors import DataError, ParameterError, XattnError, nearest, unknown
from xattn.files import read_regular
from xattn.functional.baselines import baselines
from xattn.models.header import MOST_PARTS, SMALLEST_SIDE
from xattn.schema import read_toml, toml
from xattn.spec import LARGEST_SIDE, MOST_CLASSES

if TYPE_CHECKING:
    from xattn.training.tasks import Task

_MOST_EPOCHS = 50_000
_RECIPE_BYTES = 2**20
_Pixels = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)]
_Size = _Pixels | tuple[_Pixels, _Pixels]


class _Section(BaseModel):
    """Frozen, and no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class DataSection(_Section):
    """Where the images come from.

    Args:
        source: a folder (of class folders, of parquet files, of a known data set) or `NAME:FOLDER`; `$XATTN_DATA` and
            other variables are replaced.
        held_out: share of the training images of each class that is kept out to choose the best epoch.
        classes: use the first so many classes only; 0 for all.
        per_class: use so many images of each class at most; 0 for all.
        class_list: file with the names of the classes to use, one a line, for data whose classes are divided; empty for
            all.
        validation: part that chooses the best epoch, such as `"val"`, in place of held-out images; empty for none.
        workers: processes that decode images; small data sets are kept in memory instead and need none.
    """

    source: str = ""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    classes: int = Field(default=0, ge=0, le=MOST_CLASSES)
    per_class: int = Field(default=0, ge=0, le=10**9)
    class_list: str = ""
    validation: str = ""
    workers: int = Field(default=0, ge=0, le=256)


class ModelSection(_Section):
    """The network.

    Args:
        backbone: name for `create_model`.
        weights: name of pretrained weights for the backbone, such as `"DEFAULT"` of torchvision; empty for none.
        head: pooling.
        parts: attention maps of the head.
        resolution: `"high"` removes the strides of the last two stages.
        circular: circular padding, as in BR-NPA's released code.
        start: weights file to start from; empty starts from the teacher if it has the same backbone. A head of another
            kind stays new, but the classifier of a plain CNN is shared out over the parts.
        dropout: before the classifier.
        attention_width: B-CNN: channels inside its attention block; 0 for those of the features, as published.
        refine: BR-NPA: False pools the seeds alone (ablation).
        seed: BR-NPA: `"random"` seeds (ablation).
        ranks: train linear heads on subsets of the parts beside the network, without influence on it (ablation).
        freeze_batchnorm: keep the statistics of batch norm; two processes then train exactly as one. The attention of a
            new B-CNN head has none yet and can fall to zero everywhere, where it learns nothing more.
        freeze_front: of a network of `xattn convert`: keep the layers before the first one that became dilated.
    """

    backbone: str = "resnet18"
    weights: str = ""
    head: str = "brnpa"
    parts: int = Field(default=3, ge=1, le=MOST_PARTS)
    resolution: Literal["low", "high"] = "low"
    circular: bool = False
    start: str = ""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    attention_width: int = Field(default=0, ge=0, le=8192)
    refine: bool = True
    seed: Literal["activation", "random"] = "activation"
    ranks: bool = False
    freeze_batchnorm: bool = False
    freeze_front: bool = False


class DistillSection(_Section):
    """Learning from a teacher.

    Args:
        teacher: weights file of the teacher; empty for none.
        factory: `package.module:factory` of the teacher's network, where its file names one that is not the backbone
            of the model; a file alone does not choose what code is run.
        weight: share of the distillation term, the lambda of the loss.
        temperature: divides the logits of both.
        form: `"hinton"` is (1 - w) CE + w T^2 KL(teacher, student); `"printed"` is the formula as printed in the paper,
            without temperature and with the divergence the other way.
        labels: `"teacher"`: what the teacher names takes the place of labels, so that any images do, also a folder
            without classes. Accuracy is then the share of images in which both name the same class.
    """

    teacher: str = ""
    factory: str = ""
    weight: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=6.0, gt=0, le=1e6)
    form: Literal["hinton", "printed"] = "hinton"
    labels: Literal["given", "teacher"] = "given"


class OptimizerSection(_Section):
    """Optimizer, schedule and what regularizes.

    Args:
        name: SGD with momentum, or AdamW.
        lr: highest learning rate.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: of weights; biases and batch norm have none.
        schedule: `"cosine"` to zero, `"step"`, or `"constant"`, after the warm-up.
        warmup_epochs: linear warm-up.
        step_epochs: `"step"`: epochs between two steps.
        step_factor: `"step"`: factor of a step.
        label_smoothing: of the cross-entropy.
        clip: largest norm of the gradient; 0 for any.
        ema: decay of the moving average of the weights that is evaluated and kept; 0 for the weights themselves.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(default=0.5, ge=0, le=_MOST_EPOCHS)
    step_epochs: int = Field(default=2, ge=1, le=_MOST_EPOCHS)
    step_factor: float = Field(default=0.9, gt=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    clip: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)


class AugmentSection(_Section):
    """What is done to training images.

    Args:
        crop: `"random-resized"` (area from `scale`), `"random"` (from images whose shorter side is `resize`), `"none"`,
            or `"squash"` (area from `scale` in the shape of the image, which is whole in an evaluation, however long).
        scale: smallest and largest share of the area that a random-resized or squashed crop keeps.
        resize: shorter side before a random crop, and before the central crop of an evaluation; 0 is the image size.
        flip: mirror half of the images.
        brightness: largest relative change.
        contrast: largest relative change.
        saturation: largest relative change.
        randaugment: operations of RandAugment per image (Cubuk et al. 2020, arXiv:1909.13719); 0 for none.
        magnitude: strength of RandAugment, of 30.
        erase: share of the images that lose a box (random erasing, Zhong et al. 2017, arXiv:1708.04896).
        removal: cells that go, for a network that is to score images without them: `"single"` (half of the images lack
            one), `"share"` (each goes with a random probability), `"mixed"` (both), or `"none"`.
        removal_grid: cells on each side where one of them goes, as `grid` of the metric `idsds`.
        removal_cells: cells on each side where a share goes.
        removal_share: largest probability that a cell goes; 0.1 is the beta of F-Fidelity, 1 whole curves of deletion.
        removal_baselines: what replaces cells, one for each image: `"mean"`, `"blur"` and the others by their names.
    """

    crop: Literal["random-resized", "random", "squash", "none"] = "random-resized"
    scale: tuple[float, float] = (0.35, 1.0)
    resize: int = Field(default=0, ge=0, le=2 * LARGEST_SIDE)
    flip: bool = True
    brightness: float = Field(default=0.2, ge=0, le=10)
    contrast: float = Field(default=0.2, ge=0, le=10)
    saturation: float = Field(default=0.2, ge=0, le=10)
    randaugment: int = Field(default=0, ge=0, le=14)
    magnitude: int = Field(default=9, ge=0, le=30)
    erase: float = Field(default=0.0, ge=0, le=1)
    removal: Literal["none", "single", "share", "mixed"] = "none"
    removal_grid: int = Field(default=4, ge=2, le=64)
    removal_cells: int = Field(default=8, ge=2, le=64)
    removal_share: float = Field(default=0.1, gt=0, le=1)
    removal_baselines: tuple[str, ...] = Field(default=("mean",), min_length=1, max_length=20)

    @field_validator("removal_baselines")
    @classmethod
    def _known_baselines(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                baselines.parse(name)
            except XattnError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return names


class RunSection(_Section):
    """Length, precision, seed and output.

    Args:
        task: what is learned, with its parameters: `"classify"`, `"reid"`, `"reid:instances=8,margin=0"`, `"fewshot"`.
        out: folder of the run.
        epochs: passes over the training images.
        batch_size: images per process and step.
        image_size: pixels, also of an evaluation: one side of a square, or `[height, width]`.
        sizes: progressive training: pairs (first epoch, pixels); empty for `image_size` throughout.
        seed: of the split, the initial weights, the order and the augmentation.
        precision: of Lightning Fabric: `"32-true"`, `"bf16-mixed"` or `"64-true"`.
        accelerator: of Lightning Fabric.
        devices: processes, or `"auto"`.
        strategy: of Lightning Fabric.
        channels_last: memory format; faster for convolutions on most hardware.
        tensorboard: write events for TensorBoard beside the CSV file.
    """

    task: str = "classify"
    out: str = "runs/train"
    epochs: int = Field(default=10, ge=1, le=_MOST_EPOCHS)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    image_size: _Size = 224
    sizes: tuple[tuple[Annotated[int, Field(ge=0, le=_MOST_EPOCHS)], _Size], ...] = Field(default=(), max_length=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps", "tpu"] = "auto"
    devices: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    strategy: str = "auto"
    channels_last: bool = True
    tensorboard: bool = True


class Recipe(_Section):
    """Everything that decides the result of a training run.

    >>> Recipe.build({"model": {"head": "bcnn"}}, ["run.epochs=3", "lr=0.1"]).optimizer.lr
    0.1
    """

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    distill: DistillSection = DistillSection()
    optimizer: OptimizerSection = OptimizerSection()
    augment: AugmentSection = AugmentSection()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        from xattn.models.heads import heads

        if self.model.head not in heads:
            raise ValueError(f"model.head: {unknown('head', self.model.head, heads)}".rstrip("."))
        if self.distill.labels == "teacher" and not self.distill.teacher:
            raise ValueError("distill.labels = 'teacher' needs distill.teacher")
        if self.distill.labels == "teacher" and (self.task.compares or self.data.validation):
            raise ValueError("distill.labels = 'teacher' is for classification without data.validation")
        if self.model.ranks and self.model.head == "linear":
            raise ValueError("model.ranks needs a head with parts, brnpa or bcnn")
        if self.model.ranks and self.model.parts != 3:
            raise ValueError(f"model.ranks is defined for 3 parts but model.parts is {self.model.parts}")
        try:
            task = self.task
        except XattnError as error:
            raise ValueError(f"run.task: {error}".rstrip(".")) from None
        if self.distill.teacher and not task.distils:
            raise ValueError(f"run.task {self.run.task} has no class scores that a teacher could teach by")
        if task.scales and not (self.model.start or self.model.weights):
            raise ValueError(f"run.task {self.run.task} scales a trained network; name its file as model.start")
        if [first for first, _ in self.run.sizes] != sorted({first for first, _ in self.run.sizes}):
            raise ValueError("run.sizes must be pairs [first epoch, pixels] in order of the epoch")
        resize, size = self.augment.resize, self.shorter
        if resize and not size <= resize <= 10 * size:
            raise ValueError(
                f"augment.resize must be 0 or from run.image_size ({size}) to ten times that, not {resize}"
            )
        if resize and self.augment.crop == "squash":
            raise ValueError("augment.resize has no meaning where augment.crop is 'squash'; leave it out")
        low, high = self.augment.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.scale must be two shares in (0, 1] in order but is {[low, high]}")
        return self

    @property
    def task(self) -> Task:
        """What is learned."""
        from xattn.training.tasks import tasks

        return tasks.parse(self.run.task)

    @property
    def shorter(self) -> int:
        """Pixels of the shorter side of an image."""
        size = self.run.image_size
        return size if isinstance(size, int) else min(size)

    def size_at(self, epoch: int) -> int | tuple[int, int]:
        """Pixels of a training image in an epoch, counted from 0."""
        size = self.run.image_size
        for first, pixels in self.run.sizes:
            size = pixels if epoch >= first else size
        return size

    @classmethod
    def build(cls, values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
        """A recipe from nested values and overrides of the form `section.key=value` or, where unique, `key=value`.

        Args:
            values: sections by name.
            overrides: later ones win; values are read as TOML, anything else is text.
            source: where the values come from, for messages.

        Raises:
            ParameterError: for an unknown key, with the nearest name, or a value outside what a key can take.
        """
        merged: dict[str, dict[str, Any]] = {}
        for section, content in values.items():
            if section not in cls.model_fields:
                raise ParameterError(_unknown(source, section, list(cls.model_fields)))
            if not isinstance(content, Mapping):
                raise ParameterError(f"{source}: '{section}' is a section; write [{section}] with keys below it.")
            merged[section] = dict(content)
        for override in overrides:
            section, key, value = _read_override(override)
            merged.setdefault(section, {})[key] = value
        known = _keys()
        for section, content in merged.items():
            for key in content:
                if key not in known[section]:
                    names = [f"{s}.{k}" for s in known for k in known[s]]
                    raise ParameterError(_unknown(source, f"{section}.{key}", names))
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"])
            got = f" but got {first['input']!r}" if first["loc"] else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ParameterError(f"{source}: {where + ': ' if where else ''}{message}{got}.") from None

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe from a TOML file.

        Raises:
            ParameterError: if the file is missing or is no valid recipe.
        """
        path = Path(path)
        try:
            values = read_toml(read_regular(path, _RECIPE_BYTES).decode())
        except (OSError, DataError) as error:
            reason = f" ({error.strerror})" if isinstance(error, OSError) else f": {error}"
            raise ParameterError(f"no recipe at '{path}'{reason}".rstrip(".") + ".") from None
        except (ValueError, RecursionError) as error:  # wrong TOML or UTF-8, numbers of thousands of digits, depth
            raise ParameterError(f"'{path}' is no valid TOML: {error}.") from None
        for key, option in (("model.backbone", "--backbone {}"), ("distill.factory", "--set distill.factory={}")):
            section, _, name = key.partition(".")
            content = values.get(section)
            factory = content.get(name) if isinstance(content, dict) else None
            given = any(_read_override(override)[:2] == (section, name) for override in overrides)
            if isinstance(factory, str) and ":" in factory and not given:
                raise ParameterError(
                    f"'{path}' names '{factory}' as {key}, and a file does not choose what code is run here; if you "
                    f"trust that code, name it yourself: {option.format(shlex.quote(factory))}"
                )
        return cls.build(values, overrides, source=str(path))

    def to_toml(self) -> str:
        """The whole recipe as TOML, so that a run can be repeated from its folder."""
        lines = []
        for section, content in self.model_dump().items():
            lines.append(f"[{section}]")
            lines.extend(f"{key} = {toml(value)}" for key, value in content.items())
            lines.append("")
        return "\n".join(lines)


def _keys() -> dict[str, list[str]]:
    """Known keys by section."""
    return {name: list(type(field.default).model_fields) for name, field in Recipe.model_fields.items()}


def _unknown(source: str, key: str, names: list[str]) -> str:
    guess = nearest(key, names) or nearest(key.rpartition(".")[2], [n.rpartition(".")[2] for n in names])
    hint = f" Did you mean '{guess}'?" if guess else ""
    return f"{source}: unknown key '{key}'.{hint} Sections: {', '.join(_keys())}."


def _read_override(text: str) -> tuple[str, str, Any]:
    """Section, key and value of `section.key=value`; the section may be left out where the key is unique."""
    name, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise ParameterError(f"expected key=value but got '{text}'.")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = raw
    section, dot, key = name.partition(".")
    known = _keys()
    if dot:
        if section not in known:
            raise ParameterError(_unknown("override", name, [f"{s}.{k}" for s in known for k in known[s]]))
        return section, key, value
    owners = [s for s in known if name in known[s]]
    if not owners:
        raise ParameterError(_unknown("override", name, [k for s in known for k in known[s]]))
    if len(owners) > 1:
        choices = " or ".join(f"{s}.{name}" for s in owners)
        raise ParameterError(f"override: '{name}' could be {choices}; write one of them.")
    return owners[0], name, value
