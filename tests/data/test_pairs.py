"""Pairs in their public formats."""

import pytest

from tract_trainer import ScoreScale
from tract_trainer.data.pairs import pair_records, read_pairs
from tract_trainer.data.records import prompt_of
from tract_trainer.errors import InputError
from tract_trainer.judge_config import DEFAULT_TEMPLATE

FIVE = ScoreScale.integers(1, 5)


def auto_j(label):
    return {"prompt": "Name a prime.", "response 1": "7", "response 2": "8", "label": label, "scenario": "math"}


def responses(pair):
    return [pair[side]["response"] for side in ("chosen", "rejected")]


def test_the_label_of_auto_j_says_which_response_is_better(caplog):
    pairs = read_pairs([auto_j(0), auto_j(1), auto_j(2), auto_j("1"), auto_j(0.0)])
    assert list(map(responses, pairs)) == [["7", "8"], ["8", "7"], ["8", "7"], ["7", "8"]]
    assert all(pair["chosen"]["instruction"] == "Name a prime." for pair in pairs)
    assert caplog.messages == [
        "1 of 5 pairs are ties, without a better response; the first is pair 2. They are left out."
    ]


def test_pairs_that_are_all_ties_are_refused():
    with pytest.raises(InputError, match=r"^2 of 2 pairs are ties, .* Give pairs with a better response\.$"):
        read_pairs([auto_j(2), auto_j(2)])


@pytest.mark.parametrize("label", ["first", 3, True, None])
def test_a_label_of_another_kind_is_refused(label):
    with pytest.raises(InputError, match=r"^`label` of pair 1 must be 0 \(the first response is better\), 1 \(the "):
        read_pairs([auto_j(0), auto_j(label)])


def test_a_label_beside_chosen_and_rejected_is_not_ignored():
    renamed = {"instruction": "a", "chosen": "b", "rejected": "c"}
    assert responses(read_pairs([{**renamed, "label": 0}])[0]) == ["b", "c"]
    for label in (1, 2):
        with pytest.raises(InputError, match=rf"^Pair 0 has `chosen` and `rejected`, and the `label` {label}\. If the"):
            read_pairs([{**renamed, "label": label}])


USER, GOOD, BAD = ({"role": role, "content": text} for role, text in zip(("user", *["assistant"] * 2), "qab"))  # noqa: B905


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},  # TRL's explicit prompt
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},  # and its implicit one
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # as in UltraFeedback
        {"prompt": "q", "chosen": [GOOD], "rejected": "b"},
    ],
)
def test_preference_rows_of_messages_are_pairs(row):
    (pair,) = read_pairs([row])
    assert [pair[side] for side in ("chosen", "rejected")] == [
        {"instruction": "q", "response": "a"},
        {"instruction": "q", "response": "b"},
    ]


def test_several_responses_on_a_side_are_lists_of_records():
    row = {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "rubric": "Right?"}
    (pair,) = read_pairs([row])
    assert pair["chosen"] == [{"instruction": "q", "response": "a", "rubric": "Right?"}]
    assert [record["response"] for record in pair_records([pair], FIVE)] == ["a", "b", "c"]
    (pair,) = read_pairs([{"chosen": [[USER, GOOD]], "rejected": [[USER, BAD], [USER, GOOD]]}])
    assert [(record["instruction"], record["response"]) for record in pair_records([pair], FIVE)] == [
        ("q", "a"),
        ("q", "b"),
        ("q", "a"),
    ]
    with pytest.raises(InputError, match=r"^Pair 0 has none of the formats of pairs"):
        read_pairs([{"chosen": ["a"], "rejected": ["b", "c"]}])
    with pytest.raises(InputError, match=r"^`rejected` of pair 0 must be text or messages, found NoneType\."):
        read_pairs([{**row, "rejected": ["b", None]}])


def test_several_turns_before_the_response_are_the_instruction():
    system = {"role": "system", "content": "Be brief."}
    parts = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    (pair,) = read_pairs([{"prompt": [system, USER, GOOD, parts], "chosen": [GOOD], "rejected": [BAD]}])
    expected = "system: Be brief.\n\nuser: q\n\nassistant: a\n\nuser: Why?"
    assert pair["chosen"] == {"instruction": expected, "response": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [USER, GOOD], "rejected": [GOOD, USER, BAD]}, "messages of pair 0 differ before the last turn"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "`chosen` of pair 0 is an answer without a question. Add `prompt`"),
        ({"prompt": "q", "chosen": [USER], "rejected": [BAD]}, "`chosen` of pair 0 must end with a turn of"),
        (
            {"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"},
            "must be text or messages with `content`",
        ),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "must be text or messages with `content`"),
    ],
)
def test_preference_rows_that_are_none_are_refused(row, message):
    with pytest.raises(InputError, match=message):
        read_pairs([row])


def test_a_system_prompt_is_shown_to_the_judge():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "system_prompt": "Be brief.", "rubric": "Right?"}
    chosen, rejected = pair_records(read_pairs([row]), FIVE)
    for record in (chosen, rejected):
        assert "\n\n### System prompt\nBe brief.\n\n### Instruction\nq\n" in prompt_of(record, FIVE, "Score: ")
    without = {name: value for name, value in chosen.items() if name != "system_prompt"}
    assert "System prompt" not in prompt_of(without, FIVE, "Score: ")
    old = DEFAULT_TEMPLATE.replace("system_prompt", "system")
    for record, template in ((chosen, old), ({"prompt": "q", "system_prompt": "Be brief."}, DEFAULT_TEMPLATE)):
        with pytest.raises(InputError, match=r"has a `system_prompt`, which its prompt would not show\. Put it into"):
            prompt_of(record, FIVE, "Score: ", template)
    assert prompt_of({**without, "system_prompt": ""}, FIVE, "Score: ", old)
