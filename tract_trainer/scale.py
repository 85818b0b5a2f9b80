"""The scale of a judge, and the tokens that write each of its labels after the score prefix.

The same object finds those tokens in a tokenised row: in training data, and in what a judge has written. Nothing here
needs torch. Shape letters: `T` tokens of a row, `K` labels of the scale.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
MOST_LABELS = 1000
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
            Labels as they are written, e.g. `["1", "2", "3", "4", "5"]`. Integers are converted; other numbers, of
            which it is not clear how they are written, are refused.
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
        if any(isinstance(label, bool | float) for label in labels):
            raise InputError(
                f"Labels must be text, found {list(labels)}. YAML reads Yes and No as truth values, and 1.50 as 1.5: "
                'quote them, e.g. score_labels: ["No", "Yes"].'
            )
        labels = tuple(str(label) for label in labels)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "values", _values_of(labels) if values is None else tuple(map(float, values)))
        if len(self.labels) < 2:
            raise InputError(f"A scale needs at least two labels, got {list(self.labels)}.")
        if not all(map(str.strip, self.labels)):
            raise InputError(f"Every label of a scale must be written with some character, got {list(self.labels)}.")
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

    @classmethod
    def steps(cls, low: float, high: float, step: float) -> "ScoreScale":
        """The scale `low, low + step, ..., high`, each written with as few digits as it takes: "1", "1.5", "2"."""
        count = round((high - low) / step) if step > 0 and math.isfinite((high - low) / step) else 0
        if count < 1 or abs(low + count * step - high) > 1e-6 * max(step, 0):
            raise InputError(f"{high:g} cannot be reached from {low:g} in steps of {step:g}.")
        if count >= MOST_LABELS:
            raise InputError(f"{low:g} to {high:g} in steps of {step:g} has {count + 1:,} labels. Take larger steps.")
        return cls([f"{round(low + i * step, 9) + 0.0:.9g}" for i in range(count + 1)])

    @classmethod
    def parse(cls, text: str) -> "ScoreScale":
        """The scale that is written `LOW:HIGH` or `LOW:HIGH:STEP`, such as `1:10` or `1:5:0.5`."""
        try:
            low, high, step = map(float, (text if text.count(":") > 1 else f"{text}:1").split(":"))
        except ValueError as error:
            raise InputError(f"Expected LOW:HIGH or LOW:HIGH:STEP, e.g. 1:10 or 1:5:0.5; found {text!r}.") from error
        return cls.steps(low, high, step)

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

    def is_whole(self, label: str, after: str) -> bool:
        """Whether `label`, with the text `after` behind it, is not only a part of another label, word or number."""
        if GOES_ON.match(after) or (label[-1:].isalpha() and after[:1] in ("+", "-")):
            return False
        share = re.match(r"\s*/\s*(\d+)", after)  # 4/5 is a 4 where 5 is the top, and 4/10 is none
        return share is None or float(share[1]) == self.high

    def find_all(self, text: str, prefix: str) -> "list[FoundScore]":
        """The places in `text` where the prefix is followed by a label, and the longest label at each."""
        found = []
        for match in re.finditer(re.escape(prefix), text):
            start = match.end()
            label = max((label for label in self.labels if text.startswith(label, start)), key=len, default=None)
            if label is not None and self.is_whole(label, text[start + len(label) :]):
                found.append(FoundScore(start, label, start + len(label)))
        return found


class FoundScore(NamedTuple):
    """The label in a tokenised row, the place of its first token, and the place after its last one; or in a text."""

    position: int
    label: str
    end: int


@dataclass(frozen=True)
class ScoreTokens:
    """
    A scale as one tokenizer writes it after one prefix. Made with [`ScoreTokens.resolve`].

    The labels are paths of a trie: "1" is the token `1`, and "10" goes on from there with the token `0`. The
    probability of a label is that of its path, minus that of the longer labels that go on from it: "1" is what begins
    with `1` and is not "10". So the labels exclude each other, and their probabilities add up to at most 1. What goes
    on to a text off the scale, such as "1.5" or "11" on a scale of 1 to 10, counts for the label that it begins with.
    Other tokens that make up the same text count for no label.

    Attributes:
        scale ([`ScoreScale`]): the scale.
        prefix (`str`): the text right before a label.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        paths (`tuple[tuple[int, ...], ...]`):
            Tokens of each label after the tokens that all labels have before them, `(K,)`, in the order of the scale.
        window (`int`): number of tokens that is sure to hold the prefix and a label, whatever stands before them.
    """

    scale: ScoreScale
    prefix: str
    tokenizer: "PreTrainedTokenizerBase"
    paths: tuple[tuple[int, ...], ...]
    window: int

    @classmethod
    def resolve(cls, scale: ScoreScale, prefix: str, tokenizer: "PreTrainedTokenizerBase") -> "ScoreTokens":
        """
        Tokenises `prefix + label` for every label. Tokenised alone, a label often has other ids: `"5"` and `" 5"` are
        two tokens to GPT-2, and SentencePiece puts a `"▁"` before a lone digit.

        Raises:
            ValueError: the prefix is empty or not kept, a label cannot be written, or two labels share their tokens.
        """
        if not prefix:
            raise InputError(
                "score_prefix is empty, so nothing tells the score from any other token of the scale. "
                "Give the text that stands right before the score, e.g. score_prefix='Score: '."
            )
        _refuse_turn_tokens(prefix, tokenizer)
        rows = [tokenizer(prefix + label, add_special_tokens=False)["input_ids"] for label in scale.labels]
        shared = _root(tokenizer, scale, rows, prefix)
        paths = tuple(tuple(row[shared:]) for row in rows)
        if len(set(paths)) < len(paths):
            raise InputError(
                f"This tokenizer writes two of the labels {list(scale.labels)} with the same tokens after {prefix!r}. "
                "Use labels that differ in more than case or spacing."
            )
        tokens = cls(scale, prefix, tokenizer, paths, window=max(map(len, rows)) + BEFORE_PREFIX)
        if tokens.find(rows[0]) is None:
            raise InputError(
                f"This tokenizer does not keep the prefix: of {prefix + scale.labels[0]!r} it makes "
                f"{decode(tokenizer, rows[0])!r}. Set score_prefix to text that it keeps."
            )
        tokens._check_behind_a_rationale()
        return tokens

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of all labels, each once. Where a label is one token: that of each label, `(K,)`."""
        return tuple(dict.fromkeys(token for path in self.paths for token in path))

    @property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """
        The places where a label goes on, each as the tokens that lead there: parents before children, the root, `()`,
        first. Where every label is one token, the root alone.
        """
        inner = {path[:length] for path in self.paths for length in range(len(path))}
        return tuple(sorted(inner, key=lambda node: (len(node), node)))

    @property
    def depth(self) -> int:
        """Number of tokens that lead to the deepest inner node: those of the longest label but its last."""
        return max(map(len, self.paths)) - 1

    def children(self, node: tuple[int, ...]) -> list[int]:
        """The tokens that go on from `node` to a label."""
        return sorted({path[len(node)] for path in self.paths if len(path) > len(node) and path[: len(node)] == node})

    def stops(self, path: tuple[int, ...]) -> list[tuple[int, ...]]:
        """
        The inner nodes where a text is the label of `path` if it goes on to no other: its end, and those behind it that
        are on the way to a longer label. "4" is what stops behind `4`, and what stops behind `4` `.` on the way to 4.5.
        """
        longer = [other for other in self.paths if len(other) > len(path) and other[: len(path)] == path]
        below = (node for node in self.nodes if node[: len(path)] == path)
        return [node for node in below if not any(node[: len(other)] == other for other in longer)]

    @functools.cached_property
    def _starts(self) -> dict[int, list[tuple[tuple[int, ...], str]]]:
        """By its first token, each path with its label; long paths before short ones."""
        starts: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        for path, label in sorted(zip(self.paths, self.scale.labels, strict=True), key=lambda pair: -len(pair[0])):
            starts.setdefault(path[0], []).append((path, label))
        return starts

    def label_length(self, ids: Sequence[int]) -> int:
        """Number of tokens of the longest label that `ids` begin with; 1 if they begin with none."""
        return next((len(path) for path, _ in self._starts.get(ids[0], ()) if tuple(ids[: len(path)]) == path), 1)

    def _check_behind_a_rationale(self) -> None:
        """Raises an InputError where a label has other tokens behind a rationale than at the start of a text."""
        for label in self.scale.labels:
            rows = (
                self.tokenizer(f"{text}{self.prefix}{label}")["input_ids"] for text in ("Right. ", "Right.\n", "Right.")
            )
            if not any(found is not None and found.label == label for found in map(self.find, rows)):
                raise InputError(
                    f"This tokenizer writes {label!r} after {self.prefix!r} with other tokens behind a rationale than "
                    "at the start of a text, so no row would have a score. Use a longer score_prefix, e.g. 'Score: '."
                )

    def find(self, input_ids: Sequence[int], labels: Sequence[int] | None = None) -> FoundScore | None:
        """
        Finds the last place where the prefix is followed by a label, and the longest label there. A digit elsewhere in
        the rationale, or an earlier closing phrase, is not it.

        Args:
            input_ids (`Sequence[int]`): tokens of the row, `(T,)`.
            labels (`Sequence[int]`, *optional*): targets of the row, `(T,)`; places that hold -100 are skipped.

        Returns:
            [`FoundScore`] or `None`.
        """
        for position in range(len(input_ids) - 1, -1, -1):
            for path, label in self._starts.get(input_ids[position], ()):
                end = position + len(path)
                if tuple(input_ids[position:end]) != path:
                    continue
                trained = labels is None or IGNORE_INDEX not in labels[position:end]
                if trained and self._is_label(label, input_ids, position, end):
                    return FoundScore(position, label, end)
                break  # a longer label that does not count is no shorter one either
        return None

    def _is_label(self, label: str, ids: Sequence[int], position: int, end: int) -> bool:
        """Whether `ids[position:end]` follow the prefix, and are not only a part of another label, word or number."""
        # Compared as text: the first tokens of the prefix depend on the character before it.
        if not decode(self.tokenizer, ids[max(0, end - self.window) : end]).endswith(self.prefix + label):
            return False
        after = _text_behind(self.tokenizer, tuple(ids[position : end - 1 + BEHIND_LABEL]), end - position)
        return self.scale.is_whole(label, after)


