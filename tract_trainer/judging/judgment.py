"""Turns the rationales of a record into a judgment, and two judgments into a comparison.

`K` is the number of labels of the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tract_trainer.engines.base import Rationale
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.losses import expected_score
from tract_trainer.scale import ScoreScale

MIN_MASS = 0.01
"""Probability on the scale below which a rationale is unscored: its expected score would be off the scale, near 0."""
SLACK = 1e-2  # above 1, for the rounding of bfloat16
WIDE = 0.05  # share of the scale above which the interval of a score is wide


@dataclass(frozen=True)
class Judgment:
    """
    What a judge says of one record.

    Attributes:
        score (`float`): the RAIL score, the mean over the finished rationales, in units of the scale; NaN if unscored.
            With `calibrated=True`, what the calibration maps it to.
        probs (`tuple[float, ...]`): probability of each label, the mean over the finished rationales, `(K,)`.
        std (`float`): standard deviation of `probs` over the scale: how undecided the judge is.
        mass (`float`): probability on the scale, the sum of `probs`.
        label (`str`, *optional*):
            The label the judge wrote at the end of the first finished rationale; the likeliest one where it was forced.
        rationale (`str`): the first finished rationale, as it was written, white space at its ends included.
        reason (`str`): why there is no score; empty if there is one.
        rationales (`tuple[Rationale, ...]`): every rationale with its own label and log-probabilities.
        score_interval (`tuple[float, float]`, *optional*):
            Lowest and highest score that the log-probabilities of a server allow which returns only those of the most
            likely tokens, in units of the scale; `None` where the score is exact. Probabilities that were not returned
            are missing in `probs`.
    """

    score: float
    probs: tuple[float, ...]
    std: float
    mass: float
    label: str | None
    rationale: str
    reason: str
    rationales: tuple[Rationale, ...]
    score_interval: tuple[float, float] | None = None


def judgment(
    rationales: Sequence[Rationale],
    config: JudgeConfig,
    max_new_tokens: int = 0,
    prompt_length: int = 0,
    max_length: int | None = None,
) -> Judgment:
    """
    The judgment that the rationales of one record make together, written after a prompt of `prompt_length` tokens by a
    model that reads `max_length`.
    """
    flaws = list(map(_flaw, rationales))
    rationales = [
        one._replace(label=None, log_probs=None) if flaw else one for one, flaw in zip(rationales, flaws, strict=True)
    ]
    finished = [one for one in rationales if one.log_probs is not None]
    if not finished:
        found = [flaw for flaw in flaws if flaw]
        reasons = [f"{len(found)} of {len(flaws)} rationales: {found[0]}"] if found else []
        reasons += [one.error for one in rationales if one.error]
        reasons += [_unfinished(rationales, config, max_new_tokens, prompt_length, max_length)]
        return unscored(reasons[0], config, rationales)
    values = torch.tensor(config.scale.values)  # (K,)
    log_probs = torch.tensor([rationale.log_probs for rationale in finished])  # (finished, K)
    scores = expected_score(log_probs, values, config.renormalize_scores)  # (finished,)
    probs = log_probs.exp().mean(0)  # (K,)
    share = probs / probs.sum()
    variance = share @ values.square() - (share @ values).square()
    return Judgment(
        score=float(scores.mean()),
        probs=tuple(probs.tolist()),
        std=math.sqrt(max(0.0, float(variance))),
        mass=float(probs.sum()),
        label=finished[0].label,
        rationale=finished[0].text,
        reason="",
        rationales=tuple(rationales),
        score_interval=_interval(finished, scores.tolist()),
    )


def _unfinished(
    rationales: Sequence[Rationale], config: JudgeConfig, limit: int, prompt_length: int, max_length: int | None
) -> str:
    """Why no rationale came to a score: there was no room to write, or at most `limit` tokens of it."""
    room = math.inf if max_length is None else max_length - prompt_length
    if room <= 0:
        return f"There are {prompt_length} tokens to read, and the model reads {max_length}."
    cut = sum(one.num_tokens >= min(limit, room) for one in rationales)
    at = f"the model's limit of {max_length} tokens, of which the prompt takes {prompt_length}"
    return (
        f"None of {len(rationales)} rationales came to {config.score_prefix!r} and a label; {cut} were cut at "
        f"{at if room < limit else f'max_new_tokens={limit}'}."
    )


def _interval(finished: Sequence[Rationale], scores: Sequence[float]) -> tuple[float, float] | None:
    """The mean of the rationales' intervals. An exact score is an interval of no width."""
    if all(rationale.score_interval is None for rationale in finished):
        return None
    ends = [rationale.score_interval or (score, score) for rationale, score in zip(finished, scores, strict=True)]
    low, high = np.mean(ends, axis=0).tolist()
    return low, high


