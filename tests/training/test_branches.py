"""Labels of several tokens are trained exactly: against one forward for each place where a label goes on."""

import functools
import re
from typing import Any

import pytest
import test_trainer
import torch
from naive import Row, assert_same_step, distance, label_paths, naive_row, naive_step, step_gradients
from test_compatibility import vision_language_model
from test_trainer import NO_DROPOUT, TOKENIZER, WEIGHT, build
from tiny import PREFIX, RATIONALES, make_tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from tract_trainer.errors import InputError
from tract_trainer.scale import ScoreScale, ScoreTokens
from tract_trainer.training.branches import appends_tokens
from tract_trainer.training.limits import refuse_long_labels

make_trainer, quick = test_trainer.make_trainer, test_trainer.quick

WORDS = ["disagree", "strongly disagree", "neutral", "agree", "agree strongly"]
SCALES = {
    "1-10": ScoreScale.integers(1, 10),
    "0-100": ScoreScale.integers(0, 100),
    "1-5 by .5": ScoreScale.steps(1, 5, 0.5),
    "words": ScoreScale(WORDS, [1, 0, 2, 3, 4]),
    "signs": ScoreScale(["-2", "-1", "0", "+1", "+2"]),
}
LORA = {"target_modules": "all-linear", "r": 4}


def rows_of(scale: ScoreScale, count: int = 8, every: int = 3) -> list[dict[str, Any]]:
    """Rows that end with labels all over the scale, the first and the last of them included, with fractional scores."""
    labels = sorted(scale.labels, key=scale.value)
    rows = []
    for i in range(count):
        label = labels[-1] if i == 1 else labels[(i * every) % len(labels)]
        gold = min(scale.value(label) + 0.1 * (i % 3) * (scale.value(labels[1]) - scale.value(labels[0])), scale.high)
        prompt = f"Rate the response from 1 to 5. The response names {i} facts.\n"
        rows.append({"prompt": prompt, "completion": f"{RATIONALES[i % 8]} {PREFIX}{label}", "score": gold})
    return rows


def naive_rows_of(tokenizer: Any, scale: ScoreScale, rows: list[dict[str, Any]]) -> list[Row]:
    """The rows with the place of the first token of each label's path."""
    paths, found = label_paths(tokenizer, scale.labels), []
    for row in rows:
        text = row["prompt"] + row["completion"] + tokenizer.eos_token
        ids, labels, _ = naive_row(tokenizer, text, [(len(row["prompt"]), len(text))], None)
        if row["score"] is None:
            found.append(Row(ids, labels, []))
            continue
        path = paths[scale.labels.index(row["completion"].rpartition(PREFIX)[2])]
        place = max(i for i in range(len(ids)) if ids[i : i + len(path)] == path)
        found.append(Row(ids, labels, [(place, row["score"])]))
    return found


def expected(
    tokenizer: Any,
    scale: ScoreScale,
    rows: list[dict[str, Any]],
    model: PreTrainedModel,
    loss: Any = None,
    **kwargs: Any,
) -> Any:
    values, paths = torch.tensor(scale.values), label_paths(tokenizer, scale.labels)
    settings = {"score_weight": WEIGHT, "paths": paths, "values": values, **kwargs}
    term = functools.partial(loss or soft_ce, values=values)
    return naive_step(model, [], naive_rows_of(tokenizer, scale, rows), loss=term, **settings)


def squared_error(log_probs: Tensor, gold: float, values: Tensor) -> Tensor:
    """In units of a quarter of the scale."""
    return (((log_probs.exp() * values).sum() - gold) * 4 / (values.max() - values.min())) ** 2


def soft_ce(log_probs: Tensor, gold: float, values: Tensor) -> Tensor:
    """
    Minus the mean log-probability of the two labels next to `gold`. Unlike the expected score, it depends on labels of
    small probability, as those that go on from another label are to a random model.
    """
    order = values.argsort().tolist()
    above = next(i for i, k in enumerate(order) if values[k] >= gold - 1e-6)
    if abs(values[order[above]] - gold) < 1e-6:
        return -log_probs[order[above]]
    below, above = order[above - 1], order[above]
    share = (gold - values[below]) / (values[above] - values[below])
    return -(1 - share) * log_probs[below] - share * log_probs[above]


def arguments(scale: ScoreScale, loss: str = "soft_ce") -> dict[str, Any]:
    return {"score_labels": list(scale.labels), "score_values": list(scale.values), "score_loss_type": loss}


@pytest.mark.parametrize("loss", [squared_error, soft_ce])
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("family", ["qwen", "gpt2", "mistral"])
def test_a_step_is_the_naive_one_whatever_the_scale_and_the_tokenizer(make_trainer, family, name, loss):
    tokenizer, scale = make_tokenizer(family), SCALES[name]
    rows, settings = rows_of(scale), arguments(scale, loss.__name__)
    trainer = make_trainer(build(vocab_size=len(tokenizer)), rows, tokenizer=tokenizer, **settings)
    log, gradients = step_gradients(trainer)
    found = expected(tokenizer, scale, rows, build(vocab_size=len(tokenizer)), loss)
    assert_same_step(log, gradients, found)
    assert log["score_mae"] == pytest.approx(found.score_mae, rel=1e-5)
    assert log["score_mass"] == pytest.approx(found.score_mass, rel=1e-5)


