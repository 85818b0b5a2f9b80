"""The examples run from end to end on a tiny model, in the order of the pipeline, and say what their pages say."""

import difflib
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from test_distributed import free_port
from test_server import serving
from tiny import GOLD, RATIONALES, SECOND_THOUGHTS, judge_model, make_rows, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM

from tract_trainer import Judge
from tract_trainer.evaluation.page import write_page

ROOT = Path(__file__).parents[1]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
SMALL = ["--use_cpu", "--bf16", "false", "--report_to", "none"]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(8, conversational=True)))
    return path


def run(monkeypatch, name, *argv):
    """The example as a script, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def is_judge(folder):
    return (folder / "judge_config.json").is_file()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_short_and_says_what_it_needs(path):
    text = path.read_text()
    assert re.search(r'^# /// script\n(#.*\n)*# dependencies = \[[^]]*"?tract-trainer(.*\n)*?# ///$', text, flags=re.M)
    assert "def main(" in text
    assert path.name == "sft.py" or len(text.splitlines()) < 75


# The pipeline

STEPS = sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))
NAMED = "Qwen/Qwen3-0.6B"


def feedback(count):
    """Rows with the columns of Feedback Collection."""
    levels = {f"orig_score{score}_description": f"Level {score}." for score in range(1, 6)}
    return [
        {
            "orig_instruction": f"Name fact {i}.",
            "orig_response": f"Fact {i} is clear.",
            "orig_reference_answer": "The example is right.",
            "orig_criteria": "Is it correct?",
            "orig_feedback": RATIONALES[i % 8],
            "orig_score": str(round(GOLD[i % 8])),
            **levels,
        }
        for i in range(count)
    ]


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Steps 1 to 5 in a folder of their own, each called as its docstring says, with a tiny model and few tokens."""
    root, patch = tmp_path_factory.mktemp("pipeline"), pytest.MonkeyPatch()
    (root / "data").mkdir()
    (root / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in feedback(11)))
    patch.chdir(root)
    tokenizer = make_tokenizer("qwen")
    model = judge_model(tokenizer, max_position_embeddings=2048)
    model.save_pretrained(root / "blank")
    tokenizer.save_pretrained(root / "blank")
    training = ["--config", EXAMPLES / "training.yaml", *SMALL]
    rationales = ["--config", EXAMPLES / "rationales.yaml", "--max_new_tokens", "60", "--temperature", "0"]
    data = ["--data", "data", "--split", "train", "--held_out", "3", "--model_name_or_path", "blank"]
    try:
        run(patch, "1_prepare_data.py", *data, *training)
        rows = Dataset.from_parquet("runs/example/rows.parquet")
        # The seed ends with a score by itself, as a large model would, after rationales of its own.
        own = [{**row, "completion": answer(f"{text} So the overall score is {row['score']:.0f}")}
               for row, text in zip(rows, SECOND_THOUGHTS, strict=True)]  # fmt: skip
        train_judge(root / "seed", model=model, dataset=Dataset.from_list(own)).save_model()
        few = ["--model_name_or_path", "seed", "--max_steps", "2", "--logging_steps", "1", *training]
        run(patch, "2_stage1.py", *few)
        run(patch, "3_rationales.py", *rationales)
        run(patch, "4_stage2.py", *few, "--watched_records", "2", "--watched_steps", "1", "--max_new_tokens", "30")
        run(patch, "5_evaluate.py", *rationales)
    finally:
        patch.undo()
    return root / "runs" / "example"


def test_the_steps_are_numbered_from_1_and_their_page_shows_the_command_of_each():
    assert [name.split("_")[0] for name in STEPS] == [str(number) for number in range(1, len(STEPS) + 1)]
    page = (EXAMPLES / "README.md").read_text()
    shown = re.findall(r"^\| `(python examples/\S+.*?)` \|", page, flags=re.M)
    assert [command.split()[1].removeprefix("examples/") for command in shown] == STEPS
    for name, command in zip(STEPS, shown, strict=True):
        assert f"\n    {command}\n" in (EXAMPLES / name).read_text(), name
    for name in re.findall(r"`([\w/]+\.(?:py|sh|yaml)|[\w/]+/)`|\]\(([^)]+)\)", page):
        assert (EXAMPLES / "".join(name)).exists(), name


