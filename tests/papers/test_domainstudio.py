"""DomainStudio: hand-computed losses, the frozen source, its variants, and what it refuses."""

import dataclasses
import math

import narrow
import pytest
import pywt
import torch
from synthetic import make_batch, make_parts

from dasd_utils import losses, models, sampling, training
from dasd_utils.config import Config, DasdError
from dasd_utils.papers import domainstudio
from dasd_utils.papers.domainstudio import Settings
from dasd_utils.study import ladder

TERMS = ("loss_img", "loss_hf", "loss_hfmse")


@pytest.fixture
def config(tiny_config) -> Config:
    """Return a config of the method on the narrow base, three samples of each domain, without dropout."""
    return tiny_config.replace(
        method="domainstudio", lambda_align=0.0, prior_loss_weight=1.0, dropout=0.0, min_snr_gamma=None
    )


@pytest.fixture
def parts(config):
    """Return parts whose LoRA and tokens are as if trained."""
    made = make_parts(config)
    narrow.randomise(models.trainable_parameters(made))
    return made


def terms(parts, config, batch=None, **changes) -> dict[str, float]:
    config = config.replace(method_settings=changes)
    batch = make_batch(config) if batch is None else batch
    return losses.make_objective(config)(parts, batch, config)[1]


def test_similarities_of_three_samples_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]).view(3, 1, 1, 2)
    half = math.sqrt(0.5)  # cosines: 0 of the first two, sqrt 1/2 of each with the third
    expected = torch.tensor([[0.0, half], [0.0, half], [half, half]])
    expected = expected.exp() / expected.exp().sum(dim=1, keepdim=True)
    assert torch.allclose(domainstudio.log_similarities(x).exp(), expected)


def test_euclidean_similarities_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    found = domainstudio.similarities(x, "euclidean") * 2**0.5
    expected = -torch.tensor([[0.0, 5.0, 1.0], [5.0, 0.0, 18**0.5], [1.0, 18**0.5, 0.0]])
    assert torch.allclose(found, expected)


def test_pair_loss_of_three_samples_by_hand():
    generator = torch.Generator().manual_seed(0)
    adapted, base = (torch.randn(3, 2, 2, 2, generator=generator) for _ in range(2))

    def softmax(z: list[list[float]], i: int) -> list[float]:
        others = [row for j, row in enumerate(z) if j != i]
        dots = [sum(a * b for a, b in zip(z[i], row, strict=True)) for row in others]
        lengths = [math.hypot(*z[i]) * math.hypot(*row) for row in others]
        powers = [math.exp(dot / length) for dot, length in zip(dots, lengths, strict=True)]
        return [power / sum(powers) for power in powers]

    def kl(x: torch.Tensor, y: torch.Tensor) -> float:
        rows = [(softmax(x.flatten(1).tolist(), i), softmax(y.flatten(1).tolist(), i)) for i in range(3)]
        return sum(p * math.log(p / q) for ps, qs in rows for p, q in zip(ps, qs, strict=True)) / 3

    group = [torch.arange(3)]
    found = domainstudio.pair_loss(adapted, base, group, Settings())
    assert found.item() == pytest.approx(kl(adapted, base), rel=1e-4)
    other = domainstudio.pair_loss(adapted, base, group, Settings(divergence="base"))
    assert other.item() == pytest.approx(kl(base, adapted), rel=1e-4)
    assert abs(found.item() - other.item()) > 1e-5  # the direction would show


def test_groups_are_compared_apart_and_averaged():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(7, 3, 4, 4, generator=generator) for _ in range(2))
    one, two = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5, 6])
    apart = [domainstudio.pair_loss(x, y, [rows], Settings()) for rows in (one, two)]
    together = domainstudio.pair_loss(x, y, [one, two], Settings())
    assert torch.allclose(together, sum(apart) / 2)
    assert torch.equal(domainstudio.pair_loss(x, y, [one[:2], two], Settings()), apart[1])  # two are too few


