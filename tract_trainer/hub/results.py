"""Results of an evaluation as text: a verdict, a Markdown page, and entries of a model card."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

# Names of the figures that [`~tract_trainer.metrics.agreement`] and `pair_figures` return.
FIGURES = {
    "pearson": "Pearson", "spearman": "Spearman", "kendall": "Kendall", "kendall_rounded": "Kendall, rounded",
    "rmse": "RMSE", "mae": "MAE", "qwk": "Weighted kappa", "within_one": "Within one step", "ccc": "Concordance",
    "accuracy": "Accuracy", "average": "Average", "easy": "Easy", "normal": "Normal", "hard": "Hard",
    "best_of_k": "Best of K",
}  # fmt: skip

GIVEN = "score"
"""The method of a result whose scores were given, by [`~tract_trainer.evaluation.columns.column_results`]."""

TAU_REMARK = (
    "Kendall's tau-b counts a tie on one side only against a judge, and whole gold scores tie often: continuous scores "
    "come out lower than the same scores rounded."
)


def verdict(result: Mapping[str, Any]) -> str:
    """
    A few sentences of plain text: the figures of the main method, the baseline, the best method, and the unscored
    records with the first reason. Empty if the result has no figures.
    """
    method = main_method(result)
    rail = result["methods"].get(method)
    if rail is None or not rail["n"]:
        return ""
    records, missing = "pairs" if "accuracy" in rail else "records", rail["unscored"]
    reason = next((row["reason"] for row in result.get("judgments") or () if row.get("reason")), "not known")
    if missing == rail["n"]:
        return f"No score: all {missing:,} {records} are unscored, so there are no figures. The first reason: {reason}"
    name = "The score" if method == GIVEN else f"{method}, the expected score,"
    sentences = [f"{name} has {main_figures(rail)}.", _baseline(result, rail), _best(result["methods"])]
    if missing:
        share = f"{missing:,} of {rail['n']:,} {records} are unscored ({100 * missing / rail['n']:.1f} %)"
        sentences.append(f"{share}. The first reason: {reason}")
    return " ".join(filter(None, sentences))


def main_method(result: Mapping[str, Any]) -> str:
    """The method whose figures stand for a result: RAIL, or the scores themselves where they were given."""
    return GIVEN if GIVEN in result["methods"] else "RAIL"


def main_figures(figures: Mapping[str, Any]) -> str:
    """`r = .773 [.75, .79], RMSE = .621 [.58, .66]`, or `accuracy = .812 [.78, .84]` of pairs."""
    if figures["unscored"] == figures["n"]:
        return "no score"
    shown = {"pearson": "r", "rmse": "RMSE"}
    if "accuracy" in figures:  # a benchmark is known by its average, if it has one
        shown = {name: name for name in ("accuracy", "average") if name == "accuracy" or figures.get(name) is not None}
    written = (figure_with_interval(figures.get(name), figures.get(f"{name}_ci")) for name in shown)
    return ", ".join(f"{name} = {value}" for name, value in zip(shown.values(), written, strict=True))


def _baseline(result: Mapping[str, Any], rail: Mapping[str, Any]) -> str:
    """How good guessing is, or the mean gold score for every record."""
    if "accuracy" in rail:
        chance = rail.get("chance", 0.5)
        shown = figure_with_interval(chance)
        return f"That is worse than guessing ({shown})." if rail["accuracy"] < chance else f"Guessing has {shown}."
    gold = [row["gold"] for row in result.get("judgments") or () if None not in (row.get("score"), row.get("gold"))]
    if not gold or rail.get("rmse") is None:
        return ""
    mean = sum(gold) / len(gold)
    constant = math.sqrt(sum((score - mean) ** 2 for score in gold) / len(gold))
    if rail["rmse"] >= constant:
        return f"That is no better than the mean gold score for every record (RMSE = {_short(constant, 3)})."
    return f"The mean gold score for every record has RMSE = {_short(constant, 3)}."


def _best(methods: Mapping[str, Any]) -> str:
    """The method with the lowest RMSE, or the highest accuracy, among those that score the most records."""
    fewest = min(figures["unscored"] for figures in methods.values())
    key, choose = ("accuracy", max) if any("accuracy" in figures for figures in methods.values()) else ("rmse", min)
    known = {
        name: figures[key]
        for name, figures in methods.items()
        if figures["unscored"] == fewest and figures.get(key) is not None
    }
    if len(known) < 2:
        return ""
    best = choose(known, key=lambda name: (known[name], (name == "RAIL") == (choose is max)))  # of ties, RAIL
    title = "Highest accuracy" if key == "accuracy" else "Lowest RMSE"
    return f"{title} of {len(known)} methods: {best}{'' if best == 'RAIL' else f' ({_short(known[best], 3)})'}."


def markdown(result: Mapping[str, Any]) -> str:
    """A result of [`~tract_trainer.evaluation.evaluate.evaluate`] as a page with its verdict and one table."""
    methods = result["methods"]
    first = next(iter(methods.values()))
    counts = {figures["unscored"] for figures in methods.values()}
    shown = counted(first["n"], first["unscored"]) if len(counts) == 1 else f"n = {first['n']:,}"
    if "mass" in first:
        cots = result["settings"]["num_cots"]
        drawn = f"{cots} rationale{'s' * (cots != 1)} per record" if cots else "no rationales"
        shown += f"; {drawn}; probability on the scale {figure_with_interval(first['mass'])}"
    groups = {row.get("group") for row in result.get("judgments", ())}
    of_groups = f", over {len(groups):,} groups of records" if 1 < len(groups) < first["n"] else ""
    page = [
        f"# {escaped(result['benchmark']['name'])}: {escaped(result['judge']['name'])}",
        escaped(verdict(result)),
        f"{shown}. Intervals are 95 %{of_groups}.",
        _escaped_table(figure_rows(with_ceiling(result))),
        *map(escaped, remarks(result)),
        TAU_REMARK if "kendall" in first else "",
        *(text for title, rows in further_tables(result).items() for text in (escaped(title), _escaped_table(rows))),
    ]
    return "\n\n".join(filter(None, page)) + "\n"


def _escaped_table(rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([list(map(escaped, row)) if row is rows[0] else [escaped(row[0]), *row[1:]] for row in rows])


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Sentences on ceiling, calibration, selective judging, length of responses, and scores that cannot be used."""
    found = (ceiling_remark(result), calibration_remark(result), selective_remark(result), length_remark(result))
    return [*filter(None, found), *result["settings"].get("remarks", ())]


