"""Metrics against values by hand, trusted implementations and simulations."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchmetrics.image.kid import poly_mmd
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dasd_utils import losses, metrics
from dasd_utils.papers import domainstudio


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Thousands of small products: threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(seed, n, d=8, shift=0.0):
    """Return unit-norm features scattered about one direction."""
    x = 0.25 * normal(seed, n, d)
    x[:, 0] += 1
    x[:, 1] += shift
    return F.normalize(x, dim=-1)


@pytest.fixture(scope="module")
def clip(base_dir):
    folder = base_dir / "clip"
    parts = CLIPModel, CLIPImageProcessor, CLIPTokenizer
    model, processor, tokenizer = (part.from_pretrained(folder) for part in parts)
    return model.eval(), processor, tokenizer


def pictures(n, size=64):
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


# features


def test_features_equal_those_of_the_clip_forward_pass(clip):
    model, processor, tokenizer = clip
    images, texts = pictures(5), ["aerial view", "chest scan of the lungs", "a", "river", "a small village"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, pixel_values=processor(images=images, return_tensors="pt")["pixel_values"])
    image_features = metrics.embed_images(model, processor, images, batch_size=2)
    text_features = metrics.embed_texts(model, tokenizer, texts, batch_size=2)
    torch.testing.assert_close(image_features, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text_features, expected.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(image_features.norm(dim=-1), torch.ones(5))
    assert not image_features.requires_grad


def test_images_of_any_mode_and_size_are_embedded(clip):
    model, processor, _ = clip
    grey = [Image.new("L", (70, 50), 90), Image.new("RGBA", (20, 40), (90, 90, 90, 255))]
    features = metrics.embed_images(model, processor, grey)
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_the_model_is_cut(clip):
    model, _, tokenizer = clip
    long = "river " * 200
    features = metrics.embed_texts(model, tokenizer, [long, long + "harbor"])
    torch.testing.assert_close(features[0], features[1])


def test_embedding_nothing_is_refused(clip):
    model, processor, tokenizer = clip
    with pytest.raises(ValueError, match="no images"):
        metrics.embed_images(model, processor, [])
    with pytest.raises(ValueError, match="no texts"):
        metrics.embed_texts(model, tokenizer, [])


# CLIP score


def test_attribute_accuracy_by_hand():
    shown = [{"scene": "harbor", "count": "two", "water": "blue"}, {"scene": "river"}]
    mentioned = [{"scene": "harbor", "count": "three"}, {"scene": "river"}]
    assert metrics.attribute_accuracy(shown, mentioned).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="1 images"):
        metrics.attribute_accuracy(shown[:1], mentioned)
    with pytest.raises(ValueError, match="at least one"):
        metrics.attribute_accuracy(shown, [{"scene": "harbor"}, {}])


def test_clip_score_by_hand():
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    torch.testing.assert_close(metrics.clip_scores(images, texts), torch.tensor([0.6, 0.8]))
    assert metrics.clip_score(images, texts) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="pairs"):
        metrics.clip_score(images, texts[:1])


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_derangement_moves_everything(n):
    for seed in range(20):
        order = metrics.derangement(n, seed)
        assert sorted(order.tolist()) == list(range(n))
        assert (order != torch.arange(n)).all()
    assert torch.equal(metrics.derangement(n, 3), metrics.derangement(n, 3))


def test_the_shuffled_floor_never_uses_a_text_of_the_same_prompt():
    eye = torch.eye(3).repeat_interleave(4, dim=0)  # four images of each of three orthogonal prompts
    groups = [g for g in range(3) for _ in range(4)]
    assert metrics.clip_score(eye, eye) == 1
    assert metrics.shuffled_scores(eye, eye, groups).max() == 0
    assert metrics.shuffled_scores(eye, eye).max() > 0  # without groups an equal text can come back
    with pytest.raises(ValueError, match="two different texts"):
        metrics.shuffled_scores(eye, eye, [0] * 12)


def test_the_shuffled_floor_tends_to_the_mean_over_all_other_texts():
    images, texts = F.normalize(normal(0, 6, 4), dim=-1), F.normalize(normal(1, 6, 4), dim=-1)
    cosines = images @ texts.T
    expected = (cosines.sum() - cosines.trace()) / 30
    floor = metrics.shuffled_scores(images, texts, repeats=2000).mean()
    assert floor.item() == pytest.approx(expected.item(), abs=0.01)


# CMMD and KID


def test_cmmd_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0]])
    near, far = np.exp(-2 / 200), np.exp(-4 / 200)  # squared distances 2 and 4
    assert metrics.cmmd(x, y) == pytest.approx(1000 * (2 * near - 2 * (near + far) / 2))


def test_kid_equals_torchmetrics():
    x, y = units(0, 30), units(1, 30, shift=0.5)
    assert metrics.kid(x, y) == pytest.approx(poly_mmd(x, y, gamma=1.0).item(), rel=1e-4)
    scaled = poly_mmd(8**0.5 * x, 8**0.5 * y)  # the paper's 1 / d and features of norm sqrt(d)
    assert metrics.kid(x, y) == pytest.approx(scaled.item(), rel=1e-4)


def test_cmmd_and_kid_are_the_mmd_of_losses():
    x, y = units(0, 12).double(), units(1, 20, shift=0.5).double()
    expected = 1000 * losses.mmd(x, y, "gaussian", sigma=10.0)
    assert metrics.cmmd(x, y) == pytest.approx(expected.item())
    groups = range(12)  # each its own: the other way of computing it
    assert metrics.cmmd(x, y, groups) == pytest.approx(expected.item())
    assert metrics.kid(x, y, groups) == pytest.approx(metrics.kid(x, y))


def test_groups_remove_the_bias_of_similar_images():
    """Twenty prompts of four equal images are twenty samples, not eighty."""
    alone, grouped = [], []
    groups = torch.arange(20).repeat_interleave(4)
    for i in range(60):
        x, y = units(2 * i, 20).repeat_interleave(4, dim=0), units(2 * i + 1, 50)
        alone.append(metrics.cmmd(x, y))
        grouped.append(metrics.cmmd(x, y, groups))
    error = np.std(grouped) / len(grouped) ** 0.5
    assert abs(np.mean(grouped)) < 4 * error
    assert np.mean(alone) > 4 * error
    with pytest.raises(ValueError, match="3 groups for 80"):
        metrics.cmmd(x, y, [0, 1, 2])


# intervals


def test_bootstrap_interval_is_near_the_t_interval():
    values = normal(0, 40)
    low, high = metrics.bootstrap_interval(values, num_bootstrap=5000)
    half = 2.0227 * values.std().item() / 40**0.5  # t of 39 degrees of freedom
    assert low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean().item() + half, abs=0.1 * half)
    assert metrics.bootstrap_interval(values, seed=1) == metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval(values, seed=1) != metrics.bootstrap_interval(values, seed=2)


def covers(interval, truth):
    return interval[0] <= truth <= interval[1]


def test_a_mean_of_grouped_values_is_covered():
    groups = np.repeat(np.arange(10), 4)
    random = np.random.default_rng(0)
    hits = {"groups": 0, "alone": 0}
    for i in range(200):
        values = random.normal(size=10).repeat(4) + 0.3 * random.normal(size=40)
        hits["groups"] += covers(metrics.bootstrap_interval(values.tolist(), 200, i, groups.tolist()), 0)
        hits["alone"] += covers(metrics.bootstrap_interval(values.tolist(), 200, i), 0)
    assert hits["groups"] / 200 > 0.9
    assert hits["alone"] / 200 < 0.8


def naive_interval(x, y, seed):
    """Return what drawing with replacement and computing the CMMD again would give."""
    random = np.random.default_rng(seed)

    def draw(z):
        return z[random.integers(0, len(z), len(z))]

    return np.quantile([metrics.cmmd(draw(x), draw(y)) for _ in range(60)], [0.025, 0.975])


def test_the_cmmd_interval_covers_the_truth_where_a_naive_bootstrap_does_not():
    truth = metrics.cmmd(units(1000, 2000, 32), units(1001, 2000, 32, shift=0.2))
    hits, naive = 0, 0
    for i in range(100):
        x, y = units(2 * i, 30, 32), units(2 * i + 1, 40, 32, shift=0.2)
        hits += covers(metrics.cmmd_interval(x, y, num_bootstrap=200, seed=i), truth)
        if i < 30:
            naive += covers(naive_interval(x, y, i), truth)
    assert hits / 100 >= 0.9
    assert naive / 30 < 0.5


def test_the_cmmd_interval_of_prompts_covers_the_truth():
    def prompts(seed, n, k):  # k images of each of n prompts
        centres = normal(seed, n, 8).repeat_interleave(k, dim=0)
        return F.normalize(0.2 * centres + 0.1 * normal(seed + 1, n * k, 8) + torch.eye(8)[0], dim=-1)

    truth = metrics.cmmd(prompts(5000, 2000, 1), units(5002, 2000, shift=0.6))
    groups, hits = torch.arange(12).repeat_interleave(4), {"groups": 0, "alone": 0}
    for i in range(0, 300, 3):
        x, y = prompts(i, 12, 4), units(i + 2, 60, shift=0.6)
        hits["groups"] += covers(metrics.cmmd_interval(x, y, groups, 200, i), truth)
        hits["alone"] += covers(metrics.cmmd_interval(x, y, None, 200, i), truth)
    assert hits["groups"] >= 90
    assert hits["alone"] < 85


@pytest.mark.parametrize(
    ("statistic", "kernel"), [(metrics.cmmd, metrics.cmmd_kernel), (metrics.kid, metrics.kid_kernel)]
)
def test_an_interval_holds_its_value_and_shrinks_with_n(statistic, kernel):
    widths = []
    for n in (20, 200):
        x, y = units(0, n), units(1, n, shift=0.5)
        value, low, high = metrics.mmd_estimate(x, y, kernel, num_bootstrap=300).interval()
        assert value == pytest.approx(statistic(x, y)) and low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_paired_difference_is_sharper_than_two_intervals():
    prompt_effect = normal(0, 50)
    a, b = prompt_effect + 0.2 + 0.05 * normal(1, 50), prompt_effect + 0.05 * normal(2, 50)
    value, low, high = metrics.paired_difference(a, b)
    assert low < value < high
    assert value == pytest.approx(0.2, abs=0.03)
    assert low > 0
    assert metrics.bootstrap_interval(a)[0] < metrics.bootstrap_interval(b)[1]


def test_the_spectrum_of_a_wave_is_at_its_frequency():
    place = torch.arange(64) / 64
    waves = torch.stack([0.5 + 0.25 * torch.sin(2 * torch.pi * k * place).expand(3, 64, 64) for k in (5, 20)])
    power = domainstudio.radial_spectrum(waves)
    assert power.shape == (2, 33) and power.argmax(dim=1).tolist() == [5, 20]
    assert domainstudio.radial_spectrum(waves.transpose(2, 3)).sub(power).abs().max() < 1e-9
    assert domainstudio.radial_spectrum(torch.full((1, 3, 16, 16), 0.3)).abs().max() < 1e-12
    halved = domainstudio.radial_spectrum(0.5 + (waves - 0.5) / 2)
    assert torch.allclose(4 * halved, power)


def test_an_interval_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        metrics.bootstrap_interval([0.3])
    with pytest.raises(ValueError, match="at least two"):
        metrics.cmmd_interval(units(0, 4), units(1, 9), groups=[0, 0, 0, 0])
