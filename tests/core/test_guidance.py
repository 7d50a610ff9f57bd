"""Guidance: the rules as formulas, any number of branches and models, and their images in a pipeline."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import narrow
import numpy as np
import pytest
import torch

from dasd_utils import guidance, models, sampling, training
from dasd_utils.config import Calibration, DasdError
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, GIVEN, TOKEN, Branch, Term

PROMPT = "a river near a forest"
QUICK = Calibration(3.0, 3, "ddim")


def decoupled(domain_scale, guidance_scale, **changes):
    scales = {"domain_scale": domain_scale, "guidance_scale": guidance_scale}
    return dataclasses.replace(QUICK, guidance="decoupled", **scales, **changes)


def test_the_predictions_of_all_branches_are_combined():
    eps = [torch.tensor([float(value)]) for value in (1, 3, 0)]
    assert guidance.combine(eps, [2.0, 0.5]).item() == 1 + 2 * (3 - 1) + 0.5 * (0 - 1)
    assert guidance.combine([eps[0], None, eps[2]], [0.0, 0.5]).item() == 0.5
    assert guidance.combine([None, *eps[1:]], [0.25, 0.75]).item() == 0.75  # the first has no share
    assert guidance.combine([eps[0], None, None], [0.0, 0.0]).item() == 1


@pytest.mark.parametrize(("done", "value"), [(0, 0.0), (1, 2.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5)])
def test_weights_may_change_from_noise_to_image(done, value):
    terms = (Term(BASE, EMPTY), Term(BASE, GIVEN, (0.0, 1.0, 2.0)), Term(ADAPTED, EMPTY, 0.7))
    assert guidance.weights(terms, done) == pytest.approx([value, 0.7])
    bounded = Term(ADAPTED, GIVEN, (0.0, 1.0, 2.0), least=1.0)
    assert guidance.weights((terms[0], bounded), done) == [max(value, 1.0)]


def test_scales_of_the_prompt_stop_at_one_and_others_at_nothing():
    for name in ("cfg", "domain"):
        found = [guidance.weights(guidance.rule(Calibration(s, guidance=name))) for s in (4.0, 1.0, 0.0)]
        assert found == [[4.0], [1.0], [1.0]]
    terms = guidance.rule(Calibration(0.0, guidance="decoupled", domain_scale=2.0))
    assert guidance.weights(terms) == [2.0, 0.0]
    assert guidance.weights(guidance.rule(Calibration(4.0, guidance="unconditional"))) == []


def predicted(models, *weights):
    """Return values that networks predict, text times 1, 10 and 100, at each weights, and their batches.

    The texts of the models are 1, 2, ... for a batch of two.
    """
    calls, weights_at = [], iter(weights)

    def network_of(name):
        def run(latents, timestep, encoder_hidden_states):
            calls.append((name, len(latents)))
            rows = {BASE: 1, ADAPTED: 10, "other": 100}[name] * encoder_hidden_states.mean(dim=(1, 2))
            return SimpleNamespace(sample=latents + rows[:, None, None, None])

        run.dtype = torch.float32
        return run

    branches = [Branch(torch.full((2, 77, 8), float(i)), model) for i, model in enumerate(models, start=1)]
    predict = guidance.guided_prediction(network_of, branches, lambda t: next(weights_at))
    eps = [predict(torch.zeros(2, 4, 8, 8), torch.tensor(3)) for _ in weights]
    assert all(torch.equal(each, each[:1, :1, :1, :1].expand(2, 4, 8, 8)) for each in eps)
    return [each[0, 0, 0, 0].item() for each in eps], calls


def test_any_number_of_branches_and_models_and_a_batch_a_model():
    found, calls = predicted([BASE, ADAPTED, "other", BASE, ADAPTED], [2.0, 0.5, -1.0, 0.25])
    assert found == [1 + 2 * (20 - 1) + 0.5 * (300 - 1) - 1 * (4 - 1) + 0.25 * (50 - 1)]
    assert calls == [(BASE, 4), (ADAPTED, 4), ("other", 2)]


def test_branches_without_a_share_are_not_computed():
    found, calls = predicted([BASE, ADAPTED, BASE], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0])
    assert found == [1 + 2 * 2, 20, 1, 1 + 2 * 19 + 2 * 2]
    assert calls == [(BASE, 4), (ADAPTED, 2), (BASE, 2), (BASE, 4), (ADAPTED, 2)]


@pytest.fixture
def latents(pipeline, undecoded):
    """Return `latents(...)`: those of an x-ray that `generate` decodes."""

    def found(prompt=PROMPT, **options):
        given = {"domain": "xray", "seed": 5, "settings": QUICK} | options
        return undecoded(pipeline.generate, prompt, **given)

    return found


def by_hand(pipeline, domain_scale, guidance_scale):
    """Return what `latents(...)` is by the formula; domain_scale: a function of the timestep."""
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


@pytest.mark.parametrize("scheduler", sampling.SCHEDULERS)
def test_without_the_domain_it_is_the_base_under_classifier_free_guidance(pipeline, latents, scheduler):
    options = {"scheduler": scheduler, "num_inference_steps": 5}
    with pipeline.base():
        expected = latents(settings=dataclasses.replace(QUICK, **options))
    found = latents(settings=decoupled(0.0, 3.0, **options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_decoupled_guidance_is_the_formula(pipeline, latents, guidance_scale):
    found = latents(settings=decoupled(2.0, guidance_scale))
    expected = by_hand(pipeline, lambda timestep: 2.0, guidance_scale)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # LoRA is merged
    other = latents("another one", settings=decoupled(2.0, guidance_scale))
    assert torch.equal(found, other) == (guidance_scale == 0)  # without it the prompt does not matter


def test_every_image_of_a_batch_has_its_own_texts_in_two_calls_a_step(pipeline, monkeypatch):
    prompts, seeds = [f"<xray> {PROMPT}", f"<satellite> {PROMPT}"], [4, 5]
    seen, sizes, encode = [], [], models.encode_prompts
    monkeypatch.setattr(models, "encode_prompts", lambda p, texts: seen.append(texts) or encode(p, texts))
    pipeline.parts.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    settings = decoupled(2.0, 3.0)
    together, domains, _ = pipeline.generate(prompts, seed=seeds, settings=settings)
    assert domains == ["xray", "satellite"]
    assert sizes == [4, 2] * 3  # base: the empty prompt and the given one; adapted: the token
    assert seen == [["", "<xray>", "<satellite>", PROMPT]]  # the base is given no token
    for image, prompt, seed in zip(together, prompts, seeds, strict=True):
        alone, *_ = pipeline.generate(prompt, seed=seed, settings=settings)
        assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1


def test_a_negative_prompt_replaces_the_empty_one(pipeline, latents):
    both = decoupled(2.0, 3.0)
    found = latents(settings=both, negative_prompt="dark")
    assert not torch.allclose(found, latents(settings=both), atol=1e-3)
    with pipeline.base():
        base, plain = (latents(settings=each, negative_prompt="dark") for each in (both, QUICK))
    torch.testing.assert_close(base, plain, atol=1e-5, rtol=0)


TERMS = {
    "cfg": (Term(ADAPTED, EMPTY), Term(ADAPTED, GIVEN, 3.0)),
    "domain": (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, 3.0)),
    "decoupled": (Term(BASE, EMPTY), Term(ADAPTED, TOKEN, 2.5), Term(BASE, GIVEN, 3.0)),
    "unconditional": (Term(ADAPTED, EMPTY),),
}


@pytest.mark.parametrize("name", TERMS)
def test_every_guidance_is_a_setting_of_one_rule(latents, name):
    named = latents(guidance=name)
    assert torch.equal(named, latents(guidance=TERMS[name]))
    assert torch.equal(named, latents(settings=dataclasses.replace(QUICK, guidance=name)))


def test_the_settings_record_what_made_the_image(pipeline):
    def settings(wanted):
        return pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance=wanted, seed=1)[2]

    used = settings("decoupled")
    assert used["guidance"] == "decoupled" and used["domain_scale"] == 2.5 and "rule" not in used
    used = settings("domain")
    assert used["guidance"] == "domain" and "domain_scale" not in used
    used = settings((Term(BASE, EMPTY), Term(ADAPTED, GIVEN, 1.5)))
    assert used["rule"][1] == {"model": "adapted", "prompt": "given", "weight": 1.5, "least": None}
    assert not used.keys() & {"guidance", "guidance_scale", "domain_scale"}  # they had no effect


def test_a_weight_of_several_numbers_follows_the_noise(pipeline, latents):
    def found(domain, control):
        return latents(guidance=(Term(BASE, EMPTY), Term(ADAPTED, TOKEN, domain), Term(BASE, GIVEN, control)))

    plain = found(2.0, 3.0)
    assert torch.equal(plain, found((2.0,), (3.0, 3.0)))
    assert not torch.allclose(plain, found(2.0, (3.0, 0.0)), atol=1e-3)
    expected = by_hand(pipeline, lambda timestep: 2.0 * (1 - timestep / 999), 3.0)
    torch.testing.assert_close(found((0.0, 2.0), 3.0), expected, atol=1e-4, rtol=0)


REFUSED = {
    "no terms": ((), "sequence of terms, at least one, not"),
    "names": (["cfg"], "sequence of terms, at least one, not"),
    "one term": (Term(BASE, EMPTY), "sequence of terms, at least one, not"),
    "model": ((Term("twin", EMPTY),), "Models: base, adapted"),
    "token": ((Term(BASE, EMPTY), Term(BASE, TOKEN, 1.0)), "adapted model alone"),
    "negative": ((Term(BASE, GIVEN),), "leave negative_prompt out"),
    "prompt": ((Term(BASE, "mine"),), "Prompts: empty, given, token"),
    "name": ("decopled", "decoupled"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_rules_are_refused(pipeline, case):
    terms, message = REFUSED[case]
    negative = "dark" if case == "negative" else ""
    with pytest.raises(DasdError, match=message):
        pipeline.generate(PROMPT, domain="xray", settings=QUICK, guidance=terms, negative_prompt=negative)


def test_a_learner_of_another_run_is_one_more_model_and_named_with_its_place(pipeline, tiny_config, tmp_path):
    other = training.setup_training(tiny_config.replace(output_dir=str(tmp_path / "other")))
    narrow.randomise(models.trainable_parameters(other))
    run = training.save_training_results(other.config, other, [])
    pipeline.add_learner("other", run)
    rule = (Term(BASE, EMPTY), Term("other", GIVEN, 1.0))
    image, _, settings = pipeline.generate("a house", seed=1, guidance=rule)
    assert settings["learners"] == {"other": str(run)}
    json.dumps(settings)
    alone = sampling.load_trained_pipeline(run)
    expected, *_ = alone.generate("a house", seed=1, adapter=True, guidance=(Term(ADAPTED, GIVEN),))
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1
    pipeline.learners["other"].to(torch.bfloat16)
    half, *_ = pipeline.generate("a house", seed=1, guidance=rule)
    assert np.abs(np.asarray(image, int) - np.asarray(half, int)).mean() < 8
    assert "learners" not in pipeline.generate("a house", seed=1)[2]
    with pytest.raises(DasdError, match="named 'base'"):
        pipeline.add_learner("base", run)
    with torch.no_grad():
        next(p for n, p in pipeline.parts.unet.named_parameters() if "lora" not in n).add_(0.1)
    with pytest.raises(DasdError, match="another base"):
        pipeline.add_learner("else", run)


@pytest.mark.parametrize("kind", ["cfg", "domain"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler"])
def test_guidance_in_an_interval_is_what_steps_by_hand_do(pipeline, latents, kind, scheduler):
    parts, rows = pipeline.parts, []
    parts.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    settings = Calibration(3.0, 8, scheduler, kind, guidance_interval=(0.2, 0.7))
    found, counted = latents(settings=settings), rows.copy()

    with torch.no_grad():
        empty, text = models.encode_prompts(parts, ["", f"<xray> {PROMPT}"]).split(1)
        steps = sampling.make_scheduler(scheduler, parts.noise_scheduler)
        steps.set_timesteps(8)
        x, guided = sampling.initial_noise((4, 8, 8), 5, 0)[None] * steps.init_noise_sigma, []
        for t in steps.timesteps:
            given = steps.scale_model_input(x, t)
            eps = parts.unet(given, t, text).sample
            guided.append(0.2 <= 1 - float(t) / 999 <= 0.7)
            if guided[-1]:
                with models.lora_disabled(parts) if kind == "domain" else contextlib.nullcontext():
                    start = parts.unet(given, t, empty).sample
                eps = start + 3 * (eps - start)
            x = steps.step(eps, t, x).prev_sample
    torch.testing.assert_close(found, x, atol=1e-4, rtol=0)  # LoRA is merged
    assert 0 < sum(guided) < 8 and not guided[0] and not guided[-1]
    assert sum(counted) == 8 + sum(guided)  # a row for the prompt, another where there is guidance


def test_guidance_over_the_whole_range_is_as_without_an_interval(latents):
    assert torch.equal(latents(settings=dataclasses.replace(QUICK, guidance_interval=(0, 1))), latents())
    terms = guidance.rule(QUICK)
    assert [guidance.weights(terms, done) for done in (-0.001, 0, 1)] == [[3.0]] * 3
    assert [guidance.weights(terms, done, (0.2, 0.7)) for done in (0.1, 0.2, 0.7, 0.8)] == [
        [1],
        [3],
        [3],
        [1],
    ]


def test_an_interval_is_of_guidance_that_has_one(pipeline):
    limited = dataclasses.replace(QUICK, guidance_interval=(0.2, 0.7))
    options = {"domain": "xray", "seed": 5, "settings": limited}
    assert pipeline.generate(PROMPT, **options)[2]["guidance_interval"] == (0.2, 0.7)
    assert pipeline.generate(PROMPT, **options, guidance="domain")[2]["guidance_interval"] == (0.2, 0.7)
    own = (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, 2.0))
    for other in ("decoupled", "unconditional", own):  # these replace the kind that is limited
        assert "guidance_interval" not in pipeline.generate(PROMPT, **options, guidance=other)[2]
    for kind in ("decoupled", "unconditional"):
        with pytest.raises(DasdError, match=r"guidance_interval to \[0, 1\]"):
            dataclasses.replace(limited, guidance=kind)
    for wrong in ((0.7, 0.2), (-0.1, 1), (0, 2), (0.5, 0.5), (0.2,)):
        with pytest.raises(DasdError, match="guidance_interval"):
            dataclasses.replace(QUICK, guidance_interval=wrong)
