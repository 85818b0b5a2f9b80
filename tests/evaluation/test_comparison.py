"""Differences of two judges on the same records, as a table and as a picture."""

import json

import numpy as np
import pytest
from fake import FIVE, fake_judge
from rich.console import Console
from test_evaluate import GOLD, PAIRS, noisy, number_of, of_response, worth

from tract_trainer.cli.main import main
from tract_trainer.data.pairs import read_pairs
from tract_trainer.errors import InputError
from tract_trainer.evaluation.comparison import compare, draw_comparison
from tract_trainer.evaluation.evaluate import evaluate, load_result
from tract_trainer.evaluation.methods import METHODS
from tract_trainer.evaluation.pictures import METHOD_COLORS
from tract_trainer.evaluation.tables import comparison_markdown, comparison_table
from tract_trainer.metrics import paired_difference

RECORDS = [{"prompt": f"Record {i} is worth {gold}.", "score": float(gold)} for i, gold in enumerate(GOLD)]


def vague(prompt):
    """Knows half as well as `noisy`, and does not score record 3."""
    probs = np.mean([np.eye(5)[worth(prompt) - 1], np.full(5, 0.2), np.array(noisy(prompt)[0][1])], axis=0)
    return [None if number_of(prompt) == 3 else (str(probs.argmax() + 1), (probs / probs.sum()).tolist())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of judges on the same records, on others, on another scale, and on pairs."""
    folder = tmp_path_factory.mktemp("results")
    ten = type(FIVE)(list("123456789"), list(range(1, 10)), FIVE.score_prefix)
    of_ten = [(label, [*probs, 0, 0, 0, 0]) for label, probs in noisy(RECORDS[0]["prompt"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tract_trainer.evaluation.evaluate.draw", lambda result, stem: None)
        evaluate(fake_judge(noisy), RECORDS, "mine", folder / "noisy.json", judge_name="noisy")
        evaluate(fake_judge(vague), RECORDS, "mine", folder / "vague.json", judge_name="va|gue $x^{$")
        evaluate(fake_judge(noisy), RECORDS[:5], "fewer", folder / "fewer.json")
        evaluate(fake_judge(lambda prompt: of_ten, ten), RECORDS, "mine", folder / "nine.json")
        evaluate(fake_judge(of_response), read_pairs(PAIRS), "pairs", folder / "pairs.json", judge_name="right")
        reversed_ = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
        evaluate(fake_judge(of_response), read_pairs(reversed_), "pairs", folder / "reversed.json", judge_name="wrong")
    return folder


def results(folder, *names):
    return [load_result(folder / f"{name}.json") for name in names]


def printed(table):
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_judge_does_not_differ_from_itself(folder):
    found = compare(*results(folder, "noisy", "noisy"))
    assert len(found["figures"]) == 9 and (found["n"], found["unscored"]) == (12, 0)
    for figure in found["figures"].values():
        assert (figure["difference"], figure["p_value"]) == (0, 1) and figure["difference_ci"] == (0, 0)


def test_the_differences_are_those_of_the_scores_that_both_gave(folder):
    a, b = results(folder, "noisy", "vague")
    scores = [[np.nan if row["score"] is None else row["score"] for row in result["judgments"]] for result in (a, b)]
    found = compare(a, b)
    assert (found["a"], found["n"], found["unscored"]) == ("noisy", 12, 1)
    for name in ("pearson", "rmse", "qwk"):
        expected = paired_difference(*scores, GOLD, figure=name, values=range(1, 6))
        assert found["figures"][name]["difference"] == pytest.approx(expected["difference"], abs=1e-6)
        assert found["figures"][name]["p_value"] == pytest.approx(expected["p_value"], abs=1e-6)
        assert found["figures"][name]["difference_ci"] == pytest.approx(expected["difference_ci"], abs=1e-6)
    decoded = compare(a, b, "decoded")["figures"]["mae"]["a"]
    labels = [int(row["label"]) for row in a["judgments"] if number_of(row["prompt"]) != 3]
    gold = [score for number, score in enumerate(GOLD) if number != 3]
    assert decoded == pytest.approx(np.abs(np.subtract(labels, gold)).mean())


def test_the_accuracies_of_pairs_are_compared(folder, tmp_path):
    (right,) = results(folder, "pairs")
    # Pairs: won, lost, tied, unscored. The other judge's scores are those of the other response.
    wrong = {**right, "judgments": [right["judgments"][place ^ 1] for place in range(8)]}
    found = compare(right, wrong)
    accuracy = found["figures"]["accuracy"]
    assert (accuracy["a"], accuracy["b"], accuracy["difference"]) == (0.5, 0.5, 0)
    assert (found["n"], found["unscored"]) == (4, 1)
    always = {**right, "judgments": [*right["judgments"][:2], *wrong["judgments"][2:]]}  # won, won, tied, unscored
    assert compare(always, right)["figures"]["accuracy"]["difference"] == pytest.approx(1 / 3)
    assert list(found["figures"]) == ["accuracy"]


def test_the_groups_of_records_and_pairs_count_in_a_comparison(folder):
    a, b = results(folder, "noisy", "vague")
    (few,) = results(folder, "pairs")
    pairs = {
        **few,
        "judgments": [{**row, "group": i} for i in range(0, 24, 2) for row in few["judgments"][i % 8 :][:2]],
    }
    always = {**pairs, "judgments": few["judgments"][:2] * 12}  # wins all
    for name, first, second in (("rmse", a, b), ("accuracy", pairs, always)):
        known = compare(first, second)["figures"][name]
        given = first["judgments"]
        rows = [{**row, "group": place * 5 // len(given)} for place, row in enumerate(given)]
        grouped = compare({**first, "judgments": rows}, second)["figures"][name]
        assert grouped["difference"] == known["difference"] and np.isfinite(grouped["p_value"])
        assert grouped["p_value"] != known["p_value"]


def test_a_record_without_probability_on_the_scale_is_left_out(folder):
    a, b = results(folder, "noisy", "vague")
    rationales = [{**one, "probs": [0.0] * 5} for one in a["judgments"][0]["rationales"]]
    rows = [{**a["judgments"][0], "rationales": rationales}, *a["judgments"][1:]]
    for method in METHODS:
        assert compare({**a, "judgments": rows}, b, method)["unscored"] == 2  # and record 3 of b


def test_other_records_are_refused_with_both_named(folder):
    with pytest.raises(InputError) as raised:
        compare(*results(folder, "noisy", "fewer"))
    assert str(raised.value) == (
        "The results are of different records: 'mine' with 12, 'fewer' with 5. Evaluate both judges on the same."
    )
    with pytest.raises(InputError, match="'pairs' with 4, 'pairs' with 4"):
        compare(*results(folder, "pairs", "reversed"))


def test_another_scale_and_an_unknown_method_are_refused(folder):
    with pytest.raises(InputError, match=r"different scales, \[1\.0, 2\.0, 3\.0, 4\.0, 5\.0\] and \[1\.0, .* 9\.0\]"):
        compare(*results(folder, "noisy", "nine"))
    with pytest.raises(InputError, match=r"^method 'mean' is not known; known are \['decoded', 'greedy', 'RAIL', "):
        compare(*results(folder, "noisy", "vague"), "mean")


def test_the_table_and_the_page_name_the_judges_as_they_are(folder):
    found = compare(*results(folder, "noisy", "vague"))
    assert "A is noisy, B is va|gue $x^{$." in printed(comparison_table(found))
    page = comparison_markdown(found)
    assert r"B is va\|gue $x^{$." in page and page.count("\n| ") == 10 and "| Pearson |" in page


@pytest.mark.parametrize(("p", "text"), [(1e-9, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (1, "1.000")])
def test_a_small_p_value_is_no_zero_in_the_table(p, text, folder):
    found = compare(*results(folder, "noisy", "vague"))
    found["figures"]["pearson"]["p_value"] = p
    for shown in (comparison_markdown(found), printed(comparison_table(found))):
        (row,) = (line for line in shown.split("\n") if "Pearson" in line)
        assert row.rstrip(" |").endswith(text)


@pytest.mark.parametrize(("a", "b"), [("noisy", "vague"), ("pairs", "pairs")])
def test_the_command_prints_and_draws(a, b, folder, tmp_path, capsys):
    output = tmp_path / "out" / "put"
    argv = ["compare", folder / f"{a}.json", folder / f"{b}.json", "--method", "decoded", "--output", output]
    assert main([str(argument) for argument in argv]) == 0
    assert "A - B" in capsys.readouterr().out
    assert (output / "comparison.md").is_file() and (output / "comparison.png").stat().st_size > 1000


def test_a_table_of_somebody_else_is_kept(folder, tmp_path, capsys):
    (tmp_path / "comparison.md").write_text("Mine.")
    argv = ["compare", str(folder / "noisy.json"), str(folder / "vague.json"), "--output", str(tmp_path)]
    assert main(argv) == 2
    assert "comparison.md exists" in capsys.readouterr().err
    assert (tmp_path / "comparison.md").read_text() == "Mine." and not (tmp_path / "comparison.png").exists()
    for flags in (["--overwrite", "true"], []):
        assert main([*argv, *flags]) == 0


def test_the_picture_names_the_judges_their_figures_and_has_the_colour_of_the_method(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("tract_trainer.evaluation.pictures.save_png", lambda figure, path: drawn.append(figure))
    a, b = results(folder, "noisy", "vague")
    found = compare(a, b, "median")
    draw_comparison(found, a, b, tmp_path / "x.png")
    _, of_a, of_b = drawn[0].get_suptitle().split("\n")
    r, rmse = (found["figures"][name]["a"] for name in ("pearson", "rmse"))
    assert of_a == f"A: noisy, r = {r:.3f}, RMSE = {rmse:.3f}".replace("= 0.", "= .") and of_b.startswith(
        "B: va|gue $x^{$, r = "
    )
    bars = [ax.containers[0] for ax in drawn[0].axes if ax.containers]
    assert {bar.lines[0].get_color() for bar in bars} == {METHOD_COLORS["median"]}


def test_what_is_no_result_is_refused(folder, tmp_path, capsys):
    def message(*argv):
        assert main(["compare", *map(str, argv)]) == 2
        return capsys.readouterr().err

    noisy_result = folder / "noisy.json"
    assert "Expected two results of tract evaluate, A.json B.json, got []." in message()
    assert "got ['a', 'b', 'c']" in message("a", "b", "c")
    for nothing in ("nowhere.json", folder):
        assert f"Expected the JSON file of a result, found no file {str(nothing)!r}." in message(noisy_result, nothing)
    (tmp_path / "x.json").write_text("[]")
    assert "it has no schema_version" in message(noisy_result, tmp_path / "x.json")
    result = json.loads(noisy_result.read_text())
    (tmp_path / "x.json").write_text(json.dumps({**result, "schema_version": 2}))
    assert "has schema_version 2" in message(tmp_path / "x.json", noisy_result)
