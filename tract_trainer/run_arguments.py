"""The arguments of `tract run` that are not TRL's."""

from dataclasses import dataclass, field

from tract_trainer.arguments import CotArguments, EngineArguments, check_counts


@dataclass
class RunArguments(CotArguments, EngineArguments):
    """What `tract run` adds to the arguments of training and of drawing rationales."""

    _argument_group_name = "run"

    engine: str = field(
        default="transformers",
        metadata={"help": "What writes the rationales and the judgments, in this process: transformers or vllm."},
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the records that is held out, where there is no `eval_data`."}
    )
    max_cot_records: int | None = field(
        default=None, metadata={"help": "Write own rationales for the first so many training rows only."}
    )
    max_eval_records: int | None = field(default=None, metadata={"help": "Evaluate on the first so many records."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "max_cot_records", "max_eval_records")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be at least 0, got {self.max_retries}.")
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(
                f"tract run loads each stage's judge itself: use engine transformers or vllm, not {self.engine!r}. To "
                "write the rationales with servers, run tract sft, tract generate and tract sft again."
            )
