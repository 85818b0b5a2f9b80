import json
import math
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from tract_trainer.metrics import agreement
from tract_trainer.report import figure_with_interval, plot_curves, plot_predictions, results_table, save_results


def printed(results, width=160):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def cells(results, row):
    return next(line for line in printed(results).splitlines() if row in line).split()


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.7731, (0.7549, 0.7912), ".773 [.75, .79]"),
        (-0.05, (-0.104, 0.02), "-.050 [-.10, .02]"),
        (10.25, (10.0, 10.5), "10.250 [10.00, 10.50]"),
        (1.0, None, "1.000"),
        (0.5, (math.nan, math.nan), ".500"),
        (math.nan, (0.1, 0.2), "-"),
    ],
)
def test_a_figure_is_written_with_its_interval(value, interval, text):
    assert figure_with_interval(value, interval) == text


def test_a_row_of_the_table_holds_every_figure_and_both_counts():
    # Gold 1, 2, 3, 4 and predictions one too high: order kept, RMSE 1; the fifth record is unscored.
    found = agreement([2.0, 3.0, 4.0, 5.0, math.nan], [1.0, 2.0, 3.0, 4.0, 5.0], n_resamples=0)
    assert cells({"TRACT": found}, "TRACT") == ["TRACT", "1.000", "1.000", "1.000", "1.000", "5", "1"]


def test_a_constant_judge_has_a_dash_where_no_correlation_is_defined():
    found = agreement([3.0, 3.0, 3.0], [1.0, 3.0, 5.0], n_resamples=10)
    assert cells({"constant": found}, "constant")[1:4] == ["-", "-", "-"]


def test_no_interval_is_cut_off_at_eighty_columns():
    gold = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 300)
    found = agreement(np.clip(gold + np.sin(np.arange(1500)), 1, 5), gold, n_resamples=20)
    found["rmse_ci"] = (1.02, 1.08)
    text = printed({"Cross-entropy, decoded": found}, width=80)
    assert len(re.findall(r"\[1?\.\d\d, 1?\.\d\d\]", text)) == 4
    assert "decoded" in text
    assert "1,500" in text
    assert "scored" in text
    assert "…" not in text


def test_a_picture_shows_the_predictions(tmp_path):
    gold = np.array([1.0, 2.0, 3.0, 4.0, 5.0] * 4)
    plot_predictions(tmp_path / "one.png", {"a": (gold, gold)})
    plot_predictions(tmp_path / "two.png", {"a": (gold, gold), "b": (6 - gold, gold)})
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > one.shape[1]
    assert one.std() > 0.01


def test_unscored_records_are_left_out_of_a_picture(tmp_path):
    gold = np.array([1.0, 2.0, 3.0])
    plot_predictions(tmp_path / "some.png", {"a": ([1.0, math.nan, 3.0], gold)})
    plot_predictions(tmp_path / "none.png", {"a": ([math.nan] * 3, gold)})
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_no_panel_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`panels` is empty\. Give at least one pair"):
        plot_predictions(tmp_path / "none.png", {})


def test_curves_pass_over_entries_without_losses(tmp_path):
    entries = [{"epoch": i / 4, "ce_loss": 1 / (i + 1), "score_loss": 2 / (i + 1)} for i in range(5)]
    plot_curves(tmp_path / "curves.png", {"Stage 1": [*entries, {"epoch": 1.0, "train_runtime": 3.0}]})
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0.01


def test_a_run_without_losses_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Run 'Stage 1' logged no ce_loss and score_loss among its 1 entries"):
        plot_curves(tmp_path / "curves.png", {"Stage 1": [{"loss": 1.0}]})


def test_drawing_does_not_load_pyplot():
    code = "import sys, tract_trainer.report; assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_are_saved_as_strict_json(tmp_path):
    save_results(tmp_path / "results.json", {"TRACT": {"pearson": math.nan, "pearson_ci": (math.nan, 0.5), "n": 3}})
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found == {"TRACT": {"pearson": None, "pearson_ci": [None, 0.5], "n": 3}}
