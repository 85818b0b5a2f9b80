"""Turns estimates that chance spreads about small true values into estimates of those values' sizes.

The size of such an estimate is too large on average, since chance moves it away from 0 on either side. `G` draws of the
normal distribution, `M` of its means.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import stdtrit

from tract_trainer.errors import InputError
from tract_trainer.metrics import NONE, Floats, Interval, Ints, Scores, checked_gold, checked_scale, p_value

STEP = 0.05

END = 4.0
"""Standard errors from which on a draw's size is taken as it is."""

MANY, FEW = 20, 10
"""Terms of the sum that is to be estimated well: the more, the more the bias of a term counts beside its spread."""


def unfolded(draws: Floats, errors: Floats, terms: int) -> Floats:
    """
    For each of the normal `draws`, `(..., C)`, with these standard errors, `(C,)`, an estimate of the size of its mean.

    No function of a draw has the size of the mean for its expectation, whatever the mean: Cai and Low (2011), Annals of
    Statistics 39, 1012-1041. The draw's own size is .8 standard errors too large where the mean is 0. This is the
    function with the least `terms bias^2 + variance`, over all means. That of `MANY` terms is .42 too large at 0, .05
    at .5, and at most .09 too small beyond; that of `FEW` is .50 too large at 0, .12 at .5, and at most .08 too small.
    """
    sizes = np.abs(draws)
    known = errors > 0
    units = sizes / np.where(known, errors, 1.0)
    inner = np.interp(units, *_estimates(terms)) * errors
    return np.where(known & (units < END), inner, sizes)


@cache
def _estimates(terms: int) -> tuple[Floats, Floats]:
    """
    Draws, `(G,)`, from 0 to `END`, and the estimates `f` of the size of their mean: those with the least
    `terms bias^2 + variance`, summed over means from 0 on.
    """
    draws, means = np.arange(0, END + 8, STEP), np.arange(0, END + 3, STEP)
    # Chances of a draw of either sign, (M, G); 0 has but one.
    chances = sum(np.exp(-((draws - sign * means[:, None]) ** 2) / 2) for sign in (1, -1)) * STEP / np.sqrt(2 * np.pi)
    chances[:, 0] /= 2
    free = draws <= END
    inner, left = chances[:, free], means - chances[:, ~free] @ draws[~free]  # what inner @ f is to be
    # (terms - 1) (inner f - left)^2 + sum of inner (f - mean)^2, with its derivative by f set to 0.
    by_f = (terms - 1) * inner.T @ inner + np.diag(inner.sum(0))
    return draws[free], np.linalg.solve(by_f, (terms - 1) * inner.T @ left + means @ inner)


Rows = Sequence[Sequence[float]] | Floats

CHANCE_DRAWS = 200


class ReliabilityCurve(NamedTuple):
    """How often a score is at or below each threshold, predicted and observed; NaN in a bin without records."""

    thresholds: Floats  # (K - 1,), values of the scale, ascending, without the highest
    predicted: Floats  # (K - 1, B), mean predicted probability
    observed: Floats  # (K - 1, B), share of gold scores
    counts: Ints  # (K - 1, B), records


def reliability_curve(probs: Rows, gold: Scores, values: Sequence[float], n_bins: int = 10) -> ReliabilityCurve:
    """
    The points of a reliability diagram for each threshold of the scale.

    Args:
        probs (`Sequence[Sequence[float]]`):
            Probability of each value, `(n, K)`. Rows are divided by their sum; those with a NaN are unscored, left out.
        gold (`Sequence[float]`): gold scores, `(n,)`. One between two values is above the lower and below the higher.
        values (`Sequence[float]`): values of the scale, `(K,)`, in the order of the columns of `probs`.
        n_bins (`int`, *optional*, defaults to `10`): bins of equal width between 0 and 1.

    Raises:
        InputError: shapes do not fit, a gold score is not finite, a row is no distribution, or `values` no scale.
    """
    binned = _Binned.of(probs, gold, values, n_bins)
    sides = (np.ones_like(binned.reached), binned.predicted, binned.reached)
    counts, *sums = (binned.sums(side).reshape(-1, n_bins) for side in sides)
    means = [total / np.where(counts, counts, np.nan) for total in sums]
    return ReliabilityCurve(binned.thresholds, means[0], means[1], counts.astype(np.int64))


