"""The expected score and each score loss, against arithmetic done by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from tract_trainer import RegressionAwareSFTConfig
from tract_trainer.errors import InputError
from tract_trainer.losses import (
    SCORE_LOSSES,
    absolute_error,
    crps,
    expected_score,
    huber,
    renormalize,
    score_loss,
    score_mass,
    soft_ce,
    squared_error,
    wasserstein,
)

# Half of the probability is on the scale 1, 2, 4; the rest is elsewhere.
P = torch.tensor([[0.1, 0.1, 0.3]])
V = torch.tensor([1.0, 2.0, 4.0])
SCALES = {
    "integers": [1.0, 2.0, 3.0, 4.0, 5.0],
    "uneven": [0.0, 1.0, 10.0],
    "unsorted": [3.0, 1.0, 2.0, 5.0],
    "descending": [1.0, 0.5, 0.0],
}


def random_rows(values, n=6, on_scale=0.8, seed=0):
    """Log-probabilities `(n, K)` that add up to `on_scale`, and gold scores: half on the scale, half between."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(n, len(values), generator=generator).mul(2).log_softmax(-1) + math.log(on_scale)
    between = torch.rand(n, generator=generator) * (max(values) - min(values)) + min(values)
    gold = torch.tensor([values[i % len(values)] if i % 2 else float(between[i]) for i in range(n)])
    return log_probs, torch.tensor(values), gold


# The expected score


def test_the_expected_score_weighs_each_value_with_its_probability():
    # 1 * .1 + 2 * .1 + 4 * .3 = 1.5
    assert expected_score(P.log(), V).tolist() == pytest.approx([1.5])


def test_renormalised_it_is_divided_by_the_probability_on_the_scale():
    # 1.5 / .5 = 3
    assert expected_score(P.log(), V, renormalize_scores=True).tolist() == pytest.approx([3.0])
    assert renormalize(P.log()).exp().tolist() == [pytest.approx([0.2, 0.2, 0.6])]
    assert score_mass(P.log()).tolist() == pytest.approx([0.5])


def test_it_is_a_float32_number_also_for_bfloat16_log_probabilities():
    log_probs = P.log().bfloat16()
    exact = log_probs.double().exp() @ V.double()
    for values in (V, V.double(), V.bfloat16()):
        score = expected_score(log_probs, values)
        assert score.dtype == torch.float32
        assert score.tolist() == pytest.approx(exact.tolist(), rel=1e-6)


# Each loss by hand. yhat = 1.5


@pytest.mark.parametrize(
    ("loss", "gold", "expected"),
    [
        (squared_error, 4.0, 6.25),  # (1.5 - 4)^2
        (squared_error, 1.25, 0.0625),
        (absolute_error, 4.0, 2.5),
        (absolute_error, 1.25, 0.25),
        (huber, 4.0, 2.0),  # 2.5 - 1/2
        (huber, 2.0, 0.125),  # .5^2 / 2
        (wasserstein, 4.0, 0.5),  # .1 * 3 + .1 * 2 + .3 * 0
        (wasserstein, 2.5, 0.65),  # .1 * 1.5 + .1 * .5 + .3 * 1.5
        # F is .1 on [1, 2) and .2 on [2, 4); gaps 1 and 2.
        (crps, 4.0, 0.09),  # all below y: .1^2 * 1 + .2^2 * 2
        (crps, 1.0, 2.09),  # all above y: (1 - .1)^2 * 1 + (1 - .2)^2 * 2
        (crps, 2.0, 1.29),  # .1^2 * 1 + .8^2 * 2
        (crps, 2.5, 0.99),  # .1^2 * 1 + .2^2 * .5 + .8^2 * 1.5
        (soft_ce, 4.0, -math.log(0.3)),
        (soft_ce, 1.0, -math.log(0.1)),
        (soft_ce, 3.5, -0.25 * math.log(0.1) - 0.75 * math.log(0.3)),  # 3.5 = .25 * 2 + .75 * 4
    ],
)
def test_each_loss_is_its_formula(loss, gold, expected):
    assert loss(P.log(), V, torch.tensor([gold])).tolist() == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("name", SCORE_LOSSES)
