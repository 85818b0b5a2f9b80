"""
Reliability and calibration error, against naive loops and hand arithmetic, and what chance adds to the error. The map
of expected scores, by hand, and that its effect is not that on the records it was fitted on.
"""

import json
import math

import numpy as np
import pytest
from fake import FIVE

from tract_trainer.errors import InputError
from tract_trainer.evaluation.calibration import calibration, cross_fitted_effect, fit
from tract_trainer.judge_config import JudgeConfig

SCALE = [1, 2, 3, 4, 5]
LISTS = ["thresholds", "predicted", "observed", "counts"]

pytestmark = pytest.mark.filterwarnings("error")


def calibration_error(*args, **settings):
    return calibration(*args, **settings)["error"]


def naive_error(probs, gold, values, n_bins):
    total = 0.0
    for threshold in sorted(values)[:-1]:
        bins = {}
        for row, score in zip(probs, gold, strict=True):
            below = sum(p for p, value in zip(row, values, strict=True) if value <= threshold) / sum(row)
            bins.setdefault(min(int(below * n_bins), n_bins - 1), []).append((below, score <= threshold))
        gaps = [abs(sum(below for below, _ in rows) - sum(reached for _, reached in rows)) for rows in bins.values()]
        total += sum(gaps) / len(gold)
    return total / (len(values) - 1)


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5], [5, 1, 4, 2, 3]])
def test_the_calibration_error_is_that_of_naive_loops(values):
    rng = np.random.default_rng(0)
    probs, gold = rng.dirichlet(np.ones(5), 300), rng.integers(3, 16, 300) / 3
    for n_bins in (1, 10, 17):
        expected = naive_error(probs, gold, values, n_bins)
        assert calibration_error(probs, gold, values, n_bins) == pytest.approx(expected, abs=1e-9)


def test_the_calibration_error_by_hand():
    # Values 1 2 3, two bins. P(<= 1) = .2 .4 .9 and gold <= 1 is 0 1 1: bin 1 means .3 and 1/2, bin 2 .9 and 1:
    # 2/3 * .2 + 1/3 * .1 = 1/6. P(<= 2) = .4 .8 1 and gold <= 2 is 0 1 1 (2.5 is not): bin 1 .4 and 0, bin 2 .9 and 1:
    # 1/3 * .4 + 2/3 * .1 = 1/5. Their mean is 11/60.
    probs, gold = [[2, 2, 6], [0.4, 0.4, 0.2], [0.9, 0.1, 0.0]], [2.5, 1, 1]
    found = calibration(probs, gold, [1, 2, 3], n_bins=2)
    np.testing.assert_allclose(found["predicted"], [[0.3, 0.9], [0.4, 0.9]], atol=1e-12)
    np.testing.assert_allclose(found["observed"], [[0.5, 1], [0, 1]], atol=1e-12)
    assert (found["counts"], found["thresholds"]) == ([[2, 1], [1, 2]], [1, 2])
    assert found["error"] == pytest.approx(11 / 60, abs=1e-12)


def test_a_judge_that_is_the_distribution_of_the_ratings_is_calibrated():
    """The mean of three ratings is no rating: scored against it, such a judge looks as if it were not."""
    ratings = np.random.default_rng(0).integers(1, 6, (200, 3))
    probs = np.array([[np.mean(of == value) for value in SCALE] for of in ratings])
    assert calibration_error(probs, ratings, SCALE) == pytest.approx(0, abs=1e-12)
    assert calibration_error(probs, ratings.mean(1), SCALE) > 0.1
    found = calibration(probs, ratings.tolist(), SCALE)
    assert found["error"] == pytest.approx(0, abs=1e-12) and np.sum(found["counts"]) == 4 * 200


def test_each_rating_of_a_record_has_its_share_of_it_by_hand():
    # P(<= 1) = .75 .75, one bin; ratings 1 1 2 and 2: the shares at 1 are 2/3 and 0. |.75 - (2/3 + 0) / 2| = 5/12.
    probs, ratings = [[0.75, 0.25]] * 2, [[1, 1, 2], [2]]
    assert calibration_error(probs, ratings, [1, 2]) == pytest.approx(5 / 12)
    assert calibration(probs, ratings, [1, 2], n_bins=1)["observed"] == [[pytest.approx(1 / 3)]]
    mixed = calibration_error(probs, [[1, 1, 2], 2], [1, 2])
    assert mixed == pytest.approx(5 / 12)


