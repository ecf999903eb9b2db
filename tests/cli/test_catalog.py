"""`xattn list`."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from xattn.cli import catalog
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


def test_a_pipe_gets_a_line_a_name_with_tabs(run: Run) -> None:
    head, *lines = [line.split("\t") for line in run("list", "methods").stdout.splitlines()]
    assert head[:4] == ["name", "aliases", "what", "family"]
    assert {len(line) for line in lines} == {len(head)}
    assert [line[0] for line in lines] == explainers.names()


@pytest.mark.parametrize("kind", ["methods", "metrics", "models", "datasets", "scores", "tasks"])
def test_a_terminal_gets_lines_that_fit_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    catalog._show_lines(kind, catalog._ROWS[kind](), "")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 or kind == "models"  # whose names can be longer
    for row in catalog._ROWS[kind]():
        if row.get("from") != "timm":
            assert any(line.strip().startswith(row["name"]) for line in lines)


def test_one_in_full(run: Run) -> None:
    text = run("list", "methods", "Smooth_Grad").stdout
    assert max(map(len, text.splitlines())) <= 100
    for part in ("SmoothGrad: mean attribution", "50 forward, 50 backward", "arXiv:1706.03825",
                 "documentation:  methods/gradient.html#smoothgrad", "noise = 0.15",
                 "float, more than 0 and at most 100: standard deviation"):  # fmt: skip
        assert part in text
    one = json.loads(run("list", "methods", "lrp", "--json").stdout)
    assert one["parameters"]["epsilon"] == {"type": "float, at least 0 and at most 1,000", "default": 1e-6} | {
        "what": one["parameters"]["epsilon"]["what"]
    }
    assert "epsilon" in one["parameters"]["epsilon"]["what"]
    assert "higher is better" in run("list", "metrics", "deletion").stdout
    wrong = run("list", "methods", "gradcan")
    assert wrong.exit_code == 2
    assert "unknown method 'gradcan'. Did you mean 'gradcam'?" in wrong.stderr


def test_every_parameter_has_type_default_and_meaning(run: Run) -> None:
    for kind in ("methods", "metrics"):
        for row in rows(run, kind):
            for name, about in row["parameters"].items():  # type: ignore[attr-defined]
                assert set(about) == {"type", "default", "what"}
                assert about["type"], (row["name"], name)
                assert about["what"], (row["name"], name)


def test_models(run: Run) -> None:
    found = {row["name"]: row for row in rows(run, "models")}
    assert found["efficientnet_lite0"]["default_for"] == "all other methods"
    assert found["tiny-vit"]["default_for"] == "methods of vision transformers"
    assert {"tiny-cnn", "tiny-bcnn", "tiny-brnpa"} <= set(found)
    pytest.importorskip("torchvision")
    assert "Deep Residual Learning" in str(found["resnet50"]["paper"])


def test_scores(run: Run) -> None:
    assert [row["name"] for row in rows(run, "scores")] == list(SCORES)


@pytest.mark.parametrize("what", ["datasets", "metrics"])
def test_other_registries(run: Run, what: str) -> None:
    for row in rows(run, what):
        assert row["what"], row


def test_methods_of_other_libraries_are_listed_and_found(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("captum")
    assert all(row["what"] for row in rows(run, "peers"))
    one = run("list", "peers", "captum/IntegratedGradients")
    assert one.exit_code == 0, one.stderr
    some = run("list", "peers", "--filter", "guided")
    assert "captum/GuidedBackprop" in some.stdout
    assert "IntegratedGradients" not in some.stdout
    monkeypatch.setenv("COLUMNS", "80")
    catalog._show_lines("peers", catalog._ROWS["peers"](), "")
    lines = capsys.readouterr().out.splitlines()
    assert any("captum/GuidedBackprop" in line for line in lines)


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
