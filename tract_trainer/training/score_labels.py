"""Turns tokenised rows into rows with `score_labels`, and says which rows have no usable score.

`score_labels` is to the squared error what `labels` is to the cross-entropy: one number per token, the gold score at
the token that writes it and NaN elsewhere. It is found on whole rows, before they are cut or packed, because afterwards
an earlier closing phrase can look like the real one. `T` is the number of tokens of a row.
"""

import copy
import math
import numbers
from collections import Counter
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, concatenate_datasets
from trl import SFTConfig, pack_dataset

from tract_trainer.data.datasets import AnyDataset
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import completion_text, unanswered
from tract_trainer.data.rendering import answer_end, asked_length, drops_thoughts, template_kwargs
from tract_trainer.errors import InputError
from tract_trainer.scale import IGNORE_INDEX, FoundScore, ScoreScale, ScoreTokens, decode

COLUMNS = ["input_ids", "labels", "score_labels"]
CHANNELS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn that chat templates write apart from its `content`."""
SAMPLED_ROWS = 100  # whose text shows what stands before the prefix


class Lost(NamedTuple):
    """Rows without a usable score for one reason: how many, what is wrong with them, and the whole story."""

    rows: int
    complaint: str
    sentence: str


class Cut(NamedTuple):
    """How rows will be shortened once their score is found."""

    max_length: int | None = None
    how: str = "keep_start"  # or "keep_end", or "split"

    @classmethod
    def of(cls, args: SFTConfig, packing: bool) -> "Cut":
        if not packing:
            return cls(args.max_length, args.truncation_mode)
        return cls(args.max_length, "split" if args.packing_strategy == "bfd_split" else "keep_start")

    def keeps(self, position: int, length: int) -> bool:
        """Whether the token at `position` of a row of `length` survives with the token that predicts it."""
        if self.max_length is None:
            return True
        if self.how == "split":
            return position % self.max_length > 0
        return position > length - self.max_length if self.how == "keep_end" else position < self.max_length


def target_row(row: dict[str, Any], tokens: ScoreTokens, cut: Cut) -> dict[str, Any]:
    """
    `score_labels`, `(T,)` float32, of a row of [`gold_scores`], and its `score_problem`, a key of `PROBLEMS` or `""`.
    `cut` is how the row will be shortened.
    """
    row = {**row, **{name: np.asarray(row[name]) for name in ("input_ids", "labels")}}
    length = len(row["input_ids"])
    scores, problem = gold_scores(row, tokens)
    ends = {start: start + tokens.label_length(row["input_ids"][start:]) for start in scores}
    if not problem and not all(cut.keeps(place, length) for span in ends.items() for place in range(*span)):
        problem = "cut"
    score_labels = np.full(length, np.nan, dtype=np.float32)
    for place, score in scores.items() if not problem else ():
        score_labels[place] = score
    return {"score_labels": score_labels, "score_problem": problem}


# What is wrong with the rows, and what to do about it.
PROBLEMS = {
    "missing": (
        "hold no score",
        "Expected {prefix!r} and one of {labels} among the trained tokens. End the completions with it, or set "
        "score_prefix to the text that yours have",
    ),
    "cut": ("lose their score to max_length={max_length}", "Raise max_length"),
    "empty": ("have an empty `score`", "Fill in the column, or remove it to use the labels in the text"),
    "off_scale": (
        "have a `score` off the scale of {low:g} to {high:g}",
        "Correct the column, or set score_labels and score_values to its scale",
    ),
    "labels_off_scale": (
        "have `score_labels` off the scale of {low:g} to {high:g}",
        "Correct that column, or set the settings score_labels and score_values to its scale",
    ),
    "asked": (
        "do not begin with the tokens that a judge would be asked with",
        "Use a chat template that renders a prompt alone as it does before an answer, and end prompts of plain text "
        "with a line break",
    ),
    "no_content": ("have a turn without `content`", "Give every turn its text, or leave it out"),
    "thoughts": (
        "have a think block in their rationale that the chat template drops",
        "Use a chat template that keeps it (chat_template_path), or remove the tags, such as <think>, from the "
        "rationales",
    ),
    "ends_early": ("hold an end-of-turn token before their score", "Remove such tokens from the rationales"),
    "mismatch": (
        "end with a label that is not the nearest to their `score`",
        "Correct the text or the column, or remove the column to use the labels in the text",
    ),
}

OUTCOMES = {
    "error": ", or drop such rows with missing_score='drop'.",
    "drop": ". They are left out.",
    "keep": ". What is trained of them counts in the cross-entropy alone.",
}

UNTRAINED = "have no trained token within max_length"  # and no missing_score can keep them


def describe(problem: str, row: dict[str, Any], tokens: ScoreTokens, cut: Cut) -> tuple[str, str, str]:
    """What is wrong, how the example `row` shows it, and the remedy: three pieces of a sentence."""
    facts = {
        "prefix": tokens.prefix,
        "labels": list(tokens.scale.labels),
        "max_length": cut.max_length,
        "low": tokens.scale.low,
        "high": tokens.scale.high,
    }
    complaint, remedy = (text.format(**facts) for text in PROBLEMS[problem])
    trained = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORE_INDEX]
    shown = f"ending {tokens.tokenizer.decode(trained)[-80:]!r}"
    if problem in ("off_scale", "mismatch", "empty"):
        shown = f"with score {row['score']}, {shown}"
    return complaint, shown, remedy


def add_score_labels(
    dataset: AnyDataset, tokens: ScoreTokens, cut: Cut, missing_score: str, name: str, num_proc: int | None = None
) -> tuple[AnyDataset, list[Lost]]:
    """
    Adds the column `score_labels` and applies `missing_score` to the rows without a usable score.

    Returns the dataset, and each kind of row that was dropped or kept without a score. With `missing_score="error"`, a
    row without one is an InputError; for an [`~datasets.IterableDataset`], when the row is read.
    """
    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(target_row, fn_kwargs={"tokens": tokens, "cut": cut})
        if missing_score == "error":
            dataset = dataset.map(_refuse, fn_kwargs={"tokens": tokens, "cut": cut, "name": name})
        elif missing_score == "drop":
            dataset = dataset.filter(lambda row: not row["score_problem"])
        return dataset.remove_columns("score_problem"), []

    dataset = targeted(dataset, tokens, cut, f"Finding the scores of the {name} dataset", num_proc)
    problems = dataset["score_problem"][:]
    lost: list[Lost] = [
        _lost(problem, count, problems, dataset, tokens, cut, name, missing_score)
        for problem, count in Counter(filter(None, problems)).most_common()
    ]
    sentences: list[str] = [kind.sentence for kind in lost]
    if lost and missing_score == "error":
        raise InputError("\n".join(sentences))
    if lost and missing_score == "drop":
        dataset = dataset.select([i for i, problem in enumerate(problems) if not problem])
    if len(dataset) == 0:
        raise InputError("\n".join([f"No row of the {name} dataset is left to use.", *sentences]))
    return dataset.remove_columns("score_problem"), lost


def targeted(dataset: Dataset, tokens: ScoreTokens, cut: Cut, desc: str, num_proc: int | None = None) -> Dataset:
    """`dataset` with the columns of [`target_row`]."""
    found = dataset.with_format("arrow").map(
        _target_table,
        batched=True,
        fn_kwargs={"features": dataset.features, "tokens": tokens, "cut": cut},
        new_fingerprint=_fingerprint(dataset, tokens, cut),
        num_proc=num_proc,
        desc=desc,
        remove_columns=dataset.column_names,  # so that the others are not written once more
    )
    others = dataset.remove_columns([name for name in found.column_names if name in dataset.column_names])
    joined = concatenate_datasets([others, found.with_format(None)], axis=1)
    joined.info.dataset_name = dataset.info.dataset_name  # for the model card
    return joined


def _target_table(table: pa.Table, features: Features, tokens: ScoreTokens, cut: Cut) -> dict[str, list[Any]]:
    """The columns of [`target_row`]. `datasets` would read tokens as lists, which takes longer than to find a score."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in COLUMNS:
            columns[name] = column.combine_chunks().to_numpy(zero_copy_only=False)  # of arrays, (T,) each
        else:
            columns[name] = features.decode_column(column.to_pylist(), name)
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    found = [target_row(row, tokens, cut) for row in rows]
    return {name: [row[name] for row in found] for name in found[0]}


