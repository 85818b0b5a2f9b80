"""Turns a tokenised row into its gold scores and the tokens that write them, or says what is wrong with it.

`T` is the number of tokens of the row.
"""

import math
import numbers
from typing import Any, NamedTuple

import numpy as np

from tract_trainer.errors import InputError
from tract_trainer.records import completion_text
from tract_trainer.scale import IGNORE_INDEX, FoundScore, ScoreScale, ScoreTokens


class Gold(NamedTuple):
    """Gold scores by the position of their token, and a key of [`tract_trainer.targets.PROBLEMS`] or `""`."""

    scores: dict[int, float]
    problem: str


def gold_scores(row: dict[str, Any], tokens: ScoreTokens) -> Gold:
    """
    Args:
        row (`dict`): `input_ids` and `labels`, `(T,)`. Optionally `score`; `score_labels`, `(T,)`, where the scores are
            known; and the `completion` or `messages` that the tokens were made of.
        tokens ([`ScoreTokens`]): the scale as the row's tokenizer writes it.
    """
    if "score_labels" in row:
        return _given(row, tokens.scale)
    if "seq_lengths" in row:
        raise InputError(
            "A row is packed (it has `seq_lengths`) without `score_labels`, so of its scores only the last could be "
            "found. Give the rows as they were before packing, and let the trainer pack them: packing=True."
        )
    found = tokens.find(row["input_ids"], row["labels"])
    if found is not None and not _in_last_turn(row, tokens):
        found = None
    problem = _problem(row, found, tokens.scale)
    if found is None or problem:
        return Gold({}, problem)
    return Gold({found.position: row["score"] if "score" in row else tokens.scale.value(found.label)}, "")


def _given(row: dict[str, Any], scale: ScoreScale) -> Gold:
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


def _problem(row: dict[str, Any], found: FoundScore | None, scale: ScoreScale) -> str:
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
