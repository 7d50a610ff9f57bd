"""Every setting of the project, once: frozen dataclasses, the two profiles, JSON in and out."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import logging
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from dasd_utils import profiles

DASD = "dasd"  # the method that is this project's own
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
    method: str = "dasd"  # whose objective trains: "dasd", or a file or folder of `papers`
    method_settings: dict[str, Any] = field(default_factory=dict)  # of a method's own `Settings`
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings()
    alignment: AlignmentConfig = AlignmentConfig()
    training: TrainingConfig = TrainingConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        check_config(self)

    @classmethod
    def setup(cls, profile: str = "auto", **changes: Any) -> Config:
        """Return the config of a profile, with fields of any section changed by name.

        A `method` brings its own defaults, which the other changes then alter.
        Raises DasdError for an unknown profile, method or field, naming the nearest one.
        """
        config = cls._of_profile(profile, changes)
        if changes.get("method", config.method) != config.method:
            changes = {**method_changes(changes["method"], config.profile), **changes}
        return config.replace(**changes)

    @classmethod
    def _of_profile(cls, profile: Any, given: dict[str, Any]) -> Config:
        """Return a profile's config; "auto" is fitted to the machine, as far as the given fields allow."""
        fitting: dict[str, Any] = {}
        if profile == "auto":
            choice = profiles.choose_profile(given)
            profile, fitting = choice.profile, choice.changes
            log.info("profile %s: %s", profile, choice.reason)
        if not isinstance(profile, str) or profile not in profiles.PROFILES:
            known = ", ".join(profiles.PROFILES)
            raise DasdError(f"There is no profile {profile!r}. Profiles: auto, {known}.")
        return _convert(cls, profiles.PROFILES[profile], f"profile {profile}").replace(**fitting)

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
            for name, value in method_changes(values["method"], base["profile"]).items():
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


def paper(name: str) -> ModuleType:
    """Return a module of `papers`, imported by its name when it is asked for: no core file imports one."""
    return importlib.import_module(f"dasd_utils.papers.{name}")


def known_methods() -> dict[str, str]:
    """Return the methods beside DASD, name -> module of `papers`: each file, or `objective` of a folder, that
    defines `make_objective`."""
    folder = Path(__file__).parent / "papers"
    found = {path.stem: path.stem for path in sorted(folder.glob("*.py"))}
    found |= {path.parent.name: f"{path.parent.name}.objective" for path in folder.glob("*/objective.py")}
    texts = {name: (folder / f"{module.replace('.', '/')}.py") for name, module in found.items()}
    return {
        n: found[n] for n, path in sorted(texts.items()) if "\ndef make_objective(" in path.read_text("utf8")
    }


def method_module(name: Any) -> ModuleType | None:
    """Return the module of a method, None for DASD; DasdError, naming the nearest, for an unknown name."""
    if name == DASD:
        return None
    known = known_methods()
    if not isinstance(name, str) or name not in known:
        names = [DASD, *known]
        raise DasdError(f"There is no method {name!r}. {nearest(name, names)} Methods: {', '.join(names)}.")
    return paper(known[name])


def method_changes(name: str, profile: str | None = None) -> dict[str, Any]:
    """Return the config fields that a method changes, in a profile or, for None, whatever the profile.

    Raises DasdError for an unknown method.
    """
    module = method_module(name)
    return {} if module is None else {**module.CHANGES, **module.BY_PROFILE.get(profile, {})}


def check_method(config: Config) -> None:
    """Raise DasdError for an unknown method, settings that it does not have, and what it cannot work with."""
    module = method_module(config.method)
    if config.method_settings and not hasattr(module, "Settings"):
        name = sorted(config.method_settings)[0]
        raise DasdError(
            f"method_settings has {name!r}, but the method {config.method} has none: its "
            "settings are the sections of the config. Set method, or leave method_settings out."
        )
    if module is not None:
        module.check(config)


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


# What no config may hold: values that would fail late, or go wrong without a word.


MAX_NAME = 64  # characters of a domain or a token: both name files
SCHEDULERS = ("ddim", "ddpm", "dpm++", "unipc", "pndm", "euler")  # those of `denoising.SCHEDULERS`
GUIDANCE = ("cfg", "domain", "decoupled", "unconditional")
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
LOWEST = {
    1: ("max_train_steps", "target_batch_size", "gradient_accumulation_steps", "source_every",
        "resolution", "images_per_prompt", "num_bootstrap"),
    0: ("rank", "source_batch_size", "queue_size", "lr_warmup_steps", "checkpoint_every", "checkpoints_kept",
        "validation_every", "validation_images", "sample_every", "num_heldout", "seed", "weight_decay",
        "lambda_align", "prior_loss_weight"),
}  # fmt: skip
ABOVE_0 = ("learning_rate", "token_learning_rate", "alpha", "min_snr_gamma")
BELOW_1 = ("dropout", "ema_decay", "validation_fraction", "test_fraction")
PLACES = ("output_dir", "cache_dir", "base", "clip")


