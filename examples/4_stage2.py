# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 4, stage 2: train the seed model again, on the rationales that stage 1 wrote, with the gold scores.

    python examples/4_stage2.py --config examples/training.yaml

During training, it regularly judges a few held-out records and logs `judge_rail_pearson` and other figures. If you
choose settings by these figures, evaluate on other records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config

from tract_trainer import JudgeCallback, RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.data.reading import read_rows


@dataclass
class DataArguments:
    rows: str = field(default="runs/example/cots/train.parquet", metadata={"help": "Training rows, from step 3."})
    watched: str = field(default="runs/example/held_out.jsonl", metadata={"help": "Records judged during training."})
    watched_records: int = field(default=16, metadata={"help": "Number of these records."})
    watched_steps: int = field(default=100, metadata={"help": "Optimizer steps between two evaluations."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Maximum tokens per rationale, including the score."})


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((DataArguments, RegressionAwareSFTConfig, ModelConfig))
    parser.set_defaults_with_config(output_dir="runs/example/stage2")
    data, args, model = parser.parse_args_and_config(argv)
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    trainer = RegressionAwareSFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=Dataset.from_parquet(data.rows),
        peft_config=get_peft_config(model),
    )
    records = read_rows(data.watched)[: data.watched_records]
    trainer.add_callback(JudgeCallback(trainer, records, data.watched_steps, max_new_tokens=data.max_new_tokens))
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
