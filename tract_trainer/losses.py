"""Expected score and score losses, from log-probabilities over a scale and gold scores.

Pure functions of tensors. Shape letters: `N` scores due, `K` labels of the scale. Log-probabilities are those of the
whole vocabulary's softmax at the labels' tokens, so a row's probabilities add up to at most 1; what is missing is
probability off the scale. Scores are in units of the scale, losses one number per score.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 4.0
"""From end to end of the scale 1 to 5. On it the losses are as published."""


def renormalize(score_log_probs: Tensor) -> Tensor:
    """Log-probabilities given that the token is on the scale, `(N, K)`: a softmax over the scale alone."""
    return score_log_probs.float().log_softmax(-1)


def score_mass(score_log_probs: Tensor) -> Tensor:
    """Probability on the scale, `(N,)`, between 0 and 1."""
    return score_log_probs.float().exp().sum(-1)


def expected_score(score_log_probs: Tensor, values: Tensor, renormalize_scores: bool = False) -> Tensor:
    """
    The RAIL score `sum_k v_k p_k` (Lukasik et al., EMNLP Findings 2024): the Bayes-optimal prediction for a squared
    error if the probabilities add up to 1. Training and judging both call this function.

    Args:
        score_log_probs (`torch.Tensor`): log-probabilities of the labels, `(N, K)`.
        values (`torch.Tensor`): value of each label, `(K,)`.
        renormalize_scores (`bool`, *optional*, defaults to `False`):
            Whether to divide by the probability on the scale. The paper does not.

    Returns:
        `torch.Tensor` of shape `(N,)`, float32, in units of the scale.
    """
    if renormalize_scores:
        score_log_probs = renormalize(score_log_probs)
    return score_log_probs.float().exp() @ values.to(score_log_probs.device, torch.float32)


def squared_error(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """`(yhat - y)^2` with `yhat` the expected score: RAFT (Lukasik et al., ICLR 2025), TRACT eq. 4."""
    return (expected_score(score_log_probs, values) - gold).square()


def absolute_error(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """`|yhat - y|` with `yhat` the expected score."""
    return (expected_score(score_log_probs, values) - gold).abs()


def huber(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """`(yhat - y)^2 / 2` within one unit of the scale, `|yhat - y| - 1/2` beyond it (Huber, 1964)."""
    return F.huber_loss(expected_score(score_log_probs, values), gold, reduction="none")


def wasserstein(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """
    `sum_k p_k |v_k - y|`: the first Wasserstein distance between the distribution and the gold score. Probability off
    the scale costs nothing here, so it needs `renormalize_scores=True`: a cross-entropy over the whole text beside it
    does not hold the probability on the scale.
    """
    distance = (values - gold[:, None]).abs()  # (N, K)
    return (score_log_probs.exp() * distance).sum(-1)


def crps(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """
    Continuous ranked probability score `integral of (F(t) - 1[t >= y])^2 dt` over the scale (Matheson and Winkler,
    1976); for a gold score on the scale, `sum_k (F_k - 1[v_k >= y])^2 (v_{k+1} - v_k)`. A gap that holds a fractional
    gold score is split there. Probability off the scale counts as if it stood above the top.
    """
    values, order = values.sort()
    cdf = score_log_probs[:, order].exp().cumsum(-1)[:, :-1]  # (N, K - 1), constant within a gap
    gaps = values.diff()  # (K - 1,)
    above = ((values[1:] - gold[:, None]) / gaps).clamp(0, 1)  # (N, K - 1), share of the gap at or above y
    return (gaps * ((1 - above) * cdf.square() + above * (1 - cdf).square())).sum(-1)


def soft_ce(score_log_probs: Tensor, values: Tensor, gold: Tensor) -> Tensor:
    """
    `-sum_k q_k log p_k` with the two-hot target `q`: the two labels next to `y`, weighted so that `sum_k q_k v_k = y`.
    A gold score on the scale gives plain cross-entropy.
    """
    values, order = values.sort()
    upper = torch.searchsorted(values, gold.contiguous()).clamp(1, len(values) - 1)  # (N,)
    weight = ((gold - values[upper - 1]) / (values[upper] - values[upper - 1])).clamp(0, 1)  # (N,)
    log_probs = score_log_probs[:, order]
    at = log_probs.gather(1, torch.stack([upper - 1, upper], dim=1))  # (N, 2)
    share = torch.stack([1 - weight, weight], dim=1)  # (N, 2)
    # xlogy's convention: a label of weight 0 costs 0, even where its log-probability is -inf.
    return -torch.where(share > 0, share * at, torch.zeros_like(at)).sum(-1)


SCORE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    loss.__name__: loss for loss in (squared_error, absolute_error, huber, wasserstein, crps, soft_ce)
}


def score_loss(
    score_log_probs: Tensor, values: Tensor, gold: Tensor, loss_type: str, renormalize_scores: bool
) -> Tensor:
    """
    The loss named `loss_type`, in float32, of the scale stretched or shrunk to `WIDTH`: so its weight means the same on
    every scale.

    Args:
        score_log_probs (`torch.Tensor`): log-probabilities of the labels, `(N, K)`.
        values (`torch.Tensor`): value of each label, `(K,)`.
        gold (`torch.Tensor`): gold scores, `(N,)`; fractions are kept.
        loss_type (`str`): a key of `SCORE_LOSSES`.
        renormalize_scores (`bool`): whether to take the loss of the distribution over the scale alone.

    Returns:
        `torch.Tensor` of shape `(N,)`. With `N = 0`, empty and still connected to the graph.
    """
    score_log_probs = renormalize(score_log_probs) if renormalize_scores else score_log_probs.float()
    device, unit = score_log_probs.device, WIDTH / (values.max() - values.min()).float()
    values, gold = (values.float() * unit).to(device), gold.to(device, torch.float32) * unit.to(device)
    return SCORE_LOSSES[loss_type](score_log_probs, values, gold)
