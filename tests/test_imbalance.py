"""The losses with labels against the authors' values and gradients, in both precisions, and the algebra that ties them together."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from longtail import imbalance
from longtail.losses import LossSpec, adjusted_cross_entropy, ldam_hinge, sigmoid_focal, softmax_focal, staged
from longtail.supervised import Schedule

COUNTS = [5000, 997, 12, 80, 3]
SCHEDULE = Schedule(epochs=20, batch_size=8, learning_rate=0.1, drops=(16, 18), drop=0.01)


def golden(name):
    return json.loads((Path(__file__).parent / "golden" / f"sup_{name}.json").read_text())


def cases(*names):
    """Every case of the named files with its tolerance."""
    files = [golden(name) for name in names]
    return [pytest.param(case, file["tolerance"], id=f"{file['name']}-{case['name']}") for file in files for case in file["cases"]]


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def agrees(loss, case, tolerance, logits="logits", want=None):
    """Loss and gradient with respect to the logits are the expected ones, in double and in single precision."""
    want = want or case["expected"]
    exact = {"rtol": tolerance["rtol"], "atol": tolerance["atol"]}
    for dtype, bounds in ((torch.float64, exact), (torch.float32, {"rtol": 1e-5, "atol": 1e-6})):
        z = tensor(case["inputs"][logits], dtype).requires_grad_()
        value = loss(z, torch.tensor(case["inputs"]["labels"]))
        value.backward()
        assert value.dtype == dtype and value.ndim == 0
        torch.testing.assert_close(value.detach(), tensor(want["loss"], dtype), **bounds)
        torch.testing.assert_close(z.grad, tensor(want["grad"], dtype), **bounds)


def problem(seed=0, images=40, counts=COUNTS):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(images, len(counts), generator=generator, dtype=torch.float64),
            torch.randint(len(counts), (images,), generator=generator))


def loss_and_gradient(logits, labels, spec):
    logits = logits.clone().requires_grad_()
    loss = adjusted_cross_entropy(logits, labels, spec)
    loss.backward()
    return loss.detach(), logits.grad


def same(spec, other, logits, labels, scale=1.0):
    """Two specs give the same loss and gradient, up to a factor."""
    for ours, theirs in zip(loss_and_gradient(logits, labels, spec), loss_and_gradient(logits, labels, other), strict=True):
        torch.testing.assert_close(ours, scale * theirs, rtol=1e-10, atol=1e-12)


# ---- against the references

@pytest.mark.parametrize("case, tolerance", cases("cb_weights"))
def test_weights_are_the_reference(case, tolerance):
    counts, b = case["inputs"]["counts"], case["inputs"]["beta"]
    effective, weight = imbalance.effective_number(counts, b), imbalance.class_balanced_weights(counts, b)
    for ours, key in ((effective, "effective_number"), (1 / effective, "raw_weight"), (weight, "weight")):
        torch.testing.assert_close(ours, tensor(case["expected"][key]), rtol=tolerance["rtol"], atol=0)


@pytest.mark.parametrize("case, tolerance", cases("class_balanced_losses"))
def test_class_balanced_losses_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    weights = imbalance.class_balanced_weights(inputs["counts"], inputs["beta"])
    if inputs["loss_type"] == "softmax":
        agrees(partial(adjusted_cross_entropy, spec=imbalance.class_balanced(inputs["counts"], inputs["beta"])), case, tolerance)
    else:
        agrees(lambda z, y: sigmoid_focal(z, y, weights, inputs["gamma"] or 0.0).mean(), case, tolerance)


@pytest.mark.parametrize("case, tolerance", cases("softmax_focal"))
def test_softmax_focal_is_the_reference(case, tolerance):
    gamma, weights = case["inputs"]["gamma"], imbalance.class_balanced_weights(case["inputs"]["counts"], case["inputs"]["beta"])
    agrees(lambda z, y: softmax_focal(z, y, 1.0, gamma).mean(), case, tolerance, want=case["expected"]["unweighted"])
    agrees(lambda z, y: softmax_focal(z, y, weights, gamma).mean(), case, tolerance, want=case["expected"]["weighted_outside_modulator"])


@pytest.mark.parametrize("case, tolerance", cases("ldam"))
def test_ldam_is_the_reference(case, tolerance):
    inputs = case["inputs"]
    spec = imbalance.ldam(inputs["counts"], inputs["max_m"], float(inputs["s"]))
    torch.testing.assert_close(spec.mu / inputs["s"], tensor(case["expected"]["margin"]), rtol=1e-12, atol=0)
    spec = imbalance.reweighted(spec, tensor(inputs["class_weight"])) if inputs["class_weight"] else spec
    agrees(partial(adjusted_cross_entropy, spec=spec), case, tolerance)


@pytest.mark.parametrize("case, tolerance", cases("ldam_hinge"))
def test_hinge_and_uniform_margin_are_the_definition(case, tolerance):
    inputs, want = case["inputs"], case["expected"]
    logits, labels = tensor(inputs["logits"]), torch.tensor(inputs["labels"])
    hinge = ldam_hinge(logits, labels, imbalance.class_margins(inputs["counts"], inputs["max_m"]))
    torch.testing.assert_close(hinge, tensor(want["ldam_hinge_per_sample"]), **tolerance)
    torch.testing.assert_close(hinge.mean(), tensor(want["ldam_hinge_mean"]), **tolerance)
    torch.testing.assert_close(ldam_hinge(logits, labels, inputs["uniform_margin"]), tensor(want["uniform_hinge_per_sample"]), **tolerance)
    uniform = LossSpec(beta=float(inputs["s"]), mu=inputs["s"] * inputs["uniform_margin"])
    agrees(partial(adjusted_cross_entropy, spec=uniform), case, tolerance,
           want={"loss": want["uniform_margin_ce"], "grad": want["uniform_margin_ce_grad"]})


@pytest.mark.parametrize("case, tolerance", cases("vs_cdt_la"))
def test_vs_cdt_and_logit_adjustment_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    spec = imbalance.vs(inputs["counts"], inputs["gamma"], inputs["tau"])
    torch.testing.assert_close(spec.beta, tensor(case["expected"]["beta"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(spec.iota, tensor(case["expected"]["iota"]), rtol=1e-12, atol=1e-14)
    if inputs["kind"] == "LA":
        spec = imbalance.logit_adjusted(inputs["counts"], inputs["tau"])
    agrees(partial(adjusted_cross_entropy, spec=imbalance.reweighted(spec, tensor(inputs["class_weight"])) if inputs["class_weight"]
                   else spec), case, tolerance)


@pytest.mark.parametrize("case, tolerance", cases("ddc"))
def test_ddc_is_the_reference_in_both_stages(case, tolerance):
    inputs = case["inputs"]
    parameters = {key: inputs[key] for key in ("gamma", "tau", "nu")} | {"late_tau": inputs["tau"], "start": inputs["t0"]}
    plan = imbalance.plan_of("ddc", parameters, inputs["counts"], SCHEDULE)
    agrees(plan.loss(inputs["epoch"]), case, tolerance)
    if case["expected"]["phase"] == 2:
        weights = imbalance.inverse_weights(inputs["counts"], inputs["nu"])
        torch.testing.assert_close(weights, tensor(case["expected"]["class_weight"]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("case, tolerance", [case for case in cases("schedules") if case.values[0]["inputs"]["kind"] == "class_weight"])
def test_stages_of_the_weights_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    ones = torch.ones(len(inputs["counts"]), dtype=torch.float64)
    second = (imbalance.inverse_weights(inputs["counts"], inputs["nu"]) if inputs["rule"] == "ADRW" else
              imbalance.class_balanced_weights(inputs["counts"], inputs.get("beta", 0.0)))
    stages = {"None": staged(None, None, 0), "Reweight": staged(second, second, 0)}
    weights = stages.get(inputs["rule"], staged(ones, second, inputs["start"]))(inputs["epoch"])
    assert (weights is None) == (case["expected"] is None)
    if weights is not None:
        torch.testing.assert_close(weights, tensor(case["expected"]), rtol=tolerance["rtol"], atol=0)


@pytest.mark.parametrize("case, tolerance", cases("posthoc_la"))
def test_posthoc_adjustment_is_the_reference(case, tolerance):
    logits = tensor(case["inputs"]["logits"])
    adjusted = imbalance.posthoc_logit_adjust(logits, case["inputs"]["counts"], case["inputs"]["tau"])
    torch.testing.assert_close(adjusted, tensor(case["expected"]["adjusted_logits"]), rtol=tolerance["rtol"], atol=1e-12)
    assert adjusted.argmax(1).tolist() == case["expected"]["prediction"]


# ---- properties

def test_the_general_loss_is_the_pairwise_form():
    logits, labels = problem()
    generator = torch.Generator().manual_seed(1)
    alpha, beta, mu = (torch.rand(5, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3))
    iota = torch.randn(5, generator=generator, dtype=torch.float64)
    delta = iota[None, :] - iota[:, None] + mu[:, None]                 # Δ of (target, other)
    scaled = beta * logits
    gaps = delta[labels] + scaled - scaled.gather(1, labels[:, None])
    gaps = gaps.masked_fill(functional.one_hot(labels, 5).bool(), -torch.inf)
    pairwise = (alpha[labels] * torch.log1p(gaps.exp().sum(1))).mean()
    torch.testing.assert_close(adjusted_cross_entropy(logits, labels, LossSpec(alpha, beta, iota, mu)), pairwise, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_shift_and_scale_invariances(reduction):
    logits, labels = problem()
    spec = replace(imbalance.vs(COUNTS, 0.2, 1.0), alpha=imbalance.inverse_weights(COUNTS, 0.5), mu=imbalance.class_margins(COUNTS, 0.5),
                   reduction=reduction)
    same(replace(spec, iota=spec.iota + 7.5), spec, logits, labels)
    same(replace(spec, alpha=3 * spec.alpha), spec, logits, labels, scale=3.0 if reduction == "mean" else 1.0)


def test_reductions_differ_as_by_hand():
    logits, labels = tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 0, 0, 1])
    weighted = tensor([0.1, 0.1, 0.1, 1.9]) * functional.cross_entropy(logits, labels, reduction="none")
    assert adjusted_cross_entropy(logits, labels, LossSpec(tensor([0.1, 1.9]))) == pytest.approx(weighted.sum().item() / 4)
    ours = adjusted_cross_entropy(logits, labels, LossSpec([0.1, 1.9], reduction="weighted_mean"))
    assert ours == pytest.approx(weighted.sum().item() / 2.2)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, weight=tensor([0.1, 1.9])))


@pytest.mark.parametrize("spec, special", [
    (imbalance.vs(COUNTS, 0.0, 0.0), LossSpec()), (imbalance.class_balanced(COUNTS, 0.0), LossSpec()),
    (imbalance.vs(COUNTS, 0.0, 1.3), imbalance.logit_adjusted(COUNTS, 1.3)),
    (imbalance.reweighted(LossSpec(), imbalance.inverse_weights(COUNTS, 0.0)), LossSpec()), (imbalance.ldam(COUNTS, 0.0, 1.0), LossSpec()),
    (imbalance.reweighted(imbalance.vs(COUNTS, 0.2, 1.0), 2.0), imbalance.vs(COUNTS, 0.2, 1.0)),
], ids=["vs to ce", "cb to ce", "vs to la", "adrw to ce", "ldam to ce", "one weight for all"])
def test_special_cases_are_the_general_loss(spec, special):
    same(spec, special, *problem())


@pytest.mark.parametrize("arm", ["cb", "cb_weighted", "ce_drw", "la", "cdt", "vs", "tla", "adrw", "ddc"])
@pytest.mark.parametrize("epoch", [0, 19])
def test_equal_counts_make_every_weighting_and_shifting_method_cross_entropy(arm, epoch):
    logits, labels = problem()
    plan = imbalance.plan_of(*imbalance.parse(arm), [60] * 5, SCHEDULE)
    torch.testing.assert_close(plan.loss(epoch)(logits, labels), functional.cross_entropy(logits, labels), rtol=1e-12, atol=0)


def test_equal_counts_make_ldam_a_uniform_margin_with_its_scale():
    same(imbalance.ldam([60] * 5, 0.5, 30.0), LossSpec(beta=30.0, mu=15.0), *problem())


@pytest.mark.parametrize("arm", ["ce", "cb", "la", "ce_drw", "adrw"])
def test_gradients_sum_to_zero_over_classes_without_scales(arm):
    logits, labels = problem()
    logits.requires_grad_()
    imbalance.plan_of(*imbalance.parse(arm), COUNTS, SCHEDULE).loss(19)(logits, labels).backward()
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(40, dtype=torch.float64), rtol=0, atol=1e-15)


def test_one_image_of_the_rarest_class_leaves_every_loss_finite():
    logits, labels = problem(counts=[5000, 40, 1])
    for arm in imbalance.METHODS:
        plan = imbalance.plan_of(*imbalance.parse(arm), [5000, 40, 1], SCHEDULE)
        for epoch in (0, 19):
            z = (20 * logits).float().requires_grad_()
            plan.loss(epoch)(z, labels).backward()
            assert z.grad.isfinite().all(), arm


def test_focal_gradient_is_finite_at_certainty():
    logits = torch.tensor([[200.0, 0.0, 0.0]]).requires_grad_()
    softmax_focal(logits, torch.tensor([0]), gamma=0.5).sum().backward()
    assert logits.grad.isfinite().all()
    logits = torch.tensor([[-95.0, 95.0, 0.0]]).requires_grad_()
    loss = sigmoid_focal(logits, torch.tensor([0]), gamma=0.5).sum()
    loss.backward()
    assert loss.item() == pytest.approx(190 + 0.5**0.5 * 0.6931, abs=0.01) and logits.grad.isfinite().all()


def test_focal_without_focus_is_its_plain_loss():
    logits, labels = problem()
    torch.testing.assert_close(softmax_focal(logits, labels, 1.0, 0.0), functional.cross_entropy(logits, labels, reduction="none"))
    binary = functional.binary_cross_entropy_with_logits(logits, functional.one_hot(labels, 5).double(), reduction="none")
    torch.testing.assert_close(sigmoid_focal(logits, labels), binary.sum(1))


def test_half_precision_is_computed_in_single():
    logits, labels = problem()
    loss = adjusted_cross_entropy(logits.bfloat16(), labels, imbalance.vs(COUNTS, 0.2, 1.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, adjusted_cross_entropy(logits.bfloat16().float(), labels, imbalance.vs(COUNTS, 0.2, 1.0)))


# ---- methods by name

def test_a_method_is_read_with_its_published_parameters():
    assert imbalance.parse("vs") == ("vs", {"gamma": 0.3, "tau": 1.0})
    assert imbalance.parse("ddc nu:0.25 start:3") == ("ddc", {"gamma": 0.05, "tau": 1.0, "late_tau": 1.0, "nu": 0.25, "start": 3})


def test_second_stage_starts_at_the_first_drop_or_where_it_is_told():
    logits, labels = problem()
    plain = functional.cross_entropy(logits, labels)
    for parameters, start in (({"b": 0.99}, 16), ({"b": 0.99, "start": 3}, 3)):
        loss = imbalance.plan_of("ce_drw", parameters, COUNTS, SCHEDULE).loss
        torch.testing.assert_close(loss(start - 1)(logits, labels), plain)
        assert (loss(start)(logits, labels) - plain).abs() > 0.1


def test_only_the_named_methods_use_cosines_or_draw_with_replacement():
    plans = {arm: imbalance.plan_of(*imbalance.parse(arm), COUNTS, SCHEDULE) for arm in imbalance.METHODS}
    assert {arm for arm, plan in plans.items() if plan.cosine} == {"ldam", "ldam_drw", "uniform_drw", "ldam_hinge_drs"}
    assert {arm for arm, plan in plans.items() if plan.draw(0) is not None} == {"resampling"}
    assert {arm for arm, plan in plans.items() if plan.draw(16) is not None} == {"resampling", "ldam_hinge_drs"}
    assert {arm for arm, plan in plans.items() if plan.bias} == {"sigmoid", "sigmoid_focal", "cb_sigmoid", "cb_focal"}


# ---- bad input: one line that names it

@pytest.mark.parametrize("wrong, message", [
    (lambda: imbalance.logit_adjusted([5, 0, 3], 1.0), "class 1 has no training image"),
    (lambda: imbalance.class_balanced([5, 3], 1.0), "b is 1.0"),
    (lambda: LossSpec(reduction="sum"), "no reduction 'sum'"),
    (lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]), LossSpec()), "labels reach from 0 to 3"),
    (lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([-1, 2]), LossSpec()), "labels reach from -1 to 2"),
    (lambda: sigmoid_focal(torch.zeros(2, 3), torch.tensor([0, 3])), "labels reach from 0 to 3"),
    (lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), LossSpec(alpha=[1.0, 2.0])), r"alpha has shape \(2,\) for 3"),
    (lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([0]), LossSpec()), "one row of logits an image"),
    (lambda: staged(1, 2, -1), "starts at epoch -1"), (lambda: imbalance.parse("svm"), "no method 'svm'; there are ce, focal"),
    (lambda: imbalance.parse("vs gama:1"), "vs takes gamma:…, tau:…, start:…"), (lambda: imbalance.parse("vs 0.3"), "cannot be read")])
def test_bad_input_is_one_clear_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_a_class_without_images_gets_a_prior_on_request_only():
    torch.testing.assert_close(imbalance.log_prior([3, 0], smoothing=1.0).exp(), tensor([0.8, 0.2]))