def test_haar_is_that_of_pywt():
    x = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(2))
    _, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), "haar")
    # pywt's high-pass is [1, -1] / sqrt 2, the method's [-1, 1] / sqrt 2: one sign a high-pass
    expected = torch.from_numpy(diagonal - horizontal - vertical)
    assert torch.allclose(domainstudio.high_frequencies(x), expected, atol=1e-6)


def test_laplacian_of_a_point():
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1.0
    found = domainstudio.high_frequencies(x, "laplacian")[0, 0]
    assert found.shape == (5, 5) and found.sum() == 0
    assert found[2, 2] == -4 and found[1, 2] == found[2, 3] == 1
    assert not domainstudio.high_frequencies(torch.ones(1, 3, 4, 4), "laplacian").any()


def test_the_loss_is_the_sum_of_its_parts(config, parts):
    """Every part computed anew, by plain calls of the networks."""
    batch = make_batch(config)
    loss, logs = losses.make_objective(config)(parts, batch, config)
    t = batch.target_timesteps[0].expand(6)
    noisy = parts.noise_scheduler.add_noise(batch.target_latents, batch.target_noise, t)
    a = parts.noise_scheduler.alphas_cumprod[t][:, None, None, None]
    eps = parts.unet(noisy, t, models.encode_prompts(parts, batch.target_prompts)).sample
    plain = models.encode_prompts(parts, ["a village"] * 6)
    with torch.no_grad(), models.lora_disabled(parts):
        base = parts.unet(noisy, t, plain).sample
    scale = parts.vae.config.scaling_factor
    clean = [(noisy - (1 - a).sqrt() * e) / a.sqrt() for e in (eps, base)]
    pixels = [parts.vae.decode(x / scale).sample for x in (*clean, batch.target_latents)]
    groups = [torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])]
    high = [domainstudio.high_frequencies(x) for x in pixels]
    own = Settings()
    expected = {
        "loss_img": domainstudio.pair_loss(pixels[0], pixels[1], groups, own),
        "loss_hf": domainstudio.pair_loss(high[0], high[1], groups, own),
        "loss_hfmse": (high[0] - high[2]).square().mean(),
    }
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value.item(), rel=1e-3, abs=1e-8)
    total = logs["loss_noise"] + logs["loss_prior"]
    total += 100 * logs["loss_img"] + 100 * logs["loss_hf"] + 0.1 * logs["loss_hfmse"]
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert logs["loss_noise"] == pytest.approx((eps - batch.target_noise).square().mean().item(), rel=1e-4)


def test_an_adapter_that_changes_nothing_costs_nothing(config):
    """LoRA starts at 0; without tokens the prompts are the same too."""
    config = config.replace(domains=tuple(dataclasses.replace(d, token=None) for d in config.domains))
    parts = training.setup_training(config)
    batch = dataclasses.replace(make_batch(config), target_prompts=["a village"] * 6)
    for space in ("pixels", "latents"):
        logs = terms(parts, config, batch, space=space)
        assert logs["loss_img"] == logs["loss_hf"] == 0.0
        assert logs["loss_hfmse"] > 0


def test_no_gradient_reaches_the_source_and_every_weight_of_the_adapter_has_one(config, parts, monkeypatch):
    found, predict = [], domainstudio.base_prediction
    monkeypatch.setattr(domainstudio, "base_prediction", lambda *a: found.append(predict(*a)) or found[-1])
    before = {name: p.detach().clone() for name, p in parts.unet.named_parameters()}
    loss, _ = losses.make_objective(config)(parts, make_batch(config), config)
    loss.backward()
    assert not found[0].requires_grad
    for name, parameter in parts.unet.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        assert torch.equal(parameter, before[name])
    assert all(p.grad is None for p in parts.vae.parameters())
    assert parts.tokens.weight.grad.abs().sum() > 0


