"""A harder check on real text: TRACT and trivial predictors on the judging records of MT-Bench, over five folds.

    python benchmarks/real_text.py mt_bench_eval.json    # resumes: each fold's predictions are kept in the folder

Done with several seeds, each with folds and judges of its own.

The file is that of the Prometheus benchmarks: 320 records, four responses to each of 80 instructions. Gold is the mean
of three GPT-4 scores, the annotated rationale the first of three. All records of an instruction are in one fold, and
whatever a fold needs (tokenizer, seed model, judges, trivial predictors) is learned from the other folds. The seed
model is a language model of the prompts with their rationales, without scores.

Judges are asked briefly: the rubric's question, the last turn of the dialogue, the response. A model this small could
not use the descriptions of the five scores, the reference answer and the earlier turns, and would read them for hours.
No setting was chosen by held-out figures. Expect poor ones. `n` records, `G` instructions.
"""

import argparse
import json
import multiprocessing
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets import Dataset
from measuring import digest_of_code
from miniature import arguments, finish
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, ScoreScale, generate_cot_dataset
from tract_trainer.data.benchmarks import load_benchmark
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import prompt_of, training_examples
from tract_trainer.data.settings import check_settings
from tract_trainer.data.templates import ControlTokens
from tract_trainer.hub.results import figure_with_interval
from tract_trainer.metrics import PLAIN, interval, standard_errors
from tract_trainer.training.config import DEFAULT_PREFIX

Floats = NDArray[np.float64]
Records = list[dict[str, Any]]

SCALE = ScoreScale.integers(1, 5)
FIELDS = r"(?s)to evaluate:\n(.*)\n\n###Response to evaluate:\n(.*)\n\n###Reference.*###Score Rubrics:\n(.*?)\nScore 1:"
TEMPLATE = "### Question\n{{ rubric }}\n### Request\n{{ instruction }}\n### Response\n{{ response }}\n### Judgment\n"
CONSTANT, TRACT = "constant", "TRACT, RAIL"
FIGURES = {"pearson": "Pearson", "spearman": "Spearman", "rmse": "RMSE"}
WITHIN = ("pearson", "spearman")
Rows = dict[str, dict[str, tuple[float, list[float]]]]
TRIVIAL = (CONSTANT, "length of response", "words of response", "words of question, request and response")
ROWS = (
    *TRIVIAL,
    "cross-entropy, decoded",
    "cross-entropy, RAIL",
    "cross-entropy, RAIL renormalised",
    "stage 1, RAIL",
    "stage 1, RAIL renormalised",
    TRACT,
    "TRACT, RAIL renormalised",
)
ask = partial(prompt_of, scale=SCALE, prefix=DEFAULT_PREFIX, template=TEMPLATE)


@dataclass(frozen=True)
class Size:
    """How large the models are, how much they read and write; lengths in tokens."""

    vocabulary: int = 4000
    layers: int = 2
    width: int = 128
    epochs: float = 2
    max_length: int = 896  # of a training row; longer ones are left out
    new_tokens: int = 160


SMALL = Size(vocabulary=400, layers=1, width=32, epochs=0.1, new_tokens=16)


def read(path: Path) -> Records:
    """Records with `instruction`, `response`, `rubric`, `rationale`, `score` and the instruction's `group`."""
    records = []
    for row in load_benchmark("mt_bench", path):
        ((dialogue, response, question),) = re.findall(FIELDS, row["instruction"])
        last_turn = dialogue.rpartition("User:")[2].strip().removesuffix("Assistant:").strip()
        asked = {"instruction": last_turn, "response": response, "rubric": question.strip("[] \n")}
        records.append({**asked, "rationale": row["gpt4_feedback"][0], "score": row["score"], "group": row["idx"]})
    return records


def split(records: Records, fold: int, folds: int, seed: int) -> tuple[Records, Records]:
    """The records to learn from and those held out: the groups are shuffled and dealt out to the folds."""
    groups = sorted({record["group"] for record in records})
    random.Random(seed).shuffle(groups)
    held_out = set(groups[fold::folds])
    return [r for r in records if r["group"] not in held_out], [r for r in records if r["group"] in held_out]


