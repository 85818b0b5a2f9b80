"""`generate_cot_dataset`: the model's own rationales, closed with the gold score; safe to kill."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Value, load_dataset
from fake import FakeEngine, fake_judge, sure
from tiny import PREFIX, THINKING, make_dataset, make_model, make_rows, make_tokenizer, train_judge

from tract_trainer import (
    Judge,
    JudgeConfig,
    RegressionAwareSFTConfig,
    RegressionAwareSFTTrainer,
    generate_cot_dataset,
)
from tract_trainer.cli.pipeline import prompts_of
from tract_trainer.data.store import Shards
from tract_trainer.engines.base import Rationale

SETTINGS = {"max_new_tokens": 60, "progress": False}
GREEDY = {"temperature": 0, "repetition_penalty": 1.0, **SETTINGS}
# Nearly every token is as likely as every other, so no two rationales are the same.
RANDOM = {"temperature": 50.0, "top_p": 1.0, "max_new_tokens": 12, "unfinished": "force", "progress": False}


@pytest.fixture(scope="module")
def judge(judge_folder):
    return Judge.from_pretrained(judge_folder)


class Scripted:
    """An engine that writes what a function of (prompt text, seed, call number) says."""

    def __init__(self, engine, write):
        self.tokens, self.batch_size, self.identity, self.write = engine.tokens, 4, "scripted", write
        self.asked, self.calls, self.max_length = [], 1, None

    def generate(self, prompts, seeds, sampling):
        self.asked.append(list(seeds))
        texts = [self.tokens.tokenizer.decode(prompt) for prompt in prompts]
        return [self.write(text, seed) for text, seed in zip(texts, seeds, strict=True)]


@pytest.fixture
def scripted(judge):
    def build(write):
        return Judge(Scripted(judge.engine, write), dataclasses.replace(judge.config, conversational=False))

    return build


def finished(text, seed):
    return Rationale(f"Clear {seed % 1000}. ", "3", (-1.0,) * 5, 7)


def report(folder):
    return json.loads((folder / "report.json").read_text())


# The result


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "text"])
def test_the_result_has_the_prompts_form_the_gold_label_and_the_gold_score(judge, tmp_path, conversational):
    dataset = make_dataset(8, conversational=conversational)
    judge = Judge(judge.engine, dataclasses.replace(judge.config, conversational=conversational))
    found = generate_cot_dataset(judge, dataset, output_dir=tmp_path, unfinished="force", **SETTINGS)
    assert found.column_names == ["prompt", "completion", "score"]
    assert found["prompt"][:] == dataset["prompt"][:]
    assert found["score"][:] == pytest.approx(dataset["score"][:])
    texts = [c[0]["content"] if conversational else c for c in found["completion"]]
    if conversational:
        assert all([m["role"] for m in c] == ["assistant"] for c in found["completion"])
    # Gold 3.67, 3.33 and 4.5 write their nearest labels, whatever the model wrote.
    assert [text.rpartition(PREFIX)[2] for text in texts] == ["4", "2", "4", "5", "1", "3", "2", "4"]
    assert found.features["score"].dtype == "float64"


def test_the_result_goes_straight_into_the_trainer(judge, tmp_path):
    found = generate_cot_dataset(
        judge, make_dataset(8, conversational=True), output_dir=tmp_path / "cots", unfinished="force", **SETTINGS
    )
    tokenizer = make_tokenizer()
    args = RegressionAwareSFTConfig(
        str(tmp_path / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RegressionAwareSFTTrainer(
        model=make_model(vocab_size=len(tokenizer)), args=args, train_dataset=found, processing_class=tokenizer
    )
    gold = [[score for score in row if not math.isnan(score)] for row in trainer.train_dataset["score_labels"]]
    assert gold == [[pytest.approx(score)] for score in make_dataset(8)["score"]]
    trainer.train()


def test_text_prompts_of_a_chat_judge_become_messages_which_stage_2_trains_under_its_template(judge, tmp_path):
    asked, rows = [], make_rows(8)

    class Known(Scripted):
        def generate(self, prompts, *args):
            asked.extend(prompts)
            return super().generate(prompts, *args)

    engine = Known(judge.engine, lambda text, seed: Rationale("The answer is clear. ", "4", (-1.0,) * 5, 7))
    settings = {"output_dir": tmp_path / "cots", "batch_size": 1, **SETTINGS}
    found = generate_cot_dataset(Judge(engine, judge.config), Dataset.from_list(rows), **settings)
    assert found["prompt"][:] == [[{"role": "user", "content": row["prompt"]}] for row in rows]
    assert found["completion"][0] == [{"role": "assistant", "content": f"The answer is clear. {PREFIX}4"}]
    assert report(tmp_path / "cots")["verbatim"] == 1
    stage2, config = trained_rows(found, make_tokenizer(), tmp_path / "two")
    assert config.conversational
    assert [sum(row[: len(prompt)] == prompt for prompt in asked) for row in stage2] == [1] * 8


def test_what_the_template_puts_before_an_answer_is_in_no_row_twice(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = THINKING
    trainer = train_judge(tmp_path / "run", tokenizer=tokenizer)
    judge = Judge.from_model(trainer.model, tokenizer, trainer.judge_config)
    dataset = make_dataset(8, conversational=True)
    found = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "cots", **{**GREEDY, "max_new_tokens": 90})
    texts = [turns[0]["content"].strip() for turns in found["completion"]]
    assert len(texts) == 8 and not any("think" in text for text in texts)
    assert report(tmp_path / "cots")["verbatim"] == 8
    stage2, _ = trained_rows(found, tokenizer, tmp_path / "two")
    assert [tokenizer.decode(row).count("<think>") for row in stage2] == [1] * len(found)


def test_the_sampled_score_is_thrown_away_and_only_its_agreement_reported(scripted, tmp_path):
    judge = scripted(finished)  # always samples a 3
    found = generate_cot_dataset(judge, make_dataset(8), output_dir=tmp_path, **SETTINGS)
    assert not any(
        "is 3" in text for text, score in zip(found["completion"], found["score"], strict=True) if score > 3.5
    )
    gold = make_dataset(8)["score"][:]
    agreement = report(tmp_path)["discarded_score_agreement"]
    assert agreement["rmse"] == pytest.approx(math.sqrt(sum((3 - y) ** 2 for y in gold) / 8))
    assert agreement["n"] == 8 and agreement["unscored"] == 0


@pytest.mark.parametrize(("prefix", "separator"), [(PREFIX, "\n"), ("\n\nScore: ", ""), (", score: ", "")])
def test_rationales_are_closed_with_the_separator_of_training(tmp_path, prefix, separator):
    config = JudgeConfig(list("12345"), None, prefix, conversational=False, score_separator=separator)
    judge = fake_judge(lambda prompt: [sure(4)], config)
    rows = Dataset.from_list([{"prompt": "Rate it.\n", "score": 2.0}])
    found = generate_cot_dataset(judge, rows, output_dir=tmp_path, progress=False)
    assert found["completion"][:] == [f"Rationale 0.{separator}{prefix}2"]


@pytest.mark.parametrize("text", [f"Clear. {PREFIX}4, I think. ", f"Clear. {PREFIX}4. {PREFIX}3. "])
def test_a_score_within_a_rationale_does_not_get_into_the_row(tmp_path, text):
    judge = fake_judge(lambda prompt: [sure(4)])
    judge.engine.generate = lambda prompts, seeds, sampling: [Rationale(text, "4", (-1.0,) * 5, 9)] * len(prompts)
    rows = Dataset.from_list([{"prompt": "Rate it.\n", "score": 2.0}])
    found = generate_cot_dataset(judge, rows, output_dir=tmp_path, progress=False)
    assert found["completion"][0][0]["content"] == f"Clear. {PREFIX}2"


def test_without_a_score_column_the_gold_score_is_read_from_the_completion(scripted, tmp_path):
    for conversational in (True, False):
        dataset = make_dataset(8, conversational=conversational, with_score=False)
        found = generate_cot_dataset(scripted(finished), dataset, output_dir=tmp_path / str(conversational), **SETTINGS)
        assert found["score"][:] == [4, 2, 4, 5, 1, 3, 2, 4]


def test_without_a_score_column_the_gold_score_is_read_from_a_completion_in_parts(scripted, tmp_path):
    rows = make_rows(4, conversational=True, with_score=False)
    for row in rows:
        row["completion"][0]["content"] = [{"type": "text", "text": row["completion"][0]["content"]}]
    found = generate_cot_dataset(scripted(finished), Dataset.from_list(rows), output_dir=tmp_path, **SETTINGS)
    assert found["score"][:] == [4, 2, 4, 5]


def test_a_seed_of_numpys_is_a_seed(scripted, tmp_path):
    for name, seed in (("ours", 3), ("numpys", np.int64(3))):
        generate_cot_dataset(scripted(finished), make_dataset(2), seed=seed, output_dir=tmp_path / name, **SETTINGS)
    files = [(tmp_path / name / "settings.json").read_text() for name in ("ours", "numpys")]
    assert files[0] == files[1]


def test_a_model_object_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^Expected a folder, a Hub repository or a Judge as the model, found LlamaForCausalLM\. For a model in "
        r"memory, give Judge\.from_model\(model, tokenizer, config\), where config is trainer\.judge_config\.$",
    ):
        generate_cot_dataset(make_model(), make_dataset(2), output_dir=tmp_path, **SETTINGS)


def test_messages_with_their_answer_become_prompts(scripted, tmp_path):
    rows = make_rows(4, conversational=True)
    dataset = Dataset.from_list([{"messages": [*r["prompt"], *r["completion"]], "score": r["score"]} for r in rows])
    judge = scripted(finished)
    found = generate_cot_dataset(judge, dataset, output_dir=tmp_path, **SETTINGS)
    assert found["prompt"][:] == [row["prompt"] for row in rows]


TEMPLATE = """\
{% if tools %}{{ tools | tojson }}{% endif %}\
{% for m in messages %}<|im_start|>{{ m.role }}\n\
{% if m.role == 'assistant' and think %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% if think %}<think></think>{% endif %}{% endif %}"""
TOOLS = [
    {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "läs", "description": "Read."}},
]


def trained_rows(dataset, tokenizer, folder):
    """The tokens of each row as the trainer makes them, and the judge's config."""
    args = RegressionAwareSFTConfig(str(folder), report_to="none", use_cpu=True, bf16=False, max_length=None)
    model = make_model(vocab_size=len(tokenizer))
    trainer = RegressionAwareSFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    return trainer.train_dataset["input_ids"][:], trainer.judge_config


