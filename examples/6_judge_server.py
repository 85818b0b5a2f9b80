# /// script
# requires-python = ">=3.11"
# dependencies = ["tract-trainer[server]"]
# ///
"""Step 6: judge many records on a server, and compare two responses.

    vllm serve runs/example/stage2 --served-model-name judge
    python examples/6_judge_server.py --base_url http://localhost:8000/v1

Several addresses share the requests. Serve an adapter with its base model: `--enable-lora --lora-modules judge=PATH`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from trl import TrlParser

from tract_trainer import Judge
from tract_trainer.data.reading import read_rows


@dataclass
class ServerArguments:
    judge: str = field(default="runs/example/stage2", metadata={"help": "The judge, from step 4, for its tokenizer."})
    base_url: list[str] = field(
        default_factory=lambda: ["http://localhost:8000/v1"], metadata={"help": "Servers that run this judge."}
    )
    data: str = field(default="runs/example/held_out.jsonl", metadata={"help": "Records to judge, from step 1."})
    num_cots: int = field(default=5, metadata={"help": "Rationales per record; their scores are averaged."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Maximum tokens per rationale, including the score."})


def main(argv: Sequence[str] | None = None) -> None:
    (args,) = TrlParser(ServerArguments).parse_args_and_config(argv)
    records = read_rows(args.data)
    judge = Judge.from_pretrained(args.judge, engine="server", model_kwargs={"base_url": args.base_url})
    settings = {"max_new_tokens": args.max_new_tokens, "progress": False}
    for record, judgment in zip(records, judge.stream(records, args.num_cots, **settings), strict=True):
        said = judgment.reason or f"{judgment.score:.2f} (std {judgment.std:.2f})"
        print(f"gold {record['score']:g}, judged {said}")

    asked = {"instruction": "Name a prime number above 6.", "rubric": "Is the answer correct and justified?"}
    responses = ("7, since nothing but 1 and 7 divides it.", "8")
    found = judge.compare(*({**asked, "response": response} for response in responses), args.num_cots, **settings)
    print(f"{responses[0]!r} wins with probability {found.win:.2f}, ties {found.tie:.2f}, loses {found.loss:.2f}.")


if __name__ == "__main__":
    main()
