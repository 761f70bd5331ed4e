"""Resamples of groups, and intervals of percentiles."""

import numpy as np
import pytest

from lossattn_jax.errors import UserError
from lossattn_jax.mil import bootstrap


def all_counts(units, resamples, seed=0):
    return np.concatenate(list(bootstrap.draw_counts(np.array(units), resamples, seed)))


def test_bags_of_a_group_are_drawn_together():
    counts = all_counts([0, 1, 0, 2, 1, 0], 500)
    assert counts.shape == (500, 6) and counts.dtype == np.float64
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 0], counts[:, 5])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many groups as there are
    # Binomial(3, 1/3): none in 8/27, one in 12/27, two in 6/27, three in 1/27.
    share = np.bincount(counts[:, 3].astype(int), minlength=4) / 500
    np.testing.assert_allclose(share, np.array([8, 12, 6, 1]) / 27, atol=0.06)


def test_a_draw_follows_from_its_seed_alone(monkeypatch):
    whole = all_counts(range(7), 200)
    monkeypatch.setattr(bootstrap, "_BLOCK", 50)
    blocks = list(bootstrap.draw_counts(np.arange(7), 200, 0))
    assert len(blocks) == 29
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(all_counts(range(7), 100), whole[:100])
    assert (all_counts(range(7), 200, seed=1) != whole).any()


def test_percentiles_leave_out_what_is_not_defined():
    values = np.concatenate([np.arange(201.0), np.full(50, np.nan)])
    found = bootstrap.percentile_interval(values, 10)
    assert found == bootstrap.Interval(5.0, 195.0, 50)  # 2.5 % and 97.5 % of 200


@pytest.mark.parametrize(
    ("values", "groups", "reason"),
    [
        ([], 10, "no resamples were asked for"),
        ([1.0] * 100, 1, "one group alone cannot be resampled"),
        ([1.0] * 49 + [np.nan] * 51, 10, "it is not defined in 51 of 100 resamples"),
    ],
)
def test_an_interval_that_says_nothing_is_none(values, groups, reason):
    found = bootstrap.percentile_interval(np.array(values), groups)
    assert np.isnan([found.low, found.high]).all() and found.reason == reason


def test_half_of_the_resamples_are_enough():
    found = bootstrap.percentile_interval(np.array([1.0] * 50 + [np.nan] * 50), 10)
    assert (found.low, found.high, found.left_out, found.reason) == (1.0, 1.0, 50, None)


@pytest.mark.parametrize("count", [-1, 1, 99, 1_000_001])
def test_impossible_numbers_of_resamples_are_refused(count):
    with pytest.raises(UserError, match=f"is {count}, but must be 0 .no intervals., or from 100"):
        bootstrap.check_resamples(count)


@pytest.mark.parametrize("count", [0, 100, 2000, 1_000_000])
def test_possible_numbers_of_resamples_are_taken(count):
    bootstrap.check_resamples(count)
