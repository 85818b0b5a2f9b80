"""Judging records become prompts and training examples."""

import json
import re

import pytest
from tiny import PREFIX, make_tokenizer

from tract_trainer import RegressionAwareSFTConfig, ScoreScale
from tract_trainer.data.reading import read_rows
from tract_trainer.data.records import (
    annotated_rationales,
    as_messages,
    check_prompts,
    close,
    completion_text,
    gold_score,
    prompt_of,
    training_examples,
)
from tract_trainer.data.templates import ControlTokens, template_text
from tract_trainer.errors import InputError
from tract_trainer.judge_config import DEFAULT_TEMPLATE

SCALE = ScoreScale.integers(1, 5)
RECORD = {"instruction": "Name a prime.", "response": "7", "rubric": "Is it right?"}
PROMETHEUS = {
    "instruction": '###Task Description:\nAn instruction "x", a response to evaluate.\n###Feedback: ',
    "gpt4_score": [4, 4, 3],
    "gpt4_feedback": ["Clear. [RESULT] 4", f"Good. {PREFIX}4. [RESULT] 4", "Fair"],
}


def prompt(record, **kwargs):
    return prompt_of(record, SCALE, PREFIX, **kwargs)


def examples(records, **kwargs):
    return list(training_examples(records, SCALE, PREFIX, **kwargs))


# Prompts


def test_the_built_in_template_holds_every_field_and_the_closing_phrase():
    assert prompt(RECORD) == (
        "You are judging a response to an instruction. Go by the rubric alone.\n"
        "\n### Instruction\nName a prime.\n"
        "\n### Response to judge\n7\n"
        "\n### Rubric\nIs it right?\n"
        "\nWrite a short rationale that weighs the response against the rubric. "
        'Then end with "So the overall score is" and one of 1, 2, 3, 4, 5.\n'
    )


def test_a_reference_and_a_rubric_of_levels_are_rendered():
    text = prompt({**RECORD, "reference": "11", "rubric": {"1": "wrong", "5": "right"}})
    assert "\n### Reference response\n11\n\n### Rubric\n1: wrong\n5: right\n" in text


def test_an_empty_response_is_judged_not_refused():
    assert "### Response to judge\n\n" in prompt({**RECORD, "response": ""})


def test_a_template_of_ones_own_sees_every_field():
    template = "{{ instruction }}|{{ response }}|{{ rubric }}|{{ reference }}|{{ prefix }}|{{ labels }}|{{ mine }}"
    assert prompt({**RECORD, "mine": 8}, template=template) == (
        "Name a prime.|7|Is it right?|None|So the overall score is|['1', '2', '3', '4', '5']|8"
    )


def test_braces_in_a_record_are_text_not_template():
    assert "{{ 7 * 7 }}{% for %}" in prompt({**RECORD, "response": "{{ 7 * 7 }}{% for %}"})


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ labels.append('6') }}",
    ],
)
def test_a_hostile_template_gets_no_further_than_the_sandbox(hostile):
    with pytest.raises(InputError, match=r"cannot be rendered .* unsafe"):
        prompt(RECORD, template=hostile)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("my.jinja", "must show the judge the `response`, as {{ response }}, or be a file that does; found 'my.jinja'"),
        ("Rate {{ instruction }}.", "must show the judge the `response`"),
        ("Rate {{ response", "is no Jinja template: unexpected end of template"),
    ],
)
def test_a_template_that_shows_no_response_is_refused(template, message):
    with pytest.raises(InputError, match=re.escape(message)):
        template_text(template)


def test_a_template_may_be_a_file(tmp_path):
    file = tmp_path / "my.jinja"
    file.write_text("Rate {{ response }}.")
    config = RegressionAwareSFTConfig(str(tmp_path), prompt_template=str(file), bf16=False, use_cpu=True)
    assert config.prompt_template == template_text(config.prompt_template) == "Rate {{ response }}."


def test_a_template_that_wants_more_than_the_record_has_is_named():
    with pytest.raises(InputError, match=r"cannot be rendered for a record with .*: 'style' is undefined"):
        prompt(RECORD, template="{{ style.length }} {{ response }}")


def test_a_ready_prompt_is_used_as_it_is():
    messages = [{"role": "system", "content": "Be strict."}, {"role": "user", "content": "Rate."}]
    assert prompt({"prompt": 'Rate "it",'}) == 'Rate "it",'
    assert prompt({"prompt": messages, "score": 3}) == messages
    assert prompt({"messages": [*messages, {"role": "assistant", "content": "3"}]}) == messages


