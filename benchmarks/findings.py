"""Turns the scores that `miniature.py` kept into tables, a picture and one line for each finding of the paper.

An interval is the 95 % t-interval of a mean over seeds. A difference is taken seed by seed, on the records that both
judges scored.
"""

import json
from collections.abc import Callable, Iterator, Sequence
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
LESS = (
    ("TRACT", "stage 1"),
    ("TRACT", "stage 2 from stage 1"),
    ("TRACT", "CE in both stages"),
    ("TRACT, lambda 0.1", "TRACT"),
    ("CE in both stages", "TRACT, lambda 0.1"),
)


class Side(NamedTuple):
    """One way to judge: whose scores, by which method, from how many rationales (0: the annotated one)."""

    arm: str
    method: str = "RAIL"
    count: int = 1

    def scores(self, run: Run) -> Values:
        """Scores of the records, `(n,)`: NaN where unscored, and everywhere if more than half are."""
        own = run["own"].get(str(self.count), {})
        found = np.array(own.get(self.method) if self.count else run["annotated"], float)
        return found if np.isfinite(found).mean() >= 0.5 else np.full(len(run["gold"]), np.nan)


def pearson(scores: Values, gold: Values) -> float:
    """0 for scores that are all the same."""
    return float(stats.pearsonr(scores, gold).statistic) if np.ptp(scores) > 0 else 0.0


def rmse(scores: Values, gold: Values) -> float:
    return float(np.sqrt(np.mean((scores - gold) ** 2)))


class Contrast(NamedTuple):
    """What figures of judges come to, added and subtracted."""

    more: Sequence[Side]
    less: Sequence[Side] = ()
    figure: Callable[[Values, Values], float] = pearson

    def values(self, runs: Runs) -> Values:
        """The contrast for each seed, `(seeds,)`, on the records that all of the judges scored; NaN if none are."""
        found = []
        for gold, there, scores in self._shared(runs):
            figures = [self.figure(row[there], gold[there]) if there.any() else np.nan for row in scores]
            found.append(sum(figures[: len(self.more)]) - sum(figures[len(self.more) :]))
        return np.array(found)

    def shares(self, runs: Runs) -> Values:
        """Share of the records that all of the judges scored, `(seeds,)`."""
        return np.array([there.mean() for _, there, _ in self._shared(runs)])

    def _shared(self, runs: Runs) -> Iterator[tuple[Values, NDArray[np.bool_], list[Values]]]:
        sides = (*self.more, *self.less)
        for of_seed in zip(*(runs[side.arm] for side in sides), strict=True):
            scores = [side.scores(run) for side, run in zip(sides, of_seed, strict=True)]
            yield np.array(of_seed[0]["gold"], float), np.isfinite(scores).all(0), scores


class Finding(NamedTuple):
    """What the paper says, with its figures: the contrast is positive."""

    says: str
    contrast: Contrast


def above(more: Side, less: Side, figure: Callable[[Values, Values], float] = pearson) -> Contrast:
    return Contrast([more], [less], figure)


