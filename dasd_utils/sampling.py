"""Noise -> images: schedulers, counted noise, and the loop over any scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import numbers
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dasd_utils import adapters, classifier, models
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig, check_choice, resolve
from dasd_utils.data import with_token
from dasd_utils.guidance import (
    ADAPTED,
    BASE,
    EMPTY,
    TOKEN,
    Branch,
    Job,
    Prediction,
    Term,
    check_rule,
    classifier_free_guidance,
    guided_prediction,
    rule,
    takes_negative,
    weights,
)
from dasd_utils.runtime import bars, images, precision, processes

SCHEDULERS: dict[str, type] = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
DECODED_PIXELS = 2 * 512**2  # at once: Stable Diffusion's decoder takes 0.8 GB an image of 512 px, in fp32
MAX_SEED = 2**128  # what numpy's seed sequence holds


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch dropout off inside: a LoRA added to a model in eval mode starts in training mode."""
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def fresh_seed() -> int:
    """Return a random seed; the global generators stay untouched."""
    return secrets.randbits(32)


def seeds_for(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed a prompt: those given, the same for all, or, for None, the same fresh one."""
    seed = fresh_seed() if seed is None else seed
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * count
    if len(seeds) != count:
        raise DasdError(
            f"There are {len(seeds)} seeds for {count} prompts: give one for all, or one a prompt."
        )
    for number in seeds:
        if not isinstance(number, numbers.Integral):
            raise DasdError(f"A seed is a whole number, not {number!r}.")
        if not 0 <= number < MAX_SEED:
            raise DasdError(f"A seed must be 0 or more, not {number}, and below 2**128.")
    return [int(number) for number in seeds]


def _generator(seed: int, index: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, index, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def initial_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise of one image (C, h, w): counted, so it depends on (seed, index) alone."""
    return torch.randn(tuple(shape), generator=_generator(seed, index, 0))


def step_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of the noise that a stochastic scheduler adds to one image at each step."""
    return _generator(seed, index, 1)


def make_scheduler(name: str, base_scheduler: Any) -> Any:
    """Return the scheduler of that name with the noise schedule of the base's own scheduler.

    Latents have no bounds, so they are never clipped, whatever the scheduler's default says.
    """
    check_choice("scheduler", name, SCHEDULERS)
    return SCHEDULERS[name].from_config(base_scheduler.config, clip_sample=False)


def check_calibration(calibration: Calibration, base_scheduler: Any) -> None:
    """Raise DasdError for more steps than the noise schedule has."""
    steps = calibration.num_inference_steps
    limit = base_scheduler.config.num_train_timesteps
    if steps > limit:
        raise DasdError(f"num_inference_steps is {steps}; it must be from 1 to {limit}.")


@dataclass(frozen=True)
class Start:
    """Where the denoising of a picture begins, and what of it stays."""

    begin: int  # the first of the scheduler's steps that is done
    at: Callable[[int], Tensor]  # step -> the picture before it, (B, C, h, w) in the scheduler's scale
    kept: Tensor | None = None  # (1, 1, h, w): 1 where the picture stays


@torch.no_grad()
def denoise(
    predict: Prediction,
    scheduler: Any,
    noise: Tensor | Start,
    num_inference_steps: int,
    generators: list[torch.Generator] | None = None,
    progress: bool = False,
) -> Tensor:
    """Return latents (B, C, h, w) denoised from standard normal noise of that shape, or from a picture.

    generators: one an image, for schedulers that add noise at each step. Raises DasdError for numbers that
    grow beyond all bounds.
    """
    start = noise if isinstance(noise, Start) else Start(0, lambda step: noise)
    latents = start.at(start.begin)
    scheduler.set_timesteps(num_inference_steps, device=latents.device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if takes_generator else {}
    latents = latents if start is noise else latents * scheduler.init_noise_sigma
    steps = list(enumerate(scheduler.timesteps))[start.begin :]
    for step, timestep in bars.short_bar(steps, "sampling", shown=progress, unit="step"):
        eps = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(eps, timestep, latents, **extra).prev_sample
        if start.kept is not None:
            latents = torch.lerp(latents, start.at(step + 1), start.kept)
    if not torch.isfinite(latents).all():
        raise DasdError("The sampled latents are not finite: lower guidance_scale, or set mixed_precision to "
                        "'no'.")  # fmt: skip
    return latents


def clean_latents(noisy: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x0~ = (x_t - sqrt(1 - a) eps) / sqrt(a) in fp32; (B, C, h, w) twice, a (B,)."""
    a = alphas_cumprod.float()[:, None, None, None]
    return (noisy.float() - (1 - a).sqrt() * eps.float()) / a.sqrt()


def decode(parts: models.Parts, latents: Tensor, step_by_step: bool = False) -> Tensor:
    """Return pixels in about [-1, 1], (B, 3, H, W), of scaled latents; gradients pass.

    step_by_step: one image at a time, decoded again for its gradient: the memory is that of one image.
    """
    vae = parts.vae.to(latents.device)
    scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
    if not (step_by_step and scaled.requires_grad):
        return _decode(vae, scaled).float()
    pixels = [checkpoint(_decode, vae, one, use_reentrant=False) for one in scaled.split(1)]
    return torch.cat(pixels).float()


def _decode(vae: Any, latents: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # there a VAE of a few channels is faster in fp32
        return vae.decode(latents).sample


@torch.no_grad()
def decode_images(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Return RGB images of latents (B, C, h, w) in the scaling of the UNet, decoded a few at a time."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels to a latent's side
    count = max(1, DECODED_PIXELS // (scale**2 * latents.shape[-2] * latents.shape[-1]))
    found: list[Image.Image] = []
    for few in (latents / vae.config.scaling_factor).to(vae.device, vae.dtype).split(count):
        found += images.from_pixels(vae.decode(few).sample)
    return found


# Prompts -> images: which domain, settings and adapter a prompt gets, and the pipeline that samples it.


__all__ = [
    "SCHEDULERS",
    "DasdPipeline",
    "Term",
    "calibrated",
    "classifier_free_guidance",
    "initial_noise",
    "load_trained_pipeline",
]

CALIBRATION_FILE = "calibration.json"  # in a run folder


class DasdPipeline:
    """A base model and its adapter, sampled with each domain's calibration.

    The adapter is on where there is a domain: named, found by the classifier, or by its token in the
    prompt. Everywhere else the base model answers, LoRA off, with the source domain's calibration.
    """

    def __init__(
        self,
        parts: models.Parts,
        config: Config,
        domain_classifier: classifier.DomainClassifier | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> None:
        """batch_size: images a pass holds; progress: bars while it samples. Without adapter: `base`."""
        self.parts, self.config = parts, config
        self.batch_size, self.progress = batch_size, progress
        self._classifier = domain_classifier
        self.shared = False  # True: what all processes are asked for together, each samples a part of
        self._schedulers: dict[str, Any] = {}
        self.learners: dict[str, Any] = {}  # UNets of other runs, by the names that guidance terms have
        self._places: dict[str, str] = {}  # of these runs
        learned = parts.token_ids or parts.base_weights or getattr(parts.unet, "peft_config", None)
        self._use_adapter = bool(learned)

    @property
    def domain_tokens(self) -> dict[str, str | None]:
        """Domain name -> token, None for a domain without one."""
        return {d.name: d.token for d in self.config.domains}

    @property
    def classifier(self) -> classifier.DomainClassifier:
        """The prompt classifier, made and fitted at its first use."""
        if self._classifier is None:
            rows = classifier.load_prompts(self.config.classifier.prompts)
            parts = self.parts
            made = classifier.DomainClassifier(parts.text_encoder, parts.tokenizer, self.config.domains)
            made.fit_threshold(rows)
            self._classifier = made
        return self._classifier

    def scheduler(self, name: str) -> Any:
        """Return the scheduler of that name, made once."""
        if name not in self._schedulers:
            self._schedulers[name] = make_scheduler(name, self.parts.noise_scheduler)
        return self._schedulers[name]

    @contextlib.contextmanager
    def base(self) -> Iterator[DasdPipeline]:
        """Sample the base model inside: LoRA off and no token put in; a domain gives its settings only."""
        before, self._use_adapter = self._use_adapter, False
        try:
            yield self
        finally:
            self._use_adapter = before

    def add_learner(self, name: str, run: str | Path) -> None:
        """Load what another run learned of the same base, for guidance terms of that name.

        The settings of an image whose rule asks it say where the run is. Raises DasdError for a run that is
        missing or of another base, and for the names of the pipeline's own models.
        """
        check_rule((Term(BASE, EMPTY),), (name,))
        other = load_trained_pipeline(run, device=self.parts.unet.device)
        if adapters.base_fingerprint(self.parts) != adapters.base_fingerprint(other.parts):
            raise DasdError(f"The run {run} learned from another base than this pipeline's: their answers "
                            "cannot be mixed.")  # fmt: skip
        self.learners[name], self._places[name] = other.parts.unet, str(run)

    def classify_prompt(self, prompt: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return what `DomainClassifier.classify` says: a dictionary, or a list of them for a list."""
        return self.classifier.classify(prompt)

    def generate(
        self,
        prompt: str | Sequence[str],
        domain: str | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        auto_domain: bool = False,
        settings: Calibration | None = None,
        negative_prompt: str = "",
        adapter: bool | None = None,
        guidance: str | Sequence[Term] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Return (image, domain name or None, settings); three lists, one entry a prompt, for a list.

        num_images above 1 gives a list of images in the place of each image. Image i of a prompt starts
        from the noise (seed, i), whatever else is in the batch; `seed` may be a list, one a prompt; None
        draws one, which the settings record. `adapter` switches LoRA on or off against the domain's rule, to
        see what it does to other prompts. `guidance` takes the place of the settings' own: "cfg", "domain",
        "decoupled", "unconditional", or several `Term`s, of any number of models. Raises DasdError for an
        empty prompt, an unknown domain, a token that contradicts `domain`, and settings that cannot be
        sampled.
        """
        options = {"domain": domain, "num_images": num_images, "seed": seed, "settings": settings}
        options |= {"auto_domain": auto_domain, "adapter": adapter, "guidance": guidance}
        return self._run(prompt, negative_prompt, **options)[:3]

    def generate_with_auto_domain(self, prompt: str | Sequence[str], **options: Any) -> tuple[Any, ...]:
        """Return (image, domain, settings, prompt as sampled), the domain found by the classifier."""
        return self._run(prompt, options.pop("negative_prompt", ""), auto_domain=True, **options)

    def generate_comparison(self, prompt: str, seed: int | None = 42) -> list[dict[str, Any]]:
        """Return {"domain", "image", "settings", "prompt"} of the source and each domain, from one noise."""
        classifier.check_prompts([prompt])
        plain = classifier.without_tokens(prompt, self.config.domains)
        seed = fresh_seed() if seed is None else seed
        rows = []
        for domain in (self.config.source, *self.config.domains):
            image, name, settings, used = self._run(plain, domain=domain.name, seed=seed)
            rows.append({"domain": name, "image": image, "settings": settings, "prompt": used})
        return rows

    def _run(self, prompt: str | Sequence[str], negative_prompt: str = "", **options: Any) -> tuple[Any, ...]:
        """What `generate` returns, and the prompts as they were sampled."""
        single = isinstance(prompt, str)
        plans = self.plan([prompt] if single else list(prompt), **options)
        if negative_prompt and not all(takes_negative(job.rule) for jobs in plans for job in jobs):
            raise DasdError(
                "A negative prompt stands for the empty one from which guidance leads away; there is none in "
                "'unconditional', nor in a rule that begins with a prompt: leave negative_prompt out."
            )
        images = iter(self._sample([job for jobs in plans for job in jobs], negative_prompt))
        grouped = [[next(images) for _ in jobs] for jobs in plans]
        rows = [jobs[0].settings() for jobs in plans]
        results = (
            [group if len(group) > 1 else group[0] for group in grouped],
            [row["domain"] for row in rows],
            rows,
            [jobs[0].prompt for jobs in plans],
        )
        return tuple(values[0] for values in results) if single else results

    def plan(
        self,
        prompts: list[str],
        domain: str | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        auto_domain: bool = False,
        settings: Calibration | None = None,
        adapter: bool | None = None,
        guidance: str | Sequence[Term] | None = None,
    ) -> list[list[Job]]:
        """Return a list of jobs for each prompt; whatever is wrong is found here, before any work."""
        classifier.check_prompts(prompts)
        if num_images < 1:
            raise DasdError(f"num_images is {num_images}; it must be at least 1.")
        if seed is None and self.shared:
            seed = processes.from_main(fresh_seed())
        seeds, plans = seeds_for(seed, len(prompts)), []
        domains = self._domains(prompts, domain, auto_domain)
        for text, found, number in zip(prompts, domains, seeds, strict=True):
            calibration = settings or (found or self.config.source).calibration
            target = found in self.config.domains
            adapted = self._use_adapter and (target if adapter is None else adapter)
            calibration, terms = self._guidance(calibration, guidance, adapted)
            token = self._learned_token(found) if adapted and target else None
            plain = classifier.without_tokens(text, self.config.domains) if adapted else text
            text = with_token(text, found.token) if token else text
            job = functools.partial(Job, text, plain, found, calibration, terms, adapted, token, number)
            asked = {term.model for term in terms} & set(self._places)
            places = tuple((name, self._places[name]) for name in sorted(asked))
            plans.append([job(index, places) for index in range(num_images)])
        return plans

    def _guidance(
        self, calibration: Calibration, guidance: str | Sequence[Term] | None, adapted: bool
    ) -> tuple[Calibration, tuple[Term, ...]]:
        """The calibration and the terms of its guidance, checked.

        A model that learned without prompts has no answer to one: in the place of classifier-free guidance,
        unless that is asked for by name, the base answers for it ("decoupled").
        """
        without_prompts = adapted and self.config.training.caption_dropout == 1
        if guidance is None and without_prompts and calibration.guidance == "cfg":
            guidance = "decoupled"
        if isinstance(guidance, str):
            calibration = dataclasses.replace(calibration, guidance=guidance)
        check_calibration(calibration, self.parts.noise_scheduler)
        if guidance is None or isinstance(guidance, str):
            return calibration, rule(calibration)
        check_rule(guidance, tuple(self.learners))
        return calibration, tuple(guidance)

    def _learned_token(self, domain: DomainConfig) -> str | None:
        """None for a domain or an adapter without tokens."""
        known = self.parts.token_ids
        if known and domain.token and domain.token not in known:
            raise DasdError(
                f"The adapter has not learned {domain.token} of the domain {domain.name}, only "
                f"{', '.join(known)}: train it with that domain, or leave the domain out."
            )
        return domain.token if known else None

    def _domains(self, prompts: list[str], name: str | None, auto_domain: bool) -> list[DomainConfig | None]:
        """The domain that is named, else that of the prompt's token, else the one found, else None."""
        held = [classifier.token_domain(text, self.config.domains) for text in prompts]
        if name is not None:
            named = self.config.domain(name)
            for text, other in zip(prompts, held, strict=True):
                if other and other.name != name:
                    raise DasdError(
                        f"The prompt {text!r} holds {other.token}, but the domain asked for is {name}: "
                        f"leave one of the two out."
                    )
            return [named] * len(prompts)
        if not auto_domain:
            return held
        found = [row["best_domain"] for row in self.classify_prompt(prompts)]
        return [self.config.domain(best) if best else None for best in found]

    def _sample(self, jobs: list[Job], negative_prompt: str) -> list[Image.Image]:
        """Sample jobs of equal settings together; return the images in the jobs' order.

        With `shared`, several processes each sample a part, and each returns all.
        """
        alike: dict[Any, list[int]] = {}
        for place, job in enumerate(jobs):
            alike.setdefault(job.alike, []).append(place)
        images: dict[int, Image.Image] = {}
        size = self.batch_size
        if self.shared:
            size = min(size, math.ceil(len(jobs) / processes.count()))
        chunks = [
            places[start : start + size] for places in alike.values() for start in range(0, len(places), size)
        ]
        chunks = chunks[processes.share(len(chunks))] if self.shared else chunks
        networks = (self.parts.unet, self.parts.text_encoder, self.parts.vae, *self.learners.values())
        total, several = sum(map(len, chunks)), self.progress and len(chunks) > 1
        bar = bars.short_bar(None, "images", total, shown=several, unit="image")
        with evaluating(*networks), bar:
            for chunk in chunks:
                latents = self._latents([jobs[i] for i in chunk], negative_prompt)
                images |= zip(chunk, decode_images(self.parts.vae, latents), strict=True)
                bar.update(len(chunk))
        images = self._gathered(images, len(jobs)) if self.shared else images
        return [images[place] for place in range(len(jobs))]

    def _gathered(self, own: dict[int, Image.Image], total: int) -> dict[int, Image.Image]:
        """The images of all processes by their place."""
        size = self.config.model.resolution
        pixels = torch.zeros(total, size, size, 3, dtype=torch.uint8)
        for place, image in own.items():
            pixels[place] = torch.from_numpy(np.asarray(image).copy())
        return dict(enumerate(map(Image.fromarray, processes.sum_tensor(pixels).numpy())))

    @torch.no_grad()
    def _latents(self, jobs: list[Job], negative_prompt: str) -> Tensor:
        """Denoise jobs of equal settings as one batch."""
        calibration = jobs[0].calibration
        with self.predicting(jobs, negative_prompt) as predict:
            return denoise(
                predict,
                self.scheduler(calibration.scheduler),
                self.noise(jobs),
                calibration.num_inference_steps,
                [step_generator(job.seed, job.index) for job in jobs],
                self.progress,
            )

    def noise(self, jobs: Sequence[Job]) -> Tensor:
        """Return the standard normal noise of each job, (B, C, h, w), on the network's device."""
        noise = [initial_noise(self.latent_shape, job.seed, job.index) for job in jobs]
        return torch.stack(noise).to(self.parts.unet.device)

    @contextlib.contextmanager
    def predicting(self, jobs: Sequence[Job], negative_prompt: str = "") -> Iterator[Prediction]:
        """Yield the noise that guidance predicts for jobs of equal settings, LoRA in place meanwhile."""
        first, unet = jobs[0], self.parts.unet
        computing = functools.partial(precision.autocast, self.config.training.mixed_precision, unet.device)
        steps = self.parts.noise_scheduler.config.num_train_timesteps

        def wanted(timestep: Tensor) -> list[float]:
            return weights(first.rule, 1 - float(timestep) / max(steps - 1, 1))

        with computing():
            branches = self._branches(jobs, negative_prompt)
        with models.lora_merged(self.parts) if first.adapted else self._base() as switch:

            def choose(model: str) -> Any:
                if model in (BASE, ADAPTED):
                    switch(model == ADAPTED)
                    return unet
                return self.learners[model]

            yield guided_prediction(choose, branches, wanted, computing)

    @contextlib.contextmanager
    def _base(self) -> Iterator[Callable[[bool], None]]:
        """LoRA off; the switch has nothing to do."""
        with models.lora_disabled(self.parts):
            yield lambda adapted: None

    def _branches(self, jobs: Sequence[Job], negative_prompt: str) -> list[Branch]:
        """The terms of the jobs' rule with their texts; equal texts are encoded once.

        The negative prompt is what the first term is told in the place of nothing; so is, without an adapter,
        the term of its token, which leads nowhere then.
        """
        terms = jobs[0].rule
        idle = [term.prompt == TOKEN and not jobs[0].adapted for term in terms]
        told = [
            [job.told(term, negative_prompt if number == 0 or idle[number] else "") for job in jobs]
            for number, term in enumerate(terms)
        ]
        distinct = list(dict.fromkeys(text for texts in told for text in texts))
        unet = self.parts.unet
        encoded = models.encode_prompts(self.parts, distinct).to(unet.device, unet.dtype)
        rows = [torch.tensor([distinct.index(text) for text in texts]) for texts in told]
        return [
            Branch(encoded[places], jobs[0].asked(term)) for term, places in zip(terms, rows, strict=True)
        ]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        return models.latent_shape(self.parts)


def calibrated(config: Config, path: str | Path) -> Config:
    """Return the config with the calibrations of a file {"<domain>": {"guidance_scale": ...}, ...}.

    Raises DasdError for a file that is not there or no JSON object of objects, and for an unknown domain or
    field.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf8"))
        changes = {config.domain(name).name: dict(fields) for name, fields in table.items()}
    except OSError as error:
        raise DasdError(f"The calibrations cannot be read from {path}: {error.strerror}. Make them with "
                        "`dasd calibrate`.") from None  # fmt: skip
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise DasdError(f"{path} must be a JSON object of calibrations by domain: {error}.") from None
    values = config.to_dict()
    for domain in (values["source"], *values["domains"]):
        domain["calibration"] |= changes.get(domain["name"], {})
    return Config.from_dict(values)


def run_folder(folder: Path) -> Path:
    """Return the run that a folder is, or that an adapter's folder belongs to."""
    is_run = (folder / "adapter").is_dir() or (folder / "config.json").exists()
    return folder if is_run or not (folder / "adapter.json").exists() else folder.parent


def load_trained_pipeline(
    folder_or_config: str | Path | Config,
    config: Config | None = None,
    device: str | torch.device | None = None,
) -> DasdPipeline:
    """Return the pipeline of a run folder (`adapter/` in it), of an adapter folder, or of a config's run.

    The config is the one given, else the run's `config.json`; a `calibration.json` beside it replaces the
    domains' calibrations. Raises DasdError where one of them is missing or of another base model.
    """
    if isinstance(folder_or_config, Config):
        config = config or folder_or_config
        folder_or_config = config.output_dir
    folder = resolve(folder_or_config)
    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    run = run_folder(folder)
    adapters.read_summary(adapter)  # says what is missing before anything is loaded
    if config is None and not (run / "config.json").exists():
        raise DasdError(f"{run} holds no config.json, which names the base model: give a config too.")
    config = config or Config.load(run / "config.json")
    if (run / CALIBRATION_FILE).exists():
        config = calibrated(config, run / CALIBRATION_FILE)
    device = precision.usable_device(device)
    parts = models.load_parts(config, unet_dtype=precision.frozen_dtype(config, device))
    adapters.load_adapter(parts, adapter)
    return DasdPipeline(parts.to(device), config)
