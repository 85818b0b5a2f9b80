"""The settings of the commands that are not TRL's, as dataclasses for TRL's parser."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tract_trainer.data.benchmarks import BENCHMARKS
from tract_trainer.data.reading import Rows, read_rows, read_rubric
from tract_trainer.engines.base import ENGINES, Sampling
from tract_trainer.errors import InputError, without_password
from tract_trainer.evaluation.methods import METHODS
from tract_trainer.scale import ScoreScale
from tract_trainer.training.config import json_object

JsonObject: TypeAlias = dict[str, Any] | str | None


def setting(default: Any, help: str, **more: Any) -> Any:
    """A field of a command's settings, with its help. `more` is metadata, too, such as `choices`."""
    return field(default=default, metadata={"help": help, **more})


@dataclass
class RecordFormat:
    """How the user's columns become those of records."""

    _argument_group_name = "data"

    columns: JsonObject = setting(None, 'New column names as JSON {old: new}, e.g. \'{"human": "score"}\'.')
    rubric: str | None = setting(None, "Rubric of all records: text, or a file; a .json file describes each score.")

    def __post_init__(self) -> None:
        given, example = self.columns, '{"human": "score"}'
        self.columns = json_object("columns", given, example)
        if not all(isinstance(name, str) for name in (self.columns or {}).values()):
            raise ValueError(f"columns must map old names to new ones, e.g. {example}, got {given!r}.")

    @property
    def format(self) -> dict[str, Any]:
        """Arguments of [`~tract_trainer.data.reading.read_rows`]."""
        return {"columns": self.columns, "rubric": self.rubric and read_rubric(self.rubric)}


@dataclass
class DataArguments(RecordFormat):
    data: str | None = setting(
        None,
        "Records or TRL rows: a .json, .jsonl, .csv or .parquet file, a folder, or a Hub data set. Records "
        "have `instruction`, `response` and `rubric` (or a ready `prompt`), `score`, and perhaps `rationale`; or "
        "are in the Prometheus format.",
    )
    split: str = setting("train", "Split of a folder or Hub data set.")
    max_records: int | None = setting(None, "Use only the first N records.")

    def rows(self) -> Rows:
        if self.data is None:
            raise InputError("--data is missing: a .json or .jsonl file of records, a folder, or a Hub data set.")
        rows = read_rows(self.data, self.split, **self.format)
        if self.max_records is None:
            return rows
        return rows[: self.max_records] if isinstance(rows, list) else rows.take(self.max_records)


@dataclass
class TrainingDataArguments(DataArguments):
    eval_data: str | None = setting(None, "Held-out records to evaluate on, like `data`.")

    def eval_rows(self) -> "Rows | None":
        return None if self.eval_data is None else read_rows(self.eval_data, **self.format)


@dataclass
class SamplingArguments:
    """How rationales are sampled."""

    _argument_group_name = "rationales"

    num_cots: int = setting(1, "Rationales per record. In judge and evaluate, 0 reads the score after the prompt.")
    temperature: float = setting(1.0, "Sampling temperature; 0 decodes greedily.")
    top_p: float = setting(0.9, "Nucleus sampling: probability mass kept at each step.")
    repetition_penalty: float = setting(1.03, "Penalty on tokens that occurred; 1 is none.")
    max_new_tokens: int = setting(1024, "Maximum tokens per rationale, including the score.")
    batch_size: int | None = setting(None, "Rationales generated together; 16 by default, and 512 with vLLM.")

    def __post_init__(self) -> None:
        Sampling(**self.sampling)  # refuses what is out of range before anything is loaded

    @property
    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")
        return {name: getattr(self, name) for name in names}


@dataclass
class OutputArguments:
    _argument_group_name = "output"

    overwrite: bool = setting(False, "Start over, and replace files at the output, whoever wrote them.")


