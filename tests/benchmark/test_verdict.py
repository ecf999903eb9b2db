"""What the words of a report say of scores whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.runs import made_up
from xattn.benchmark import verdict
from xattn.benchmark.panels import Panel, panels, summarize
from xattn.benchmark.scores import Column, Entry, Scores
from xattn.benchmark.verdict import Verdict, judge
from xattn.metric import HIGHER, LOWER

METHODS = ("gradcam", "saliency", "brnpa", "eigencam", "random", "center")


def panel(images: int = 120, controls: bool = True, seconds: bool = True, seed: int = 0) -> Panel:
    """Insertion and deletion of methods that are good, as good, good on one alone, and as bad as a control."""
    rng = np.random.default_rng(seed)
    methods = METHODS if controls else METHODS[:4]
    entries = [Entry("net", method) for method in methods]
    image = rng.normal(0, 0.1, (images, 1))
    noise = rng.normal(0, 0.02, (2, images, len(methods)))
    insertion = image + np.array([0.6, 0.6, 0.5, 0.28, 0.3, 0.2])[: len(methods)] + noise[0]
    deletion = image + np.array([0.1, 0.1, 0.42, 0.42, 0.4, 0.5])[: len(methods)] + noise[1]
    numbers = list(range(images))
    summaries = {
        (name, name): summarize(
            Column(name, name, direction, "perturbation", only=True), values, numbers, entries, resamples=50
        )
        for name, direction, values in (("insertion", HIGHER, insertion), ("deletion", LOWER, deletion))
    }
    costs = [{"seconds": 0.002 * 4**j} for j in range(len(methods))] if seconds else [{} for _ in methods]
    return Panel("d, net", "d", entries, list(methods), summaries, np.ones(len(methods)), costs)


def named(judged: Verdict, places: list[int]) -> set[str]:
    return {judged.panel.labels[j] for j in places}


def test_methods_are_sorted_by_what_they_beat() -> None:
    judged = judge(panel())
    assert judged.asked == "both insertion and deletion"
    assert named(judged, judged.trusted) == {"gradcam", "saliency"}
    assert named(judged, judged.partly) == {"brnpa"}
    assert named(judged, judged.unproven) == {"eigencam"}
    assert [judged.panel.labels[c] for c in judged.controls if c is not None] == ["random", "random"]
    assert named(judged, judged.top) == {"gradcam", "saliency"}
    assert not {"random", "center"} & named(judged, judged.order)
    first, second, third, _ = judged.order
    assert judged.same(first) == [second]
    assert judged.apart[first, third]
    np.testing.assert_array_equal(judged.apart, judged.apart.T)


def test_sentences() -> None:
    judged = judge(panel())
    first, second = (judged.panel.labels[j] for j in judged.top)
    assert verdict.headline(judged) == f"{first} and {second} beat every control on both insertion and deletion."
    assert verdict.trust(judged) == [
        "2 of 4 methods beat the best control on both insertion and deletion.",
        "brnpa does so on insertion alone.",
    ]
    assert verdict.unproven(judged)[0] == "1 of 4 methods does not beat the best control on insertion or deletion."
    assert verdict.ties(judged) == [f"{first} comes first; {second} cannot be told from it on insertion or deletion."]
    assert verdict.pairs(judged) == [
        "5 of 6 pairs of methods are shown to differ by more than 0.01 on insertion or deletion (120 images)."
    ]
    assert verdict.controls_ahead(judged) == []
    assert verdict.costs(judged)[0] == "gradcam is the cheapest with 2 ms an image."
    assert verdict.costs(judged)[-1] == "eigencam is the most expensive: 128 ms, 64 times as long."
    assert verdict.cautions(judged) == []


def test_without_controls_nothing_is_proven() -> None:
    judged = judge(panel(controls=False))
    assert not judged.tested
    assert not judged.trusted
    assert not judged.unproven
    assert "no control was scored" in verdict.headline(judged)
    assert verdict.trust(judged) == []
    assert "nothing shows that a method is better" in verdict.unproven(judged)[0]


def test_few_images_prove_nothing() -> None:
    judged = judge(panel(images=4))
    assert verdict.headline(judged) == "No method is shown to beat the controls on both insertion and deletion."
    assert verdict.trust(judged)[0] == "None of 4 methods beats the best control on both insertion and deletion."
    assert verdict.cautions(judged)[-1].startswith("4 images may be too few")
    assert verdict.costs(judge(panel(images=4, seconds=False))) == []


def test_a_control_that_wins_is_told() -> None:
    found = panel()
    s = found.summaries["insertion", "insertion"]
    values = s.values.copy()
    values[:, 4] += 1
    found.summaries["insertion", "insertion"] = summarize(s.column, values, s.images, found.entries, resamples=20)
    said = " ".join(verdict.summary(found))
    assert "On insertion ↑ a control, random, has the best mean of all." in said
    assert "A control wins 1 of them, by which no method should be judged." in said


def test_bad_maps_and_protocols_are_told() -> None:
    found = panel()
    found.coverage[2] = 0.75
    said = " ".join(verdict.summary(found))
    assert "Some maps are constant, undefined or do not add up: 25 % of brnpa." in said
    assert "Of 2 protocols these are won by" in said
    alike = " ".join(verdict.agreement(found, found.directed))
    assert "order the methods most alike" in alike
    assert "Images agree most on the order by" in alike


@pytest.mark.parametrize("metrics", [("energy_pointing_game",), ("sparsity",), ("max_box_accuracy",)])
def test_runs_without_the_headline_pair(tmp_path: Path, metrics: tuple[str, ...]) -> None:
    (found,) = panels(Scores(made_up(tmp_path, images=100, metrics=metrics)), resamples=20)
    judged = judge(found)
    said = verdict.summary(found)
    if metrics[0] == "energy_pointing_game":
        assert judged.asked == "energy pointing game"
        assert "every control on energy pointing game." in said[0]
    else:  # no direction, or one value a method: nothing can be tested
        assert not judged.questions
        assert said == ["There is no score yet by which methods could be judged."]
