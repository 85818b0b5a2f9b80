"""Turns the labels of a scale and a tokenizer into the token that writes each label after the score prefix.

The same object finds that token in a tokenised row: in training data, and in what a judge has written. Nothing here
needs torch. Shape letters: `T` tokens of a row, `K` labels of the scale.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100

BEFORE_PREFIX = 8  # tokens before the prefix, which its first one may be merged with

BEHIND_LABEL = 8  # tokens that show whether a label goes on: 4.5, 10, "3 or 4"
GOES_ON = re.compile(r"\w|[.,]\d|[½⅓⅔¼¾⅛]|\s*[-\u2013\u2014]\s*\d|\s+(or|to)\s+\d|\s+\d+/\d")
"""What behind a label makes it a part of another one: 10, 4.5, 4½, 3-4, 3 or 4, 2 1/2, Aérien."""


@dataclass(frozen=True)
class ScoreScale:
    """
    The labels a judge can end with and the number each stands for.

    Args:
        labels (`Sequence[str]`):
            Labels as they are written, e.g. `["1", "2", "3", "4", "5"]`. Non-strings are converted with `str`.
        values (`Sequence[float]`, *optional*):
            Value of each label, in the same order. Defaults to `float(label)`.

    Raises:
        ValueError: fewer than two labels, a repeated label or value, a value that is missing or not finite.

    Example:
    ```python
    >>> ScoreScale.integers(1, 5).values
    (1.0, 2.0, 3.0, 4.0, 5.0)
    ```
    """

    labels: tuple[str, ...]
    values: tuple[float, ...]

    def __init__(self, labels: Sequence[str], values: Sequence[float] | None = None) -> None:
        if any(isinstance(label, bool) for label in labels):
            raise InputError(
                f"Labels must be text, found {list(labels)}. YAML reads Yes and No as truth values: quote them, e.g. "
                'score_labels: ["No", "Yes"].'
            )
        labels = tuple(str(label) for label in labels)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "values", _values_of(labels) if values is None else tuple(map(float, values)))
        if len(self.labels) < 2:
            raise InputError(f"A scale needs at least two labels, got {list(self.labels)}.")
        if len(self.values) != len(self.labels):
            raise InputError(
                f"Expected one value per label: {len(self.labels)} labels, but {len(self.values)} values. "
                f"Give score_values={len(self.labels)} numbers, in the order of score_labels."
            )
        for name, items in (("labels", self.labels), ("values", self.values)):
            if len(set(items)) < len(items):
                raise InputError(f"The {name} of a scale must differ from each other, got {list(items)}.")
        if not all(map(math.isfinite, self.values)):
            raise InputError(f"The values of a scale must be finite numbers, got {list(self.values)}.")

    @classmethod
    def integers(cls, low: int, high: int) -> "ScoreScale":
        """The scale `low, low + 1, ..., high`, each written as its number."""
        return cls([str(number) for number in range(low, high + 1)])

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def value(self, label: str) -> float:
        """The number `label` stands for, in units of the scale."""
        return self.values[self.labels.index(label)]

    def covers(self, score: float) -> bool:
        """Whether `score` lies between the ends of the scale, which it may pass by the rounding of float32."""
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        return self.low - slack <= score <= self.high + slack

    def nearest_label(self, score: float) -> str:
        """The label whose value is nearest to `score`; of two equally near, the first of the scale."""
        return min(self.labels, key=lambda label: abs(self.value(label) - score))

    def writes(self, label: str, score: float) -> bool:
        """Whether `label` is a nearest label to `score`. Both neighbours of a score half-way between them are."""
        return abs(self.value(label) - score) <= abs(self.value(self.nearest_label(score)) - score) + 1e-6


class FoundScore(NamedTuple):
    """Where a label stands in a tokenised row, and which one."""

    position: int
    label: str


@dataclass(frozen=True)
class ScoreTokens:
    """
    A scale as one tokenizer writes it after one prefix. Made with [`ScoreTokens.resolve`].

    Attributes:
        scale ([`ScoreScale`]): the scale.
        prefix (`str`): the text right before a label.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        ids (`tuple[int, ...]`): token of each label after the prefix, `(K,)`, in the order of the scale.
        window (`int`): number of tokens that is sure to hold the prefix and a label, whatever stands before them.
    """

    scale: ScoreScale
    prefix: str
    tokenizer: "PreTrainedTokenizerBase"
    ids: tuple[int, ...]
    window: int

    @classmethod
    def resolve(cls, scale: ScoreScale, prefix: str, tokenizer: "PreTrainedTokenizerBase") -> "ScoreTokens":
        """
        Tokenises `prefix + label` for every label. Tokenised alone, a label often has another id: `"5"` and `" 5"` are
        two tokens to GPT-2, and SentencePiece puts a `"▁"` before a lone digit.

        Raises:
            ValueError: the prefix is empty, a label takes more than one token, or two labels share one.
        """
        if not prefix:
            raise InputError(
                "score_prefix is empty, so nothing tells the score from any other token of the scale. "
                "Give the text that stands right before the score, e.g. score_prefix='Score: '."
            )
        _refuse_turn_tokens(prefix, tokenizer)
        rows = [tokenizer(prefix + label, add_special_tokens=False)["input_ids"] for label in scale.labels]
        shared = min(_shared_length(rows), min(map(len, rows)) - 1)
        for label, row in zip(scale.labels, rows, strict=True):
            tail = row[shared:]
            if len(tail) != 1 or not _decode(tokenizer, tail).endswith(label):
                raise InputError(_not_one_token(label, [_decode(tokenizer, [token]) for token in tail], prefix))
        ids = tuple(row[shared] for row in rows)
        if len(set(ids)) < len(ids):
            raise InputError(
                f"This tokenizer writes two of the labels {list(scale.labels)} with the same token after {prefix!r}. "
                "Use labels that differ in more than case or spacing."
            )
        tokens = cls(scale, prefix, tokenizer, ids, window=shared + 1 + BEFORE_PREFIX)
        if tokens.find(rows[0]) is None:
            raise InputError(
                f"This tokenizer does not keep the prefix: of {prefix + scale.labels[0]!r} it makes "
                f"{_decode(tokenizer, rows[0])!r}. Set score_prefix to text that it keeps."
            )
        tokens._check_behind_a_rationale()
        return tokens

    def _check_behind_a_rationale(self) -> None:
        """Raises an InputError where a label has another token behind a rationale than at the start of a text."""
        for label in self.scale.labels:
            rows = (
                self.tokenizer(f"{text}{self.prefix}{label}")["input_ids"] for text in ("Right. ", "Right.\n", "Right.")
            )
            if not any(found is not None and found.label == label for found in map(self.find, rows)):
                raise InputError(
                    f"This tokenizer writes {label!r} after {self.prefix!r} with another token behind a rationale than "
                    "at the start of a text, so no row would have a score. Use a longer score_prefix, e.g. 'Score: '."
                )

    def find(self, input_ids: Sequence[int], labels: Sequence[int] | None = None) -> FoundScore | None:
        """
        Finds the last place where the prefix is followed by a label. A digit elsewhere in the rationale, or an earlier
        closing phrase, is not it.

        Args:
            input_ids (`Sequence[int]`): tokens of the row, `(T,)`.
            labels (`Sequence[int]`, *optional*): targets of the row, `(T,)`; places that hold -100 are skipped.

        Returns:
            [`FoundScore`] or `None`.
        """
        label_of = dict(zip(self.ids, self.scale.labels, strict=True))
        for position in range(len(input_ids) - 1, -1, -1):
            label = label_of.get(input_ids[position])
            if label is None or (labels is not None and labels[position] == IGNORE_INDEX):
                continue
            # Compared as text: the first tokens of the prefix depend on the character before it.
            text = _decode(self.tokenizer, input_ids[max(0, position + 1 - self.window) : position + 1])
            if text.endswith(self.prefix + label) and not self._goes_on(
                label, input_ids[position : position + 1 + BEHIND_LABEL]
            ):
                return FoundScore(position, label)
        return None

    def _goes_on(self, label: str, ids: Sequence[int]) -> bool:
        """Whether `label`, written by the first of `ids`, is only a part of another label, word or number."""
        after = _decode(self.tokenizer, ids).lstrip().removeprefix(label)
        if GOES_ON.match(after) or (label[-1:].isalpha() and after[:1] in ("+", "-")):
            return True
        share = re.match(r"\s*/\s*(\d+)", after)  # 4/5 is a 4 where 5 is the top, and 4/10 is none
        return share is not None and float(share[1]) != self.scale.high


def _refuse_turn_tokens(prefix: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises an InputError for a prefix with a control token that begins or ends a text or a turn."""
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    for token in tokenizer.added_tokens_decoder.values():
        ends = token.content in used or token.content in str(tokenizer.chat_template)
        if token.special and ends and token.content in prefix:
            raise InputError(
                f"score_prefix holds the control token {token.content!r}, which begins or ends a text or a turn, so "
                "no judge could write a score behind it. Give text, or a token that the chat template does not use."
            )


