"""Writes `docs/cli.md` from the dataclasses of the commands.

    python docs/generate.py

`tests/test_docs.py` checks that the page is up to date.
"""

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any
from unittest import mock

from tract_trainer.cli import commands
from tract_trainer.cli.main import COMMANDS
from tract_trainer.cli.parsing import configs_of_trl, importance, names_of_score, names_of_trl
from tract_trainer.training.config import RegressionAwareGRPOConfig, RegressionAwareSFTConfig

SHARED = {
    RegressionAwareSFTConfig: "Settings of the score",
    RegressionAwareGRPOConfig: "Settings of reinforcement learning",
}
"""Headings of the tables of settings that several commands take, or that are too many for the command's own."""

POSITIONAL = {
    "agree": " DATA", "calibrate": " RESULT.json", "compare": " A.json B.json", "report": " RUN", "inspect": " DATA",
}  # fmt: skip


class _Parsed(Exception):
    """Carries the kinds of arguments of a command out of it."""


def command_line() -> str:
    """The page of the commands and those of their settings that are not TRL's."""
    page = [
        "# Command line",
        "",
        "`tract COMMAND --help` shows a command's settings, `--help-all` also those of TRL's `SFTConfig`, `GRPOConfig` "
        "and `ModelConfig`, which are not repeated here. `--config FILE.yaml` sets any of them.",
        "",
    ]
    for command, what in COMMANDS.items():
        kinds = _kinds(command)
        page += [f"## tract {command}{POSITIONAL.get(command, '')}", "", f"{what[0].upper()}{what[1:]}.", ""]
        for heading in (SHARED[kind] for kind in kinds if kind in SHARED):
            link = f"[{heading[0].lower()}{heading[1:]}](#{heading.lower().replace(' ', '-')})"
            configs = " and ".join(f"`{config.__name__}`" for config in configs_of_trl(kinds))
            page += [f"Also takes the {link} and all settings of {configs}.", ""]
        named = {field.name: field for kind in kinds for field in fields(kind)}
        known = {*names_of_score(kinds), *names_of_trl(kinds)}
        own = [field for name, field in named.items() if name not in known]
        page += _table(sorted(own, key=lambda field: importance(field.name)))
    for kind, heading in SHARED.items():
        ours = names_of_score([kind])
        page += [f"## {heading}", "", *_table([field for field in fields(kind) if field.name in ours])]
    return "\n".join(page)


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
