"""`tract run`: stage 1, its own rationales, stage 2 from the seed model, the evaluation; maybe stage 3 and its own.

Each step leaves a folder and is skipped when its folder is complete, so an interrupted run resumes where it stopped.
"""

import copy
import itertools
import json
import random
import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from rich.console import Console
from transformers import TrainingArguments
from trl import ModelConfig, get_quantization_config

from tract_trainer._distributed import file_lock
from tract_trainer.cli import pipeline
from tract_trainer.cli.arguments import RunArguments, SamplingArguments, TrainingDataArguments
from tract_trainer.cli.parsing import parse
from tract_trainer.data.benchmarks import check_scale, scored_records
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import Record, check_prompts
from tract_trainer.data.rendering import RecordRows
from tract_trainer.data.settings import begin, check_settings
from tract_trainer.data.store import refuse_foreign
from tract_trainer.engines.base import engine_class
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.groups import record_groups
from tract_trainer.hub.card import add_results
from tract_trainer.hub.pushing import push_judge
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.rationales.generation import generate_cot_dataset
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig

Records: TypeAlias = list[dict[str, Any]]

HELD_OUT = "held-out records"

STEPS = ("baseline.json", "stage1", "cots", "stage2", "evaluation.json")

# What a run leaves in its folder, beside its settings.
MADE = (
    *STEPS, "stage3", "stage3.json", "stage1.done", "stage2.done", "stage3.done", "stage2.settings.json",
    "stage3.settings.json", "baseline.unfinished", "evaluation.unfinished", "stage3.unfinished",
)  # fmt: skip

# Parts of names of training arguments that do not change what is learned: they log, save, place or load.
NOT_LEARNED = (
    "log", "report", "hub", "save", "eval", "project", "output_dir", "run_name", "tqdm", "use_cpu", "resume",
    "num_proc", "ddp", "fsdp", "deepspeed", "local_rank", "accelerator", "tracking", "trackio",
    "num_workers", "pin_memory", "prefetch", "persistent", "vllm_gpu", "vllm_server", "vllm_group", "sleep_mode",
)  # fmt: skip


def run_pipeline(
    data: TrainingDataArguments,
    args: RegressionAwareSFTConfig,
    model: ModelConfig,
    draw: SamplingArguments,
    settings: RunArguments,
) -> dict[Path, dict[str, Any]]:
    """
    Runs both stages and the evaluation under `args.output_dir`: `stage1/`, `cots/`, `stage2/`, `evaluation.json`. With
    `settings.baseline` first `baseline.json`, the evaluation of the seed model; with `settings.grpo` then `stage3/` and
    its evaluation, `stage3.json`, in a finished run, too. With `args.push_to_hub`, the judge of the last stage is
    pushed, its card with the evaluation.

    Returns:
        `dict[Path, dict]`: results of the evaluations by their files; that of the last stage is the last.
    """
    console, grpo = Console(quiet=not PartialState().is_main_process), stage3_config(args, draw, settings)
    return _Run(args, model, draw, settings, grpo, console).run(data)


def stage3_config(
    args: RegressionAwareSFTConfig, draw: SamplingArguments, settings: RunArguments
) -> RegressionAwareGRPOConfig | None:
    """
    The config of stage 3, with `settings.grpo`. Other settings of sampling are those of the rationales, other
    `TrainingArguments` those of the other stages, with a tenth of their learning rate. `None` without a stage 3.
    """
    if settings.grpo is None:
        return None
    names = [field.name for field in fields(TrainingArguments) if field.init]
    shared = {name: getattr(args, name) for name in (*names, "model_init_kwargs", "trust_remote_code")}
    shared |= {"learning_rate": args.learning_rate / 10, "temperature": draw.temperature, "top_p": draw.top_p}
    shared |= {"max_completion_length": draw.max_new_tokens}
    block: Any = settings.grpo  # a mapping by now
    given = {str(name): value for name, value in block.items()}
    (config,) = parse("grpo", [], RegressionAwareGRPOConfig, given=given, **shared)
    return config  # type: ignore[no-any-return]


