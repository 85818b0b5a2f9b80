"""A function for each command: settings in, a table or a file out."""

import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from rich.console import Console
from trl import ModelConfig

from tract_trainer._distributed import file_lock, process_state
from tract_trainer.cli import arguments, pipeline
from tract_trainer.cli.demo import run_demo
from tract_trainer.cli.parsing import parse
from tract_trainer.cli.run import run_pipeline
from tract_trainer.data.benchmarks import load_benchmark, own_benchmark
from tract_trainer.data.reading import read_record, read_rows
from tract_trainer.data.store import MARK, refuse_foreign, replacing
from tract_trainer.engines.checkpoints import SavedJudge
from tract_trainer.errors import InputError
from tract_trainer.evaluation import comparison, tables
from tract_trainer.evaluation.breakdown import broken_down, check_columns
from tract_trainer.evaluation.calibration import cross_fitted_effect, fit
from tract_trainer.evaluation.columns import column_results
from tract_trainer.evaluation.evaluate import check_output, load_result, save, short_columns
from tract_trainer.evaluation.evaluate import evaluate as evaluate_judge
from tract_trainer.evaluation.page import write_page
from tract_trainer.hub.results import FIGURES, GIVEN, main_method, model_index, remarks, verdict, with_ceiling
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.metrics import ERRORS
from tract_trainer.rationales.generation import generate_cot_dataset
from tract_trainer.scale import ScoreScale
from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig
from tract_trainer.training.inspection import inspect_dataset, view

WEEK = 7 * 24 * 3600  # seconds


