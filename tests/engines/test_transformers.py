"""The transformers engine: every draw is the model's own distribution, whatever shares the batch."""

import copy
import itertools
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from scipy import stats
from tiny import FAMILIES, PREFIX, make_model, make_rows, make_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, MambaConfig, Qwen3NextConfig, TopPLogitsWarper

from tract_trainer import Judge, ScoreScale
from tract_trainer.engines import cache
from tract_trainer.engines import transformers as transformers_engine
from tract_trainer.engines.base import Sampling
from tract_trainer.engines.completions import read_written
from tract_trainer.engines.transformers import SeededDraw, TransformersEngine
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

TOKENIZER = make_tokenizer()
TOKENS = ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, TOKENIZER)
PROMPTS = [TOKENIZER(row["prompt"] + "Clear. " * i)["input_ids"] for i, row in enumerate(make_rows(6))]
CONFIG = JudgeConfig(["1", "2", "3", "4", "5"], [1, 2, 3, 4, 5], PREFIX, conversational=False)
PLAIN = {"top_p": 1.0, "repetition_penalty": 1.0}


@pytest.fixture
def engine():
    return TransformersEngine(
        make_model(vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id), TOKENS, CONFIG
    )


@pytest.fixture(scope="module")
def trained(learned):
    return Judge.from_model(learned.model, learned.processing_class, learned.judge_config).engine


@pytest.fixture(scope="module")
def prompts():
    rows = make_rows(8, conversational=True)
    return [
        TOKENIZER.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in rows
    ]


def steps(engine, monkeypatch, *args):
    """What `generate` saw: for each row in the engine's order, its prompt, the tokens written and `(S, K)`."""
    seen = []

    def spy(tokens, prompt, written, stop_ids, log_probs, lead):
        kept = list(itertools.takewhile(lambda token: token not in stop_ids, written))
        seen.append((prompt, kept, torch.tensor([log_probs(step) for step in range(len(kept))])))
        return read_written(tokens, prompt, written, stop_ids, log_probs, lead)

    with monkeypatch.context() as patch:
        patch.setattr(transformers_engine, "read_written", spy)
        return seen, engine.generate(*args)


def first_tokens(engine, monkeypatch, prompt, n, sampling):
    """The first token drawn with each of `n` seeds."""
    rows = []
    with monkeypatch.context() as patch:
        patch.setattr(transformers_engine, "read_written", lambda *args: rows.append(args[2][0]))
        engine.generate([prompt] * n, range(n), sampling)
    return torch.tensor(rows)


def logits_after(model, rows):
    with torch.no_grad():
        return torch.stack([model.eval()(torch.tensor([row])).logits[0, -1] for row in rows])


# The log-probabilities


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12),
        Sampling(temperature=2.5, top_p=0.3, repetition_penalty=2.0, max_new_tokens=12),
        Sampling(temperature=0, max_new_tokens=12),
    ],
)
def test_recorded_log_probabilities_are_those_of_a_fresh_forward_before_temperature_top_p_and_penalty(
    engine, monkeypatch, sampling
):
    seen, _ = steps(engine, monkeypatch, PROMPTS, range(6), sampling)
    assert len({len(prompt) for prompt, _, _ in seen}) > 1  # padded
    for prompt, written, log_probs in seen:
        rows = [prompt + written[:i] for i in range(len(written))]
        if rows:
            expected = logits_after(engine.model, rows).log_softmax(-1)[:, list(TOKENS.ids)]
            torch.testing.assert_close(log_probs[: len(rows)], expected, rtol=0, atol=1e-5)


def test_the_log_probabilities_of_a_rationale_are_those_where_it_writes_its_label(trained, prompts, monkeypatch):
    seen, rationales = steps(trained, monkeypatch, prompts * 4, range(32), Sampling(max_new_tokens=60))
    finished = [
        (row, rationale) for row, rationale in zip(seen, (rationales[i] for i in order(prompts * 4)), strict=True)
    ]
    for (prompt, written, _), rationale in finished:
        assert rationale.num_tokens == len(written)
        position = TOKENS.find(prompt + written, [-100] * len(prompt) + written).position
        expected = logits_after(trained.model, [(prompt + written)[:position]]).log_softmax(-1)[0, list(TOKENS.ids)]
        torch.testing.assert_close(torch.tensor(rationale.log_probs), expected, rtol=0, atol=1e-5)
        assert TOKENIZER.decode(prompt + written).startswith(
            TOKENIZER.decode(prompt) + rationale.text + PREFIX + rationale.label
        )


