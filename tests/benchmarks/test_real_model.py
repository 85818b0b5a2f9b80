"""The comparison on a pretrained model, with a made-up model and made-up records in the format of the data."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_real_text import prometheus_row
from tiny import make_model, make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import real_model
import real_tables


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, and a file with six instructions of two responses each."""
    folder, tokenizer = tmp_path_factory.mktemp("real_model"), make_tokenizer("qwen")
    for part in (make_model("llama", len(tokenizer), max_position_embeddings=2048), tokenizer):
        part.save_pretrained(folder / "model")
    rows = [prometheus_row(i // 2, "word " * (1 + i % 5), [1 + i % 5, 1 + i % 5, 1 + (i + 1) % 5]) for i in range(12)]
    (folder / "mt_bench_eval.json").write_text(json.dumps(rows))
    return folder


def run(monkeypatch, made, folder, *more):
    argv = ["real_model.py", str(made / "model"), str(made / "mt_bench_eval.json"), "--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", [*argv, "--device", "cpu", "--output_dir", str(folder), *more])
    real_model.main()


@pytest.mark.slow
def test_every_arm_runs_is_not_done_again_and_stands_in_the_tables(made, tmp_path, monkeypatch, capsys):
    run(monkeypatch, made, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*.json")}
    arms = [arm for wave in real_model.WAVES for arm in wave]
    assert sorted(path.stem for path in files) == sorted([*arms, real_tables.TRIVIAL] * 2)  # the last is not reported
    run(monkeypatch, made, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    capsys.readouterr()
    run(monkeypatch, made, tmp_path, "--summary")
    page = capsys.readouterr().out
    assert all(f"\n| {arm} |" in page for arm in arms)
    assert "8 held-out records of 4 instructions, in 2 folds." in page


def judged(label, *probs, forced=False):
    return {"text": "", "label": label, "num_tokens": 4, "forced": forced, "probs": list(probs)}


def test_scores_are_read_off_in_each_way():
    sampled = [judged("2", 0, 0.5, 0, 0.25, 0), judged("5", 0, 0, 0, 0, 0.8)]
    kinds = {
        "sampled": [sampled],
        "greedy": [[judged("4", 0, 0, 0, 1, 0)]],
        "annotated": [[judged("1", 1, 0, 0, 0, 0)]],
    }
    found = real_tables.by_method({"judgments": kinds, "renormalized": False})
    # RAIL: 2 * .5 + 4 * .25 = 2 after the first rationale, 5 * .8 = 4 after the second.
    assert {method: row.tolist() for method, row in found.items()} == {
        "greedy": [4], "sampled": [2], "mean of sampled": [3.5], "RAIL": [2], "RAIL, several": [3],
        "RAIL after the annotated rationale": [1],
    }  # fmt: skip
    found = real_tables.by_method({"judgments": kinds, "renormalized": True})
    assert found["RAIL"].tolist() == pytest.approx([2 / 0.75])
    assert found["RAIL, several"].tolist() == pytest.approx([(2 / 0.75 + 5) / 2])
    found = real_tables.by_method({"judgments": {"greedy": [sampled[:1]]}, "renormalized": False})
    assert {method: row.tolist() for method, row in found.items()} == {"greedy": [2], "RAIL": [2]}


def test_a_rationale_without_a_score_counts_as_the_mean_of_the_others():
    none = {"text": "", "label": None, "num_tokens": 4, "forced": False, "probs": None}
    found = {"judgments": {"greedy": [[judged("4", 0, 0, 0, 1, 0)], [none], [judged("1", 1, 0, 0, 0, 0)]]}}
    read = real_tables.by_method({**found, "renormalized": False})
    assert {method: row.tolist() for method, row in read.items()} == {"greedy": [4, 2.5, 1], "RAIL": [4, 2.5, 1]}


def make_fold(number, gold, scores, runs=None):
    groups = np.array([f"{number}-{i // 2}" for i in range(len(gold))])
    runs = np.tile(np.array(gold)[:, None], 3) if runs is None else np.array(runs)
    scores = {real_tables.Side(*side): np.array(row, float) for side, row in scores.items()}
    return real_tables.Fold(0, number, np.array(gold, float), groups, runs, scores, {arm: {} for arm, _ in scores})


def test_correlations_are_means_over_folds_and_a_difference_is_of_the_folds_that_both_finished():
    gold = [1, 2, 3, 4, 5, 3]
    worse = [2, 1, 3, 5, 4, 3]
    tract, ce = ("TRACT", "RAIL"), ("CE", "RAIL")
    folds = [make_fold(0, gold, {tract: gold, ce: worse}), make_fold(1, gold, {tract: [s + 9 for s in worse]})]
    r = np.corrcoef(worse, gold)[0, 1]
    found = real_tables.figures(folds, real_tables.Side(*tract))
    assert found["pearson"][0] == pytest.approx((1 + r) / 2)
    lines = [
        line for line in real_tables.contrast_table(folds).splitlines() if line.startswith("| TRACT, RAIL - CE, RAIL")
    ]
    assert len(lines) == 1 and lines[0].endswith("| 6 |")
    assert f"| {1 - r:.3f} [".replace("0.", ".") in lines[0]


def test_a_run_of_gpt4_is_held_against_the_mean_of_the_other_two():
    runs = [[1, 2, 3], [5, 4, 4], [3, 3, 1], [2, 5, 5]]
    fold = make_fold(0, [2, 13 / 3, 7 / 3, 4], {}, runs)
    found = real_tables.figures([fold], real_tables.Side(real_tables.CEILING, ""))
    expected = [np.corrcoef(first, (second + third) / 2)[0, 1] for first, second, third in (
        np.roll(np.array(runs).T, i, axis=0) for i in range(3)
    )]  # fmt: skip
    assert found["pearson"][0] == pytest.approx(np.mean(expected))


def test_rows_of_all_arms_have_the_same_prompts_and_scores():
    record = {"asked": "Judge.", "rationales": ["Short.", "Longer."], "score": 11 / 3}
    size = real_model.Size(rationales=2)
    annotated, bare = (real_model.training_rows([record], size, with_rationale=kind) for kind in (True, False))
    texts = [[row["completion"][0]["content"] for row in rows] for rows in (annotated, bare)]
    assert texts[0] == ["Short. So the overall score is 4", "Longer. So the overall score is 4"]
    assert texts[1] == ["So the overall score is 4"] * 2
    assert [(row["prompt"], row["score"]) for row in annotated] == [(row["prompt"], row["score"]) for row in bare]


def test_work_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "settings.json"
    real_model.check({"epochs": 3}, {"epochs": 3, "more": 1}, path)
    with pytest.raises(SystemExit, match="epochs: 2 there, 3 now"):
        real_model.check({"epochs": 3}, {"epochs": 2}, path)


def test_the_first_judgments_are_printed_as_they_come(tmp_path):
    (tmp_path / "seed-00-fold-0").mkdir()
    kept = {
        "gold": [11 / 3, 2],
        "groups": ["mt 7", "mt 9"],
        "judgments": {
            "sampled": [[judged("4", 0, 0.25, 0, 0.75, 0) | {"text": "Sound."}], [judged("1", 1, 0, 0, 0, 0)]]
        },
    }
    (tmp_path / "seed-00-fold-0" / "TRACT.json").write_text(json.dumps(kept))
    printed = real_tables.first_judgments(tmp_path, "TRACT", 1)
    assert printed.startswith("mt 7, gold 3.67, expected 3.50, written 4 (1: 0.00, 2: 0.25, 3: 0.00, 4: 0.75")
    assert printed.endswith("Sound.") and "mt 9" not in printed
    with pytest.raises(SystemExit, match="No judgments of 'CE'"):
        real_tables.first_judgments(tmp_path, "CE", 1)
