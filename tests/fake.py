"""A judge that writes what a test tells it to, without a model."""

import numpy as np
from tiny import PREFIX, make_tokenizer

from tract_trainer.engines.base import Rationale
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.judging.judge import Judge
from tract_trainer.scale import ScoreTokens

FIVE = JudgeConfig(list("12345"), [1, 2, 3, 4, 5], PREFIX)


class FakeEngine:
    """
    Writes `say(prompt)[number]` as the rationale of that number: a label and probabilities, or `None` for a rationale
    that comes to no score. The score of a row of tokens is the first of these.
    """

    batch_size, calls, max_length = 4, 1, None

    def __init__(self, say, config=FIVE, identity="fake"):
        self.say, self.identity, self.generated = say, identity, 0
        self.tokens = ScoreTokens.resolve(config.scale, config.score_prefix, make_tokenizer("qwen"))

    def _text(self, row):
        return self.tokens.tokenizer.decode(row)

    def generate(self, prompts, seeds, sampling):
        rationales = []
        for place, prompt in enumerate(prompts):
            said = self.say(self._text(prompt))
            number = prompts[:place].count(prompt) % len(said)
            said = said[number]
            self.generated += 1
            text = f"Rationale {number}."
            rationales.append(Rationale(text, None, None, 9) if said is None else Rationale(text, *logs(*said), 9))
        return rationales

    def score(self, rows):
        return [logs(*self.say(self._text(row))[0])[1] for row in rows]


def logs(label, probs):
    with np.errstate(divide="ignore"):
        return label, tuple(np.log(np.array(probs, dtype=np.float64)).tolist())


def sure(score, scale=(1, 2, 3, 4, 5)):
    """A rationale that ends with `score` and has all probability there."""
    return str(score), [float(value == score) for value in scale]


def fake_judge(say, config=FIVE, identity="fake"):
    return Judge(FakeEngine(say, config, identity), config)
