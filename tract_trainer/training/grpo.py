"""The trainer of the third stage: TRL's `GRPOTrainer` with the expected score's error as reward, and as a loss (REAL).

Shape letters: `B` rationales, `C` tokens of the longest one, `G` rationales of a prompt, `K` labels of the scale, `N`
rationales with a score.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from tract_trainer.data.records import Prompt
from tract_trainer.data.rendering import pin_dates, prompt_ids
from tract_trainer.engines.cache import evaluating, positions, shared_cache
from tract_trainer.engines.checkpoints import SavedJudge, check_weights, load_judge_model, load_tokenizer
from tract_trainer.engines.completions import Places, read_written, stop_ids
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.losses import WIDTH, expected_score, score_loss, score_mass
from tract_trainer.scale import ScoreScale, ScoreTokens
from tract_trainer.training import limits
from tract_trainer.training.config import RegressionAwareGRPOConfig
from tract_trainer.training.saving import JudgeSavingTrainer, RowCounts
from tract_trainer.training.score_head import add_score_head, first_output

logger = get_logger(__name__)

RewardFunc = str | PreTrainedModel | Callable[..., list[float | None]]


class RegressionAwareGRPOTrainer(JudgeSavingTrainer, GRPOTrainer):  # type: ignore[misc]
    """
    Trainer for REAL (Zhang et al., ICML 2026): `GRPOTrainer` for judges. It samples rationales `c` of a prompt `x` with
    the gold score `y`, and maximises the mean of

        `r = -(yhat(x, c) - y)^2 + score_likelihood_weight * log p(y | x, c)`,  `yhat` the expected score.

    Scores are measured so that the scale is as wide as 1 to 5. `r` depends on the weights, so the gradient has two
    parts: that of the rationale's probability, with `r` as reward, and that of `r` itself, which is the score loss of
    [`RegressionAwareSFTTrainer`] on sampled rationales:

        `mean of A grad log p(c | x) + score_loss_weight * grad r`.

    `A` is the reward less the mean reward of the prompt's other rationales, divided by their standard deviation
    (`scale_rewards`) and clipped (`advantage_clip`). Both parts are divided by the number of tokens of the rationales.
    The label that was sampled and what follows it are not learned from. A rationale without a score has the `r` of a
    judge that is sure of the label farthest from `y`.

    The arguments are those of [`~trl.GRPOTrainer`] without tools, environments and `rollout_func`; a plain
    [`~trl.GRPOConfig`] gets the defaults of [`RegressionAwareGRPOConfig`]. Different are:

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The judge to start from. Of an adapter's folder or repository, the adapter is trained on.
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*):
            Further rewards, added to `r` with `args.reward_weights`, of which `r`'s is the first.
        train_dataset, eval_dataset:
            Rows with `prompt`, text or messages, and `score`, a number on the scale. Other columns are as in
            [`~trl.GRPOTrainer`].
        judge_config ([`JudgeConfig`], *optional*):
            How the judge is asked and its score read. Defaults to the `judge_config.json` of the model's folder.

    Overridden are `_tokenize_prompts` (asks as [`Judge`] does), `_generate` (finds the scores),
    `_generate_and_score_completions` (advantages), `_compute_loss` (adds the score loss), and what saves and pushes.

    Logged beside [`~trl.GRPOTrainer`]'s figures: `score_mae`, `score_mass` (probability on the scale), `score_loss` and
    `unscored` (share of rationales without a score).

    Raises:
        ValueError: no judge config, rows without a score on the scale, or settings with which the loss is not exact.
    """

    args: RegressionAwareGRPOConfig

    _tag_names = ["trl", "grpo", "tract-trainer", "llm-as-a-judge"]
    _name = "REAL"
    _paper = {"title": "REAL: Regression-Aware Reinforcement Learning for LLM-as-a-Judge", "id": "2603.17145"}

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        judge_config: JudgeConfig | None = None,
    ) -> None:
        name = model if isinstance(model, str) else str(model.config._name_or_path)
        if args is None:
            args = RegressionAwareGRPOConfig(f"{name.split('/')[-1]}-grpo")
        elif not isinstance(args, RegressionAwareGRPOConfig):
            args = RegressionAwareGRPOConfig.from_training_arguments(args)
        limits.refuse_adapter(model, peft_config)
        given: Any = args.model_init_kwargs  # a mapping by now
        loading: dict[str, Any] = dict(given or {})
        revision = loading.get("revision") if isinstance(model, str) else None
        # A calibration is of the weights that it was fitted on.
        self._judge_config = replace(judge_config or JudgeConfig.load(name, revision), calibration=None)
        for kind, dataset in limits.named_datasets(train_dataset, eval_dataset):
            _check_rows(dataset, kind, self._judge_config.scale)
        if isinstance(train_dataset, Dataset):
            _check_count(len(train_dataset), args)
        if processing_class is None:
            processing_class = load_tokenizer(name, revision, args.trust_remote_code)
        pin_dates(processing_class)
        own = None if isinstance(model, str) else model.generation_config
        if isinstance(model, str):
            saved = SavedJudge.find(model, revision, weights=False)
            own = saved.generation_config
            if saved.peft_type is None:
                check_weights(model, revision, args.trust_remote_code)
            else:  # TRL would load its base model alone
                model, quantization_config = _adapter(model, args, loading, quantization_config), None
        scale, prefix = self._judge_config.scale, self._judge_config.score_prefix
        self.score_tokens = ScoreTokens.resolve(scale, prefix, processing_class)
        self._stop_ids = stop_ids(own, self.score_tokens, self._judge_config)
        generating: Any = args.generation_kwargs or {}  # a mapping by now
        args.generation_kwargs = {**generating, "stop_token_ids" if args.use_vllm else "eos_token_id": self._stop_ids}
        rewards: list[Any] = [self.score_reward]
        rewards += reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs else []
        classes: Any = reward_processing_classes
        if classes is not None:
            classes = [None, *(classes if isinstance(classes, list) else [classes])]
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        self.eos_token_ids = self._stop_ids
        limits.refuse_topology(self.accelerator)
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        limits.refuse_long_labels(self.score_tokens, base, padding_free=False)
        add_score_head(base, self.score_tokens)
        self._values = torch.tensor(self._judge_config.scale.values)
        if isinstance(train_dataset, Dataset):
            self.row_counts = {"train": RowCounts(len(train_dataset), {}, len(train_dataset))}

    @property
    def judge_config(self) -> JudgeConfig:
        return self._judge_config

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if "score" not in columns:
            columns.append("score")

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        sampler: Any = super()._get_train_sampler(dataset)
        sampler.set_epoch = functools.partial(_begin_epoch, sampler)  # Transformers calls it, where there is one
        return sampler

    def _tokenize_prompts(self, prompts: list[Prompt]) -> tuple[list[list[int]], None, dict[str, Any]]:
        config = self._judge_config
        ask = functools.partial(
            prompt_ids, tokenizer=self._tokenizer, conversational=config.conversational, **config.chat_template_kwargs
        )
        return list(map(ask, prompts)), None, {}

    def _generate(self, prompts: list[Prompt]) -> Any:
        asked, written, mask, *others = super()._generate(prompts)
        places = Places()
        for number, (prompt, ids) in enumerate(zip(asked, written, strict=True)):
            read_written(self.score_tokens, prompt, ids, self._stop_ids, places.of(number))
        self._sampled = (asked, written, places)
        # TRL's mask of what the model has not written itself: no loss and no figure of a token reads there.
        mask = [[int(i < places.get(number, len(ids))) for i in range(len(ids))] for number, ids in enumerate(written)]
        return asked, written, mask, *others

    def score_reward(self, score: list[float], log_metric: Callable[[str, float], None], **_: Any) -> list[float]:
        """
        The reward `r` of each sampled rationale, `(B,)`. One without a score must not be better off than one with a bad
        score: if only those that have one can lose, judges learn to write none.
        """
        places = self._sampled[2]
        count = len(score)
        group: Any = self.num_generations
        size, log_probs = max(self.args.per_device_train_batch_size, group), []
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast():
            for start in range(0, count, size):  # as many forwards on every process
                log_probs.append(self._label_log_probs(range(start, min(start + size, count))))
        scored = sorted(places)
        gold = torch.tensor([score[i] for i in scored], dtype=torch.float32, device=self.args.device)
        found = torch.cat(log_probs)  # (N, K)
        losses = self._score_losses(found, gold)
        rewards = -self._worst_errors(torch.tensor(score))
        rewards[scored] = -losses.cpu()
        predicted = expected_score(found, self._values, self._judge_config.renormalize_scores)
        figures = {"score_mae": (predicted - gold).abs(), "score_mass": score_mass(found), "score_loss": losses}
        for name, values in figures.items():
            for value in values.tolist():
                log_metric(name, value)
        for number in range(count):
            log_metric("unscored", float(number not in places))
        return rewards.tolist()  # type: ignore[no-any-return]

    def _label_log_probs(self, chunk: range) -> Tensor:
        """
        Log-probability of each label after the sampled rationales of these numbers that have a score, `(N, K)`. A
        prompt is read once for all of its rationales, except where labels are several tokens.
        """
        asked, written, places = self._sampled
        begun = [tuple(asked[i][:-1]) for i in chunk]
        rows = [[*asked[i], *written[i][: places.get(i, 0) + 1]] for i in chunk]
        distinct, cache = list(dict.fromkeys(begun)), None
        if len(self.score_tokens.nodes) == 1 and all(distinct):
            ids, read = self._padded(distinct, left=True)
            found = self.model(**_at_positions(ids, read, 0), use_cache=True, logits_to_keep=1)
            owners = torch.tensor([distinct.index(prompt) for prompt in begun])
            cache = shared_cache(getattr(found, "past_key_values", None), owners)
        if cache is not None:
            rows = [row[len(prompt) :] for row, prompt in zip(rows, begun, strict=True)]
        ids, attended = self._padded(rows)
        labels = torch.full(ids.shape, torch.nan, device=ids.device)
        for row, number in enumerate(chunk):
            if number in places:
                labels[row, len(rows[row]) - 1] = 0.0
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": attended}
        if cache is not None:
            given = _at_positions(ids, torch.cat([read[owners.to(ids.device)], attended], dim=1), read.size(1))
            given |= {"past_key_values": cache, "use_cache": True}
        with first_output(self.model) as seen:
            self.model(**given, score_labels=labels, logits_to_keep=1)
        log_probs: Tensor = seen[0].score_log_probs
        return log_probs

    def _padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids of the rows and the mask of what is none, `(B, T)` each."""
        side = "left" if left else "right"
        ids = pad([torch.tensor(row) for row in rows], self._tokenizer.pad_token_id, side)
        attended = pad([torch.ones(len(row), dtype=torch.long) for row in rows], 0, side)
        return ids.to(self.args.device), attended.to(self.args.device)

    def _errors(self, log_probs: Tensor, gold: Tensor, loss_type: str) -> Tensor:
        """The score loss of each score, `(N,)`, from log-probabilities of the labels, `(N, K)`."""
        return score_loss(log_probs, self._values, gold, loss_type, self._judge_config.renormalize_scores)

    def _score_losses(self, log_probs: Tensor, gold: Tensor) -> Tensor:
        """`-r` of each score, `(N,)`, from log-probabilities of the labels, `(N, K)`."""
        errors, weight = self._errors(log_probs, gold, self.args.score_loss_type), self.args.score_likelihood_weight
        return errors + weight * self._errors(log_probs, gold, "soft_ce") if weight else errors

    def _worst_errors(self, gold: Tensor) -> Tensor:
        """The score loss of the label farthest from each gold score, `(N,)`; 16 where it is infinite (`soft_ce`)."""
        certain = torch.eye(len(self._values)).log()  # (K, K), of one label a row
        of_label = [self._errors(row.expand(len(gold), -1), gold, self.args.score_loss_type) for row in certain]
        return torch.stack(of_label).amax(0).nan_to_num(posinf=WIDTH**2)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        of_prompt: Any = self.num_generations if self.model.training else self.num_generations_eval
        # With the rationale itself left out of the mean, the advantage is so many times TRL's.
        advantages, clip = output["advantages"] * of_prompt / (of_prompt - 1), self.args.advantage_clip
        output["advantages"] = advantages if clip is None else advantages.clamp(-clip, clip)
        labels = torch.full(output["completion_ids"].shape, torch.nan, device=advantages.device)  # (B, C)
        for row, place in self._sampled[2].items():
            labels[row, place] = inputs[row]["score"]
        # `mask_truncated_completions` takes whole rationales out of the attention.
        output["score_labels"] = labels.masked_fill(output["completion_mask"] == 0, torch.nan)
        return output

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        weight, args = self.args.score_loss_weight, self.args
        if not weight:
            return super()._compute_loss(model, inputs)
        labels = nn.functional.pad(inputs["score_labels"], (inputs["prompt_ids"].size(1), 0), value=torch.nan)
        with first_output(model) as seen:
            loss: Tensor = super()._compute_loss(functools.partial(model, score_labels=labels), inputs)
        log_probs = seen[0].score_log_probs  # (N, K)
        gold = labels[:, 1:][~labels[:, 1:].isnan()].to(log_probs.device)  # (N,)
        # As TRL divides its own loss: by the tokens of all processes, of which this is one part of a step.
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / args.steps_per_generation
        return loss + weight * self._score_losses(log_probs, gold).sum() / tokens


