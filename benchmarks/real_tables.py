"""Turns the judgments that `real_model.py` kept into tables with intervals, and paired differences of judges.

Correlations are means over folds: each fold has judges of its own, and how high their scores lie is no agreement.
Intervals are of 95 %, with each instruction left out in turn; a difference is taken on the folds that both judges have
finished. `n` records, `G` instructions, `K` labels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from real_text import CONSTANT, FIGURES, Run, figure_with_interval
from real_text import TRIVIAL as PREDICTORS

from tract_trainer.metrics import interval

Floats = NDArray[np.float64]
VALUES = np.arange(1.0, 6.0)
TRIVIAL = "trivial and ceiling"
CEILING = "one run of GPT-4 (gold: the mean of the other two)"
GREEDY, SAMPLED, SEVERAL, RAIL, RAIL_SEVERAL = "greedy", "sampled", "mean of sampled", "RAIL", "RAIL, several"
ANNOTATED = "RAIL after the annotated rationale"
LOSSES = ("ce_loss", "score_loss")
METHODS = (GREEDY, SAMPLED, SEVERAL, RAIL, RAIL_SEVERAL, ANNOTATED)


class Side(NamedTuple):
    """Whose scores, read by which method."""

    name: str
    method: str = RAIL

    def __str__(self) -> str:
        return f"{self.name}, {self.method}" if self.method else self.name


CONTRASTS = (
    (Side("TRACT"), Side("CE", SAMPLED)),
    (Side("TRACT"), Side("CE", GREEDY)),
    (Side("TRACT", RAIL_SEVERAL), Side("CE", SEVERAL)),
    (Side("TRACT"), Side("CE")),
    (Side("TRACT", RAIL_SEVERAL), Side("CE", RAIL_SEVERAL)),
    (Side("TRACT"), Side("stage 1")),
    (Side("TRACT"), Side("CE in both stages")),
    (Side("TRACT"), Side("RAFT, score only")),
    (Side("TRACT"), Side("untrained")),
    (Side("TRACT", RAIL_SEVERAL), Side("length of response", "")),
    (Side("CE"), Side("CE", SAMPLED)),
    (Side("CE in both stages"), Side("CE")),
    (Side("CE in both stages", RAIL_SEVERAL), Side("CE", SEVERAL)),
    (Side("CE in both stages", RAIL_SEVERAL), Side("TRACT", RAIL_SEVERAL)),
    (Side("CE, then lambda 0.1", RAIL_SEVERAL), Side("CE", SEVERAL)),
    (Side("CE, then lambda 0.1", RAIL_SEVERAL), Side("TRACT", RAIL_SEVERAL)),
    (Side("CE, then lambda 0.1", RAIL_SEVERAL), Side("CE in both stages", RAIL_SEVERAL)),
    (Side("stage 1"), Side("CE")),
    (Side("stage 1", RAIL_SEVERAL), Side("CE", RAIL_SEVERAL)),
    (Side("stage 1", RAIL_SEVERAL), Side("TRACT", RAIL_SEVERAL)),
    (Side("stage 1", ANNOTATED), Side("CE", ANNOTATED)),
    (Side("RAFT, score only"), Side("CE, score only")),
    (Side("TRACT, lambda 0.1"), Side("TRACT")),
    (Side("TRACT, lambda 0.1"), Side("CE in both stages")),
    (Side("TRACT, lambda 0.1", RAIL_SEVERAL), Side("TRACT", RAIL_SEVERAL)),
    (Side("TRACT, lambda 0.1", RAIL_SEVERAL), Side("CE in both stages", RAIL_SEVERAL)),
    (Side("TRACT, renormalised", RAIL_SEVERAL), Side("TRACT", RAIL_SEVERAL)),
    (Side("TRACT, renormalised"), Side("TRACT")),
    (Side("TRACT, renormalised"), Side("CE in both stages")),
)


class Fold(NamedTuple):
    """The held-out records of a fold of a seed: gold scores and instructions, `(n,)`, GPT-4's runs `(n, 3)`."""

    seed: int
    fold: int
    gold: Floats
    groups: NDArray[np.str_]
    runs: Floats
    scores: dict[Side, Floats]  # (n,) each
    judgments: dict[str, dict[str, Any]]  # by arm

    @classmethod
    def read(cls, folder: Path) -> "Fold":
        files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        first, (_, seed, _, fold) = files[TRIVIAL], folder.name.split("-")
        scores = {Side(name, ""): np.array(row, float) for name, row in first["references"].items()}
        judgments = {arm: found for arm, found in files.items() if arm != TRIVIAL}
        for arm, found in judgments.items():
            scores |= {Side(arm, method): row for method, row in by_method(found).items()}
        return cls(
            int(seed), int(fold), *map(np.array, (first["gold"], first["groups"], first["scores"])), scores, judgments
        )


