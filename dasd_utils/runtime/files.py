"""Files that are complete or not there at all, lists on disk, weights, locks of processes, progress bars."""

import array
import codecs
import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import operator
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, Self

import filelock
import huggingface_hub
import numpy as np
import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm

from dasd_utils.config import Config, DasdError, is_pinned, read_json, resolve

transformers.logging.disable_progress_bar()  # a bar per loaded part says nothing; downloads keep theirs
huggingface_hub.utils.enable_progress_bars()
# variables that JupyterLab, VS Code and Voilà give their kernels; Colab's have google.colab loaded
SERVERS = {"JPY_SESSION_NAME", "VSCODE_PID", "VOILA_BASE_URL"}
log = logging.getLogger(__name__)
say_once = functools.cache(log.warning)
HUB_ID = r"\w[\w.-]*/[\w.-]+"


def read_text(path: Path, what: str) -> str:
    """Return the text of a UTF-8 or UTF-16 file without byte order mark; DasdError if it cannot be read."""
    try:
        is_wide = path.read_bytes()[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = path.read_text(encoding="utf-16" if is_wide else "utf-8-sig")
        if "\0" in text.rstrip("\0"):  # UTF-16 without its mark, or no text; a power cut leaves them last
            raise UnicodeError
        return text
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None)
        reason = reason or "it is neither UTF-8 nor UTF-16 with its mark; save it as UTF-8"
        raise DasdError(f"{what} cannot be read from {path}: {reason}.") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file; DasdError as of `read_json`, and for any other value."""
    values = read_json(path, what)
    if not isinstance(values, dict):
        raise DasdError(f"{path} holds no JSON object.")
    return values


def write_json(path: Path, value: Any, what: str, indent: int | None = 2) -> None:
    """Write a value as a JSON file by `atomic_write`."""
    with atomic_write(path, what) as temporary:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf8")


def check_writable(folder: Path, what: str, advice: str) -> Path:
    """Return the folder, made if need be; DasdError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DasdError(f"{what} {folder} cannot be written: {error.strerror}. {advice}") from None
    return folder


def output_folder(output_dir: str | Path) -> Path:
    """Return the run's folder, made if need be; DasdError if nothing can be written there."""
    return check_writable(resolve(output_dir), "The output folder", "Set output_dir to another one.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop; its class where it says nothing."""
    if "while generating the dataset" in str(error) and error.__cause__:  # of `datasets`, which says no more
        return first_line(error.__cause__)
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def short_hash(value: Any, digits: int = 12) -> str:
    """Return hexadecimal digits of the SHA-256 of a value as JSON: a file name of all that decides a file."""
    text = json.dumps(value, sort_keys=True, default=lambda v: list(v) if isinstance(v, Lazy) else str(v))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as names with dots; lists of objects by their places, other lists as they are."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextlib.contextmanager
def atomic_write(path: Path, what: str) -> Iterator[Path]:
    """Yield the path for a new file that takes the place of `path` at the end of the `with`.

    After an error inside, what was at `path` stays. An OSError becomes a DasdError that names `what`.
    """
    with _folder_beside(path, what) as folder:
        new = folder / "new"
        yield new
        sync(new)
        new.replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path, what: str) -> Iterator[Path]:
    """Yield a new empty folder that takes the place of `path`, whatever it held, as `atomic_write` does."""
    with _folder_beside(path, what) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


def sync(path: Path) -> None:
    """Have a file or folder written to the disk, so that at a power cut no rename overtakes its content."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _folder_beside(path: Path, what: str) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `path`, where a rename is all or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"dir": path.parent, "prefix": f".{path.name}-", "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**options) as folder:
            yield Path(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DasdError(f"{what} cannot be written to {path}: {reason}.") from None


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether this process has the lock file inside the `with`; it does not wait for another's.

    The system ends a lock with its process. Where a file system has no locks it warns, and yields True.
    """
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)  # a soft one outlives a killed process
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:  # no reason not to work
        log.warning("%s cannot be locked: %s. See to it that one process works there.", path, error)
    try:
        yield True
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # where an open file cannot be removed
                path.unlink(missing_ok=True)
            lock.release()


# pretrained weights
def address() -> str:
    """Return where the repository is published."""
    return dict(line.split(", ", 1) for line in metadata("dasd-utils").get_all("Project-URL"))["Repository"]


