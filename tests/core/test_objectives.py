"""The objective of DASD: its formula, the shared pass, the feature queue."""

import dataclasses

import narrow
import pytest
import torch
from diffusers import DDPMScheduler
from synthetic import make_batch, make_parts

from dasd_utils import losses, models
from dasd_utils.config import AlignmentConfig
from dasd_utils.latents import Batch


@pytest.fixture
def parts(tiny_config):
    return make_parts(tiny_config)


def test_prompts_of_the_source_carry_no_gradient(tiny_config, parts, monkeypatch):
    """No token of theirs learns; that nothing else changes is seen in the next test."""
    encode, seen = models.encode_prompts, []
    monkeypatch.setattr(models, "encode_prompts", lambda *a: seen.append(encode(*a)) or seen[-1])
    losses.predict_noise(parts, make_batch(tiny_config), with_source=True)
    assert [text.requires_grad for text in seen] == [True, False]


def test_tokens_alone_learn_from_a_batch_without_captions(tiny_config):
    """Their gradient is 0, where cached texts would leave nothing to differentiate."""
    config = tiny_config.replace(rank=0, prior_loss_weight=1.0, lambda_align=0.0)
    parts, batch = make_parts(config), make_batch(config)
    batch = dataclasses.replace(batch, target_prompts=[""] * len(batch.target_prompts))
    models.cache_texts(parts, ["", *batch.source_prompts])
    loss, _ = losses.DasdObjective(config)(parts, batch, config)
    loss.backward()
    assert parts.tokens.weight.grad.eq(0).all()


def assert_near(found, expected, relative, absolute=1e-9):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= relative * theirs.norm() + absolute


def whole_pass(parts, batch, kind):
    """Return (prediction, noise, a, features) of the targets or sources, by a pass of the whole UNet."""
    latents, noise, timesteps = (getattr(batch, f"{kind}_{x}") for x in ("latents", "noise", "timesteps"))
    text = models.encode_prompts(parts, getattr(batch, f"{kind}_prompts"))
    a, mids = parts.noise_scheduler.alphas_cumprod[timesteps][:, None, None, None], []
    hook = parts.unet.mid_block.register_forward_hook(lambda _m, _a, out: mids.append(out))
    eps = parts.unet(a.sqrt() * latents + (1 - a).sqrt() * noise, timesteps, text).sample
    hook.remove()
    return eps, noise, a, mids[0].mean(dim=(2, 3))


def weighted_error(eps, noise, a, _features):
    """Return the noise prediction loss with min-SNR weights of gamma 5."""
    return ((eps - noise).square().mean(dim=(1, 2, 3)) * (5 * (1 - a) / a).clamp(max=1).flatten()).mean()


def test_loss_and_gradients_are_those_of_two_whole_passes(tiny_config, parts):
    """What makes a step fast changes nothing: cached texts, the shared pass, the source that stops early."""
    config = tiny_config.replace(lambda_align=0.5, queue_size=0, dropout=0.0, min_snr_gamma=5.0)
    config = config.replace(source_features="adapted")
    batch = make_batch(config)
    parts.unet.train()
    groups = models.trainable_parameters(parts)
    generator = torch.Generator().manual_seed(3)
    for weight in groups["lora"]:
        torch.nn.init.normal_(weight, std=0.05, generator=generator)
    weights = [p for group in groups.values() for p in group]
    target, source = (whole_pass(parts, batch, kind) for kind in ("target", "source"))
    mmd = [losses.mmd(source[3], target[3][batch.target_domains == d], "multi") for d in (0, 1)]
    noise = weighted_error(*target)
    plain = noise + 0.5 * sum(mmd) / 2
    expected = torch.autograd.grad(plain, weights)

    models.cache_texts(parts, batch.source_prompts)
    loss, logs = losses.DasdObjective(config)(parts, batch, config)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert logs["loss_noise"] == pytest.approx(noise.item(), rel=1e-5)
    assert logs["mmd"] == pytest.approx((sum(mmd) / 2).item(), rel=1e-3, abs=1e-6)
    assert logs["mmd_xray"] == pytest.approx(mmd[1].item(), rel=1e-3, abs=1e-6)
    assert_near(torch.autograd.grad(loss, weights), expected, 1e-5)