def by_method(found: Mapping[str, Any]) -> dict[str, Floats]:
    """Scores, `(n,)`, in each way that they can be read off the judgments of an arm."""
    labels, expected = {}, {}
    for kind, records in found["judgments"].items():  # (n, C) of C rationales
        labels[kind] = scored([[one["label"] for one in of_record] for of_record in records])
        probs = np.array(
            [[one["probs"] or [np.nan] * len(VALUES) for one in of_record] for of_record in records], float
        )
        expected[kind] = scored(probs @ VALUES / (probs.sum(-1) if found["renormalized"] else 1))
    if "sampled" not in labels:
        return {GREEDY: labels["greedy"][:, 0], RAIL: expected["greedy"][:, 0]}
    return {
        GREEDY: labels["greedy"][:, 0],
        SAMPLED: labels["sampled"][:, 0],
        SEVERAL: labels["sampled"].mean(1),
        RAIL: expected["sampled"][:, 0],
        RAIL_SEVERAL: expected["sampled"].mean(1),
        ANNOTATED: expected["annotated"][:, 0],
    }


def scored(scores: Any) -> Floats:
    """Scores, `(n, C)`, with the mean of the others where a rationale has none; the middle of the scale if none has."""
    found = np.array(scores, float)
    others = found[~np.isnan(found)]
    return np.where(np.isnan(found), others.mean() if len(others) else VALUES.mean(), found)


def figures(folds: Sequence[Fold], side: Side) -> dict[str, Floats]:
    """Figures `(1 + G,)`: of all records, then without each instruction; means over the folds and over the seeds."""
    groups = np.unique(np.concatenate([fold.groups for fold in folds]))  # (G,)
    kept = np.hstack([np.ones((len(groups), 1), bool), ~np.eye(len(groups), dtype=bool)])  # (G, 1 + G)
    found = []
    for seed in sorted({fold.seed for fold in folds}):
        own = [fold for fold in folds if fold.seed == seed]
        names = np.concatenate([fold.groups for fold in own])
        of_fold = np.repeat([fold.fold for fold in own], [len(fold.gold) for fold in own])
        of_rows = kept[np.searchsorted(groups, names)].T  # (1 + G, n)
        for pairs in zip(*(readings(fold, side) for fold in own), strict=True):
            scores, gold = (np.concatenate(of_folds) for of_folds in zip(*pairs, strict=True))
            run = Run({"": scores}, gold, names, of_fold)
            found.append([run.figures("", rows) for rows in of_rows])
    return {name: np.mean([[left[name] for left in one] for one in found], 0) for name in FIGURES}


def readings(fold: Fold, side: Side) -> Iterator[tuple[Floats, Floats]]:
    """Scores and gold, `(n,)` each, of a judge; or of each run of GPT-4 against the other two."""
    if side.name != CEILING:
        yield fold.scores[side], fold.gold
        return
    for run in range(fold.runs.shape[1]):
        yield fold.runs[:, run], np.delete(fold.runs, run, 1).mean(1)


def cell(found: Floats, name: str = "difference") -> str:
    """A figure, the first of `found`, with the jackknife's interval from the others."""
    parts = found[1:]
    error = np.sqrt((len(parts) - 1) / len(parts) * ((parts - parts.mean()) ** 2).sum())
    return figure_with_interval(float(found[0]), list(interval(float(found[0]), float(error), len(parts), name)))


def arms_of(folds: Sequence[Fold], order: Sequence[str]) -> list[str]:
    return [arm for arm in order if any(arm in fold.judgments for fold in folds)]


def figure_table(folds: Sequence[Fold], arms: Sequence[str], figure: str) -> str:
    """A row for each judge, a column for each method, on the folds that the judge has finished."""
    rows = []
    for arm in arms:
        own = [fold for fold in folds if arm in fold.judgments]
        sides = [Side(arm, method) for method in METHODS]
        cells = [cell(figures(own, side)[figure], figure) if side in own[0].scores else "" for side in sides]
        rows.append([arm, *cells, str(sum(len(fold.gold) for fold in own))])
    return table([FIGURES[figure], *METHODS, "records"], rows)


def reference_table(folds: Sequence[Fold]) -> str:
    """What needs no judge: the trivial predictors, and how far GPT-4 agrees with itself."""
    rows = []
    for side in [*(Side(name, "") for name in PREDICTORS), Side(CEILING, "")]:
        found = figures(folds, side)
        shown = ("rmse",) if side.name == CONSTANT else FIGURES
        rows.append([side.name, *(cell(found[name], name) if name in shown else "-" for name in FIGURES)])
    return table(["no judge", *FIGURES.values()], rows)


def contrast_table(folds: Sequence[Fold]) -> str:
    """Differences of figures, on the folds that both judges have finished."""
    rows = []
    for more, less in CONTRASTS:
        own = [fold for fold in folds if more in fold.scores and less in fold.scores]
        if own:
            a, b = figures(own, more), figures(own, less)
            cells = [cell(a[name] - b[name]) for name in FIGURES]
            rows.append([f"{more} - {less}", *cells, str(sum(len(fold.gold) for fold in own))])
    return table(["difference", *FIGURES.values(), "records"], rows)


