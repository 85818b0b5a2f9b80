"""`make gpu`: its parts are commands that exist, and what did not run is said so."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402

ARGS = Namespace(model=None, data=None)


def test_the_page_names_every_part_and_is_up_to_date():
    page = gpu.page()
    assert page == gpu.PAGE.read_text()
    assert page.count("\n## ") == len(gpu.PARTS)
    assert page.count("Not measured yet.") == sum(gpu.kept(name) is None for name in gpu.PARTS)


@pytest.mark.parametrize("name", gpu.PARTS)
def test_every_part_is_a_command_of_this_repository(name):
    first = shlex.split(gpu.PARTS[name].command)[0]
    assert first == "-m" or (BENCHMARKS.parent / first).is_file()


def test_a_part_that_takes_too_long_is_stopped_and_keeps_what_it_printed(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "LIMIT", 2)
    script = tmp_path / "slow.py"
    script.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    outcome = gpu.run(gpu.Part("slow", str(script)), ARGS)
    assert outcome.output == "begun\n" and outcome.status is None and not outcome.finished


def test_a_part_that_fails_is_not_finished(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)")
    outcome = gpu.run(gpu.Part("fails", str(script)), ARGS)
    assert outcome.status == 3 and not outcome.finished
