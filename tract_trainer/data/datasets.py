"""Rows as a `datasets.Dataset`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from datasets import Dataset, IterableDataset

from tract_trainer.data.records import RATIONALE_COLUMNS, Record, gold_score
from tract_trainer.errors import InputError

READY_COLUMNS = {"completion", "messages", "text", "input_ids"}
RECORD_COLUMNS = {"rubric", *RATIONALE_COLUMNS}
OWN_RATIONALES = "Rationales that a judge wrote itself"  # how the description of such a dataset begins
AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


def is_trl_format(columns: Iterable[str]) -> bool:
    """Whether rows with these columns are TRL's. A record may also have a column of such a name."""
    found = set(columns)
    return bool(found & READY_COLUMNS) and not ("instruction" in found and found & RECORD_COLUMNS)


def as_dataset(rows: Sequence[Record] | Dataset) -> Dataset:
    """A dataset with the columns of all rows (`from_list` takes those of the first), and scores as numbers."""
    if isinstance(rows, Dataset):
        return rows
    columns = dict.fromkeys(column for row in rows for column in row)
    scores = ({"score": gold_score(row)} if "score" in columns else {} for row in rows)
    try:
        return Dataset.from_list([{**columns, **row, **score} for row, score in zip(rows, scores, strict=True)])
    except pa.ArrowException as error:
        raise InputError(
            f"The rows hold values of several types in one column: {error}. Give all of them the same type."
        ) from error


def described(dataset: Dataset, folder: Path) -> Dataset:
    """`dataset` with a description, if `folder` holds the report of self-generated rationales."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # not written by `generate_cot_dataset`
        report = None
    if isinstance(report, dict) and {"rationales", "rows"} <= report.keys():
        dataset.info.description = (
            f"{OWN_RATIONALES}: {report['rationales']:,} for {report['rows']:,} prompts, of which {len(dataset):,} are "
            "kept, each closed with its gold score."
        )
    return dataset


def unformatted(dataset: AnyDataset) -> AnyDataset:
    """`dataset` with rows of lists and numbers, not of tensors. A transform stays: TRL's error explains it."""
    is_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return dataset if is_transform else dataset.with_format(None)
