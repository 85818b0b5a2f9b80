"""Runs `generate_cot_dataset` with an engine that does nothing, and prints what the bookkeeping alone costs as JSON.

python tests/bookkeeping.py ROWS FOLDER
"""

import json
import resource
import sys
import time

from datasets import Dataset
from tiny import PREFIX, make_tokenizer

from tract_trainer import Judge, JudgeConfig, ScoreScale, generate_cot_dataset
from tract_trainer.engines.base import Rationale
from tract_trainer.scale import ScoreTokens


class Idle:
    """An engine that writes the same rationale at once."""

    batch_size, calls, max_length, identity = 64, 1, None, "idle"

    def __init__(self, tokens):
        self.tokens = tokens

    def generate(self, prompts, seeds, sampling):
        return [Rationale("Clear. " * 20, "3", (-1.6,) * 5, 40)] * len(prompts)


def rows(count):
    for i in range(count):
        yield {"prompt": f"Rate response {i}: " + "it names many facts. " * 30, "score": 1.0 + i % 5}


def main():
    count, folder = int(sys.argv[1]), sys.argv[2]
    scale = ScoreScale.integers(1, 5)
    tokens = ScoreTokens.resolve(scale, PREFIX, make_tokenizer())
    config = JudgeConfig(list(scale.labels), list(scale.values), PREFIX, conversational=False)
    dataset = Dataset.from_generator(rows, gen_kwargs={"count": count}, cache_dir=f"{folder}/cache")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = generate_cot_dataset(Judge(Idle(tokens), config), dataset, output_dir=f"{folder}/cots", progress=False)
    print(
        json.dumps(
            {
                "rows": len(found),
                "seconds": time.perf_counter() - started,
                "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "before_kib": before,
            }
        )
    )


if __name__ == "__main__":
    main()