@pytest.mark.parametrize("layer", ["mid", "down.1", "up.0"])
@pytest.mark.parametrize("source_features", ["adapted", "frozen"])
def test_the_gradient_of_the_mmd_reaches_lora(tiny_config, parts, source_features, layer):
    """Through the targets, and through the sources that the adapted model sees."""
    config = tiny_config.replace(queue_size=0, dropout=0.0, source_features=source_features, layer=layer)
    weights, batch = models.trainable_parameters(parts)["lora"], make_batch(config)
    narrow.randomise({"lora": weights}, scale=0.02)

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, materialize_grads=True)])

    def loss(weight):
        return losses.DasdObjective(config)(parts, batch, config.replace(lambda_align=weight))[0]

    def features():
        return losses.pool_features(losses.predict_noise(parts, batch, True, layer=layer)[1], "mean")

    target, source = features().split([6, 2])
    if source_features == "frozen":
        with torch.no_grad(), models.lora_disabled(parts):
            source = features()[6:]
    mmd = sum(losses.mmd(source, target[batch.target_domains == d], "multi") for d in (0, 1)) / 2
    found, expected = gradient(loss(1.0)) - gradient(loss(0.0)), gradient(mmd)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize(
    "weight, source_features, prior, entered, left",
    [
        (0.0, "adapted", 0.0, [6], 6),
        (0.01, "adapted", 0.0, [8], 6),
        (0.01, "frozen", 0.0, [6, 2], 6),
        (0.0, "frozen", 0.5, [8], 8),
        (0.01, "adapted", 0.5, [8], 8),
        (0.01, "frozen", 0.5, [8, 2], 8),
        (0.01, "bank", 0.5, [8, 2], 8),  # no bank is opened: the source passes anyway
    ],
)
def test_the_source_passes_as_far_as_it_is_looked_at(
    tiny_config, parts, weight, source_features, prior, entered, left
):
    changes = dict(lambda_align=weight, source_features=source_features, prior_loss_weight=prior)
    config, seen = tiny_config.replace(**changes), {"conv_in": [], "conv_out": []}
    for name, rows in seen.items():
        hook = parts.unet.get_submodule(name).register_forward_hook
        hook(lambda _m, args, _out, rows=rows: rows.append(len(args[0])))
    _, logs = losses.DasdObjective(config)(parts, make_batch(config), config)
    assert (seen["conv_in"], seen["conv_out"]) == (entered, [left])  # the base's pass ends at the block
    assert ("mmd" in logs, "loss_prior" in logs) == (weight > 0, prior > 0)
    assert losses.needs_source(config) == (weight > 0 or prior > 0)
    losses.DasdObjective(config)(parts, make_batch(config, sources=0), config)
    assert seen["conv_in"][len(entered) :] == [6]


def test_the_sources_own_loss_is_added_with_its_weight(tiny_config, parts):
    config = tiny_config.replace(lambda_align=0.0, prior_loss_weight=0.5, min_snr_gamma=5.0, dropout=0.0)
    weights, batch = models.trainable_parameters(parts)["lora"], make_batch(config, sources=3)
    narrow.randomise({"lora": weights}, scale=0.02)
    prior = weighted_error(*whole_pass(parts, batch, "source"))
    without = config.replace(prior_loss_weight=0.0)
    plain, _ = losses.DasdObjective(without)(parts, batch, without)

    loss, logs = losses.DasdObjective(config)(parts, batch, config)
    assert set(logs) == {"loss_noise", "loss_prior"}
    assert logs["loss_prior"] == pytest.approx(prior.item(), rel=1e-4)
    assert logs["loss_noise"] == pytest.approx(plain.item(), rel=1e-5)
    assert loss.item() == pytest.approx((plain + 0.5 * prior).item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, weights) for value in (loss, plain + 0.5 * prior)]
    assert_near(*gradients, 1e-3, 1e-7)
    _, logs = losses.DasdObjective(config)(parts, make_batch(config, sources=0), config)
    assert set(logs) == {"loss_noise"}


