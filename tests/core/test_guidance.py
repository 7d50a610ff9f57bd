"""Guidance: the rules as formulas, any number of branches and models, and what they come to in a pipeline."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from dasd_utils import guidance, models, sampling, training
from dasd_utils.config import Calibration, DasdError
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, GIVEN, TOKEN, Branch, Term

PROMPT = "a river near a forest"
QUICK = Calibration(3.0, 3, "ddim")


@pytest.fixture
def pipeline(adapted, tiny_config):
    adapted.unet.eval()
    return sampling.DasdPipeline(adapted, tiny_config)


# the formulas


def test_the_answers_of_all_branches_are_combined():
    eps = [torch.tensor([float(value)]) for value in (1, 3, 0)]
    assert guidance.combine(eps, [2.0, 0.5]).item() == 1 + 2 * (3 - 1) + 0.5 * (0 - 1)
    assert guidance.combine([eps[0], None, eps[2]], [0.0, 0.5]).item() == 0.5
    assert guidance.combine([None, *eps[1:]], [0.25, 0.75]).item() == 0.75  # the first has no share
    assert guidance.combine([eps[0], None, None], [0.0, 0.0]).item() == 1


@pytest.mark.parametrize(("done", "value"), [(0, 0.0), (1, 2.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5)])
def test_weights_may_change_from_noise_to_image(done, value):
    terms = (Term(BASE, EMPTY), Term(BASE, GIVEN, (0.0, 1.0, 2.0)), Term(ADAPTED, EMPTY, 0.7))
    assert guidance.weights(terms, done) == pytest.approx([value, 0.7])
    floored = Term(ADAPTED, GIVEN, (0.0, 1.0, 2.0), least=1.0)
    assert guidance.weights((terms[0], floored), done) == [max(value, 1.0)]


def test_scales_of_the_prompt_stop_at_one_and_others_at_nothing():
    for name in ("cfg", "domain"):
        found = [guidance.weights(guidance.rule(Calibration(s, guidance=name))) for s in (4.0, 1.0, 0.0)]
        assert found == [[4.0], [1.0], [1.0]]
    terms = guidance.rule(Calibration(0.0, guidance="decoupled", domain_scale=2.0))
    assert guidance.weights(terms) == [2.0, 0.0]
    assert guidance.weights(guidance.rule(Calibration(4.0, guidance="unconditional"))) == []


def fake_models(calls):
    """Return `choose`: three networks that answer text times 1, 10 and 100, and note their batches."""

    def network(name, factor):
        def run(latents, timestep, encoder_hidden_states):
            calls.append((name, len(latents)))
            rows = factor * encoder_hidden_states.mean(dim=(1, 2))
            return type("Output", (), {"sample": latents + rows[:, None, None, None]})

        run.dtype = torch.float32
        return run

    made = {name: network(name, factor) for name, factor in {BASE: 1, ADAPTED: 10, "other": 100}.items()}
    return made.__getitem__


def test_any_number_of_branches_and_models_and_a_batch_a_model():
    calls, texts = [], [torch.full((2, 77, 8), float(value)) for value in (1, 2, 3, 4, 5)]
    names = (BASE, ADAPTED, "other", BASE, ADAPTED)
    branches = [Branch(text, name) for text, name in zip(texts, names, strict=True)]
    predict = guidance.guided_prediction(fake_models(calls), branches, lambda t: [2.0, 0.5, -1.0, 0.25])
    eps = predict(torch.zeros(2, 4, 8, 8), torch.tensor(3))
    expected = 1 + 2 * (20 - 1) + 0.5 * (300 - 1) - 1 * (4 - 1) + 0.25 * (50 - 1)
    torch.testing.assert_close(eps, torch.full((2, 4, 8, 8), expected))
    assert calls == [(BASE, 4), (ADAPTED, 4), ("other", 2)]


def test_branches_that_count_for_nothing_are_not_asked():
    calls, texts = [], [torch.full((2, 77, 8), float(value)) for value in (1, 2, 3)]
    branches = [Branch(texts[0], BASE), Branch(texts[1], ADAPTED), Branch(texts[2], BASE)]
    weights = iter([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    predict = guidance.guided_prediction(fake_models(calls), branches, lambda t: next(weights))
    found = [predict(torch.zeros(2, 1, 1, 1), torch.tensor(3))[0].item() for _ in range(4)]
    assert found == [1 + 2 * 2, 20, 1, 1 + 2 * 19 + 2 * 2]
    assert calls == [(BASE, 4), (ADAPTED, 2), (BASE, 2), (BASE, 4), (ADAPTED, 2)]


# in a pipeline


def latents(pipeline, monkeypatch, prompt=PROMPT, **options):
    """Return the latents that `generate` decodes."""
    seen = []
    monkeypatch.setattr(sampling, "decode_images", lambda vae, x: seen.append(x) or [None] * len(x))
    pipeline.generate(prompt, seed=5, **options)
    return torch.cat(seen)


def by_hand(pipeline, domain_scale, guidance_scale):
    """Return the latents of `latents(..., domain="xray")` by the formula; domain_scale: of the timestep."""
    parts = pipeline.parts
    with torch.no_grad():
        empty, token, text = models.encode_prompts(parts, ["", "<xray>", PROMPT]).split(1)

    def predict(x, timestep):
        domain = parts.unet(x, timestep, token).sample
        with models.lora_disabled(parts):
            base, control = (parts.unet(x, timestep, c).sample for c in (empty, text))
        return base + domain_scale(timestep) * (domain - base) + guidance_scale * (control - base)

    noise = sampling.initial_noise((4, 8, 8), 5, 0)[None]
    return sampling.denoise(predict, pipeline.scheduler("ddim"), noise, 3)


def decoupled(domain_scale, guidance_scale, **changes):
    return dataclasses.replace(
        QUICK, guidance="decoupled", domain_scale=domain_scale, guidance_scale=guidance_scale, **changes
    )


@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
def test_without_the_domain_it_is_the_base_under_classifier_free_guidance(pipeline, monkeypatch, scheduler):
    options = {"scheduler": scheduler, "num_inference_steps": 5}
    with pipeline.base():
        expected = latents(
            pipeline, monkeypatch, domain="xray", settings=dataclasses.replace(QUICK, **options)
        )
    found = latents(pipeline, monkeypatch, domain="xray", settings=decoupled(0.0, 3.0, **options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_without_control_the_prompt_does_not_matter(pipeline, monkeypatch):
    one, other = (
        latents(pipeline, monkeypatch, text, domain="xray", settings=decoupled(2.0, 0.0))
        for text in (PROMPT, "another one")
    )
    assert torch.equal(one, other)
    expected = by_hand(pipeline, lambda timestep: 2.0, 0.0)
    torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)  # LoRA is merged


def test_all_three_branches_are_the_formula(pipeline, monkeypatch):
    found = latents(pipeline, monkeypatch, domain="xray", settings=decoupled(2.0, 3.0))
    expected = by_hand(pipeline, lambda timestep: 2.0, 3.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # LoRA is merged


def test_every_image_of_a_batch_has_its_own_texts(pipeline):
    """Two domains in one batch, one of them named by the token that the prompt holds."""
    prompts, seeds = [f"<xray> {PROMPT}", f"<satellite> {PROMPT}"], [4, 5]
    told, encode = [], models.encode_prompts

    def noting(parts, texts):
        told.append(texts)
        return encode(parts, texts)

    settings = decoupled(2.0, 3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "encode_prompts", noting)
        together, domains, _ = pipeline.generate(prompts, seed=seeds, settings=settings)
    assert domains == ["xray", "satellite"]
    assert told == [["", "<xray>", "<satellite>", PROMPT]]  # the base is told no token
    for image, prompt, seed in zip(together, prompts, seeds, strict=True):
        alone, *_ = pipeline.generate(prompt, seed=seed, settings=settings)
        assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1


def test_a_negative_prompt_stands_for_nothing(pipeline, monkeypatch):
    options = {"domain": "xray", "settings": decoupled(2.0, 3.0), "negative_prompt": "dark"}
    found = latents(pipeline, monkeypatch, **options)
    assert not torch.allclose(
        found, latents(pipeline, monkeypatch, **(options | {"negative_prompt": ""})), atol=1e-3
    )
    with pipeline.base():
        base = latents(pipeline, monkeypatch, **options)
        plain = latents(pipeline, monkeypatch, **(options | {"settings": QUICK}))
    torch.testing.assert_close(base, plain, atol=1e-5, rtol=0)


def test_three_branches_cost_two_calls_a_step(pipeline, adapted):
    sizes = []
    hook = adapted.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    pipeline.generate([PROMPT] * 2, domain="xray", seed=0, settings=decoupled(2.0, 3.0))
    hook.remove()
    assert sizes == [4, 2] * 3  # base: nothing and the prompt; adapted: the token


TERMS = {
    "cfg": (Term(ADAPTED, EMPTY), Term(ADAPTED, GIVEN, 3.0)),
    "domain": (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, 3.0)),
    "decoupled": (Term(BASE, EMPTY), Term(ADAPTED, TOKEN, 2.5), Term(BASE, GIVEN, 3.0)),
    "unconditional": (Term(ADAPTED, EMPTY),),
}


@pytest.mark.parametrize("name", TERMS)
def test_every_guidance_is_a_setting_of_one_rule(pipeline, monkeypatch, name):
    options = {"domain": "xray", "settings": QUICK}
    named = latents(pipeline, monkeypatch, guidance=name, **options)
    assert torch.equal(named, latents(pipeline, monkeypatch, guidance=TERMS[name], **options))
    in_settings = dataclasses.replace(QUICK, guidance=name)
    assert torch.equal(named, latents(pipeline, monkeypatch, domain="xray", settings=in_settings))


def test_the_settings_say_what_made_the_image(pipeline):
    _, _, used = pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance="decoupled", seed=1)
    assert used["guidance"] == "decoupled" and used["domain_scale"] == 2.5 and "rule" not in used
    *_, used = pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance="domain", seed=1)
    assert used["guidance"] == "domain" and "domain_scale" not in used
    terms = (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, 1.5))
    *_, used = pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance=terms, seed=1)
    assert used["rule"][1] == {"model": "adapted", "prompt": "given", "weight": 1.5, "least": None}
    assert not used.keys() & {"guidance", "guidance_scale", "domain_scale"}  # they made nothing


def test_a_weight_of_several_numbers_follows_the_noise(pipeline, monkeypatch):
    def found(domain, control):
        terms = (Term(BASE, EMPTY), Term(ADAPTED, TOKEN, domain), Term(BASE, GIVEN, control))
        return latents(pipeline, monkeypatch, domain="xray", settings=QUICK, guidance=terms)

    plain = found(2.0, 3.0)
    assert torch.equal(plain, found((2.0,), (3.0, 3.0)))
    assert not torch.allclose(plain, found(2.0, (3.0, 0.0)), atol=1e-3)
    expected = by_hand(pipeline, lambda timestep: 2.0 * (1 - timestep / 999), 3.0)
    torch.testing.assert_close(found((0.0, 2.0), 3.0), expected, atol=1e-4, rtol=0)


def test_a_learner_of_another_run_is_one_more_model(pipeline, adapted, monkeypatch):
    terms = (Term(BASE, EMPTY), Term("twin", EMPTY, 2.0), Term(BASE, GIVEN, 3.0))
    with pytest.raises(DasdError, match="Models: base, adapted"):
        pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance=terms)
    pipeline.learners["base"] = adapted.unet
    with pytest.raises(DasdError, match="A learner is named 'base'"):
        pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance=terms)
    del pipeline.learners["base"]
    pipeline.learners["twin"] = copy.deepcopy(adapted.unet)
    own = (Term(BASE, EMPTY), Term(ADAPTED, EMPTY, 2.0), Term(BASE, GIVEN, 3.0))
    found = [latents(pipeline, monkeypatch, domain="xray", settings=QUICK, guidance=g) for g in (terms, own)]
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)  # the adapter's weights, but not merged


REFUSED = {
    "no terms": (dict(guidance=()), "sequence of terms, at least one, not"),
    "names": (dict(guidance=["cfg"]), "sequence of terms, at least one, not"),
    "one term": (dict(guidance=Term(BASE, EMPTY)), "sequence of terms, at least one, not"),
    "text": (dict(guidance=(Term(BASE, EMPTY), Term(BASE, GIVEN, "2"))), "a finite number or a tuple"),
    "list": (dict(guidance=(Term(BASE, EMPTY), Term(BASE, GIVEN, [1.0]))), "a finite number or a tuple"),
    "least": (dict(guidance=(Term(BASE, EMPTY), Term(BASE, GIVEN, 1.0, float("nan")))), "a finite number"),
    "token": (dict(guidance=(Term(BASE, EMPTY), Term(BASE, TOKEN, 1.0))), "adapted model alone"),
    "negative": (dict(guidance=(Term(BASE, GIVEN),), negative_prompt="dark"), "leave negative_prompt out"),
    "prompt": (dict(guidance=(Term(BASE, "mine"),)), "Prompts: empty, given, token"),
    "weight": (
        dict(guidance=(Term(BASE, EMPTY), Term(BASE, GIVEN, float("nan")))),
        "a finite number or a tuple",
    ),
    "name": (dict(guidance="decopled"), "decoupled"),
    "no number": (dict(guidance=(Term(BASE, EMPTY), Term(BASE, GIVEN, ()))), "a finite number or a tuple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_rules_are_refused(pipeline, case):
    options, said = REFUSED[case]
    with pytest.raises(DasdError, match=said):
        pipeline.generate(PROMPT, domain="xray", **({"settings": QUICK} | options))


def test_a_learner_of_another_run_is_named_with_its_place(adapted, tiny_config, base_dir, tmp_path):
    pipeline = sampling.DasdPipeline(adapted, tiny_config)
    own = tiny_config.replace(output_dir=str(tmp_path / "other"))
    made = training.setup_training(own)
    with torch.no_grad():
        for p in models.trainable_parameters(made)["lora"]:
            p.add_(0.05)
    run = training.save_training_results(own, made, [])
    pipeline.add_learner("other", run)
    rule = (Term(BASE, EMPTY), Term("other", GIVEN, 1.0))
    image, _, settings = pipeline.generate("a house", seed=1, guidance=rule)
    assert settings["learners"] == {"other": str(run)}
    json.dumps(settings)
    alone = sampling.load_trained_pipeline(run)
    expected, *_ = alone.generate("a house", seed=1, adapter=True, guidance=(Term(ADAPTED, GIVEN),))
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1
    assert "learners" not in pipeline.generate("a house", seed=1)[2]
    with pytest.raises(DasdError, match="named 'base'"):
        pipeline.add_learner("base", run)
    with torch.no_grad():
        next(p for n, p in adapted.unet.named_parameters() if "lora" not in n).add_(0.1)
    with pytest.raises(DasdError, match="another base"):
        pipeline.add_learner("else", run)