def check_config(config: Config) -> None:
    """Raise DasdError for values that could only fail later."""
    alignment, training = config.alignment, config.training
    _check_plain("", dataclasses.asdict(config))
    _check_ranges(config)
    check_choice("convolutions", config.lora.convolutions, ("all", "mid", "none"))
    check_choice("kernel", alignment.kernel, ("linear", "gaussian", "multi"))
    if not re.fullmatch(r"mid|(down|up)\.\d+", str(alignment.layer)):
        raise DasdError(
            f"layer is {alignment.layer!r}; it must name a block of the UNet: mid, down.0, up.1, ..."
        )
    check_choice("pooling", alignment.pooling, ("mean", "flat"))
    check_choice("source_features", alignment.source_features, ("adapted", "frozen"))
    check_choice("source_images", config.data.source_images, ("real", "generated"))
    check_choice("attention", config.model.attention, ("fused", "plain"))
    check_choice("optimizer", training.optimizer, ("adamw", "adamw_8bit"))
    check_choice("mixed_precision", training.mixed_precision, ("auto", "no", "bf16", "fp16"))
    for name in training.tracking.split(","):
        choices = TRACKERS if "," in training.tracking else ("auto", "none", *TRACKERS)
        check_choice("tracking", name.strip(), choices)
    _check_text_free(config)
    _check_batches(config)
    _check_domains(config)
    _check_sampling("the evaluation", config.evaluation)
    for domain in (config.source, *config.domains):
        _check_sampling(f"domain {domain.name}", domain.calibration)
    if config.method != DASD or config.method_settings:
        check_method(config)


def _check_plain(where: str, value: Any) -> None:
    """Refuse what JSON, files or arithmetic would choke on: nan, huge numbers, texts of no characters."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(f"a name in {where}", name)
            _check_plain(f"{where}.{name}".lstrip("."), inner)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            _check_plain(f"{where}[{place}]", inner)
    elif isinstance(value, int | float):
        _check_number(where, value)
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise DasdError(f"{where} is {value!r}, which holds what is no character: remove it.")


def _check_number(where: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DasdError(f"{where} is {value}; it must be a finite number.")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise DasdError(f"{where} is a number of {value.bit_length()} bits; it must be below 2**64.")


def _check_ranges(config: Config) -> None:
    values = {name: getattr(config, name) for name in ("seed", "output_dir")}
    values |= {n: v for section in SECTIONS for n, v in vars(getattr(config, section)).items()}
    for lowest, names in LOWEST.items():
        for name in names:
            if values[name] < lowest:
                rule = f"be at least {lowest}" if lowest else "not be negative"
                raise DasdError(f"{name} is {values[name]}; it must {rule}.")
    for name in ABOVE_0:
        if values[name] is not None and not values[name] > 0:
            raise DasdError(f"{name} is {values[name]}; it must be above 0.")
    for name in BELOW_1:
        if values[name] is not None and not 0 <= values[name] < 1:
            raise DasdError(f"{name} is {values[name]}; it must be at least 0 and below 1.")
    if not 0 <= values["caption_dropout"] <= 1:
        raise DasdError(f"caption_dropout is {values['caption_dropout']}; it must be from 0 to 1.")
    if config.data.validation_fraction + config.data.test_fraction >= 1:
        raise DasdError("validation_fraction and test_fraction are 1 or more together, which leaves nothing "
                        "to train on: lower one of them.")  # fmt: skip
    for name in PLACES:
        if not values[name].strip():
            raise DasdError(f"{name} is empty: name a folder.")


def _check_sampling(where: str, settings: Calibration | EvaluationConfig) -> None:
    """What sampling would refuse, said before hours of training."""
    scale, steps = settings.guidance_scale, settings.num_inference_steps
    if scale < 0:
        raise DasdError(f"guidance_scale of {where} is {scale}; it must be 0 or more.")
    if getattr(settings, "domain_scale", 0) < 0:
        raise DasdError(f"domain_scale of {where} is {settings.domain_scale}; it must be 0 or more.")
    if steps < 1:
        raise DasdError(f"num_inference_steps of {where} is {steps}; it must be at least 1.")
    check_choice(f"scheduler of {where}", settings.scheduler, SCHEDULERS)
    check_choice(f"guidance of {where}", getattr(settings, "guidance", "cfg"), GUIDANCE)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise DasdError, naming the nearest choice, for a value that is none."""
    if value not in choices:
        raise DasdError(f"{name} is {value!r}. {nearest(value, choices)} Choices: {', '.join(choices)}.")


def check_promptless(config: Config, what: str) -> None:
    """Raise DasdError where what learns from images alone is given captions, tokens, or several domains."""
    training = config.training
    if training.caption_dropout < 1 or training.prior_loss_weight > 0 or config.alignment.lambda_align > 0:
        raise DasdError(f"{what} learns from images of the domain alone: set caption_dropout to 1, and "
                        "prior_loss_weight and lambda_align to 0.")  # fmt: skip
    for domain in config.domains:
        if domain.token is not None:
            raise DasdError(f"{what} reads no prompt, but the domain {domain.name} has the token "
                            f"{domain.token!r} for one: leave the token out.")  # fmt: skip
    if len(config.domains) > 1:
        names = ", ".join(domain.name for domain in config.domains)
        raise DasdError(f"{what} learns one domain, and without prompts could not tell several apart; the "
                        f"config has {names}: leave one.")  # fmt: skip


