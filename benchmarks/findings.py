"""Turns the scores that `miniature.py` kept into tables, a picture and one line for each finding of the paper.

An interval is the 95 % t-interval of a mean over seeds. A difference is taken seed by seed, on the same records.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from tract_trainer.drawing import COLORS, DOTS, MARKERS, grid, legend_below

COUNTS = (1, 2, 4, 8, 16)
BEST = "best possible from the prompt"
BY_HEART = "written word for word"
SHOWN = {"decoded": "decoded", "greedy": "likeliest label", "RAIL": "RAIL", "RAIL renormalised": "RAIL, renormalised"}
HOLDS, FAILS, OPEN = "holds", "does not hold here", "not resolved"

Run = dict[str, Any]  # what `miniature.judged` returned
Runs = dict[str, list[Run]]  # by arm, one a seed
Values = NDArray[np.float64]


def pearson(run: Run, method: str = "RAIL", count: int = 1) -> float:
    """Pearson's r over the [`scored`] records; 0 for scores that are all the same, NaN where there are none."""
    scores, gold = scored(run["own"][str(count)].get(method, [None] * len(run["gold"])), run["gold"])
    if not len(scores):
        return float("nan")
    return float(stats.pearsonr(scores, gold).statistic) if np.ptp(scores) > 0 else 0.0


def rmse_own(run: Run) -> float:
    """RMSE of RAIL after one own rationale, in scale units."""
    return rmse(*scored(run["own"]["1"]["RAIL"], run["gold"]))


def rmse_annotated(run: Run) -> float:
    """RMSE of RAIL after the annotated rationale, in scale units."""
    return rmse(*scored(run["annotated"], run["gold"]))


def scored(scores: Sequence[float | None], gold: Sequence[float]) -> tuple[Values, Values]:
    """Scores and gold of the scored records; none of a judge that scored less than half, and chose which."""
    there = np.array([score is not None for score in scores])
    there &= there.mean() >= 0.5
    return np.array(scores, float)[there], np.array(gold)[there]


def rmse(scores: Values, gold: Values) -> float:
    return float("nan") if not len(scores) else float(np.sqrt(np.mean((scores - gold) ** 2)))


def gain(run: Run, method: str = "RAIL", count: int = 8) -> float:
    """What `count` rationales add to the r of one."""
    return pearson(run, method, count) - pearson(run, method)


class Side(NamedTuple):
    arm: str
    figure: Callable[..., float] = pearson
    settings: dict[str, Any] = {}

    def values(self, runs: Runs) -> Values:
        return np.array([self.figure(run, **self.settings) for run in runs[self.arm]])


class Finding(NamedTuple):
    """What the paper says, with its figures: `more` is above `less`."""

    says: str
    more: Side
    less: Side


DECODED = {"method": "decoded"}
TRACT = Side("TRACT")
LAMBDAS = {"0.1": ".496", "0.2": ".643", "2": ".632", "5": ".595", "10": ".618"}
FINDINGS = (
    Finding(
        "TRACT agrees more than cross-entropy with rationales, decoded (.650, .557)",
        TRACT,
        Side("CE", settings=DECODED),
    ),
    Finding("TRACT agrees more than stage 1 (.650, .556)", TRACT, Side("stage 1")),
    Finding("RAIL helps cross-entropy with rationales a little (.562, .557)", Side("CE"), Side("CE", settings=DECODED)),
    Finding(
        "Stage 1 is no better than cross-entropy with rationales, both RAIL (.556, .562)", Side("CE"), Side("stage 1")
    ),
    Finding(
        "RAFT without rationale agrees more than cross-entropy without, decoded (.623, .488)",
        Side("RAFT, score only"),
        Side("CE, score only", settings=DECODED),
    ),
    Finding("TRACT agrees more than RAFT without rationale (.650, .623)", TRACT, Side("RAFT, score only")),
    Finding("Own rationales help cross-entropy too (.616, .562)", Side("CE in both stages"), Side("CE")),
    Finding("TRACT agrees more than cross-entropy in both stages (.650, .616)", TRACT, Side("CE in both stages")),
    Finding(
        "Stage 2 must start from the seed model, not from stage 1 (.650, .515)", TRACT, Side("stage 2 from stage 1")
    ),
    Finding(
        "TRACT's expected score agrees more than its decoded one (.650, .572)", TRACT, Side("TRACT", settings=DECODED)
    ),
    *(
        Finding(f"Lambda 1 is better than {weight} (.650, {r})", TRACT, Side(f"TRACT, lambda {weight}"))
        for weight, r in LAMBDAS.items()
    ),
    Finding(
        "More rationales help decoded scores more than TRACT's expected one (1 to 5: +.105, +.001)",
        Side("CE", gain, DECODED),
        Side("TRACT", gain),
    ),
    Finding(
        "Stage 1 errs more (RMSE) on its own rationales than on annotated ones",
        Side("stage 1", rmse_own),
        Side("stage 1", rmse_annotated),
    ),
    Finding(
        "On own rationales, stage 1 errs more (RMSE) than TRACT", Side("stage 1", rmse_own), Side("TRACT", rmse_own)
    ),
)


