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
from tract_trainer.evaluation import pictures
from tract_trainer.evaluation.methods import METHODS, result_scores
from tract_trainer.evaluation.pairwise import accuracy_difference, layout_of_rows, pair_wins
from tract_trainer.hub.results import FIGURES, GIVEN, main_figures
from tract_trainer.metrics import ERRORS, PLAIN, ROUNDED, Floats, paired_difference


def compare(a: Mapping[str, Any], b: Mapping[str, Any], method: str = "RAIL") -> dict[str, Any]:
    """
    The figures of judge `a` minus those of judge `b`, on the records that both scored.

    Args:
        a, b (`Mapping`): results of [`~tract_trainer.evaluation.evaluate.evaluate`] on the same records, or of
            [`~tract_trainer.evaluation.columns.column_results`] with the same gold scores.
        method (`str`, *optional*, defaults to `"RAIL"`):
            One of [`~tract_trainer.evaluation.methods.METHODS`], for each judge. Scores that were given are taken as
            they are.

    Returns:
        `dict` with `a`, `b` and `benchmark`, their names; `method`, `"score"` if both had their scores given; `n`, the
        number of records or pairs, and `unscored`, how many of them a judge did not score; `figures`: by name, what
        [`~tract_trainer.metrics.paired_difference`] returns; of pairs, only `accuracy`.

    Raises:
        InputError: the records or the scales differ, or the method is not known.
    """
    _check(a, b, method)
    rows, of_a, of_b = a["judgments"], _scores(a, method), _scores(b, method)
    groups = [row["group"] for row in rows]
    if _is_of_pairs(a):
        layout, of_pairs = layout_of_rows(rows)
        wins_a, wins_b = (pair_wins(scores, layout)["accuracy"] for scores in (of_a, of_b))
        figures = {"accuracy": accuracy_difference(wins_a, wins_b, of_pairs)}
    else:
        gold, values = [row["gold"] for row in rows], _scale(a) or _scale(b) or None
        names = [name for name in FIGURES if name in PLAIN or (name in ROUNDED and values)]
        common: dict[str, Any] = {"values": values, "groups": groups}
        figures = {name: paired_difference(of_a, of_b, gold, figure=name, **common) for name in names}
    counts = {name: next(iter(figures.values()))[name] for name in ("n", "unscored")}
    names_of = {"a": a["judge"]["name"], "b": b["judge"]["name"], "benchmark": a["benchmark"]["name"]}
    method = GIVEN if _is_given(a) and _is_given(b) else method
    return {**names_of, "method": method, **counts, "figures": figures}


def draw_comparison(found: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any], path: Path) -> None:
    """Saves a picture of what [`compare`] `found`: the differences and, of records, the scores against each other."""
    errors = {name: one for name, one in found["figures"].items() if name in ERRORS}
    others = {name: one for name, one in found["figures"].items() if name not in ERRORS}
    parts = {"A - B, 95 % interval: right of 0, A is better": others}
    if errors:
        parts["errors (scale units): left of 0, A is better"] = errors
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    rows: list[Any] = [[title] if _is_of_pairs(a) else ["scores", title] for title in parts]
    axes = figure.subplot_mosaic(rows, height_ratios=list(map(len, parts.values())))
    if "scores" in axes:
        _draw_scores(axes["scores"], a if _scale(a) else b, *(_scores(result, found["method"]) for result in (a, b)))
    for title, figures in parts.items():
        _draw_differences(axes[title], figures, pictures.METHOD_COLORS[found["method"]])
        axes[title].set_title(title, fontsize=10)
    lines = [f"{pictures.shortened(found['benchmark'])}, {found['method']}, n = {found['n'] - found['unscored']:,}"]
    for side in ("a", "b"):
        of_side = {name: one[side] for name, one in found["figures"].items()} | {"n": 1, "unscored": 0}
        lines.append(f"{side.upper()}: {pictures.shortened(found[side])}, {main_figures(of_side)}")
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    pictures.save_png(figure, path)