@dataclass
class _Run:
    args: RegressionAwareSFTConfig
    model: ModelConfig
    draw: SamplingArguments
    settings: RunArguments
    grpo: RegressionAwareGRPOConfig | None
    console: Console

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def run(self, data: TrainingDataArguments) -> dict[Path, dict[str, Any]]:
        main = PartialState().is_main_process
        self.refuse_what_a_later_step_would()
        if main:
            signs = [self.folder / "settings.json"]
            refuse_foreign([], self.settings.overwrite, folders=[self.folder], signs=signs)
        rows, eval_rows = list(data.rows()), data.eval_rows()
        held_out, training = split(rows, eval_rows, self.settings.eval_fraction, self.args.seed)
        held_out, dataset = self.prepare(held_out, training, data.data)
        settings = learned_settings(self.args, self.model) | {
            "command": "tract run",
            "data": digest(rows),
            "eval_data": None if eval_rows is None else digest(list(eval_rows)),
            "eval_fraction": self.settings.eval_fraction,
            "seed_model": pipeline.seed_identity(self.model),
        }
        with file_lock(self.folder, ".lock") if main else nullcontext():
            self.begin(settings, main)
            return self.steps(held_out, data.eval_data or HELD_OUT, dataset, settings["seed_model"])

    def steps(self, held_out: Records, eval_name: str, dataset: Dataset, seed_model: str) -> dict[Path, dict[str, Any]]:
        results, folder, records = {}, self.folder, f"on {len(held_out):,} held-out records"
        if self.settings.baseline:
            self.say(0, f"Evaluation of the seed model {records}")
            path = folder / "baseline.json"
            name = str(self.model.model_name_or_path)
            results[path] = self.evaluate(self.seed_judge(), name, held_out, eval_name, path)
        self.say(1, f"Stage 1 on {len(dataset):,} annotated rationales")
        self.train("stage1", self.args, self.model, dataset)
        cots = self.rationales(dataset)
        self.say(3, f"Stage 2, from the seed model, on {len(cots):,} of them")
        with PartialState().main_process_first():
            self.check_rationales(begin=True)
            self.check_seed(seed_model)
        self.train("stage2", self.args, self.model, cots)
        self.say(4, f"Evaluation {records}")
        path = folder / "evaluation.json"
        results[path] = self.evaluate_stage("stage2", held_out, eval_name, path)
        if self.grpo is not None:
            self.reinforce(self.grpo, cots, dataset.info.dataset_name)
            self.say(6, f"Evaluation {records}")
            path = folder / "stage3.json"
            results[path] = self.evaluate_stage("stage3", held_out, eval_name, path)
        return results

    @property
    def last_stage(self) -> str:
        return "stage2" if self.grpo is None else "stage3"

    def say(self, step: int, text: str) -> None:
        self.console.print(f"[{step}/{4 if self.grpo is None else 6}] {text}")

    def refuse_what_a_later_step_would(self) -> None:
        """Before hours of training."""
        pipeline.check_seed(self.model)
        if self.draw.num_cots < 1:
            raise InputError(
                f"num_cots must be at least 1, got {self.draw.num_cots}: stage 2 is trained on rationales."
            )
        for engine in (self.settings.engine, *(["vllm"] if self.grpo is not None and self.grpo.use_vllm else [])):
            if find_spec(engine) is None:
                engine_class(engine)  # says what to install
        if by := [name for name in ("deepspeed", "fsdp") if getattr(self.args, name)]:
            raise InputError(
                f"tract run writes rationales with the full model in each process, and {by[0]} shards it. Take the "
                "steps one by one: tract sft that way, tract generate without it, tract sft again."
            )

    def prepare(self, held_out: Records, training: list[Record], source: str | None) -> tuple[Records, Dataset]:
        """The records to evaluate on, and the dataset of stage 1, after the checks of every later step."""
        args = self.args
        held_out = held_out[: self.settings.max_eval_records]
        check_scale(held_out, args.scale)
        tokenizer = pipeline.seed_tokenizer(self.model, args)
        tokens = ScoreTokens.resolve(args.scale, args.score_prefix, tokenizer)
        conversational = tokenizer.chat_template is not None
        asked = args.judge_config(conversational, chat_template_kwargs=args.template_kwargs)
        check_prompts(held_out, RecordRows(tokens, asked).prompt_ids)
        dataset = pipeline.training_data(training, args, self.model, source)
        if not {"prompt", "messages"} & set(dataset.column_names):
            raise InputError(
                f"Stage 2 needs prompts to write rationales for, and the rows have {dataset.column_names}. Give "
                "records, or rows with `prompt` and `completion` or `messages`; `tract sft` trains a single stage on "
                "these."
            )
        kwargs = dataset["chat_template_kwargs"] if "chat_template_kwargs" in dataset.column_names else []
        if self.grpo is not None and ("tools" in dataset.column_names or len(set(map(digest, kwargs))) > 1):
            raise InputError(
                "Stage 3 renders all prompts alike, and the rows have `tools`, or `chat_template_kwargs` that differ. "
                "Remove the column, or leave out grpo."
            )
        return held_out, dataset

    def begin(self, settings: dict[str, Any], main: bool) -> None:
        if main and self.settings.overwrite:
            for path in (self.folder / name for name in MADE):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        steps, folders = (self.folder / step for step in STEPS), [self.folder]
        begin(self.folder / "settings.json", settings, *steps, folders=folders, overwrite=self.settings.overwrite)
        with PartialState().main_process_first():
            self.check_rationales(begin=False)

    def check_rationales(self, begin: bool) -> None:
        """How rationales are sampled, and which are kept, may change until stage 2 begins, which trains on them."""
        path = self.folder / "stage2.settings.json"
        if begin or path.exists():
            made_with = asdict(self.draw) | asdict(self.settings)
            for name in ("baseline", "batch_size", "max_eval_records", "eval_fraction", "grpo", "overwrite"):
                del made_with[name]
            check_settings(path, _as_json(made_with), self.folder / "stage2", self.folder / "stage2.done")

    def check_seed(self, seed_model: str) -> None:
        if pipeline.seed_identity(self.model) != seed_model:
            raise InputError(
                f"The files of the seed model {self.model.model_name_or_path} have changed since stage 1, and stage 2 "
                "must start from the same model. Put them back, or give another output_dir."
            )

    def reinforce(self, args: RegressionAwareGRPOConfig, cots: Dataset, source: str | None) -> None:
        """Stage 3: trains the judge of stage 2, full model or adapter, on the prompts that stage 2 was trained on."""
        model = replace(self.model, model_name_or_path=str(self.folder / "stage2"), use_peft=False)
        dataset = pipeline.training_data(cots, args, model, source)
        self.say(5, f"Stage 3, reinforcement learning from stage 2, on {len(dataset):,} prompts")
        with PartialState().main_process_first():
            path, *work = (self.folder / name for name in ("stage3.settings.json", "stage3", "stage3.done"))
            check_settings(path, learned_settings(args, model), *work)
        self.train("stage3", args, model, dataset)

    def train(self, stage: str, args: pipeline.TrainingConfig, model: ModelConfig, dataset: Dataset) -> None:
        """Trains a stage unless `STAGE.done` says that it is done: its folder may hold a judge of a checkpoint."""
        done, args = self.folder / f"{stage}.done", copy.copy(args)
        if done.exists():
            return
        args.output_dir, args.resume_from_checkpoint = str(self.folder / stage), "true"  # settings have been compared
        args.hub_model_id = args.hub_model_id or self.folder.resolve().name
        args.push_to_hub = args.push_to_hub and stage == self.last_stage
        if stage == "stage2" and isinstance(args, RegressionAwareSFTConfig) and args.missing_score == "error":
            args.missing_score = "drop"  # a generated rationale may exceed max_length, which cannot change any more
        pipeline.train(model, args, dataset)
        if PartialState().is_main_process:
            done.touch()
        clear_device_cache(garbage_collection=True)  # the next step loads a model of its own

    def rationales(self, dataset: Dataset) -> Dataset:
        """The stage-2 dataset, written by the judge of stage 1."""
        if self.settings.max_cot_records is not None:
            dataset = dataset.take(self.settings.max_cot_records)
        self.say(2, f"{self.draw.num_cots * len(dataset):,} self-generated rationales")
        return generate_cot_dataset(
            self.judge("stage1"),
            dataset,
            num_cots=self.draw.num_cots,
            **self.draw.sampling,
            seed=self.args.seed,
            output_dir=self.folder / "cots",
            max_retries=self.settings.max_retries,
            unfinished=self.settings.unfinished,
        )

    def evaluate(self, judge: Judge, name: str, held_out: Records, eval_name: str, path: Path) -> dict[str, Any]:
        unfinished = "force" if self.settings.unfinished == "force" else "unscored"
        settings = {"seed": self.args.seed, "unfinished": unfinished, **self.draw.sampling}
        return evaluate(judge, held_out, eval_name, path, self.draw.num_cots, judge_name=name, **settings)

    def evaluate_stage(self, stage: str, held_out: Records, eval_name: str, path: Path) -> dict[str, Any]:
        """The evaluation of the judge of a stage; it is added to its card, and the last stage is pushed with it."""
        result = self.evaluate(self.judge(stage), str(self.folder / stage), held_out, eval_name, path)
        if PartialState().is_main_process:
            self.publish(stage, result)
        return result

    def judge(self, stage: str) -> Judge:
        return Judge.from_pretrained(self.folder / stage, **self.loading())

    def seed_judge(self) -> Judge:
        """The untrained seed model, asked as the judge will be; or as it says itself if it is a judge already."""
        name, revision = str(self.model.model_name_or_path), self.model.model_revision
        asked: dict[str, Any] = {}
        try:
            JudgeConfig.load(name, revision)
        except FileNotFoundError:
            asked = {"scale": self.args.scale, "chat_template_kwargs": self.args.template_kwargs}
            asked |= {name: getattr(self.args, name) for name in ("score_prefix", "prompt_template")}
        return Judge.from_pretrained(name, revision=revision, **self.loading(), **asked)

    def loading(self) -> dict[str, Any]:
        """Arguments of [`Judge.from_pretrained`]. Transformers quantises a judge as in training."""
        kwargs: dict[str, Any] = {"trust_remote_code": True} if self.args.trust_remote_code else {}
        quantization = get_quantization_config(self.model)
        if self.settings.engine == "transformers" and quantization is not None:
            kwargs["quantization_config"] = quantization
        kwargs |= self.settings.model_kwargs  # type: ignore[arg-type]  # a mapping by now
        return {"engine": self.settings.engine, "batch_size": self.draw.batch_size, "model_kwargs": kwargs}

    def publish(self, stage: str, result: dict[str, Any]) -> None:
        args, judge = self.args, self.folder / stage
        add_results(judge, result)
        if args.push_to_hub and stage == self.last_stage:
            name = args.hub_model_id or self.folder.resolve().name
            private, revision = args.hub_private_repo, args.hub_revision
            push_judge(judge, name, token=args.hub_token, private=private, revision=revision)


