"""Two processes train as one does: DDP in the default suite; FSDP2 and DeepSpeed marked slow."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parents[1] / "worker.py"
STEPS = 20


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(folder, processes=1, model="llama", sizes=None, scored="all", lora=False, resume=None, **args):
    """Runs the worker and returns what it left."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"folder": str(folder), "model": model, "sizes": sizes or {}, "scored": scored, "lora": lora}
    options |= {"resume": resume, "args": args}
    (folder / "options.json").write_text(json.dumps(options))
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1"]
    torchrun += ["--master_port", str(free_port())]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(WORKER), str(folder / "options.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **streams) as run:
        try:
            _, errors = run.communicate(timeout=1800)
        except subprocess.TimeoutExpired:
            run.terminate()  # torchrun takes its workers with it, as it does not when it is killed
            raise
    assert run.returncode == 0, errors[-3000:]
    return torch.load(folder / "result.pt", weights_only=False)


@pytest.fixture(scope="module", autouse=True)
def compiled_anew(tmp_path_factory):
    """DeepSpeed waits for ever on the lock of a compilation that was killed, so it has a folder of this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def assert_same(one, two, tolerance=1e-5):
    """The same parameters and logged losses, relative to their size."""
    assert one["parameters"].keys() == two["parameters"].keys()
    for name, expected in one["parameters"].items():
        difference = (two["parameters"][name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert difference < tolerance, f"{name}: {difference:.1e}"
    for ours, theirs in zip(one["log"], two["log"], strict=True):
        for name in ("loss", "ce_loss", "score_loss", "score_mae", "score_mass"):
            assert theirs.get(name, 0.0) == pytest.approx(ours.get(name, 0.0), rel=tolerance, abs=1e-6), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Results of one process, by options."""
    known = {}

    def run(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in known:
            args = {"max_steps": STEPS, "per_device_train_batch_size": 8, **options}
            known[key] = launch(tmp_path_factory.mktemp("alone"), **args)
        return known[key]

    return run


def two_processes(folder, **options):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **options}
    result = launch(folder, processes=2, **settings)
    assert result["num_processes"] == 2
    return result


@pytest.mark.parametrize(
    "scored", ["one", pytest.param("all", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)]
)
def test_two_processes_train_and_evaluate_as_one_does(tmp_path, alone, scored):
    # "one": in each step one process has no score at all.
    together = two_processes(tmp_path, scored=scored)
    assert_same(alone(scored=scored), together)
    for name in ("pearson", "spearman", "rmse", "mae"):
        expected = alone(scored=scored)["evaluation"][f"eval_score_{name}"]
        assert together["evaluation"][f"eval_score_{name}"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scored", ["one", "all"])
def test_two_processes_train_on_labels_of_several_tokens_as_one_does(tmp_path, alone, scored):
    ten = {"scored": scored, "score_labels": [*map(str, range(1, 11))]}
    assert_same(alone(**ten), two_processes(tmp_path, **ten))


@pytest.mark.slow
def test_the_score_term_stays_global_where_tokens_are_averaged_per_process(tmp_path, alone):
    together = two_processes(tmp_path, average_tokens_across_devices=False, ce_loss_weight=0.0)
    whole = alone(ce_loss_weight=0.0)
    for name, expected in whole["parameters"].items():
        assert (together["parameters"][name] - expected).norm() / expected.norm() < 1e-5, name


@pytest.mark.slow
def test_batches_dispatched_by_one_process_keep_their_scores(tmp_path, alone):
    # Batches that are dispatched must be of one length.
    dispatched = {"accelerator_config": {"dispatch_batches": True}, "pad_to_multiple_of": 128}
    assert_same(alone(scored="one"), two_processes(tmp_path, scored="one", **dispatched))


FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scored", "options"),
    [("all", {}), ("one", {}), ("none", {}), ("all", {"model": "llama_tied"}), ("all", {"lora": True})],
)
def test_fsdp2_trains_as_one_process_does(tmp_path, alone, scored, options):
    together = two_processes(tmp_path, scored=scored, **options, **FSDP)
    assert together["distributed_type"].endswith("FSDP") and together["sharded"]
    assert_same(alone(scored=scored, **options), together)


def deepspeed_config(stage):
    return {
        "zero_optimization": {"stage": stage},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": "auto",
    }


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("scored", ["all", "one"])
def test_deepspeed_zero_trains_as_one_process_does(tmp_path, alone, stage, scored):
    together = two_processes(tmp_path, scored=scored, deepspeed=deepspeed_config(stage))
    assert together["distributed_type"].endswith("DEEPSPEED")
    assert_same(alone(scored=scored), together)


@pytest.mark.slow
def test_processes_that_share_each_layer_train_and_evaluate_as_one_does(tmp_path, alone):
    # Both read the same batches, and an evaluation counts them once. In the last batch there is a single row.
    options = {"max_steps": 3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 2}
    options["sizes"] = {"num_key_value_heads": 2}  # one for each process
    together, one = launch(tmp_path, processes=2, tp_size=2, **options), alone(**options)
    assert together["num_processes"] == 2 and together["sharded"]
    assert_same(one, together, tolerance=1e-4)
    for name in ("ce_loss", "score_loss", "score_pearson", "score_rmse"):
        assert together["evaluation"][f"eval_{name}"] == pytest.approx(one["evaluation"][f"eval_{name}"], rel=1e-4)


@pytest.mark.slow
def test_resuming_in_mid_epoch_gives_the_parameters_of_no_interruption(tmp_path):
    args = {"per_device_train_batch_size": 2, "max_steps": 12, "logging_steps": 2}
    whole = launch(tmp_path / "whole", **args)
    launch(tmp_path / "cut", **{**args, "max_steps": 5, "save_strategy": "steps", "save_steps": 5})
    resumed = launch(tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-5"), **args)
    for name, expected in whole["parameters"].items():
        assert torch.equal(resumed["parameters"][name], expected), name
    # The window of step 6 began before the checkpoint; those after it are the same.
    after = [entry for entry in whole["log"] if entry["step"] > 6]
    again = [entry for entry in resumed["log"] if entry["step"] > 6]
    for ours, theirs in zip(after, again, strict=True):
        assert {k: v for k, v in ours.items() if k != "num_tokens"} == {
            k: v for k, v in theirs.items() if k != "num_tokens"
        }


@pytest.mark.slow
def test_processes_that_form_no_group_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="the processes form no group, so each would work alone"):
        launch(tmp_path, processes=2, max_steps=1, use_cpu=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learning_rate", "message"),
    [
        (
            1e30,
            r"The loss is not finite at step 2: training has diverged\. The last checkpoint kept: \S+/checkpoint-1\.",
        ),
        (1e39, r"The weights are not finite after step 1: training has diverged\. The last checkpoint kept: none\."),
    ],
)
def test_diverged_training_ends_every_process_with_one_message(tmp_path, learning_rate, message):
    settings = {"learning_rate": learning_rate, "max_grad_norm": 0.0, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(AssertionError, match=rf"InputError: {message}") as raised:
        two_processes(tmp_path, **{**settings, "max_steps": 3})
    assert len(set(re.findall("InputError: (.*)", str(raised.value)))) == 1  # whether one process says it or both
    assert not (tmp_path / "judge_config.json").exists() and not (tmp_path / "result.pt").exists()
