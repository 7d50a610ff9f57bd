"""Every setting, once: a field's type says what it may hold, and is checked. JSON in and out."""

import dataclasses
import functools
import importlib
import json
import logging
import os
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pydantic
import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, Field, Strict
from pydantic_core import ArgsKwargs, PydanticCustomError

from dasd_utils import profiles
from dasd_utils.runtime.checks import (  # noqa: F401  (others take them from here)
    ROOT,
    DasdError,
    check_choice,
    check_types,
    is_pinned,
    nearest,
    portable,
    read_json,
    resolve,
    unique_keys,
)

DASD = "dasd"  # the method that is this project's own
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
log = logging.getLogger(__name__)
Kind = typing.TypeVar("Kind")


def _matches(pattern: str, rule: str) -> AfterValidator:
    """Return the check of a text against a pattern; the rule completes "Input should ..."."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise PydanticCustomError("pattern", "Input should {rule}", {"rule": rule})
        return value

    return AfterValidator(check)


def _in_order(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] < pair[1]:
        raise PydanticCustomError("order", "Input should be two numbers, the smaller one first")
    return pair


Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, lt=2**64)]
Positive = Annotated[int, Strict(), Field(ge=1, lt=2**64)]
Number = Annotated[float, Strict()]
Weight = Annotated[Number, Field(ge=0)]
Rate = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
Portion = Annotated[Number, Field(ge=0, le=1)]
Text = Annotated[str, Strict(), BeforeValidator(lambda text: str(text) if isinstance(text, Path) else text)]
Texts = tuple[Text, ...]
Window = Annotated[tuple[Number, Number], AfterValidator(_in_order)]
Interval = Annotated[tuple[Portion, Portion], AfterValidator(_in_order)]
Label = Annotated[Text, BeforeValidator(str)]
Place = Annotated[Text, _matches(r"(?s).*\S.*", "name a folder or a hub id")]
WORD, RULE = r"(?=[-_]*[^\W_])[\w-]", "at most 64 letters, digits, '-' or '_'"
RESERVED = "none|null|default|base|auto|all|con|prn|aux|nul"  # commands, files or Windows read them otherwise
Name = Annotated[Text, _matches(
    f"(?i)(?!(?:{RESERVED})$){WORD}{{1,64}}", f"be {RULE}, not {RESERVED.replace('|', ', ')}: it names files",
)]  # fmt: skip
Token = Annotated[Text, _matches(
    f"(?i)<(?!pytorch_lora_weights>){WORD}{{1,62}}>",
    f"be {RULE.replace('64', '62')} with angle brackets around them, like '<satellite>', not the LoRA's file",
)]  # fmt: skip
_ANY = "|".join(TRACKERS)
Tracking = Annotated[
    Text, _matches(f"auto|none|({_ANY})(, *({_ANY}))*", f"be auto, none, or names with commas of {_ANY}")
]
Layer = Annotated[Text, _matches(r"mid|(down|up)\.\d+", "name a block of the UNet: mid, down.0, up.1, ...")]
Scheduler = Literal["ddim", "ddpm", "dpm++", "unipc", "pndm", "euler"]
Rates = Literal["linear", "cosine", "polynomial", "constant", "constant_with_warmup"]
Guidance = Literal["cfg", "domain", "decoupled", "unconditional"]
GUIDANCE = typing.get_args(Guidance)
WHOLE = (0.0, 1.0)  # guidance at every step


@typing.dataclass_transform(frozen_default=True)
def section(kind: type[Kind]) -> type[Kind]:
    """Decorate a class: it becomes a frozen dataclass that raises DasdError for a value of another type.

    Floats must be finite. An int becomes a float, a list a tuple, a path text, a dict its section.
    """
    rules = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(frozen=True, config=rules)(kind)
    construct = made.__init__

    @functools.wraps(construct)
    def init(self: Kind, /, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise DasdError(_explain(error, made)) from None

    made.__init__ = init
    return made


def _explain(error: pydantic.ValidationError, kind: type) -> str:
    """Return what is wrong with one field: an unknown one if there is any, as its name may be misspelled."""
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda each: each["type"] != "unexpected_keyword_argument")
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])  # a DasdError
    path = problem["loc"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing."
    if problem["type"] != "unexpected_keyword_argument":
        rule = problem["msg"].replace("Input should", "it must")
        return f"{place} is {problem['input']!r:.200}; {rule}."
    outer = [part for part in path[:-1] if isinstance(part, str)]
    kind = KINDS[outer[-1]] if outer else kind
    owner = OWNERS.get(path[-1]) if kind in SECTIONS.values() else None
    if kind is Config and path[-1] in DomainConfig.__dataclass_fields__:
        owner = "domains"
    if kind in (Config, DomainConfig) and path[-1] in vars(Calibration()):
        owner = "calibration"
    if owner:
        return f"Unknown config field {place!r}. It belongs to {owner!r}."
    known = OWNERS if kind is Config else [each.name for each in dataclasses.fields(kind)]
    return f"Unknown config field {place!r}. {nearest(path[-1], known)}"


@section
class Calibration:
    """How a domain is sampled."""

    guidance_scale: Weight = 7.5
    num_inference_steps: Positive = 30
    scheduler: Scheduler = "ddpm"
    # classifier-free; "domain": away from the base model's unconditional noise; "decoupled": from the base
    # to the domain by domain_scale and to the prompt by guidance_scale; "unconditional": without a prompt
    guidance: Guidance = "cfg"
    domain_scale: Weight = 2.5  # of decoupled guidance alone
    # first and last timestep with guidance, as shares of the way from noise (0) to image (1); at the others
    # the prediction for the prompt counts alone (arXiv 2404.07724); of "cfg" and "domain"
    guidance_interval: Interval = WHOLE

    def __post_init__(self) -> None:
        if self.guidance_interval != WHOLE and self.guidance not in ("cfg", "domain"):
            raise DasdError(f"The guidance {self.guidance!r} has no interval: set guidance_interval to "
                            "[0, 1], or guidance to 'cfg' or 'domain'.")  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Return the settings that affect the image: `domain_scale` and the interval only where they do."""
        values = dataclasses.asdict(self)
        if self.guidance != "decoupled":
            del values["domain_scale"]
        if self.guidance_interval == WHOLE:
            del values["guidance_interval"]
        return values

    def with_guidance(self, kind: str) -> typing.Self:
        """Return these settings with another kind of guidance, and the interval only where it has one."""
        interval = self.guidance_interval if kind in ("cfg", "domain") else WHOLE
        return dataclasses.replace(self, guidance=kind, guidance_interval=interval)


