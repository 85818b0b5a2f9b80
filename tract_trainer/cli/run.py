"""`tract run`: stage 1, its own rationales, stage 2 from the seed model, and the evaluation, in one go.

Each step leaves a folder and is skipped when its folder is complete, so an interrupted run resumes where it stopped.
"""

import copy
import itertools
import json
import random
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from rich.console import Console
from trl import ModelConfig, get_quantization_config

from tract_trainer._distributed import file_lock, refuse_sharding
from tract_trainer.cli import pipeline
from tract_trainer.cli.arguments import RunArguments, SamplingArguments
from tract_trainer.data.benchmarks import check_scale, scored_records
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import Record, check_prompts, prompt_of
from tract_trainer.data.settings import check_settings
from tract_trainer.data.store import refuse_foreign
from tract_trainer.engines.base import checked, engine_class
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.hub.card import add_results
from tract_trainer.hub.pushing import push_judge
from tract_trainer.judge_config import DEFAULT_TEMPLATE, JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.rationales.generation import generate_cot_dataset
from tract_trainer.training.config import RegressionAwareSFTConfig

HELD_OUT = "held-out records"


def run_pipeline(
    rows: list[Record],
    eval_rows: list[Record] | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    draw: SamplingArguments,
    settings: RunArguments,
    *,
    source: str | None = None,
    eval_name: str = HELD_OUT,
) -> dict[Path, dict[str, Any]]:
    """
    Runs both stages and the evaluation under `args.output_dir`: `stage1/`, `cots/`, `stage2/`, `evaluation.json`, and
    with `settings.baseline` first `baseline.json`, the evaluation of the seed model. With `args.push_to_hub`, the judge
    of stage 2 is pushed, its card with the evaluation.

    Args:
        rows (`list[Mapping]`), eval_rows (`list[Mapping]`, *optional*): records to train and to evaluate on; by
            default, some of `rows` are held out.
        source (`str`, *optional*), eval_name (`str`, *optional*): names of the two in the card and in the result.

    Returns:
        `dict[Path, dict]`: results of the evaluations by their files; that of the judge is the last.
    """
    if model.model_name_or_path is None:
        raise InputError("model_name_or_path is missing: the folder or Hub repository of the seed model.")
    _check_later_steps(args, draw, settings)
    folder, main = Path(str(args.output_dir)), PartialState().is_main_process
    if main:
        refuse_foreign([], settings.overwrite, folders=[folder], signs=[folder / "settings.json"])
    held_out, training, dataset = _data(rows, eval_rows, args, model, settings, source)
    made_with = _settings(rows, eval_rows, args, model, settings)
    made_with["seed_model"] = pipeline.seed_identity(model)
    console, results = Console(quiet=not main), {}

    def evaluated(judge: Judge, name: str, path: Path) -> None:
        results[path] = evaluate(
            judge,
            held_out,
            eval_name,
            path,
            draw.num_cots,
            judge_name=name,
            seed=args.seed,
            unfinished="force" if settings.unfinished == "force" else "unscored",
            **draw.sampling,
        )

    with file_lock(folder, ".lock") if main else nullcontext():
        with PartialState().main_process_first():
            if main and settings.overwrite:
                _start_over(folder)
            check_settings(folder / "settings.json", made_with, *(folder / step for step in STEPS))
            _check_rationales(folder, draw, settings, begin=False)
        if settings.baseline:
            console.print(f"[0/4] Evaluation of the seed model on {len(held_out):,} held-out records")
            evaluated(_seed_judge(args, model, draw, settings), str(model.model_name_or_path), folder / "baseline.json")
        console.print(f"[1/4] Stage 1 on {len(dataset):,} annotated rationales of {len(training):,} records")
        _stage(folder / "stage1", model, args, dataset)
        cots = _rationales(folder, dataset, args, model, draw, settings, console)
        console.print(f"[3/4] Stage 2, from the seed model, on {len(cots):,} of them")
        with PartialState().main_process_first():
            _check_rationales(folder, draw, settings, begin=True)
            _check_seed(model, made_with["seed_model"])
        own = copy.copy(args)
        if args.missing_score == "error":
            own.missing_score = "drop"  # a generated rationale may exceed max_length, which cannot change any more
        _stage(folder / "stage2", model, own, cots, push=bool(args.push_to_hub))
        console.print(f"[4/4] Evaluation on {len(held_out):,} held-out records")
        judge = _judge(folder / "stage2", args, model, draw, settings)
        evaluated(judge, str(folder / "stage2"), folder / "evaluation.json")
        if main:
            _publish(folder / "stage2", results[folder / "evaluation.json"], args)
        return results


