"""Writes rationales with a server that speaks OpenAI's completions protocol, such as `vllm serve`.

Prompts and completions are exchanged as token ids, so nothing is tokenised twice. The server must return the
log-probabilities of given tokens (`logprob_token_ids`, an extension by vLLM), which one request tests before any work.
"""

import asyncio
import functools
import logging
import math
import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from asyncio import sleep
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import openai

from tract_trainer.data.hashing import digest
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.checkpoints import SavedJudge
from tract_trainer.engines.completions import NextTokenEngine, Written, lead, stop_ids
from tract_trainer.errors import InputError, without_password
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Prompt = TypeVar("Prompt")
Reply = TypeVar("Reply")

CONNECT = 5.0  # seconds within which a server must accept a connection
NEXT_TOKEN = Sampling(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=1)
READS = 3  # of a request whose reply lacks log-probabilities
MAX_TOTAL = 1.01  # largest sum of the probabilities of different tokens, with the rounding of half precision
ID = "token_id:"


class RefusedError(InputError):
    """A server does not complete one prompt. It may complete others."""


class Completer(ABC, Generic[Prompt, Reply]):
    """Asks servers to complete prompts, many at the same time. Its arguments are as in [`ServerEngine`]."""

    probe: Prompt  # which a server completes, unless it refuses the settings

    def __init__(
        self, clients: Sequence[openai.AsyncOpenAI], concurrency: int, max_retries: int, timeout: float
    ) -> None:
        if concurrency < 1 or max_retries < 0 or timeout <= 0:
            raise InputError(
                f"Expected concurrency >= 1, max_retries >= 0 and timeout > 0, got {concurrency}, {max_retries} and "
                f"{timeout}."
            )
        self.servers, self.calls = Servers(clients, max_retries, timeout), concurrency
        self.slots = asyncio.Semaphore(concurrency)
        self.accepted: set[Sampling] = set()  # settings with which the servers have completed a prompt

    @abstractmethod
    async def complete(self, prompt: Prompt, seed: int, sampling: Sampling) -> Reply:
        """The completion of one prompt, or a `RefusedError`."""

    def complete_all(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling) -> "list[Reply | str]":
        """The completion of each prompt, or why the servers do not complete it."""

        async def together() -> list[Reply | str]:
            tasks = [asyncio.ensure_future(self._try(*one, sampling)) for one in zip(prompts, seeds, strict=True)]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # after an error or an interruption
                    task.cancel()

        return run(together())

    async def _try(self, prompt: Prompt, seed: int, sampling: Sampling) -> "Reply | str":
        """The completion, or why the servers do not complete this prompt although they complete others."""
        async with self.slots:
            try:
                completion = await self.complete(prompt, seed, sampling)
            except RefusedError as error:
                # Is it the prompt, or the settings? With new settings this asks for as many tokens, else for one.
                settings = replace(sampling, max_new_tokens=1) if sampling in self.accepted else sampling
                try:
                    await self.complete(self.probe, seed, settings)
                except RefusedError:
                    raise error from None
                return str(error)
        self.accepted.add(sampling)
        return completion


