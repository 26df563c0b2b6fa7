"""The model against its mathematics, written out in plain tensors and in NumPy."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import ModelConfig
from trainer.errors import UsageError
from trainer.layers import Attention, Block, DropPath, LayerScale, PatchEmbed3D
from trainer.model import SIZES, Temporal3DViT, create_model

ROOT = Path(__file__).parents[1]
SHAPE = (4, 6, 10)
NUM_CLASSES = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(shape=SHAPE, **options):
    settings: dict[str, Any] = {"patch_size": (2, 3, 5), "embed_dim": 24, "depth": 3}
    settings |= {"num_heads": 4, "init_values": 0.5} | options
    n_trials, n_freqs, n_times = shape
    return Temporal3DViT(n_trials, n_freqs, n_times, NUM_CLASSES, **settings)


def sequences(n=5, shape=SHAPE, seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def randomise(module):
    """Give every parameter a value, so that no term of a formula is multiplied by 0 or 1."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


# --- A block --------------------------------------------------------------------------------------


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    return scaled * norm["weight"] + norm["bias"]


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def reference_block(x, weights, num_heads):
    """Return a block's output and attention for one sample (N, D), in float64, head by head."""

    def layer(name):
        prefix = name + "."
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    def linear(x, name):
        return x @ layer(name)["weight"].T + layer(name)["bias"]

    dim = x.shape[1]
    width = dim // num_heads
    q, k, v = np.split(linear(layer_norm(x, layer("norm1")), "attn.qkv"), 3, axis=1)
    heads, attention = [], []
    for head in range(num_heads):
        own = slice(head * width, (head + 1) * width)
        scores = np.exp(q[:, own] @ k[:, own].T / math.sqrt(width))
        attention.append(scores / scores.sum(axis=1, keepdims=True))
        heads.append(attention[-1] @ v[:, own])
    x = x + weights["ls1.gamma"] * linear(np.concatenate(heads, axis=1), "attn.proj")
    hidden = gelu(linear(layer_norm(x, layer("norm2")), "mlp.fc1"))
    return x + weights["ls2.gamma"] * linear(hidden, "mlp.fc2"), np.stack(attention)


def test_a_block_is_its_mathematics():
    block = randomise(Block(24, 4, init_values=1.0)).double().eval()
    weights = {name: value.numpy() for name, value in block.state_dict().items()}
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        output = block(x)
        explicit, attention = block.forward_with_attention(x)
    for sample in range(len(x)):
        expected, expected_attention = reference_block(x[sample].numpy(), weights, 4)
        np.testing.assert_allclose(output[sample].numpy(), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(explicit[sample].numpy(), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(attention[sample].numpy(), expected_attention, atol=1e-12)


def test_attention_refuses_a_width_that_heads_do_not_divide():
    with pytest.raises(UsageError, match="embed_dim 24 is not a multiple of num_heads 5"):
        Attention(24, 5)


def test_drop_path_keeps_the_expectation():
    layer = DropPath(0.3).train()
    x = torch.rand(20_000, 2, 3) + 0.5
    ratio = (layer(x) / x).flatten(1)
    kept = ratio[:, 0] > 0
    # A sample is dropped or kept as a whole, and kept ones are scaled by 1 / 0.7.
    assert torch.equal(ratio[~kept], torch.zeros_like(ratio[~kept]))
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1 / 0.7))
    # Five standard errors of a proportion.
    assert abs(kept.double().mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 20_000)


def test_drop_path_does_nothing_in_evaluation():
    x = torch.randn(50, 3)
    assert torch.equal(DropPath(0.9).eval()(x), x)


@pytest.mark.parametrize("drop_prob", [-0.1, 1.0, float("nan")])
def test_drop_path_refuses_what_is_no_probability(drop_prob):
    with pytest.raises(ValueError, match="drop_prob must be at least 0 and below 1"):
        DropPath(drop_prob)


def test_drop_path_rates_rise_linearly():
    model = make(depth=5, drop_path_rate=0.2)
    rates = [(block.drop_path1.drop_prob, block.drop_path2.drop_prob) for block in model.blocks]
    np.testing.assert_allclose(rates, np.repeat([[0.0], [0.05], [0.1], [0.15], [0.2]], 2, axis=1))
    assert make(depth=1, drop_path_rate=0.2).blocks[0].drop_path1.drop_prob == 0.0