@pytest.mark.parametrize("as_text", [True, False], ids=["json", "list"])
def test_prompts_are_rendered_with_each_rows_own_columns_before_and_after(tmp_path, as_text):
    own = [{"think": True}, {"think": False}, {"think": True}, {"think": None}]
    tools = [json.dumps(TOOLS) if as_text else TOOLS, "[]" if as_text else [], None, None]
    rows = [
        {**row, "chat_template_kwargs": kwargs, "tools": each}
        for row, kwargs, each in zip(make_rows(4, conversational=True), own, tools, strict=True)
    ]
    dataset, tokenizer = Dataset.from_list(rows), make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    stage1, config = trained_rows(dataset, tokenizer, tmp_path / "one")
    asked = []

    class Asked(FakeEngine):
        def generate(self, prompts, *args):
            asked.extend(prompts)
            return super().generate(prompts, *args)

    engine = Asked(lambda text: [sure(2)], config)
    engine.tokens.tokenizer.chat_template = TEMPLATE
    settings = {"output_dir": tmp_path / "cots", "batch_size": 1, **SETTINGS}
    judge = Judge(engine, config)
    found = generate_cot_dataset(judge, dataset, **settings)
    assert found["chat_template_kwargs"][:] == own
    assert sorted(judge.rows.prompt_ids(row) for row in dataset) == sorted(asked)  # what judging reads
    closed = [judge.rows.scored_ids(row, "Clear.") for row in dataset]
    assert [any(row[: len(prompt)] == prompt for prompt in asked) for row in closed] == [True] * 4
    plain = {"instruction": "Rate.", "tools": TOOLS}  # a column of a record of that name is no tool of the judge's
    assert "run" not in tokenizer.decode(judge.rows.prompt_ids(plain))
    stage2, _ = trained_rows(found, tokenizer, tmp_path / "two")
    for rows in (stage1, stage2):
        assert [sum(row[: len(prompt)] == prompt for prompt in asked) for row in rows] == [1, 1, 1, 1]
    texts = [tokenizer.decode(row) for row in stage2]
    assert [("<think>" in text, '"name": "run"' in text) for text in texts] == [
        (True, True), (False, False), (True, False), (False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("given", [None, {}], ids=["no column", "empty"])
def test_records_prompts_are_rendered_as_the_judges_config_says_before_and_after(judge, tmp_path, given):
    config = dataclasses.replace(judge.config, chat_template_kwargs={"think": True})
    rows = make_rows(2, conversational=True)
    dataset = Dataset.from_list(rows if given is None else [{**row, "chat_template_kwargs": given} for row in rows])
    found = generate_cot_dataset(
        Judge(FakeEngine(lambda text: [sure(2)], config), config), dataset, output_dir=tmp_path, **SETTINGS
    )
    if given is None:
        assert found["chat_template_kwargs"][:] == [{"think": True}] * 2
    else:
        assert found.column_names == ["prompt", "completion", "score"]


def test_what_the_first_prompts_leave_empty_a_later_one_may_hold(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr("tract_trainer.rationales.dataset.ROWS_AT_ONCE", 2)
    rows = make_rows(4, conversational=True)
    rows[3]["prompt"][0]["name"] = "Ann"
    for form in ("prompt", "messages"):
        dataset = Dataset.from_list([{form: row["prompt"], "score": 3} for row in rows])
        found = generate_cot_dataset(scripted(finished), dataset, output_dir=tmp_path / form, **SETTINGS)
        assert [prompt[0]["name"] for prompt in found["prompt"]] == [None, None, None, "Ann"]


def test_the_end_of_the_scale_may_be_rounded_as_float32_rounds_it(tmp_path):
    config = JudgeConfig(list("1234"), [0.2, 0.4, 0.6, 0.8], PREFIX, conversational=False)
    judge = fake_judge(lambda text: [sure(2, (1, 2, 3, 4))], config)
    rows = [{"prompt": "Rate.\n", "score": score} for score in (0.8, 0.2)]
    dataset = Dataset.from_list(rows).cast_column("score", Value("float32"))
    assert dataset["score"][0] > 0.8
    found = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "a", **SETTINGS)
    assert [text[-1] for text in found["completion"]] == ["4", "1"]
    with pytest.raises(
        ValueError, match=r"^Row 0: it has no gold score on the scale of 0\.2 to 0\.8: its score is 0\.8001\."
    ):
        dataset = Dataset.from_list([{"prompt": "Rate.\n", "score": 0.8001}])
        generate_cot_dataset(judge, dataset, output_dir=tmp_path / "b", **SETTINGS)


def test_two_rationales_a_row_stand_side_by_side_and_differ(judge, tmp_path):
    dataset = make_dataset(8, conversational=True)
    found = generate_cot_dataset(judge, dataset, num_cots=2, output_dir=tmp_path, **RANDOM)
    assert len(found) == 16
    assert found["prompt"][::2] == found["prompt"][1::2] == dataset["prompt"][:]
    pairs = list(zip(found["completion"][::2], found["completion"][1::2], strict=True))
    assert all(a != b for a, b in pairs)
    assert report(tmp_path)["rationales"] == 16


def test_two_rows_with_the_same_prompt_are_both_kept_with_their_own_gold(judge, tmp_path):
    rows = [dict(make_rows(1)[0], score=score) for score in (4.0, 2.0, 4.0, 1.0, 5.0, 3.0)]
    found = generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, **RANDOM)
    assert found["score"][:] == [4.0, 2.0, 4.0, 1.0, 5.0, 3.0]
    texts = [turns[0]["content"] for turns in found["completion"]]
    assert [text[-1] for text in texts] == ["4", "2", "4", "1", "5", "3"]
    assert len({text[:-1] for text in texts}) == 6  # each row draws with a seed of its own


def test_the_rationale_of_a_row_does_not_depend_on_the_batch(judge, tmp_path):
    dataset = make_dataset(8, conversational=True)
    found = [
        generate_cot_dataset(
            judge, dataset, output_dir=tmp_path / str(size), batch_size=size, unfinished="force", **SETTINGS
        )["completion"][:]
        for size in (1, 3, 16)
    ]
    assert found[0] == found[1] == found[2]


# Rationales that come to no score


def flaky(succeeds_at):
    """Row i of `make_rows` comes to a score at attempt `succeeds_at[i]`, or never."""
    attempts = {}

    def write(text, seed):
        row = int(text.split("names ")[1].split(" ")[0])
        attempts[row] = attempts.get(row, 0) + 1
        done = attempts[row] == succeeds_at.get(row, 1)
        return Rationale(
            f"try {attempts[row]}", "2" if done else None, (-1.0,) * 5 if done else None, 10 * attempts[row]
        )

    return write


@pytest.mark.parametrize("unfinished", ["drop", "force"])
def test_a_rationale_without_score_is_drawn_again_then_dropped_or_closed_by_force(scripted, tmp_path, unfinished):
    judge = scripted(flaky({1: 3, 2: 99, 5: 2}))
    found = generate_cot_dataset(
        judge, make_dataset(8), output_dir=tmp_path, max_retries=2, unfinished=unfinished, **SETTINGS
    )
    texts = {0: "try 1", 1: "try 3", 2: "try 3", 3: "try 1", 4: "try 1", 5: "try 2", 6: "try 1", 7: "try 1"}
    labels = ["4", "2", "4", "5", "1", "3", "2", "4"]
    expected = [f"{texts[i]} {PREFIX}{labels[i]}" for i in range(8) if unfinished == "force" or i != 2]
    assert found["completion"][:] == expected
    written = report(tmp_path)
    assert {name: written[name] for name in ("rows", "rationales", "finished_at_first_try", "retried")} == {
        "rows": 8, "rationales": 8, "finished_at_first_try": 5, "retried": 3,
    }  # fmt: skip
    assert (written["dropped"], written["forced"]) == ((1, 0) if unfinished == "drop" else (0, 1))
    assert written["mean_tokens"] == (5 * 10 + 30 + 30 + 20) / 8
    assert written["discarded_score_agreement"]["unscored"] == 1
    seeds = [seed for call in judge.engine.asked for seed in call]
    assert len(seeds) == len(set(seeds)) == 8 + 3 + 2  # each attempt has a seed of its own


def test_no_retries_means_one_draw(scripted, tmp_path):
    judge = scripted(flaky({1: 2}))
    found = generate_cot_dataset(judge, make_dataset(8), output_dir=tmp_path, max_retries=0, **SETTINGS)
    assert len(found) == 7 and sum(map(len, judge.engine.asked)) == 8


def test_a_model_that_never_comes_to_a_score_is_refused_and_may_be_forced(judge, tmp_path):
    dataset = make_dataset(2, conversational=True)
    settings = {"max_new_tokens": 2, "progress": False, "max_retries": 0}
    with pytest.raises(
        ValueError,
        match=r"^Not one of 2 rationales ends with 'So the overall score is ' and a label; the longest has 2 tokens, "
        r"and the server refused 0 prompts\. Is the model trained to end so\? Otherwise raise max_new_tokens, or set "
        r"unfinished='force'\.$",
    ):
        generate_cot_dataset(judge, dataset, output_dir=tmp_path / "a", **settings)
    found = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "b", unfinished="force", **settings)
    assert [c[0]["content"][-len(PREFIX) - 1 :] for c in found["completion"]] == [PREFIX + "4", PREFIX + "2"]


