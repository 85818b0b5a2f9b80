"""What an engine takes and gives: tokens and sampling settings in; rationales with the scale's log-probabilities out.

A judge and `generate_cot_dataset` see nothing else of an engine. `K` is the number of labels of the scale.
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
"""Name of the class in the module of an engine's name."""


@dataclass(frozen=True)
class Sampling:
    """
    How rationales are drawn. The defaults are the paper's.

    Args:
        temperature (`float`, *optional*, defaults to `1.0`): 0 for the most likely token at each step.
        top_p (`float`, *optional*, defaults to `0.9`): probability mass that is kept.
        repetition_penalty (`float`, *optional*, defaults to `1.03`): penalty on tokens of the prompt and rationale.
        max_new_tokens (`int`, *optional*, defaults to `1024`): most tokens of a rationale with its score.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.03
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", as_int("max_new_tokens", self.max_new_tokens))
        for name, holds in (
            ("temperature", 0 <= self.temperature < float("inf")),
            ("top_p", 0 < self.top_p <= 1),
            ("repetition_penalty", self.repetition_penalty > 0),
            ("max_new_tokens", self.max_new_tokens >= 1),
        ):
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} is out of range.")


def as_int(name: str, number: Any) -> int:
    """A number of things as an `int`: JSON, YAML and NumPy have other types for it."""
    fits = isinstance(number, Real) and not isinstance(number, bool) and not number % 1
    if not fits:
        raise InputError(f"{name} must be a whole number, found {number!r}.")
    return int(number)


class Rationale(NamedTuple):
    """
    A rationale as a model wrote it.

    Attributes:
        text (`str`): what stands before the prefix, or everything if the model never came to a score.
        label (`str`, *optional*): the label it wrote, `None` if it wrote none.
        log_probs (`tuple[float, ...]`, *optional*): log-probability of each label where it wrote one, `(K,)`, of the
            model itself: before temperature, top-p and penalty.
        num_tokens (`int`): tokens generated.
        forced (`bool`): whether the model never came to a score and was asked for one where it ended.
    """

    text: str
    label: str | None
    log_probs: tuple[float, ...] | None
    num_tokens: int
    forced: bool = False


class Engine(Protocol):
    """
    A model that writes rationales. It never re-orders: the n-th result belongs to the n-th prompt.

    Attributes:
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as the model's tokenizer writes it.
        batch_size (`int`): rationales that are worth asking for in one call.
        calls (`int`): calls of `generate` and `score` that may run at the same time, in threads.
        max_length (`int`, *optional*): most tokens of a prompt with its rationale, as far as it is known.
    """

    tokens: ScoreTokens
    batch_size: int
    calls: int
    max_length: int | None

    @property
    def identity(self) -> str:
        """Names the weights: two engines with the same identity draw from the same distribution."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        """
        One rationale for each prompt's tokens, drawn with its seed. Every prompt is shorter than `max_length`. Prompts
        that are the same and stand side by side share the work of reading them.
        """

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label, `(K,)`, as the next token after each row."""


def at_once(engine: Engine, num_cots: int = 1) -> int:
    """Records to give an engine at a time: where it runs here a few batches, so that sorting them by length pays."""
    return max(1, engine.batch_size * (8 if engine.calls == 1 else 1) // num_cots)


def checked(num_cots: int, unfinished: str, sampling: Mapping[str, Any]) -> Sampling:
    """How rationales are drawn; an InputError for settings that a judge's `score` does not take."""
    if as_int("num_cots", num_cots) < 0:
        raise InputError(f"num_cots must be at least 0, got {num_cots}.")
    if unfinished not in ("unscored", "force"):
        raise InputError(f"unfinished={unfinished!r} is not one of ['unscored', 'force'].")
    return Sampling(**sampling)


def check_score_settings(
    num_cots: int = 1, *, seed: int = 42, unfinished: str = "unscored", progress: bool | None = None, **sampling: Any
) -> None:
    """An InputError for arguments that a judge's `score` does not take, where it will be called much later."""
    known = {field.name for field in fields(Sampling)}
    if unknown := sorted(set(sampling) - known):
        raise InputError(f"{unknown[0]!r} is not a setting of a judge's score; known are {sorted(known)}.")
    as_int("seed", seed)
    checked(num_cots, unfinished, sampling)


@contextmanager
def refusing_unknown(model_kwargs: Mapping[str, Any], engine: str) -> Iterator[None]:
    """Turns the TypeError of a class that does not know one of `model_kwargs` into an InputError."""
    try:
        yield
    except TypeError as error:
        if model_kwargs and "unexpected keyword argument" in str(error):
            raise InputError(f"engine={engine!r} does not take these model_kwargs: {error}.") from error
        raise


def engine_class(name: str) -> Any:
    """The class of an engine. Each is imported when it is asked for: vLLM and the client are optional."""
    if name not in ENGINES:
        raise InputError(f"engine={name!r} is not known; known are {sorted(ENGINES)}.")
    try:
        return getattr(import_module(f"tract_trainer.engines.{name}"), ENGINES[name])
    except ModuleNotFoundError as error:
        raise InputError(
            f"engine={name!r} needs {error.name}, which is not installed: pip install 'tract-trainer[{name}]'."
        ) from error
