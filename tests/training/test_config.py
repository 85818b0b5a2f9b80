"""The training arguments that are read in a way of their own."""

from dataclasses import fields

import pytest
from trl import GRPOConfig, SFTConfig

from tract_trainer import RegressionAwareGRPOConfig, RegressionAwareSFTConfig
from tract_trainer.errors import InputError


def config(**kwargs):
    return RegressionAwareSFTConfig("x", use_cpu=True, bf16=False, report_to="none", **kwargs)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("score_rmse", False), ("eval_score_mae", False), ("score_pearson", True), ("score_loss", False)],
)
def test_the_best_checkpoint_is_the_one_with_the_smaller_error(metric, greater):
    args = config(
        metric_for_best_model=metric, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps"
    )
    assert args.greater_is_better is greater


def test_what_the_user_says_of_the_metric_stays():
    assert config(metric_for_best_model="score_rmse", greater_is_better=True).greater_is_better is True


def test_chat_template_kwargs_are_a_mapping_or_json():
    assert config(chat_template_kwargs='{"enable_thinking": false}').template_kwargs == {"enable_thinking": False}
    assert config().template_kwargs == {}
    for wrong in ("[1]", "{", 3):
        with pytest.raises(InputError, match="chat_template_kwargs must be a mapping or JSON"):
            config(chat_template_kwargs=wrong)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(RegressionAwareSFTConfig, SFTConfig), (RegressionAwareGRPOConfig, GRPOConfig)]
)
def test_defaults_are_those_of_trl(ours, theirs):
    known = {field.name: field for field in fields(ours)}
    for field in fields(theirs):
        found = known[field.name]
        assert (found.default, found.default_factory) == (field.default, field.default_factory), field.name