def test_the_source_is_the_base_model_without_the_token(config, parts, monkeypatch):
    seen, encode = [], models.encode_prompts
    monkeypatch.setattr(models, "encode_prompts", lambda p, texts: seen.append(texts) or encode(p, texts))
    terms(parts, config)
    assert ["a village"] * 6 in seen
    fresh, batch = models.load_parts(config), domainstudio.one_timestep(make_batch(config))
    plain = models.encode_prompts(fresh, ["a village"] * 6)
    with torch.no_grad():
        expected = fresh.unet(domainstudio.noisy_targets(fresh, batch), batch.target_timesteps, plain).sample
    base = domainstudio.base_prediction(parts, batch, config)
    assert torch.allclose(base, expected, atol=1e-6)
    narrow.randomise(models.trainable_parameters(parts), seed=5)
    assert torch.equal(domainstudio.base_prediction(parts, batch, config), base)


@pytest.mark.parametrize("mixed", [False, True])
def test_all_of_the_unet_may_learn_against_its_own_past(config, mixed):
    """Autocast keeps half-precision copies of weights by their place: they must not survive the exchange."""
    config = config.replace(whole_unet=True)
    parts = training.setup_training(config)
    narrow.randomise({"unet": models.trainable_parameters(parts)["unet"]}, scale=0.05)
    fresh, batch = models.load_parts(config), domainstudio.one_timestep(make_batch(config))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        _, logs = losses.make_objective(config)(parts, batch, config)
        base = domainstudio.base_prediction(parts, batch, config)
        plain = models.encode_prompts(fresh, ["a village"] * 6)
        with torch.no_grad():
            noisy = domainstudio.noisy_targets(fresh, batch)
            expected = fresh.unet(noisy, batch.target_timesteps, plain).sample
            own = parts.unet(noisy, batch.target_timesteps, plain).sample
    assert torch.allclose(base, expected, atol=1e-5) and not torch.allclose(own, expected, atol=1e-2)
    assert logs["loss_img"] > 0
    loss, _ = losses.make_objective(config)(parts, batch, config)
    loss.backward()
    assert all(p.grad is not None for p in parts.unet.parameters())


def test_one_timestep_is_the_first_targets(config):
    batch = make_batch(config)
    shared = domainstudio.one_timestep(batch)
    assert shared.target_timesteps.tolist() == [batch.target_timesteps[0].item()] * 6
    assert shared.source_timesteps.tolist() == [batch.target_timesteps[0].item()] * 2
    assert torch.equal(shared.target_noise, batch.target_noise)


def test_every_variant_is_another_loss(config, parts):
    changes = {"space": "latents", "similarity": "euclidean", "detail": "laplacian"}
    changes |= {"divergence": "base", "timesteps": "own"}
    found = [terms(parts, config)] + [terms(parts, config, **{name: each}) for name, each in changes.items()]
    values = [logs["loss_hf"] for logs in found]
    assert len(set(values)) == len(values) and all(v > 0 for v in values)


def test_only_so_many_samples_are_compared(config, parts):
    """The first three of four of a domain: what the fourth holds does not matter to them."""
    settings = {"image_weight": 1.0, "samples": 3}
    batch = make_batch(config, domains=(0,) * 4)
    other = dataclasses.replace(batch, target_latents=batch.target_latents.clone())
    other.target_latents[3] += 1.0
    one, two = (terms(parts, config, each, **settings) for each in (batch, other))
    assert [one[name] for name in TERMS] == pytest.approx([two[name] for name in TERMS])
    assert one["loss_noise"] != two["loss_noise"]
    assert terms(parts, config, batch, samples=4)["loss_img"] != one["loss_img"]


def test_without_weights_nothing_is_compared(config, parts, monkeypatch):
    for module, name in ((sampling, "decode"), (domainstudio, "base_prediction")):
        monkeypatch.setattr(module, name, lambda *a: pytest.fail("compared"))
    assert set(terms(parts, config, **domainstudio.NO_LOSSES)) == {"loss_noise", "loss_prior"}


