"""Accuracy of a judge on pairs: the response with the higher score wins, equal scores are half a win.

`P` is the number of pairs. Wins are `(P,)`: 1, 0, a half for a tie, NaN where a response is unscored.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS, REWARD_BENCH_SUBSETS
from tract_trainer.errors import InputError
from tract_trainer.metrics import (
    NO_INTERVAL,
    Floats,
    Groups,
    Ints,
    Scores,
    group_numbers,
    mean_share_interval,
    paired_difference,
    share_interval,
)


def pair_wins(scores: Scores) -> Floats:
    """Wins of the chosen responses, from scores of chosen and rejected ones in turn, `(2P,)`."""
    chosen, rejected = np.asarray(scores, dtype=np.float64).reshape(-1, 2).T
    wins: Floats = (np.sign(chosen - rejected) + 1) / 2
    return wins


def pairwise_accuracy(wins: Floats, groups: Groups | None = None) -> dict[str, Any]:
    """
    Accuracy over the scored pairs, with the groups of [`pair_figures`].

    Returns:
        `dict` with `accuracy` and `accuracy_ci`, its 95 % interval ([`~tract_trainer.metrics.share_interval`]);
        `accuracy_worst`, over all pairs, as if the unscored were wrong; `n`, the number of pairs; `ties`; `unscored`.
        Undefined values are NaN.
    """
    group, scored = group_numbers(groups, len(wins)), np.isfinite(wins)
    right, n = wins[scored], len(wins)
    return {
        "n": n,
        "ties": int((right == 0.5).sum()),
        "unscored": n - len(right),
        "accuracy": float(right.mean()) if len(right) else math.nan,
        "accuracy_worst": float(right.sum() / n) if n else math.nan,
        "accuracy_ci": mean_share_interval(right, group[scored]),
    }


def accuracy_difference(a: Floats, b: Floats, groups: Groups | None = None) -> dict[str, Any]:
    """
    The accuracy of judge `a` minus that of judge `b`, from their wins, over the pairs that both scored.

    Returns:
        `dict` as of [`~tract_trainer.metrics.paired_difference`]. If the wins are equal, interval and p-value are NaN.
    """
    # The mean of wins is their mean absolute distance from 0.
    found = paired_difference(a, b, np.zeros(len(a)), figure="mae", groups=groups)
    equal = found["difference_ci"] == (0, 0)
    return found | ({"difference_ci": NO_INTERVAL, "p_value": math.nan} if equal else {})


def pair_figures(scores: Scores, subsets: Sequence[str], groups: Groups | None = None) -> dict[str, Any]:
    """
    Accuracy of the scores of pairs.

    Args:
        scores (`Sequence[float]`): scores of chosen and rejected responses in turn, `(2P,)`; NaN where unscored.
        subsets (`Sequence[str]`): subset of each pair, `(P,)`.
        groups (`Sequence`, *optional*):
            Group of each pair, `(P,)`: pairs of one problem are not independent. By default, every pair is a group of
            its own.

    Returns:
        `dict` with what [`pairwise_accuracy`] returns, and `subsets` with the same of each. If all subsets are of
        RewardBench: `sections`, with `accuracy`, `accuracy_worst` and `accuracy_ci` of each, and `average`,
        `average_worst` and `average_ci`, of the mean over sections. What has no pairs is NaN.

    Raises:
        InputError: there are not two scores per pair, or not one group.
    """
    if len(scores) != 2 * len(subsets):
        raise InputError(f"Expected two scores per pair, {2 * len(subsets)}, got {len(scores)}.")
    wins, names, group = pair_wins(scores), np.array(subsets, dtype=object), group_numbers(groups, len(subsets))
    of_subset = {name: names == name for name in dict.fromkeys(subsets)}
    by_subset = {name: pairwise_accuracy(wins[of], group[of]) for name, of in of_subset.items()}
    found = {**pairwise_accuracy(wins, group), "subsets": by_subset}
    return found | (_section_figures(by_subset, wins, names, group) if set(subsets) <= REWARD_BENCH_SUBSETS else {})


def section_accuracies(accuracies: Mapping[str, float]) -> dict[str, float]:
    """
    Accuracy of each section of RewardBench: the mean over its subsets that `accuracies` has, with the weights of
    [`REWARD_BENCH_SECTIONS`], whatever the number of pairs. A section without any is NaN; the official tool reports 0.
    """
    return {
        section: sum(share * accuracies[name] for name, share in shares.items()) if shares else math.nan
        for section, shares in _shares(accuracies).items()
    }


def _shares(accuracies: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By section, the weights of those of its subsets that have an accuracy; they sum to 1."""
    result = {}
    for section, weights in REWARD_BENCH_SECTIONS.items():
        there = {name: weight for name, weight in weights.items() if not math.isnan(accuracies.get(name, math.nan))}
        result[section] = {name: weight / sum(there.values()) for name, weight in there.items()}
    return result


def _section_figures(
    by_subset: Mapping[str, Mapping[str, Any]], wins: Floats, names: NDArray[np.object_], group: Ints
) -> dict[str, Any]:
    accuracies = {name: figures["accuracy"] for name, figures in by_subset.items()}
    found, shares = section_accuracies(accuracies), _shares(accuracies)
    worst = section_accuracies({name: figures["accuracy_worst"] for name, figures in by_subset.items()})
    average = float(np.mean(list(found.values())))
    away = np.zeros(len(wins))  # how far each pair moves the accuracy of its subset from its expected value
    for name, accuracy in accuracies.items():
        scored = (names == name) & np.isfinite(wins)
        away[scored] = (wins[scored] - accuracy) / scored.sum()

    def weighted_interval(mean: float, weights: Mapping[str, float]) -> tuple[float, float]:
        used = np.isin(names, list(weights)) & np.isfinite(wins)
        return share_interval(mean, away[used] * [weights[name] for name in names[used]], group[used])

    return {
        "sections": {
            section: {
                "accuracy": accuracy,
                "accuracy_worst": worst[section],
                "accuracy_ci": weighted_interval(accuracy, shares[section]),
            }
            for section, accuracy in found.items()
        },
        "average": average,
        "average_worst": float(np.mean(list(worst.values()))),
        "average_ci": weighted_interval(
            average, {name: share / len(shares) for of in shares.values() for name, share in of.items()}
        ),
    }
