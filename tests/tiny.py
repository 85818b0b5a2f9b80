"""Tokenizers, models and data of a size that tests make in the process. Nothing is downloaded."""

import functools
import math
from collections import Counter, defaultdict
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
    TrainerCallback,
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


def make_model(
    kind: str = "llama", vocab_size: int = 420, seed: int = 0, spread: float = 0.3, **overrides: Any
) -> PreTrainedModel:
    """
    A model of `kind` with about 20k random float32 parameters of standard deviation `spread`: 0.3 is large enough for
    its probabilities to be uneven, and 0.1 learns in a third of the steps.
    """
    config = CONFIGS[kind](vocab_size)
    for name, value in {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **overrides}.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
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


def judge_model(tokenizer: Any, **overrides: Any) -> PreTrainedModel:
    """A model that learns to judge in a few dozen steps."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "eos_token_id": tokenizer.eos_token_id, **overrides}
    return make_model("llama", len(tokenizer), spread=0.1, **sizes)


SECOND_THOUGHTS = ["Fact is right.", "Word is clear.", "Errors in it.", "Clear example.", "Score it.", "Rate it so.",
                   "Mostly facts.", "Response is weak."]  # fmt: skip
"""Rationales with other first tokens than `RATIONALES`, one for each row."""


def judge_rows(conversational: bool = True) -> list[dict[str, Any]]:
    """
    The eight rows, three times, and a second rationale for each prompt: a judge that has learned them writes
    its rows' own rationales when it is greedy, and both when it samples. Their scores are their labels: a score between
    two labels would be met with probability off the scale, too.
    """
    own, other = make_rows(8, conversational), make_rows(8, conversational)
    for first, second, rationale in zip(own, other, SECOND_THOUGHTS, strict=True):
        text = first["completion"][0]["content"] if conversational else first["completion"]
        first["score"] = second["score"] = float(text[-1])
        text = f"{rationale} {PREFIX}{text[-1]}"
        second["completion"] = [{"role": "assistant", "content": text}] if conversational else text
    return own * 3 + other


KNOWN, LEAD = 0.97, 0.65
"""
Least probabilities of a judge that has learned its rows: of all that may follow, and of what follows in three of four
rows where they differ. A draw with top_p=0.9 then writes one of its prompt's rationales to the end, whatever its seed,
and a greedy judge the most frequent one. Machines differ in rounding, by a millionth.
"""


def unlearned(trainer: Any, least: float = KNOWN) -> list[str]:
    """
    The places of the training rows where the judge need not go on as a row with the same beginning does, in words.

    Where a score is due, every label may follow.
    """
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    batch, training = trainer.data_collator(rows), trainer.model.training
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        probs = trainer.model.eval()(**inputs).logits.float().softmax(-1)  # (B, T, V)
    trainer.model.train(training)
    follows: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    places = {}
    for row, ids in enumerate(batch["input_ids"].tolist()):
        for place, token in enumerate(ids):
            scored = not math.isnan(batch["score_labels"][row, place])
            if scored or batch["labels"][row, place] >= 0:
                begun = tuple(ids[:place])
                places[begun] = row, place - 1
                follows[begun].update(trainer.score_tokens.ids if scored else [token])
    found = []
    for begun, at in places.items():
        (first, most), *others = follows[begun].most_common()
        known, lead = float(probs[at][[*follows[begun]]].sum()), float(probs[at][first])
        if known < least or (others and most >= 3 * others[0][1] and lead < LEAD):
            text = trainer.processing_class.decode(begun)[-60:]
            found.append(f"after {text!r}, what follows has a probability of {known:.3f}, the likeliest one {lead:.3f}")
    return found


LEARNING = {"learning_rate": 5e-3, "adam_beta2": 0.99, "warmup_steps": 10}
"""Settings with which a judge learns its rows in less than a hundred steps."""


class UntilLearned(TrainerCallback):
    """Ends the training when the rows are learned."""

    def __init__(self, trainer: Any, least: float = KNOWN) -> None:
        self.trainer, self.least = trainer, least

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0 and not unlearned(self.trainer, self.least):
            control.should_training_stop = True


def check_learned(trainer: Any, least: float = KNOWN) -> None:
    """
    Raises:
        AssertionError: a rationale that the judge writes need not be one of its rows' and end with a score.
    """
    found = unlearned(trainer, least)
    assert not found, (
        f"Expected a judge that has learned its rows, so that each rationale ends with a score; found {len(found)} "
        f"places that it does not know after {trainer.state.global_step} steps: {found[0]}. Expected are {least} and "
        f"{LEAD}. Let it train for longer, or make its rows easier."
    )


def train_judge(
    folder: Any,
    steps: int | None = None,
    conversational: bool = True,
    model: Any = None,
    peft_config: Any = None,
    dataset: Any = None,
    tokenizer: Any = None,
    most: int = 300,
    **kwargs: Any,
) -> Any:
    """
    A trainer of a tiny judge: on the eight rows for just so many `steps`, whatever it writes then; or, without `steps`,
    on [`judge_rows`] until it has learned them, so that every rationale it writes for their prompts ends with a score.

    Raises:
        AssertionError: it has not learned its rows in `most` steps.
    """
    from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer

    tokenizer = tokenizer or make_tokenizer("qwen")
    if dataset is None:
        rows = judge_rows(conversational) if steps is None else make_rows(8, conversational)
        dataset = Dataset.from_list(rows)
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-2}
    if steps is None:
        settings = {"per_device_train_batch_size": len(dataset), **LEARNING}
    args = RegressionAwareSFTConfig(
        str(folder),
        max_steps=most if steps is None else steps,
        lr_scheduler_type="constant_with_warmup",
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
        model=model or judge_model(tokenizer),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    if steps is None:
        trainer.add_callback(UntilLearned(trainer))
    trainer.train()
    if steps is None:
        trainer.pop_callback(UntilLearned)
        check_learned(trainer)
    return trainer
