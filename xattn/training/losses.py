"""Losses: distillation from a teacher, and triplets of images that are compared."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.errors import ParameterError, ShapeError

Form = Literal["hinton", "printed"]


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    weight: float = 0.5,
    temperature: float = 6.0,
    *,
    label_smoothing: float = 0.0,
    form: Form = "hinton",
) -> Tensor:
    """Cross-entropy and divergence from a teacher (Hinton et al. 2015, arXiv:1503.02531; BR-NPA, arXiv:2106.02566).

    `"hinton"`: (1 - w) CE(s, y) + w T^2 KL(softmax(t / T), softmax(s / T)), the mean over images of the sum over
    classes. `"printed"`, the formula of the BR-NPA paper: (1 - w) CE(s, y) + w KL(softmax(s), softmax(t)), without
    temperature and with the divergence the other way; its released code computes the former.

    Args:
        student: logits (N, K), with gradient.
        teacher: logits (N, K); no gradient flows into them.
        target: classes (N,).
        weight: w in [0, 1].
        temperature: T > 0; unused by the printed form.
        label_smoothing: of the cross-entropy.
        form: which of the two.

    Returns:
        Scalar.

    Raises:
        ShapeError: if the logits differ in shape.
        ParameterError: for a weight, temperature or form out of range.

    >>> import torch
    >>> z = torch.randn(4, 5)
    >>> float(distillation_loss(z, z, torch.arange(4), weight=1.0).abs() < 1e-6)
    1.0
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"distillation: student and teacher give logits {tuple(student.shape)} and {tuple(teacher.shape)}; both "
            "must know the same classes."
        )
    if not 0 <= weight <= 1 or temperature <= 0:
        raise ParameterError(
            f"distillation: expected weight in [0, 1] and temperature > 0 but got {weight} and {temperature}."
        )
    if form not in ("hinton", "printed"):
        raise ParameterError(f"distillation: form must be 'hinton' or 'printed' but got '{form}'.")
    entropy = F.cross_entropy(student, target, label_smoothing=label_smoothing)
    teacher = teacher.detach()
    if form == "printed":
        log_s, log_t = student.log_softmax(1), teacher.log_softmax(1)
        return (1 - weight) * entropy + weight * F.kl_div(log_t, log_s, reduction="batchmean", log_target=True)
    log_s, log_t = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    divergence = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
    return (1 - weight) * entropy + weight * temperature**2 * divergence


def triplet_loss(embedding: Tensor, target: Tensor, margin: float = 0.3) -> Tensor:
    """Batch-hard triplet loss (Hermans et al. 2017, arXiv:1703.07737, eq. 5), Euclidean.

    Each image is an anchor: its farthest image of the same identity should be nearer than its nearest of another one.
    The mean over anchors that have both of max(0, margin + d_positive - d_negative).

    Args:
        embedding: (N, D), with gradient.
        target: identities (N,).
        margin: 0 is the soft form, log(1 + exp(d_positive - d_negative)).

    Returns:
        Scalar; zero where no image has both.

    >>> float(triplet_loss(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]), 2.5))
    1.0
    """
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    points = embedding.to(dtype)
    square = (points**2).sum(1)
    away = square[:, None] + square - 2 * points @ points.T
    away = away.clamp(min=1e-12).sqrt()  # no root of zero, whose gradient is infinite
    same = target[:, None] == target
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    positive = away.masked_fill(~same | itself, -torch.inf).amax(1)
    negative = away.masked_fill(same, torch.inf).amin(1)
    both = positive.isfinite() & negative.isfinite()
    difference = positive[both] - negative[both]
    if not len(difference):
        return embedding.sum() * 0
    return F.relu(difference + margin).mean() if margin else F.softplus(difference).mean()
