"""Shared fixtures: narrow random bases in the layouts of diffusers and of the SD 1.5 repository."""

import contextlib
import dataclasses
import functools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # tests need no network; read when huggingface_hub is imported

import datasets
import narrow
import nbformat
import numpy as np
import pytest
import sd15_files
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from dasd_utils import adapters, models, sampling
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.runtime import small_cnn

os.umask(0o022)  # that the modes of written files are compared under
torch.set_num_threads(1)  # tests are small, and threads that wait for each other cost more than they give
LONG = ("test_processes", "test_ladder", "test_kill_resume", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: two processes that share the files then end together."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def dasd(*words: object) -> Any:
    """Run `dasd` with these words and `--json` in this process; return what it printed."""
    result = CliRunner().invoke(cli.app, [*map(str, words), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Callable[..., Path]:
    """Return `tiny_base(seed=0, **unet_changes) -> folder` of a narrow random base; made once each."""
    return functools.cache(
        lambda *seed, **changes: narrow.make_base(tmp_path_factory.mktemp("base"), *seed, **changes)
    )


@pytest.fixture(scope="session")
def base_dir(tiny_base) -> Path:
    """Return the folder of the narrow random base, with `clip/` beside its parts. Do not write to it."""
    return tiny_base()


@pytest.fixture(scope="session")
def vae(base_dir) -> AutoencoderKL:
    """Return the VAE of the narrow random base. Do not change it."""
    return AutoencoderKL.from_pretrained(base_dir, subfolder="vae")


def on_narrow_base(profile: str, base: Path, clip: Path, folder: Path, **changes) -> Config:
    """Return a config of the profile on a narrow base, with few steps and all output in `folder`."""
    config = Config.setup(profile)
    quick = Calibration(guidance_scale=2.0, num_inference_steps=2, scheduler="ddim")
    few = dict(num_images=24, calibration=quick)
    source, *domains = (dataclasses.replace(d, **few) for d in (config.source, *config.domains))
    settings = dict(source=source, domains=tuple(domains), base=base, clip=clip, output_dir=folder / "run")
    settings |= dict(base_revision=None, clip_revision=None, resolution=32, cache_dir=folder / "cache")
    settings |= dict(attention="fused", mixed_precision="no")  # as diffusers has it, for exact comparisons
    settings |= dict(max_train_steps=4, target_batch_size=6, source_batch_size=2, lr_warmup_steps=1)
    settings |= dict(bank_size=40, queue_size=8, rank=4, alpha=16.0, checkpoint_every=2, validation_every=2)
    settings |= dict(validation_images=4, images_per_prompt=2, num_heldout=8, num_bootstrap=50)
    settings |= dict(num_inference_steps=2)  # of the evaluation
    return config.replace(**(settings | changes))


@pytest.fixture(scope="session")
def make_config(base_dir, tmp_path_factory) -> Callable[..., Config]:
    """Return `make_config(**changes)`: a config as `tiny_config` for a whole module, in its own folder."""
    folder = tmp_path_factory.mktemp
    return lambda **changes: on_narrow_base("tiny", base_dir, base_dir / "clip", folder("config"), **changes)


@pytest.fixture
def tiny_config(base_dir, tmp_path) -> Config:
    """Return a config of the tiny profile on the narrow base; outputs go to the test's own folder."""
    return on_narrow_base("tiny", base_dir, base_dir / "clip", tmp_path)


@pytest.fixture(scope="session")
def sd15_layout_dir(tmp_path_factory) -> Path:
    """Return a narrow random base in the layout of the SD 1.5 repository; VAE factor 8, 64 px are 8 x 8."""
    return sd15_files.make_sd15(tmp_path_factory.mktemp("sd15"))


@pytest.fixture
def sd15_config(sd15_layout_dir, tmp_path) -> Config:
    """Return a config of the sd15 profile on the narrow base of that layout, with its fp16 files."""
    changes = dict(resolution=64, base_variant="fp16")
    return on_narrow_base("sd15", sd15_layout_dir, sd15_layout_dir / "clip", tmp_path, **changes)


def as_if_trained(parts: models.Parts) -> models.Parts:
    """Add LoRA and tokens whose weights are random, none of them zero; return the parts."""
    torch.manual_seed(0)  # LoRA's own start, the same whatever ran before
    models.add_lora(parts.unet, parts.config.lora)
    models.add_domain_tokens(parts, parts.config.domains)
    narrow.randomise(models.trainable_parameters(parts))
    return parts


@pytest.fixture
def parts(tiny_config) -> models.Parts:
    """Return fresh parts of the narrow base: frozen, without LoRA or tokens."""
    return models.load_parts(tiny_config)


@pytest.fixture
def adapted(parts) -> models.Parts:
    """Return parts with LoRA and tokens as if trained."""
    return as_if_trained(parts)


@pytest.fixture(scope="module")
def quick_cnn() -> Iterator[None]:
    """Train the classifiers of images for few epochs, wherever no number is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_cnn, "train", functools.partial(small_cnn.train, epochs=5))
        yield


@pytest.fixture
def pipeline(adapted, tiny_config) -> sampling.DasdPipeline:
    """Return the pipeline of the random adapter."""
    adapted.unet.eval()
    return sampling.DasdPipeline(adapted, tiny_config)


@pytest.fixture
def saved_run(adapted, tmp_path) -> Path:
    """Return the folder of a run: its config and the random adapter."""
    folder = tmp_path / "saved"
    adapters.save_adapter(adapted, folder / "adapter")
    adapted.config.save(folder / "config.json")
    return folder


@pytest.fixture
def undecoded(monkeypatch) -> Callable[..., torch.Tensor]:
    """Return `undecoded(call, ...)`: the latents (n, C, h, w) that a call hands over to be decoded."""

    def run(call, *arguments, **options) -> torch.Tensor:
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "decode_images", lambda vae, x: seen.append(x) or [None] * len(x))
            call(*arguments, **options)
        return torch.cat(seen)

    return run


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def write_notebook(path: Path, *cells: str, **metadata) -> Path:
    """Write a notebook of these code cells, the first tagged `parameters`, for this environment's kernel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    known = {"kernelspec": kernel, "language_info": {"name": "python"}}
    made = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)], metadata=known | metadata)
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, path)
    return path


