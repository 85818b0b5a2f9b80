"""Turns records into a trained judge and its figures: the steps behind the command line, one function each."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from accelerate.logging import get_logger
from datasets import Dataset
from transformers import AutoTokenizer, TrainerState
from trl import ModelConfig, get_peft_config, get_quantization_config

from tract_trainer.data.datasets import as_dataset, is_trl_format
from tract_trainer.data.hashing import digest
from tract_trainer.data.records import (
    Record,
    annotated_rationales,
    as_messages,
    check_prompts,
    gold_score,
    training_examples,
)
from tract_trainer.data.settings import begin
from tract_trainer.data.store import finish_rows, finished_rows, without_nan
from tract_trainer.data.templates import control_pattern
from tract_trainer.engines.base import checked
from tract_trainer.errors import InputError
from tract_trainer.judging.judge import Judge
from tract_trainer.judging.judgment import Judgment
from tract_trainer.training.config import RegressionAwareSFTConfig
from tract_trainer.training.trainer import RegressionAwareSFTTrainer

logger = get_logger(__name__)


def training_data(
    rows: Sequence[Record] | Dataset, args: RegressionAwareSFTConfig, model_args: ModelConfig, source: str | None = None
) -> Dataset:
    """
    A dataset for the trainer: rows that are ready for TRL as they are, records rendered and closed, as chat messages
    where the model's tokenizer has, or is given, a chat template. The model card names it after its `source`.
    """
    if is_trl_format(rows.column_names if isinstance(rows, Dataset) else list(rows[0])):
        dataset = as_dataset(rows)
    else:
        tokenizer = _tokenizer(model_args, args)
        scale, conversational = args.scale, tokenizer.chat_template is not None
        controls = control_pattern(tokenizer)
        examples = training_examples(rows, scale, args.score_prefix, args.prompt_template, conversational, controls)
        dataset = Dataset.from_list(list(examples))
    if source is not None:
        dataset.info.dataset_name = Path(source).name if Path(source).exists() else source
    return dataset


def _tokenizer(model_args: ModelConfig, args: RegressionAwareSFTConfig) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, trust_remote_code=args.trust_remote_code
    )
    path = args.chat_template_path
    if path is not None:
        file = Path(path)
        template = file.read_text() if file.is_file() else AutoTokenizer.from_pretrained(path).chat_template
        tokenizer.chat_template = template
    return tokenizer


def prompts_of(rows: Sequence[Record] | Dataset, judge: Judge) -> Dataset:
    """A dataset to write rationales for: TRL rows as they are, records as their prompts and gold scores."""
    if is_trl_format(rows[0]):
        return as_dataset(rows)
    check_prompts(rows, judge.rows.prompt)
    return Dataset.from_list(
        [
            {
                "prompt": as_messages(judge.rows.prompt(row))
                if judge.config.conversational
                else judge.rows.prompt(row),
                "score": gold_score(row),
                "rationale": annotated_rationales(row, judge.config.score_prefix),
            }
            for row in rows
        ]
    )


def train(
    model_args: ModelConfig,
    args: RegressionAwareSFTConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
) -> None:
    """
    Trains one stage and saves it to `args.output_dir`. It goes on from `args.resume_from_checkpoint`, where `"true"` is
    the last whole checkpoint in the folder, if there is one.
    """
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **cast(dict[str, Any], args.model_init_kwargs or {}),
    }
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(
            f"num_train_epochs={args.num_train_epochs} trains nothing. Give a number above 0, or max_steps."
        )
    if eval_dataset is not None and args.eval_strategy == "no":
        raise InputError(
            "eval_strategy is 'no', so eval_data would never be read. Add eval_strategy='epoch' or 'steps'."
        )
    trainer = RegressionAwareSFTTrainer(
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


def trained_with(
    model_args: ModelConfig, args: RegressionAwareSFTConfig, source: str | None, rows: int
) -> dict[str, Any]:
    """What a training that goes on from a checkpoint has to share with the one that left it."""
    scale = {"score_labels": args.score_labels, "score_values": args.score_values, "score_prefix": args.score_prefix}
    data = {"data": source, "rows": rows}
    return json.loads(json.dumps(asdict(model_args) | scale | data, default=str))  # type: ignore[no-any-return]


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was saved to its end, which is `trainer_state.json`."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    numbered = [(int(name[1]), path) for name, path in named if name and path.is_dir()]
    for _, checkpoint in sorted(numbered, reverse=True):
        try:
            TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        except (OSError, ValueError):
            logger.warning(f"{checkpoint} was not saved to its end, so training does not go on from there.")
        else:
            return str(checkpoint)
    return None


def judge_file(
    judge: Judge,
    records: Sequence[Record],
    path: Path,
    num_cots: int,
    *,
    seed: int = 42,
    unfinished: str = "unscored",
    **sampling: Any,
) -> None:
    """
    Writes a line for each record to the JSONL file `path`, in their order. A second call goes on where a killed one
    stopped; a file beside `path` tells what it was made with. Launched processes share the records.

    Raises:
        InputError: it was made with another judge, other records or other settings, or a record has no prompt.
    """
    settings = {"seed": seed, "unfinished": unfinished, **asdict(checked(num_cots, unfinished, sampling))}
    made_with = {"judge": judge.identity, "records": digest(list(records)), "num_cots": num_cots, **settings}
    settings_path, folder = (path.with_name(path.name + ending) for ending in (".settings.json", ".unfinished"))
    if path.exists() and not settings_path.exists():
        raise InputError(f"{path} exists, and not from `tract judge`. Give another --output, or delete it.")
    check_prompts(records, judge.rows.prompt)
    state = begin(settings_path, made_with, folder, path)
    if path.exists():
        return

    def rows(numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        asked = [records[i] for i in numbers]
        for place, judgment in judge.as_finished(asked, num_cots, progress=state.is_main_process, **settings):
            yield numbers[place], as_json(judgment)

    finish_rows(folder, len(records), rows, state)
    if state.is_main_process:
        part = path.with_name(path.name + ".part")
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in finished_rows(folder, len(records)))
        part.replace(path)
        shutil.rmtree(folder)
    state.wait_for_everyone()


def as_json(judgment: Judgment) -> dict[str, Any]:
    """A judgment for a JSON file, without the log-probabilities of each rationale; `null` for what is not known."""
    row = asdict(judgment)
    row["labels"] = [rationale.label for rationale in judgment.rationales]
    del row["rationales"]
    return without_nan(row)
