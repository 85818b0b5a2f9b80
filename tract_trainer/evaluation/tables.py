"""Tables of results and comparisons, for the terminal and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tract_trainer.hub.results import (
    FIGURES,
    breakdown_tables,
    counted,
    escaped,
    figure_with_interval,
    markdown_table,
    on_one_line,
    with_ceiling,
)

IN_TERMINAL = ("pearson", "spearman", "kendall", "kendall_rounded", "rmse", "accuracy", "average", "best_of_k")


def results_table(results: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """
    The main figures with their intervals, a row for each method or judge, by its name. The number of records and of
    unscored ones is below the table, or in columns where rows differ. Figures that are not defined are `-`.
    """
    shown = [name for name in IN_TERMINAL if all(name in found for found in results.values())]
    counts = {(found["n"], found["unscored"]) for found in results.values()}
    heads = [FIGURES[name].replace(", ", ",\n") for name in shown] + ["n", "un-\nscored"] * (len(counts) > 1)
    masses = [figure_with_interval(found["mass"]) for found in results.values() if "mass" in found]
    mass = f"; probability on the scale {masses[0]}" if masses else ""  # of one judge, so the same in all rows
    table = _table(title, heads, counted(*counts.pop()) + mass if len(counts) == 1 else None)
    for name, found in results.items():
        cells = [figure_with_interval(found[key], found.get(f"{key}_ci")).replace(" [", "\n[") for key in shown]
        tail = [f"{found['n']:,}", f"{found['unscored']:,}"] if table.caption is None else []
        table.add_row(Text(name.replace(", ", ",\n")), *cells, *tail)
    return table


def summary_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Pearson's r of each method on each benchmark with gold scores, and the mean over benchmarks."""
    names = [result["benchmark"]["name"] for result in results]
    table = _table("Pearson's r", [*names, "mean"], None)
    for method in results[0]["methods"]:
        values = [result["methods"][method]["pearson"] for result in results]
        known = [math.nan if value is None else value for value in values]
        row = [*known, sum(known) / len(known)]
        table.add_row(Text(method), *map(figure_with_interval, row))
    return table


def tables_below(result: Mapping[str, Any]) -> list[Table]:
    """The tables of a result below its main one: figures against `human_score`, and by the values of columns."""
    human = result.get("human_score")
    found = [results_table(with_ceiling(human), "Against human_score")] if human else []
    for title, (heads, *rows) in breakdown_tables(result).items():
        table = _table(title, heads[1:], None)
        for name, *cells in rows:
            table.add_row(Text(name), *(cell.replace(" [", "\n[") for cell in cells))
        found.append(table)
    return found


def comparison_table(found: Mapping[str, Any]) -> Table:
    """A table of what [`~tract_trainer.evaluation.comparison.compare`] returned."""
    about = f"A is {on_one_line(found['a'])}, B is {on_one_line(found['b'])}."
    table = _table(_titled(found), ["A", "B", "A - B", "p"], about)
    for name, figure in found["figures"].items():
        table.add_row(Text(FIGURES[name]), *_compared(figure))
    return table


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """A Markdown page of what [`~tract_trainer.evaluation.comparison.compare`] returned."""
    rows = [[FIGURES[name], *_compared(figure)] for name, figure in found["figures"].items()]
    about = f"A is {escaped(found['a'])}, B is {escaped(found['b'])}."
    table = markdown_table([["", "A", "B", "A - B [95 %]", "p"], *rows])
    return f"# {escaped(_titled(found))}\n\n{about}\n\n{table}\n"


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


def _compared(figure: Mapping[str, Any]) -> list[str]:
    difference = figure_with_interval(figure["difference"], figure["difference_ci"])
    p = figure["p_value"]
    chance = "-" if p is None or math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"
    return [figure_with_interval(figure["a"]), figure_with_interval(figure["b"]), difference, chance]


def _titled(found: Mapping[str, Any]) -> str:
    return f"{on_one_line(found['benchmark'])}, {found['method']}: {counted(found['n'], found['unscored'])}"
