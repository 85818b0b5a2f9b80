"""Judging held-out records while training."""

import functools
import math

import pytest
import torch
from accelerate import ParallelismConfig
from datasets import Dataset
from peft import LoraConfig
from tiny import check_learned, judge_rows, make_rows, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM

from tract_trainer import Judge, JudgeCallback, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, agreement

RECORDS = [{"prompt": row["prompt"], "score": row["score"]} for row in make_rows(8, conversational=True)]
SETTINGS = {"max_new_tokens": 60, "num_cots": 2}


@pytest.fixture(scope="module")
def trained(judge_folder):
    return functools.partial(train_on, judge_folder)


def train_on(judge_folder, folder, callback=None, **kwargs):
    """Six short steps from a judge that has learned its rows, after which it still knows them."""
    args = RegressionAwareSFTConfig(
        str(folder / "more"),
        max_steps=6,
        per_device_train_batch_size=32,
        learning_rate=1e-4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_length=None,
        **kwargs,
    )
    trainer = RegressionAwareSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(judge_folder),
        args=args,
        train_dataset=Dataset.from_list(judge_rows()),
        processing_class=make_tokenizer(),
    )
    if callback is not None:
        trainer.add_callback(callback(trainer))
    trainer.train()
    check_learned(trainer)
    return trainer


@pytest.fixture(scope="module")
def with_callback(trained, tmp_path_factory):
    return trained(
        tmp_path_factory.mktemp("with"), lambda trainer: JudgeCallback(trainer, RECORDS, steps=3, **SETTINGS)
    )


def logged(trainer, name):
    return {row["step"]: row[name] for row in trainer.state.log_history if name in row}


def test_the_figures_are_those_of_a_judge_made_of_the_model(with_callback):
    trainer = with_callback
    judge = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    judgments = judge.score(RECORDS, **SETTINGS)  # after the last step, which is step 6
    gold = [record["score"] for record in RECORDS]
    expected = agreement([j.score for j in judgments], gold, intervals=False)
    for name in ("pearson", "spearman", "kendall", "rmse", "mae", "unscored"):
        assert logged(trainer, f"judge_rail_{name}")[6] == pytest.approx(expected[name], abs=1e-5)
    assert expected["unscored"] == 0 and all(map(math.isfinite, (expected["pearson"], expected["rmse"])))
    labels = [float(j.label) for j in judgments]
    assert logged(trainer, "judge_decoded_rmse")[6] == pytest.approx(agreement(labels, gold, intervals=False)["rmse"])
    assert 0 < logged(trainer, "judge_mass")[6] <= 1
    assert list(logged(trainer, "judge_rail_rmse")) == [3, 6]


def test_training_goes_as_it_goes_without(with_callback, trained, tmp_path):
    bare = trained(tmp_path)
    assert logged(bare, "loss") == logged(with_callback, "loss")
    assert with_callback.model.training


def test_a_few_judgments_are_printed(trained, tmp_path, capsys):
    trained(tmp_path, lambda trainer: JudgeCallback(trainer, RECORDS, steps=6, shown=2, **SETTINGS))
    shown = capsys.readouterr().out
    assert "Judgments after step 6" in shown and "4.00" in shown and "2.00" in shown and " 3.67 " not in shown


def test_what_cannot_be_judged_is_refused_at_once(trained, tmp_path):
    trainer = trained(tmp_path)
    with pytest.raises(ValueError, match=r"^Record 1 has no gold score"):
        JudgeCallback(trainer, [RECORDS[0], {"prompt": "x"}], steps=1)
    with pytest.raises(ValueError, match=r"^steps must be a whole number of at least 1, got None\.$"):
        JudgeCallback(trainer, RECORDS)
    for records, settings, message in (
        ([], {}, "There are no records to judge"),
        ([{"prompt": "x", "score": 11}], {}, "The gold score of record 0 is 11, off the scale of 1 to 5"),
        ([{"x": 1, "score": 1}], {}, "Record 0: A record needs `instruction`, `response` and `rubric`"),
        (RECORDS, {"foo": 1}, "'foo' is not a setting of a judge's score; known are"),
        (RECORDS, {"num_cots": -1}, "num_cots must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            JudgeCallback(trainer, records, steps=1, **settings)
    assert JudgeCallback(trained(tmp_path / "b", eval_steps=7), RECORDS).steps == 7
    trainer.accelerator.state.parallelism_config = ParallelismConfig(tp_size=2)
    with pytest.raises(ValueError, match="shards models with tensor parallelism"):
        JudgeCallback(trainer, RECORDS, steps=1)


@pytest.fixture
def adapted(judge_folder, tmp_path):
    """A trainer of an adapter on a model that puts its probability on the scale."""
    model = AutoModelForCausalLM.from_pretrained(judge_folder)
    return train_judge(tmp_path, steps=1, model=model, peft_config=LoraConfig(r=4, target_modules="all-linear"))


def test_it_judges_an_adapter(adapted):
    trainer = adapted
    trainer.add_callback(JudgeCallback(trainer, RECORDS, steps=1, unfinished="force", **SETTINGS))
    trainer.train()
    assert logged(trainer, "judge_rail_unscored") == {1: 0}


def test_a_compiled_adapter_is_judged_as_it_is(adapted):
    callback = JudgeCallback(adapted, RECORDS, steps=1, unfinished="force", **SETTINGS)
    expected = [judgment.score for judgment in callback._judge()]
    adapted.model_wrapped = torch.compile(adapted.model, backend="eager")
    assert [judgment.score for judgment in callback._judge()] == expected
    assert adapted.model_wrapped._orig_mod is adapted.model


def test_it_asks_with_the_tokenizer_where_the_trainer_has_a_processor(adapted):
    callback = JudgeCallback(adapted, RECORDS, steps=1, unfinished="force", **SETTINGS)
    expected = [judgment.score for judgment in callback._judge()]
    adapted.processing_class = None  # a stand-in for the processor of a model with images, which is no tokenizer
    assert [judgment.score for judgment in callback._judge()] == expected
