"""Turns the judgments of a result into the list that the page's script shows.

Numbers in it are finite or `None`, everything else is text, whatever the result holds. `K` is the number of labels of
the scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tract_trainer.artifacts import number, text

Judged = Mapping[str, Any]


def listing(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    `scale`, labels with their values, and `judgments`, each with its `error`: the distance of its score from gold; of
    pairs, how far the score of the rejected response is above that of the chosen one.
    """
    config, judgments = result["judge"].get("config") or {}, result["judgments"]
    labels, values = config.get("score_labels") or [], config.get("score_values") or []
    pairs = bool(judgments) and "side" in judgments[0]
    errors = _pair_errors(judgments) if pairs else (_less(row, "score", row, "gold") for row in judgments)
    return {
        "scale": [{"label": text(label), "value": number(value)} for label, value in zip(labels, values, strict=False)],
        "judgments": [
            {**_row(judgment), "error": error if error is None or pairs else abs(error)}
            for judgment, error in zip(judgments, errors, strict=True)
        ],
    }


def _pair_errors(judgments: Sequence[Judged]) -> Iterator[float | None]:
    """Of pairs there are two judgments each, the chosen response first; both have the pair's error."""
    for chosen in range(0, len(judgments), 2):
        pair = judgments[chosen : chosen + 2]
        yield from [_less(pair[-1], "score", pair[0], "score")] * len(pair)


def _less(first: Judged, of_first: str, second: Judged, of_second: str) -> float | None:
    a, b = number(first.get(of_first)), number(second.get(of_second))
    return None if a is None or b is None else a - b


def _row(judgment: Judged) -> dict[str, Any]:
    place = {key: text(judgment[key]) for key in ("id", "subset", "side") if key in judgment}
    return {
        **{key: number(judgment.get(key)) for key in ("gold", "score", "std", "mass")},
        **{key: text(judgment.get(key)) for key in ("label", "reason", "rationale", "prompt")},
        "place": ", ".join(f"{key} {value}" for key, value in place.items()),
        "probs": _rounded(judgment.get("probs")),
        "rationales": [_rationale(found) for found in judgment.get("rationales") or []],
    }


def _rationale(found: Judged) -> dict[str, Any]:
    return {
        "label": text(found.get("label")),
        "probs": _rounded(found.get("probs")),
        "tokens": number(found.get("num_tokens")),
        "forced": bool(found.get("forced")),
    }


def _rounded(probs: Sequence[Any] | None) -> list[float]:
    """Probabilities, `(K,)`, as precise as a bar can show; empty where one is not known."""
    known = [number(p) for p in probs or []]
    return [] if None in known else [round(p, 4) for p in known if p is not None]
