"""Finished rows as lines of append-only files, and results as JSON files.

A line is whole or it does not count: the next process cuts off what a killed one left half-written.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tract_trainer._distributed import file_lock
from tract_trainer.errors import InputError

MARK = "tract_trainer_version"
"""Is near the start of every result, table, picture and page, so that a later command knows that it may replace it."""


class Shards:
    """
    Rows in the files of a folder, by key. Each process appends to a file of its own and reads all of them. Only the
    places of the rows are held in memory.

    Args:
        folder (`Path`): folder of the files, made if it is missing.
        process_index (`int`, *optional*): number of the process that writes; `None` to read only.

    Raises:
        InputError: a line is not one of ours.
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
                    key = json.loads(line)["key"]
                except ValueError as error:
                    raise InputError(
                        f"{path} is damaged at byte {offset}: expected a row as JSON, found {line[:40]!r}. Delete the "
                        "file from there on; its rows will be made anew."
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
        """Appends the rows that are not there yet and has them on disk before it returns."""
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
def writing(folder: Path, process_index: int) -> Iterator[Shards]:
    """
    [`Shards`] to which no other running process writes meanwhile.

    Raises:
        InputError: one does.
    """
    with file_lock(folder, f"process-{process_index:05d}.lock"):
        yield Shards(folder, process_index)


def finish_rows(
    folder: Path,
    count: int,
    rows: Callable[[Sequence[int]], Iterable[tuple[int, Mapping[str, Any]]]],
    state: PartialState,
) -> None:
    """
    Adds to `folder` those of `count` rows that an earlier call did not, as they come from `rows`: that is given their
    numbers, and gives each number with its row, in any order. Launched processes share them.
    """
    with writing(folder, state.process_index) as shards:
        missing = [number for number in range(count) if str(number) not in shards]
        state.wait_for_everyone()  # every process has read the shards before one writes
        for number, row in rows(missing[state.process_index :: state.num_processes]):
            shards.append([(str(number), dict(row))])
    state.wait_for_everyone()


def finished_rows(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """The rows that [`finish_rows`] left there, in the order of their numbers."""
    shards = Shards(folder)
    for number in range(count):
        row = shards[str(number)]
        del row["key"]
        yield row


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`, which it replaces at the end: `path` is never half-written."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


def refuse_foreign(files: Iterable[Path], overwrite: bool = False) -> None:
    """
    Raises an InputError for the first of `files` that is there and was not written by this package: its first
    kilobyte lacks `MARK`. With `overwrite`, only a folder in the place of a file is refused.
    """
    for path in files:
        if path.is_dir():
            raise InputError(f"{path} is a folder, and a file is to be written there. Give another output.")
        if path.exists() and not overwrite and MARK.encode() not in _head(path):
            raise InputError(
                f"{path} exists and was not written by tract. Give another output, move the file away, or replace it "
                "with --overwrite true (overwrite=True)."
            )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)


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
