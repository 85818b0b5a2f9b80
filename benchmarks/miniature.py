"""The paper's comparison in miniature: every way to train a judge, on tasks made in the process, over many seeds.

    python benchmarks/miniature.py                      # resumes: each judge's scores are kept in the folder
    python benchmarks/miniature.py --seeds 1 --small    # a look at it, in minutes; its figures mean little

The tasks are variants of that of `tract demo`, and `tract_trainer/demo_task.py` says how they are made: the annotated
rationale holds what the judge cannot see, as one written with the score in hand does; the judge writes fluent
rationales that are sometimes wrong; gold scores are ordinal and off by one now and then. The seed model knows facts but
not scoring, as a language model does before it learns to judge. "All known" takes the mechanism away: there the
annotated rationale holds nothing that the judge cannot see. "Few records" overdoes stage 1, which learns its rationales
by heart; with fewer epochs it does not.

For each seed there is one seed model, one training set and one set of held-out records, the same for every row of the
tables. `findings.py` turns the scores into the tables.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from findings import BEST, BY_HEART, COUNTS, write_findings
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, generate_cot_dataset
from tract_trainer.config import DEFAULT_PREFIX
from tract_trainer.demo_task import (
    NOISE,
    SOUND,
    UNKNOWN,
    WEAK,
    DemoSize,
    make_model,
    make_records,
    make_tokenizer,
    training_example,
)
from tract_trainer.engines import Sampling
from tract_trainer.engines.draw import SeededDraw
from tract_trainer.judgment import Judgment
from tract_trainer.methods import scores_by_method
from tract_trainer.records import close
from tract_trainer.seeds import derive_seed
from tract_trainer.shards import check_settings, writing

SMALL = DemoSize(facts=1500, records=200, epochs=4, held_out=300)
NEW_TOKENS, BATCH_SIZE = 32, 128
Rows = list[dict[str, Any]]

MAIN, KNOWN, FEW, SHORT = "half known", "all known", "few records", "few records, fewer epochs"
TASKS: dict[str, dict[str, Any]] = {MAIN: {}, KNOWN: {"odds": [1, 0]}, FEW: {}, SHORT: {}}
FEWER = 5
EPOCHS = {FEW: 5, SHORT: 2}  # as many times as of all records
EVERY, HIDDEN = tuple(TASKS), (MAIN, FEW, SHORT)


@dataclass(frozen=True)
class Arm:
    """
    One way to train a judge.

    Args:
        rows (`str`): what it is trained on: `"annotated"`, `"score"` (no rationale), the rationales that another arm
            wrote (its name), or `"half"` (annotated and those of stage 1, in equal parts).
        start (`str`): arm whose weights it starts from; `"seed"` for the seed model.
        num_cots (`int`):
            Rationales written for a held-out record of the main task, one for the others'; 0 where the score is asked
            for at once.
        tasks (`tuple`): that it is trained on.
        settings (`dict`): of `RegressionAwareSFTConfig`.
    """

    rows: str
    start: str = "seed"
    num_cots: int = 1
    tasks: tuple[str, ...] = (MAIN,)
    settings: dict[str, Any] = field(default_factory=dict)


LEARNING_RATE = 2e-3
CE: dict[str, Any] = {"score_loss_weight": 0.0}
SLOW = {"learning_rate": LEARNING_RATE / 10}
LAMBDAS = {0: (MAIN,), 0.1: (MAIN, SHORT), 0.2: (MAIN,), 2: (MAIN,), 5: (MAIN,), 10: (MAIN,)}
LOSSES = ("absolute_error", "huber", "crps", "soft_ce")
WASSERSTEIN = {"score_loss_type": "wasserstein", "renormalize_scores": True}
# The released code divides by the batch size twice and leaves the score out of the cross-entropy: 16 rows at once.
RELEASED = {"score_loss_weight": 1 / 16, "score_token_in_ce": False}
ARMS = {
    "CE, score only": Arm("score", num_cots=0, settings=CE),
    "RAFT, score only": Arm("score", num_cots=0, settings={"ce_loss_weight": 0.0}),
    "CE": Arm("annotated", num_cots=16, tasks=EVERY, settings=CE),
    "stage 1": Arm("annotated", num_cots=16, tasks=EVERY),
    "CE in both stages": Arm("CE", tasks=HIDDEN, settings=CE),
    "TRACT": Arm("stage 1", num_cots=16, tasks=EVERY),
    "stage 2 from stage 1": Arm("stage 1", start="stage 1", tasks=HIDDEN),
    "TRACT, a tenth of the learning rate": Arm("stage 1", settings=SLOW),
    "stage 2 from stage 1, a tenth of the learning rate": Arm("stage 1", start="stage 1", settings=SLOW),
    "half annotated": Arm("half"),
    **{
        f"TRACT, lambda {weight:g}": Arm("stage 1", tasks=tasks, settings={"score_loss_weight": weight})
        for weight, tasks in LAMBDAS.items()
    },
    "stage 1, score not in CE": Arm("annotated", settings={"score_token_in_ce": False}),
    "TRACT, score not in CE": Arm("stage 1", settings={"score_token_in_ce": False}),
    "stage 1, renormalised": Arm("annotated", settings={"renormalize_scores": True}),
    "TRACT, renormalised": Arm("stage 1", settings={"renormalize_scores": True}),
    **{f"TRACT, {loss}": Arm("stage 1", settings={"score_loss_type": loss}) for loss in LOSSES},
    "TRACT, wasserstein, renormalised": Arm("stage 1", settings=WASSERSTEIN),
    "stage 1, scaled as released": Arm("annotated", settings=RELEASED),
    "TRACT, scaled as released": Arm("stage 1, scaled as released", settings=RELEASED),
}


def run_seed(task: str, seed: int, folder: Path, size: DemoSize) -> None:
    """Trains and judges every arm of a task and seed that is not in `folder` yet, to which no other run may write."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if task in EPOCHS:
        size = replace(size, records=size.records // FEWER, epochs=size.epochs * EPOCHS[task])
    held_out = make_records(size.held_out, derive_seed(seed, "held out"), **TASKS[task])
    records = make_records(size.records, derive_seed(seed, "training"), **TASKS[task])
    examples = [training_example(record) for record in records]
    best = [best_possible(record) for record in held_out]
    gold = [record["score"] for record in held_out]
    with writing(folder, 0):
        save(folder / f"{BEST}.json", {"gold": gold, "own": {"1": {"RAIL": best}}, "annotated": best})
        if not (folder / "seed").is_dir():
            train_seed_model(folder / "seed", task, seed, size)
        for name, arm in ARMS.items():
            path = folder / f"{name}.json"
            if not path.is_file() and task in arm.tasks:
                judge = train(name, arm, folder, examples, seed, size)
                num_cots = arm.num_cots if task == MAIN else min(1, arm.num_cots)
                save(path, judged(judge, num_cots, held_out, seed))
                print(f"{task}, seed {seed}: {name}", flush=True)
        training_rows("stage 1", folder, examples, seed)  # does nothing anew, but write the report
        report = json.loads((folder / "rationales" / "stage 1" / "report.json").read_text())
        save(folder / f"{BY_HEART}.json", {"share": report["by_heart"] / report["rationales"]})


def best_possible(record: dict[str, Any]) -> float:
    """
    The expected gold score given the prompt of a record, for one who knows the task: no judge can have a smaller
    squared error. The answer's level is uniform on [0.2, 0.8], a source nobody knows is sound with its probability.
    """
    words = record["prompt"].split()
    sound, weak, unknown = (sum(word in names for word in words) for names in (SOUND, WEAK, UNKNOWN))
    level = np.linspace(0.2, 0.8, 601)
    weights = level**sound * (1 - level) ** weak
    more = np.arange(unknown + 1)
    chances = stats.binom.pmf(more[:, None], unknown, level) @ weights / weights.sum()  # (unknown + 1,)
    scores = [np.clip(1 + sound + more + off, 1, 5) for off in (-1, 0, 1)]
    return float(chances @ (NOISE / 2 * scores[0] + (1 - NOISE) * scores[1] + NOISE / 2 * scores[2]))


def train_seed_model(folder: Path, task: str, seed: int, size: DemoSize) -> None:
    """A model that knows the sources' reputations, from rationales without scores."""
    facts = make_records(size.facts, derive_seed(seed, "facts"), **TASKS[task])
    rows = Dataset.from_list([{"prompt": record["prompt"], "completion": record["rationale"]} for record in facts])
    set_seed(seed)
    tokenizer = make_tokenizer()
    part = folder.with_suffix(".part")
    args = SFTConfig(str(part), **arguments(size.facts_epochs, 32, seed))
    finish(SFTTrainer(make_model(tokenizer), args, train_dataset=rows, processing_class=tokenizer), folder)


def train(name: str, arm: Arm, folder: Path, examples: Rows, seed: int, size: DemoSize) -> Judge:
    """The judge of an arm, loaded if it was trained before."""
    saved = folder / "judges" / name
    if not saved.is_dir():
        start = folder / "seed" if arm.start == "seed" else folder / "judges" / arm.start
        model, tokenizer = AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(start)
        part = saved.with_name(f"{name}.part")
        args = RegressionAwareSFTConfig(str(part), **(arguments(size.epochs, 16, seed) | arm.settings))
        rows = Dataset.from_list(training_rows(arm.rows, folder, examples, seed))
        finish(RegressionAwareSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer), saved)
    return Judge.from_pretrained(saved, batch_size=BATCH_SIZE)


