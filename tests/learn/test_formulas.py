"""The methods' formulas against the authors' own values, and against what must not matter."""

import json

import pytest
import torch

from longtail.learn import losses
from longtail.learn.methods import bcl, colt, focal, gh, rwsam, simclr, ts, two_stage
from longtail.store import paths

GOLDEN = paths.ROOT / "tests" / "golden"


def golden(name, start=""):
    """The cases of a file (whose id begins so), each with the file's tolerance."""
    content = json.loads((GOLDEN / f"{name}.json").read_text())
    chosen = [case for case in content["cases"] if case["id"].startswith(start)]
    return pytest.mark.parametrize(
        "case, bound",
        [(case, content["tolerance"]) for case in chosen],
        ids=[case["id"] for case in chosen],
    )


def tensor(values, **how):
    return torch.tensor(values, dtype=torch.float64, **how)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, expected, bound):
    torch.testing.assert_close(ours, tensor(expected), atol=bound, rtol=0)


# ---- losses


@golden("ntxent_per_sample")
def test_the_loss_that_bcl_remembers(case, bound):
    views = [tensor(case["inputs"][key], requires_grad=True) for key in ("view1", "view2")]
    loss = losses.nt_xent(*views, case["inputs"]["temperature"])
    close(loss.detach(), case["expected"]["per_sample_loss"], bound)
    loss.mean().backward()
    close(views[0].grad, case["expected"]["grad_view1"], bound)
    close(views[1].grad, case["expected"]["grad_view2"], bound)


@golden("simsiam_loss")
def test_simsiam(case, bound):
    inputs = {
        key: tensor(case["inputs"][key], requires_grad=True) for key in ("p1", "z1", "p2", "z2")
    }
    expected, weights = case["expected"], tensor(case["inputs"]["weights"])
    loss = losses.simsiam(*inputs.values())
    close(loss.detach(), expected["per_sample_loss"], bound)
    for total, prefix in ((loss.mean(), ""), ((weights * loss).mean(), "weighted_")):
        assert total.item() == pytest.approx(expected[f"{prefix}loss"], abs=bound)
        found = torch.autograd.grad(total, (inputs["p1"], inputs["p2"]), retain_graph=True)
        for ours, key in zip(found, ("p1", "p2"), strict=True):
            close(ours, expected[f"{prefix}grad_{key}"], bound)
    loss.sum().backward()
    assert inputs["z1"].grad is inputs["z2"].grad is None  # the other view is held fixed
    assert (
        losses.simsiam(*(values.detach().bfloat16() for values in inputs.values())).dtype
        == torch.float32
    )


def test_focal_weighs_each_anchor_by_its_doubt():
    first, second = normal(6, 4), normal(6, 4, seed=1)
    torch.testing.assert_close(
        focal.focal_nt_xent(first, second, 0.2, 0), losses.nt_xent(first, second, 0.2)
    )
    both = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similar = (both @ both.T / 0.2).exp().fill_diagonal_(0)
    share = torch.stack([similar[a, (a + 6) % 12] / similar[a].sum() for a in range(12)])
    expected = (-((1 - share) ** 2) * share.log()).view(2, 6).mean(0)
    torch.testing.assert_close(focal.focal_nt_xent(first, second, 0.2, 2), expected)


# ---- rates


def test_two_stages_meet_where_the_first_ends():
    rates = [two_stage.two_stage(epoch, 1000, 10, 500, 0.5, 0.3, 1e-6) for epoch in range(1, 1001)]
    assert (
        rates[0] == 0.05
        and rates[9] == max(rates) == 0.5
        and rates[499] == pytest.approx(0.3)
        and rates[-1] == pytest.approx(1e-6)
    )
    assert all(later < earlier for earlier, later in zip(rates[9:], rates[10:], strict=False))
    assert rates[254] == pytest.approx(0.4) and rates[749] == pytest.approx(
        0.15 + 5e-7
    )  # half way of each


# ---- TS


