"""Writes finished rows as lines of append-only files, and results as JSON files.

Half a line, which a killed process may leave, is cut off by the next one. Files that this package did not write are
never replaced or deleted, unless the caller asks for it.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tract_trainer._distributed import file_lock
from tract_trainer.errors import InputError

# In every settings file, result and page that this package writes, so that a later call may replace it.
MARK = "tract_trainer_version"
MARKED_BYTES = 1 << 16  # at the beginning of a file, in which the mark is looked for


class Shards:
    """
    Rows in the files of a folder, by key. Each process appends to its own file and reads all of them; without a
    `process_index`, it only reads. Memory holds only the places of the rows. A damaged line is an InputError.
    """

    def __init__(self, folder: Path, process_index: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.own = None if process_index is None else folder / f"process-{process_index:05d}.jsonl"
        self.places: dict[str, tuple[Path, int]] = {}  # of a key, its file and the place in it
        for path in sorted(folder.glob("process-*.jsonl")):
            self._index(path)

    def _index(self, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    key = str(json.loads(line)["key"])
                except (ValueError, LookupError, TypeError, RecursionError) as error:  # no JSON, or none of ours
                    raise InputError(
                        f"{path} is damaged at byte {offset}: expected a row as JSON, found {line[:40]!r}. Delete the "
                        "file from there on; its rows will be made again."
                    ) from error
                self.places.setdefault(key, (path, offset))
                offset += len(line)
        if path == self.own and offset < path.stat().st_size:
            os.truncate(path, offset)

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def __getitem__(self, key: str) -> dict[str, Any]:
        path, offset = self.places[key]
        with path.open("rb") as file:
            file.seek(offset)
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def append(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Appends the rows that are not there yet. They are on disk when it returns."""
        if self.own is None:
            raise InputError("These shards are open for reading only.")
        with self.own.open("ab") as file:
            for key, row in rows:
                if key not in self:
                    self.places[key] = self.own, file.tell()
                    file.write(json.dumps({"key": key, **row}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(folder: Path, process_index: int, result: Path | None = None) -> Iterator[None]:
    """
    Keeps other processes with this index out of `folder`, or raises an InputError if one is there. `result` is the file
    made of the rows in `folder`: once it exists, the rows are removed with the lock still held, so that a call which
    starts in that moment finds either the rows or the result.
    """
    with file_lock(folder, f".process-{process_index:05d}.lock"):
        yield
        # Not after an error: where a result is being replaced, the one that exists is the old one.
        if process_index == 0 and result is not None and result.exists():
            remove_rows(folder)
            for lock in folder.glob(".process-*.lock"):
                lock.unlink()
            with suppress(OSError):  # not empty: somebody else keeps files there
                folder.rmdir()


def remove_rows(folder: Path) -> None:
    """Deletes this package's rows and settings from `folder`, and nothing else."""
    for path in folder.glob("process-*.jsonl"):
        path.unlink(missing_ok=True)
    if is_ours(folder / "settings.json"):
        (folder / "settings.json").unlink(missing_ok=True)


def finish_rows(
    folder: Path,
    keys: Sequence[str],
    rows: Callable[[Sequence[int]], Iterable[tuple[int, Mapping[str, Any]]]],
    state: PartialState,
) -> None:
    """
    Makes the rows that `folder` lacks. Launched processes share them, each under its own [`locked`]. Rows with the same
    key are made once. `rows` takes numbers of rows and yields each number with its row, in any order.
    """
    shards = Shards(folder, state.process_index)
    numbers = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))  # of each key, its first
    missing = sorted(number for key, number in numbers.items() if key not in shards)
    state.wait_for_everyone()  # every process has read the shards before one writes
    for number, row in rows(missing[state.process_index :: state.num_processes]):
        shards.append([(keys[number], dict(row))])
    state.wait_for_everyone()


def finished_rows(folder: Path, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows that [`finish_rows`] left there, in the order of `keys`."""
    shards = Shards(folder)
    for key in keys:
        row = shards[key]
        del row["key"]
        yield row


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file beside `path`, which takes the place of `path` at the end: there is never half a file."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether this package wrote the file at `path`, by its `MARK`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(MARKED_BYTES)


def contents(folder: Path) -> list[str]:
    """Names in a folder, without those that begin with `.` or `_` (locks and the like). Empty if it does not exist."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] not in "._") if folder.is_dir() else []


def refuse_foreign(
    files: Iterable[Path], overwrite: bool = False, *, folders: Iterable[Path] = (), signs: Iterable[Path] = ()
) -> None:
    """
    Raises an InputError if the files, or the [`contents`] of the folders, that will be written or deleted are not of
    this package. Call it before any work. With `overwrite`, or if this package wrote one of the `signs`, only a folder
    in the place of a file is refused, or a file in that of a folder.
    """
    known, ways = overwrite or any(map(is_ours, signs)), "with --overwrite (overwrite=True)"
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, and a folder is to be written there. Give another place for it.")
        if not known and (held := contents(folder)):
            raise InputError(
                f"{folder} holds files that tract did not write, such as {held[0]!r}. Give another place for the "
                f"output, or replace what is in the way {ways}."
            )
    for file in files:
        if file.is_dir():
            raise InputError(f"{file} is a folder, and a file is to be written there. Give another place for it.")
        if not known and file.exists() and not is_ours(file):
            raise InputError(
                f"{file} exists, and tract did not write it. Give another place for the output, or replace the file "
                f"{ways}."
            )


def save_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results as JSON, which has no NaN: figures that are not defined become `null`."""
    text = json.dumps(without_nan(results), indent=2, ensure_ascii=False)
    with replacing(Path(path)) as part:
        part.write_text(text + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """`value` with `None` for every NaN in its mappings and sequences, fit for JSON."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
