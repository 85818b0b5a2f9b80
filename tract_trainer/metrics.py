"""Agreement of predicted with gold scores: figures, intervals, paired differences.

Knows nothing of models. A prediction of NaN is unscored. `n` records, `K` values of the scale.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.special import gammaincinv, ndtri, stdtrit

from tract_trainer.errors import InputError

Floats = NDArray[np.float64]

Ints = NDArray[np.int64]

Groups = Sequence[Any] | NDArray[Any]

CHUNK = 2**19
"""Weights in a chunk: 4 MB, and what is computed from them some ten times as much."""


def grouped(groups: Groups | None, n: int) -> Ints:
    """Number of the group of each record, `(n,)`, from 0; without `groups`, each record is one."""
    return np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def resamples(group: Ints, times: int, rng: np.random.Generator) -> Iterator[Floats]:
    """
    How often each record is drawn, `(n, R)`, the records of a group together. No resample of fewer than two groups,
    which have no spread to show.

    Args:
        group (`numpy.ndarray`): from [`grouped`], `(n,)`.
    """
    size = group.max(initial=-1) + 1

    def draw() -> Ints:
        return np.bincount(rng.integers(size, size=size), minlength=size)[group]

    return chunks(draw, len(group), times if size > 1 else 0)


def chunks(draw: Callable[[], Ints], n: int, times: int) -> Iterator[Floats]:
    """The results of `draw`, each `(n,)`, called `times` times, side by side as `(n, R)`."""
    size = max(1, CHUNK // max(n, 1))
    for start in range(0, times, size):
        rows = np.stack([draw() for _ in range(min(size, times - start))])
        yield np.ascontiguousarray(rows.T, dtype=np.float64)


class Agreement:
    """
    Figures of agreement of `n` records, by name.

    Args:
        predictions (`numpy.ndarray`): predicted scores, `(n,)`, finite, in units of the scale.
        gold (`numpy.ndarray`): gold scores, `(n,)`, finite.
        values (`numpy.ndarray`, *optional*): values of the scale, `(K,)`; needed for the names in `ROUNDED`.
    """

    def __init__(self, predictions: Floats, gold: Floats, values: Floats | None = None) -> None:
        self.predictions, self.gold, self.values = predictions, gold, values

    def within_one(self) -> Floats:
        """1 for each record whose rounded prediction is at most a step from gold, 0 for the others, `(n,)`."""
        if not len(self.gold):
            return np.empty(0)
        pairs = self._pairs["in steps"]
        close: Floats = pairs.moments[7] @ pairs.of_record
        return close

    def overall(self, names: Iterable[str]) -> dict[str, float]:
        """The figures of all records, each counted once."""
        found = self.figures(names, np.ones((len(self.gold), 1)))
        return {name: float(figure[0]) for name, figure in found.items()}

    def figures(self, names: Iterable[str], weights: Floats) -> dict[str, Floats]:
        """
        Args:
            names (`Iterable[str]`): names from `PLAIN` and `ROUNDED`.
            weights (`numpy.ndarray`): how often each record counts, `(n, R)`, whole numbers, not all 0 in a column.

        Returns:
            `dict`: for each name the figure under each column of weights, `(R,)`; NaN where it is not defined.
        """
        if not len(weights):
            return {name: np.full(weights.shape[1], np.nan) for name in names}
        chosen = {name: _FIGURES[name] for name in names}
        weighted = {kind: _Weighted(self._pairs[kind], weights) for kind in {kind for kind, _ in chosen.values()}}
        return {name: figure(weighted[kind]) for name, (kind, figure) in chosen.items()}

    @cached_property
    def _pairs(self) -> dict[str, "_Pairs"]:
        pairs = {"plain": _Pairs(self.predictions, self.gold)}
        if self.values is not None:
            rounded, gold = (nearest(scores, self.values) for scores in (self.predictions, self.gold))
            pairs |= {"rounded": _Pairs(rounded, self.gold), "both rounded": _Pairs(rounded, gold)}
            pairs["in steps"] = _Pairs(_steps(rounded, self.values), _steps(self.gold, self.values))
        return pairs


def nearest(scores: Floats, values: Floats) -> Floats:
    return values[np.abs(scores[:, None] - values).argmin(1)]  # of two equally near, the first


def _steps(scores: Floats, values: Floats) -> Floats:
    """Places on the scale, `(n,)`: 0 is its lowest value, 1 the next, 1.5 half-way from there to the one after."""
    return np.interp(scores, np.sort(values), np.arange(len(values)))


class _Level(NamedTuple):
    """Pairs of scores whose class has a 0 at one bit (`lower`), and a 1 (`upper`). See `_levels`."""

    lower: Ints  # sorted by block and key
    upper: Ints
    bounds: Ints  # (4, upper): how many of lower come before its key, its key's last, its block, and its block's last


class _Pairs:
    """The distinct pairs of `x` and `y`, each `(n,)`, sorted by `x` and then `y`, and what no weight changes."""

    def __init__(self, x: Floats, y: Floats) -> None:
        x_values, x_of_record = np.unique(x, return_inverse=True)
        y_values, y_of_record = np.unique(y, return_inverse=True)
        cells, pair_of_record = np.unique(x_of_record * len(y_values) + y_of_record, return_inverse=True)
        self.of_record = _one_hot(pair_of_record)  # (m, n)
        self.x_rank, self.y_rank = np.divmod(cells, len(y_values))  # (m,)
        self.groups = _one_hot(self.x_rank), _one_hot(self.y_rank)  # (G, m) of each side
        error = np.abs(x_values[self.x_rank] - y_values[self.y_rank])
        # A sum of squares less the square of the sum keeps its digits if scores are counted from their mean.
        x, y = (x_values - x.mean())[self.x_rank], (y_values - y.mean())[self.y_rank]
        self.moments = np.stack([x, y, x * x, y * y, x * y, error**2, error, error <= 1 + 1e-9])  # (8, m)

    @cached_property
    def levels(self) -> list[_Level]:
        return _levels(*sorted((self.x_rank, self.y_rank), key=np.max))  # the fewer the classes, the fewer the levels


class _Weighted:
    """Pairs under `R` columns of weights, and the sums that several figures are made of."""

    def __init__(self, pairs: _Pairs, weights: Floats) -> None:
        self.pairs = pairs
        self.weights: Floats = pairs.of_record @ weights  # (m, R)
        self.total: Floats = weights.sum(0)  # (R,)

    @cached_property
    def sizes(self) -> tuple[Floats, Floats]:
        """Weight of each distinct score, `(G, R)`, of either side."""
        x, y = self.pairs.groups
        return x @ self.weights, y @ self.weights

    @cached_property
    def untied(self) -> tuple[Floats, Floats]:
        """Twice the number of pairs of records that differ, `(R,)`, on either side; exactly 0 if that is constant."""
        x, y = self.sizes
        return self.total**2 - _dot(x, x), self.total**2 - _dot(y, y)

    @cached_property
    def sums(self) -> Floats:
        """Weighted sums of the moments, `(8, R)`; those of `x * x`, `y * y` and `x * y` about the weighted means."""
        sums: Floats = self.pairs.moments @ self.weights
        x, y = sums[:2]
        sums[2:5] -= np.stack([x * x, y * y, x * y]) / self.total
        for variance, untied in zip((2, 3), self.untied, strict=True):
            sums[np.ix_([variance, 4], untied == 0)] = 0.0  # without the rounding error, or noise would correlate
        return sums


def _pearson(of: _Weighted) -> Floats:
    return _ratio(of.sums[4], np.sqrt(of.sums[2].clip(0)) * np.sqrt(of.sums[3].clip(0))).clip(-1, 1)


def _spearman(of: _Weighted) -> Floats:
    # Mid-ranks less the mean rank, (G, R), from the weights of the sorted distinct scores.
    x, y = (np.cumsum(sizes, axis=0) - (sizes + of.total) / 2 for sizes in of.sizes)
    covariance = _dot(of.pairs.groups[1] @ (of.weights * x[of.pairs.x_rank]), y)
    return _ratio(covariance, np.sqrt(_dot(of.sizes[0], x * x) * _dot(of.sizes[1], y * y))).clip(-1, 1)


def _kendall(of: _Weighted) -> Floats:
    return _ratio(2 * _concordance(of.pairs.levels, of.weights), np.sqrt(of.untied[0] * of.untied[1])).clip(-1, 1)


def _ccc(of: _Weighted) -> Floats:
    covariance, squared_error = of.sums[4:6]
    # The squared error sums to n (var x + var y - 2 cov + (mean x - mean y)^2).
    return _ratio(2 * covariance, squared_error + 2 * covariance)


# Kappa with quadratic weights is the concordance of the rounded scores: the squared distance that it expects of two
# independent raters, the sum of (v - w)^2 p(v) q(w), is var x + var y + (mean x - mean y)^2.
_FIGURES: dict[str, tuple[str, Callable[[_Weighted], Floats]]] = {
    "pearson": ("plain", _pearson),
    "spearman": ("plain", _spearman),
    "kendall": ("plain", _kendall),
    "rmse": ("plain", lambda of: np.sqrt(of.sums[5] / of.total)),
    "mae": ("plain", lambda of: of.sums[6] / of.total),
    "ccc": ("plain", _ccc),
    "kendall_rounded": ("rounded", _kendall),
    "qwk": ("both rounded", _ccc),
    "within_one": ("in steps", lambda of: of.sums[7] / of.total),
}

PLAIN = tuple(name for name, (kind, _) in _FIGURES.items() if kind == "plain")

ROUNDED = tuple(name for name in _FIGURES if name not in PLAIN)


def _levels(classes: Ints, keys: Ints) -> list[_Level]:
    """
    Splits all pairs of records of different class so that each pair is in one level, as in a merge sort.

    Two classes have the same higher bits, their block, above the first bit that tells them apart: 0 in the lower class,
    1 in the upper. So there is a level for each bit, log2(G) of them, each of `O(m)` work for a column of weights.

    Args:
        classes (`numpy.ndarray`), keys (`numpy.ndarray`): ranks of the two sides, `(m,)`, from 0.
    """
    levels, width = [], int(keys.max()) + 1
    for bit in range(int(classes.max()).bit_length()):
        block, half = classes >> (bit + 1), (classes >> bit) & 1
        places = block * width + keys
        order = np.argsort(places, kind="stable")
        lower, upper = order[half[order] == 0], order[half[order] == 1]
        first = block[upper] * width
        ends = [places[upper], places[upper] + 1, first, first + width]
        levels.append(_Level(lower, upper, np.searchsorted(places[lower], np.stack(ends))))
    return levels


def _concordance(levels: list[_Level], weights: Floats) -> Floats:
    """Number of pairs of records in the same order on both sides, less those in opposite order, `(R,)`."""
    score = np.zeros(weights.shape[1])
    for lower, upper, (before, upto, first, last) in levels:
        running = np.zeros((len(lower) + 1, weights.shape[1]))
        np.cumsum(weights[lower], axis=0, out=running[1:])
        margin = running[before]  # smaller keys less larger ones: (before - first) - (last - upto)
        margin += running[upto]
        margin -= running[first]
        margin -= running[last]
        score += _dot(weights[upper], margin)
    return score


def _one_hot(groups: Ints) -> csr_array:
    """The matrix whose product with rows sums those of each group, `(groups, len(groups))`."""
    n = len(groups)
    return csr_array((np.ones(n), (groups, np.arange(n))), shape=(int(groups.max()) + 1, n))


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("ir,ir->r", a, b)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


Interval = tuple[float, float]

NONE: Interval = (math.nan, math.nan)

FEWEST = 4  # records or groups; two always correlate perfectly, and Fisher's z of three has no variance


class Axis(NamedTuple):
    """A scale on which the estimates of a figure are spread about evenly, whatever its true value."""

    to: Callable[[float], float]
    slope: Callable[[float], float]
    back: Callable[[float], float]


def _inside(figure: float) -> float:
    """At -1 or 1 the axis has no end: from there, any spread is the whole range."""
    return min(max(figure, -1 + 1e-12), 1 - 1e-12)


FISHER = Axis(lambda figure: math.atanh(_inside(figure)), lambda figure: 1 / (1 - _inside(figure) ** 2), math.tanh)

LOG = Axis(math.log, lambda figure: 1 / figure, lambda place: math.exp(min(place, 700.0)))  # figures above 0

LINEAR = Axis(float, lambda figure: 1.0, float)


def around(figure: float, resampled: Iterable[Floats], n: int, level: float, axis: Axis) -> Interval:
    """
    `back(to(figure) -+ t slope(figure) s)`, with the bootstrap's standard error `s` and `t` of `n - 1` degrees.

    For correlations that is Fisher's z with a standard error that assumes no distribution, as for tau in Long and Cliff
    (1997), British Journal of Mathematical and Statistical Psychology 50, 31-41. A resample's records vary less than
    others would, by `(n - 1) / n`: Hesterberg (2015), The American Statistician 69, 371-386, and `s` makes up for it.

    Args:
        figure (`float`): the figure of the `n` records, or groups of records, themselves.
        resampled (`Iterable[numpy.ndarray]`): figures of resamples, chunks of `(R,)`; NaN where not defined.
        level (`float`): share of such intervals that are to cover the true figure.
        axis ([`Axis`]): `FISHER` for what is at most 1 in size, `LOG` for errors, `LINEAR` for differences.

    Returns:
        `tuple`: low and high; both are the figure if no resample differs, NaN if there is no figure, no resample, or
        if there are fewer than four records.
    """
    figures = _defined(resampled)
    _check_level(level)
    if math.isnan(figure) or not len(figures) or n < FEWEST:
        return NONE
    error = float(figures.std()) * math.sqrt(n / (n - 1))
    if error < 1e-12:
        return figure, figure
    centre, reach = axis.to(figure), axis.slope(figure) * error * float(stdtrit(n - 1, (1 + level) / 2))
    return axis.back(centre - reach), axis.back(centre + reach)


def around_share(values: Floats, low: float, high: float, level: float, group: Ints | None = None) -> Interval:
    """
    The score interval of the mean of `values`: the means that a score test does not reject.

    The test takes the variance from the distribution over the `values` and both ends that is likeliest of those with
    the mean in question. With two values this is the interval of Wilson (1927), JASA 22, 209-212, with three that of
    Tango (1998), Statistics in Medicine 17, 891-908, for paired shares. It has a width even where all values are equal.
    Where all but three or fewer are at one end, the bound on that side is that of a Poisson count, as in Brown, Cai and
    DasGupta (2001), Statistical Science 16, 101-133: no interval covers a share of .999 of 200 with about 95 %, but
    Wilson's does with 82 %, this one with 98 %.

    Values of a group are not independent. They count as so many fewer as the mean varies more than that of independent
    ones, Kish's (1965) design effect, "Survey Sampling"; where all are equal, a group as one.

    Args:
        values (`numpy.ndarray`): `(n,)`: 1 or 0, and a half for a tie; or differences of two judges in these.
        low, high (`float`): the least and the greatest that a value can be.
        group (`numpy.ndarray`, *optional*): from [`~tract_trainer.metrics.grouped`], `(n,)`.
    """
    _check_level(level)
    if not len(values):
        return NONE
    kinds, times = np.unique((values - low) / (high - low), return_counts=True)
    counts: Floats = times / (1.0 if group is None else _design_effect(values, group))
    below, above = _least_mean(kinds, counts, level), _least_mean(1 - kinds[::-1], counts[::-1], level)
    return low + (high - low) * below, high - (high - low) * above


def of_mean(
    counts: Sequence[float], sums: Sequence[float], squares: Sequence[float], weights: Sequence[float], level: float
) -> Interval:
    """
    The interval of the weighted mean of independent shares: Price and Bonett (2004), Computational Statistics and Data
    Analysis 45, 449-456.

    Four values are added, two of 1 and two of 0, in equal parts to all shares; the rest is a normal interval. That of a
    single share is the one of Agresti and Coull. It is at least as wide as to hold the mean itself.

    Args:
        counts, sums, squares (`Sequence[float]`): of the values of each share, how many, their sum, and their squares'.
        weights (`Sequence[float]`): of the shares; they are divided by their sum.
    """
    if not len(counts):
        return NONE
    n, total, weight = np.array(counts), np.array(sums), np.array(weights) / np.sum(weights)
    added = 2 / len(n)
    shares = (total + added) / (n + 2 * added)
    variances = (np.array(squares) + added) / (n + 2 * added) - shares**2
    reach = float(ndtri((1 + level) / 2) * np.sqrt(weight**2 @ (variances / (n + 2 * added))))
    mean, centre = float(weight @ (total / n)), float(weight @ shares)
    return max(0.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach))


def p_value(difference: float, permuted: Iterable[Floats]) -> float:
    """Two-sided, of a difference among those of permutations, chunks of `(R,)`, that are defined; NaN if it is not."""
    differences = _defined(permuted)
    as_large = np.abs(differences) >= abs(difference) - 1e-12  # all swapped is none swapped, but for rounding
    return np.nan if np.isnan(difference) else float((1 + as_large.sum()) / (1 + len(differences)))


def _defined(parts: Iterable[Floats]) -> Floats:
    figures = np.concatenate([np.empty(0), *parts])
    return figures[~np.isnan(figures)]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"confidence_level must be between 0 and 1, as .95 is; got {level}.")


def _design_effect(values: Floats, group: Ints) -> float:
    """By how much the variance of the mean is larger than if the values were independent; at least 1."""
    n, groups = len(values), int(group.max()) + 1
    if groups < 2 or np.ptp(values) == 0:
        return n / groups
    sums = np.bincount(group, values - values.mean())
    return max(1.0, float(sums @ sums / n / values.var()))


def _least_mean(kinds: Floats, counts: Floats, level: float) -> float:
    """The least mean that is not rejected; `kinds` are ascending, between 0 and 1."""
    n, total, z = float(counts.sum()), float(kinds @ counts), float(ndtri((1 + level) / 2))
    if total == 0:
        return 0.0

    def excess(tested: float) -> float:
        return n * (total / n - tested) ** 2 - z * z * _variance(kinds, counts, tested)

    least = float(brentq(excess, 0.0, total / n * (1 - 1e-9)))
    return min(least, float(gammaincinv(total, 1 - level)) / n) if total <= min(3, n / 2) else least


def _variance(kinds: Floats, counts: Floats, mean: float) -> float:
    """Variance of the likeliest distribution over `kinds` and 0 that has this mean, which is below the observed one."""
    if mean == 0:
        return 0.0
    n, away = counts.sum(), kinds - mean

    def slope(multiplier: float) -> float:  # of the likelihood, in Lagrange's multiplier
        return float((counts * away / (n + multiplier * away)).sum())

    most = n / mean * (1 - 1e-12)  # where the weight of a 0 has no bound
    multiplier = most if slope(most) > 0 else brentq(slope, 0.0, most)
    weights = counts / (n + multiplier * away)
    return float(weights @ away**2 + max(0.0, 1 - weights.sum()) * mean**2)


Scores = Sequence[float] | Floats

ERRORS = ("rmse", "mae")
"""Figures in units of the scale, of which less is better."""


def agreement(
    predictions: Scores,
    gold: Scores,
    *,
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 42,
) -> dict[str, Any]:
    """
    Agreement of predicted with gold scores over the records that were scored.

    Args:
        predictions (`Sequence[float]`): predicted scores, `(n,)`, in units of the scale; NaN where unscored.
        gold (`Sequence[float]`): gold scores, `(n,)`; they may lie between the values of the scale.
        values (`Sequence[float]`, *optional*): values of the scale, `(K,)`; they bring in the figures that need them.
        groups (`Sequence`, *optional*): what the records of a group share, `(n,)`, e.g. their instruction. Scores of
            several responses to one are not independent, and whole groups are resampled. By default, each record alone.
        n_resamples (`int`, *optional*, defaults to `1000`): bootstrap resamples of groups; 0 for no intervals.
        confidence_level (`float`, *optional*, defaults to `0.95`): how many of such intervals are to cover the figure
            that all records of this kind would have.
        seed (`int`, *optional*, defaults to `42`): seed of the bootstrap.

    Returns:
        `dict` with the figures, each also as `<name>_ci`, a `(low, high)` pair; `n`, the number of records; `unscored`,
        how many of them have no prediction and count in no figure. A figure that is not defined is NaN: a correlation
        with constant scores, `ccc` and `qwk` where both sides are the same constant, any figure of no record.

        - `pearson`, `spearman`; `rmse` and `mae` in units of the scale.
        - `kendall`: tau-b, which a pair of records lowers that is tied on one side only. RAIL's continuous scores are
          hardly ever tied, so that against whole gold scores they come out lower than the same scores rounded.
        - `ccc`: Lin's concordance correlation, `2 cov / (var x + var y + (mean x - mean y)^2)`, over `n`, not `n - 1`,
          as in Lin (1989), Biometrics 45, 255-268.
        - `kendall_rounded`: tau-b of predictions rounded to the nearest of `values` (of two as near, the first).
        - `qwk`: kappa of predictions and gold, both so rounded, with the squared distance of values as the weight of a
          disagreement, as in Cohen (1968), Psychological Bulletin 70, 213-220.
        - `within_one`: share of rounded predictions at most one step from gold. A step leads from a value to the next,
          whatever the gap; a gold score part of the way is that part of a step off.
        - `<name>_worst`: each of these over all records, if those unscored had been given the end of the scale that is
          farther from their gold score (of two as far, the lower). Like the three before, it comes with `values` only.

        An interval is [`~tract_trainer.metrics.around`] the figure, with the bootstrap's standard error: of errors on
        a logarithmic axis, of the others on that of Fisher's z. `within_one` has the interval of Wilson,
        [`~tract_trainer.metrics.around_share`]. docs/evaluation.md says how often they cover the true figure.

    Raises:
        InputError: the lengths differ, a gold score is not finite, `values` are not those of a scale, or
            `confidence_level` is not between 0 and 1.
    """
    x, y = _paired(predictions, gold)
    group = _grouped(groups, len(x))
    scale = None if values is None else checked_scale(values)
    names = PLAIN if scale is None else PLAIN + ROUNDED
    scored = np.isfinite(x)
    records = Agreement(x[scored], y[scored], scale)
    found: dict[str, Any] = {"n": len(x), "unscored": int((~scored).sum())} | records.overall(names)
    if n_resamples:
        several = grouped(group[scored], len(group[scored]))
        for name, bounds in _intervals(records, found, names, several, n_resamples, confidence_level, seed).items():
            found[f"{name}_ci"] = bounds
    if scale is not None:
        farther = np.where(scale.max() - y > y - scale.min(), scale.max(), scale.min())
        worst = Agreement(np.where(scored, x, farther), y, scale).overall(names)
        found |= {f"{name}_worst": figure for name, figure in worst.items()}
    return found


def _intervals(
    records: Agreement, found: dict[str, Any], names: Sequence[str], group: Ints, times: int, level: float, seed: int
) -> dict[str, Interval]:
    """Of the figures `names`, whose values `found` has."""
    n, others = group.max(initial=-1) + 1, [name for name in names if name != "within_one"]
    drawn = resamples(group, times, np.random.default_rng(seed))
    chunked = [records.figures(others, weights) for weights in drawn]
    intervals = {}
    for name in others:
        axis = LOG if name in ERRORS else FISHER
        intervals[name] = around(found[name], [chunk[name] for chunk in chunked], n, level, axis)
    if "within_one" in names:
        intervals["within_one"] = around_share(records.within_one(), 0, 1, level, group)
    return intervals


def paired_difference(
    a: Scores,
    b: Scores,
    gold: Scores,
    *,
    figure: str = "pearson",
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 10_000,
    confidence_level: float = 0.95,
    seed: int = 42,
) -> dict[str, Any]:
    """
    A figure of judge `a` less that of judge `b`, over the records that both scored.

    The p-value is of the hypothesis that the judges are interchangeable: in any group of records (by default, in any
    record) their predictions could as well be swapped. Judges whose scores differ in spread are not, even where a
    correlation is the same for both.

    Args:
        a, b, gold (`Sequence[float]`): scores of either judge, `(n,)`, NaN where unscored, and gold scores, `(n,)`.
        figure (`str`, *optional*, defaults to `"pearson"`): name of a figure of [`agreement`].
        n_permutations (`int`, *optional*, defaults to `10000`): times that predictions are swapped at random.
        values, groups, n_resamples, confidence_level, seed: as in [`agreement`]; each resample is the same for both.

    Returns:
        `dict` with `a` and `b`, their figures; `difference` and `difference_ci`, a `(low, high)` pair; `p_value`,
        two-sided, `(1 + permutations with as large a difference) / (1 + permutations)`; `n`, the number of records;
        `unscored`, how many of them are left out since a judge gave no score. What is not defined is NaN.

        The interval is [`~tract_trainer.metrics.around`] the difference, with the bootstrap's standard error of it;
        for `within_one` that of Tango, [`~tract_trainer.metrics.around_share`]. Judges that gave every record the
        same score get `(0, 0)`.

    Raises:
        InputError: as [`agreement`], or `figure` is not known or needs `values`.
    """
    scale = None if values is None else checked_scale(values)
    if figure not in PLAIN + ROUNDED:
        raise InputError(f"figure {figure!r} is not known; known are {[*PLAIN, *ROUNDED]}.")
    if figure in ROUNDED and scale is None:
        raise InputError(f"figure {figure!r} rounds to the scale. Give its values, e.g. values=[1, 2, 3, 4, 5].")
    (first, y), (second, _) = _paired(a, gold), _paired(b, gold)
    both = np.isfinite(first) & np.isfinite(second)
    n, rng = int(both.sum()), np.random.default_rng(seed)
    group = grouped(_grouped(groups, len(both))[both], n)
    size = group.max(initial=-1) + 1
    pool = Agreement(np.concatenate([first[both], second[both]]), np.concatenate([y[both], y[both]]), scale)

    def figures(weights: Floats, others: Floats) -> Floats:
        """Figures `(2, R)` of the pool, where `a` has `weights` and `b` has `others`, `(n, R)`, and the reverse."""
        columns = np.block([[weights, others], [others, weights]])
        # Rounded, since the place of a column moves the last digits, and the same judge twice must not differ.
        return pool.figures([figure], columns)[figure].reshape(2, -1).round(12)

    of_a, of_b = figures(np.ones((n, 1)), np.zeros((n, 1)))[:, 0].tolist()
    resampled = (np.subtract(*figures(drawn, 0 * drawn)) for drawn in resamples(group, n_resamples, rng))
    bounds = around(of_a - of_b, resampled, size, confidence_level, LINEAR)
    if figure == "within_one" and not np.array_equal(first[both], second[both]):
        close = pool.within_one()
        bounds = around_share(close[:n] - close[n:], -1, 1, confidence_level, group)
    swaps = chunks(lambda: rng.integers(2, size=size)[group], n, n_permutations)
    permuted = [np.subtract(*figures(kept, 1 - kept)) for kept in swaps]
    found = {"n": len(both), "unscored": len(both) - n, "a": of_a, "b": of_b, "difference": of_a - of_b}
    return found | {"difference_ci": bounds, "p_value": p_value(of_a - of_b, permuted) if size > 1 else np.nan}


def pairwise_accuracy(first: Scores, second: Scores, *, confidence_level: float = 0.95) -> dict[str, Any]:
    """
    How often a judge gives the preferred response of a pair the higher score.

    Args:
        first, second (`Sequence[float]`): scores of the preferred and of the other responses, `(n,)`; NaN if unscored.
        confidence_level (`float`, *optional*, defaults to `0.95`): as in [`agreement`].

    Returns:
        `dict` with `accuracy`, a tie being half right, and `accuracy_ci`, a `(low, high)` pair, over the pairs with two
        scores; `accuracy_worst`, over all pairs, the others being wrong; `n`, the number of pairs; `ties`;
        `unscored`, how many lack a score. What is not defined is NaN. The interval is that of a score test,
        [`~tract_trainer.metrics.around_share`]: Wilson's where no pair is tied.

    Raises:
        InputError: the lengths differ.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one second score per first score, got shapes {x.shape} and {y.shape}.")
    scored = np.isfinite(x) & np.isfinite(y)
    right, n = (1 + np.sign(x[scored] - y[scored])) / 2, int(scored.sum())
    found: dict[str, Any] = {"n": len(x), "ties": int((right == 0.5).sum()), "unscored": len(x) - n}
    found["accuracy"] = float(right.mean()) if n else np.nan
    found["accuracy_worst"] = float(right.sum() / len(x)) if len(x) else np.nan
    return found | {"accuracy_ci": around_share(right, 0, 1, confidence_level)}


