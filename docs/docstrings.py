"""Extension for Griffe: reads docstrings in the style of Hugging Face, which mkdocstrings does not know.

In a list of parameters, ``name (`int`, *optional*, defaults to `1`)`` becomes `name (int)`, and the `1` its default. In
the text, ``[`Judge.score`]`` becomes a link to the reference, or to the documentation of TRL or Datasets.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

PARAMETER = re.compile(r"^(\s*)([\w, *]+) \((.*)\):", re.M)
DEFAULT = re.compile(r", defaults to `(.*)`$")
TYPE = re.compile(r"\[?`~?([^`]*)`\]?")
REFERENCE = re.compile(r"\[`([~\w.]+)`\]")
ELSEWHERE = {
    "trl": "https://huggingface.co/docs/trl/sft_trainer#",
    "datasets": "https://huggingface.co/docs/datasets/package_reference/main_classes#",
}


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites every docstring of a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for found in _objects(pkg):
            if found.docstring is not None:
                found.docstring.value = _translated(found)
            for parameter in getattr(found, "parameters", []) if found.is_class or found.is_function else []:
                if isinstance(parameter.default, str | griffe.Expr):
                    parameter.default = re.sub(r"^\(lambda: (.*)\)\(\)$", r"\1", str(parameter.default))


def _objects(parent: griffe.Object) -> Iterator[Any]:
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _translated(found: Any) -> str:
    """The docstring of `found` for Griffe's Google parser. Sets the documented defaults of its parameters."""

    def parameter(match: "re.Match[str]") -> str:
        indent, names, written = match.groups()
        if default := DEFAULT.search(written):
            for name in names.split(", "):
                if found.is_class and name in found.parameters:
                    found.parameters[name].default = default[1]
        written = DEFAULT.sub("", written).removesuffix(", *optional*")
        return f"{indent}{names} ({TYPE.sub(_short, written)}):"

    return REFERENCE.sub(lambda match: _link(found, match[1]), PARAMETER.sub(parameter, found.docstring.value))


def _short(match: "re.Match[str]") -> str:
    """A type without the modules it is in."""
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", match[1])


def _link(found: Any, reference: str) -> str:
    path = reference.removeprefix("~")
    shown = path.rpartition(".")[2] if reference.startswith("~") else path
    package = path.partition(".")[0]
    if package in ELSEWHERE:
        return f"[`{shown}`]({ELSEWHERE[package]}{path})"
    return f'<autoref optional identifier="{_resolved(found, path)}"><code>{shown}</code></autoref>'


def _resolved(found: Any, path: str) -> str:
    """The full name of `path` as it reads in the docstring of `found`: a member beside it, or an imported name."""
    first, _, rest = path.partition(".")
    for scope in (found, found.parent):
        if scope is not None and first in scope.members and not scope.members[first].is_alias:
            return f"{scope.canonical_path}.{path}"
    root = found.package
    if first in root.members:
        return f"{root.path}.{path}"
    try:
        return f"{found.resolve(first)}.{rest}".removesuffix(".")
    except griffe.NameResolutionError:
        return path
