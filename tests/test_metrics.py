"""Agreement of predicted with gold scores, against numpy, scipy and hand arithmetic."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from tract_trainer.metrics import _interval, agreement, kendall, mae, pearson, rmse, spearman

NAMES = ("pearson", "spearman", "kendall", "rmse", "mae")


def easy(n=200, seed=0, noise=0.7):
    rng = np.random.default_rng(seed)
    gold = rng.integers(1, 6, n).astype(float)
    return gold + rng.normal(0, noise, n), gold


def test_each_figure_by_hand():
    # x = 1 2 4, y = 1 3 2: means 7/3 and 2; cov = (-4/3)(-1) + (-1/3)(1) + (5/3)(0) = 1; var 14/3 and 2.
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    assert pearson(x, y) == pytest.approx(1 / math.sqrt(14 / 3 * 2))
    assert spearman(x, y) == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert kendall(x, y) == pytest.approx(1 / 3)  # 2 pairs agree, 1 does not
    assert rmse(x, y) == pytest.approx(math.sqrt((0 + 1 + 4) / 3))
    assert mae(x, y) == pytest.approx((0 + 1 + 2) / 3)


def test_the_figures_are_numpys_and_scipys():
    predictions, gold = easy()
    found = agreement(predictions, gold, n_resamples=0)
    assert found["pearson"] == pytest.approx(np.corrcoef(predictions, gold)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef(stats.rankdata(predictions), stats.rankdata(gold))[0, 1])
    assert found["kendall"] == pytest.approx(stats.kendalltau(predictions, gold, variant="b").statistic)
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(predictions - gold).mean()))
    assert found["mae"] == pytest.approx(np.abs(predictions - gold).mean())
    assert (found["n"], found["unscored"]) == (200, 0)
    assert set(found) == {*NAMES, "n", "unscored"}


def test_ties_count_as_in_tau_b():
    # x = 1 1 2 2, y = 1 2 2 3. Six pairs: (a,c) (a,d) (b,d) agree, (b,c) ties in y, (a,b) and (c,d) tie in x.
    # tau-b = 3 / sqrt((6 - 2) * (6 - 1)). Ranks 1.5 1.5 3.5 3.5 and 1 2.5 2.5 4: cov 4, var 4 and 4.5.
    found = agreement([1, 1, 2, 2], [1, 2, 2, 3], n_resamples=0)
    assert found["kendall"] == pytest.approx(3 / math.sqrt(20))
    assert found["spearman"] == pytest.approx(3 / math.sqrt(4 * 4.5))


@pytest.mark.parametrize(("predictions", "gold"), [([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [3, 3, 3]), ([2], [3])])
def test_correlations_of_a_constant_or_a_single_row_are_not_defined_and_warn_of_nothing(predictions, gold):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(predictions, gold, n_resamples=200)
    for name in NAMES[:3]:
        assert math.isnan(found[name])
        assert all(map(math.isnan, found[f"{name}_ci"]))
    assert found["mae"] == pytest.approx(np.abs(np.subtract(predictions, gold)).mean())


def test_one_row_has_errors_but_no_interval():
    found = agreement([2.5], [3])
    assert (found["rmse"], found["mae"], found["n"]) == (0.5, 0.5, 1)
    assert all(map(math.isnan, (*found["rmse_ci"], *found["mae_ci"])))


def test_without_any_prediction_everything_is_nan_and_all_is_unscored():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement([math.nan, math.nan], [1, 2], n_resamples=200)
        nothing = agreement([], [])
    assert (found["n"], found["unscored"]) == (2, 2)
    assert (nothing["n"], nothing["unscored"]) == (0, 0)
    for result in (found, nothing):
        assert all(math.isnan(result[name]) for name in NAMES)


def test_unscored_records_are_counted_and_count_in_no_figure():
    predictions, gold = easy()
    with_holes = predictions.copy()
    with_holes[[3, 50, 199]] = math.nan
    left = ~np.isnan(with_holes)
    found, alone = (
        agreement(with_holes, gold, n_resamples=200),
        agreement(predictions[left], gold[left], n_resamples=200),
    )
    assert (found["n"], found["unscored"]) == (200, 3)
    assert (alone["n"], alone["unscored"]) == (197, 0)
    for name in NAMES:
        assert found[name] == alone[name]
        assert found[f"{name}_ci"] == alone[f"{name}_ci"]


def test_gold_scores_that_are_not_numbers_are_refused_with_their_place():
    with pytest.raises(
        ValueError, match=r"^Gold scores must be finite numbers; number 1 is nan\. Leave such records out\.$"
    ):
        agreement([1, 2, 3], [1, math.nan, math.inf])
    with pytest.raises(ValueError, match=r"number 0 is inf\."):
        agreement([1, 2], [math.inf, 1])


@pytest.mark.parametrize(
    ("predictions", "gold", "shapes"),
    [([1, 2], [1, 2, 3], r"\(2,\) and \(3,\)"), ([[1], [2]], [[1], [2]], r"\(2, 1\) and \(2, 1\)")],
)
def test_scores_that_do_not_pair_up_are_refused(predictions, gold, shapes):
    with pytest.raises(ValueError, match=rf"^Expected one gold score per prediction, got shapes {shapes}\.$"):
        agreement(predictions, gold, n_resamples=200)


def test_the_intervals_hold_the_figures_and_shrink_with_n():
    small, large = agreement(*easy(100), n_resamples=200), agreement(*easy(1600), n_resamples=200)
    for name in NAMES:
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


def test_the_figures_are_plain_python_numbers():
    import json

    assert json.loads(json.dumps(agreement(*easy(20))))["n"] == 20


@pytest.mark.slow
def test_the_intervals_cover_the_true_figure_as_often_as_they_say():
    # 200 draws of 120 records with a known correlation of 0.6 and a known error: 95 % within 4 %.
    rng = np.random.default_rng(0)
    truth = {pearson: 0.6, rmse: math.sqrt(0.8), mae: math.sqrt(0.8) * math.sqrt(2 / math.pi)}
    covered = dict.fromkeys(truth, 0)
    for draw in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 120).T  # var(x - y) = 2 - 1.2 = .8
        for figure, value in truth.items():
            low, high = _interval(figure, x, y, 200, 0.95, draw)
            covered[figure] += low <= value <= high
    for figure, count in covered.items():
        assert 0.91 <= count / 200 <= 0.99, (figure.__name__, count)
