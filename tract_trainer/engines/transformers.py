"""Rationales and scores from Transformers' `generate` in this process.

One list of logits processors decides the next token: record the log-probabilities of the scale, penalise repetition,
sample. No setting of the model's generation config applies. Shape letters: `B` rows, `S` steps, `K` labels of the
scale, `V` vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache

from tract_trainer._distributed import process_state
from tract_trainer.data.hashing import digest
from tract_trainer.engines.attention import appends_tokens, behind_cache, with_tokens
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.cache import evaluating, positions, shared_cache
from tract_trainer.engines.checkpoints import load_judge_model
from tract_trainer.engines.completions import Places, lead, read_written, stop_ids
from tract_trainer.engines.trie import LabelTrie
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Warns of a batch that is longer than `max_position_embeddings`. No row of ours is.
REMINDER = logging.getLogger("transformers.generation.stopping_criteria")
FIRST_SORTED = 512  # likeliest tokens, which hold a trained model's nucleus at nearly every step
RECOVERY = 1.01  # growth of the batches with each one that fits into memory: a limit is doubled by 70 of them


class Before(NamedTuple):
    """The tokens of a row before its label, and the log-probability of each of `ScoreTokens.ids` behind them."""

    tokens: list[int]
    log_probs: list[float]


class TransformersEngine:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]): the judge.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of rows that are generated together. A batch for which memory runs out is divided.
    """

    calls = 1
    shares_prompts = True
    batch_tokens = math.inf
    """Largest size of a batch in tokens, its rows times the longest; lowered when memory runs out."""

    def __init__(
        self, model: PreTrainedModel, tokens: ScoreTokens, config: JudgeConfig, batch_size: int | None = None
    ) -> None:
        self.model, self.tokens = model, tokens
        self.batch_size = 16 if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.stop_ids, self.lead = stop_ids(model.generation_config, tokens, config), lead(tokens, config)
        self.trie = LabelTrie(tokens) if tokens.depth else None
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = limit and limit - tokens.depth

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
        """Loads the model, or an adapter's base model, with `from_pretrained(..., **model_kwargs)` of its class."""
        kwargs = {"dtype": "auto", **model_kwargs}
        model = load_judge_model(name_or_path, revision, **kwargs)
        if "device_map" not in kwargs and "quantization_config" not in kwargs:
            model.to(process_state().device)  # the process's own under `accelerate launch`
        return cls(model, tokens, config, batch_size)

    @property
    def identity(self) -> str:
        """A fingerprint of the weights, from numbers all over every parameter, and of the type they are computed in."""
        values = {name: _sample(p.detach()) for name, p in self.model.named_parameters() if not p.is_meta}
        return f"{self.model.config.model_type}-{digest(str(self.model.dtype), values)[:16]}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        room = [self.max_length - len(row) if self.max_length else sampling.max_new_tokens for row in prompts]
        limits = [min(sampling.max_new_tokens, tokens) for tokens in room]

        def write(chosen: list[int]) -> list[Rationale]:
            return self._generate_batch(
                [prompts[i] for i in chosen], [seeds[i] for i in chosen], [limits[i] for i in chosen], sampling
            )

        return self._in_batches(write, [len(row) for row in prompts], limits)

    def score(self, rows: Sequence[list[int]]) -> list[tuple[float, ...]]:
        lengths = [len(row) for row in rows]
        return self._in_batches(lambda chosen: self._score_batch([rows[i] for i in chosen]), lengths, [0] * len(rows))

    def _in_batches(
        self, run: Callable[[list[int]], list[Result]], lengths: Sequence[int], limits: Sequence[int]
    ) -> list[Result]:
        """
        `run` on batches of row numbers, longest rows first. Out of memory, it goes on with smaller batches. Rows have
        tokens in the number of their `lengths`, and may get those of their `limits`.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        results: dict[int, Result] = {}
        while order:
            chosen = order[: self.batch_size]
            while (size := _size(chosen, lengths, limits)) > self.batch_tokens and len(chosen) > 1:
                chosen.pop()
            batch: list[Result] = []
            try:
                batch = run(chosen)
            except Exception as error:
                if len(chosen) == 1 or not should_reduce_batch_size(error):
                    raise
                self.batch_tokens = size / 2
                logger.warning(f"Out of memory with a batch of {len(chosen)} rows; going on with {len(chosen) // 2}.")
            if batch:
                self.batch_tokens *= RECOVERY
            else:  # outside of the handler, whose traceback holds the batch
                clear_device_cache(garbage_collection=True)
            results.update(zip(chosen, batch, strict=False))
            order = order[len(batch) :]
        return [results[i] for i in range(len(lengths))]

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: list[list[int]], seeds: list[int], limits: list[int], sampling: Sampling
    ) -> list[Rationale]:
        width, steps = max(map(len, prompts)), max(limits)
        recorder = ScoreRecorder(self.tokens.ids)
        processors = LogitsProcessorList([recorder])
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        draw = SeededDraw(seeds, steps, width, sampling.temperature, sampling.top_p)
        if sampling.temperature > 0:
            processors.append(draw)
        ends = {"eos_token_id": self.stop_ids, "pad_token_id": self.stop_ids[0]}
        config = GenerationConfig(max_new_tokens=steps, do_sample=False, **ends)
        for state in map(vars, self.model.modules()):
            if "rope_deltas" in state:
                state["rope_deltas"] = None
        written: list[list[int]] = [[] for _ in prompts]
        log_probs: list[list[list[float]]] = [[] for _ in prompts]  # (S, K) of each row; of `tokens.ids`
        labels: dict[int, Any] = {}  # (K,) of each row that has ended, where labels are several tokens
        rows = list(range(len(prompts)))  # those that go on
        input_ids, attention_mask = self._left_padded(prompts)
        limit = self.max_length and self.max_length + self.tokens.depth
        with _generating(self.model, config, limit):
            cache = self._prompts_read_once(prompts)
            while rows:
                ending = RowsEnd([limits[row] for row in rows], width, self.stop_ids, early=cache is not None)
                model: Any = self.model
                sequences = model.generate(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    logits_processor=processors,
                    stopping_criteria=StoppingCriteriaList([ending]),
                    **({} if cache is None else {"past_key_values": cache}),
                )
                new = sequences[:, input_ids.size(1) :]
                for row, tokens, of_row in zip(rows, new.tolist(), recorder.taken().tolist(), strict=True):
                    written[row] += tokens
                    log_probs[row] += of_row
                ended = ending.ended(sequences)
                attention_mask = F.pad(attention_mask, (0, new.size(1)), value=1)
                if self.trie is not None:
                    due = [
                        self._before_label(prompts[row], written[row][: limits[row]], log_probs[row]) if end else None
                        for row, end in zip(rows, ended.tolist(), strict=True)
                    ]
                    labels |= dict(zip(rows, self._labels(self.trie, due, cache, attention_mask), strict=True))
                going_on = (~ended).nonzero()[:, 0]
                rows = [rows[i] for i in going_on.tolist()]
                input_ids, attention_mask = sequences[going_on], attention_mask[going_on]
                draw.uniforms = draw.uniforms[going_on.to(draw.uniforms.device)]
                if cache is not None and rows:
                    cache.batch_select_indices(going_on)
        return [
            self._read(prompt, tokens[:limit], partial(labels.get, row) if self.trie else of_row.__getitem__)
            for row, (prompt, limit, tokens, of_row) in enumerate(zip(prompts, limits, written, log_probs, strict=True))
        ]

    def _read(self, prompt: list[int], tokens: list[int], log_probs: Callable[[int], Any]) -> Rationale:
        return read_written(self.tokens, prompt, tokens, self.stop_ids, log_probs, self.lead)

    def _before_label(self, prompt: list[int], tokens: list[int], log_probs: list[list[float]]) -> Before | None:
        places = Places()
        self._read(prompt, tokens, places.of(0))
        return Before([*prompt, *tokens[: places[0]]], log_probs[places[0]]) if places else None

    def _labels(
        self, trie: LabelTrie, due: list[Before | None], cache: DynamicCache | None, attention_mask: Tensor
    ) -> list[tuple[float, ...] | None]:
        """
        Log-probability of each label, `(K,)`, in the rows of a batch that have one: what stands before it is `due`. The
        `cache` of all rows is left as it is; `attention_mask` tells which tokens are no padding, `(B, T)`.
        """
        rows = [before.tokens for before in due if before is not None]
        if not rows:
            return [None] * len(due)
        layers: list[Any] = [] if cache is None else cache.layers
        if cache is None or any(layer.is_sliding for layer in layers) or not appends_tokens(_owner(self.model)):
            read = iter(self._score_batch(rows))
            return [None if before is None else next(read) for before in due]
        found = trie.label_log_probs(self._behind(trie, due, cache, attention_mask)).tolist()
        return [None if before is None else tuple(of_row) for before, of_row in zip(due, found, strict=True)]

    def _behind(self, trie: LabelTrie, due: list[Before | None], cache: DynamicCache, attention_mask: Tensor) -> Tensor:
        """Log-probabilities at each inner node behind the rows in `cache`, `(B, J, V)`; see [`_labels`]."""
        nth = attention_mask[:, : cache.get_seq_length()].cumsum(-1)  # (B, T): 0 for padding
        lengths = torch.tensor([1 if before is None else len(before.tokens) for before in due], device=nth.device)
        kwargs = behind_cache(_owner(self.model), trie, (nth > 0) & (nth <= lengths[:, None]))
        logits = self.model(**kwargs, past_key_values=cache, use_cache=True).logits.float()  # (B, J - 1, V)
        cache.crop(-logits.size(1))
        root = torch.full_like(logits[:, :1], -torch.inf)
        for i, before in enumerate(due):
            if before is not None:
                root[i, 0, list(self.tokens.ids)] = torch.tensor(before.log_probs, device=root.device)
        return torch.cat([root, logits - log_total(logits)], dim=1)

    def _prompts_read_once(self, prompts: list[list[int]]) -> DynamicCache | None:
        """
        Keys and values of the prompts, each processed once for all of its rationales. `None` for a model that also
        keeps a recurrent state.
        """
        if not self.shares_prompts or max(map(len, prompts)) == 1:
            return None
        groups = [list(same) for _, same in groupby(prompts)]
        input_ids, attention_mask = self._left_padded([same[0] for same in groups])
        read = self._forward(input_ids[:, :-1], attention_mask[:, :-1], use_cache=True)
        owners = torch.tensor([number for number, same in enumerate(groups) for _ in same])
        cache = shared_cache(getattr(read, "past_key_values", None), owners)
        self.shares_prompts = cache is not None
        return cache

    @torch.inference_mode()
    def _score_batch(self, rows: list[list[int]]) -> list[tuple[float, ...]]:
        with evaluating(self.model):
            if self.trie is None:
                logits = self._forward(*self._left_padded(rows)).logits[:, -1]  # (B, V)
                return list(map(tuple, scale_log_probs(logits, self.tokens.ids).tolist()))
            logits = self._at_inner_nodes(self.trie, rows)  # (B, J, V)
        return list(map(tuple, self.trie.label_log_probs(logits - log_total(logits)).tolist()))

    def _at_inner_nodes(self, trie: LabelTrie, rows: list[list[int]]) -> Tensor:
        """Logits of the next token at each inner node of the trie of labels behind each row, `(B, J, V)`, float32."""
        owner, nodes = _owner(self.model), self.tokens.nodes
        if not appends_tokens(owner):
            behind = [[*row, *node] for row in rows for node in nodes]
            return self._forward(*self._left_padded(behind)).logits[:, -1].float().unflatten(0, (-1, len(nodes)))
        input_ids, attention_mask = self._left_padded(rows)
        due = torch.zeros_like(attention_mask, dtype=torch.bool)
        due[:, -1] = True
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions(attention_mask)}
        read = with_tokens(owner, trie, due, given)
        return self.model(**read.kwargs, logits_to_keep=len(nodes)).logits.float()

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions(attention_mask),
            logits_to_keep=1,
            **kwargs,
        )

    def _left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        # Padding is masked out. It repeats a row's first token, so the repetition penalty sees no further one.
        input_ids = torch.tensor([[row[0]] * (width - len(row)) + row for row in rows])
        attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return input_ids.to(self.model.device), attention_mask.to(self.model.device)


def _owner(model: PreTrainedModel) -> Any:
    """The model itself, without an adapter around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _size(rows: Sequence[int], lengths: Sequence[int], limits: Sequence[int]) -> int:
    """Tokens of a batch of these rows, with padding, when each has got the tokens that it may get."""
    return len(rows) * (max(lengths[i] for i in rows) + max(limits[i] for i in rows))


