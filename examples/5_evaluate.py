# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 5: evaluate both judges on the held-out records and compare them.

    python examples/5_evaluate.py --config examples/rationales.yaml

Writes `stage1.json` and `stage2.json` with figures and judgments, tables and pictures. Run it again to resume.
`tract report runs/example` makes an HTML page of everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from trl import TrlParser

from tract_trainer import Judge
from tract_trainer.data.benchmarks import own_benchmark
from tract_trainer.evaluation.comparison import compare, draw_comparison
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.tables import comparison_table, results_table


@dataclass
class EvaluationArguments:
    judge: str = field(default="runs/example/stage2", metadata={"help": "A judge, from step 4."})
    other: str = field(default="runs/example/stage1", metadata={"help": "The judge to compare it with, from step 2."})
    data: str = field(default="runs/example/held_out.jsonl", metadata={"help": "Scored records, from step 1."})
    output_dir: str = field(default="runs/example", metadata={"help": "Folder of the results."})
    temperature: float = field(default=1.0, metadata={"help": "0 takes the most likely token at each step."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus sampling: probability mass kept at each step."})
    repetition_penalty: float = field(default=1.03, metadata={"help": "Penalty on tokens already in the text."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Maximum tokens per rationale, including the score."})
    num_cots: int = field(default=1, metadata={"help": "Rationales per record; their scores are averaged."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(EvaluationArguments).parse_args_and_config(argv)
    records, folder, results = own_benchmark(args.data), Path(args.output_dir), []
    names = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")
    settings = {name: getattr(args, name) for name in names}
    for model in map(Path, (args.judge, args.other)):
        judge, path = Judge.from_pretrained(model), folder / f"{model.name}.json"
        found = evaluate(judge, records, "held-out records", path, args.num_cots, judge_name=model.name, **settings)
        Console().print(results_table(found["methods"], model.name))
        results.append(found)
    difference = compare(*results)
    draw_comparison(difference, *results, folder / "comparison.png")
    Console().print(comparison_table(difference))
    print(f"The judgments, tables and pictures are in {folder}.")


if __name__ == "__main__":
    main()
