"""The three engines give one answer. Needs vLLM: make test-vllm makes the environment and runs this."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from peft import LoraConfig

pytest.importorskip("vllm")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default it takes nearly all there is

from attacks import attacked
from tiny import RATIONALES, judge_model, make_dataset, make_rows, make_tokenizer, train_judge

from tract_trainer import Judge, JudgeConfig, ScoreScale, generate_cot_dataset
from tract_trainer.engines.base import Sampling
from tract_trainer.errors import InputError

RECORDS = [{"prompt": row["prompt"]} for row in make_rows(8, conversational=True)]
LLM = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
GREEDY = {"temperature": 0, "max_new_tokens": 60}


def seed_model():
    tokenizer = make_tokenizer()
    # vLLM's attention on a CPU knows heads of 32 and more.
    return judge_model(tokenizer, head_dim=32, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    train_judge(folder, model=seed_model()).save_model()
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    seed_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
    train_judge(folder, steps=60, model=str(base), peft_config=lora).save_model()
    return folder


@pytest.fixture(scope="module")
def transformers(folder):
    return Judge.from_pretrained(folder)


@pytest.fixture(scope="module")
def vllm(folder):
    return Judge.from_pretrained(folder, "vllm", model_kwargs=LLM)


@contextmanager
def serving(folder, log, name="judge", options=()):
    """A server's first process, which leads a group of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; the command itself asks for the version of a package "vllm", and the CPU's is "vllm-cpu".
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", name, "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "2048", *options]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(900):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(1)
        yield server, f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def url(folder, adapter, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("serve") / "log") as (_, url):
        yield url


@pytest.fixture(scope="module")
def server(folder, url):
    return Judge.from_pretrained(folder, "server", model_kwargs={"base_url": url})


@pytest.fixture(scope="module", params=["vllm", "server"])
def other(request):
    return request.getfixturevalue(request.param)


def scores(judgments):
    return [judgment.score for judgment in judgments]


def test_the_same_fifty_rationales_have_the_same_scores_and_averages(transformers, other):
    records = [RECORDS[i % 8] for i in range(50)]
    rationales = [f"{RATIONALES[i % 7]} Point {i}: {RATIONALES[i % 3]}" for i in range(50)]
    expected, found = transformers.rescore(records, rationales), other.rescore(records, rationales)
    assert scores(found) == pytest.approx(scores(expected), abs=1e-3)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.probs == pytest.approx(theirs.probs, abs=1e-3)
    for start in range(0, 50, 5):  # five rationales a record
        mine, theirs = (
            judge.judgment([judgment.rationales[0] for judgment in judgments[start : start + 5]])
            for judge, judgments in ((other, found), (transformers, expected))
        )
        assert mine.score == pytest.approx(theirs.score, abs=1e-3)
        assert mine.std == pytest.approx(theirs.std, abs=1e-3)


@pytest.mark.parametrize("scale", ["1:10", "1:5:0.5"])
def test_labels_of_several_tokens_have_the_same_probabilities(folder, url, tmp_path, scale):
    other = shutil.copytree(folder, tmp_path / "judge")
    labels = list(ScoreScale.parse(scale).labels)
    replace(JudgeConfig.load(folder), score_labels=labels, score_values=None).save(other)
    kwargs = {"transformers": {}, "vllm": LLM, "server": {"base_url": url}}
    judges = [Judge.from_pretrained(other, engine, model_kwargs=given) for engine, given in kwargs.items()]
    assert len(judges[0].rows.tokens.nodes) > 1
    for ask in (
        lambda judge: judge.rescore(RECORDS, RATIONALES[:8]),
        lambda judge: judge.score(RECORDS, unfinished="force", **GREEDY),
        lambda judge: judge.score(RECORDS, num_cots=0),
    ):
        expected, *found = (ask(judge) for judge in judges)
        assert max(min(judgment.probs) for judgment in expected) > 0
        for judgments in found:
            for mine, theirs in zip(judgments, expected, strict=True):
                assert mine.probs == pytest.approx(theirs.probs, abs=1e-3)
                assert mine.score == pytest.approx(theirs.score, abs=1e-3)


