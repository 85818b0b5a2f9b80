"""Everything here that needs a GPU, in parts of at most ten minutes each.

    make gpu                                        # the parts that are not finished; again after an interruption
    python benchmarks/gpu.py --parts train_full     # one part, anew
    python benchmarks/gpu.py --model MODEL --data mt_bench_eval.json    # and the trainers compared on real records

Each part's output is kept in `benchmarks/results/gpu`, and `docs/gpu.md` is written from it. A part that takes over ten
minutes is stopped; `real_model` then goes on from there at the next call.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/gpu", ROOT / "docs/gpu.md"
LIMIT = 600  # seconds of a part
LINES = 60  # last ones of an output that stand on the page


class Part(NamedTuple):
    """What a command shows, and the command's arguments for `python`."""

    title: str
    command: str


PARTS = {
    "tests": Part("Tests that need a GPU", "-m pytest -m gpu -q"),
    "train_lora": Part(
        "A training step of a 7B model, LoRA",
        "benchmarks/train_step.py --preset 7b --pairs 10 --warmup 2 --repeats 1",
    ),
    "train_full": Part(  # two trainers with all 32 layers do not fit into one process
        "A training step of 8 layers of a 7B model, all weights",
        "benchmarks/train_step.py --preset 7b --layers 8 --no-lora --rows 1 --pairs 10 --warmup 2 --repeats 1",
    ),
    "reinforce": Part(
        "A step of reinforcement learning of a 7B model, but for sampling",
        "benchmarks/train_step.py --preset 7b --trainers grpo real --rows 8 --pairs 10 --warmup 2 --repeats 1",
    ),
    "score": Part("Judging with a 7B model", "benchmarks/score.py --preset 7b --rounds 3"),
    "vllm_tests": Part("The engines on vLLM", "-m pytest tests/engines/test_vllm.py -q"),
    "vllm_reinforce": Part("Reinforcement learning on vLLM", "-m pytest tests/training/test_grpo_vllm.py -q"),
    "vllm_score": Part("Judging with a 7B model on vLLM", "benchmarks/score.py --preset 7b --engine vllm --rounds 3"),
    "real_model": Part(
        "The trainers compared on real records", "benchmarks/real_model.py {model} {data} --preset large"
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What a part printed, its exit status (`None` if it was stopped), where and how long it ran."""

    output: str
    status: int | None
    device: str
    seconds: float

    @property
    def finished(self) -> bool:
        return self.status == 0


def run(part: Part, args: argparse.Namespace) -> Outcome:
    words = [word.format(model=args.model, data=args.data) for word in part.command.split()]
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        (output, _), status = process.communicate(), None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Outcome(output, status, device, time.monotonic() - start)


def kept(name: str) -> Outcome | None:
    path = RESULTS / f"{name}.json"
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None


def page() -> str:
    """The page of all parts. It says which have not run."""
    parts = ["# On a GPU\n", "Written by `make gpu`.\n"]
    for name, part in PARTS.items():
        outcome = kept(name)
        command = part.command.format(model="MODEL", data="mt_bench_eval.json")
        parts.append(f"## {part.title}\n\n    python {command}\n")
        if outcome is None:
            parts.append("Not measured yet.\n")
            continue
        end = {None: f"stopped after {LIMIT} seconds", 0: "finished"}.get(outcome.status, f"exit {outcome.status}")
        parts.append(f"{outcome.device}, {end}, {outcome.seconds:.0f} s.\n")
        parts.append("\n".join(["```text", *outcome.output.splitlines()[-LINES:], "```", ""]))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="run these anew; by default, all unfinished")
    parser.add_argument("--model", help="folder or Hub name of a chat model")
    parser.add_argument("--data", help="file of the Prometheus benchmarks")
    parser.add_argument("--page", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    names = args.parts or [name for name in PARTS if not ((found := kept(name)) and found.finished)]
    if not (args.model and args.data):
        names = [name for name in names if name != "real_model"]
    if not args.page and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here (torch.cuda.is_available() is False).")
    for name in [] if args.page else names:
        outcome = run(PARTS[name], args)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(asdict(outcome), indent=1))
        print(f"{name}: exit {outcome.status}, {outcome.seconds:.0f} s", flush=True)
        PAGE.write_text(page())
    if args.page:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
