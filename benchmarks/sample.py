"""Time this project's calibrated sampling against StableDiffusionPipeline with the adapter loaded.

python benchmarks/sample.py                                         # 15 minutes, 25 without bf16
python benchmarks/sample.py --num-images 8 --repeats 9 --no-scores  # 5 minutes: times alone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import common
import torch
import typer
from diffusers import StableDiffusionPipeline
from PIL import Image

from dasd_utils import evaluation, metrics, models, sampling
from dasd_utils.config import Calibration, Config, DomainConfig, resolve
from dasd_utils.pretrain.evaluate import heldout
from dasd_utils.runtime import checkpoints
from dasd_utils.runtime.processes import autocast
from dasd_utils.sampling import initial_noise, make_scheduler

PUBLISHED = {"num_inference_steps": 30, "scheduler": "ddim"}
INTERVAL = {"guidance_interval": (0.2, 0.9)}
VARIANTS = {  # name -> (who samples, what differs from the domain's calibration)
    "diffusers, DDIM 30": ("diffusers", PUBLISHED),
    "ours, DDIM 30": ("ours", PUBLISHED),
    "network and decoder alone, DDIM 30": ("network", PUBLISHED),
    "ours, DDIM 30, guidance interval": ("ours", PUBLISHED | INTERVAL),
    "ours, calibrated": ("ours", {}),
    "ours, calibrated, guidance interval": ("ours", INTERVAL),
    "ours, DPM-Solver++ 10": ("ours", {"num_inference_steps": 10, "scheduler": "dpm++"}),
}
Sampler = Callable[[DomainConfig, Sequence[str], int, Calibration], list[Image.Image]]


def factory(variant: str, precision: str, batch_size: int, num_images: int) -> common.Operations:
    """Return for each domain `<name>`, which samples one batch, and `<name> all`, which samples all."""
    who, changes = VARIANTS[variant]
    config = Config.setup("tiny", mixed_precision=precision)
    sample = {"diffusers": _diffusers, "ours": _ours, "network": _network}[who](config)
    operations = {}
    for domain in config.domains:
        prompts = heldout(domain.name, num_images).texts
        settings = Calibration(**{**vars(domain.calibration), **changes})

        def batch(start: int, domain=domain, prompts=prompts, settings=settings) -> list[Image.Image]:
            return sample(domain, prompts[start : start + batch_size], start, settings)

        def everything(batch=batch) -> list[Image.Image]:
            return [image for start in range(0, num_images, batch_size) for image in batch(start)]

        operations[domain.name] = lambda batch=batch: batch(0)
        operations[f"{domain.name} all"] = everything
    return operations


def _ours(config: Config) -> Sampler:
    pipeline = sampling.load_trained_pipeline(checkpoints.find_trained(Config.setup("tiny")), config)

    def sample(domain: DomainConfig, prompts: Sequence[str], first: int, settings: Calibration) -> list:
        seeds = list(range(first, first + len(prompts)))
        return pipeline.generate(list(prompts), domain=domain.name, seed=seeds, settings=settings)[0]

    return sample


def _network(config: Config) -> Sampler:
    """Return what guided sampling cannot do without: the network's passes, LoRA merged, and the decoder."""
    pipeline = sampling.load_trained_pipeline(checkpoints.find_trained(Config.setup("tiny")), config)
    parts, shape = pipeline.parts, models.latent_shape(pipeline.parts)
    parts.unet.fuse_lora()

    @torch.no_grad()
    def sample(domain: DomainConfig, prompts: Sequence[str], first: int, settings: Calibration) -> list:
        noise = torch.randn(2 * len(prompts), *shape, device=parts.unet.device, dtype=parts.unet.dtype)
        text = torch.randn(len(noise), 77, parts.unet.config.cross_attention_dim).to(noise)
        with sampling.evaluating(parts.unet), autocast(config.training.mixed_precision, noise.device):
            for timestep in torch.linspace(999, 0, settings.num_inference_steps):
                parts.unet(noise, timestep, encoder_hidden_states=text)
        return sampling.decode_images(parts.vae, noise[: len(prompts)].float())

    return sample


