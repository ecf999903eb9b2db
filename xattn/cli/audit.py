"""`xattn audit`: what a network relies on over a whole data set, shortcut candidates first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import EXIT_SOME_FAILED, console, options

if TYPE_CHECKING:
    from xattn.audit.against import Shared
    from xattn.audit.finding import Audit, Finding
    from xattn.audit.gather import Progress
    from xattn.audit.searching import Search
    from xattn.data.dataset import Dataset
    from xattn.spec import ModelSpec

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn audit runs/birds/best.safetensors --data birds/",
        "xattn audit tiny-cnn --data tiny-imagenet:data/tiny-imagenet --classes goldfish,bullfrog",
        "xattn audit runs/tiles/best.safetensors --data plant_a=tiles/a --data plant_b=tiles/b   "
        "[dim]# does it tell the plants apart?[/dim]",
        "xattn audit new.safetensors --data birds/ --against old.safetensors  [dim]# what do both rely on?[/dim]",
        "xattn audit tiny-cnn --data birds/ --find birds/a.jpg --box 40,10,64,32  [dim]# where else is this?[/dim]",
        "Images are grouped by the class that is predicted. Groups of evidence are found on one half of the images of "
        "a class and tested on the other: the score without the evidence against the score without as much elsewhere.",
        "Exit status: 0 answered, 2 bad input, 3 some of the images cannot be read, 130 interrupted.",
    )
)


def audit(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model by name, PACKAGE.MODULE:FACTORY, or a weights file.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SOURCE=]DIR|NAME:DIR",
            help="Images: a folder of class folders, of photographs, or a data set by name; several sources are "
            "compared.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Part of the data set.", show_default="the test part, else all there is"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Classes of the network to audit.", show_default="all with enough images"),
    ] = None,
    weights: options.Weights = None,
    head: options.Head = None,
    parts: Annotated[int, typer.Option(metavar="N", help="Parts of the evidence in an image.")] = 4,
    replace: Annotated[
        str,
        typer.Option(metavar="mean|blur", help="What stands in for evidence: the mean of images without it, or blur."),
    ] = "mean",
    per_group: Annotated[int, typer.Option(metavar="N", help="Images on which a group is tested, at most.")] = 64,
    smallest: Annotated[int, typer.Option(metavar="N", help="Images in which a group has to be found.")] = 5,
    mean: options.Mean = None,
    std: options.Std = None,
    size: options.Size = None,
    score: options.Score = "margin",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the halves and of the places elsewhere.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page, or the findings alone as JSON.",
            show_default="audit.html; nothing with --find",
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the evidence there; the next run resumes from it.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER", help="Another network, by name or file: which findings do both have, which only one?"
        ),
    ] = None,
    find: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE", help="Instead: which images have what --box marks in this one, and is it needed?"
        ),
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Of --find: left, top, width and height in its pixels.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", help="Findings, or images of --find, that are told here.")] = 5,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Find what a network relies on over a whole data set, and test it: shortcut candidates first."""
    import numpy as np

    from xattn.audit import AuditSettings
    from xattn.audit import audit as run_audit
    from xattn.audit.against import ask_other, asked, only_other
    from xattn.audit.joined import Joined
    from xattn.cli.loading import advise, load
    from xattn.device import find_device
    from xattn.errors import ParameterError, needs

    needs("audit", "xattn audit")
    if not data:
        raise ParameterError("audit: pass the folder of your images with --data.")
    options.check_numbers({"--batch-size": batch_size, "--parts": parts})
    if top < 0:
        raise ParameterError(f"--top must be at least 0 but is {top}.")
    marked = _box(find, box)
    if find is not None and against is not None:
        raise ParameterError("--find and --against ask different things; leave one of them out.")
    if find is not None and classes is not None:
        raise ParameterError("--find looks in the class that its image is taken for; leave out --classes.")
    if out is None and find is None:
        out = Path("audit.html")
    if out is not None and find is None:
        options.check_file(out, (".html", ".htm", ".json"), "a page, audit.html, or of findings.json")
    if out is not None and find is not None:
        options.check_file(out, (".json",), "found.json")
    settings: Any = AuditSettings(
        parts=parts, replace=_choice(replace), per_group=per_group, smallest=smallest, batch_size=batch_size,
        score=score, seed=seed,
    )  # fmt: skip
    dataset = open_sources(data, split)
    network = load(
        model, weights=weights, head=head, parts=parts if head is not None else None, device=find_device(device),
        given=options.given(mean, std, None, size),
    )  # fmt: skip
    advise(network)
    sources = dataset.sources if isinstance(dataset, Joined) else None
    watched = not quiet and console.is_watched()
    if find is not None:
        from xattn.audit import search
        from xattn.data.reading import read_image

        picture = np.asarray(read_image(find).convert("RGB"))
        with _progress(shown=watched) as progress:
            found = search(
                network.model, dataset, picture, marked, spec=network.spec, settings=settings, folder=keep,
                sources=sources, progress=progress,
            )  # fmt: skip
        _tell(found, top=top, out=out, as_json=as_json)
        _end(found.unreadable)
        return
    assert out is not None  # noqa: S101 (it has a default)
    other = None if against is None else load(against, device=find_device(device))  # a wrong name is told at once
    if other is not None:
        advise(other)
    with _progress(shown=watched) as progress:
        result = run_audit(
            network.model, dataset, spec=network.spec, settings=settings, folder=keep, progress=progress,
            classes=None if classes is None else [name.strip() for name in classes.split(",")],
            sources=sources,
        )  # fmt: skip
    shared: tuple[Shared, ...] = ()
    only: tuple[tuple[Finding, Shared], ...] = ()
    if other is not None:
        wanted = asked(result)
        shared = ask_other(wanted, other.model, dataset, spec=other.spec, settings=settings, own=network.spec)
        if len(shared) < len(wanted):
            console.warn(
                f"--against {against}: {len(wanted) - len(shared)} of {len(wanted)} findings are of a class that it "
                "does not have, or of what it does not see; it was not asked about them."
            )
        with _progress(shown=watched) as progress:
            only = only_other(
                other.model, network.model, dataset, spec=other.spec, own=network.spec, settings=settings,
                folder=keep, sources=sources, progress=progress,
                classes=None if classes is None else [name.strip() for name in classes.split(",")],
            )  # fmt: skip
    plain = {**result.to_json(), **(_compared(shared, only) if against else {})}
    _write(result, dataset, network.spec, out, shared, only, plain)
    if as_json:
        console.show_json(plain)
    else:
        show(result, top, out, shared)
        show_only(only, top, against or "")
        console.say(f"wrote {out}{'' if out.suffix.lower() == '.json' else ': open it in a browser'}")
    _end(result.provenance["unreadable"])


