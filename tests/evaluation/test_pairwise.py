"""Accuracy of pairs, its intervals and differences. Sections are tested with the benchmarks."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS
from tract_trainer.errors import InputError
from tract_trainer.evaluation.pairwise import accuracy_difference, pair_figures, pair_wins, pairwise_accuracy
from tract_trainer.metrics import mean_share_interval

LANGUAGES = [name for name in REWARD_BENCH_SECTIONS["Reasoning"] if name.startswith("hep-")]


def test_six_languages_of_one_problem_are_one_group():
    solved = np.arange(164) < 100  # in all six languages, or in none
    scores = [score for _ in LANGUAGES for won in solved for score in ((2, 1) if won else (1, 2))]
    subsets, groups = np.repeat(LANGUAGES, 164), np.tile(np.arange(164), 6)
    together, apart = (pair_figures(scores, subsets, of)["sections"]["Reasoning"] for of in (groups, None))
    assert together["accuracy"] == apart["accuracy"] == pytest.approx(100 / 164)
    once = mean_share_interval(solved.astype(float), np.arange(164))
    assert np.ptp(together["accuracy_ci"]) == pytest.approx(np.ptp(once), rel=0.02)
    assert np.ptp(apart["accuracy_ci"]) == pytest.approx(np.ptp(once) / np.sqrt(6), rel=0.02)
    python = pair_figures(scores, subsets, groups)["subsets"]["hep-python"]
    assert python["accuracy_ci"] == pytest.approx(once)  # within a language the problems are independent


def test_the_interval_of_all_pairs_knows_of_groups_across_subsets():
    scores, subsets = [2, 1, 1, 2] * 20, ["a", "b"] * 20
    alone = pair_figures(scores, subsets)
    twice = pair_figures(scores, subsets, np.arange(40) // 4)
    assert alone["accuracy_ci"] != twice["accuracy_ci"]
    with pytest.raises(InputError, match=r"^Expected a group for each of 40 records, got 3\.$"):
        pair_figures(scores, subsets, [1, 2, 3])


def test_the_response_with_the_higher_score_wins():
    assert pair_wins([3, 1, 1, 3, 2, 2, 5, 4.9]).tolist() == [1, 0, 0.5, 1]
    assert np.isnan(pair_wins([math.nan, 1, 4, math.nan])).all()


def test_pairwise_accuracy_by_hand():
    # Right, wrong, tied, right, and two without a score: 2.5 of 4; 2.5 of 6 if these are wrong.
    found = pairwise_accuracy(np.array([1, 0, 0.5, 1, math.nan, math.nan]))
    assert found["accuracy"] == 2.5 / 4
    assert found["accuracy_worst"] == pytest.approx(2.5 / 6)
    assert (found["n"], found["ties"], found["unscored"]) == (6, 1, 2)
    assert found["accuracy_ci"] == pytest.approx(mean_share_interval(np.array([1, 0, 0.5, 1]), np.arange(4)))
    assert json.loads(json.dumps(found))
    wins = np.repeat([1.0, 0.0], 30)
    grouped, alone = pairwise_accuracy(wins, np.tile(np.repeat(np.arange(15), 2), 2)), pairwise_accuracy(wins)
    assert grouped["accuracy"] == alone["accuracy"] and grouped["accuracy_ci"] != alone["accuracy_ci"]


def test_pairwise_accuracy_of_nothing_is_nan():
    nothing, unscored = pairwise_accuracy(np.array([])), pairwise_accuracy(np.array([math.nan]))
    assert math.isnan(nothing["accuracy"]) and math.isnan(nothing["accuracy_worst"])
    assert math.isnan(unscored["accuracy"]) and unscored["accuracy_worst"] == 0
    assert all(map(math.isnan, (*nothing["accuracy_ci"], *unscored["accuracy_ci"])))


def test_the_difference_of_accuracies_is_of_the_pairs_that_both_scored():
    a, b = np.array([[1, 1, 0.5, 0, math.nan, 1, 1, 0], [1, 0, 0, 0.5, 1, math.nan, 0, 0]])
    found = accuracy_difference(a, b)
    expected = stats.ttest_rel([1, 1, 0.5, 0, 1, 0], [1, 0, 0, 0.5, 0, 0])
    assert (found["a"], found["b"], found["n"], found["unscored"]) == (3.5 / 6, 1.5 / 6, 8, 2)
    assert found["p_value"] == pytest.approx(expected.pvalue)
    assert found["difference_ci"] == pytest.approx(tuple(expected.confidence_interval()))
    grouped = accuracy_difference(a, b, groups=[0, 0, 1, 1, 2, 2, 3, 4])
    assert grouped["difference"] == found["difference"] and grouped["p_value"] != found["p_value"]
    undecided = accuracy_difference(np.ones(9), np.ones(9))  # nine pairs do not show that two judges are equal
    assert undecided["difference"] == 0 and all(map(math.isnan, (undecided["p_value"], *undecided["difference_ci"])))