def test_layer_scale_starts_where_it_is_told():
    model = make(init_values=1e-4)
    scales = [module for module in model.modules() if isinstance(module, LayerScale)]
    assert len(scales) == 2 * 3
    assert all(torch.equal(scale.gamma, torch.full((24,), 1e-4)) for scale in scales)
    without = make(init_values=None)
    assert not any(isinstance(module, LayerScale) for module in without.modules())


def test_a_small_layer_scale_starts_near_the_identity():
    x = sequences()
    model = make(init_values=1e-4).eval()
    embedded = torch.cat([model.cls_token.expand(5, -1, -1), model.patch_embed(x)], dim=1)
    pos_embed = model.pos_embed_trial[:, None, None] + model.pos_embed_freq[:, None]
    embedded[:, 1:] += (pos_embed + model.pos_embed_time).reshape(-1, 24)
    torch.testing.assert_close(
        model.forward_features(x), F.layer_norm(embedded, (24,), eps=1e-6), rtol=0, atol=2e-2
    )


# --- Patches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "patch", "grid"),
    [
        ((4, 6, 10), (2, 3, 5), (2, 2, 2)),
        ((5, 7, 11), (2, 3, 5), (3, 3, 3)),
        ((8, 64, 488), (2, 8, 8), (4, 8, 61)),
        ((1, 7, 9), (1, 4, 4), (1, 2, 3)),
    ],
)
def test_patches_are_a_convolution_over_zero_padded_input(shape, patch, grid):
    embed = PatchEmbed3D(shape, patch, 6)
    assert embed.grid_size == grid
    assert embed.num_patches == math.prod(grid)
    x = sequences(2, shape)
    padded = torch.zeros(2, *(n * p for n, p in zip(grid, patch, strict=True)))
    padded[:, : shape[0], : shape[1], : shape[2]] = x
    weight = embed.proj.weight.reshape(6, 1, *patch)
    expected = F.conv3d(padded[:, None], weight, embed.proj.bias, stride=patch)
    torch.testing.assert_close(embed(x), expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


def test_no_value_is_cropped():
    model = make((5, 7, 11)).eval()
    x = sequences(2, (5, 7, 11)).requires_grad_()
    model(x)[:, 0].sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((5, 3, 5), "patch_trial is 5, but the input has 4 .* set patch_trial between 1 and 4"),
        ((2, 7, 5), "patch_freq is 7, but the input has 6 .* set patch_freq between 1 and 6"),
        ((2, 3, 11), "patch_time is 11, but the input has 10 .* set patch_time between 1 and 10"),
        ((0, 3, 5), "patch_trial is 0, but"),
    ],
)
def test_a_patch_larger_than_the_input_is_refused(patch, message):
    with pytest.raises(UsageError, match=message):
        make(patch_size=patch)


@pytest.mark.parametrize("shape", [(5, 6, 10), (4, 10, 6), (24, 10)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, 4, 6, 10\), got \(2, "):
        make()(torch.zeros(2, *shape))


def test_float16_sequences_as_they_lie_in_shards():
    model = make().eval()
    x = sequences().half()
    assert torch.equal(model(x), model(x.float()))


# --- Positions ------------------------------------------------------------------------------------


def test_position_tables_have_one_row_a_token_of_their_axis():
    model = make((8, 6, 20))
    assert model.grid_size == (4, 2, 4)
    parameters = dict(model.named_parameters())
    for axis, n_tokens in zip(("trial", "freq", "time"), model.grid_size, strict=True):
        assert parameters[f"pos_embed_{axis}"].shape == (n_tokens, 24)
        assert f"pos_embed_{axis}" in model.no_weight_decay()


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("axis", ["trial", "freq", "time"])
def test_tokens_moved_with_their_positions_change_nothing(axis, global_pool):
    model = make(patch_size=(1, 1, 1), shape=(4, 3, 5), global_pool=global_pool).eval()
    x = sequences(shape=(4, 3, 5))
    dim = ("trial", "freq", "time").index(axis) + 1
    order = torch.randperm(x.shape[dim]).roll(1)
    permuted = x.index_select(dim, order)
    before = model(x)
    # Positions left in place, the model must see that the order is another.
    assert (model(permuted) - before).abs().max() > 1e-4
    table = model.get_parameter(f"pos_embed_{axis}")
    table.data = table.data[order]
    torch.testing.assert_close(model(permuted), before, rtol=0, atol=1e-5)


def test_one_trial_is_the_2d_vit():
    """The textbook ViT on a picture, put together from PyTorch's own encoder."""
    model = randomise(make((1, 6, 10), patch_size=(1, 3, 5), init_values=None)).eval()
    picture = sequences(shape=(1, 6, 10))
    weight = model.patch_embed.proj.weight.reshape(24, 1, 3, 5)
    tokens = F.conv2d(picture, weight, model.patch_embed.proj.bias, stride=(3, 5))
    tokens = tokens + model.pos_embed_freq.T[:, :, None] + model.pos_embed_time.T[:, None, :]
    tokens = tokens.flatten(2).transpose(1, 2) + model.pos_embed_trial
    tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in model.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            24, 4, 96, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).eval()
        own = block.state_dict()
        names = {"qkv.": "in_proj_", "attn.": "self_attn.", ".proj.": ".out_proj."}
        names |= {"mlp.fc1": "linear1", "mlp.fc2": "linear2"}
        for name in list(own):
            renamed = name
            for old, new in names.items():
                renamed = renamed.replace(old, new)
            own[renamed] = own.pop(name)
        layer.load_state_dict(own)
        tokens = layer(tokens)
    tokens = F.layer_norm(tokens, (24,), model.norm.weight, model.norm.bias, eps=1e-6)
    expected = F.linear(tokens[:, 0], model.head.weight, model.head.bias)
    torch.testing.assert_close(model(picture), expected, rtol=1e-5, atol=1e-4)


# --- The whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_explicit_attention_equals_the_fused(global_pool):
    model = make(global_pool=global_pool, init_values=1.0, drop_rate=0.5, attn_drop_rate=0.5).eval()
    x = sequences()
    logits, attentions = model.forward_with_attention(x)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=1e-5)
    n_tokens = math.prod(model.grid_size) + model.num_prefix_tokens
    assert [attention.shape for attention in attentions] == [(5, 4, n_tokens, n_tokens)] * 3
    for attention in attentions:
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(5, 4, n_tokens))