def test_decoding_one_by_one_has_the_same_gradient(parts):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    found = []
    for step_by_step in (False, True):
        pixels = sampling.decode(parts, latents, step_by_step)
        found.append((pixels.detach(), torch.autograd.grad(pixels.square().sum(), latents)[0]))
    assert found[0][0].shape == (3, 3, 32, 32)
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_similarities_are_computed_in_full_precision_under_autocast():
    x, y = (torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    rows = [torch.arange(4)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = domainstudio.relations(x, y, y, rows, Settings())
    exact = domainstudio.pair_loss(x.double(), y.double(), rows, Settings())
    assert inside["loss_img"].item() == pytest.approx(exact.item(), rel=1e-4)  # bf16 keeps two digits
    high = (domainstudio.high_frequencies(each.double()) for each in (x, y))
    exact = domainstudio.pair_loss(*high, rows, Settings())
    assert inside["loss_hf"].item() == pytest.approx(exact.item(), rel=1e-4)


def test_batches_under_three_are_refused_with_the_reason(config):
    reason = r"softmax is 1 and the loss 0.*Set target_batch_size to 6 or more"
    for size in (1, 4, 5):
        with pytest.raises(DasdError, match=reason):
            config.replace(target_batch_size=size)
    config.replace(target_batch_size=2, method_settings=domainstudio.NO_LOSSES)  # nothing is compared
    with pytest.raises(DasdError, match=r"samples is 2"):
        config.replace(method_settings={"samples": 2})


SETTINGS = [
    ({"image_wieght": 1.0}, "Did you mean 'image_weight'"),
    ({"space": "pixel"}, "must be 'pixels' or"),
    ({"similarity": "dot"}, "similarity is 'dot'"),
    ({"detail_weight": -1.0}, "detail_weight is -1.0; it must be greater than or equal to 0"),
    ({"detail_weight": "much"}, "it must be a valid number"),
    ({"image_weight": float("nan")}, "finite"),
]


def test_settings_that_do_not_fit_are_refused(config):
    for settings, message in SETTINGS:
        with pytest.raises(DasdError, match=message):
            config.replace(method_settings=settings)
    with pytest.raises(DasdError, match=r"lambda_align is 0\.01, but DomainStudio aligns no features"):
        config.replace(lambda_align=0.01)


def test_the_rungs_of_the_method_train_what_they_name(tiny_config):
    known = {method.name: method for method in (*ladder.METHODS, *ladder.PAPER_METHODS)}
    assert len(known) == len(ladder.METHODS) + len(ladder.PAPER_METHODS)
    assert all(method.after in known and method.after != method.name for method in ladder.PAPER_METHODS)
    runs = {}
    for method in ladder.PAPER_METHODS:
        if not method.trained or method.objective != "domainstudio":
            continue
        asked = method.config(tiny_config)
        assert asked.method == "domainstudio" and asked.alignment.lambda_align == 0
        assert (asked.data.source_images == "generated") == (asked.training.prior_loss_weight > 0)
        runs[method.name] = ladder.run_config(tiny_config, method, 0).output_dir
    assert len(set(runs.values())) == len(runs)
    single = known["DomainStudio, L_hf"].config(tiny_config)
    assert domainstudio.settings(single) == Settings(image_weight=0.0, detail_mse_weight=0.0)
    blind = known["DomainStudio, unconditional"].config(tiny_config)
    assert blind.training.caption_dropout == 1.0 and all(d.token is None for d in blind.domains)
    assert blind.training.prior_loss_weight == 0.0
    assert known["DomainStudio, whole UNet"].config(tiny_config).training.whole_unet


def test_the_spectrum_of_a_wave_is_at_its_frequency():
    place = torch.arange(64) / 64
    waves = torch.stack([0.5 + 0.25 * torch.sin(2 * torch.pi * k * place).expand(3, 64, 64) for k in (5, 20)])
    power = domainstudio.radial_spectrum(waves)
    assert power.shape == (2, 33) and power.argmax(dim=1).tolist() == [5, 20]
    assert domainstudio.radial_spectrum(waves.transpose(2, 3)).sub(power).abs().max() < 1e-9
    assert domainstudio.radial_spectrum(torch.full((1, 3, 16, 16), 0.3)).abs().max() < 1e-12
    halved = domainstudio.radial_spectrum(0.5 + (waves - 0.5) / 2)
    assert torch.allclose(4 * halved, power)
