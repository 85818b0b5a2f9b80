"""The log-probabilities of labels of several tokens, against arithmetic done by hand."""

import pytest
import torch
from tiny import PREFIX, make_tokenizer

from tract_trainer.engines.trie import LabelTrie
from tract_trainer.losses import expected_score
from tract_trainer.scale import ScoreScale, ScoreTokens

TEN = ScoreTokens.resolve(ScoreScale.integers(1, 10), PREFIX, make_tokenizer("qwen"))
HALVES = ScoreTokens.resolve(ScoreScale.steps(1, 5, 0.5), PREFIX, make_tokenizer("qwen"))
HUNDRED = ScoreTokens.resolve(ScoreScale.integers(0, 100), PREFIX, make_tokenizer("qwen"))


def token(text):
    (found,) = TEN.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def certain(tokens, **of_nodes):
    """Log-probabilities at the inner nodes, `(1, J, V)`: of each node, the next tokens by their text."""
    probs = torch.full((1, len(tokens.nodes), len(tokens.tokenizer)), 1e-30)
    for node, following in of_nodes.items():
        place = tokens.nodes.index(tuple(map(token, node.strip("_"))))
        for text, prob in following.items():
            probs[0, place, token(text)] = prob
    return probs.log()


def test_one_to_ten_has_two_inner_nodes_and_a_hundred_eleven():
    assert TEN.nodes == ((), (token("1"),))
    assert len(HUNDRED.nodes) == 11 and len(HALVES.nodes) == 9


def test_one_is_what_begins_with_1_and_does_not_go_on_to_ten():
    # "1" has 0.4, and goes on with "0" with 0.25: 10 has 0.4 * 0.25 = 0.1, and 1 has 0.4 * 0.75 = 0.3.
    log_probs = certain(TEN, _={"1": 0.4, "7": 0.5, "a": 0.1}, _1={"0": 0.25, ".": 0.5, "1": 0.25})
    probs = LabelTrie(TEN).label_log_probs(log_probs).exp()[0].tolist()
    assert probs == pytest.approx([0.3, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.1], abs=1e-6)
    # 1 * 0.3 + 7 * 0.5 + 10 * 0.1
    assert float(expected_score(torch.tensor([probs]).log(), torch.tensor(TEN.scale.values))) == pytest.approx(4.8)


def test_a_label_that_goes_on_twice_stops_at_each_place():
    # "1" 0.5, then "." 0.4, then "5" 0.9: 1.5 has 0.5 * 0.4 * 0.9 = 0.18. The rest of 0.5 is 1, with or without a "."
    nodes = {"_": {"1": 0.5, "5": 0.5}, "_1": {".": 0.4, "0": 0.6}, "_1.": {"5": 0.9, "a": 0.1}}
    probs = LabelTrie(HALVES).label_log_probs(certain(HALVES, **nodes)).exp()[0].tolist()
    assert probs == pytest.approx([0.32, 0.18, 0, 0, 0, 0, 0, 0, 0.5], abs=1e-6)


@pytest.mark.parametrize("tokens", [TEN, HALVES, HUNDRED], ids=["1-10", "1-5 by .5", "0-100"])
def test_the_probabilities_of_all_labels_add_up_to_that_of_their_first_tokens(tokens):
    torch.manual_seed(0)
    log_probs = torch.randn(3, len(tokens.nodes), 500).mul(3).log_softmax(-1)
    mass = LabelTrie(tokens).label_log_probs(log_probs).exp().sum(-1)
    firsts = sorted({path[0] for path in tokens.paths})
    assert mass.tolist() == pytest.approx(log_probs[:, 0, firsts].exp().sum(-1).tolist(), rel=1e-5)


def test_what_begins_a_label_and_ends_as_none_is_off_the_scale():
    tokens = ScoreTokens.resolve(ScoreScale(["10", "20"]), PREFIX, make_tokenizer("qwen"))
    nodes = {"_": {"1": 0.5, "2": 0.5}, "_1": {"0": 0.6, "1": 0.4}, "_2": {"0": 1.0}}
    assert LabelTrie(tokens).label_log_probs(certain(tokens, **nodes)).exp()[0].tolist() == pytest.approx([0.3, 0.5])


def test_a_label_that_nearly_always_goes_on_keeps_its_small_probability():
    # 1 - q is 0 in float32 where q = 1 - 1e-9.
    log_probs = certain(TEN, _={"1": 1.0}, _1={"0": 1.0, ".": 1e-9})
    assert float(LabelTrie(TEN).label_log_probs(log_probs)[0, 0].exp()) == pytest.approx(1e-9, rel=1e-5)


@pytest.mark.parametrize("tokens", [TEN, HALVES, HUNDRED], ids=["1-10", "1-5 by .5", "0-100"])
def test_the_gradient_of_the_expected_score_is_its_closed_form(tokens):
    """dE / dz(n, k) = P(n) p(k | n) (U(n, k) - V(n)), with U the value of what follows and V(n) its mean."""
    torch.manual_seed(1)
    size, value = 500, dict(zip(tokens.paths, tokens.scale.values, strict=True))
    logits = torch.randn(1, len(tokens.nodes), size, dtype=torch.float64, requires_grad=True)
    log_probs = LabelTrie(tokens).label_log_probs(logits.log_softmax(-1))
    (log_probs.exp() @ torch.tensor(tokens.scale.values, dtype=torch.float64)).sum().backward()
    probs = dict(zip(tokens.nodes, logits.detach().softmax(-1)[0], strict=True))

    def following(node):
        labels = [node[:length] for length in range(len(node), 0, -1) if node[:length] in value]
        found = torch.full((size,), value[labels[0]] if labels else 0.0, dtype=torch.float64)
        for child in tokens.children(node):
            longer = (*node, child)
            found[child] = mean(longer) if longer in probs else value[longer]
        return found

    def mean(node):
        return float(probs[node] @ following(node))

    for place, node in enumerate(tokens.nodes):
        reach = torch.tensor([float(probs[node[:i]][node[i]]) for i in range(len(node))], dtype=torch.float64).prod()
        assert torch.allclose(logits.grad[0, place], reach * probs[node] * (following(node) - mean(node)), atol=1e-12)
