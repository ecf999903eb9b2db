"""`xattn app`: the comparison as a page on this machine, to drop photographs in and to choose with the mouse."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli import console, options
from xattn.errors import ParameterError, needs

if TYPE_CHECKING:
    from xattn.cli.drop_page import DropPage

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn app",
        "xattn app --model resnet50 --weights DEFAULT --port 8000",
        "xattn app --model mypackage.nets:build --weights mine.safetensors --classes cat,dog --mean 0.5 --std 0.25",
        "The page offers the networks that are named here and no others; it reads no file but those that are dropped.",
        "It asks nothing of the internet and tells nobody. Ctrl-C ends it, and what was dropped is deleted.",
    )
)


def app(
    model: options.Models = None,
    weights: options.ManyWeights = None,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    size: options.Size = None,
    fit: options.Fit = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; the default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Port; 0 takes a free one.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: options.Device = "auto",
) -> None:
    """Open a local page: drop photographs in, choose network, methods, class and parts, see what compare shows."""
    from xattn.cli.drop_page import DropPage

    needs("app", "xattn app")
    if not 0 <= port < 2**16:
        raise ParameterError(f"--port: expected 0 to 65535 but is {port}.")
    page = DropPage(
        models=tuple(model or ()), weights=tuple(weights or ()), given=options.given(mean, std, classes, size),
        words=_words(mean=mean, std=std, classes=classes, size=size), fit=fit, device=device,
    )  # fmt: skip
    if not _is_loopback(host):
        console.warn(f"--host {host}: everybody who reaches this machine can use the page and see what is dropped.")
    with tempfile.TemporaryDirectory(prefix="xattn-app-") as folder:
        url = serve(page, Path(folder), host=host, port=port, browser=browser)
        console.say(f"the page is at {url} until Ctrl-C")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    console.say("ended; what was dropped is deleted.")


def serve(page: DropPage, folder: Path, *, host: str, port: int, browser: bool) -> str:
    """Start to answer in the background; where the page is.

    Args:
        page: what is asked and answered.
        folder: for what is dropped and made.
        host: address to listen at.
        port: of it; 0 is a free one.
        browser: open it.

    Raises:
        ParameterError: if nothing can listen there.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    import gradio

    plain = gradio.themes.Font("system-ui"), gradio.themes.Font("sans-serif")
    theme = gradio.themes.Default(font=plain, font_mono=(gradio.themes.Font("monospace"),))
    try:
        _, url, _ = page.blocks(folder).launch(
            server_name=host, server_port=port or _free_port(host), inbrowser=browser, share=False, quiet=True,
            prevent_thread_lock=True, show_error=True, footer_links=[], enable_monitoring=False, ssr_mode=False,
            pwa=False, mcp_server=False, theme=theme, max_file_size="200mb", css=".page iframe { width: 100%; }",
        )  # fmt: skip
    except OSError as error:
        raise ParameterError(f"--port {port}: nothing can listen at {host} there ({error}); pass --port 0.") from None
    return str(url)


def _words(**given: str | None) -> tuple[str, ...]:
    """What was said of the network, as the command says it."""
    return tuple(word for key, value in given.items() if value is not None for word in (f"--{key}", value))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
