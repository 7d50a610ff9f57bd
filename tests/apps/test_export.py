"""export.py: others get the image of this project's pipeline; the card says what is known, and no more."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import badges
import narrow
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dasd_utils import adapters, models, sampling
from dasd_utils.apps import export
from dasd_utils.apps.cli import runs
from dasd_utils.config import Calibration, DasdError
from dasd_utils.runtime import checkpoints

READER = Path(__file__).parents[1] / "plain_reader.py"
QUICK = Calibration(guidance_scale=3.0, num_inference_steps=3, scheduler="ddim")
WORDS = "a small village near a river"
FILES = ("README.md", adapters.LORA_FILE, "samples.png", "satellite.safetensors")
ROW = {"domain": "satellite", "metric": "cmmd", "low": 0.1, "high": 0.4, "n": 60, "seed": 3}
ROWS = [ROW | {"method": "base", "value": 5.0}, ROW | {"method": "DASD", "value": 0.25}]


def trained(config):
    """Return parts as if trained, with another strength than the rank's own."""
    parts = models.load_parts(config)
    torch.manual_seed(0)
    if config.training.whole_unet:
        models.unfreeze_unet(parts)
    else:
        models.add_lora(parts.unet, config.lora)
    models.add_domain_tokens(parts, config.domains)
    narrow.randomise(models.trainable_parameters(parts), scale=0.05 if config.training.whole_unet else 0.1)
    return parts


def written(parts, folder, kind, name="dasd"):
    adapters.save_adapter(parts, folder / "adapter")
    out = folder / kind
    return out, export.export(folder / "adapter", out, kind, parts.config, name)


def own_image(parts, folder):
    """Return what this project's pipeline makes of <satellite>, before rounding; write its first noise."""
    pipeline = sampling.DasdPipeline(parts, parts.config)
    [[job]] = pipeline.plan([WORDS], domain="satellite", seed=7, settings=QUICK)
    np.save(folder / "noise.npy", pipeline.noise([job]).numpy())
    return unrounded(pipeline, job)


