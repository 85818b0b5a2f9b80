"""Scores from the most likely tokens that a server returns as text (`top_logprobs`), such as OpenAI's or llama.cpp's.

No tokenizer of the judge is needed. Labels are found in the text, and the tokens at their place are compared with them
byte by byte. What the server does not return makes the score an interval: the probability of all other tokens, and how
a label of several tokens goes on that the model did not write.

`K` is the number of labels of the scale.
"""

import math
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import openai

from tract_trainer.data.hashing import digest
from tract_trainer.data.rendering import CLOSED, NO_PREFILL, OPENED
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.server import MAX_TOTAL, Completer, RefusedError, clients_of, run
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreScale

TOP = 20  # tokens whose log-probabilities are asked for; OpenAI returns no more
NEUTRAL = Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=1)
PROBE = "Name any animal."
COMPARED, DRIFT = 4, 0.5  # likeliest tokens that are compared under two settings, and the most that rounding changes
TINY = 1e-30  # probability of a token that is not returned, where its logarithm is needed

ROUNDING = 1e-3
"""Error of a server's probabilities: llama.cpp's are 0.0002 too high, since its sum over the vocabulary is rounded.
Both ends of an interval are moved by this share of the largest value."""


class Step(NamedTuple):
    """A token that a server wrote, and the probabilities of the tokens that it returned for this place."""

    token: bytes
    probs: dict[bytes, float]


class Share(NamedTuple):
    """
    A part of the probability at the place of a label, with the numbers of the labels that it may belong to, whether it
    may belong to none of them (`off`), and the number of the label that it is counted for.
    """

    mass: float
    labels: tuple[int, ...]
    off: bool
    likely: int | None


class Written(NamedTuple):
    """What a server wrote, token by token, and whether it was cut at the token limit."""

    steps: list[Step]
    truncated: bool


class TopLogprobsEngine(Completer[Any, Written]):
    """
    Args:
        model (`str`): name of the served model.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        clients, concurrency, max_retries, timeout: as in [`~tract_trainer.engines.server.ServerEngine`].

    Temperature, top-p, the token limit and the seed are sent; other settings are the server's own.

    Raises:
        ValueError: the server does not serve this model, or returns no `top_logprobs`.
        ConnectionError: no server answers.
    """

    tokens, batch_size, max_length = None, 1, None

    def __init__(
        self,
        clients: Sequence[openai.AsyncOpenAI],
        model: str,
        config: JudgeConfig,
        concurrency: int = 64,
        max_retries: int = 8,
        timeout: float = 600.0,
    ) -> None:
        super().__init__(clients, concurrency, max_retries, timeout)
        self.model, self.config = model, config
        self.probe = [{"role": "user", "content": PROBE}] if config.conversational else PROBE
        self.compared: set[bool] = set()  # whether greedily, the settings that are known to change no log-probability
        self.lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        tokens: None,
        config: JudgeConfig,
        *,
        base_url: str | Sequence[str],
        revision: str | None = None,
        batch_size: int | None = None,
        served_model: str | None = None,
        timeout: float = 600.0,
        **kwargs: Any,
    ) -> "TopLogprobsEngine":
        """
        Args:
            name_or_path (`str`): the judge, or the name of a served model.
            base_url (`str` or `Sequence[str]`): address such as `"http://localhost:8080/v1"`, or several.
            served_model (`str`, *optional*):
                Name of the served model. By default `name_or_path` if the server has it, or its only model.
            timeout, **kwargs: `timeout`, `concurrency`, `max_retries` of the class.
        """
        if batch_size is not None:
            raise InputError("The server batches requests itself: set concurrency instead of batch_size.")
        engine = cls(clients_of(base_url, timeout), "", config, timeout=timeout, **kwargs)
        listed = run(engine.servers.ask(lambda client: client.models.list()))
        names = [str(entry.id) for entry in getattr(listed, "data", None) or ()]
        name = str(name_or_path) if served_model is None else served_model
        if name not in names and (served_model is not None or len(names) != 1):
            raise InputError(f"{engine.servers} serves {names or 'no model'}. Name one of them: served_model='...'.")
        engine.model = name if name in names else names[0]
        run(engine.complete(engine.probe, 0, NEUTRAL))  # says what the server lacks, before any work
        return engine

    @property
    def identity(self) -> str:
        """Of the served model's name: the server does not show its weights."""
        return f"server-top-{digest(self.model)[:8]}"

    def generate(self, prompts: Sequence[Any], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        with self.lock:
            self._check_settings(sampling)
        replies = self.complete_all(prompts, seeds, sampling)
        return [
            Rationale("", None, None, 0, error=reply) if isinstance(reply, str) else rationale(*reply, self.config)
            for reply in replies
        ]

    def score(self, rows: Sequence[Any]) -> list[tuple[float, ...]]:
        raise InputError(NO_PREFILL)

    def _check_settings(self, sampling: Sampling) -> None:
        """Raises an InputError if the server returns log-probabilities after temperature and top-p."""
        greedy = sampling.temperature == 0
        if greedy in self.compared or (sampling.temperature, sampling.top_p) == (1, 1):
            return
        sharp = replace(NEUTRAL, temperature=0.0 if greedy else 0.1, top_p=0.5)
        model, found = (run(self.complete(self.probe, 0, settings)).steps for settings in (NEUTRAL, sharp))
        if model and found:
            probs, changed = model[0].probs, found[0].probs
            for token in sorted(probs, key=lambda token: -probs[token])[:COMPARED]:
                if abs(math.log(max(changed.get(token, 0.0), TINY)) - math.log(max(probs[token], TINY))) > DRIFT:
                    raise InputError(
                        f"{self.servers} returns log-probabilities after temperature and top_p, which are not the "
                        f"model's: of {token!r}, {probs[token]:.3f} became {changed.get(token, 0.0):.3f}. Judge with "
                        "temperature=1 and top_p=1."
                    )
        self.compared.add(greedy)

    async def complete(self, prompt: Any, seed: int, sampling: Sampling) -> Written:
        settings: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
            "seed": seed % 2**31,  # llama.cpp takes 32 bits
        }
        if isinstance(prompt, str):
            reply = await self.servers.ask(
                lambda client: client.completions.create(prompt=prompt, logprobs=TOP, **settings)
            )
        else:
            if self.config.chat_template_kwargs:
                settings["extra_body"] = {"chat_template_kwargs": self.config.chat_template_kwargs}
            reply = await self.servers.ask(
                lambda client: client.chat.completions.create(
                    messages=prompt, logprobs=True, top_logprobs=TOP, **settings
                )
            )
        try:
            return written(reply.to_dict(warnings=False)["choices"][0])
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise RefusedError(
                f"{self.servers} does not return the log-probabilities of the most likely tokens (`top_logprobs`) of "
                f"what it writes: {error!r}. Turn them on there, or use another server."
            ) from error