def test_every_kind_of_dropout_is_off_in_evaluation():
    options = ("drop_rate", "attn_drop_rate", "drop_path_rate")
    x = sequences()
    for option in options:
        model = make(**(dict.fromkeys(options, 0.0) | {option: 0.5}))
        assert not torch.equal(model.train()(x), model(x)), option
        assert torch.equal(model.eval()(x), model(x)), option
    still = make(**dict.fromkeys(options, 0.0)).train()
    assert torch.equal(still(x), still(x))


def test_every_place_of_dropout_is_in_use():
    model = make(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.0, depth=1)
    places = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    block = ("attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2")
    assert set(places) == {"pos_drop", "head_drop", *(f"blocks.0.{name}" for name in block)}
    x = sequences()
    for name in places:
        for other, place in places.items():
            place.p = 0.5 if other == name else 0.0
        assert not torch.equal(model(x), model(x)), name


def test_mean_pooling_has_no_class_token():
    model = make(global_pool="avg").eval()
    assert "cls_token" not in dict(model.named_parameters())
    assert model.no_weight_decay() == {"pos_embed_trial", "pos_embed_freq", "pos_embed_time"}
    x = sequences()
    tokens = model.forward_features(x)
    assert tokens.shape == (5, math.prod(model.grid_size), 24)
    pooled = F.layer_norm(tokens.mean(dim=1), (24,), eps=1e-6)
    torch.testing.assert_close(model(x), F.linear(pooled, model.head.weight, model.head.bias))


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_gradients_reach_every_parameter(global_pool):
    model = make((5, 7, 11), global_pool=global_pool)
    F.cross_entropy(model(sequences(shape=(5, 7, 11))), torch.tensor([0, 1, 2, 0, 1])).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_number_of_parameters_in_closed_form(size, global_pool):
    dim, depth, _ = SIZES[size]
    attention = (dim * 3 * dim + 3 * dim) + (dim * dim + dim)
    mlp = (dim * 4 * dim + 4 * dim) + (4 * dim * dim + dim)
    norm, layer_scale = 2 * dim, dim
    block = attention + mlp + 2 * norm + 2 * layer_scale
    patches = 2 * 8 * 8 * dim + dim
    positions = (4 + 8 + 61) * dim
    head = dim * 2 + 2
    class_token = dim if global_pool == "token" else 0
    with torch.device("meta"):
        model = create_model(ModelConfig(size=size, global_pool=global_pool), 8, 64, 488, 2)
    expected = patches + positions + class_token + depth * block + norm + head
    assert model.num_params() == expected


