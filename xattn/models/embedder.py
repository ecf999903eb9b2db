"""A network with a head as one without classes: images to the features that they are compared by."""

from __future__ import annotations

import dataclasses
from typing import cast

from torch import Tensor, nn

from xattn.errors import NotApplicableError
from xattn.models.heads import Classifier, Head


class Embedder(nn.Module):
    """The features of a network with a head (N, P * C): what is compared to tell individuals apart.

    The modules are those of the network, not copies; their names are the same.

    >>> import torch
    >>> from xattn.models import create_model
    >>> embedder = Embedder(create_model("tiny-cnn", head="brnpa", num_classes=4))
    >>> embedder(torch.zeros(2, 3, 64, 64)).shape, embedder.spec.classifier
    (torch.Size([2, 768]), None)

    Args:
        model: backbone and head.

    Attributes:
        spec: the facts about the network, less its classes and its classifier.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.head = model.head
        self.spec = dataclasses.replace(model.spec, classifier=None, classes=(), output=())

    @classmethod
    def of(cls, model: nn.Module) -> Embedder:
        """The embedder of a network.

        Raises:
            NotApplicableError: if it has no head of xattn.
        """
        if not isinstance(model, Classifier) or not isinstance(model.head, Head):
            raise NotApplicableError(
                f"{type(model).__name__} has no head whose features could be compared; give it one, as in "
                "--head linear, or name the best.safetensors of a training run."
            )
        return cls(model)

    @property
    def parts(self) -> int:
        """Number P of part vectors that the features are made of."""
        return cast("Head", self.head).parts

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, P * C) of images (N, 3, H, W), parts first."""
        head = cast("Head", self.head)
        return head.compared(head.embed(self.backbone(x)))
