"""Agreement, intervals, differences and pairwise accuracy, against SciPy, NumPy, naive loops and hand arithmetic."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from tract_trainer.errors import InputError
from tract_trainer.metrics import (
    FIGURES,
    MAX_FOLDS,
    PLAIN,
    ROUNDED,
    agreement,
    interval,
    mean_share_interval,
    paired_difference,
    share_interval,
    standard_errors,
)

SCALE = [1, 2, 3, 4, 5]
NAN = math.nan

pytestmark = pytest.mark.filterwarnings("error")


def easy(n=200, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 6, n).astype(float)
    return gold + rng.normal(0, noise, n), gold


def figures(predictions, gold, values=None):
    return agreement(predictions, gold, values=values, intervals=False)


# Figures


def test_each_figure_by_hand():
    # x = 1 2 4, y = 1 3 2: means 7/3 and 2; cov = (-4/3)(-1) + (-1/3)(1) + (5/3)(0) = 1; var 14/3 and 2.
    found = figures([1, 2, 4], [1, 3, 2])
    assert found["pearson"] == pytest.approx(1 / math.sqrt(14 / 3 * 2))
    assert found["spearman"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert found["kendall"] == pytest.approx(1 / 3)  # 2 pairs agree, 1 does not
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3))
    assert found["mae"] == pytest.approx((0 + 1 + 2) / 3)
    assert found["ccc"] == pytest.approx(2 / (14 / 3 + 2 + 3 * (1 / 3) ** 2))  # sums over 3 rows for means: 3 cancels


def naive_nearest(scores, values):
    return np.array([min(values, key=lambda value: abs(value - score)) for score in scores])


def naive_kappa(x, y, values):
    """1 - observed / expected disagreement, from the table of counts."""
    observed = expected = 0.0
    for v, w in itertools.product(values, values):
        observed += (v - w) ** 2 * np.mean((x == v) & (y == w))
        expected += (v - w) ** 2 * np.mean(x == v) * np.mean(y == w)
    return 1 - observed / expected if expected else NAN


def naive_steps(low, high, values):
    """Walks up the scale from the lower score to the higher one and adds up the fractions of steps."""
    pairs = itertools.pairwise(sorted(values))
    return sum(max(0.0, min(high, after) - max(low, before)) / (after - before) for before, after in pairs)


def naive(x, y, values):
    """Every figure by SciPy or by its definition."""
    rounded, gold = naive_nearest(x, values), naive_nearest(y, values)
    steps = [naive_steps(*sorted(pair), values) for pair in zip(rounded, y, strict=True)]
    below = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    constant = [np.ptp(side) == 0 for side in (x, y, rounded)]
    found = {
        "rmse": np.sqrt(np.mean((x - y) ** 2)),
        "mae": np.mean(np.abs(x - y)),
        "ccc": 2 * np.mean((x - x.mean()) * (y - y.mean())) / below if below else NAN,
        "qwk": naive_kappa(rounded, gold, values),
        "within_one": np.mean(np.array(steps) < 1 + 1e-9),
        "kendall_rounded": NAN if constant[1] or constant[2] else stats.kendalltau(rounded, y).statistic,
    }
    correlations = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
    undefined = constant[0] or constant[1]
    return found | {name: NAN if undefined else of(x, y).statistic for name, of in correlations.items()}


def scores_of(kind, n):
    """Predictions, gold scores and the scale of a kind of judge."""
    rng = np.random.default_rng(n)
    gold = rng.integers(3, 16, n) / 3
    noise = gold + rng.normal(0, 0.8, n)
    return {
        "expected scores, fractional gold": (noise, gold, [1, 2, 3, 4, 5]),
        "decoded labels, integer gold": (np.round(noise), np.round(gold), [1, 2, 3, 4, 5]),
        "no ties": (noise, rng.normal(3, 1, n), [5, 4, 3, 2, 1]),
        "two values": (rng.integers(0, 2, n) * 1.0, rng.integers(0, 2, n) * 1.0, [0, 1]),
        "unequal gaps": (np.exp2(noise / 2), np.exp2(gold / 2), [1, 2, 4, 8]),
        "opposite": (-gold, gold, [-5, -3, 1, 5]),
        "far from zero": (1e6 + noise, 1e6 + gold, [1e6 + 1, 1e6 + 3, 1e6 + 5]),
    }[kind]


KINDS = ["expected scores, fractional gold", "decoded labels, integer gold", "no ties", "two values", "unequal gaps",
         "opposite", "far from zero"]  # fmt: skip


@pytest.mark.parametrize("n", [2, 7, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_scipy_and_of_naive_loops(kind, n):
    x, y, values = scores_of(kind, n)
    found, expected = figures(x, y, values), naive(x, y, values)
    assert set(expected) == set(FIGURES)
    for name in FIGURES:
        assert found[name] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


def test_the_values_of_the_scale_add_the_figures_that_need_them():
    found = agreement(*easy(40), values=SCALE)
    expected = {f"{name}{part}" for name in FIGURES for part in ("", "_ci", "_worst")} | {"n", "unscored"}
    assert set(found) == expected
    plain = agreement(*easy(40))
    assert set(plain) == {f"{name}{part}" for name in PLAIN for part in ("", "_ci")} | {"n", "unscored"}
    assert {key: found[key] for key in plain} == plain
    assert set(figures(*easy(40))) == {*PLAIN, "n", "unscored"}


def test_ties_count_as_in_tau_b():
    # x = 1 1 2 2, y = 1 2 2 3. Six pairs: (a,c) (a,d) (b,d) agree, (b,c) ties in y, (a,b) and (c,d) tie in x.
    # tau-b = 3 / sqrt((6 - 2) * (6 - 1)). Ranks 1.5 1.5 3.5 3.5 and 1 2.5 2.5 4: cov 4, var 4 and 4.5.
    found = figures([1, 1, 2, 2], [1, 2, 2, 3])
    assert found["kendall"] == pytest.approx(3 / math.sqrt(20))
    assert found["spearman"] == pytest.approx(4 / math.sqrt(4 * 4.5) * 0.75)


def test_rounding_raises_tau_b_against_integer_gold_scores():
    # x = 1.1 1.2 2.1 2.2, y = 1 1 2 2: 4 pairs agree, 2 tie in y only: 4 / sqrt(6 * 4). Rounded: 4 / sqrt(4 * 4).
    found = figures([1.1, 1.2, 2.1, 2.2], [1, 1, 2, 2], [1, 2])
    assert found["kendall"] == pytest.approx(4 / math.sqrt(24))
    assert found["kendall_rounded"] == 1


def test_quadratic_weighted_kappa_by_hand():
    # Rounded: (1, 1) (2, 2) (3, 1) (3, 3). Observed squared distance 4 / 4 rows. By chance: predictions are 1 2 3 with
    # 1/4 1/4 1/2, gold with 1/2 1/4 1/4: 1/4 (1/4 + 4/4) + 1/4 (1/2 + 1/4) + 1/2 (4/2 + 1/4) = 1.625.
    found = figures([1.2, 2.4, 2.6, 3.0], [1, 2, 1, 3], [1, 2, 3])
    assert found["qwk"] == pytest.approx(1 - 1 / 1.625)


def test_kappa_rounds_fractional_gold_scores_too_and_half_way_to_the_first_of_the_values():
    predictions, gold = [1, 2, 3, 2.5, 1.5], [1.3, 2.4, 2.7, 3, 1]
    up, down = ([1, 2, 3, 3, 2], [1, 2, 3, 3, 1]), ([1, 2, 3, 2, 1], [1, 2, 3, 3, 1])
    for values, rounded in ([3, 2, 1], up), ([1, 2, 3], down):
        assert figures(predictions, gold, values)["qwk"] == figures(*rounded, values)["qwk"]


def test_one_step_is_from_a_value_to_the_next_whatever_the_gap():
    # Values 1 2 4 8. (4, 8): one step. (2, 8): two. (4, 1.5): half a step and one. (2, 5): a whole step and a quarter.
    # (4, 7): three quarters. (5.9, 3) is 4 when rounded: half a step.
    predictions, gold = [4, 2, 4, 2, 4, 5.9], [8, 8, 1.5, 5, 7, 3]
    assert figures(predictions, gold, [1, 2, 4, 8])["within_one"] == pytest.approx(3 / 6)


def test_within_one_on_an_even_scale_is_a_distance_of_at_most_one():
    predictions, gold = [1, 2, 3.4, 4.6, 2], [2, 4, 4 + 1 / 3, 4, 3]  # rounded 1 2 3 5 2: off by 1, 2, 4/3, 1, 1
    assert figures(predictions, gold, SCALE)["within_one"] == pytest.approx(3 / 5)
    tenths = [value / 10 for value in range(1, 11)]
    gold = [0.8, 0.1 * 3]  # 0.8 - 0.7 is more than 0.1, and 0.1 * 3 more than 0.3, in floating point
    assert figures([0.7, 0.2], gold, tenths)["within_one"] == 1


@pytest.mark.parametrize(("predictions", "gold"), [([3] * 5, SCALE), (SCALE, [3] * 5), ([2], [3])])
def test_correlations_with_constant_scores_or_of_one_record_are_undefined_without_a_warning(predictions, gold):
    found = agreement(predictions, gold, values=SCALE)
    for name in ("pearson", "spearman", "kendall", "kendall_rounded"):
        assert math.isnan(found[name]) and all(map(math.isnan, found[f"{name}_ci"]))
    assert found["mae"] == pytest.approx(np.abs(np.subtract(predictions, gold)).mean())
    assert found["ccc"] == found["qwk"] == 0  # no covariance, and scores that differ


def test_equal_scores_whose_sum_rounds_are_constant():
    assert math.isnan(figures([0.1] * 7, [0.3, 0.1, 0.7, 0.3, 0.1, 0.7, 0.9])["pearson"])


def test_concordance_and_kappa_of_the_same_constant_are_undefined():
    found = agreement([3] * 4, [3] * 4, values=SCALE)
    assert all(math.isnan(found[name]) and all(map(math.isnan, found[f"{name}_ci"])) for name in ("ccc", "qwk"))
    assert found["within_one"] == 1 and found["rmse"] == 0


def test_without_any_prediction_everything_is_nan_and_all_is_unscored():
    found, nothing = agreement([NAN, NAN], [1, 2]), agreement([], [], values=SCALE)
    assert (found["n"], found["unscored"]) == (2, 2)
    assert (nothing["n"], nothing["unscored"]) == (0, 0)
    for result in (found, nothing):
        assert all(math.isnan(result[name]) and all(map(math.isnan, result[f"{name}_ci"])) for name in PLAIN)
    assert all(math.isnan(nothing[f"{name}_worst"]) and all(map(math.isnan, nothing[f"{name}_ci"])) for name in ROUNDED)


def test_unscored_records_are_counted_and_left_out():
    predictions, gold = easy(80)
    with_holes = predictions.copy()
    with_holes[[3, 50, 79]] = NAN
    left = ~np.isnan(with_holes)
    found = agreement(with_holes, gold, values=SCALE)
    expected = agreement(predictions[left], gold[left], values=SCALE)
    assert (found["n"], found["unscored"], expected["n"], expected["unscored"]) == (80, 3, 77, 0)
    assert all(found[f"{name}{part}"] == expected[f"{name}{part}"] for name in FIGURES for part in ("", "_ci"))


def test_in_the_worst_case_the_unscored_get_the_end_of_the_scale_that_is_farther_from_gold():
    # Gold 4 2 3 of a scale from 1 to 5, given in any order: 1, 5 and, of two as far, 1. Errors 0 0 0 3 3 2.
    gold, values = [1, 5, 2, 4, 2, 3], [5, 3, 1, 2, 4]
    found = figures([1, 5, 2, NAN, NAN, NAN], gold, values)
    filled = figures([1, 5, 2, 1, 5, 1], gold, values)
    assert found["mae"] == 0 and found["mae_worst"] == pytest.approx(8 / 6)
    assert all(found[f"{name}_worst"] == filled[name] == filled[f"{name}_worst"] for name in FIGURES)
    assert agreement([NAN] * 2, [1, 5], values=SCALE)["pearson_worst"] == pytest.approx(-1)


def test_what_cannot_be_compared_is_refused():
    message = r"^Gold scores must be finite numbers; number 1 is nan\. Leave such records out\.$"
    with pytest.raises(InputError, match=message):
        agreement([1, 2, 3], [1, NAN, math.inf])
    with pytest.raises(InputError, match=message):
        paired_difference([1, 2], [1, 2], [1, NAN])
    shapes = r"got shapes \(2,\) and \(3,\)\.$"
    with pytest.raises(InputError, match=rf"^Expected one gold score per prediction, {shapes}"):
        agreement([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match=rf"^Expected one gold score per prediction, {shapes}"):
        paired_difference([1, 2, 3], [1, 2], [1, 2, 3])
    for values in ([], [3], [1, 2, 2], [1, NAN], [[1, 2], [3, 4]]):
        with pytest.raises(InputError, match=r"^Expected values of a scale, different numbers as in \[1, 2, 3, 4, 5\]"):
            agreement([1, 2], [1, 2], values=values)
    with pytest.raises(InputError, match=r"^Expected a group for each of 3 records, got 2\.$"):
        agreement([1, 2, 3], [1, 2, 3], groups=[1, 2])
    with pytest.raises(InputError, match=r"^figure 'r2' is not known; known are \['pearson', .*'ccc', .*'within_one'"):
        paired_difference([1], [1], [1], figure="r2")
    with pytest.raises(InputError, match=r"^figure 'qwk' rounds to the scale\. Give its values, e\.g\. values=\[1, 2"):
        paired_difference([1], [1], [1], figure="qwk")


# Intervals


def test_the_standard_error_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(0).normal(size=60)
    (error,), folds = standard_errors(lambda kept: [values[kept].mean()], np.arange(60))
    assert folds == 60 and error == pytest.approx(stats.sem(values), rel=1e-9)
    groups = np.repeat(np.arange(15), 4)  # of equal size: that of the means of the groups
    (error,), folds = standard_errors(lambda kept: [values[kept].mean()], groups)
    assert folds == 15 and error == pytest.approx(stats.sem(values.reshape(15, 4).mean(1)), rel=1e-9)


def test_many_groups_are_left_out_several_at_a_time_and_in_the_same_way_every_time():
    values = np.sort(np.random.default_rng(0).normal(size=5000))  # every 200th of these would have nearly the same mean
    sizes = []

    def mean(kept):
        sizes.append(5000 - kept.sum())
        return [values[kept].mean()]

    (error,), folds = standard_errors(mean, np.arange(5000))
    assert folds == MAX_FOLDS and set(sizes) == {5000 // MAX_FOLDS}
    assert error == pytest.approx(stats.sem(values), rel=0.15)  # of 200 folds, a deviation of 5 %
    np.random.seed(1)
    assert standard_errors(mean, np.arange(5000))[0] == error


def test_an_interval_by_hand():
    reach = 2.7764451 * 0.08  # t of 4 degrees of freedom, 95 %
    assert interval(0.6, 0.08, 5) == pytest.approx((0.6 - reach, 0.6 + reach))
    z = math.atanh(0.6)  # its slope is 1 / (1 - .36)
    expected = math.tanh(z - reach / 0.64), math.tanh(z + reach / 0.64)
    assert interval(0.6, 0.08, 5, "kendall") == pytest.approx(expected)
    expected = 0.6 * math.exp(-reach / 0.6), 0.6 * math.exp(reach / 0.6)
    assert interval(0.6, 0.08, 5, "rmse") == pytest.approx(expected)


def test_the_interval_of_the_mean_error_is_as_wide_as_theory_says():
    # The standard error of the mean of |x - y| is s / sqrt(n); on the logarithmic axis divided by the mean.
    predictions, gold = easy(150)
    errors = np.abs(predictions - gold)
    reach = stats.t.ppf(0.975, 149) * stats.sem(errors) / errors.mean()
    expected = errors.mean() * math.exp(-reach), errors.mean() * math.exp(reach)
    assert agreement(predictions, gold)["mae_ci"] == pytest.approx(expected)


def test_the_intervals_hold_the_figures_and_shrink_with_n():
    small, large = (agreement(*easy(n), values=SCALE) for n in (100, 1600))
    for name in FIGURES:
        for found in (small, large):
            low, high = found[f"{name}_ci"]
            assert low < found[name] < high
        width = [high - low for low, high in (small[f"{name}_ci"], large[f"{name}_ci"])]
        assert 2.5 < width[0] / width[1] < 6  # sqrt(16) = 4


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 0, 1, 2]])
def test_fewer_than_four_records_or_groups_have_no_interval(groups):
    n = 3 if groups is None else 6
    found = agreement([1, 2, 4, 1, 3, 5][:n], [1, 3, 3, 2, 2, 5][:n], values=SCALE, groups=groups)
    assert math.isfinite(found["pearson"]) and math.isfinite(found["rmse"])
    assert all(map(math.isnan, (*found["pearson_ci"], *found["rmse_ci"])))
    assert math.isnan(found["within_one_ci"][0]) == (groups is not None)  # Wilson's is of any number of records
    found = agreement([1, 2, 4, 1], [1, 3, 3, 2])
    assert -1 <= found["pearson_ci"][0] < found["pearson"] < found["pearson_ci"][1] <= 1


def test_a_figure_that_hangs_on_one_record_has_no_interval():
    gold = [1.0] + [3.0] * 19  # without the first, a correlation is undefined
    found = agreement(np.linspace(1, 5, 20), gold)
    assert math.isfinite(found["pearson"]) and all(map(math.isnan, found["pearson_ci"]))
    assert all(map(math.isfinite, found["rmse_ci"]))


def test_without_any_spread_there_is_no_interval_but_of_shares():
    found = agreement(SCALE * 8, SCALE * 8, values=SCALE)
    assert found["pearson"] == pytest.approx(1) and found["rmse"] == 0
    assert all(math.isnan(bound) for name in FIGURES if name != "within_one" for bound in found[f"{name}_ci"])
    assert found["within_one_ci"] == pytest.approx((40 / (40 + 1.959964**2), 1))


def test_one_wrong_label_of_many_gives_a_wide_interval_of_the_error():
    low, high = agreement([*SCALE * 20, 2], [*SCALE * 20, 3])["rmse_ci"]
    assert 0 < low < 0.03 and 0.4 < high < 1.5


def test_the_order_of_the_records_moves_nothing_and_the_results_are_plain_numbers():
    predictions, gold = easy(100)
    predictions[5] = NAN
    order = np.random.default_rng(1).permutation(100)
    found = agreement(predictions, gold, values=SCALE)
    again = agreement(predictions[order], gold[order], values=SCALE)
    assert all(again[key] == pytest.approx(found[key], rel=1e-9) for key in found)
    assert json.loads(json.dumps([found, paired_difference(gold, predictions, gold)]))


def repeated(n_groups=30, size=4):
    """Groups of `size` equal records."""
    predictions, gold = easy(n_groups)
    return np.repeat(predictions, size), np.repeat(gold, size), np.repeat([f"q{i:02}" for i in range(n_groups)], size)


def test_the_same_record_four_times_in_a_group_tells_no_more_than_once():
    predictions, gold, groups = repeated()
    once = agreement(predictions[::4], gold[::4], values=SCALE)
    found = agreement(predictions, gold, values=SCALE, groups=groups)
    for name in set(FIGURES) - {"within_one"}:
        assert found[f"{name}_ci"] == pytest.approx(once[f"{name}_ci"], abs=1e-9), name
    ungrouped = agreement(predictions, gold, values=SCALE)
    assert np.ptp(ungrouped["pearson_ci"]) < 0.7 * np.ptp(found["pearson_ci"])
    shuffled = np.random.default_rng(1).permutation(len(gold))
    again = agreement(predictions[shuffled], gold[shuffled], values=SCALE, groups=groups[shuffled])
    assert again["rmse_ci"] == pytest.approx(found["rmse_ci"], abs=1e-9)
    assert agreement(*easy(40), groups=range(40)) == agreement(*easy(40))


# Shares


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (1987, 2000)])
def test_the_interval_of_a_share_of_independent_records_is_wilsons(right, n):
    values = np.array([1.0] * right + [0.0] * (n - right))
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert mean_share_interval(values, np.arange(n)) == pytest.approx(tuple(expected), abs=1e-9)


def wilson(share, n, z):
    centre, reach = share + z * z / n / 2, z * math.sqrt(share * (1 - share) / n + (z / n / 2) ** 2)
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


def test_a_share_of_groups_has_the_interval_of_as_many_records_as_its_variance_is_worth_with_students_t():
    # Six groups of two: three are right in both, two in none, one in one. Share 7/12; sums of deviations from it:
    # 3 (10/12)^2 + 2 (14/12)^2 + (2/12)^2 = 4.83, divided by 12^2. Student's t of five degrees of freedom: 2.571.
    values = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0.0])
    variance = (3 * (10 / 12) ** 2 + 2 * (14 / 12) ** 2 + (2 / 12) ** 2) / 144
    expected = wilson(7 / 12, 7 / 12 * 5 / 12 / variance, 2.5705818)
    assert mean_share_interval(values, np.repeat(np.arange(6), 2)) == pytest.approx(expected)
    found = agreement(np.where(values, 1, 5), np.ones(12), values=SCALE, groups=np.repeat(np.arange(6), 2))
    assert found["within_one_ci"] == pytest.approx(expected)


def test_groups_that_all_agree_count_as_one_record_each_and_those_that_balance_as_their_records():
    found = mean_share_interval(np.ones(80), np.repeat(np.arange(20), 4))
    assert found == pytest.approx(wilson(1, 20, stats.t.ppf(0.975, 19)))
    balanced = mean_share_interval(np.tile([0.0, 1.0], 40), np.repeat(np.arange(40), 2))
    assert balanced == pytest.approx(wilson(0.5, 80, stats.t.ppf(0.975, 39)))


def test_ties_narrow_the_interval_of_a_share():
    certain, tied = np.array([0.0, 1.0] * 20), np.array([0.0, 1.0] * 5 + [0.5] * 30)
    wide, narrow = (mean_share_interval(values, np.arange(40)) for values in (certain, tied))
    assert narrow == pytest.approx(wilson(0.5, 160, 1.959964))  # a quarter of the variance
    assert wide[0] < narrow[0]


def test_the_interval_of_a_weighted_mean_of_shares_by_hand():
    # 30 of 40 right with weight 1/4, 32 of 80 with 3/4: .75 / 4 + .4 * 3 / 4 = .4875, of the variance
    # .75 * .25 / 40 / 16 + .4 * .6 / 80 * 9 / 16.
    first, second = np.repeat([1.0, 0.0], [30, 10]), np.repeat([1.0, 0.0], [32, 48])
    parts = np.concatenate([(first - 0.75) / 40 / 4, (second - 0.4) / 80 * 3 / 4])
    variance = 0.75 * 0.25 / 40 / 16 + 0.4 * 0.6 / 80 * 9 / 16
    expected = wilson(0.4875, 0.4875 * 0.5125 / variance, 1.959964)
    assert share_interval(0.4875, parts, np.arange(120)) == pytest.approx(expected)


# Differences


def two_judges(n=80):
    (a, gold), (b, other) = easy(n, seed=1), easy(n, seed=2)
    return a, gold + 1.3 * (b - other), gold


def test_a_difference_is_that_of_the_figures_on_the_records_that_both_scored():
    a, b, gold = two_judges()
    a[[0, 5]], b[[5, 9, 11]] = NAN, NAN
    both = np.isfinite(a) & np.isfinite(b)
    for name in FIGURES:
        found = paired_difference(a, b, gold, figure=name, values=SCALE)
        expected = [figures(side[both], gold[both], SCALE)[name] for side in (a, b)]
        assert [found["a"], found["b"]] == pytest.approx(expected, abs=1e-12)
        assert found["difference"] == found["a"] - found["b"]
        assert found["difference_ci"][0] < found["difference"] < found["difference_ci"][1]
        assert (found["n"], found["unscored"]) == (80, 4)


@pytest.mark.parametrize("size", [1, 4])
def test_a_difference_of_mean_errors_is_tested_as_by_the_paired_t_test(size):
    a, b, gold = two_judges()
    groups = np.repeat(np.arange(80 // size), size)
    errors = [np.abs(side - gold).reshape(-1, size).mean(1) for side in (a, b)]
    expected = stats.ttest_rel(*errors)
    found = paired_difference(a, b, gold, figure="mae", groups=groups)
    assert 1e-4 < expected.pvalue < 0.1
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert found["difference_ci"] == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("name", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("changed", [lambda b: 0.4 * b, lambda b: b - 1.5], ids=["spread", "leniency"])
def test_leniency_and_spread_of_a_judge_move_no_p_value_of_a_correlation(name, changed):
    a, b, gold = two_judges()
    found, again = (paired_difference(a, other, gold, figure=name) for other in (b, changed(b)))
    assert again["difference"] == pytest.approx(found["difference"], abs=1e-12)
    assert again["difference_ci"] == pytest.approx(found["difference_ci"], abs=1e-9)
    assert again["p_value"] == pytest.approx(found["p_value"], rel=1e-6) and found["p_value"] < 0.2


def test_p_is_below_five_percent_exactly_if_the_interval_excludes_zero():
    below = []
    for seed in range(40):
        (a, gold), (b, other) = easy(30, seed), easy(30, seed + 100, noise=1.2)
        found = paired_difference(a, gold + b - other, gold, figure="rmse")
        low, high = found["difference_ci"]
        assert (found["p_value"] < 0.05) == (low > 0 or high < 0)
        below.append(found["p_value"] < 0.05)
    assert 5 < sum(below) < 40


def test_the_same_judge_twice_does_not_differ_and_judges_change_places():
    a, b, gold = two_judges()
    for name in FIGURES:
        same = paired_difference(a, a, gold, figure=name, values=SCALE)
        assert (same["difference"], same["difference_ci"], same["p_value"]) == (0, (0, 0), 1)
    one, other = (paired_difference(*pair, gold) for pair in ((a, b), (b, a)))
    assert one["difference"] == pytest.approx(-other["difference"], abs=1e-12)
    assert one["difference_ci"] == pytest.approx((-other["difference_ci"][1], -other["difference_ci"][0]), abs=1e-9)
    assert one["p_value"] == pytest.approx(other["p_value"])


def test_a_difference_that_is_undefined_or_without_spread_has_neither_interval_nor_p_value():
    constant = paired_difference([3] * 5, SCALE, SCALE)
    assert constant["b"] == pytest.approx(1) and math.isnan(constant["a"])
    one_group = paired_difference([1, 2, 3, 4, 5], [2, 1, 5, 3, 4], [1, 2, 3, 4, 4], groups=[0] * 5)
    always_one_off = paired_difference(np.add(SCALE, 1), SCALE, SCALE, figure="mae")
    assert always_one_off["difference"] == 1 and math.isfinite(one_group["difference"])
    nothing = [paired_difference(*[row] * 2, [1.0] * len(row)) for row in ([], [2.0], [NAN] * 2)]
    for found in (constant, one_group, always_one_off, *nothing):
        assert all(map(math.isnan, (found["p_value"], *found["difference_ci"])))
    assert [found["unscored"] for found in nothing] == [0, 0, 2]
