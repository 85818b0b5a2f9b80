"""One optimizer step of the trainer is the naive full-logits step: its loss and every gradient."""

import gc
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from datasets import Dataset
from naive import (
    Row,
    assert_same_gradients,
    assert_same_step,
    distance,
    naive_row,
    naive_rows,
    naive_step,
    score_token_ids,
    split_rows,
    step_gradients,
)
from peft import LoraConfig, get_peft_model
from scipy import stats
from tiny import PREFIX, make_model, make_rows, make_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.errors import InputError
from tract_trainer.losses import SCORE_LOSSES

TOKENIZER = make_tokenizer("qwen")
IDS = score_token_ids(TOKENIZER)
WEIGHT = 0.7
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # gpt2 has it by default


def build(kind: str = "llama", lora: dict[str, Any] | None = None, **overrides: Any) -> PreTrainedModel:
    """The same weights on every call. An adapter starts from random weights, or half of its gradients would be 0."""
    model = make_model(kind, **{"vocab_size": len(TOKENIZER), **overrides})
    if lora is None:
        return model
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(init_lora_weights=False, **lora))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Each trainer collects garbage, which means looking at all that was ever imported: half of a test's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., SFTTrainer]:
    """A trainer for one step over 8 rows, unless told otherwise."""

    def make(
        model: nn.Module,
        rows: Any,
        cls: type[SFTTrainer] = RegressionAwareSFTTrainer,
        tokenizer: Any = TOKENIZER,
        eval_dataset: Any = None,
        peft_config: Any = None,
        formatting_func: Any = None,
        compute_metrics: Any = None,
        compute_loss_func: Any = None,
        **settings: Any,
    ) -> SFTTrainer:
        defaults = {
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "max_length": None,
            "optim": "sgd",
            "learning_rate": 0.0,
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        if issubclass(cls, RegressionAwareSFTTrainer):
            config, own = RegressionAwareSFTConfig, {"score_loss_weight": WEIGHT}
        else:
            config, own = SFTConfig, {}
        return cls(
            model,
            config(str(tmp_path), **{**defaults, **own, **settings}),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            formatting_func=formatting_func,
            compute_metrics=compute_metrics,
            compute_loss_func=compute_loss_func,
        )

    return make


def expected_step(rows: list[dict[str, Any]] | list[Row], model: nn.Module | None = None, **kwargs: Any) -> Any:
    if rows and isinstance(rows[0], dict):
        rows = naive_rows(TOKENIZER, rows)
    return naive_step(build() if model is None else model, IDS, rows, **{"score_weight": WEIGHT, **kwargs})


def labels_as_gold(rows: list[Row]) -> list[Row]:
    """`rows` whose gold scores are the numbers in their text."""
    return [
        Row(row.input_ids, row.labels, [(at, float(TOKENIZER.decode(row.input_ids[at]))) for at, _ in row.scores])
        for row in rows
    ]


def without_scores(rows: list[dict[str, Any]], *which: int) -> list[dict[str, Any]]:
    """`rows`, those numbered `which` with neither a closing phrase nor a gold score."""
    return [
        {**row, "completion": "The response lacks any example.", "score": None} if i in which else row
        for i, row in enumerate(rows)
    ]


# The model


@pytest.mark.parametrize("target_modules", [None, "all-linear", ["q_proj", "v_proj"]], ids=["full", "lora", "lora_qv"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_step_is_the_naive_step(make_trainer, kind, target_modules):
    lora = {"target_modules": target_modules, "r": 4} if target_modules else None
    torch.manual_seed(1)
    peft_config = LoraConfig(init_lora_weights=False, **lora) if lora else None
    trainer = make_trainer(build(kind), make_rows(), peft_config=peft_config)
    log, gradients = step_gradients(trainer)
    model = build(kind, lora)
    model.load_state_dict(trainer.model.state_dict())
    assert_same_step(log, gradients, expected_step(make_rows(), model))


def test_the_soft_cap_of_the_naive_step_bites():
    capped, free = build("gemma2"), build("gemma2", final_logit_softcapping=None)
    assert distance(expected_step(make_rows(), capped).gradients, expected_step(make_rows(), free).gradients) > 0.1


@pytest.mark.parametrize("kind", ["llama_tied", "cohere", "granite", "phi_bias", "gpt2", "qwen3", "mistral"])
def test_a_step_is_naive_whatever_stands_between_hidden_states_and_logits(make_trainer, kind):
    overrides = NO_DROPOUT if kind == "gpt2" else {}
    log, gradients = step_gradients(make_trainer(build(kind, **overrides), make_rows()))
    assert_same_step(log, gradients, expected_step(make_rows(), build(kind, **overrides)))


@pytest.mark.parametrize("batch,accumulation", [(8, 1), (2, 4)])
def test_with_experts_a_step_is_sfts_with_its_auxiliary_loss_plus_the_naive_score_term(
    make_trainer, batch, accumulation
):
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    log, gradients = step_gradients(make_trainer(build("mixtral"), make_rows(), **sizes))
    sft_log, sft_gradients = step_gradients(make_trainer(build("mixtral"), make_rows(), cls=SFTTrainer, **sizes))
    assert sft_log["aux_loss"] > 0
    term = expected_step(make_rows(), build("mixtral"), ce_weight=0.0)
    assert log["loss"] == pytest.approx(sft_log["loss"] + term.loss, rel=1e-5)
    together = {name: value + term.gradients.get(name, 0) for name, value in sft_gradients.items()}
    assert_same_gradients(gradients, together)
    assert distance(gradients, sft_gradients) > 0.1


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=["dora", "saved_head"])
def test_a_step_of_an_adapter_passed_in_is_naive(make_trainer, settings):
    lora = {"target_modules": "all-linear", "r": 4, **settings}
    log, gradients = step_gradients(make_trainer(build(lora=lora), make_rows()))
    expected = expected_step(make_rows(), build(lora=lora))
    assert_same_step(log, gradients, expected)
    assert any("lm_head" in name for name in gradients) == ("modules_to_save" in settings)


def test_a_model_can_pass_through_two_trainers(make_trainer):
    model = build()
    step_gradients(make_trainer(model, make_rows(), score_loss_weight=0.1, renormalize_scores=True))
    model.zero_grad()
    assert_same_step(*step_gradients(make_trainer(model, make_rows())), expected_step(make_rows()))


def test_the_trained_model_still_writes_what_it_would_have_written(make_trainer):
    trainer = make_trainer(build(), make_rows())
    step_gradients(trainer)
    prompt = torch.tensor([TOKENIZER("Rate the response")["input_ids"]])
    written = [model.eval().generate(prompt, max_new_tokens=8, do_sample=False) for model in (trainer.model, build())]
    assert torch.equal(*written)


def test_a_vocabulary_padded_beyond_the_tokenizer_takes_part_in_the_softmax(make_trainer):
    wide = {"vocab_size": len(TOKENIZER) + 64}
    log, gradients = step_gradients(make_trainer(build(**wide), make_rows()))
    assert_same_step(log, gradients, expected_step(make_rows(), build(**wide)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("lora", [None, {"target_modules": "all-linear", "r": 4}], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(make_trainer, lora, reentrant):
    trainer = make_trainer(
        build(lora=lora),
        make_rows(),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    log, gradients = step_gradients(trainer)
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in trainer.model.modules())
    assert_same_step(log, gradients, expected_step(make_rows(), build(lora=lora)))


# The step


@pytest.mark.parametrize("missing", [(), (1, 2, 5)], ids=["all_scored", "three_without_score"])
@pytest.mark.parametrize("batch,accumulation", [(8, 1), (2, 4), (1, 8)])
def test_how_a_step_is_divided_into_batches_changes_nothing(make_trainer, batch, accumulation, missing):
    rows = without_scores(make_rows(), *missing)
    trainer = make_trainer(
        build(),
        rows,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        missing_score="keep",
    )
    log, gradients = step_gradients(trainer)
    naive = [
        Row(*row[:2], [] if i in missing else row.scores)
        for i, row in enumerate(naive_rows(TOKENIZER, without_scores(make_rows(), *missing)))
    ]
    assert sum(len(row.scores) for row in naive) == 8 - len(missing)
    assert_same_step(log, gradients, expected_step(naive))


@pytest.mark.parametrize("accepts_loss_kwargs", [True, False])
def test_an_accumulation_that_the_data_end_early_is_a_step_over_what_is_there(make_trainer, accepts_loss_kwargs):
    trainer = make_trainer(
        build(), make_rows(5), per_device_train_batch_size=2, gradient_accumulation_steps=4, ce_loss_weight=0.0
    )
    trainer.model_accepts_loss_kwargs = accepts_loss_kwargs
    assert_same_step(*step_gradients(trainer), expected_step(make_rows(5), ce_weight=0.0))


def test_rows_without_a_score_can_be_dropped(make_trainer):
    trainer = make_trainer(build(), without_scores(make_rows(), 0, 4), missing_score="drop")
    kept = [row for i, row in enumerate(make_rows()) if i not in (0, 4)]
    assert_same_step(*step_gradients(trainer), expected_step(kept))


def test_one_score_in_eight_batches_keeps_its_full_weight(make_trainer):
    rows = without_scores(make_rows(), *range(1, 8))
    trainer = make_trainer(
        build(), rows, per_device_train_batch_size=1, gradient_accumulation_steps=8, missing_score="keep"
    )
    log, gradients = step_gradients(trainer)
    expected = expected_step(rows)
    assert expected.gold == [4.0]
    assert_same_step(log, gradients, expected)


@pytest.mark.parametrize("batch,accumulation", [(8, 1), (2, 4)])
def test_a_step_without_any_score_is_sfts(make_trainer, batch, accumulation):
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    rows = without_scores(make_rows(), *range(8))
    log, gradients = step_gradients(make_trainer(build(), rows, missing_score="keep", **sizes))
    plain = [{key: row[key] for key in ("prompt", "completion")} for row in rows]
    sft_log, sft_gradients = step_gradients(make_trainer(build(), plain, cls=SFTTrainer, **sizes))
    assert log["loss"] == sft_log["loss"] == log["ce_loss"]
    assert "score_loss" not in log
    assert gradients.keys() == sft_gradients.keys()
    assert all(torch.equal(gradients[name], sft_gradients[name]) for name in gradients)


def test_a_model_without_loss_kwargs_gets_the_same_score_term_under_accumulation(make_trainer):
    def step(cls: type[SFTTrainer]) -> Any:
        trainer = make_trainer(
            build(), make_rows(), cls=cls, per_device_train_batch_size=2, gradient_accumulation_steps=4
        )
        trainer.model_accepts_loss_kwargs = False
        return step_gradients(trainer)

    (log, gradients), (sft_log, sft_gradients) = step(RegressionAwareSFTTrainer), step(SFTTrainer)
    term = expected_step(make_rows(), ce_weight=0.0)
    assert log["loss"] == pytest.approx(sft_log["loss"] + term.loss, rel=1e-5)
    assert log["ce_loss"] == pytest.approx(sft_log["loss"], rel=1e-5)
    assert_same_gradients(gradients, {name: value + term.gradients[name] for name, value in sft_gradients.items()})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch,accumulation", [(8, 1), (2, 4)])
def test_a_padding_free_step_is_the_padded_one(make_trainer, batch, accumulation, attention):
    trainer = make_trainer(
        build(_attn_implementation=attention),
        make_rows(),
        padding_free=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    assert trainer.model.config._attn_implementation == attention
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(make_rows()))


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
@pytest.mark.parametrize("batch,accumulation", [(8, 1), (1, 8)])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_packed_step_is_the_unpacked_one(make_trainer, kind, strategy, batch, accumulation):
    trainer = make_trainer(
        build(kind),
        make_rows(),
        packing=True,
        packing_strategy=strategy,
        max_length=128,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
    )
    assert 1 < len(trainer.train_dataset) < 8
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(make_rows(), build(kind)))


def test_packing_that_splits_rows_scores_each_piece_on_its_own(make_trainer):
    rows = naive_rows(TOKENIZER, make_rows())
    length = rows[0].scores[0][0]  # the first row's score is the first token of its second piece, and lost
    pieces = split_rows(rows, length)
    assert 0 < sum(len(piece.scores) for piece in pieces) < 8
    with pytest.raises(ValueError, match=f"lose their score to max_length={length}"):
        make_trainer(build(), make_rows(), packing=True, packing_strategy="bfd_split", max_length=length)
    trainer = make_trainer(
        build(),
        make_rows(),
        packing=True,
        packing_strategy="bfd_split",
        max_length=length,
        per_device_train_batch_size=len(pieces),
        missing_score="keep",
    )
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(pieces))


@pytest.mark.parametrize("with_score", [True, False])
@pytest.mark.parametrize("packing", [False, True])
def test_a_score_cut_off_is_not_replaced_by_an_earlier_closing_phrase(make_trainer, packing, with_score):
    rows = labels_as_gold(naive_rows(TOKENIZER, make_rows())) if not with_score else naive_rows(TOKENIZER, make_rows())
    length = rows[2].scores[0][0]  # row 2 has a decoy; its score is the first token cut off
    assert f"{PREFIX}2" in TOKENIZER.decode(rows[2].input_ids[:length])
    expected = expected_step([split_rows([row], length)[0] for row in rows])
    assert 3 < len(expected.gold) < 8
    trainer = make_trainer(
        build(),
        make_rows(with_score=with_score),
        max_length=length,
        packing=packing,
        packing_strategy="bfd",
        missing_score="keep",
    )
    assert_same_step(*step_gradients(trainer), expected)


@pytest.mark.parametrize("multiple", [16, 64])
@pytest.mark.parametrize("padding_free", [False, True])
def test_padding_to_a_multiple_changes_nothing(make_trainer, multiple, padding_free):
    trainer = make_trainer(build(), make_rows(), pad_to_multiple_of=multiple, padding_free=padding_free)
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(make_rows()))


# The loss


def test_ce_loss_weight_scales_sfts_own_loss(make_trainer):
    trainer = make_trainer(
        build(), make_rows(), ce_loss_weight=0.3, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert_same_step(*step_gradients(trainer), expected_step(make_rows(), ce_weight=0.3))


def test_raft_has_no_cross_entropy(make_trainer):
    log, gradients = step_gradients(make_trainer(build(), make_rows(), ce_loss_weight=0.0))
    assert_same_step(log, gradients, expected_step(make_rows(), ce_weight=0.0))
    assert log["ce_loss"] > 1  # still logged


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True, "max_length": 128}])
def test_the_score_token_can_be_left_out_of_the_cross_entropy(make_trainer, layout):
    trainer = make_trainer(build(), make_rows(), score_token_in_ce=False, **layout)
    log, gradients = step_gradients(trainer)
    expected = expected_step(make_rows(), score_token_in_ce=False)
    assert_same_step(log, gradients, expected)
    assert distance(gradients, expected_step(make_rows()).gradients) > 1e-3


