"""Reads rows from files, folders and Hub data sets. Does not need torch."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Rows: TypeAlias = "list[dict[str, Any]] | Dataset"

FORMATS = "a .json, .jsonl, .csv or .parquet file, a folder with such files, or a Hub data set"
LARGEST_CELL = 1 << 30  # characters in a CSV file; the csv module refuses more than 131,072
PROMPT_COLUMNS = {"prompt", "messages", "completion", "text", "input_ids"}
RUBRIC_COLUMNS = {"response", "chosen", "rejected", "targets", "response 1"}  # of records and pairs with a rubric


def read_rows(
    source: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    rubric: str | Mapping[str, str] | None = None,
) -> Rows:
    """
    Reads records, pairs, or rows for TRL.

    Args:
        source (`str`): .json, .jsonl, .jsonl.gz, .csv or .parquet file, folder with such files, or Hub data set. Cells
            of a CSV file are text.
        split (`str`, *optional*, defaults to `"train"`): split of a folder or Hub data set.
        columns (`Mapping[str, str]`, *optional*): new names by old ones, e.g. `{"question": "instruction"}`. A renamed
            column replaces one that has its new name.
        rubric (`str` or `Mapping`, *optional*): one rubric for all rows, see [`read_rubric`].

    Returns:
        `list[dict]`, or a [`~datasets.Dataset`] of a Parquet file, a folder or a Hub data set.
    """
    file = Path(source)
    if str(source) and (file.is_file() or _ending(file) in READERS):
        if split != "train":
            raise InputError(f"{source} is a file and has no splits, so split={split!r} has no effect. Leave it out.")
        rows = _read_file(file)
    else:
        rows = _read_dataset(str(source), split)
    if not len(rows):
        raise InputError(f"{source} holds no records.")
    return _formatted(rows, columns, rubric, source)


def read_record(
    path: str | Path, columns: Mapping[str, str] | None = None, rubric: str | Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One record from a JSON file; `columns` and `rubric` as in [`read_rows`]."""
    record = _parsed(_text(Path(path)), str(path))
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold one record, found {type(record).__name__}. Give a list with --input.")
    return dict(_formatted([record], columns, rubric, path)[0])


def read_rubric(rubric: str) -> str | dict[str, Any]:
    """A rubric given as text, or as the file that holds it: text, or in a .json file a description for each score."""
    path = Path(rubric)
    try:
        if not path.is_file():
            return rubric
    except OSError:  # a text too long for a file's name
        return rubric
    text = _text(path)
    found = _parsed(text, str(path)) if path.suffix == ".json" else text.strip()
    if not found or not isinstance(found, str | dict):
        raise InputError(f"{path} must hold a rubric, text or a JSON object, found {found!r:.80}.")
    return found


def _ending(file: Path) -> str:
    """The ending that says how a file is read, such as .csv or .jsonl.gz."""
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix


def _read_file(file: Path) -> Rows:
    ending = _ending(file)
    if ending not in READERS:
        raise InputError(f"{file} must be a .json, .jsonl, .csv or .parquet file, found {ending!r}.")
    try:
        return READERS[ending](file)  # type: ignore[no-any-return]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, csv.Error, zlib.error) as error:  # no such file, not UTF-8, damaged
        raise InputError(f"There is no data to read at {str(file)!r} ({error}). Give {FORMATS}.") from error


