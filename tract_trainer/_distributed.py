"""Launched processes: their group, locks between them, and launches that cannot work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from filelock import FileLock, Timeout

from tract_trainer.errors import InputError

PATIENCE = timedelta(days=7)


def process_state() -> PartialState:
    """
    The launched processes as one group: of CPUs where `accelerate launch --cpu` says so or there is nothing else. They
    may wait for each other for days: one may have long texts to write, and if one dies the launcher ends the others.
    A group that training arguments have made keeps their `ddp_timeout`.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def refuse_sharding(accelerator: Accelerator | None = None) -> None:
    """Raises `InputError` under a launch that would shard a model which is to judge, or where `accelerator` does."""
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
    """Raises `InputError` for one of several launched processes that does not know the others."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and num_processes == 1:
        raise InputError(
            f"WORLD_SIZE is {world}, but the processes form no group, so each would work alone. "
            "On CPU, set use_cpu=True in the training arguments; on GPUs, check that each process sees one."
        )


@contextmanager
def file_lock(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` in `folder`; an InputError where another running process does."""
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