def learned_settings(args: pipeline.TrainingConfig, model: ModelConfig) -> dict[str, Any]:
    """Settings of training on which the trained model depends, as JSON."""
    found = {name: value for name, value in args.to_dict().items() if not any(word in name for word in NOT_LEARNED)}
    if isinstance(args, RegressionAwareSFTConfig):
        found |= {"eos_token": args.eos_token, "pad_token": args.pad_token}  # `to_dict` hides what ends in "_token"
    return _as_json(found | asdict(model))


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str), object_hook=_without_token)  # type: ignore[no-any-return]


def _without_token(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of models may hold an access token, which must not be written to disk."""
    return {name: value for name, value in settings.items() if name not in ("token", "use_auth_token", "api_key")}


def split(rows: list[Record], eval_rows: Any, eval_fraction: float, seed: int) -> tuple[Records, list[Record]]:
    """Held-out records with their gold scores, and the others. Records of the same question are on the same side."""
    if eval_rows is not None:
        return scored_records(eval_rows), rows
    if not 0 < eval_fraction < 1:
        raise InputError(f"eval_fraction must be between 0 and 1, got {eval_fraction}; or give eval_data.")
    groups, first, questions = record_groups(rows), dict[str, int](), dict[int, list[int]]()
    for number, row in enumerate(rows):
        same = first.setdefault(digest(row), number)  # a copy of a record that names no question
        questions.setdefault(groups[same], []).append(number)
    order = list(questions.values())
    random.Random(seed).shuffle(order)
    count = max(1, round(eval_fraction * len(order)))
    if count >= len(order):
        raise InputError(f"{len(order)} questions are too few to hold out {count} for the evaluation. Give eval_data.")
    held_out, training = (sorted(itertools.chain(*part)) for part in (order[:count], order[count:]))
    return scored_records([rows[i] for i in held_out]), [rows[i] for i in training]
