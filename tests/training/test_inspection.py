"""A look at what would be trained on, before anything is."""

import io
import json
import re

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from rich.console import Console
from tiny import PREFIX, SIZES, make_dataset, make_model, make_rows, make_tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from trl import ModelConfig

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer
from tract_trainer.cli.main import main
from tract_trainer.training.inspection import inspect_dataset, view


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("seed"), make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


def config(folder, **kwargs):
    return RegressionAwareSFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", **{"max_length": None, **kwargs}
    )


def shown(inspected, count=3, **kwargs):
    console = Console(file=io.StringIO(), width=200, **kwargs)
    console.print(view(inspected, count))
    return console.file.getvalue()


@pytest.mark.parametrize("conversational", [True, False])
def test_the_rows_are_those_that_the_trainer_trains_on(model, tmp_path, conversational):
    dataset = make_dataset(8, conversational=conversational)
    found = inspect_dataset(dataset, config(tmp_path), model).rows
    trainer = RegressionAwareSFTTrainer(
        model=make_model("llama", len(make_tokenizer())),
        args=config(tmp_path),
        train_dataset=dataset,
        processing_class=make_tokenizer(),
    )
    for column in ("input_ids", "labels"):
        assert found[column][:] == trainer.train_dataset[column][:]
    for mine, theirs in zip(found["score_labels"], trainer.train_dataset["score_labels"], strict=True):
        np.testing.assert_array_equal(np.array(mine, np.float32), np.array(theirs, np.float32))


def test_the_tokenizer_is_not_pickled_to_find_the_scores(model, tmp_path, monkeypatch):
    """That takes seconds where the vocabulary is large."""
    rows = RegressionAwareSFTTrainer(
        model=make_model("llama", len(make_tokenizer())),
        args=config(tmp_path),
        train_dataset=make_dataset(8),
        processing_class=make_tokenizer(),
    ).train_dataset.select_columns(["input_ids", "labels", "score"])  # whose tokens TRL has
    hashed, hash_of = [], Hasher.hash
    monkeypatch.setattr(Hasher, "hash", staticmethod(lambda value: hashed.append(value) or hash_of(value)))
    assert len(inspect_dataset(rows, config(tmp_path), model).rows) == 8
    trainer = RegressionAwareSFTTrainer(
        model=make_model("llama", len(make_tokenizer())),
        args=config(tmp_path),
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )
    assert len(trainer.train_dataset) == 8
    assert not any("tokens" in value for value in hashed if isinstance(value, dict))


def test_no_weight_is_made(model, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(RegressionAwareSFTTrainer, "create_optimizer", lambda self: made.append(self))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *args: 1 / 0)
    inspect_dataset(make_dataset(8), config(tmp_path), model)
    assert not made


def test_prompt_trained_tokens_and_score_are_told_apart(model, tmp_path):
    inspected = inspect_dataset(make_dataset(8), config(tmp_path), model)
    text = shown(inspected, 2)
    assert "row 0," in text and "row 1," in text and "row 2," not in text
    assert "target 4, written '4'" in text and f"{PREFIX}4" in text
    coloured = shown(inspected, 1, force_terminal=True, color_system="standard")
    assert "\x1b[1;30;43m4\x1b[0m" in coloured  # the score on yellow
    prompt, _, completion = coloured.partition("\x1b[36m")
    assert "\x1b[2m" in prompt and "\x1b[36m" in completion  # the prompt is dim, what is trained is cyan


def test_scores_lengths_and_losses_are_counted(model, tmp_path):
    rows = make_rows(8)
    rows[1]["completion"], rows[2]["score"] = "No score here.", 11.0
    whole = inspect_dataset(Dataset.from_list(rows), config(tmp_path), model)
    text = shown(whole)
    assert "6 of 8 rows have a score to train on." in text
    assert "1 rows hold no score; the first is row 1" in text and "ending 'No score here." in text
    assert "1 rows have a `score` off the scale of 1 to 5; the first is row 2, with score 11" in text
    longest = max(len(ids) for ids in whole.rows["input_ids"])
    assert f"longest {longest:,}" in text
    cut = inspect_dataset(make_dataset(8), config(tmp_path, max_length=longest - 5), model)
    assert f"lose their score to max_length={longest - 5}" in shown(cut)
    counted = {row.split()[0]: row.split()[1] for row in text.splitlines() if "█" in row and " to " not in row}
    assert counted == {"1": "1", "2": "1", "3.3333": "1", "4": "1", "4.5": "1", "5": "1"}


