"""Augmentation: crops against pixels that are known, draws that depend on the seed alone."""

from __future__ import annotations

import math

import pytest
import torch

from xattn.errors import ParameterError
from xattn.training.augment import crop_boxes, cut, derive_seed, draw, finish
from xattn.training.recipe import AugmentSection, Recipe
from xattn.training.removal import remove_cells

ZERO, ONE = torch.zeros(3), torch.ones(3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_cut_of_whole_pixels_is_a_slice() -> None:
    images = torch.arange(2 * 3 * 8 * 10).reshape(2, 3, 8, 10) % 251
    boxes = torch.tensor([[2.0, 1.0, 6.0, 5.0], [5.0, 3.0, 9.0, 7.0]])
    got = cut(images, boxes, 4)
    torch.testing.assert_close(got[0], images[0, :, 1:5, 2:6].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(got[1], images[1, :, 3:7, 5:9].float(), atol=1e-3, rtol=0)


def test_the_whole_image_at_its_own_size_is_untouched() -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    boxes = crop_boxes(AugmentSection(crop="none"), None, torch.tensor([[8, 8], [8, 8]]), 8)
    assert torch.equal(cut(images, boxes, 8), images.float())


def test_random_resized_crops_lie_inside_and_keep_the_area() -> None:
    section = AugmentSection(scale=(0.3, 0.6))
    sizes = torch.tensor([[60, 100]]).expand(500, 2)
    left, top, right, bottom = crop_boxes(section, draw(section, 500, generator()), sizes, 32).unbind(1)
    assert bool((left >= 0).all() & (top >= 0).all() & (right <= 100.001).all() & (bottom <= 60.001).all())
    area = (right - left) * (bottom - top) / 6000
    assert 0.29 < area.min() < 0.35
    assert 0.55 < area.max() < 0.61


def test_random_and_central_crops_see_the_share_that_resize_says() -> None:
    section = AugmentSection(crop="random", resize=512)
    sizes = torch.tensor([[512, 800]]).expand(50, 2)
    boxes = crop_boxes(section, draw(section, 50, generator()), sizes, 448)
    assert torch.allclose(boxes[:, 2:] - boxes[:, :2], torch.tensor(448.0))
    assert boxes[:, 0].max() - boxes[:, 0].min() > 200
    (central,) = crop_boxes(section, None, sizes[:1], 448).tolist()
    assert central == [176.0, 32.0, 624.0, 480.0]


def test_squashed_images_are_seen_whole_in_an_evaluation_and_keep_their_shape_in_training() -> None:
    section = AugmentSection(crop="squash", scale=(0.3, 0.6))
    sizes = torch.tensor([[60, 100], [200, 20]])
    assert crop_boxes(section, None, sizes, 32).tolist() == [[0, 0, 100, 60], [0, 0, 20, 200]]
    left, top, right, bottom = crop_boxes(section, draw(section, 2, generator()), sizes, 32).unbind(1)
    torch.testing.assert_close((right - left) / (bottom - top), torch.tensor([100 / 60, 0.1]))
    share = (right - left) * (bottom - top) / sizes.prod(1)
    assert bool(((share > 0.3) & (share < 0.6) & (left >= 0) & (top >= 0)).all())
    assert bool((right <= sizes[:, 1] + 1e-3).all() & (bottom <= sizes[:, 0] + 1e-3).all())


def test_draws_depend_on_the_generator_alone_and_cover_their_ranges() -> None:
    section = AugmentSection(brightness=0.5, flip=True)
    one, two = draw(section, 400, generator(3)), draw(section, 400, generator(3))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["area"], draw(section, 400, generator(4))["area"])
    assert 0.5 <= one["brightness"].min() < 0.55
    assert 150 < one["flip"].sum() < 250
    assert not draw(AugmentSection(flip=False), 50, generator())["flip"].any()
    assert math.log(one["ratio"].max()) <= math.log(4 / 3) + 1e-6


def test_finish_mirrors_and_normalizes() -> None:
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    section = AugmentSection(brightness=0, contrast=0, saturation=0)
    draws = draw(section, 2, generator())
    draws["flip"] = torch.tensor([True, False])
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    got = finish(images, section, draws, mean, std)
    expected = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(got[0], expected[0].flip(2))
    torch.testing.assert_close(got[1], expected[1])


def test_colours_do_what_their_names_say() -> None:
    image = torch.tensor([60.0, 120.0, 30.0]).view(1, 3, 1, 1) * torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)
    section = AugmentSection()
    neutral = {k: torch.ones(1) for k in ("brightness", "contrast", "saturation")} | {"flip": torch.tensor([False])}
    plain = finish(image, section, neutral, ZERO, ONE)
    brighter = finish(image, section, neutral | {"brightness": torch.tensor([1.5])}, ZERO, ONE)
    torch.testing.assert_close(brighter, plain * 1.5)
    grey = finish(image, section, neutral | {"saturation": torch.zeros(1)}, ZERO, ONE)
    torch.testing.assert_close(grey, plain.mean(1, keepdim=True).expand(1, 3, 1, 2))
    flat = finish(image, section, neutral | {"contrast": torch.zeros(1)}, ZERO, ONE)
    torch.testing.assert_close(flat, plain.mean().expand(1, 3, 1, 2))


