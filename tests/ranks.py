"""Runs a function of the tests in several processes that talk over 127.0.0.1."""

import faulthandler
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

HERE = Path(__file__).parent


def run_ranks(function: str, *arguments: str, count: int = 2, seconds: float = 240) -> list[Any]:
    """Runs a function once in each of several processes and returns what each returned.

    Each process finds what torchrun would give it in its environment. Fails if one does, with what
    it printed; ends them all after some time.

    Args:
        function: "module:name" of a function in this folder.
        *arguments: what it is called with.
        count: how many processes.
        seconds: how long they may take.
    """
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        taken.close()
        processes: list[subprocess.Popen[bytes]] = []
        outputs = [Path(folder) / f"{rank}" for rank in range(count)]
        for rank, output in enumerate(outputs):
            with output.open("w") as printed:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, function, f"{output}.pt", *arguments],
                        env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                        cwd=HERE,
                        stdout=printed,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = _wait(processes, seconds)
        texts = "\n".join(f"rank {each.name}:\n{each.read_text()[-4000:]}" for each in outputs)
        assert codes == [0] * count, f"{function} ended with {codes}\n{texts}"
        return [torch.load(f"{output}.pt", weights_only=False) for output in outputs]


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> list[int | None]:
    """Returns how processes ended: all together, at the first failure, or when time is up.

    One that is still there is aborted, so that it prints where it stood.
    """
    end = time.monotonic() + seconds
    try:
        while True:
            codes = [each.poll() for each in processes]
            if None not in codes or any(codes) or time.monotonic() > end:
                return codes
            time.sleep(0.05)
    finally:
        for each in processes:
            each.send_signal(signal.SIGABRT)
            each.wait()


def main() -> None:
    """Calls the function that the command line names and keeps what it returns."""
    function, output, *arguments = sys.argv[1:]
    module, _, name = function.partition(":")
    faulthandler.enable()
    torch.set_num_threads(1)
    result = getattr(importlib.import_module(module), name)(*arguments)
    torch.save(result, output)
    if torch.distributed.is_initialized():
        time.sleep(0.1)  # as in the example's `Processes.join`
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
