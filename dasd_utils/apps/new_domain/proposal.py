"""A folder of images becomes a domain: inspected, proposed with what it lacks, written as a config."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers

from dasd_utils import classifier, data
from dasd_utils.apps.new_domain import captions as sources
from dasd_utils.apps.new_domain import words
from dasd_utils.apps.new_domain.captions import Album, Captions
from dasd_utils.config import ROOT, Calibration, Config, DasdError, DomainConfig, resolve
from dasd_utils.runtime import files, pretrained

FEW = 30  # training images below which a model rather learns them by heart
LEAST = {"train": 2, "validation": 1, "test": 2}  # what training and a score with an interval take
ALL = 2**62  # images used: a proposal looks at every one
LOOKED_AT = 100  # images whose colour is measured
GREY = 4  # levels between an image's channels, on average: less is grey


@dataclass(frozen=True)
class Proposal:
    """What `write` writes, what was found, and why each value is proposed."""

    profile: str
    folder: Path
    entry: dict[str, Any]  # of the domain; without its caption file, whose place `values` knows
    captions: Captions
    prompts: list[str]  # for the evaluation
    labelled: list[dict[str, Any]]  # prompts for the classifier's threshold
    audit: dict[str, Any]
    reasons: dict[str, str]
    warnings: list[str]

    def values(self, out: Path) -> dict[str, Any]:
        """Return the config that the file `out` is to hold."""
        beside = extras(out)
        file = {"caption_file": portable(beside / sources.FILE)} if self.captions.texts else {}
        broken = {"data": {"skip_corrupt": True}} if self.audit["unreadable"] else {}
        return {
            "profile": self.profile,
            "output_dir": f"data/runs/{out.stem}",
            "domains": [self.entry | file],
            **broken,
            "classifier": {"prompts": portable(beside / "classifier.json")},
            "evaluation": {"prompts_dir": portable(beside / "prompts")},
        }

    def next_commands(self, out: Path) -> list[str]:
        """Return what to run with the written file: train, generate, evaluate."""
        prompt = self.prompts[0].replace('"', "'")
        options = f'--prompt "{prompt}" --domain {self.entry["name"]} --num_images 4'
        config = f"--config {out}"
        return [f"dasd train {config}", f"dasd generate {config} {options}", f"dasd evaluate {config}"]


def extras(out: Path) -> Path:
    """Return the folder beside a config file that holds its captions and prompts."""
    return out.with_name(f"{out.stem}_files")


def portable(path: Path) -> str:
    """Return a path inside the repository relative to it, as configs have them; another one absolute."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def propose(
    name: str, folder: str | Path, config: Config, how: str = "auto", progress: bool = False
) -> Proposal:
    """Look through a folder and return the domain that it could be, on the base of `config`.

    how: where captions come from, see `captions.find_captions`. Raises DasdError for a name that cannot be
    one, images without captions, and too few images to split.
    """
    base = pretrained.find_weights(config.model.base, config.model.base_revision)
    tokenizer = base.load(transformers.CLIPTokenizer, "tokenizer")
    with _datasets_bars(progress):
        album = _open(name, folder, config)
        entry = _plain_entry(name, album)
        load_splits(entry, Captions("none yet", {"caption": ""}), config)  # too few? before a model sees them
        captions = sources.find_captions(album, how, progress)
        entry |= captions.entry
        splits = load_splits(entry, captions, config)
    texts = {split: [c for found in part.captions for c in found if c] for split, part in splits.items()}
    word, why = words.initial_word(name, texts["train"], tokenizer)
    entry |= {"token": words.free_token(name, tokenizer), "initial_word": word} | words.describe(name, word)
    entry["calibration"] = _as_evaluated(config)
    heldout = [found[0] for found in splits["test"].captions if found[0]]
    prompts, reworded = words.evaluation_prompts([*texts["train"], *texts["validation"]], heldout)
    origin = words.prompts_origin(len(prompts), reworded)
    others = classifier.load_prompts(config.classifier.prompts)
    report = audit(splits, config, tokenizer, entry["token"])
    return Proposal(
        config.profile, album.folder, entry, captions, prompts,
        labelled=words.labelled(name, entry["style_suffix"], texts["validation"] or texts["train"], others),
        audit=report,
        reasons={"captions": captions.source, "initial_word": why, "prompts": origin},
        warnings=warnings(report, config),
    )  # fmt: skip


