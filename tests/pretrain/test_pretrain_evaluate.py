"""What is measured of the base, on parts whose quality is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dasd_utils import toyworld
from dasd_utils.config import Config, DasdError
from dasd_utils.pretrain import evaluate


class Dull:
    """A VAE whose latents are the pixels, and whose decoder makes them a tenth smaller."""

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents):
        return SimpleNamespace(sample=latents * 0.9)


def test_heldout_captions_tell_what_is_shown():
    world = evaluate.heldout("satellite", 4)
    assert world.shown == [toyworld.attributes("satellite", evaluate.WORLD_SEED, i) for i in range(4)]
    pairs = zip(world.mentioned, world.shown, strict=True)
    assert all(mentioned.items() <= shown.items() for mentioned, shown in pairs)
    assert len(world.images) == len(world.texts) == 4


def test_psnr_by_hand():
    grey = [image.point(lambda _: 0) for image in evaluate.heldout("xray", 2).images]  # -1 everywhere
    values = evaluate.psnr(Dull(), grey)  # reconstructed as -0.9: 0.05 of the range
    assert values.tolist() == pytest.approx([-20 * np.log10(0.05)] * 2, abs=1e-3)
    assert evaluate.deviation_ratio(Dull(), evaluate.heldout("painting", 3).images) > 1


def test_retrieval_counts_captions_that_mention_nothing_false():
    world = evaluate.heldout("satellite", 6)
    one_hot = torch.eye(6)
    scorer = SimpleNamespace(embed=lambda images: one_hot, embed_texts=lambda texts: one_hot)
    assert evaluate.retrieval(scorer, world).all()
    scorer.embed_texts = lambda texts: one_hot.roll(1, 0)
    expected = [world.mentioned[(i + 1) % 6].items() <= world.shown[i].items() for i in range(6)]
    assert evaluate.retrieval(scorer, world).tolist() == expected and not all(expected)


def test_rows_carry_n_seed_and_interval():
    table = evaluate._Table(seed=3, num_bootstrap=50)
    table.mean("psnr", "xray", torch.arange(20.0))
    table.cmmd("yardstick", "a-b", torch.eye(8), torch.eye(8).roll(1, 0) * -1)
    assert list(table.rows[0]) == ["metric", "domain", "value", "low", "high", "n", "seed"]
    for row in table.rows:
        assert row["low"] <= row["value"] <= row["high"] and row["seed"] == 3
    assert table.rows[0]["n"] == 20


def test_a_base_without_an_attribute_classifier_is_refused_at_once(base_dir):
    config = Config.setup("tiny", base=str(base_dir), clip=str(base_dir / "clip"))
    with pytest.raises(DasdError, match="no attribute classifier"):
        evaluate.evaluate(config, 4)
