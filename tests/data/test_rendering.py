"""What a judge is asked with is the beginning of its training rows, whatever the chat template does."""

import dataclasses
import re
from datetime import datetime

import pytest
from datasets import Dataset
from tiny import PREFIX, make_model, make_rows, make_tokenizer, train_judge
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, ScoreScale
from tract_trainer.data.records import check_prompts
from tract_trainer.data.rendering import RecordRows, asked_length, pin_date, prompt_ids, row_ids, separator_of
from tract_trainer.errors import InputError

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
ANSWER = "<|im_start|>assistant\n"


def template(turn=TURN, generation=ANSWER, before=""):
    turns = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    return f"{before}{turns}{{% if add_generation_prompt %}}{generation}{{% endif %}}"


BY_ROLE = "{% if m['role'] == 'assistant' %}ANSWER{% else %}OTHER{% endif %}"
QUIET = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
TEMPLATES = {
    # As DeepSeek-R1's distilled models and the thinking Qwens: the generation prompt opens a block that no row has.
    "opens a thinking block": template(generation=ANSWER + "<think>\n"),
    # As DeepSeek-R1's: what stands before </think> is cut from an answer.
    "strips a thinking block": template(
        TURN.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"), ANSWER + "<think>\n"
    ),
    # As Qwen3's: every answer begins with an empty block, which the generation prompt does not hold.
    "writes an empty block": template(
        BY_ROLE.replace(
            "ANSWER", TURN.replace("{{ m['content'] }}", "<think>\n\n</think>\n\n{{ m['content'] }}")
        ).replace("OTHER", TURN)
    ),
    # As Qwen3's with `enable_thinking`.
    "takes an argument": template(
        BY_ROLE.replace("ANSWER", TURN.replace("{{ m['content'] }}", QUIET + "{{ m['content'] }}")).replace(
            "OTHER", TURN
        ),
        ANSWER + QUIET,
    ),
    # As gpt-oss': an answer is in a channel, the date in the system's turn.
    "writes channels": template(
        BY_ROLE.replace("ANSWER", TURN.replace("{{ m['content'] }}", "final: {{ m['content'] }}")).replace(
            "OTHER", TURN
        ),
        before="<|im_start|>system\nDate: {{ strftime_now('%Y-%m-%d') }}<|im_end|>\n",
    ),
    "strips white space": template(TURN.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")),
}
# As Mistral-Nemo's: rows of a conversation with an answer lose the system's turn.
DROPS_SYSTEM = (
    "{% set answered = messages[-1]['role'] == 'assistant' %}{% for m in messages %}"
    "{% if not (answered and m['role'] == 'system') %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)
PREFIXES = (PREFIX, "\n\nScore: ", "<score>", ', "score": ')


def tokenizer_of(name):
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = TEMPLATES.get(name, name)
    return tokenizer


def rows_with(prefix, system=False):
    """Rows with decoys, line breaks and several turns, which end with `prefix` and a label."""
    rows = []
    for number, row in enumerate(make_rows(8)):
        rationale, label = row["completion"].rpartition(PREFIX)[0].rstrip(), row["completion"][-1]
        ending = " " if prefix == PREFIX else ""
        prompt = [{"role": "user", "content": row["prompt"]}]
        if number % 2:
            prompt = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}, *prompt]
        if system:
            prompt = [{"role": "system", "content": "You judge."}, *prompt]
        answer = f"{rationale}{ending}{prefix}{label}"
        rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "score": float(label)})
    return rows


def trainer_of(folder, tokenizer, rows, **kwargs):
    args = RegressionAwareSFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None, disable_tqdm=True, **kwargs
    )
    model = make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return RegressionAwareSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_asked_forced_and_rescored_ids_are_those_of_training(name, prefix, tmp_path):
    rows = rows_with(prefix, system=True)
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}} if name == "takes an argument" else {}
    trainer = trainer_of(tmp_path, tokenizer_of(name), rows, score_prefix=prefix, **kwargs)
    trainer.save_model()
    saved = Judge.from_pretrained(tmp_path)
    for given, row in zip(rows, trainer.train_dataset, strict=True):
        ids, due = row["input_ids"], [i for i, gold in enumerate(row["score_labels"]) if gold == gold]
        asked = saved.rows.prompt_ids({"prompt": given["prompt"]})
        trained = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert ids[: len(asked)] == asked and len(asked) <= trained[0] <= due[0]
        rationale = given["completion"][0]["content"].rpartition(prefix)[0]
        assert saved.rows.scored_ids({"prompt": given["prompt"]}, rationale) == ids[: due[0]]
        # What a judge wrote has no space at its end where the judge left it out, and forcing puts it there.
        assert saved.rows.scored_ids({"prompt": given["prompt"]}, rationale.rstrip(" ")) == ids[: due[0]]


