"""Watch where a network looks while it learns: panels and scores of chosen photographs, epoch by epoch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from xattn.data.preprocessing import Fit, listed, to_batch
from xattn.data.sample import Batch
from xattn.data.tree import class_of
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainer import refuse
from xattn.explainers import resolve
from xattn.explaining import completed, explain_trace, record_for
from xattn.explanation import OK, Explanation
from xattn.inspection import facts_about
from xattn.labels import file_stems, label_of, slug
from xattn.metrics import metrics as registered
from xattn.running import unwrap
from xattn.spec import ModelSpec, sides_of
from xattn.trace import Trace, place_of
from xattn.viz import gallery, save

_PREFIX = "xattn"
_ACCEPTED = (
    "a SummaryWriter of TensorBoard, a run of W&B, the module mlflow, a logger of Lightning, or a function of a name, "
    "a value and the step"
)


@dataclass(frozen=True)
class Watched:
    """What was seen in one epoch.

    Args:
        step: the epoch.
        panel: a row a photograph, a column a method.
        scores: mean over the photographs by name, such as `gradcam/deletion.dc`, with the parameters of a metric where
            two share its name; NaN where it is defined for none.
        explanations: one a method.
    """

    step: int
    panel: Image.Image
    scores: dict[str, float]
    explanations: list[Explanation]


@dataclass
class Watch:
    """Explain the same photographs again and again while a network is trained.

    Calling it with the model and the epoch gives a panel and scores, and logs them. The model leaves as it came, in
    training mode if it was.

    Args:
        images: paths, Pillow images or uint8 arrays, or a normalized float tensor (N, C, H, W); a few.
        methods: as for `xattn.explain`.
        metrics: scores of the maps by name, such as `"deletion:steps=10"`; those that need no masks.
        labels: class of each image, index or name; None takes the classes that the folders of the paths name, else the
            predicted ones, which may change from epoch to epoch.
        every: epochs from one look to the next; the first one is always looked at.
        spec: facts about the model; None takes `model.spec` or finds them at the first look.
        mean: as for `xattn.explain`.
        std: likewise.
        classes: likewise.
        size: likewise.
        fit: likewise.
        out: folder for the panels as `epoch-0003.png`, with or without loggers.

    Raises:
        ParameterError: if there are not as many labels as images, or a metric needs masks.
    """

    images: Any
    methods: str | Sequence[Any] = ("gradcam",)
    metrics: Sequence[str] = ()
    labels: Sequence[int | str] | None = None
    every: int = 1
    spec: ModelSpec | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    classes: Sequence[str] | None = None
    size: int | tuple[int, int] | None = None
    fit: Fit | None = None
    out: str | Path | None = None
    _x: Tensor | None = field(default=None, init=False, repr=False)
    _facts: ModelSpec | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._methods = resolve(self.methods)
        self._metrics = [registered.parse(text) for text in self.metrics]
        for metric in self._metrics:
            if metric.needs:
                raise ParameterError(f"watch: {metric.name} needs {' and '.join(sorted(metric.needs))}; leave it out.")
        if self.every < 1:
            raise ParameterError(f"watch: every must be at least 1 but is {self.every}.")
        count = len(self.images) if isinstance(self.images, Tensor) else len(listed(self.images))
        if self.labels is not None and len(self.labels) != count:
            raise ParameterError(f"watch: {len(self.labels)} labels do not fit {count} images.")

    def __call__(self, model: nn.Module, step: int, loggers: Any = None) -> Watched | None:
        """Look, and log what is seen; None in the epochs between.

        Args:
            model: that is being trained.
            step: the epoch, counted from 0.
            loggers: where to; one or several of what `log` takes.
        """
        if step % self.every:
            return None
        model = unwrap(model)
        trace = self._record(model)
        explanations = explain_trace(trace, self._methods)
        if not isinstance(self.images, Tensor):
            photographs = tuple(listed(self.images))
            explanations = [replace(e, photographs=photographs, fit=self.fit) for e in explanations]
        seen = Watched(step, gallery(explanations), self._scores(trace, explanations), explanations)
        if self.out is not None:
            save(seen.panel, Path(self.out) / f"epoch-{step:04d}.png")
        for logger in loggers if isinstance(loggers, (list, tuple)) else [loggers]:
            if logger is not None:
                log(logger, seen)
        return seen

    def callback(self, of: Callable[[Any], nn.Module] | None = None) -> Any:
        """A callback for the trainer of Lightning, which looks at the end of each epoch, in the first process alone.

        Args:
            of: gives the classifier of a Lightning module; None takes the module itself.
        """
        return _lightning_callback(self, of)

    def _record(self, model: nn.Module) -> Trace:
        """The pass of all methods; facts are found at the first look and hold for all."""
        x = self.images if isinstance(self.images, Tensor) else None
        if self._facts is None:
            known = self.spec or getattr(model, "spec", None)
            spec = known if isinstance(known, ModelSpec) and known.feature_layer else None
            if spec is None:
                sides = None if self.size is None else sides_of(self.size)
                spec = completed(self.spec, lambda size: facts_about(model, x, [], input_size=sides or size))
            self._facts = spec.given(mean=self.mean, std=self.std, classes=self.classes, size=self.size)
            for method in self._methods:
                refuse(method, self._facts)
        spec = self._facts
        if self._x is None:
            if x is None and spec.mean is None:
                raise ParameterError(
                    "watch: the model does not say how its images are normalized; pass mean= and std=."
                )
            self._x = to_batch(self.images, spec, fit=self.fit)
        target = self._targets(spec)
        return record_for(model, self._x.to(place_of(model)[0]), self._methods, target, spec=spec)

    def _targets(self, spec: ModelSpec) -> list[int] | None:
        """The class of each image, if all are known."""
        if self.labels is not None:
            return [spec.class_index(k) if isinstance(k, str) else int(k) for k in self.labels]
        if isinstance(self.images, Tensor):
            return None
        paths = [Path(p).parent.name if isinstance(p, (str, Path)) else "" for p in listed(self.images)]
        found = [class_of(Path(name), spec) for name in paths]
        return [k for k in found if k is not None] if all(k is not None for k in found) else None

    def _scores(self, trace: Trace, explanations: Sequence[Explanation]) -> dict[str, float]:
        """Means over the photographs."""
        scores: dict[str, float] = {}
        first = explanations[0]
        if first.probability is not None:
            scores["probability"] = float(first.probability.double().mean())
        targets = self._targets(trace.spec)
        if targets is not None and first.predicted is not None:
            scores["right"] = float((first.predicted.cpu() == torch.tensor(targets)).double().mean())
        batch = Batch(trace.x, trace.target, tuple(map(str, range(len(trace.x)))))
        for explanation in explanations:
            scores[f"{slug(label_of(explanation.method))}/ok"] = explanation.status.count(OK) / len(explanation)
        for metric, stem in zip(self._metrics, file_stems(self._metrics), strict=True):
            rows = metric.measure_many(explanations, trace, batch)
            for explanation, columns in zip(explanations, rows, strict=True):
                for column, values in columns.items():
                    name = f"{slug(label_of(explanation.method))}/{stem}.{column}"
                    scores[name] = float(values.nanmean())
        return scores


def log(logger: Any, seen: Watched) -> None:
    """Give what was seen to a logger.

    Args:
        logger: a SummaryWriter of TensorBoard, a run of W&B, the module `mlflow`, a logger of Lightning, or a function
            of a name, a value (a number or a picture) and the step.
        seen: in one epoch.

    Raises:
        ParameterError: for anything else.
    """
    values: dict[str, Any] = {f"{_PREFIX}/{name}": value for name, value in seen.scores.items()}
    panel = f"{_PREFIX}/panel"
    run_id = getattr(logger, "run_id", None)
    inner = getattr(logger, "experiment", None)  # of the loggers of Lightning
    if inner is not None and hasattr(inner, "log_image") and run_id is not None:
        for name, value in values.items():
            inner.log_metric(run_id, _plain(name), value, step=seen.step)
        inner.log_image(run_id, seen.panel, key=_plain(panel), step=seen.step)
    elif inner is not None:
        log(inner, seen)
    elif hasattr(logger, "add_image") and hasattr(logger, "add_scalar"):
        for name, value in values.items():
            logger.add_scalar(name, value, seen.step)
        logger.add_image(panel, np.asarray(seen.panel), seen.step, dataformats="HWC")
    elif hasattr(logger, "log_image") and hasattr(logger, "log_metrics"):
        logger.log_metrics({_plain(name): value for name, value in values.items()}, step=seen.step)
        logger.log_image(seen.panel, key=_plain(panel), step=seen.step)
    elif type(logger).__module__.partition(".")[0] == "wandb" or getattr(logger, "__name__", "") == "wandb":
        import wandb

        # W&B counts steps by itself, and refuses a smaller one, so the epoch is a value beside the others.
        logger.log({**values, panel: wandb.Image(seen.panel), f"{_PREFIX}/epoch": seen.step})
    elif callable(logger):
        for name, value in {**values, panel: seen.panel}.items():
            logger(name, value, seen.step)
    else:
        raise ParameterError(f"watch: expected {_ACCEPTED}, but the logger is {type(logger).__name__}.")


def _plain(name: str) -> str:
    """A name that MLflow takes.

    >>> _plain("xattn/gradcam++/deletion.deletion")
    'xattn/gradcam__/deletion.deletion'
    """
    return re.sub(r"[^\w\-./ ]", "_", name)


def _takes(logger: Any) -> bool:
    """Whether `log` knows a logger of Lightning; those for tables of numbers take no pictures."""
    inner = getattr(logger, "experiment", None)
    return hasattr(inner, "add_image") or hasattr(inner, "log_image") or type(inner).__module__.startswith("wandb")


def _lightning_callback(watch: Watch, of: Callable[[Any], nn.Module] | None) -> Any:
    """A callback of whichever of the two packages of Lightning is in use."""
    old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    try:
        if old:
            from pytorch_lightning import Callback
        else:
            from lightning.pytorch import Callback  # type: ignore[assignment]
    except ImportError:
        raise NotApplicableError("watch: callback() needs lightning; pip install lightning") from None

    class WatchCallback(Callback):
        """Looks at the end of each epoch of training."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                model = pl_module if of is None else of(pl_module)
                watch(model, trainer.current_epoch, [logger for logger in trainer.loggers if _takes(logger)])

    return WatchCallback()
