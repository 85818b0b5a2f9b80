"""Writes the pages that are made from the code: the command line and the error messages.

    python docs/generate.py

`tests/test_docs.py` checks that they are up to date.
"""

import ast
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any
from unittest import mock

from trl import ModelConfig, SFTConfig

import tract_trainer
from tract_trainer.cli import commands
from tract_trainer.cli.main import COMMANDS

PLACES = {"compare": " A.json B.json", "report": " RUN", "inspect": " DATA"}
DOCS, PACKAGE = Path(__file__).parent, Path(tract_trainer.__file__).parent
RAISED = {"InputError", "ConnectionError", "FileNotFoundError", "ValueError"}


class _Parsed(Exception):
    """Carries the kinds of arguments of a command out of it."""


def command_line() -> str:
    """The page of the commands and those of their settings that are not TRL's."""
    page = [
        "# Command line",
        "",
        "`tract COMMAND --help` shows every setting, TRL's too; `--config FILE.yaml` sets any of them.",
        "",
    ]
    for command, what in COMMANDS.items():
        kinds = _kinds(command)
        page += [f"## tract {command}{PLACES.get(command, '')}", "", f"{what[0].upper()}{what[1:]}.", ""]
        if inherited := [f"`{kind.__name__}`" for kind in kinds if kind is ModelConfig or issubclass(kind, SFTConfig)]:
            page += [f"Takes every setting of {' and '.join(inherited)}, those of TRL included. Its own:", ""]
        page += ["| setting | default | |", "|---|---|---|"]
        of_trl = {field.name for kind in kinds for trl in (SFTConfig, ModelConfig) if issubclass(kind, trl)
                  for field in fields(trl)}  # fmt: skip
        own = {field.name: field for kind in kinds for field in fields(kind) if field.name not in of_trl}
        page += [_row(field) for field in own.values()] + [""]
    return "\n".join(page)


def _kinds(command: str) -> tuple[Any, ...]:
    def parse(_name: str, _description: str, _argv: Any, *kinds: Any, **_defaults: Any) -> None:
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
    choices = field.metadata.get("choices")
    return f"| `--{field.name}` | {shown} | {text}{f' One of {choices}.' if choices else ''} |"


def error_messages() -> str:
    """The page of every message that the package raises, by module."""
    page = [
        "# Error messages", "",
        "Every message says what was expected, what was found and what to do. `...` stands for what depends on your "
        "data; on the command line there is no traceback, and the exit code is 2.", "",
    ]  # fmt: skip
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = list(dict.fromkeys(_messages(tree)))
        if texts:
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            about = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
            page += [f"## {module}", "", about, "", *(f"* {text}" for text in texts), ""]
    return "\n".join(page)


def _messages(tree: ast.AST) -> list[str]:
    """Texts of the errors raised in a module, and its constant sentences that errors are made of."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", "")
            if name in RAISED and node.exc.args:
                found.append(_plain(_text(node.exc.args[0], tree)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PROBLEMS":
            found += [_plain(f"... {'. '.join(value)}.") for value in ast.literal_eval(node.value).values()]
    return list(filter(None, found))


def _text(node: ast.AST, tree: ast.AST) -> str:
    """The text that an expression makes, with `...` for what is not constant in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left, tree) + _text(node.right, tree)
    for other in ast.walk(tree):
        if (
            isinstance(node, ast.Name)
            and isinstance(other, ast.Assign)
            and getattr(other.targets[0], "id", "") == node.id
        ):
            return _text(other.value, tree)
        named = isinstance(node, ast.Call) and isinstance(other, ast.FunctionDef)
        if named and getattr(node.func, "id", "") == other.name and isinstance(other.body[-1], ast.Return):
            return _text(other.body[-1].value or node, tree)
    return ""


def _plain(text: str) -> str:
    """A message as Markdown: on one line, nothing in it taken for markup."""
    text = re.sub(r"\{\w*(:\w+|!r)?\}", "...", re.sub(r"\s+", " ", text)).strip()
    return f"`` {text} ``" if text.strip(". ") else ""


if __name__ == "__main__":
    (DOCS / "cli.md").write_text(command_line(), encoding="utf-8")
    (DOCS / "errors.md").write_text(error_messages(), encoding="utf-8")