def trivial(train: Records, held_out: Records) -> dict[str, Floats]:
    """Scores of the held-out records, `(n,)`, by the row of the table. Length is the logarithm of 1 + words."""
    sides, gold = (train, held_out), np.array([record["score"] for record in train])
    lengths, new_lengths = (np.log1p([len(record["response"].split()) for record in side]) for side in sides)
    return {
        CONSTANT: np.full(len(held_out), gold.mean()),
        "length of response": np.polyval(np.polyfit(lengths, gold, 1), new_lengths),
        "words of response": by_words(*([record["response"] for record in side] for side in sides), gold),
        TRIVIAL[-1]: by_words(*(list(map(ask, side)) for side in sides), gold),
    }


def by_words(train: Sequence[str], held_out: Sequence[str], gold: Floats, penalty: float = 1.0) -> Floats:
    """Scores of the held-out texts by ridge regression on tf-idf of unit length, of words in two training texts."""
    counted = [[Counter(re.findall(r"\w+", text.lower())) for text in texts] for texts in (train, held_out)]
    texts_with = Counter(word for words in counted[0] for word in words)
    rare = {w: 1 + np.log((1 + len(train)) / (1 + times)) for w, times in texts_with.items() if times > 1}
    x, new = (np.array([[words[w] * rare[w] for w in rare] for words in side]) for side in counted)
    x, new = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (x, new))
    new, x = new - x.mean(0), x - x.mean(0)
    dual = np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), gold - gold.mean())  # the intercept is not penalised
    return gold.mean() + new @ x.T @ dual  # type: ignore[no-any-return]


def file_of(folder: Path, seed: int, fold: int) -> Path:
    return folder / f"seed-{seed:02d}" / f"fold-{fold}.json"


def run_fold(seed: int, fold: int, path: Path, folder: Path, folds: int, size: Size) -> None:
    """Writes what is predicted for the held-out records of a fold, unless that is there."""
    file, start = file_of(folder, seed, fold), time.process_time()
    if file.is_file():
        return
    work = file.with_suffix("")
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    shutil.rmtree(work, ignore_errors=True)  # of a killed run
    train, held_out = split(read(path), fold, folds, seed)
    found = run_judges(work, train, held_out, seed, size)
    shutil.rmtree(work)
    found["predictions"] |= {name: row.tolist() for name, row in trivial(train, held_out).items()}
    found |= {"gold": [r["score"] for r in held_out], "groups": [r["group"] for r in held_out]}
    work.with_suffix(".part").write_text(json.dumps(found | {"seconds": time.process_time() - start}))
    work.with_suffix(".part").replace(file)


def run_judges(work: Path, train: Records, held_out: Records, seed: int, size: Size) -> dict[str, Any]:
    """
    Scores of the held-out records, `(n,)`, NaN where unscored; counts of rows, those too long and judgments that ended
    by themselves; mean probability on the scale.
    """
    start, scores, closed, mass = time.perf_counter(), {}, {}, {}
    tokenizer = make_tokenizer([ask(record) + record["rationale"] for record in train], size)
    rows = list(training_examples(train, SCALE, DEFAULT_PREFIX, TEMPLATE, controls=ControlTokens.of(tokenizer)))
    kept = [row for row in rows if len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) < size.max_length]
    texts = [{"text": row["prompt"] + row["completion"].rpartition(DEFAULT_PREFIX)[0].strip()} for row in kept]
    # As in the miniature, but rows of like length together; those too long are left out beforehand, and none is cut.
    together = {"train_sampling_strategy": "group_by_length", "max_length": None, "warmup_steps": 10}
    training = arguments(size.epochs, 4, seed) | together
    shape = {"hidden_size": size.width, "intermediate_size": 2 * size.width, "num_hidden_layers": size.layers}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape |= {"num_attention_heads": 4, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends))
    args = SFTConfig(f"{work / 'seed'}.part", **training)
    finish(SFTTrainer(model, args, None, Dataset.from_list(texts), None, tokenizer), work / "seed")
    writes: dict[str, Any] = {"seed": seed, "max_new_tokens": size.new_tokens, "unfinished": "force", "progress": False}

    def judge_of(name: str, rows: Dataset, **settings: Any) -> Judge:
        model, tokenizer = (kind.from_pretrained(work / "seed") for kind in (AutoModelForCausalLM, AutoTokenizer))
        args = RegressionAwareSFTConfig(f"{work / name}.part", prompt_template=TEMPLATE, **settings, **training)
        finish(RegressionAwareSFTTrainer(model, args, None, rows, None, tokenizer), work / name)
        judge = Judge.from_pretrained(work / name, batch_size=32)
        found = judge.score(held_out, **writes)
        scores[f"{name}, decoded"] = [np.nan if one.label is None else SCALE.value(one.label) for one in found]
        scores[f"{name}, RAIL"] = [one.score for one in found]
        scores[f"{name}, RAIL renormalised"] = [float(np.dot(one.probs, SCALE.values)) / one.mass for one in found]
        mass[name] = float(np.nanmean([one.mass for one in found]))
        closed[name] = sum(r.label is not None and not r.forced for one in found for r in one.rationales)
        print(f"{work.parent.name}, {work.name}: {name} after {time.perf_counter() - start:.0f} s", flush=True)
        return judge

    annotated = Dataset.from_list(kept)
    judge_of("cross-entropy", annotated, score_loss_weight=0.0)
    stage1 = judge_of("stage 1", annotated)
    judge_of("TRACT", generate_cot_dataset(stage1, annotated, output_dir=work / "own", max_retries=0, **writes))
    return {"predictions": scores, "rows": len(rows), "too_long": len(rows) - len(kept), "closed": closed, "mass": mass}


