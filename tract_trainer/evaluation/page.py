"""Turns what a run left ([`tract_trainer.evaluation.artifacts`]) into one HTML file that needs nothing else.

Every text of a run comes from strangers. The template escapes it; judgments travel as JSON, of which the page's script
makes text and nothing but text; and a Content-Security-Policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tract_trainer.evaluation.artifacts import Artifacts, number, read_artifacts, text
from tract_trainer.evaluation.charts import FRAME, training_curves
from tract_trainer.hub.results import FIGURES, figure_with_interval

COUNTS = ("n", "ties", "unscored")

MAIN_SETTINGS = (
    "model_name_or_path", "data", "eval_data", "eval_fraction", "learning_rate", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "score_labels", "score_values",
    "score_prefix", "score_loss_type", "score_loss_weight", "renormalize_scores", "use_peft", "lora_r", "num_cots",
    "temperature", "top_p", "max_new_tokens", "engine", "seed",
)  # fmt: skip

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """A figure, its interval, and what it would be at worst; texts, empty where there is none."""

    value: str
    interval: str = ""
    worst: str = ""


@dataclass(frozen=True)
class Table:
    """Column heads, and rows as a name and cells."""

    heads: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class ResultView:
    """What the page shows of one result, without its judgments."""

    name: str
    judge: str
    benchmark: str
    judgments: int
    figures: Table
    further: dict[str, Table]
    calibration: Cell
    calibration_by_chance: Cell
    facts: Facts


def write_page(run: str | Path, output: str | Path | None = None) -> Path:
    """
    Writes the page of a run.

    Args:
        run (`str`): folder of a run, or the JSON file of a result.
        output (`str`, *optional*): file of the page; by default `report.html` in the folder, or the result's name.

    Returns:
        The path of the page.

    Raises:
        InputError: there is nothing of a run, or a result of another schema.
    """
    run = Path(run)
    page = render_page(read_artifacts(run))
    path = Path(output) if output is not None else run / "report.html" if run.is_dir() else run.with_suffix(".html")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair is valid in JSON and not in UTF-8. One newline everywhere, or the hashes would not fit.
    part = path.with_name(f"{path.name}.part")
    part.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    part.replace(path)
    return path


def render_page(artifacts: Artifacts) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("tract_trainer.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script, settings = _asset("page.css"), _asset("page.js"), artifacts.settings
    return environment.get_template("page.html.jinja").render(
        name=artifacts.name,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        main_settings=_facts({name: settings[name] for name in MAIN_SETTINGS if settings.get(name) is not None}),
        settings=_facts(settings),
        cots=_facts(artifacts.cots),
        curves=training_curves(artifacts.histories),
        frame=FRAME,
        pictures={name: base64.b64encode(picture).decode() for name, picture in artifacts.pictures.items()},
        results=[_view(name, result) for name, result in artifacts.results.items()],
        data={"results": [listing(result) for result in artifacts.results.values()]},
    )


def _asset(name: str) -> Markup:
    return Markup(files("tract_trainer.evaluation").joinpath("templates", name).read_text(encoding="utf-8"))


def _hash(source: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _view(name: str, result: Mapping[str, Any]) -> ResultView:
    about = {part: result[part] for part in ("benchmark", "judge", "settings")}
    return ResultView(
        name=name,
        judge=text(result["judge"].get("name")) or "a judge without a name",
        benchmark=text(result["benchmark"].get("name")) or "records without a name",
        judgments=len(result["judgments"]),
        figures=_table(result["methods"]),
        further=_further(result),
        calibration=_cell(result["calibration"], "error"),
        calibration_by_chance=_cell(result["calibration"], "error_by_chance"),
        facts=_facts({**about, "tract-trainer": result.get("tract_trainer_version")}),
    )


def _further(result: Mapping[str, Any]) -> dict[str, Table]:
    """By their captions, the figures of fewer rationales, and of parts of the records, such as subsets of pairs."""
    methods = {name: figures for name, figures in result["methods"].items() if isinstance(figures, Mapping)}
    kinds = dict.fromkeys(key for found in methods.values() for key in found if isinstance(found[key], Mapping))
    tables = {"By number of rationales": _joined(result["by_rationales"])}
    tables |= {f"By {kind}": _joined({name: found.get(kind) for name, found in methods.items()}) for kind in kinds}
    return {caption: _table(rows) for caption, rows in tables.items() if rows}


def _joined(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Rows with names of two levels."""
    outer = {name: found for name, found in nested.items() if isinstance(found, Mapping)}
    return {f"{name}: {inner}": figures for name, found in outer.items() for inner, figures in found.items()}


