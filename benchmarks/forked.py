"""`dasd` in processes of its own that start in a moment: forked from one that has imported the libraries."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch.distributed",
        "tensorboard",
        "dasd_utils.training",
        "dasd_utils.sampling",
        "dasd_utils.evaluation",
    ]
)


class Command:
    """`dasd` with these words in `count` processes, one thread each, as `accelerate launch` starts them.

    What they write goes to the files out-<process> and err-<process> of `folder`. `prepare` is called in each
    process before the command: a function of a module that can be imported.
    """

    def __init__(
        self, words: Sequence[object], folder: Path, count: int = 1, prepare: Callable[[], None] | None = None
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shared = {"OMP_NUM_THREADS": "1"}
        if count > 1:
            shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self.processes = []
        for index in range(count):
            own = {"RANK": str(index), "LOCAL_RANK": str(index)} if count > 1 else {}
            arguments = (list(map(str, words)), shared | own, folder, index, prepare)
            self.processes.append(FORKS.Process(target=_be_dasd, args=arguments, daemon=True))
            self.processes[-1].start()

    def finish(self, timeout: float = 300) -> list[int]:
        """Return the exit status of each process, -9 of a killed one; kill those that take too long."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def text(self, stream: str = "out", index: int = 0) -> str:
        """Return what a process wrote: to `out` or `err`."""
        return (self.folder / f"{stream}-{index}").read_text(encoding="utf8")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _be_dasd(
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    index: int,
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{name}-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    import torch

    from dasd_utils.apps.cli import main as cli

    torch.set_num_threads(1)
    if prepare:
        prepare()
    sys.argv = ["dasd", *words]
    cli.main()