def test_one_rating_a_record_is_a_gold_score():
    probs, gold = drawn(50)
    found = [calibration(probs, of, SCALE) for of in (gold, [[score] for score in gold])]
    assert json.dumps(found[0]) == json.dumps(found[1])


def test_a_judge_that_is_sure_and_wrong_has_the_largest_error():
    assert calibration_error([[1, 0, 0]] * 4, [3] * 4, [1, 2, 3]) == 1
    assert calibration_error([[0, 0, 1], [1, 0, 0]], [3, 1], [1, 2, 3]) == 0


def test_rows_of_probabilities_are_normalised_and_the_unscored_left_out():
    rng = np.random.default_rng(0)
    probs, gold = rng.dirichlet(np.ones(4), 50), rng.integers(1, 5, 50)
    expected = calibration_error(probs, gold, [1, 2, 3, 4])
    with_holes = np.concatenate([probs * rng.uniform(0.1, 3, (50, 1)), np.full((2, 4), math.nan)])
    assert calibration_error(with_holes, [*gold, 1, 4], [1, 2, 3, 4]) == pytest.approx(expected, abs=1e-9)


def test_calibration_of_nothing_is_nan_and_empty_bins_are():
    assert math.isnan(calibration_error([], [], [1, 2]))
    assert math.isnan(calibration_error([[math.nan, 0.5]], [1], [1, 2]))
    assert np.isnan(calibration([], [], [1, 2, 3])["predicted"]).all()
    found = calibration([[0.25, 0.75]], [1], [1, 2], n_bins=4)
    np.testing.assert_array_equal(found["observed"], [[math.nan, 1, math.nan, math.nan]])
    for probs in ([], [[math.nan] * 5] * 3):
        found = calibration(probs, [3.0] * len(probs), SCALE)
        assert all(map(math.isnan, (found["error"], found["error_by_chance"]))) and np.sum(found["counts"]) == 0


def test_what_is_no_probability_or_gold_score_is_refused():
    with pytest.raises(InputError, match=r"^Expected a row for each gold score, shape \(2, 3\), got shape \(2, 2\)\.$"):
        calibration_error([[0.5, 0.5]] * 2, [1, 2], [1, 2, 3])
    for row in ([-0.1, 1.1], [0, 0], [math.inf, 0]):
        message = r"^Expected probabilities or NaN \(unscored\), got \[.*\] in row 1\.$"
        with pytest.raises(InputError, match=message):
            calibration_error([[0.5, 0.5], row], [1, 2], [1, 2])
    for bad in (math.nan, [1, math.inf], []):
        with pytest.raises(InputError, match=r"^Gold scores must be finite numbers; number 1 is .*\. Leave such"):
            calibration_error([[1, 0], [0, 1]], [1, bad], [1, 2])


