"""Pictures of results and training logs, drawn with matplotlib.

No `pyplot`, so no window system is needed. Colours are Okabe and Ito's, or from sequential maps, for colour-blind
readers. `K` values of the scale, `B` bins.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from tract_trainer.data.store import MARK, replacing
from tract_trainer.evaluation.methods import METHODS, result_scores
from tract_trainer.hub.results import GIVEN, figure_with_interval, main_figures, main_method
from tract_trainer.metrics import Floats, nearest

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
METHOD_COLORS = dict(zip((*METHODS, GIVEN), (COLORS[number] for number in (1, 4, 0, 5, 2, 0)), strict=True))
MARKERS = "osD^vP"
DOTS = 150  # per inch
MOST_CELLS = 20  # per side of a matrix with text in its cells
PICTURES = ("predictions", "confusion", "reliability", "selective", "accuracy", "rationales")  # by `result_figures`
ORDERS = {
    "std": "lowest std first",
    "spread": "lowest spread of the rationales' scores first",
    "oracle": "lowest error first (oracle)",
}
CURVES = {
    "ce_loss": ("Cross-entropy", "nats per token"),
    "reward": ("Reward", "minus the score loss"),
    "score_loss": ("Score loss", "mean over scores"),
    "score_mae": ("Absolute error of the score", "scale units"),
    "score_rmse": ("Root mean squared error of the score", "scale units"),
    "score_mass": ("Probability on the scale", "mass"),
    "unscored": ("Rationales without a score", "share"),
    "score_pearson": ("Correlation with gold", "Pearson's r"),
    "score_spearman": ("Rank correlation with gold", "Spearman's rho"),
}


def result_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """
    The pictures of a result of [`~tract_trainer.evaluation.evaluate.evaluate`] by name: of scored records
    `predictions`, `confusion`, `reliability` and `selective`; of pairs `accuracy`; of several rationales also
    `rationales`. Of scores that were given only `predictions` and, if their scale is known, `confusion`.
    """
    drawings = {"predictions": _predictions, "confusion": _confusion, "reliability": _reliability}
    if GIVEN in result["methods"]:
        drawings = {name: drawings[name] for name in ("predictions", "confusion")[: 1 + _has_scale(result)]}
    if "gold" not in result["judgments"][0]:
        drawings = {"accuracy": _accuracy}
    if result.get("selective"):
        drawings["selective"] = _selective
    if len(result["by_rationales"]) > 1:
        drawings["rationales"] = _rationales
    return {name: drawing(result) for name, drawing in drawings.items()}


def draw(result: Mapping[str, Any], stem: Path) -> None:
    """Saves the [`result_figures`] of a result as `STEM-NAME.png`."""
    for name, figure in result_figures(result).items():
        save_png(figure, stem.with_name(f"{stem.name}-{name}.png"))


def predictions(panels: Sequence[tuple[Mapping[str, Any], str]]) -> Figure:
    """Predicted against gold scores, a panel for each result and method."""
    figure = Figure(figsize=(3.6 * len(panels) + 0.4, 4.2), layout="constrained")
    _draw_scatters(figure, panels)
    for ax, (result, _) in zip(figure.axes, panels, strict=True):
        ax.set_title(f"{shortened(result['judge']['name'])}, {ax.get_title()}", fontsize=9, parse_math=False)
    return figure


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """
    The figures of `CURVES` over the epochs of training runs; `None` if no run logged one. `histories` holds the
    `trainer.state.log_history` of each run, by its name.
    """
    points = {
        (name, f"{part}{key}"): found
        for name, history in histories.items()
        for key in CURVES
        for part in ("", "eval_")
        if (found := _logged(history, f"{part}{key}"))
    }
    names = list(dict.fromkeys(name for name, _ in points))
    keys = [key for key in CURVES if any(logged.removeprefix("eval_") == key for _, logged in points)]
    if not keys:
        return None
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.2, 3.0 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, key in zip(axes, keys, strict=False):
        for number, name in enumerate(names):
            for part, dash in (("", "-"), ("eval_", "--")):
                found = points.get((name, f"{part}{key}"), [])
                marker = "o" if len(found) < 20 else None
                ax.plot(*np.reshape(found, (-1, 2)).T, dash, color=COLORS[number % 6], marker=marker, markersize=3)
        title, unit_of_value = CURVES[key]
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="epochs", ylabel=unit_of_value)
        grid(ax)
    for ax in axes[len(keys) :]:
        ax.set_axis_off()
    for number, name in enumerate(names):
        axes[0].plot([], [], color=COLORS[number % 6], label=shortened(name))
    if any(logged.startswith("eval_") for _, logged in points):
        axes[0].plot([], [], "--", color="0.4", label="held-out records")
    legend_below(figure, axes[0])
    return figure


def save_png(figure: Figure, path: str | Path) -> None:
    """Saves a figure as PNG."""
    with replacing(Path(path)) as part, _any_glyph():
        figure.savefig(part, format="png", dpi=DOTS, metadata={"Software": MARK})


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, with text as text. The same figure gives the same bytes."""
    buffer = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": MARK}), _any_glyph():
        figure.savefig(buffer, format="svg", dpi=DOTS, metadata={"Date": None})
    return buffer.getvalue()


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Silences the warnings of names with characters that the font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def _predictions(result: Mapping[str, Any]) -> Figure:
    methods = [GIVEN] if GIVEN in result["methods"] else ["decoded", "RAIL"]
    figure = _figure(result, 0.8 + 3.4 * len(methods) + 1.2 * (len(methods) == 1), 4.9)
    _draw_scatters(figure, [(result, method) for method in methods])
    return figure