def _say(text: str) -> None:
    """Prints a text as it is, on lines of any length."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _judge(args: arguments.JudgeArguments, draw: arguments.SamplingArguments) -> Judge:
    if args.model is None:
        raise InputError("--model is missing: the folder or Hub repository of a judge.")
    return Judge.from_pretrained(args.model, batch_size=draw.batch_size, **args.loading)


def _positional(argv: Sequence[str]) -> list[str]:
    return list(itertools.takewhile(lambda word: not word.startswith("-"), argv))


def sft(argv: Sequence[str]) -> None:
    kinds = (arguments.TrainingDataArguments, RegressionAwareSFTConfig, arguments.OutputArguments, ModelConfig)
    _train(*parse("sft", argv, *kinds))


def grpo(argv: Sequence[str]) -> None:
    kinds = (arguments.TrainingDataArguments, RegressionAwareGRPOConfig, arguments.OutputArguments, ModelConfig)
    _train(*parse("grpo", argv, *kinds))


def _train(
    data: arguments.TrainingDataArguments,
    args: pipeline.TrainingConfig,
    output: arguments.OutputArguments,
    model: ModelConfig,
) -> None:
    pipeline.check_seed(model)
    first = args.process_index == 0
    if first:
        pipeline.check_output_dir(model, args, output.overwrite)
    train_dataset = pipeline.training_data(data.rows(), args, model, data.data)
    held_out = data.eval_rows()
    eval_dataset = None if held_out is None else pipeline.training_data(held_out, args, model)
    with file_lock(Path(str(args.output_dir)), "_training.lock") if first else nullcontext():
        if first:
            pipeline.begin_training(model, args, train_dataset)
        pipeline.train(model, args, train_dataset, eval_dataset)


def inspect(argv: Sequence[str]) -> None:
    if _positional(argv):
        argv = ["--data", *argv]
    # Nothing is computed or written, so a machine without a GPU will do, and a folder that cannot be written to.
    argv = [*argv, "--use_cpu", "true", "--output_dir", tempfile.gettempdir()]
    kinds = (arguments.DataArguments, arguments.InspectArguments, RegressionAwareSFTConfig, ModelConfig)
    data, shown, args, model = parse("inspect", argv, *kinds, positional="DATA ")
    pipeline.check_seed(model)
    dataset = pipeline.training_data(data.rows(), args, model)
    Console().print(view(inspect_dataset(dataset, args, model), shown.rows))


def generate(argv: Sequence[str]) -> None:
    kinds = (arguments.DataArguments, arguments.GenerateArguments, arguments.SamplingArguments)
    data, args, draw = parse("generate", argv, *kinds)
    if int(os.environ.get("RANK", "0")) == 0:
        folder = Path(args.output_dir)
        refuse_foreign([], args.overwrite, folders=[folder], signs=[folder / "settings.json"])
    rows, judge = data.rows(), _judge(args, draw)
    generate_cot_dataset(
        judge,
        pipeline.prompts_of(rows, judge),
        num_cots=draw.num_cots,
        **draw.sampling,
        seed=args.seed,
        output_dir=args.output_dir,
        max_retries=args.max_retries,
        unfinished=args.unfinished,
        overwrite=args.overwrite,
    )


def judge(argv: Sequence[str]) -> None:
    kinds = (arguments.RecordArguments, arguments.RecordFormat, arguments.SamplingArguments)
    args, form, draw = parse("judge", argv, *kinds)
    if (args.record is None) == (args.input is None) or (args.input is None) != (args.output is None):
        raise InputError("Give either --record FILE.json, or --input FILE.jsonl and --output FILE.jsonl.")
    settings = {"seed": args.seed, "unfinished": args.unfinished, "calibrated": args.calibrated, **draw.sampling}
    if args.record is not None:
        record = read_record(args.record, **form.format)
        _print_judgment(_judge(args, draw), record, draw.num_cots, settings, args.max_std)
        return
    path = Path(args.output)
    pipeline.check_judged(path, args.overwrite)
    records = read_rows(args.input, **form.format)
    pipeline.judge_file(_judge(args, draw), records, path, draw.num_cots, overwrite=args.overwrite, **settings)
    rows = pipeline.judged_rows(path, args.max_std)
    reasons = [row["reason"] for row in rows if row["reason"]]
    why = f" The first: {reasons[0]}" if reasons else ""
    print(f"{len(records):,} judgments are in {path}, {len(reasons):,} of them unscored.{why}")
    if args.max_std is not None:
        count = sum(row["needs_review"] for row in rows)
        print(f"{count:,} of {len(rows):,} need review: their std is above {args.max_std:g}, or they are unscored.")
    if len(reasons) == len(records):
        raise InputError("No record has a score.")


def _print_judgment(judge: Judge, record: Any, num_cots: int, settings: dict[str, Any], max_std: float | None) -> None:
    judgment = judge.score(record, num_cots, **settings)
    shown = pipeline.marked(pipeline.as_json(judgment), max_std)
    probs = [p if p is None else round(p, 4) for p in shown["probs"]]
    shown["probs"] = dict(zip(judge.config.score_labels, probs, strict=True))
    print(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False))
    if judgment.reason:
        raise InputError(f"The record has no score. {judgment.reason}")


def evaluate(argv: Sequence[str]) -> None:
    kinds = (arguments.DataArguments, arguments.EvaluateArguments, arguments.SamplingArguments)
    data, args, draw = parse("evaluate", argv, *kinds)
    limits, by = _limits(args.fail_under or []), args.by or []
    records = _scored_records(data, args)
    for scored in records.values():
        check_columns([] if "chosen" in scored[0] else short_columns(scored), by)
    paths = _result_paths(args.output, list(records))
    for path in paths.values():
        check_output(path, args.overwrite)
    refuse_foreign([_entries_path(list(paths.values()))], args.overwrite)
    judge = _judge(args, draw)
    served = judge.engine.tokens is None  # by its name alone
    commit = None if served else SavedJudge.find(args.model, args.revision, weights=False).commit
    named = {"judge_name": args.model, "revision": commit}
    settings = {"seed": args.seed, "unfinished": args.unfinished, "overwrite": args.overwrite, **draw.sampling}
    results = {
        path: evaluate_judge(judge, records[name], name, path, draw.num_cots, **named, **settings)
        for name, path in paths.items()
    }
    if by:
        results = {path: broken_down(result, by) for path, result in results.items()}
        for path, result in results.items() if process_state().is_main_process else ():
            save(result, path)
    _show(results)
    if missed := [text for result in results.values() for text in _missed(result, limits, args.strict)]:
        sys.exit(f"tract evaluate: {'; '.join(missed)}")  # with exit code 1


def _limits(given: Sequence[str]) -> dict[str, float]:
    """The limits of `--fail_under`, by figure."""
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


def _missed(result: dict[str, Any], limits: dict[str, float], strict: bool) -> list[str]:
    """
    A text for each figure of RAIL that is worse than its limit, or not defined; if `strict`, for each whose interval
    ends on the worse side of the limit.
    """
    missed, figures, end = [], result["methods"]["RAIL"], ""
    for name, limit in limits.items():
        value = figures.get(name)
        if strict:
            end = f"the {'upper' if name in ERRORS else 'lower'} end of the 95 % interval of "
            value = (figures.get(f"{name}_ci") or (None, None))[name in ERRORS]
        if value is None or (value > limit if name in ERRORS else value < limit):
            shown = "is not defined" if value is None else f"is {value:.3f}"
            missed.append(f"{result['benchmark']['name']}: {end}{name} of RAIL {shown}, the limit is {limit:g}")
    return missed


def _scored_records(data: arguments.DataArguments, args: arguments.EvaluateArguments) -> dict[str, list[Any]]:
    """Records or pairs by the name of their benchmark."""
    names = args.benchmark or []
    if (not names) == (data.data is None):
        raise InputError("Give either --benchmark NAME (with --path), or --data FILE with your own scored records.")
    if data.data is not None:
        return {data.data: own_benchmark(data.data, split=data.split, **data.format)[: data.max_records]}
    if data.columns:
        raise InputError("--columns is for --data. Leave it out with --benchmark.")
    if len(names) > 1 and args.path is not None and not Path(args.path).is_dir():
        raise InputError(f"--path must be the folder of the {len(names)} benchmarks, found {args.path!r}.")
    return {name: load_benchmark(name, args.path, data.format["rubric"])[: data.max_records] for name in names}


def _result_paths(output: str, names: Sequence[str]) -> dict[str, Path]:
    """The JSON file of each benchmark's result: `output` itself, or one in it, named after the benchmark."""
    if output.endswith(".json"):
        if len(names) > 1:
            raise InputError(f"--output {output} is one file, and {len(names)} results have one each. Give a folder.")
        return {names[0]: Path(output)}
    stems = {name: re.sub(r"[^\w.-]+", "-", Path(name).name.removesuffix(Path(name).suffix)) for name in names}
    return {name: Path(output) / f"{stem.strip('.-')[:100] or 'data'}.json" for name, stem in stems.items()}


