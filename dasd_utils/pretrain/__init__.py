"""Build `data/tiny-sd` from the toy world, in the layout of diffusers.

The VAE and CLIP see every domain, the UNet sees paintings only: the gap that adaptation has to close.
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
from dasd_utils.pretrain.clip import train_clip, train_tokenizer
from dasd_utils.pretrain.reader import train_reader
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.pretrain.unet import noise_scheduler, text_tower, train_unet
from dasd_utils.pretrain.vae import train_vae
from dasd_utils.pretrain.world import describe_images, render_images

log = logging.getLogger(__name__)
STAGES = ("render", "describe", "tokenizer", "vae", "clip", "reader", "unet", "assemble")


def pretrain(config: PretrainConfig, stages: tuple[str, ...] = STAGES, progress: bool = True) -> Path:
    """Run the stages that are not done yet and return the folder of the finished base model."""
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise DasdError(f"There is no pretraining stage {sorted(unknown)[0]!r}. Stages: {', '.join(STAGES)}.")
    work = resolve(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    run = {
        "render": render_images,
        "describe": describe_images,
        "tokenizer": train_tokenizer,
        "vae": train_vae,
        "clip": train_clip,
        "reader": train_reader,
        "unet": train_unet,
        "assemble": assemble,
    }
    for stage in (s for s in STAGES if s in stages):
        started = time.perf_counter()
        run[stage](config, work, progress)
        log.info("%s: %.0f s", stage, time.perf_counter() - started)
    return resolve(config.output_dir)


def assemble(config: PretrainConfig, work: Path, progress: bool = True) -> Path:
    """Write the parts as a `StableDiffusionPipeline` folder in fp16, with CLIP and the reader beside it."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
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
    folder, part = resolve(config.output_dir), work / "assembled"
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(part)
    for saved in (clip.half(), tokenizer, processor):
        saved.save_pretrained(part / "clip")
    train_reader(config, work, progress).save(part / "reader")
    made_by = {k: v for k, v in asdict(config).items() if not k.endswith("_dir")}
    (part / "pretrain.json").write_text(json.dumps(made_by, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(part, folder, dirs_exist_ok=True)
    return folder