def _confusion(result: Mapping[str, Any]) -> Figure:
    """Rounded scores against rounded gold scores: shares and, where there is room, numbers of records."""
    method = main_method(result)
    name = "predicted" if method == GIVEN else method
    values, gold, predicted = _scores(result, method)
    edges = np.append(values, np.inf)
    counts = np.histogram2d(nearest(predicted, values), nearest(gold, values), bins=(edges, edges))[0]  # (K, K)
    shares = counts / np.where(counts.sum(0) > 0, counts.sum(0), np.nan)
    readable = len(values) <= MOST_CELLS
    size = max(5.6, 1.2 + 0.62 * len(values)) if readable else 7.0
    figure = _figure(result, size, size + 0.8)
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1 if readable else None, origin="lower")
    for place in range(len(values)):
        ax.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="0.35", linewidth=1.2))
    for row, column in np.argwhere(counts) if readable else ():
        text = f"{100 * shares[row, column]:.0f} %\n{counts[row, column]:,.0f}"
        color = "white" if shares[row, column] > 0.6 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(thinned(np.arange(len(values))), [f"{value:g}" for value in thinned(values)])
    ax.set_title("of the records with each gold score: share and number", fontsize=9)
    ax.set(xlabel=f"gold {unit(values)}, rounded", ylabel=f"{name} {unit(values)}, rounded")
    return figure


def _reliability(result: Mapping[str, Any]) -> Figure:
    found = result["calibration"]
    predicted, observed = (np.array(found[name], dtype=np.float64) for name in ("predicted", "observed"))
    counts = np.array(found["counts"])  # (K - 1, B)
    figure = _figure(result, 5.6, 7.2)
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    curve.plot([0, 1], [0, 1], color="0.45", linestyle="--", linewidth=1.2, label="calibrated")
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(counts)))
    for number in thinned(np.arange(len(counts)), 5):
        there = counts[number] > 0
        x, y = predicted[number][there], observed[number][there]
        label = f"gold ≤ {found['thresholds'][number]:g}"
        style = {"color": shades[number], "marker": MARKERS[number % 6], "markersize": 5, "linestyle": "none"}
        curve.errorbar(x, y, _wilson(y, counts[number][there]), elinewidth=1, label=label, **style)
    curve.set_ylabel("share of gold scores at or below the threshold,\n95 % interval (Wilson)", fontsize=9)
    curve.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    error, chance = (figure_with_interval(found[name]) for name in ("error", "error_by_chance"))
    curve.set_title(f"calibration error {error} (a calibrated judge: {chance})", fontsize=9)
    width = 1 / counts.shape[1]
    bars.bar((np.arange(counts.shape[1]) + 0.5) * width, counts.sum(0), width=0.9 * width, color="0.6")
    bars.set_xlabel("predicted probability of a gold score at or below the threshold", fontsize=9)
    bars.set_ylabel("predictions", fontsize=9)
    for ax in (curve, bars):
        grid(ax)
    legend_below(figure, curve)
    return figure