@pytest.mark.parametrize("known", [4, 5])
@pytest.mark.parametrize("form", ["completion", "messages", "records"])
def test_rationales_known_by_heart_are_counted_and_more_than_half_are_warned_of(
    scripted, tmp_path, caplog, form, known
):
    rows = make_rows(8)
    texts = {row["prompt"].strip(): row["completion"].rpartition(PREFIX)[0].strip() for row in rows}
    by_heart = [prompt for prompt, text in texts.items() if PREFIX not in text][:known]

    def write(text, seed):
        asked = next(prompt for prompt in texts if prompt in text)
        return Rationale(f" {texts[asked]}\n" if asked in by_heart else f"{texts[asked]} Or not.", "3", (-1.0,) * 5, 7)

    judge = scripted(write)
    if form == "records":  # several annotated rationales, each with a closing phrase of its own
        records = [
            {
                "prompt": r["prompt"],
                "score": r["score"],
                "gpt4_feedback": ["Bad.", f"{texts[r['prompt'].strip()]} [RESULT] 2"],
            }
            for r in rows
        ]
        dataset = prompts_of(records, judge)
    else:
        turns = [
            [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}] for r in rows
        ]
        dataset = Dataset.from_list(
            rows if form == "completion" else [{"messages": each, "score": 3} for each in turns]
        )
    generate_cot_dataset(judge, dataset, output_dir=tmp_path, **SETTINGS)
    assert report(tmp_path)["verbatim"] == known
    assert ("5 of 8 rationales are word for word an annotated one" in caplog.text) == (known == 5)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unfinished": "keep"}, r"^unfinished='keep' is not one of \['drop', 'force'\]\.$"),
        ({"num_cots": 0}, r"^Expected num_cots >= 1 and max_retries >= 0, got 0 and 2\.$"),
        ({"max_retries": -1}, r"^Expected num_cots >= 1 and max_retries >= 0, got 1 and -1\.$"),
        ({"top_p": 2.0}, r"^top_p=2\.0 is out of range\.$"),
        ({"dataset": make_dataset(2).select([])}, r"^The dataset has no rows, so there is nothing to write"),
        (
            {"dataset": make_dataset(2).remove_columns("prompt")},
            r"^A row needs `prompt` or `messages` to write a rationale for; found the columns \['completion', ",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(scripted, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate_cot_dataset(
            scripted(finished), **{"dataset": make_dataset(2), "output_dir": tmp_path / "x", **SETTINGS, **change}
        )


@pytest.mark.parametrize(("score", "shown"), [(9.0, "9.0"), (None, "None"), (math.nan, "nan")])
def test_a_row_without_a_gold_score_on_the_scale_is_refused_before_anything_is_written(
    scripted, tmp_path, score, shown
):
    rows = make_rows(8)
    rows[3]["score"] = score
    judge = scripted(finished)
    with pytest.raises(
        ValueError,
        match=rf"^Row 3: it has no gold score on the scale of 1 to 5: its score is {shown}\. Fill in the column",
    ):
        generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, batch_size=2, **SETTINGS)
    assert judge.engine.asked == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.5}, ["temperature: 1.0 there, 0.5 now"]),
        ({"seed": 7, "num_cots": 2}, ["num_cots: 1 there, 2 now", "seed: 42 there, 7 now"]),
        ({"dataset": make_dataset(3)}, ["rows: 4 there, 3 now"]),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_with_both_named(scripted, tmp_path, change, said):
    first = {"dataset": make_dataset(4), "output_dir": tmp_path, **SETTINGS}
    generate_cot_dataset(scripted(finished), **first)
    with pytest.raises(ValueError) as raised:
        generate_cot_dataset(scripted(finished), **{**first, **change})
    lines = str(raised.value).split("\n")
    assert lines[0] == f"{tmp_path / 'settings.json'} belongs to work with other settings, which cannot be mixed:"
    there = f"{tmp_path / 'settings.json'} and {tmp_path / '.shards'}"
    assert (
        lines[-1]
        == f"Give another place for the output. To start over, use --overwrite (overwrite=True) or delete {there}."
    )
    assert set(said) <= {line.strip() for line in lines[1:-1]}
    assert len(lines[1:-1]) == len(said) + ("dataset" in change)  # the rows' hash, too


