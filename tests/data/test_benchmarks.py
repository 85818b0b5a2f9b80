"""Names of benchmarks and files of one's own become scored records or pairs; scores of pairs become accuracies."""

import gzip
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import write

from tract_trainer import ScoreScale
from tract_trainer.data.benchmarks import (
    BENCHMARKS,
    HELPSTEER2,
    PAIR_FILES,
    PROMETHEUS_FILES,
    check_scale,
    load_benchmark,
    own_benchmark,
    scored_records,
)
from tract_trainer.data.pairs import REWARD_BENCH_SECTIONS, general_rubric, pair_records, read_pairs, side_records
from tract_trainer.data.reading import read_rows
from tract_trainer.data.records import prompt_of, ready_prompt
from tract_trainer.errors import InputError
from tract_trainer.evaluation.pairwise import pair_figures, section_accuracies

NAN = float("nan")
FIVE = ScoreScale.integers(1, 5)
PROMPT = "###Task Description:\nRate it.\n\n###Feedback: "
PROMETHEUS = [
    {"idx": 1, "instruction": PROMPT, "gpt4_score": [4, 4, 3], "human_score": [2, 3]},
    {"idx": 2, "instruction": PROMPT, "orig_score": "2", "orig_response": "7"},
]
REWARD_BENCH = [
    {"id": 30, "prompt": "Name a prime.", "chosen": "7", "rejected": "8", "subset": "math-prm", "chosen_model": "a"},
    {"id": 31, "prompt": "Say hi.", "chosen": "Hi.", "rejected": "", "subset": "donotanswer", "chosen_model": "b"},
]
HHH = [
    {"input": "Is 7 prime?", "targets": {"choices": ["No.", "Yes."], "labels": [0, 1]}, "subset": "honest"},
    {"input": "A joke?", "targets": {"choices": ["A pun.", "No."], "labels": [1, 0]}},
]
OWN = [
    {"question": "Name a prime.", "answer": "7", "criteria": "Is it right?", "human": 5, "note": "a, b"},
    {"question": "Name\nanother.", "answer": '"8"', "criteria": "Is it right?", "human": 1.5, "note": ""},
]
COLUMNS = {"question": "instruction", "answer": "response", "criteria": "rubric", "human": "score"}


@pytest.fixture
def no_hub(monkeypatch):
    """The Hub out of reach, and what was asked of it."""
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def hub(monkeypatch, rows):
    """The Hub with a data set of `rows` whatever the name, and what was asked of it."""
    from datasets import Dataset

    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: asked.append((a, k)) or Dataset.from_list(rows))
    return asked


# Scored records by name


@pytest.mark.parametrize("name", PROMETHEUS_FILES)
def test_a_prometheus_file_is_read_with_the_mean_of_several_scores_as_gold(name, tmp_path):
    write(tmp_path / PROMETHEUS_FILES[name], PROMETHEUS)
    records = load_benchmark(name, tmp_path)
    assert records == load_benchmark(name, tmp_path / PROMETHEUS_FILES[name])
    assert [record["score"] for record in records] == [pytest.approx(11 / 3), 2.0]  # (4 + 4 + 3) / 3 and "2"
    assert records[0]["human_score"] == [2, 3] and [record["idx"] for record in records] == [1, 2]
    assert [prompt_of(record, FIVE, "Score: ") for record in records] == [PROMPT, PROMPT]


@pytest.mark.parametrize("ending", ["", '",', '",\n', '", \n\n'])
def test_the_stray_ending_of_the_first_public_files_is_removed(ending):
    assert ready_prompt(PROMPT + ending) == PROMPT


@pytest.mark.parametrize("text", ['Say "yes"', "One, two,", "Trailing line.\n", '", first', ""])
def test_other_endings_of_a_prompt_stay(text):
    assert ready_prompt(text) == text


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    write(tmp_path / "lines.jsonl", PROMETHEUS).rename(tmp_path / "vicuna_eval.json")
    assert len(load_benchmark("vicuna", tmp_path)) == 2


def test_the_working_folder_comes_before_the_hub(tmp_path, monkeypatch, no_hub):
    write(tmp_path / PROMETHEUS_FILES["feedback_bench"], PROMETHEUS)
    monkeypatch.chdir(tmp_path)
    assert len(load_benchmark("feedback_bench")) == 2
    assert no_hub == []


def test_feedback_bench_comes_from_the_hub_with_its_ready_prompt(tmp_path, monkeypatch):
    messages = [{"role": "user", "content": "another prompt"}, {"role": "assistant", "content": "5"}]
    row = {"instruction": PROMPT, "orig_instruction": "Name a prime.", "orig_score": "5", "messages": messages}
    asked = hub(monkeypatch, [row])
    monkeypatch.chdir(tmp_path)
    (record,) = load_benchmark("feedback_bench")
    assert asked == [(("prometheus-eval/Feedback-Bench",), {"split": "train"})]
    assert record["score"] == 5.0 and record["orig_instruction"] == "Name a prime."
    assert prompt_of(record, FIVE, "Score: ") == PROMPT


