"""One training loop for every stage: constant learning rate, then a linear decay; EMA; a log; checkpoints.

Until the decay a run does not depend on its planned length. So a finished stage can be made longer: with more
planned steps it goes on from the checkpoint that was kept where its decay began, as if planned so at first.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dasd_utils.config import DasdError
from dasd_utils.pretrain.settings import PretrainConfig
from dasd_utils.runtime import bars, checkpoints

Loss = Callable[[int], Tensor]  # step -> scalar
Preview = Callable[[nn.Module, Path], None]  # writes a picture of what the model can do
LAST, STABLE = "last.safetensors", "stable.safetensors"


def fit(
    model: nn.Module,
    loss_at: Loss,
    steps: int,
    config: PretrainConfig,
    folder: Path,
    progress: bool = True,
    preview: Preview | None = None,
    inputs: str = "",
) -> nn.Module:
    """Train with AdamW, going on where `folder` left off; return the model with its averaged weights.

    Writes log.jsonl, last.safetensors, stable.safetensors (where the decay began) and, with `preview`, grids.
    `inputs` is the fingerprint of the stages that the losses are made of. Raises DasdError for a checkpoint
    of other inputs or of a longer plan, and for a gradient that is not finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    plan = {"steps": str(steps), "decay_starts": str(config.decay_starts(steps)), "inputs": inputs}
    decay_starts = config.decay_starts(steps)
    start = _resume(folder, plan, model, optimizer, ema)
    log = [row for row in checkpoints.load_rows(folder / "log.jsonl") if row["step"] <= start]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_rows(folder / "log.jsonl", log)
    left = range(start, steps)
    bar = bars.bar(left, folder.name, steps, shown=progress, unit="step", initial=start, mininterval=5)
    for step in bar:
        factor = min((step + 1) / 100, (steps - step) / (steps - decay_starts), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        loss = _step(model, loss_at(step), optimizer, f"{folder.name}, step {step}")
        ema.step(model.parameters())
        done = step + 1
        if done % config.log_every == 0:
            row = {"step": done, "loss": loss, "time": round(time.time(), 1)}
            checkpoints.append_row(folder / "log.jsonl", row)
            bar.set_postfix(loss=f"{loss:.3f}")
        if done % config.checkpoint_every == 0 or done in (decay_starts, steps):
            _checkpoint(folder, {"step": str(done), **plan}, model, optimizer, ema)
        if preview and (done % config.preview_every == 0 or done == steps):
            _draw(preview, folder / f"step-{done:06d}.png", model, ema)
    ema.copy_to(model.parameters())
    return model.eval().requires_grad_(False)


def fingerprint(*folders: Path) -> str:
    """Return the SHA-256 of the newest checkpoints of stages: the same for the same weights."""
    digest = hashlib.sha256()
    for folder in folders:
        digest.update((folder / LAST).read_bytes())
    return digest.hexdigest()


def _step(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, where: str) -> float:
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise DasdError(f"{where}: the gradient is {norm}; lower PretrainConfig.learning_rate.")
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


def _checkpoint(
    folder: Path, plan: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> None:
    """Write one safetensors file and rename it: a broken write leaves the old one.

    Where the decay begins, the kept copy comes first: the file that says "done so far" is never without it.
    """
    tensors = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for i, (shadow, parameter) in enumerate(zip(ema.shadow_params, model.parameters(), strict=True)):
        tensors[f"ema.{i}"] = shadow.contiguous()
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{i}.{name}"] = value.contiguous()
    part = folder / "part.safetensors"
    save_file(tensors, part, metadata=plan)
    if plan["step"] == plan["decay_starts"]:
        shutil.copyfile(part, folder / "copy.safetensors")
        (folder / "copy.safetensors").replace(folder / STABLE)
    part.replace(folder / LAST)


def _newest(folder: Path, plan: dict[str, str]) -> tuple[Path, int] | None:
    """Return the newest checkpoint of this plan, or of another one from before the decay of both."""
    found = [folder / name for name in (LAST, STABLE) if (folder / name).exists()]
    for path in found:
        with safe_open(path, framework="pt") as file:
            made = file.metadata() or {}
        if made.get("inputs", "") != plan["inputs"]:
            raise DasdError(
                f"{path} was trained with other parts than those it would now be joined with. Delete the "
                f"folder {folder} to train this stage again."
            )
        step = int(made["step"])
        if made["steps"] == plan["steps"] or step <= min(
            int(made["decay_starts"]), int(plan["decay_starts"])
        ):
            return path, step
    if found:
        raise DasdError(
            f"{folder} holds a run of {made['steps']} steps, longer than the {plan['steps']} that are asked "
            f"for: delete the folder to train anew, or ask for as many steps."
        )
    return None


def _resume(
    folder: Path, plan: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> int:
    """Load the newest checkpoint that fits; return the number of steps done."""
    found = _newest(folder, plan)
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