def test_temperatures_are_those_of_the_authors_code():
    """Five periods of 400 epochs, by hand and by the authors' function."""
    course = [ts.scheduled_temperature(epoch, 0.1, 1.0, 400) for epoch in range(1, 2001)]
    known = {
        1: 0.999944,
        50: 0.868198,
        100: 0.55,
        150: 0.231802,
        200: 0.1,
        201: 0.100056,
        250: 0.231802,
        300: 0.55,
        400: 1,
        1000: 0.1,
        2000: 1,
    }
    assert [course[epoch - 1] for epoch in known] == pytest.approx(list(known.values()), abs=1e-6)
    assert (
        sum(course) / 2000 == pytest.approx(0.55)
        and sum(tau < 0.2 for tau in course) / 2000 == 0.2175
    )


def test_a_high_temperature_spreads_the_weight_of_the_negatives():
    similarities = tensor([0.9, 0.5, 0, -0.5])
    counts = [
        torch.distributions.Categorical(logits=similarities / tau).entropy().exp().item()
        for tau in (0.1, 0.2, 1)
    ]
    assert counts == pytest.approx([1.0956, 1.5258, 3.5415], abs=1e-4)


# ---- rwSAM


@golden("rwsam_weights", "kde")
def test_density_weights(case, bound):
    inputs = {key: case["inputs"][key] for key in ("alpha", "bandwidth")}
    features, unit = tensor(case["inputs"]["features"]), case["inputs"]["l2_normalise"]
    close(
        rwsam.density_weights(features, normalise=unit, **inputs),
        case["expected"]["weights"],
        bound,
    )
    rows = torch.nn.functional.normalize(features, dim=1) if unit else features
    close(
        rwsam.log_density(rows, inputs["bandwidth"]),
        case["expected"]["log_density_up_to_constant"],
        bound,
    )


@golden("rwsam_weights", "exponential")
def test_exponential_weights(case, bound):
    close(
        rwsam.exponential_weights(case["inputs"]["class_rank"], case["inputs"]["phi"]),
        case["expected"]["weights"],
        bound,
    )


def test_a_thin_region_weighs_more_and_no_more_than_allowed():
    features = torch.cat(
        [
            torch.tensor([[1.0, 0.0]]).repeat(30, 1) + 0.01 * normal(30, 2),
            torch.tensor([[0.0, 1.0]]),
        ]
    )
    weights = rwsam.density_weights(features)
    assert weights.argmax() == 30 and weights.mean() == pytest.approx(1)
    assert rwsam.density_weights(features, clip=2.0).max() == 2 and weights[30] > 2
    torch.testing.assert_close(rwsam.density_weights(7 * features), weights)


def test_a_perturbation_has_the_length_it_should():
    weights, gradients = (
        [normal(3, 4), normal(5, seed=1)],
        [normal(3, 4, seed=2), normal(5, seed=3)],
    )
    plain = rwsam.sam_perturbation(weights, gradients, 0.5, adaptive=False)
    assert torch.cat([part.flatten() for part in plain]).norm() == pytest.approx(0.5)
    adaptive = rwsam.sam_perturbation(weights, gradients, 0.5, adaptive=True)
    assert torch.cat(
        [(step / weight).flatten() for step, weight in zip(adaptive, weights, strict=True)]
    ).norm() == pytest.approx(0.5)
    none = rwsam.sam_perturbation(
        weights, [torch.zeros_like(part) for part in gradients], 0.5, adaptive=True
    )
    assert all((part == 0).all() for part in none)


# ---- BCL


@golden("bcl_momentum")
def test_memorization_scores(case, bound):
    losses_, average = (
        tensor(case["inputs"]["losses"]),
        torch.full((len(case["inputs"]["losses"][0]),), torch.nan, dtype=torch.float64),
    )
    for loss, expected, score in zip(
        losses_,
        case["expected"]["momentum_loss"],
        case["expected"]["memorization_score"],
        strict=True,
    ):
        average = simclr.moving_average(average, loss, case["inputs"]["beta"])
        close(average, expected, bound)
        close(bcl.memorization_scores(average), score, bound)