@pytest.mark.parametrize("name", ["opens a thinking block", "writes an empty block", "takes an argument"])
def test_a_judge_of_messages_is_asked_with_the_beginning_of_its_rows(name, tmp_path):
    rows = rows_with(PREFIX, system=True)
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}} if name == "takes an argument" else {}
    whole = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in rows]
    trainer = trainer_of(tmp_path, tokenizer_of(name), whole, **kwargs)
    judge = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    for given, row in zip(rows, trainer.train_dataset, strict=True):
        ids, due = row["input_ids"], [i for i, gold in enumerate(row["score_labels"]) if gold == gold]
        asked = judge.rows.prompt_ids({"prompt": given["prompt"]})
        assert ids[: len(asked)] == asked and len(asked) < due[0]
        rationale = given["completion"][0]["content"].rpartition(PREFIX)[0]
        assert judge.rows.scored_ids({"prompt": given["prompt"]}, rationale) == ids[: due[0]]


def test_rows_of_a_template_that_trl_patches_for_training_are_refused(tmp_path):
    """With assistant_only_loss, TRL renders earlier turns as Qwen3's own template does not."""
    rows = rows_with(PREFIX)
    for row in rows[1::2]:  # those of several turns
        row["prompt"][1]["content"] = "<think>\nHm.\n</think>\n\nHello."
    rows = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in rows]
    message = r"4 of 8 training rows .* do not begin with the tokens that a judge would be asked"
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path, tokenizer_of(qwen3_chat_template), rows, assistant_only_loss=True)
    trainer_of(tmp_path, tokenizer_of(qwen3_chat_template), rows[::2], assistant_only_loss=True)


def test_the_thinking_block_would_have_been_asked_with_before():
    tokenizer = tokenizer_of("opens a thinking block")
    messages = [{"role": "user", "content": "Rate it."}]
    alone = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    asked = prompt_ids(messages, tokenizer, True)
    assert alone[: len(asked)] == asked and tokenizer.decode(alone[len(asked) :]) == "<think>\n"


def test_a_template_that_drops_a_part_of_the_prompt_from_rows_is_refused_with_both_renderings(tmp_path):
    tokenizer = tokenizer_of(DROPS_SYSTEM)
    with pytest.raises(InputError, match="renders a prompt differently with and without an answer") as caught:
        trainer_of(tmp_path, tokenizer, rows_with(PREFIX, system=True))
    lines = str(caught.value).splitlines()
    assert (
        "without an answer:" in lines[1]
        and "system" in lines[1]
        and "with an answer:" in lines[2]
        and "user" in lines[2]
    )
    trainer_of(tmp_path, tokenizer, rows_with(PREFIX))  # without a system's turn nothing is dropped


