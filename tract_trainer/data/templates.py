"""Renders a record's fields into a prompt, and escapes control tokens in them.

A judged response may hold `<|im_end|>` or `[/INST]`; as tokens, they would end the user's turn and speak for the judge.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase


def template_text(template: str) -> str:
    """
    The text of a template, given as such or as the file that holds it.

    Raises:
        InputError: it is no template, or shows nothing of the response that is judged.
    """
    from jinja2 import TemplateError, meta

    if "{" not in template and os.path.isfile(template):
        template = Path(template).read_text(encoding="utf-8")
    try:
        names = meta.find_undeclared_variables(compiled(template).environment.parse(template))
    except TemplateError as error:
        raise InputError(f"prompt_template is no Jinja template: {error}.") from error
    if "response" not in names:
        raise InputError(
            "prompt_template must show the judge the `response`, as {{ response }}, or be a file that does; found "
            f"{template!r:.80}."
        )
    return template


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> "Template":
    """The template, ready to render. It reaches nothing but the fields that it is given, and its work is bounded."""
    from tract_trainer.data import sandbox

    return sandbox.compiled(template)


def rendered(template: str, fields: dict[str, Any]) -> str:
    """The prompt; an InputError where the template asks for what `fields` do not have, or computes what it cannot."""
    from tract_trainer.data import sandbox

    try:
        return sandbox.render(compiled(template), fields)
    except Exception as error:  # a template may raise anything: it holds expressions
        raise InputError(f"prompt_template cannot be rendered for a record with {sorted(fields)}: {error}.") from error


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


def escape_control_tokens(value: Any, controls: re.Pattern[str]) -> Any:
    """`value`, text or lists and mappings of it, with a space after the first character of every control text."""
    if isinstance(value, str):
        while controls.search(value):  # a text may hold one within another
            value = controls.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        return value
    if isinstance(value, Mapping):
        return {
            escape_control_tokens(key, controls): escape_control_tokens(item, controls) for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [escape_control_tokens(item, controls) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return escape_control_tokens(value.decode(errors="replace") if isinstance(value, bytes) else str(value), controls)