@pytest.mark.parametrize("shape", [SHAPE, (5, 7, 11)])
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_flops_are_those_that_pytorch_counts(shape, global_pool):
    model = make(shape, global_pool=global_pool, mlp_ratio=3.0, depth=2)
    x = sequences(2, shape)
    with FlopCounterMode(display=False) as counter:
        model.forward_with_attention(x)[0].sum().backward()
    assert 2 * model.flops_per_sequence() == counter.get_total_flops()


def test_the_labs_model():
    with torch.device("meta"):
        model = create_model(ModelConfig(), 8, 64, 488, 2)
        features = model.forward_features(torch.empty(1, 8, 64, 488))
    assert features.shape == (1, 1953, 384)
    assert len(model.blocks) == 8
    assert model.blocks[0].attn.num_heads == 6


def test_a_config_replaces_single_fields_of_a_size():
    config = ModelConfig(
        size="tiny",
        patch_trial=1,
        patch_freq=3,
        patch_time=5,
        embed_dim=20,
        depth=2,
        num_heads=5,
        mlp_ratio=2.0,
        drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
        init_values=None,
        global_pool="avg",
    )
    model = create_model(config, *SHAPE, NUM_CLASSES)
    block = model.blocks[1]
    assert (model.grid_size, len(model.blocks), model.head.in_features) == ((4, 2, 2), 2, 20)
    assert (block.attn.num_heads, block.mlp.fc1.out_features) == (5, 40)
    assert (block.attn.attn_drop.p, block.attn.proj_drop.p, block.mlp.drop2.p) == (0.2, 0.1, 0.1)
    assert (model.pos_drop.p, model.head_drop.p, block.drop_path2.drop_prob) == (0.1, 0.1, 0.3)
    assert isinstance(block.ls1, torch.nn.Identity)
    assert not hasattr(model, "cls_token")


def test_unknown_size_and_pooling_are_refused():
    with pytest.raises(UsageError, match="'huge' is unknown: choose from tiny, small, base"):
        create_model(ModelConfig(size="huge"), *SHAPE, NUM_CLASSES)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="global_pool must be 'token' or 'avg', not 'mean'"):
        make(global_pool="mean")


def test_initial_weights_are_small():
    for name, parameter in make(embed_dim=192, num_heads=3).named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name


def test_initial_weights_follow_the_seed_in_every_process():
    code = (
        "import hashlib, torch; from trainer.model import Temporal3DViT; torch.manual_seed(0);"
        "state = Temporal3DViT(2, 8, 8, 2, embed_dim=8, depth=1, num_heads=1).state_dict();"
        "print(hashlib.sha256(b''.join(v.numpy().tobytes() for v in state.values())).hexdigest())"
    )
    digests = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code]
        digests.add(subprocess.check_output(command, env=environment, cwd=ROOT, text=True))
    assert len(digests) == 1


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_bfloat16_autocast_loses_neither_small_branches_nor_logits(global_pool):
    model = make(init_values=1e-4, global_pool=global_pool).eval()
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def note(name):
        def hook(_module, inputs, output):
            dtypes[name] = inputs[0].dtype, output.dtype

        return hook

    for name in ("patch_embed", "blocks.0", "blocks.0.attn", "blocks.2", "head"):
        model.get_submodule(name).register_forward_hook(note(name))
    x = sequences()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = model.forward_features(x), model(x)
        assert dtypes["patch_embed"][1] == dtypes["blocks.0.attn"][1] == torch.bfloat16
        for name in ("blocks.0", "blocks.2", "head"):
            assert dtypes[name] == (torch.float32, torch.float32), name
        torch.testing.assert_close(logits, model(x), rtol=0, atol=2e-2)
        for block in model.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        with torch.autocast("cpu", torch.bfloat16):
            without_branches = model.forward_features(x)
    # What the blocks add is far below the rounding of bfloat16, and is still there.
    assert (features - without_branches).abs().max() < 2e-3
    assert (features != without_branches).float().mean() > 0.9


def test_it_learns_what_only_the_order_of_trials_tells():
    """Every trial has the same distribution in both classes; only the order differs."""
    rising = torch.randn(64, generator=torch.Generator().manual_seed(2)) > 0
    ramp = torch.linspace(-1.0, 1.0, 4)[:, None, None]
    x = torch.where(rising[:, None, None, None], ramp, -ramp) + 0.5 * sequences(64)
    model = make(patch_size=(1, 3, 5), depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:48]), rising[:48].long())
        loss.backward()
        optimizer.step()
    predicted = model.eval()(x[48:]).argmax(dim=1)
    assert (predicted == rising[48:].long()).float().mean() >= 0.9