def _table(rows: Mapping[str, Any]) -> Table:
    """A column for each figure that any of the rows has: those that have a name here first, counts last."""
    known = {name: figures for name, figures in rows.items() if isinstance(figures, Mapping)}
    found = dict.fromkeys(key for figures in known.values() for key in figures if not isinstance(figures[key], Mapping))
    own = [key for key in found if key not in (*FIGURES, *COUNTS) and not key.endswith(("_ci", "_worst"))]
    columns = [*(key for key in FIGURES if key in found), *own, *(key for key in COUNTS if key in found)]
    return Table(
        heads=[FIGURES.get(key, key.replace("_", " ")) for key in columns],
        rows=[(name, [_cell(figures, key) for key in columns]) for name, figures in known.items()],
    )


def _cell(figures: Mapping[str, Any], key: str) -> Cell:
    value, bounds = number(figures.get(key)), figures.get(f"{key}_ci")
    if key in COUNTS or value is None:
        return Cell(text(figures.get(key)) or "-")
    between = [number(bound) for bound in bounds] if isinstance(bounds, list) else None
    shown, _, interval = figure_with_interval(value, between).partition(" ")
    worst = number(figures.get(f"{key}_worst")) if figures.get("unscored") else None
    return Cell(shown, interval, "" if worst is None else figure_with_interval(worst))


def _facts(values: Mapping[str, Any], above: str = "") -> Facts:
    """Names and texts of settings; those of a setting with settings of its own follow its name."""
    facts: Facts = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            facts += _facts(value, f"{above}{name}: ")
        else:
            facts.append((f"{above}{name}", text(value) or "-"))
    return facts


Judged = Mapping[str, Any]


def listing(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    `scale`, labels with their values, and `judgments`, each with its `error`: the distance of its score from gold; of
    pairs, how far the score of the rejected response is above that of the chosen one.
    """
    config, judgments = result["judge"].get("config") or {}, result["judgments"]
    labels, values = config.get("score_labels") or [], config.get("score_values") or []
    pairs = bool(judgments) and "side" in judgments[0]
    errors = _pair_errors(judgments) if pairs else (_less(row, "score", row, "gold") for row in judgments)
    return {
        "scale": [{"label": text(label), "value": number(value)} for label, value in zip(labels, values, strict=False)],
        "judgments": [
            {**_listed(judgment), "error": error if error is None or pairs else abs(error)}
            for judgment, error in zip(judgments, errors, strict=True)
        ],
    }


def _pair_errors(judgments: Sequence[Judged]) -> Iterator[float | None]:
    """Of pairs there are two judgments each, the chosen response first; both have the pair's error."""
    for chosen in range(0, len(judgments), 2):
        pair = judgments[chosen : chosen + 2]
        yield from [_less(pair[-1], "score", pair[0], "score")] * len(pair)


def _less(first: Judged, of_first: str, second: Judged, of_second: str) -> float | None:
    a, b = number(first.get(of_first)), number(second.get(of_second))
    return None if a is None or b is None else a - b


def _listed(judgment: Judged) -> dict[str, Any]:
    place = {key: text(judgment[key]) for key in ("id", "subset", "side") if key in judgment}
    return {
        **{key: number(judgment.get(key)) for key in ("gold", "score", "std", "mass")},
        **{key: text(judgment.get(key)) for key in ("label", "reason", "rationale", "prompt")},
        "place": ", ".join(f"{key} {value}" for key, value in place.items()),
        "probs": _rounded(judgment.get("probs")),
        "rationales": [_rationale(found) for found in judgment.get("rationales") or []],
    }


def _rationale(found: Judged) -> dict[str, Any]:
    return {
        "label": text(found.get("label")),
        "probs": _rounded(found.get("probs")),
        "tokens": number(found.get("num_tokens")),
        "forced": bool(found.get("forced")),
    }


def _rounded(probs: Sequence[Any] | None) -> list[float]:
    """Probabilities, `(K,)`, as precise as a bar can show; empty where one is not known."""
    known = [number(p) for p in probs or []]
    return [] if None in known else [round(p, 4) for p in known if p is not None]
