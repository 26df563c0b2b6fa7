"""The layers of a vision transformer, in timm's words.

Names and behaviour follow ``timm.layers`` and ``timm.models.vision_transformer``, so that whoever
knows those knows these. B is the batch, N the number of tokens, D the width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainer.errors import UsageError

#: Axes of an input sequence, in order.
AXES = ("trial", "freq", "time")
LAYER_NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth [1]_: leave out the residual branch of some samples while training.

    A branch is kept with probability ``1 - drop_prob``, sample by sample, and then divided by that
    probability, so that its expectation is what evaluation computes.

    Parameters
    ----------
    drop_prob : float
        In [0, 1).

    References
    ----------
    .. [1] Huang et al., Deep networks with stochastic depth, ECCV 2016.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"drop_prob must be at least 0 and below 1, not {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ...) with some samples zero and the others scaled; itself in evaluation."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * kept.div_(keep_prob)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"drop_prob={self.drop_prob:.3g}"


class LayerScale(nn.Module):
    """Multiply each channel of a residual branch by a learned factor [1]_.

    Parameters
    ----------
    dim : int
        Channels.
    init_values : float
        Where the factors start; small, so that a deep model starts near the identity.

    References
    ----------
    .. [1] Touvron et al., Going deeper with image transformers, ICCV 2021.
    """

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim), scaled."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Parameters
    ----------
    dim, hidden_dim : int
    drop : float
        Dropout after the GELU and after the second layer.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., dim)."""
        x = self.drop1(self.act(self.fc1(x)))
        x = self.drop2(self.fc2(x))
        return x


class Attention(nn.Module):
    """Multi-head self-attention.

    Parameters
    ----------
    dim : int
        Width; a multiple of `num_heads`.
    num_heads : int
    attn_drop : float
        Dropout on the attention weights.
    proj_drop : float
        Dropout on the output.
    """

    def __init__(
        self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise UsageError(
                f"embed_dim {dim} is not a multiple of num_heads {num_heads}: set num_heads too"
            )
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D), by PyTorch's fused attention."""
        q, k, v = self._heads(x)
        # The function knows nothing of the module's mode: in evaluation its dropout must be 0.
        dropout_p = self.attn_drop.p if self.training else 0.0
        return self._merge(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p))

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the weights (B, num_heads, N, N) before dropout.

        Rows are queries and add up to 1. Slower, and of memory quadratic in N: for maps only.
        """
        q, k, v = self._heads(x)
        attn = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self._merge(self.attn_drop(attn) @ v), attn

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n_batch, n_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n_batch, n_tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _merge(self, heads: Tensor) -> Tensor:
        x: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        x = self.proj_drop(x)
        return x


class Block(nn.Module):
    """A pre-norm transformer block.

    Parameters
    ----------
    dim, num_heads : int
    mlp_ratio : float
        Hidden width of the `Mlp` over `dim`.
    proj_drop, attn_drop, drop_path : float
    init_values : float, optional
        Start of `LayerScale`, which is left out where this is None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        init_values: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, attn_drop, proj_drop)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_drop)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the weights (B, num_heads, N, N)."""
        attended, attn = self.attn.forward_with_attention(self.norm1(x))
        x = x + self.drop_path1(self.ls1(attended))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x, attn


class PatchEmbed3D(nn.Module):
    """Cut sequences into tubelets of trial x frequency x time and embed each linearly.

    An axis that is not a multiple of its patch is padded **at its end with zeros**, the train mean
    of normalised spectrograms; nothing is cropped. Every patch holds at least one real value.

    It is the convolution ``nn.Conv3d(1, embed_dim, patch_size, stride=patch_size)`` written as one
    matrix product (``conv.weight.flatten(1) == proj.weight``), which is fast on every device.

    Parameters
    ----------
    input_size : tuple of int
        (n_trials, n_freqs, n_times).
    patch_size : tuple of int
        Trials, frequencies and frames of a patch.
    embed_dim : int

    Attributes
    ----------
    grid_size : tuple of int
        Patches along (trial, freq, time).
    num_patches : int
        Tokens a sequence gives, in row-major order of the grid.

    Raises
    ------
    UsageError
        If a patch is larger than the input along any axis.
    """

    def __init__(
        self, input_size: tuple[int, int, int], patch_size: tuple[int, int, int], embed_dim: int
    ) -> None:
        super().__init__()
        for axis, size, patch in zip(AXES, input_size, patch_size, strict=True):
            if not 1 <= patch <= size:
                raise UsageError(
                    f"patch_{axis} is {patch}, but the input has {size} along that axis "
                    f"(n_trials x n_freqs x n_times is {' x '.join(map(str, input_size))}): "
                    f"set patch_{axis} between 1 and {size}"
                )
        self.input_size = input_size
        self.patch_size = patch_size
        t, f, w = (-(-size // patch) for size, patch in zip(input_size, patch_size, strict=True))
        self.grid_size = (t, f, w)
        self.num_patches = math.prod(self.grid_size)
        self.proj = nn.Linear(math.prod(patch_size), embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, num_patches, embed_dim) of sequences (B, n_trials, n_freqs, n_times).

        Raises
        ------
        ValueError
            If the sequences have another shape than the model was made for.
        """
        if x.shape[1:] != self.input_size:
            raise ValueError(
                f"expected (batch, n_trials, n_freqs, n_times) = (batch, "
                f"{', '.join(map(str, self.input_size))}), got {tuple(x.shape)}"
            )
        (t, f, w), (pt, pf, pw) = self.grid_size, self.patch_size
        n_trials, n_freqs, n_times = self.input_size
        padding = (0, w * pw - n_times, 0, f * pf - n_freqs, 0, t * pt - n_trials)
        if any(padding):
            x = F.pad(x, padding)
        x = x.reshape(-1, t, pt, f, pf, w, pw).permute(0, 1, 3, 5, 2, 4, 6)
        patches = x.reshape(-1, self.num_patches, pt * pf * pw)
        # Shards hold float16, which no parameter is: converted once the bytes are moved.
        tokens: Tensor = self.proj(patches.to(self.proj.weight.dtype))
        return tokens
