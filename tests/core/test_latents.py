"""A step's samples depend on its number alone."""

import numpy as np
import pytest
import torch
from synthetic import make_sampler, same_batch

from dasd_utils import latents
from dasd_utils.config import DasdError


@pytest.fixture(scope="module")
def config(make_config):
    """Return 24 images a domain, 16 x 16 px, in batches of 6 and 2; all tests share one cache."""
    return make_config(resolution=16, caption_dropout=0.0)


@pytest.fixture(scope="module")
def make(config, vae):
    """Return `make(**changes) -> encoded Sampler`."""
    return lambda **changes: make_sampler(config.replace(**changes), vae)


@pytest.fixture(scope="module")
def sampler(make):
    """Return the sampler of the plain config. Do not change it."""
    return make()


def test_shapes_and_types(sampler):
    batch = sampler.batch(0)
    assert batch.target_latents.shape == batch.target_noise.shape == (6, 4, 4, 4)
    assert batch.source_latents.shape == batch.source_noise.shape == (2, 4, 4, 4)
    assert batch.target_latents.dtype == batch.target_noise.dtype == torch.float32
    assert batch.target_domains.tolist() == [0, 1, 0, 1, 0, 1]
    assert batch.target_domains.dtype == batch.target_timesteps.dtype == torch.long
    assert [len(batch.target_prompts), len(batch.source_prompts), len(batch.sample_ids)] == [6, 2, 8]
    moved = batch.to("cpu", torch.bfloat16)
    assert moved.target_latents.dtype == moved.source_noise.dtype == torch.bfloat16
    assert moved.target_timesteps.dtype == moved.target_domains.dtype == torch.long
    assert moved.sample_ids == batch.sample_ids
    noise = torch.cat([batch.target_noise, batch.source_noise]).flatten(1)
    assert len({tuple(row) for row in noise.tolist()}) == 8  # no two samples share it


def test_a_step_depends_on_its_number_alone(make, sampler):
    ahead = [sampler.batch(step) for step in range(5)]
    assert same_batch(make().batch(3), ahead[3])  # as after a restart: no step before it was drawn
    assert not same_batch(ahead[2], ahead[3])
    assert not torch.equal(ahead[2].target_noise, ahead[3].target_noise)
    several = make(gradient_accumulation_steps=2)
    for one, two in ((make(seed=1).batch(3), ahead[3]), (several.batch(1, 0), several.batch(1, 1))):
        assert one.sample_ids != two.sample_ids
        assert not torch.equal(one.target_noise, two.target_noise)
    assert not set(one.sample_ids) & set(two.sample_ids)


def test_every_image_comes_once_in_each_pass(sampler):
    ids = [name for step in range(16) for name in sampler.batch(step).sample_ids[:6:2]]  # 48 of satellite
    assert set(ids[:24]) == set(ids[24:]) == set(sampler._members["train"][1].ids)
    assert ids[:24] != ids[24:]


def test_target_domains_take_turns_where_the_batch_does_not_divide(make):
    odd = make(target_batch_size=3)
    domains = torch.cat([odd.batch(step).target_domains for step in range(4)])
    assert domains.bincount().tolist() == [6, 6]


@pytest.mark.parametrize(
    ("targets", "sources", "taken"), [(6, 2, [0, 3]), (4, 4, [0, 1, 2, 3]), (2, 3, [0, 1, 0]), (6, 0, [])]
)
def test_sources_take_the_timesteps_of_targets(make, targets, sources, taken):
    batch = make(target_batch_size=targets, source_batch_size=sources, lambda_align=0.0).batch(2)
    assert batch.source_timesteps.tolist() == batch.target_timesteps[taken].tolist()
    assert batch.source_latents.shape == (sources, 4, 4, 4)


def test_sources_come_every_few_micro_batches_and_miss_no_image(make):
    rare = make(target_batch_size=1, source_batch_size=1, source_every=3, gradient_accumulation_steps=2)
    batches = [rare.batch(step, micro) for step in range(36) for micro in range(2)]
    assert [len(batch.source_prompts) for batch in batches] == [1, 0, 0] * 24
    assert all(len(batch.source_latents) == len(batch.source_prompts) for batch in batches)
    drawn = [batch.sample_ids[1] for batch in batches if batch.source_prompts]
    assert sorted(drawn) == sorted(rare._members["train"][0].ids)


