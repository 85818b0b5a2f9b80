"""Draws the pictures of the documentation.

    tract demo && python docs/pictures.py demo    # two minutes; without a folder, only those that need no judge

Writes to `docs/images`. The judges are those of `tract demo`, and so are the held-out records.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tract_trainer import Judge, Judgment, agreement
from tract_trainer.cli.demo_task import make_records
from tract_trainer.data.hashing import derive_seed
from tract_trainer.losses import squared_error

IMAGES = Path(__file__).parent / "images"
DECODED, EXPECTED, GREY = "#D55E00", "#0072B2", "#8a8a8a"  # one colour per method on every page
LABELS = np.arange(1, 6)
NUM_COTS = 8
STYLE = {"font.size": 11, "svg.hashsalt": "tract", "axes.spines.top": False, "axes.spines.right": False}

Judged = dict[str, list[Judgment]]


def main(argv: Sequence[str]) -> None:
    drawings: dict[str, Any] = {
        "losses.svg": losses, "stages.svg": stages, "distribution.svg": distribution, "results.svg": results
    }  # fmt: skip
    with rc_context(STYLE):
        for name, draw in drawings.items():
            save(draw(), name)
        for folder in argv:
            gold, judged = judge_held_out(Path(folder))
            save(demo(gold, judged), "demo.png")
            save(expected(gold, judged), "expected.png")
            save(rationales(gold, judged), "rationales.svg")
            save(thresholds(gold, judged["tract"]), "thresholds.svg")


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=110, metadata={"Date": None} if name.endswith(".svg") else None)


def losses() -> Figure:
    """Both losses of a judge that gives .9 to one wrong label and .1 to the gold score, 5."""
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    wrong, gold = [4, 3, 2, 1], torch.tensor([5.0])
    probs = torch.full((4, 5), 1e-9)
    for row, label in enumerate(wrong):
        probs[row, label - 1], probs[row, 4] = 0.9, 0.1
    error = squared_error(probs.log(), torch.arange(1.0, 6.0), gold.expand(4)).numpy()
    for ax, values, title, color in (
        (left, -probs[:, 4].log().numpy(), "Cross-entropy", DECODED),
        (right, error, "Squared error of the expected score", EXPECTED),
    ):
        bars = ax.bar([str(label) for label in wrong], values, color=color, width=0.6)
        ax.bar_label(bars, fmt="%.1f", padding=2)
        ax.set(title=title, xlabel="label that gets probability .9; gold is 5", ylabel="loss")
        ax.margins(y=0.15)
    return figure


def stages() -> Figure:
    """What each stage of TRACT starts from, what it is trained on, and what it gives."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-1, 101), ylim=(1, 43))
    ax.axis("off")
    box(ax, 0, 29, "prompts with annotated\nrationales and gold scores", "#eeeeee")
    box(ax, 38, 29, "stage 1\ntrain the seed model", "#cfe3f3")
    box(ax, 76, 29, "stage-1 judge", "#ffffff")
    box(ax, 76, 3, "the judge writes its own\nrationales; its scores are\nreplaced by the gold scores", "#eeeeee")
    box(ax, 38, 3, "stage 2\ntrain the seed model again", "#cfe3f3")
    box(ax, 0, 3, "TRACT judge", "#ffffff")
    for start, end in (((24, 35), (38, 35)), ((62, 35), (76, 35)), ((76, 9), (62, 9)), ((38, 9), (24, 9))):
        arrow(ax, start, end)
    arrow(ax, (88, 29), (88, 15))
    box(ax, 38, 17.5, "seed model", "#ffffff", height=7)
    arrow(ax, (50, 24.5), (50, 29))
    arrow(ax, (50, 17.5), (50, 15))
    return figure


def box(ax: Axes, x: float, y: float, text: str, color: str, height: float = 12) -> None:
    ax.add_patch(FancyBboxPatch((x, y), 24, height, boxstyle="round,pad=0,rounding_size=1.2", fc=color, ec="#333333"))
    ax.text(x + 12, y + height / 2, text, ha="center", va="center", fontsize=9.5)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "shrinkA": 0, "shrinkB": 0})


def distribution() -> Figure:
    """One made-up judgment: its distribution, the likeliest label, the expected score and the standard deviation."""
    probs = np.array([0.02, 0.08, 0.25, 0.40, 0.25])
    score = float(probs @ LABELS)
    std = float(np.sqrt(probs @ (LABELS - score) ** 2))
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    ax.bar(LABELS, probs, width=0.6, color="#d9d9d9", edgecolor=["#d9d9d9"] * 3 + [DECODED] + ["#d9d9d9"], linewidth=2)
    ax.annotate("likeliest label: 4", (4, 0.405), (4, 0.46), ha="center", color=DECODED)
    ax.errorbar(score, 0.12, xerr=std, fmt="o", color=EXPECTED, markersize=8, capsize=4, linewidth=2)
    ax.text(score, 0.145, f"expected score {score:.2f} ± std {std:.2f}", ha="center", color=EXPECTED)
    ax.set(xlabel="label", ylabel="probability", xticks=LABELS, ylim=(0, 0.52))
    return figure


