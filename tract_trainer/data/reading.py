"""Reads records from JSON, JSON lines, CSV and Parquet files, folders of them, or a Hub data set."""

import csv
import json
import re
from pathlib import Path
from typing import Any, cast

from tract_trainer.errors import InputError


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """
    Reads records from a `.json` file (a list) or a `.jsonl` file (one a line).

    Raises:
        ValueError: the file holds something else, or nothing.
    """
    path = Path(path)
    text = _text(path)
    if path.suffix == ".jsonl":
        records: Any = [
            _parsed(line, f"{path}, line {n},") for n, line in enumerate(text.split("\n"), 1) if line.strip()
        ]
    else:
        records = _parsed(text, str(path))
    if not isinstance(records, list):
        raise InputError(f"{path} must hold a list of records, found {type(records).__name__}.")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"Record {number} of {path} must be an object, found {record!r:.80}.")
    if not records:
        raise InputError(f"{path} holds no records.")
    _check_characters(records, text, path)
    return records


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise InputError(
            f"{place} is not valid JSON: {error.msg} at {line}character {error.colno}. Give a .json list or a .jsonl "
            "file, one record a line."
        ) from error


def read_record(path: str | Path) -> dict[str, Any]:
    """Reads one record from a JSON file."""
    text = _text(Path(path))
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold one record, found {type(record).__name__}. Give a list with --input.")
    _check_characters([record], text, Path(path))
    return record


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be in UTF-8: {error}. Save it in that encoding.") from error


def _check_characters(records: list[dict[str, Any]], text: str, path: Path) -> None:
    """JSON may name half of a character, as is left where an emoji was cut in two; no tokenizer can read that."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    for number, record in enumerate(records):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise InputError(f"Record {number} of {path} holds {half!r}, half of a character. Remove it.") from error


def read_rows(source: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """Rows of a .json, .jsonl, .csv (all text) or .parquet file, a folder with such files, or a Hub data set."""
    file = Path(source)
    try:
        if file.is_file() or file.suffix in (".json", ".jsonl", ".csv", ".parquet"):
            rows = _file_rows(file)
        else:
            from datasets import load_dataset

            rows = cast(Any, load_dataset(str(source), split=split)).to_list()
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, csv.Error) as error:  # also not UTF-8, not Parquet, no such split
        kinds = "a .json, .jsonl, .csv or .parquet file, a folder with such files, or a Hub data set"
        raise InputError(f"There is no data to read at {str(source)!r} ({error}). Give {kinds}.") from error
    if not rows:
        raise InputError(f"{source} holds no records.")
    return rows


def _file_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet  # not at start-up, where --help waits for it

        return pyarrow.parquet.read_table(file).to_pylist()
    if file.suffix == ".csv":
        return _csv_rows(file)
    if file.suffix not in (".json", ".jsonl"):
        raise InputError(f"{file} must be a .json, .jsonl, .csv or .parquet file, found {file.suffix!r}.")
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json" and re.match(r"{.*}\s*\n{", text):  # public files that are JSON lines for all their name
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return read_records(file)


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text)
        rows = list(reader)
    for number, row in enumerate(rows):
        if None in row or None in row.values():  # DictReader's key of cells too many, and value of cells too few
            raise InputError(
                f"Row {number} of {file} must have {len(reader.fieldnames or ())} cells. Quote those that hold commas."
            )
    return rows
