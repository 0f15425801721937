"""Means over seeds and items: literal cases, and the coverage of the interval."""

import dataclasses

import numpy as np
import pytest

from experiments.means import Items, average, holm


def test_a_literal_average():
    means = average(np.array([1.0, 3.0, 10.0, 10.0]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(means.value_C, [2, 10])
    assert means.seed_variance == 1.0  # (1 + 1 + 0 + 0) / (4 runs - 2 cells)
    assert means.seed_df == 2
    value, low, high = means.interval(np.array([-1.0, 1.0]))
    # t of 2 degrees of freedom is 4.303; the variance is 1 / 2 + 1 / 2
    assert (value, low, high) == pytest.approx((8, 8 - 4.3027, 8 + 4.3027), abs=1e-3)


def test_intervals_of_two_seeds_cover():
    """2,000 draws: the share's standard error is half a percent. A normal quantile gives 92 %."""
    rng, cell_R, held = np.random.default_rng(0), np.repeat(np.arange(6), 2), 0
    for _ in range(2000):
        _, low, high = average(rng.standard_normal(12), cell_R).interval(np.eye(6)[0])
        held += low <= 0 <= high
    assert 0.935 <= held / 2000 <= 0.965


def items(rng, runs: int, own: float) -> Items:
    """200 items in 50 groups, hard or easy for all runs, with noise of each run's own."""
    group_I = np.arange(200) // 4
    shared_I = rng.standard_normal(50)[group_I] + rng.standard_normal(200)
    return Items(value_RI=shared_I + own * rng.standard_normal((runs, 200)), group_I=group_I)


def test_what_runs_share_cancels_in_differences():
    found = items(np.random.default_rng(0), runs=2, own=0.1)
    means = average(found.value_RI.mean(axis=1), np.array([0, 1]), items=found)
    of_group_G = (found.value_RI[1] - found.value_RI[0]).reshape(50, 4).mean(axis=1)
    # the variance of a mean of 50 groups; 1,000 draws tell it to 4.5 %
    expected = of_group_G.var(ddof=1) / 50
    assert means.variances(np.array([-1.0, 1.0]))[1] == pytest.approx(expected, rel=0.15)
    assert means.variances(np.array([1.0, 0.0]))[1] > 20 * expected


def test_noise_of_items_is_not_counted_twice():
    """What single runs got right by luck is in the spread of the seeds already."""
    rng = np.random.default_rng(0)
    value_RI = rng.standard_normal((20, 400))
    found = Items(value_RI=value_RI, group_I=np.arange(400))
    means = average(value_RI.mean(axis=1), np.zeros(20, int), items=found)
    seeds, shared = means.variances(np.ones(1))
    assert seeds == pytest.approx(1 / 400 / 20, rel=0.7)  # 19 degrees of freedom
    assert shared < 0.5 * seeds  # without the correction they are equal


def test_resampling_keeps_groups_whole():
    found = Items(value_RI=np.array([[0.0, 0.0, 1.0, 1.0]]), group_I=np.array(["a", "a", "b", "b"]))
    assert set(found.resampled(200)[:, 0]) == {0.0, 0.5, 1.0}


def test_a_run_that_lies_apart_is_told():
    value_R = np.array([0.0, 0.1, 0.05, 0.0, 0.1, 9.0, 0.0, 0.1, 0.05, 0.0, 0.1, 0.05])
    means = average(value_R, np.repeat(np.arange(4), 3))
    assert np.abs(means.deviation_R).argmax() == 5
    assert means.equal_p < 0.01


def test_one_seed_has_no_variance_of_seeds():
    means = average(np.array([1.0, 2.0]), np.array([0, 1]))
    assert np.isnan(means.seed_variance) and means.seed_df == 0


def test_corrected_p_values():
    """By hand: 3 x 0.01; 2 x 0.03; then 0.04, which may not be below the one before."""
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, np.nan, 0.9])), [1, np.nan, 1])


def test_p_is_5_percent_where_the_interval_ends_at_zero():
    means = average(np.array([1.0, 3.0, 10.0, 10.0]), np.array([0, 0, 1, 1]))
    value, low, _ = means.interval(np.array([-1.0, 1.0]))
    assert means.p_value(np.array([-1.0, 1.0])) == pytest.approx(0.0153, abs=2e-4)  # t of 2 at 8
    ends = dataclasses.replace(means, value_C=np.array([low, value]))
    assert ends.p_value(np.array([-1.0, 1.0])) == pytest.approx(0.05)
