"""Results of scores that any scorer gave, read from the columns of a table."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from tract_trainer.data.benchmarks import check_scale, scored_records
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import Record
from tract_trainer.data.store import MARK, without_nan
from tract_trainer.errors import InputError
from tract_trainer.evaluation.ceiling import ceiling
from tract_trainer.evaluation.evaluate import SCHEMA_VERSION, record_columns
from tract_trainer.evaluation.references import finite_scores, references
from tract_trainer.hub.results import GIVEN
from tract_trainer.metrics import agreement
from tract_trainer.scale import ScoreScale


def column_results(
    rows: Iterable[Record],
    gold: str,
    predictions: Sequence[str],
    *,
    name: str = "data",
    scale: ScoreScale | None = None,
) -> dict[str, dict[str, Any]]:
    """
    A result for each column of predicted scores, like those of [`~tract_trainer.evaluation.evaluate.evaluate`], with
    `score` as its one method.

    Args:
        rows (`Iterable[Mapping]`):
            Rows of a table. Scores are numbers, or lists of numbers, whose mean counts; either may be text.
        gold (`str`): column of the gold scores. A list has the ratings of several raters.
        predictions (`Sequence[str]`): columns of predicted scores; each is the name of the judge in its result.
        name (`str`, *optional*, defaults to `"data"`): name of the rows in the results.
        scale ([`ScoreScale`], *optional*): scale of the gold scores. Adds the figures that need one.

    Returns:
        `dict` of results by column. A prediction that is no finite number is unscored. A row without a gold score is
        left out, and `settings["remarks"]` says so.

    Raises:
        InputError: a column is missing, no row has a gold score, or one is off the scale.
    """
    rows = list(rows)
    found: set[str] = set().union(*rows)
    if absent := [column for column in (gold, *predictions) if column not in found]:
        raise InputError(f"There is no column {', '.join(map(repr, absent))}; found {sorted(found)}.")
    ratings = [finite_scores(row.get(gold)) for row in rows]
    numbers = [number for number, of in enumerate(ratings) if of]
    remarks = []
    if missing := [number for number, of in enumerate(ratings) if not of]:
        first = f"the first is row {missing[0]}, which has {rows[missing[0]].get(gold)!r:.80}"
        remarks = [f"{len(missing):,} of {len(rows):,} rows have no gold score in {gold!r} and are left out; {first}."]
    if not numbers:
        raise InputError(f"No row has a gold score. {' '.join(remarks)}")
    if scale is not None:
        check_scale([{"score": np.mean(of or [scale.low])} for of in ratings], scale)
    columns = record_columns(scored_records([{**rows[i], "score": ratings[i]} for i in numbers]), gold, *predictions)
    head = {
        "schema_version": SCHEMA_VERSION,
        MARK: version("tract-trainer"),
        "benchmark": {"name": name, "records": len(numbers), "digest": digest([of["gold"] for of in columns])},
    }
    values = None if scale is None else scale.values
    of_raters = ceiling([of for of in ratings if of], values, [of["group"] for of in columns])
    shared = {} if of_raters is None else {"ceiling": of_raters}
    results = {}
    for column in predictions:
        judged = [{**_judgment(i, rows[i], column), **of} for i, of in zip(numbers, columns, strict=True)]
        settings = {"gold": gold, "prediction": column, "remarks": [*remarks, *_off_scale(judged, column, scale)]}
        results[column] = without_nan({**head, "settings": settings, **shared, **_figures(judged, column, scale)})
    return results


def _judgment(number: int, row: Record, column: str) -> dict[str, Any]:
    """The score in a column of a row as a judgment without rationales."""
    scores, found = finite_scores(row.get(column)), row.get(column)
    return {
        "score": float(np.mean(scores)) if scores else None,
        "reason": "" if scores else f"row {number} has {found!r:.80} in {column!r}, which is no finite number.",
        "prompt": "\n\n".join(str(row[name]) for name in ("instruction", "prompt", "response") if row.get(name)),
        **dict.fromkeys(("std", "mass", "label")),
        "probs": [],
        "rationale": "",
        "rationales": [],
    }


def _off_scale(judged: Sequence[Mapping[str, Any]], column: str, scale: ScoreScale | None) -> list[str]:
    scores = [row["score"] for row in judged if row["score"] is not None]
    if scale is None or not (off := [score for score in scores if not scale.covers(score)]):
        return []
    return [
        f"{len(off):,} of {len(scores):,} scores in {column!r} are off the scale of {scale.low:g} to {scale.high:g}, "
        f"such as {off[0]:g}. RMSE, MAE and figures of rounded scores need scores on it."
    ]


def _figures(judged: Sequence[Mapping[str, Any]], column: str, scale: ScoreScale | None) -> dict[str, Any]:
    """`judge`, `methods`, `by_rationales`, [`references`] and `judgments` of a result."""
    labels, values = ([], []) if scale is None else (list(scale.labels), list(scale.values))
    scores = np.array([row["score"] for row in judged], dtype=np.float64)
    gold, groups = ([row[name] for row in judged] for name in ("gold", "group"))
    return {
        "judge": {"name": column, "revision": None, "config": {"score_labels": labels, "score_values": values}},
        "methods": {GIVEN: agreement(scores, gold, values=values or None, groups=groups)},
        "by_rationales": {},
        **references(judged, {GIVEN: scores}, GIVEN, values or None),
        "judgments": judged,
    }
