"""Intervals and bounds against closed forms, published values, direct optimisation and exact coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from edgeprune.errors import DataError
from edgeprune.robustness.statistics import (
    holm,
    paired_drop,
    power_at,
    proportion,
    samples_needed,
    score_bound,
    score_statistic,
    smallest_supported_drop,
    upper_bound,
)


def pairs(both, dense_only, compressed_only, neither):
    dense = np.repeat([True, True, False, False], [both, dense_only, compressed_only, neither])
    compressed = np.repeat([True, False, True, False], [both, dense_only, compressed_only, neither])
    return dense, compressed


def test_clopper_pearson_agrees_with_scipy():
    for count, total in ((0, 10), (1, 7), (50, 100), (99, 100), (10, 10)):
        ours = proportion(count, total, 0.9).interval
        theirs = stats.binomtest(count, total).proportion_ci(0.9, method="exact")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_success_in_ten_gives_the_closed_form():
    assert proportion(0, 10).interval.high == pytest.approx(1 - 0.025**0.1)
    assert proportion(0, 10).interval.low == 0


def test_nothing_can_be_said_about_no_images():
    with pytest.raises(DataError, match="no images"):
        proportion(0, 0)
    with pytest.raises(DataError, match="no images"):
        paired_drop(np.zeros(0, bool), np.zeros(0, bool))
    with pytest.raises(DataError, match="no images"):
        smallest_supported_drop(0)


def test_a_count_that_does_not_fit_is_a_bug():
    with pytest.raises(ValueError, match="5 of total 4"):
        proportion(5, 4)
    with pytest.raises(ValueError, match="not paired"):
        paired_drop(np.zeros(3, bool), np.zeros(4, bool))


def test_paired_drop_counts_flips_both_ways():
    drop = paired_drop(*pairs(50, 9, 3, 8))
    assert (drop.total, drop.dense_only, drop.compressed_only) == (70, 9, 3)
    assert drop.value == pytest.approx(6 / 70)
    assert drop.value < drop.upper < 0.2


def test_mcnemar_is_the_exact_binomial_test():
    # 9 against 3 of 12 at one half: 2 * P(X <= 3) = 2 * 299 / 4096.
    assert paired_drop(*pairs(50, 9, 3, 8)).p_value == pytest.approx(2 * 299 / 4096)
    assert paired_drop(*pairs(50, 0, 0, 8)).p_value == 1.0


def test_score_statistic_maximises_the_likelihood_under_the_hypothesis():
    for dense_only, compressed_only, total, drop in (
        (9, 3, 70, 0.2),
        (0, 4, 50, 0.05),
        (12, 0, 40, 0.35),
        (7, 7, 60, 0.1),
    ):

        def loss(nuisance, b=dense_only, c=compressed_only, n=total, d=drop):
            cells = np.clip([nuisance + d, nuisance, 1 - 2 * nuisance - d], 1e-300, 1)
            return -np.sum(np.array([b, c, n - b - c]) * np.log(cells))

        best = optimize.minimize_scalar(loss, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-12}).x
        error = np.sqrt(total * (2 * best + drop * (1 - drop)))
        direct = (dense_only - compressed_only - total * drop) / error
        assert score_statistic(dense_only, compressed_only, total, drop) == pytest.approx(direct, abs=1e-4)


def test_score_bound_reproduces_the_published_interval():
    # 1 and 7 discordant of 21 children: -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014, Tango's score interval).
    assert score_bound(1, 7, 21, 0.975) == pytest.approx(-0.026, abs=5e-4)
    assert -score_bound(7, 1, 21, 0.975) == pytest.approx(-0.517, abs=5e-4)


def test_score_bound_has_the_closed_form_without_discordant_pairs():
    squared = stats.norm.ppf(0.95) ** 2
    assert score_bound(0, 0, 100) == pytest.approx(squared / (100 + squared), abs=1e-8)


def outcomes(total):
    table = np.array([(b, c) for b in range(total + 1) for c in range(total + 1 - b)])
    return table, np.column_stack([table, total - table.sum(axis=1)])


def coverage(bounds, cells, total, dense_rate, compressed_rate):
    rates = [dense_rate, compressed_rate, 1 - dense_rate - compressed_rate]
    return float(np.sum(stats.multinomial.pmf(cells, total, rates)[bounds >= dense_rate - compressed_rate]))


def test_upper_bound_covers_whatever_the_true_rates_are_and_the_score_bound_does_not():
    total = 14
    table, cells = outcomes(total)
    exact = np.array([upper_bound(int(b), int(c), total) for b, c in table])
    score = np.array([score_bound(int(b), int(c), total) for b, c in table])
    rates = [(c + d, c) for c in (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.45) for d in np.linspace(-0.3, 0.9, 61)]
    possible = [(b, c) for b, c in rates if b >= 0 and b + c <= 1]
    assert len(possible) > 200
    assert min(coverage(exact, cells, total, b, c) for b, c in possible) >= 0.95 - 1e-6
    assert min(coverage(score, cells, total, b, c) for b, c in possible) < 0.93


def test_upper_bound_covers_in_simulation_at_the_size_of_a_gate():
    total, rates = 300, (0.03, 0.01, 0.96)
    drawn = np.random.default_rng(0).multinomial(total, rates, size=1500)
    held = np.mean([upper_bound(int(b), int(c), total) >= 0.02 for b, c, _ in drawn])
    assert 0.945 <= held <= 0.975


def test_upper_bound_is_close_to_the_score_bound_where_that_is_right():
    assert upper_bound(300, 250, 10_000) == pytest.approx(score_bound(300, 250, 10_000), abs=2e-5)
    assert upper_bound(30, 20, 1000) == pytest.approx(score_bound(30, 20, 1000), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_upper_bound_is_above_the_estimate_and_grows_with_the_losses(data):
    total = data.draw(st.integers(2, 120))
    compressed_only = data.draw(st.integers(0, total - 1))
    dense_only = data.draw(st.integers(0, total - 1 - compressed_only))
    bound = upper_bound(dense_only, compressed_only, total)
    assert (dense_only - compressed_only) / total <= bound <= 1
    assert bound <= upper_bound(dense_only + 1, compressed_only, total) + 1e-6
    assert bound <= upper_bound(dense_only, compressed_only, total, 0.99) + 1e-6


def test_a_file_that_is_wrong_on_everything_has_the_bound_one():
    assert upper_bound(5, 0, 5) == 1.0
    assert upper_bound(0, 5, 5) < 0


def test_smallest_supported_drop_is_the_binomial_bound():
    # No discordant pair in n: (1 - drop)^n = 0.05, but for the little that confining the nuisance rate costs.
    for total in (30, 300, 3000):
        assert smallest_supported_drop(total) == pytest.approx(1 - 0.05 ** (1 / total), rel=2e-3)
        assert smallest_supported_drop(total) == paired_drop(*pairs(total, 0, 0, 0)).upper


def test_two_points_with_five_percent_discordant_pairs_need_773_images():
    assert samples_needed(0.02) == 773


def test_images_needed_are_at_least_what_perfect_agreement_needs():
    needed = samples_needed(0.02, discordant_rate=0.0)
    assert smallest_supported_drop(needed) <= 0.02 < smallest_supported_drop(needed - 1)


def test_a_tolerance_of_nothing_cannot_be_planned_for():
    with pytest.raises(ValueError, match="tolerance"):
        samples_needed(0.0)


def test_two_points_of_tolerance_need_773_images():
    assert samples_needed(0.02, discordant_rate=0.05, confidence=0.95, power=0.8) == 773


def test_power_is_the_other_side_of_the_sample_size():
    assert power_at(773, 0.02) == pytest.approx(0.8, abs=1e-3)
    assert power_at(300, 0.02) == pytest.approx(stats.norm.cdf(0.02 * (300 / 0.05) ** 0.5 - stats.norm.ppf(0.95)))
    assert power_at(100, 0.02) < power_at(300, 0.02) < power_at(3000, 0.02)
    with pytest.raises(ValueError, match="tolerance of 0"):
        power_at(10, 0)


def test_the_exact_bound_has_about_the_power_that_was_promised():
    draws = np.random.default_rng(0).multinomial(773, [0.025, 0.025, 0.95], size=60)
    passed = [upper_bound(int(dense), int(compressed), 773) <= 0.02 for dense, compressed, _ in draws]
    assert 0.65 <= np.mean(passed) <= 0.92


def test_holm_agrees_with_the_worked_example_of_the_method():
    assert holm((0.01, 0.04, 0.03, 0.005)) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def test_holm_of_one_test_is_the_test_and_never_exceeds_one():
    assert holm((0.3,)) == (0.3,)
    assert holm(()) == ()
    assert holm((0.9, 0.8)) == (1.0, 1.0)