@contextlib.contextmanager
def _datasets_bars(shown: bool) -> Iterator[None]:
    """Keep the bars of `datasets` away inside the `with`, unless they are to be shown."""
    hidden = datasets.are_progress_bars_disabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _open(name: str, folder: str | Path, config: Config) -> Album:
    domain = DomainConfig(name, ".", token=f"<{name}>", initial_word="any")
    config.replace(domains=(domain,))  # refuses a name that cannot be one, before anything is read
    return sources.open_album(folder, name)


def _plain_entry(name: str, album: Album) -> dict[str, Any]:
    """The fields that say where the images are, defaults left out."""
    train = "train" if "train" in album.splits else next(iter(album.splits))
    test = next((s for s in ("test", "validation") if s in album.splits and s != train), None)
    wanted = {"image_column": album.column, "train_split": train, "test_split": test}
    other = {field: value for field, value in wanted.items() if value != getattr(DomainConfig, field)}
    return {"name": name, "data": portable(album.folder), **other}


def _as_evaluated(config: Config) -> dict[str, Any]:
    """The sampling that the profile evaluates with, until `dasd calibrate` finds better."""
    fields = ("guidance_scale", "num_inference_steps", "scheduler")
    named = {field: getattr(config.evaluation, field) for field in fields}
    return {field: value for field, value in named.items() if value != getattr(Calibration, field)}


def load_splits(entry: dict[str, Any], captions: Captions, config: Config) -> dict[str, data.DomainData]:
    """Return the three splits with these captions; DasdError, with the counts, for too few images."""
    with tempfile.TemporaryDirectory() as folder:
        place = {}
        if captions.texts:
            place["caption_file"] = str(Path(folder) / sources.FILE)
            Path(place["caption_file"]).write_text(caption_lines(captions), encoding="utf8")
        domain = DomainConfig(**entry | captions.entry | place, num_images=ALL)
        wanted = config.replace(domains=(domain,), skip_corrupt=True)
        splits = {split: data.load_domain(domain, wanted, split) for split in data.SPLITS}
    counts = {split: len(part) for split, part in splits.items()}
    if any(counts[split] < least for split, least in LEAST.items()):
        raise DasdError(f"{domain.data} has too few images to split: {counts} where {LEAST} are the least. "
                        "Copies of an image stay in one split. Add images: fifteen different ones, at least, "
                        "or a folder test/ beside train/.")  # fmt: skip
    return splits


