"""`xattn benchmark`: score every method by every metric on every image, so that it can be killed and go on."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console, options

if TYPE_CHECKING:
    from xattn.benchmark.config import Config
    from xattn.benchmark.costs import Cost
    from xattn.benchmark.engine import Engine, Job
    from xattn.benchmark.plan import Cell

_SHOWN = 5  # unreadable images that are named

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn benchmark run.toml --plan              [dim]# what it takes, before it is begun[/dim]",
        "xattn benchmark run.toml --out runs/x",
        "xattn benchmark run.toml --out runs/x --fast  [dim]# half the time; a folder of its own[/dim]",
        "xattn benchmark run.toml --out runs/x --set data.0.limit=500 --set run.batch=32",
        "torchrun --nproc-per-node 4 -m xattn benchmark run.toml --out runs/x",
        "xattn benchmark run.toml --out runs/x --shard 0/3   [dim]# and 1/3, 2/3 on other machines[/dim]",
        "xattn benchmark run.toml --out runs/x --status      [dim]# how far all of them are[/dim]",
        "xattn benchmark run.toml --out runs/x --engine ray:workers=4",
        "xattn benchmark run.toml --out /shared/x --engine submitit:workers=16,partition=gpu,gpus=1",
        "xattn report runs/x",
        "The same command goes on where an earlier one stopped, however it stopped. Add methods, metrics or images to "
        "the file and run it again: only what is not there is computed.",
        "Exit status: 0 all scored, 2 bad input, 3 some images could not be read, 130 interrupted.",
    )
)


def benchmark(
    config: Annotated[Path, typer.Argument(help="The run (TOML): data, models, methods, metrics.", metavar="RUN.toml")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the scores; also a URL, as s3://bucket/folder."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell what the run takes, from a probe on two images, and stop.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how far the run in --out is, whoever works on it, and stop.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N, for several processes or machines.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:K=V,...]",
            help="What has the blocks scored: local, torchrun, submitit (a Slurm array), ray; with parameters, as "
            "ray:workers=4.",
            show_default="torchrun where it has started this process, else local",
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Score perturbed images with a cheaper copy of the model: folded batch norms, bfloat16."
        ),
    ] = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a value of the file.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Score explanation methods by every metric, per image, with controls beside them."""
    from xattn.benchmark.config import Config
    from xattn.benchmark.engine import Job
    from xattn.benchmark.engines import engine_of
    from xattn.benchmark.plan import plan as check
    from xattn.benchmark.store import Store
    from xattn.errors import ParameterError

    runner = engine_of(engine, shard)
    rank, world = runner.part(shard)
    settings = Config.read(config, [*(change or ()), *(["run.fast=true"] if fast else ())])
    if out is None and not plan:
        raise ParameterError("benchmark: pass the folder of the scores with --out, or --plan.")
    if plan or out is None:
        _show_plan(settings, check(settings), world)
        return
    Store(out).check_unpublished()  # told before the models are made
    if status:
        _show_status(settings, check(settings), out, world)
        return
    try:
        code = _run(Job(settings, out), runner, (rank, world), check(settings), quiet=quiet or rank > 0)
        if rank == 0:
            console.say(f"next: xattn report {shlex.quote(out)} --config {shlex.quote(str(config))}")
    except KeyboardInterrupt:
        stored = len(Store(out).parts())
        console.fail(
            f"interrupted with {stored:,} blocks of scores stored; nothing that is in '{out}' is lost. The same "
            "command goes on from there."
        )
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)


