"""Every setting of the project, once: frozen dataclasses, the two profiles, JSON in and out."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the repository: relative paths of a config start here
log = logging.getLogger(__name__)


class DasdError(ValueError):
    """What the user can mend: the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Calibration:
    """How a domain is sampled."""

    guidance_scale: float = 7.5
    num_inference_steps: int = 30
    scheduler: str = "ddpm"  # a name of `sampling.SCHEDULERS`
    # classifier-free; "domain": away from the base model's unconditional answer; "decoupled": the base to the
    # domain by domain_scale and to the prompt by guidance_scale; "unconditional": no prompt at all
    guidance: str = "cfg"
    domain_scale: float = 2.5  # of decoupled guidance alone

    def settings(self) -> dict[str, Any]:
        """Return what of it decides an image: the domain's scale only where it counts."""
        values = dataclasses.asdict(self)
        if self.guidance != "decoupled":
            del values["domain_scale"]
        return values


@dataclass(frozen=True)
class DomainConfig:
    """One domain: where its images and captions are, and the token that names it."""

    name: str
    data: str  # "toyworld:<domain>", a hub id, or a folder
    token: str | None = None  # "<satellite>"; the source has none, a target without one learns by LoRA alone
    initial_word: str = ""  # the token starts at the mean of this word's pieces
    image_column: str = "image"
    caption_column: str | None = None  # a sentence, or a list of which one is drawn at each step
    caption_file: str | None = None  # JSON lines {"file_name", "text"}, for a folder that is to stay as it is
    label_column: str | None = None
    label_captions: dict[str, str] = field(default_factory=dict)  # label name -> sentence
    caption: str | None = None  # one sentence for all, where neither column says more; "" for no text
    revision: str | None = None  # of a hub id
    train_split: str = "train"
    test_split: str | None = None  # None: held out from the train split by content hash
    num_images: int = 400  # used for training
    descriptions: tuple[str, ...] = ()  # what the prompt classifier compares a prompt with
    style_suffix: str = ""  # what a careful user would add to the base model's prompt
    calibration: Calibration = Calibration()


@dataclass(frozen=True)
class ModelConfig:
    """The pretrained parts."""

    base: str = "data/tiny-sd"  # folder in the layout of diffusers, or hub id
    base_revision: str | None = None
    base_variant: str | None = None  # "fp16": which weight files of the repository to load
    clip: str = "data/tiny-sd/clip"  # it scores, and is never trained
    clip_revision: str | None = None
    resolution: int = 64  # pixels, square
    attention: str = "fused"  # "plain" is faster on a CPU where the latents are small
    half_weights: bool = True  # frozen UNet kept, and images encoded, in the precision of computing


