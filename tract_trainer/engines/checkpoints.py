"""Finds a judge's files, in a folder or on the Hub, and loads its tokenizer and its model or adapter."""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from tract_trainer.data.hashing import digest
from tract_trainer.errors import InputError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's `max_lora_rank`
READ_WHOLE = 1 << 28  # bytes of a weight file up to which its identity is that of its whole content
SAMPLES, SAMPLE_BYTES = 8, 512  # pieces that are read of every tensor of a larger file, and their size
JSON_FILES = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model*.safetensors"  # files that Transformers loads the weights of a model from
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MISSING_ADAPTER_KEYS = "Found missing adapter keys"  # begins PEFT's warning of layers without weights


@dataclass(frozen=True)
class SavedJudge:
    """
    A judge's files in a `folder` on this machine. Those of an adapter have the folder or repository of its base model,
    its Hub revision, and the kind and rank of the adapter, e.g. `"LORA"`.
    """

    folder: Path
    base: str | None = None
    base_revision: str | None = None
    peft_type: str | None = None
    rank: int = 0

    @classmethod
    def find(cls, name_or_path: str | Path, revision: str | None = None, weights: bool = True) -> "SavedJudge":
        """
        The files in the folder `name_or_path`, or of that repository: then they are fetched, with or without `weights`.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            wanted = None if weights else ["*.json", "*.jinja"]
            folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=wanted))
        check_files(folder)
        path = folder / "adapter_config.json"
        if not path.is_file():
            return cls(folder)
        try:
            adapter = json.loads(path.read_text(encoding="utf-8"))
            base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
            return cls(folder, base, revision, adapter["peft_type"], adapter.get("r", 0))
        except (ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"{path} does not describe an adapter: {error!r}. Save or download the adapter again."
            ) from error

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The model's generation config, or that of an adapter's base model."""
        try:
            return GenerationConfig.from_pretrained(self.base or self.folder, revision=self.base_revision or "main")
        except OSError:  # not every model has one
            return None

    @cached_property
    def identity(self) -> str:
        """
        A fingerprint of the weights, and of a base model's in a folder. Those of a Hub repository that are not on this
        machine are named by their revision.
        """
        folders = [self.folder, *([Path(self.base)] if self.base and Path(self.base).is_dir() else [])]
        kinds = ("*.safetensors", "*.bin")
        files = [file for folder in folders for kind in kinds for file in sorted(folder.glob(kind))]
        weights = [(file.name, _fingerprint(file)) for file in files if file.name != "training_args.bin"]
        return digest(self.base, self.base_revision, weights or self.commit)[:16]

    @property
    def commit(self) -> str | None:
        """Hub commit of the files; `None` for a folder of the user's."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    def check_base(self) -> None:
        """Raises `InputError` for an adapter that cannot be loaded because its base model is unknown."""
        if self.peft_type is not None and not self.base:
            raise InputError(
                f"The adapter in {self.folder} names no base model: it was trained on one made in memory. Save that "
                "model, and name its folder as base_model_name_or_path in adapter_config.json."
            )


def lora_limit(rank: int) -> int:
    """The smallest `max_lora_rank` of vLLM for an adapter of this rank."""
    return next((size for size in LORA_RANKS if size >= rank), rank)


def check_files(folder: Path) -> None:
    """Raises `InputError` for a file in `folder` that is a Git LFS pointer, and for weights that were cut off."""
    for file in sorted(file for kind in ("safetensors", "bin", "json", "model") for file in folder.glob(f"*.{kind}")):
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(
                    f"{file} is a Git LFS pointer, not the file itself. Run `git lfs pull` in that folder, or download "
                    "it from the Hub."
                )
        if file.suffix == ".safetensors":
            _header(file)
        if file.name in JSON_FILES:
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file} is damaged: {error}. Save or download it again.") from error


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and its header: the place of each, counted from there."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length < size else b""
    try:
        header = json.loads(text)
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        header, expected = {}, -1
    if size != expected:
        wanted = f"{expected:,} bytes, as its header says" if expected > 0 else "a safetensors file"
        raise InputError(
            f"{file} is damaged: expected {wanted}, found {size:,} bytes. Was it saved or downloaded to the end? Save "
            "or download it again."
        )
    return 8 + length, header


def _fingerprint(file: Path) -> str:
    """
    Of the whole file; or, of a large safetensors file, of its header and a few pieces of every tensor. Training changes
    numbers all over a tensor.
    """
    with file.open("rb") as stream:
        if file.suffix != ".safetensors" or file.stat().st_size <= READ_WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        begin, header = _header(file)
        found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for name, tensor in sorted(header.items()):
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                for place in range(start, end, max(SAMPLE_BYTES, (end - start) // SAMPLES)):
                    stream.seek(begin + place)
                    found.update(stream.read(min(SAMPLE_BYTES, end - place)))
        return found.hexdigest()


def load_tokenizer(name_or_path: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder or Hub repository; an InputError if its files are damaged."""
    if Path(name_or_path).is_dir():
        check_files(Path(name_or_path))
    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ImportError):  # not there, or a package is: the libraries say which
        raise
    except Exception as error:  # tokenizers raises no other type
        raise InputError(
            f"The tokenizer of {str(name_or_path)!r} cannot be loaded: {str(error).strip()} ({type(error).__name__}). "
            "Are its files (tokenizer.json, tokenizer_config.json) damaged? Save or download them again."
        ) from error


