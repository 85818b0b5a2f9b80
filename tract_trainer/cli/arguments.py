"""The arguments of the commands that are not TRL's: dataclasses for TRL's parser, so YAML files work too."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tract_trainer.data.benchmarks import BENCHMARKS
from tract_trainer.data.reading import read_rubric
from tract_trainer.engines.base import ENGINES, Sampling
from tract_trainer.evaluation.methods import METHODS
from tract_trainer.scale import ScoreScale


def json_object(name: str, given: Any, example: str) -> dict[str, Any] | None:
    """A mapping, given as such in a YAML file or as JSON; `None` where it is not given."""
    found = given
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(given) if isinstance(given, str) else given
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object such as {example}, got {given!r}.")
    return found


@dataclass
class RecordFormat:
    """How the records at hand become the records that tract reads."""

    _argument_group_name = "data"

    columns: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'New names of columns by their old ones, as JSON, e.g. \'{"human": "score"}\'.'}
    )
    rubric: str | None = field(
        default=None,
        metadata={"help": "One rubric for all records: text, or a file; a .json file describes each score."},
    )

    def __post_init__(self) -> None:
        given, example = self.columns, '{"human": "score"}'
        self.columns = json_object("columns", given, example)
        if not all(isinstance(name, str) for name in (self.columns or {}).values()):
            raise ValueError(f"columns must give names by names, e.g. {example}, got {given!r}.")

    @property
    def format(self) -> dict[str, Any]:
        """Arguments of [`~tract_trainer.data.reading.read_rows`]."""
        return {"columns": self.columns, "rubric": self.rubric and read_rubric(self.rubric)}


@dataclass
class DataArguments(RecordFormat):
    """Where the data is."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Records or TRL rows: a .json, .jsonl, .csv or .parquet file, a folder, or a Hub data set. Records "
            "have `instruction`, `response` and `rubric` (or a ready `prompt`), `score`, and perhaps `rationale`; or "
            "are in the Prometheus format."
        },
    )
    split: str = field(default="train", metadata={"help": "Split of a folder or Hub data set."})
    max_records: int | None = field(default=None, metadata={"help": "Use only the first N records."})


@dataclass
class TrainingDataArguments(DataArguments):
    """Where the data is, with the data to evaluate on."""

    eval_data: str | None = field(default=None, metadata={"help": "Held-out records to evaluate on, like `data`."})


@dataclass
class SamplingArguments:
    """How rationales are drawn."""

    _argument_group_name = "rationales"

    num_cots: int = field(
        default=1,
        metadata={"help": "Rationales per record. 0 reads the score right after the prompt (judge, evaluate)."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 decodes greedily."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus sampling: probability mass kept at each step."})
    repetition_penalty: float = field(default=1.03, metadata={"help": "Penalty on tokens that occurred; 1 is none."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Maximum tokens per rationale, including the score."})
    batch_size: int | None = field(
        default=None, metadata={"help": "Rationales generated together; 16 by default, and 512 with vLLM."}
    )

    def __post_init__(self) -> None:
        Sampling(**self.sampling)  # refuses what is out of range before anything is loaded

    @property
    def sampling(self) -> dict[str, Any]:
        names = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")
        return {name: getattr(self, name) for name in names}


@dataclass
class EngineArguments:
    """What runs a judge."""

    _argument_group_name = "engine"

    engine: str = field(
        default="transformers",
        metadata={"help": "What runs the judge: in this process, or a running server.", "choices": list(ENGINES)},
    )
    model_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Settings of the engine as JSON, e.g. \'{"dtype": "bfloat16"}\'; see Judge.from_pretrained.'},
    )

    def __post_init__(self) -> None:
        self.model_kwargs = json_object("model_kwargs", self.model_kwargs, '{"dtype": "bfloat16"}')
        if "revision" in self.engine_settings:
            raise ValueError("model_kwargs must not hold a revision. Give it as --revision.")

    @property
    def engine_settings(self) -> dict[str, Any]:
        return self.model_kwargs if isinstance(self.model_kwargs, dict) else {}


