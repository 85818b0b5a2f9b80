"""The loss that the trainer must reproduce, written the plain way: row by row, unpadded, full logits in float32.

Nothing here comes from `tract_trainer`: where a score stands is read from the text's characters, and the model's own
forward makes the logits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tiny import PREFIX
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

Gradients = dict[str, Tensor]


class Row(NamedTuple):
    """A tokenised row: `labels` is -100 where nothing is trained, `scores` holds (position, gold) pairs."""

    input_ids: list[int]
    labels: list[int]
    scores: list[tuple[int, float]]


class Step(NamedTuple):
    """One optimizer step: its loss, the parts of it, the scores in order and the gradient of each parameter."""

    loss: float
    ce_loss: float
    score_loss: float
    score_mae: float
    score_mass: float
    predicted: list[float]
    gold: list[float]
    gradients: Gradients


def naive_row(
    tokenizer: PreTrainedTokenizerBase, text: str, trained: Sequence[tuple[int, int]], gold: float | None
) -> Row:
    """
    Tokenises the whole `text`; characters within the spans `trained` are supervised, and the score is the digit after
    the last closing phrase. `gold=None` is a row without a score.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    labels = [
        token if any(a <= start and end <= b for a, b in trained) else -100
        for token, (start, end) in zip(ids, spans, strict=True)
    ]
    if gold is None:
        return Row(ids, labels, [])
    digit = text.rindex(PREFIX) + len(PREFIX)
    return Row(ids, labels, [(max(i for i, (start, _) in enumerate(spans) if start <= digit), gold)])


