"""Steps of the commands: make a dataset of records, train a stage, judge a file of records."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias, cast

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import TrainerState
from trl import ModelConfig, get_peft_config, get_quantization_config

from tract_trainer._distributed import process_state
from tract_trainer.data import store
from tract_trainer.data.datasets import as_dataset, is_trl_format
from tract_trainer.data.hashing import digest
from tract_trainer.data.reading import Rows
from tract_trainer.data.records import Record, annotated_rationales, as_messages, check_prompts, gold_score
from tract_trainer.data.rendering import RecordRows, template_kwargs
from tract_trainer.data.settings import begin, check_settings
from tract_trainer.engines.base import checked
from tract_trainer.engines.checkpoints import SavedJudge, check_files, load_tokenizer
from tract_trainer.errors import InputError, numbered
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.judging.judgment import Judgment
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig
from tract_trainer.training.grpo import RegressionAwareGRPOTrainer
from tract_trainer.training.rows import training_rows
from tract_trainer.training.trainer import RegressionAwareSFTTrainer

logger = get_logger(__name__)

TrainingConfig: TypeAlias = RegressionAwareSFTConfig | RegressionAwareGRPOConfig


def check_seed(model_args: ModelConfig) -> None:
    """Raises an InputError where no model is named, or files of its folder are damaged."""
    if model_args.model_name_or_path is None:
        raise InputError("--model_name_or_path is missing: the folder or Hub repository of the model to train.")
    check_files(Path(model_args.model_name_or_path))


def training_data(rows: Rows, args: TrainingConfig, model_args: ModelConfig, source: str | None = None) -> Dataset:
    """A dataset for the trainer of `args`, from records or TRL rows. The model card names it after its `source`."""
    if isinstance(args, RegressionAwareGRPOConfig):
        dataset = grpo_rows(rows, _asked(model_args, args))
    elif is_trl_format(rows.column_names if isinstance(rows, Dataset) else list(rows[0])):
        dataset = as_dataset(rows)
    else:
        dataset = training_rows(rows, args, seed_tokenizer(model_args, args))
    if source is not None:
        dataset.info.dataset_name = Path(source).name if Path(source).exists() else source
    return dataset


def seed_tokenizer(model_args: ModelConfig, args: RegressionAwareSFTConfig) -> Any:
    """The tokenizer that the trainer will use."""
    name, revision = str(model_args.model_name_or_path), model_args.model_revision
    tokenizer = load_tokenizer(name, revision, args.trust_remote_code)
    if (path := args.chat_template_path) is not None:
        file = Path(path)
        tokenizer.chat_template = file.read_text() if file.is_file() else load_tokenizer(path).chat_template
    return tokenizer


def _asked(model_args: ModelConfig, args: RegressionAwareGRPOConfig) -> RecordRows:
    """Prompts as the judge to train is asked with."""
    name, revision = str(model_args.model_name_or_path), model_args.model_revision
    config, tokenizer = JudgeConfig.load(name, revision), load_tokenizer(name, revision, args.trust_remote_code)
    return RecordRows(ScoreTokens.resolve(config.scale, config.score_prefix, tokenizer), config)


def grpo_rows(rows: Rows, asked: RecordRows) -> Dataset:
    """
    `prompt` and `score` of records or TRL rows. Rows with the same prompt and score are one: what they differ in is
    their rationale, and the trainer samples its own.

    Raises:
        InputError: a row has no score on the scale, no prompt, or one that the judge is not asked with.
    """
    found: dict[str, dict[str, Any]] = {}
    config = asked.config
    for number, row in enumerate(rows):
        with numbered("Record", number):
            if template_kwargs(row, config.chat_template_kwargs) != config.chat_template_kwargs:
                raise InputError(
                    "it has `tools` or `chat_template_kwargs` of its own. Reinforcement learning renders all prompts "
                    f"as judge_config.json says, with {config.chat_template_kwargs}. Remove the columns."
                )
            prompt, score, scale = asked.prompt(row), gold_score(row), config.scale
            if score is None or not scale.covers(score):
                raise InputError(
                    f"its score is {score}; training takes one on the scale of {scale.low:g} to {scale.high:g}. Fill "
                    "in the column `score`, or leave such rows out."
                )
        example = {"prompt": as_messages(prompt) if config.conversational else prompt, "score": score}
        found.setdefault(digest(example), example)
    return as_dataset(list(found.values()))


def prompts_of(rows: Rows, judge: Judge) -> Dataset:
    """A dataset to write rationales for: TRL rows as they are, records as their prompts and gold scores."""
    if is_trl_format(rows[0]):
        return as_dataset(rows)
    check_prompts(rows, judge.rows.prompt)
    prompts = [judge.rows.prompt(row) for row in rows]
    return Dataset.from_list(
        [
            {
                "prompt": as_messages(prompt) if judge.config.conversational else prompt,
                "score": gold_score(row),
                "rationale": annotated_rationales(row, judge.config.score_prefix),
            }
            for row, prompt in zip(rows, prompts, strict=True)
        ]
    )


def train(
    model_args: ModelConfig, args: TrainingConfig, train_dataset: Dataset, eval_dataset: Dataset | None = None
) -> None:
    """
    Trains one stage with the trainer of `args`, and saves it to `args.output_dir`. Training resumes from
    `args.resume_from_checkpoint`: a folder, or `"true"` for the last complete checkpoint in `args.output_dir`, if there
    is one.
    """
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **cast(dict[str, Any], args.model_init_kwargs or {}),
    }
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(f"num_train_epochs={args.num_train_epochs} trains nothing. Set it above 0, or set max_steps.")
    if eval_dataset is not None and args.eval_strategy == "no":
        raise InputError("eval_strategy is 'no', so eval_data would never be read. Add eval_strategy='epoch'.")
    kind: Any = RegressionAwareSFTTrainer
    if isinstance(args, RegressionAwareGRPOConfig):
        refuse_second_adapter(model_args)
        kind = RegressionAwareGRPOTrainer
    trainer = kind(
        model=str(model_args.model_name_or_path),
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    checkpoint = args.resume_from_checkpoint
    if (asked := str(checkpoint).lower()) in ("true", "false"):
        checkpoint = last_checkpoint(Path(str(args.output_dir))) if asked == "true" else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()  # trainer_state.json: the curves of tract report
    trainer.save_model()  # and pushes, with push_to_hub
    trainer.accelerator.wait_for_everyone()  # the first process saves, and all may load


def refuse_second_adapter(model_args: ModelConfig) -> None:
    """Raises an InputError where the judge to train is an adapter, and another is asked for."""
    name = str(model_args.model_name_or_path)
    if model_args.use_peft and SavedJudge.find(name, model_args.model_revision, weights=False).peft_type is not None:
        raise InputError(
            f"{name} is an adapter, and use_peft=True asks for a new one. Leave out use_peft to train the adapter that "
            "is there; or merge it into its base model for a new one."
        )


# Training arguments that must not change when a training resumes, by its command.
OBJECTIVE = {
    "sft": (
        "score_labels", "score_values", "score_prefix", "score_loss_type", "score_loss_weight", "ce_loss_weight",
        "renormalize_scores", "score_token_in_ce", "missing_score", "loss_type", "completion_only_loss",
        "assistant_only_loss", "max_length", "truncation_mode", "packing", "packing_strategy", "seed",
    ),
    "grpo": (
        "score_loss_type", "score_loss_weight", "score_likelihood_weight", "advantage_clip", "loss_type", "beta",
        "epsilon", "epsilon_high", "delta", "scale_rewards", "importance_sampling_level", "num_iterations",
        "num_generations", "max_completion_length", "mask_truncated_completions", "temperature", "top_p", "top_k",
        "min_p", "repetition_penalty", "seed",
    ),
}  # fmt: skip

SETTINGS = "_training.json"  # names that begin with "_" are not uploaded


def check_output_dir(model_args: ModelConfig, args: TrainingConfig, overwrite: bool = False) -> None:
    """Raises an InputError where training would replace something in `args.output_dir` that it must not."""
    folder, seed = Path(str(args.output_dir)), Path(str(model_args.model_name_or_path))
    if seed.is_dir() and folder.exists() and folder.samefile(seed):
        raise InputError(f"output_dir is {folder}, the folder of the model to train. Give another output_dir.")
    if store.contents(folder) and store.is_ours(folder / SETTINGS) and not (overwrite or _resumed(args)):
        raise InputError(
            f"{folder} holds a training. Resume it with --resume_from_checkpoint true, give another output_dir, or "
            "start over with --overwrite."
        )
    store.refuse_foreign([], overwrite, folders=[folder], signs=[folder / SETTINGS])


def begin_training(model_args: ModelConfig, args: TrainingConfig, dataset: Dataset) -> None:
    """
    Writes the settings of the training to `args.output_dir`. Call [`check_output_dir`] before.

    Raises:
        InputError: training resumes with another model, other data or another objective.
    """
    folder, command = Path(str(args.output_dir)), "sft"
    settings, found = folder / SETTINGS, asdict(model_args)
    if isinstance(args, RegressionAwareGRPOConfig):
        command, judge = "grpo", JudgeConfig.load(str(model_args.model_name_or_path), model_args.model_revision)
        found |= judge.settings
    found |= {"command": f"tract {command}", **{name: getattr(args, name) for name in OBJECTIVE[command]}}
    found |= {"seed_model": seed_identity(model_args), "rows": digest([digest(row) for row in dataset])}
    trained_with = json.loads(json.dumps(found, default=str))
    if _resumed(args):
        checkpoint = str(args.resume_from_checkpoint)
        known = settings if checkpoint.lower() == "true" else Path(checkpoint).parent / SETTINGS
        if known.is_file():
            check_settings(known, trained_with)
    else:
        for old in (path for path in folder.glob("checkpoint-*") if path.is_dir()):
            shutil.rmtree(old)  # of an overwritten training: a later resume would start from it
    settings.unlink(missing_ok=True)
    check_settings(settings, trained_with)


def _resumed(args: TrainingConfig) -> bool:
    return str(args.resume_from_checkpoint).lower() not in ("none", "false")


def seed_identity(model_args: ModelConfig) -> str:
    """Names the weights that training starts from: the commit of a model from the Hub, else a fingerprint."""
    found = SavedJudge.find(str(model_args.model_name_or_path), model_args.model_revision, weights=False)
    return found.commit or found.identity


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint. `trainer_state.json` is saved last."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    numbered = [(int(name[1]), path) for name, path in named if name and path.is_dir()]
    for _, checkpoint in sorted(numbered, reverse=True):
        try:
            TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        except (OSError, ValueError):
            logger.warning(f"{checkpoint} is incomplete, so training does not resume from it.")
        else:
            return str(checkpoint)
    return None


def check_judged(path: Path, overwrite: bool = False) -> tuple[Path, Path]:
    """
    Raises an InputError where [`judge_file`] would replace something that it must not.

    Returns:
        The paths of its settings and of its unfinished rows.
    """
    if not path.name:
        raise InputError(f"--output must be a file for the judgments, such as judged.jsonl; found {str(path)!r}.")
    settings, folder = (path.with_name(path.name + ending) for ending in (".settings.json", ".unfinished"))
    store.refuse_foreign([path, settings], overwrite, folders=[folder], signs=[settings])
    return settings, folder


def judge_file(
    judge: Judge,
    records: Sequence[Record],
    path: Path,
    num_cots: int,
    *,
    seed: int = 42,
    unfinished: str = "unscored",
    calibrated: bool = False,
    overwrite: bool = False,
    **sampling: Any,
) -> None:
    """
    Writes a judgment per record to the JSONL file `path`, in the order of the records. The same call resumes where a
    stopped one ended. If some records were corrected, it judges only those again. Launched processes share the records.

    Raises:
        InputError: a record cannot be judged; the work was begun with another judge or other settings; or `overwrite`
            is false and there are files of others at `path` or beside it.
    """
    settings = {"seed": seed, "unfinished": unfinished, **asdict(checked(num_cots, unfinished, sampling))}
    keys = [digest(record) for record in records]
    made_with = {"judge": judge.identity, "num_cots": num_cots, **settings, "records": digest(keys)}
    if calibrated:
        made_with["calibration"] = digest(judge.calibration(num_cots))
        settings["calibrated"] = True
    settings_path, folder = check_judged(path, overwrite)
    check_prompts(records, judge.rows.prompt_ids)
    state = process_state()
    shown = state.is_main_process

    def rows(numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, judgment in judge.as_finished(records, num_cots, progress=shown, numbers=numbers, **settings):
            yield number, as_json(judgment)

    with store.locked(folder, state.process_index, path):
        free = () if path.exists() else ("records",)  # corrected records are judged with the others that are left
        begin(settings_path, made_with, folder, path, overwrite=overwrite, free=free)
        if not path.exists():
            store.finish_rows(folder, keys, rows, state)
            if state.is_main_process:
                _write_rows(path, store.finished_rows(folder, keys))
        state.wait_for_everyone()


def judged_rows(path: Path, max_std: float | None) -> list[dict[str, Any]]:
    """The judgments in a file of [`judge_file`], [`marked`] in the file, too, if there is a `max_std`."""
    with path.open(encoding="utf-8") as file:
        rows = [marked(json.loads(line), max_std) for line in file]
    if max_std is not None and process_state().is_main_process:
        _write_rows(path, rows)
    return rows


def marked(row: dict[str, Any], max_std: float | None) -> dict[str, Any]:
    """
    A judgment of [`as_json`] with `needs_review`, whether a person should judge: it has no score, or a higher std than
    `max_std`. Without `max_std`, as it is.
    """
    return row if max_std is None else {**row, "needs_review": row["std"] is None or row["std"] > max_std}


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with store.replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(judgment: Judgment) -> dict[str, Any]:
    """
    A judgment for a JSON file. Of each rationale it holds the label, and whether it ran to its token limit. NaN becomes
    `null`.
    """
    row = asdict(judgment)
    row["labels"] = [rationale.label for rationale in judgment.rationales]
    row["truncated"] = [rationale.truncated for rationale in judgment.rationales]
    del row["rationales"]
    return store.without_nan(row)
