"""The stage-2 dataset, `train.parquet`, from finished rationales, and `report.json` with their counts."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
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
RENDERED = ("tools", "chat_template_kwargs")  # columns that TRL gives the chat template beside the prompt
# Counts of the report that the summary names where they are not 0.
LOST = {
    "dropped": "dropped",
    "forced": "closed by force",
    "prompt_too_long": "with too long a prompt",
    "refused": "refused by the server",
}


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


class Outcome(NamedTuple):
    """What became of one rationale: `finished`, `open` (without a score), `prompt_too_long` or `refused`."""

    row: int
    state: str
    attempts: int
    num_tokens: int
    verbatim: bool
    sampled: float  # NaN without a score
    gold: float


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
    Writes both files from the finished rows of `shards`, in the order of `requests`, and returns the report. An
    InputError if no rationale can be kept.
    """
    outcomes: list[Outcome] = []

    def examples() -> Iterator[dict[str, Any]]:
        for request in requests:
            written = shards[request.key]
            outcome = _outcome(request, written, config, annotated)
            outcomes.append(outcome)
            if outcome.state == "finished" or (outcome.state, unfinished) == ("open", "force"):
                yield _example(request, written["text"], config)

    kept, partial = examples(), folder / "train.parquet.tmp"
    with pq.ParquetWriter(partial, features.arrow_schema) as file:
        while rows := list(islice(kept, ROWS_AT_ONCE)):
            file.write_table(Dataset.from_list(rows, features=features).with_format("arrow")[:])
    report = _report(outcomes, unfinished)
    if not report["kept"]:
        partial.unlink()
        raise InputError(_why_none(report, max(one.num_tokens for one in outcomes), config))
    partial.replace(folder / "train.parquet")
    save_results(folder / "report.json", report)
    _warn(report)
    return report


def _outcome(request: Request, written: dict[str, Any], config: JudgeConfig, annotated: set[str]) -> Outcome:
    label, attempts, text = written["label"], written["attempts"], written["text"]
    state = "finished" if label is not None else "refused" if written["error"] else "open"
    return Outcome(
        row=request.row,
        state="prompt_too_long" if attempts == 0 else state,  # nothing is drawn after a prompt that leaves no room
        attempts=attempts,
        num_tokens=written["num_tokens"],
        verbatim=bool(text.split()) and same_words(request.prompt, text) in annotated,
        sampled=math.nan if label is None else config.scale.value(label),
        gold=request.score,
    )


def _report(outcomes: list[Outcome], unfinished: str) -> dict[str, Any]:
    states, asked = Counter(one.state for one in outcomes), len(outcomes)
    first_try = sum(one.state == "finished" and one.attempts == 1 for one in outcomes)
    dropped, forced = (states["open"] if unfinished == what else 0 for what in ("drop", "force"))
    found = agreement([one.sampled for one in outcomes], [one.gold for one in outcomes], intervals=False)
    return {
        "rows": len({one.row for one in outcomes}),
        "rationales": asked,
        "finished_at_first_try": first_try,
        "share_finished_at_first_try": first_try / asked,
        "retried": sum(one.attempts > 1 for one in outcomes),
        "dropped": dropped,
        "forced": forced,
        "prompt_too_long": states["prompt_too_long"],
        "refused": states["refused"],
        "kept": states["finished"] + forced,
        "verbatim": sum(one.verbatim for one in outcomes),
        "mean_tokens": sum(one.num_tokens for one in outcomes) / asked,
        "discarded_score_agreement": {name: found[name] for name in ("pearson", "spearman", "rmse", "n", "unscored")},
    }


def _why_none(report: dict[str, Any], longest: int, config: JudgeConfig) -> str:
    """Why no rationale is kept, and what to do."""
    asked, refused = report["rationales"], report["refused"]
    if report["prompt_too_long"] == asked:
        return (
            f"Not one of {asked} prompts leaves the model room to write. Give shorter ones, or train a model that "
            "reads more tokens."
        )
    return (
        f"Not one of {asked} rationales ends with {config.score_prefix!r} and a label; the longest has {longest} "
        f"tokens, and the server refused {refused} prompts. Is the model trained to end so? Otherwise raise "
        "max_new_tokens, or set unfinished='force'."
    )


def _warn(report: dict[str, Any]) -> None:
    verbatim, asked = report["verbatim"], report["rationales"]
    if report["kept"] < SHARE_KEPT * asked:
        logger.warning(
            f"Only {report['kept']:,} of {asked:,} rationales are kept, and stage 2 is trained on these. "
            f"{report['share_finished_at_first_try']:.0%} had a score at the first draw: train stage 1 longer, raise "
            "max_new_tokens, or keep the others with unfinished='force'."
        )
    if 2 * verbatim > asked:
        logger.warning(
            f"{verbatim:,} of {asked:,} rationales are word for word an annotated one, so stage 2 would be trained on "
            "what stage 1 was, and be no better. Either the model has memorised its training data (train stage 1 for "
            "fewer epochs, or on more records), or the prompts leave nothing else to say."
        )


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
