"""A second gold score and the length of responses, beside the agreement of a judge with gold."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from tract_trainer.data.records import Record, gold_scores
from tract_trainer.evaluation.ceiling import ceiling
from tract_trainer.metrics import Floats, agreement, paired_difference

PROMETHEUS_RESPONSE = re.compile(r"###Response to evaluate:\n(.*?)\n\s*###(?:Reference|Score Rubric)", re.DOTALL)


def references(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Floats], method: str, values: Sequence[float] | None
) -> dict[str, Any]:
    """
    Agreement with a second gold score, and correlations with the length of the response.

    Args:
        rows (`Sequence[Mapping]`): judgments, `(n,)`, with `gold`, `group`, `record` and perhaps `response_length`.
        scores (`Mapping[str, numpy.ndarray]`): scores by method, `(n,)` each, NaN where unscored.
        method (`str`): the one that is compared with the length.

    Returns:
        `dict`, without what the records do not have: `human_score`, with `methods`, the figures of each method and of
        `gold` against that column, if all of it is on the scale, and its `ceiling`; `length`, Spearman's rho of the
        scores (`a`) and of gold (`b`) with the length of the response, and their difference.
    """
    gold, groups = (np.array([row[name] for row in rows]) for name in ("gold", "group"))
    found: dict[str, Any] = {}
    human = [finite_scores(row["record"].get("human_score")) for row in rows]
    if any(human) and _on_scale(human, values):
        there = np.array([bool(of) for of in human])
        of_humans = [of for of in human if of]
        means = [sum(of) / len(of) for of in of_humans]
        found["human_score"] = {
            "methods": {
                name: agreement(given[there], means, values=values, groups=groups[there])
                for name, given in {**scores, "gold": gold}.items()
            },
            "ceiling": ceiling(of_humans, values, groups[there]),
        }
    lengths = np.array([row.get("response_length") for row in rows], dtype=np.float64)
    if (known := np.isfinite(lengths)).any():
        a, b, length, group = (side[known] for side in (scores[method], gold, lengths, groups))
        found["length"] = paired_difference(a, b, length, figure="spearman", groups=group)
    return found


def finite_scores(cell: Any) -> list[float]:
    """Scores in a cell: a number, or a list, also as JSON in a text. Empty if it is neither, or one is not finite."""
    with suppress(ValueError, OverflowError, RecursionError):
        given = json.loads(cell) if isinstance(cell, str) and cell.lstrip().startswith("[") else cell
        if all(map(math.isfinite, scores := gold_scores({"score": given}))):
            return scores
    return []


def response_length(record: Record) -> float | None:
    """Characters of a record's response, also of one in a Prometheus prompt, or its column `response_length`."""
    if given := finite_scores(record.get("response_length")):
        return given[0]
    for name in ("response", "orig_response"):
        if isinstance(record.get(name), str):
            return len(record[name])
    found = PROMETHEUS_RESPONSE.search(str(record.get("prompt") or record.get("instruction") or ""))
    return None if found is None else len(found[1].strip())


def _on_scale(ratings: Sequence[Sequence[float]], values: Sequence[float] | None) -> bool:
    return not values or all(min(values) <= rating <= max(values) for of in ratings for rating in of)