def _selective(result: Mapping[str, Any]) -> Figure:
    """RMSE and MAE of the judgments that are kept against their share."""
    found = result["selective"]
    looks = dict(zip(ORDERS, ((COLORS[0], "o"), (COLORS[1], "s"), ("black", "D")), strict=True))
    figure = _figure(result, 10.4, 4.9)
    for ax, name in zip(figure.subplots(1, 2), ("rmse", "mae"), strict=True):
        for order, of in found["orders"].items():
            color, marker = looks[order]
            ax.plot(found["coverage"], of[name], color=color, marker=marker, markersize=4, label=ORDERS[order])
        ax.axhline(of[name][-1], color="0.45", linestyle="--", linewidth=1.2, label="random order")
        ax.set(xlabel="coverage (share of the scored records that is kept)", xlim=(0, 1.02))
        ax.set(ylabel=f"{name.upper()} of the kept records (scale units)", ylim=(0, None))
        grid(ax)
    *gains, _ = (f"{order} {figure_with_interval(of['gain'], of['gain_ci'])}" for order, of in found["orders"].items())
    figure.axes[0].set_title(f"gain in area (0: random, 1: oracle): {', '.join(gains)}", fontsize=9)
    legend_below(figure, figure.axes[0])
    return figure


def _wilson(shares: Floats, counts: NDArray[Any]) -> Floats:
    """How far the 95 % intervals of shares, `(B,)`, reach below and above them, `(2, B)`."""
    tests = (binomtest(round(share * count), count) for share, count in zip(shares, counts.tolist(), strict=True))
    low, high = np.array([test.proportion_ci(method="wilson") for test in tests]).reshape(-1, 2).T
    return np.clip([shares - low, high - shares], 0, None)


def _accuracy(result: Mapping[str, Any]) -> Figure:
    """Accuracy on each subset of pairs."""
    rail = result["methods"]["RAIL"]
    figure = _figure(result, 7, 2.4 + 0.42 * (len(rail["subsets"]) + 1))
    ax = figure.subplots()
    for number, method in enumerate(("decoded", "RAIL")):
        found = result["methods"][method]
        middle, reach = with_interval([found, *found["subsets"].values()], "accuracy")
        places = np.arange(len(middle)) + 0.2 * (number - 0.5)
        ax.errorbar(middle, places, xerr=reach, linestyle="none", label=method, **_style(method))
    parts = {"all pairs": rail, **rail["subsets"]}
    labels = [f"{shortened(name)} (n = {part['n']:,})" for name, part in parts.items()]
    ax.set_yticks(range(len(labels)), labels, parse_math=False)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.axvline(rail.get("chance", 0.5), color="0.45", linestyle="--", linewidth=1.2, label="chance")
    ax.set(xlabel="accuracy (share of pairs), 95 % interval", xlim=(-0.02, 1.02))
    grid(ax)
    legend_below(figure, ax)
    return figure


def _rationales(result: Mapping[str, Any]) -> Figure:
    """The main figures against the number of rationales, with their intervals."""
    shown = {"pearson": "Pearson's r", "rmse": "RMSE (scale units)"}
    if "accuracy" in result["methods"]["RAIL"]:
        shown = {"accuracy": "accuracy"}
    counts = np.array([int(count) for count in result["by_rationales"]])
    figure = _figure(result, 1.6 + 4.4 * len(shown), 4.9)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (name, label) in zip(axes, shown.items(), strict=True):
        for number, method in enumerate(METHODS):
            middle, reach = with_interval([methods[method] for methods in result["by_rationales"].values()], name)
            places = counts * 2 ** (0.07 * (number - 2))  # side by side, or the intervals would cover each other
            ax.errorbar(places, middle, reach, label=method, **_style(method))
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.set(xlabel="rationales per record", ylabel=f"{label}, 95 % interval")
        grid(ax)
    legend_below(figure, axes[0])
    return figure


def _style(method: str) -> dict[str, Any]:
    marker = MARKERS[METHODS.index(method)]
    return {"color": METHOD_COLORS[method], "marker": marker, "markersize": 5, "linewidth": 1.2, "elinewidth": 1}


def _figure(result: Mapping[str, Any], width: float, height: float) -> Figure:
    """A figure, in inches, whose title has the judge, the records and the main figures of RAIL."""
    method = main_method(result)
    figure, rail = Figure(figsize=(width, height), layout="constrained"), result["methods"][method]
    records = f"{shortened(result['benchmark']['name'])}, n = {rail['n']:,} ({rail['unscored']:,} unscored)"
    lines = [shortened(result["judge"]["name"]), records, f"{method}: {main_figures(rail)}"]
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    return figure