def _rationales(
    folder: Path,
    dataset: Dataset,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    draw: SamplingArguments,
    settings: RunArguments,
    console: Console,
) -> Dataset:
    """The stage-2 dataset, written by the judge of stage 1."""
    if settings.max_cot_records is not None:
        dataset = dataset.take(settings.max_cot_records)
    console.print(f"[2/4] {draw.num_cots * len(dataset):,} self-generated rationales")
    return generate_cot_dataset(
        _judge(folder / "stage1", args, model, draw, settings),
        dataset,
        num_cots=draw.num_cots,
        **draw.sampling,
        seed=args.seed,
        output_dir=folder / "cots",
        max_retries=settings.max_retries,
        unfinished=settings.unfinished,
    )


def _check_seed(model: ModelConfig, identity: str) -> None:
    if pipeline.seed_identity(model) != identity:
        raise InputError(
            f"The files of the seed model {model.model_name_or_path} have changed since stage 1, and stage 2 must "
            "start from the same model. Put them back, or give another output_dir."
        )


STEPS = ("baseline.json", "stage1", "cots", "stage2", "evaluation.json")

MADE = (
    *STEPS,
    "stage1.done",
    "stage2.done",
    "stage2.settings.json",
    "baseline.unfinished",
    "evaluation.unfinished",
    "settings.json",
)


def _start_over(folder: Path) -> None:
    """Deletes what a run left."""
    for path in (folder / name for name in MADE):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _check_later_steps(args: RegressionAwareSFTConfig, draw: SamplingArguments, settings: RunArguments) -> None:
    """Refuses now what a later step would refuse, after hours of training."""
    if draw.num_cots < 1:
        raise InputError(f"num_cots must be at least 1, got {draw.num_cots}: stage 2 is trained on rationales.")
    checked(draw.num_cots, "unscored", draw.sampling)
    if find_spec(settings.engine) is None:
        engine_class(settings.engine)  # says what to install
    refuse_sharding()
    if by := [name for name in ("deepspeed", "fsdp") if getattr(args, name)]:
        raise InputError(
            f"tract run writes rationales with the whole model in each process, and {by[0]} shards it. Take the steps "
            "one by one: tract sft that way, tract generate without it, tract sft again."
        )


def _data(
    rows: list[Record],
    eval_rows: list[Record] | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    settings: RunArguments,
    source: str | None,
) -> tuple[list[dict[str, Any]], list[Record], Dataset]:
    """Records to evaluate on, records to train on, and their dataset: each as every later step can use it."""
    held_out, training = _split(rows, eval_rows, settings.eval_fraction, args.seed)
    if settings.max_eval_records is not None:
        held_out = held_out[: settings.max_eval_records]
    check_scale(held_out, args.scale)
    prompt = partial(
        prompt_of, scale=args.scale, prefix=args.score_prefix, template=args.prompt_template or DEFAULT_TEMPLATE
    )
    check_prompts(held_out, prompt)
    dataset = pipeline.training_data(training, args, model, source)
    if not {"prompt", "messages"} & set(dataset.column_names):
        raise InputError(
            f"Stage 2 needs prompts to write rationales for, and the rows have {dataset.column_names}. Give records, "
            "or rows with `prompt` and `completion` or `messages`; `tract sft` trains a single stage on these."
        )
    return held_out, training, dataset


def _publish(folder: Path, result: dict[str, Any], args: RegressionAwareSFTConfig) -> None:
    add_results(folder, result)
    if args.push_to_hub:
        push_judge(
            folder,
            args.hub_model_id or folder.parent.resolve().name,
            token=args.hub_token,
            private=args.hub_private_repo,
            revision=args.hub_revision,
        )


# Parts of names of training arguments that do not change what is learned: they log, save, place or load.
NOT_LEARNED = (
    "log", "report", "hub", "save", "eval", "project", "output_dir", "run_name", "tqdm", "use_cpu", "resume",
    "num_proc", "ddp", "fsdp", "deepspeed", "local_rank", "accelerator", "tracking", "trackio",
    "num_workers", "pin_memory", "prefetch", "persistent",
)  # fmt: skip


def _settings(
    rows: list[Record],
    eval_rows: list[Record] | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    settings: RunArguments,
) -> dict[str, Any]:
    """What stage 1 and all after it depend on, as JSON."""
    found = {name: value for name, value in args.to_dict().items() if not any(word in name for word in NOT_LEARNED)}
    found |= {"eos_token": args.eos_token, "pad_token": args.pad_token}  # `to_dict` hides what ends in "_token"
    found |= asdict(model) | {"data": digest(rows), "eval_data": None if eval_rows is None else digest(eval_rows)}
    found |= {"eval_fraction": settings.eval_fraction}
    return _as_json(found)


