"""The loss and its gradient, against PyTorch's own cross-entropy on the whole batch."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from trainer.training.loss import class_weights, cross_entropy_sums


def example(n: int = 16, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 3, generator=generator) * 3
    label = torch.randint(3, (n,), generator=generator)
    weight = torch.tensor([0.4, 1.0, 2.7])
    return logits, label, weight


def one_hot(label):
    return functional.one_hot(label, 3).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
def test_the_quotient_is_pytorchs_weighted_smoothed_cross_entropy(smoothing):
    logits, label, weight = example()

    numerator, total = cross_entropy_sums(
        logits, one_hot(label), torch.ones(16, dtype=torch.bool), weight, smoothing
    )

    expected = functional.cross_entropy(logits, label, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(numerator / total, expected)


def test_padding_counts_for_nothing():
    logits, label, weight = example()
    mask = torch.arange(16) < 11

    sums = cross_entropy_sums(logits, one_hot(label), mask, weight, 0.1)

    kept = cross_entropy_sums(logits[:11], one_hot(label)[:11], mask[:11], weight, 0.1)
    torch.testing.assert_close(torch.stack(sums), torch.stack(kept))


def test_a_mixed_target_is_the_mean_of_its_classes_by_its_shares():
    logits, _, weight = example(1)
    mask = torch.ones(1, dtype=torch.bool)
    shares = torch.tensor([0.2, 0.0, 0.8])

    mixed = torch.stack(cross_entropy_sums(logits, shares[None], mask, weight, 0.0))

    pure = [
        torch.stack(cross_entropy_sums(logits, one_hot(torch.tensor([c])), mask, weight, 0.0))
        for c in range(3)
    ]
    torch.testing.assert_close(mixed, 0.2 * pure[0] + 0.8 * pure[2])


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [50, 7, 23])

    weights = class_weights(labels, 3, "balanced")

    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, expected)
    np.testing.assert_array_equal(class_weights(labels, 3, "none"), np.ones(3))
