"""What every benchmark shares: the machine, workers that take turns, counted work, tables and results."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
Row = dict[str, Any]
Operations = Mapping[str, Callable[[], Any]]  # name -> what is timed


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


CPU_ATTENTION = {  # torch counts the attention of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what the numbers depend on: processor or GPU, threads, memory, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "device": torch.cuda.get_device_name(0) if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(memory, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Worker:
    """A process of its own that makes `factory(**options)` and times its operations when asked to.

    Peak memory is then that of one variant, and variants can take turns without sharing anything.
    """

    def __init__(self, factory: Callable[..., Operations], threads: int, **options: Any) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        arguments = (theirs, factory, threads, options)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request: str, name: str = "") -> Any:
        """Return the answer to "seconds", "gflop", "value" of an operation, or "peak" (bytes) of the process.

        Raises RuntimeError with the worker's own traceback.
        """
        try:
            self.connection.send((request, name))
            answer = self.connection.recv()
        except (EOFError, BrokenPipeError):
            if self.connection.poll():  # it failed while nobody asked
                raise RuntimeError(self.connection.recv()) from None
            self.process.join()
            raise RuntimeError(
                f"The worker ended with exit code {self.process.exitcode} (-9: memory)."
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process and give its memory back."""
        self.connection.close()
        self.process.join()


def _serve(connection: Any, factory: Callable[..., Operations], threads: int, options: dict) -> None:
    torch.set_num_threads(threads)
    try:
        operations = factory(**options)
        while True:
            request, name = connection.recv()
            connection.send(_answer(operations, request, name))
    except EOFError:
        pass
    except BaseException:
        connection.send(traceback.format_exc())


def _answer(operations: Operations, request: str, name: str) -> Any:
    if request == "peak":
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if request == "gflop":
        return count_gflop(operations[name])
    started = time.perf_counter()
    value = operations[name]()
    synchronise()
    return time.perf_counter() - started if request == "seconds" else value


def alternate(
    workers: Mapping[str, Worker], operations: Mapping[str, Sequence[str]], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Return {worker: {operation: seconds of each repeat}}: A B A B, after one round that warms up."""
    times: dict[str, dict] = {name: {each: [] for each in operations[name]} for name in workers}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            for operation, seconds in times[name].items():
                taken = worker.ask("seconds", operation)
                seconds += [taken] if turn else []
    return times


def count_gflop(function: Callable[[], Any]) -> float:
    """Return the work of the matrix products, convolutions and attention in a call: GFLOP."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops() / 1e9


def synchronise() -> None:
    """Wait for the GPU, if there is one: what was asked of it before is then done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Stopwatch(contextlib.ExitStack):
    """Adds up the seconds spent in watched functions, until the end of its `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str, *labels: str) -> None:
        """Time a function, the attribute `name` of its owner; several labels take turns, call by call."""
        plain, turns = getattr(owner, name), itertools.cycle(labels)

        def timed(*arguments: Any, **options: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            value = plain(*arguments, **options)
            synchronise()
            label = next(turns)
            self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - started
            return value

        self.enter_context(mock.patch.object(owner, name, timed))


def matmul_gflops(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 5) -> float:
    """Return the rate of a square matrix product at this precision, the best of a few: GFLOP a second."""
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        one @ two
        synchronise()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e9


class Measure(NamedTuple):
    """A number with what it lies between."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        if self.low == self.high:
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def spread(values: Sequence[float]) -> Measure:
    """Return median, least and greatest of repeated measurements."""
    return Measure(float(np.median(values)), min(values), max(values))


def exactly(value: float) -> Measure:
    """Return a counted number, the same at each repeat."""
    return Measure(value, value, value)


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Return rows as text; columns: key -> format such as ".2f"."""
    lines = [list(columns)]
    lines += [[format(row[key], form) if key in row else "" for key, form in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def save(name: str, settings: dict[str, Any], rows: Sequence[Row], prefix: str = "bench_") -> Path:
    """Write data/results/<prefix><name>.json: settings with the machine, and one row for each measure."""
    flat = []
    for row in rows:
        what = {key: value for key, value in row.items() if not isinstance(value, Measure)}
        measures = {key: value for key, value in row.items() if isinstance(value, Measure)}
        flat += [{"seed": 0, **what, "metric": key, **value._asdict()} for key, value in measures.items()]
    from dasd_utils import evaluation  # here: a worker starts without what this loads

    return evaluation.save_results(RESULTS / f"{prefix}{name}.json", settings, flat)