@torch.no_grad()
def assert_diffusers_agrees(parts: models.Parts, adapter: Path, base: Path, prompts: list[str], **options):
    """Assert that plain diffusers computes with an adapter's files what the parts do, and not without."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, **options)
    text = models.encode_prompts(parts, prompts)
    noise = narrow.predicted_noise(parts.unet, text)
    assert (narrow.predicted_noise(pipeline.unet.eval(), text) - noise).abs().max() > 1e-2
    pipeline.load_lora_weights(adapter)
    for token in reversed(parts.token_ids):
        pipeline.load_textual_inversion(adapter / f"{token[1:-1]}.safetensors", token=token)
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    assert (theirs - text).abs().max() < 1e-5
    assert (narrow.predicted_noise(pipeline.unet.eval(), text) - noise).abs().max() < 1e-5


def picture_files(folder: Path, names: Sequence[str], first: int = 0, size: int = 32) -> list[str]:
    """Write a small picture under each name, unlike all others; return the names."""
    for number, name in enumerate(names, start=first):
        noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(noise)
        image.resize((size, size), Image.Resampling.NEAREST).save(path)
    return list(names)


@pytest.fixture
def own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    """Keep what `datasets` writes in a folder of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def full_disk() -> Callable[[int], contextlib.AbstractContextManager]:
    """Return `full_disk(size)`: inside the `with`, a write beyond `size` bytes of a file is refused."""
    resource = pytest.importorskip("resource")  # not on Windows

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@contextlib.contextmanager
def refused(*words: str):
    """Assert that the block ends in a DasdError of one line, of sentences, with these words."""
    with pytest.raises(DasdError) as caught:
        yield
    text = str(caught.value)
    assert caught.type is DasdError and text[-1] in ".?" and "\n" not in text
    assert len(text) < 1000
    for word in words:
        assert word in text, text


def plain_pipeline(
    parts: models.Parts, scheduler: str, kind: type[DiffusionPipeline] = StableDiffusionPipeline
) -> DiffusionPipeline:
    """Return the pipeline of diffusers with the same networks, to compare with."""
    scheduler = sampling.make_scheduler(scheduler, parts.noise_scheduler)
    modules = dict(vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet)
    pipeline = kind(**modules, scheduler=scheduler, **narrow.UNCHECKED)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
