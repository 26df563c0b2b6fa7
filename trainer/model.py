"""Temporal 3D ViT: a vision transformer over sequences of trial spectrograms.

A sequence is n_trials spectrograms of one session, stacked. It is cut into tubelets of trial x
frequency x time, and every token attends to every other, so that what happens between trials is
seen as well as what happens inside one. With one trial and ``patch_trial`` 1 this is the plain
ViT on a picture, by the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.errors import UsageError
from trainer.layers import LAYER_NORM_EPS, Block, PatchEmbed3D

#: Standard deviation of initial weights and tables, as in timm.
INIT_STD = 0.02


class Size(NamedTuple):
    """Width, number of blocks and number of heads."""

    embed_dim: int
    depth: int
    num_heads: int


#: Heads are 64 wide throughout. ``small`` is the lab's model, ``base`` is ViT-B.
SIZES = {"tiny": Size(192, 6, 3), "small": Size(384, 8, 6), "base": Size(768, 12, 12)}


class Temporal3DViT(nn.Module):
    """Vision transformer on (batch, n_trials, n_freqs, n_times).

    Under autocast the matrix products of the blocks are in bfloat16. The sum that runs through them
    stays in the parameters' float32: a branch scaled by 1e-4 would vanish in bfloat16, which has
    nothing between 1 and 1.0078. So does the head: rounded logits would tie.

    Parameters
    ----------
    n_trials, n_freqs, n_times : int
        Shape of a sequence.
    num_classes : int
    patch_size : tuple of int
        Trials, frequencies and frames of a patch; see `PatchEmbed3D` for how sizes are padded that
        are no multiple of it.
    embed_dim, depth, num_heads : int
        Width, number of blocks and heads of each.
    mlp_ratio : float
        Hidden width of a block's MLP over `embed_dim`.
    drop_rate : float
        Dropout on the embedded tokens, on the output of attention and MLP, and before the head.
    attn_drop_rate : float
        Dropout on attention weights.
    drop_path_rate : float
        Stochastic depth of the last block; it rises linearly from 0 at the first.
    init_values : float, optional
        Start of `LayerScale`, which is left out where this is None.
    global_pool : {"token", "avg"}
        What the head sees: a class token, which has no position, or the mean over all tokens, in
        which case there is no class token.

    Attributes
    ----------
    grid_size : tuple of int
        Tokens along (trial, freq, time).
    num_prefix_tokens : int
        Tokens before those of the grid: 1 with a class token, else 0.
    pos_embed_trial, pos_embed_freq, pos_embed_time : Parameter of shape (tokens, embed_dim)
        Learned position embeddings, one table an axis. The embedding of a token is the sum of its
        three rows.

    Raises
    ------
    UsageError
        If the settings make no model.
    """

    def __init__(
        self,
        n_trials: int,
        n_freqs: int,
        n_times: int,
        num_classes: int,
        *,
        patch_size: tuple[int, int, int] = (2, 8, 8),
        embed_dim: int = SIZES["small"].embed_dim,
        depth: int = SIZES["small"].depth,
        num_heads: int = SIZES["small"].num_heads,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        init_values: float | None = 1e-4,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        if global_pool not in ("token", "avg"):
            raise UsageError(f"global_pool must be 'token' or 'avg', not {global_pool!r}")

        self.num_classes = num_classes
        self.global_pool = global_pool
        self.patch_embed = PatchEmbed3D((n_trials, n_freqs, n_times), patch_size, embed_dim)
        self.grid_size = self.patch_embed.grid_size
        t, f, w = self.grid_size
        self.num_prefix_tokens = 1 if global_pool == "token" else 0
        if self.num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed_trial = nn.Parameter(torch.empty(t, embed_dim))
        self.pos_embed_freq = nn.Parameter(torch.empty(f, embed_dim))
        self.pos_embed_time = nn.Parameter(torch.empty(w, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * index / max(depth - 1, 1),
                init_values=init_values,
            )
            for index in range(depth)
        )
        # To a type checker a ModuleList holds modules of no known kind.
        self.blocks = cast("Sequence[Block]", blocks)
        # As in timm: normalised before the class token is taken, but after the mean is.
        norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.norm = norm if global_pool == "token" else nn.Identity()
        self.fc_norm = nn.Identity() if global_pool == "token" else norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        # A set has another order in every process.
        for name in sorted(self.no_weight_decay()):
            nn.init.trunc_normal_(self.get_parameter(name), std=INIT_STD)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that are tables rather than matrices: weight decay is not theirs.

        Biases, norms and `LayerScale`, which have one axis, are not named here.
        """
        tables = {"pos_embed_trial", "pos_embed_freq", "pos_embed_time"}
        return tables | {"cls_token"} if self.num_prefix_tokens else tables

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of sequences (B, n_trials, n_freqs, n_times)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return tokens (B, num_prefix_tokens + num_patches, embed_dim)."""
        x = self._embed(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x

    def forward_head(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of what `forward_features` returned."""
        x = x[:, 0] if self.global_pool == "token" else x.mean(dim=1)
        with torch.autocast(x.device.type, enabled=False):
            x = self.head(self.head_drop(self.fc_norm(x)))
        return x

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits, and each block's attention weights (B, num_heads, N, N), first to last.

        The memory is that of all weights: 730 MB a sequence for the lab's 1,953 tokens.
        """
        x = self._embed(x)
        attentions = []
        for block in self.blocks:
            x, attn = block.forward_with_attention(x)
            attentions.append(attn)
        return self.forward_head(self.norm(x)), attentions

    def _embed(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x)
        pos_embed = (
            self.pos_embed_trial[:, None, None]
            + self.pos_embed_freq[None, :, None]
            + self.pos_embed_time[None, None, :]
        ).flatten(0, 2)
        # Tokens that autocast left in bfloat16 become float32 here, and stay so.
        x = tokens + pos_embed
        if self.num_prefix_tokens:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.pos_drop(x)
        return x

    def num_params(self) -> int:
        """Return the number of learned values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_sequence(self) -> int:
        """Return the floating-point operations of one training step on one sequence.

        Those of the matrix products, two for a multiply-add. The backward pass takes twice the
        forward pass (by weights and by inputs), except in the patch embedding, whose input needs
        no gradient. Attention is counted in full. Norms, activations, optimizer and what fused
        attention computes again are not, as in the model FLOPs of Chowdhery et al. (PaLM, 2022,
        appendix B); divide by time and peak to get MFU.
        """
        num_patches = self.patch_embed.num_patches
        n, dim = num_patches + self.num_prefix_tokens, self.head.in_features
        patches = num_patches * self.patch_embed.proj.in_features * dim
        blocks = 0
        for block in self.blocks:
            linear = 4 * dim**2 + 2 * dim * block.mlp.fc1.out_features
            blocks += n * linear + 2 * n**2 * dim
        head = dim * self.num_classes
        return 2 * (2 * patches + 3 * (blocks + head))


