"""Training rows from records."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasets import Dataset

from tract_trainer.data.records import Record, training_examples
from tract_trainer.data.templates import ControlTokens
from tract_trainer.training.config import RegressionAwareSFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def training_rows(
    records: Sequence[Record] | Dataset, args: RegressionAwareSFTConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Dataset:
    """
    Rows for [`RegressionAwareSFTTrainer`] from records: `prompt`, `completion` and `score`. A record gives one row for
    each of its rationales. Its prompt is the one that the trained [`Judge`] will be asked with.

    Args:
        records (`Sequence[Mapping]` or [`~datasets.Dataset`]):
            Records with `instruction`, `response` and `rubric`, or a ready `prompt`; with `score`; and with
            `rationale`, a text or a list of texts. Without any rationale, a completion is the prefix and the label.
        args ([`RegressionAwareSFTConfig`]): configuration of the training, with the scale and the prompt template.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model to train. If it has a chat template, prompts and completions are messages.

    Raises:
        InputError: a record has no prompt or no score, or only some records have a rationale.

    Example:
    ```python
    dataset = training_rows(records, args, AutoTokenizer.from_pretrained("Qwen/Qwen3-8B"))
    trainer = RegressionAwareSFTTrainer("Qwen/Qwen3-8B", args, train_dataset=dataset)
    ```
    """
    conversational, controls = tokenizer.chat_template is not None, ControlTokens.of(tokenizer)
    examples = training_examples(records, args.scale, args.score_prefix, args.prompt_template, conversational, controls)
    return Dataset.from_list(list(examples))
