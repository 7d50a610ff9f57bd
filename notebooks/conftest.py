"""nbval runs every cell of every notebook, with smaller numbers where a cell would train or draw for minutes.

`dasd notebooks` runs them with their own. What is marked `nbval-check-output` must not depend on these.
"""

from __future__ import annotations

from typing import Any

import pytest

SMALLER: dict[str, dict[str, Any]] = {
    "03_training": {"max_train_steps": 60, "sample_every": 20},
    "04_sampling": {"guidance_scales": [1.0, 4.0, 7.5], "num_prompts": 8, "step_counts": [5, 15]},
    "06_evaluation": {"images_per_prompt": 1, "num_inference_steps": 8},
    "07_domainstudio": {
        "num_source_images": 12,
        "max_train_steps": 20,
        "max_train_steps_without_text": 20,
        "num_samples": 12,
    },
    "08_guidance": {"max_train_steps": 20, "earlier_steps": [5], "num_compared": 12, "num_edited": 8},
    "09_diffusionclip": {
        "num_images": 8,
        "max_train_steps": 18,
        "published_steps": 6,
        "num_compared": 12,
        "num_labelled": 40,
        "num_tested": 40,
        "timesteps": [50, 350],
    },
    "10_comparison": {"num_images": 24},
    "11_alignment": {"num_images": 24},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the smaller numbers after the cell tagged `parameters`, as papermill would."""
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None or "parameters" not in cell.metadata.get("tags", []):
            continue
        numbers = SMALLER.get(item.path.stem, {})
        missing = [name for name in numbers if f"{name} =" not in cell.source]
        if missing:
            raise pytest.UsageError(f"{item.path.name} has no parameter {', '.join(missing)}.")
        cell.source += "".join(f"\n{name} = {value!r}" for name, value in numbers.items())