def _sample(values: Tensor, count: int = 64) -> list[float]:
    """About `count` of the values, all over the tensor and its columns: the step is odd, and most sizes are even."""
    return values.flatten()[:: values.numel() // count | 1].float().tolist()  # type: ignore[no-any-return]


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig, max_length: int | None) -> Iterator[None]:
    """
    The model in `eval` mode and with `config` instead of its own generation config, which `generate` would merge in. A
    row that has reached `max_length` stays in its batch; its positions stay within the model's table of them.
    """
    owner = _owner(model)

    def clamp(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if max_length is not None and kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].clamp(max=max_length - 1)
        return args, kwargs

    own, hook = owner.generation_config, owner.register_forward_pre_hook(clamp, with_kwargs=True)
    owner.generation_config, REMINDER.disabled = config, True
    try:
        with evaluating(model):
            yield
    finally:
        owner.generation_config, REMINDER.disabled = own, False
        hook.remove()


class RowsEnd(StoppingCriteria):
    """
    Ends each row at a limit of its own, `(B,)`, behind prompts of `width` tokens with padding. Where the rows that go
    on can be parted from the others, `early`, all end as soon as half of them have: those go on in a smaller batch.
    """

    def __init__(self, limits: Sequence[int], width: int, stop_ids: Sequence[int], early: bool) -> None:
        self.limits, self.width, self.stop_ids, self.early = torch.tensor(limits), width, torch.tensor(stop_ids), early

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = self.ended(input_ids)
        return ended | (self.early and ended.float().mean() >= 0.5)

    def ended(self, input_ids: Tensor) -> Tensor:
        """Whether each row has ended, `(B,)`. A row that has is filled up with a token that ends rows."""
        at_limit = (self.limits <= input_ids.size(1) - self.width).to(input_ids.device)
        return at_limit | torch.isin(input_ids[:, -1], self.stop_ids.to(input_ids.device))


