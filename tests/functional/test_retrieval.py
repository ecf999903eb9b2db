"""The Market-1501 protocol against a loop in float64 and torchmetrics, and what a likeness is made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from xattn.errors import ParameterError, ShapeError
from xattn.functional.retrieval import pair_distances, part_cosines, part_shares, retrieval_ranks


def naive_distance(a: list[float], b: list[float], kind: str) -> float:
    if kind == "euclidean":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def naive(query, gallery, query_ids, gallery_ids, query_groups=None, gallery_groups=None, kind="cosine", own=None):
    """The protocol in words: walk down the gallery, skip what does not count, note the precision at each match."""
    precisions, firsts = [], []
    for q in range(len(query)):
        listed = []
        for g in range(len(gallery)):
            same = gallery_ids[g] == query_ids[q]
            if gallery_ids[g] < 0 or (own is not None and g == own[q]):
                continue
            if same and query_groups is not None and gallery_groups[g] == query_groups[q]:
                continue
            listed.append((naive_distance(query[q].tolist(), gallery[g].tolist(), kind), bool(same)))
        listed.sort()  # False before True: a wrong image comes first where distances are equal
        found, values, first = 0, [], math.nan
        for rank, (_, same) in enumerate(listed, 1):
            if same:
                found += 1
                values.append(found / rank)
                first = rank if found == 1 else first
        precisions.append(sum(values) / found if found else math.nan)
        firsts.append(first)
    return torch.tensor(precisions, dtype=torch.float64), torch.tensor(firsts, dtype=torch.float64)


def random_case(seed: int, queries: int = 13, gallery: int = 41) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(queries + gallery, 6, generator=g, dtype=torch.float64)
    ids = torch.randint(-1, 5, (queries + gallery,), generator=g)
    groups = torch.randint(0, 3, (queries + gallery,), generator=g)
    ids[:queries].clamp_(0)
    cut = lambda t: (t[:queries], t[queries:])  # noqa: E731
    (a, b), (i, j), (c, d) = cut(features), cut(ids), cut(groups)
    return a, b, i, j, c, d


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(4))
def test_the_protocol_equals_the_loop(kind: Any, seed: int) -> None:
    case = random_case(seed)
    found = retrieval_ranks(*case, distance=kind, rows=5)
    for mine, expected in zip(found, naive(*case, kind=kind), strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True, atol=1e-12, rtol=0)


def test_equal_distances_count_against_the_network() -> None:
    """Features on a coarse grid, so that many distances are equal in the loop and here."""
    a, b, *rest = random_case(7)
    case = (a.sign(), b.sign(), *rest)
    for mine, expected in zip(
        retrieval_ranks(*case, distance="euclidean"), naive(*case, kind="euclidean"), strict=True
    ):
        torch.testing.assert_close(mine, expected, equal_nan=True, atol=1e-12, rtol=0)
    same = torch.ones(4, 3)
    ids = torch.tensor([0, 0, 1, 1])
    precision, first = retrieval_ranks(same[:1], same, ids[:1], ids)
    assert (float(precision), float(first)) == (pytest.approx((1 / 3 + 2 / 4) / 2), 3)
    assert torch.equal(retrieval_ranks(same[:1], same, ids[:1], ids.flip(0))[0], precision)  # whatever the order


def test_torchmetrics_agrees_where_nothing_is_left_out() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.retrieval")
    a, b, i, j, _, _ = random_case(3)
    j = j.clamp(0)
    precision, first = retrieval_ranks(a, b, i, j)
    away = pair_distances(a, b)  # 2 - away below: torchmetrics counts no match whose score is not positive
    for q in range(len(a)):
        match = i[q] == j
        theirs = torchmetrics.retrieval_average_precision(2 - away[q], match)
        torch.testing.assert_close(precision[q], theirs.double(), atol=1e-6, rtol=0)
        reciprocal = torchmetrics.retrieval_reciprocal_rank(2 - away[q], match)
        torch.testing.assert_close(1 / first[q], reciprocal.double(), atol=1e-6, rtol=0)


def test_a_query_without_a_match_is_undefined() -> None:
    features = torch.randn(5, 3, dtype=torch.float64)
    ids, groups = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 0])
    precision, first = retrieval_ranks(features, features, ids, ids, groups, groups)
    # 0 has matches of its own group alone, 1 one of another group, 2 none at all
    assert precision.isnan().tolist() == first.isnan().tolist() == [True, True, False, False, True]
    one = retrieval_ranks(features[:1], features[:1], ids[:1], ids[:1], own=torch.tensor([0]))
    assert one[0].isnan().all()
    assert retrieval_ranks(features[:0], features, ids[:0], ids)[0].shape == (0,)
    assert retrieval_ranks(features, features[:0], ids, ids[:0])[1].isnan().all()


def test_a_set_is_searched_in_itself_without_the_query() -> None:
    a, _, ids, *_ = random_case(5)
    own = torch.arange(len(a))
    for mine, expected in zip(retrieval_ranks(a, a, ids, ids, own=own), naive(a, a, ids, ids, own=own), strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True, atol=1e-12, rtol=0)


def test_what_does_not_fit_is_told() -> None:
    a, b, i, j, c, _ = random_case(0)
    with pytest.raises(ShapeError, match=r"with an identity each but got \(13, 6\) and \(41, 6\) with \(12,\)"):
        retrieval_ranks(a, b, i[1:], j)
    with pytest.raises(ShapeError, match="of both the query and the gallery"):
        retrieval_ranks(a, b, i, j, c)
    with pytest.raises(ParameterError, match="cosine or euclidean but is 'manhattan'"):
        pair_distances(a, b, "manhattan")  # type: ignore[arg-type]


def test_shares_of_parts_are_the_terms_of_the_cosine() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 5, generator=g, dtype=torch.float64) for _ in range(2))
    shares = part_shares(a, b)
    for n in range(4):
        norms = math.sqrt(sum(v * v for v in a[n].flatten().tolist()) * sum(v * v for v in b[n].flatten().tolist()))
        for p in range(3):
            terms = sum(x * y for x, y in zip(a[n, p].tolist(), b[n, p].tolist(), strict=True))
            assert float(shares[n, p]) == pytest.approx(terms / norms, abs=1e-14)
            for r in range(3):
                expected = 1 - naive_distance(a[n, p].tolist(), b[n, r].tolist(), "cosine")
                assert float(part_cosines(a, b)[n, p, r]) == pytest.approx(expected, abs=1e-14)
    torch.testing.assert_close(shares.sum(1), torch.cosine_similarity(a.flatten(1), b.flatten(1)))
    assert part_shares(a.half(), b.half()).dtype == torch.float32
    assert part_shares(a * 0, b).abs().sum() == 0
    with pytest.raises(ShapeError, match="part_shares"):
        part_shares(a, b[:, :2])


@pytest.mark.parametrize("kind", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [20, 256])
def test_near_duplicates_are_told_apart_whatever_the_rows(kind: Any, rows: int) -> None:
    g = torch.Generator().manual_seed(0)
    centres = 3 + torch.rand(1, 64, generator=g) + 1e-4 * torch.randn(40, 64, generator=g)
    query = centres + 1e-6 * torch.randn(40, 64, generator=g)
    ids = torch.arange(40)
    precision, first = retrieval_ranks(query, centres, ids, ids, distance=kind, rows=rows)
    exact, _ = naive(query.double(), centres.double(), ids, ids, kind=kind)
    torch.testing.assert_close(precision, exact)
    assert precision.mean() > 0.99
    assert first.max() == 1
