"""Judges a few held-out records with the model in training, every so many steps, and logs the agreement with gold.

Scores are read after the model's own rationales. An evaluation by the trainer reads them after the annotated ones.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tract_trainer._distributed import refuse_sharding
from tract_trainer.data.benchmarks import check_scale, scored_records
from tract_trainer.data.records import Record, check_prompts
from tract_trainer.data.rendering import RecordRows
from tract_trainer.engines.base import check_score_settings
from tract_trainer.errors import InputError
from tract_trainer.judging.judge import Judge
from tract_trainer.judging.judgment import Judgment
from tract_trainer.metrics import agreement

if TYPE_CHECKING:
    from datasets import Dataset

    from tract_trainer.training.trainer import RegressionAwareSFTTrainer

FIGURES = ("pearson", "spearman", "kendall", "rmse", "mae", "unscored")


class JudgeCallback(TrainerCallback):
    """
    Judges held-out records with freely generated rationales and logs `judge_<method>_<figure>` of the expected score
    (`rail`) and of the label written (`decoded`), and `judge_mass`. Draws nothing from the trainer's random numbers.

    Args:
        trainer ([`RegressionAwareSFTTrainer`]): the trainer that this is added to.
        records (`Sequence[Mapping]` or [`~datasets.Dataset`]): records with gold scores, see [`Judge.score`].
        steps (`int`, *optional*): optimizer steps between two rounds; `eval_steps` of the trainer by default.
        shown (`int`, *optional*, defaults to `4`): judgments printed in a table each time.
        batch_size (`int`, *optional*, defaults to `16`): rationales generated together.
        **settings: as in [`Judge.score`], e.g. `num_cots=4`, `max_new_tokens=256`.

    Raises:
        InputError: a record has no gold score on the scale, or no prompt; `steps` is missing; [`Judge.score`] does not
            take a setting; the model is sharded.

    Example:
    ```python
    trainer.add_callback(JudgeCallback(trainer, held_out, steps=100))
    ```
    """

    def __init__(
        self,
        trainer: "RegressionAwareSFTTrainer",
        records: "Sequence[Record] | Dataset",
        steps: int | None = None,
        *,
        shown: int = 4,
        batch_size: int = 16,
        **settings: Any,
    ) -> None:
        refuse_sharding(trainer.accelerator)
        every = trainer.args.eval_steps if steps is None else steps
        if not every or every < 1:
            raise InputError(f"steps must be a whole number of at least 1, got {every}.")
        self.trainer, self.steps, self.shown, self.batch_size = trainer, int(every), shown, batch_size
        self.records, self.settings = scored_records(list(records)), {"progress": False, **settings}
        if not self.records:
            raise InputError("There are no records to judge. Give at least one.")
        check_scale(self.records, trainer.args.scale)
        check_score_settings(**settings)
        check_prompts(self.records, RecordRows(trainer.score_tokens, trainer.judge_config).prompt)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Any
    ) -> None:
        if state.global_step % self.steps:
            return
        judgments = self._judge()
        gold = [record["score"] for record in self.records]
        due = control.should_log
        # Not `self.trainer.log`: that of SFTTrainer ends its window of averages.
        Trainer.log(self.trainer, self._figures(judgments, gold))
        control.should_log = due  # logging resets it, but the training's own figures are still to be logged
        if self.trainer.accelerator.is_main_process:
            Console().print(self._table(judgments, gold, state.global_step))

    def _judge(self) -> list[Judgment]:
        accelerator = self.trainer.accelerator
        # A compiled model hides that it is an adapter, and would be compiled again for every length.
        model: Any = accelerator.unwrap_model(self.trainer.model_wrapped, keep_torch_compile=False)
        tokenizer = self.trainer._tokenizer  # the processing class of a model with images is no tokenizer
        judge = Judge.from_model(model, tokenizer, self.trainer.judge_config, batch_size=self.batch_size)
        mine = range(accelerator.process_index, len(self.records), accelerator.num_processes)
        numbered = list(zip(mine, judge.score([self.records[i] for i in mine], **self.settings), strict=True))
        return [judgment for _, judgment in sorted(gather_object(numbered), key=lambda pair: pair[0])]

    def _figures(self, judgments: Sequence[Judgment], gold: Sequence[float]) -> dict[str, float]:
        values = self.trainer.judge_config.scale
        scores = {
            "rail": [judgment.score for judgment in judgments],
            "decoded": [float("nan") if j.label is None else values.value(j.label) for j in judgments],
        }
        logged = {}
        for method, predictions in scores.items():
            found: Mapping[str, Any] = agreement(predictions, gold, intervals=False)
            logged.update({f"judge_{method}_{name}": float(found[name]) for name in FIGURES})
        masses = [judgment.mass for judgment in judgments if not judgment.reason]
        return {**logged, "judge_mass": sum(masses) / len(masses) if masses else float("nan")}

    def _table(self, judgments: Sequence[Judgment], gold: Sequence[float], step: int) -> Table:
        table = Table(title=f"Judgments after step {step:,}", show_lines=True)
        for heading in ("gold", "score", "label", "mass"):
            table.add_column(heading, justify="right")
        table.add_column("rationale", overflow="fold")
        for judgment, target in list(zip(judgments, gold, strict=True))[: self.shown]:
            text = judgment.reason or judgment.rationale
            numbers = (f"{target:.2f}", f"{judgment.score:.2f}", judgment.label or "-", f"{judgment.mass:.2f}")
            table.add_row(*numbers, escape(text if len(text) <= 400 else text[:400] + " ..."))
        return table