KINDS = {
    "llama_tied": {},
    "qwen3": {},
    "qwen3 with a window": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
    "gemma2": {"_attn_implementation": "eager"},  # soft-capped, every second layer sees a window
    "gemma2 with a short window": {"_attn_implementation": "eager", "sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "mistral eager": {"sliding_window": 6, "_attn_implementation": "eager"},
    "granite": {},
    "cohere": {},
    "phi_bias": {},
    "gpt2": NO_DROPOUT,
}


ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}


@pytest.mark.parametrize(("lora", "layout"), [(None, {}), (LORA, ONE_BY_ONE)], ids=["full", "lora, one by one"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_naive_one_whatever_the_model(make_trainer, kind, lora, layout):
    scale, name = SCALES["1-5 by .5"], kind.split()[0]
    trainer = make_trainer(build(name, lora, **KINDS[kind]), rows_of(scale), **arguments(scale), **layout)
    assert appends_tokens(trainer.accelerator.unwrap_model(trainer.model))
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected(TOKENIZER, scale, rows_of(scale), build(name, lora, **KINDS[kind])))


def test_bf16_costs_no_more_than_the_naive_step_in_bf16(make_trainer):
    scale = SCALES["1-10"]
    rows = rows_of(scale)
    trainer = make_trainer(build(), rows, bf16=True, **arguments(scale))
    _, gradients = step_gradients(trainer)
    exact = expected(TOKENIZER, scale, rows, build())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = expected(TOKENIZER, scale, rows, build())
    own = distance(rounded.gradients, exact.gradients)
    assert 1e-3 < own < 0.1
    assert distance(gradients, exact.gradients) < 1.5 * own


LAYOUTS: dict[str, dict[str, Any]] = {
    "2x4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "1x8": ONE_BY_ONE,
    "1x8, checkpointed": {"gradient_checkpointing": True, **ONE_BY_ONE},
    "checkpointed": {"gradient_checkpointing": True},
    "checkpointed reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "padding-free": {"padding_free": True},
    "packed": {"packing": True, "max_length": 128, **ONE_BY_ONE},
    "padded to a multiple": {"pad_to_multiple_of": 64},
}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_naive_one_however_it_is_laid_out(make_trainer, kind, layout):
    scale, model = SCALES["1-10"], {"sliding_window": 6} if kind == "mistral" else {}
    rows = test_trainer.without_scores(rows_of(scale), 2, 5)
    trainer = make_trainer(build(kind, **model), rows, missing_score="keep", **arguments(scale), **LAYOUTS[layout])
    found = expected(TOKENIZER, scale, rows, build(kind, **model))
    assert len(found.gold) == 6
    assert_same_step(*step_gradients(trainer), found)


@pytest.mark.parametrize(("layout", "causal"), [("1x8", True), ("1x8, checkpointed", True), ("packed", False)])
def test_rows_without_padding_keep_the_causal_kernel(make_trainer, monkeypatch, layout, causal):
    kernels = set()
    attend = functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: Any, attn_mask: Tensor | None, is_causal: bool, **kwargs: Any) -> Tensor:
        assert is_causal == (attn_mask is None)
        kernels.add("causal" if attn_mask is None else "node" if attn_mask.size(-2) == 1 else "whole")
        return attend(query, *args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    step_gradients(make_trainer(build(), rows_of(SCALES["1-10"]), **arguments(SCALES["1-10"]), **LAYOUTS[layout]))
    assert kernels == ({"causal", "node"} if causal else {"whole"})


@pytest.mark.parametrize("gold", range(1, 11))
def test_every_branch_may_be_the_gold_one(make_trainer, gold):
    scale = SCALES["1-10"]
    row = {"prompt": "Rate it.\n", "completion": f"Clear. {PREFIX}{gold}", "score": float(gold)}
    log, gradients = step_gradients(make_trainer(build(), [row], **arguments(scale)))
    assert_same_step(log, gradients, expected(TOKENIZER, scale, [row], build()))


def test_what_trl_logs_does_not_see_the_inner_nodes(make_trainer):
    """Entropy, accuracy and tokens are those of the same rows under a scale of single tokens."""
    rows = [{**row, "score": None} for row in rows_of(ScoreScale.integers(1, 5), every=1)]
    rows = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
    logs = [
        step_gradients(make_trainer(build(), rows, **arguments(scale)))[0]
        for scale in (SCALES["1-10"], ScoreScale.integers(1, 5))
    ]
    for name in ("ce_loss", "entropy", "mean_token_accuracy", "num_tokens"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-6), name


def test_the_whole_label_can_stay_out_of_the_cross_entropy(make_trainer):
    scale = SCALES["1-5 by .5"]
    trainer = make_trainer(build(), rows_of(scale), score_token_in_ce=False, **arguments(scale))
    found = expected(TOKENIZER, scale, rows_of(scale), build(), score_token_in_ce=False)
    assert_same_step(*step_gradients(trainer), found)


def test_experts_balance_over_the_row_alone(make_trainer):
    """The auxiliary loss is that of the same rows with the score term left out."""
    scale, rows = SCALES["1-10"], rows_of(SCALES["1-10"])
    logs = [
        step_gradients(make_trainer(build("mixtral"), rows, cls=cls, **settings))[0]
        for cls, settings in (
            (test_trainer.RegressionAwareSFTTrainer, arguments(scale)),
            (test_trainer.SFTTrainer, {}),
        )
    ]
    assert logs[0]["aux_loss"] == pytest.approx(logs[1]["aux_loss"], rel=1e-5)
    assert logs[0]["ce_loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)


@pytest.mark.filterwarnings("ignore:`return_outputs=True`:FutureWarning")
def test_evaluation_gives_the_logits_of_the_row_alone(make_trainer):
    shapes = []

    def compute_metrics(predicted: Any) -> dict[str, float]:
        shapes.append((predicted.predictions.shape[:2], predicted.label_ids.shape))
        return {}

    scale = SCALES["1-10"]
    trainer = make_trainer(build(), rows_of(scale), compute_metrics=compute_metrics, **arguments(scale))
    found = trainer.evaluate(trainer.train_dataset)
    assert shapes[0][0] == shapes[0][1]
    naive = expected(TOKENIZER, scale, rows_of(scale), build())
    assert found["eval_score_mae"] == pytest.approx(naive.score_mae, rel=1e-5)


def test_a_model_with_images_reads_text_so_too(make_trainer):
    scale = SCALES["1-10"]
    trainer = make_trainer(vision_language_model(), rows_of(scale), **arguments(scale))
    log, gradients = step_gradients(trainer)
    found = expected(TOKENIZER, scale, rows_of(scale), vision_language_model())
    assert_same_step(log, gradients, found)


# Rows of their own


@pytest.fixture
def rows_alone(monkeypatch):
    """Every model reads inner nodes in rows of their own, as one with recurrent layers does."""
    monkeypatch.setattr("tract_trainer.training.branches.appends_tokens", lambda model: False)
    monkeypatch.setattr("tract_trainer.training.limits.appends_tokens", lambda model: False)


@pytest.mark.parametrize("layout", ["2x4", "checkpointed", "padded to a multiple"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "mixtral"])
def test_inner_nodes_in_rows_of_their_own_give_the_same_step(make_trainer, rows_alone, kind, layout):
    scale = SCALES["1-10"]
    log, gradients = step_gradients(make_trainer(build(kind), rows_of(scale), **arguments(scale), **LAYOUTS[layout]))
    if kind == "mixtral":
        assert log["aux_loss"] > 0
        return
    assert_same_step(log, gradients, expected(TOKENIZER, scale, rows_of(scale), build(kind)))


def test_a_recurrent_model_reads_inner_nodes_in_rows_of_their_own(make_trainer):
    def model() -> PreTrainedModel:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
        config = MambaConfig(vocab_size=len(TOKENIZER), **sizes)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    scale = SCALES["1-10"]
    trainer = make_trainer(model(), rows_of(scale), **arguments(scale))
    assert not appends_tokens(trainer.model)
    found = expected(TOKENIZER, scale, rows_of(scale), model())
    assert_same_step(*step_gradients(trainer), found)


def test_what_cannot_be_read_is_refused_with_the_ways_out(rows_alone):
    model = build()
    model.config._attn_implementation = "flash_attention_2"
    letters = "labels of one token, such as the letters score_labels=['A', ..., 'J'] with score_values=[1, ..., 10]."
    refused = {
        (
            "1-10",
            True,
        ): "Set model_init_kwargs={'attn_implementation': 'sdpa'}, or padding_free=False and packing=False, "
        f"or {letters}",
        ("1-5 by .5", False): f"Set model_init_kwargs={{'attn_implementation': 'sdpa'}}, or {letters}",
    }
    for (name, padding_free), ways in refused.items():
        tokens = ScoreTokens.resolve(SCALES[name], PREFIX, TOKENIZER)
        with pytest.raises(InputError, match=re.escape(ways)):
            refuse_long_labels(tokens, model, padding_free)
    refuse_long_labels(ScoreTokens.resolve(SCALES["1-10"], PREFIX, TOKENIZER), model, False)
    refuse_long_labels(ScoreTokens.resolve(ScoreScale.integers(1, 5), PREFIX, TOKENIZER), model, True)
