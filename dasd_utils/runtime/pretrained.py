"""Find pretrained weights in a folder, on the hub or in its cache; errors name the places searched."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import constants
from torch import nn

from dasd_utils.config import DasdError, check_no_hub_id, is_pinned, resolve
from dasd_utils.runtime import files

transformers.logging.disable_progress_bar()  # a bar per loaded part says nothing; downloads keep theirs
huggingface_hub.utils.enable_progress_bars()
log = logging.getLogger(__name__)
# PIL's gives the same pixels with and without torchvision; early versions of transformers 5 know it by the
# plain name, which later is torchvision's
CLIP_PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


@dataclass(frozen=True)
class Source:
    """A folder or a hub repository that models are loaded from."""

    name: str  # as in the config
    revision: str | None = None
    variant: str | None = None
    folder: Path | None = None  # None: on the hub
    unreachable: str = ""  # why the hub cannot be reached; its cache may still have the files

    def load(self, kind: Any, part: str = "", **options: Any) -> Any:
        """Return `kind.from_pretrained` of the part (a subfolder), or raise DasdError.

        A module is float32 if no dtype is named: transformers would else take that of the file, and float16
        is several times slower on a CPU.
        """
        where = self.name if self.folder is None else str(self.folder)
        if part:
            options["subfolder"] = part
        is_module = isinstance(kind, type) and issubclass(kind, nn.Module)
        if is_module:
            options.setdefault("dtype", torch.float32)
        if self.folder is not None and is_module:
            options["use_safetensors"] = True  # transformers would else take a pickle where there is no other
        try:
            return kind.from_pretrained(
                where, revision=self.revision, local_files_only=bool(self.unreachable), **options
            )
        except Exception as error:  # each library below has its own kinds
            if self.folder is None and not self.unreachable:
                place, advice = Path(constants.HF_HUB_CACHE), "Set HF_HOME to a folder that can be written."
                files.check_writable(place, "The cache of the hub", advice)
            revision = self.revision or "main"
            version = f"revision {revision}, variant {self.variant or 'none'}"
            what = f"The {part or kind.__name__} of {self.name!r} ({version}) cannot be loaded"
            reason = self.unreachable or files.first_line(error)
            if self.folder is not None:
                raise DasdError(f"{what} from {self.folder}: {reason}. Check its files, or the "
                                "variant.") from error  # fmt: skip
            raise DasdError(
                f"{what}: there is no folder {resolve(self.name)}, and neither the hub "
                f"({constants.ENDPOINT}) nor its cache ({constants.HF_HUB_CACHE}) has it: {reason}. Fetch it "
                f"once with network (`hf download {self.name} --revision {revision}`), or name a local "
                "folder, or use the tiny profile."
            ) from error


def find_weights(name: str, revision: str | None = None, variant: str | None = None) -> Source:
    """Return where the weights of that name are: the folder if there is one, else the hub.

    Raises DasdError if the name is neither a folder nor a hub id.
    """
    folder = resolve(name)
    if folder.is_dir():
        return Source(name, revision, variant, folder)
    check_no_hub_id(name)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise DasdError(f"{name!r} is not there: no folder {folder}. Name a folder in the layout of "
                        f"diffusers or transformers, or a hub id like 'owner/name'.")  # fmt: skip
    if not is_pinned(revision):
        log.warning("The model %s is read at revision %s, which may hold other files tomorrow. Pin it to a "
                    "commit hash: base_revision, clip_revision, or NAME@HASH of a captioning model.", name,
                    revision or "main")  # fmt: skip
    try:  # one request: without network that for each file would retry for half a minute
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=10)
    except Exception as error:  # offline mode, no network, no such repository, no permission
        return Source(name, revision, variant, unreachable=files.first_line(error))
    return Source(name, revision, variant)