def state_table(folds: Sequence[Fold], arms: Sequence[str]) -> str:
    """How the sampled rationales came out, and what each judge took."""
    rows = []
    for arm in arms:
        found = [fold.judgments[arm] for fold in folds if arm in fold.judgments]
        kind = "sampled" if "sampled" in found[0]["judgments"] else "greedy"
        of_all = [one for of_fold in found for record in of_fold["judgments"][kind] for one in record]
        mass = float(np.mean([sum(one["probs"] or [0]) for one in of_all]))
        ended = "" if kind == "greedy" else f"{np.mean([not one['forced'] for one in of_all]):.1%}"
        tokens = "" if kind == "greedy" else f"{np.mean([one['num_tokens'] for one in of_all]):.0f}"
        logs = [[line for line in one["training"].get("log", ()) if "ce_loss" in line] for one in found]
        last = [figure_with_interval(np.mean([log[-1][name] for log in logs])) if all(logs) else "" for name in LOSSES]
        minutes = [np.mean([one["training"].get("seconds", 0) for one in found]) / 60]
        minutes.append(np.mean([one["seconds"] for one in found]) / 60)
        rows.append([arm, f"{mass:.2f}", ended, tokens, *last, *(f"{one:.1f}" for one in minutes)])
    heads = [
        "",
        "probability on the scale",
        "ended by themselves",
        "tokens",
        "last cross-entropy",
        "last squared error",
    ]
    return table([*heads, "minutes to train", "minutes to read"], rows)


def training_table(folder: Path) -> str:
    """How judges were trained, those only learned from as well; means over the folds, but for the gradient norm."""
    rows, reports = [], " rationales"
    names = {path.stem for path in folder.glob("seed-*/training/*.json") if not path.stem.endswith(reports)}
    for arm in sorted(names):
        runs = [json.loads(path.read_text())["log"] for path in sorted(folder.glob(f"seed-*/training/{arm}.json"))]
        steps = [[line for line in run if "ce_loss" in line] for run in runs]
        if not all(steps):
            continue  # too short to be logged
        norms = [line["grad_norm"] for run in steps for line in run]
        last = np.mean([run[-1]["ce_loss"] for run in steps])
        drawn = [json.loads(path.read_text()) for path in sorted(folder.glob(f"seed-*/training/{arm}{reports}.json"))]
        ended = f"{np.mean([report['share_finished_at_first_try'] for report in drawn]):.1%}" if drawn else ""
        agree = " ".join(figure_with_interval(report["discarded_score_agreement"]["pearson"]) for report in drawn)
        rows.append(
            [arm, f"{np.median(norms):.2f} ({min(norms):.1f} to {max(norms):.1f})", f"{last:.2f}", ended, agree]
        )
    heads = [
        "",
        "gradient norm, median (range)",
        "last cross-entropy",
        "own rationales that ended at once",
        "r of their scores",
    ]
    return table(heads, rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_judgments(folder: Path, arm: str, count: int) -> str:
    """The first held-out records of the first fold, with the first sampled rationale: none is chosen."""
    path = next(iter(sorted(folder.glob(f"seed-*/{arm}.json"))), None)
    if path is None:
        raise SystemExit(f"No judgments of {arm!r} are finished in {folder}.")
    found = json.loads(path.read_text())
    parts = []
    for i in range(min(count, len(found["gold"]))):
        one = found["judgments"]["sampled"][i][0]
        probs = ", ".join(f"{label}: {p:.2f}" for label, p in zip(range(1, 6), one["probs"], strict=True))
        expected = float(np.dot(one["probs"], VALUES))
        head = f"{found['groups'][i]}, gold {found['gold'][i]:.2f}, expected {expected:.2f}, written {one['label']}"
        parts.append(f"{head} ({probs})\n  {one['text']}")
    return "\n\n".join(parts)


def summary(folder: Path, order: Sequence[str]) -> str:
    """Tables of what is finished in `folder`, in Markdown."""
    folds = [Fold.read(path.parent) for path in sorted(folder.glob(f"seed-*/{TRIVIAL}.json"))]
    if not folds:
        raise SystemExit(f"Nothing is finished in {folder}.")
    arms = arms_of(folds, order)
    n, groups = sum(len(fold.gold) for fold in folds), {name for fold in folds for name in fold.groups}
    about = f"{n} held-out records of {len(groups)} instructions, in {len(folds)} folds."
    tables = [figure_table(folds, arms, figure) for figure in FIGURES]
    about_judges = [contrast_table(folds), state_table(folds, arms), training_table(folder)]
    return "\n\n".join([about, reference_table(folds), *tables, *about_judges])