def save(path: Path, run: dict[str, Any]) -> None:
    path.with_suffix(".part").write_text(json.dumps(run))
    path.with_suffix(".part").replace(path)


def finish(trainer: SFTTrainer, folder: Path) -> None:
    """Trains, and saves where nothing half saved can stand."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    Path(str(trainer.args.output_dir)).replace(folder)


def training_rows(kind: str, folder: Path, examples: Rows, seed: int) -> Rows:
    """The rows of an arm: prompts and gold scores are the same for all."""
    if kind == "annotated":
        return examples
    if kind == "score":
        return [{**row, "completion": close("", DEFAULT_PREFIX, f"{row['score']:.0f}")} for row in examples]
    if kind == "half":
        own = training_rows("stage 1", folder, examples, seed)
        return [mine if i % 2 else theirs for i, (mine, theirs) in enumerate(zip(own, examples, strict=True))]
    judge = Judge.from_pretrained(folder / "judges" / kind, batch_size=BATCH_SIZE)
    return generate_cot_dataset(  # type: ignore[no-any-return]
        judge,
        Dataset.from_list(examples),
        seed=seed,
        output_dir=folder / "rationales" / kind,
        max_new_tokens=NEW_TOKENS,
        unfinished="force",
        progress=False,
    ).to_list()


def judged(judge: Judge, num_cots: int, held_out: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Gold scores and every method's, by the number of own rationales; and RAIL's after the annotated rationales."""
    records = [{"prompt": record["prompt"]} for record in held_out]
    own: Sequence[Judgment] = (
        judge.score(records, num_cots, seed=seed, max_new_tokens=NEW_TOKENS, progress=False)
        if num_cots
        else with_drawn_labels(judge.rescore(records, [""] * len(records)), judge, seed)
    )
    annotated = judge.rescore(records, [record["rationale"] for record in held_out])
    return {
        "gold": [record["score"] for record in held_out],
        "own": {str(count): methods(judge, own, count) for count in COUNTS if count <= max(1, num_cots)},
        "annotated": methods(judge, annotated, 1)["RAIL"],
    }


