"""Turns a figure and what chance does to it into an interval or a p-value, by a method for each kind of figure.

Correlations, concordance and errors have [`around`], shares [`around_share`], weighted means of shares [`of_mean`]. How
often each covers the true figure is measured in tests/test_intervals.py, and is told in docs/evaluation.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtri, stdtrit

from tract_trainer.errors import InputError
from tract_trainer.resampling import Floats, Ints

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
        group (`numpy.ndarray`, *optional*): from [`~tract_trainer.resampling.grouped`], `(n,)`.
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
