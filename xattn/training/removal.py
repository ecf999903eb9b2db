"""Training images that lack cells, so that a copy of a network (a scorer) can judge images with cells removed."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.functional.baselines import baselines
from xattn.functional.grid import cell_of_pixel
from xattn.training.recipe import AugmentSection


def remove_cells(images: Tensor, section: AugmentSection, seeds: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Replace cells of images, each from its own seed (IDSDS, arXiv:2407.11910; F-Fidelity, arXiv:2410.02970).

    `"single"`: half of the images lack one cell of a grid of `removal_grid` cells a side, as for IDSDS. `"share"`: each
    cell of a grid of `removal_cells` a side goes with a probability drawn between 0 and `removal_share`; F-Fidelity's
    code takes that share of the pixels always. `"mixed"`: a quarter of the images is whole, a quarter lacks one cell,
    half of them lack a share.

    Args:
        images: (n, 3, H, W), normalized.
        section: which cells go and what replaces them, one of the baselines for each image.
        seeds: int64 (n,).
        mean: per channel (3,), of images scaled to [0, 1].
        std: per channel (3,).

    Returns:
        Images of the same shape; those that are whole are as they came.
    """
    size = (images.shape[-2], images.shape[-1])
    one, many = (min(section.removal_grid, *size),) * 2, (min(section.removal_cells, *size),) * 2
    # One draw after the other from the image's own generator, so that nothing depends on the batch.
    drawn = torch.stack(
        [torch.rand(4 + many[0] * many[1], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    )
    kind, which, amount, filling = drawn[:, :4].unbind(1)
    place = (which * one[0] * one[1]).long()[:, None]
    single = cell_of_pixel(one, size)[None] == place
    share = (drawn[:, 4:] < amount[:, None] * section.removal_share).index_select(1, cell_of_pixel(many, size))
    if section.removal == "single":
        removed = single & (kind < 0.5)[:, None]
    elif section.removal == "share":
        removed = share
    else:
        removed = torch.where(kind[:, None] < 0.5, share, single & (kind < 0.75)[:, None])
    removed = removed.view(-1, 1, *size).to(images.device)
    names = section.removal_baselines
    chosen = (filling * len(names)).long()
    result = images
    for i, name in enumerate(names):
        rows = (chosen == i).nonzero()[:, 0].to(images.device)
        if not len(rows):
            continue
        own = images[rows]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen == i].tolist()]
        fill = baselines.parse(name).prepare(own, mean.tolist(), std.tolist(), generators.__getitem__)
        filled = fill(own, removed[rows], torch.arange(len(rows), device=own.device))
        result = result.index_copy(0, rows, filled)
    return result