def _end(unreadable: dict[str, str]) -> None:
    """Name the images that could not be read; the exit status says so too."""
    for name, reason in unreadable.items():
        console.fail(f"{name}: {reason}")
    if unreadable:
        raise typer.Exit(EXIT_SOME_FAILED)


def _box(find: Path | None, box: str | None) -> tuple[float, ...]:
    """The numbers of `--box`; none without `--find`.

    Raises:
        ParameterError: for one option without the other, or what is no box.
    """
    from xattn.errors import ParameterError

    if (find is None) != (box is None):
        raise ParameterError("--find IMAGE and --box X,Y,W,H go together: what of the image is looked for?")
    if box is None:
        return ()
    try:
        numbers = tuple(float(part) for part in box.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise ParameterError(f"--box {box}: expected four numbers X,Y,W,H in pixels, such as 40,10,64,32.")
    return numbers


def _tell(result: Search, *, top: int, out: Path | None, as_json: bool) -> None:
    """The answer to `--find`: in words, and as JSON."""
    from xattn.cli.loading import picture_file
    from xattn.schema import finite

    plain = finite(result.to_json())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with picture_file(out) as temporary:
            temporary.write_text(json.dumps(plain, indent=1, allow_nan=False), encoding="utf-8")
    if as_json:
        console.show_json(plain)
        return
    for sentence in result.sentences:
        console.say(sentence)
    for member in result.members[:top]:
        x0, y0, x1, y1 = member.box
        where = f"{x0:.0f},{y0:.0f},{x1 - x0:.0f},{y1 - y0:.0f} of the network's input"
        console.say(
            f"  {member.image}  similarity {member.similarity:.2f}, {member.share:.0%} of its evidence, at {where}"
        )
    if len(result.members) > top:
        console.say(f"  and {len(result.members) - top} more{'' if out is None else f' in {out}'}")
    if out is not None:
        console.say(f"wrote {out}")


def open_sources(texts: list[str], split: str | None) -> Dataset:
    """The data set of `--data`, or several joined under their names.

    Args:
        texts: each a folder or a data set by name, with `SOURCE=` before it where there are several.
        split: part of each; None is the part to test on where there is one, else all.

    Raises:
        ParameterError: for sources without names, or two of one.
    """
    from xattn.audit.joined import Joined
    from xattn.errors import ParameterError

    if len(texts) == 1 and not _named(texts[0]):
        return _open(texts[0], split)
    named: dict[str, Dataset] = {}
    for text in texts:
        name, equal, rest = text.partition("=")
        if not equal or not _named(text):
            raise ParameterError(
                f"--data {text}: of several sources each needs a name, as in --data train={text} --data test=…."
            )
        if name in named:
            raise ParameterError(f"--data: two sources are called '{name}'.")
        named[name] = _open(rest, split)
    return Joined(named)


def _named(text: str) -> bool:
    """Whether a text begins with the name of a source: words before `=`, and no path."""
    name, equal, _ = text.partition("=")
    return bool(equal) and not any(c in name for c in ":/\\,") and not Path(text).exists()


def _open(text: str, split: str | None) -> Dataset:
    from xattn.data.finding import SUFFIXES
    from xattn.data.loose import LooseImages
    from xattn.data.opening import NoPartError, open_dataset

    path = Path(text).expanduser()
    inside = [*path.iterdir()] if path.is_dir() else []
    if not any(p.is_dir() for p in inside) and any(p.suffix.lower() in SUFFIXES for p in inside):
        return LooseImages(path)
    if split is not None:
        return open_dataset(text, split)
    try:
        return open_dataset(text, "test")
    except NoPartError:
        return open_dataset(text)


def _choice(text: str) -> Any:
    from xattn.errors import ParameterError

    if text not in ("mean", "blur"):
        raise ParameterError(f"--replace must be mean or blur but is '{text}'.")
    return text


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress | None]:
    """A bar on stderr for `audit`, or nothing."""
    if not shown:
        yield None
        return
    with console.progress(count=True) as bar:
        yield lambda done, total, what: bar.update(done=done, total=total, what=what)


