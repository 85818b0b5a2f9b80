"""The server engine against a server on loopback that answers as vLLM does, and fails on purpose."""

import contextlib
import json
import logging
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from attacks import check_attacks
from peft import LoraConfig
from tiny import PREFIX, THINKING, make_dataset, make_model, make_rows, make_tokenizer, train_judge

from tract_trainer import Judge, generate_cot_dataset
from tract_trainer.cli.main import main
from tract_trainer.cli.pipeline import judge_file
from tract_trainer.engines import server as server_engine
from tract_trainer.engines.base import Sampling
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import evaluate

RECORDS = [{"prompt": row["prompt"]} for row in make_rows(8, conversational=True)]
SAMPLING = {"max_new_tokens": 60}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_args):
        pass

    def do_GET(self):
        self.reply(self.server.listed or {"object": "list", "data": self.server.cards})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(asked)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            failure = self.server.fail(number, asked)
            if failure is None:
                self.reply(self.server.complete(asked))
            else:
                failure(self)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def reply(self, body, status=200, headers=()):
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in [("Content-Type", "application/json"), ("Content-Length", str(len(text))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)


def status(code, **headers):
    headers = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda handler: handler.reply({"error": {"message": f"made up {code}"}}, code, headers)


def cut(handler):
    """The connection ends in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


PATIENCE = 300
"""Seconds that a test waits for what must come, however busy the machine is."""


def wait_for(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "what the test waits for has not come"
        time.sleep(0.01)


class Clock:
    """The time of the retries, which only they let pass."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(server_engine, "time", clock)
    monkeypatch.setattr(server_engine, "sleep", clock.sleep)
    return clock


@pytest.fixture(scope="module")
def folder(judge_folder):
    return judge_folder


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory):
    """A judge that reads prompts as long as those of the attacks."""
    folder, tokenizer = tmp_path_factory.mktemp("long"), make_tokenizer()
    sizes = {"hidden_size": 32, "max_position_embeddings": 2048}
    model = make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    train_judge(folder, model=model, steps=20).save_model()
    return folder


THINK = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """A judge whose chat template puts an empty think block before an answer, and its folder."""
    folder, tokenizer = tmp_path_factory.mktemp("thinking"), make_tokenizer()
    tokenizer.chat_template = THINKING
    train_judge(folder, tokenizer=tokenizer).save_model()
    judge = Judge.from_pretrained(folder)
    assert judge.engine.lead == THINK
    return folder, judge


@pytest.fixture(scope="module")
def local(folder):
    return Judge.from_pretrained(folder)


@contextlib.contextmanager
def serving(local, fail=lambda number, asked: None, without=(), port=0):
    """A server that completes as the transformers engine's model does, one greedy token after the other."""
    model, lock = local.engine.model.eval(), threading.Lock()

    def complete(asked):
        written, places = [], []
        while len(written) < asked["max_tokens"]:
            with lock, torch.inference_mode():
                logits = model(torch.tensor([asked["prompt"] + written])).logits[0, -1]
            found = logits.float().log_softmax(-1)
            written.append(int(logits.argmax()))
            wanted = [i for i in asked["logprob_token_ids"] if i not in without]
            places.append({f"token_id:{i}": float(found[i]) for i in {*wanted, written[-1]} - set(without)})
            if written[-1] in asked["stop_token_ids"]:
                break
        log_probs = {"tokens": [f"token_id:{i}" for i in written], "top_logprobs": places, "token_logprobs": []}
        choice = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": log_probs}
        return {"id": "1", "object": "text_completion", "created": 1, "model": "judge", "choices": [choice]}

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.asked, server.busy, server.busiest, server.lock = [], 0, 0, threading.Lock()
    server.fail, server.complete, server.connections, server.listed = fail, complete, [], None
    server.cards = [{"id": "judge", "object": "model", "created": 1, "owned_by": "us", "max_model_len": 512}]
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # or a client that keeps one would still be answered on it
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def connect(folder, server, **kwargs):
    kwargs = {"base_url": server.url, "max_retries": 2, "concurrency": 4, **kwargs}
    return Judge.from_pretrained(folder, "server", model_kwargs=kwargs)


def first_then(failure, times=1):
    """Fails at the first requests after the engine's own probe."""
    return lambda number, asked: failure if 1 <= number <= times else None


# What is asked and answered


