"""Each word that a map can have as its status has a meaning, a remedy and a section in the documentation."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import run  # noqa: F401  (a fixture)
from xattn import doubts, explanation
from xattn.explaining import explain
from xattn.statuses import STATUSES, told

ROOT = Path(__file__).parent.parent


def words() -> set[str]:
    """The constants of the modules that give a status, read from their sources."""
    found = set()
    for module in (explanation, doubts):
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                found |= {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and type(n.value) is str}
    return found


def test_every_word_is_explained() -> None:
    assert words() == set(STATUSES)
    assert all(status.what and status.do for status in STATUSES.values())


def test_the_page_has_a_section_for_each_word() -> None:
    page = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n\n(.+?)(?=\n\n##|\Z)", page, re.DOTALL | re.MULTILINE))
    assert [*sections] == [*STATUSES]
    for word, text in sections.items():
        plain = " ".join(text.replace("`", "").split()).lower()
        first = STATUSES[word].what.split(",")[0].split(" (")[0].lower()
        assert plain.startswith(first), word


def test_the_table_of_the_guide_is_that_of_the_code() -> None:
    rows = [f"| `{word}` | {status.what} | {status.do} |" for word, status in STATUSES.items()]
    table = "\n".join(["| status | what it means | what to do |", "| --- | --- | --- |", *rows])
    guide = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    assert f"<!-- statuses -->\n{table}\n<!-- /statuses -->" in guide


def test_a_list_names_them(run) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    found = json.loads(run("list", "statuses", "--json").stdout)
    assert {row["name"]: (row["what"], row["what to do"]) for row in found} == {
        word: (status.what, status.do) for word, status in STATUSES.items()
    }
    assert "status.html#under-no_grad" in run("list", "statuses", "under no_grad").stdout
    assert all(len(line) <= 80 for line in run("list", "statuses", "constant").stdout.splitlines())


def test_numbers_of_the_map_come_before_general_advice() -> None:
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).eval()
    x = 9 * torch.randn(2, 1, 8, 8)
    with pytest.warns(UserWarning, match=r"non-conserving: adds up to .* of .*: leave steps out"):
        found = explain(model, x, "integrated-gradients:steps=1", 0)
    bad = found.status.index("non-conserving")
    assert found.told(bad) == f"non-conserving: {found.remarks[bad]}"
    with torch.no_grad():
        due = float((model(x) - model(torch.zeros_like(x)))[bad, 0])
    assert f"adds up to {float(found.maps[bad].sum()):.3g} of {due:.3g}" in found.remarks[bad]
    assert told("non-conserving").startswith("non-conserving: the map does not add up")
    assert told("a word of another package") == "a word of another package"