def calibration_error(probs: Rows, gold: Scores, values: Sequence[float], n_bins: int = 10) -> float:
    """
    Expected calibration error of the probabilities that a score is at or below each value but the highest.

    `1 / (K - 1) sum_k sum_b n_kb / n |mean predicted P(score <= v_k) - share of gold <= v_k|`, over thresholds `v_k`
    and bins `b` of [`reliability_curve`], whose arguments these are. It is the classwise error of Kull et al. (2019),
    "Beyond temperature scaling", but of cumulative probabilities: a gold score between two values is of no class.
    0 is best, 1 is worst, NaN is of no scored row; bins of few records raise it by chance.
    """
    return _Binned.of(probs, gold, values, n_bins).error()


def calibration(
    probs: Rows, gold: Scores, values: Sequence[float], *, n_resamples: int = 1000, seed: int = 42
) -> dict[str, Any]:
    """
    The calibration error with what chance adds to it.

    Args:
        probs, gold, values: as in [`reliability_curve`].
        n_resamples (`int`, *optional*, defaults to `1000`): draws of the bins' gaps for the interval; 0 for none.
        seed (`int`, *optional*, defaults to `42`): seed of all draws.

    Returns:
        `dict` with `error`; `error_ci`, a `(low, high)` pair of 95 %; `error_by_chance`, the mean error of gold scores
        drawn from the predictions themselves, which is that of a calibrated judge with so many records; and
        `thresholds`, `predicted`, `observed`, `counts`, the lists of [`reliability_curve`].

        The interval is of the error that many such records would have. What chance adds to the sizes of the bins' gaps
        depends on the true gaps: most where they are 0, nothing where they are large. So the error is summed up anew
        from sizes that [`~tract_trainer.evaluation.calibration.unfolded`] estimates almost without what chance adds,
        in two ways:
        one is hardly too large, the other hardly too small. The interval is of all that is within t standard errors of
        either sum, from normal draws of all gaps, and is widened where records are few beside the bins. It begins at 0
        unless the error is larger than in 95 % of the data sets of a calibrated judge: so it covers 0, that judge's
        error, with 95 %.
    """
    binned, rng = _Binned.of(probs, gold, values, 10), np.random.default_rng(seed)
    error = binned.error()
    chance = np.array([binned.redrawn(rng).error() for _ in range(CHANCE_DRAWS)])
    curve = reliability_curve(probs, gold, values)
    return {
        "error": error,
        "error_ci": _interval(binned, n_resamples, rng, by_chance=p_value(error, [chance]) > 0.05),
        "error_by_chance": float(np.mean(chance)),
        **{name: getattr(curve, name).tolist() for name in curve._fields},
    }


def _interval(binned: "_Binned", times: int, rng: np.random.Generator, by_chance: bool) -> Interval:
    if len(binned.reached) < 2 or not times:
        return NONE
    gaps, covariance, expected = binned.gaps()
    still = np.flatnonzero(covariance.diagonal() == 0)
    covariance[still, still] = expected[still]
    own = np.sqrt(covariance.diagonal().clip(0))
    # Where a rare score happens not to be among a bin's few records, their own spread is too small.
    errors = np.sqrt(np.maximum(covariance.diagonal(), expected))
    variances, axes = np.linalg.eigh(covariance)  # clipped, since rounding leaves negative ones, of which numpy warns
    noise = (rng.standard_normal((times, len(gaps))) * np.sqrt(variances.clip(0))) @ axes.T
    noise *= np.divide(errors, own, out=np.ones_like(own), where=own > 0)
    sums = np.array([unfolded(gaps, errors, terms).sum() for terms in (FEW, MANY)])
    n, occupied = len(binned.reached), np.count_nonzero(binned.sums(np.ones_like(binned.reached)))
    # As if each bin took a degree of freedom. That is no derivation: without it, few records are covered too seldom.
    left = max(1.0, n - occupied / len(binned.thresholds))
    student = float(stdtrit(left, 0.975)) * math.sqrt((n - 1) / left)
    reach = [student * unfolded(gaps + noise, errors, terms).sum(1).std() for terms in (FEW, MANY)]
    low, high = np.clip([(sums - reach).min(), (sums + reach).max()], 0.0, 1.0).tolist()
    return 0.0 if by_chance else low, high