def test_the_server_gives_the_judgments_of_the_model_at_hand(folder, local):
    expected = local.score(RECORDS, 2, temperature=0, repetition_penalty=1, **SAMPLING)
    with serving(local) as server:
        found = connect(folder, server).score(RECORDS, 2, temperature=0, repetition_penalty=1, **SAMPLING)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert (ours.rationale, ours.label) == (theirs.rationale, theirs.label)
    assert [judgment.reason for judgment in found] == [""] * 8


@pytest.mark.parametrize("engine", ["transformers", "server"])
def test_a_rationale_begins_after_what_the_template_puts_before_an_answer(thinking, engine):
    folder, local = thinking
    with serving(local) as server:
        judge = connect(folder, server) if engine == "server" else local
        settings = {"temperature": 0, "repetition_penalty": 1, **SAMPLING}
        found = judge.score(RECORDS, **settings)
        judge.engine.lead = ""
        whole = judge.score(RECORDS, **settings)
        judge.engine.lead = THINK
    assert [judgment.reason for judgment in found] == [""] * 8
    assert [f"{THINK}{judgment.rationale}" for judgment in found] == [judgment.rationale for judgment in whole]
    assert [judgment.score for judgment in found] == [judgment.score for judgment in whole]


def test_given_rationales_and_forced_ones_are_scored_alike(folder, local):
    rationales = [f"Clear {i}." for i in range(8)]
    with serving(local) as server:
        judge = connect(folder, server)
        pairs = list(zip(judge.rescore(RECORDS, rationales), local.rescore(RECORDS, rationales), strict=True))
        short = {"max_new_tokens": 2, "unfinished": "force", "temperature": 0, "repetition_penalty": 1}
        pairs += zip(judge.score(RECORDS, **short), local.score(RECORDS, **short), strict=True)
    for ours, theirs in pairs:
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_every_sampling_setting_is_sent(folder, local):
    with serving(local) as server:
        judge = connect(folder, server)
        judge.engine.generate([[5, 6, 7]], [11], Sampling(0.7, 0.8, 1.2, 9))
        judge.engine.generate([[5, 6, 7]], [12], Sampling(0, 0.8, 1.2, 1000))
    drawn, greedy = server.asked[1:]
    said = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.2, "max_tokens": 9, "seed": 11, "top_k": 0,
            "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n": 1, "prompt": [5, 6, 7]}  # fmt: skip
    assert {name: drawn[name] for name in said} == said
    assert drawn["stop_token_ids"] == judge.engine.stop_ids
    assert drawn["logprob_token_ids"] == list(judge.engine.tokens.ids)
    assert (greedy["temperature"], greedy["top_p"], greedy["max_tokens"]) == (0, 1.0, 512 - 3)


def test_no_more_requests_are_under_way_than_allowed(folder, local):
    three = threading.Barrier(3)

    def fail(number, asked):
        if 1 <= number <= 3:
            three.wait(PATIENCE)  # until three are under way
        time.sleep(0.02)  # a fourth has time to come

    with serving(local, fail=fail) as server:
        judge = connect(folder, server, concurrency=3)
        judge.score(RECORDS, 2, max_new_tokens=2)
    assert server.busiest == 3


def test_results_stay_in_the_order_of_the_records(folder, local):
    expected = [judgment.score for judgment in local.rescore(RECORDS, ["Clear."] * 8)]

    def fail(number, asked):
        if number == 1:
            wait_for(lambda: len(server.asked) == 1 + 8)

    with serving(local, fail=fail) as server:
        found = [judgment.score for judgment in connect(folder, server).rescore(RECORDS, ["Clear."] * 8)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_attacks_move_nothing(long_folder):
    judge = Judge.from_pretrained(long_folder)
    with serving(judge) as server:
        server.cards[0]["max_model_len"] = 2048
        check_attacks(connect(long_folder, server, concurrency=2), judge.engine.model)


def test_the_command_line_judges_through_a_server(folder, local, tmp_path):
    source, target = tmp_path / "records.jsonl", tmp_path / "judged.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    greedy = ["--temperature", "0", "--repetition_penalty", "1", "--max_new_tokens", "60"]
    with serving(local) as server:
        where = ["--engine", "server", "--base_url", server.url, "--model_kwargs", '{"concurrency": 2}']
        main(["judge", "--model", str(folder), "--input", str(source), "--output", str(target), *where, *greedy])
    assert server.busiest <= 2
    expected = local.score(RECORDS, temperature=0, repetition_penalty=1, **SAMPLING)
    found = [json.loads(line)["score"] for line in target.read_text().splitlines()]
    assert found == pytest.approx([judgment.score for judgment in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "server"], "--engine server and --base_url http://HOST:PORT/v1 belong together."),
        (
            ["--base_url", "http://localhost:1/v1"],
            "--engine server and --base_url http://HOST:PORT/v1 belong together.",
        ),
        (["--model_kwargs", "{x"], 'model_kwargs must be a mapping or JSON such as {"dtype": "bfloat16"}, got \'{x\'.'),
    ],
)
def test_engine_settings_that_do_not_fit_are_one_line(folder, tmp_path, capsys, flags, message):
    assert main(["judge", "--model", str(folder), "--record", str(tmp_path / "x.json"), *flags]) == 2
    assert capsys.readouterr().err.strip().endswith(message)


