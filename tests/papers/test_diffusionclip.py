"""Images translated by words: DDIM to noise and back, hand-computed losses, and a training that resumes."""

import contextlib
import dataclasses
import math

import diffusers
import narrow
import pytest
import torch
from synthetic import OfOneDomain, make_batch, pictures, stop_at
from transformers import CLIPTokenizer

from dasd_utils import evaluation, losses, models, sampling, training
from dasd_utils.apps import batch_size
from dasd_utils.config import DasdError, method_changes
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, Term
from dasd_utils.papers.diffusionclip import objective as diffusionclip
from dasd_utils.papers.diffusionclip import translation
from dasd_utils.runtime import files, images

STEPS = {"return_step": 300, "forward_steps": 6, "generation_steps": 3}
SHORT = STEPS | {"reference": ("a painting",), "target": ("a satellite image",)}


class FourOfOneDomain(OfOneDomain):
    """Four samples of the first domain, which come again at each second step."""

    def batch(self, step, micro=0):
        batch = make_batch(self.config, seed=step % 2, domains=(0,) * 4)
        return dataclasses.replace(batch, target_prompts=[""] * 4)


@pytest.fixture
def config(tiny_config, base_dir):
    domain = dataclasses.replace(tiny_config.domains[0], token=None)
    changes = method_changes("diffusionclip") | {"domains": (domain,), "clip": str(base_dir / "clip")}
    return tiny_config.replace(method="diffusionclip", method_settings=SHORT, **changes)


@pytest.fixture
def parts(config):
    return training.setup_training(config)


def test_a_step_is_that_of_ddim_in_both_directions():
    """Between two times of a schedule of ten steps, as diffusers' own schedulers take it."""
    schedule = {"clip_sample": False, "timestep_spacing": "leading", "set_alpha_to_one": True}
    back, there = diffusers.DDIMScheduler(**schedule), diffusers.DDIMInverseScheduler(**schedule)
    x, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (back, there):
        scheduler.set_timesteps(10)
    alphas = back.alphas_cumprod
    expected = back.step(eps, 600, x).prev_sample
    assert torch.allclose(diffusionclip.ddim_step(x, eps, 600, 500, alphas), expected, atol=1e-6)
    expected = there.step(eps, 600, x).prev_sample  # 600 is where it arrives
    assert torch.allclose(diffusionclip.ddim_step(x, eps, 500, 600, alphas), expected, atol=1e-6)
    expected = back.step(eps, 0, x).prev_sample
    assert torch.allclose(diffusionclip.ddim_step(x, eps, 0, -1, alphas), expected, atol=1e-6)


def test_steps_back_undo_steps_there_where_the_noise_is_the_same():
    assert diffusionclip.ddim_times(300, 3) == [-1, 99, 199, 299]
    assert diffusionclip.ddim_times(1000, 1) == [-1, 999] and diffusionclip.ddim_times(3, 3) == [-1, 0, 1, 2]
    assert diffusionclip.alpha_at(torch.tensor([0.9, 0.5]), -1) == 1.0
    eps, alphas = torch.randn(1, 4, 8, 8), torch.linspace(0.99, 0.01, 1000)
    x, times, seen = torch.randn(1, 4, 8, 8), diffusionclip.ddim_times(500, 7), []

    def predict(_x, timestep):
        seen.append(int(timestep))
        return eps

    noisy = diffusionclip.follow(predict, x, times, alphas)
    assert seen == [0, *times[1:-1]]  # a clean image is passed at the first time
    assert torch.allclose(diffusionclip.follow(predict, noisy, times[::-1], alphas), x, atol=1e-4)


def test_the_direction_by_hand():
    before, direction = torch.zeros(1, 2), torch.tensor([2.0, 0.0])
    along, across, against = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).split(1)
    both = torch.cat([along, across])
    loss = diffusionclip.direction_loss
    assert [loss(x, before, direction).item() for x in (along, across, against)] == [0.0, 1.0, 2.0]
    assert loss(across, before, direction, "released").item() == pytest.approx(math.log(2))
    assert loss(against, before, direction, "released").isfinite()
    assert loss(both, before.expand(2, 2), direction).item() == 0.5  # the mean
    found = [loss(x, before, direction, "offset").item() for x in (before, along, across, direction[None])]
    assert found == [1.0, 0.25, 1.25, 0.0]  # of nothing, too far, aside, arrived


