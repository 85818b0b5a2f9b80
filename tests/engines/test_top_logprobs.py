"""The engine for servers that return only the most likely tokens, against a loopback server with a real model."""

import asyncio
import json
import logging
import math
import threading
from types import SimpleNamespace

import pytest
import torch
from test_server import RECORDS, serving, status
from tiny import PREFIX, make_dataset

from tract_trainer import Judge, ScoreScale, generate_cot_dataset
from tract_trainer.cli.main import main
from tract_trainer.engines.top_logprobs import Share, Step, interval, rationale, shares, written
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig

GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 60}
FIVE, TEN = ScoreScale.integers(1, 5), ScoreScale.integers(1, 10)


def answering(local, most, after_temperature=False):
    """Completes as a chat or completions endpoint, greedily, and returns at most `most` tokens a place as text."""
    model, tokenizer, lock = local.engine.model.eval(), local.engine.tokens.tokenizer, threading.Lock()

    def said(token):
        text = "" if token in tokenizer.all_special_ids else tokenizer.decode([token])
        return {"token": text, "bytes": list(text.encode())}

    def complete(asked):
        chat, ids = "messages" in asked, []
        if chat:
            given = tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True, return_dict=True)
            prompt = given["input_ids"]
        else:
            prompt = tokenizer(asked["prompt"])["input_ids"]
        places, ended = [], False
        while len(ids) < asked["max_tokens"] and not ended:
            with lock, torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
            ids.append(int(logits.argmax()))
            logits = logits / (asked["temperature"] or 1) if after_temperature else logits
            found = logits.log_softmax(-1)
            ended = ids[-1] == tokenizer.eos_token_id
            top = found.topk(min(most, asked["top_logprobs"] if chat else asked["logprobs"], len(found)))
            top = [{**said(int(i)), "logprob": float(p)} for p, i in zip(*top, strict=True)]
            places.append({**said(ids[-1]), "logprob": float(found[ids[-1]]), "top_logprobs": top})
        text = tokenizer.decode(ids, skip_special_tokens=True)
        choice = {"index": 0, "finish_reason": "stop" if ended else "length"}
        if chat:
            choice |= {"message": {"role": "assistant", "content": text}, "logprobs": {"content": places}}
        else:
            tops = [{top["token"]: top["logprob"] for top in place["top_logprobs"]} for place in places]
            columns = {"tokens": [p["token"] for p in places], "token_logprobs": [p["logprob"] for p in places]}
            choice |= {"text": text, "logprobs": {**columns, "top_logprobs": tops}}
        return {"id": "1", "object": "x", "created": 1, "model": "judge", "choices": [choice]}

    return complete


@pytest.fixture(scope="module")
def local(judge_folder):
    return Judge.from_pretrained(judge_folder)


@pytest.fixture
def served(local):
    with serving(local) as server:
        server.complete = answering(local, 20)
        yield server


def connect(folder, server, **kwargs):
    kwargs = {"logprobs": "top", "base_url": server.url, "max_retries": 0, "concurrency": 4, **kwargs}
    return Judge.from_pretrained(folder, "server", model_kwargs=kwargs)


# Against the model at hand


@pytest.mark.parametrize("most", [1, 3, 20])
def test_the_interval_covers_the_score_of_the_model(judge_folder, local, served, most):
    served.complete = answering(local, most)
    expected = local.score(RECORDS, **GREEDY)
    found = connect(judge_folder, served).score(RECORDS, **GREEDY)
    for ours, exact in zip(found, expected, strict=True):
        assert (ours.label, ours.rationale, ours.reason) == (exact.label, exact.rationale, "")
        low, high = ours.score_interval
        assert low <= exact.score <= high and low <= ours.score <= high
        assert exact.score_interval is None
        missing = 1 - sum(sorted(exact.probs)[-1:]) if most == 1 else None
        # Of five, the highest value; and what rounding may change.
        assert missing is None or high - low == pytest.approx(5 * missing + 0.01, abs=1e-3)


