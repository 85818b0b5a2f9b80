"""Turns a model's logits at a step into what is kept of them, and into the next token of each row.

Each row draws from numbers of its own, whatever rows share its batch. Shape letters: `B` rows, `S` steps, `K` labels,
`V` vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tract_trainer.errors import InputError

FIRST_SORTED = 512  # tokens: holds the nucleus of a trained model at nearly every step


def scale_log_probs(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the tokens `ids`, `(B, K)`, from `(B, V)`; an InputError where the logits are none."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)  # (B, 1)
    if not total.isfinite().all():
        raise InputError(
            "The model's logits are not finite (NaN or infinite), so there is nothing to draw or score. Either it "
            "diverged in training: look for NaN in its losses and train with a lower learning rate. Or it overflows in "
            'float16: load it in another type, e.g. model_kwargs={"dtype": "bfloat16"} or "float32".'
        )
    return logits[:, list(ids)] - total


class ScoreRecorder(LogitsProcessor):
    """Keeps the log-probabilities of the scale at every step: `K` numbers a row, before anything has changed them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.steps: list[Tensor] = []  # S times (B, K)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scale_log_probs(scores, self.ids))
        return scores.float()


class SeededDraw(LogitsProcessor):
    """
    Draws the next token of each row from its nucleus at a temperature, by inverting the cumulative distribution, the
    likeliest token first, at a number from the row's own stream; and leaves only that token. A row's draws do not
    depend on the rows it shares a batch with, nor on the device.

    The nucleus of Holtzman et al. (2020), "The curious case of neural text degeneration": the likeliest tokens up to
    the one with which their probability reaches `top_p`. Only as many tokens are sorted as that takes.
    """

    def __init__(
        self, seeds: Sequence[int], max_new_tokens: int, width: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniforms = torch.stack(
            [torch.rand(max_new_tokens, generator=stream, dtype=torch.float64) for stream in streams]
        )  # (B, S)
        self.width, self.temperature, self.top_p = width, temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        known = scores.cpu() if scores.device.type == "mps" else scores  # Apple's GPUs have no float64
        self.uniforms = self.uniforms.to(known.device)
        at = self.uniforms[:, input_ids.size(1) - self.width, None]  # (B, 1)
        tokens, cumulative = self._nucleus(known.float() / self.temperature)  # (B, N) each
        drawn = (cumulative <= at * cumulative[:, -1:]).sum(-1, keepdim=True)  # (B, 1)
        return torch.full_like(known, -torch.inf).scatter(1, tokens.gather(1, drawn), 0).to(scores)

    def _nucleus(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, the likeliest first, and their cumulative probability, which stays as it is past the nucleus."""
        if self.top_p == 1:  # every token, in any order
            tokens = torch.arange(scores.size(-1), device=scores.device).expand_as(scores)
            return tokens, scores.double().softmax(-1).cumsum(-1)
        total, size = scores.logsumexp(-1, keepdim=True), min(FIRST_SORTED, scores.size(-1))
        while True:
            found = scores.topk(size)
            probs = (found.values - total).double().exp()  # (B, size)
            before = probs.cumsum(-1) - probs
            if size == scores.size(-1) or bool((before[:, -1] >= self.top_p).all()):
                return found.indices, torch.where(before < self.top_p, probs, 0).cumsum(-1)
            size = min(8 * size, scores.size(-1))
