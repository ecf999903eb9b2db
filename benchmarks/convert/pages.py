"""What a script found, put between its marks in a page of the documentation."""

from __future__ import annotations

from pathlib import Path

from xattn.files import whole_file

DOCS = Path(__file__).parents[2] / "docs"


def put(page: Path, script: str, text: str) -> None:
    """Replace what stands between the marks of a script; the page appears whole.

    Args:
        page: in Markdown, with `<!-- begin of benchmarks/convert/SCRIPT -->` and the same with `end`.
        script: name of the script.
        text: in Markdown.
    """
    begin, end = (f"<!-- {word} of benchmarks/convert/{script} -->" for word in ("begin", "end"))
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{page.name} has no place for the table: {begin} and {end} are missing.")
    with whole_file(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text.rstrip()}\n{end}{after}", encoding="utf-8")
