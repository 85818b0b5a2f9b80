# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer[server]", "inspect-ai"]
# ///
"""A judge as a scorer of inspect_ai.

    python examples/inspect_scorer.py --model openai/gpt-4o-mini --data questions.jsonl

`questions.jsonl` has a line for each question: `input`, and optionally `target`, a reference answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inspect_ai import Task, eval
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate
from trl import TrlParser

from tract_trainer import Judge


@scorer(metrics=[mean(), stderr()])
def tract_judge(judge: str, rubric: str, max_new_tokens: int = 512) -> Scorer:
    loaded = Judge.from_pretrained(judge)

    async def score(state: TaskState, target: Target) -> Score:
        record = {"instruction": state.input_text, "response": state.output.completion, "rubric": rubric}
        judgment = await loaded.ascore({**record, "reference": target.text}, max_new_tokens=max_new_tokens)
        if judgment.reason:  # the metrics leave it out
            return Score.unscored(explanation=judgment.reason)
        return Score(value=judgment.score, explanation=judgment.rationale, metadata={"std": judgment.std})

    return score


@dataclass
class ScorerArguments:
    model: str = field(metadata={"help": "The model to evaluate, as inspect_ai names it."})
    data: str = field(metadata={"help": "JSONL file of questions."})
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge, from step 4."})
    rubric: str = field(default="Is the answer correct, complete and to the point?", metadata={"help": "Its rubric."})
    log_dir: str = field(default="logs", metadata={"help": "Folder for the logs of inspect_ai."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(ScorerArguments).parse_args_and_config(argv)
    task = Task(json_dataset(args.data), solver=generate(), scorer=tract_judge(args.judge, args.rubric))
    (log,) = eval(task, model=args.model, log_dir=args.log_dir)
    if log.results is None:
        raise SystemExit(f"The evaluation has failed: {log.error and log.error.message}")
    print({name: round(metric.value, 3) for name, metric in log.results.scores[0].metrics.items()})


if __name__ == "__main__":
    main()
