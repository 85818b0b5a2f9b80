"""The score of each method, by hand."""

import math

import numpy as np
import pytest

from tract_trainer.evaluation.methods import mean_mass, scores_by_method
from tract_trainer.scale import ScoreScale

THREE = ScoreScale(["low", "mid", "high"], [1, 2, 5])


def row(*rationales):
    return {"rationales": [{"label": label, "probs": probs} for label, probs in rationales]}


def scores(rows, **settings):
    found = scores_by_method(rows, THREE, settings.pop("renormalized", False), **settings)
    return {method: values.tolist() for method, values in found.items()}


def test_each_method_by_hand():
    # Rationales: (.1, .3, .4) of mass .8, label mid; (.5, .2, .2) of mass .9, label high.
    found = scores([row(("mid", [0.1, 0.3, 0.4]), ("high", [0.5, 0.2, 0.2]))])
    first, second = 0.1 + 0.6 + 2.0, 0.5 + 0.4 + 1.0
    assert found["decoded"] == [(2 + 5) / 2]
    assert found["greedy"] == [(5 + 1) / 2]
    assert found["RAIL"] == pytest.approx([(first + second) / 2])
    assert found["RAIL renormalised"] == pytest.approx([(first / 0.8 + second / 0.9) / 2])
    assert found["median"] == [2]  # mean (.3, .25, .3) of .85: .3 and .55 below, half is .425


@pytest.mark.parametrize("probs", [None, [math.nan] * 3, [0.0] * 3, [0.0, 0.004, 0.005]])
def test_a_rationale_with_hardly_any_probability_on_the_scale_has_no_score_by_any_method(probs):
    nothing, known = ("high", probs), ("low", [1.0, 0.0, 0.0])
    assert scores([row(nothing, known)], count=1)["decoded"] == [1]  # the first that has a score
    assert scores([row(("low", [0.01, 0.0, 0.0]))])["RAIL"] == [0.01]  # just enough
    for renormalized in (True, False):
        found = scores([row(nothing), row(nothing, known)], renormalized=renormalized)
        assert all(math.isnan(first) and second == 1 for first, second in found.values())
    assert mean_mass([row(nothing, known)]) == 1 and math.isnan(mean_mass([row(nothing)]))


def test_the_order_of_rationales_does_not_part_what_is_tied():
    tenths = ScoreScale([f"{i}" for i in range(11)], [i / 10 for i in range(11)])
    one, other = ([(f"{i}", np.eye(11)[i].tolist()) for i in order] for order in ((1, 2, 3), (3, 2, 1)))
    assert np.mean([0.1, 0.2, 0.3]) != np.mean([0.3, 0.2, 0.1])
    for method, found in scores_by_method([row(*one), row(*other)], tenths, False).items():
        assert found[0] == found[1], method


def test_a_judge_that_renormalises_has_two_equal_rows():
    found = scores([row(("mid", [0.1, 0.3, 0.4]))], renormalized=True)
    assert found["RAIL"] == found["RAIL renormalised"] == pytest.approx([2.7 / 0.8])


def test_the_median_is_the_lower_of_two_values_whatever_the_order_of_the_labels_and_rounding():
    third = 0.1 + 0.2  # 0.30000000000000004
    assert scores([row(("mid", [third, 0.3, 0.0])), row(("mid", [0.3, third, 0.0]))])["median"] == [1, 1]
    reverse = ScoreScale(["high", "mid", "low"], [5, 2, 1])
    rows = [row(("mid", [0.4, 0.0, 0.4])), row(("mid", [0.6, 0.3, 0.0])), row(("mid", [0.01, 0.03, 0.0]))]
    assert scores_by_method(rows, reverse, False)["median"].tolist() == [1, 5, 2]


def test_the_first_scored_rationales_count():
    rows = [row((None, None), ("low", [1.0, 0.0, 0.0]), ("high", [0.0, 0.0, 0.5]))]
    assert scores(rows, count=1)["RAIL"] == [1] and scores(rows, count=2)["decoded"] == [3]
    assert scores(rows, count=9) == scores(rows)
    assert (mean_mass(rows, 1), mean_mass(rows)) == (1, 0.75)


def test_without_any_a_record_is_unscored():
    rows = [row((None, None)), row(("low", [0.5, 0.0, 0.0]))]
    assert all(math.isnan(values[0]) and not math.isnan(values[1]) for values in scores(rows).values())
    assert mean_mass(rows) == 0.5 and math.isnan(mean_mass(rows[:1]))