@section
class DomainConfig:
    """One domain: where its images and captions are, and the token that names it."""

    name: Name
    data: Place  # "toyworld:<domain>", a hub id, or a folder
    token: Token | None = None  # "<satellite>"; the source has none, and a target may have none
    initial_word: Text = ""  # the token starts at the mean of this word's pieces
    image_column: Text = "image"
    # [black, white]: the stored values shown so, of images with more than 8 bits; None: from the images
    window: Window | None = None
    caption_column: Text | None = None  # a sentence, or a list of which one is drawn at each step
    caption_file: Text | None = None  # JSON lines {"file_name", "text"} of a folder's images
    label_column: Text | None = None
    label_captions: dict[Label, Text] = field(default_factory=dict)  # label name -> sentence
    caption: Text | None = None  # one sentence for all, where neither column has one; "" for no text
    revision: Text | None = None  # of a hub id
    stream_rows: Positive | None = None  # of a hub id: only so many rows of a split are downloaded; None: all
    train_split: Text = "train"
    test_split: Text | None = None  # None: held out from the train split by content hash
    num_images: Positive = 400  # used for training
    descriptions: Texts = ()  # what the prompt classifier compares a prompt with
    style_suffix: Text = ""  # what a careful user would add to the base model's prompt
    calibration: Calibration = Calibration()


