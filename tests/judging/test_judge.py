"""A judge reads its score from the distribution over the scale, or says why it has none."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from fake import FIVE, fake_judge, sure
from peft import LoraConfig
from tiny import PREFIX, make_dataset, make_model, make_rows, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM

from tract_trainer import Judge, JudgeConfig
from tract_trainer.engines.base import Rationale
from tract_trainer.errors import InputError
from tract_trainer.judging.judgment import comparison

RECORDS = [{"prompt": row["prompt"]} for row in make_rows(8, conversational=True)]
SETTINGS = {"max_new_tokens": 60, "progress": False}


@pytest.fixture(scope="module")
def trainer(learned):
    return learned


@pytest.fixture(scope="module")
def judge(trainer):
    return Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)


@pytest.fixture(scope="module")
def judgments(judge):
    found = judge.score(RECORDS, num_cots=4, **SETTINGS)
    assert all(math.isfinite(rail(rationale.log_probs)) for judgment in found for rationale in judgment.rationales)
    return found


def rail(log_probs, values=(1, 2, 3, 4, 5)):
    return sum(value * math.exp(log_prob) for value, log_prob in zip(values, log_probs, strict=True))


# Judgments


def test_a_record_alone_gets_the_judgment_it_gets_among_others(judge, judgments):
    for record, among_others in zip(RECORDS, judgments, strict=True):
        alone = judge.score(record, num_cots=4, **SETTINGS)
        assert alone.score == pytest.approx(among_others.score, abs=1e-5)
        assert [r.text for r in alone.rationales] == [r.text for r in among_others.rationales]


def test_permuted_records_permute_the_judgments(judge, judgments):
    permuted = judge.score(RECORDS[::-1], num_cots=4, **SETTINGS)
    assert [j.score for j in permuted[::-1]] == pytest.approx([j.score for j in judgments], abs=1e-5)
    assert [j.rationale for j in permuted[::-1]] == [j.rationale for j in judgments]


def test_the_type_that_a_model_is_computed_in_is_of_its_identity(judge):
    model = copy.deepcopy(judge.engine.model).to(torch.bfloat16)
    half, whole = (
        Judge.from_model(model.to(dtype), judge.engine.tokens.tokenizer, judge.config).identity
        for dtype in (torch.bfloat16, torch.float32)  # the same numbers
    )
    assert half != whole


def test_the_size_of_the_batches_does_not_matter(judge, judgments, monkeypatch):
    monkeypatch.setattr(judge.engine, "batch_size", 3)
    streamed = list(judge.stream(RECORDS, 4, **SETTINGS))
    assert [j.score for j in streamed] == pytest.approx([j.score for j in judgments], abs=1e-5)


def test_the_score_is_the_mean_of_the_rail_scores_of_the_finished_rationales(judgments):
    for judgment in judgments:
        assert len(judgment.rationales) == 4
        assert judgment.score == pytest.approx(sum(rail(r.log_probs) for r in judgment.rationales) / 4, abs=1e-5)
        assert judgment.label == judgment.rationales[0].label
        assert judgment.rationale == judgment.rationales[0].text
        assert judgment.reason == ""


def test_more_rationales_begin_with_those_of_fewer(judge, judgments):
    for one, four in zip(judge.score(RECORDS, num_cots=1, **SETTINGS), judgments, strict=True):
        assert one.rationales[0].text == four.rationales[0].text


def test_probabilities_mass_and_spread_fit_the_score(judgments):
    for judgment in judgments:
        assert judgment.score == pytest.approx(rail(map(math.log, judgment.probs)), abs=1e-5)
        assert judgment.mass == pytest.approx(sum(judgment.probs), abs=1e-6)
        assert 0 < judgment.mass <= 1 + 1e-6
        share = [p / judgment.mass for p in judgment.probs]
        mean = sum(v * p for v, p in zip(range(1, 6), share, strict=True))
        variance = sum((v - mean) ** 2 * p for v, p in zip(range(1, 6), share, strict=True))
        assert judgment.std == pytest.approx(math.sqrt(variance), abs=1e-3)


def test_a_judgment_by_hand(judge):
    # Two rationales: .5 on 2 and .5 on 4; .2 on 1 and .3 on 5, the rest off the scale. The third came to nothing.
    tiny = 1e-30
    first = Rationale(" A. ", "2", tuple(map(math.log, (tiny, 0.5, tiny, 0.5, tiny))), 9)
    second = Rationale("B. ", "5", tuple(map(math.log, (0.2, tiny, tiny, tiny, 0.3))), 9)
    third = Rationale("C", None, None, 60)
    judgment = judge.judgment([third, first, second], 60)
    assert judgment.score == pytest.approx((3.0 + 1.7) / 2)
    assert judgment.probs == pytest.approx((0.1, 0.25, 0, 0.25, 0.15))
    assert judgment.mass == pytest.approx(0.75)
    # shares of 15: 2, 5, 5, 3: mean (2 + 10 + 20 + 15) / 15, squares (2 + 20 + 80 + 75) / 15
    assert judgment.std == pytest.approx(math.sqrt(177 / 15 - (47 / 15) ** 2), abs=1e-5)
    assert (judgment.label, judgment.rationale, judgment.reason) == ("2", " A. ", "")
    assert judgment.rationales == (third, first, second)


def test_a_renormalising_judge_divides_by_the_mass_of_each_rationale(judge):
    config = dataclasses.replace(judge.config, renormalize_scores=True)
    row = Rationale("B.", "5", tuple(map(math.log, (0.2, 1e-30, 1e-30, 1e-30, 0.3))), 9)
    assert Judge(judge.engine, config).judgment([row]).score == pytest.approx(1.7 / 0.5)
    assert judge.judgment([row]).score == pytest.approx(1.7)


def test_a_record_whose_rationales_come_to_no_score_is_unscored_with_the_reason(judge):
    judgment = judge.score(RECORDS[0], num_cots=2, max_new_tokens=3)
    assert math.isnan(judgment.score) and math.isnan(judgment.std) and math.isnan(judgment.mass)
    assert len(judgment.probs) == 5 and all(map(math.isnan, judgment.probs))
    assert judgment.label is None
    assert judgment.rationale == judgment.rationales[0].text != ""
    assert judgment.reason == (
        "None of 2 rationales came to 'So the overall score is ' and a label; 2 were cut at max_new_tokens=3."
    )


def test_a_rationale_whose_scale_has_no_numbers_does_not_count(judge):
    numbers, nothing = (-1.0, -2.0, -3.0, -4.0, -5.0), (-1.0, math.nan, -3.0, -4.0, -5.0)
    overflowed, sound = Rationale("A.", "2", nothing, 9), Rationale("B.", "1", numbers, 9)
    alone = judge.judgment([sound], 60)
    assert judge.judgment([overflowed, sound], 60).score == alone.score
    judgment = judge.judgment([overflowed, overflowed, Rationale("C.", None, None, 60)], 60)
    assert math.isnan(judgment.score) and judgment.label is None and judgment.rationale == "A."
    assert judgment.reason == (
        "2 of 3 rationales: the model gives no numbers (NaN) for the labels. Its logits may overflow in float16: load "
        "it in bfloat16 or float32."
    )


@pytest.mark.parametrize(
    ("log_probs", "reason"),
    [
        ((0.0,) * 5, "the labels' probabilities add up to 5, so what the model or server returned are none."),
        ((2.0, -9.0, -9.0, -9.0, -9.0), "the labels' probabilities add up to 2.72"),
        ((-math.inf,) * 5, "the labels have a probability of only 0 together, less than 0.01"),
        ((-9.0,) * 5, "the labels have a probability of only 0.00062 together, less than 0.01"),
    ],
)
def test_probabilities_that_are_none_or_off_the_scale_give_no_score(judge, log_probs, reason):
    judgment = judge.judgment([Rationale("A.", "2", log_probs, 9)], 60)
    assert math.isnan(judgment.score) and math.isnan(judgment.std) and judgment.label is None
    assert judgment.reason.startswith(f"1 of 1 rationales: {reason}")
    assert judgment.rationales[0].log_probs is None  # nor does an evaluation count it


def test_the_reason_names_the_models_limit_where_that_cut_the_rationales(judge):
    tokenizer = make_tokenizer()
    model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=64)
    crowded = Judge.from_model(model, tokenizer, dataclasses.replace(judge.config, conversational=False))
    record = {"prompt": tokenizer.decode(tokenizer("1 2 3 4 5 " * 12)["input_ids"][:62])}
    (judgment,) = crowded.score([record, {"prompt": "Rate."}], 2, temperature=0, max_new_tokens=40)[:1]
    assert judgment.reason == (
        "None of 2 rationales came to 'So the overall score is ' and a label; 2 were cut at the model's limit of 64 "
        "tokens, of which the prompt takes 62."
    )


def test_a_prompt_longer_than_the_model_reads_is_unscored_with_the_reason(judge):
    long = {"prompt": [{"role": "user", "content": "Rate 3. " * 200}]}
    for unfinished in ("unscored", "force"):
        settings = {"temperature": 0, "unfinished": unfinished, **SETTINGS}
        first, middle, last = judge.score([RECORDS[0], long, RECORDS[1]], 2, **settings)
        assert math.isnan(middle.score) and middle.rationales == ()
        count = len(judge.rows.prompt_ids(long))
        assert middle.reason == f"There are {count} tokens to read, and the model reads 512."
        alone = judge.score([RECORDS[0], RECORDS[1]], 2, **settings)
        assert [first.score, last.score] == pytest.approx([j.score for j in alone], abs=1e-5)


def test_no_score_is_read_beyond_what_the_model_reads(judge):
    rationales = ["It is clear.", "It is clear. " * 200, "It is right."]
    found = judge.rescore(RECORDS[:3], rationales)
    assert math.isnan(found[1].score)
    assert re.fullmatch(r"There are \d{3,} tokens to read, and the model reads 512\.", found[1].reason)
    alone = judge.rescore([RECORDS[0], RECORDS[2]], rationales[::2])
    assert [found[0].score, found[2].score] == pytest.approx([one.score for one in alone], abs=1e-5)
    assert [found[0].rationale, found[2].rationale] == rationales[::2]


@pytest.mark.parametrize("number", [np.int64(3), 3.0])
def test_whole_numbers_are_taken_of_any_type(judge, number):
    found = judge.score(RECORDS[:1], number, seed=number, max_new_tokens=10 * number)
    assert found == judge.score(RECORDS[:1], 3, seed=3, max_new_tokens=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cots": 1.5}, "num_cots must be a whole number, found 1.5."),
        ({"max_new_tokens": "20"}, "max_new_tokens must be a whole number, found '20'."),
        ({"seed": True}, "seed must be a whole number, found True."),
    ],
)
def test_other_numbers_are_refused(judge, settings, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        judge.score(RECORDS[:1], **settings)


def test_an_argument_that_the_engine_does_not_take_is_named(tmp_path, trainer):
    trainer.save_model(str(tmp_path))
    with pytest.raises(InputError, match=r"^engine='transformers' does not take these model_kwargs: .*'foo'"):
        Judge.from_pretrained(tmp_path, model_kwargs={"foo": 1})


def test_a_reward_is_nan_only_where_the_model_has_no_room(judge):
    reward = judge.as_reward_func(rubric="Is it clear?", max_new_tokens=4)
    short, long = reward(prompts=["Rate it."] * 2, completions=["Clear.", "Clear. " * 600])
    assert math.isfinite(short) and math.isnan(long)


def test_a_dataset_is_judged_like_its_rows(judge, judgments):
    found = judge.score(Dataset.from_list(RECORDS), num_cots=4, **SETTINGS)
    assert [j.score for j in found] == pytest.approx([j.score for j in judgments], abs=1e-5)


# Two records against each other


def settled(judge, *probs):
    """A judgment with these probabilities."""
    return judge.judgment([Rationale("", "3", tuple(math.log(max(p, 1e-30)) for p in probs), 1)])


def test_records_that_come_one_by_one_are_judged_like_a_list(judge, judgments):
    found = judge.score((record for record in RECORDS), num_cots=4, **SETTINGS)
    assert [j.rationale for j in found] == [j.rationale for j in judgments]


def test_a_comparison_by_hand(judge):
    a, b = settled(judge, 0, 0, 0.2, 0.3, 0.5), settled(judge, 0, 0, 0.5, 0.5, 0)
    # a beats b: 4 over 3, .3 * .5; 5 over 3 and 4, .5. They tie: .2 * .5 + .3 * .5. b wins: 4 over 3, .5 * .2.
    found = comparison(a, b, judge.config)
    assert (found.win, found.tie, found.loss) == pytest.approx((0.65, 0.25, 0.10))
    assert found.verdict == "a"  # 4.3 over 3.5
    # One step apart is a tie now: only 5 over 3 is left.
    wide = comparison(a, b, judge.config, tie_width=1)
    assert (wide.win, wide.tie, wide.loss, wide.verdict) == pytest.approx((0.25, 0.75, 0.0, "tie"))
    assert comparison(b, a, judge.config).verdict == "b"
    assert comparison(a, a, judge.config).verdict == "tie"


def test_missing_mass_does_not_count_as_a_tie(judge):
    # Half of the mass is off the scale: as a distribution over the scale, a is 5 for sure.
    found = comparison(settled(judge, 0, 0, 0, 0, 0.5), settled(judge, 0, 0, 1, 0, 0), judge.config)
    assert (found.win, found.tie, found.loss) == pytest.approx((1, 0, 0))


def test_compare_judges_both_records(judge):
    settings = {"temperature": 0, "unfinished": "force", "tie_width": 0.1, **SETTINGS}
    found = judge.compare(RECORDS[3], RECORDS[4], **settings)  # learned as 5 and 1
    assert found.verdict == "a" and found.win > found.loss
    assert found.win + found.tie + found.loss == pytest.approx(1)
    del settings["tie_width"]
    assert [found.a.score, found.b.score] == pytest.approx([j.score for j in judge.score(RECORDS[3:5], **settings)])


def test_an_unscored_side_leaves_the_comparison_open(judge):
    found = judge.compare(RECORDS[0], RECORDS[1], max_new_tokens=1)
    assert found.verdict is None and all(map(math.isnan, (found.win, found.tie, found.loss)))
    with pytest.raises(ValueError, match=r"^tie_width must be at least 0, got -1\.$"):
        judge.compare(RECORDS[0], RECORDS[1], tie_width=-1, max_new_tokens=1)


def test_no_records_give_no_judgments(judge):
    assert judge.score([]) == []


def test_without_rationales_the_score_is_read_right_after_the_prompt(judge):
    found = judge.score(RECORDS, num_cots=0)
    assert [j.score for j in found] == [j.score for j in judge.rescore(RECORDS, [""] * len(RECORDS))]
    assert all(math.isfinite(j.score) and j.rationale == "" and j.label for j in found)
    assert judge.score(RECORDS[0], num_cots=0).score == pytest.approx(found[0].score, abs=1e-5)
    with pytest.raises(InputError, match=r"^num_cots must be at least 0, got -1\.$"):
        judge.score(RECORDS[0], num_cots=-1)


def test_records_may_come_in_any_container(judge):
    pandas = pytest.importorskip("pandas")
    expected = [j.score for j in judge.score(RECORDS, num_cots=0)]
    by_name = {str(number): record for number, record in enumerate(RECORDS)}
    for records in (by_name.values(), iter(RECORDS), tuple(RECORDS), pandas.DataFrame(RECORDS)):
        assert [j.score for j in judge.score(records, num_cots=0)] == pytest.approx(expected, abs=1e-5)


def test_the_seed_changes_the_rationales(judge):
    random = {"temperature": 50, "top_p": 1, "max_new_tokens": 12}  # nearly every token is as likely as every other
    texts = [[j.rationales[0].text for j in judge.score(RECORDS, seed=seed, **random)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] and not set(texts[0]) & set(texts[2])


def test_a_judge_stops_at_the_end_of_the_turn(judge):
    end = make_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert end in judge.engine.stop_ids
    for judgment in judge.score(RECORDS, **SETTINGS):
        assert "<|im_end|>" not in judgment.rationales[0].text


@pytest.mark.parametrize("conversational", [True, False])
def test_the_token_that_the_template_ends_a_turn_with_stops_it_too(trainer, conversational):
    # Llama-3's way: the model's and the tokenizer's own end is another token than the end of a turn.
    tokenizer = make_tokenizer("llama3")
    model = make_model(vocab_size=len(tokenizer))
    config = dataclasses.replace(trainer.judge_config, conversational=conversational)
    ends = ["</s>", "<|im_end|>"] if conversational else ["</s>"]
    stop_ids = Judge.from_model(model, tokenizer, config).engine.stop_ids
    assert stop_ids == [tokenizer.convert_tokens_to_ids(end) for end in ends]


# Given rationales


def test_rescoring_a_rationale_gives_the_score_it_was_given(judge, judgments):
    tokens = judge.engine.tokens.tokenizer
    for record, judgment in zip(RECORDS, judgments, strict=True):
        for rationale in judgment.rationales:
            (again,) = judge.rescore([record], [rationale.text])
            assert tokens.decode(judge.rows.scored_ids(record, rationale.text)).endswith(PREFIX)
            assert again.score == pytest.approx(rail(rationale.log_probs), abs=1e-5)
            assert again.rationales[0].log_probs == pytest.approx(rationale.log_probs, abs=1e-4)


def test_rescoring_reads_the_expected_score_that_training_saw(judge, trainer):
    # The trainer's own forward on its prepared rows.
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])  # the rows' own rationales come first
    with torch.no_grad():
        log_probs = trainer.model.eval()(**batch).score_log_probs  # (8, 5)
    rationales = [row["completion"][0]["content"].rpartition(PREFIX)[0] for row in make_rows(8, True)]
    found = judge.rescore(RECORDS, rationales)
    assert [j.score for j in found] == pytest.approx([rail(row) for row in log_probs.tolist()], abs=1e-5)
    assert [j.label for j in found] == ["12345"[row.argmax()] for row in log_probs]


def test_as_many_rationales_as_records_must_be_given(judge):
    with pytest.raises(InputError, match="Expected a rationale for each of 8 records, got 1"):
        judge.rescore(RECORDS, ["Clear."])


# Saved and loaded


def test_a_judge_that_is_saved_loaded_and_asked_again_gives_the_same_score(trainer, judge, judgments, tmp_path):
    trainer.save_model(str(tmp_path / "judge"))
    loaded = Judge.from_pretrained(tmp_path / "judge")
    assert loaded.config == trainer.judge_config == JudgeConfig.load(tmp_path / "judge")
    assert loaded.engine.stop_ids == judge.engine.stop_ids
    again = loaded.score(RECORDS, num_cots=4, **SETTINGS)
    assert [j.score for j in again] == pytest.approx([j.score for j in judgments], abs=1e-6)
    assert [j.rationale for j in again] == [j.rationale for j in judgments]


def test_an_adapter_that_is_saved_loaded_and_asked_again_gives_the_same_score(trainer, tmp_path):
    trainer.save_model(str(tmp_path / "base"))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = train_judge(
        tmp_path / "run", steps=4, model=base, peft_config=LoraConfig(r=4, target_modules="all-linear")
    )
    adapted.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    before = Judge.from_model(adapted.model, adapted.processing_class, adapted.judge_config)
    after = Judge.from_pretrained(tmp_path / "adapter")
    rationales = ["Clear.", "Weak."]
    own, saved, bare = (
        [j.score for j in judge.rescore(RECORDS[:2], rationales)]
        for judge in (before, after, Judge.from_pretrained(tmp_path / "base"))
    )
    assert saved == pytest.approx(own, abs=1e-6)
    assert saved != pytest.approx(bare, abs=1e-4)
    asked = [judge.score(RECORDS, **SETTINGS) for judge in (before, after)]
    assert [j.rationales[0].text for j in asked[0]] == [j.rationales[0].text for j in asked[1]]
    assert [j.score for j in asked[0]] == pytest.approx([j.score for j in asked[1]], abs=1e-6)


def test_a_judge_of_plain_text_ends_its_answer_and_scores(tmp_path):
    trainer = train_judge(tmp_path, conversational=False)
    judge = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    assert judge.config.conversational is False
    found = judge.score([{"prompt": row["prompt"]} for row in make_rows(8)], num_cots=4, **SETTINGS)
    assert all(len(j.rationales) == 4 and {r.label for r in j.rationales} <= set("12345") for j in found)
    assert all(1 <= j.score / j.mass <= 5 for j in found)


def test_a_judge_that_has_learned_its_rows_gives_their_gold_scores(judge):
    rationales = [row["completion"][0]["content"].rpartition(PREFIX)[0] for row in make_rows(8, True)]
    found = [judgment.score for judgment in judge.rescore(RECORDS, rationales)]
    errors = [abs(score - gold) for score, gold in zip(found, make_dataset(8)["score"], strict=True)]
    assert sum(errors) / 8 < 0.5  # the mean of 1 to 5 is 1.1 off


# What it cannot do


def test_an_engine_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^engine='onnx' is not known; "):
        Judge.from_pretrained(tmp_path, engine="onnx")


def test_a_folder_without_judge_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no judge_config\.json"):
        Judge.from_pretrained(tmp_path)


def test_a_template_that_drops_the_answer_is_refused(judge, trainer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    broken = Judge.from_model(trainer.model, tokenizer, trainer.judge_config)
    with pytest.raises(
        ValueError, match=r"^The chat template drops the closing phrase of a completion ending 'Clear\.'\.$"
    ):
        broken.rows.scored_ids(RECORDS[0], "Clear.")


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"


def test_a_record_that_the_chat_template_refuses_is_named_before_any_is_judged():
    judge = fake_judge(lambda prompt: [sure(4)])
    tokenizer = judge.engine.tokens.tokenizer
    tokenizer.chat_template = NO_SYSTEM + tokenizer.chat_template  # as Gemma's
    user, system = ({"role": role, "content": "Rate."} for role in ("user", "system"))
    records, message = [{"prompt": [user]}] * 9 + [{"prompt": [system, user]}], "The chat template refuses messages of"
    with pytest.raises(InputError, match=f"^Record 9: {message}"):
        judge.score(records)
    with pytest.raises(InputError, match=f"^Record 9: {message}"):
        judge.rescore(records, ["Clear."] * 10)
    with pytest.raises(InputError, match=f"^{message}"):
        judge.score(records[9])
    assert judge.engine.generated == 0


@pytest.mark.parametrize(("prefix", "separator"), [(PREFIX, "\n"), ("\n\nScore: ", ""), (", score: ", "")])
def test_the_score_of_a_reward_is_read_behind_the_separator_of_training(prefix, separator):
    config, read = JudgeConfig(list("12345"), None, prefix, score_separator=separator), []

    def say(text):
        if not text.endswith(prefix):
            return [None]  # a rationale that the reward closes
        read.append(text)
        return [sure(4)]

    reward = fake_judge(say, config).as_reward_func(rubric="Is it right?")
    assert reward(["Name a prime."], ["7"]) == [4.0]
    assert len(read) == 1 and read[0].endswith(f"Rationale 0.{separator}{prefix}")


def test_the_warning_of_a_record_that_the_engine_refuses_has_its_number(caplog):
    judge = fake_judge(lambda prompt: [None])
    refused = [Rationale("", None, None, 0, error="Too long."), Rationale("", None, None, 9)]
    judge.engine.generate = lambda prompts, seeds, sampling: refused[: len(prompts)][::-1]
    records = [{"prompt": "Rate it."}, {"prompt": "Rate this."}]
    assert [judgment.reason[:9] for judgment in judge.score(records)] == ["None of 1", "Too long."]
    list(judge.as_finished([*records[:1] * 7, *records[1:]], numbers=[4, 7]))
    said = [record.getMessage() for record in caplog.records]
    assert said == ["Record 1 remains unscored: Too long.", "Record 7 remains unscored: Too long."]


def test_a_score_is_not_read_without_the_think_block_that_a_template_drops():
    judge = fake_judge(lambda prompt: [None])
    tokenizer = judge.engine.tokens.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'].split('</think>')[-1]")
    rationale, record = "<think>It lacks one example.</think>Weak.", {"prompt": "Rate it."}
    with pytest.raises(InputError, match="drops the think block of a rationale beginning '<think>It lacks one ex"):
        judge.rescore([record], [rationale])
    judge.engine.generate = lambda prompts, seeds, sampling: [Rationale(rationale, None, None, 9)]
    judgment = judge.score(record, unfinished="force")
    assert math.isnan(judgment.score) and judgment.reason.startswith("The chat template drops the think block")


def test_a_model_without_any_end_token_is_refused(trainer):
    tokenizer = make_tokenizer(eos_token=None)
    model = make_model(vocab_size=len(tokenizer), eos_token_id=None)
    config = dataclasses.replace(trainer.judge_config, conversational=False)
    with pytest.raises(ValueError, match=r"^Neither the model nor the tokenizer has an end-of-sequence token\."):
        Judge.from_model(model, tokenizer, config)


# Calibration


def mapped_judge(**changes):
    calibration = {
        "weights": None,
        "score_values": [1, 2, 3, 4, 5],
        "num_cots": 2,
        "scores": [1, 5],
        "calibrated": [2, 4],
    }
    config = dataclasses.replace(FIVE, calibration=None if changes == {"none": True} else calibration | changes)
    return fake_judge(lambda prompt: [None] * 2 if "none" in prompt else [sure(4), sure(5)], config)


def test_calibrated_scores_are_those_of_the_map_and_nothing_else_changes():
    judge, records = mapped_judge(), [{"prompt": "one"}, {"prompt": "none"}]
    plain, _ = judge.score(records, 2)
    mapped, unscored = judge.score(records, 2, calibrated=True)
    assert plain.score == 4.5 and mapped.score == pytest.approx(3.75)  # from 1 to 5 as 2 to 4
    assert dataclasses.replace(mapped, score=4.5) == plain and math.isnan(unscored.score) and unscored.reason
    assert judge.score(records[0], 2, calibrated=True).score == mapped.score
    assert judge.compare(*records[:1] * 2, 2, calibrated=True).a.score == mapped.score
    (reward,) = judge.as_reward_func("R", 2, calibrated=True)(["p"], ["c"])
    assert reward == mapped.score
    assert judge.identity == fake_judge(lambda prompt: [sure(4)]).identity  # so results are found again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"none": True}, "The judge has no calibration. Fit one: tract calibrate RESULT.json --model FOLDER."),
        ({"weights": "w"}, "fitted on other judgments than these:\n  weights: 'w' there, None now\n"),
        ({"score_values": [0, 1]}, "  score_values: [0, 1] there, [1.0, 2.0, 3.0, 4.0, 5.0] now\n"),
        ({"num_cots": 5}, "  num_cots: 5 there, 2 now\nJudge with the same num_cots, or run tract calibrate"),
    ],
)
def test_a_map_of_other_judgments_is_refused_before_any_is_made(changes, message):
    judge = mapped_judge(**changes)
    with pytest.raises(InputError, match=re.escape(message)):
        judge.score([{"prompt": "one"}], 2, calibrated=True)
    assert judge.engine.generated == 0
