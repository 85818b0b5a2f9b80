"""A command line, and the YAML file that it names, as the arguments of a command.

Every value is checked here, whether it comes from the command line or from YAML, before a dataclass of ours or of TRL's
is made of it: what a library would refuse much later, or with a traceback, is one line now.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreScale

PLACES = ("data", "eval_data", "model", "model_name_or_path", "path", "record", "input", "output", "output_dir")

KINDS = {int: "a whole number", float: "a number", str: "text"}

LARGEST = sys.float_info.max

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("max_records", "max_cot_records", "max_eval_records", "batch_size"), (1, LARGEST)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, LARGEST)),
    **dict.fromkeys(("gradient_accumulation_steps", "max_length", "lora_r", "lora_alpha"), (1, LARGEST)),
    **dict.fromkeys(("num_cots", "max_retries", "rows"), (0, LARGEST)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), (0, LARGEST)),
    **dict.fromkeys(("num_train_epochs", "save_steps", "logging_steps", "eval_steps"), (0, LARGEST)),
    **dict.fromkeys(("lora_dropout", "eval_fraction", "adam_beta1", "adam_beta2"), (0, 1)),
}
"""Least and greatest value of settings."""

MAIN = {
    "model_name_or_path", "output_dir", "num_train_epochs", "max_steps", "learning_rate", "max_length",
    "per_device_train_batch_size", "gradient_accumulation_steps", "eval_strategy", "save_steps",
    "resume_from_checkpoint", "use_peft", "lora_r", "lora_alpha", "load_in_4bit", "dtype", "push_to_hub",
    "hub_model_id", "seed",
}  # fmt: skip
"""TRL's settings that `--help` shows; `--help-all` shows them all."""


def parse(command: str, description: str, argv: Sequence[str], *kinds: Any, **defaults: Any) -> tuple[Any, ...]:
    """The command's arguments, from the command line and from `--config FILE.yaml`."""
    parser = _Parser(
        kinds,
        prog=f"tract {command}",
        usage=f"tract {command} [--config FILE.yaml] [--SETTING VALUE ...]",
        description=f"{description} --config FILE.yaml sets any of these.",
        formatter_class=_Formatter,
    )
    parser.set_defaults(**defaults)
    argv = _with_labels(argv)
    argv = list(itertools.chain(*(word.split("=", 1) if word.startswith("--config=") else [word] for word in argv)))
    if any(kind is ModelConfig or issubclass(kind, SFTConfig) for kind in kinds):
        parser.show_settings_of_trl("--help-all" in argv)
        argv = ["--help" if word == "--help-all" else word for word in argv]
    if argv and argv[-1] == "--config":
        raise InputError("--config needs a YAML file.")
    try:
        if "--config" in argv:
            _check_keys(argv[argv.index("--config") + 1])
        *arguments, unknown = parser.parse_args_and_config(args=argv, return_remaining_strings=True)
    except InputError:
        raise
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # refused by a dataclass, or YAML that is none
        raise InputError(str(error)) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{unknown[0]!r} is not a setting of tract {command}.{hint} --help lists them.")
    return tuple(arguments)


class _Formatter(argparse.HelpFormatter):
    """Shows each setting once, though `-` may stand for `_`, and only defaults that say something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE"
        value = "[true|false]" if action.nargs == "?" else value
        return f"{action.option_strings[0]} {value}{' ...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, False, argparse.SUPPRESS) and action.nargs != 0
        return f"{action.help or ''}{' (default: %(default)s)' if shown else ''}"


class _Parser(TrlParser):
    """TRL's parser. Its complaints are one line, and every value is checked, also from a YAML file."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}. {self.prog} --help lists the settings.")

    def show_settings_of_trl(self, all_of_them: bool) -> None:
        """Puts the settings of the command first in `--help`, and hides those of TRL but for the main ones."""
        of_trl = {field.name for kind in (SFTConfig, ModelConfig) for field in fields(kind)} - MAIN
        for action in self._actions:
            if action.dest in of_trl and not all_of_them:
                action.help = argparse.SUPPRESS
        self._action_groups.sort(key=lambda group: group.title == "options")
        self.epilog = "" if all_of_them else "--help-all shows all settings of TRL's SFTConfig and ModelConfig as well."

    def set_defaults_with_config(self, **given: Any) -> list[str]:
        given = {name.replace("-", "_"): value for name, value in given.items()}  # as on the command line
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for name, value in given.items():
            kinds = set(get_args(hints[name]) or [hints[name]]) if name in hints else set()
            if isinstance(hints.get(name), UnionType | type) and not isinstance(value, str):  # argparse reads text
                _check_type(name, value, kinds)
        return list(super().set_defaults_with_config(**given))

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        namespace, rest = super().parse_known_args(*args, **kwargs)
        choices = {action.dest: action.choices for action in self._actions if action.choices}
        for name, given in vars(namespace).items():
            for value in given if isinstance(given, list) else [given]:
                _check_value(name, value, choices.get(name))
            if name in PLACES and isinstance(given, str):  # the shell expands what YAML leaves as it is
                setattr(namespace, name, os.path.expanduser(given))
        return namespace, rest


def _check_keys(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        found = yaml.safe_load(file)
    if isinstance(found, dict) and (wrong := [key for key in found if not isinstance(key, str)]):
        raise InputError(f"{path} must have names of settings as keys, found {wrong[0]!r}.")


def _check_type(name: str, value: Any, kinds: set[Any]) -> None:
    """An InputError where `value`, from a YAML file, is not of the one type that a setting has beside None."""
    types = kinds - {type(None)}
    if len(types) != 1 or not types <= set(KINDS) or (value is None and type(None) in kinds):
        return
    (wanted,) = types
    fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
    if not fits:
        raise InputError(f"{name} must be {KINDS[wanted]}, found {value!r} in the file of --config.")


def _check_value(name: str, value: Any, choices: Any) -> None:
    """An InputError for a value out of range, text that is none, and a choice from a YAML file that is none."""
    if isinstance(value, str):
        if name in PLACES and not value.strip():
            raise InputError(f"{name} is empty. Give a file, a folder or a name, or leave it out.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{name} must be text in UTF-8, found {value!r}.") from error
    if name in RANGES and isinstance(value, int | float) and not isinstance(value, bool):
        low, high = RANGES[name]
        if not low <= value <= high:
            bounds = f"at least {low}" if high == LARGEST else f"between {low} and {high}"
            raise InputError(f"{name} must be {bounds}, got {value}.")
    if choices and value is not None and value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")


def _with_labels(argv: Sequence[str]) -> list[str]:
    """`argv` with the labels that `--scale LOW:HIGH[:STEP]` is short for."""
    words = list(itertools.chain(*(word.split("=", 1) if word.startswith("--scale=") else [word] for word in argv)))
    if "--scale" not in words:
        return words
    place = words.index("--scale")
    labels = ScoreScale.parse(" ".join(words[place + 1 : place + 2])).labels
    return [*words[:place], "--score_labels", *labels, *words[place + 2 :]]