def order(rows):
    """The engine's order of rows: longest first."""
    return sorted(range(len(rows)), key=lambda i: -len(rows[i]))


def test_scoring_given_rows_is_a_fresh_forward_whatever_the_padding(engine):
    expected = logits_after(engine.model, PROMPTS).log_softmax(-1)[:, list(TOKENS.ids)]
    for batch_size in (1, 4, 16):
        engine.batch_size = batch_size
        torch.testing.assert_close(torch.tensor(engine.score(PROMPTS)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "qwen3", "mistral", "gpt2", "phi_bias"])
def test_both_ways_to_score_agree_for_every_family(kind, monkeypatch):
    engine = TransformersEngine(make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id), TOKENS, CONFIG)
    seen, _ = steps(engine, monkeypatch, PROMPTS, range(6), Sampling(max_new_tokens=1))
    again = torch.tensor(engine.score([prompt for prompt, _, _ in seen]))
    torch.testing.assert_close(torch.stack([log_probs[0] for _, _, log_probs in seen]), again, rtol=0, atol=1e-5)


# Batches


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_row_is_the_same_alone_and_in_a_batch_of_others(trained, prompts, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=20)  # too few for some: those have no score
    together = trained.generate(prompts, range(8), sampling)
    for i in range(8):
        (alone,) = trained.generate([prompts[i]], [i], sampling)
        assert (alone.text, alone.label, alone.num_tokens) == (
            together[i].text,
            together[i].label,
            together[i].num_tokens,
        )
        assert (alone.log_probs is None) is (together[i].log_probs is None)
        if alone.log_probs is not None:
            assert alone.log_probs == pytest.approx(together[i].log_probs, abs=1e-5)
    if temperature == 0:  # each row's own rationale, the longest of all and the shortest
        assert together[5].label is None and together[6].label == "2"


def test_results_come_in_the_order_of_the_prompts_for_every_batch_size(engine):
    sampling = Sampling(max_new_tokens=8)
    texts = [rationale.text for rationale in engine.generate(PROMPTS, range(6), sampling)]
    for batch_size in (1, 4):
        engine.batch_size = batch_size
        assert [rationale.text for rationale in engine.generate(PROMPTS, range(6), sampling)] == texts
    assert [r.text for r in engine.generate(PROMPTS[::-1], range(5, -1, -1), sampling)] == texts[::-1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # positions that go on, and a table of them that ends
def test_a_long_prompt_takes_no_room_from_the_prompts_beside_it(kind):
    model = make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, max_position_embeddings=64)
    engine = TransformersEngine(model, TOKENS, CONFIG)
    text = TOKENIZER("1 2 3 4 5 " * 12)["input_ids"]
    lengths = [63, 8, 8, 24, 25, 60, 60, 63]
    prompts, sampling = [text[:length] for length in lengths], Sampling(temperature=0, max_new_tokens=40, **PLAIN)
    together = engine.generate(prompts, range(8), sampling)
    for i, rationale in enumerate(together):
        (alone,) = engine.generate([prompts[i]], [i], sampling)
        assert (rationale.text, rationale.num_tokens) == (alone.text, alone.num_tokens)
        assert rationale.num_tokens <= 64 - lengths[i]
    assert together[0].num_tokens == 1 < together[1].num_tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("max_new_tokens", [8, 60])
def test_prompts_near_the_limit_share_a_batch_and_each_stops_at_its_own(kind, max_new_tokens, caplog, monkeypatch):
    monkeypatch.setattr(transformers_engine.REMINDER, "handlers", [caplog.handler])
    logging.Logger.warning_once.cache_clear()
    model = make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, max_position_embeddings=64)
    engine = TransformersEngine(model, TOKENS, CONFIG)
    engine.stop_ids = [1]
    text = TOKENIZER("1 2 3 4 5 " * 12)["input_ids"]
    prompts = [text[: 63 - i] for i in range(32)]
    batches = []

    def never_ending(module, args, output):
        output.logits[..., 1] = -torch.inf

    model.register_forward_hook(never_ending)
    engine._left_padded = lambda rows, own=engine._left_padded: batches.append(len(rows)) or own(rows)
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    together = engine.generate(prompts, range(32), sampling)
    assert transformers_engine.REMINDER.name not in {record.name for record in caplog.records}
    assert batches == [16, 16, 16, 16]  # each batch is padded twice: without its last token, and with it
    assert [rationale.num_tokens for rationale in together] == [min(1 + i, max_new_tokens) for i in range(32)]
    assert all(rationale.truncated for rationale in together)
    alone = [engine.generate([prompt], [i], sampling)[0] for i, prompt in enumerate(prompts)]
    assert [rationale.text for rationale in alone] == [rationale.text for rationale in together]


