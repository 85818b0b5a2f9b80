"""Turns figures into text: tables for the terminal, Markdown, entries of a model card, strict JSON.

The names and numbers of a result are taken as plain text, whatever they hold: they may come from strangers.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

FIGURES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "kendall_rounded": "Kendall, rounded",
    "rmse": "RMSE",
    "mae": "MAE",
    "qwk": "Weighted kappa",
    "within_one": "Within one step",
    "ccc": "Concordance",
    "accuracy": "Accuracy",
    "average": "Average",
}
"""What [`~tract_trainer.metrics.agreement`] and [`~tract_trainer.pairwise.pair_figures`] return is called so."""
IN_TERMINAL = ("pearson", "spearman", "kendall", "kendall_rounded", "rmse", "accuracy", "average")
TAU_REMARK = (
    "Kendall's tau-b counts a tie on one side only against a judge, and whole gold scores tie often: continuous scores "
    "come out lower than the same scores rounded."
)


def results_table(results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """
    A table with a row for each way of judging.

    Args:
        results (`Mapping[str, Mapping]`):
            What [`~tract_trainer.metrics.agreement`] or [`~tract_trainer.pairwise.pair_figures`] returned, by the name
            of the row.
        title (`str`, *optional*): title of the table.

    Returns:
        [`~rich.table.Table`] with the main figures, each with its interval where it has one. The number of records and
        how many of them are unscored stand below it, or in columns where rows differ. What is not defined is `-`.
    """
    shown = [name for name in IN_TERMINAL if all(name in found for found in results.values())]
    counts = {(found["n"], found["unscored"]) for found in results.values()}
    heads = [FIGURES[name].replace(", ", ",\n") for name in shown] + ["n", "un-\nscored"] * (len(counts) > 1)
    masses = [figure_with_interval(found["mass"]) for found in results.values() if "mass" in found]
    mass = f"; probability on the scale {masses[0]}" if masses else ""  # of one judge, so the same in all rows
    table = _table(title, heads, _counted(*counts.pop()) + mass if len(counts) == 1 else None)
    for name, found in results.items():
        cells = [figure_with_interval(found[key], found.get(f"{key}_ci")).replace(" [", "\n[") for key in shown]
        tail = [f"{found['n']:,}", f"{found['unscored']:,}"] if table.caption is None else []
        table.add_row(Text(name.replace(", ", ",\n")), *cells, *tail)
    return table


def summary_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Pearson's r of each method on each of the benchmarks with gold scores, and its mean over them."""
    names = [result["benchmark"]["name"] for result in results]
    table = _table("Pearson's r", [*names, "mean"], None)
    for method in results[0]["methods"]:
        values = [result["methods"][method]["pearson"] for result in results]
        known = [math.nan if value is None else value for value in values]
        row = [*known, sum(known) / len(known)]
        table.add_row(Text(method), *map(figure_with_interval, row))
    return table


def comparison_table(found: Mapping[str, Any]) -> Table:
    """What [`~tract_trainer.comparing.compare`] returned."""
    table = _table(_titled(found), ["A", "B", "A - B", "p"], f"A is {_plain(found['a'])}, B is {_plain(found['b'])}.")
    for name, figure in found["figures"].items():
        table.add_row(Text(FIGURES[name]), *_compared(figure))
    return table


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """What [`~tract_trainer.comparing.compare`] returned, as a page."""
    rows = [[FIGURES[name], *_compared(figure)] for name, figure in found["figures"].items()]
    about = f"A is {_escaped(found['a'])}, B is {_escaped(found['b'])}."
    table = _markdown_table([["", "A", "B", "A - B [95 %]", "p"], *rows])
    return f"# {_escaped(_titled(found))}\n\n{about}\n\n{table}\n"


def markdown(result: Mapping[str, Any]) -> str:
    """A result of [`~tract_trainer.evaluation.evaluate`] as a page with one table."""
    methods, cots = result["methods"], result["settings"]["num_cots"]
    first = next(iter(methods.values()))
    drawn = f"{cots} rationale{'s' * (cots != 1)} per record" if cots else "no rationales"
    mass = figure_with_interval(first["mass"])
    counts = {figures["unscored"] for figures in methods.values()}
    counted = _counted(first["n"], first["unscored"]) if len(counts) == 1 else f"n = {first['n']:,}"
    groups = {row.get("group") for row in result.get("judgments", ())}
    resampled = f", of {len(groups):,} groups of records" if 1 < len(groups) < first["n"] else ""
    page = [
        f"# {_escaped(result['benchmark']['name'])}: {_escaped(result['judge']['name'])}",
        f"{counted}; {drawn}; probability on the scale {mass}. Intervals are of 95 %{resampled}.",
        _markdown_table([["", *methods], *_rows(methods)]),
    ]
    if calibration := result.get("calibration"):
        error = figure_with_interval(calibration["error"], calibration["error_ci"])
        chance = figure_with_interval(calibration["error_by_chance"])
        page.append(
            f"Calibration error of the distribution: {error}; a calibrated judge would have {chance} by chance."
        )
    return "\n\n".join([*page, *([TAU_REMARK] if "kendall" in first else [])]) + "\n"