def _run(job: Job, engine: Engine, part: tuple[int, int], cells: Sequence[Cell], *, quiet: bool) -> int:
    import torch

    from xattn.errors import ParameterError, reason_of

    out, (rank, world) = job.out, part
    try:
        with _progress(quiet, rank, world) as progress:
            summary = engine.run(job, cells, part, progress)
    except torch.OutOfMemoryError as error:
        raise ParameterError(
            f"benchmark: out of memory ({reason_of(error)}); lower run.batch, which changes no score beyond "
            "rounding. What is stored stays."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ParameterError(
            f"benchmark: the disk of '{out}' is full; what is stored is whole. Free some space and run it again."
        ) from None
    prefix = f"process {rank} of {world}: " if world > 1 else ""
    console.say(f"{prefix}{summary.rows:,} new scores in {summary.blocks} blocks, in {out}")
    # A launcher stops the other processes when one ends with a status, so that only the words tell there.
    failed = rank == 0 and _tell(out, cells)
    return EXIT_SOME_FAILED if failed and not engine.launched else 0


def _tell(out: str, cells: Sequence[Cell]) -> bool:
    """Say what was left out and why; whether images could not be read."""
    from xattn.benchmark.store import READING, REFUSED, STATUS, Store

    store = Store(out)
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        for name, reason in cell.left_out.items():
            reasons.setdefault(f"{name}: {reason}", []).append(cell.model.title)
    for row in store.notes(STATUS):
        if row.note.startswith(REFUSED):
            reasons.setdefault(f"{row.method}: {row.note.removeprefix(REFUSED)}", []).append(row.model)
    for reason, models in reasons.items():
        console.say(f"left out on {', '.join(dict.fromkeys(models))}: {reason}")
    bad = list({(row.dataset, row.image): row.note for row in store.notes(READING)}.items())
    if bad:
        console.say(f"{len(bad)} images could not be read:")
        for (dataset, image), note in bad[:_SHOWN]:
            console.say(f"  {dataset} {image}: {note}")
        if len(bad) > _SHOWN:
            console.say(f"  and {len(bad) - _SHOWN} more: see the rows of 'reading'")
    return bool(bad)


@contextmanager
def _progress(quiet: bool, rank: int, world: int) -> Iterator[Callable[[float, float, str], None] | None]:
    """A bar on stderr, or none."""
    if quiet:
        yield None
        return
    with console.progress(speed_s=600) as bar:
        part = f" ({rank}/{world})" if world > 1 else ""
        bar.update(what=f"benchmark{part}")

        def show(done: float, total: float, cell: str) -> None:
            bar.update(done=done, total=total, what=f"{cell}{part}")

        yield show


def _show_plan(config: Config, cells: Sequence[Cell], world: int) -> None:
    from xattn.benchmark.costs import estimate
    from xattn.benchmark.store import STATUS

    seconds = passes = 0.0
    for cell in cells:
        costs = estimate(cell, config)
        numbers = [{"header": h, "justify": "right"} for h in ("images", "passes/image", "passes", "s/image", "time")]
        rows = [("the maps" if label == STATUS else label, *_cost(cost)) for label, cost in costs.items()]
        own = sum(c.images * c.seconds for c in costs.values()), sum(c.images * c.passes for c in costs.values())
        total = ("all", "", "", f"{own[1]:,.0f}", "", _duration(own[0]))
        seconds, passes = seconds + own[0], passes + own[1]
        title = f"{cell.name}: {len(cell.indices):,} of {len(cell.dataset):,} images"
        console.table([*rows, (), total], {"header": "metric"}, *numbers, title=title, frame=True)
        console.say(f"{len(cell.methods)} methods: {', '.join(cell.methods)}", limit=4000)
        for name, reason in cell.left_out.items():
            console.say(f"left out: {name}: {reason.removeprefix(f'{name}: ')}")
    spread = f", {_duration(seconds / world)} with {world} processes" if world > 1 else ""
    console.say(
        f"in all about {passes:,.0f} images through the models and {_duration(seconds)}{spread} (a probe on two images)"
    )


def _show_status(config: Config, cells: Sequence[Cell], out: str, world: int) -> None:
    from xattn.benchmark.progress import done_of, pace_of, sum_of
    from xattn.benchmark.store import Store

    store = Store(out)
    shares = {cell.name: done_of(store, config, cell, world) for cell in cells}
    rows = [sum_of(name, own) for name, own in shares.items()]
    if world > 1:
        rows += [sum_of(f"process {i} of {world}", some) for i, some in enumerate(zip(*shares.values(), strict=True))]
    total = sum_of("all", [done for own in shares.values() for done in own])
    numbers = [{"header": h, "justify": "right"} for h in ("blocks", "whole", "begun", "work done")]
    cells_of = [(d.name, f"{d.blocks:,}", f"{d.whole:,}", f"{d.begun:,}", f"{d.share:.0%}") for d in (*rows, total)]
    console.table([*cells_of[:-1], (), cells_of[-1]], {"header": "of"}, *numbers, title=out, frame=True)
    pace, todo = pace_of(store), total.blocks - total.whole
    if pace.age_s is None:
        console.say("nothing is stored yet" if not pace.parts else f"{pace.parts:,} parts")
        return
    words = [f"{pace.parts:,} parts, the last one {_duration(pace.age_s)} ago"]
    if todo and pace.stopped:
        words.append("which is long: if no process is at work any more, the same command without --status goes on")
    elif todo and pace.each_s is not None:
        words.append(
            f"one every {_duration(pace.each_s)}: about {_duration(todo * pace.each_s)} left for {todo:,} blocks"
        )
    console.say("; ".join(words))


def _cost(cost: Cost) -> tuple[str, str, str, str, str]:
    return (
        f"{cost.images:,}",
        f"{cost.passes:,.0f}",
        f"{cost.images * cost.passes:,.0f}",
        f"{cost.seconds:.3g}",
        _duration(cost.images * cost.seconds),
    )


def _duration(seconds: float) -> str:
    """A time in the two units that tell."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
