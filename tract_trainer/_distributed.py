"""The group of launched processes, launches that cannot work, and file locks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from filelock import FileLock, Timeout

from tract_trainer.errors import InputError

PATIENCE = timedelta(days=7)  # that a process waits for the others; if one ends with an error, the launcher ends all


def process_state() -> PartialState:
    """
    This process in the group of all launched ones, on CPUs after `accelerate launch --cpu` or if there is no GPU. A
    group that training arguments have made keeps their `ddp_timeout`.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def refuse_sharding(accelerator: Accelerator | None = None) -> None:
    """Raises `InputError` if this launch, or `accelerator`, shards models. A judge needs all of its model."""
    names = ("FSDP", "DEEPSPEED")
    by = [name for name in names if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"]
    if accelerator is not None and accelerator.parallelism_config is not None:
        by += ["tensor parallelism"] if accelerator.parallelism_config.tp_enabled else []
    if by:
        raise InputError(
            f"A judge writes and scores as a whole model, and this launch shards models with {by[0]}. Launch "
            "`tract sft` that way, and the other commands with `accelerate launch --multi_gpu`."
        )


def refuse_lone_process(num_processes: int) -> None:
    """Raises `InputError` if several processes were launched and this one is in no group with the others."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and num_processes == 1:
        raise InputError(
            f"WORLD_SIZE is {world}, but the processes form no group, so each would work alone. "
            "On CPU, set use_cpu=True in the training arguments; on GPUs, check that each process sees one."
        )


@contextmanager
def file_lock(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` in `folder`. Raises `InputError` if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another run is writing to {folder}. Wait for it, or give another place for the output."
        ) from error
    try:
        yield
    finally:
        lock.release()
