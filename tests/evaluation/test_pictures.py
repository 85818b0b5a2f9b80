"""Scores, training curves and results become pictures. What they look like is for eyes to judge."""

import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from fake import FIVE, fake_judge, sure
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tract_trainer.data.pairs import read_pairs
from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.methods import METHODS
from tract_trainer.evaluation.pictures import (
    METHOD_COLORS,
    ORDERS,
    as_svg,
    legend_below,
    predictions,
    result_figures,
    save_png,
    shortened,
    training_curves,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # a token each
GOLD = [1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0]


def one_too_low(prompt):
    """Two rationales, each one lower than the gold score where there is a lower one."""
    return [sure(max(1, int(prompt.split("is worth ")[1][0]) - 1))] * 2


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    records = [{"prompt": f"{i} is worth {gold:.0f}.", "score": gold} for i, gold in enumerate(GOLD)]
    path = tmp_path_factory.mktemp("result") / "r.json"
    return evaluate(fake_judge(one_too_low), records, "mine", path, 2, judge_name="a judge")


def test_every_picture_names_the_judge_the_records_and_the_figures(result, tmp_path):
    # Errors 0, 0, -1, -1, -1, -1, -1: RMSE is sqrt(5 / 7).
    for figure in result_figures(result).values():
        judge, records, figures = figure.get_suptitle().split("\n")
        assert (judge, records) == ("a judge", "mine, n = 7 (0 unscored)")
        assert re.fullmatch(r"RAIL: r = \.965 \[.*\], RMSE = \.845 \[.*\]", figures)
    pairs = [{"instruction": "Q", "chosen": "is worth 5", "rejected": "is worth 2", "subset": "a"}] * 3
    figures = result_figures(evaluate(fake_judge(one_too_low), read_pairs(pairs), "pairs", tmp_path / "p.json", 1))
    assert list(figures) == ["accuracy"]
    assert "\nRAIL: accuracy = 1.000 [" in figures["accuracy"].get_suptitle()


def test_a_judge_without_a_score_has_pictures_that_say_so(tmp_path):
    judge = fake_judge(lambda prompt: [None])
    found = evaluate(judge, [{"prompt": "a", "score": 1.0}, {"prompt": "b", "score": 5.0}], "mine", tmp_path / "r.json")
    for figure in result_figures(found).values():
        assert figure.get_suptitle().endswith("RAIL: no score")


def test_a_method_has_one_colour_in_every_picture(result):
    assert len(set(METHOD_COLORS.values())) == 5
    drawn = result_figures(result)
    for ax, method in zip(drawn["predictions"].axes, ("decoded", "RAIL"), strict=False):
        assert to_hex(ax.collections[0].get_facecolor()) == METHOD_COLORS[method].lower()
    lines = drawn["rationales"].axes[0].get_legend_handles_labels()
    assert {label: line.lines[0].get_color() for line, label in zip(*lines, strict=True)} == {
        method: METHOD_COLORS[method] for method in METHODS
    }


def test_the_confusion_matrix_has_gold_along_x_and_frames_the_diagonal(result):
    (ax,) = result_figures(result)["confusion"].axes
    assert ax.get_xlabel() == "gold score (1 to 5), rounded" and ax.get_ylabel() == "RAIL score (1 to 5), rounded"
    cells = {text.get_position(): text.get_text() for text in ax.texts if text.get_text()}
    # Gold 1 is scored 1, and each other gold score one lower: (gold - 1, predicted - 1).
    assert cells == {(0, 0): "100 %\n2", (1, 0): "100 %\n1", (2, 1): "100 %\n2", (3, 2): "100 %\n1", (4, 3): "100 %\n1"}
    assert [patch.get_xy() for patch in ax.patches] == [(i - 0.5, i - 0.5) for i in range(5)]


def test_the_reliability_plot_has_wilson_intervals_and_says_what_is_observed(result):
    curve, _ = result_figures(result)["reliability"].axes
    assert curve.get_ylabel().startswith("share of gold scores at or below the threshold")
    points, _, (bars,) = curve.containers[1]  # gold <= 2: predicted 0 of gold 4 and 5, and 1 of the others
    assert points.get_label() == "_nolegend_" and curve.containers[1].get_label() == "gold ≤ 2"
    assert points.get_xydata().tolist() == [[0.0, 0.0], [1.0, 0.6]]
    # Wilson, z = 1.96: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) of 0 of 2 and of 3 of 5.
    reach = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert np.allclose(reach, [[0, 0.6576], [0.2307, 0.8824]], atol=1e-3)


def test_the_selective_picture_has_a_curve_for_each_order_and_ends_at_all_records(result):
    errors, absolute = result_figures(result)["selective"].axes
    drawn = {line.get_label(): line.get_xydata()[-1].tolist() for line in errors.lines}
    assert list(drawn) == [*ORDERS.values(), "random order"]  # two rationales each
    assert all(point == pytest.approx([1, (5 / 7) ** 0.5]) for point in drawn.values())
    assert absolute.lines[0].get_xydata()[-1].tolist() == pytest.approx([1, 5 / 7])


def test_several_judges_and_methods_stand_side_by_side_with_their_figures(result):
    figure = predictions([(result, "decoded"), (result, "RAIL")])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("a judge, decoded\nr = .") and ", RMSE = .845" in titles[1]
    assert figure.axes[0].get_ylabel() == "predicted score (1 to 5)" and figure.axes[1].get_ylabel() == ""


# Training curves

ENTRIES = [{"epoch": i / 4, "ce_loss": 1 / (i + 1), "score_mae": 2.0} for i in range(5)]


def test_curves_show_what_was_logged_and_pass_over_what_is_no_number():
    odd = [{"epoch": 2.0, "ce_loss": value} for value in ("<b>", None, float("nan"), float("inf"))]
    held_out = [{"epoch": 0.5, "eval_ce_loss": 0.5}, {"epoch": 1.0, "train_runtime": 3.0}]
    figure = training_curves({"Stage 1": [*ENTRIES, *odd, *held_out], "_$x^{$": [{"epoch": 1, "ce_loss": 0.25}]})
    loss, error, *_ = figure.axes
    assert [loss.get_title(), error.get_title()] == ["Cross-entropy", "Absolute error of the score"]
    drawn = [line.get_xydata().tolist() for line in loss.lines if len(line.get_xydata())]
    assert drawn == [[[e["epoch"], e["ce_loss"]] for e in ENTRIES], [[0.5, 0.5]], [[1, 0.25]]]
    assert as_svg(figure)


def test_a_run_that_logged_nothing_has_no_curves():
    seed = [{"epoch": 1.0, "loss": 1.0}]
    assert training_curves({"seed": seed}) is None and training_curves({}) is None
    legend = training_curves({"seed": seed, "Stage 1": ENTRIES}).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["Stage 1"]


# Files


def test_an_svg_holds_its_text_and_is_the_same_each_time(result):
    first, second = (as_svg(result_figures(result)["confusion"]) for _ in range(2))
    assert first == second and b">gold score (1 to 5), rounded</text>" in first


def test_drawing_does_not_load_pyplot():
    loads = "import sys, tract_trainer.evaluation.pictures, tract_trainer.evaluation.comparison"
    code = f"{loads}; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("a", "a"),
        ("a\n b", "a b"),
        ("a\0\ud83d", "a\ufffd\ufffd"),
        ("x" * 48, "x" * 48),
        ("a" * 40 + "b" * 40, "a" * 23 + " … " + "b" * 22),
    ],
)
def test_a_long_name_loses_its_middle_and_what_cannot_be_drawn(text, short):
    assert shortened(text) == short and len(short) <= 48


