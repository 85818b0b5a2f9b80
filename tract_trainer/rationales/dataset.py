"""Turns finished rationales into the stage-2 dataset, `train.parquet`, and a report of how they came out."""

import math
import re
from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from accelerate.logging import get_logger
from datasets import Dataset, Features, List, Value

from tract_trainer.data.hashing import digest
from tract_trainer.data.records import Prompt, as_messages, close
from tract_trainer.data.rendering import template_kwargs
from tract_trainer.data.store import Shards, save_results
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.metrics import agreement

logger = get_logger(__name__)

ROWS_AT_ONCE = 1000

SHARE_KEPT = 0.8  # of the rationales; a warning below it

LOST = {"dropped": "dropped", "forced": "closed by force", "prompt_too_long": "with too long a prompt"}
"""Counts of the report that are named where they are not 0."""

RENDERED = ("tools", "chat_template_kwargs")
"""Columns that TRL gives the chat template beside the prompt."""


class Request(NamedTuple):
    """
    One rationale to write: number `cot` for row `row`, which reads `prompt`, `rendered` with what it has of `RENDERED`,
    and has gold score `score`.
    """

    row: int
    cot: int
    prompt: Prompt
    score: float
    rendered: dict[str, Any]

    @property
    def key(self) -> str:
        return digest(self.row, self.cot, self.prompt, *([self.rendered] if self.rendered else []))

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Arguments of the chat template, as TRL makes them of the columns."""
        return template_kwargs({"prompt": self.prompt, **self.rendered}, {})


def same_words(prompt: Prompt, rationale: str) -> str:
    """A key that rationales of the same prompt share if they differ in white space only."""
    return digest(prompt, rationale.split())


def stage2_features(given: Features, prompt: str, config: JudgeConfig) -> Features:
    """
    Columns of the result, for rows of a dataset with the columns `given` that has its prompts in `prompt`. Types are
    those of that dataset where it has one: the rows at hand may leave empty what a later one fills.
    """
    text = Value("string")
    messages = List({"role": text, "content": text})
    is_text = isinstance(given[prompt], Value)
    features = {
        "prompt": messages if is_text and config.conversational else given[prompt],
        "completion": text if is_text and not config.conversational else messages,
        "score": Value("float64"),
    }
    if "tools" in given:
        features["tools"] = text
    # A dataset of records has no such column: its prompts were rendered as the judge's config says.
    kwargs = Dataset.from_list([{"chat_template_kwargs": config.chat_template_kwargs}]).features
    if found := {**kwargs, **given}["chat_template_kwargs"]:  # Parquet has no column of empty mappings
        features["chat_template_kwargs"] = found
    return Features(features)


def write_stage2(
    requests: Iterable[Request],
    features: Features,
    shards: Shards,
    folder: Path,
    config: JudgeConfig,
    unfinished: str,
    annotated: set[str],
) -> dict[str, Any]:
    """
    Writes both files from the finished rows of `shards`, in the order of `requests`.

    Returns:
        `dict`: the report.

    Raises:
        InputError: not one rationale came to a score.
    """
    tally, count = _Tally(config, unfinished, annotated), 0
    partial = folder / "train.parquet.tmp"
    written = ((request, shards[request.key]) for request in requests)
    kept = (_example(request, row["text"], config) for request, row in written if tally.add(request, row))
    with pq.ParquetWriter(partial, features.arrow_schema) as file:
        while rows := list(islice(kept, ROWS_AT_ONCE)):
            file.write_table(Dataset.from_list(rows, features=features).with_format("arrow")[:])
            count += len(rows)
    if not count:
        partial.unlink(missing_ok=True)
        if tally.too_long == len(tally.gold):
            raise InputError(
                f"Not one of {len(tally.gold)} prompts leaves the model room to write. Give shorter ones, or train a "
                "model that reads more tokens."
            )
        raise InputError(
            f"Not one of {len(tally.gold)} rationales came to {config.score_prefix!r} and a label; the longest has "
            f"{tally.longest} tokens. Is the model trained to end so? Otherwise raise max_new_tokens, or set "
            "unfinished='force'."
        )
    partial.replace(folder / "train.parquet")
    report = tally.report()
    save_results(folder / "report.json", report)
    verbatim, asked = report["verbatim"], report["rationales"]
    if report["kept"] < SHARE_KEPT * asked:
        logger.warning(
            f"Only {report['kept']:,} of {asked:,} rationales came to a score and make rows, and stage 2 is trained on "
            f"these. {report['share_finished_at_first_try']:.0%} did at the first draw: train stage 1 longer, raise "
            "max_new_tokens, or keep the others with unfinished='force'."
        )
    if 2 * verbatim > asked:
        logger.warning(
            f"{verbatim:,} of {asked:,} rationales are word for word an annotated one, so stage 2 would be trained on "
            "what stage 1 was, and be no better. Either the model knows its training data by heart (train stage 1 for "
            "fewer epochs, or on more records), or the prompts leave nothing else to say."
        )
    return report


def summary(report: dict[str, Any]) -> str:
    """The report in two sentences."""
    counts = [f"{report['retried']:,} drawn again"]
    counts += [f"{report[name]:,} {said}" for name, said in LOST.items() if report[name]]
    pearson = report["discarded_score_agreement"]["pearson"]
    verbatim = f" {report['verbatim']:,} are word for word an annotated one." if report["verbatim"] else ""
    return (
        f"{report['rationales']:,} rationales for {report['rows']:,} rows: "
        f"{report['share_finished_at_first_try']:.1%} finished at the first try, "
        f"{', '.join(counts)}, so {report['kept']:,} make rows; {report['mean_tokens']:.0f} tokens on average. "
        f"The scores they were drawn with, thrown away, agree with gold at r = {pearson:.3f}.{verbatim}"
    )


class _Tally:
    """Counts how the rationales came out."""

    def __init__(self, config: JudgeConfig, unfinished: str, annotated: set[str]) -> None:
        self.scale, self.unfinished, self.annotated = config.scale, unfinished, annotated
        self.rows = self.first_try = self.retried = self.too_long = self.open = self.tokens = self.longest = 0
        self.verbatim = 0
        self.sampled, self.gold = array("d"), array("d")

    def add(self, request: Request, written: dict[str, Any]) -> bool:
        """Counts a rationale and tells whether it is kept."""
        label = written["label"]
        self.rows += request.cot == 0
        self.first_try += label is not None and written["attempts"] == 1
        self.retried += written["attempts"] > 1
        fits = written["attempts"] > 0  # no attempt is made at a prompt that leaves no room
        self.too_long += not fits
        self.open += fits and label is None
        self.verbatim += bool(written["text"].split()) and same_words(request.prompt, written["text"]) in self.annotated
        self.tokens += written["num_tokens"]
        self.longest = max(self.longest, written["num_tokens"])
        self.sampled.append(math.nan if label is None else self.scale.value(label))
        self.gold.append(request.score)
        return fits and (label is not None or self.unfinished == "force")

    def report(self) -> dict[str, Any]:
        found = agreement(self.sampled, self.gold, intervals=False)
        return {
            "rows": self.rows,
            "rationales": len(self.gold),
            "finished_at_first_try": self.first_try,
            "share_finished_at_first_try": self.first_try / len(self.gold),
            "retried": self.retried,
            "dropped": self.open if self.unfinished == "drop" else 0,
            "forced": self.open if self.unfinished == "force" else 0,
            "prompt_too_long": self.too_long,
            "kept": len(self.gold) - self.too_long - (self.open if self.unfinished == "drop" else 0),
            "verbatim": self.verbatim,
            "mean_tokens": self.tokens / len(self.gold),
            "discarded_score_agreement": {
                name: found[name] for name in ("pearson", "spearman", "rmse", "n", "unscored")
            },
        }


def without_scores(text: str, config: JudgeConfig) -> str:
    """A self-generated rationale up to the first score that it writes: a later one would follow from it."""
    labels = "|".join(re.escape(label) for label in sorted(config.score_labels, key=len, reverse=True))
    found = re.search(rf"{re.escape(config.score_prefix)}({labels})(?!\w)", text)
    return text if found is None else text[: found.start()]


def _example(request: Request, rationale: str, config: JudgeConfig) -> dict[str, Any]:
    completion = close(
        without_scores(rationale, config),
        config.score_prefix,
        config.scale.nearest_label(request.score),
        config.score_separator,
    )
    prompt = as_messages(request.prompt) if config.conversational else request.prompt
    return {
        "prompt": prompt,
        "completion": completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}],
        "score": request.score,
        **request.rendered,
    }
