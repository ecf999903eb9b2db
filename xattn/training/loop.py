"""The training loop on Lightning Fabric, which places, wraps and launches; here is only what is learned and kept."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.errors import CheckpointError, DataError, ParameterError, reason_of
from xattn.models.checkpoint import save_weights
from xattn.models.factory import FactoryError, load_model
from xattn.models.heads import Head
from xattn.training.augment import Draws, derive_seed, draw, finish, sides
from xattn.training.checkpoint import Progress, save_run
from xattn.training.data import Source, open_source
from xattn.training.folder import (
    BEST,
    LAST,
    LOG,
    RECIPE,
    RUN,
    find_run,
    processor_name,
    version_of,
    write_log,
    write_text,
)
from xattn.training.losses import distillation_loss
from xattn.training.network import Trainee, average, build, facts_of, freeze_batchnorm, named_by, parameter_groups
from xattn.training.recipe import Recipe
from xattn.training.schedule import learning_rate
from xattn.training.stopping import RunStoppedError, Stop, stop_signal

_EVALUATION_BATCH = 250


class Monitor(Protocol):
    """What a run tells whoever watches; called in the first process only."""

    def begin(self, recipe: Recipe, progress: Progress, steps_per_epoch: int, images: int, held_out: int) -> None:
        """Everything is loaded and the first step is next."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        """A step is done: epoch from 1, step within it, means of the epoch so far, images per second."""

    def epoch(self, row: dict[str, float], best: bool) -> None:
        """An epoch is done and written."""


class Silent:
    """A monitor that shows nothing."""

    def begin(self, recipe: Recipe, progress: Progress, steps_per_epoch: int, images: int, held_out: int) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Nothing."""

    def epoch(self, row: dict[str, float], best: bool) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        out: its folder.
        best: weights of the best epoch.
        measure: of the task, by which it was chosen.
        value: of this measure on the held-out images.
        epoch: which epoch, counted from 1.
        history: one row per epoch.
    """

    out: Path
    best: Path
    measure: str
    value: float
    epoch: int
    history: list[dict[str, float]]


def train(recipe: Recipe, monitor: Monitor | None = None, *, fresh: bool = False) -> Result:
    """Train as a recipe says, or go on where an earlier call with the same recipe and folder stopped.

    The best epoch is the one with the highest measure of the task, such as the accuracy, on images held out of the
    training set or on a part of their own. On the same hardware
    and number of threads a run that was killed and continued has the same weights, bit by bit, as one that was not.

    Args:
        recipe: what to do; `run.out` gets `best.safetensors`, `last.safetensors`, `log.csv`, `recipe.toml`, `run.json`.
        monitor: shows progress.
        fresh: start anew even if there is a run in the folder.

    Raises:
        CheckpointError: if the folder holds a run with another recipe or other images, or lacks a file of its run.
        RunStoppedError: after Ctrl-C or SIGTERM, once the state is written.
    """
    from lightning.fabric import Fabric

    run = recipe.run
    launched = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun has started the processes already
    devices = int(launched) if launched.isdecimal() and run.devices == "auto" else run.devices
    try:
        fabric = Fabric(accelerator=run.accelerator, devices=devices, strategy=run.strategy, precision=run.precision)
    except Exception as error:  # of many classes: for unknown strategies, missing devices, missing libraries
        raise ParameterError(
            f"training: run.accelerator={run.accelerator}, run.devices={devices}, run.strategy={run.strategy} cannot "
            f"be had here: {reason_of(error)}"
        ) from error
    fabric.launch()
    return _Run(fabric, recipe, monitor or Silent(), fresh).train()


class _Run:
    """One run in one process."""

    def __init__(self, fabric: Any, recipe: Recipe, monitor: Monitor, fresh: bool) -> None:
        self.fabric = fabric
        self.recipe = recipe
        self.task = recipe.task
        self.monitor: Monitor = monitor if fabric.is_global_zero else Silent()
        self.out = Path(recipe.run.out)
        self.saved = None if fresh else find_run(self.out, recipe)
        by_teacher = recipe.distill.labels == "teacher"
        self.source: Source = open_source(recipe.data, "train", labelled=not by_teacher)
        self.judged = self.source if not recipe.data.validation else open_source(recipe.data, recipe.data.validation)
        self.images = self.source.fingerprint + (self.judged.fingerprint if recipe.data.validation else "")
        if self.saved is not None and self.saved.images not in ("", self.images):
            raise CheckpointError(
                f"'{self.out}' holds a run on other images than '{recipe.data.source}' has now: a file differs in "
                "name, size, time or content; put it back, choose another folder, or start anew with --fresh."
            )
        self.chosen, self.held, self.labels, self.classes = self._divide()
        self.teacher = self._load_teacher()
        if self.teacher is not None and by_teacher:
            self.source.labels, self.classes = named_by(self.teacher, self.source, recipe, fabric.to_device)
            self.labels = self.source.labels
        self.world, self.rank = fabric.world_size, fabric.global_rank
        self.batch = recipe.run.batch_size * self.world
        self.steps = len(self.chosen) // self.batch
        if self.steps == 0:
            raise ParameterError(
                f"training: {len(self.chosen)} training images make no batch of {self.batch}; lower --batch-size "
                "(run.batch_size)."
            )
        taken = None if self.judged.groups is None else self.judged.groups[self.held]
        self.task.check(
            self.labels[self.chosen], self.judged.labels[self.held], taken, recipe.run.batch_size, self.world
        )
        torch.manual_seed(derive_seed(recipe.run.seed, "weights"))
        self.raw = build(recipe, self.classes)
        self._place(self.raw)
        section = recipe.optimizer
        groups = parameter_groups(self.raw, section.weight_decay)
        self.raw_optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, section.lr, section.momentum, nesterov=section.nesterov and section.momentum > 0)
            if section.name == "sgd"
            else torch.optim.AdamW(groups, section.lr)
        )
        self.model, self.optimizer = fabric.setup(self.raw, self.raw_optimizer)
        # Only now: setup may have changed the precision of the weights.
        self.mean: Trainee | None = copy.deepcopy(self.raw) if recipe.optimizer.ema else None
        self.progress = Progress()
        if self.saved is not None:
            self.progress = self.saved.progress
            self.saved.restore(self.raw, self.mean, self.raw_optimizer, str(self.out / LAST))
            self.saved = None
        spec = self.raw.model.spec
        self.statistics = (torch.tensor(spec.mean), torch.tensor(spec.std))

    def _divide(self) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
        """Places of the images to train with and of those that judge, classes of all images, and their names.

        A task that holds whole classes out has the others alone, numbered anew.
        """
        data, labels, names = self.recipe.data, self.source.labels, self.source.classes
        if data.validation:
            train, held = torch.arange(len(labels)), torch.arange(len(self.judged))
            if not self.task.compares and self.judged.classes != names:
                raise DataError(
                    f"training: the {data.validation} part of '{data.source}' has other classes than the training "
                    f"part, so that the task {self.task.name} cannot be judged on it."
                )
        else:
            train, held = self.task.hold_out(labels, data.held_out, self.recipe.run.seed)
        if not self.task.compares:
            return train, held, labels, names
        own = labels[train].unique(sorted=True)
        new = torch.full((len(names),), -1)
        new[own] = torch.arange(len(own))
        return train, held, new[labels], tuple(names[i] for i in own.tolist())

    def _load_teacher(self) -> nn.Module | None:
        """The teacher, frozen."""
        if not self.recipe.distill.teacher:
            return None
        factory = self.recipe.distill.factory or self.recipe.model.backbone
        try:
            teacher = load_model(self.recipe.distill.teacher, factory).requires_grad_(False).eval()
        except FactoryError as error:
            raise FactoryError(error.path, error.factory, f"--set distill.factory={error.factory}") from None
        theirs, ours = len(facts_of(teacher).classes), len(self.classes)
        if theirs not in (0, ours) and self.recipe.distill.labels == "given":
            raise CheckpointError(
                f"'{self.recipe.distill.teacher}' knows {theirs} classes but the data set has {ours}."
            )
        return self._place(teacher)

    def _place(self, module: nn.Module) -> nn.Module:
        """A module on the device, in the memory format of the recipe."""
        form = torch.channels_last if self.recipe.run.channels_last else torch.contiguous_format
        return module.to(memory_format=form).to(self.fabric.device)

    def train(self) -> Result:
        """All epochs that are left."""
        recipe, progress = self.recipe, self.progress
        if self.fabric.is_global_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / RECIPE, recipe.to_toml())
            write_text(self.out / RUN, json.dumps(self._facts(), indent=1) + "\n")
        if not progress.step:
            self._save()
        self.monitor.begin(recipe, progress, self.steps, len(self.chosen), len(self.held))
        board = self._board()
        with stop_signal() as stop:
            while progress.epoch < recipe.run.epochs:
                self._epoch(stop)
                row = self._close_epoch()
                if board is not None:
                    board.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))
                    board.save()
        if self.fabric.is_global_zero:
            write_text(self.out / RUN, json.dumps(self._facts(), indent=1) + "\n")
        self.fabric.barrier()
        return Result(
            self.out, self.out / BEST, self.task.measure, progress.best, progress.best_epoch, progress.history
        )

    def _board(self) -> Any:
        """TensorBoard's writer, in the first process."""
        if not (self.recipe.run.tensorboard and self.fabric.is_global_zero):
            return None
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(self.out, name="tensorboard", version="")

    def _order(self, epoch: int) -> Tensor:
        """Training images in the order of an epoch, the same in all processes."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.run.seed, "order", epoch))
        places = self.task.order(self.labels[self.chosen], self.batch, self.steps, generator)
        if places is not None:
            return self.chosen[places]
        return self.chosen[self.source.order(self.chosen, generator)]

    def _draws(self, step: int) -> Draws:
        """This process's share of the random numbers of a step."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.run.seed, "augment", step))
        drawn = draw(self.recipe.augment, self.batch, generator)
        return {name: values[self._share()] for name, values in drawn.items()}

    def _share(self) -> slice:
        """Rows of this process in a batch of all."""
        size = self.recipe.run.batch_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def _prepare(self, images: Tensor, draws: Draws | None) -> Tensor:
        """Normalized images on the device, in the memory format of the network."""
        x = finish(images, self.recipe.augment, draws, *self.statistics)
        if self.recipe.run.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return cast("Tensor", self.fabric.to_device(x))

    def _loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the network, that of its rank heads, and the logits (N, K)."""
        distill, smoothing = self.recipe.distill, self.recipe.optimizer.label_smoothing
        logits, ranks, embedding = self.model(x)
        if self.teacher is None:
            loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        else:
            with torch.no_grad(), self.fabric.autocast():
                guide = self.teacher(x)
            loss = distillation_loss(
                logits,
                guide.to(logits.dtype),
                target,
                distill.weight,
                distill.temperature,
                label_smoothing=smoothing,
                form=distill.form,
            )
        extra = loss.new_zeros(())
        for z in ranks.values():
            extra = extra + F.cross_entropy(z, target, label_smoothing=smoothing)
        return self.task.loss(loss, embedding, target), extra, logits

    def _epoch(self, stop: Stop) -> None:
        """The steps that are left of the epoch under way."""
        recipe, progress = self.recipe, self.progress
        epoch = progress.epoch
        first = progress.step - epoch * self.steps
        order = self._order(epoch)
        indices = [order[i * self.batch : (i + 1) * self.batch][self._share()] for i in range(first, self.steps)]
        draws = [self._draws(epoch * self.steps + i) for i in range(first, self.steps)]
        sums = progress.sums or {"loss": 0.0, "correct": 0.0, "images": 0.0, "seconds": 0.0}
        progress.sums = sums
        self.model.train()
        if recipe.model.freeze_batchnorm or self.task.scales:
            freeze_batchnorm(self.model)
        size = recipe.size_at(epoch)
        began = time.perf_counter()
        batches = self.source.batches(indices, cast("Any", draws), recipe.augment, size)
        for i, images in enumerate(batches):
            self._step(images, indices[i], draws[i], sums)
            now = time.perf_counter()
            sums["seconds"] += now - began
            began = now
            seen = sums["images"]
            rate = seen * self.world / max(sums["seconds"], 1e-9)
            self.monitor.step(epoch + 1, first + i + 1, sums["loss"] / seen, sums["correct"] / seen, rate)
            if first + i + 1 < self.steps and self._stopped(stop):
                self._save()
                raise RunStoppedError(
                    f"stopped in epoch {epoch + 1} of {recipe.run.epochs}; the state is in '{self.out / LAST}'. The "
                    "same command goes on from there.",
                    stop.number,
                )

    def _step(self, images: Tensor, chosen: Tensor, draws: Draws, sums: dict[str, float]) -> None:
        """One step of the optimizer."""
        recipe, progress = self.recipe, self.progress
        # Whatever draws from the global generator (dropout, random seeds) depends on the step alone.
        torch.manual_seed(derive_seed(recipe.run.seed, "step", progress.step, self.rank))
        rate = learning_rate(recipe.optimizer, progress.step, self.steps, recipe.run.epochs)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = rate
        target = self.fabric.to_device(self.labels[chosen])
        loss, extra, logits = self._loss(self._prepare(images, draws), target)
        if not bool(torch.isfinite(loss)):
            raise ParameterError(
                f"training: the loss is {float(loss.detach())} in epoch {progress.epoch + 1}; lower optimizer.lr (now "
                f"{recipe.optimizer.lr}) or set optimizer.clip."
            )
        self.optimizer.zero_grad()
        self.fabric.backward(loss + extra)
        if recipe.optimizer.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=recipe.optimizer.clip)
        self.optimizer.step()
        progress.step += 1
        if self.mean is not None:
            average(self.mean, self.raw, recipe.optimizer.ema, progress.step)
        sums["loss"] += float(loss.detach()) * len(target)
        sums["correct"] += float((logits.detach().argmax(1) == target).sum())
        sums["images"] += len(target)

    def _stopped(self, stop: Stop) -> bool:
        """Whether any process was told to stop; all processes get the same answer."""
        if self.world == 1:
            return stop.number > 0
        stop.number = int(self.fabric.all_reduce(torch.tensor(float(stop.number)), reduce_op="max"))
        return stop.number > 0

    def _close_epoch(self) -> dict[str, float]:
        """Evaluate, note, write."""
        progress, sums = self.progress, self.progress.sums
        names = ("loss", "correct", "images")
        total = torch.tensor([sums[name] for name in names], dtype=torch.float64)
        loss, correct, images = self.fabric.all_reduce(total, reduce_op="sum").tolist()
        held = self._evaluate()
        seconds = sums["seconds"]
        row = {
            "epoch": float(progress.epoch + 1),
            "image_size": float(sides(self.recipe.size_at(progress.epoch))[0]),  # the height
            "lr": self.raw_optimizer.param_groups[0]["lr"],
            "train_loss": loss / images,
            "train_accuracy": correct / images,
            **held,
            "seconds": round(seconds, 2),
            "images_per_second": round(images / max(seconds, 1e-9), 1),
        }
        progress.epoch += 1
        progress.sums = {}
        progress.history.append(row)
        value = row[f"held_out_{self.task.measure}"]
        # Many epochs agree with a teacher on as many images: the last of them is kept.
        best = value >= progress.best if self.recipe.distill.labels == "teacher" else value > progress.best
        if best:
            progress.best, progress.best_epoch = value, progress.epoch
        if self.fabric.is_global_zero:
            if best:
                self._save_best(row)
            write_log(self.out / LOG, progress.history)
        self._save()
        self.monitor.epoch(row, best)
        return row

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Measures on the held-out images."""
        trainee = self.mean or self.raw
        trainee.eval()
        row = self._compare(trainee) if self.task.compares else self._count(trainee)
        trainee.train()
        return {f"held_out_{name}": value for name, value in row.items()}

    def _compare(self, trainee: Trainee) -> dict[str, float]:
        """Measures of the features of all held-out images, the same in every process."""
        found, head = [], cast("Head", trainee.model.head)
        for _, x in self._batches(self.held, trainee):
            with self.fabric.autocast():
                found.append(head.compared(head.embed(trainee.model.backbone(x))).float())
        groups = None if self.judged.groups is None else self.fabric.to_device(self.judged.groups[self.held])
        return self.task.judge(torch.cat(found), self.fabric.to_device(self.judged.labels[self.held]), groups)

    def _batches(self, places: Tensor, trainee: Trainee) -> Iterator[tuple[Tensor, Tensor]]:
        """Places of held-out images and the images as a network that is judged reads them."""
        indices = list(places.split(_EVALUATION_BATCH))
        size = self.recipe.run.image_size
        dtype = next(trainee.parameters()).dtype
        batches = self.judged.batches(indices, [None] * len(indices), self.recipe.augment, size)
        for chosen, images in zip(indices, batches, strict=True):
            yield chosen, self._prepare(images, None).to(dtype)

    def _count(self, trainee: Trainee) -> dict[str, float]:
        """Accuracy and loss, the images shared out over the processes without doubling any."""
        names = ["main", *(trainee.ranks.heads if trainee.ranks is not None else ())]
        sums = torch.zeros(2 + len(names), dtype=torch.float64)
        for chosen, x in self._batches(self.held[self.rank :: self.world], trainee):
            target = self.fabric.to_device(self.judged.labels[chosen])
            with self.fabric.autocast():
                logits, ranks, _ = trainee(x)
            sums[0] += len(target)
            sums[1] += float(F.cross_entropy(logits.float(), target, reduction="sum"))
            for i, z in enumerate((logits, *ranks.values())):
                sums[2 + i] += float((z.argmax(1) == target).sum())
        n, loss, main, *others = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
        row = {"loss": loss / n, "accuracy": main / n}
        row.update({f"accuracy_{name}": hits / n for name, hits in zip(names[1:], others, strict=True)})
        return row

    def _save(self) -> None:
        """Write the state of the run, in the first process."""
        if self.fabric.is_global_zero:
            save_run(
                self.out / LAST,
                model=self.raw,
                average=self.mean,
                optimizer=self.raw_optimizer,
                progress=self.progress,
                recipe=self.recipe.model_dump(mode="json"),
                spec=self.raw.model.spec.to_dict(),
                images=self.images,
            )
        self.fabric.barrier()

    def _save_best(self, row: dict[str, float]) -> None:
        """Write the weights of this epoch as the best."""
        keep = self.mean or self.raw
        save_weights(
            keep.model,
            self.out / BEST,
            architecture=self.raw.model.architecture,
            state=keep.weights(),
            extra={"epoch": self.progress.epoch, "held_out": row, "recipe": self.recipe.model_dump(mode="json")},
        )

    def _facts(self) -> dict[str, Any]:
        """Versions, device and result, for `run.json`."""
        packages = ("torch", "lightning", "numpy", "safetensors", "xattn")
        progress = self.progress
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "images": {"train": len(self.chosen), "held_out": len(self.held)},
            "device": str(self.fabric.device),
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "processes": self.world,
            "versions": {"python": platform.python_version(), **{p: version_of(p) for p in packages}},
            "parameters": sum(p.numel() for p in self.raw.model.parameters()),
            "epochs_done": progress.epoch,
            "best_epoch": progress.best_epoch,
            f"best_held_out_{self.task.measure}": progress.best if progress.best_epoch else None,
        }
