"""Each use of a library's internals that `tract_trainer.engines.PRIVATE` lists still holds."""

import importlib.util
import logging
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_compatibility import vision_language_model
from tiny import make_model
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from tract_trainer.engines import PRIVATE
from tract_trainer.engines.cache import RoomyLayer
from tract_trainer.engines.checkpoints import MISSING_ADAPTER_KEYS, _saved_rows
from tract_trainer.engines.transformers import REMINDER

PROMPT = torch.tensor([[5, 6, 7, 8]])
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 3}


def dynamic_layer(folder):
    model = make_model().eval()
    with torch.no_grad():
        cache = model(PROMPT, use_cache=True).past_key_values
        (layer, _), plain = cache.layers, DynamicLayer()
        assert type(cache) is DynamicCache and type(layer) is DynamicLayer
        assert layer.is_initialized and not layer.is_sliding and not plain.is_initialized
        assert layer.keys.shape == layer.values.shape == (1, 1, 4, 8)  # rows, heads, tokens, width of a head
        layer.batch_select_indices(torch.tensor([0, 0]))
        assert layer.keys.shape == (2, 1, 4, 8)
        ours = RoomyLayer(layer.keys, layer.values)
        more = torch.ones(2, 1, 1, 8)
        for found, expected in zip(ours.update(more, more), layer.update(more, more), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == layer.get_seq_length() == 5
        assert ours.get_mask_sizes(1) == layer.get_mask_sizes(1)
    known = {"lazy_initialization", "update", "get_mask_sizes", "get_seq_length", "get_max_length", "reset", "crop"}
    known |= {"batch_repeat_interleave", "batch_select_indices", "is_sliding", "is_croppable"}
    assert {name for name in vars(DynamicLayer) if not name.startswith("_")} <= known  # RoomyLayer inherits the others


def generation_config(folder):
    model = make_model().eval()
    model.generation_config = GenerationConfig(max_new_tokens=3, suppress_tokens=list(range(9, 420)), **GREEDY)
    found = model.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=2, **GREEDY))
    assert found.shape == (1, 6) and found[0, 4:].max() < 9  # the own one is merged in


def position_ids(folder):
    model, seen = make_model("gpt2").eval(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"].tolist()), with_kwargs=True
    )
    mask = torch.tensor([[0, 1, 1, 1]])
    model.generate(PROMPT, attention_mask=mask, generation_config=GenerationConfig(max_new_tokens=2, **GREEDY))
    assert seen[0][0][1:] == [0, 1, 2] and seen[1] == [[3]]


def stopping_criteria(folder):
    model, records = make_model(max_position_embeddings=5).eval(), []
    handler = logging.Handler()
    handler.emit = records.append
    logging.Logger.warning_once.cache_clear()
    level = REMINDER.level
    REMINDER.addHandler(handler)
    REMINDER.setLevel(logging.WARNING)  # whatever another test has told the library to say
    try:
        model.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=4, **GREEDY))
    finally:
        REMINDER.removeHandler(handler)
        REMINDER.setLevel(level)
    assert "exceeded the model's predefined" in " ".join(record.getMessage() for record in records)


def rope_deltas(folder):
    model = vision_language_model().eval()
    with torch.no_grad():
        model(input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT))
    model.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=2, **GREEDY))
    assert any("rope_deltas" in vars(module) for module in model.modules())


def masks(folder):
    for kind, settings in (("llama", {}), ("gemma2", {"_attn_implementation": "eager"}), ("mistral", {})):
        model = make_model(kind, **settings).eval()
        assert model._supports_attention_backend and not model._is_stateful
        assert model.config._attn_implementation == settings.get("_attn_implementation", "sdpa")
        seen = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        if settings:
            seen = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            assert set(model.config.layer_types) == {"full_attention", "sliding_attention"}
            seen = dict.fromkeys(model.config.layer_types, seen)
        with torch.no_grad():
            found, expected = (model(PROMPT, attention_mask=mask).logits for mask in (seen, None))
        assert torch.allclose(found, expected, atol=1e-6)
    assert transformers.MambaForCausalLM._is_stateful


def missing_keys(folder):
    get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(make_model(num_hidden_layers=3), folder)
    assert any(str(warning.message).startswith(MISSING_ADAPTER_KEYS) for warning in caught)


def saved_embeddings(folder):
    ends, q = ["embed_tokens", "lm_head"], ["q_proj"]
    saved = {
        "modules_to_save": LoraConfig(r=2, target_modules=q, modules_to_save=ends),
        "one_end": LoraConfig(r=2, target_modules=q, modules_to_save=["lm_head"]),
        "targets": LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        "token_adapter": LoraConfig(r=2, target_modules=q, trainable_token_indices=[5]),
    }
    for name, config in saved.items():
        get_peft_model(make_model(vocab_size=400), config).save_pretrained(folder / name, save_embedding_layers=True)
        assert _saved_rows(make_model(), folder / name) == 400, sorted(
            load_file(folder / name / "adapter_model.safetensors")
        )
    get_peft_model(make_model(), LoraConfig(r=2, target_modules=q)).save_pretrained(folder / "none")
    assert _saved_rows(make_model(), folder / "none") is None


def model_config(folder):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from vllm.config import ModelConfig

    assert {"max_model_len", "dtype", "quantization"} <= set(ModelConfig.__dataclass_fields__)


CHECKS = {
    "transformers: DynamicLayer": dynamic_layer,
    "transformers: generation_config": generation_config,
    "transformers: position_ids": position_ids,
    "transformers: stopping_criteria": stopping_criteria,
    "transformers: rope_deltas": rope_deltas,
    "transformers: masks": masks,
    "peft: missing keys": missing_keys,
    "peft: saved embeddings": saved_embeddings,
    "vllm: model_config": model_config,
}


@pytest.mark.parametrize("name", sorted({*PRIVATE, *CHECKS}))
def test_an_internal_of_a_library_is_still_what_the_engines_use(name, tmp_path):
    assert name in CHECKS, f"tests/engines/test_internals.py checks {name!r} no more, which PRIVATE lists."
    assert name in PRIVATE, f"PRIVATE in tract_trainer/engines/__init__.py does not list {name!r}."
    try:
        CHECKS[name](tmp_path)
    except Exception as error:
        library, what = name.split(": ")
        raise AssertionError(f"{library} has changed: {what}. The engines use it: {PRIVATE[name]}") from error