def _root(tokenizer: "PreTrainedTokenizerBase", scale: ScoreScale, rows: list[list[int]], prefix: str) -> int:
    """Number of leading tokens that all `rows` share and that hold nothing of a label."""
    shared = min(shared_length(*rows), min(map(len, rows)) - 1)
    for label, row in zip(scale.labels, rows, strict=True):
        tail = row[shared:]
        while shared >= 0 and not decode(tokenizer, row[shared:]).endswith(label):
            shared -= 1
        if shared < 0:
            raise InputError(
                f"score {label!r} is written as {decode(tokenizer, tail)!r} in this tokenizer after {prefix!r}. Use "
                "labels that it can write, e.g. digits."
            )
    return shared


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


def shared_length(*sequences: Sequence[Any]) -> int:
    """Number of leading items that all `sequences` have in common."""
    pairs = enumerate(zip(*sequences, strict=False))
    return next((i for i, items in pairs if any(item != items[0] for item in items)), min(map(len, sequences)))


@functools.lru_cache(maxsize=256)  # most rows end with the same tokens: a label and the end of the turn
def _text_behind(tokenizer: "PreTrainedTokenizerBase", ids: tuple[int, ...], length: int) -> str:
    """The text of `ids` behind that of their first `length`."""
    return decode(tokenizer, ids)[len(decode(tokenizer, ids[:length])) :]


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Any) -> str:
    """The text of `ids`, `(T,)`, a sequence or an array."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
