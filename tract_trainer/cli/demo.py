"""The demo: trains three judges on a made-up task and compares them. No download, no GPU, a few minutes.

The task ([`tract_trainer.cli.demo_task`]) is small enough for a model of 140,000 parameters and still shows what the
paper (Chiang, Lee and Lukasik, ACL 2025) is about: an annotated rationale contains more than a judge can know.

* Cross-entropy learns to count the verdicts of an annotated rationale. What it then writes itself about unknown sources
  is a guess, and counting guesses adds noise.
* Stage 1 (eq. 4) counts as well: where the rationale determines the score, the squared error has nothing to correct.
* TRACT learns from rationales that stage 1 wrote itself, closed with the gold score. The guesses in them are not
  related to the score, the known sources are.

All start from one seed model that knows the reputations and not the scoring, as a language model knows the world before
it learns to judge; from random weights, stage 2 would have to learn the facts from worse text. Nothing is scripted:
every figure printed is computed from the judges' scores.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from tract_trainer.cli.demo_task import DemoSize, make_model, make_records, make_tokenizer, training_example
from tract_trainer.data.hashing import derive_seed
from tract_trainer.data.store import MARK, refuse_foreign, save_results
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.pictures import predictions, save_png
from tract_trainer.evaluation.tables import results_table
from tract_trainer.judging.judge import Judge
from tract_trainer.rationales.generation import generate_cot_dataset
from tract_trainer.training.config import RegressionAwareSFTConfig
from tract_trainer.training.trainer import RegressionAwareSFTTrainer

JUDGES = {"cross_entropy": "Cross-entropy", "stage1": "Stage 1", "tract": "TRACT"}
LEARNING_RATE = 2e-3
BATCH_SIZE = 128  # rationales generated together
NEW_TOKENS = 32  # a rationale with its score is 23


def run_demo(output_dir: str | Path = "demo", seed: int = 42, size: DemoSize | None = None) -> dict[str, Any]:
    """
    Trains a judge with cross-entropy, one with stage 1 and one with TRACT, and compares them on held-out records.

    The folder gets the seed model, the three judges, the self-generated rationales, a result of each judge as of
    `tract evaluate`, `predictions.png` and `record.json`. Files of an earlier demo are replaced. Returns for each row
    of the table what [`~tract_trainer.metrics.agreement`] returned.
    """
    start, size, folder, console = time.perf_counter(), size or DemoSize(), Path(output_dir), Console()
    settings = folder / "settings.json"
    refuse_foreign([], folders=[folder], signs=[settings])
    folder.mkdir(parents=True, exist_ok=True)
    save_results(settings, {MARK: version("tract-trainer"), "seed": seed, "size": dataclasses.asdict(size)})
    _train(folder, size, seed, console)
    held_out = make_records(size.held_out, derive_seed(seed, "held out"))
    (folder / "record.json").write_text(json.dumps({"prompt": held_out[0]["prompt"]}) + "\n")
    with _step(console, 6, f"Each judge scores {size.held_out:,} held-out records"):
        judged = _judge(folder, held_out, seed)
    shown = [("Cross-entropy", "decoded"), ("Cross-entropy", "RAIL"), ("TRACT", "RAIL")]
    save_png(predictions([(judged[row], method) for row, method in shown]), folder / "predictions.png")
    rows = {f"{row}, {m}": judged[row]["methods"][m] for row in judged for m in ("decoded", "RAIL")}
    console.print(results_table(rows, "Agreement with the gold scores, 95 % intervals"))
    _say(console, f"\n{time.perf_counter() - start:.0f} s in all. Models and pictures are in {folder}.")
    _say(console, "Browse the judgments, compare two judges, or judge a held-out record with the new judge:\n")
    program = sys.argv[0] if Path(sys.argv[0]).name == "tract" else "tract"
    _say(console, f"{program} report {folder}")
    _say(console, f"{program} compare {folder / 'tract.json'} {folder / 'cross_entropy.json'}")
    _say(console, f"{program} judge --model {folder / 'tract'} --record {folder / 'record.json'}")
    return rows


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _train(folder: Path, size: DemoSize, seed: int, console: Console) -> None:
    """Saves the seed model, the three judges and the rationales."""
    records = make_records(size.records, derive_seed(seed, "training"))
    examples = Dataset.from_list([training_example(record) for record in records])
    with _step(console, 1, f"Seed model: the facts, from {size.facts:,} rationales without scores"):
        _train_seed(folder, size, seed)
    with _step(console, 2, f"Cross-entropy: {size.records:,} annotated records"):
        _train_judge(folder / "cross_entropy", examples, size, seed, score_loss_weight=0.0)
    with _step(console, 3, "Stage 1: the same records, cross-entropy and squared error"):
        _train_judge(folder / "stage1", examples, size, seed)
    with _step(console, 4, "Self-written rationales: one for each record, by stage 1"):
        options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "batch_size": BATCH_SIZE, "overwrite": True}
        options |= {"seed": seed, "output_dir": folder / "cots", "progress": False}
        cots = generate_cot_dataset(folder / "stage1", examples, **options)
    with _step(console, 5, "TRACT (stage 2): from the seed model again, on the self-written rationales"):
        _train_judge(folder / "tract", cots, size, seed)


def _train_seed(folder: Path, size: DemoSize, seed: int) -> None:
    facts = make_records(size.facts, derive_seed(seed, "facts"))
    rows = Dataset.from_list([{"prompt": record["prompt"], "completion": record["rationale"]} for record in facts])
    set_seed(seed)
    tokenizer = make_tokenizer()
    args = SFTConfig(str(folder / "seed"), **_arguments(size.facts_epochs, 32, seed))
    _fit(SFTTrainer(make_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer))


def _train_judge(folder: Path, rows: Dataset, size: DemoSize, seed: int, **settings: Any) -> None:
    # Every judge is read from the seed's files: the forward of a model that TRL has trained stays bound to that model.
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "seed")
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "seed")
    args = RegressionAwareSFTConfig(str(folder), **_arguments(size.epochs, 16, seed), **settings)
    _fit(RegressionAwareSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer))


def _fit(trainer: SFTTrainer) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    trainer.save_state()  # trainer_state.json: the curves of tract report


def _arguments(epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "num_train_epochs": epochs,
        "learning_rate": LEARNING_RATE,
        "per_device_train_batch_size": batch_size,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _judge(folder: Path, records: Sequence[dict[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    """The result of each judge on the records, as of `tract evaluate`."""
    return {
        row: evaluate(
            Judge.from_pretrained(folder / name, batch_size=BATCH_SIZE),
            records,
            "held-out records",
            folder / f"{name}.json",
            judge_name=row,
            seed=seed,
            overwrite=True,
            max_new_tokens=NEW_TOKENS,
            progress=False,
        )
        for name, row in JUDGES.items()
    }


@contextmanager
def _step(console: Console, number: int, text: str) -> Iterator[None]:
    console.print(f"\\[{number}/6] {text}", highlight=False)
    with console.status("working"):
        yield
