"""Turns the keys and values of prompts into a cache for several rationales of each, with room for what is written.

`DynamicLayer` of Transformers concatenates at every step, which copies the keys and values of the whole batch for one
token a row. Shape letters: `P` prompts, `B` rows, `H` heads, `T` tokens, `D` size of a head.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

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
