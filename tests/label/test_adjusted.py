"""The losses with labels against the authors' values and gradients, in both precisions, and the
algebra that ties them together.
"""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from longtail.label import adjusted
from longtail.label.adjusted import (
    LossSpec,
    adjusted_cross_entropy,
    adjusted_losses,
    ldam_hinge,
    sigmoid_focal,
    softmax_focal,
    staged,
)
from longtail.label.supervised import Schedule
from longtail.store import paths

COUNTS = [5000, 997, 12, 80, 3]
SCHEDULE = Schedule(epochs=20, batch_size=8, learning_rate=0.1, drops=(16, 18), drop=0.01)
SINGLE = {"rtol": 1e-5, "atol": 1e-6}  # what float32 leaves of an expected value


def golden(name):
    return json.loads((paths.ROOT / "tests" / "golden" / f"sup_{name}.json").read_text())


def cases(*names):
    """Every case of the named files with its tolerance."""
    files = [golden(name) for name in names]
    return [
        pytest.param(case, file["tolerance"], id=f"{file['name']}-{case['name']}")
        for file in files
        for case in file["cases"]
    ]


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def in_both(tolerance):
    """Both precisions, each with its bounds; only an exact zero needs the absolute one where a
    golden file names none.
    """
    return (torch.float64, {"rtol": tolerance["rtol"], "atol": tolerance.get("atol", 1e-12)}), (
        torch.float32,
        SINGLE,
    )


def agrees(loss, case, tolerance, want=None):
    """Loss and gradient with respect to the logits are the expected ones, in double and in single
    precision.
    """
    want = want or case["expected"]
    for dtype, bounds in in_both(tolerance):
        z = tensor(case["inputs"]["logits"], dtype).requires_grad_()
        value = loss(z, torch.tensor(case["inputs"]["labels"]))
        value.backward()
        assert value.dtype == dtype and value.ndim == 0
        torch.testing.assert_close(value.detach(), tensor(want["loss"], dtype), **bounds)
        torch.testing.assert_close(z.grad, tensor(want["grad"], dtype), **bounds)


def each_agrees(spec, case, tolerance):
    """The loss of each image, before the weights, is the expected one in both precisions."""
    for dtype, bounds in in_both(tolerance):
        loss, _ = adjusted_losses(
            tensor(case["inputs"]["logits"], dtype), torch.tensor(case["inputs"]["labels"]), spec
        )
        torch.testing.assert_close(
            loss, tensor(case["expected"]["per_sample_unweighted"], dtype), **bounds
        )


def problem(seed=0, images=40, counts=COUNTS):
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(images, len(counts), generator=generator, dtype=torch.float64),
        torch.randint(len(counts), (images,), generator=generator),
    )


def loss_and_gradient(logits, labels, spec):
    logits = logits.clone().requires_grad_()
    loss = adjusted_cross_entropy(logits, labels, spec)
    loss.backward()
    return loss.detach(), logits.grad


def same(spec, other, logits, labels, scale=1.0):
    """Two specs give the same loss and gradient, up to a factor."""
    for ours, theirs in zip(
        loss_and_gradient(logits, labels, spec),
        loss_and_gradient(logits, labels, other),
        strict=True,
    ):
        torch.testing.assert_close(ours, scale * theirs, rtol=1e-10, atol=1e-12)


# ---- against the references


@pytest.mark.parametrize("case, tolerance", cases("cb_weights"))
def test_weights_are_the_reference(case, tolerance):
    counts, b = case["inputs"]["counts"], case["inputs"]["beta"]
    effective, weight = (
        adjusted.effective_number(counts, b),
        adjusted.class_balanced_weights(counts, b),
    )
    for ours, key in (
        (effective, "effective_number"),
        (1 / effective, "raw_weight"),
        (weight, "weight"),
    ):
        torch.testing.assert_close(
            ours, tensor(case["expected"][key]), rtol=tolerance["rtol"], atol=0
        )


