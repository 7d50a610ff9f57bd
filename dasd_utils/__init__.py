"""DASD: take a latent diffusion model to far domains. The names below are the published ones.

The core, in the order of the data flow:

- config: every setting; profiles: the values of `tiny` and `sd15`
- data: a domain: images, captions, splits, audit (runtime/folders reads its files, runtime/splits divides
  them, apps/new_domain proposes its config); latents: which samples step k sees
- models: pretrained parts, LoRA, token rows, the UNet pass; adapters: what was trained, as files
- losses: noise prediction, MMD, the objective; training: the loop, the optimiser step, what a checkpoint has
- guidance: which model is sampled with which prompt; classifier: prompt to domain; sampling: the pipeline
- metrics: CLIP score, CMMD and KID (MMDs with weights for a bootstrap), intervals; evaluation: prompts to
  rows; figures: one style

Rooms: runtime, toyworld, pretrain, papers, study, apps; each `__init__` lists its files.
"""

import importlib
import os
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on torchvision, which is not used here

_HOME = {
    "Config": "config",
    "DasdError": "config",
    "DomainConfig": "config",
    "DomainClassifier": "classifier",
    "create_datasets": "latents",
    "load_trained_pipeline": "sampling",
    "plot_losses": "figures",
    "save_training_results": "training",
    "setup_training": "training",
    "train": "training",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a published name at its first use, so that `import dasd_utils` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'dasd_utils' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dasd_utils.{_HOME[name]}"), name)
