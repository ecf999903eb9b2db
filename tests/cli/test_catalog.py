"""`xattn list`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from xattn.cli.catalog import first_sentence, paper_of
from xattn.explainers import explainers
from xattn.score import SCORES


def rows(run: Run, *arguments: str) -> list[dict[str, object]]:
    result = run("list", *arguments, "--json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_every_method_is_listed_with_what_it_is(run: Run) -> None:
    found = rows(run, "methods")
    assert [row["name"] for row in found] == explainers.names()
    for row in found:
        assert row["what"], row
        assert row["family"], row
        assert row["cost"], row
        assert row["paper"], row
    gradcam = next(row for row in found if row["name"] == "gradcam")
    assert gradcam["class_specific"] is True
    assert "1610.02391" in str(gradcam["paper"])
    assert "1610.02391" not in str(gradcam["what"])


def test_methods_are_the_default_and_a_table(run: Run) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in explainers.names())


def test_models(run: Run) -> None:
    found = {row["name"]: row for row in rows(run, "models")}
    assert {"tiny-cnn", "tiny-bcnn", "tiny-brnpa"} <= set(found)
    pytest.importorskip("torchvision")
    assert "Deep Residual Learning" in str(found["resnet50"]["paper"])


def test_scores(run: Run) -> None:
    assert [row["name"] for row in rows(run, "scores")] == list(SCORES)


@pytest.mark.parametrize("what", ["datasets", "metrics"])
def test_other_registries(run: Run, what: str) -> None:
    for row in rows(run, what):
        assert row["what"], row


def test_filter(run: Run) -> None:
    assert {str(row["name"]) for row in rows(run, "methods", "--filter", "guided")} == {
        "guided-backprop",
        "guided-gradcam",
        "guided-gradcam++",
        "guided-ig",
    }
    assert "there are no methods of that name" in run("list", "methods", "-f", "zzz").stdout


def test_unknown_list(run: Run) -> None:
    result = run("list", "method")
    assert result.exit_code == 2
    assert "unknown thing to list 'method'. Did you mean 'methods'?" in result.stderr


def test_a_bracket_without_a_source_stays() -> None:
    def f() -> None:
        """Mean (over the cells) of all (Doe 1999)."""

    assert first_sentence(f) == "Mean (over the cells) of all"
    assert paper_of(f) == "Doe 1999"
