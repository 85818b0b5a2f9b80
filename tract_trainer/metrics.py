"""Agreement of predicted with gold scores, and differences of two judges, with 95 % confidence intervals.

A prediction of NaN is unscored. `n` records, `G` groups of records, `K` values of the scale.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tract_trainer.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = Sequence[float] | Floats
Groups = Sequence[Any] | NDArray[Any]
Interval = tuple[float, float]
Sides = dict[str, tuple[Floats, Floats]]

UPPER = 0.975  # quantile at which a two-sided interval of 95 % ends
NO_INTERVAL: Interval = (math.nan, math.nan)
MAX_FOLDS = 200  # of more groups, the jackknife leaves out several at a time
MIN_FOLDS = 4  # fewer groups have no interval: two records always correlate perfectly
NO_SPREAD = 1e-12


def pearson(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Floats, y: Floats) -> float:
    return pearson(stats.rankdata(x), stats.rankdata(y))


def kendall(x: Floats, y: Floats) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(stats.kendalltau(x, y).statistic)


def concordance(x: Floats, y: Floats) -> float:
    """Lin's concordance. Of two rounded scores it is Cohen's kappa with quadratic weights."""
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * covariance / spread) if spread > 0 else math.nan


def within_one(x: Floats, y: Floats) -> Floats:
    """1 for each pair of places on the scale that are at most one step apart, else 0."""
    return (np.abs(x - y) <= 1 + 1e-9).astype(np.float64)


PLAIN: dict[str, Callable[[Floats, Floats], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
    "rmse": lambda x, y: math.sqrt(np.mean((x - y) ** 2)),
    "mae": lambda x, y: float(np.abs(x - y).mean()),
    "ccc": concordance,
}
# These need the values of the scale.
ROUNDED: dict[str, Callable[[Floats, Floats], float]] = {
    "kendall_rounded": kendall,
    "qwk": concordance,
    "within_one": lambda x, y: float(within_one(x, y).mean()),
}
FIGURES = PLAIN | ROUNDED
ERRORS = ("rmse", "mae")  # in units of the scale, less is better


def agreement(
    predictions: Scores,
    gold: Scores,
    *,
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
    intervals: bool = True,
) -> dict[str, Any]:
    """
    Agreement of predicted with gold scores over the records that were scored.

    Args:
        predictions (`Sequence[float]`): predicted scores, `(n,)`, in units of the scale; NaN where unscored.
        gold (`Sequence[float]`): gold scores, `(n,)`; they may lie between the values of the scale.
        values (`Sequence[float]`, *optional*): values of the scale, `(K,)`. Adds the figures that need them.
        groups (`Sequence`, *optional*):
            Group of each record, `(n,)`, e.g. its instruction. Scores of several responses to one instruction are not
            independent, and intervals account for that. By default, every record is a group of its own.
        intervals (`bool`, *optional*, defaults to `True`): whether to compute 95 % confidence intervals.

    Returns:
        `dict` with the figures, each also as `<name>_ci`, a `(low, high)` pair; `n`, the number of records; `unscored`,
        how many have no prediction and are left out. Undefined figures are NaN: a correlation with constant scores,
        `ccc` and `qwk` where both sides are the same constant, any figure of no records.

        - `pearson`, `spearman`; `rmse` and `mae` in units of the scale.
        - `kendall`: tau-b. A pair of records that is tied on one side only lowers it. RAIL scores are hardly ever tied,
          so against integer gold scores their tau-b is lower than that of the same scores rounded.
        - `ccc`: Lin's concordance correlation, `2 cov / (var x + var y + (mean x - mean y)^2)`, with variances over
          `n`, as in Lin (1989), Biometrics 45, 255-268.
        - `kendall_rounded`: tau-b of predictions rounded to the nearest of `values` (the first of two equally near).
        - `qwk`: Cohen's kappa with quadratic weights; predictions and gold scores are rounded.
        - `within_one`: share of rounded predictions at most one step from gold. A step leads from a value to the next,
          whatever the gap; a gold score between two values is a fraction of a step away from either.
        - `<name>_worst`: the figure over all records if every unscored record had been given the end of the scale that
          is farther from its gold score (the lower end if both are equally far). Needs `values`.

        Intervals are jackknife intervals with Student's t: [`standard_errors`], [`interval`]. That of `within_one` is
        Wilson's: [`share_interval`].

    Raises:
        InputError: the lengths differ, a gold score is not finite, or `values` are not those of a scale.
    """
    x, y = _paired(predictions, gold)
    group, scored = group_numbers(groups, len(x)), np.isfinite(x)
    scale = None if values is None else checked_scale(values)
    sides = _sides(x[scored], y[scored], scale)
    found: dict[str, Any] = {"n": len(x), "unscored": int((~scored).sum())} | _figures(sides)
    if intervals:
        found |= _intervals(sides, found, group[scored])
    if scale is not None:
        farther = np.where(scale.max() - y > y - scale.min(), scale.max(), scale.min())
        worst = _figures(_sides(np.where(scored, x, farther), y, scale))
        found |= {f"{name}_worst": figure for name, figure in worst.items()}
    return found


def _sides(x: Floats, y: Floats, scale: Floats | None) -> Sides:
    """For each figure, the two lists of scores that it compares."""
    plain = dict.fromkeys(PLAIN, (x, y))
    if scale is None:
        return plain
    rounded = nearest(x, scale)
    # Places on the scale: 0 is its lowest value, 1 the next, 1.5 half-way from there to the one after.
    steps = [np.interp(scores, np.sort(scale), np.arange(len(scale))) for scores in (rounded, y)]
    return plain | {
        "kendall_rounded": (rounded, y),
        "qwk": (rounded, nearest(y, scale)),
        "within_one": (steps[0], steps[1]),
    }


def _figures(sides: Sides) -> dict[str, float]:
    return {name: FIGURES[name](x, y) if len(x) else math.nan for name, (x, y) in sides.items()}


def _intervals(sides: Sides, found: dict[str, Any], group: Ints) -> dict[str, Interval]:
    several = {name: both for name, both in sides.items() if name != "within_one"}

    def without(kept: NDArray[np.bool_]) -> list[float]:
        return list(_figures({name: (x[kept], y[kept]) for name, (x, y) in several.items()}).values())

    errors, folds = standard_errors(without, group)
    result = {
        f"{name}_ci": interval(found[name], float(error), folds, name)
        for name, error in zip(several, errors, strict=True)
    }
    if "within_one" in sides:
        result["within_one_ci"] = mean_share_interval(within_one(*sides["within_one"]), group)
    return result


def nearest(scores: Floats, values: Floats) -> Floats:
    """`scores` rounded to `values`; of two equally near, the first."""
    return values[np.abs(scores[:, None] - values).argmin(1)]


def standard_errors(statistics: Callable[[NDArray[np.bool_]], Sequence[float]], group: Groups) -> tuple[Floats, int]:
    """
    Jackknife standard errors: the spread of the statistics when each group of records is left out in turn (Tukey 1958;
    Efron and Stein 1981). More than `MAX_FOLDS` groups are left out several at a time.

    Args:
        statistics (`Callable`): takes the records that are kept, `(n,)`, and returns the statistics of these.
        group (`Sequence`): group of each record, `(n,)`.

    Returns:
        `tuple`: standard error of each statistic and the number of folds. An error is NaN if the statistic is not
        defined without some fold, or if there are fewer than `MIN_FOLDS`.
    """
    numbers = group_numbers(group, len(group))
    size = int(numbers.max(initial=-1)) + 1
    folds = min(MAX_FOLDS, size)
    if folds < MIN_FOLDS:
        return np.full(len(statistics(np.ones(len(group), dtype=bool))), math.nan), folds
    # In a fixed random order, since records may be sorted.
    fold = (np.random.default_rng(0).permutation(size) % folds)[numbers]
    parts = np.array([statistics(fold != number) for number in range(folds)])
    errors: Floats = np.sqrt((folds - 1) * parts.var(0))
    return errors, folds


def interval(figure: float, error: float, folds: int, name: str = "difference") -> Interval:
    """
    Student's t interval of a figure with this standard error: of errors on a logarithmic axis, of correlations and
    kappa on the axis of Fisher's z, of differences as they are.

    Returns:
        `tuple`: low and high; NaN if the figure or its standard error is not defined, or if there is no spread.
    """
    if not error > NO_SPREAD:
        return NO_INTERVAL
    reach = error * float(stats.t.ppf(UPPER, folds - 1))
    if name in ERRORS:
        ratio = math.exp(min(reach / figure, 700.0))
        return figure / ratio, figure * ratio
    if name == "difference":
        return figure - reach, figure + reach
    inside = min(max(figure, -1 + NO_SPREAD), 1 - NO_SPREAD)  # at -1 and 1 Fisher's axis has no end
    z, reach = math.atanh(inside), reach / (1 - inside**2)
    return math.tanh(z - reach), math.tanh(z + reach)


def mean_share_interval(values: Floats, group: Groups) -> Interval:
    """[`share_interval`] of the mean of `values`, `(n,)`, each between 0 and 1."""
    share = float(values.mean()) if len(values) else math.nan
    return share_interval(share, (values - share) / len(values), group)


def share_interval(share: float, parts: Floats, group: Groups) -> Interval:
    """
    Wilson's interval of a share, or of a weighted mean of shares.

    Ties, weights and groups change the variance of the share. So Wilson's formula is given the number of independent
    records, each 0 or 1, that would have the observed variance. Groups never count as more records than they hold. If
    every record is a group of its own, the interval of plain zeros and ones is Wilson's exactly.

    Args:
        share (`float`): between 0 and 1.
        parts (`numpy.ndarray`):
            How far each record moves the share away from its expected value, `(n,)`: for a mean, `(value - share) / n`.
        group (`Sequence`): group of each record, `(n,)`.
    """
    sums = np.bincount(group_numbers(group, len(parts)), parts)  # (G,)
    grouped = len(sums) < len(parts)
    share = min(max(share, 0.0), 1.0)  # the score of RewardBench 2's Ties goes from -.01 to 1.01
    if math.isnan(share) or (grouped and len(sums) < MIN_FOLDS):
        return NO_INTERVAL
    variance = max(float(sums @ sums), float(parts @ parts))
    spread = variance > NO_SPREAD**2 and 0 < share < 1  # of Ties, scores can differ and all be 0 or 1 but for .01
    n = share * (1 - share) / variance if spread else len(sums)
    # Student's t where the variance had to be estimated from groups.
    z = float(stats.t.ppf(UPPER, len(sums) - 1) if grouped else stats.norm.ppf(UPPER))
    centre = (share + z * z / n / 2) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / n / n / 4) / (1 + z * z / n)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def paired_difference(
    a: Scores,
    b: Scores,
    gold: Scores,
    *,
    figure: str = "pearson",
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """
    A figure of judge `a` minus that of judge `b`, over the records that both scored.

    Args:
        a, b, gold (`Sequence[float]`): scores of either judge, `(n,)`, NaN where unscored, and gold scores, `(n,)`.
        figure (`str`, *optional*, defaults to `"pearson"`): name of a figure of [`agreement`].
        values, groups: as in [`agreement`].

    Returns:
        `dict` with `a` and `b`, their figures; `difference` and `difference_ci`, its 95 % interval; `p_value`,
        two-sided; `n`, the number of records; `unscored`, how many are left out because a judge gave no score.
        Undefined values are NaN.

        The standard error is the jackknife's, [`standard_errors`]. Interval and p-value are of the same Student's t: p
        is below .05 exactly if the interval excludes 0. Two judges with the same scores have the interval `(0, 0)` and
        p = 1. If the difference is otherwise the same whatever group is left out, both are NaN.

    Raises:
        InputError: as [`agreement`], or `figure` is not known or needs `values`.
    """
    if figure not in FIGURES:
        raise InputError(f"figure {figure!r} is not known; known are {list(FIGURES)}.")
    if figure in ROUNDED and values is None:
        raise InputError(f"figure {figure!r} rounds to the scale. Give its values, e.g. values=[1, 2, 3, 4, 5].")
    scale = None if values is None else checked_scale(values)
    (first, y), (second, _) = _paired(a, gold), _paired(b, gold)
    both = np.isfinite(first) & np.isfinite(second)
    sides = [_sides(scores[both], y[both], scale)[figure] for scores in (first, second)]

    def figures(kept: NDArray[np.bool_]) -> list[float]:
        return [FIGURES[figure](x[kept], gold[kept]) if kept.any() else math.nan for x, gold in sides]

    def difference_of(kept: NDArray[np.bool_]) -> list[float]:
        one, other = figures(kept)
        return [one - other]

    of_a, of_b = figures(np.ones(int(both.sum()), dtype=bool))
    difference = of_a - of_b
    (error,), folds = standard_errors(difference_of, group_numbers(groups, len(y))[both])
    found = {"n": len(y), "unscored": int((~both).sum()), "a": of_a, "b": of_b, "difference": difference}
    if np.array_equal(first[both], second[both]) and not math.isnan(error):
        return found | {"difference_ci": (0.0, 0.0), "p_value": 1.0}
    p_value = 2 * float(stats.t.sf(abs(difference) / error, folds - 1)) if error > NO_SPREAD else math.nan
    return found | {"difference_ci": interval(difference, float(error), folds), "p_value": p_value}


def group_numbers(groups: Groups | None, n: int) -> Ints:
    """Number of the group of each record, `(n,)`, from 0; without `groups`, every record is a group of its own."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise InputError(f"Expected a group for each of {n} records, got {len(groups)}.")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def checked_scale(values: Sequence[float]) -> Floats:
    """Values of a scale as an array; an InputError where they are not two or more different, finite numbers."""
    scale = np.asarray(values, dtype=np.float64)
    if scale.ndim != 1 or len(set(scale.tolist())) < max(2, len(scale)) or not np.isfinite(scale).all():
        raise InputError(f"Expected values of a scale, different numbers as in [1, 2, 3, 4, 5], got {list(values)}.")
    return scale


def _paired(predictions: Scores, gold: Scores) -> tuple[Floats, Floats]:
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise InputError(f"Gold scores must be finite numbers; number {row} is {y[row]}. Leave such records out.")
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one gold score per prediction, got shapes {x.shape} and {y.shape}.")
    return x, y
