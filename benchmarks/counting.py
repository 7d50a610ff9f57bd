"""Memory and work of Stable Diffusion 1.5 on a GPU, counted on tensors that have shapes and no data.

What computes is this project's own code: objectives, guidance, the pipeline's prediction, the VAE. A counter
follows every tensor from its making to its end, so that the peak is that of weights, gradients, optimiser
state, kept activations and temporary results together. The tensors are on a CPU that casts as CUDA's autocast
does, where normalisations compute in fp32, and whose attention keeps what flash attention keeps.
Not in it: the CUDA context, workspaces and fragments of the allocator; see WORKSPACE_GB in gpu.py.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import common
import steps
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dasd_utils import losses, models, sampling
from dasd_utils.apps import batch_size
from dasd_utils.config import Config
from dasd_utils.papers import domainstudio
from dasd_utils.training import Updater

VOCABULARY = 49408 * 768 * 4  # bytes of CLIP's token table in fp32; `steps.base` has the tiny base's
UNET = 859_520_964 * 2  # bytes of the UNet in half precision
CLIP = 151_277_313 * 4  # of CLIP ViT-B/32 in fp32
LATENT = 64  # side of the latents of an image of 512 px
FP32 = ("group_norm", "layer_norm", "softmax", "interpolate", "mse_loss", "l1_loss", "cosine_similarity")


class Counted(NamedTuple):
    """What one call takes."""

    peak: int  # bytes, the model's weights included
    gflop: float


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that counts once for equal arguments; configs have no hash."""
    known: dict[str, Any] = {}

    @functools.wraps(function)
    def found(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, options))
        if key not in known:
            known[key] = function(*arguments, **options)
        return known[key]

    found.known = known
    return found


class Live(TorchDispatchMode):
    """Adds up, inside its `with`, the bytes of all tensors that exist at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}  # storage -> bytes
        self.bytes = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until its storage ends."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.bytes -= self._alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # a number that is read: there is none
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point + 0.0 or 1
        found = func(*args, **(kwargs or {}))
        for tensor in tree_iter(found):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return found


def _in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its tensors in fp32 wherever autocast is on, as CUDA's autocast has it."""

    @functools.wraps(function)
    def computed(*arguments: Any, **options: Any) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return function(*arguments, **options)
        cast = [a.float() if isinstance(a, Tensor) else a for a in arguments]
        named = {name: a.float() if isinstance(a, Tensor) else a for name, a in options.items()}
        with torch.autocast("cpu", enabled=False):
            return function(*cast, **named)

    return computed


def _rows_in_turns(batch: Any, config: Config) -> dict[str, Tensor]:
    count = len(config.domains)
    turns = {d.name: torch.arange(i, len(batch.target_latents), count) for i, d in enumerate(config.domains)}
    return {name: rows for name, rows in turns.items() if len(rows)}


def _all(_mode: Any, _func: Any, mask: Tensor) -> Tensor:
    return torch.zeros(mask.numel(), mask.dim(), dtype=torch.long)


def _others_in_turns(x: Tensor, similarity: str = "cosine") -> Tensor:
    return domainstudio.similarities(x, similarity)[:, 1:].log_softmax(dim=1)


@contextlib.contextmanager
def no_data() -> Iterator[Live]:
    """Inside the `with`, tensors have no data; yields what counts them."""
    with contextlib.ExitStack() as stack:
        for name in FP32:
            stack.enter_context(mock.patch.object(F, name, _in_fp32(getattr(F, name))))
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *_, **__: module))
        # which rows are whose depends on data
        stack.enter_context(mock.patch.object(losses, "domain_rows", _rows_in_turns))
        stack.enter_context(mock.patch.dict(op_implementations_dict, {torch.ops.aten.nonzero.default: _all}))
        stack.enter_context(mock.patch.object(domainstudio, "log_similarities", _others_in_turns))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Live())


def load(config: Config, live: Live) -> models.Parts:
    """Return the parts of a config in the shapes of Stable Diffusion 1.5, without data, and count them."""
    with torch.utils._python_dispatch._disable_current_modes(), torch.device("meta"):
        parts = steps.base("sd15", config)
    for module in (parts.unet, parts.text_encoder, parts.vae, parts.tokens):
        if module is not None:
            without_data(module)
    live.bytes += VOCABULARY
    live.peak = live.bytes
    return parts


def without_data(module: nn.Module) -> None:
    """Put tensors of the same shapes, which a counter sees, in the place of a module's own."""
    for each in module.modules():
        for table, wrap in ((each._parameters, nn.Parameter), (each._buffers, lambda x, _: x)):
            for name, old in table.items():
                if old is not None:
                    table[name] = wrap(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)


@once
def step(config: Config) -> Counted:
    """Return what a micro-batch of training takes, with gradients and AdamW's moments; no VAE on the GPU."""
    with no_data() as live:
        parts = load(config, live)
        spared = 0 if config.method != "dasd" else _bytes(parts.vae)  # others decode
        updater = Updater(config, parts)
        _moments = [torch.empty_like(p) for p in updater.parameters for _ in range(2)]
        batch = batch_size._batch(updater, config)
        gflop = common.count_gflop(lambda: batch_size._pass(updater, batch, config))
        live.peak = live.bytes
        batch_size._pass(updater, batch, config)  # the gradients of the first are there
        return Counted(live.peak - spared, gflop)


def gradient_step(config: Config, function: Callable[[models.Parts, Any], Any]) -> Counted:
    """Return what a function of parts and sampler takes, for the lessons' own gradients."""
    with no_data() as live:
        parts = load(config, live)
        sampler = steps.RandomSampler(config, LATENT)
        return Counted(0, common.count_gflop(lambda: function(parts, sampler)))._replace(peak=live.peak)


@once
def prediction(config: Config, images: int, guidance: str = "cfg", adapted: bool = True) -> Counted:
    """Return what one step of denoising takes for so many images at once, under a kind of guidance."""
    with no_data() as live, torch.no_grad():
        parts = load(config, live)
        pipeline = sampling.DasdPipeline(parts, config, progress=False)
        options = {"domain": config.domains[0].name, "seed": 0, "guidance": guidance, "adapter": adapted}
        with mock.patch.object(pipeline, "_check_steps", lambda *_: None):
            jobs = [job for (job,) in pipeline.plan(["a picture"] * images, **options)]
        latents = torch.randn(images, 4, LATENT, LATENT)
        with pipeline.predicting(jobs) as predict:
            gflop = common.count_gflop(lambda: predict(latents, torch.tensor(500)))
        return Counted(live.peak, gflop)


@once
def vae_pass(images: int, encode: bool = False, half: bool = False) -> Counted:
    """Return what decoding, or encoding, so many images at once takes, weights of the VAE alone included."""
    config = steps.settings("sd15", 512, "bf16")
    with no_data() as live, torch.no_grad():
        parts = load(config, live)
        others = live.bytes - _bytes(parts.vae)
        live.peak = live.bytes

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                if encode:
                    parts.vae.encode(torch.randn(images, 3, 512, 512)).latent_dist.mean.float()
                else:
                    parts.vae.decode(torch.randn(images, 4, LATENT, LATENT))

        gflop = common.count_gflop(run)
        return Counted(live.peak - others, gflop)


@once
def weights(config: Config) -> dict[str, int]:
    """Return the bytes of a loaded model: "model" (UNet, adapter, text encoder), "vae" and "clip"."""
    with no_data() as live:
        parts = load(config, live)
        total, vae = live.bytes, _bytes(parts.vae)
    return {"model": total - vae, "vae": vae, "clip": CLIP}


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