# Failures that pass


@pytest.mark.parametrize(
    ("failure", "asked_for"),
    [
        (status(429, Retry_After="10"), 10),
        (status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), None),
        (status(429, Retry_After="1000"), None),
        (status(500), None),
        (status(503), None),
        (cut, None),
    ],
    ids=["429 after 10 s", "429 after a date", "429 after a quarter of an hour", "500", "503", "cut"],
)
def test_a_failure_that_passes_is_tried_again(folder, local, failure, asked_for, clock):
    with serving(local, fail=first_then(failure, times=2)) as server:
        found = connect(folder, server).score(RECORDS[0], temperature=0, repetition_penalty=1, **SAMPLING)
    expected = local.score(RECORDS[0], temperature=0, repetition_penalty=1, **SAMPLING)
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert len(server.asked) == 1 + 2 + 1
    assert server.asked[1] == server.asked[2] == server.asked[3]
    # What the server asked for, twice; or else the back-off: (0.5 + 1) * [0.75, 1].
    assert clock.now == 2 * asked_for if asked_for else 1.125 <= clock.now <= 1.5


def test_a_slow_server_is_tried_again_after_the_timeout(folder, local, clock):
    """It keeps the first request until the second one comes. A busy machine may be too slow for others, too."""
    held = first_then(lambda handler: wait_for(lambda: len(server.asked) > 2))
    with serving(local, fail=held) as server:
        judge = connect(folder, server, timeout=2, max_retries=20)
        (judgment,) = judge.rescore(RECORDS[:1], ["Clear."])
    assert judgment.reason == "" and server.asked[1] == server.asked[2]


# Failures that stay


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(folder, local, code):
    with serving(local, fail=first_then(status(code), times=99)) as server:
        judge = connect(folder, server)
        with pytest.raises(ValueError, match=rf"^{server.url}/completions refuses the request: .*made up {code}"):
            judge.score(RECORDS[0], **SAMPLING)
    # Of a prompt that is refused, the engine asks whether another one is, too.
    assert len(server.asked) == (3 if code in (400, 422) else 2)


@pytest.mark.parametrize("failure", [status(500), status(429), cut], ids=["500", "429", "cut"])
def test_a_failure_that_stays_ends_with_what_to_do(folder, local, failure, clock):
    with serving(local, fail=first_then(failure, times=99)) as server:
        judge = connect(folder, server, max_retries=1)
        with pytest.raises(
            ConnectionError, match=r"gave no answer in 2 tries: .* Is the server up.*kept: run the same"
        ):
            judge.score(RECORDS[0], **SAMPLING)
    assert len(server.asked) == 3


def test_an_answer_that_is_not_json_is_an_error(folder, local):
    with serving(local, fail=first_then(lambda handler: handler.reply(b'{"choices": [}'), times=99)) as server:
        judge = connect(folder, server, max_retries=0)
        with pytest.raises(ConnectionError, match="sent an answer that cannot be read"):
            judge.score(RECORDS[0], **SAMPLING)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"null", b'{"data": "text"}', b'{"data": [1]}'])
def test_what_is_no_server_is_refused(folder, local, body):
    with serving(local) as server:
        server.listed = body
        with pytest.raises((InputError, ConnectionError)) as raised:
            connect(folder, server, max_retries=0)
    assert "cannot be read" in str(raised.value) or "names no model that it serves" in str(raised.value)


@pytest.mark.parametrize("base_url", [[], "localhost:8000/v1", 3, ["http://a/v1", ""]])
def test_an_address_that_is_none_is_refused_at_once(folder, base_url):
    with pytest.raises(InputError, match=r"^base_url must be an address, or a list of them, like 'http://localhost"):
        Judge.from_pretrained(folder, "server", model_kwargs={"base_url": base_url})