@dataclass(frozen=True)
class DataConfig:
    """How images become training samples."""

    cache_dir: str = "data/cache"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2  # where a domain names no test split
    skip_corrupt: bool = False  # else a broken image is an error that names it
    source_images: str = "real"  # or "generated": what the base draws for the source's captions


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank updates of the UNet (arXiv 2106.09685)."""

    rank: int = 8  # 0: no LoRA, the tokens alone learn
    alpha: float = 32.0
    dropout: float = 0.1
    convolutions: str = "all"  # LoRA on `conv1`, `conv2` of "all" ResNet blocks, of "mid", or "none"


@dataclass(frozen=True)
class AlignmentConfig:
    """The MMD between features of source and target inside the UNet (decision 4 of the method)."""

    lambda_align: float = 0.01
    kernel: str = "multi"  # "linear", "gaussian" (median bandwidth) or "multi" (five bandwidths)
    unbiased: bool = True
    layer: str = "mid"  # whose output is compared: "mid", or "down.0", "up.1", ... of the UNet's blocks
    pooling: str = "mean"  # features (B, C, h, w) -> "mean" over space, or "flat"
    queue_size: int = 64  # recent detached features kept for each domain; 0 turns the queue off
    pairs: bool = False  # as published: the distance of one target and one source, averaged over pairs
    source_features: str = "adapted"  # or "frozen": the source is seen by the base model, LoRA off
    match_timesteps: bool = False  # features of near timesteps are compared, not of all together


@dataclass(frozen=True)
class TrainingConfig:
    """One optimiser step sees `gradient_accumulation_steps` micro-batches of target and source."""

    whole_unet: bool = False  # every weight of the UNet learns, and there is no LoRA
    text_free: bool = False  # with whole_unet: cross-attentions put out a constant that learns
    max_train_steps: int = 600
    target_batch_size: int = 24
    source_batch_size: int = 8  # the published 3 : 1
    source_every: int = 1  # micro-batches from one with source samples to the next
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    token_learning_rate: float = 5e-3
    weight_decay: float = 1e-2  # of the LoRA weights; tokens keep their norm instead
    max_grad_norm: float = 1.0
    lr_warmup_steps: int = 20
    lr_scheduler: str = "cosine"  # a name of diffusers.optimization.get_scheduler
    caption_dropout: float = 0.1  # share of empty prompts, for guidance
    min_snr_gamma: float | None = 5.0  # None: every timestep weighs the same
    prior_loss_weight: float = 0.0  # of the source's own noise prediction (arXiv 2208.12242)
    ema_decay: float | None = None
    mixed_precision: str = "auto"  # of training and sampling: "auto", "no", "bf16" or "fp16"
    optimizer: str = "adamw"  # "adamw_8bit": moments in a quarter of the memory, by bitsandbytes
    gradient_checkpointing: bool = False
    compile_blocks: bool = False  # torch.compile of the transformer blocks; takes a minute or two at first
    checkpoint_every: int = 200  # steps; 0: only at the end
    checkpoints_kept: int = 2
    validation_every: int = 100  # steps; 0: never
    validation_images: int = 32  # a domain
    sample_every: int = 0  # steps between sample grids; 0: never
    # who is told of the run: "auto", TensorBoard where it is installed; "none"; or names of `checks.TRACKERS`
    # with commas, "tensorboard,wandb"
    tracking: str = "auto"


@dataclass(frozen=True)
class ClassifierConfig:
    """Prompt -> domain, or none."""

    prompts: str = "data/prompts/classifier_validation.json"  # what the threshold is fitted on


@dataclass(frozen=True)
class EvaluationConfig:
    """The protocol: the same prompts, seeds, scheduler and steps for every method."""

    prompts_dir: str = "data/prompts"  # holds <domain>.json
    images_per_prompt: int = 4
    num_heldout: int = 200  # held-out images a domain
    inception: str | None = None  # TorchScript file of Inception-v3 features; with it there is a FID
    num_bootstrap: int = 1000
    guidance_scale: float = 4.0
    num_inference_steps: int = 30
    scheduler: str = "ddim"


@dataclass(frozen=True)
class Config:
    """All settings of a run. Frozen: change one with `Config.setup(...)` or `config.replace(...)`."""

    profile: str
    source: DomainConfig
    domains: tuple[DomainConfig, ...]
    seed: int = 0
    output_dir: str = "data/runs/dasd"
    shipped_run: str | None = None  # a trained run that lessons load where `output_dir` holds none
    method: str = "dasd"  # whose objective trains: a name of `methods.PAPERS`, or this one
    method_settings: dict[str, Any] = field(default_factory=dict)  # of a method's own `Settings`
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings()
    alignment: AlignmentConfig = AlignmentConfig()
    training: TrainingConfig = TrainingConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        from dasd_utils.checks import check  # the checks are made for the classes above

        check(self)

    @classmethod
    def setup(cls, profile: str = "auto", **changes: Any) -> Config:
        """Return the config of a profile, with fields of any section changed by name.

        A `method` brings its own defaults, which the other changes then alter.
        Raises DasdError for an unknown profile, method or field, naming the nearest one.
        """
        config = cls._of_profile(profile, changes)
        if changes.get("method", config.method) != config.method:
            from dasd_utils import methods  # the methods are made of the classes above, and of torch

            changes = {**methods.changes(changes["method"], config.profile), **changes}
        return config.replace(**changes)

    @classmethod
    def _of_profile(cls, profile: Any, given: dict[str, Any]) -> Config:
        """Return a profile's config; "auto" is fitted to the machine, as far as the given fields allow."""
        from dasd_utils import machines
        from dasd_utils.profiles import PROFILES  # the profiles are made of the classes above

        fitting: dict[str, Any] = {}
        if profile == "auto":
            choice = machines.choose(given)
            profile, fitting = choice.profile, choice.changes
            log.info("profile %s: %s", profile, choice.reason)
        if not isinstance(profile, str) or profile not in PROFILES:
            raise DasdError(f"There is no profile {profile!r}. Profiles: auto, {', '.join(PROFILES)}.")
        return PROFILES[profile]().replace(**fitting)

    def replace(self, **changes: Any) -> Config:
        """Return a copy with fields changed; a field of a section is found by its name alone."""
        top, nested = {}, {}
        for name, value in changes.items():
            section = _section_of(name)
            if section is None:
                top[name] = _convert(typing.get_type_hints(Config)[name], value, name)
            else:
                kind = typing.get_type_hints(SECTIONS[section])[name]
                nested.setdefault(section, {})[name] = _convert(kind, value, name)
        for section, values in nested.items():
            top[section] = dataclasses.replace(top.get(section, getattr(self, section)), **values)
        return dataclasses.replace(self, **top)

    def domain(self, name: str) -> DomainConfig:
        """Return the domain (the source too) of that name, or raise DasdError naming the nearest."""
        known = {d.name: d for d in (self.source, *self.domains)}
        if name not in known:
            raise DasdError(f"There is no domain {name!r}. {nearest(name, known)}")
        return known[name]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts and lists, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Read what `to_dict` wrote, or the part of it that differs from the named profile."""
        if not isinstance(values, dict):
            raise DasdError(f"A config is a JSON object of sections, not {type(values).__name__}.")
        given = dict(values)
        for section in SECTIONS:
            given |= values[section] if isinstance(values.get(section), dict) else {}
        base = cls._of_profile(values.get("profile", "auto"), given).to_dict()
        if values.get("method", base["method"]) != base["method"]:
            from dasd_utils import methods  # as in `setup`

            for name, value in methods.changes(values["method"], base["profile"]).items():
                section = _section_of(name)
                (base[section] if section else base)[name] = value
        unknown = set(values) - set(base)
        if unknown:
            name = sorted(unknown)[0]
            raise DasdError(f"Unknown config field {name!r}. {nearest(name, base)}")
        for name, value in values.items():
            section = isinstance(value, dict) and name in SECTIONS
            base[name] = {**base[name], **value} if section else value
        return _convert(cls, base, "config")

    def save(self, path: str | Path) -> Path:
        """Write JSON and return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf8")
        return path

    @classmethod
    def load(cls, path: str | Path, method: str | None = None) -> Config:
        """Read a JSON config; DasdError if it is missing, no JSON, or has a field that does not exist.

        A method that is given takes the place of the file's, with its own defaults under the file's fields.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf8"))
        except OSError as error:
            raise DasdError(f"The config file {path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise DasdError(f"The config file {path} is no JSON: {error}.") from None
        if method is not None and isinstance(values, dict):
            settings = values.get("method_settings") if values.get("method", method) == method else None
            values = values | {"method": method, "method_settings": settings or {}}
        return cls.from_dict(values)


def resolve(path: str | Path) -> Path:
    """Return an absolute path; a relative one starts at the present folder if it is there, else at ROOT.

    Raises DasdError for a path that no file can have: too long, a loop of links, the home of nobody.
    """
    try:
        found = Path(path).expanduser()
        there = found.exists()
        return found.resolve() if found.is_absolute() or there else ROOT / found
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise DasdError(f"The path {str(path)[:200]!r} cannot be used: {reason}. Name another one.") from None


def is_pinned(revision: str | None) -> bool:
    """Return whether a hub revision is a commit hash: a branch, or none, may hold other files tomorrow."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


