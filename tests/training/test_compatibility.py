"""
What stands around the score term leaves it exact, or is refused: how the batch is laid out over twenty steps, how a run
is resumed, how the model is loaded. `docs/compatibility.md` names the test of each row.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_trainer
import torch
from accelerate import ParallelismConfig
from datasets import Dataset, IterableDataset
from naive import assert_same_gradients, assert_same_step, naive_row, step_gradients
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from test_trainer import ASSISTANT_MARKED, TOKENIZER, build, expected_step
from tiny import PREFIX, SIZES, make_rows, make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tract_trainer import Judge, RegressionAwareSFTTrainer
from tract_trainer.errors import InputError
from tract_trainer.training.collator import DataCollatorForScoredCompletion
from tract_trainer.training.limits import refuse_topology

make_trainer = test_trainer.make_trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trainer_with(**arguments: Any) -> type[RegressionAwareSFTTrainer]:
    """The trainer with `arguments` given already."""

    class Trainer(RegressionAwareSFTTrainer):
        __init__ = functools.partialmethod(RegressionAwareSFTTrainer.__init__, **arguments)

    return Trainer


# Twenty steps

TWENTY = {"max_steps": 20, "optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, "missing_score": "keep"}
LAYOUTS = {
    "four_times_two": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "eight_times_one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "padding_free": {"padding_free": True},
    "padding_free_accumulated": {
        "padding_free": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "checkpointed": {"gradient_checkpointing": True},
}


def sixteen_rows() -> list[dict[str, Any]]:
    """Two steps' worth of rows; three of them have no score."""
    return test_trainer.without_scores(make_rows(16), 3, 8, 9)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What the plain layout gave, to train it once."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("lora", [None, {"target_modules": "all-linear", "r": 4}], ids=["full", "lora"])
def test_twenty_steps_end_the_same_however_the_batch_is_laid_out(make_trainer, known, layout, lora):
    def train(**settings: Any) -> Any:
        trainer = make_trainer(build(lora=lora), sixteen_rows(), **{**TWENTY, **settings})
        trainer.train()
        trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        return trained, trainer.state.log_history[:-1]

    if str(lora) not in known:
        known[str(lora)] = train()
    (whole, log), (divided, divided_log) = known[str(lora)], train(**layout)
    start = dict(build(lora=lora).named_parameters())
    assert all((value - start[name]).norm() > 1e-3 * value.norm() for name, value in whole.items())
    assert_same_gradients(divided, whole)
    assert len(log) == len(divided_log) == 20
    for ours, theirs in zip(log, divided_log, strict=True):
        for name in ("loss", "ce_loss", "score_loss", "score_mae", "score_mass"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name


RESUMED = {
    "shuffled": {},
    "padding_free": {"padding_free": True},
    "packed": {"packing": True, "max_length": 128, "per_device_train_batch_size": 1},
    "streamed": {},
}


@pytest.mark.parametrize("layout", RESUMED)
def test_a_run_resumed_in_mid_epoch_ends_as_if_it_had_not_been_interrupted(make_trainer, tmp_path, layout):
    def train(resume: str | None = None) -> Any:
        rows = Dataset.from_list(sixteen_rows())
        settings = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 5, "logging_steps": 2}
        trainer = make_trainer(
            build(),
            rows.to_iterable_dataset() if layout == "streamed" else rows,
            **{**TWENTY, **settings, **RESUMED[layout], "max_steps": 12},
        )
        trainer.train(resume_from_checkpoint=resume)
        return dict(trainer.model.named_parameters()), [log for log in trainer.state.log_history if "loss" in log]

    (whole, log), (resumed, resumed_log) = train(), train(str(tmp_path / "checkpoint-5"))
    assert any((value - build().state_dict()[name]).abs().max() > 1e-3 for name, value in whole.items())
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    # The window that ends with step 6 began before the checkpoint; TRL counts the tokens from 0 again.
    assert [entry["step"] for entry in log] == [2, 4, 6, 8, 10, 12]
    for ours, theirs in zip(log[3:], resumed_log[-3:], strict=True):
        assert {**ours, "num_tokens": 0} == {**theirs, "num_tokens": 0}


# The data


