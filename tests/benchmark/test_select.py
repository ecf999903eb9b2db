"""`select`: what is computed, what stops, what is said, and that the model leaves as it came."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cli.models import cnn
from xattn.benchmark.config import Config
from xattn.benchmark.limit import Limit
from xattn.benchmark.race import Race, Rules
from xattn.benchmark.select import ON_OBJECT, QUESTIONS, select
from xattn.benchmark.selection import Selection

DATA = "synthetic:length=24"


def test_scores_are_those_of_the_benchmark(tmp_path: Path) -> None:
    """The race computes nothing of its own: its scores are the rows of a benchmark on the same images."""
    from xattn.benchmark.run import run
    from xattn.benchmark.scores import Scores

    result = select(cnn(), DATA, ["gradcam", "activation"], images=8, batch=4, rules=Rules(first=0), device="cpu")
    config = Config.build(
        {
            "data": [{"source": DATA, "limit": 8}],
            "models": [{"name": "tests.cli.models:cnn", "label": "cnn"}],
            "methods": ["gradcam", "activation"],
            "metrics": [question.metric for question in (*QUESTIONS, ON_OBJECT)],
            "run": {"batch": 4, "device": "cpu"},
        }
    )
    run(config, tmp_path)
    stored = Scores(tmp_path)
    (dataset,) = stored.datasets
    entries = stored.entries(dataset, "cnn")
    names = [entry.method for entry in entries]
    means = result.race.means()
    for q, question in enumerate((*QUESTIONS, ON_OBJECT)):
        values, _ = stored.values(dataset, entries, question.label, question.column)
        for j, name in enumerate(result.race.names):
            assert means[q, j] == pytest.approx(np.nanmean(values[:, names.index(name)]), rel=1e-4, abs=1e-6)


def test_what_has_stopped_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Race, "racing", property(lambda self: np.array([True] + [False] * (len(self.names) - 1))))
    few = select(cnn(), DATA, ["gradcam", "activation"], images=8, device="cpu")
    monkeypatch.undo()
    all_of_them = select(cnn(), DATA, ["gradcam", "activation"], images=8, device="cpu")
    assert few.passes < 0.5 * all_of_them.passes
    assert few.race.counts()[0].tolist() == [8] + [0] * (len(few.race.names) - 1)


def test_the_model_leaves_as_it_came() -> None:
    model = cnn().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    select(model, DATA, ["gradcam"], images=4, device="cpu")
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


class Slow(nn.Module):
    """A network whose every image takes seconds, on a clock of its own."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.net, self.seconds, self.now, self.longest = cnn(), seconds, 0.0, 0.0
        self.spec = replace(self.net.spec, feature_layer="net.features", classifier="net.classifier")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.now += self.seconds * len(x)
        self.longest = max(self.longest, self.seconds * len(x))
        return self.net(x)

    def select(self, minutes: float, **options: Any) -> Selection:
        limit = Limit(minutes, clock=lambda: self.now)
        return select(self, DATA, ["gradcam", "activation", "lrp"], images=24, minutes=limit, device="cpu", **options)


@pytest.mark.parametrize("seconds", [0.001, 0.3, 2.0, 30.0])
def test_a_time_limit_holds_whatever_a_pass_takes(seconds: float) -> None:
    """A batch of eight takes hundreds of passes: it must not have to end before the limit is looked at."""
    model = Slow(seconds)
    result = model.select(4)
    assert result.seconds < 240 + model.longest
    assert result.race.images == 24 or result.over == 4 or result.race.decided
    assert result.sentence()
    assert result.notes()
    assert result.to_dict()["minutes_over"] == result.over
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_slow_network_has_an_answer_of_few_images() -> None:
    result = Slow(0.3).select(4)
    assert 1 <= result.race.images < 24
    assert len(result.explanations) > 0
    notes = " ".join(result.notes())
    assert f"Undecided after {result.race.images} image" in notes
    assert "when the time (4 minutes) was over: more may tell" in notes
    assert "Best so far: " in result.sentence()
    assert re.search(r" is 0\.\d{3} (ahead of|behind) \w+ where parts are blurred \(95 % sure: between ", notes)
    assert "Beside the best control " in notes


def test_a_network_too_slow_for_one_image_says_so() -> None:
    result = Slow(30.0).select(4)
    assert result.race.images == 0
    assert result.sentence() == "No answer: the time (4 minutes) was over before one image was scored by all methods."
    assert {result.standing(j) for j in result.order()} == {"not scored yet"}
    assert "More minutes, fewer methods or smaller images" in result.notes()[0]


def test_methods_of_many_passes_start_at_once_where_there_are_no_others() -> None:
    result = select(cnn(), DATA, ["integrated-gradients"], images=8, rules=Rules(first=4), batch=4, device="cpu")
    assert result.race.counts()[0, 0] == 8


