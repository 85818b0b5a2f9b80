"""The examples run from end to end on a tiny model, and say what their pages say."""

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
from test_distributed import free_port
from tiny import RATIONALES, make_model, make_rows, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
SMALL = ["--use_cpu", "--bf16", "false", "--report_to", "none"]


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    tokenizer = make_tokenizer("qwen")
    make_model("llama", len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]["RAIL"]["n"] == 1


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
    for page in ("multi_gpu.md", "migrating.md", "performance.md"):
        for name in re.findall(r"(?:examples|benchmarks)/[\w/]+\.\w+", (DOCS / page).read_text()):
            assert (ROOT / name).is_file(), f"{page}: {name}"


def command_line(*argv, **environment):
    """Runs a command in a process of its own; returns what it wrote."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True, timeout=900)
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
        "from tract_trainer.cli import main\n"
        "allow_fsdp_on_cpu()\n"
        "assert main(['sft', *sys.argv[1:]]) == 0\n"
        "print(AcceleratorState().distributed_type, AcceleratorState().num_processes, flush=True)\n"
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
def test_both_stages_run_on_two_processes(rows_file, tmp_path):
    train_judge(tmp_path / "seed").save_model()  # ends with a score by itself, as a large model would
    torchrun = ["torchrun", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port"]
    command_line(
        *("bash", EXAMPLES / "multi_gpu.sh", tmp_path / "seed", rows_file, tmp_path / "out"),
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
