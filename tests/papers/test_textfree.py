"""The text-free copy of a UNet: constants for cross-attentions, trained, saved, loaded, and switched off."""

import dataclasses
import json

import pytest
import torch
from conftest import dasd
from diffusers import UNet2DConditionModel
from synthetic import OfOneDomain, make_sampler

from dasd_utils import adapters, data, losses, models, sampling, training
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.papers import text_free
from dasd_utils.study import ladder

EMPTY = {"whole_unet": True, "text_free": True, "caption_dropout": 1.0, "lambda_align": 0.0}


def tokenless(config):
    return dataclasses.replace(config.domains[0], token=None)


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(**EMPTY, learning_rate=1e-3, domains=(tokenless(tiny_config),))


@pytest.fixture
def copied(config):
    return training.setup_training(config)


def weights(parts):
    return {name: p.detach().clone() for name, p in parts.unet.named_parameters()}


@torch.no_grad()
def predictions(unet, empty=None):
    """Return the noise predicted for two random texts, or for the empty prompt's embedding alone."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    texts = torch.randn(2, 3, 77, unet.config.cross_attention_dim, generator=generator)
    texts = texts if empty is None else empty.expand(1, 3, -1, -1)
    return [unet(latents, torch.tensor([10, 400, 990]), encoder_hidden_states=text).sample for text in texts]


def test_constants_are_the_mean_output_for_the_empty_prompt(parts):
    empty = models.encode_prompts(parts, [""]).detach()
    passes = text_free._passes(parts, empty)
    seen = {}
    layers = text_free.cross_attentions(parts.unet)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, i, out, name=name: seen.setdefault(name, []).append(out))
    found = text_free.mean_outputs(parts.unet, passes)
    assert layers and found.keys() == seen.keys()
    for name, value in found.items():
        by_hand = torch.cat([out.flatten(0, 1) for out in seen[name]]).double().mean(dim=0)
        torch.testing.assert_close(value, by_hand)
    times = [int(times[0]) for _, times, _ in passes]
    assert times == torch.linspace(0, 999, text_free.TIMES).long().tolist()
    again = text_free.mean_outputs(parts.unet, text_free._passes(parts, empty))
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_no_text_makes_a_difference_and_the_start_is_near_the_base(copied):
    one, other = predictions(copied.unet)
    assert torch.equal(one, other)
    empty = models.encode_prompts(copied, [""])
    (own,) = predictions(copied.unet, empty)
    with models.lora_disabled(copied):
        one, other = predictions(copied.unet)
        (base,) = predictions(copied.unet, empty)
    assert not torch.equal(one, other)
    assert (own - base).norm() < 0.5 * (one - base).norm()  # nearer than any text


def test_what_no_longer_counts_does_not_learn(copied):
    learning = {id(p) for p in models.trainable_parameters(copied)["unet"]}
    named = dict(copied.unet.named_parameters())
    idle = {name for name, p in named.items() if id(p) not in learning}
    assert idle and all(".attn2." in name or ".norm2." in name for name in idle)
    assert not any("resnets" in name or name.endswith("attn2.to_out.0.bias") for name in idle)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(2, 77, copied.unet.config.cross_attention_dim)
    copied.unet(latents, torch.tensor(5), encoder_hidden_states=text).sample.square().mean().backward()
    assert all((named[name].grad is None) == (name in idle) for name in named)


def test_training_changes_the_constants_and_keeps_the_base(config, copied):
    before = weights(copied)
    training.train(config, copied, OfOneDomain(config), progress=False)
    after = weights(copied)
    for name in before:
        assert torch.equal(before[name], after[name]) == text_free.is_idle(name), name
    fresh = weights(models.load_parts(config))
    with models.lora_disabled(copied):
        assert all(torch.equal(own, fresh[name]) for name, own in weights(copied).items())
    assert copied.tokens is None  # no prompt would hold one


def test_a_saved_copy_is_loaded_and_sampled_and_plain_diffusers_reads_it(config, copied, tmp_path):
    folder = tmp_path / "adapter"
    training.train(config, copied, OfOneDomain(config), progress=False)
    adapters.save_adapter(copied, folder)
    plain = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    torch.testing.assert_close(predictions(copied.unet), predictions(plain), atol=1e-5, rtol=0)
    fresh = models.load_parts(config)
    adapters.load_adapter(fresh, folder)
    assert fresh.base_weights and fresh.tokens is None
    pictures = []
    for parts in (copied, fresh):
        pipeline = sampling.DasdPipeline(parts, config)
        options = {"domain": config.domains[0].name, "seed": 1, "settings": Calibration(3.0, 2, "ddim")}
        rules = ("decoupled", "unconditional")
        pictures.append([pipeline.generate("a river", guidance=g, **options)[0].tobytes() for g in rules])
        base, *_ = pipeline.generate("a river", adapter=False, **options)
        pictures[-1].append(base.tobytes())
    assert pictures[0] == pictures[1] and len(set(pictures[0])) == 3
    with sampling.DasdPipeline(models.load_parts(config), config).base() as plain:
        assert plain.generate("a river", **options)[0].tobytes() == pictures[0][2]


def test_captions_and_text_free_exclude_each_other(tiny_config):
    for changes, said in (
        ({"whole_unet": False}, "set whole_unet to true"),
        ({"caption_dropout": 0.5}, "set caption_dropout to 1"),
        ({"domains": tiny_config.domains[:1]}, "leave one, without a token"),
        ({"prior_loss_weight": 1.0}, "prior_loss_weight and lambda_align to 0"),
        ({"lambda_align": 0.1}, "prior_loss_weight and lambda_align to 0"),
    ):
        with pytest.raises(DasdError, match=said):
            tiny_config.replace(**(EMPTY | {"domains": (tokenless(tiny_config),)} | changes))


def test_the_method_learns_from_images_alone(tiny_config):
    alone = {"method": "indomain", "caption_dropout": 1.0, "lambda_align": 0.0}
    config = tiny_config.replace(domains=(tokenless(tiny_config),), **alone)
    parts = training.setup_training(config)
    assert parts.token_ids == {} and parts.unet.peft_config
    loss, logs = losses.make_objective(config)(parts, OfOneDomain(config).batch(0), config)
    assert logs.keys() == {"loss_noise"} and loss.item() == pytest.approx(logs["loss_noise"])
    blind = [dataclasses.replace(domain, token=None) for domain in tiny_config.domains]
    for changes, said in (
        ({"domains": tiny_config.domains}, "leave one, without a token"),
        ({"domains": blind}, "leave one, without a token"),
        ({"caption_dropout": 0.1}, "The method indomain learns from the images of one domain alone"),
        ({"method_settings": {"x": 1}}, "The method indomain has no method_settings"),
    ):
        with pytest.raises(DasdError, match=said):
            config.replace(**changes)


def test_switches_inside_each_other_leave_the_base_its_text(copied):
    """As for LoRA: inside, nothing is on, so nothing is switched on again."""
    with models.lora_disabled(copied):
        expected = predictions(copied.unet)
        with models.lora_disabled(copied):
            pass
        with models.lora_merged(copied) as switch:
            switch(True)
        assert all(torch.equal(a, b) for a, b in zip(expected, predictions(copied.unet), strict=True))
    one, other = predictions(copied.unet)
    assert torch.equal(one, other)


@pytest.mark.parametrize("text_free", [False, True])
def test_a_run_of_the_method_is_trained_and_sampled_by_the_commands(tiny_config, tmp_path, text_free):
    values = tiny_config.replace(validation_every=0).to_dict()
    quick = {"num_inference_steps": 2, "scheduler": "ddim"}
    domain = {"name": "sketch", "data": "toyworld:sketch", "num_images": 24, "calibration": quick}
    wanted = {"profile": "tiny", "method": "indomain", "domains": [domain]}
    wanted |= {"model": values["model"], "source": values["source"]}
    kept = ("max_train_steps", "target_batch_size", "lr_warmup_steps", "validation_every")
    wanted["training"] = {name: values["training"][name] for name in kept}
    wanted["training"] |= {"whole_unet": True, "text_free": True} if text_free else {}
    wanted |= {"output_dir": str(tmp_path / "run"), "data": {"cache_dir": str(tmp_path / "cache")}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(wanted))
    config = Config.load(path)
    assert Config.from_dict(config.to_dict()) == config and config.training.caption_dropout == 1
    assert dasd("train", "--config", path)["run"] == config.output_dir
    words = ["generate", "--config", path, "--prompt", "a house", "--domain", "sketch", "--seed", 1]
    used = dasd(*words)["settings"]
    assert used["guidance"] == "decoupled" and used["token"] is None
    assert dasd(*words, "--guidance", "cfg")["settings"]["guidance"] == "cfg"
    base = dasd("generate", "--config", path, "--prompt", "a house", "--seed", 1)["settings"]
    assert base["guidance"] == "cfg" and base["domain"] is None  # the base answers as ever
    assert dasd("verify", config.output_dir)
    assert dasd("train", "--config", path, "--resume", "--max_steps", 5)["step"] == 5


def test_images_without_captions_are_enough_for_training_and_validation(tiny_config, vae):
    silent = dataclasses.replace(tokenless(tiny_config), caption="")
    config = tiny_config.replace(domains=(silent,), method="indomain", caption_dropout=1.0, lambda_align=0.0)
    found = data.load_domain(silent, config)
    assert set(map(tuple, found.captions)) == {("",)} and found.mentioned is None
    sampler = make_sampler(config.replace(domains=(tokenless(tiny_config),)), vae)
    batches = [sampler.batch(0), *sampler.validation_batches()]
    assert all(set(batch.target_prompts) == {""} for batch in batches)


def test_the_rungs_of_the_method_train_a_learner_each(tiny_config):
    one = tiny_config.replace(domains=tiny_config.domains[:1])
    methods = {method.name: method for method in ladder.PAPER_METHODS if method.objective == "indomain"}
    runs = {name: ladder.run_config(one, method, 0) for name, method in methods.items()}
    trainings = {name: wanted.training for name, wanted in runs.items()}
    assert all(t.caption_dropout == 1 and t.prior_loss_weight == 0 for t in trainings.values())
    whole = {name: (t.whole_unet, t.text_free) for name, t in trainings.items()}
    assert whole == {
        "decoupled guidance": (False, False),
        "domain learner, no prompt": (False, False),
        "decoupled guidance, whole UNet": (True, False),
        "decoupled guidance, text-free": (True, True),
    }
    places = {name: wanted.output_dir for name, wanted in runs.items()}
    assert places["decoupled guidance"] == places["domain learner, no prompt"]  # one training, asked twice
    assert len(set(places.values())) == 3
    asked = ladder.settings(one, methods["decoupled guidance"], one.domains[0], None)
    assert asked.guidance == "decoupled"
