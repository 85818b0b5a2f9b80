"""Turns figures of agreement into a table for the terminal, and scores and training logs into pictures.

Drawn on `matplotlib.figure.Figure` alone, so that nothing is left behind in `pyplot` and no window system is needed.
Colours are of Okabe and Ito's palette, which colour-blind readers can tell apart. `n` is the number of records.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tract_trainer.errors import InputError

COLUMNS = {"pearson": "Pearson", "spearman": "Spearman", "kendall": "Kendall", "rmse": "RMSE"}
STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
CURVES = {"ce_loss": ("Cross-entropy", "nats per token"), "score_loss": ("Score loss", "squared scale units")}


def results_table(results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """
    A table with a row for each way of judging.

    Args:
        results (`Mapping[str, Mapping]`): what [`~tract_trainer.metrics.agreement`] returned, by the name of the row.
        title (`str`, *optional*): title of the table.

    Returns:
        [`~rich.table.Table`] with Pearson, Spearman, Kendall and RMSE, each with its interval where it has one, the
        number of records and how many of them are unscored. A figure that is not defined is `-`.
    """
    # Intervals stand below their figures and names break at a comma, so that the table fits into 80 columns.
    layout: dict[str, Any] = {"padding": (0, 0, 0, 1), "pad_edge": False, "show_edge": False}
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, **layout)
    table.add_column("", overflow="fold")
    for name in [*COLUMNS.values(), "n", "un-\nscored"]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in results.items():
        figures = (figure_with_interval(found[key], found.get(f"{key}_ci")) for key in COLUMNS)
        stacked = (figure.replace(" [", "\n[") for figure in figures)
        table.add_row(Text(name.replace(", ", ",\n")), *stacked, f"{found['n']:,}", f"{found['unscored']:,}")
    return table


def figure_with_interval(value: float, interval: Sequence[float] | None = None) -> str:
    """`.773 [.75, .79]`; without the brackets where the interval is missing or not defined, `-` where the value is."""
    if math.isnan(value):
        return "-"
    if interval is None or any(map(math.isnan, interval)):
        return _short(value, 3)
    return f"{_short(value, 3)} [{_short(interval[0], 2)}, {_short(interval[1], 2)}]"


def save_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results as JSON, which has no NaN: figures that are not defined become `null`."""
    text = json.dumps(without_nan(results), indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def plot_predictions(path: str | Path, panels: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """
    Draws predicted against gold scores, one panel beside the other, and saves the picture.

    Args:
        path (`str`): file of the picture; its ending chooses the format.
        panels (`Mapping[str, tuple]`):
            Predicted and gold scores, both `(n,)` and in units of the scale, by the title of the panel. NaN where a
            record is unscored: it is not drawn, and the panel says how many there are.

    Raises:
        InputError: there is no panel.
    """
    if not panels:
        raise InputError("There is nothing to draw: `panels` is empty. Give at least one pair of scores.")
    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for number, (ax, (title, (predictions, gold))) in enumerate(zip(axes, panels.items(), strict=True)):
        color = STYLES[number % len(STYLES)][0]
        _draw_panel(ax, title, np.asarray(predictions, float), np.asarray(gold, float), color)
    axes[0].scatter([], [], s=14, color="0.5", linewidths=0, label="one record (moved a little to be seen)")
    axes[0].set_ylabel("predicted score (scale units)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)


def _draw_panel(ax: Axes, title: str, predictions: np.ndarray, gold: np.ndarray, color: str) -> None:
    scored = np.isfinite(predictions)
    unscored = f" ({(~scored).sum():,} unscored)" if not scored.all() else ""
    predictions, gold = predictions[scored], gold[scored]
    # Many records share a place, above all where labels were decoded: each is moved a little, sideways and up or down.
    shift = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(gold)))
    whole = bool(np.all(predictions == np.round(predictions)))
    ax.scatter(
        gold + shift[0],
        predictions + shift[1] * whole,
        s=7,
        color=color,
        alpha=0.25,
        linewidths=0,
    )
    values = np.unique(np.round(gold))
    ax.plot(values, values, color="0.45", linestyle="--", linewidth=1.2, label="predicted = gold")
    means = [predictions[np.round(gold) == value].mean() for value in values]
    ax.plot(values, means, "o-", color="black", markersize=5, linewidth=1.4, label="mean at each gold score")
    ax.set(title=title + unscored, xlabel="gold score (scale units)", xticks=values)
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def plot_curves(path: str | Path, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """
    Draws the cross-entropy and the score loss of training runs over their epochs, and saves the picture.

    Args:
        path (`str`): file of the picture; its ending chooses the format.
        histories (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` of each run, by its name. Entries without `ce_loss` and `score_loss` are passed
            over.

    Raises:
        InputError: a run logged neither of the two losses.
    """
    figure = Figure(figsize=(9.0, 3.7), layout="constrained")
    axes = figure.subplots(1, len(CURVES))
    for number, (name, history) in enumerate(histories.items()):
        entries = [entry for entry in history if all(key in entry for key in CURVES)]
        if not entries:
            raise InputError(
                f"Run {name!r} logged no {' and '.join(CURVES)} among its {len(history)} entries. Give the log_history "
                "of a RegressionAwareSFTTrainer, with logging_steps no larger than its number of steps."
            )
        color, style = STYLES[number % len(STYLES)]
        epochs = [entry["epoch"] for entry in entries]
        for ax, key in zip(axes, CURVES, strict=True):
            losses = [entry[key] for entry in entries]
            ax.plot(epochs, losses, color=color, linestyle=style, linewidth=1.6, label=name)
    for ax, (title, unit) in zip(axes, CURVES.values(), strict=True):
        ax.set(title=title, xlabel="epochs", ylabel=f"{unit} (log scale)", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(color="0.9", linewidth=0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
    figure.savefig(path, dpi=150)


def without_nan(value: Any) -> Any:
    """`value` with `None` for every NaN in its mappings and sequences, fit for JSON."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(value: float, digits: int) -> str:
    """`.77`, `-.05`, `1.39`: no zero before the point, as correlations are printed."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
