"""Build `data/tiny-sd` from the toy world, in the layout of diffusers.

The VAE and CLIP see every domain, the UNet sees paintings only: adaptation has to close this gap.
Stages are resumable; batch k of a stage is a function of (seed, k), so a resumed run sees the same data.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPTokenizer

from dasd_utils.config import DasdError, resolve
from dasd_utils.pretrain.shared import PretrainConfig, describe_images, render_images
from dasd_utils.pretrain.stages import (
    noise_scheduler,
    text_tower,
    train_attribute_classifier,
    train_clip,
    train_tokenizer,
    train_unet,
    train_vae,
)

log = logging.getLogger(__name__)
STAGES = ("render", "describe", "tokenizer", "vae", "clip", "reader", "unet", "assemble")


def pretrain(config: PretrainConfig, stages: tuple[str, ...] = STAGES, progress: bool = True) -> Path:
    """Run the stages that are not done yet and return the folder of the finished base model.

    All take some two hours on two cores, and 4 GB in `config.work_dir`; stopped, they go on where they were.
    Raises DasdError for an unknown stage and for a work folder of other settings.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise DasdError(f"There is no pretraining stage {sorted(unknown)[0]!r}. Stages: {', '.join(STAGES)}.")
    work = resolve(config.work_dir)
    _check_settings(config, work)
    log.info("Work folder: %s. Ctrl-C stops; the same command goes on.", work)
    run = {
        "render": render_images,
        "describe": describe_images,
        "tokenizer": train_tokenizer,
        "vae": train_vae,
        "clip": train_clip,
        "reader": train_attribute_classifier,
        "unet": train_unet,
        "assemble": assemble,
    }
    for stage in (s for s in STAGES if s in stages):
        started = time.perf_counter()
        run[stage](config, work, progress)
        log.info("%s: %.0f s", stage, time.perf_counter() - started)
    return resolve(config.output_dir)


def _check_settings(config: PretrainConfig, work: Path) -> None:
    """Keep the settings of a work folder in it; DasdError where it holds others.

    Numbers of steps may change: a stage can be made longer.
    """
    values = {k: v for k, v in asdict(config).items() if not k.endswith(("_dir", "_steps", "_every"))}
    values = json.loads(json.dumps(values))  # tuples become lists, as in the file
    path = work / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        other = [k for k in values if before.get(k) != values[k]]
        if other:
            raise DasdError(
                f"{work} was begun with other settings: {other[0]} {before.get(other[0])!r}, now "
                f"{values[other[0]]!r}. Choose another work_dir, or delete this one."
            )
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def assemble(config: PretrainConfig, work: Path, progress: bool = True) -> Path:
    """Write the parts as a `StableDiffusionPipeline` folder in fp16, with `clip` and `reader` in it."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")  # nosec B615  # a folder
    clip = train_clip(config, work, progress)
    processor = CLIPImageProcessor(size={"shortest_edge": config.resolution}, do_center_crop=False,
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=train_vae(config, work, progress),
        text_encoder=text_tower(clip),
        tokenizer=tokenizer,
        unet=train_unet(config, work, progress),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = work / "assembled"
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(part)
    for saved in (clip.half(), tokenizer, processor):
        saved.save_pretrained(part / "clip")
    train_attribute_classifier(config, work, progress).save(part / "reader")
    made_by = {k: v for k, v in asdict(config).items() if not k.endswith("_dir")}
    (part / "pretrain.json").write_text(json.dumps(made_by, indent=2) + "\n")
    folder = resolve(config.output_dir)
    if (folder / "README.md").exists():
        shutil.copy2(folder / "README.md", part)
    return _exchange(part, folder)


def _exchange(fresh: Path, folder: Path) -> Path:
    """Replace a folder by a complete copy of another; the old one is deleted last."""
    beside, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for path in (beside, old):
        shutil.rmtree(path, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(fresh, beside)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
