"""Turns a trainer into what the card of its judge says: the variables of `templates/model_card.md.jinja`, and metadata.

Everything is at hand: no file of the Hub is fetched for it.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache
from peft import PeftModel

from tract_trainer.card import fence, read_card
from tract_trainer.engines.saved import lora_limit
from tract_trainer.errors import InputError
from tract_trainer.hub import JudgeConfig
from tract_trainer.records import prompt_of
from tract_trainer.stage2 import OWN_RATIONALES
from tract_trainer.targets import UNTRAINED

if TYPE_CHECKING:
    from tract_trainer.saving import JudgeSavingTrainer

TEMPLATE = "model_card.md.jinja"
RECORD = {
    "instruction": "Name a prime number above 6.",
    "response": "7, since nothing but 1 and 7 divides it.",
    "rubric": "Is the answer correct and justified?",
}
CURVE_ROWS = 10
"""Values that `vllm serve --max-lora-rank` takes."""
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
        trainer ([`~tract_trainer.saving.JudgeSavingTrainer`]): what trained the judge.
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
        **_losses(trainer.state.log_history, trainer.args.score_loss_type),
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


def _losses(history: Sequence[Mapping[str, Any]], score_loss_type: str) -> dict[str, Any]:
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
