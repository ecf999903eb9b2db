"""The metrics of rendered parts against loops, and on a network that looks at known parts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from xattn.data.sample import Batch
from xattn.data.scene import Scene
from xattn.errors import DataError
from xattn.explainers import resolve
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.functional.scenes import important_parts, opposed_classes, part_sums, sufficient_sets
from xattn.metrics import metrics
from xattn.metrics.scenes import THRESHOLDS
from xattn.spec import ModelSpec
from xattn.trace import Trace, record

SIDE = 12
PARTS = ("beak", "eye", "foot")
PLACES = {"beak": (1, 1), "eye": (1, 7), "foot": (7, 1), "object 0": (7, 7)}
SHARED = {1: frozenset({"beak"}), 2: frozenset({"eye", "foot"})}


def drawn(gone: frozenset[str] = frozenset()) -> Tensor:
    """An image (1, 12, 12) with a square of ones for each part that is there."""
    x = torch.zeros(1, SIDE, SIDE)
    for name, (row, column) in PLACES.items():
        x[0, row : row + 3, column : column + 3] = 0.0 if name in gone else 1.0
    return x


class Counts(nn.Module):
    """Logits that are weighted sums of the parts: class 0 by beak and eye, 1 by the beak, 2 by eye and foot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        weights = torch.zeros(3, SIDE, SIDE)
        for k, parts in enumerate(({"beak": 4.0, "eye": 2.0}, {"beak": 3.0}, {"eye": 1.0, "foot": 1.5})):
            for part, weight in parts.items():
                row, column = PLACES[part]
                weights[k, row : row + 3, column : column + 3] = weight / 9
        self.weights = nn.Parameter(weights)
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
        self.spec = ModelSpec(feature_layer="conv", input_size=(SIDE, SIDE), mean=(0.0,), std=(1.0,), channels=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nhw,khw->nk", self.conv(x)[:, 0], self.weights)


def scene(subsets: bool = True) -> Scene[Tensor]:
    masks = {}
    for name, (row, column) in PLACES.items():
        masks[name] = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        masks[name][row : row + 3, column : column + 3] = True
    sizes = range(1, len(PARTS) + 1) if subsets else (1,)
    gone = [frozenset(s) for n in sizes for s in itertools.combinations(PARTS, n)] + [frozenset({"object 0"})]
    return Scene(PARTS, masks, {g: drawn(g) for g in gone}, SHARED)


def setting(n: int = 2, subsets: bool = True) -> tuple[Trace, Batch]:
    model = Counts().eval()
    x = torch.stack([drawn()] * n)
    trace = record(model, x, torch.zeros(n, dtype=torch.int64), spec=model.spec, layers=("conv",))
    scenes = tuple(scene(subsets) for _ in range(n))
    return trace, Batch(x=x, target=trace.target, ids=tuple(map(str, range(n))), scenes=scenes)


def maps_of(**weights: float) -> Tensor:
    """A map (1, 1, 12, 12) with so much of it on each part, and noise nowhere."""
    maps = torch.zeros(1, 1, SIDE, SIDE)
    for name, weight in weights.items():
        row, column = PLACES[name.replace("_", " ")]
        maps[0, 0, row : row + 3, column : column + 3] = weight / 9
    return maps


def explained(trace: Trace, *maps: Tensor) -> Explanation:
    (method,) = resolve(["input-x-gradient"])
    return Explanation(torch.cat(maps), trace.target, method, (SIDE, SIDE))


def naive_important(maps: Tensor, names: tuple[str, ...], threshold: float, margin: int) -> set[str]:
    total = float(maps.double().sum())
    found = set()
    for name in names:
        row, column = PLACES[name]
        inside = 0.0
        for i in range(SIDE):
            for j in range(SIDE):
                if row - margin <= i < row + 3 + margin and column - margin <= j < column + 3 + margin:
                    inside += float(maps[i, j])
        if inside > total * threshold:
            found.add(name)
    return found


def test_sums_and_sets_are_those_of_a_loop() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(0.3, 1, (SIDE, SIDE)))
    masks = torch.stack([scene().masks[name] for name in PLACES])
    sums = part_sums(maps, masks, 2)
    marked = important_parts(sums, maps.sum(), torch.tensor(THRESHOLDS))
    for t in (0, 20, 79):
        names = {name for name, m in zip(PLACES, marked[t].tolist(), strict=True) if m}
        assert names == naive_important(maps, tuple(PLACES), THRESHOLDS[t], 2)
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.01, pytest.approx(0.5), 80)


def test_classes_and_sets_by_hand() -> None:
    assert set(sufficient_sets(PARTS, SHARED)) == {frozenset({"beak", "eye"}), frozenset({"beak", "foot"})}
    assert [*sufficient_sets("ab", {1: frozenset("ab")})] == []
    assert opposed_classes({1: frozenset("ab"), 2: frozenset("bc")}) is None


