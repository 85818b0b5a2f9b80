# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""`tract run` on real judging records, with a model small enough for a CPU.

    python examples/mt_bench.py mt_bench_eval.json

The file is `mt_bench_eval.json` of the Prometheus benchmarks: 320 records with three GPT-4 scores and rationales each.
Nothing is downloaded: the script trains a tokenizer on the file, makes a seed model with random weights, and calls
`tract run` with `examples/mt_bench.yaml`. Such a model learns the format, not judging. Expect poor figures.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tract_trainer.cli.main import main as tract
from tract_trainer.data.reading import read_rows


def make_seed_model(path: str, folder: Path) -> None:
    """A byte-level BPE tokenizer trained on the file, and a two-layer Llama with random weights, saved to `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [text for record in read_rows(path) for text in (record["instruction"], *record["gpt4_feedback"])]
    tokenizer.train_from_iterator([*texts, *(f"So the overall score is {i}" for i in "12345")], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="mt_bench_eval.json")
    parser.add_argument("--output_dir", default="runs/mt_bench")
    args, overrides = parser.parse_known_args()
    seed_model = Path(f"{args.output_dir}-seed")  # beside the run: its folder holds nothing else
    if not (seed_model / "config.json").is_file():
        make_seed_model(args.path, seed_model)
    config = Path(__file__).with_suffix(".yaml")
    command = ["run", "--config", str(config), "--data", args.path, "--model_name_or_path", str(seed_model)]
    raise SystemExit(tract([*command, "--output_dir", args.output_dir, *overrides]))


if __name__ == "__main__":
    main()
