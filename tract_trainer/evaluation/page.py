"""The report page: settings, training logs and results of a run as one HTML file that needs no other file.

All text of a run is untrusted. The template escapes it; judgments are JSON, which the page's script adds as text only;
pictures are images, in which nothing runs; a Content-Security-Policy allows no other script and loads nothing.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from transformers.trainer_utils import get_last_checkpoint

from tract_trainer.data.store import MARK, refuse_foreign, replacing, without_nan
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import is_result, load_result, read_json
from tract_trainer.evaluation.pairwise import layout_of_rows
from tract_trainer.evaluation.pictures import as_svg, result_figures, training_curves
from tract_trainer.hub.card import environment
from tract_trainer.hub.results import GIVEN, figure_rows, further_tables, remarks, verdict, with_ceiling


def write_page(run: str | Path, output: str | Path | None = None, overwrite: bool = False) -> Path:
    """
    Writes the page of the run in a folder, or of the JSON file of a result, and returns its path: `output`, by default
    `report.html` in the folder, or the result's name. With `overwrite` it may replace a file that is no such page.
    """
    run = Path(run)
    path = Path(output) if output is not None else run / "report.html" if run.is_dir() else run.with_suffix(".html")
    if path.exists() and run.exists() and path.samefile(run):
        raise InputError(f"The page would replace the result {run} that it shows. Give another output.")
    refuse_foreign([path], overwrite)
    page = render_page(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair is valid in JSON and not in UTF-8. One newline everywhere, or the hashes would not fit.
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return path


def render_page(run: Path) -> str:
    """The page of a run's folder, or of the JSON file of a result, as HTML."""
    if not run.exists():
        raise InputError(f"There is no run at {str(run)!r}. Give a folder of tract run, or the JSON file of a result.")
    paths = [run] if run.is_file() else [path for path in sorted(run.glob("*.json")) if is_result(read_json(path))]
    results = {path.stem: load_result(path) for path in paths}
    settings, cots = (_facts_in(run / name) for name in ("settings.json", "cots/report.json"))
    settings += [(f"stage 3: {name}", text) for name, text in _facts_in(run / "stage3.settings.json")]
    histories = training_logs(run)
    if not any((results, settings, cots, histories)):
        raise InputError(
            f"{str(run)!r} holds nothing of a run: no settings.json, no stage with a trainer_state.json, no "
            "cots/report.json, no result. Give the folder that tract run wrote, or one with results of tract evaluate."
        )
    templates = environment("evaluation", autoescape=True)
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script, curves = _asset("page.css"), _asset("page.js"), training_curves(histories)
    return templates.get_template("page.html.jinja").render(
        name=run.resolve().name,
        mark=f"{MARK} {version('tract-trainer')}",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        results=[_view(name, result) for name, result in results.items()],
        curves=None if curves is None else _data_uri(curves),
        cots=cots,
        settings=settings,
        data={"results": [listing(result) for result in results.values()]},
    )


def _facts_in(path: Path) -> list[tuple[str, str]]:
    return _facts(read_json(path)) if path.is_file() else []


def training_logs(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The training logs, `log_history`, of a folder itself and of the folders in it, without its checkpoints."""
    folders = {"training": run, **{path.name: path for path in sorted(run.glob("*/"))}}
    found = {name: _log(path) for name, path in folders.items() if not name.startswith("checkpoint-")}
    return {name: history for name, history in found.items() if history}


def _log(folder: Path) -> list[dict[str, Any]]:
    """That of the finished training, or else of the last checkpoint."""
    places = [folder, Path(get_last_checkpoint(str(folder)) or folder)] if folder.is_dir() else []
    states = [path for place in places if (path := place / "trainer_state.json").is_file()]
    return read_json(states[0])["log_history"] if states else []


def _asset(name: str) -> Markup:
    return Markup(files("tract_trainer.evaluation").joinpath("templates", name).read_text(encoding="utf-8"))


def _hash(source: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _data_uri(figure: Figure) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(as_svg(figure)).decode()


def _view(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one result: all but its judgments."""
    about = {part: result[part] for part in ("benchmark", "judge", "settings")}
    return {
        "name": name,
        "judge": result["judge"]["name"],
        "benchmark": result["benchmark"]["name"],
        "verdict": verdict(result),
        "figures": figure_rows(with_ceiling(result)),
        "remarks": remarks(result),
        "tables": further_tables(result),
        "pictures": {picture: _data_uri(figure) for picture, figure in result_figures(result).items()},
        "facts": _facts({**about, "tract-trainer": result[MARK]}),
    }


def _facts(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Names and texts of settings that are not empty; the name of a nested one follows that of its parent."""
    facts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{above}{name}: ")
        elif isinstance(value, float):
            facts.append((f"{above}{name}", f"{value:.6g}"))
        elif value not in (None, ""):
            facts.append((f"{above}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return facts


def listing(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    The judgments of a result for the page's script.

    Returns:
        `dict` with `labels`, those of the scale from lowest to highest, none if the scores were given, and `judgments`.
        Each of these has an `error`: the distance of its score from gold, or for a pair the highest score of a rejected
        response less that of a chosen one; and `nearest`, the places among `labels` that are nearest to gold.
    """
    config, rows = result["judge"]["config"], result["judgments"]
    order = np.argsort(config["score_values"]).tolist()
    scores = np.array([row["score"] for row in rows], dtype=np.float64)
    if "gold" in rows[0]:
        errors = np.abs(scores - [row["gold"] for row in rows])
    else:
        layout, _ = layout_of_rows(rows)
        wrong = [rejected.max() - chosen.max() for chosen, rejected in layout.sides(scores)]
        errors = np.repeat(wrong, np.sum(layout.sizes, axis=1))  # all judgments of a pair have its error
    return {
        "labels": [] if GIVEN in result["methods"] else [config["score_labels"][place] for place in order],
        "judgments": [
            {**_listed(row, config["score_values"], order), "number": number, "error": error}
            for number, (row, error) in enumerate(zip(rows, without_nan(errors.tolist()), strict=True), start=1)
        ],
    }


def _listed(row: Mapping[str, Any], values: Sequence[float], order: Sequence[int]) -> dict[str, Any]:
    place = {key: row[key] for key in ("id", "subset", "side") if key in row}
    gold = row.get("gold")
    distances = [] if gold is None else [abs(values[i] - gold) for i in order]
    return {
        **{key: row[key] for key in ("score", "std", "mass", "label", "reason", "rationale", "prompt")},
        "gold": gold,
        "nearest": [i for i, distance in enumerate(distances) if distance == min(distances)],
        "record": ", ".join(f"{key} {value}" for key, value in _facts({**place, **row["record"]})),
        "probs": _sorted(row["probs"], order),
        "rationales": [
            {
                "label": found["label"],
                "probs": _sorted(found["probs"], order),
                "tokens": found["num_tokens"],
                "forced": found["forced"],
            }
            for found in row["rationales"]
        ],
    }


def _sorted(probs: Sequence[float | None] | None, order: Sequence[int]) -> list[float]:
    """Probabilities, `(K,)`, from the lowest value of the scale to the highest; empty for an unscored record."""
    known = [p for p in probs or [] if p is not None]
    return [round(known[place], 4) for place in order] if known else []
