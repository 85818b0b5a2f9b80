"""The entry point of `tract`: finds the command, and prints errors.

A user's mistake is one message on stderr and exit code 2; a bug keeps its traceback.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from tract_trainer.errors import InputError, without_passwords

LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "tokenizers", "safetensors")

COMMANDS = {
    "inspect": "show what would be trained on: tokens, scores, rows that would be lost",
    "sft": "train one stage on records or on a TRL dataset, and save the judge",
    "grpo": "train a judge further by reinforcement learning on the error of its expected score",
    "generate": "let a judge write its own rationales for a dataset: the data of stage 2",
    "judge": "judge one record, or a file of records",
    "evaluate": "compare a judge with gold scores: agreement and confidence intervals",
    "agree": "compare scores of any scorer, in columns of a file, with gold scores",
    "calibrate": "fit a map from a judge's expected scores to gold scores, and save it with the judge",
    "compare": "compare two judges on the same records: differences, intervals, p-values",
    "run": "train both stages and evaluate the judge",
    "report": "write one HTML page of a run or a result: metrics, curves, judgments to browse",
    "demo": "run the full pipeline on a small built-in task, in minutes, without a download",
}

# The demo downloads nothing. It prints its own progress, and its matrices are too small for several threads.
DEMO_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tract",
        description="Regression-aware fine-tuning of LLM judges.",
        epilog="'tract COMMAND --help' describes a command. Each takes --config FILE.yaml with the same names.",
    )
    parser.add_argument("--version", action="version", version=version("tract-trainer"))
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = parser.parse_args(arguments[:1]).command  # the rest is the command's own
    if command == "demo":
        os.environ.update({**DEMO_ENVIRONMENT, **os.environ})  # before the libraries are imported
    _silence_warnings()
    try:
        getattr(import_module("tract_trainer.cli.commands"), command)(arguments[1:])
    except (InputError, OSError) as error:
        return _failed(command, str(error))
    except Exception as error:
        if not _refused_by_library(error) or os.environ.get("TRACT_TRACEBACK"):
            raise
        more = "TRACT_TRACEBACK=1 before the command shows where."
        return _failed(command, f"{str(error).strip()} ({type(error).__name__}; {more})")
    except KeyboardInterrupt:
        again = "the same command" + " with --resume_from_checkpoint true" * (command in ("sft", "grpo"))
        print(f"tract {command}: stopped. Finished work is on disk; {again} resumes.", file=sys.stderr)
        return 130
    return 0


def _failed(command: str, message: str) -> int:
    """Prints an error, on a terminal below an open progress bar, and returns the exit code."""
    print("\n" * sys.stderr.isatty() + f"tract {command}: error: {without_passwords(message)}", file=sys.stderr)
    return 2


def _refused_by_library(error: BaseException) -> bool:
    """Whether a library raised the error about its input: a setting, a damaged file, a full disk."""
    if {kind.__name__ for kind in type(error).__mro__} & {"SafetensorError", "TemplateError"}:  # of a chat template
        return True
    frames = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].split(".")[0] in LIBRARIES or frames[-1] == "torch.serialization"
    return raised_in and (isinstance(error, ValueError | ImportError | RuntimeError) or type(error) is Exception)


def _silence_warnings() -> None:
    """TRL's own defaults use names that Transformers deprecates; bitsandbytes looks for a kernel it does not need."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR + 1)


if __name__ == "__main__":
    sys.exit(main())
