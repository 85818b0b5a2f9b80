"""A judge whose loss or weights are not finite is not saved, and the last good checkpoint stays."""

import pytest
import torch
from tiny import make_dataset, make_model, make_tokenizer
from transformers import TrainerCallback
from trl import SFTTrainer

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.errors import InputError


class Poison(TrainerCallback):
    """Puts a NaN into the weights before or after a step."""

    def __init__(self, step, when):
        self.step, self.when = step, when

    def _poison(self, model):
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.when == "before" and state.global_step + 1 == self.step:
            self._poison(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.when == "after" and state.global_step == self.step:
            self._poison(model)


def trainer_of(folder, callbacks=(), **settings):
    args = RegressionAwareSFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None, gradient_checkpointing=False,
        save_strategy="steps", per_device_train_batch_size=8, **settings,
    )  # fmt: skip
    tokenizer = make_tokenizer("qwen")
    model = make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return RegressionAwareSFTTrainer(
        model, args, train_dataset=make_dataset(8), processing_class=tokenizer, callbacks=list(callbacks)
    )


@pytest.mark.parametrize("settings", [{"logging_steps": 1}, {"logging_steps": 100}])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path, settings):
    trainer = trainer_of(tmp_path, [Poison(4, "before")], max_steps=8, save_steps=3, **settings)
    with pytest.raises(InputError) as raised:
        trainer.train()
    message = str(raised.value)
    assert message.startswith("The loss is not finite at step 4: training has diverged. The last checkpoint kept: ")
    assert f"{tmp_path}/checkpoint-3." in message and "Lower learning_rate or max_grad_norm" in message
    assert trainer.state.global_step == (4 if settings["logging_steps"] == 1 else 6)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_loss_that_is_not_finite_at_the_end_ends_the_run(tmp_path):
    trainer = trainer_of(tmp_path, [Poison(3, "before")], max_steps=4, save_steps=100, logging_steps=100)
    with pytest.raises(InputError, match=r"at step 3: training has diverged\. The last checkpoint kept: none\."):
        trainer.train()


@pytest.mark.parametrize("save", ["checkpoint", "model"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, save):
    steps = 2 if save == "checkpoint" else 100
    trainer = trainer_of(tmp_path, [Poison(4, "after")], max_steps=4, save_steps=steps, logging_steps=1)
    with pytest.raises(InputError, match=r"^The weights are not finite after step 4: training has diverged\."):
        trainer.train()
        trainer.save_model()
    assert not (tmp_path / "judge_config.json").exists() and not (tmp_path / "model.safetensors").exists()
    kept = [path.name for path in tmp_path.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    assert kept == ([f"checkpoint-{steps}"] if save == "checkpoint" else [])


def test_plain_training_would_have_saved_them(tmp_path):
    trainer = trainer_of(tmp_path, [Poison(4, "after")], max_steps=4, save_steps=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), "_save", SFTTrainer._save)
        trainer.train()
        trainer.save_model()
    assert (tmp_path / "model.safetensors").exists()
