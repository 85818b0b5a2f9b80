"""Figures by the values of a column, a ranking and its correlations by hand."""

import json

import numpy as np
import pytest
from fake import fake_judge, sure
from rich.console import Console

from tract_trainer.data.pairs import read_pairs
from tract_trainer.errors import InputError
from tract_trainer.evaluation.breakdown import broken_down
from tract_trainer.evaluation.columns import column_results
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.page import render_page
from tract_trainer.evaluation.tables import tables_below
from tract_trainer.hub.results import breakdown_tables, markdown

# By model: gold and score.
SCORES = {
    "C": [(1, 2), (2, 1)],
    "A": [(5, 4), (4, 4)],
    "B": [(3, 5), (4, 3), (1, "none")],
}
ROWS = [{"model": model, "score": gold, "x": x} for model, pairs in SCORES.items() for gold, x in pairs]
ODD = [
    *({"model": "D", "score": 3, "x": x} for x in (2, 3)),
    {"model": "E", "score": 1, "x": 1},
    {"model": None, "score": 1, "x": ""},
]


def by_model(rows):
    return broken_down(column_results(rows, "score", ["x"])["x"], ["model"])


def test_the_ranking_of_models_by_hand():
    found = by_model(ROWS)["breakdowns"]["model"]
    assert {name: (group["mean_gold"], group["mean_score"]) for name, group in found["groups"].items()} == {
        "C": (1.5, 1.5),
        "A": (4.5, 4.0),
        "B": (3.5, 4.0),  # over the records with a score
    }
    # A and B tie by score, the other two pairs agree: 2 / sqrt(3 * 2). Ranks 3 2 1 and 2.5 2.5 1: 1.5 / sqrt(2 * 1.5).
    assert found["kendall"] == pytest.approx(2 / 6**0.5)
    assert found["spearman"] == pytest.approx(1.5 / 3**0.5)
    assert (found["groups"]["B"]["n"], found["groups"]["B"]["unscored"]) == (3, 1)
    assert found["groups"]["B"]["pearson"] == pytest.approx(-1)  # gold 3 4, scores 5 3
    assert found["groups"]["B"]["rmse"] == pytest.approx((5 / 2) ** 0.5)


def test_groups_too_small_for_a_figure_have_none():
    groups = by_model(ROWS + ODD)["breakdowns"]["model"]["groups"]
    assert [groups[name]["pearson"] for name in ("D", "E", "(none)")] == [None] * 3
    assert (groups["D"]["rmse"], groups["E"]["rmse"], groups["(none)"]["rmse"]) == (pytest.approx(0.5**0.5), 0, None)
    assert (groups["(none)"]["mean_gold"], groups["(none)"]["unscored"]) == (None, 1)
    alone = by_model(ODD)["breakdowns"]["model"]
    assert alone["kendall"] == pytest.approx(1) and alone["spearman"] == pytest.approx(
        1
    )  # D above E; the third has no mean
    assert by_model(ODD[:2])["breakdowns"]["model"]["kendall"] is None


def test_the_table_has_the_groups_in_the_order_of_gold_with_their_rank():
    ((title, rows),) = breakdown_tables(by_model(ROWS + ODD)).items()
    assert title == (
        "By model, the highest mean gold score first. Mean scores against mean gold scores of 5 groups: Kendall's tau "
        ".949, Spearman's rho .975."
    )
    assert rows[0] == ["model", "n", "unscored", "Pearson", "RMSE", "mean gold", "mean score", "rank"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [
        ("A", "1"),
        ("B", "1"),
        ("D", "3"),
        ("C", "4"),
        ("E", "5"),
        ("(none)", "-"),
    ]
    assert rows[2] == ["B", "3", "1", "-1.000", "1.581", "3.500", "4.000", "1"]


def test_means_that_are_equal_tie_whatever_the_order_of_their_sum():
    thirds = [[1, 1, 1], [1, 1, 2], [2, 2, 3]]
    assert np.mean(means := [np.mean(of) for of in thirds]) != np.mean(means[::-1])  # in floating point
    rows = [{"model": "a", "score": of, "x": 2} for of in thirds] + [
        {"model": "b", "score": of, "x": 1} for of in thirds[::-1]
    ]
    assert by_model(rows)["breakdowns"]["model"]["kendall"] is None  # gold is tied


def test_the_tables_are_on_the_page_in_markdown_and_in_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.page.result_figures", lambda result: {})
    rows = [{**row, "model": f"<b>{row['model']}|"} for row in ROWS]
    result = by_model(rows)
    assert "By model, the highest mean gold score first." in markdown(result) and "| \\<b\\>A\\| | 2 |" in markdown(
        result
    )
    (tmp_path / "x.json").write_text(json.dumps(result))
    page = render_page(tmp_path / "x.json")
    assert '<th scope="row" dir="auto">&lt;b&gt;A|</th><td>2</td>' in page and "<b>A" not in page
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(*tables_below(result))
    assert "By model, the highest" in capture.get() and "<b>A|" in capture.get() and "…" not in capture.get()


def test_a_judges_result_is_broken_down_by_rail(tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
    judge = fake_judge(lambda prompt: [("5", [0.0, 0.0, 0.0, 0.5, 0.5])] if "even" in prompt else [sure(2)])
    records = [{"prompt": f"{i} {('even', 'odd')[i % 2]}", "score": 4 - i % 2, "kind": i % 2} for i in range(6)]
    result = broken_down(evaluate(judge, records, "mine", tmp_path / "r.json"), ["kind"])
    groups = result["breakdowns"]["kind"]["groups"]
    assert {name: group["mean_score"] for name, group in groups.items()} == {"0": 4.5, "1": 2}
    with pytest.raises(InputError, match=r"no column 'model' to break figures down by; .* are \['kind'\]\."):
        broken_down(result, ["kind", "model"])
    pairs = read_pairs([{"instruction": "Q", "chosen": "even", "rejected": "odd", "kind": 1}])
    with pytest.raises(
        InputError, match=r"'kind' to break figures down by; the short columns of the scored .* are \[\]"
    ):
        broken_down(evaluate(judge, pairs, "pairs", tmp_path / "p.json"), ["kind"])