def drawn(n, power=1.0, seed=0):
    """Distributions raised to `power`, and gold scores drawn from them as they were before."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(5), n)
    gold = 1 + (rng.random((n, 1)) > np.cumsum(probs, axis=1)[:, :-1]).sum(1)
    sharpened = probs**power
    return sharpened / sharpened.sum(1, keepdims=True), gold


def test_a_calibrated_judge_has_the_error_of_chance_and_another_has_more():
    probs, gold = drawn(2000)
    found = calibration(probs, gold, SCALE)
    assert found["error"] == pytest.approx(found["error_by_chance"], rel=0.3)
    assert calibration_error(*drawn(50_000), SCALE) < 0.005
    overconfident = calibration(*drawn(2000, power=3), SCALE)
    assert overconfident["error"] > 3 * overconfident["error_by_chance"]
    assert json.dumps(calibration(probs, gold, SCALE)) == json.dumps(found)  # NaN is not itself


def test_the_lists_are_plain_and_of_every_threshold():
    found = calibration(*drawn(50), SCALE)
    assert list(found) == ["error", "error_by_chance", *LISTS]
    assert found["thresholds"] == [1, 2, 3, 4] and np.shape(found["predicted"]) == (4, 10)
    assert sum(map(sum, found["counts"])) == 4 * 50 and type(found["counts"][0][0]) is int


# The map of expected scores


def judged(scores, gold, groups=None, **judge):
    """A result with these expected scores: the rest of the probability is on 1."""

    def row(score, gold, group):
        share = (score - 1) / 4
        probs = None if math.isnan(score) else [1 - share, 0, 0, 0, share]
        return {"gold": gold, "group": group, "rationales": [{"label": "1", "probs": probs}]}

    judge = {"name": "a judge", "weights": "w", "config": FIVE.settings, **judge}
    rows = list(map(row, scores, gold, groups or range(len(gold))))
    return {"judge": judge, "methods": {}, "settings": {"num_cots": 3}, "judgments": rows, "benchmark": {"name": "b"}}


def test_the_map_by_hand():
    # Score 2 has gold 2 and 4, mean 3, and score 3 has 1.5: pooled, (2 * 3 + 1.5) / 3 = 2.5. Score 3.5 joins with 2.5.
    found = fit(judged([4, 2, 3, 1, 2, 3.5, math.nan], [5, 2, 1.5, 1, 4, 2.5, 1]), FIVE, "w")
    assert found == {
        "weights": "w",
        "score_values": [1, 2, 3, 4, 5],
        "num_cots": 3,
        "scores": [1, 2, 3.5, 4],
        "calibrated": [1, 2.5, 2.5, 5],
    }


def test_a_result_of_another_judge_is_refused():
    few = judged([1, 2, 3], [1, 2, 3])
    with pytest.raises(InputError, match=r"^3 scored records in 3 groups are too few: a calibration needs at least 4"):
        fit(few, FIVE, "w")
    for changed, name in (({"weights": "v"}, "weights: 'v' there, 'w' now"), ({}, r"score_values: \[1.0, 2.0, 3")):
        config = FIVE if changed else JudgeConfig(list("01234"))
        with pytest.raises(InputError, match=rf"^The result is not of this judge:\n(  .*\n)*  {name}"):
            fit(judged([1, 2, 3, 4], [1, 2, 3, 4], **changed), config, "w")
    older = judged([1, 2, 3, 4], [1, 2, 3, 4])
    del older["judge"]["weights"]
    with pytest.raises(InputError, match="weights: None there, 'w' now"):
        fit(older, FIVE, "w")
    for odd in (older | {"methods": {"score": {}}}, older | {"judgments": [{"side": "chosen"}]}):
        with pytest.raises(InputError, match=r"^A calibration is fitted on a judge's own judgments of scored records"):
            fit(odd, FIVE, "w")


def test_the_effect_is_that_on_other_groups():
    rng = np.random.default_rng(0)
    gold = rng.integers(1, 6, 200).astype(float)
    timid = np.append(2.5 + gold / 5 + rng.normal(0, 0.1, 200), math.nan)  # a judge that shuns the ends of the scale
    found = cross_fitted_effect(judged(timid, [*gold, 1]))
    assert (found["n"], found["unscored"]) == (201, 1)
    rmse = found["figures"]["rmse"]
    assert rmse["b"] > 1 and rmse["a"] < 0.6 and rmse["difference_ci"][1] < -0.4
    # Scores that know nothing of gold: fitted on the same groups, a map would still correlate with gold.
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(20), 10)
    gold, scores = (rng.uniform(1, 5, 20)[groups] for _ in range(2))
    result = judged(scores, gold, groups.tolist())
    mapped = fit(result, FIVE, "w")
    assert np.corrcoef(np.interp(scores, mapped["scores"], mapped["calibrated"]), gold)[0, 1] > 0.5
    figures = cross_fitted_effect(result)["figures"]
    assert figures["pearson"]["a"] < 0.1 and figures["rmse"]["a"] > np.std(gold)
