"""Differences of two judges on the same benchmark, as figures with intervals and p-values, and as a picture.

`n` is the number of records, or of pairs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tract_trainer.errors import InputError
from tract_trainer.evaluation.artifacts import read_artifacts
from tract_trainer.evaluation.methods import METHODS, scores_by_method
from tract_trainer.evaluation.pairwise import pair_wins
from tract_trainer.evaluation.pictures import (
    COLORS,
    MARKERS,
    METHOD_COLORS,
    grid,
    legend_below,
    save_png,
    shortened,
    thinned,
    unit,
)
from tract_trainer.hub.results import FIGURES, main_figures
from tract_trainer.metrics import ERRORS, PLAIN, ROUNDED, Floats, accuracy_difference, paired_difference
from tract_trainer.scale import ScoreScale


def load_result(path: str | Path) -> dict[str, Any]:
    """
    The result in a JSON file of [`~tract_trainer.evaluation.evaluate.evaluate`].

    Raises:
        InputError: the file is not there, is not such a result, or has no judgments.
    """
    if Path(path).is_dir():
        raise InputError(f"{str(path)!r} is a folder. Give one of the JSON files in it.")
    (result,) = read_artifacts(path).results.values()
    if not result["judgments"]:
        raise InputError(f"{path} holds no judgments to compare. Run tract evaluate again.")
    return result


def compare(a: Mapping[str, Any], b: Mapping[str, Any], method: str = "RAIL") -> dict[str, Any]:
    """
    The figures of judge `a` minus those of judge `b`, on the records that both scored.

    Args:
        a, b (`Mapping`): results of [`~tract_trainer.evaluation.evaluate.evaluate`] on the same records.
        method (`str`, *optional*, defaults to `"RAIL"`):
            One of [`~tract_trainer.evaluation.methods.METHODS`], for both judges.

    Returns:
        `dict` with `a`, `b` and `benchmark`, their names; `method`; `n`, the number of records or pairs, and
        `unscored`, how many of them a judge did not score; `figures`: by name, what
        [`~tract_trainer.metrics.paired_difference`] returns; of pairs, only `accuracy`.

    Raises:
        InputError: the records or the scales differ, or the method is not known.
    """
    _check(a, b, method)
    rows, of_a, of_b = a["judgments"], _scores(a, method), _scores(b, method)
    groups = [row["group"] for row in rows] if "group" in rows[0] else None
    if _is_of_pairs(a):
        first, second = (pair_wins(scores.reshape(-1, 2)) for scores in (of_a, of_b))
        figures = {"accuracy": accuracy_difference(first, second, groups=groups and groups[::2])}
    else:
        known: Any = {
            "gold": [row["gold"] for row in rows],
            "values": a["judge"]["config"]["score_values"],
            "groups": groups,
        }
        names = [name for name in FIGURES if name in PLAIN | ROUNDED]
        figures = {name: paired_difference(of_a, of_b, figure=name, **known) for name in names}
    counts = {name: next(iter(figures.values()))[name] for name in ("n", "unscored")}
    names_of = {"a": a["judge"]["name"], "b": b["judge"]["name"], "benchmark": a["benchmark"]["name"]}
    return {**names_of, "method": method, **counts, "figures": figures}


def draw_comparison(found: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], path: Path) -> None:
    """Saves a picture of what [`compare`] `found`: the scores of the judges against each other, and the differences."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    scores, agreement, errors = _axes(figure, with_errors="rmse" in found["figures"])
    of_a, of_b = _scores(a, found["method"]), _scores(b, found["method"])
    if _is_of_pairs(a):
        _draw_margins(scores, of_a.reshape(-1, 2), of_b.reshape(-1, 2))
        legend_below(figure, scores)
    else:
        _draw_scores(figure, scores, of_a, of_b, a)
    color = METHOD_COLORS[found["method"]]
    _draw_differences(agreement, {name: one for name, one in found["figures"].items() if name not in ERRORS}, color)
    agreement.set_title("A - B, 95 % interval: right of 0, A is better", fontsize=10)
    if errors is not None:
        _draw_differences(errors, {name: one for name, one in found["figures"].items() if name in ERRORS}, color)
        errors.set_title("errors (scale units): left of 0, A is better", fontsize=10)
    lines = [f"{shortened(found['benchmark'])}, {found['method']}, n = {found['n'] - found['unscored']:,}"]
    for side in ("a", "b"):
        figures = {name: one[side] for name, one in found["figures"].items()} | {"n": 1, "unscored": 0}
        lines.append(f"{side.upper()}: {shortened(found[side])}, {main_figures(figures)}")
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    save_png(figure, path)


