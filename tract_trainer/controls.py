"""Turns text by strangers into text that no tokenizer reads as control tokens.

A judged response may hold `<|im_end|>` or `[/INST]`; as tokens, they would end the user's turn and speak for the judge.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


def control_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    """Matches the tokenizer's control tokens, and what its chat template writes around a turn: `[INST]`, for one."""
    added = tokenizer.added_tokens_decoder.values()
    found = {token.content for token in added if token.special or MARKUP.fullmatch(token.content)}
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for messages, asks in ((turns[:1], True), (turns, False)):
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
            found.update(MARKUP.findall(str(rendered)))
    texts = sorted((text for text in found if len(text.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)", re.IGNORECASE)


def neutral(value: Any, controls: re.Pattern[str]) -> Any:
    """`value`, text or lists and mappings of it, with a space after the first character of every control text."""
    if isinstance(value, str):
        while controls.search(value):  # a text may hold one within another
            value = controls.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        return value
    if isinstance(value, Mapping):
        return {neutral(key, controls): neutral(item, controls) for key, item in value.items()}
    if isinstance(value, list):
        return [neutral(item, controls) for item in value]
    return value
