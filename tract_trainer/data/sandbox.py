"""Renders templates by strangers: Jinja's sandbox, with bounds on their work and on what they write."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import count
from typing import Any

from jinja2 import StrictUndefined, Template, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE, MAX_PROMPT = 100_000, 10_000_000
"""Characters of a template, and of a rendered prompt. The latter also bounds texts and numbers within it."""

MAX_STEPS = 100_000
"""Rounds of loops and calls of functions in one rendering."""


class Missing(StrictUndefined):
    """A field that a record lacks: `{% if field %}` is false, and to show it is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for prompt templates, see [`compiled`]."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=Missing)
        self.filters = {**{name: _bounded(found) for name, found in self.filters.items()}, "_counted": _counted}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else value for value in (left, right)]
        if operator == "*":
            _checked(sizes[0] * sizes[1])
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > 64:
            raise SecurityError("a power is too large")
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        _step(context)
        return _bounded(super().call)(context, function, *args, **kwargs)


def compiled(template: str) -> Template:
    """The template, ready for [`render`]."""
    environment = Sandbox()
    if len(template) > MAX_TEMPLATE:
        raise SecurityError(f"it has {len(template):,} characters, more than {MAX_TEMPLATE:,}")
    tree = environment.parse(template)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno, environment=environment)
    return environment.from_string(tree)


def render(template: Template, fields: dict[str, Any]) -> str:
    """The text of a template from [`compiled`]."""
    pieces, length = [], 0
    for piece in template.generate({**fields, "_steps": count()}):
        length += len(piece)
        if length > MAX_PROMPT:
            raise SecurityError(f"it writes more than {MAX_PROMPT:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _step(context: Context) -> None:
    if next(context["_steps"]) >= MAX_STEPS:
        raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")


@pass_context
def _counted(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step(context)
        yield value


def _checked(value: Any) -> Any:
    size = len(value) if isinstance(value, str | list | tuple) else value
    if isinstance(size, int) and abs(size) > MAX_PROMPT:
        raise SecurityError(f"a text or number in it is larger than {MAX_PROMPT:,}")
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _checked(value)
        return _checked(function(*args, **kwargs))

    return call
