"""The bodies of the command line's commands: arguments in, a job done, a table or a file out."""

import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from trl import ModelConfig

from tract_trainer.cli.arguments import (
    CompareArguments,
    DataArguments,
    DemoArguments,
    EvaluateArguments,
    GenerateArguments,
    InspectArguments,
    JudgeArguments,
    OutputArguments,
    RecordArguments,
    RecordFormat,
    ReportArguments,
    RunArguments,
    SamplingArguments,
    TrainingDataArguments,
)
from tract_trainer.cli.parsing import parse
from tract_trainer.data.benchmarks import load_benchmark, own_benchmark
from tract_trainer.data.reading import read_record, read_rows
from tract_trainer.errors import InputError
from tract_trainer.training.config import RegressionAwareSFTConfig


def _rows(data: DataArguments) -> Any:
    if data.data is None:
        raise InputError("--data is missing: a .json or .jsonl file of records, a folder, or a Hub data set.")
    rows = read_rows(data.data, data.split, **data.format)
    if data.max_records is None:
        return rows
    return rows[: data.max_records] if isinstance(rows, list) else rows.take(data.max_records)


def _judge(args: JudgeArguments, draw: SamplingArguments) -> Any:
    from tract_trainer.engines.checkpoints import check_files
    from tract_trainer.judging.judge import Judge

    if args.model is None:
        raise InputError("--model is missing: the folder or Hub repository of a judge.")
    check_files(Path(args.model))
    return Judge.from_pretrained(
        args.model,
        args.engine,
        revision=args.revision,
        batch_size=draw.batch_size,
        model_kwargs=args.engine_settings,
        **args.asked,
    )


def sft(argv: Sequence[str]) -> None:
    data, args, output, model = parse(
        "sft",
        "Trains one stage and saves the judge.",
        argv,
        TrainingDataArguments,
        RegressionAwareSFTConfig,
        OutputArguments,
        ModelConfig,
    )
    from tract_trainer._distributed import file_lock
    from tract_trainer.cli import pipeline
    from tract_trainer.engines.checkpoints import check_files

    if model.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the folder or Hub repository of the model to train.")
    check_files(Path(model.model_name_or_path))
    folder, first = Path(args.output_dir), args.process_index == 0
    if first:
        pipeline.check_output_dir(model, args, output.overwrite)
    train_dataset = pipeline.training_data(_rows(data), args, model, data.data)
    held_out = None if data.eval_data is None else read_rows(data.eval_data, **data.format)
    eval_dataset = None if held_out is None else pipeline.training_data(held_out, args, model)
    with file_lock(folder, "_training.lock") if first else nullcontext():
        if first:
            pipeline.begin_training(model, args, train_dataset)
        pipeline.train(model, args, train_dataset, eval_dataset)


def inspect(argv: Sequence[str]) -> None:
    if argv and not argv[0].startswith("-"):
        argv = ["--data", *argv]
    # Nothing is computed or written, so a machine without a GPU will do, and a folder that cannot be written to.
    argv = [*argv, "--use_cpu", "true", "--output_dir", tempfile.gettempdir()]
    data, shown, args, model = parse(
        "inspect", "Shows what would be trained on. No weight is loaded.", argv, DataArguments, InspectArguments,
        RegressionAwareSFTConfig, ModelConfig,
    )  # fmt: skip
    from tract_trainer.cli import pipeline
    from tract_trainer.engines.checkpoints import check_files
    from tract_trainer.training.inspection import inspect_dataset, view

    if model.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the model whose tokenizer and settings count.")
    check_files(Path(model.model_name_or_path))
    dataset = pipeline.training_data(_rows(data), args, model)
    Console().print(view(inspect_dataset(dataset, args, model), shown.rows))


def generate(argv: Sequence[str]) -> None:
    data, args, draw = parse(
        "generate", "Writes the stage-2 dataset.", argv, DataArguments, GenerateArguments, SamplingArguments
    )
    from tract_trainer.cli import pipeline
    from tract_trainer.data.store import refuse_foreign
    from tract_trainer.rationales.generation import generate_cot_dataset

    if int(os.environ.get("RANK", "0")) == 0:
        folder = Path(args.output_dir)
        refuse_foreign([], args.overwrite, folders=[folder], signs=[folder / "settings.json"])
    rows, judge = _rows(data), _judge(args, draw)
    dataset = pipeline.prompts_of(rows, judge)
    generate_cot_dataset(
        judge,
        dataset,
        num_cots=draw.num_cots,
        **draw.sampling,
        seed=args.seed,
        output_dir=args.output_dir,
        max_retries=args.max_retries,
        unfinished=args.unfinished,
        overwrite=args.overwrite,
    )


