"""Turns finished rows into lines of append-only files, and those back into rows by key.

A line is whole or it does not count: what a killed process left half-written is cut off by the next one.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from tract_trainer.errors import InputError
from tract_trainer.limits import refuse_lone_process, refuse_sharding
from tract_trainer.parallel import process_state


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
    with alone(folder, f"process-{process_index:05d}.lock"):
        yield Shards(folder, process_index)


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` in `folder`; an InputError where another running process does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another run is writing to {folder}. Wait for it, or give another place for the output."
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_settings(path: Path, settings: dict[str, Any], *work: Path) -> None:
    """
    Writes the settings of a piece of work to `path`; where they stand there already, compares. Where all of the places
    of the work are given, and nothing is at any of them, there is nothing that other settings could be mixed with.

    Raises:
        InputError: they differ, and each difference is named; or one of `work` is there without its settings.
    """
    begun = [found for found in work if found.exists()]
    if path.is_file() and (begun or not work):
        changed = differences(_read(path), settings)
        if changed:
            there = [str(found) for found in (path, *begun)]
            raise InputError(
                f"{path} tells of work with other settings, which cannot be mixed:\n  "
                + "\n  ".join(changed)
                + f"\nGive another place for the output. To start over, delete {' and '.join(there)}."
            )
        return
    for found in begun:
        raise InputError(
            f"{found} holds work of an earlier run, and {path}, which tells how it was made, is gone. Give another "
            f"place for the output. To start over, delete {found}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n")
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}, which tells how the work beside it was made, is damaged. Give another place, or delete both."
        )
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting that is not what it was."""
    return [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def begin(settings_path: Path, settings: dict[str, Any], *work: Path) -> PartialState:
    """The launched processes, if they can share the work at `work` and its settings are those at `settings_path`."""
    state = process_state()
    refuse_lone_process(state.num_processes)
    refuse_sharding()
    with state.main_process_first():
        check_settings(settings_path, settings, *work)
    return state


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