def test_scores_lie_in_the_unit_interval_and_forget_scale_and_shift():
    history = normal(50).square()
    score = bcl.memorization_scores(history)
    assert score.min() >= 0 and score.max() <= 1 and (score.min() == 0 or score.max() == 1)
    torch.testing.assert_close(bcl.memorization_scores(3 * history + 5), score)
    for equal in (
        torch.full((4,), 2.0),
        torch.full((7,), 0.1),
        torch.full((7,), 0.1, dtype=torch.float64),
    ):
        assert (bcl.memorization_scores(equal) == 0.5).all()
    gap = torch.cat([history, torch.tensor([torch.nan])])
    torch.testing.assert_close(bcl.memorization_scores(gap)[:50], score)
    assert bcl.memorization_scores(gap)[50].isnan()


# ---- GH


@golden("gh_targets")
def test_simplex_targets(case, bound):
    classes, dimensions = case["inputs"]["K"], case["inputs"]["d"]
    drawn = tensor(case["inputs"]["A"]) if "A" in case["inputs"] else normal(classes, dimensions)
    targets, expected = gh.simplex_targets(drawn), case["expected"]
    if "target" in expected:
        close(targets, expected["target"], bound)
    close(targets.norm(dim=1), expected.get("norms") or [expected["norms_min"]] * classes, bound)
    products = (targets @ targets.T)[~torch.eye(len(targets), dtype=torch.bool)]
    assert [products.min(), products.max()] == pytest.approx(
        [expected["off_diagonal_min"], expected["off_diagonal_max"]], abs=bound
    )
    assert targets.sum(0).abs().max() <= bound


@golden("gh_sinkhorn")
def test_sinkhorn(case, bound):
    inputs, prior = case["inputs"], case["inputs"]["prior"]
    found = gh.sinkhorn(
        tensor(inputs["logits"]), prior and tensor(prior), inputs["epsilon"], inputs["iterations"]
    )
    close(found, case["expected"]["Q"], bound)
    close(found.sum(1), case["expected"]["row_sums"], bound)
    close(found.mean(0), case["expected"]["column_mean"], bound)