def unrounded(pipeline, job):
    vae = pipeline.parts.vae
    with torch.no_grad():
        image = vae.decode(pipeline._latents([job]) / vae.config.scaling_factor).sample
    return (image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()


def reading(parts, folder, kind, exported, out):
    lora = next((f for f in exported.files if f.endswith(".safetensors") and "embeddings" not in f), "")
    words = {token: word.removeprefix("embedding:") for token, word in exported.words.items()}
    place = export.FOLDERS.get(kind, ("", ""))[1]
    return {
        "base": str(parts.config.model.base),
        "variant": parts.config.model.base_variant,
        "folder": str(out),
        "kind": kind,
        "lora": lora,
        "tokens": {f"{place}/{word}.safetensors": word for word in words.values()},
        "prompt": f"{words['<satellite>']} {WORDS}",
        "guidance_scale": QUICK.guidance_scale,
        "num_inference_steps": QUICK.num_inference_steps,
        "noise": str(folder / "noise.npy"),
        "image": str(folder / f"{kind}.npy"),
    }


def read_by_diffusers(requests, folder):
    (folder / "requests.json").write_text(json.dumps(requests))
    command = [sys.executable, str(READER), str(folder / "requests.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def cases(tiny_config, sd15_config, tmp_path):
    """Return (config, formats): bases of each layout and stored precision, and a UNet trained in full."""
    tiny, sd15 = (c.replace(rank=8, alpha=32.0, convolutions="all") for c in (tiny_config, sd15_config))
    found = [(tiny, export.FORMATS), (sd15, export.FORMATS), (tiny.replace(whole_unet=True), ("diffusers",))]
    for dtype, kinds in ((torch.float16, ("diffusers", "pipeline")), (torch.bfloat16, ("diffusers",))):
        stored = StableDiffusionPipeline.from_pretrained(tiny.model.base, dtype=dtype)
        stored.save_pretrained(tmp_path / f"base-{dtype}")
        found.append((tiny.replace(base=tmp_path / f"base-{dtype}"), kinds))
    return found


def test_every_format_gives_others_the_image_of_this_projects_pipeline(cases, tmp_path):
    """By the code of the model card, where that has code."""
    requests, own = [], []
    for number, (config, kinds) in enumerate(cases):
        folder, parts = tmp_path / str(number), trained(config)
        for kind in kinds:
            out, exported = written(parts, folder, kind)
            requests.append(reading(parts, folder, kind, exported, out))
        image = own_image(parts, folder)
        own += [image] * len(kinds)
        with sampling.DasdPipeline(parts, config).base() as base:
            [[job]] = base.plan([WORDS], domain="satellite", seed=7, settings=QUICK)
            assert not np.allclose(image, unrounded(base, job), atol=1e-2)  # the adapter matters
    read_by_diffusers(requests, tmp_path)
    for one, image in zip(requests, own, strict=True):
        assert np.abs(np.load(one["image"]) - image).max() < 1e-4, (one["base"], one["kind"])


def test_the_update_of_kohyas_keys_is_alpha_over_rank_times_up_times_down(adapted, tmp_path):
    """As A1111 and ComfyUI compute it: a module's key is its name with _ for dots, alpha its own."""
    out, _ = written(adapted, tmp_path, "comfyui")
    state = load_file(out / "models/loras/dasd.safetensors")
    merged = 0
    for name, module in adapted.unet.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if not hasattr(module, "get_delta_weight"):
            assert f"{key}.alpha" not in state
            continue
        down, up = state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"]
        assert state[f"{key}.alpha"].item() == 16.0 and down.shape[0] == up.shape[1] == 4
        update = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view(module.weight.shape)
        difference = update * (state[f"{key}.alpha"] / len(down)) - module.get_delta_weight("default")
        assert difference.abs().max() < 1e-6
        merged += 1
    assert 3 * merged == len(state) and any("resnets" in key for key in state)


def test_what_a1111_reads(tiny_config, tmp_path):
    """Alpha 32 at rank 8 is written as such; a token is one vector under a word of its own."""
    parts = trained(tiny_config.replace(rank=8, alpha=32.0))
    out, exported = written(parts, tmp_path, "a1111", name="far")
    with safe_open(out / "models/Lora/far.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.endswith(".alpha")]  # noqa: SIM118 (no mapping)
        alphas = {file.get_tensor(key).item() for key in keys}
        metadata = file.metadata()
    assert alphas == {32.0}
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "32.0")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "8", "conv_alpha": "32.0"}
    assert exported.words == {"<satellite>": "far-satellite", "<xray>": "far-xray"}
    found = load_file(out / "embeddings/far-xray.safetensors")
    assert list(found) == ["emb_params"]
    assert torch.equal(found["emb_params"], parts.tokens.weight[1:2].detach())
    assert set(exported.files) == set(checkpoints.verify_manifest(out)) == {
        "README.md", "embeddings/far-satellite.safetensors", "embeddings/far-xray.safetensors",
        "models/Lora/far.safetensors",
    }  # fmt: skip
    assert json.loads((out / checkpoints.MANIFEST).read_text())["export"] == "a1111"


@pytest.mark.parametrize("kind", export.FORMATS)
def test_no_file_says_where_it_was_made(adapted, tmp_path, kind):
    out, _ = written(adapted, tmp_path, kind)
    for path in (*out.rglob("*.json"), *out.rglob("*.md")):
        text = path.read_text()
        assert str(tmp_path) not in text and adapted.config.model.base not in text, path
        assert "name_or_path" not in text, path
    for path in out.rglob("*.safetensors"):
        assert adapted.config.model.base.encode() not in path.read_bytes(), path


def test_an_earlier_export_is_replaced_and_nothing_else_is(adapted, tmp_path):
    out, _ = written(adapted, tmp_path, "a1111")
    (tmp_path / "adapter" / "generated").mkdir()  # as `dasd generate` leaves it in an exported adapter
    (tmp_path / "adapter" / "generated" / "satellite_0_0.png").write_text("")
    assert export.export(tmp_path / "adapter", out, "diffusers", adapted.config, "dasd")
    assert not (out / "embeddings").exists() and (out / adapters.LORA_FILE).is_file()
    assert not (out / "generated").exists()
    (out / adapters.LORA_FILE).unlink()  # as the message about a damaged file advises
    assert export.export(tmp_path / "adapter", out, "diffusers", adapted.config, "dasd")
    (out / "notes.txt").write_text("mine")
    adapters.save_adapter(adapted, tmp_path / "run/adapter")
    checkpoints.write_manifest(tmp_path / "run", list((tmp_path / "run/adapter").iterdir()))
    for place in (out, tmp_path / "run", out / "notes.txt"):
        with pytest.raises(DasdError, match="is a file or holds files that no export wrote"):
            export.check_export(tmp_path / "adapter", place, "a1111", "dasd")
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", export.FORMATS)
def test_an_export_on_a_full_disk_says_so_and_leaves_nothing(adapted, tmp_path, kind, full_disk):
    adapters.save_adapter(adapted, tmp_path / "adapter")
    message = r"The export cannot be written to .*out: .*[Ff]ile too large"
    with full_disk(1000), pytest.raises(DasdError, match=message):
        export.export(tmp_path / "adapter", tmp_path / "out", kind, adapted.config, "dasd")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_unet_trained_in_full_is_in_the_pipeline_and_in_no_file_of_a_program(tiny_config, tmp_path):
    parts = trained(tiny_config.replace(whole_unet=True))
    out, _ = written(parts, tmp_path, "pipeline")
    state = load_file(out / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(state[name], p) for name, p in parts.unet.named_parameters())
    done = export.export(tmp_path / "adapter", tmp_path / "plain", "diffusers", parts.config, "dasd")
    assert {*adapters.UNET_FILES, adapters.SUMMARY_FILE} <= {*done.files}
    for kind, name, message in (
        ("difusers", "dasd", "Did you mean 'diffusers'"),
        ("comfyui", "a/b", "letters, digits"),
        ("comfyui", "dasd", "was trained in full"),
    ):
        with pytest.raises(DasdError, match=message):
            export.check_export(tmp_path / "adapter", tmp_path / "out", kind, name)


def test_the_card_shows_samples_with_their_prompts(adapted, tmp_path):
    adapters.save_adapter(adapted, tmp_path / "adapter")
    samples = (Image.new("RGB", (8, 8)), ["a pier", "a road"])
    arguments = (tmp_path / "adapter", tmp_path / "out", "a1111", adapted.config, "dasd")
    assert "samples.png" in export.export(*arguments, samples=samples).files
    card = (tmp_path / "out/README.md").read_text()
    assert "# dasd" in card and "](samples.png)" in card and "“a pier”; “a road”" in card
    export.export(*arguments)
    assert "samples.png" not in (tmp_path / "out/README.md").read_text()


@pytest.fixture
def card(adapted, tmp_path):
    """Return `card(...)`: the card of an export in which files, words, config or summary are as given."""
    adapters.save_adapter(adapted, tmp_path / "adapter")
    summary = adapters.read_summary(tmp_path / "adapter")

    def make(kind="diffusers", words=None, files=FILES, rows=(), lora=summary["lora"], **changes):
        words = {"<satellite>": "<satellite>"} if words is None else words
        made = export.Exported(kind, "far", files, words)
        return export.card(made, adapted.config.replace(**changes), summary | {"lora": lora}, rows)

    return make


def test_the_cards_metadata_are_read_back_by_the_hubs_own_reader(card, tmp_path):
    card(rows=ROWS).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", "other")
    assert "lora" in data.tags and "lora" not in card(lora=None).data.tags
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value) == ("cmmd", 0.25)
    assert result.metric_name == "cmmd, n = 60, seed 3"


def test_the_card_says_results_with_interval_and_settings_of_the_adapter(card):
    text = str(card(rows=ROWS, rank=2, alpha=1.0))
    for words in ("0.25 [0.10, 0.40]", "60 images a method and domain, training seed 3",
                  "rank 4, alpha 16, convolutions: all", "| max_train_steps | 4 |", "never for clinical use",
                  "hf upload OWNER/NAME FOLDER", f"[DASD]({badges.repository()[0]})"):  # fmt: skip
        assert words in text
    assert "Not measured" in str(card())


def test_the_licence_is_the_bases(card):
    sd15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    known = {sd15: "creativeml-openrail-m", "data/tiny-sd": "mit", "somebody/something": "other"}
    assert {base: export.licence(base) for base in known} == known
    made = card(base=sd15, base_revision="a" * 40)
    assert made.data.base_model == sd15
    assert "CreativeML OpenRAIL-M" in str(made) and f'revision="{"a" * 40}"' in str(made)


@pytest.mark.parametrize("kind", ["a1111", "comfyui"])
@pytest.mark.parametrize(("lora", "word"), [(True, "far-satellite"), (True, None), (False, "far-satellite")])
def test_other_programs_are_told_of_the_files_that_there_are(card, kind, lora, word):
    loras, embeddings = export.FOLDERS[kind]
    files = ["README.md"] + [f"{loras}/far.safetensors"] * lora
    files += [f"{embeddings}/{word}.safetensors"] if word else []
    called = f"embedding:{word}" if kind == "comfyui" else word
    made = card(kind, {"<satellite>": called} if word else {}, tuple(files))
    use = str(made).split("## Use")[1].split("| domain")[0]
    for folder in ("models", "embeddings"):
        assert (f"`{folder}`" in use) == any(file.startswith(f"{folder}/") for file in files)
    assert ("<lora:far:1>" in use or "Load LoRA" in use) == lora
    prompt = use.split("```")[1].strip().removesuffix(" <lora:far:1>")
    assert prompt == (f"{called} {WORDS}" if word else WORDS)


def test_the_code_of_the_card_names_revision_variant_and_sampling(card):
    for files in (FILES, (*FILES, "unet/config.json"), FILES[2:]):
        place = {"base": "somebody/something", "base_revision": "b" * 40, "base_variant": "fp16"}
        code = str(card(files=files, **place)).split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert f'"somebody/something", dtype=precision, revision="{"b" * 40}", variant="fp16"' in code
        assert "guidance_scale=2.0, num_inference_steps=2" in code
        assert ("subfolder" in code) == ("unet=unet" in code) == ("unet/config.json" in files)
        assert ("load_lora_weights(" in code) == (adapters.LORA_FILE in files)


def test_folders_of_this_machine_are_named_and_not_placed(card, tiny_config, base_dir, tmp_path):
    for place in (tmp_path, tmp_path / "not mounted"):
        text = str(card(source=dataclasses.replace(tiny_config.source, data=str(place))))
        assert str(base_dir.parent) not in text and str(tmp_path) not in text
        assert f"{place.name} (a folder)" in text


@pytest.mark.parametrize("row", [3, {"x": 1}])
def test_scores_that_are_none_are_refused_with_their_file(saved_run, row):
    (saved_run / "evaluation.json").write_text(json.dumps({"config": {}, "rows": [row]}))
    with pytest.raises(DasdError, match=r"row of .*evaluation\.json lacks"):
        runs.export(run=saved_run, out=saved_run / "out", samples=False)