def make_tokenizer(texts: Sequence[str], size: Size) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, each digit a token."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    settings: dict[str, Any] = {"special_tokens": ["<pad>", "</s>"], "show_progress": False}
    settings |= {"vocab_size": size.vocabulary, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator([*texts, DEFAULT_PREFIX], trainers.BpeTrainer(**settings))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


class Run(NamedTuple):
    """The held-out records of all folds of a seed: scores by row, gold scores, instructions and folds, `(n,)` each."""

    predictions: Mapping[str, Floats]
    gold: Floats
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, folds: Sequence[Mapping[str, Any]]) -> "Run":
        """Of what [`run_fold`] wrote, without the records that a judge left unscored."""
        predictions = {row: np.concatenate([fold["predictions"][row] for fold in folds]) for row in ROWS}
        gold, groups = (np.concatenate([fold[name] for fold in folds]) for name in ("gold", "groups"))
        of_fold = np.repeat(np.arange(len(folds)), [len(fold["gold"]) for fold in folds])
        there = np.isfinite(list(predictions.values())).all(0)
        return cls({row: of[there] for row, of in predictions.items()}, gold[there], groups[there], of_fold[there])

    def figures(self, row: str, kept: NDArray[np.bool_]) -> dict[str, float]:
        """
        Figures of a row over the records that are kept, `(n,)`. Correlations are means over the folds: each has a judge
        of its own, and how high its scores lie is no agreement. Scores that are all the same have a correlation of 0.
        """
        scores, gold = self.predictions[row], self.gold
        parts = [part for fold in np.unique(self.folds) if (part := kept & (self.folds == fold)).any()]
        found = {name: [PLAIN[name](scores[part], gold[part]) for part in parts] for name in WITHIN}
        within = {name: np.average(np.nan_to_num(of), weights=np.sum(parts, 1)) for name, of in found.items()}
        return within | {"rmse": PLAIN["rmse"](scores[kept], gold[kept])}