def test_the_seed_and_nothing_else_decides_the_draw(engine):
    sampling = Sampling(max_new_tokens=12)
    torch.manual_seed(0)
    first = engine.generate(PROMPTS[:1] * 2, [1, 2], sampling)
    torch.manual_seed(1)
    assert engine.generate(PROMPTS[:1] * 2, [1, 2], sampling) == first
    assert first[0].text != first[1].text


# The distribution


def test_a_seeded_draw_follows_the_distribution():
    p = torch.tensor([0.0, 0.4, 0.05, 0.0, 0.3, 0.2, 0.05, 0.0])
    n = 20_000
    draw = SeededDraw(range(n), max_new_tokens=2, width=3)
    edge = SeededDraw([0], max_new_tokens=1, width=3)
    edge.uniforms.zero_()  # the smallest number that can be drawn is not for a token of probability 0
    assert edge(torch.zeros(1, 3), p.log()[None]).argmax().item() == 1
    counts = []
    for written in (0, 1):
        kept = draw(torch.zeros(n, 3 + written), p.log().repeat(n, 1))
        assert kept.isfinite().sum(-1).tolist() == [1] * n  # one token is left
        counts.append(kept.argmax(-1))
    for tokens in counts:
        observed = tokens.bincount(minlength=8)
        assert observed[p == 0].sum() == 0
        assert stats.chisquare(observed[p > 0], n * (p[p > 0] / p.sum())).pvalue > 1e-3
    # Neighbouring steps of a row are independent: 0.4 * 0.4 of the rows draw token 1 twice.
    both = ((counts[0] == 1) & (counts[1] == 1)).float().mean().item()
    assert both == pytest.approx(0.16, abs=4 * (0.16 * 0.84 / n) ** 0.5)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("flat", [0.0, 0.3, 3.0], ids=["flat", "even", "peaked"])
def test_the_nucleus_is_that_of_transformers_however_many_tokens_it_takes(top_p, flat):
    torch.manual_seed(0)
    scores = torch.randn(4, 3000) * flat + torch.arange(3000) * 1e-7  # no two alike
    draw = SeededDraw(range(4), 1, 3, temperature=0.7, top_p=top_p)
    warped = scores / 0.7 if top_p == 1 else TopPLogitsWarper(top_p)(None, scores / 0.7)
    tokens, cumulative = draw._nucleus(scores / 0.7)
    p = torch.zeros(4, 3000, dtype=torch.float64).scatter(
        1, tokens, cumulative.diff(prepend=torch.zeros(4, 1).double())
    )
    expected = warped.softmax(-1)
    same = (p > 0) == (expected > 0)
    assert (~same).sum() <= 4  # a token whose cumulative probability is top_p but for rounding
    torch.testing.assert_close((p / p.sum(-1, keepdim=True)).float(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=1, **PLAIN),
        Sampling(max_new_tokens=1, temperature=0.5, **PLAIN),
        Sampling(max_new_tokens=1, top_p=0.6, repetition_penalty=1.0),
        Sampling(max_new_tokens=1, top_p=0.9, repetition_penalty=1.7),
    ],
)
def test_first_tokens_follow_the_models_distribution_after_penalty_temperature_and_top_p(engine, monkeypatch, sampling):
    with torch.no_grad():
        engine.model.lm_head.weight *= 2  # a distribution of a few likely tokens
    engine.batch_size = 1000
    prompt, n = PROMPTS[0], 4000
    logits = logits_after(engine.model, [prompt])[0]
    seen = torch.tensor(sorted(set(prompt)))
    penalised = torch.where(
        logits[seen] > 0, logits[seen] / sampling.repetition_penalty, logits[seen] * sampling.repetition_penalty
    )
    p = (logits.scatter(0, seen, penalised) / sampling.temperature).softmax(-1)
    ranked = p.sort(descending=True)
    nucleus = ranked.indices[ranked.values.cumsum(0) - ranked.values < sampling.top_p]
    expected = torch.zeros_like(p).scatter(0, nucleus, p[nucleus] / p[nucleus].sum())
    observed = first_tokens(engine, monkeypatch, prompt, n, sampling).bincount(minlength=len(p))
    assert observed[expected == 0].sum() == 0
    frequent = expected * n >= 5
    assert frequent.sum() > 3
    pairs = [torch.cat([x[frequent], x[~frequent].sum()[None]]).double() for x in (observed.float(), expected * n)]
    kept = pairs[1] > 0
    assert stats.chisquare(pairs[0][kept], pairs[1][kept] * n / pairs[1].sum()).pvalue > 1e-3


