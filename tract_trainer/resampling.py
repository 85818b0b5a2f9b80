"""Turns records into figures of agreement, for many resamples of the records at once.

A resample weights each record by how often it was drawn. So the records are sorted once, and each figure of every
resample is made of sums of weights, which are whole numbers and exact in float64. Shape letters: `n` records, `m`
distinct pairs of scores, `G` distinct scores of one side, `R` resamples in a chunk, `K` values of the scale.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Groups = Sequence[Any] | NDArray[Any]
CHUNK = 2**19
"""Weights in a chunk: 4 MB, and what is computed from them some ten times as much."""


def grouped(groups: Groups | None, n: int) -> Ints:
    """Number of the group of each record, `(n,)`, from 0; without `groups`, each record is one."""
    return np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def resamples(group: Ints, times: int, rng: np.random.Generator) -> Iterator[Floats]:
    """
    How often each record is drawn, `(n, R)`, the records of a group together. No resample of fewer than two groups,
    which have no spread to show.

    Args:
        group (`numpy.ndarray`): from [`grouped`], `(n,)`.
    """
    size = group.max(initial=-1) + 1

    def draw() -> Ints:
        return np.bincount(rng.integers(size, size=size), minlength=size)[group]

    return chunks(draw, len(group), times if size > 1 else 0)


def chunks(draw: Callable[[], Ints], n: int, times: int) -> Iterator[Floats]:
    """The results of `draw`, each `(n,)`, called `times` times, side by side as `(n, R)`."""
    size = max(1, CHUNK // max(n, 1))
    for start in range(0, times, size):
        rows = np.stack([draw() for _ in range(min(size, times - start))])
        yield np.ascontiguousarray(rows.T, dtype=np.float64)


class Agreement:
    """
    Figures of agreement of `n` records, by name.

    Args:
        predictions (`numpy.ndarray`): predicted scores, `(n,)`, finite, in units of the scale.
        gold (`numpy.ndarray`): gold scores, `(n,)`, finite.
        values (`numpy.ndarray`, *optional*): values of the scale, `(K,)`; needed for the names in `ROUNDED`.
    """

    def __init__(self, predictions: Floats, gold: Floats, values: Floats | None = None) -> None:
        self.predictions, self.gold, self.values = predictions, gold, values

    def within_one(self) -> Floats:
        """1 for each record whose rounded prediction is at most a step from gold, 0 for the others, `(n,)`."""
        if not len(self.gold):
            return np.empty(0)
        pairs = self._pairs["in steps"]
        close: Floats = pairs.moments[7] @ pairs.of_record
        return close

    def overall(self, names: Iterable[str]) -> dict[str, float]:
        """The figures of all records, each counted once."""
        found = self.figures(names, np.ones((len(self.gold), 1)))
        return {name: float(figure[0]) for name, figure in found.items()}

    def figures(self, names: Iterable[str], weights: Floats) -> dict[str, Floats]:
        """
        Args:
            names (`Iterable[str]`): names from `PLAIN` and `ROUNDED`.
            weights (`numpy.ndarray`): how often each record counts, `(n, R)`, whole numbers, not all 0 in a column.

        Returns:
            `dict`: for each name the figure under each column of weights, `(R,)`; NaN where it is not defined.
        """
        if not len(weights):
            return {name: np.full(weights.shape[1], np.nan) for name in names}
        chosen = {name: _FIGURES[name] for name in names}
        weighted = {kind: _Weighted(self._pairs[kind], weights) for kind in {kind for kind, _ in chosen.values()}}
        return {name: figure(weighted[kind]) for name, (kind, figure) in chosen.items()}

    @cached_property
    def _pairs(self) -> dict[str, "_Pairs"]:
        pairs = {"plain": _Pairs(self.predictions, self.gold)}
        if self.values is not None:
            rounded, gold = (nearest(scores, self.values) for scores in (self.predictions, self.gold))
            pairs |= {"rounded": _Pairs(rounded, self.gold), "both rounded": _Pairs(rounded, gold)}
            pairs["in steps"] = _Pairs(_steps(rounded, self.values), _steps(self.gold, self.values))
        return pairs


def nearest(scores: Floats, values: Floats) -> Floats:
    return values[np.abs(scores[:, None] - values).argmin(1)]  # of two equally near, the first


def _steps(scores: Floats, values: Floats) -> Floats:
    """Places on the scale, `(n,)`: 0 is its lowest value, 1 the next, 1.5 half-way from there to the one after."""
    return np.interp(scores, np.sort(values), np.arange(len(values)))


class _Level(NamedTuple):
    """Pairs of scores whose class has a 0 at one bit (`lower`), and a 1 (`upper`). See `_levels`."""

    lower: Ints  # sorted by block and key
    upper: Ints
    bounds: Ints  # (4, upper): how many of lower come before its key, its key's last, its block, and its block's last


class _Pairs:
    """The distinct pairs of `x` and `y`, each `(n,)`, sorted by `x` and then `y`, and what no weight changes."""

    def __init__(self, x: Floats, y: Floats) -> None:
        x_values, x_of_record = np.unique(x, return_inverse=True)
        y_values, y_of_record = np.unique(y, return_inverse=True)
        cells, pair_of_record = np.unique(x_of_record * len(y_values) + y_of_record, return_inverse=True)
        self.of_record = _one_hot(pair_of_record)  # (m, n)
        self.x_rank, self.y_rank = np.divmod(cells, len(y_values))  # (m,)
        self.groups = _one_hot(self.x_rank), _one_hot(self.y_rank)  # (G, m) of each side
        error = np.abs(x_values[self.x_rank] - y_values[self.y_rank])
        # A sum of squares less the square of the sum keeps its digits if scores are counted from their mean.
        x, y = (x_values - x.mean())[self.x_rank], (y_values - y.mean())[self.y_rank]
        self.moments = np.stack([x, y, x * x, y * y, x * y, error**2, error, error <= 1 + 1e-9])  # (8, m)

    @cached_property
    def levels(self) -> list[_Level]:
        return _levels(*sorted((self.x_rank, self.y_rank), key=np.max))  # the fewer the classes, the fewer the levels


class _Weighted:
    """Pairs under `R` columns of weights, and the sums that several figures are made of."""

    def __init__(self, pairs: _Pairs, weights: Floats) -> None:
        self.pairs = pairs
        self.weights: Floats = pairs.of_record @ weights  # (m, R)
        self.total: Floats = weights.sum(0)  # (R,)

    @cached_property
    def sizes(self) -> tuple[Floats, Floats]:
        """Weight of each distinct score, `(G, R)`, of either side."""
        x, y = self.pairs.groups
        return x @ self.weights, y @ self.weights

    @cached_property
    def untied(self) -> tuple[Floats, Floats]:
        """Twice the number of pairs of records that differ, `(R,)`, on either side; exactly 0 if that is constant."""
        x, y = self.sizes
        return self.total**2 - _dot(x, x), self.total**2 - _dot(y, y)

    @cached_property
    def sums(self) -> Floats:
        """Weighted sums of the moments, `(8, R)`; those of `x * x`, `y * y` and `x * y` about the weighted means."""
        sums: Floats = self.pairs.moments @ self.weights
        x, y = sums[:2]
        sums[2:5] -= np.stack([x * x, y * y, x * y]) / self.total
        for variance, untied in zip((2, 3), self.untied, strict=True):
            sums[np.ix_([variance, 4], untied == 0)] = 0.0  # without the rounding error, or noise would correlate
        return sums


def _pearson(of: _Weighted) -> Floats:
    return _ratio(of.sums[4], np.sqrt(of.sums[2].clip(0)) * np.sqrt(of.sums[3].clip(0))).clip(-1, 1)


def _spearman(of: _Weighted) -> Floats:
    # Mid-ranks less the mean rank, (G, R), from the weights of the sorted distinct scores.
    x, y = (np.cumsum(sizes, axis=0) - (sizes + of.total) / 2 for sizes in of.sizes)
    covariance = _dot(of.pairs.groups[1] @ (of.weights * x[of.pairs.x_rank]), y)
    return _ratio(covariance, np.sqrt(_dot(of.sizes[0], x * x) * _dot(of.sizes[1], y * y))).clip(-1, 1)


def _kendall(of: _Weighted) -> Floats:
    return _ratio(2 * _concordance(of.pairs.levels, of.weights), np.sqrt(of.untied[0] * of.untied[1])).clip(-1, 1)


def _ccc(of: _Weighted) -> Floats:
    covariance, squared_error = of.sums[4:6]
    # The squared error sums to n (var x + var y - 2 cov + (mean x - mean y)^2).
    return _ratio(2 * covariance, squared_error + 2 * covariance)


# Kappa with quadratic weights is the concordance of the rounded scores: the squared distance that it expects of two
# independent raters, the sum of (v - w)^2 p(v) q(w), is var x + var y + (mean x - mean y)^2.
_FIGURES: dict[str, tuple[str, Callable[[_Weighted], Floats]]] = {
    "pearson": ("plain", _pearson),
    "spearman": ("plain", _spearman),
    "kendall": ("plain", _kendall),
    "rmse": ("plain", lambda of: np.sqrt(of.sums[5] / of.total)),
    "mae": ("plain", lambda of: of.sums[6] / of.total),
    "ccc": ("plain", _ccc),
    "kendall_rounded": ("rounded", _kendall),
    "qwk": ("both rounded", _ccc),
    "within_one": ("in steps", lambda of: of.sums[7] / of.total),
}
PLAIN = tuple(name for name, (kind, _) in _FIGURES.items() if kind == "plain")
ROUNDED = tuple(name for name in _FIGURES if name not in PLAIN)


def _levels(classes: Ints, keys: Ints) -> list[_Level]:
    """
    Splits all pairs of records of different class so that each pair is in one level, as in a merge sort.

    Two classes have the same higher bits, their block, above the first bit that tells them apart: 0 in the lower class,
    1 in the upper. So there is a level for each bit, log2(G) of them, each of `O(m)` work for a column of weights.

    Args:
        classes (`numpy.ndarray`), keys (`numpy.ndarray`): ranks of the two sides, `(m,)`, from 0.
    """
    levels, width = [], int(keys.max()) + 1
    for bit in range(int(classes.max()).bit_length()):
        block, half = classes >> (bit + 1), (classes >> bit) & 1
        places = block * width + keys
        order = np.argsort(places, kind="stable")
        lower, upper = order[half[order] == 0], order[half[order] == 1]
        first = block[upper] * width
        ends = [places[upper], places[upper] + 1, first, first + width]
        levels.append(_Level(lower, upper, np.searchsorted(places[lower], np.stack(ends))))
    return levels


def _concordance(levels: list[_Level], weights: Floats) -> Floats:
    """Number of pairs of records in the same order on both sides, less those in opposite order, `(R,)`."""
    score = np.zeros(weights.shape[1])
    for lower, upper, (before, upto, first, last) in levels:
        running = np.zeros((len(lower) + 1, weights.shape[1]))
        np.cumsum(weights[lower], axis=0, out=running[1:])
        margin = running[before]  # smaller keys less larger ones: (before - first) - (last - upto)
        margin += running[upto]
        margin -= running[first]
        margin -= running[last]
        score += _dot(weights[upper], margin)
    return score


def _one_hot(groups: Ints) -> csr_array:
    """The matrix whose product with rows sums those of each group, `(groups, len(groups))`."""
    n = len(groups)
    return csr_array((np.ones(n), (groups, np.arange(n))), shape=(int(groups.max()) + 1, n))


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("ir,ir->r", a, b)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
