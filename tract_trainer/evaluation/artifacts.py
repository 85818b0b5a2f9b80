"""Reads what a run left on disk: settings, training logs, the report on its rationales, and results.

Takes the folder of `tract run`, `tract sft` or `tract demo`, one with results, or a single result. What is missing is
empty. `null` counts as missing. Other files are ignored.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tract_trainer.errors import InputError

SCHEMA_VERSION = 1

PARTS: dict[str, type] = {
    "judge": dict,
    "benchmark": dict,
    "settings": dict,
    "methods": dict,
    "by_rationales": dict,
    "calibration": dict,
    "judgments": list,
}
"""The parts of a result and their types."""

LARGEST = 1e300  # the difference of two such numbers is still finite


@dataclass(frozen=True)
class Artifacts:
    """
    What a run left.

    Attributes:
        name (`str`): name of its folder or file.
        settings (`dict`): `settings.json`.
        cots (`dict`): the report on the self-generated rationales.
        histories (`dict[str, list[dict]]`): `log_history` of each folder with a trained model, by its name.
        results (`dict[str, dict]`): results of evaluations, with all of `PARTS`, by the names of their files.
    """

    name: str
    settings: dict[str, Any]
    cots: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]]
    results: dict[str, dict[str, Any]]


def read_artifacts(path: str | Path) -> Artifacts:
    """
    Reads a run's folder, or the JSON file of one result.

    Raises:
        InputError: the folder holds nothing of a run, or a result that this version cannot read.
    """
    path = Path(path)
    if path.is_file():
        return Artifacts(path.name, {}, {}, {}, {path.stem: _result(path, _json(path))})
    if not path.is_dir():
        raise InputError(
            f"There is no run at {str(path)!r}. Give the folder of tract run, or the JSON file of a result."
        )
    found = {file: _json(file) for file in sorted(path.glob("*.json"))}
    artifacts = Artifacts(
        name=path.resolve().name,
        settings=_mapping(path / "settings.json"),
        cots=_mapping(path / "cots" / "report.json"),
        histories=_histories(path),
        results={file.stem: _result(file, content) for file, content in found.items() if _is_result(content)},
    )
    if not any((artifacts.settings, artifacts.cots, artifacts.histories, artifacts.results)):
        raise InputError(
            f"{str(path)!r} holds nothing of a run: no settings.json, no stage with a trainer_state.json, no "
            "cots/report.json, no result. Give the folder that tract run wrote, or one with results of tract evaluate."
        )
    return artifacts


def number(value: object) -> float | None:
    """A JSON value as a number; `None` if it is not a number, not finite, or above `LARGEST`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < LARGEST else None


def text(value: object) -> str:
    """A JSON value for a reader: text as it is, chat messages one below the other, nothing for `null`."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and value and all(isinstance(item, dict) and "content" in item for item in value):
        return "\n\n".join(f"{text(item.get('role'))}:\n{text(item['content'])}" for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or what Python refuses to read of either
        raise InputError(f"{path} is not valid JSON: {error}. Write it again, or move it elsewhere.") from error


def _mapping(path: Path) -> dict[str, Any]:
    content = _json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _is_result(content: object) -> bool:
    return isinstance(content, dict) and ("schema_version" in content or "judgments" in content)


def _result(path: Path, content: Any) -> dict[str, Any]:
    """A result with every part, empty where it has none."""
    if not _is_result(content):
        raise InputError(f"{path} is not the result of an evaluation: it has no schema_version. Give one, or a folder.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {content.get('schema_version')!r}, and this version of tract-trainer reads "
            f"{SCHEMA_VERSION}. Run tract evaluate again, or use the tract-trainer that wrote it."
        )
    for part, kind in PARTS.items():
        value = content.get(part)
        if value is not None and not isinstance(value, kind):
            raise InputError(
                f"{path}: {part!r} must be a JSON {'array' if kind is list else 'object'}, found "
                f"{type(value).__name__}. Run tract evaluate again."
            )
    if not all(isinstance(judgment, dict) for judgment in content.get("judgments") or []):
        raise InputError(f"{path}: each of the 'judgments' must be a JSON object. Run tract evaluate again.")
    for method, figures in (content.get("methods") or {}).items():
        if not isinstance(figures, dict) or None in (number(figures.get("n")), number(figures.get("unscored"))):
            raise InputError(f"{path}: the figures of {method!r} lack `n` and `unscored`. Run tract evaluate again.")
        for name, value in figures.items():
            if isinstance(value, str):
                raise InputError(f"{path}: {name!r} of {method!r} must be a number, found text. Run tract evaluate.")
    return {**content, **{part: content.get(part) or kind() for part, kind in PARTS.items()}}


def _histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Training logs of the folder itself and of the folders in it, without its checkpoints."""
    below = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("checkpoint-"))
    found = {"training": _history(folder), **{place.name: _history(place) for place in below}}
    return {name: history for name, history in found.items() if history}


def _history(folder: Path) -> list[dict[str, Any]]:
    """`log_history` of the finished training, or else of the last checkpoint."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: (len(str(path)), str(path)))
    finished = folder / "trainer_state.json"
    history = _mapping(finished if finished.is_file() or not states else states[-1]).get("log_history")
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
