"""The measuring itself, and an alarm at about half of what each case is meant to reach (a busy machine must not ring it)."""

import math

import pytest
import torch

from longtail import speed, train


def test_race_rotates_the_order_and_times_every_round():
    calls = []
    seconds = speed.race({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_a_failed_check_has_no_number(error):
    rows = speed.compare("case", list, {"wrong": (list, "difference", error, 0.1, 2.0), "right": (list, "difference", 0.1, 0.1, 2.0)}, 3)
    wrong, right = rows.to_dict("records")
    assert wrong["status"] == "check failed" and math.isnan(wrong["ratio"]) and math.isnan(wrong["low"])
    assert right["status"] == "measured" and right["low"] <= right["ratio"] <= right["high"]


def test_threads_come_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), speed.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_views_are_pillow_s_and_faster():
    row = speed.views(rounds=3, count=128).iloc[0]
    assert row.error <= 1.5
    assert row.ratio > 2.5


def test_pillow_check_notices_other_pixels(monkeypatch):
    images, policy = speed.photographs(8, 32), speed.random_views.POLICIES["cifar"]
    whole = speed.random_views.apply
    monkeypatch.setattr(speed.random_views, "apply", lambda *arguments: whole(*arguments).flip(-1))
    assert speed.pillow_error(images, policy) > 1.5


def test_k_center_is_faster_than_a_product_a_pick():
    rows = speed.k_center(rounds=3).set_index("against")
    assert rows.error["one product a pick"] == 0
    assert rows.ratio["one product a pick"] > 1.2
    assert rows.status["google/active-learning"].startswith("not run")


def test_google_needs_a_checkout(tmp_path):
    with pytest.raises(ValueError, match="give a checkout"):
        speed.google_select(tmp_path)


def test_sdclr_step_is_faster():
    rows = speed.sdclr_step(rounds=5)
    assert (rows.error <= rows.bound).all()
    assert rows.ratio[0] > 1


def test_gradient_check_notices_other_gradients(monkeypatch):
    encoder, method, _ = train.initialise(speed.sdclr_run("convnet", 8, 16))
    method.before_epoch(encoder, 0)
    pair, index = torch.rand(2, 8, 3, 16, 16), torch.arange(8)
    assert speed.gradient_error(encoder, method, pair, index) <= 1e-4
    whole = speed.three_forwards
    monkeypatch.setattr(speed, "three_forwards", lambda net, how, views, index: whole(net, how, [views[1], views[0]], index))
    assert speed.gradient_error(encoder, method, pair, index) > 1e-2