def test_assignments_fill_classes_as_the_prior_says():
    found = gh.sinkhorn(torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(
        found, torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0
    )  # a permutation, nearly
    both = gh.sinkhorn(torch.stack([normal(9, 4), normal(9, 4, seed=1)]), tensor([1.0, 2, 0, 3]))
    torch.testing.assert_close(both.sum(-1), torch.ones(2, 9, dtype=torch.float64))
    torch.testing.assert_close(both.mean(1)[0], tensor([1 / 6, 1 / 3, 0, 1 / 2]))
    torch.testing.assert_close(both[0], gh.sinkhorn(normal(9, 4), tensor([1.0, 2, 0, 3])))


@golden("gh_loss")
def test_harmonization(case, bound):
    inputs, expected = case["inputs"], case["expected"]
    views = [tensor(inputs[key], requires_grad=True) for key in ("z1", "z2")]
    logits = torch.stack([gh.surrogate_logits(rows, tensor(inputs["target"])) for rows in views])
    assigned = gh.sinkhorn(logits, tensor(inputs["prior"]), inputs["epsilon"], inputs["iterations"])
    for ours, key in (
        (logits[0], "t1"),
        (logits[1], "t2"),
        (assigned[0], "q1"),
        (assigned[1], "q2"),
    ):
        close(ours.detach(), expected[key], bound)
    loss = gh.harmonization(*logits, *assigned, inputs["gamma"]).mean()
    assert loss.item() == pytest.approx(expected["gh_loss"], abs=bound)
    total = losses.nt_xent(*views, inputs["contrastive_temperature"]).mean() + inputs["w_gh"] * loss
    assert total.item() == pytest.approx(expected["total"], abs=bound)
    loss.backward()
    close(views[0].grad, expected["grad_gh_z1"], bound)
    close(views[1].grad, expected["grad_gh_z2"], bound)


def test_harmonization_forgets_length_and_a_common_rotation():
    views, targets = normal(2, 7, 6), gh.simplex_targets(normal(4, 6, seed=1))
    turn = torch.linalg.qr(normal(6, 6, seed=2)).Q

    def loss(rows, directions):
        logits = gh.surrogate_logits(rows.flatten(0, 1), directions).unflatten(0, (2, 7))
        return gh.harmonization(*logits, *gh.sinkhorn(logits))

    torch.testing.assert_close(loss(3 * views, targets), loss(views, targets))
    torch.testing.assert_close(loss(views @ turn, targets @ turn), loss(views, targets))


@golden("gh_prior")
def test_prior(case, bound):
    inputs, expected = (
        case["inputs"],
        {entry["after_epoch"]: entry["prior"] for entry in case["expected"]["priors"]},
    )
    logits = tensor(inputs["logits_per_epoch"])
    average = torch.full_like(logits[0], torch.nan)
    for epoch, values in enumerate(logits):
        average = simclr.moving_average(
            average,
            values,
            inputs["beta_before"] if epoch < inputs["warm_up"] else inputs["beta_after"],
        )
        if epoch in expected:
            close(gh.class_prior(average, inputs["floor"]), expected[epoch], bound)
    close(average, case["expected"]["momentum_final"], bound)


# ---- COLT


@golden("colt_scores")
def test_crowding_and_the_loss_of_domains(case, bound):
    inputs, expected = case["inputs"], case["expected"]
    views = [tensor(inputs[key], requires_grad=True) for key in ("view1", "view2")]
    extra = torch.tensor(inputs["index"]) < 0
    crowded = colt.crowding(
        *(view.detach() for view in views), inputs["temperature"], inputs["k_largest"]
    )
    close(crowded[~extra], [score for score in expected["score"] if score is not None], bound)
    contrast = losses.nt_xent(*views, inputs["temperature"])
    close(contrast.detach(), expected["per_sample_contrastive"], bound)
    domain = inputs["sup_weight"] * colt.domain(*views, extra, inputs["temperature"]).mean()
    assert domain.item() == pytest.approx(expected["distribution_loss_weighted"], abs=bound)
    (contrast.mean() + domain).backward()
    close(views[0].grad, expected["grad_view1"], bound)
    close(views[1].grad, expected["grad_view2"], bound)


@golden("colt_momentum")
def test_crowding_is_averaged_over_epochs(case, bound):
    average = torch.full((len(case["inputs"]["scores"][0]),), torch.nan, dtype=torch.float64)
    for score, expected in zip(
        tensor(case["inputs"]["scores"]), case["expected"]["momentum_score"], strict=True
    ):
        average = simclr.moving_average(average, score, case["inputs"]["beta"])
        close(average, expected, bound)


@golden("colt_sampling")
def test_sampling(case, bound):
    inputs, expected = case["inputs"], case["expected"]
    labels, crowded = torch.tensor(inputs["cluster_labels"]), tensor(inputs["id_scores"])
    means = torch.stack(
        [crowded[labels == cluster].mean() for cluster in range(inputs["k_clusters"])]
    )
    close(means, expected["cluster_mean_score"], bound)
    assert (
        colt.cluster_budgets(means, inputs["budget"], inputs["cluster_temperature"])
        == expected["cluster_budget"]
    )
    picks = colt.colt_sampling(
        crowded,
        labels,
        tensor(inputs["cluster_centers"]),
        tensor(inputs["ood_features"]),
        inputs["budget"],
        inputs["cluster_temperature"],
    )
    assert picks.tolist() == expected["picked_indices_in_order"]


def test_budgets_favour_the_uncrowded_and_are_spent_to_the_last():
    means = normal(6).abs()
    sizes = colt.cluster_budgets(means, 1000)
    assert sum(sizes) == 1000 and sizes[means.argmin()] == max(sizes)
    for cluster in range(5):
        lower = means.clone()
        lower[cluster] -= 0.3
        assert colt.cluster_budgets(lower, 1000)[cluster] >= sizes[cluster]
    assert colt.cluster_budgets(torch.ones(3), 10) == [3, 3, 4] and colt.cluster_budgets(
        torch.ones(1), 7
    ) == [7]


def test_picks_are_unique_and_as_many_as_asked():
    crowded, labels, pool = normal(40).abs(), torch.arange(40) % 4, normal(30, 5, seed=1)
    crowded[0] = torch.nan  # an image that was always in a batch of its own
    picks = colt.colt_sampling(crowded, labels, normal(4, 5, seed=2), pool, 30)
    assert sorted(picks.tolist()) == list(range(30))
    with pytest.raises(ValueError, match="the pool has 30 images, fewer than the budget of 31"):
        colt.colt_sampling(crowded, labels, normal(4, 5, seed=2), pool, 31)
