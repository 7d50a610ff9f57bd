"""pretrained.py: a folder, the hub or its cache, and a quick answer where there is no network."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dasd_utils import config, evaluation, models
from dasd_utils.config import Config, DasdError
from dasd_utils.papers.diffusionclip import objective
from dasd_utils.runtime import folders, pretrained

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Recorder:
    """Stands for a class of models: keeps what `from_pretrained` was asked."""

    def __init__(self, error=None):
        self.error, self.asked = error, None

    def from_pretrained(self, where, **options):
        self.asked = (where, options)
        if self.error:
            raise self.error
        return "model"


def hub(monkeypatch, error=None):
    """Let the hub's one answer be this error, or none; return the list of questions."""
    questions = []

    def model_info(self, name, revision=None, timeout=None):
        questions.append((name, revision))
        if error:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return questions


def test_a_folder_comes_first_and_the_hub_is_not_asked(base_dir, monkeypatch):
    questions = hub(monkeypatch)
    source = pretrained.find_weights(str(base_dir), revision="main")
    assert source.folder == base_dir and questions == []
    assert isinstance(source.load(UNet2DConditionModel, "unet"), UNet2DConditionModel)


def test_a_reachable_hub_is_asked_once_and_loaded_from(monkeypatch):
    questions, kind = hub(monkeypatch), Recorder()
    source = pretrained.find_weights("owner/name", "abc", "fp16")
    assert source.load(kind, "unet", variant="fp16") == "model" and questions == [("owner/name", "abc")]
    options = {"revision": "abc", "local_files_only": False, "variant": "fp16", "subfolder": "unet"}
    assert kind.asked == ("owner/name", options)


def test_without_network_only_the_cache_is_read(monkeypatch):
    hub(monkeypatch, ConnectionError("no route to host"))
    kind = Recorder()
    pretrained.find_weights("owner/name").load(kind)
    assert kind.asked == ("owner/name", {"revision": None, "local_files_only": True})
    with pytest.raises(DasdError) as failure:
        pretrained.find_weights("owner/name", "abc").load(Recorder(OSError("not cached")), "vae")
    for part in ("The vae of 'owner/name'", "revision abc", "no route to host", "hf download owner/name"):
        assert part in str(failure.value)


def test_a_cached_repository_needs_no_network(base_dir, tmp_path, monkeypatch):
    hub(monkeypatch, ConnectionError("no route to host"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(base_dir / "unet", tmp_path / "models--owner--name" / "snapshots" / REVISION / "unet")
    unet = pretrained.find_weights("owner/name", REVISION).load(
        UNet2DConditionModel, "unet", use_safetensors=True
    )
    assert unet.config.block_out_channels == [16, 32]


@pytest.mark.parametrize("name", ["./base", "/no/base", "a/b/c", "base", "~/base"])
def test_a_name_that_can_only_be_a_folder_is_not_looked_for_on_the_hub(name, monkeypatch):
    questions = hub(monkeypatch)
    with pytest.raises(DasdError, match="no folder"):
        pretrained.find_weights(name)
    assert questions == []


def test_every_load_of_weights_says_its_dtype():
    """Else transformers takes that of the file: float16, several times slower on a CPU."""
    root, silent = Path(pretrained.__file__).parents[2], []
    rooms = ("dasd_utils", "benchmarks", "book", "Report")
    code = {str(path): path.read_text("utf8") for room in rooms for path in root.glob(f"{room}/**/*.py")}
    for path in root.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text("utf8"))["cells"]
        code[str(path)] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for name, text in code.items():
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained":
                kind, named = ast.unparse(call.func.value), {word.arg for word in call.keywords}
                if not kind.endswith(("Tokenizer", "Processor", "Scheduler")) and not named & {"dtype", None}:
                    silent.append(f"{name}:{call.lineno}")
    assert len(code) > 100 and not silent


def test_files_of_float16_are_loaded_as_float32(base_dir, tmp_path):
    base = Path(shutil.copytree(base_dir, tmp_path / "base"))
    for file in base.rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(file).items()}, file, {"format": "pt"})
    for file in base.rglob("config.json"):  # which says the type too
        file.write_text(file.read_text("utf8").replace('"float32"', '"float16"'), encoding="utf8")
    config = Config.setup("tiny", base=base, clip=base / "clip")
    parts, scorer = models.load_parts(config), evaluation.load_scorer(config, "cpu")
    words = objective.Words(
        config, objective.Settings(target=("a river",), reference=("a harbor",)), torch.device("cpu")
    )
    modules = parts.unet, parts.vae, parts.text_encoder, scorer.clip, words.clip
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}


def test_float32_is_asked_for_unless_another_dtype_is_named(tmp_path):
    """Which dtype a library takes without being asked differs between its versions."""

    class Module(torch.nn.Module):
        from_pretrained = staticmethod(lambda where, **options: options.get("dtype"))

    source = pretrained.find_weights(str(tmp_path))
    assert source.load(Module) == torch.float32
    assert source.load(Module, dtype=torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize("name", ["data/tiny-sd", "data/tiny-sd/clip", "data/mine"])
def test_the_repository_s_folder_is_no_owner_on_the_hub(name, monkeypatch, tmp_path):
    """As where a wheel is installed: a stranger's repository of that name is never asked for."""
    questions = hub(monkeypatch)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the hub was asked"))
    advice = "git clone" if "tiny-sd" in name else "Name a folder"
    with pytest.raises(DasdError, match=f"never looked for on the hub.*{advice}"):
        pretrained.find_weights(name)
    with pytest.raises(DasdError, match="never looked for on the hub"):
        folders.open_rows(config.DomainConfig("things", name, caption="a thing"), "train")
    assert questions == []
