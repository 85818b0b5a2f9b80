# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer", "lm-eval[hf]"]
# ///
"""A judge as the metric of a task of lm-eval.

    python examples/lm_eval_task.py --model_args pretrained=Qwen/Qwen3-0.6B --data questions.jsonl

`questions.jsonl` has a line for each question: `question`. All answers are judged in one call, in batches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import load_dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from trl import TrlParser

from tract_trainer import Judge


def judged_task(data: str, rubric: str, mean_score: Callable[[list[Any]], float], max_gen_toks: int) -> Any:
    def record(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        return {"judge_score": {"instruction": doc["question"], "response": results[0], "rubric": rubric}}

    config = {
        "task": "tract_judge",
        "custom_dataset": lambda **kwargs: load_dataset("json", data_files={"test": data}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": [], "max_gen_toks": max_gen_toks},
        "process_results": record,
        "metric_list": [{"metric": "judge_score", "aggregation": mean_score, "higher_is_better": True}],
    }
    return ConfigurableTask(config=config)


@dataclass
class TaskArguments:
    model_args: str = field(metadata={"help": "The model to evaluate, as lm-eval takes it."})
    data: str = field(metadata={"help": "JSONL file of questions."})
    model: str = field(default="hf", metadata={"help": "What runs the model, as lm-eval names it."})
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge, from step 4."})
    rubric: str = field(default="Is the answer correct, complete and to the point?", metadata={"help": "Its rubric."})
    max_gen_toks: int = field(default=512, metadata={"help": "Maximum tokens of an answer, and of a rationale."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(TaskArguments).parse_args_and_config(argv)

    def mean_score(records: list[Any]) -> float:
        judge = Judge.from_pretrained(args.judge)  # once the answers are written
        judgments = judge.score(records, max_new_tokens=args.max_gen_toks)
        scores = [judgment.score for judgment in judgments if not judgment.reason]
        print(f"{len(judgments) - len(scores)} of {len(judgments)} answers remain unscored.")
        return sum(scores) / len(scores) if scores else math.nan

    task = judged_task(args.data, args.rubric, mean_score, args.max_gen_toks)
    found = simple_evaluate(model=args.model, model_args=args.model_args, tasks=[task], bootstrap_iters=0)
    print(f"judge_score {found['results']['tract_judge']['judge_score,none']:.3f}")


if __name__ == "__main__":
    main()
