"""Arguments of the two trainers: TRL's, and those of the score."""

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Self

from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from tract_trainer.data.templates import template_text
from tract_trainer.errors import InputError
from tract_trainer.judge_config import DEFAULT_PREFIX, DEFAULT_TEMPLATE, JudgeConfig
from tract_trainer.losses import SCORE_LOSSES
from tract_trainer.scale import ScoreScale


class HubToken(str):
    """An access token that no pickle takes along: Transformers saves, and uploads, the training arguments as one."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: object) -> "HubToken":
        return self


TOKEN_MEANS = ("dapo", "cispo", "vespo")  # values of GRPOConfig's `loss_type` that divide by the tokens of a step
ERRORS = ("rmse", "mae")  # ends of the names of metrics of which less is better


def json_object(name: str, given: Any, example: str) -> dict[str, Any] | None:
    """A mapping, given as such or as JSON."""
    found = given
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(given) if isinstance(given, str) else given
    if not isinstance(found, dict | None):
        raise InputError(f"{name} must be a mapping or JSON such as {example}, got {given!r}.")
    return found


class _JudgeArguments(TrainingArguments):
    """What both configurations do alike. A base class after TRL's config, whose defaults it would replace before it."""

    def __post_init__(self) -> None:
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith(ERRORS):
            self.greater_is_better = False  # Transformers knows it of names that end in "loss" alone
        super().__post_init__()
        self.hub_token = self.hub_token and HubToken(self.hub_token)
        kwargs: Any = getattr(self, "model_init_kwargs", None)
        if isinstance(kwargs, dict) and isinstance(kwargs.get("token"), str):
            vars(self)["model_init_kwargs"] = {**kwargs, "token": HubToken(kwargs["token"])}

    def _check_choice(self, name: str, choices: list[str]) -> None:
        if getattr(self, name) not in choices:
            raise InputError(f"{name}={getattr(self, name)!r} is not one of {choices}.")

    def _check_weight(self, name: str) -> None:
        if not 0 <= getattr(self, name) < float("inf"):
            raise InputError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}.")

    @classmethod
    def from_training_arguments(cls, args: TrainingArguments) -> Self:
        """`args` with the defaults of this class. `to_dict` would hide tokens, so the fields are read one by one."""
        ours, given = ({f.name for f in dataclasses.fields(of) if f.init} for of in (cls, args))
        derived = {"generation_batch_size"}  # by TRL, of `steps_per_generation`, beside which it is refused
        return cls(**{name: getattr(args, name) for name in (ours & given) - derived})


