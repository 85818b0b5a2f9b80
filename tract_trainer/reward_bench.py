"""Turns accuracies on RewardBench's subsets into those of its sections and their average."""

from collections.abc import Mapping
from typing import Any

import numpy as np

REWARD_BENCH_SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,  # 447 pairs, weighted like the 6 x 164 pairs of code
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Weight of each subset in its section of RewardBench (github.com/allenai/reward-bench, rewardbench/constants.py)."""

REWARD_BENCH_SUBSETS = {subset for weights in REWARD_BENCH_SECTIONS.values() for subset in weights}


def section_figures(by_subset: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """
    `sections`, `average`, `average_worst` and `average_ci` of what
    [`~tract_trainer.metrics.pairwise_accuracy`] returns of each subset, see [`~tract_trainer.pairwise.pair_figures`].
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
    from tract_trainer.intervals import of_mean  # not at start-up: scipy takes a second

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
