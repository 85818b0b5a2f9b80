"""Saves and uploads a trained model as a judge: weights, `judge_config.json` and model card.

A model with a loss or weights that are not finite is not saved.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import RepoCard, try_to_load_from_cache
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy, get_last_checkpoint
from trl.trainer.base_trainer import _BaseTrainer

from tract_trainer.data.datasets import OWN_RATIONALES
from tract_trainer.data.records import prompt_of
from tract_trainer.engines.checkpoints import lora_limit
from tract_trainer.errors import InputError
from tract_trainer.hub.card import fence, read_card, renew
from tract_trainer.hub.pushing import upload_advice
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig
from tract_trainer.training.score_labels import UNTRAINED

TEMPLATE = "model_card.md.jinja"

# The record of the card's example, and its prompt for a template that cannot render such records.
RECORD = {
    "instruction": "Name a prime number above 6.",
    "response": "7, since nothing but 1 and 7 divides it.",
    "rubric": "Is the answer correct and justified?",
}
READY_PROMPT = "\n".join(RECORD.values()) + "\n"

ARGUMENTS = (
    "score_loss_type", "score_loss_weight", "ce_loss_weight", "score_token_in_ce", "missing_score",
    "score_likelihood_weight", "advantage_clip", "num_generations", "temperature", "top_p", "beta", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16", "max_length", "packing",
    "neftune_noise_alpha",
)  # fmt: skip
FIGURES = ("step", "ce_loss", "score_loss", "score_pearson", "score_spearman", "score_rmse")
LICENCE = ("license", "license_name", "license_link")
PACKAGES = ("tract-trainer", "trl", "transformers", "torch", "datasets", "tokenizers", "peft")
UNNAMED = ("arrow", "csv", "generator", "json", "parquet", "text")  # names that `datasets` gives to data of a file
OUTCOMES = {"error": "dropped", "drop": "dropped", "keep": "without the score term"}  # of rows, by `missing_score`


class RowCounts(NamedTuple):
    """Counts of a dataset's rows: given, lost for lack of a usable score (by the reason), and used."""

    given: int
    lost: dict[str, int]
    used: int