def _check_rationales(folder: Path, draw: SamplingArguments, settings: RunArguments, begin: bool) -> None:
    """How rationales are drawn, and which are kept, may change until stage 2 begins, which is trained on them."""
    path = folder / "stage2.settings.json"
    if begin or path.exists():
        made_with = asdict(draw) | asdict(settings)
        for name in ("baseline", "batch_size", "max_eval_records", "eval_fraction", "overwrite"):
            del made_with[name]
        check_settings(path, _as_json(made_with), folder / "stage2")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str), object_hook=_without_token)  # type: ignore[no-any-return]


def _without_token(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of models may hold an access token, which is nobody else's business."""
    return {name: value for name, value in settings.items() if name not in ("token", "use_auth_token", "api_key")}


def _split(
    rows: list[Record], eval_rows: list[Record] | None, eval_fraction: float, seed: int
) -> tuple[list[dict[str, Any]], list[Record]]:
    """Held-out records with their gold scores, and the others."""
    if eval_rows is not None:
        return scored_records(eval_rows), rows
    if not 0 < eval_fraction < 1:
        raise InputError(f"eval_fraction must be between 0 and 1, got {eval_fraction}; or give eval_data.")
    copies: dict[str, list[int]] = {}  # the same record twice is not to be learned from and held out
    for number, row in enumerate(rows):
        copies.setdefault(digest(row), []).append(number)
    order = list(copies.values())
    random.Random(seed).shuffle(order)
    count = max(1, round(eval_fraction * len(order)))
    if count >= len(order):
        raise InputError(f"{len(order)} records are too few to hold {count} out for the evaluation. Give eval_data.")
    held_out, training = (sorted(itertools.chain(*part)) for part in (order[:count], order[count:]))
    return scored_records([rows[i] for i in held_out]), [rows[i] for i in training]


def _stage(
    folder: Path, model: ModelConfig, args: RegressionAwareSFTConfig, dataset: Dataset, push: bool = False
) -> None:
    """Trains a stage unless it is done, as a file beside its folder says: what lies in it may be of a checkpoint."""
    done = folder.with_name(f"{folder.name}.done")
    if done.exists():
        return
    args = copy.copy(args)
    args.output_dir, args.resume_from_checkpoint = str(folder), "true"  # the settings have been compared
    args.push_to_hub, args.hub_model_id = push, args.hub_model_id or folder.parent.resolve().name
    pipeline.train(model, args, dataset)
    if PartialState().is_main_process:
        done.touch()
    clear_device_cache(garbage_collection=True)  # the next step loads a model of its own


def _judge(
    folder: Path, args: RegressionAwareSFTConfig, model: ModelConfig, draw: SamplingArguments, settings: RunArguments
) -> Judge:
    """The judge saved in `folder`, quantised as it was trained where Transformers runs it."""
    kwargs = _model_kwargs(args, model, settings)
    return Judge.from_pretrained(folder, settings.engine, batch_size=draw.batch_size, model_kwargs=kwargs)


def _seed_judge(
    args: RegressionAwareSFTConfig, model: ModelConfig, draw: SamplingArguments, settings: RunArguments
) -> Judge:
    """The untrained seed model, asked as the judge will be."""
    name, revision = str(model.model_name_or_path), model.model_revision
    asked: dict[str, Any] = {
        "scale": args.scale,
        "score_prefix": args.score_prefix,
        "prompt_template": args.prompt_template,
        "chat_template_kwargs": args.template_kwargs,
    }
    try:
        JudgeConfig.load(name, revision)
    except FileNotFoundError:
        pass
    else:
        asked = {}  # a judge already, which says itself how it is asked
    kwargs = _model_kwargs(args, model, settings)
    return Judge.from_pretrained(
        name, settings.engine, revision=revision, batch_size=draw.batch_size, model_kwargs=kwargs, **asked
    )


def _model_kwargs(args: RegressionAwareSFTConfig, model: ModelConfig, settings: RunArguments) -> dict[str, Any]:
    trusted: dict[str, Any] = {"trust_remote_code": True} if args.trust_remote_code else {}
    quantization = get_quantization_config(model)
    quantized = settings.engine == "transformers" and quantization is not None
    return trusted | ({"quantization_config": quantization} if quantized else {}) | settings.engine_settings
