"""Turns predicted and gold scores into figures of agreement, each with a confidence interval.

Knows nothing of models. `n` is the number of records; a prediction that is NaN is unscored.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tract_trainer.errors import InputError

Floats = NDArray[np.float64]


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN if either side is constant."""
    return float(stats.pearsonr(x, y).statistic) if _varies(x) and _varies(y) else float("nan")


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rho; NaN if either side is constant."""
    return float(stats.spearmanr(x, y).statistic) if _varies(x) and _varies(y) else float("nan")


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's tau-b; NaN if either side is constant."""
    return float(stats.kendalltau(x, y).statistic) if _varies(x) and _varies(y) else float("nan")


def rmse(x: Floats, y: Floats) -> float:
    """Root mean squared error, in units of the scale."""
    return float(np.sqrt(np.mean((x - y) ** 2)))


def mae(x: Floats, y: Floats) -> float:
    """Mean absolute error, in units of the scale."""
    return float(np.mean(np.abs(x - y)))


FIGURES: dict[str, Callable[[Floats, Floats], float]] = {f.__name__: f for f in (pearson, spearman, kendall, rmse, mae)}


def agreement(
    predictions: Sequence[float] | Floats,
    gold: Sequence[float] | Floats,
    *,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 42,
) -> dict[str, Any]:
    """
    Agreement of predicted with gold scores over the records that were scored.

    Args:
        predictions (`Sequence[float]`): predicted scores, `(n,)`, in units of the scale; NaN where unscored.
        gold (`Sequence[float]`): gold scores, `(n,)`.
        n_resamples (`int`, *optional*, defaults to `1000`): bootstrap resamples of records; 0 for no intervals.
        confidence_level (`float`, *optional*, defaults to `0.95`): coverage of the percentile intervals.
        seed (`int`, *optional*, defaults to `42`): seed of the bootstrap.

    Returns:
        `dict` with `pearson`, `spearman`, `kendall` (tau-b), `rmse`, `mae`, each also as `<name>_ci`, a `(low, high)`
        pair; `n`, the number of records; `unscored`, how many of them have no prediction and count in no figure. A
        figure that is not defined (constant scores, fewer than two records) is NaN.

    Raises:
        ValueError: the lengths differ, or a gold score is not finite.
    """
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one gold score per prediction, got shapes {x.shape} and {y.shape}.")
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise InputError(f"Gold scores must be finite numbers; number {row} is {y[row]}. Leave such records out.")
    scored = np.isfinite(x)
    x, y = x[scored], y[scored]
    result: dict[str, Any] = {"n": len(scored), "unscored": int((~scored).sum())}
    for name, figure in FIGURES.items():
        result[name] = figure(x, y) if len(x) else float("nan")
        if n_resamples:
            result[f"{name}_ci"] = _interval(figure, x, y, n_resamples, confidence_level, seed)
    return result


def _interval(
    figure: Callable[[Floats, Floats], float], x: Floats, y: Floats, n_resamples: int, level: float, seed: int
) -> tuple[float, float]:
    if len(x) < 2 or np.isnan(figure(x, y)):
        return float("nan"), float("nan")
    with warnings.catch_warnings():  # a resample of one record repeated has no correlation: its NaN is left out below
        warnings.simplefilter("ignore")
        resampled = stats.bootstrap(
            (x, y),
            figure,
            paired=True,
            vectorized=False,
            n_resamples=n_resamples,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _varies(x: Floats) -> bool:
    return len(x) > 1 and bool(np.ptp(x) > 0)