@pytest.mark.parametrize(
    ("name", "renormalize"), [pair for pair in product(SCORE_LOSSES, (False, True)) if pair != ("wasserstein", False)]
)
def test_every_score_loss_is_taken_of_the_naive_log_probabilities(make_trainer, name, renormalize):
    def loss(log_probs: Tensor, gold: float) -> Tensor:
        return SCORE_LOSSES[name](log_probs[None], torch.arange(1.0, 6.0), torch.tensor([gold]))[0]

    trainer = make_trainer(build(), make_rows(), score_loss_type=name, renormalize_scores=renormalize)
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(make_rows(), loss=loss, renormalize=renormalize))


def test_the_score_term_stands_beside_dft(make_trainer):
    trainer = make_trainer(
        build(), make_rows(), loss_type="dft", per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert_same_step(*step_gradients(trainer), expected_step(make_rows(), dft=True))


# Weight 0


WEIGHT_0_SETTINGS = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "shuffled": {"shuffle_dataset": True},
    "truncated": {"max_length": 40},
    "packed": {"packing": True, "max_length": 128},
    "packed_shuffled_cut": {"packing": True, "max_length": 44, "shuffle_dataset": True},
    "split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 44},
    "padding_free": {"padding_free": True},
    "bf16": {"bf16": True},
    "checkpointed": {"gradient_checkpointing": True},
    "labels of several tokens": {"score_labels": [str(i) for i in range(1, 11)], "neftune_noise_alpha": 5.0},
}


