"""The score head: a causal LM whose one forward also returns log-probabilities over the scale.

The forward that computes the cross-entropy runs the backbone once; a hook sees its last hidden states, and only the
rows that predict a score go through the output embedding again: `(N, V)` logits instead of `(B, T, V)`.
Shape letters: `B` rows, `T` tokens, `H` hidden size, `N` scores due, `K` labels of the scale, `V` vocabulary.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from tract_trainer.engines.trie import LabelTrie
from tract_trainer.scale import ScoreTokens
from tract_trainer.training.branches import reading_branches


def add_score_head(model: PreTrainedModel, tokens: ScoreTokens) -> None:
    """
    Wraps `model.forward`: given `score_labels`, `(B, T)` with NaN where no score is due, its output has one more field,
    `score_log_probs` of shape `(N, K)`, float32, rows in the order of `score_labels[:, 1:]` flattened. Without
    `score_labels` the forward is the wrapped one.

    `model` is the causal LM: the base model, if an adapter is around it. Patch after TRL's fused head.
    """
    inner = model.forward
    trie = LabelTrie(tokens) if len(tokens.nodes) > 1 else None
    token_ids = [path[0] for path in tokens.paths]  # (K,)

    # `generate` reads the signature, and DDP and FSDP call the wrapped forward by it.
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, score_labels: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        if score_labels is None:
            return inner(*args, **kwargs)
        # Only where a score is due is read from `score_labels`: FSDP's mixed precision rounds the values.
        due = ~score_labels[:, 1:].isnan()  # (B, T - 1): the token at t is predicted by the hidden state at t - 1
        if trie is not None and due.any():
            with reading_branches(self, trie, due) as states:
                output = inner(*args, **kwargs)
            log_probs = trie.label_log_probs(head_logits(self, states[0]).log_softmax(-1))  # (N, K)
        else:
            # Looked up on each call: FSDP and PEFT replace the backbone after patching.
            with first_output(self.base_model) as seen:
                output = inner(*args, **kwargs)
            hidden = seen[0].last_hidden_state[:, :-1]  # (B, T - 1, H)
            log_probs = head_logits(self, hidden[due.to(hidden.device)]).log_softmax(-1)[:, token_ids]  # (N, K)
        output_class: Any = type(output)
        return _with_score_log_probs(output_class)(**output, score_log_probs=log_probs)

    model.forward = types.MethodType(forward, model)


def head_logits(model: PreTrainedModel, hidden_states: Tensor) -> Tensor:
    """
    The model's own logits for `hidden_states` of shape `(N, H)`: output embedding, then the scaling and the
    soft-capping that the config asks for, in float32. Returns `(N, V)`.
    """
    # The module, not its weight: DeepSpeed and FSDP gather it on call.
    logits = model.get_output_embeddings()(hidden_states).float()
    config = model.config.get_text_config()
    logits = logits * _logit_scale(config)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _logit_scale(config: PretrainedConfig) -> float:
    """Factor between the output embedding and the logits. Each family has its own name for it; most have none."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse, Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / scaling  # Granite and MiniCPM3 divide


@functools.cache
def _with_score_log_probs(output_class: Any) -> Any:
    """`output_class` with a declared field more. DDP and mixed precision rebuild an output from its declared fields."""
    return make_dataclass(
        "Scored" + output_class.__name__,
        [("score_log_probs", Tensor | None, None)],
        bases=(output_class,),
        namespace={"__module__": __name__},
    )


@contextmanager
def first_output(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what `module` returns inside the block. The first entry is the pass that carries the gradient."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
