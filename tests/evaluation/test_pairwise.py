"""Intervals of pairs that are not independent. Accuracies and sections are tested with the benchmarks."""

import numpy as np
import pytest

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS
from tract_trainer.errors import InputError
from tract_trainer.evaluation.pairwise import pair_figures
from tract_trainer.metrics import mean_share_interval

LANGUAGES = [name for name in REWARD_BENCH_SECTIONS["Reasoning"] if name.startswith("hep-")]


def test_six_languages_of_one_problem_are_one_group():
    solved = np.arange(164) < 100  # in all six languages, or in none
    scores = [score for _ in LANGUAGES for won in solved for score in ((2, 1) if won else (1, 2))]
    subsets, groups = np.repeat(LANGUAGES, 164), np.tile(np.arange(164), 6)
    together, apart = (pair_figures(scores, subsets, of)["sections"]["Reasoning"] for of in (groups, None))
    assert together["accuracy"] == apart["accuracy"] == pytest.approx(100 / 164)
    once = mean_share_interval(solved.astype(float), np.arange(164), 0.95)
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
