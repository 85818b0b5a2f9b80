"""Work in threads keeps its bounds, its order and, when a call fails, what was finished."""

import subprocess
import sys
import threading
import time
from datetime import timedelta
from queue import SimpleQueue

import pytest
import torch
from torch import distributed

from tract_trainer._distributed import process_state
from tract_trainer.judging import batching
from tract_trainer.judging.batching import as_finished, in_order


@pytest.mark.parametrize("calls", [1, 3])
def test_every_piece_is_worked_once_and_numbered(calls):
    assert sorted(as_finished(lambda x: x * x, range(20), calls)) == [(i, i * i) for i in range(20)]
    assert list(in_order(as_finished(lambda x: x * x, range(20), calls))) == [i * i for i in range(20)]


def test_results_are_given_in_the_order_of_the_pieces_though_the_first_is_slow():
    others = threading.Semaphore(0)

    def work(piece):
        for _ in range(0 if piece else 4):
            others.acquire()
        if piece:
            others.release()
        return piece

    assert list(in_order(as_finished(work, range(5), 5))) == [0, 1, 2, 3, 4]


def test_no_more_calls_run_and_no_more_pieces_are_read_than_allowed():
    lock, busy, busiest, read, four = threading.Lock(), 0, 0, 0, threading.Barrier(4)

    def pieces():
        nonlocal read
        for piece in range(30):
            read += 1
            yield piece

    def work(piece):
        nonlocal busy, busiest
        with lock:
            busy += 1
            busiest = max(busiest, busy)
        if piece < 4:
            four.wait()  # until four are under way
        time.sleep(0.01)  # a fifth has time to come
        with lock:
            busy -= 1
        return piece

    for given, _ in enumerate(as_finished(work, pieces(), 4), start=1):
        assert read <= given + 4
    assert busiest == 4


def test_a_single_call_runs_in_the_callers_thread():
    (found,) = as_finished(lambda _: threading.current_thread(), [0], 1)
    assert found == (0, threading.current_thread())


def test_what_had_begun_is_given_before_the_error_is_raised_and_nothing_else_is_begun(monkeypatch):
    begun, found, seen = [], [], threading.Event()

    def work(piece):
        begun.append(piece)
        if piece == 3:
            raise ConnectionError("gone")
        seen.wait()
        return piece

    class Finished(SimpleQueue):
        def get(self):
            finished = super().get()
            seen.set()  # the error has been read, and the others may end
            return finished

    monkeypatch.setattr(batching, "SimpleQueue", Finished)
    with pytest.raises(ConnectionError, match=r"^gone$"):
        for _, result in as_finished(work, range(100), 4):
            found.append(result)
    assert sorted(found) == [0, 1, 2]
    assert begun == [0, 1, 2, 3]


def test_a_caller_that_stops_reading_does_not_wait_for_the_rest():
    late = threading.Event()
    found = as_finished(lambda piece: late.wait() if piece else piece, range(100), 4)
    assert next(found) == (0, 0)
    found.close()  # comes back, though nothing lets the others end
    late.set()


def test_a_group_that_somebody_else_made_keeps_its_timeout():
    store, half_an_hour = distributed.HashStore(), timedelta(minutes=30)
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store, timeout=half_an_hour)
    try:
        options = distributed.group.WORLD._get_backend(torch.device("cpu")).options
        assert options._timeout == half_an_hour
        process_state()
        assert options._timeout == half_an_hour
    finally:
        distributed.destroy_process_group()


def test_python_ends_though_a_call_does_not():
    script = (
        "import threading\n"
        "from tract_trainer.judging.batching import as_finished\n"
        "never = threading.Event()\n"
        "print(next(as_finished(lambda piece: never.wait() if piece else piece, range(9), 3)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(0, 0)\n", "")
