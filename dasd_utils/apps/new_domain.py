"""A folder of images becomes a domain: looked through, proposed with what it lacks, written as a config."""

import contextlib
import itertools
import json
import re
import shlex
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from dasd_utils import classifier, data
from dasd_utils.config import Config, DasdError, DomainConfig, nearest, portable, resolve
from dasd_utils.runtime import files, folders, images, processes

FILE = "metadata.jsonl"  # of a caption file: the layout `imagefolder` of datasets
CLASSIFIER = "classifier.json"
COLUMNS = ("text", "caption", "captions", "sentence", "sentences", "description", "prompt")
LABELS = ("label", "labels", "class", "category")
CAPTIONER = "Salesforce/blip-image-captioning-base@9cfcdbcaccbcadb2b53b36d4b50042c4eeaa0c25"  # safetensors
BATCH = 8  # images at once through a model
FEW = 30  # training images below which a model rather learns them by heart
LEAST = {"train": 2, "validation": 1, "test": 2}  # what training and a score with an interval take
MANY_PROMPTS, ENOUGH_PROMPTS = 20, 8
WORDINGS = ("an image that shows {}", "here one can see {}", "the picture is of {}", "what it shows is {}")
# what cameras, scanners and programs write into file names: no caption starts or ends with it
CAMERA = set(re.findall(r"\w+", """
    img dsc dscn dscf dji pxl mvimg gopr image images photo picture pic scan scanned screenshot screen
    shot frame file untitled unnamed download copy crop cropped final new tmp sample whatsapp wa jpg
    jpeg png of and
"""))  # fmt: skip
STOP_WORDS = set(re.findall(r"\w+", """
    a above all an and another are as at be behind beside between but by during each five for four from
    has have image in into is it its many near next no not of on one or other over painting photo
    photograph picture seen several showing shows some that the there these this those three to two
    under very view was what which while who with without
"""))  # fmt: skip


@dataclass(frozen=True)
class Captions:
    """Where the captions of a domain come from."""

    source: str  # in words
    entry: dict[str, Any]  # the fields of the domain that say so
    texts: dict[str, str | list[str]] = field(default_factory=dict)  # file -> captions, for a caption file


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
        file = {"caption_file": portable(beside / FILE)} if self.captions.texts else {}
        broken = {"data": {"skip_corrupt": True}} if self.audit["unreadable"] else {}
        return {
            "profile": self.profile,
            "output_dir": f"data/runs/{out.stem}",
            "domains": [self.entry | file],
            **broken,
            "classifier": {"prompts": portable(beside / CLASSIFIER)},
            "evaluation": {"prompts_dir": portable(beside / "prompts")},
        }

    def next_commands(self, out: Path) -> list[str]:
        """Return what to run with the written file: train, generate, evaluate."""
        drawn = ["generate", "--prompt", self.prompts[0], "--domain", self.entry["name"], "--num_images", "4"]
        commands = ["train"], drawn, ["evaluate"]
        return [shlex.join(["dasd", *words, "--config", str(out)]) for words in commands]


def propose(
    name: str, folder: str | Path, config: Config, how: str = "auto", progress: bool = False
) -> Proposal:
    """Look through a folder and return the domain that it could be; how: as of `find_captions`."""
    base = files.find_weights(config.model.base, config.model.base_revision)
    tokenizer = base.load(transformers.CLIPTokenizer, "tokenizer")
    if not progress:
        datasets.disable_progress_bars()
    album = open_album(folder, name)
    train = "train" if "train" in album.splits else next(iter(album.splits))
    test = next((s for s in ("test", "validation") if s in album.splits and s != train), None)
    entry = {"name": name, "data": portable(album.folder), "token": f"<{name.lower()}>", "initial_word": name}
    wanted = {"image_column": album.column, "train_split": train, "test_split": test}
    entry |= {field: value for field, value in wanted.items() if value != getattr(DomainConfig, field)}
    window = folders.find_window(DomainConfig(**entry), album.splits[train])
    entry |= {"window": list(window)} if window else {}
    load_splits(entry, Captions("none yet", {"caption": ""}), config)  # too few? before a model sees them
    captions = find_captions(album, how, progress)
    entry |= captions.entry
    splits = load_splits(entry, captions, config)
    texts = {split: [c for found in part.captions for c in found if c] for split, part in splits.items()}
    entry["initial_word"], why = initial_word(name, texts["train"], tokenizer)
    entry |= describe(name, entry["initial_word"])
    fields = ("guidance_scale", "num_inference_steps", "scheduler")  # until `dasd calibrate` finds better
    entry["calibration"] = {field: getattr(config.evaluation, field) for field in fields}
    heldout = [found[0] for found in splits["test"].captions if found[0]]
    prompts, origin = evaluation_prompts([*texts["train"], *texts["validation"]], heldout)
    others = classifier.load_prompts(config.classifier.prompts)
    report = audit(splits, config, tokenizer)
    unused = [f"{len(rows)} images of {s}" for s, rows in album.splits.items() if s not in (train, test)]
    return Proposal(
        config.profile, album.folder, entry, captions, prompts,
        labelled=labelled(name, entry["style_suffix"], texts["validation"] or texts["train"], others),
        audit=report,
        reasons={"captions": captions.source, "initial_word": why, "prompts": origin},
        warnings=warnings(report, config, unused),
    )  # fmt: skip