def test_a_server_without_the_log_probabilities_is_refused_before_any_work(folder, local):
    wanted = r"does not return the log-probabilities of the scale \['1', '2', '3', '4', '5'\].*as vllm serve does"
    with serving(local, without=[local.engine.tokens.ids[3]]) as server, pytest.raises(ValueError, match=wanted):
        connect(folder, server)
    assert len(server.asked) == 1
    plain = {"id": "1", "object": "text_completion", "created": 1, "model": "judge"}
    plain["choices"] = [{"index": 0, "text": "4", "finish_reason": "stop", "logprobs": None}]
    bare = serving(local, fail=lambda number, asked: lambda handler: handler.reply(plain))
    with bare as server, pytest.raises(ValueError, match=wanted):
        connect(folder, server)


def tampered(local, change):
    """Fails at the first request after the engine's own probe: `change` has its way with the log-probabilities."""
    finished = {"tokens": [f"token_id:{i}" for i in local.engine.tokens.tokenizer(f"{PREFIX}4")["input_ids"]]}
    place = {f"token_id:{i}": -2.0 for i in local.engine.tokens.ids}
    finished["top_logprobs"] = [dict(place) for _ in finished["tokens"]]
    change(finished["top_logprobs"])
    choice = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": finished}
    reply = {"id": "1", "object": "text_completion", "created": 1, "model": "judge", "choices": [choice]}
    return first_then(lambda handler: handler.reply(reply), times=99)


@pytest.mark.parametrize(
    "change",
    [
        lambda places: places.pop(),
        lambda places: places.__setitem__(-1, None),
        lambda places: places[-1].update(dict.fromkeys(places[-1])),
        lambda places: places[-1].update(dict.fromkeys(places[-1], 2.0)),
    ],
    ids=["a place too few", "an empty place", "an empty number", "a log-probability above 0"],
)
def test_log_probabilities_that_are_not_whole_are_refused(folder, local, change):
    with serving(local, fail=tampered(local, change)) as server:
        judge = connect(folder, server)
        with pytest.raises(ValueError, match=r"does not return the log-probabilities of the scale"):
            judge.score(RECORDS[0], **SAMPLING)


def test_a_server_whose_model_gives_no_numbers_leaves_a_record_unscored_with_the_reason(folder, local):
    def change(places):
        places[-1].update(dict.fromkeys(places[-1], math.nan))

    with serving(local, fail=tampered(local, change)) as server:
        judgment = connect(folder, server).score(RECORDS[0], **SAMPLING)
    assert math.isnan(judgment.score) and judgment.label is None
    assert judgment.reason.startswith("1 of 1 rationales: the model gives no numbers (NaN) for the labels.")


@pytest.mark.parametrize("cards", [[], None], ids=["an empty list", "none"])
def test_a_server_that_names_no_model_is_refused(folder, local, cards):
    with serving(local) as server:
        server.cards = cards
        with pytest.raises(InputError, match=f"{server.url}/ names no model that it serves"):
            connect(folder, server)


def test_no_server_and_another_model_are_named(folder, local):
    with serving(local) as server:
        with pytest.raises(ValueError, match=r"does not serve 'other' but \['judge'\]\.$"):
            connect(folder, server, served_model="other")
        url = server.url
    with pytest.raises(ConnectionError, match=f"^{url}/ gave no answer in 1 tries: Connection error. Is the server up"):
        Judge.from_pretrained(folder, "server", model_kwargs={"base_url": url, "max_retries": 0})


# Several servers


def answers(judge, local):
    """Whether `judge` gives the scores of the model at hand."""
    greedy = {"temperature": 0, "repetition_penalty": 1, **SAMPLING}
    found, expected = ([j.score for j in one.score(RECORDS, **greedy)] for one in (judge, local))
    assert all(map(math.isfinite, expected))
    return found == pytest.approx(expected, abs=1e-4)


def test_of_two_servers_the_living_one_does_the_work(folder, local):
    with serving(local) as dead:
        pass
    with serving(local) as server:
        assert answers(connect(folder, server, base_url=[dead.url, server.url], max_retries=0), local)


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("failure", [status(429), status(503), cut], ids=["429", "503", "cut"])
def test_beside_a_dead_server_a_failure_of_the_other_that_passes_is_tried_again(folder, local, clock, failure, turn):
    with serving(local) as dead:
        pass
    with serving(local, fail=first_then(failure, times=3)) as server:
        urls = [dead.url, server.url] if turn else [server.url, dead.url]
        judge = connect(folder, server, base_url=urls, max_retries=3, concurrency=1)
        judge.engine.servers.aside.clear()  # as if the dead one had died just now
        assert answers(judge, local)
    assert len(server.asked) == 1 + 3 + 8