@pytest.mark.parametrize("case, tolerance", cases("class_balanced_losses"))
def test_class_balanced_losses_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    weights = adjusted.class_balanced_weights(inputs["counts"], inputs["beta"])
    torch.testing.assert_close(
        weights, tensor(case["expected"]["class_weight"]), rtol=tolerance["rtol"], atol=0
    )
    if inputs["loss_type"] == "softmax":
        loss = partial(
            adjusted_cross_entropy, spec=adjusted.class_balanced(inputs["counts"], inputs["beta"])
        )
    else:

        def loss(z, y):
            return sigmoid_focal(z, y, weights, inputs["gamma"] or 0.0).mean()

    agrees(loss, case, tolerance)
    single = loss(tensor(inputs["logits"], torch.float32), torch.tensor(inputs["labels"]))
    assert single.item() == pytest.approx(
        case["expected"]["tf_float32_loss"], rel=tolerance["float32_rtol"]
    )


@pytest.mark.parametrize("case, tolerance", cases("softmax_focal"))
def test_softmax_focal_is_the_reference(case, tolerance):
    inputs, want = case["inputs"], case["expected"]
    gamma, weights = (
        inputs["gamma"],
        adjusted.class_balanced_weights(inputs["counts"], inputs["beta"]),
    )
    torch.testing.assert_close(
        weights, tensor(want["class_weight"]), rtol=tolerance["rtol"], atol=0
    )
    agrees(
        lambda z, y: softmax_focal(z, y, 1.0, gamma).mean(),
        case,
        tolerance,
        want=want["unweighted"],
    )
    agrees(
        lambda z, y: softmax_focal(z, y, weights, gamma).mean(),
        case,
        tolerance,
        want=want["weighted_outside_modulator"],
    )
    ours = (
        softmax_focal(tensor(inputs["logits"]), torch.tensor(inputs["labels"]), weights, gamma)
        .mean()
        .item()
    )
    differs = ours != pytest.approx(
        want["weighted_as_in_reference"]["loss"], rel=1e-6
    )  # LDAM's code has the weight in the power too
    assert differs == (gamma > 0 and len(set(inputs["counts"])) > 1)


@pytest.mark.parametrize("case, tolerance", cases("ldam"))
def test_ldam_is_the_reference(case, tolerance):
    inputs = case["inputs"]
    spec = adjusted.ldam(inputs["counts"], inputs["max_m"], float(inputs["s"]))
    torch.testing.assert_close(
        spec.mu / inputs["s"], tensor(case["expected"]["margin"]), rtol=1e-12, atol=0
    )
    each_agrees(spec, case, tolerance)
    spec = (
        adjusted.reweighted(spec, tensor(inputs["class_weight"]))
        if inputs["class_weight"]
        else spec
    )
    agrees(partial(adjusted_cross_entropy, spec=spec), case, tolerance)


@pytest.mark.parametrize("case, tolerance", cases("ldam_hinge"))
def test_hinge_and_uniform_margin_are_the_definition(case, tolerance):
    inputs, want = case["inputs"], case["expected"]
    for dtype, bounds in in_both(tolerance):
        logits, labels = tensor(inputs["logits"], dtype), torch.tensor(inputs["labels"])
        hinge = ldam_hinge(
            logits, labels, adjusted.class_margins(inputs["counts"], inputs["max_m"])
        )
        torch.testing.assert_close(hinge, tensor(want["ldam_hinge_per_sample"], dtype), **bounds)
        torch.testing.assert_close(hinge.mean(), tensor(want["ldam_hinge_mean"], dtype), **bounds)
        uniform = ldam_hinge(logits, labels, inputs["uniform_margin"])
        torch.testing.assert_close(
            uniform, tensor(want["uniform_hinge_per_sample"], dtype), **bounds
        )
    uniform = LossSpec(beta=float(inputs["s"]), mu=inputs["s"] * inputs["uniform_margin"])
    agrees(
        partial(adjusted_cross_entropy, spec=uniform),
        case,
        tolerance,
        want={"loss": want["uniform_margin_ce"], "grad": want["uniform_margin_ce_grad"]},
    )


