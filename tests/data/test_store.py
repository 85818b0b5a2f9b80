"""Work in the files of a folder: whose it is, how it was made, and what is said of what cannot be read."""

import subprocess
import sys

import pytest

from tract_trainer.data.settings import check_settings
from tract_trainer.data.store import Shards, locked, refuse_foreign, replacing
from tract_trainer.errors import InputError

HOLDS = """
import sys
from pathlib import Path
from tract_trainer.data.store import Shards, locked
with locked(Path(sys.argv[1]), 0):
    Shards(Path(sys.argv[1]), 0).append([("a", {"n": 1})])
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_runs_do_not_write_to_one_folder_and_a_killed_one_leaves_it_free(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    said = r"Another run is writing to .*Wait for it, or give another place"
    with pytest.raises(InputError, match=said), locked(tmp_path, 0):
        pass
    assert Shards(tmp_path)["a"] == {"key": "a", "n": 1}  # reading is free
    other.kill()
    other.wait()
    with locked(tmp_path, 0):
        Shards(tmp_path, 0).append([("b", {"n": 2})])
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
    with pytest.raises(InputError, match=r"\.shards holds work of an earlier run, but its settings, .*gone"):
        check_settings(settings, {"judge": "b"}, work)
    assert not settings.exists()


def test_settings_that_nothing_was_made_with_give_way(tmp_path):
    settings, work = tmp_path / "settings.json", tmp_path / "work"
    check_settings(settings, {"judge": "a"}, work)
    check_settings(settings, {"judge": "b"}, work)
    Shards(work, 0).append([("a", {"n": 1})])
    with pytest.raises(InputError, match="judge: 'b' there, 'c' now"):
        check_settings(settings, {"judge": "c"}, work)
    check_settings(tmp_path / "other.json", {"judge": "a"})  # where the work lies, it does not say
    with pytest.raises(InputError, match="judge: 'a' there, 'b' now"):
        check_settings(tmp_path / "other.json", {"judge": "b"})


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_settings_are_named(tmp_path, text):
    settings = tmp_path / "settings.json"
    settings.write_text(text)
    with pytest.raises(InputError, match=r"settings\.json must hold the settings of the work beside it .* damaged"):
        check_settings(settings, {"judge": "a"}, tmp_path)


def test_settings_may_change_where_they_are_free_to(tmp_path):
    settings, work = tmp_path / "settings.json", tmp_path / "work"
    check_settings(settings, {"judge": "a", "records": 1}, work)
    Shards(work, 0).append([("a", {"n": 1})])
    check_settings(settings, {"judge": "a", "records": 2}, work, free=["records"])
    with pytest.raises(InputError, match=r"records: 2 there, 1 now"):
        check_settings(settings, {"judge": "a", "records": 1}, work)
    with pytest.raises(InputError, match=r"judge: 'a' there, 'b' now"):
        check_settings(settings, {"judge": "b", "records": 2}, work, free=["records"])


@pytest.mark.parametrize("line", ["{}", "[]", "1", "null", '{"n": 1}'])
def test_a_line_that_is_none_of_ours_is_named(tmp_path, line):
    (tmp_path / "process-00000.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"process-00000\.jsonl is damaged at byte 0: expected a row as JSON, found"):
        Shards(tmp_path)


def test_files_of_others_are_refused_and_our_own_are_not(tmp_path):
    theirs, ours, empty = tmp_path / "theirs.json", tmp_path / "ours.json", tmp_path / "folder"
    theirs.write_text('{"judge": "a"}')
    check_settings(ours, {"judge": "a"})
    empty.mkdir()
    (empty / ".hidden").touch()
    refuse_foreign([ours, tmp_path / "nothing"], folders=[empty, tmp_path / "nothing"])
    with pytest.raises(InputError, match=r"folder is a folder, and a file is to be written there\."):
        refuse_foreign([empty], overwrite=True)
    with pytest.raises(InputError, match=r"theirs\.json exists, and tract did not write it\. Give another place for"):
        refuse_foreign([ours, theirs])
    refuse_foreign([theirs], overwrite=True)
    refuse_foreign([theirs], signs=[tmp_path / "nothing", ours])
    (empty / "train.parquet").touch()
    with pytest.raises(InputError, match=r"folder holds files that tract did not write, such as 'train\.parquet'\. "):
        refuse_foreign([], folders=[empty], signs=[theirs])


def test_only_the_rows_and_the_settings_of_a_folder_are_removed(tmp_path):
    folder, result = tmp_path / "unfinished", tmp_path / "result.json"
    with locked(folder, 0, result):
        Shards(folder, 0).append([("a", {"n": 1})])
        check_settings(folder / "settings.json", {"judge": "a"})
        (folder / "thesis.txt").touch()
    assert "a" in Shards(folder)  # there is no result yet
    with locked(folder, 0, result):
        result.touch()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").rename(folder / "settings.json")
    with locked(folder, 0, result):
        pass
    assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_half_a_file_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("whole")
    with pytest.raises(OSError, match="full"), replacing(path) as part:
        part.write_text("ha")
        raise OSError("full")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