class _Binned(NamedTuple):
    """The scored records, by the bin of each predicted probability."""

    thresholds: Floats  # (K - 1,)
    predicted: Floats  # (n, K - 1), probability of a score at or below each threshold
    reached: Floats  # (n, K - 1), 1 where the gold score is, 0 where it is not
    cells: Ints  # (n, K - 1), the bin of each probability, counted on from threshold to threshold
    n_cells: int  # C

    @classmethod
    def of(cls, probs: Rows, gold: Scores, values: Sequence[float], n_bins: int) -> "_Binned":
        scale, p, y = checked_scale(values), np.asarray(probs, dtype=np.float64), checked_gold(gold)
        if p.shape != (len(y), len(scale)) and p.size + len(y):
            raise InputError(f"Expected a row for each gold score, shape {(len(y), len(scale))}, got shape {p.shape}.")
        p = p.reshape(len(y), len(scale))  # where there is no row, whatever the shape
        bad = np.flatnonzero((p < 0).any(1) | np.isinf(p).any(1) | (p == 0).all(1))
        if len(bad):
            raise InputError(f"Expected probabilities or NaN (unscored), got {p[bad[0]].tolist()} in row {bad[0]}.")
        scored, order = ~np.isnan(p).any(1), np.argsort(scale)
        cumulative = np.cumsum(p[scored][:, order], axis=1)
        predicted = cumulative[:, :-1] / cumulative[:, -1:]
        bins = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)
        thresholds = scale[order][:-1]
        cells, reached = bins + n_bins * np.arange(len(thresholds)), y[scored, None] <= thresholds
        return cls(thresholds, predicted, reached.astype(np.float64), cells, n_bins * len(thresholds))

    def sums(self, side: Floats) -> Floats:
        """Sums over the records of each cell, `(C,)`, of what is given for each threshold, `(n, K - 1)`."""
        return np.bincount(self.cells.ravel(), side.ravel(), self.n_cells).astype(np.float64)

    def gaps(self) -> tuple[Floats, Floats, Floats]:
        """
        What each cell adds to the calibration error, with its sign, `(C,)`; the covariance of these, `(C, C)`; and
        their variance, `(C,)`, if the judge were calibrated. Where all gold scores of a cell are on one side it is at
        least that of Agresti and Coull's (1998) share, with two more on either: a judge that is sure of all it says,
        and right as often as there are records, is not known to be right always.
        """
        n, width = self.reached.shape
        parts = ((self.predicted - self.reached) / width).ravel(), self.cells.ravel(), np.arange(n + 1) * width
        of_record = csr_array(parts, shape=(n, self.n_cells))
        means: Floats = of_record.sum(0) / n
        covariance = ((of_record.T @ of_record).toarray() / n - np.outer(means, means)) / (n - 1)
        counts, reached = self.sums(np.ones_like(self.reached)), self.sums(self.reached)
        share = (reached + 2) / (counts + 4)
        unseen = np.where((reached == 0) | (reached == counts), counts * share * (1 - share), 0.0)
        expected = np.maximum(self.sums(self.predicted * (1 - self.predicted)), unseen)
        return means, covariance, expected / (width * n) ** 2

    def error(self) -> float:
        # A cell's records times the difference of its means is the sum of their differences.
        n, width = self.reached.shape
        return float(np.abs(self.sums(self.predicted - self.reached)).sum() / width / n) if n else np.nan

    def redrawn(self, rng: np.random.Generator) -> "_Binned":
        """The same predictions with gold scores drawn from them."""
        drawn = rng.random((len(self.reached), 1)) < self.predicted
        return self._replace(reached=drawn.astype(np.float64))
