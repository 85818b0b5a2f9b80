"""`generate_cot_dataset` killed at random moments ends with the dataset of an undisturbed run."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import RATIONALES

from tract_trainer import Judge, generate_cot_dataset
from tract_trainer.cli.main import main

ROWS, KILLS = 500, 30
SETTINGS = {"max_new_tokens": 60, "unfinished": "force", "batch_size": 4, "progress": False}


def make_prompts(count):
    prompts = [f"Rate response {i} from 1 to 5. {RATIONALES[i % 7]}\n" for i in range(count)]
    rows = [{"prompt": [{"role": "user", "content": text}], "score": 1 + i % 9 / 2} for i, text in enumerate(prompts)]
    return Dataset.from_list(rows)


def write(judge, folder, rank=0, processes=1, port=0, rows=ROWS):
    """One process of a launch."""
    if processes > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), ACCELERATE_USE_CPU="true")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    generate_cot_dataset(Judge.from_pretrained(judge), make_prompts(rows), output_dir=folder, **SETTINGS)


def launch(processes, judge, folder, rows):
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", __file__]
    done = subprocess.run([*command, judge, folder, str(rows)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finished_rows(folder):
    return sum(path.read_bytes().count(b"\n") for path in Path(folder, ".shards").glob("*.jsonl"))


@pytest.fixture(scope="module")
def judge(judge_folder):
    return judge_folder


@pytest.fixture(scope="module")
def undisturbed(judge, tmp_path_factory):
    """The dataset of an undisturbed run, and how long it takes."""
    folder, started = tmp_path_factory.mktemp("whole"), time.monotonic()
    write(judge, folder)
    return (
        (folder / "train.parquet").read_bytes(),
        json.loads((folder / "report.json").read_text()),
        (time.monotonic() - started),
    )


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_thirty_kills_leave_the_dataset_of_an_undisturbed_run(judge, undisturbed, tmp_path, processes):
    expected, report, duration = undisturbed
    context = multiprocessing.get_context("forkserver")  # has the imports done once, so kills hit the work
    context.set_forkserver_preload(["tract_trainer.rationales.generation", "tract_trainer.judging.judge", "test_kill"])
    draw, at = random.Random(0), []
    while len(at) < KILLS:
        port = free_port()
        running = [
            context.Process(target=write, args=(judge, tmp_path, rank, processes, port)) for rank in range(processes)
        ]
        for process in running:
            process.start()
        goal = finished_rows(tmp_path) + draw.randint(1, 10)
        while finished_rows(tmp_path) < goal and all(process.is_alive() for process in running):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, duration / ROWS))  # somewhere in the next batch
        draw.shuffle(running)  # the first to die leaves the others waiting for it
        for process in running:
            assert process.exitcode is None, "the run ended before it was killed"
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        at.append(finished_rows(tmp_path))
    print(f"{processes} processes, {KILLS} kills, with so many of {ROWS} rows finished: {at}")
    assert at[0] > 0 and at[-1] < ROWS and len(set(at)) > KILLS / 2
    launch(processes, judge, tmp_path, ROWS)
    assert (tmp_path / "train.parquet").read_bytes() == expected
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_two_processes_write_what_one_writes(judge, tmp_path):
    write(judge, tmp_path / "one", rows=24)
    launch(2, judge, tmp_path / "two", 24)
    assert (tmp_path / "one" / "train.parquet").read_bytes() == (tmp_path / "two" / "train.parquet").read_bytes()
    shards = sorted((tmp_path / "two" / ".shards").glob("*.jsonl"))
    assert [shard.read_text().count("\n") for shard in shards] == [12, 12]


def records_file(folder, count):
    records = [
        {"instruction": f"Say {i}.", "response": RATIONALES[i % 7], "rubric": "Is it said?", "score": 1 + i % 5}
        for i in range(count)
    ]
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


STUCK = """
import sys, threading
from tract_trainer.cli.main import main
from tract_trainer.engines.transformers import TransformersEngine
generate, asked = TransformersEngine.generate, []
def stuck(*args):
    asked.append(args)
    return generate(*args) if len(asked) < 2 else threading.Event().wait()
TransformersEngine.generate = stuck
main(sys.argv[1:])
"""
"""The command line with an engine that never returns from its second call, so that is where it is killed."""


def tract(processes, *arguments, code=("-m", "tract_trainer")):
    """Starts a command of `tract` in so many processes, as torchrun does."""
    port, command = str(free_port()), [sys.executable, *code, *map(str, arguments)]
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [
        subprocess.Popen(
            command, env={**os.environ, **each}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for each in (environments if processes > 1 else [{}])
    ]


def finish(processes):
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error[-3000:]


def assert_same(found, expected):
    """The same judgments, their numbers but for rounding. None of them is missing."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(("before", "after"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_processes_judge_what_one_judges_though_others_were_killed(judge, tmp_path, before, after):
    data = records_file(tmp_path, 40)
    settings = ["--model", judge, "--max_new_tokens", 40, "--unfinished", "force"]
    evaluate = ["evaluate", "--data", data, *settings, "--batch_size", 1, "--output"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert main([str(word) for word in [*evaluate, one]]) == 0
    killed = tract(before, *evaluate, two, code=("-c", STUCK))
    parts = [tmp_path / "two.unfinished" / f"process-0000{i}.jsonl" for i in range(before)]
    while not all(part.exists() and part.read_bytes().count(b"\n") == 8 for part in parts):  # of a batch of one, eight
        assert all(process.poll() is None for process in killed)
        time.sleep(0.05)
    for process in killed:
        process.kill()
        process.communicate()
    finish(tract(after, *evaluate, two))  # not as many as before
    found, expected = (json.loads(path.read_text())["judgments"] for path in (two, one))
    assert all(row["score"] is not None for row in expected)
    assert_same(found, expected)
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_process_that_has_no_record_to_judge_waits_for_the_other(judge, tmp_path):
    command = ["judge", "--input", records_file(tmp_path, 1), "--model", judge]
    command += ["--max_new_tokens", 40, "--batch_size", 1, "--output"]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main([str(word) for word in [*command, one]]) == 0
    finish(tract(2, *command, two))
    found, expected = ([json.loads(line) for line in path.read_text().splitlines()] for path in (two, one))
    assert len(expected) == 1
    assert_same(found, expected)
    assert not list(tmp_path.glob("*unfinished*"))


if __name__ == "__main__":  # a process that `launch` has started, in the environment that torchrun sets
    write(sys.argv[1], sys.argv[2], rows=int(sys.argv[3]))
