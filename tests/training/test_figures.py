"""The figures of an evaluation count each score once, and no score of another evaluation."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny import make_dataset, make_model, make_tokenizer

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.training.figures import ScoreFigures


def test_batches_of_an_interrupted_evaluation_are_forgotten(tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    settings = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": None}
    trainer = RegressionAwareSFTTrainer(
        make_model(vocab_size=len(tokenizer)),
        RegressionAwareSFTConfig(str(tmp_path), per_device_eval_batch_size=1, **settings),
        train_dataset=make_dataset(8),
        eval_dataset=make_dataset(4),
        processing_class=tokenizer,
    )
    whole, own_step, steps = trainer.evaluate(), trainer.prediction_step, iter([False, False, True])

    def interrupted(*args, **kwargs):
        if next(steps):
            raise KeyboardInterrupt
        return own_step(*args, **kwargs)

    monkeypatch.setattr(trainer, "prediction_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    monkeypatch.undo()
    again = trainer.evaluate()
    scores = [name for name in whole if "score" in name or "ce_loss" in name]
    assert len(scores) == 7
    assert {name: again[name] for name in scores} == {name: whole[name] for name in scores}


class OutOfMemoryOnce(RegressionAwareSFTTrainer):
    """Its first batch does not fit, after the loss was taken."""

    steps = 0

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.steps += 1
        if self.steps == 1:
            raise RuntimeError("CUDA out of memory.")
        return loss


def test_an_attempt_that_ran_out_of_memory_is_forgotten(tmp_path):
    tokenizer, settings = make_tokenizer(), {"max_steps": 2, "logging_steps": 1, "auto_find_batch_size": True}
    settings |= {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "max_length": None}
    args = RegressionAwareSFTConfig(str(tmp_path), **settings)
    model = make_model(vocab_size=len(tokenizer))
    trainer = OutOfMemoryOnce(model, args, train_dataset=make_dataset(8), processing_class=tokenizer)
    trainer.train()
    assert trainer.steps == 3
    for entry in trainer.state.log_history[:2]:
        assert entry["ce_loss"] + entry["score_loss"] == pytest.approx(entry["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Dataset.from_dict({"score_labels": [[math.nan, 3.0], [math.nan, 5.0]]}), 1.0),  # (0 + 2) / 2
        (Dataset.from_dict({"input_ids": [[1, 2], [1, 2]]}), 2 / 3),  # (0 + 2 + 0) / 3
        (Dataset.from_dict({"input_ids": [[1, 2], [1, 2]]}).to_iterable_dataset(), 2 / 3),
    ],
    ids=["prepared", "unprepared", "stream"],
)
def test_of_several_processes_rows_that_fill_the_last_batch_are_left_out_or_it_is_said(dataset, expected, caplog):
    figures = ScoreFigures(
        SimpleNamespace(num_processes=2, process_index=0, device="cpu", parallelism_config=None),
        torch.tensor([3.0, 5.0]),
        False,
    )
    sure_of_3 = torch.tensor([[0.0, -math.inf]] * 3)
    figures.add(False, torch.zeros(()), torch.zeros(3), sure_of_3, gold=torch.tensor([3.0, 5.0, 3.0]))
    with caplog.at_level(logging.WARNING, logger="tract_trainer.training.figures"):
        assert figures.evaluation(dataset)["score_mae"] == pytest.approx(expected)
    said = [record.getMessage() for record in caplog.records if record.name == "tract_trainer.training.figures"]
    assert len(said) == (0 if expected == 1.0 else 1)
    assert all("so the rows that fill the last batches count twice in its figures" in text for text in said)
