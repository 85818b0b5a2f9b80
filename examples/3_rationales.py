# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""Step 3: the stage-1 judge writes its own rationale for every training row. The gold score replaces its score.

    python examples/3_rationales.py --config examples/rationales.yaml

This step takes longest. On a GPU, `--engine vllm` is faster (`pip install -e '.[vllm]'`). Run it again to resume.
Writes `train.parquet` and `report.json` to the output folder.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from datasets import Dataset
from trl import TrlParser

from tract_trainer import generate_cot_dataset


@dataclass
class RationaleArguments:
    model: str = field(default="runs/example/stage1", metadata={"help": "The stage-1 judge, from step 2."})
    rows: str = field(default="runs/example/rows.parquet", metadata={"help": "Training rows, from step 1."})
    output_dir: str = field(default="runs/example/cots", metadata={"help": "Folder of the rationales."})
    engine: str = field(default="transformers", metadata={"help": "Engine that runs the judge: transformers or vllm."})
    temperature: float = field(default=1.0, metadata={"help": "0 takes the most likely token at each step."})
    top_p: float = field(default=0.9, metadata={"help": "Nucleus sampling: probability mass kept at each step."})
    repetition_penalty: float = field(default=1.03, metadata={"help": "Penalty on tokens already in the text."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Maximum tokens per rationale, including the score."})
    num_cots: int = field(default=1, metadata={"help": "Rationales per row."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(RationaleArguments).parse_args_and_config(argv)
    settings = asdict(args)
    rows = Dataset.from_parquet(settings.pop("rows"))
    own = generate_cot_dataset(dataset=rows, **settings)
    for name, text in (
        ("Annotated rationale", rows[0]["completion"]),
        ("Own rationale", own[0]["completion"]),
    ):
        print(f"{name}:\n{text if isinstance(text, str) else text[-1]['content']}\n")


if __name__ == "__main__":
    main()