def test_single_deletion_is_the_correlation_with_the_falls() -> None:
    trace, batch = setting(subsets=False)
    rng = np.random.default_rng(1)
    weights = [dict(zip(PARTS, rng.permutation([3.0, 2.0, 1.0]).tolist(), strict=True)) for _ in range(2)]
    found = metrics.parse("part_deletion").measure(explained(trace, *(maps_of(**w) for w in weights)), trace, batch)
    falls = {"beak": 4.0, "eye": 2.0, "foot": 0.0}  # of the logit of class 0
    for i, w in enumerate(weights):
        rho = stats.spearmanr([w[p] for p in PARTS], [falls[p] for p in PARTS]).statistic
        assert found["single_deletion"][i].item() == pytest.approx((1 + rho) / 2)


def test_checks_are_those_of_a_loop() -> None:
    trace, batch = setting()
    weights = [{"beak": 5.0, "eye": 3.0, "foot": 2.0}, {"beak": 0.5, "eye": 1.0, "foot": 8.5}]
    maps = [maps_of(**w) for w in weights]
    found = metrics.parse("part_checks").measure(explained(trace, *maps), trace, batch)
    model = trace.model
    for i in range(2):
        kept = gone = enough = 0.0
        for threshold in THRESHOLDS:
            important = naive_important(maps[i][0, 0], PARTS, threshold, 2)
            with torch.no_grad():
                without = {
                    name: int(model(drawn(frozenset(some))[None]).argmax())
                    for name, some in (("rest", set(PARTS) - important), ("important", important))
                }
            kept += without["rest"] == 0
            gone += without["important"] != 0
            enough += max(len(important & s) / 2 for s in ({"beak", "eye"}, {"beak", "foot"}))
        for column, value in (("preservation", kept), ("deletion_check", gone), ("sufficiency", enough)):
            assert found[column][i].item() == pytest.approx(value / len(THRESHOLDS)), column
    assert found["preservation"][0] > found["preservation"][1]


def test_without_all_subsets_the_checks_are_undefined_and_sufficiency_is_not() -> None:
    trace, batch = setting(subsets=False)
    maps = maps_of(beak=1.0, eye=1.0, foot=1.0)
    found = metrics.parse("part_checks").measure(explained(trace, maps, maps), trace, batch)
    assert found["preservation"].isnan().all()
    assert found["sufficiency"].isfinite().all()


def test_distractibility_is_that_of_a_loop() -> None:
    trace, batch = setting()
    weights = [{"beak": 4.0, "eye": 2.0, "object_0": 3.0}, {"beak": 4.0, "eye": 2.0}]
    maps = [maps_of(**w) for w in weights]
    found = metrics.parse("distractibility").measure(explained(trace, *maps), trace, batch)
    idle = {"foot", "object 0"}  # class 0 does not look at them
    for i in range(2):
        shares = [len(naive_important(maps[i][0, 0], tuple(PLACES), t, 2) & idle) / len(idle) for t in THRESHOLDS]
        assert found["distractibility"][i].item() == pytest.approx(1 - sum(shares) / len(shares))
    assert found["distractibility"][1] == 1
    assert found["background_independence"].tolist() == [1.0, 1.0]


def test_target_sensitivity_follows_the_maps_of_the_classes() -> None:
    """The gradient moves to the parts of a class; a map of the image alone does not."""
    model = Counts().eval()
    shared = {1: frozenset({"beak", "tail"}), 2: frozenset({"eye", "foot"})}
    plain = scene()
    nowhere = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    lacking = {**plain.lacking, frozenset({"beak", "tail"}): drawn(frozenset({"beak"}))}
    one = Scene((*PARTS, "tail"), {**plain.masks, "tail": nowhere}, lacking, shared)
    x = drawn()[None]
    for name, expected in (("input-x-gradient", 1.0), ("edges", 0.0)):
        (explanation,) = explain(model, x, [name], torch.tensor([0]), spec=model.spec)
        trace = record(model, x, torch.tensor([0]), spec=model.spec, layers=("conv",))
        batch = Batch(x=x, target=trace.target, ids=("a",), scenes=(one,))
        found = metrics.parse("target_sensitivity").measure(explanation, trace, batch)
        assert found["target_sensitivity"].item() == expected, name
    blind = Scene(
        one.parts, one.masks, {frozenset({"beak", "tail"}): drawn(), frozenset({"eye", "foot"}): drawn()}, shared
    )
    batch = Batch(x=x, target=trace.target, ids=("a",), scenes=(blind,))
    trace = record(model, x, torch.tensor([0]), spec=model.spec, layers=("conv",))
    assert math.isnan(metrics.parse("target_sensitivity").measure(explanation, trace, batch)["target_sensitivity"])


def test_data_without_scenes_are_refused() -> None:
    trace, batch = setting()
    bare = Batch(x=batch.x, target=batch.target, ids=batch.ids)
    maps = maps_of(beak=1.0)
    with pytest.raises(DataError, match="part_deletion: the data have no images without single parts"):
        metrics.parse("part_deletion").measure(explained(trace, maps, maps), trace, bare)
