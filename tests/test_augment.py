"""Augmentation: what it does in closed form, and how often by counting."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from trainer.augment import (
    augment,
    check_augment,
    draw_bands,
    draw_dropped,
    mask_band,
    mixup,
    mixup_partners,
    shift_time,
)
from trainer.config import AugmentConfig
from trainer.errors import UsageError

SHAPE = (3, 5, 7)
EVERYTHING = AugmentConfig(
    freq_mask=2, time_mask=3, trial_drop=0.3, time_shift=2, gain_jitter=0.5, mixup=0.4
)
#: One option at a time, each from `EVERYTHING`.
SINGLE = [
    AugmentConfig(**{field.name: getattr(EVERYTHING, field.name)})
    for field in dataclasses.fields(AugmentConfig)
]


def make_batch(n=16, shape=SHAPE, dtype=torch.float16, padded=0):
    rng = torch.Generator().manual_seed(3)
    # Nowhere 0, so that what is masked can be told.
    x = (torch.rand(n, *shape, generator=rng) + 0.5).to(dtype)
    targets = torch.eye(2)[torch.arange(n) % 2]
    mask = torch.arange(n) < n - padded
    return x, targets, mask


def run(config, batch, seed=0, step=0, rank=0):
    x, targets, mask = batch
    return augment(x, targets, mask, config, seed, step, rank)


def five_errors(probability, n):
    """Return five standard errors of a proportion."""
    return 5 * np.sqrt(probability * (1 - probability) / n)


# --- The batch ------------------------------------------------------------------------------------


def test_no_augmentation_is_the_identity():
    batch = make_batch()
    x, targets = run(AugmentConfig(), batch)
    assert x is batch[0]
    assert targets is batch[1]


@pytest.mark.parametrize("config", [*SINGLE, EVERYTHING], ids=str)
def test_a_batch_follows_from_seed_step_and_rank_alone(config):
    batch = make_batch(64)
    before = batch[0].clone()
    x, targets = run(config, batch, seed=1, step=2, rank=1)
    assert x.shape == before.shape
    assert x.dtype == torch.float16
    assert torch.equal(batch[0], before), "the input was changed in place"
    assert not torch.equal(x, before)
    torch.manual_seed(99)
    np.random.default_rng(99)
    again = run(config, batch, seed=1, step=2, rank=1)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], targets)
    for key in ((2, 2, 1), (1, 3, 1), (1, 2, 0), (2, 1, 1)):
        assert not torch.equal(run(config, batch, *key)[0], x), key


@pytest.mark.parametrize("config", SINGLE, ids=str)
def test_kinds_do_not_disturb_one_another(config):
    """What a kind draws is the same whether or not others are on."""
    x = torch.ones(32, *SHAPE)
    batch = (x, torch.eye(2)[[0, 1] * 16], torch.ones(32, dtype=torch.bool))
    if config.gain_jitter:
        gain = run(config, batch)[0][:, :1, :1, :1].expand_as(x)
        among_others = run(dataclasses.replace(EVERYTHING, mixup=0.0), batch)[0]
        shown = among_others != 0
        torch.testing.assert_close(among_others[shown], gain[shown])
    elif config.mixup:
        assert torch.equal(run(config, batch)[1], run(EVERYTHING, batch)[1])
    else:
        hidden = run(config, batch)[0] == 0
        assert (run(EVERYTHING, batch)[0][hidden] == 0).all()


def test_kinds_draw_apart_from_one_another():
    """On a square, bands drawn from one stream would be the same along both axes."""
    x = torch.ones(64, 1, 9, 9)
    batch = (x, torch.zeros(64, 2), torch.ones(64, dtype=torch.bool))
    hidden = run(AugmentConfig(freq_mask=4, time_mask=4), batch)[0][:, 0] == 0
    by_freq, by_time = hidden.all(dim=2), hidden.all(dim=1)
    assert (by_freq == by_time).all(dim=1).float().mean() < 0.5


def test_masks_hide_the_train_mean_whatever_was_added_before():
    x, _ = run(EVERYTHING, make_batch(64))
    hidden = x == 0
    whole_trials = hidden.all(dim=(2, 3)).sum()
    assert whole_trials > 0
    freqs = hidden.all(dim=(1, 3)).sum(dim=1)
    times = hidden.all(dim=(1, 2)).sum(dim=1)
    assert set(freqs.tolist()) == {0, 1, 2}
    assert set(times.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freq_mask": 5}, "augment.freq_mask must be below the 5 frequencies .* not 5"),
        ({"time_mask": 8}, "augment.time_mask must be below the 7 frames .* not 8"),
        ({"time_shift": 7}, "augment.time_shift must be below the 7 frames .* not 7"),
    ],
)
def test_what_would_leave_nothing_is_refused(options, message):
    config = AugmentConfig(**options)
    with pytest.raises(UsageError, match=message):
        check_augment(config, SHAPE[1], SHAPE[2])
    with pytest.raises(UsageError, match=message):
        run(config, make_batch())


# --- Masks and dropped trials ---------------------------------------------------------------------


def test_masked_bands_in_closed_form():
    x = torch.ones(3, *SHAPE)
    start, stop = torch.tensor([0, 2, 4]), torch.tensor([2, 2, 5])
    by_freq = mask_band(x, start, stop, dim=2)
    expected = np.ones((3, *SHAPE))
    expected[0, :, 0:2] = 0
    expected[2, :, 4:5] = 0
    assert_array_equal(by_freq.numpy(), expected)
    by_time = mask_band(x, start, stop, dim=3)
    expected = np.ones((3, *SHAPE))
    expected[0, :, :, 0:2] = 0
    expected[2, :, :, 4:5] = 0
    assert_array_equal(by_time.numpy(), expected)


def test_bands_are_uniform_in_width_and_then_in_place():
    n, size, max_width = 60_000, 10, 3
    start, stop = draw_bands(np.random.default_rng(0), n, size, max_width)
    assert start.min() == 0
    assert stop.max() == size
    for width in range(max_width + 1):
        places = start[stop - start == width]
        assert abs(len(places) / n - 1 / 4) < five_errors(1 / 4, n)
        n_places = size - width + 1
        shares = np.bincount(places, minlength=n_places) / len(places)
        assert len(shares) == n_places
        assert np.abs(shares - 1 / n_places).max() < five_errors(1 / n_places, len(places))


@pytest.mark.parametrize(("n_trials", "probability"), [(1, 0.5), (2, 0.5), (3, 0.8), (8, 0.2)])
def test_trials_are_dropped_as_often_as_told_but_never_all(n_trials, probability):
    n = 60_000
    dropped = draw_dropped(np.random.default_rng(0), n, n_trials, probability)
    assert not dropped.all(axis=1).any()
    # All of them would go with probability p**n; then one of the n stays.
    expected = probability - probability**n_trials / n_trials
    # The mean over all, which would forgive a favoured trial, and of each trial.
    assert np.abs(dropped.mean(axis=0) - expected).max() <= five_errors(expected, n)


def test_dropped_trials_are_zero_and_others_untouched():
    batch = make_batch(200)
    x, targets = run(AugmentConfig(trial_drop=0.4), batch)
    zero = (x == 0).all(dim=(2, 3))
    assert 0.2 < zero.float().mean() < 0.5
    assert not zero.all(dim=1).any()
    assert torch.equal(x[~zero], batch[0][~zero])
    assert torch.equal(targets, batch[1])


# --- Shift and gain -------------------------------------------------------------------------------


def test_shift_repeats_the_edge():
    frames = torch.arange(7.0).expand(5, *SHAPE)
    moved = shift_time(frames, torch.tensor([0, 2, -1, 6, -6]))
    expected = [
        [0, 1, 2, 3, 4, 5, 6],
        [0, 0, 0, 1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6, 6],
        [0, 0, 0, 0, 0, 0, 0],
        [6, 6, 6, 6, 6, 6, 6],
    ]
    for row, line in zip(moved, expected, strict=True):
        assert_array_equal(row.numpy(), np.broadcast_to(line, SHAPE))


def test_shifts_are_uniform_up_to_the_limit():
    n = 30_000
    frames = torch.arange(9.0).expand(n, 1, 1, 9)
    batch = (frames, torch.zeros(n, 2), torch.ones(n, dtype=torch.bool))
    x, _ = run(AugmentConfig(time_shift=2), batch)
    shifts, counts = np.unique(4 - x[:, 0, 0, 4].numpy(), return_counts=True)
    assert_array_equal(shifts, [-2, -1, 0, 1, 2])
    assert np.abs(counts / n - 1 / 5).max() < five_errors(1 / 5, n)


def test_gain_is_one_normal_number_a_sequence():
    n, std = 20_000, 0.3
    batch = (torch.full((n, 2, 2, 2), 1.5), torch.zeros(n, 2), torch.ones(n, dtype=torch.bool))
    x, _ = run(AugmentConfig(gain_jitter=std), batch)
    added = (x - 1.5).flatten(1)
    assert torch.equal(added, added[:, :1].expand_as(added))
    gains = added[:, 0].double().numpy()
    assert abs(gains.mean()) < 5 * std / np.sqrt(n)
    assert abs(gains.std() / std - 1) < 5 / np.sqrt(2 * n)
    # Normal: 68.27 % lie within one standard deviation.
    assert abs((np.abs(gains) < std).mean() - 0.6827) < five_errors(0.6827, n)


# --- Mixup ----------------------------------------------------------------------------------------


def test_mixed_rows_and_targets_in_closed_form():
    x = torch.tensor([[[0.0]], [[10.0]], [[4.0]]], dtype=torch.float16)
    targets = torch.eye(3)
    weight = torch.tensor([0.25, 0.5, 0.9])
    mixed, soft = mixup(x, targets, torch.tensor([1, 0, 2]), weight)
    assert mixed.dtype == torch.float16
    assert mixed.flatten().tolist() == [7.5, 5.0, 4.0]
    expected = [[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(soft.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(
    "mask", [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
)
def test_partners_are_a_single_cycle_of_the_rows_that_count(mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    counting = mask.nonzero().flatten().tolist()
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        partner = mixup_partners(torch.from_numpy(rng.permutation(6)), mask)
        assert torch.equal(partner[~mask], torch.arange(6)[~mask])
        cycle = [counting[0]]
        for _ in counting:
            cycle.append(int(partner[cycle[-1]]))
        assert cycle[0] == cycle[-1]
        assert sorted(cycle[1:]) == counting
        seen.add(cycle[1])
    # Every other row that counts becomes a partner.
    assert seen == set(counting[1:] or counting)


def test_no_row_counts():
    mask = torch.zeros(4, dtype=torch.bool)
    assert mixup_partners(torch.tensor([2, 0, 3, 1]), mask).tolist() == [0, 1, 2, 3]


def test_padded_rows_are_neither_mixed_nor_mixed_in():
    x, targets, mask = make_batch(8, padded=3)
    x[~mask] = 1000.0
    mixed, soft = run(AugmentConfig(mixup=1.0), (x, targets, mask))
    assert torch.equal(mixed[~mask], x[~mask])
    assert torch.equal(soft[~mask], targets[~mask])
    assert mixed[mask].max() < 2
    assert not torch.equal(mixed[mask], x[mask])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    n = 20_000
    x = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1)
    targets = torch.eye(2)[torch.arange(n) % 2]
    mixed, soft = run(AugmentConfig(mixup=alpha), (x, targets, torch.ones(n, dtype=torch.bool)))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(n))
    # Where the partner is of the other class, the row's own share can be read off.
    own = soft.gather(1, torch.arange(n)[:, None] % 2)[:, 0].double()
    share = own[own < 1].numpy()
    variance = 1 / (4 * (2 * alpha + 1))
    assert len(share) > 0.4 * n
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(variance / len(share))
    assert share.var() == pytest.approx(variance, rel=0.05)
    assert mixed.min() >= 0
    assert mixed.max() <= n - 1
