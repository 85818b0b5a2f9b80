# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer"]
# ///
"""The stage-1 judge writes its own rationale for every training row; its score is thrown away, the gold one attached.

    python examples/3_rationales.py --config examples/rationales.yaml

This is the long step: `--engine vllm` (with `pip install 'tract-trainer[vllm]'`) is faster on a GPU. Killed and called
again, it goes on where it stopped. Leaves `train.parquet` and `report.json` in the folder of the rationales.
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
    engine: str = field(default="transformers", metadata={"help": "What runs the judge: transformers or vllm."})
    temperature: float = field(default=1.0, metadata={"help": "0 takes the most likely token at each step."})
    top_p: float = field(default=0.9, metadata={"help": "Probability mass that is kept at each step."})
    repetition_penalty: float = field(default=1.03, metadata={"help": "Penalty on tokens that stand there already."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Most tokens of a rationale with its score."})
    num_cots: int = field(default=1, metadata={"help": "Rationales per row."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(RationaleArguments).parse_args_and_config(argv)
    settings = asdict(args)
    rows = Dataset.from_parquet(settings.pop("rows"))
    own = generate_cot_dataset(dataset=rows, **settings)
    for name, text in (
        ("An annotator wrote", rows[0]["completion"]),
        ("The judge itself writes", own[0]["completion"]),
    ):
        print(f"{name}:\n{text if isinstance(text, str) else text[-1]['content']}\n")


if __name__ == "__main__":
    main()
