"""The benchmark on real text, on made-up records in the format of its file."""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import real_text

QUESTION = "Is the answer right and complete?"


def prometheus_row(group, response, scores):
    dialogue = f"Dialogue.\nUser: Hello.\n\nAssistant: Yes?\n\nUser: Name fact {group}.\n\nAssistant: "
    levels = "\n".join(f"Score {i}: Level {i}." for i in range(1, 6))
    return {
        "idx": group,
        "instruction": f"###Task Description:\nRate it.\n\n###The instruction to evaluate:\n{dialogue}\n\n"
        f"###Response to evaluate:\n{response}\n\n###Reference Answer (Score 5):\nThe fact.\n\n"
        f"###Score Rubrics:\n[{QUESTION}]\n{levels}\n\n###Feedback: ",
        "gpt4_score": scores,
        "gpt4_feedback": [f"The answer {response} is read by judge {i}." for i in range(3)],
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Ten instructions with two responses each."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("real_text") / "mt_bench_eval.json"
    rows = []
    for i in range(20):
        words = rng.choices(["apple", "bread", "cloud", "delta"], k=rng.randint(1, 8))
        rows.append(prometheus_row(i // 2, " ".join(words), [1 + i % 5, 1 + i % 5, 1 + (i + 1) % 5]))
    path.write_text(json.dumps(rows))
    return path


def test_a_record_is_the_last_turn_the_response_and_the_rubrics_question(tmp_path):
    path = tmp_path / "mt_bench_eval.json"
    path.write_text(json.dumps([prometheus_row(7, "A first line.\n\nA second.", [4, 4, 5])]))
    (record,) = real_text.read(path)
    assert record == {
        "instruction": "Name fact 7.",
        "response": "A first line.\n\nA second.",
        "rubric": QUESTION,
        "rationale": "The answer A first line.\n\nA second. is read by judge 0.",
        "score": pytest.approx(13 / 3),
        "group": 7,
    }
    prompt = f"### Question\n{QUESTION}\n### Request\nName fact 7.\n### Response\nA first line.\n\nA second.\n"
    assert real_text.ask(record) == prompt + "### Judgment\n"


def test_folds_hold_out_every_record_once_and_never_split_an_instruction(file):
    records = real_text.read(file)
    seen = []
    for fold in range(3):
        train, held_out = real_text.split(records, fold, 3, seed=1)
        assert len(train) + len(held_out) == len(records)
        assert not {r["group"] for r in train} & {r["group"] for r in held_out}
        seen += [(r["group"], r["response"]) for r in held_out]
    assert sorted(seen) == sorted((r["group"], r["response"]) for r in records)
    first = [real_text.split(records, 0, 3, seed)[1] for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


def test_the_constant_and_the_line_over_the_length_are_those_computed_by_hand():
    def record(words, score=None):
        return {"instruction": "a", "response": " ".join("w" * words), "rubric": "b", "score": score}

    # log(1 + words) of 1, 3 and 7 words are 1, 2 and 3 times log 2; the line through 2, 3, 4 rises by 1 for each.
    found = real_text.trivial([record(1, 2.0), record(3, 3.0), record(7, 4.0)], [record(15), record(0)])
    assert found["constant"] == pytest.approx([3, 3])
    assert found["length of response"] == pytest.approx([5, 1])


def test_the_words_are_weighed_by_ridge_regression_as_by_hand():
    # "once" is in one text and so left out; all rows are unit vectors, four times (1, 0) and twice (0, 1), centred at
    # (2/3, 1/3): x'x = 4/3 [[1, -1], [-1, 1]], and x'y = (4, -4) for y = (1, 1, 1, 1, -2, -2) around the mean of 3.
    # (x'x + I) w = x'y gives w = (12/11, -12/11): good is 3 + 2/3 of it, bad 3 - 4/3, no known word 3 - 1/3.
    train, gold = ["Good once", "good", "good.", "good", "bad", "bad"], np.array([4.0, 4.0, 4.0, 4.0, 1.0, 1.0])
    by_hand = [3 + 8 / 11, 3 - 16 / 11, 3 - 4 / 11]
    assert real_text.by_words(train, ["good", "Bad, bad!", "neither"], gold) == pytest.approx(by_hand)
    assert real_text.by_words(train, ["good"], gold, penalty=1e9) == pytest.approx([3])


def make_fold(groups, **scores):
    gold = [1.0, 2.0, 3.0, 4.0, 5.0, 4.0]
    predictions = {row: [2.0, 2.0, 3.0, 5.0, 4.0, 3.0] for row in real_text.ROWS} | scores
    counts = {"rows": 12, "too_long": 2, "closed": {"TRACT": 4}, "mass": {"TRACT": 0.5}, "seconds": 60.0}
    return {"gold": gold, "groups": groups, "predictions": predictions, **counts}


def test_correlations_are_within_folds_errors_over_all_and_intervals_over_instructions():
    rng = np.random.default_rng(0)
    gold = np.repeat(rng.normal(size=60), 10)
    other = gold + np.repeat(rng.normal(size=60), 10)
    groups, folds = np.repeat(np.arange(60), 10), np.repeat([0, 1, 1], 200)

    def rows_of(other, groups=groups):
        return real_text.compare([real_text.Run({"other": other, "TRACT, RAIL": gold}, gold, groups, folds)])[0]

    found = rows_of(other)
    r, (low, high) = found["other"]["pearson"]
    first, second = (np.corrcoef(other[part], gold[part])[0, 1] for part in (slice(200), slice(200, 600)))
    assert r == pytest.approx((first + 2 * second) / 3)
    less, interval = found["other"]["tract_less_pearson"]
    assert less == pytest.approx(1 - r)
    assert interval == pytest.approx((1 - high, 1 - low))
    assert found["other"]["rmse"][0] == pytest.approx(np.sqrt(np.mean((other - gold) ** 2)))
    assert found["TRACT, RAIL"]["rmse"][0] == 0
    assert "tract_less_rmse" not in found["TRACT, RAIL"]
    # The 10 records of an instruction are equal, so what is drawn is 60 independent pairs, not 600: wide intervals.
    apart = rows_of(other, np.arange(600))["other"]
    assert high - low > 2 * (apart["pearson"][1][1] - apart["pearson"][1][0])
    # A judge of one fold that says 3 more of everything agrees as much, and errs more.
    moved = rows_of(other + 3 * folds)["other"]
    assert moved["pearson"][0] == pytest.approx(r) and moved["rmse"][0] > found["other"]["rmse"][0] + 1
    # One that says the same of every record of a fold does not agree on any.
    assert rows_of(np.where(folds == 0, 3.0, other))["other"]["pearson"][0] == pytest.approx(2 / 3 * second)


def test_seeds_are_averaged_and_an_instruction_is_drawn_in_all_of_them():
    rng = np.random.default_rng(0)
    gold, groups, folds = rng.normal(size=40), np.arange(40), np.zeros(40, int)
    others, order = [gold + rng.normal(size=40) for _ in range(2)], rng.permutation(40)
    runs = [real_text.Run({"other": other, "TRACT, RAIL": gold}, gold, groups, folds) for other in others]
    alone = [real_text.compare([run])[0]["other"]["pearson"] for run in runs]
    rows, deviation = real_text.compare(runs)
    assert rows["other"]["pearson"][0] == pytest.approx((alone[0][0] + alone[1][0]) / 2)
    assert deviation == pytest.approx({"other": abs(alone[0][0] - alone[1][0]) / 2**0.5, "TRACT, RAIL": 0})
    # The same predictions twice, the second time in another order: still 40 instructions, and the same interval.
    shuffled = real_text.Run({name: row[order] for name, row in runs[0].predictions.items()}, gold[order], order, folds)
    assert real_text.compare([runs[0], shuffled])[0]["other"]["pearson"] == (
        pytest.approx(alone[0][0]),
        pytest.approx(alone[0][1]),
    )


def test_the_page_has_a_line_for_each_row_and_no_correlation_of_a_constant():
    groups = [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]
    constants = [[score] * 6 for score in (3.0, 3.5)]
    first = [make_fold(group, constant=row) for group, row in zip(groups, constants, strict=True)]
    first[1]["predictions"]["TRACT, RAIL"] = [1.0, 2.0, 3.0, 4.0, 5.0, math.nan]
    page = real_text.page([first], real_text.Size())
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    heads = ["", "Pearson", "its deviation over seeds", "Spearman", "RMSE", "TRACT less it: Pearson", "RMSE"]
    assert table[0] == heads
    assert [line[0] for line in table[2:]] == list(real_text.ROWS)
    assert all(len(line) == 7 for line in table)
    constant, tract = table[2], table[2 + real_text.ROWS.index("TRACT, RAIL")]
    # Off by 2, 1, 0, 1, 2, 1 and by 2.5, 1.5, .5, .5, 1.5 on 11 records: sqrt((11 + 11.25) / 11).
    assert constant[1:4] == ["-"] * 3 and constant[4].startswith("1.422 [")
    assert constant[5] == "-" and constant[6].startswith("-")
    assert tract[2] == "-" and tract[5:] == ["-", "-"]
    assert "n = 12, 1 seeds of 2 folds; 1 of 12 unscored (by a judge, and left out of every row)." in page
    assert "Probability on the scale, mean: TRACT 0.50." in page
    assert "longer than 896 tokens: 4 of 24, over all folds." in page
    assert "within 160 tokens: TRACT 8; the others were closed by force.\n2 minutes" in page
    second = [make_fold(group, constant=row) for group, row in zip(groups, constants, strict=True)]
    page = real_text.page([first, second], real_text.Size())
    assert "n = 12, 2 seeds of 2 folds; 1 of 24 unscored" in page
    assert "within 160 tokens: TRACT 16; the others" in page
    # TRACT's fold of the first seed that agrees in all: (1 + r) / 2 there against r, r and r of the other folds.
    (line,) = (line for line in page.splitlines() if line.startswith("| TRACT, RAIL |"))
    r = np.corrcoef([2, 2, 3, 5, 4, 3], [1, 2, 3, 4, 5, 4])[0, 1]
    means = (6 * r + 5) / 11, r
    assert f"| {np.std(means, ddof=1):.3f} |".replace("0.", ".") in line and f"{np.mean(means):.3f}".lstrip("0") in line


@pytest.mark.slow
def test_it_runs_from_the_file_to_the_page_and_does_not_redo_a_fold(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["real_text.py", str(file), "--folds", "2", "--seeds", "2", "--small", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--output_dir", str(out)])
    real_text.main()
    page = (out / "results.md").read_text()
    assert page in capsys.readouterr().out
    files = [out / f"seed-0{seed}" / f"fold-{fold}.json" for seed in range(2) for fold in range(2)]
    folds = [json.loads(file.read_text()) for file in files]
    assert [len(fold["gold"]) for fold in folds] == [10] * 4
    assert sorted({*folds[0]["groups"], *folds[1]["groups"]}) == sorted({*folds[2]["groups"], *folds[3]["groups"]})
    assert folds[0]["predictions"]["TRACT, RAIL"] != folds[2]["predictions"]["TRACT, RAIL"]
    for fold in folds:
        assert fold["rows"] == 10 and fold["too_long"] == 0
        assert set(real_text.ROWS) <= set(fold["predictions"])
        assert all(0 <= score <= 5 for row in real_text.ROWS[4:] for score in fold["predictions"][row])
    assert sorted(file for file in out.rglob("*") if file.is_file()) == sorted(
        [*files, out / "results.md", out / "settings.json"]
    )
    (out / "results.md").unlink()
    times = [file.stat().st_mtime_ns for file in files]
    real_text.main()
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (out / "results.md").read_text() == page