@pytest.mark.parametrize("settings", WEIGHT_0_SETTINGS.values(), ids=WEIGHT_0_SETTINGS)
def test_with_weight_0_training_is_sfts_bit_for_bit(make_trainer, settings):
    def train(cls: type[SFTTrainer], rows: list[dict[str, Any]], **own: Any) -> Any:
        common = {
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "optim": "adamw_torch",
            "max_grad_norm": 1.0,
        }
        given = {name: value for name, value in settings.items() if own or name != "score_labels"}
        trainer = make_trainer(build(), rows, cls=cls, **{**common, **given}, **own)
        trainer.train()
        return dict(trainer.model.named_parameters()), [log.get("loss") for log in trainer.state.log_history[:-1]]

    parameters, losses = train(RegressionAwareSFTTrainer, make_rows(), score_loss_weight=0.0, missing_score="keep")
    sft_parameters, sft_losses = train(SFTTrainer, make_rows(with_score=False))
    assert len(losses) == 4 and losses == sft_losses
    start = dict(build().named_parameters())
    assert not torch.equal(parameters["lm_head.weight"], start["lm_head.weight"])
    for name, value in sft_parameters.items():
        assert torch.equal(parameters[name], value), name


def test_with_weight_0_labels_of_several_tokens_cost_nothing_and_any_attention_will_do(make_trainer):
    scale = {"score_labels": [str(i) for i in range(1, 11)], "padding_free": True, "per_device_train_batch_size": 2}
    trainer = make_trainer(build(), make_rows(), score_loss_weight=0.0, max_steps=2, **scale)
    read: list[int] = []
    trainer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    trainer.train()
    lengths = list(map(len, trainer.train_dataset["input_ids"]))
    pairs = {one + other for one, other in product(lengths, lengths)}
    assert len(read) == 2 and pairs.issuperset(read)
    assert "score_loss" not in trainer.state.log_history[0]
    other = build()
    other.config._attn_implementation = "flash_attention_2"  # which takes no mask
    make_trainer(other, make_rows(), score_loss_weight=0.0, **scale)
    for refused in ({}, {"score_loss_weight": 0.0, "eval_dataset": Dataset.from_list(make_rows())}):
        with pytest.raises(InputError, match="is 2 tokens"):
            make_trainer(other, make_rows(), **scale, **refused)