def check_no_hub_id(name: str) -> None:
    """Raise DasdError for a missing name in data/: it is a folder of the repository, no owner on the hub."""
    if Path(name).parts[:1] == ("data",):
        raise DasdError(f"{resolve(name)} is not there, and data/ is never looked for on the hub. What the "
                        f"repository has comes by `git clone {address()}`.")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A folder or a hub repository that models are loaded from."""

    name: str  # as in the config
    revision: str | None = None
    variant: str | None = None
    folder: Path | None = None  # None: on the hub
    unreachable: str = ""  # why the hub cannot be reached; its cache may still have the files

    def load(self, kind: Any, part: str = "", **options: Any) -> Any:
        """Return `kind.from_pretrained` of the part (a subfolder), in float32 if no dtype is named."""
        where = self.name if self.folder is None else str(self.folder)
        if part:
            options["subfolder"] = part
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            # transformers would else take the file's, and float16 is several times slower on a CPU
            options.setdefault("dtype", torch.float32)
            if self.folder is not None:
                options["use_safetensors"] = True  # else a pickle where there is no other file
        try:
            return kind.from_pretrained(
                where, revision=self.revision, local_files_only=bool(self.unreachable), **options
            )
        except Exception as error:  # each library below has its own kinds
            if self.folder is None and not self.unreachable:
                place, advice = Path(constants.HF_HUB_CACHE), "Set HF_HOME to a folder that can be written."
                check_writable(place, "The cache of the hub", advice)
            raise DasdError(self._why(part or kind.__name__, error)) from error

    def _why(self, part: str, error: Exception) -> str:
        revision = self.revision or "main"
        what = f"The {part} of {self.name!r} (revision {revision}, variant {self.variant or 'none'})"
        reason = self.unreachable or first_line(error)
        if self.folder is not None:
            return f"{what} cannot be loaded from {self.folder}: {reason}. Check its files, or the variant."
        return (
            f"{what} cannot be loaded: there is no folder {resolve(self.name)}, and neither the hub "
            f"({constants.ENDPOINT}) nor its cache ({constants.HF_HUB_CACHE}) has it: {reason}. Fetch it "
            f"once with network (`hf download {self.name} --revision {revision}`), or name a local folder, "
            "or use the tiny profile."
        )


def find_folder(name: str) -> Path | None:
    """Return the folder of that name, else None; name a folder that hides a repository of the hub."""
    folder = resolve(name)
    if not folder.is_dir():
        return None
    if re.fullmatch(HUB_ID, name) and Path(name).parts[0] != "data":
        say_once(f"{name} is read from the folder {folder}, not from the hub.")
    return folder


def find_adapter(name: str | Path) -> Path:
    """Return the folder of a run or adapter, also a missing one, or of one on the hub: owner/name@commit."""
    place, _, revision = str(name).partition("@")
    if resolve(name).exists() or not re.fullmatch(HUB_ID, place) or Path(place).parts[0] == "data":
        return resolve(name)
    try:
        wanted = {"revision": revision or None, "allow_patterns": ["*.safetensors", "*.json"]}
        return Path(huggingface_hub.snapshot_download(place, **wanted))
    except Exception as error:  # no network, no such repository, no permission
        raise DasdError(f"There is no folder {resolve(name)}, and the hub ({constants.ENDPOINT}) has no "
                        f"adapter of that name for us: {first_line(error)}.") from error  # fmt: skip


def find_weights(name: str, revision: str | None = None, variant: str | None = None) -> Source:
    """Return where weights are, a folder or else the hub; DasdError for neither a folder nor a hub id."""
    if folder := find_folder(name):
        return Source(name, revision, variant, folder)
    check_no_hub_id(name)
    if not re.fullmatch(HUB_ID, name):
        raise DasdError(f"{name!r} is not there: no folder {resolve(name)}. Name a folder in the layout of "
                        "diffusers or transformers, or a hub id like 'owner/name'.")  # fmt: skip
    if not is_pinned(revision):
        log.warning("The model %s is read at revision %s, which may hold other files tomorrow. Pin it to a "
                    "commit hash: base_revision, clip_revision, or NAME@HASH of a captioning model.", name,
                    revision or "main")  # fmt: skip
    try:  # one request: without network that for each file would retry for half a minute
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:  # offline mode, no network, no such repository, no permission
        return Source(name, revision, variant, unreachable=first_line(error))
    return Source(name, revision, variant)


def load_clip(config: Config) -> tuple[Any, ...]:
    """Return the CLIP model of `config.model.clip`, its tokenizer and its image processor."""
    source = find_weights(config.model.clip, config.model.clip_revision)
    # PIL's gives the same pixels with and without torchvision, whose the plain name later is; early versions
    # of transformers 5 know PIL's by that name
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return tuple(map(source.load, (transformers.CLIPModel, transformers.CLIPTokenizer, processor)))


@torch.no_grad()
def embed_texts(clip: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Return unit-norm CLIP features (n, d), fp32 on the CPU; longer texts are cut at the model's length."""
    length = min(tokenizer.model_max_length, clip.config.text_config.max_position_embeddings)
    settings = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
    features = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]), **settings).to(clip.device)
        pooled = clip.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        features.append(clip.text_projection(pooled).float().cpu())
    return nn.functional.normalize(torch.cat(features), dim=-1)