@pytest.mark.parametrize("unit", [10.0, 0.25, -1.0])
def test_the_loss_of_a_judge_does_not_depend_on_the_units_of_its_scale(name, unit):
    log_probs, values, gold = random_rows(SCALES["integers"])
    published = SCORE_LOSSES[name](log_probs, values, gold)
    torch.testing.assert_close(score_loss(log_probs, values, gold, name, False), published, rtol=0, atol=0)
    if unit > 0 or name != "crps":  # whose probability off the scale stands above its top
        torch.testing.assert_close(score_loss(log_probs, values * unit, gold * unit, name, False), published)


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_renormalised_a_loss_is_that_of_the_distribution_over_the_scale_alone(name):
    inside = torch.tensor([[0.2, 0.2, 0.6]])
    gold = torch.tensor([2.5])
    expected = SCORE_LOSSES[name](inside.log(), V * 4 / 3, gold * 4 / 3).tolist()
    assert score_loss(P.log(), V, gold, name, renormalize_scores=True).tolist() == pytest.approx(expected, abs=1e-6)
    assert score_loss(P.log(), V, gold, name, renormalize_scores=False).tolist() != pytest.approx(expected, abs=1e-3)


# Identities


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_permuting_the_labels_changes_nothing(name, scale):
    log_probs, values, gold = random_rows(SCALES[scale])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    loss = SCORE_LOSSES[name]
    torch.testing.assert_close(loss(log_probs[:, order], values[order], gold), loss(log_probs, values, gold))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_permuting_the_rows_permutes_the_losses(name, scale):
    log_probs, values, gold = random_rows(SCALES[scale])
    loss = SCORE_LOSSES[name]
    torch.testing.assert_close(loss(log_probs.flip(0), values, gold.flip(0)), loss(log_probs, values, gold).flip(0))


@pytest.mark.parametrize("scale", SCALES)
def test_the_wasserstein_distance_of_a_certain_answer_is_its_error(scale):
    values = torch.tensor(SCALES[scale])
    certain = torch.eye(len(values)).log()  # (K, K), -inf off the diagonal
    for gold in (values.min(), values.max(), values.mean()):
        assert wasserstein(certain, values, gold.repeat(len(values))).tolist() == pytest.approx(
            (values - gold).abs().tolist()
        )


