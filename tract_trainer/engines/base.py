"""The interface of an engine: token ids and sampling settings in, rationales with log-probabilities out.

`Judge` and `generate_cot_dataset` use nothing else of an engine. `K` is the number of labels of the scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from numbers import Real
from typing import Any, NamedTuple, Protocol

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreTokens

ENGINES = {"transformers": "TransformersEngine", "vllm": "VLLMEngine", "server": "ServerEngine"}
"""Class of each engine. Its module has the engine's name."""

SMALLEST = 1e-3  # of a temperature above 0, and of a repetition penalty: logits are divided by them


@dataclass(frozen=True)
class Sampling:
    """
    How rationales are sampled. The defaults are the paper's.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`): sampling temperature. 0 takes the most likely token.
        top_p (`float`, *optional*, defaults to `0.9`): probability mass of the tokens that are sampled from.
        repetition_penalty (`float`, *optional*, defaults to `1.03`): penalty on tokens of the prompt and rationale.
        max_new_tokens (`int`, *optional*, defaults to `1024`): maximum tokens per rationale, including the score.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.03
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", as_int("max_new_tokens", self.max_new_tokens))
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), Real):
                raise InputError(f"{name} must be a number, found {getattr(self, name)!r}.")
        for name, in_range in (
            ("temperature", self.temperature == 0 or SMALLEST <= self.temperature < float("inf")),
            ("top_p", 0 < self.top_p <= 1),
            ("repetition_penalty", SMALLEST <= self.repetition_penalty < float("inf")),
            ("max_new_tokens", self.max_new_tokens >= 1),
        ):
            if not in_range:
                raise InputError(f"{name}={getattr(self, name)} is out of range.")


def as_int(name: str, number: Any) -> int:
    """A whole number as an `int`: JSON, YAML and NumPy may hold it as another type."""
    is_whole = isinstance(number, Real) and not isinstance(number, bool) and not number % 1
    if not is_whole:
        raise InputError(f"{name} must be a whole number, found {number!r}.")
    return int(number)


class Rationale(NamedTuple):
    """
    A rationale that a model has written.

    Attributes:
        text (`str`): the text before the score prefix; all of the text if there is no score.
        label (`str`, *optional*): the label that the model wrote; `None` if there is no score.
        log_probs (`tuple[float, ...]`, *optional*): log-probability of each label at the place of the score, `(K,)`,
            from the model itself: before temperature, top-p and penalty.
        num_tokens (`int`): number of tokens that were generated.
        forced (`bool`): whether the model wrote no score, and the score was read after its text and the prefix.
        truncated (`bool`): whether the model reached its token limit without ending its turn.
        error (`str`): why the engine could not generate; empty if it did.
        score_interval (`tuple[float, float]`, *optional*):
            Lowest and highest expected score that the server's log-probabilities allow; `None` where they are complete.
    """

    text: str
    label: str | None
    log_probs: tuple[float, ...] | None
    num_tokens: int
    forced: bool = False
    truncated: bool = False
    error: str = ""
    score_interval: tuple[float, float] | None = None


class Engine(Protocol):
    """
    A model that writes rationales. Results are in the order of the prompts.

    Attributes:
        tokens ([`~tract_trainer.scale.ScoreTokens`], *optional*):
            The scale as the model's tokenizer writes it; `None` if the engine takes messages in place of token ids.
        batch_size (`int`): number of rationales that the engine generates together.
        calls (`int`): number of calls of `generate` and `score` that may run at the same time, in threads.
        max_length (`int`, *optional*): maximum tokens of a prompt with its rationale; `None` if unknown.
    """

    batch_size: int
    calls: int
    max_length: int | None

    @property
    def tokens(self) -> ScoreTokens | None: ...

    @property
    def identity(self) -> str:
        """Identifies the weights: two engines with the same identity sample from the same distribution."""

    def generate(self, prompts: Sequence[Any], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        """
        Generates one rationale for each prompt, sampled with the prompt's seed. Every prompt is shorter than
        `max_length`. Equal prompts should be neighbours: an engine may then process the prompt once.
        """

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        """
        Log-probability of each label, `(K,)`, as the next token after each row; NaN for a row that cannot be scored.
        """


def at_once(engine: Engine, num_cots: int = 1) -> int:
    """Number of records per call. An engine in this process gets several batches, which it sorts by length."""
    return max(1, engine.batch_size * (8 if engine.calls == 1 else 1) // num_cots)


def checked(num_cots: int, unfinished: str, sampling: Mapping[str, Any]) -> Sampling:
    """The sampling settings, after `InputError` for settings that [`Judge.score`] does not accept."""
    if as_int("num_cots", num_cots) < 0:
        raise InputError(f"num_cots must be at least 0, got {num_cots}.")
    if unfinished not in ("unscored", "force"):
        raise InputError(f"unfinished={unfinished!r} is not one of ['unscored', 'force'].")
    return Sampling(**sampling)


def check_score_settings(
    num_cots: int = 1,
    *,
    seed: int = 42,
    unfinished: str = "unscored",
    calibrated: bool = False,
    progress: bool | None = None,
    **sampling: Any,
) -> None:
    """Raises `InputError` for arguments that [`Judge.score`] does not accept, long before it is called with them."""
    known = {field.name for field in fields(Sampling)}
    if unknown := sorted(set(sampling) - known):
        raise InputError(f"{unknown[0]!r} is not a setting of a judge's score; known are {sorted(known)}.")
    as_int("seed", seed)
    checked(num_cots, unfinished, sampling)


@contextmanager
def refusing_unknown(model_kwargs: Mapping[str, Any], engine: str) -> Iterator[None]:
    """Raises `InputError` instead of the `TypeError` for `model_kwargs` that the engine does not accept."""
    try:
        yield
    except TypeError as error:
        if model_kwargs and "unexpected keyword argument" in str(error):
            raise InputError(f"engine={engine!r} does not take these model_kwargs: {error}.") from error
        for name in model_kwargs:
            if f"multiple values for keyword argument {name!r}" in str(error):
                raise InputError(f"model_kwargs must not hold {name!r}. Give {name}=... beside it instead.") from error
        raise


def engine_class(name: str, logprobs: str | None = None) -> Any:
    """
    The class of an engine, imported when it is needed: vLLM and the OpenAI client are optional. `logprobs="top"` names
    the server engine that reads `top_logprobs`.
    """
    if name not in ENGINES:
        raise InputError(f"engine={name!r} is not known; known are {sorted(ENGINES)}.")
    if logprobs is not None and (name, logprobs) != ("server", "top"):
        raise InputError(
            f"logprobs must be 'top', with engine='server', or be left out; found {logprobs!r} with engine={name!r}."
        )
    module, kind = (name, ENGINES[name]) if logprobs is None else ("top_logprobs", "TopLogprobsEngine")
    try:
        return getattr(import_module(f"tract_trainer.engines.{module}"), kind)
    except ModuleNotFoundError as error:
        raise InputError(
            f"engine={name!r} needs {error.name}, which is not installed: pip install {error.name}."
        ) from error
