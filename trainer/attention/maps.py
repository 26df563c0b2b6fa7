"""Where a model looks: attention as maps over trial, frequency and time.

Everything here is a plain function of attention weights as `Temporal3DViT.forward_with_attention`
returns them: one tensor (B, num_heads, N, N) a block, first block first, rows (queries) adding up
to 1. N is the class token, where there is one (`num_prefix_tokens` 1), and the tokens of the grid.

A map is a distribution: its values are not negative and add up to 1 over the grid, so that
attention spread evenly gives ``1 / num_patches`` everywhere, for any model. Maps show what tokens
were mixed, not what the mix was used for: compare them with those of randomised weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def attention_rollout(attentions: Sequence[Tensor], num_prefix_tokens: int = 1) -> Tensor:
    """Return how much of each grid token flows into what the head sees, by rollout [1]_.

    Each block is taken as ``A = 0.5 * (mean over heads) + 0.5 * identity``, the identity standing
    for the residual connection, and the blocks are multiplied, ``A_L ... A_2 A_1``. The row of
    the class token is returned, or with mean pooling the mean of all rows. Neither values, MLPs
    nor the sizes of the branches (LayerScale) enter.

    Parameters
    ----------
    attentions : sequence of tensors (B, num_heads, N, N)
        Every block's weights, first block first.
    num_prefix_tokens : int
        1 with a class token, 0 with mean pooling.

    Returns
    -------
    tensor (B, num_patches)
        The class token's own share is left out and the rest adds up to 1.

    References
    ----------
    .. [1] Abnar & Zuidema, Quantifying attention flow in transformers, ACL 2020.
    """
    # A single row is asked for, so it is carried from the last block to the first: products of a
    # vector and a matrix, where multiplying the matrices would cost N times as much.
    row = _readout(attentions[-1], num_prefix_tokens)
    for attention in reversed(attentions):
        row = 0.5 * _through(row, attention) + 0.5 * row
    return _grid_share(row, num_prefix_tokens)


def class_attention(attention: Tensor, num_prefix_tokens: int = 1) -> Tensor:
    """Return the attention of the class token to the grid in one block, usually the last.

    Parameters
    ----------
    attention : tensor (B, num_heads, N, N)
    num_prefix_tokens : int
        With 0 (mean pooling) it is what a token receives, averaged over all queries.

    Returns
    -------
    tensor (B, num_patches)
        Mean over heads; the class token's attention to itself is left out and the rest adds up
        to 1.
    """
    row = _through(_readout(attention, num_prefix_tokens), attention)
    return _grid_share(row, num_prefix_tokens)


def _readout(attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """Return the weights (B, N) by which the head takes the last block's tokens."""
    n_batch, _, n_tokens, _ = attention.shape
    if num_prefix_tokens:
        row = attention.new_zeros(n_batch, n_tokens)
        row[:, 0] = 1.0
        return row
    return attention.new_full((n_batch, n_tokens), 1.0 / n_tokens)


def _through(row: Tensor, attention: Tensor) -> Tensor:
    """Return (B, N): `row` times the attention matrix, averaged over heads."""
    return (row[:, None, None, :] @ attention).mean(dim=1).squeeze(1)


def _grid_share(row: Tensor, num_prefix_tokens: int) -> Tensor:
    grid = row[:, num_prefix_tokens:]
    return grid / grid.sum(dim=1, keepdim=True)


def fold(tokens: Tensor, grid_size: tuple[int, int, int]) -> Tensor:
    """Put values of grid tokens (B, num_patches) back to (B, trial, freq, time)."""
    return tokens.reshape(len(tokens), *grid_size)


def token_centres(values: ArrayLike, patch: int) -> NDArray[np.float64]:
    """Return where the tokens of an axis lie: the mean of the values that each patch covers.

    Parameters
    ----------
    values : array of shape (n,)
        Hz, seconds or trial numbers.
    patch : int
        Values a patch covers; the last covers fewer where n is no multiple of it.

    Returns
    -------
    float64 array of shape (ceil(n / patch),)
    """
    axis = np.asarray(values, dtype=np.float64)
    starts = np.arange(0, len(axis), patch)
    return np.add.reduceat(axis, starts) / np.diff(np.append(starts, len(axis)))