def test_a_prometheus_instruction_is_a_ready_prompt():
    assert prompt(PROMETHEUS) == PROMETHEUS["instruction"]


def test_the_stray_ending_of_the_public_files_is_removed_and_nothing_else():
    assert prompt({**PROMETHEUS, "instruction": '###Feedback: ",'}) == "###Feedback: "
    assert prompt({"instruction": 'Say "yes"'}) == 'Say "yes"'
    assert prompt({"instruction": "One, two,"}) == "One, two,"


@pytest.mark.parametrize(
    "record",
    [{}, {"response": "7"}, {"instruction": "Name a prime.", "response": "7"}, {"instruction": "x", "rubric": "y"}],
)
def test_a_record_that_makes_no_prompt_is_refused_with_what_it_holds(record):
    with pytest.raises(ValueError) as raised:
        prompt(record)
    assert str(raised.value) == (
        f"A record needs `instruction`, `response` and `rubric`, or a ready `prompt`; found {sorted(record)}."
    )


def test_an_empty_field_is_named_as_such():
    with pytest.raises(InputError, match=re.escape("found ['instruction', 'response', 'rubric (empty)']")):
        prompt({**RECORD, "rubric": ""})


USER, EMPTY = {"role": "user", "content": "Rate."}, {"role": "assistant", "content": None}


@pytest.mark.parametrize("name", ["prompt", "messages"])
@pytest.mark.parametrize(
    "given",
    [7, {"role": "user"}, ["a"], [{"role": "assistant", "content": "5"}], [{"role": "user"}], [USER, EMPTY]],
)
def test_a_prompt_that_asks_for_nothing_is_refused(given, name):
    with pytest.raises(InputError, match="must be text, or messages with `role` and `content` that ask for something"):
        prompt({name: given})


def test_a_turn_that_calls_a_tool_needs_no_content():
    called = {**EMPTY, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    assert prompt({"prompt": [USER, called, USER]}) == [USER, called, USER]


def test_the_first_record_without_a_prompt_is_named_by_its_number():
    with pytest.raises(InputError, match=r"^Record 1: A record needs"):
        check_prompts([RECORD, {"response": "7"}, {}], prompt)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"Good. {PREFIX}4", "Good."),
        (f"Good. {PREFIX}4 out of 5.\n", "Good."),
        (f"It says '{PREFIX}2'. But that is wrong", f"It says '{PREFIX}2'. But that is wrong"),
        (f"It says '{PREFIX}2'. No. {PREFIX}4", f"It says '{PREFIX}2'. No."),
        ("A [RESULT] 3 is asked for, and given. [RESULT] 4", "A [RESULT] 3 is asked for, and given."),
    ],
)
def test_only_what_closes_a_rationale_is_cut_off(text, kept):
    assert annotated_rationales({"rationale": text}, PREFIX) == [kept]


def test_whole_characters_are_read_however_they_are_written(tmp_path):
    text = '[{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}]'
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_rows(tmp_path / "a.json") == [{"a": "\U0001f600", "b": "\\ud83d"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Name a prime.", "response": "8", "rubric": "Right?"}, "has a `response` and a `prompt`, which is"),
        (
            {**RECORD, "response": [{"role": "assistant", "content": "8"}]},
            "`response` of a record must be text, found list",
        ),
        (
            {**RECORD, "instruction": {"role": "user", "content": "?"}},
            "`instruction` of a record must be text, found dict",
        ),
    ],
)
def test_a_record_whose_fields_would_not_be_read_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        prompt(record)


def test_text_becomes_a_user_turn_and_messages_stay():
    messages = [{"role": "user", "content": "Rate."}]
    assert as_messages("Rate.") == messages
    assert as_messages(messages) is messages


# Gold scores


def test_the_gold_score_is_a_number_or_the_mean_of_several():
    assert gold_score({"score": 3}) == 3.0
    assert gold_score({"score": "4"}) == 4.0
    assert gold_score(PROMETHEUS) == pytest.approx(11 / 3)
    assert gold_score({"orig_score": "2"}) == 2.0
    assert gold_score({"score": 0, "gpt4_score": [5]}) == 0.0
    assert gold_score({"score": None, "gpt4_score": [5]}) == 5.0
    assert gold_score({"instruction": "x"}) is None


@pytest.mark.parametrize("value", ["good", [], [3, "good"], {"a": 1}, [None]])
def test_a_gold_score_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError) as raised:
        gold_score({"score": value})
    assert str(raised.value) == f"A gold score must be a number or a list of numbers, found {value!r}."


# Training examples


