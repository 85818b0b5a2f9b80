"""Agreement of several raters with each other: what a judge can reach on their gold scores at best."""

import math
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import numpy as np

from tract_trainer.metrics import Groups, agreement


def ceiling(
    ratings: Sequence[Sequence[float]], values: Sequence[float] | None, groups: Groups
) -> dict[str, Any] | None:
    """
    Agreement of one rater with the mean of the others, over the records with several ratings.

    Returns:
        What [`~tract_trainer.metrics.agreement`] returns of every rating, each compared with the mean of the record's
        others; `n`, the number of records with several ratings; and `alpha`, Krippendorff's alpha of their ratings with
        squared differences, NaN if the package `krippendorff` is not installed or all ratings are the same. `None` if
        no record has several ratings.
    """
    several = [(of, group) for of, group in zip(ratings, groups, strict=True) if len(of) > 1]
    if not several:
        return None
    one = [rating for of, _ in several for rating in of]
    others = [(sum(of) - rating) / (len(of) - 1) for of, _ in several for rating in of]
    found = agreement(one, others, values=values, groups=[group for of, group in several for _ in of])
    return {**found, "n": len(several), "alpha": _alpha([of for of, _ in several])}


def _alpha(ratings: Sequence[Sequence[float]]) -> float:
    if find_spec("krippendorff") is None or len({rating for of in ratings for rating in of}) < 2:
        return math.nan
    import krippendorff

    table = np.array(list(zip_longest(*ratings, fillvalue=math.nan)))  # raters, records
    return float(krippendorff.alpha(table, level_of_measurement="interval"))
