"""Estimates of the sizes of normal means: their bias, and what they leave alone."""

import numpy as np
import pytest

from tract_trainer.evaluation.calibration import FEW, MANY, unfolded


def biases(terms, means):
    """Mean estimates less the sizes of the means, by the rule of rectangles over the normal distribution."""
    noise = np.arange(-8, 8, 0.001)
    density = np.exp(-(noise**2) / 2) / np.sqrt(2 * np.pi) * 0.001
    return [density @ unfolded((mean + noise)[:, None], np.ones(1), terms)[:, 0] - abs(mean) for mean in means]


def test_the_estimates_are_less_biased_than_the_sizes_of_the_draws():
    # E |N(0, 1)| = .80, and E |N(m, 1)| - m = .40, .17, .06, .02 at m = .5, 1, 1.5, 2.
    means = [0, 0.5, 1, 1.5, 2]
    assert biases(MANY, means) == pytest.approx([0.42, 0.055, -0.08, -0.075, -0.025], abs=0.01)
    assert biases(FEW, means) == pytest.approx([0.50, 0.12, -0.05, -0.08, -0.045], abs=0.01)
    assert np.abs(biases(MANY, [3, 4, 5, 6])).max() < 0.03


@pytest.mark.parametrize("terms", [MANY, FEW])
def test_the_sign_does_not_matter_and_the_unit_is_the_standard_error(terms):
    draws = np.array([0.3, -1.2, 2.5])
    one = unfolded(draws, np.ones(3), terms)
    np.testing.assert_allclose(unfolded(-10 * draws, np.full(3, 10.0), terms), 10 * one)


def test_far_from_zero_and_without_an_error_the_size_is_the_draws():
    draws = np.array([[-4.0, 7.0, -0.2, 0.0]])
    assert unfolded(draws, np.array([1, 1, 0, 0]), MANY).tolist() == [[4.0, 7.0, 0.2, 0.0]]
