"""Class-weighted cross-entropy as a numerator and a sum of weights.

The two are summed over accumulated batches and over processes before they are divided. A mean of
means is another loss: batches hold the classes in different shares, and padded rows hold none.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def class_weights(labels: NDArray[np.int64], n_classes: int, scheme: str) -> NDArray[np.float64]:
    """Return the weight of each class.

    Parameters
    ----------
    labels : int64 array of shape (n,)
        Of the training sequences; `trainer.data.loader` sees to it that every class is among them.
    n_classes : int
    scheme : {"balanced", "none"}
        ``n / (n_classes * n_class)``, as scikit-learn's "balanced", or 1.
    """
    if scheme == "none":
        return np.ones(n_classes)
    return len(labels) / (n_classes * np.bincount(labels, minlength=n_classes))


def cross_entropy_sums(
    logits: Tensor, target: Tensor, mask: Tensor, class_weight: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the numerator and the sum of weights of a weighted cross-entropy.

    With targets of one class their quotient is ``torch.nn.functional.cross_entropy`` with `weight`
    and `label_smoothing`. A mixed target weighs what its classes do, each by its share.

    Parameters
    ----------
    logits : tensor of shape (B, C)
    target : tensor of shape (B, C)
        Probabilities of the classes, before smoothing.
    mask : bool tensor of shape (B,)
        False where a row is padding, which counts for nothing.
    class_weight : tensor of shape (C,)
    label_smoothing : float

    Returns
    -------
    numerator, weight_sum : scalar tensors, float32
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    smoothed = torch.lerp(target, torch.full_like(target, 1 / target.shape[1]), label_smoothing)
    present = mask.to(log_p.dtype)
    losses = -(log_p * smoothed) @ class_weight
    return losses @ present, (target @ class_weight) @ present