def judge(argv: Sequence[str]) -> None:
    args, form, draw = parse(
        "judge", "Judges one record, or a file of them.", argv, RecordArguments, RecordFormat, SamplingArguments
    )
    from tract_trainer.cli import pipeline

    if (args.record is None) == (args.input is None) or (args.input is None) != (args.output is None):
        raise InputError("Give either --record FILE.json, or --input FILE.jsonl and --output FILE.jsonl.")
    if args.output is not None:
        pipeline.check_judged(Path(args.output), args.overwrite)
    record = None if args.record is None else read_record(args.record, **form.format)
    records = [] if args.input is None else read_rows(args.input, **form.format)
    loaded = _judge(args, draw)
    if record is not None:
        judgment = loaded.score(record, draw.num_cots, seed=args.seed, unfinished=args.unfinished, **draw.sampling)
        shown = pipeline.as_json(judgment)
        probs = [p if p is None else round(p, 4) for p in shown["probs"]]
        shown["probs"] = dict(zip(loaded.config.score_labels, probs, strict=True))
        print(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False))
        if judgment.reason:
            raise InputError(f"The record has no score. {judgment.reason}")
        return
    pipeline.judge_file(
        loaded,
        records,
        Path(args.output),
        draw.num_cots,
        seed=args.seed,
        unfinished=args.unfinished,
        overwrite=args.overwrite,
        **draw.sampling,
    )

    unscored, summary = judged_summary(Path(args.output))
    print(summary)
    if unscored == len(records) > 0:
        raise InputError("No record has a score.")


def evaluate(argv: Sequence[str]) -> None:
    data, args, draw = parse(
        "evaluate", "Compares a judge with gold scores.", argv, DataArguments, EvaluateArguments, SamplingArguments
    )
    limits = quality_limits(args.fail_under or [])
    records = records_by_name(data, args)
    paths = result_paths(args.output, list(records))
    from tract_trainer.data.store import refuse_foreign
    from tract_trainer.evaluation.evaluate import check_output
    from tract_trainer.evaluation.evaluate import evaluate as evaluate_on

    for path in paths.values():
        check_output(path, args.overwrite)
    refuse_foreign([entries_path(list(paths.values()))], args.overwrite)
    loaded = _judge(args, draw)

    results = {}
    for name, path in paths.items():
        settings = {"seed": args.seed, "unfinished": args.unfinished, "overwrite": args.overwrite, **draw.sampling}
        named = {"judge_name": args.model, "revision": commit_of(args.model, args.revision)}
        results[path] = evaluate_on(loaded, records[name], name, path, draw.num_cots, **named, **settings)
    show(results)
    if missed := [text for result in results.values() for text in missed_limits(result, limits)]:
        sys.exit(f"tract evaluate: {'; '.join(missed)}")  # with exit code 1


def quality_limits(given: Sequence[str]) -> dict[str, float]:
    """The limits of `--fail_under`, by figure."""
    from tract_trainer.hub.results import FIGURES

    limits = {}
    for text in given:
        name, _, limit = text.partition("=")
        if name not in FIGURES or not re.fullmatch(r"-?\d*\.?\d+", limit):
            raise InputError(
                f"--fail_under takes figures with limits, such as pearson=0.6; found {text!r}. The figures are "
                f"{', '.join(FIGURES)}."
            )
        limits[name] = float(limit)
    return limits