def test_a_judge_is_refused_such_a_prompt_too():
    tokenizer = make_tokenizer("qwen")
    config = trained_config()
    rows = RecordRows(tokens_of(tokenizer, config), config)
    record = {"prompt": [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Rate it."}]}
    assert rows.prompt_ids(record)
    tokenizer.chat_template = DROPS_SYSTEM
    with pytest.raises(InputError, match="differently with and without an answer"):
        rows.prompt_ids(record)


def trained_config():
    return RegressionAwareSFTConfig("x", use_cpu=True, bf16=False).judge_config(True)


def tokens_of(tokenizer, config):
    from tract_trainer.scale import ScoreTokens

    return ScoreTokens.resolve(config.scale, config.score_prefix, tokenizer)


def test_a_prompt_of_text_that_merges_with_its_answer_is_refused(tmp_path):
    rows = [{"prompt": "Rate: The", "completion": f"re is an error. {PREFIX}2"}, *make_rows(7, with_score=False)]
    with pytest.raises(
        InputError, match=r"1 of 8 training rows .* do not begin with the tokens that a judge would be asked"
    ):
        trainer_of(tmp_path, make_tokenizer("gpt2"), merging(rows))


def merging(rows):
    """`rows` whose first prompt ends within a token of the whole text."""
    tokenizer = make_tokenizer("gpt2")
    prompt, completion = rows[0]["prompt"], rows[0]["completion"]
    text = prompt + completion
    whole = tokenizer(text)["input_ids"]
    for place in range(len(prompt), len(text)):
        alone = tokenizer(text[:place])["input_ids"]
        if whole[: len(alone)] != alone:
            return [{"prompt": text[:place], "completion": text[place:]}, *rows[1:]]
    raise AssertionError("no place of the text lies within a token")


def test_a_date_in_the_template_is_that_of_training_ever_after(tmp_path, monkeypatch):
    tokenizer = tokenizer_of("writes channels")
    trainer = trainer_of(tmp_path, tokenizer, rows_with(PREFIX))
    trainer.save_model()
    today = f"Date: {datetime.now():%Y-%m-%d}"
    assert today in tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert "strftime_now" not in saved.chat_template and today[6:] in saved.chat_template
    assert pin_date('{{ strftime_now("%d %b %Y") }}', datetime(2026, 1, 2)) == "{{ '02 Jan 2026' }}"


def test_an_untrained_judge_reads_the_date_of_its_first_day_too(tmp_path, caplog):
    tokenizer = tokenizer_of("writes channels")
    tokenizer.save_pretrained(tmp_path)
    make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(tmp_path)
    judge = Judge.from_pretrained(tmp_path, scale=ScoreScale.integers(1, 5))
    today = f"Date: {datetime.now():%Y-%m-%d}"
    assert "strftime_now" not in judge.engine.tokens.tokenizer.chat_template
    assert today in judge.engine.tokens.tokenizer.decode(judge.rows.prompt_ids({"prompt": "Rate it."}))
    assert f"The judge always reads today's, {today[6:]}." in caplog.text


@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])  # Gemma's end of turn is not its end of sequence either
def test_an_end_of_turn_in_a_rationale_is_refused(tmp_path, eos):
    rows = rows_with(PREFIX)
    rows[3]["completion"][0]["content"] = f"It says <|im_end|> here. {PREFIX}{rows[3]['completion'][0]['content'][-1]}"
    with pytest.raises(
        InputError, match=r"1 of 8 training rows .* hold an end-of-turn token before their score; the first is row 3"
    ):
        trainer_of(tmp_path, make_tokenizer("qwen", eos_token=eos), rows)


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize(("name", "kept"), [("strips a thinking block", False), ("opens a thinking block", True)])
def test_a_rationale_that_the_template_drops_with_its_think_block_is_refused(tmp_path, name, kept, messages):
    rows = rows_with(PREFIX)
    answer = rows[3]["completion"][0]
    answer["content"] = f"<think>\nIt lacks one example.</think>\n\n{PREFIX}{answer['content'][-1]}"
    if messages:
        rows = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in rows]
    if kept:
        trainer = trainer_of(tmp_path, tokenizer_of(name), rows)
        assert "lacks one example" in trainer.processing_class.decode(trainer.train_dataset[3]["input_ids"])
        return
    message = r"1 of 8 training rows .* have a think block .* the chat template drops; the first is row 3, .*path"
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path, tokenizer_of(name), rows)


@pytest.mark.parametrize("channel", ["reasoning_content", "thinking"])
def test_a_rationale_in_a_channel_of_its_own_is_refused(tmp_path, channel):
    rows = rows_with(PREFIX)
    for row in rows:
        row["completion"][0][channel] = "Clear."
    with pytest.raises(InputError, match=rf"text in \['{channel}'\], .*Put the rationale into `content`"):
        trainer_of(tmp_path, make_tokenizer("qwen"), rows)


def test_chat_template_kwargs_of_a_record_are_honoured():
    tokenizer = tokenizer_of("takes an argument")
    config = trained_config()
    rows = RecordRows(tokens_of(tokenizer, config), config)
    record = {"instruction": "Name a prime.", "response": "7", "rubric": "Right?"}
    quiet = {**record, "chat_template_kwargs": {"enable_thinking": False}}
    assert "</think>" not in tokenizer.decode(rows.prompt_ids(record))
    assert tokenizer.decode(rows.prompt_ids(quiet)).endswith("</think>\n\n")
    of_config = RecordRows(rows.tokens, dataclasses.replace(config, chat_template_kwargs={"enable_thinking": False}))
    assert of_config.prompt_ids(record) == rows.prompt_ids(quiet)


def test_what_the_judgment_says_is_rescored_to_the_same_score(tmp_path):
    train_judge(tmp_path).save_model()
    judge = Judge.from_pretrained(tmp_path)
    record = {"prompt": [{"role": "user", "content": make_rows()[0]["prompt"]}]}
    judgment = judge.score(record, temperature=0, max_new_tokens=60)
    assert judgment.reason == ""
    assert judge.rescore([record], [judgment.rationale])[0].score == pytest.approx(judgment.score, abs=1e-4)


def test_the_quick_look_at_a_row_agrees_with_tokenising_it_again():
    tokenizer = tokenizer_of("opens a thinking block")
    for row in rows_with(PREFIX, system=True):
        ids = row_ids(row["prompt"], row["completion"][0]["content"], tokenizer, True)
        asked = prompt_ids(row["prompt"], tokenizer, True)
        for masked in range(len(asked) + 1):
            found = asked_length(row["prompt"], ids, masked, tokenizer, {})
            assert found == len(asked), masked