def test_rationales_that_were_to_be_dropped_can_be_forced_without_writing_them_again(scripted, tmp_path):
    judge = scripted(flaky({1: 2}))
    settings = {"output_dir": tmp_path, "max_retries": 0, **SETTINGS}
    assert len(generate_cot_dataset(judge, make_dataset(8), **settings)) == 7
    calls = len(judge.engine.asked)
    assert len(generate_cot_dataset(judge, make_dataset(8), unfinished="force", **settings)) == 8
    assert len(judge.engine.asked) == calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_template_kwargs": "{}"}, "`chat_template_kwargs` must be a mapping, found '{}'"),
        ({"tools": "nope"}, "`tools` must be a list of tools, or that as JSON; found 'nope'"),
        ({"prompt": ""}, "A row needs `prompt` or `messages` to write a rationale for"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_refused_before_anything_is_written(scripted, tmp_path, change, message):
    judge, rows = scripted(finished), make_rows(4)
    for row in rows:
        row.update({name: None for name in change if name != "prompt"})
    rows[3].update(change)
    with pytest.raises(ValueError, match=rf"^Row 3: {re.escape(message)}"):
        generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, batch_size=2, **SETTINGS)
    assert judge.engine.asked == []


def test_a_row_that_the_chat_template_refuses_is_named_before_anything_is_written(tmp_path):
    judge = fake_judge(lambda prompt: [sure(3)])
    tokenizer = judge.engine.tokens.tokenizer
    tokenizer.chat_template = (  # as Gemma's
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    rows = make_rows(4, conversational=True)
    rows[3]["prompt"].insert(0, {"role": "system", "content": "You judge."})
    with pytest.raises(ValueError, match=r"^Row 3: The chat template refuses messages .*: No system role$"):
        generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, batch_size=2, **SETTINGS)
    assert judge.engine.generated == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow"])
