"""Losses: modules whose `forward(logits, labels)` returns the sum of the losses of a batch.

A loss of one's own is such a module, and a YAML file in conf/loss/. In evaluation mode it returns
what validation and test report: without label smoothing and class weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossEntropy(nn.Module):
    """Cross-entropy, in nats.

    class_weights: a factor for the loss of each class's images. label_smoothing: Szegedy et al.,
    2016.
    """

    weight: Tensor | None

    def __init__(
        self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("weight", to_tensor(class_weights))
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the images, a scalar. logits: [n, classes]; labels: int64 [n]."""
        weight, smoothing = (self.weight, self.label_smoothing) if self.training else (None, 0.0)
        return F.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=smoothing)


class Focal(nn.Module):
    """Focal loss (Lin et al., 2017): cross-entropy times (1 - p)^gamma, p that of the true class.

    class_weights: a factor for the loss of each class's images.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", to_tensor(class_weights))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the images, a scalar. logits: [n, classes]; labels: int64 [n]."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        wrong = -torch.expm1(-losses)  # 1 - p
        focal = wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** self.gamma * losses
        if self.training and self.weight is not None:
            focal = focal * self.weight[labels]
        return focal.sum()


def to_tensor(weights: Sequence[float] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights)


def scale_weights(weights: Sequence[float] | str, counts: Tensor) -> list[float]:
    """A weight for each class, scaled so that their mean over the training images is 1.

    weights: of the classes, or "balanced": all classes count the same, however many images each
    has. counts: training images of each class. Raises ValueError for another number of weights.
    """
    images = counts.double()
    if isinstance(weights, str):
        chosen = torch.where(counts > 0, 1 / images, 0.0)
    else:
        if len(weights) != len(counts):
            raise ValueError(f"class_weights has {len(weights)} weights for {len(counts)} classes")
        chosen = torch.tensor(weights, dtype=torch.float64)
    return (chosen * images.sum() / (chosen * images).sum()).tolist()
