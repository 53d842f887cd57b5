"""Closed forms against the recorded values, and against the losses as they are implemented."""

import json

import pytest
import torch

from longtail.label import adjusted, theory
from longtail.label.adjusted import LossSpec
from longtail.store import paths

CASES = json.loads((paths.ROOT / "tests" / "golden" / "sup_theory.json").read_text())["cases"]


def of_kind(kind):
    return pytest.mark.parametrize(
        "case",
        [case for case in CASES if case["inputs"]["kind"] == kind],
        ids=lambda case: case["name"],
    )


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def either(chance):
    """η of two classes, the first this probable."""
    return tensor([chance, 1 - chance])


def problems(number=30, classes=4, seed=0):
    """Random η and π."""
    torch.manual_seed(seed)
    draw = torch.distributions.Dirichlet(torch.ones(classes, dtype=torch.float64))
    return draw.sample((number,)).clamp(min=1e-3), draw.sample((number,)).clamp(min=1e-2)


def stationary(logits, eta, spec):
    """The largest gradient of the implemented risk."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(theory.risk(logits, eta, spec), logits)
    return gradient.abs().max().item()


@of_kind("pairwise_minimiser")
def test_consistent_members_end_at_the_balanced_decision(case):
    eta, prior, delta = (tensor(case["inputs"][key]) for key in ("eta", "prior", "delta"))
    spec = theory.theorem_member(prior, delta)
    logits = theory.minimiser(eta, spec)
    torch.testing.assert_close(
        logits, tensor(case["expected"]["centred_logits"]), rtol=1e-8, atol=1e-9
    )
    torch.testing.assert_close(theory.minimise(eta, spec), logits, rtol=0, atol=1e-9)
    assert stationary(logits, eta, spec) < 1e-12
    assert logits.argmax() == theory.balanced_bayes(eta, prior) == case["expected"]["argmax"]
    assert theory.minimiser(eta, LossSpec()).argmax() == case["expected"]["argmax_plain_ce"]


@of_kind("reweight_plus_logit_adjust")
def test_two_corrections_add_up(case):
    inputs, want = case["inputs"], case["expected"]
    eta, prior = tensor(inputs["eta"]), tensor(inputs["prior"])
    logits = theory.minimiser(eta, theory.corrected_twice(prior, inputs["nu"], inputs["tau"]))
    torch.testing.assert_close(logits, tensor(want["centred_logits"]), rtol=1e-8, atol=1e-9)
    assert (
        logits.argmax() == want["argmax"]
        and theory.balanced_bayes(eta, prior) == want["ber_bayes_argmax"]
    )
    others, _ = problems(300, len(eta))
    agreed = theory.minimiser(
        others, theory.corrected_twice(prior, inputs["nu"], inputs["tau"])
    ).argmax(-1)
    assert (agreed == theory.balanced_bayes(others, prior)).all() == want["ber_consistent"]


def test_only_a_sum_of_one_is_consistent_for_every_problem():
    eta, prior = problems(300)
    for nu, tau in ((0, 1), (1, 0), (0.25, 0.75), (0, 0), (1, 1), (0, 2), (0.2, 0.3)):
        agreed = theory.minimiser(eta, theory.corrected_twice(prior, nu, tau)).argmax(
            -1
        ) == theory.balanced_bayes(eta, prior)
        assert agreed.all() == (nu + tau == 1)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_search_finds_where_the_implemented_risk_is_flat(scale):
    eta, prior = problems()
    margin = 0.5 * (prior / prior.amin(-1, keepdim=True)) ** -0.25
    spec = LossSpec(alpha=prior**-0.3, beta=scale, iota=prior.log(), mu=scale * margin)
    logits = theory.minimise(eta, spec)
    for place in range(len(eta)):
        one = LossSpec(spec.alpha[place], scale, spec.iota[place], spec.mu[place])
        assert stationary(logits[place], eta[place], one) < 1e-8 * scale


@of_kind("ldam_binary_threshold")
def test_ldam_threshold(case):
    inputs = case["inputs"]
    threshold = theory.ldam_threshold(inputs["counts"], inputs["max_m"], inputs["s"])
    assert threshold == pytest.approx(case["expected"]["majority_posterior_threshold"], rel=1e-8)
    spec, prior = (
        adjusted.ldam(inputs["counts"], inputs["max_m"], float(inputs["s"])),
        adjusted.log_prior(inputs["counts"]).exp(),
    )
    for shift, winner in (
        (-1e-4, 1),
        (1e-4, 0),
    ):  # just below and above it, by the search; likewise for the balanced error
        assert theory.minimise(either(threshold + shift), spec).argmax() == winner
        assert (
            theory.balanced_bayes(either(case["expected"]["ber_threshold"] + shift), prior)
            == winner
        )


@of_kind("ldam_margin_optimum")
def test_best_margins(case):
    inputs, want = case["inputs"], case["expected"]
    margins = theory.best_margins(inputs["counts"], inputs["total_margin"])
    torch.testing.assert_close(margins, tensor(want["margins"]), rtol=1e-8, atol=0)
    assert theory.margin_bound(margins, inputs["counts"]).item() == pytest.approx(
        want["bound"], rel=1e-8
    )
    equal = torch.full_like(margins, inputs["total_margin"] / len(margins))
    assert theory.margin_bound(equal, inputs["counts"]).item() == pytest.approx(
        want["equal_margin_bound"], rel=1e-8
    )
    others = margins * (
        1
        + 0.1
        * torch.randn(
            200, len(margins), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        )
    )
    others *= inputs["total_margin"] / others.sum(-1, keepdim=True)
    assert (theory.margin_bound(others, inputs["counts"]) >= want["bound"]).all()


@of_kind("vs_minimiser_not_unique")
def test_scaled_logits_have_many_minima_with_different_decisions(case):
    inputs, eta = case["inputs"], tensor(case["inputs"]["eta"])
    spec = adjusted.vs(inputs["counts"], inputs["gamma"], inputs["tau"])
    winners = set()
    for want in case["expected"]["minimisers"]:
        logits = theory.vs_minimiser(eta, spec, want["c"])
        torch.testing.assert_close(logits, tensor(want["logits"]), rtol=1e-8, atol=1e-9)
        assert theory.risk(logits, eta, spec).item() == pytest.approx(
            case["expected"]["minimum_risk"], rel=1e-8
        )
        assert stationary(logits, eta, spec) < 1e-12 and logits.argmax() == want["argmax"]
        winners.add(logits.argmax().item())
    assert len(winners) > 1


@of_kind("gaussian_mixture_am")
def test_gaussian_mixture(case):
    inputs, want = case["inputs"], case["expected"]
    share, shape = inputs["positive_fraction"], (inputs["mean"], inputs["std"])
    half, best = (theory.gaussian_cut(share, threshold, *shape) for threshold in (0.5, share))
    assert half.item() == pytest.approx(want["x_at_eta_equals_half"], rel=1e-8)
    assert best.item() == pytest.approx(want["x_at_eta_equals_p"], abs=1e-9)
    assert theory.gaussian_am(half, *shape) == pytest.approx(want["am_at_half"], rel=1e-8)
    assert theory.gaussian_am(best, *shape) == pytest.approx(want["am_optimal"], rel=1e-8)


@of_kind("effective_number")
def test_effective_number(case):
    found = [
        adjusted.effective_number([case["inputs"]["n"]], b).item() for b in case["inputs"]["betas"]
    ]
    assert found == pytest.approx(case["expected"]["effective"], rel=1e-8)


def test_a_search_that_does_not_end_says_so():
    with pytest.raises(ArithmeticError, match="no minimum within 2 steps"):
        theory.minimise(tensor([0.999999, 1e-6]), LossSpec(), steps=2)
