"""The package's types reach its users."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "typed" / "user.py"


def mypy(path):
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", "/dev/null"]
    flags = ["--config-file=", "--ignore-missing-imports", "--allow-untyped-calls", "--allow-subclassing-any"]
    environment = {**os.environ, "MYPYPATH": str(SCRIPT.parents[2])}  # mypy does not see an editable install
    return subprocess.run([*command, *flags, str(path)], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_typed_script_passes_and_a_wrong_one_does_not(tmp_path):
    right = mypy(SCRIPT)
    assert right.returncode == 0, right.stdout
    wrong = tmp_path / "wrong.py"
    wrong.write_text(SCRIPT.read_text().replace("return one.score", "return one.label"))
    found = mypy(wrong)
    assert found.returncode == 1 and 'expected "float"' in found.stdout
