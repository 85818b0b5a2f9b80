"""What would be trained on: which tokens, which score, which rows would be lost.

The rows are prepared by the trainer itself, on a model without weights. `T` is the number of tokens of a row.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig

from tract_trainer.scale import IGNORE_INDEX, ScoreTokens
from tract_trainer.training.config import RegressionAwareSFTConfig
from tract_trainer.training.score_labels import Cut, describe, targeted
from tract_trainer.training.trainer import RegressionAwareSFTTrainer

BINS, WIDTH, SHOWN_TOKENS = 10, 40, 400


class Inspected(NamedTuple):
    """
    Prepared rows, whole and in their order: `input_ids`, `labels` and `score_labels`, `(T,)` each, and `score_problem`,
    empty where the score can be used. `cut` is how they would be shortened.
    """

    rows: Dataset
    tokens: ScoreTokens
    cut: Cut


def inspect_dataset(dataset: Dataset, args: RegressionAwareSFTConfig, model: ModelConfig) -> Inspected:
    """`dataset` as [`RegressionAwareSFTTrainer`] would train on it with `args`. No weight is loaded."""
    name = str(model.model_name_or_path)
    loading = {"revision": model.model_revision, "trust_remote_code": args.trust_remote_code}
    config = AutoConfig.from_pretrained(name, **loading)
    known = getattr(transformers, (config.architectures or [""])[0], None)  # a model with images is none for text alone
    with torch.device("meta"):
        empty = known(config) if known else AutoModelForCausalLM.from_config(config, **loading)
    args = copy.copy(args)
    args.push_to_hub = False  # it would make the repository
    tokenizer = AutoTokenizer.from_pretrained(name, **loading)
    trainer = _Preparation(model=empty, args=args, train_dataset=dataset, processing_class=tokenizer)
    return Inspected(trainer.whole, trainer.score_tokens, Cut.of(args, bool(args.packing)))


class _Preparation(RegressionAwareSFTTrainer):
    """A trainer that prepares its dataset and nothing else."""

    whole: Dataset

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """There is nothing to move."""

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        rows = self._whole_rows(dataset, processing_class, args, formatting_func, dataset_name)
        self.whole = targeted(rows, self.score_tokens, Cut.of(args, packing), "Finding the scores")
        return self.whole


def view(inspected: Inspected, count: int = 3) -> RenderableType:
    """The first `count` rows in colour, and counts of all."""
    rows = inspected.rows.select(range(min(count, len(inspected.rows))))
    shown: list[RenderableType] = [_row(row, number, inspected.tokens) for number, row in enumerate(rows)]
    lengths = [len(ids) for ids in inspected.rows["input_ids"]]
    scores = [float(np.nanmax(row)) for row in inspected.rows["score_labels"] if not np.isnan(row).all()]
    legend = Text.assemble(
        ("prompt", "dim"), "  ", ("trained in the cross-entropy", "cyan"), "  ", ("score", "bold black on yellow")
    )
    return Group(legend, *shown, _histogram(lengths), _scores(scores), _losses(inspected))


def _row(row: dict[str, Any], number: int, tokens: ScoreTokens) -> Panel:
    start = max(0, len(row["input_ids"]) - SHOWN_TOKENS)
    text = Text(f"[{start:,} tokens before]\n" if start else "")
    target, ids, gold = "no score", row["input_ids"], np.asarray(row["score_labels"], dtype=np.float32)
    written: set[int] = set()
    for place in np.flatnonzero(~np.isnan(gold)).tolist():
        end = place + tokens.label_length(ids[place:])
        target = f"target {gold[place]:g}, written {str(tokens.tokenizer.decode(ids[place:end])).strip()!r}"
        written.update(range(place, end))
    for place in range(start, len(ids)):
        piece = str(tokens.tokenizer.decode([ids[place]], clean_up_tokenization_spaces=False))
        text.append(piece, _style(row["labels"][place], place in written))
    title = f"row {number}, {len(row['input_ids']):,} tokens: {target}"
    return Panel(text, title=title, subtitle=row["score_problem"] or None)


def _style(label: int, is_score: bool) -> str:
    if is_score:
        return "bold black on yellow"
    return "dim" if label == IGNORE_INDEX else "cyan"


def _histogram(lengths: Sequence[int]) -> Table:
    bins = min(BINS, max(lengths) - min(lengths) + 1)  # whole numbers, so none with the same in two
    counts, edges = np.histogram(lengths, bins=np.linspace(min(lengths), max(lengths) + 1, bins + 1))
    middle, most = int(np.median(lengths)), max(lengths)
    names = [f"{int(np.ceil(low)):,} to {int(np.ceil(high)) - 1:,}" for low, high in pairwise(edges)]
    return _bars(f"Tokens a row: median {middle:,}, longest {most:,}", names, counts.tolist())


def _scores(scores: Sequence[float]) -> Table:
    names, counts = np.unique(np.round(scores, 4), return_counts=True)
    if len(counts) > 2 * BINS:
        counts, edges = np.histogram(scores, bins=BINS)
        return _bars("Gold scores", [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)], counts.tolist())
    return _bars("Gold scores", [f"{score:g}" for score in names], counts.tolist())


def _bars(title: str, names: Sequence[str], counts: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for justify in ("right", "right", "left"):
        table.add_column(justify=justify)  # type: ignore[arg-type]
    most = max(counts, default=0)
    for name, count in zip(names, counts, strict=True):
        table.add_row(name, f"{count:,}", "█" * (WIDTH * count // most if count else 0))
    return table


def _losses(inspected: Inspected) -> Text:
    """A sentence for each kind of row that has no usable score."""
    problems = inspected.rows["score_problem"][:]
    text = Text(f"{sum(not problem for problem in problems):,} of {len(problems):,} rows have a score to train on.")
    for problem, count in Counter(filter(None, problems)).most_common():
        first = problems.index(problem)
        complaint, shown, remedy = describe(problem, inspected.rows[first], inspected.tokens, inspected.cut)
        text.append(f"\n{count:,} rows {complaint}; the first is row {first}, {shown}. {remedy}.", "bold red")
    return text
