"""Tokens behind a row that the row does not see: where labels of several tokens go on, read in the row's own forward.

Shape letters: `B` rows, `T` tokens, `E` tokens appended, `N` scores due, `J` inner nodes of the trie of labels.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tract_trainer.engines.trie import LabelTrie

MASKED = ("sdpa", "eager")  # implementations of attention that take a mask of any form
CAUSAL = "_causal"  # attribute of a mask: how many first queries see the first keys up to their own, and no other


@functools.cache
def split_attention() -> None:
    """
    From now on, SDPA reads the first queries of a mask marked with `CAUSAL` with its causal kernel, in half the time,
    and only the others with the mask. Without the mark, which any change of the mask loses, all are read as before.
    """
    whole = ALL_ATTENTION_FUNCTIONS["sdpa"]

    @functools.wraps(whole)
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        causal = getattr(attention_mask, CAUSAL, 0)
        if attention_mask is None or not causal or kwargs.get("position_bias") is not None:
            return whole(module, query, key, value, attention_mask, **kwargs)
        first = (states[:, :, :causal] for states in (query, key, value))  # (B, heads, T, D)
        rows, _ = whole(module, *first, None, **{**kwargs, "is_causal": True})
        others, _ = whole(module, query[:, :, causal:], key, value, attention_mask[:, :, causal:], **kwargs)
        return torch.cat([rows, others], dim=1), None  # (B, T + E, heads, D)

    AttentionInterface.register("sdpa", attention)


class Read(NamedTuple):
    """Arguments of a backbone, and where in its output each inner node is: row and token, `(N, J)` each."""

    kwargs: dict[str, Any]
    rows: Tensor
    places: Tensor


def appends_tokens(model: PreTrainedModel) -> bool:
    """
    Whether the inner nodes are appended to the rows of `model`: every layer is attention, over all tokens or a window
    of them, and takes positions and a mask as they are given.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(
        config._attn_implementation in MASKED
        and model._supports_attention_backend
        and not model._is_stateful
        and kinds <= {"full_attention", "sliding_attention"}
    )


def with_tokens(model: PreTrainedModel, trie: LabelTrie, due: Tensor, kwargs: dict[str, Any]) -> Read:
    """The inner nodes behind their rows. Each sees what its root sees, its ancestors and itself; no row sees it."""
    split_attention()
    input_ids, config = kwargs["input_ids"], model.config.get_text_config()
    tokens, depths, ancestors = (x.to(input_ids.device) for x in (trie.tokens, trie.depths, trie.ancestors))
    due, (size, length) = due.to(input_ids.device), input_ids.shape
    rows, roots = due.nonzero(as_tuple=True)  # (N,) each
    before = (due.cumsum(1)[rows, roots] - 1) * len(tokens)  # (N,): tokens appended for earlier scores of the row
    places = length + before[:, None] + torch.arange(len(tokens), device=rows.device)  # (N, J - 1)
    extra, at = int(places.max()) + 1 - length, rows[:, None]

    def extended(values: Tensor, of_nodes: Tensor) -> Tensor:
        values = F.pad(values, (0, extra))  # (B, T + E)
        values[at, places] = of_nodes
        return values

    given = kwargs.get("position_ids")
    positions = torch.arange(length, device=rows.device).expand(size, -1) if given is None else given.expand(size, -1)
    seen = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()  # (T, T)
    causal = True
    if (attended := kwargs.get("attention_mask")) is not None:
        causal, seen = bool(attended.all()), seen & attended.bool()[:, None]  # (B, T, T)
    elif given is not None:  # without a mask, positions that start again begin another document
        document = F.pad(positions.diff(dim=1) != 1, (1, 0)).cumsum(1)
        causal, seen = not document.any(), seen & (document[:, None] == document[:, :, None])
    seen = F.pad(seen.expand(size, -1, -1), (0, extra, 0, extra))  # (B, T + E, T + E)
    seen[at, places] = seen[rows, roots][:, None]
    seen[at[..., None], places[..., None], places[:, None]] = ancestors
    seen.diagonal(dim1=1, dim2=2).fill_(True)  # padding: a token that sees nothing has no softmax
    positions = extended(positions, positions[rows, roots][:, None] + depths)
    kwargs = {
        **kwargs,
        "input_ids": extended(input_ids, tokens),
        "position_ids": positions,
        "attention_mask": _masks(config, seen, positions, positions, model.dtype, length if causal else 0),
    }
    return Read(kwargs, at.expand(-1, places.size(1) + 1), torch.cat([roots[:, None], places], dim=1))


def behind_cache(model: PreTrainedModel, trie: LabelTrie, seen: Tensor) -> dict[str, Tensor]:
    """
    Arguments with which `model` reads the inner nodes alone, behind tokens whose keys and values are kept. `seen`,
    `(B, T)`, bool, tells which of these stand before the label.
    """
    tokens, depths, ancestors = (x.to(seen.device) for x in (trie.tokens, trie.depths, trie.ancestors))
    size, keys = len(seen), seen.cumsum(1) - 1  # (B, T)
    positions = keys[:, -1:] + depths  # (B, J - 1)
    visible = torch.cat([seen[:, None].expand(-1, len(tokens), -1), ancestors.expand(size, -1, -1)], dim=2)
    mask = _masks(model.config.get_text_config(), visible, positions, torch.cat([keys, positions], 1), model.dtype)
    return {"input_ids": tokens.expand(size, -1), "position_ids": positions, "attention_mask": mask}


def _masks(config: Any, seen: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype, causal: int = 0) -> Any:
    """
    `seen`, which key each query sees, `(B, Q, K)`, as the model's layers take it: one mask, or one for each kind of
    layer. `queries`, `(B, Q)`, and `keys`, `(B, K)`, are positions. The first `causal` queries see the first keys up to
    their own.
    """

    def mask(visible: Tensor) -> Tensor:
        if config._attn_implementation == "sdpa":
            found = visible[:, None]
            if visible is seen:
                setattr(found, CAUSAL, causal)
            return found
        hidden = torch.finfo(dtype).min
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, hidden)[:, None]

    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return mask(seen)
    within = mask(seen & (queries[:, :, None] - keys[:, None] < window))
    return {"full_attention": mask(seen), "sliding_attention": within} if kinds else within
