"""Turns the tokens that a model wrote into a rationale: what every engine does with them, whoever drew them.

`K` is the number of labels of the scale.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tract_trainer.engines import Rationale
from tract_trainer.errors import InputError
from tract_trainer.hub import JudgeConfig
from tract_trainer.records import close, row_ids
from tract_trainer.scale import IGNORE_INDEX, ScoreTokens

if TYPE_CHECKING:
    from transformers import GenerationConfig


def read_written(
    tokens: ScoreTokens,
    prompt: list[int],
    written: Sequence[int],
    stop_ids: Sequence[int],
    log_probs: Callable[[int], Sequence[float]],
) -> Rationale:
    """
    The rationale in `written`, the tokens that followed `prompt`.

    Args:
        stop_ids (`Sequence[int]`): tokens that end a turn; the first one, and what follows it, are not part of it.
        log_probs (`Callable`): log-probability of each label, `(K,)`, at a place of `written`.
    """
    written = next((written[:i] for i, token in enumerate(written) if token in stop_ids), written)
    row = [*prompt, *written]
    found = tokens.find(row, [IGNORE_INDEX] * len(prompt) + [*written])
    tokenizer: Any = tokens.tokenizer
    # Decoded after the prompt's last tokens: a tokenizer may drop a space at the very start of a text.
    start = max(0, len(prompt) - 4)
    end = len(row) if found is None else found.position + 1
    before, text = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (row[start : len(prompt)], row[start:end])
    )
    text = text[len(before) :]
    if found is None:
        return Rationale(text, None, None, len(written))
    at = tuple(map(float, log_probs(found.position - len(prompt))))
    text = text.removesuffix(found.label)  # not there where the label is a special token
    return Rationale(text.removesuffix(tokens.prefix), found.label, at, len(written))


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
