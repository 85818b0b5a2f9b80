"""Where the results of `tract evaluate` come from and go to: records by name, files, the terminal, the model card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tract_trainer.arguments import DataArguments, EvaluateArguments
from tract_trainer.benchmarks import load_benchmark, own_benchmark
from tract_trainer.errors import InputError


def records_by_name(data: DataArguments, args: EvaluateArguments) -> dict[str, list[dict[str, Any]]]:
    """Records or pairs by the name of their benchmark."""
    names = [args.benchmark] if isinstance(args.benchmark, str) else args.benchmark or []  # YAML may give one alone
    if (not names) == (data.data is None):
        raise InputError("Give either --benchmark NAME (with --path), or --data FILE with your own scored records.")
    if args.columns is not None and data.data is None:
        raise InputError("--columns renames the columns of --data. Leave it out with --benchmark.")
    if len(names) > 1 and args.path is not None and not Path(args.path).is_dir():
        raise InputError(f"--path must be the folder of the {len(names)} benchmarks, found {args.path!r}.")
    if data.data is not None:
        return {data.data: own_benchmark(data.data, args.renames, data.split)[: data.max_records]}
    return {name: load_benchmark(name, args.path)[: data.max_records] for name in names}


def result_paths(output: str, names: Sequence[str]) -> dict[str, Path]:
    """The JSON file of each benchmark's result: `output` itself, or one in it, named after the benchmark."""
    if output.endswith(".json"):
        if len(names) > 1:
            raise InputError(
                f"--output {output} is one file, and {len(names)} benchmarks have one each. Give a folder."
            )
        return {names[0]: Path(output)}
    stems = {name: re.sub(r"[^\w.-]+", "-", Path(name).name.removesuffix(Path(name).suffix)) for name in names}
    return {name: Path(output) / f"{stem.strip('.-')[:100] or 'data'}.json" for name, stem in stems.items()}


def commit_of(model: str) -> str | None:
    """The commit of a judge from the Hub; a folder has none."""
    from tract_trainer.engines.saved import SavedJudge

    return SavedJudge.find(model, weights=False).commit


def judged_summary(path: Path) -> str:
    """What [`tract_trainer.pipeline.judge_file`] wrote, in a sentence; the first reason why a record is unscored."""
    with path.open(encoding="utf-8") as file:
        reasons = [json.loads(line)["reason"] for line in file]
    unscored = [reason for reason in reasons if reason]
    first = f" The first: {unscored[0]}" if unscored else ""
    return f"{len(reasons):,} judgments are in {path}, {len(unscored):,} of them unscored.{first}"


def show(results: dict[Path, dict[str, Any]]) -> None:
    """Prints results of one judge, with the mean over benchmarks, and writes their entries for the model card."""
    from tract_trainer.parallel import process_state
    from tract_trainer.report import model_index, results_table, summary_table

    if not process_state().is_main_process:  # all have the same results
        return
    console, first = Console(), next(iter(results))
    for path, result in results.items():
        console.print(results_table(result["methods"], result["benchmark"]["name"]))
        text = f"Judgments and figures are in {path}, the table and the pictures beside it.\n"
        reasons = [row["reason"] for row in result["judgments"] if row["reason"]]
        if 2 * len(reasons) > len(result["judgments"]):
            share = f"{len(reasons):,} of {len(result['judgments']):,}"
            text = f"{share} records are unscored. The first: {reasons[0]}\n{text}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    scored = [result for result in results.values() if "calibration" in result]
    if len(scored) > 1:
        console.print(summary_table(scored))
    card = first.parent / "model-index.yaml" if len(results) > 1 else first.with_suffix(".yaml")
    entries = {"model-index": model_index(list(results.values()))}
    card.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True), encoding="utf-8")
