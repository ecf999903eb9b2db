"""The learning rate as a function of the step, so that nothing but the step has to be remembered."""

from __future__ import annotations

import math

from xattn.training.recipe import OptimizerSection


def learning_rate(section: OptimizerSection, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine to zero (arXiv:1608.03983), steps, or constant.

    Args:
        section: the optimizer's part of a recipe.
        step: counted from 0 over the whole run.
        steps_per_epoch: steps of one epoch.
        epochs: epochs of the run.

    >>> plan = OptimizerSection(lr=1.0, warmup_epochs=1, schedule="cosine")
    >>> [round(learning_rate(plan, i, 2, 3), 3) for i in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(section.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return section.lr * (step + 1) / warmup
    if section.schedule == "cosine":
        share = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
        return section.lr * 0.5 * (1 + math.cos(math.pi * share))
    if section.schedule == "step":
        return section.lr * section.step_factor ** (step // steps_per_epoch // section.step_epochs)
    return section.lr
