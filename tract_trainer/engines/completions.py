"""Turns the tokens that a model wrote into a rationale: what every engine does with them, whoever drew them.

`K` is the number of labels of the scale.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tract_trainer.data.records import close
from tract_trainer.data.rendering import prompt_ids, row_ids
from tract_trainer.engines.base import Rationale
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import IGNORE_INDEX, ScoreTokens

if TYPE_CHECKING:
    from transformers import GenerationConfig


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
        stop_ids (`Sequence[int]`): tokens that end a turn; the first one, and what follows it, are not part of it.
        log_probs (`Callable`): log-probability of each label, `(K,)`, at a place of `written`.
        lead (`str`): what the chat template puts before an answer (see [`lead`]), which is not part of it either.
    """
    written = next((written[:i] for i, token in enumerate(written) if token in stop_ids), written)
    row = [*prompt, *written]
    found = tokens.find(row, [IGNORE_INDEX] * len(prompt) + [*written])
    end = len(row) if found is None else found.position + 1
    text = _answer(row[len(prompt) : end], lead, partial(_decode_after, tokens.tokenizer, prompt[-4:]))
    if found is None:
        return Rationale(text, None, None, len(written))
    at = tuple(map(float, log_probs(found.position - len(prompt))))
    text = text.removesuffix(found.label)  # not there where the label is a special token
    return Rationale(text.removesuffix(tokens.prefix), found.label, at, len(written))


def _decode_after(tokenizer: Any, before: list[int], ids: list[int], special: bool = False) -> str:
    """The text of `ids`, read after other tokens: a tokenizer may drop a space at the very start of a text."""
    kwargs = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
    start: str = tokenizer.decode(before, **kwargs)
    text: str = tokenizer.decode([*before, *ids], **kwargs)
    return text[len(start) :]


def _answer(written: list[int], lead: str, decode: Callable[..., str]) -> str:
    """The text of `written`, without `lead` where it begins with it. Only a lead may hold special tokens."""
    for count in range(len(written) + 1):
        begun = decode(written[:count], special=True)
        if begun.startswith(lead):  # and may go on: a token can hold the end of the lead and the start of the answer
            return begun[len(lead) :] + decode(written)[len(decode(written[:count])) :]
        if not lead.startswith(begun.rstrip("\ufffd")):  # which stands for half a character
            return decode(written)
    return ""  # cut before the answer


def lead(tokens: ScoreTokens, config: JudgeConfig) -> str:
    """
    What the chat template puts between its generation prompt and an answer, such as an empty think block. It is learned
    with the answer, so a judge writes it; but the template will put it there again.
    """
    if not config.conversational:
        return ""
    tokenizer, kwargs = tokens.tokenizer, config.chat_template_kwargs
    answers = (close(rationale, tokens.prefix, tokens.scale.labels[0]) for rationale in "AB")
    rows = [row_ids("", answer, tokenizer, True, **kwargs) for answer in answers]
    asked, *texts = (
        str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        for ids in (prompt_ids("", tokenizer, True, **kwargs), *rows)
    )
    return texts[0][_shared_length(asked, *texts) : _shared_length(*texts)]


def _shared_length(*texts: str) -> int:
    """Number of leading characters that all `texts` have in common."""
    pairs = enumerate(zip(*texts, strict=False))
    return next((i for i, characters in pairs if len(set(characters)) > 1), min(map(len, texts)))


def stop_ids(own: "GenerationConfig | None", tokens: ScoreTokens, config: JudgeConfig) -> list[int]:
    """
    Tokens that end a turn: the model's (of its generation config), the tokenizer's, and the one that the chat template
    puts after an answer.
    """
    eos = None if own is None else own.eos_token_id
    ids = [*eos] if isinstance(eos, list) else [eos]
    ids.append(tokens.tokenizer.eos_token_id)
    if config.conversational:
        answer = close("", tokens.prefix, tokens.scale.labels[0])
        row = row_ids("", answer, tokens.tokenizer, True, **config.chat_template_kwargs)
        found = tokens.find(row)
        if found is not None and found.position + 1 < len(row):
            after = row[found.position + 1]
            if after in tokens.tokenizer.all_special_ids or after in tokens.tokenizer.added_tokens_decoder:
                ids.append(after)
    stop = sorted({int(i) for i in ids if i is not None})
    if not stop:
        raise InputError("Neither the model nor the tokenizer has an end-of-sequence token. Set tokenizer.eos_token.")
    return stop
