"""NT-Xent against the authors' own values and gradients, and against what must not matter."""

import json

import pytest
import torch

from longtail.learn.losses import nt_xent
from longtail.store import paths

GOLDEN = paths.ROOT / "tests" / "golden"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def projections(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", golden("nt_xent")["cases"])
def test_is_the_reference(case):
    bounds = golden("nt_xent")["tolerance"]
    rows = torch.tensor(case["x"], dtype=torch.float64, requires_grad=True)
    loss = nt_xent(rows[0::2], rows[1::2], case["t"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=bounds["loss_rel"])
    torch.testing.assert_close(
        rows.grad, torch.tensor(case["grad"], dtype=torch.float64), atol=bounds["grad_abs"], rtol=0
    )
    single = nt_xent(rows[0::2].float(), rows[1::2].float(), case["t"]).mean()
    assert single.item() == pytest.approx(case["loss_float32"], rel=bounds["loss_float32_rel"])


@pytest.mark.parametrize("case", golden("sdclr_two_branch_loss")["cases"])
def test_is_the_reference_over_two_branches(case):
    bounds = golden("sdclr_two_branch_loss")["tolerance"]
    dense, pruned = (
        torch.tensor(case[key], dtype=torch.float64, requires_grad=True)
        for key in ("f_dense", "f_pruned")
    )
    loss = nt_xent(dense, pruned, case["t"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=bounds["loss_rel"])
    for ours, key in ((dense, "grad_dense"), (pruned, "grad_pruned")):
        torch.testing.assert_close(
            ours.grad, torch.tensor(case[key], dtype=torch.float64), atol=bounds["grad_abs"], rtol=0
        )


def test_one_image_has_no_negative():
    assert nt_xent(projections(1, 5), projections(1, 5, seed=1), 0.2) == pytest.approx(0, abs=1e-12)


def test_leading_dimensions_are_separate_batches():
    first, second = projections(2, 3, 7, 5), projections(2, 3, 7, 5, seed=1)
    apart = torch.stack(
        [
            torch.stack([nt_xent(a, b, 0.3) for a, b in zip(*pair, strict=True)])
            for pair in zip(first, second, strict=True)
        ]
    )
    assert apart.shape == (2, 3, 7)
    torch.testing.assert_close(nt_xent(first, second, 0.3), apart, atol=1e-12, rtol=0)


def test_views_are_exchangeable_and_length_does_not_matter():
    first, second = projections(9, 5), projections(9, 5, seed=1)
    loss = nt_xent(first, second, 0.3)
    torch.testing.assert_close(nt_xent(second, first, 0.3), loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        nt_xent(first * projections(9, 1, seed=2).abs(), 7 * second, 0.3), loss, atol=1e-12, rtol=0
    )


def test_each_image_has_its_own_loss():
    first, second, order = (
        projections(9, 5),
        projections(9, 5, seed=1),
        torch.tensor([4, 0, 8, 3, 1, 7, 2, 6, 5]),
    )
    loss = nt_xent(first, second, 0.3)
    assert loss.shape == (9,) and loss.unique().numel() == 9
    torch.testing.assert_close(
        nt_xent(first[order], second[order], 0.3), loss[order], atol=1e-12, rtol=0
    )
    closer = second.clone()
    closer[3] = first[3]  # its positive becomes perfect; for others it is one negative among many
    assert (nt_xent(first, closer, 0.3) - loss).argmin() == 3


def test_half_precision_is_summed_in_single():
    first, second = (projections(40, 16, seed=seed).bfloat16() for seed in (0, 1))
    loss = nt_xent(first, second, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, nt_xent(first.float(), second.float(), 0.1), atol=0.1, rtol=0
    )  # unit vectors rounded to 8 bits
