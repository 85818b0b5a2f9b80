"""Draws what several pictures have in common, scores against gold and training curves among it.

Drawn on `matplotlib.figure.Figure` alone, so that nothing is left behind in `pyplot` and no window system is needed.
Colours are of Okabe and Ito's palette or of sequential maps, which colour-blind readers can tell apart. `n` records,
`K` values of the scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from tract_trainer.errors import InputError
from tract_trainer.evaluation.methods import METHODS, scores_by_method
from tract_trainer.metrics import Floats, nearest
from tract_trainer.scale import ScoreScale

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


COLOR_OF = dict(zip(METHODS, (COLORS[number] for number in (1, 4, 0, 5, 2)), strict=True))


def draw(result: Mapping[str, Any], stem: Path) -> None:
    """
    Saves the pictures of a result of [`~tract_trainer.evaluation.evaluate.evaluate`] as `STEM-NAME.png`.

    Of scored records these are `predictions`, `reliability` and `confusion`; of pairs, `accuracy`; and of several
    rationales, `rationales`.
    """
    drawings = {"predictions": _predictions, "reliability": _reliability, "confusion": _confusion}
    if "calibration" not in result:
        drawings = {"accuracy": _accuracy}
    if len(result["by_rationales"]) > 1:
        drawings["rationales"] = _rationales
    first = result["methods"]["RAIL"]
    for name, drawing in drawings.items():
        figure = Figure(layout="constrained")
        drawing(figure, result)
        title = f"{shortened(result['benchmark']['name'])}\nn = {first['n']:,} ({first['unscored']:,} unscored)"
        figure.suptitle(title, fontsize=11, parse_math=False)
        figure.savefig(stem.with_name(f"{stem.name}-{name}.png"), dpi=DOTS)


def _predictions(figure: Figure, result: Mapping[str, Any]) -> None:
    scale, gold, scores = _scores(result)
    values = np.sort(scale.values)
    figure.set_size_inches(11, 4.2)
    decoded, expected, distribution = figure.subplots(1, 3)
    expected.sharey(decoded)
    for ax, method in ((decoded, "decoded"), (expected, "RAIL")):
        draw_scores(ax, scores[method], gold, values, COLOR_OF[method])
        ax.set(title=method, ylabel=f"predicted {unit(values)}")
    probs = np.array([row["probs"] for row in result["judgments"]], dtype=np.float64)[:, np.argsort(scale.values)]
    shares = probs / np.where(probs.sum(1) > 0, probs.sum(1), np.nan)[:, None]
    near = nearest(gold, values)
    means = [np.nanmean(part, axis=0) if np.isfinite(part).any() else np.full(len(values), np.nan)
             for part in (shares[near == value] for value in values)]  # fmt: skip
    heatmap(distribution, np.array(means).T, [f"{100 * share:.0f}" for share in np.array(means).T.ravel()], values)
    counts = [f"{value:g}\n{(near == value).sum():,}" for value in thinned(values)]
    distribution.set_xticks(thinned(np.arange(len(values))), counts, fontsize=8)
    distribution.set(
        title="mean distribution (%)", xlabel=f"gold {unit(values)}; below: records", ylabel="predicted label"
    )
    legend_below(figure, expected)


def _reliability(figure: Figure, result: Mapping[str, Any]) -> None:
    found = result["calibration"]
    predicted, observed = (np.array(found[name], dtype=np.float64) for name in ("predicted", "observed"))
    counts = np.array(found["counts"])  # (K - 1, B)
    figure.set_size_inches(5.6, 6.6)
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    curve.plot([0, 1], [0, 1], color="0.45", linestyle="--", linewidth=1.2, label="calibrated")
    shades = colormaps["cividis"](np.linspace(0, 0.85, len(counts)))
    for number in thinned(np.arange(len(counts))):  # of many, some
        there = counts[number] > 0
        style = {"color": shades[number], "marker": MARKERS[number % 6], "markersize": 5, "linewidth": 1.4}
        curve.plot(
            predicted[number][there], observed[number][there], label=f"gold ≤ {found['thresholds'][number]:g}", **style
        )
    curve.set(ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    curve.set_title(_calibration_title(found), fontsize=10)
    width = 1 / counts.shape[1]
    bars.bar((np.arange(counts.shape[1]) + 0.5) * width, counts.sum(0), width=0.9 * width, color=COLORS[5])
    bars.set(xlabel="predicted probability", ylabel="predictions")
    for ax in (curve, bars):
        grid(ax)
    legend_below(figure, curve)


def _calibration_title(found: Mapping[str, Any]) -> str:
    if found["error"] is None:
        return "no record is scored"
    return f"calibration error {found['error']:.3f} (by chance {found['error_by_chance']:.3f})"


def _confusion(figure: Figure, result: Mapping[str, Any]) -> None:
    scale, gold, scores = _scores(result)
    values = np.sort(scale.values)
    predictions = scores["RAIL"]
    scored = np.isfinite(predictions)
    rows, columns = nearest(gold[scored], values), nearest(predictions[scored], values)
    counts = np.array([[((rows == row) & (columns == column)).sum() for column in values] for row in values])  # (K, K)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.where(totals > 0, totals, np.nan)
    size = 1.6 + 0.72 * len(values) if len(values) <= MOST_CELLS else 7
    figure.set_size_inches(max(4.6, size), max(4.4, size))
    ax = figure.subplots()
    cells = zip(shares.ravel(), counts.ravel(), strict=True)
    texts = [f"{100 * share:.0f} %\n{count:,}" if count else "" for share, count in cells]
    heatmap(ax, shares, texts, values)
    ax.set_title("share and number of the records with each gold score", fontsize=10)
    ax.set(xlabel=f"RAIL, rounded: {unit(values)}", ylabel=f"gold, rounded: {unit(values)}")


def _rationales(figure: Figure, result: Mapping[str, Any]) -> None:
    """The main figures against the number of rationales, with their intervals."""
    first = result["methods"]["RAIL"]
    shown = (
        {"accuracy": "accuracy"} if "accuracy" in first else {"pearson": "Pearson's r", "rmse": "RMSE (scale units)"}
    )
    counts = np.array([int(count) for count in result["by_rationales"]])
    figure.set_size_inches(1 + 4.6 * len(shown), 4.2)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (name, label) in zip(axes, shown.items(), strict=True):
        for number, method in enumerate(METHODS):
            found = [methods[method] for methods in result["by_rationales"].values()]
            middle, low, high = _with_bounds(found, name)
            ax.errorbar(
                counts * 2 ** (0.07 * (number - 2)),  # side by side, or the intervals would cover each other
                middle,
                [middle - low, high - middle],
                color=COLOR_OF[method],
                marker=MARKERS[number],
                markersize=5,
                linewidth=1.2,
                elinewidth=1,
                label=method,
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.set(xlabel="rationales per record", ylabel=f"{label}, 95 % interval")
        grid(ax)
    legend_below(figure, axes[0])


def _accuracy(figure: Figure, result: Mapping[str, Any]) -> None:
    """Accuracy on each subset of pairs."""
    subsets = list(result["methods"]["RAIL"]["subsets"])
    figure.set_size_inches(7, 1.8 + 0.42 * (len(subsets) + 1))
    ax = figure.subplots()
    for number, method in enumerate(("decoded", "RAIL")):
        found = result["methods"][method]
        middle, low, high = _with_bounds([found, *found["subsets"].values()], "accuracy")
        places = np.arange(len(middle)) + 0.2 * (number - 0.5)
        ax.errorbar(
            middle,
            places,
            xerr=[middle - low, high - middle],
            color=COLOR_OF[method],
            marker=MARKERS[number],
            markersize=5,
            linestyle="none",
            elinewidth=1.2,
            label=method,
        )
    parts = [result["methods"]["RAIL"], *result["methods"]["RAIL"]["subsets"].values()]
    names = ["all pairs", *map(shortened, subsets)]
    labels = [f"{name} (n = {part['n']:,})" for name, part in zip(names, parts, strict=True)]
    ax.set_yticks(range(len(labels)), labels, parse_math=False)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.axvline(0.5, color="0.45", linestyle="--", linewidth=1.2, label="chance")
    ax.set(xlabel="accuracy (share of pairs), 95 % interval", xlim=(-0.02, 1.02))
    grid(ax)
    legend_below(figure, ax)


def _scores(result: Mapping[str, Any]) -> tuple[ScoreScale, Floats, dict[str, Floats]]:
    """The judge's scale, gold scores, `(n,)`, and the scores of each method, `(n,)`."""
    config, rows = result["judge"]["config"], result["judgments"]
    scale = ScoreScale(config["score_labels"], config["score_values"])
    gold = np.array([row["gold"] for row in rows], dtype=np.float64)
    return scale, gold, scores_by_method(rows, scale, config["renormalize_scores"])


def _with_bounds(found: Sequence[Mapping[str, Any]], name: str) -> tuple[Floats, Floats, Floats]:
    """A figure and the bounds of its interval; the figure itself where it has none."""
    middle = np.array([figures[name] for figures in found], dtype=np.float64)
    bounds = np.array([figures.get(f"{name}_ci") or (None, None) for figures in found], dtype=np.float64)
    low, high = (np.where(np.isnan(bound), middle, bound) for bound in bounds.T)
    return middle, np.minimum(low, middle), np.maximum(high, middle)
