"""Prompts and training examples of records.

A record is a mapping with `instruction`, `response`, `rubric` and optionally `reference` and `system_prompt`; or with a
ready `prompt` (text or messages); or in the Prometheus format, where `instruction` is the ready prompt and `gpt4_score`
and `gpt4_feedback` are the annotations.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tract_trainer.data.templates import ControlTokens, blank, escape_control_tokens, rendered
from tract_trainer.errors import InputError, numbered
from tract_trainer.judge_config import DEFAULT_TEMPLATE
from tract_trainer.scale import ScoreScale

Record = Mapping[str, Any]
Prompt = str | list[dict[str, str]]

SCORE_COLUMNS = ("score", "gpt4_score", "orig_score")
RATIONALE_COLUMNS = ("rationale", "gpt4_feedback", "orig_feedback")


def prompt_of(
    record: Record,
    scale: ScoreScale,
    prefix: str,
    template: str = DEFAULT_TEMPLATE,
    controls: ControlTokens | None = None,
) -> Prompt:
    """
    The prompt a judge is asked with. A ready prompt is taken as it is. A `template` in Jinja is over `instruction`,
    `response`, `rubric`, `reference`, `prefix` and `labels`; control tokens in the fields are escaped or refused.
    """
    record = _given(record)
    if record.get("system_prompt") and (record.get("response") is None or "system_prompt" not in template):
        raise InputError(
            "A record has a `system_prompt`, which its prompt would not show. Put it into the instruction or the "
            "messages, use a template with {{ system_prompt }}, or leave it out."
        )
    if record.get("prompt"):
        if record.get("response") is not None:
            raise InputError(
                "A record has a `response` and a `prompt`, which is asked as it is. Name the instruction that was "
                "responded to `instruction`; if the prompt is all that the judge reads, leave out `response`."
            )
        return checked_prompt(record["prompt"])
    if record.get("messages"):
        return unanswered(checked_prompt(record["messages"]))
    for name in ("instruction", "response"):
        if isinstance(record.get(name), list | dict):
            kind = type(record[name]).__name__
            raise InputError(f"`{name}` of a record must be text, found {kind}. Give the text of the messages.")
    if controls is not None:
        record = escape_control_tokens(record, controls)
    if record.get("response") is not None and record.get("instruction") and record.get("rubric"):
        of_scale = {"prefix": prefix.strip(), "labels": list(scale.labels)}
        text = rendered(template, {"reference": None, **record, **of_scale})
        if controls is not None:
            controls.refuse(text, lambda: rendered(template, {"reference": None, **blank(record), **of_scale}))
        return text
    if record.get("instruction") and record.get("response") is None and record.get("rubric") is None:
        text = ready_prompt(str(record["instruction"]))
        if controls is not None:
            controls.refuse(text)
        return text
    found = _named(record)
    raise InputError(f"A record needs `instruction`, `response` and `rubric`, or a ready `prompt`; found {found}.")


def _named(record: Record) -> list[str]:
    return sorted(name if value else f"{name} (empty)" for name, value in record.items())


def _given(record: Record) -> dict[str, Any]:
    """`record` without NaN, which is what pandas has for missing values."""
    if not isinstance(record, Mapping):
        raise InputError(
            "Expected a record with `instruction`, `response` and `rubric`, or a ready `prompt`; found "
            f"{type(record).__name__}: {record!r:.80}."
        )
    return {name: value for name, value in record.items() if not (isinstance(value, float) and math.isnan(value))}


def checked_prompt(prompt: Any) -> Any:
    """`prompt`, after an InputError if it is neither text nor messages."""
    turns = prompt if isinstance(prompt, list) else []
    messages = bool(turns) and all(
        isinstance(turn, Mapping) and "role" in turn and (turn.get("content") is not None or turn.get("tool_calls"))
        for turn in turns
    )
    if isinstance(prompt, str) or (messages and any(turn["role"] != "assistant" for turn in turns)):
        return prompt
    raise InputError(
        f"A ready prompt must be text, or messages with `role` and `content` that ask for something; found "
        f"{prompt!r:.80}."
    )


def ready_prompt(text: str) -> str:
    """`text` without the stray `",` that the public Prometheus files have at some ends, a line break after it."""
    bare = text.rstrip().removesuffix('",')
    return bare if len(bare) < len(text.rstrip()) else text


def check_prompts(records: Iterable[Record], prompt: Callable[[Record], Any]) -> None:
    """Raises the InputError of the first record that `prompt` refuses, with the record's number."""
    for number, record in enumerate(records):
        with numbered("Record", number):
            prompt(record)


