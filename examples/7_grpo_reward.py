# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer[server]"]
# ///
"""Step 7: use the judge as the reward of TRL's GRPO trainer.

    python examples/7_grpo_reward.py --max_steps 200
    python examples/7_grpo_reward.py --max_steps 200 --base_url http://localhost:8000/v1  # the judge of step 6

The reward is the expected score. It is a fraction, so two answers seldom tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config

from tract_trainer import Judge


@dataclass
class RewardArguments:
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge, from step 4."})
    base_url: list[str] | None = field(default=None, metadata={"help": "Servers of the judge. Default: this process."})
    rubric: str = field(
        default="Is the answer correct, complete and to the point?", metadata={"help": "Rubric of the judge."}
    )
    judge_tokens: int = field(default=512, metadata={"help": "Maximum tokens per rationale."})
    prompts: str = field(
        default="trl-lib/ultrafeedback-prompt", metadata={"help": "Data set with a column `prompt`, split train."}
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = TrlParser((RewardArguments, GRPOConfig, ModelConfig))
    parser.set_defaults_with_config(output_dir="runs/example/policy", model_name_or_path="Qwen/Qwen3-0.6B")
    reward, args, model = parser.parse_args_and_config(argv)
    on_server = {"engine": "server", "model_kwargs": {"base_url": reward.base_url}} if reward.base_url else {}
    judge = Judge.from_pretrained(reward.judge, **on_server)
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=judge.as_reward_func(rubric=reward.rubric, max_new_tokens=reward.judge_tokens),
        args=args,
        train_dataset=load_dataset(reward.prompts, split="train"),
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
