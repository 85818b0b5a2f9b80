"""The rationale and its score in the tokens that a model wrote. Every engine ends with this.

`K` is the number of labels of the scale.
"""

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tract_trainer.data.records import close
from tract_trainer.data.rendering import CLOSED, OPENED, answer_end, prompt_ids, row_ids
from tract_trainer.engines.base import Rationale
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import IGNORE_INDEX, FoundScore, ScoreTokens, shared_length

if TYPE_CHECKING:
    from transformers import GenerationConfig

FINAL = "<|channel|>final<|message|>"

TAIL = 8  # last tokens of a prompt, which hold what begins a think block
SMALLEST_REACH = math.log(1e-9)  # of a place in the trie of labels: below it, no score changes by what follows

Node = tuple[int, ...]
"""A place in the trie of labels, as the tokens that lead there."""


class Written(NamedTuple):
    """The tokens that followed a prompt, and the log-probability of each of `ScoreTokens.ids` at a place of them."""

    tokens: Sequence[int]
    log_probs: Callable[[int], Mapping[int, float]]


class Places(dict[int, int]):
    """The place of the label in what was written, by the number of the rationale; for scores that are read later."""

    def of(self, number: int) -> Callable[[int], tuple[()]]:
        """`log_probs` of [`read_written`] that takes down the place."""

        def note(place: int) -> tuple[()]:
            self[number] = place
            return ()

        return note


def read_written(
    tokens: ScoreTokens,
    prompt: list[int],
    written: Sequence[int],
    stop_ids: Sequence[int],
    log_probs: Callable[[int], Sequence[float]],
    lead: str = "",
) -> Rationale:
    """
    The rationale in `written`, the tokens that followed `prompt`.

    Args:
        stop_ids (`Sequence[int]`): tokens that end a turn. The first one ends the rationale.
        log_probs (`Callable`): log-probability of each label, `(K,)`, at a place of `written`.
        lead (`str`): text that the chat template puts before an answer, see [`lead`]. It is not part of the rationale.
    """
    end = next((i for i, token in enumerate(written) if token in stop_ids), None)
    written, decode = list(written[:end]), partial(_decode_after, tokens.tokenizer, prompt[-4:])
    thought = _answer_start(tokens.tokenizer, prompt, written, decode)
    found = _score_of_turn(tokens, prompt, written, thought, truncated=end is None)
    answer = _answer(written if found is None else written[: found.end], thought, lead, decode)
    if found is None:
        return Rationale(answer, None, None, len(written), truncated=end is None)
    at_score = tuple(map(float, log_probs(found.position)))
    text = answer.removesuffix(found.label)  # a label that is a special token is not decoded
    return Rationale(text.removesuffix(tokens.prefix), found.label, at_score, len(written), truncated=end is None)


class NextTokenEngine(ABC):
    """
    What engines have in common that return log-probabilities of the next token alone. Where labels are several tokens,
    those of each next one are asked for behind the tokens before it.
    """

    tokens: ScoreTokens
    stop_ids: list[int]
    lead: str

    @abstractmethod
    def next_token(self, rows: Sequence[list[int]]) -> Sequence[Mapping[int, float] | None]:
        """Log-probability of each of `tokens.ids` as the next token after each row; `None` where it is refused."""

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        return self._label_log_probs(rows, self.next_token(rows))

    def rationales(self, prompts: Sequence[list[int]], written: Sequence[Written | str]) -> list[Rationale]:
        """The rationales that followed the prompts. A text in place of what was written is why nothing was."""
        places, answers = Places(), dict[int, Written]()
        rationales = []
        for i, (prompt, answer) in enumerate(zip(prompts, written, strict=True)):
            if isinstance(answer, str):
                rationales.append(Rationale("", None, None, 0, error=answer))
                continue
            answers[i], note = answer, places.of(i)
            rationales.append(read_written(self.tokens, prompt, answer.tokens, self.stop_ids, note, self.lead))
        rows = [[*prompts[i], *answers[i].tokens[:place]] for i, place in places.items()]
        following = [answers[i].log_probs(place) for i, place in places.items()]
        for i, log_probs in zip(places, self._label_log_probs(rows, following), strict=True):
            rationales[i] = rationales[i]._replace(log_probs=log_probs)
        return rationales

    def _label_log_probs(
        self, rows: Sequence[list[int]], following: Sequence[Mapping[int, float] | None]
    ) -> list[tuple[float, ...]]:
        """Log-probability of each label behind each row, `(K,)`, given those of the next token; NaN if refused."""
        known: list[dict[Node, Mapping[int, float]] | None] = [
            None if found is None else {(): found} for found in following
        ]
        while due := [(i, node) for i, at in enumerate(known) if at for node in places_due(self.tokens, at)]:
            for (i, node), found in zip(due, self.next_token([[*rows[i], *node] for i, node in due]), strict=True):
                at = known[i]
                known[i] = None if at is None or found is None else {**at, node: found}
        unknown = (math.nan,) * len(self.tokens.paths)
        return [unknown if at is None else label_log_probs(self.tokens, at) for at in known]


def places_due(tokens: ScoreTokens, known: Mapping[Node, Mapping[int, float]]) -> list[Node]:
    """
    Inner nodes of the trie of labels whose next token must be asked for, given the log-probabilities of the next token
    at the `known` ones. Those that follow others are due when these are known.
    """
    reach = _reach(tokens, known)
    return [node for node in tokens.nodes if node not in known and reach.get(node, -math.inf) > SMALLEST_REACH]


