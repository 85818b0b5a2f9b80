"""Log-probabilities of labels of several tokens, from those of the next token at each place where a label goes on.

Shape letters: `N` scores due, `J` inner nodes of the trie of labels, `K` labels of the scale, `V` vocabulary.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tract_trainer.scale import ScoreTokens


class LabelTrie:
    """
    The trie of [`~tract_trainer.scale.ScoreTokens`] as tensors. Its inner nodes are numbered as in `ScoreTokens.nodes`:
    the root is 0, and parents come before their children.

    Args:
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as the tokenizer writes it.

    Attributes:
        paths (`torch.Tensor`): tokens from the root to each other inner node, `(J - 1, D)`, then 0.
        depths (`torch.Tensor`): number of these tokens, `(J - 1,)`.
        tokens (`torch.Tensor`): the last of them, `(J - 1,)`.
        ancestors (`torch.Tensor`):
            Whether the path to an inner node (row) leads through another one (column) or ends there, `(J - 1, J - 1)`.
    """

    def __init__(self, tokens: ScoreTokens) -> None:
        _, *inner = tokens.nodes
        depth = max(map(len, inner), default=0)
        self.paths = torch.tensor([[*node, *[0] * (depth - len(node))] for node in inner], dtype=torch.long)
        self.depths = torch.tensor([len(node) for node in inner], dtype=torch.long)
        self.tokens = torch.tensor([node[-1] for node in inner], dtype=torch.long)
        self.ancestors = torch.tensor([[node[: len(other)] == other for other in inner] for node in inner])
        number = {node: i for i, node in enumerate(tokens.nodes)}
        steps = sorted({(number[path[:i]], token) for path in tokens.paths for i, token in enumerate(path)})
        self._steps = torch.tensor(steps).unbind(1)  # node and token, one each a step
        self._stops = [(number[node], tokens.children(node)) for path in tokens.paths for node in tokens.stops(path)]
        term = {step: i for i, step in enumerate([*steps, *((node, None) for node, _ in self._stops)])}

        def walk(path: tuple[int, ...]) -> list[int]:
            return [term[number[path[:i]], token] for i, token in enumerate(path)]

        # The ways to end as each label, and the terms of the log-probability of each way.
        of_label = [
            [[*walk(node), term[number[node], None]] for node in tokens.stops(path)] or [walk(path)]
            for path in tokens.paths
        ]
        self._ends = _padded([end for found in of_label for end in found], len(term))  # (ends, terms of the longest)
        numbers = iter(range(len(self._ends)))
        self._of_label = _padded([[next(numbers) for _ in found] for found in of_label], len(self._ends))  # (K, ends)

    def label_log_probs(self, log_probs: Tensor) -> Tensor:
        """
        Log-probability of each label, `(N, K)`.

        Args:
            log_probs (`torch.Tensor`): log-probabilities of the next token at each inner node, `(N, J, V)`.
        """
        nodes, tokens = self._steps
        # That no label goes on: the sum over all other tokens, which is more exact than 1 minus that over a few.
        stops = [
            log_probs[:, node].index_fill(-1, torch.tensor(children, device=log_probs.device), -torch.inf).logsumexp(-1)
            for node, children in self._stops
        ]
        zero = log_probs.new_zeros(len(log_probs), 1)
        terms = torch.cat([log_probs[:, nodes, tokens], *(stop[:, None] for stop in stops), zero], dim=1)
        ends = torch.cat([terms[:, self._ends].sum(-1), zero - torch.inf], dim=1)
        return ends[:, self._of_label].logsumexp(-1)


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


MASKED = ("sdpa", "eager")
"""Implementations of attention that take a mask of any form."""


CAUSAL = "_causal"
"""Attribute of a mask: the number of first queries that see the first keys up to their own, and no other."""


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
    Arguments with which `model` reads the inner nodes alone, behind tokens whose keys and values are kept.

    Args:
        seen (`torch.Tensor`): which of the tokens that are kept stand before the label, `(B, T)`, bool.
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
