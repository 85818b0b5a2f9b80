"""The one exception of the package: an input that cannot be used, with what was expected, found, and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """A mistake in what the user gave. The command line prints it without a traceback."""


@contextmanager
def numbered(what: str, number: int) -> Iterator[None]:
    """Says in an InputError from inside which row or record is meant."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what} {number}: {error}") from error


def without_password(url: Any) -> str:
    """An address without user, password and query, which may hold a key."""
    return re.sub(r"^(\w+://)?[^?]*@", r"\1", str(url)).split("?")[0]


def without_passwords(text: str) -> str:
    """`text` whose addresses are [`without_password`]."""
    return re.sub(r"""\w+://[^\s'"]+""", lambda address: without_password(address[0]), text)
