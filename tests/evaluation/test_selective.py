"""Risk against coverage, against hand arithmetic and naive loops."""

import math

import numpy as np
import pytest

from tract_trainer.evaluation.selective import selective
from tract_trainer.hub.results import selective_remark

VALUES = [1, 2, 3, 4, 5]


def certain(*scores):
    """Rationales that have all probability on a score each; `None` is one without a score."""
    return [{"probs": None if score is None else [float(score == value) for value in VALUES]} for score in scores]


def rows_of(gold, stds, groups=None, rationales=None):
    rationales = rationales or [certain(3)] * len(gold)
    columns = zip(gold, stds, groups or range(len(gold)), rationales, strict=True)
    return [{"gold": g, "std": s, "group": group, "rationales": r} for g, s, group, r in columns]


def found(scores, *args):
    return selective(rows_of(*args), np.array(scores, dtype=np.float64), VALUES, False)


def test_a_curve_of_four_records_by_hand():
    # Errors 0 2 1 3, from the lowest std: 0 1 2 3. Mean squares: 0, 1/2, 5/3, 14/4. The record without a score is out.
    result = found([1, 3, 2, 4, math.nan], [1, 1, 1, 1, 1], [0.1, 0.3, 0.2, 0.4, None])
    assert result["coverage"] == [0.25] * 5 + [0.5] * 5 + [0.75] * 5 + [1.0] * 5
    by_std = result["orders"]["std"]
    assert by_std["rmse"][::5] == pytest.approx([0, 0.5**0.5, (5 / 3) ** 0.5, 3.5**0.5])
    assert by_std["mae"][::5] == pytest.approx([0, 0.5, 1, 1.5])
    assert by_std["threshold"][::5] == [0.1, 0.2, 0.3, 0.4]
    assert by_std["area"] == pytest.approx((0 + 1 / 2 + 5 / 3 + 14 / 4) / 4) and by_std["gain"] == pytest.approx(1)
    assert result["area_random"] == pytest.approx(14 / 4)
    assert list(result["orders"]) == ["std", "oracle"]  # one rationale each, so there is no spread
    # The other way round, squares 9 4 1 0: 9, 13/2, 14/3, 14/4.
    worst = found([1, 3, 2, 4], [1, 1, 1, 1], [0.4, 0.2, 0.3, 0.1])["orders"]["std"]
    best, area = (0 + 1 / 2 + 5 / 3 + 14 / 4) / 4, (9 + 13 / 2 + 14 / 3 + 14 / 4) / 4
    assert worst["area"] == pytest.approx(area) and worst["gain"] == pytest.approx((3.5 - area) / (3.5 - best))


def test_records_that_are_equally_sure_are_in_random_order():
    """The area is the mean over shuffled orders, and where all are equally sure that of a random order exactly."""
    rng = np.random.default_rng(0)
    gold, scores, stds = rng.integers(1, 6, 40), rng.uniform(1, 5, 40), rng.integers(0, 3, 40) / 2
    result = found(scores, gold, stds)
    areas = []
    for _ in range(4000):
        squares = ((scores - gold) ** 2)[np.lexsort([rng.random(40), stds])]
        areas.append(np.mean(np.cumsum(squares) / np.arange(1, 41)))
    assert result["orders"]["std"]["area"] == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / 4000**0.5)
    same = found(scores, gold, [0.5] * 40)
    assert same["orders"]["std"]["gain"] == pytest.approx(0) and same["orders"]["std"]["rmse"][0] == pytest.approx(
        same["area_random"] ** 0.5
    )


def test_the_spread_is_that_of_the_scored_rationales_and_one_alone_is_the_least_sure():
    rationales = [certain(3, 5), certain(4, 4, None), certain(None, 4), certain(4, 5)]
    order = found([4, 4, 4, 4.5], [4, 4, 4, 4], [0.5] * 4, None, rationales)["orders"]["spread"]
    assert order["threshold"][::5][:3] == [0.0, 0.5, 1.0] and math.isnan(order["threshold"][-1])
    # Of the two records with errors 0.5 and 0, the sure one has 0.
    assert order["mae"][::5] == pytest.approx([0, 0.25, 0.5 / 3, 0.125])


def test_the_interval_is_of_groups_and_covers_a_gain_that_is_not_there():
    rng = np.random.default_rng(1)
    gold, errors, groups = rng.integers(1, 6, 200), rng.normal(size=200), np.repeat(np.arange(50), 4)
    noise = found(gold + errors, gold, rng.random(200), groups.tolist())["orders"]["std"]
    known = found(gold + errors, gold, np.abs(errors) + rng.random(200), groups.tolist())["orders"]["std"]
    assert noise["gain_ci"][0] < 0 < noise["gain_ci"][1] and known["gain_ci"][0] > 0.3
    alone = found(gold + errors, gold, rng.random(200), [0] * 200)["orders"]["std"]
    assert all(map(math.isnan, alone["gain_ci"]))  # of one group there is none


def test_the_remark_has_the_surest_half_and_the_gain():
    result = found([1, 3, 2, 4], [1, 1, 1, 1], [0.1, 0.3, 0.2, 0.4])
    assert selective_remark({"selective": result}) == (
        "Selective judging: RMSE .707 of the half with the lowest std (up to .200); 1.871 of all. Gain in area under "
        "the risk-coverage curve (0: random order, 1: by the true error): 1.000 by std."
    )
    assert selective_remark({}) == selective_remark({"selective": found([math.nan], [1], [None])}) == ""