def test_temperature_zero_takes_the_most_likely_token(engine, monkeypatch):
    seen, _ = steps(engine, monkeypatch, PROMPTS, range(6), Sampling(temperature=0, max_new_tokens=8, **PLAIN))
    for prompt, written, _ in seen:
        expected = []
        while len(expected) < 8:
            token = int(logits_after(engine.model, [prompt + expected])[0].argmax())
            if token == TOKENIZER.eos_token_id:
                break
            expected.append(token)
        assert written == expected


def test_the_models_own_generation_config_has_no_say(engine):
    sampling = Sampling(temperature=1.5, max_new_tokens=8, **PLAIN)
    free = engine.generate(PROMPTS, range(6), sampling)
    engine.model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=1,
        temperature=0.01,
        repetition_penalty=9.0,
        suppress_tokens=list(range(100, 380)),
        min_new_tokens=7,
        max_length=5,
        num_beams=2,
        eos_token_id=7,
    )
    assert engine.generate(PROMPTS, range(6), sampling) == free


@pytest.mark.parametrize("room", [5, 256])  # tokens: a buffer is made anew within the 12, or never
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_prompts_side_by_side_are_read_once_and_give_what_each_gives_alone(kind, room, monkeypatch):
    monkeypatch.setattr(cache, "ROOM", room)
    engine = TransformersEngine(make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id), TOKENS, CONFIG)
    repeats = [3, 1, 4, 1, 1, 2]  # not the same for each
    prompts = [prompt for prompt, times in zip(PROMPTS, repeats, strict=True) for _ in range(times)]
    sampling = Sampling(max_new_tokens=12)
    shapes = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    seen, _ = steps(engine, monkeypatch, prompts, range(12), sampling)
    width = max(map(len, PROMPTS))
    assert shapes[:2] == [(6, width - 1), (12, 1)]  # six different prompts are read, then every row goes on by a token
    order = sorted(range(12), key=lambda i: -len(prompts[i]))
    for i, (prompt, written, log_probs) in zip(order, seen, strict=True):
        ((_, alone, expected),), _ = steps(engine, monkeypatch, [prompts[i]], [i], sampling)
        assert prompt == prompts[i] and written == alone
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_rows_that_have_ended_leave_the_batch_and_change_nothing_for_the_others(kind, monkeypatch):
    engine = TransformersEngine(make_model(kind, len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id), TOKENS, CONFIG)
    engine.max_length = max(map(len, PROMPTS)) + 4  # the longest prompt gets 4 tokens, shorter ones more
    sampling = Sampling(max_new_tokens=24)
    rows = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    seen, _ = steps(engine, monkeypatch, PROMPTS, range(6), sampling)
    assert rows[1] == 6 and rows[-1] <= 3 and sorted(rows, reverse=True) == rows
    assert len({len(written) for _, written, _ in seen}) > 3
    order = sorted(range(6), key=lambda i: -len(PROMPTS[i]))
    for i, (prompt, written, log_probs) in zip(order, seen, strict=True):
        ((_, alone, expected),), _ = steps(engine, monkeypatch, [PROMPTS[i]], [i], sampling)
        assert prompt == PROMPTS[i] and written == alone
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)


RECURRENT = {
    "state": MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, state_size=8),
    "state_and_attention": Qwen3NextConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=4,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts_per_tok=1,
    ),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_model_with_a_recurrent_state_reads_each_prompt_and_gives_what_each_gives_alone(kind, monkeypatch):
    model = AutoModelForCausalLM.from_config(RECURRENT[kind], dtype=torch.float32)
    engine = TransformersEngine(model, TOKENS, CONFIG)
    sampling = Sampling(max_new_tokens=6)
    seen, _ = steps(engine, monkeypatch, [PROMPTS[0]] * 3, range(3), sampling)
    assert len({tuple(written) for _, written, _ in seen}) == 3
    for i, (_, written, log_probs) in enumerate(seen):
        ((_, alone, expected),), _ = steps(engine, monkeypatch, [PROMPTS[0]], [i], sampling)
        assert written == alone
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)