@section
class ModelConfig:
    """The pretrained parts."""

    base: Place = "data/tiny-sd"  # folder in the layout of diffusers, or hub id
    base_revision: Text | None = None
    base_variant: Text | None = None  # "fp16": which weight files of the repository to load
    clip: Place = "data/tiny-sd/clip"  # scores images, and is never trained
    clip_revision: Text | None = None
    resolution: Positive = 64  # pixels, square
    attention: Literal["fused", "plain"] = "fused"  # plain is faster on a CPU where the latents are small
    half_weights: Flag = True  # frozen UNet kept, and images encoded, in the precision of computing


@section
class DataConfig:
    """How images become training samples."""

    cache_dir: Place = "data/cache"
    validation_fraction: Share = 0.1
    test_fraction: Share = 0.2  # where a domain names no test split
    # thumbnails (less most of their mean) that correlate above it count as copies; 1: only exact copies do
    near_duplicate: Annotated[Number, Field(gt=0, le=1)] = 0.97
    skip_corrupt: Flag = False  # else a broken image is an error that names it
    source_images: Literal["real", "generated"] = "real"  # generated: from the captions, by the base


@section
class LoraSettings:
    """Low-rank updates of the UNet (arXiv 2106.09685)."""

    rank: Count = 8  # 0: no LoRA, only the tokens are trained
    alpha: Rate = 32.0
    dropout: Share = 0.1
    convolutions: Literal["all", "mid", "none"] = "all"  # the blocks whose convolutions have LoRA


@section
class AlignmentConfig:
    """The MMD between features of source and target inside the UNet."""

    lambda_align: Weight = 0.01
    kernel: Literal["linear", "gaussian", "multi"] = "multi"  # one median bandwidth, or five of them
    unbiased: Flag = True
    layer: Layer = "mid"  # whose output is compared: "mid", or "down.0", "up.1", ... of the UNet's blocks
    pooling: Literal["mean", "flat"] = "mean"  # features (B, C, h, w) -> mean over space, or flat
    queue_size: Count = 64  # recent detached features kept for each domain; 0 turns the queue off
    pairs: Flag = False  # as published: the distance of one target and one source, averaged over pairs
    # bank: of the base, computed once and kept in the cache; frozen: in each step; adapted: with LoRA on
    source_features: Literal["bank", "frozen", "adapted"] = "bank"
    bank_size: Positive = 1000  # source samples, spread evenly over the timesteps
    match_timesteps: Flag = False  # features of near timesteps are compared, not of all together


@section
class TrainingConfig:
    """One optimiser step sees `gradient_accumulation_steps` micro-batches of target and source."""

    whole_unet: Flag = False  # all weights of the UNet are trained, without LoRA
    text_free: Flag = False  # with whole_unet: a trained constant takes the place of each cross-attention
    max_train_steps: Positive = 600
    target_batch_size: Positive = 24
    source_batch_size: Count = 8  # 3 : 1, which the published code configures and does not use
    source_every: Positive = 1  # micro-batches from one with source samples to the next
    gradient_accumulation_steps: Positive = 1
    learning_rate: Rate = 2e-3
    token_learning_rate: Rate = 5e-3
    weight_decay: Weight = 1e-2  # of the LoRA weights; tokens keep their norm instead
    max_grad_norm: Number = 1.0
    lr_warmup_steps: Count = 20
    lr_scheduler: Rates = "cosine"  # of diffusers' get_scheduler, those that depend on the step alone
    caption_dropout: Annotated[Number, Field(ge=0, le=1)] = 0.1  # share of empty prompts, for guidance
    min_snr_gamma: Rate | None = 5.0  # None: every timestep weighs the same
    prior_loss_weight: Weight = 0.0  # of the source's own noise prediction (arXiv 2208.12242)
    ema_decay: Share | None = None
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # of training and sampling
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"  # 8 bit: a quarter of the memory (bitsandbytes)
    gradient_checkpointing: Flag = False
    compile_blocks: Flag = False  # torch.compile of the transformer blocks; takes a minute or two at first
    checkpoint_every: Count = 200  # steps; 0: only at the end
    checkpoints_kept: Count = 2
    validation_every: Count = 100  # steps; 0: never
    validation_images: Count = 32  # a domain
    sample_every: Count = 0  # steps between sample grids; 0: never
    # what records the run: "auto", TensorBoard where it is installed; "none"; or some of TRACKERS with commas
    tracking: Tracking = "auto"


