"""Turns a judge's folder or Hub repository into what an engine must know of it before it loads a weight."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tract_trainer.seeds import digest

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
