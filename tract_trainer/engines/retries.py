"""Turns several servers of one model into one that answers: asked in turn, and again after failures that pass."""

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import openai

from tract_trainer.errors import InputError

logger = logging.getLogger(__name__)

UNAVAILABLE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""What may pass: the request is made again after exponential back-off and jitter, or when a server says."""

SET_ASIDE, FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 30.0, 0.5, 8.0, 120.0
"""Seconds: that a server is set aside for when it does not answer; the first back-off, the longest one,
and the longest wait that a server may ask for."""


class Servers:
    """
    Args:
        clients (`Sequence[openai.OpenAI]`): each asked once a try. A request goes to the next one in turn, and on to
            another if that one does not answer.
        max_retries (`int`): further tries of a request that no server answers.
    """

    def __init__(self, clients: Sequence[openai.OpenAI], max_retries: int) -> None:
        self.clients, self.max_retries, self.turns = list(clients), max_retries, count()
        self.aside: dict[openai.OpenAI, float] = {}  # until when, of those that did not answer last

    def ask(self, request: Callable[[openai.OpenAI], Any]) -> Any:
        """
        What the first server that answers returns to `request`.

        Raises:
            ConnectionError: none answers in `max_retries + 1` tries, or one answers with what cannot be read.
            InputError: a server refuses the request.
        """
        turn = next(self.turns) % len(self.clients)
        order = [*self.clients[turn:], *self.clients[:turn]]
        try:
            for tries in range(self.max_retries):
                try:
                    return self._ask_each(order, request)
                except UNAVAILABLE as error:
                    time.sleep(_wait(error, tries))
            return self._ask_each(order, request)
        except UNAVAILABLE as error:
            raise ConnectionError(
                f"{self} gave no answer in {self.max_retries + 1} tries: {error} Is the server up? What is "
                "on disk is kept: run the same again when it is."
            ) from error
        except openai.APIStatusError as error:
            raise InputError(f"{error.request.url} refuses the request: {error}") from error
        except (AttributeError, TypeError, ValueError) as error:  # not JSON, or not an object: the client trips over it
            raise ConnectionError(f"{self} sent an answer that cannot be read: {error}") from error

    def ask_all(self, request: Callable[[openai.OpenAI], Any]) -> dict[str, Any]:
        """What each server that answers returns to `request`, by its address; where none does, as [`ask`]."""
        answers = {}
        for client in self.clients:
            with suppress(ConnectionError):
                answers[str(client.base_url)] = Servers([client], max_retries=0).ask(request)
        return answers or {str(self): self.ask(request)}

    def _ask_each(self, order: list[openai.OpenAI], request: Callable[[openai.OpenAI], Any]) -> Any:
        """The first answer. Servers that are set aside are left out, unless all are."""
        now, failed = time.monotonic(), []
        for client in [client for client in order if self.aside.get(client, now) <= now] or order:
            try:
                answer = request(client)
                self.aside.pop(client, None)
                return answer
            except UNAVAILABLE as error:
                logger.info("%s gave no answer: %s", client.base_url, error)
                failed.append(error)
                if isinstance(error, openai.APIConnectionError):
                    self._set_aside(client, error)
        raise min(failed, key=_asked_wait)

    def _set_aside(self, client: openai.OpenAI, error: Exception) -> None:
        if client not in self.aside and len(self.clients) > 1:
            logger.warning("%s gave no answer (%s): it is set aside, the others are asked.", client.base_url, error)
        self.aside[client] = time.monotonic() + SET_ASIDE

    def __str__(self) -> str:
        return ", ".join(str(client.base_url) for client in self.clients)


def _wait(error: openai.APIError, tries: int) -> float:
    """Seconds before the next try, after so many."""
    backoff, asked = min(FIRST_WAIT * 2**tries, LONGEST_WAIT) * random.uniform(0.75, 1), _asked_wait(error)
    return max(backoff, asked) if asked <= LONGEST_ASKED else backoff


def _asked_wait(error: openai.APIError) -> float:
    """Seconds that a server asks for (`Retry-After`); endless where it did not answer."""
    if not isinstance(error, openai.APIStatusError):
        return math.inf
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