def write_findings(folder: Path, arms: Sequence[str], tasks: Sequence[str], seeds: int) -> str:
    """Reads what is in `folder`, writes `results.md` and `results.png` there, and returns the text."""
    main, *others = (read(folder / task, arms, seeds) for task in tasks)
    by_heart = [[run["share"] for run in read(folder / task, [BY_HEART], seeds)[BY_HEART]] for task in tasks]
    sections = {
        "": arms_table(main),
        "Several rationales": counts_table(main),
        "Where the rationales come from": shift_table(main),
        "Other tasks": tasks_table(dict(zip(tasks, (main, *others), strict=True)), by_heart),
        "The paper's findings": findings_table(main),
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
        cells = [mean([pearson(run, method) for run in of_arm]) for method in SHOWN]
        unscored = np.mean([np.mean([score is None for score in run["own"]["1"]["RAIL"]]) for run in of_arm])
        rows.append([arm, *cells, mean([rmse_own(run) for run in of_arm]), f"{unscored:.1%}"])
    return table(["Pearson's r, one rationale", *SHOWN.values(), "RMSE of RAIL", "unscored"], rows)


def counts_table(runs: Runs) -> str:
    rows = [
        [f"{arm}, {method}", *(mean([pearson(run, method, count) for run in runs[arm]]) for count in COUNTS)]
        for arm, method in product(("CE", "stage 1", "TRACT"), ("decoded", "RAIL"))
    ]
    return table(["Pearson's r by the number of rationales", *map(str, COUNTS)], rows)


def shift_table(runs: Runs) -> str:
    rows = []
    for arm in ("CE", "stage 1", "CE in both stages", "TRACT", "half annotated"):
        annotated, own = (np.array([figure(run) for run in runs[arm]]) for figure in (rmse_annotated, rmse_own))
        rows.append([arm, mean(annotated), mean(own), mean(own - annotated)])
    return table(["RMSE of RAIL", "after annotated rationales", "after own", "difference"], rows)


def tasks_table(tasks: dict[str, Runs], by_heart: Sequence[Sequence[float]]) -> str:
    arms = [arm for arm in next(iter(tasks.values())) if sum(arm in runs for runs in tasks.values()) > 1]
    rows = [
        [arm, *(mean([pearson(run) for run in runs[arm]]) if arm in runs else "" for runs in tasks.values())]
        for arm in arms
    ]
    for other in ("stage 1", "stage 2 from stage 1", "CE in both stages", "TRACT, lambda 0.1"):
        gaps = [TRACT.values(runs) - Side(other).values(runs) if other in runs else [] for runs in tasks.values()]
        rows.append([f"TRACT minus {other}", *(mean(gap) if len(gap) else "" for gap in gaps)])
    shares = [f"share of stage 1's rationales {BY_HEART}", *map(mean, by_heart)]
    return table(["Pearson's r of RAIL", *tasks], [*rows, shares])


def findings_table(runs: Runs) -> str:
    rows = []
    for finding in FINDINGS:
        gaps = finding.more.values(runs) - finding.less.values(runs)
        low, high = np.mean(gaps) - half(gaps), np.mean(gaps) + half(gaps)
        rows.append([finding.says, mean(gaps), HOLDS if low > 0 else FAILS if high < 0 else OPEN])
    return table(["the paper says (its figures)", "difference here", ""], rows)


def draw(path: Path, runs: Runs) -> None:
    """Pearson's r of every arm, decoded and expected, with intervals."""
    figure = Figure(figsize=(7.2, 0.27 * len(runs) + 1.4), layout="constrained")
    ax = figure.subplots()
    for number, method in enumerate(("decoded", "RAIL")):
        values = [[pearson(run, method) for run in of_arm] for of_arm in runs.values()]
        ax.errorbar(
            [np.mean(row) for row in values],
            np.arange(len(runs)) + 0.2 * number - 0.1,
            xerr=[0 if len(row) < 2 else half(row) for row in values],
            fmt=MARKERS[number],
            color=COLORS[number],
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
