"""Turns prompts into rationales with a server that speaks OpenAI's completions protocol, such as `vllm serve`.

Prompts travel as token ids, and so do the tokens written: nothing is tokenised again on the way. The server must return
the log-probabilities of given tokens (`logprob_token_ids`, an extension of vLLM's); one is asked once, before any work.
"""

import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import openai

from tract_trainer.data.hashing import digest
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.checkpoints import SavedJudge
from tract_trainer.engines.completions import lead, read_written, stop_ids
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

CONNECT = 5.0
"""Seconds to connect in."""

ID = "token_id:"


class ServerEngine:
    """
    Args:
        clients (`Sequence[openai.OpenAI]`): the servers of one model, each asked once a try. A request goes to the next
            one in turn, and on to another if that one does not answer.
        model (`str`, *optional*): name the model is served under; needed where a server has several.
        saved ([`~tract_trainer.engines.checkpoints.SavedJudge`]): the judge's files.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        concurrency (`int`, *optional*, defaults to `64`): requests under way at the same time.
        max_retries (`int`, *optional*, defaults to `8`): further tries of a request that no server answers.

    Raises:
        ValueError: the server has no such model, or does not return the log-probabilities of the scale.
        ConnectionError: no server answers.
    """

    batch_size = 1

    def __init__(
        self,
        clients: Sequence[openai.OpenAI],
        model: str | None,
        saved: SavedJudge,
        tokens: ScoreTokens,
        config: JudgeConfig,
        concurrency: int = 64,
        max_retries: int = 8,
    ) -> None:
        if concurrency < 1 or max_retries < 0:
            raise InputError(f"Expected concurrency >= 1 and max_retries >= 0, got {concurrency} and {max_retries}.")
        self.servers = Servers(clients, max_retries)
        self.saved, self.tokens, self.calls = saved, tokens, concurrency
        self.pool = ThreadPoolExecutor(concurrency)
        self.stop_ids, self.lead = stop_ids(saved.generation_config, tokens, config), lead(tokens, config)
        served = self._served(model)
        self.model, self.root = next(iter(served.values()))[:2]
        self.max_length = min((room for *_, room in served.values() if room), default=None)
        self.score([[self.stop_ids[0]]])

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        tokens: ScoreTokens,
        config: JudgeConfig,
        *,
        base_url: str | Sequence[str],
        revision: str | None = None,
        batch_size: int | None = None,
        served_model: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 8,
        **kwargs: Any,
    ) -> "ServerEngine":
        """
        Args:
            name_or_path (`str`): folder or repository of the judge, for its tokenizer; its weights stay where they are.
            base_url (`str` or `Sequence[str]`): e.g. `"http://localhost:8000/v1"`; several for several servers.
            served_model (`str`, *optional*): see `model` of the class.
            timeout (`float`, *optional*, defaults to `600.0`): seconds to wait for an answer; for a connection, 5.
            max_retries (`int`, *optional*, defaults to `8`): further tries of a request, with 30 to 40 s of
                waiting between them.
        """
        if batch_size is not None:
            raise InputError("The server packs requests itself: set concurrency instead of batch_size.")
        clients = [
            openai.OpenAI(
                base_url=url,
                api_key=os.environ.get("OPENAI_API_KEY", "none"),
                timeout=openai.Timeout(timeout, connect=min(timeout, CONNECT)),
                max_retries=0,  # the engine's own tries go round the servers
            )
            for url in _urls(base_url)
        ]
        saved = SavedJudge.find(name_or_path, revision, weights=False)
        return cls(clients, served_model, saved, tokens, config, max_retries=max_retries, **kwargs)

    @property
    def identity(self) -> str:
        """Of the files at hand and the names that the server gives: it does not show its weights."""
        return f"server-{digest(self.model, self.root)[:8]}-{self.saved.identity}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        def write(prompt: list[int], seed: int) -> Rationale:
            room = sampling.max_new_tokens if self.max_length is None else self.max_length - len(prompt)
            written, log_probs = self._complete(
                prompt,
                max_tokens=min(sampling.max_new_tokens, room),
                temperature=sampling.temperature,
                top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
                seed=seed,
                repetition_penalty=sampling.repetition_penalty,
            )
            return read_written(self.tokens, prompt, written, self.stop_ids, log_probs.__getitem__, self.lead)

        return list(self.pool.map(write, prompts, seeds))

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        def read(row: list[int]) -> tuple[float, ...]:
            settings = {"max_tokens": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0, "repetition_penalty": 1.0}
            return self._complete(row, **settings)[1][0]

        return list(self.pool.map(read, rows))

    def _served(self, model: str | None) -> dict[str, tuple[str, str, int | None]]:
        """What each server says of the model: its name, the last part of where it is from, and how much it reads."""
        replies = self.servers.ask_all(lambda client: client.models.list())
        served = {url: self._found(url, getattr(reply, "data", None), model) for url, reply in replies.items()}
        if len({found[:2] for found in served.values()}) > 1:
            told = "; ".join(f"{url} has {name!r} from {root!r}" for url, (name, root, _) in served.items())
            raise InputError(f"The servers do not serve the same judge: {told}. Give those of one alone.")
        return served

    def _found(self, url: str, listed: Any, model: str | None) -> tuple[str, str, int | None]:
        if not listed or not all(hasattr(entry, "id") for entry in listed):
            raise InputError(f"{url} names no model that it serves. Does base_url end in /v1, as of vllm serve?")
        served = {entry.id: entry for entry in listed}
        names = list(served)
        if model is None and len(names) > 1:
            like_ours = [name for name in names if bool(self._parent(served[name])) == bool(self.saved.base)]
            one = (like_ours or names)[0]
            raise InputError(f"{url} serves {names}: name one of them, served_model={one!r} for example.")
        if model is not None and model not in names:
            raise InputError(f"{url} does not serve {model!r} but {names}.")
        entry = served[model or names[0]]
        if self.saved.base is not None and self.saved.base in (entry.id, getattr(entry, "root", None)):
            raise InputError(
                f"{url} serves {entry.id!r}, the base model of the adapter in {self.saved.folder}, and not "
                "the judge. Serve both with --enable-lora --lora-modules judge=FOLDER, and ask for "
                "served_model='judge'."
            )
        base = served.get(self._parent(entry))
        room = getattr(entry, "max_model_len", None) or getattr(base, "max_model_len", None)
        return entry.id, Path(getattr(entry, "root", None) or "").name, room

    @staticmethod
    def _parent(entry: Any) -> str:
        return getattr(entry, "parent", None) or ""

    def _complete(
        self, prompt: list[int], *, repetition_penalty: float, **settings: Any
    ) -> tuple[list[int], list[tuple[float, ...]]]:
        """The tokens written after `prompt`, `(S,)`, and the log-probabilities of the scale at each, `(S, K)`."""
        # Everything is said, so no default of the server's or of a generation config has a say.
        extra = {
            "repetition_penalty": repetition_penalty,
            "top_k": 0,
            "min_p": 0.0,
            "stop_token_ids": self.stop_ids,
            "logprob_token_ids": list(self.tokens.ids),
            "return_tokens_as_token_ids": True,
        }
        reply = self.servers.ask(
            lambda client: client.completions.create(
                model=self.model,
                prompt=prompt,
                n=1,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                logprobs=len(self.tokens.ids),
                extra_body=extra,
                **settings,
            )
        )
        try:
            given = reply.choices[0].logprobs
            names = [f"{ID}{token}" for token in self.tokens.ids]
            written = [int(token.removeprefix(ID)) for token in given.tokens]
            rows = [tuple(float(given.top_logprobs[i][name]) for name in names) for i in range(len(written))]
            if min(written, default=0) < 0 or any(value > 1e-3 for row in rows for value in row):
                raise ValueError("a token below 0, or a log-probability above")
            return written, rows
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.servers} does not return the log-probabilities of the scale {list(self.tokens.scale.labels)}. "
                "It must take `logprob_token_ids` and `return_tokens_as_token_ids` on /completions, as vllm serve "
                "does. Serve the judge with it, or use another engine."
            ) from error


def _urls(base_url: Any) -> list[str]:
    urls = [base_url] if isinstance(base_url, str) else base_url
    if not isinstance(urls, list | tuple) or not urls or not all(re.match("https?://.", str(url)) for url in urls):
        raise InputError(
            f"base_url must be an address, or a list of them, like 'http://localhost:8000/v1'; found {base_url!r}."
        )
    return [str(url) for url in urls]


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
