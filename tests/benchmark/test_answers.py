"""The statistics of equivalence against loops and SciPy, and what a panel answers where the answer is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xattn.benchmark import answers
from xattn.benchmark.answers import MARGIN, Answer
from xattn.benchmark.equivalence import beats, compare, duplicates, exceeds
from xattn.benchmark.panels import Panel, summarize
from xattn.benchmark.scores import Column, Entry
from xattn.benchmark.tables import leaderboard, rounded
from xattn.metric import HIGHER, LOWER, Direction

METHODS = ("gradcam", "xgradcam", "brnpa", "saliency", "eigencam", "random", "center", "pooled-gradient")


def test_one_sided_test_is_that_of_scipy_and_of_the_formula() -> None:
    d = np.random.default_rng(0).normal(0.02, 0.1, (40, 3))
    d[:5, 1] = np.nan
    d[:, 2] = 0.03
    found = exceeds(d, 0.01)
    for t in range(2):
        own = d[~np.isnan(d[:, t]), t]
        assert found[t] == pytest.approx(stats.ttest_1samp(own, 0.01, alternative="greater").pvalue, rel=1e-12)
        mean = sum(own) / len(own)
        spread = math.sqrt(sum((v - mean) ** 2 for v in own) / (len(own) - 1) / len(own))
        assert found[t] == pytest.approx(stats.t.sf((mean - 0.01) / spread, len(own) - 1), rel=1e-9)
    assert found[2] == 0
    assert exceeds(d, 0.04)[2] == 1
    assert np.isnan(exceeds(d[:1], 0)).all()


def naive_holm(p: list[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, running = [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        running = max(running, min(1.0, p[i] * (len(p) - k)))
        out[i] = running
    return out


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), methods=st.integers(2, 5), columns=st.integers(1, 3))
def test_pairs_are_those_of_a_loop(seed: int, methods: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [rng.normal(rng.normal(0, 0.06, methods), 0.05, (30, methods)) for _ in range(columns)]
    places = [(c, a, b) for c in range(columns) for a in range(methods) for b in range(methods) if a != b]

    def p(c: int, a: int, b: int, shift: float) -> float:
        return float(stats.ttest_1samp(tables[c][:, a] - tables[c][:, b], shift, alternative="greater").pvalue)

    above = dict(zip(places, naive_holm([p(*where, 0.03) for where in places]), strict=True))
    below = dict(zip(places, naive_holm([p(*where, -0.03) for where in places]), strict=True))
    found = compare(tables, 0.03)
    for a in range(methods):
        for b in range(methods):
            if a != b:
                assert found.worse[b, a] == any(above[c, a, b] < 0.05 for c in range(columns))
                both = [below[c, x, y] < 0.05 for c in range(columns) for x, y in ((a, b), (b, a))]
                assert found.same[a, b] == all(both)
    assert not (found.worse & found.same).any()
    assert not found.worse.diagonal().any()


def test_false_statements_are_bounded() -> None:
    """Eight equal methods in two columns: of 200 tables in no more than one in twenty is any pair told apart."""
    rng = np.random.default_rng(1)
    wrong = sum(compare([rng.normal(0, 1, (40, 8)) for _ in range(2)], 0.0).worse.any() for _ in range(200))
    assert wrong <= stats.binom.ppf(0.999, 200, 0.05)


def test_a_method_has_to_beat_each_control() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (60, 4))
    table = np.array([0.5, 0.3, 0.2, 0.4]) + noise  # two methods, then two controls
    better = beats([table, table[:, [1, 0, 2, 3]]], [2, 3])
    assert better.tolist() == [[True, False, False, False], [False, True, False, False]]
    assert not beats([np.full((60, 4), np.nan)], [2, 3]).any()


def test_duplicates_are_one_group() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0.5, 0.1, 50)
    table = np.stack([a, a + rng.normal(0, 1e-3, 50), a + 0.1, rng.normal(0.5, 0.1, 50)], 1)
    assert duplicates([table], 0.01) == [[0, 1], [2], [3]]
    assert duplicates([table, table[:, [0, 3, 2, 1]]], 0.01) == [[0], [1], [2], [3]]


def panel(
    images: int = 150, grid: str = "common", coverage: float = 1.0, means: dict[str, list[float]] | None = None
) -> Panel:
    """Grad-CAM and its copy, BR-NPA as good as they are, one good in one column alone, one that fails."""
    rng = np.random.default_rng(0)
    entries = [Entry("net", method) for method in METHODS]
    image = rng.normal(0, 0.1, (images, 1))
    means = means or {
        "insertion": [0.6, 0.6, 0.601, 0.6, 0.25, 0.3, 0.2, 0.35],
        "deletion": [0.1, 0.1, 0.1, 0.42, 0.5, 0.4, 0.5, 0.3],
    }
    summaries = {}
    for metric, name, direction in (
        (f"insertion:grid={grid}", "insertion", HIGHER), (f"deletion:grid={grid}", "deletion", LOWER),
    ):  # fmt: skip
        values = image + np.array(means[name]) + rng.normal(0, 0.01, (images, len(METHODS)))
        values[:, 1] = values[:, 0]
        column = Column(metric, name, direction, "perturbation", only=True, grid=grid)
        summaries[metric, name] = summarize(column, values, list(range(images)), entries, resamples=50)
    known = np.ones(len(METHODS))
    known[2] = coverage
    return Panel("d, net", "d", entries, list(METHODS), summaries, known, [{} for _ in METHODS])


def groups(found: Panel, some: list[list[int]]) -> set[tuple[str, ...]]:
    return {tuple(found.labels[j] for j in group) for group in some}


def only(found: Panel) -> Answer:
    (answer,) = answers.answers(found)
    return answer


def test_the_best_cannot_be_told_apart_and_copies_are_one() -> None:
    found = panel()
    answer = only(found)
    assert groups(found, answer.best) == {("gradcam", "xgradcam"), ("brnpa",)}
    assert (answer.proven, answer.shown) == (True, True)
    assert groups(found, answer.some) == {("saliency",)}
    assert groups(found, answer.failed) == {("eigencam",)}
    assert answers.headline(found, [answer]) == (
        f"Use {found.labels[answer.best[0][0]]}: shown only the places that its map marks first, the network "
        "recognises the class sooner, and without them it loses it sooner, than with a random map, a spot in the "
        "middle or the plain gradient."
    )
    beside = answers.beside(found, [answer])
    assert beside[0] == "That is by insertion and deletion (baseline blur), on 150 images."
    copies, other = sorted(map(tuple, answer.best), key=len, reverse=True)
    assert len(beside) == (3 if answer.best[0] == list(copies) else 2)
    assert beside[-1] in ("As good: brnpa.", "As good: gradcam = xgradcam.")
    assert other
    sentences = " ".join(answers.sentences(found, answer))
    assert f"All are shown to lie within {MARGIN} of each other." in sentences
    assert "Failed (not shown to beat every control in any column): eigencam." in sentences


def test_entries_stand_in_the_order_of_the_first_answer() -> None:
    found = panel(coverage=0.85)
    at = answers.standings(found)
    assert [(found.labels[s.entry], s.word, found.labels[s.like]) for s in at] == [
        ("gradcam", "best", "gradcam"),
        ("xgradcam", "best", "gradcam"),
        ("saliency", "in some columns", "saliency"),
        ("eigencam", "fails", "eigencam"),
        ("brnpa", "unsound maps", "brnpa"),
        ("random", "control", "random"),
        ("center", "control", "center"),
        ("pooled-gradient", "control", "pooled-gradient"),
    ]
    assert answers.order(found) == [s.entry for s in at]
    table = leaderboard(found)
    assert [row[:2] for row in table.rows[:3]] == [
        ("gradcam", "best"), ("xgradcam", "= gradcam"), ("saliency", "in some columns"),
    ]  # fmt: skip


def test_what_beats_the_controls_in_some_columns_is_named_with_them() -> None:
    found = panel(
        means={"insertion": [0.6, 0.6, 0.5, 0.4, 0.25, 0.3, 0.2, 0.3], "deletion": [0.4] * 5 + [0.3, 0.4, 0.4]}
    )
    answer = only(found)
    assert answer.proven is False
    assert groups(found, answer.named) == {("gradcam", "xgradcam")}
    assert [s.column.name for s in answer.where] == ["insertion"]
    assert answers.headline(found, [answer]) == (
        "Use gradcam: shown only the places that its map marks first, the network recognises the class sooner than "
        "with a random map, a spot in the middle or the plain gradient."
    )
    assert answers.beside(found, [answer]) == [
        "That is by insertion (baseline blur), on 150 images.",
        "No method is shown to beat every control on all of insertion and deletion (baseline blur).",
        "xgradcam scores the same as gradcam.",
    ]
    said = answers.sentences(found, answer)
    assert said[:2] == [
        "They beat every control on insertion (baseline blur) (150 images).",
        "None is shown to do so on all of insertion and deletion (baseline blur).",
    ]
    assert "In some columns alone: brnpa and saliency." in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["insertion:steps=8", "deletion:baseline=mean"], "insertion (baseline blur) and deletion (baseline mean)"),
        (
            ["insertion:steps=8", "insertion:baseline=mean", "deletion:baseline=mean"],
            "insertion (baseline blur and mean) and deletion (baseline mean)",
        ),
        (["insertion:steps=8", "deletion:steps=8"], "insertion and deletion (baseline blur)"),
        (["road:steps=5", "deletion:steps=8"], "road and deletion (baseline blur)"),
        (["part_checks", "part_checks", "part_deletion"], "part checks and part deletion"),
    ],
)
def test_columns_in_words_claim_no_more_than_there_is(asked: list[str], said: str) -> None:
    columns = [SimpleNamespace(column=SimpleNamespace(metric=metric)) for metric in asked]
    assert answers.columns_in_words(cast(Any, columns)) == said


def test_few_scores_are_no_failure() -> None:
    """A method with seven scores of 150 is not tested, and is not said to fail."""
    found = panel()
    deletion = found.summaries["deletion:grid=common", "deletion"]
    values = np.array(deletion.values)
    values[7:, 0] = np.nan
    column = summarize(deletion.column, values, deletion.images, found.entries, resamples=50)
    both = {**found.summaries, ("deletion:grid=common", "deletion"): column}
    answer = only(Panel("d", "d", found.entries, found.labels, both, found.coverage, found.costs))
    assert [found.labels[j] for j in answer.partial] == ["gradcam"]
    assert 0 not in [j for group in answer.failed for j in group]


def test_where_all_have_too_few_scores_none_is_compared() -> None:
    """As of masks that most images lack."""
    found = panel()
    few = {}
    for key, s in found.summaries.items():
        values = np.array(s.values)
        values[7:] = np.nan
        few[key] = summarize(s.column, values, s.images, found.entries, resamples=50)
    changed = Panel("d", "d", found.entries, found.labels, few, found.coverage, found.costs)
    answer = only(changed)
    assert (answer.best, answer.groups) == ([], [])
    assert answers.headline(changed, [answer]).startswith("No method was scored")
    assert "have fewer than 8" in answers.sentences(changed, answer)[-1]
    assert {s.word for s in answers.standings(changed)} == {"lacks a score", "control"}


def test_what_beats_the_controls_but_less_stands_behind_the_best() -> None:
    insertion = [0.6, 0.6, 0.5, 0.6, 0.25, 0.3, 0.2, 0.3]
    found = panel(means={"insertion": insertion, "deletion": [0.1, 0.1, 0.2, 0.1, 0.5, 0.4, 0.5, 0.4]})
    words = {found.labels[s.entry]: s.word for s in answers.standings(found)}
    assert (words["gradcam"], words["brnpa"], words["eigencam"]) == ("best", "beats the controls", "fails")


def test_entries_without_an_answer_stand_by_the_first_column() -> None:
    found = panel(grid="pixels")
    means = found.summaries["insertion:grid=pixels", "insertion"].spread.mean
    assert answers.order(found) == sorted(range(len(METHODS)), key=lambda j: -means[j])
    assert {s.word for s in answers.standings(found)} == {"", "control"}


def test_columns_that_favour_different_methods_leave_both() -> None:
    found = panel(means={
        "insertion": [0.6, 0.6, 0.5, 0.4, 0.25, 0.3, 0.2, 0.3], "deletion": [0.2, 0.2, 0.1, 0.3, 0.5, 0.4, 0.5, 0.4],
    })  # fmt: skip
    answer = only(found)
    assert groups(found, answer.best) == {("gradcam", "xgradcam"), ("brnpa",)}
    assert (answer.proven, answer.shown, answer.crossed) == (True, False, True)
    assert groups(found, answer.beat) == {("saliency",)}
    assert "is better in some columns and worse in others." in answers.beside(found, [answer])[-1]
    assert "Which is better depends on the column." in answers.sentences(found, answer)


def test_all_of_a_group_have_to_beat_every_control() -> None:
    """Two methods that count as one may lie on both sides of a control."""
    insertion = [0.309, 0.3, 0.2, 0.2, 0.2, 0.305, 0.2, 0.2]
    found = panel(means={"insertion": insertion, "deletion": [0.1, 0.1, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2]})
    summary = found.summaries["insertion:grid=common", "insertion"]
    values = np.random.default_rng(0).normal(0, 0.1, (150, 1)) + np.array(insertion)
    values += np.random.default_rng(1).normal(0, 0.001, values.shape)
    column = summarize(summary.column, values, summary.images, found.entries, resamples=50)
    both = {**found.summaries, ("insertion:grid=common", "insertion"): column}
    answer = only(Panel("d", "d", found.entries, found.labels, both, found.coverage, found.costs))
    assert groups(found, answer.best) & {("gradcam", "xgradcam")}
    assert answer.proven is False
    assert groups(found, answer.failed) >= {("eigencam",)}


def test_a_control_counts_in_the_column_that_it_has_and_a_method_that_lacks_one_is_named() -> None:
    found = panel()
    deletion = found.summaries["deletion:grid=common", "deletion"]
    values = np.array(deletion.values)
    values[:, [3, 5]] = np.nan  # saliency, and a control that is the best on insertion
    insertion = found.summaries["insertion:grid=common", "insertion"]
    high = np.array(insertion.values)
    high[:, 5] += 0.5
    both = {
        key: summarize(s.column, v, s.images, found.entries, resamples=50)
        for (key, s), v in zip(
            {("insertion:grid=common", "insertion"): insertion, ("deletion:grid=common", "deletion"): deletion}.items(),
            (high, values),
            strict=True,
        )
    }
    changed = Panel("d", "d", found.entries, found.labels, both, found.coverage, found.costs)
    answer = only(changed)
    assert answer.proven is False
    assert [found.labels[j] for j in answer.partial] == ["saliency"]
    assert "they lack a score in some column, or have fewer than 8: saliency." in " ".join(
        answers.sentences(changed, answer)
    )


def test_few_images_leave_it_open() -> None:
    found = panel(images=4)
    answer = only(found)
    assert not answer.shown
    assert not any("All are shown" in text for text in answers.sentences(found, answer))


def test_unsound_maps_are_ranked_apart() -> None:
    found = panel(coverage=0.85)
    answer = only(found)
    assert groups(found, answer.best) == {("gradcam", "xgradcam")}
    assert [found.labels[j] for j in answer.unsound] == ["brnpa"]
    assert "more than a tenth of their maps are unsound: brnpa" in " ".join(answers.sentences(found, answer))
    assert answers.headline(found, [answer]).startswith("Use gradcam: shown only")
    assert answers.beside(found, [answer])[1:] == [
        "xgradcam scores the same as gradcam.", "No other method is shown to beat every control.",
    ]  # fmt: skip


def test_where_nothing_beats_the_controls_nothing_is_recommended() -> None:
    found = panel(means={"insertion": [0.3] * 8, "deletion": [0.3] * 8})
    answer = only(found)
    assert answers.headline(found, [answer]) == (
        "None can be recommended: no map is shown to mark what the network goes by better than a random map, a spot in "
        "the middle or the plain gradient do."
    )
    assert answers.beside(found, [answer]) == [
        "No method is shown to beat every control on insertion and deletion (baseline blur) (150 images)."
    ]


@pytest.mark.parametrize("grid", ["pixels", "map"])
def test_grids_that_differ_answer_nothing(grid: str) -> None:
    """The confound is gone from the verdict: what was ranked on a grid of its own is held against nothing."""
    found = panel(grid=grid)
    assert answers.answers(found) == []
    assert not any(s.unproven.any() for s in found.summaries.values())
    assert "No method was scored on one grid for all" in answers.headline(found, [])


@pytest.mark.parametrize(
    ("metric", "name", "direction", "values", "proven"),
    [
        ("parameter_randomization", "spearman", LOWER, [0.1, 0.1, 0.1, 0.2, 1.0, 1.0, 1.0, 0.0], True),
        ("class_sensitivity", "spearman", LOWER, [1.0] * 8, False),
        ("max_sensitivity", "max_sensitivity", LOWER, [0.1, 0.1, 0.5, 0.2, 1.0, 0.0, 0.0, 0.6], None),
    ],
)
def test_questions_hold_methods_against_what_they_have_to_beat(
    metric: str, name: str, direction: Direction, values: list[float], proven: bool | None
) -> None:
    """Blind controls for the sanity checks, where the pooled gradient is as good as any; none for stability."""
    found = panel()
    drawn = np.array(values) + np.random.default_rng(0).normal(0, 0.001, (50, len(METHODS)))
    family = "robustness" if proven is None else "sanity"
    column = Column(metric, name, direction, family)
    summary = summarize(column, drawn, list(range(50)), found.entries, resamples=20)
    answer = only(Panel("d", "d", found.entries, found.labels, {(metric, name): summary}, found.coverage, found.costs))
    assert answer.proven is proven
    if proven:
        assert ("eigencam",) in groups(found, answer.failed)


def test_digits_are_those_that_the_interval_allows() -> None:
    assert rounded(0.4567, 0.4, 0.5) == "0.46"
    assert rounded(0.4567, 0.4560, 0.4570) == "0.4567"
    assert rounded(23.4, 11, 41) == "23"
    assert rounded(math.nan, 0, 1) == ""
    assert rounded(0.4567, 0.4, 0.5, 0.4) == "0.40"