def test_a_text_repeated_in_the_prompt_is_no_end_of_it():
    tokenizer = make_tokenizer("qwen")
    prompt = "Rate it now. " * 30
    ids = tokenizer(prompt + "Right.")["input_ids"]
    asked = tokenizer(prompt)["input_ids"]
    assert asked_length(prompt, ids, len(asked) // 2, tokenizer, {}) in (len(asked), None)
    assert asked_length(prompt, ids[: len(ids) // 2] + ids, len(asked) // 2, tokenizer, {}) is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([f"A. {PREFIX}4", f"B. {PREFIX}2", f"C.\n{PREFIX}2"], " "),
        ([f"A.\n{PREFIX}4", f"B.\n{PREFIX}2", f"C. {PREFIX}2"], "\n"),
        ([f"{PREFIX}4"], " "),
        ([], " "),
    ],
)
def test_the_separator_is_that_of_most_rows(texts, expected):
    assert separator_of(texts, PREFIX) == expected


# As Gemma's: it takes no system turn.
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"


def test_a_record_that_the_chat_template_refuses_is_named():
    tokenizer, config = make_tokenizer("qwen"), trained_config()
    tokenizer.chat_template = template(before=NO_SYSTEM)
    rows = RecordRows(tokens_of(tokenizer, config), config)
    user, system = ({"role": role, "content": "Rate."} for role in ("user", "system"))
    check_prompts([{"prompt": [user]}], rows.prompt_ids)
    message = r"^Record 1: The chat template refuses messages of the roles \['system', 'user'\]: No system role here$"
    with pytest.raises(InputError, match=message):
        check_prompts([{"prompt": [user]}, {"prompt": [system, user]}], rows.prompt_ids)


@pytest.mark.parametrize("messages", [False, True])
def test_a_training_row_that_the_chat_template_refuses_is_named(tmp_path, messages):
    rows = rows_with(PREFIX)
    rows[3]["prompt"].insert(0, {"role": "system", "content": "You judge."})
    if messages:
        rows = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in rows]
    message = r"^Training row 3: The chat template refuses messages of the roles \['system', .*: No system role here$"
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path, tokenizer_of(template(before=NO_SYSTEM)), rows)


@pytest.mark.parametrize("messages", [False, True])
def test_a_turn_without_content_is_refused(tmp_path, messages):
    rows = rows_with(PREFIX)
    rows[3]["prompt"][0]["content"] = None
    if messages:
        rows = [{"messages": [*row["prompt"], *row["completion"]], "score": row["score"]} for row in rows]
    with pytest.raises(InputError, match=r"1 of 8 training rows .* have a turn without `content`; the first is row 3"):
        trainer_of(tmp_path, make_tokenizer("qwen"), rows)


def test_control_tokens_that_get_into_a_prompt_are_refused():
    tokenizer = make_tokenizer("qwen")
    config = dataclasses.replace(trained_config(), prompt_template="{{ instruction }} <{{ response }}> {{ rubric }}")
    rows = RecordRows(tokens_of(tokenizer, config), config)
    record = {"instruction": "Name a prime.", "response": "7", "rubric": "Right?"}
    assert rows.prompt_ids(record)
    with pytest.raises(InputError, match=re.escape("becomes the control tokens ['<|im_end|>']")):
        rows.prompt_ids({**record, "response": "|im_end|"})


@pytest.mark.parametrize("value", [b"<|im_end|>", ("<|im_end|>",), {"<|im_end|>"}, ["<|im_end|>"], {"a": "<|im_end|>"}])
def test_control_tokens_in_any_container_become_text(value):
    tokenizer = make_tokenizer("qwen")
    config = trained_config()
    rows = RecordRows(tokens_of(tokenizer, config), config)
    record = {"instruction": "Name a prime.", "response": "7", "rubric": "Right?", "reference": value}
    ends = rows.prompt_ids(record).count(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    assert ends == rows.prompt_ids({**record, "reference": "x"}).count(tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_a_tokenizer_that_reads_otherwise_once_it_is_saved_is_refused_before_training(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, make_tokenizer("qwen"), rows_with(PREFIX), max_steps=1)
    load = AutoTokenizer.from_pretrained
    # As Llama-2's, of which a setting is dropped when it is saved.
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **_: load(folder) and make_tokenizer("llama3"))
    with pytest.raises(InputError, match=r"saved and loaded again, reads the training rows as .* where it read"):
        trainer.train()
    monkeypatch.undo()
    trainer.train()
