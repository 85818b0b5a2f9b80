"""A judge of the tests does what they need of it, or its fixture fails with what was expected."""

import pytest
import torch
from tiny import (
    RATIONALES,
    SECOND_THOUGHTS,
    THINKING,
    check_learned,
    make_dataset,
    make_rows,
    make_tokenizer,
    train_judge,
)
from transformers import AutoModelForCausalLM

from tract_trainer import Judge

RECORDS = [{"prompt": row["prompt"]} for row in make_rows(8, conversational=True)]
UNKNOWN = r"^Expected a judge that has learned its rows, so that each rationale ends with a score; found \d+ places"


def thinking():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKING
    return tokenizer


@pytest.mark.parametrize(
    "settings",
    [{}, {"conversational": False}, {"tokenizer": thinking()}, {"dataset": make_dataset(2, conversational=True)}],
    ids=["messages", "text", "thinking", "own rows"],
)
def test_a_judge_that_has_not_learned_its_rows_fails_its_fixture(tmp_path, settings):
    with pytest.raises(AssertionError, match=UNKNOWN + " that it does not know after 1 steps: after '.*'"):
        train_judge(tmp_path, most=1, **settings)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.v_proj.weight"])
def test_a_judge_that_is_no_longer_as_it_was_learned_fails_the_check(learned, judge_folder, monkeypatch, name):
    check_learned(learned)
    other = AutoModelForCausalLM.from_pretrained(judge_folder)
    with torch.no_grad():
        other.get_parameter(name).mul_(-1)
    monkeypatch.setattr(learned, "model", other)
    with pytest.raises(AssertionError, match=UNKNOWN):
        check_learned(learned)


def test_a_learned_judge_writes_what_it_was_shown_whatever_the_seed(judge_folder):
    judge = Judge.from_pretrained(judge_folder)
    greedy = judge.score(RECORDS, temperature=0, repetition_penalty=1, max_new_tokens=60, progress=False)
    assert [judgment.rationale.strip() for judgment in greedy] == RATIONALES
    drawn = judge.score(RECORDS, 20, seed=1, max_new_tokens=60, progress=False)
    for judgment, known in zip(drawn, zip(RATIONALES, SECOND_THOUGHTS, strict=True), strict=True):
        assert {rationale.text.strip() for rationale in judgment.rationales} <= set(known)
        assert all(rationale.label in "12345" for rationale in judgment.rationales)
    assert len({rationale.text for judgment in drawn for rationale in judgment.rationales}) > 8