def test_methods_of_many_steps_start_late_though_the_steps_of_an_image_are_one_pass() -> None:
    methods = ["gradcam", "integrated-gradients:steps=32"]
    result = select(cnn(), DATA, methods, images=8, rules=Rules(first=4), batch=4, device="cpu")
    assert result.race.counts()[0, :2].tolist() == [8, 4]


def test_images_are_scored_in_batches_that_fit_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = Race.add
    monkeypatch.setattr(Race, "add", lambda race, scores: (sizes.append(len(scores)), add(race, scores))[1])
    Slow(0.001).select(4)
    assert sizes[:3] == [1, 7, 8]
    sizes.clear()
    Slow(0.3).select(4)
    assert 1 <= max(sizes) < 8


def test_without_a_limit_batches_are_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = Race.add
    monkeypatch.setattr(Race, "add", lambda race, scores: (sizes.append(len(scores)), add(race, scores))[1])
    select(cnn(), DATA, ["gradcam"], images=8, batch=4, device="cpu")
    assert sizes == [4, 4]


def test_methods_whose_maps_are_not_fine_are_out() -> None:
    model = cnn()
    with torch.no_grad():
        model.classifier.weight.zero_()  # every map that reads the class is zero
    result = select(model, DATA, ["gradcam", "activation"], images=24, device="cpu")
    assert "not fine on 100% of 16 images" in result.left_out["gradcam"]
    assert "gradcam" not in result.group


def made_up(means: dict[str, float], controls: tuple[str, ...] = ("random",), images: int = 160, **rules: Any) -> Any:
    """A result of scores that are drawn."""
    rng = np.random.default_rng(0)
    names = [*means]
    race = Race(names, [n in controls for n in names], [q.what for q in QUESTIONS], rules=Rules(**rules))
    x = np.array([*means.values()]) + rng.normal(0, 0.05, (images, 2, len(names)))
    for start in range(0, images, 8):
        if not race.decided:
            race.add(x[start : start + 8])
    config = Config.build({"data": [{"source": "d"}], "models": [{"name": "m"}], "methods": names, "metrics": ["road"]})
    return Selection(race, QUESTIONS, "m", "d", images, {}, {}, config)


def test_one_winner_is_named() -> None:
    result = made_up({"cam": 0.5, "lrp": 0.2, "random": 0.0})
    assert result.best == "cam"
    assert result.sentence().startswith("Use cam: the best of all methods, and above every control, on ")


def test_what_cannot_be_told_apart_is_named_as_a_group() -> None:
    result = made_up({"cam": 0.5, "lrp": 0.501, "random": 0.0}, images=48)
    assert result.best in ("cam", "lrp")
    assert set(result.group) == {"cam", "lrp"}
    assert "cannot be told from it yet" in result.sentence()
    assert "Undecided after 48 images" in " ".join(result.notes())


def test_none_that_beats_the_controls_is_said() -> None:
    result = made_up({"cam": 0.1, "lrp": 0.1, "random": 0.1}, images=48)
    assert result.best is None
    assert result.sentence().startswith("No method is shown to beat every control on 48 images")


def test_the_methods_of_a_toml_file_are_those_that_ran(tmp_path: Path) -> None:
    result = select(cnn(), DATA, ["gradcam", "rollout"], images=4, entry={"name": "resnet18"}, device="cpu")
    path = tmp_path / "benchmark.toml"
    path.write_text(result.config.to_toml())
    config = Config.read(path)
    assert config == result.config
    assert config.methods == ("gradcam",)
    assert config.data[0].limit == 0


def test_images_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    for i in range(3):
        (tmp_path / f"bad{i}.png").write_bytes(b"no image")
    result = select(cnn(), tmp_path, ["gradcam", "activation"], device="cpu")
    assert len(result.unreadable) == 3
    assert result.race.images == 7
    assert any("3 images could not be read (first: " in line for line in result.notes())
    assert any("there are no more" in line for line in result.notes()) or result.race.decided
    assert len(result.to_dict()["unreadable"]) == 3


def test_few_images_ask_every_question() -> None:
    result = select(cnn(), "synthetic:length=12", ["gradcam", "activation"], batch=2, device="cpu")
    if not result.race.decided:
        assert (result.race.counts()[: len(QUESTIONS), result.winners[0]] > 0).all()


def test_the_controls_of_a_race_know_nothing_of_the_network() -> None:
    result = select(cnn(), DATA, ["gradcam", "input-x-gradient"], images=4, device="cpu")
    controls = [name for name, is_one in zip(result.race.names, result.race.controls, strict=True) if is_one]
    assert controls == ["random", "center", "edges"]
