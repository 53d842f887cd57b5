"""The measuring itself, and an alarm at about half of what each case is meant to reach (a busy
machine must not ring it).
"""

import math

import pytest
import torch

from longtail.bench import timing


def test_race_rotates_the_order_and_times_every_round():
    calls = []
    seconds = timing.race({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("error", [0.2, math.nan])
def test_a_failed_check_has_no_number(error):
    rows = timing.ratios(
        "case",
        list,
        {
            "wrong": (list, "difference", error, 0.1, 2.0),
            "right": (list, "difference", 0.1, 0.1, 2.0),
        },
        3,
    )
    wrong, right = rows.to_dict("records")
    assert (
        wrong["status"] == "check failed"
        and math.isnan(wrong["ratio"])
        and math.isnan(wrong["low"])
    )
    assert right["status"] == "measured" and right["low"] <= right["ratio"] <= right["high"]


def test_extrapolated_ratios_count_the_whole(monkeypatch):
    monkeypatch.setattr(
        timing, "race", lambda contenders, rounds: {"ours": [2.0, 1.0], "slow": [0.5, 0.5]}
    )
    row = timing.ratios(
        "case", list, {"slow": (list, "nothing", 0, 0, 5.0)}, 2, calls={"slow": 100}
    ).iloc[0]
    assert (row.low, row.ratio, row.high) == (25, 37.5, 50)


def test_threads_come_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), timing.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_several_checks_are_as_good_as_the_worst():
    words, share, bound = timing.all_of({"loss": (2e-6, 1e-5), "masks": (0.5, 1)})
    assert words == "loss 2e-06 of 1e-05, masks 0.5 of 1"
    assert (share, bound) == (0.5, 1)
    assert timing.all_of({"loss": (0, 1e-5), "masks": (2, 1)})[1] > 1
    for checks in (
        {"loss": (math.nan, 1), "masks": (0, 1)},
        {"masks": (0, 1), "loss": (math.nan, 1)},
    ):
        assert math.isnan(timing.all_of(checks)[1])