def _entries_path(paths: Sequence[Path]) -> Path:
    """The file of the model card's entries for the results at `paths`."""
    name = "model-index.yaml" if len(paths) > 1 else f"{paths[0].stem}-model-index.yaml"
    return paths[0].with_name(name)


def _show(results: dict[Path, dict[str, Any]]) -> None:
    """
    Prints results of one judge, with the mean over benchmarks, and writes their entries for the model card.

    Raises:
        InputError: no record of one of them has a score.
    """
    if not process_state().is_main_process:  # all have the same results
        return
    console, named = Console(), {result["benchmark"]["name"]: result for result in results.values()}
    for path, (name, result) in zip(results, named.items(), strict=True):
        _say(f"{name}: {verdict(result)}")
        console.print(tables.results_table(with_ceiling(result), name))
        for remark in remarks(result):
            _say(remark)
        for table in tables.tables_below(result):
            console.print("", table)
        _say(f"Judgments and figures are in {path}, the table and the pictures beside it.\n")
    if len(scored := [result for result in named.values() if result.get("calibration")]) > 1:
        console.print(tables.summary_table(scored))
    entries = yaml.safe_dump({"model-index": model_index(list(named.values()))}, sort_keys=False, allow_unicode=True)
    with replacing(_entries_path(list(results))) as part:
        part.write_text(f"# {MARK}: {next(iter(named.values()))[MARK]}\n{entries}", encoding="utf-8")
    if empty := [name for name, result in named.items() if _is_empty(result)]:
        raise InputError(f"No record of {', '.join(empty)} has a score.")


def calibrate(argv: Sequence[str]) -> None:
    files = _positional(argv)
    (args,) = parse("calibrate", argv[len(files) :], arguments.CalibrateArguments, positional="RESULT.json ")
    if len(files) != 1:
        raise InputError(f"Expected a result of tract evaluate, RESULT.json, got {files}.")
    if args.model is None or not Path(args.model).is_dir():
        raise InputError(f"--model must be the folder of the judge, to save the map in it; found {args.model!r}.")
    result, config = load_result(files[0]), JudgeConfig.load(args.model)
    found = fit(result, config, SavedJudge.find(args.model).identity)
    Console().print(tables.comparison_table(cross_fitted_effect(result)))
    replace(config, calibration=found).save(args.model)
    print(
        "Each record's score in A is mapped by a fit on records of other groups.\n"
        f"The map, fitted on all records, is in {Path(args.model) / 'judge_config.json'}. Apply it with tract judge "
        "--calibrated, or judge.score(..., calibrated=True)."
    )


def compare(argv: Sequence[str]) -> None:
    files = _positional(argv)
    (args,) = parse("compare", argv[len(files) :], arguments.CompareArguments, positional="A.json B.json ")
    if len(files) != 2:
        raise InputError(f"Expected two results of tract evaluate, A.json B.json, got {files}.")
    a, b = map(load_result, files)
    found, folder = comparison.compare(a, b, args.method), Path(args.output)
    table = folder / "comparison.md"
    refuse_foreign([table, table.with_suffix(".png")], args.overwrite)
    _save_comparison(found, a, b, table)
    Console().print(tables.comparison_table(found))
    print(f"The table and a picture are in {folder}.")


def _save_comparison(found: dict[str, Any], a: dict[str, Any], b: dict[str, Any], table: Path) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    with replacing(table) as part:
        part.write_text(f"<!-- {MARK}: {a[MARK]} -->\n{tables.comparison_markdown(found)}", encoding="utf-8")
    comparison.draw_comparison(found, a, b, table.with_suffix(".png"))