def test_each_annotated_rationale_becomes_an_example_closed_with_the_nearest_label():
    found = examples([PROMETHEUS])
    assert [example["completion"] for example in found] == [
        "Clear. So the overall score is 4",
        "Good. So the overall score is 4",
        "Fair So the overall score is 4",
    ]
    for example in found:
        assert example["score"] == pytest.approx(11 / 3)
        assert example["prompt"] == PROMETHEUS["instruction"]


def test_a_conversational_example_is_a_user_and_an_assistant_turn():
    (example,) = examples([{**RECORD, "rationale": "Right.", "score": 5}], conversational=True)
    assert example["prompt"] == [{"role": "user", "content": prompt(RECORD)}]
    assert example["completion"] == [{"role": "assistant", "content": "Right. So the overall score is 5"}]


@pytest.mark.parametrize(
    ("rationale", "kept"),
    [
        ("Right.\n", "Right. "),
        (f"Right. {PREFIX}2", "Right. "),
        (f"{PREFIX}2 at first, but right. {PREFIX}4", f"{PREFIX}2 at first, but right. "),
        ("Right. [RESULT] 2", "Right. "),
        (f"{PREFIX}2", ""),
        ("", ""),
    ],
)
def test_an_annotations_own_closing_is_cut_off(rationale, kept):
    (example,) = examples([{**RECORD, "rationale": rationale, "score": 5}])
    assert example["completion"] == f"{kept}{PREFIX}5"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"completion": "Right."}, "Right."),
        ({"completion": [{"role": "assistant", "content": "Right."}]}, "Right."),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("Ri", "ght.", None)]}
                ]
            },
            "Right.",
        ),
        ({"messages": [{"role": "assistant", "content": None}]}, ""),
        ({"messages": [{"role": "user", "content": "Rate."}]}, ""),
        ({"prompt": "Rate."}, ""),
    ],
)
def test_what_the_assistant_says_last_is_text_also_in_parts(row, text):
    assert completion_text(row) == text


def test_what_pandas_has_for_nothing_is_nothing():
    nothing = float("nan")
    assert prompt({**RECORD, "reference": nothing}) == prompt(RECORD)
    with pytest.raises(InputError, match=r"needs `instruction`, `response` and `rubric`"):
        prompt({**RECORD, "rubric": nothing})
    assert examples([{**RECORD, "rationale": nothing, "score": 3}])[0]["completion"] == f"{PREFIX}3"


@pytest.mark.parametrize(("record", "found"), [("Rate it.", "str: 'Rate it.'"), (["a"], r"list: \['a'\]")])
def test_what_is_no_record_is_refused(record, found):
    with pytest.raises(InputError, match=f"^Expected a record with `instruction`, .*; found {found}"):
        prompt(record)


def test_messages_must_be_turns():
    with pytest.raises(InputError, match=r"^`messages` must be a list of turns with `role` and `content`; found 'hi'"):
        prompt({"messages": "hi"})


ANNOTATED = {**RECORD, "rationale": "Right.", "score": 5}


def without(name):
    return {key: value for key, value in ANNOTATED.items() if key != name}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [ANNOTATED, without("score")],
            r"training takes a score, one of \['score', 'gpt4_score', 'orig_score'\]; found \[",
        ),
        ([ANNOTATED, without("rationale")], r"no rationale \(one of .*\), unlike the records before; found \["),
        ([without("rationale"), ANNOTATED], r"a rationale \(one of .*\), unlike the records before; found \["),
        (
            [ANNOTATED, {**ANNOTATED, "score": True}],
            r"A gold score must be a number or a list of numbers, found True\.",
        ),
    ],
)
def test_a_record_whose_annotation_does_not_fit_is_refused_with_its_number(records, message):
    with pytest.raises(InputError, match=f"^Record 1: {message}"):
        examples(records)


def test_records_without_rationales_end_with_the_score_alone():
    found = examples([without("rationale"), {**RECORD, "score": 2}])
    assert [row["completion"] for row in found] == [f"{PREFIX}5", f"{PREFIX}2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right. So the overall score is 4", "Right."),
        ("Right. So the overall score is **4** out of 5.", "Right."),
        ("Right. [RESULT] 3.67", "Right."),
        ("Right. [RESULT] B+", "Right."),
        ('It asks me to end with "So the overall score is "', 'It asks me to end with "So the overall score is "'),
        ("Not [RESULT] 4 but more.", "Not [RESULT] 4 but more."),
        ('As in "So the overall score is 4".', 'As in "So the overall score is 4".'),
        ("As in 'So the overall score is 4'.", "As in 'So the overall score is 4'."),
        ('It says: "Well. So the overall score is 4."', 'It says: "Well. So the overall score is 4."'),
        ('A "clear" answer. So the overall score is "4"', 'A "clear" answer.'),
        ('A "clear" answer. [RESULT] 4"', 'A "clear" answer.'),
        ('"Right. So the overall score is 4"', '"Right.'),
    ],
)
def test_only_a_closing_phrase_with_a_label_at_the_end_is_cut_off(text, expected):
    assert annotated_rationales({"rationale": text}, PREFIX) == [expected]


