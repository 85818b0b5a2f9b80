"""Accuracy of a judge on pairs: the response with the higher score wins, equal scores are half a win.

`P` is the number of pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS, REWARD_BENCH_SUBSETS
from tract_trainer.errors import InputError
from tract_trainer.metrics import Floats, Groups, Interval, Ints, group_numbers, pairwise_accuracy, share_interval


def pair_figures(
    scores: Sequence[float] | Floats, subsets: Sequence[str], groups: Groups | None = None
) -> dict[str, Any]:
    """
    Accuracy of the scores of pairs.

    Args:
        scores (`Sequence[float]`): scores of what [`pair_records`] returns, `(2P,)`; NaN where unscored.
        subsets (`Sequence[str]`): subset of each pair, `(P,)`.
        groups (`Sequence`, *optional*):
            Group of each pair, `(P,)`: pairs of one problem are not independent. By default, every pair is a group of
            its own.

    Returns:
        `dict` with what [`~tract_trainer.metrics.pairwise_accuracy`] returns, and `subsets` with the same of each.
        If all are of RewardBench, `sections` has both accuracies of each section and the interval of the first,
        `average` and `average_worst` are the means over sections, and `average_ci` is the interval of the former: each
        a [`~tract_trainer.metrics.share_interval`]. What has no pairs is NaN.

    Raises:
        InputError: there are not two scores per pair, or not one group.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != (2 * len(subsets),):
        raise InputError(f"Expected two scores per pair, {2 * len(subsets)}, got shape {array.shape}.")
    pairs, names, group = array.reshape(-1, 2), np.array(subsets, dtype=object), group_numbers(groups, len(subsets))
    of_subset = {name: names == name for name in dict.fromkeys(subsets)}
    by_subset = {name: pairwise_accuracy(*pairs[of].T, groups=group[of]) for name, of in of_subset.items()}
    result = {**pairwise_accuracy(*pairs.T, groups=group), "subsets": by_subset}
    if not set(subsets) <= REWARD_BENCH_SUBSETS:
        return result
    return result | _section_figures(by_subset, pair_wins(pairs), names, group)


def pair_wins(pairs: Floats) -> Floats:
    """1 where the chosen one of two scores, `(P, 2)`, is higher, 0 where it is lower, a half in a tie, or NaN."""
    wins: Floats = (np.sign(pairs[:, 0] - pairs[:, 1]) + 1) / 2
    return wins


def section_accuracies(accuracies: Mapping[str, float]) -> dict[str, float]:
    """
    Accuracy of each section of RewardBench: the mean over its subsets that `accuracies` has, with the weights of
    [`REWARD_BENCH_SECTIONS`], whatever the number of pairs. A section without any is NaN, so that the average over the
    sections is NaN, too; the official tool reports 0 for it.
    """
    shares = _weights(accuracies)
    return {
        section: sum(share * accuracies[name] for name, share in of.items()) if of else np.nan
        for section, of in shares.items()
    }


def _weights(accuracies: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By section, the weights of those of its subsets that have an accuracy; they sum to 1."""
    known = {name for name, accuracy in accuracies.items() if not np.isnan(accuracy)}
    result = {}
    for section, weights in REWARD_BENCH_SECTIONS.items():
        there = {name: weight for name, weight in weights.items() if name in known}
        result[section] = {name: weight / sum(there.values()) for name, weight in there.items()}
    return result


def _section_figures(
    by_subset: Mapping[str, Mapping[str, Any]], wins: Floats, names: NDArray[np.object_], group: Ints
) -> dict[str, Any]:
    """`sections`, `average`, `average_worst` and `average_ci` of [`pair_figures`]."""
    accuracies = {name: figures["accuracy"] for name, figures in by_subset.items()}
    found = section_accuracies(accuracies)
    worst = section_accuracies({name: figures["accuracy_worst"] for name, figures in by_subset.items()})
    average, weights = float(np.mean(list(found.values()))), _weights(accuracies)

    def of_mean(mean: float, weights: Mapping[str, float]) -> Interval:
        """Of the weighted mean of the accuracies of subsets."""
        scored = np.isfinite(wins) & np.isin(names, list(weights))
        subset = names[scored]
        away = wins[scored] - np.array([accuracies[name] for name in subset])
        counts = {name: (subset == name).sum() for name in weights}
        parts = away * np.array([weights[name] / counts[name] for name in subset])
        return share_interval(mean, parts, group[scored], 0.95)

    sections = {
        section: {
            "accuracy": accuracy,
            "accuracy_worst": worst[section],
            "accuracy_ci": of_mean(accuracy, weights[section]),
        }
        for section, accuracy in found.items()
    }
    quarters = {name: share / len(weights) for of in weights.values() for name, share in of.items()}
    return {
        "sections": sections,
        "average": average,
        "average_worst": float(np.mean(list(worst.values()))),
        "average_ci": of_mean(average, quarters),
    }
