"""Pretraining: every stage runs, resumes, and writes a base that diffusers and transformers load."""

import dataclasses
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from dasd_utils import toyworld
from dasd_utils.config import Config, DasdError, resolve
from dasd_utils.pretrain import build, evaluate, shared
from dasd_utils.pretrain.build import Text, contrastive
from dasd_utils.toyworld.attribute_classifier import AttributeClassifier

SMALL = dict(
    paintings=40, others=40, vae_channels=(16, 16, 16), vae_steps=4, vae_batch_size=4, clip_width=(32, 32),
    clip_steps=3, clip_batch_size=8, everyday=2, vocab_size=700, unet_channels=(32, 32, 32), unet_steps=4,
    unet_batch_size=4, reader_steps=2, reader_batch_size=4, checkpoint_every=2, decay=0.5,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_measured():
    """Normalise latents by few images: each stage does so again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "MEASURED", 64)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    config = shared.PretrainConfig(output_dir=str(folder / "base"), work_dir=str(folder / "work"), **SMALL)
    return config, build.pretrain(config)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A strict base, built where no other domain can be rendered, described or named."""
    folder = tmp_path_factory.mktemp("strict")
    places = {"output_dir": str(folder / "base"), "work_dir": str(folder / "work")}
    config = shared.PretrainConfig(**SMALL | shared.STRICT | places)
    with pytest.MonkeyPatch.context() as patch:
        for table in (toyworld._MODULES, toyworld.captions.FRAMES, toyworld.captions.BARE):
            for domain in toyworld.DOMAINS[1:]:
                patch.delitem(table, domain)
        return config, build.pretrain(config)


def test_a_strict_base_reads_paintings_alone(strict):
    config, folder = strict
    work = resolve(config.work_dir)
    read = {path.name for path in work.iterdir() if path.suffix in (".npy", ".json")}
    assert read == {"painting.npy", "painting.json", "settings.json"} and not (work / "reader").exists()
    assert json.loads((folder / "pretrain.json").read_text())["strict"] is True
    test_diffusers_loads_and_samples(strict)


def test_many_scenes_are_rendered_by_processes_that_are_not_forked(monkeypatch):
    """A fork copies the locks that other threads hold: pytest, Jupyter and torch have such threads."""
    config = shared.PretrainConfig(**SMALL)
    expected = list(shared._in_parallel(shared._render, "xray", config))
    monkeypatch.setattr(shared, "PART", 20)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    made = list(shared._in_parallel(shared._render, "xray", config))
    assert len(made) == 40 and np.array_equal(made, expected)


def words_of(texts):
    return {word for text in texts for word in re.findall("[a-z]+", text.lower())}


def test_a_strict_vocabulary_has_no_words_of_other_domains(base, strict):
    captions, rng = toyworld.captions, np.random.default_rng(1)
    words = {}
    for domain in toyworld.DOMAINS:
        scenes = [(domain, shared.WORLD_SEED, i) for i in range(40)]
        words[domain] = words_of(text for scene in scenes for text in toyworld.caption_variants(*scene, 6))
        words[domain] |= words_of(captions.bare_prompt(domain, rng) for _ in range(200))
    known = words.pop("painting") | words_of(captions.sentence(rng) for _ in range(9000))
    foreign = {word for word in set().union(*words.values()) if not any(k.endswith(word) for k in known)}
    assert {"satellite", "chest", "sketch"} <= foreign
    tokens = [CLIPTokenizer.from_pretrained(made / "tokenizer").get_vocab() for _, made in (base, strict)]
    found = [[word for word in foreign if f"{word}</w>" in vocabulary] for vocabulary in tokens]
    assert found[0] and not found[1]


def test_everyday_words_name_no_other_domain():
    captions, rng = toyworld.captions, np.random.default_rng(2)
    texts = [captions.sentence(rng) for _ in range(3000)]
    texts += [make("painting", rng) for make in (captions.framed, captions.bare_prompt) for _ in range(1000)]
    for domain in toyworld.DOMAINS[1:]:
        assert not [text for text in texts if captions.TELLING[domain].search(text)]


def test_a_strict_base_is_scored_as_the_embedded_one(strict, tmp_path, monkeypatch):
    config, folder = strict
    embedded = resolve(build.EMBEDDED)
    for name in build.SCORERS:
        files = {path.name: path.read_bytes() for path in (embedded / name).iterdir()}
        assert files and files == {path.name: path.read_bytes() for path in (folder / name).iterdir()}
    names = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab().keys()
    assert names != CLIPTokenizer.from_pretrained(folder / "clip").get_vocab().keys()
    monkeypatch.setattr(build, "EMBEDDED", str(tmp_path))
    with pytest.raises(DasdError, match=r"clip/model.safetensors is missing.*`git restore"):
        build.pretrain(config, ("render",))


def test_a_strict_base_has_no_stage_of_a_reader(strict):
    with pytest.raises(DasdError, match="no pretraining stage 'reader'"):
        build.pretrain(strict[0], ("reader",))


def test_an_older_work_folder_is_not_strict(tmp_path):
    config = shared.PretrainConfig(output_dir=str(tmp_path / "base"), work_dir=str(tmp_path), **SMALL)
    build.pretrain(config, ("render",))
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings.pop("strict") is False
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DasdError, match="strict False, now True"):
        build.pretrain(dataclasses.replace(config, strict=True), ("render",))
    build.pretrain(config, ("render",))


