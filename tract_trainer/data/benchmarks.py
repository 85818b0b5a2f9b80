"""Scored records and pairs to evaluate a judge on: public benchmarks, and the user's own data.

A scored record is a record with its gold `score`; a pair is a mapping with the records `chosen` and `rejected`, see
[`tract_trainer.data.pairs`]. Does not need torch.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tract_trainer.data.pairs import (
    PAIR_COLUMNS,
    REWARD_BENCH_2_SUBSETS,
    REWARD_BENCH_SUBSETS,
    RM_BENCH_DOMAINS,
    SIDES,
    conversation_text,
    read_pairs,
    side_records,
)
from tract_trainer.data.reading import read_rows
from tract_trainer.data.records import SCORE_COLUMNS, Record, gold_scores, ready_prompt
from tract_trainer.errors import InputError, numbered
from tract_trainer.scale import ScoreScale

PROMETHEUS_FILES = {
    "feedback_bench": "feedback_collection_ood_test.json",
    "feedback_collection_test": "feedback_collection_test.json",
    "flask": "flask_eval.json",
    "vicuna": "vicuna_eval.json",
    "mt_bench": "mt_bench_eval.json",
}
# What each attribute of HelpSteer2 is about, as the rubric of a record.
HELPSTEER2 = {
    "helpfulness": "How helpful is the response to the prompt, all in all? 0 is not at all, 4 is fully.",
    "correctness": "Does the response have all facts that belong to it, and no errors? 0 is wrong, 4 is fully correct.",
    "coherence": "Is the response clear and consistent with itself? 0 is incoherent, 4 is perfectly coherent.",
    "complexity": "How much expertise did the response take to write? 0 is basic language, 4 is that of a specialist.",
    "verbosity": "How much detail does the response have for what was asked? 0 is very short, 4 is very long.",
}
RECORD_FILES = {
    "biggen_bench": "human_eval-00000-of-00001.parquet",
    **{f"helpsteer2_{attribute}": "validation.jsonl.gz" for attribute in HELPSTEER2},
}
PPE = {"mmlu_pro": "MMLU-Pro", "math": "MATH", "gpqa": "GPQA", "mbpp_plus": "MBPP-Plus", "ifeval": "IFEval"}
PPE_SETS = {f"ppe_{name}": (f"lmarena-ai/PPE-{title}-Best-of-K", "train") for name, title in PPE.items()}
# Where the public name of a file tells nothing, it is that of the benchmark: no other data is taken for it.
PAIR_FILES = {
    "hhh_alignment": "hhh_alignment_eval.json",
    "reward_bench": "filtered-00000-of-00001.parquet",
    "reward_bench_2": "reward_bench_2.parquet",
    "rm_bench": "total_dataset.json",
    "judge_bench": "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl",
    "ppe_human_preference": "ppe_human_preference.parquet",
    **{name: f"{name}.parquet" for name in PPE_SETS},
}
HUB_SETS = {
    "feedback_bench": ("prometheus-eval/Feedback-Bench", "train"),
    "biggen_bench": ("prometheus-eval/BiGGen-Bench-Results", "human_eval"),
    **{f"helpsteer2_{attribute}": ("nvidia/HelpSteer2", "validation") for attribute in HELPSTEER2},
    "reward_bench": ("allenai/reward-bench", "filtered"),
    "reward_bench_2": ("allenai/reward-bench-2", "test"),
    "rm_bench": ("THU-KEG/RM-Bench", "train"),
    "judge_bench": ("ScalerLab/JudgeBench", "gpt"),
    "ppe_human_preference": ("lmarena-ai/PPE-Human-Preference-V1", "test"),
    **PPE_SETS,
}
FILES = {**PROMETHEUS_FILES, **RECORD_FILES, **PAIR_FILES}

BENCHMARKS = tuple(sorted(FILES))
ORIGIN = "the folder eval/benchmark/data of github.com/prometheus-eval/prometheus-eval"
PROMETHEUS_SCALE = ScoreScale.integers(1, 5)
HELPSTEER2_SCALE = ScoreScale.integers(0, 4)
JUDGE_BENCH_SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")


def load_benchmark(
    name: str, path: str | Path | None = None, rubric: str | Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """
    The scored records, or the pairs, of a benchmark.

    Args:
        name (`str`): one of [`BENCHMARKS`].
        path (`str`, *optional*):
            Its file, or the folder that holds it under its public name. By default, the working folder and then, for
            some, a Hub data set.
        rubric (`str` or `Mapping`, *optional*): one rubric for all pairs instead of the general one.

    Returns:
        `list[dict]`: pairs of those of [`PAIR_FILES`]; of the others records with their gold `score`, a mean if there
        are several reference scores.

    Raises:
        InputError: the name is not known, the data is missing or of another kind, or it has rubrics of its own.
    """
    if name not in BENCHMARKS:
        raise InputError(f"benchmark {name!r} is not known; known are {list(BENCHMARKS)}.")
    rows = _benchmark_rows(name, path)
    if name in PAIR_FILES:
        return _benchmark_pairs(name, rows, rubric)
    if rubric:
        raise InputError(f"The records of {name!r} have rubrics of their own. Leave the rubric out.")
    records = scored_records([_record(name, row, number) for number, row in enumerate(rows)])
    check_scale(records, HELPSTEER2_SCALE if name.startswith("helpsteer2") else PROMETHEUS_SCALE)
    return records


def _benchmark_pairs(name: str, rows: Sequence[Record], rubric: str | Mapping[str, str] | None) -> list[dict[str, Any]]:
    given = {"rubric": rubric} if rubric else {}
    pairs = read_pairs([{**_pair_row(name, row, number), **given} for number, row in enumerate(rows)])
    if given and any("prompt" in record for pair in pairs for record in side_records(pair, "chosen")):
        raise InputError(f"The pairs of {name!r} are ready prompts, on which a rubric has no effect. Leave it out.")
    if name == "reward_bench":
        check_reward_bench(pairs)
    return pairs


def _benchmark_rows(name: str, path: str | Path | None) -> list[dict[str, Any]]:
    file_name = FILES[name]
    file = Path(path or file_name)
    file = file / file_name if file.is_dir() else file
    if file.is_file():
        return read_rows(file)
    tried = ""
    if path is None and name in HUB_SETS:
        try:
            return read_rows(*HUB_SETS[name])
        except InputError as error:
            tried = f", nor could its Hub data set be loaded: {error.__cause__ or error}"
    raise InputError(f"The benchmark {name!r} is not at {str(file)!r}{tried}. {_advice(name)}")


def _advice(name: str) -> str:
    if name in PROMETHEUS_FILES or name not in HUB_SETS:
        return f"Fetch {FILES[name]} from {ORIGIN} and give its path, or put it into the working folder."
    source, split = HUB_SETS[name]
    return (
        f"Fetch the file of the split {split!r} of huggingface.co/datasets/{source} and give its path, or put it into "
        f"the working folder as {FILES[name]}."
    )


def _record(name: str, row: Record, number: int) -> dict[str, Any]:
    if name == "biggen_bench":
        return _biggen_record(row, number)
    attribute = name.removeprefix("helpsteer2_")
    return _helpsteer_record(row, attribute, number) if attribute in HELPSTEER2 else _prometheus_record(row, number)


def _prometheus_record(row: Record, number: int) -> dict[str, Any]:
    """A row of the Prometheus format, its `instruction` a clean prompt, with its other columns."""
    if not isinstance(row.get("instruction"), str):
        raise InputError(f"Record {number} has no prompt in `instruction`; found {sorted(row)}.")
    kept = {name: value for name, value in row.items() if name != "messages"}  # of the Hub; would be asked instead
    return {**kept, "instruction": ready_prompt(row["instruction"])}


def _biggen_record(row: Record, number: int) -> dict[str, Any]:
    """A row of BiGGen Bench's results. Gold is the human score, or that of GPT-4 in a file without human ones."""
    rubric = row.get("score_rubric")
    _need(row, ("input", "response", "score_rubric"), number, "biggen_bench")
    if not isinstance(rubric, Mapping) or "criteria" not in rubric:
        raise InputError(f"`score_rubric` of record {number} must have `criteria`, found {rubric!r:.80}.")
    levels = {label: rubric.get(f"score{label}_description") for label in PROMETHEUS_SCALE.labels}
    return {
        **{name: value for name, value in row.items() if name not in ("input", "reference_answer", "score_rubric")},
        "instruction": row["input"],
        "reference": row.get("reference_answer"),
        "rubric": {"Criterion": rubric["criteria"], **levels},
        "score": row["human_score"] if "human_score" in row else row.get("gpt4_score"),
    }


