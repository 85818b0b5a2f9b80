# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 1: turn annotated records into training rows, and look at them before training.

    python examples/1_prepare_data.py --config examples/training.yaml

`record_of` reads the columns of Feedback Collection; change this function for your own data. Writes `rows.parquet` for
training and `held_out.jsonl` for the evaluation. Loads only the model's tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import load_dataset
from rich.console import Console
from transformers import AutoTokenizer
from trl import ModelConfig, TrlParser

from tract_trainer import RegressionAwareSFTConfig, training_rows
from tract_trainer.training.inspection import inspect_dataset, view


@dataclass
class DataArguments:
    data: str = field(
        default="prometheus-eval/Feedback-Collection", metadata={"help": "A Hub data set, or a folder with files."}
    )
    split: str = field(default="train[:2000]", metadata={"help": "Split of the data set, or a slice of one."})
    held_out: int = field(default=200, metadata={"help": "Number of records at the end that are not trained on."})


def record_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A judging record: the task, the response, the rubric, and an annotator's rationale and score."""
    levels = {str(score): row[f"orig_score{score}_description"] for score in range(1, 6)}
    return {
        "instruction": row["orig_instruction"],
        "response": row["orig_response"],
        "reference": row["orig_reference_answer"],
        "rubric": {"criteria": row["orig_criteria"], **levels},
        "rationale": row["orig_feedback"],
        "score": float(row["orig_score"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((DataArguments, RegressionAwareSFTConfig, ModelConfig))
    parser.set_defaults_with_config(output_dir="runs/example", use_cpu=True)
    data, args, model = parser.parse_args_and_config(argv)
    records = [record_of(row) for row in load_dataset(data.data, split=data.split)]
    training, held_out = records[: -data.held_out], records[-data.held_out :]
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, revision=model.model_revision)
    rows = training_rows(training, args, tokenizer)  # prompt, completion, score
    Console().print(view(inspect_dataset(rows, args, model), count=2))
    folder = Path(args.output_dir)
    rows.to_parquet(folder / "rows.parquet")
    (folder / "held_out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held_out))
    print(f"{len(rows):,} rows and {len(held_out):,} held-out records are in {folder}.")


if __name__ == "__main__":
    main()