class ServerEngine(NextTokenEngine, Completer[list[int], Written]):
    """
    Args:
        clients (`Sequence[openai.AsyncOpenAI]`):
            Servers of the same model. Requests take turns; one that a server does not answer goes to the next server.
        model (`str`, *optional*): name of the served model, needed if a server has several.
        saved ([`~tract_trainer.engines.checkpoints.SavedJudge`]): the judge's files.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        concurrency (`int`, *optional*, defaults to `64`): number of requests at the same time.
        max_retries (`int`, *optional*, defaults to `8`): number of retries of a request that no server answers.
        timeout (`float`, *optional*, defaults to `600.0`): seconds within which a server must answer a request.
        max_model_len (`int`, *optional*):
            Maximum tokens of a prompt with its rationale, for a server that does not tell.

    Raises:
        ValueError: the server does not serve this model, or does not return the log-probabilities of the scale.
        ConnectionError: no server answers.
    """

    batch_size = 1

    def __init__(
        self,
        clients: Sequence[openai.AsyncOpenAI],
        model: str | None,
        saved: SavedJudge,
        tokens: ScoreTokens,
        config: JudgeConfig,
        concurrency: int = 64,
        max_retries: int = 8,
        timeout: float = 600.0,
        max_model_len: int | None = None,
    ) -> None:
        super().__init__(clients, concurrency, max_retries, timeout)
        self.saved, self.tokens = saved, tokens
        self.refused = False  # whether they have refused to score a row
        self.stop_ids, self.lead = stop_ids(saved.generation_config, tokens, config), lead(tokens, config)
        served = self._served(model)
        self.model, self.root = next(iter(served.values()))[:2]
        limits = [max_model_len, *(limit for *_, limit in served.values())]
        self.max_length = min((limit - tokens.depth for limit in limits if limit), default=None)
        self.probe = [self.stop_ids[0]]
        run(self.complete(self.probe, 0, NEXT_TOKEN, reads=1))
        self.accepted.add(NEXT_TOKEN)

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
        **kwargs: Any,
    ) -> "ServerEngine":
        """
        Args:
            name_or_path (`str`): folder or repository of the judge, for its tokenizer. Its weights are not loaded.
            base_url (`str` or `Sequence[str]`): address such as `"http://localhost:8000/v1"`, or several.
            served_model (`str`, *optional*): `model` of the class.
            timeout (`float`, *optional*, defaults to `600.0`):
                Seconds within which a server must answer a request, and at most 5 within which it must accept it.
            **kwargs: `concurrency`, `max_retries`, `max_model_len` of the class.
        """
        if batch_size is not None:
            raise InputError("The server batches requests itself: set concurrency instead of batch_size.")
        saved = SavedJudge.find(name_or_path, revision, weights=False)
        return cls(clients_of(base_url, timeout), served_model, saved, tokens, config, timeout=timeout, **kwargs)

    @property
    def identity(self) -> str:
        """Of the files on this machine, and of the served model's name: the server does not show its weights."""
        return f"server-{digest(self.model, self.root)[:8]}-{self.saved.identity}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        return self.rationales(prompts, self.complete_all(prompts, seeds, sampling))

    def next_token(self, rows: Sequence[list[int]]) -> list[Mapping[int, float] | None]:
        replies = self.complete_all(rows, [0] * len(rows), NEXT_TOKEN)
        for refused in (reply for reply in replies if isinstance(reply, str)):  # its caller gets NaN, and no reason
            logger.log(logging.INFO if self.refused else logging.WARNING, "A record remains unscored: %s", refused)
            self.refused = True
        return [None if isinstance(reply, str) else reply.log_probs(0) for reply in replies]

    def _served(self, model: str | None) -> dict[str, tuple[str, str, int | None]]:
        """By server, the name of the model, the last part of its path there, and its maximum length."""
        replies = run(self.servers.ask_all(lambda client: client.models.list()))
        served = {url: self._found(url, getattr(reply, "data", None), model) for url, reply in replies.items()}
        if len({found[:2] for found in served.values()}) > 1:
            told = "; ".join(f"{url} has {name!r} from {root!r}" for url, (name, root, _) in served.items())
            raise InputError(f"The servers do not serve the same judge: {told}. Give the addresses of one judge.")
        return served

    def _found(self, url: str, listed: Any, model: str | None) -> tuple[str, str, int | None]:
        if not listed or not all(hasattr(entry, "id") for entry in listed):
            raise InputError(f"{url} names no model that it serves. Does base_url end in /v1, as with vllm serve?")
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
        limit = getattr(entry, "max_model_len", None) or getattr(base, "max_model_len", None)
        return entry.id, Path(getattr(entry, "root", None) or "").name, limit

    @staticmethod
    def _parent(entry: Any) -> str:
        return getattr(entry, "parent", None) or ""

    async def complete(self, prompt: list[int], seed: int, sampling: Sampling, reads: int = READS) -> Written:
        limit = sampling.max_new_tokens if self.max_length is None else self.max_length - len(prompt)
        extra = {
            "repetition_penalty": sampling.repetition_penalty,
            "top_k": 0,
            "min_p": 0.0,
            "stop_token_ids": self.stop_ids,
            "logprob_token_ids": list(self.tokens.ids),
            "return_tokens_as_token_ids": True,
        }
        failure: Exception | None = None
        for _ in range(reads):
            # Every setting is sent, so no default of the server or of a generation config applies.
            reply = await self.servers.ask(
                lambda client: client.completions.create(
                    model=self.model,
                    prompt=prompt,
                    n=1,
                    max_tokens=max(1, min(sampling.max_new_tokens, limit)),
                    temperature=sampling.temperature,
                    top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
                    seed=seed,
                    presence_penalty=0.0,
                    frequency_penalty=0.0,
                    logprobs=len(self.tokens.ids),
                    extra_body=extra,
                )
            )
            try:
                return self._read(reply)
            except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                failure = error
        raise RefusedError(
            f"{self.servers} does not return the log-probabilities of the scale {list(self.tokens.scale.labels)}. "
            "It must take `logprob_token_ids` and `return_tokens_as_token_ids` on /completions, as vllm serve "
            "does. Serve the judge with it, use another engine, or read what it returns with logprobs='top'."
        ) from failure

    def _read(self, reply: Any) -> Written:
        found = reply.choices[0].logprobs
        written = [int(token.removeprefix(ID)) for token in found.tokens]
        rows = [
            {token: float(found.top_logprobs[place][f"{ID}{token}"]) for token in self.tokens.ids}
            for place in range(len(written))
        ]
        if min(written) < 0 or any(sum(map(math.exp, row.values())) > MAX_TOTAL for row in rows):
            raise ValueError("a token below 0, or probabilities above 1")
        return Written(written, rows.__getitem__)


