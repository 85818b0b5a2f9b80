"""Writes what a run left ([`tract_trainer.evaluation.artifacts`]) as one HTML file that needs no other file.

All text of a run is untrusted. The template escapes it; judgments are JSON, which the page's script adds as text only;
pictures are images, in which nothing runs; a Content-Security-Policy allows no other script and loads nothing.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tract_trainer.data.store import MARK, refuse_foreign, replacing
from tract_trainer.errors import InputError
from tract_trainer.evaluation.artifacts import Artifacts, number, read_artifacts, text
from tract_trainer.evaluation.methods import METHODS
from tract_trainer.evaluation.pictures import as_svg, result_figures, training_curves
from tract_trainer.hub.results import calibration_remark, figure_rows, verdict

Judged = Mapping[str, Any]


def write_page(run: str | Path, output: str | Path | None = None, overwrite: bool = False) -> Path:
    """
    Writes the page of a run.

    Args:
        run (`str`): folder of a run, or the JSON file of a result.
        output (`str`, *optional*): file of the page; by default `report.html` in the folder, or the result's name.
        overwrite (`bool`, *optional*, defaults to `False`): replace a file there that is not such a page.

    Returns:
        The path of the page.

    Raises:
        InputError: there is nothing of a run, a result of another schema, or another file at `output`.
    """
    run = Path(run)
    path = Path(output) if output is not None else run / "report.html" if run.is_dir() else run.with_suffix(".html")
    if path.exists() and run.exists() and path.samefile(run):
        raise InputError(f"The page would replace the result {run} that it shows. Give another output.")
    refuse_foreign([path], overwrite)
    page = render_page(read_artifacts(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair is valid in JSON and not in UTF-8. One newline everywhere, or the hashes would not fit.
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace", newline="\n")
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
    style, script, curves = _asset("page.css"), _asset("page.js"), training_curves(artifacts.histories)
    return environment.get_template("page.html.jinja").render(
        name=artifacts.name,
        mark=f"{MARK} {version('tract-trainer')}",
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        results=[_view(name, result) for name, result in artifacts.results.items()],
        curves=None if curves is None else _data_uri(as_svg(curves)),
        cots=_facts(artifacts.cots),
        settings=_facts(artifacts.settings),
        data={"results": [listing(result) for result in artifacts.results.values()]},
    )


def _asset(name: str) -> Markup:
    return Markup(files("tract_trainer.evaluation").joinpath("templates", name).read_text(encoding="utf-8"))


def _hash(source: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _view(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one result: all but its judgments."""
    about = {part: result[part] for part in ("benchmark", "judge", "settings")}
    drawable = result["judgments"] and set(METHODS) <= result["methods"].keys()
    return {
        "name": name,
        "judge": text(result["judge"].get("name")) or "a judge without a name",
        "benchmark": text(result["benchmark"].get("name")) or "records without a name",
        "judgments": len(result["judgments"]),
        "verdict": verdict(result),
        "figures": figure_rows(result["methods"]) if result["methods"] else [],
        "calibration": calibration_remark(result),
        "pictures": {picture: _data_uri(as_svg(figure)) for picture, figure in result_figures(result).items()}
        if drawable
        else {},
        "facts": _facts({**about, "tract-trainer": result.get(MARK)}),
    }


def _facts(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Names and texts of settings that are not empty; the name of a nested one follows that of its parent."""
    facts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{above}{name}: ")
        elif shown := text(value):
            facts.append((f"{above}{name}", shown))
    return facts


def listing(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    The judgments of a result for the page's script.

    Returns:
        `dict` with `labels`, those of the scale from lowest to highest, and `judgments`. Each of these has an `error`:
        the distance of its score from gold, or for a pair the score of the rejected response less that of the chosen
        one; and `nearest`, the places among `labels` that are nearest to gold.
    """
    config, judgments = result["judge"].get("config") or {}, result["judgments"]
    labels, values = config.get("score_labels") or [], map(number, config.get("score_values") or [])
    places = zip(values, range(len(labels)), strict=False)
    scale = sorted((value, place) for value, place in places if value is not None)
    errors = _pair_errors(judgments) if judgments and "side" in judgments[0] else map(_error, judgments)
    return {
        "labels": [text(labels[place]) for _, place in scale],
        "judgments": [
            {**_listed(judgment, scale), "number": i, "error": error}
            for i, (judgment, error) in enumerate(zip(judgments, errors, strict=True), start=1)
        ],
    }


def _error(judgment: Judged) -> float | None:
    difference = _less(judgment.get("score"), judgment.get("gold"))
    return None if difference is None else abs(difference)


def _pair_errors(judgments: Sequence[Judged]) -> Iterator[float | None]:
    """Of each pair there are two judgments, the chosen response first; both have the pair's error."""
    for chosen in range(0, len(judgments), 2):
        pair = judgments[chosen : chosen + 2]
        yield from [_less(pair[-1].get("score"), pair[0].get("score"))] * len(pair)


def _less(first: object, second: object) -> float | None:
    a, b = number(first), number(second)
    return None if a is None or b is None else a - b


def _listed(judgment: Judged, scale: Sequence[tuple[float, int]]) -> dict[str, Any]:
    place = {key: judgment[key] for key in ("id", "subset", "side") if key in judgment}
    gold = number(judgment.get("gold"))
    distances = [] if gold is None else [abs(value - gold) for value, _ in scale]
    return {
        **{key: number(judgment.get(key)) for key in ("score", "std", "mass")},
        **{key: text(judgment.get(key)) for key in ("label", "reason", "rationale", "prompt")},
        "gold": gold,
        "nearest": [i for i, distance in enumerate(distances) if distance == min(distances)],
        "record": ", ".join(f"{key} {value}" for key, value in _facts(place | (judgment.get("record") or {}))),
        "probs": _sorted(judgment.get("probs"), scale),
        "rationales": [
            {
                "label": text(found.get("label")),
                "probs": _sorted(found.get("probs"), scale),
                "tokens": number(found.get("num_tokens")),
                "forced": bool(found.get("forced")),
            }
            for found in judgment.get("rationales") or []
        ],
    }


def _sorted(probs: Sequence[Any] | None, scale: Sequence[tuple[float, int]]) -> list[float]:
    """Probabilities, `(K,)`, from the lowest value of the scale to the highest; empty where one is not known."""
    known = [number(p) for p in probs or []]
    if None in known or len(known) != len(scale):
        return []
    return [round(known[place], 4) for _, place in scale]  # type: ignore[arg-type]
