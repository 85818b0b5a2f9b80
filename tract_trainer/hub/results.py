"""A result of an evaluation as Markdown and as entries of a model card."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
"""
What [`~tract_trainer.metrics.agreement`] and [`~tract_trainer.evaluation.pairwise.pair_figures`] return is called so.
"""

TAU_REMARK = (
    "Kendall's tau-b counts a tie on one side only against a judge, and whole gold scores tie often: continuous scores "
    "come out lower than the same scores rounded."
)


def markdown(result: Mapping[str, Any]) -> str:
    """A result of [`~tract_trainer.evaluation.evaluate.evaluate`] as a page with one table."""
    methods, cots = result["methods"], result["settings"]["num_cots"]
    first = next(iter(methods.values()))
    drawn = f"{cots} rationale{'s' * (cots != 1)} per record" if cots else "no rationales"
    mass = figure_with_interval(first["mass"])
    counts = {figures["unscored"] for figures in methods.values()}
    shown = counted(first["n"], first["unscored"]) if len(counts) == 1 else f"n = {first['n']:,}"
    groups = {row.get("group") for row in result.get("judgments", ())}
    resampled = f", of {len(groups):,} groups of records" if 1 < len(groups) < first["n"] else ""
    page = [
        f"# {escaped(result['benchmark']['name'])}: {escaped(result['judge']['name'])}",
        f"{shown}; {drawn}; probability on the scale {mass}. Intervals are of 95 %{resampled}.",
        markdown_table([["", *methods], *_rows(methods)]),
    ]
    if calibration := result.get("calibration"):
        error, chance = (figure_with_interval(calibration[name]) for name in ("error", "error_by_chance"))
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
            rows.append([f"{kind[:-1]} {escaped(part)}", *cells])
    return rows


def counted(n: int, unscored: int) -> str:
    return f"n = {n:,}, {unscored:,} unscored ({100 * unscored / n:.1f} %)" if n else "n = 0"


def _metric_name(figures: Mapping[str, Any], name: str, method: str) -> str:
    low, high = figures.get(f"{name}_ci") or (None, None)
    between = f"95 % interval {low:.3f} to {high:.3f}, " if low is not None and high is not None else ""
    return f"{method}: {FIGURES[name]} ({between}n = {figures['n']}, {figures['unscored']} unscored)"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def on_one_line(text: str) -> str:
    return " ".join(str(text).split())


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*<>|#\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", on_one_line(text))


def _short(value: float, digits: int) -> str:
    """`.77`, `-.05`, `1.39`: no zero before the point, as correlations are printed."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
