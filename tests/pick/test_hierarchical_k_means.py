"""Hierarchical k-means against counts by hand, and against anything that must not matter."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from several import features

from longtail.pick import hierarchical_k_means as module
from longtail.pick.hierarchical_k_means import (
    allocate,
    cluster_tree,
    default_clusters,
    fill,
    hierarchical_k_means,
)

LEAVES = np.repeat(range(5), [6, 2, 3, 1, 4])  # A … E
ANGLES = torch.deg2rad(torch.tensor([0.0, 5, 90, 95, 200]))[LEAVES]
SIXTEEN = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def taken(budget, clusters=(5, 3), **more):
    picks = hierarchical_k_means(SIXTEEN, budget, clusters, **more)
    assert len(picks.unique()) == budget and torch.equal(picks, picks.sort().values)
    return np.bincount(LEAVES[picks.numpy()], minlength=5).tolist()


# ---- shares


@pytest.mark.parametrize(
    "sizes, budget, shares",
    [
        ((10, 3, 1), 7, [3, 3, 1]),
        ((10, 3, 1), 8, [4, 3, 1]),
        ((10, 3, 1), 20, [10, 3, 1]),
        ((8, 6, 1, 1), 10, [4, 4, 1, 1]),
        ((100, 10, 1), 30, [19, 10, 1]),
        ((6, 4, 2, 0), 6, [2, 2, 2, 0]),
        ((10, 3, 1), 0, [0, 0, 0]),
    ],
)
def test_fill_by_hand(sizes, budget, shares):
    assert fill(sizes, budget, np.random.default_rng(0)).tolist() == shares


@pytest.mark.parametrize(
    "sizes, budget, shares", [((5, 5, 5), 7, [2, 2, 3]), ((4, 4, 1), 2, [0, 1, 1])]
)
def test_what_is_left_goes_to_clusters_drawn_by_lot(sizes, budget, shares):
    found = [fill(sizes, budget, np.random.default_rng(seed)) for seed in range(300)]
    assert all(sorted(some) == shares for some in found)
    assert (abs(np.mean(found, 0) - budget / 3) < 0.1).all()  # every cluster as often as the others


@pytest.mark.parametrize(
    "clusters, budget, expected",
    [
        ((5, 3), 12, [2, 2, 3, 1, 4]),
        ((5,), 12, [3, 2, 3, 1, 3]),
        ((5, 3), 15, [5, 2, 3, 1, 4]),
        ((5, 3), 16, [6, 2, 3, 1, 4]),
        ((5, 3), 0, [0] * 5),
    ],
)
@pytest.mark.parametrize("steps", [0, 2, 10])
def test_sixteen_rows_by_hand(clusters, budget, expected, steps):
    assert all(taken(budget, clusters, steps=steps, seed=seed) == expected for seed in range(20))


def test_images_that_may_be_taken_twice_by_hand():
    (labels, *_), (parents, *_) = cluster_tree(SIXTEEN.double().mul(2**23).round(), (5, 3), 10)
    assert allocate(2 * np.bincount(labels), [parents], 18).tolist() == [3, 3, 4, 2, 6]


def test_below_the_number_of_clusters_size_does_not_matter():
    found = np.array([taken(3, steps=0, seed=seed) for seed in range(100)])
    assert (
        (found[:, :2].sum(1) == 1).all()
        and (found[:, 2:4].sum(1) == 1).all()
        and (found[:, 4] == 1).all()
    )
    assert (abs(found[:, :4].mean(0) - 0.5) < 0.2).all()


def test_closest_takes_those_next_to_the_centroid():
    rows = torch.tensor([[1.0, 0.0], [1, 0.1], [1, 0.2], [0, 1], [0.3, 1], [-0.1, 1]])
    assert hierarchical_k_means(rows, 2, (2,), steps=0, within="closest").tolist() == [1, 3]
    drawn = {
        tuple(hierarchical_k_means(rows, 2, (2,), steps=0, seed=seed).tolist())
        for seed in range(100)
    }
    assert drawn == {(one, two) for one in range(3) for two in range(3, 6)}


@pytest.mark.parametrize("budget", [1, 7, 40, 299, 300])
@pytest.mark.parametrize("within", ["random", "closest"])
def test_shares_are_as_equal_as_can_be(budget, within):
    rows, clusters = features(300, 6, 0), (30, 6)
    picks = hierarchical_k_means(rows, budget, clusters, within=within)
    (labels, *_), (parents, *_) = cluster_tree(
        module._integers(rows, True, module.Alone()), clusters, 10
    )
    found, sizes = np.bincount(labels[picks.numpy()], minlength=len(parents)), np.bincount(labels)
    assert len(picks.unique()) == budget and (found <= sizes).all()
    for top in range(max(parents) + 1):
        unused = found[(parents == top) & (found < sizes)]
        assert not len(unused) or np.ptp(unused) <= 1


# ---- what must not matter, and what is refused


def test_tiles_and_precision_do_not_matter(monkeypatch):
    rows = features(300, 6, 0)
    expected = hierarchical_k_means(rows, 60, (30, 6))
    monkeypatch.setattr(module, "CELLS_OF_A_TILE", 100)
    for same in (rows, rows.double(), rows.numpy(), 3 * rows):
        assert torch.equal(hierarchical_k_means(same, 60, (30, 6)), expected)
    assert not torch.equal(hierarchical_k_means(rows, 60, (30, 6), seed=1), expected)


def test_copies_may_leave_fewer_clusters():
    rows = features(4, 6, 0)[:3].repeat(20, 1)
    picks = hierarchical_k_means(rows, 30, (20, 10, 4))
    assert np.bincount(picks.numpy() % 3).tolist() == [10, 10, 10]
    assert len(hierarchical_k_means(torch.zeros(9, 2), 4, (3,))) == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"budget": 17}, "budget 17 of 16 images"),
        ({"budget": -1}, "budget -1"),
        ({"clusters": (17, 3)}, "falling numbers from 16"),
        ({"clusters": (3, 3)}, "clusters"),
        ({"clusters": (5, 1)}, "to 2 at least"),
        ({"clusters": ()}, "clusters"),
        ({"within": "nearest"}, "random or closest"),
        ({"features": torch.full((16, 2), torch.nan)}, "pool features hold NaN"),
    ],
)
def test_refuses_with_a_remedy(change, message):
    with pytest.raises(ValueError, match=message):
        hierarchical_k_means(**{"features": SIXTEEN, "budget": 4, "clusters": (5, 3)} | change)


def test_default_clusters_follow_the_size_of_the_pool():
    assert [default_clusters(images) for images in (30, 150, 5000, 10**5, 10**6)] == [
        (2,),
        (7,),
        (250, 50),
        (5000, 1000),
        (50_000, 5000, 1000),
    ]


# ---- the density that is left


def uniformity(points):
    """KL divergence of a Gaussian density estimate (width 0.5) of the points from the uniform one
    on [−3, 3]².
    """
    counts = np.histogram2d(*points.T, bins=60, range=[[-3, 3]] * 2)[0]
    density = gaussian_filter(counts, 5, mode="constant") / counts.sum()
    density = density[density > 0] / density.sum()
    return float((density * np.log(density * 3600)).sum())


def test_levels_and_resampling_flatten_the_density():
    draw = np.random.default_rng(0)
    points = np.concatenate(
        [
            draw.normal((-1, -1), 0.5, (1400, 2)),
            draw.normal((1, -1), 0.5, (200, 2)),
            draw.normal((0, 1), 0.5, (100, 2)),
            draw.uniform(-3, 3, (100, 2)),
        ]
    )
    rows = torch.from_numpy(points / 8 * 2**23).round()
    found = [
        uniformity(cluster_tree(rows, clusters, steps)[-1][-1].numpy() / 2**23 * 8)
        for clusters, steps in (
            ((60,), 0),
            ((300, 60), 0),
            ((600, 200, 60), 0),
            ((600, 200, 60), 10),
        )
    ]
    assert uniformity(points) > found[0] > found[1] > found[2] > found[3] and found[3] < 0.1


GROWTH = """
import resource
import numpy as np, torch
from longtail.pick.hierarchical_k_means import _starts
from longtail.pick.shards import Alone
torch.set_num_threads(1)
rows = torch.randint(-99, 99, (60_000, 32), generator=torch.Generator().manual_seed(0)).double()
for clusters in (20, 200):
    assert len(_starts(rows, clusters, np.random.default_rng(0), Alone())) == clusters
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_every_center():
    """67,000 images and 3,350 clusters once took more than 18 GB: each kept center pinned a large
    temporary.
    """
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    few, many = map(int, done.stdout.split())
    assert many - few < 100_000  # KiB; half a gigabyte before