def test_the_format_of_a_dataset_makes_no_difference(scripted, tmp_path, kind):
    plain, formatted = make_dataset(4), make_dataset(4).with_format(kind)
    found = [
        generate_cot_dataset(scripted(finished), dataset, output_dir=tmp_path / str(number), **SETTINGS)
        for number, dataset in enumerate((plain, formatted))
    ]
    assert found[0].to_list() == found[1].to_list()


def test_prompts_that_leave_no_room_are_named_where_none_does(judge, tmp_path):
    rows = [{"prompt": "Rate 3. " * 600, "score": 3.0}] * 2
    with pytest.raises(ValueError, match=r"^Not one of 2 prompts leaves the model room to write\."):
        generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, **SETTINGS)


def test_without_a_score_column_the_score_is_found_as_in_training(scripted, tmp_path):
    rows = [{"prompt": "Rate it.\n", "completion": f"Fine. {PREFIX}4."}, {"prompt": "Rate.\n", "completion": "4"}]
    found = generate_cot_dataset(scripted(finished), Dataset.from_list(rows[:1]), output_dir=tmp_path / "a", **SETTINGS)
    assert found["score"][:] == [4.0]
    with pytest.raises(ValueError, match=r"^Row 1: it has no gold score"):
        generate_cot_dataset(scripted(finished), Dataset.from_list(rows), output_dir=tmp_path / "b", **SETTINGS)


