"""Renders a record's fields into a prompt, with a template that may be a stranger's, and escapes control tokens.

Templates run in Jinja's sandbox, with bounds on their work and on what they write. A judged response may hold
`<|im_end|>` or `[/INST]`; as tokens, they would end the user's turn and speak for the judge.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Template, TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEMPLATE = 100_000  # characters
MAX_PROMPT = 10_000_000  # characters of a rendered prompt, and of any text or number within it
MAX_STEPS = 100_000  # rounds of loops and calls of functions in one rendering


class _Missing(StrictUndefined):
    """A field that a record lacks: `{% if field %}` is false, and showing it is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=_Missing)
        self.filters = {**{name: _bounded(found) for name, found in self.filters.items()}, "_counted": _counted}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else value for value in (left, right)]
        if operator == "*":
            _checked(sizes[0] * sizes[1])
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 64:
            raise SecurityError("a power is too large")
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        _step(context)
        return _bounded(super().call)(context, function, *args, **kwargs)


def _step(context: Context) -> None:
    if next(context["_steps"]) >= MAX_STEPS:
        raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step(context)
        yield value


def _checked(value: Any) -> Any:
    size = len(value) if isinstance(value, str | list | tuple) else value
    if isinstance(size, int) and abs(size) > MAX_PROMPT:
        raise SecurityError(f"a text or number in it is larger than {MAX_PROMPT:,}")
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _checked(value)
        return _checked(function(*args, **kwargs))

    return call


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = _Sandbox()
    if len(template) > MAX_TEMPLATE:
        raise SecurityError(f"it has {len(template):,} characters, more than {MAX_TEMPLATE:,}")
    tree = environment.parse(template)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno, environment=environment)
    return environment.from_string(tree)


def rendered(template: str, fields: dict[str, Any]) -> str:
    """The prompt; an InputError where the template needs a missing field, or does more than it may."""
    pieces, length = [], 0
    try:
        for piece in _compiled(template).generate({**fields, "_steps": count()}):
            length += len(piece)
            if length > MAX_PROMPT:
                raise SecurityError(f"it writes more than {MAX_PROMPT:,} characters")
            pieces.append(piece)
    except Exception as error:  # a template may raise anything: it holds expressions
        raise InputError(f"prompt_template cannot be rendered for a record with {sorted(fields)}: {error}.") from error
    return "".join(pieces)


def template_text(template: str) -> str:
    """The text of a template, given as such or as its file. It must show the response that is judged."""
    if "{" not in template and os.path.isfile(template):
        template = Path(template).read_text(encoding="utf-8")
    try:
        names = meta.find_undeclared_variables(_compiled(template).environment.parse(template))
    except TemplateError as error:
        raise InputError(f"prompt_template is no Jinja template: {error}.") from error
    if "response" not in names:
        raise InputError(
            "prompt_template must show the judge the `response`, as {{ response }}, or be a file that does; found "
            f"{template!r:.80}."
        )
    return template


MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # one of a character that a vocabulary lacks


@dataclass(frozen=True)
class ControlTokens:
    """
    A tokenizer's control tokens, `ids`. `pattern` matches their texts, and what the chat template writes around a turn,
    such as `[INST]`. Made with [`ControlTokens.of`].
    """

    tokenizer: "PreTrainedTokenizerBase"
    pattern: re.Pattern[str]
    ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ControlTokens":
        added = {
            i: token.content
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special or MARKUP.fullmatch(token.content)
        }
        ids = {i for i, text in added.items() if i != tokenizer.unk_token_id and not BYTE.fullmatch(text)}
        found = set(added.values())
        if tokenizer.chat_template is not None:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            for messages, asks in ((turns[:1], True), (turns, False)):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
                found.update(MARKUP.findall(str(text)))
        texts = sorted((text for text in found if len(text.strip()) > 1), key=len, reverse=True)
        return cls(tokenizer, re.compile("|".join(map(re.escape, texts)) or r"(?!)", re.IGNORECASE), frozenset(ids))

    def refuse(self, text: str, written: Callable[[], str] = lambda: "") -> None:
        """
        Raises an InputError where `text` becomes control tokens that the text which `written` returns does not. Escaped
        text may: a tokenizer normalises characters, and a template may write the missing ones around it.
        """
        if extra := self._in(text):
            extra -= self._in(written())
        if extra:
            texts = [str(self.tokenizer.decode([i])) for i in extra]
            raise InputError(
                f"The record's text becomes the control tokens {texts}, with which it could speak for the judge. "
                "Remove them from the record."
            )

    def _in(self, text: str) -> Counter[int]:
        return Counter(i for i in self.tokenizer(text, add_special_tokens=False)["input_ids"] if i in self.ids)


def blank(value: Any) -> Any:
    """`value`, with another text for every text that is not empty in it."""
    if isinstance(value, Mapping):
        return {key: blank(item) for key, item in value.items()}
    if isinstance(value, list):
        return [blank(item) for item in value]
    return "A" if isinstance(value, str) and value else value


def escape_control_tokens(value: Any, controls: ControlTokens) -> Any:
    """`value`, text or lists and mappings of it, with a space after the first character of every control token."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {escape_control_tokens(k, controls): escape_control_tokens(v, controls) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [escape_control_tokens(item, controls) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    while controls.pattern.search(text):  # escaping one may leave another
        text = controls.pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text