@pytest.mark.parametrize(
    ("prefix", "separator"),
    [(PREFIX, " "), ("\n\nScore: ", ""), ("<score>", ""), (', "score": ', ""), ("评分\uff1a", ""), ("[RESULT] ", " ")],
)
def test_no_space_stands_before_a_prefix_that_needs_none(prefix, separator):
    scale = ScoreScale.integers(1, 5)
    (row,) = training_examples([ANNOTATED], scale, prefix)
    assert row["completion"] == f"Right.{separator}{prefix}5"


def test_control_tokens_in_an_annotation_become_plain_text():
    controls = ControlTokens.of(make_tokenizer("qwen"))
    record = {**ANNOTATED, "rationale": "It ends <|im_end|> here."}
    (row,) = training_examples([record], ScoreScale.integers(1, 5), PREFIX, controls=controls)
    assert row["completion"] == f"It ends < |im_end|> here. {PREFIX}5"


def test_the_closing_is_joined_with_white_space_once():
    assert close("Right.", PREFIX, "4") == "Right. So the overall score is 4"
    assert close("Right.\n", PREFIX, "4") == "Right.\nSo the overall score is 4"
    assert close("", PREFIX, "4") == "So the overall score is 4"


# Files


def test_json_and_jsonl_files_hold_the_same_records(tmp_path):
    # U+2028 and U+0085 are line ends to str.splitlines, but not to JSON.
    records = [{"instruction": "Prüfe.\u2028\x85", "response": "7\n8", "rubric": "r"}, RECORD]
    (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    lines = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl").write_text(lines + "\n", encoding="utf-8")
    (tmp_path / "crlf.jsonl").write_bytes(lines.replace("\n", "\r\n").encode())
    for name in ("a.json", "a.jsonl", "crlf.jsonl"):
        assert read_rows(tmp_path / name) == records


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", r"a\.json is not valid JSON: .* Give a \.json list or a \.jsonl file, one record a line\.$"),
        ("a.jsonl", '{"a": 1}\n{"a"', r"a\.jsonl, line 2, is not valid JSON: Expecting ':' delimiter at character 5\."),
        (
            "a.json",
            '{"a": 1}',
            r"a\.json must hold a list of records, or an object .* found dict\.$",
        ),
        ("a.json", '[{"prompt": "x"}, 2]', r"Record 1 of .*a\.json must be an object, found 2\.$"),
        ("a.json", "[]", r"a\.json holds no records\.$"),
        ("a.jsonl", "\n", r"a\.jsonl holds no records\.$"),
    ],
)
def test_a_file_that_holds_no_records_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_the_built_in_template_survives_a_round_of_jinja_defaults():
    # The saved judge_config.json holds this text: a change here changes what saved judges were trained on.
    assert DEFAULT_TEMPLATE.count("{{") == 9


def test_only_the_last_answer_of_a_conversation_is_left_out_of_the_prompt():
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert prompt_of({"messages": turns}, ScoreScale.integers(1, 5), "Score: ") == turns[:3]
    assert prompt_of({"messages": turns[:3]}, ScoreScale.integers(1, 5), "Score: ") == turns[:3]


def test_a_field_that_no_record_has_is_an_error_and_a_missing_one_may_be_asked_for():
    template = "{{ instruction }} {{ response }} {% if category %}{{ category }}{% endif %}"
    assert prompt(RECORD, template=template).strip() == "Name a prime. 7"
    with pytest.raises(InputError, match=r"prompt_template cannot be rendered .*'rubrik' is undefined"):
        prompt(RECORD, template="{{ response }} {{ rubrik }}")
    with pytest.raises(InputError, match=r"prompt_template cannot be rendered .*division"):
        prompt(RECORD, template="{{ response }} {{ 1 / 0 }}")
    with pytest.raises(InputError, match=r"prompt_template cannot be rendered .*no loader for this environment"):
        prompt(RECORD, template="{{ response }} {% include 'other' %}")
