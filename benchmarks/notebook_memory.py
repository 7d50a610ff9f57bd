"""Memory of every cell that trains or samples, and the work of every notebook: sd15 on T4, L4 and A100.

python benchmarks/notebook_memory.py

Counted for the sizes that "auto" chooses there (plain "sd15" takes smaller micro-batches on all of them), on
tensors that have the true shapes and no data: see counting.py. A cell's peak is that of its largest step
(weights, gradients, AdamW's moments, kept activations, temporary results) plus what else of the notebook is
alive on the GPU then (other models, VAE, CLIP) plus WORKSPACE_GB. bf16 and fp16 take as many bytes. Between 1
and 16 images at once, sampling is taken to be linear. Minutes are counted products, convolutions and
attention at an assumed share of the card's peak; downloads, and what the CPU does, are not in them.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple
from unittest import mock

import common
import counting
import diffusers
import gpu
import torch
import transformers
import typer

from dasd_utils import models, training
from dasd_utils.apps import notebooks, workers
from dasd_utils.config import ROOT, Config
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.runtime import files
from dasd_utils.study import alignment, calibration, ladder

RESULTS = common.RESULTS / "notebook_memory.json"
IMAGES = 300 + 2 * 400 + 2 * 32  # of source and targets, and of two domains' validation: what is encoded
LIMIT = 0.9  # of a card, for a cell
FP32_MORE = counting.UNET  # bytes that the UNet takes beyond half precision where `load_parts` alone loads it
CARDS = {  # GB (1e9 bytes) as CUDA reports them, and dense half-precision TFLOP/s of the data sheet
    "T4": ("Tesla T4", 15.8, 65.0),
    "L4": ("NVIDIA L4", 23.6, gpu.PEAK_TFLOPS),
    "A100": ("NVIDIA A100-SXM4-40GB", 42.3, 312.0),
}
# Calls that use the GPU, by their last name; a function of the notebook that has one in it counts too.
CALLS = re.findall(
    r"\w+",
    """train train_or_resume find_or_train load_or_train generate generate_with_auto_domain
    generate_comparison draw_images sample sample_method evaluate edit invert inverted pictures strength
    encode cached_latents decode_images features gradient_pulls unet_pass predict_noise grad objective
    predict playground unet""",
)


class Work(NamedTuple):
    """One thing that a cell does."""

    what: str
    own: float  # bytes at its peak, its model included
    beside: float  # bytes of what else is alive
    gflop: float


def counting_config(config: Config) -> Config:
    """Return the config in the form that is counted once: what does not change memory is left out."""
    precision = "no" if config.training.mixed_precision == "no" else "bf16"
    fixed = {"output_dir": "-", "seed": 0, "max_train_steps": 10, "lr_warmup_steps": 0, "validation_every": 0}
    fixed |= {"sample_every": 0, "num_heldout": 10, "gradient_accumulation_steps": 1, "validation_images": 0}
    return config.replace(mixed_precision=precision, **fixed)


PLAIN = counting_config(Config.setup("sd15"))  # no batch size decides what sampling takes


class Card:
    """A card, a profile, and what work takes there."""

    def __init__(self, name: str, profile: str) -> None:
        self.name, self.profile = name, profile
        self.base = self.setup()
        self.size = counting.weights(PLAIN)
        self.model, self.vae, self.clip = (self.size[key] for key in ("model", "vae", "clip"))

    def setup(self, **changes: Any) -> Config:
        """Return the config that `Config.setup` gives on this card."""
        title, gb, _ = CARDS[self.name]
        properties = SimpleNamespace(total_memory=int(gb * 1e9))
        with mock.patch.multiple(
            torch.cuda,
            is_available=lambda: True,
            get_device_properties=lambda _: properties,
            get_device_name=lambda _: title,
            is_bf16_supported=lambda including_emulation=True: self.name != "T4",
        ):
            return Config.setup(self.profile, **changes)

    def train(self, config: Config, steps: int, beside: float = 0) -> Work:
        """Return the work of so many optimiser steps."""
        found = counting.step(counting_config(config))
        count = steps * config.training.gradient_accumulation_steps
        return Work(f"train {_sizes(config)}", found.peak, beside, count * found.gflop)

    def sample(
        self, images: float, steps: float = 30, calls: int = 2, beside: float = 0, most: int = 16,
        half: bool = True,
    ) -> Work:  # fmt: skip
        """Return the work of images; calls: passes of the UNet for each at a step; most: in a batch.

        half: the UNet is kept in the precision of computing, not in fp32.
        """
        batch = min(most, max(round(images), 1))
        config, more = (PLAIN, 0) if half else (PLAIN.replace(half_weights=False), FP32_MORE)
        few, many = (counting.prediction(config, count) for count in (2, 16))
        peak = few.peak + (many.peak - few.peak) * (batch * min(calls, 2) / 2 - 2) / 14
        decoded = counting.vae_pass(2)
        gflop = images * (steps * calls * many.gflop / 32 + decoded.gflop / 2)
        own = max(peak, self.model + more + decoded.peak)  # the VAE is in both
        return Work(f"sample {batch} at once", own, beside, gflop)

    def encode(self, images: float, beside: float = 0, half: bool = True, batch: int = 2) -> Work:
        """Return the work of images into latents."""
        found = counting.vae_pass(batch, True, half)
        return Work(f"encode {batch} at once", found.peak, beside, images * found.gflop / batch)

    def forward(
        self, config: Config, images: float, batch: int, beside: float = 0, num_target: int | None = 1
    ) -> Work:
        """Return the work of the UNet without gradients, where all but num_target stop at the middle.

        None: no sample stops. The VAE is alive.
        """
        config = counting_config(config) if config.training.mixed_precision == "no" else PLAIN
        found = _features(config, batch, num_target)
        what = "features" if num_target == 1 else "noise"
        return Work(f"{what} of {batch} at once", found.peak, beside, images * found.gflop / batch)

    def pulls(self, config: Config, batches: int, beside: float = 0) -> Work:
        """Return the work of `alignment.gradient_pulls`, the batches that fill the queue included."""
        found = _pulls(counting_config(config))
        return Work(f"two gradients {_sizes(config)}", found.peak, beside, batches * found.gflop)

    def translate(self, config: Config, steps: int, inverted: float, beside: float = 0) -> Work:
        """Return the work of DiffusionCLIP's training, and of images that it inverts before."""
        found, one = (
            _translation(counting_config(config)),
            counting.prediction(PLAIN, 16),
        )
        gflop = steps * found.gflop + inverted * one.gflop / 32
        return Work(f"learn to translate {_sizes(config)}", found.peak, beside, gflop)


