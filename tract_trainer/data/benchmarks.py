"""Scored records and pairs to evaluate a judge on: public benchmarks, and the user's own data.

A scored record is a record with its gold `score`; a pair is a mapping with the records `chosen` and `rejected`, see
[`tract_trainer.data.pairs`]. Does not need torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tract_trainer.data.pairs import PAIR_COLUMNS, REWARD_BENCH_SUBSETS, read_pairs
from tract_trainer.data.reading import read_rows
from tract_trainer.data.records import SCORE_COLUMNS, Record, gold_scores, ready_prompt
from tract_trainer.errors import InputError, numbered
from tract_trainer.scale import ScoreScale

PROMETHEUS_FILES = {
    "feedback_bench": "feedback_collection_ood_test.json",
    "feedback_collection_test": "feedback_collection_test.json",
    "flask": "flask_eval.json",
    "vicuna": "vicuna_eval.json",
    "mt_bench": "mt_bench_eval.json",
}
PAIR_FILES = {"hhh_alignment": "hhh_alignment_eval.json", "reward_bench": "filtered-00000-of-00001.parquet"}
HUB_SETS = {
    "feedback_bench": ("prometheus-eval/Feedback-Bench", "train"),
    "reward_bench": ("allenai/reward-bench", "filtered"),
}

BENCHMARKS = tuple(sorted({**PROMETHEUS_FILES, **PAIR_FILES}))
ORIGIN = "the folder eval/benchmark/data of github.com/prometheus-eval/prometheus-eval"
ORIGINS = {"reward_bench": "the folder data of huggingface.co/datasets/allenai/reward-bench"}

PROMETHEUS_SCALE = ScoreScale.integers(1, 5)


def load_benchmark(name: str, path: str | Path | None = None) -> list[dict[str, Any]]:
    """
    The scored records, or the pairs, of a benchmark.

    Args:
        name (`str`): one of [`BENCHMARKS`].
        path (`str`, *optional*):
            Its file, or the folder that holds it under its public name. By default, the working folder and then, for
            some, a Hub data set.

    Returns:
        `list[dict]`: pairs of those of [`PAIR_FILES`]; of the others records with their gold `score`, a mean if there
        are several reference scores.

    Raises:
        InputError: the name is not known, or the data is missing or of another kind.
    """
    if name not in BENCHMARKS:
        raise InputError(f"benchmark {name!r} is not known; known are {list(BENCHMARKS)}.")
    rows = _benchmark_rows(name, path)
    if name in PROMETHEUS_FILES:
        records = scored_records([_prometheus_record(row, number) for number, row in enumerate(rows)])
        check_scale(records, PROMETHEUS_SCALE)
        return records
    pairs = read_pairs(rows)
    if name == "reward_bench":
        check_reward_bench(pairs)
    return pairs


def _benchmark_rows(name: str, path: str | Path | None) -> list[dict[str, Any]]:
    file_name = {**PROMETHEUS_FILES, **PAIR_FILES}[name]
    file = Path(path or file_name)
    file = file / file_name if file.is_dir() else file
    if file.is_file():
        return read_rows(file)
    tried = ""
    if path is None and name in HUB_SETS:
        try:
            return read_rows(*HUB_SETS[name])
        except InputError as error:
            tried = f", nor could its Hub data set be loaded: {error.__cause__ or error}"
    raise InputError(
        f"The benchmark {name!r} is not at {str(file)!r}{tried}. Fetch {file_name} from {ORIGINS.get(name, ORIGIN)} "
        "and give its path, or put it into the working folder."
    )


def _prometheus_record(row: Record, number: int) -> dict[str, Any]:
    """A row of the Prometheus format, its `instruction` a clean prompt, with its other columns."""
    if not isinstance(row.get("instruction"), str):
        raise InputError(f"Record {number} has no prompt in `instruction`; found {sorted(row)}.")
    kept = {name: value for name, value in row.items() if name != "messages"}  # of the Hub; would be asked instead
    return {**kept, "instruction": ready_prompt(row["instruction"])}


def own_benchmark(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    rubric: str | Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """
    The scored records, or the pairs, of the user's own data.

    Arguments are those of [`~tract_trainer.data.reading.read_rows`]. Rows with columns of [`read_pairs`] are pairs.

    Raises:
        InputError: there is no data, a column is missing, or a record has no gold score.
    """
    rows = [dict(row) for row in read_rows(source, split, columns, rubric)]
    names: set[str] = set().union(*rows)
    if names & PAIR_COLUMNS:
        return read_pairs(rows)
    if {"prompt", "response"} <= names:
        raise InputError(
            f"{source} has a `response` and a `prompt`, which is asked as it is. If it is the instruction that was "
            'responded to, name it so: columns={"prompt": "instruction"}.'
        )
    if missing := _missing(names):
        raise InputError(
            f"{source} has no column {', '.join(map(repr, missing))}; found {sorted(names)}. Records need "
            "`instruction`, `response` and `rubric`, or a ready `prompt`, and `score`; pairs need `instruction`, "
            f'`chosen` and `rejected`. If yours has another name, give it: columns={{"yours": "{missing[0]}"}}.'
        )
    return scored_records(rows)


def _missing(names: set[str]) -> list[str]:
    """Columns of a scored record that `names` lacks."""
    fields = ["instruction", "response", "rubric"] if names & {"response", "rubric"} else ["instruction"]
    needed = ([] if names & {"prompt", "messages"} else fields) + ([] if names & set(SCORE_COLUMNS) else ["score"])
    return [name for name in needed if name not in names]


def scored_records(records: Sequence[Record]) -> list[dict[str, Any]]:
    """`records` with their gold score as `score`. If it is the mean of several, these are `gold_ratings`."""
    scored = []
    for number, record in enumerate(records):
        with numbered("Record", number):
            ratings = gold_scores(record)
        gold = sum(ratings) / len(ratings) if ratings else None
        if gold is None or not math.isfinite(gold):
            raise InputError(f"Record {number} has no gold score to compare with, but {gold}; found {sorted(record)}.")
        scored.append({**record, "score": gold, **({"gold_ratings": ratings} if len(ratings) > 1 else {})})
    return scored


def check_scale(records: Sequence[Record], scale: ScoreScale) -> None:
    """Raises an InputError where the gold `score` of a record is not on the scale."""
    for number, record in enumerate(records):
        if not scale.covers(record["score"]):
            raise InputError(
                f"The gold score of record {number} is {record['score']:g}, off the scale of {scale.low:g} to "
                f"{scale.high:g}. Convert the gold scores to that scale."
            )


def check_reward_bench(pairs: Sequence[Record]) -> None:
    """Raises an InputError where a pair is of a subset that counts in no section of RewardBench."""
    for number, pair in enumerate(pairs):
        if pair["subset"] not in REWARD_BENCH_SUBSETS:
            raise InputError(
                f"Pair {number} is of the subset {pair['subset']!r}, which reward_bench does not have. Give the split "
                "'filtered' of allenai/reward-bench, or load the file as a data set of your own."
            )
