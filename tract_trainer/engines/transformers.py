"""Turns prompts into rationales with Transformers' own `generate`, on the machine at hand.

Everything that decides the next token is one list of logits processors: record the raw log-probabilities of the scale,
penalise repetition, draw. So nothing hidden in a generation config has a say. Shape letters: `B`
rows, `S` steps, `K` labels, `V` vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tract_trainer._distributed import process_state
from tract_trainer.data.hashing import digest
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.checkpoints import load_judge_model
from tract_trainer.engines.completions import lead, read_written, stop_ids
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class TransformersEngine:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]): the judge.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows generated together. Halved for good when they do not fit into the memory.
    """

    calls = 1
    shares_prompts = True

    def __init__(
        self, model: PreTrainedModel, tokens: ScoreTokens, config: JudgeConfig, batch_size: int | None = None
    ) -> None:
        self.model, self.tokens = model, tokens
        self.batch_size = 16 if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.stop_ids, self.lead = stop_ids(model.generation_config, tokens, config), lead(tokens, config)
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        tokens: ScoreTokens,
        config: JudgeConfig,
        *,
        revision: str | None = None,
        batch_size: int | None = None,
        **model_kwargs: Any,
    ) -> "TransformersEngine":
        """Loads the model, or an adapter's base model, with its class's `from_pretrained(..., **model_kwargs)`."""
        kwargs = {"dtype": "auto", **model_kwargs}
        model = load_judge_model(name_or_path, revision, **kwargs)
        if "device_map" not in kwargs and "quantization_config" not in kwargs:
            model.to(process_state().device)  # under `accelerate launch`, the process's own
        return cls(model, tokens, config, batch_size)

    @property
    def identity(self) -> str:
        """A fingerprint of the weights, from a few numbers of every parameter, and the type they are computed in."""
        values = {
            name: p.detach().flatten()[:16].float().tolist()
            for name, p in self.model.named_parameters()
            if not p.is_meta
        }
        return f"{self.model.config.model_type}-{digest(str(self.model.dtype), values)[:16]}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        steps = [
            sampling.max_new_tokens
            if self.max_length is None
            else min(sampling.max_new_tokens, self.max_length - len(prompt))
            for prompt in prompts
        ]

        def write(chosen: list[int]) -> list[Rationale]:
            return self._generate_batch(
                [prompts[i] for i in chosen], [seeds[i] for i in chosen], sampling, steps[chosen[0]]
            )

        return self._in_batches(write, prompts, steps)

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        return self._in_batches(lambda chosen: self._score_batch([rows[i] for i in chosen]), rows, [0] * len(rows))

    def _in_batches(
        self, run: Callable[[list[int]], list[Result]], rows: Sequence[list[int]], steps: Sequence[int]
    ) -> list[Result]:
        """`run` over batches of row numbers, longest rows first; half as many a batch when memory is out."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        results: dict[int, Result] = {}
        while order:
            # Rows that may write for as many steps: none takes the room of another, or writes beyond its own.
            chosen = [i for i in order[: self.batch_size] if steps[i] == steps[order[0]]]
            batch: list[Result] = []
            try:
                batch = run(chosen)
            except Exception as error:
                if len(chosen) == 1 or not should_reduce_batch_size(error):
                    raise
                self.batch_size = len(chosen) // 2
                logger.warning(f"Out of memory with {len(chosen)} rows; going on with batch_size={self.batch_size}.")
            if not batch:  # out of the handler, so what it held is free
                clear_device_cache(garbage_collection=True)
            results.update(zip(chosen, batch, strict=False))
            order = order[len(batch) :]
        return [results[i] for i in range(len(rows))]

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, steps: int
    ) -> list[Rationale]:
        width = max(map(len, prompts))
        recorder = ScoreRecorder(self.tokens.ids)
        processors = LogitsProcessorList([recorder])
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if sampling.temperature > 0:
            processors.append(SeededDraw(seeds, steps, width, sampling.temperature, sampling.top_p))
        config = GenerationConfig(
            max_new_tokens=steps, do_sample=False, eos_token_id=self.stop_ids, pad_token_id=self.stop_ids[0]
        )
        input_ids, attention_mask = self._left_padded(prompts)
        for state in map(vars, self.model.modules()):
            if "rope_deltas" in state:  # Qwen's models with images keep those of an earlier batch, of its size
                state["rope_deltas"] = None
        with _generating(self.model, config):
            model: Any = self.model
            sequences = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                logits_processor=processors,
                **self._prompts_read_once(prompts),
            )
        log_probs = torch.stack(recorder.steps, dim=1).tolist()  # (B, S, K)
        return [
            read_written(self.tokens, prompt, written, self.stop_ids, of_row.__getitem__, self.lead)
            for prompt, written, of_row in zip(prompts, sequences[:, width:].tolist(), log_probs, strict=True)
        ]

    def _prompts_read_once(self, prompts: list[list[int]]) -> dict[str, DynamicCache]:
        """Several rationales for one prompt share its keys and values, where the model keeps nothing else."""
        if not self.shares_prompts or max(map(len, prompts)) == 1:
            return {}
        groups = [list(same) for _, same in groupby(prompts)]
        input_ids, attention_mask = self._left_padded([same[0] for same in groups])
        read = self._forward(input_ids[:, :-1], attention_mask[:, :-1], use_cache=True)
        owners = torch.tensor([number for number, same in enumerate(groups) for _ in same])
        cache = shared_cache(getattr(read, "past_key_values", None), owners)
        self.shares_prompts = cache is not None
        return {} if cache is None else {"past_key_values": cache}

    @torch.inference_mode()
    def _score_batch(self, rows: list[list[int]]) -> list[tuple[float, ...]]:
        with _evaluating(self.model):
            logits = self._forward(*self._left_padded(rows)).logits[:, -1]  # (B, V)
        return list(map(tuple, scale_log_probs(logits, self.tokens.ids).tolist()))

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=1,
            **kwargs,
        )

    def _left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        # Padding repeats a row's first token: masked out, and nothing that the repetition penalty would not see anyway.
        input_ids = torch.tensor([[row[0]] * (width - len(row)) + row for row in rows])
        attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)


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


FIRST_SORTED = 512  # tokens: holds the nucleus of a trained model at nearly every step


def scale_log_probs(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the tokens `ids`, `(B, K)`, from `(B, V)`; an InputError where the logits are none."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)  # (B, 1)
    if not total.isfinite().all():
        raise InputError(
            "The model's logits are not finite (NaN or infinite), so there is nothing to draw or score. Either it "
            "diverged in training: look for NaN in its losses and train with a lower learning rate. Or it overflows in "
            'float16: load it in another type, e.g. model_kwargs={"dtype": "bfloat16"} or "float32".'
        )
    return logits[:, list(ids)] - total


class ScoreRecorder(LogitsProcessor):
    """Keeps the log-probabilities of the scale at every step: `K` numbers a row, before anything has changed them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.steps: list[Tensor] = []  # S times (B, K)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scale_log_probs(scores, self.ids))
        return scores.float()