def test_with_every_token_returned_the_score_is_exact(judge_folder, local, served, monkeypatch):
    monkeypatch.setattr("tract_trainer.engines.top_logprobs.TOP", 1000)
    served.complete = answering(local, 1000)
    expected = local.score(RECORDS[0], **GREEDY)
    found = connect(judge_folder, served).score(RECORDS[0], **GREEDY)
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert found.probs == pytest.approx(expected.probs, abs=1e-4)
    assert found.score_interval == pytest.approx((found.score - 0.005, found.score + 0.005), abs=1e-3)


def test_a_judge_without_turns_is_asked_at_the_completions_endpoint(tmp_path, judge_folder, local, served):
    prompt = local.engine.tokens.tokenizer.apply_chat_template(
        RECORDS[0]["prompt"], add_generation_prompt=True, tokenize=False
    )
    config = JudgeConfig.load(judge_folder)
    JudgeConfig(config.score_labels, score_prefix=config.score_prefix, conversational=False).save(tmp_path)
    found = connect(tmp_path, served).score({"prompt": prompt}, **GREEDY)
    assert served.asked[-1]["prompt"] == prompt and "messages" not in served.asked[-1]
    assert found.score_interval[0] <= local.score(RECORDS[0], **GREEDY).score <= found.score_interval[1]


def test_the_command_writes_the_interval_and_warns_of_a_wide_one(
    judge_folder, local, served, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("tract_trainer.judging.judgment.WIDE", 0.0)
    served.complete = answering(local, 1)
    records, judged = tmp_path / "records.jsonl", tmp_path / "judged.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:2]))
    command = ["judge", "--model", str(judge_folder), "--engine", "server", "--base_url", served.url]
    command += ["--model_kwargs", '{"logprobs": "top"}', "--input", str(records), "--output", str(judged)]
    main([*command, "--temperature", "0", "--max_new_tokens", "60"])
    for row in map(json.loads, judged.read_text().splitlines()):
        low, high = row["score_interval"]
        assert low <= row["score"] <= high
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in said if text.startswith("The score of record")]) == 1


def test_a_model_without_training_needs_its_name_and_a_scale(served):
    judge = Judge.from_pretrained(
        "judge", "server", scale=FIVE, model_kwargs={"logprobs": "top", "base_url": served.url}
    )
    judge.score({"instruction": "Name a prime.", "response": "7", "rubric": "Is it right?"}, max_new_tokens=2)
    assert 'end with "So the overall score is" and one of 1, 2, 3' in served.asked[-1]["messages"][0]["content"]


# What cannot be known


def test_what_a_chat_cannot_do_is_refused_before_any_request(judge_folder, served):
    judge = connect(judge_folder, served)
    before = len(served.asked)
    for refused in (
        lambda: judge.score(RECORDS, 0),
        lambda: judge.score(RECORDS, unfinished="force"),
        lambda: judge.rescore(RECORDS[:1], ["Clear."]),
    ):
        with pytest.raises(InputError, match="only where the served model writes it"):
            refused()
    with pytest.raises(InputError, match="does not take"):
        judge.score({**RECORDS[0], "tools": [{"type": "function"}]})
    with pytest.raises(InputError, match="need the judge's tokenizer"):
        generate_cot_dataset(judge, make_dataset(2, conversational=True))
    assert len(served.asked) == before


def test_a_server_without_top_logprobs_is_refused_before_any_work(judge_folder, served):
    complete = served.complete

    def without(asked):
        reply = complete(asked)
        reply["choices"][0]["logprobs"] = None
        return reply

    served.complete = without
    with pytest.raises(InputError, match="does not return the log-probabilities of the most likely tokens"):
        connect(judge_folder, served)


def test_a_server_that_scales_its_log_probabilities_is_asked_at_temperature_1_only(judge_folder, local, served):
    served.complete = answering(local, 20, after_temperature=True)
    judge = connect(judge_folder, served)
    with pytest.raises(InputError, match=r"after temperature and top_p, .* Judge with temperature=1 and top_p=1\."):
        judge.score(RECORDS[0], temperature=0.7)
    assert not judge.score(RECORDS[0], top_p=1.0, max_new_tokens=60).reason


