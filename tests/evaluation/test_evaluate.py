"""A judge and records become a result: figures of every method, on disk as JSON, a table and pictures."""

import json
import math
import re
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import yaml
from fake import FIVE, fake_judge, sure
from huggingface_hub import ModelCardData
from scipy import stats
from tiny import train_judge

from tract_trainer.data.benchmarks import load_benchmark, own_benchmark
from tract_trainer.data.pairs import pair_records, read_pairs
from tract_trainer.errors import InputError
from tract_trainer.evaluation.calibration import calibration
from tract_trainer.evaluation.comparison import compare
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.page import listing
from tract_trainer.hub.results import model_index
from tract_trainer.judging.judge import Judge
from tract_trainer.metrics import agreement

GOLD = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 5, 3]
METHODS = ["decoded", "greedy", "RAIL", "RAIL renormalised", "median"]


@pytest.fixture
def records(tmp_path):
    """Records of a Prometheus file whose prompts tell the gold score, so that a judge can know it."""
    rows = [{"instruction": f"Record {i} is worth {gold}.", "gpt4_score": [gold]} for i, gold in enumerate(GOLD)]
    (tmp_path / "mt_bench_eval.json").write_text(json.dumps(rows))
    return load_benchmark("mt_bench", tmp_path)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, request):
    """Pictures take seconds, so they are drawn only for tests that ask for `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)


@pytest.fixture
def drawn():
    return None


def worth(prompt):
    return int(prompt.split("is worth ")[1][0])


def number_of(prompt):
    return int(prompt.split("Record ")[1].split(" ")[0])


def strict(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def noisy(prompt):
    """Eight rationales with spread-out distributions of mass 0.9, none exactly right."""
    rng = np.random.default_rng(number_of(prompt))
    rationales = []
    for _ in range(8):
        weights = np.exp(-((np.arange(1, 6) - worth(prompt) - rng.normal()) ** 2) / 2)
        probs = 0.9 * weights / weights.sum()
        rationales.append((str(rng.choice(5, p=probs / 0.9) + 1), probs.tolist()))
    return rationales


def test_a_result_says_which_rationales_ran_to_their_limit(records, tmp_path):
    judge = fake_judge(lambda prompt: [sure(worth(prompt))] * 2)
    generate = judge.engine.generate
    judge.engine.generate = lambda *asked: [r._replace(truncated=r.text == "Rationale 1.") for r in generate(*asked)]
    result = evaluate(judge, records, "mine", tmp_path / "r.json", 2)
    assert all([r["truncated"] for r in row["rationales"]] == [False, True] for row in result["judgments"])
    assert not any(row["reason"] for row in result["judgments"])


# Figures


def test_a_judge_that_knows_the_gold_scores_has_the_best_of_every_figure(records, tmp_path):
    result = evaluate(fake_judge(lambda prompt: [sure(worth(prompt))] * 3), records, "mine", tmp_path / "r.json", 3)
    assert list(result["methods"]) == METHODS
    for figures in result["methods"].values():
        for name in ("pearson", "spearman", "kendall", "kendall_rounded", "qwk", "within_one", "ccc", "mass"):
            assert figures[name] == pytest.approx(1), name
        assert figures["rmse"] == figures["mae"] == figures["rmse_worst"] == 0
        assert (figures["n"], figures["unscored"]) == (12, 0)
    assert result["calibration"]["error"] == result["calibration"]["error_by_chance"] == 0
    assert strict(tmp_path / "r.json") == result


def test_the_figures_are_those_of_the_saved_judgments(records, tmp_path):
    evaluate(fake_judge(noisy), records, "mine", tmp_path / "r.json", 3)
    result = strict(tmp_path / "r.json")
    values = np.arange(1, 6)
    probs = np.array([[rationale["probs"] for rationale in row["rationales"]] for row in result["judgments"]])
    labels = np.array([[int(rationale["label"]) for rationale in row["rationales"]] for row in result["judgments"]])
    gold = np.array([row["gold"] for row in result["judgments"]])
    share = (probs / probs.sum(-1, keepdims=True)).mean(1)
    expected = {
        "decoded": labels.mean(1),
        "greedy": (probs.argmax(-1) + 1).mean(1),
        "RAIL": (probs @ values).mean(1),
        "RAIL renormalised": (probs @ values / probs.sum(-1)).mean(1),
        "median": values[(np.cumsum(share, axis=1) < 0.5).sum(1)],
    }
    assert len({tuple(scores) for scores in expected.values()}) == 5
    for method, scores in expected.items():
        figures = result["methods"][method]
        assert figures["pearson"] == pytest.approx(np.corrcoef(scores, gold)[0, 1])
        assert figures["kendall"] == pytest.approx(stats.kendalltau(scores, gold).statistic)
        assert figures["rmse"] == pytest.approx(np.sqrt(np.mean((scores - gold) ** 2)))
        assert figures["pearson_ci"] == pytest.approx(agreement(scores, gold)["pearson_ci"])
        assert figures["mass"] == pytest.approx(0.9)
    assert [row["score"] for row in result["judgments"]] == pytest.approx(expected["RAIL"])
    assert np.array([row["probs"] for row in result["judgments"]]) == pytest.approx(probs.mean(1))
    again = calibration(probs.mean(1), gold, values)
    assert result["calibration"]["error"] == pytest.approx(again["error"])
    assert result["calibration"]["counts"] == again["counts"]


def test_fewer_rationales_are_the_first_that_have_a_score(records, tmp_path):
    def say(prompt):  # the first of record 0 and the second of record 1 come to none
        said = noisy(prompt)[:5]
        return [None, *said[1:]] if number_of(prompt) == 0 else [said[0], None, *said[2:]]

    result = evaluate(fake_judge(say), records[:2] + records[3:], "mine", tmp_path / "r.json", 5)
    assert list(result["by_rationales"]) == ["1", "2", "4", "5"]
    assert result["by_rationales"]["5"] == result["methods"]
    values, gold = np.arange(1, 6), [row["gold"] for row in result["judgments"]]
    for count in (1, 2, 4):
        kept = [[said for said in say(row["prompt"]) if said is not None][:count] for row in result["judgments"]]
        scores = [np.mean([np.dot(probs, values) for _, probs in said]) for said in kept]
        found = result["by_rationales"][str(count)]["RAIL"]
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.subtract(scores, gold) ** 2)), rel=1e-6)
        assert found["unscored"] == 0


def test_unscored_records_count_in_no_figure_and_at_their_worst_in_the_worst_case(records, tmp_path):
    # Records 0 and 4, worth 1 and 5, are unscored: at worst they are 4 off each, of 12 records.
    judge = fake_judge(lambda prompt: [None if number_of(prompt) in (0, 4) else sure(worth(prompt))])
    result = evaluate(judge, records, "mine", tmp_path / "r.json", max_new_tokens=9)
    figures = result["methods"]["RAIL"]
    assert (figures["n"], figures["unscored"], figures["rmse"], figures["mass"]) == (12, 2, 0, 1)
    assert figures["mae_worst"] == pytest.approx(8 / 12) and figures["rmse_worst"] == pytest.approx(math.sqrt(32 / 12))
    row = result["judgments"][0]
    assert row["score"] is None and row["probs"] == [None] * 5 and row["rationales"][0]["probs"] is None
    assert row["reason"].endswith("1 were cut at max_new_tokens=9.")
    page = (tmp_path / "r.md").read_text()
    assert "n = 12, 2 unscored (16.7 %)" in page and "| MAE, unscored at worst | .667 |" in page


def test_a_judge_that_scores_nothing_has_figures_that_are_not_defined_and_pictures(records, tmp_path, drawn):
    result = evaluate(fake_judge(lambda prompt: [None, None]), records, "mine", tmp_path / "r.json", 2)
    assert result["methods"]["RAIL"]["pearson"] is None and result["calibration"]["error"] is None
    assert strict(tmp_path / "r.json") == result
    assert len(list(tmp_path.glob("r-*.png"))) == 4


def test_without_probability_on_the_scale_no_method_has_a_score(records, tmp_path):
    result = evaluate(fake_judge(lambda prompt: [("3", [0.0] * 5)]), records, "mine", tmp_path / "r.json")
    assert [figures["unscored"] for figures in result["methods"].values()] == [12] * 5
    assert result["methods"]["RAIL"]["mass"] is None and result["calibration"]["error"] is None


def test_several_ratings_are_kept_and_calibration_is_of_each(tmp_path):
    """A judge whose probabilities are the shares of the ratings is calibrated; against their mean it would not be."""
    ratings = [[1, 1, 2], [5, 3, 4], [2, 2, 5], [4, 4, 4]]
    rows = [{"instruction": f"Record {i} is worth 1.", "gpt4_score": of} for i, of in enumerate(ratings)]
    (tmp_path / "mt_bench_eval.json").write_text(json.dumps(rows))
    (tmp_path / "own.json").write_text(
        json.dumps([{"prompt": r["instruction"], "score": r["gpt4_score"]} for r in rows])
    )
    shares = [np.bincount(of, minlength=6)[1:] / 3 for of in ratings]
    judge = fake_judge(
        lambda prompt: [(str(shares[number_of(prompt)].argmax() + 1), shares[number_of(prompt)].tolist())]
    )
    for name, records in (
        ("mt_bench", load_benchmark("mt_bench", tmp_path)),
        ("own", own_benchmark(tmp_path / "own.json")),
    ):
        result = evaluate(judge, records, name, tmp_path / f"{name}-result.json")
        assert [row["gold_ratings"] for row in result["judgments"]] == ratings
        assert result["judgments"][0]["gold"] == pytest.approx(4 / 3)
        assert result["calibration"]["error"] == pytest.approx(0, abs=1e-6)
        gold = [row["gold"] for row in result["judgments"]]
        assert calibration(shares, gold, range(1, 6))["error"] > 0.05
        # Distances of a rating from the mean of the other two: .5 .5 1; 1.5 1.5 0; 1.5 1.5 3; 0 0 0.
        assert result["ceiling"]["n"] == 4 and result["ceiling"]["mae"] == pytest.approx(11 / 12)
        page = (tmp_path / f"{name}-result.md").read_text()
        assert "| median | one rater |" in page and "on 4 records with several ratings: a ceiling for judges." in page


def test_a_judge_that_renormalises_has_its_rail_score_renormalised(records, tmp_path):
    config = type(FIVE)(FIVE.score_labels, FIVE.score_values, FIVE.score_prefix, renormalize_scores=True)
    result = evaluate(fake_judge(noisy, config), records, "mine", tmp_path / "r.json")
    assert result["methods"]["RAIL"] == result["methods"]["RAIL renormalised"]
    rmse = math.sqrt(np.mean([(row["score"] - row["gold"]) ** 2 for row in result["judgments"]]))
    assert result["methods"]["RAIL"]["rmse"] == pytest.approx(rmse)


# Without rationales


def test_without_rationales_the_score_is_read_after_the_prompt_and_nothing_is_written(records, tmp_path, drawn):
    judge = fake_judge(noisy)
    result = evaluate(judge, records, "mine", tmp_path / "r.json", num_cots=0)
    assert judge.engine.generated == 0
    expected = [float(np.dot(noisy(record["instruction"])[0][1], range(1, 6))) for record in records]
    assert [row["score"] for row in result["judgments"]] == pytest.approx(expected)
    assert result["methods"]["decoded"] == result["methods"]["greedy"]
    assert result["by_rationales"] == {} and result["settings"]["num_cots"] == 0
    judge.engine.batch_size = 1  # in two pieces
    assert evaluate(judge, records, "mine", tmp_path / "s.json", num_cots=0) == result
    assert sorted(path.name for path in tmp_path.glob("r-*")) == [
        "r-confusion.png",
        "r-predictions.png",
        "r-reliability.png",
        "r-selective.png",
    ]


def test_without_rationales_a_prompt_that_is_too_long_is_unscored(records, tmp_path):
    judge = fake_judge(noisy)
    lengths = [len(judge.rows.scored_ids(record, "")) for record in records]
    judge.engine.max_length = max(lengths)  # where the longest have no room for the label
    result = evaluate(judge, records, "mine", tmp_path / "r.json", num_cots=0)
    unscored = [row["score"] is None for row in result["judgments"]]
    assert unscored == [length == max(lengths) for length in lengths] and not all(unscored)
    assert f"There are {max(lengths)} tokens to read" in next(
        row["reason"] for row in result["judgments"] if row["reason"]
    )


def test_without_rationales_a_model_is_read_where_training_put_the_score(tmp_path):
    trainer = train_judge(tmp_path / "judge", steps=3)
    trainer.save_model()
    judge = Judge.from_pretrained(tmp_path / "judge")
    records = [{"prompt": f"Rate the response from 1 to 5. {i}", "score": 1.0 + i} for i in range(5)]
    result = evaluate(judge, records, "mine", tmp_path / "r.json", num_cots=0)
    expected = [judgment.score for judgment in judge.rescore(records, [""] * 5)]
    assert [row["score"] for row in result["judgments"]] == pytest.approx(expected)
    assert "is 3" not in result["judgments"][2]["prompt"]


# Pairs

PAIRS = [
    {"id": 7, "instruction": "Q", "chosen": "worth 5", "rejected": "worth 2", "subset": "a"},
    {"id": 8, "instruction": "Q", "chosen": "worth 2", "rejected": "worth 3", "subset": "a"},
    {"id": 9, "instruction": "Q", "chosen": "worth 4", "rejected": "worth 4", "subset": "b"},
    {"id": 10, "instruction": "Q", "chosen": "worth 4", "rejected": "none", "subset": "b"},
]


def of_response(prompt):
    response = prompt.split("### Response to judge\n")[1].split("\n")[0]
    return [None, None] if response == "none" else [sure(int(response[-1]))] * 2


def test_pairs_have_accuracies(tmp_path, drawn):
    result = evaluate(fake_judge(of_response), read_pairs(PAIRS), "mine", tmp_path / "r.json", 2)
    figures = result["methods"]["RAIL"]
    assert figures["accuracy"] == pytest.approx(1.5 / 3) and figures["accuracy_worst"] == pytest.approx(1.5 / 4)
    assert (figures["n"], figures["ties"], figures["unscored"], figures["mass"]) == (4, 1, 1, 1)
    low, high = figures["accuracy_ci"]
    assert figures["subsets"]["a"]["accuracy"] == 0.5 and 0 < low < 0.5 < high < 1
    assert "calibration" not in result and "gold" not in result["judgments"][0]
    assert [(row["id"], row["side"], row["score"]) for row in result["judgments"][:3]] == [
        ("7", "chosen", 5),
        ("7", "rejected", 2),
        ("8", "chosen", 2),
    ]
    assert result["benchmark"]["records"] == 4
    assert (tmp_path / "r-accuracy.png").stat().st_size > 1000 and (tmp_path / "r-rationales.png").is_file()
    assert "| subset a | .500 [.09, .91] |" in (tmp_path / "r.md").read_text()


SEVERAL = [
    {"instruction": "Q", "chosen": ["worth 4"], "rejected": ["worth 2", "worth 3"], "subset": "a"},
    {"instruction": "R", "chosen": ["worth 2", "worth 1"], "rejected": ["worth 3", "worth 1"], "subset": "a"},
    {"instruction": "S", "chosen": ["worth 4"], "rejected": ["worth 4"], "subset": "b"},
]


def test_several_responses_are_judged_once_each(tmp_path, drawn):
    judge, pairs = fake_judge(of_response), read_pairs(SEVERAL)
    result = evaluate(judge, pairs, "mine", tmp_path / "r.json", 1)
    figures = result["methods"]["RAIL"]
    assert figures["accuracy"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert figures["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    rows = [(row["pair"], row["side"][0], row["score"]) for row in result["judgments"]]
    assert rows[:3] == [(0, "c", 4), (0, "r", 2), (0, "r", 3)]
    assert rows[3:7] == [(1, "c", 2), (1, "c", 1), (1, "r", 3), (1, "r", 1)]
    assert rows[7:] == [(2, "c", 4), (2, "r", 4)]
    assert "Guessing has .444." in (tmp_path / "r.md").read_text()
    same = compare(result, result)["figures"]["accuracy"]
    assert same["a"] == figures["accuracy"] and same["difference"] == 0
    # How far a pair is the wrong way round: the best rejected response less the best chosen one.
    errors = [row["error"] for row in listing(result)["judgments"]]
    assert errors == [-1] * 3 + [1] * 4 + [0] * 2


def test_the_compared_responses_are_part_of_a_result(tmp_path):
    pairs = [{**pair, "compared": [[0, 1]]} for pair in read_pairs(SEVERAL)]
    result = evaluate(fake_judge(of_response), pairs, "mine", tmp_path / "r.json", 1)
    assert result["methods"]["RAIL"]["accuracy"] == pytest.approx((1 + 1 + 1 / 2) / 3)  # 4 > 2, 2 > 1, 4 = 4
    assert result["methods"]["RAIL"]["best_of_k"] == pytest.approx(1.5 / 3)
    assert result["judgments"][0]["compared"] == [[0, 1]] and "compared" not in result["judgments"][0]["record"]
    other = evaluate(fake_judge(of_response), read_pairs(SEVERAL), "mine", tmp_path / "s.json", 1)
    assert other["benchmark"]["digest"] != result["benchmark"]["digest"]


def test_pairs_are_asked_with_the_general_rubric(tmp_path):
    judge, pairs = fake_judge(of_response), read_pairs(PAIRS)
    result = evaluate(judge, pairs, "mine", tmp_path / "r.json", 1)
    asked = [judge.rows.prompt(record) for record in pair_records(pairs, judge.config.scale)]
    assert [row["prompt"] for row in result["judgments"]] == asked


# The result


def test_the_result_says_what_was_done(records, tmp_path):
    judge = fake_judge(noisy)
    named = {"judge_name": "me/judge", "revision": "abc"}
    result = evaluate(judge, records, "mine", tmp_path / "r.json", 2, seed=7, temperature=0.5, **named)
    assert list(result) == [
        "schema_version",
        "tract_trainer_version",
        "judge",
        "benchmark",
        "settings",
        "methods",
        "by_rationales",
        "calibration",
        "selective",
        "judgments",
    ]
    assert result["schema_version"] == 1
    assert {name: result["judge"][name] for name in ("name", "revision", "identity")} == {
        "name": "me/judge",
        "revision": "abc",
        "identity": judge.identity,
    }
    assert result["judge"]["config"]["score_labels"] == list("12345")
    assert result["settings"] == {
        "num_cots": 2,
        "seed": 7,
        "unfinished": "unscored",
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.03,
        "max_new_tokens": 1024,
        "engine": "FakeEngine",
    }
    assert set(result["judgments"][0]) == {
        *(
            "gold",
            "group",
            "record",
            "score",
            "probs",
            "std",
            "mass",
            "label",
            "rationale",
            "reason",
            "prompt",
            "rationales",
        ),
    }


def test_the_digest_is_of_questions_and_gold_scores(records, tmp_path):
    def digest_of(rows):
        (tmp_path / "r.json").unlink(missing_ok=True)
        return evaluate(fake_judge(noisy), rows, "mine", tmp_path / "r.json")["benchmark"]["digest"]

    first = digest_of(records)
    assert digest_of([{**record, "note": "x"} for record in records]) == first
    assert digest_of([{**records[0], "score": 2.0}, *records[1:]]) != first
    rated = [digest_of([{**records[0], "gold_ratings": of}, *records[1:]]) for of in ([1, 1], [0, 2])]
    assert len({first, *rated}) == 3  # the calibration is that of each rating
    assert digest_of([{**records[0], "instruction": "Record 0 is worth 2."}, *records[1:]]) != first
    assert digest_of(records[:-1]) != first


def test_messages_are_joined_to_a_text(tmp_path):
    parts = [{"type": "text", "text": "Record 1 is "}, {"type": "text", "text": "worth 1."}]
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    asked = [{"role": "user", "content": "Record 2 is worth 2."}, called, {"role": "user", "content": "And?"}]
    records = [{"prompt": [{"role": "user", "content": parts}], "score": 1}, {"prompt": asked, "score": 2}]
    judge = fake_judge(lambda prompt: [sure(1)])
    result = evaluate(judge, records, "mine", tmp_path / "r.json")
    assert [row["prompt"] for row in result["judgments"]] == [
        "Record 1 is worth 1.",
        "Record 2 is worth 2.\n\n\n\nAnd?",
    ]


def test_short_columns_of_a_record_are_kept_for_breakdowns(records, tmp_path):
    rows = [
        {
            **record,
            "category": ["writing", "math"][i % 2],
            "capability": {"name": "grounding", "level": math.nan},
            "day": date(2024, 1, 2),
            "orig_response": "x" * (10 if i else 301),  # long in one record
            "rationale": "Good.",
            "id": 7,
        }
        for i, record in enumerate(records)
    ]
    result = evaluate(fake_judge(noisy), rows, "mine", tmp_path / "r.json")
    kept = {"category": "math", "capability": {"name": "grounding", "level": None}, "day": "2024-01-02", "id": 7}
    assert result["judgments"][1]["record"] == kept and strict(tmp_path / "r.json") == result


def test_short_columns_of_a_pair_are_kept_on_both_sides(tmp_path):
    pairs = read_pairs([{**pair, "source_model": f"m{i}"} for i, pair in enumerate(PAIRS)])
    result = evaluate(fake_judge(of_response), pairs, "mine", tmp_path / "r.json")
    assert [row["record"] for row in result["judgments"][:3]] == [
        {"source_model": "m0"},
        {"source_model": "m0"},
        {"source_model": "m1"},
    ]


def test_what_cannot_be_evaluated_is_refused(records, tmp_path):
    with pytest.raises(InputError, match=r"^There are no records to evaluate on\."):
        evaluate(fake_judge(noisy), [], "mine", tmp_path / "r.json")
    with pytest.raises(InputError, match=r"^The gold score of record 1 is 6, off the scale of 1 to 5\."):
        evaluate(fake_judge(noisy), [records[0], {**records[1], "score": 6.0}], "mine", tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_an_interrupted_evaluation_goes_on_and_is_not_mixed_with_another(records, tmp_path):
    def broken(prompt):
        if number_of(prompt) == 11:
            raise KeyboardInterrupt
        return noisy(prompt)

    judge, path = fake_judge(broken), tmp_path / "r.json"
    judge.engine.batch_size = 1  # pieces of eight records
    with pytest.raises(KeyboardInterrupt):
        evaluate(judge, records, "mine", path, 1)
    begun = tmp_path / "r.unfinished" / "process-00000.jsonl"
    assert len(begun.read_text().splitlines()) == 8 and not path.exists()
    with begun.open("a") as file:
        file.write('{"gold": 3.0, "rationale": "' + "x" * 100_000)  # killed in the middle of a long line
    for wrong in ({"num_cots": -1}, {"unfinished": "drop"}, {"temperature": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):  # before anything is written
            evaluate(fake_judge(noisy), records, "other", tmp_path / "wrong.json", **wrong)
    assert not list(tmp_path.glob("wrong*"))
    with pytest.raises(InputError, match="seed: 42 there, 7 now"):
        evaluate(fake_judge(noisy), records, "mine", path, 1, seed=7)
    judge = fake_judge(noisy)
    # Another text is judged anew, another gold score is not; nor is one that is asked twice asked again.
    corrected = [{**records[0], "score": 5.0}, {**records[1], "instruction": "Record 1 is worth 4."}, *records[2:]]
    corrected.append(records[2])
    result = evaluate(judge, corrected, "mine", path, 1)
    assert judge.engine.generated == 4 + 1
    assert result == evaluate(fake_judge(noisy), corrected, "mine", tmp_path / "whole.json", 1)
    assert result["judgments"][0]["gold"] == 5 and result["judgments"][2]["score"] == result["judgments"][12]["score"]
    assert not list(tmp_path.glob("*unfinished*"))


def test_every_record_is_checked_before_one_is_judged(records, tmp_path):
    bad = {"prompt": "Record 12 is worth 3.", "tools": "{", "score": 3.0}
    judge = fake_judge(noisy)
    judge.engine.batch_size = 1
    with pytest.raises(InputError, match=r"^Record 12: `tools` must be a list of tools"):
        evaluate(judge, [*records, bad], "mine", tmp_path / "out" / "r.json")
    assert judge.engine.generated == 0 and not (tmp_path / "out").exists()


def test_files_of_others_are_refused_before_any_work_and_kept(records, tmp_path, drawn):
    judge, path = fake_judge(noisy), tmp_path / "r.json"
    for name in ("r.md", "r-predictions.png", "r-accuracy.png", "r.json"):
        mine = tmp_path / name
        mine.write_text("Mine.")
        with pytest.raises(InputError, match=rf"{re.escape(name)} exists, and tract did not write it\. Give another"):
            evaluate(judge, records, "mine", path)
        assert mine.read_text() == "Mine." and judge.engine.generated == 0
        mine.unlink()
    (tmp_path / "r.md").mkdir()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"r\.md is a folder, and a file is to be written there"):
            evaluate(judge, records, "mine", path, overwrite=overwrite)
    (tmp_path / "r.md").rmdir()
    for name in ("r.md", "r-confusion.png", "r.json"):
        (tmp_path / name).write_text("Mine.")
    result = evaluate(judge, records, "mine", path, overwrite=True)
    assert strict(path) == result and "# mine: judge" in (tmp_path / "r.md").read_text()
    path.unlink()  # the table and the pictures are known as ours, and made anew
    assert evaluate(judge, records, "mine", path) == result
    other = evaluate(judge, records, "mine", path, seed=7, overwrite=True)
    assert other["settings"]["seed"] == 7 and strict(path) == other
    assert not (tmp_path / "r.unfinished").exists()

    def interrupted(prompt):
        if number_of(prompt) == 11:
            raise KeyboardInterrupt
        return noisy(prompt)

    stopped = fake_judge(interrupted)
    stopped.engine.batch_size = 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, records, "mine", path, 1, seed=8, overwrite=True)
    assert strict(path) == other
    judge.engine.generated = 0
    assert evaluate(judge, records, "mine", path, 1, seed=8, overwrite=True)["settings"]["seed"] == 8
    assert judge.engine.generated == 4
    with pytest.raises(InputError, match=r"^Expected a \.json file for the result, got '.*r'\."):
        evaluate(judge, records, "mine", tmp_path / "r")


def test_files_of_others_in_the_folder_of_the_work_are_kept(records, tmp_path):
    mine = tmp_path / "r.unfinished" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("Mine.")
    evaluate(fake_judge(noisy), records, "mine", tmp_path / "r.json")
    assert mine.read_text() == "Mine." and [path.name for path in mine.parent.iterdir()] == ["thesis.txt"]


def test_no_other_call_begins_until_the_result_is_there_and_the_work_is_deleted(records, tmp_path, monkeypatch):
    path, moments = tmp_path / "r.json", []

    def start_another(*_):
        moments.append(path.exists())
        with pytest.raises(InputError, match="Another run is writing to"):
            evaluate(fake_judge(noisy), records, "mine", tmp_path / "r.json")

    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", start_another)  # all is judged, no result written
    result = evaluate(fake_judge(noisy), records, "mine", path)
    assert moments == [False] and strict(path) == result and not (tmp_path / "r.unfinished").exists()
    assert evaluate(fake_judge(noisy), records, "mine", path) == result


def test_a_finished_result_is_kept_and_not_made_again(records, tmp_path):
    path, judge = tmp_path / "r.json", fake_judge(noisy)
    result = evaluate(judge, records, "mine", str(path), judge_name="judge")
    older = path.read_text().replace(result["tract_trainer_version"], "0.0.1")
    path.write_text(older)
    assert evaluate(judge, records, "mine", path, judge_name="./judge")["judgments"] == result["judgments"]
    assert judge.engine.generated == len(records)
    other = fake_judge(noisy, config=replace(judge.config, score_prefix="Score: "))
    for changed, given in (
        ("num_cots: 1 there, 2 now", (judge, records, "mine", path, 2)),
        ("benchmark: .* there, .* now", (judge, records[:2], "mine", path)),
        ("judge: .* there, .* now", (other, records, "mine", path)),
    ):
        with pytest.raises(InputError, match=changed):
            evaluate(*given)
    assert path.read_text() == older
    path.write_text('{"score": 3}')
    with pytest.raises(InputError, match=r"r\.json exists, and tract did not write it"):
        evaluate(judge, records, "mine", path)


def test_names_of_strangers_are_text_and_nothing_else(records, tmp_path, drawn):
    name = "a|b [red]*x* $x^{$ <script>\n# heading"
    result = evaluate(fake_judge(noisy), records, name, tmp_path / "r.json", 2, judge_name=name)
    _, head, *_ = (tmp_path / "r.md").read_text().splitlines()
    escaped = r"a\|b \[red\]\*x\* $x^{$ \<script\> \# heading"
    assert head == f"# {escaped}: {escaped}"
    assert len(list(tmp_path.glob("r-*.png"))) == 5
    assert yaml.safe_load(yaml.safe_dump(model_index([result])))[0]["results"][0]["dataset"]["name"] == name


def test_the_hub_reads_the_entries_of_the_model_card(records, tmp_path):
    result = evaluate(fake_judge(noisy), records, "mt_bench", tmp_path / "r.json", judge_name="runs/judge")
    entries = json.loads(json.dumps(model_index([result])))
    card = ModelCardData(**{"model-index": entries})
    assert card.model_name == "judge" and len(card.eval_results) == 18
    pearson = card.eval_results[0]
    low, high = result["methods"]["RAIL"]["pearson_ci"]
    assert (pearson.metric_type, pearson.metric_value) == ("pearson", result["methods"]["RAIL"]["pearson"])
    assert pearson.metric_name == f"RAIL: Pearson (95 % interval {low:.3f} to {high:.3f}, n = 12, 0 unscored)"
    assert pearson.dataset_name == "mt_bench"


def test_a_rationale_without_numbers_is_left_out_and_the_rest_is_not_lost(records, tmp_path):
    judge = fake_judge(lambda prompt: [("3", [math.nan] * 5), sure(worth(prompt))])
    result = evaluate(judge, records, "mine", tmp_path / "two.json", 2)
    assert result["methods"]["RAIL"]["rmse"] == 0 and result["methods"]["RAIL"]["unscored"] == 0
    one = evaluate(judge, records, "mine", tmp_path / "one.json", 1)
    assert one["methods"]["RAIL"]["unscored"] == len(records)
    assert one["judgments"][0]["reason"].startswith("1 of 1 rationales: the model gives no numbers (NaN)")


def test_responses_to_one_instruction_are_a_group_and_others_are_alone(tmp_path):
    asked = [("Count.", "1 2"), ("Add.", "3"), ("Count.", "2 1"), ("Spell.", "abc")]
    own = [{"instruction": q, "response": f"{r} is worth {i}.", "rubric": "Is it?", "score": i} for i, (q, r) in
           enumerate(asked, 1)]  # fmt: skip
    judge = fake_judge(lambda prompt: [sure(worth(prompt))])
    result = evaluate(judge, own, "own", tmp_path / "own.json", 1)
    assert [row["group"] for row in result["judgments"]] == [0, 1, 0, 3]
    assert "Intervals are 95 %, over 3 groups of records." in (tmp_path / "own.md").read_text()
    scores = [row["score"] for row in result["judgments"]]
    alone = agreement(scores, [1, 2, 3, 4], values=FIVE.score_values)
    assert result["methods"]["RAIL"]["within_one_ci"] != list(alone["within_one_ci"])
    named = [{"prompt": f"It is worth {i}.", "score": i, "group": i // 2} for i in (1, 2, 3, 4)]
    result = evaluate(judge, named, "named", tmp_path / "named.json", 1)
    assert [row["group"] for row in result["judgments"]] == [0, 1, 1, 3]


def test_responses_to_one_instruction_alone_are_told_from_each_other(tmp_path):
    """One group would have no interval; what is said is of responses to that instruction, then."""
    judge = fake_judge(lambda prompt: [sure(worth(prompt))])
    records = [
        {"instruction": "Say it.", "response": f"{i} is worth {1 + i % 5}.", "rubric": "c", "score": 1 + i % 4}
        for i in range(8)
    ]
    result = evaluate(judge, records, "own", tmp_path / "own.json", 1)
    assert [row["group"] for row in result["judgments"]] == list(range(8))
    assert None not in result["methods"]["RAIL"]["rmse_ci"]


def test_the_same_file_has_the_same_groups_as_a_benchmark_and_as_data(tmp_path):
    rows = [{"instruction": f"Record {i} is worth 3.", "gpt4_score": [3], "idx": 80 + i // 2} for i in range(4)]
    (tmp_path / "mt_bench_eval.json").write_text(json.dumps(rows))
    judge = fake_judge(lambda prompt: [sure(worth(prompt))])
    for name, records in (
        ("benchmark", load_benchmark("mt_bench", tmp_path)),
        ("data", own_benchmark(tmp_path / "mt_bench_eval.json")),
    ):
        result = evaluate(judge, records, name, tmp_path / f"{name}.json")
        assert [row["group"] for row in result["judgments"]] == [0, 0, 2, 2]


def test_pairs_of_one_instruction_are_a_group(tmp_path):
    asked = [{**pair, "instruction": "PQQR"[number]} for number, pair in enumerate(PAIRS)]
    result = evaluate(fake_judge(of_response), read_pairs(asked), "mine", tmp_path / "r.json", 2)
    assert [row["group"] for row in result["judgments"]] == [0, 0, 1, 1, 1, 1, 3, 3]
    assert result["methods"]["RAIL"]["accuracy_ci"] == [None, None]  # three groups are too few


def test_rows_of_an_interrupted_evaluation_take_group_and_gold_from_the_records(tmp_path, monkeypatch):
    """Older versions wrote them into the unfinished rows, pairs without a group."""
    pairs, path = read_pairs(PAIRS), tmp_path / "r.json"
    whole = evaluate(fake_judge(of_response), pairs, "mine", tmp_path / "whole.json", 2)

    def stopped(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tract_trainer.data.store.finished_rows", stopped)
        evaluate(fake_judge(of_response), pairs, "mine", path, 2)
    begun = tmp_path / "r.unfinished" / "process-00000.jsonl"
    rows = [{**json.loads(line), "subset": "older", "side": "older"} for line in begun.read_text().splitlines()]
    assert not any("group" in row for row in rows)
    begun.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = fake_judge(of_response)
    assert evaluate(judge, pairs, "mine", path, 2) == whole and judge.engine.generated == 0
