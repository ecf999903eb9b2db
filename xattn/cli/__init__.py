"""The command `xattn`: a Typer application with one module per command, each imported when it is needed.

Nothing here imports torch, so that `xattn --help` answers at once. This package is the only place that prints.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from xattn import __version__
from xattn.cli import console
from xattn.errors import XattnError, XattnWarning, nearest

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

# typer has moved this class between versions, but BadParameter has always been its child.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

# command -> module and function. No module may be called `list`: it would hide the builtin in this namespace.
COMMANDS = {
    "explain": ("explain", "explain"),
    "compare": ("compare", "compare"),
    "app": ("local_page", "app"),
    "match": ("match", "match"),
    "list": ("catalog", "show"),
    "doctor": ("doctor", "doctor"),
    "convert": ("convert", "convert"),
    "train": ("train", "train"),
    "select": ("select", "select"),
    "evaluate": ("evaluate", "evaluate"),
    "audit": ("audit", "audit"),
    "benchmark": ("benchmark", "benchmark"),
    "report": ("report", "report"),
    "publish": ("publish", "publish"),
}

EPILOG = "\n\n".join(
    (
        "[bold]Start here[/bold]",
        "xattn explain photo.jpg        [dim]# Grad-CAM, with EfficientNet-Lite0[/dim]",
        "xattn explain -m gradcam -m saliency photos/ --model resnet50 --weights DEFAULT",
        "xattn compare photos/ --out page.html  [dim]# methods side by side, on one page to share[/dim]",
        "xattn app                      [dim]# the same on a local page: drop photographs in and choose[/dim]",
        "xattn match cow.jpg herd/ --model runs/cows/best.safetensors  [dim]# the same one? what says so?[/dim]",
        "xattn list methods             [dim]# what there is, what it costs, which paper[/dim]",
        "xattn doctor --model resnet50  [dim]# which methods to believe on this model[/dim]",
        "xattn select resnet50 --weights DEFAULT --data photos/  [dim]# which method to use, within minutes[/dim]",
        "xattn audit net.safetensors --data photos/  [dim]# what it relies on, shortcut candidates first[/dim]",
        "xattn convert resnet50 --weights DEFAULT --out net.safetensors  [dim]# attention that can be read[/dim]",
        "xattn benchmark run.toml --out runs/x  [dim]# score methods by metrics; then: xattn report runs/x[/dim]",
        "xattn COMMAND --help           [dim]# options and more examples[/dim]",
        "Exit status: 0 fine, 2 bad input, 3 some of the images failed.",
    )
)


class CommandGroup(TyperGroup):
    """Commands imported on demand, and errors as one line with an exit status.

    `--debug` may stand anywhere on the line.
    """

    _listed = False  # while the commands are listed, for which their options are not needed

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As the base class, without building the options of each command."""
        self._listed = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listed = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, in the order of the help."""
        return [*COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module_name, function = COMMANDS[cmd_name]
        module = importlib.import_module(f"xattn.cli.{module_name}")
        if self._listed:
            return TyperCommand(cmd_name, help=inspect.getdoc(getattr(module, function)))
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(cmd_name, epilog=getattr(module, "EPILOG", None))(getattr(module, function))
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As the base class, with the nearest command where there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            guess = nearest(args[0], COMMANDS)
            hint = f" Did you mean '{guess}'?" if guess else ""
            ctx.fail(f"unknown command '{args[0]}'.{hint} Known: {', '.join(COMMANDS)}.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As the base class; typer would turn Ctrl-C into a status without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, turn the errors that xattn raises on purpose into one line, and exit with the status."""
        words, *rest = args or (extra.pop("args", None),)
        given = list(sys.argv[1:] if words is None else words)
        end = given.index("--") if "--" in given else len(given)  # what follows are paths
        debug = "--debug" in given[:end]
        given = [a for a in given[:end] if a != "--debug"] + given[end:]
        standalone = extra.pop("standalone_mode", True)
        try:
            # Training starts processes of its own, whose stderr is that of this one.
            with console.own_streams(alone=not debug and "train" not in given[:1]), _shown_warnings(debug):
                status = super().main(given, *rest, **{**extra, "standalone_mode": False})
        except (XattnError, UsageError, OSError, MemoryError) as error:
            if debug:
                traceback.print_exc()
            console.fail(_message(error))
            status = EXIT_BAD_INPUT
        except (typer.Abort, KeyboardInterrupt):
            console.fail("interrupted.")
            status = EXIT_INTERRUPTED
        if standalone:
            sys.exit(status if isinstance(status, int) else 0)
        return status


def _message(error: Exception) -> str:
    """One line that says what is wrong, and where help is if the command line itself was."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, MemoryError):
        return "out of memory; pass smaller numbers or smaller images, or fewer of them at once. --debug shows where."
    if not isinstance(error, UsageError):
        return str(error)
    context = getattr(error, "ctx", None)
    where = f" Try '{context.command_path} --help'." if context else ""
    text = error.format_message().strip()
    return text if text.endswith((".", "?", ")")) and not where else text.rstrip(".") + "." + where


@contextmanager
def _shown_warnings(debug: bool) -> Iterator[None]:
    """Warnings of xattn are printed as one line each; those of other packages only with `--debug`."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        origin = "" if issubclass(category, XattnWarning) else f" ({category.__name__}, {filename}:{lineno})"
        console.warn(f"{message}{origin}")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        warnings.simplefilter("always", XattnWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


app = typer.Typer(
    name="xattn",
    cls=CommandGroup,
    epilog=EPILOG,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xattn {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")] = False,
) -> None:
    """See what an image classifier looks at: saliency maps of any PyTorch model, from photograph to picture."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main() -> None:
    """Entry point of the console script."""
    # Threads of torch that wait for each other spin: on a machine that does something else, too, they take the
    # processor from the very thread that they wait for, and a command takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="xattn")
