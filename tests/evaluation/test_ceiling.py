"""The agreement of raters with each other, by hand."""

import math

import numpy as np
import pytest

from tract_trainer.evaluation.ceiling import ceiling

SCALE = [1, 2, 3, 4, 5]


def test_each_rating_is_compared_with_the_mean_of_the_records_others():
    found = ceiling([[1, 2, 3], [4], [5, 5], [2, 4]], SCALE, [0, 1, 2, 3])
    one, others = [1, 2, 3, 5, 5, 2, 4], [2.5, 2, 1.5, 5, 5, 4, 2]
    assert found["pearson"] == pytest.approx(np.corrcoef(one, others)[0, 1])
    assert found["mae"] == pytest.approx((1.5 + 0 + 1.5 + 0 + 0 + 2 + 2) / 7)
    assert found["n"] == 3 and found["unscored"] == 0
    assert ceiling([[1], [4]], SCALE, [0, 1]) is None


def test_ratings_of_a_record_are_not_independent():
    rng = np.random.default_rng(0)
    gold = rng.integers(1, 6, 40)
    ratings = np.clip(gold[:, None] + rng.integers(-1, 2, (40, 3)), 1, 5).tolist()
    alone, together = (ceiling(ratings, SCALE, of)["pearson_ci"] for of in (np.arange(40), np.arange(40) // 4))
    assert np.ptp(alone) != np.ptp(together)
    twice = ceiling([of * 2 for of in ratings], SCALE, np.arange(40))["mae_ci"]
    assert np.ptp(twice) == pytest.approx(np.ptp(ceiling(ratings, SCALE, np.arange(40))["mae_ci"]), rel=0.3)


def test_krippendorffs_alpha_by_hand():
    pytest.importorskip("krippendorff")
    # Two raters: (1, 2), (2, 2), (4, 3), and (1) alone, which does not count. Within: (1 + 0 + 1) / 3 = 2/3 a pair.
    # Over all pairs of 1 2 2 2 4 3, of which there are 15: 3 * 1 + 9 + 4 + 3 * 0 + 3 * 4 + 3 * 1 + 1 = 32: 32/15.
    found = ceiling([[1, 2], [2, 2], [4, 3], [1]], SCALE, range(4))
    assert found["alpha"] == pytest.approx(1 - (2 / 3) / (32 / 15))
    assert math.isnan(ceiling([[3, 3], [3, 3]], SCALE, range(2))["alpha"])
