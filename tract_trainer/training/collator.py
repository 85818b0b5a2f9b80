"""The data collator: a batch with `score_labels` beside `labels`.

Shape letters: `B` rows of the batch, `T` tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.score_labels import OUTCOMES, Cut, describe, target_row


@dataclass
class DataCollatorForScoredCompletion(DataCollatorForLanguageModeling):
    """
    TRL's collator with one more tensor: `score_labels`, float32, of the shape of `labels`: the gold score at the token
    that writes it, NaN where no score is due.

    Examples that were prepared by [`RegressionAwareSFTTrainer`] carry the column. In others (`skip_prepare_dataset`),
    the score is found here, as the last place among the supervised tokens where the prefix is followed by a label; its
    target is the example's `score`, or the label's value where there is no such key. Of a label of several tokens, the
    first holds the score.

    Args:
        score_tokens ([`~tract_trainer.scale.ScoreTokens`], *optional*):
            The scale as the tokenizer writes it. Needed for examples without `score_labels`.
        score_token_in_ce (`bool`, *optional*, defaults to `True`):
            Whether the tokens of the score stay in `labels`.
        missing_score (`str`, *optional*, defaults to `"error"`):
            Whether an example whose score is not found here is refused (`"error"`) or kept for the cross-entropy alone
            (`"keep"`, and `"drop"`, since a batch cannot lose rows).

    [`RegressionAwareSFTTrainer`] sets these three from its own arguments. The others are those of TRL's
    `DataCollatorForLanguageModeling`.
    """

    score_tokens: ScoreTokens | None = None
    score_token_in_ce: bool = True
    missing_score: str = "error"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [np.asarray(self._score_labels(example), dtype=np.float32) for example in examples]
        batch: dict[str, Any] = super().torch_call(examples)
        score_labels = torch.full(batch["labels"].shape, torch.nan)  # (B, T)
        for row, target in zip([np.concatenate(rows)] if self.padding_free else rows, score_labels, strict=True):
            target[: len(row)] = torch.from_numpy(row)
        if self.padding_free:
            # The token before the first one of a document belongs to another document and predicts nothing.
            score_labels[batch["position_ids"] == 0] = torch.nan
        if not self.score_token_in_ce:
            for row, place in (~score_labels.isnan()).nonzero().tolist():
                batch["labels"][row, place : place + self._label_length(batch["input_ids"][row, place:])] = -100
        batch["score_labels"] = score_labels
        return batch

    def _label_length(self, ids: torch.Tensor) -> int:
        return 1 if self.score_tokens is None else self.score_tokens.label_length(ids.tolist())

    def _score_labels(self, example: dict[str, Any]) -> Any:
        if self.score_tokens is None:
            if "score_labels" in example:
                return example["score_labels"]
            raise InputError(
                "An example has no `score_labels`, and the collator has no `score_tokens` to find its score with. "
                "Pass score_tokens=ScoreTokens.resolve(scale, prefix, tokenizer)."
            )
        row = {"labels": example["input_ids"], **example}
        if "score_labels" not in row:  # rows of a formatted dataset hold tensors, and no tensor is a token to look up
            row |= {name: np.asarray(row[name]).tolist() for name in ("input_ids", "labels", "score") if name in row}
        target = target_row(row, self.score_tokens, Cut())
        if target["score_problem"] and self.missing_score == "error":
            complaint, shown, remedy = describe(target["score_problem"], row, self.score_tokens, Cut())
            raise InputError(f"Some rows {complaint}; the first is one {shown}. {remedy}{OUTCOMES['error']}")
        return target["score_labels"]


def scores_due(batch: dict[str, Any]) -> torch.Tensor:
    """Where a score is due, `(B, T - 1)`: the score at token t is predicted from token t - 1."""
    if "score_labels" not in batch:
        raise InputError(
            f"The data collator returned no `score_labels`, only {sorted(batch)}. Leave data_collator out, or make "
            "yours a subclass of DataCollatorForScoredCompletion."
        )
    score_labels: torch.Tensor = batch["score_labels"]
    return ~score_labels[:, 1:].isnan()