def load_splits(entry: dict[str, Any], captions: Captions, config: Config) -> dict[str, data.DomainData]:
    """Return the three splits with these captions; DasdError, with the counts, for too few images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_text(caption_lines(captions), encoding="utf8")
        file = {"caption_file": str(path)} if captions.texts else {}
        domain = DomainConfig(**entry | captions.entry | file, num_images=2**62)  # all of them
        wanted = config.replace(domains=(domain,), skip_corrupt=True)
        splits = {split: data.load_domain(domain, wanted, split) for split in data.SPLITS}
    counts = {split: len(part) for split, part in splits.items()}
    if any(counts[split] < least for split, least in LEAST.items()):
        raise DasdError(f"{domain.data} has too few images to split: {counts} where {LEAST} are the least. "
                        "Add images, fifteen or more, or a folder test/ beside train/.")  # fmt: skip
    return splits


def audit(splits: dict[str, data.DomainData], config: Config, tokenizer: Any) -> dict[str, Any]:
    """Return counts over the three splits of a domain, and what their images and captions are like."""
    parts = list(splits.values())
    reports = [data.audit(part, tokenizer, config.data.near_duplicate) for part in parts]
    sizes = [size for part in parts for size in part.sizes]
    sums = ("images", "captions_missing", "captions_cut", "exact_duplicates", "near_duplicates")
    return {
        **{name: sum(report[name] for report in reports) for name in sums},
        **{split: len(part) for split, part in splits.items()},
        "duplicates_of_test": splits["train"].duplicates_of_test,
        "unreadable": sorted({broken for part in parts for broken in part.broken}),
        "captions_different": len({c for part in parts for found in part.captions for c in found if c}),
        "smaller_than_resolution": sum(min(size) < config.model.resolution for size in sizes),
        **{
            side: [int(f(pixels)) for f in (min, statistics.median, max)]
            for side, pixels in zip(("width", "height"), zip(*sizes, strict=True), strict=True)
        },
    }


def warnings(report: dict[str, Any], config: Config, unused: Sequence[str] = ()) -> list[str]:
    """Return what a user should know before training."""
    train, used, size = report["train"], DomainConfig.num_images, config.model.resolution
    missing, cut, small = (report[k] for k in ("captions_missing", "captions_cut", "smaller_than_resolution"))
    unreadable, copies = report["unreadable"], report["duplicates_of_test"]
    found = {
        f"{train} training images are few: `--method domainstudio` is made for below {FEW}.": train < FEW,
        f"{used} of {train} training images are used: num_images says how many.": train > used,
        f"{len(unreadable)} images cannot be read and are left out: {', '.join(unreadable[:1])}": unreadable,
        f"{' and '.join(unused)} are not used: validation images are held out from the train split.": unused,
        f"{missing} images have no caption and train with an empty one.": missing,
        f"{cut} captions are longer than the text encoder reads, and cut at their end.": cut,
        f"{small} images are smaller than {size} pixels and enlarged.": small,
        f"{copies} training images are in the test split too and are left out.": copies,
        "All captions are the same: no prompt can choose what is shown.": report["captions_different"] == 1,
    }
    return [text for text, is_so in found.items() if is_so]


# Where captions come from
@dataclass(frozen=True)
class Album:
    """A folder's rows by split, the column that holds the images, and their files."""

    folder: Path
    splits: dict[str, datasets.Dataset]
    column: str

    @property
    def features(self) -> dict[str, Any]:
        """Return name -> kind of the columns beside the image."""
        rows = next(iter(self.splits.values()))
        return {name: kind for name, kind in rows.features.items() if name != self.column}

    def files(self) -> list[str]:
        """Return the file of every image relative to the folder; DasdError where they are no files."""
        named = (folders.files_of_rows(rows, self.column, self.folder) for rows in self.splits.values())
        return list(itertools.chain(*named))


