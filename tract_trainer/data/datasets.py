"""Reads rows as a `datasets.Dataset`, and turns rows into one."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from tract_trainer.data.reading import read_rows
from tract_trainer.data.records import RATIONALE_COLUMNS, Record, gold_score
from tract_trainer.errors import InputError

READY_COLUMNS = {"completion", "messages", "text", "input_ids"}


RECORD_COLUMNS = {"rubric", *RATIONALE_COLUMNS}


def load_rows(source: str, split: str = "train") -> list[dict[str, Any]] | Dataset:
    """Rows of a `.json`, `.jsonl`, `.parquet` or `.csv` file, of a folder with data files, or of a Hub data set."""
    suffix = Path(source).suffix
    if split != "train" and Path(source).is_file():
        raise InputError(f"{source} is a file without splits, so split={split!r} has no meaning. Leave it out.")
    if suffix in (".csv", ".json", ".jsonl"):
        return read_rows(source)
    try:
        if suffix == ".parquet":
            return described(load_dataset("parquet", data_files=source, split="train"), Path(source).parent)
        return described(load_dataset(source, split=split), Path(source))
    except (FileNotFoundError, ConnectionError, ValueError, DatasetsError) as error:
        raise InputError(
            f"There is no data at {source!r} ({error}). Give a .json, .jsonl, .parquet or .csv file, a folder, or a "
            "data set of the Hub."
        ) from error


def is_trl_format(columns: Iterable[str]) -> bool:
    """Whether rows with these columns are TRL's; a judging record may have a column of such a name, too."""
    found = set(columns)
    return bool(found & READY_COLUMNS) and not ("instruction" in found and found & RECORD_COLUMNS)


def as_dataset(rows: Sequence[Record] | Dataset) -> Dataset:
    """The rows with the columns of all of them (`from_list` alone has those of the first), their scores as numbers."""
    if isinstance(rows, Dataset):
        return rows
    columns = dict.fromkeys(column for row in rows for column in row)
    scores = ({"score": gold_score(row)} if "score" in columns else {} for row in rows)
    try:
        return Dataset.from_list([{**columns, **row, **score} for row, score in zip(rows, scores, strict=True)])
    except pa.ArrowException as error:
        raise InputError(
            f"The rows hold values of several types in one column: {error}. Write them all alike."
        ) from error


OWN_RATIONALES = "Rationales that a judge wrote itself"
"""How the description of a dataset of self-generated rationales begins."""


def described(dataset: Dataset, folder: Path) -> Dataset:
    """`dataset`, the rows of `folder`, with what they are as its description, which `datasets` keeps with the rows."""
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "rationales" in report:
        dataset.info.description = (
            f"{OWN_RATIONALES}: {report['rationales']:,} for {report['rows']:,} prompts, of which {len(dataset):,} are "
            "kept, each closed with its gold score."
        )
    return dataset


AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


def unformatted(dataset: AnyDataset) -> AnyDataset:
    """`dataset` with rows of lists and numbers, not of tensors. A transform stays: TRL refuses it with the reason."""
    is_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return dataset if is_transform else dataset.with_format(None)
