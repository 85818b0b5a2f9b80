"""The settings a piece of work was begun with, written beside it and compared when it is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tract_trainer._distributed import process_state, refuse_lone_process, refuse_sharding
from tract_trainer.errors import InputError


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
