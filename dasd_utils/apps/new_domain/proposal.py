"""A folder of images becomes a domain: inspected, proposed with what it lacks, written as a config."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers

from dasd_utils import classifier, data
from dasd_utils.apps.new_domain import captions as sources
from dasd_utils.apps.new_domain.captions import Album, Captions, words_of
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig, portable, resolve
from dasd_utils.runtime import files, folders

FEW = 30  # training images below which a model rather learns them by heart
LEAST = {"train": 2, "validation": 1, "test": 2}  # what training and a score with an interval take
ALL = 2**62  # images used: a proposal looks at every one
MANY_PROMPTS, ENOUGH_PROMPTS = 20, 8
WORDINGS = ("an image that shows {}", "here one can see {}", "the picture is of {}", "what it shows is {}")
STOP_WORDS = set(re.findall(r"\w+", """
    a above all an and another are as at be behind beside between but by during each five for four from
    has have image in into is it its many near next no not of on one or other over painting photo
    photograph picture seen several showing shows some that the there these this those three to two
    under very view was what which while who with without
"""))  # fmt: skip


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


def propose(
    name: str, folder: str | Path, config: Config, how: str = "auto", progress: bool = False
) -> Proposal:
    """Look through a folder and return the domain that it could be, on the base of `config`.

    how: where captions come from, see `captions.find_captions`. Raises DasdError for a name that cannot be
    one, images without captions, and too few images to split.
    """
    config.replace(domains=(DomainConfig(name, ".", token=f"<{name}>", initial_word="any"),))  # a wrong name?
    base = files.find_weights(config.model.base, config.model.base_revision)
    tokenizer = base.load(transformers.CLIPTokenizer, "tokenizer")
    if not progress:
        datasets.disable_progress_bars()
    album = sources.open_album(folder, name)
    entry = _plain_entry(name, album)
    load_splits(entry, Captions("none yet", {"caption": ""}), config)  # too few? before a model sees them
    captions = sources.find_captions(album, how, progress)
    entry |= captions.entry
    splits = load_splits(entry, captions, config)
    texts = {split: [c for found in part.captions for c in found if c] for split, part in splits.items()}
    word, why = initial_word(name, texts["train"], tokenizer)
    entry |= {"token": f"<{name.lower()}>", "initial_word": word} | describe(name, word)
    fields = ("guidance_scale", "num_inference_steps", "scheduler")  # until `dasd calibrate` finds better
    entry["calibration"] = _changed(Calibration, {f: getattr(config.evaluation, f) for f in fields})
    heldout = [found[0] for found in splits["test"].captions if found[0]]
    prompts, origin = evaluation_prompts([*texts["train"], *texts["validation"]], heldout)
    others = classifier.load_prompts(config.classifier.prompts)
    report = audit(splits, config, tokenizer, entry["token"])
    return Proposal(
        config.profile, album.folder, entry, captions, prompts,
        labelled=labelled(name, entry["style_suffix"], texts["validation"] or texts["train"], others),
        audit=report,
        reasons={"captions": captions.source, "initial_word": why, "prompts": origin},
        warnings=warnings(report, config),
    )  # fmt: skip


def _plain_entry(name: str, album: Album) -> dict[str, Any]:
    """Return the fields that say where the images are."""
    train = "train" if "train" in album.splits else next(iter(album.splits))
    test = next((s for s in ("test", "validation") if s in album.splits and s != train), None)
    wanted = {"image_column": album.column, "train_split": train, "test_split": test}
    entry = {"name": name, "data": portable(album.folder), **_changed(DomainConfig, wanted)}
    window = folders.find_window(DomainConfig(**entry), album.splits[train])
    return entry | ({"window": list(window)} if window else {})


def _changed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are not the defaults of their fields."""
    return {field: value for field, value in values.items() if value != getattr(kind, field)}


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


def audit(splits: dict[str, data.DomainData], config: Config, tokenizer: Any, token: str) -> dict[str, Any]:
    """Return counts over the three splits of a domain, and what their images and captions are like."""
    parts = list(splits.values())
    domain = dataclasses.replace(parts[0].config, token=token, initial_word="x")  # captions follow the token
    near = config.data.near_duplicate
    reports = [data.audit(dataclasses.replace(part, config=domain), tokenizer, near) for part in parts]
    sizes = np.array([size for part in parts for size in part.sizes])
    sums = ("images", "captions_missing", "captions_cut", "exact_duplicates", "near_duplicates")
    return {
        **{name: sum(report[name] for report in reports) for name in sums},
        **{split: len(part) for split, part in splits.items()},
        "duplicates_of_test": splits["train"].duplicates_of_test,
        "unreadable": sorted({broken for part in parts for broken in part.broken}),
        "captions_different": len({c for part in parts for found in part.captions for c in found if c}),
        "smaller_than_resolution": int((sizes.min(axis=1) < config.model.resolution).sum()),
        "width": [int(f(sizes[:, 0])) for f in (np.min, np.median, np.max)],
        "height": [int(f(sizes[:, 1])) for f in (np.min, np.median, np.max)],
    }


