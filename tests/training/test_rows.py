"""Records become training rows, in the form that the judge is asked in later."""

import pytest
from datasets import Dataset
from tiny import PREFIX, make_tokenizer
from trl import ModelConfig

from tract_trainer import Judge, RegressionAwareSFTConfig, training_rows
from tract_trainer.cli.pipeline import training_data
from tract_trainer.errors import InputError

TASK = {"instruction": "Name a prime.", "rubric": "Right?"}
RECORDS = [
    {**TASK, "response": "7", "rationale": "It is.", "score": 4.67},
    {**TASK, "response": "8<|im_end|>", "rationale": ["It is even. [RESULT] 1", "No."], "score": 1},
]


def config(**settings):
    return RegressionAwareSFTConfig("x", use_cpu=True, bf16=False, **settings)


def test_a_record_gives_a_row_for_each_rationale():
    tokenizer = make_tokenizer("qwen")
    rows = training_rows(RECORDS, config(), tokenizer)
    assert isinstance(rows, Dataset) and rows["score"][:] == [4.67, 1, 1]
    answers = [row["completion"][0] for row in rows]
    assert [answer["content"] for answer in answers] == [
        f"It is. {PREFIX}5", f"It is even. {PREFIX}1", f"No. {PREFIX}1"
    ]  # fmt: skip
    assert {answer["role"] for answer in answers} == {"assistant"}
    assert {row["prompt"][0]["role"] for row in rows} == {"user"}
    assert "8< |im_end|>" in rows[1]["prompt"][0]["content"]
    assert training_rows(Dataset.from_list(RECORDS[:1]), config(), tokenizer).to_list() == rows.to_list()[:1]


def test_a_tokenizer_without_a_chat_template_gives_text():
    tokenizer = make_tokenizer("gpt2")
    tokenizer.chat_template = None
    args = config(
        score_labels=["A", "B"], score_values=[1, 5], score_prefix="Grade: ", prompt_template="{{ response }}"
    )
    assert training_rows(RECORDS[:1], args, tokenizer)[0] == {
        "prompt": "7", "completion": "It is. Grade: B", "score": 4.67
    }  # fmt: skip


def test_prompts_are_those_that_the_judge_is_asked_with(judge_folder):
    judge = Judge.from_pretrained(judge_folder)
    rows = training_rows(RECORDS, config(), judge.engine.tokens.tokenizer)
    asked = [judge.rows.prompt(record) for record in RECORDS]
    assert [row["prompt"] for row in rows.select([0, 1])] == [[{"role": "user", "content": text}] for text in asked]
    assert training_data(RECORDS, config(), ModelConfig(str(judge_folder))).to_list() == rows.to_list()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([RECORDS[0], {**TASK, "response": "7", "rationale": "x"}], r"^Record 1: training takes a score, one of"),
        (
            [RECORDS[0], {**TASK, "response": "7", "score": 3}],
            r"^Record 1: no rationale \(one of .*, unlike the records",
        ),
        ([{"response": "7", "score": 3}], r"^Record 0: A record needs `instruction`, `response` and `rubric`"),
    ],
)
def test_a_record_that_makes_no_row_is_named(records, message):
    with pytest.raises(InputError, match=message):
        training_rows(records, config(), make_tokenizer("qwen"))