def _fingerprint(dataset: Dataset, tokens: ScoreTokens, cut: Cut) -> str:
    """
    What the rows of [`target_row`] depend on. `datasets` would pickle the tokenizer for it, which takes seconds where
    the vocabulary is large. TRL's tokenised rows, whose fingerprint this includes, depend on it already.
    """
    tokenizer, scale = tokens.tokenizer, tokens.scale
    of_tokenizer = tokenizer.name_or_path, len(tokenizer), tokenizer.chat_template, tokenizer.eos_token, tokens.paths
    return digest(
        dataset._fingerprint, scale.labels, scale.values, tokens.prefix, cut, of_tokenizer, version("tract-trainer")
    )


def _lost(
    problem: str,
    count: int,
    problems: list[str],
    dataset: Dataset,
    tokens: ScoreTokens,
    cut: Cut,
    name: str,
    missing_score: str,
) -> Lost:
    first = problems.index(problem)
    complaint, shown, remedy = describe(problem, dataset[first], tokens, cut)
    share = 100 * count / len(problems)
    sentence = (
        f"{count:,} of {len(problems):,} {name} rows ({share:.1f} %) {complaint}; the first is row {first}, {shown}. "
        f"{remedy}{OUTCOMES[missing_score]}"
    )
    return Lost(count, complaint, sentence)


