"""The steps behind the command line: rows of a file, and where training goes on."""

import datetime
import json

from accelerate import PartialState
from fake import FIVE, logs, sure

from tract_trainer.cli.pipeline import as_json, last_checkpoint
from tract_trainer.data.datasets import as_dataset
from tract_trainer.data.hashing import digest
from tract_trainer.engines.base import Rationale
from tract_trainer.judging.judgment import judgment


def test_a_dataset_has_the_columns_of_every_row():
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "score": 4.67}]
    dataset = as_dataset(rows)
    assert dataset["score"] == [None, 4.67] and dataset["completion"] == ["b", "d"]
    assert as_dataset(dataset) is dataset


def test_training_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path):
    PartialState(cpu=True)
    assert last_checkpoint(tmp_path / "nothing") is None
    for step in (8, 10, 12, 100, "run2", "best-7"):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for step in (8, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_step": 1')  # killed while it was written
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_records_with_dates_and_bytes_have_a_digest():
    one, other = ({"score": 1, "when": datetime.datetime(2024, 1, day), "raw": b"x"} for day in (1, 2))
    assert digest(one) == digest(dict(one)) != digest(other)


def test_a_judgment_says_which_rationales_ran_to_their_limit():
    rationales = [Rationale("Clear. ", *logs(*sure(4)), 9, truncated=limit) for limit in (True, False)]
    found = as_json(judgment(rationales, FIVE))
    assert found["labels"] == ["4", "4"] and found["truncated"] == [True, False] and found["reason"] == ""
