"""Regression-aware fine-tuning of LLM judges for TRL: TRACT (Chiang, Lee and Lukasik, ACL 2025)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tract_trainer.benchmarks import load_benchmark
    from tract_trainer.callback import JudgeCallback
    from tract_trainer.collator import DataCollatorForScoredCompletion
    from tract_trainer.config import RegressionAwareSFTConfig
    from tract_trainer.cot import generate_cot_dataset
    from tract_trainer.hub import JudgeConfig
    from tract_trainer.judge import Judge
    from tract_trainer.judgment import Judgment
    from tract_trainer.losses import expected_score
    from tract_trainer.metrics import agreement
    from tract_trainer.pushing import push_dataset
    from tract_trainer.scale import ScoreScale
    from tract_trainer.trainer import RegressionAwareSFTTrainer

# Names are imported when first used: `import tract_trainer` loads no torch.
_MODULES = {
    "DataCollatorForScoredCompletion": "collator",
    "Judge": "judge",
    "JudgeCallback": "callback",
    "JudgeConfig": "hub",
    "Judgment": "judgment",
    "RegressionAwareSFTConfig": "config",
    "RegressionAwareSFTTrainer": "trainer",
    "ScoreScale": "scale",
    "agreement": "metrics",
    "expected_score": "losses",
    "generate_cot_dataset": "cot",
    "load_benchmark": "benchmarks",
    "push_dataset": "pushing",
}

__all__ = [
    "DataCollatorForScoredCompletion",
    "Judge",
    "JudgeCallback",
    "JudgeConfig",
    "Judgment",
    "RegressionAwareSFTConfig",
    "RegressionAwareSFTTrainer",
    "ScoreScale",
    "agreement",
    "expected_score",
    "generate_cot_dataset",
    "load_benchmark",
    "push_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("tract-trainer")
    if name not in _MODULES:
        raise AttributeError(f"module 'tract_trainer' has no attribute {name!r}; it has {sorted(_MODULES)}")
    return getattr(import_module(f"tract_trainer.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
