"""Turns finished rows into lines of append-only files, and those back into rows by key.

A line is whole or it does not count: what a killed process left half-written is cut off by the next one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tract_trainer.errors import InputError
from tract_trainer.limits import refuse_lone_process, refuse_sharding
from tract_trainer.parallel import process_state

OFFSET_BITS = 48


class Shards:
    """
    Rows in the files of a folder, by key. Each process appends to a file of its own and reads all of them. Only the
    places of the rows are held in memory.

    Args:
        folder (`Path`): folder of the files, made if it is missing.
        process_index (`int`, *optional*): number of the process that writes; `None` to read only.
    """

    def __init__(self, folder: Path, process_index: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.own = None if process_index is None else folder / f"process-{process_index:05d}.jsonl"
        self.paths = sorted({*folder.glob("process-*.jsonl"), *([] if self.own is None else [self.own])})
        self.places: dict[bytes, int] = {}  # of a key, the number of its file and the place in it
        for number, path in enumerate(self.paths):
            if path.exists():
                self._index(number, path)

    def _index(self, number: int, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.places.setdefault(_short(json.loads(line)["key"]), number << OFFSET_BITS | offset)
                offset += len(line)
        if path == self.own and offset < path.stat().st_size:
            os.truncate(path, offset)

    def __contains__(self, key: str) -> bool:
        return _short(key) in self.places

    def __getitem__(self, key: str) -> dict[str, Any]:
        place = self.places[_short(key)]
        with self.paths[place >> OFFSET_BITS].open("rb") as file:
            file.seek(place & (1 << OFFSET_BITS) - 1)
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def append(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Appends the rows that are not there yet and has them on disk before it returns."""
        if self.own is None:
            raise InputError("These shards are open for reading only.")
        number = self.paths.index(self.own)
        with self.own.open("ab") as file:
            for key, row in rows:
                if key not in self:
                    self.places[_short(key)] = number << OFFSET_BITS | file.tell()
                    file.write(json.dumps({"key": key, **row}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _short(key: str) -> bytes:
    """A key in less memory."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """
    Writes the settings of a piece of work to `path`; where they stand there already, compares.

    Raises:
        InputError: they differ. Each difference is named.
    """
    if path.is_file():
        before = json.loads(path.read_text())
        changed = [
            f"{name}: {before.get(name)!r} there, {settings.get(name)!r} now"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise InputError(
                f"{path.parent} holds work done with other settings ({path.name}), which cannot be mixed:\n  "
                + "\n  ".join(changed)
                + "\nGive another place for the output, or delete this one to start over."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n")
    temporary.replace(path)


def append_rows(path: Path, count: int, rows: Callable[[range], Iterable[Mapping[str, Any]]]) -> None:
    """
    Appends to the JSONL file `path`, as they come, those of `count` rows that are not there yet.

    Launched processes take turns at the rows. Each appends its own to a file beside `path`, and the first of them puts
    the files together when all are done.

    Args:
        rows (`Callable`): gives the rows with the numbers that it is given, in their order.
    """
    state = process_state()
    refuse_lone_process(state.num_processes)
    refuse_sharding()
    if state.num_processes == 1:
        _append(path, range(count), rows)
        return
    parts = [path.with_name(f"{path.name}.process-{i:05d}") for i in range(state.num_processes)]
    if not path.exists():
        _append(parts[state.process_index], range(state.process_index, count, len(parts)), rows)
        state.wait_for_everyone()
        if state.is_main_process:
            _put_together(parts, count, path)
    state.wait_for_everyone()
    if state.is_main_process:
        for part in parts:
            part.unlink(missing_ok=True)


def _append(path: Path, numbers: range, rows: Callable[[range], Iterable[Mapping[str, Any]]]) -> None:
    done = path.read_bytes() if path.exists() else b""
    whole = done[: done.rfind(b"\n") + 1]
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(len(whole))  # a killed run may have left half a line
        file.seek(len(whole))
        for row in rows(numbers[whole.count(b"\n") :]):
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()


def _put_together(parts: Sequence[Path], count: int, path: Path) -> None:
    whole = path.with_name(path.name + ".part")
    with ExitStack() as stack, whole.open("wb") as file:
        opened = [stack.enter_context(part.open("rb")) for part in parts]
        file.writelines(opened[i % len(parts)].readline() for i in range(count))
    whole.replace(path)