def accuracy_difference(a: Scores, b: Scores, *, seed: int = 42) -> dict[str, Any]:
    """
    The pairwise accuracy of judge `a` less that of judge `b`, over the pairs that both scored.

    Args:
        a, b (`Sequence[float]`): wins of either judge, `(n,)`: 1, 0, a half in a tie, NaN where unscored.
        seed (`int`, *optional*, defaults to `42`): seed of the permutations.

    Returns:
        `dict` as of [`paired_difference`], but with the interval of a score test,
        [`~tract_trainer.metrics.around_share`]: Tango's where no pair is tied.
    """
    # The mean of wins is their mean distance from 0, so what is computed for `mae` is the accuracy.
    found = paired_difference(a, b, np.zeros(len(a)), figure="mae", n_resamples=0, seed=seed)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return found | {"difference_ci": around_share(differences[np.isfinite(differences)], -1, 1, 0.95)}


def checked_gold(gold: Scores) -> Floats:
    """Gold scores as an array; an InputError where one is not finite."""
    y = np.asarray(gold, dtype=np.float64)
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise InputError(f"Gold scores must be finite numbers; number {row} is {y[row]}. Leave such records out.")
    return y


def checked_scale(values: Sequence[float]) -> Floats:
    """Values of a scale as an array; an InputError where they are not two or more different, finite numbers."""
    scale = np.asarray(values, dtype=np.float64)
    if scale.ndim != 1 or len(set(scale.tolist())) < max(2, len(scale)) or not np.isfinite(scale).all():
        raise InputError(f"Expected values of a scale, different numbers as in [1, 2, 3, 4, 5], got {list(values)}.")
    return scale


def _grouped(groups: Groups | None, n: int) -> Ints:
    if groups is not None and len(groups) != n:
        raise InputError(f"Expected a group for each of {n} records, got {len(groups)}.")
    return grouped(groups, n)


def _paired(predictions: Scores, gold: Scores) -> tuple[Floats, Floats]:
    x, y = np.asarray(predictions, dtype=np.float64), checked_gold(gold)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one gold score per prediction, got shapes {x.shape} and {y.shape}.")
    return x, y