def agree(argv: Sequence[str]) -> None:
    if _positional(argv):
        argv = ["--data", *argv]
    data, args = parse("agree", argv, arguments.DataArguments, arguments.AgreeArguments, positional="DATA ")
    rows, names = data.rows(), args.prediction or []
    if not names:
        raise InputError("--prediction is missing: columns of predicted scores, e.g. --prediction gpt4 human.")
    paths = {} if args.output is None else _column_paths(args.output, names, args.overwrite)
    scale = None if args.score_labels is None else ScoreScale(args.score_labels)
    results = column_results(rows, args.gold, names, name=Path(str(data.data)).name, scale=scale)
    results = {name: broken_down(result, args.by or []) for name, result in results.items()}
    first = results[names[0]]
    compared = {name: comparison.compare(first, results[name]) for name in names[1:]}
    _show_columns(results, compared)
    for name, path in paths.items():
        save(results[name], path)
    for name, found in compared.items() if paths else ():
        _save_comparison(found, first, results[name], _difference_path(paths[names[0]], paths[name]))
    if paths:
        print(f"Results, tables and pictures are in {args.output}.")
    if empty := [name for name, result in results.items() if _is_empty(result)]:
        raise InputError(f"No record has a score in {', '.join(map(repr, empty))}.")


def _is_empty(result: dict[str, Any]) -> bool:
    """Whether no record of a result has a score."""
    figures = result["methods"][main_method(result)]
    return bool(figures["unscored"] == figures["n"])


def _difference_path(a: Path, b: Path) -> Path:
    """The table of result `a` minus `b`; its picture is beside it."""
    return a.with_name(f"{a.stem}-minus-{b.stem}.md")


def _column_paths(output: str, names: Sequence[str], overwrite: bool) -> dict[str, Path]:
    """The JSON file of each column's result, after an InputError if something else would be replaced."""
    paths = dict(zip(names, _result_paths(output, [f"{name}.json" for name in names]).values(), strict=True))
    if len(set(paths.values())) < len(names):
        raise InputError(f"The columns {list(names)} have the same names as files. Rename them with --columns.")
    for path in paths.values():
        check_output(path, overwrite)
        if path.exists() and not overwrite and GIVEN not in load_result(path)["methods"]:
            raise InputError(f"{path} has judgments of a judge. Give another output, or use --overwrite true.")
    tables = [_difference_path(paths[names[0]], paths[name]) for name in names[1:]]
    refuse_foreign([path.with_suffix(end) for path in tables for end in (".md", ".png")], overwrite)
    return paths


def _show_columns(results: dict[str, dict[str, Any]], compared: dict[str, dict[str, Any]]) -> None:
    """Prints results of the same rows together, and the comparisons with the first of them."""
    console, (first, *_) = Console(), results.values()
    for name, result in results.items():
        _say(f"{name}: {verdict(result)}")
    methods = {name: result["methods"][GIVEN] for name, result in results.items()}
    console.print(tables.results_table(with_ceiling({**first, "methods": methods}), first["benchmark"]["name"]))
    for remark in dict.fromkeys(remark for result in results.values() for remark in remarks(result)):
        _say(remark)
    for name, result in results.items():
        for table in tables.tables_below(result):
            _say(f"\n{name}")
            console.print(table)
    for found in compared.values():
        console.print("", tables.comparison_table(found))


def run(argv: Sequence[str]) -> None:
    ours = (arguments.SamplingArguments, arguments.RunArguments)
    kinds = (arguments.TrainingDataArguments, RegressionAwareSFTConfig, ModelConfig, *ours)
    # A process may write long rationales while the others wait.
    data, args, model, draw, settings = parse("run", argv, *kinds, ddp_timeout=WEEK)
    results = run_pipeline(data, args, model, draw, settings)
    *_, last = results
    _show({last: results[last]})
    if len(results) > 1 and PartialState().is_main_process:
        names = {"baseline": "untrained", "evaluation": "stage 2", "stage3": "stage 3"}
        table = {
            f"{method}, {names[path.stem]}": figures
            for path, found in results.items()
            for method, figures in found["methods"].items()
        }
        Console().print(tables.results_table(table, "The judges of this run"))


def report(argv: Sequence[str]) -> None:
    places = _positional(argv)
    (args,) = parse("report", argv[len(places) :], arguments.ReportArguments, positional="RUN ")
    if len(places) != 1:
        raise InputError(f"Expected the folder of a run, or the JSON file of a result, got {places}.")
    path = write_page(places[0], args.output, args.overwrite)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, opens in any browser")


def demo(argv: Sequence[str]) -> None:
    (args,) = parse("demo", argv, arguments.DemoArguments)
    run_demo(args.output_dir, args.seed)
