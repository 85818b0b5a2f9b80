"""Scores of judged records by each method: decoded labels, likeliest labels, expected scores (RAIL), medians.

A row is a mapping with the `rationales` of one record, as in the JSON file of an evaluation. `n` records, `C` scored
rationales of a record, `K` labels of the scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tract_trainer.hub.results import GIVEN
from tract_trainer.judging.judgment import MIN_MASS
from tract_trainer.metrics import Floats
from tract_trainer.scale import ScoreScale

Row = Mapping[str, Any]

METHODS = ("decoded", "greedy", "RAIL", "RAIL renormalised", "median")


def scores_by_method(
    rows: Sequence[Row], scale: ScoreScale, renormalized: bool, count: int | None = None
) -> dict[str, Floats]:
    """
    Scores of all records, `(n,)`, by each method, from the first `count` scored rationales of each row, by default all;
    in units of the scale, NaN for a record without a scored rationale. `renormalized` is how the judge was trained.

    - `decoded`: the value of the label that was written, or of the likeliest label if the judge was asked for one. Of
      several rationales, the mean.
    - `greedy`: the value of the likeliest label at the score position; of several rationales, the mean.
    - `RAIL`: the expected score, as the judge was trained; of several rationales, the mean.
    - `RAIL renormalised`: the same with each distribution divided by its sum.
    - `median`: the lowest value at or below which half of the mean distribution of the rationales lies.
    """
    found = [_scores(scored_rationales(row, count), scale, renormalized) for row in rows]
    return {method: np.array([scores[method] for scores in found]) for method in METHODS}


def result_scores(result: Mapping[str, Any]) -> dict[str, Floats]:
    """[`scores_by_method`] of the judgments of a result; if its scores were given, these as the one method."""
    if GIVEN in result["methods"]:
        return {GIVEN: np.array([row["score"] for row in result["judgments"]], dtype=np.float64)}
    config = result["judge"]["config"]
    scale = ScoreScale(config["score_labels"], config["score_values"])
    return scores_by_method(result["judgments"], scale, config["renormalize_scores"])


def scored_rationales(row: Row, count: int | None = None) -> list[Mapping[str, Any]]:
    """The first `count` rationales of a row that have a score: a probability on the scale of at least `MIN_MASS`."""
    return [one for one in row["rationales"] if one["probs"] is not None and sum(one["probs"]) >= MIN_MASS][:count]


def mean_mass(rows: Sequence[Row], count: int | None = None) -> float:
    """Probability on the labels of the scale, the mean over the scored records; NaN if there is none."""
    masses = [np.mean([sum(r["probs"]) for r in used]) for row in rows if (used := scored_rationales(row, count))]
    return float(np.mean(masses)) if masses else np.nan


def _scores(rationales: Sequence[Mapping[str, Any]], scale: ScoreScale, renormalized: bool) -> dict[str, float]:
    if not rationales:
        return dict.fromkeys(METHODS, np.nan)
    values = np.array(scale.values)  # (K,)
    labels = [scale.value(rationale["label"]) for rationale in rationales]
    probs = np.array([rationale["probs"] for rationale in rationales])  # (C, K)
    expected = probs @ values  # (C,)
    inside = expected / probs.sum(1)
    order = np.argsort(values)
    below = np.cumsum(probs.mean(0)[order])
    scores = {
        "decoded": np.mean(labels),
        "greedy": values[probs.argmax(1)].mean(),
        "RAIL": (inside if renormalized else expected).mean(),
        "RAIL renormalised": inside.mean(),
        # Probabilities are float32: half may be 0.4999999, and rounding must not choose between two values.
        "median": values[order][below / below[-1] >= 0.5 - 1e-6][0],
    }
    # Rounded, since the last digit of a mean of tenths depends on their order, and would break ties.
    return {method: round(float(score), 12) for method, score in scores.items()}