# Memory


LIMITED = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
import torch
from test_transformers import CONFIG, TOKENS, PROMPTS, TOKENIZER, make_model
from tract_trainer.engines.transformers import TransformersEngine
model = make_model(vocab_size=400_000, eos_token_id=TOKENIZER.eos_token_id)
engine = TransformersEngine(model, TOKENS, CONFIG, batch_size=512)
few = TransformersEngine(model, TOKENS, CONFIG, batch_size=4).score(PROMPTS)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, -1))
many = engine.score(PROMPTS * 100)
torch.testing.assert_close(torch.tensor(many), torch.tensor(few).repeat(100, 1))
print(engine.batch_size, engine.batch_tokens)
"""


@pytest.mark.slow
def test_a_batch_that_does_not_fit_into_memory_is_divided():
    """In a process that may not have more memory than it has plus 400 MB: 512 rows of logits need 800 MB a copy."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Out of memory with a batch of 512 rows; going on with 256." in done.stderr
    batch_size, tokens = map(float, done.stdout.split())
    assert batch_size == 512 and tokens < 300 * max(map(len, PROMPTS))


def sizes_of_batches(engine, monkeypatch, fits):
    """Rows of each batch that the engine tries, of which those fit into memory that `fits` (rows, tokens) says do."""
    tried, score = [], engine._score_batch

    def limited(rows):
        tried.append(len(rows))
        if not fits(len(rows), max(map(len, rows))):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(rows)

    monkeypatch.setattr(engine, "_score_batch", limited)
    return tried


def test_out_of_memory_with_long_rows_leaves_the_batches_of_short_rows(engine, monkeypatch):
    long, short = [PROMPTS[0] * 4] * 16, [PROMPTS[0]] * 32
    tried = sizes_of_batches(engine, monkeypatch, lambda rows, tokens: rows * tokens <= 10 * len(long[0]))
    expected = logits_after(engine.model, [long[0], short[0]]).log_softmax(-1)[:, list(TOKENS.ids)]
    found = torch.tensor(engine.score([*short, *long]))
    torch.testing.assert_close(found, expected[[1] * 32 + [0] * 16], rtol=0, atol=1e-5)
    assert tried == [16, 8, 8, 16, 16]
    assert engine.batch_size == 16


def test_a_batch_for_which_memory_ran_out_once_is_whole_again_later(engine, monkeypatch):
    tried = sizes_of_batches(engine, monkeypatch, lambda rows, tokens: len(tried) != 1)
    engine.score(PROMPTS[:1] * 2000)
    assert tried[:3] == [16, 8, 8] and tried[-2] == 16 and sum(tried) == 2000 + 16
    assert tried[1:-1] == sorted(tried[1:-1])


def test_a_row_that_does_not_fit_into_memory_by_itself_is_an_error(engine, monkeypatch):
    tried = sizes_of_batches(engine, monkeypatch, lambda rows, tokens: False)
    with pytest.raises(torch.OutOfMemoryError):
        engine.score(PROMPTS)
    assert tried == [6, 3, 1]