@pytest.mark.parametrize("width", [2, 4, 11])
def test_a_legend_is_no_wider_than_its_picture(width):
    figure = Figure(figsize=(width, 4), layout="constrained")
    ax = figure.subplots()
    for name in ("one record", "RAIL renormalised", "median", "decoded", "greedy"):
        ax.plot([0, 1], [0, 1], label=name)
    legend_below(figure, ax)
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (list("0123456789"), range(10)),
        (["C", "A", "B"], [0.0, 1.0, 0.5]),
        (["1", "2"], [1, 2]),
        (list(LETTERS), range(52)),
    ],
)
def test_every_scale_can_be_drawn(labels, values, tmp_path):
    config = type(FIVE)(labels, list(values), "Score (")
    records = [{"prompt": f"The score is {label}.", "score": float(v)} for label, v in zip(labels, values, strict=True)]
    judge = fake_judge(lambda prompt: [sure(prompt.split("score is ")[1][0], labels)] * 2, config)
    result = evaluate(judge, records, "mine", tmp_path / "r.json", 2)
    assert result["methods"]["RAIL"]["rmse"] == 0
    for name, figure in result_figures(result).items():
        save_png(figure, tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / f"r-{name}.png").read_bytes()
        assert matplotlib.image.imread(tmp_path / "again.png").std() > 0.01
    assert len(list(tmp_path.glob("r-*.png"))) == 5
