# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer[server]", "deepeval"]
# ///
"""A judge as a metric of deepeval.

    python examples/deepeval_metric.py --question "Name a prime above 6." --answer 7

deepeval's scores lie between 0 and 1, so the judge's is mapped there from the ends of its scale.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepeval.metrics import BaseMetric
from deepeval.test_case import LLMTestCase
from trl import TrlParser

from tract_trainer import Judge


class TractMetric(BaseMetric):
    def __init__(self, judge: Judge, rubric: str, threshold: float = 0.5, max_new_tokens: int = 512) -> None:
        # deepeval copies a metric by attributes of the names of these arguments
        self.judge, self.rubric, self.threshold, self.max_new_tokens = judge, rubric, threshold, max_new_tokens

    def measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        return asyncio.run(self.a_measure(test_case))

    async def a_measure(self, test_case: LLMTestCase, *args: Any, **kwargs: Any) -> float:
        record = {"instruction": test_case.input, "response": test_case.actual_output, "rubric": self.rubric}
        record["reference"] = test_case.expected_output
        judgment = await self.judge.ascore(record, max_new_tokens=self.max_new_tokens)
        if judgment.reason:  # deepeval reports it as an error of the test case
            raise ValueError(judgment.reason)
        scale = self.judge.config.scale
        self.score = (judgment.score - scale.low) / (scale.high - scale.low)
        self.reason = judgment.rationale
        self.success = self.score >= self.threshold
        return self.score

    @property
    def __name__(self) -> str:
        return "tract judge"


@dataclass
class MetricArguments:
    question: str = field(metadata={"help": "What was asked."})
    answer: str = field(metadata={"help": "The answer to judge."})
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge, from step 4."})
    rubric: str = field(default="Is the answer correct, complete and to the point?", metadata={"help": "Its rubric."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(MetricArguments).parse_args_and_config(argv)
    metric = TractMetric(Judge.from_pretrained(args.judge), args.rubric)
    metric.measure(LLMTestCase(input=args.question, actual_output=args.answer))
    print(f"{metric.score:.3f}, {'passed' if metric.is_successful() else 'failed'}: {metric.reason}")


if __name__ == "__main__":
    main()