def test_timesteps_are_uniform_over_the_whole_range_and_noise_is_standard_normal(sampler):
    batches = [sampler.batch(step) for step in range(200)]
    times = torch.cat([batch.target_timesteps for batch in batches]).numpy()
    counts = np.histogram(times, bins=5, range=(0, 1000))[0] / len(times)
    assert counts == pytest.approx([0.2] * 5, abs=0.04) and times.min() < 10 and times.max() > 990
    noise = torch.cat([batch.target_noise.flatten() for batch in batches])
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


def test_prompts_carry_the_token_and_vary_their_wording(sampler):
    prompts = [p for step in range(40) for p in sampler.batch(step).target_prompts[1::2]]
    member = sampler._members["train"][2]
    assert len(set(prompts)) > len(member)  # more than one caption an image
    assert set(prompts) <= {f"<xray> {c}" for captions in member.captions for c in captions}
    assert not any("<" in prompt for prompt in sampler.batch(0).source_prompts)


def test_caption_dropout_empties_its_share_and_changes_nothing_else(make, sampler):
    dropped = make(caption_dropout=0.3)
    prompts = [p for step in range(60) for p in dropped.batch(step).target_prompts]
    assert prompts.count("") / len(prompts) == pytest.approx(0.3, abs=0.07)
    drawn = {prompt for step in range(60) for prompt in dropped.batch(step).source_prompts}
    assert "" in drawn and drawn <= set(dropped.source_prompts())
    assert dropped.source_prompts() == sampler.source_prompts()
    plain, other = sampler.batch(5), dropped.batch(5)
    assert torch.equal(plain.target_latents, other.target_latents)
    assert torch.equal(plain.target_noise, other.target_noise)
    assert all(b in ("", a) for a, b in zip(plain.target_prompts, other.target_prompts, strict=True))


def test_latents_are_draws_of_the_vae_s_posterior(sampler, vae):
    source = sampler._members["train"][0]
    pixels = torch.from_numpy(np.asarray(source.images[0], np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    drawn = []
    for batch in map(sampler.batch, range(600)):
        drawn += [batch.source_latents[i] for i in range(2) if batch.sample_ids[6 + i] == source.ids[0]]
    drawn = torch.stack(drawn) / vae.config.scaling_factor
    mean, std = posterior.mean[0], posterior.std[0]
    assert ((drawn.mean(0) - mean).abs() / std).max() < 5 / len(drawn) ** 0.5
    assert (drawn.std(0) / std).mean() == pytest.approx(1, abs=0.1)


def test_fixed_batches_are_held_out_spread_over_the_timesteps_and_never_change(make):
    held = make(validation_images=5)
    batches = held.validation_batches()
    assert [len(b.target_latents) for b in batches] == [6, 4]
    assert [len(each) for each in held._latents["validation"][1:]] == [5, 5]  # no other is encoded
    ids = {name for b in batches for name in b.sample_ids}
    assert not ids & {name for member in held._members["train"] for name in member.ids}
    targets = [name for b in batches for name in b.sample_ids[: len(b.target_latents)]]
    assert len(set(targets)) == 10
    domains = torch.cat([b.target_domains for b in batches])
    times = torch.cat([b.target_timesteps for b in batches])
    assert sorted(times[domains == 0].tolist()) == [100, 300, 500, 700, 900]
    assert all(prompt.startswith("<") for b in batches for prompt in b.target_prompts)
    for again in (held.validation_batches(), make(validation_images=5, seed=7).validation_batches()):
        assert all(same_batch(one, two) for one, two in zip(batches, again, strict=True))


@pytest.mark.parametrize(
    "changes", [{"validation_images": 0}, {"validation_fraction": 0.0}, {"validation_every": 0}]
)
def test_no_fixed_batches_where_nothing_is_held_out(make, changes):
    assert make(**changes).validation_batches() == []


def test_fingerprint_tells_other_images_and_other_captions(make, sampler):
    again = make(seed=7)
    assert sampler.fingerprint == again.fingerprint
    member = again._members["train"][1]
    member.captions = [["something else"], *member.captions[1:]]
    del again.fingerprint
    source, *targets = sampler._members["train"]
    fewer = latents.Sampler(sampler.config, source, targets[:1])
    assert sampler.fingerprint not in (again.fingerprint, fewer.fingerprint)
    with pytest.raises(DasdError, match="encode"):
        latents.Sampler(sampler.config, source, targets).batch(0)