def test_beside_a_dead_server_the_other_is_asked_when_it_says(folder, local, clock):
    with serving(local) as dead:
        pass
    with serving(local, fail=first_then(status(429, Retry_After="10"))) as server:
        judge = connect(folder, server, base_url=[server.url, dead.url], max_retries=1)
        assert judge.rescore(RECORDS[:1], ["Clear."])[0].reason == ""
    assert clock.now == 10 and len(server.asked) == 3


def test_servers_of_several_judges_are_refused_and_the_least_room_counts(folder, local):
    with serving(local) as one, serving(local) as other:
        both = {"base_url": [one.url, other.url]}
        one.cards[0]["root"], other.cards[0]["root"] = "/a/stage2", "/b/stage2"
        other.cards[0]["max_model_len"] = 200
        judge = connect(folder, one, **both)
        assert judge.engine.max_length == 200
        assert judge.identity == connect(folder, other).identity
        other.cards[0]["root"] = "/b/stage1"
        told = f"same judge: {one.url}/ has 'judge' from 'stage2'; {other.url}/ has 'judge' from 'stage1'"
        with pytest.raises(InputError, match=re.escape(told)):
            connect(folder, one, **both)
        assert connect(folder, other).identity != judge.identity
        assert "/b" not in connect(folder, other).identity


def test_a_server_that_breaks_off_is_set_aside_and_asked_again_later(folder, local, clock, caplog):
    with serving(local) as good, serving(local, fail=lambda number, asked: cut) as broken:
        judge = connect(folder, good, base_url=[broken.url, good.url], concurrency=1)
        assert answers(judge, local)
        assert (len(broken.asked), len(good.asked)) == (1, 1 + 8)
        clock.now += server_engine.SET_ASIDE
        assert answers(judge, local)
        assert (len(broken.asked), len(good.asked)) == (1 + 1, 1 + 8 + 8)
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [f"{broken.url}/ gave no answer (Connection error.): it is set aside, the others are asked."]


def test_a_server_that_comes_back_is_used_again(folder, local, clock):
    with serving(local) as server:
        with serving(local) as first:
            judge = connect(folder, server, base_url=[server.url, first.url], concurrency=1)
            assert answers(judge, local)
            assert len(first.asked) > 1
        assert answers(judge, local)
        clock.now += server_engine.SET_ASIDE
        with serving(local, port=first.server_port) as again:
            assert answers(judge, local)
    assert len(again.asked) == 4 and judge.engine.servers.aside == {}


def test_a_server_that_takes_no_connection_holds_nothing_up(folder, local, monkeypatch):
    monkeypatch.setattr(server_engine, "CONNECT", 0.5)
    with socket.socket() as silent, serving(local) as server, contextlib.ExitStack() as waiting:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(2):  # its queue is full: what comes now gets no answer at all, as from a machine without power
            visitor = waiting.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(silent.getsockname())
        url, started = f"http://127.0.0.1:{silent.getsockname()[1]}/v1", time.monotonic()
        assert answers(connect(folder, server, base_url=[url, server.url], timeout=600), local)
    assert time.monotonic() - started < 600


# The engine's own probe is asked of `one`, where it comes off, and the first try begins with `two`.
@pytest.mark.parametrize("failure", [status(500), cut], ids=["500", "cut"])
def test_servers_that_all_fail_are_asked_alike_and_named(folder, local, clock, failure):
    with serving(local, fail=first_then(failure, 99)) as one, serving(local, fail=lambda number, asked: failure) as two:
        judge = connect(folder, one, base_url=[one.url, two.url], max_retries=2, concurrency=1)
        with pytest.raises(ConnectionError, match=rf"^{one.url}/, {two.url}/ gave no answer in 3 tries: .*Is the serv"):
            judge.rescore(RECORDS[:1], ["Clear."])
    assert (len(one.asked), len(two.asked)) == (4, 3)


# Adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA judge, and its base beside it."""
    folder, base, tokenizer = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("base"), make_tokenizer()
    make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(base)
    tokenizer.save_pretrained(base)
    lora = LoraConfig(r=4, target_modules="all-linear")
    train_judge(folder, steps=1, model=str(base), peft_config=lora).save_model()
    return folder, base


