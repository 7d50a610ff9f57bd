"""The modules of the package in the order of the data flow: one page of the book for each group."""

import pkgutil
import re

import dasd_utils

GROUPS = {
    "Configuration": ["dasd_utils", "config", "profiles", "checks", "machines", "processes"],
    "Toy world": [
        "toyworld", "toyworld.captions", "toyworld.wordings", "toyworld.everyday", "toyworld.canvas",
        "toyworld.scenery", "toyworld.painting", "toyworld.satellite", "toyworld.xray",
    ],
    "Data and latents": [
        "images", "splits", "captions", "captioner", "data", "prior", "locks", "cache", "latents",
        "new_domain", "wordings",
    ],
    "Models and adapters": ["pretrained", "models", "cross_attention", "textfree", "adapters"],
    "Losses, objectives and methods": [
        "losses", "objectives", "methods", "papers", "papers.domainstudio", "papers.indomain",
        "papers.diffusionclip",
    ],
    "Training": [
        "precision", "optimization", "batch_size", "checkpoints", "runs", "training", "tracking",
        "verification",
    ],
    "Classifier": ["classifier"],
    "Guidance, sampling and editing": [
        "guidance", "denoising", "jobs", "sampling", "editing", "translation", "hspace", "calibration",
    ],
    "Live pages": ["live", "bars", "monitor", "drawings", "playground_fields", "playground"],
    "For other programs": ["export", "model_card", "publish"],
    "Metrics and evaluation": [
        "metrics", "manifold", "uncertainty", "probe", "reader", "files", "samples", "evaluation", "scores",
        "study",
    ],
    "The study": [
        "ladder", "standings", "fronts", "adaptation", "translated", "adaptation_study", "label_shift",
        "anatomy", "records", "sweep", "workers",
    ],
    "Figures": ["figures", "charts", "front_charts", "diagram", "animation"],
    "The course": ["batch", "freshness", "badges", "colab", "doctor"],
    "Pretraining": [
        "pretrain", "pretrain.settings", "pretrain.world", "pretrain.loop", "pretrain.vae", "pretrain.clip",
        "pretrain.reader", "pretrain.unet", "pretrain.evaluate",
    ],
    "Command line": [
        "cli", "cli_options", "completion", "cli_start", "cli_domain", "cli_train", "cli_use",
        "cli_playground", "cli_share", "cli_course", "cli_study", "cli_upkeep",
    ],
}  # fmt: skip


def modules() -> set[str]:
    """Return the name of every public module of the package, in its full form."""
    found = pkgutil.walk_packages(dasd_utils.__path__, "dasd_utils.")
    names = {module.name for module in found}
    return {"dasd_utils", *(name for name in names if "._" not in name)}


def full_name(module: str) -> str:
    """Return the name by which a module of GROUPS is imported."""
    return module if module == "dasd_utils" else f"dasd_utils.{module}"


def slug(title: str) -> str:
    """Return a title as the name of a page: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def page(title: str, names: list[str]) -> str:
    """Return the page of one group, in reStructuredText."""
    parts = [_heading(title, "=")]
    for name in map(full_name, names):
        parts += [_heading(name, "-"), f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n"]
        if name == "dasd_utils":
            parts += [f"- :py:obj:`~dasd_utils.{home}.{name}`" for name, home in dasd_utils._HOME.items()]
            parts += [""]
    return "\n".join(parts)


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"