@pytest.mark.parametrize("assistant_only", [False, True])
def test_of_several_turns_the_last_is_scored(make_trainer, assistant_only):
    tokenizer = make_tokenizer("qwen")
    tokenizer.chat_template = ASSISTANT_MARKED
    rows, naive = [], []
    for row in make_rows(conversational=True):
        earlier = [
            {"role": "user", "content": "Rate the answer."},
            {"role": "assistant", "content": f"Weak. {PREFIX}1"},
        ]
        rows.append({"messages": earlier + row["prompt"] + row["completion"], "score": row["score"]})
        text = tokenizer.apply_chat_template(rows[-1]["messages"], tokenize=False)
        turns = [match.span(1) for match in re.finditer(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", text, re.S)]
        assert len(turns) == 2
        naive.append(naive_row(TOKENIZER, text, turns if assistant_only else [(0, len(text))], row["score"]))
    trainer = make_trainer(build(), rows, tokenizer=tokenizer, assistant_only_loss=assistant_only)
    assert_same_step(*step_gradients(trainer), expected_step(naive))


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_refused(make_trainer, column):
    rows = [{**row, column: []} for row in make_rows()]
    text = (
        "The dataset holds images. Their rows are tokenised batch by batch, where a score cut off by max_length "
        "cannot be told from an earlier one, so images are not supported. Remove the image columns."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make_trainer(build(), rows)


def test_an_evaluation_set_may_be_named_as_the_training_set_is(make_trainer):
    rows = Dataset.from_list(make_rows())
    trainer = make_trainer(build(), rows, eval_dataset={"train": rows.select(range(2)), "test": rows})
    assert (trainer.row_counts["train"].given, trainer.row_counts["test"].given) == (8, 8)
    with pytest.raises(ValueError, match="The train dataset has no rows"):
        make_trainer(build(), rows.select([]), eval_dataset={"train": rows})


def test_rows_that_are_evaluated_are_not_counted_as_trained_on(make_trainer):
    rows = Dataset.from_list(make_rows())
    trainer = make_trainer(build(), rows)
    trainer.evaluate({"train": rows.select(range(3))})
    assert trainer.row_counts["train"].given == 8


@pytest.mark.parametrize("with_score", [True, False])
def test_tensors_that_were_not_prepared_are_scored(make_trainer, with_score):
    rows = test_trainer.naive_rows(TOKENIZER, make_rows())
    dataset = Dataset.from_list(test_trainer.tokenised(rows)).with_format("torch")
    dataset = dataset if with_score else dataset.remove_columns("score")
    batches = dataset.to_iterable_dataset().with_format("torch")
    collator = DataCollatorForScoredCompletion(
        TOKENIZER.pad_token_id, score_tokens=make_trainer(build(), make_rows()).score_tokens
    )
    expected = [row.scores[0][1] for row in (rows if with_score else test_trainer.labels_as_gold(rows))]
    for examples in (list(dataset), list(batches)):
        found = collator(examples)["score_labels"]
        assert found[~found.isnan()].tolist() == pytest.approx(expected)


# The collator


@dataclass
class Counting(DataCollatorForScoredCompletion):
    """A user's own collator, which counts its batches."""

    batches: int = 0

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        self.batches += 1
        return super().torch_call(examples)


@pytest.mark.parametrize("score_token_in_ce", [True, False])
def test_a_subclass_of_the_collator_is_used_with_the_trainers_settings(make_trainer, score_token_in_ce):
    collator = Counting(TOKENIZER.pad_token_id)
    settings = {"score_token_in_ce": score_token_in_ce}
    trainer = make_trainer(build(), make_rows(), cls=trainer_with(data_collator=collator), **settings)
    log, gradients = step_gradients(trainer)
    assert collator.batches == 1
    assert_same_step(log, gradients, expected_step(make_rows(), **settings))


def test_trls_own_collator_is_given_the_scores(make_trainer):
    collator = DataCollatorForLanguageModeling(TOKENIZER.pad_token_id, pad_to_multiple_of=64)
    trainer = make_trainer(build(), make_rows(), cls=trainer_with(data_collator=collator))
    assert trainer.data_collator.pad_to_multiple_of == 64
    assert_same_step(*step_gradients(trainer), expected_step(make_rows()))


def test_another_collator_is_refused(make_trainer):
    @dataclass
    class Own(DataCollatorForLanguageModeling):
        pass

    trainer = make_trainer(build(), make_rows(), cls=trainer_with(data_collator=Own(TOKENIZER.pad_token_id)))
    text = (
        "The data collator returned no `score_labels`, only ['attention_mask', 'input_ids', 'labels']. "
        "Leave data_collator out, or make yours a subclass of DataCollatorForScoredCompletion."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        trainer.train()


# The model


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny model on disk."""
    build().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_model_given_by_name_is_loaded_with_its_settings(make_trainer, folder):
    trainer = make_trainer(folder, make_rows(), model_init_kwargs={"attn_implementation": "eager"})
    assert trainer.model.config._attn_implementation == "eager"
    assert_same_step(*step_gradients(trainer), expected_step(make_rows()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_on_a_4_bit_model_is_naive(make_trainer, folder, checkpointing):
    pytest.importorskip("bitsandbytes")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    lora = LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    trainer = make_trainer(
        folder,
        make_rows(),
        cls=trainer_with(quantization_config=four_bit),
        peft_config=lora,
        gradient_checkpointing=checkpointing,
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=four_bit, dtype=torch.float32, device_map="cpu"
    )
    model = get_peft_model(loaded, lora).train()  # on some CPUs bitsandbytes computes otherwise outside training
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # as TRL keeps the adapter of a quantised model
            parameter.data = parameter.data.bfloat16()
    adapter = {name: value for name, value in trainer.model.state_dict().items() if "lora_" in name}
    assert not model.load_state_dict(adapter, strict=False).unexpected_keys
    log, gradients = step_gradients(trainer)
    expected = expected_step(make_rows(), model)
    assert log["loss"] == pytest.approx(expected.loss, rel=1e-5)
    measured, naive = ({k: v.float() for k, v in found.items()} for found in (gradients, expected.gradients))
    assert test_trainer.distance(measured, naive) < 1e-2  # bfloat16 holds three digits


def vision_language_model() -> PreTrainedModel:
    text = {
        **SIZES,
        "vocab_size": len(TOKENIZER),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def test_a_vision_language_model_is_trained_on_text(make_trainer):
    log, gradients = step_gradients(make_trainer(vision_language_model(), make_rows()))
    assert_same_step(log, gradients, expected_step(make_rows(), vision_language_model()))


@pytest.mark.parametrize("lora", [None, LoraConfig(target_modules="all-linear", r=4)], ids=["full", "lora"])
def test_a_vision_language_model_is_a_judge(make_trainer, tmp_path, lora):
    vision_language_model().save_pretrained(tmp_path / "base")
    trainer = make_trainer(str(tmp_path / "base"), make_rows(), peft_config=lora, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    trained = Judge.from_model(trainer.model, TOKENIZER, trainer.judge_config)
    judge, sampling = Judge.from_pretrained(tmp_path), {"unfinished": "force", "max_new_tokens": 6}
    together = judge.score(make_rows(), **sampling)
    assert [found.score for found in together] == pytest.approx(
        [found.score for found in trained.score(make_rows(), **sampling)], rel=1e-5
    )
    for row, found in zip(make_rows()[:2], together, strict=False):  # what the model keeps of a batch stays behind
        alone = judge.score(row, **sampling)
        assert alone.rationale == found.rationale and alone.score == pytest.approx(found.score, rel=1e-4)


def test_an_adapter_of_the_text_part_of_a_vision_language_model_is_a_judge(make_trainer, tmp_path):
    config = Qwen3_5Config(
        text_config={
            **{**SIZES, "vocab_size": len(TOKENIZER), "head_dim": 8},
            **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2},
            **{"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        },
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16},
    )
    Qwen3_5ForConditionalGeneration(config).float().save_pretrained(tmp_path / "base")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(target_modules=["q_proj"], r=4)
    trainer = make_trainer(text, make_rows(), peft_config=lora, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    trained = Judge.from_model(trainer.model, TOKENIZER, trainer.judge_config)
    judge, asked = Judge.from_pretrained(tmp_path), (make_rows(1), ["It is clear."])
    assert type(judge.engine.model.get_base_model()) is type(text)
    assert judge.rescore(*asked)[0].probs == pytest.approx(trained.rescore(*asked)[0].probs, rel=1e-5)


def test_an_adapter_with_the_tokens_of_another_chat_template_is_a_judge(make_trainer, tmp_path):
    other = make_tokenizer("qwen", eos_token="<|end_of_answer|>")
    other.chat_template = other.chat_template.replace("<|im_end|>", "<|end_of_answer|>")
    other.save_pretrained(tmp_path / "other")
    tokenizer = make_tokenizer("llama3")
    tokenizer.chat_template = None
    rows = len(tokenizer)
    build(vocab_size=rows).save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        str(tmp_path / "base"),
        make_rows(conversational=True),
        tokenizer=tokenizer,
        peft_config=LoraConfig(target_modules=["q_proj"], r=4),
        chat_template_path=str(tmp_path / "other"),
        learning_rate=1e-2,
    )
    trainer.train()
    trainer.save_model()
    trained = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    judge, records = Judge.from_pretrained(tmp_path), make_rows()
    assert judge.engine.model.get_input_embeddings().weight.size(0) > rows
    rows = [judge.rows.scored_ids(record, "It is clear.") for record in records]
    assert rows == [trained.rows.scored_ids(record, "It is clear.") for record in records]
    found, expected = (torch.tensor(each.engine.score(rows)) for each in (judge, trained))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.isfinite().all()


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
@pytest.mark.parametrize("made", [True, False], ids=["model", "config"])
def test_virtual_tokens_are_refused(make_trainer, kind, made):
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    text = (
        f"Expected LoRA or another adapter in the model's layers, found {kind.__name__}, which learns virtual tokens "
        "before each row: a judge with them cannot be saved and loaded, nor asked in batches. Use e.g. LoraConfig."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        if made:
            make_trainer(get_peft_model(build(), config), make_rows())
        else:
            make_trainer(build(), make_rows(), peft_config=config)


@pytest.mark.parametrize("names", [["judge"], ["default", "other"]])
def test_an_adapter_that_would_not_be_loaded_with_its_judge_is_refused(make_trainer, names):
    model = get_peft_model(build(), LoraConfig(target_modules="all-linear", r=4), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(target_modules="all-linear", r=4))
    model.set_adapter(names[-1])
    text = rf"^The adapter to train is \['{names[-1]}'\], and a judge is loaded from its folder, where PEFT saves"
    with pytest.raises(InputError, match=text):
        make_trainer(model, make_rows())


def test_rows_that_are_rendered_differently_are_warned_of(make_trainer, caplog):
    rows = [{**row, "chat_template_kwargs": {"foo": number % 2}} for number, row in enumerate(make_rows())]
    make_trainer(build(), [{**row, "chat_template_kwargs": {"foo": 0}} for row in rows])
    assert "differ in chat_template_kwargs" not in caplog.text
    trainer = make_trainer(build(), rows)
    assert (
        "differ in chat_template_kwargs (2 kinds). The judge will be asked with those of the first row, {'foo': 0}"
        in (caplog.text)
    )
    assert trainer.judge_config.chat_template_kwargs == {"foo": 0}


@pytest.mark.parametrize("which", ["train", "eval"])
def test_an_empty_stream_is_refused(make_trainer, which):
    rows = {"train": IterableDataset.from_list(make_rows()), "eval": None}
    rows[which] = IterableDataset.from_generator(lambda: iter([]))
    with pytest.raises(InputError, match=f"^The {which} dataset has no rows"):
        make_trainer(build(), rows["train"], eval_dataset=rows["eval"])


@pytest.mark.slow
def test_a_compiled_step_is_naive(make_trainer, monkeypatch):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):  # set for the process, and so put back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    trainer = make_trainer(build(), make_rows(), torch_compile=True, torch_compile_backend="aot_eager")
    log, gradients = step_gradients(trainer)
    assert torch._dynamo.utils.counters["aot_autograd"]["ok"]
    gradients = {name.removeprefix("_orig_mod."): gradient for name, gradient in gradients.items()}
    assert_same_step(log, gradients, expected_step(make_rows()))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("setting", ["activation_offloading", "use_liger_kernel"])
def test_what_only_a_gpu_does_leaves_the_step_naive(make_trainer, setting):
    if setting == "use_liger_kernel":
        pytest.importorskip("liger_kernel")
    trainer = make_trainer(build(), make_rows(), use_cpu=False, **{setting: True})
    log, gradients = step_gradients(trainer)
    cpu = {name: gradient.cpu() for name, gradient in gradients.items()}
    assert_same_step(log, cpu, expected_step(make_rows()), tolerance=1e-3)


# The processes


@pytest.mark.parametrize("split", ["cp_size", "sp_size"])
def test_parallelism_that_splits_rows_is_refused(split):
    # A stand-in for the accelerator: neither kind can be launched without several GPUs.
    accelerator = SimpleNamespace(parallelism_config=ParallelismConfig(**{split: 2}), num_processes=2)
    text = (
        "Context and sequence parallelism split a row over processes, and the score's row with it. "
        "Set cp_size=1 and sp_size=1; FSDP, DeepSpeed ZeRO and tensor parallelism keep rows whole."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        refuse_topology(accelerator)


def test_a_process_that_knows_no_other_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = (
        "WORLD_SIZE is 2, but the processes form no group, so each would work alone. "
        "On CPU, set use_cpu=True in the training arguments; on GPUs, check that each process sees one."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        refuse_topology(SimpleNamespace(parallelism_config=None, num_processes=1))


@pytest.mark.parametrize("setting", ["dispatch_batches", "split_batches"])
def test_how_batches_are_handed_out_changes_nothing(make_trainer, setting):
    trainer = make_trainer(build(), make_rows(), accelerator_config={setting: True})
    assert getattr(trainer.accelerator, setting)
    assert_same_step(*step_gradients(trainer), expected_step(make_rows()))


# The page

ROOT = Path(__file__).parents[2]


def page_rows() -> list[str]:
    """The rows of the page's tables, without their heads."""
    lines = (ROOT / "docs" / "compatibility.md").read_text().splitlines()
    return [line for line in lines if line.startswith("|") and not line.startswith(("|--", "| -", "| Feature"))]


def test_every_row_of_the_page_has_one_of_three_answers():
    assert len(page_rows()) > 50
    for row in page_rows():
        answer = row.split("|")[2].strip()
        assert re.match(r"exact\b|refused: |needs a GPU, not run\b", answer), row