def test_wrong_names_are_refused(judge_folder, served):
    with pytest.raises(InputError, match=r"serves \['judge'\]\. Name one of them"):
        connect(judge_folder, served, served_model="other")
    with pytest.raises(InputError, match="logprobs must be 'top', with engine='server', or be left out; found 'all'"):
        connect(judge_folder, served, logprobs="all")
    with pytest.raises(InputError, match="or be left out; found 'top' with engine='transformers'"):
        Judge.from_pretrained(judge_folder, model_kwargs={"logprobs": "top"})


def test_a_record_that_the_server_refuses_is_unscored_with_its_reason(judge_folder, served):
    served.fail = lambda number, asked: status(400) if "names 2 facts" in str(asked.get("messages")) else None
    found = connect(judge_folder, served).score(RECORDS, **GREEDY)
    assert [math.isnan(judgment.score) for judgment in found] == [i == 2 for i in range(8)]
    assert "made up 400" in found[2].reason and found[2].score_interval is None


# By hand


def step(token, **probs):
    return Step(token.encode(), {name.replace("_", " ").encode(): p for name, p in probs.items()})


def figures(scale, steps, renormalize=False, head=b""):
    """The score that is reported, and its interval."""
    found = shares(scale, head, steps)
    parts = [(share.mass, scale.values[share.likely]) for share in found if share.likely is not None]
    score = sum(mass * value for mass, value in parts) / (sum(mass for mass, _ in parts) if renormalize else 1)
    return score, *interval(found, scale, renormalize)


@pytest.mark.parametrize("renormalize", [False, True])
def test_what_is_missing_lies_anywhere_on_the_scale_or_off_it(renormalize):
    steps = [step("4", **{"4": 0.6, "5": 0.3, "x": 0.05})]
    # 0.6 * 4 + 0.3 * 5 = 3.9, and 0.05 is missing.
    expected = (3.9 / 0.9, (3.9 + 0.05) / 0.95, (3.9 + 0.25) / 0.95) if renormalize else (3.9, 3.9, 4.15)
    assert figures(FIVE, steps, renormalize) == pytest.approx(expected)


def test_below_zero_what_is_missing_may_lower_the_score():
    scale = ScoreScale(["bad", "good"], [-1, 1])
    assert figures(scale, [step("good", good=0.8, bad=0.1)]) == pytest.approx((0.7, 0.6, 0.8))


def test_a_label_that_another_one_goes_on_from_is_known_where_the_text_goes_on():
    first = {"1": 0.3, "8": 0.7}
    # "1" was not written: its 0.3 may be a 1 or a 10.
    assert figures(TEN, [step("8", **first)]) == pytest.approx((5.9, 5.9, 8.6))
    # Behind it the server wrote a full stop, of 0.9; 0.1 is a 10.
    behind = step(".", **{".": 0.9, "0": 0.1})
    assert figures(TEN, [step("1", **first), behind]) == pytest.approx([0.27 + 0.3 + 5.6] * 3)
    # A control token ends the label as well. What is missing there, 0.1, is a 1 or a 10.
    ended = Step(b"", {b"": 0.9})
    assert figures(TEN, [step("1", **first), ended]) == pytest.approx((5.9, 5.9, 5.9 + 0.03 * 9))


def test_a_label_that_is_one_token_is_not_written_as_two():
    assert figures(TEN, [step("8", **{"1": 0.3, "8": 0.6, "10": 0.1})]) == pytest.approx([0.3 + 4.8 + 1] * 3)
    assert figures(FIVE, [step("4", **{"4": 0.5, "10": 0.5})]) == pytest.approx([2] * 3)  # not the label 1


def test_a_token_may_hold_the_end_of_the_prefix():
    assert figures(FIVE, [step(" 4", _4=0.75, _5=0.25)], head=b" ") == pytest.approx([4.25] * 3)
    # A space apart may go on to any label, or to none.
    assert figures(FIVE, [step(" 4", _4=0.75, **{" ": 0.25})], head=b" ") == pytest.approx((3, 3, 4.25))


