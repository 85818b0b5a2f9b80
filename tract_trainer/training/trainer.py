"""The trainer: TRL's `SFTTrainer` with a score loss beside the cross-entropy."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.data_utils import is_conversational
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tract_trainer.data.datasets import unformatted
from tract_trainer.data.records import completion_text
from tract_trainer.data.rendering import check_reloaded, check_rows, pin_dates, separator_of
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.losses import score_loss
from tract_trainer.scale import ScoreTokens
from tract_trainer.training import limits
from tract_trainer.training.collator import DataCollatorForScoredCompletion, scores_due
from tract_trainer.training.config import RegressionAwareSFTConfig
from tract_trainer.training.figures import ScoreFigures
from tract_trainer.training.saving import JudgeSavingTrainer, RowCounts
from tract_trainer.training.score_head import add_score_head, first_output
from tract_trainer.training.score_labels import (
    COLUMNS,
    UNTRAINED,
    Cut,
    add_score_labels,
    closed_texts,
    cut_or_pack,
    uncut,
    with_template_kwargs,
)

logger = get_logger(__name__)

SAMPLED = 4  # rows that are read with the saved tokenizer before training
Datasets: TypeAlias = Dataset | IterableDataset


class RegressionAwareSFTTrainer(JudgeSavingTrainer, SFTTrainer):  # type: ignore[misc]
    """
    Trainer for TRACT (Chiang, Lee and Lukasik, ACL 2025): `SFTTrainer` whose loss is, with `y` the gold score and
    `yhat` the expected score where the row writes it (eq. 4),

        `ce_loss_weight * cross-entropy + score_loss_weight * (yhat - y)^2`,

    where scores are measured so that the scale is as wide as 1 to 5. The second term is a mean over the scores of an
    optimizer step; `score_loss_type` names another loss than the squared error.

    The arguments are those of [`~trl.SFTTrainer`]; a plain [`~trl.SFTConfig`] gets the defaults of
    [`RegressionAwareSFTConfig`]. The datasets are any of TRL's types, with an optional float column `score` as target;
    without it, the target is the value of the label in the text.

    Overridden are `_prepare_dataset` (finds the scores), `_set_signature_columns_if_needed` and `_prepare_inputs` (hand
    them on), `get_batch_samples` (counts them), `compute_loss` (adds the term), `evaluation_loop`, `log` and
    `_inner_training_loop` (their figures); and, in [`~tract_trainer.training.saving.JudgeSavingTrainer`], what saves
    and pushes
    (adds `judge_config.json` and the model card). The rest is inherited.

    Logged: `ce_loss`, `score_loss`, `score_mae` and `score_mass` (probability on the scale), as means over the logging
    window; in evaluation also `score_pearson`, `score_spearman` and `score_rmse`, over the whole evaluation set. On
    several processes, those of a stream count again the few rows that Accelerate repeats to fill the last batches.

    Raises:
        ValueError: a combination of settings under which the score term would not be exact, or rows without a usable
            score (see `missing_score`).
    """

    args: RegressionAwareSFTConfig
    model: PreTrainedModel
    _sample: dict[str, Any]
    _score_separator: str = " "

    _tag_names = ["trl", "sft", "tract-trainer", "llm-as-a-judge"]
    _name = "TRACT"
    _paper = {
        "title": "TRACT: Regression-Aware Fine-tuning Meets Chain-of-Thought Reasoning for LLM-as-a-Judge",
        "id": "2503.04381",
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Datasets | None = None,
        eval_dataset: Datasets | dict[str, Datasets] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RegressionAwareSFTConfig(f"{name.split('/')[-1]}-judge")
        elif not isinstance(args, RegressionAwareSFTConfig):
            args = RegressionAwareSFTConfig.from_training_arguments(args)
        limits.refuse_settings(args, compute_loss_func, model, peft_config)
        limits.refuse_files(model, args)
        self._sample, self.row_counts = {}, {}
        if isinstance(train_dataset, Dataset | IterableDataset):  # TRL refuses anything else
            train_dataset = unformatted(train_dataset)
            self._sample = next(iter(train_dataset), {})
        text_field = args.dataset_text_field if formatting_func is None else None
        limits.refuse_datasets(train_dataset, eval_dataset, self._sample, text_field)
        self._score_args = args  # read by `_prepare_dataset`, which runs before the parent has set `self.args`
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        limits.refuse_topology(self.accelerator)
        if type(self.data_collator) is DataCollatorForLanguageModeling:
            self.data_collator = DataCollatorForScoredCompletion(**vars(self.data_collator))
        if isinstance(self.data_collator, DataCollatorForScoredCompletion):
            self.data_collator.score_tokens = self.score_tokens
            self.data_collator.score_token_in_ce = args.score_token_in_ce
            self.data_collator.missing_score = args.missing_score
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        # Labels of several tokens are read with more tokens than the row's, which nobody does for a loss of weight 0.
        self._reads_scores = bool(args.score_loss_weight) or len(self.score_tokens.nodes) == 1
        if self._reads_scores or eval_dataset is not None:
            limits.refuse_long_labels(self.score_tokens, base, self.padding_free)
        add_score_head(base, self.score_tokens)
        self._values = torch.tensor(args.scale.values)
        self._scores_in_step: Tensor | None = None
        self._figures = ScoreFigures(self.accelerator, self._values, args.renormalize_scores)

    @functools.cached_property
    def score_tokens(self) -> ScoreTokens:
        """The scale as the tokenizer writes it after the prefix."""
        return ScoreTokens.resolve(self._score_args.scale, self._score_args.score_prefix, self._tokenizer)

    @property
    def judge_config(self) -> JudgeConfig:
        if "input_ids" in self._sample:  # its text may have been made in either way
            conversational = self._tokenizer.chat_template is not None
        else:
            messages = is_conversational(self._sample) or "conversations" in self._sample
            conversational = messages and self._formatting_func is None
        kwargs = self._sample.get("chat_template_kwargs") or self.args.template_kwargs
        separator = self._score_separator
        return self.args.judge_config(conversational, chat_template_kwargs=kwargs, score_separator=separator)

    def _whole_rows(
        self, dataset: Datasets, processing_class: Any, args: SFTConfig, formatting_func: Any, dataset_name: str
    ) -> Datasets:
        """`dataset` as TRL tokenises it, neither cut nor shuffled."""
        if warning := pin_dates(self._tokenizer, self):  # the judge is asked with the same date later
            logger.warning(warning)
        dataset = with_template_kwargs(unformatted(dataset), self._score_args.template_kwargs)
        try:
            return super()._prepare_dataset(
                dataset, processing_class, uncut(args), False, formatting_func, dataset_name
            )
        except (TemplateError, TypeError, KeyError):  # of a chat template, which knows no row
            check_rows(dataset, "Training row" if dataset_name == "train" else f"{dataset_name} row", self._tokenizer)
            raise

    def _prepare_dataset(
        self,
        dataset: Datasets,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Datasets:
        columns = set(dataset.column_names or next(iter(dataset)))
        if {*COLUMNS, "seq_lengths"} <= columns:  # packed by an earlier call
            return dataset
        # The score is found on whole rows, in their order: what cuts, shuffles and packs comes afterwards.
        dataset = self._whole_rows(dataset, processing_class, args, formatting_func, dataset_name)
        given = len(dataset) if isinstance(dataset, Dataset) else None
        with PartialState().local_main_process_first():  # the others read its cache
            dataset, lost = add_score_labels(
                dataset,
                self.score_tokens,
                Cut.of(args, packing),
                self._score_args.missing_score,
                "training" if dataset_name == "train" else dataset_name,
                args.dataset_num_proc,
            )
            for kind in lost:
                logger.warning(f"missing_score={self._score_args.missing_score!r}: {kind.sentence}")
            if dataset_name == "train":
                known = isinstance(dataset, Dataset)  # of a stream, the first row as it came
                texts = closed_texts(dataset, self.score_tokens) if known else [completion_text(self._sample)]
                self._score_separator = separator_of(texts, self._score_args.score_prefix)
            left = len(dataset) if isinstance(dataset, Dataset) else None
            dataset = cut_or_pack(dataset, args, packing, dataset_name)
        if given is not None and left is not None:
            used = left if packing else len(dataset)  # packing puts several rows into one
            why = {kind.complaint: kind.rows for kind in lost} | ({UNTRAINED: left - used} if used < left else {})
            # `evaluate` may be given another dataset of the same name.
            self.row_counts.setdefault(dataset_name, RowCounts(given, why, used))
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if "score_labels" not in columns:
            columns += ["score_labels", "score"]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        if "score_labels" in inputs:  # DeepSpeed casts every float of a batch to its own dtype
            prepared["score_labels"] = inputs["score_labels"].to(self.args.device, torch.float32)
        return prepared

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.zeros((), dtype=torch.long, device=device)
        for batch in batches:
            count += scores_due(batch).sum().to(device)
        self._scores_in_step = self.accelerator.gather(count).sum().clamp(min=1)
        self._figures.steps += bool(batches)  # a stream that has ended gives steps without a batch
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        args, targets = self.args, inputs["score_labels"][:, 1:][scores_due(inputs)]  # (N,)
        if self.model.training and not self._reads_scores:
            inputs, targets = {**inputs, "score_labels": None}, targets[:0]
        with first_output(model) as seen:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ce_loss, outputs = result if return_outputs else (result, None)
        found = getattr(seen[0], "score_log_probs", None)
        log_probs = ce_loss.new_zeros(0, len(self._values)) if found is None else found  # (N, K)
        gold = targets.to(log_probs.device)
        losses = score_loss(log_probs, self._values, gold, args.score_loss_type, args.renormalize_scores)  # (N,)
        accumulated = 1
        if self.model.training:
            if self._trainer_divides(num_items_in_batch):
                accumulated = self.current_gradient_accumulation_steps
            count = max(len(gold), 1) if self._scores_in_step is None else self._scores_in_step.to(losses.device)
            # Data parallelism averages the gradients over the processes, and the trainer may divide by the steps.
            score_term = losses.sum() / count * self.accelerator.num_processes * accumulated
        else:
            score_term = losses.sum() / max(len(gold), 1)
        self._figures.add(self.model.training, ce_loss / accumulated, losses, log_probs, gold)
        # A term of weight 0 is left out, not multiplied: it may be infinite.
        weighted = ((args.ce_loss_weight, ce_loss), (args.score_loss_weight, score_term))
        loss = sum(weight * term for weight, term in weighted if weight)
        return (loss, outputs) if return_outputs else loss

    def _trainer_divides(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether `training_step` divides the loss by the accumulation steps: it does unless the loss was scaled."""
        if self.loss_is_scaled_for_ga is not None:
            return not self.loss_is_scaled_for_ga
        return not (self.model_accepts_loss_kwargs and num_items_in_batch is not None)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._figures.begin_training()  # an attempt with batches too large may have left some
        rows = self.train_dataset
        if isinstance(rows, Dataset) and "input_ids" in rows.column_names and self.accelerator.is_main_process:
            check_reloaded(self._tokenizer, rows[:SAMPLED]["input_ids"], self.args.trust_remote_code)
        return super()._inner_training_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._figures.steps:  # the trainer's own record of a window, which every process makes
            logs.update(self._figures.training_means())
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        kwargs["metric_key_prefix"] = metric_key_prefix
        self._figures.begin_evaluation()
        output: EvalLoopOutput = super().evaluation_loop(dataloader, *args, **kwargs)
        figures = self._figures.evaluation(dataloader.dataset)
        named = {f"{metric_key_prefix}_{name}": figure for name, figure in figures.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})