def open_album(folder: str | Path, name: str = "new") -> Album:
    """Return a folder's rows; DasdError if it is none, or holds no images."""
    place = resolve(folder)
    if not place.is_dir():
        raise DasdError(f"There is no folder {place}: name the one that holds the images.")
    splits = folders.open_folder(DomainConfig(name, str(place)), place)
    features = next(iter(splits.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DasdError(f"{place} has no column of images, bytes or file names: {', '.join(features)}.")
    return Album(place, splits, columns[0])


def find_captions(album: Album, how: str = "auto", progress: bool = False) -> Captions:
    """Return a folder's captions; how: "auto", one of SOURCES, a model, a sentence, or one with {label}."""
    if how == "auto" or how in SOURCES:
        missing = []
        for name in SOURCES if how == "auto" else [how]:
            try:
                return SOURCES[name](album)
            except folders.NoCaptionsError as error:
                missing.append(f"{name}: {str(error).rstrip('.')}")
        raise DasdError(f"{album.folder} has no captions ({'; '.join(missing)}). Give one sentence for all "
                        f'(--captions "a pencil sketch"), a captioning model (--captions {CAPTIONER}), or a '
                        f'{FILE} of lines {{"file_name": "1.png", "text": "..."}}.')  # fmt: skip
    if "{label}" in how:
        return from_labels(album, how)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+(@\w+)?", how) or (how and resolve(how).is_dir()):
        return from_model(album, how, progress=progress)
    if " " not in how.strip():
        known = nearest(how, ("auto", *SOURCES))
        raise DasdError(f"--captions is {how!r}. {known} Or give a sentence, or a captioning model.")
    return Captions("one sentence for all", {"caption": how.strip()})


def from_metadata(album: Album) -> Captions:
    """Return the caption column of the folder's metadata; DasdError if none has sentences."""
    kinds = {name: getattr(kind, "feature", kind) for name, kind in album.features.items()}  # also of lists
    kinds = {name: getattr(kind, "dtype", type(kind).__name__) for name, kind in kinds.items()}
    names = {name.lower(): name for name in kinds}
    for column in (names[name] for name in COLUMNS if name in names):
        if kinds[column].endswith("string") and any(any(rows[column]) for rows in album.splits.values()):
            return Captions(f"the column {column!r} of its metadata", {"caption_column": column})
    known = ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items()) or "none"
    raise folders.NoCaptionsError(f"no metadata with sentences in {', '.join(COLUMNS)} (columns: {known})")


def from_sidecars(album: Album) -> Captions:
    """Return the texts beside the images (`house.txt` of `house.png`), a caption a line, of most of them."""
    texts, suffixes = {}, (".txt", ".caption")
    paths = {str(path).casefold(): path for path in folders.find_files(album.folder)[0]}
    for name in album.files():
        image = album.folder / name
        stems = (image.with_suffix(""), image)
        places = [paths.get(f"{stem}{suffix}".casefold()) for stem in stems for suffix in suffixes]
        beside = next(filter(None, places), None)
        lines = files.read_text(beside, "The caption").splitlines() if beside else []
        found = [" ".join(line.split()) for line in lines if line.strip()]
        texts[name] = found if len(found) > 1 else "".join(found)
    return _caption_most("text files beside the images", texts, f"text files ({', '.join(suffixes)})")


def from_names(album: Album) -> Captions:
    """Return what the file names say; DasdError unless most say something."""
    texts = {name: words_of(Path(name).stem) for name in album.files()}
    return _caption_most("the file names", texts, f"file names with words (like {next(iter(texts))!r})")


def _caption_most(source: str, texts: dict[str, str | list[str]], what: str) -> Captions:
    found = {name: text for name, text in texts.items() if text}
    if 2 * len(found) < len(texts):
        raise folders.NoCaptionsError(f"{what} for {len(found)} of {len(texts)} images only")
    return Captions(source, {}, found)


def words_of(name: str, is_label: bool = False) -> str:
    """Return a name's words in lower case, "" for a number or a hash; of a file not what cameras add.

    >>> words_of("red-house_by the sea-003"), words_of("IMG_0032"), words_of("Stage_3", is_label=True)
    ('red house by the sea', '', 'stage 3')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z]{2})(?=\d+(?:$|[\W_]))", " ", name)  # aB, dog01
    words = re.sub(r"[^\w']|_", " ", spaced).lower().split()
    words = [w for w in words if w.isdigit() or not re.search(r"\d", w)]  # both kinds mixed: a hash
    words = [w for w in words if not re.fullmatch(r"[0-9a-f]{8,}", w)]
    meaningful = [place for place, w in enumerate(words) if not w.isdigit() and (is_label or w not in CAMERA)]
    if not any(len(words[place]) > 1 for place in meaningful):
        return ""
    return " ".join(words[meaningful[0] : None if is_label else meaningful[-1] + 1])


def from_labels(album: Album, sentence: str | None = None) -> Captions:
    """Return a table from each label, or subfolder, to a caption: "a dog", or a sentence with {label}."""
    column = next((name for name in album.features if name.lower() in LABELS), None)
    splits = album.splits.values() if column else ()
    found = {label for rows in splits for label in data.label_names(rows, column)}
    labels = sorted(found - {""})
    if len(labels) < 2:  # a folder of splits alone may have one, its own name
        raise folders.NoCaptionsError("no subfolders and no label column with two or more labels")
    if wordless := [label for label in labels if not words_of(label, is_label=True)]:
        raise folders.NoCaptionsError(f"the label {wordless[0]!r} is no word: write its label_captions")
    table = {label: _with_label(sentence, label) for label in labels}
    [(caption, count)] = Counter(table.values()).most_common(1)
    if count > 1:
        alike = ", ".join(label for label in labels if table[label] == caption)
        raise DasdError(f"The labels {alike} get one caption, {caption!r}: rename, or write label_captions.")
    table |= {"": ""} if "" in found else {}  # no label, no caption
    where = f"{len(labels)} labels of the column or subfolders {column!r}"
    return Captions(where, {"label_column": column, "label_captions": table})


def _with_label(sentence: str | None, label: str) -> str:
    """Return the sentence, or "a dog", for a label, or for several in one text ("dog, cat" or "dog|cat")."""
    word = " and ".join(filter(None, (words_of(each, is_label=True) for each in re.split("[,;|]", label))))
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is"))
    sentence = sentence or ("{label}" if plural else "a {label}")
    if word[0] in "aeiou":
        sentence = re.sub(r"\ba(?= \{label\})", "an", sentence)
    return sentence.replace("{label}", word)


# in the order of `auto`
SOURCES = {"metadata": from_metadata, "sidecars": from_sidecars, "labels": from_labels, "names": from_names}


@torch.no_grad()
def from_model(album: Album, name: str, progress: bool = False) -> Captions:
    """Return a caption of each readable image by a model like BLIP: a folder, or a hub id, or id@commit."""
    names, texts = album.files(), {}
    base, _, revision = name.partition("@")
    source = files.find_weights(base, revision or None)
    model = source.load(transformers.AutoModelForImageTextToText, use_safetensors=True, dtype=torch.float32)
    processor = source.load(transformers.AutoProcessor)
    model.to(processes.default_device()).eval()
    for start in files.bar(range(0, len(names), BATCH), "captions", shown=progress, unit="batch"):
        pictures = {}
        for file in names[start : start + BATCH]:
            with contextlib.suppress(DasdError):  # the audit counts what cannot be read
                pictures[file] = images.open_file(album.folder / file)
        if not pictures:
            continue
        try:
            inputs = processor(images=list(pictures.values()), return_tensors="pt").to(model.device)
            tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
            found = processor.batch_decode(tokens, skip_special_tokens=True)
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # it wants a chat, or other inputs
            raise DasdError(f"The model {name!r} does not caption images by themselves: {error}. Name one "
                            f"that does, like {CAPTIONER}.") from error  # fmt: skip
        texts |= dict(zip(pictures, (" ".join(text.split()) for text in found), strict=True))
    return Captions(f"the model {name}", {}, {file: text for file, text in texts.items() if text})


# The words of a domain: its token, where that starts, descriptions, and prompts
def initial_word(name: str, captions: Sequence[str], tokenizer: Any) -> tuple[str, str]:
    """Return where the token starts, and why: a word of name or captions that is one piece, else the name."""

    def fits(word: str) -> bool:
        return len(tokenizer.tokenize(word)) == 1 and word not in STOP_WORDS and len(word) > 2

    own = words_of(name).split() or [name.lower()]
    for word in filter(fits, reversed(own)):  # of "chest-radiograph" the last says what it is
        return word, "a word of the name, and one piece of the tokenizer"
    counts = Counter(w for caption in captions for w in set(re.findall(r"[^\W\d_]+", caption.lower())))
    for word in filter(fits, sorted(counts, key=lambda each: (-counts[each], each))):
        return word, f"in {counts[word]} of {len(captions)} captions, and one piece of the tokenizer"
    return " ".join(own), "the name, in several pieces of the tokenizer: no caption has a word that is one"


def describe(name: str, word: str) -> dict[str, Any]:
    """Return descriptions for the classifier, and what a careful user would add to the base's prompt."""
    own = words_of(name) or name
    style = own if word in own.split() else f"{own} {word}"
    described, styled = (f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in (own, style))
    return {"descriptions": [described, f"a picture in the style of {styled}"], "style_suffix": style}


def evaluation_prompts(known: Sequence[str], heldout: Sequence[str]) -> tuple[list[str], str]:
    """Return up to MANY_PROMPTS held-out captions that are new, reworded where few are, and what they are."""
    seen = {_normal(caption) for caption in known}
    new: dict[str, str] = {}
    for caption in heldout:
        if _normal(caption) not in seen:
            new.setdefault(_normal(caption), caption)
    fresh = list(new.values())[:MANY_PROMPTS]
    different = list(dict.fromkeys(heldout or known))
    reworded = [wording.format(caption) for wording in WORDINGS for caption in different]
    more = [text for text in reworded if _normal(text) not in seen][: max(ENOUGH_PROMPTS - len(fresh), 0)]
    origin = f"{len(fresh)} captions of held-out images that no training image has, {len(more)} rewordings"
    return fresh + more, origin


def _normal(caption: str) -> str:
    return " ".join(re.findall(r"\w+", caption.casefold()))


def labelled(name: str, style: str, captions: Sequence[str], others: Sequence[dict]) -> list[dict[str, Any]]:
    """Return the classifier's other prompts, and this domain's captions, with its style if they lack it."""
    own = {*style.split()} - STOP_WORDS
    different = list(dict.fromkeys(captions))[:MANY_PROMPTS]
    prompts = [c if {*style.split()} & {*_normal(c).split()} else f"{c}, {style}" for c in different]
    kept = [row for row in others if row["domain"] != name]
    # prompts of no domain that have a word of the style belong to this one now
    kept = [row for row in kept if row["domain"] or not own & {*_normal(row["prompt"]).split()}]
    return [*kept, *({"prompt": text, "domain": name} for text in prompts)]


def extras(out: Path) -> Path:
    """Return the folder beside a config file that holds its captions and prompts."""
    return out.with_name(f"{out.stem}_files")


def check_place(out: str | Path, folder: str | Path, force: bool = False) -> Path:
    """Return where a config goes; DasdError, as of `write`, if it may not, before captions take hours."""
    out = Path(out).expanduser()
    beside, pictures = extras(out).resolve(), resolve(folder).resolve()
    if out.resolve().is_relative_to(pictures) or pictures.is_relative_to(beside):
        raise DasdError(f"{out} and {beside.name} would be in the folder of images, or hold it. It stays as "
                        "it is: --out another place.")  # fmt: skip
    if out.is_dir():
        raise DasdError(f"{out} is a folder: --out names the config file.")
    if others := {p.name for p in beside.glob("[!.]*")} - {FILE, CLASSIFIER, "prompts"}:
        raise DasdError(f"{beside} holds other files ({min(others)}): name another file by --out.")
    if not force and (there := [str(place) for place in (out, extras(out)) if place.exists()]):
        raise DasdError(f"{' and '.join(there)} would be replaced: name another file by --out, or --force.")
    return out


def write(proposal: Proposal, out: str | Path, force: bool = False) -> list[Path]:
    """Write the config, and prompts and captions beside it, all or nothing; return the files, it first."""
    out = check_place(out, proposal.folder, force)
    beside, values, name = extras(out), proposal.values(out), proposal.entry["name"]
    Config.from_dict(values)  # a proposal that no command would read is not written
    with files.atomic_write(out, "The config") as file, files.atomic_folder(beside, "The prompts") as folder:
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
        prompts = {"domain": name, "prompts": proposal.prompts}
        files.write_json(folder / "prompts" / f"{name}.json", prompts, "The prompts")
        files.write_json(folder / CLASSIFIER, proposal.labelled, "The classifier's prompts", indent=1)
        if proposal.captions.texts:
            (folder / FILE).write_text(caption_lines(proposal.captions), encoding="utf8")
    return [out, *sorted(path for path in beside.rglob("*") if path.is_file())]


def caption_lines(captions: Captions) -> str:
    """Return the text of a caption file."""
    rows = ({"file_name": name, "text": text} for name, text in sorted(captions.texts.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