def test_another_model_in_the_same_folder_is_refused(judge, tmp_path, judge_folder):
    generate_cot_dataset(judge, make_dataset(2), output_dir=tmp_path, unfinished="force", **SETTINGS)
    other = Judge.from_pretrained(judge_folder)
    other.engine.model.lm_head.weight.data += 0.01
    with pytest.raises(ValueError, match=r"\n  judge: 'llama-\w{16}-\w{16}' there, 'llama-\w{16}-\w{16}' now\n"):
        generate_cot_dataset(other, make_dataset(2), output_dir=tmp_path, unfinished="force", **SETTINGS)


# Safe to kill


def test_a_second_call_generates_nothing_and_gives_the_same(scripted, tmp_path):
    judge = scripted(finished)
    first = generate_cot_dataset(judge, make_dataset(8), output_dir=tmp_path, **SETTINGS)
    calls = len(judge.engine.asked)
    again = generate_cot_dataset(judge, make_dataset(8), output_dir=tmp_path, **SETTINGS)
    assert len(judge.engine.asked) == calls
    assert again.to_list() == first.to_list()


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_written_again(judge, tmp_path, cut):
    dataset = make_dataset(8, conversational=True)
    settings = {"batch_size": 2, "unfinished": "force", **SETTINGS}
    whole = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "whole", **settings)
    generate_cot_dataset(judge, dataset, output_dir=tmp_path / "torn", **settings)
    (shard,) = (tmp_path / "torn" / ".shards").glob("*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:5])[:-cut])  # the fifth line is torn, the rest is gone
    (tmp_path / "torn" / "train.parquet").unlink()
    again = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "torn", **settings)
    assert again.to_list() == whole.to_list()
    assert sorted(shard.read_bytes().splitlines()) == sorted(line.strip() for line in lines)
    assert report(tmp_path / "torn") == report(tmp_path / "whole")


