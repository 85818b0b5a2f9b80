"""What stands at an output: nobody's files are lost, and work goes on only where it is the same work."""

import json
import shutil

import pytest
from datasets import Dataset
from fake import fake_judge, sure

from tract_trainer import generate_cot_dataset
from tract_trainer.cli import pipeline
from tract_trainer.data.store import locked

DRAW = ["--max_new_tokens", "60", "--repetition_penalty", "1.0", "--top_p", "0.5"]
CPU = ["--dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]


def tree(folder):
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Files of others


@pytest.fixture
def others(tmp_path):
    """A folder of the user's with every name that a command writes."""
    folder = tmp_path / "data"
    for name in ("train.parquet", "settings.json", "report.json", "README.md", "stage1/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of the user")
    return folder


@pytest.mark.parametrize("command", ["generate", "sft", "run"])
def test_a_folder_with_files_of_others_is_refused(others, judge_folder, seed_folder, records_file, refused, command):
    before = tree(others)
    model = ["--model", judge_folder, *DRAW] if command == "generate" else ["--model_name_or_path", seed_folder, *CPU]
    message = refused(command, "--data", records_file, "--output_dir", others, *model)
    assert message == (
        f"tract {command}: error: {others} holds files that tract did not write, such as 'README.md'. Give another "
        "place for the output, or replace what is in the way with --overwrite (overwrite=True)."
    )
    assert tree(others) == before


@pytest.mark.parametrize(("command", "other"), [("generate", "run"), ("run", "generate"), ("generate", "evaluate")])
def test_a_folder_of_another_command_is_refused(seed_folder, records_file, tmp_path, refused, command, other):
    folder = tmp_path / "there"
    folder.mkdir()
    settings = {"tract_trainer_version": "1", "command": f"tract {other}", "seed": 42}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "train.parquet").write_text("finished")
    model = ["--model_name_or_path", seed_folder, *CPU]
    if command == "generate":
        model = ["--model", seed_folder, "--score_labels", *"12345", *DRAW]
    message = refused(command, "--data", records_file, "--output_dir", folder, *model)
    assert message == (
        f"tract {command}: error: {folder}/settings.json belongs to work of tract {other}, whose settings would be "
        "replaced. Give another place for the output."
    )
    assert json.loads((folder / "settings.json").read_text()) == settings


def test_commands_say_whose_settings_they_write(tmp_path):
    judge = fake_judge(lambda prompt: [sure(4)])
    generate_cot_dataset(judge, Dataset.from_list([{"prompt": "Rate it.", "score": 4}]), output_dir=tmp_path / "cots")
    settings = json.loads((tmp_path / "cots" / "settings.json").read_text())
    assert settings["command"] == "tract generate"


