# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 8: train the judge further by reinforcement learning on the error of its expected score.

    python examples/8_reinforce.py --max_steps 200

It samples 8 rationales for each prompt of step 1. Compare it with the judge of step 4 afterwards, as in step 5:
`--judge runs/example/reinforced --other runs/example/stage2`. `tract grpo` does the same in one command.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config

from tract_trainer import RegressionAwareGRPOConfig, RegressionAwareGRPOTrainer


@dataclass
class DataArguments:
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge to train, from step 4."})
    rows: str = field(default="runs/example/rows.parquet", metadata={"help": "Prompts with scores, from step 1."})


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((DataArguments, RegressionAwareGRPOConfig, ModelConfig))
    # A tenth of the learning rate of step 4, and rationales as long as those of step 3.
    settings = {"learning_rate": 1e-6, "top_p": 0.9, "max_completion_length": 1024, "gradient_accumulation_steps": 4}
    parser.set_defaults_with_config(output_dir="runs/example/reinforced", **settings)
    data, args, model = parser.parse_args_and_config(argv)
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    trainer = RegressionAwareGRPOTrainer(
        model=data.judge,
        args=args,
        train_dataset=Dataset.from_parquet(data.rows).select_columns(["prompt", "score"]),
        peft_config=get_peft_config(model),  # of an adapter, leave out --use_peft: it is trained on
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