def test_rand_augment_depends_on_the_images_own_seed() -> None:
    pytest.importorskip("torchvision")
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    section = AugmentSection(randaugment=2, magnitude=20)
    draws = draw(section, 4, generator())
    state = torch.get_rng_state()
    whole = finish(images, section, draws, ZERO, ONE)
    assert torch.equal(torch.get_rng_state(), state)
    for i in range(4):
        one = finish(images[i : i + 1], section, {k: v[i : i + 1] for k, v in draws.items()}, ZERO, ONE)
        assert torch.equal(one[0], whole[i])
    assert not torch.equal(whole, finish(images, AugmentSection(), draws, ZERO, ONE))


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {derive_seed(a, "step", b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert all(0 <= s < 2**63 for s in seeds)


def removed_of(section: AugmentSection, n: int, seeds: torch.Tensor | None = None, side: int = 16) -> torch.Tensor:
    """Which pixels of ones became zero, the mean colour."""
    images = torch.ones(n, 3, side, side)
    gone = remove_cells(images, section, torch.arange(n) if seeds is None else seeds, ZERO + 0.5, ONE * 0.2)
    assert set(gone.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(gone[:, 0], gone[:, 2])
    return gone[:, 0] == 0


def test_half_of_the_images_lack_one_cell_of_the_grid() -> None:
    removed = removed_of(AugmentSection(removal="single", removal_grid=4), 800)
    cells = removed.unflatten(1, (4, 4)).unflatten(3, (4, 4)).float().mean((2, 4)).flatten(1)
    assert set(cells.unique().tolist()) == {0.0, 1.0}
    assert set(cells.sum(1).tolist()) == {0.0, 1.0}
    assert 0.45 < cells.sum(1).mean() < 0.55
    assert (cells.sum(0) > 0).all()


def test_a_share_of_up_to_beta_goes() -> None:
    removed = removed_of(AugmentSection(removal="share", removal_share=0.3), 600).float().mean((1, 2))
    assert removed.mean().item() == pytest.approx(0.15, abs=0.01)
    assert removed.max() < 0.55


def test_mixed_images_are_whole_or_lack_one_cell_or_a_share() -> None:
    section = AugmentSection(removal="mixed", removal_share=1.0)
    cells = removed_of(section, 800).float().mean((1, 2)) * 16
    assert 0.2 < (cells == 0).float().mean() < 0.3
    assert 0.2 < (cells == 1).float().mean() < 0.3


def test_removal_depends_on_the_images_own_seed_and_leaves_evaluation_alone() -> None:
    section = AugmentSection(removal="mixed", removal_baselines=("mean", "blur", "noise"))
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    draws = draw(section, 6, generator())
    whole = finish(images, section, draws, ZERO, ONE)
    for i in range(6):
        one = finish(images[i : i + 1], section, {k: v[i : i + 1] for k, v in draws.items()}, ZERO, ONE)
        torch.testing.assert_close(one[0], whole[i], rtol=0, atol=1e-6)
    plain = section.model_copy(update={"removal": "none"})
    assert torch.equal(finish(images, section, None, ZERO, ONE), finish(images, plain, None, ZERO, ONE))
    assert not torch.equal(whole, finish(images, plain, draws, ZERO, ONE))


def test_a_baseline_that_is_not_known_is_told() -> None:
    with pytest.raises(ParameterError, match=r"removal_baselines.*'meen'.*[Dd]id you mean 'mean'"):
        Recipe.build({"augment": {"removal": "single", "removal_baselines": ["meen"]}})
