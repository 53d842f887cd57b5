"""ECLE, φ and the noise of views against the reference's own outputs and against naive loops."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy import planned

from longtail.images import studies
from longtail.learn import train
from longtail.measure.groups import size_groups
from longtail.measure.phi import measure_phi, overlap, phi, variance_parts
from longtail.pick.ecle import ecle, hardest, pair_losses, project
from longtail.store import paths, runs

GOLDEN = paths.ROOT / "tests" / "golden"


def cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def views(count, images, width, seed=0):
    return torch.randn(
        count, images, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("case", cases("ecle_in_batch"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pair_is_the_reference(case, dtype):
    rows = torch.tensor(case["x"], dtype=dtype)
    ours = ecle(
        torch.stack([rows[0::2], rows[1::2]]),
        case["t"],
        case["batch_size"],
        case["repeats"],
        case["permutations"],
    )
    assert ours.dtype == torch.float64
    torch.testing.assert_close(
        ours, torch.tensor(case["per_image_loss"], dtype=torch.float64), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("case", cases("ecle_all_pairs"))
def test_all_pairs_are_the_reference(case):
    order = case["permutations_in_call_order"]
    ours = ecle(
        np.array(case["features"], np.float32),
        case["t"],
        case["batch_size"],
        case["repeats_per_pair"],
        np.array(order),
    )
    torch.testing.assert_close(
        ours, torch.tensor(case["ecle"], dtype=torch.float64), atol=2e-5, rtol=0
    )


def naive_loss(anchor, image, first, second, temperature):
    """Minus log of the positive's share among all other views of the batch, written as in the
    paper.
    """
    cosine = torch.nn.functional.cosine_similarity
    rest = [
        row
        for other in range(len(first))
        if other != image
        for row in (first[other], second[other])
    ]
    own = (first, second)[anchor][image]
    positive = math.exp(cosine(own, (second, first)[anchor][image], dim=0) / temperature)
    return -math.log(
        positive / (positive + sum(math.exp(cosine(own, row, dim=0) / temperature) for row in rest))
    )


def test_is_the_mean_over_pairs_by_a_naive_loop():
    z = views(4, 5, 3)
    slow = [
        np.mean(
            [
                naive_loss(anchor, image, z[a], z[b], 0.3)
                for a, b in itertools.combinations(range(4), 2)
                for anchor in (0, 1)
            ]
        )
        for image in range(5)
    ]
    torch.testing.assert_close(ecle(z, 0.3, batch=512, repeats=2), torch.tensor(slow))


def test_memory_bound_does_not_change_the_result(monkeypatch):
    z = views(3, 50, 4)
    whole = ecle(z, 0.2, batch=8, repeats=3)
    monkeypatch.setattr("longtail.pick.ecle.CELLS", {False: 1})
    torch.testing.assert_close(ecle(z, 0.2, batch=8, repeats=3), whole, rtol=1e-12, atol=0)


def test_generator_decides_the_cuts():
    z, seeded = views(2, 30, 4), lambda seed: torch.Generator().manual_seed(seed)
    assert torch.equal(
        ecle(z, 0.2, 8, 2, generator=seeded(1)), ecle(z, 0.2, 8, 2, generator=seeded(1))
    )
    assert not torch.equal(
        ecle(z, 0.2, 8, 2, generator=seeded(1)), ecle(z, 0.2, 8, 2, generator=seeded(2))
    )
    assert torch.equal(ecle(z, 0.2, 8, 2), ecle(z, 0.2, 8, 2, generator=seeded(0)))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(projections=torch.zeros(1, 9, 3)), "at least two views"),
        (dict(projections=torch.full((2, 9, 3), math.nan)), "NaN"),
        (dict(batch=1), "two images in a batch"),
        (dict(repeats=0), "one repeat"),
        (dict(temperature=0.0), "positive temperature"),
        (dict(permutations=torch.arange(9)[None]), "give 2"),
    ],
)
def test_refuses_what_has_no_answer(change, message):
    with pytest.raises(ValueError, match=message):
        ecle(
            **(dict(projections=torch.randn(2, 9, 3), temperature=0.2, batch=4, repeats=2) | change)
        )


@pytest.mark.parametrize("case", cases("phi_statistic"))
def test_phi_is_the_formula(case):
    groups = [case["group_names"][number] for number in case["group_of_sample"]]
    assert phi(np.array(case["ecle"]), groups) == pytest.approx(
        dict(zip(case["group_names"], case["phi"], strict=True)), abs=1e-12
    )


def test_phi_breaks_ties_by_index_and_refuses_an_empty_top():
    assert phi(torch.zeros(4), ["a", "b", "b", "a"], top=0.25) == {"a": 2.0, "b": 0.0}
    with pytest.raises(ValueError, match="top 0.1 of 4 images is 0"):
        phi(torch.zeros(4), ["a"] * 4)
    with pytest.raises(ValueError, match="one name for each image"):
        phi(torch.zeros(4), ["a"] * 3)


# ---- the image's part and the views'


def test_variance_parts_are_those_of_a_known_mixture():
    """Losses made of an image's own part (variance 0.25) and of noise (variance 1): both are found,
    and F by its textbook formula.
    """
    generator = np.random.default_rng(0)
    losses = torch.from_numpy(
        0.5 * generator.standard_normal(20_000) + generator.standard_normal((4, 20_000))
    )
    found = variance_parts(losses)
    assert found["between"] == pytest.approx(0.25, abs=0.02) and found["within"] == pytest.approx(
        1, abs=0.02
    )
    groups = losses.T.numpy()
    assert variance_parts(losses[:, :50])["F"] == pytest.approx(
        stats.f_oneway(*groups[:50]).statistic
    )


def test_the_part_between_images_has_no_bias():
    noise = np.random.default_rng(1).standard_normal((2000, 3, 10))
    assert np.mean(
        [variance_parts(torch.from_numpy(losses))["between"] for losses in noise]
    ) == pytest.approx(0, abs=0.01)
    assert variance_parts(torch.tensor([[1.0, 2.0, 4.0]] * 2)) == pytest.approx(
        {"between": 7 / 3, "within": 0, "F": math.inf}
    )
    with pytest.raises(ValueError, match="no variance within and between"):
        variance_parts(torch.rand(1, 9))


def test_overlap_counts_shared_hard_images():
    first = torch.arange(40.0)
    assert hardest(first).tolist() == [39, 38, 37, 36]
    assert overlap(first, first) == 1 and overlap(first, -first) == 0
    second = first.clone()
    second[[38, 3]] = second[[3, 38]]
    assert overlap(first, second) == 0.75


def test_losses_of_pairs_are_those_of_the_views_and_average_to_ecle():
    z = views(4, 9, 3)
    found = pair_losses(z, 0.3, 512, 5, None)
    assert list(found) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    for (first, second), loss in found.items():
        assert loss[4].item() == pytest.approx(
            np.mean([naive_loss(anchor, 4, z[first], z[second], 0.3) for anchor in (0, 1)])
        )
    torch.testing.assert_close(sum(found.values()) / 6, ecle(z, 0.3, 512, 1))


# ---- of a trained run


@pytest.fixture
def study():
    return studies.study("digits", 16, 1, 20, 0.1, "exponential")


def finished(study, folder, monkeypatch):
    """An untrained extractor that counts as finished."""
    monkeypatch.setattr(paths, "RESULTS", folder)
    run, results = planned(study.seed, seed=3), runs.Results("test")
    runs.write(results.folder(run) / "run.json", json.dumps(asdict(run)))
    train.finish(
        run, results.folder(run), train.initialise(run)[0], [{"seconds": 0.0}], len(study.seed)
    )
    results.ask("arms", [run], {})
    return run, results


@pytest.mark.parametrize("batch", [16, 512])
def test_measure_is_phi_and_overlap_of_the_runs_own_views(study, tmp_path, monkeypatch, batch):
    run, results = finished(study, tmp_path, monkeypatch)
    measure_phi(run, results, study, 5, batch, 2, test_per_class=7)
    found, noise = results.read("phi"), results.read("view_noise")
    assert found.views.unique().tolist() == [2, 3, 4, 5] and set(found.protocol) == {
        "test",
        "train",
    }
    order = sorted(
        i for label in range(10) for i in (study.test.labels == label).nonzero()[:7, 0].tolist()
    )
    test = study.test.subset(order)
    losses = pair_losses(
        project(run, results, test, 5), run.temperature, batch, 2, torch.Generator().manual_seed(3)
    )
    names = [size_groups(study.counts, "thirds")[label] for label in test.labels]
    for count in (2, 5):
        loss = sum(losses[pair] for pair in itertools.combinations(range(count), 2)) / math.comb(
            count, 2
        )
        mine = found[(found.protocol == "test") & (found.views == count)]
        assert dict(zip(mine.group, mine.phi, strict=True)) == pytest.approx(phi(loss, names))
    mine = noise[noise.protocol == "test"].set_index(["quantity", "views"]).value
    assert mine["between", 2] == pytest.approx(
        variance_parts(torch.stack([losses[0, 1], losses[2, 3]]))["between"], rel=1e-6
    )
    assert mine["overlap", 2] == overlap(losses[0, 1], losses[2, 3]) and len(mine) == 4


def test_no_number_of_test_images_means_all_of_them(study, tmp_path, monkeypatch):
    run, results = finished(study, tmp_path, monkeypatch)
    measure_phi(run, results, study, 2, 512, 1)
    record = results.record(run, "phi")["settings"]
    assert record["images"]["test"] == study.test.digest
    assert set(results.read("view_noise").quantity) == set()  # two views have no half
    first = results.read("phi")
    monkeypatch.setattr("longtail.measure.phi.project", None)  # measured once
    measure_phi(run, results, study, 2, 512, 1)
    pd.testing.assert_frame_equal(first, results.read("phi"))
