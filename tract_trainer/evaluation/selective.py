"""Risk against coverage: the error of the judgments that are kept where those the judge is least sure of are not.

`n` scored records, `P` points of a curve.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tract_trainer.evaluation.methods import Row, scored_rationales
from tract_trainer.metrics import Floats, interval, standard_errors

POINTS = 20  # of a curve: coverages of 5 %, 10 %, ..., 100 %


def selective(rows: Sequence[Row], scores: Floats, values: Sequence[float], renormalized: bool) -> dict[str, Any]:
    """
    Risk-coverage curves of the order in which a judge is sure of its judgments.

    The area is `1 / n sum_i r(i)`, where `r(i)` is the mean squared error of the `i` surest records: AURC of Geifman,
    Uziel and El-Yaniv (2019), "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", of the risk of Geifman
    and El-Yaniv (2017), "Selective Classification for Deep Neural Networks". Records that the judge is equally sure of
    are kept in random order, and `r(i)` is the expectation.

    Returns:
        `dict`, empty if no record is scored. `coverage`, share of the scored records that are kept, `(P,)`;
        `area_random`, the expected area of a random order; `orders`, by name:

        - `std`: the judgments with the lowest `std` first.
        - `spread`: of several rationales, the records first whose rationales' expected scores have the lowest standard
          deviation. Those with only one scored rationale are last.
        - `oracle`: the lowest absolute error first. No order has a lower area.

        Each has `rmse` and `mae` of the kept records, `(P,)`, in units of the scale; `threshold`, the highest std,
        spread or error among them, `(P,)`; `area`; `gain`, `(area_random - area) / (area_random - oracle's area)`, 0
        for a random order and 1 for the oracle; `gain_ci`, its 95 % interval.
    """
    kept = [row for row, score in zip(rows, scores, strict=True) if np.isfinite(score)]
    if not kept:
        return {}
    n, errors = len(kept), scores[np.isfinite(scores)] - [row["gold"] for row in kept]
    orders = {"std": np.array([row["std"] for row in kept])}
    if any(len(row["rationales"]) > 1 for row in kept):
        orders["spread"] = np.array([_spread(row, values, renormalized) for row in kept])
    orders["oracle"] = np.abs(errors)
    places = -(-n * np.arange(1, POINTS + 1) // POINTS) - 1  # of the last record that is kept

    def gains(part: NDArray[np.bool_]) -> list[float]:
        squares = errors[part] ** 2
        *others, best = (_risks(squares, order[part]).mean() for order in orders.values())
        room = squares.mean() - best
        return [float((squares.mean() - area) / room) if room > 0 else math.nan for area in others] + [1.0]

    found, (spreads, folds) = gains(np.ones(n, dtype=bool)), standard_errors(gains, [row["group"] for row in kept])
    curves = {}
    for (name, order), gain, error in zip(orders.items(), found, spreads, strict=True):
        risks, highest = _risks(errors**2, order), np.sort(order)[places]
        curves[name] = {
            "rmse": np.sqrt(risks[places]).tolist(),
            "mae": _risks(np.abs(errors), order)[places].tolist(),
            "threshold": np.where(np.isinf(highest), np.nan, highest).tolist(),
            "area": float(risks.mean()),
            "gain": gain,
            "gain_ci": interval(gain, float(error), folds),
        }
    return {"coverage": ((places + 1) / n).tolist(), "area_random": float(np.mean(errors**2)), "orders": curves}


def _risks(losses: Floats, uncertainty: Floats) -> Floats:
    """Mean loss of the surest 1, 2, ..., n records, `(n,)`, expected over the orders of those equally sure."""
    _, place, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    means = np.bincount(place, losses) / counts
    risks: Floats = np.cumsum(means[np.sort(place)]) / np.arange(1, len(losses) + 1)
    return risks


def _spread(row: Row, values: Sequence[float], renormalized: bool) -> float:
    """Standard deviation of the expected scores of a record's rationales; infinite if only one is scored."""
    probs = np.array([one["probs"] for one in scored_rationales(row)])  # (C, K)
    expected = probs @ values / (probs.sum(1) if renormalized else 1)
    # Rounded, or equal scores would differ in their last digit.
    return round(float(expected.std()), 12) if len(probs) > 1 else math.inf
