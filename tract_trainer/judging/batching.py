"""Calls a function on pieces of work, several at a time in threads for an engine that waits for a server."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

from tqdm.auto import tqdm

Work = TypeVar("Work")
Result = TypeVar("Result")


def as_finished(function: Callable[[Work], Result], pieces: Iterable[Work], calls: int) -> Iterator[tuple[int, Result]]:
    """
    Yields each piece's number and the result of `function`, in the order in which the calls finish. Of `calls`, so many
    run at the same time; a single one runs in the caller's thread. `pieces` is read as calls become free. The first
    error is raised after the calls that had begun have finished and their results have been yielded. If the caller
    stops reading or is interrupted, nothing waits for them.
    """
    if calls == 1:
        yield from ((number, function(piece)) for number, piece in enumerate(pieces))
        return
    finished: SimpleQueue[tuple[int, list[Result], BaseException | None]] = SimpleQueue()

    def call(number: int, piece: Work) -> None:
        try:
            finished.put((number, [function(piece)], None))
        except BaseException as error:
            finished.put((number, [], error))

    def start(count: int) -> int:
        # Python waits at exit for the threads of a pool, and so for a server that does not answer. Not for daemons.
        threads = [Thread(target=call, args=pair, daemon=True) for pair in islice(numbered, count)]
        for thread in threads:
            thread.start()
        return len(threads)

    numbered, first_error = enumerate(pieces), None
    running = start(calls)
    while running:
        number, results, error = finished.get()
        running -= 1
        first_error = first_error or error
        yield from ((number, result) for result in results)
        if first_error is None:
            running += start(1)
    if first_error is not None:
        raise first_error


def in_pieces(
    function: Callable[[Sequence[Work]], Sequence[Result]],
    items: Sequence[Work],
    size: int,
    calls: int,
    desc: str,
    shown: bool,
) -> Iterator[tuple[int, Result]]:
    """Like [`as_finished`], with `function` called on `size` items at a time: yields each item's number and result."""
    starts = range(0, len(items), size)
    pieces = ([items[i] for i in range(start, min(start + size, len(items)))] for start in starts)
    with tqdm(total=len(items), desc=desc, disable=not shown) as bar:
        for piece, results in as_finished(function, pieces, calls):
            for number, result in enumerate(results, starts[piece]):
                yield number, result
                bar.update()


def in_order(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Yields the results of [`as_finished`] or [`in_pieces`] in the order of their numbers."""
    ready: dict[int, Result] = {}
    due = 0
    for number, result in numbered:
        ready[number] = result
        while due in ready:
            yield ready.pop(due)
            due += 1
