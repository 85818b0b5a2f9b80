"""Reinforcement learning with vLLM's rationales. Needs vLLM: make test-vllm makes the environment and runs this."""

import os
import shutil
import subprocess
import time
import urllib.request

import pytest

pytest.importorskip("vllm")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default it takes nearly all there is

import torch
from datasets import Dataset
from test_grpo import CONFIG, GROUP, ROWS, assert_naive_step, free_port, settings
from tiny import judge_model, make_tokenizer, train_judge
from transformers import AutoModelForCausalLM
from vllm import _custom_ops

from tract_trainer import RegressionAwareGRPOConfig, RegressionAwareGRPOTrainer

GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    # vLLM's attention on a CPU knows heads of 32 and more.
    trainer = train_judge(folder, model=judge_model(make_tokenizer(), head_dim=32, max_position_embeddings=2048))
    trainer.model.lm_head.weight.data.mul_(0.5)  # less sure of itself: rewards differ within a prompt
    trainer.save_model()
    return folder


def make_trainer(folder, output, **kwargs):
    given = {"use_vllm": True, "vllm_max_model_length": 512, "top_p": 0.5, **kwargs}
    args = RegressionAwareGRPOConfig(**settings(output, **given))
    return RegressionAwareGRPOTrainer(str(folder), args=args, train_dataset=Dataset.from_list(ROWS))


@pytest.fixture
def updatable(monkeypatch):
    """On a CPU, vLLM packs weights so that they cannot be written to again, unless it lacks this library."""
    monkeypatch.setattr(_custom_ops, "_supports_onednn", False, raising=False)


def test_the_gradient_of_vllms_rationales_is_that_of_the_formula(folder, tmp_path, updatable):
    naive = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = make_trainer(folder, tmp_path, vllm_importance_sampling_correction=False)
    assert trainer.vllm_generation.generation_kwargs["stop_token_ids"]
    rewards = assert_naive_step(trainer, naive, CONFIG.scale, 1.0, 0.0)
    assert len(rewards) == 2 * GROUP


def test_rationales_are_sampled_with_the_weights_of_the_step(folder, tmp_path, updatable):
    trainer = make_trainer(folder, tmp_path, top_p=1.0, learning_rate=1e-3, max_steps=3, use_cpu=not GPUS)
    trainer.train()
    assert_sampled_with_the_weights_of_the_step(trainer)


def assert_sampled_with_the_weights_of_the_step(trainer):
    """
    vLLM's log-probabilities are as far from the trained model's in later steps as in the first, when nothing was
    learned yet. With the first weights they would be 15 times as far.
    """
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert len(steps) == 3 and all(line["grad_norm"] > 0 for line in steps)
    first, *later = [line["sampling/sampling_logp_difference/mean"] for line in steps]
    assert max(later) < 4 * first


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason="needs a GPU for the server and one for the trainer")
def test_a_server_samples_with_the_weights_of_the_step(folder, tmp_path):
    port, weights = free_port(), '{"backend": "nccl"}'
    command = [shutil.which("vllm"), "serve", str(folder), "--port", str(port), "--max-model-len", "512"]
    command += ["--dtype", "float32", "--weight-transfer-config", weights, "--logprobs-mode", "processed_logprobs"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1", "VLLM_SERVER_DEV_MODE": "1"}
    server = subprocess.Popen(command, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        trainer = make_trainer(
            folder, tmp_path, top_p=1.0, learning_rate=1e-3, max_steps=3, use_cpu=False,
            vllm_mode="server", vllm_server_base_url=f"http://127.0.0.1:{port}",
        )  # fmt: skip
        trainer.train()
        assert_sampled_with_the_weights_of_the_step(trainer)
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url, server):
    for _ in range(600):
        assert server.poll() is None
        try:
            return urllib.request.urlopen(url, timeout=1)
        except OSError:
            time.sleep(1)
    raise TimeoutError(url)
