"""Training on several processes and rationales from several servers, in small parts on one machine, with kills.

    make dry-run        # python benchmarks/dry_run.py, where vLLM is installed; minutes, on CPUs

A tiny model on the task of `tract demo`, and what runs on many machines: two training processes (torchrun), two servers
(vLLM's, float32) and a process that asks them. Killed with SIGKILL on the way are a training process, one server, and
both servers. What comes out is compared with what an undisturbed run leaves, bit by bit for weights and row by row for
rationales. It ends with a judge of stage 2. The exit status is 1 if anything differs.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}

import datasets
import torch
from datasets import Dataset
from launched import Launched, free_port, kill_one_process, serve, torchrun
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from tract_trainer import Judge, generate_cot_dataset
from tract_trainer.cli.demo_task import make_model, make_records, make_tokenizer, training_example

ROWS, STEPS, SAVE_STEPS = 400, 80, 20
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:5.0f} s  {text}", flush=True)


def main() -> None:
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            prompts = make_parts(folder)
            held = [train_stage1(folder), *write_rationales(folder, prompts)]
            train(folder, "stage2", folder / "one").finish()
            judgment = Judge.from_pretrained(folder / "stage2").score(prompts.select([0]).remove_columns("score"))[0]
        finally:
            for launched in Launched.all:
                launched.kill()
    say("stage 2: two processes, on the rationales of the run that lost a server")
    say(f"  it scores a record of gold {prompts[0]['score']:g}: {judgment.score:.3f}, {judgment.rationale.strip()!r}")
    say("Everything is as in an undisturbed run." if all(held) else "SOMETHING DIFFERS.")
    sys.exit(not all(held))


def make_parts(folder: Path) -> Dataset:
    """Saves a seed model and annotated rows. Gives the prompts to write rationales for, with their gold scores."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = make_model(tokenizer).config
    config.num_attention_heads = config.num_key_value_heads = 2
    config.head_dim = 32  # vLLM's attention on a CPU knows heads of 32 and more
    LlamaForCausalLM(config).save_pretrained(folder / "seed")
    tokenizer.save_pretrained(folder / "seed")
    rows = [training_example(record) for record in make_records(ROWS, seed=1)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset.from_list(rows).remove_columns("completion")


# Training


def train(folder: Path, stage: str, data: Path, *more: str) -> Launched:
    """`tract sft` on two processes."""
    paths = ["--model_name_or_path", f"{folder}/seed", "--data", str(data), "--output_dir", str(folder / stage)]
    settings = (
        f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --per_device_train_batch_size 16 --learning_rate 3e-3 "
        "--lr_scheduler_type constant --use_cpu true --bf16 false --gradient_checkpointing false --report_to none"
    )
    command = ["tract_trainer", "sft", *paths, *settings.split(), *more]
    return torchrun(command, folder / f"{stage}.log")


def train_stage1(folder: Path) -> bool:
    train(folder, "stage1", folder / "train.jsonl").finish()
    say(f"stage 1: two processes, {STEPS} steps, a checkpoint every {SAVE_STEPS}")
    killed = train(folder, "killed", folder / "train.jsonl")
    kill_one_process(killed, folder / "killed" / f"checkpoint-{SAVE_STEPS}")
    last = max(int(path.name.split("-")[1]) for path in (folder / "killed").glob("checkpoint-*"))
    say(f"stage 1 again, one process killed: the launch ends with {killed.process.returncode} after checkpoint {last}")
    train(folder, "killed", folder / "train.jsonl", "--resume_from_checkpoint", "true").finish()
    weights, again = (load_file(folder / stage / "model.safetensors") for stage in ("stage1", "killed"))
    same = sum(torch.equal(weights[name], again[name]) for name in weights)
    say(f"  given again, it goes on from there: {same} of {len(weights)} weights are those of the undisturbed run")
    return same == len(weights) and killed.process.returncode != 0 and last < STEPS


# Rationales


class Failures(logging.Handler):
    """Counts the requests that a server did not answer, and shows the engine's warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        engine = logging.getLogger("tract_trainer.engines.server")
        engine.setLevel(logging.INFO)
        engine.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self.count += 1
        else:
            say(f"  {record.getMessage()}")


def connect(folder: Path, ports: Sequence[int], concurrency: int = 16, max_retries: int = 8) -> Judge:
    urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
    settings = {"base_url": urls, "concurrency": concurrency, "max_retries": max_retries}
    return Judge.from_pretrained(folder / "stage1", "server", model_kwargs=settings)


def write(folder: Path, name: str, prompts: Dataset, judge: Judge, seed: int = 42) -> Dataset:
    return generate_cot_dataset(judge, prompts, max_new_tokens=48, seed=seed, output_dir=folder / name, progress=False)


def compare_servers(folder: Path, prompts: Dataset, ports: Sequence[int]) -> bool:
    """Whether two servers give the same to the last bit, one asked little at a time and the other all at once."""
    records = prompts.select(range(100)).remove_columns("score")
    judges = (connect(folder, [port], calls) for port, calls in zip(ports, (2, 100), strict=True))
    few, many = ([j.rationales[0] for j in judge.score(records, max_new_tokens=48, progress=False)] for judge in judges)
    same = sum(one == other for one, other in zip(few, many, strict=True))
    say(f"  one server asked 2 at a time, the other 100: {same} of {len(few)} log-probabilities and texts are equal")
    return same == len(few)


def written(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / ".shards").glob("*.jsonl"))


def kill_midway(servers: Sequence[Launched], folder: Path, writing: "Future[Dataset]") -> int:
    """Kills the servers when a third of the rows is written. Gives the number of rows."""
    while written(folder) < ROWS // 3 and not writing.done():
        time.sleep(0.005)
    for server in servers:
        server.kill()
    return written(folder)


def compare(name: str, whole: Dataset, other: Dataset) -> bool:
    """Whether the rows are the same in prompt, rationale and score."""
    by_prompt = {row["prompt"]: row for row in other}
    same = sum(by_prompt.get(row["prompt"]) == row for row in whole)
    say(f"  {name}: {same} of {len(whole)} rows are those of the undisturbed run")
    return same == len(whole) == len(other)


def write_rationales(folder: Path, prompts: Dataset) -> list[bool]:
    failures, ports = Failures(), [free_port(), free_port()]
    servers = serve(folder / "stage1", ports)
    whole = write(folder, "whole", prompts, connect(folder, ports))
    texts = len({row["completion"] for row in whole})
    say(f"rationales from two servers, undisturbed: {len(whole)} of {ROWS} come to a score, {texts} differ")
    held = [compare_servers(folder, prompts, ports)]
    compare("with another seed", whole, write(folder, "seed", prompts, connect(folder, ports), seed=43))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, folder, "one", prompts, connect(folder, ports))
        at = kill_midway(servers[:1], folder / "one", writing)
        say(f"rationales, one server killed at {at} of {ROWS} rows: the run goes on")
    one = writing.result()
    say(f"  it ends; {failures.count} requests were made again")
    held += [at < ROWS, compare("one server killed", whole, one)]

    servers[:1] = serve(folder / "stage1", ports[:1])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, folder, "both", prompts, connect(folder, ports, max_retries=2))
        at = kill_midway(servers, folder / "both", writing)
        say(f"rationales, both servers killed at {at} of {ROWS} rows: the run stops")
    say(f"  {type(writing.exception()).__name__}: {writing.exception()}")
    kept = written(folder / "both")
    serve(folder / "stage1", ports)
    again = write(folder, "both", prompts, connect(folder, ports))
    say(f"  both are back, the run is given again: {kept} rows are there, it writes {written(folder / 'both') - kept}")
    return [*held, isinstance(writing.exception(), ConnectionError), compare("both killed", whole, again)]


if __name__ == "__main__":
    main()
