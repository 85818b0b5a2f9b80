"""Work in the files of a folder: whose it is, how it was made, and what is said of what cannot be read."""

import subprocess
import sys

import pytest

from tract_trainer.data.settings import check_settings
from tract_trainer.data.store import Shards, writing
from tract_trainer.errors import InputError

HOLDS = """
import sys
from pathlib import Path
from tract_trainer.data.store import writing
with writing(Path(sys.argv[1]), 0) as shards:
    shards.append([("a", {"n": 1})])
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_write_to_one_folder_and_a_killed_one_leaves_it_free(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    said = r"Another run is writing to .*Wait for it, or give another place"
    with pytest.raises(InputError, match=said), writing(tmp_path, 0):
        pass
    assert Shards(tmp_path)["a"] == {"key": "a", "n": 1}  # reading is free
    other.kill()
    other.wait()
    with writing(tmp_path, 0) as shards:
        shards.append([("b", {"n": 2})])
    assert "a" in Shards(tmp_path) and "b" in Shards(tmp_path)


def test_a_damaged_line_is_named_with_its_place(tmp_path):
    Shards(tmp_path, 0).append([("a", {"n": 1})])
    path = tmp_path / "process-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\0\n")
    with pytest.raises(InputError, match=f"process-00000.jsonl is damaged at byte {len(whole)}: expected a row"):
        Shards(tmp_path)


def test_work_without_its_settings_is_nobodys(tmp_path):
    settings, work = tmp_path / "settings.json", tmp_path / ".shards"
    check_settings(settings, {"judge": "a"}, work)
    Shards(work, 0).append([("a", {"n": 1})])
    check_settings(settings, {"judge": "a"}, work)
    with pytest.raises(InputError, match=r"judge: 'a' there, 'b' now(?s:.*)delete .*settings\.json and .*\.shards\.$"):
        check_settings(settings, {"judge": "b"}, work)
    settings.unlink()
    with pytest.raises(InputError, match=r"\.shards holds work of an earlier run, and .*settings\.json, which"):
        check_settings(settings, {"judge": "b"}, work)
    assert not settings.exists()


def test_settings_that_nothing_was_made_with_give_way(tmp_path):
    settings, work = tmp_path / "settings.json", tmp_path / "work"
    check_settings(settings, {"judge": "a"}, work)
    check_settings(settings, {"judge": "b"}, work)
    work.mkdir()
    with pytest.raises(InputError, match="judge: 'b' there, 'c' now"):
        check_settings(settings, {"judge": "c"}, work)
    check_settings(tmp_path / "other.json", {"judge": "a"})  # where the work lies, it does not say
    with pytest.raises(InputError, match="judge: 'a' there, 'b' now"):
        check_settings(tmp_path / "other.json", {"judge": "b"})


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_settings_are_named(tmp_path, text):
    settings = tmp_path / "settings.json"
    settings.write_text(text)
    with pytest.raises(InputError, match=r"settings\.json, which tells how the work beside it was made, is damaged"):
        check_settings(settings, {"judge": "a"}, tmp_path)
