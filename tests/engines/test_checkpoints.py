"""A judge's files: their identity tells any change of the weights, and what is missing or damaged is one error."""

import builtins
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_dataset, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, dynamic_module_utils
from trl import ModelConfig

from tract_trainer import Judge, JudgeConfig, RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.engines import checkpoints
from tract_trainer.engines.checkpoints import SavedJudge, check_weights, load_judge_model, load_tokenizer
from tract_trainer.errors import InputError
from tract_trainer.training.inspection import inspect_dataset

CONFIG = JudgeConfig(list("12345"), [1, 2, 3, 4, 5], "So the overall score is ")
TOKENIZER = make_tokenizer()
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\nsize 12345\n"
)


def save_judge(folder, kind="llama"):
    make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    CONFIG.save(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return save_judge(tmp_path / "judge")


def change(file, name, edit):
    """Writes `file` anew with one tensor changed by `edit`, or without it."""
    tensors = load_file(file)
    tensors[name] = edit(tensors[name])
    save_file({name: t for name, t in tensors.items() if t is not None}, file, metadata={"format": "pt"})


# Identity


@pytest.mark.parametrize("read_whole", [0, 1 << 28], ids=["a sample of a large file", "a small file"])
def test_the_identity_changes_with_any_tensor(folder, monkeypatch, read_whole):
    monkeypatch.setattr(checkpoints, "READ_WHOLE", read_whole)
    file, found = folder / "model.safetensors", set()
    names, size = sorted(load_file(file)), file.stat().st_size
    assert len(names) > 15
    for name in [None, *names]:
        save_judge(folder)
        if name is not None:
            change(file, name, lambda tensor: tensor + 1e-3)
        assert file.stat().st_size == size
        found.add(SavedJudge.find(folder).identity)
    assert len(found) == 1 + len(names)
    save_judge(folder)
    assert SavedJudge.find(folder).identity in found


def test_the_sample_of_a_large_tensor_is_of_all_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "READ_WHOLE", 0)
    weights, found = torch.zeros(1000, 100), set()
    for part in [None, *range(8)]:
        tensor = weights.clone()
        if part is not None:
            tensor[part * 125 : (part + 1) * 125] += 1  # an eighth of the rows
        save_file({"a": torch.ones(3), "weights": tensor, "z": torch.ones(3)}, tmp_path / "model.safetensors")
        found.add(SavedJudge.find(tmp_path).identity)
    assert len(found) == 9


def test_the_identity_changes_with_any_byte_of_a_pickled_file(tmp_path):
    found = set()
    for place in (0, 100_000, 250_000):
        content = bytearray(300_000)
        content[place] = 1
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        found.add(SavedJudge.find(tmp_path).identity)
    assert len(found) == 3


def test_the_identity_is_of_the_weights_alone(folder):
    identity = SavedJudge.find(folder).identity
    (folder / "training_args.bin").write_bytes(b"1")
    (folder / "README.md").write_text("A judge.")
    assert SavedJudge.find(folder).identity == identity
    assert SavedJudge.find(shutil.copytree(folder, folder.parent / "copy")).identity == identity


def test_the_identity_of_an_adapter_changes_with_its_base(folder, tmp_path):
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig()).save_pretrained(tmp_path / "adapter")
    identity = SavedJudge.find(tmp_path / "adapter").identity
    assert SavedJudge.find(tmp_path / "adapter").identity == identity
    change(folder / "model.safetensors", "lm_head.weight", lambda tensor: tensor + 1e-3)
    assert SavedJudge.find(tmp_path / "adapter").identity != identity


# Missing weights


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_model_without_some_of_its_weights_is_refused(folder, name):
    change(folder / "model.safetensors", name, lambda tensor: None)
    with pytest.raises(InputError, match=rf"holds no weights for 1 parameters of its model, such as '{name}': they"):
        Judge.from_pretrained(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_a_model_without_some_of_its_weights_is_not_trained(folder, tmp_path, name):
    args = RegressionAwareSFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    RegressionAwareSFTTrainer(str(folder), args, train_dataset=make_dataset(4))
    change(folder / "model.safetensors", name, lambda tensor: None)
    with pytest.raises(InputError, match=rf"holds no weights for 1 parameters of its model, such as '{name}': they"):
        RegressionAwareSFTTrainer(str(folder), args, train_dataset=make_dataset(4))


@pytest.mark.parametrize("kind", ["llama_tied", "gemma2", "gpt2", "mixtral"])
def test_no_weight_is_read_to_find_that_one_is_missing(tmp_path, kind):
    save_judge(tmp_path, kind)
    check_weights(tmp_path)
    file = tmp_path / "model.safetensors"
    name = next(name for name in load_file(file) if "norm" in name or "ln_f" in name)
    change(file, name, lambda tensor: None)
    with pytest.raises(InputError, match=f"holds no weights for 1 parameters of its model, such as '{name}'"):
        check_weights(tmp_path)


def test_a_base_model_without_some_of_its_weights_is_refused(folder, tmp_path):
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig()).save_pretrained(tmp_path / "adapter")
    load_judge_model(tmp_path / "adapter", None)
    change(folder / "model.safetensors", "lm_head.weight", lambda tensor: None)
    with pytest.raises(InputError, match=r"judge' holds no weights for 1 parameters .*'lm_head.weight'"):
        load_judge_model(tmp_path / "adapter", None)