def label_log_probs(tokens: ScoreTokens, known: Mapping[Node, Mapping[int, float]]) -> tuple[float, ...]:
    """
    Log-probability of each label, `(K,)`, from those of the next token at the inner nodes of the trie of labels. The
    nodes left out by [`places_due`] lead to no longer label.
    """
    reach = _reach(tokens, known)

    def stop(node: Node) -> float:
        on = sum(math.exp(known[node][token]) for token in tokens.children(node)) if node in known else 0.0
        return reach.get(node, -math.inf) + (math.log1p(-on) if on < 1 else -math.inf)

    def log_prob(path: Node) -> float:
        stops = [stop(node) for node in tokens.stops(path)]
        if not stops:
            return reach.get(path, -math.inf)
        total = sum(map(math.exp, stops))
        return math.log(total) if total > 0 else -math.inf

    return tuple(map(log_prob, tokens.paths))


def _reach(tokens: ScoreTokens, known: Mapping[Node, Mapping[int, float]]) -> dict[Node, float]:
    """Log-probability of every place that follows a `known` one."""
    reach: dict[Node, float] = {(): 0.0}
    for node in known:  # parents first
        reach |= {(*node, token): reach[node] + known[node][token] for token in tokens.children(node)}
    return reach


def _score_of_turn(
    tokens: ScoreTokens, prompt: list[int], written: list[int], thought: int, truncated: bool
) -> FoundScore | None:
    """
    The score that ends the model's turn, and its place in `written`, behind the first `thought` tokens.

    Training reads the last score of a row, and so is the last one read here if the model ended its turn: an earlier one
    is quoted by the rationale. It is the first score after which the model began another turn, or never ended its turn:
    what it wrote afterwards is not about the response.
    """
    row, skipped = [*prompt, *written], [IGNORE_INDEX] * (len(prompt) + thought)
    scores: list[FoundScore] = []
    found = tokens.find(row, [*skipped, *row[len(skipped) :]])
    while found is not None:
        scores.insert(0, FoundScore(found.position - len(prompt), found.label, found.end - len(prompt)))
        row = row[: found.position]
        found = tokens.find(row, [*skipped, *row[len(skipped) :]])
    if truncated or len(scores) < 2:
        return next(iter(scores), None)
    tokenizer = tokens.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {*tokens.ids, *tokenizer(tokens.prefix, add_special_tokens=False)["input_ids"]}
    pairs = ((score, written[score.end : later.position]) for score, later in pairwise(scores))
    return next((score for score, between in pairs if not special.isdisjoint(between)), scores[-1])


def _answer_start(tokenizer: Any, prompt: list[int], written: list[int], decode: Callable[..., str]) -> int:
    """
    Number of tokens of `written` that belong to a think block: all of them if the model begins one and never ends it.
    """
    text = decode(written, special=True)
    begins = re.match(rf"\s*(?:{OPENED})", text) is not None
    if not begins and re.search(rf"(?:{OPENED})\s*$", str(tokenizer.decode(prompt[-TAIL:]))) is None:
        return 0  # a rationale may name such a block, e.g. one in the response
    closed = re.search(CLOSED, text)
    if closed is None:
        return len(written) if begins else 0
    return bisect_left(range(len(written)), closed.end(), key=lambda n: len(decode(written[:n], special=True)))


def _decode_after(tokenizer: Any, before: list[int], ids: list[int], special: bool = False) -> str:
    """The text of `ids` after the tokens `before`. At the very start of a text, a tokenizer may drop a space."""
    kwargs = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    start: str = tokenizer.decode(before, **kwargs)
    text: str = tokenizer.decode([*before, *ids], **kwargs)
    return text[len(start) :]


def _answer(written: list[int], thought: int, lead: str, decode: Callable[..., str]) -> str:
    """
    The text of `written`, without `lead` if it begins with it. Special tokens are dropped, except in the lead. Of a
    turn in channels it is the text of the final one: the chat template renders no other.
    """
    if decode(written[:thought], special=True).endswith(FINAL):
        return decode(written)[len(decode(written[:thought])) :]
    for count in range(len(written) + 1):
        begun = decode(written[:count], special=True)
        if begun.startswith(lead):  # a token may hold the end of the lead and the start of the answer
            return begun[len(lead) :] + decode(written)[len(decode(written[:count])) :]
        if not lead.startswith(begun.rstrip("\ufffd")):  # \ufffd: a character of which tokens are still to come
            return decode(written)
    return ""  # it ends within the lead


def lead(tokens: ScoreTokens, config: JudgeConfig) -> str:
    """
    The text that the chat template puts between its generation prompt and an answer, such as an empty think block. A
    judge learns it with the answer and writes it, but the template will add it to the rationale again.
    """
    if not config.conversational:
        return ""
    tokenizer, kwargs = tokens.tokenizer, config.chat_template_kwargs
    answers = (close(rationale, tokens.prefix, tokens.scale.labels[0]) for rationale in "AB")
    rows = [row_ids("Q", answer, tokenizer, True, **kwargs) for answer in answers]
    asked, *texts = (
        str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        for ids in (prompt_ids("Q", tokenizer, True, **kwargs), *rows)
    )
    return texts[0][shared_length(asked, *texts) : shared_length(*texts)]


def stop_ids(own: "GenerationConfig | None", tokens: ScoreTokens, config: JudgeConfig) -> list[int]:
    """
    Tokens that end a turn: those of the model's generation config, the tokenizer's end of sequence, and the token that
    the chat template puts after an answer.
    """
    eos = None if own is None else own.eos_token_id
    ids = [*eos] if isinstance(eos, list) else [eos]
    ids.append(tokens.tokenizer.eos_token_id)
    if config.conversational:
        ids.append(answer_end(tokens.tokenizer, config.chat_template_kwargs))
    stop = sorted({int(i) for i in ids if i is not None})
    if not stop:
        raise InputError("Neither the model nor the tokenizer has an end-of-sequence token. Set tokenizer.eos_token.")
    return stop
