"""The one exception of the package: an input that cannot be used, with what was expected, found, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A mistake in what the user gave. The command line prints it without a traceback."""


@contextmanager
def numbered(what: str, number: int) -> Iterator[None]:
    """Says in an InputError from inside which row or record is meant."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what} {number}: {error}") from error
