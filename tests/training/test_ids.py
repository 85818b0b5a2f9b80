"""The ids at training and at judging are the same, row by row."""

import pytest
from datasets import Dataset
from tiny import FAMILIES, PREFIX, RATIONALES, make_model, make_rows, make_tokenizer

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer


def build(tmp_path, family, rows, **kwargs):
    tokenizer = make_tokenizer(family)
    args = RegressionAwareSFTConfig(
        str(tmp_path), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, max_length=None, **kwargs
    )
    trainer = RegressionAwareSFTTrainer(
        model=make_model(vocab_size=len(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, Judge.from_model(trainer.model, tokenizer, trainer.judge_config)


def tokenizer_text(judge, ids):
    return judge.engine.tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def score_position(row):
    (position,) = [i for i, score in enumerate(row["score_labels"]) if score == score]
    return position


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_at_training_and_at_judging_are_the_same_row_by_row(tmp_path, family, conversational):
    trainer, judge = build(tmp_path, family, make_rows(8, conversational))
    assert judge.config.conversational is conversational
    for i, row in enumerate(trainer.train_dataset):  # row 2 holds a decoy of the closing phrase
        trained = row["input_ids"][: score_position(row)]
        record = {"prompt": make_rows(8, conversational)[i]["prompt"]}
        assert judge.rows.scored_ids(record, RATIONALES[i]) == trained
        prompt = judge.rows.prompt_ids(record)
        assert trained[: len(prompt)] == prompt
        assert tokenizer_text(judge, prompt).endswith("assistant\n" if conversational else " facts.\n")
        assert RATIONALES[i] in tokenizer_text(judge, trained[len(prompt) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_given_as_text_is_the_user_turn_of_a_conversational_judge(tmp_path, family):
    trainer, judge = build(tmp_path, family, make_rows(2, conversational=True))
    record = {"prompt": make_rows(2)[0]["prompt"]}
    row = trainer.train_dataset[0]
    assert judge.rows.scored_ids(record, RATIONALES[0]) == row["input_ids"][: score_position(row)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_messages_column_trains_on_the_ids_that_the_judge_scores(tmp_path, family):
    rows = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in make_rows(8, True)]
    trainer, judge = build(tmp_path, family, rows)
    for i, row in enumerate(trainer.train_dataset):
        trained = row["input_ids"][: score_position(row)]
        assert judge.rows.scored_ids({"messages": rows[i]["messages"]}, RATIONALES[i]) == trained


@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "text"])
def test_a_beginning_of_sequence_token_stands_once_at_training_and_at_judging(tmp_path, conversational):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("llama3", bos_token="<s>")
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    args = RegressionAwareSFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    trainer = RegressionAwareSFTTrainer(
        model=make_model(vocab_size=len(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list(make_rows(8, conversational)),
        processing_class=tokenizer,
    )
    judge = Judge.from_model(trainer.model, tokenizer, trainer.judge_config)
    for i, row in enumerate(trainer.train_dataset):
        trained = row["input_ids"][: score_position(row)]
        assert trained.count(bos) == 1 and trained[0] == bos
        assert judge.rows.scored_ids({"prompt": make_rows(8, conversational)[i]["prompt"]}, RATIONALES[i]) == trained


def test_what_a_template_adds_before_the_answer_is_the_same_at_training_and_at_judging(tmp_path):
    # Qwen3's way: the generation prompt ends in an empty think block, which a finished answer holds too.
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and think %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if think %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    rows = [{**row, "chat_template_kwargs": {"think": True}} for row in make_rows(8, True)]
    args = RegressionAwareSFTConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    trainer = RegressionAwareSFTTrainer(
        model=make_model(vocab_size=len(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert trainer.judge_config.chat_template_kwargs == {"think": True}
    judge = Judge.from_model(trainer.model, tokenizer, trainer.judge_config)
    for i, row in enumerate(trainer.train_dataset):
        trained = row["input_ids"][: score_position(row)]
        assert "<think>" in tokenizer.decode(trained)
        assert judge.rows.scored_ids({"prompt": rows[i]["prompt"]}, RATIONALES[i]) == trained
        prompt = judge.rows.prompt_ids({"prompt": rows[i]["prompt"]})
        assert trained[: len(prompt)] == prompt
        assert tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")


def test_a_rationale_that_holds_the_closing_phrase_is_scored_at_its_end(tmp_path):
    _, judge = build(tmp_path, "qwen", make_rows(2))
    record = {"prompt": "Rate. "}
    with_decoy = judge.rows.scored_ids(record, f"{PREFIX}2 at first sight.")
    assert judge.engine.tokens.tokenizer.decode(with_decoy).endswith(f"{PREFIX}2 at first sight. {PREFIX}")
