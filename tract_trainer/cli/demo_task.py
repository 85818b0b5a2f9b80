"""The demo's task: records, a tokenizer, and a model of random weights, all made from a seed.

An answer makes four claims, each cites a source. The annotated rationale is a verdict on each, and the score is one
plus the number of sound claims, with 15 % of the scores off by one, as human scores are. Half of the citations are of
sources with a reputation that can be learned. Of the other sources nothing can be known: how sound they are depends on
the answer, and only the annotator has looked them up.

A verdict has a constant distance from its source, which a small model learns in seconds; tasks that need copying
or arithmetic take it many minutes.
"""

import random
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tract_trainer.data.records import close
from tract_trainer.training.config import DEFAULT_PREFIX

SOUND = ("Adler", "Baker", "Clark", "Dixon", "Evans", "Foster", "Grant", "Hayes", "Irwin", "Jones")
WEAK = ("Keane", "Lopez", "Marsh", "Nolan", "Olsen", "Perry", "Quinn", "Reyes", "Stone", "Tyler")
UNKNOWN = ("Abbot", "Brown", "Craig", "Doyle", "Ellis", "Flynn", "Gomez", "Hogan", "Innes", "Kelly", "Moore", "Price")
ORDER = ("one", "two", "three", "four")
NOISE = 0.15


@dataclass(frozen=True)
class DemoSize:
    """How much the demo makes and trains on."""

    facts: int = 6000  # rationales without scores that the seed model learns from
    facts_epochs: int = 3
    records: int = 1000  # annotated, for the two stages
    epochs: int = 8  # of each stage
    held_out: int = 1500  # records that the judges are compared on


def make_records(count: int, seed: int, odds: tuple[int, int] = (1, 1), noise: float = NOISE) -> list[dict[str, Any]]:
    """
    Draws `count` records with `prompt`, `rationale` and `score` (1 to 5).

    `odds` are those of a cited source with a reputation, against one of which nothing can be known; `noise` is the
    share of the scores that are off by one.

    Example:
    ```python
    >>> make_records(1, seed=0)[0]["rationale"]
    'one looks weak , two looks sound , three looks sound , four looks sound .'
    ```
    """
    rng = random.Random(seed)
    return [_record(rng, odds, noise) for _ in range(count)]


def _record(rng: random.Random, odds: tuple[int, int], noise: float) -> dict[str, Any]:
    level = rng.uniform(0.2, 0.8)  # how sound this answer is: a known source says a little about the unknown ones
    sound = [rng.random() < level for _ in ORDER]
    pools = [(SOUND if good else WEAK,) * odds[0] + (UNKNOWN,) * odds[1] for good in sound]
    sources = [rng.choice(rng.choice(pool)) for pool in pools]
    cited = " , ".join(f"{number} cites {source}" for number, source in zip(ORDER, sources, strict=True))
    verdicts = [f"{number} looks {'sound' if good else 'weak'}" for number, good in zip(ORDER, sound, strict=True)]
    off = rng.choice((-1, 1)) if rng.random() < noise else 0
    return {
        "prompt": f"Of four claims {cited} . How sound is the answer ?\n",
        "rationale": " , ".join(verdicts) + " .",
        "score": float(min(5, max(1, 1 + sum(sound) + off))),
    }


def training_example(record: dict[str, Any]) -> dict[str, Any]:
    """The record as `prompt`, `completion` (its rationale, closed with its score) and `score`."""
    completion = close(record["rationale"], DEFAULT_PREFIX, f"{record['score']:.0f}")
    return {"prompt": record["prompt"], "completion": completion, "score": record["score"]}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the task: one word a token."""
    rows = map(training_example, make_records(500, seed=0))
    words = {word for row in rows for word in f"{row['prompt']} {row['completion']}".split()}
    tokens = ["<unk>", "<pad>", "<eos>", *sorted({*words, *SOUND, *WEAK, *UNKNOWN, *"12345"})]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers, 140,000 random weights, on the global random numbers."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
