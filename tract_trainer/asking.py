"""Turns a record into the tokens that a judge reads: of its prompt, and of its prompt with a given rationale."""

from tract_trainer.controls import control_pattern
from tract_trainer.errors import InputError
from tract_trainer.hub import JudgeConfig
from tract_trainer.records import Prompt, Record, close, prompt_ids, prompt_of, row_ids, template_kwargs
from tract_trainer.scale import ScoreTokens


class RecordRows:
    """
    Args:
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as the judge's tokenizer writes it.
        config ([`~tract_trainer.hub.JudgeConfig`]): how the judge is asked.
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
