"""Labels of several tokens are scored exactly by every engine, however the score is read."""

import math

import pytest
import torch
from datasets import Dataset
from naive import label_log_probs, label_paths
from test_server import connect, serving
from tiny import PREFIX, RATIONALES, make_model, make_rows, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM, MambaConfig

from tract_trainer import Judge, JudgeConfig
from tract_trainer.engines.attention import appends_tokens
from tract_trainer.engines.transformers import TransformersEngine
from tract_trainer.scale import ScoreScale, ScoreTokens

SCALES = {
    "1-10": ScoreScale.integers(1, 10),
    "1-5 by .5": ScoreScale.steps(1, 5, 0.5),
    "words": ScoreScale(["disagree", "strongly disagree", "agree", "agree strongly"], [1, 0, 2, 3]),
}
PROMPTS = [row["prompt"] + "Clear. " * i + PREFIX for i, row in enumerate(make_rows(6))]


def config_of(scale, **kwargs):
    return JudgeConfig(list(scale.labels), list(scale.values), PREFIX, **{"conversational": False, **kwargs})


KINDS = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"_attn_implementation": "eager", "sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "granite": {},
    "gpt2": {},
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("kind", [*KINDS, "mamba"])
def test_scores_of_rows_are_those_of_one_forward_for_each_place_where_a_label_goes_on(kind, name):
    tokenizer, scale = make_tokenizer(), SCALES[name]
    tokens = ScoreTokens.resolve(scale, PREFIX, tokenizer)
    if kind == "mamba":
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
        model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=len(tokenizer), **sizes))
    else:
        model = make_model(kind, len(tokenizer), **KINDS[kind])
    assert appends_tokens(model) == (kind != "mamba") and tokens.depth
    rows = [tokenizer(text + scale.labels[0])["input_ids"] for text in PROMPTS]
    rows = [row[: tokens.find(row).position] for row in rows]
    paths = label_paths(tokenizer, scale.labels)
    with torch.no_grad():
        expected = torch.stack([label_log_probs(model.eval(), row, paths) for row in rows])
    for batch_size in (1, 4, 16):
        engine = TransformersEngine(model, tokens, config_of(scale), batch_size)
        torch.testing.assert_close(torch.tensor(engine.score(rows)), expected, rtol=0, atol=1e-4)


# A judge that writes its scores


RECORDS = [{"prompt": row["prompt"]} for row in make_rows(8, conversational=True)]
LABELS = ["10", "1", "7", "10", "2", "1", "10", "9"]


def ten_rows():
    rows = make_rows(8, conversational=True)
    for row, label, rationale in zip(rows, LABELS, RATIONALES, strict=True):
        row["completion"] = [{"role": "assistant", "content": f"{rationale} {PREFIX}{label}"}]
        row["score"] = float(label)
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten")
    scale = {"score_labels": [*map(str, range(1, 11))]}
    trainer = train_judge(folder, dataset=Dataset.from_list(ten_rows() * 3), **scale)
    trainer.save_model()
    return folder


@pytest.fixture(scope="module")
def judge(trained):
    return Judge.from_pretrained(trained)


GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 60}


def same(found, expected, judge):
    """As log-probabilities; but a server tells only of a few tokens, so a label may be 1 minus nearly 1."""
    if isinstance(judge.engine, TransformersEngine):
        return found == pytest.approx(expected, abs=1e-3)
    return list(map(math.exp, found)) == pytest.approx(list(map(math.exp, expected)), abs=1e-5)


def expected_log_probs(judge, record, rationale):
    """By one forward for each place, behind the rationale and the prefix."""
    model, tokens = judge.engine.model.eval(), judge.engine.tokens
    row = judge.rows.scored_ids(record, rationale)
    with torch.no_grad():
        return label_log_probs(model, row, label_paths(tokens.tokenizer, tokens.scale.labels)).tolist()


@pytest.fixture(params=["transformers", "server"])
def other(request, trained, judge):
    if request.param == "transformers":
        yield judge
        return
    with serving(judge) as server:
        yield connect(trained, server)


def test_what_a_judge_writes_is_scored_where_it_writes_it(judge, other):
    judgments = other.score(RECORDS, 2, **GREEDY)
    assert [judgment.label for judgment in judgments] == LABELS
    for record, judgment, rationale in zip(RECORDS, judgments, RATIONALES, strict=True):
        assert judgment.rationale.strip() == rationale
        for found in judgment.rationales:
            assert same(found.log_probs, expected_log_probs(judge, record, found.text), other)
        assert judgment.mass == pytest.approx(1, abs=0.05) and not judgment.reason
        assert judgment.score == pytest.approx(float(judgment.label), abs=0.5)


def test_scores_that_are_forced_rescored_or_without_rationale_are_read_so_too(judge, other):
    short = other.score(RECORDS, unfinished="force", **{**GREEDY, "max_new_tokens": 3})
    given = other.rescore(RECORDS, [f"Clear {i}." for i in range(8)])
    bare = other.score(RECORDS, 0)
    for judgments in (short, given, bare):
        for record, judgment in zip(RECORDS, judgments, strict=True):
            (found,) = judgment.rationales
            assert same(found.log_probs, expected_log_probs(judge, record, found.text), other)
    assert all(judgment.rationales[0].forced for judgment in short)


def test_a_server_is_asked_only_for_what_can_matter(trained, judge):
    with serving(judge) as server:
        asked_judge = connect(trained, server)
        before = len(server.asked)
        asked_judge.rescore(RECORDS[:1], ["Clear."])
        row = judge.rows.scored_ids(RECORDS[0], "Clear.")
        (one,) = judge.engine.tokens.nodes[1]
        assert [asked["prompt"] for asked in server.asked[before:]] == [row, [*row, one]]


def test_a_reward_is_the_expected_score(judge):
    reward = judge.as_reward_func(rubric="Is it right?", max_new_tokens=3)
    found = reward(prompts=["Name a prime."], completions=["7"])
    assert 0 < found[0] <= 10