def with_drawn_labels(judgments: Sequence[Judgment], judge: Judge, seed: int) -> list[Judgment]:
    """`judgments`, of which each has one reading of a score, with labels drawn as those after a rationale are."""
    log_probs = torch.tensor([judgment.rationales[0].log_probs for judgment in judgments])  # (n, K)
    seeds = [derive_seed(seed, "label", number) for number in range(len(judgments))]
    draw = SeededDraw(seeds, max_new_tokens=1, width=1, temperature=Sampling.temperature, top_p=Sampling.top_p)
    drawn = draw(torch.zeros(len(judgments), 1), log_probs).argmax(-1)  # (n,)
    labels = [judge.config.score_labels[label] for label in drawn.tolist()]
    read = [judgment.rationales[0]._replace(label=label) for judgment, label in zip(judgments, labels, strict=True)]
    return [replace(judgment, rationales=(one,)) for judgment, one in zip(judgments, read, strict=True)]


def methods(judge: Judge, judgments: Sequence[Judgment], count: int) -> dict[str, list[float | None]]:
    """Scores by method, `(n,)` each, from the first `count` rationales; None where none of them came to one."""
    rows = [
        {
            "rationales": [
                {"label": r.label, "probs": None if r.log_probs is None else list(np.exp(r.log_probs))}
                for r in judgment.rationales[:count]
            ]
        }
        for judgment in judgments
    ]
    scores = scores_by_method(rows, judge.config.scale, judge.config.renormalize_scores)
    return {
        name: [None if np.isnan(score) else round(float(score), 6) for score in row] for name, row in scores.items()
    }


def arguments(epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def check_work(folder: Path, size: DemoSize) -> None:
    """Refuses to go on with work in `folder` that was begun with another size, other tasks or other arms of a name."""
    common = {
        "tasks": TASKS,
        "epochs of tasks": EPOCHS,
        "records of tasks": FEWER,
        "noise": NOISE,
        "new tokens": NEW_TOKENS,
        "training": arguments(0, 0, 0),
        "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
    }
    check_settings(folder / "settings.json", common | asdict(size), *(folder / task for task in TASKS))
    for name, arm in ARMS.items():
        made_with = {key: value for key, value in asdict(arm).items() if key != "tasks"}
        check_settings(folder / "arms" / f"{name}.json", made_with, *folder.glob(f"*/seed-*/{name}.json"))


def work(folder: Path, seeds: int, size: DemoSize) -> Iterator[tuple[str, int, Path, DemoSize]]:
    return ((task, seed, folder / task / f"seed-{seed:02d}", size) for task in TASKS for seed in range(seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="processes; each takes a seed of a task at a time")
    parser.add_argument("--small", action="store_true", help="few records and epochs: the figures mean little")
    parser.add_argument("--output_dir", type=Path, help="runs/miniature, or runs/miniature-small, unless given")
    args = parser.parse_args()
    size, folder = (SMALL, "miniature-small") if args.small else (DemoSize(), "miniature")
    folder = args.output_dir or Path("runs", folder)
    check_work(folder, size)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run_seed, *zip(*work(folder, args.seeds, size), strict=True)))
    print(write_findings(folder, [BEST, *ARMS], list(TASKS), args.seeds))


if __name__ == "__main__":
    main()