def _values_of(labels: tuple[str, ...]) -> tuple[float, ...]:
    try:
        return tuple(float(label) for label in labels)
    except ValueError as error:
        raise InputError(
            f"The labels {list(labels)} are not all numbers, so their values must be given: "
            f"score_values={list(range(1, len(labels) + 1))}, for example."
        ) from error


def _shared_length(rows: list[list[int]]) -> int:
    """Number of leading tokens that all `rows` have in common."""
    return next(
        (i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1),
        min(map(len, rows)),
    )


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _not_one_token(label: str, pieces: list[str], prefix: str) -> str:
    found = f"{len(pieces)} tokens {tuple(pieces)}" if len(pieces) > 1 else f"written as {pieces[0]!r}"
    text = "".join(pieces)
    merged = text.removesuffix(label) if text.endswith(label) else ""
    if merged.strip() and prefix.endswith(merged):
        remedy = (
            f"The end of score_prefix, {merged!r}, merges with some labels and not with others. End it with other "
            "characters, e.g. a space or a line break."
        )
    elif prefix.endswith(" ") and not label.isascii():
        remedy = f"Leave out the space at the end of score_prefix: {prefix.rstrip()!r}."
    elif label.isalpha():
        remedy = 'Use labels that are, e.g. digits: score_labels=["1", ..., "5"].'
    else:
        remedy = 'Use labels that are, e.g. score_labels=["A", ..., "J"] with score_values=[1, ..., 10].'
    return f"score {label!r} is {found} in this tokenizer after {prefix!r}; each score must be one token.\n{remedy}"
