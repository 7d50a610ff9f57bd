"""Run every notebook with the profile sd15, small: `python tests/rehearsal.py FOLDER [NOTEBOOK ...]`.

The base is narrow and random, in the layout of the Stable Diffusion 1.5 repository; the data sets are parquet
files with the columns of the three sets on the hub. The sizes are lowered as any user can lower them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import sd15_files

from dasd_utils import toyworld
from dasd_utils.apps.notebooks import find_notebooks, load_notebook
from dasd_utils.config import Config

COUNTS = {"train": 160, "valid": 12, "validation": 4, "test": 16}
LIMIT = 3600  # seconds after which a queue of notebooks is taken to hang
SIZE = 72  # pixels; the config's resolution is 64
# what each notebook is given to be quick: names of its parameters cell
PARAMETERS: dict[str, object] = {
    "point_steps": 4, "latent_steps": 4,
    "num_prompts": 2, "steps": 4, "draws": 50, "max_train_steps": 4, "sample_every": 2,
    "guidance_scales": [1.0, 4.0], "step_counts": [2, 3], "images_per_prompt": 2, "num_inference_steps": 2,
    "num_images": 12, "num_source_images": 4, "max_train_steps_without_text": 2, "num_samples": 10,
    "num_compared": 10, "num_edited": 4, "num_labelled": 10, "num_tested": 10,
    "timesteps": [50, 400], "short_steps": 2, "token_steps": 2,
}  # fmt: skip


def painting(index: int) -> dict:
    return {"image": toyworld.draw("painting", 5, index, size=SIZE)}


def satellite(index: int) -> dict:
    texts = [text for text, _ in toyworld.captions_with_mentions("satellite", 5, index)]
    captions = [f"{text} ." for text in (texts * 5)[:5]]
    image = toyworld.draw("satellite", 5, index, size=SIZE)
    return {"filename": f"rsicd_images/{index}.jpg", "captions": captions, "image": image}


def xray(index: int) -> dict:
    return {"image": toyworld.draw("xray", 5, index, size=SIZE), "label": index % 2}


def write_set(folder: Path, row, splits: list[str]) -> str:
    """Write the splits of a data set as parquet files, named as the hub does, and return the folder."""
    start = 0
    for split in splits:
        rows = [row(start + index) for index in range(COUNTS[split])]
        start += len(rows)
        features = datasets.Dataset.from_list(rows[:1]).features
        features["image"] = datasets.Image()
        if "label" in features:
            features["label"] = datasets.ClassLabel(names=["NORMAL", "PNEUMONIA"])
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return str(folder)


def write_config(folder: Path) -> Path:
    """Write base, data sets, and the config that names them; return its path."""
    base = sd15_files.make_sd15(folder / "base")
    values = Config.setup("sd15").to_dict()
    source, domains = values["source"], values["domains"]
    source["data"] = write_set(folder / "paintings", painting, ["train"])
    domains[0]["data"] = write_set(folder / "rsicd", satellite, ["train", "valid", "test"])
    domains[1]["data"] = write_set(folder / "chest", xray, ["train", "validation", "test"])
    changes = {
        "model": {"base": str(base), "base_revision": None, "clip": str(base / "clip"), "clip_revision": None,
                  "resolution": 64},
        "source": source | {"num_images": 24},
        "domains": [domain | {"num_images": 24} for domain in domains],
        "training": {"max_train_steps": 4, "lr_warmup_steps": 1, "validation_images": 4,
                     "mixed_precision": "bf16"},
        "evaluation": {"num_heldout": 16, "num_bootstrap": 50},
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps({"profile": "sd15"} | changes, indent=1), encoding="utf8")
    return path


def unnamed_results(path: Path) -> list[str]:
    """Return the cells of an executed notebook that show results of another profile without its name.

    They call `stored_rows`, or a function of the notebook that does.
    """
    found, names = [], ["stored_rows"]
    for number, cell in enumerate(load_notebook(path).cells):
        if "stored_rows(" in cell.source:
            names += re.findall(r"^def (\w+)", cell.source, re.MULTILINE)
        shows = re.search(rf"\b({'|'.join(names)})\(", cell.source)
        if shows and "data/results/bench" not in cell.source:
            said = "".join(output.get("text", "") for output in cell.get("outputs", []))
            if "Measured with the profile tiny" not in said:
                found.append(f"{path.name}, cell {number}: no line says whose results these are")
    return found


def main() -> int:
    """Run the notebooks in two processes; those that use the run of 04 follow it."""
    folder = Path(sys.argv[1]).resolve()
    config = folder / "config.json"
    if not config.exists():
        write_config(folder)
    queues = ["04,05,06,07,11,solutions", "00,01,02,03,08,09,10,12"]
    started = []
    for names in [",".join(sys.argv[2:])] if sys.argv[2:] else queues:
        cells = [cell for path in find_notebooks(names.split(",")) for cell in load_notebook(path).cells]
        declared = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        known = [name for name in PARAMETERS if f"\n{name} = " in declared]
        given = [word for name in known for word in ("-p", name, json.dumps(PARAMETERS[name]))]
        command = [sys.executable, "-m", "dasd_utils", "notebooks", "--profile", "sd15", "--only", names]
        places = ["--config", str(config), "--output_dir", str(folder / "course")]
        started.append(subprocess.Popen([*command, "--keep-going", "--force", *places, *given]))
    try:
        failed = any([process.wait(LIMIT) for process in started])
    finally:
        for process in started:
            process.terminate()  # its kernels end too
    unnamed = [line for path in (folder / "course").glob("*.ipynb") for line in unnamed_results(path)]
    print(*unnamed, sep="\n")
    return failed or bool(unnamed)


if __name__ == "__main__":
    sys.exit(main())