TRACT, CE, STAGE_1, SCORE_ONLY = map(Side, ("TRACT", "CE", "stage 1", "CE, score only"))
CE_DECODED, RAFT = Side("CE", "decoded"), Side("RAFT, score only")
SCORE_DECODED, TRACT_DECODED = Side("CE, score only", "decoded"), Side("TRACT", "decoded")
LAMBDAS = {"0.1": ".496", "0.2": ".643", "2": ".632", "5": ".595", "10": ".618"}
FINDINGS = (
    Finding("TRACT above cross-entropy with rationales, decoded (.650, .557)", above(TRACT, CE_DECODED)),
    Finding("TRACT above cross-entropy with rationales, RAIL (.650, .562)", above(TRACT, CE)),
    Finding("TRACT above stage 1 (.650, .556)", above(TRACT, STAGE_1)),
    Finding("RAIL above decoding, cross-entropy with rationales (.562, .557)", above(CE, CE_DECODED)),
    Finding("Cross-entropy with rationales above stage 1, both RAIL (.562, .556)", above(CE, STAGE_1)),
    Finding("Rationales help cross-entropy, decoded (.557, .488)", above(CE_DECODED, SCORE_DECODED)),
    Finding("RAFT above cross-entropy, score only, decoded (.623, .488)", above(RAFT, SCORE_DECODED)),
    Finding("The same, both RAIL (not published)", above(RAFT, SCORE_ONLY)),
    Finding("TRACT above RAFT, score only (.650, .623)", above(TRACT, RAFT)),
    Finding("TRACT above cross-entropy, score only, RAIL (not published)", above(TRACT, SCORE_ONLY)),
    Finding("Own rationales help cross-entropy (.616, .562)", above(Side("CE in both stages"), CE)),
    Finding("Own rationales above none, cross-entropy, RAIL (not published)",
            above(Side("CE in both stages"), SCORE_ONLY)),
    Finding("TRACT above cross-entropy in both stages (.650, .616)", above(TRACT, Side("CE in both stages"))),
    Finding("Stage 2 from the seed model above stage 2 from stage 1 (.650, .515)",
            above(TRACT, Side("stage 2 from stage 1"))),
    Finding("TRACT's expected score above its decoded one (.650, .572)", above(TRACT, TRACT_DECODED)),
    Finding("TRACT, decoded, above cross-entropy with rationales, decoded (.572, .557)",
            above(TRACT_DECODED, CE_DECODED)),
    *(Finding(f"Lambda 1 above {weight} (.650, {r})", above(TRACT, Side(f"TRACT, lambda {weight}")))
      for weight, r in LAMBDAS.items()),
    Finding("Four rationales (there: five) instead of one help a decoded score, of CE (there: Prometheus 2), more than "
            "TRACT's expected one (.105, .001)",
            Contrast([Side("CE", "decoded", 4), TRACT], [CE_DECODED, Side("TRACT", count=4)])),
    Finding("With as many, the decoded score is above TRACT's expected one (.696, .651)",
            above(Side("CE", "decoded", 4), Side("TRACT", count=4))),
    Finding("RMSE of stage 1 is larger on its own rationales than on annotated ones",
            above(STAGE_1, Side("stage 1", count=0), rmse)),
    Finding("RMSE on own rationales is larger for stage 1 than for TRACT", above(STAGE_1, TRACT, rmse)),
)  # fmt: skip


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
        cells = [mean(Contrast([Side(arm, method)]).values(runs)) if has(of_arm, method) else "" for method in SHOWN]
        errors, gaps = Contrast([Side(arm)], figure=rmse).values(runs), above(TRACT, Side(arm)).values(runs)
        unscored = np.mean([np.mean([score is None for score in run["own"]["1"]["RAIL"]]) for run in of_arm])
        rows.append([arm, *cells, "" if arm == "TRACT" else mean(gaps), mean(errors), f"{unscored:.1%}"])
    heads = ["Pearson's r, one rationale", *SHOWN.values(), "TRACT minus it, RAIL", "RMSE of RAIL", "unscored"]
    return table(heads, rows)


def has(runs: Sequence[Run], method: str) -> bool:
    """Whether the judges were read by the method; the best possible score is an expected one only."""
    return method in runs[0]["own"]["1"]


def counts_table(runs: Runs) -> str:
    rows = [
        [f"{arm}, {method}", *(mean(Contrast([Side(arm, method, count)]).values(runs)) for count in COUNTS)]
        for arm, method in product(("CE", "stage 1", "TRACT"), ("decoded", "RAIL"))
    ]
    return table(["Pearson's r by the number of rationales", *map(str, COUNTS)], rows)


def shift_table(runs: Runs) -> str:
    rows = []
    for arm in ("CE", "stage 1", "CE in both stages", "TRACT", "half annotated"):
        own, annotated = Side(arm), Side(arm, count=0)
        contrasts = Contrast([annotated], figure=rmse), Contrast([own], figure=rmse), above(own, annotated, rmse)
        rows.append([arm, *(mean(contrast.values(runs)) for contrast in contrasts)])
    return table(["RMSE of RAIL", "after annotated rationales", "after own", "difference"], rows)


def tasks_table(tasks: dict[str, Runs], by_heart: Sequence[Sequence[float]]) -> str:
    arms = [arm for arm in next(iter(tasks.values())) if sum(arm in runs for runs in tasks.values()) > 1]
    contrasts = {arm: Contrast([Side(arm)]) for arm in arms}
    for more, less in LESS:
        contrasts[f"{more} minus {less}"] = above(Side(more), Side(less))
    rows = []
    for name, contrast in contrasts.items():
        trained = [all(side.arm in runs for side in (*contrast.more, *contrast.less)) for runs in tasks.values()]
        found = zip(trained, tasks.values(), strict=True)
        rows.append([name, *(mean(contrast.values(runs)) if there else "" for there, runs in found)])
    shares = [f"share of stage 1's rationales {BY_HEART}", *map(mean, by_heart)]
    return table(["Pearson's r of RAIL", *tasks], [*rows, shares])


def findings_table(runs: Runs) -> str:
    rows = []
    for finding in FINDINGS:
        gaps, shares = finding.contrast.values(runs), finding.contrast.shares(runs)
        low, high = np.mean(gaps) - half(gaps), np.mean(gaps) + half(gaps)
        verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
        rows.append([finding.says, mean(gaps), f"{np.mean(shares):.1%}", verdict])
    return table(["the paper says (its figures)", "difference here", "records", ""], rows)


def draw(path: Path, runs: Runs) -> None:
    """Pearson's r of every arm, decoded and expected, with intervals."""
    figure = Figure(figsize=(7.2, 0.27 * len(runs) + 1.4), layout="constrained")
    ax = figure.subplots()
    for number, method in enumerate(("decoded", "RAIL")):
        values = [
            Contrast([Side(arm, method)]).values(runs) if has(of_arm, method) else [np.nan]
            for arm, of_arm in runs.items()
        ]
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
