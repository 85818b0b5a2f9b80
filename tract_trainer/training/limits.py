"""Refuses what the trainer cannot do exactly, with the reason and the way out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from tract_trainer._distributed import refuse_lone_process
from tract_trainer.engines.attention import MASKED, appends_tokens
from tract_trainer.engines.checkpoints import check_weights, load_tokenizer
from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.config import RegressionAwareSFTConfig

logger = get_logger(__name__)

MAX_NODES = 3
"""Most inner nodes of a trie of labels that are read in rows of their own. Each costs as much as the row itself."""


def refuse_settings(
    args: RegressionAwareSFTConfig,
    compute_loss_func: Callable[..., Any] | None,
    model: Any,
    peft_config: PeftConfig | None,
) -> None:
    """Raises `InputError` for settings under which the score term would be missing or wrong, or no judge come of it."""
    if args.eval_packing and not args.packing:
        raise InputError(
            "eval_packing=True with packing=False packs evaluation rows for a collator that does not keep packed rows "
            "apart, so they read each other and their scores are wrong. Set packing=True, or leave out eval_packing."
        )
    if args.packing and args.packing_strategy == "wrapped":
        raise InputError(
            "packing_strategy='wrapped' cuts rows anywhere, so scores are lost and judged in another row's context. "
            "Use packing_strategy='bfd' or 'bfd_split', or packing=False."
        )
    if args.packing and args.max_length is None:
        raise InputError("packing=True needs a max_length, the length of a packed row, and max_length is None.")
    if args.label_smoothing_factor:
        raise InputError(
            f"label_smoothing_factor={args.label_smoothing_factor} takes the loss from a second forward, without the "
            "score term. Set label_smoothing_factor=0; the score loss already tells near misses from far ones."
        )
    if compute_loss_func is not None:
        raise InputError(
            "compute_loss_func takes the loss from a second forward, without the score term. "
            "Leave it out and override RegressionAwareSFTTrainer.compute_loss instead."
        )
    refuse_adapter(model, peft_config)


def refuse_adapter(model: Any, peft_config: PeftConfig | None) -> None:
    """Raises `InputError` for an adapter that no judge can be loaded with."""
    if isinstance(model, PeftModel) and model.active_adapters != ["default"]:
        raise InputError(
            f"The adapter to train is {model.active_adapters}, and a judge is loaded from its folder, where PEFT saves "
            "the adapter 'default' alone. Name it so: get_peft_model(model, config), or leave out adapter_name."
        )
    adapter = model.active_peft_config if isinstance(model, PeftModel) else peft_config
    if adapter is not None and adapter.is_prompt_learning:
        raise InputError(
            f"Expected LoRA or another adapter in the model's layers, found {type(adapter).__name__}, which learns "
            "virtual tokens before each row: a judge with them cannot be saved and loaded, nor asked in batches. "
            "Use e.g. LoraConfig."
        )


def refuse_files(model: Any, args: RegressionAwareSFTConfig) -> None:
    """
    Raises `InputError` for the path of a model without some of its weights, and of a chat template whose tokenizer is
    code in its repository: Transformers would ask on a terminal whether to run it.
    """
    given: Any = args.model_init_kwargs or {}  # a mapping by now
    kwargs = {"trust_remote_code": args.trust_remote_code, **given}
    if isinstance(model, str):
        check_weights(model, kwargs.get("revision"), kwargs["trust_remote_code"])
    if args.chat_template_path is not None and not Path(args.chat_template_path).is_file():
        load_tokenizer(args.chat_template_path)


def named_datasets(train_dataset: Any, eval_dataset: Any) -> list[tuple[str, Any]]:
    """The datasets that are given, each with its name."""
    evals = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    return [(name, rows) for name, rows in (("train", train_dataset), *evals.items()) if rows is not None]


def refuse_empty(dataset: Any, name: str) -> None:
    """Raises `InputError` for a dataset without rows."""
    if isinstance(dataset, Dataset | IterableDataset) and next(iter(dataset), None) is None:
        raise InputError(f"The {name} dataset has no rows. Check the file or the filter that it comes from.")


def refuse_datasets(train_dataset: Any, eval_dataset: Any, sample: dict[str, Any], text_field: str | None) -> None:
    """
    Raises `InputError` for a dataset without rows or without TRL's columns, and for images; warns of rows that are
    rendered differently. `sample` is the first row to train on; `text_field` the column that holds text, `None` where a
    formatting function makes it.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset):
        refuse_empty(dataset, name)
    if {"image", "images"} & set(sample):
        raise InputError(
            "The dataset holds images. Their rows are tokenised batch by batch, where a score cut off by max_length "
            "cannot be told from an earlier one, so images are not supported. Remove the image columns."
        )
    if sample and text_field is not None and not any(columns <= set(sample) for columns in _forms(text_field)):
        raise InputError(
            f"The dataset has the columns {sorted(sample)}, which SFTTrainer cannot train on. It needs `prompt` and "
            f"`completion`, `messages`, {text_field!r} or `input_ids`. `tract sft` and `tract run` turn judging "
            "records (instruction, response, rubric, score, rationale) into such rows."
        )
    if isinstance(train_dataset, Dataset) and "chat_template_kwargs" in train_dataset.column_names:
        kinds = {json.dumps(kwargs or {}, sort_keys=True) for kwargs in train_dataset["chat_template_kwargs"]}
        if len(kinds) > 1:
            logger.warning(
                f"The rows differ in chat_template_kwargs ({len(kinds)} kinds). The judge will be asked with those of "
                f"the first row, {sample['chat_template_kwargs']}; others go into a record beside its `prompt`."
            )


def _forms(text_field: str) -> list[set[str]]:
    """The columns of TRL's kinds of dataset."""
    return [{"prompt", "completion"}, {"messages"}, {"conversations"}, {text_field}, {"input_ids"}]


def refuse_topology(accelerator: Accelerator) -> None:
    """Raises `InputError` for context and sequence parallelism, and for processes that do not know each other."""
    parallelism = accelerator.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise InputError(
            "Context and sequence parallelism split a row over processes, and the score's row with it. "
            "Set cp_size=1 and sp_size=1; FSDP, DeepSpeed ZeRO and tensor parallelism keep rows whole."
        )
    refuse_lone_process(accelerator.num_processes)


def refuse_long_labels(tokens: ScoreTokens, model: PreTrainedModel, padding_free: bool) -> None:
    """Raises `InputError` for labels of several tokens whose probabilities `model` cannot read beside the row."""
    nodes = tokens.nodes
    if len(nodes) == 1 or appends_tokens(model) or (len(nodes) <= MAX_NODES and not padding_free):
        return
    longest = max(tokens.paths, key=len)
    label, written = tokens.scale.labels[tokens.paths.index(longest)], list(map(tokens.tokenizer.decode, longest))
    attention = model.config.get_text_config()._attn_implementation
    reason, remedies = f"layers that are not attention alone ({model.config.model_type})", []
    if attention not in MASKED:
        reason, remedies = f"attn_implementation={attention!r}", ["model_init_kwargs={'attn_implementation': 'sdpa'}"]
    if padding_free and len(nodes) <= MAX_NODES:
        remedies.append("padding_free=False and packing=False")
    labels = "labels of one token, such as the letters score_labels=['A', ..., 'J'] with score_values=[1, ..., 10]"
    raise InputError(
        f"Label {label!r} is {len(longest)} tokens {written} in this tokenizer. The probabilities of such labels are "
        f"read behind the row, where the row does not see them, which {reason} cannot do. Set "
        f"{', or '.join([*remedies, labels])}."
    )
