"""Turns the score terms of many batches into the numbers that are logged.

Training keeps sums on the device and reduces them when they are logged; evaluation keeps one row per score and compares
all of them at the end. `N` is the number of scores due in a batch.
"""

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor

from tract_trainer.losses import expected_score, score_mass
from tract_trainer.metrics import agreement
from tract_trainer.training.score_labels import count_scores

logger = get_logger(__name__)

MEANS = ("score_loss", "score_mae", "score_mass")


class ScoreFigures:
    """Figures of the batches of all processes of `accelerator`. `values` of the labels are `(K,)`."""

    def __init__(self, accelerator: Accelerator, values: Tensor, renormalize_scores: bool) -> None:
        self.accelerator, self.values, self.renormalize_scores = accelerator, values, renormalize_scores
        self.steps = 0
        self._sums = torch.zeros(5, device=accelerator.device)  # score loss, absolute error, mass, ce loss, count
        self._batches: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def add(self, training: bool, ce_loss: Tensor, losses: Tensor, log_probs: Tensor, gold: Tensor) -> None:
        """
        Takes in a batch, without waiting for the device: its share of the step's cross-entropy, or in evaluation its
        mean; score losses and gold scores, `(N,)`; log-probabilities of the labels, `(N, K)`.
        """
        predicted = expected_score(log_probs, self.values, self.renormalize_scores)
        rows = torch.stack([losses, (predicted - gold).abs(), score_mass(log_probs), predicted, gold], dim=1)  # (N, 5)
        if training:
            sums = torch.cat([rows[:, :3].sum(0), ce_loss.reshape(1), losses.new_tensor([len(gold)])])
            self._sums += sums.to(self._sums.device)
        else:
            self._batches.append((ce_loss, rows))

    def training_means(self) -> dict[str, float]:
        """Means since the last call, on all processes: of the cross-entropy over steps, of the others over scores."""
        totals = self.accelerator.reduce(self._sums.clone(), "sum").tolist()
        means = {"ce_loss": totals[3] / self.accelerator.num_processes / max(self.steps, 1)}
        if totals[4]:
            means |= {name: total / totals[4] for name, total in zip(MEANS, totals, strict=False)}
        self.begin_training()
        return means

    def begin_training(self) -> None:
        """Forgets a window that was not logged."""
        self._sums.zero_()
        self.steps = 0

    def begin_evaluation(self) -> None:
        """Forgets the batches of an evaluation that was interrupted."""
        self._batches = []

    def evaluation(self, dataset: object) -> dict[str, float]:
        """
        Figures of the batches since `begin_evaluation`, over all processes. `dataset` is what was evaluated; it tells
        the number of scores.
        """
        batches = [
            (step, self.accelerator.process_index, float(ce_loss), rows.cpu())
            for step, (ce_loss, rows) in enumerate(self._batches)
        ]
        self._batches = []
        if self.accelerator.num_processes > 1:
            parallelism = self.accelerator.parallelism_config
            alike = parallelism.tp_size if parallelism is not None else 1  # neighbours that were given the same batches
            batches = sorted(gather_object(batches), key=lambda batch: batch[:2])[::alike]  # the order of the dataset
        if not batches:
            return {}
        rows = torch.cat([batch[3] for batch in batches])
        if self.accelerator.num_processes > 1:  # the last batches repeat the first rows to be of equal size
            if isinstance(dataset, Dataset) and "score_labels" in dataset.column_names:
                rows = rows[: count_scores(dataset)]
            else:
                logger.warning(
                    "A stream, or a dataset without the column `score_labels`, does not tell how many scores it holds, "
                    "so the rows that fill the last batches count twice in its figures. Evaluate on one process, or "
                    "let the trainer prepare a dataset."
                )
        figures = {"ce_loss": sum(batch[2] for batch in batches) / len(batches)}
        if len(rows):
            figures |= dict(zip(MEANS, rows[:, :3].mean(0).tolist(), strict=True))
            found = agreement(rows[:, 3].tolist(), rows[:, 4].tolist(), intervals=False)
            figures |= {f"score_{name}": found[name] for name in ("pearson", "spearman", "rmse")}
        return figures
