"""Agreement, differences, pairwise accuracy and calibration, against scipy, numpy, naive loops and hand arithmetic."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tract_trainer.errors import InputError
from tract_trainer.evaluation.calibration import calibration_error, reliability_curve
from tract_trainer.metrics import (
    FISHER,
    LINEAR,
    LOG,
    accuracy_difference,
    agreement,
    around,
    around_share,
    paired_difference,
    pairwise_accuracy,
)

NAMES = ("pearson", "spearman", "kendall", "rmse", "mae", "ccc")
ROUNDED = ("kendall_rounded", "qwk", "within_one")
SCALE = [1, 2, 3, 4, 5]

pytestmark = pytest.mark.filterwarnings("error")


def easy(n=200, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 6, n).astype(float)
    return gold + rng.normal(0, noise, n), gold


def test_each_figure_by_hand():
    # x = 1 2 4, y = 1 3 2: means 7/3 and 2; cov = (-4/3)(-1) + (-1/3)(1) + (5/3)(0) = 1; var 14/3 and 2.
    found = agreement([1, 2, 4], [1, 3, 2], n_resamples=0)
    assert found["pearson"] == pytest.approx(1 / math.sqrt(14 / 3 * 2))
    assert found["spearman"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert found["kendall"] == pytest.approx(1 / 3)  # 2 pairs agree, 1 does not
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3))
    assert found["mae"] == pytest.approx((0 + 1 + 2) / 3)
    assert found["ccc"] == pytest.approx(2 / (14 / 3 + 2 + 3 * (1 / 3) ** 2))  # sums over 3 rows for means: 3 cancels


def test_the_figures_are_numpys_and_scipys():
    predictions, gold = easy()
    found = agreement(predictions, gold, n_resamples=0)
    assert found["pearson"] == pytest.approx(np.corrcoef(predictions, gold)[0, 1], abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predictions, gold).statistic, abs=1e-9)
    assert found["kendall"] == pytest.approx(stats.kendalltau(predictions, gold, variant="b").statistic, abs=1e-9)
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(predictions - gold).mean()), abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(predictions - gold).mean(), abs=1e-9)
    assert (found["n"], found["unscored"]) == (200, 0)
    assert set(found) == {*NAMES, "n", "unscored"}


def test_the_values_of_the_scale_bring_in_the_figures_that_need_them():
    found = agreement(*easy(), values=SCALE, n_resamples=10)
    names = {*NAMES, *ROUNDED}
    assert set(found) == names | {f"{name}_ci" for name in names} | {f"{name}_worst" for name in names} | {
        "n",
        "unscored",
    }
    plain = agreement(*easy(), n_resamples=10)
    assert {key: found[key] for key in plain} == plain  # the same resamples, with or without a scale


def test_ties_count_as_in_tau_b():
    # x = 1 1 2 2, y = 1 2 2 3. Six pairs: (a,c) (a,d) (b,d) agree, (b,c) ties in y, (a,b) and (c,d) tie in x.
    # tau-b = 3 / sqrt((6 - 2) * (6 - 1)). Ranks 1.5 1.5 3.5 3.5 and 1 2.5 2.5 4: cov 4, var 4 and 4.5.
    found = agreement([1, 1, 2, 2], [1, 2, 2, 3], n_resamples=0)
    assert found["kendall"] == pytest.approx(3 / math.sqrt(20))
    assert found["spearman"] == pytest.approx(4 / math.sqrt(4 * 4.5) * 0.75)


def test_rounding_raises_tau_b_against_whole_gold_scores():
    # x = 1.1 1.2 2.1 2.2, y = 1 1 2 2: 4 pairs agree, 2 tie in y alone: 4 / sqrt(6 * 4). Rounded: 4 / sqrt(4 * 4).
    found = agreement([1.1, 1.2, 2.1, 2.2], [1, 1, 2, 2], values=[1, 2], n_resamples=0)
    assert found["kendall"] == pytest.approx(4 / math.sqrt(24))
    assert found["kendall_rounded"] == 1


def test_quadratic_weighted_kappa_by_hand():
    # Rounded: (1, 1) (2, 2) (3, 1) (3, 3). Observed squared distance 4 / 4 rows. By chance: predictions are 1 2 3 with
    # 1/4 1/4 1/2, gold with 1/2 1/4 1/4: 1/4 (1/4 + 4/4) + 1/4 (1/2 + 1/4) + 1/2 (4/2 + 1/4) = 1.625.
    found = agreement([1.2, 2.4, 2.6, 3.0], [1, 2, 1, 3], values=[1, 2, 3], n_resamples=0)
    assert found["qwk"] == pytest.approx(1 - 1 / 1.625)


def test_kappa_rounds_fractional_gold_scores_too_and_half_way_to_the_first_of_the_values():
    predictions, gold = [1, 2, 3, 2.5, 1.5], [1.3, 2.4, 2.7, 3, 1]
    up, down = ([1, 2, 3, 3, 2], [1, 2, 3, 3, 1]), ([1, 2, 3, 2, 1], [1, 2, 3, 3, 1])
    for values, rounded in ([3, 2, 1], up), ([1, 2, 3], down):
        found = agreement(predictions, gold, values=values, n_resamples=0)
        assert found["qwk"] == agreement(*rounded, values=values, n_resamples=0)["qwk"]


def test_one_step_is_from_a_value_to_the_next_whatever_the_gap():
    # Values 1 2 4 8. (4, 8): one step. (2, 8): two. (4, 1.5): half a step and one. (2, 5): a whole step and a quarter.
    # (4, 7): three quarters. (5.9, 3) is 4 when rounded: half a step.
    predictions, gold = [4, 2, 4, 2, 4, 5.9], [8, 8, 1.5, 5, 7, 3]
    assert agreement(predictions, gold, values=[1, 2, 4, 8], n_resamples=0)["within_one"] == pytest.approx(3 / 6)


def test_within_one_on_an_even_scale_is_a_distance_of_at_most_one():
    predictions, gold = [1, 2, 3.4, 4.6, 2], [2, 4, 4 + 1 / 3, 4, 3]  # rounded 1 2 3 5 2: off by 1, 2, 4/3, 1, 1
    assert agreement(predictions, gold, values=SCALE, n_resamples=0)["within_one"] == pytest.approx(3 / 5)
    tenths = [value / 10 for value in range(1, 11)]
    gold = [0.8, 0.1 * 3]  # 0.8 - 0.7 is more than 0.1, and 0.1 * 3 more than 0.3, in floating point
    assert agreement([0.7, 0.2], gold, values=tenths, n_resamples=0)["within_one"] == 1


@pytest.mark.parametrize(("predictions", "gold"), [([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [3, 3, 3]), ([2], [3])])
def test_correlations_of_a_constant_or_a_single_row_are_not_defined_and_warn_of_nothing(predictions, gold):
    found = agreement(predictions, gold, values=SCALE, n_resamples=200)
    for name in ("pearson", "spearman", "kendall", "kendall_rounded"):
        assert math.isnan(found[name])
        assert all(map(math.isnan, found[f"{name}_ci"]))
    assert found["mae"] == pytest.approx(np.abs(np.subtract(predictions, gold)).mean())
    assert found["ccc"] == found["qwk"] == 0  # no covariance, and scores that differ


def test_concordance_and_kappa_of_the_same_constant_are_not_defined():
    found = agreement([3, 3, 3], [3, 3, 3], values=SCALE, n_resamples=20)
    assert all(math.isnan(found[name]) and all(map(math.isnan, found[f"{name}_ci"])) for name in ("ccc", "qwk"))
    assert found["within_one"] == 1 and found["rmse"] == 0


def test_one_row_has_errors_but_no_interval_of_them():
    found = agreement([2.5], [3])
    assert (found["rmse"], found["mae"], found["n"]) == (0.5, 0.5, 1)
    assert all(map(math.isnan, (*found["rmse_ci"], *found["mae_ci"])))


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 0, 1, 2]])
def test_fewer_than_four_records_or_groups_have_no_interval(groups):
    """Two records always correlate perfectly, which would come out as certainty."""
    n = 3 if groups is None else 6
    found = agreement([1, 2, 4, 1, 3, 5][:n], [1, 3, 3, 2, 2, 5][:n], groups=groups, n_resamples=200)
    assert math.isfinite(found["pearson"]) and math.isfinite(found["rmse"])
    assert all(map(math.isnan, (*found["pearson_ci"], *found["rmse_ci"])))
    found = agreement([1, 2, 4, 1], [1, 3, 3, 2], n_resamples=200)
    assert -1 <= found["pearson_ci"][0] < found["pearson"] < found["pearson_ci"][1] <= 1


def test_records_of_a_single_group_say_nothing_of_others():
    a, b, gold = [1, 2, 3, 4, 5.0], [2, 1, 5, 3, 4.0], [1, 2, 3, 4, 4.0]
    assert math.isnan(paired_difference(a, b, gold, groups=[0] * 5)["p_value"])
    assert 0 < paired_difference(a, b, gold)["p_value"] <= 1


def test_without_any_prediction_everything_is_nan_and_all_is_unscored():
    found, nothing = agreement([math.nan, math.nan], [1, 2], n_resamples=200), agreement([], [], values=SCALE)
    assert (found["n"], found["unscored"]) == (2, 2)
    assert (nothing["n"], nothing["unscored"]) == (0, 0)
    for result in (found, nothing):
        assert all(math.isnan(result[name]) for name in NAMES)
        assert all(map(math.isnan, (*result["rmse_ci"], *result["pearson_ci"])))
    assert math.isnan(nothing["qwk"]) and math.isnan(nothing["mae_worst"])


def test_unscored_records_are_counted_and_count_in_no_figure():
    predictions, gold = easy()
    with_holes = predictions.copy()
    with_holes[[3, 50, 199]] = math.nan
    left = ~np.isnan(with_holes)
    found = agreement(with_holes, gold, values=SCALE, n_resamples=200)
    alone = agreement(predictions[left], gold[left], values=SCALE, n_resamples=200)
    assert (found["n"], found["unscored"]) == (200, 3)
    assert (alone["n"], alone["unscored"]) == (197, 0)
    for name in NAMES + ROUNDED:
        assert found[name] == alone[name]
        assert found[f"{name}_ci"] == alone[f"{name}_ci"]


def test_in_the_worst_case_the_unscored_get_the_end_of_the_scale_that_is_farther_from_gold():
    # Gold 4 2 3 of a scale from 1 to 5, given in any order: 1, 5 and, of two as far, 1. Errors 0 0 0 3 3 2.
    gold, values = [1, 5, 2, 4, 2, 3], [5, 3, 1, 2, 4]
    found = agreement([1, 5, 2, math.nan, math.nan, math.nan], gold, values=values, n_resamples=0)
    filled = agreement([1, 5, 2, 1, 5, 1], gold, values=values, n_resamples=0)
    assert found["mae"] == 0 and found["mae_worst"] == pytest.approx(8 / 6)
    for name in NAMES + ROUNDED:
        assert found[f"{name}_worst"] == filled[name] == filled[f"{name}_worst"]


def test_the_worst_case_of_no_prediction_at_all_is_defined():
    assert agreement([math.nan] * 2, [1, 5], values=SCALE)["pearson_worst"] == pytest.approx(-1)


def test_gold_scores_that_are_not_numbers_are_refused_with_their_place():
    message = r"^Gold scores must be finite numbers; number 1 is nan\. Leave such records out\.$"
    with pytest.raises(ValueError, match=message):
        agreement([1, 2, 3], [1, math.nan, math.inf])
    with pytest.raises(ValueError, match=r"number 0 is inf\."):
        agreement([1, 2], [math.inf, 1])
    with pytest.raises(ValueError, match=message):
        paired_difference([1, 2], [1, 2], [1, math.nan])
    with pytest.raises(ValueError, match=message):
        calibration_error([[1, 0], [0, 1]], [1, math.nan], [1, 2])


@pytest.mark.parametrize(
    ("predictions", "gold", "shapes"),
    [([1, 2], [1, 2, 3], r"\(2,\) and \(3,\)"), ([[1], [2]], [[1], [2]], r"\(2, 1\) and \(2, 1\)")],
)
def test_scores_that_do_not_pair_up_are_refused(predictions, gold, shapes):
    with pytest.raises(ValueError, match=rf"^Expected one gold score per prediction, got shapes {shapes}\.$"):
        agreement(predictions, gold, n_resamples=200)
    with pytest.raises(ValueError, match=rf"^Expected one gold score per prediction, got shapes {shapes}\.$"):
        paired_difference(gold, predictions, gold) if np.ndim(gold) == 1 else paired_difference(gold, gold, gold)
    with pytest.raises(ValueError, match=rf"^Expected one second score per first score, got shapes {shapes}\.$"):
        pairwise_accuracy(predictions, gold)


@pytest.mark.parametrize("values", [[], [3], [1, 2, 2], [1, math.nan], [[1, 2], [3, 4]]])
def test_values_that_are_no_scale_are_refused(values):
    message = r"^Expected values of a scale, different numbers as in \[1, 2, 3, 4, 5\], got \["
    with pytest.raises(ValueError, match=message):
        agreement([1, 2], [1, 2], values=values)


def test_the_intervals_hold_the_figures_and_shrink_with_n():
    small, large = (agreement(*easy(n), values=SCALE, n_resamples=500) for n in (100, 1600))
    for name in NAMES + ROUNDED:
        for found in (small, large):
            low, high = found[f"{name}_ci"]
            assert low < found[name] < high
        width = [high - low for low, high in (small[f"{name}_ci"], large[f"{name}_ci"])]
        assert 2.5 < width[0] / width[1] < 6  # sqrt(16) = 4


def test_an_interval_is_as_wide_as_theory_says():
    # The error of the mean of |x - y| is s / sqrt(n); 95 % of a normal lie within 1.96 of it.
    predictions, gold = easy(1000)
    errors = np.abs(predictions - gold)
    low, high = agreement(predictions, gold)["mae_ci"]
    assert (high - low) / 2 == pytest.approx(1.96 * errors.std() / math.sqrt(1000), rel=0.1)


def test_the_intervals_are_of_the_spread_of_the_figures_of_resampled_rows():
    predictions, gold = easy(40)
    rng = np.random.default_rng(7)
    rows = [rng.integers(40, size=40) for _ in range(300)]
    taus = [stats.kendalltau(predictions[drawn], gold[drawn]).statistic for drawn in rows]
    errors = [np.abs(predictions - gold)[drawn].mean() for drawn in rows]
    found = agreement(predictions, gold, n_resamples=300, confidence_level=0.8, seed=7)
    assert found["kendall_ci"] == around(found["kendall"], [np.array(taus)], 40, 0.8, FISHER)
    assert found["mae_ci"] == pytest.approx(around(found["mae"], [np.array(errors)], 40, 0.8, LOG), abs=1e-9)


def test_a_share_of_one_has_an_interval_of_some_width():
    low, high = agreement([1, 2, 3, 4] * 10, [1, 2, 3, 4] * 10, values=SCALE)["within_one_ci"]
    assert (low, high) == pytest.approx((40 / (40 + 1.959964**2), 1))
    assert pairwise_accuracy([2] * 40, [1] * 40)["accuracy_ci"] == pytest.approx((low, high))


def test_a_higher_confidence_gives_a_wider_interval():
    predictions, gold = easy()
    narrow, wide = (
        agreement(predictions, gold, confidence_level=level, n_resamples=200)["pearson_ci"] for level in (0.5, 0.99)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_seed_fixes_the_intervals_and_nothing_else_moves_them():
    predictions, gold = easy()
    np.random.seed(0)
    first = agreement(predictions, gold, n_resamples=200)
    np.random.seed(1)
    assert agreement(predictions, gold, n_resamples=200) == first
    other = agreement(predictions, gold, seed=43, n_resamples=200)
    assert other["pearson"] == first["pearson"]
    assert other["pearson_ci"] != first["pearson_ci"]


def test_the_order_of_the_records_moves_no_figure():
    predictions, gold = easy()
    predictions[5] = math.nan
    order = np.random.default_rng(1).permutation(len(gold))
    found, permuted = (
        agreement(predictions, gold, n_resamples=200),
        agreement(predictions[order], gold[order], n_resamples=200),
    )
    for name in (*NAMES, "n", "unscored"):
        assert permuted[name] == pytest.approx(found[name], rel=1e-12)
    for name in NAMES:  # other resamples of the same records
        assert permuted[f"{name}_ci"] == pytest.approx(found[f"{name}_ci"], abs=0.03)


def test_the_results_are_plain_python_numbers():
    predictions, gold = easy(20)
    results = [
        agreement(predictions, gold, values=SCALE),
        paired_difference(predictions, gold, gold, n_permutations=50),
        pairwise_accuracy(predictions, gold),
        calibration_error(np.full((20, 5), 0.2), gold, SCALE),
    ]
    assert json.loads(json.dumps(results))[0]["n"] == 20


def test_a_difference_is_that_of_the_figures_on_the_records_that_both_scored():
    (a, gold), (b, _) = easy(80, seed=1), easy(80, seed=2)
    b = gold + 0.5 * (b - b.mean())
    a[[0, 5]], b[[5, 9, 11]] = math.nan, math.nan
    both = np.isfinite(a) & np.isfinite(b)
    for figure in NAMES + ROUNDED:
        found = paired_difference(a, b, gold, figure=figure, values=SCALE, n_resamples=300, n_permutations=20)
        alone = [agreement(side[both], gold[both], values=SCALE, n_resamples=0)[figure] for side in (a, b)]
        assert [found["a"], found["b"]] == pytest.approx(alone, abs=1e-9)
        assert found["difference"] == found["a"] - found["b"]
        assert found["difference_ci"][0] < found["difference"] < found["difference_ci"][1]
        assert (found["n"], found["unscored"]) == (80, 4)


def test_the_interval_of_a_difference_is_of_the_same_rows_of_both_judges():
    (a, gold), (b, _) = easy(40, seed=1), easy(40, seed=2)
    rng = np.random.default_rng(3)
    rows = [rng.integers(40, size=40) for _ in range(200)]
    naive = [np.corrcoef(a[drawn], gold[drawn])[0, 1] - np.corrcoef(b[drawn], gold[drawn])[0, 1] for drawn in rows]
    found = paired_difference(a, b, gold, n_resamples=200, n_permutations=0, seed=3)
    assert found["difference_ci"] == pytest.approx(around(found["difference"], [np.array(naive)], 40, 0.95, LINEAR))


def test_the_interval_of_a_difference_of_shares_counts_the_records_in_which_they_differ():
    # Within a step of gold: both judges in 30 records, a alone in 6, b alone in 2, neither in 2.
    gold = [1] * 40
    a, b = [1] * 36 + [5] * 4, [1] * 30 + [5] * 6 + [1] * 2 + [5] * 2
    found = paired_difference(a, b, gold, figure="within_one", values=SCALE, n_permutations=99)
    expected = around_share(np.repeat([0.0, 1.0, -1.0], [32, 6, 2]), -1, 1, 0.95)
    assert found["difference"] == pytest.approx(0.1) and found["difference_ci"] == pytest.approx(expected)


def test_the_difference_of_accuracies_is_of_the_pairs_that_both_scored():
    a, b = [1, 1, 0.5, 0, math.nan, 1], [1, 0, 0, 0.5, 1, math.nan]
    found = accuracy_difference(a, b)
    assert (found["a"], found["b"], found["n"], found["unscored"]) == (2.5 / 4, 1.5 / 4, 6, 2)
    assert found["difference_ci"] == around_share(np.array([0, 1, 0.5, -0.5]), -1, 1, 0.95)
    assert found["p_value"] > 0.1


def test_the_p_value_comes_near_to_that_of_all_swaps():
    rng = np.random.default_rng(0)
    gold = np.arange(1.0, 10.0)
    a, b = gold + rng.normal(0, 1, 9), gold + rng.normal(0, 3, 9)

    def difference(swap):
        first, second = np.where(swap, b, a), np.where(swap, a, b)
        return np.abs(first - gold).mean() - np.abs(second - gold).mean()

    swaps = [[number >> bit & 1 == 1 for bit in range(9)] for number in range(2**9)]
    exact = np.mean([abs(difference(swap)) >= abs(difference(swaps[0])) - 1e-12 for swap in swaps])
    found = paired_difference(a, b, gold, figure="mae", n_resamples=0)
    assert 0.01 < exact < 0.2
    assert found["p_value"] == pytest.approx(exact, abs=0.01)  # 10,000 draws: deviation at most .004
    assert all(map(math.isnan, found["difference_ci"]))


def test_the_same_judge_twice_does_not_differ_and_a_far_better_one_does():
    predictions, gold = easy(100)
    same = paired_difference(predictions, predictions, gold, n_resamples=50, n_permutations=50)
    assert (same["difference"], same["difference_ci"], same["p_value"]) == (0, (0, 0), 1)
    better = paired_difference(gold + 0.1 * (predictions - gold), -predictions, gold, n_resamples=50, n_permutations=99)
    assert better["p_value"] == 1 / 100  # the smallest that 99 permutations can give
    assert better["difference_ci"][0] > 1


def test_judges_change_places():
    (a, gold), (b, _) = easy(60, seed=1), easy(60, seed=2)
    one, other = (paired_difference(*pair, gold, n_permutations=500) for pair in ((a, b), (b, a)))
    assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
    assert one["difference_ci"] == pytest.approx((-other["difference_ci"][1], -other["difference_ci"][0]), abs=1e-9)
    assert one["p_value"] == other["p_value"]


def test_a_difference_that_is_not_defined_is_nan():
    constant = paired_difference([3, 3, 3], [1, 2, 3], [1, 2, 3], n_permutations=20)
    assert constant["b"] == 1
    results = [constant, *(paired_difference(*[row] * 2, [1.0] * len(row)) for row in ([], [2.0], [math.nan] * 2))]
    for found in results:
        assert all(math.isnan(found[name]) for name in ("a", "difference", "p_value"))
        assert all(map(math.isnan, found["difference_ci"]))
    assert [found["unscored"] for found in results] == [0, 0, 0, 2]


def test_a_figure_that_is_not_known_or_lacks_the_scale_is_refused():
    with pytest.raises(
        ValueError, match=r"^figure 'r2' is not known; known are \['pearson', .*'ccc', .*'within_one'\]\.$"
    ):
        paired_difference([1], [1], [1], figure="r2")
    message = r"^figure 'qwk' rounds to the scale\. Give its values, e\.g\. values=\[1, 2, 3, 4, 5\]\.$"
    with pytest.raises(ValueError, match=message):
        paired_difference([1], [1], [1], figure="qwk")


def test_pairwise_accuracy_by_hand():
    # Right, wrong, tied, right, and two without a score: 2.5 of 4; 2.5 of 6 if these are wrong.
    found = pairwise_accuracy([3, 1, 2, 5, math.nan, 4], [1, 3, 2, 4.9, 1, math.nan])
    assert found["accuracy"] == 2.5 / 4
    assert found["accuracy_worst"] == pytest.approx(2.5 / 6)
    assert (found["n"], found["ties"], found["unscored"]) == (6, 1, 2)
    assert 0 <= found["accuracy_ci"][0] < 2.5 / 4 < found["accuracy_ci"][1] <= 1


def test_the_interval_of_pairwise_accuracy_is_as_wide_as_theory_says():
    # 700 of 1,000 right: deviation sqrt(.7 * .3 / 1000) = .0145.
    low, high = pairwise_accuracy([1.0] * 1000, [0.0] * 700 + [2.0] * 300)["accuracy_ci"]
    assert (high - low) / 2 == pytest.approx(1.96 * 0.0145, rel=0.1)


def test_pairwise_accuracy_of_nothing_is_nan():
    nothing, unscored = pairwise_accuracy([], []), pairwise_accuracy([math.nan], [1])
    assert math.isnan(nothing["accuracy"]) and math.isnan(nothing["accuracy_worst"])
    assert math.isnan(unscored["accuracy"]) and unscored["accuracy_worst"] == 0
    assert all(map(math.isnan, (*nothing["accuracy_ci"], *unscored["accuracy_ci"])))


def naive_calibration_error(probs, gold, values, n_bins):
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
        expected = naive_calibration_error(probs, gold, values, n_bins)
        assert calibration_error(probs, gold, values, n_bins) == pytest.approx(expected, abs=1e-9)


def test_the_calibration_error_by_hand():
    # Values 1 2 3, two bins. P(<= 1) = .2 .4 .9 and gold <= 1 is 0 1 1: bin 1 means .3 and 1/2, bin 2 .9 and 1:
    # 2/3 * .2 + 1/3 * .1 = 1/6. P(<= 2) = .4 .8 1 and gold <= 2 is 0 1 1 (2.5 is not): bin 1 .4 and 0, bin 2 .9 and 1:
    # 1/3 * .4 + 2/3 * .1 = 1/5. Their mean is 11/60.
    probs, gold = [[2, 2, 6], [0.4, 0.4, 0.2], [0.9, 0.1, 0.0]], [2.5, 1, 1]
    curve = reliability_curve(probs, gold, [1, 2, 3], n_bins=2)
    np.testing.assert_allclose(curve.predicted, [[0.3, 0.9], [0.4, 0.9]], atol=1e-12)
    np.testing.assert_allclose(curve.observed, [[0.5, 1], [0, 1]], atol=1e-12)
    np.testing.assert_array_equal(curve.counts, [[2, 1], [1, 2]])
    np.testing.assert_array_equal(curve.thresholds, [1, 2])
    assert calibration_error(probs, gold, [1, 2, 3], n_bins=2) == pytest.approx(11 / 60, abs=1e-12)


def test_a_calibrated_judge_has_nearly_no_error_and_one_that_is_sure_and_wrong_the_most():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 50_000)
    gold = [rng.choice([1, 2, 3], p=row) for row in probs[:20_000]]
    assert calibration_error(probs[:20_000], gold, [1, 2, 3]) < 0.01
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
    assert np.isnan(reliability_curve([], [], [1, 2, 3]).predicted).all()
    curve = reliability_curve([[0.25, 0.75]], [1], [1, 2], n_bins=4)
    np.testing.assert_array_equal(curve.observed, [[math.nan, 1, math.nan, math.nan]])


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"^Expected a row for each gold score, shape \(2, 3\), got shape \(2, 2\)\.$"):
        calibration_error([[0.5, 0.5]] * 2, [1, 2], [1, 2, 3])
    for row in ([-0.1, 1.1], [0, 0], [math.inf, 0]):
        message = r"^Expected probabilities or NaN \(unscored\), got \[.*\] in row 1\.$"
        with pytest.raises(ValueError, match=message):
            calibration_error([[0.5, 0.5], row], [1, 2], [1, 2])


def several(n_groups=30, size=4):
    """Records of which the ones of a group are the same."""
    predictions, gold = easy(n_groups)
    return np.repeat(predictions, size), np.repeat(gold, size), np.repeat([f"q{i:02}" for i in range(n_groups)], size)


def test_the_same_record_four_times_in_a_group_tells_no_more_than_once():
    predictions, gold, groups = several()
    once = agreement(predictions[::4], gold[::4], values=SCALE)
    found = agreement(predictions, gold, values=SCALE, groups=groups)
    for name in (*NAMES, *ROUNDED):
        assert found[f"{name}_ci"] == pytest.approx(once[f"{name}_ci"], abs=1e-9), name
    naive = agreement(predictions, gold, values=SCALE)
    assert np.ptp(naive["pearson_ci"]) < 0.7 * np.ptp(found["pearson_ci"])
    shuffled = np.random.default_rng(1).permutation(len(gold))
    again = agreement(predictions[shuffled], gold[shuffled], values=SCALE, groups=groups[shuffled])
    assert again["rmse_ci"] == pytest.approx(found["rmse_ci"], abs=1e-9)


def test_a_group_is_drawn_and_swapped_together_in_a_difference():
    predictions, gold, groups = several()
    other = np.repeat(easy(30, seed=1, noise=1.5)[0], 4) - np.repeat(easy(30, seed=1)[1], 4) + gold
    settings = {"values": SCALE, "n_resamples": 200, "n_permutations": 500}
    for figure in ("pearson", "mae", "within_one"):
        once = paired_difference(predictions[::4], other[::4], gold[::4], figure=figure, **settings)
        found = paired_difference(predictions, other, gold, figure=figure, groups=groups, **settings)
        assert found["p_value"] == once["p_value"]
        assert found["difference_ci"] == pytest.approx(once["difference_ci"], abs=1e-9)


def test_records_alone_in_their_groups_are_as_without_groups():
    predictions, gold = easy(40)
    predictions[3] = math.nan
    plain = agreement(predictions, gold, values=SCALE, n_resamples=50)
    assert agreement(predictions, gold, values=SCALE, n_resamples=50, groups=range(40)) == plain


def test_groups_that_all_agree_count_as_one_record_each():
    low, high = agreement([1.0] * 80, [1.0] * 80, values=SCALE, groups=np.repeat(range(20), 4))["within_one_ci"]
    assert (low, high) == around_share(np.ones(20), 0, 1, 0.95)


def test_what_is_no_group_or_level_is_an_error():
    with pytest.raises(InputError, match="Expected a group for each of 3 records, got 2"):
        agreement([1, 2, 3], [1, 2, 3], groups=[1, 2])
    for figures in (lambda: agreement([1, 2, 3], [1, 3, 2], confidence_level=95),
                    lambda: pairwise_accuracy([1, 2], [2, 1], confidence_level=0)):  # fmt: skip
        with pytest.raises(InputError, match="confidence_level must be between 0 and 1"):
            figures()
    assert agreement([1, 2, 4, 4], [1, 3, 4, 4], confidence_level=0.99999999)["rmse_ci"][1] > 1e10  # four tell little
