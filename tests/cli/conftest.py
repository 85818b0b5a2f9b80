"""A seed model and records that the tests of the command line share, and how they call it."""

import json

import pytest
from tiny import RATIONALES

from tract_trainer.cli.main import main


@pytest.fixture(scope="session")
def records_file(tmp_path_factory):
    """Eight records in the Prometheus format, with three scores and rationales each."""
    records = [
        {
            "instruction": f"Rate the response from 1 to 5. The response names {i} facts.\n",
            "gpt4_score": [1 + i % 5, 1 + i % 5, 1 + (i + 1) % 5],
            "gpt4_feedback": [RATIONALES[i], RATIONALES[(i + 1) % 8], RATIONALES[(i + 2) % 8]],
        }
        for i in range(8)
    ]
    path = tmp_path_factory.mktemp("data") / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def done():
    """Runs a command that must succeed."""

    def call(*argv):
        assert main([str(argument) for argument in argv]) == 0

    return call


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail, and gives its message."""

    def call(*argv):
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        shown = capsys.readouterr().err
        return shown[shown.index(f"tract {argv[0]}: error: ") :].strip()

    return call
