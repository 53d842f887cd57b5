"""The cases at small sizes: contenders agree, wrong ones are noticed, and an alarm at about half of
what each case is meant to reach.
"""

import sys
import zipfile

import pytest
import torch

from longtail.bench import selection as cases
from longtail.bench.greedy import certificate
from longtail.pick import ecle, selection
from longtail.store import gpu

STUB = """
import numpy as np
class kCenterGreedy:
    def __init__(self, X, y, seed): self.features, self.min_distances = X, None
    def update_distances(self, places, only_new, reset_dist):
        new = np.linalg.norm(self.features - self.features[places], axis=1)[:, None]
        self.min_distances = np.minimum(self.min_distances, new)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """What the case needs of a checkout of google/active-learning."""
    (tmp_path / "sampling_methods").mkdir()
    (tmp_path / "sampling_methods" / "kcenter_greedy.py").write_text(STUB)
    for name in ("sampling_methods", "sampling_methods.kcenter_greedy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield str(tmp_path)
    for name in ("sampling_methods", "sampling_methods.kcenter_greedy"):
        sys.modules.pop(name, None)


def test_paper_case_compares_equal_picks(checkout):
    sizes = {"candidates": 300, "seeds": 80, "budget": 120, "width": 32, "some": 4, "threads": 1}
    rows = cases.paper_k_center(1, **sizes, google_active_learning=checkout).set_index("against")
    assert list(rows.index) == [
        "its matrix products",
        "one product a pick",
        "anomalib's loop",
        "google/active-learning",
    ]
    assert (rows.status == "measured").all() and (rows.error == 0).all() and (rows.ratio > 0).all()
    assert (
        cases.paper_k_center(1, **sizes)
        .set_index("against")
        .status["google/active-learning"]
        .startswith("not run")
    )


@pytest.mark.parametrize("loop", [cases.products_loop, cases.anomalib_loop])
def test_loops_are_greedy_and_the_check_notices_when_not(loop):
    pool, seed = cases.relu_features(300, 32, 1), cases.relu_features(80, 32, 0)
    nearest = (pool @ seed.T).amax(1)
    assert set(loop(pool, nearest, 40)) == set(selection.k_center(pool, seed, 40).tolist())
    assert certificate(pool, seed, loop(pool, nearest, 40), tolerance=cases.CLOSE) == 0
    assert certificate(pool, seed, loop(pool, nearest.flip(0), 40), tolerance=cases.CLOSE) > 0


def test_google_needs_a_checkout(tmp_path):
    with pytest.raises(ValueError, match="give a checkout"):
        cases.google_module(tmp_path)


def test_pool_case_is_faster_than_a_product_a_pick():
    rows = cases.pool_k_center(1, images=20_000, seeds=100, budget=250, threads=1).set_index(
        "against"
    )
    assert (rows.error == 0).all()
    assert rows.ratio["one product a pick"] > 1.2


def test_losses_of_the_loop_are_the_stacked_ones():
    projections = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        cases.loop_losses(projections, 0.2, 16, 3),
        ecle.ecle(projections, 0.2, 16, 3),
        rtol=1e-5,
        atol=0,
    )


def test_files_are_scored_faster_than_a_pass_a_view():
    rows = cases.ecle_of_files(1, images=64, views=2, repeats=1, architecture="convnet", side=16)
    assert (rows.error <= rows.bound).all()
    assert rows.status.iloc[0] == "measured" and rows.ratio.iloc[0] > 0.8
    assert rows.status.iloc[1] == "measured" or rows.status.iloc[1].startswith("not run")


def test_archives_are_read_evenly(tmp_path):
    with zipfile.ZipFile(tmp_path / "pool.zip", "w") as packed:
        for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "notes.txt"):
            packed.writestr(name, name)
    found = [(name, read()) for name, read in cases.jpegs(tmp_path / "pool.zip", 2, 32)]
    assert found == [("a/1.jpg", b"a/1.jpg"), ("b/1.jpg", b"b/1.jpg")]


def test_cost_is_measured_for_every_size_and_memory_apart_from_this_process():
    """This process takes 400 MiB more than the one that measures."""
    taken = torch.ones(100 * 2**20)
    rows = cases.pool_costs([2000, 500], width=16, budget=50, threads=1)
    assert rows.images.tolist() == [500] * 4 + [2000] * 4
    assert rows.step.tolist() == ["losses", "distances", "MAK's picks", "K-center's picks"] * 2
    assert (
        rows.seconds > 0
    ).all() and 100 < rows.peak_mib.max() < gpu.peak_memory() / 2**20 - taken.nbytes / 2**21
