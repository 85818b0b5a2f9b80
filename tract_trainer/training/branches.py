"""The states at which a label of several tokens goes on, read in the forward that reads the row.

A row holds the tokens of one label. The probability of another one, such as "10" on a row that ends with 7, also needs
the next token behind tokens that the row does not hold: at the inner nodes of the trie of labels. They are appended to
the row, out of its sight; or put into rows of their own, where a model cannot keep them apart. Whoever calls the
backbone gets the states of its rows alone, so no other loss and no metric sees them.

Shape letters: `B` rows, `T` tokens, `N` scores due, `J` inner nodes of the trie, `H` hidden size, `E` tokens appended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tract_trainer.engines.attention import Read, appends_tokens, with_tokens
from tract_trainer.engines.trie import LabelTrie


@contextmanager
def reading_branches(model: PreTrainedModel, trie: LabelTrie, due: Tensor) -> Iterator[list[Tensor]]:
    """
    Inside the block, the backbone of the causal LM `model` reads the inner nodes of `trie` with its rows. Yields for
    each forward the states at the root and the other inner nodes, `(N, J, H)`. `due`, `(B, T - 1)`, bool, tells the
    tokens behind which a label is due.
    """
    states: list[Tensor] = []
    reads: list[Read] = []

    def extend(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        reads.append(with_tokens(model, trie, due, kwargs) if appends_tokens(model) else _with_rows(trie, due, kwargs))
        return args, reads[-1].kwargs

    def cut(_module: Any, _args: Any, output: Any) -> Any:
        hidden, read, (rows, tokens) = output.last_hidden_state, reads[-1], (len(due), due.size(1) + 1)
        states.append(hidden[read.rows.to(hidden.device), read.places.to(hidden.device)])
        output.last_hidden_state = hidden[:rows, :tokens]
        routers = getattr(output, "router_logits", None)
        if routers is not None:  # (B * T, experts) for each layer
            by_row = (logits.unflatten(0, hidden.shape[:2]) for logits in routers)
            output.router_logits = tuple(logits[:rows, :tokens].flatten(0, 1) for logits in by_row)
        return output

    # Looked up on each call: FSDP and PEFT replace the backbone after patching.
    backbone = model.base_model
    handles = [backbone.register_forward_pre_hook(extend, with_kwargs=True), backbone.register_forward_hook(cut)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _with_rows(trie: LabelTrie, due: Tensor, kwargs: dict[str, Any]) -> Read:
    """The inner nodes in rows of their own, each with the tokens up to its root and from there to the node."""
    input_ids = kwargs["input_ids"]
    paths, depths = (values.to(input_ids.device) for values in (trie.paths, trie.depths))  # (J - 1, D), (J - 1,)
    rows, roots = due.to(input_ids.device).nonzero(as_tuple=True)  # (N,) each
    ends = roots[:, None] + depths  # (N, J - 1)
    length = max(input_ids.size(1), int(ends.max()) + 1)

    def extended(values: Tensor, of_nodes: Tensor) -> Tensor:
        values = F.pad(values, (0, length - values.size(1)))  # (B, T)
        copies = values[rows][:, None].repeat(1, len(depths), 1)  # (N, J - 1, T)
        after = roots[:, None, None] + 1 + torch.arange(paths.size(1), device=roots.device)  # (N, 1, D)
        copies.scatter_(2, after.expand(*ends.shape, -1), of_nodes.to(values.dtype).expand(*ends.shape, -1))
        return torch.cat([values, copies.flatten(0, 1)])

    attention_mask = extended(kwargs["attention_mask"], torch.ones_like(paths))
    tokens = torch.arange(length, device=roots.device)
    attention_mask[len(input_ids) :] *= tokens <= ends.flatten()[:, None]
    kwargs = {**kwargs, "input_ids": extended(input_ids, paths), "attention_mask": attention_mask}
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = tokens.expand(len(attention_mask), -1)
    own = len(input_ids) + torch.arange(ends.numel(), device=rows.device).view_as(ends)
    return Read(kwargs, torch.cat([rows[:, None], own], dim=1), torch.cat([roots[:, None], ends], dim=1))