def model_index(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Entries of a model card's `model-index` for results of one judge, as the Hub reads them.

    Each figure of RAIL and of the decoded label is a metric, whose name tells its method, interval and n.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    entries = [
        EvalResult(
            task_type="text-generation",
            task_name="LLM as a judge",
            dataset_type=result["benchmark"]["name"],
            dataset_name=result["benchmark"]["name"],
            dataset_args={"digest": result["benchmark"]["digest"], "num_cots": result["settings"]["num_cots"]},
            metric_type=name,
            metric_value=result["methods"][method][name],
            metric_name=_metric_name(result["methods"][method], name, method),
        )
        for result in results
        for method in ("RAIL", "decoded")
        for name in FIGURES
        if result["methods"][method].get(name) is not None
    ]
    return eval_results_to_model_index(Path(results[0]["judge"]["name"]).name, entries)


def figure_with_interval(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """`.773 [.75, .79]`; without the brackets where the interval is missing or not defined, `-` where the value is."""
    if value is None or math.isnan(value):
        return "-"
    known = [bound for bound in interval or () if bound is not None and not math.isnan(bound)]
    if len(known) < 2:
        return _short(value, 3)
    return f"{_short(value, 3)} [{_short(known[0], 2)}, {_short(known[1], 2)}]"


def save_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Writes results as JSON, which has no NaN: figures that are not defined become `null`."""
    text, part = json.dumps(without_nan(results), indent=2, ensure_ascii=False), Path(f"{path}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def without_nan(value: Any) -> Any:
    """`value` with `None` for every NaN in its mappings and sequences, fit for JSON."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(title: str | None, heads: Sequence[str], caption: str | None) -> Table:
    # Intervals stand below their figures and names break at a comma, so that the table fits into 80 columns.
    table = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        caption=None if caption is None else Text(caption),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,  # the box leaves a space between columns
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    return table


def _rows(methods: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells of a page's table: a row for each figure, those in the worst case, and those of each subset of pairs."""
    first, rows = next(iter(methods.values())), []
    for name, title in FIGURES.items():
        if name in first:
            found = methods.values()
            rows.append([title, *(figure_with_interval(figures[name], figures.get(f"{name}_ci")) for figures in found)])
            if any(figures["unscored"] for figures in methods.values()):
                worst = (figure_with_interval(figures[f"{name}_worst"]) for figures in found)
                rows.append([f"{title}, if the unscored were worst", *worst])
    if len({figures["unscored"] for figures in methods.values()}) > 1:
        rows.append(["unscored", *(f"{figures['unscored']:,}" for figures in methods.values())])
    for kind in ("sections", "subsets"):
        for part in first.get(kind, ()):
            of_part = [figures[kind][part] for figures in methods.values()]
            cells = (figure_with_interval(figures["accuracy"], figures.get("accuracy_ci")) for figures in of_part)
            rows.append([f"{kind[:-1]} {_escaped(part)}", *cells])
    return rows


def _compared(figure: Mapping[str, Any]) -> list[str]:
    difference = figure_with_interval(figure["difference"], figure["difference_ci"])
    p = figure["p_value"]
    chance = "-" if p is None or math.isnan(p) else f"{p:.4f}"
    return [figure_with_interval(figure["a"]), figure_with_interval(figure["b"]), difference, chance]


def _titled(found: Mapping[str, Any]) -> str:
    return f"{_plain(found['benchmark'])}, {found['method']}: {_counted(found['n'], found['unscored'])}"


def _counted(n: int, unscored: int) -> str:
    return f"n = {n:,}, {unscored:,} unscored ({100 * unscored / n:.1f} %)" if n else "n = 0"


def _metric_name(figures: Mapping[str, Any], name: str, method: str) -> str:
    low, high = figures.get(f"{name}_ci") or (None, None)
    between = f"95 % interval {low:.3f} to {high:.3f}, " if low is not None and high is not None else ""
    return f"{method}: {FIGURES[name]} ({between}n = {figures['n']}, {figures['unscored']} unscored)"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def _plain(text: str) -> str:
    return " ".join(str(text).split())


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*<>|#\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", _plain(text))


def _short(value: float, digits: int) -> str:
    """`.77`, `-.05`, `1.39`: no zero before the point, as correlations are printed."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
