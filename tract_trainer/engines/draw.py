"""Turns a model's logits at a step into what is kept of them, and into the next token of each row.

Each row draws from numbers of its own, whatever rows share its batch. Shape letters: `B` rows, `S` steps, `K` labels,
`V` vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class ScoreRecorder(LogitsProcessor):
    """Keeps the log-probabilities of the scale at every step: `K` numbers a row, before anything has changed them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.steps: list[Tensor] = []  # S times (B, K)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        self.steps.append(scores[:, self.ids] - scores.logsumexp(-1, keepdim=True))
        return scores


class SeededDraw(LogitsProcessor):
    """
    Draws the next token of each row by inverting its cumulative distribution at a number from the row's own stream,
    and leaves only that token. A row's draws do not depend on the rows it shares a batch with, nor on the device.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int, width: int) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniforms = torch.stack(
            [torch.rand(max_new_tokens, generator=stream, dtype=torch.float64) for stream in streams]
        )  # (B, S)
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.uniforms = self.uniforms.to(scores.device)
        at = self.uniforms[:, input_ids.size(1) - self.width, None]  # (B, 1)
        cumulative = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        drawn = (cumulative <= at * cumulative[:, -1:]).sum(-1, keepdim=True)  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0)
