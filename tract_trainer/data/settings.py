"""Settings of unfinished work: written when it begins, and compared when it resumes."""

import json
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from tract_trainer._distributed import process_state, refuse_lone_process, refuse_sharding
from tract_trainer.data.store import MARK, contents, refuse_foreign, remove_rows, replacing
from tract_trainer.errors import InputError


def check_settings(path: Path, settings: dict[str, Any], *work: Path, free: Collection[str] = ()) -> None:
    """
    Writes the settings of some work to `path`, or compares them with those that are there. Settings at `path` count
    only while one of the files or folders of the `work` exists; without `work`, always. Those in `free` may change.
    `command` says whose settings they are.
    """
    found = _read(path)
    if found is not None and found.get("command") not in (None, settings.get("command")):
        raise InputError(
            f"{path} belongs to work of {found['command']}, whose settings would be replaced. Give another place for "
            "the output."
        )
    if found is not None and found | {MARK: None} == settings | {MARK: None}:
        return
    begun = [place for place in work if (contents(place) if place.is_dir() else place.exists())]
    if path.is_file() and (begun or not work):
        if found is None:
            raise InputError(
                f"{path} must hold the settings of the work beside it as a JSON object, and is damaged. Give another "
                "place for the output, or start over with --overwrite (overwrite=True)."
            )
        if changed := differences(found, settings, free):
            there = " and ".join(str(place) for place in (path, *begun))
            raise InputError(
                f"{path} belongs to work with other settings, which cannot be mixed:\n  "
                + "\n  ".join(changed)
                + "\nGive another place for the output. To start over, use --overwrite (overwrite=True) or delete "
                + f"{there}."
            )
    elif begun:
        raise InputError(
            f"{begun[0]} holds work of an earlier run, but its settings, {path}, are gone. Give another place for the "
            f"output. To start over, use --overwrite (overwrite=True) or delete {begun[0]}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps({MARK: version("tract-trainer"), **settings}, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    """The settings at `path`; `None` if they are missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """A line for each setting that changed, but for those named in `free`."""
    return [
        f"{name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted({*before, *now} - {MARK, "command", *free})
        if before.get(name) != now.get(name)
    ]


def begin(
    settings_path: Path,
    settings: dict[str, Any],
    *work: Path,
    folders: Iterable[Path] = (),
    overwrite: bool = False,
    free: Collection[str] = (),
) -> PartialState:
    """
    Checks that work can begin or resume: by these processes, with these settings (see [`check_settings`]), in these
    `folders` (see [`refuse_foreign`]). With `overwrite` it starts over. Returns the launched processes.
    """
    state = process_state()
    refuse_lone_process(state.num_processes)
    refuse_sharding()
    with state.main_process_first():
        refuse_foreign([settings_path], overwrite, folders=folders, signs=[settings_path])
        if overwrite and state.is_main_process:
            for place in (*work, settings_path):
                remove_rows(place) if place.is_dir() else place.unlink(missing_ok=True)
        check_settings(settings_path, settings, *(() if overwrite else work), free=free)
    return state