def length_remark(result: Mapping[str, Any]) -> str:
    """The correlation of scores with the length of responses, and that of gold scores; empty if there is none."""
    found = result.get("length") or {}
    if found.get("difference") is None:
        return ""
    of_score, of_gold = figure_with_interval(found["a"]), figure_with_interval(found["b"])
    difference = figure_with_interval(found["difference"], found["difference_ci"])
    return (
        f"Spearman's rho with the length of the response: {of_score} for {result['judge']['name']}, {of_gold} for "
        f"gold, difference {difference}."
    )


def further_tables(result: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Tables below the main one, by their titles: figures against `human_score`, and those by the values of columns."""
    tables = {}
    if human := result.get("human_score"):
        n = next(iter(human["methods"].values()))["n"]
        tables[f"Against human_score, on {n:,} records."] = figure_rows(with_ceiling(human))
    return tables | breakdown_tables(result)


def breakdown_tables(result: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """A table for each column that the result is broken down by, by its title. Groups are in the order of gold."""
    tables = {}
    for column, found in result.get("breakdowns", {}).items():
        known = {name: figures["mean_gold"] for name, figures in found["groups"].items()}
        groups = sorted(found["groups"].items(), key=lambda of: (known[of[0]] is None, -(known[of[0]] or 0)))
        means = [figures["mean_score"] for _, figures in groups]
        heads = [column, "n", "unscored", "Pearson", "RMSE", "mean gold", "mean score", "rank"]
        tables[_title(column, found)] = [heads] + [
            [
                *(name, f"{figures['n']:,}", f"{figures['unscored']:,}"),
                *(_cell(figures, "pearson"), _cell(figures, "rmse")),
                *(figure_with_interval(figures["mean_gold"]), figure_with_interval(mean)),
                "-" if mean is None else str(1 + sum(other > mean for other in means if other is not None)),
            ]
            for (name, figures), mean in zip(groups, means, strict=True)
        ]
    return tables


def _title(column: str, found: Mapping[str, Any]) -> str:
    known = sum(figures["mean_score"] is not None for figures in found["groups"].values())
    tau, rho = (figure_with_interval(found[name]) for name in ("kendall", "spearman"))
    return (
        f"By {column}, the highest mean gold score first. Mean scores against mean gold scores of {known:,} groups: "
        f"Kendall's tau {tau}, Spearman's rho {rho}."
    )


def calibration_remark(result: Mapping[str, Any]) -> str:
    """The calibration error, and that of a calibrated judge by chance; empty if there is none."""
    found = result.get("calibration") or {}
    if found.get("error") is None:
        return ""
    error, chance = (figure_with_interval(found.get(name)) for name in ("error", "error_by_chance"))
    return f"Calibration error of the distribution: {error}; a calibrated judge would have {chance} by chance."


def selective_remark(result: Mapping[str, Any]) -> str:
    """RMSE of the surest half of the judgments, and what their order gains over a random one; empty if not known."""
    found = result.get("selective")
    if not found:
        return ""
    orders = {name: of for name, of in found["orders"].items() if name != "oracle"}
    half = len(found["coverage"]) // 2 - 1
    kept = [
        f"{figure_with_interval(of['rmse'][half])} of the half with the lowest {name} (up to "
        f"{figure_with_interval(of['threshold'][half])})"
        for name, of in orders.items()
    ]
    gains = (f"{figure_with_interval(of['gain'], of['gain_ci'])} by {name}" for name, of in orders.items())
    every = figure_with_interval(found["orders"]["oracle"]["rmse"][-1])
    return (
        f"Selective judging: RMSE {', '.join(kept)}; {every} of all. Gain in area under the risk-coverage curve "
        f"(0: random order, 1: by the true error): {', '.join(gains)}."
    )


def with_ceiling(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each method and, if records have several ratings, of one rater against the mean of the others."""
    found = result.get("ceiling")
    return {**result["methods"], **({"one rater": found} if found else {})}


def ceiling_remark(result: Mapping[str, Any]) -> str:
    """What the row of one rater is, and Krippendorff's alpha; empty if no record has several ratings."""
    found = result.get("ceiling")
    if not found:
        return ""
    alpha = figure_with_interval(found["alpha"])
    known = alpha if alpha != "-" else "not computed (pip install krippendorff)"
    return (
        f"One rater is compared with the mean of the others, on {found['n']:,} records with several ratings: a ceiling "
        f"for judges. Krippendorff's alpha of the raters: {known}."
    )


def eval_results(result: Mapping[str, Any], **args: Any) -> list[EvalResult]:
    """
    A result as entries of a model card. Each figure of RAIL and of the decoded label is one, whose name has the method,
    the interval and n. `args` go into its `dataset_args`.
    """
    benchmark, num_cots = result["benchmark"], result["settings"]["num_cots"]
    return [
        EvalResult(
            task_type="text-generation",
            task_name="LLM as a judge",
            dataset_type=benchmark["name"],
            dataset_name=benchmark["name"],
            dataset_config=f"{num_cots} rationales",
            dataset_revision=benchmark["digest"],
            dataset_args={"num_cots": num_cots, **args},
            metric_type=name,
            metric_value=result["methods"][method][name],
            metric_name=_metric_name(result["methods"][method], name, method),
        )
        for method in ("RAIL", "decoded")
        for name in FIGURES
        if result["methods"][method].get(name) is not None
    ]


def model_index(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results of one judge as the `model-index` of a model card."""
    entries = [entry for result in results for entry in eval_results(result)]
    return eval_results_to_model_index(Path(results[0]["judge"]["name"]).name, entries)


def figure_with_interval(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """`.773 [.75, .79]`; without the brackets where the interval is missing or not defined, `-` where the value is."""
    if value is None or math.isnan(value):
        return "-"
    known = [bound for bound in interval or () if bound is not None and not math.isnan(bound)]
    if len(known) < 2:
        return _short(value, 3)
    return f"{_short(value, 3)} [{_short(known[0], 2)}, {_short(known[1], 2)}]"


def figure_rows(methods: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """
    A table with a column for each method. Rows: heads; figures, and in the worst case; sections and subsets of pairs.
    """
    found, rows = list(methods.values()), [["", *methods]]
    for name, title in FIGURES.items():
        if any(name in figures for figures in found):
            rows.append([title, *(_cell(figures, name) for figures in found)])
            if any(figures.get(f"{name}_worst") is not None and figures["unscored"] for figures in found):
                worst = (figure_with_interval(figures.get(f"{name}_worst")) for figures in found)
                rows.append([f"{title}, unscored at worst", *worst])
    if len({figures["unscored"] for figures in found}) > 1:
        rows.append(["unscored", *(f"{figures['unscored']:,}" for figures in found)])
    for kind in ("sections", "subsets"):
        for part in found[0].get(kind, ()):
            rows.append([f"{kind[:-1]} {part}", *(_cell(figures[kind][part], "accuracy") for figures in found)])
    return rows


def _cell(figures: Mapping[str, Any], name: str) -> str:
    return figure_with_interval(figures.get(name), figures.get(f"{name}_ci"))


def counted(n: int, unscored: int) -> str:
    """`n = 320, 8 unscored (2.5 %)`."""
    return f"n = {n:,}, {unscored:,} unscored ({100 * unscored / n:.1f} %)" if n else "n = 0"


def _metric_name(figures: Mapping[str, Any], name: str, method: str) -> str:
    low, high = figures.get(f"{name}_ci") or (None, None)
    between = f"95 % interval {low:.3f} to {high:.3f}, " if low is not None and high is not None else ""
    return f"{method}: {FIGURES[name]} ({between}n = {figures['n']}, {figures['unscored']} unscored)"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown, the first one as heads. Cells are Markdown already."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def on_one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(str(text).split())


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*<>|#\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", on_one_line(text))


def _short(value: float, digits: int) -> str:
    """`.77`, `-.05`, `1.39`: no zero before the point, as correlations are printed."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
