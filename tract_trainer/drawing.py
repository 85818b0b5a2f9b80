"""Draws what several pictures have in common, scores against gold and training curves among it.

Drawn on `matplotlib.figure.Figure` alone, so that nothing is left behind in `pyplot` and no window system is needed.
Colours are of Okabe and Ito's palette or of sequential maps, which colour-blind readers can tell apart. `n` records,
`K` values of the scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from tract_trainer.errors import InputError
from tract_trainer.resampling import Floats, nearest

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
DOTS = 150  # per inch
MOST_CELLS = 20  # a side, beyond which no text fits into one
CURVES = {"ce_loss": ("Cross-entropy", "nats per token"), "score_loss": ("Score loss", "mean over scores")}


def plot_predictions(
    path: str | Path, panels: Mapping[str, tuple[ArrayLike, ArrayLike]], values: Sequence[float]
) -> None:
    """
    Draws predicted against gold scores, one panel beside the other, and saves the picture.

    Args:
        path (`str`): file of the picture; its ending chooses the format.
        panels (`Mapping[str, tuple]`):
            Predicted and gold scores, both `(n,)` and in units of the scale, by the title of the panel. NaN where a
            record is unscored: it is not drawn, and the panel says how many there are.
        values (`Sequence[float]`): values of the scale, `(K,)`.

    Raises:
        InputError: there is no panel.
    """
    if not panels:
        raise InputError("There is nothing to draw: `panels` is empty. Give at least one pair of scores.")
    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for number, (ax, (title, (predictions, gold))) in enumerate(zip(axes, panels.items(), strict=True)):
        draw_scores(ax, np.asarray(predictions, float), np.asarray(gold, float), np.sort(values), COLORS[number % 6])
        missing = int((~np.isfinite(np.asarray(predictions, float))).sum())
        ax.set_title(f"{title} ({missing:,} unscored)" if missing else title, parse_math=False)
    axes[0].set_ylabel(f"predicted {unit(values)}")
    legend_below(figure, axes[0])
    figure.savefig(path, dpi=DOTS)


def draw_scores(ax: Axes, predictions: Floats, gold: Floats, values: Floats, color: str) -> None:
    """Predictions, `(n,)`, against gold scores, `(n,)`, with the mean of those nearest to each of `values`, `(K,)`."""
    scored = np.isfinite(predictions)
    predictions, gold = predictions[scored], gold[scored]
    # Many records share a place, above all where labels were decoded: each is moved a little, sideways and up or down.
    shift = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(gold))) * np.diff(values).min()
    whole = np.isin(predictions, values).all()
    ax.scatter(gold + shift[0], predictions + shift[1] * whole, s=7, color=color, alpha=0.25, linewidths=0)
    ax.scatter([], [], s=14, color="0.5", linewidths=0, label="one record (moved a little to be seen)")
    ax.plot(values, values, color="0.45", linestyle="--", linewidth=1.2, label="predicted = gold")
    near = nearest(gold, values)
    there = values[np.isin(values, near)]
    means = [predictions[near == value].mean() for value in there]
    ax.plot(there, means, "o-", color="black", markersize=5, linewidth=1.4, label="mean at each gold score")
    ax.set(xlabel=f"gold {unit(values)}", xticks=thinned(values), yticks=thinned(values))
    grid(ax)


def thinned(values: NDArray[Any], most: int = 12) -> NDArray[Any]:
    """`values`, or every second of them, every third, ..., where they are more than `most`."""
    return values[:: -(-len(values) // most)]


def shortened(text: str, length: int = 48) -> str:
    """`text` on one line, without its middle where it is longer than `length`."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length // 2 - 1]} … {line[-length // 2 + 2 :]}"


def unit(values: ArrayLike) -> str:
    """`score (1 to 5)`: what an axis of scores is labelled with."""
    return f"score ({np.min(values):g} to {np.max(values):g})"


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
        color, style = COLORS[number % 6], LINES[number % 4]
        epochs = [entry["epoch"] for entry in entries]
        for ax, key in zip(axes, CURVES, strict=True):
            losses = [entry[key] for entry in entries]
            ax.plot(epochs, losses, color=color, linestyle=style, linewidth=1.6, label=name)
    for ax, (title, measure) in zip(axes, CURVES.values(), strict=True):
        ax.set(title=title, xlabel="epochs", ylabel=f"{measure} (log scale)", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        grid(ax)
    legend_below(figure, axes[0])
    figure.savefig(path, dpi=DOTS)


def heatmap(ax: Axes, shares: Floats, texts: Sequence[str], values: Floats) -> None:
    """Shares, `(K, K)`, each with its text where there is room, the first row at the bottom."""
    readable = len(values) <= MOST_CELLS
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1 if readable else None, origin="lower", aspect="equal")
    for place, share in enumerate(shares.ravel()):
        if readable and np.isfinite(share):
            row, column = divmod(place, len(values))
            color = "white" if share > 0.6 else "black"
            ax.text(column, row, texts[place], ha="center", va="center", color=color, fontsize=8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(thinned(np.arange(len(values))), [f"{value:g}" for value in thinned(values)])


def grid(ax: Axes) -> None:
    """A light grid behind what is drawn."""
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def legend_below(figure: Figure, ax: Axes) -> None:
    """The legend of `ax`, below the whole figure, in as many columns as it has room for."""
    handles, labels = ax.get_legend_handles_labels()
    columns = int(figure.get_figwidth() / (0.6 + 0.07 * max(map(len, labels))))  # inches, at this size of text
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), frameon=False, fontsize=9)
