"""Features of the bottleneck, and linear classifiers on them."""

import narrow
import pytest
import torch
from synthetic import pictures

from dasd_utils import models
from dasd_utils.papers import editing
from dasd_utils.papers.diffusionclip import hspace


@pytest.fixture
def pipeline(pipeline):
    pipeline.batch_size = 2
    return pipeline


def test_features_are_the_mean_of_the_mid_block_over_space(pipeline):
    parts, (picture,) = pipeline.parts, pictures(1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    latents = parts.noise_scheduler.add_noise(editing.encode(parts, [picture]), noise, torch.tensor([200]))
    with torch.no_grad(), models.lora_disabled(parts):
        text = models.encode_prompts(parts, [""])
        _, mid = models.unet_pass(parts.unet, latents, torch.tensor([200]), text)
    found = hspace.features(pipeline, [picture], 200, draws=1, seed=3)
    assert torch.allclose(found, mid.mean(dim=(2, 3)), atol=1e-5)


def test_features_are_the_bases_and_smoother_over_more_draws(pipeline):
    chosen = pictures(3)
    before = hspace.features(pipeline, chosen, 500, draws=2)
    narrow.randomise(models.trainable_parameters(pipeline.parts))
    assert torch.equal(hspace.features(pipeline, chosen, 500, draws=2), before)

    def spread(draws):
        return torch.stack([hspace.features(pipeline, chosen, 500, draws, seed) for seed in range(6)]).var(0)

    assert spread(8).mean() < spread(1).mean() / 3


def test_a_straight_line_is_found_and_a_shift_taken_away():
    random = torch.Generator().manual_seed(0)
    labels = ["no", "yes"] * 100
    x = torch.randn(200, 5, generator=random)
    x[1::2, 0] += 4
    made = hspace.fit(x, labels)
    assert sum(a == b for a, b in zip(made.classify(x), labels, strict=True)) >= 190
    moved = x + torch.tensor([9.0, 0, 0, 0, 0])
    assert made.classify(moved) == ["yes"] * 200
    assert made.classify(moved, moved.mean(dim=0)) == made.classify(x)
    # where features say nothing, the classifier says the shares of its training set: they do not decay
    made = hspace.fit(torch.zeros(100, 3), ["no"] * 90 + ["yes"] * 10)
    assert made.scores(torch.zeros(1, 3)).softmax(dim=1)[0].tolist() == pytest.approx([0.9, 0.1], abs=1e-3)


def test_a_line_of_the_source_is_tried_on_the_target_as_it_is_and_centred():
    random = torch.Generator().manual_seed(0)

    def domain(shift):
        x, labels = torch.randn(200, 5, generator=random), ["no", "yes"] * 100
        x[1::2, 0] += 4
        x[:, 0] += shift
        return hspace.LabelledFeatures(x[:100], labels[:100], x[100:], labels[100:])

    found = {name: right.mean().item() for name, right in hspace.transfer(domain(0.0), domain(9.0)).items()}
    assert found["source, on target"] == 0.5  # all are said to be "yes"
    assert min(found["source, on source"], found["ceiling, on target"]) > 0.9
    assert found["source, on target, centred"] > 0.9
