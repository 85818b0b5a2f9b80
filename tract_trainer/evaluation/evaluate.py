"""Evaluation of a judge on scored records or pairs: judgments, and the figures of every method with intervals.

docs/evaluation.md describes a result key by key. A row is one of its `judgments`; of a pair there are two or more, the
chosen responses first.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tract_trainer._distributed import process_state
from tract_trainer.data import store
from tract_trainer.data.benchmarks import check_scale
from tract_trainer.data.hashing import digest
from tract_trainer.data.pairs import SIDES, is_pair, pair_records, side_records
from tract_trainer.data.records import RATIONALE_COLUMNS, SCORE_COLUMNS, Prompt, Record, check_prompts, turn_text
from tract_trainer.data.settings import begin, differences
from tract_trainer.engines.base import checked
from tract_trainer.errors import InputError
from tract_trainer.evaluation.calibration import calibration
from tract_trainer.evaluation.ceiling import ceiling
from tract_trainer.evaluation.groups import pair_groups, record_groups
from tract_trainer.evaluation.methods import Row, mean_mass, scores_by_method
from tract_trainer.evaluation.pairwise import layout_of_rows, pair_figures
from tract_trainer.evaluation.pictures import PICTURES, draw
from tract_trainer.evaluation.references import references, response_length
from tract_trainer.evaluation.selective import selective
from tract_trainer.hub.results import markdown
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.judging.judgment import Judgment
from tract_trainer.metrics import agreement

SCHEMA_VERSION = 1

# Columns that a result depends on.
ASKED = (
    "instruction", "response", "rubric", "reference", "prompt", "messages", "tools", "chat_template_kwargs", "score",
    "chosen", "rejected", "system_prompt",
)  # fmt: skip
# Columns that a judgment has under another name, or that are long.
NOT_KEPT = {
    *(*ASKED, *SCORE_COLUMNS, *RATIONALE_COLUMNS, "completion", "group", "input", "targets"),
    *("chosen_instruction", "rejected_instruction", "compared"),
}
LONGEST = 300  # characters of JSON in a column that judgments keep


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
    overwrite: bool = False,
    progress: bool | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """
    Judges records and writes the result: JSON to `path`, and beside it a Markdown table and pictures.

    Judgments are saved as they are made: the same call resumes where a killed one stopped, also with some records
    corrected, and returns a finished result. Launched processes share the records, so each of them must call this.

    Args:
        judge ([`Judge`]): the judge.
        records (`Sequence[Mapping]`):
            Scored records or pairs, from [`load_benchmark`] or [`own_benchmark`]. Short columns that are not asked
            with, such as `category`, are kept with each judgment.
        name (`str`): name of the records in the result.
        path (`str` or `Path`): JSON file; its ending is replaced for the others.
        num_cots (`int`, *optional*, defaults to `1`):
            Rationales per record. 0 reads the score right after the prompt and the prefix, for a judge that was trained
            without rationales.
        judge_name (`str`, *optional*, defaults to `"judge"`), revision (`str`, *optional*):
            Name and Hub commit of the judge in the result.
        overwrite (`bool`, *optional*, defaults to `False`): replace other files at `path` and beside it.
        seed, unfinished, progress, sampling: as in [`Judge.score`].

    Returns:
        `dict`: content of the JSON file.

    Raises:
        InputError: a record cannot be judged, or there are other files, or work with other settings, at `path`.
    """
    if not len(records):
        raise InputError("There are no records to evaluate on. Give at least one.")
    pairs = is_pair(records[0])
    if not pairs:
        check_scale(records, judge.config.scale)
    path = Path(path)
    check_output(path, overwrite)
    drawn = {"seed": seed, "unfinished": unfinished, **asdict(checked(num_cots, unfinished, sampling))}
    asked = {"identity": judge.identity, "weights": judge.weights, "config": judge.config.settings}
    head = {
        "schema_version": SCHEMA_VERSION,
        store.MARK: version("tract-trainer"),
        "judge": {"name": judge_name, "revision": revision, **asked},
        "benchmark": {"name": name, "records": len(records), "digest": _digest(records)},
        "settings": {"num_cots": num_cots, **drawn, "engine": type(judge.engine).__name__},
    }
    if (finished := _finished(path, head, overwrite)) is not None:
        return finished
    every = pair_records(records, judge.config.scale) if pairs else records
    check_prompts(every, judge.rows.prompt_ids)  # all of them, before any is judged
    columns = (_pair_columns if pairs else record_columns)(records)
    state = process_state()
    shown = progress if state.is_main_process else False

    def rows(numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, judgment in judge.as_finished(every, num_cots, progress=shown, numbers=numbers, **drawn):
            yield number, _row(judgment, judge.rows.prompt(every[number]))

    folder = path.with_name(f"{path.stem}.unfinished")
    # The lock is held until the result is there and the rows are removed: another call finds one or the other.
    with store.locked(folder, state.process_index, path):
        if _finished(path, head, overwrite) is None:
            made_with = {"command": "tract evaluate", **_judged_with(head)}
            begin(folder / "settings.json", made_with, *folder.glob("process-*.jsonl"))
            # Records with a corrected gold score need no new judgment.
            keys = [digest({name: v for name, v in _asked(record).items() if name != "score"}) for record in every]
            store.finish_rows(folder, keys, rows, state)
            if state.is_main_process:
                judged = [{**row, **of} for of, row in zip(columns, store.finished_rows(folder, keys), strict=True)]
                figures = store.without_nan(_figures(judged, judge.config, num_cots))
                save({**head, **figures, "judgments": judged}, path)
        state.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def check_output(path: Path, overwrite: bool = False) -> None:
    """
    Raises an InputError where a result at `path`, its table or its pictures would replace a file that is not one.
    Where a result is at `path`, the files beside it are its own.
    """
    if path.suffix != ".json":
        raise InputError(f"Expected a .json file for the result, got {str(path)!r}.")
    pictures = [path.with_name(f"{path.stem}-{picture}.png") for picture in PICTURES]
    store.refuse_foreign([path, path.with_suffix(".md"), *pictures], overwrite, signs=[path])


def save(result: Mapping[str, Any], path: Path) -> None:
    """Writes a result to the JSON file `path`, and beside it its table (`.md`) and its pictures (`-NAME.png`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.replacing(path.with_suffix(".md")) as part:
        part.write_text(f"<!-- {store.MARK}: {result[store.MARK]} -->\n{markdown(result)}", encoding="utf-8")
    draw(result, path.with_suffix(""))
    store.save_results(path, result)  # last: where it is, the others are


def load_result(path: str | Path) -> dict[str, Any]:
    """The result in a JSON file of [`evaluate`]. An InputError if it is none, or one of another version."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Expected the JSON file of a result, found no file {str(path)!r}.")
    result = read_json(path)
    if not is_result(result):
        raise InputError(f"{path} is not the result of an evaluation: it has no schema_version. Give one, or a folder.")
    if result["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {result['schema_version']!r}, and this version of tract-trainer reads "
            f"{SCHEMA_VERSION}. Run tract evaluate again, or use the tract-trainer that wrote it."
        )
    if missing := {"judge", "benchmark", "settings", "methods", "by_rationales", "judgments"} - result.keys():
        raise InputError(f"{path} is no complete result, it lacks {sorted(missing)}. Run tract evaluate again.")
    return result  # type: ignore[no-any-return]


def is_result(content: object) -> bool:
    return isinstance(content, dict) and "schema_version" in content


def read_json(path: Path) -> Any:
    """The content of a JSON file; an InputError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or what Python refuses to read of either
        raise InputError(f"{path} is not valid JSON: {error}. Write it again, or move it elsewhere.") from error


def _figures(rows: Sequence[Mapping[str, Any]], config: JudgeConfig, num_cots: int) -> dict[str, Any]:
    """`methods`, `by_rationales`; of scored records `calibration`, `selective`, `ceiling` and [`references`]."""
    powers = {2**power for power in range(num_cots.bit_length())}
    counts = sorted(powers | {num_cots}) if num_cots else []
    methods = _figures_by_method(rows, config)
    by_rationales = {str(n): methods if n == num_cots else _figures_by_method(rows, config, n) for n in counts}
    found: dict[str, Any] = {"methods": methods, "by_rationales": by_rationales}
    if "gold" not in rows[0]:
        return found
    probs = np.array([row["probs"] for row in rows], dtype=np.float64)  # (n, K)
    ratings = [row.get("gold_ratings", [row["gold"]]) for row in rows]
    found["calibration"] = calibration(probs, ratings, config.score_values)
    scores = scores_by_method(rows, config.scale, config.renormalize_scores)
    found["selective"] = selective(rows, scores["RAIL"], config.score_values, config.renormalize_scores)
    found |= references(rows, scores, "RAIL", config.score_values)
    of_raters = ceiling(ratings, config.score_values, [row["group"] for row in rows])
    return found if of_raters is None else {**found, "ceiling": of_raters}


def _figures_by_method(rows: Sequence[Row], config: JudgeConfig, count: int | None = None) -> dict[str, Any]:
    """Figures of each method, with the first `count` scored rationales of each row."""
    scores = scores_by_method(rows, config.scale, config.renormalize_scores, count)
    mass = {"mass": mean_mass(rows, count)}
    if "gold" not in rows[0]:
        layout, groups = layout_of_rows(rows)
        return {method: pair_figures(found, layout.subsets, groups, layout) | mass for method, found in scores.items()}
    gold, groups = ([row[name] for row in rows] for name in ("gold", "group"))
    return {
        method: agreement(found, gold, values=config.score_values, groups=groups) | mass
        for method, found in scores.items()
    }


def _finished(path: Path, head: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """
    The result at `path`, if there is one of the same judge, records and settings. With another, an InputError, or with
    `overwrite` none.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, now = ({**_judged_with(of), "benchmark": of["benchmark"]} for of in (found, head))
        changed = differences(before, now)
    except (ValueError, LookupError, TypeError, RecursionError):
        changed = ["It is no result of `tract evaluate`."]
    if changed and not overwrite:
        raise InputError(
            f"{path} exists and is kept:\n  "
            + "\n  ".join(changed)
            + "\nGive another output, delete it, or replace it with --overwrite true (overwrite=True)."
        )
    return None if changed else found


def _judged_with(head: Mapping[str, Any]) -> dict[str, Any]:
    """What every judgment of a result depends on, beside its record."""
    return {"judge": head["judge"]["identity"], **head["settings"]}


def _asked(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in ASKED if name in record}


def _digest(records: Sequence[Record]) -> str:
    """The same for the same questions and gold scores, whatever their other columns."""
    names = (*ASKED, "gold_ratings", "compared")
    return digest([{name: record[name] for name in names if name in record} for record in records])


def record_columns(records: Sequence[Record], *others: str) -> list[dict[str, Any]]:
    """
    Of each scored record its gold score, group and kept columns without `others`; if they are known, the ratings that
    the gold score is the mean of, and the length of the response.
    """
    found = []
    for record, group, columns in zip(records, record_groups(records), short_columns(records, *others), strict=True):
        known = {"gold_ratings": record.get("gold_ratings") or None, "response_length": response_length(record)}
        known = {name: value for name, value in known.items() if value is not None}
        found.append({"gold": record["score"], "group": group, "record": columns, **known})
    return found


def _pair_columns(pairs: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"pair": number, "id": str(pair.get("id", number)), "subset": pair["subset"], "group": group, "side": side}
        | {"record": columns}
        | {name: pair[name] for name in ("compared",) if name in pair}
        for number, (pair, group, columns) in enumerate(
            zip(pairs, pair_groups(pairs), short_columns(pairs, "id", "subset"), strict=True)
        )
        for side in SIDES
        for _ in side_records(pair, side)
    ]


def short_columns(records: Sequence[Record], *others: str) -> list[dict[str, Any]]:
    """Of each record the columns to break figures down by: those that are short in every record, without `others`."""
    found = [
        {name: json.dumps(value, default=str) for name, value in record.items() if name not in {*NOT_KEPT, *others}}
        for record in records
    ]
    long = {name for columns in found for name, value in columns.items() if len(value) > LONGEST}
    return [
        {name: store.without_nan(json.loads(value)) for name, value in columns.items() if name not in long}
        for columns in found
    ]


def _row(judgment: Judgment, prompt: Prompt) -> dict[str, Any]:
    found = {
        **{name: getattr(judgment, name) for name in ("score", "probs", "std", "mass", "label", "rationale", "reason")},
        **({} if judgment.score_interval is None else {"score_interval": judgment.score_interval}),
        "prompt": prompt if isinstance(prompt, str) else "\n\n".join(map(turn_text, prompt)),
        "rationales": [
            {
                "label": rationale.label,
                "probs": None if rationale.log_probs is None else np.exp(rationale.log_probs).tolist(),
                "num_tokens": rationale.num_tokens,
                "forced": rationale.forced,
                "truncated": rationale.truncated,
            }
            for rationale in judgment.rationales
        ],
    }
    return store.without_nan(found)  # type: ignore[no-any-return]