@pytest.mark.parametrize("kind", ["llama_tied", "gemma2", "gpt2"])
def test_a_head_that_is_the_embedding_is_not_missing(tmp_path, kind):
    save_judge(tmp_path, kind)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    Judge.from_pretrained(tmp_path)


def test_a_model_that_is_quantised_while_it_is_loaded_misses_nothing(folder):
    pytest.importorskip("bitsandbytes")
    four_bit = BitsAndBytesConfig(load_in_4bit=True)
    model = load_judge_model(folder, None, quantization_config=four_bit, dtype=torch.float32, device_map="cpu")
    assert model.is_loaded_in_4bit


# Damaged files

WEIGHTS, TOKENS = "model.safetensors", "tokenizer.json"


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])


def emptied(file):
    file.write_bytes(b"")


def hollow(file):
    file.write_text("{}")


def pointer(file):
    file.write_text(POINTER)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            WEIGHTS,
            cut,
            r"model\.safetensors is damaged: expected [\d,]+ bytes, as its header says, found [\d,]+ bytes\.",
        ),
        (WEIGHTS, emptied, r"model\.safetensors is damaged: expected a safetensors file, found 0 bytes\."),
        (WEIGHTS, pointer, r"model\.safetensors is a Git LFS pointer, not the file itself\. Run `git lfs pull` in"),
        (TOKENS, cut, r"tokenizer\.json is damaged: .*\. Save or download it again\."),
        (TOKENS, emptied, r"tokenizer\.json is damaged: "),
        (TOKENS, hollow, r"^The tokenizer of '.*judge' cannot be loaded: .* Are its files .* damaged\?"),
        (TOKENS, pointer, r"tokenizer\.json is a Git LFS pointer, not the file itself\."),
        ("tokenizer_config.json", cut, r"tokenizer_config\.json is damaged: "),
        ("config.json", cut, r"config\.json is damaged: "),
    ],
)
def test_a_damaged_file_is_one_error(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(InputError, match=message):
        Judge.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base_model_name_or_path": "base"}', POINTER])
def test_a_damaged_adapter_config_is_one_error(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(
        InputError, match=r"adapter_config\.json (is damaged|does not describe an adapter|is a Git LFS)"
    ):
        SavedJudge.find(tmp_path)


@pytest.mark.parametrize("where", ["base/model.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("damage", [cut, pointer])
def test_damaged_weights_of_an_adapter_or_its_base_are_one_error(tmp_path, where, damage):
    save_judge(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig())
    model.save_pretrained(tmp_path / "adapter")
    damage(tmp_path / where)
    with pytest.raises(InputError, match=rf"{where} is (damaged|a Git LFS pointer)"):
        load_judge_model(tmp_path / "adapter", None)


def test_a_tokenizer_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


# Code of others


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "own"

class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_code_in_a_repository_is_not_run_even_if_the_terminal_says_yes(folder, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n{CODE}")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    args = RegressionAwareSFTConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    for load in (
        lambda: load_judge_model(folder, None),
        lambda: RegressionAwareSFTTrainer(str(folder), args, train_dataset=make_dataset(4)),
        lambda: inspect_dataset(make_dataset(4), args, ModelConfig(str(folder))),
    ):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load()
    assert not marker.exists()
    AutoModelForCausalLM.from_pretrained(folder)  # what the library does unless it is told not to
    assert marker.exists()


def test_a_revision_among_the_arguments_of_the_model_is_refused(folder):
    """That of the judge is another argument, and that of an adapter's base model is in the adapter's config."""
    with pytest.raises(InputError, match=r"^model_kwargs must not hold 'revision'\. Give revision=\.\.\. beside it"):
        Judge.from_pretrained(folder, model_kwargs={"revision": "main"})
    Judge.from_pretrained(folder, revision="main")


TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast

class Own(PreTrainedTokenizerFast):
    pass
"""


def test_code_beside_a_chat_template_is_not_run_even_if_the_terminal_says_yes(folder, tmp_path, monkeypatch):
    other, marker = tmp_path / "other", tmp_path / "marker"
    TOKENIZER.save_pretrained(other)
    (other / "code.py").write_text(f"open({str(marker)!r}, 'w')\n{TOKENIZER_CODE}")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "code.Own"]}}
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    kwargs = {"use_cpu": True, "bf16": False, "report_to": "none", "chat_template_path": str(other)}
    args = RegressionAwareSFTConfig(str(tmp_path / "out"), **kwargs)
    for load in (
        lambda: RegressionAwareSFTTrainer(str(folder), args, train_dataset=make_dataset(4)),
        lambda: load_tokenizer(other),
    ):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load()
    assert not marker.exists()
    AutoTokenizer.from_pretrained(other)  # what the library does unless it is told not to
    assert marker.exists()


class Hostile:
    """An object that a pickle makes by a call."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_a_pickle_among_the_weights_runs_nothing(folder, tmp_path):
    weights, marker = load_file(folder / "model.safetensors"), tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load_judge_model(folder, None)
    torch.save({**weights, "other": Hostile(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"weights_only|Weights only|Unable to load weights"):
        load_judge_model(folder, None)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # what reading all of it does
    assert marker.exists()