def caption_lines(captions: Captions) -> str:
    """Return the text of a caption file."""
    rows = ({"file_name": name, "text": text} for name, text in sorted(captions.texts.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def audit(splits: dict[str, data.DomainData], config: Config, tokenizer: Any, token: str) -> dict[str, Any]:
    """Return counts over the three splits of a domain, and what their images and captions are like."""
    parts = list(splits.values())
    domain = dataclasses.replace(
        parts[0].config, token=token, initial_word="x"
    )  # cut with the token in front
    reports = [data.audit(dataclasses.replace(part, config=domain), tokenizer) for part in parts]
    sizes = np.array([size for part in parts for size in part.sizes])
    sums = ("images", "captions_missing", "captions_cut", "exact_duplicates", "near_duplicates")
    return {
        **{name: sum(report[name] for report in reports) for name in sums},
        **{split: len(part) for split, part in splits.items()},
        "duplicates_of_test": splits["train"].duplicates_of_test,
        "unreadable": sorted({broken for part in parts for broken in part.broken}),
        "captions_different": len({c for part in parts for found in part.captions for c in found if c}),
        "smaller_than_resolution": int((sizes.min(axis=1) < config.model.resolution).sum()),
        "grey": grey_share(splits["train"]),
        "width": [int(f(sizes[:, 0])) for f in (np.min, np.median, np.max)],
        "height": [int(f(sizes[:, 1])) for f in (np.min, np.median, np.max)],
    }


def grey_share(images: data.DomainData) -> float:
    """Return the share of grey ones among the first images."""
    pixels = (np.asarray(images.images[i], np.int16) for i in range(min(len(images), LOOKED_AT)))
    return float(np.mean([(image.max(axis=2) - image.min(axis=2)).mean() < GREY for image in pixels]))


def warnings(report: dict[str, Any], config: Config) -> list[str]:
    """Return what a user should know before training."""
    texts = []
    if report["train"] < FEW:
        texts.append(f"{report['train']} training images are few: below {FEW} a model rather learns them by "
                     "heart. `--method domainstudio` is made for that.")  # fmt: skip
    used = DomainConfig.num_images
    if report["train"] > used:
        texts.append(f"{used} of {report['train']} training images are used: num_images says how many.")
    if report["unreadable"]:
        texts.append(f"{len(report['unreadable'])} images cannot be read and are left out, the first: "
                     f"{report['unreadable'][0]}")  # fmt: skip
    counted = {
        "captions_missing": "images have no caption and train with an empty one.",
        "captions_cut": "captions are longer than the text encoder reads, and cut at their end.",
        "smaller_than_resolution": f"images are smaller than {config.model.resolution} pixels and enlarged.",
        "duplicates_of_test": "training images are in the test split too and are left out.",
    }
    texts += [f"{report[name]} {text}" for name, text in counted.items() if report[name]]
    if report["captions_different"] == 1:
        texts.append("All captions are the same, so no prompt can choose what is shown.")
    return texts


def check_place(out: str | Path, folder: str | Path, force: bool = False) -> Path:
    """Return where a config goes; DasdError, as of `write`, if it may not, before captions take hours."""
    out = Path(out).expanduser()
    if out.resolve().is_relative_to(resolve(folder).resolve()):
        raise DasdError(f"{out} is inside the folder of images, which stays as it is: --out another place.")
    if out.is_dir():
        raise DasdError(f"{out} is a folder: --out names the config file.")
    there = [place for place in (out, extras(out)) if place.exists()]
    if there and not force:
        raise DasdError(f"{there[0]} is there already: name another file by --out, or replace it by --force.")
    return out


def write(proposal: Proposal, out: str | Path, force: bool = False) -> list[Path]:
    """Write the config, and prompts and captions in a folder beside it; return the files, the config first.

    All is there or nothing is new. Raises DasdError for what is there already, unless `force` replaces it,
    and for a place inside the folder of images, which stays as it is.
    """
    out = check_place(out, proposal.folder, force)
    beside, values = extras(out), proposal.values(out)
    Config.from_dict(values)  # a proposal that no command would read is not written
    with (
        files.atomic_write(out, "The config") as config,
        files.atomic_folder(beside, "Prompts and captions") as folder,
    ):
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
        _write_extras(proposal, folder)
    return [out, *sorted(path for path in beside.rglob("*") if path.is_file())]


def _write_extras(proposal: Proposal, folder: Path) -> None:
    name = proposal.entry["name"]
    prompts = {"domain": name, "prompts": proposal.prompts}
    files.write_json(folder / "prompts" / f"{name}.json", prompts, "The prompts")
    files.write_json(folder / "classifier.json", proposal.labelled, "The classifier's prompts", indent=1)
    if proposal.captions.texts:
        (folder / sources.FILE).write_text(caption_lines(proposal.captions), encoding="utf8")
