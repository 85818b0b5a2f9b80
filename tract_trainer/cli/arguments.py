"""The arguments of the commands that are not TRL's: dataclasses for its parser, so YAML files work too."""

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from tract_trainer.data.benchmarks import BENCHMARKS
from tract_trainer.engines.base import ENGINES, Sampling
from tract_trainer.evaluation.methods import METHODS


def check_counts(arguments: Any, *names: str) -> None:
    """Raises a ValueError for a number below 1."""
    for name in names:
        count = getattr(arguments, name)
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")


@dataclass
class DataArguments:
    """Where the data is."""

    _argument_group_name = "data"

    data: str | None = field(
        default=None,
        metadata={
            "help": "Records or TRL rows: a .json, .jsonl, .parquet or .csv file, a folder, or a Hub data set. Records "
            "have `instruction`, `response`, `rubric` (or a ready `prompt`), `score` and `rationale`, or are in the "
            "Prometheus format."
        },
    )
    split: str = field(default="train", metadata={"help": "Split of a folder or Hub data set."})
    max_records: int | None = field(default=None, metadata={"help": "Use the first so many records only."})

    def __post_init__(self) -> None:
        check_counts(self, "max_records")


@dataclass
class TrainingDataArguments(DataArguments):
    """Where the data is, with the data to evaluate on."""

    eval_data: str | None = field(default=None, metadata={"help": "Like `data`: held-out records to evaluate on."})


@dataclass
class SamplingArguments:
    """How rationales are drawn."""

    _argument_group_name = "rationales"

    num_cots: int = field(
        default=1, metadata={"help": "Rationales per record; tract evaluate takes 0 as well: the score alone."}
    )
    temperature: float = field(default=1.0, metadata={"help": "0 takes the most likely token at each step."})
    top_p: float = field(default=0.9, metadata={"help": "Probability mass that is kept at each step."})
    repetition_penalty: float = field(default=1.03, metadata={"help": "Penalty on tokens that stand there already."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Most tokens of a rationale with its score."})
    batch_size: int | None = field(
        default=None, metadata={"help": "Rationales generated together; 16 by default, and 512 with vLLM."}
    )

    def __post_init__(self) -> None:
        check_counts(self, "batch_size")
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
        if isinstance(self.model_kwargs, str):
            try:
                self.model_kwargs = json.loads(self.model_kwargs)
            except json.JSONDecodeError as error:
                example = '{"dtype": "bfloat16"}'
                raise ValueError(
                    f"model_kwargs must be JSON, e.g. {example!r}, found {self.model_kwargs!r}."
                ) from error
        if not isinstance(self.model_kwargs, dict | None):
            raise ValueError(f"model_kwargs must be a JSON object, found {self.model_kwargs!r}.")

    @property
    def engine_settings(self) -> dict[str, Any]:
        return self.model_kwargs if isinstance(self.model_kwargs, dict) else {}


@dataclass
class JudgeArguments(EngineArguments):
    """The judge, and what it judges."""

    _argument_group_name = "judge"

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub repository of a judge, with its judge_config.json."}
    )
    base_url: list[str] | None = field(
        default=None, metadata={"help": "Servers for --engine server, e.g. http://localhost:8000/v1."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of all draws."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.engine == "server") != (self.base_url is not None):
            raise ValueError("--engine server and --base_url http://HOST:PORT/v1 belong together.")

    @property
    def engine_settings(self) -> dict[str, Any]:
        given = super().engine_settings
        return given if self.base_url is None else {"base_url": self.base_url, **given}


@dataclass
class AskArguments(JudgeArguments):
    """The judge, and what becomes of a rationale without a score when it judges."""

    unfinished: str = field(
        default="unscored",
        metadata={
            "help": "Rationales that never come to a score: leave unscored, or force: read the score where they end.",
            "choices": ["unscored", "force"],
        },
    )


@dataclass
class CotArguments:
    """What becomes of a rationale without a score when rationales are written."""

    max_retries: int = field(default=2, metadata={"help": "Further draws for a rationale that comes to no score."})
    unfinished: str = field(
        default="drop",
        metadata={
            "help": "Rationales that never come to a score: drop, or close as they are.",
            "choices": ["drop", "force"],
        },
    )


@dataclass
class GenerateArguments(CotArguments, JudgeArguments):
    """The stage-1 judge, and where its rationales go."""

    output_dir: str = field(default="cots", metadata={"help": "Folder of the result and of the work in progress."})


@dataclass
class RecordArguments(AskArguments):
    """The judge, and the records to judge."""

    record: str | None = field(default=None, metadata={"help": "JSON file with one record; its judgment is printed."})
    input: str | None = field(default=None, metadata={"help": ".json or .jsonl file of records."})
    output: str | None = field(
        default=None,
        metadata={"help": "JSONL file for the judgments of `input`; those of a stopped call are in OUTPUT.unfinished."},
    )


@dataclass
class EvaluateArguments(AskArguments):
    """The judge, and what it is compared with."""

    benchmark: list[str] | None = field(
        default=None, metadata={"help": "Names of benchmarks.", "choices": list(BENCHMARKS)}
    )
    path: str | None = field(default=None, metadata={"help": "File of the benchmark, or folder of one or several."})
    columns: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'What columns of `data` are called here, as JSON, e.g. \'{"human": "score"}\'.'},
    )
    output: str = field(
        default="evaluation",
        metadata={"help": "Folder of the results, or, for one benchmark, a .json file. Tables and pictures go beside."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace other files at the output and beside it."})

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.columns
        if isinstance(given, str):
            with contextlib.suppress(ValueError):
                self.columns = json.loads(given)
        if self.columns is not None and not isinstance(self.columns, dict):
            raise ValueError(f'--columns must be a JSON object such as {{"human": "score"}}, got {given!r}.')

    @property
    def renames(self) -> dict[str, Any]:
        return self.columns if isinstance(self.columns, dict) else {}


@dataclass
class CompareArguments:
    """How two results are compared. They stand on the command line without a name."""

    _argument_group_name = "comparison"

    method: str = field(default="RAIL", metadata={"help": "How scores are read.", "choices": list(METHODS)})
    output: str = field(default="comparison", metadata={"help": "Folder of the table and the picture."})


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

    rows: int = field(default=3, metadata={"help": "Rows shown in colour; the counts are of all."})


@dataclass
class DemoArguments:
    """The demo."""

    _argument_group_name = "demo"

    output_dir: str = field(default="demo", metadata={"help": "Folder for the models, rationales, table, pictures."})
    seed: int = field(default=42, metadata={"help": "Seed of the task, the model and all draws."})


@dataclass
class RunArguments(CotArguments, EngineArguments):
    """What `tract run` adds to the arguments of training and of drawing rationales."""

    _argument_group_name = "run"

    engine: str = field(
        default="transformers",
        metadata={"help": "What writes the rationales and the judgments, in this process: transformers or vllm."},
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the records that is held out, where there is no `eval_data`."}
    )
    max_cot_records: int | None = field(
        default=None, metadata={"help": "Write own rationales for the first so many training rows only."}
    )
    max_eval_records: int | None = field(default=None, metadata={"help": "Evaluate on the first so many records."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "max_cot_records", "max_eval_records")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be at least 0, got {self.max_retries}.")
        if self.engine not in ("transformers", "vllm"):
            raise ValueError(
                f"tract run loads each stage's judge itself: use engine transformers or vllm, not {self.engine!r}. To "
                "write the rationales with servers, run tract sft, tract generate and tract sft again."
            )
