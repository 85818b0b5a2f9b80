"""Every command reads records of every shape; an untrained model judges; damaged models are named."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from datasets import Dataset
from tiny import PREFIX

from tract_trainer import Judge, ScoreScale
from tract_trainer.data.records import training_examples

CPU = ["--dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
DRAW = ["--max_new_tokens", "12", "--unfinished", "force"]
ROWS = [{"question": f"Name {i} facts.", "answer": f"{i} facts", "human": 1 + i % 5} for i in range(8)]
COLUMNS = json.dumps({"question": "instruction", "answer": "response", "human": "score"})


@pytest.fixture
def shaped(tmp_path):
    """A CSV file of scored responses with other columns, without rubric and rationale, and the flags that read it."""
    path = tmp_path / "mine.csv"
    with path.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    (tmp_path / "rubric.txt").write_text("Are the facts named?")
    return [path, "--columns", COLUMNS, "--rubric", tmp_path / "rubric.txt"]


def test_inspect_reads_them(shaped, seed_folder, capsys, done):
    done("inspect", *shaped, "--model_name_or_path", seed_folder, "--rows", "1", "--bf16", "false")
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 of 8 rows have a score to train on." in shown
    assert "### Rubric" in shown and "Are the facts named?" in shown and "facts named" in shown


def test_sft_generate_judge_and_evaluate_read_them(shaped, seed_folder, tmp_path, done):
    judge, cots = tmp_path / "judge", tmp_path / "cots"
    done("sft", "--data", *shaped, "--model_name_or_path", seed_folder, "--output_dir", judge, "--max_steps", "1", *CPU)
    done("generate", "--data", *shaped, "--model", judge, "--output_dir", cots, *DRAW, "--max_retries", "0")
    rows = Dataset.from_parquet(str(cots / "train.parquet"))
    assert rows["score"][:] == [float(row["human"]) for row in ROWS] and "Are the facts named?" in str(
        rows[0]["prompt"]
    )
    done("judge", "--input", *shaped, "--model", judge, "--output", tmp_path / "out.jsonl", *DRAW)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8
    done("evaluate", "--data", *shaped, "--model", judge, "--output", tmp_path / "out.json", "--num_cots", "0")
    result = json.loads((tmp_path / "out.json").read_text())
    assert [row["gold"] for row in result["judgments"]] == [float(row["human"]) for row in ROWS]


@pytest.fixture
def untrained(judge_folder, tmp_path):
    """A model without a judge_config.json, which puts its probability on the scale all the same."""
    folder = shutil.copytree(judge_folder, tmp_path / "model")
    (folder / "judge_config.json").unlink()
    return folder


def test_run_reads_them_and_evaluates_the_seed_model_first(shaped, untrained, tmp_path, capsys, done):
    run = tmp_path / "run"
    command = ["run", "--data", *shaped, "--model_name_or_path", untrained, "--output_dir", run, *CPU, *DRAW]
    command += ["--max_steps", "1", "--max_retries", "0", "--eval_fraction", "0.25", "--baseline"]
    done(*command)
    shown = capsys.readouterr().out
    before, trained = (json.loads((run / f"{name}.json").read_text()) for name in ("baseline", "evaluation"))
    assert before["judge"]["name"] == str(untrained) and trained["judge"]["name"] == str(run / "stage2")
    assert before["benchmark"] == trained["benchmark"] and before["settings"] == trained["settings"]
    prompts = [[row["prompt"] for row in result["judgments"]] for result in (before, trained)]
    assert prompts[0] == prompts[1]  # asked in the same way
    assert "untrained" in shown and "The judges of this run" in shown
    assert shown.index("[0/4]") < shown.index("[1/4]")


def test_rows_without_a_rationale_are_trained_on_their_score_alone():
    records = [{"instruction": "a", "response": "b", "rubric": "c", "score": 4}]
    (row,) = training_examples(records, ScoreScale.integers(1, 5), PREFIX)
    assert row["completion"] == f"{PREFIX}4"


def test_one_record_is_shaped_like_many(judge_folder, tmp_path, capsys, done):
    (tmp_path / "r.json").write_text(json.dumps({"frage": "Name a prime.", "response": "7"}))
    flags = ["--columns", '{"frage": "instruction"}', "--rubric", "Right?", "--num_cots", "0"]
    done("judge", "--model", judge_folder, "--record", tmp_path / "r.json", *flags)
    judgment = json.loads(capsys.readouterr().out)
    record = {"instruction": "Name a prime.", "response": "7", "rubric": "Right?"}
    expected = Judge.from_pretrained(judge_folder).score(record, 0)
    assert judgment["score"] == pytest.approx(expected.score) and judgment["rationale"] == ""


# An untrained model


def test_an_untrained_model_judges_with_a_scale(untrained, tmp_path, capsys, done, refused):
    (tmp_path / "r.json").write_text('{"instruction": "Name a prime.", "response": "7", "rubric": "Right?"}')
    (tmp_path / "t.jinja").write_text("Rate {{ response }}. ")
    command = ["judge", "--model", untrained, "--record", tmp_path / "r.json", "--num_cots", "0"]
    assert "give its scale" in refused(*command)
    flags = ["--score_labels", *"12345", "--score_values", *"02468", "--score_prefix", PREFIX]
    done(*command, *flags, "--prompt_template", tmp_path / "t.jinja")
    judgment = json.loads(capsys.readouterr().out)
    scale = ScoreScale(list("12345"), [0, 2, 4, 6, 8])
    judge = Judge.from_pretrained(untrained, scale=scale, score_prefix=PREFIX, prompt_template="Rate {{ response }}. ")
    expected = judge.score(json.loads((tmp_path / "r.json").read_text()), 0)
    assert set(judgment["probs"]) == set("12345")
    assert judgment["score"] == pytest.approx(expected.score, abs=1e-5) and judgment["reason"] == ""
    trained = refused("judge", "--model", tmp_path / "r.json", *command[3:])
    assert "r.json" in trained


def test_a_trained_judge_is_asked_as_it_was_trained(judge_folder, tmp_path, refused):
    (tmp_path / "r.json").write_text('{"prompt": "x"}')
    command = ["judge", "--model", judge_folder, "--record", tmp_path / "r.json", "--score_labels", "1", "2"]
    assert "has a judge_config.json, which says how it was trained to be asked. Leave out scale" in refused(*command)


def test_an_untrained_model_writes_rationales_for_scores(seed_folder, tmp_path, done):
    rows = [{"instruction": "a", "response": "b", "rubric": "c", "score": 1.5 + i} for i in range(3)]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    command = ["generate", "--data", tmp_path / "in.json", "--model", seed_folder, "--output_dir", tmp_path / "cots"]
    done(*command, "--score_labels", *"12345", *DRAW, "--max_retries", "0")
    written = Dataset.from_parquet(str(tmp_path / "cots" / "train.parquet"))
    assert written["score"][:] == [1.5, 2.5, 3.5]
    assert all(f"{PREFIX}" in str(row["completion"]) for row in written)


# Models that cannot be loaded


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda data: POINTER.encode(), "model.safetensors is a Git LFS pointer, not the file"),
        ("model.safetensors", lambda data: data[:-100], "model.safetensors is damaged: "),
        ("model.safetensors", lambda data: data[:4], "model.safetensors is damaged: "),
        (
            "tokenizer.json",
            lambda data: POINTER.encode(),
            "tokenizer.json is a Git LFS pointer, not the file",
        ),
        ("tokenizer.json", lambda data: data[: len(data) // 2], "tokenizer.json is damaged: "),
        ("config.json", lambda data: data[:20], "config.json is damaged: "),
        ("adapter_config.json", lambda data: b"{", "adapter_config.json is damaged: "),
    ],
)
@pytest.mark.parametrize("command", ["judge", "sft", "inspect"])
def test_a_damaged_file_of_a_model_is_named(
    judge_folder, records_file, tmp_path, refused, command, name, damage, message
):
    folder = shutil.copytree(judge_folder, tmp_path / "damaged")
    path = folder / name
    path.write_bytes(damage(path.read_bytes() if path.exists() else b""))
    flags = {
        "judge": ["judge", "--model", folder, "--input", records_file, "--output", tmp_path / "out.jsonl"],
        "sft": ["sft", "--data", records_file, "--output_dir", tmp_path / "x", "--model_name_or_path", folder, *CPU],
        "inspect": ["inspect", records_file, "--model_name_or_path", folder],
    }
    said = refused(*flags[command])
    assert message in said and "\n" not in said


FULL_DISK = """
import resource, sys
from tract_trainer.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # as on a disk that fills
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_while_weights_are_saved_is_one_line(seed_folder, records_file, tmp_path):
    command = ["sft", "--data", records_file, "--output_dir", tmp_path / "judge", "--model_name_or_path", seed_folder]
    command += [*CPU, "--max_steps", "1", "--disable_tqdm", "true"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *map(str, command)], capture_output=True, text=True, cwd=tmp_path
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("tract sft: error: ") and "too large" in last, done.stderr[-2000:]
