"""Regression-aware fine-tuning of LLM judges for TRL: TRACT (Chiang, Lee and Lukasik, ACL 2025)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tract_trainer.data.benchmarks import load_benchmark
    from tract_trainer.hub.pushing import push_dataset
    from tract_trainer.judge_config import JudgeConfig
    from tract_trainer.judging.judge import Judge
    from tract_trainer.judging.judgment import Judgment
    from tract_trainer.losses import expected_score
    from tract_trainer.metrics import agreement
    from tract_trainer.rationales.generation import generate_cot_dataset
    from tract_trainer.scale import ScoreScale
    from tract_trainer.training.callback import JudgeCallback
    from tract_trainer.training.collator import DataCollatorForScoredCompletion
    from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig
    from tract_trainer.training.grpo import RegressionAwareGRPOTrainer
    from tract_trainer.training.rows import training_rows
    from tract_trainer.training.trainer import RegressionAwareSFTTrainer

# Names are imported when first used: `import tract_trainer` loads no torch.
_MODULES = {
    "DataCollatorForScoredCompletion": "training.collator",
    "Judge": "judging.judge",
    "JudgeCallback": "training.callback",
    "JudgeConfig": "judge_config",
    "Judgment": "judging.judgment",
    "RegressionAwareGRPOConfig": "training.config",
    "RegressionAwareGRPOTrainer": "training.grpo",
    "RegressionAwareSFTConfig": "training.config",
    "RegressionAwareSFTTrainer": "training.trainer",
    "ScoreScale": "scale",
    "agreement": "metrics",
    "expected_score": "losses",
    "generate_cot_dataset": "rationales.generation",
    "load_benchmark": "data.benchmarks",
    "push_dataset": "hub.pushing",
    "training_rows": "training.rows",
}

__all__ = [
    "DataCollatorForScoredCompletion", "Judge", "JudgeCallback", "JudgeConfig", "Judgment",
    "RegressionAwareGRPOConfig", "RegressionAwareGRPOTrainer", "RegressionAwareSFTConfig", "RegressionAwareSFTTrainer",
    "ScoreScale", "agreement", "expected_score", "generate_cot_dataset", "load_benchmark", "push_dataset",
    "training_rows",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("tract-trainer")
    if name not in _MODULES:
        raise AttributeError(f"module 'tract_trainer' has no attribute {name!r}; it has {sorted(_MODULES)}")
    return getattr(import_module(f"tract_trainer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