def test_with_weight_0_a_score_loss_that_is_not_finite_does_no_harm(make_trainer, monkeypatch):
    monkeypatch.setattr(
        "tract_trainer.training.trainer.score_loss", lambda log_probs, *args: log_probs.sum(-1) * torch.inf
    )
    log, gradients = step_gradients(make_trainer(build(), make_rows(), score_loss_weight=0.0))
    assert_same_step(log, gradients, expected_step(make_rows(), score_weight=0.0))


# Precision


@pytest.mark.parametrize("settings", [{}, {"padding_free": True}], ids=["padded", "padding_free"])
def test_bf16_costs_no_more_than_the_naive_step_in_bf16(make_trainer, settings):
    log, gradients = step_gradients(make_trainer(build(), make_rows(), bf16=True, **settings))
    exact = expected_step(make_rows())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = expected_step(make_rows())
    own = distance(rounded.gradients, exact.gradients)
    assert 1e-3 < own < 0.1
    assert distance(gradients, exact.gradients) < 1.5 * own
    assert abs(log["loss"] - exact.loss) < 5e-3 * exact.loss


def test_bf16_leaves_no_trace_in_the_next_trainer_of_the_process(make_trainer):
    step_gradients(make_trainer(build(), make_rows(), bf16=True))
    log, gradients = step_gradients(make_trainer(build(), make_rows()))
    assert_same_step(log, gradients, expected_step(make_rows()))