def test_an_error_that_is_no_lack_of_memory_is_raised(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "forward", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.score(PROMPTS)
    assert engine.batch_size == 16


# Stopping and leaving no trace


@pytest.mark.parametrize(
    ("family", "prefix", "labels"),
    [
        *((family, PREFIX, [f"<s{number}>" for number in range(1, 6)]) for family in FAMILIES),
        ("qwen", "<score>", "12345"),
    ],
)
def test_a_rationale_ends_before_the_closing_phrase_also_where_its_tokens_are_special(family, prefix, labels):
    tokenizer = make_tokenizer(family)
    tokenizer.add_special_tokens({"additional_special_tokens": [*(label for label in labels if label[1:]), "<score>"]})
    tokens = ScoreTokens.resolve(ScoreScale(labels, [1, 2, 3, 4, 5]), prefix, tokenizer)
    prompt = tokenizer("Rate it.\n")["input_ids"]
    row = tokenizer(f"Rate it.\nWeak. {prefix}{labels[3]}")["input_ids"]
    found = read_written(tokens, prompt, row[len(prompt) :], [], lambda place: [-1.0] * 5)
    assert (found.text.strip(), found.label) == ("Weak.", labels[3])


def test_a_rationale_ends_before_the_first_stop_token(engine, monkeypatch):
    seen, _ = steps(engine, monkeypatch, PROMPTS, range(6), Sampling(max_new_tokens=6, **PLAIN))
    stop = seen[0][1][2]
    engine.stop_ids = [TOKENIZER.eos_token_id, stop]
    stopped, _ = steps(engine, monkeypatch, PROMPTS, range(6), Sampling(max_new_tokens=6, **PLAIN))
    for (_, whole, _), (_, written, _) in zip(seen, stopped, strict=True):
        assert written == (whole[: whole.index(stop)] if stop in whole else whole)
    assert len(stopped[0][1]) <= 2


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_found(engine, training):
    model = engine.model
    model.train(training)
    own = model.generation_config
    before = copy.deepcopy(own.to_dict())
    engine.generate(PROMPTS, range(6), Sampling(max_new_tokens=2))
    engine.score(PROMPTS)
    assert model.training is training and not model._forward_pre_hooks
    assert model.generation_config is own and own.to_dict() == before
    assert not any(p.is_inference() for p in model.parameters())


def test_the_model_is_left_as_it_was_found_also_after_an_error(engine, monkeypatch):
    model = engine.model.train()
    own = model.generation_config
    monkeypatch.setattr(model, "forward", None)
    for ask in (lambda: engine.generate(PROMPTS, range(6), Sampling(max_new_tokens=2)), lambda: engine.score(PROMPTS)):
        with pytest.raises(TypeError):
            ask()
        assert model.training and model.generation_config is own


def test_an_adapter_in_memory_is_used_and_left_as_it_was_found():
    base = make_model(vocab_size=len(TOKENIZER))
    own = base.generation_config
    bare = TransformersEngine(base, TOKENS, CONFIG).score(PROMPTS)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    engine = TransformersEngine(model, TOKENS, CONFIG)
    scored = engine.score(PROMPTS)
    assert scored[0] != pytest.approx(bare[0], abs=1e-3)
    engine.generate(PROMPTS, range(6), Sampling(max_new_tokens=2))
    assert base.generation_config is own
    assert engine.score(PROMPTS) == scored


# Loading

Q_AND_V = ["q_proj", "v_proj"]
ADAPTERS = {
    "lora": LoraConfig(target_modules=Q_AND_V, r=4),
    "dora": LoraConfig(target_modules=Q_AND_V, r=4, use_dora=True),
    "saved_head": LoraConfig(target_modules=Q_AND_V, r=4, modules_to_save=["lm_head", "embed_tokens"]),
    "adalora": AdaLoraConfig(target_modules=Q_AND_V, init_r=4, target_r=2, total_step=10),
    "ia3": IA3Config(target_modules=Q_AND_V, feedforward_modules=[]),
    "oft": OFTConfig(target_modules=["q_proj"], r=0, oft_block_size=4),
    "vera": VeraConfig(target_modules=["q_proj"], r=4),
    "vblora": VBLoRAConfig(target_modules=["q_proj"], r=2, num_vectors=8, vector_length=8, topk=2),
}


def save_adapter(folder, config):
    """An adapter that has been trained, as far as its weights tell, on a base model of its own."""
    make_model(vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id).save_pretrained(folder / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), copy.deepcopy(config))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_of_any_kind_scores_as_it_did_in_memory(kind, tmp_path):
    model = save_adapter(tmp_path, ADAPTERS[kind])
    trained = TransformersEngine(model, TOKENS, CONFIG)
    loaded = TransformersEngine.from_pretrained(tmp_path / "adapter", TOKENS, CONFIG)
    bare = TransformersEngine.from_pretrained(tmp_path / "base", TOKENS, CONFIG)
    assert trained.score(PROMPTS)[0] != pytest.approx(bare.score(PROMPTS)[0], abs=1e-3)
    torch.testing.assert_close(torch.tensor(loaded.score(PROMPTS)), torch.tensor(trained.score(PROMPTS)))
    sampling = Sampling(max_new_tokens=6)
    assert loaded.generate(PROMPTS, range(6), sampling) == trained.generate(PROMPTS, range(6), sampling)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_an_adapters_base_is_found_by_a_relative_path_and_loaded_with_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter(Path("."), ADAPTERS["lora"])
    settings = {"dtype": "bfloat16", "attn_implementation": "eager", "device_map": "cpu"}
    loaded = TransformersEngine.from_pretrained("adapter", TOKENS, CONFIG, **settings)
    assert loaded.model.get_base_model().dtype == torch.bfloat16
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("overrides", "found"), [({"num_hidden_layers": 3}, "missing"), ({"head_dim": 4}, "size")])
def test_an_adapter_on_another_base_is_refused(tmp_path, overrides, found):
    save_adapter(tmp_path, ADAPTERS["lora"])
    make_model(vocab_size=len(TOKENIZER), **overrides).save_pretrained(tmp_path / "base")
    text = (
        rf"^The adapter in {tmp_path / 'adapter'} does not fit '{tmp_path / 'base'}', which its adapter_config\.json "
        rf"names as its base model: (?s:.*){found}(?s:.*) Put the model there that the adapter was trained on\.$"
    )
    with pytest.raises(InputError, match=text):
        TransformersEngine.from_pretrained(tmp_path / "adapter", TOKENS, CONFIG)


