"""Turns training logs into charts: coordinates and texts, which the page's template writes as SVG.

The page colours them, so that they follow its light and dark schemes. Coordinates are those of the SVG's `viewBox`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.ticker import LogLocator, MaxNLocator

from tract_trainer.evaluation.artifacts import number

Points = Sequence[tuple[float, float]]

FEW = 40  # points that are worth a dot each

STYLES = 8  # of lines, in the page's style sheet

CURVES = {
    "ce_loss": ("Cross-entropy", "nats per token"),
    "score_loss": ("Score loss", "mean over scores"),
    "score_mae": ("Absolute error of the score", "scale units"),
    "score_rmse": ("Root mean squared error of the score", "scale units"),
    "score_mass": ("Probability on the scale", "mass"),
    "score_pearson": ("Agreement with gold", "Pearson"),
    "score_spearman": ("Agreement of ranks with gold", "Spearman"),
}


class Frame(NamedTuple):
    """Size of a chart, and the edges of the plot in it."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


FRAME = Frame(width=340, height=220, left=48, right=330, top=8, bottom=184)


@dataclass(frozen=True)
class Series:
    """A line and its dots as SVG paths, its style, and the value at its end as a text."""

    name: str
    style: int
    line: str
    dots: str
    last: str


@dataclass(frozen=True)
class Axis:
    """A label, and ticks as positions and texts."""

    label: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Chart:
    """What the template needs to draw one chart."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A chart for each of `CURVES` that was logged, with a line for each run, and one for its evaluations."""
    charts = []
    for key, (title, unit) in CURVES.items():
        lines = {}
        for name, history in histories.items():
            lines[name] = _logged(history, key)
            lines[f"{name}, held out"] = _logged(history, f"eval_{key}")
        if any(lines.values()):
            charts.append(_chart(title, ("epochs", unit), lines, is_loss=key.endswith("loss")))
    return charts


def _logged(history: Sequence[Mapping[str, Any]], key: str) -> Points:
    known = [(number(entry.get("epoch")), number(entry.get(key))) for entry in history]
    return [(epoch, value) for epoch, value in known if epoch is not None and value is not None]


def _chart(title: str, labels: tuple[str, str], lines: Mapping[str, Points], is_loss: bool) -> Chart:
    """A chart whose axes hold all points, with dots on lines of few. A line without points keeps its style free."""
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x, place_x = _axis(labels[0], xs, FRAME.left, FRAME.right, log=False)
    # Losses fall by factors: a log scale where they fall far.
    y, place_y = _axis(labels[1], ys, FRAME.bottom, FRAME.top, log=is_loss and min(ys) > 0 and max(ys) > 4 * min(ys))
    series = []
    for index, (name, points) in enumerate(lines.items()):
        if not points:
            continue
        places = [f"{place_x(a)} {place_y(b)}" for a, b in points]
        # A line of no length has round ends, and is a dot.
        dots = "".join(f"M{place}h0" for place in places) if len(points) <= FEW else ""
        series.append(Series(name, index % STYLES, line="M" + "L".join(places), dots=dots, last=f"{points[-1][1]:.3g}"))
    return Chart(title, x, y, series)


def _axis(
    label: str, values: Sequence[float], start: float, end: float, log: bool
) -> tuple[Axis, Callable[[float], float]]:
    """An axis that holds `values` between two coordinates, and the function from a value to its coordinate."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - max(0.5, abs(low) / 10), high + max(0.5, abs(high) / 10)
    along = math.log if log else float

    def place(value: float) -> float:
        share = (along(value) - along(low)) / (along(high) - along(low))
        return round(start + share * (end - start), 1)

    locator = LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(5)
    ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return Axis(f"{label} (log scale)" if log else label, [(place(tick), f"{tick:.3g}") for tick in ticks]), place
