"""nbval runs every cell of every notebook, with smaller numbers where a cell would train or draw for minutes.

`dasd notebooks` runs them with their own. What is marked `nbval-check-output` must not depend on these.
"""

from __future__ import annotations

from typing import Any

import pytest

SMALLER: dict[str, dict[str, Any]] = {  # in the order in which they begin, the longest first
    "10_diffusionclip": {
        "num_images": 4,
        "max_train_steps": 6,
        "num_compared": 10,
        "num_labelled": 16,
        "num_tested": 16,
        "timesteps": [50, 350],
    },
    "solutions": {"num_prompts": 3, "short_steps": 3, "token_steps": 4},
    "12_alignment": {"num_images": 10, "config": {"max_train_steps": 20}},
    "04_training": {"max_train_steps": 20, "sample_every": 20},
    "08_domainstudio": {
        "num_source_images": 12,
        "max_train_steps": 6,
        "max_train_steps_without_text": 6,
        "num_samples": 10,
    },
    "09_guidance": {"max_train_steps": 6, "num_compared": 10, "num_edited": 4},
    "07_evaluation": {"images_per_prompt": 1, "num_inference_steps": 2},
    "05_sampling": {"guidance_scales": [1.0, 7.5], "num_prompts": 4, "step_counts": [4, 8]},
    "11_comparison": {"num_images": 10},
    "02_data": {"steps": 40},
    "03_lora_and_tokens": {"num_images": 48, "steps": 2, "draws": 500},
    "01_diffusion_from_scratch": {"point_steps": 100, "latent_steps": 5, "num_images": 12},
    "00_start": {"num_prompts": 4},
}
# It teaches a classifier of domains, for a score; fewer images do.
TAUGHT = ("12_alignment",)
FEW_TEACH = "\nfrom dasd_utils.study import ladder\nladder.DOMAIN_IMAGES = 40"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the smaller numbers after the cell tagged `parameters`, as papermill would; the longest first."""
    order = list(SMALLER)
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None or "parameters" not in cell.metadata.get("tags", []):
            continue
        numbers = SMALLER.get(item.path.stem, {})
        missing = [name for name in numbers if f"{name} =" not in cell.source]
        if missing:
            raise pytest.UsageError(f"{item.path.name} has no parameter {', '.join(missing)}.")
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in numbers.items())
        cell.source += FEW_TEACH if item.path.stem in TAUGHT else ""
