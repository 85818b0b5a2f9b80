"""Turns a trained model into a judge that anyone can load: what lies beside the weights, and its upload."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy
from trl import SFTTrainer
from trl.data_utils import is_conversational

from tract_trainer.data.datasets import OWN_RATIONALES
from tract_trainer.data.records import prompt_of
from tract_trainer.engines.checkpoints import lora_limit
from tract_trainer.errors import InputError
from tract_trainer.hub.card import Card, fence, read_card, renewed, write_card
from tract_trainer.hub.pushing import upload_advice
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.training.config import RegressionAwareSFTConfig
from tract_trainer.training.score_labels import UNTRAINED


class RowCounts(NamedTuple):
    """Rows of a dataset that were given, those without a usable score by what is wrong with them, and those used."""

    given: int
    lost: dict[str, int]
    used: int


class JudgeSavingTrainer(SFTTrainer):  # type: ignore[misc]
    """
    [`~trl.SFTTrainer`] that saves judges.

    Overridden are `_save` (adds the model card and `judge_config.json`), `create_model_card` (writes ours, at every
    checkpoint), `_push_from_checkpoint` (what is pushed in training can be loaded too) and `push_to_hub` (a failure
    says how to go on).
    """

    args: RegressionAwareSFTConfig
    model: PreTrainedModel | PeftModel
    row_counts: dict[str, RowCounts]
    _sample: dict[str, Any]
    _dataset_name: str | None = None
    _score_separator: str = " "

    @property
    def judge_config(self) -> JudgeConfig:
        """What [`Judge`] needs to know of this model, saved with it as `judge_config.json`."""
        if "input_ids" in self._sample:  # nothing tells how its text was made
            conversational = self._tokenizer.chat_template is not None
        else:
            messages = is_conversational(self._sample) or "conversations" in self._sample
            conversational = messages and self._formatting_func is None
        template_kwargs = self._sample.get("chat_template_kwargs") or self.args.template_kwargs
        return self.args.judge_config(
            conversational, chat_template_kwargs=template_kwargs, score_separator=self._score_separator
        )

    def create_model_card(  # type: ignore[override]  # TRL's arguments
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes the model card, `README.md` in `args.output_dir`. What was written there by hand stays, see
        [`tract_trainer.hub.card`].

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
            OSError: the upload failed. Everything is in `args.output_dir`, and the message says how to go on.
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        before = read_card(folder)  # PEFT writes a card of its own over it
        loaded_with = self.args.model_init_kwargs
        if isinstance(self.model, PeftModel) and isinstance(loaded_with, dict) and loaded_with.get("revision"):
            self.model.active_peft_config.revision = loaded_with["revision"]  # of the base model
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(folder, before)
            self.judge_config.save(folder)  # last: where it is, the judge is whole

    def _write_card(
        self, folder: Path, before: Card | None, model_name: str | None = None, tags: Sequence[str] = ()
    ) -> None:
        if before is not None:
            facts, metadata = judge_card(self, folder, self._dataset_name, tags)
            title = {"title": model_name} if model_name else {}
            write_card(folder, renewed(before, folder, TEMPLATE, {**facts, **title}, metadata))


TEMPLATE = "model_card.md.jinja"

RECORD = {
    "instruction": "Name a prime number above 6.",
    "response": "7, since nothing but 1 and 7 divides it.",
    "rubric": "Is the answer correct and justified?",
}

CURVE_ROWS = 10

ARGUMENTS = (
    "score_loss_type", "score_loss_weight", "ce_loss_weight", "score_token_in_ce", "missing_score", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
    "max_length", "packing", "neftune_noise_alpha",
)  # fmt: skip

LICENCE = ("license", "license_name", "license_link")

PACKAGES = {
    "tract-trainer": "tract-trainer",
    "TRL": "trl",
    "Transformers": "transformers",
    "PyTorch": "torch",
    "Datasets": "datasets",
    "Tokenizers": "tokenizers",
    "PEFT": "peft",
}

UNNAMED = ("arrow", "csv", "generator", "json", "parquet", "text")
"""What `datasets` calls a dataset that it read from a file."""


def judge_card(
    trainer: "JudgeSavingTrainer", folder: Path, dataset_name: str | None, tags: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Args:
        trainer ([`~tract_trainer.training.saving.JudgeSavingTrainer`]): what trained the judge.
        folder (`Path`): where it is saved; its name stands for the judge as long as there is no repository.
        dataset_name (`str`, *optional*): Hub repository of the training data.
        tags (`Sequence[str]`): further tags.

    Returns:
        The template's variables, and the metadata.
    """
    config, model = trainer.judge_config, trainer.model
    name = trainer.hub_model_id or trainer.args.hub_model_id or folder.resolve().name
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base = str(getattr(plain.config, "_name_or_path", ""))
    licence = _licence(base)
    on_hub = base if base and not Path(base).is_dir() else None
    record, prompt = _example(config)
    facts = {
        "title": name.split("/")[-1],
        "name": name,
        "config": config,
        "record": record,
        "prompt": prompt,
        "fence": fence(prompt, config.prompt_template),
        "base": on_hub or Path(base).name,
        "base_revision": getattr(getattr(model, "active_peft_config", None), "revision", None),
        "base_link": _linked(base),
        "licence": ", ".join(str(value) for value in licence.values()),
        "seed": trainer.args.seed,
        "progress": f"{trainer.state.global_step:,} steps, {trainer.state.epoch or 0:.2f} epochs",
        **_adapter(model),
        **_data(trainer, dataset_name),
        "hyperparameters": _hyperparameters(trainer),
        **_loss_facts(trainer.state.log_history, trainer.args.score_loss_type),
        "versions": {shown: version(package) for shown, package in PACKAGES.items()},
    }
    metadata = {
        "base_model": on_hub,
        "library_name": "peft" if facts["adapter"] else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["generated_from_trainer", *trainer._tag_names, *tags],
        "datasets": facts["datasets"],
        **licence,
    }
    return facts, metadata