def _sizes(config: Config) -> str:
    own = config.training
    again = ", recomputed" * own.gradient_checkpointing
    return f"{own.target_batch_size} + {own.source_batch_size}{again}"


@counting.once
def _features(config: Config, batch: int, num_target: int | None) -> counting.Counted:
    def run(parts: models.Parts, _sampler: Any) -> None:
        latents, times = torch.randn(batch, 4, 64, 64), torch.zeros(batch, dtype=torch.long)
        half = config.training.mixed_precision != "no"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            models.unet_pass(parts.unet, latents, times, torch.randn(batch, 77, 768), num_target)

    return counting.gradient_step(config, run)


@counting.once
def _pulls(config: Config) -> counting.Counted:
    config = config.replace(lambda_align=0.01, gradient_checkpointing=True)  # as it is on a GPU
    return counting.gradient_step(
        config, lambda p, s: alignment.gradient_pulls(p, s, config, range(1), warm=0)
    )


@counting.once
def _translation(config: Config) -> counting.Counted:
    def run(parts: models.Parts, sampler: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes(), torch.device("meta"):
            clip = transformers.CLIPModel(transformers.CLIPConfig())
        counting.without_data(clip)
        words = diffusionclip.Words.__new__(diffusionclip.Words)
        words.clip, words.direction = clip.eval().requires_grad_(False), torch.randn(512)
        words.processor = SimpleNamespace(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
        learned = diffusionclip.DirectionObjective(config)
        learned._words = words
        updater = training.Updater(config, parts)
        _moments = [torch.empty_like(p) for p in updater.parameters for _ in range(2)]
        batch, size = sampler.batch(0), config.training.target_batch_size
        x = torch.randn(size, 4, 64, 64)
        learned.trajectory = {"x": x, "clean": x, "done": torch.tensor(0)}
        with mock.patch.object(diffusionclip, "int", lambda _: 0, create=True), updater.autocast():
            loss, _ = learned(parts, batch, config)
        updater.backward(loss)

    return counting.gradient_step(config, run)


@counting.once
def _small_unet() -> counting.Counted:
    """Return what a step of the UNet that notebook 01 trains takes, with gradients and AdamW's moments."""
    with counting.no_data() as live:
        sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        unet = diffusers.UNet2DModel(64, 4, 4, num_class_embeds=4, add_attention=False, **sizes, **blocks)
        counting.without_data(unet)
        _moments = [torch.empty_like(p) for p in unet.parameters() for _ in range(2)]
        x, times = torch.randn(32, 4, 64, 64), torch.zeros(32, dtype=torch.long)
        gflop = common.count_gflop(lambda: unet(x, times, times).sample.square().mean().backward())
        return counting.Counted(live.peak, gflop)


# What each cell does: (cell, its work). P holds the numbers of the notebook's own parameters cell.


def lesson_00(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    for cell in (14, 16, 18):
        yield cell, card.sample(p.num_prompts, beside=FP32_MORE)


def lesson_01(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    step, model = _small_unet(), card.model + FP32_MORE
    whole = model + card.vae
    images = p.num_images * (len(card.base.domains) + 1)
    points = Work("points", 0.1e9, whole, 0)  # an MLP of a width of 128
    for cell in (18, 25, 32):
        yield cell, points
    yield 35, card.encode(images, model, half=False, batch=8)
    yield 37, Work("train a small UNet", step.peak, whole, p.latent_steps * step.gflop)
    yield 39, Work("sample a small UNet", step.peak, whole, 36 * 50 * 2 * step.gflop / 3 / 32)
    yield 39, card.sample(36, steps=0, beside=FP32_MORE)
    yield 42, card.sample(3, steps=25, beside=FP32_MORE)


def lesson_02(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    yield 24, card.encode(IMAGES)
    yield 26, card.encode(1, half=False)
    yield 28, card.sample(9, steps=0, beside=-card.model)
    yield 30, card.sample(3 * 64, steps=0, beside=-card.model)


def lesson_03(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    short = card.setup().replace(
        mixed_precision="no", target_batch_size=3, source_batch_size=1, gradient_checkpointing=True,
        source_features="frozen",
    )  # fmt: skip
    yield 21, card.encode(3 * (p.num_images + 8), half=False)
    yield 23, card.train(short, p.steps)
    yield 27, card.forward(short, 2 * 4, 4, num_target=None)
    yield 27, card.forward(short, 4, 4, num_target=3)
    yield 32, card.forward(short, 6 * p.num_images, 32)


def lesson_04(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    config, whole = card.setup(), card.model + card.vae
    small = config.replace(target_batch_size=6, source_batch_size=2, gradient_accumulation_steps=1)
    small = small.replace(mixed_precision="no", gradient_checkpointing=True)
    brief, fp32 = config.replace(target_batch_size=4, source_batch_size=2), whole + FP32_MORE
    targets = config.training.target_batch_size
    held_out = 2 * config.training.validation_images
    steps = p.max_train_steps or config.training.max_train_steps
    looks = steps / p.sample_every  # pictures and validations
    batch = targets + config.training.source_batch_size
    yield 6, Work("load", fp32, 0, 0)
    yield 8, card.encode(IMAGES, fp32 - card.vae, half=False)
    yield 8, card.forward(small, small.alignment.bank_size, 2)  # the bank
    yield 16, card.train(small, 2, card.vae)
    yield 20, card.sample(4, most=2, half=False)
    yield 22, card.train(small, 2 * p.sample_every, card.vae)  # the model before waits on the CPU
    yield 22, card.sample(2 * 4, most=2, half=False)
    yield 24, Work("load", whole, fp32, 0)
    yield 24, card.encode(IMAGES, card.model)
    yield 27, card.forward(config, held_out * (1 + looks), targets, num_target=None)
    yield 27, card.train(config, steps)
    yield 27, card.forward(config, config.alignment.bank_size, 2)
    yield 27, card.sample(4 * looks, most=2)
    yield 35, card.forward(config, 20 * batch, batch, num_target=targets)
    yield 37, card.forward(config, held_out, targets, num_target=None)
    yield 41, card.sample(16, most=4)
    yield 44, card.train(brief, 4 + 3, whole)
    yield 46, card.train(brief, 2, whole)


def lesson_05(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    domains = len(card.base.domains)
    yield 7, card.sample(4, most=1)
    yield 9, card.sample(0, most=1)  # both are refused
    yield 11, card.sample(8, most=4)
    yield 13, card.sample(domains * len(p.guidance_scales) * p.num_prompts)
    yield 24, card.sample(6 * sum(p.step_counts) / 30 + 200 / 30, beside=card.clip, most=1)
    yield 32, card.sample(0, beside=card.clip, most=1)  # in a live session


def lesson_06(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    yield 33, card.sample(5)


def lesson_07(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    domains, prompts, copies = len(card.base.domains), 20, p.images_per_prompt
    steps = p.num_inference_steps or 30
    yield 8, card.sample(2 * 3 * 2 * copies, steps, beside=card.clip, most=2 * copies)
    yield 10, card.sample(3 * domains * prompts * copies, steps, beside=card.clip)
    yield 30, card.sample(2 * prompts, beside=card.clip)


def lesson_08(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    sizes = {"target_batch_size": 4, "source_batch_size": 3}
    plain = card.setup(**sizes)
    plain = plain.replace(domains=plain.domains[:1])
    config = ladder.find_methods(["DomainStudio"])[0].config(plain)
    whole = card.model + card.vae
    fp32 = counting.UNET * 2  # the base that draws the source's images is loaded in fp32
    micro = config.training.gradient_accumulation_steps
    yield 20, card.sample(p.num_source_images, beside=fp32)
    yield 20, card.train(config, 2 * p.max_train_steps)
    yield 22, card.encode(0, 2 * whole)
    yield 22, card.train(config, 2 / micro, whole)
    yield 24, card.train(config, 12 * 2.5 / micro, whole)  # one pass forwards and four back, a batch each
    yield 27, card.sample(3 * p.num_samples, beside=whole)
    yield 43, card.train(config, p.max_train_steps_without_text)
    yield 43, card.sample(20, calls=1, most=10)


def lesson_09(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    config, whole = card.setup(), card.model + card.vae
    pair = dict(steps=10, beside=whole, most=5)  # of two pipelines one draws
    yield 9, card.train(config, 2 * p.max_train_steps)
    yield 11, card.sample(15, calls=1, **pair)
    yield 16, card.encode(p.num_compared, 2 * card.model + card.vae, half=False)
    yield 18, card.sample(4 * p.num_compared, 1, 1, whole, p.num_compared)
    yield 20, card.sample(5, calls=3, **pair)
    yield 22, card.sample(25, **pair)
    yield 25, card.sample(24 * p.num_compared, 1, 1, whole, p.num_compared)
    yield 28, card.sample(20, **pair)
    yield 31, card.sample(45, calls=3, **pair)
    yield 42, card.sample(0, beside=whole + card.clip)  # where an attribute classifier is
    yield 51, card.encode(3 * p.num_edited + 5, 2 * card.model + card.vae + card.clip, half=False)
    yield 51, card.sample(3 * p.num_edited + 5, 20, 3, whole + card.clip)


def lesson_10(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    words = {"reference": ["a painting"], "target": ["a satellite image"]}
    source = dataclasses.replace(card.setup().source, name="paintings")
    config = card.setup(method="diffusionclip", domains=[source], method_settings=words, whole_unet=False)
    images = p.num_compared
    yield 16, card.translate(config, p.max_train_steps, 40 * p.max_train_steps / 6, card.clip)
    yield 19, card.encode(images, card.model + card.clip, half=False)
    yield 19, card.sample(images, 40, 1, card.clip, most=8)
    yield 21, card.sample(images, 6 + 40, 1, card.clip, most=8)
    yield 24, card.sample(4 * images, 6, 2, card.clip, most=8)
    yield 44, card.sample(0)  # these sets share no label


def lesson_11(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    yield 24, card.sample(len(card.base.domains) * p.num_images, beside=card.clip)


def lesson_12(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    config, count = card.setup(), 0 if p.lambda_align == 0 else 1
    targets = config.training.target_batch_size
    batch = targets + config.training.source_batch_size
    yield 13, Work("points", 0, 0, 0)  # in the plane, on the CPU
    yield 16, card.encode(IMAGES)  # the run is that of lesson 04
    yield 21, card.pulls(config, 2)
    yield 23, card.pulls(config, 2 * 12 * count)
    yield 26, card.pulls(config, 12 * count)
    yield 28, card.pulls(config, 5 * 8 * count)
    yield 31, card.forward(config, 2 * 12 * batch, batch, num_target=targets)
    yield 38, card.sample(2 * 3 * p.num_images, beside=card.clip)


def solutions(card: Card, p: Any) -> Iterator[tuple[int, Work]]:
    config, prompts, clip = card.setup(), p.num_prompts, card.clip
    studio = card.setup(method="domainstudio", source_images="real")
    yield 5, card.sample(2 * 12, beside=clip, most=12)
    yield 7, card.sample(12, beside=clip)
    yield 9, card.sample(3 * 12, beside=clip, most=12)
    yield 19, card.encode(IMAGES, card.model + card.vae + clip)
    yield 21, card.encode(0, card.model + clip)  # the same images
    yield 35, card.train(config, 2 * p.short_steps, clip)  # the pipeline waits on the CPU
    yield 37, card.train(config, 2, clip)
    yield 39, card.train(config, p.token_steps, clip)
    yield 39, card.sample(4, beside=clip)
    yield 44, card.sample(4 + 8 + 1, beside=clip, most=8)
    yield 46, card.sample(5, calls=1, beside=clip, most=1)
    yield 50, card.sample(2 * 20, beside=clip)
    yield 62, card.sample(20 * 3, beside=clip)
    yield 66, card.sample(20, beside=clip)
    yield 77, card.train(studio, 9 / studio.training.gradient_accumulation_steps, clip)
    yield 80, card.sample(2 * prompts, 10, 2, clip, prompts)
    yield 80, card.sample(4 * prompts, 10, 1, clip, prompts)
    yield 82, card.sample(2 * prompts, 10, 1, clip, prompts)
    yield 86, card.sample(3 * prompts, 10, 3, clip, prompts)
    yield 109, card.pulls(config, 4 * 8, clip + card.vae)


def ladder_of_three_seeds(card: Card) -> Iterator[Work]:
    """Yield the work of `dasd ladder`: trainings, calibrations, images, each training as long as DASD's."""
    config = card.setup()
    runs = {ladder.run_config(config, method, 0).output_dir for method in ladder.METHODS if method.trained}
    yield card.train(config, 3 * len(runs) * config.training.max_train_steps)
    count, domains = config.evaluation.num_heldout, len(config.domains)
    shown = sum(domains * count + method.sees_source * count / 2 for method in ladder.METHODS)
    yield card.sample(3 * shown)
    steps = [n for counts in calibration.STEPS.values() for n in counts if n <= calibration.BUDGET]
    steps += [calibration.BUDGET] * sum(map(len, calibration.SCALES.values()))
    yield card.sample(3 * domains * calibration.IMAGES * sum(steps) / 30)


def sweep_of_lesson_12(card: Card) -> Iterator[Work]:
    """Yield the work of `dasd sweep data/configs/alignment_sweep.json --notebook 12`."""
    cells = len(workers.read_sweep(ROOT / "data/configs/alignment_sweep.json"))
    works = list(lesson_12(card, parameters(notebooks.find_notebooks(["12"])[0])))
    once = card.train(card.setup(), card.setup().training.max_train_steps)
    yield from (work._replace(gflop=cells * work.gflop) for work in [once, *(work for _, work in works)])
    yield once  # of "LoRA + token", with which each is compared


STUDIES = {"ladder": ladder_of_three_seeds, "sweep": sweep_of_lesson_12}
LESSONS: dict[str, Callable[[Card, Any], Iterator[tuple[int, Work]]]] = {
    name.removeprefix("lesson_"): function
    for name, function in list(globals().items())
    if name == "solutions" or name.startswith("lesson_")
}


def gpu_cells(path: Path) -> dict[int, str]:
    """Return the cells of a notebook that use the GPU, with a hash of their calls that do."""
    found, names = {}, set(CALLS)
    for number, cell in enumerate(notebooks.load_notebook(path).cells):
        if cell.cell_type != "code" or notebooks.is_setup(cell):
            continue
        tree = ast.parse(cell.source)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        names |= {f.name for f in functions if isinstance(f, ast.FunctionDef) and _calls(f, names)}
        calls = [call for call in _calls(tree, names) if id(call) not in inside]
        if calls:
            found[number] = files.short_hash([ast.unparse(call) for call in calls])
    return found


def _calls(tree: ast.AST, names: set[str]) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).split(".")[-1] in names]


def parameters(path: Path) -> SimpleNamespace:
    """Return the numbers of a notebook's parameters cell."""
    cells = [c for c in notebooks.load_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    lines = [node for cell in cells for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return SimpleNamespace(**{ast.unparse(node.targets): ast.literal_eval(node.value) for node in lines})


def count(card: Card, path: Path) -> list[common.Row]:
    """Return a row for each cell of a notebook that uses the GPU, and one for the notebook."""
    used, cells = gpu_cells(path), {}
    for number, work in LESSONS[path.stem.split("_")[0]](card, parameters(path)):
        cells.setdefault(number, []).append(work)
    if missing := used.keys() ^ cells.keys():
        raise SystemExit(
            f"{path.name}: cells {sorted(missing)} use the GPU here or there alone: see LESSONS."
        )
    rows, total = [], 0.0
    what = {"notebook": path.stem, "card": card.name, "profile": card.profile, "made": "counted", "n": 1}
    for number, works in sorted(cells.items()):
        largest = max(works, key=lambda work: work.own + work.beside)
        total += sum(work.gflop for work in works)
        peak = (largest.own + largest.beside) / 1e9
        row = {"cell": number, "calls": used[number], "largest": largest.what}
        row["peak_gb"] = common.Measure(*(peak + each for each in gpu.WORKSPACE_GB))
        row["own_gb"] = common.exactly(largest.own / 1e9)
        row["beside_gb"] = common.exactly(largest.beside / 1e9)
        row["share_of_card"] = common.exactly(row["peak_gb"].value / CARDS[card.name][1])
        rows.append(what | row)
    highest = max(row["peak_gb"] for row in rows)
    rows.append(what | times(card, total) | {"peak_gb": highest})
    return rows


def times(card: Card, gflop: float) -> common.Row:
    """Return counted work, and the minutes that it takes at the assumed shares of the card's peak."""
    rate = 6e4 * CARDS[card.name][2]  # GFLOP a minute
    minutes = common.Measure(*(gflop / (rate * gpu.SHARE[i]) for i in (0, 2, 1)))
    return {"tflop": common.exactly(gflop / 1e3), "minutes": minutes}


def together(card: Card, rows: list[common.Row]) -> list[common.Row]:
    """Return a row for the whole course and for each study."""
    gflop = {"all": 1e3 * sum(row["tflop"].value for row in rows if "tflop" in row)}
    gflop |= {name: sum(work.gflop for work in study(card)) for name, study in STUDIES.items()}
    what = {"card": card.name, "profile": card.profile, "made": "counted", "n": 1}
    return [{"notebook": name, **what, **times(card, total)} for name, total in gflop.items()]


def main(
    cards: Annotated[str, typer.Option(help="with commas")] = ",".join(CARDS),
    profiles: Annotated[str, typer.Option(help="auto, sd15, with commas")] = "auto",
    only: Annotated[str, typer.Option(help="names of notebooks, with commas; all if empty")] = "",
) -> None:
    """Print a table, write data/results/notebook_memory.json; status 1 if a cell is too large for a card."""
    rows = []
    for name in cards.split(","):
        for profile in profiles.split(","):
            card, start = Card(name, profile), len(rows)
            for path in notebooks.find_notebooks(only.split(",") if only else None):
                rows += count(card, path)
                print(
                    common.table(
                        rows[-1:],
                        {"card": "", "profile": "", "notebook": "", "minutes": ".1f", "peak_gb": ".1f"},
                    ),
                    flush=True,
                )
            rows += together(card, rows[start:])
    large = [row for row in rows if "share_of_card" in row and row["share_of_card"].value > LIMIT]
    columns = {
        "card": "",
        "profile": "",
        "notebook": "",
        "cell": "",
        "largest": "",
        "own_gb": ".1f",
        "beside_gb": ".1f",
        "peak_gb": ".1f",
        "share_of_card": ".2f",
    }
    print(common.table(large, columns) if large else f"No cell takes more than {LIMIT:.0%} of its card.")
    if not only and cards == ",".join(CARDS):
        settings = {
            "machine": common.machine(1),
            "cards": CARDS,
            "share": gpu.SHARE,
            "workspace_gb": gpu.WORKSPACE_GB,
        }
        print(common.save(RESULTS.stem, settings, rows, prefix=""))
    raise typer.Exit(bool(large))


if __name__ == "__main__":
    typer.run(main)
