"""Calibration of a judge: reliability and calibration error of its probabilities, and a map of its expected scores.

`n` records, `K` values of the scale, `B` bins.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from tract_trainer.data.settings import differences
from tract_trainer.errors import InputError
from tract_trainer.evaluation.methods import result_scores
from tract_trainer.hub.results import GIVEN
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.metrics import MIN_FOLDS, Floats, checked_scale, group_numbers, paired_difference

CHANCE_DRAWS = 200
FOLDS = 10


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
        is drawn from its predicted distribution: what a calibrated judge gets with so many records; `thresholds`,
        ascending, `(K - 1,)`; and by threshold and bin, `(K - 1, B)`, the mean `predicted` probability, the `observed`
        share of gold scores, and `counts`, the number of records. NaN is what has no records.
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


def fit(result: Mapping[str, Any], config: JudgeConfig, weights: str) -> dict[str, Any]:
    """
    A map from a judge's expected scores to gold scores: isotonic regression on the scored records of a result, which
    the judge was not trained on. `weights` is the fingerprint [`Judge.weights`].

    Returns:
        `dict`: `scores`, ascending, and what they are mapped to, `calibrated`, in units of the scale. Between two of
        them the map is linear, outside it is constant. `weights`, `score_values` and `num_cots` are those of the
        judgments: the map is for no others.
    """
    if GIVEN in result["methods"] or "gold" not in result["judgments"][0]:
        raise InputError(
            "A calibration is fitted on a judge's own judgments of scored records: a result of tract evaluate."
        )
    made_by = {**result["judge"]["config"], "weights": result["judge"].get("weights")}
    if changed := differences(made_by, {**config.settings, "weights": weights}):
        told = "\n  ".join(changed)
        raise InputError(
            f"The result is not of this judge:\n  {told}\nEvaluate the judge in this folder, and calibrate it on that "
            "result."
        )
    scores, gold, groups = _scored(result)
    if (count := len(set(groups.tolist()))) < MIN_FOLDS:
        raise InputError(
            f"{len(scores)} scored records in {count} groups are too few: a calibration needs at least {MIN_FOLDS} "
            "groups, and dozens to be of use."
        )
    x, y = _isotonic(scores, gold)
    of = {"weights": weights, "score_values": config.score_values, "num_cots": result["settings"]["num_cots"]}
    return {**of, "scores": x.tolist(), "calibrated": y.tolist()}


def cross_fitted_effect(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a calibration does for records that it was not fitted on: those of each tenth of the groups, with the map of
    the others. As of [`~tract_trainer.evaluation.comparison.compare`], `a` with it, `b` without. The intervals take the
    ten maps as given.
    """
    scores, gold, groups = _scored(result)
    number = group_numbers(groups, len(groups))
    fold = (np.random.default_rng(0).permutation(int(number.max()) + 1) % FOLDS)[number]
    mapped = np.empty_like(scores)
    for one in np.unique(fold):
        mapped[fold == one] = np.interp(scores[fold == one], *_isotonic(scores[fold != one], gold[fold != one]))
    shown = ("rmse", "mae", "pearson")
    figures = {name: paired_difference(mapped, scores, gold, figure=name, groups=groups) for name in shown}
    names = {"a": "calibrated", "b": "as judged", "benchmark": result["benchmark"]["name"]}
    n = len(result["judgments"])
    return {**names, "method": "RAIL", "n": n, "unscored": n - len(scores), "figures": figures}


def _scored(result: Mapping[str, Any]) -> tuple[Floats, Floats, NDArray[Any]]:
    """Expected scores, gold scores and groups of the scored records, `(n,)` each."""
    scores = result_scores(result)["RAIL"]
    gold, groups = (np.array([row[name] for row in result["judgments"]]) for name in ("gold", "group"))
    scored = np.isfinite(scores)
    return scores[scored], gold[scored].astype(np.float64), groups[scored]


def _isotonic(scores: Floats, gold: Floats) -> tuple[Floats, Floats]:
    """The ends of the steps of the isotonic regression: scores, ascending, and its values there."""
    x, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    found = isotonic_regression(np.bincount(place, gold) / counts, weights=counts)
    ends = np.union1d(found.blocks[:-1], found.blocks[1:] - 1)
    return x[ends], found.x[ends]
