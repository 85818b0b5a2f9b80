"""Accuracy of a judge on pairs: the response with the higher score wins, equal scores are half a win.

`P` is the number of pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS, REWARD_BENCH_SUBSETS
from tract_trainer.errors import InputError


def pair_figures(scores: Sequence[float] | NDArray[np.float64], subsets: Sequence[str]) -> dict[str, Any]:
    """
    Accuracy of the scores of pairs.

    Args:
        scores (`Sequence[float]`): scores of what [`pair_records`] returns, `(2P,)`; NaN where unscored.
        subsets (`Sequence[str]`): subset of each pair, `(P,)`.

    Returns:
        `dict` with what [`~tract_trainer.metrics.pairwise_accuracy`] returns, and `subsets` with the same of each.
        Where all are of RewardBench, `sections` has both accuracies of each section and the interval of the first,
        `average` and `average_worst` are the means over sections, and `average_ci` is the interval of the former. These
        intervals are [`~tract_trainer.metrics.of_mean`], over the subsets. What has no pairs is NaN.

    Raises:
        InputError: there are not two scores per pair.
    """
    from tract_trainer.metrics import pairwise_accuracy

    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (2 * len(subsets),):
        raise InputError(f"Expected two scores per pair, {2 * len(subsets)}, got shape {array.shape}.")
    pairs, names = array.reshape(-1, 2), np.asarray(subsets, dtype=object)
    of_subset = {name: pairs[names == name] for name in dict.fromkeys(subsets)}
    by_subset = {name: pairwise_accuracy(*part.T) for name, part in of_subset.items()}
    result = {**pairwise_accuracy(*pairs.T), "subsets": by_subset}
    if not set(subsets) <= REWARD_BENCH_SUBSETS:
        return result
    return result | section_figures(by_subset)


def pair_wins(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the chosen one of two scores, `(P, 2)`, is higher, 0 where it is lower, a half in a tie, or NaN."""
    wins: NDArray[np.float64] = (np.sign(pairs[:, 0] - pairs[:, 1]) + 1) / 2
    return wins


def section_figures(by_subset: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """
    `sections`, `average`, `average_worst` and `average_ci` of what
    [`~tract_trainer.metrics.pairwise_accuracy`] returns of each subset, see
    [`~tract_trainer.evaluation.pairwise.pair_figures`].
    """
    result: dict[str, Any] = {"sections": {section: {} for section in REWARD_BENCH_SECTIONS}}
    for kind, average in (("accuracy", "average"), ("accuracy_worst", "average_worst")):
        sections = section_accuracies({subset: figures[kind] for subset, figures in by_subset.items()})
        for section, accuracy in sections.items():
            result["sections"][section][kind] = accuracy
        result[average] = float(np.mean(list(sections.values())))
    weights = _weights({subset: figures["accuracy"] for subset, figures in by_subset.items()})
    for section, of_section in weights.items():
        result["sections"][section]["accuracy_ci"] = _interval(by_subset, of_section)
    shares = {name: w / sum(part.values()) for part in weights.values() for name, w in part.items()}
    return result | {"average_ci": _interval(by_subset, shares if all(weights.values()) else {})}


def _interval(by_subset: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]) -> tuple[float, float]:
    """Of the mean accuracy of the subsets that have a weight."""
    from tract_trainer.metrics import of_mean

    parts = [by_subset[name] for name in weights]
    counts = [part["n"] - part["unscored"] for part in parts]
    wins = [part["accuracy"] * count for part, count in zip(parts, counts, strict=True)]
    # The square of a tie is a quarter, half of what it adds to the wins.
    squares = [won - part["ties"] / 4 for part, won in zip(parts, wins, strict=True)]
    return of_mean(counts, wins, squares, list(weights.values()), 0.95)


def section_accuracies(accuracies: Mapping[str, float]) -> dict[str, float]:
    """
    Accuracy of each section of RewardBench: the mean over its subsets that `accuracies` has, with the weights of
    [`REWARD_BENCH_SECTIONS`], whatever the number of pairs. A section without any is NaN, so that no average over the
    sections leaves it out; the official tool reports 0 for it.
    """
    return {
        section: sum(w * accuracies[name] for name, w in weights.items()) / sum(weights.values()) if weights else np.nan
        for section, weights in _weights(accuracies).items()
    }


def _weights(accuracies: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """By section, the weights of those of its subsets that have an accuracy."""
    return {
        section: {name: weight for name, weight in weights.items() if not np.isnan(accuracies.get(name, np.nan))}
        for section, weights in REWARD_BENCH_SECTIONS.items()
    }