class SeededDraw(LogitsProcessor):
    """
    Draws the next token of each row from its nucleus at a temperature, by inverting the cumulative distribution, the
    likeliest token first, at a number from the row's own stream; and leaves only that token. A row's draws do not
    depend on the rows it shares a batch with, nor on the device.

    The nucleus of Holtzman et al. (2020), "The curious case of neural text degeneration": the likeliest tokens up to
    the one with which their probability reaches `top_p`. Only as many tokens are sorted as that takes.
    """

    def __init__(
        self, seeds: Sequence[int], max_new_tokens: int, width: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniforms = torch.stack(
            [torch.rand(max_new_tokens, generator=stream, dtype=torch.float64) for stream in streams]
        )  # (B, S)
        self.width, self.temperature, self.top_p = width, temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        known = scores.cpu() if scores.device.type == "mps" else scores  # Apple's GPUs have no float64
        self.uniforms = self.uniforms.to(known.device)
        at = self.uniforms[:, input_ids.size(1) - self.width, None]  # (B, 1)
        tokens, cumulative = self._nucleus(known.float() / self.temperature)  # (B, N) each
        drawn = (cumulative <= at * cumulative[:, -1:]).sum(-1, keepdim=True)  # (B, 1)
        return torch.full_like(known, -torch.inf).scatter(1, tokens.gather(1, drawn), 0).to(scores)

    def _nucleus(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, the likeliest first, and their cumulative probability, which stays as it is past the nucleus."""
        if self.top_p == 1:  # every token, in any order
            tokens = torch.arange(scores.size(-1), device=scores.device).expand_as(scores)
            return tokens, scores.double().softmax(-1).cumsum(-1)
        total, size = scores.logsumexp(-1, keepdim=True), min(FIRST_SORTED, scores.size(-1))
        while True:
            found = scores.topk(size)
            probs = (found.values - total).double().exp()  # (B, size)
            before = probs.cumsum(-1) - probs
            if size == scores.size(-1) or bool((before[:, -1] >= self.top_p).all()):
                return found.indices, torch.where(before < self.top_p, probs, 0).cumsum(-1)
            size = min(8 * size, scores.size(-1))


ROOM = 256  # tokens that are written before a buffer is made anew


class RoomyLayer(DynamicLayer):
    """
    A [`~transformers.cache_utils.DynamicLayer`] that writes into buffers with room to spare.

    Args:
        keys (`Tensor`): `(B, H, T, D)`.
        values (`Tensor`): `(B, H, T, D)`.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.buffers = keys, values  # full

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds the states of new tokens, and returns those of all."""
        start, end = self.keys.size(-2), self.keys.size(-2) + key_states.size(-2)
        if end > self.buffers[0].size(-2):
            self.buffers = _roomier(self.keys, end + ROOM), _roomier(self.values, end + ROOM)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


def shared_cache(cache: Any, owners: Tensor) -> DynamicCache | None:
    """
    A cache of several rows a prompt.

    Args:
        cache (`Any`): what a forward pass over the prompts returned; its keys and values are taken out.
        owners (`Tensor`): `(B,)`, the number of each row's prompt, `0` to `P - 1`.

    Returns:
        [`~transformers.DynamicCache`], or None where the cache is not one of keys and values alone, as that of a model
        with a recurrent state.
    """
    if type(cache) is not DynamicCache:
        return None
    layers: list[Any] = cache.layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    for number, layer in enumerate(layers):
        if not layer.is_initialized:  # its states are those of another layer
            continue
        layer.batch_select_indices(owners.to(layer.keys.device))
        if not layer.is_sliding:  # a window is cut at every step anyway
            layers[number] = RoomyLayer(layer.keys, layer.values)
    return cache


def _roomier(states: Tensor, length: int) -> Tensor:
    buffer = states.new_empty(*states.shape[:-2], length, states.size(-1))
    buffer[:, :, : states.size(-2)] = states
    return buffer
