"""Token ids of prompts and of training rows, as TRL renders them.

A judge is asked with the beginning of its training rows, token by token. So training, judging, forced scores, rewards
and stage 2 all render their rows here. `T` is the number of tokens of a row.
"""

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from tract_trainer.data.records import Prompt, Record, as_messages, close, default_separator, prompt_of
from tract_trainer.data.templates import ControlTokens
from tract_trainer.errors import InputError, numbered
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens, decode, shared_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PROBES = ("A", "B")  # What the rows of both share is written before any answer.
WINDOW = 12  # tokens at the end of a prompt's text by which it is recognised
SHOWN = 60  # characters of a rendering in an error
DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

OPENED = r"<think>|<thinking>|\[THINK\]|<\|channel\|>analysis<\|message\|>"
CLOSED = r"</think>|</thinking>|\[/THINK\]|<\|channel\|>final<\|message\|>"
"""What begins and ends a think block, as families of models write it."""

NO_PREFILL = (
    "With logprobs='top', a score is read only where the served model writes it: a chat does not go on from a given "
    "rationale. Leave out num_cots=0 and unfinished='force', or use another engine."
)


def template_kwargs(record: Record, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """
    Further arguments of the chat template: the record's `tools` and `chat_template_kwargs`, as TRL reads them, or
    `otherwise`.
    """
    given = record.get("chat_template_kwargs")
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"`chat_template_kwargs` must be a mapping, found {given!r:.80}.")
    # As in TRL, a record's own column replaces the setting.
    found = dict(otherwise) if "chat_template_kwargs" not in record else dict(given or {})
    tools = record.get("tools") if record.get("prompt") or record.get("messages") else None
    try:
        return found if tools is None else {"tools": json.loads(tools) if isinstance(tools, str) else tools, **found}
    except (ValueError, RecursionError) as error:
        raise InputError(f"`tools` must be a list of tools, or that as JSON; found {tools!r:.80}.") from error


def prompt_ids(prompt: Prompt, tokenizer: "Tokenizer", conversational: bool, **template_kwargs: Any) -> list[int]:
    """
    Tokens that a judge is asked with: the beginning of every row that answers `prompt`. What a generation prompt opens
    and rows lack, such as a thinking block, is left out. An InputError if the chat template renders the prompt itself
    differently before an answer.
    """
    if not conversational and isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    messages = as_messages(prompt)
    asked = _templated(messages, tokenizer, add_generation_prompt=True, **template_kwargs)
    rows = [row_ids(messages, answer, tokenizer, True, **template_kwargs) for answer in PROBES]
    shared = shared_length(asked, *rows)
    if shared < len(asked):
        bare = _templated(messages, tokenizer, **template_kwargs)
        if shared < shared_length(asked, bare):
            raise InputError(_parted(tokenizer, asked, rows[0], shared))
    return asked[:shared]


def row_ids(
    prompt: Prompt, completion: str, tokenizer: "Tokenizer", conversational: bool, **template_kwargs: Any
) -> list[int]:
    """Tokens of a prompt with its completion, as TRL tokenises the row for training."""
    if not conversational and isinstance(prompt, str):
        return list(tokenizer(prompt + completion)["input_ids"])
    messages = [*as_messages(prompt), {"role": "assistant", "content": completion}]
    return _templated(messages, tokenizer, **template_kwargs)


def answer_end(tokenizer: "Tokenizer", kwargs: Mapping[str, Any]) -> int | None:
    """The control token that the chat template puts after an answer; `None` if it puts none there."""
    return _answer_end(tokenizer, str(tokenizer.chat_template), _as_json(kwargs))


def _as_json(kwargs: Mapping[str, Any]) -> str:
    return json.dumps(kwargs, sort_keys=True, default=str) if kwargs else "{}"  # as most rows have none


@functools.lru_cache(maxsize=64)
def _answer_end(tokenizer: "Tokenizer", template: str, kwargs: str) -> int | None:
    rows = [row_ids("Q", answer, tokenizer, True, **json.loads(kwargs))[::-1] for answer in PROBES]
    shared, added = shared_length(*rows), tokenizer.added_tokens_decoder
    after = rows[0][:shared][::-1] if shared < len(rows[0]) else []  # the answer itself may be dropped
    return next((i for i in after if i in added), None)