def test_the_likeliest_rationale_and_its_score_are_the_same(transformers, other):
    for sampling in (GREEDY, {**GREEDY, "repetition_penalty": 1.0}, {**GREEDY, "repetition_penalty": 1.3}):
        expected, found = (judge.score(RECORDS, unfinished="force", **sampling) for judge in (transformers, other))
        assert [j.rationale for j in found] == [j.rationale for j in expected]
        assert scores(found) == pytest.approx(scores(expected), abs=1e-3)
        assert [len(j.rationales) for j in found] == [1] * 8


def test_the_log_probabilities_of_a_sampled_rationale_are_those_of_the_bare_model(transformers, other):
    judgments = other.score(RECORDS, 5, temperature=1.3, repetition_penalty=1.2, top_p=0.8, max_new_tokens=60)
    written = [(i, r) for i, judgment in enumerate(judgments) for r in judgment.rationales if r.log_probs]
    assert len(written) > 20 and len({r.text for _, r in written}) > 3
    again = transformers.rescore([RECORDS[i] for i, _ in written], [r.text for _, r in written])
    for (_, rationale), judgment in zip(written, again, strict=True):
        assert rationale.log_probs == pytest.approx(judgment.rationales[0].log_probs, abs=2e-3)


def test_a_seed_draws_the_same_again_and_another_one_another(other):
    random = {"temperature": 2, "top_p": 1, "max_new_tokens": 12, "unfinished": "force"}  # no two are alike
    first, again, moved = (scores(other.score(RECORDS, 2, seed=seed, **random)) for seed in (1, 1, 2))
    assert first == pytest.approx(again, abs=1e-3)
    assert first != pytest.approx(moved, abs=1e-3)


def test_a_rationale_that_never_closes_is_forced_alike(transformers, other):
    sampling = {"temperature": 0, "max_new_tokens": 3, "unfinished": "force"}
    found, expected = other.score(RECORDS, **sampling), transformers.score(RECORDS, **sampling)
    assert all(j.rationales[0].forced for j in found)
    assert scores(found) == pytest.approx(scores(expected), abs=1e-3)


def test_what_the_template_puts_before_an_answer_is_no_part_of_a_rationale(other, monkeypatch):
    whole = other.score(RECORDS[0], **GREEDY).rationales[0]
    monkeypatch.setattr(other.engine, "lead", whole.text[:5])
    found = other.score(RECORDS[0], **GREEDY).rationales[0]
    assert found.text == whole.text[5:] != ""
    assert (found.label, found.num_tokens) == (whole.label, whole.num_tokens)


def test_attacks_move_nothing(transformers, other):
    records = attacked()
    assert [other.rows.prompt_ids(record) for record in records] == list(map(transformers.rows.prompt_ids, records))
    ours, theirs = (judge.score(records, unfinished="force", **GREEDY) for judge in (other, transformers))
    same = [(mine, one) for mine, one in zip(ours, theirs, strict=True) if mine.rationale == one.rationale]
    assert len(same) > 0.9 * len(records)  # of the others, two tokens are equally likely somewhere
    for mine, one in same:
        assert mine.score == pytest.approx(one.score, abs=1e-3)


def test_a_prompt_longer_than_the_model_reads_is_unscored_and_leaves_the_others_alone(transformers, other):
    long = {"prompt": [{"role": "user", "content": "Rate 3. " * 900}]}
    found = other.score([RECORDS[0], long, RECORDS[1]], **GREEDY)
    expected = transformers.score([RECORDS[0], long, RECORDS[1]], **GREEDY)
    assert found[1].reason == expected[1].reason
    assert "tokens to read, and the model reads 2048." in found[1].reason
    assert scores(found[::2]) == pytest.approx(scores(expected[::2]), abs=1e-3)