def _compared(shared: tuple[Shared, ...], only: tuple[tuple[Finding, Shared], ...]) -> dict[str, Any]:
    """What another network does with the findings, and the findings that only it has, as plain values."""
    return {
        "against": [asdict(s) for s in shared],
        "only_other": [{**finding.to_json(), "against": asdict(s)} for finding, s in only],
    }


def _write(
    result: Audit,
    dataset: Dataset,
    spec: ModelSpec,
    out: Path,
    shared: tuple[Shared, ...],
    only: tuple[tuple[Finding, Shared], ...],
    plain: dict[str, Any],
) -> None:
    """The page, or the JSON, by the suffix of the file."""
    from xattn.cli.loading import picture_file
    from xattn.pages.audit import audit_page
    from xattn.schema import finite

    if out.suffix.lower() != ".json":
        others = [{"id": s.id, "text": s.text} for s in shared]
        lines = [{"level": f.level, "sentence": f.sentence, "text": s.text} for f, s in only]
        audit_page(result, dataset, spec, out, others=others, only=lines)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with picture_file(out) as temporary:
        temporary.write_text(json.dumps(finite(plain), indent=1, allow_nan=False), encoding="utf-8")


def show_only(only: tuple[tuple[Finding, Shared], ...], top: int, name: str) -> None:
    """The first findings that only the other network has, in words."""
    if only:
        console.say("")
        console.say(f"What only {name} is shown to rely on:")
    for finding, shared in only[:top]:
        console.say(f"- {finding.level}: {finding.sentence} {shared.text}")
    if len(only) > top:
        console.say(f"- and {len(only) - top} more.")


def show(result: Audit, top: int, out: Path, shared: tuple[Shared, ...] = ()) -> None:
    """The first findings in words."""
    facts = result.provenance
    images, groups = facts["images"], facts["groups"]
    count = len(result.candidates)
    said = "no shortcut candidate" if not count else f"{count} shortcut candidate{'s' if count > 1 else ''}"
    console.say(
        f"{facts['model']} on {images:,} images: {said} among {groups} groups of evidence in "
        f"{len(facts['classes'])} classes."
    )
    for finding in result.findings[:top]:
        console.say("")
        console.say(f"{finding.rank}. {finding.level} ({finding.id}): {finding.sentence}")
        if finding.why:
            console.say(f"   Why: {finding.why}.")
        console.say(f"   How sure: {finding.sure}")
        console.say(f"   Next: {finding.next}")
        for other in shared:
            if other.id == finding.id:
                console.say(f"   Against: {other.text}")
    if len(result) > top:
        console.say("")
        console.say(f"{len(result) - top} more in {out.name}.")
