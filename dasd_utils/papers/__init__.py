"""Methods of other papers in the project's seams: one module each, found by `methods`."""

from __future__ import annotations

from typing import Any

from dasd_utils.config import Config


def whole_unet(config: Config) -> dict[str, Any]:
    """Return the changes of a config with which all of the UNet learns, at a tenth of LoRA's rate."""
    return {"whole_unet": True, "learning_rate": config.training.learning_rate / 10}
