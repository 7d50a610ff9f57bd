"""In-domain generation (arXiv 2312.08195): the look of a domain, learned from images alone.

Training uses no caption: the model predicts the noise for the empty prompt (null-text training). What a
prompt says comes from the base, by decoupled guidance. The model is a LoRA or, with `text_free`, the paper's
copy of the UNet without cross-attention, of which all weights learn.
"""

from typing import Any

from dasd_utils import losses
from dasd_utils.config import Config, check_promptless
from dasd_utils.losses import whole_unet

CHANGES: dict[str, Any] = {"caption_dropout": 1.0, "lambda_align": 0.0, "prior_loss_weight": 0.0}
BY_PROFILE: dict[str, dict[str, Any]] = {}
NAME = "domain learner"
DECOUPLED: dict[str, Any] = {"tokens": False, "settings": "decoupled"}
LADDER: dict[str, dict[str, Any]] = {
    "decoupled guidance": DECOUPLED,
    "decoupled guidance, whole UNet": DECOUPLED | {"changes": whole_unet, "after": "decoupled guidance"},
    "decoupled guidance, text-free": DECOUPLED
    | {"changes": lambda config: whole_unet(config) | {"text_free": True}, "after": "decoupled guidance"},
    f"{NAME}, no prompt": {"tokens": False, "settings": "unconditional", "after": "decoupled guidance"},
}


def check(config: Config) -> None:
    """Raise DasdError for captions, tokens, and several domains."""
    check_promptless(config, "The method indomain")


def make_objective(config: Config) -> losses.Objective:
    """Return the noise prediction of DASD, without alignment."""
    return losses.DasdObjective(config)
