"""No pickle, no remote code, no moving revisions, no secrets, no name that leaves its folder."""

import dataclasses
import functools
import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import audit
import datasets
import diffusers
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file

from dasd_utils import adapters, evaluation, models, sampling
from dasd_utils.apps.cli import runs
from dasd_utils.config import ROOT, Config, DasdError, DomainConfig, is_pinned, resolve
from dasd_utils.profiles import PROFILES
from dasd_utils.runtime import checkpoints, files, folders, tracking

REVISION = "0123456789abcdef0123456789abcdef01234567"
# Their commits are not known here: who writes one into profiles.py takes the name out.
UNPINNED = {"huggan/few-shot-art-painting", "arampacha/rsicd", "hf-vision/chest-xray-pneumonia"}
PICKLED = """
pytorch_model.bin diffusion_pytorch_model.bin pytorch_lora_weights.bin learned_embeds.bin satellite.pt
adapter.pt optimizer.pt model.ckpt state.pkl history.pkl random_states_0.pkl
"""
SECRETS = {
    "HF_TOKEN": "hf_" + "notarealtoken" * 3,
    "AWS_SECRET_ACCESS_KEY": "fake/secret+access/key" * 2,
    "HOME": "/home-of-nobody-at-all",
    "USER": "nobody-at-all",
    "LOGNAME": "nobody-at-all",
}
TOKENS = re.compile(
    rb"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}"
    rb"|github_pat_[A-Za-z0-9_]{30,})(?![A-Za-z0-9])|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


@pytest.fixture(scope="module")
def finished(make_config):
    """Return (config, folder) of a run with sample grids, revisions, and secrets in its environment."""
    pins = {"base_revision": REVISION, "clip_revision": REVISION[::-1], "sample_every": 2}
    config = make_config(**pins)
    first, *rest = config.domains
    config = config.replace(domains=(dataclasses.replace(first, revision=REVISION), *rest))
    user = SimpleNamespace(pw_name=SECRETS["USER"], pw_dir=SECRETS["HOME"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        if os.name != "nt":
            patch.setattr("pwd.getpwuid", lambda _uid: user)
        run, _ = runs.run_training(config, resume=False, auto_batch_size=False)
    return config, run


@pytest.fixture
def copied(finished, tmp_path):
    """Return the config and a copy of the run's folder that a test may change; its base is a copy too."""
    config, run = finished
    shutil.copytree(run, tmp_path / "run")
    base = tmp_path / "base"
    shutil.copytree(config.model.base, base)
    return config.replace(output_dir=tmp_path / "run", base=base, clip=base / "clip"), tmp_path / "run"


@pytest.fixture
def no_pickle(monkeypatch):
    """Fail wherever torch, numpy or Python read or write a pickle, also where the failure is caught.

    Not watched: dill's pickler in memory, with which `datasets` hashes functions.
    """
    seen, watching, plain_load = [], [True], np.load

    def refuse(name):
        def call(*_arguments, **_options):
            seen.append(name)
            raise AssertionError(f"{name} was called")

        return call

    def watched(name, base):
        def begin(self, *arguments, **options):
            if watching:
                refuse(name)()
            base.__init__(self, *arguments, **options)

        return type(name, (base,), {"__init__": begin})  # a library may inherit from it for good

    for module, names in ((torch, ("load", "save")), (pickle, ("load", "loads", "dump", "dumps"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse(f"{module.__name__}.{name}"))
    for name in ("Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, watched(name, getattr(pickle, name)))
    loads = {True: refuse("numpy.load"), False: plain_load}
    monkeypatch.setattr(np, "load", lambda *a, allow_pickle=False, **k: loads[allow_pickle](*a, **k))
    yield seen
    watching.clear()
    assert seen == []


def test_the_watch_sees_every_way(no_pickle):
    file = io.BytesIO(pickle_bytes([1]))
    load_objects = functools.partial(np.load, allow_pickle=True)
    calls = [(call, file) for call in (torch.load, pickle.load, pickle.Unpickler, load_objects)]
    calls += [(torch.save, {}, file), (pickle.dumps, 1)]
    for call, *arguments in calls:
        with pytest.raises(AssertionError):
            call(*arguments)
    assert len(no_pickle) == len(calls)
    no_pickle.clear()


def files_of(folder):
    """Return the files below a folder, and the endings of those that are not a tracker's."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    return found, {file.suffix for file in found if tracking.FOLDER not in file.parts}


def use(config, run, steps):
    """Load, sample, score and resume a run."""
    adapters.load_adapter(models.load_parts(config), run / "adapter")
    pipeline = sampling.load_trained_pipeline(run, config)
    pipeline.generate("an airport", domain="satellite", seed=1)
    evaluation.load_scorer(config)
    begun = Config.load(run / "config.json").replace(output_dir=run, max_train_steps=steps)
    _, history = runs.run_training(begun, resume=True, auto_batch_size=False)
    assert len(history) == steps


def test_training_resuming_loading_and_sampling_know_no_pickle(no_pickle, tiny_config):
    config = tiny_config.replace(sample_every=2)
    folder, _ = runs.run_training(config, resume=False, auto_batch_size=False)
    use(config, folder, 6)
    files, endings = files_of(folder.parent)
    assert endings == {".json", ".jsonl", ".safetensors", ".png", ".npy"}
    for file in files:
        assert not file.read_bytes().startswith((b"\x80", b"PK")), file  # a pickle; torch.save's archive
        if file.suffix == ".npy":
            np.load(file, mmap_mode="r")  # refuses arrays of objects, which are pickles


def pickle_bytes(value):
    """Pickle without the watched functions."""
    file = io.BytesIO()
    pickle._Pickler(file).dump(value)
    return file.getvalue()


def plant(folder, marker):
    """Put a pickle that makes the folder `marker` under every name of PICKLED into a folder and all below."""
    bomb = type("Bomb", (), {"__reduce__": lambda _self: (os.mkdir, (str(marker),))})()
    content = pickle_bytes(bomb)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in PICKLED.split():
            (place / name).write_bytes(content)


def test_planted_pickles_are_ignored(copied, no_pickle, tmp_path):
    plant(tmp_path, tmp_path / "marker")
    use(*copied, 5)
    assert not (tmp_path / "marker").exists()
    pickle._Unpickler(io.BytesIO((tmp_path / "satellite.pt").read_bytes())).load()  # who reads it, runs it
    assert (tmp_path / "marker").is_dir()


def test_a_planted_tensor_file_is_no_part_of_a_checkpoint(copied):
    path = checkpoints.newest_checkpoint(copied[1] / "checkpoints")
    shutil.copy(path / "adapter.safetensors", path / "planted.safetensors")
    assert "planted" not in checkpoints.read_checkpoint(path)[0]


BINARIES = [
    ("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL),
    ("text_encoder", transformers.CLIPTextModel), ("clip", transformers.CLIPModel),
]  # fmt: skip


@pytest.mark.parametrize(("part", "kind"), BINARIES)
def test_weights_that_are_only_pickled_are_refused(base_dir, tiny_config, tmp_path, part, kind):
    base = tmp_path / "base"
    shutil.copytree(base_dir, base)
    (file,) = (base / part).glob("*.safetensors")
    name = "pytorch_model" if file.stem == "model" else file.stem
    torch.save(load_file(file), file.with_name(f"{name}.bin"))
    file.unlink()
    kind.from_pretrained(base / part)  # the library would take it
    config = tiny_config.replace(base=base, clip=base / "clip")
    with pytest.raises(DasdError, match="safetensors"):
        evaluation.load_scorer(config) if part == "clip" else models.load_parts(config)


def hub_ids(config):
    """Return (id, revision) of every model and data set of a config that is on the hub."""
    named = [(config.model.base, config.model.base_revision), (config.model.clip, config.model.clip_revision)]
    named += [(domain.data, domain.revision) for domain in (config.source, *config.domains)]
    return [row for row in named if not row[0].startswith("toyworld:") and not resolve(row[0]).is_dir()]


def test_what_the_profiles_take_from_the_hub_is_pinned():
    named = [row for profile in PROFILES for row in hub_ids(Config.setup(profile))]
    assert len(named) == 5
    assert {name for name, revision in named if not is_pinned(revision)} == UNPINNED
    assert not is_pinned("main") and not is_pinned(None) and not is_pinned(REVISION[:-1])


@pytest.mark.parametrize("revision", [None, "main", REVISION])
@pytest.mark.parametrize("known", [True, False])
def test_an_unpinned_data_set_is_named_with_the_commit_that_was_read(
    monkeypatch, caplog, tmp_path, revision, known
):
    made = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))]})
    if known:
        made.save_to_disk(tmp_path / REVISION)  # the library's cache names its folders by commit, too
        made = datasets.load_from_disk(tmp_path / REVISION)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: made)
    domain = DomainConfig("things", f"owner/{known}-{revision}", caption="a thing", revision=revision)
    with caplog.at_level(logging.WARNING, "dasd_utils"):
        for split in ("train", "test"):
            folders.open_rows(domain, split)
    if revision == REVISION:
        assert caplog.messages == []
    else:
        (warning,) = caplog.messages  # once for all splits
        assert domain.data in warning and f"revision {revision or 'main'}," in warning
        assert (f"`revision` to {REVISION}." if known else "the commit hash that the page") in warning


def test_an_unpinned_model_is_named(monkeypatch, caplog):
    monkeypatch.setattr(HfApi, "model_info", lambda *_args, **_options: None)
    files.find_weights("owner/name", REVISION)
    assert caplog.text == ""
    files.find_weights("owner/name", "main")
    assert "owner/name is read at revision main" in caplog.text and "base_revision" in caplog.text


def test_a_run_records_its_revisions_and_its_data_and_is_not_resumed_with_others(finished):
    config, run = finished
    saved = json.loads((run / "config.json").read_text())
    assert (saved["model"]["base_revision"], saved["model"]["clip_revision"]) == (REVISION, REVISION[::-1])
    assert saved["domains"][0]["revision"] == REVISION
    assert "config.json" in checkpoints.verify_manifest(run)  # its hash is in the manifest
    summary = adapters.read_summary(run / "adapter")
    assert summary["base_revision"] == REVISION and summary["base_fingerprint"]
    _, state = checkpoints.read_checkpoint(checkpoints.newest_checkpoint(run / "checkpoints"))
    assert state["config"] == saved and state["data"] and state["base"] == summary["base_fingerprint"]
    first, *rest = config.domains
    other = config.replace(base_revision="main", domains=(dataclasses.replace(first, revision=None), *rest))
    found = checkpoints.differences(config.to_dict(), other.to_dict())
    assert sorted(text.split(":")[0] for text in found) == ["domains.0.revision", "model.base_revision"]


def test_remote_code_is_nowhere_asked_for():
    sources = [*ROOT.glob("dasd_utils/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("Report/*.py")]
    sources += ROOT.glob("notebooks/*.ipynb")
    assert len(sources) > 40
    asked = re.compile("trust_remote_code|custom_pipeline")  # of transformers and datasets, of diffusers
    assert [path for path in sources if asked.search(path.read_text(encoding="utf8"))] == []


def test_an_adapter_that_names_files_elsewhere_is_refused(copied, tmp_path):
    config, run = copied
    path = run / "adapter" / adapters.SUMMARY_FILE
    parts, summary = models.load_parts(config), json.loads(path.read_text())
    for place in (tmp_path / "elsewhere.safetensors", run / "xray.safetensors"):
        shutil.copy(run / "adapter" / "xray.safetensors", place)
    for token, file in (
        ("<xray>", "../../elsewhere.safetensors"), ("<xray>", "/elsewhere.safetensors"),
        ("<../xray>", "../xray.safetensors"), ("<..>", "...safetensors"), ("xray", "xray.safetensors"),
    ):  # fmt: skip
        path.write_text(json.dumps(summary | {"tokens": {token: file}}))
        with pytest.raises(DasdError, match=r"damaged: (<xray> is in xray.saf|.*tokens.*angle brackets)"):
            adapters.load_adapter(parts, run / "adapter")


def test_a_run_keeps_no_secret_of_its_environment(finished):
    config, run = finished
    files, endings = files_of(run)  # those of trackers too
    assert endings == {".json", ".jsonl", ".safetensors", ".png"}
    for file in files:
        content = file.read_bytes()
        assert [name for name, value in SECRETS.items() if value.encode() in content] == [], file
        for path in (config.output_dir, config.model.base, config.model.clip, config.data.cache_dir):
            content = content.replace(str(path).encode(), b"")
        assert Path.home() == Path("/") or f"{Path.home()}/".encode() not in content, file


PUBLISHED = """
*.* Makefile benchmarks/* tests/**/*.py dasd_utils/**/*.py notebooks/* figures/* Report/* book/*.*
data/*.md data/prompts/* data/results/* data/tiny-*/**/*
"""


def test_no_published_file_holds_what_looks_like_a_secret():
    files = [path for pattern in PUBLISHED.split() for path in ROOT.glob(pattern) if path.is_file()]
    assert {".ipynb", ".md", ".json", ".py", ".safetensors"} <= {path.suffix for path in files}
    found = {str(p.relative_to(ROOT)): m[0][:12] for p in files if (m := TOKENS.search(p.read_bytes()))}
    assert found == {}
    for halves in (  # so that this file holds no secret
        ("hf_", "a1B2" * 8), ("sk-", "proj-a1B2c3D4e5F6g7H8"), ("AKIA", "A1B2C3D4E5F6G7H8"),
        ("ghp_", "a1B2c3" * 6), ("-----BEGIN RSA ", "PRIVATE KEY-----"),
    ):  # fmt: skip
        assert TOKENS.search(f'{{"key": "{"".join(halves)}"}}'.encode())


UNKNOWN = {"name": "a", "skip_reason": "not found"}
CLEAN = {"name": "b", "version": "1", "vulns": []}
BROKEN = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


FOUND = ["c 2: CVE-1, mended in 3", "2 of 3 packages", "not in the database: a"]
AUDITS = [
    (([UNKNOWN, UNKNOWN], None), 0, ["NOT checked", "no route to host"]),
    (([CLEAN],), 0, []),
    (([UNKNOWN], [UNKNOWN, CLEAN, BROKEN]), 1, FOUND),
]


@pytest.mark.parametrize(("answers", "status", "parts"), AUDITS)
def test_an_audit_names_what_is_known_and_what_is_not(monkeypatch, capsys, answers, status, parts):
    left = [json.dumps({"dependencies": rows}) if rows else "" for rows in answers]

    def run(command, **_options):
        return subprocess.CompletedProcess(command, 0, left.pop(0), "no route to host")

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main("requirements.txt") == status
    said = capsys.readouterr().out
    assert [part for part in parts if part not in said] == []