def _scores(result: Mapping[str, Any], method: str) -> tuple[Floats, Floats, Floats]:
    """[`axis_values`], and gold and predicted scores of the records that have one."""
    predicted = result_scores(result)[method]
    gold, scored = np.array([row["gold"] for row in result["judgments"]]), np.isfinite(predicted)
    return axis_values(result), gold[scored], predicted[scored]


def axis_values(result: Mapping[str, Any]) -> Floats:
    """Values of the scale, ascending; if it is not known, five steps from the lowest gold score to the highest."""
    if _has_scale(result):
        return np.sort(result["judge"]["config"]["score_values"])
    low, *_, high = sorted([row["gold"] for row in result["judgments"]] * 2)
    return np.linspace(low, high if high > low else low + 1, 5)


def _has_scale(result: Mapping[str, Any]) -> bool:
    return bool(result["judge"]["config"]["score_values"])


def _draw_scatters(figure: Figure, panels: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _scatter(ax, *panel)
        ax.label_outer()
    legend_below(figure, axes[0])


def _scatter(ax: Axes, result: Mapping[str, Any], method: str) -> None:
    """Scores of a method against gold scores, with their mean at each value of the scale."""
    values, gold, predicted = _scores(result, method)
    # Many records share a place, above all where labels were decoded.
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(gold))) * np.diff(values).min()
    jitter[1] *= np.isin(predicted, values).all()
    # Rasterised, since thousands of records make a long SVG.
    style: dict[str, Any] = {"color": METHOD_COLORS[method], "alpha": 0.25, "rasterized": True}
    ax.scatter(gold + jitter[0], predicted + jitter[1], s=7, linewidths=0, **style)
    ax.scatter([], [], s=14, color="0.5", linewidths=0, label="one record (jittered)")
    ax.plot(values, values, color="0.45", linestyle="--", linewidth=1.2, label="predicted = gold")
    near = nearest(gold, values)
    there = values[np.isin(values, near)]
    means = [predicted[near == value].mean() for value in there]
    ax.plot(there, means, "o-", color="black", markersize=5, linewidth=1.4, label="mean at each gold score")
    ax.set_title(f"{method}\n{main_figures(result['methods'][method])}", fontsize=9, parse_math=False)
    ax.set(xlabel=f"gold {unit(values)}", xticks=thinned(values), ylabel="predicted score")
    if _has_scale(result):
        ax.set(ylabel=f"predicted {unit(values)}", yticks=thinned(values))
    grid(ax)


def with_interval(found: Iterable[Mapping[str, Any]], name: str) -> tuple[Floats, Floats]:
    """A figure, `(m,)`, and how far its interval reaches below and above it, `(2, m)`; 0 where it has none."""
    rows = [(figures[name], *(figures.get(f"{name}_ci") or (None, None))) for figures in found]
    middle, low, high = np.array(rows, dtype=np.float64).T
    return middle, np.clip(np.nan_to_num([middle - low, high - middle]), 0, None)


def _logged(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Epochs and values of what was logged under `key`; without what is no finite number."""
    points: list[tuple[Any, Any]] = [(entry.get("epoch"), entry.get(key)) for entry in history]
    return [(x, y) for x, y in points if all(isinstance(v, int | float) and np.isfinite(v) for v in (x, y))]


def grid(ax: Axes) -> None:
    """A light grid behind what is drawn."""
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)


def legend_below(figure: Figure, ax: Axes) -> None:
    """The legend of `ax`, below the whole figure, in as many columns as it has room for."""
    handles, labels = ax.get_legend_handles_labels()
    columns = int(figure.get_figwidth() / (0.6 + 0.07 * max(map(len, labels))))  # inches, at this size of text
    style: dict[str, Any] = {"ncols": max(1, columns), "frameon": False, "fontsize": 9}
    legend = figure.legend(handles, labels, loc="outside lower center", **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def thinned(values: NDArray[Any], most: int = 12) -> NDArray[Any]:
    """`values`, or every second of them, every third, ..., where they are more than `most`."""
    return values[:: -(-len(values) // most)]


def shortened(text: str, length: int = 48) -> str:
    """`text` on one line, in characters that a picture can hold, without its middle if it is longer than `length`."""
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(str(text).split()))
    return line if len(line) <= length else f"{line[: length // 2 - 1]} … {line[-length // 2 + 2 :]}"


def unit(values: ArrayLike) -> str:
    """`score (1 to 5)`: the label of an axis of scores."""
    return f"score ({np.min(values):g} to {np.max(values):g})"
