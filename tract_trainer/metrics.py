"""Turns predicted and gold scores into figures of how good a judge is, with intervals from resampled records.

Knows nothing of models. A prediction of NaN is unscored. `n` records, `K` values of the scale.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tract_trainer.errors import InputError
from tract_trainer.intervals import FISHER, LINEAR, LOG, Interval, around, around_share, p_value
from tract_trainer.resampling import PLAIN, ROUNDED, Agreement, Floats, Groups, Ints, chunks, grouped, resamples

Scores = Sequence[float] | Floats
ERRORS = ("rmse", "mae")
"""Figures in units of the scale, of which less is better."""


def agreement(
    predictions: Scores,
    gold: Scores,
    *,
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 42,
) -> dict[str, Any]:
    """
    Agreement of predicted with gold scores over the records that were scored.

    Args:
        predictions (`Sequence[float]`): predicted scores, `(n,)`, in units of the scale; NaN where unscored.
        gold (`Sequence[float]`): gold scores, `(n,)`; they may lie between the values of the scale.
        values (`Sequence[float]`, *optional*): values of the scale, `(K,)`; they bring in the figures that need them.
        groups (`Sequence`, *optional*): what the records of a group share, `(n,)`, e.g. their instruction. Scores of
            several responses to one are not independent, and whole groups are resampled. By default, each record alone.
        n_resamples (`int`, *optional*, defaults to `1000`): bootstrap resamples of groups; 0 for no intervals.
        confidence_level (`float`, *optional*, defaults to `0.95`): how many of such intervals are to cover the figure
            that all records of this kind would have.
        seed (`int`, *optional*, defaults to `42`): seed of the bootstrap.

    Returns:
        `dict` with the figures, each also as `<name>_ci`, a `(low, high)` pair; `n`, the number of records; `unscored`,
        how many of them have no prediction and count in no figure. A figure that is not defined is NaN: a correlation
        with constant scores, `ccc` and `qwk` where both sides are the same constant, any figure of no record.

        - `pearson`, `spearman`; `rmse` and `mae` in units of the scale.
        - `kendall`: tau-b, which a pair of records lowers that is tied on one side only. RAIL's continuous scores are
          hardly ever tied, so that against whole gold scores they come out lower than the same scores rounded.
        - `ccc`: Lin's concordance correlation, `2 cov / (var x + var y + (mean x - mean y)^2)`, over `n`, not `n - 1`,
          as in Lin (1989), Biometrics 45, 255-268.
        - `kendall_rounded`: tau-b of predictions rounded to the nearest of `values` (of two as near, the first).
        - `qwk`: kappa of predictions and gold, both so rounded, with the squared distance of values as the weight of a
          disagreement, as in Cohen (1968), Psychological Bulletin 70, 213-220.
        - `within_one`: share of rounded predictions at most one step from gold. A step leads from a value to the next,
          whatever the gap; a gold score part of the way is that part of a step off.
        - `<name>_worst`: each of these over all records, if those unscored had been given the end of the scale that is
          farther from their gold score (of two as far, the lower). Like the three before, it comes with `values` only.

        An interval is [`~tract_trainer.intervals.around`] the figure, with the bootstrap's standard error: of errors on
        a logarithmic axis, of the others on that of Fisher's z. `within_one` has the interval of Wilson,
        [`~tract_trainer.intervals.around_share`]. docs/evaluation.md says how often they cover the true figure.

    Raises:
        InputError: the lengths differ, a gold score is not finite, `values` are not those of a scale, or
            `confidence_level` is not between 0 and 1.
    """
    x, y = _paired(predictions, gold)
    group = _grouped(groups, len(x))
    scale = None if values is None else checked_scale(values)
    names = PLAIN if scale is None else PLAIN + ROUNDED
    scored = np.isfinite(x)
    records = Agreement(x[scored], y[scored], scale)
    found: dict[str, Any] = {"n": len(x), "unscored": int((~scored).sum())} | records.overall(names)
    if n_resamples:
        several = grouped(group[scored], len(group[scored]))
        for name, bounds in _intervals(records, found, names, several, n_resamples, confidence_level, seed).items():
            found[f"{name}_ci"] = bounds
    if scale is not None:
        farther = np.where(scale.max() - y > y - scale.min(), scale.max(), scale.min())
        worst = Agreement(np.where(scored, x, farther), y, scale).overall(names)
        found |= {f"{name}_worst": figure for name, figure in worst.items()}
    return found


def _intervals(
    records: Agreement, found: dict[str, Any], names: Sequence[str], group: Ints, times: int, level: float, seed: int
) -> dict[str, Interval]:
    """Of the figures `names`, whose values `found` has."""
    n, others = group.max(initial=-1) + 1, [name for name in names if name != "within_one"]
    drawn = resamples(group, times, np.random.default_rng(seed))
    chunked = [records.figures(others, weights) for weights in drawn]
    intervals = {}
    for name in others:
        axis = LOG if name in ERRORS else FISHER
        intervals[name] = around(found[name], [chunk[name] for chunk in chunked], n, level, axis)
    if "within_one" in names:
        intervals["within_one"] = around_share(records.within_one(), 0, 1, level, group)
    return intervals


def paired_difference(
    a: Scores,
    b: Scores,
    gold: Scores,
    *,
    figure: str = "pearson",
    values: Sequence[float] | None = None,
    groups: Groups | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 10_000,
    confidence_level: float = 0.95,
    seed: int = 42,
) -> dict[str, Any]:
    """
    A figure of judge `a` less that of judge `b`, over the records that both scored.

    The p-value is of the hypothesis that the judges are interchangeable: in any group of records (by default, in any
    record) their predictions could as well be swapped. Judges whose scores differ in spread are not, even where a
    correlation is the same for both.

    Args:
        a, b, gold (`Sequence[float]`): scores of either judge, `(n,)`, NaN where unscored, and gold scores, `(n,)`.
        figure (`str`, *optional*, defaults to `"pearson"`): name of a figure of [`agreement`].
        n_permutations (`int`, *optional*, defaults to `10000`): times that predictions are swapped at random.
        values, groups, n_resamples, confidence_level, seed: as in [`agreement`]; each resample is the same for both.

    Returns:
        `dict` with `a` and `b`, their figures; `difference` and `difference_ci`, a `(low, high)` pair; `p_value`,
        two-sided, `(1 + permutations with as large a difference) / (1 + permutations)`; `n`, the number of records;
        `unscored`, how many of them are left out since a judge gave no score. What is not defined is NaN.

        The interval is [`~tract_trainer.intervals.around`] the difference, with the bootstrap's standard error of it;
        for `within_one` that of Tango, [`~tract_trainer.intervals.around_share`]. Judges that gave every record the
        same score get `(0, 0)`.

    Raises:
        InputError: as [`agreement`], or `figure` is not known or needs `values`.
    """
    scale = None if values is None else checked_scale(values)
    if figure not in PLAIN + ROUNDED:
        raise InputError(f"figure {figure!r} is not known; known are {[*PLAIN, *ROUNDED]}.")
    if figure in ROUNDED and scale is None:
        raise InputError(f"figure {figure!r} rounds to the scale. Give its values, e.g. values=[1, 2, 3, 4, 5].")
    (first, y), (second, _) = _paired(a, gold), _paired(b, gold)
    both = np.isfinite(first) & np.isfinite(second)
    n, rng = int(both.sum()), np.random.default_rng(seed)
    group = grouped(_grouped(groups, len(both))[both], n)
    size = group.max(initial=-1) + 1
    pool = Agreement(np.concatenate([first[both], second[both]]), np.concatenate([y[both], y[both]]), scale)

    def figures(weights: Floats, others: Floats) -> Floats:
        """Figures `(2, R)` of the pool, where `a` has `weights` and `b` has `others`, `(n, R)`, and the reverse."""
        columns = np.block([[weights, others], [others, weights]])
        # Rounded, since the place of a column moves the last digits, and the same judge twice must not differ.
        return pool.figures([figure], columns)[figure].reshape(2, -1).round(12)

    of_a, of_b = figures(np.ones((n, 1)), np.zeros((n, 1)))[:, 0].tolist()
    resampled = (np.subtract(*figures(drawn, 0 * drawn)) for drawn in resamples(group, n_resamples, rng))
    bounds = around(of_a - of_b, resampled, size, confidence_level, LINEAR)
    if figure == "within_one" and not np.array_equal(first[both], second[both]):
        close = pool.within_one()
        bounds = around_share(close[:n] - close[n:], -1, 1, confidence_level, group)
    swaps = chunks(lambda: rng.integers(2, size=size)[group], n, n_permutations)
    permuted = [np.subtract(*figures(kept, 1 - kept)) for kept in swaps]
    found = {"n": len(both), "unscored": len(both) - n, "a": of_a, "b": of_b, "difference": of_a - of_b}
    return found | {"difference_ci": bounds, "p_value": p_value(of_a - of_b, permuted) if size > 1 else np.nan}


def pairwise_accuracy(first: Scores, second: Scores, *, confidence_level: float = 0.95) -> dict[str, Any]:
    """
    How often a judge gives the preferred response of a pair the higher score.

    Args:
        first, second (`Sequence[float]`): scores of the preferred and of the other responses, `(n,)`; NaN if unscored.
        confidence_level (`float`, *optional*, defaults to `0.95`): as in [`agreement`].

    Returns:
        `dict` with `accuracy`, a tie being half right, and `accuracy_ci`, a `(low, high)` pair, over the pairs with two
        scores; `accuracy_worst`, over all pairs, the others being wrong; `n`, the number of pairs; `ties`;
        `unscored`, how many lack a score. What is not defined is NaN. The interval is that of a score test,
        [`~tract_trainer.intervals.around_share`]: Wilson's where no pair is tied.

    Raises:
        InputError: the lengths differ.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one second score per first score, got shapes {x.shape} and {y.shape}.")
    scored = np.isfinite(x) & np.isfinite(y)
    right, n = (1 + np.sign(x[scored] - y[scored])) / 2, int(scored.sum())
    found: dict[str, Any] = {"n": len(x), "ties": int((right == 0.5).sum()), "unscored": len(x) - n}
    found["accuracy"] = float(right.mean()) if n else np.nan
    found["accuracy_worst"] = float(right.sum() / len(x)) if len(x) else np.nan
    return found | {"accuracy_ci": around_share(right, 0, 1, confidence_level)}


