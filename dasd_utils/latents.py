"""Which cached latents step k trains on: random numbers drawn from counters, so no state is carried along."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import PreTrainedTokenizerBase

from dasd_utils.config import Config, DasdError, check_types, paper
from dasd_utils.data import DomainData, audit, load_domain
from dasd_utils.runtime import processes
from dasd_utils.runtime.latent_cache import (
    cached_latents,
    cached_rows,
    images_at_once,
    shard_path,
    vae_fingerprint,
)

TIMESTEPS = 1000  # of the noise schedule of Stable Diffusion 1.x
VALIDATION_SEED = 0  # not Config.seed: validation losses of runs with other seeds stay comparable
TARGET, SOURCE, ORDER, HELDOUT, BANK = range(5)  # streams of random numbers
BANK_SHARD = 256  # samples a file of source features: what an interruption can lose
NEAR = 20  # timesteps, around a source sample's own, from which the bank's one is drawn
CONCERNS = {  # of an audit
    "captions_missing": "images without a caption (trained with an empty one)",
    "captions_cut": "captions longer than the tokenizer's limit (cut at their end)",
    "skipped_corrupt": "images that cannot be read (left out)",
    "duplicates_of_test": "images that the test split has too (left out)",
}
log = logging.getLogger(__name__)


def create_datasets(
    config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[DomainData, dict[str, DomainData], "Sampler"]:
    """Return the source's training images, those of each target domain by name, and the sampler over them."""
    check_types(config=(config, Config), tokenizer=(tokenizer, Callable))
    real = config.data.source_images == "real"
    source = load_domain(config.source, config) if real else paper("prior_images").source_images(config)
    targets = {domain.name: load_domain(domain, config) for domain in config.domains}
    for member in (source, *targets.values()):
        report = audit(member, tokenizer, config.data.near_duplicate)
        log.info("%s", ", ".join(f"{name} {value}" for name, value in report.items() if value))
        for name in filter(report.get, CONCERNS):
            log.warning("%s: %d %s", report["domain"], report[name], CONCERNS[name])
    return source, targets, Sampler(config, source, list(targets.values()))


@dataclass
class Batch:
    """One micro-batch: Bt target and Bs source samples as scaled latents (C, h, w), noise and timesteps."""

    target_latents: torch.Tensor  # (Bt, C, h, w) float
    source_latents: torch.Tensor  # (Bs, C, h, w) float
    target_prompts: list[str]  # the domain's token leads each; "" where the caption was dropped
    source_prompts: list[str]
    target_domains: torch.Tensor  # (Bt,) long, index into config.domains
    target_timesteps: torch.Tensor  # (Bt,) long
    source_timesteps: torch.Tensor  # (Bs,) long, those of targets, or near them if from the bank
    target_noise: torch.Tensor  # (Bt, C, h, w)
    source_noise: torch.Tensor  # (Bs, C, h, w)
    sample_ids: list[str] = field(default_factory=list)  # content hashes: targets, then sources
    source_features: torch.Tensor | None = None  # (Bs, d) float, of the base, from the bank

    def __len__(self) -> int:
        return len(self.target_latents) + len(self.source_latents)

    def share(self) -> tuple[Self, list[int]]:
        """Return the part of this process, and the places of its samples in the batch, the targets first."""
        targets, sources = len(self.target_latents), len(self.source_latents)
        rows = {"target": processes.share(targets), "source": processes.share(sources)}
        values = {n: value for n, value in vars(self).items() if n != "sample_ids" and value is not None}
        part = {name: value[rows[name.split("_")[0]]] for name, value in values.items()}
        places = [*range(targets)[rows["target"]], *range(targets, targets + sources)[rows["source"]]]
        return Batch(**part, sample_ids=[self.sample_ids[i] for i in places if self.sample_ids]), places

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Return the batch on a device; dtype is for latents and noise, indices stay whole numbers."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = {n: x.to(device, dtype if x.is_floating_point() else None) for n, x in tensors.items()}
        return dataclasses.replace(self, **moved)


def counted_generator(seed: int, stream: int, *counter: int) -> np.random.Generator:
    """Return the generator at a counter of up to three numbers: by Philox, no draw depends on any other."""
    words = np.zeros(4, dtype=np.uint64)
    words[1 : 1 + len(counter)] = counter  # the lowest word counts the draws at this place
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=words))


@functools.lru_cache(maxsize=64)
def _order(seed: int, domain: int, epoch: int, count: int) -> np.ndarray:
    return counted_generator(seed, ORDER, epoch, domain).permutation(count)


