"""What an engine takes and gives: tokens and sampling settings in; rationales with the scale's log-probabilities out.

A judge and `generate_cot_dataset` see nothing else of an engine. `K` is the number of labels of the scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreTokens


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
        for name, holds in (
            ("temperature", self.temperature >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("repetition_penalty", self.repetition_penalty > 0),
            ("max_new_tokens", self.max_new_tokens >= 1),
        ):
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} is out of range.")


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
    """A model that writes rationales."""

    tokens: ScoreTokens
    batch_size: int

    @property
    def identity(self) -> str:
        """Names the weights: two engines with the same identity draw from the same distribution."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        """One rationale for each prompt's tokens, drawn with its seed."""

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        """Log-probability of each label, `(K,)`, as the next token after each row."""