@pytest.mark.parametrize("scale", SCALES)
def test_the_crps_of_a_gold_score_on_the_scale_is_the_plain_sum(scale):
    log_probs, values, _ = random_rows(SCALES[scale])
    by_value = sorted(range(len(values)), key=lambda k: values[k])
    for gold in SCALES[scale]:
        expected = []
        for row in log_probs.exp().tolist():
            total, below = 0.0, 0.0
            for k, following in itertools.pairwise(by_value):
                below += row[k]
                total += (below - (values[k] >= gold).item()) ** 2 * (values[following] - values[k]).item()
            expected.append(total)
        found = crps(log_probs, values, torch.full((len(log_probs),), gold))
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_the_crps_of_a_fraction_is_the_integral_over_the_scale(scale):
    log_probs, values, gold = random_rows(SCALES[scale], seed=3)
    low, high, steps = min(SCALES[scale]), max(SCALES[scale]), 400_000
    middle = low + (np.arange(steps) + 0.5) * (high - low) / steps
    for row, y, found in zip(log_probs.exp().numpy(), gold.tolist(), crps(log_probs, values, gold), strict=True):
        cdf = sum(p * (middle >= v) for p, v in zip(row, SCALES[scale], strict=True))
        integral = np.mean((cdf - (middle >= y)) ** 2) * (high - low)
        assert found.item() == pytest.approx(integral, abs=2e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_the_soft_cross_entropy_of_a_gold_score_on_the_scale_is_the_plain_one(scale):
    log_probs, values, _ = random_rows(SCALES[scale], n=len(SCALES[scale]))
    torch.testing.assert_close(soft_ce(log_probs, values, values), -log_probs.diagonal())


@pytest.mark.parametrize("scale", SCALES)
def test_the_soft_cross_entropy_is_least_where_the_expected_score_is_the_gold_one(scale):
    # Its two-hot target is a distribution with mean y: at the target itself the loss is the target's entropy.
    values = torch.tensor(SCALES[scale])
    by_value = values.sort().values
    gold = by_value[:-1] + 0.3 * by_value.diff()  # in each gap
    target = torch.stack([(values == a) * 0.7 + (values == b) * 0.3 for a, b in itertools.pairwise(by_value)])
    torch.testing.assert_close(target @ values, gold)
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert soft_ce(target.log(), values, gold).tolist() == pytest.approx([entropy] * len(gold), abs=1e-5)


# Edges


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_certain_answers_give_finite_losses_and_gradients(name):
    # Probabilities of 1 - 4e-18 and 4e-18 on either side.
    log_probs = torch.tensor([[0.0, -40.0, -40.0], [-40.0, -40.0, 0.0], [-90.0, -90.0, -90.0]], requires_grad=True)
    for gold in (1.0, 1.5, 4.0):
        losses = score_loss(log_probs, V, torch.full((3,), gold), name, False)
        assert losses.isfinite().all()
        (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
        assert gradient.isfinite().all()


def test_a_label_without_weight_costs_nothing_even_at_probability_zero():
    log_probs = torch.tensor([[0.0, -math.inf, -math.inf]], requires_grad=True)
    loss = soft_ce(log_probs, V, torch.tensor([1.0]))
    assert loss.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert gradient.tolist() == [[-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", SCORE_LOSSES)
@pytest.mark.parametrize("renormalize_scores", [False, True])
def test_without_a_score_the_loss_is_empty_and_still_connected_to_the_graph(name, renormalize_scores):
    weight = torch.ones(5, 3, requires_grad=True)
    log_probs = (torch.ones(0, 5) @ weight).log_softmax(-1)  # (0, 3)
    losses = score_loss(log_probs, V, torch.ones(0), name, renormalize_scores)
    assert losses.shape == (0,)
    assert losses.requires_grad
    losses.sum().backward()
    assert weight.grad.tolist() == [[0.0] * 3] * 5


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_bfloat16_log_probabilities_are_used_in_float32(name):
    log_probs, values, gold = random_rows(SCALES["integers"])
    rounded = log_probs.bfloat16()
    found = score_loss(rounded, values.double(), gold.double(), name, False)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, SCORE_LOSSES[name](rounded.float(), values, gold), rtol=0, atol=0)


# Gradients


@pytest.mark.parametrize("renormalize_scores", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_the_gradient_is_the_slope(name, scale, renormalize_scores):
    # Central differences of logits over a vocabulary of K + 2, in float32: an error of 1e-3 of the largest slope.
    values = torch.tensor(SCALES[scale])
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, len(values) + 2, generator=generator, requires_grad=True)
    _, _, gold = random_rows(SCALES[scale], n=4, seed=7)

    def total(x):
        log_probs = x.log_softmax(-1)[:, 2:]
        return score_loss(log_probs, values, gold, name, renormalize_scores).double().sum()

    (gradient,) = torch.autograd.grad(total(logits), logits)
    step = 1e-2
    with torch.no_grad():
        for i in range(logits.numel()):
            nudge = torch.zeros(logits.numel())
            nudge[i] = step
            nudge = nudge.view_as(logits)
            slope = (total(logits + nudge) - total(logits - nudge)) / (2 * step)
            assert gradient.flatten()[i].item() == pytest.approx(
                slope.item(), abs=1e-3 * max(1.0, gradient.abs().max().item())
            )


def test_the_gradient_of_the_squared_error_is_the_papers():
    # d/dz_t (yhat - y)^2 = 2 (yhat - y) p_t (v_t - yhat) on the scale, 2 (yhat - y) p_t (0 - yhat) off it.
    logits = torch.tensor([[0.5, -1.0, 0.3, 0.0]], requires_grad=True)
    p = logits.detach().softmax(-1)[0]
    yhat = (p[1:] @ V).item()
    squared_error(logits.log_softmax(-1)[:, 1:], V, torch.tensor([3.5])).sum().backward()
    expected = [2 * (yhat - 3.5) * p[t].item() * (v - yhat) for t, v in enumerate([0.0, 1.0, 2.0, 4.0])]
    assert logits.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_loss_type": "wasserstein"}, "pushes probability off the scale.*Set renormalize_scores=True"),
        ({"score_loss_type": "mse"}, "score_loss_type='mse' is not one of .*'squared_error'"),
        ({"score_loss_weight": 0.0, "ce_loss_weight": 0.0}, "both 0, so there is nothing to train on"),
        ({"score_loss_weight": float("nan")}, "score_loss_weight must be a finite number of at least 0, got nan"),
    ],
)
def test_settings_that_train_towards_nothing_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        RegressionAwareSFTConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)