def is_wide(interval: tuple[float, float], scale: ScoreScale) -> bool:
    """Whether the interval of a score is so wide that two records may not be told apart by it."""
    return interval[1] - interval[0] > WIDE * (scale.high - scale.low)


def _flaw(rationale: Rationale) -> str:
    """Why the probabilities of the labels cannot be used; empty if they can, or if there are none."""
    if rationale.log_probs is None:
        return ""
    mass = sum(math.exp(min(value, 1)) for value in rationale.log_probs)
    if any(map(math.isnan, rationale.log_probs)):
        return (
            "the model gives no numbers (NaN) for the labels. Its logits may overflow in float16: load it in bfloat16 "
            "or float32."
        )
    if mass > 1 + SLACK:
        return f"the labels' probabilities add up to {mass:.3g}, so what the model or server returned are none."
    if mass < MIN_MASS:
        return (
            f"the labels have a probability of only {mass:.2g} together, less than {MIN_MASS}: the model would write "
            "something else there. Check the scale and score_prefix."
        )
    return ""


def unscored(reason: str, config: JudgeConfig, rationales: Sequence[Rationale] = ()) -> Judgment:
    """The judgment of a record that has no score."""
    nothing = (math.nan,) * len(config.score_labels)
    text = rationales[0].text if rationales else ""
    return Judgment(math.nan, nothing, math.nan, math.nan, None, text, reason, tuple(rationales))


@dataclass(frozen=True)
class Comparison:
    """
    Two judgments against each other, their scores taken as independent draws from `probs`, divided by their mass.

    Attributes:
        win (`float`): probability that the score of `a` is more than the tie width above that of `b`; NaN if either is
            unscored, as are the next two.
        tie (`float`): probability that the two are within the tie width of each other.
        loss (`float`): probability that `b` is more than the tie width above.
        verdict (`str`, *optional*): `"a"`, `"b"`, or `"tie"` where the expected scores are within the tie width of each
            other; `None` if either is unscored.
        a ([`Judgment`]), b ([`Judgment`]): the judgments.
    """

    win: float
    tie: float
    loss: float
    verdict: str | None
    a: Judgment
    b: Judgment


def comparison(a: Judgment, b: Judgment, config: JudgeConfig, tie_width: float = 0.0) -> Comparison:
    """`a` against `b`. `tie_width` is in units of the scale."""
    if tie_width < 0:
        raise InputError(f"tie_width must be at least 0, got {tie_width}.")
    if a.reason or b.reason:
        return Comparison(math.nan, math.nan, math.nan, None, a, b)
    values = np.array(config.scale.values)  # (K,)
    joint = np.outer(np.divide(a.probs, a.mass), np.divide(b.probs, b.mass))  # (K, K)
    gaps = values[:, None] - values  # (K, K)
    win, loss = float(joint[gaps > tie_width].sum()), float(joint[gaps < -tie_width].sum())
    gap = a.score - b.score
    verdict = "tie" if abs(gap) <= tie_width else "a" if gap > 0 else "b"
    return Comparison(win, max(0.0, 1 - win - loss), loss, verdict, a, b)
