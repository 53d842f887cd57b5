"""The cases against the authors' code: they find equality on a stand-in and on a checkout, and
notice every kind of difference.
"""

import functools

import pytest
import torch

from longtail.bench import timing, training
from longtail.bench.views import photographs
from longtail.learn import losses, methods, models, train


def test_without_a_checkout_no_case_runs():
    for rows in (training.loss(1), training.masks(1), training.sdclr_epoch(1)):
        assert list(rows.status) == ["not run: give sdclr"] and list(rows.against) == [
            timing.AUTHORS
        ]


def test_loss(sdclr, monkeypatch):
    row = training.loss(1, images=32, sdclr=sdclr).iloc[0]
    assert row.status == "measured" and row.error <= 1
    whole = losses.nt_xent
    monkeypatch.setattr(
        losses,
        "nt_xent",
        lambda first, second, temperature: whole(first, second.detach(), temperature),
    )
    assert training.loss(1, images=32, sdclr=sdclr).status[0] == "check failed"
    monkeypatch.setattr(losses, "nt_xent", lambda *arguments: whole(*arguments) * 1.00001)
    assert training.loss(1, images=32, sdclr=sdclr).status[0] == "check failed"


def test_gradient_of_the_loss_is_that_of_finite_differences():
    pair = torch.randn(
        2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda views: losses.nt_xent(*views, 0.2), pair, eps=1e-6, atol=1e-7, rtol=1e-6
    )


def test_masks(sdclr, monkeypatch):
    row = training.masks(1, "resnet32", sdclr=sdclr).iloc[0]
    assert row.status == "measured" and row.error == 0
    whole = models.magnitude_masks

    def without_ties(weights, fraction):
        threshold = min(
            weight[mask].abs().min()
            for weight, mask in zip(weights, whole(weights, fraction), strict=True)
            if mask.any()
        )
        return [weight.abs() > threshold for weight in weights]

    monkeypatch.setattr(models, "magnitude_masks", without_ties)
    assert training.masks(1, "resnet32", sdclr=sdclr).error[0] > 100  # hundreds of weights tie


def test_sdclr_step(sdclr):
    rows = training.sdclr_step(1, batch=8, side=8, sdclr=sdclr)
    assert len(rows) == 3 and (rows.status == "measured").all() and (rows.error <= 1).all()


def test_our_order_beats_theirs_in_our_network():
    rows = training.sdclr_step(5, "resnet10_small", 64, 32).set_index("against")
    ways = rows.loc[
        ["three forwards, default layout and SGD", "three forwards, our layout and SGD"]
    ]
    assert (ways.error <= 1).all() and ways.ratio.iloc[0] > 1
    assert rows.status[timing.AUTHORS] == "not run: give sdclr"


@pytest.fixture
def pair():
    return training.two_views(photographs(8, 8), training.sdclr_run("convnet", 8, 8))


@pytest.fixture
def ways():
    """Our update of a small net, and the authors' order in it."""
    encoder, method, _ = train.initialise(training.sdclr_run("convnet", 8, 8))
    method.before_epoch(encoder, 0)

    def three(net, views):
        return training.three_forwards(
            lambda *rows: method.objective(*rows, torch.arange(8)).mean(), net, views
        )

    one_graph = functools.partial(training.one_graph, method)
    return training.Way(
        encoder, one_graph, torch.channels_last, fused=True, passes=1
    ), training.Way(encoder, three)


def failed(pair, ours, other):
    """Which of the checks fail: loss, gradients, statistics."""
    checks = training.step_checks(training.traces(ours, pair), training.traces(other, pair))
    return [error > bound for error, bound in checks.values()]


def test_step_checks_notice_each_difference(pair, ways):
    ours, other = ways
    assert failed(pair, ours, other) == [False, False, False]
    swapped = training.Way(other.net, lambda net, views: other.gradients(net, views[::-1]))
    assert all(failed(pair, ours, swapped))
    louder = training.Way(other.net, lambda net, views: other.gradients(net, views) * 1.001)
    assert failed(pair, ours, louder) == [True, False, False]

    def steeper(net, views):
        loss = other.gradients(net, views)
        net.head.linears[0].weight.grad.mul_(1.001)
        return loss

    assert failed(pair, ours, training.Way(other.net, steeper))[:2] == [False, True]
    ours.passes = 2  # statistics of the pruned branch move once, theirs twice
    assert failed(pair, ours, other) == [False, False, True]


def test_sdclr_epoch(sdclr, monkeypatch):
    rows = training.sdclr_epoch(1, images=16, batch=8, side=8, updates=4, sdclr=sdclr)
    assert list(rows.status) == ["measured"] and rows.error[0] < 1e-6
    monkeypatch.setattr(
        methods.find("sdclr"), "before_epoch", lambda method, encoder, epoch: None
    )  # masks of all ones
    assert (
        training.sdclr_epoch(1, images=16, batch=8, side=8, updates=1, sdclr=sdclr).status[0]
        == "check failed"
    )
