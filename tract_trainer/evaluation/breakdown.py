"""Figures of a result by the values of a column of its records, and the order of the groups' mean scores."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tract_trainer.data.records import Record
from tract_trainer.data.store import without_nan
from tract_trainer.errors import InputError
from tract_trainer.evaluation.methods import Row, result_scores
from tract_trainer.hub.results import main_method
from tract_trainer.metrics import Floats, agreement, kendall, spearman


def broken_down(result: Mapping[str, Any], by: Sequence[str]) -> dict[str, Any]:
    """
    A result with the figures of its main method, RAIL or the given scores, for each value of some columns.

    Args:
        result (`Mapping`): result of scored records.
        by (`Sequence[str]`): columns that the judgments keep in `record`, such as the model that wrote the response.

    Returns:
        `dict`: the result with `breakdowns`. It has for each column `groups`: by value, what
        [`~tract_trainer.metrics.agreement`] returns, `mean_score` and `mean_gold`, over the scored records; and
        `kendall` and `spearman`, the correlations of these means over the groups: how well the ranking of the models is
        that by gold scores.

    Raises:
        InputError: no record has such a column, or the result is of pairs.
    """
    rows, values = result["judgments"], result["judge"]["config"]["score_values"] or None
    check_columns([row["record"] for row in rows if "gold" in row], by)
    scores = result_scores(result)[main_method(result)]
    found = {column: _by_column(rows, scores, column, values) for column in by}
    return {**result, "breakdowns": without_nan(found)}


def check_columns(records: Iterable[Record], by: Sequence[str]) -> None:
    """Raises an InputError where none of the records, their short columns, has a column to break figures down by."""
    known: set[str] = set().union(*records)
    if absent := [column for column in by if column not in known]:
        raise InputError(
            f"There is no column {', '.join(map(repr, absent))} to break figures down by; the short columns of the "
            f"scored records are {sorted(known)}."
        )


def _by_column(rows: Sequence[Row], scores: Floats, column: str, values: Sequence[float] | None) -> dict[str, Any]:
    names = np.array([_name(row["record"].get(column)) for row in rows], dtype=object)
    gold, groups = (np.array([row[name] for row in rows]) for name in ("gold", "group"))
    found = {}
    for name in dict.fromkeys(names):
        of = names == name
        scored = of & np.isfinite(scores)
        means = {"mean_score": _mean(scores[scored]), "mean_gold": _mean(gold[scored])}
        found[name] = means | agreement(scores[of], gold[of], values=values, groups=groups[of])
    pairs = [(figures["mean_score"], figures["mean_gold"]) for figures in found.values()]
    known = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
    return {"kendall": kendall(*known.T), "spearman": spearman(*known.T), "groups": found}


def _mean(scores: Floats) -> float:
    # Rounded, since the last digit of a mean of thirds depends on their order, and would break ties.
    return round(float(scores.mean()), 12) if len(scores) else np.nan


def _name(value: Any) -> str:
    """The value of a column as the name of a group."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "(none)" if text in ("", "null") else text
