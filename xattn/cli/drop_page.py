"""What the local page asks and answers: a form of Gradio, and the page of `xattn compare` in it."""

from __future__ import annotations

import dataclasses
import html
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn.cli import options
from xattn.cli.choosing import choose_columns, default_model
from xattn.cli.compare import curve_metric, fill, in_order, sheet, with_controls, write
from xattn.cli.work import Work
from xattn.errors import DataError, XattnError
from xattn.looks import COLORMAP

_METHODS = ("brnpa", "gradcam", "layercam", "saliency")
_STEPS = 10
_MOST = 24  # photographs of a page, whose pictures are inside it
_EMPTY = "<p>Drop photographs on the left, then press <b>Explain</b>.</p>"


class _Silent(Work):
    """What the page shows need not be said in the terminal too."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a person asks for.

    Args:
        files: the photographs.
        network: one of those that are offered.
        methods: by name.
        target: class by name or index; empty for the predicted one.
        topk: classes to explain.
        parts: of methods that have parts; None leaves it to them.
        controls: beside the methods.
        curves: deletion and insertion of each map.
    """

    files: Sequence[str]
    network: str
    methods: Sequence[str]
    target: str = ""
    topk: int = 1
    parts: int | None = None
    controls: bool = True
    curves: bool = True


@dataclasses.dataclass(frozen=True)
class DropPage:
    """The page.

    Args:
        models: networks that are offered, as for `--model`; none stands for the default and those inside xattn.
        weights: as for `--weights`.
        given: facts about the networks, as for `choose_columns`.
        words: the same as words of a command.
        fit: as for `--fit`.
        device: where to compute.
    """

    models: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()
    fit: str | None = None
    device: str = "auto"

    def networks(self) -> list[str]:
        """Names of the networks that are offered."""
        from xattn.models.embedded import FOLDER

        inside = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
        return list(dict.fromkeys(self.models)) or list(dict.fromkeys([default_model(), *inside]))

    def weights_of(self, network: str) -> list[str]:
        """The weights that were named for a network."""
        if len(self.weights) <= 1:
            return [*self.weights]
        return [self.weights[self.models.index(network)]]

    def methods(self, network: str) -> list[str]:
        """Methods that are defined for a network, the usual ones first."""
        from xattn.explainer import Family

        columns = choose_columns(["all"], parts=None, **self._network(network))
        fit = [c.method.name for c in columns if c.refused is None and c.method.family is not Family.CONTROL]
        return [*(m for m in _METHODS if m in fit), *(m for m in fit if m not in _METHODS)]

    def _network(self, network: str) -> dict[str, Any]:
        if network not in self.networks():
            raise DataError(f"'{network}' is none of the networks of this page: {', '.join(self.networks())}.")
        return {
            "models": [network], "weights": self.weights_of(network), "head": None, "resolution": None,
            "device": self.device, "given": self.given,
        }  # fmt: skip

    def command(self, asked: Asked) -> str:
        """The command that makes the same page where the photographs are."""
        words = ["xattn", "compare", *(Path(file).name for file in asked.files), "--model", asked.network]
        words += [word for file in self.weights_of(asked.network) for word in ("--weights", file)]
        words += [*self.words, *(word for method in asked.methods for word in ("-m", method))]
        words += ["--target", asked.target] if asked.target else []
        words += ["--topk", str(asked.topk)] if asked.topk > 1 else []
        words += ["--parts", str(asked.parts)] if asked.parts is not None else []
        words += ["--fit", self.fit] if self.fit else []
        words += [*(() if asked.controls else ("--no-controls",)), *(() if asked.curves else ("--no-curves",))]
        return shlex.join([*words, "--out", "comparison.html"])

    def answer(self, asked: Asked, out: Path, watch: Callable[[int], None] | None = None) -> Path:
        """Write the page of what is asked.

        Args:
            asked: by a person.
            out: the page.
            watch: called with the number of photographs that are done.

        Raises:
            XattnError: in words for the person.
        """
        if not asked.files:
            raise DataError("there is no photograph yet; drop some.")
        if len(asked.files) > _MOST:
            raise DataError(f"a page takes {_MOST} photographs but there are {len(asked.files)}; use the command.")
        if not asked.methods:
            raise DataError("choose a method at least.")
        options.check_numbers({"--topk": asked.topk, "--parts": asked.parts})
        settings = options.settings(
            targets=(asked.target,) if asked.target else (), topk=asked.topk, fit=self.fit, score="logit",
            precision="fp32", window=None, batch_size=8, tolerant=False, device=self.device, colormap=COLORMAP,
        )  # fmt: skip
        work = _Silent(settings, err=True)
        texts = list(asked.methods)
        columns = choose_columns(
            with_controls(texts) if asked.controls else texts, parts=asked.parts, **self._network(asked.network)
        )
        work.columns = in_order(columns)
        comparison = sheet(work, None, COLORMAP, None, _STEPS if asked.curves else 0)
        metric = curve_metric(_STEPS, self.device) if asked.curves else None
        fill(work, [Path(file) for file in asked.files], comparison, metric, watch)
        if not work.entries:
            raise DataError(f"{Path(work.failed[0]['file']).name} {work.failed[0]['reason']}")
        return write(work, comparison, out)

    def blocks(self, folder: Path) -> Any:
        """The form.

        Args:
            folder: for the pages that are made.
        """
        import gradio

        names = self.networks()

        def methods_of(network: str, chosen: list[str]) -> Any:
            try:
                known = self.methods(network)
            except XattnError as error:
                raise gradio.Error(str(error), duration=None, print_exception=False) from None
            kept = [m for m in chosen if m in known] or known[:3]
            return gradio.Dropdown(choices=known, value=kept)

        def explain(*values: Any, progress: Any = gradio.Progress()) -> tuple[Any, str, Any]:  # noqa: B008
            files, network, methods, target, topk, parts, controls, curves = values
            asked = Asked(
                files or [], network, methods, (target or "").strip(), int(topk), int(parts) if parts else None,
                controls, curves,
            )  # fmt: skip
            place = Path(tempfile.mkdtemp(dir=folder)) / "comparison.html"
            progress(0, desc="loading the network")
            try:
                page = self.answer(asked, place, lambda done: progress((done, len(asked.files)), unit="photographs"))
            except XattnError as error:
                raise gradio.Error(str(error), duration=None, print_exception=False) from None
            return framed(page), self.command(asked), gradio.DownloadButton(value=str(page), interactive=True)

        known = self.methods(names[0])
        with gradio.Blocks(
            title="xattn", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
        ) as blocks:
            with gradio.Row():
                with gradio.Column(scale=1, min_width=280):
                    inputs: list[Any] = [
                        gradio.File(file_count="multiple", file_types=["image"], label="Photographs", height=160),
                        gradio.Dropdown(names, value=names[0], label="Network"),
                        gradio.Dropdown(
                            known, value=[m for m in _METHODS[:3] if m in known] or known[:3], multiselect=True,
                            label="Methods",
                        ),
                        gradio.Textbox(label="Class", placeholder="the predicted one; else a name or an index"),
                        gradio.Slider(1, 5, value=1, step=1, label="Most probable classes that are explained"),
                        gradio.Slider(0, 8, value=0, step=1, label="Parts of an image (0: as the method has them)"),
                        gradio.Checkbox(value=True, label="Controls, which know nothing of the image"),
                        gradio.Checkbox(value=True, label="Deletion and insertion curves (most of the time)"),
                    ]  # fmt: skip
                    button = gradio.Button("Explain", variant="primary")
                    command = gradio.Code(
                        language="shell", label="The command that makes this page", lines=2, wrap_lines=True,
                        interactive=False, show_line_numbers=False, buttons=["copy"],
                    )  # fmt: skip
                    download = gradio.DownloadButton("Save the page", interactive=False)
                with gradio.Column(scale=4, min_width=320):
                    shown = gradio.HTML(_EMPTY, elem_classes="page", min_height=300)
            inputs[1].change(
                methods_of, [inputs[1], inputs[2]], inputs[2], show_progress="hidden", api_visibility="private"
            )
            button.click(explain, inputs, [shown, command, download], api_visibility="private")
        return blocks


def framed(page: Path) -> str:
    """A page inside another one, which it cannot touch: scripts of its own run there, without an origin."""
    source = html.escape(page.read_text(encoding="utf-8"))
    style = "width:100%;height:88vh;border:0;border-radius:8px"
    return (
        f'<iframe title="Comparison" sandbox="allow-scripts allow-popups" style="{style}" srcdoc="{source}"></iframe>'
    )