def _check_text_free(config: Config) -> None:
    if not config.training.text_free:
        return
    if not config.training.whole_unet:
        raise DasdError("text_free is true, but a LoRA leaves the text in: set whole_unet to true.")
    check_promptless(config, "A text-free UNet")


def _check_batches(config: Config) -> None:
    """An unbiased MMD needs two samples of each domain: in the batch, or with the queue's help."""
    training, alignment = config.training, config.alignment
    if training.prior_loss_weight > 0 and training.source_batch_size < 1:
        raise DasdError("source_batch_size is 0, but prior_loss_weight > 0 needs source samples: "
                        "set source_batch_size to 1 or more, or prior_loss_weight to 0.")  # fmt: skip
    if alignment.lambda_align == 0:
        return
    if alignment.pairs and (alignment.unbiased or alignment.queue_size):
        raise DasdError("pairs compares single samples, which has no unbiased estimate and no use for a "
                        "queue: set unbiased to false and queue_size to 0, or pairs to false.")  # fmt: skip
    if alignment.match_timesteps and (alignment.pairs or alignment.kernel == "linear"):
        raise DasdError("match_timesteps needs a Gaussian kernel of sets: set kernel to 'gaussian' or "
                        "'multi' and pairs to false, or match_timesteps to false.")  # fmt: skip
    if training.source_batch_size < 1:
        raise DasdError("source_batch_size is 0, but lambda_align > 0 needs source samples: "
                        "set source_batch_size to 1 or more, or lambda_align to 0.")  # fmt: skip
    if training.source_every > 1 and alignment.queue_size < 2:
        raise DasdError(f"source_every is {training.source_every}: without a source in the batch the MMD "
                        "needs the queue. Set queue_size to 2 or more, or source_every to 1.")  # fmt: skip
    smallest = min(training.target_batch_size // max(len(config.domains), 1), training.source_batch_size)
    if alignment.unbiased and smallest < 2 and alignment.queue_size < 2:
        raise DasdError(
            f"The unbiased MMD needs two samples of each domain; target_batch_size "
            f"{training.target_batch_size} over {len(config.domains)} domains and source_batch_size "
            f"{training.source_batch_size} give {smallest}. Enlarge the batch, set queue_size to 2 or "
            f"more, or unbiased to false."
        )


def _check_domains(config: Config) -> None:
    if not config.domains:
        raise DasdError("The config has no target domain: give at least one entry in `domains`.")
    names = [d.name for d in (config.source, *config.domains)]
    for name in names:
        if not name or not name.replace("_", "").replace("-", "").isalnum():
            raise DasdError(f"The domain name {name!r} must be letters, digits, '-' or '_': it names files.")
        if len(name) > MAX_NAME:
            raise DasdError(f"The domain name {name!r} is longer than {MAX_NAME} characters: shorten it.")
    if len(set(names)) < len(names):
        raise DasdError(f"Two domains have one name: {', '.join(names)}.")
    if config.source.token is not None:
        raise DasdError(f"The source domain {config.source.name} has the token {config.source.token!r}, but "
                        "only target domains learn one: remove it.")  # fmt: skip
    for domain in (config.source, *config.domains):
        if not domain.data.strip():
            raise DasdError(f"`data` of domain {domain.name} is empty: name a folder or a hub id.")
        if domain.caption_file and (domain.caption_column or domain.data.startswith("toyworld:")):
            raise DasdError(f"caption_file of domain {domain.name} is {domain.caption_file!r}: it names the "
                            "captions of a folder's images, in the place of a caption_column.")  # fmt: skip
    learning = [d for d in config.domains if d.token is not None]
    if config.lora.rank == 0 and not learning and not config.training.whole_unet:
        raise DasdError("rank is 0 and no domain has a token, so nothing would learn: set one of them.")
    tokens = [str(d.token) for d in learning]
    for domain, token in zip(learning, tokens, strict=True):
        inner = token[1:-1]
        if not (token[:1] == "<" and token[-1:] == ">" and inner.replace("-", "").replace("_", "").isalnum()):
            raise DasdError(f"The token of domain {domain.name} is {domain.token!r}; write it with angle "
                            f"brackets and no spaces, like '<{domain.name}>'.")  # fmt: skip
        if len(token) > MAX_NAME or inner.lower() == "pytorch_lora_weights":  # the file beside the tokens'
            raise DasdError(f"The token {token!r} of domain {domain.name} cannot name a file: it is longer "
                            f"than {MAX_NAME} characters, or the name of the LoRA's.")  # fmt: skip
        if not domain.initial_word.strip():
            raise DasdError(f"The domain {domain.name} lacks initial_word, where its token starts.")
    lowered = [t.lower() for t in tokens]
    if len(set(lowered)) < len(lowered):  # tokenizers match added tokens case-insensitively
        raise DasdError(f"Two domains have one token: {', '.join(tokens)}.")
