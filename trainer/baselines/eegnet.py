"""A small convolutional net on the spectrogram, after EEGNet.

EEGNet (Lawhern et al. 2018) learns temporal filters, then for each of them weights of the
electrodes, then separable convolutions. Here frequencies stand for electrodes, and their weights
come first: two linear maps along different axes may change places, and this order needs a fifth of
the operations. Every trial goes through the same net, and a sequence is the mean of its trials.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from trainer.data.sequences import epoch_order
from trainer.evaluation.metrics import compute_metrics
from trainer.evaluation.predictions import probabilities

FILTERS, SEPARABLE_FILTERS = 16, 16
TEMPORAL_KERNEL, SEPARABLE_KERNEL = 15, 7
DROP_RATE = 0.25
EPOCHS, BATCH_SIZE = 15, 64
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2

Index = NDArray[np.int64]


class EEGNet(nn.Module):
    """Convolutional net on sequences of pooled spectrograms.

    Parameters
    ----------
    n_freqs, n_times, num_classes : int
    """

    def __init__(self, n_freqs: int, n_times: int, num_classes: int) -> None:
        super().__init__()
        n_short = math.ceil(n_times / 4)
        n_final = min(4, n_short)
        self.filters = nn.Linear(n_freqs, FILTERS, bias=False)
        self.features = nn.Sequential(
            _temporal_conv(FILTERS, TEMPORAL_KERNEL),
            nn.BatchNorm1d(FILTERS),
            nn.ELU(),
            nn.AdaptiveAvgPool1d(n_short),
            nn.Dropout(DROP_RATE),
            _temporal_conv(FILTERS, SEPARABLE_KERNEL),
            nn.Conv1d(FILTERS, SEPARABLE_FILTERS, 1, bias=False),
            nn.BatchNorm1d(SEPARABLE_FILTERS),
            nn.ELU(),
            nn.AdaptiveAvgPool1d(n_final),
            nn.Flatten(),
        )
        self.drop = nn.Dropout(DROP_RATE)
        self.head = nn.Linear(SEPARABLE_FILTERS * n_final, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of sequences (B, n_trials, n_freqs, n_times)."""
        # A matrix product: PyTorch's convolution over all frequencies is many times slower.
        filtered = self.filters(x.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
        features = self.features(filtered).unflatten(0, x.shape[:2])
        logits: Tensor = self.head(self.drop(features.mean(dim=1)))
        return logits


class EEGNetModel:
    """An `EEGNet` with what its input is scaled by.

    Parameters
    ----------
    net : EEGNet
    mean, std : float32 arrays of shape (n_freqs, 1)
    """

    def __init__(self, net: EEGNet, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        self._net, self._mean, self._std = net, mean, std

    def batch(self, pooled: NDArray[np.float16], rows: Index) -> Tensor:
        """Return sequences as the net takes them."""
        return torch.from_numpy((pooled[rows].astype(np.float32) - self._mean) / self._std)

    @torch.no_grad()
    def logits(self, pooled: NDArray[np.float16], rows: Index) -> NDArray[np.float64]:
        """Return logits, float64 (n_sequences, n_classes).

        Parameters
        ----------
        pooled : float16 array of shape (n_trials_of_split, n_freqs, n_times)
        rows : int64 array of shape (n_sequences, n_trials)
        """
        self._net.eval()
        starts = range(0, len(rows), BATCH_SIZE)
        parts = [self._net(self.batch(pooled, rows[start:][:BATCH_SIZE])) for start in starts]
        return torch.cat(parts).double().numpy()


def fit_eegnet(
    train: tuple[NDArray[np.float16], Index, NDArray[np.int64]],
    val: tuple[NDArray[np.float16], Index, NDArray[np.int64]] | None,
    seed: int,
) -> tuple[EEGNetModel, int]:
    """Train the net on the CPU with class-weighted cross-entropy.

    Parameters
    ----------
    train : pooled trials, rows of the sequences, labels of the sequences
        Of shapes (n_trials_of_split, n_freqs, n_times), (n_sequences, n_trials) and
        (n_sequences,).
    val : the same, optional
        Holds every class. The epoch with the best AUC of its sequences is kept (of equal ones the
        best log loss); without it the last.
    seed : int
        Of weights, order and dropout.

    Returns
    -------
    model : EEGNetModel
    epoch : int
        The epoch that was kept, from 1.
    """
    pooled, rows, label = train
    used = np.unique(rows)
    mean, std = _moments(pooled, used)
    counts = np.bincount(label)
    weight = torch.from_numpy(len(label) / (len(counts) * counts)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EEGNet(pooled.shape[1], pooled.shape[2], len(counts))
        model = EEGNetModel(net, mean, std)
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best: tuple[tuple[float, ...], int, dict[str, Tensor]] | None = None
        for epoch in range(EPOCHS):
            net.train()
            order = epoch_order(len(rows), seed, epoch)
            # Parts of nearly one size: batch normalisation cannot do with a last one of one.
            for chosen in np.array_split(order, math.ceil(len(order) / BATCH_SIZE)):
                logits = net(model.batch(pooled, rows[chosen]))
                loss = F.cross_entropy(logits, torch.from_numpy(label[chosen]), weight)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            score = (float(epoch),) if val is None else _score(model, *val)
            if best is None or score > best[0]:
                state = {name: value.clone() for name, value in net.state_dict().items()}
                best = score, epoch + 1, state
    assert best is not None
    net.load_state_dict(best[2])
    return model, best[1]


def _score(
    model: EEGNetModel, pooled: NDArray[np.float16], rows: Index, label: NDArray[np.int64]
) -> tuple[float, float]:
    values = compute_metrics(probabilities(model.logits(pooled, rows)), label)
    return values["auc"], -values["log_loss"]


def _moments(
    pooled: NDArray[np.float16], used: Index
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation per frequency, of shape (n_freqs, 1)."""
    total, squares = np.zeros((2, pooled.shape[1]))
    # In parts: all of it in float64 would be four times what is there.
    for part in np.array_split(used, math.ceil(len(used) / 1024)):
        values = pooled[part].astype(np.float64)
        total += values.sum(axis=(0, 2))
        squares += np.square(values).sum(axis=(0, 2))
    n = len(used) * pooled.shape[2]
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - np.square(mean), 0.0))
    std[std == 0] = 1.0
    return mean[:, None].astype(np.float32), std[:, None].astype(np.float32)


def _temporal_conv(channels: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