# lists of any length: in memory is what is being read


class Lazy(Sequence):
    """Items 0 to count - 1, each made by `read(index)` at every access; equal to a list of the same items."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read = read
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int | slice) -> Any:
        found = self._places[index]
        return self._read(found) if isinstance(found, int) else [self._read(place) for place in found]

    def __eq__(self, other: object) -> bool:
        is_list = isinstance(other, Sequence) and not isinstance(other, str)
        return is_list and len(self) == len(other) and all(map(operator.eq, self, other))


class DiskArray:
    """Bytes, or arrays of bytes, in a temporary file; an index returns a copy and keeps nothing in memory."""

    def __init__(self, shape: tuple[int, ...] = (), items: Iterable[bytes | np.ndarray] = ()) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it goes with the last array that reads it
        self._shape = shape  # of an item
        self._count = 0
        self._rows: np.ndarray | None = None  # those of `take`
        for item in items:
            self.append(item)

    def append(self, items: bytes | np.ndarray) -> int:
        """Write one item or several; return how many there are now. DasdError if the disk is full."""
        try:
            self._count += self._file.write(bytes(items)) // math.prod(self._shape)
            self._file.flush()
        except OSError as error:
            place = tempfile.gettempdir()
            raise DasdError(
                f"The temporary folder {place}: {error.strerror}. Set TMPDIR to another."
            ) from None
        return self._count

    def take(self, rows: np.ndarray) -> Self:
        """Return some rows of the same file, in this order."""
        found = copy.copy(self)
        found._rows = np.asarray(rows) if self._rows is None else self._rows[rows]
        return found

    def __len__(self) -> int:
        return self._count if self._rows is None else len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the number of items, and the shape of each."""
        return len(self), *self._shape

    def __getitem__(self, index: Any) -> np.ndarray:
        stored = np.memmap(self._file, np.uint8, "r", shape=(self._count, *self._shape))
        return np.array(stored[index if self._rows is None else self._rows[index]])


def on_disk(items: Iterable[Any]) -> Lazy:
    """Write what JSON can hold to a temporary file; return it as a list that is read at each access."""
    stored = DiskArray()
    ends = array.array("q", [0])
    ends.extend(stored.append(json.dumps(item).encode()) for item in items)
    return Lazy(lambda i: json.loads(stored[ends[i] : ends[i + 1]].tobytes()), len(ends) - 1)


def bar(
    things: Iterable[Any] | None = None,
    what: str | None = None,
    total: int | None = None,
    *,
    shown: bool = True,
    unit: str = "it",
    **options: Any,
) -> tqdm:
    """Return a tqdm bar over things, or one of `total` moved by `update`, on standard error if watched."""
    style = {"dynamic_ncols": True, "unit": f" {unit}", "smoothing": 0.1}
    return tqdm(things, what, total, disable=not (shown and is_watched()), **style | options)


def short_bar(*things: Any, **options: Any) -> tqdm:
    """Return a `bar` for a part of a longer step: it appears after two seconds and leaves no line."""
    return bar(*things, delay=2.0, leave=False, **options)


def is_watched() -> bool:
    """Return whether somebody would see a bar: in the first process, on a terminal or in a live notebook."""
    terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
    return (terminal or ("ipykernel" in sys.modules and is_live())) and int(os.environ.get("RANK", 0)) == 0


def is_live() -> bool:
    """Return whether a person sits in front of this kernel: not in papermill, nbval and nbconvert."""
    return bool(os.environ.keys() & SERVERS) or "google.colab" in sys.modules
