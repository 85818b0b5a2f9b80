"""Tokenises prompts and rows as TRL tokenises them for training."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tract_trainer.data.records import Prompt, Record, as_messages, close, prompt_of
from tract_trainer.data.templates import control_pattern
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_kwargs(record: Record, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """
    Further arguments of the chat template, as TRL makes them of a record with a ready prompt, or `otherwise`; an empty
    value, at which TRL stops, is none.
    """
    if not (record.get("prompt") or record.get("messages")):
        return dict(otherwise)
    tools = record.get("tools")
    given = record["chat_template_kwargs"] or {} if "chat_template_kwargs" in record else otherwise
    if not isinstance(given, Mapping):
        raise InputError(f"`chat_template_kwargs` must be a mapping, found {given!r:.80}.")
    try:
        return {"tools": json.loads(tools) if isinstance(tools, str) else tools, **given}
    except ValueError as error:
        raise InputError(f"`tools` must be a list of tools, or that as JSON; found {tools!r:.80}.") from error


def prompt_ids(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", conversational: bool, **template_kwargs: Any
) -> list[int]:
    """Tokens of a prompt, tokenised as TRL tokenises it for training."""
    if not conversational and isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if tokenizer.chat_template is None:
        raise InputError("A prompt of messages needs a chat template, and the judge's tokenizer has none. Give text.")
    encoded: Any = tokenizer.apply_chat_template(
        as_messages(prompt), tokenize=True, add_generation_prompt=True, return_dict=True, **template_kwargs
    )
    return list(encoded["input_ids"])


def row_ids(
    prompt: Prompt, completion: str, tokenizer: "PreTrainedTokenizerBase", conversational: bool, **template_kwargs: Any
) -> list[int]:
    """Tokens of a prompt with its completion, tokenised as TRL tokenises the row for training."""
    if not conversational and isinstance(prompt, str):
        return list(tokenizer(prompt + completion)["input_ids"])
    messages = [*as_messages(prompt), {"role": "assistant", "content": completion}]
    encoded: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **template_kwargs)
    return list(encoded["input_ids"])


class RecordRows:
    """
    Args:
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as the judge's tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
    """

    def __init__(self, tokens: ScoreTokens, config: JudgeConfig) -> None:
        self.tokens, self.config = tokens, config
        self.controls = control_pattern(tokens.tokenizer)

    def prompt(self, record: Record) -> Prompt:
        """The prompt, with the control texts in the record's fields defused."""
        config = self.config
        return prompt_of(record, config.scale, config.score_prefix, config.prompt_template, self.controls)

    def prompt_ids(self, record: Record) -> list[int]:
        """Tokens of the record's prompt, up to where the judge starts to write."""
        config = self.config
        given = template_kwargs(record, config.chat_template_kwargs)
        return prompt_ids(self.prompt(record), self.tokens.tokenizer, config.conversational, **given)

    def scored_ids(self, record: Record, rationale: str) -> list[int]:
        """Tokens of the record's prompt, the rationale and the prefix, up to where the score is due."""
        config = self.config
        row = row_ids(
            self.prompt(record),
            close(rationale, config.score_prefix, config.score_labels[0]),
            self.tokens.tokenizer,
            config.conversational,
            **template_kwargs(record, config.chat_template_kwargs),
        )
        found = self.tokens.find(row)
        if found is None:
            raise InputError(f"The chat template drops the closing phrase of a completion ending {rationale[-80:]!r}.")
        return row[: found.position]
