"""ECLE and φ against the reference's own outputs and against naive loops."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import longtail.ecle as module
from longtail.ecle import ecle, phi

GOLDEN = Path(__file__).parent / "golden"


def cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def views(count, images, width, seed=0):
    return torch.randn(count, images, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", cases("ecle_in_batch"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pair_is_the_reference(case, dtype):
    rows = torch.tensor(case["x"], dtype=dtype)
    ours = ecle(torch.stack([rows[0::2], rows[1::2]]), case["t"], case["batch_size"], case["repeats"], case["permutations"])
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, torch.tensor(case["per_image_loss"], dtype=torch.float64), atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", cases("ecle_all_pairs"))
def test_all_pairs_are_the_reference(case):
    order = case["permutations_in_call_order"]
    ours = ecle(np.array(case["features"], np.float32), case["t"], case["batch_size"], case["repeats_per_pair"], np.array(order))
    torch.testing.assert_close(ours, torch.tensor(case["ecle"], dtype=torch.float64), atol=2e-5, rtol=0)


def naive_loss(anchor, image, first, second, temperature):
    """Minus log of the positive's share among all other views of the batch, written as in the paper."""
    cosine = torch.nn.functional.cosine_similarity
    rest = [row for other in range(len(first)) if other != image for row in (first[other], second[other])]
    own = (first, second)[anchor][image]
    positive = math.exp(cosine(own, (second, first)[anchor][image], dim=0) / temperature)
    return -math.log(positive / (positive + sum(math.exp(cosine(own, row, dim=0) / temperature) for row in rest)))


def test_is_the_mean_over_pairs_by_a_naive_loop():
    z = views(4, 5, 3)
    slow = [np.mean([naive_loss(anchor, image, z[a], z[b], 0.3) for a, b in itertools.combinations(range(4), 2) for anchor in (0, 1)])
            for image in range(5)]
    torch.testing.assert_close(ecle(z, 0.3, batch=512, repeats=2), torch.tensor(slow))


def test_memory_bound_does_not_change_the_result(monkeypatch):
    z = views(3, 50, 4)
    whole = ecle(z, 0.2, batch=8, repeats=3)
    monkeypatch.setattr(module, "CELLS", {False: 1})
    torch.testing.assert_close(ecle(z, 0.2, batch=8, repeats=3), whole, rtol=1e-12, atol=0)


def test_generator_decides_the_cuts():
    z, seeded = views(2, 30, 4), lambda seed: torch.Generator().manual_seed(seed)
    assert torch.equal(ecle(z, 0.2, 8, 2, generator=seeded(1)), ecle(z, 0.2, 8, 2, generator=seeded(1)))
    assert not torch.equal(ecle(z, 0.2, 8, 2, generator=seeded(1)), ecle(z, 0.2, 8, 2, generator=seeded(2)))
    assert torch.equal(ecle(z, 0.2, 8, 2), ecle(z, 0.2, 8, 2, generator=seeded(0)))


@pytest.mark.parametrize("change, message", [
    (dict(projections=torch.zeros(1, 9, 3)), "at least two views"),
    (dict(projections=torch.full((2, 9, 3), math.nan)), "NaN"),
    (dict(batch=1), "two images in a batch"),
    (dict(repeats=0), "one repeat"),
    (dict(temperature=0.0), "positive temperature"),
    (dict(permutations=torch.arange(9)[None]), "give 2"),
])
def test_refuses_what_has_no_answer(change, message):
    with pytest.raises(ValueError, match=message):
        ecle(**(dict(projections=torch.randn(2, 9, 3), temperature=0.2, batch=4, repeats=2) | change))


@pytest.mark.parametrize("case", cases("phi_statistic"))
def test_phi_is_the_formula(case):
    groups = [case["group_names"][number] for number in case["group_of_sample"]]
    assert phi(np.array(case["ecle"]), groups) == pytest.approx(dict(zip(case["group_names"], case["phi"], strict=True)), abs=1e-12)


def test_phi_breaks_ties_by_index_and_refuses_an_empty_top():
    assert phi(torch.zeros(4), ["a", "b", "b", "a"], top=0.25) == {"a": 2.0, "b": 0.0}
    with pytest.raises(ValueError, match="top 0.1 of 4 images is 0"):
        phi(torch.zeros(4), ["a"] * 4)
    with pytest.raises(ValueError, match="one name for each image"):
        phi(torch.zeros(4), ["a"] * 3)