def _helpsteer_record(row: Record, attribute: str, number: int) -> dict[str, Any]:
    """A row of HelpSteer2, whose prompt may be a conversation with marks of its turns."""
    _need(row, ("prompt", "response", attribute), number, "helpsteer2")
    first, *turns = re.split(r"\s*<extra_id_1>(User|Assistant)\s*", row["prompt"])
    texts = zip(["user", *map(str.lower, turns[::2])], [first, *turns[1::2]], strict=True)
    prompt = conversation_text([{"role": role, "content": text} for role, text in texts])
    kept = {name: value for name, value in row.items() if name != "prompt"}
    return {**kept, "instruction": prompt, "rubric": HELPSTEER2[attribute], "score": row[attribute]}


def _pair_row(name: str, row: Record, number: int) -> Record:
    """A row of a benchmark of pairs in a format of [`read_pairs`], its `subset` one that the benchmark reports."""
    if name == "reward_bench_2":
        _need(row, ("prompt", "chosen", "rejected", "subset", "id"), number, name)
        return {**row, "subset": _known(row["subset"], REWARD_BENCH_2_SUBSETS, number, name)}
    if name == "rm_bench":
        _need(row, ("prompt", "chosen", "rejected", "domain"), number, name)
        if not all(isinstance(row[side], list) and len(row[side]) == 3 for side in SIDES):
            raise InputError(f"Pair {number} of rm_bench must have three chosen and three rejected responses.")
        return {**row, "subset": _known(row["domain"].partition("-")[0], RM_BENCH_DOMAINS, number, name)}
    if name == "judge_bench":
        _need(row, ("question", "response_A", "response_B", "label", "source"), number, name)
        source = next((known for known in JUDGE_BENCH_SOURCES if row["source"].startswith(known)), row["source"])
        pair = {"prompt": row["question"], "response 1": row["response_A"], "response 2": row["response_B"]}
        label = {"A>B": 0, "B>A": 1}.get(row["label"], row["label"])
        return {**pair, "id": row.get("pair_id", number), "subset": source, "source": row["source"], "label": label}
    if name == "ppe_human_preference":
        _need(row, ("prompt", "response_1", "response_2", "winner"), number, name)
        label = {"model_a": 0, "model_b": 1}.get(row["winner"], 2 if str(row["winner"]).startswith("tie") else None)
        kept = {column: value for column, value in row.items() if column not in ("response_1", "response_2", "winner")}
        pair = {"response 1": row["response_1"], "response 2": row["response_2"], "label": label}
        return {**kept, **pair, "id": row.get("question_id", number)}
    return _best_of_k_row(row, number, name) if name in PPE_SETS else row


