"""Turns prompts into rationales with Transformers' own `generate`, on the machine at hand.

Everything that decides the next token is one list of logits processors: record the raw log-probabilities of the scale,
penalise repetition, temperature, top-p, draw. So nothing hidden in a generation config has a say, and each row draws
from numbers of its own, whatever rows share its batch. Shape letters: `B` rows, `S` steps, `K` labels, `V` vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tract_trainer.engines import Rationale, Sampling
from tract_trainer.errors import InputError
from tract_trainer.hub import JudgeConfig
from tract_trainer.records import close, row_ids
from tract_trainer.scale import IGNORE_INDEX, ScoreTokens
from tract_trainer.seeds import digest


class TransformersEngine:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]): the judge.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        stop_ids (`Sequence[int]`): tokens that end a turn.
        batch_size (`int`, *optional*, defaults to `16`): rows generated together.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: ScoreTokens, stop_ids: Sequence[int], batch_size: int = 16
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.model, self.tokens, self.stop_ids, self.batch_size = model, tokens, list(stop_ids), batch_size

    @property
    def identity(self) -> str:
        """A fingerprint of the weights, from a few numbers of every parameter."""
        values = {
            name: p.detach().flatten()[:16].float().tolist()
            for name, p in self.model.named_parameters()
            if not p.is_meta
        }
        return f"{self.model.config.model_type}-{digest(values)[:16]}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        results: dict[int, Rationale] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self._generate_batch([prompts[i] for i in chosen], [seeds[i] for i in chosen], sampling)
            results.update(zip(chosen, batch, strict=True))
        return [results[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Rationale]:
        input_ids, attention_mask = self._left_padded(prompts)
        width = input_ids.size(1)
        recorder = _ScoreRecorder(self.tokens.ids)
        processors = LogitsProcessorList([recorder])
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if sampling.temperature > 0:
            processors += [
                TemperatureLogitsWarper(float(sampling.temperature)),
                TopPLogitsWarper(sampling.top_p),
                _SeededDraw(seeds, sampling.max_new_tokens, width),
            ]
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0],
        )
        with _generating(self.model, config):
            model: Any = self.model
            sequences = model.generate(input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors)
        log_probs = torch.stack(recorder.steps, dim=1).cpu()  # (B, S, K)
        written = [self._until_stop(row) for row in sequences[:, width:].tolist()]
        return [self._read(*row) for row in zip(prompts, written, log_probs, strict=True)]

    def _until_stop(self, tokens: list[int]) -> list[int]:
        return next((tokens[:i] for i, token in enumerate(tokens) if token in self.stop_ids), tokens)

    def _read(self, prompt: list[int], written: list[int], log_probs: Tensor) -> Rationale:
        """What a row of written tokens says. `log_probs` is `(S, K)`."""
        found = self.tokens.find(prompt + written, [IGNORE_INDEX] * len(prompt) + written)
        tokenizer: Any = self.tokens.tokenizer
        # Decoded after the prompt's last tokens: a tokenizer may drop a space at the very start of a text.
        before = tokenizer.decode(prompt[-4:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        end = len(prompt) + len(written) if found is None else found.position + 1
        text = tokenizer.decode(
            prompt[-4:] + written[: end - len(prompt)], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )[len(before) :]
        if found is None:
            return Rationale(text, None, None, len(written))
        text = text.removesuffix(self.tokens.prefix + found.label)
        at = tuple(log_probs[found.position - len(prompt)].tolist())
        return Rationale(text, found.label, at, len(written))

    @torch.inference_mode()
    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        results: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            input_ids, attention_mask = self._left_padded([rows[i] for i in chosen])
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            with _evaluating(self.model):
                logits = self.model(
                    input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=1
                ).logits[:, -1]  # (B, V)
            log_probs = logits.float().log_softmax(-1)[:, list(self.tokens.ids)]  # (B, K)
            results.update(zip(chosen, map(tuple, log_probs.tolist()), strict=True))
        return [results[i] for i in range(len(rows))]

    def _left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        # Padding repeats a row's first token: masked out, and nothing that the repetition penalty would not see anyway.
        input_ids = torch.tensor([[row[0]] * (width - len(row)) + row for row in rows])
        attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)


def stop_ids(model: PreTrainedModel, tokens: ScoreTokens, config: JudgeConfig) -> list[int]:
    """Tokens that end a turn: the model's, the tokenizer's, and the one the chat template puts after an answer."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [*own] if isinstance(own, list) else [own]
    ids.append(tokens.tokenizer.eos_token_id)
    if config.conversational:
        row = row_ids(
            "", close("", tokens.prefix, tokens.scale.labels[0]), tokens.tokenizer, True, **config.chat_template_kwargs
        )
        found = tokens.find(row)
        if found is not None and found.position + 1 < len(row):
            after = row[found.position + 1]
            if after in tokens.tokenizer.all_special_ids or after in tokens.tokenizer.added_tokens_decoder:
                ids.append(after)
    stop = sorted({int(i) for i in ids if i is not None})
    if not stop:
        raise InputError("Neither the model nor the tokenizer has an end-of-sequence token. Set tokenizer.eos_token.")
    return stop


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Puts `config` in the place of the model's own, which `generate` would merge in, and the model in `eval`."""
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = owner.generation_config
    owner.generation_config = config
    try:
        with _evaluating(model):
            yield
    finally:
        owner.generation_config = own


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _ScoreRecorder(LogitsProcessor):
    """Keeps the log-probabilities of the scale at every step: `K` numbers a row, before anything has changed them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.steps: list[Tensor] = []  # S times (B, K)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        self.steps.append(scores[:, self.ids] - scores.logsumexp(-1, keepdim=True))
        return scores


class _SeededDraw(LogitsProcessor):
    """
    Draws the next token of each row by inverting its cumulative distribution at a number from the row's own stream,
    and leaves only that token. A row's draws do not depend on the rows it shares a batch with, nor on the device.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int, width: int) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniforms = torch.stack(
            [torch.rand(max_new_tokens, generator=stream, dtype=torch.float64) for stream in streams]
        )  # (B, S)
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.uniforms = self.uniforms.to(scores.device)
        at = self.uniforms[:, input_ids.size(1) - self.width, None]  # (B, 1)
        cumulative = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        drawn = (cumulative <= at * cumulative[:, -1:]).sum(-1, keepdim=True)  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0)