def _check(a: Mapping[str, Any], b: Mapping[str, Any], method: str) -> None:
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; known are {list(METHODS)}.")
    first, second = a["benchmark"], b["benchmark"]
    if first.get("digest") is None or first["digest"] != second.get("digest"):
        raise InputError(
            f"The results are of different records: {first.get('name')!r} with {first.get('records')}, "
            f"{second.get('name')!r} with {second.get('records')}. Evaluate both judges on the same."
        )
    scales = [result["judge"]["config"]["score_values"] for result in (a, b)]
    if scales[0] != scales[1]:
        raise InputError(
            f"The judges have different scales, {scales[0]} and {scales[1]}, so their errors cannot be compared."
        )


def _is_of_pairs(result: Mapping[str, Any]) -> bool:
    return "gold" not in result["judgments"][0]


def _scores(result: Mapping[str, Any], method: str) -> Floats:
    config = result["judge"]["config"]
    scale = ScoreScale(config["score_labels"], config["score_values"])
    return scores_by_method(result["judgments"], scale, config["renormalize_scores"])[method]


def _axes(figure: Figure, with_errors: bool) -> tuple[Axes, Axes, Axes | None]:
    if not with_errors:
        scores, agreement = figure.subplots(1, 2)
        return scores, agreement, None
    layout = figure.subplot_mosaic([["scores", "agreement"], ["scores", "errors"]], height_ratios=[7, 2.6])
    return layout["scores"], layout["agreement"], layout["errors"]


def _draw_scores(figure: Figure, ax: Axes, of_a: Floats, of_b: Floats, a: Mapping[str, Any]) -> None:
    values = np.sort(a["judge"]["config"]["score_values"])
    gold = np.array([row["gold"] for row in a["judgments"]], dtype=np.float64)
    # Decoded labels coincide, so points are jittered, with the same seed at every call.
    shift = np.random.default_rng(0).uniform(-0.08, 0.08, (2, len(gold))) * np.diff(values).min()
    limits = {"vmin": values[0], "vmax": values[-1]}
    dots = ax.scatter(of_a + shift[0], of_b + shift[1], c=gold, cmap="viridis", s=16, linewidths=0, alpha=0.8, **limits)
    ax.plot(values[[0, -1]], values[[0, -1]], color="0.45", linestyle="--", linewidth=1.2)
    ax.set(xlabel=f"A: {unit(values)}", ylabel=f"B: {unit(values)}", xticks=thinned(values), yticks=thinned(values))
    ax.set_aspect("equal")
    ax.set_title("scores of both judges; dashed: equal scores", fontsize=10)
    figure.colorbar(dots, ax=ax, label=f"gold {unit(values)}", ticks=thinned(values), shrink=0.8)
    grid(ax)


def _draw_margins(ax: Axes, of_a: Floats, of_b: Floats) -> None:
    """Score of the chosen response minus that of the rejected one, for each pair and judge; scores are `(n, 2)`."""
    margins = [scores[:, 0] - scores[:, 1] for scores in (of_a, of_b)]
    right, tied = [margin > 0 for margin in margins], (margins[0] == 0) | (margins[1] == 0)
    kinds = {
        "both right": right[0] & right[1],
        "only A right": right[0] & ~right[1] & ~tied,
        "only B right": right[1] & ~right[0] & ~tied,
        "neither right": ~(right[0] | right[1] | tied),
        "a tie for A or B": tied,
    }
    # Margins of decoded labels coincide, so points are jittered by a tenth of the smallest difference.
    known = np.unique(np.concatenate(margins))
    step = np.diff(known[np.isfinite(known)]).min(initial=1.0)
    shift = np.random.default_rng(0).uniform(-0.1, 0.1, (2, len(tied))) * step
    for number, (name, kind) in enumerate(kinds.items()):
        x, y = (margin[kind] + moved[kind] for margin, moved in zip(margins, shift, strict=True))
        ax.scatter(x, y, s=16, color=COLORS[number], marker=MARKERS[number], linewidths=0, alpha=0.7, label=name)
    ax.axhline(0, color="0.45", linewidth=1)
    ax.axvline(0, color="0.45", linewidth=1)
    ax.set(xlabel="A: chosen - rejected (scale units)", ylabel="B: chosen - rejected (scale units)")
    grid(ax)


def _draw_differences(ax: Axes, figures: Mapping[str, Mapping[str, Any]], color: str) -> None:
    differences = np.array([found["difference"] for found in figures.values()])
    bounds = np.array([found["difference_ci"] for found in figures.values()]).T
    places = np.arange(len(figures))
    reach = [np.clip(differences - bounds[0], 0, None), np.clip(bounds[1] - differences, 0, None)]
    ax.errorbar(differences, places, xerr=reach, fmt="o", color=color, markersize=5, elinewidth=1.4)
    chances = [found["p_value"] for found in figures.values()]
    written = ["p < 0.001" if chance < 0.001 else f"p = {chance:.3f}".replace("nan", "-") for chance in chances]
    ax.set_yticks(
        places, [f"{FIGURES[name]} ({text})" for name, text in zip(figures, written, strict=True)], fontsize=9
    )
    ax.set_ylim(len(figures) - 0.5, -0.5)
    ax.axvline(0, color="0.45", linestyle="--", linewidth=1.2)
    grid(ax)