def _diffusers(config: Config) -> Sampler:
    """Return the pipeline that a user of diffusers has: base, LoRA, tokens, nothing merged."""
    adapter = checkpoints.find_trained(Config.setup("tiny")) / "adapter"
    pipe = StableDiffusionPipeline.from_pretrained(
        resolve(config.model.base), safety_checker=None, dtype=torch.float32
    )
    pipe.load_lora_weights(adapter)
    for domain in config.domains:
        pipe.load_textual_inversion(adapter / f"{domain.token.strip('<>')}.safetensors")
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    schedule = pipe.scheduler

    def sample(domain: DomainConfig, prompts: Sequence[str], first: int, settings: Calibration) -> list:
        pipe.scheduler = make_scheduler(settings.scheduler, schedule)
        shape = (4, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
        noise = torch.stack([initial_noise(shape, first + i, 0) for i in range(len(prompts))])
        with autocast(config.training.mixed_precision, pipe.device):
            return pipe(
                [f"{domain.token} {prompt}" for prompt in prompts],
                guidance_scale=settings.guidance_scale,
                num_inference_steps=settings.num_inference_steps,
                latents=noise.to(pipe.device),
            ).images

    return sample


def score(images: list[Image.Image], domain: str, scorer: evaluation.Scorer, seed: int) -> common.Row:
    """Return CMMD to held-out renders and attributes shown, each with its interval."""
    world = heldout(domain, len(images))
    real, made = scorer.embed(world.images), scorer.embed(images)
    shown = scorer.attributes_shown(images, domain, world.mentioned)
    paired = metrics.mmd_estimate(made, real, metrics.cmmd_kernel, seed=seed, own=range(len(real)))
    attributes = metrics.bootstrap_interval(shown, seed=seed, share=True)
    mean = float(torch.as_tensor(shown).double().mean())
    return {
        "cmmd": common.Measure(*paired.interval()),
        "attributes": common.Measure(mean, *attributes),
    }


def main(
    precision: Annotated[str, typer.Option(help="no, bf16, fp16 or auto, the same for all")] = "auto",
    threads: int = 2,
    batch_size: int = 8,
    num_images: Annotated[int, typer.Option(help="a domain, for CMMD and attributes", min=2)] = 200,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    scores: Annotated[bool, typer.Option(help="CMMD and attributes too")] = True,
) -> None:
    """Print a table of images a second, CMMD, attributes shown.

    With scores it is written to data/results/bench_sample.json.
    """
    torch.set_num_threads(threads)
    config = Config.setup("tiny")
    domains = [domain.name for domain in config.domains]
    options = {"precision": precision, "batch_size": batch_size, "num_images": num_images}
    workers = {name: common.Worker(factory, threads, variant=name, **options) for name in VARIANTS}
    times = common.alternate(workers, dict.fromkeys(workers, domains), repeats)
    scorer, rows = evaluation.load_scorer(config, "cpu") if scores else None, []
    for name, worker in workers.items():
        for domain in domains:
            first, seconds = times[next(iter(VARIANTS))][domain], times[name][domain]
            row = {
                "method": name,
                "domain": domain,
                **options,
                "threads": threads,
                "n": num_images,
                "seed": 0,
            }
            row["repeats"] = repeats  # of one batch; n is for the scores
            row["images_per_second"] = common.spread([batch_size / s for s in seconds])
            row["ratio"] = common.spread([f / s for f, s in zip(first, seconds, strict=True)])
            if scorer and VARIANTS[name][0] != "network":  # which makes no pictures
                row |= score(worker.ask("value", f"{domain} all"), domain, scorer, 0)
            rows.append(row)
        worker.close()
    columns = {"method": "", "domain": "", "images_per_second": ".2f", "ratio": ".2f"}
    print(common.table(rows, columns | {"cmmd": ".3f", "attributes": ".3f"}))
    if scores:
        print(common.save("sample", {"machine": common.machine(threads)}, rows))


if __name__ == "__main__":
    typer.run(main)
