"""Calibration of a judge's probabilities: reliability curve and expected calibration error.

`n` records, `K` values of the scale, `B` bins.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tract_trainer.errors import InputError
from tract_trainer.metrics import Floats, checked_scale

CHANCE_DRAWS = 200


def calibration(
    probs: Sequence[Sequence[float]] | Floats,
    gold: Sequence[float] | Sequence[Sequence[float]] | Floats,
    values: Sequence[float],
    n_bins: int = 10,
) -> dict[str, Any]:
    """
    How well predicted probabilities of a score at or below each value of the scale fit the observed shares.

    The error is `1 / (K - 1) sum_k sum_b n_kb / n |mean predicted P(score <= v_k) - share of gold <= v_k|`, over the
    thresholds `v_k`, all values but the highest, and bins `b` of the predicted probability: the classwise error of Kull
    et al. (2019), "Beyond temperature scaling", of cumulative probabilities, because a gold score between two values
    has no class. 0 is best, 1 is worst. Bins of few records raise it by chance.

    Args:
        probs (`Sequence[Sequence[float]]`):
            Probability of each value, `(n, K)`. Rows are divided by their sum; those with a NaN are unscored and left
            out.
        gold (`Sequence[float]` or `Sequence[Sequence[float]]`):
            Gold scores, `(n,)`, or the ratings of each record, each with weight 1 / number of ratings. A score between
            two values is above the lower and below the higher.
        values (`Sequence[float]`): values of the scale, `(K,)`, in the order of the columns of `probs`.
        n_bins (`int`, *optional*, defaults to `10`): bins of equal width between 0 and 1.

    Returns:
        `dict` of plain numbers and lists: `error`; `error_by_chance`, the mean error if the gold score of each record
        is drawn from its predicted distribution: what a calibrated judge gets with so many records (it gets one draw
        for several ratings, which hardly differ); `thresholds`, ascending, `(K - 1,)`; and by threshold and bin,
        `(K - 1, B)`, the mean `predicted` probability, the `observed` share of gold scores, and `counts`, the number of
        records. NaN is what has no records.

    Raises:
        InputError: shapes do not fit, a gold score is not finite, a row is no distribution, or `values` no scale.
    """
    thresholds, predicted, reached = _cumulative(probs, gold, values)
    # Bins are numbered on from threshold to threshold.
    bins = np.minimum((predicted * n_bins).astype(np.int64), n_bins - 1) + n_bins * np.arange(len(thresholds))

    def sums(side: Floats) -> Floats:  # (K - 1, B)
        return np.bincount(bins.ravel(), side.ravel(), n_bins * len(thresholds)).reshape(-1, n_bins).astype(np.float64)

    def error(shares: NDArray[Any]) -> float:
        # The records of a bin times the difference of its means is the sum of their differences.
        return float(np.abs(sums(predicted - shares)).sum() / predicted.size) if predicted.size else math.nan

    rng, counts = np.random.default_rng(42), sums(np.ones_like(predicted))
    return {
        "error": error(reached),
        "error_by_chance": np.mean([error(rng.random((len(bins), 1)) < predicted) for _ in range(CHANCE_DRAWS)]).item(),
        "thresholds": thresholds.tolist(),
        "predicted": (sums(predicted) / np.where(counts, counts, np.nan)).tolist(),
        "observed": (sums(reached) / np.where(counts, counts, np.nan)).tolist(),
        "counts": counts.astype(np.int64).tolist(),
    }


def _cumulative(probs: Any, gold: Any, values: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """
    Thresholds, `(K - 1,)`; for each scored record the predicted probability of a score at or below each, and the share
    of its ratings that are, both `(n, K - 1)`.
    """
    scale, p = checked_scale(values), np.asarray(probs, dtype=np.float64)
    ratings = [np.atleast_1d(np.asarray(of_record, dtype=np.float64)) for of_record in gold]
    for number, of_record in enumerate(ratings):
        if not of_record.size or not np.isfinite(of_record).all():
            raise InputError(
                f"Gold scores must be finite numbers; number {number} is {gold[number]}. Leave such records out."
            )
    expected = len(ratings), len(scale)
    if p.shape != expected and p.size + len(ratings):
        raise InputError(f"Expected a row for each gold score, shape {expected}, got shape {p.shape}.")
    p = p.reshape(expected)  # without rows, whatever the shape
    bad = np.flatnonzero((p < 0).any(1) | np.isinf(p).any(1) | (p == 0).all(1))
    if len(bad):
        raise InputError(f"Expected probabilities or NaN (unscored), got {p[bad[0]].tolist()} in row {bad[0]}.")
    scored, order = np.flatnonzero(~np.isnan(p).any(1)), np.argsort(scale)
    thresholds, cumulative = scale[order][:-1], np.cumsum(p[scored][:, order], axis=1)
    reached = [(ratings[number][:, None] <= thresholds).mean(0) for number in scored]
    return thresholds, cumulative[:, :-1] / cumulative[:, -1:], np.reshape(reached, (len(reached), len(thresholds)))
