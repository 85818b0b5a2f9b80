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
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from contrasts import BEST
from datasets import Dataset
from findings import BY_HEART, COUNTS, write_findings
from measuring import digest_of_code
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, ScoreScale, generate_cot_dataset
from tract_trainer.cli.demo_task import (
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
from tract_trainer.data.hashing import derive_seed
from tract_trainer.data.records import close
from tract_trainer.data.settings import check_settings
from tract_trainer.data.store import locked
from tract_trainer.engines.base import Sampling
from tract_trainer.engines.transformers import SeededDraw
from tract_trainer.evaluation.methods import scores_by_method
from tract_trainer.judging.judgment import Judgment
from tract_trainer.training.config import DEFAULT_PREFIX

SMALL = DemoSize(facts=1500, records=200, epochs=4, held_out=300)
NEW_TOKENS, BATCH_SIZE = 32, 128
SCALE = ScoreScale.integers(1, 5)
Rows = list[dict[str, Any]]
Floats = NDArray[np.float64]

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
LAMBDAS = {0: (MAIN, SHORT), 0.1: (MAIN, SHORT), 0.2: (MAIN,), 2: (MAIN,), 5: (MAIN,), 10: (MAIN,)}
LOSSES = ("absolute_error", "huber", "crps", "soft_ce")
WASSERSTEIN = {"score_loss_type": "wasserstein", "renormalize_scores": True}
# The released code divides by the rows of a micro-batch twice, 8 in its configuration for Mistral, and leaves the score
# out of the cross-entropy.
RELEASED = {"score_loss_weight": 1 / 8, "score_token_in_ce": False}
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
    with locked(folder, 0):
        save(folder / f"{BEST}.json", judged_best(held_out, seed))
        if not (folder / "seed").is_dir():
            train_seed_model(folder / "seed", task, seed, size)
        for name, arm in ARMS.items():
            path = folder / f"{name}.json"
            if not path.is_file() and task in arm.tasks:
                judge = train(name, arm, folder, examples, seed, size)
                num_cots = arm.num_cots if task == MAIN else min(1, arm.num_cots)
                save(path, judged(judge, num_cots, held_out, seed))
                print(f"{task}, seed {seed}: {name}", flush=True)
        shares = {}
        for writer in {arm.rows for arm in ARMS.values() if task in arm.tasks} & {"stage 1", "CE"}:
            training_rows(writer, folder, examples, seed)  # does nothing anew, but write the report
            report = json.loads((folder / "rationales" / writer / "report.json").read_text())
            shares[writer] = report["verbatim"] / report["rationales"]
        save(folder / f"{BY_HEART}.json", shares)


def chances_of_scores(record: dict[str, Any], rationale_known: bool = False) -> Floats:
    """
    Probabilities of the gold scores 1 to 5, `(5,)`, given the prompt of a record, for one who knows the task: no judge
    can have an expected score of smaller squared error. The answer's level is uniform on [0.2, 0.8], a source nobody
    knows is sound with its probability. The annotated rationale, if known, says of each claim whether it is sound.
    """
    words = record["prompt"].split()
    sound, weak, unknown = (sum(word in names for word in words) for names in (SOUND, WEAK, UNKNOWN))
    level = np.linspace(0.2, 0.8, 601)
    weights = level**sound * (1 - level) ** weak
    more = np.arange(unknown + 1)
    chances = stats.binom.pmf(more[:, None], unknown, level) @ weights / weights.sum()  # (unknown + 1,)
    if rationale_known:
        chances = (sound + more == record["rationale"].split().count("sound")).astype(float)
    scores = np.zeros(5)
    for off, share in ((-1, NOISE / 2), (0, 1 - NOISE), (1, NOISE / 2)):
        np.add.at(scores, np.clip(sound + more + off, 0, 4), share * chances)
    return scores


def judged_best(held_out: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """What [`judged`] returns, of a judge whose distribution is the true one."""
    known, told = (np.array([chances_of_scores(record, side) for record in held_out]) for side in (False, True))
    labels = drawn_labels(torch.from_numpy(np.log(np.maximum(known, 1e-300))), SCALE, seed)
    rows = [[{"label": label, "probs": probs}] for label, probs in zip(labels, known.tolist(), strict=True)]
    return {
        "gold": [record["score"] for record in held_out],
        "own": {"1": by_method(rows, SCALE)},
        "annotated": (told @ SCALE.values).round(6).tolist(),
    }


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
    labels = drawn_labels(log_probs, judge.config.scale, seed)
    read = [judgment.rationales[0]._replace(label=label) for judgment, label in zip(judgments, labels, strict=True)]
    return [replace(judgment, rationales=(one,)) for judgment, one in zip(judgments, read, strict=True)]


def drawn_labels(log_probs: torch.Tensor, scale: ScoreScale, seed: int) -> list[str]:
    """Labels drawn from distributions over the scale, `(n, K)`, at the temperature and nucleus of a rationale."""
    seeds = [derive_seed(seed, "label", number) for number in range(len(log_probs))]
    draw = SeededDraw(seeds, max_new_tokens=1, width=1, temperature=Sampling.temperature, top_p=Sampling.top_p)
    drawn = draw(torch.zeros(len(log_probs), 1), log_probs).argmax(-1)  # (n,)
    return [scale.labels[label] for label in drawn.tolist()]


def methods(judge: Judge, judgments: Sequence[Judgment], count: int) -> dict[str, list[float | None]]:
    """Scores by method, `(n,)` each, from the first `count` rationales; None where none of them came to one."""
    rows = [
        [
            {"label": r.label, "probs": None if r.log_probs is None else list(np.exp(r.log_probs))}
            for r in judgment.rationales[:count]
        ]
        for judgment in judgments
    ]
    return by_method(rows, judge.config.scale, judge.config.renormalize_scores)


def by_method(
    rationales: Sequence[Rows], scale: ScoreScale, renormalized: bool = False
) -> dict[str, list[float | None]]:
    scores = scores_by_method([{"rationales": row} for row in rationales], scale, renormalized)
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


def lineage(name: str) -> dict[str, Any]:
    """The settings of an arm, and of those whose weights or rationales it is trained with, by name."""
    arm = ARMS[name]
    before = {"half": "stage 1"}.get(arm.rows, arm.rows), arm.start
    settings = {key: value for key, value in asdict(arm).items() if key != "tasks"}
    return {name: settings} | {key: row for other in before if other in ARMS for key, row in lineage(other).items()}


def check_work(folder: Path, size: DemoSize) -> None:
    """
    Refuses to go on with work in `folder` that was begun with another size, other tasks, another version of the
    package, or other settings of an arm or of what it is trained with.
    """
    common = {
        "tasks": TASKS,
        "epochs of tasks": EPOCHS,
        "records of tasks": FEWER,
        "noise": NOISE,
        "new tokens": NEW_TOKENS,
        "training": arguments(0, 0, 0),
        "code": digest_of_code(),
    }
    check_settings(folder / "settings.json", common | asdict(size), *(folder / task for task in TASKS))
    for name in ARMS:
        made = [f"{name}.json", f"judges/{name}", f"rationales/{name}"]
        found = [path for pattern in made for path in folder.glob(f"*/seed-*/{pattern}")]
        path = folder / "arms" / f"{name}.json"
        if not found:
            path.unlink(missing_ok=True)  # of work that was deleted, or never begun
        check_settings(path, lineage(name), *found)


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