def written(choice: dict[str, Any]) -> Written:
    """A choice of a chat or completions endpoint. Raises an error if it lacks log-probabilities."""
    found = choice["logprobs"]
    if found.get("content") is not None or "tokens" not in found:
        steps = [
            _step(place, ((top["token"], top.get("bytes"), top["logprob"]) for top in place["top_logprobs"]))
            for place in found["content"] or ()
        ]
    else:
        places = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        steps = [
            _step({"token": token, "logprob": log_prob}, ((text, None, value) for text, value in top.items()))
            for token, log_prob, top in places
        ]
    said = (choice.get("message") or {}).get("content") or choice.get("text") or ""
    text = b"".join(step.token for step in steps).decode(errors="replace")
    if said.strip() not in text:
        raise ValueError(f"the text is {said!r:.80}, and its tokens are {text!r:.80}")
    return Written(steps, choice.get("finish_reason") == "length")


def _step(place: dict[str, Any], top: Iterable[tuple[str, list[int] | None, float]]) -> Step:
    probs: dict[bytes, float] = {}
    for text, raw, log_prob in top:
        token = _bytes(text, raw)
        probs[token] = probs.get(token, 0.0) + math.exp(log_prob)
    if not probs or not sum(probs.values()) <= MAX_TOTAL:
        raise ValueError(f"the probabilities of {len(probs)} tokens add up to {sum(probs.values()):.3g}")
    token = _bytes(place["token"], place.get("bytes"))
    probs.setdefault(token, math.exp(place["logprob"]))
    return Step(token, probs)


def _bytes(text: str, raw: list[int] | None) -> bytes:
    """The bytes of a token. As text, a part of a character cannot be told from others."""
    return text.encode() if raw is None else bytes(raw)