def _best_of_k_row(row: Record, number: int, name: str) -> dict[str, Any]:
    """A row of PPE's correctness sets: the right responses are chosen, and some are `compared` with wrong ones."""
    _need(row, ("prompt", "scores", "sampled_conflict_pairs", "response_1"), number, name)
    right = [bool(score) for score in row["scores"]]
    order = sorted(range(len(right)), key=lambda i: not right[i])
    sides = {side: [row[f"response_{i + 1}"] for i in order if right[i] == (side == "chosen")] for side in SIDES}
    kept = {column: row[column] for column in ("prompt", "model_name", "category") if column in row}
    kept |= {"id": row.get("question_id", number)}
    if not all(sides.values()):  # as a tie, which is left out and counted
        return {**kept, "response 1": row["response_1"], "response 2": row["response_1"], "label": 2}
    pairs = [(i, j) if right[i] else (j, i) for i, j in row["sampled_conflict_pairs"] if right[i] != right[j]]
    return {**kept, **sides, "compared": [[order.index(i) for i in pair] for pair in pairs]}


def _need(row: Record, columns: Sequence[str], number: int, name: str) -> None:
    if missing := [column for column in columns if row.get(column) is None]:
        raise InputError(
            f"Record {number} of {name} has no `{missing[0]}`; found {sorted(row)}. Give the public file, or load "
            "yours as data of your own (--data)."
        )