SECTIONS: dict[str, type] = {
    name: kind for name, kind in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(kind) and kind is not DomainConfig
}  # fmt: skip


def _refuse_assignment(self: Any, name: str, value: Any) -> None:
    raise DasdError(
        f"A config is frozen, so {name} cannot be assigned. "
        f"Make a new one: Config.setup({name}=...) or config.replace({name}=...)."
    )


for _kind in (Config, DomainConfig, Calibration, *SECTIONS.values()):
    _kind.__setattr__ = _refuse_assignment  # says how, where dataclasses only says no


def _section_of(name: str) -> str | None:
    """Return the section that holds the field, None for a field of Config itself."""
    if name in {f.name for f in dataclasses.fields(Config)}:
        return None
    owners = {f.name: s for s, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    if name in owners:
        return owners[name]
    known = [*owners, *(f.name for f in dataclasses.fields(Config))]
    raise DasdError(f"Unknown config field {name!r}. {nearest(name, known)}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return what an error adds: the known name nearest to the one given, or all of them."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(sorted(known))}."


def read_object(kind: type, values: dict[str, Any], where: str) -> Any:
    """Return a JSON object as an instance of a dataclass; DasdError, saying where, for what does not fit."""
    return _convert_object(kind, values, where)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the annotated type of its field, or raise DasdError that says where."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_object(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(arguments[0], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise DasdError(f"{where} is a number of {value.bit_length()} bits, too large.") from None
    if kind is str and isinstance(value, Path):
        return str(value)
    plain = origin or kind
    if isinstance(value, plain) and (plain is bool) == isinstance(value, bool):
        return value
    raise DasdError(f"{where} must be of type {getattr(kind, '__name__', kind)}, not {value!r}.")


def _convert_object(kind: type, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise DasdError(f"{where} must be a JSON object, not {value!r}.")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise DasdError(f"Unknown config field {name!r} in {where}. {nearest(name, hints)}")
    required = [
        f.name for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    missing = [name for name in required if name not in value]
    if missing:
        raise DasdError(f"{where} lacks the field {missing[0]!r}.")
    return kind(**{n: _convert(hints[n], v, f"{where}.{n}") for n, v in value.items()})