# The data


def test_conversations_are_scored(make_trainer):
    rows = make_rows(conversational=True)
    log, gradients = step_gradients(make_trainer(build(), rows))
    assert_same_step(log, gradients, expected_step(rows))


@pytest.mark.parametrize("family", ["llama3", "gpt2", "mistral", "newline"])
@pytest.mark.parametrize("conversational", [False, True])
def test_a_step_is_naive_in_every_family_of_tokenizers(make_trainer, family, conversational):
    tokenizer, rows = make_tokenizer(family), make_rows(conversational=conversational)
    size = {"vocab_size": len(tokenizer)}
    log, gradients = step_gradients(make_trainer(build(**size), rows, tokenizer=tokenizer))
    expected = naive_step(build(**size), score_token_ids(tokenizer), naive_rows(tokenizer, rows), score_weight=WEIGHT)
    assert_same_step(log, gradients, expected)


def test_without_a_score_column_the_label_in_the_text_is_the_target(make_trainer):
    log, gradients = step_gradients(make_trainer(build(), make_rows(with_score=False)))
    assert_same_step(log, gradients, expected_step(labels_as_gold(naive_rows(TOKENIZER, make_rows()))))


def test_plain_text_is_trained_on_whole_and_scored(make_trainer):
    rows = [{"text": row["prompt"] + row["completion"], "score": row["score"]} for row in make_rows()]
    log, gradients = step_gradients(make_trainer(build(), rows))
    texts = [row["text"] + TOKENIZER.eos_token for row in rows]
    naive = [naive_row(TOKENIZER, text, [(0, len(text))], row["score"]) for text, row in zip(texts, rows, strict=True)]
    assert_same_step(log, gradients, expected_step(naive))