@section
class ClassifierConfig:
    """Prompt -> domain, or none."""

    prompts: Text = "data/prompts/classifier_validation.json"  # what the threshold is fitted on


@section
class EvaluationConfig:
    """The protocol: the same prompts, seeds, scheduler and steps for every method."""

    prompts_dir: Text = "data/prompts"  # holds <domain>.json
    images_per_prompt: Positive = 4
    num_heldout: Count = 200  # held-out images a domain
    inception: Text | None = None  # TorchScript file of Inception-v3 features; with it there is a FID
    num_bootstrap: Positive = 1000
    # these three are the evaluation's: `generate` takes each domain's calibration
    guidance_scale: Weight = 4.0
    num_inference_steps: Positive = 30
    scheduler: Scheduler = "ddim"


@section
class Config:
    """All settings of a run. Frozen: change one with `Config.setup(...)` or `config.replace(...)`."""

    profile: Text
    source: DomainConfig
    domains: tuple[DomainConfig, ...]
    seed: Count = 0
    output_dir: Place = "data/runs/dasd"
    # what lessons load where `output_dir` holds no run: a run, an exported adapter, or the hub id of one
    shipped_run: Text | None = None
    method: Text = DASD  # whose objective trains: "dasd", or a file or folder of `papers`
    method_settings: dict[str, Any] = field(default_factory=dict)  # of a method's own `Settings`
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraSettings = LoraSettings()
    alignment: AlignmentConfig = AlignmentConfig()
    training: TrainingConfig = TrainingConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _default(cls, given: ArgsKwargs) -> Any:
        """Let `Config()` be `Config.setup()`, as in the published project."""
        return given if given.args or given.kwargs else vars(cls.setup())

    def __post_init__(self) -> None:
        for message in _contradictions(self):
            raise DasdError(message)
        if self.training.text_free:
            check_promptless(self, "A text-free UNet")
        module = method_module(self.method)
        if self.method_settings and not hasattr(module, "Settings"):
            raise DasdError(f"The method {self.method} has no method_settings: its settings are sections.")
        if module is not None:
            module.check(self)

    @classmethod
    def setup(
        cls, /, profile: str = "auto", file: str | Path | dict[str, Any] | None = None, **changes: Any
    ) -> typing.Self:
        """Return the config of a profile, with fields of any section changed by name.

        file: a dict, or a JSON file of one, with changes; those by name win, and its profile does not
        count here. "auto" is fitted to the machine, as far as the changes allow; a `method` brings its own
        defaults, which the other changes alter. Raises DasdError for an unknown profile, method or field.
        """
        own = {} if file is None else file
        own = _object(own if isinstance(own, dict) else read_json(own, "The config file"))
        given: dict[str, Any] = {}
        for values in (own, changes):
            given |= values
            for name in SECTIONS:
                given |= values[name] if isinstance(values.get(name), dict) else {}
        defaults: dict[str, Any] = {}
        if profile == "auto":
            choice = profiles.choose_profile(given)
            profile, defaults = choice.profile, choice.changes
            log.info("profile %s: %s", profile, choice.reason)
        check_choice("profile", profile, ("auto", *profiles.PROFILES))
        defaults = defaults | method_changes(given.get("method", DASD), profile)
        start = _merged(vars(cls(**profiles.PROFILES[profile])), defaults)
        return cls(**_merged(_merged(start, own), changes | {"profile": profile}))

    def replace(self, **changes: Any) -> typing.Self:
        """Return a copy with fields changed; a field of a section is found by its name alone."""
        return Config(**_merged(vars(self), changes))

    def domain(self, name: str) -> DomainConfig:
        """Return the domain (the source too) of that name, or raise DasdError naming the nearest."""
        known = {d.name: d for d in (self.source, *self.domains)}
        if re.fullmatch(RESERVED, str(name), re.IGNORECASE):
            raise DasdError(f"{name!r} is no domain: leave it out for the base model or the prompt's token; "
                            "--auto-domain (auto_domain=True) finds one.")  # fmt: skip
        check_choice("domain", name, known)
        return known[name]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts and lists, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """Read what `to_dict` wrote, or the part of it that differs from the named profile."""
        return cls.setup(_object(values).get("profile", "auto"), values)

    def save(self, path: str | Path) -> Path:
        """Write JSON, complete or not at all, and return the path."""
        check_types(path=(path, str | os.PathLike))
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DasdError(f"The config cannot be written to {path}: {error.strerror}.") from error
        return path

    @classmethod
    def load(cls, path: str | Path, method: str | None = None, profile: str = "auto") -> typing.Self:
        """Read a JSON config; DasdError if it is missing, no JSON, or has a field that does not exist.

        A method that is given takes the place of the file's, with its own defaults under the file's fields;
        a profile only that of a file which names none.
        """
        values = read_json(path, "The config file")
        if method is not None and isinstance(values, dict):
            settings = values.get("method_settings") if values.get("method", method) == method else None
            values = values | {"method": method, "method_settings": settings or {}}
        return cls.from_dict({"profile": profile} | values if isinstance(values, dict) else values)


