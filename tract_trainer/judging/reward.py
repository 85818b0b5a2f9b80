"""Turns a judge into a reward function for reinforcement learning with TRL."""

from collections.abc import Callable, Sequence
from typing import Any

from tract_trainer.data.pairs import conversation_text
from tract_trainer.data.records import Prompt, as_messages
from tract_trainer.errors import InputError
from tract_trainer.judging.judgment import Judgment


def reward_func(
    judge: Callable[[list[dict[str, Any]]], Sequence[Judgment]], rubric: Any, name: str
) -> Callable[..., list[float | None]]:
    """See [`~tract_trainer.Judge.as_reward_func`]. `judge` gives the judgments of records."""

    def score(prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        rubrics = [rubric] * len(prompts) if rubric is not None else columns.get("rubric")
        if rubrics is None:
            raise InputError(
                f"The judge has no rubric to go by: the dataset has the columns {sorted(columns)}. Add a column "
                "`rubric`, or give one for all: judge.as_reward_func(rubric=...)."
            )
        references = columns.get("reference") or [None] * len(prompts)
        records = [
            {
                "instruction": conversation_text(as_messages(prompt)),
                "response": conversation_text(as_messages(completion)),
                "rubric": by,
                "reference": reference,
            }
            for prompt, completion, by, reference in zip(prompts, completions, rubrics, references, strict=True)
        ]
        asked = [record for record in records if record["rubric"]]
        judgments = iter(judge(asked))
        return [next(judgments).score if record["rubric"] else None for record in records]

    score.__name__ = name
    return score