def unanswered(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """`messages` without the assistant's last turn, which is the judgment."""
    if isinstance(messages, str):
        raise InputError(f"`messages` must be a list of turns with `role` and `content`; found {messages!r:.80}.")
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def gold_scores(record: Record) -> list[float]:
    """The record's gold scores: one, those of several raters, or none."""
    value: Any = next((record[name] for name in SCORE_COLUMNS if record.get(name) is not None), None)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    try:
        if not values or any(isinstance(score, bool) for score in values):
            raise TypeError("nothing, or a truth value")
        return [float(score) for score in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"A gold score must be a number or a list of numbers, found {value!r}.") from error


def gold_score(record: Record) -> float | None:
    """The record's gold score, the mean of several, or `None` where it has none."""
    scores = gold_scores(record)
    return sum(scores) / len(scores) if scores else None


def annotated_rationales(row: Record, prefix: str) -> list[str]:
    """The rationales of a record or a completion, without the closing phrase and score (`[RESULT] 4`, the prefix)."""
    default: Any = completion_text(row) or []
    found = next((row[name] for name in RATIONALE_COLUMNS if row.get(name) is not None), default)
    texts = [str(text) for text in (found if isinstance(found, list) else [found]) if text is not None]
    return [_unclosed(prefix, _unclosed("[RESULT]", text)).strip() for text in texts]


def completion_text(row: Record) -> str:
    """Text of a row's `completion`, or of the assistant's last turn in it or in `messages`; empty if there is none."""
    found = row.get("completion") or row.get("messages") or ""
    last = found[-1] if isinstance(found, list) else {"role": "assistant", "content": found}
    return turn_text(last) if isinstance(last, Mapping) and last.get("role") == "assistant" else ""


def turn_text(turn: Mapping[str, Any]) -> str:
    """The text of a turn, whose content may be a text, parts, or missing beside a tool call."""
    said = turn.get("content") or ""
    return said if isinstance(said, str) else "".join(part.get("text") or "" for part in said)


# A label behind a closing phrase: a number or a word, perhaps `out of 5`, and nothing else.
CLOSED = re.compile(r"""[\s"'*(]*([+-]?\d+([.,]\d+)?|[^\W\d]\w*[+-]?)[*"']*(\s*(/|out\s+of)\s*\d+)?[\s"'*).\]]*""")


def _unclosed(prefix: str, text: str) -> str:
    """
    `text` without the prefix and label at its end. A text that goes on, has no label, or ends with a quotation of both
    is not closed.
    """
    before, found, label = text.rpartition(prefix)
    return before if found and CLOSED.fullmatch(label) and not _is_quoted(before, label) else text


def _is_quoted(before: str, label: str) -> bool:
    """Whether a quotation that begins in `before` ends in `label`. Quotes around the whole text do not count."""
    opened = before.lstrip().removeprefix('"')
    if label.count("'") % 2 == 1 and opened.endswith("'"):  # elsewhere it may be an apostrophe
        return True
    return label.count('"') % 2 == 1 and (opened.endswith('"') or opened.count('"') % 2 == 1)


def training_examples(
    records: Iterable[Record],
    scale: ScoreScale,
    prefix: str,
    template: str | None = None,
    conversational: bool = False,
    controls: ControlTokens | None = None,
) -> Iterator[dict[str, Any]]:
    """
    One example for each rationale of each record: `prompt`, `completion`, and the gold score as `score`. The label in
    the completion is the nearest one. A rationale's own closing phrase (`[RESULT] 4`, or the prefix) is cut off, and
    control tokens in it are escaped. Without any rationale, a completion is the prefix and the label.
    """
    separator, with_rationales = default_separator(prefix), None
    for number, record in enumerate(records):
        with numbered("Record", number):
            record = _given(record)
            gold = gold_score(record)
            if gold is None:
                raise InputError(f"training takes a score, one of {list(SCORE_COLUMNS)}; found {_named(record)}.")
            annotated = any(record.get(name) is not None for name in RATIONALE_COLUMNS)
            with_rationales = annotated if with_rationales is None else with_rationales
            if annotated != with_rationales:
                raise InputError(
                    f"{'no' if with_rationales else 'a'} rationale (one of {list(RATIONALE_COLUMNS)}), unlike the "
                    f"records before; found {_named(record)}. Give every record one, or none."
                )
            rationales = annotated_rationales(record, prefix) if annotated else [""]
            prompt = prompt_of(record, scale, prefix, template or DEFAULT_TEMPLATE, controls)
        for rationale in rationales:
            text = rationale
            if controls is not None:
                text = escape_control_tokens(rationale, controls)
                with numbered("Record", number):
                    controls.refuse(text)
            completion = close(text, prefix, scale.nearest_label(gold), separator)
            yield {
                "prompt": as_messages(prompt) if conversational else prompt,
                "completion": [{"role": "assistant", "content": completion}] if conversational else completion,
                "score": gold,
            }


def default_separator(prefix: str) -> str:
    """A space before a prefix that begins with a letter, a digit or an opening mark, nothing before any other."""
    return " " if re.match(r"[A-Za-z0-9\[({*#_\"']", prefix) else ""


def close(rationale: str, prefix: str, label: str, separator: str = " ") -> str:
    """The completion: the rationale, `separator` unless the rationale ends in white space, the prefix and the label."""
    joint = "" if not rationale or rationale[-1].isspace() else separator
    return f"{rationale}{joint}{prefix}{label}"


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