def test_a_formatting_function_makes_the_text(make_trainer):
    rows = [{"question": r["prompt"], "answer": r["completion"], "score": r["score"]} for r in make_rows()]
    trainer = make_trainer(build(), rows, formatting_func=lambda row: row["question"] + row["answer"])
    log, gradients = step_gradients(trainer)
    texts = [row["question"] + row["answer"] + TOKENIZER.eos_token for row in rows]
    naive = [naive_row(TOKENIZER, text, [(0, len(text))], row["score"]) for text, row in zip(texts, rows, strict=True)]
    assert_same_step(log, gradients, expected_step(naive))


ASSISTANT_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n{% else %}{{ message['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("assistant_only", [False, True])
def test_messages_are_scored(make_trainer, assistant_only):
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = ASSISTANT_MARKED
    rows = [{"messages": r["prompt"] + r["completion"], "score": r["score"]} for r in make_rows(conversational=True)]
    trainer = make_trainer(build(), rows, tokenizer=tokenizer, assistant_only_loss=assistant_only)
    log, gradients = step_gradients(trainer)
    naive = []
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        start = text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        end = text.rindex("<|im_end|>") + len("<|im_end|>")
        naive.append(naive_row(TOKENIZER, text, [(start, end)] if assistant_only else [(0, len(text))], row["score"]))
    assert_same_step(log, gradients, expected_step(naive))


def tokenised(rows: list[Row]) -> list[dict[str, Any]]:
    return [{"input_ids": row.input_ids, "labels": row.labels, "score": row.scores[0][1]} for row in rows]


@pytest.mark.parametrize("skip", [False, True], ids=["prepared", "skip_prepare_dataset"])
def test_rows_that_are_tokenised_already_are_scored(make_trainer, skip):
    rows = naive_rows(TOKENIZER, make_rows())
    trainer = make_trainer(build(), tokenised(rows), dataset_kwargs={"skip_prepare_dataset": skip})
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(rows))


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True, "max_length": 128}])
def test_several_scores_in_a_row_come_as_a_column_along_the_tokens(make_trainer, layout):
    rows, columns = [], []
    for i, (first, second) in enumerate([(1.5, 4.0), (3.25, 2.0), (5.0, 1.0)]):
        text = f"Rate {i}. {PREFIX}{first:.0f}\nAgain. {PREFIX}{second:.0f}{TOKENIZER.eos_token}"
        last = naive_row(TOKENIZER, text, [(0, len(text))], second)
        middle = text.index("\n")
        earlier = naive_row(TOKENIZER, text[:middle], [], first)
        assert earlier.input_ids == last.input_ids[: len(earlier.input_ids)]
        rows.append(Row(last.input_ids, last.labels, earlier.scores + last.scores))
        golds = dict(rows[-1].scores)
        columns.append([golds.get(position, float("nan")) for position in range(len(last.input_ids))])
    dataset = [
        {"input_ids": row.input_ids, "labels": row.labels, "score_labels": column}
        for row, column in zip(rows, columns, strict=True)
    ]
    log, gradients = step_gradients(make_trainer(build(), dataset, **layout))
    expected = expected_step(rows)
    assert len(expected.gold) == 6
    assert_same_step(log, gradients, expected)


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True, "max_length": 128}])
def test_nothing_predicts_a_score_that_is_the_first_token_of_its_row(make_trainer, layout):
    rows = naive_rows(TOKENIZER, make_rows())
    dataset = [
        {"input_ids": row.input_ids, "labels": row.labels, "score_labels": [5.0] + [float("nan")] * len(row.labels[1:])}
        for row in rows
    ]
    for line, row in zip(dataset[2:], rows[2:], strict=True):
        line["score_labels"][row.scores[0][0]] = row.scores[0][1]
    expected = expected_step([Row(*row[:2], row.scores if i > 1 else []) for i, row in enumerate(rows)])
    assert_same_step(*step_gradients(make_trainer(build(), dataset, **layout)), expected)


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True, "max_length": 128}])
def test_a_stream_is_scored(make_trainer, layout):
    stream = Dataset.from_list(make_rows()).to_iterable_dataset()
    log, gradients = step_gradients(make_trainer(build(), stream, **layout))
    assert_same_step(log, gradients, expected_step(make_rows()))


@pytest.mark.parametrize("settings", [{"padding_side": "left"}, {"pad_token": None}], ids=["left", "no_pad_token"])
def test_the_tokenizers_padding_does_not_matter(make_trainer, settings):
    tokenizer = make_tokenizer("qwen", **settings)
    log, gradients = step_gradients(make_trainer(build(), make_rows(), tokenizer=tokenizer))
    assert_same_step(log, gradients, expected_step(make_rows()))


