"""Stable Diffusion 1.5 at 512 px on a GPU: speed and memory by batch; predicted where there is no GPU.

python benchmarks/gpu.py
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import common
import steps
import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from dasd_utils import models
from dasd_utils.config import Calibration
from dasd_utils.sampling import DasdPipeline

RESOLUTION, LATENT = 512, 64  # pixels, and a latent's side
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # targets; a third as many sources, or one
LIMITS = (8, 16, 24)  # GB
REPEATS = 5
PREDICTED_FOR = "NVIDIA L4"
PEAK_TFLOPS = 121.0  # its dense bf16 products a second, from its data sheet
SHARE = (0.18, 0.10, 0.25)  # of that peak which is reached: expected, least, most; an assumption
WORKSPACE_GB = (1.0, 0.6, 1.5)  # CUDA context, workspaces, fragments; an assumption
TEXT_ENCODER_GB = 0.49  # 123 million weights in fp32
FORMATS = {
    "limit_gb": "",
    "target_batch_size": "",
    "source_batch_size": "",
    "gradient_checkpointing": "",
    "samples_per_second": ".2f",
    "peak_gb": ".1f",
}


def batches(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the changes of the config for each batch size, with and without gradient checkpointing."""
    for checkpointing in (False, True):
        for targets in sizes:
            sizes_of_both = {"target_batch_size": targets, "source_batch_size": max(targets // 3, 1)}
            yield {**sizes_of_both, "gradient_checkpointing": checkpointing}


def measured(changes: dict[str, Any]) -> common.Row:
    """Return samples a second and peak memory on the GPU, neither if the batch does not fit."""
    worker = common.Worker(steps.ours, 4, model="sd15", resolution=RESOLUTION, precision="bf16", **changes)
    try:
        seconds = [worker.ask("seconds", "step") for _ in range(REPEATS + 2)][2:]
        peak = worker.ask("peak") / 1e9
    except RuntimeError as error:
        if "OutOfMemoryError" not in str(error):
            raise
        return {}
    finally:
        worker.close()
    speed = common.spread([changes["target_batch_size"] / each for each in seconds])
    return {"samples_per_second": speed, "peak_gb": common.exactly(peak)}


def predicted(unet: UNet2DConditionModel, changes: dict[str, Any]) -> common.Row:
    """Return speed from counted work and the assumed share, and memory from tensors without data."""
    targets, checkpointing = changes["target_batch_size"], changes["gradient_checkpointing"]
    unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = [mode.from_tensor(p) for p in unet.parameters()]  # which stand for them inside
    record = Kept(weights)
    with mode, record:
        gflop = common.count_gflop(lambda: _pass(unet, targets))
    unet.zero_grad()
    resident = sum(p.numel() * p.element_size() for p in unet.parameters())
    states = 12 * sum(p.numel() for p in unet.parameters() if p.requires_grad)  # gradient, two moments
    tensors = (resident + states + record.peak) / 1e9 + TEXT_ENCODER_GB
    speed = [targets * 1e3 * PEAK_TFLOPS * share / gflop for share in SHARE]
    return {
        "samples_per_second": common.Measure(*speed),
        "peak_gb": common.Measure(*(tensors + workspace for workspace in WORKSPACE_GB)),
        "gflop": common.exactly(gflop / targets),
    }


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts, inside its `with`, the most bytes that autograd keeps at a time, weights left out."""

    def __init__(self, weights: Iterable[torch.Tensor]) -> None:
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}
        self._users: Counter[int] = Counter()  # storage -> how many saved tensors share it
        self.bytes = self.peak = 0
        super().__init__(self._save, lambda saved: saved())

    def _save(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        saved = functools.partial(lambda kept: kept, tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._count(storage, 1)
            weakref.finalize(saved, self._count, storage, -1)
        return saved

    def _count(self, storage: torch.UntypedStorage, change: int) -> None:
        before = self._users[storage._cdata]
        self._users[storage._cdata] += change
        if 0 in (before, before + change):
            self.bytes += change * storage.nbytes()
        self.peak = max(self.peak, self.bytes)


def _pass(unet: UNet2DConditionModel, targets: int) -> None:
    """Do both passes of a training step on tensors without data; source features are those of a bank."""
    noisy, timesteps = torch.randn(targets, 4, LATENT, LATENT), torch.zeros(targets, dtype=torch.long)
    text = torch.randn(targets, 77, 768, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        eps, mid = models.unet_pass(unet, noisy, timesteps, text, targets)
    (eps.float().square().mean() + mid.float().mean()).backward()


def sampling_seconds(unet: UNet2DConditionModel | None) -> common.Measure:
    """Return seconds of one image, 30 steps of DDIM with guidance, decoder included."""
    if unet is None:
        options = {"model": "sd15", "resolution": RESOLUTION, "precision": "bf16"}
        worker = common.Worker(sampler, 4, **options)
        seconds = [worker.ask("seconds", "image") for _ in range(REPEATS + 1)][1:]
        worker.close()
        return common.spread(seconds)
    vae = AutoencoderKL(**steps.VAE)

    def guided() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            unet(torch.randn(2, 4, LATENT, LATENT), torch.zeros(2, dtype=torch.long), torch.randn(2, 77, 768))

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        decoded = common.count_gflop(lambda: vae.decode(torch.randn(1, 4, LATENT, LATENT)))
        gflop = 30 * common.count_gflop(guided) + decoded
    return common.Measure(*(gflop / (1e3 * PEAK_TFLOPS * SHARE[i]) for i in (0, 2, 1)))


def sampler(model: str, resolution: int, precision: str) -> common.Operations:
    """Return `image`: one image of the adapted model, with the published settings."""
    config = steps.settings(model, resolution, precision)
    pipeline = DasdPipeline(steps.base(model, config).to("cuda"), config)
    settings = Calibration(7.0, 30, "ddim")
    return {"image": lambda: pipeline.generate(steps.PROMPT, domain="satellite", seed=0, settings=settings)}


def largest(rows: list[common.Row]) -> list[common.Row]:
    """Return the largest batch that fits in each limit, with and without checkpointing."""
    found = []
    for limit in LIMITS:
        for checkpointing in (False, True):
            measured = [r for r in rows if r["gradient_checkpointing"] == checkpointing and "peak_gb" in r]
            fitting = [row for row in measured if row["peak_gb"].high <= limit]
            found += [{**row, "limit_gb": limit} for row in fitting[-1:]]
    return found


def main(sizes: Annotated[str, typer.Option(help="targets in a micro-batch, with commas")] = "") -> None:
    """Print a table and write data/results/bench_gpu.json; `made` says measured or predicted."""
    on_gpu, rows = torch.cuda.is_available(), []
    unet = None
    if not on_gpu:
        unet = steps.sd15_unet(torch.bfloat16).requires_grad_(False).train()
        models.add_lora(unet, steps.settings("sd15", RESOLUTION, "bf16").lora)
    made = {"made": "measured" if on_gpu else "predicted", "n": REPEATS if on_gpu else 1}
    for changes in batches([int(size) for size in sizes.split(",")] if sizes else BATCHES):
        rows.append({**changes, **made, **(measured(changes) if on_gpu else predicted(unet, changes))})
        print(rows[-1], flush=True)
    fitting = largest(rows)
    seconds = {"seconds_an_image": sampling_seconds(unet), **made}
    print(common.table(fitting, FORMATS))
    print(f"{made['made']}: {seconds['seconds_an_image']:.2f} seconds an image, 30 steps with guidance")
    device = torch.cuda.get_device_name(0) if on_gpu else PREDICTED_FOR
    settings = {"machine": common.machine(1, "cuda" if on_gpu else "cpu"), "for": device}
    if not on_gpu:
        settings |= {"peak_tflops": PEAK_TFLOPS, "share": SHARE, "workspace_gb": WORKSPACE_GB}
    print(common.save("gpu", settings, [*rows, *fitting, seconds]))


if __name__ == "__main__":
    typer.run(main)