def test_diffusers_loads_and_samples(base):
    pipe = StableDiffusionPipeline.from_pretrained(base[1], dtype=torch.float32)
    image = pipe("a bowl of fruit", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()


def test_text_encoder_is_the_tower_of_clip(base):
    encoder = load_file(base[1] / "text_encoder" / "model.safetensors")
    tower = CLIPModel.from_pretrained(base[1] / "clip").text_model.state_dict()
    assert all(torch.equal(value, tower[name.removeprefix("text_model.")].to(value.dtype))
               for name, value in encoder.items() if "position_ids" not in name)  # fmt: skip


def test_reader_is_shipped(base):
    shown = AttributeClassifier.load(base[1] / "reader").read([toyworld.draw("xray", 0, 0)], "xray")
    assert shown[0].keys() == toyworld.ATTRIBUTES["xray"].keys()


def test_tokenizer_knows_every_byte(base):
    tokenizer = CLIPTokenizer.from_pretrained(base[1] / "tokenizer")
    for text in ("zebra 42", "Ünïcode €", "x-ray"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids.index(tokenizer.eos_token_id) == len(ids) - 1
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_latents_have_unit_variance_and_reconstructions_stay(base):
    work = resolve(base[0].work_dir)
    autoencoder, images = build.train_vae(base[0], work), shared.Images(work, toyworld.DOMAINS)
    picks = images.draw(np.random.default_rng(0), build.MEASURED)
    latents = autoencoder.encode(images.pixels(picks)).latent_dist.mean
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
    pixels = images.pixels([(0, 1), (1, 2)])
    before = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mean).sample
    again = build.normalise_latents(autoencoder, images)
    after = again.decode(again.encode(pixels).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


class Line(torch.nn.Linear):
    """A stage of one layer, which a test can stop before any step."""

    def __init__(self, stop: int | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(2, 1)
        self.stop = stop

    def loss_at(self, step: int) -> torch.Tensor:
        if step == self.stop:
            raise KeyboardInterrupt
        batch = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        return (self(batch) - batch[:, :1]).square().mean()


def fitted(folder, stop=None, inputs=""):
    """Return the weights after 10 steps in `folder`, or None where the run was stopped."""
    config = shared.PretrainConfig(checkpoint_every=2, decay=0.5, learning_rate=0.01)
    line = Line(stop)
    try:
        return shared.fit(line, line.loss_at, folder, 10, config, inputs).state_dict()
    except KeyboardInterrupt:
        return None


@pytest.mark.parametrize("stop", [3, 5, 7])  # before, at and in the decay
def test_resumed_stage_equals_an_uninterrupted_one(tmp_path, stop):
    whole = fitted(tmp_path / "whole")
    assert fitted(tmp_path / "cut", stop) is None
    resumed = fitted(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_other_inputs_are_refused(tmp_path):
    fitted(tmp_path, inputs="one")
    with pytest.raises(DasdError, match="other parts"):
        fitted(tmp_path, inputs="two")


def test_a_work_folder_keeps_its_settings(base):
    for name, now in (("seed", 1), ("unet_steps", 8)):
        with pytest.raises(DasdError, match=f"{name} {getattr(base[0], name)}, now {now}"):
            build.pretrain(dataclasses.replace(base[0], **{name: now}), ("render",))


def test_a_stage_says_what_it_lacks(tmp_path):
    config = shared.PretrainConfig(work_dir=str(tmp_path), **SMALL)
    with pytest.raises(DasdError, match="stage 'render' first"):
        build.pretrain(config, ("vae",))


def test_assembling_replaces_a_base_and_keeps_its_card(base):
    config, folder = base
    (folder / "README.md").write_text("the card")
    (folder / "stale.txt").write_text("of an older base")
    build.pretrain(config, ("assemble",))
    assert (folder / "README.md").read_text() == "the card" and not (folder / "stale.txt").exists()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["base", "work"]


def test_a_nan_stops_the_stage(tmp_path):
    line = Line()
    with pytest.raises(DasdError, match="step 0"):
        shared.fit(line, lambda _: line.weight.sum() * float("nan"), tmp_path, 2, shared.PretrainConfig())


def test_contrastive_has_several_right_answers():
    right = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    good = torch.where(right > 0, 20.0, -20.0)
    assert contrastive(good, right).item() == pytest.approx(np.log(2) / 4, abs=1e-3)  # two images, one text
    everyday_wins = good.clone()
    everyday_wins[2, 0] = 60.0
    assert contrastive(everyday_wins, right) > 5


def test_a_text_suits_what_shows_all_it_mentions():
    text = Text("two ships in a harbor", "satellite", {"scene": "harbor", "count": "two"})
    shown = {"scene": "harbor", "count": "two", "water": "blue"}
    assert text.suits("satellite", shown) and not text.suits("painting", shown)
    assert not text.suits("satellite", shown | {"count": "one"})
    assert Text("a satellite image", "satellite").suits("satellite", shown)
    assert not Text("a teapot", None).suits("satellite", shown)


def test_a_finished_base_is_measured_without_an_adapter(base, monkeypatch, caplog):
    monkeypatch.setattr(evaluate, "RETRIEVAL", 4)
    monkeypatch.setattr(evaluate, "SPEED_STEPS", 2)
    monkeypatch.setattr(evaluate, "SPEED_RUNS", 2)
    config = Config.setup(
        "tiny", base=str(base[1]), clip=str(base[1] / "clip"), shipped_run=None, output_dir="nowhere",
        num_bootstrap=20,
    )  # fmt: skip
    config = config.replace(evaluation=dataclasses.replace(config.evaluation, num_inference_steps=2))
    rows = evaluate.evaluate(config, 3)
    found = {(row["metric"], row["domain"]): row for row in rows}
    parts = ("psnr", "retrieval_r1", "zero_shot_domain", "reader_on_renders")
    assert {(metric, domain) for metric in parts for domain in toyworld.DOMAINS} <= found.keys()
    scores = ("base_cmmd", "base_other_domain")
    samples = {(score, d) for score in scores for d in ("painting", "satellite", "xray")}
    assert samples <= found.keys() and not any(
        metric.startswith(("adapted", "lesson")) for metric, _ in found
    )
    assert found["yardstick", "painting-xray"]["n"] == 3 and found["latent_deviation_ratio", "all"]["n"] == 12
    files = [path.stat().st_size for path in base[1].rglob("*.safetensors")]
    assert found["weights_mb", "all"]["value"] * 1e6 == pytest.approx(sum(files)) and len(files) == 5
    seconds = found["sampling_seconds", "painting"]
    assert 0 < seconds["low"] <= seconds["value"] <= seconds["high"] and seconds["n"] == evaluate.SPEED_RUNS
    assert seconds["threads"] == torch.get_num_threads()
    assert "adapted run is not measured: none is given" in caplog.text
    assert "lesson run is not measured: no adapter there" in caplog.text


def test_each_run_that_is_there_is_measured_by_its_own_name(base, monkeypatch):
    for name, value in {"RETRIEVAL": 4, "SPEED_STEPS": 2, "SPEED_RUNS": 1}.items():
        monkeypatch.setattr(evaluate, name, value)
    config = Config.setup("tiny", base=str(base[1]), clip=str(base[1] / "clip"), shipped_run="long",
                          output_dir="short", num_bootstrap=20)  # fmt: skip
    config = config.replace(evaluation=dataclasses.replace(config.evaluation, num_inference_steps=2))
    drawn = {"long": evaluate.heldout("xray", 2).images, "short": evaluate.heldout("sketch", 2).images}
    monkeypatch.setattr(evaluate.checkpoints, "describe_run", lambda folder, config: ("", "a run"))
    monkeypatch.setattr(
        evaluate.sampling, "load_trained_pipeline",
        lambda place, *_, **__: SimpleNamespace(generate=lambda *_, **__: (drawn[str(place)], None, None)),
    )  # fmt: skip
    rows = {(row["metric"], row["domain"]): row["value"] for row in evaluate.evaluate(config, 2)}
    assert rows["adapted_cmmd", "xray"] < rows["lesson_cmmd", "xray"]  # the former are the renders themselves
    assert any(metric.startswith("adapted: ") for metric, _ in rows)


# what is measured of the base, on parts whose quality is known


class Dull:
    """A VAE whose latents are the pixels, and whose decoder makes them a tenth smaller."""

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents):
        return SimpleNamespace(sample=latents * 0.9)


def test_heldout_captions_tell_what_is_shown():
    world = evaluate.heldout("satellite", 4)
    assert world.shown == [toyworld.attributes("satellite", evaluate.WORLD_SEED, i) for i in range(4)]
    pairs = zip(world.mentioned, world.shown, strict=True)
    assert all(mentioned.items() <= shown.items() for mentioned, shown in pairs)
    assert len(world.images) == len(world.texts) == 4


def test_psnr_by_hand():
    grey = [image.point(lambda _: 0) for image in evaluate.heldout("xray", 2).images]  # -1 everywhere
    values = evaluate.psnr(Dull(), grey)  # reconstructed as -0.9: 0.05 of the range
    assert values.tolist() == pytest.approx([-20 * np.log10(0.05)] * 2, abs=1e-3)
    assert evaluate.deviation_ratio(Dull(), evaluate.heldout("painting", 3).images) > 1


def test_retrieval_counts_captions_that_mention_nothing_false():
    world = evaluate.heldout("satellite", 6)
    one_hot = torch.eye(6)
    scorer = SimpleNamespace(embed=lambda images: one_hot, embed_texts=lambda texts: one_hot)
    assert evaluate.retrieval(scorer, world).all()
    scorer.embed_texts = lambda texts: one_hot.roll(1, 0)
    expected = [world.mentioned[(i + 1) % 6].items() <= world.shown[i].items() for i in range(6)]
    assert evaluate.retrieval(scorer, world).tolist() == expected and not all(expected)


def test_attributes_are_counted_by_kind():
    asked = [{"scene": "airport", "count": "two"}, {"scene": "airport"}, {"count": "two"}, {"side": "left"}]
    seen = [{"scene": "airport", "count": "one"}, {"scene": "river"}, {"count": "two"}, {"side": "right"}]
    assert evaluate.shown_by_kind(seen, asked) == {
        "count: airport": [False], "count: any": [True], "scene: airport": [True, False], "side": [False],
    }  # fmt: skip


def test_merges_by_hand():
    merges = [("a", "b"), ("ab", "c"), ("x", "y</w>"), ("abc", "d</w>")]  # of equal ones the shortest first
    assert shared.learned_merges({"abcd": 1, "xy": 1}, 9) == merges
    assert shared.learned_merges({"abcd": 1, "xy": 1}, 2) == merges[:2]
    assert shared.learned_merges({"ab": 3, "cd": 1}, 9, min_frequency=2) == [("a", "b</w>")]


def test_samples_are_scored_by_attribute_kind_and_domain(monkeypatch):
    crossed, bare = ({"scene": "river", "bridge": bridge} for bridge in ("yes", "no"))
    mentioned = [crossed, bare, {"side": "left"}, {"side": "right"}]
    shown = [bare, bare, {"side": "left"}, {"side": "left"}]
    world = evaluate.Heldout("satellite", images=[], shown=[], texts=[], mentioned=mentioned)
    reader = SimpleNamespace(read=lambda images, domain: shown if domain == "satellite" else None)
    scorer = SimpleNamespace(embed=lambda images: torch.eye(4), attribute_classifier=reader)
    monkeypatch.setattr(
        evaluate, "zero_shot", lambda *_: np.array(["satellite", "xray", "satellite", "satellite"])
    )
    scores = {"attribute_accuracy": 0.625, "other_domain": 0.25, "cmmd": 0.0}  # without own pairs
    kinds = {"bridge: river": 0.5, "scene: river": 1, "side": 0.5}
    for method, by_kind in (("base", {}), ("adapted", kinds)):
        table = evaluate._Table(seed=0, num_bootstrap=20)
        evaluate._score_samples(table, method, world, [None] * 4, scorer, torch.eye(4))
        wanted = {f"{method}_{name}": value for name, value in scores.items()}
        wanted |= {f"{method}: {kind}": value for kind, value in by_kind.items()}
        assert {row["metric"]: row["value"] for row in table.rows} == pytest.approx(wanted, abs=1e-3)


def test_rows_carry_n_seed_and_interval():
    table = evaluate._Table(seed=3, num_bootstrap=50)
    table.mean("psnr", "xray", torch.arange(20.0))
    table.cmmd("yardstick", "a-b", torch.eye(8), torch.eye(8).roll(1, 0) * -1)
    assert list(table.rows[0]) == ["metric", "domain", "value", "low", "high", "n", "seed"]
    for row in table.rows:
        assert row["low"] <= row["value"] <= row["high"] and row["seed"] == 3
    assert table.rows[0]["n"] == 20


def test_a_base_without_an_attribute_classifier_is_refused_at_once(base_dir):
    config = Config.setup("tiny", base=str(base_dir), clip=str(base_dir / "clip"))
    with pytest.raises(DasdError, match="no attribute classifier"):
        evaluate.evaluate(config, 4)