def rationale(steps: Sequence[Step], truncated: bool, config: JudgeConfig) -> Rationale:
    """The rationale in what a server wrote, its label, and the interval of its score."""
    whole = b"".join(step.token for step in steps)
    text = whole.decode(errors="surrogateescape")  # so that every byte is kept
    start, scale = _answer_start(text), config.scale
    scores = scale.find_all(text[start:], config.score_prefix)
    answer = text[start:].encode(errors="surrogateescape")
    if not scores:
        return Rationale(answer.decode(errors="replace"), None, None, len(steps), truncated=truncated)
    # As of the other engines: an earlier score is a quotation, unless the model never ended its turn.
    score = scores[0] if truncated else scores[-1]
    position = len(text[: start + score.position].encode(errors="surrogateescape"))
    before = text[start : start + score.position - len(config.score_prefix)]
    ends = list(accumulate(len(step.token) for step in steps))
    first = next(i for i, end in enumerate(ends) if end > position)  # the token with the label's first byte
    head = whole[ends[first] - len(steps[first].token) : position]
    found = shares(scale, head, steps[first:])
    low, high = interval(found, scale, config.renormalize_scores)
    slack = ROUNDING * max(map(abs, scale.values))
    probs = [sum(share.mass for share in found if share.likely == k) for k in range(len(scale.labels))]
    return Rationale(
        before.encode(errors="surrogateescape").decode(errors="replace"),
        score.label,
        tuple(math.log(prob) if prob > 0 else -math.inf for prob in probs),
        len(steps),
        truncated=truncated,
        score_interval=(low - slack, high + slack),
    )


def _answer_start(text: str) -> int:
    """Where the answer begins, behind a think block: at the end if it never ends."""
    opened, closed = re.search(OPENED, text), re.search(CLOSED, text)
    if opened is not None and not text[: opened.start()].strip():
        return len(text) if closed is None else closed.end()
    # A block that the chat template opened; a rationale may name one of the response, but with both ends.
    return closed.end() if closed is not None and (opened is None or opened.start() > closed.start()) else 0


def shares(scale: ScoreScale, head: bytes, steps: Sequence[Step]) -> list[Share]:
    """
    To which labels the probability at the place of a label belongs, as [`~tract_trainer.scale.ScoreTokens`] counts it.
    `head` is the end of the prefix that the first token holds, such as the space of " 4"; `steps` are what the server
    wrote there and behind it.
    """
    labels = [head + label.encode() for label in scale.labels]

    def begun(text: bytes) -> int | None:
        """The longest label that `text` begins with, as a whole."""
        behind = {k: text.removeprefix(label).decode(errors="replace") for k, label in enumerate(labels)}
        found = [k for k, label in enumerate(labels) if text.startswith(label)]
        found = [k for k in found if scale.is_whole(scale.labels[k], behind[k])]
        return max(found, key=lambda k: len(labels[k]), default=None)

    def share(text: bytes, mass: float, reached: int | None, longer: Sequence[int]) -> Share:
        one = begun(text)
        may = tuple(sorted({*longer, *(k for k in (one, reached) if k is not None)}))
        likely = one if one is not None else reached if reached is not None or len(may) != 1 else may[0]
        return Share(mass, may, reached is None, likely)

    def split(
        text: bytes, mass: float, steps: Sequence[Step], reached: int | None, open_labels: Sequence[int]
    ) -> Iterator[Share]:
        """The shares of all that begins with `text`, a row of whole tokens which goes on with `steps` if at all."""
        reached = labels.index(text) if text in labels else reached
        longer = [k for k in open_labels if labels[k].startswith(text) and labels[k] != text]
        if not longer or not steps:
            yield share(text, mass, reached, longer)
            return
        written, probs = steps[0]
        # A label that is one token here is not written as several.
        several = [k for k in longer if labels[k].removeprefix(text) not in probs]
        for token, prob in probs.items():
            if token:
                yield from split(text + token, mass * prob, steps[1:] if token == written else (), reached, several)
            else:  # a control token, which ends the label
                yield share(text, mass * prob, reached, ())
        yield share(text, mass * max(0.0, 1 - sum(probs.values())), reached, longer)

    return [found for found in split(b"", 1.0, steps, None, range(len(labels))) if found.labels]


def interval(found: Sequence[Share], scale: ScoreScale, renormalize: bool) -> tuple[float, float]:
    """The lowest and the highest expected score, whichever of its labels each share belongs to."""

    def lowest(values: Sequence[float]) -> float:
        total = mass = 0.0
        # First what is on the scale for sure, then from the lowest value on what makes the score lower.
        for off, value, part in sorted((one.off, min(values[k] for k in one.labels), one.mass) for one in found):
            score = (total / mass if mass else math.inf) if renormalize else 0.0
            if not off or value < score:
                total, mass = total + part * value, mass + part
        return total / mass if renormalize and mass else total

    return lowest(scale.values), -lowest([-value for value in scale.values])
