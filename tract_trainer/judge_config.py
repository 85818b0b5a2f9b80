"""`judge_config.json`: how a saved judge is asked and how its score is read.

A saved judge is a plain model with this file beside it.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreScale

DEFAULT_PREFIX = "So the overall score is "
DEFAULT_TEMPLATE = """\
You are judging a response to an instruction. Go by the rubric alone.

{% if system_prompt %}
### System prompt
{{ system_prompt }}

{% endif %}
### Instruction
{{ instruction }}

### Response to judge
{{ response }}
{% if reference %}
### Reference response
{{ reference }}
{% endif %}

### Rubric
{% if rubric is mapping -%}
{% for key, text in rubric.items() if text is not none -%}
{{ key }}: {{ text }}
{% endfor %}
{%- else -%}
{{ rubric }}
{% endif %}

Write a short rationale that weighs the response against the rubric. Then end with "{{ prefix }}" and one of \
{{ labels | join(", ") }}.
"""

FILE_NAME = "judge_config.json"
MAX_PREFIX = 1000  # characters

KINDS = {
    "score_labels": list,
    "score_prefix": str,
    "score_separator": str,
    "prompt_template": str,
    "conversational": bool,
    "renormalize_scores": bool,
    "chat_template_kwargs": dict,
    "calibration": dict,
}


@dataclass(frozen=True)
class JudgeConfig:
    """
    How a judge is asked and how its score is read.

    Args:
        score_labels (`list[str]`): labels of the scale.
        score_values (`list[float]`, *optional*): value of each label. If `None`, the labels read as numbers.
        score_prefix (`str`, *optional*, defaults to `"So the overall score is "`): the text right before the label.
        renormalize_scores (`bool`): whether the distribution over the scale is divided by its sum.
        conversational (`bool`): whether a prompt is a user turn of the chat template, or plain text.
        prompt_template (`str`): Jinja template that renders a record into a prompt.
        chat_template_kwargs (`dict`): further arguments of the chat template, as in training.
        score_separator (`str`): the text between a rationale and the prefix, as in the training rows.
        tract_trainer_version (`str`): version that wrote the file.
        calibration (`dict`, *optional*): a map of expected scores, see [`~tract_trainer.evaluation.calibration.fit`].
    """

    score_labels: list[str]
    score_values: list[float] = None  # type: ignore[assignment]  # never None once it is made
    score_prefix: str = DEFAULT_PREFIX
    renormalize_scores: bool = False
    conversational: bool = True
    prompt_template: str = DEFAULT_TEMPLATE
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    score_separator: str = " "
    tract_trainer_version: str = field(default_factory=lambda: version("tract-trainer"))
    calibration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        scale = ScoreScale(self.score_labels, self.score_values)  # labels as text, values as floats, or an error
        object.__setattr__(self, "score_labels", list(scale.labels))
        object.__setattr__(self, "score_values", list(scale.values))
        if len(self.score_prefix) > MAX_PREFIX:
            raise InputError(
                f"score_prefix has {len(self.score_prefix):,} characters. Give the text right before a score, at most "
                f"{MAX_PREFIX:,}."
            )

    @property
    def scale(self) -> ScoreScale:
        return ScoreScale(self.score_labels, self.score_values)

    @property
    def settings(self) -> dict[str, Any]:
        """What the judge's probabilities depend on: all but the version and the calibration."""
        known = asdict(self)
        return {name: known[name] for name in known if name not in ("tract_trainer_version", "calibration")}

    def save(self, folder: str | Path) -> None:
        """Writes `judge_config.json` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        found, temporary = asdict(self), Path(folder) / f"_{FILE_NAME}.tmp"
        if self.calibration is None:  # older versions do not know the key
            del found["calibration"]
        text = json.dumps(found, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(Path(folder) / FILE_NAME)

    @classmethod
    def load(cls, name_or_path: str | Path, revision: str | None = None) -> "JudgeConfig":
        """
        Reads `judge_config.json` from a folder or a Hub repository.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds an unknown or lacks a required key.
        """
        path = Path(name_or_path) / FILE_NAME
        if not path.is_file():
            path = _download(name_or_path, revision)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON: {error}. Train the judge again to have the file written.") from error
        if not isinstance(found, dict):
            raise InputError(f"{path} must hold a JSON object, found {found!r:.80}. Train the judge again.")
        known = {f.name for f in fields(cls)}
        required = {"score_labels", "score_prefix"}
        if unknown := sorted(set(found) - known):
            raise InputError(f"{path} holds unknown keys {unknown}; known are {sorted(known)}. Is tract-trainer older?")
        if missing := sorted(required - set(found)):
            raise InputError(f"{path} lacks {missing}. Add them, or train the judge again to have the file written.")
        for name, kind in KINDS.items():
            if name in found and not isinstance(found[name], kind):
                raise InputError(f"{path}: {name} must be a {kind.__name__}, found {found[name]!r:.80}.")
        return cls(**found)


def _download(name_or_path: str | Path, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    missing = (
        f"{str(name_or_path)!r} holds no {FILE_NAME}, so its scale and prefix are unknown. A judge is a model that "
        "`tract sft`, `run` or `grpo` has trained. To judge with an untrained model, give its scale: "
        "Judge.from_pretrained(..., scale=ScoreScale.integers(1, 5)), or --scale 1:5. To start reinforcement learning "
        'from one, save the file beside it: JudgeConfig(["1", "2", "3", "4", "5"]).save(folder).'
    )
    if Path(name_or_path).is_dir():
        raise FileNotFoundError(missing)
    try:
        return Path(hf_hub_download(str(name_or_path), FILE_NAME, revision=revision))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(f"There is no folder {str(name_or_path)!r}, and the Hub gave none: {error}") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(missing) from error
