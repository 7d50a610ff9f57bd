"""One training loop for every stage: constant learning rate, then a linear decay; EMA; a log; checkpoints.

Until the decay a run does not depend on its planned length. So a finished stage can be made longer: with more
planned steps it goes on from the checkpoint that was kept where its decay began, as if planned so at first.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from dasd_utils.config import DasdError
from dasd_utils.pretrain.settings import PretrainConfig

Loss = Callable[[int], Tensor]  # step -> scalar
Preview = Callable[[nn.Module, Path], None]  # writes a picture of what the model can do


def fit(
    model: nn.Module,
    loss_at: Loss,
    steps: int,
    config: PretrainConfig,
    folder: Path,
    progress: bool = True,
    preview: Preview | None = None,
) -> nn.Module:
    """Train with AdamW, resuming where `folder` left off; return the model with its averaged weights.

    Writes log.jsonl, last.safetensors, stable.safetensors (before the decay) and, with `preview`, grids.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    decay_starts = config.decay_starts(steps)
    start = _resume(folder, steps, decay_starts, model, optimizer, ema)
    _forget(folder / "log.jsonl", start)
    bar = tqdm(range(start, steps), folder.name, steps, initial=start, disable=not progress, mininterval=5)
    for step in bar:
        factor = min((step + 1) / 100, (steps - step) / (steps - decay_starts), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        loss = _step(model, loss_at(step), optimizer, f"{folder.name}, step {step}")
        ema.step(model.parameters())
        done = step + 1
        if done % config.log_every == 0:
            _append(folder / "log.jsonl", {"step": done, "loss": loss, "time": round(time.time(), 1)})
        if done % config.checkpoint_every == 0 or done in (decay_starts, steps):
            plan = {"step": done, "steps": steps, "decay_starts": decay_starts}
            _checkpoint(folder, plan, model, optimizer, ema)
        if done == decay_starts:
            shutil.copyfile(folder / "last.safetensors", folder / "stable.safetensors")
        if preview and (done % config.preview_every == 0 or done == steps):
            _draw(preview, folder / f"step-{done:06d}.png", model, ema)
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False)


def _step(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, where: str) -> float:
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise DasdError(f"{where}: the gradient is {norm}; lower the learning rate.")
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def _draw(preview: Preview, path: Path, model: nn.Module, ema: EMAModel) -> None:
    """Show the averaged weights, then go on with the others."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    preview(model.eval(), path)
    ema.restore(model.parameters())
    model.train()


def _append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf8") as file:
        file.write(json.dumps(row) + "\n")


def _forget(path: Path, start: int) -> None:
    """Drop the log rows of steps that are taken again."""
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    kept = [line for line in lines if json.loads(line)["step"] <= start]
    if kept != lines:
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf8")


def _checkpoint(
    folder: Path, plan: dict[str, int], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> None:
    """Write one safetensors file and rename it: a broken write leaves the old one."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for i, (shadow, parameter) in enumerate(zip(ema.shadow_params, model.parameters(), strict=True)):
        tensors[f"ema.{i}"] = shadow.contiguous()
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "part.safetensors", metadata={k: str(v) for k, v in plan.items()})
    (folder / "part.safetensors").rename(folder / "last.safetensors")


def _newest(folder: Path, steps: int, decay_starts: int) -> tuple[Path, int] | None:
    """Return the newest checkpoint of this plan, or of another one from before the decay of both."""
    for path in (folder / "last.safetensors", folder / "stable.safetensors"):
        if path.exists():
            with safe_open(path, framework="pt") as file:
                made = {key: int(value) for key, value in file.metadata().items()}
            if made["steps"] == steps or made["step"] <= min(made["decay_starts"], decay_starts):
                return path, made["step"]
    return None


def _resume(
    folder: Path,
    steps: int,
    decay_starts: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
) -> int:
    """Load the newest checkpoint that fits; return the number of steps done."""
    found = _newest(folder, steps, decay_starts)
    if not found:
        return 0
    tensors = load_file(found[0])
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, parameter in enumerate(model.parameters()):
        ema.shadow_params[i] = tensors[f"ema.{i}"]
        prefix = f"optimizer.{i}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state[parameter] = state
    ema.optimization_step = found[1]
    return found[1]
