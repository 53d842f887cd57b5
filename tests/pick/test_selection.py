"""K-center against naive greedy in integers: any block, tile, shard, file or thread of arithmetic,
the same picks.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from several import LARGE, PICKED, SHARES, WIDTH, features, inputs

from longtail.bench.greedy import certificate
from longtail.pick import samplers, selection, shards
from longtail.pick.hierarchical_k_means import hierarchical_k_means
from longtail.store import paths


def integers(rows):
    """Rows on the grid, by the definition."""
    rows = rows.double()
    return (rows / rows.norm(dim=1, keepdim=True) * 2**23).round().long().numpy()


def naive(candidates, centers, budget):
    """The textbook loop in integers, so that ties are real ties: (picks, the similarity of each
    when it was picked).
    """
    rows, centers = integers(candidates), integers(centers)
    nearest, picks, values = (rows @ centers.T).max(1), [], []
    free = np.ones(len(rows), bool)
    for _ in range(budget):
        values.append(nearest[free].min())
        picks.append(int(np.flatnonzero(free & (nearest == values[-1]))[0]))
        free[picks[-1]] = False
        nearest = np.maximum(nearest, rows @ rows[picks[-1]])
    return picks, values


@pytest.fixture(scope="module")
def pool():
    return features(PICKED["count"], PICKED["width"], 0)


@pytest.fixture(scope="module")
def seed():
    return features(PICKED["seed"], PICKED["width"], 1)


@pytest.fixture(scope="module")
def expected(pool, seed):
    return naive(pool, seed, len(pool))[0]


@pytest.mark.parametrize(
    "block, budget", [(1, 30), (7, 150), (300, 300), (1024, 2000), (4096, 2000)]
)
def test_is_naive_greedy_for_every_block(pool, seed, expected, block, budget):
    assert selection.k_center(pool, seed, budget, block=block).tolist() == expected[:budget]


def test_does_not_depend_on_tiles_precision_or_place(pool, seed, monkeypatch, tmp_path):
    some, (expected, _) = pool[-600:], naive(pool[-600:], seed, 150)
    np.save(tmp_path / "pool.npy", some.numpy())
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    for name, size in (("TILE_ROWS", 33), ("PANEL", 16), ("FIRST_CENTERS", 8), ("CACHED", 10)):
        monkeypatch.setattr(selection, name, size)
    for rows in (some, some.double(), some.numpy(), mapped):
        assert selection.k_center(rows, seed, 150, block=50).tolist() == expected
    monkeypatch.setattr(
        selection, "AT_ONCE", 0
    )  # on the grid at every reading, as what is larger than memory
    assert selection.k_center(mapped, seed, 150).tolist() == expected


def test_two_threads_share_tiles_and_pick_alike(pool, seed, expected, monkeypatch):
    monkeypatch.setattr(selection, "TILE_ROWS", 100)
    monkeypatch.setattr(selection, "THREADED_WIDTH", 0)
    asked, pool_of = [], selection.ThreadPoolExecutor
    monkeypatch.setattr(
        selection,
        "ThreadPoolExecutor",
        lambda threads: asked.append((threads, torch.get_num_threads())) or pool_of(threads),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert selection.k_center(pool, seed, 300).tolist() == expected[:300]
        assert torch.get_num_threads() == 2  # the caller has its threads again
    finally:
        torch.set_num_threads(before)
    assert set(asked) == {
        (2, 1)
    }  # two threads with tiles of their own, no team that waits for its slowest


@pytest.mark.parametrize("width, threads", [(64, 1), (512, 2)])
def test_narrow_rows_are_not_shared_among_threads(width, threads, monkeypatch):
    """Two threads were slower than one there; wide rows gain from them."""
    asked, pool_of = [1], selection.ThreadPoolExecutor
    monkeypatch.setattr(
        selection,
        "ThreadPoolExecutor",
        lambda threads: asked.append(threads) or pool_of(threads),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        selection.k_center(torch.rand(600, width), torch.rand(5, width), 20)
    finally:
        torch.set_num_threads(before)
    assert max(asked) == threads


def test_half_precision_files_are_read_as_they_are(pool, seed):
    half = pool.half()
    assert torch.equal(
        selection.k_center(half.numpy(), seed, 100), selection.k_center(half.double(), seed, 100)
    )


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_low_precision_products_are_not_used(pool, seed, expected, precision, monkeypatch):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert selection.k_center(pool, seed, 200).tolist() == expected[:200]
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 1e-3, 1.0])
def test_rows_closer_than_float32_can_tell_are_told_apart(noise):
    rows = 1 + noise * torch.randn(
        300, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    picks, _ = naive(rows[50:], rows[:50], 120)
    assert selection.k_center(rows[50:], rows[:50], 120, block=50).tolist() == picks


def test_goes_on_from_the_picks_so_far(pool, seed, expected):
    for done in (1, 277, 300):
        assert selection.k_center(pool, seed, 300, picks=expected[:done]).tolist() == expected[:300]


def test_certificate_accepts_greedy_and_nothing_else(pool, seed, expected):
    picks = torch.tensor(expected[:300])
    assert certificate(pool, seed, picks) == 0
    assert certificate(pool, seed, selection.k_center(pool.double(), seed, 2000)) == 0
    for first, second in ((0, 1), (10, 250), (298, 299)):
        swapped = picks.clone()
        swapped[[first, second]] = picks[[second, first]]
        assert certificate(pool, seed, swapped) > 0
    assert certificate(pool, seed, torch.arange(300)) > 0


def test_certificate_forgives_no_more_than_its_tolerance(pool, seed, expected):
    values = np.array(naive(pool, seed, 300)[1]) / 2**46
    gap = (values[1:] - values[:-1]).argmax()
    swapped = torch.tensor(expected[:300])
    swapped[[gap, gap + 1]] = swapped[[gap + 1, gap]]
    step = values[gap + 1] - values[gap]
    assert step > 1e-4
    assert certificate(pool, seed, swapped, tolerance=1.01 * step) == 0
    assert certificate(pool, seed, swapped, tolerance=0.9 * step) > 0


def test_lowest_and_highest_break_ties_by_index():
    values = torch.tensor([2.0, 1, 3, 1, 2, 1])
    assert selection.lowest(values, 2).tolist() == [1, 3]
    assert selection.lowest(values, 4).tolist() == [0, 1, 3, 5]
    assert selection.lowest(values, 9).tolist() == list(range(6))
    assert selection.highest(values, 2, 10, shards.Alone()).tolist() == [10, 12]
    assert selection.highest(values, 4, 0, shards.Alone()).tolist() == [1, 0, 4, 2]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(budget=0), "budget is 0"),
        (dict(budget=-3), "budget is -3"),
        (dict(budget=10), "pool has 9 images, fewer than the budget of 10"),
        (dict(centers=torch.empty(0, 4)), "at least one seed image"),
        (dict(centers=torch.rand(3, 5)), "differ in width"),
        (dict(candidates=torch.full((9, 4), torch.nan)), "pool features hold NaN"),
        (dict(centers=torch.full((3, 4), torch.inf)), "seed features hold NaN"),
        (dict(picks=[1, 1]), "2 picks to check or to go on from must be different"),
        (dict(picks=[1, 9]), "different indices of the 9 candidates"),
        (dict(picks=[1, 2, 3]), "at most 2"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        selection.k_center(
            **(dict(candidates=torch.rand(9, 4), centers=torch.rand(3, 4), budget=2) | change)
        )


# ---- several processes, little memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a process of its own has left what several processes, and one with little memory,
    find.
    """
    folder, generator = tmp_path_factory.mktemp("several"), np.random.default_rng(0)
    rows = np.lib.format.open_memmap(folder / "pool.npy", "w+", np.float32, (LARGE, WIDTH))
    for part in np.array_split(rows, 10):
        part[:] = generator.random(part.shape, np.float32)
    np.save(folder / "seed.npy", generator.random((20, WIDTH), np.float32))
    done = subprocess.run(
        [sys.executable, paths.ROOT / "tests" / "several.py", "selecting", folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    yield folder
    (folder / "pool.npy").unlink()


@pytest.fixture(scope="module")
def spread(folder):
    return [
        [json.loads((folder / f"{way}.{rank}.json").read_text()) for rank in range(len(counts))]
        for way, counts in enumerate(SHARES)
    ]


@pytest.mark.parametrize("way", range(len(SHARES)))
def test_shards_pick_what_one_process_picks(spread, expected, way):
    pool, seed, loss, distance = inputs()
    q = samplers.score(loss, distance, 0.3)
    mak, few = (
        samplers.core_set(q, pool, seed, budget, ratio).tolist()
        for budget, ratio in ((300, 1.5), (40, 1.0))
    )
    balanced = hierarchical_k_means(pool, 40, (20, 5), steps=1).tolist()
    assert set(mak) != set(expected[:300])
    for rank in spread[way]:
        assert rank["picks"] == [
            expected[:300],
            expected[:300],
            expected[:300],
            expected,
            mak,
            few,
            balanced,
        ]
        assert rank["score"] == q.tolist()


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_two_processes_pick_in_the_order_of_one(spread, sampler):
    pool, seed, loss, distance = inputs()
    alone = samplers.sample(sampler, loss, distance, pool, seed, 40, 0.3, 1.5, 0).tolist()
    assert [rank["samplers"][sampler] for rank in spread[1]] == [alone, alone]


@pytest.mark.parametrize("way", range(len(SHARES)))
def test_shards_certify_and_refuse_together(spread, way):
    for rank in spread[way]:
        assert rank["violations"][0] == 0 < rank["violations"][1] == spread[0][0]["violations"][1]
        assert rank["refused"].startswith("pool features hold NaN") == (
            len(SHARES[way]) > 1 and any(SHARES[way][1:])
        )


def test_features_may_be_larger_than_memory(folder):
    pool, seed = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("pool", "seed"))
    found = json.loads((folder / "frugal.json").read_text())
    assert found["picks"] == selection.k_center(pool, seed, 12).tolist()
    assert found["features in memory"].startswith("Unable to allocate 161. MiB")
