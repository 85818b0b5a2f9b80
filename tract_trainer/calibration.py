"""Turns distributions over a scale and gold scores into how far the probabilities can be taken at their word.

Knows nothing of models. A row with a NaN is unscored. `n` records, `K` values of the scale, `B` bins, `R` resamples.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tract_trainer.errors import InputError
from tract_trainer.metrics import Scores, checked_gold, checked_scale
from tract_trainer.resampling import Floats, Ints, interval, resamples

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
    counts = binned.inside.sum(0)
    sums = (np.einsum("nk,nkb->kb", side, binned.inside) for side in (binned.predicted, binned.reached))
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
        n_resamples (`int`, *optional*, defaults to `1000`): bootstrap resamples of records.
        seed (`int`, *optional*, defaults to `42`): seed of all draws.

    Returns:
        `dict` with `error`; `error_ci`, a `(low, high)` pair of 95 %; `error_by_chance`, the mean error of gold scores
        drawn from the predictions themselves, which is that of a calibrated judge with so many records; and
        `thresholds`, `predicted`, `observed`, `counts`, the lists of [`reliability_curve`].

        The interval is reflected about the error (`2 error - high`, `2 error - low`, at least 0), since chance raises
        every resample once more: with 320 records it covers about 90 % where the judge is not calibrated, percentiles
        40 % and less. No interval covers the error of a judge that is calibrated: compare that with
        `error_by_chance`.
    """
    binned, rng = _Binned.of(probs, gold, values, 10), np.random.default_rng(seed)
    error = binned.error()
    low, high = interval((binned.errors(drawn) for drawn in resamples(len(binned.reached), n_resamples, rng)), 0.95)
    chance = [binned.redrawn(rng).error() for _ in range(CHANCE_DRAWS)]
    curve = reliability_curve(probs, gold, values)
    return {
        "error": error,
        "error_ci": tuple(np.maximum(0.0, [2 * error - high, 2 * error - low]).tolist()),
        "error_by_chance": float(np.mean(chance)),
        **{name: getattr(curve, name).tolist() for name in curve._fields},
    }


class _Binned(NamedTuple):
    """The scored records, by the bin of each predicted probability."""

    thresholds: Floats  # (K - 1,)
    predicted: Floats  # (n, K - 1), probability of a score at or below each threshold
    reached: Floats  # (n, K - 1), 1 where the gold score is, 0 where it is not
    inside: Floats  # (n, K - 1, B), 1 in the bin of each probability, 0 elsewhere

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
        inside = (bins[:, :, None] == np.arange(n_bins)).astype(np.float64)
        thresholds = scale[order][:-1]
        return cls(thresholds, predicted, (y[scored, None] <= thresholds).astype(np.float64), inside)

    def errors(self, weights: Floats) -> Floats:
        """Calibration error, `(R,)`, where each record counts as often as each column of `weights`, `(n, R)`, says."""
        # A bin's records times the difference of its means is the sum of their differences.
        gaps = (self.inside * (self.predicted - self.reached)[:, :, None]).reshape(len(self.reached), -1)
        return np.abs(gaps.T @ weights).sum(0) / len(self.thresholds) / weights.sum(0)

    def error(self) -> float:
        n = len(self.reached)
        return float(self.errors(np.ones((n, 1)))[0]) if n else np.nan

    def redrawn(self, rng: np.random.Generator) -> "_Binned":
        """The same predictions with gold scores drawn from them."""
        drawn = rng.random((len(self.reached), 1)) < self.predicted
        return self._replace(reached=drawn.astype(np.float64))
