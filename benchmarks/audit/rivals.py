"""What one would do without `xattn audit`: look at maps in random order, or cluster images by pixels or features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import Run
from torch.nn import functional as F

from xattn.data.planted import Planted
from xattn.data.preprocessing import preprocess
from xattn.explainers.cam import GradCAM
from xattn.explaining import explain

BATCH = 50
CLUSTERS = 8  # about as many as an audit finds groups
SMALLEST = 5  # images of a cluster, as of a group of the audit


def rivals(model: Any, run: Run, data: Planted, carry: float) -> dict[str, Any]:
    """What each of them finds, under its name: `looking`, `pixels`, `features`.

    Args:
        model: the network.
        run: what was planted.
        data: the images.
        carry: share of the images of a cluster that has to carry the mark.
    """
    target, pixels, features, showing = [], [], [], []
    places = run.audited(data)
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        x = torch.stack([preprocess(data[i].image, model.spec) for i in some])
        explanation = explain(model, x, [GradCAM()], spec=model.spec)[0]
        target.append(explanation.target.numpy())
        showing += [shows_mark(m, data.mask_of(i)) for i, m in zip(some, explanation.maps[:, 0].numpy(), strict=True)]
        pixels.append(F.adaptive_avg_pool2d(x, 16).flatten(1).numpy())
        with torch.no_grad():
            features.append(model.backbone(x).mean((2, 3)).numpy())
    classes, marked = np.concatenate(target), data.marked[list(places)]
    return {
        "looking": looking(np.array(showing), classes == run.label),
        "pixels": clustered(np.concatenate(pixels), classes, run, marked, carry),
        "features": clustered(np.concatenate(features), classes, run, marked, carry),
    }


def shows_mark(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether the cell of a map (h, w) with the highest value holds a pixel of the mark (H, W)."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    tall, wide = mask.shape[0] // values.shape[0], mask.shape[1] // values.shape[1]
    cell = mask[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
    return bool(cell.any()) and float(values.max()) > 0


def looking(showing: NDArray[np.bool_], own: NDArray[np.bool_]) -> dict[str, Any]:
    """How many pictures one looks at, in random order, until one shows the mark.

    With h such pictures among n the first is expected at place (n + 1) / (h + 1).

    Args:
        showing: whether the map of each image shows the mark (n,).
        own: whether it is taken for the class (n,).

    Returns:
        `of_all`: place among the pictures of all images; `of_class`: among those of images taken for the class; None
        where no picture shows it; `showing`, `images`: h and n of all.
    """

    def place(n: int, h: int) -> float | None:
        return (n + 1) / (h + 1) if h else None

    return {
        "images": len(showing),
        "showing": int(showing.sum()),
        "of_all": place(len(showing), int(showing.sum())),
        "of_class": place(int(own.sum()), int((showing & own).sum())),
    }


def clustered(
    vectors: NDArray[np.float32], target: NDArray[np.int64], run: Run, marked: NDArray[np.bool_], carry: float
) -> dict[str, Any]:
    """k-means among the images taken for the class, the tightest cluster first (mean distance to its middle).

    Returns:
        `rank`: of the first cluster of which the share `carry` has the mark, None if none does; `clusters`: how many.
    """
    from sklearn.cluster import KMeans

    members = np.flatnonzero(target == run.label)
    own = vectors[members].astype(np.float64)
    count = max(1, min(CLUSTERS, len(own) // SMALLEST))
    fitted = KMeans(count, n_init=4, random_state=run.seed).fit(own)
    distance = np.linalg.norm(own - fitted.cluster_centers_[fitted.labels_], axis=1)
    found: list[tuple[float, bool]] = []
    for k in range(count):
        chosen = fitted.labels_ == k
        if chosen.sum() >= SMALLEST:
            found.append((float(distance[chosen].mean()), bool(marked[members[chosen]].mean() >= carry)))
    order = [shown for _, shown in sorted(found)]
    return {"rank": order.index(True) + 1 if True in order else None, "clusters": len(order)}
