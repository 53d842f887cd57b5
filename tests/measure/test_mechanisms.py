"""Mechanism checks: against plain loops, at work where they should be, and silent when each
mechanism is switched off.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toy import image_set, planned

from longtail.images import studies
from longtail.learn import encode, methods, models, train
from longtail.measure import mechanisms
from longtail.store import paths, runs

SIZES = {"many": 36, "medium": 16, "few": 8}
GROUPS = np.repeat(list(SIZES), list(SIZES.values()))
LABELS = torch.tensor([0] * 36 + [1] * 16 + [2] * 8)
SEED = replace(image_set(60), labels=LABELS)
POOL = replace(
    image_set(48, seed=1),
    labels=torch.arange(48) % 4 - 1,
    names=tuple(f"pool/{k}" for k in range(48)),
)  # −1: outsiders
STUDY = studies.Study(SEED, SEED.subset(range(16, 60)), *[SEED] * 4, POOL, ("a", "b", "c"))
COLT = {"reserve": 48, "budget": 12, "options": "begin=1 clusters=3 nearest=4 repick=2"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return runs.Results("test")


def trained(results, method, **changes):
    """A finished toy run on SEED."""
    images = SEED + POOL if "reserve" in changes else SEED
    run = planned(images, method=method, **changes)
    train.pretrain(run, images, results, progress=False)
    results.ask("arms", [run], {})
    return run


def measured(results, method, **changes):
    return mechanisms.measure_mechanism(trained(results, method, **changes), results, STUDY)


def value(rows, group):
    [found] = rows[rows.group == group].value
    return found


# ---- the check


@pytest.mark.parametrize(
    "contrast, chance, expected",
    [(0.06, 0.01, True), (0.05, 0.01, False), (0.06, 0.07, False), (-1, -2, False)],
)
def test_active_asks_for_more_than_chance_and_than_the_least(contrast, chance, expected):
    rows = pd.DataFrame(
        {"mechanism": "strength", "group": ["contrast", "chance"], "value": [contrast, chance]}
    )
    assert mechanisms.active("strength", rows) is expected
    assert (
        mechanisms.active("picks mak", rows.assign(mechanism="picks mak")) is False
    )  # picks need 0.1


@pytest.mark.parametrize(
    "mechanism, groups",
    [
        ("strength", ["contrast"]),
        ("strength", ["contrast", "contrast", "chance"]),
        ("prior", ["contrast", "chance"]),
        ("luck", ["contrast", "chance"]),
    ],
)
def test_rows_without_one_contrast_and_chance_are_refused(mechanism, groups):
    rows = pd.DataFrame(
        {"mechanism": "luck" if mechanism == "luck" else "strength", "group": groups, "value": 1.0}
    )
    with pytest.raises(ValueError, match=f"no check of '{mechanism}'"):
        mechanisms.active(mechanism, rows)


def test_a_run_without_a_mechanism_has_no_rows(results):
    assert not len(measured(results, "simclr"))


def test_verdicts_are_one_line_a_run_and_mechanism():
    rows = pd.DataFrame(
        [
            ("r1", "bcl", "strength", "contrast", 0.3),
            ("r1", "bcl", "strength", "chance", 0.1),
            ("r2", "bcl", "strength", "contrast", 0.0),
            ("r2", "bcl", "strength", "chance", 0.1),
        ],
        columns=["run", "method", "mechanism", "group", "value"],
    )
    found = mechanisms.verdicts(rows)
    assert found.to_numpy().tolist() == [
        ["r1", "bcl", "strength", 0.3, 0.1, 0.05, True],
        ["r2", "bcl", "strength", 0.0, 0.1, 0.05, False],
    ]
    assert list(mechanisms.verdicts(rows[:0])) == list(found)


# ---- values of images: BCL, rwSAM


@pytest.mark.parametrize(
    "scores, expected",
    [
        (lambda losses: torch.zeros_like(losses), False),  # switched off
        (lambda losses: torch.where(LABELS == 2, 0.6, 0.4), True),
        (lambda losses: torch.where(LABELS == 0, 0.6, 0.4), False),
    ],
)  # frequent classes boosted
def test_bcl(results, monkeypatch, scores, expected):
    monkeypatch.setattr(methods.bcl, "memorization_scores", scores)
    rows = measured(results, "bcl")
    assert mechanisms.active("strength", rows) is expected
    strength = scores(torch.zeros(60)).double().numpy()
    assert [value(rows, group) for group in SIZES] == pytest.approx(
        [strength[group == GROUPS].mean() for group in SIZES]
    )
    assert value(rows, "all") == pytest.approx(strength.mean())
    assert value(rows, "contrast") == pytest.approx(
        strength[GROUPS == "few"].mean() - strength[GROUPS == "many"].mean()
    )


def test_rwsam_with_equal_weights_is_inactive(results):
    rows = measured(results, "rwsam", options="rho=0.5 alpha=0")
    assert value(rows, "few") == pytest.approx(1) and not mechanisms.active("importance", rows)


@pytest.mark.parametrize("step, expected", [(1.0, False), (1.2, True)])
def test_the_oracles_weights_are_active_unless_they_are_equal(results, step, expected):
    rows = measured(results, "simsiam+rwsam_oracle", options=f"phi={step} rho=0.5")
    assert mechanisms.active("importance", rows) is expected
    assert value(rows, "contrast") == pytest.approx(step**2 - 1)


def test_chance_is_what_shuffled_classes_give():
    values = np.random.default_rng(1).random(60)
    rows = mechanisms.as_rows_of({"strength": mechanisms.of_images(values, GROUPS)})
    generator, found = np.random.default_rng(5), []
    for _ in range(4000):
        mixed = generator.permutation(GROUPS)
        found.append(values[mixed == "few"].mean() - values[mixed == "many"].mean())
    assert value(rows, "chance") == pytest.approx(np.quantile(found, 0.99), rel=0.15)
    assert not mechanisms.of_images(values, np.where(GROUPS == "few", "many", GROUPS))


# ---- the prior: GH


@pytest.mark.parametrize("harmony, expected", [(0.0, False), (1.0, True)])
def test_gh(results, monkeypatch, harmony, expected):
    prior = torch.tensor([0.05, 0.5, 0.05, 0.2, 0.1, 0.1])
    monkeypatch.setattr(methods.gh, "class_prior", lambda logits, least: prior)
    rows = measured(results, "gh", options=f"classes=6 ramp=2 refresh=1 warm=2 harmony={harmony}")
    assert mechanisms.active("prior", rows) is expected
    assert value(rows, "all") == pytest.approx(
        1 / 3 + 1 / 30, abs=1e-4
    )  # what 0.5 and 0.2 have beyond a sixth
    assert value(rows, "contrast") == pytest.approx(harmony * value(rows, "all"))
    assert [value(rows, group) for group in SIZES] == pytest.approx([0.7, 0.2, 0.1], abs=1e-4)
    assert [value(rows, f"true_{group}") for group in SIZES] == pytest.approx(
        [0.6, 16 / 60, 8 / 60]
    )


def test_a_prior_drawn_from_equal_classes_is_inactive():
    drawn = np.random.default_rng(3).multinomial(2000, np.full(20, 1 / 20)) / 2000
    rows = mechanisms.as_rows_of({"prior": mechanisms.of_prior(drawn, 1.0, STUDY.counts, 2000)})
    assert not mechanisms.active("prior", rows)


# ---- picks: COLT, MAK


@pytest.mark.parametrize(
    "order, expected",
    [
        (lambda: torch.randperm(48, generator=torch.Generator().manual_seed(0)), False),
        (lambda: torch.arange(48).view(12, 4).T.flatten().flip(0), True),
    ],
)  # few first
def test_colt(results, monkeypatch, order, expected):
    monkeypatch.setattr(
        methods.colt, "colt_sampling", lambda *scores_and_budget: order()[: scores_and_budget[-1]]
    )
    rows = measured(results, "colt", **COLT)
    assert mechanisms.active("picks colt", rows) is expected
    parts = np.array(["outsider", "many", "medium", "few"] * 12)
    taken = parts[order()[:12].numpy()]
    assert {group: value(rows, group) for group in parts[:4]} == pytest.approx(
        {group: (taken == group).mean() * 4 for group in parts[:4]}
    )
    assert value(rows, "contrast") == pytest.approx(
        sum(abs((taken == group).mean() - 0.25) for group in parts[:4]) / 2
    )


def test_picks_of_samplers_are_checked_by_name(results):
    run = trained(results, "simclr")
    picks = {
        "random": pd.DataFrame({"index": np.random.default_rng(0).permutation(48)[:12]}),
        "mak": pd.DataFrame({"index": np.arange(3, 48, 4)}),
    }
    rows = mechanisms.measure_picks(run, results, STUDY, picks)
    assert mechanisms.active("picks mak", rows) and not mechanisms.active("picks random", rows)
    assert value(rows[rows.mechanism == "picks mak"], "few") == 4
    assert set(results.read("mechanism*").mechanism) == {"picks mak", "picks random"}
    unknown = replace(STUDY, pool=replace(POOL, labels=torch.full((48,), -1)))
    assert not len(mechanisms.measure_picks(run, results, unknown, picks))


# ---- pruning: SDCLR


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_sdclr(results, fraction):
    run = trained(results, "sdclr", prune_fraction=fraction, head_layers=3)
    found = mechanisms.disagreement(run, results, STUDY)
    rows = mechanisms.measure_mechanism(run, results, STUDY)
    phi = dict(zip(found.group, found.phi, strict=True))
    assert value(rows, "contrast") == pytest.approx((phi["few"] - phi["many"]) * (fraction > 0))
    assert found.pruned.tolist() == pytest.approx([fraction] * 4, abs=1e-3)
    if not fraction:
        assert not mechanisms.active("pruning", rows)


@pytest.mark.parametrize(
    "few, pruned, expected", [(5.0, 0.9, True), (5.0, 0.0, False), (0.9, 0.9, False)]
)
def test_pruning_that_points_at_rare_classes_is_active(few, pruned, expected):
    found = pd.DataFrame(
        {"phi": [0.6, 0.9, few, 1.0], "images": [360, 160, 80, 600], "pruned": pruned},
        index=[*SIZES, "all"],
    )
    rows = mechanisms.as_rows_of({"pruning": mechanisms.of_pruning(found)})
    assert mechanisms.active("pruning", rows) is expected


def by_hand(encoder, fraction, images):
    """1 − cosine of the branches for each image by itself, masks from a sorted list of all
    weights.
    """
    weights = torch.cat(
        [
            module.weight.detach().flatten()
            for module in encoder.trunk.modules()
            if isinstance(module, models.Conv)
        ]
    ).abs()
    least = weights.sort().values[round(fraction * len(weights))]
    for module in encoder.trunk.modules():
        if isinstance(module, models.Conv):
            module.mask.copy_(module.weight.abs() >= least)
    with torch.no_grad():
        rows = [
            [encoder(image[None].float() / 255, branch=branch)[0] for branch in (0, 1)]
            for image in images
        ]
    return [1 - float(dense @ pruned / dense.norm() / pruned.norm()) for dense, pruned in rows]


def test_disagreement_is_that_of_the_two_branches_on_images_as_they_are(results):
    run = trained(results, "sdclr", head_layers=3)
    found, pruned = mechanisms.disagreements(run, results, STUDY)
    assert found.tolist() == pytest.approx(
        by_hand(train.encoder_of(run, results), 0.5, SEED.images), abs=1e-5
    )
    assert pruned == pytest.approx(0.5, abs=1e-3)
    ends = mechanisms.exemplars(run, results, STUDY, 5)
    assert ends[ends.end == "most"]["index"].tolist() == found.argsort(descending=True)[:5].tolist()
    assert ends[ends.end == "least"]["index"].tolist() == found.argsort()[:5].tolist()
    assert (
        ends.group.tolist() == GROUPS[ends["index"]].tolist()
        and ends.name[0] == SEED.names[ends["index"][0]]
    )
    shares = mechanisms.disagreement(run, results, STUDY).set_index("group")
    top = GROUPS[found.argsort(descending=True)[:6].numpy()]
    assert shares.phi["few"] == pytest.approx(
        (top == "few").mean() / (8 / 60)
    ) and shares.images.to_dict() == SIZES | {"all": 60}
    assert shares.disagreement["few"] == pytest.approx(found[LABELS == 2].mean().item())


def test_an_ordinary_encoder_is_pruned_after_training_with_statistics_of_its_own(results):
    run = trained(results, "simclr")
    twin, encoder, pixels = (
        mechanisms.twin_of(run, results, SEED.images),
        train.encoder_of(run, results),
        SEED.images.float() / 255,
    )
    for name, weight in encoder.named_parameters():
        assert torch.equal(weight, twin.get_parameter(name)) and torch.equal(
            weight, twin.get_parameter(name.replace("sets.0", "sets.1"))
        )
    assert not twin.training and not any(module.training for module in twin.modules())
    for branch in (
        0,
        1,
    ):  # each branch's first batch norm has seen what its first convolution gives
        with torch.no_grad():
            first = twin.trunk.conv((pixels - twin.trunk.mean) / twin.trunk.std, branch)
        norm = twin.trunk.norm.sets[branch]
        torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(norm.running_var, first.var((0, 2, 3)), atol=1e-4, rtol=1e-3)
    found, share = mechanisms.disagreements(run, results, STUDY)
    assert found.mean() > 1e-4 and share == pytest.approx(0.5, abs=1e-3)
    unpruned, share = mechanisms.disagreements(
        trained(results, "simclr", prune_fraction=0.0), results, STUDY
    )
    assert share == 0 and unpruned.abs().max() < 1e-6


def test_statistics_are_renewed_in_batches_that_fit_the_memory(results, monkeypatch):
    run, sizes, forward = trained(results, "simclr"), [], models.Encoder.forward
    monkeypatch.setattr(
        encode.BUDGET, "total", 10 * 16**2 * 4 * 256
    )  # ten images of 16 pixels at once
    monkeypatch.setattr(
        models.Encoder,
        "forward",
        lambda encoder, x, **how: sizes.append(len(x)) or forward(encoder, x, **how),
    )
    mechanisms.twin_of(run, results, SEED.images)
    assert sizes == [10] * 12  # two branches


def test_the_balanced_list_is_asked_about_its_own_images(results):
    run = replace(trained(results, "simclr"), subset="balanced", images=STUDY.balanced.digest)
    train.pretrain(run, STUDY.balanced, results, progress=False)
    results.ask("arms", [run], {})
    found = mechanisms.disagreement(run, results, STUDY).set_index("group")
    assert found.images.to_dict() == {"many": 20, "medium": 16, "few": 8, "all": 44}
    assert (
        not len(results.read("disagreement")) and len(results.read("disagreement-control")) == 4
    )  # no row of SDCLR's


def test_labels_reach_no_disagreement(results):
    run = trained(results, "sdclr", head_layers=3)
    blind = replace(STUDY, seed=replace(SEED, labels=LABELS.flip(0)))
    assert torch.equal(
        mechanisms.disagreements(run, results, STUDY)[0],
        mechanisms.disagreements(run, results, blind)[0],
    )


def test_all_mechanisms_of_a_joined_method_are_measured(results):
    options = (
        "begin=1 classes=6 clusters=3 draws=2 floor=5 nearest=4 ramp=2 refresh=1 repick=2 warm=2"
    )
    rows = measured(results, "sdclr+bcl+gh+colt", **COLT | {"options": options, "head_layers": 3})
    assert set(rows.mechanism) == {"strength", "prior", "picks colt", "pruning"}
    assert all(isinstance(mechanisms.active(name, rows), bool) for name in set(rows.mechanism))
    assert not rows.duplicated(["mechanism", "group"]).any() and not rows.value.isna().any()