def warnings(report: dict[str, Any], config: Config) -> list[str]:
    """Return what a user should know before training."""
    train, used, unreadable = report["train"], DomainConfig.num_images, report["unreadable"]
    texts = []
    if train < FEW:
        texts.append(f"{train} training images are few: below {FEW} a model rather learns them by heart. "
                     "`--method domainstudio` is made for that.")  # fmt: skip
    if train > used:
        texts.append(f"{used} of {train} training images are used: num_images says how many.")
    if unreadable:
        texts.append(f"{len(unreadable)} images cannot be read and are left out, the first: {unreadable[0]}")
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


# The words of a domain: its token, where that starts, descriptions, and prompts


def initial_word(name: str, captions: Sequence[str], tokenizer: Any) -> tuple[str, str]:
    """Return the word where the token starts, and why: one piece of the tokenizer, so that it has a meaning.

    The name, or a word of it; else the most frequent such word of the captions; else the name's pieces.
    """

    def fits(word: str) -> bool:
        return len(tokenizer.tokenize(word)) == 1 and word not in STOP_WORDS and len(word) > 2

    own = words_of(name).split() or [name.lower()]
    for word in filter(fits, reversed(own)):  # of "chest-radiograph" the last says what it is
        return word, "a word of the name, and one piece of the tokenizer"
    counts = Counter(w for caption in captions for w in set(re.findall(r"[^\W\d_]+", caption.lower())))
    for word in filter(fits, sorted(counts, key=lambda each: (-counts[each], each))):
        why = f"in {counts[word]} of {len(captions)} captions, and one piece of the tokenizer"
        return word, f"{why}; the name {name!r} is {len(tokenizer.tokenize(name))}"
    pieces = len(tokenizer.tokenize(" ".join(own)))
    return " ".join(own), f"the name, {pieces} pieces of the tokenizer: no caption has a word that is one"


def describe(name: str, word: str) -> dict[str, Any]:
    """Return descriptions for the classifier, and what a careful user would add to the base's prompt."""
    own = words_of(name) or name
    style = own if word in own.split() else f"{own} {word}"
    described, styled = (f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in (own, style))
    return {"descriptions": [described, f"a picture in the style of {styled}"], "style_suffix": style}


def evaluation_prompts(known: Sequence[str], heldout: Sequence[str]) -> tuple[list[str], str]:
    """Return up to MANY_PROMPTS captions of held-out images that no training image has, and what they are.

    Where too few are new, as captions of labels or of one sentence are, rewordings join them.
    """
    seen, new = {_normal(caption) for caption in known}, {}
    for caption in heldout:
        if _normal(caption) not in seen:
            new.setdefault(_normal(caption), caption)
    new = list(new.values())[:MANY_PROMPTS]
    different = list(dict.fromkeys(heldout or known))
    reworded = [wording.format(caption) for wording in WORDINGS for caption in different]
    reworded = [text for text in reworded if _normal(text) not in seen]
    more = reworded[: max(ENOUGH_PROMPTS - len(new), 0)]
    origin = [f"{len(new)} captions of held-out images that no training image has"] if new else []
    origin += (
        [f"{len(more)} rewordings of held-out captions, as training images have the same"] if more else []
    )
    return new + more, ", ".join(origin)


def _normal(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))


def labelled(
    name: str, style: str, captions: Sequence[str], others: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return other labelled prompts for the classifier's threshold, and the domain's own behind them.

    A caption that has a word of the style stands as it is; others get the style words behind them.
    """
    own, different = set(style.split()), list(dict.fromkeys(captions))[:MANY_PROMPTS]
    prompts = [c if own & set(_normal(c).split()) else f"{c}, {style}" for c in different]
    kept = [row for row in others if row["domain"] != name]
    return [*kept, *({"prompt": text, "domain": name} for text in prompts)]


# Files


def extras(out: Path) -> Path:
    """Return the folder beside a config file that holds its captions and prompts."""
    return out.with_name(f"{out.stem}_files")


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
    beside, values, name = extras(out), proposal.values(out), proposal.entry["name"]
    Config.from_dict(values)  # a proposal that no command would read is not written
    with (
        files.atomic_write(out, "The config") as config,
        files.atomic_folder(beside, "Prompts and captions") as folder,
    ):
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
        prompts = {"domain": name, "prompts": proposal.prompts}
        files.write_json(folder / "prompts" / f"{name}.json", prompts, "The prompts")
        files.write_json(folder / "classifier.json", proposal.labelled, "The classifier's prompts", indent=1)
        if proposal.captions.texts:
            (folder / sources.FILE).write_text(caption_lines(proposal.captions), encoding="utf8")
    return [out, *sorted(path for path in beside.rglob("*") if path.is_file())]


def caption_lines(captions: Captions) -> str:
    """Return the text of a caption file."""
    rows = ({"file_name": name, "text": text} for name, text in sorted(captions.texts.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
