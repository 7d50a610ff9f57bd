"""Prompts to images: counted noise, schedulers, the denoising loop, and the pipeline of a trained run."""

import contextlib
import dataclasses
import functools
import inspect
import logging
import math
import numbers
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasd_utils import adapters, classifier, guidance, models
from dasd_utils.config import (
    Calibration,
    Config,
    DasdError,
    DomainConfig,
    nearest,
    with_token,
    without_tokens,
)
from dasd_utils.guidance import Job, Prediction, Term
from dasd_utils.runtime import files, processes

SCHEDULERS: dict[str, type] = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
CALIBRATION_FILE = "calibration.json"  # in a run folder
DECODED_PIXELS = 2 * 512**2  # at once: Stable Diffusion's decoder takes 0.8 GB an image of 512 px, in fp32
MAX_SEED = 2**128  # from 2**32 on, (seed, image) may have the noise of a smaller seed's other image
LONG, LARGE = 600, 1e9  # seconds and bytes from which on a request's cost is said
log = logging.getLogger(__name__)


def seeds_for(seed: int | Sequence[int], count: int) -> list[int]:
    """Return one seed per prompt: a list as it is, a number repeated; DasdError for what does not fit."""
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
    if len(seeds) != count:
        raise DasdError(f"There are {len(seeds)} seeds for {count} prompts: give one, or one a prompt.")
    for number in seeds:
        if not isinstance(number, numbers.Integral) or not 0 <= number < MAX_SEED:
            raise DasdError(f"A seed must be a whole number, 0 or more and below 2**128, not {number!r}.")
    return [int(number) for number in seeds]


