"""The rank statistic against scipy's exact test, full enumeration, closed forms and simulated coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from edgeprune.robustness.ranks import auroc_interval, rank_test


def test_nearer_flips_have_an_auroc_of_one_and_the_smallest_p():
    found = rank_test(np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0]))
    assert found is not None
    assert (found.auroc, found.exact) == (1.0, True)
    assert found.p_value == pytest.approx(2 / 10)
    assert found.low < 1
    assert found.high == 1


def test_the_test_agrees_with_scipys_exact_test_where_nothing_ties():
    random = np.random.default_rng(3)
    flipped, kept = random.random(6), random.random(17) + 0.2
    found = rank_test(flipped, kept)
    theirs = stats.mannwhitneyu(flipped, kept, method="exact")
    assert found is not None
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert found.auroc == pytest.approx(1 - theirs.statistic / (6 * 17))


def test_ties_and_endless_distances_are_exact_too():
    flipped, kept = np.array([0.1, 0.2, np.inf]), np.array([0.2, 0.3, 0.3, np.inf, np.inf])
    found = rank_test(flipped, kept)
    ranks = stats.rankdata(np.concatenate([flipped, kept]))
    sums = np.array([sum(chosen) for chosen in itertools.combinations(ranks, 3)])
    observed = ranks[:3].sum()
    assert found is not None
    assert found.exact
    assert found.p_value == pytest.approx(min(1, 2 * min(np.mean(sums <= observed), np.mean(sums >= observed))))
    assert found.auroc == pytest.approx((5 + 4.5 + 0.5 * 2) / 15)


def test_groups_that_do_not_differ_say_nothing():
    found = rank_test(np.full(4, 0.5), np.full(9, 0.5))
    assert found is not None
    assert (found.auroc, found.p_value) == (0.5, 1.0)


def test_without_a_flip_there_is_no_statistic():
    assert rank_test(np.zeros(0), np.ones(4)) is None
    assert rank_test(np.ones(4), np.zeros(0)) is None


def test_a_distance_that_is_no_number_is_a_bug():
    with pytest.raises(ValueError, match="not a number"):
        rank_test(np.array([np.nan]), np.ones(3))


def test_large_groups_fall_back_to_the_approximation_and_say_so():
    random = np.random.default_rng(0)
    found = rank_test(random.random(400), random.random(900))
    assert found is not None
    assert not found.exact
    assert 0 < found.p_value <= 1


def test_the_interval_mirrors_and_narrows_with_the_images():
    low, high = auroc_interval(0.8, 8, 200)
    assert auroc_interval(0.2, 8, 200) == pytest.approx((1 - high, 1 - low))
    wide, narrow = auroc_interval(0.8, 4, 50), auroc_interval(0.8, 40, 500)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


def test_the_interval_covers_where_few_images_flip():
    random, true = np.random.default_rng(1), float(stats.norm.cdf(1.5 / 2**0.5))
    covered = 0
    for _ in range(400):
        found = rank_test(random.normal(-1.5, 1, 5), random.normal(0, 1, 60))
        assert found is not None
        covered += found.low <= true <= found.high
    assert covered / 400 >= 0.93