def _check(a: Mapping[str, Any], b: Mapping[str, Any], method: str) -> None:
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; known are {list(METHODS)}.")
    first, second = a["benchmark"], b["benchmark"]
    if first["digest"] != second["digest"] and not _have_same_gold(a, b):
        raise InputError(
            f"The results are of different records: {first['name']!r} with {first['records']}, "
            f"{second['name']!r} with {second['records']}. Evaluate both judges on the same."
        )
    if _scale(a) != _scale(b) and _scale(a) and _scale(b):
        raise InputError(
            f"The judges have different scales, {_scale(a)} and {_scale(b)}, so their errors cannot be compared."
        )


def _have_same_gold(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """
    Whether results have the same gold scores in the same order. Where scores were given, that is all that is known of
    the records. A mean may have been rounded to two digits.
    """
    of_a, of_b = (np.array([row.get("gold", np.nan) for row in result["judgments"]]) for result in (a, b))
    is_given = _is_given(a) or _is_given(b)
    return is_given and of_a.shape == of_b.shape and np.allclose(of_a, of_b, rtol=0, atol=0.01)


def _is_given(result: Mapping[str, Any]) -> bool:
    return GIVEN in result["methods"]


def _scale(result: Mapping[str, Any]) -> list[float]:
    """The values of a result's scale; none where scores were given without one."""
    return result["judge"]["config"]["score_values"]  # type: ignore[no-any-return]


def _scores(result: Mapping[str, Any], method: str) -> Floats:
    return result_scores(result)[GIVEN if _is_given(result) else method]


def _is_of_pairs(result: Mapping[str, Any]) -> bool:
    return "gold" not in result["judgments"][0]


def _draw_scores(ax: Axes, a: Mapping[str, Any], of_a: Floats, of_b: Floats) -> None:
    values, is_known = pictures.axis_values(a), bool(_scale(a))
    gold = [row["gold"] for row in a["judgments"]]
    # Decoded labels coincide, so points are jittered, with the same seed at every call.
    shift = np.random.default_rng(0).uniform(-0.08, 0.08, (2, len(gold))) * np.diff(values).min()
    limits = {"vmin": values[0], "vmax": values[-1]}
    dots = ax.scatter(of_a + shift[0], of_b + shift[1], c=gold, cmap="viridis", s=16, linewidths=0, alpha=0.8, **limits)
    ax.plot(values[[0, -1]], values[[0, -1]], color="0.45", linestyle="--", linewidth=1.2)
    label = pictures.unit(values) if is_known else "score"
    ax.set(xlabel=f"A: {label}", ylabel=f"B: {label}")
    if is_known:
        ax.set(xticks=pictures.thinned(values), yticks=pictures.thinned(values), aspect="equal")
    ax.set_title("scores of both judges; dashed: equal scores", fontsize=10)
    ax.figure.colorbar(dots, ax=ax, label=f"gold {pictures.unit(values)}", ticks=pictures.thinned(values), shrink=0.8)
    pictures.grid(ax)


def _draw_differences(ax: Axes, figures: Mapping[str, Mapping[str, Any]], color: str) -> None:
    differences, reach = pictures.with_interval(figures.values(), "difference")
    places = np.arange(len(figures))
    ax.errorbar(differences, places, xerr=reach, fmt="o", color=color, markersize=5, elinewidth=1.4)
    p_values = [found["p_value"] for found in figures.values()]
    written = ["p < 0.001" if p < 0.001 else f"p = {p:.3f}".replace("nan", "-") for p in p_values]
    labels = [f"{FIGURES[name]} ({text})" for name, text in zip(figures, written, strict=True)]
    ax.set_yticks(places, labels, fontsize=9)
    ax.set_ylim(len(figures) - 0.5, -0.5)
    ax.axvline(0, color="0.45", linestyle="--", linewidth=1.2)
    pictures.grid(ax)
