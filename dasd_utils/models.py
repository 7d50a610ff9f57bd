"""The pretrained parts, and what is added to them: LoRA in the UNet, one token row per domain."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import diffusers
import torch
import torch.nn.functional as F
import transformers
from accelerate.utils import recursively_apply
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dasd_utils import config as cfg
from dasd_utils.runtime import files

log = logging.getLogger(__name__)

MAX_CACHED_TEXTS = 4096  # a gigabyte of text conditions of Stable Diffusion
TEXT_BATCH = 32  # prompts at once through the text encoder
ATTENTION = r".*\.to_(q|k|v|out\.0)"
TARGETS = {  # LoraSettings.convolutions -> which modules of the UNet get LoRA, matched in full
    "all": rf"{ATTENTION}|.*\.resnets\.\d+\.conv[12]",
    "mid": rf"{ATTENTION}|mid_block\.resnets\.\d+\.conv[12]",
    "none": ATTENTION,
}


@dataclass
class Parts:
    """A latent diffusion model in pieces; `parts["unet"]` and `parts.unet` are the same."""

    tokenizer: transformers.CLIPTokenizer
    text_encoder: transformers.CLIPTextModel
    unet: diffusers.UNet2DConditionModel
    vae: diffusers.AutoencoderKL | None
    noise_scheduler: diffusers.DDPMScheduler
    config: cfg.Config
    token_ids: dict[str, int] = field(default_factory=dict)  # "<satellite>" -> id
    tokens: "TokenRows | None" = None
    checked_prompts: set[str] = field(default_factory=set, repr=False)  # warned about if they are cut
    text_cache: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of `cache_texts`
    base_weights: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of `unfreeze_unet`
    frozen_names: set[str] = field(default_factory=set, repr=False)  # UNet weights that never train
    start: dict[str, Tensor] = field(default_factory=dict, repr=False)  # of `setup_training`

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]

    def to(self, device: torch.device | str) -> Self:
        """Move every module to the device and return self."""
        for module in (self.text_encoder, self.unet, self.vae, self.tokens):
            if module is not None:
                module.to(device)
        return self


def load_parts(config: cfg.Config, unet_dtype: torch.dtype | None = None) -> Parts:
    """Return the frozen parts of `config.model.base`, in eval mode on the CPU; the UNet in `unet_dtype`.

    Raises DasdError if the base is missing, unreachable or not of the Stable Diffusion 1.x kind.
    """
    model = config.model
    base = model.base
    stored = files.find_weights(base, model.base_revision, model.base_variant)
    weights = dict(variant=model.base_variant, use_safetensors=True, dtype=torch.float32)
    unet_weights = weights | ({"dtype": unet_dtype} if unet_dtype else {})
    parts = Parts(
        tokenizer=stored.load(transformers.CLIPTokenizer, "tokenizer"),
        text_encoder=stored.load(transformers.CLIPTextModel, "text_encoder", **weights),
        unet=stored.load(diffusers.UNet2DConditionModel, "unet", **unet_weights),
        vae=stored.load(diffusers.AutoencoderKL, "vae", **weights),
        noise_scheduler=stored.load(diffusers.DDPMScheduler, "scheduler"),
        config=config,
    )
    text, tokens = parts.text_encoder.config, len(parts.tokenizer)
    if tokens != text.vocab_size:
        raise cfg.DasdError(f"The base model {base!r} does not fit together: the tokenizer has "
                            f"{tokens} tokens, the text encoder {text.vocab_size}.")  # fmt: skip
    if parts.unet.config.cross_attention_dim != text.hidden_size or parts.unet.config.addition_embed_type:
        raise cfg.DasdError(f"The base model {base!r} is no Stable Diffusion 1.x.")
    prediction = parts.noise_scheduler.config.prediction_type
    if prediction != "epsilon":
        raise cfg.DasdError(f"The base model {base!r} predicts {prediction!r}, not the noise ('epsilon').")
    latent_shape(parts)
    for name in ("unet", "text_encoder", "vae"):
        module = parts[name].requires_grad_(False).eval()
        if not all(p.sum(dtype=torch.float32).isfinite() for p in module.parameters()):
            raise cfg.DasdError(f"The {name} of the base {base!r} holds NaN or infinity: fetch it anew.")
    if model.attention == "plain":
        parts.unet.set_attn_processor(AttnProcessor())
        parts.text_encoder.set_attn_implementation("eager")
    return parts


def latent_shape(parts: Parts) -> tuple[int, int, int]:
    """Return (C, h, w) of one image's latents; DasdError if the VAE would make images of another size."""
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    side, rest = divmod(parts.config.model.resolution, factor)
    if rest:
        raise cfg.DasdError(f"resolution is {parts.config.model.resolution}; the VAE of "
                            f"{parts.config.model.base!r} needs a multiple of {factor}, such as "
                            f"{max(side, 1) * factor}.")  # fmt: skip
    return (parts.vae.config.latent_channels, side, side)


