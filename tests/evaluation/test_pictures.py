"""Scores, training curves and results become pictures. What they look like is for eyes to judge."""

import math
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from fake import FIVE, fake_judge, sure
from matplotlib.figure import Figure

from tract_trainer.evaluation.evaluate import evaluate
from tract_trainer.evaluation.pictures import draw, legend_below, plot_curves, plot_predictions, shortened

SCALE = [1, 2, 3, 4, 5]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # a token each


def test_a_picture_shows_the_predictions(tmp_path):
    gold = np.array([1.0, 2.0, 3.0, 4.0, 5.0] * 4)
    plot_predictions(tmp_path / "one.png", {"a": (gold, gold)}, SCALE)
    plot_predictions(tmp_path / "two.png", {"a": (gold, gold), "b": (6 - gold, gold)}, SCALE)
    one, two = (matplotlib.image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.shape[1] > one.shape[1]
    assert one.std() > 0.01


def test_unscored_records_are_left_out_of_a_picture(tmp_path):
    gold = np.array([1.0, 2.0, 3.0])
    plot_predictions(tmp_path / "some.png", {"a": ([1.0, math.nan, 3.0], gold)}, SCALE)
    plot_predictions(tmp_path / "none.png", {"a": ([math.nan] * 3, gold)}, SCALE)
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_no_panel_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"`panels` is empty\. Give at least one pair"):
        plot_predictions(tmp_path / "none.png", {}, SCALE)


def test_curves_pass_over_entries_without_losses(tmp_path):
    entries = [{"epoch": i / 4, "ce_loss": 1 / (i + 1), "score_loss": 2 / (i + 1)} for i in range(5)]
    plot_curves(tmp_path / "curves.png", {"Stage 1": [*entries, {"epoch": 1.0, "train_runtime": 3.0}]})
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0.01


def test_a_run_without_losses_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Run 'Stage 1' logged no ce_loss and score_loss among its 1 entries"):
        plot_curves(tmp_path / "curves.png", {"Stage 1": [{"loss": 1.0}]})


def test_drawing_does_not_load_pyplot():
    loads = "import sys, tract_trainer.evaluation.pictures, tract_trainer.evaluation.comparison"
    code = f"{loads}; assert not {{'matplotlib.pyplot', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "short"),
    [("a", "a"), ("a\n b", "a b"), ("x" * 48, "x" * 48), ("a" * 40 + "b" * 40, "a" * 23 + " … " + "b" * 22)],
)
def test_a_long_name_loses_its_middle(text, short):
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
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"r-{name}.png" for name in ("confusion", "predictions", "rationales", "reliability")]


def test_the_pictures_of_a_result_are_those_of_its_file(tmp_path):
    judge = fake_judge(lambda prompt: [sure(4)])
    result = evaluate(judge, [{"prompt": "x", "score": 4.5}], "mine", tmp_path / "a.json")
    draw(result, tmp_path / "b")
    for name in ("predictions", "reliability", "confusion"):
        assert (tmp_path / f"a-{name}.png").read_bytes() == (tmp_path / f"b-{name}.png").read_bytes()
