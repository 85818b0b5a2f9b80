"""The command line: one message and exit code 2 for a mistake, a job done otherwise."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from tiny import PREFIX, RATIONALES
from trl import ModelConfig

from tract_trainer import JudgeConfig, RegressionAwareSFTConfig
from tract_trainer._distributed import file_lock
from tract_trainer.cli import commands
from tract_trainer.cli.main import COMMANDS, main
from tract_trainer.cli.pipeline import training_data
from tract_trainer.cli.run import learned_settings, split
from tract_trainer.data.datasets import as_dataset
from tract_trainer.data.reading import read_rows
from tract_trainer.errors import InputError

DRAW = ["--max_new_tokens", "60", "--repetition_penalty", "1.0", "--top_p", "0.5"]


# Start-up


def test_importing_the_package_loads_no_torch():
    def loaded(statement):
        code = f"import sys; {statement}; print('torch' in sys.modules)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert loaded("import tract_trainer, tract_trainer.cli.main; tract_trainer.__version__") == "False"
    assert loaded("from tract_trainer import expected_score") == "True"  # this test can fail


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and all(re.search(rf"^    {name}\s", shown, re.M) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_its_settings(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and f"usage: tract {command}" in shown and "--config FILE.yaml" in shown


# Mistakes


def test_an_unknown_key_in_the_yaml_is_named_with_the_nearest_one(tmp_path, refused):
    (tmp_path / "x.yaml").write_text("modle: judge\nmodel: judge\n")
    message = refused("judge", "--config", tmp_path / "x.yaml")
    assert message == (
        "tract judge: error: '--modle' is not a setting of tract judge. Did you mean '--model'? --help lists them."
    )


def test_a_choice_from_the_yaml_is_checked(tmp_path, refused):
    (tmp_path / "x.yaml").write_text("unfinished: froce\n")
    message = refused("judge", "--config", tmp_path / "x.yaml")
    assert message == "tract judge: error: unfinished must be one of unscored, force, got 'froce'."


@pytest.mark.parametrize("engine", ["server", "vlm"])
def test_a_run_takes_the_engines_that_load_a_judge(tmp_path, refused, engine):
    message = refused("run", "--engine", engine, "--use_cpu", "--bf16", "false")
    assert "--engine" in message and f"invalid choice: '{engine}'" in message
    (tmp_path / "x.yaml").write_text(f"engine: {engine}\n")
    message = refused("run", "--config", tmp_path / "x.yaml", "--use_cpu", "--bf16", "false")
    assert message == f"tract run: error: engine must be one of transformers, vllm, got '{engine}'."


def test_a_missing_yaml_is_named(refused):
    assert "nowhere.yaml" in refused("judge", "--config", "nowhere.yaml")


def test_a_value_that_the_config_refuses_is_a_mistake(refused):
    message = refused("sft", "--output_dir", "x", "--use_cpu", "--bf16", "false", "--score_labels", "a", "b")
    assert message.startswith("tract sft: error: The labels ['a', 'b'] are not all numbers")


def test_a_folder_without_judge_config_is_named(seed_folder, tmp_path, refused):
    (tmp_path / "r.json").write_text('{"prompt": "x"}')
    message = refused("judge", "--model", seed_folder, "--record", tmp_path / "r.json")
    assert message.startswith(f"tract judge: error: {str(seed_folder)!r} holds no judge_config.json")


def test_missing_data_and_records_are_named(judge_folder, seed_folder, refused):
    sft = ["sft", "--output_dir", "x", "--use_cpu", "--bf16", "false", "--model_name_or_path", seed_folder]
    assert "--data is missing" in refused(*sft)
    assert "There is no data to read at 'nowhere.jsonl'" in refused(*sft, "--data", "nowhere.jsonl")
    assert "Give either --record" in refused("judge", "--model", judge_folder)
    assert "Give either --benchmark" in refused("evaluate", "--model", judge_folder)
    absent = refused("evaluate", "--model", judge_folder, "--benchmark", "flask", "--path", "nowhere")
    assert "The benchmark 'flask' is not at 'nowhere'. Fetch flask_eval.json from" in absent


def test_a_model_that_is_not_there_and_a_broken_record_are_mistakes(judge_folder, records_file, tmp_path, refused):
    sft = ["sft", "--output_dir", tmp_path / "x", "--use_cpu", "--bf16", "false", "--data", records_file]
    assert "nowhere" in refused(*sft, "--model_name_or_path", tmp_path / "nowhere")
    (tmp_path / "r.json").write_text("{")
    assert "is not valid JSON" in refused("judge", "--model", judge_folder, "--record", tmp_path / "r.json")
    (tmp_path / "r.json").write_text("[]")
    assert "must hold one record" in refused("judge", "--model", judge_folder, "--record", tmp_path / "r.json")
    (tmp_path / "x.yaml").write_text("model: [")
    assert "x.yaml" in refused("judge", "--config", tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train_epochs", "many"], "invalid float value: 'many'. tract sft --help lists the settings."),
        (["--use_peft", "true", "--lora_target_modules", "nothing"], "check the target modules and try again. ("),
        (
            ["--eval_strategy", "steps"],
            "You have set `args.eval_strategy` to IntervalStrategy.STEPS but you didn't pass",
        ),
        (["--config"], "--config needs a YAML file."),
    ],
)
def test_what_a_library_refuses_is_one_line(seed_folder, records_file, tmp_path, refused, flags, message):
    argv = ["sft", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", tmp_path / "x", *CPU]
    said = refused(*argv, *flags)
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("num_cots: 1.5", "invalid int value: '1.5'. tract generate --help lists the settings."),
        ("temperature: [1]", "temperature must be a single value, found [1] in the file of --config."),
        ("temperature: true", "invalid float value: 'True'."),
        ("model: [3]", "model must be a single value, found [3] in the file of --config."),
        ("max-new-tokens: null", "max_new_tokens must be a single value, found None in the file of --config."),
    ],
)
def test_a_value_of_another_type_in_a_yaml_is_refused(tmp_path, refused, yaml_text, message):
    (tmp_path / "x.yaml").write_text(yaml_text)
    assert message in refused("generate", "--config", tmp_path / "x.yaml")


def test_a_file_has_no_splits(seed_folder, records_file, tmp_path, refused):
    argv = ["sft", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", tmp_path / "x", *CPU]
    assert "is a file and has no splits, so split='test' has no effect" in refused(*argv, "--split", "test")


def test_copies_of_a_record_are_on_one_side():
    rows = [{"prompt": str(number % 10), "score": 3} for number in range(40)]
    held_out, training = split(rows, None, 0.3, seed=0)
    assert len(held_out) == 12 and len(training) == 28
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in training}


def test_responses_to_one_instruction_are_on_one_side():
    rows = [{"instruction": f"Task {n % 10}", "response": str(n), "rubric": "Good?", "score": 3} for n in range(40)]
    held_out, training = split(rows, None, 0.3, seed=0)
    assert len(held_out) == 12 and len(training) == 28
    assert not {row["instruction"] for row in held_out} & {row["instruction"] for row in training}


def test_a_bug_keeps_its_traceback(monkeypatch):
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
    assert judgment["score"] == pytest.approx(4, abs=0.2) and judgment["rationale"].strip() == RATIONALES[0]
    assert set(judgment["probs"]) == set("12345") and judgment["labels"] == ["4"] * 3


def test_a_benchmark_file_is_evaluated(judge_folder, records_file, tmp_path, capsys):
    output = tmp_path / "evaluation.json"
    argv = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "--path", records_file, "--output", output]
    assert main([str(argument) for argument in [*argv, *DRAW]]) == 0
    assert "Pearson" in capsys.readouterr().out
    result = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["methods"]["RAIL"]["n"] == 8 and len(result["judgments"]) == 8
    gold = [judgment["gold"] for judgment in result["judgments"]]
    assert gold[0] == pytest.approx(4 / 3) and gold[4] == pytest.approx(11 / 3)
    expected = math.sqrt(sum((j["score"] - j["gold"]) ** 2 for j in result["judgments"]) / 8)
    assert result["methods"]["RAIL"]["rmse"] == pytest.approx(expected)
    assert main([str(argument) for argument in [*argv, *DRAW, "--fail_under", "rmse=9", "mae=9"]]) == 0
    for limit in ("rmse=0.001", "within_one=1.1"):
        with pytest.raises(
            SystemExit, match=rf"^tract evaluate: mt_bench: {limit.split('=')[0]} of RAIL is .*, the limi"
        ):
            main([str(argument) for argument in [*argv, *DRAW, "--fail_under", limit]])
    figures = result["methods"]["RAIL"]
    for name, side, end in (("pearson", "lower", figures["pearson_ci"][0]), ("mae", "upper", figures["mae_ci"][1])):
        between = f"{name}={(figures[name] + end) / 2:.6f}"
        assert main([str(argument) for argument in [*argv, *DRAW, "--fail-under", between]]) == 0
        message = f"mt_bench: the {side} end of the 95 % interval of {name} of RAIL is {end:.3f}, the limit is "
        with pytest.raises(SystemExit, match=f"^tract evaluate: {message}"):
            main([str(argument) for argument in [*argv, *DRAW, "--fail-under", between, "--strict"]])


def test_a_map_is_fitted_on_a_result_saved_with_the_judge_and_applied(
    judge_folder, records_file, tmp_path, capsys, done, refused
):
    judge = shutil.copytree(judge_folder, tmp_path / "judge")
    evaluate = ["evaluate", "--model", judge, "--benchmark", "mt_bench", "--path", records_file, "--output"]
    evaluate += [tmp_path / "r.json", *DRAW]
    ask = ["judge", "--model", judge, "--input", records_file, "--output", tmp_path / "out.jsonl", *DRAW]
    done(*evaluate)
    assert "The judge has no calibration." in refused(*ask, "--calibrated")
    assert "--model must be the folder of the judge" in refused("calibrate", tmp_path / "r.json")
    capsys.readouterr()
    done("calibrate", tmp_path / "r.json", "--model", judge)
    assert "A is calibrated, B is as judged." in " ".join(capsys.readouterr().out.split())
    result, made = json.loads((tmp_path / "r.json").read_text()), (tmp_path / "r.json").stat().st_mtime_ns
    done(*ask, "--calibrated")
    found = JudgeConfig.load(judge).calibration
    expected = [np.interp(row["score"], found["scores"], found["calibrated"]) for row in result["judgments"]]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert "calibration: " in refused(*ask)  # calibrated scores and others are not mixed
    done(*evaluate)  # the judgments of the result are as before
    assert (tmp_path / "r.json").stat().st_mtime_ns == made
    config = JudgeConfig.load(judge)
    dataclasses.replace(config, score_values=[0, 1, 2, 3, 4], calibration=None).save(judge)
    assert "score_values: [1.0, 2.0, 3.0, 4.0, 5.0] there" in refused(
        "calibrate", tmp_path / "r.json", "--model", judge
    )


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


def test_a_benchmark_of_several_responses_is_evaluated_with_a_rubric(judge_folder, tmp_path, capsys):
    row = {"prompt": "2 + 2?", "chosen": ["4"], "rejected": ["5", "6", "7"]}
    rows = [{**row, "id": f"{i}", "subset": name} for i, name in enumerate(["Math", "Math", "Safety"])]
    (tmp_path / "reward_bench_2.json").write_text(json.dumps(rows))
    argv = ["evaluate", "--model", judge_folder, "--benchmark", "reward_bench_2", "--num_cots", "0"]
    argv += ["--path", tmp_path / "reward_bench_2.json", "--rubric", "Is it right?", "--output", tmp_path / "r.json"]
    assert main([str(argument) for argument in argv]) == 0
    shown = capsys.readouterr().out
    assert "RAIL, the expected score, has accuracy = " in shown and "average" not in shown.split("\n")[0]
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["pair"] for row in result["judgments"]] == [0] * 4 + [1] * 4 + [2] * 4
    assert all("Is it right?" in row["prompt"] for row in result["judgments"])
    assert result["methods"]["RAIL"]["n"] == 3 and result["methods"]["RAIL"]["average"] is None  # four subsets lack
    assert main(["report", str(tmp_path / "r.json")]) == 0
    both = [str(tmp_path / "r.json")] * 2
    assert main(["compare", *both, "--output", str(tmp_path / "comparison")]) == 0
    assert "Accuracy" in (tmp_path / "comparison" / "comparison.md").read_text()


def test_own_records_are_evaluated_under_the_name_of_their_file(judge_folder, tmp_path, capsys, refused):
    rows = [{"question": f"Rate {i}", "human": 1 + i, "kind": "ab"[i % 2]} for i in range(5)]
    (tmp_path / "mine [1].json").write_text(json.dumps(rows))
    columns = json.dumps({"question": "prompt", "human": "score"})
    argv = ["evaluate", "--model", judge_folder, "--data", tmp_path / "mine [1].json", "--columns", columns]
    argv += ["--num_cots", "0", "--output", tmp_path / "out", "--by"]
    assert "There is no column 'model' to break figures down by;" in refused(*argv, "model")
    assert not (tmp_path / "out").exists()
    assert main([str(argument) for argument in [*argv, "kind"]]) == 0
    assert "By kind, the highest mean gold score first." in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "mine-1.json").read_text())
    assert [row["gold"] for row in result["judgments"]] == [1, 2, 3, 4, 5]
    groups = result["breakdowns"]["kind"]["groups"]
    assert {name: group["mean_gold"] for name, group in groups.items()} == {"a": 3, "b": 3}
    assert groups["b"]["mean_score"] == pytest.approx(
        (result["judgments"][1]["score"] + result["judgments"][3]["score"]) / 2
    )
    assert (tmp_path / "out" / "mine-1-model-index.yaml").is_file()


def test_settings_of_an_evaluation_that_do_not_fit_are_refused(judge_folder, records_file, tmp_path, refused):
    both = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "vicuna"]
    assert "--path must be the folder of the 2 benchmarks, found" in refused(*both, "--path", records_file)
    for name in ("mt_bench_eval.json", "vicuna_eval.json"):
        (tmp_path / name).write_text(records_file.read_text())
    message = refused(*both, "--path", tmp_path, "--output", "one.json")
    assert "--output one.json is one file, and 2 results have one each" in message
    one = ["evaluate", "--model", judge_folder, "--benchmark", "mt_bench", "--path", tmp_path]
    assert "--columns is for --data" in refused(*one, "--columns", '{"a": "b"}')
    assert "The records of 'mt_bench' have rubrics of their own." in refused(*one, "--rubric", "Right?")
    own = ["evaluate", "--model", judge_folder, "--data", records_file]
    for limit in ("pearson", "pearson=", "r=0.6", "pearson=0,6"):
        assert f"takes figures with limits, such as pearson=0.6; found '{limit}'." in refused(
            *own, "--fail_under", limit
        )
    assert "--strict is about the limits of --fail_under." in refused(*own, "--strict")
    for wrong in ("[1]", "{'a': 'b'}"):
        assert "columns must be a mapping or JSON such as" in refused(*own, "--columns", wrong)


def test_all_stages_run_from_one_yaml_and_a_second_call_does_nothing_again(
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
        "grpo": {"num_generations": 2, "max_steps": 1},
    }
    config = tmp_path / "run.yaml"
    config.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()))
    assert main(["run", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "Stage 1 on 18 annotated rationales" in shown and "RAIL" in shown
    folder = Path(settings["output_dir"])
    first = json.loads((folder / "evaluation.json").read_text())
    assert first["methods"]["RAIL"]["n"] == 2
    assert json.loads((folder / "cots" / "report.json").read_text())["rationales"] == 10
    saved = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert {path.parent.name for path in saved} >= {"stage1", "stage2", "stage3"}
    assert json.loads((folder / "stage3.json").read_text())["judge"]["name"] == str(folder / "stage3")

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
    assert "run holds files that tract did not write, such as 'cots'" in capsys.readouterr().err


CPU = ["--dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
RUN = [*CPU, "--max_steps", "2"]
RUN += ["--eval_fraction", "0.25", "--max_new_tokens", "12", "--max_retries", "0", "--unfinished", "force"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature=-1.0 is out of range."),
        (["--temperature", "inf"], "temperature=inf is out of range."),
        (["--num_cots", "0"], "num_cots must be at least 1, got 0: stage 2 is trained on rationales."),
        (["--max_retries", "-1"], "max_retries must be at least 0, got -1."),
        (["--batch_size", "0"], "batch_size must be at least 1, got 0."),
        (["--max_cot_records", "0"], "max_cot_records must be at least 1, got 0."),
        (["--max_records", "-3"], "max_records must be at least 1, got -3."),
        (["--model_kwargs", "[1]"], """model_kwargs must be a mapping or JSON such as {"dtype": "bfloat16"}"""),
        (["--score_prefix", ""], "score_prefix is empty."),
        (["--eval_data", "off.json"], "The gold score of record 1 is 11, off the scale of 1 to 5."),
        (["--eval_data", "bare.json"], "Record 0: A record needs `instruction`, `response` and `rubric`"),
        (
            ["--eval_data", "control.json", "--prompt_template", "<{{ response }}>"],
            "Record 0: The record's text becomes the control tokens ['<|im_end|>'], with which",
        ),
        (
            ["--data", "text.json", "--eval_data", "good.json"],
            "Stage 2 needs prompts to write rationales for, and the rows have ['text', 'score'].",
        ),
    ],
)
def test_what_a_later_step_would_refuse_a_run_refuses_first(
    seed_folder, records_file, tmp_path, refused, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("off.json").write_text('[{"prompt": "a", "score": 3}, {"prompt": "b", "score": 11}]')
    Path("bare.json").write_text('[{"response": "7", "score": 3}]')
    Path("control.json").write_text('[{"instruction": "a", "response": "|im_end|", "rubric": "b", "score": 3}]')
    Path("text.json").write_text(json.dumps([{"text": f"Good. {PREFIX}4", "score": 4}] * 8))
    Path("good.json").write_text('[{"prompt": "a", "score": 3}]')
    argv = ["run", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", "run", *RUN, *flags]
    assert message in refused(*argv)
    assert not Path("run", "stage1").exists() and not Path("run", "settings.json").exists()


def test_a_run_that_shards_is_refused_first(refused):
    message = refused("run", "--model_name_or_path", "seed", "--output_dir", "run", "--fsdp", "full_shard", *CPU)
    assert "and fsdp shards it. Take the steps one by one: tract sft that way" in message


def test_how_rationales_are_drawn_may_change_until_stage_2_begins(
    seed_folder, records_file, tmp_path, monkeypatch, capsys, refused
):
    folder = tmp_path / "run"
    argv = ["run", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", folder, *RUN]
    argv = [str(word) for word in argv]
    with monkeypatch.context() as patch:
        patch.setattr("tract_trainer.cli.run.generate_cot_dataset", Mock(side_effect=KeyboardInterrupt))
        assert main(argv) == 130
    assert "tract run: stopped. Finished work is on disk; the same command resumes." in capsys.readouterr().err
    trained = (folder / "stage1" / "model.safetensors").stat().st_mtime_ns
    argv += ["--max_new_tokens", "14"]
    assert main(argv) == 0
    assert (folder / "stage1" / "model.safetensors").stat().st_mtime_ns == trained
    shutil.rmtree(folder / "cots")
    assert "max_new_tokens: 14 there, 12 now" in refused(*argv[:-2])  # stage 2 was trained on the others


def test_a_start_that_was_refused_binds_to_nothing(seed_folder, records_file, tmp_path, refused):
    folder = tmp_path / "run"
    argv = ["run", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", folder, *RUN]
    assert "max_length" in refused(*argv, "--max_length", "8")
    assert main([str(word) for word in [*argv, "--max_length", "400"]]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_train_epochs", "0"], "num_train_epochs=0.0 trains nothing. Set it above 0, or set max_steps."),
        (["--eval_data", "{data}"], "eval_strategy is 'no', so eval_data would never be read. Add eval_strategy="),
        (["--data", "empty.parquet"], "There is no data to read at 'empty.parquet'"),
        (["--data", "damaged"], "There is no data to read at 'damaged'"),
    ],
)
def test_training_that_would_not_do_what_is_asked_is_refused(
    seed_folder, records_file, tmp_path, refused, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    Path("empty.parquet").write_bytes(b"")
    Path("damaged").mkdir()
    Path("damaged", "a.json").write_text('{"prompt": "a", ')
    flags = [flag.format(data=records_file) for flag in flags]
    argv = ["sft", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", "judge", *CPU]
    assert message in refused(*argv, *flags)


def test_two_trainings_do_not_write_to_one_folder(seed_folder, records_file, tmp_path, refused):
    folder = tmp_path / "judge"
    argv = ["sft", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", folder, *CPU]
    with file_lock(folder, "_training.lock"):
        assert f"Another run is writing to {folder}." in refused(*argv)
    assert main([str(word) for word in [*argv, "--max_steps", "1", "--resume_from_checkpoint", "false"]]) == 0
    assert (folder / "judge_config.json").is_file()


def test_what_is_learned_is_told_from_how_it_is_loaded_and_logged():
    def settings(**changes):
        args = RegressionAwareSFTConfig("x", use_cpu=True, bf16=False, **changes)
        return learned_settings(args, ModelConfig("seed"))

    assert settings() == settings(project="another", dataloader_num_workers=2, dataloader_pin_memory=False)
    assert settings() != settings(dataloader_drop_last=True)
    assert settings(eos_token="</s>") != settings(eos_token="<|im_end|>")


def test_two_runs_do_not_write_to_one_folder(seed_folder, records_file, tmp_path, refused):
    folder = tmp_path / "run"
    argv = ["run", "--data", records_file, "--model_name_or_path", seed_folder, "--output_dir", folder, *RUN]
    with file_lock(folder, ".lock"):
        assert f"Another run is writing to {folder}." in refused(*argv)
    assert not (folder / "stage1").exists()


def test_a_csv_is_trained_on_as_it_stands(seed_folder, tmp_path):
    (tmp_path / "a.csv").write_text(
        "instruction,response,rubric,rationale,score\nSay it.,007,NA,None,4.5\nb,1e5,c,d,3\n"
    )
    args = RegressionAwareSFTConfig(str(tmp_path), bf16=False, use_cpu=True)
    model = ModelConfig(model_name_or_path=str(seed_folder))
    first, second = training_data(read_rows(str(tmp_path / "a.csv")), args, model)
    assert "\n007\n" in str(first["prompt"]).replace("\\n", "\n") and "1e5" in str(second["prompt"])
    assert "NA" in str(first["prompt"]) and "None So the overall" in str(first["completion"]) and first["score"] == 4.5
    (tmp_path / "b.csv").write_text("prompt,completion,score\na,b,3\nc,d,4.5\n")
    assert as_dataset(read_rows(str(tmp_path / "b.csv")))["score"][:] == [3.0, 4.5]
    (tmp_path / "latin.csv").write_bytes("prompt,score\ncaf\u00e9,3\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"There is no data to read at .*latin\.csv"):
        read_rows(str(tmp_path / "latin.csv"))


def test_records_with_a_column_of_trls_name_are_records(seed_folder, tmp_path):
    record = {"instruction": "a", "response": "b", "rubric": "c", "rationale": "d", "score": 4, "text": "a note"}
    args = RegressionAwareSFTConfig(str(tmp_path), bf16=False, use_cpu=True)
    dataset = training_data([record], args, ModelConfig(model_name_or_path=str(seed_folder)))
    assert set(dataset.column_names) == {"prompt", "completion", "score"}


@pytest.mark.parametrize("command", ["judge", "evaluate"])
def test_a_record_without_a_prompt_is_refused_before_any_is_judged(judge_folder, tmp_path, refused, command):
    good = {"instruction": "a", "response": "b", "rubric": "c", "score": 3}
    (tmp_path / "in.json").write_text(json.dumps([good, {**good, "rubric": ""}]))
    where = ["--input", tmp_path / "in.json"] if command == "judge" else ["--data", tmp_path / "in.json"]
    argv = [command, "--model", judge_folder, *where, "--output", tmp_path / "out.json", *DRAW]
    assert "Record 1: A record needs" in refused(*argv)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json"]
    (tmp_path / "in.json").write_text(json.dumps([good, good]))
    assert main([str(word) for word in argv]) == 0


def test_judgments_made_otherwise_are_named_with_all_that_must_go(
    judge_folder, records_file, tmp_path, refused, capsys
):
    output = tmp_path / "judged.jsonl"
    argv = ["judge", "--model", judge_folder, "--input", records_file, "--output", output, *DRAW]
    assert main([str(word) for word in argv]) == 0
    made = [json.loads(line) for line in output.read_text().splitlines()]
    for limit in (sorted(row["std"] for row in made)[5], 9):  # the judgments are the same, their marks are not
        capsys.readouterr()
        assert main([str(word) for word in [*argv, "--max_std", limit]]) == 0
        above = [row["std"] > limit for row in made]
        assert sum(above) == (2 if limit != 9 else 0)
        assert f"{sum(above)} of 8 need review: their std is above {limit:g}," in capsys.readouterr().out
        expected = [{**row, "needs_review": mark} for row, mark in zip(made, above, strict=True)]
        assert [json.loads(line) for line in output.read_text().splitlines()] == expected
    message = refused(*argv, "--seed", "7")
    assert f"use --overwrite (overwrite=True) or delete {output}.settings.json and {output}." in message


def test_an_unscored_judgment_is_json(judge_folder, tmp_path, capsys):
    (tmp_path / "r.json").write_text('{"prompt": "Rate the response from 1 to 5. The response names 0 facts.\\n"}')
    record = ["--record", tmp_path / "r.json", "--max_new_tokens", "2", "--max_std", "9"]
    assert main([str(word) for word in ["judge", "--model", judge_folder, *record]]) == 2
    captured = capsys.readouterr()
    shown = json.loads(captured.out, parse_constant=pytest.fail)
    assert shown["score"] is None and set(shown["probs"].values()) == {None} and "max_new_tokens" in shown["reason"]
    assert shown["needs_review"] is True
    assert captured.err.endswith(f"tract judge: error: The record has no score. {shown['reason']}\n")


def test_a_file_of_records_without_a_score_is_an_error_after_it_is_written(judge_folder, tmp_path, capsys):
    data, output = tmp_path / "data.json", tmp_path / "out.json"
    data.write_text(json.dumps([{"prompt": f"Rate {i}.", "score": 1 + i} for i in range(3)]))
    short = ["--model", judge_folder, "--max_new_tokens", "2", "--output", output]
    assert main([str(word) for word in ["judge", "--input", data, *short]]) == 2
    captured = capsys.readouterr()
    assert f"3 judgments are in {output}, 3 of them unscored. The first: " in captured.out
    assert captured.err.endswith("tract judge: error: No record has a score.\n")
    assert len(output.read_text().splitlines()) == 3
    output.unlink()
    for _ in range(2):  # a finished result, too
        assert main([str(word) for word in ["evaluate", "--data", data, *short]]) == 2
        captured = capsys.readouterr()
        assert captured.out.startswith(f"{data}: No score: all 3 records are unscored, so there are no figures. The f")
        assert captured.err.endswith(f"tract evaluate: error: No record of {data} has a score.\n")
    assert len(json.loads(output.read_text())["judgments"]) == 3


def test_an_evaluation_keeps_its_config_and_the_files_of_others(judge_folder, tmp_path, refused):
    data, config, entries = (tmp_path / name for name in ("d.json", "eval.yaml", "eval-model-index.yaml"))
    data.write_text(json.dumps([{"prompt": f"Rate {i}.", "score": 1 + i} for i in range(3)]))
    config.write_text(f"model: {judge_folder}\ndata: {data}\nnum_cots: 0\n")
    argv = ["evaluate", "--config", config, "--output", tmp_path / "eval.json"]
    entries.write_text("mine: true\n")
    assert "eval-model-index.yaml exists, and tract did not write it." in refused(*argv)
    assert entries.read_text() == "mine: true\n" and not (tmp_path / "eval.json").exists()
    entries.unlink()
    for _ in range(2):
        assert main([str(word) for word in argv]) == 0
        assert config.read_text().startswith("model: ") and "model-index" in yaml.safe_load(entries.read_text())
    (tmp_path / "README.md").write_text("Mine.")
    assert "README.md exists" in refused(*argv[:-1], tmp_path / "README.json")
    assert main([str(word) for word in [*argv[:-1], tmp_path / "README.json", "--overwrite", "true"]]) == 0


def test_a_home_folder_in_a_yaml_is_found(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.yaml").write_text("model: ~/judge\nrecord: ~/r.json\n")
    (tmp_path / "r.json").write_text('{"prompt": "x"}')
    assert str(tmp_path / "judge") in refused("judge", "--config", tmp_path / "x.yaml")


def test_an_own_rationale_too_long_for_stage_2_is_left_out(seed_folder, records_file, tmp_path, caplog):
    """`max_length` has been settled by then, and stage 1 has been trained with it."""
    flags = ["--max_steps", "2", "--dtype", "float32", "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    flags += ["--max_new_tokens", "200", "--temperature", "1.5", "--unfinished", "force", "--max_retries", "0"]
    flags += ["--eval_fraction", "0.25", "--max_length", "150", "--model_name_or_path", seed_folder]
    command = ["run", "--data", records_file, "--output_dir", tmp_path / "run", *flags]
    assert main([str(word) for word in command]) == 0
    assert "missing_score='drop': " in caplog.text and "lose their score to max_length=" in caplog.text