@pytest.mark.parametrize("case, tolerance", cases("vs_cdt_la"))
def test_vs_cdt_and_logit_adjustment_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    spec = adjusted.vs(inputs["counts"], inputs["gamma"], inputs["tau"])
    torch.testing.assert_close(spec.beta, tensor(case["expected"]["beta"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(spec.iota, tensor(case["expected"]["iota"]), rtol=1e-12, atol=1e-14)
    if inputs["kind"] == "LA":
        spec = adjusted.logit_adjusted(inputs["counts"], inputs["tau"])
    each_agrees(spec, case, tolerance)
    agrees(
        partial(
            adjusted_cross_entropy,
            spec=adjusted.reweighted(spec, tensor(inputs["class_weight"]))
            if inputs["class_weight"]
            else spec,
        ),
        case,
        tolerance,
    )


@pytest.mark.parametrize("case, tolerance", cases("ddc"))
def test_ddc_is_the_reference_in_both_stages(case, tolerance):
    inputs = case["inputs"]
    parameters = {key: inputs[key] for key in ("gamma", "tau", "nu")} | {
        "late_tau": inputs["tau"],
        "start": inputs["t0"],
    }
    plan = adjusted.method_of("ddc", parameters, inputs["counts"], SCHEDULE)
    agrees(plan.loss(inputs["epoch"]), case, tolerance)
    if case["expected"]["phase"] == 2:
        weights = adjusted.inverse_weights(inputs["counts"], inputs["nu"])
        torch.testing.assert_close(
            weights, tensor(case["expected"]["class_weight"]), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize(
    "case, tolerance",
    [case for case in cases("schedules") if case.values[0]["inputs"]["kind"] == "class_weight"],
)
def test_stages_of_the_weights_are_the_reference(case, tolerance):
    inputs = case["inputs"]
    ones = torch.ones(len(inputs["counts"]), dtype=torch.float64)
    second = (
        adjusted.inverse_weights(inputs["counts"], inputs["nu"])
        if inputs["rule"] == "ADRW"
        else adjusted.class_balanced_weights(inputs["counts"], inputs.get("beta", 0.0))
    )
    stages = {"None": staged(None, None, 0), "Reweight": staged(second, second, 0)}
    weights = stages.get(inputs["rule"], staged(ones, second, inputs["start"]))(inputs["epoch"])
    assert (weights is None) == (case["expected"] is None)
    if weights is not None:
        torch.testing.assert_close(
            weights, tensor(case["expected"]), rtol=tolerance["rtol"], atol=0
        )


@pytest.mark.parametrize("case, tolerance", cases("posthoc_la"))
def test_posthoc_adjustment_is_the_reference(case, tolerance):
    inputs, want = case["inputs"], case["expected"]
    for dtype, bounds in in_both(tolerance):
        shifted = adjusted.posthoc_logit_adjust(
            tensor(inputs["logits"], dtype), inputs["counts"], inputs["tau"]
        )
        torch.testing.assert_close(shifted, tensor(want["adjusted_logits"], dtype), **bounds)
        assert shifted.argmax(1).tolist() == want["prediction"]
    shift = inputs["tau"] * adjusted.log_prior(inputs["counts"])
    assert ((shift.exp() + 1e-12).log() - shift).max().item() == pytest.approx(
        want["max_shift_from_epsilon"], abs=1e-14
    )  # as published


# ---- properties


def test_the_general_loss_is_the_pairwise_form():
    logits, labels = problem()
    generator = torch.Generator().manual_seed(1)
    alpha, beta, mu = (
        torch.rand(5, generator=generator, dtype=torch.float64) + 0.1 for _ in range(3)
    )
    iota = torch.randn(5, generator=generator, dtype=torch.float64)
    delta = iota[None, :] - iota[:, None] + mu[:, None]  # Δ of (target, other)
    scaled = beta * logits
    gaps = delta[labels] + scaled - scaled.gather(1, labels[:, None])
    gaps = gaps.masked_fill(functional.one_hot(labels, 5).bool(), -torch.inf)
    pairwise = (alpha[labels] * torch.log1p(gaps.exp().sum(1))).mean()
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, labels, LossSpec(alpha, beta, iota, mu)),
        pairwise,
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_shift_and_scale_invariances(reduction):
    logits, labels = problem()
    spec = replace(
        adjusted.vs(COUNTS, 0.2, 1.0),
        alpha=adjusted.inverse_weights(COUNTS, 0.5),
        mu=adjusted.class_margins(COUNTS, 0.5),
        reduction=reduction,
    )
    same(replace(spec, iota=spec.iota + 7.5), spec, logits, labels)
    same(
        replace(spec, alpha=3 * spec.alpha),
        spec,
        logits,
        labels,
        scale=3.0 if reduction == "mean" else 1.0,
    )


def test_reductions_differ_as_by_hand():
    logits, labels = (
        tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]),
        torch.tensor([0, 0, 0, 1]),
    )
    weighted = tensor([0.1, 0.1, 0.1, 1.9]) * functional.cross_entropy(
        logits, labels, reduction="none"
    )
    assert adjusted_cross_entropy(logits, labels, LossSpec(tensor([0.1, 1.9]))) == pytest.approx(
        weighted.sum().item() / 4
    )
    ours = adjusted_cross_entropy(logits, labels, LossSpec([0.1, 1.9], reduction="weighted_mean"))
    assert ours == pytest.approx(weighted.sum().item() / 2.2)
    torch.testing.assert_close(
        ours, functional.cross_entropy(logits, labels, weight=tensor([0.1, 1.9]))
    )


@pytest.mark.parametrize(
    "spec, special",
    [
        (adjusted.vs(COUNTS, 0.0, 0.0), LossSpec()),
        (adjusted.class_balanced(COUNTS, 0.0), LossSpec()),
        (adjusted.vs(COUNTS, 0.0, 1.3), adjusted.logit_adjusted(COUNTS, 1.3)),
        (adjusted.reweighted(LossSpec(), adjusted.inverse_weights(COUNTS, 0.0)), LossSpec()),
        (adjusted.ldam(COUNTS, 0.0, 1.0), LossSpec()),
        (adjusted.reweighted(adjusted.vs(COUNTS, 0.2, 1.0), 2.0), adjusted.vs(COUNTS, 0.2, 1.0)),
    ],
    ids=["vs to ce", "cb to ce", "vs to la", "adrw to ce", "ldam to ce", "one weight for all"],
)
def test_special_cases_are_the_general_loss(spec, special):
    same(spec, special, *problem())


@pytest.mark.parametrize(
    "arm", ["cb", "cb_weighted", "ce_drw", "la", "cdt", "vs", "tla", "adrw", "ddc"]
)
@pytest.mark.parametrize("epoch", [0, 19])
def test_equal_counts_make_every_weighting_and_shifting_method_cross_entropy(arm, epoch):
    logits, labels = problem()
    plan = adjusted.method_of(*adjusted.read_loss(arm), [60] * 5, SCHEDULE)
    torch.testing.assert_close(
        plan.loss(epoch)(logits, labels),
        functional.cross_entropy(logits, labels),
        rtol=1e-12,
        atol=0,
    )


def test_equal_counts_make_ldam_a_uniform_margin_with_its_scale():
    same(adjusted.ldam([60] * 5, 0.5, 30.0), LossSpec(beta=30.0, mu=15.0), *problem())


@pytest.mark.parametrize("arm", ["ce", "cb", "la", "ce_drw", "adrw"])
def test_gradients_sum_to_zero_over_classes_without_scales(arm):
    logits, labels = problem()
    logits.requires_grad_()
    adjusted.method_of(*adjusted.read_loss(arm), COUNTS, SCHEDULE).loss(19)(
        logits, labels
    ).backward()
    torch.testing.assert_close(
        logits.grad.sum(1), torch.zeros(40, dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_one_image_of_the_rarest_class_leaves_every_loss_finite():
    logits, labels = problem(counts=[5000, 40, 1])
    for arm in adjusted.LOSSES:
        plan = adjusted.method_of(*adjusted.read_loss(arm), [5000, 40, 1], SCHEDULE)
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
    assert (
        loss.item() == pytest.approx(190 + 0.5**0.5 * 0.6931, abs=0.01)
        and logits.grad.isfinite().all()
    )


def test_focal_without_focus_is_its_plain_loss():
    logits, labels = problem()
    torch.testing.assert_close(
        softmax_focal(logits, labels, 1.0, 0.0),
        functional.cross_entropy(logits, labels, reduction="none"),
    )
    binary = functional.binary_cross_entropy_with_logits(
        logits, functional.one_hot(labels, 5).double(), reduction="none"
    )
    torch.testing.assert_close(sigmoid_focal(logits, labels), binary.sum(1))


def test_half_precision_is_computed_in_single():
    logits, labels = problem()
    loss = adjusted_cross_entropy(logits.bfloat16(), labels, adjusted.vs(COUNTS, 0.2, 1.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss,
        adjusted_cross_entropy(logits.bfloat16().float(), labels, adjusted.vs(COUNTS, 0.2, 1.0)),
    )


# ---- methods by name

SIZES = np.array(COUNTS)
LOG_PRIOR = np.log(SIZES / SIZES.sum())
ONES, ZEROS = np.ones(5), np.zeros(5)


def shares(weights):
    return len(weights) * weights / weights.sum()


def effective(b):
    return shares((1 - b) / (1 - b**SIZES))


def scales(gamma):
    return (SIZES / SIZES.max()) ** gamma


def margins(max_m):
    return max_m * (SIZES.min() / SIZES) ** 0.25


def softmax_formula(z, y, alpha=ONES, beta=ONES, iota=ZEROS, mu=ZEROS, gamma=0.0, weighted=False):
    """One image at a time: α_y (1 − p_y)^γ · −log p_y of the changed logits, over the batch or over
    the sum of weights.
    """
    terms = []
    for row, label in zip(z, y, strict=True):
        changed = np.exp(beta * row + iota - mu * (np.arange(5) == label))
        chance = changed[label] / changed.sum()
        terms.append(alpha[label] * (1 - chance) ** gamma * -np.log(chance))
    return sum(terms) / (sum(alpha[label] for label in y) if weighted else len(y))


def sigmoid_formula(z, y, alpha=ONES, gamma=0.0):
    """The same of one binary problem a class, each with the weight of the true class."""
    terms = []
    for row, label in zip(z, y, strict=True):
        chance = 1 / (1 + np.exp(np.where(np.arange(5) == label, -row, row)))  # of what is right
        terms.append(alpha[label] * ((1 - chance) ** gamma * -np.log(chance)).sum())
    return sum(terms) / len(y)


def hinge_formula(z, y, margin):
    return sum(
        max(0, max(np.delete(row, label)) - row[label] + margin[label])
        for row, label in zip(z, y, strict=True)
    ) / len(y)


SOFTMAX, SIGMOID, HINGE = softmax_formula, sigmoid_formula, hinge_formula
LATE = effective(0.9999)
PLANS = [  # arm, formula, its settings before the switch, what the switch changes
    ("ce", SOFTMAX, {}, {}),
    ("focal", SOFTMAX, {"gamma": 1}, {}),
    ("focal gamma=2", SOFTMAX, {"gamma": 2}, {}),
    ("sigmoid", SIGMOID, {}, {}),
    ("sigmoid_focal", SIGMOID, {"gamma": 1}, {}),
    ("sigmoid_focal gamma=0.5", SIGMOID, {"gamma": 0.5}, {}),
    ("cb_sigmoid", SIGMOID, {"alpha": LATE}, {}),
    ("cb_sigmoid b=0.9", SIGMOID, {"alpha": effective(0.9)}, {}),
    ("cb_focal", SIGMOID, {"alpha": LATE, "gamma": 1}, {}),
    ("cb_focal b=0.9 gamma=0.5", SIGMOID, {"alpha": effective(0.9), "gamma": 0.5}, {}),
    ("cb", SOFTMAX, {"alpha": LATE}, {}),
    ("cb b=0.9", SOFTMAX, {"alpha": effective(0.9)}, {}),
    ("cb_weighted", SOFTMAX, {"alpha": LATE, "weighted": True}, {}),
    ("cb_weighted b=0.9", SOFTMAX, {"alpha": effective(0.9), "weighted": True}, {}),
    ("resampling", SOFTMAX, {}, {}),
    ("ce_drw", SOFTMAX, {}, {"alpha": LATE, "weighted": True}),
    ("ce_drw b=0.9", SOFTMAX, {}, {"alpha": effective(0.9), "weighted": True}),
    ("ldam", SOFTMAX, {"beta": 30 * ONES, "mu": 30 * margins(0.5)}, {}),
    ("ldam max_m=0.3 s=7", SOFTMAX, {"beta": 7 * ONES, "mu": 7 * margins(0.3)}, {}),
    (
        "ldam_drw",
        SOFTMAX,
        {"beta": 30 * ONES, "mu": 30 * margins(0.5)},
        {"alpha": LATE, "weighted": True},
    ),
    (
        "ldam_drw max_m=0.3 s=7 b=0.9",
        SOFTMAX,
        {"beta": 7 * ONES, "mu": 7 * margins(0.3)},
        {"alpha": effective(0.9), "weighted": True},
    ),
    (
        "uniform_drw",
        SOFTMAX,
        {"beta": 30 * ONES, "mu": 15 * ONES},
        {"alpha": LATE, "weighted": True},
    ),
    (
        "uniform_drw margin=0.3 s=7 b=0.9",
        SOFTMAX,
        {"beta": 7 * ONES, "mu": 2.1 * ONES},
        {"alpha": effective(0.9), "weighted": True},
    ),
    ("ldam_hinge_drs", HINGE, {"margin": margins(0.5)}, {}),
    ("ldam_hinge_drs max_m=0.3", HINGE, {"margin": margins(0.3)}, {}),
    ("la", SOFTMAX, {"iota": LOG_PRIOR}, {}),
    ("la tau=1.5", SOFTMAX, {"iota": 1.5 * LOG_PRIOR}, {}),
    ("cdt", SOFTMAX, {"beta": scales(0.3)}, {}),
    ("cdt gamma=0.1", SOFTMAX, {"beta": scales(0.1)}, {}),
    ("vs", SOFTMAX, {"beta": scales(0.3), "iota": LOG_PRIOR}, {}),
    ("vs gamma=0.1 tau=1.5", SOFTMAX, {"beta": scales(0.1), "iota": 1.5 * LOG_PRIOR}, {}),
    ("tla", SOFTMAX, {"beta": scales(0.05), "iota": LOG_PRIOR}, {"beta": ONES}),
    (
        "tla gamma=0.2 tau=1.5",
        SOFTMAX,
        {"beta": scales(0.2), "iota": 1.5 * LOG_PRIOR},
        {"beta": ONES},
    ),
    ("adrw", SOFTMAX, {}, {"alpha": shares(np.exp(-0.15 * LOG_PRIOR)), "weighted": True}),
    ("adrw nu=0.4", SOFTMAX, {}, {"alpha": shares(np.exp(-0.4 * LOG_PRIOR)), "weighted": True}),
    (
        "ddc",
        SOFTMAX,
        {"beta": scales(0.05), "iota": LOG_PRIOR},
        {"beta": ONES, "alpha": shares(np.exp(-0.15 * LOG_PRIOR)), "weighted": True},
    ),
    (
        "ddc gamma=0.2 tau=1.5 late_tau=0.7 nu=0.4",
        SOFTMAX,
        {"beta": scales(0.2), "iota": 1.5 * LOG_PRIOR},
        {
            "beta": ONES,
            "iota": 0.7 * LOG_PRIOR,
            "alpha": shares(np.exp(-0.4 * LOG_PRIOR)),
            "weighted": True,
        },
    ),
]


def test_every_method_has_its_formula():
    assert {arm.split()[0] for arm, *_ in PLANS} == set(adjusted.LOSSES)


@pytest.mark.parametrize("arm, formula, first, change", PLANS, ids=[arm for arm, *_ in PLANS])
@pytest.mark.parametrize("start", [16, 3])
def test_a_method_trains_on_its_formula_before_and_after_the_switch(
    arm, formula, first, change, start
):
    logits, labels = (part[:8] for part in problem())
    name, parameters = adjusted.read_loss(
        arm if start == SCHEDULE.drops[0] else f"{arm} start={start}"
    )
    loss_of = adjusted.method_of(name, parameters, COUNTS, SCHEDULE).loss
    for epoch, settings in (
        (0, first),
        (start - 1, first),
        (start, first | change),
        (19, first | change),
    ):
        want = formula(logits.numpy(), labels.numpy(), **settings)
        assert loss_of(epoch)(logits, labels).item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    "arm, b, start",
    [
        ("resampling", 0.9999, 0),
        ("resampling b=0.9", 0.9, 0),
        ("ldam_hinge_drs", 0.9999, 16),
        ("ldam_hinge_drs b=0.9", 0.9, 16),
        ("ldam_hinge_drs b=0.9 start=3", 0.9, 3),
    ],
)
def test_a_method_draws_by_the_effective_number_from_the_switch_on(arm, b, start):
    draw = adjusted.method_of(*adjusted.read_loss(arm), COUNTS, SCHEDULE).draw
    assert all(draw(epoch) is None for epoch in range(start))
    for epoch in (start, 19):
        torch.testing.assert_close(draw(epoch), torch.from_numpy(effective(b)), rtol=1e-9, atol=0)


def test_a_method_is_read_with_its_published_parameters():
    assert adjusted.read_loss("vs") == ("vs", {"gamma": 0.3, "tau": 1.0})
    assert adjusted.read_loss("ddc nu=0.25 start=3") == (
        "ddc",
        {"gamma": 0.05, "tau": 1.0, "late_tau": 1.0, "nu": 0.25, "start": 3},
    )


def test_second_stage_starts_at_the_first_drop_or_where_it_is_told():
    logits, labels = problem()
    plain = functional.cross_entropy(logits, labels)
    for parameters, start in (({"b": 0.99}, 16), ({"b": 0.99, "start": 3}, 3)):
        loss = adjusted.method_of("ce_drw", parameters, COUNTS, SCHEDULE).loss
        torch.testing.assert_close(loss(start - 1)(logits, labels), plain)
        assert (loss(start)(logits, labels) - plain).abs() > 0.1


def test_only_the_named_methods_use_cosines_or_draw_with_replacement():
    plans = {
        arm: adjusted.method_of(*adjusted.read_loss(arm), COUNTS, SCHEDULE)
        for arm in adjusted.LOSSES
    }
    assert {arm for arm, plan in plans.items() if plan.cosine} == {
        "ldam",
        "ldam_drw",
        "uniform_drw",
        "ldam_hinge_drs",
    }
    assert {arm for arm, plan in plans.items() if plan.draw(0) is not None} == {"resampling"}
    assert {arm for arm, plan in plans.items() if plan.draw(16) is not None} == {
        "resampling",
        "ldam_hinge_drs",
    }
    assert {arm for arm, plan in plans.items() if plan.bias} == {
        "sigmoid",
        "sigmoid_focal",
        "cb_sigmoid",
        "cb_focal",
    }


# ---- bad input: one line that names it

EACH_LOSS = [
    partial(adjusted_cross_entropy, spec=LossSpec()),
    sigmoid_focal,
    softmax_focal,
    partial(ldam_hinge, margins=0.5),
]


@pytest.mark.parametrize("loss", EACH_LOSS)
def test_labels_of_any_whole_numbers_are_the_same_labels(loss):
    logits, labels = problem()
    for given in (labels.tolist(), labels.int(), labels.numpy().astype(np.uint8)):
        torch.testing.assert_close(loss(logits, given), loss(logits, labels), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda: adjusted.logit_adjusted([5, 0, 3], 1.0),
            "class 1 has 0 training images, it needs some; leave it out, or ask log_prior",
        ),
        (lambda: adjusted.class_sizes([5, float("nan")]), "class 1 has nan training images"),
        (lambda: adjusted.class_sizes([-2, 5]), "class 0 has -2 training images"),
        (lambda: adjusted.class_sizes([2, float("inf")]), "class 1 has inf training images"),
        (lambda: adjusted.log_prior([5, -1], smoothing=2.0), "class 1 has -1 training images"),
        (
            lambda: adjusted.posthoc_logit_adjust(torch.zeros(2, 3), [5, 3]),
            r"counts have shape \(2,\) for 3 classes; give the training",
        ),
        (
            lambda: adjusted.posthoc_logit_adjust(torch.zeros(2, 3), [5]),
            r"counts have shape \(1,\) for 3 classes",
        ),
        (lambda: adjusted.class_balanced([5, 3], 1.0), "b is 1.0"),
        (lambda: LossSpec(reduction="sum"), "no reduction 'sum'"),
        (
            lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 3]), LossSpec()),
            "labels reach from 0 to 3",
        ),
        (
            lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([-1, 2]), LossSpec()),
            "labels reach from -1 to 2",
        ),
        (
            lambda: sigmoid_focal(torch.zeros(2, 3), torch.tensor([0, 3])),
            "labels reach from 0 to 3",
        ),
        (
            lambda: adjusted_cross_entropy(
                torch.zeros(2, 3), torch.tensor([0, 1]), LossSpec(alpha=[1.0, 2.0])
            ),
            r"alpha has shape \(2,\) for 3",
        ),
        (
            lambda: adjusted_cross_entropy(torch.zeros(2, 3), torch.tensor([0]), LossSpec()),
            "one row of logits an image",
        ),
        (lambda: staged(1, 2, -1), "starts at epoch -1"),
        (lambda: adjusted.read_loss("svm"), "no method 'svm'; there are ce, focal"),
        (lambda: adjusted.read_loss("vs gama=1"), "what can be set is gamma=…, tau=…, start=…"),
        (lambda: adjusted.read_loss("vs 0.3"), "no method 'vs 0.3'"),
        *(
            (partial(adjusted.read_loss, f"vs {given}"), rf"'vs {given}' cannot be read")
            for given in (
                "gamma=abc",
                "gamma=",
                "gamma=nan",
                "tau=inf",
                "start=1.5",
                "gamma=1 gamma=2",
                "sizes=3",
            )
        ),
        *(
            (partial(loss, torch.zeros(2, 3), labels), message)
            for loss in EACH_LOSS
            for labels, message in (
                ([[0], [1]], r"labels are int64 of shape \(2, 1\); give one whole number an image"),
                ([0, 1, 2], "one row of logits an image"),
                (torch.tensor([0.0, 1.0]), r"labels are float32 of shape \(2,\)"),
            )
        ),
    ],
)
def test_bad_input_is_one_clear_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_a_class_without_images_gets_a_prior_on_request_only():
    torch.testing.assert_close(adjusted.log_prior([3, 0], smoothing=1.0).exp(), tensor([0.8, 0.2]))