@pytest.mark.parametrize("form", ["released", "paper", "offset"])
def test_the_loss_of_each_step_by_hand(config, parts, form):
    """x0 predicted at this step's own time, its pixels and features against those of the image itself."""
    narrow.randomise(models.trainable_parameters(parts))
    config = config.replace(method_settings=SHORT | {"form": form})
    batch, objective = FourOfOneDomain(config).batch(0), losses.make_objective(config)
    empty = models.encode_prompts(parts, [""]).expand(4, -1, -1)
    clean = sampling.decode(parts, batch.target_latents)
    for time in (299, 199, 99):
        with torch.no_grad():
            x = (objective.trajectory or objective.begin(parts, batch))["x"]
            a = parts.noise_scheduler.alphas_cumprod[time]
            x0 = (x - (1 - a).sqrt() * parts.unet(x, torch.tensor(time), empty).sample) / a.sqrt()
        loss, logs = objective(parts, batch, config)
        words, pixels = objective._words, sampling.decode(parts, x0)
        moved = words.embed(pixels) - words.embed(clean)
        apart = 1 - torch.cosine_similarity(moved, words.direction[None])
        away = (moved - words.direction).square().sum(dim=1) / words.direction.square().sum()
        by_hand = {"paper": apart, "released": -torch.log(1 - apart / 2), "offset": away}
        assert logs["loss_direction"] == pytest.approx(by_hand[form].mean().item(), rel=1e-4)
        assert logs["loss_l1"] == pytest.approx((pixels - clean).abs().mean().item(), rel=1e-4)
        assert loss.item() == pytest.approx(3.0 * logs["loss_direction"] + 0.3 * logs["loss_l1"], rel=1e-5)
        if time > 99:  # the next step starts where this one leads
            b = parts.noise_scheduler.alphas_cumprod[time - 100]
            led = b.sqrt() * x0 + (1 - b).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()
            torch.testing.assert_close(objective.trajectory["x"], led, atol=1e-4, rtol=1e-4)
    assert not objective.trajectory


