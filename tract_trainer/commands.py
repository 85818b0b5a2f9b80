"""The bodies of the command line's commands: arguments in, a job done, a table or a file out."""

import itertools
import json
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from trl import ModelConfig

from tract_trainer.arguments import (
    CompareArguments,
    DataArguments,
    DemoArguments,
    EvaluateArguments,
    GenerateArguments,
    InspectArguments,
    JudgeArguments,
    RecordArguments,
    ReportArguments,
    SamplingArguments,
    TrainingDataArguments,
)
from tract_trainer.config import RegressionAwareSFTConfig
from tract_trainer.errors import InputError
from tract_trainer.parsing import parse
from tract_trainer.results import commit_of, judged_summary, records_by_name, result_paths, show
from tract_trainer.run_arguments import RunArguments


def _rows(data: DataArguments) -> Any:
    from tract_trainer.pipeline import load_rows

    if data.data is None:
        raise InputError("--data is missing: a .json or .jsonl file of records, a folder, or a Hub data set.")
    rows = load_rows(data.data, data.split)
    return rows if data.max_records is None else _first(rows, data.max_records)


def _first(rows: Any, count: int) -> Any:
    return rows[:count] if isinstance(rows, list) else rows.select(range(min(count, len(rows))))


def _judge(args: JudgeArguments, draw: SamplingArguments) -> Any:
    from tract_trainer.judge import Judge

    if args.model is None:
        raise InputError("--model is missing: the folder or Hub repository of a judge.")
    return Judge.from_pretrained(args.model, args.engine, batch_size=draw.batch_size, model_kwargs=args.engine_settings)


def sft(argv: Sequence[str]) -> None:
    data, args, model = parse(
        "sft",
        "Trains one stage and saves the judge.",
        argv,
        TrainingDataArguments,
        RegressionAwareSFTConfig,
        ModelConfig,
    )
    from tract_trainer import pipeline
    from tract_trainer.shards import alone, check_settings

    if model.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the folder or Hub repository of the model to train.")
    train_dataset = pipeline.training_data(_rows(data), args, model, data.data)
    held_out = None if data.eval_data is None else pipeline.load_rows(data.eval_data)
    eval_dataset = None if held_out is None else pipeline.training_data(held_out, args, model)
    # What begins with "_" is not uploaded.
    folder, first = Path(args.output_dir), args.process_index == 0
    with alone(folder, "_training.lock") if first else nullcontext():
        if first:
            path, resumed = folder / "_training.json", str(args.resume_from_checkpoint).lower() == "true"
            if not resumed:
                path.unlink(missing_ok=True)
            if not resumed or path.is_file():
                check_settings(path, pipeline.trained_with(model, args, data.data, len(train_dataset)))
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
    from tract_trainer import pipeline
    from tract_trainer.inspecting import inspect_dataset, view

    if model.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the model whose tokenizer and settings count.")
    dataset = pipeline.training_data(_rows(data), args, model)
    Console().print(view(inspect_dataset(dataset, args, model), shown.rows))


def generate(argv: Sequence[str]) -> None:
    data, args, draw = parse(
        "generate", "Writes the stage-2 dataset.", argv, DataArguments, GenerateArguments, SamplingArguments
    )
    from tract_trainer import pipeline
    from tract_trainer.cot import generate_cot_dataset

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
    )


def judge(argv: Sequence[str]) -> None:
    args, draw = parse("judge", "Judges one record, or a file of them.", argv, RecordArguments, SamplingArguments)
    from tract_trainer import pipeline
    from tract_trainer.reading import read_record, read_records

    if (args.record is None) == (args.input is None) or (args.input is None) != (args.output is None):
        raise InputError("Give either --record FILE.json, or --input FILE.jsonl and --output FILE.jsonl.")
    record = None if args.record is None else read_record(args.record)
    records = [] if args.input is None else read_records(args.input)
    loaded = _judge(args, draw)
    if record is not None:
        judgment = loaded.score(record, draw.num_cots, seed=args.seed, unfinished=args.unfinished, **draw.sampling)
        shown = pipeline.as_json(judgment)
        probs = [p if p is None else round(p, 4) for p in shown["probs"]]
        shown["probs"] = dict(zip(loaded.config.score_labels, probs, strict=True))
        print(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False))
        return
    pipeline.judge_file(
        loaded,
        records,
        Path(args.output),
        draw.num_cots,
        seed=args.seed,
        unfinished=args.unfinished,
        **draw.sampling,
    )

    print(judged_summary(Path(args.output)))


def evaluate(argv: Sequence[str]) -> None:
    data, args, draw = parse(
        "evaluate", "Compares a judge with gold scores.", argv, DataArguments, EvaluateArguments, SamplingArguments
    )
    records = records_by_name(data, args)
    paths = result_paths(args.output, list(records))
    loaded = _judge(args, draw)
    from tract_trainer.evaluation import evaluate as evaluate_on

    results = {}
    for name, path in paths.items():
        settings = {"seed": args.seed, "unfinished": args.unfinished, **draw.sampling}
        named = {"judge_name": args.model, "revision": commit_of(args.model)}
        results[path] = evaluate_on(loaded, records[name], name, path, draw.num_cots, **named, **settings)
    show(results)


def compare(argv: Sequence[str]) -> None:
    files = list(itertools.takewhile(lambda text: not text.startswith("-"), argv))
    (args,) = parse("compare A.json B.json", "Differences between two judges.", argv[len(files) :], CompareArguments)
    from tract_trainer import comparing
    from tract_trainer.report import comparison_markdown, comparison_table

    if len(files) != 2:
        raise InputError(f"Expected two results of tract evaluate, A.json B.json, got {files}.")
    a, b = map(comparing.load_result, files)
    found, folder = comparing.compare(a, b, args.method), Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(comparison_markdown(found), encoding="utf-8")
    comparing.draw_comparison(found, a, b, folder / "comparison.png")
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
    from tract_trainer.run import run_pipeline

    rows = list(_rows(data))
    result, path = run_pipeline(rows, data.eval_data, args, model, draw, settings, data.data)
    show({path: result})


def report(argv: Sequence[str]) -> None:
    places = list(itertools.takewhile(lambda text: not text.startswith("-"), argv))
    description = "One HTML page of a run: RUN is the folder of tract run, or one with results, or one result."
    (args,) = parse("report RUN", description, argv[len(places) :], ReportArguments)
    from tract_trainer.page import write_page

    if len(places) != 1:
        raise InputError(f"Expected the folder of a run, or the JSON file of a result, got {places}.")
    path = write_page(places[0], args.output)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, opens in any browser")


def demo(argv: Sequence[str]) -> None:
    (args,) = parse("demo", "The whole pipeline on a small task.", argv, DemoArguments)
    from tract_trainer.demo import run_demo

    run_demo(args.output_dir, args.seed)
