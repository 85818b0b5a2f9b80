"""Scores in the columns of a table become results that are saved, compared and shown like a judge's."""

import json
import time

import numpy as np
import pytest
from fake import fake_judge, sure
from files import write
from scipy import stats

from tract_trainer import ScoreScale
from tract_trainer.cli.main import main
from tract_trainer.data.reading import read_rows
from tract_trainer.errors import InputError
from tract_trainer.evaluation.columns import column_results
from tract_trainer.evaluation.comparison import compare
from tract_trainer.evaluation.evaluate import evaluate, load_result, save
from tract_trainer.evaluation.page import write_page
from tract_trainer.evaluation.pictures import result_figures
from tract_trainer.hub.results import markdown, remarks, verdict
from tract_trainer.metrics import agreement, paired_difference

FIVE = ScoreScale.integers(1, 5)


def table(n=40, seed=0):
    """Rows with three raters' scores, two scorers' columns and the group of their question."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        worth = int(rng.integers(1, 6))
        ratings = np.clip(worth + rng.integers(-1, 2, 3), 1, 5).tolist()
        near, far = (float(np.clip(worth + rng.normal(0, noise), 1, 5)) for noise in (0.5, 1.5))
        rows.append({"score": ratings, "near": near, "far": far, "group": i // 2, "category": "ab"[i % 2]})
    return rows


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
    monkeypatch.setattr("tract_trainer.evaluation.comparison.draw_comparison", lambda *args: None)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_the_figures_are_scipys_whatever_the_format(ending, tmp_path):
    rows = table()
    file = write(tmp_path / f"x.{ending}", rows)
    results = column_results(read_rows(file), "score", ["near", "far"], scale=FIVE)
    gold = np.mean([row["score"] for row in rows], axis=1)
    for column, result in results.items():
        scores, figures = [row[column] for row in rows], result["methods"]["score"]
        assert figures["pearson"] == pytest.approx(stats.pearsonr(scores, gold).statistic)
        assert figures["spearman"] == pytest.approx(stats.spearmanr(scores, gold).statistic)
        assert figures["kendall"] == pytest.approx(stats.kendalltau(scores, gold).statistic)
        assert figures["rmse"] == pytest.approx(np.sqrt(np.mean((scores - gold) ** 2)))
        expected = agreement(scores, gold, values=FIVE.values, groups=[row["group"] for row in rows])
        assert figures["qwk_ci"] == pytest.approx(expected["qwk_ci"])
        assert result["ceiling"]["n"] == 40 and result["ceiling"]["pearson"] < 1
    assert results["near"]["methods"]["score"]["pearson"] > results["far"]["methods"]["score"]["pearson"] + 0.05


def test_scores_that_are_none_are_counted_and_named():
    rows = [{"score": i % 5 + 1, "x": i % 5 + 1} for i in range(8)]
    for i, cell in ((1, ""), (3, "n/a"), (4, None), (5, float("nan")), (6, True)):
        rows[i]["x"] = cell
    result = column_results(rows, "score", ["x"], scale=FIVE)["x"]
    assert (result["methods"]["score"]["n"], result["methods"]["score"]["unscored"]) == (8, 5)
    assert [row["score"] for row in result["judgments"]] == [1, None, 3, None, None, None, None, 3]
    assert result["judgments"][3]["reason"] == "row 3 has 'n/a' in 'x', which is no finite number."
    assert verdict(result).endswith("5 of 8 records are unscored (62.5 %). The first reason: row 1 has '' in 'x', "
                                    "which is no finite number.")  # fmt: skip
    assert result["methods"]["score"]["rmse_worst"] > result["methods"]["score"]["rmse"] == 0


def test_rows_without_a_gold_score_are_left_out_and_named():
    rows = [{"human": gold, "x": i} for i, gold in enumerate(["1", "", "3", "[4, null]", "[4, 5]", "inf"])]
    result = column_results(rows, "human", ["x"], scale=FIVE)["x"]
    assert [row["gold"] for row in result["judgments"]] == [1, 3, 4.5]
    assert [row["score"] for row in result["judgments"]] == [0, 2, 4]
    assert remarks(result)[-2:] == [
        "3 of 6 rows have no gold score in 'human' and are left out; the first is row 1, which has ''.",
        "1 of 3 scores in 'x' are off the scale of 1 to 5, such as 0. RMSE, MAE and figures of rounded scores need "
        "scores on it.",
    ]
    assert "left out; the first is row 1" in markdown(result)
    with pytest.raises(InputError, match=r"^No row has a gold score\. 1 of 1 rows .* which has 'A'\.$"):
        column_results([{"human": "A", "x": 1}], "human", ["x"])


def test_columns_and_gold_scores_that_do_not_fit_are_refused():
    rows = [{"score": 3, "x": 2}, {"score": 7, "x": 2}]
    with pytest.raises(InputError, match=r"^There is no column 'human', 'y'; found \['score', 'x'\]\.$"):
        column_results(rows, "human", ["x", "y"])
    with pytest.raises(InputError, match="gold score of record 1 is 7, off the scale of 1 to 5"):
        column_results(rows, "score", ["x"], scale=FIVE)


def test_without_a_scale_the_figures_that_round_are_left_out():
    results = column_results(table(), "score", ["near", "far"])
    assert not {"qwk", "kendall_rounded", "within_one", "rmse_worst"} & set(results["near"]["methods"]["score"])
    assert list(result_figures(results["near"])) == ["predictions"]
    assert list(compare(*results.values())["figures"]) == ["pearson", "spearman", "kendall", "rmse", "mae", "ccc"]
    with_scale = column_results(table(), "score", ["near"], scale=FIVE)["near"]
    assert list(result_figures(with_scale)) == ["predictions", "confusion"]
    assert list(result_figures(column_results([{"score": 2, "x": 9}], "score", ["x"])["x"])) == ["predictions"]


@pytest.mark.usefixtures("undrawn")
def test_scores_in_a_column_are_compared_with_a_judge(tmp_path):
    rows = table()
    # Means of thirds, rounded as in a spreadsheet.
    records = [{"prompt": f"Record {i}.", "score": round(np.mean(row["score"]), 2)} for i, row in enumerate(rows)]
    judge = fake_judge(lambda prompt: [sure(1 + int(prompt.split("Record ")[1].split(".")[0]) % 5)])
    judged = evaluate(judge, records, "mine", tmp_path / "judge.json", judge_name="judge")
    gold, of_judge = [record["score"] for record in records], [1 + i % 5 for i in range(40)]
    for scale in (FIVE, None):
        given = column_results(rows, "score", ["near"], scale=scale)["near"]
        near = [row["near"] for row in rows]
        for a, b, x, y in ((judged, given, of_judge, near), (given, judged, near, of_judge)):
            found = compare(a, b, "decoded")
            groups = [row["group"] for row in a["judgments"]]
            expected = paired_difference(x, y, gold, figure="qwk", values=FIVE.values, groups=groups)
            assert found["figures"]["qwk"]["difference"] == pytest.approx(expected["difference"])
            assert found["figures"]["qwk"]["p_value"] == pytest.approx(expected["p_value"])
            assert found["method"] == "decoded"
    other = column_results([{**row, "score": 3} for row in rows], "score", ["near"])["near"]
    for wrong in (other, column_results(rows[:-1], "score", ["near"])["near"]):
        with pytest.raises(InputError, match=r"^The results are of different records: 'mine' with 40, 'data' with "):
            compare(judged, wrong)
    nine = column_results(rows, "score", ["near"], scale=ScoreScale.integers(1, 9))["near"]
    with pytest.raises(InputError, match=r"^The judges have different scales"):
        compare(judged, nine)


@pytest.mark.usefixtures("undrawn")
def test_a_page_shows_the_scores_of_a_column(tmp_path):
    rows = [{**row, "instruction": f"Question {i}", "response": "x" * i} for i, row in enumerate(table())]
    result = column_results(rows, "score", ["near"], name="mine", scale=FIVE)["near"]
    save(result, tmp_path / "near.json")
    assert load_result(tmp_path / "near.json") == result
    page = write_page(tmp_path / "near.json").read_text()
    assert "<bdi>near</bdi> on <bdi>mine</bdi>" in page and "The score has r = " in page
    assert "One rater is compared with the mean of the others, on 40 records" in page
    assert "Question 7\\n\\nxxxxxxx" in page and ">one rater</th>" in page


# The command


@pytest.fixture
def agree(tmp_path, capsys):
    """Runs `tract agree` on a CSV of a table, and gives its exit code, output and error."""

    def call(*argv, rows=None):
        file = write(tmp_path / "scores.csv", table() if rows is None else rows)
        code = main(["agree", str(file), *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_prints_all_scorers_and_writes_their_results(agree, tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
    monkeypatch.setenv("COLUMNS", "90")
    folder = tmp_path / "out"
    argv = ["--prediction", "near", "far", "--scale", "1:5", "--by", "category"]
    code, out, _ = agree(*argv)
    assert code == 0 and out.count("one rater") == 1 and "near: The score has r = " in out
    assert "A is near, B is far." in out and out.count("By category, the highest mean gold score first.") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv"]
    for _ in range(2):  # its own files are replaced
        assert agree(*argv, "--output", folder)[0] == 0
    written = {"near.json", "near.md", "far.json", "far.md", "near-minus-far.md", "near-minus-far.png"}
    assert {path.name for path in folder.iterdir()} == written
    assert list(load_result(folder / "far.json")["breakdowns"]["category"]["groups"]) == ["a", "b"]
    assert main(["compare", *(str(folder / f"{name}.json") for name in ("far", "near")), "--output", str(folder)]) == 0
    assert "By category" in (folder / "far.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_judges_result_and_foreign_files_are_kept(agree, tmp_path):
    records = [{"prompt": f"{i}", "score": 1 + i % 5} for i in range(6)]
    evaluate(fake_judge(lambda prompt: [sure(3)]), records, "mine", tmp_path / "near.json")
    before = (tmp_path / "near.json").read_text()
    code, _, error = agree("--prediction", "near", "--output", tmp_path / "near.json")
    assert code == 2 and "near.json has judgments of a judge. Give another output" in error
    assert (tmp_path / "near.json").read_text() == before
    (tmp_path / "near-minus-far.md").write_text("Mine.")
    assert agree("--prediction", "near", "--output", tmp_path / "near.json", "--overwrite", "true")[0] == 0
    code, _, error = agree("--prediction", "near", "far", "--output", tmp_path)
    assert code == 2 and "near-minus-far.md exists, and tract did not write it." in error
    assert (tmp_path / "near-minus-far.md").read_text() == "Mine." and not (tmp_path / "far.json").exists()


def test_mistakes_of_the_command_are_one_message(agree, tmp_path):
    assert "--prediction is missing" in agree()[2]
    assert "There is no column 'gpt4'; found [" in agree("--prediction", "gpt4")[2]
    message = agree("--prediction", "near", "--by", "model")[2]
    assert "There is no column 'model' to break figures down by; the short columns" in message
    assert message.endswith("of the scored records are ['category', 'far', 'gold_ratings'].\n")
    one = agree("--prediction", "near", "far", "--output", tmp_path / "x.json")[2]
    assert "x.json is one file, and 2 results have one each. Give a folder." in one
    rows = [{"score": 1, "a b": 2, "a-b": 3, "c": "?"}] * 2
    assert "have the same names as files" in agree("--prediction", "a b", "a-b", "--output", tmp_path, rows=rows)[2]
    code, out, error = agree("--prediction", "c", "a b", rows=rows)
    assert code == 2 and "No score: all 2 records are unscored" in out and "No record has a score in 'c'." in error


def test_three_scorers_of_320_rows_take_less_than_two_seconds(agree):
    rows = [{**row, "third": row["near"], "group": i // 4} for i, row in enumerate(table(320))]
    start = time.process_time()
    assert agree("--prediction", "near", "far", "third", "--scale", "1:5", rows=rows)[0] == 0
    assert time.process_time() - start < 2


def test_results_are_strict_json(tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
    result = column_results([{"score": 3, "x": 3}, {"score": 3, "x": "?"}], "score", ["x"])["x"]
    save(result, tmp_path / "x.json")
    json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert result["methods"]["score"]["pearson"] is None
