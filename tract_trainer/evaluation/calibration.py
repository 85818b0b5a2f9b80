"""Calibration of a judge's probabilities: reliability curve and expected calibration error of each score threshold.

`n` records, `K` values of the scale, `B` bins.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tract_trainer.errors import InputError
from tract_trainer.metrics import Floats, Ints, checked_scale

Probabilities = Sequence[Sequence[float]] | Floats

Gold = Sequence[float] | Sequence[Sequence[float]] | Floats

CHANCE_DRAWS = 200


class ReliabilityCurve(NamedTuple):
    """How often a score is at or below each threshold, predicted and observed; NaN in a bin without records."""

    thresholds: Floats  # (K - 1,), values of the scale, ascending, without the highest
    predicted: Floats  # (K - 1, B), mean predicted probability
    observed: Floats  # (K - 1, B), share of gold scores
    counts: Ints  # (K - 1, B), records


def reliability_curve(probs: Probabilities, gold: Gold, values: Sequence[float], n_bins: int = 10) -> ReliabilityCurve:
    """
    The points of a reliability diagram for each threshold of the scale.

    Args:
        probs (`Sequence[Sequence[float]]`):
            Probability of each value, `(n, K)`. Rows are divided by their sum; those with a NaN are unscored and left
            out.
        gold (`Sequence[float]` or `Sequence[Sequence[float]]`):
            Gold scores, `(n,)`, or the ratings of each record. Each rating of a record is compared by itself, and its
            weight is 1 / number of ratings: the mean of three ratings is not a rating. A score between two values is
            above the lower and below the higher.
        values (`Sequence[float]`): values of the scale, `(K,)`, in the order of the columns of `probs`.
        n_bins (`int`, *optional*, defaults to `10`): bins of equal width between 0 and 1.

    Raises:
        InputError: shapes do not fit, a gold score is not finite, a row is no distribution, or `values` no scale.
    """
    thresholds, predicted, reached = _cumulative(probs, gold, values)
    bins = _bins(predicted, n_bins)
    counts, *sums = (_bin_sums(bins, side, n_bins) for side in (np.ones_like(predicted), predicted, reached))
    means = [total / np.where(counts, counts, np.nan) for total in sums]
    return ReliabilityCurve(thresholds, means[0], means[1], counts.astype(np.int64))


def calibration_error(probs: Probabilities, gold: Gold, values: Sequence[float], n_bins: int = 10) -> float:
    """
    Expected calibration error of the probabilities that a score is at or below each value but the highest.

    `1 / (K - 1) sum_k sum_b n_kb / n |mean predicted P(score <= v_k) - share of gold <= v_k|`, over thresholds `v_k`
    and bins `b` of [`reliability_curve`], whose arguments these are. It is the classwise error of Kull et al. (2019),
    "Beyond temperature scaling", of cumulative probabilities, because a gold score between two values has no class.
    0 is best, 1 is worst; NaN without a scored row. Bins of few records raise it by chance.
    """
    _, predicted, reached = _cumulative(probs, gold, values)
    return _error(_bins(predicted, n_bins), predicted - reached, n_bins)


def calibration(probs: Probabilities, gold: Gold, values: Sequence[float]) -> dict[str, Any]:
    """
    The calibration error, and how large it would be by chance.

    Args:
        probs, gold, values: as in [`reliability_curve`].

    Returns:
        `dict` with `error`; `error_by_chance`, the mean error if the gold score of each record is drawn from its
        predicted distribution: what a calibrated judge gets with so many records; and `thresholds`, `predicted`,
        `observed`, `counts`, the lists of [`reliability_curve`]. A record with several ratings gets one draw, since
        the ratings of a response hardly differ; if they do, chance is smaller than `error_by_chance`.
    """
    curve, rng = reliability_curve(probs, gold, values), np.random.default_rng(42)
    _, predicted, _ = _cumulative(probs, gold, values)
    bins = _bins(predicted, 10)
    by_chance = [_error(bins, predicted - (rng.random((len(bins), 1)) < predicted), 10) for _ in range(CHANCE_DRAWS)]
    return {
        "error": calibration_error(probs, gold, values),
        "error_by_chance": float(np.mean(by_chance)),
        **{name: getattr(curve, name).tolist() for name in curve._fields},
    }


def _cumulative(probs: Probabilities, gold: Gold, values: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """
    Thresholds, `(K - 1,)`; for each scored record the predicted probability of a score at or below each, and the share
    of its ratings that are, both `(n, K - 1)`.
    """
    scale, p, ratings = checked_scale(values), np.asarray(probs, dtype=np.float64), _ratings(gold)
    if p.shape != (len(ratings), len(scale)) and p.size + len(ratings):
        expected = len(ratings), len(scale)
        raise InputError(f"Expected a row for each gold score, shape {expected}, got shape {p.shape}.")
    p = p.reshape(len(ratings), len(scale))  # without rows, whatever the shape
    bad = np.flatnonzero((p < 0).any(1) | np.isinf(p).any(1) | (p == 0).all(1))
    if len(bad):
        raise InputError(f"Expected probabilities or NaN (unscored), got {p[bad[0]].tolist()} in row {bad[0]}.")
    scored, order = np.flatnonzero(~np.isnan(p).any(1)), np.argsort(scale)
    thresholds, cumulative = scale[order][:-1], np.cumsum(p[scored][:, order], axis=1)
    reached = [(ratings[number][:, None] <= thresholds).mean(0) for number in scored]
    return thresholds, cumulative[:, :-1] / cumulative[:, -1:], np.reshape(reached, (len(reached), len(thresholds)))


def _ratings(gold: Gold) -> list[Floats]:
    """The ratings of each record."""
    ratings = []
    for number, one in enumerate(gold):
        of_record = np.atleast_1d(np.asarray(one, dtype=np.float64))
        if not of_record.size or not np.isfinite(of_record).all():
            raise InputError(f"Gold scores must be finite numbers; number {number} is {one}. Leave such records out.")
        ratings.append(of_record)
    return ratings


def _bins(predicted: Floats, n_bins: int) -> Ints:
    """The bin of each probability, `(n, K - 1)`, counted on from threshold to threshold."""
    bins = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1)
    return bins + n_bins * np.arange(predicted.shape[1])


def _bin_sums(bins: Ints, side: Floats, n_bins: int) -> Floats:
    """Sums of `side`, `(n, K - 1)`, over the records in each bin, `(K - 1, B)`."""
    width = bins.shape[1]
    return np.bincount(bins.ravel(), side.ravel(), n_bins * width).reshape(width, n_bins).astype(np.float64)


def _error(bins: Ints, gaps: Floats, n_bins: int) -> float:
    """Of the predicted probability minus the observed share of each record and threshold, `(n, K - 1)`."""
    # The records of a bin times the difference of its means is the sum of their differences.
    return float(np.abs(_bin_sums(bins, gaps, n_bins)).sum() / gaps.size) if gaps.size else np.nan
