"""Turns a judge and scored records, or pairs, into a result: figures of every method with intervals, and the judgments.

A result is what docs/evaluation.md describes key by key: it holds no NaN but `None`, and its figures can be computed
again from its `judgments` alone. A row is one of these; of pairs there are two each, the chosen one first.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tract_trainer.data.benchmarks import check_scale
from tract_trainer.data.hashing import digest
from tract_trainer.data.pairs import pair_records
from tract_trainer.data.records import Prompt, Record, check_prompts
from tract_trainer.data.settings import begin, differences
from tract_trainer.data.store import finish_rows, finished_rows, save_results, without_nan
from tract_trainer.engines.base import at_once, checked
from tract_trainer.errors import InputError
from tract_trainer.evaluation.artifacts import SCHEMA_VERSION
from tract_trainer.evaluation.calibration import calibration
from tract_trainer.evaluation.groups import pair_groups, record_groups
from tract_trainer.evaluation.methods import mean_mass, rationale_counts, scores_by_method
from tract_trainer.evaluation.pairwise import pair_figures
from tract_trainer.evaluation.pictures import draw
from tract_trainer.hub.results import markdown
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.batching import in_pieces
from tract_trainer.judging.judge import Judge
from tract_trainer.judging.judgment import Judgment
from tract_trainer.metrics import agreement

COMPARED = (
    "instruction", "response", "rubric", "reference", "prompt", "messages", "tools", "chat_template_kwargs", "score",
    "chosen", "rejected",
)  # fmt: skip


def evaluate(
    judge: Judge,
    records: Sequence[Record],
    name: str,
    path: str | Path,
    num_cots: int = 1,
    *,
    judge_name: str = "judge",
    revision: str | None = None,
    seed: int = 42,
    unfinished: str = "unscored",
    **sampling: Any,
) -> dict[str, Any]:
    """
    Judges records and writes the result: JSON to `path`, and beside it a Markdown table and pictures.

    Judgments are on disk as they are made: the same call goes on where a killed one stopped, and one that is finished
    does nothing anew. Launched processes share the records, so each of them must call this.

    Args:
        judge ([`Judge`]): the judge.
        records (`Sequence[Mapping]`): scored records or pairs, from [`load_benchmark`] or [`own_benchmark`].
        name (`str`): what the records are called in the result.
        path (`str` or `Path`): JSON file; its ending is replaced for the others.
        num_cots (`int`, *optional*, defaults to `1`):
            Rationales per record. 0 reads the score right after the prompt and the prefix, for a judge that was trained
            without rationales.
        judge_name (`str`, *optional*, defaults to `"judge"`), revision (`str`, *optional*): what the judge is called.
        seed, unfinished, sampling: as in [`Judge.score`].

    Returns:
        `dict`: what the JSON file holds.

    Raises:
        InputError: there are no records, one has no prompt, a gold score is off the judge's scale, or what is at `path`
            was begun or made in another way.
    """
    config = judge.config
    pairs = _are_pairs(records)
    if not pairs:
        check_scale(records, config.scale)
    drawn = {"seed": seed, "unfinished": unfinished, **asdict(checked(num_cots or 1, unfinished, sampling))}
    settings = {"num_cots": num_cots, **drawn, "engine": type(judge.engine).__name__}
    benchmark = {"name": name, "records": len(records), "digest": _digest(records)}
    head = {
        "schema_version": SCHEMA_VERSION,
        "tract_trainer_version": version("tract-trainer"),
        "judge": {"name": judge_name, "revision": revision, "identity": judge.identity, "config": asdict(config)},
        "benchmark": benchmark,
        "settings": settings,
    }
    path, made_with = Path(path), _made_with(head)
    finished = _finished(path, made_with)
    if finished is not None:
        return finished
    every = pair_records(records, config.scale) if pairs else records
    check_prompts(every, judge.rows.prompt)
    folder = path.with_name(f"{path.stem}.unfinished")
    rows_or_lock = folder / "process-00000.jsonl", folder / "process-00000.lock"
    state = begin(folder / "settings.json", made_with, *rows_or_lock)
    progress = None if state.is_main_process else False
    known = (_of_pairs if pairs else _of_records)(records)

    def rows(numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        asked = [every[i] for i in numbers]
        judgments = (
            judge.as_finished(asked, num_cots, progress=progress, **drawn)
            if num_cots
            else _without_rationales(judge, asked, progress is None)
        )
        for place, judgment in judgments:
            i = numbers[place]
            yield i, {**known[i], **_row(judgment, judge.rows.prompt(every[i]))}

    finish_rows(folder, len(known), rows, state)
    if state.is_main_process:
        judged = list(finished_rows(folder, len(known)))
        save({**head, **without_nan(_figures(judged, config, num_cots)), "judgments": judged}, path)
        shutil.rmtree(folder)
    state.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def figures_of(rows: Sequence[Mapping[str, Any]], config: JudgeConfig, count: int | None = None) -> dict[str, Any]:
    """
    Figures of each method over judged rows, with the first `count` rationales of each that came to a score.

    Returns:
        `dict` with, for each of [`~tract_trainer.evaluation.methods.METHODS`], what
        [`~tract_trainer.metrics.agreement`] or, of
        pairs, [`~tract_trainer.evaluation.pairwise.pair_figures`] returns, and `mass`.
    """
    scores = scores_by_method(rows, config.scale, config.renormalize_scores, count)
    mass = mean_mass(rows, count)
    if "gold" not in rows[0]:
        subsets, groups = ([row[name] for row in rows[::2]] for name in ("subset", "group"))
        return {method: {**pair_figures(found, subsets, groups), "mass": mass} for method, found in scores.items()}
    known: Any = {
        "gold": [row["gold"] for row in rows],
        "values": config.score_values,
        "groups": [row["group"] for row in rows],
    }
    return {method: {**agreement(found, **known), "mass": mass} for method, found in scores.items()}


def save(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result to the JSON file `path`, and beside it its table (`.md`) and its pictures (`-NAME.png`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    draw(result, path.with_suffix(""))
    save_results(path, result)  # last, since it tells that all is there


def _figures(rows: Sequence[Mapping[str, Any]], config: JudgeConfig, num_cots: int) -> dict[str, Any]:
    methods = figures_of(rows, config)
    counts = rationale_counts(num_cots)
    by_rationales = {str(count): methods if count == num_cots else figures_of(rows, config, count) for count in counts}
    found = {"methods": methods, "by_rationales": by_rationales}
    if "gold" not in rows[0]:
        return found
    probs = np.array([row["probs"] for row in rows], dtype=np.float64)  # (n, K)
    probs[probs.sum(1) == 0] = np.nan  # all probability is off the scale, and no distribution on it left
    ratings = [row.get("gold_ratings", [row["gold"]]) for row in rows]
    return found | {"calibration": calibration(probs, ratings, config.score_values)}


def _finished(path: Path, made_with: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result at `path`, if there is one. Raises `InputError` where it was made with something else."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = differences(_made_with(found), json.loads(json.dumps(made_with)))
    except (ValueError, LookupError, TypeError):
        changed = ["It is no result of `tract evaluate`."]
    if changed:
        raise InputError(
            f"{path} is there already, and is kept:\n  "
            + "\n  ".join(changed)
            + "\nGive another place for the output, or delete it."
        )
    return found  # type: ignore[no-any-return]


def _made_with(head: Mapping[str, Any]) -> dict[str, Any]:
    """What the judgments of a result depend on."""
    return {"judge": head["judge"]["identity"], "benchmark": head["benchmark"], **head["settings"]}


def _without_rationales(judge: Judge, records: Sequence[Record], shown: bool) -> Iterator[tuple[int, Judgment]]:
    """The score right after the prompt and the prefix, as [`Judge.as_finished`] gives it."""

    def read(piece: Sequence[Record]) -> list[Judgment]:
        return judge.rescore(piece, [""] * len(piece))

    return in_pieces(read, records, at_once(judge.engine), judge.engine.calls, "Judging", shown)


def _are_pairs(records: Sequence[Record]) -> bool:
    if not len(records):
        raise InputError("There are no records to evaluate on. Give at least one.")
    return isinstance(records[0].get("chosen"), Mapping)


def _digest(records: Sequence[Record]) -> str:
    """The same for the same questions and gold scores, whatever else a file of them holds."""
    return digest([{name: record[name] for name in COMPARED if name in record} for record in records])


def _of_records(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Gold score and group of each record, and the ratings that the gold score is the mean of, if there are several."""
    return [
        {"gold": record["score"], "group": group}
        | {name: record[name] for name in ("gold_ratings",) if record.get(name)}
        for record, group in zip(records, record_groups(records), strict=True)
    ]


def _of_pairs(pairs: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"id": str(pair.get("id", number)), "subset": pair["subset"], "group": group, "side": side}
        for number, (pair, group) in enumerate(zip(pairs, pair_groups(pairs), strict=True))
        for side in ("chosen", "rejected")
    ]


def _row(judgment: Judgment, prompt: Prompt) -> dict[str, Any]:
    found = {
        **{name: getattr(judgment, name) for name in ("score", "probs", "std", "mass", "label", "rationale", "reason")},
        "prompt": prompt if isinstance(prompt, str) else "\n\n".join(str(turn["content"]) for turn in prompt),
        "rationales": [
            {
                "label": rationale.label,
                "probs": None if rationale.log_probs is None else np.exp(rationale.log_probs).tolist(),
                "num_tokens": rationale.num_tokens,
                "forced": rationale.forced,
            }
            for rationale in judgment.rationales
        ],
    }
    return without_nan(found)  # type: ignore[no-any-return]