def load_judge_model(
    name_or_path: str | Path, revision: str | None, trainable: bool = False, **model_kwargs: Any
) -> Any:
    """
    A judge's model, loaded with `from_pretrained(..., **model_kwargs)`, or its adapter on the base model, whose weights
    can be trained if it is `trainable`. The `revision` is that of the judge; that of a base model is in the adapter's
    config. Weights that are missing or damaged, and an adapter that does not fit, are an InputError.
    """
    saved = SavedJudge.find(name_or_path, revision, weights=False)
    saved.check_base()
    # Transformers asks on a terminal whether to run a repository's code, unless it is told not to.
    kwargs = {"trust_remote_code": False, "revision": revision if saved.base is None else saved.base_revision}
    kwargs = {name: value for name, value in (kwargs | model_kwargs).items() if value is not None}
    if saved.base is None:
        return _complete_model(_model_classes(name_or_path, **kwargs)[0], name_or_path, **kwargs)
    if Path(saved.base).is_dir():
        check_files(Path(saved.base))
    folder, misfit = SavedJudge.find(name_or_path, revision).folder, ""
    for kind in _model_classes(saved.base, **kwargs):
        base = _complete_model(kind, saved.base, **kwargs)
        try:
            return _adapted(base, folder, trainable)
        except (IndexError, RuntimeError, UserWarning, ValueError) as error:
            misfit = misfit or str(error)
    raise InputError(
        f"The adapter in {folder} does not fit {saved.base!r}, which its adapter_config.json names as its base model: "
        f"{misfit} Put the model there that the adapter was trained on."
    )


def _model_classes(name_or_path: str | Path, **kwargs: Any) -> list[Any]:
    """Classes that a judge may have been trained with: the one its config names, as in TRL, or its text part alone."""
    of_hub = ("cache_dir", "code_revision", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")
    config = AutoConfig.from_pretrained(name_or_path, **{name: kwargs[name] for name in of_hub if name in kwargs})
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is None or not named.can_generate():
        return [AutoModelForCausalLM]
    return [named] if config.get_text_config() is config else [named, AutoModelForCausalLM]


def check_weights(name_or_path: str | Path, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """
    Raises `InputError` for a model without some of its weights, by the names in its safetensors files: no weight is
    read. A model of other code, of quantised weights, or for DeepSpeed ZeRO-3 is not checked.
    """
    config = AutoConfig.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None or getattr(config, "quantization_config", None) is not None or is_deepspeed_zero3_enabled():
        return
    folder, weights = Path(name_or_path), dict[str, torch.Tensor]()
    if not folder.is_dir():
        folder = Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=["*.json", WEIGHTS]))
    for file in folder.glob(WEIGHTS):
        with safe_open(file, "pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in list(opened.keys())}
        weights |= {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if weights:
        asked = {"config": config, "state_dict": weights, "device_map": "meta"}
        _refuse_missing(name_or_path, kind.from_pretrained(None, output_loading_info=True, **asked)[1])


def _complete_model(kind: Any, name_or_path: str | Path, **kwargs: Any) -> Any:
    """The model, after `InputError` if a weight is in no file."""
    model, found = kind.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    _refuse_missing(name_or_path, found)
    return model


def _refuse_missing(name_or_path: str | Path, found: dict[str, Any]) -> None:
    """An InputError for weights that are in no file: Transformers gives them random numbers, and a warning."""
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{str(name_or_path)!r} holds no weights for {len(missing)} parameters of its model, such as "
            f"{missing[0]!r}: they would be random. Save or download the model again. If its head is its input "
            'embedding, set "tie_word_embeddings": true in its config.json.'
        )


def _adapted(base: Any, folder: Path, trainable: bool) -> PeftModel:
    """
    `base` with the adapter in `folder`. PEFT loads it: Transformers' own loader leaves parts of some kinds of adapters
    at their initial values, e.g. the magnitudes of DoRA.
    """
    rows = _saved_rows(base, folder)
    if rows is not None and rows != base.get_input_embeddings().weight.size(0):  # trained with tokens added
        base.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", MISSING_ADAPTER_KEYS)
        return PeftModel.from_pretrained(base, folder, is_trainable=trainable, torch_device="cpu")


def _saved_rows(base: Any, folder: Path) -> int | None:
    """Number of rows of the embedding or head that was saved with the adapter; `None` if neither was."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return None
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    names = "|".join(re.escape(name) for name, module in base.named_modules() if any(module is end for end in ends))
    of_end = re.compile(rf"\.({names})(\.token_adapter)?(\.base_layer|\.original_module|\.modules_to_save)?\.weight$")
    with safe_open(file, "pt") as weights:
        return next((weights.get_slice(key).get_shape()[0] for key in filter(of_end.search, weights.keys())), None)
