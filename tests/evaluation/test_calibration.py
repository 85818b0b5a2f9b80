"""What chance adds to the calibration error. The error itself is tested with the other figures."""

import math

import numpy as np
import pytest

from tract_trainer.evaluation.calibration import calibration, calibration_error

SCALE = [1, 2, 3, 4, 5]

pytestmark = pytest.mark.filterwarnings("error")


def drawn(n, power=1.0, seed=0):
    """Distributions raised to `power`, and gold scores drawn from them as they were before."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(5), n)
    gold = np.array([rng.choice(SCALE, p=row) for row in probs])
    sharpened = probs**power
    return sharpened / sharpened.sum(1, keepdims=True), gold


def test_a_calibrated_judge_has_the_error_of_chance_and_another_has_more():
    probs, gold = drawn(2000)
    found = calibration(probs, gold, SCALE)
    assert found["error"] == calibration_error(probs, gold, SCALE)
    assert found["error"] == pytest.approx(found["error_by_chance"], rel=0.3)
    overconfident = calibration(*drawn(2000, power=3), SCALE)
    assert overconfident["error"] > 3 * overconfident["error_by_chance"]


def test_the_interval_covers_the_error_of_many_records():
    # Percentiles of resamples would lie above it in most of these. tests/test_intervals.py counts more closely.
    truth = calibration_error(*drawn(100_000, power=2), SCALE)
    covered = 0
    for seed in range(1, 41):
        low, high = calibration(*drawn(320, 2, seed), SCALE, n_resamples=200)["error_ci"]
        covered += low <= truth <= high
    assert covered >= 35


def test_the_interval_begins_at_zero_where_chance_alone_explains_the_error():
    found = [calibration(*drawn(200, 1, seed), SCALE, n_resamples=50) for seed in range(40)]
    assert sum(each["error_ci"][0] == 0 for each in found) >= 35  # 38 are expected
    assert calibration(*drawn(2000, 3), SCALE)["error_ci"][0] > 0


def test_with_many_records_and_a_large_error_the_interval_is_that_of_a_mean():
    # One bin at each threshold, with a gap far from 0: the error is the mean of .9 - (gold <= 1), 40 % of 5,000 right.
    gold = np.repeat([1, 2], [2000, 3000])
    low, high = calibration(np.tile([0.9, 0.1], (5000, 1)), gold, [1, 2])["error_ci"]
    reach = 1.96 * math.sqrt(0.4 * 0.6 / 5000)
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=0.1 * reach)


def test_no_bound_is_below_zero_and_without_records_nothing_is_defined():
    low, high = calibration(*drawn(30), SCALE)["error_ci"]
    assert 0 <= low <= high
    for probs in ([], [[math.nan] * 5] * 3):
        found = calibration(probs, [3.0] * len(probs), SCALE, n_resamples=20)
        assert all(map(math.isnan, (found["error"], *found["error_ci"], found["error_by_chance"])))
        assert np.sum(found["counts"]) == 0


def test_the_lists_are_plain_and_of_every_threshold():
    found = calibration(*drawn(50), SCALE, n_resamples=10)
    assert found["thresholds"] == [1, 2, 3, 4] and np.shape(found["predicted"]) == (4, 10)
    assert sum(map(sum, found["counts"])) == 4 * 50 and type(found["counts"][0][0]) is int
