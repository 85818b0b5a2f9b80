"""Reinforcement learning on TRACT's judges, in the miniature: what it adds to as many further steps of stage 2.

    python benchmarks/reinforcement.py                 # ten seeds; resumes: each judge's scores are kept in the folder
    python benchmarks/reinforcement.py --tune 1e-4 1e-3    # learning rates, on a seed that is in no table

The task, the seed models and the judges that it starts from are those of `miniature.py`. Every arm starts from TRACT's
judge of its seed and takes as many optimizer steps, on the same prompts.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from findings import mean, table
from miniature import (
    ARMS,
    BATCH_SIZE,
    MAIN,
    NEW_TOKENS,
    arguments,
    finish,
    judged,
    save,
    train,
    train_seed_model,
    training_rows,
)
from transformers.utils import logging as transformers_logging

from tract_trainer import (
    Judge,
    RegressionAwareGRPOConfig,
    RegressionAwareGRPOTrainer,
    RegressionAwareSFTConfig,
    RegressionAwareSFTTrainer,
)
from tract_trainer.cli.demo_task import DemoSize, make_records, training_example
from tract_trainer.data.hashing import derive_seed
from tract_trainer.data.store import writing

STEPS, PROMPTS, GROUP, RATE = 60, 16, 8, 5e-4
TUNED = 100  # the seed of the choice of a learning rate
START = "TRACT"
REWARDS: dict[str, dict[str, Any]] = {
    "beta 0": {"score_loss_weight": 0.0},
    "beta .01": {"score_loss_weight": 0.01},
    "beta 1": {},
    "beta 1, crps": {"score_loss_type": "crps"},
    "beta 0, crps": {"score_loss_weight": 0.0, "score_loss_type": "crps"},
}
FURTHER = "further steps of stage 2"


def run_seed(folder: Path, seed: int, rates: tuple[float, ...]) -> None:
    """Trains and judges what is not in `folder` yet."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    size = DemoSize()
    held_out = make_records(size.held_out, derive_seed(seed, "held out"))
    examples = [training_example(record) for record in make_records(size.records, derive_seed(seed, "training"))]
    with writing(folder, 0):
        if not (folder / "seed").is_dir():
            train_seed_model(folder / "seed", MAIN, seed, size)
        for name in ("stage 1", START):
            judge = train(name, ARMS[name], folder, examples, seed, size)
        for arm in (START, FURTHER, *REWARDS):
            for rate in rates:
                path = folder / f"{arm}{'' if rate == RATE else f', {rate:g}'}.json"
                if not path.is_file():
                    judge = further(arm, folder, examples, seed, rate)
                    save(path, judged(judge, 1, held_out, seed))
                    print(f"seed {seed}: {path.stem}", flush=True)


def further(arm: str, folder: Path, examples: list[dict[str, Any]], seed: int, rate: float) -> Judge:
    """TRACT's judge, trained on as `arm` says."""
    start, saved = folder / "judges" / START, folder / "judges" / f"{arm}, {rate:g}"
    if arm == START:
        return Judge.from_pretrained(start, batch_size=BATCH_SIZE)
    if not saved.is_dir():
        common = {**arguments(1, PROMPTS, seed), "max_steps": STEPS, "learning_rate": rate}
        part = str(saved.with_name(f"{saved.name}.part"))
        if arm == FURTHER:
            rows = Dataset.from_list(training_rows("stage 1", folder, examples, seed))
            sft = RegressionAwareSFTConfig(part, **common)
            finish(RegressionAwareSFTTrainer(str(start), sft, train_dataset=rows), saved)
        else:
            common |= {"per_device_train_batch_size": PROMPTS * GROUP, "num_generations": GROUP, "top_p": 0.9}
            grpo = RegressionAwareGRPOConfig(part, max_completion_length=NEW_TOKENS, **common, **REWARDS[arm])
            rows = Dataset.from_list([{"prompt": row["prompt"], "score": row["score"]} for row in examples])
            finish(RegressionAwareGRPOTrainer(str(start), args=grpo, train_dataset=rows), saved)
    return Judge.from_pretrained(saved, batch_size=BATCH_SIZE)


def figures(path: Path) -> list[float]:
    """Pearson's r of the expected score and of the decoded label, the expected score's RMSE, and the share without."""
    run = json.loads(path.read_text())
    gold, found = np.array(run["gold"]), run["own"]["1"]
    rail, label = (np.array([np.nan if s is None else s for s in found[name]], float) for name in ("RAIL", "decoded"))
    scored = ~np.isnan(rail)
    r, decoded = (np.corrcoef(gold[scored], scores[scored])[0, 1] for scores in (rail, label))
    return [r, decoded, np.sqrt(np.mean((rail - gold)[scored] ** 2)), 100 * (1 - scored.mean())]


def findings(folder: Path, seeds: int) -> str:
    found = {
        arm: np.array([figures(folder / f"seed-{seed:02d}" / f"{arm}.json") for seed in range(seeds)])
        for arm in (START, FURTHER, *REWARDS)
    }
    heads = ["judge", "r, expected", "r, decoded", "RMSE", "unscored, %", f"r minus {FURTHER}", "r minus beta 0"]
    rows = [
        [
            arm,
            *(mean(values[:, i]) for i in range(4)),
            mean(values[:, 0] - found[FURTHER][:, 0]) if arm != FURTHER else "",
            mean(values[:, 0] - found["beta 0"][:, 0]) if arm != "beta 0" else "",
        ]
        for arm, values in found.items()
    ]
    return table(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="processes; each takes a seed at a time")
    parser.add_argument("--tune", type=float, nargs="+", metavar="RATE", help="learning rates to try")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/reinforcement"))
    args = parser.parse_args()
    if args.tune:
        folder = args.output_dir / f"seed-{TUNED}"
        run_seed(folder, TUNED, tuple(args.tune))
        for path in sorted(folder.glob("*.json")):
            print(f"{path.stem}: " + ", ".join(f"{value:.3f}" for value in figures(path)))
        return
    folders = [args.output_dir / f"seed-{seed:02d}" for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run_seed, folders, range(args.seeds), [(RATE,)] * args.seeds))
    print(findings(args.output_dir, args.seeds))


if __name__ == "__main__":
    main()
