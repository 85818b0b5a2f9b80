"""Figures of weighted records, against naive loops and scipy on the rows that the weights stand for."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tract_trainer.metrics import PLAIN, ROUNDED, Agreement, chunks, grouped, resamples

NAMES = PLAIN + ROUNDED


def naive_nearest(scores, values):
    return np.array([min(values, key=lambda value: abs(value - score)) for score in scores])


def naive_qwk(x, y, values):
    """Observed over expected disagreement, from the table of counts."""
    x, y = naive_nearest(x, values), naive_nearest(y, values)
    observed = expected = 0.0
    for v in values:
        for w in values:
            observed += (v - w) ** 2 * np.mean((x == v) & (y == w))
            expected += (v - w) ** 2 * np.mean(x == v) * np.mean(y == w)
    return 1 - observed / expected if expected else math.nan


def naive_ccc(x, y):
    below = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return 2 * np.mean((x - x.mean()) * (y - y.mean())) / below if below else math.nan


def naive_within_one(x, y, values):
    """Walks up the scale from the lower of the two to the higher and adds up the parts of steps."""
    values, close = sorted(values), []
    for prediction, gold in zip(naive_nearest(x, values), y, strict=True):
        low, high = sorted((prediction, gold))
        steps = sum(
            max(0.0, min(high, after) - max(low, before)) / (after - before)
            for before, after in itertools.pairwise(values)
        )
        close.append(steps < 1 + 1e-9)
    return np.mean(close)


def naive(name, x, y, values):
    """The figure of rows, one by one, by scipy or by its definition."""
    if name in ("kendall_rounded", "qwk", "within_one"):
        if name == "qwk":
            return naive_qwk(x, y, values)
        if name == "within_one":
            return naive_within_one(x, y, values)
        x = naive_nearest(x, values)
    elif name in ("rmse", "mae", "ccc"):
        errors = {"rmse": np.sqrt(np.mean((x - y) ** 2)), "mae": np.mean(np.abs(x - y)), "ccc": naive_ccc(x, y)}
        return errors[name]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}.get(name, stats.kendalltau)
    return correlate(x, y).statistic


def draw(kind, n, rng):
    """Predictions, gold and the scale of a kind of judge."""
    gold = rng.integers(3, 16, n) / 3
    noise = gold + rng.normal(0, 0.8, n)
    return {
        "expected scores, fractional gold": (noise, gold, [1, 2, 3, 4, 5]),
        "decoded labels, whole gold": (np.round(noise), np.round(gold), [1, 2, 3, 4, 5]),
        "all different": (noise, rng.normal(3, 1, n), [5, 4, 3, 2, 1]),
        "two values": (rng.integers(0, 2, n) * 1.0, rng.integers(0, 2, n) * 1.0, [0, 1]),
        "unequal gaps": (np.exp2(noise / 2), np.exp2(gold / 2), [1, 2, 4, 8]),
        "opposite": (-gold, gold, [-5, -3, 1, 5]),
        "far from zero": (1e6 + noise, 1e6 + gold, [1e6 + 1, 1e6 + 3, 1e6 + 5]),
    }[kind]


KINDS = [
    "expected scores, fractional gold",
    "decoded labels, whole gold",
    "all different",
    "two values",
    "unequal gaps",
    "opposite",
    "far from zero",
]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weighted_figure_is_the_figure_of_the_rows_that_the_weights_stand_for(kind, n):
    rng = np.random.default_rng(n)
    x, y, values = draw(kind, n, rng)
    rows = np.concatenate([np.arange(n)[None], rng.integers(n, size=(40, n))])  # all rows once, then 40 resamples
    weights = np.stack([np.bincount(drawn, minlength=n) for drawn in rows], axis=1).astype(float)
    found = Agreement(x, y, np.array(values, float)).figures(NAMES, weights)
    for name in NAMES:
        expected = [naive(name, x[drawn], y[drawn], values) for drawn in rows]
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_weights_need_not_sum_to_the_number_of_records():
    rng = np.random.default_rng(0)
    x, y, values = draw(KINDS[0], 30, rng)
    weights = rng.integers(0, 4, (30, 20)).astype(float)
    found = Agreement(x, y, np.array(values, float)).figures(NAMES, weights)
    for name in NAMES:
        expected = [
            naive(name, *(np.repeat(side, column.astype(int)) for side in (x, y)), values) for column in weights.T
        ]
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_a_resample_of_equal_scores_is_not_defined_even_if_their_sums_round():
    # 0.1 is not exact, so that the moments of 0.1, 0.1, ... leave a variance of about 1e-17, which is not a variance.
    x, y = np.array([0.1] * 7 + [0.7]), np.array([0.3, 0.1, 0.7] * 2 + [0.4, 0.9])
    weights = np.array([[1.0, 2, 1, 1, 1, 1, 1, 0], [1.0, 1, 1, 1, 1, 1, 1, 1]]).T
    found = Agreement(x, y).figures(PLAIN, weights)
    for name in ("pearson", "spearman", "kendall"):
        assert math.isnan(found[name][0]) and not math.isnan(found[name][1])
    assert found["ccc"][0] == 0.0


def test_figures_of_no_record_are_nan():
    nothing = Agreement(np.empty(0), np.empty(0), np.array([1.0, 2.0]))
    assert all(math.isnan(figure) for figure in nothing.overall(NAMES).values())


def test_a_resample_draws_as_many_records_as_there_are_and_each_as_often_as_any():
    drawn = np.concatenate(list(resamples(np.arange(50), 4000, np.random.default_rng(0))), axis=1)
    assert drawn.shape == (50, 4000)
    assert np.all(drawn.sum(0) == 50)
    # A count is binomial(50, 1/50), of variance .98; the mean of 4,000 has a deviation of .0157, here times five.
    assert np.abs(drawn.mean(1) - 1).max() < 0.08
    assert drawn.var() == pytest.approx(0.98, rel=0.02)


def test_the_records_of_a_group_are_drawn_together():
    group = grouped(["b", "a", "b", "c", "a", "b"], 6)
    assert group.tolist() == [1, 0, 1, 2, 0, 1]
    drawn = np.concatenate(list(resamples(group, 500, np.random.default_rng(0))), axis=1)
    np.testing.assert_array_equal(drawn[[0, 1]], drawn[[2, 4]])
    np.testing.assert_array_equal(drawn[0], drawn[5])
    assert set(drawn[[0, 1, 3]].sum(0)) == {3}  # as many groups as there are, of whatever size
    assert not list(resamples(grouped([7, 7, 7], 3), 9, np.random.default_rng(0)))  # one group has no spread to show


def test_resamples_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    def all_of_them():
        return np.concatenate(list(resamples(np.arange(20), 33, np.random.default_rng(5))), axis=1)

    whole = all_of_them()
    monkeypatch.setattr("tract_trainer.metrics.CHUNK", 100)
    parts = [part.shape for part in resamples(np.arange(20), 33, np.random.default_rng(5))]
    assert parts == [(20, 5)] * 6 + [(20, 3)]
    np.testing.assert_array_equal(all_of_them(), whole)


def test_a_chunk_holds_at_least_one_column():
    assert [part.shape for part in chunks(lambda: np.zeros(600_000, int), 600_000, 2)] == [(600_000, 1)] * 2


LARGE = """
import resource, time
import numpy as np
from tract_trainer.metrics import agreement
rng = np.random.default_rng(0)
gold = rng.integers(3, 16, 100_000) / 3
start = time.perf_counter()
agreement(gold + rng.normal(0, 0.7, 100_000), gold, values=[1, 2, 3, 4, 5], n_resamples=1000)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_thousand_resamples_of_a_hundred_thousand_records_fit_into_memory(capsys):
    # In a process of its own, since the peak is of all that a process has ever held.
    output = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True).stdout
    seconds, kilobytes = map(float, output.split())
    with capsys.disabled():
        print(f"\n100,000 records, 1,000 resamples: {seconds:.1f} s, peak {kilobytes / 1024:.0f} MB")
    assert kilobytes < 2 * 1024**2
