"""Log-probabilities of labels of several tokens, from those of the next token at each place where a label goes on.

Shape letters: `N` scores due, `J` inner nodes of the trie of labels, `K` labels of the scale, `V` vocabulary.
"""

import torch
from torch import Tensor

from tract_trainer.scale import ScoreTokens


class LabelTrie:
    """
    The trie of [`~tract_trainer.scale.ScoreTokens`] as tensors. Its inner nodes are numbered as in `ScoreTokens.nodes`:
    the root is 0, and parents come before their children.

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
        """Log-probability of each label, `(N, K)`, from those of the next token at each inner node, `(N, J, V)`."""
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
