"""Times several ways to do a thing in turns, so that what else the machine does meets all of them; tells code apart."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

import tract_trainer
from tract_trainer.data.hashing import digest

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Cost(NamedTuple):
    """What one way cost beside another, the first of them."""

    seconds: float  # median
    ratio: float  # of medians
    low: float  # quartiles of the ratios within a round
    high: float


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each way in each round, in a new order each round; one round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order, draw, now = list(ways), random.Random(0), CLOCKS[clock]
    for round_ in range(rounds + 1):
        draw.shuffle(order)
        for name in order:
            started = now()
            ways[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append(now() - started)
    return seconds


def costs(seconds: Mapping[str, list[float]]) -> dict[str, Cost]:
    """Each way's cost beside the first one's."""
    first = next(iter(seconds.values()))
    found = {}
    for name, taken in seconds.items():
        low, _, high = statistics.quantiles([mine / theirs for mine, theirs in zip(taken, first, strict=True)], n=4)
        middle = statistics.median(taken)
        found[name] = Cost(middle, middle / statistics.median(first), low, high)
    return found


def digest_of_code(*scripts: Path) -> str:
    """Of the package, the libraries that it trains with, and `scripts`: results of other code are not gone on with."""
    sources = [*scripts, *sorted(Path(tract_trainer.__file__).parent.rglob("*.py"))]
    versions = [version(package) for package in ("torch", "transformers", "trl")]
    return digest(versions, *(source.read_text(encoding="utf-8") for source in sources))[:12]
