"""Turns the scores that `miniature.py` kept into tables, a picture and one line for each finding of `contrasts.py`.

An interval is the 95 % t-interval of a mean over seeds.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from contrasts import BEST, FINDINGS, QUESTIONS, TRACT, Contrast, Finding, Run, Runs, Side, Values, above, rmse
from matplotlib.figure import Figure
from scipy import stats

from tract_trainer.evaluation.pictures import COLORS, DOTS, MARKERS, grid, legend_below

COUNTS = (1, 2, 4, 8, 16)
BY_HEART = "written word for word"
SHOWN = {"decoded": "decoded", "greedy": "likeliest label", "RAIL": "RAIL", "RAIL renormalised": "RAIL, renormalised"}
HOLDS, FAILS, SMALLER, OPEN = "holds", "does not hold here", "not of that size here", "not resolved"
LEVEL = 0.05  # false discovery rate of the verdicts of a table

LESS = (
    ("TRACT", "stage 1"),
    ("TRACT", "stage 2 from stage 1"),
    ("TRACT", "CE in both stages"),
    ("TRACT, lambda 0", "TRACT"),
    ("TRACT, lambda 0.1", "TRACT"),
)


def write_findings(folder: Path, arms: Sequence[str], tasks: Sequence[str], seeds: int) -> str:
    """Reads what is in `folder`, writes `results.md` and `results.png` there, and returns the text."""
    main, *others = (read(folder / task, arms, seeds) for task in tasks)
    by_heart = [read(folder / task, [BY_HEART], seeds)[BY_HEART] for task in tasks]
    sections = {
        "": arms_table(main),
        "Several rationales": counts_table(main),
        "Where the rationales come from": shift_table(main),
        "Other tasks": tasks_table(dict(zip(tasks, (main, *others), strict=True)), by_heart),
        "The paper's findings": findings_table(main, FINDINGS),
        "What the paper does not say": f"{findings_table(main, QUESTIONS)}\n\n{unscored_gold(main)}",
    }
    text = "\n\n".join(f"## {title}\n\n{table}" if title else table for title, table in sections.items())
    (folder / "results.md").write_text(text + "\n")
    draw(folder / "results.png", main)
    return text


def read(folder: Path, arms: Sequence[str], seeds: int) -> Runs:
    """The runs of the arms that were trained on a task with every seed."""
    paths = {arm: [folder / f"seed-{seed:02d}" / f"{arm}.json" for seed in range(seeds)] for arm in arms}
    whole = {arm: files for arm, files in paths.items() if all(file.is_file() for file in files)}
    return {arm: [json.loads(file.read_text()) for file in files] for arm, files in whole.items()}


def arms_table(runs: Runs) -> str:
    rows = []
    for arm, of_arm in runs.items():
        cells = [mean(Contrast([Side(arm, method)]).values(runs)) for method in SHOWN]
        errors, gaps = Contrast([Side(arm)], figure=rmse).values(runs), above(TRACT, Side(arm)).values(runs)
        rows.append([arm, *cells, "" if arm == "TRACT" else mean(gaps), mean(errors), f"{unscored(of_arm):.1%}"])
    heads = ["Pearson's r, one rationale", *SHOWN.values(), "TRACT minus it, RAIL", "RMSE of RAIL", "unscored"]
    return table(heads, rows)


def unscored(runs: Sequence[Run]) -> float:
    """Share of the records whose first rationale came to no score, the mean over the seeds."""
    return float(np.mean([np.mean([score is None for score in run["own"]["1"]["RAIL"]]) for run in runs]))


def unscored_gold(runs: Runs) -> str:
    """Which records TRACT leaves unscored."""
    pairs = [zip(run["gold"], run["own"]["1"]["RAIL"], strict=True) for run in runs["TRACT"]]
    left = [gold for of_seed in pairs for gold, score in of_seed if score is None]
    counts = ", ".join(f"{left.count(score)} of score {score:g}" for score in sorted(set(left)))
    return f"Gold scores of the records that TRACT leaves unscored, over the seeds: {counts or 'none'}."


def counts_table(runs: Runs) -> str:
    rows = [
        [f"{arm}, {method}", *(mean(Contrast([Side(arm, method, count)]).values(runs)) for count in COUNTS)]
        for arm, method in product(("CE", "stage 1", "TRACT"), ("decoded", "RAIL"))
    ]
    return table(["Pearson's r by the number of rationales", *map(str, COUNTS)], rows)


def shift_table(runs: Runs) -> str:
    rows = []
    for arm in (BEST, "CE", "stage 1", "CE in both stages", "TRACT", "half annotated"):
        own, annotated = Side(arm), Side(arm, count=0)
        contrasts = [Contrast([annotated], figure=rmse), Contrast([own], figure=rmse), above(own, annotated, rmse)]
        cells = [mean(contrast.values(runs)) for contrast in contrasts]
        rows.append([arm, *cells, "" if arm == BEST else mean(above(own, Side(BEST), rmse).values(runs))])
    heads = ["RMSE of RAIL", "after annotated rationales", "after own", "difference", "own above the best possible"]
    return table(heads, rows)


def tasks_table(tasks: dict[str, Runs], by_heart: Sequence[Sequence[Run]]) -> str:
    arms = [arm for arm in next(iter(tasks.values())) if sum(arm in runs for runs in tasks.values()) > 1]
    contrasts = {arm: Contrast([Side(arm)]) for arm in arms}
    for more, less in LESS:
        contrasts[f"{more} minus {less}"] = above(Side(more), Side(less))
    rows = []
    for name, contrast in contrasts.items():
        trained = [all(side.arm in runs for side in (*contrast.more, *contrast.less)) for runs in tasks.values()]
        found = zip(trained, tasks.values(), strict=True)
        rows.append([name, *(mean(contrast.values(runs)) if there else "" for there, runs in found)])
    for arm in ("TRACT", "CE in both stages"):
        shares = [f"{unscored(runs[arm]):.1%}" if arm in runs else "" for runs in tasks.values()]
        rows.append([f"share of the records that {arm} leaves unscored", *shares])
    for arm in ("stage 1", "CE"):
        cells = [mean([run[arm] for run in of_task]) if arm in of_task[0] else "" for of_task in by_heart]
        rows.append([f"share of the rationales of {arm} {BY_HEART}", *cells])
    return table(["Pearson's r of RAIL", *tasks], rows)


def findings_table(runs: Runs, findings: Sequence[Finding]) -> str:
    """A line for each finding: the difference on the shared records, and on all; both have to say the same."""
    both = [[finding.contrast.values(runs, filled) for filled in (False, True)] for finding in findings]
    chances = stats.false_discovery_control([chance(*values) for values in both])  # Benjamini and Hochberg (1995)
    papers = any(finding.paper for finding in findings)
    rows = []
    for finding, (shared, everyone), adjusted in zip(findings, both, chances, strict=True):
        paper = [" - ".join(f"{r:.3f}" for r in finding.paper or ())] if papers else []
        share = f"{np.mean(finding.contrast.shares(runs)):.1%}"
        said = verdict(finding, (shared, everyone), adjusted)
        rows.append([finding.says, *paper, mean(shared), share, mean(everyone), said])
    heads = ["the paper says", "the paper's figures"] if papers else [""]
    return table([*heads, "difference here", "of the records", "on all", ""], rows)


def chance(*differences: Values) -> float:
    """
    The larger p of the t-tests that the means of `differences`, `(seeds,)` each, are 0; 1 where they are on both sides
    of it, or where there is nothing to tell from.
    """
    for values in differences:
        if len(values) < 2 or np.isnan(values).any() or np.ptp(values) == 0:
            return 1.0
    if len({np.sign(np.mean(values)) for values in differences}) > 1:
        return 1.0
    return max(float(stats.ttest_1samp(values, 0).pvalue) for values in differences)


def verdict(finding: Finding, differences: Sequence[Values], adjusted: float) -> str:
    if adjusted < LEVEL:
        return HOLDS if np.mean(differences[0]) > 0 else FAILS
    most = max(np.mean(values) + half(values) for values in differences)
    if finding.paper and most < finding.paper[0] - finding.paper[1]:
        return SMALLER
    return OPEN


def draw(path: Path, runs: Runs) -> None:
    """Pearson's r of every arm, decoded and expected, with intervals."""
    figure = Figure(figsize=(7.2, 0.27 * len(runs) + 1.4), layout="constrained")
    ax = figure.subplots()
    for number, method in enumerate(("decoded", "RAIL")):
        values = [Contrast([Side(arm, method)]).values(runs) for arm in runs]
        ax.errorbar(
            [np.mean(row) for row in values],
            np.arange(len(runs)) + 0.2 * number - 0.1,
            xerr=[0 if len(row) < 2 else half(row) for row in values],
            fmt=MARKERS[number],
            color=COLORS[1 - number],  # the colours of the methods on every page
            markersize=4,
            label="expected score (RAIL)" if method == "RAIL" else "decoded score",
        )
    ax.set(yticks=range(len(runs)), yticklabels=list(runs), xlabel="Pearson's r on held-out records, one rationale")
    ax.invert_yaxis()
    grid(ax)
    legend_below(figure, ax)
    figure.savefig(path, dpi=DOTS)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean(values: Any) -> str:
    """Mean and half of its interval; nothing where a figure is missing."""
    if np.isnan(values).any():
        return ""
    return f"{np.mean(values):.3f} ± {half(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def half(values: Any) -> float:
    """Half of the 95 % t-interval of the mean of `values`, `(seeds,)`; infinite for a single one."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