def test_an_adapter_is_asked_by_its_name_and_has_the_room_of_its_base(local, adapter):
    """A server says how much it reads on the base's card alone, and takes nothing longer."""
    folder, base = adapter

    def fail(number, asked):
        return status(400) if len(asked["prompt"]) + asked["max_tokens"] > 512 or asked["model"] != "judge" else None

    with serving(local, fail=fail) as server:
        card = server.cards[0]
        server.cards = [
            {**card, "id": "base", "root": str(base)},
            {**card, "max_model_len": None, "parent": "base", "root": str(folder)},
        ]
        with pytest.raises(InputError, match=r"served_model='judge' for example"):
            connect(folder, server)
        with pytest.raises(InputError, match=r"serves 'base', the base model of the adapter in .* and not the judge"):
            connect(folder, server, served_model="base")
        judge = connect(folder, server, served_model="judge")
        assert judge.engine.max_length == 512
        short, long = judge.score([RECORDS[0], {"prompt": "word " * 600}], max_new_tokens=2, unfinished="force")
    assert not short.reason and "tokens" in long.reason


# What was finished


def test_what_was_finished_before_the_server_died_is_kept_and_not_asked_again(folder, local, tmp_path):
    dataset = make_dataset(40, conversational=True)
    settings = {"max_new_tokens": 60, "temperature": 0.0, "repetition_penalty": 1.0, "unfinished": "force"}
    with serving(local) as server:
        whole = generate_cot_dataset(connect(folder, server), dataset, output_dir=tmp_path / "whole", **settings)
    with serving(local, fail=lambda number, asked: status(500) if number > 20 else None) as server:
        judge = connect(folder, server, max_retries=0)
        with pytest.raises(ConnectionError, match="gave no answer"):
            generate_cot_dataset(judge, dataset, output_dir=tmp_path / "cots", **settings)
    kept = (tmp_path / "cots" / ".shards" / "process-00000.jsonl").read_text().count("\n")
    assert kept == 20
    with serving(local) as server:
        again = generate_cot_dataset(connect(folder, server), dataset, output_dir=tmp_path / "cots", **settings)
    assert len(server.asked) - 1 == 40 - kept
    assert again.to_list() == whole.to_list()


def judged_to_file(judge, records, folder):
    judge_file(judge, records, folder / "judged.jsonl", 1, max_new_tokens=2)


def evaluated(judge, records, folder):
    evaluate(judge, records, "made up", folder / "result.json", 1, max_new_tokens=2)


def evaluated_without_rationales(judge, records, folder):
    evaluate(judge, records, "made up", folder / "result.json", 0)


@pytest.mark.parametrize("work", [judged_to_file, evaluated, evaluated_without_rationales])
def test_a_judgment_is_kept_though_one_before_it_is_not_made(folder, local, tmp_path, work):
    """The first request hangs while the others are answered, and is refused in the end."""
    records = [{"prompt": f"Rate number {i}.", "score": 1 + i % 5} for i in range(40)]

    def fail(number, asked):
        if "number 0." not in local.engine.tokens.tokenizer.decode(asked["prompt"]):
            return None
        wait_for(lambda: len(server.asked) == 41)
        return status(401)

    with serving(local, fail=fail) as server, pytest.raises(InputError, match="refuses the request"):
        work(connect(folder, server), records, tmp_path)
    (shard,) = tmp_path.glob("*.unfinished/process-00000.jsonl")
    assert len({json.loads(line)["key"] for line in shard.open()}) == 39


# Records that a server refuses


def refusing(local, times=99, code=400):
    """Refuses prompts of record 2 with a reason."""
    said = {"error": {"message": "This model's maximum context length is 99 tokens."}}

    def fail(number, asked):
        refused = "names 2 facts" in local.engine.tokens.tokenizer.decode(asked["prompt"])
        return (lambda handler: handler.reply(said, code)) if refused else None

    return fail


@pytest.mark.parametrize("code", [400, 413, 422])
@pytest.mark.parametrize("unfinished", ["unscored", "force"])
def test_a_record_that_the_server_refuses_is_unscored_with_its_reason(folder, local, caplog, code, unfinished):
    greedy = {"temperature": 0, "repetition_penalty": 1, "unfinished": unfinished, **SAMPLING}
    expected = local.score(RECORDS, 2, **greedy)
    with serving(local, fail=refusing(local, code=code)) as server:
        found = connect(folder, server).score(RECORDS, 2, **greedy)
    assert math.isnan(found[2].score) and found[2].rationales[0].error == found[2].reason
    assert found[2].reason.startswith(f"{server.url}/completions refuses the request: Error code: {code}")
    assert "This model's maximum context length is 99 tokens." in found[2].reason
    others = [0, 1, 3, 4, 5, 6, 7]
    assert [found[i].score for i in others] == pytest.approx([expected[i].score for i in others], abs=1e-4, nan_ok=True)
    assert sum(not found[i].reason for i in others) >= 5
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [f"Record 2 remains unscored: {found[2].reason}"]


