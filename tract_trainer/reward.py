"""Turns a judge into a reward function for reinforcement learning with TRL."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tract_trainer.errors import InputError
from tract_trainer.records import Prompt

if TYPE_CHECKING:
    from tract_trainer.judge import Judge


def reward_func(judge: "Judge", rubric: Any, num_cots: int, settings: dict[str, Any]) -> Callable[..., list[float]]:
    """See [`~tract_trainer.Judge.as_reward_func`]."""

    def judge_score(prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float]:
        rubrics = [rubric] * len(prompts) if rubric is not None else columns.get("rubric")
        if rubrics is None:
            raise InputError(
                f"The judge has no rubric to go by: the dataset has the columns {sorted(columns)}. Add a column "
                "`rubric`, or give one for all: judge.as_reward_func(rubric=...)."
            )
        references = columns.get("reference") or [None] * len(prompts)
        records = [
            {"instruction": _text(prompt), "response": _text(completion), "rubric": by, "reference": reference}
            for prompt, completion, by, reference in zip(prompts, completions, rubrics, references, strict=True)
        ]
        return [judgment.score for judgment in judge.score(records, num_cots, progress=False, **settings)]

    return judge_score


def _text(turns: Prompt) -> str:
    """A conversation as text: of a single turn, its content."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return turns[0].get("content") or ""  # a turn of tool calls alone has none
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in turns)
