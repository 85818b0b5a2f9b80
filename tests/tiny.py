"""Tokenizers, models and data of a size that tests make in the process. Nothing is downloaded."""

import functools
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

torch.set_num_threads(1)  # a tiny model is faster so, ten times where other processes share the machine

PREFIX = "So the overall score is "

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Jinja drops a newline that stands right after a block, so this one is written as an expression.
NEWLINE = CHATML.replace("{% endgeneration %}\n", "{% endgeneration %}{{ '\\n' }}")

CORPUS = [
    "You are judging a response. The response names 3 of 12 facts and is 80 % right.",
    "The answer is clear and mostly correct. It lacks one example. So the overall score is 4",
    "Weak: 2 errors in 10 lines.\nSo the overall score is 1",
    "Rate the response from 1 to 5. 0 1 2 3 4 5 6 7 8 9 10",
    "[RESULT] 5 So the overall score is 2 So the overall score is 3 So the overall score is 5",
    *(f"Score {i} of {i + 1}; word {i} 1{i} is A B C D E" for i in range(10)),
]

FAMILIES = ("llama3", "qwen", "gpt2", "mistral", "newline")
"""llama3: up to three digits a token, the space apart. qwen: one digit a token. gpt2: the space merged into the digit.
mistral: SentencePiece style. newline: a chat template that adds a newline after the end of a turn."""

SPLITS = {
    "llama3": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


@functools.cache
def _tokenizer_json(family: str) -> str:
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    if family == "mistral":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # SentencePiece has no pre-tokenizer; Mistral's merges keep digits apart, which the split does here.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d|▁?[^▁\d]+|▁"), "isolated")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = [*special, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.decoder = decoders.ByteLevel()
        if family == "gpt2":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            split = pre_tokenizers.Split(Regex(SPLITS["llama3" if family == "llama3" else "qwen"]), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        trainer = trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if family == "mistral":  # byte tokens are part of the vocabulary, not special
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special[:6]])
    return tokenizer.to_str()


# As Qwen3's: a finished answer begins with an empty think block, which the generation prompt does not hold.
THINKING = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ message['content'] }}",
)


def make_tokenizer(family: str = "qwen", **kwargs: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of `family`, about 420 tokens, with a ChatML template."""
    chat = family in ("qwen", "newline")
    defaults = {"eos_token": "<|im_end|>" if chat else "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(family)), **{**defaults, **kwargs}
    )
    tokenizer.chat_template = NEWLINE if family == "newline" else CHATML
    return tokenizer


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **SIZES, tie_word_embeddings=False),
    "llama_tied": lambda v: LlamaConfig(vocab_size=v, **SIZES, tie_word_embeddings=True),
    "qwen3": lambda v: Qwen3Config(vocab_size=v, **SIZES, head_dim=8),
    "mistral": lambda v: MistralConfig(vocab_size=v, **SIZES, sliding_window=8),
    "gemma2": lambda v: Gemma2Config(
        vocab_size=v, **SIZES, head_dim=8, final_logit_softcapping=0.5, query_pre_attn_scalar=8, sliding_window=32
    ),
    "cohere": lambda v: CohereConfig(vocab_size=v, **SIZES, logit_scale=0.25),
    "granite": lambda v: GraniteConfig(vocab_size=v, **SIZES, logits_scaling=4.0),
    "mixtral": lambda v: MixtralConfig(
        vocab_size=v, **SIZES, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True
    ),
    "phi_bias": lambda v: PhiConfig(vocab_size=v, **{**SIZES, "num_key_value_heads": 2}),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_embd=16, n_layer=2, n_head=2, n_positions=512),
}


def make_model(kind: str = "llama", vocab_size: int = 420, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of `kind` with about 20k random float32 parameters, large enough for its probabilities to be uneven."""
    config = CONFIGS[kind](vocab_size)
    for name, value in {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **overrides}.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            elif kind == "phi_bias":
                parameter.normal_(0.5, 0.3)
    return model


GOLD = [4.0, 2.0, 3.6666667, 5.0, 1.0, 3.3333333, 2.0, 4.5]
RATIONALES = [
    "The answer is clear.",
    "Weak: 2 errors in 10 lines.",
    "It names 3 of 12 facts. So the overall score is 2 at first sight, but the example is right.",
    "Mostly correct",
    "1 2 3 4 5",
    "Clear and mostly right, it lacks one example and the response is long.",
    "2",
    "The answer is clear and mostly correct. It names 80 % of the facts.",
]


def make_rows(n: int = 8, conversational: bool = False, with_score: bool = True) -> list[dict[str, Any]]:
    """Prompt-completion rows of different lengths, one with a decoy of the closing phrase, with fractional scores."""
    rows = []
    for i in range(n):
        gold = GOLD[i % 8]
        label = min("12345", key=lambda text: (abs(float(text) - gold), text))
        prompt: Any = f"Rate the response from 1 to 5. The response names {i} facts.\n"
        completion: Any = f"{RATIONALES[i % 8]} {PREFIX}{label}"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            completion = [{"role": "assistant", "content": completion}]
        rows.append({"prompt": prompt, "completion": completion, **({"score": gold} if with_score else {})})
    return rows


def make_dataset(n: int = 8, **kwargs: Any) -> Dataset:
    return Dataset.from_list(make_rows(n, **kwargs))


def train_judge(
    folder: Any,
    steps: int = 60,
    conversational: bool = True,
    model: Any = None,
    peft_config: Any = None,
    dataset: Any = None,
    tokenizer: Any = None,
    **kwargs: Any,
) -> Any:
    """A trainer that has overfitted a tiny model on the eight rows, so that it ends its rationales with a score."""
    from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer

    tokenizer = tokenizer or make_tokenizer("qwen")
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    args = RegressionAwareSFTConfig(
        str(folder),
        max_steps=steps,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        max_length=None,
        gradient_checkpointing=False,
        **{**settings, **kwargs},
    )
    trainer = RegressionAwareSFTTrainer(
        model=model or make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id, hidden_size=32),
        args=args,
        train_dataset=dataset or make_dataset(8, conversational=conversational),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer
