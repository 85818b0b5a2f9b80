"""Runs a function over pieces of work, some at a time: in threads where an engine waits on a network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from tqdm.auto import tqdm

Work = TypeVar("Work")

Result = TypeVar("Result")


def as_finished(function: Callable[[Work], Result], pieces: Iterable[Work], calls: int) -> Iterator[tuple[int, Result]]:
    """
    `function` of each piece with the piece's number, in the order in which they finish. `pieces` is read as it is used.

    Args:
        calls (`int`): calls that run at the same time; a single one runs in the caller's thread.

    Raises:
        The first error of a call, after every call that had begun by then is finished and its result given. Whoever
        stops reading, or is interrupted, does not wait for them.
    """
    if calls == 1:
        yield from ((number, function(piece)) for number, piece in enumerate(pieces))
        return
    numbered = enumerate(pieces)
    errors: list[BaseException] = []
    running: dict[Future[Result], int] = {}
    pool = ThreadPoolExecutor(calls)

    def start(count: int) -> None:
        running.update({pool.submit(function, piece): number for number, piece in islice(numbered, count)})

    try:
        start(calls)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number, error = running.pop(future), future.exception()
                if error is None:
                    yield number, future.result()
                else:
                    errors.append(error)
            if not errors:
                start(len(done))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # nothing runs any more, but after an interruption
    if errors:
        raise errors[0]


def in_pieces(
    function: Callable[[Sequence[Work]], Sequence[Result]],
    items: Sequence[Work],
    size: int,
    calls: int,
    desc: str,
    shown: bool,
) -> Iterator[tuple[int, Result]]:
    """
    Like [`as_finished`], but for `function` of `size` items at a time: the result of each item with the item's number.
    """
    starts = range(0, len(items), size)
    pieces = ([items[i] for i in range(start, min(start + size, len(items)))] for start in starts)
    with tqdm(total=len(items), desc=desc, unit="record", disable=not shown) as bar:
        for piece, results in as_finished(function, pieces, calls):
            for number, result in enumerate(results, starts[piece]):
                yield number, result
                bar.update()


def in_order(numbered: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """What [`as_finished`] or [`in_pieces`] gives, in the order of its numbers."""
    ready: dict[int, Result] = {}
    due = 0
    for number, result in numbered:
        ready[number] = result
        while due in ready:
            yield ready.pop(due)
            due += 1