def test_the_model_of_the_steps_is_one_that_exists():
    assert f"model_name_or_path: {NAMED} " in (EXAMPLES / "training.yaml").read_text()
    assert f'model_name_or_path="{NAMED}"' in (EXAMPLES / "7_grpo_reward.py").read_text()


def test_records_become_rows_and_the_last_are_held_out(pipeline):
    rows = Dataset.from_parquet(str(pipeline / "rows.parquet"))
    held_out = [json.loads(line) for line in (pipeline / "held_out.jsonl").read_text().splitlines()]
    assert (len(rows), len(held_out)) == (8, 3)
    prompt, completion = rows[0]["prompt"][0]["content"], rows[0]["completion"][0]["content"]
    for text in (
        "Name fact 0.",
        "Fact 0 is clear.",
        "The example is right.",
        "criteria: Is it correct?",
        "4: Level 4.",
    ):
        assert text in prompt
    assert completion == f"{RATIONALES[0]} So the overall score is 4" and rows[0]["score"] == 4
    assert [record["instruction"] for record in held_out] == ["Name fact 8.", "Name fact 9.", "Name fact 10."]
    assert held_out[0]["score"] == 4.0 and held_out[0]["rubric"]["5"] == "Level 5."


def test_stage_2_is_trained_on_the_rationales_that_stage_1_wrote(pipeline):
    rows, own = (Dataset.from_parquet(str(pipeline / name)) for name in ("rows.parquet", "cots/train.parquet"))
    written = {row["prompt"][0]["content"]: row for row in own}
    assert len(written) == 8 and all(written[prompt]["score"] == row["score"] for row in rows
                           if (prompt := row["prompt"][0]["content"]) in written)  # fmt: skip
    assert own["completion"][:] != rows["completion"][:]
    logs = {name: json.loads((pipeline / name / "trainer_state.json").read_text()) for name in ("stage1", "stage2")}
    assert all(log["global_step"] == 2 and "score_loss" in str(log["log_history"]) for log in logs.values())
    assert "judge_rail_pearson" in str(logs["stage2"]["log_history"])
    # The same seed model, the same settings: on the same rows, the stages would end with the same weights.
    assert is_judge(pipeline / "stage1") and is_judge(pipeline / "stage2")
    heads = [AutoModelForCausalLM.from_pretrained(pipeline / name).lm_head.weight for name in ("stage1", "stage2")]
    assert not torch.equal(*heads)


def test_both_judges_are_evaluated_and_compared(pipeline):
    results = {name: json.loads((pipeline / f"{name}.json").read_text()) for name in ("stage1", "stage2")}
    assert all(found["methods"]["RAIL"]["n"] == 3 for found in results.values())
    assert [row["gold"] for row in results["stage2"]["judgments"]] == [4.0, 2.0, 4.0]
    for picture in ("stage1-predictions.png", "stage2-reliability.png", "comparison.png"):
        assert (pipeline / picture).stat().st_size > 1000
    page = write_page(pipeline, pipeline / "report.html").read_text()
    assert "stage1" in page and "stage2" in page


def test_a_judge_on_a_server_is_asked(pipeline, monkeypatch, capsys):
    monkeypatch.chdir(pipeline.parents[1])
    with serving(Judge.from_pretrained(pipeline / "stage2")) as server:
        server.cards[0]["max_model_len"] = 2048
        run(monkeypatch, "6_judge_server.py", "--base_url", server.url, "--num_cots", "1", "--max_new_tokens", "40")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[:3]] == ["gold 4", "gold 2", "gold 4"]
    assert re.search(r"wins with probability [\d.na]+, ties [\d.na]+, loses [\d.na]+\.$", said[3])