def results() -> Figure:
    """The miniature's table on the page of the results."""
    page = (IMAGES.parent / "results.md").read_text(encoding="utf-8").replace("*", "")
    number = r"(\.\d+) ± (\.\d+)"
    rows = re.findall(rf"^\| (.+?) \| {number} \| {number} \|", page, flags=re.M)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    ax, places = figure.subplots(), np.arange(len(rows))
    for column, label, color, shift in ((1, "decoded label", DECODED, -0.1), (3, "expected score", EXPECTED, 0.1)):
        values, reach = (np.array([float(row[column + i]) for row in rows]) for i in (0, 1))
        ax.errorbar(values, places + shift, xerr=reach, fmt="o", markersize=5, color=color, label=label)
    ax.set(yticks=places, yticklabels=[row[0] for row in rows], xlabel="Pearson's r with gold, 95 % intervals")
    ax.margins(y=0.08)
    ax.invert_yaxis()
    ax.grid(axis="x", color="0.9")
    ax.legend(loc="lower left", fontsize=9)
    return figure


def judge_held_out(folder: Path, seed: int = 42) -> tuple[np.ndarray, Judged]:
    """Gold scores of the demo's held-out records, `(n,)`, and the judgments of two of its judges."""
    records = make_records(1500, derive_seed(seed, "held out"))
    judged = {}
    for name in ("cross_entropy", "tract"):
        judge = Judge.from_pretrained(folder / name, batch_size=128)
        judged[name] = judge.score(records, NUM_COTS, seed=seed, max_new_tokens=32)
    return np.array([record["score"] for record in records]), judged


def decoded_scores(judgments: Sequence[Judgment], num_cots: int = 1) -> np.ndarray:
    """Mean of the labels of the first rationales, `(n,)`; NaN where none of them has a score."""
    labels = [[float(r.label) for r in j.rationales[:num_cots] if r.label is not None] for j in judgments]
    return np.array([np.mean(found) if found else np.nan for found in labels])


def distributions(judgments: Sequence[Judgment], num_cots: int = 1) -> np.ndarray:
    """Mean distribution after the first rationales, `(n, 5)`; NaN where none of them has a score."""
    found = [[r.log_probs for r in j.rationales[:num_cots] if r.log_probs is not None] for j in judgments]
    return np.array([np.exp(rows).mean(0) if rows else np.full(5, np.nan) for rows in found])


def demo(gold: np.ndarray, judged: Judged) -> Figure:
    return scatters(
        gold,
        {
            "Cross-entropy, decoded": (decoded_scores(judged["cross_entropy"]), DECODED),
            "TRACT, expected score": (distributions(judged["tract"]) @ LABELS, EXPECTED),
        },
    )


def expected(gold: np.ndarray, judged: Judged) -> Figure:
    return scatters(
        gold,
        {
            "TRACT, decoded": (decoded_scores(judged["tract"]), DECODED),
            "TRACT, expected score": (distributions(judged["tract"]) @ LABELS, EXPECTED),
        },
    )


def scatters(gold: np.ndarray, panels: dict[str, tuple[np.ndarray, str]]) -> Figure:
    """Predicted against gold scores; every title names the judge, r and RMSE."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    shift = np.random.default_rng(0).uniform(-0.2, 0.2, (2, len(gold)))
    for ax, (title, (scores, color)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        integers = np.isin(scores[np.isfinite(scores)], LABELS).all()
        ax.scatter(gold + shift[0], scores + shift[1] * integers, s=7, color=color, alpha=0.25, linewidths=0)
        ax.plot(LABELS, LABELS, "--", color=GREY, label="predicted = gold")
        means = [np.nanmean(scores[gold == label]) for label in LABELS]
        ax.plot(LABELS, means, "o-", color="black", markersize=5, label="mean at each gold score")
        figures = agreement(scores, gold)
        ax.set_title(f"{title}: r = {figures['pearson']:.2f}, RMSE = {figures['rmse']:.2f}", fontsize=10.5)
        ax.set(xlabel="gold score (jittered)", xticks=LABELS, yticks=LABELS)
    figure.axes[0].set_ylabel("predicted score")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    return figure


def rationales(gold: np.ndarray, judged: Judged) -> Figure:
    """Pearson's r against the number of rationales, for both judges and both readings."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax, counts = figure.subplots(), [1, 2, 4, 8]
    for name, title, line in (("cross_entropy", "cross-entropy", "--"), ("tract", "TRACT", "-")):
        by_label = [agreement(decoded_scores(judged[name], k), gold)["pearson"] for k in counts]
        by_mean = [agreement(distributions(judged[name], k) @ LABELS, gold)["pearson"] for k in counts]
        ax.plot(counts, by_label, f"o{line}", color=DECODED, label=f"{title}, decoded")
        ax.plot(counts, by_mean, f"o{line}", color=EXPECTED, label=f"{title}, expected")
    ax.set(xscale="log", xlabel="rationales per record", ylabel="Pearson's r with gold")
    ax.set_xticks(counts, map(str, counts), minor=False)
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return figure


def thresholds(gold: np.ndarray, judgments: Sequence[Judgment]) -> Figure:
    """Error of the records that are kept when those with the largest `std` are passed on."""
    probs = distributions(judgments)
    scored = np.isfinite(probs[:, 0])
    probs, gold = probs[scored] / probs[scored].sum(1, keepdims=True), gold[scored]
    errors, scores = (distributions(judgments)[scored] @ LABELS - gold) ** 2, probs @ LABELS
    order = np.argsort(np.sqrt(probs @ LABELS**2 - scores**2))
    kept = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    curve = np.sqrt(errors[order].cumsum() / kept)
    ax.plot(100 * kept[50:] / len(kept), curve[50:], color=EXPECTED, label="TRACT, expected score, smallest std first")
    ax.axhline(curve[-1], color=GREY, linestyle="--", label="all records")
    ax.set(xlabel="share of records kept, %", ylabel="RMSE of those kept", ylim=(0, None), xlim=(0, 100))
    ax.legend(fontsize=9, loc="lower right")
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
