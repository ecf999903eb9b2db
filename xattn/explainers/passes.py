"""What methods share that run the model again on other images: batches that fit, baselines, and the proof of a sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from torch import Tensor

from xattn.errors import NotApplicableError
from xattn.functional.baselines import Black, Mean, Noise, Replace, baselines
from xattn.functional.perturb import ImageScore
from xattn.schema import Range
from xattn.score import apply_score
from xattn.trace import INPUT, Trace, place_of, promote

Chunk = Annotated[int, Range(1, 100_000)]
"""Images a batch; no part of the result."""

BaselineName = Annotated[str, baselines.parse]
"""A baseline and its parameters, such as `"black"` or `"blur:sigma=0.1"`; defined on pixels and then normalized."""


_PIXELS_WITH_GRAPH = 2**20


class Halving:
    """Calls a function of a batch with as much of it at a time as the memory turned out to hold.

    Args:
        run: from tensors of one length (B, ...) to a tensor (B, ...) that does not mix the rows.
        most: rows at a time to begin with; None is all.
    """

    def __init__(self, run: Callable[..., Tensor], most: int | None = None) -> None:
        self.run = run
        self.most = most

    def __call__(self, *batch: Tensor) -> Tensor:
        """The whole batch, in parts where it did not fit."""
        size = len(batch[0])
        if self.most is None or size <= self.most:
            try:
                return self.run(*batch)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Out of the handler, so that the tensors of the failed pass are free.
            self.most = size - size // 2
        parts = range(0, size, self.most)
        return torch.cat([self(*(tensor[i : i + parts.step] for tensor in batch)) for i in parts])


def laid_out(images: Tensor) -> Tensor:
    """Images in the layout for which the convolutions of a CPU are up to a third faster: channels last."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def score_again(trace: Trace) -> ImageScore:
    """Scores of changed images, without a graph, for the class explained in the image that each is made from."""
    return Halving(lambda images, own: trace.score(laid_out(images), trace.target.index_select(0, own), rows=own))


def gradient_again(trace: Trace) -> ImageScore:
    """Gradients (B, C, H, W) of the score by the pixels of changed images; one forward and one backward a batch."""

    def run(images: Tensor, own: Tensor) -> Tensor:
        return trace.again(laid_out(images), rows=own, layers=(INPUT,)).gradient(INPUT)

    return Halving(run, most_with_graph(trace.x))


def most_with_graph(x: Tensor) -> int | None:
    """Images like these that a processor takes at a time where the graph is kept: 20 of 224 x 224 pixels.

    EfficientNet-Lite0 keeps 80 MB for each of these, and more win no time; a GPU tells when its memory is full.
    """
    return max(1, _PIXELS_WITH_GRAPH // x[0, 0].numel()) if x.device.type == "cpu" else None


def slopes_again(trace: Trace) -> ImageScore:
    """As `gradient_again`, with the score (B, C * H * W + 1) behind the flat gradient of each image, at no cost."""

    def run(images: Tensor, own: Tensor) -> Tensor:
        again = trace.again(laid_out(images), rows=own, layers=(INPUT,))
        gradient = again.gradient(INPUT).flatten(1)
        return torch.cat([gradient, clean_scores(again)[:, None].to(gradient)], dim=1)

    return Halving(run)


def scores_of(trace: Trace, images: Tensor, chunk: int) -> Tensor:
    """Scores (N,) of other images in the place of those of the trace, `chunk` at a time."""
    score = score_again(trace)
    return torch.cat(
        [score(images[rows], rows) for rows in torch.arange(len(images), device=images.device).split(chunk)]
    )


def tiles(images: int, samples: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Cut images x samples into batches of at most `chunk`: all samples of some images, or some samples of one.

    What is summed over the samples of an image is so summed in the same order whatever the batch.

    >>> [(i.start, i.stop, s.start, s.stop) for i, s in tiles(3, 4, 8)]
    [(0, 2, 0, 4), (2, 3, 0, 4)]
    >>> [(i.start, i.stop, s.start, s.stop) for i, s in tiles(2, 5, 4)]
    [(0, 1, 0, 3), (0, 1, 3, 5), (1, 2, 0, 3), (1, 2, 3, 5)]
    """
    together = max(1, chunk // samples)
    part = -(-samples // -(-samples // chunk))
    for i in range(0, images, together):
        for s in range(0, samples, part):
            yield slice(i, min(i + together, images)), slice(s, min(s + part, samples))


def owners(images: slice, samples: slice, device: torch.device) -> Tensor:
    """The image that each row of a tile belongs to: int64 (images * samples,)."""
    return torch.arange(images.start, images.stop, device=device).repeat_interleave(samples.stop - samples.start)


def replacement(trace: Trace, baseline: str) -> Replace:
    """A baseline by its name and parameters (`"blur:sigma=0.1"`), bound to the images; made once for all methods.

    Raises:
        NotApplicableError: for one that reads neighbours of a pixel, in volumes.
    """
    chosen = baselines.parse(baseline)
    if len(trace.extent) == 3 and not isinstance(chosen, (Mean, Black, Noise)):
        raise NotApplicableError(f"baseline '{baseline}' is not defined for volumes; use mean, black or noise.")
    return trace.replacement(chosen)


def as_image(replace: Replace, method: str, baseline: str) -> Tensor:
    """The whole image (N or 1, C, H or 1, W or 1) that a baseline puts in the place of removed pixels.

    Raises:
        NotApplicableError: if it has none, as it fills holes from what is around them.
    """
    if replace.image is None:
        raise NotApplicableError(
            f"{method}: baseline '{baseline}' fills holes and is no image by itself; use black, mean, blur or noise."
        )
    return replace.image


def baseline_image(trace: Trace, method: str, baseline: str) -> Tensor:
    """The baseline of each image (N, C, H, W), defined on pixels and normalized as the images are."""
    return as_image(replacement(trace, baseline), method, baseline).expand_as(trace.x)


def clean_scores(trace: Trace) -> Tensor:
    """Scores (N,) of the untouched images, from the recorded pass."""
    return apply_score(trace.score_fn, promote(trace.logits), trace.target)


def completeness_error(
    trace: Trace, total: Tensor, start: Tensor, magnitude: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Relative error (N,) of a sum that should be the score of the image less that of its baseline.

    Args:
        trace: the recorded pass.
        total: the sum (N,).
        start: score of the baseline (N,).
        magnitude: sum of the absolute values that were added up (N,); what the model may round of it is no error.
        rows: the images (N,) of the trace that these are; None is all of them.

    Returns:
        The error as a share of the largest of the two scores and their difference.
    """
    end = clean_scores(trace) if rows is None else clean_scores(trace)[rows]
    kind, (_, dtype) = trace.x.device.type, place_of(trace.model)
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    if trace.x.is_cuda and dtype == torch.float32:
        dtype = torch.float16  # TF32 has as many bits
    rounding = torch.finfo(dtype).eps * (end.abs() + start.abs() + magnitude)
    excess = ((total - (end - start)).abs() - rounding).clamp(min=0)
    scale = torch.stack([end - start, end, start]).abs().amax(dim=0)
    return excess / scale.masked_fill(scale == 0, 1)