def test_shards_read_what_they_wrote_and_skip_what_is_there(tmp_path):
    shards = Shards(tmp_path, 0)
    shards.append([("a", {"text": "ä\u2028b\n"}), ("b", {"n": 1})])
    shards.append([("a", {"text": "other"}), ("c", {"n": 2})])
    for found in (shards, Shards(tmp_path), Shards(tmp_path, 1)):
        assert found["a"]["text"] == "ä\u2028b\n"
        assert (found["b"]["n"], found["c"]["n"], "d" in found) == (1, 2, False)
    with pytest.raises(ValueError, match=r"^These shards are open for reading only\.$"):
        Shards(tmp_path).append([("d", {})])


def test_a_reader_leaves_another_processs_torn_line_alone(tmp_path):
    Shards(tmp_path, 0).append([("a", {"n": 1})])
    path = tmp_path / "process-00000.jsonl"
    torn = path.read_bytes() + b'{"key": "b", "n'
    path.write_bytes(torn)
    other = Shards(tmp_path, 1)
    assert "a" in other and "b" not in other
    assert path.read_bytes() == torn
    assert "b" not in Shards(tmp_path, 0)
    assert path.read_bytes() == torn[: torn.index(b"\n") + 1]


SCRIPT = """
import sys, threading
sys.path.insert(0, {tests!r})
from tiny import make_dataset
from tract_trainer import Judge, generate_cot_dataset
judge = Judge.from_pretrained({judge!r})
generate, asked = judge.engine.generate, []
def stuck(*args):
    asked.append(args)
    return generate(*args) if len(asked) < 3 else threading.Event().wait()
judge.engine.generate = stuck
generate_cot_dataset(judge, make_dataset(24, conversational=True), output_dir={out!r}, batch_size=2,
                     unfinished="force", max_new_tokens=60, max_retries=0, progress=False)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_dataset(judge, judge_folder, tmp_path):
    """It is killed in its third batch, which it never finishes."""
    settings = {"batch_size": 2, "unfinished": "force", "max_retries": 0, **SETTINGS}
    dataset = make_dataset(24, conversational=True)
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), judge=str(judge_folder), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "HF_HUB_OFFLINE": "1"})
    shard = tmp_path / "killed" / ".shards" / "process-00000.jsonl"
    while not (shard.is_file() and shard.read_bytes().count(b"\n") == 4):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "train.parquet").exists()

    resumed = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "killed", **settings)
    undisturbed = generate_cot_dataset(judge, dataset, output_dir=tmp_path / "whole", **settings)
    assert resumed.to_list() == undisturbed.to_list()
    assert report(tmp_path / "killed") == report(tmp_path / "whole")
    assert shard.read_bytes().count(b"\n") == 24


def test_the_files_of_the_result_are_a_dataset_by_themselves(scripted, tmp_path):
    found = generate_cot_dataset(scripted(finished), make_dataset(8), output_dir=tmp_path, **SETTINGS)
    loaded = load_dataset(str(tmp_path), split="train")
    assert loaded.to_list() == found.to_list()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_shards_the_model_is_refused(scripted, tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(
        ValueError, match=f"^A judge writes and scores as a whole model, and this launch shards models with {name}"
    ):
        generate_cot_dataset(scripted(finished), make_dataset(2), output_dir=tmp_path, **SETTINGS)


def test_the_report_is_printed_in_words(scripted, tmp_path, capsys):
    write = flaky({1: 2, 5: 9})  # row 1 finishes at the second draw, row 5 never
    settings = {**SETTINGS, "progress": True}
    generate_cot_dataset(scripted(write), make_dataset(8), output_dir=tmp_path, **settings)
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "8 rationales for 8 rows: 75.0% finished at the first try, 2 drawn again, 1 dropped, so 7 make rows;" in shown
    )
    assert "thrown away, agree with gold at r = " in shown and "Saved in" in shown


def test_a_loss_of_many_rationales_is_warned_of(scripted, tmp_path, caplog):
    kept = [flaky({1: 9}), flaky({1: 9, 2: 9})]  # of 8, one or two never come to a score
    for number, write in enumerate(kept):
        assert "stage 2 is trained on these" not in caplog.text
        generate_cot_dataset(scripted(write), make_dataset(8), output_dir=tmp_path / str(number), **SETTINGS)
    assert "Only 6 of 8 rationales are kept, and stage 2 is trained on these." in caplog.text


def test_prompts_longer_than_the_model_reads_are_left_out_and_counted(judge, tmp_path):
    rows = make_rows(3, conversational=True)
    rows[1]["prompt"] = [{"role": "user", "content": "Rate 3. " * 300}]
    settings = {**SETTINGS, "unfinished": "force"}
    found = generate_cot_dataset(judge, Dataset.from_list(rows), output_dir=tmp_path, **settings)
    assert found["score"][:] == pytest.approx([rows[0]["score"], rows[2]["score"]])
    assert report(tmp_path)["prompt_too_long"] == 1


@pytest.mark.slow
def test_the_bookkeeping_of_ten_times_the_rows_takes_a_little_more_memory(tmp_path):
    script, found = Path(__file__).parents[1] / "bookkeeping.py", []
    for rows in (10_000, 100_000):
        done = subprocess.run(
            [sys.executable, script, str(rows), tmp_path / str(rows)], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1])
    assert [run["rows"] for run in found] == [10_000, 100_000]
    assert found[1]["peak_kib"] <= 1.2 * found[0]["peak_kib"]