def step_generator(seed: int, index: int, stream: int = 1) -> torch.Generator:
    """Return the generator of the noise that a stochastic scheduler adds to one image at each step."""
    state = np.random.SeedSequence([seed, index, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def initial_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise (C, h, w) for image number `index` of a seed, whatever the batch."""
    return torch.randn(tuple(shape), generator=step_generator(seed, index, stream=0))


def make_scheduler(name: str, base_scheduler: Any) -> Any:
    """Return the scheduler of that name with the noise schedule of the base's own scheduler."""
    # latents have no bounds; PNDM's Runge-Kutta steps are nine more calls of the network
    fixed = {"clip_sample": False} | ({"skip_prk_steps": True} if name == "pndm" else {})
    return SCHEDULERS[name].from_config(base_scheduler.config, **fixed)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside the `with`, modules are in eval mode: dropout of a newly added LoRA starts in training mode."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


@dataclass(frozen=True)
class Start:
    """Where the denoising of a given picture begins, and which part of the picture stays."""

    begin: int  # how many of the first steps are left out
    latents_at: Callable[[Tensor | None], Tensor]  # timestep -> the noisy picture; None -> the clean one
    keep_mask: Tensor | None = None  # (1, 1, h, w): 1 where the picture stays


@torch.no_grad()
def denoise(
    predict: Prediction,
    scheduler: Any,
    noise: Tensor | Start,
    num_inference_steps: int,
    generators: list[torch.Generator] | None = None,  # one an image, of the noise that schedulers add
    progress: bool = False,
) -> Tensor:
    """Return latents (B, C, h, w) denoised from standard normal noise of that shape, or from a picture."""
    start = noise if isinstance(noise, Start) else Start(0, lambda timestep: noise)
    scheduler.set_timesteps(num_inference_steps, device=start.latents_at(None).device)
    timesteps = scheduler.timesteps[start.begin :]
    if isinstance(scheduler, diffusers.PNDMScheduler) and start.begin:  # it takes its second step twice
        timesteps = torch.cat([timesteps[1:3], timesteps[2:]])
    latents = start.latents_at(timesteps[0])
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if "generator" in accepted else {}
    latents = latents if start is noise else latents * scheduler.init_noise_sigma
    steps = list(zip(timesteps, [*timesteps[1:], None], strict=True))
    for timestep, later in files.short_bar(steps, "sampling", shown=progress, unit="step"):
        eps = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(eps, timestep, latents, **extra).prev_sample
        if start.keep_mask is not None:
            latents = torch.lerp(latents, start.latents_at(later), start.keep_mask)
    if not torch.isfinite(latents).all():
        raise DasdError("The latents are not finite: lower guidance_scale, or set mixed_precision to 'no'.")
    return latents


def clean_latents(noisy: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return predicted_x0 = (x_t - sqrt(1 - a) eps) / sqrt(a) in fp32; (B, C, h, w) twice, a (B,)."""
    a = alphas_cumprod.float()[:, None, None, None]
    return (noisy.float() - (1 - a).sqrt() * eps.float()) / a.sqrt()


def decode(parts: models.Parts, latents: Tensor, step_by_step: bool = False) -> Tensor:
    """Decode latents, scaled as the UNet has them, to pixels (B, 3, H, W), not clamped; differentiable.

    step_by_step: one image at a time with gradient checkpointing, so that the memory is that of one image.
    """
    vae = parts.vae.to(latents.device)
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    with torch.autocast("cpu", enabled=False):  # there a VAE of a few channels is faster in fp32
        if not (step_by_step and scaled.requires_grad):
            return vae.decode(scaled).sample.float()
        each = [checkpoint(vae.decode, one, use_reentrant=False).sample for one in scaled.split(1)]
        return torch.cat(each).float()


def from_pixels(pixels: Tensor) -> list[Image.Image]:
    """Return RGB images of pixels (n, 3, h, w), cut to [-1, 1]."""
    eight_bit = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(image) for image in eight_bit.permute(0, 2, 3, 1).cpu().numpy()]


@torch.no_grad()
def decode_images(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return RGB images of latents (B, C, h, w) in the scaling of the UNet, decoded a few at a time."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels to a latent's side
    count = max(1, DECODED_PIXELS // (scale**2 * latents.shape[-2] * latents.shape[-1]))
    decoded: list[Image.Image] = []
    for few in (latents / vae.config.scaling_factor).to(vae.device, vae.dtype).split(count):
        decoded += from_pixels(vae.decode(few).sample)
    return decoded


@dataclass(frozen=True)
class SampleRequest:
    """What one call of `generate` asks for, beside its prompts."""

    domain: str | None = None  # None: the domain whose token is in the prompt, if any
    num_images: int = 1  # of each prompt
    seed: int | Sequence[int] | None = None  # one for all prompts, or one a prompt; None: a fresh one
    auto_domain: bool = False  # the classifier finds the domain of a prompt that names none
    settings: Calibration | None = None  # instead of the domain's calibration
    negative_prompt: str = ""  # replaces the empty prompt, from which guidance leads away
    adapter: bool | None = None  # LoRA on or off, against the domain's rule
    guidance: str | Sequence[Term] | None = None  # instead of that of the settings

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Return the request of keyword options; DasdError for one that does not exist or fit."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in options if name not in known]:
            raise DasdError(f"There is no option {unknown[0]!r} of generate. {nearest(unknown[0], known)}")
        request = cls(**options)
        if request.num_images < 1:
            raise DasdError(f"num_images is {request.num_images}; it must be at least 1.")
        return request


class DasdPipeline:
    """A base model and its adapter, sampled with each domain's calibration: guidance, scheduler, steps.

    The adapter is on in a target domain: named, found by the classifier, or by its token in the
    prompt. Everywhere else the base model samples, LoRA off, with the source domain's calibration.
    """

    def __init__(self, parts: models.Parts, config: Config, batch_size: int = 16, progress: bool = True):
        """batch_size: images a pass holds; progress: bars while it samples."""
        self.parts, self.config = parts, config
        self.batch_size, self.progress = batch_size, progress
        self.shared = False  # True: several processes make the same call, and each samples a part
        self._tried: set[tuple[str, int]] = set()  # schedulers with numbers of steps that they can take
        self.learners: dict[str, Any] = {}  # UNets of other runs, by the names that guidance terms have
        self._places: dict[str, str] = {}  # folders of these runs
        learned = parts.token_ids or parts.base_weights or getattr(parts.unet, "peft_config", None)
        self._use_adapter = bool(learned)

    @property
    def domain_tokens(self) -> dict[str, str | None]:
        """Domain name -> token, None for a domain without one."""
        return {d.name: d.token for d in self.config.domains}

    @functools.cached_property
    def classifier(self) -> classifier.DomainClassifier:
        """The prompt classifier, made and fitted at its first use."""
        encoder, tokenizer = self.parts.text_encoder, self.parts.tokenizer
        made = classifier.DomainClassifier(encoder, tokenizer, self.config.domains)
        made.fit_threshold(classifier.load_prompts(self.config.classifier.prompts))
        return made

    def scheduler(self, name: str) -> Any:
        """Return a new scheduler of that name."""
        return make_scheduler(name, self.parts.noise_scheduler)

    @contextlib.contextmanager
    def base(self) -> Iterator[Self]:
        """Inside the `with` the base model is sampled, without token; `domain` chooses only the settings."""
        before, self._use_adapter = self._use_adapter, False
        try:
            yield self
        finally:
            self._use_adapter = before

    def add_learner(self, name: str, run: str | Path) -> None:
        """Load the UNet of another run of the same base as `name`, for `Term(model=name, ...)`."""
        if name in (guidance.BASE, guidance.ADAPTED):
            raise DasdError(f"A learner is named {name!r}, as one of the pipeline's own models is.")
        other = load_trained_pipeline(run, device=self.parts.unet.device)
        if adapters.base_fingerprint(self.parts) != adapters.base_fingerprint(other.parts):
            raise DasdError(f"The run {run} learned from another base than this pipeline's: their "
                            "predictions cannot be mixed.")  # fmt: skip
        self.learners[name], self._places[name] = other.parts.unet, str(run)

    def classify_prompt(self, prompt: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return what `DomainClassifier.classify` returns: a dictionary, or a list of them for a list."""
        return self.classifier.classify(prompt)

    def generate(
        self, prompt: str | Sequence[str], domain: str | None = None, **options: Any
    ) -> tuple[Any, Any, Any]:
        """Return (image, domain name or None, settings); three lists, one entry a prompt, for a list.

        Options are the fields of `SampleRequest`: seed, num_images, auto_domain, settings, negative_prompt,
        adapter, guidance. With num_images > 1 each prompt gives a list of images. Image i of a prompt starts
        from the noise (seed, i); the rounding of a larger batch may move a pixel by 1 of 255.
        """
        return self._generate(prompt, domain=domain, **options)[:3]

    def stream(
        self, prompt: str | Sequence[str], folder: str | Path | None = None, **options: Any
    ) -> tuple[dict[str, Any], Iterator[Image.Image]]:
        """Return the settings of a prompt's images, and an iterator that draws them a batch at a time.

        It keeps none, so that any number can be saved as they come. Options are those of `generate`, with one
        seed: image i starts from (seed, i). Several prompts are taken in turn, each image with the next seed,
        num_images in all. Warns of gigabytes, and of hours after the first batch. folder: where they go.
        """
        count, side = SampleRequest.of(**options).num_images, self.config.model.resolution
        if isinstance(options.get("seed"), Sequence):
            raise DasdError("`stream` takes one seed, from which it counts the noise of each image.")
        jobs = [job for (job,) in self.plan(prompt, **(options | {"num_images": 1}))]
        if (most := 3 * count * side**2) > LARGE:
            free = f", where {shutil.disk_usage(folder).free / 1e9:.1f} GB are free" if folder else ""
            log.warning("%d images of %d pixels are up to %.1f GB%s.", count, side, most / 1e9, free)
        size = self.batch_size * (processes.count() if self.shared else 1)

        def job_of(place: int) -> Job:
            if isinstance(prompt, str):
                return dataclasses.replace(jobs[0], index=place)
            return dataclasses.replace(jobs[place % len(jobs)], seed=jobs[0].seed + place)

        def draw() -> Iterator[Image.Image]:
            shown, start = self.progress and count > size, time.perf_counter()
            for begin in files.short_bar(range(0, count, size), "images", shown=shown, unit="batch"):
                places = range(begin, min(begin + size, count))
                yield from self._sample(list(map(job_of, places)))
                left = (time.perf_counter() - start) * (count / len(places) - 1)
                if begin == 0 and left > LONG:
                    log.warning("The other images take about %.1f hours; what is drawn stays.", left / 3600)

        return jobs[0].settings(), draw()

    def generate_with_auto_domain(self, prompt: str | Sequence[str], **options: Any) -> tuple[Any, ...]:
        """Return (image, domain, settings, prompt as sampled), the domain found by the classifier."""
        return self._generate(prompt, **options, auto_domain=True)

    def generate_comparison(self, prompt: str, seed: int | None = 42) -> list[dict[str, Any]]:
        """Return {"domain", "image", "settings", "prompt"} of the source and each domain, from one noise."""
        (prompt,) = classifier.check_prompts([prompt])
        plain = without_tokens(prompt, self.config.domains)
        seed = secrets.randbits(32) if seed is None else seed
        domains = (self.config.source, *self.config.domains)
        rows = [self._generate(plain, domain=domain.name, seed=seed) for domain in domains]
        return [dict(zip(("image", "domain", "settings", "prompt"), row, strict=True)) for row in rows]

    def _generate(self, prompt: str | Sequence[str], **options: Any) -> tuple[Any, ...]:
        """Return what `generate` returns, and the prompts as they were sampled."""
        single = isinstance(prompt, str)
        plans = self.plan(prompt, **options)
        sampled = iter(self._sample([job for jobs in plans for job in jobs]))
        grouped = [[next(sampled) for _ in jobs] for jobs in plans]
        found = [group if len(group) > 1 else group[0] for group in grouped]
        rows = [jobs[0].settings() for jobs in plans]
        results = (found, [row["domain"] for row in rows], rows, [jobs[0].prompt for jobs in plans])
        return tuple(values[0] for values in results) if single else results

    def plan(self, prompt: str | Sequence[str], **options: Any) -> list[list[Job]]:
        """Return the jobs of each prompt, checked; options: the fields of `SampleRequest`."""
        request = SampleRequest.of(**options)
        prompts = classifier.check_prompts(prompt)
        seed = request.seed
        if seed is None:
            seed = secrets.randbits(32)  # the global generators stay untouched
            seed = broadcast_object_list([seed])[0] if self.shared else seed
        wanted = zip(prompts, self._domains(prompts, request), seeds_for(seed, len(prompts)), strict=True)
        jobs = [self._job(prompt, domain, number, request) for prompt, domain, number in wanted]
        return [[dataclasses.replace(job, index=i) for i in range(request.num_images)] for job in jobs]

    def _job(self, prompt: str, domain: DomainConfig | None, seed: int, request: SampleRequest) -> Job:
        """Return the job of a prompt's first image."""
        calibration = request.settings or (domain or self.config.source).calibration
        is_target = domain in self.config.domains
        adapted = self._use_adapter and (is_target if request.adapter is None else request.adapter)
        calibration, rule = self._guidance(calibration, request.guidance, adapted)
        if request.negative_prompt and (rule[0].prompt != guidance.EMPTY or len(rule) == 1):
            raise DasdError("A negative prompt replaces the empty one from which guidance leads away; this "
                            "guidance has none: leave negative_prompt out.")  # fmt: skip
        known = self.parts.token_ids  # none for an adapter without tokens
        token = domain.token if adapted and is_target and known else None
        if token and token not in known:
            raise DasdError(f"The adapter has not learned {token} of the domain {domain.name}, only "
                            f"{', '.join(known)}: train it with that domain, or leave it out.")  # fmt: skip
        plain = without_tokens(prompt, self.config.domains)
        used = sorted({term.model for term in rule} & set(self._places))
        return Job(
            prompt=with_token(prompt, token) if adapted else plain,
            plain=plain,
            negative=request.negative_prompt,
            domain=domain,
            calibration=calibration,
            rule=rule,
            adapted=adapted,
            token=token,
            seed=seed,
            learners=tuple((name, self._places[name]) for name in used),
        )

    def _guidance(
        self, calibration: Calibration, wanted: str | Sequence[Term] | None, adapted: bool
    ) -> tuple[Calibration, tuple[Term, ...]]:
        """Return the calibration and the terms of its guidance, checked."""
        without_prompts = adapted and self.config.training.caption_dropout == 1
        if wanted is None and without_prompts and calibration.guidance == "cfg":
            wanted = "decoupled"  # the base reads the prompt; `guidance="cfg"` by name keeps it
        if isinstance(wanted, str):
            calibration = calibration.with_guidance(wanted)
        self._check_steps(calibration.scheduler, calibration.num_inference_steps)
        if wanted is None or isinstance(wanted, str):
            return calibration, guidance.rule(calibration)
        guidance.check_rule(wanted, self.learners)
        return dataclasses.replace(calibration, guidance_interval=guidance.WHOLE), tuple(wanted)

    def _check_steps(self, name: str, count: int) -> None:
        """Raise DasdError for steps that the scheduler cannot take; they are tried on one number, once."""
        if (name, count) in self._tried:
            return
        limit, zero = self.parts.noise_scheduler.config.num_train_timesteps, torch.zeros(1, 1, 1, 1)
        try:
            if count > limit:
                raise ValueError
            denoise(lambda x, _timestep: x * 0, self.scheduler(name), zero, count, [step_generator(0, 0)])
        except Exception as error:  # each scheduler raises what it likes
            raise DasdError(f"num_inference_steps is {count}, which the scheduler {name!r} cannot take on a "
                            f"base of {limit} timesteps: set it lower.") from error  # fmt: skip
        self._tried.add((name, count))

    def _domains(self, prompts: Sequence[str], request: SampleRequest) -> list[DomainConfig | None]:
        """Return the domain that is named, else that of the prompt's token, else the one found, else None."""
        by_token = [classifier.token_domain(text, self.config.domains) for text in prompts]
        if request.domain is not None:
            named = self.config.domain(request.domain)
            for text, other in zip(prompts, by_token, strict=True):
                if other and other.name != named.name:
                    raise DasdError(f"The prompt {text!r} holds {other.token}, but the domain is given as "
                                    f"{named.name}: leave one of the two out.")  # fmt: skip
            return [named] * len(prompts)
        if not request.auto_domain:
            return by_token
        found = [row["best_domain"] for row in self.classify_prompt(prompts)]
        return [self.config.domain(best) if best else None for best in found]

    def _sample(self, jobs: list[Job]) -> list[Image.Image]:
        """Return the images of jobs, in their order; of several processes each samples a part."""
        size = self.config.model.resolution
        if (most := 4 * len(jobs) * size**2) > LARGE:
            log.warning("%d images take %.1f GB of memory: `stream` keeps none.", len(jobs), most / 1e9)
        groups: dict[Any, list[int]] = {}  # places of jobs that can be sampled together
        for place, job in enumerate(jobs):
            groups.setdefault(job.batch_key, []).append(place)
        count = min(self.batch_size, math.ceil(len(jobs) / (processes.count() if self.shared else 1)))
        batches = [group[i : i + count] for group in groups.values() for i in range(0, len(group), count)]
        if self.shared:
            batches = batches[processes.share(len(batches))]
        sampled: dict[int, Image.Image] = {}
        shown = self.progress and len(batches) > 1
        for places in files.short_bar(batches, "images", shown=shown, unit="batch"):
            latents = self._latents([jobs[i] for i in places])
            sampled |= zip(places, decode_images(self.parts.vae, latents), strict=True)
        if not self.shared:
            return [sampled[place] for place in range(len(jobs))]
        pixels = torch.zeros(len(jobs), size, size, 3, dtype=torch.uint8)
        for place, image in sampled.items():
            pixels[place] = torch.from_numpy(np.asarray(image).copy())
        return list(map(Image.fromarray, processes.sum_tensor(pixels).numpy()))

    @torch.no_grad()
    def _latents(self, jobs: Sequence[Job]) -> Tensor:
        """Return latents (B, C, h, w) of jobs of one batch."""
        name, steps = jobs[0].calibration.scheduler, jobs[0].calibration.num_inference_steps
        generators = [step_generator(job.seed, job.index) for job in jobs]
        with self.predicting(jobs) as predict:
            return denoise(predict, self.scheduler(name), self.noise(jobs), steps, generators, self.progress)

    def noise(self, jobs: Sequence[Job]) -> Tensor:
        """Return the standard normal noise of each job, (B, C, h, w), on the network's device."""
        shape = models.latent_shape(self.parts)
        noise = [initial_noise(shape, job.seed, job.index) for job in jobs]
        return torch.stack(noise).to(self.parts.unet.device)

    @contextlib.contextmanager
    def predicting(self, jobs: Sequence[Job]) -> Iterator[Prediction]:
        """Yield the function that predicts the noise of jobs; inside, the adapter they use is merged."""
        first, unet = jobs[0], self.parts.unet
        computing = functools.partial(processes.autocast, self.config.training.mixed_precision, unet.device)
        last = self.parts.noise_scheduler.config.num_train_timesteps - 1
        with_adapter = models.lora_merged if first.adapted else models.lora_disabled

        def weights_at(timestep: Tensor) -> list[float]:
            done = 1 - float(timestep) / last
            return guidance.weights(first.rule, done, first.calibration.guidance_interval)

        def network_of(model: str) -> Any:
            if model not in (guidance.BASE, guidance.ADAPTED):
                return self.learners[model]
            if first.adapted:
                switch(model == guidance.ADAPTED)
            return unet

        with evaluating(unet, self.parts.text_encoder, *self.learners.values()):
            with computing():
                branches = self._branches(jobs)
            with with_adapter(self.parts) as switch:
                yield guidance.guided_prediction(network_of, branches, weights_at, computing)

    def _branches(self, jobs: Sequence[Job]) -> list[guidance.Branch]:
        """Return the terms of the jobs' rule with their encoded prompts; equal texts are encoded once.

        The negative prompt replaces the first term's empty prompt, and with the adapter off the token's too.
        """
        first, unet = jobs[0], self.parts.unet
        texts = []  # of each term, one a job
        for place, term in enumerate(first.rule):
            negative = place == 0 or (term.prompt == guidance.TOKEN and not first.adapted)
            texts.append([job.prompt_for(term, job.negative if negative else "") for job in jobs])
        distinct = list(dict.fromkeys(text for row in texts for text in row))
        encoded = models.encode_prompts(self.parts, distinct).to(unet.device, unet.dtype)
        return [
            guidance.Branch(encoded[[distinct.index(text) for text in row]], first.model_for(term))
            for term, row in zip(first.rule, texts, strict=True)
        ]


def calibrated(config: Config, path: str | Path) -> Config:
    """Return the config with the calibrations of a file {"<domain>": {"guidance_scale": ...}, ...}."""
    table = files.read_object(Path(path), "The calibrations that `dasd calibrate` writes")
    values = config.to_dict()
    try:
        changes = {config.domain(name).name: fields for name, fields in table.items()}
        for domain in (values["source"], *values["domains"]):
            own = changes.get(domain["name"], {})
            domain["calibration"] = domain["calibration"] | own if isinstance(own, dict) else own
        return Config.from_dict(values)
    except DasdError as error:  # of a field, which does not know its file
        raise DasdError(f"{path} is no calibration of this run: {error}") from None


def run_places(place: str | Path) -> tuple[Path, Path]:
    """Return (folder of the run, folder of its adapter), whichever of the two `place` is.

    An adapter that lies in no run stands for both. It may be on the hub: "owner/name".
    """
    folder = files.find_adapter(place)
    if (folder / "adapter").is_dir() or not (folder / adapters.SUMMARY_FILE).exists():
        return folder, folder / "adapter"
    is_in_run = folder.name == "adapter" or (folder.parent / "config.json").exists()
    return folder.parent if is_in_run else folder, folder


def load_base_pipeline(config: Config, device: torch.device | str | None = None) -> DasdPipeline:
    """Return the pipeline of the config's base model alone."""
    return _pipeline(config, device)


def load_trained_pipeline(
    folder_or_config: str | Path | Config,
    config: Config | None = None,
    device: torch.device | str | None = None,
) -> DasdPipeline:
    """Return the pipeline of a run's folder, of an adapter's folder or hub id, or of a config's run.

    The config is the one given, else the run's `config.json`; `calibration.json` replaces its calibrations.
    """
    if isinstance(folder_or_config, Config):
        config = config or folder_or_config
        folder_or_config = config.output_dir
    run, adapter = run_places(folder_or_config)
    adapters.read_summary(adapter)  # raises for what is missing before anything is loaded
    if config is None and not (run / "config.json").exists():
        raise DasdError(f"{run} holds no config.json, which names the base model: give a config too.")
    config = config or Config.load(run / "config.json")
    if (run / CALIBRATION_FILE).exists():
        config = calibrated(config, run / CALIBRATION_FILE)
    return _pipeline(config, device, adapter)


def _pipeline(config: Config, device: torch.device | str | None, adapter: Path | None = None) -> DasdPipeline:
    device = processes.default_device() if device is None else torch.device(device)
    parts = models.load_parts(config, unet_dtype=processes.frozen_dtype(config, device))
    if adapter is not None:
        adapters.load_adapter(parts, adapter)
    return DasdPipeline(parts.to(device), config)
