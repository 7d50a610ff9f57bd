"""Fidelity, diversity and copying, against hand values and other formulations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, spatial

from dasd_utils import metrics


def normal(n: int, d: int = 4, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + mean


def means(generated: torch.Tensor, real: torch.Tensor, k: int = 5) -> metrics.PrecisionRecall:
    found = metrics.precision_recall(generated, real, k)
    assert [len(each) for each in found] == [len(generated), len(real)] * 2
    return metrics.PrecisionRecall(*(each.mean().item() for each in found))


def test_four_points_on_a_line():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # radii for k = 1: 1, 1, 1, 8
    generated = torch.tensor([[0.5], [2.5], [30.0]])  # radii: 2, 2, 27.5
    found = means(generated, real, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 0.5 and 2.5 lie in balls, 30 in none
    assert found.recall == 1  # 0, 1, 2 lie near 0.5; 10 is 20 from 30
    assert found.density == pytest.approx((2 + 2 + 0) / 3)  # 0.5 in those of 0 and 1; 2.5 of 2 and 10
    assert found.coverage == 1


def test_against_a_tree_of_neighbours():
    """The same numbers from scipy's k-d tree, ball by ball."""
    real, generated, k = normal(60).numpy(), normal(50, seed=1, mean=0.7).numpy(), 3
    radii = {
        name: spatial.cKDTree(x).query(x, k + 1)[0][:, -1] for name, x in (("r", real), ("g", generated))
    }
    inside = np.array([[np.linalg.norm(g - r) <= s for r, s in zip(real, radii["r"], strict=True)]
                       for g in generated])  # fmt: skip
    covered = np.array([[np.linalg.norm(g - r) <= s for r in real]
                        for g, s in zip(generated, radii["g"], strict=True)])  # fmt: skip
    found = means(torch.tensor(generated), torch.tensor(real), k)
    assert found.precision == pytest.approx(inside.any(1).mean())
    assert found.recall == pytest.approx(covered.any(0).mean())
    assert found.density == pytest.approx(inside.sum() / (k * len(generated)))
    assert found.coverage == pytest.approx(inside.any(0).mean())


def test_far_and_collapsed_sets():
    real = normal(40)
    far = means(normal(40, seed=1, mean=100.0), real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    one = real[:1].repeat(40, 1) + 1e-3 * normal(40, seed=2)
    collapsed = means(one, real)
    assert collapsed.precision == 1 and collapsed.recall < 0.1 and collapsed.coverage < 0.5
    with pytest.raises(ValueError, match="k = 5"):
        metrics.precision_recall(real[:5], real)


def test_frechet_distance():
    x, y = normal(500, 3), normal(400, 3, seed=1, mean=0.5) * 2
    one, two = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = x.mean(0).double().numpy() - y.mean(0).double().numpy()
    expected = gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert metrics.frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(x, x).item() == pytest.approx(0, abs=1e-6)
    wide, narrow = torch.tensor([[-2.0], [2.0]]), torch.tensor([[-1.0], [1.0]])  # variances 8 and 2
    assert metrics.frechet_distance(wide, narrow).item() == pytest.approx((8**0.5 - 2**0.5) ** 2, rel=1e-6)
    few, many = normal(5, 20, seed=2), normal(6, 20, seed=3)  # fewer samples than features
    root = linalg.sqrtm(np.cov(few.numpy().T) @ np.cov(many.numpy().T)).real
    gap = (few.mean(0) - many.mean(0)).square().sum().item()
    whole = gap + few.var(0).sum().item() + many.var(0).sum().item() - 2 * np.trace(root)
    assert metrics.frechet_distance(few, many).item() == pytest.approx(whole, rel=1e-3)


def test_frechet_distance_of_drawn_samples():
    x, y = normal(30, 3), normal(40, 3, seed=1, mean=0.5)
    weights = torch.ones(2, 30)
    weights[1, :5], weights[1, 5:10] = 2, 0
    drawn = torch.cat([x[:5], x[:5], x[10:]])
    one, other = metrics.frechet_distance(x, y, weights).tolist()
    assert one == pytest.approx(metrics.frechet_distance(x, y).item())
    assert other == pytest.approx(metrics.frechet_distance(drawn, y).item())
    assert metrics.frechet_distance(y, x, None, weights).tolist() == pytest.approx([one, other])


def test_copies_are_told_from_new_images():
    train, heldout = normal(100), normal(80, seed=1)
    assert metrics.copy_rank(train[:30] + 1e-4, train, heldout).tolist() == [0] * 30
    assert metrics.copy_rank(normal(300, seed=2), train, heldout).mean() == pytest.approx(0.5, abs=0.06)
    assert metrics.copy_rank(normal(30, seed=3, mean=50.0), train, heldout).min() == 1
    distance, index = metrics.nearest_neighbours(train[3:5] + 1e-3, train)
    assert index.tolist() == [3, 4] and distance.max() < 0.01


def test_intra_cluster_distance():
    train = torch.tensor([[0.0], [100.0]])
    generated = torch.tensor([[1.0], [3.0], [5.0], [98.0], [104.0]])
    assert metrics.intra_cluster_distance(generated, train).tolist() == pytest.approx(
        [((2 + 2 + 4) / 3 + 6) / 2]
    )
    assert metrics.intra_cluster_distance(train.repeat(2, 1), train).item() == 0  # copies
    ones = torch.ones(5, 5) - torch.eye(5)
    assert metrics.intra_cluster_distance(generated, train, ones).item() == pytest.approx(1)
    assert metrics.intra_cluster_distance(train, train).isnan().all()  # every cluster has one


def test_intra_cluster_distance_of_drawn_samples():
    """A weight is how often a sample was drawn; its copies are at no distance from it."""
    train = torch.tensor([[0.0], [100.0]])
    generated = torch.tensor([[1.0], [3.0], [5.0], [98.0], [104.0]])
    weights = torch.tensor([[1, 1, 0, 1, 0], [2, 1, 0, 1, 1], [0, 0, 1, 0, 1]])
    pair, triple, none = metrics.intra_cluster_distance(generated, train, weights=weights).tolist()
    assert pair == pytest.approx(2)  # 1 and 3; the other cluster has one
    assert triple == pytest.approx(((2 * 2 * 1 * 2) / (2 * 2 * 1) + 6) / 2) and none != none