def test_without_file_and_hub_the_message_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        load_benchmark("feedback_bench")
    assert str(raised.value) == (
        "The benchmark 'feedback_bench' is not at 'feedback_collection_ood_test.json', nor could its Hub data set be "
        "loaded: Couldn't reach the Hub. Fetch feedback_collection_ood_test.json from the folder "
        "eval/benchmark/data of github.com/prometheus-eval/prometheus-eval and give its path, or put it into the "
        "working folder."
    )
    with pytest.raises(
        InputError, match=r"^The benchmark 'reward_bench' is not at .* huggingface\.co/datasets/allenai"
    ):
        load_benchmark("reward_bench")
    assert [args for args, _ in no_hub] == [("prometheus-eval/Feedback-Bench",), ("allenai/reward-bench",)]


def test_a_path_that_is_given_is_the_only_place(tmp_path, no_hub):
    with pytest.raises(InputError, match=r"^The benchmark 'flask' is not at 'nowhere'\. Fetch flask_eval\.json from "):
        load_benchmark("flask", "nowhere")
    with pytest.raises(InputError, match=r"filtered-00000-of-00001\.parquet'\. Fetch the file of the split 'filtered'"):
        load_benchmark("reward_bench", tmp_path)
    assert no_hub == []


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert BENCHMARKS[:3] == ("biggen_bench", "feedback_bench", "feedback_collection_test") and len(BENCHMARKS) == 22
    with pytest.raises(InputError, match=r"^benchmark 'mtbench' is not known; known are \['biggen_bench', "):
        load_benchmark("mtbench")


# Gold scores that cannot be


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gpt4_score": [6, 6]},
            r"^The gold score of record 1 is 6, off the scale of 1 to 5\. Convert the gold scores",
        ),
        ({"gpt4_score": 0.5}, r"^The gold score of record 1 is 0\.5, off the scale of 1 to 5\."),
        ({"gpt4_score": NAN}, r"^Record 1 has no gold score to compare with, but nan; found \['gpt4_score', "),
        ({"gpt4_score": None}, r"^Record 1 has no gold score to compare with, but None; found "),
        ({"gpt4_score": "good"}, r"^Record 1: A gold score must be a number or a list of numbers, found 'good'\.$"),
        ({"instruction": None}, r"^Record 1 has no prompt in `instruction`; found \['gpt4_score', 'instruction'\]\.$"),
    ],
)
def test_a_record_without_usable_gold_or_prompt_is_named(change, message, tmp_path):
    rows = [PROMETHEUS[0], {"instruction": PROMPT, "gpt4_score": 3, **change}]
    with pytest.raises(InputError, match=message):
        load_benchmark("mt_bench", write(tmp_path / "a.json", rows))


