"""The command line: one message and exit code 2 for a mistake, a job done otherwise."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import RATIONALES, make_model, make_tokenizer, train_judge

from tract_trainer.cli import COMMANDS, main


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    """A saved judge that has learned to close its rationales."""
    folder = tmp_path_factory.mktemp("judge")
    train_judge(folder).save_model()
    return folder


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    """Eight records in the Prometheus format, with three scores and rationales each."""
    records = [
        {
            "instruction": f"Rate the response from 1 to 5. The response names {i} facts.\n",
            "gpt4_score": [1 + i % 5, 1 + i % 5, 1 + (i + 1) % 5],
            "gpt4_feedback": [RATIONALES[i], RATIONALES[(i + 1) % 8], RATIONALES[(i + 2) % 8]],
        }
        for i in range(8)
    ]
    path = tmp_path_factory.mktemp("data") / "records.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    tokenizer = make_tokenizer("qwen")
    make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refused(capsys, *argv):
    """The message that a mistake ends with."""
    assert main([str(argument) for argument in argv]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    return message[-1] if len(message) == 1 else "\n".join(message)


DRAW = ["--max_new_tokens", "60", "--repetition_penalty", "1.0", "--top_p", "0.5"]


# Start-up


def test_importing_the_package_loads_no_torch():
    def loaded(statement):
        code = f"import sys; {statement}; print('torch' in sys.modules)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert loaded("import tract_trainer, tract_trainer.cli; tract_trainer.__version__") == "False"
    assert loaded("from tract_trainer import expected_score") == "True"  # this test can fail


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(f"    {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_its_settings(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and f"usage: tract {command}" in shown and "--config FILE.yaml" in shown


# Mistakes


def test_an_unknown_key_in_the_yaml_is_named_with_the_nearest_one(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("modle: judge\nmodel: judge\n")
    message = refused(capsys, "judge", "--config", tmp_path / "x.yaml")
    assert message == (
        "tract judge: error: '--modle' is not a setting of tract judge. Did you mean '--model'? --help lists them."
    )


def test_a_choice_from_the_yaml_is_checked(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("unfinished: froce\n")
    message = refused(capsys, "judge", "--config", tmp_path / "x.yaml")
    assert message == "tract judge: error: unfinished must be one of unscored, force, got 'froce'."


@pytest.mark.parametrize("engine", ["server", "vlm"])
def test_a_run_takes_the_engines_that_load_a_judge(tmp_path, capsys, engine):
    message = refused(capsys, "run", "--engine", engine, "--use_cpu", "--bf16", "false")
    assert f"use engine transformers or vllm, not '{engine}'. To write the rationales with servers" in message


def test_a_missing_yaml_is_named(capsys):
    assert "nowhere.yaml" in refused(capsys, "judge", "--config", "nowhere.yaml")


def test_a_value_that_the_config_refuses_is_a_mistake(capsys):
    message = refused(capsys, "sft", "--output_dir", "x", "--use_cpu", "--bf16", "false", "--score_labels", "a", "b")
    assert message.startswith("tract sft: error: The labels ['a', 'b'] are not all numbers")


def test_a_folder_without_judge_config_is_named(seed_folder, tmp_path, capsys):
    (tmp_path / "r.json").write_text('{"prompt": "x"}')
    message = refused(capsys, "judge", "--model", seed_folder, "--record", tmp_path / "r.json")
    assert message.startswith(f"tract judge: error: {str(seed_folder)!r} holds no judge_config.json")


def test_missing_data_and_records_are_named(judge_folder, seed_folder, capsys):
    sft = ["sft", "--output_dir", "x", "--use_cpu", "--bf16", "false", "--model_name_or_path", seed_folder]
    assert "--data is missing" in refused(capsys, *sft)
    assert "There is no data at 'nowhere.jsonl'" in refused(capsys, *sft, "--data", "nowhere.jsonl")
    assert "Give either --record" in refused(capsys, "judge", "--model", judge_folder)
    assert "Give either --benchmark" in refused(capsys, "evaluate", "--model", judge_folder)
    absent = refused(capsys, "evaluate", "--model", judge_folder, "--benchmark", "flask", "--path", "nowhere")
    assert "The benchmark 'flask' is not at 'nowhere'. Fetch flask_eval.json from" in absent


def test_a_model_that_is_not_there_and_a_broken_record_are_mistakes(judge_folder, records_file, tmp_path, capsys):
    sft = ["sft", "--output_dir", tmp_path / "x", "--use_cpu", "--bf16", "false", "--data", records_file]
    assert "nowhere" in refused(capsys, *sft, "--model_name_or_path", tmp_path / "nowhere")
    (tmp_path / "r.json").write_text("{")
    assert "is not valid JSON" in refused(capsys, "judge", "--model", judge_folder, "--record", tmp_path / "r.json")
    (tmp_path / "r.json").write_text("[]")
    assert "must hold one record" in refused(capsys, "judge", "--model", judge_folder, "--record", tmp_path / "r.json")
    (tmp_path / "x.yaml").write_text("model: [")
    assert "x.yaml" in refused(capsys, "judge", "--config", tmp_path / "x.yaml")


def test_a_bug_keeps_its_traceback(monkeypatch):
    import tract_trainer.commands as commands

    def broken(_argv):
        raise ValueError("a bug")

    monkeypatch.setattr(commands, "judge", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["judge"])


# Jobs


def test_one_record_is_judged_and_printed(judge_folder, tmp_path, capsys):
    (tmp_path / "r.json").write_text('{"prompt": "Rate the response from 1 to 5. The response names 0 facts.\\n"}')
    argv = [
        "judge",
        "--model",
        str(judge_folder),
        "--record",
        str(tmp_path / "r.json"),
        "--num_cots",
        "3",
        *DRAW,
        "--temperature",
        "0",
    ]
    assert main(argv) == 0
    judgment = json.loads(capsys.readouterr().out)
    assert 0 < judgment["score"] <= 5 and judgment["rationale"] and set(judgment["probs"]) == set("12345")
    assert len(judgment["labels"]) == 3


def test_a_file_of_records_is_judged_and_an_interrupted_one_goes_on(judge_folder, records_file, tmp_path):
    output = tmp_path / "judged.jsonl"
    argv = ["judge", "--model", str(judge_folder), "--input", str(records_file), "--output", str(output), *DRAW]
    assert main(argv) == 0
    whole = output.read_text()
    assert len(whole.splitlines()) == 8
    output.unlink()
    begun = tmp_path / "judged.jsonl.unfinished" / "process-00000.jsonl"
    begun.parent.mkdir()
    row = {"key": "5", **json.loads(whole.splitlines()[5]), "rationale": "of the killed one"}
    begun.write_text(json.dumps(row) + '\n{"key": "6", "sco')  # killed in the middle of a line
    assert main(argv) == 0
    found = output.read_text().splitlines()
    assert json.loads(found.pop(5))["rationale"] == "of the killed one"
    assert found == [line for i, line in enumerate(whole.splitlines()) if i != 5]
    assert not begun.parent.exists()
    whole = output.read_text()
    assert main([*argv, "--seed", "7"]) == 2  # other settings are not mixed in
    assert output.read_text() == whole


def test_training_into_a_folder_with_a_finished_stage_trains_anew(seed_folder, records_file, tmp_path):
    argv = ["sft", "--model_name_or_path", seed_folder, "--data", records_file, "--output_dir", tmp_path / "judge"]
    argv += ["--max_steps", "2", "--use_cpu", "--bf16", "false", "--report_to", "none", "--dtype", "float32"]
    weights = tmp_path / "judge" / "model.safetensors"
    assert main([str(argument) for argument in argv]) == 0
    first = weights.read_bytes()
    assert main([str(argument) for argument in [*argv, "--learning_rate", "0.01"]]) == 0
    second = weights.read_bytes()
    assert second != first
    assert main([str(argument) for argument in [*argv, "--resume_from_checkpoint", "true"]]) == 0  # nothing left to do
    assert weights.read_bytes() == second


def test_parquet_files_are_read(tmp_path):
    from datasets import Dataset

    from tract_trainer.pipeline import load_rows

    Dataset.from_list([{"prompt": "a", "completion": "b", "score": 1.0}]).to_parquet(tmp_path / "train.parquet")
    assert load_rows(str(tmp_path / "train.parquet"))[0]["score"] == 1.0


def test_a_benchmark_file_is_evaluated(judge_folder, records_file, tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    argv = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "--path", records_file, "--output", output]
    assert main([str(argument) for argument in [*argv, *DRAW]]) == 0
    assert "Pearson" in capsys.readouterr().out
    result = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["methods"]["RAIL"]["n"] == 8 and len(result["judgments"]) == 8
    gold = [judgment["gold"] for judgment in result["judgments"]]
    assert gold[0] == pytest.approx(4 / 3) and gold[4] == pytest.approx(11 / 3)
    scored = [j for j in result["judgments"] if j["score"] is not None]
    expected = math.sqrt(sum((j["score"] - j["gold"]) ** 2 for j in scored) / len(scored))
    assert result["methods"]["RAIL"]["rmse"] == pytest.approx(expected)


def test_several_benchmarks_go_into_a_folder_with_a_mean_and_entries_for_the_model_card(
    judge_folder, records_file, tmp_path, capsys
):
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for name in ("mt_bench_eval.json", "vicuna_eval.json"):
        (data / name).write_text(records_file.read_text())
    argv = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "vicuna", "--path", data]
    argv += ["--output", output, "--num_cots", "0", "--max_records", "6"]
    assert main([str(argument) for argument in argv]) == 0
    shown = capsys.readouterr().out
    assert "mt_bench" in shown and "vicuna" in shown and "mean" in shown
    results = [json.loads((output / f"{name}.json").read_text()) for name in ("mt_bench", "vicuna")]
    assert [result["methods"]["RAIL"]["n"] for result in results] == [6, 6]
    assert results[0]["judge"]["name"] == str(judge_folder) and results[0]["judge"]["revision"] is None
    (entry,) = yaml.safe_load((output / "model-index.yaml").read_text())["model-index"]
    assert [part["dataset"]["name"] for part in entry["results"]] == ["mt_bench", "vicuna"]
    assert (output / "vicuna.md").is_file() and (output / "vicuna-confusion.png").is_file()


def test_own_records_are_evaluated_under_the_name_of_their_file(judge_folder, tmp_path):
    rows = [{"question": f"Rate {i}", "human": 1 + i} for i in range(5)]
    (tmp_path / "mine [1].json").write_text(json.dumps(rows))
    columns = json.dumps({"question": "prompt", "human": "score"})
    argv = ["evaluate", "--model", judge_folder, "--data", tmp_path / "mine [1].json", "--columns", columns]
    assert main([str(argument) for argument in [*argv, "--num_cots", "0", "--output", tmp_path / "out"]]) == 0
    result = json.loads((tmp_path / "out" / "mine-1.json").read_text())
    assert [row["gold"] for row in result["judgments"]] == [1, 2, 3, 4, 5]
    assert (tmp_path / "out" / "mine-1.yaml").is_file()


def test_settings_of_an_evaluation_that_do_not_fit_are_refused(judge_folder, records_file, tmp_path, capsys):
    both = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "vicuna"]
    assert "--path must be the folder of the 2 benchmarks, found" in refused(capsys, *both, "--path", records_file)
    for name in ("mt_bench_eval.json", "vicuna_eval.json"):
        (tmp_path / name).write_text(records_file.read_text())
    message = refused(capsys, *both, "--path", tmp_path, "--output", "one.json")
    assert "--output one.json is one file, and 2 benchmarks have one each" in message
    one = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "--path", tmp_path]
    assert "--columns renames the columns of --data" in refused(capsys, *one, "--columns", '{"a": "b"}')
    own = ["evaluate", "--model", judge_folder, "--data", records_file]
    for wrong in ("[1]", "{'a': 'b'}"):
        assert "--columns must be a JSON object such as" in refused(capsys, *own, "--columns", wrong)


def test_both_stages_run_from_one_yaml_and_a_second_call_does_nothing_again(
    seed_folder, records_file, tmp_path, capsys, monkeypatch
):
    settings = {
        "data": str(records_file),
        "model_name_or_path": str(seed_folder),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "dtype": "float32",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "eval_fraction": 0.25,
        "max_new_tokens": 12,
        "max_retries": 0,
        "unfinished": "force",
        "max_cot_records": 10,
    }
    config = tmp_path / "run.yaml"
    config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()))
    assert main(["run", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "Stage 1 on 18 annotated rationales of 6 records" in shown and "RAIL" in shown
    folder = Path(settings["output_dir"])
    first = json.loads((folder / "evaluation.json").read_text())
    assert first["methods"]["RAIL"]["n"] == 2 and first["methods"]["RAIL"]["unscored"] == 0
    assert json.loads((folder / "cots" / "report.json").read_text())["rationales"] == 10
    saved = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert {path.parent.name for path in saved} >= {"stage1", "stage2"}

    assert main(["run", "--config", str(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == saved
    assert json.loads((folder / "evaluation.json").read_text()) == first

    assert main(["run", "--config", str(config), "--max_steps", "4"]) == 2
    assert "max_steps: 3 there, 4 now" in capsys.readouterr().err
    assert main(["run", "--config", str(config), "--unfinished", "drop"]) == 2  # stage 2 was trained on the others, too
    assert "unfinished: 'force' there, 'drop' now" in capsys.readouterr().err

    # A checkpoint that was pushed leaves a judge in the folder: it is no sign that training came to its end.
    (folder / "stage2.done").unlink()
    assert main(["run", "--config", str(config)]) == 0
    assert (folder / "stage2.done").exists()
    assert {path for path in saved if path.stat().st_mtime_ns != saved[path]} == {folder / "stage2/model.safetensors"}

    (folder / "settings.json").unlink()
    assert main(["run", "--config", str(config)]) == 2
    assert "stage1 holds work of an earlier run" in capsys.readouterr().err


def test_an_own_rationale_too_long_for_stage_2_is_left_out(seed_folder, records_file, tmp_path, caplog):
    """`max_length` has been settled by then, and stage 1 has been trained with it."""
    flags = ["--max_steps", "2", "--dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    flags += ["--max_new_tokens", "200", "--temperature", "1.5", "--unfinished", "force", "--max_retries", "0"]
    flags += ["--eval_fraction", "0.25", "--max_length", "150", "--model_name_or_path", seed_folder]
    command = ["run", "--data", records_file, "--output_dir", tmp_path / "run", *flags]
    assert main([str(word) for word in command]) == 0
    assert "missing_score='drop': " in caplog.text and "lose their score to max_length=" in caplog.text
