"""Metrics against hand-computed values, trusted implementations and simulations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, spatial, stats
from torch.nn import functional as F
from torchmetrics.image.kid import poly_mmd
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dasd_utils import evaluation, figures, losses, metrics
from dasd_utils.runtime import files


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(seed, n, d=8, shift=0.0):
    """Return unit-norm features scattered about one direction."""
    x = 0.25 * normal(seed, n, d)
    x[:, 0] += 1
    x[:, 1] += shift
    return F.normalize(x, dim=-1)


# features


@pytest.fixture(scope="module")
def scorer(base_dir):
    parts = CLIPModel, CLIPTokenizer, CLIPImageProcessor
    model, *others = (part.from_pretrained(base_dir / "clip") for part in parts)
    return evaluation.Scorer(model.eval(), *others)


def test_features_equal_those_of_the_clip_forward_pass(scorer):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in pixels]
    texts = ["aerial view", "chest scan of the lungs", "a", "river", "a small village"]
    tokens = scorer.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = scorer.clip(**tokens, **scorer.processor(images=images, return_tensors="pt"))
    features = scorer.embed(images, batch_size=2)
    torch.testing.assert_close(features, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))
    assert not features.requires_grad
    found = files.embed_texts(scorer.clip, scorer.tokenizer, texts, batch_size=2)
    torch.testing.assert_close(found, expected.text_embeds, atol=1e-5, rtol=1e-4)


def test_images_of_any_mode_and_size_are_embedded_and_long_texts_are_cut(scorer):
    grey = [Image.new("L", (70, 50), 90), Image.new("RGBA", (20, 40), (90, 90, 90, 255))]
    one, other = scorer.embed(grey)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    long = "river " * 200
    one, other = scorer.embed_texts([long, long + "harbor"])
    torch.testing.assert_close(one, other)


# CLIP score


def test_attribute_accuracy_by_hand():
    shown = [{"scene": "harbor", "count": "two", "water": "blue"}, {"scene": "river"}]
    mentioned = [{"scene": "harbor", "count": "three"}, {"scene": "river"}]
    assert metrics.attribute_accuracy(shown, mentioned).tolist() == [0.5, 1.0]


def test_clip_score_by_hand():
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.6, 0.8]])
    torch.testing.assert_close(metrics.clip_scores(images, texts), torch.tensor([0.6, 0.8]))
    assert metrics.clip_scores(images, texts).mean().item() == pytest.approx(0.7)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        metrics.clip_scores(images, texts[:1])


def test_the_shuffled_floor_never_uses_a_text_of_the_same_prompt():
    """Images of one prompt get the same wrong text, and each text goes to one prompt."""
    texts = F.normalize(torch.tensor([[1.0, 0], [1, 1], [1, 2], [1, 5]]), dim=-1)
    own = texts[:, 0].repeat_interleave(3)  # the score of the image (1, 0) with each text
    images, groups = torch.tensor([[1.0, 0]]).expand(12, 2), torch.arange(4).repeat_interleave(3)
    for seed in range(5):
        args = images, texts.repeat_interleave(3, dim=0), groups
        floor = metrics.shuffled_scores(*args, repeats=1, seed=seed).view(4, 3)
        assert (floor == floor[:, :1]).all() and (floor != own.view(4, 3)).all()
        assert floor[:, 0].sort().values.tolist() == pytest.approx(texts[:, 0].sort().values.tolist())
    eye = torch.eye(3).repeat_interleave(4, dim=0)
    assert metrics.shuffled_scores(eye, eye).max() > 0  # without groups an equal text can come back
    with pytest.raises(ValueError, match="two different texts"):
        metrics.shuffled_scores(eye, eye, [0] * 12)


# CMMD and KID


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
    groups, found = torch.arange(20).repeat_interleave(4), []
    for i in range(60):
        x, y = units(2 * i, 20).repeat_interleave(4, dim=0), units(2 * i + 1, 50)
        found.append([metrics.cmmd(x, y), metrics.cmmd(x, y, groups)])
    (alone, grouped), (_, error) = np.mean(found, axis=0), np.std(found, axis=0) / 60**0.5
    assert abs(grouped) < 4 * error < alone


# intervals


@pytest.mark.parametrize("values", [normal(0, 40).tolist(), [1.0, 2.0, 4.0, 7.0, 11.0]])
def test_the_interval_of_a_mean_is_that_of_student(values):
    """Drawing P prompts with replacement lacks the factor P / (P - 1): 25 % of the variance of five."""
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = metrics.bootstrap_interval(values, num_bootstrap=20_000)
    assert found == pytest.approx(expected, rel=0.02, abs=0.01)
    twice, groups = np.repeat(values, 2), np.repeat(range(len(values)), 2)
    found = metrics.bootstrap_interval(twice, 20_000, groups=groups)
    assert found == pytest.approx(expected, rel=0.02, abs=0.01)
    assert metrics.bootstrap_interval(values, seed=1) != metrics.bootstrap_interval(values, seed=2)


def test_the_interval_of_a_share_ends_at_0_and_1():
    values = [1.0] * 9 + [0.5]
    assert metrics.bootstrap_interval(values)[1] > 1 == metrics.bootstrap_interval(values, share=True)[1]
    assert metrics.bootstrap_interval([0.0] * 9 + [0.5], share=True)[0] == 0


@pytest.mark.parametrize(("units", "low"), [(24, 0.862), (200, 0.981)])
def test_a_share_without_variance_has_the_interval_of_wilson(units, low):
    """24 of 24 right are no proof of 1, and 24 right against 24 wrong none of a difference of 1."""
    wilson = stats.binomtest(units, units).proportion_ci(method="wilson")
    assert metrics.bootstrap_interval([1.0] * units, share=True) == pytest.approx((wilson.low, 1))
    assert wilson.low == pytest.approx(low, abs=1e-3)
    assert metrics.bootstrap_interval([0.0] * units, share=True) == pytest.approx((0, 1 - wilson.low))
    groups = np.repeat(range(units), 3)  # the units are prompts
    assert metrics.bootstrap_interval([1.0] * 3 * units, groups=groups, share=True)[0] == pytest.approx(
        wilson.low
    )
    weights = metrics.bootstrap_counts(units, 50, seed=0)
    right, wrong = (
        metrics.mean_estimate(torch.full((3, units), value).double(), weights, units, share=True)
        for value in (1.0, 0.0)
    )
    assert right.interval() == pytest.approx((1, wilson.low, 1))
    assert right.minus(wrong).interval() == pytest.approx((1, 2 * wilson.low - 1, 1))
    assert right.minus(right).interval() == pytest.approx((0, wilson.low - 1, 1 - wilson.low))


def covers(interval, truth):
    return interval[0] <= truth <= interval[1]


def test_the_cmmd_interval_of_prompts_covers_the_truth():
    def prompts(seed, n, k):  # k images of each of n prompts
        centres = normal(seed, n, 8).repeat_interleave(k, dim=0)
        return F.normalize(0.2 * centres + 0.1 * normal(seed + 1, n * k, 8) + torch.eye(8)[0], dim=-1)

    truth = metrics.cmmd(prompts(5000, 2000, 1), units(5002, 2000, shift=0.6))
    groups, hits = torch.arange(12).repeat_interleave(4), np.zeros(2)
    for i in range(0, 300, 3):
        x, y = prompts(i, 12, 4), units(i + 2, 60, shift=0.6)
        hits += [covers(metrics.cmmd_interval(x, y, g, 200, i), truth) for g in (groups, None)]
    assert hits[0] >= 90 and hits[1] < 85


@pytest.mark.parametrize(
    ("statistic", "kernel"), [(metrics.cmmd, metrics.cmmd_kernel), (metrics.kid, metrics.kid_kernel)]
)
def test_an_interval_holds_its_value_and_shrinks_with_n(statistic, kernel):
    widths = []
    for n, m in ((20, 20), (200, 20), (20, 200), (200, 200)):
        x, y = units(0, n), units(1, m, shift=0.5)
        value, low, high = metrics.mmd_estimate(x, y, kernel, num_bootstrap=300).interval()
        assert value == pytest.approx(statistic(x, y)) and low < value < high
        widths.append(high - low)
    *few, many = widths
    assert many < few[0] / 2 and many < 0.6 * min(few)  # both sets are drawn again


def test_paired_difference_is_sharper_than_two_intervals():
    prompt_effect = normal(0, 50)
    a, b = prompt_effect + 0.2 + 0.05 * normal(1, 50), prompt_effect + 0.05 * normal(2, 50)
    value, low, high = metrics.paired_difference(a, b)
    assert 0 < low < value < high and value == pytest.approx(0.2, abs=0.03)
    assert metrics.bootstrap_interval(a)[0] < metrics.bootstrap_interval(b)[1]


def test_an_interval_of_too_few_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        metrics.cmmd_interval(units(0, 4), units(1, 9), groups=[0, 0, 0, 0])
    with pytest.raises(ValueError, match="three of them, not 2"):
        metrics.jackknife(lambda rows: 0.0, 2)


# fidelity, diversity, copying


def cloud(n, d=4, seed=0, mean=0.0):
    return normal(seed, n, d) + mean


def means(generated, real, k=5):
    found = metrics.precision_recall(generated, real, k)
    assert [len(each) for each in found.values()] == [len(generated), len(real)] * 2
    return SimpleNamespace(**{name: each.mean().item() for name, each in found.items()})


def test_balls_are_those_of_all_distances():
    real, generated, k = cloud(60), cloud(50, seed=1, mean=0.7), 3
    across = spatial.distance.cdist(generated, real)
    near = [np.sort(spatial.distance.cdist(x, x))[:, k] for x in (generated, real)]
    covered, inside = across <= near[0][:, None], across <= near[1]
    found = means(generated, real, k)
    assert found.precision == pytest.approx(inside.any(1).mean())
    assert found.recall == pytest.approx(covered.any(0).mean())
    assert found.density == pytest.approx(inside.sum() / (k * len(generated)))
    assert found.coverage == pytest.approx(inside.any(0).mean())


def test_far_and_collapsed_sets():
    real = cloud(40)
    far = means(cloud(40, seed=1, mean=100.0), real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    one = real[:1].repeat(40, 1) + 1e-3 * cloud(40, seed=2)
    collapsed = means(one, real)
    assert collapsed.precision == 1 and collapsed.recall < 0.1 and collapsed.coverage < 0.5


def test_copies_are_told_from_new_images():
    train, heldout = cloud(100), cloud(80, seed=1)
    assert not metrics.copy_rank(train[:30] + 1e-4, train, heldout).any()
    assert metrics.copy_rank(cloud(300, seed=2), train, heldout).mean() == pytest.approx(0.5, abs=0.06)
    assert metrics.copy_rank(cloud(30, seed=3, mean=50.0), train, heldout).min() == 1
    distance, index = metrics.nearest_neighbours(train[3:5] + 1e-3, train)
    assert index.tolist() == [3, 4] and distance.max() < 0.01


def test_intra_cluster_distance():
    """A weight is how often a sample was drawn; its copies are at no distance from it."""
    train, generated = torch.tensor([[0.0], [100.0]]), torch.tensor([[1.0], [3.0], [5.0], [98.0], [104.0]])
    found = metrics.intra_cluster_distance(generated, train).item()
    assert found == pytest.approx(((2 + 2 + 4) / 3 + 6) / 2)
    assert metrics.intra_cluster_distance(train.repeat(2, 1), train).item() == 0  # copies
    assert metrics.intra_cluster_distance(train, train).isnan().all()  # every cluster has one
    weights = torch.tensor([[1, 1, 0, 1, 0], [2, 1, 0, 1, 1], [0, 0, 1, 0, 1]])
    pair, triple, none = metrics.intra_cluster_distance(generated, train, weights=weights).tolist()
    assert pair == pytest.approx(2)  # 1 and 3; the other cluster has one
    assert triple == pytest.approx(((2 * 2 * 1 * 2) / (2 * 2 * 1) + 6) / 2) and none != none


# estimates over prompts and seeds


def table(generator, seeds, prompts, of_seeds=0.0, of_prompts=0.0, rest=0.0):
    """Scores (S, P) around 0 with these deviations."""
    shapes = (seeds, 1), (1, prompts), (seeds, prompts)
    one, two, three = (torch.randn(shape, generator=generator) for shape in shapes)
    return (of_seeds * one + of_prompts * two + rest * three).double()


def held(seeds, deviations):
    """Return the share of 400 intervals that hold the truth."""
    generator, weights = torch.Generator().manual_seed(0), metrics.bootstrap_counts(40, 300, seed=0)
    scores = (table(generator, seeds, 40, *deviations) for _ in range(400))
    return np.mean([covers(metrics.mean_estimate(each, weights, 40).interval()[1:], 0) for each in scores])


@pytest.mark.parametrize(
    ("seeds", "deviations"),
    [(3, (0.3, 1.0, 0.5)), (3, (1.0, 0.0, 0.3)), (2, (0.2, 1.0, 0.2)), (5, (0.0, 1.0, 1.0))],
)
def test_the_interval_covers_prompts_and_seeds(seeds, deviations):
    assert held(seeds, deviations) >= 0.93


@pytest.mark.parametrize("seeds", figures.COVERAGE)
def test_intervals_over_few_seeds_hold_the_truth_as_often_as_is_said(seeds):
    assert held(seeds, (1.0, 1.0, 0.3)) == pytest.approx(figures.COVERAGE[seeds] / 100, abs=0.03)


def test_two_variances_widen_as_welch_says():
    half = metrics.half_width(((4.0, 2), (0.0, 50)))
    assert half == pytest.approx(stats.t.ppf(0.975, 2) * 2)
    freedom = 25 / (16 / 2 + 1 / 50)
    assert metrics.half_width(((4.0, 2), (1.0, 50))) == pytest.approx(stats.t.ppf(0.975, freedom) * 5**0.5)
    assert metrics.half_width(((0.0, 2), (0.0, 9))) == 0


def test_pairs_cancel_what_they_share():
    generator, weights = torch.Generator().manual_seed(2), metrics.bootstrap_counts(60, 500, seed=0)
    shared = table(generator, 3, 60, of_prompts=1.0)
    scores = shared + 0.1 + table(generator, 3, 60, rest=0.01), shared
    one, other = (metrics.mean_estimate(each, weights, 60) for each in scores)
    value, low, high = one.minus(other).interval()
    assert low < 0.1 < high and high - low < 0.02 and value == pytest.approx(0.1, abs=0.01)
    assert one.interval()[1] < 0 < one.interval()[2]


def test_draws_are_counts_of_a_resample():
    weights, again, other = (metrics.bootstrap_counts(7, 2000, seed) for seed in (0, 0, 1))
    assert (weights.sum(dim=1) == 7).all() and (weights == weights.round()).all()
    assert weights.mean().item() == 1 and weights.var().item() == pytest.approx(6 / 7, rel=0.05)
    assert torch.equal(weights, again) and not torch.equal(weights, other)


def test_leaving_each_out_is_the_t_interval_for_a_mean():
    values = normal(0, 9).double()
    found = metrics.jackknife(lambda rows: values[rows].mean().item(), 9)
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean().item(), low, high))


def test_leaving_each_out_covers_a_mean_over_pairs():
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        values = 1 + torch.randn(20, generator=generator).double()

        def products(rows, values=values):
            square = torch.outer(values[rows], values[rows])
            return square[torch.triu_indices(len(rows), len(rows), 1).unbind()].mean().item()

        _, low, high = metrics.jackknife(products, 20)
        hits += low <= 1 <= high  # the mean of a product of two samples
    assert 0.9 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("n", "m", "d", "error"), [(500, 400, 3, 1e-6), (5, 6, 20, 1e-3)])
def test_frechet_distance(n, m, d, error):
    """Where features are more than samples too."""
    x, y = cloud(n, d, seed=2), cloud(m, d, seed=1, mean=0.5) * 2
    one, two = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = x.mean(0).double().numpy() - y.mean(0).double().numpy()
    expected = gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert metrics.frechet_distance(x, y).item() == pytest.approx(expected, rel=error)
    assert metrics.frechet_distance(x, x).item() == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_drawn_samples():
    x, y = cloud(30, 3), cloud(40, 3, seed=1, mean=0.5)
    weights = torch.ones(2, 30)
    weights[1, :5], weights[1, 5:10] = 2, 0
    drawn = torch.cat([x[:5], x[:5], x[10:]])
    one, other = metrics.frechet_distance(x, y, weights).tolist()
    assert one == pytest.approx(metrics.frechet_distance(x, y).item())
    assert other == pytest.approx(metrics.frechet_distance(drawn, y).item())
    assert metrics.frechet_distance(y, x, None, weights).tolist() == pytest.approx([one, other])