def test_a_rationale_that_the_server_does_not_score_leaves_the_others_scored(folder, local):
    with serving(local, fail=refusing(local)) as server:
        found = connect(folder, server).rescore(RECORDS, ["Clear."] * 8)
    assert [math.isnan(judgment.score) for judgment in found] == [i == 2 for i in range(8)]
    assert found[2].reason


@pytest.mark.parametrize("unfinished", ["drop", "force"])
def test_a_prompt_that_the_server_refuses_is_asked_once_and_has_no_row_in_stage_2(folder, local, tmp_path, unfinished):
    dataset = make_dataset(8, conversational=True)
    settings = {"temperature": 0.01, "max_retries": 2, "unfinished": unfinished, "progress": False, **SAMPLING}
    with serving(local, fail=refusing(local)) as server:
        found = generate_cot_dataset(connect(folder, server), dataset, output_dir=tmp_path, **settings)
    texts = [local.engine.tokens.tokenizer.decode(asked["prompt"]) for asked in server.asked]
    assert sum("names 2 facts" in text for text in texts) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["refused"] == 1 and report["kept"] == len(found) == 7 - report["dropped"] > 0
    assert not any("names 2 facts" in prompt[0]["content"] for prompt in found["prompt"])


@pytest.mark.parametrize("records", [RECORDS[:1], RECORDS * 9], ids=["one", "many"])
def test_settings_that_the_server_refuses_end_the_run(folder, local, records):
    """As those of a model that reads less than `max_new_tokens`."""
    with serving(local, fail=lambda number, asked: status(400) if asked["max_tokens"] > 50 else None) as server:
        judge = connect(folder, server)
        with pytest.raises(InputError, match="refuses the request: Error code: 400 - made up 400"):
            judge.score(records, max_new_tokens=60)
        assert all(not judgment.reason for judgment in judge.rescore(RECORDS, ["Clear."] * 8))


def test_a_server_that_refuses_everything_from_some_record_on_ends_the_run(folder, local):
    with serving(local, fail=lambda number, asked: status(400) if number > 9 else None) as server:
        found = connect(folder, server, concurrency=1).stream(RECORDS * 9, max_new_tokens=2)
        with pytest.raises(InputError, match="refuses the request"):
            for judgment in found:
                assert "refuses" not in judgment.reason
    assert sum(len(asked["prompt"]) > 1 for asked in server.asked[10:]) <= 2  # one is refused; one may have begun


def test_the_length_of_a_model_can_be_given_where_the_server_does_not_tell_it(folder, local):
    with serving(local) as server:
        server.cards[0]["max_model_len"] = None
        judge = connect(folder, server, max_model_len=40)
        long, short = judge.score([{"prompt": "word " * 99}, {"prompt": "Rate it."}])
        assert connect(folder, server).engine.max_length is None
        server.cards[0]["max_model_len"] = 30
        assert connect(folder, server, max_model_len=40).engine.max_length == 30
    assert long.reason.endswith("and the model reads 40.") and short.rationales[0].num_tokens > 0
    assert max(len(asked["prompt"]) + asked["max_tokens"] for asked in server.asked) == 40


def without_log_probs(asked, complete):
    reply = complete(asked)
    reply["choices"][0]["logprobs"] = None
    return lambda handler: handler.reply(reply)


def test_a_reply_without_log_probabilities_is_asked_for_again(folder, local):
    greedy = {"temperature": 0, "repetition_penalty": 1, **SAMPLING}
    with serving(local) as server:
        server.fail = lambda number, asked: without_log_probs(asked, server.complete) if number in (1, 2) else None
        found = connect(folder, server).score(RECORDS[0], **greedy)
    assert found.score == pytest.approx(local.score(RECORDS[0], **greedy).score, abs=1e-4)
    assert len(server.asked) == 4


def test_a_record_that_never_gets_log_probabilities_is_unscored_with_the_reason(folder, local):
    refused = refusing(local)
    with serving(local) as server:
        server.fail = lambda number, asked: refused(number, asked) and without_log_probs(asked, server.complete)
        found = connect(folder, server).score(RECORDS, **SAMPLING)
    assert "does not return the log-probabilities of the scale" in found[2].reason
    assert not any("does not return" in judgment.reason for i, judgment in enumerate(found) if i != 2)


