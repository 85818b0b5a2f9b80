"""Turns a benchmark's name, or a file of records, into records with gold scores, and judgments of them into results."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tract_trainer.errors import InputError
from tract_trainer.judgment import Judgment
from tract_trainer.metrics import agreement
from tract_trainer.records import Record, gold_score, read_records

PROMETHEUS_FILES = {
    "feedback_bench": "feedback_collection_test.json",
    "flask": "flask_eval.json",
    "vicuna": "vicuna_eval.json",
    "mt_bench": "mt_bench_eval.json",
}
"""Files of the Prometheus repository (prometheus-eval/prometheus, folder evaluation/benchmark/data)."""


def load_benchmark(name: str, path: str | Path | None = None) -> list[dict[str, Any]]:
    """
    The records of a benchmark, each with its gold `score`: the mean of several reference scores where there are.

    Args:
        name (`str`): `"feedback_bench"`, `"flask"`, `"vicuna"` or `"mt_bench"`.
        path (`str`, *optional*): its file in the Prometheus format, or the folder that holds it.

    Raises:
        InputError: the name is not known, the file is not there, or a record has no gold score.
    """
    if name not in PROMETHEUS_FILES:
        raise InputError(f"benchmark {name!r} is not known; known are {sorted(PROMETHEUS_FILES)}.")
    file = Path(path) if path is not None else Path(PROMETHEUS_FILES[name])
    file = file / PROMETHEUS_FILES[name] if file.is_dir() else file
    if not file.is_file():
        raise InputError(
            f"The benchmark {name!r} is not at {str(file)!r}. Fetch {PROMETHEUS_FILES[name]} from the folder "
            "evaluation/benchmark/data of github.com/prometheus-eval/prometheus and give its path."
        )
    return scored_records(read_records(file))


def scored_records(records: Sequence[Record]) -> list[dict[str, Any]]:
    """`records`, each with its gold score as `score`."""
    scored = []
    for number, record in enumerate(records):
        gold = gold_score(record)
        if gold is None or not math.isfinite(gold):
            raise InputError(f"Record {number} has no gold score to compare with, but {gold}; found {sorted(record)}.")
        scored.append({**record, "score": gold})
    return scored


def figures(judgments: Sequence[Judgment], records: Sequence[Record], values: dict[str, float]) -> dict[str, Any]:
    """
    Agreement with gold of the decoded label and of the expected score.

    Args:
        judgments (`Sequence[Judgment]`), records (`Sequence[Mapping]`): of equal length, the records with `score`.
        values (`dict[str, float]`): value of each label.

    Returns:
        `dict` with what [`agreement`] returns under `"decoded"` and `"RAIL"`.
    """
    gold = [record["score"] for record in records]
    decoded = [float("nan") if j.label is None else values[j.label] for j in judgments]
    return {"decoded": agreement(decoded, gold), "RAIL": agreement([j.score for j in judgments], gold)}
