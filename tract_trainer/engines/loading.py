"""Turns a judge's folder or Hub repository into its model: a full one, or an adapter on its base model."""

import re
import warnings
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from tract_trainer.engines.saved import SavedJudge
from tract_trainer.errors import InputError

OF_HUB = ("cache_dir", "code_revision", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


def load_judge_model(name_or_path: str | Path, revision: str | None, **model_kwargs: Any) -> Any:
    """
    Args:
        revision (`str`, *optional*): Hub revision of the judge; that of an adapter's base model is in its config.
        **model_kwargs: arguments of `from_pretrained` for the full model or the base model.

    Raises:
        InputError: an adapter does not fit its base model.
    """
    saved = SavedJudge.find(name_or_path, revision, weights=False)
    if saved.peft_type is not None and not saved.base:
        raise InputError(
            f"The adapter in {saved.folder} names no base model: it was trained on one made in memory. Save that "
            "model, and name its folder as base_model_name_or_path in adapter_config.json."
        )
    if saved.base is None:
        kwargs = {"revision": revision, **model_kwargs}
        return _classes(name_or_path, **kwargs)[0].from_pretrained(name_or_path, **kwargs)
    folder, misfit = SavedJudge.find(name_or_path, revision).folder, ""
    model_kwargs = {"revision": saved.base_revision, **model_kwargs} if saved.base_revision else model_kwargs
    for kind in _classes(saved.base, **model_kwargs):
        base = kind.from_pretrained(saved.base, **model_kwargs)
        try:
            return _adapted(base, folder)
        except (IndexError, RuntimeError, UserWarning, ValueError) as error:
            misfit = misfit or str(error)
    raise InputError(
        f"The adapter in {folder} does not fit {saved.base!r}, which its adapter_config.json names as its base model: "
        f"{misfit} Put the model there that the adapter was trained on."
    )


def _classes(name_or_path: str | Path, **kwargs: Any) -> list[Any]:
    """What the model may have been trained as: the class that its config names, as TRL does, or the text part alone."""
    config = AutoConfig.from_pretrained(name_or_path, **{name: kwargs[name] for name in OF_HUB if name in kwargs})
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is None or not named.can_generate():
        return [AutoModelForCausalLM]
    return [named] if config.get_text_config() is config else [named, AutoModelForCausalLM]


def _adapted(base: Any, folder: Path) -> PeftModel:
    """
    `base` with the adapter in `folder`. PEFT loads it, since Transformers' own loader leaves parts of some kinds at
    their initial values, e.g. the magnitudes of DoRA.
    """
    rows = _saved_rows(base, folder)
    if rows is not None and rows != base.get_input_embeddings().weight.size(0):  # trained with tokens added
        base.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        return PeftModel.from_pretrained(base, folder, torch_device="cpu")


def _saved_rows(base: Any, folder: Path) -> int | None:
    """Rows of the embedding or head that was saved with the adapter, if any was."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return None
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    names = "|".join(re.escape(name) for name, module in base.named_modules() if any(module is end for end in ends))
    whole = re.compile(rf"\.({names})(\.token_adapter)?(\.base_layer|\.original_module|\.modules_to_save)?\.weight$")
    with safe_open(file, "pt") as weights:
        return next((weights.get_slice(key).get_shape()[0] for key in filter(whole.search, weights.keys())), None)
