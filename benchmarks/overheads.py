"""What stands around a training step: import, preparation of the data, collation; and confidence intervals.

    python benchmarks/overheads.py

Each beside what a TRL or SciPy user runs instead, in turns in one process (imports: a process each). A ratio is one of
medians, with the quartiles of the ratios within a round. Preparation is also compared within a run: with the same run
without the seconds of our own code, so that what else the machine does weighs on both alike.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from measuring import CLOCKS, costs, interleaved
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer, agreement

Ways = dict[str, Callable[[], Any]]
PHRASE = "the answer names most of what was asked for and is clear but it lacks one example of a case that fails"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = 1024  # a row of the collator


def make_tokenizer(vocab_size: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows the words the rows are made of, with unused tokens up to `vocab_size`."""
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    bytewise.train_from_iterator([PHRASE], trainer)
    state = json.loads(bytewise.to_str())
    vocab = state["model"]["vocab"]
    vocab.update({f"unused{number}": number for number in range(len(vocab), vocab_size)})
    bytewise = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="</s>")


def make_rows(count: int, words: int = 600) -> Dataset:
    """Rows of prompt and rationale, in equal parts, that end with a score."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(PHRASE.split(), words // 2)) for _ in range(2 * count)]
    return Dataset.from_dict(
        {
            "prompt": [f"{text}\n" for text in texts[:count]],
            "completion": [f"{text}. So the overall score is {draw.integers(1, 6)}" for text in texts[count:]],
        }
    )


def make_messages(count: int) -> Dataset:
    """The same rows as conversations."""
    roles = {"prompt": "user", "completion": "assistant"}
    return make_rows(count).map(
        lambda row: {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}
    )


class TimedTrainer(RegressionAwareSFTTrainer):
    """Keeps the processor time of the preparation of its dataset, without that of `SFTTrainer`'s."""

    own = 0.0

    def _whole_rows(self, *args: Any) -> Any:  # SFTTrainer's preparation
        started = time.process_time()
        rows = super()._whole_rows(*args)
        self.own -= time.process_time() - started
        return rows

    def _prepare_dataset(self, *args: Any) -> Any:
        started = time.process_time()
        rows = super()._prepare_dataset(*args)
        self.own += time.process_time() - started
        return rows


def within_runs(make: Callable[[], TimedTrainer], rounds: int) -> dict[str, list[float]]:
    """Processor time of each run, without that of our own code and with it."""
    seconds: dict[str, list[float]] = {"without our own code": [], "with it": []}
    for _ in range(rounds):
        started = time.process_time()
        own = make().own
        spent = time.process_time() - started
        seconds["without our own code"].append(spent - own)
        seconds["with it"].append(spent)
    return seconds


def trainers_of(rows: Dataset, folder: str, vocab_size: int = 0) -> Ways:
    """`SFTTrainer` and ours, made over and over: most of it is the preparation of the rows."""
    tokenizer = make_tokenizer(vocab_size)
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    shared: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}

    def make(trainer: type[SFTTrainer], args: SFTConfig) -> Callable[[], SFTTrainer]:
        def made() -> SFTTrainer:
            with contextlib.redirect_stderr(io.StringIO()):
                return trainer(model, args, train_dataset=rows, processing_class=tokenizer)

        return made

    return {
        "SFTTrainer": make(SFTTrainer, SFTConfig(folder, **shared)),
        "RegressionAwareSFTTrainer": make(TimedTrainer, RegressionAwareSFTConfig(folder, **shared)),
    }


def collators(folder: str) -> Ways:
    """100 batches of 8 rows each."""
    made = {name: make() for name, make in trainers_of(make_rows(8, TOKENS), folder).items()}
    examples = {name: list(trainer.train_dataset) for name, trainer in made.items()}

    def collate(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(100):
                made[name].data_collator(examples[name])

        return run

    return {name: collate(name) for name in made}


def intervals(n: int) -> Ways:
    """SciPy's bootstrap interval of one figure, of 10,000 resamples; our jackknife of all nine, and the worst cases."""
    draw = np.random.default_rng(0)
    gold = draw.integers(1, 6, n).astype(float)
    scores = gold + draw.standard_normal(n)

    def pearson(x: Any, y: Any, axis: int = -1) -> Any:
        x, y = x - x.mean(axis, keepdims=True), y - y.mean(axis, keepdims=True)
        return (x * y).sum(axis) / np.sqrt((x * x).sum(axis) * (y * y).sum(axis))

    def scipy() -> None:
        stats.bootstrap((scores, gold), pearson, paired=True, n_resamples=10_000, batch=500, method="percentile", rng=0)

    return {
        "scipy.stats.bootstrap, Pearson alone": scipy,
        "agreement, nine figures": lambda: agreement(scores, gold, values=range(1, 6)),
    }


def importing(*statements: str) -> Ways:
    """Each in a process of its own."""

    def run(statement: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True)

    return {statement: run(statement) for statement in statements}


def groups(folder: str, rounds: int, clock: str) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """What is compared, with the seconds of each round."""
    for vocab_size in (150_000, 260_000):
        for kind, rows in (("text", make_rows(2000)), ("messages", make_messages(2000))):
            name = f"a trainer with 2,000 rows of 600 words, {kind}, a vocabulary of {vocab_size:,}"
            ways = trainers_of(rows, folder, vocab_size)
            yield name, interleaved(ways, rounds, clock)
            yield f"{name}, within a run", within_runs(ways["RegressionAwareSFTTrainer"], rounds)
    yield f"100 batches of 8 rows of {TOKENS:,} words", interleaved(collators(folder), rounds, clock)
    for n in (500, 2000, 8000):
        yield f"intervals, {n:,} records", interleaved(intervals(n), rounds, clock)
    yield "import", interleaved(importing("import trl", "import tract_trainer"), rounds)
    trainers = "from trl import SFTTrainer", "from tract_trainer import RegressionAwareSFTTrainer"
    yield "import of the trainer", interleaved(importing(*trainers), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where others use the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    print("| | | s (median) | ratio of medians | quartiles |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for title, seconds in groups(folder, args.rounds, args.clock):
            for name, cost in costs(seconds).items():
                spread = f"{cost.low:.3f} {cost.high:.3f}" if cost.ratio != 1 else ""
                print(f"| {title} | {name} | {cost.seconds:.3f} | {cost.ratio:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