def _begin_epoch(sampler: Any, epoch: int) -> None:
    """Gives the rows of an epoch the order that they have in a run from the start, so that a resumed run goes on."""
    if sampler.shuffle:
        sampler.generator.manual_seed(sampler.seed)
        for _ in range(epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)


def _adapter(
    name: str, args: GRPOConfig, loading: dict[str, Any], quantization_config: BitsAndBytesConfig | None
) -> PeftModel:
    """The adapter in a folder or repository, on its base model, to be trained on."""
    args.model_init_kwargs = None  # TRL warns of settings for a model that is loaded
    loading = {"dtype": "float32", "trust_remote_code": args.trust_remote_code, **loading}
    loading |= {} if quantization_config is None else {"quantization_config": quantization_config}
    return load_judge_model(name, loading.pop("revision", None), trainable=True, **loading)


def _at_positions(ids: Tensor, attended: Tensor, start: int) -> dict[str, Any]:
    """Arguments to read `ids`, the tokens from `start` on of rows of which `attended`, `(B, T)`, are read in all."""
    return {"input_ids": ids, "attention_mask": attended, "position_ids": positions(attended)[:, start:]}


def _check_count(rows: int, args: RegressionAwareGRPOConfig) -> None:
    """Raises an InputError for fewer rows than are sampled for at once. TRL would end without a step and no error."""
    size, group = int(args.generation_batch_size or 0), int(args.num_generations or 1)
    if rows < size // group:
        raise InputError(
            f"The train dataset has {rows:,} rows, and rationales are sampled for {size // group:,} at once "
            f"({group} each), so there would be no step. Give more rows, or lower per_device_train_batch_size or "
            "gradient_accumulation_steps."
        )


def _check_rows(dataset: Dataset | IterableDataset, name: str, scale: ScoreScale) -> None:
    """Raises an InputError for columns that are missing or would be ignored, and for scores off the scale."""
    limits.refuse_empty(dataset, name)
    columns = set(dataset.column_names or next(iter(dataset)))
    if missing := {"prompt", "score"} - columns:
        raise InputError(
            f"The {name} dataset lacks {sorted(missing)}; it has {sorted(columns)}. Rows need a `prompt` and a "
            "`score`, a number on the scale: training_rows(records, ...) makes them from judging records."
        )
    if ignored := {"image", "images", "tools", "chat_template_kwargs"} & columns:
        raise InputError(
            f"The {name} dataset has {sorted(ignored)}, which a judge is not asked with. Remove the column."
        )
    if isinstance(dataset, Dataset):
        scores = [math.nan if score is None else float(score) for score in dataset["score"]]
        off = [number for number, score in enumerate(scores) if not scale.covers(score)]
        if off:
            raise InputError(
                f"{len(off):,} of {len(scores):,} {name} rows have no score on the scale of {scale.low:g} to "
                f"{scale.high:g}; the first is row {off[0]}, with {dataset[off[0]]['score']!r}. Correct or remove them."
            )