def _licence(base: str) -> dict[str, Any]:
    """What the seed model's own card says of its licence, if that card is on this machine."""
    path = Path(base, "README.md") if base else None
    if path is not None and not path.parent.is_dir() and base.count("/") <= 1:
        cached = try_to_load_from_cache(base, "README.md")
        path = Path(cached) if isinstance(cached, str) else None
    card = read_card(path.parent) if path is not None and path.is_file() else None
    return {} if card is None else {key: card.metadata[key] for key in LICENCE if key in card.metadata}


def _linked(base: str) -> str:
    if not base:
        return "a model made in memory"
    return f"`{Path(base).name}`" if Path(base).is_dir() else f"[{base}](https://huggingface.co/{base})"


def _example(config: JudgeConfig) -> tuple[dict[str, str], str]:
    """A record to ask with, and its prompt; a ready prompt where the template is none for such records."""
    try:
        return RECORD, str(prompt_of(RECORD, config.scale, config.score_prefix, config.prompt_template))
    except (InputError, TypeError):
        prompt = f"{RECORD['instruction']}\n{RECORD['response']}\n{RECORD['rubric']}\n"
        return {"prompt": prompt}, prompt


def _adapter(model: Any) -> dict[str, Any]:
    if not isinstance(model, PeftModel):
        return {"adapter": "", "lora_rank": 0}
    config: Any = model.active_peft_config
    rank = getattr(config, "r", 0)
    shown = {"rank": rank, "alpha": getattr(config, "lora_alpha", None)}
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    text = ", ".join([kind, *(f"{name} {value}" for name, value in shown.items() if value)])
    return {"adapter": text, "lora_rank": lora_limit(rank)}


def _data(trainer: "JudgeSavingTrainer", dataset_name: str | None) -> dict[str, Any]:
    """The data's name, stage and counts. `datasets` keeps with the rows what is known of where they come from."""
    info = getattr(trainer.train_dataset, "info", None)
    known, about = getattr(info, "dataset_name", None), getattr(info, "description", None) or ""
    name = dataset_name or (known if known not in UNNAMED else None)
    own = about.startswith(OWN_RATIONALES)
    text = f"`{name}`." if name else "The data set has no name: it was made in memory or read from a file."
    counts = trainer.row_counts.get("train")
    rows = [] if counts is None else [("given", counts.given)]
    if counts is not None:
        outcome = _OUTCOMES[trainer.args.missing_score]
        rows += [(f"{'dropped' if why == UNTRAINED else outcome}: {why}", count) for why, count in counts.lost.items()]
        rows += [("used", counts.used)]
    return {
        "datasets": [name] if name and "/" in name else None,
        "data": f"{about} {text if name else ''}".strip() if own else text,
        "stage": "2, on rationales of its own"
        if own
        else "1, unless the rationales of the data are a judge's own: the data does not tell",
        "rows": [(what, f"{count:,}") for what, count in rows] or [("given", "not known: the data was a stream")],
    }


_OUTCOMES = {"error": "dropped", "drop": "dropped", "keep": "without the score term"}


def _hyperparameters(trainer: "JudgeSavingTrainer") -> dict[str, str]:
    args: Any = trainer.args
    found = {name: getattr(args, name, None) for name in ARGUMENTS}
    del found["num_train_epochs" if args.max_steps > 0 else "max_steps"]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "none"
    found |= {
        "batch size in all": f"{batch} ({args.world_size} processes x {args.per_device_train_batch_size} rows x "
        f"{args.gradient_accumulation_steps} accumulated)",
        "mixed precision": f"{precision}; weights {str(trainer.model.dtype).removeprefix('torch.')}",
    }
    if isinstance(trainer.model, PeftModel):
        config: Any = trainer.model.active_peft_config
        targets = getattr(config, "target_modules", None) or ()  # not every kind of adapter has them
        found["target modules"] = targets if isinstance(targets, str) else ", ".join(sorted(targets)) or None
    return {name: _shown(value) for name, value in found.items() if value is not None}


def _loss_facts(history: Sequence[Mapping[str, Any]], score_loss_type: str) -> dict[str, Any]:
    """A few rows of both curves, first and last among them, and the last figures of each evaluation set."""
    logged = [entry for entry in history if "ce_loss" in entry]
    last = len(logged) - 1
    chosen = sorted({round(i * last / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)}) if logged else []
    held_out: dict[str, list[str]] = {}
    for entry in history:
        for key in entry:
            if key.startswith("eval_") and key.endswith("ce_loss"):
                prefix = key.removesuffix("ce_loss")
                figures = ("ce_loss", "score_loss", "score_pearson", "score_spearman", "score_rmse")
                cells = [_shown(entry.get(f"{prefix}{name}")) for name in figures]
                held_out[prefix] = [prefix.removeprefix("eval_").strip("_") or "eval", str(entry["step"]), *cells]
    return {
        "curve": [[_shown(logged[i].get(name)) for name in ("step", "epoch", "ce_loss", "score_loss")] for i in chosen],
        "held_out": list(held_out.values()),
        "score_unit": ", squared units of the scale" if score_loss_type == "squared_error" else f", {score_loss_type}",
    }


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(getattr(value, "value", value)).replace("|", "\\|")
