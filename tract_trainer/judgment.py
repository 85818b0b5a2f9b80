"""Turns the rationales of a record into a judgment.

`K` is the number of labels of the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tract_trainer.engines import Rationale
from tract_trainer.hub import JudgeConfig
from tract_trainer.losses import expected_score


@dataclass(frozen=True)
class Judgment:
    """
    What a judge says of one record.

    Attributes:
        score (`float`): the RAIL score, the mean over the finished rationales, in units of the scale; NaN if unscored.
        probs (`tuple[float, ...]`): probability of each label, the mean over the finished rationales, `(K,)`.
        std (`float`): standard deviation of `probs` over the scale: how undecided the judge is.
        mass (`float`): probability on the scale, the sum of `probs`.
        label (`str`, *optional*):
            The label the judge wrote at the end of the first finished rationale; the likeliest one where it was forced.
        rationale (`str`): the first finished rationale.
        reason (`str`): why there is no score; empty if there is one.
        rationales (`tuple[Rationale, ...]`): every rationale with its own label and log-probabilities.
    """

    score: float
    probs: tuple[float, ...]
    std: float
    mass: float
    label: str | None
    rationale: str
    reason: str
    rationales: tuple[Rationale, ...]


def judgment(rationales: Sequence[Rationale], config: JudgeConfig, max_new_tokens: int = 0) -> Judgment:
    """The judgment that the rationales of one record make together."""
    finished = [rationale for rationale in rationales if rationale.log_probs is not None]
    if not finished:
        cut = sum(rationale.num_tokens >= max_new_tokens for rationale in rationales)
        reason = (
            f"None of {len(rationales)} rationales came to {config.score_prefix!r} and a label; {cut} were "
            f"cut at max_new_tokens={max_new_tokens}."
        )
        nothing = (math.nan,) * len(config.score_labels)
        return Judgment(math.nan, nothing, math.nan, math.nan, None, rationales[0].text, reason, tuple(rationales))
    values = torch.tensor(config.scale.values)  # (K,)
    log_probs = torch.tensor([rationale.log_probs for rationale in finished])  # (finished, K)
    score = expected_score(log_probs, values, config.renormalize_scores).mean()
    probs = log_probs.exp().mean(0)  # (K,)
    share = probs / probs.sum()
    variance = share @ values.square() - (share @ values).square()
    return Judgment(
        score=float(score),
        probs=tuple(probs.tolist()),
        std=math.sqrt(max(0.0, float(variance))),
        mass=float(probs.sum()),
        label=finished[0].label,
        rationale=finished[0].text.strip(),
        reason="",
        rationales=tuple(rationales),
    )
