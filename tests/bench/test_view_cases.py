"""The case of random views: its checks notice what is wrong, and an alarm at half of its goal."""

import math

import pytest
import torch
from PIL import Image

from longtail.bench import timing
from longtail.bench import views as cases
from longtail.images import views

CIFAR = views.POLICIES["cifar"]


def test_views_have_the_law_and_the_pixels_and_are_faster():
    row = (
        cases.views(rounds=3, count=128, draws=20_000)
        .set_index("against")
        .loc["torchvision per image"]
    )
    assert row.error <= 1 and row.status == "measured"
    assert row.ratio > row.goal / 2


@pytest.mark.parametrize(
    "name, change, statistics",
    [
        ("y", lambda ours: ours["y"] // 2, {"top"}),
        ("x", lambda ours: ours["x"] // 2, {"left"}),
        ("height", lambda ours: ours["height"].clamp(max=20), {"area", "aspect"}),
        ("factor", lambda ours: ours["factor"].flip(1), {"brightness", "hue"}),
        (
            "order",
            lambda ours: torch.arange(4).expand(3000, 4),
            {f"place of {name}" for name in cases.ADJUSTMENTS},
        ),
    ],
)
def test_every_part_of_the_law_is_tested(monkeypatch, name, change, statistics):
    draw = views.parameters
    assert min(cases.p_values(CIFAR, 32, 3000).values()) > 0.001
    ours = draw(torch.arange(3000), CIFAR, 0, 0, 0, 32)
    monkeypatch.setattr(views, "parameters", lambda *arguments: ours | {name: change(ours)})
    found = cases.p_values(CIFAR, 32, 3000)
    assert len(found) == 12 and statistics <= {name for name, p in found.items() if p < 0.001}


@pytest.mark.parametrize("policy", ["cifar", "imagenet"])
def test_pixel_checks_notice_other_pixels(monkeypatch, policy):
    monkeypatch.setattr(cases, "p_values", lambda *arguments: {"area": 0.5})
    images, law = cases.photographs(16, 32), views.POLICIES[policy]
    right = cases.view_checks(images, law, False, 0)
    assert all(error <= bound for error, bound in right.values())
    whole = views.apply
    monkeypatch.setattr(views, "apply", lambda *arguments: whole(*arguments).flip(-1))
    assert [
        error > bound for error, bound in cases.view_checks(images, law, False, 0).values()
    ] == [True, True, False]


def test_blur_is_checked_where_the_law_has_none(monkeypatch):
    monkeypatch.setattr(cases, "p_values", lambda *arguments: {"area": 0.5})
    monkeypatch.setattr(views, "blur", lambda x, sigma: x)
    checks = cases.view_checks(cases.photographs(16, 32), CIFAR, False, 0)
    assert [error > bound for error, bound in checks.values()] == [False, True, False]


def test_compiled_views_say_what_compiling_took(monkeypatch):
    monkeypatch.setattr(views, "_compiled", lambda: views.apply)  # building takes a minute
    rows = cases.views(rounds=1, count=64, fused=True, draws=500)
    assert rows.case[0] == "views cifar, 32 px, compiled" and math.isfinite(rows.compile_seconds[0])
    assert rows.status[0] == "measured"


def test_the_authors_data_set_is_run_from_a_checkout(sdclr):
    rows = cases.views(rounds=1, count=4, draws=500, sdclr=sdclr).set_index("against")
    assert rows.status[timing.AUTHORS] == "measured" and rows.ratio[timing.AUTHORS] > 0
    rows = cases.views(rounds=1, count=4, draws=500).set_index("against")
    assert rows.status[timing.AUTHORS] == "not run: give sdclr"


def test_the_authors_blur_comes_for_half_of_the_views():
    plain, blurred = (
        cases.reference_transform(32, views.POLICIES[name]) for name in ("cifar", "imagenet")
    )
    assert len(blurred.transforms) == len(plain.transforms) + 1
    step = blurred.transforms[-2]
    picture = Image.fromarray(cases.photographs(1, 32)[0].permute(1, 2, 0).numpy())
    assert step.p == 0.5 and step.transforms[0](picture).tobytes() != picture.tobytes()
