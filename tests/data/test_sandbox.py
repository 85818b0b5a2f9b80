"""A template by a stranger ends, in time and in length."""

import re
import time

import pytest

from tract_trainer import JudgeConfig
from tract_trainer.data.templates import rendered, template_text
from tract_trainer.errors import InputError
from tract_trainer.judge_config import DEFAULT_TEMPLATE

FIELDS = {"response": "a" * 1000, "labels": list("12345"), "rubric": {"1": "Weak.", "5": "Right."}, "reference": None}
RECURSIVE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
DOUBLED = "{% set x = response %}" + "{% set x = x + x %}" * 60

HOSTILE = {
    "{{ 10 ** (10 ** 8) }}": "larger than 10,000,000",
    "{{ 10 ** 9999999 }}": "a power is too large",
    "{{ 999999 * 999999 }}": "larger than 10,000,000",
    "{{ 'a' * 999999999999 }}": "larger than 10,000,000",
    "{{ [0] * 99999999 }}": "larger than 10,000,000",
    "{{ 'a'.ljust(99999999999) }}": "larger than 10,000,000",
    "{{ 'a'|center(99999999999) }}": "larger than 10,000,000",
    "{{ response|indent(width=99999999999) }}": "larger than 10,000,000",
    "{{ response|replace('a', response)|replace('a', response)|replace('a', response) }}": "larger than 10,000,000",
    "{{ '%020000000d' % 1 }}": "larger than 10,000,000",
    "{{ '{:20000000}'.format(1) }}": "larger than 10,000,000",
    DOUBLED: "larger than 10,000,000",
    "{% for i in range(10 ** 6) %}{% endfor %}": "Range too big",
    "{% for i in range(10 ** 5) %}{% for j in range(10 ** 5) %}{% endfor %}{% endfor %}": "more than 100,000 steps",
    "{% for i in response %}{% for j in response %}{% endfor %}{% endfor %}": "more than 100,000 steps",
    "{% for i in response if i != 'a' %}{% for j in response %}{% endfor %}{% endfor %}"
    * 101: "more than 100,000 steps",
    RECURSIVE: "more than 100,000 steps",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in response %}{% for j in range(90) %}{{ response }}{% endfor %}{% endfor %}": "writes more than 10,000",
    "{{ response }}" + " " * 100_000: "100,014 characters, more than 100,000",
}


@pytest.mark.parametrize("template", HOSTILE, ids=lambda template: template[:40])
def test_a_hostile_template_ends_with_an_error(template):
    started = time.process_time()
    with pytest.raises(InputError, match=re.escape(HOSTILE[template])):
        rendered(template, FIELDS)
    assert time.process_time() - started < 10


def test_a_template_that_is_too_long_is_refused_before_it_is_used():
    with pytest.raises(InputError, match=r"100,014 characters, more than 100,000"):
        template_text("{{ response }}" + " " * 100_000)


USUAL = {
    "{% for i in labels %}{{ loop.index }}/{{ loop.length }}{{ ', ' if not loop.last }}{% endfor %}": (
        "1/5, 2/5, 3/5, 4/5, 5/5"
    ),
    "{% for key, text in rubric.items() if key != '5' %}{{ key }}: {{ text }}{% else %}none{% endfor %}": "1: Weak.",
    "{% for i in [] %}{% else %}none{% endfor %}": "none",
    "{{ 2 ** 10 }} {{ 2.0 ** -1 }} {{ 7 % 4 }} {{ '-' * 3 }} {{ '%s!' % 'a' }}": "1024 0.5 3 --- a!",
    "{{ labels + ['6'] }}": "['1', '2', '3', '4', '5', '6']",
    "{{ labels|join(', ') }} {{ response|length }} {{ rubric|tojson }}": (
        '1, 2, 3, 4, 5 1000 {"1": "Weak.", "5": "Right."}'
    ),
    "{% macro line(text) %}- {{ text }}{% endmacro %}{{ line('a') }}{{ line('b') }}": "- a- b",
}


@pytest.mark.parametrize("template", USUAL)
def test_what_templates_are_usually_written_with_stays(template):
    assert rendered(template, FIELDS) == USUAL[template]


def test_a_long_response_is_no_attack():
    text = rendered(
        DEFAULT_TEMPLATE, {"instruction": "Write.", "prefix": "Score:", **FIELDS, "response": "a" * 5_000_000}
    )
    assert len(text) > 5_000_000


def test_a_prefix_of_a_million_characters_is_refused():
    with pytest.raises(
        InputError, match=r"^score_prefix has 1,000,000 characters\. Give the text right before a score"
    ):
        JudgeConfig(["1", "2"], [1, 2], "a" * 1_000_000)
