"""Reads rows from files, folders and Hub data sets. Nothing here needs torch."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = "a .json, .jsonl, .csv or .parquet file, a folder with such files, or a Hub data set"

LARGEST_CELL = 1 << 30  # characters in a CSV file; the csv module refuses more than 131,072

ASKED_AS_IT_IS = {"prompt", "messages", "completion", "text", "input_ids"}

WITH_RUBRIC = {"response", "chosen", "rejected", "targets", "response 1"}


def read_rows(
    source: str | Path,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    rubric: str | Mapping[str, str] | None = None,
) -> "list[dict[str, Any]] | Dataset":
    """
    Reads judging records, pairs, or rows for TRL.

    Args:
        source (`str`): .json, .jsonl, .csv or .parquet file, folder with such files, or Hub data set. Cells of a CSV
            file are text.
        split (`str`, *optional*, defaults to `"train"`): split of a folder or Hub data set.
        columns (`Mapping[str, str]`, *optional*): new names by old ones, e.g. `{"question": "instruction"}`. A renamed
            column replaces one that has its new name.
        rubric (`str` or `Mapping`, *optional*): one rubric for all rows, see [`read_rubric`].

    Returns:
        `list[dict]`, or a [`~datasets.Dataset`] of a Parquet file, a folder or a Hub data set.

    Raises:
        InputError: there are no rows, or they cannot be read; a column to rename is missing; or a rubric is given for
            ready prompts, which have no place for it.
    """
    file = Path(source)
    if str(source) and (file.is_file() or file.suffix in READERS):
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
    text = _text(Path(path))
    record = _parsed(text, str(path))
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold one record, found {type(record).__name__}. Give a list with --input.")
    _refuse_surrogates([record], text, path)
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


def _read_file(file: Path) -> "list[dict[str, Any]] | Dataset":
    if file.suffix not in READERS:
        raise InputError(f"{file} must be a .json, .jsonl, .csv or .parquet file, found {file.suffix!r}.")
    try:
        return READERS[file.suffix](file)  # type: ignore[no-any-return]
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # no such file, not UTF-8, not Parquet
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
    text = _text(file)
    if re.match(r"\s*{.*}\s*\n\s*{", text):
        return _json_lines(file)  # some public files are JSON lines under the name .json
    return _checked(_as_list(_parsed(text, str(file)), file), text, file)


def _json_lines(file: Path) -> list[dict[str, Any]]:
    text = _text(file)
    lines = enumerate(text.split("\n"), 1)
    return _checked([_parsed(line, f"{file}, line {n},") for n, line in lines if line.strip()], text, file)


def _as_list(found: Any, file: Path) -> Any:
    """The records of a JSON file: a list, or in an object by their ids, or an object with one list."""
    if isinstance(found, dict):
        values = list(found.values())
        if len(values) == 1 and isinstance(values[0], list):
            return values[0]
        if values and all(isinstance(value, dict) for value in values):
            return [{"id": key, **value} for key, value in found.items()]
    if not isinstance(found, list):
        raise InputError(
            f"{file} must hold a list of records, or an object of records by their ids; found {type(found).__name__}."
        )
    return found


def _checked(records: list[Any], text: str, file: Path) -> list[dict[str, Any]]:
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"Record {number} of {file} must be an object, found {record!r:.80}.")
    _refuse_surrogates(records, text, file)
    return records


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


READERS: dict[str, Any] = {".json": _json_rows, ".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be in UTF-8: {error}. Save it in that encoding.") from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, an integer of thousands of digits, too many brackets
        raise _no_json(place, text, error) from error


def _no_json(place: str, text: str, error: Exception) -> InputError:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if "\n" in text else ""
        reason = f"{error.msg} at {line}character {error.colno}"
    else:
        reason = str(error).partition(";")[0]
    return InputError(f"{place} is not valid JSON: {reason}. Give a .json list or a .jsonl file, one record a line.")


def _refuse_surrogates(records: Sequence[dict[str, Any]], text: str, path: str | Path) -> None:
    """JSON may name half of a character, as is left where an emoji was cut in two; no tokenizer can read that."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    for number, record in enumerate(records):
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise InputError(f"Record {number} of {path} holds {half!r}, half of a character. Remove it.") from error


def _formatted(
    rows: "list[dict[str, Any]] | Dataset",
    columns: Mapping[str, str] | None,
    rubric: str | Mapping[str, str] | None,
    source: str | Path,
) -> "list[dict[str, Any]] | Dataset":
    if columns:
        rows = _renamed(rows, columns, source)
    return rows if rubric is None else _with_rubric(rows, rubric, source)


def _names(rows: "Sequence[Mapping[str, Any]] | Dataset") -> set[str]:
    names = getattr(rows, "column_names", None)
    return set().union(*rows) if names is None else set(names)


def _renamed(
    rows: "list[dict[str, Any]] | Dataset", columns: Mapping[str, str], source: str | Path
) -> "list[dict[str, Any]] | Dataset":
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


def _with_rubric(
    rows: "list[dict[str, Any]] | Dataset", rubric: str | Mapping[str, str], source: str | Path
) -> "list[dict[str, Any]] | Dataset":
    found = _names(rows)
    if found & ASKED_AS_IT_IS and not found & WITH_RUBRIC:
        raise InputError(
            f"The rows of {source} have the columns {sorted(found)}: ready prompts, on which a rubric has no effect. "
            "Leave it out, or give `instruction` and `response`."
        )
    if isinstance(rows, list):
        return [{**row, "rubric": rubric} for row in rows]
    others = rows.remove_columns("rubric") if "rubric" in found else rows
    return others.add_column("rubric", [rubric] * len(rows))