def accuracy_difference(a: Scores, b: Scores, *, seed: int = 42) -> dict[str, Any]:
    """
    The pairwise accuracy of judge `a` less that of judge `b`, over the pairs that both scored.

    Args:
        a, b (`Sequence[float]`): wins of either judge, `(n,)`: 1, 0, a half in a tie, NaN where unscored.
        seed (`int`, *optional*, defaults to `42`): seed of the permutations.

    Returns:
        `dict` as of [`paired_difference`], but with the interval of a score test,
        [`~tract_trainer.intervals.around_share`]: Tango's where no pair is tied.
    """
    # The mean of wins is their mean distance from 0, so what is computed for `mae` is the accuracy.
    found = paired_difference(a, b, np.zeros(len(a)), figure="mae", n_resamples=0, seed=seed)
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return found | {"difference_ci": around_share(differences[np.isfinite(differences)], -1, 1, 0.95)}


def checked_gold(gold: Scores) -> Floats:
    """Gold scores as an array; an InputError where one is not finite."""
    y = np.asarray(gold, dtype=np.float64)
    if not np.isfinite(y).all():
        row = int(np.flatnonzero(~np.isfinite(y))[0])
        raise InputError(f"Gold scores must be finite numbers; number {row} is {y[row]}. Leave such records out.")
    return y


def checked_scale(values: Sequence[float]) -> Floats:
    """Values of a scale as an array; an InputError where they are not two or more different, finite numbers."""
    scale = np.asarray(values, dtype=np.float64)
    if scale.ndim != 1 or len(set(scale.tolist())) < max(2, len(scale)) or not np.isfinite(scale).all():
        raise InputError(f"Expected values of a scale, different numbers as in [1, 2, 3, 4, 5], got {list(values)}.")
    return scale


def _grouped(groups: Groups | None, n: int) -> Ints:
    if groups is not None and len(groups) != n:
        raise InputError(f"Expected a group for each of {n} records, got {len(groups)}.")
    return grouped(groups, n)


def _paired(predictions: Scores, gold: Scores) -> tuple[Floats, Floats]:
    x, y = np.asarray(predictions, dtype=np.float64), checked_gold(gold)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"Expected one gold score per prediction, got shapes {x.shape} and {y.shape}.")
    return x, y