class TokenRows(nn.Module):
    """New rows of a frozen token embedding, as a parameter of their own (`weight`, (n, d), float32).

    Hooks on the embedding make ids from its size on read these rows. The matrix is neither resized nor
    trained, so an optimiser that decays weights never sees the old vocabulary.
    """

    def __init__(self, embedding: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.detach().float().clone())
        self.first_id = embedding.num_embeddings
        self._ids: Tensor | None = None  # from the hook before the lookup to the one after it
        embedding.register_forward_pre_hook(self._before)
        embedding.register_forward_hook(self._after)

    def _before(self, _embedding: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        self._ids = arguments[0]
        return (self._ids.clamp(max=self.first_id - 1),)

    def _after(self, _embedding: nn.Module, _arguments: tuple[Tensor, ...], looked_up: Tensor) -> Tensor:
        ids, self._ids = self._ids, None
        rows = F.embedding((ids - self.first_id).clamp(min=0), self.weight)  # (..., d)
        return torch.where((ids >= self.first_id)[..., None], rows.to(looked_up.dtype), looked_up)


def add_domain_tokens(parts: Parts, domains: Iterable[cfg.DomainConfig]) -> dict[str, int]:
    """Add each domain's token, starting at the mean of its initial word's pieces; return token -> id.

    Raises DasdError, and changes nothing, if tokens were added before or one is in the vocabulary.
    """
    vocabulary = parts.text_encoder.get_input_embeddings().weight.detach().float()
    rows: dict[str, Tensor] = {}
    for domain in domains:
        if domain.token is not None:
            pieces = parts.tokenizer(domain.initial_word, add_special_tokens=False).input_ids
            rows[domain.token] = vocabulary[pieces].mean(dim=0)
    return attach_tokens(parts, list(rows), torch.stack([*rows.values()])) if rows else {}


def attach_tokens(parts: Parts, tokens: Sequence[str], rows: Tensor) -> dict[str, int]:
    """Add tokens with embedding rows (n, d); DasdError for a second time, or a token of the vocabulary."""
    if parts.tokens is not None:
        raise cfg.DasdError(f"These parts already have the tokens {', '.join(parts.token_ids)}: tokens are "
                            f"added once. Load fresh parts to add others.")  # fmt: skip
    vocabulary = {piece.lower() for piece in parts.tokenizer.get_vocab()}
    for token in tokens:
        if token.lower() in vocabulary:  # tokenizers match added tokens case-insensitively
            raise cfg.DasdError(f"The token {token!r} is already in the vocabulary of the base model "
                                f"{parts.config.model.base!r}. Choose another one.")  # fmt: skip
    embedding = parts.text_encoder.get_input_embeddings()
    parts.tokenizer.add_tokens(list(tokens))
    parts.tokens = TokenRows(embedding, rows.to(embedding.weight.device))
    parts.token_ids.update({token: parts.tokenizer.convert_tokens_to_ids(token) for token in tokens})
    return dict(parts.token_ids)


def add_lora(unet: diffusers.UNet2DConditionModel, lora: cfg.LoraSettings) -> None:
    """Add LoRA (arXiv 2106.09685) to every attention projection and the chosen convolutions.

    Its weights are float32 whatever the base is: steps of 1e-4 vanish in half precision.
    Raises DasdError for a rank above that of the widest layer.
    """
    targets = TARGETS[lora.convolutions]
    found = (m.weight for name, m in unet.named_modules() if re.fullmatch(targets, name))
    widest = max((min(len(weight), weight[0].numel()) for weight in found), default=0)
    if not 1 <= lora.rank <= widest:
        raise cfg.DasdError(f"rank is {lora.rank}; a LoRA of this UNet needs 1 to {widest}.")
    strength = dict(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout)
    unet.add_adapter(LoraConfig(**strength, target_modules=targets, init_lora_weights="gaussian"))
    cast_training_params(unet, torch.float32)
    unet.train(unet.training)  # new dropout layers train, whatever the mode of the UNet is


def unfreeze_unet(parts: Parts) -> None:
    """Mark the whole UNet as trained, in the place of a LoRA: keep the base's weights in `base_weights`."""
    parts.base_weights = {name: p.detach().clone() for name, p in parts.unet.named_parameters()}


@contextmanager
def lora_disabled(parts: Parts) -> Iterator[Parts]:
    """Inside the `with`, the UNet is the base's, whatever learned; afterwards everything is as before."""
    if parts.base_weights:
        with lora_merged(parts) as switch:
            switch(False)
            yield parts
        return
    layers = _active_layers(parts)
    flags = {p: p.requires_grad for layer in layers for p in layer.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield parts
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags.items():  # peft switches them all on
            parameter.requires_grad_(flag)


@contextmanager
def lora_merged(parts: Parts) -> Iterator[Callable[[bool], None]]:
    """Inside the `with`, LoRA is in the weights: one product a layer, not three, the same but for rounding.

    Yields a switch: `switch(False)` makes the network the base, `switch(True)` the adapted model again, at no
    cost. For sampling: nothing learns inside, and afterwards every weight is as before, to the bit. If the
    whole UNet learned, its weights and the base's change places.
    """
    whole_unet = bool(parts.base_weights)
    exchanged = []  # (weight that training changed, its values in the base, those of the adapted model)
    if whole_unet:
        for name, weight in parts.unet.named_parameters():
            parts.base_weights[name] = parts.base_weights[name].to(weight.device)
            exchanged.append((weight, parts.base_weights[name], weight.data))
    with torch.no_grad(), torch.autocast(parts.unet.device.type, enabled=False):
        for layer in _active_layers(parts):
            weight = layer.get_base_layer().weight
            update = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
            exchanged.append((weight, weight.data, (weight.data.float() + update).to(weight.dtype)))

    def switch(to_adapted: bool) -> None:
        torch.clear_autocast_cache()  # it knows weights by their place, not by their values
        for weight, base, adapted in exchanged:
            weight.data = adapted if to_adapted else base

    with nullcontext() if whole_unet else lora_disabled(parts):
        try:
            switch(True)
            yield switch
        finally:
            switch(whole_unet)  # a LoRA is beside the base's weights again


def _active_layers(parts: Parts) -> list[BaseTunerLayer]:
    return [m for m in parts.unet.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]


def trainable_parameters(parts: Parts) -> dict[str, list[nn.Parameter]]:
    """Return {"lora" or "unet": [...], "tokens": [...]} without `parts.frozen_names`, and freeze the rest."""
    kind = "unet" if parts.base_weights else "lora"
    named = {name: p for name, p in parts.unet.named_parameters() if kind == "unet" or "lora_" in name}
    inner = [p for name, p in named.items() if name not in parts.frozen_names]
    tokens = [] if parts.tokens is None else [parts.tokens.weight]
    for module in (parts.text_encoder, parts.unet, parts.vae):
        if module is not None:
            module.requires_grad_(False)
    for parameter in (*inner, *tokens):
        parameter.requires_grad_(True)
    return {kind: inner, "tokens": tokens}


def encode_prompts(parts: Parts, prompts: list[str]) -> Tensor:
    """Return the UNet's text condition (B, 77, d): the text encoder's last hidden state.

    Gradients reach the token rows. Without them, prompts are looked up if `cache_texts` holds them all. A
    prompt longer than the limit is truncated, with a warning the first time.
    """
    learned = parts.tokens is not None and torch.is_grad_enabled()
    if prompts and not learned and all(prompt in parts.text_cache for prompt in prompts):
        cached = torch.stack([parts.text_cache[prompt] for prompt in prompts])
        return cached.to(parts.text_encoder.device)
    tokenizer, limit = parts.tokenizer, parts.tokenizer.model_max_length
    options = dict(padding="max_length", max_length=limit, truncation=True)
    ids = tokenizer(prompts, return_tensors="pt", **options).input_ids
    for prompt in set(prompts) - parts.checked_prompts:
        parts.checked_prompts.add(prompt)
        wanted = tokenizer(prompt, verbose=False).input_ids
        if len(wanted) > limit:
            lost = tokenizer.decode(wanted[limit - 1 : -1])
            message = "A prompt of %d tokens is cut to %d. Lost: %.200r of %.200r"
            log.warning(message, len(wanted), limit, lost, prompt)
    return parts.text_encoder(ids.to(parts.text_encoder.device)).last_hidden_state


@torch.no_grad()
def cache_texts(parts: Parts, prompts: Iterable[str]) -> None:
    """Keep encoded prompts, without learned tokens, on the host; none if more than MAX_CACHED_TEXTS."""
    tokens = [token.lower() for token in parts.token_ids]
    distinct = [p for p in dict.fromkeys(prompts) if not any(token in p.lower() for token in tokens)]
    if len(distinct) > MAX_CACHED_TEXTS:
        return
    for start in range(0, len(distinct), TEXT_BATCH):
        some = distinct[start : start + TEXT_BATCH]
        parts.text_cache |= zip(some, encode_prompts(parts, some).cpu().unbind(), strict=True)


class _PassEndError(Exception):
    """Raised after the last block that is needed, to end the pass."""


def unet_pass(
    unet: nn.Module, latents: Tensor, timesteps: Tensor, text: Tensor, num_target: int | None = None,
    layer: str = "mid",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the predicted noise of the first `num_target` rows and all rows' features after a block.

    latents (B, C, h, w), timesteps (B,), text (B, 77, d) -> (num_target, C, h, w), (B, C', h', w').
    Rows from `num_target` on (the source) stop after the block; None keeps all, 0 ends the pass there.
    Temporary hooks on the model's own forward do it: every kind of UNet and distributed wrapper works.
    """
    inner = getattr(unet, "module", unet)  # a distributed wrapper must be called itself
    block, behind = blocks(inner, layer)
    outputs: list[Any] = []

    def keep_targets(_block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # skips, text and time too
        return recursively_apply(lambda tensor: tensor[:num_target], (args, kwargs))

    def keep_output(_block: nn.Module, _args: tuple, output: Any) -> None:
        outputs.append(output)
        if num_target == 0:  # attention takes no empty batch
            raise _PassEndError

    hooks = [block.register_forward_hook(keep_output)]
    if num_target is not None and num_target < len(latents):
        hooks += [b.register_forward_pre_hook(keep_targets, with_kwargs=True) for b in behind]
    try:
        eps = unet(latents, timesteps, encoder_hidden_states=text, return_dict=False)[0]
    except _PassEndError:
        eps = latents[:0]
    finally:
        for hook in hooks:
            hook.remove()
    output = outputs[0]
    return eps, output[0] if isinstance(output, tuple) else output  # a down block returns its skips too


def blocks(unet: nn.Module, layer: str) -> tuple[nn.Module, list[nn.Module]]:
    """Return the block of this name ("mid", "down.0", "up.1", ...) and all behind it; DasdError if none."""
    names = [f"down.{i}" for i in range(len(unet.down_blocks))] + ["mid"]
    names += [f"up.{i}" for i in range(len(unet.up_blocks))]
    if layer not in names:
        raise cfg.DasdError(f"The UNet has no block {layer!r} to align at; it has {', '.join(names)}.")
    modules = [*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet.conv_out]
    place = names.index(layer)
    return modules[place], modules[place + 1 :]
