"""Reads a command's settings from the command line and from the YAML file of `--config`.

Values of both are checked here, before a dataclass of ours or of TRL's is made of them. A library would refuse them
much later, or with a traceback.
"""

import argparse
import difflib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

from tract_trainer.cli.main import COMMANDS
from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreScale

# Settings that name a model, data or an output. They come first in `--help`.
PLACES = (
    "model", "model_name_or_path", "data", "eval_data", "benchmark", "path", "record", "input", "output", "output_dir",
)  # fmt: skip

LARGEST = sys.float_info.max

# Least and greatest value of settings.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("max_records", "max_cot_records", "max_eval_records", "batch_size"), (1, LARGEST)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, LARGEST)),
    **dict.fromkeys(("gradient_accumulation_steps", "max_length", "lora_r", "lora_alpha"), (1, LARGEST)),
    "max_completion_length": (1, LARGEST),
    "num_generations": (2, LARGEST),
    **dict.fromkeys(("num_cots", "max_retries", "rows", "max_std"), (0, LARGEST)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), (0, LARGEST)),
    **dict.fromkeys(("num_train_epochs", "save_steps", "logging_steps", "eval_steps"), (0, LARGEST)),
    **dict.fromkeys(("lora_dropout", "eval_fraction", "adam_beta1", "adam_beta2"), (0, 1)),
}

CONFIGS = (SFTConfig, GRPOConfig, ModelConfig)  # of TRL

# TRL's settings that `--help` shows; `--help-all` shows them all.
MAIN = {
    "model_name_or_path", "output_dir", "num_train_epochs", "max_steps", "learning_rate", "max_length",
    "per_device_train_batch_size", "gradient_accumulation_steps", "eval_strategy", "save_steps",
    "resume_from_checkpoint", "use_peft", "lora_r", "lora_alpha", "load_in_4bit", "dtype", "push_to_hub",
    "hub_model_id", "seed", "num_generations", "max_completion_length", "temperature", "top_p", "use_vllm",
}  # fmt: skip


def configs_of_trl(kinds: Sequence[Any]) -> list[Any]:
    """TRL's configs whose settings are among those of `kinds`."""
    return [config for config in CONFIGS if any(issubclass(kind, config) for kind in kinds)]


def names_of_trl(kinds: Sequence[Any]) -> set[str]:
    """Names of those settings of `kinds` that are TRL's."""
    return {field.name for config in configs_of_trl(kinds) for field in fields(config)}


def names_of_score(kinds: Sequence[Any]) -> list[str]:
    """Names of the settings that our configs add to TRL's."""
    ours = [field.name for kind in kinds if configs_of_trl([kind]) for field in fields(kind)]
    return [name for name in ours if name not in names_of_trl(kinds)]


def importance(setting: str) -> int:
    """Sorts settings in `--help`."""
    return PLACES.index(setting) if setting in PLACES else len(PLACES)


def parse(
    command: str,
    argv: Sequence[str],
    *kinds: Any,
    positional: str = "",
    given: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> tuple[Any, ...]:
    """The command's settings, one dataclass for each of the `kinds`. Those `given` are checked as a YAML file's are."""
    purpose = COMMANDS[command]
    parser = _Parser(
        kinds,
        prog=f"tract {command}",
        usage=f"tract {command} {positional}[--config FILE.yaml] [--SETTING VALUE ...]",
        description=f"{purpose[0].upper()}{purpose[1:]}. --config FILE.yaml sets any of these.",
        formatter_class=_Formatter,
    )
    parser.set_defaults(**defaults)
    argv = [*_with_labels(argv), *parser.set_defaults_with_config(**given or {})]
    argv = list(itertools.chain(*(word.split("=", 1) if word.startswith("--config=") else [word] for word in argv)))
    parser.arrange_help(kinds, "--help-all" in argv)
    argv = ["--help" if word == "--help-all" else word for word in argv]
    if argv and argv[-1] == "--config":
        raise InputError("--config needs a YAML file.")
    try:
        if "--config" in argv:
            _check_keys(argv[argv.index("--config") + 1])
        *arguments, unknown = parser.parse_args_and_config(args=argv, return_remaining_strings=True)
    except InputError:
        raise
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # refused by a dataclass, or damaged YAML
        raise InputError(str(error)) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{unknown[0]!r} is not a setting of tract {command}.{hint} --help lists them.")
    return tuple(arguments)


class _Formatter(argparse.HelpFormatter):
    """Shows each setting under one name, with `_` and not `-`, and only defaults that are not empty."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else "VALUE"
        value = "[true|false]" if action.nargs == "?" else value
        return f"{action.option_strings[0]} {value}{' ...' if action.nargs == '+' else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default in (None, False, argparse.SUPPRESS) or action.nargs == 0:
            return action.help or ""
        if isinstance(default, list):
            default = " ".join(map(str, default))
        elif isinstance(default, str) and " " in default:
            default = repr(default)
        return f"{action.help or ''} (default: {str(default).replace('%', '%%')})"


class _Parser(TrlParser):
    """TRL's parser with errors of one line and checks of every value, also of a YAML file's."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}. {self.prog} --help lists the settings.")

    def arrange_help(self, kinds: Sequence[Any], all_of_trl: bool) -> None:
        """Groups the settings, those of the command before those of the score and of TRL."""
        actions, of_score, of_trl = self._optionals._group_actions, names_of_score(kinds), names_of_trl(kinds)
        if of_trl:
            for title, names in (("score", of_score), ("training (settings of TRL)", of_trl)):
                self.add_argument_group(title)._group_actions = [a for a in actions if a.dest in names]
            actions[:] = [action for action in actions if action.dest not in {*of_score, *of_trl}]
            if not all_of_trl:
                configs = " and ".join(config.__name__ for config in configs_of_trl(kinds))
                self.epilog = f"--help-all shows all settings of TRL's {configs} as well."
        for action in self._actions:
            hidden = not all_of_trl and action.dest in of_trl - MAIN
            if hidden or any(option.startswith("--no_") for option in action.option_strings):
                action.help = argparse.SUPPRESS
        for group in self._action_groups:
            group._group_actions.sort(key=lambda action: importance(action.dest))
        self._action_groups.sort(key=lambda group: group is self._optionals)

    def set_defaults_with_config(self, **given: Any) -> list[str]:
        """Passes numbers on as text, as they are on the command line, so that argparse checks their types."""
        given = {name.replace("-", "_"): value for name, value in given.items()}
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for name in given.keys() & hints.keys():
            value, hint = given[name], hints[name]
            kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
            if value is None and type(None) in kinds:
                continue
            kinds, is_scalar = kinds - {type(None)}, isinstance(value, str | int | float)
            if is_scalar and all(get_origin(kind) is list for kind in kinds):
                given[name] = [value]
            elif kinds <= {str, int, float, bool}:
                if not is_scalar:
                    raise InputError(f"{name} must be a single value, found {value!r} in the file of --config.")
                given[name] = str(value)
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


def _check_value(name: str, value: Any, choices: Any) -> None:
    """An InputError for a value out of range, text that is not UTF-8, and an unknown choice in a YAML file."""
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