SECTIONS: dict[str, type] = {
    each.name: type(each.default)
    for each in dataclasses.fields(Config)
    if dataclasses.is_dataclass(each.default)
}
KINDS = {"source": DomainConfig, "domains": DomainConfig, "calibration": Calibration, **SECTIONS}
OWNERS = {each.name: name for name, kind in SECTIONS.items() for each in dataclasses.fields(kind)}
OWNERS |= {each.name: "" for each in dataclasses.fields(Config)}


def _object(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise DasdError(f"A config is a JSON object of sections, not {type(values).__name__}.")
    return values


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a config's values with changes of sections ({"lora": {"rank": 4}}) or fields ({"rank": 4})."""
    merged = dict(values)
    for name in sorted(changes, key=lambda each: bool(OWNERS.get(each))):  # a section before its fields
        place = OWNERS.get(name) or name
        value = changes[name] if place == name else {name: changes[name]}
        if place in SECTIONS and isinstance(value, dict):
            start = merged[place]
            value = {**(start if isinstance(start, dict) else vars(start)), **value}
        merged[place] = value
    return merged


def _contradictions(config: Config) -> Iterator[str]:
    """Yield why fields do not fit together, where training would only fail later."""
    training, alignment, data = config.training, config.alignment, config.data
    names = [domain.name for domain in (config.source, *config.domains)]
    tokens = [domain.token.lower() for domain in config.domains if domain.token is not None]
    if not config.domains:
        yield "The config has no target domain: give at least one entry in `domains`."
    for what, found in (("name", names), ("token", tokens)):
        if len({*found}) < len(found):  # tokenizers match added tokens in any case
            yield f"Two domains have one {what}: {', '.join(found)}."
    if config.source.token is not None:
        yield f"The source domain {names[0]} has a token, but only target domains learn one: remove it."
    for domain in config.domains:
        if domain.token is not None and not domain.initial_word.strip():
            yield f"The domain {domain.name} lacks initial_word, where its token starts."
        if domain.caption_file and domain.caption_column:
            yield f"Domain {domain.name} has captions in a caption_file and in a caption_column: leave one."
    if config.lora.rank == 0 and not tokens and not training.whole_unet:
        yield "rank is 0 and no domain has a token, so nothing would learn: set one of them."
    if data.validation_fraction + data.test_fraction >= 1:
        yield "validation_fraction and test_fraction leave nothing to train on: lower one of them."
    if training.text_free and not training.whole_unet:
        yield "text_free is true, but a LoRA leaves the text in: set whole_unet to true."
    if max(alignment.lambda_align, training.prior_loss_weight) > 0 and training.source_batch_size < 1:
        yield "lambda_align and prior_loss_weight need samples: raise source_batch_size, or set both to 0."
    if alignment.lambda_align == 0:
        return
    if alignment.pairs and (alignment.unbiased or alignment.queue_size):
        yield "pairs has no unbiased estimate and no queue: set unbiased to false and queue_size to 0."
    if alignment.match_timesteps and (alignment.pairs or alignment.kernel == "linear"):
        yield "match_timesteps needs a Gaussian kernel of sets: set kernel to 'multi' and pairs to false."
    if training.source_every > 1 and alignment.queue_size < 2:
        yield "source_every above 1 needs the MMD's queue: set queue_size to 2 or more, or source_every to 1."
    smallest = min(training.target_batch_size // len(config.domains), training.source_batch_size)
    if alignment.unbiased and max(smallest, alignment.queue_size) < 2:
        yield "The unbiased MMD needs two samples of each domain: enlarge the batch sizes, or queue_size."


def with_token(prompt: str, token: str | None) -> str:
    """Return the prompt with the token first, where no truncation reaches it, unless it has the token."""
    if not token or token.lower() in prompt.lower():  # tokenizers match added tokens in any case
        return prompt
    return f"{token} {prompt}" if prompt else token


def without_tokens(prompt: str, domains: Sequence[DomainConfig]) -> str:
    """Return the prompt without the domains' tokens."""
    for token in (re.escape(d.token) for d in domains if d.token):
        prompt = re.sub(rf"\s*{token}\s*", " ", prompt, flags=re.IGNORECASE).strip()
    return prompt


def check_promptless(config: Config, what: str) -> None:
    """Raise DasdError where what learns from images alone is given captions, tokens, or several domains."""
    training, domains = config.training, config.domains
    others = training.prior_loss_weight > 0 or config.alignment.lambda_align > 0 or len(domains) > 1
    if others or training.caption_dropout < 1 or any(domain.token is not None for domain in domains):
        raise DasdError(f"{what} learns from the images of one domain alone: leave one, without a token, and "
                        "set caption_dropout to 1, prior_loss_weight and lambda_align to 0.")  # fmt: skip


def paper(name: str) -> ModuleType:
    """Return a module of `papers` by its name: no core file imports one."""
    return importlib.import_module(f"dasd_utils.papers.{name}")


def known_methods() -> dict[str, str]:
    """Return the methods beside DASD, name -> module of `papers`: those that define `make_objective`."""
    folder = Path(__file__).parent / "papers"
    paths = sorted([*folder.glob("*.py"), *folder.glob("*/objective.py")])
    found = [path for path in paths if "\ndef make_objective(" in path.read_text("utf8")]
    parts = [path.relative_to(folder).with_suffix("").parts for path in found]
    return {names[0]: ".".join(names) for names in parts}


def method_module(name: Any) -> ModuleType | None:
    """Return the module of a method, None for DASD; DasdError, naming the nearest, for an unknown name."""
    if name == DASD:
        return None
    known = known_methods()
    check_choice("method", name, [DASD, *known])
    return paper(known[name])


def method_changes(name: str, profile: str | None = None) -> dict[str, Any]:
    """Return the config fields that a method changes, in a profile or, for None, whatever the profile."""
    module = method_module(name)
    return {} if module is None else {**module.CHANGES, **module.BY_PROFILE.get(profile, {})}
