# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer[quantization]"]
# ///
"""Train one stage on one GPU: 4-bit weights, a LoRA adapter, and the hyperparameters of the TRACT paper.

    python examples/qlora.py --model_name_or_path Qwen/Qwen3-8B --data rows.jsonl --output_dir stage1

A row has `prompt`, `completion` (ending with "So the overall score is 4") and optionally `score`. For stage 2, run
`tract generate --model stage1 --data rows.jsonl`, then train the same seed model again with
`--data cots/train.parquet --output_dir judge`. All settings of SFTTrainer work. On a CPU: `--use_cpu --bf16 false`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer

DEFAULTS = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # a share of all steps
    "num_train_epochs": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 3000,
    "use_peft": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["all-linear"],
    "load_in_4bit": True,  # the paper's runs were in bf16
    "use_bnb_nested_quant": True,
    "dtype": "bfloat16",
}


@dataclass
class DataArguments:
    data: str = field(metadata={"help": "A .jsonl or .parquet file of training rows."})


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((DataArguments, RegressionAwareSFTConfig, ModelConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    data, args, model = parser.parse_args_and_config(argv)
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    kind = "parquet" if Path(data.data).suffix == ".parquet" else "json"
    trainer = RegressionAwareSFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=load_dataset(kind, data_files=data.data, split="train"),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()  # adapter, tokenizer and judge_config.json


if __name__ == "__main__":
    main()