def missed_limits(result: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """A text for each figure of RAIL that is worse than its limit, or not defined."""
    from tract_trainer.metrics import ERRORS

    missed = []
    for name, limit in limits.items():
        value = result["methods"]["RAIL"].get(name)
        if value is None or (value > limit if name in ERRORS else value < limit):
            shown = "is not defined" if value is None else f"is {value:.3f}"
            missed.append(f"{result['benchmark']['name']}: {name} of RAIL {shown}, the limit is {limit:g}")
    return missed


def compare(argv: Sequence[str]) -> None:
    files = list(itertools.takewhile(lambda text: not text.startswith("-"), argv))
    (args,) = parse("compare A.json B.json", "Differences between two judges.", argv[len(files) :], CompareArguments)
    from tract_trainer.evaluation import comparison as comparing
    from tract_trainer.evaluation.evaluate import load_result
    from tract_trainer.evaluation.tables import comparison_markdown, comparison_table

    if len(files) != 2:
        raise InputError(f"Expected two results of tract evaluate, A.json B.json, got {files}.")
    a, b = map(load_result, files)
    from tract_trainer.data.store import MARK, refuse_foreign, replacing

    found, folder = comparing.compare(a, b, args.method), Path(args.output)
    table, picture = folder / "comparison.md", folder / "comparison.png"
    refuse_foreign([table, picture], args.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(table) as part:
        part.write_text(f"<!-- {MARK}: {a[MARK]} -->\n{comparison_markdown(found)}", encoding="utf-8")
    comparing.draw_comparison(found, a, b, picture)
    Console().print(comparison_table(found))
    print(f"The table and a picture are in {folder}.")


def run(argv: Sequence[str]) -> None:
    data, args, model, draw, settings = parse(
        "run",
        "Both stages and the evaluation.",
        argv,
        TrainingDataArguments,
        RegressionAwareSFTConfig,
        ModelConfig,
        SamplingArguments,
        RunArguments,
        ddp_timeout=7 * 24 * 3600,  # a process may have long rationales to write while the others wait
    )
    from accelerate import PartialState

    from tract_trainer.cli.run import HELD_OUT, run_pipeline
    from tract_trainer.evaluation.tables import results_table

    rows = list(_rows(data))
    held_out = None if data.eval_data is None else list(read_rows(data.eval_data, **data.format))
    results = run_pipeline(
        rows, held_out, args, model, draw, settings, source=data.data, eval_name=data.eval_data or HELD_OUT
    )
    path, result = results.popitem()
    show({path: result})
    if results and PartialState().is_main_process:
        (untrained,) = results.values()
        table = {
            f"{method}, {name}": figures
            for name, found in (("untrained", untrained), ("trained", result))
            for method, figures in found["methods"].items()
        }
        Console().print(results_table(table, "The seed model before training, and the judge"))


def report(argv: Sequence[str]) -> None:
    places = list(itertools.takewhile(lambda text: not text.startswith("-"), argv))
    description = "One HTML page of a run: RUN is the folder of tract run, or one with results, or one result."
    (args,) = parse("report RUN", description, argv[len(places) :], ReportArguments)
    from tract_trainer.evaluation.page import write_page

    if len(places) != 1:
        raise InputError(f"Expected the folder of a run, or the JSON file of a result, got {places}.")
    path = write_page(places[0], args.output, args.overwrite)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, opens in any browser")


def demo(argv: Sequence[str]) -> None:
    (args,) = parse("demo", "The whole pipeline on a small task.", argv, DemoArguments)
    from tract_trainer.cli.demo import run_demo

    run_demo(args.output_dir, args.seed)


def records_by_name(data: DataArguments, args: EvaluateArguments) -> dict[str, list[dict[str, Any]]]:
    """Records or pairs by the name of their benchmark."""
    names = [args.benchmark] if isinstance(args.benchmark, str) else args.benchmark or []  # YAML may give one alone
    if (not names) == (data.data is None):
        raise InputError("Give either --benchmark NAME (with --path), or --data FILE with your own scored records.")
    if data.data is None and any(data.format.values()):
        raise InputError("--columns and --rubric are for --data. Leave them out with --benchmark.")
    if len(names) > 1 and args.path is not None and not Path(args.path).is_dir():
        raise InputError(f"--path must be the folder of the {len(names)} benchmarks, found {args.path!r}.")
    if data.data is not None:
        return {data.data: own_benchmark(data.data, split=data.split, **data.format)[: data.max_records]}
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


def commit_of(model: str, revision: str | None = None) -> str | None:
    """The commit of a judge from the Hub; a folder has none."""
    from tract_trainer.engines.checkpoints import SavedJudge

    return SavedJudge.find(model, revision, weights=False).commit


def judged_summary(path: Path) -> tuple[int, str]:
    """
    The number of unscored records in what [`tract_trainer.cli.pipeline.judge_file`] wrote, and a sentence on them with
    the first reason.
    """
    with path.open(encoding="utf-8") as file:
        reasons = [json.loads(line)["reason"] for line in file]
    unscored = [reason for reason in reasons if reason]
    first = f" The first: {unscored[0]}" if unscored else ""
    return len(unscored), f"{len(reasons):,} judgments are in {path}, {len(unscored):,} of them unscored.{first}"


def entries_path(paths: Sequence[Path]) -> Path:
    """The file of the model card's entries for the results at `paths`."""
    return (
        paths[0].parent / "model-index.yaml"
        if len(paths) > 1
        else paths[0].with_name(f"{paths[0].stem}-model-index.yaml")
    )


def show(results: dict[Path, dict[str, Any]]) -> None:
    """
    Prints results of one judge, with the mean over benchmarks, and writes their entries for the model card.

    Raises:
        InputError: no record of one of them has a score.
    """
    from tract_trainer._distributed import process_state
    from tract_trainer.data.store import MARK, replacing
    from tract_trainer.evaluation.tables import results_table, summary_table
    from tract_trainer.hub.results import ceiling_remark, model_index, verdict, with_ceiling

    if not process_state().is_main_process:  # all have the same results
        return
    console, names = Console(), {path: result["benchmark"]["name"] for path, result in results.items()}
    for path, result in results.items():
        text = f"{names[path]}: {verdict(result)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print(results_table(with_ceiling(result), names[path]))
        if remark := ceiling_remark(result):
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
        text = f"Judgments and figures are in {path}, the table and the pictures beside it.\n"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    scored = [result for result in results.values() if result.get("calibration")]
    if len(scored) > 1:
        console.print(summary_table(scored))
    entries = yaml.safe_dump({"model-index": model_index(list(results.values()))}, sort_keys=False, allow_unicode=True)
    with replacing(entries_path(list(results))) as part:
        part.write_text(f"# {MARK}: {next(iter(results.values()))[MARK]}\n{entries}", encoding="utf-8")
    rails = {path: result["methods"]["RAIL"] for path, result in results.items()}
    if empty := [names[path] for path, rail in rails.items() if rail["unscored"] == rail["n"]]:
        raise InputError(f"No record of {', '.join(empty)} has a score.")