@dataclass
class RegressionAwareSFTConfig(SFTConfig, _JudgeArguments):
    r"""
    Configuration of the [`RegressionAwareSFTTrainer`]. Only the parameters below are its own; all others, and their
    defaults, are those of [`~trl.SFTConfig`].

    Parameters:
        score_labels (`list[str]`, *optional*, defaults to `["1", "2", "3", "4", "5"]`):
            The labels of the scale as they are written.
        score_values (`list[float]`, *optional*):
            Value of each label. If `None`, the labels read as numbers.
        score_prefix (`str`, *optional*, defaults to `"So the overall score is "`):
            The text right before the label. Its last occurrence that a label follows marks the score of a row.
        score_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the score loss: lambda of TRACT, eq. 4. The score loss is a mean over the scores of an optimizer
            step on all processes, on a scale stretched to the width of 1 to 5, so that a weight means the same on
            every scale. With `0.0`, `score_token_in_ce=True` and no dropped row, training is
            [`~trl.SFTTrainer`]'s, number for number.
        ce_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of [`~trl.SFTTrainer`]'s own loss. `0.0` trains on the score loss alone (RAFT).
        score_loss_type (`str`, *optional*, defaults to `"squared_error"`):
            `"squared_error"` (the paper's), `"absolute_error"`, `"huber"`, `"wasserstein"`
            (with `renormalize_scores=True`), `"crps"` or `"soft_ce"`. Formulas are in [`tract_trainer.losses`].
        renormalize_scores (`bool`, *optional*, defaults to `False`):
            Whether the distribution over the scale is divided by its sum, in training and by the judge. The paper
            takes the probabilities of the whole vocabulary as they are.
        score_token_in_ce (`bool`, *optional*, defaults to `True`):
            Whether the score token counts in the cross-entropy, as in eq. 4. `False` is what the released TRACT code
            does; then, unless `renormalize_scores=True`, nothing keeps the probability on the scale: a small model can
            write 3 as "0.6 on the token 5, the rest elsewhere", and its decoded score means nothing.
        missing_score (`str`, *optional*, defaults to `"error"`):
            What to do with rows whose score cannot be found or used: `"error"`, `"drop"` them, or `"keep"` them for
            the cross-entropy alone. They are counted and logged, but for a stream's, which are not known beforehand.
        chat_template_kwargs (`dict` or JSON `str`, *optional*):
            Further arguments of the chat template, e.g. `{"enable_thinking": False}`, in training and for the judge. A
            dataset's own column `chat_template_kwargs` takes precedence.
        prompt_template (`str`, *optional*):
            Jinja template that records are rendered with, or the file of one: by [`Judge`], `training_rows` and the
            command line. It is saved in `judge_config.json`. If `None`, the built-in one. The trainer itself reads the
            dataset's own prompts.
    """

    score_labels: list[str] = field(
        default_factory=lambda: ["1", "2", "3", "4", "5"],
        metadata={"help": "Labels of the scale as written. --scale 1:10 and --scale 1:5:0.5 are short for numbers."},
    )
    score_values: list[float] | None = field(
        default=None, metadata={"help": "Value of each label. Defaults to the labels read as numbers."}
    )
    score_prefix: str = field(
        default=DEFAULT_PREFIX,
        metadata={"help": "Text right before the label; its last occurrence in a row marks the score."},
    )
    score_loss_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the score loss (lambda of TRACT, eq. 4), on a scale stretched to 1 to 5."},
    )
    ce_loss_weight: float = field(
        default=1.0, metadata={"help": "Weight of SFTTrainer's own loss. 0.0 trains on the score loss alone (RAFT)."}
    )
    score_loss_type: str = field(
        default="squared_error",
        metadata={"help": "Loss on the distribution over the scale.", "choices": list(SCORE_LOSSES)},
    )
    renormalize_scores: bool = field(
        default=False, metadata={"help": "Divide the distribution over the scale by its sum, in training and judging."}
    )
    score_token_in_ce: bool = field(
        default=True,
        metadata={
            "help": "Count the score token in the cross-entropy (eq. 4). False is what the released TRACT code does; "
            "without `renormalize_scores`, nothing then keeps the probability on the scale."
        },
    )
    missing_score: str = field(
        default="error",
        metadata={
            "help": "Rows without a usable score: refuse, drop, or keep them for the cross-entropy alone.",
            "choices": ["error", "drop", "keep"],
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further arguments of the chat template as JSON, in training and judging, e.g. "
            '{"enable_thinking": false}. A column of that name takes precedence.'
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template the judge renders records with, or its file. Defaults to the built-in one."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.score_labels = list(self.scale.labels)  # as text: YAML reads [1, 2] as integers
        self._check_choice("score_loss_type", list(SCORE_LOSSES))
        self._check_choice("missing_score", ["error", "drop", "keep"])
        self._check_weight("score_loss_weight")
        self._check_weight("ce_loss_weight")
        if not self.score_prefix:
            raise InputError("score_prefix is empty. Give the text right before the score, e.g. 'Score: '.")
        example = '{"enable_thinking": false}'
        self.chat_template_kwargs = json_object("chat_template_kwargs", self.chat_template_kwargs, example)
        if self.prompt_template is not None:
            self.prompt_template = template_text(self.prompt_template)
        if self.score_loss_weight == 0 and self.ce_loss_weight == 0:
            raise InputError("score_loss_weight and ce_loss_weight are both 0, so there is nothing to train on.")
        if self.score_loss_type == "wasserstein" and not self.renormalize_scores:
            raise InputError(
                "score_loss_type='wasserstein' pushes probability off the scale, where it costs nothing. Set "
                "renormalize_scores=True."
            )

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """`chat_template_kwargs` as a mapping."""
        return self.chat_template_kwargs if isinstance(self.chat_template_kwargs, dict) else {}

    @property
    def scale(self) -> ScoreScale:
        """The scale of `score_labels` and `score_values`."""
        return ScoreScale(self.score_labels, self.score_values)

    def judge_config(self, conversational: bool, **kwargs: Any) -> JudgeConfig:
        """The config of a judge trained with these arguments."""
        return JudgeConfig(
            score_labels=list(self.scale.labels),
            score_values=list(self.scale.values),
            score_prefix=self.score_prefix,
            renormalize_scores=self.renormalize_scores,
            conversational=conversational,
            prompt_template=self.prompt_template or DEFAULT_TEMPLATE,
            **kwargs,
        )


@dataclass
class RegressionAwareGRPOConfig(GRPOConfig, _JudgeArguments):
    r"""
    Configuration of the [`RegressionAwareGRPOTrainer`]. Only the parameters below are its own; all others, and their
    defaults, are those of [`~trl.GRPOConfig`]. Scale, prefix and template are the judge's, see [`JudgeConfig`].

    Parameters:
        score_loss_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the score loss on the sampled rationales: beta of REAL, the second part of its gradient. `1.0` is
            the exact ratio of the two parts, `0.0` trains on the reward alone. [`~trl.GRPOConfig`]'s own `beta` is the
            weight of the KL divergence.
        score_likelihood_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the log-probability of the gold label in the reward, and in the score loss: lambda of REAL. Of a
            gold score between two labels, both count, in proportion to their nearness.
        score_loss_type (`str`, *optional*, defaults to `"squared_error"`):
            The loss whose negative is the reward: `"squared_error"` (the paper's), `"crps"`, which rewards the whole
            distribution, or another of [`tract_trainer.losses`].
        advantage_clip (`float`, *optional*, defaults to `1.0`):
            Largest absolute advantage. `None` leaves it as it is.
    """

    score_loss_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the score loss on sampled rationales (beta of REAL). 0.0: the reward alone."},
    )
    score_likelihood_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the gold label's log-probability in reward and score loss (lambda of REAL)."},
    )
    score_loss_type: str = field(
        default="squared_error", metadata={"help": "Loss whose negative is the reward.", "choices": list(SCORE_LOSSES)}
    )
    advantage_clip: float | None = field(
        default=1.0, metadata={"help": "Largest absolute advantage. None leaves it as it is."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("score_loss_type", list(SCORE_LOSSES))
        self._check_weight("score_loss_weight")
        self._check_weight("score_likelihood_weight")
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be above 0, got {self.temperature}: the rationales of a prompt would all be alike."
            )
        if self.chat_template_kwargs:
            raise InputError(
                f"chat_template_kwargs={self.chat_template_kwargs!r} would not be used: a judge is asked with those in "
                "its judge_config.json. Leave them out."
            )
        if self.advantage_clip is not None and not self.advantage_clip > 0:
            raise InputError(f"advantage_clip must be above 0, or None, got {self.advantage_clip}.")
        if self.score_loss_weight and self.loss_type not in TOKEN_MEANS:
            raise InputError(
                f"loss_type={self.loss_type!r} does not divide by the number of tokens in a step, as the score loss "
                f"is divided. Use one of {list(TOKEN_MEANS)}, or score_loss_weight=0."
            )
