"""Turns a command line, and the YAML file that it names, into the arguments of a command."""

import difflib
import itertools
import os
from collections.abc import Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from trl import TrlParser

from tract_trainer.errors import InputError

PLACES = ("data", "eval_data", "model", "model_name_or_path", "path", "record", "input", "output", "output_dir")

KINDS = {int: "a whole number", float: "a number", str: "text"}


def parse(command: str, description: str, argv: Sequence[str], *kinds: Any, **defaults: Any) -> tuple[Any, ...]:
    """The command's arguments, from the command line and from `--config FILE.yaml`."""
    parser = _Parser(kinds, prog=f"tract {command}", description=f"{description} --config FILE.yaml sets any of these.")
    parser.set_defaults(**defaults)
    if argv and argv[-1] == "--config":
        raise InputError("--config needs a YAML file.")
    try:
        *arguments, unknown = parser.parse_args_and_config(args=list(argv), return_remaining_strings=True)
    except InputError:
        raise
    except (ValueError, yaml.YAMLError) as error:  # a value that a config refuses, or a YAML file that is none
        raise InputError(str(error)) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{unknown[0]!r} is not a setting of tract {command}.{hint} --help lists them.")
    _check_choices(arguments)
    for group, name in itertools.product(arguments, PLACES):
        if isinstance(given := getattr(group, name, None), str):  # the shell expands what YAML leaves as it is
            setattr(group, name, os.path.expanduser(given))
    return tuple(arguments)


class _Parser(TrlParser):
    """TRL's parser, whose complaints are one line, and which looks at the types of what comes from a YAML file."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}. {self.prog} --help lists the settings.")

    def set_defaults_with_config(self, **given: Any) -> list[str]:
        given = {name.replace("-", "_"): value for name, value in given.items()}  # as on the command line
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        for name, value in given.items():
            kinds = set(get_args(hints[name]) or [hints[name]]) if name in hints else set()
            if isinstance(hints.get(name), UnionType | type) and not isinstance(value, str):  # argparse reads text
                _check_type(name, value, kinds)
        return list(super().set_defaults_with_config(**given))


def _check_type(name: str, value: Any, kinds: set[Any]) -> None:
    """An InputError where `value`, from a YAML file, is not of the one type that a setting has beside None."""
    types = kinds - {type(None)}
    if len(types) != 1 or not types <= set(KINDS) or (value is None and type(None) in kinds):
        return
    (wanted,) = types
    fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
    if not fits:
        raise InputError(f"{name} must be {KINDS[wanted]}, found {value!r} in the file of --config.")


def _check_choices(arguments: Sequence[Any]) -> None:
    """The parser looks at the choices of what stands on the command line, and not of what comes from a YAML file."""
    for field, given in ((field, getattr(group, field.name)) for group in arguments for field in fields(group)):
        choices = field.metadata.get("choices")
        for value in given if isinstance(given, list) else [given]:
            if choices and value is not None and value not in choices:
                raise InputError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}.")
