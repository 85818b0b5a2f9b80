import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from tract_trainer.data.store import save_results
from tract_trainer.evaluation.tables import results_table, summary_table
from tract_trainer.hub.results import figure_with_interval
from tract_trainer.metrics import agreement


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
        (None, (None, None), "-"),
        (0.5, (None, None), ".500"),
    ],
)
def test_a_figure_is_written_with_its_interval(value, interval, text):
    assert figure_with_interval(value, interval) == text


def test_a_row_of_the_table_holds_every_figure_and_both_counts():
    # Gold 1, 2, 3, 4 and predictions one too high: order kept, RMSE 1; the fifth record is unscored.
    found = agreement([2.0, 3.0, 4.0, 5.0, math.nan], [1.0, 2.0, 3.0, 4.0, 5.0], intervals=False)
    other = agreement([2.0, 3.0, 4.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], intervals=False)
    assert cells({"TRACT": found, "other": other}, "TRACT") == ["TRACT", "1.000", "1.000", "1.000", "1.000", "5", "1"]


def test_counts_that_all_rows_share_stand_below_the_table():
    found = agreement([2.0, 3.0, 4.0, 5.0, math.nan], [1.0, 2.0, 3.0, 4.0, 5.0], intervals=False)
    assert cells({"a": found, "b": found}, "a ") == ["a", "1.000", "1.000", "1.000", "1.000"]
    assert "n = 5, 1 unscored (20.0 %)" in printed({"a": found, "b": found})
    with_mass = {**found, "mass": 0.875}
    shown = " ".join(printed({"a": with_mass, "b": with_mass}).split())
    assert "n = 5, 1 unscored (20.0 %); probability on the scale .875" in shown


def test_a_constant_judge_has_a_dash_where_no_correlation_is_defined():
    found = agreement([3.0, 3.0, 3.0], [1.0, 3.0, 5.0])
    assert cells({"constant": found}, "constant")[1:4] == ["-", "-", "-"]


def test_no_interval_is_cut_off_at_eighty_columns():
    gold = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 300)
    found = agreement(np.clip(gold + np.sin(np.arange(1500)), 1, 5), gold)
    found["rmse_ci"] = (1.02, 1.08)
    text = printed({"Cross-entropy, decoded": found, "b": {**found, "unscored": 1}}, width=80)
    assert len(re.findall(r"\[1?\.\d\d, 1?\.\d\d\]", text)) == 8
    assert "decoded" in text
    assert "1,500" in text
    assert "scored" in text
    assert "…" not in text


def test_five_figures_and_their_negative_intervals_fit_into_eighty_columns():
    gold = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 20)
    found = agreement(3 - 0.1 * gold + np.sin(np.arange(100)), gold, values=range(1, 6))
    text = printed({"RAIL renormalised": found, "decoded": found}, width=80)
    assert "RAIL renormalised" in " ".join(text.split()) or "renormalised" in text
    assert len(re.findall(r"\[-?\d?\.\d\d, -?\d?\.\d\d\]", text)) == 10 and "…" not in text


def test_markup_in_a_name_is_shown():
    found = agreement([1.0, 2.0], [1.0, 3.0], intervals=False)
    assert "[red]x" in printed({"[red]x": found})


def test_the_mean_over_benchmarks_is_that_of_each_method():
    def result(name, pearson):
        return {"benchmark": {"name": name}, "methods": {"RAIL": {"pearson": pearson}, "decoded": {"pearson": None}}}

    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(summary_table([result("a", 0.5), result("b", 0.7)]))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["RAIL", ".500", ".700", ".600"] in lines and ["decoded", "-", "-", "-"] in lines


def test_results_are_saved_as_strict_json(tmp_path):
    save_results(tmp_path / "results.json", {"TRACT": {"pearson": math.nan, "pearson_ci": (math.nan, 0.5), "n": 3}})
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found == {"TRACT": {"pearson": None, "pearson_ci": [None, 0.5], "n": 3}}
