"""Groups of records, and of pairs, that are not independent because they answer the same question."""

import re
from collections.abc import Sequence
from typing import Any

from tract_trainer.data.hashing import digest
from tract_trainer.data.pairs import side_records
from tract_trainer.data.records import Record

PROMETHEUS_INSTRUCTION = re.compile(r"###The instruction to evaluate:\n(.*?)\n\s*###Response to evaluate:", re.DOTALL)


def record_groups(records: Sequence[Record]) -> list[int]:
    """
    The group of each record: the number of the first record of the same question.

    The question is the value of the column `group`, or `idx` where it repeats (otherwise it numbers the rows), or the
    instruction: `orig_instruction`, the `instruction` of a record with a `response`, or the text between the headers of
    a Prometheus prompt. A record without any of these is a group of its own. If all records are of one question, each
    is a group of its own, too: intervals are then of other responses to this question.
    """
    numbers = [str(record["idx"]) for record in records if _given(record, "idx")]
    repeats = len(set(numbers)) < len(numbers)
    return _numbered([_question(record, repeats) for record in records])


def pair_groups(pairs: Sequence[Record]) -> list[int]:
    """
    The group of each pair: the number of the first pair of the same question.

    The question is the value of the column `group`, or the instruction. A problem of RewardBench's `hep` subsets occurs
    in six programming languages under the same `id`, and is one question; without `id`, each language is another. So
    are `ref:7` and `tied:7` of RewardBench 2's Ties.
    """
    return _numbered([_problem(pair) for pair in pairs])


def _question(record: Record, by_idx: bool = False) -> Any:
    if _given(record, "group"):
        return record["group"]
    if by_idx and _given(record, "idx"):
        return {"idx": record["idx"]}
    if _given(record, "orig_instruction"):
        return record["orig_instruction"]
    if record.get("response") is not None and _given(record, "instruction"):
        return record["instruction"]
    found = PROMETHEUS_INSTRUCTION.search(str(record.get("prompt") or record.get("instruction") or ""))
    return found and found[1].strip()


def _problem(pair: Record) -> Any:
    if not _given(pair, "group") and str(pair["subset"]).startswith("hep-") and _given(pair, "id"):
        return {"hep": str(pair["id"])}
    if not _given(pair, "group") and pair["subset"] == "Ties" and _given(pair, "id"):
        return {"Ties": str(pair["id"]).rpartition(":")[2]}
    return _question({**side_records(pair, "chosen")[0], "group": pair.get("group")})


def _given(record: Record, name: str) -> bool:
    """Whether a record has a value in this column: not an empty cell, nor what pandas has for one."""
    value = record.get(name)
    return value is not None and value != "" and value == value


def _numbered(questions: Sequence[Any]) -> list[int]:
    first: dict[str, int] = {}
    groups = [
        number if question is None else first.setdefault(digest(question), number)
        for number, question in enumerate(questions)
    ]
    return list(range(len(groups))) if len(set(groups)) == 1 else groups