def features_of(batch: Batch, seed: int) -> torch.Tensor:
    return torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_queue_enlarges_both_samples_and_carries_no_gradient(tiny_config):
    config = tiny_config.replace(queue_size=100, kernel="gaussian")
    objective, batch = losses.DasdObjective(config), make_batch(tiny_config)
    first, second = features_of(batch, 1), features_of(batch, 2)
    objective.distances(first, batch, config)
    found = objective.distances(second, batch, config)["xray"]
    both = torch.stack([first, second])
    source, xray = both[:, 6:].flatten(0, 1), both[:, 1:6:2].flatten(0, 1)
    assert found.item() == pytest.approx(losses.mmd(source, xray, "gaussian").item(), abs=1e-6)
    found.backward()
    assert first.grad is None and second.grad[6:].abs().sum() > 0


def feature_gradient(config, features, copies: int, parts: int = 1) -> torch.Tensor:
    """Return the gradient of one step's MMD for 8 targets of two domains and 4 sources.

    The queue holds copies of the step's own features; the step is divided into `parts` micro-batches.
    """
    objective, features = losses.DasdObjective(config), features.clone().requires_grad_()
    whole = make_batch(config, domains=(0, 1) * 4, sources=4)
    objective.distances(features.detach(), whole, config)
    objective.queue.rows = {name: rows.repeat(copies, 1) for name, rows in objective.queue.rows.items()}
    if not copies:
        objective.queue.rows = {}
    targets, sources = features[:8].chunk(parts), features[8:].chunk(parts)
    for few in map(torch.cat, zip(targets, sources, strict=True)):
        batch = make_batch(config, domains=(0, 1) * (4 // parts), sources=4 // parts)
        distances = objective.distances(few, batch, config)
        (torch.stack(list(distances.values())).mean() / parts).backward()
    return features.grad


@pytest.mark.parametrize("kernel", ["multi", "gaussian", "linear"])
def test_the_pull_depends_neither_on_the_queues_age_nor_on_a_steps_division(tiny_config, kernel):
    """With rows like the queue's; only new rows carry a gradient, which counts for the whole set."""
    config = tiny_config.replace(queue_size=1000, kernel=kernel, unbiased=False)
    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    features[8:] += 1
    young = feature_gradient(config, features, copies=0)
    for copies in (1, 7):
        torch.testing.assert_close(feature_gradient(config, features, copies), young, rtol=1e-4, atol=1e-6)
    for unbiased in (False, True):
        for parts in (1, 2, 4):
            found = feature_gradient(config.replace(unbiased=unbiased), features, 100, parts)
            assert found.norm().item() == pytest.approx(young.norm().item(), rel=0.01)
            assert (found - young).norm() < 0.02 * young.norm()  # the median bandwidth may step


def test_queue_keeps_the_newest_finite_rows():
    queue = losses.FeatureQueue(3)
    queue.push("x", torch.tensor([[1.0], [2.0]]))
    queue.push("x", torch.tensor([[3.0], [float("nan")], [4.0]], requires_grad=True))
    assert queue.rows["x"].tolist() == [[2.0], [3.0], [4.0]]
    assert not queue.rows["x"].requires_grad
    assert queue.extend("x", torch.tensor([[5.0]])).tolist() == [[2.0], [3.0], [4.0], [5.0]]
    off = losses.FeatureQueue(0)
    off.push("x", torch.ones(2, 1))
    assert off.rows == {}


def test_a_domain_with_one_sample_waits_until_the_queue_has_another(tiny_config):
    config = tiny_config.replace(queue_size=4)
    objective, batch = losses.DasdObjective(config), make_batch(config, domains=(0, 0, 0, 1))
    assert set(objective.distances(features_of(batch, 1), batch, config)) == {"satellite"}
    assert set(objective.distances(features_of(batch, 2), batch, config)) == {"satellite", "xray"}
    single = make_batch(config, sources=1)
    assert losses.DasdObjective(config).distances(features_of(single, 1), single, config) == {}


def test_a_batch_without_source_compares_with_the_queue(tiny_config, parts):
    config = tiny_config.replace(queue_size=8, source_every=3)
    objective = losses.DasdObjective(config)
    objective(parts, make_batch(config, seed=1), config)
    queued = objective.queue.rows["painting"].clone()
    loss, logs = objective(parts, make_batch(config, seed=2, sources=0), config)
    assert set(logs) >= {"mmd_satellite", "mmd_xray"} and loss.isfinite()
    assert torch.equal(objective.queue.rows["painting"], queued)
    loss.backward()
    assert all(p.grad is not None for p in models.trainable_parameters(parts)["lora"])


def test_the_biased_estimator_takes_one_sample_and_pairs_are_compared_one_by_one(tiny_config):
    config = tiny_config.replace(queue_size=0, unbiased=False, kernel="linear")
    batch = make_batch(config, domains=(0, 1), sources=1)
    features = features_of(batch, 1)
    found = losses.DasdObjective(config).distances(features, batch, config)
    torch.testing.assert_close(found["satellite"], (features[0] - features[2]).square().sum())
    paired, batch = config.replace(pairs=True), make_batch(config, sources=3)
    features = features_of(batch, 1)
    found = losses.DasdObjective(paired).distances(features, batch, paired)["xray"]
    pairs = [(features[i] - features[j]).square().sum() for i in (1, 3, 5) for j in (6, 7, 8)]
    torch.testing.assert_close(found, torch.stack(pairs).mean())


def test_a_tenth_of_the_time_counts_as_much_as_the_median_distance_of_features():
    settings = AlignmentConfig(kernel="gaussian", unbiased=False, match_timesteps=True)
    generator = torch.Generator().manual_seed(0)
    features, times = torch.randn(9, 3, generator=generator) / 10, torch.rand(9, 1, generator=generator)
    scale = 10 * torch.pdist(features).median()  # of 36 distances, as torch takes it
    rows = torch.cat([features, scale * times], dim=1)
    k = torch.exp(-torch.cdist(rows, rows).square() / (2 * (scale / 10) ** 2))  # of the features alone
    expected = k[:4, :4].mean() + k[4:, 4:].mean() - 2 * k[:4, 4:].mean()
    found = losses.alignment_distance(*torch.cat([features, times], dim=1).split([4, 5]), settings)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_features_are_pooled_and_times_are_their_last_column(tiny_config, parts):
    features = torch.arange(16.0).reshape(2, 2, 2, 2)
    assert losses.pool_features(features, "mean").tolist() == [[1.5, 5.5], [9.5, 13.5]]
    assert losses.pool_features(features, "flat").shape == (2, 8)
    batch, mid = make_batch(tiny_config), torch.ones(8, 5, 2, 2, dtype=torch.bfloat16)
    rows = losses.alignment_features(mid, batch, parts, tiny_config)
    assert torch.equal(rows, torch.ones(8, 5))
    times = torch.cat([batch.target_timesteps, batch.source_timesteps])[:, None]
    for count in (1000, 500):
        parts.noise_scheduler = DDPMScheduler(num_train_timesteps=count)
        timed = losses.alignment_features(mid, batch, parts, tiny_config.replace(match_timesteps=True))
        torch.testing.assert_close(timed, torch.cat([rows, times / count], dim=1))


def test_validation_loss_of_each_domain(tiny_config, parts):
    config = tiny_config.replace(min_snr_gamma=None)
    batches = [make_batch(config, seed=1), make_batch(config, seed=2, domains=(1,))]
    found = losses.validation_losses(parts, batches, config)
    errors = []
    for batch in batches:
        eps, _ = losses.predict_noise(parts, batch, with_source=False)
        errors.append((eps - batch.target_noise).square().mean(dim=(1, 2, 3))[batch.target_domains == 1])
    assert set(found) == {"validation_satellite", "validation_xray"}
    assert found["validation_xray"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)