@dataclass(frozen=True)
class _Pick:
    """One sample of a batch."""

    member: int  # 0: the source, 1 + k: config.domains[k]
    index: int  # of the image
    prompt: str
    timestep: int
    generator: np.random.Generator  # draws the noise and the sample of the VAE's posterior


class Sampler:
    """Which samples, timesteps and noise step k trains on: a function of (config.seed, step, micro, i).

    Resuming needs no state, and one process or several see the same batch. Every image of a domain is seen
    once before any is seen again, in an order that changes with each pass.
    """

    def __init__(self, config: Config, source: DomainData, targets: Sequence[DomainData]) -> None:
        self.config = config
        self._members = {"train": [source, *targets]}
        self._latents: dict[str, list[Sequence[np.ndarray]]] = {}  # split -> member -> image
        self._vae = ""  # fingerprint of the one that encoded
        self._bank: Sequence[np.ndarray] | None = None  # features (d,) of each of its samples

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the training images and captions, in order: what a resumed run must share."""
        digest = hashlib.sha256()
        for member in self._members["train"]:
            for image_id, captions in zip(member.ids, member.captions, strict=True):
                digest.update("\0".join([image_id, *captions, "\n"]).encode())
        return digest.hexdigest()

    def source_prompts(self) -> list[str]:
        """Return every prompt that a source sample can have, the empty one first."""
        return ["", *(caption for captions in self._members["train"][0].captions for caption in captions)]

    def encode(
        self, vae: AutoencoderKL, device: str | torch.device | None = None, progress: bool = True
    ) -> None:
        """Encode training and validation images on the device, or open the cache; the VAE may go then."""
        vae.to(device or processes.default_device())
        self._bank = None
        self._vae = mark = vae_fingerprint(vae)
        for split in ("train", "validation"):
            members = self._split(split)
            self._latents[split] = [cached_latents(m, self.config, vae, mark, progress) for m in members]

    def open_bank(self, features: Callable[[Batch], torch.Tensor], mark: str, progress: bool = True) -> None:
        """Compute features of `bank_size` source samples, or open the cache of an earlier call.

        From then on the sources of `batch` are samples of the bank. `features` maps a batch without targets
        to its (Bs, d); `mark` names all that decides them but the samples. Raises DasdError before `encode`,
        and for features that are not finite.
        """
        count, source = self.config.alignment.bank_size, self._members["train"][0]
        starts = range(0, count, BANK_SHARD)
        size = images_at_once(*[self.config.model.resolution] * 2)

        def make(number: int, bar: Any) -> np.ndarray:
            stop, rows = min(starts[number] + BANK_SHARD, count), []
            for first in range(starts[number], stop, size):
                picks = [self._bank_pick(k) for k in range(first, min(first + size, stop))]
                rows.append(features(self._assemble("train", [], picks)).cpu().numpy())
                bar.update(len(picks))
            if not all(np.isfinite(each).all() for each in rows):
                raise DasdError("The base gives source features that are not finite: set mixed_precision to "
                                "'no' or 'bf16', or source_features to 'adapted'.")  # fmt: skip
            return np.concatenate(rows)

        picks = [self._bank_pick(k) for k in range(count)]
        samples = [f"{source.ids[pick.index]} {pick.timestep} {pick.prompt!r}" for pick in picks]
        shards = [samples[start : start + BANK_SHARD] for start in starts]
        key = f"{mark} {self._vae} {self.config.seed}"
        paths = [shard_path(self.config, source.config.name, "features", key, f"{start}", *each)
                 for start, each in zip(starts, shards, strict=True)]  # fmt: skip
        what = f"features of {source.config.name}"
        self._bank = cached_rows(paths, make, what, count, progress, "sample")

    def batch(self, step: int, micro: int = 0) -> Batch:
        """Return micro-batch `micro` of step `step`, from 0; sources are at timesteps of targets, or near."""
        training, seed = self.config.training, self.config.seed
        number = step * training.gradient_accumulation_steps + micro
        targets, sources = [], []
        for i in range(training.target_batch_size):
            turn, domain = divmod(number * training.target_batch_size + i, len(self.config.domains))
            targets.append(self._pick(1 + domain, turn, counted_generator(seed, TARGET, step, micro, i)))
        turns, rest = divmod(number, training.source_every)
        for i in range(training.source_batch_size if rest == 0 else 0):
            turn = turns * training.source_batch_size + i
            sources.append(self._pick(0, turn, counted_generator(seed, SOURCE, step, micro, i)))
        stride = max(len(targets) // max(len(sources), 1), 1)  # timesteps are the targets', evenly chosen
        times = [targets[i * stride % len(targets)].timestep for i in range(len(sources))]
        sources = [dataclasses.replace(pick, timestep=t) for pick, t in zip(sources, times, strict=True)]
        if self._bank is None or not sources:
            return self._assemble("train", targets, sources)
        places = [self._place_in_bank(pick) for pick in sources]
        features = torch.from_numpy(np.stack([self._bank[k] for k in places]))
        batch = self._assemble("train", targets, [self._bank_pick(k) for k in places])
        return dataclasses.replace(batch, source_features=features)

    def validation_batches(self) -> list[Batch]:
        """Return `validation_images` samples of each target domain, without source, as fixed batches.

        Captions are the first of each image; timesteps lie evenly over the range. Empty without validation.
        """
        members = self._split("validation")
        if not members:
            return []
        counts = [len(member) for member in members]
        turns = [(k, i) for i in range(max(counts[1:])) for k in range(1, len(members)) if i < counts[k]]
        size = self.config.training.target_batch_size
        parts = [turns[start : start + size] for start in range(0, len(turns), size)]
        picks = [[self._fixed_pick(k, i, counts[k]) for k, i in part] for part in parts]
        return [self._assemble("validation", targets, []) for targets in picks]

    def _split(self, split: str) -> list[DomainData]:
        if split not in self._members:
            training = self.config.training
            count = training.validation_every and training.validation_images
            members = self._members["train"] if count and self.config.data.validation_fraction else []
            held = [load_domain(m.config, self.config, split) for m in members[1:]]  # none of the source
            held = [dataclasses.replace(m, ids=m.ids[:count], images=m.images[:count]) for m in held]
            self._members[split] = [*members[:1], *held]
        return self._members[split]

    def _pick(self, member: int, turn: int, generator: np.random.Generator) -> _Pick:
        found = self._members["train"][member]
        epoch, place = divmod(turn, len(found))
        index = int(_order(self.config.seed, member, epoch, len(found))[place])
        time, choice, drop = generator.random(3)  # always three, so that no setting changes the noise
        prompt = "" if drop < self.config.training.caption_dropout else found.prompt(index, choice)
        return _Pick(member, index, prompt, int(time * TIMESTEPS), generator)

    def _bank_pick(self, number: int) -> _Pick:
        """Return a sample of the bank, whose timesteps ascend in equal parts of the whole range."""
        pick = self._pick(0, number, counted_generator(self.config.seed, BANK, number))
        timestep = (number * TIMESTEPS + pick.timestep) // self.config.alignment.bank_size
        return dataclasses.replace(pick, timestep=timestep)

    def _place_in_bank(self, pick: _Pick) -> int:
        """Return the number of a sample of the bank, drawn from those near the pick's timestep."""
        count = self.config.alignment.bank_size
        width = max(count * NEAR // TIMESTEPS, 1)
        first = min(max(count * pick.timestep // TIMESTEPS - width // 2, 0), count - width)
        return first + int(pick.generator.random() * width)

    def _fixed_pick(self, member: int, index: int, count: int) -> _Pick:
        place = _order(VALIDATION_SEED, member, 0, count)[index]
        timestep = int((place + 0.5) / count * TIMESTEPS)
        generator = counted_generator(VALIDATION_SEED, HELDOUT, member, index)
        uses_prompts = self.config.training.caption_dropout < 1  # else no prompt is ever read
        prompt = self._members["validation"][member].prompt(index) if uses_prompts else ""
        return _Pick(member, index, prompt, timestep, generator)

    def _assemble(self, split: str, targets: list[_Pick], sources: list[_Pick]) -> Batch:
        if split not in self._latents:
            raise DasdError("The sampler has no latents yet: call sampler.encode(vae) first.")
        picks = [*targets, *sources]
        moments = np.stack([self._latents[split][pick.member][pick.index] for pick in picks])
        normal = np.stack([p.generator.standard_normal(moments.shape[1:], np.float32) for p in picks])
        mean, deviation = moments.astype(np.float32).swapaxes(0, 1)
        latents = torch.from_numpy(mean + deviation * normal[:, 0])
        noise = torch.from_numpy(normal[:, 1].copy())
        count = len(targets)
        timesteps = torch.tensor([pick.timestep for pick in picks], dtype=torch.long)
        return Batch(
            target_latents=latents[:count],
            source_latents=latents[count:],
            target_prompts=[pick.prompt for pick in targets],
            source_prompts=[pick.prompt for pick in sources],
            target_domains=torch.tensor([pick.member - 1 for pick in targets], dtype=torch.long),
            target_timesteps=timesteps[:count],
            source_timesteps=timesteps[count:],
            target_noise=noise[:count],
            source_noise=noise[count:],
            sample_ids=[self._members[split][pick.member].ids[pick.index] for pick in picks],
        )
