"""Records and pairs of one question are a group."""

import math

from tract_trainer.evaluation.groups import pair_groups, record_groups


def prometheus(instruction, response):
    return (
        "###Task Description:\nRate it.\n\n###The instruction to evaluate:\n"
        f"{instruction}\n\n###Response to evaluate:\n{response}\n\n###Reference Answer (Score 5):\nx\n\n###Feedback: "
    )


def test_responses_to_one_instruction_are_a_group_and_others_are_alone():
    asked = ["Count.", "Add.", "Count.", "Spell."]
    rows = [{"instruction": text, "response": f"{number}"} for number, text in enumerate(asked)]
    assert record_groups(rows) == [0, 1, 0, 3]
    ready = [{"instruction": text} for text in asked]  # of these, the instruction is the whole prompt
    assert record_groups(ready) == [0, 1, 2, 3]


def test_the_instruction_is_found_in_a_prometheus_prompt_under_either_name():
    texts = [prometheus("Count.\nTo two.", "1 2"), prometheus("Add.", "3"), prometheus("Count.\nTo two.", "2 1")]
    assert record_groups([{"instruction": text} for text in texts]) == [0, 1, 0]
    assert record_groups([{"prompt": text} for text in texts]) == [0, 1, 0]
    original = [{"instruction": f"ready {number}", "orig_instruction": "ab"[number % 2]} for number in range(4)]
    assert record_groups(original) == [0, 1, 0, 1]


def test_a_column_group_comes_first_then_idx_where_it_repeats():
    rows = [{"instruction": "Count." if i < 3 else "Add.", "response": f"{i}", "idx": 80 + i // 2} for i in range(4)]
    assert record_groups(rows) == [0, 0, 2, 2]
    assert record_groups([{**row, "group": i % 2} for i, row in enumerate(rows)]) == [0, 1, 0, 1]
    numbered = [{**row, "idx": i} for i, row in enumerate(rows)]  # the number of a row says nothing of its question
    assert record_groups(numbered) == [0, 0, 0, 3]
    for missing in (None, "", math.nan):
        assert record_groups([{**row, "group": missing} for row in rows]) == [0, 0, 2, 2]


def test_if_all_records_are_of_one_question_each_is_a_group():
    rows = [{"instruction": "Count.", "response": f"{i}"} for i in range(3)]
    assert record_groups(rows) == [0, 1, 2]
    assert record_groups([{**row, "group": "same"} for row in rows]) == [0, 1, 2]


def pair(subset, instruction=None, **more):
    side = {"prompt": "ready"} if instruction is None else {"instruction": instruction, "response": "x"}
    return {"subset": subset, "chosen": side, "rejected": side, **more}


def test_pairs_of_one_instruction_are_a_group():
    pairs = [pair("a", "Count."), pair("b", "Add."), pair("b", "Count."), pair("b"), pair("b")]
    assert pair_groups(pairs) == [0, 1, 0, 3, 4]
    assert pair_groups([{**one, "group": i % 2} for i, one in enumerate(pairs)]) == [0, 1, 0, 1, 0]


def test_a_problem_of_reward_bench_in_several_languages_is_one_problem():
    hep = [pair(f"hep-{language}", f"{language} {i}", id=i) for language in ("go", "js") for i in range(2)]
    assert pair_groups([*hep, pair("donotanswer", "Hi", id=0)]) == [0, 1, 0, 1, 4]
    assert pair_groups([{**one, "id": None} for one in hep]) == [0, 1, 2, 3]


def test_both_prompts_of_a_problem_of_ties_are_one_problem():
    ties = [pair("Ties", f"{kind} {i}", id=f"{kind}:{i}") for kind in ("ref", "tied") for i in range(2)]
    several = {**pair("Math", "Hi"), "chosen": [{"instruction": "Hi", "response": "x"}]}
    assert pair_groups([*ties, several, pair("Math", "Hi")]) == [0, 1, 0, 1, 4, 4]