def run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """What `coroutine` returns. If the caller is interrupted, so is the request."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop that all requests run in. Python does not wait at exit for its thread, a daemon."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tract-trainer-requests", daemon=True).start()
    return loop


def clients_of(base_url: Any, timeout: float) -> list[openai.AsyncOpenAI]:
    """A client for each address. It accepts no connection later than `CONNECT` seconds, and never retries."""
    return [
        openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=openai.Timeout(None, connect=min(timeout, CONNECT)),
            max_retries=0,  # Servers retries on the next server
        )
        for url in _urls(base_url)
    ]


def _urls(base_url: Any) -> list[str]:
    urls = [base_url] if isinstance(base_url, str) else base_url
    if not isinstance(urls, list | tuple) or not urls or not all(re.match("https?://.", str(url)) for url in urls):
        shown = list(map(without_password, urls)) if isinstance(urls, list | tuple) else urls
        raise InputError(
            f"base_url must be an address, or a list of them, like 'http://localhost:8000/v1'; found {shown!r}."
        )
    return [str(url) for url in urls]


UNAVAILABLE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, TimeoutError)
"""Failures that may pass. The request is retried after a growing random wait, or when the server says."""

REFUSED = (400, 413, 422)
"""Statuses of a request that the server understands and does not complete, e.g. because its prompt is too long."""

SET_ASIDE, FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED, LOGGED_WAIT = 30.0, 0.5, 8.0, 120.0, 10.0
"""Seconds: for which a server that does not answer is left out; the first wait and the longest one; the longest wait
that a server may ask for; and the longest one of which nothing is said."""


class Servers:
    """Servers of the same model, whose requests take turns. The arguments are as in [`ServerEngine`]."""

    def __init__(self, clients: Sequence[openai.AsyncOpenAI], max_retries: int, timeout: float) -> None:
        self.clients, self.max_retries, self.timeout, self.turns = list(clients), max_retries, timeout, count()
        self.aside: dict[openai.AsyncOpenAI, float] = {}  # until when, for those that did not answer last

    async def ask(self, request: Callable[[openai.AsyncOpenAI], Awaitable[Answer]]) -> Answer:
        """
        The answer of the first server that gives one. Servers that are set aside are left out, unless all are.

        Raises:
            ConnectionError: none answers in `max_retries + 1` tries, or one answers with what cannot be read.
            RefusedError: a server refuses the prompt or the settings.
            InputError: a server refuses any such request, e.g. because of its key.
        """
        turn, tries = next(self.turns) % len(self.clients), 0
        order = [*self.clients[turn:], *self.clients[:turn]]
        while True:
            now, failures = time.monotonic(), []
            for client in [client for client in order if self.aside.get(client, now) <= now] or order:
                try:
                    async with asyncio.timeout(self.timeout):  # the client's own timeout starts anew with every byte
                        answer = await request(client)
                    self.aside.pop(client, None)
                    return answer
                except UNAVAILABLE as error:
                    self._failed(client, error)
                    failures.append(error)
                except openai.APIStatusError as error:
                    kind = RefusedError if error.status_code in REFUSED else InputError
                    raise kind(f"{without_password(error.request.url)} refuses the request: {error}") from error
                except (AttributeError, TypeError, ValueError) as error:  # of the client, at what is no JSON object
                    raise ConnectionError(f"{self} sent an answer that cannot be read: {error}") from error
            failure, tries = min(failures, key=_asked_wait), tries + 1
            if tries > self.max_retries:
                raise ConnectionError(
                    f"{self} gave no answer in {tries} tries: {self._said(failure)} Is the server up? What is on disk "
                    "is kept: run the same again when it is."
                ) from failure
            await sleep(self._wait(failure, tries))

    async def ask_all(self, request: Callable[[openai.AsyncOpenAI], Awaitable[Answer]]) -> dict[str, Answer]:
        """By its address, the answer of each server that gives one; if none does, as [`ask`]."""
        answers = {}
        for client in self.clients:
            with suppress(ConnectionError):
                one = Servers([client], 0, self.timeout)
                answers[str(one)] = await one.ask(request)
        return answers or {str(self): await self.ask(request)}

    def _failed(self, client: openai.AsyncOpenAI, error: Exception) -> None:
        shown, said = without_password(client.base_url), self._said(error)
        logger.info("%s gave no answer: %s", shown, said)
        if isinstance(error, openai.APIConnectionError | TimeoutError):
            if client not in self.aside and len(self.clients) > 1:
                logger.warning("%s gave no answer (%s): it is set aside, the others are asked.", shown, said)
            self.aside[client] = time.monotonic() + SET_ASIDE

    def _said(self, error: Exception) -> str:
        return str(error) or f"It did not answer within timeout={self.timeout:g} seconds."

    def _wait(self, error: Exception, tries: int) -> float:
        """Seconds to wait after a number of tries."""
        backoff, asked = min(FIRST_WAIT * 2 ** (tries - 1), LONGEST_WAIT) * random.uniform(0.75, 1), _asked_wait(error)
        seconds = max(backoff, asked) if asked <= LONGEST_ASKED else backoff
        if seconds > LOGGED_WAIT:
            logger.warning("%s asks to wait: trying again in %.0f seconds.", self, seconds)
        return seconds

    def __str__(self) -> str:
        return ", ".join(without_password(client.base_url) for client in self.clients)


def _asked_wait(error: Exception) -> float:
    """Seconds that a server asks for (`Retry-After`); infinite if it did not answer."""
    if not isinstance(error, openai.APIStatusError):
        return math.inf
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:  # a date
        return 0.0
