"""The rate of training and the arithmetic it is held against."""

import pytest
import torch
from tape import stand_in
from toy import planned

from longtail.bench import floor
from longtail.learn import train


def test_operations_are_those_of_the_network(monkeypatch):
    """By hand: convolutions and products of a convnet with 8 images, two views, forward and twice
    that backward.
    """
    run = planned(batch_size=8)
    monkeypatch.setattr(floor, "matmul_rate", lambda precision: 1e9)
    row = floor.training_rate(run, 20, 1, 2)
    shapes, encoder = [], train.initialise(run)[0]
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(
                lambda module, _, y: shapes.append(2 * y.numel() * module.weight[0].numel())
            )
    encoder(torch.rand(16, 3, 16, 16))
    forward = sum(shapes)
    first = shapes[0]  # the gradient of the pictures is not needed
    loss = 3 * 2 * 16 * 16 * 128
    assert row["gflop_per_update"] * 1e9 == pytest.approx(3 * forward - first + loss, rel=0.02)
    assert row["share"] == pytest.approx(row["gflop_per_update"] * row["views_per_second"] / 16)
    assert row["run_minutes"] == pytest.approx(4 * 40 / row["views_per_second"] / 60)
    assert 0 < row["low"] <= row["views_per_second"] <= row["high"]


def test_one_row_for_each_method_and_head():
    plan = [
        planned(seed=seed, method=method, head_layers=layers)
        for seed in (1, 2)
        for method, layers in (("simclr", 2), ("simclr", 3), ("sdclr", 3))
    ]
    rows = floor.rates(plan, 20, 1, 1)
    assert rows.method.tolist() == ["sdclr", "simclr", "simclr"] and (rows.batch == 8).all()


def test_the_rate_of_products():
    assert 1e8 < floor.matmul_rate("float32", 256) < 1e16


def test_recorded_updates_are_timed_of_methods_that_need_nothing_but_images():
    """Others would lack what ``start`` makes; bcl and ts are first and last of the demo's plan."""
    plan = [planned(method=method) for method in ("bcl", "sdclr", "simclr", "ts")]
    with stand_in():
        rows = floor.recorded_against_eager(plan, 20, 3, 1)
    assert (
        rows.method.tolist() == ["sdclr", "simclr"]
        and (rows.error == 0).all()
        and (rows.ratio > 0).all()
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records")
def test_without_a_gpu_nothing_is_recorded():
    assert floor.recorded_against_eager([planned()], 20, 1, 1).empty