def test_nothing_is_made_on_the_hub(model, tmp_path):
    args = config(tmp_path, push_to_hub=True, hub_model_id="me/judge")  # offline, a repository could not be made
    assert len(inspect_dataset(make_dataset(8), args, model).rows) == 8 and args.push_to_hub


def test_a_model_that_reads_images_too_is_looked_at_as_it_is_trained(tmp_path):
    tokenizer = make_tokenizer()
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {**SIZES, "vocab_size": len(tokenizer), "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = inspect_dataset(make_dataset(8), config(tmp_path), ModelConfig(model_name_or_path=str(tmp_path)))
    trainer = RegressionAwareSFTTrainer(
        str(tmp_path), config(tmp_path), train_dataset=make_dataset(8), processing_class=tokenizer
    )
    assert found.rows["input_ids"][:] == trainer.train_dataset["input_ids"][:]


def test_the_command_line_shows_records_and_counts(model, tmp_path, capsys):
    records = [
        {"instruction": "Name a prime.", "response": "7", "rubric": "Right?", "rationale": "It is.", "score": 5},
        {"instruction": "Name a prime.", "response": "8", "rubric": "Right?", "rationale": "No.", "score": 1},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = [
        "--model_name_or_path",
        model.model_name_or_path,
        "--rows",
        "1",
        "--max_length",
        "2000",
        "--use_cpu",
        "true",
    ]
    assert main(["inspect", str(tmp_path / "data.jsonl"), "--output_dir", str(tmp_path / "out"), *flags]) in (0, None)
    text = capsys.readouterr().out
    assert "Name a prime." in text and "2 of 2 rows have a score to train on." in text
    assert "row 0," in text and "row 1," not in text
    assert main(["inspect", str(tmp_path / "data.jsonl")]) == 2
    assert "--model_name_or_path is missing" in capsys.readouterr().err


def test_a_label_of_several_tokens_is_shown_whole(model, tmp_path, capsys):
    task = {"instruction": "Name a prime.", "rubric": "Right?"}
    records = [
        {**task, "response": "7", "rationale": "It is.", "score": 10},
        {**task, "response": "1", "rationale": "It is none.", "score": 1},
        {**task, "response": "9", "rationale": "It is 3 x 3.", "score": 1.4},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = ["--model_name_or_path", str(model.model_name_or_path), "--scale", "1:10", "--max_length", "2000"]
    command = ["inspect", str(tmp_path / "data.jsonl"), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    assert main([*command, *flags]) in (0, None)
    text = capsys.readouterr().out
    assert "target 10, written '10'" in text and "target 1.4, written '1'" in text
    assert "3 of 3 rows have a score to train on." in text


def test_the_whole_label_is_coloured_and_must_fit(model, tmp_path):
    rows = make_rows(2)
    rows[0] = {**rows[0], "completion": f"Clear. {PREFIX}10", "score": 10.0}
    ten = {"score_labels": [*map(str, range(1, 11))]}
    inspected = inspect_dataset(Dataset.from_list(rows), config(tmp_path, **ten), model)
    coloured = shown(inspected, 1, force_terminal=True, color_system="standard")
    yellow = re.findall(r"\x1b\[1;30;43m(.*?)\x1b\[0m", coloured)
    assert "".join(yellow).endswith("10")  # after the legend
    length = len(inspected.rows[0]["input_ids"]) - 2  # without the end of the turn and the 0
    cut = inspect_dataset(Dataset.from_list(rows[:1]), config(tmp_path, max_length=length, **ten), model)
    assert "lose their score to max_length" in shown(cut)