def drops_thoughts(rationale: str, ids: Sequence[int], tokenizer: "Tokenizer") -> bool:
    """Whether a rationale holds a think block, and its rendered answer `ids` lacks some of the text around its tags."""
    if "<" not in rationale and "[" not in rationale:  # of most rows, and much faster than the search
        return False
    parts = re.split(f"{OPENED}|{CLOSED}", rationale)
    if len(parts) == 1:
        return False
    read = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    # A template may write other white space.
    answer, *found = ("".join(decode(tokenizer, tokens).split()) for tokens in (ids, *read))
    return any(text not in answer for text in found)


def asked_length(
    prompt: Prompt, ids: Sequence[int], masked: int, tokenizer: "Tokenizer", kwargs: Mapping[str, Any]
) -> int | None:
    """
    Number of tokens that a judge is asked with, if they are the beginning of a training row of tokens `ids`, `(T,)`;
    `None` if not.

    `masked` is the number of tokens at the row's start that TRL masked as the prompt, or 0. If they end with text that
    the prompt has only at its end, they are all that is asked, and nothing is tokenised again.
    """
    if masked:
        header, length = "", 0
        if not isinstance(prompt, str):
            header, length = _header(tokenizer, str(tokenizer.chat_template), _as_json(kwargs))
        seen = decode(tokenizer, ids[max(0, masked - length - WINDOW) : masked])
        seen = seen.lstrip("\ufffd")  # a character of which the window has a part
        if _is_end(seen, prompt, header):
            return masked
    asked = prompt_ids(prompt, tokenizer, not isinstance(prompt, str), **kwargs)
    return len(asked) if list(ids[: len(asked)]) == asked else None


def _is_end(seen: str, prompt: Prompt, header: str) -> bool:
    """Whether `seen` is the end of the rendered prompt and occurs only there. May be false where it is."""
    if isinstance(prompt, str):
        return bool(seen) and prompt.endswith(seen) and prompt.find(seen) == len(prompt) - len(seen)
    content = prompt[-1].get("content")
    if not header or not isinstance(content, str) or any(turn["role"] == "assistant" for turn in prompt):
        return False
    if any(header in str(turn.get("content")) for turn in prompt):
        return False
    return len(seen) > len(header) and seen.endswith(header) and (content + header).endswith(seen)


@functools.lru_cache(maxsize=64)
def _header(tokenizer: "Tokenizer", template: str, kwargs: str) -> tuple[str, int]:
    """What a prompt of one turn has behind its content, as far as rows have it as well, and its number of tokens."""
    given, probe = json.loads(kwargs), "XQZ"
    ids = prompt_ids(probe, tokenizer, True, **given)
    header = decode(tokenizer, ids).rpartition(probe)[2]
    return header, len(tokenizer(header, add_special_tokens=False)["input_ids"])


def _templated(messages: list[dict[str, str]], tokenizer: "Tokenizer", **template_kwargs: Any) -> list[int]:
    if tokenizer.chat_template is None:
        raise InputError("A prompt of messages needs a chat template, and the judge's tokenizer has none. Give text.")
    from jinja2 import TemplateError

    try:
        encoded: Any = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **template_kwargs)
    except (TemplateError, TypeError, KeyError) as error:
        roles = [str(turn.get("role")) for turn in messages]
        raise InputError(f"The chat template refuses messages of the roles {roles}: {error}") from error
    return list(encoded["input_ids"])


def check_rows(rows: Iterable[Record], what: str, tokenizer: "Tokenizer") -> None:
    """Raises the InputError of the first row that the chat template refuses; `what` and its number name the row."""
    for number, row in enumerate(rows):
        prompt, completion, whole = (row.get(name) for name in ("prompt", "completion", "messages"))
        if isinstance(prompt, list) and isinstance(completion, list):
            whole = [*prompt, *completion]
        for messages, asks in ((prompt, True), (whole, False)):
            if isinstance(messages, list):
                with numbered(what, number):
                    _templated(messages, tokenizer, add_generation_prompt=asks, **template_kwargs(row, {}))


def _parted(tokenizer: "Tokenizer", asked: list[int], row: list[int], shared: int) -> str:
    start = max(0, shared - 8)
    before, unanswered, answered = (
        repr(decode(tokenizer, ids)[:SHOWN]) for ids in (asked[start:shared], asked[shared:], row[shared:])
    )
    return (
        "The chat template renders a prompt differently with and without an answer, so a judge would be asked with a "
        f"text it was not trained on. After {before} there is\n"
        f"  without an answer: {unanswered}\n"
        f"  with an answer:    {answered}\n"
        "Use a chat template that renders the prompt the same way in both cases (chat_template_path), or put the "
        "system prompt into the first user turn."
    )