def score_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that writes each of "1" to "5" after the closing phrase."""
    rows = [naive_row(tokenizer, f"{PREFIX}{digit}", [], 0.0) for digit in "12345"]
    return [row.input_ids[row.scores[0][0]] for row in rows]


def label_paths(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[list[int]]:
    """The tokens that write each of `labels` after those that all have in common, which hold nothing of a label."""
    rows = [tokenizer(PREFIX + label, add_special_tokens=False, return_offsets_mapping=True) for label in labels]
    root = min(next(i for i, (_, end) in enumerate(row["offset_mapping"]) if end > len(PREFIX)) for row in rows)
    ids = [row["input_ids"] for row in rows]
    while any(row[:root] != ids[0][:root] for row in ids):
        root -= 1
    return [row[root:] for row in ids]


def label_log_probs(model: nn.Module, before: list[int], paths: Sequence[Sequence[int]]) -> Tensor:
    """
    Log-probability of each label behind the tokens `before`, `(K,)`, with one forward for each place where a label goes
    on: the probability of its tokens, minus that of the labels that go on from it.
    """
    places = {tuple(path[:length]) for path in paths for length in range(len(path))}
    at = {place: model(torch.tensor([[*before, *place]])).logits[0, -1].double().softmax(-1) for place in places}
    reached = {path: math.prod(at[path[:i]][token] for i, token in enumerate(path)) for path in map(tuple, paths)}
    found = []
    for path in map(tuple, paths):
        longer = [other for other in reached if len(other) > len(path) and _begins(other)(path)]
        next_ones = [path for path in longer if not any(path != other and _begins(path)(other) for other in longer)]
        found.append(reached[path] - sum(reached[other] for other in next_ones))
    return torch.stack(found).log().float()


def _begins(ids: Sequence[int]) -> Callable[[Sequence[int]], bool]:
    return lambda path: list(ids[: len(path)]) == list(path)


def split_rows(rows: Iterable[Row], length: int) -> list[Row]:
    """Every row in pieces of `length` tokens. A score that is the first token of its piece is lost."""
    pieces = []
    for row in rows:
        for start in range(0, len(row.input_ids), length):
            span = slice(start, start + length)
            scores = [(p - start, gold) for p, gold in row.scores if start < p < start + length]
            pieces.append(Row(row.input_ids[span], row.labels[span], scores))
    return pieces


def naive_rows(tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict[str, Any]]) -> list[Row]:
    """Prompt-completion rows, plain or conversational, as `tiny.make_rows` gives them. The prompt is not trained."""
    result = []
    for row in rows:
        if isinstance(row["prompt"], str):
            prompt, text = row["prompt"], row["prompt"] + row["completion"] + tokenizer.eos_token
        else:
            prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
            text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        result.append(naive_row(tokenizer, text, [(len(prompt), len(text))], row.get("score")))
    return result


def squared_error(log_probs: Tensor, gold: float) -> Tensor:
    """`(sum_y y p(y) - gold)^2`, from `log_probs` of the five scores."""
    return ((log_probs.exp() * VALUES).sum() - gold) ** 2


def naive_step(
    model: nn.Module,
    token_ids: Sequence[int],
    rows: Sequence[Row],
    *,
    ce_weight: float = 1.0,
    score_weight: float = 1.0,
    loss: Callable[[Tensor, float], Tensor] = squared_error,
    renormalize: bool = False,
    score_token_in_ce: bool = True,
    dft: bool = False,
    paths: Sequence[Sequence[int]] | None = None,
    values: Tensor = VALUES,
) -> Step:
    """
    The loss of one optimizer step over `rows` and its gradients, `ce_weight * ce + score_weight * score`:

        ce:    sum of -log p(token) over the supervised tokens / their number; the first token of a row has no p
        score: mean over the scores of `loss`; probabilities are those of the softmax over the whole vocabulary

    `token_ids` are the tokens of "1" to "5". Or the tokens of each label of a scale are `paths`, and its numbers are
    `values`. `model` is a fresh one: its gradients are read here.
    """
    nll, tokens, losses, errors, masses, predicted, gold_scores = [], 0, [], [], [], [], []
    for row in rows:
        logits = model(torch.tensor([row.input_ids])).logits[0]
        log_probs = logits.float().log_softmax(-1)  # (T, V)
        labels = list(row.labels)
        for position, gold in row.scores:
            if paths is None:
                scale = log_probs[position - 1, list(token_ids)]  # (5,): the token at t is predicted at t - 1
            else:
                scale = label_log_probs(model, row.input_ids[:position], paths)  # (K,)
            masses.append(scale.exp().sum().item())
            if renormalize:
                scale = scale - scale.exp().sum().log()
            losses.append(loss(scale, gold))
            predicted.append((scale.exp() * values).sum().item())
            errors.append(abs(predicted[-1] - gold))
            gold_scores.append(gold)
            if not score_token_in_ce:
                begun = filter(_begins(row.input_ids[position:]), paths or ())
                length = max(map(len, begun), default=1)
                labels[position : position + length] = [-100] * length
        for position in range(1, len(labels)):
            if labels[position] != -100:
                log_prob = log_probs[position - 1, labels[position]]
                nll.append(-log_prob * log_prob.detach().exp() if dft else -log_prob)
                tokens += 1
    ce_loss = sum(nll) / tokens
    score_loss = sum(losses) / len(losses) if losses else torch.zeros(())
    total = ce_weight * ce_loss + score_weight * score_loss
    model.zero_grad()
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    count = max(len(losses), 1)
    return Step(
        *(part.item() for part in (total, ce_loss, score_loss)),
        sum(errors) / count,
        sum(masses) / count,
        predicted,
        gold_scores,
        gradients,
    )


class _GradientsBeforeTheStep(TrainerCallback):
    def __init__(self) -> None:
        self.gradients: Gradients = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_gradients(trainer: Trainer) -> tuple[dict[str, float], Gradients]:
    """
    One optimizer step of `trainer` (set max_steps=1, learning_rate=0 and max_grad_norm=0): what it logs, and the
    gradients that the optimizer is given.
    """
    callback = _GradientsBeforeTheStep()
    trainer.add_callback(callback)
    trainer.train()
    return trainer.state.log_history[0], callback.gradients


def distance(measured: Gradients, expected: Gradients) -> float:
    """Euclidean distance of the whole gradients, relative to the expected one's norm."""
    assert measured.keys() == expected.keys(), measured.keys() ^ expected.keys()
    apart = sum((measured[name] - expected[name]).square().sum() for name in expected)
    return float(apart.sqrt() / sum(value.square().sum() for value in expected.values()).sqrt())


def assert_same_gradients(measured: Gradients, expected: Gradients, tolerance: float = 1e-5) -> None:
    """
    Within `tolerance` as a whole (`distance`), and every tensor on its own, relative to its norm or a thousandth of the
    whole gradient's norm, whichever is larger.
    """
    assert distance(measured, expected) < tolerance
    whole = sum(value.square().sum() for value in expected.values()).sqrt()
    for name, value in expected.items():
        relative = (measured[name] - value).norm() / max(value.norm(), whole * 1e-3)
        assert relative < tolerance, f"{name}: {relative:.2e}"


def assert_same_step(log: dict[str, float], gradients: Gradients, expected: Step, tolerance: float = 1e-5) -> None:
    """The logged loss and all gradients are those of the naive step."""
    assert abs(log["loss"] - expected.loss) < tolerance * abs(expected.loss), (log["loss"], expected.loss)
    assert_same_gradients(gradients, expected.gradients, tolerance)