def test_words_are_known_as_far_as_they_were_written():
    scale = ScoreScale(["Poor", "Fair", "Good"], [1, 2, 3])
    steps = [step("Go", Go=0.5, Fa=0.3, P=0.2), step("od", od=0.8, es=0.2)]
    # Good 0.5 * 0.8; "Fa" and "P" begin one label each, or none.
    assert figures(scale, steps) == pytest.approx((1.2 + 0.6 + 0.2, 1.2, 2.0))
    joined = [step("Good.", **{"Good.": 0.5, "Fair": 0.5})]  # a 3 as it reads, but not as a label is written
    assert figures(scale, joined) == pytest.approx((2.5, 1, 2.5))
    assert Share(0.5, (2,), True, 2) in shares(scale, b"", joined)


CONFIG = JudgeConfig(list(FIVE.labels), score_prefix=PREFIX)


def read(*texts, truncated=False):
    return rationale([Step(text.encode(), {text.encode(): 1.0}) for text in texts], truncated, CONFIG)


def test_the_score_is_the_last_one_of_an_answer_behind_its_thoughts():
    thought = ("<think>", f"{PREFIX}", "1", "</think>")
    found = read(*thought, f"Clear. {PREFIX}", "2", ". No: ", PREFIX, "4", ".")
    assert (found.label, found.text) == ("4", f"Clear. {PREFIX}2. No: ")
    assert read(*thought[1:], f"Clear. {PREFIX}", "5").label == "5"
    assert read(f"Clear. {PREFIX}", "2", ". No: ", PREFIX, "4", truncated=True).label == "2"
    for texts in (thought[:3], (f"Clear. {PREFIX}", "4", "5"), (f"Clear. {PREFIX}", "4", "/", "10"), ("Clear.",)):
        assert (read(*texts).label, read(*texts).log_probs) == (None, None), texts


def test_a_character_in_two_tokens_moves_no_label():
    raw = [*b"Clear ", *"é".encode()]
    steps = [Step(bytes(part), {bytes(part): 1.0}) for part in (raw[:7], raw[7:], list(f". {PREFIX}".encode()))]
    found = rationale([*steps, step("4", **{"4": 0.5, "5": 0.5})], False, CONFIG)
    assert found.text == "Clear é. " and found.score_interval == pytest.approx((4.495, 4.505))


@pytest.mark.parametrize(
    "place",
    [
        {"token": "4", "logprob": 0.0, "top_logprobs": []},
        {"token": "4", "logprob": 0.0, "top_logprobs": [{"token": "4", "logprob": 0.5}]},
        {"token": "4", "logprob": 0.0, "top_logprobs": [{"token": "4", "logprob": math.nan}]},
        {"token": "x", "logprob": 0.0, "top_logprobs": [{"token": "x", "logprob": -0.1}]},
    ],
    ids=["none", "above 1", "no number", "of another text"],
)
def test_log_probabilities_that_are_none_are_refused(place):
    with pytest.raises((TypeError, ValueError)):
        written({"logprobs": {"content": [place]}, "message": {"content": "4"}})


# Without blocking


@pytest.mark.parametrize("calls", [1, 4])
def test_ascore_gives_the_results_of_score_while_the_loop_goes_on(local, calls):
    """Of calls at the same time, an engine runs as many as it can."""
    judge, running, most, meet = Judge(local.engine, local.config), [], [], threading.Event()

    def generate(prompts, seeds, sampling):
        running.append(1)
        most.append(len(running))
        assert meet.wait(60)
        try:
            return local.engine.generate(prompts, seeds, sampling) if calls == 1 else [rationale([], False, CONFIG)]
        finally:
            running.pop()

    judge.engine = SimpleNamespace(
        tokens=local.engine.tokens, batch_size=1, calls=calls, max_length=512, generate=generate
    )

    async def together():
        tasks = [asyncio.ensure_future(judge.ascore(record, **GREEDY)) for record in RECORDS[:3]]
        while len(most) < min(calls, 3):
            await asyncio.sleep(0.01)  # which a blocked loop would never come back to
        meet.set()
        return await asyncio.gather(*tasks)

    found = asyncio.run(together())
    assert max(most) == min(calls, 3)
    if calls == 1:
        assert [judgment.score for judgment in found] == [local.score(one, **GREEDY).score for one in RECORDS[:3]]
