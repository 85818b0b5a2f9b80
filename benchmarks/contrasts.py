"""What is compared with what: one finding of the paper, or one question of ours, a contrast of figures of judges.

A difference is taken seed by seed, on the records that all of its judges scored, or on all records, where an unscored
one counts as the mean score of its judge. `n` records.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BEST = "best possible from the prompt"
Run = dict[str, Any]  # what `miniature.judged` returned
Runs = dict[str, list[Run]]  # by arm, one a seed
Values = NDArray[np.float64]


class Side(NamedTuple):
    """One way to judge: whose scores, by which method, from how many rationales (0: the annotated one)."""

    arm: str
    method: str = "RAIL"
    count: int = 1

    def scores(self, run: Run, filled: bool = False) -> Values:
        """
        Scores of the records, `(n,)`: NaN where unscored, or the mean of the others if `filled`; and NaN everywhere if
        more than half are unscored.
        """
        own = run["own"].get(str(self.count), {})
        found = np.array(own.get(self.method) if self.count else run["annotated"], float)
        if np.isfinite(found).mean() < 0.5:
            return np.full(len(run["gold"]), np.nan)
        return np.where(np.isnan(found), np.nanmean(found), found) if filled else found


def pearson(scores: Values, gold: Values) -> float:
    """0 for scores that are all the same."""
    return float(stats.pearsonr(scores, gold).statistic) if np.ptp(scores) > 0 else 0.0


def rmse(scores: Values, gold: Values) -> float:
    return float(np.sqrt(np.mean((scores - gold) ** 2)))


class Contrast(NamedTuple):
    """What figures of judges come to, added and subtracted."""

    more: Sequence[Side]
    less: Sequence[Side] = ()
    figure: Callable[[Values, Values], float] = pearson

    def values(self, runs: Runs, filled: bool = False) -> Values:
        """
        The contrast for each seed, `(seeds,)`, on the records that all of the judges scored, or on all if `filled`; NaN
        if there are none.
        """
        found = []
        for gold, there, scores in self._shared(runs, filled):
            figures = [self.figure(row[there], gold[there]) if there.any() else np.nan for row in scores]
            found.append(sum(figures[: len(self.more)]) - sum(figures[len(self.more) :]))
        return np.array(found)

    def shares(self, runs: Runs) -> Values:
        """Share of the records that all of the judges scored, `(seeds,)`."""
        return np.array([there.mean() for _, there, _ in self._shared(runs)])

    def _shared(self, runs: Runs, filled: bool = False) -> Iterator[tuple[Values, NDArray[np.bool_], list[Values]]]:
        sides = (*self.more, *self.less)
        for of_seed in zip(*(runs[side.arm] for side in sides), strict=True):
            scores = [side.scores(run, filled) for side, run in zip(sides, of_seed, strict=True)]
            yield np.array(of_seed[0]["gold"], float), np.isfinite(scores).all(0), scores


class Finding(NamedTuple):
    """What is said, that the contrast is positive; and the paper's two figures, of which the first is the larger."""

    says: str
    contrast: Contrast
    paper: tuple[float, float] | None = None


def above(more: Side, less: Side, figure: Callable[[Values, Values], float] = pearson) -> Contrast:
    return Contrast([more], [less], figure)


TRACT, CE, STAGE_1, SCORE_ONLY = map(Side, ("TRACT", "CE", "stage 1", "CE, score only"))
RAFT, CE_TWICE, FROM_STAGE_1 = map(Side, ("RAFT, score only", "CE in both stages", "stage 2 from stage 1"))
CE_DECODED, SCORE_DECODED, TRACT_DECODED = (Side(side.arm, "decoded") for side in (CE, SCORE_ONLY, TRACT))
CE_FOUR, TRACT_FOUR = Side("CE", "decoded", 4), Side("TRACT", count=4)
LAMBDAS = {"0.1": 0.496, "0.2": 0.643, "2": 0.632, "5": 0.595, "10": 0.618}
FINDINGS = (
    Finding("TRACT above cross-entropy with rationales, decoded", above(TRACT, CE_DECODED), (0.650, 0.557)),
    Finding("TRACT above cross-entropy with rationales, RAIL", above(TRACT, CE), (0.650, 0.562)),
    Finding("TRACT above stage 1", above(TRACT, STAGE_1), (0.650, 0.556)),
    Finding("RAIL above decoding, cross-entropy with rationales", above(CE, CE_DECODED), (0.562, 0.557)),
    Finding("Cross-entropy with rationales above stage 1, both RAIL", above(CE, STAGE_1), (0.562, 0.556)),
    Finding("Rationales help cross-entropy, decoded", above(CE_DECODED, SCORE_DECODED), (0.557, 0.488)),
    Finding("RAFT above cross-entropy, score only, decoded", above(RAFT, SCORE_DECODED), (0.623, 0.488)),
    Finding("RAFT, score only, above cross-entropy with rationales, RAIL", above(RAFT, CE), (0.623, 0.562)),
    Finding("TRACT above RAFT, score only", above(TRACT, RAFT), (0.650, 0.623)),
    Finding("Own rationales help cross-entropy", above(CE_TWICE, CE), (0.616, 0.562)),
    Finding("TRACT above cross-entropy in both stages", above(TRACT, CE_TWICE), (0.650, 0.616)),
    Finding("Stage 2 from the seed model above stage 2 from stage 1", above(TRACT, FROM_STAGE_1), (0.650, 0.515)),
    Finding("Stage 2 from stage 1 below stage 1", above(STAGE_1, FROM_STAGE_1), (0.556, 0.515)),
    Finding("TRACT's expected score above its decoded one", above(TRACT, TRACT_DECODED), (0.650, 0.572)),
    Finding("TRACT, decoded, above cross-entropy with rationales, decoded", above(TRACT_DECODED, CE_DECODED),
            (0.572, 0.557)),
    *(Finding(f"Lambda 1 above {weight}", above(TRACT, Side(f"TRACT, lambda {weight}")), (0.650, r))
      for weight, r in LAMBDAS.items()),
    Finding("Four rationales (there: five) instead of one help TRACT's expected score", above(TRACT_FOUR, TRACT),
            (0.651, 0.650)),
    Finding("They help a decoded score, of cross-entropy (there: Prometheus 2), more than TRACT's expected one",
            Contrast([CE_FOUR, TRACT], [CE_DECODED, TRACT_FOUR]), (0.105, 0.001)),
    Finding("With as many, the decoded score is above TRACT's expected one", above(CE_FOUR, TRACT_FOUR),
            (0.696, 0.651)),
    Finding("RMSE of stage 1 is larger on its own rationales than on annotated ones",
            above(STAGE_1, Side("stage 1", count=0), rmse)),
    Finding("RMSE on own rationales is larger for stage 1 than for TRACT", above(STAGE_1, TRACT, rmse)),
)  # fmt: skip
QUESTIONS = (
    Finding("RAFT above cross-entropy, score only, both RAIL", above(RAFT, SCORE_ONLY)),
    Finding("TRACT above cross-entropy, score only, RAIL", above(TRACT, SCORE_ONLY)),
    Finding("Own rationales above none, cross-entropy, RAIL", above(CE_TWICE, SCORE_ONLY)),
    Finding("The score in the cross-entropy above left out, TRACT", above(TRACT, Side("TRACT, score not in CE"))),
    Finding("The same, stage 1", above(STAGE_1, Side("stage 1, score not in CE"))),
    Finding("Renormalised above not, TRACT", above(Side("TRACT, renormalised"), TRACT)),
)