def _refuse(row: dict[str, Any], tokens: ScoreTokens, cut: Cut, name: str) -> dict[str, Any]:
    if row["score_problem"]:
        complaint, shown, remedy = describe(row["score_problem"], row, tokens, cut)
        raise InputError(f"Some {name} rows {complaint}; the first is one {shown}. {remedy}{OUTCOMES['error']}")
    return row


def with_template_kwargs(dataset: AnyDataset, kwargs: dict[str, Any] | None) -> AnyDataset:
    """`dataset` with the column `chat_template_kwargs`, as TRL reads it; rows that have their own keep them."""
    columns = dataset.column_names or list(next(iter(dataset)))
    if not kwargs or "chat_template_kwargs" in columns or "input_ids" in columns:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.add_column("chat_template_kwargs", [kwargs] * len(dataset))
    return dataset.map(lambda row: {**row, "chat_template_kwargs": kwargs})


def uncut(args: SFTConfig) -> SFTConfig:
    """A copy of `args` under which TRL's preparation neither cuts nor shuffles."""
    args = copy.copy(args)
    args.max_length, args.shuffle_dataset = None, False
    return args


def cut_or_pack(dataset: AnyDataset, args: SFTConfig, packing: bool, name: str) -> AnyDataset:
    """The end of TRL's preparation (cut, drop, shuffle, pack, shuffle, with its seeds) over `score_labels` too."""
    kwargs: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
    if packing:
        dataset = dataset.select_columns(COLUMNS)
        if args.shuffle_dataset:
            dataset = dataset.shuffle(seed=args.seed)
        desc = {"desc": f"Packing {name} dataset"} if isinstance(dataset, Dataset) else {}
        dataset = pack_dataset(dataset, int(args.max_length or 0), args.packing_strategy, kwargs | desc)
    elif args.max_length is not None:
        span = slice(None, args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
        dataset = dataset.map(_cut_row, fn_kwargs={"span": span}, **kwargs)
        dataset = dataset.filter(_is_trained, **kwargs)
        if isinstance(dataset, Dataset) and not len(dataset):
            reach = f"max_length={args.max_length}"
            raise InputError(f"No row of the {name} dataset has a trained token within {reach}. Raise max_length.")
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


def _cut_row(row: dict[str, Any], span: slice) -> dict[str, Any]:
    return {column: row[column][span] for column in COLUMNS}


def _is_trained(row: dict[str, Any]) -> bool:
    return any(label != IGNORE_INDEX for label in row["labels"])


def count_scores(dataset: Dataset) -> int:
    """Number of scores due in a prepared dataset."""
    batches = dataset.select_columns(["score_labels"]).with_format("arrow").iter(batch_size=1000)
    return sum(
        int(np.isfinite(table["score_labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)).sum())
        for table in batches
    )


class Gold(NamedTuple):
    """Gold scores by the position of their token, and a key of `PROBLEMS` or `""`."""

    scores: dict[int, float]
    problem: str


def gold_scores(row: dict[str, Any], tokens: ScoreTokens) -> Gold:
    """
    The gold scores of a row: `input_ids` and `labels`, `(T,)`, as arrays; optionally `score`; `score_labels`, `(T,)`,
    where the scores are known; and the `completion` or `messages` that the tokens were made of.
    """
    if "score_labels" in row:
        return _given_scores(row, tokens.scale)
    if "seq_lengths" in row:
        raise InputError(
            "A row is packed (it has `seq_lengths`) without `score_labels`, so of its scores only the last could be "
            "found. Give the rows as they were before packing, and let the trainer pack them: packing=True."
        )
    found = tokens.find(row["input_ids"], row["labels"])
    if found is not None and not _in_last_turn(row, tokens):
        found = None
    problem = _problem_of(row, found, tokens.scale)
    if found is not None and not problem:
        problem = _rendering_problem(row, found.position, tokens)
    if found is None or problem:
        return Gold({}, problem)
    return Gold({found.position: row["score"] if "score" in row else tokens.scale.value(found.label)}, "")


def _given_scores(row: dict[str, Any], scale: ScoreScale) -> Gold:
    column = np.asarray(row["score_labels"], dtype=np.float32)
    if len(column) != len(row["input_ids"]):
        raise InputError(
            f"The column `score_labels` must hold a number per token, found {len(column)} for {len(row['input_ids'])} "
            "tokens. Give NaN where no score is due."
        )
    due = np.flatnonzero(~np.isnan(column[1:])) + 1  # nothing predicts the first token
    scores = {int(position): float(column[position]) for position in due}
    return Gold(scores, "" if all(map(scale.covers, scores.values())) else "labels_off_scale")


def _in_last_turn(row: dict[str, Any], tokens: ScoreTokens) -> bool:
    """Whether the assistant's last turn holds a score. One in an earlier turn may be trained on, but only as text."""
    turns = row.get("completion") or row.get("messages")
    alone = "completion" in row and (isinstance(turns, str) or len(turns or ()) == 1)
    if not turns or (alone and row["labels"][0] == IGNORE_INDEX):
        return True  # one text, or one turn after a prompt that is not trained on
    return tokens.find(tokens.tokenizer(completion_text(row), add_special_tokens=False)["input_ids"]) is not None


def _rendering_problem(row: dict[str, Any], position: int, tokens: ScoreTokens) -> str:
    """
    What keeps a judge from writing the row: it would be asked with other tokens than the row begins with, the row lacks
    a part of its text, or ends the turn before the score at `position`. Rows of text or tokens alone have no prompt to
    ask with.
    """
    prompt = _prompt(row)
    if prompt is None:
        return ""
    turns = () if isinstance(prompt, str) else row.get("messages") or [*prompt, *row["completion"]]
    if any(turn.get("content") is None and not turn.get("tool_calls") for turn in turns):
        return "no_content"
    ids = row["input_ids"]
    masked = int((row["labels"] != IGNORE_INDEX).argmax())
    kwargs = template_kwargs(row, {})
    asked = asked_length(prompt, ids, masked, tokens.tokenizer, kwargs)
    if asked is None:
        return "asked"
    if drops_thoughts(completion_text(row).rpartition(tokens.prefix)[0], ids[asked:position], tokens.tokenizer):
        return "thoughts"
    ends = {tokens.tokenizer.eos_token_id}
    if not isinstance(prompt, str):
        ends.add(answer_end(tokens.tokenizer, kwargs))
    return "ends_early" if any((ids[asked:position] == end).any() for end in ends) else ""


def _prompt(row: dict[str, Any]) -> Any:
    """What the row's answer was written for. Channels beside `content` are refused: no judge reads them again."""
    turns = row.get("completion") or row.get("messages") or ()
    turns = () if isinstance(turns, str) else turns
    channels = {name for turn in turns for name in CHANNELS if turn.get(name)}
    if channels:
        raise InputError(
            f"An assistant's turn has text in {sorted(channels)}, which chat templates write as a channel of its own, "
            "so the judge's rationale would be read without it. Put the rationale into `content`, before the score."
        )
    if row.get("prompt"):
        return row["prompt"]
    return unanswered(row["messages"]) if row.get("messages") else None


def closed_texts(dataset: Dataset, tokens: ScoreTokens) -> list[str]:
    """How the rationales of the first rows of a prepared dataset end: with the prefix and a label."""
    texts = []
    rows = dataset.with_format("numpy", COLUMNS)[:SAMPLED_ROWS]
    for ids, labels, score_labels in zip(*(rows[name] for name in COLUMNS), strict=True):
        due = np.flatnonzero(~np.isnan(score_labels))
        if len(due):
            end = due[-1] + tokens.label_length(ids[due[-1] :])
            trained = ids[:end][labels[:end] != IGNORE_INDEX]
            texts.append(decode(tokens.tokenizer, trained[-tokens.window :]))
    return texts


def _problem_of(row: dict[str, Any], found: FoundScore | None, scale: ScoreScale) -> str:
    if "score" in row:
        score = row["score"]
        if score is not None and (isinstance(score, bool) or not isinstance(score, numbers.Real)):
            raise InputError(
                f"The column `score` must hold numbers, found {score!r} ({type(score).__name__}). Convert it, e.g. "
                "dataset.cast_column('score', datasets.Value('float32')), or remove it to use the label in the text."
            )
        if score is None or math.isnan(score):
            return "empty"
        if not scale.covers(float(score)):
            return "off_scale"
    if found is None:
        return "missing"
    return "" if "score" not in row or scale.writes(found.label, row["score"]) else "mismatch"