def _known(subset: str, known: Sequence[str], number: int, name: str) -> str:
    if subset not in known:
        raise InputError(
            f"Pair {number} is of the subset {subset!r}, which {name} does not have; it has {list(known)}."
        )
    return subset


def own_benchmark(
    source: str | Path,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    rubric: str | Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """
    The scored records of the user's own data, or the pairs, if it has columns of [`read_pairs`]. The arguments are
    those of [`~tract_trainer.data.reading.read_rows`].
    """
    rows = [dict(row) for row in read_rows(source, split, columns, rubric)]
    names: set[str] = set().union(*rows)
    if names & PAIR_COLUMNS:
        return read_pairs(rows)
    if {"prompt", "response"} <= names:
        raise InputError(
            f"{source} has a `response` and a `prompt`, which is asked as it is. If it is the instruction that was "
            'responded to, name it so: columns={"prompt": "instruction"}.'
        )
    if missing := _missing(names):
        raise InputError(
            f"{source} has no column {', '.join(map(repr, missing))}; found {sorted(names)}. Records need "
            "`instruction`, `response` and `rubric`, or a ready `prompt`, and `score`; pairs need `instruction`, "
            f'`chosen` and `rejected`. If yours has another name, give it: columns={{"yours": "{missing[0]}"}}.'
        )
    return scored_records(rows)


def _missing(names: set[str]) -> list[str]:
    """Columns of a scored record that `names` lacks."""
    fields = ["instruction", "response", "rubric"] if names & {"response", "rubric"} else ["instruction"]
    needed = ([] if names & {"prompt", "messages"} else fields) + ([] if names & set(SCORE_COLUMNS) else ["score"])
    return [name for name in needed if name not in names]


def scored_records(records: Sequence[Record]) -> list[dict[str, Any]]:
    """`records` with their gold score as `score`. If it is the mean of several, these are `gold_ratings`."""
    scored = []
    for number, record in enumerate(records):
        with numbered("Record", number):
            ratings = gold_scores(record)
        gold = sum(ratings) / len(ratings) if ratings else None
        if gold is None or not math.isfinite(gold):
            raise InputError(f"Record {number} has no gold score to compare with, but {gold}; found {sorted(record)}.")
        scored.append({**record, "score": gold, **({"gold_ratings": ratings} if len(ratings) > 1 else {})})
    return scored


def check_scale(records: Sequence[Record], scale: ScoreScale) -> None:
    """Raises an InputError where the gold `score` of a record is not on the scale."""
    for number, record in enumerate(records):
        if not scale.covers(record["score"]):
            raise InputError(
                f"The gold score of record {number} is {record['score']:g}, off the scale of {scale.low:g} to "
                f"{scale.high:g}. Convert the gold scores to that scale."
            )


def check_reward_bench(pairs: Sequence[Record]) -> None:
    """Raises an InputError where a pair is of a subset that counts in no section of RewardBench."""
    for number, pair in enumerate(pairs):
        if pair["subset"] not in REWARD_BENCH_SUBSETS:
            raise InputError(
                f"Pair {number} is of the subset {pair['subset']!r}, which reward_bench does not have. Give the split "
                "'filtered' of allenai/reward-bench, or load the file as a data set of your own."
            )