@dataclass
class JudgeArguments(EngineArguments):
    """The judge."""

    _argument_group_name = "judge"

    model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub repository of a judge, or of an instruct model with --score_labels."},
    )
    revision: str | None = field(default=None, metadata={"help": "Hub revision of the model."})
    base_url: list[str] | None = field(
        default=None, metadata={"help": "Servers for --engine server, e.g. http://localhost:8000/v1."}
    )
    score_labels: list[str] | None = field(
        default=None,
        metadata={"help": "Scale of a model without a judge_config.json, e.g. 1 2 3 4 5. --scale 1:5 is short for it."},
    )
    score_values: list[float] | None = field(
        default=None, metadata={"help": "Value of each of the score_labels. Defaults to the labels read as numbers."}
    )
    score_prefix: str | None = field(default=None, metadata={"help": "Text before the score, with --score_labels."})
    prompt_template: str | None = field(
        default=None, metadata={"help": "Jinja template that renders a record, or its file, with --score_labels."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Further arguments of the chat template as JSON, e.g. '{\"enable_thinking\": false}'."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of all draws."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chat_template_kwargs = json_object(
            "chat_template_kwargs", self.chat_template_kwargs, '{"enable_thinking": false}'
        )
        if (self.engine == "server") != (self.base_url is not None):
            raise ValueError("--engine server and --base_url http://HOST:PORT/v1 belong together.")
        for url in [self.base_url] if isinstance(self.base_url, str) else self.base_url or []:
            _check_url(url)
        if self.score_values is not None and self.score_labels is None:
            raise ValueError("score_values are the values of score_labels. Give --score_labels, too.")

    @property
    def engine_settings(self) -> dict[str, Any]:
        given = super().engine_settings
        return given if self.base_url is None else {"base_url": self.base_url, **given}

    @property
    def asked(self) -> dict[str, Any]:
        """How a model without a `judge_config.json` is asked: arguments of [`Judge.from_pretrained`]."""
        scale = None if self.score_labels is None else ScoreScale(self.score_labels, self.score_values)
        names = ("score_prefix", "prompt_template", "chat_template_kwargs")
        return {"scale": scale, **{name: getattr(self, name) for name in names}}


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets that are not closed
        fits = False
    if not fits:
        raise ValueError(f"base_url must be an address such as http://localhost:8000/v1, got {url!r}.")


@dataclass
class AskArguments(JudgeArguments):
    """The judge, and how it treats a rationale without a score."""

    unfinished: str = field(
        default="unscored",
        metadata={
            "help": "Rationales without a score: leave the record unscored, or force a score where they end.",
            "choices": ["unscored", "force"],
        },
    )


@dataclass
class OutputArguments:
    """What may be replaced."""

    _argument_group_name = "output"

    overwrite: bool = field(
        default=False, metadata={"help": "Start over, and replace files at the output whoever wrote them."}
    )


@dataclass
class CotArguments:
    """How rationales without a score are treated in the stage-2 data."""

    max_retries: int = field(default=2, metadata={"help": "Further draws for a rationale without a score."})
    unfinished: str = field(
        default="drop",
        metadata={
            "help": "Rationales still without a score: drop them, or force the gold score onto them.",
            "choices": ["drop", "force"],
        },
    )


@dataclass
class GenerateArguments(OutputArguments, CotArguments, JudgeArguments):
    """The stage-1 judge, and where its rationales go."""

    output_dir: str = field(default="cots", metadata={"help": "Folder of the stage-2 data. A stopped call resumes."})


@dataclass
class RecordArguments(OutputArguments, AskArguments):
    """The judge, and the records to judge."""

    record: str | None = field(default=None, metadata={"help": "JSON file with one record; its judgment is printed."})
    input: str | None = field(default=None, metadata={"help": "Records to judge: a file, folder or Hub data set."})
    output: str | None = field(
        default=None,
        metadata={"help": "JSONL file for the judgments of `input`. A stopped call resumes from OUTPUT.unfinished."},
    )


@dataclass
class EvaluateArguments(AskArguments):
    """The judge, and what it is compared with."""

    benchmark: list[str] | None = field(
        default=None, metadata={"help": "Names of benchmarks.", "choices": list(BENCHMARKS)}
    )
    path: str | None = field(default=None, metadata={"help": "File of the benchmark, or folder of one or several."})
    output: str = field(
        default="evaluation",
        metadata={"help": "Folder of the results, or, for one benchmark, a .json file. Tables and pictures go beside."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace other files at the output and beside it."})


@dataclass
class CompareArguments:
    """How two results are compared. They stand on the command line without a name."""

    _argument_group_name = "comparison"

    method: str = field(default="RAIL", metadata={"help": "How scores are read.", "choices": list(METHODS)})
    output: str = field(default="comparison", metadata={"help": "Folder of the table and the picture."})
    overwrite: bool = field(default=False, metadata={"help": "Replace other files in that folder with these names."})


@dataclass
class ReportArguments:
    """Where the page goes."""

    _argument_group_name = "page"

    output: str | None = field(
        default=None, metadata={"help": "HTML file; by default report.html in the folder, or beside the result."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace another file at the output."})


@dataclass
class InspectArguments:
    """How much is shown."""

    _argument_group_name = "shown"

    rows: int = field(default=3, metadata={"help": "Rows shown in colour; the counts are of all rows."})


@dataclass
class DemoArguments:
    """The demo."""

    _argument_group_name = "demo"

    output_dir: str = field(default="demo", metadata={"help": "Folder for the models, rationales, table, pictures."})
    seed: int = field(default=42, metadata={"help": "Seed of the task, the model and all draws."})


@dataclass
class RunArguments(OutputArguments, CotArguments, EngineArguments):
    """What `tract run` adds to the arguments of training and of drawing rationales."""

    _argument_group_name = "run"

    engine: str = field(
        default="transformers",
        metadata={"help": "What writes the rationales and the judgments, in this process: transformers or vllm."},
    )
    baseline: bool = field(
        default=False, metadata={"help": "Evaluate the seed model, too, before it is trained (zero-shot)."}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the records that is held out, without `eval_data`."}
    )
    max_cot_records: int | None = field(
        default=None, metadata={"help": "Generate rationales for only the first N training rows."}
    )
    max_eval_records: int | None = field(default=None, metadata={"help": "Evaluate on only the first N records."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(
                f"tract run loads each stage's judge itself: use engine transformers or vllm, not {self.engine!r}. To "
                "write the rationales with servers, run tract sft, tract generate and tract sft again."
            )