# The arguments


def test_a_plain_sft_config_gets_the_defaults(tmp_path):
    args = SFTConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    trainer = RegressionAwareSFTTrainer(
        build(), args, train_dataset=Dataset.from_list(make_rows()), processing_class=TOKENIZER
    )
    assert_same_step(*step_gradients(trainer), expected_step(make_rows(), score_weight=1.0))


def test_no_arguments_are_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)  # bf16 is a default
    model = build()
    model.config._name_or_path = "someone/tiny"
    trainer = RegressionAwareSFTTrainer(model, train_dataset=Dataset.from_list(make_rows()), processing_class=TOKENIZER)
    assert trainer.args.output_dir == "tiny-judge"
    assert (trainer.args.score_loss_weight, trainer.args.ce_loss_weight) == (1.0, 1.0)
    exact = expected_step(make_rows(), score_weight=1.0)
    assert trainer.evaluate(Dataset.from_list(make_rows()))["eval_loss"] == pytest.approx(exact.loss, rel=1e-2)


# The cost


def count_calls(module: nn.Module) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    module.register_forward_hook(
        lambda _module, args, kwargs, output: shapes.append(args[0].shape if args else None), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("layout", [{}, {"padding_free": True}], ids=["padded", "padding_free"])
@pytest.mark.parametrize("lora", [None, {"target_modules": "all-linear", "r": 4}], ids=["full", "lora"])
def test_a_batch_takes_one_forward_and_its_scores_are_all_that_goes_through_the_head_module(make_trainer, lora, layout):
    trainer = make_trainer(
        build(lora=lora),
        without_scores(make_rows(), 3),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        missing_score="keep",
        **layout,
    )
    base = trainer.model.get_base_model() if lora else trainer.model
    backbone, head = count_calls(base.base_model), count_calls(base.get_output_embeddings())
    step_gradients(trainer)
    assert len(backbone) == 4
    assert sorted(shape[0] for shape in head) == [1, 2, 2, 2]  # rows that predict a score
    assert all(len(shape) == 2 for shape in head)


# The figures


def test_the_log_holds_the_naive_figures_of_its_window(make_trainer):
    stream = Dataset.from_list(make_rows()).to_iterable_dataset()  # keeps the order
    trainer = make_trainer(
        build(),
        stream,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=2,
        num_train_epochs=2,
    )
    trainer.train()
    steps = [expected_step(rows) for rows in (make_rows()[:4], make_rows()[4:])]
    for log in trainer.state.log_history[:2]:
        assert log["loss"] == pytest.approx(sum(step.loss for step in steps) / 2, rel=1e-5)
        for name in ("ce_loss", "score_loss", "score_mae", "score_mass"):
            assert log[name] == pytest.approx(sum(getattr(step, name) for step in steps) / 2, rel=1e-5), name


@pytest.mark.parametrize("renormalize", [False, True], ids=["whole_vocabulary", "renormalized"])
@pytest.mark.parametrize("layout", [{}, {"padding_free": True}, {"packing": True, "max_length": 128}])
def test_evaluation_reports_the_naive_figures(make_trainer, layout, renormalize):
    rows = Dataset.from_list(make_rows())
    trainer = make_trainer(
        build(), rows, eval_dataset=rows, per_device_eval_batch_size=3, renormalize_scores=renormalize, **layout
    )
    metrics = trainer.evaluate()
    expected = expected_step(make_rows(), renormalize=renormalize)
    assert metrics["eval_score_pearson"] == pytest.approx(
        stats.pearsonr(expected.predicted, expected.gold)[0], abs=1e-4
    )
    assert metrics["eval_score_spearman"] == pytest.approx(stats.spearmanr(expected.predicted, expected.gold)[0])
    assert metrics["eval_score_rmse"] == pytest.approx(expected.score_loss**0.5, rel=1e-5)
    for name in ("score_loss", "score_mae", "score_mass"):
        assert metrics[f"eval_{name}"] == pytest.approx(getattr(expected, name), rel=1e-5), name


def test_evaluation_counts_scores_not_rows(make_trainer):
    rows = without_scores(make_rows(), 0, 1, 2, 6)
    trainer = make_trainer(
        build(), make_rows(), eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=3, missing_score="keep"
    )
    metrics, expected = trainer.evaluate(), expected_step(rows)
    assert len(expected.gold) == 4
    for name in ("score_loss", "score_mae", "score_mass"):
        assert metrics[f"eval_{name}"] == pytest.approx(getattr(expected, name), rel=1e-5), name


def test_the_evaluation_loss_of_one_batch_is_the_training_loss(make_trainer):
    rows = Dataset.from_list(make_rows())
    trainer = make_trainer(build(), rows, eval_dataset=rows)
    metrics, expected = trainer.evaluate(), expected_step(make_rows())
    assert metrics["eval_loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert metrics["eval_ce_loss"] == pytest.approx(expected.ce_loss, rel=1e-5)


def test_the_evaluation_losses_are_means_over_batches(make_trainer):
    rows = Dataset.from_list(make_rows())
    metrics = make_trainer(build(), rows, eval_dataset=rows, per_device_eval_batch_size=4).evaluate()
    batches = [expected_step(part) for part in (make_rows()[:4], make_rows()[4:])]
    assert metrics["eval_loss"] == pytest.approx(sum(batch.loss for batch in batches) / 2, rel=1e-5)
    assert metrics["eval_ce_loss"] == pytest.approx(sum(batch.ce_loss for batch in batches) / 2, rel=1e-5)


def test_evaluation_runs_on_fresh_prepared_and_several_datasets_and_between_steps(make_trainer):
    rows = Dataset.from_list(make_rows())
    few = rows.select(range(3))
    trainer = make_trainer(build(), rows, eval_dataset={"all": rows, "few": few}, eval_strategy="steps", eval_steps=1)
    log, gradients = step_gradients(trainer)
    assert_same_step(log, gradients, expected_step(make_rows()))
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    whole, part = expected_step(make_rows()), expected_step(make_rows()[:3])
    assert logged["eval_all_score_loss"] == pytest.approx(whole.score_loss, rel=1e-5)
    assert logged["eval_few_score_loss"] == pytest.approx(part.score_loss, rel=1e-5)
    assert trainer.evaluate(few)["eval_score_loss"] == pytest.approx(part.score_loss, rel=1e-5)
    prepared = trainer.evaluate(trainer.eval_dataset["few"], metric_key_prefix="test")
    assert prepared["test_score_loss"] == pytest.approx(part.score_loss, rel=1e-5)
    assert "eval_score_loss" not in prepared


def test_a_packed_dataset_can_be_evaluated_again(make_trainer):
    rows = Dataset.from_list(make_rows())
    trainer = make_trainer(build(), rows, eval_dataset=rows, packing=True, max_length=128)
    again = trainer.evaluate(trainer.eval_dataset)
    assert again["eval_score_loss"] == pytest.approx(expected_step(make_rows()).score_loss, rel=1e-5)


def test_compute_metrics_gets_the_logits_and_the_figures_stay(make_trainer):
    rows, shapes = Dataset.from_list(make_rows()), []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"rows": len(prediction.predictions)}

    trainer = make_trainer(build(), rows, eval_dataset=rows, compute_metrics=compute_metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 8 and shapes[0][2] == len(TOKENIZER)
    assert metrics["eval_score_loss"] == pytest.approx(expected_step(make_rows()).score_loss, rel=1e-5)


# What is refused


REFUSED = [
    (
        {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
        "packing_strategy='wrapped' cuts rows anywhere, so scores are lost and judged in another row's context. "
        "Use packing_strategy='bfd' or 'bfd_split', or packing=False.",
    ),
    (
        {"eval_packing": True, "max_length": 128},
        "eval_packing=True with packing=False packs evaluation rows for a collator that does not keep packed rows "
        "apart, so they read each other and their scores are wrong. Set packing=True, or leave out eval_packing.",
    ),
    (
        {"label_smoothing_factor": 0.1},
        "label_smoothing_factor=0.1 takes the loss from a second forward, without the score term. "
        "Set label_smoothing_factor=0; the score loss already tells near misses from far ones.",
    ),
    (
        {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()},
        "compute_loss_func takes the loss from a second forward, without the score term. "
        "Leave it out and override RegressionAwareSFTTrainer.compute_loss instead.",
    ),
]


@pytest.mark.parametrize(
    "settings,text", REFUSED, ids=["wrapped", "eval_packing", "label_smoothing", "compute_loss_func"]
)
def test_what_would_not_be_exact_is_refused(make_trainer, settings, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make_trainer(build(), make_rows(), **settings)