def test_a_model_whose_logits_are_no_numbers_is_refused(engine):
    with torch.no_grad():
        engine.model.model.norm.weight.fill_(torch.nan)
    calls = [lambda: engine.score(PROMPTS)]
    calls += [lambda t=t: engine.generate(PROMPTS, range(6), Sampling(temperature=t, max_new_tokens=2)) for t in (0, 1)]
    for call in calls:
        with pytest.raises(InputError, match=r"^The model's logits are not finite \(NaN or infinite\), so there is "):
            call()


def test_a_token_that_cannot_be_written_does_no_harm(engine):
    def masked(module, args, output):
        output.logits[..., 10:20] = -torch.inf

    engine.model.register_forward_hook(masked)
    assert torch.tensor(engine.score(PROMPTS)).isfinite().any()
    engine.generate(PROMPTS, range(6), Sampling(max_new_tokens=2))


class AppleTensor(torch.Tensor):
    """A tensor that says it is on Apple's GPU, where there is no float64."""

    device = property(lambda self: torch.device("mps"))

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_the_draw_needs_no_float64_where_there_is_none(top_p):
    torch.manual_seed(0)
    scores, width = torch.randn(4, 3000), torch.zeros(4, 3)
    drawn = SeededDraw(range(4), 1, 3, top_p=top_p)(width, scores.as_subclass(AppleTensor))
    expected = SeededDraw(range(4), 1, 3, top_p=top_p)(width, scores)
    assert torch.equal(drawn.as_subclass(torch.Tensor), expected)


# Settings


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": 1e-300},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
        {"max_new_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^{name}={value} is out of range\.$"):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, "temperature must be a number, found 'hot'."),
        ({"top_p": None}, "top_p must be a number, found None."),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, found 2.5."),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, found True."),
    ],
)
def test_settings_of_another_type_are_refused(settings, message):
    with pytest.raises(InputError) as raised:
        Sampling(**settings)
    assert str(raised.value) == message


def test_the_least_temperature_takes_the_most_likely_token(engine):
    coldest, greedy = (Sampling(temperature=t, max_new_tokens=8, **PLAIN) for t in (1e-3, 0))
    assert engine.generate(PROMPTS, range(6), coldest) == engine.generate(PROMPTS, range(6), greedy)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0\.$"):
        TransformersEngine(make_model(vocab_size=len(TOKENIZER)), TOKENS, CONFIG, batch_size=0)


def test_the_identity_names_the_weights(engine):
    same = TransformersEngine(make_model(vocab_size=len(TOKENIZER)), TOKENS, CONFIG)
    other = TransformersEngine(make_model(vocab_size=len(TOKENIZER), seed=1), TOKENS, CONFIG)
    assert engine.identity == same.identity != other.identity
    assert engine.identity.startswith("llama-")


def test_the_identity_changes_with_any_parameter_wherever_it_changes(engine):
    found = {engine.identity}
    for parameter in engine.model.parameters():
        for part in parameter.detach().flatten().chunk(8):
            part += 0.1
            found.add(engine.identity)
            part -= 0.1
    assert len(found) == 1 + 8 * len(list(engine.model.parameters()))