def _read_dataset(source: str, split: str) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    from tract_trainer.data.datasets import described

    try:
        if not source:
            raise FileNotFoundError("the name is empty")
        dataset: Any = load_dataset(source, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # no such data set or split, damaged files
        raise InputError(f"There is no data to read at {source!r} ({error}). Give {FORMATS}.") from error
    return described(dataset, Path(source))


def _parquet_rows(file: Path) -> "Dataset":
    import pyarrow.parquet  # not at start-up, where --help waits for it
    from datasets import Dataset

    from tract_trainer.data.datasets import described

    return described(Dataset(pyarrow.parquet.read_table(file)), file.parent)


def _json_rows(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON file: a list; an object of records by their ids, or with one list; or a record a line."""
    text = _text(file)
    lined = _ending(file).startswith(".jsonl")
    if lined or re.match(r"\s*{.*}\s*\n\s*{", text):  # some public .json files are JSON lines
        lines = enumerate(text.split("\n"), 1)
        found: Any = [_parsed(line, f"{file}, line {number},") for number, line in lines if line.strip()]
    else:
        found = _parsed(text, str(file))
    if isinstance(found, dict):
        values = list(found.values())
        if len(values) == 1 and isinstance(values[0], list):
            found = values[0]
        elif values and all(isinstance(value, dict) for value in values):
            found = [{"id": key, **value} for key, value in found.items()]
    if not isinstance(found, list):
        raise InputError(
            f"{file} must hold a list of records, or an object of records by their ids; found {type(found).__name__}."
        )
    for number, record in enumerate(found):
        if not isinstance(record, dict):
            raise InputError(f"Record {number} of {file} must be an object, found {record!r:.80}.")
    return found


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            heads = list(reader.fieldnames or ())
            rows = list(reader)
    finally:
        csv.field_size_limit(limit)
    if twice := sorted({head for head in heads if heads.count(head) > 1}):
        raise InputError(f"{file} has several columns with the name {twice[0]!r}. Give each column a name of its own.")
    for number, row in enumerate(rows):
        if None in row or None in row.values():  # DictReader's key of cells too many, and value of cells too few
            raise InputError(f"Row {number} of {file} must have {len(heads)} cells. Quote those that hold commas.")
    return rows


READERS: dict[str, Any] = {
    ".json": _json_rows,
    ".jsonl": _json_rows,
    ".jsonl.gz": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _text(path: Path) -> str:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as text:
            return text.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be in UTF-8: {error}. Save it in that encoding.") from error


def _parsed(text: str, place: str) -> Any:
    advice = "Give a .json list or a .jsonl file, one record a line."
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        reason = f"{error.msg} at {line}character {error.colno}"
        raise InputError(f"{place} is not valid JSON: {reason}. {advice}") from error
    except UnicodeEncodeError as error:  # half of an emoji that was cut in two, which no tokenizer can read
        before, half = error.object[max(0, error.start - 20) : error.start], error.object[error.start : error.end]
        raise InputError(f"{place} holds {half!r}, half of a character, after {before!r}. Remove it.") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, too many brackets
        raise InputError(f"{place} is not valid JSON: {str(error).partition(';')[0]}. {advice}") from error
    return found


def _formatted(
    rows: Rows, columns: Mapping[str, str] | None, rubric: str | Mapping[str, str] | None, source: str | Path
) -> Rows:
    if columns:
        rows = _renamed(rows, columns, source)
    return rows if rubric is None else _with_rubric(rows, rubric, source)


def _names(rows: Rows) -> set[str]:
    return set().union(*rows) if isinstance(rows, list) else set(rows.column_names)


def _renamed(rows: Rows, columns: Mapping[str, str], source: str | Path) -> Rows:
    found = _names(rows)
    if absent := sorted(columns.keys() - found):
        raise InputError(f"{source} has no column {', '.join(map(repr, absent))} to rename; found {sorted(found)}.")
    if len(set(columns.values())) < len(columns):
        raise InputError(f"columns={dict(columns)} gives several columns one name. Give each a name of its own.")
    if not isinstance(rows, list):
        replaced = [name for name in columns.values() if name in found and name not in columns]
        return rows.remove_columns(replaced).rename_columns(dict(columns))
    return [
        {name: value for name, value in row.items() if name not in columns}
        | {new: row[old] for old, new in columns.items() if old in row}
        for row in rows
    ]


def _with_rubric(rows: Rows, rubric: str | Mapping[str, str], source: str | Path) -> Rows:
    found = _names(rows)
    if found & PROMPT_COLUMNS and not found & RUBRIC_COLUMNS:
        raise InputError(
            f"The rows of {source} have the columns {sorted(found)}: ready prompts, on which a rubric has no effect. "
            "Leave it out, or give `instruction` and `response`."
        )
    if isinstance(rows, list):
        return [{**row, "rubric": rubric} for row in rows]
    others = rows.remove_columns("rubric") if "rubric" in found else rows
    return others.add_column("rubric", [rubric] * len(rows))
