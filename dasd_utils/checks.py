"""What no config may hold: values that would fail late, or go wrong without a word."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from dasd_utils.config import SECTIONS, Calibration, Config, DasdError, EvaluationConfig, nearest

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


def check(config: Config) -> None:
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
    if config.method != "dasd" or config.method_settings:
        from dasd_utils import methods  # made of these classes, and of torch

        methods.check(config)


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
