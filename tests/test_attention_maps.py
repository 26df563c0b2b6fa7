"""Attention maps against the formulas of the papers, written in NumPy."""

import numpy as np
import pytest
import torch

from trainer.attention.maps import (
    attention_rollout,
    class_attention,
    fold,
    token_centres,
)
from trainer.model import Temporal3DViT

GRID = (2, 3, 4)
N_PATCHES = 24


def random_attentions(n_tokens, depth=3, batch=2, heads=5):
    rng = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(depth, batch, heads, n_tokens, n_tokens, generator=rng).double()
    return list(scores.softmax(dim=-1))


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_rollout_is_the_product_of_the_blocks(num_prefix_tokens):
    n_tokens = N_PATCHES + num_prefix_tokens
    attentions = random_attentions(n_tokens)
    maps = attention_rollout(attentions, num_prefix_tokens)
    for sample in range(2):
        product = np.eye(n_tokens)
        for attention in attentions:
            block = attention[sample].numpy().mean(axis=0) + np.eye(n_tokens)
            product = (block / block.sum(axis=1, keepdims=True)) @ product
        row = product[0, 1:] if num_prefix_tokens else product.mean(axis=0)
        np.testing.assert_allclose(maps[sample].numpy(), row / row.sum(), rtol=1e-12)


def test_rollout_follows_a_value_through_the_blocks():
    """The class token looks at the first patch, which took all it has from the second."""
    last, first = torch.eye(4), torch.eye(4)
    last[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    first[1] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    maps = attention_rollout([first[None, None], last[None, None]])
    # Class token: half by attention to patch 1; of that, half is patch 2's.
    np.testing.assert_allclose(maps[0].numpy(), [0.5, 0.5, 0.0])
    assert class_attention(last[None, None])[0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_even_attention_gives_an_even_map(num_prefix_tokens):
    n_tokens = N_PATCHES + num_prefix_tokens
    attentions = [torch.full((2, 3, n_tokens, n_tokens), 1.0 / n_tokens)] * 4
    even = torch.full((2, N_PATCHES), 1.0 / N_PATCHES)
    torch.testing.assert_close(attention_rollout(attentions, num_prefix_tokens), even)
    torch.testing.assert_close(class_attention(attentions[-1], num_prefix_tokens), even)


def test_class_attention_is_the_first_row():
    attention = random_attentions(N_PATCHES + 1)[-1]
    row = attention.numpy().mean(axis=1)[:, 0, 1:]
    expected = row / row.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(class_attention(attention).numpy(), expected, rtol=1e-12)


def test_attention_received_where_the_head_takes_the_mean():
    attention = random_attentions(N_PATCHES)[-1]
    expected = attention.numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(class_attention(attention, 0).numpy(), expected, rtol=1e-12)


def test_folded_tokens_are_a_grid():
    tokens = torch.arange(2.0 * N_PATCHES).reshape(2, N_PATCHES)
    maps = fold(tokens, GRID)
    expected = tokens.numpy().reshape(2, *GRID)
    np.testing.assert_array_equal(maps.numpy(), expected)


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_the_map_points_at_the_patch_that_is_looked_at(global_pool):
    """A model whose queries all match the key of one patch, by its content."""
    torch.manual_seed(0)
    model = Temporal3DViT(
        *(2, 6, 8),
        2,
        patch_size=(1, 2, 2),
        embed_dim=16,
        depth=1,
        num_heads=1,
        init_values=None,
        global_pool=global_pool,
    ).eval()
    x = torch.zeros(1, 2, 6, 8)
    # Trial 1, frequencies 2 and 3, frames 6 and 7.
    x[0, 1, 2:4, 6:8] = 30.0
    with torch.no_grad():
        block = model.blocks[0]
        token = block.norm1(model.patch_embed(x)[0])[N_PATCHES // 2 + 1 * 4 + 3]
        qkv = block.attn.qkv
        qkv.weight[:32] = 0.0
        qkv.weight[16:32, :] = torch.outer(torch.ones(16), token)
        qkv.bias[:16] = 1.0
        _, attentions = model.forward_with_attention(x)
    for tokens in (
        attention_rollout(attentions, model.num_prefix_tokens),
        class_attention(attentions[-1], model.num_prefix_tokens),
    ):
        maps = fold(tokens, model.grid_size)
        assert maps.shape == (1, 2, 3, 4)
        assert maps.sum().item() == pytest.approx(1.0)
        assert (maps[0] == maps.max()).nonzero().tolist() == [[1, 1, 3]]


def test_token_centres_count_no_padding():
    np.testing.assert_allclose(token_centres([0.0, 1.0, 2.0, 3.0], 2), [0.5, 2.5])
    np.testing.assert_allclose(token_centres([0.0, 1.0, 2.0, 3.0, 10.0], 2), [0.5, 2.5, 10.0])
    np.testing.assert_allclose(token_centres(np.linspace(-1, 1, 9), 4), [-0.625, 0.375, 1.0])
