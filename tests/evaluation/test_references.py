"""A second gold score and the length of responses, beside the figures of a judge."""

import numpy as np
import pytest
from fake import fake_judge, sure
from scipy import stats

from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.references import finite_scores, response_length
from tract_trainer.hub.results import further_tables, length_remark, markdown

NAN = float("nan")
PROMPT = "###The instruction to evaluate:\nQ\n\n###Response to evaluate:\n{}\n\n###{}:\nr\n\n###Feedback: "


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)


@pytest.mark.parametrize(
    ("cell", "scores"),
    [
        *((3, [3.0]), ("2.5", [2.5]), ([1, 2], [1.0, 2.0]), ("[4, 5]", [4.0, 5.0])),
        *(
            (cell, [])
            for cell in (None, "", "n/a", NAN, "inf", [], "[]", [1, None], "[1,", True, {}, 10**400, "[" * 10**5)
        ),
    ],
    ids=lambda value: str(value)[:9],
)
def test_the_scores_in_a_cell(cell, scores):
    assert finite_scores(cell) == scores


@pytest.mark.parametrize("head", ["Reference Answer (Score 5)", "Score Rubrics"])
def test_the_length_is_that_of_the_response(head):
    assert response_length({"instruction": PROMPT.format("seven c\n", head)}) == 7
    assert response_length({"prompt": PROMPT.format("two\n\n###lines", head)}) == 13
    assert response_length({"instruction": "Q", "response": "", "rubric": "R"}) == 0
    assert response_length({"instruction": "ready", "orig_response": "four"}) == 4
    assert response_length({"response": "four", "response_length": "9"}) == 9
    assert response_length({"prompt": "ready"}) is None


def judged(records, tmp_path):
    judge = fake_judge(lambda prompt: [sure(int(prompt.split("worth ")[1][0]))])
    return evaluate(judge, records, "mine", tmp_path / "r.json", judge_name="j")


def test_scores_and_gold_are_correlated_with_the_length(tmp_path):
    rng = np.random.default_rng(0)
    scores, gold, lengths = rng.integers(1, 6, 30), rng.integers(1, 6, 30), rng.integers(1, 99, 30)
    records = [
        {"prompt": f"{i} worth {x}", "score": float(y), "response_length": int(n)}
        for i, (x, y, n) in enumerate(zip(scores, gold, lengths, strict=True))
    ]
    del records[0]["response_length"]
    result = judged(records, tmp_path)
    found = result["length"]
    assert found["n"] == 29
    assert found["a"] == pytest.approx(stats.spearmanr(scores[1:], lengths[1:]).statistic)
    assert found["b"] == pytest.approx(stats.spearmanr(gold[1:], lengths[1:]).statistic)
    assert length_remark(result).startswith("Spearman's rho with the length of the response: -.082 for j, -.042 for")
    assert "Spearman's rho with the length of the response: -.082" in markdown(result)


def test_a_human_score_is_a_second_gold(tmp_path):
    human = [[1, 3], [2, 2], None, [5, 3], 4, "", [1, 1]]
    records = [{"prompt": f"{i} worth {1 + i % 5}", "score": 1 + i % 3} for i in range(7)]
    records = [{**record, "human_score": of} for record, of in zip(records, human, strict=True)]
    found = judged(records, tmp_path)["human_score"]
    of_humans, places = [2, 2, 4, 4, 1], [0, 1, 3, 4, 6]
    rail, gold = (found["methods"][name] for name in ("RAIL", "gold"))
    assert rail["n"] == gold["n"] == 5
    assert rail["pearson"] == pytest.approx(stats.pearsonr([1 + i % 5 for i in places], of_humans).statistic)
    assert gold["pearson"] == pytest.approx(stats.pearsonr([1 + i % 3 for i in places], of_humans).statistic)
    assert found["ceiling"]["n"] == 4
    result = judged(records, tmp_path)
    ((title, rows),) = further_tables(result).items()
    assert title == "Against human_score, on 5 records."
    assert rows[0] == ["", "decoded", "greedy", "RAIL", "RAIL renormalised", "median", "gold", "one rater"]
    assert title in markdown(result)


def test_human_scores_of_another_scale_are_no_gold(tmp_path):
    records = [{"prompt": f"{i} worth 3", "score": 1 + i, "human_score": 20 * i} for i in range(5)]
    assert "human_score" not in judged(records, tmp_path)
