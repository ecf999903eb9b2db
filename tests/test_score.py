"""Scores against plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from xattn.errors import NotApplicableError, ShapeError, UnknownNameError
from xattn.score import SCORES, apply_score, find_score

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -2.0, -5.0]], dtype=torch.float64)
TARGET = torch.tensor([1, 0])


def by_hand(name: str, row: list[float], c: int) -> float:
    if name == "logit":
        return row[c]
    if name == "prob":
        return math.exp(row[c]) / sum(math.exp(v) for v in row)
    if name == "sigmoid":
        return 1 / (1 + math.exp(-row[c]))
    return row[c] - max(v for k, v in enumerate(row) if k != c)


@pytest.mark.parametrize("name", SCORES)
def test_oracle(name: str) -> None:
    expected = [by_hand(name, row, c) for row, c in zip(LOGITS.tolist(), TARGET.tolist(), strict=True)]
    torch.testing.assert_close(find_score(name)(LOGITS, TARGET), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", SCORES)
def test_binary_classes_mirror_each_other(name: str) -> None:
    z = torch.tensor([[1.5], [-0.25]], dtype=torch.float64)
    one, zero = (find_score(name)(z, torch.full((2,), c)) for c in (1, 0))
    if name in ("logit", "margin"):
        torch.testing.assert_close(one, z[:, 0])
        torch.testing.assert_close(zero, -z[:, 0])
    else:
        torch.testing.assert_close(one + zero, torch.ones(2, dtype=torch.float64))


def test_a_reducing_callable_is_refused() -> None:
    with pytest.raises(ShapeError, match="do not reduce over the batch"):
        apply_score(lambda logits, target: logits.mean(), LOGITS, TARGET)


def test_unknown_score_suggests() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'margin'"):
        find_score("margn")


def test_a_score_without_a_meaning_for_probabilities_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORES, "double", lambda logits, target: 2 * logits[:, 0])
    assert find_score("double")(LOGITS, TARGET).tolist() == [4.0, -6.0]
    for values in ("probabilities", "log-probabilities"):
        with pytest.raises(NotApplicableError, match=f"'double' is not defined for a model that gives {values}"):
            find_score("double", values)
