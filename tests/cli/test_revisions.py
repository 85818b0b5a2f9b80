"""`--revision` names a commit, branch or tag of a judge on the Hub, read from a cache laid out as the Hub's."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from datasets import Dataset

from tract_trainer import Judge

COMMITS = {"main": "1" * 40, "v1": "2" * 40}
COMMANDS = """
import json, sys
from tract_trainer.cli.main import main
for command in json.load(open(sys.argv[1])):
    print("returned", main(command), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def hub(judge_folder, tmp_path_factory):
    """Two commits of `me/judge`: on `main` its scores count ten times as much."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / "models--me--judge"
    (repository / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        shutil.copytree(judge_folder, repository / "snapshots" / commit)
        (repository / "refs" / name).write_text(commit)
    path = repository / "snapshots" / COMMITS["main"] / "judge_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "score_values": [10 * value for value in config["score_values"]]}))
    return home


@pytest.fixture(scope="module")
def outcome(hub, tmp_path_factory):
    """The folder where the commands have been called, with what they printed."""
    folder = tmp_path_factory.mktemp("called")
    records = [
        {"prompt": f"Rate the response from 1 to 5. The response names {i} facts.\n", "score": 3} for i in (1, 2)
    ]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "one.json").write_text(json.dumps(records[0]))
    draw = ["--max_new_tokens", "60", "--unfinished", "force"]
    commands = [["judge", "--model", "me/judge", "--record", "one.json", "--num_cots", "0"]]
    commands += [[*commands[0], "--revision", "v1"]]
    commands += [["evaluate", "--model", "me/judge", "--data", "data.json", "--num_cots", "0", "--output", "out.json"]]
    commands += [[*commands[2], "--revision", "v1"]]
    commands += [["generate", "--model", "me/judge", "--revision", "v1", "--data", "data.json", *draw]]
    commands += [["judge", "--model", "me/judge", "--revision", "v2", "--record", "one.json", "--num_cots", "0"]]
    (folder / "commands.json").write_text(json.dumps(commands))
    where = {
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    called = [sys.executable, "-c", COMMANDS, "commands.json"]
    done = subprocess.run(called, cwd=folder, capture_output=True, text=True, env={**os.environ, **where})
    returned = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("returned ")]
    assert returned == [0, 0, 2, 0, 0, 2], done.stderr[-2000:]
    return folder, done


def test_the_judgment_is_that_of_the_revision(outcome, hub):
    text, scores = outcome[1].stdout, []
    for _ in range(2):
        found, end = json.JSONDecoder().raw_decode(text)
        scores.append(found["score"])
        text = text[end:].lstrip()
    assert scores[0] == pytest.approx(10 * scores[1], rel=1e-4)


def test_an_evaluation_is_of_the_revision_and_names_its_commit(outcome):
    folder, done = outcome
    assert "tract evaluate: error: The gold score of record 0 is 3, off the scale of 10 to 50." in done.stderr
    result = json.loads((folder / "out.json").read_text())
    assert result["judge"]["name"] == "me/judge" and result["judge"]["revision"] == COMMITS["v1"]
    assert result["judge"]["config"]["score_values"] == [1, 2, 3, 4, 5]


def test_rationales_are_those_of_the_revision(outcome, hub):
    settings = json.loads((outcome[0] / "cots" / "settings.json").read_text())
    snapshot = hub / "hub" / "models--me--judge" / "snapshots" / COMMITS["v1"]
    assert settings["judge"] == Judge.from_pretrained(snapshot).identity
    rows = Dataset.from_parquet(str(outcome[0] / "cots" / "train.parquet"))
    assert rows["score"][:] == [3.0, 3.0]


def test_a_revision_that_is_not_there_is_one_line(outcome):
    (line,) = [line for line in outcome[1].stderr.splitlines() if "me/judge" in line and "tract judge: error" in line]
    assert "There is no folder 'me/judge', and the Hub gave none" in line