def create_model(
    config: ModelConfig, n_trials: int, n_freqs: int, n_times: int, num_classes: int
) -> Temporal3DViT:
    """Return the model that a config asks for, with fresh weights from PyTorch's generator.

    Parameters
    ----------
    config : ModelConfig
        Its `embed_dim`, `depth` and `num_heads` stand in for those of `size` where not None.
    n_trials, n_freqs, n_times : int
        Shape of a sequence.
    num_classes : int

    Raises
    ------
    UsageError
        If the settings make no model.
    """
    if config.size not in SIZES:
        raise UsageError(f"model size {config.size!r} is unknown: choose from {', '.join(SIZES)}")
    size = SIZES[config.size]
    return Temporal3DViT(
        n_trials,
        n_freqs,
        n_times,
        num_classes,
        patch_size=(config.patch_trial, config.patch_freq, config.patch_time),
        embed_dim=size.embed_dim if config.embed_dim is None else config.embed_dim,
        depth=size.depth if config.depth is None else config.depth,
        num_heads=size.num_heads if config.num_heads is None else config.num_heads,
        mlp_ratio=config.mlp_ratio,
        drop_rate=config.drop_rate,
        attn_drop_rate=config.attn_drop_rate,
        drop_path_rate=config.drop_path_rate,
        init_values=config.init_values,
        global_pool=config.global_pool,
    )