def test_the_judge_rewards_a_policy(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(pipeline.parents[1])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": f"Name fact {i}."}) + "\n" for i in range(4)))
    small = ["--per_device_train_batch_size", "2", "--num_generations", "2", "--max_completion_length", "4"]
    argv = ["--model_name_or_path", "seed", "--prompts", tmp_path, "--judge_tokens", "4", "--max_steps", "1"]
    run(
        monkeypatch, "7_grpo_reward.py", *argv, *small, *SMALL, "--logging_steps", "1", "--output_dir", tmp_path / "out"
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_judge_is_reinforced(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(pipeline.parents[1])
    small = ["--per_device_train_batch_size", "2", "--num_generations", "2", "--max_completion_length", "30"]
    argv = ["--max_steps", "1", "--gradient_accumulation_steps", "1", "--output_dir", tmp_path, *small, *SMALL]
    run(monkeypatch, "8_reinforce.py", *argv, "--logging_steps", "1")
    assert is_judge(tmp_path)
    (first, *_) = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert {"reward", "score_mae"} <= first.keys() and first["learning_rate"] == pytest.approx(1e-6)


# TRL's script


def test_the_script_of_trl_trains_a_judge(seed_folder, rows_file, tmp_path, monkeypatch, capsys):
    argv = ["--model_name_or_path", seed_folder, "--dataset_name", rows_file.parent, "--output_dir", tmp_path]
    run(monkeypatch, "sft.py", *argv, *SMALL, "--max_steps", "2", "--logging_steps", "1")
    assert is_judge(tmp_path)
    assert "'score_loss'" in capsys.readouterr().out


@pytest.mark.skipif(trl.__version__ != "1.16.0", reason="the page shows the difference to TRL 1.16")
def test_the_page_shows_the_difference_to_the_script_of_trl():
    theirs, ours = (
        path.read_text() for path in (Path(trl.__file__).parent / "scripts" / "sft.py", EXAMPLES / "sft.py")
    )
    assert theirs.split("\n\n")[0] == ours.split("\n\n")[0], "the licence"
    code = [text[text.index("import argparse\n") :].splitlines() for text in (theirs, ours)]
    names = ("trl/scripts/sft.py", "examples/sft.py")
    diff = "\n".join(difflib.unified_diff(*code, *names, n=1, lineterm=""))
    (shown,) = re.findall(r"```diff\n(.*?)\n```", (DOCS / "migrating.md").read_text(), flags=re.S)
    assert shown == diff
    changed = [line for line in shown.splitlines()[2:] if line[0] in "+-"]
    assert all("import " in line for line in changed) and len(changed) == 3


# The others


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_an_adapter_on_a_quantised_model(seed_folder, rows_file, tmp_path, monkeypatch):
    argv = ["--model_name_or_path", seed_folder, "--data", rows_file, "--output_dir", tmp_path]
    run(monkeypatch, "qlora.py", *argv, *SMALL, "--max_steps", "1")
    assert is_judge(tmp_path) and not (tmp_path / "model.safetensors").exists()
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (8, 16)
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert (args.learning_rate, args.num_train_epochs, batch, args.max_length) == (1e-5, 2, 8, 3000)
    assert args.lr_scheduler_type == "cosine" and args.get_warmup_steps(100) == 10


def test_the_real_records_example_makes_its_model_and_its_figures(tmp_path, monkeypatch):
    records = [
        {"instruction": f"Rate answer {i}.", "gpt4_score": [1 + i % 5], "gpt4_feedback": [RATIONALES[i]]}
        for i in range(6)
    ]
    (tmp_path / "records.json").write_text(json.dumps(records))
    settings = ["--max_steps", "1", "--max_new_tokens", "4", "--max_cot_records", "2", "--output_dir", tmp_path / "out"]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "mt_bench.py", tmp_path / "records.json", *settings)
    assert stopped.value.code == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["methods"]["RAIL"]["n"] == 1


# Many GPUs

CONFIGS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_understands_each_line_of_its_configs(path):
    config = load_config_from_file(str(path))
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    unknown = {*config.fsdp_config, *config.deepspeed_config} - set(vars(args))
    assert not unknown
    _validate_launch_command(args)
    assert args.num_processes == 8 and args.mixed_precision == "no"
    if path.stem == "fsdp2":
        env = prepare_multi_gpu_env(args)
        assert (args.use_fsdp, env["FSDP_VERSION"], env["FSDP_RESHARD_AFTER_FORWARD"]) == (True, "2", "true")
        assert env["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    else:
        assert args.use_deepspeed and args.zero_stage == int(path.stem[-1])


def test_the_pages_name_files_that_are_there():
    for page in (
        "index.md",
        "multi_gpu.md",
        "migrating.md",
        "performance.md",
        "guides/paper.md",
        "guides/qlora.md",
        "guides/reinforcement.md",
    ):
        for name in re.findall(r"(?:examples|benchmarks)/[\w/]+\.\w+", (DOCS / page).read_text()):
            assert (ROOT / name).is_file(), f"{page}: {name}"


def command_line(*argv, **environment):
    """Runs a command in a process of its own; returns what it wrote."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_shards_over_two_processes_and_saves_a_whole_judge(path, seed_folder, rows_file, tmp_path):
    if path.stem != "fsdp2":
        pytest.importorskip("deepspeed")
    script = tmp_path / "sft.py"
    script.write_text(
        "import sys\n"
        "from accelerate.state import AcceleratorState\n"
        "from worker import allow_fsdp_on_cpu\n"
        "from tract_trainer.cli.main import main\n"
        "allow_fsdp_on_cpu()\n"
        "assert main(['sft', *sys.argv[1:]]) == 0\n"
        "print(f'{AcceleratorState().distributed_type} {AcceleratorState().num_processes}\\n', end='', flush=True)\n"
    )
    launch = ["accelerate", "launch", "--config_file", path, "--num_processes", "2", "--main_process_port", free_port()]
    argv = ["--model_name_or_path", seed_folder, "--data", rows_file, "--output_dir", tmp_path / "judge", *SMALL]
    written = command_line(
        *launch, script, *argv, "--max_steps", "2", "--learning_rate", "1e-2", PYTHONPATH=str(Path(__file__).parent)
    )
    kind = "FSDP" if path.stem == "fsdp2" else "DEEPSPEED"
    assert written.count(f"DistributedType.{kind} 2") == 2
    assert is_judge(tmp_path / "judge")
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (seed_folder, tmp_path / "judge")
    )
    for name, parameter in before.items():
        assert after[name].shape == parameter.shape and not torch.equal(after[name], parameter), name


@pytest.mark.slow
def test_both_stages_run_on_two_processes(judge_folder, rows_file, tmp_path):
    torchrun = ["torchrun", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port"]
    command_line(
        *("bash", EXAMPLES / "multi_gpu.sh", judge_folder, rows_file, tmp_path / "out"),
        *(*SMALL, "--max_steps", "2"),
        PROCESSES="2",
        TRAIN=" ".join([*torchrun, str(free_port())]),
        GENERATE=" ".join([*torchrun, str(free_port())]),
        ACCELERATE_USE_CPU="true",
    )
    assert json.loads((tmp_path / "out" / "cots" / "report.json").read_text())["rationales"] == 8
    for stage in ("stage1", "stage2"):
        assert is_judge(tmp_path / "out" / stage)
        states = list((tmp_path / "out" / stage).glob("checkpoint-2/rng_state_*.pth"))
        assert len(states) == 2, "each process leaves one"