def compare(runs: Sequence[Run]) -> tuple[Rows, dict[str, float]]:
    """
    Figures of each row, and those of TRACT less them (`tract_less_...`), means over the seeds, with 95 % intervals:
    each instruction is left out in turn, in all rows and seeds. And the standard deviation of Pearson's r over seeds.
    """
    groups = np.unique(np.concatenate([run.groups for run in runs]))  # (G,)
    numbers = [np.searchsorted(groups, run.groups) for run in runs]
    names = list(runs[0].predictions)

    def means(kept: NDArray[np.bool_]) -> dict[tuple[str, str], float]:
        of_runs = {row: [run.figures(row, kept[of]) for run, of in zip(runs, numbers, strict=True)] for row in names}
        found = {(row, name): float(np.mean([run[name] for run in of_runs[row]])) for row in names for name in FIGURES}
        known = [(row, name) for row, name in found if row != CONSTANT or name == "rmse"]
        less = {
            (row, f"tract_less_{name}"): found[TRACT, name] - found[row, name] for row, name in known if row != TRACT
        }
        return {key: found[key] for key in known} | less

    everything = np.ones(len(groups), dtype=bool)
    errors, folds = standard_errors(lambda kept: list(means(kept).values()), np.arange(len(groups)))
    rows: Rows = {row: {} for row in names}
    for ((row, name), figure), error in zip(means(everything).items(), errors, strict=True):
        rows[row][name] = figure, list(interval(figure, float(error), folds))
    if len(runs) == 1:
        return rows, {}
    return rows, {
        row: float(np.std([run.figures(row, np.ones(len(run.gold), bool))["pearson"] for run in runs], ddof=1))
        for row in names
    }


def table(rows: Rows, spread: Mapping[str, float]) -> str:
    """What [`compare`] returned, in Markdown."""
    keys = (*FIGURES, "tract_less_pearson", "tract_less_rmse")
    heads = ["", "Pearson", "its deviation over seeds", "Spearman", "RMSE", "TRACT less it: Pearson", "RMSE"]
    lines = [heads, ["---", *["---:"] * (len(keys) + 1)]]
    for name, row in rows.items():
        pearson, *others = (figure_with_interval(*row.get(key, (None,))) for key in keys)
        deviation = figure_with_interval(None if name == CONSTANT else spread.get(name))
        lines.append([name, pearson, deviation, *others])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(seeds: Sequence[Sequence[Mapping[str, Any]]], size: Size) -> str:
    """The held-out records of all folds of each seed: the table, and what to know of it."""
    folds, runs = [fold for of_seed in seeds for fold in of_seed], list(map(Run.of, seeds))
    rows, spread = compare(runs)
    given = sum(len(fold["gold"]) for fold in seeds[0])
    unscored = sum(given - len(run.gold) for run in runs)
    lines, too_long, seconds = (sum(fold[name] for fold in folds) for name in ("rows", "too_long", "seconds"))
    closed = ", ".join(f"{name} {sum(fold['closed'][name] for fold in folds)}" for name in folds[0]["closed"])
    mass = ", ".join(f"{name} {np.mean([fold['mass'][name] for fold in folds]):.2f}" for name in folds[0]["mass"])
    return f"""\
{table(rows, spread)}

n = {given}, {len(seeds)} seeds of {len(seeds[0])} folds; {unscored} of {given * len(seeds)} unscored (by a judge, and \
left out of every row).
Correlations are means over folds and seeds. Intervals are of 95 %, from a jackknife over instructions.
Probability on the scale, mean: {mass}.
Training rows left out since longer than {size.max_length} tokens: {too_long:,} of {lines:,}, over all folds.
Judgments that came to a score within {size.new_tokens} tokens: {closed}; the others were closed by force.
{seconds / 60:.0f} minutes of processor time.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="mt_bench_eval.json")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes; each takes a fold at a time")
    parser.add_argument("--small", action="store_true", help="hardly any training: the figures mean nothing")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/real_text"))
    args = parser.parse_args()
    size, folder = SMALL if args.small else Size(), args.output_dir
    made_with = {
        "data": digest(read(args.path)),
        "folds": args.folds,
        "rows": list(ROWS),
        "template": TEMPLATE,
        "training": arguments(0, 0, 0),
        "code": digest_of_code(),
        **asdict(size),
    }
    check_settings(folder / "settings.json", made_with, *folder.glob("seed-*/fold-*.json"))
    work = [(seed, fold) for seed in range(args.seeds) for fold in range(args.folds)]
    run = partial(run_fold, path=args.path, folder=folder, folds=args.folds, size=size)
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run, *zip(*work, strict=True)))
    files = [[file_of(folder, seed, fold) for fold in range(args.folds)] for seed in range(args.seeds)]
    text = page([[json.loads(file.read_text()) for file in of_seed] for of_seed in files], size)
    (folder / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