class JudgeSavingTrainer(_BaseTrainer):  # type: ignore[misc]
    """
    A trainer of TRL that saves judges.

    Overridden are `_save` (adds the model card and `judge_config.json`), `create_model_card` (writes our card, at every
    checkpoint), `_push_from_checkpoint` (a pushed checkpoint is a judge, too), `push_to_hub` (an error holds the
    command that completes the upload), and `training_step`, `log` and `_save_checkpoint` (a loss that is not finite
    ends the run).
    """

    args: RegressionAwareSFTConfig | RegressionAwareGRPOConfig
    model: PreTrainedModel | PeftModel
    row_counts: dict[str, RowCounts]
    _dataset_name: str | None = None
    _diverged_at: Tensor | None = None

    @property
    @abstractmethod
    def judge_config(self) -> JudgeConfig:
        """What [`Judge`] needs to know of this model, saved with it as `judge_config.json`."""

    def create_model_card(  # type: ignore[override]  # TRL's arguments
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes the model card, `README.md` in `args.output_dir`. Text around its generated part stays.

        Args:
            model_name (`str`, *optional*): title of a new card; by default, the name of the repository or folder.
            dataset_name (`str`, *optional*): Hub repository of the training data.
            tags (`str` or `list[str]`, *optional*): further tags.
        """
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self._dataset_name = dataset_name or self._dataset_name  # the next save knows it too
            self._write_card(folder, read_card(folder), model_name, [tags] if isinstance(tags, str) else tags or [])

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """
        Saves and uploads the judge: weights or adapter, tokenizer, `judge_config.json` and model card. The arguments
        are those of [`~transformers.Trainer.push_to_hub`], and of `create_model_card`.

        Raises:
            OSError: the upload failed; the message holds the command that completes it.
        """
        folder = Path(str(self.args.output_dir))
        name = self.hub_model_id or self.args.hub_model_id or folder.resolve().name
        revision = kwargs.get("revision") or self.args.hub_revision
        with upload_advice(folder, name, private=kwargs.get("private", self.args.hub_private_repo), revision=revision):
            try:
                return super().push_to_hub(*args, **kwargs)
            except Exception:
                if self.hub_model_id is None:  # there is no repository, and the model has not been saved yet
                    self.save_model(_internal_call=True)
                raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.judge_config.save(str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        step = self.state.global_step + 1
        if self._diverged_at is None:
            self._diverged_at = torch.full((), torch.inf, device=loss.device)
        # Kept on the device: reading it now would make every step wait.
        self._diverged_at = torch.where(loss.isfinite().all(), self._diverged_at, self._diverged_at.clamp(max=step))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if {"loss", "train_loss"} & logs.keys():  # which every process logs
            self._refuse_divergence()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._refuse_divergence()
        super()._save_checkpoint(model, trial)

    def _refuse_divergence(self) -> None:
        """Raises an InputError if the loss of a step so far was not finite, on any process."""
        if self._diverged_at is not None:
            first = float(self.accelerator.gather(self._diverged_at).min())
            if math.isfinite(first):
                raise self._divergence(f"The loss is not finite at step {first:.0f}")

    def _divergence(self, found: str) -> InputError:
        folder = Path(str(self.args.output_dir))
        checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        return InputError(
            f"{found}: training has diverged. The last checkpoint kept: {checkpoint or 'none'}. Lower learning_rate or "
            "max_grad_norm, use bf16 instead of fp16, or look for rows that are far too long."
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        weights = self.model.parameters() if state_dict is None else state_dict.values()
        if not all(_is_finite(weight) for weight in weights):
            raise self._divergence(f"The weights are not finite after step {self.state.global_step}")
        folder = Path(str(output_dir or self.args.output_dir))
        before = read_card(folder)  # PEFT writes a card of its own over it
        loaded_with = self.args.model_init_kwargs
        if isinstance(self.model, PeftModel) and isinstance(loaded_with, dict) and loaded_with.get("revision"):
            self.model.active_peft_config.revision = loaded_with["revision"]  # of the base model
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(folder, before)
            self.judge_config.save(folder)  # last: where it is, the judge is complete

    def _write_card(
        self, folder: Path, card: RepoCard | None, model_name: str | None = None, tags: Sequence[str] = ()
    ) -> None:
        if card is not None:
            facts, metadata = card_facts(self, folder, self._dataset_name, tags)
            renew(card, folder, TEMPLATE, facts | ({"title": model_name} if model_name else {}), metadata)


def _is_finite(weight: Any) -> bool:
    """Whether a tensor, or this process's part of a distributed one, has finite numbers only."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return not torch.is_tensor(local) or not local.is_floating_point() or bool(local.isfinite().all())


def card_facts(
    trainer: "JudgeSavingTrainer", folder: Path, dataset_name: str | None, tags: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of the model card's template, and the card's metadata."""
    args, config, model = trainer.args, trainer.judge_config, trainer.model
    name = trainer.hub_model_id or args.hub_model_id or folder.resolve().name
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base = str(getattr(plain.config, "_name_or_path", ""))
    licence, prompt = _licence(base), _example_prompt(config)
    adapter: Any = model.active_peft_config if isinstance(model, PeftModel) else None
    facts = {
        "title": name.split("/")[-1],
        "name": name,
        "config": config,
        "record": {"prompt": prompt} if prompt == READY_PROMPT else RECORD,
        "prompt": prompt,
        "fence": fence(prompt, config.prompt_template),
        "base": base if base and not Path(base).is_dir() else Path(base).name,
        "base_on_hub": bool(base) and not Path(base).is_dir(),
        "base_revision": getattr(adapter, "revision", None),
        "licence": ", ".join(str(value) for value in licence.values()),
        "seed": args.seed,
        "progress": f"{trainer.state.global_step:,} steps, {trainer.state.epoch or 0:.2f} epochs",
        "reinforced": isinstance(args, RegressionAwareGRPOConfig),
        "adapter": "" if adapter is None else _adapter(adapter),
        "lora_rank": lora_limit(getattr(adapter, "r", 0)),
        **_data(trainer, dataset_name),
        "hyperparameters": {
            name: _shown(value) for name in ARGUMENTS if (value := getattr(args, name, None)) is not None
        },
        "figures": _last_figures(trainer.state.log_history),
        "versions": {package: version(package) for package in PACKAGES},
    }
    metadata = {
        "base_model": facts["base"] if facts["base_on_hub"] else None,
        "library_name": "transformers" if adapter is None else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["generated_from_trainer", *trainer._tag_names, *tags],
        "datasets": facts["datasets"],
        **licence,
    }
    return facts, metadata


def _licence(base: str) -> dict[str, Any]:
    """The licence in the seed model's own card, if that card is on this machine."""
    path = Path(base, "README.md") if base else None
    if path is not None and not path.parent.is_dir() and base.count("/") <= 1:
        cached = try_to_load_from_cache(base, "README.md")
        path = Path(cached) if isinstance(cached, str) else None
    card = read_card(path.parent) if path is not None and path.is_file() else None
    return {} if card is None else {key: card.data[key] for key in LICENCE if card.data.get(key)}


def _example_prompt(config: JudgeConfig) -> str:
    """The prompt of `RECORD`; `READY_PROMPT` if the judge's template cannot render it."""
    try:
        return str(prompt_of(RECORD, config.scale, config.score_prefix, config.prompt_template))
    except (InputError, TypeError):
        return READY_PROMPT


def _adapter(config: Any) -> str:
    shown = {"rank": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return ", ".join([kind, *(f"{name} {value}" for name, value in shown.items() if value)])


def _data(trainer: "JudgeSavingTrainer", dataset_name: str | None) -> dict[str, Any]:
    """The data's name, description and counts. `datasets` keeps name and description with the rows."""
    info = getattr(trainer.train_dataset, "info", None)
    known, about = getattr(info, "dataset_name", None), getattr(info, "description", None) or ""
    name = dataset_name or (known if known not in UNNAMED else None)
    counts, rows = trainer.row_counts.get("train"), [("given", "not known: the data was a stream")]
    if counts is not None:
        outcome = OUTCOMES[getattr(trainer.args, "missing_score", "error")]
        lost = [(f"{'dropped' if why == UNTRAINED else outcome}: {why}", n) for why, n in counts.lost.items()]
        rows = [(what, f"{n:,}") for what, n in [("given", counts.given), *lost, ("used", counts.used)]]
    return {
        "datasets": [name] if name and "/" in name else None,
        "data": name,
        "about": about if about.startswith(OWN_RATIONALES) else "",
        "rows": rows,
    }


def _last_figures(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The last logged `FIGURES` of training and of each evaluation set, each row with its name first."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in history:
        for key in entry:
            if key.endswith(("ce_loss", "score_loss")):
                found[key.removesuffix("ce_loss").removesuffix("score_loss")] = entry
    names = {prefix: prefix.removeprefix("eval_").strip("_") or ("eval" if prefix else "training") for prefix in found}
    return [
        [names[prefix], *(_shown(entry.get(name if name == "step" else f"{prefix}{name}")) for name in FIGURES)]
        for prefix, entry in found.items()
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(getattr(value, "value", value)).replace("|", "\\|")