@pytest.mark.parametrize("value", [0.0, 0.5, 1e300])
def test_log_probabilities_that_are_none_are_no_score(folder, local, value):
    def change(places):
        places[-1].update(dict.fromkeys(places[-1], value))

    with serving(local, fail=tampered(local, change)) as server:
        judge = connect(folder, server)
        with pytest.raises(InputError, match="does not return the log-probabilities of the scale"):
            judge.score(RECORDS[0], **SAMPLING)


# Waiting, and what is said


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(folder, local, part):
    def trickle(handler):
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 " + b"O" * 300 if part == "headers" else b" " * 300:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.3)

    with serving(local, fail=first_then(trickle, times=99)) as server:
        judge = connect(folder, server, max_retries=1)
        judge.engine.servers.timeout = 1  # after the probe, which a busy machine may be slow to answer
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=r"in 2 tries: It did not answer within timeout=1 seconds\. Is the"):
            judge.score(RECORDS[0], **SAMPLING)
    assert time.monotonic() - started < 50  # of the 90 s that the server takes
    assert len(server.asked) == 3


def test_a_long_wait_that_a_server_asks_for_is_logged(folder, local, clock, caplog):
    with serving(local, fail=first_then(status(429, Retry_After="11"))) as server:
        connect(folder, server).rescore(RECORDS[:1], ["Clear."])
    said = [record.message for record in caplog.records if record.name == server_engine.__name__]
    assert said[-1] == f"{server.url}/ asks to wait: trying again in 11 seconds." and clock.now == 11


SECRETS = ["sesame", "a/b@c", "key123"]


@pytest.mark.parametrize("failure", [status(400), status(401), status(500), cut, lambda handler: time.sleep(3)])
def test_no_message_holds_a_password(folder, local, failure, clock, caplog):
    caplog.set_level(logging.INFO, logger=server_engine.__name__)
    with serving(local, fail=first_then(failure, 99)) as server:
        url = server.url.replace("//", "//me:sesame@")
        judge = connect(folder, server, base_url=[url, f"{url}?key=key123"], max_retries=1)
        judge.engine.servers.timeout = 2
        with pytest.raises((InputError, ConnectionError)) as raised:
            judge.score(RECORDS[0], max_new_tokens=2)
    said = "\n".join([str(raised.value), *(r.getMessage() for r in caplog.records if r.name == server_engine.__name__)])
    assert f"{server.url}/" in said and not any(secret in said for secret in SECRETS)


@pytest.mark.parametrize("url", ["ftp://me:sesame@host/v1", "me:a/b@c@host/v1", "host/v1?key=key123"])
def test_no_message_of_a_wrong_address_holds_a_password(folder, url):
    for given in (url, ["http://host/v1", url]):
        with pytest.raises(InputError, match="base_url must be an address") as raised:
            Judge.from_pretrained(folder, "server", model_kwargs={"base_url": given})
        assert "host/v1" in str(raised.value) and not any(secret in str(raised.value) for secret in SECRETS)


@pytest.mark.slow
def test_ctrl_c_ends_at_once_with_what_was_finished_though_the_server_never_answers(folder, local, tmp_path):
    source, target, over = tmp_path / "records.jsonl", tmp_path / "judged.jsonl", threading.Event()
    source.write_text("".join(json.dumps({**RECORDS[i % 8], "number": i}) + "\n" for i in range(24)))
    command = [sys.executable, "-m", "tract_trainer", "judge", "--model", str(folder), "--engine", "server"]
    command += ["--input", str(source), "--output", str(target), "--max_new_tokens", "2"]
    with serving(local, fail=lambda number, asked: (lambda handler: over.wait(120)) if number > 9 else None) as server:
        command += ["--base_url", server.url, "--model_kwargs", '{"concurrency": 4}']
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: len(server.asked) == 14)  # the probe, 9 that are answered, and 4 that are not
        written = tmp_path / "judged.jsonl.unfinished" / "process-00000.jsonl"
        wait_for(lambda: written.read_bytes().count(b"\n") == 9)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        said = next(line for line in process.stderr if line.startswith("tract judge: "))
        took = time.monotonic() - started
        rest = process.communicate(timeout=60)[1]  # Python clears up, which takes it seconds on a busy machine
        over.set()
    assert said.startswith("tract judge: stopped. Finished work is on disk; the same command") and not rest
    assert took < 5, f"{took:.1f} s"
    assert process.returncode == 130
    assert written.read_bytes().count(b"\n") == 9
