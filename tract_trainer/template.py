"""Turns a record's fields into a prompt: the built-in Jinja template, or the user's."""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tract_trainer.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Template

DEFAULT_TEMPLATE = """\
You are judging a response to an instruction. Go by the rubric alone.

### Instruction
{{ instruction }}

### Response to judge
{{ response }}
{% if reference %}
### Reference response
{{ reference }}
{% endif %}

### Rubric
{% if rubric is mapping -%}
{% for key, text in rubric.items() if text is not none -%}
{{ key }}: {{ text }}
{% endfor %}
{%- else -%}
{{ rubric }}
{% endif %}

Write a short rationale that weighs the response against the rubric. Then end with "{{ prefix }}" and one of \
{{ labels | join(", ") }}.
"""


def template_text(template: str) -> str:
    """
    The text of a template, given as such or as the file that holds it.

    Raises:
        InputError: it is no template, or shows nothing of the response that is judged.
    """
    from jinja2 import TemplateSyntaxError, meta

    if "{" not in template and os.path.isfile(template):
        template = Path(template).read_text(encoding="utf-8")
    try:
        names = meta.find_undeclared_variables(compiled(template).environment.parse(template))
    except TemplateSyntaxError as error:
        raise InputError(f"prompt_template is no Jinja template: {error}.") from error
    if "response" not in names:
        raise InputError(
            "prompt_template must show the judge the `response`, as {{ response }}, or be a file that does; found "
            f"{template!r:.80}."
        )
    return template


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> "Template":
    """The template, ready to render. What it holds cannot reach beyond the fields it is given."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string(
        template
    )


def rendered(template: str, fields: dict[str, Any]) -> str:
    """The prompt; an InputError where the template asks for what `fields` do not have."""
    from jinja2 import TemplateError

    try:
        return compiled(template).render(fields)
    except TemplateError as error:
        raise InputError(f"prompt_template cannot be rendered for a record with {sorted(fields)}: {error}.") from error