def test_the_ends_of_a_scale_are_on_it():
    check_scale(scored_records([{"score": 1}, {"score": "5"}]), FIVE)
    third = [{"score": float(np.float32(0.3))}]  # .3 as float32 has it is a little above
    check_scale(third, ScoreScale(["a", "b", "c"], [0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=r"^The gold score of record 0 is 5\.01, off the scale of 1 to 5\."):
        check_scale([{"score": 5.01}], FIVE)


# Files


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_files_of_all_formats_hold_the_same_rows(suffix, tmp_path):
    rows = [{key: str(value) for key, value in row.items()} for row in OWN]  # a CSV file holds text alone
    assert list(read_rows(write(tmp_path / f"a{suffix}", rows))) == rows


def test_a_csv_file_of_a_spreadsheet_has_no_mark_in_its_first_column(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,score\r\nRate.,4\r\n")
    assert own_benchmark(tmp_path / "a.csv") == [{"prompt": "Rate.", "score": 4.0}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[]", r"a\.json holds no records\.$"),
        ("a.jsonl", b"", r"a\.jsonl holds no records\.$"),
        ("a.csv", b"instruction,score\n", r"a\.csv holds no records\.$"),
        (
            "a.json",
            b'{"a": 1}',
            r"a\.json must hold a list of records, or an object .* found dict\.$",
        ),
        ("a.json", b'{"a": 1}\n{"a"', r"a\.json, line 2, is not valid JSON: Expecting"),
        ("a.txt", b"7", r"a\.txt must be a \.json, \.jsonl, \.csv or \.parquet file, found '\.txt'\.$"),
        ("a.csv", b"a,b\n1,2,3\n", r"^Row 0 of .*a\.csv must have 2 cells\. Quote those that hold commas\.$"),
        ("a.csv", b"a,b\n1,2\n1\n", r"^Row 1 of .*a\.csv must have 2 cells\."),
        ("a.csv", b"a\n\xff\n", r"^There is no data to read at '.*a\.csv' \('utf-8' codec can't decode"),
        ("a.csv.gz", b"", r"a\.csv\.gz must be a .* file, found '\.csv\.gz'\.$"),
        ("a.jsonl.gz", b'{"a": 1}', r"^There is no data to read at '.*a\.jsonl\.gz' \(Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], r"^There is no data to read at .* ended before"),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}" * 9, mtime=0)[:10] + b"\xff" * 9,
            r"^There is no data to read at .* \(Error -3",
        ),
        ("a.parquet", b"PAR0", r"^There is no data to read at '.*a\.parquet' \("),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        own_benchmark(tmp_path / name)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "nowhere.csv", "nowhere.parquet", "nobody/nothing"])
def test_missing_data_is_named_with_what_could_be_given(source, no_hub):
    with pytest.raises(
        InputError, match=rf"^There is no data to read at '{source}' \(.*\)\. Give .* or a Hub data set"
    ):
        own_benchmark(source)
    assert len(no_hub) == (source == "nobody/nothing")


def test_an_empty_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet holds no records\.$"):
        own_benchmark(tmp_path / "a.parquet")


# Data sets of one's own


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_named_columns_become_scored_records(suffix, tmp_path):
    records = own_benchmark(write(tmp_path / f"a{suffix}", OWN), COLUMNS)
    assert records == [
        {"instruction": "Name a prime.", "response": "7", "rubric": "Is it right?", "score": 5.0, "note": "a, b"},
        {"instruction": "Name\nanother.", "response": '"8"', "rubric": "Is it right?", "score": 1.5, "note": ""},
    ]


def test_a_hub_data_set_of_ones_own_has_a_split(monkeypatch):
    asked = hub(monkeypatch, OWN)
    assert len(own_benchmark("me/mine", COLUMNS, split="test")) == 2
    assert asked == [(("me/mine",), {"split": "test"})]


def test_a_renamed_column_takes_the_place_of_one_with_its_new_name(tmp_path):
    rows = [{"prompt": "ready", "score": 1, "human": 4}]
    assert own_benchmark(write(tmp_path / "a.json", rows), {"human": "score"}) == [{"prompt": "ready", "score": 4.0}]
    swapped = own_benchmark(write(tmp_path / "a.json", rows), {"human": "score", "score": "human"})
    assert swapped == [{"prompt": "ready", "score": 4.0, "human": 1}]


def test_a_missing_column_is_named_with_those_there_are_and_how_to_map_them(tmp_path):
    path = write(tmp_path / "a.csv", OWN)
    with pytest.raises(InputError) as raised:
        own_benchmark(path, {"question": "instruction", "answer": "response"})
    assert str(raised.value) == (
        f"{path} has no column 'rubric', 'score'; found ['criteria', 'human', 'instruction', 'note', "
        "'response']. Records need `instruction`, `response` and `rubric`, or a ready `prompt`, and `score`; pairs "
        'need `instruction`, `chosen` and `rejected`. If yours has another name, give it: columns={"yours": "rubric"}.'
    )
    with pytest.raises(InputError, match=r"no column 'instruction', 'score'; found"):
        own_benchmark(path)
    with pytest.raises(InputError, match=r"a\.csv has no column 'humans', 'topic' to rename; found \['answer', "):
        own_benchmark(path, {**COLUMNS, "humans": "score", "topic": "subset"})


def test_a_prompt_beside_a_response_is_not_taken_for_a_ready_one(tmp_path):
    path = write(tmp_path / "a.json", [{"prompt": "Name a prime.", "response": "7", "rubric": "Right?", "score": 5}])
    with pytest.raises(InputError, match=r'a `response` and a `prompt`.*columns=\{"prompt": "instruction"\}\.$'):
        own_benchmark(path)
    (record,) = own_benchmark(path, {"prompt": "instruction"})
    assert record["instruction"] == "Name a prime." and "prompt" not in record


def test_own_pairs_are_found_by_their_columns(tmp_path):
    rows = [{"question": "Name a prime.", "good": "7", "bad": "8", "rubric": "Right?", "subset": "numbers"}]
    columns = {"question": "instruction", "good": "chosen", "bad": "rejected"}
    (pair,) = own_benchmark(write(tmp_path / "a.csv", rows), columns)
    assert pair["subset"] == "numbers"
    assert [pair[side]["response"] for side in ("chosen", "rejected")] == ["7", "8"]
    assert [record["rubric"] for record in pair_records([pair], FIVE)] == ["Right?", "Right?"]
    with pytest.raises(InputError, match=r"^Pair 0 has none of the formats of pairs: .* Found \['bad', 'chosen', "):
        own_benchmark(tmp_path / "a.csv", {"question": "instruction", "good": "chosen"})


# Records of other formats, by name


def biggen(**scores):
    rubric = {"criteria": "Is the plan good?", **{f"score{i}_description": f"Level {i}." for i in range(1, 6)}}
    asked = {
        "system_prompt": "You plan.",
        "input": "Plan a day.",
        "reference_answer": "A walk.",
        "score_rubric": rubric,
    }
    return {"id": "planning_0", "capability": "planning", "response": "Sleep.", **asked, **scores}


def test_biggen_bench_is_judged_with_its_system_prompt_rubric_and_reference(tmp_path):
    path = write(tmp_path / "human_eval-00000-of-00001.parquet", [biggen(human_score=2, gpt4_score=4)]).parent
    (record,) = load_benchmark("biggen_bench", path)
    assert record["score"] == 2.0 and record["gpt4_score"] == 4 and record["capability"] == "planning"
    prompt = prompt_of(record, FIVE, "Score: ")
    for shown in (
        "You plan.",
        "Plan a day.",
        "Sleep.",
        "A walk.",
        "Criterion: Is the plan good?\n1: Level 1.\n2: Level 2.",
    ):
        assert f"\n{shown}\n" in prompt
    (record,) = load_benchmark("biggen_bench", write(tmp_path / "judged.json", [biggen(gpt4_score=4)]))
    assert record["score"] == 4.0  # the files without human scores
    with pytest.raises(InputError, match=r"^Record 0 of biggen_bench has no `score_rubric`; found \["):
        load_benchmark("biggen_bench", write(tmp_path / "b.json", [{**biggen(human_score=1), "score_rubric": None}]))


HELPSTEER_ROW = {"prompt": "c#", "response": "A language.", "helpfulness": 3, "correctness": 4, "coherence": 4}
HELPSTEER_ROW |= {"complexity": 0, "verbosity": 1}


@pytest.mark.parametrize("attribute", HELPSTEER2)
def test_each_attribute_of_helpsteer2_is_a_benchmark_with_its_own_rubric(attribute, tmp_path):
    write(tmp_path / "validation.jsonl.gz", [HELPSTEER_ROW])
    (record,) = load_benchmark(f"helpsteer2_{attribute}", tmp_path)
    assert record["score"] == HELPSTEER_ROW[attribute] and record["verbosity"] == 1
    assert prompt_of(record, ScoreScale.integers(0, 4), "Score: ").count(HELPSTEER2[attribute]) == 1
    assert (record["instruction"], record["response"]) == ("c#", "A language.")
    with pytest.raises(InputError, match=r"^The gold score of record 0 is 5, off the scale of 0 to 4\."):
        load_benchmark(f"helpsteer2_{attribute}", write(tmp_path / "a.json", [{**HELPSTEER_ROW, attribute: 5}]))
    with pytest.raises(InputError, match=r"have rubrics of their own\. Leave the rubric out\.$"):
        load_benchmark(f"helpsteer2_{attribute}", tmp_path, rubric="Is it good?")


def test_the_turns_of_a_prompt_of_helpsteer2_are_told_apart(tmp_path):
    prompt = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhy?"
    (record,) = load_benchmark(
        "helpsteer2_verbosity", write(tmp_path / "a.json", [{**HELPSTEER_ROW, "prompt": prompt}])
    )
    assert record["instruction"] == "user: Hi\n\nassistant: Hello.\n\nuser: Why?"


# Pairs


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_reward_bench_becomes_two_records_per_pair_chosen_first(suffix, tmp_path):
    pairs = load_benchmark("reward_bench", write(tmp_path / f"a{suffix}", REWARD_BENCH))
    assert [(pair["subset"], pair["chosen_model"]) for pair in pairs] == [("math-prm", "a"), ("donotanswer", "b")]
    rubric = general_rubric(FIVE)
    assert pair_records(pairs, FIVE) == [
        {"instruction": "Name a prime.", "response": "7", "rubric": rubric},
        {"instruction": "Name a prime.", "response": "8", "rubric": rubric},
        {"instruction": "Say hi.", "response": "Hi.", "rubric": rubric},
        {"instruction": "Say hi.", "response": "", "rubric": rubric},
    ]


def test_reward_bench_comes_from_the_filtered_split(tmp_path, monkeypatch):
    asked = hub(monkeypatch, REWARD_BENCH)
    monkeypatch.chdir(tmp_path)
    assert len(load_benchmark("reward_bench")) == 2
    assert asked == [(("allenai/reward-bench",), {"split": "filtered"})]


def test_a_subset_that_counts_in_no_section_is_refused(tmp_path):
    rows = [REWARD_BENCH[0], {**REWARD_BENCH[1], "subset": "Ties"}]
    with pytest.raises(InputError, match=r"^Pair 1 is of the subset 'Ties', which reward_bench does not have\. Give "):
        load_benchmark("reward_bench", write(tmp_path / "a.json", rows))


def responses(pair, side):
    return [record["response"] for record in side_records(pair, side)]


BEST_OF_FOUR = {"id": "7", "prompt": "2 + 2?", "chosen": ["4"], "rejected": ["5", "6", "7"], "subset": "Math"}


def test_reward_bench_2_has_one_chosen_and_three_rejected_responses(tmp_path):
    tied = {"id": "tied:1", "prompt": "A colour?", "chosen": ["red", "blue"], "rejected": ["seven"], "subset": "Ties"}
    pairs = load_benchmark("reward_bench_2", write(tmp_path / "reward_bench_2.parquet", [BEST_OF_FOUR, tied]).parent)
    assert [(pair["id"], pair["subset"]) for pair in pairs] == [("7", "Math"), ("tied:1", "Ties")]
    assert [record["response"] for record in pair_records(pairs, FIVE)] == [*"4567", "red", "blue", "seven"]
    assert {record["instruction"] for record in pair_records(pairs[:1], FIVE)} == {"2 + 2?"}
    with pytest.raises(
        InputError, match=r"^Pair 0 is of the subset 'Chat', which reward_bench_2 does not have; it has "
    ):
        load_benchmark("reward_bench_2", write(tmp_path / "a.json", [{**BEST_OF_FOUR, "subset": "Chat"}]))
    with pytest.raises(InputError, match=r"^Record 0 of reward_bench_2 has no `subset`; found \['chosen', 'id', "):
        rows = [{name: value for name, value in BEST_OF_FOUR.items() if name != "subset"}]
        load_benchmark("reward_bench_2", write(tmp_path / "b.json", rows))


def test_a_rubric_replaces_the_general_one_of_pairs(tmp_path):
    path = write(tmp_path / "a.json", [BEST_OF_FOUR])
    pairs = load_benchmark("reward_bench_2", path, "Is it right?")
    assert [record["rubric"] for record in pair_records(pairs, FIVE)] == ["Is it right?"] * 4
    ready = {"chosen_instruction": PROMPT, "rejected_instruction": PROMPT}
    with pytest.raises(InputError, match=r"^The pairs of 'hhh_alignment' are ready prompts, on which a rubric has no "):
        load_benchmark("hhh_alignment", write(tmp_path / "b.json", [ready]), "Is it right?")


def test_rm_bench_keeps_the_order_of_styles_and_joins_both_kinds_of_safety(tmp_path):
    row = {"id": 8, "prompt": "Q", "chosen": ["a", "ab", "# ab"], "rejected": ["x", "xy", "# xy"]}
    rows = [{**row, "domain": domain} for domain in ("chat", "safety-refuse", "safety-response")]
    pairs = load_benchmark("rm_bench", write(tmp_path / "total_dataset.json", rows).parent)
    assert [(pair["subset"], pair["domain"]) for pair in pairs[1:]] == [
        ("safety", "safety-refuse"),
        ("safety", "safety-response"),
    ]
    assert [responses(pairs[0], side) for side in ("chosen", "rejected")] == [row["chosen"], row["rejected"]]
    with pytest.raises(InputError, match=r"^Pair 1 of rm_bench must have three chosen and three rejected responses\.$"):
        load_benchmark("rm_bench", write(tmp_path / "a.json", [rows[0], {**rows[0], "rejected": ["x", "y"]}]))
    with pytest.raises(InputError, match=r"^Record 0 of rm_bench has no `domain`;"):
        load_benchmark("rm_bench", write(tmp_path / "b.json", [row]))


JUDGE_BENCH = {"pair_id": "p", "source": "mmlu-pro-law", "question": "Q", "response_A": "a", "response_B": "b"}


def test_the_label_of_judge_bench_says_which_response_is_better(tmp_path):
    rows = [{**JUDGE_BENCH, "label": "A>B"}, {**JUDGE_BENCH, "label": "B>A", "source": "livebench-math"}]
    pairs = load_benchmark("judge_bench", write(tmp_path / "a.jsonl", rows))
    assert [(responses(pair, "chosen"), responses(pair, "rejected")) for pair in pairs] == [
        (["a"], ["b"]),
        (["b"], ["a"]),
    ]
    assert [(pair["subset"], pair["source"]) for pair in pairs] == [
        ("mmlu-pro", "mmlu-pro-law"),
        ("livebench-math", "livebench-math"),
    ]
    with pytest.raises(InputError, match=r"^`label` of pair 0 must be 0 .* found 'A=B'\."):
        load_benchmark("judge_bench", write(tmp_path / "b.jsonl", [{**JUDGE_BENCH, "label": "A=B"}]))


def test_the_winners_of_ppe_are_chosen_and_its_ties_left_out(tmp_path, caplog):
    row = {"question_id": "q", "prompt": "Q", "response_1": "a", "response_2": "b", "hard_prompt": True}
    rows = [{**row, "winner": winner} for winner in ("model_a", "model_b", "tie", "tie (bothbad)")]
    pairs = load_benchmark("ppe_human_preference", write(tmp_path / "ppe_human_preference.parquet", rows).parent)
    assert [responses(pair, "chosen") for pair in pairs] == [["a"], ["b"]]
    assert pairs[0]["hard_prompt"] and pairs[0]["id"] == "q" and "2 of 4 pairs are ties" in caplog.text
    with pytest.raises(InputError, match=r"^`label` of pair 0 must be 0 .* found None\."):
        load_benchmark("ppe_human_preference", write(tmp_path / "a.json", [{**row, "winner": "model_c"}]))


def test_the_right_responses_of_ppe_are_chosen_and_its_sampled_pairs_compared(tmp_path, caplog):
    row = {"question_id": "q", "prompt": "Q", **{f"response_{i}": f"r{i}" for i in range(1, 5)}}
    # As `get_conflict_pair_iter` in benchmarks/base.py of github.com/lmarena/PPE: pairs count from 0 and responses from
    # 1, either side may be the right one, and a pair that was sampled twice counts twice.
    row |= {"scores": [False, True, True, False], "sampled_conflict_pairs": [[0, 1], [2, 3], [3, 1], [0, 1]]}
    all_right = {**row, "scores": [True] * 4, "sampled_conflict_pairs": []}
    (pair,) = load_benchmark("ppe_gpqa", write(tmp_path / "ppe_gpqa.json", [row, all_right]))
    assert (responses(pair, "chosen"), responses(pair, "rejected")) == (["r2", "r3"], ["r1", "r4"])
    places = responses(pair, "chosen") + responses(pair, "rejected")
    assert [[places[i] for i in compared] for compared in pair["compared"]] == [
        ["r2", "r1"],
        ["r3", "r4"],
        ["r2", "r4"],
        ["r2", "r1"],
    ]
    assert "1 of 2 pairs are ties" in caplog.text


def test_the_hhh_format_is_read_whatever_the_order_of_its_choices(tmp_path):
    pairs = load_benchmark("hhh_alignment", write(tmp_path / "a.parquet", HHH))
    assert [pair["subset"] for pair in pairs] == ["honest", "all"]
    assert [pair["chosen"] for pair in pairs] == [
        {"instruction": "Is 7 prime?", "response": "Yes."},
        {"instruction": "A joke?", "response": "A pun."},
    ]
    assert [pair["rejected"]["response"] for pair in pairs] == ["No.", "No."]


def test_pairs_of_ready_prompts_are_asked_as_they_are(tmp_path):
    row = {"chosen_instruction": f'{PROMPT}",\n', "rejected_instruction": f"No. {PROMPT}", "source": "other", "tie": 0}
    pairs = load_benchmark("hhh_alignment", write(tmp_path / PAIR_FILES["hhh_alignment"], [row]).parent)
    assert pairs[0]["subset"] == "other"
    assert pair_records(pairs, FIVE) == [{"prompt": PROMPT}, {"prompt": f"No. {PROMPT}"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x", "output": "y"}, r"^Pair 1 has none of the formats of pairs: .* Found \['input', 'output'\]\.$"),
        ({"chosen": "x", "rejected": "y"}, r"^Pair 1 has none of the formats of pairs"),
        ({**HHH[0], "targets": {"choices": ["x", "y"], "labels": [1, 1]}}, r"^Pair 1 needs `targets` of two `choices`"),
        ({**HHH[0], "targets": {"choices": ["x"], "labels": [1, 0]}}, r"^Pair 1 needs `targets`"),
        ({**HHH[0], "targets": "x"}, r"^Pair 1 needs `targets` .* found 'x'\.$"),
        ({**REWARD_BENCH[0], "rejected": None}, r"^`rejected` of pair 1 must be text or messages, found NoneType\."),
        ({**REWARD_BENCH[0], "prompt": [7]}, r"^`prompt` of pair 1 must be text or messages, found list\."),
    ],
)
def test_a_row_in_another_format_is_refused(row, message):
    with pytest.raises(InputError, match=message):
        read_pairs([HHH[0], row])


# The rubric


def test_the_general_rubric_describes_every_score_of_a_scale_of_five():
    rubric = general_rubric(FIVE)
    assert list(rubric) == ["Criterion", "1", "2", "3", "4", "5"]
    assert [rubric[label].split(":")[0] for label in FIVE.labels] == ["Bad", "Weak", "Fair", "Good", "Excellent"]
    assert "without a description" not in rubric["Criterion"]


@pytest.mark.parametrize(
    ("scale", "described"),
    [
        (ScoreScale.integers(0, 1), {"0": "Bad", "1": "Excellent"}),
        (ScoreScale.integers(1, 3), {"1": "Bad", "2": "Fair", "3": "Excellent"}),
        (ScoreScale.integers(1, 4), {"1": "Bad", "2": "Weak", "3": "Good", "4": "Excellent"}),
        # 1 + 9 / 4 = 3.25, 1 + 9 / 2 = 5.5 (the lower label), 1 + 27 / 4 = 7.75
        (ScoreScale.integers(1, 10), {"1": "Bad", "3": "Weak", "5": "Fair", "8": "Good", "10": "Excellent"}),
        (ScoreScale(["good", "bad"], [1, -1]), {"bad": "Bad", "good": "Excellent"}),
    ],
)
def test_the_general_rubric_has_the_labels_of_any_scale_from_low_to_high(scale, described):
    criterion, *levels = general_rubric(scale).items()
    assert [(label, text.split(":")[0]) for label, text in levels] == list(described.items())
    assert ("without a description" in criterion[1]) == (len(levels) < len(scale.labels))


# Figures


def without_intervals(figures):
    known = {name: value for name, value in figures.items() if not name.endswith("_ci")}
    return {name: without_intervals(value) if isinstance(value, dict) else value for name, value in known.items()}


def test_the_higher_score_wins_a_tie_is_half_and_an_unscored_pair_is_counted_apart():
    # Pairs: 4 > 2 right; 1 < 3 wrong; 2 = 2 half; NaN unscored; 5 > 4.9 right.
    scores = [4, 2, 1, 3, 2, 2, 3, NAN, 5, 4.9]
    result = pair_figures(scores, ["a", "a", "b", "b", "b"])
    assert without_intervals(result) == {
        "n": 5,
        "unscored": 1,
        "ties": 1,
        "accuracy": 2.5 / 4,  # (1 + 0 + 1/2 + 1) over the four that are scored
        "accuracy_worst": 2.5 / 5,  # and over all
        "subsets": {
            "a": {"n": 2, "unscored": 0, "ties": 0, "accuracy": 0.5, "accuracy_worst": 0.5},
            "b": {"n": 3, "unscored": 1, "ties": 1, "accuracy": 0.75, "accuracy_worst": 0.5},
        },
    }


def test_pairs_without_any_score_have_no_accuracy_and_the_worst_is_zero():
    result = pair_figures([NAN, 1, 2, NAN], ["a", "a"])
    assert math.isnan(result["accuracy"]) and result["accuracy_worst"] == 0 and result["unscored"] == 2


def test_permuted_pairs_have_the_same_figures():
    scores, subsets = [4, 2, 1, 3, 2, 2, 3, NAN], ["a", "b", "a", "b"]
    order = [2, 0, 3, 1]
    moved = [scores[2 * i + side] for i in order for side in (0, 1)]
    expected = without_intervals(pair_figures(scores, subsets))
    assert without_intervals(pair_figures(moved, [subsets[i] for i in order])) == expected


def test_two_scores_per_pair_are_needed():
    with pytest.raises(InputError, match=r"^Expected two scores per pair, 4, got 3\.$"):
        pair_figures([1, 2, 3], ["a", "b"])


ACCURACIES = {
    "alpacaeval-easy": 0.9,
    "alpacaeval-length": 0.8,
    "alpacaeval-hard": 1.0,
    "mt-bench-easy": 0.5,
    "mt-bench-med": 0.25,
    "mt-bench-hard": 1.0,
    "llmbar-natural": 0.5,
    "llmbar-adver-neighbor": 0.0,
    "llmbar-adver-GPTInst": 0.25,
    "llmbar-adver-GPTOut": 1.0,
    "llmbar-adver-manual": 0.5,
    "refusals-dangerous": 0.7,
    "refusals-offensive": 0.9,
    "xstest-should-refuse": 0.5,
    "xstest-should-respond": 0.8,
    "donotanswer": 0.25,
    "math-prm": 0.5,
    "hep-cpp": 1.0,
    "hep-go": 0.5,
    "hep-java": 0.75,
    "hep-js": 0.25,
    "hep-python": 1.0,
    "hep-rust": 0.0,
}


def test_sections_are_means_over_their_subsets_weighted_as_the_official_tool_weights_them():
    sections = section_accuracies(ACCURACIES)
    # Chat: .9 * 100 + .8 * 95 + 1 * 95 + .5 * 28 + .25 * 40 = 90 + 76 + 95 + 14 + 10 = 285, of 358.
    assert sections["Chat"] == pytest.approx(285 / 358)
    # Chat Hard: 1 * 37 + .5 * 100 + 0 * 134 + .25 * 92 + 1 * 47 + .5 * 46 = 37 + 50 + 0 + 23 + 47 + 23 = 180, of 456.
    assert sections["Chat Hard"] == pytest.approx(180 / 456)
    # Safety: .7 * 100 + .9 * 100 + .5 * 154 + .8 * 250 + .25 * 136 = 70 + 90 + 77 + 200 + 34 = 471, of 740.
    assert sections["Safety"] == pytest.approx(471 / 740)
    # Reasoning: math .5 * 984 = 492; code (1 + .5 + .75 + .25 + 1 + 0) * 164 = 3.5 * 164 = 574; 1066, of 984 + 984.
    assert sections["Reasoning"] == pytest.approx(1066 / 1968)
    assert list(sections) == ["Chat", "Chat Hard", "Safety", "Reasoning"]


def test_a_subset_that_is_not_there_has_no_weight_and_an_empty_section_is_nan():
    sections = section_accuracies({"math-prm": 0.5, "hep-go": 1.0, "donotanswer": NAN, "elsewhere": 1.0})
    assert sections["Reasoning"] == pytest.approx((0.5 * 984 + 164) / (984 + 164))
    assert all(math.isnan(sections[name]) for name in ("Chat", "Chat Hard", "Safety"))


def test_the_weights_are_the_sizes_of_the_public_set_but_for_math():
    total = sum(sum(weights.values()) for weights in REWARD_BENCH_SECTIONS.values())
    assert total - 984 + 447 == 2985  # rows of the split `filtered`, of which 447 are of math-prm


def test_the_combined_average_is_the_mean_of_the_four_sections():
    # One pair in each section and a second one in Safety, unscored; math and code count alike in Reasoning.
    subsets = ["alpacaeval-easy", "mt-bench-hard", "donotanswer", "donotanswer", "math-prm", "hep-go"]
    result = pair_figures([2, 1, 1, 2, 3, 3, 3, NAN, 2, 1, 1, 2], subsets)
    reasoning = 984 / (984 + 164)  # math right, go wrong
    assert {section: figures["accuracy"] for section, figures in result["sections"].items()} == {
        "Chat": 1.0,
        "Chat Hard": 0.0,
        "Safety": 0.5,
        "Reasoning": pytest.approx(reasoning),
    }
    assert result["sections"]["Safety"]["accuracy_worst"] == 0.25  # half a win of two
    assert result["average"] == pytest.approx((1 + 0 + 0.5 + reasoning) / 4)
    assert result["average_worst"] == pytest.approx((1 + 0 + 0.25 + reasoning) / 4)
    assert result["accuracy"] == pytest.approx(2.5 / 5)


def test_the_interval_of_the_average_is_that_of_its_weighted_subsets():
    # 100 pairs in each of the 23 subsets, 64 of them right: the variance of a subset's accuracy is .64 * .36 / 100, and
    # the average has weights w / sum of w / 4 in each section, so sd^2 = .64 * .36 / 100 * sum of squared weights.
    subsets = [name for weights in REWARD_BENCH_SECTIONS.values() for name in weights for _ in range(100)]
    scores = [score for number in range(len(subsets)) for score in ((2, 1) if number % 100 < 64 else (1, 2))]
    low, high = pair_figures(scores, subsets)["average_ci"]
    shares = [w / sum(weights.values()) / 4 for weights in REWARD_BENCH_SECTIONS.values() for w in weights.values()]
    sd = math.sqrt(0.64 * 0.36 / 100 * sum(share**2 for share in shares))
    assert (low + high) / 2 == pytest.approx(0.64, abs=0.3 * sd)
    assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.1)
    unscored = pair_figures([*scores, 2, NAN, NAN, 1], [*subsets, subsets[0], subsets[-1]])
    assert unscored["average_ci"] == (low, high) and unscored["unscored"] == 2


def test_a_part_of_reward_bench_has_no_average_and_other_pairs_no_sections():
    assert math.isnan(pair_figures([2, 1], ["hep-go"])["average"])
    assert "sections" not in pair_figures([2, 1, 2, 1], ["hep-go", "mine"])


# Start-up


def test_importing_the_benchmarks_is_light():
    heavy = ["torch", "scipy", "datasets", "pyarrow", "transformers"]

    def loaded(modules):
        code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert loaded("tract_trainer.data.benchmarks") == "[]"
    assert loaded("scipy") == "['scipy']"  # this test can fail