def check_reloaded(tokenizer: "Tokenizer", rows: Sequence[Sequence[int]], trust_remote_code: bool = False) -> None:
    """
    Raises an InputError if the tokenizer, saved and loaded again, tokenises the text of one of `rows` differently: the
    saved judge would be asked with other tokens than it is trained on.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    for row in rows:
        text = decode(tokenizer, row)
        ids, others = (found(text, add_special_tokens=False)["input_ids"] for found in (tokenizer, again))
        if ids != others:
            shared = shared_length(ids, others)
            found, expected = (
                reader.convert_ids_to_tokens(read[shared : shared + 8])
                for reader, read in ((again, others), (tokenizer, ids))
            )
            raise InputError(
                f"The tokenizer, saved and loaded again, reads the training rows as {found} where it read {expected}, "
                "so a saved judge would be asked with other tokens than it is trained on. Load the tokenizer from a "
                "folder that save_pretrained has written, and train with that one."
            )


def pin_date(template: str, now: datetime) -> str:
    """`template` with each `strftime_now("...")` replaced by the date of `now`, so that prompts stay the same."""
    return DATE.sub(lambda call: repr(now.strftime(call[2])), template)


def pin_dates(*owners: Any) -> str:
    """Pins the date in the `chat_template` of each owner. A warning that says so; empty where no template prints it."""
    now, found = datetime.now(), ""
    for owner in owners:
        template = owner.chat_template
        if isinstance(template, str) and (pinned := pin_date(template, now)) != template:
            owner.chat_template = pinned
            found = f"The chat template prints the date. The judge always reads today's, {now:%Y-%m-%d}."
    return found


def separator_of(texts: Sequence[str], prefix: str) -> str:
    """The most frequent text between rationale and prefix, in `texts` that end with the prefix and a label."""
    before = [text.rpartition(prefix)[0] for text in texts]
    found = Counter(text[len(text.rstrip()) :] for text in before if text.strip())
    return found.most_common(1)[0][0] if found else default_separator(prefix)


class MessageRows:
    """Prompts of a judge on a server that renders and tokenises them itself, with the methods of [`RecordRows`]."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    def prompt(self, record: Record) -> Prompt:
        """The prompt. The control tokens of the served model are not known, so none are escaped."""
        config = self.config
        return prompt_of(record, config.scale, config.score_prefix, config.prompt_template)

    def prompt_ids(self, record: Record) -> Any:
        """The prompt as the server takes it, in place of its tokens: messages, or text for a judge without turns."""
        if template_kwargs(record, self.config.chat_template_kwargs) != self.config.chat_template_kwargs:
            raise InputError(
                "A record has `tools` or `chat_template_kwargs` of its own, which a server read with logprobs='top' "
                "does not take. Leave them out, or use another engine."
            )
        prompt = self.prompt(record)
        return as_messages(prompt) if self.config.conversational else prompt

    def scored_ids(self, record: Record, rationale: str) -> NoReturn:
        raise InputError(NO_PREFILL)


class RecordRows:
    """Prompts and rows that a judge reads, with its tokenizer and `judge_config.json`."""

    def __init__(self, tokens: ScoreTokens, config: JudgeConfig) -> None:
        self.tokens, self.config = tokens, config
        self.controls = ControlTokens.of(tokens.tokenizer)

    def prompt(self, record: Record) -> Prompt:
        """The prompt. Control tokens in the record's fields are escaped."""
        config = self.config
        return prompt_of(record, config.scale, config.score_prefix, config.prompt_template, self.controls)

    def prompt_ids(self, record: Record) -> list[int]:
        """Tokens of the record's prompt, `(T,)`."""
        config = self.config
        given = template_kwargs(record, config.chat_template_kwargs)
        return prompt_ids(self.prompt(record), self.tokens.tokenizer, config.conversational, **given)

    def scored_ids(self, record: Record, rationale: str) -> list[int]:
        """Tokens of the record's prompt, the rationale and the prefix, `(T,)`: the score is the next token."""
        config = self.config
        row = row_ids(
            self.prompt(record),
            close(rationale, config.score_prefix, config.score_labels[0], config.score_separator),
            self.tokens.tokenizer,
            config.conversational,
            **template_kwargs(record, config.chat_template_kwargs),
        )
        found = self.tokens.find(row)
        if found is None:
            raise InputError(f"The chat template drops the closing phrase of a completion ending {rationale[-80:]!r}.")
        if drops_thoughts(rationale, row[: found.position], self.tokens.tokenizer):
            raise InputError(
                f"The chat template drops the think block of a rationale beginning {rationale[:80]!r}, so the score "
                "would be read without it. Use a chat template that keeps it, or remove the tags, such as <think>."
            )
        return row[: found.position]