def test_rationales_stop_where_the_model_has_no_more_room(other):
    room = 2048 - 20
    (rationale,) = other.engine.generate([[7] * room], [1], Sampling(max_new_tokens=1000))
    assert rationale.num_tokens <= 20


def test_a_rationale_dataset_is_written_and_resumed(other, tmp_path):
    settings = {"output_dir": tmp_path, "max_new_tokens": 60, "num_cots": 2, "unfinished": "force"}
    dataset = make_dataset(8, conversational=True)
    whole = generate_cot_dataset(other, dataset, **settings)
    assert len(whole) == 16
    shard = tmp_path / ".shards" / "process-00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines[:5]) + lines[5][:10])  # as a killed process leaves it
    again = generate_cot_dataset(other, dataset, **settings)
    assert again.column_names == whole.column_names and len(again) == 16
    kept = set(shard.read_bytes().splitlines(keepends=True))
    assert set(lines[:5]) <= kept and len(kept) == 16


def test_a_server_that_is_killed_midway_leaves_the_dataset_of_an_undisturbed_run(folder, url, tmp_path):
    """A request's seed draws the same whichever server has it and whatever runs beside it: in float32, on CPUs."""
    dataset, settings = make_dataset(80, conversational=True), {"max_new_tokens": 60, "unfinished": "force"}
    whole = Judge.from_pretrained(folder, "server", model_kwargs={"base_url": url})
    expected = generate_cot_dataset(whole, dataset, output_dir=tmp_path / "whole", **settings).to_list()
    assert len({row["completion"][0]["content"] for row in expected}) > 40
    shard = tmp_path / "killed" / ".shards" / "process-00000.jsonl"
    with serving(folder, tmp_path / "log") as (server, second), ThreadPoolExecutor(1) as pool:
        judge = Judge.from_pretrained(folder, "server", model_kwargs={"base_url": [second, url], "concurrency": 8})
        writing = pool.submit(generate_cot_dataset, judge, dataset, output_dir=tmp_path / "killed", **settings)
        while not writing.done() and not (shard.exists() and shard.read_bytes().count(b"\n") >= 20):
            time.sleep(0.005)
        os.killpg(server.pid, signal.SIGKILL)
        assert not writing.done()
        found = writing.result().to_list()
    assert judge.engine.servers.aside.keys() == {judge.engine.servers.clients[0]}
    assert found == expected


def test_an_adapter_runs_without_being_merged(adapter):
    expected = Judge.from_pretrained(adapter)
    found = Judge.from_pretrained(adapter, "vllm", model_kwargs=LLM)
    rationales = [f"Clear {i}." for i in range(8)]
    theirs, mine = expected.rescore(RECORDS, rationales), found.rescore(RECORDS, rationales)
    assert scores(mine) == pytest.approx(scores(theirs), abs=1e-3)
    with expected.engine.model.disable_adapter():
        assert scores(expected.rescore(RECORDS, rationales)) != pytest.approx(scores(theirs), abs=1e-2)


def test_an_adapter_is_served_on_its_base_and_has_its_room(adapter, tmp_path):
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"judge={adapter}"]
    with serving(base, tmp_path / "log", "base", lora) as (_, url):
        with pytest.raises(InputError, match="name one of them, served_model='judge'"):
            Judge.from_pretrained(adapter, "server", model_kwargs={"base_url": url})
        with pytest.raises(InputError, match="serves 'base', the base model"):
            Judge.from_pretrained(adapter, "server", model_kwargs={"base_url": url, "served_model": "base"})
        judge = Judge.from_pretrained(adapter, "server", model_kwargs={"base_url": url, "served_model": "judge"})
        rationales = [f"Clear {i}." for i in range(8)]
        mine = judge.rescore(RECORDS, rationales)
        long = judge.score({"prompt": "word " * 3000}, max_new_tokens=8)
    assert judge.engine.max_length == 2048 and "tokens" in long.reason
    assert scores(mine) == pytest.approx(scores(Judge.from_pretrained(adapter).rescore(RECORDS, rationales)), abs=1e-3)
