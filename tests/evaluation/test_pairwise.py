"""Accuracy of pairs, its intervals and differences. Sections are tested with the benchmarks."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS
from tract_trainer.errors import InputError
from tract_trainer.evaluation.pairwise import (
    Layout,
    accuracy_difference,
    pair_figures,
    pair_wins,
    pairwise_accuracy,
    ties_wins,
)
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
    assert pair_wins([3, 1, 1, 3, 2, 2, 5, 4.9])["accuracy"].tolist() == [1, 0, 0.5, 1]
    assert np.isnan(pair_wins([math.nan, 1, 4, math.nan])["accuracy"]).all()


# Several responses


def figures_of(pairs, groups=None):
    """Figures of pairs given as subset, id, chosen scores, rejected scores, and perhaps the places to compare."""
    subsets, ids, chosen, rejected, *compared = zip(*pairs, strict=True)
    sizes = [(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    layout = Layout(list(subsets), list(ids), sizes, list(compared[0]) if compared else [None] * len(pairs))
    scores = [score for a, b in zip(chosen, rejected, strict=True) for score in (*a, *b)]
    return pair_figures(scores, subsets, groups, layout)


def test_with_several_responses_the_highest_score_must_be_of_a_chosen_one():
    # Right; wrong; one chosen and one rejected at the top; one chosen and two rejected; unscored.
    pairs = [("a", "", [4, 1], [3]), ("a", "", [2, 1], [3]), ("a", "", [3, 1], [3]), ("b", "", [2], [2, 2, 1])]
    found = figures_of([*pairs, ("b", "", [5], [math.nan, 1])])
    assert found["accuracy"] == pytest.approx((1 + 0 + 1 / 2 + 1 / 3) / 4)
    assert found["accuracy_worst"] == pytest.approx((1 + 0 + 1 / 2 + 1 / 3) / 5)
    assert (found["n"], found["unscored"], found["ties"]) == (5, 1, 2)
    assert found["subsets"]["b"]["accuracy"] == pytest.approx(1 / 3)
    assert found["chance"] == pytest.approx((2 / 3 + 2 / 3 + 2 / 3 + 1 / 4 + 1 / 3) / 5)  # chosen of all responses
    assert "average" not in found and "chance" not in pair_figures([2, 1], ["a"])


BEST_OF_FOUR = ("Factuality", "Precise IF", "Math", "Safety", "Focus")


def naive_ties(scores):
    """
    RewardBench 2's score of the Ties subset, as weighted means over all prompts: `process_single_model` and
    `_compute_prompt_stats` in rewardbench/utils.py of github.com/allenai/reward-bench. `scores` has the right and the
    wrong ones of each kind and prompt.
    """
    prompts = sorted({prompt for _, prompt in scores})
    gap = {key: min(right) - max(wrong) for key, (right, wrong) in scores.items()}
    tied, ref = (np.array([gap[kind, prompt] for prompt in prompts]) for kind in ("tied", "ref"))
    spread = np.array([np.ptp(scores["tied", prompt][0]) for prompt in prompts])
    hard = np.minimum(tied, ref)
    shares = [tied > 0, ref > 0, tied > spread, hard > spread]
    return float(np.dot([0.3, 0.3, 0.2, 0.2], np.mean(shares, axis=1)) + 0.01 * np.mean(np.tanh(hard / spread - 1)))


def test_the_score_of_ties_by_hand():
    # Prompt 0: the margin in `tied` is 8 - 5 = 3 and the spread 9 - 8 = 1; the margin in `ref` is 9 - 7 = 2. All holds:
    #   .3 + .3 + .2 + .2 + .01 tanh(2 / 1 - 1). Prompt 1: margin 5 - 4 = 1, spread 9 - 5 = 4; `ref` is wrong by 1:
    #   .3 + .01 tanh(-1 / 4 - 1).
    sides = [([9, 8], [5, 4]), ([9], [7, 1]), ([5, 9], [4]), ([6], [7])]
    pairs = [(np.array(right), np.array(wrong)) for right, wrong in sides]
    ids = ["tied:0", "ref:0", "tied:1", "ref:1"]
    first, second = 1 + 0.01 * math.tanh(1), 0.3 + 0.01 * math.tanh(-1.25)
    assert ties_wins(pairs, ids) == pytest.approx([first, first, second, second])
    kinds = dict(zip([("tied", 0), ("ref", 0), ("tied", 1), ("ref", 1)], sides, strict=True))
    assert ties_wins(pairs, ids).mean() == pytest.approx(naive_ties(kinds))
    # Equal right answers: a positive margin is infinitely wider than no spread, and no margin counts nothing.
    equal = [(np.array([9, 9]), np.array([5])), (np.array([9]), np.array([5]))]
    assert ties_wins(equal, ids[:2]) == pytest.approx([1.01, 1.01])
    assert ties_wins([(np.array([9, 9]), np.array([9]))] * 2, ids[:2]).tolist() == [0, 0]
    # Unscored, or without its counterpart.
    assert np.isnan(ties_wins([(np.array([9, math.nan]), np.array([5])), pairs[1]], ids[:2])).all()
    assert np.isnan(ties_wins(pairs[1:], ids[1:])[0]) and not np.isnan(ties_wins(pairs[1:], ids[1:])[1:]).any()


def test_the_score_of_ties_is_that_of_its_formula_on_random_scores():
    rng = np.random.default_rng(0)
    scores = {}
    for prompt in range(30):
        better = rng.normal(1.5, 1, 2)  # how far right answers are above wrong ones
        scores["tied", prompt] = (rng.normal(better[0], 0.3, rng.integers(2, 6)), rng.normal(0, 0.5, 9))
        scores["ref", prompt] = (rng.normal(better[1], 0.3, 1), rng.normal(0, 0.5, 9))
    pairs = [("Ties", f"{kind}:{prompt}", *sides) for (kind, prompt), sides in scores.items()]
    found = figures_of(pairs, [prompt for _, prompt in scores])
    assert 0.3 < naive_ties(scores) < 0.8
    assert found["subsets"]["Ties"]["accuracy"] == pytest.approx(naive_ties(scores))
    low, high = found["accuracy_ci"]
    assert low < found["accuracy"] < high


def test_reward_bench_2_is_the_mean_over_its_six_subsets():
    # scripts/run_v2.py of github.com/allenai/reward-bench; `reroll_and_score_dataset` in rewardbench/utils.py shares a
    # win among the responses at the top.
    pairs = [(name, str(i), [4], [3, 2, 1]) for i, name in enumerate(BEST_OF_FOUR)]
    pairs += [("Math", "5", [4], [4, 4, 1]), ("Math", "6", [2], [4, 4, 1])]
    found = figures_of([*pairs, ("Ties", "tied:0", [9, 8], [5, 4]), ("Ties", "ref:0", [9], [7, 1])])
    math_accuracy, ties = (1 + 1 / 3 + 0) / 3, 1 + 0.01 * math.tanh(1)
    assert found["subsets"]["Math"]["accuracy"] == pytest.approx(math_accuracy)
    assert found["subsets"]["Ties"]["accuracy"] == pytest.approx(ties)
    assert found["average"] == pytest.approx((4 + math_accuracy + ties) / 6)
    assert found["chance"] == 0.25 and "sections" not in found
    assert math.isnan(figures_of(pairs)["average"])  # without Ties, it is no RewardBench 2
    assert "average" not in pair_figures([2, 1], ["Math"])


def test_a_perfect_score_of_ties_has_an_interval_that_ends_at_1():
    pairs = [("Ties", f"{kind}:{i}", [9.0] * n, [1.0]) for i in range(5) for kind, n in (("tied", 2), ("ref", 1))]
    found = figures_of(pairs, np.arange(10) // 2)
    assert found["accuracy"] == pytest.approx(1.01)
    assert found["accuracy_ci"][1] == 1 and 0 < found["accuracy_ci"][0] < 1
    bad = [("Ties", f"{kind}:{i}", [1.0, 5.0][:n], [9.0]) for i in range(5) for kind, n in (("tied", 2), ("ref", 1))]
    lost = figures_of(bad, np.arange(10) // 2)
    assert -0.01 < lost["accuracy"] < 0 and lost["accuracy_ci"][0] == 0


@pytest.mark.parametrize(("right", "wrong"), [(9.0, 1.0), (1.0, 9.0)])
def test_ties_that_are_all_won_or_lost_by_different_margins_have_the_interval_of_equal_ones(right, wrong):
    # All wins are 1 or 0 but for .01. Wilson's interval of 10 of 10 is 10 / (10 + 1.96^2) = .722 to 1.
    pairs = [(name, "", [right], [wrong, wrong, wrong]) for name in BEST_OF_FOUR]
    for i in range(5):
        spread = 3 + i  # less than the margin, which is 8 or -8
        pairs += [("Ties", f"tied:{i}", [right, right + spread], [wrong]), ("Ties", f"ref:{i}", [right], [wrong])]
    found = figures_of(pairs)
    ties = found["subsets"]["Ties"]
    low = 10 / (10 + 1.96**2)
    assert ties["accuracy_ci"] == pytest.approx((low, 1) if right > wrong else (0, 1 - low), abs=1e-4)
    assert ties["accuracy"] > 1 if right > wrong else -0.01 < ties["accuracy"] < 0
    assert abs(found["average"] - (right > wrong)) < 0.01 and 0 <= found["average_ci"][0] < found["average_ci"][1] <= 1


def naive_rm_bench(results):
    """Figures of RM-Bench: `compute_accuracy` in scripts/utils.py of github.com/THU-KEG/RM-Bench, written anew."""
    cells = {"easy": [(1, 0), (2, 0), (2, 1)], "normal": [(0, 0), (1, 1), (2, 2)], "hard": [(0, 1), (0, 2), (1, 2)]}
    by_domain = {}
    for domain in sorted({domain for domain, *_ in results}):
        of = [(chosen, rejected) for name, chosen, rejected in results if name == domain]
        by_domain[domain] = {
            name: np.mean([chosen[i] > rejected[j] for chosen, rejected in of for i, j in places])
            for name, places in cells.items()
        }
    levels = {name: np.mean([found[name] for found in by_domain.values()]) for name in cells}
    return {**levels, "average": np.mean([np.mean(list(found.values())) for found in by_domain.values()])}


def test_rm_bench_by_hand():
    # Chosen 3, 4, 5 against rejected 4, 3, 5, in the order of styles; a tie is no win. Won: 4 > 3, 5 > 4, 5 > 3, of
    # which 5 > 4 and 5 > 3 have the richer style (2 of 3) and 4 > 3 the same (1 of 3). The rest is won or lost.
    won, lost = ([3, 4, 5], [1, 2, 2]), ([1, 1, 1], [2, 2, 2])
    pairs = [("chat", "", [3, 4, 5], [4, 3, 5]), ("chat", "", *won), ("code", "", *won), ("math", "", *lost)]
    found = figures_of([*pairs, ("safety", "", *won), ("safety", "", *won)])
    assert found["subsets"]["chat"]["accuracy"] == pytest.approx((3 / 9 + 1) / 2)
    assert found["easy"] == pytest.approx(((2 / 3 + 1) / 2 + 1 + 0 + 1) / 4)
    assert found["normal"] == pytest.approx(((1 / 3 + 1) / 2 + 1 + 0 + 1) / 4)
    assert found["hard"] == pytest.approx(((0 + 1) / 2 + 1 + 0 + 1) / 4)
    assert found["average"] == pytest.approx((found["easy"] + found["normal"] + found["hard"]) / 3)
    assert found["average"] == pytest.approx(((3 / 9 + 1) / 2 + 1 + 0 + 1) / 4)
    assert found["accuracy"] == pytest.approx((3 / 9 + 1 + 1 + 0 + 1 + 1) / 6) and found["chance"] == 0.5


def test_rm_bench_is_that_of_its_formula_on_random_scores_with_ties():
    rng = np.random.default_rng(1)
    domains = np.repeat(["chat", "code", "math", "safety"], [5, 9, 20, 30])
    results = [(domain, rng.integers(2, 6, 3), rng.integers(1, 5, 3)) for domain in domains]
    found, expected = figures_of([(name, "", *sides) for name, *sides in results]), naive_rm_bench(results)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) == 4 and found["hard_ci"][0] < found["hard"] < found["hard_ci"][1]
    unscored = figures_of(
        [("chat", "", [math.nan, 1, 1], [0, 0, 0]), *((name, "", *sides) for name, *sides in results)]
    )
    assert {name: unscored[name] for name in expected} == pytest.approx(expected) and unscored["unscored"] == 1


def test_ppe_compares_its_sampled_pairs_and_has_the_best_of_all():
    # First prompt: 3 against 3 (half), 2 against 4, 3 against 4 (wrong); the best response, of score 4, is wrong.
    # Second one: 5 against 1 and 2 against 1, both right; the best one, 5, is right.
    pairs = [("all", "", [3, 2], [3, 4], [[0, 2], [1, 3], [0, 3]]), ("all", "", [5, 2], [1], [[0, 2], [1, 2]])]
    found = figures_of(pairs)
    assert found["accuracy"] == pytest.approx((0.5 / 3 + 1) / 2)
    assert found["best_of_k"] == 0.5 and found["chance"] == 0.5
    assert len(found["best_of_k_ci"]) == 2 and found["best_of_k_worst"] == 0.5


def test_wins_below_zero_have_the_right_difference():
    a, b = np.array([-0.01, 1, 1, 0.3, 1]), np.array([-0.01, 0.5, 0, 0.31, 0])
    found = accuracy_difference(a, b)
    assert (found["a"], found["b"]) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
    assert found["difference"] == pytest.approx((a - b).mean())


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