def test_the_direction_leads_from_the_mean_of_one_set_of_sentences_to_that_of_the_other(config):
    sentences = {"reference": ("a painting", "a river"), "target": ("a satellite image", "lungs", "a road")}
    config = config.replace(method_settings=SHORT | sentences)
    words = diffusionclip.Words(config, diffusionclip.settings(config), torch.device("cpu"))
    tokenizer = CLIPTokenizer.from_pretrained(config.model.clip)
    means = {name: files.embed_texts(words.clip, tokenizer, own).mean(0) for name, own in sentences.items()}
    unit = {name: mean / mean.norm() for name, mean in means.items()}
    torch.testing.assert_close(words.direction, unit["target"] - unit["reference"])
    found = words.embed(images.to_pixels(pictures(3)))  # as the scorer has them
    expected = evaluation.load_scorer(config, "cpu").embed(pictures(3))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_a_batch_stays_for_all_steps_and_is_inverted_once(config, parts, monkeypatch):
    objective, sampler = losses.make_objective(config), FourOfOneDomain(config)
    calls, done, follow = [], [], diffusionclip.follow
    monkeypatch.setattr(
        diffusionclip, "follow", lambda p, x, *rest: calls.append(len(x)) or follow(p, x, *rest)
    )
    for step in range(12):
        objective(parts, sampler.batch(step // 3), config)
        done.append(int(objective.trajectory["done"]) if objective.trajectory else 0)
        assert not any(value.requires_grad for value in objective.trajectory.values())
    assert done == [1, 2, 0] * 4
    assert calls == [4, 4]  # two batches, each met twice


def test_the_base_inverts_whatever_has_been_learned(config, parts):
    batch = FourOfOneDomain(config).batch(0)
    fresh = losses.make_objective(config).begin(parts, batch)["x"]
    with torch.no_grad():
        for p in models.trainable_parameters(parts)["lora"]:
            p.add_(0.5)
    assert torch.equal(losses.make_objective(config).begin(parts, batch)["x"], fresh)


def test_through_all_steps_at_once(config, parts):
    whole = config.replace(method_settings=SHORT | {"every_step": False})
    objective, batch = losses.make_objective(whole), FourOfOneDomain(config).batch(0)
    loss, _ = objective(parts, batch, whole)
    assert objective.trajectory == {}
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in models.trainable_parameters(parts)["lora"])


class DrawnAnew(FourOfOneDomain):
    """The same images come again as other draws of the VAE, as in training."""

    def batch(self, step, micro=0):
        found = super().batch(step, micro)
        return dataclasses.replace(found, target_latents=found.target_latents + 0.01 * step)


def test_the_picture_that_is_compared_is_the_one_that_was_inverted(config, parts):
    objective, sampler = losses.make_objective(config), DrawnAnew(config)
    first, again = (objective.begin(parts, sampler.batch(step)) for step in (0, 2))  # of the same images
    assert torch.equal(first["clean"], sampler.batch(0).target_latents)
    assert torch.equal(again["clean"], first["clean"]) and torch.equal(again["x"], first["x"])
    assert not torch.equal(sampler.batch(2).target_latents, sampler.batch(0).target_latents)


def test_a_stopped_training_goes_on_as_if_nobody_had_stopped_it(config, tmp_path):
    def run(name, steps, resume=False):
        own = config.replace(output_dir=str(tmp_path / name), max_train_steps=8, checkpoint_every=4)
        made = training.setup_training(own)
        options = {"resume": resume, "on_step": stop_at(steps), "progress": False}
        with contextlib.suppress(KeyboardInterrupt):
            return made, training.train(own, made, DrawnAnew(own), {}, **options)
        return made, None

    whole, history = run("whole", 99)
    run("stopped", 6)  # saved after one of three steps back; the first images come again at step 7
    again, rest = run("stopped", 99, resume=True)
    assert [row["loss"] for row in rest] == [row["loss"] for row in history]
    for one, other in zip(whole.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused(config, parts):
    settings = (
        (SHORT | {"form": "other"}, "form is 'other'"),
        (SHORT | {"return_step": 0}, "return_step"),
        (SHORT | {"forward_steps": 301}, "fewer than forward_steps"),
        (SHORT | {"l1_weight": -1.0}, "l1_weight"),
        ({"reference": ("a painting",)}, "lacks target.*as "),
        ({"target": ("a sketch",)}, "lacks reference"),
        ({"stepps": 1}, "stepps"),
    )
    fields = (("gradient_accumulation_steps", 2), ("caption_dropout", 0.1))
    for changes, said in (
        *(({"method_settings": values}, said) for values, said in settings),
        *(({name: value}, name) for name, value in fields),
    ):
        with pytest.raises(DasdError, match=said):
            config.replace(**changes)
    for target in ("A painting", "a painting"):  # CLIP's tokenizer knows no case
        alike = config.replace(method_settings=SHORT | {"target": (target,)})
        with pytest.raises(DasdError, match="no direction between"):
            diffusionclip.Words(alike, diffusionclip.settings(alike), torch.device("cpu"))
    with pytest.raises(DasdError, match="made for DASD's step"):
        batch_size.largest_batch(config, parts)


@pytest.fixture
def pipeline(config, parts):
    with torch.no_grad():
        for p in models.trainable_parameters(parts)["lora"]:
            p.add_(0.02)
    return sampling.DasdPipeline(parts.to("cpu"), config, batch_size=2)


def test_strength_mixes_base_and_learner(pipeline, undecoded):
    chosen = pictures(3)
    mixed = {s: undecoded(translation.translate, pipeline, chosen, strength=s, **STEPS) for s in (0, 0.5, 1)}
    noisy = translation.invert(pipeline, chosen, 300, 6)
    for strength, rule in ((0, (Term(BASE, EMPTY),)), (1, (Term(ADAPTED, EMPTY),))):
        expected = undecoded(translation.generate, pipeline, noisy, 300, 3, rule)
        assert torch.allclose(mixed[strength], expected, atol=1e-5)
    assert not torch.allclose(mixed[0], mixed[1]) and not torch.allclose(mixed[0.5], mixed[1])
    alone = undecoded(translation.translate, pipeline, chosen[2:], **STEPS)
    assert torch.allclose(mixed[1][2:], alone, atol=1e-5)  # whatever is beside it
    with pytest.raises(DasdError, match="not finite"):
        translation.translate(pipeline, chosen, 300, 3, 3, strength=1e30)


def test_steps_that_do_not_fit_are_refused_before_any_work(pipeline, monkeypatch):
    monkeypatch.setattr(translation, "_follow", None)
    for steps in ({"forward_steps": 301}, {"generation_steps": 0}, {"return_step": 1001}):
        with pytest.raises(DasdError, match="return_step to 1000 at most"):
            translation.translate(pipeline, pictures(1), **(STEPS | steps))


def test_there_and_back_are_the_same_times(pipeline, monkeypatch):
    seen, follow = [], diffusionclip.follow
    monkeypatch.setattr(diffusionclip, "follow", lambda *a: seen.append(a[2]) or follow(*a))
    translation.translate(pipeline, pictures(1), 300, 3, 2)
    assert seen == [[-1, 99, 199, 299], [299, 149, -1]]


def test_other_learners_are_terms_beside_ones_own():
    other = Term("other", EMPTY, 0.5)
    assert translation.translation_rule(1.0, [other]) == (Term(BASE, EMPTY), Term(ADAPTED, EMPTY, 1.0), other)
    assert translation.translation_rule() == (Term(ADAPTED, EMPTY),)
