"""Finds a judge's files, in a folder or on the Hub, and loads its model: a full one, or an adapter on its base."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from tract_trainer.data.hashing import digest
from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig

SAMPLED_BYTES = 1 << 16

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class SavedJudge:
    """
    A judge's files.

    Attributes:
        folder (`Path`): where they are on this machine.
        base (`str`, *optional*): folder or repository of the model that an adapter belongs to; `None` for a full model.
        base_revision (`str`, *optional*): its Hub revision; `None` for the main one.
        peft_type (`str`, *optional*), rank (`int`): of the adapter.
    """

    folder: Path
    base: str | None = None
    base_revision: str | None = None
    peft_type: str | None = None
    rank: int = 0

    @classmethod
    def find(cls, name_or_path: str | Path, revision: str | None = None, weights: bool = True) -> "SavedJudge":
        """
        The files at `name_or_path`, fetched from the Hub, with or without `weights`, where it is no folder.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            wanted = None if weights else ["*.json", "*.jinja"]
            folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=wanted))
        if not (folder / "adapter_config.json").is_file():
            return cls(folder)
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
        return cls(folder, base, revision, adapter["peft_type"], adapter.get("r", 0))

    @property
    def generation_config(self) -> "GenerationConfig | None":
        """The model's generation config, or that of an adapter's base model."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.base or self.folder, revision=self.base_revision or "main")
        except OSError:  # not every model has one
            return None

    @property
    def identity(self) -> str:
        """A fingerprint of the weights, from the sizes, beginnings and ends of their files."""
        weights = [*self.folder.glob("*.safetensors"), *self.folder.glob("*.bin")]
        files = sorted(file for file in weights if file.name != "training_args.bin")
        found = [_sample(file) for file in files] or self.commit  # weights may not be here
        return digest(self.base, self.base_revision, found)[:16]

    @property
    def commit(self) -> str | None:
        """Of a judge from the Hub; a folder has none."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None


def lora_limit(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM knows for an adapter of this rank."""
    return next((size for size in LORA_RANKS if size >= rank), rank)


def _sample(file: Path) -> list[str | int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(SAMPLED_BYTES)
        stream.seek(max(0, size - SAMPLED_BYTES))
        return [file.name, size, digest(start.hex(), stream.read().hex())]


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
        return _model_classes(name_or_path, **kwargs)[0].from_pretrained(name_or_path, **kwargs)
    folder, misfit = SavedJudge.find(name_or_path, revision).folder, ""
    model_kwargs = {"revision": saved.base_revision, **model_kwargs} if saved.base_revision else model_kwargs
    for kind in _model_classes(saved.base, **model_kwargs):
        base = kind.from_pretrained(saved.base, **model_kwargs)
        try:
            return _adapted(base, folder)
        except (IndexError, RuntimeError, UserWarning, ValueError) as error:
            misfit = misfit or str(error)
    raise InputError(
        f"The adapter in {folder} does not fit {saved.base!r}, which its adapter_config.json names as its base model: "
        f"{misfit} Put the model there that the adapter was trained on."
    )


def _model_classes(name_or_path: str | Path, **kwargs: Any) -> list[Any]:
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
