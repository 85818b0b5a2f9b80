"""Accuracy of a judge on pairs: the response with the higher score wins, equal scores are half a win.

`P` is the number of pairs and `R` the number of their responses. Wins are `(P,)`: 1, 0, a half for a tie, NaN where a
response is unscored. With several responses, a win is the share of chosen ones among those with the highest score.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tract_trainer.data.pairs import (
    REWARD_BENCH_2_SUBSETS,
    REWARD_BENCH_SECTIONS,
    REWARD_BENCH_SUBSETS,
    RM_BENCH_DOMAINS,
    SIDES,
)
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

Bools: TypeAlias = NDArray[np.bool_]
Sections: TypeAlias = Mapping[str, Mapping[str, float]]
Sides: TypeAlias = Sequence[tuple[Floats, Floats]]  # of each pair, the scores of its chosen and its rejected responses


class Layout(NamedTuple):
    """
    Which responses are of which pair. Those of a pair follow each other, the chosen ones first.

    Attributes:
        subsets, ids (`list[str]`): subset and id of each pair, `(P,)`.
        sizes (`list[tuple[int, int]]`): how many responses of each pair are chosen, and rejected, `(P, 2)`.
        compared (`list`): of each pair, `(P,)`, the places of the responses to compare, `(C, 2)`, or `None`.
    """

    subsets: list[str]
    ids: list[str]
    sizes: list[tuple[int, int]]
    compared: list[Sequence[Sequence[int]] | None]

    @property
    def sections(self) -> Sections:
        """The subsets over which RewardBench 2 or RM-Bench average, if all pairs are of one of them; else nothing."""
        names = set(self.subsets)
        if max(map(sum, self.sizes)) > 2 and names <= set(REWARD_BENCH_2_SUBSETS):
            return {name: {name: 1} for name in REWARD_BENCH_2_SUBSETS}
        if set(self.sizes) == {(3, 3)} and names <= set(RM_BENCH_DOMAINS):
            return {name: {name: 1} for name in RM_BENCH_DOMAINS}
        return {}

    def sides(self, scores: Scores) -> Sides:
        """Scores, `(R,)`, by pair and side."""
        parts = np.split(np.asarray(scores, dtype=np.float64), np.cumsum(self.sizes)[:-1])
        return list(zip(parts[::2], parts[1::2], strict=True))


def layout_of_two(subsets: Sequence[str]) -> Layout:
    """The layout of pairs of two responses."""
    n = len(subsets)
    return Layout(list(subsets), [""] * n, [(1, 1)] * n, [None] * n)


def layout_of_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Layout, list[int]]:
    """The layout of the judgments of a result, and the group of each pair, `(P,)`."""
    # Older results do not number the pairs, which have two responses there.
    numbered = groupby(enumerate(rows), key=lambda entry: entry[1].get("pair", entry[0] // 2))
    pairs = [[row for _, row in entries] for _, entries in numbered]
    sides = [[row["side"] for row in pair] for pair in pairs]
    subsets, ids, groups = ([pair[0][name] for pair in pairs] for name in ("subset", "id", "group"))
    sizes = [(of.count(SIDES[0]), of.count(SIDES[1])) for of in sides]
    return Layout(subsets, ids, sizes, [pair[0].get("compared") for pair in pairs]), groups


def pair_wins(scores: Scores, layout: Layout | None = None) -> dict[str, Floats]:
    """
    Wins of each pair, from the scores of all responses, `(R,)`. Without a layout, there are two per pair.

    Returns:
        `dict` with `accuracy`, the wins. Benchmarks whose own tools count otherwise have wins of that kind:

        - RewardBench 2: in the subset Ties, those of [`ties_wins`];
        - RM-Bench: the share of comparisons that a chosen response wins, where a tie is none. `easy`, `normal` and
          `hard` are the same against rejected responses of a plainer, an equal and a richer style;
        - PPE: the share of its sampled comparisons that the right response wins. `best_of_k` are the usual wins:
          whether the response with the highest score is right.
    """
    layout = layout or layout_of_two([""] * (len(scores) // 2))
    sides, sections = layout.sides(scores), layout.sections
    if sections and "Ties" not in sections:
        return _style_wins(sides)
    best = np.array([_best(*side) for side in sides])
    if any(layout.compared):
        compared = zip(sides, layout.compared, strict=True)
        return {"accuracy": np.array([_compared(*side, places or ()) for side, places in compared]), "best_of_k": best}
    if sections:
        ties = [number for number, subset in enumerate(layout.subsets) if subset == "Ties"]
        best[ties] = ties_wins([sides[i] for i in ties], [layout.ids[i] for i in ties])
    return {"accuracy": best}


def _best(chosen: Floats, rejected: Floats) -> float:
    scores = np.concatenate([chosen, rejected])
    top = scores == scores.max()  # of NaN, none
    return float(top[: len(chosen)].sum() / top.sum()) if top.any() else math.nan


def _compared(chosen: Floats, rejected: Floats, places: Sequence[Sequence[int]]) -> float:
    scores = np.concatenate([chosen, rejected])
    right, wrong = scores[np.array(places, dtype=int).reshape(-1, 2)].T
    return float(((np.sign(right - wrong) + 1) / 2).mean()) if len(places) else math.nan


def _style_wins(sides: Sides) -> dict[str, Floats]:
    """Wins of RM-Bench. Responses of a side are concise, detailed, and detailed with Markdown, in this order."""
    scores = np.array(sides)  # (P, 2, 3)
    wins = (scores[:, 0, :, None] > scores[:, 1, None]).astype(np.float64)  # (P, 3, 3)
    wins[np.isnan(scores).any((1, 2))] = math.nan
    parts = {"easy": np.tril_indices(3, -1), "normal": np.diag_indices(3), "hard": np.triu_indices(3, 1)}
    found = {name: wins[:, chosen, rejected].mean(1) for name, (chosen, rejected) in parts.items()}
    return {"accuracy": wins.mean((1, 2)), **found}


def ties_wins(sides: Sides, ids: Sequence[str]) -> Floats:
    """
    Wins of RewardBench 2's subset Ties. Its mean is the score of the official tool, which is not a share: up to 1.01.

    The prompt `tied:7` has several right answers, and `ref:7` has one. Both get the same win: .3 if all right answers
    of `tied` score above all wrong ones, .3 if that of `ref` does, .2 if the margin in `tied` is wider than the spread
    of its right answers, .2 if the margin in `ref` is wider, too, and up to .01 for how much wider the narrower margin
    is. NaN where a response is unscored, or one of the two prompts is missing.
    """
    margins: dict[tuple[str, str], tuple[float, float]] = {}
    for (right, wrong), name in zip(sides, ids, strict=True):
        kind, _, prompt = name.partition(":")
        margins[kind, prompt] = (right.min() - wrong.max(), right.max() - right.min())
    wins = []
    for name in ids:
        prompt = name.partition(":")[2]
        (tied, spread), (ref, _) = (margins.get((kind, prompt), (math.nan, math.nan)) for kind in ("tied", "ref"))
        narrower = tied if tied < ref else ref
        with np.errstate(divide="ignore", invalid="ignore"):
            wider = np.nan_to_num(np.tanh(np.float64(narrower) / spread - 1))
        parts = (0.3 * (tied > 0), 0.3 * (ref > 0), 0.2 * (tied > spread), 0.2 * (narrower > spread), 0.01 * wider)
        wins.append(math.nan if math.isnan(tied + ref) else float(sum(parts)))
    return np.array(wins)


def pairwise_accuracy(wins: Floats, groups: Groups | None = None, tied: Bools | None = None) -> dict[str, Any]:
    """
    Accuracy over the scored pairs, with the groups of [`pair_figures`]. A pair is `tied`, `(P,)`, by default if its win
    is a half.

    Returns:
        `dict` with `accuracy` and `accuracy_ci`, its 95 % interval ([`~tract_trainer.metrics.share_interval`]);
        `accuracy_worst`, over all pairs, as if the unscored were wrong; `n`, the number of pairs; `ties`; `unscored`.
        Undefined values are NaN.
    """
    group, scored = group_numbers(groups, len(wins)), np.isfinite(wins)
    right, n = wins[scored], len(wins)
    return {
        "n": n,
        "ties": int(((wins == 0.5) if tied is None else tied)[scored].sum()),
        "unscored": n - len(right),
        "accuracy": float(right.mean()) if len(right) else math.nan,
        "accuracy_worst": float(right.sum() / n) if n else math.nan,
        "accuracy_ci": mean_share_interval(right, group[scored]),
    }


def accuracy_difference(a: Floats, b: Floats, groups: Groups | None = None) -> dict[str, Any]:
    """
    The accuracy of judge `a` minus that of judge `b`, from their wins, over the pairs that both scored, as of
    [`~tract_trainer.metrics.paired_difference`]. If the wins are equal, interval and p-value are NaN.
    """
    # The mean of wins is their mean absolute distance from 0, or from where the lowest one is below it.
    least = min(0.0, *a[np.isfinite(a)], *b[np.isfinite(b)])
    found = paired_difference(a, b, np.full(len(a), least), figure="mae", groups=groups)
    found |= {side: found[side] + least for side in ("a", "b")}
    equal = found["difference_ci"] == (0, 0)
    return found | ({"difference_ci": NO_INTERVAL, "p_value": math.nan} if equal else {})


def pair_figures(
    scores: Scores, subsets: Sequence[str], groups: Groups | None = None, layout: Layout | None = None
) -> dict[str, Any]:
    """
    Accuracy of the scores of pairs.

    Args:
        scores (`Sequence[float]`): scores of chosen and rejected responses in turn, `(2P,)`; NaN where unscored.
        subsets (`Sequence[str]`): subset of each pair, `(P,)`.
        groups (`Sequence`, *optional*):
            Group of each pair, `(P,)`: pairs of one problem are not independent. By default, every pair is a group of
            its own.
        layout ([`Layout`], *optional*): of pairs with more than two responses, whose scores are `(R,)`.

    Returns:
        `dict` with what [`pairwise_accuracy`] returns, and `subsets` with the same of each. If all subsets are of
        RewardBench: `sections`, with `accuracy`, `accuracy_worst` and `accuracy_ci` of each, and `average`,
        `average_worst` and `average_ci`, of the mean over sections. What has no pairs is NaN.

        With several responses: `chance`, the expected accuracy of random scores. RewardBench 2 and RM-Bench have
        `average`, of the mean over subsets, and RM-Bench has such means as `easy`, `normal` and `hard`. PPE has
        `best_of_k`. See [`pair_wins`].

    Raises:
        InputError: there are not two scores per pair, or not one group.
    """
    layout = layout or layout_of_two(subsets)
    if len(scores) != np.sum(layout.sizes):
        raise InputError(f"Expected two scores per pair, {2 * len(subsets)}, got {len(scores)}.")
    names, group = np.array(subsets, dtype=object), group_numbers(groups, len(subsets))
    kinds = pair_wins(scores, layout)
    tied = np.array([chosen.max() == rejected.max() for chosen, rejected in layout.sides(scores)])
    of_subset = {name: names == name for name in dict.fromkeys(subsets)}

    def by_subset(wins: Floats) -> dict[str, dict[str, Any]]:
        return {name: pairwise_accuracy(wins[of], group[of], tied[of]) for name, of in of_subset.items()}

    wins = kinds["accuracy"]
    found = {**pairwise_accuracy(wins, group, tied), "subsets": by_subset(wins)}
    if set(subsets) <= REWARD_BENCH_SUBSETS:
        return found | _section_figures(found["subsets"], wins, names, group, REWARD_BENCH_SECTIONS)
    if max(map(sum, layout.sizes)) == 2:
        return found
    found["chance"] = _chance(layout)
    for name, values in kinds.items():
        if layout.sections:
            mean = _section_figures(by_subset(values), values, names, group, layout.sections)
            found |= _renamed(mean, "average", "average" if name == "accuracy" else name)
        elif name != "accuracy":
            found |= _renamed(pairwise_accuracy(values, group), "accuracy", name)
    return found


def _renamed(figures: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """The figure `old` with its worst case and interval, as `new`."""
    return {f"{new}{ending}": figures[f"{old}{ending}"] for ending in ("", "_worst", "_ci")}


def _chance(layout: Layout) -> float:
    """The expected accuracy of random scores that all differ; without Ties, whose wins are no shares."""
    if any(layout.compared) or "chat" in layout.sections:
        return 0.5
    sizes = [size for size, name in zip(layout.sizes, layout.subsets, strict=True) if name != "Ties"] or layout.sizes
    return float(np.mean([chosen / (chosen + rejected) for chosen, rejected in sizes]))


def section_accuracies(accuracies: Mapping[str, float], sections: Sections = REWARD_BENCH_SECTIONS) -> dict[str, float]:
    """
    Accuracy of each section of a benchmark: the mean over its subsets that `accuracies` has, with the weights of
    `sections`, whatever the number of pairs. A section without any is NaN; the official tool reports 0.
    """
    return {
        section: sum(share * accuracies[name] for name, share in shares.items()) if shares else math.nan
        for section, shares in _shares(accuracies, sections).items()
    }


def _shares(accuracies: Mapping[str, float], sections: Sections) -> dict[str, dict[str, float]]:
    """By section, the weights of those of its subsets that have an accuracy; they sum to 1."""
    result = {}
    for section, weights in sections.items():
        there = {name: weight for name, weight in weights.items() if not math.isnan(accuracies.get(name, math.nan))}
        result[section] = {name: weight / sum(there.values()) for name, weight in there.items()}
    return result


def _section_figures(
    by_subset: Mapping[str, Mapping[str, Any]],
    wins: Floats,
    names: NDArray[np.object_],
    group: Ints,
    sections: Sections,
) -> dict[str, Any]:
    accuracies = {name: figures["accuracy"] for name, figures in by_subset.items()}
    found, shares = section_accuracies(accuracies, sections), _shares(accuracies, sections)
    worst = section_accuracies({name: figures["accuracy_worst"] for name, figures in by_subset.items()}, sections)
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