def test_with_overwrite_rationales_replace_files_of_others(others, judge_folder, records_file, done):
    command = ["generate", "--data", records_file, "--output_dir", others, "--model", judge_folder, *DRAW]
    done(*command, "--unfinished", "force", "--overwrite")
    assert len(Dataset.from_parquet(str(others / "train.parquet"))) == 8
    assert (others / "README.md").read_text() == "README.md of the user"  # rationales have no such file


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.settings.json", "out.jsonl.unfinished/notes.txt"])
def test_judgments_do_not_replace_files_of_others(judge_folder, records_file, tmp_path, refused, done, name):
    theirs, output = tmp_path / name, tmp_path / "out.jsonl"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text('{"mine": 1}')
    command = ["judge", "--model", tmp_path / "no model is loaded", "--input", records_file, "--output", output]
    assert "that tract did not write" in refused(*command).replace("and tract did", "that tract did")
    assert tree(tmp_path) == {name: b'{"mine": 1}'}
    done("judge", "--model", judge_folder, *command[3:], *DRAW, "--overwrite")
    assert len(output.read_text().splitlines()) == 8
    assert (theirs.read_text() == '{"mine": 1}') == ("unfinished" in name)  # what was not in the way is still there


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "--output must be a file for the judgments, such as judged.jsonl; found '.'."),
        ("folder", "folder is a folder, and a file is to be written there. Give another place for it."),
    ],
)
def test_judgments_go_into_a_file(judge_folder, records_file, tmp_path, monkeypatch, refused, output, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    command = ["judge", "--model", judge_folder, "--input", records_file, "--output", output]
    assert refused(*command).endswith(message)


# Judgments


def test_a_file_of_records_is_judged_and_an_interrupted_one_goes_on(
    judge_folder, records_file, tmp_path, done, refused
):
    output = tmp_path / "judged.jsonl"
    command = ["judge", "--model", judge_folder, "--input", records_file, "--output", output, *DRAW]
    done(*command)
    finished = output.read_text()
    assert len(finished.splitlines()) == 8
    output.unlink()
    begun = tmp_path / "judged.jsonl.unfinished" / "process-00000.jsonl"
    begun.parent.mkdir()
    key = pipeline.digest(json.loads(records_file.read_text())[5])
    row = {"key": key, **json.loads(finished.splitlines()[5]), "rationale": "of the killed one"}
    begun.write_text(json.dumps(row) + '\n{"key": "6", "sco')  # killed in the middle of a line
    done(*command)
    lines = output.read_text().splitlines()
    assert json.loads(lines.pop(5))["rationale"] == "of the killed one"
    kept = [line for i, line in enumerate(finished.splitlines()) if i != 5]
    for line, expected in zip(map(json.loads, lines), map(json.loads, kept), strict=True):
        for row in (line, expected):  # judged in batches of different sizes
            row["numbers"] = [row.pop("score"), *row.pop("probs"), row.pop("std"), row.pop("mass")]
        assert line.pop("numbers") == pytest.approx(expected.pop("numbers"), abs=1e-6)
        assert line == expected
    assert not begun.parent.exists()
    finished = output.read_text()
    message = refused(*command, "--seed", "7")  # other settings are not mixed in
    assert f"use --overwrite (overwrite=True) or delete {output}.settings.json and {output}." in message
    assert output.read_text() == finished
    done(*command, "--seed", "7", "--overwrite")
    assert output.read_text() != finished


def test_a_corrected_record_alone_is_judged_anew(judge_folder, tmp_path, done, refused):
    data, output = tmp_path / "in.json", tmp_path / "out.jsonl"
    folder = tmp_path / "out.jsonl.unfinished"
    records = [{"prompt": f"Rate the response from 1 to 5. The response names {i} facts.\n"} for i in range(3)]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    bad = {**records[2], "tools": "[{"}
    data.write_text(json.dumps([*records[:2], bad]))
    command = ["judge", "--model", judge_folder, "--input", data, "--output", output, *DRAW]
    assert "Record 2: `tools` must be a list of tools" in refused(*command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json"]  # none was judged
    # The same found late: two are judged, the third is not.
    data.write_text(json.dumps(records))
    done(*command)
    finished, keys = output.read_text().splitlines(), [pipeline.digest(record) for record in records]
    output.unlink()
    folder.mkdir()
    rows = [{"key": key, **json.loads(line), "rationale": "kept"} for key, line in zip(keys, finished, strict=True)]
    (folder / "process-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.write_text(json.dumps([records[0], {**records[1], "tools": tools}, records[2]]))
    done(*command)
    found = [json.loads(line)["rationale"] for line in output.read_text().splitlines()]
    assert found[0] == found[2] == "kept" and found[1] != "kept"
    data.write_text(json.dumps(records))
    assert "records: " in refused(*command)  # a finished file is not of these records


def test_a_record_that_is_there_twice_is_judged_once(judge_folder, tmp_path, done):
    record = {"prompt": "Rate the response from 1 to 5. The response names 0 facts.\n"}
    (tmp_path / "in.json").write_text(json.dumps([record, {"prompt": "Another."}, record]))
    command = ["judge", "--model", judge_folder, "--input", tmp_path / "in.json", "--output", tmp_path / "out.jsonl"]
    done(*command, *DRAW)
    first, second, third = (tmp_path / "out.jsonl").read_text().splitlines()
    assert first == third != second


def test_the_same_command_started_while_the_file_is_written_loses_nothing(
    judge_folder, records_file, tmp_path, refused, done, monkeypatch
):
    output = tmp_path / "judged.jsonl"
    command = ["judge", "--model", judge_folder, "--input", records_file, "--output", output, *DRAW]
    rows, met = pipeline.store.finished_rows, []

    def meeting(*args):  # all rows are finished, and their file is written
        for number, row in enumerate(rows(*args)):
            if number == 4:
                met.append(refused(*command))
            yield row

    monkeypatch.setattr(pipeline.store, "finished_rows", meeting)
    done(*command)
    assert len(met) == 1 and f"Another run is writing to {output}.unfinished." in met[0]
    assert len(output.read_text().splitlines()) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judged.jsonl", "judged.jsonl.settings.json"]
    done(*command)  # and one that starts later finds it finished


def test_a_start_that_waited_for_the_lock_finds_the_finished_file(judge_folder, records_file, tmp_path, done):
    output = tmp_path / "judged.jsonl"
    command = ["judge", "--model", judge_folder, "--input", records_file, "--output", output, *DRAW]
    done(*command)
    finished = output.read_text()
    with locked(tmp_path / "judged.jsonl.unfinished", 0):  # one that is killed here leaves a lock and no rows
        pass
    done(*command)
    assert output.read_text() == finished and not (tmp_path / "judged.jsonl.unfinished").exists()


# Training


@pytest.fixture
def sft(seed_folder, records_file, tmp_path):
    command = ["sft", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", tmp_path / "judge"]
    return [*command, *CPU, "--max_steps", "1"]


def test_a_finished_judge_is_kept_unless_training_resumes_or_overwrites(sft, tmp_path, done, refused):
    weights = tmp_path / "judge" / "model.safetensors"
    done(*sft)
    first = weights.read_bytes()
    message = refused(*sft, "--learning_rate", "0.01")
    assert "judge holds a training. Resume it with --resume_from_checkpoint true, give another" in message
    assert weights.read_bytes() == first
    done(*sft, "--resume_from_checkpoint", "true")  # nothing is left to do
    assert weights.read_bytes() == first
    (tmp_path / "judge" / "checkpoint-900").mkdir()
    done(*sft, "--learning_rate", "0.01", "--overwrite")
    assert weights.read_bytes() != first
    assert not (tmp_path / "judge" / "checkpoint-900").exists()  # a later resume would have gone on from it


def test_the_seed_model_and_another_judge_are_not_trained_over(sft, judge_folder, seed_folder, tmp_path, refused):
    same = sft[:]
    same[6] = seed_folder
    assert f"output_dir is {seed_folder}, the folder of the model to train." in refused(*same, "--overwrite")
    same[6] = shutil.copytree(judge_folder, tmp_path / "other")
    before = tree(tmp_path / "other")
    assert "other holds files that tract did not write, such as 'README.md'" in refused(*same)
    assert tree(tmp_path / "other") == before


def rewrite(path, target, change):
    """A copy of the records with a change to the first."""
    records = json.loads(path.read_text())
    change(records[0])
    target.write_text(json.dumps(records))
    return target


def test_training_resumes_with_the_same_data_objective_and_model_only(
    sft, seed_folder, records_file, tmp_path, done, refused
):
    resume = [*sft, "--resume_from_checkpoint", "true"]
    done(*sft)
    moved = rewrite(records_file, tmp_path / "moved.json", lambda record: None)
    done(*resume, "--data", moved, "--max_steps", "2", "--learning_rate", "1e-3")  # what a longer training changes
    scores = rewrite(records_file, tmp_path / "scores.json", lambda record: record["gpt4_score"].reverse())
    done(*resume, "--data", scores, "--max_steps", "2")  # the same mean
    reversed_ = rewrite(records_file, tmp_path / "b.json", lambda record: record.update(gpt4_score=[5, 5, 5]))
    assert "rows: " in refused(*resume, "--data", reversed_)
    assert "score_loss_weight: 1.0 there, 0.5 now" in refused(*resume, "--score_loss_weight", "0.5")
    assert "score_loss_type: 'squared_error' there, 'crps' now" in refused(*resume, "--score_loss_type", "crps")
    assert "lora_r: 16 there, 4 now" in refused(*resume, "--lora_r", "4")
    explicit = [*sft, "--resume_from_checkpoint", tmp_path / "judge" / "checkpoint-2"]
    assert "score_loss_weight: 1.0 there, 0.5 now" in refused(*explicit, "--score_loss_weight", "0.5")
    seed = shutil.copytree(seed_folder, tmp_path / "seed")
    done(*resume, "--output_dir", tmp_path / "second", "--model_name_or_path", seed)
    weights = bytearray((seed / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (seed / "model.safetensors").write_bytes(weights)
    message = refused(*resume, "--output_dir", tmp_path / "second", "--model_name_or_path", seed)
    assert "seed_model: " in message and "rows: " not in message


def test_a_start_that_failed_before_it_trained_leaves_the_folder_free(sft, done, refused):
    assert "max_length" in refused(*sft, "--max_length", "8")
    done(*sft)


RUN = [*CPU, "--max_steps", "2", "--eval_fraction", "0.25", "--max_new_tokens", "12", "--max_retries", "0"]
RUN += ["--unfinished", "force"]


def test_a_seed_model_that_is_replaced_before_stage_2_is_refused(
    seed_folder, records_file, tmp_path, monkeypatch, refused, done
):
    from tract_trainer.cli import run

    seed = shutil.copytree(seed_folder, tmp_path / "seed")
    command = ["run", "--data", records_file, "--model_name_or_path", seed, "--output_dir", tmp_path / "run", *RUN]
    generate, kept = run.generate_cot_dataset, (seed / "model.safetensors").read_bytes()

    def replace(*args, **kwargs):
        (seed / "model.safetensors").write_bytes(kept[:-8] + bytes(8))
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run, "generate_cot_dataset", replace)
        assert f"The files of the seed model {seed} have changed since stage 1" in refused(*command)
    assert "seed_model: " in refused(*command)
    assert not (tmp_path / "run" / "stage2").exists()
    (seed / "model.safetensors").write_bytes(kept)
    done(*command)
    done(*command, "--max_steps", "1", "--overwrite")
    state = json.loads((tmp_path / "run" / "stage2" / "trainer_state.json").read_text())
    assert state["global_step"] == 1


def test_training_that_diverges_is_one_line_and_no_judge(sft, tmp_path, refused):
    message = refused(*sft, "--max_steps", "9", "--learning_rate", "1e30", "--save_steps", "1", "--logging_steps", "1")
    assert message.startswith("tract sft: error: The ") and "not finite" in message and "has diverged. The" in message
    assert not (tmp_path / "judge" / "model.safetensors").exists()
