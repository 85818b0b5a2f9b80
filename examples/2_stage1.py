# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 2, stage 1: train the seed model on the annotated rationales and scores.

    python examples/2_stage1.py --config examples/training.yaml

All settings of SFTTrainer work. LoRA: `--use_peft --lora_target_modules all-linear`. Several GPUs: replace `python`
with `accelerate launch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from trl import ModelConfig, TrlParser, get_peft_config

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer


@dataclass
class DataArguments:
    rows: str = field(default="runs/example/rows.parquet", metadata={"help": "Training rows, from step 1."})


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((DataArguments, RegressionAwareSFTConfig, ModelConfig))
    parser.set_defaults_with_config(output_dir="runs/example/stage1")
    data, args, model = parser.parse_args_and_config(argv)
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    trainer = RegressionAwareSFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=Dataset.from_parquet(data.rows),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()  # model or adapter, tokenizer and judge_config.json
    trainer.save_state()  # the training log


if __name__ == "__main__":
    main()
