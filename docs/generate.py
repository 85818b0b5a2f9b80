"""Writes `docs/cli.md` from the dataclasses of the commands.

    python docs/generate.py

`tests/test_docs.py` checks that the page is up to date.
"""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any
from unittest import mock

from trl import ModelConfig, SFTConfig

from tract_trainer.cli import commands
from tract_trainer.cli.main import COMMANDS
from tract_trainer.cli.parsing import importance
from tract_trainer.training.config import RegressionAwareSFTConfig

POSITIONAL = {"agree": " DATA", "compare": " A.json B.json", "report": " RUN", "inspect": " DATA"}


class _Parsed(Exception):
    """Carries the kinds of arguments of a command out of it."""


def command_line() -> str:
    """The page of the commands and those of their settings that are not TRL's."""
    of_trl = {field.name for kind in (SFTConfig, ModelConfig) for field in fields(kind)}
    of_score = [field for field in fields(RegressionAwareSFTConfig) if field.name not in of_trl]
    page = [
        "# Command line",
        "",
        "`tract COMMAND --help` shows a command's settings, `--help-all` also those of TRL's `SFTConfig` and "
        "`ModelConfig`, which are not repeated here. `--config FILE.yaml` sets any of them.",
        "",
    ]
    for command, what in COMMANDS.items():
        kinds = _kinds(command)
        page += [f"## tract {command}{POSITIONAL.get(command, '')}", "", f"{what[0].upper()}{what[1:]}.", ""]
        if ModelConfig in kinds:
            page += ["Also takes the [settings of the score](#settings-of-the-score) and all settings of `SFTConfig` "
                     "and `ModelConfig`.", ""]  # fmt: skip
        named = {field.name: field for kind in kinds for field in fields(kind)}
        known = {*of_trl, *(field.name for field in of_score)} if ModelConfig in kinds else set()
        own = [field for name, field in named.items() if name not in known]
        page += _table(sorted(own, key=lambda field: importance(field.name)))
    return "\n".join([*page, "## Settings of the score", "", *_table(of_score)])


def _table(settings: "list[Field[Any]]") -> list[str]:
    lines = ["| setting | default | |", "|---|---|---|", *map(_row, settings)]
    return ['<div class="settings" markdown>', "", *lines, "", "</div>", ""]


def _kinds(command: str) -> tuple[Any, ...]:
    def parse(_name: str, _argv: Any, *kinds: Any, **_options: Any) -> None:
        raise _Parsed(*kinds)

    with mock.patch.object(commands, "parse", parse):
        try:
            getattr(commands, command)([])
        except _Parsed as parsed:
            return parsed.args
    raise RuntimeError(f"tract {command} parses no arguments")


def _row(field: "Field[Any]") -> str:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    shown = "required" if default is MISSING else "" if default is None else f"`{default}`"
    text = re.sub(r"\s+", " ", field.metadata.get("help", "")).replace("|", "\\|").replace("%%", "%")
    choices = ", ".join(f"`{choice}`" for choice in field.metadata.get("choices", ()))
    return f"| `--{field.name}` | {shown} | {text}{f' One of {choices}.' if choices else ''} |"


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(command_line(), encoding="utf-8")