def scale_log_probs(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of the tokens `ids`, `(B, K)`, from logits, `(B, V)`. Raises `InputError` if those are NaN."""
    logits = logits.float()
    return logits[:, list(ids)] - log_total(logits)


def log_total(logits: Tensor) -> Tensor:
    """The log-sum-exp of `logits` over the vocabulary, `(..., 1)`. Raises `InputError` if it is not finite."""
    total = logits.logsumexp(-1, keepdim=True)
    if not total.isfinite().all():
        raise InputError(
            "The model's logits are not finite (NaN or infinite), so there is nothing to draw or score. Either it "
            "diverged in training: look for NaN in its losses and train with a lower learning rate. Or it overflows in "
            'float16: load it in another type, e.g. model_kwargs={"dtype": "bfloat16"} or "float32".'
        )
    return total


class ScoreRecorder(LogitsProcessor):
    """Records the log-probabilities of the scale at every step, `(B, K)`, before other processors change the logits."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.steps: list[Tensor] = []  # S tensors, (B, K) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scale_log_probs(scores, self.ids))
        return scores.float()

    def taken(self) -> Tensor:
        """What was recorded since the last call, `(B, S, K)`."""
        steps, self.steps = self.steps, []
        return torch.stack(steps, dim=1)


class SeededDraw(LogitsProcessor):
    """
    Samples the next token of each row and leaves only that token. It inverts the cumulative distribution, likeliest
    token first, at a number from the row's own random stream, so a row's tokens depend neither on the other rows of its
    batch nor on the device.

    Tokens are from the nucleus of Holtzman et al. (2020), "The curious case of neural text degeneration": the likeliest
    tokens up to the one with which their probability reaches `top_p`. No more tokens are sorted than that takes.
    """

    def __init__(
        self, seeds: Sequence[int], max_new_tokens: int, width: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> None:
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        draws = [torch.rand(max_new_tokens, generator=stream, dtype=torch.float64) for stream in streams]
        self.uniforms = torch.stack(draws)  # (B, S)
        self.width, self.temperature, self.top_p = width, temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        known = scores.cpu() if scores.device.type == "mps" else scores  # Apple's GPUs have no float64
        self.uniforms = self.uniforms.to(known.device)
        at = self.uniforms[:, input_ids.size(1) - self.width, None]  # (B, 1)
        tokens, cumulative = self._nucleus(known.float() / self.temperature)  # (B, N) each
        drawn = (cumulative <= at * cumulative[:, -1:]).sum(-1, keepdim=True)  # (B, 1)
        return torch.full_like(known, -torch.inf).scatter(1, tokens.gather(1, drawn), 0).to(scores)

    def _nucleus(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, likeliest first, and their cumulative probability, which is constant after the nucleus."""
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
