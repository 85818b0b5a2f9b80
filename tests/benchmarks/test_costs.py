"""What the cost benchmarks make of seconds and bytes that are made up; the benchmarks themselves are run by hand."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import growth
import measuring
import overheads
import score
import train_step


def test_a_cost_is_the_ratio_of_medians_with_the_quartiles_of_the_ratios_within_a_round():
    # Within the rounds 2, 2, 3, 4, 5 times as long; of five values the quartiles are half-way to the next: 2 and 4.5.
    found = measuring.costs({"first": [1.0, 2, 2, 3, 1], "second": [2.0, 4, 6, 12, 5]})
    assert found["first"] == (2, 1, 1, 1)
    assert found["second"] == (5, 2.5, 2, 4.5)


def test_a_step_is_compared_with_the_mean_of_both_plain_trainers():
    # Rounds of 1 and 3, 2 and 4, 3 and 5: the means are 2, 3 and 4, of which 6 is twice the median.
    seconds = {"sft": [1.0, 2, 3], "again": [3.0, 4, 5], "ours": [6.0, 6, 6]}
    found = train_step.time_ratios(seconds)
    assert [found[kind][0] for kind in seconds] == pytest.approx([2 / 3, 4 / 3, 2])
    assert found["ours"][1:] == pytest.approx((6 / 4, 6 / 2))  # three rounds: all resamples lie between 2 and 4
    # Twice as long in every round, whatever a round takes: nothing to be unsure of.
    slow = train_step.time_ratios({"sft": [1.0, 5, 2], "ours": [2.0, 10, 4]})
    assert slow == {"sft": (1, 1, 1), "ours": (2, 2, 2)}


def test_all_ways_take_turns_and_the_first_round_is_not_counted():
    turns = []
    seconds = measuring.interleaved({name: lambda name=name: turns.append(name) for name in "abc"}, rounds=4)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert [sorted(turns[i : i + 3]) for i in range(0, 15, 3)] == [["a", "b", "c"]] * 5


def test_a_size_is_measured_once_for_all_of_its_flags(tmp_path, monkeypatch):
    says = "import json, sys, time\nprint('a table')\nprint(json.dumps([time.time_ns(), *sys.argv[1:]]))"
    (tmp_path / "says.py").write_text(says)
    monkeypatch.setattr(growth, "__file__", str(tmp_path / "growth.py"))
    out = tmp_path / "out"
    first = growth.measured("says", {"vocab": 10}, ["--lora"], out)
    assert first[1:] == ["--vocab", "10", "--lora"]
    assert growth.measured("says", {"vocab": 10}, ["--preset", "7b"], out)[1:] == ["--vocab", "10", "--preset", "7b"]
    assert growth.measured("says", {"vocab": 10}, ["--lora"], out) == first
    assert len(list(out.glob("*/*"))) == 2
    (tmp_path / "says.py").write_text(f"{says} # of another version")
    assert growth.measured("says", {"vocab": 10}, ["--lora"], out)[0] > first[0]
    (tmp_path / "says.py").write_text("raise SystemExit(1)")
    with pytest.raises(Exception, match="non-zero exit status"):
        growth.measured("says", {"vocab": 10}, ["--lora"], out)
    assert len(list(out.glob("*/*"))) == 3


def test_a_row_of_growth_has_a_cell_for_each_head_whatever_was_measured():
    def trainer(ratio, *peaks):
        memory = ratio if peaks else None
        return {"seconds": 2 * ratio, "time_ratio": ratio, "time_ratio_interval": [1, 3], "peak_bytes": peaks,
                "memory_ratio": memory}  # fmt: skip

    size, (_, _, heads, _) = {"vocab": 32_000, "tokens": 512, "pairs": 9}, growth.TABLES["train"]
    found = {"sft": trainer(1.0, 3e6, 1e6, 2e6), "again": trainer(1.01), "ours": trainer(1.02, 5e6, 5e6, 5e6)}
    expected = ["32,000", "512", "9", "2.00", "1.010 (1.000 3.000)", "1.020 (1.000 3.000)", "", "2", "1.020", ""]
    assert growth.train_row(size, {"trainers": found}) == expected and len(expected) == len(heads)
    timed = {"sft": trainer(1.0), "ours": trainer(1.0)}
    assert growth.train_row(size, {"trainers": timed})[-3:] == ["", "", ""]


@pytest.mark.parametrize(("script", "sizes"), [(train_step, growth.TRAIN), (score, growth.SCORE)])
def test_every_preset_has_every_size_and_takes_the_flags_of_growth(script, sizes, monkeypatch):
    for preset, size in ((preset, size) for preset in script.PRESETS for size in sizes):
        flags = [text for name, value in size.items() for text in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [script.__name__, "--preset", preset, *flags])
        args = vars(script.arguments())
        assert args | size == args
        assert all(args[name] is not None for name in ("vocab", "hidden", "layers", "heads", "device"))


def test_intervals_are_compared_over_all_nine_figures():
    assert set(overheads.intervals(50)) == {"scipy.stats.bootstrap, Pearson alone", "agreement, nine figures"}


def test_a_step_is_measured_from_end_to_end(monkeypatch, capsys):
    """A very small model: the last line printed is JSON, with the memory of each trainer but the second."""
    flags = "--lora --rows 1 --vocab 600 --hidden 16 --layers 1 --tokens 40 --pairs 2 --warmup 0 --steps 1 --repeats 1"
    monkeypatch.setattr(sys, "argv", [train_step.__file__, *flags.split(), "--threads", "1"])
    train_step.main()
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["trainers"]
    assert list(found) == ["sft", "again", "ours", "full_logits"]
    assert [len(row["peak_bytes"]) for row in found.values()] == [1, 0, 1, 1]
    assert all(row["seconds"] > 0 for row in found.values())


@pytest.mark.parametrize("flags", [[], ["--labels"]])
def test_every_way_of_judging_runs_and_is_compared_with_the_first_of_its_kind(monkeypatch, capsys, flags):
    sizes = "--vocab 300 --hidden 32 --layers 1 --heads 2 --prompt_tokens 32 --new_tokens 6 --rounds 2 --num_cots 2"
    monkeypatch.setattr(sys, "argv", ["score.py", *sizes.split(), *flags])
    score.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(cost["seconds"] > 0 for cost in found.values())
    bases = [name for name, cost in found.items() if cost["ratio"] == 1]
    assert bases == ([name for name in found if name.endswith("ten letters")] if flags else ["generation alone"])
    assert len(found) == (2 * len(bases) if flags else 5)
