"""Results in words: the verdict, its numbers by hand."""

import pytest

from tract_trainer.hub.results import figure_rows, verdict


def figures(rmse=0.5, unscored=0, **changes):
    return {"n": 4, "unscored": unscored, "pearson": 0.75, "pearson_ci": [0.7, 0.8], "rmse": rmse, **changes}


def result(scores, reason="It was cut.", **methods):
    """Four records with gold 1, 2, 4, 5: their mean is 3, and its RMSE sqrt(10 / 4) = 1.581."""
    rows = [
        {"gold": gold, "score": score, "reason": "" if score is not None else reason}
        for gold, score in zip((1, 2, 4, 5), scores, strict=True)
    ]
    return {"methods": methods, "judgments": rows}


def test_the_verdict_has_the_figures_the_mean_gold_score_and_the_best_method():
    found = result([1.0, 2.0, 4.0, 4.0], decoded=figures(0.75), RAIL=figures(), median=figures(0.25))
    assert verdict(found) == (
        "RAIL, the expected score, has r = .750 [.70, .80], RMSE = .500. The mean gold score for every record has "
        "RMSE = 1.581. Lowest RMSE of 3 methods: median (.250)."
    )
    tied = result([1.0, 2.0, 4.0, 4.0], decoded=figures(), RAIL=figures())
    assert verdict(tied).endswith("Lowest RMSE of 2 methods: RAIL.")


def test_a_judge_that_is_no_better_than_the_mean_is_said_to_be():
    found = verdict(result([5.0, 5.0, 1.0, 1.0], RAIL=figures(3.5)))
    assert found.endswith("That is no better than the mean gold score for every record (RMSE = 1.581).")


def test_the_unscored_are_counted_with_the_first_reason_and_left_out_of_the_mean():
    # Gold 2, 4, 5 are scored: mean 11/3, squares 25/9 + 1/9 + 16/9 = 42/9, over 3: sqrt(1.5556) = 1.247.
    found = result([None, 2.0, 4.0, 4.0], RAIL=figures(unscored=1), median=figures(0.1, unscored=2))
    assert verdict(found) == (
        "RAIL, the expected score, has r = .750 [.70, .80], RMSE = .500. The mean gold score for every record has "
        "RMSE = 1.247. 1 of 4 records are unscored (25.0 %). The first reason: It was cut."
    )


@pytest.mark.parametrize(("key", "what"), [("rmse", "records"), ("accuracy", "pairs")])
def test_a_result_without_a_score_says_nothing_else(key, what):
    found = result([None] * 4, RAIL={"n": 4, "unscored": 4, key: None})
    assert (
        verdict(found) == f"No score: all 4 {what} are unscored, so there are no figures. The first reason: It was cut."
    )


def test_pairs_are_compared_with_guessing():
    better, worse = ({"n": 4, "unscored": 0, "accuracy": share, "accuracy_ci": [0.1, 0.9]} for share in (0.75, 0.25))
    pairs = {"methods": {"RAIL": better, "decoded": worse}, "judgments": []}
    assert verdict(pairs) == (
        "RAIL, the expected score, has accuracy = .750 [.10, .90]. Guessing has .500. "
        "Highest accuracy of 2 methods: RAIL."
    )
    pairs["methods"] = {"RAIL": worse, "decoded": better}
    assert verdict(pairs).endswith("That is worse than guessing (.500). Highest accuracy of 2 methods: decoded (.750).")


def test_a_result_without_figures_has_no_verdict():
    assert verdict({"methods": {}}) == ""


def test_subsets_have_rows_of_their_own():
    part = {"accuracy": 0.5, "accuracy_ci": [0.1, 0.9]}
    methods = {name: {"n": 2, "unscored": 0, "accuracy": 1.0, "subsets": {"a|b": part}} for name in ("decoded", "RAIL")}
    assert figure_rows(methods) == [
        ["", "decoded", "RAIL"],
        ["Accuracy", "1.000", "1.000"],
        ["subset a|b", ".500 [.10, .90]", ".500 [.10, .90]"],
    ]
