"""Turns records into a judge in one go: stage 1, its own rationales, stage 2 from the seed model, the evaluation.

Each step leaves a folder and is skipped when its folder is complete, so an interrupted run goes on where it stopped.
"""

import copy
import itertools
import json
import random
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
from tract_trainer.data.datasets import load_rows
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import Record, check_prompts, prompt_of
from tract_trainer.data.settings import check_settings
from tract_trainer.engines.base import checked, engine_class
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import check_output, evaluate
from tract_trainer.hub.card import add_results
from tract_trainer.hub.pushing import push_judge
from tract_trainer.judge_config import DEFAULT_TEMPLATE
from tract_trainer.judging.judge import Judge
from tract_trainer.rationales.generation import generate_cot_dataset
from tract_trainer.training.config import RegressionAwareSFTConfig


def run_pipeline(
    rows: list[Record],
    eval_data: str | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    draw: SamplingArguments,
    settings: RunArguments,
    source: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """
    Runs both stages and the evaluation under `args.output_dir`: `stage1/`, `cots/`, `stage2/`, `evaluation.json`. With
    `args.push_to_hub`, the judge of stage 2 is pushed, its card with the evaluation. The card names the data after its
    `source`.

    Returns:
        The evaluation's result and its path.
    """
    if model.model_name_or_path is None:
        raise InputError("model_name_or_path is missing: the folder or Hub repository of the seed model.")
    _check_later_steps(args, draw, settings)
    held_out, training, dataset = _data(rows, eval_data, args, model, settings, source)
    folder = Path(str(args.output_dir))
    check_output(folder / "evaluation.json")
    with file_lock(folder, ".lock") if PartialState().is_main_process else nullcontext():
        console = Console(quiet=not PartialState().is_main_process)
        steps = [folder / name for name in ("stage1", "cots", "stage2", "evaluation.json")]
        with PartialState().main_process_first():
            check_settings(folder / "settings.json", _settings(rows, eval_data, args, model, settings), *steps)
            _check_rationales(folder, draw, settings, begin=False)
        console.print(f"[1/4] Stage 1 on {len(dataset):,} annotated rationales of {len(training):,} records")
        _stage(folder / "stage1", model, args, dataset)
        prompts = dataset
        if settings.max_cot_records is not None:
            prompts = dataset.select(range(min(settings.max_cot_records, len(dataset))))
        console.print(f"[2/4] {draw.num_cots * len(prompts):,} rationales of its own")
        cots = generate_cot_dataset(
            _judge(folder / "stage1", model, draw, settings, args.trust_remote_code),
            prompts,
            num_cots=draw.num_cots,
            **draw.sampling,
            seed=args.seed,
            output_dir=folder / "cots",
            max_retries=settings.max_retries,
            unfinished=settings.unfinished,
        )
        console.print(f"[3/4] Stage 2, from the seed model, on {len(cots):,} of them")
        with PartialState().main_process_first():
            _check_rationales(folder, draw, settings, begin=True)
        own = copy.copy(args)
        if args.missing_score == "error":
            own.missing_score = "drop"  # a rationale of its own may be too long for max_length, which is settled by now
        _stage(folder / "stage2", model, own, cots, push=bool(args.push_to_hub))
        console.print(f"[4/4] Evaluation on {len(held_out):,} held-out records")
        judge = _judge(folder / "stage2", model, draw, settings, args.trust_remote_code)
        path = folder / "evaluation.json"
        result = evaluate(
            judge,
            held_out,
            eval_data or "held-out records",
            path,
            draw.num_cots,
            judge_name=str(folder / "stage2"),
            seed=args.seed,
            unfinished="force" if settings.unfinished == "force" else "unscored",
            **draw.sampling,
        )
        if PartialState().is_main_process:
            _publish(folder / "stage2", result, args)
        return result, path


def _check_later_steps(args: RegressionAwareSFTConfig, draw: SamplingArguments, settings: RunArguments) -> None:
    """Refuses now what a later step would refuse, after hours of training."""
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
    eval_data: str | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    settings: RunArguments,
    source: str | None,
) -> tuple[list[dict[str, Any]], list[Record], Dataset]:
    """Records to evaluate on, records to train on, and their dataset: each as every later step can use it."""
    held_out, training = _split(rows, eval_data, settings.eval_fraction, args.seed)
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


# Words in the names of training arguments that say how to log, save, place or load, not what is learned.
NOT_LEARNED = (
    "log", "report", "hub", "save", "eval", "project", "output_dir", "run_name", "tqdm", "use_cpu", "resume",
    "num_proc", "ddp", "fsdp", "deepspeed", "local_rank", "accelerator", "tracking", "trackio",
    "num_workers", "pin_memory", "prefetch", "persistent",
)  # fmt: skip


def _settings(
    rows: list[Record],
    eval_data: str | None,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    settings: RunArguments,
) -> dict[str, Any]:
    """What stage 1 and all after it depend on, as JSON."""
    found = {name: value for name, value in args.to_dict().items() if not any(word in name for word in NOT_LEARNED)}
    found |= {"eos_token": args.eos_token, "pad_token": args.pad_token}  # `to_dict` hides what ends in "_token"
    found |= asdict(model) | {"data": digest(rows), "eval_data": eval_data, "eval_fraction": settings.eval_fraction}
    return _as_json(found)


def _check_rationales(folder: Path, draw: SamplingArguments, settings: RunArguments, begin: bool) -> None:
    """How rationales are drawn, and which are kept, may change until stage 2 begins, which is trained on them."""
    path = folder / "stage2.settings.json"
    if begin or path.exists():
        made_with = asdict(draw) | asdict(settings)
        for name in ("batch_size", "max_eval_records", "eval_fraction"):
            del made_with[name]
        check_settings(path, _as_json(made_with), folder / "stage2")


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str), object_hook=_without_token)  # type: ignore[no-any-return]


def _without_token(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of models may hold an access token, which is nobody else's business."""
    return {name: value for name, value in settings.items() if name not in ("token", "use_auth_token", "api_key")}


def _split(
    rows: list[Record], eval_data: str | None, eval_fraction: float, seed: int
) -> tuple[list[dict[str, Any]], list[Record]]:
    """Held-out records with their gold scores, and the others."""
    if eval_data is not None:
        return scored_records(list(load_rows(eval_data))), rows
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
    folder: Path, model: ModelConfig, draw: SamplingArguments, settings: RunArguments, trust_remote_code: bool
) -> Judge:
    """The judge saved in `folder`, quantised as it was trained where Transformers runs it."""
    trusted: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    kwargs = trusted | settings.engine_settings
    quantization = get_quantization_config(model)
    if settings.engine == "transformers" and quantization is not None:
        kwargs = {"quantization_config": quantization, **kwargs}
    return Judge.from_pretrained(folder, settings.engine, batch_size=draw.batch_size, model_kwargs=kwargs)