@dataclass
class EngineArguments(OutputArguments):
    """What runs a judge."""

    engine: str = setting("transformers", "What runs the judge: this process, or a server.", choices=list(ENGINES))
    model_kwargs: JsonObject = setting(
        None, 'Settings of the engine as JSON, e.g. \'{"dtype": "bfloat16"}\'; see Judge.from_pretrained.'
    )

    def __post_init__(self) -> None:
        self.model_kwargs = json_object("model_kwargs", self.model_kwargs, '{"dtype": "bfloat16"}') or {}
        if "revision" in self.model_kwargs:
            raise ValueError("model_kwargs must not hold a revision. Give it as --revision.")


@dataclass
class JudgeArguments(EngineArguments):
    """The judge, and what becomes of rationales without a score."""

    _argument_group_name = "judge"

    model: str | None = setting(None, "Folder or Hub repository of a judge, or of a model with --score_labels.")
    revision: str | None = setting(None, "Hub revision of the model.")
    base_url: list[str] | None = setting(None, "Servers for --engine server, e.g. http://localhost:8000/v1.")
    score_labels: list[str] | None = setting(
        None, "Scale of a model without a judge_config.json, e.g. 1 2 3 4 5. --scale 1:5 is short for it."
    )
    score_values: list[float] | None = setting(None, "Value of each label. Defaults to the labels read as numbers.")
    score_prefix: str | None = setting(None, "Text before the score, with --score_labels.")
    prompt_template: str | None = setting(None, "Jinja template of records, or its file, with --score_labels.")
    chat_template_kwargs: JsonObject = setting(
        None, "Further arguments of the chat template as JSON, e.g. '{\"enable_thinking\": false}'."
    )
    seed: int = setting(42, "Seed for sampling rationales.")
    unfinished: str = setting(
        "unscored",
        "Rationales without a score: leave the record unscored, or force a score where they end.",
        choices=["unscored", "force"],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given, example = self.chat_template_kwargs, '{"enable_thinking": false}'
        self.chat_template_kwargs = json_object("chat_template_kwargs", given, example)
        if (self.engine == "server") != (self.base_url is not None):
            raise ValueError("--engine server and --base_url http://HOST:PORT/v1 belong together.")
        for url in self.base_url or ():
            if not _is_address(url):
                shown = without_password(url)
                raise ValueError(f"base_url must be an address such as http://localhost:8000/v1, got {shown!r}.")
        if self.score_values is not None and self.score_labels is None:
            raise ValueError("score_values are the values of score_labels. Give --score_labels, too.")

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of [`Judge.from_pretrained`]."""
        names = ("engine", "revision", "score_prefix", "prompt_template", "chat_template_kwargs")
        servers = {} if self.base_url is None else {"base_url": self.base_url}
        return {
            **{name: getattr(self, name) for name in names},
            "model_kwargs": {**servers, **self.model_kwargs},  # type: ignore[dict-item]  # a mapping by now
            "scale": None if self.score_labels is None else ScoreScale(self.score_labels, self.score_values),
        }


def _is_address(url: str) -> bool:
    with contextlib.suppress(ValueError):  # a port that is no number, brackets that are not closed
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    return False


@dataclass
class CotArguments(EngineArguments):
    """What becomes of rationales without a score in the stage-2 data."""

    max_retries: int = setting(2, "Further draws for a rationale without a score.")
    unfinished: str = setting(
        "drop",
        "Rationales still without a score: drop them, or force the gold score onto them.",
        choices=["drop", "force"],
    )


@dataclass
class GenerateArguments(CotArguments, JudgeArguments):
    output_dir: str = setting("cots", "Folder of the stage-2 data. A stopped call resumes.")


@dataclass
class RecordArguments(JudgeArguments):
    record: str | None = setting(None, "JSON file with one record; its judgment is printed.")
    input: str | None = setting(None, "Records to judge: a file, folder or Hub data set.")
    output: str | None = setting(None, "JSONL file for the judgments. A stopped call resumes from OUTPUT.unfinished.")
    calibrated: bool = setting(False, "Map each score as tract calibrate has fitted it; `probs` stay as they are.")
    max_std: float | None = setting(
        None, "Add `needs_review` to each judgment: true without a score, or with a higher std."
    )


@dataclass
class EvaluateArguments(JudgeArguments):
    benchmark: list[str] | None = setting(None, "Public benchmarks, instead of --data.", choices=list(BENCHMARKS))
    path: str | None = setting(None, "File of the benchmark, or folder of one or several.")
    output: str = setting(
        "evaluation", "Folder for the results, or, for one benchmark, a .json file. Tables and pictures go beside it."
    )
    by: list[str] | None = setting(None, "Columns to break the figures down by, e.g. the model that responded.")
    fail_under: list[str] | None = setting(
        None, "Exit with code 1 if a figure of RAIL is worse than its limit, e.g. pearson=0.6 rmse=0.9, for CI."
    )
    strict: bool = setting(False, "Compare the worse end of the 95 %% interval with the limits of --fail_under.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strict and not self.fail_under:
            raise ValueError("--strict is about the limits of --fail_under. Give some, e.g. --fail_under pearson=0.6.")


@dataclass
class AgreeArguments(OutputArguments):
    _argument_group_name = "agreement"

    gold: str = setting("score", "Column of the gold scores: numbers, or lists of several raters' scores.")
    prediction: list[str] | None = setting(None, "Columns of predicted scores. The first is compared with the others.")
    by: list[str] | None = setting(None, "Columns to break the figures down by.")
    score_labels: list[str] | None = setting(
        None, "Scale of the gold scores, e.g. 1 2 3 4 5, for figures of rounded scores. --scale 1:5 is short for it."
    )
    output: str | None = setting(
        None,
        "Folder for a result of each column and the comparisons, or, for one column, a .json file. "
        "Tables and pictures go beside them.",
    )


@dataclass
class CompareArguments(OutputArguments):
    _argument_group_name = "comparison"

    method: str = setting("RAIL", "How scores are read.", choices=list(METHODS))
    output: str = setting("comparison", "Folder for the table and the picture.")


@dataclass
class CalibrateArguments:
    _argument_group_name = "calibration"

    model: str | None = setting(None, "Folder of the judge that made the result. Its judge_config.json gets the map.")


@dataclass
class ReportArguments(OutputArguments):
    _argument_group_name = "page"

    output: str | None = setting(None, "HTML file; by default report.html in the folder, or beside the result.")


@dataclass
class InspectArguments:
    _argument_group_name = "shown"

    rows: int = setting(3, "Rows shown in colour; the counts are of all rows.")


@dataclass
class DemoArguments:
    _argument_group_name = "demo"

    output_dir: str = setting("demo", "Folder for models, rationales, tables and pictures.")
    seed: int = setting(42, "Seed for the task, the models and the sampling.")


@dataclass
class RunArguments(CotArguments):
    """What `tract run` adds to the settings of training and sampling."""

    _argument_group_name = "run"

    engine: str = setting(
        "transformers",
        "What runs the judge in this process. To use servers, run tract sft, generate and sft again.",
        choices=["transformers", "vllm"],
    )
    baseline: bool = setting(False, "Also evaluate the seed model before it is trained (zero-shot).")
    eval_fraction: float = setting(0.1, "Share of the records held out for the evaluation, without --eval_data.")
    max_cot_records: int | None = setting(None, "Generate rationales for only the first N training rows.")
    max_eval_records: int | None = setting(None, "Evaluate on only the first N records.")
    grpo: JsonObject = setting(
        None,
        "Train a stage 3 by reinforcement learning, and evaluate it, too: true, or settings of tract grpo "
        "as JSON, e.g. '{\"num_generations\": 16}'. Unless given, its learning rate is a tenth of that of the "
        "other stages, and rationales are sampled with temperature, top_p and max_new_tokens.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        switch: dict[str, dict[str, Any] | None] = {"true": {}, "false": None}
        given = str(self.grpo).lower()
        example, of_run = 'true or {"num_generations": 16}', ("hub_model_id", "output_dir", "push_to_hub")
        self.grpo = switch[given] if given in switch else json_object("grpo", self.grpo, example)
        if fixed := [name for name in (*of_run, "resume_from_checkpoint") if name in (self.grpo or ())]:
            raise ValueError(f"grpo must not hold {', '.join(fixed)}, which tract run sets for all stages.")
