"""Verdicts on fabricated rows: every outcome, every sign, and never a verdict where nothing was
run.
"""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import shelf

from longtail.papers import claims, inference, printed
from longtail.store import paths, runs

DIGITS = runs.Run(
    dataset="digits",
    subset="long_tail",
    split=1,
    seed=1,
    method="simclr",
    head_layers=2,
    architecture="convnet",
    size=16,
    policy="digits",
    epochs=60,
    batch_size=128,
    learning_rate=0.5,
    weight_decay=1e-4,
    warmup_epochs=6,
    temperature=0.2,
    prune_fraction=0.9,
    precision="float32",
    images="00000000",
)
SEEDS = {"cifar10": 11165, "cifar100": 9754, "imagenet100": 12205}
CIFAR = {
    "policy": "cifar",
    "warmup_epochs": 10,
    "dataset": "cifar10",
    "architecture": "resnet18_cifar",
    "size": 32,
    "epochs": 2000,
    "batch_size": 512,
}
IMAGENET = {
    "policy": "imagenet",
    "warmup_epochs": 10,
    "dataset": "imagenet100",
    "architecture": "resnet50",
    "size": 224,
    "epochs": 1000,
    "batch_size": 256,
}
SDCLR = {"method": "sdclr", "head_layers": 3}
CLAIMS = [claim for paper in printed.papers().values() for claim in claims.claims_of(paper)]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty profile in a temporary folder."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runs, "machine", dict)  # asks git, slowly
    return runs.Results("tiny")


def finish(results, change, **rows):
    """Write a finished run of DIGITS with ``change`` and its measurements, name -> list of
    dicts.
    """
    run = runs.Run(**(asdict(DIGITS) | change))
    shelf.finished(results, run, seed_images=SEEDS.get(run.dataset, 231))
    for name, values in rows.items():
        results.remember(
            run, name.replace("_of_", "-"), {}, lambda values=values: pd.DataFrame(values)
        )


def accuracies(many, medium, few, protocol="linear"):
    """Rows of one protocol as the evaluation writes them."""
    groups = {
        "many": many,
        "medium": medium,
        "few": few,
        "all": 0.4 * many + 0.3 * medium + 0.3 * few,
    }
    kinds = ["converged"] if protocol == "linear_converged" else ["last_epoch", "best_validation"]
    return [
        {
            "protocol": protocol,
            "selection": kind,
            "group": group,
            "accuracy": value + 50 * (kind == "best_validation"),
            "images": 10,
        }
        for group, value in groups.items()
        for kind in kinds
    ]


def both(many, medium, few):
    """The same accuracies by the converged probe and by the papers' linear one, as keywords of
    ``finish``.
    """
    return {
        "scores_of_linear": accuracies(many, medium, few),
        "scores_of_linear_converged": accuracies(many, medium, few, "linear_converged"),
    }


def encoders(results, gains, change=None):
    """SimCLR and SDCLR of several splits; SDCLR differs by ``gains`` in many, medium and few."""
    for split, gain in enumerate(gains, start=1):
        base = (change or {}) | {"split": split}
        finish(results, base, **both(80 + split, 70, 60))
        finish(results, base | SDCLR, **both(80 + split + gain[0], 70 + gain[1], 60 + gain[2]))


def verdict(checked, name):
    """The one row of a claim."""
    return checked.set_index("id").loc[name]


def test_nothing_run_gives_no_verdict(results):
    checked = claims.judged(results)
    assert (
        set(checked.verdict) == {"not run"}
        and set(checked.scope) == {"paper's data"}
        and checked.id.is_unique
    )
    assert checked.effect.isna().all() and (checked.n == 0).all()
    assert claims.counts(checked)["not run"].sum() == len(checked)


FEW = "sdclr-vs-simclr-linear_converged-few@digits"
GAIN = "sdclr-gain-linear-few@digits"  # the exploratory one: the papers' protocol, no correction


def test_a_steady_gain_is_supported_with_the_interval_by_hand(results):
    encoders(results, [(1, 1, 4), (1, 1, 6), (1, 1, 5)])
    checked = claims.judged(results)
    half = (
        4.302652729911275 * 1 / np.sqrt(3)
    )  # t of two degrees of freedom, deviation 1, three splits
    for name in (FEW, GAIN):
        few = verdict(checked, name)
        assert (few.verdict, few.n, few.scope, few.data) == ("supported", 3, "own data", "digits")
        assert [few.effect, few.low, few.high] == pytest.approx([5, 5 - half, 5 + half])
    assert (
        list(checked.columns[:12]) == claims.COLUMNS
        and verdict(checked, FEW).primary
        and not verdict(checked, GAIN).primary
    )


def test_arms_beside_a_pair_lend_it_their_noise(results):
    """Two pairs alone have one degree of freedom; four arms in two splits have three, and SDCLR's
    interval is a quarter as wide.
    """
    encoders(results, [(0, 0, 4), (0, 0, 6)])
    alone = verdict(claims.judged(results), GAIN)
    for split in (1, 2):
        for method, few in (("bcl", 63), ("focal", 61)):
            finish(results, {"method": method, "split": split}, **both(80, 70, few + split))
    pooled = verdict(claims.judged(results), GAIN)
    values = np.array([[60, 64, 64, 62], [60, 66, 65, 63]], float)
    residual = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    assert (
        pooled.effect == pytest.approx(5) == alone.effect
        and (pooled.high - pooled.low) < (alone.high - alone.low) / 4
    )
    assert pooled.high - 5 == pytest.approx(3.182446305284263 * np.sqrt((residual**2).sum() / 3))


def test_arms_of_another_data_set_length_measure_or_setting_lend_nothing(results):
    encoders(results, [(0, 0, 4), (0, 0, 6)])
    alone = verdict(claims.judged(results), GAIN)
    for split in (1, 2):
        for few, change in enumerate(
            (
                {"dataset": "letters"},
                {"epochs": 5},
                {"batch_size": 64},
                {"method": "untrained", "epochs": 0},
            ),
            50,
        ):
            finish(
                results, {"method": "bcl", "split": split} | change, **both(80, 70, few + 9 * split)
            )
        finish(
            results,
            {"method": "focal", "split": split},
            scores_of_fewshot_linear=accuracies(9, 9 * split, 9, "fewshot_linear"),
        )
    beside = verdict(claims.judged(results), GAIN)
    assert (beside.low, beside.high) == (alone.low, alone.high)


def test_the_sign_decides(results):
    encoders(results, [(1, 1, -4), (1, 1, -6), (1, 1, -5)])
    checked = claims.judged(results)
    few, balance = (
        verdict(checked, f"sdclr-gain-linear-{measure}@digits") for measure in ("few", "balance")
    )
    assert few.verdict == "contradicted" and few.high < 0
    assert (
        balance.verdict == "contradicted" and balance.effect > 0
    )  # groups drift apart: a larger spread is worse
    assert verdict(checked, "sdclr-gain-linear-many@digits").verdict == "supported"


def test_noise_decides_nothing_and_says_what_would(results):
    encoders(results, [(0, 0, -3), (0, 0, 9), (0, 0, 1)])
    few = verdict(claims.judged(results), GAIN)
    assert (
        few.verdict == "undecided"
        and few.effect > 0 > few.low
        and few.paper_effect == 1.23 < few.high
    )
    assert few.mde > few.high - few.effect and few.n_needed > 100
    estimate = inference.mean([-3.0, 9.0, 1.0])
    assert few.mde == pytest.approx(
        inference.detectable(estimate.error, 2)
    ) and few.n_needed == inference.needed(1.23, estimate)


def test_an_interval_that_ends_short_of_the_papers_effect_says_smaller(results):
    encoders(results, [(0, 0, 0.1), (0, 0, -0.1), (0, 0, 0.1)])
    few = verdict(claims.judged(results), GAIN)
    assert few.verdict == "smaller" and few.low < 0 < few.high < few.paper_effect
    assert (
        verdict(claims.judged(results), "simclr-favours-head-linear@digits").verdict == "supported"
    )  # of one arm alone


def test_the_papers_effect_is_that_of_the_data_or_the_smallest_printed(results):
    encoders(results, [(0, 0, 5), (0, 0, 6)])
    encoders(results, [(0, 0, 5), (0, 0, 6)], CIFAR | {"epochs": 5})
    found = claims.judged(results).set_index("id")[["paper_effect", "paper_data"]]
    assert found.loc[GAIN].tolist() == [1.23, "imagenet100"]
    assert found.loc["sdclr-gain-linear-few@cifar10-(cut)"].tolist() == pytest.approx(
        [76.23 - 71.37, "cifar10"]
    )
    assert found.loc["sdclr-gain-linear-few@cifar100"].tolist() == pytest.approx(
        [52.10 - 43.36, "cifar100"]
    )  # not run, still printed


def test_what_would_decide_a_primary_claim_reckons_with_the_correction(results):
    encoders(results, [(0, 0, -3), (0, 0, 9), (0, 0, 1)])
    few, estimate = verdict(claims.judged(results), FEW), inference.mean([-3.0, 9.0, 1.0])
    [paper] = [paper for paper in printed.papers().values() if paper.name == "SDCLR"]
    level = 0.05 / sum(claim.primary for claim in claims.claims_of(paper))
    assert level < 0.02 and few.mde == pytest.approx(inference.detectable(estimate.error, 2, level))
    assert (
        few.n_needed
        == inference.needed(few.paper_effect, estimate, level=level)
        > inference.needed(few.paper_effect, estimate)
    )


def test_primary_claims_are_corrected_within_their_paper(results):
    """Three splits give p of 0.02 and 0.04 on few and all: enough alone, not among three."""
    encoders(results, [(-1, 0, 4), (1, 0, 6), (0, 0, 2)])
    checked = claims.judged(results)
    mine = checked[
        checked.primary
        & (checked.scope == "own data")
        & (checked.paper == "SDCLR")
        & (checked.n > 0)
    ]
    assert len(mine) == 3 and mine.p_holm.tolist() == pytest.approx(inference.holm(mine.p))
    for _, line in mine.iterrows():
        fits = inference.verdict(line.test, line.low, line.high, line.paper_effect)
        if fits == "supported" and line.p_holm > 0.05:
            assert (
                line.verdict == "undecided"
                and line.note == "supported before Holm's correction within the paper"
            )
        else:
            assert line.verdict == fits
    few = verdict(checked, FEW)
    assert few.p < 0.1 and few.p_holm > few.p
    assert checked[~checked.primary].p_holm.isna().all() and verdict(
        checked, GAIN
    ).p == pytest.approx(few.p)


def test_a_claim_lost_to_the_correction_is_undecided_and_says_so():
    lines = pd.DataFrame(
        {
            "paper": "MAK",
            "scope": "own data",
            "data": "x",
            "primary": [True, True, True, False],
            "p_holm": np.nan,
            "p": [0.03, 0.6, 0.04, 0.03],
            "note": "",
            "verdict": ["supported", "undecided", "contradicted", "supported"],
        }
    )
    found = claims.corrected(lines)
    assert found.verdict.tolist() == ["undecided", "undecided", "undecided", "supported"]
    assert (
        found.note[0] == "supported before Holm's correction within the paper"
        and found.note[3] == ""
    )
    alone = claims.corrected(
        lines.assign(paper=["A", "B", "C", "D"])
    )  # of three papers: nothing to correct
    assert alone.verdict.tolist() == ["supported", "undecided", "contradicted", "supported"]


def test_one_replicate_decides_nothing(results):
    encoders(results, [(1, 1, 5)])
    for name in (FEW, GAIN):
        few = verdict(claims.judged(results), name)
        assert (
            (few.verdict, few.n, few.effect) == ("undecided", 1, pytest.approx(5))
            and np.isnan(few.low)
            and np.isnan(few.mde)
        )
        assert "another split or seed" in few.note


def test_an_encoder_near_an_untrained_network_tests_nothing(results):
    for split in (1, 2):  # of all: untrained 56.1, SimCLR 2 above, SDCLR more
        finish(results, {"split": split, "method": "untrained", "epochs": 0}, **both(66, 56, 46))
        finish(results, {"split": split}, **both(68, 58, 48))
        finish(results, {"split": split} | SDCLR, **both(78 + split, 68, 58))
    few = verdict(claims.judged(results), FEW)
    assert (
        few.verdict == "not tested"
        and few.above_floor == pytest.approx(2)
        and few.effect == pytest.approx(10)
    )
    assert few.relative == pytest.approx(100 * 10 / 2)
    for split in (1, 2):
        finish(results, {"split": split, "epochs": 90}, **both(70, 60, 51))
        finish(results, {"split": split, "epochs": 90} | SDCLR, **both(78 + split, 68, 58))
    checked = claims.judged(results)
    few = verdict(checked, FEW)
    assert few.verdict == "supported" and few.above_floor == pytest.approx(
        0.4 * 4 + 0.3 * 4 + 0.3 * 5
    )
    assert few.relative == pytest.approx(
        100 * 7 / 5
    )  # 7 points where SimCLR is 5 above the floor, on few
    assert np.isnan(verdict(checked, "sdclr-gain-linear-balance@digits").relative)


@pytest.mark.parametrize(
    "contrast, chance, word",
    [
        (0.02, 0.01, "not tested"),
        (0.3, 0.4, "not tested"),
        (0.3, 0.01, "supported"),
        (None, None, "supported"),
    ],
)
def test_a_claim_whose_mechanism_was_asleep_is_not_tested(results, contrast, chance, word):
    """BCL's strength of few less that of many has to exceed chance and 0.05; where nobody measured
    it the check says so.
    """
    for split in (1, 2, 3):
        active = [
            {"mechanism": "strength", "group": group, "value": value}
            for group, value in (("contrast", contrast), ("chance", chance), ("few", 0.5))
        ]
        others = [
            {"mechanism": "strength", "group": "contrast", "value": 9.0},
            {"mechanism": "pruning", "group": "contrast", "value": 0.0},
        ]
        finish(results, {"split": split}, **both(80, 70, 60), mechanism=others)
        finish(
            results,
            {"split": split, "method": "bcl"},
            **both(82 + 0.1 * split, 70, 65),
            **({"mechanism": active} if contrast else {}),
        )
    line = verdict(claims.judged(results), "bcl-vs-simclr-linear_converged-all@digits")
    assert line.verdict == word
    assert line.check == (
        f"strength: {contrast:g}, needs {max(chance, 0.05):g}"
        if contrast
        else "strength: not measured"
    )


def test_each_method_and_sampler_is_asked_for_its_own_mechanism():
    checks = {claim.id: claim.mechanism and claim.mechanism[:2] for claim in CLAIMS}
    assert checks["sdclr-vs-simclr-linear_converged-few"] == ("pruning", "sdclr")
    assert checks["sdclr+gh-vs-sdclr-linear-all"] == ("prior", "sdclr+gh") and checks[
        "bcl+gh-vs-bcl-linear-all"
    ] == ("prior", "bcl+gh")
    assert checks["mak-vs-random-linear_converged-all"] == ("picks mak", "simclr")
    assert checks["colt-vs-mak-linear-all"] == ("picks colt", "colt")
    assert checks["tailness-alone-linear-all"] == ("picks tailness", "simclr")
    assert checks["simsiam+rwsam-vs-simsiam-linear-all"] == ("importance", "simsiam+rwsam")
    for name in (
        "alpha-0.7-same-linear-all",
        "ratio-2.5-trend-linear-all",
        "random-vs-none-linear-all",
        "finetune-vs-frozen-mak",
        "balanced-vs-long-tailed-linear_converged-few",
        "simclr-fewshot-bias",
        "gap-simsiam-linear",
        "sdclr-pruning-finds-tail",
    ):
        assert checks[name] is None, name


def test_where_pruned_networks_disagree_is_asked_of_sdclr_and_of_the_balanced_list(results):
    for split in (1, 2, 3):
        for change, few in ((SDCLR, 1.5), ({}, 1.9), ({"subset": "balanced"}, 1.9 - 0.01 * split)):
            rows = [
                {"group": group, "phi": value, "disagreement": 0.1, "images": 9, "pruned": 0.9}
                for group, value in (("many", 0.5), ("few", few + 0.01 * split))
            ]
            finish(
                results,
                {"split": split} | change,
                disagreement=rows,
                scores_of_linear=accuracies(80, 70, 60),
            )
    found = verdict(claims.judged(results), "sdclr-pruning-finds-tail@digits")
    assert (found.verdict, found.primary, found.effect) == ("supported", True, pytest.approx(0.52))
    control = verdict(claims.judged(results), "pruning-finds-tail-not-difficulty@digits")
    assert (control.verdict, control.effect) == ("supported", pytest.approx(0.02))


def test_best_on_validation_stands_beside_and_is_never_the_default(results):
    encoders(results, [(0, 0, 5), (0, 0, 6)])
    default, other = claims.judged(results), claims.judged(results, "best_validation")
    assert (
        verdict(
            default, "number-SDCLR-slides-linear-separability-sdclr-3-layer-head-linear-all@cifar10"
        ).n
        == 0
    )
    rows = claims.evidence(results)
    assert (
        rows[rows.protocol == "linear"].value.max()
        < 100
        < claims.evidence(results, "best_validation").value.max()
    )
    assert (
        verdict(default, FEW).effect == verdict(other, FEW).effect
    )  # a converged classifier has one selection only


def test_only_equal_splits_seeds_and_lengths_are_paired(results):
    encoders(results, [(0, 0, 5), (0, 0, 5)])
    finish(results, SDCLR | {"split": 7}, scores_of_linear=accuracies(1, 1, 1))  # no SimCLR partner
    finish(results, SDCLR | {"epochs": 5}, scores_of_linear=accuracies(1, 1, 1))  # another length
    finish(
        results, SDCLR | {"subset": "balanced"}, scores_of_linear=accuracies(1, 1, 1)
    )  # another seed list
    few = verdict(claims.judged(results), "sdclr-gain-linear-few@digits")
    assert (few.n, few.effect) == (2, pytest.approx(5))


def test_runs_of_other_settings_are_neither_paired_nor_averaged(results):
    encoders(results, [(0, 0, 5), (0, 0, 5)])
    for split in (1, 2):
        for other in ({"weight_decay": 5e-4}, {"precision": "bfloat16_gpu"}):  # no SDCLR there
            finish(results, {"split": split, **other}, scores_of_linear=accuracies(80, 70, 30))
    assert verdict(claims.judged(results), "sdclr-gain-linear-few@digits").effect == pytest.approx(
        5
    )
    finish(results, SDCLR | {"prune_fraction": 0.3}, scores_of_linear=accuracies(1, 1, 1))
    few = verdict(claims.judged(results), "sdclr-gain-linear-few@digits")
    assert few.verdict == "not run" and "several prune_fraction" in few.note


def test_what_both_sides_name_is_what_they_differ_in(results):
    for split, gain in enumerate((4, 6), start=1):
        for precision, few in (("bfloat16", 60), ("bfloat16_gpu", 60 + gain)):
            finish(results, {"split": split, "precision": precision}, **both(80, 70, few))
    tried = claims.judged(results, "last_epoch", "tried")
    few = verdict(tried, "tried-arithmetic-linear_converged-few@digits")
    assert (few.n, few.effect) == (2, pytest.approx(5))


def test_the_papers_data_and_its_numbers_need_the_published_settings(results):
    encoders(results, [(0, 0, 5.5), (0, 0, 5.6)], CIFAR | {"epochs": 200})
    checked = claims.judged(results)
    assert set(checked[checked.scope == "paper's data"].verdict) == {"not run"}
    assert verdict(checked, "sdclr-gain-linear-few@cifar10-(cut)").verdict == "supported"
    assert "number" not in set(checked[checked.scope == "own data"].test)


def test_numbers_are_judged_within_their_tolerance(results):
    encoders(results, [(5, 10, 16), (4, 10, 16)], CIFAR)
    name = "number-SDCLR-slides-linear-separability-{}-layer-head-linear-all@cifar10"
    sdclr = verdict(claims.judged(results), name.format("sdclr-3"))
    assert (
        sdclr.effect == pytest.approx(0.4 * 86 + 0.3 * 80 + 0.3 * 76) and sdclr.paper_effect == 82.0
    )
    assert (sdclr.verdict, sdclr.n) == (
        "supported",
        2,
    ) and sdclr.high == sdclr.low  # 86 in both splits: no noise
    simclr = verdict(claims.judged(results), name.format("simclr-2"))
    assert (simclr.verdict, simclr.n) == ("undecided", 2)
    assert (
        simclr.low < simclr.paper_effect - simclr.tolerance < simclr.high
    )  # the interval reaches into what is allowed, and out
    assert verdict(claims.judged(results), "sdclr-gain-linear-few@cifar10").scope == "paper's data"
    assert not claims.judged(results).id.str.endswith("(cut)").any()


def test_a_number_outside_its_tolerance_is_contradicted(results):
    for split in (1, 2, 3):
        finish(results, CIFAR | {"split": split}, **both(60 + 0.1 * split, 50, 40))
    line = verdict(
        claims.judged(results),
        "number-SDCLR-slides-linear-separability-simclr-2-layer-head-linear-all@cifar10",
    )
    assert line.verdict == "contradicted" and line.high < line.paper_effect - line.tolerance


@pytest.mark.parametrize(
    "gain, word", [(0.0, "contradicted"), (1.5, "supported"), (3.0, "contradicted")]
)
def test_no_gain_at_all_is_no_support_for_a_printed_gain(results, gain, word):
    for added, more in (("random", 0.0), ("mak", gain)):
        retrained(
            results,
            added,
            80 + more,
            70 + more,
            60 + more,
            "imagenet900",
            IMAGENET | {"budget": 10000},
        )
    assert (
        verdict(claims.judged(results), "number-gain-related-linear-all@imagenet100").verdict
        == word
    )


def retrained(results, added, many, medium, few, pool="letters", change=None, **picked):
    """Two seeds of encoders retrained with picks."""
    usual = {"pool": pool, "alpha": 0.3, "prototypes": 10, "ratio": 1.5, "views": 10} | picked
    for seed, shift in ((1, 0.0), (2, 0.1)):
        rows = {} if added == "none" else {"picked": [usual]}
        budget = 0 if added == "none" else 40
        finish(
            results,
            {"added": added, "budget": budget, "seed": seed} | (change or {}),
            **rows,
            scores_of_linear=accuracies(many + shift, medium, few),
            scores_of_linear_longtail=accuracies(many, medium, few + shift, "linear_longtail"),
        )


def test_sampling_ablation_sensitivity_overhead_and_downstream(results):
    retrained(results, "none", 80, 70, 60)
    retrained(results, "random", 82, 72, 62)
    retrained(results, "random", 82, 72, 62.2, change={"schedule": "overhead", "epochs": 102})
    retrained(results, "k_center", 81, 71, 61)
    retrained(results, "mak", 83, 75, 68)
    retrained(results, "mak", 83.2, 75, 68, change={"images": "1"}, alpha=0.7)
    retrained(results, "mak", 70, 60, 50, change={"images": "2"}, prototypes=20)
    found = claims.judged(results).set_index("id").verdict
    for name in (
        "random-vs-none-linear-all",
        "mak-vs-random-linear-few",
        "mak-vs-random-linear-balance",
        "mak-vs-k_center-linear-all",
        "k_center-vs-random-linear-all",
        "alpha-0.7-same-linear-all",
        "mak-vs-overhead-linear-all",
        "overhead-same-linear-all",
        "mak-downstream-linear_longtail-all",
        "random-vs-none-same-linear-balance",
    ):
        assert found[f"{name}@digits"] == "supported", name
    assert (
        found["prototypes-20-same-linear-all@digits"] == "contradicted"
        and found["prototypes-20-trend-linear-all@digits"] == "supported"
    )
    for name in (
        "mak-vs-random-20k-linear-all",
        "mak-vs-random-mix-linear-all",
        "mak-vs-random-fewshot_finetune-all",
        "prototypes-50-same-linear-all",
        "tailness-alone-linear-all",
    ):
        assert found[f"{name}@digits"] == "not run", name


def test_what_was_tried_changes_one_thing_at_a_time(results):
    same = {"schedule": "updates"}
    retrained(results, "none", 80, 70, 60)
    for added, gain, alpha, change in (
        ("random", 1, 0.3, {}),
        ("random", 0, 0.3, same),
        ("mak", 3, 0.3, {}),
        ("mak", 0, 0.3, same),
        ("mak", 2, 0.5, {"images": "1"}),
    ):
        retrained(results, added, 80 + gain, 70 + gain, 60 + gain, change=change, alpha=alpha)
    tried = claims.judged(results, kind="tried").set_index("id")
    gains = {
        "none-epochs-0.3": 3,
        "none-updates-0.3": 0,
        "random-epochs-0.3": 2,
        "random-epochs-0.5": 1,
        "random-updates-0.3": 0,
    }
    assert {
        name: tried.effect[f"tried-mak-vs-{name}-linear-all@digits"] for name in gains
    } == pytest.approx(gains)
    assert (
        tried.n.sum() == 2 * len(gains)
        and not tried.index.isin([claim.id for claim in CLAIMS]).any()
    )


def test_pools_and_budgets_of_the_paper_are_told_apart(results):
    for pool, gain in (("imagenet900", 3), ("imagenet_places_mix", -3)):
        for added, few in (("random", 60), ("mak", 60 + gain)):
            retrained(
                results, added, 80, 70, few, pool, IMAGENET | {"budget": 10000, "images": pool}
            )
            retrained(
                results,
                added,
                80,
                70,
                few - 9 * (added == "mak"),
                pool,
                IMAGENET | {"budget": 20000, "images": pool},
            )
    effects = claims.judged(results).set_index("id").effect
    names = [
        "mak-vs-random-linear-few",
        "mak-vs-random-20k-linear-few",
        "mak-vs-random-mix-linear-few",
    ]
    assert [effects[f"{name}@imagenet100"] for name in names] == pytest.approx([3, -6, -3])


def test_phi_composition_and_diversity(results):
    for seed in (1, 2):
        noise = 0.01 * seed
        for subset, scale in (("long_tail", 1.0), ("balanced", 0.5)):
            phi = [
                {
                    "protocol": protocol,
                    "views": views,
                    "group": group,
                    "phi": 1 + sign * scale * more * (effect + noise),
                }
                for protocol, sign in (("test", 1), ("train", -1))
                for views, more in ((2, 0.2), (10, 1.0), (20, 1.02))
                for group, effect in (("many", -0.4), ("medium", 0.1), ("few", 0.4))
            ]
            shares = [
                {
                    "sampler": sampler,
                    "budget": 40,
                    "part": part,
                    "share": share + noise,
                    "picks": 40,
                }
                for sampler, outsider in (("random", 30), ("tailness", 80), ("mak", 5))
                for part, share in (
                    ("outsider", outsider),
                    ("few", 90 - outsider),
                    ("medium", 5),
                    ("many", 5),
                )
            ]
            spread = [
                {
                    "sampler": sampler,
                    "budget": 40,
                    "coverage": 0.9,
                    "nearest_pick_distance": distance + noise,
                }
                for sampler, distance in (
                    ("random", 0.3),
                    ("tailness_proximity", 0.1),
                    ("mak", 0.05),
                )
            ]
            more = {"composition": shares, "diversity": spread} if subset == "long_tail" else {}
            finish(
                results,
                {"seed": seed, "subset": subset},
                scores_of_linear=accuracies(80, 70, 60),
                phi=phi,
                **more,
            )
    checked = claims.judged(results)
    found = checked.set_index("id").verdict
    for name in (
        "phi-few",
        "phi-many",
        "phi-few-with-views",
        "phi-many-with-views",
        "composition-tailness-outsider-vs-random",
        "composition-mak-outsider-vs-tailness",
        "diversity-tailness_proximity-distance-vs-random",
    ):
        assert found[f"{name}@digits"] == "supported", name
    assert found["diversity-mak-distance-vs-tailness_proximity@digits"] == "contradicted"
    assert (
        found["composition-mak-many-vs-random@digits"] == "undecided"
    )  # no difference is no evidence
    assert verdict(checked, "phi-few@digits").effect == pytest.approx(
        0.415 / 2
    )  # of the test protocol, against the balanced list
    assert (
        verdict(checked, "phi-few@digits").primary and not checked.id.str.contains("steady").any()
    )


def test_phi_that_even_balanced_training_shows_is_no_evidence(results):
    """Some classes are hard: φ of few is 1.4 after balanced training too, so the tail has done
    nothing.
    """
    for seed in (1, 2, 3):
        for subset in ("long_tail", "balanced"):
            shift = 0.01 * seed * (-1) ** seed * (subset == "balanced")
            phi = [
                {"protocol": "test", "views": 10, "group": group, "phi": level + shift}
                for group, level in (("few", 1.4), ("many", 0.7))
            ]
            finish(
                results,
                {"seed": seed, "subset": subset},
                phi=phi,
                scores_of_linear=accuracies(80, 70, 60),
            )
    assert verdict(claims.judged(results), "phi-few@digits").verdict == "undecided"


def test_the_balanced_list_is_set_against_the_long_tailed_one(results):
    for split in (1, 2, 3):
        for subset, few in (("long_tail", 60.0), ("balanced", 68.0 + 0.1 * split)):
            finish(
                results, {"split": split, "subset": subset, "images": subset}, **both(80, 70, few)
            )
    line = verdict(claims.judged(results), "balanced-vs-long-tailed-linear_converged-few@digits")
    assert (line.verdict, line.effect, line.primary) == ("supported", pytest.approx(8.2), True)
    assert line.paper_effect == pytest.approx(
        24.01 - 15.99
    )  # printed for few-shot only; the smaller of two data sets
    assert "few-shot" in line["where"]


def test_the_family_is_judged_by_gain_and_by_tail(results):
    encoders(results, [(1, 1, 4), (1, 1, 4.1), (1, 1, 4)])
    for split in (1, 2, 3):
        finish(
            results,
            {"method": "bcl", "split": split, "options": "draws=1 floor=10"},
            **both(81 + split, 71, 63 + 0.1 * split),
        )
        finish(
            results,
            {"method": "colt", "split": split, "budget": 40, "reserve": 90},
            **both(80 + split, 70, 63),
        )
        finish(
            results,
            {"added": "random", "budget": 40, "split": split},
            picked=[{"pool": "letters"}],
            **both(80 + split, 70, 60.1),
        )
    checked = claims.judged(results)
    for name in (
        "bcl-vs-simclr-linear-few",
        "bcl-vs-simclr-linear-tail",
        "bcl-vs-simclr-linear-balance",
        "colt-vs-random-linear-few",
        "bcl-vs-simclr-linear_converged-all",
        "colt-vs-random-linear_converged-all",
    ):
        assert verdict(checked, f"{name}@digits").verdict == "supported", name
    assert verdict(checked, "bcl-vs-simclr-linear-tail@digits").effect == pytest.approx(2.2)
    assert verdict(checked, "bcl-vs-simclr-linear_converged-all@digits").paper_effect == 5.0
    assert verdict(checked, "colt-vs-mak-linear-few@digits").verdict == "not run"
    assert "GH" not in set(checked[checked.scope == "own data"].paper)  # nothing of it was run


def test_what_the_tail_costs_is_the_balanced_list_less_the_long_tailed_one(results):
    for split, noise in ((1, 0.0), (2, 0.2), (3, 0.1)):
        finish(results, {"method": "untrained", "epochs": 0, "split": split}, **both(30, 30, 30))
        for method, rate, lost in (
            ("simsiam", 0.06, 2 + noise),
            ("supervised", 0.5, 9),
        ):  # a rate is a method's own matter
            for subset, many in (("long_tail", 80), ("balanced", 80 + lost)):
                finish(
                    results,
                    {
                        "method": method,
                        "learning_rate": rate,
                        "split": split,
                        "subset": subset,
                        "images": subset,
                    },
                    **both(many, many, many),
                )
    found = verdict(claims.judged(results), "gap-simsiam-linear@digits")
    assert (found.verdict, found.n, found.effect) == (
        "supported",
        3,
        pytest.approx(-6.9),
    ) and found.paper == "rwSAM"
    primary = verdict(claims.judged(results), "gap-simsiam-linear_converged@digits")
    assert primary.primary and primary.verdict == "supported"
    assert primary.relative == pytest.approx(
        100 * 2.1 / 52.1 - 100 * 9 / 59
    )  # points lost over points above the floor, untrained 30


def test_counts_and_the_file(results, tmp_path):
    encoders(results, [(1, 1, 4), (1, 1, 6), (1, 1, 5)])
    checked = claims.judged(results)
    table = claims.counts(checked).set_index(["kind", "scope", "paper"])
    assert (
        table.sum().sum() == len(checked)
        and list(table) == list(inference.VERDICTS)
        and table.index[0][0] == "primary"
    )
    assert table.loc[("exploratory", "own data", "SDCLR"), "supported"] >= 3
    claims.write_claims(checked, tmp_path)
    text = (tmp_path / "claims.csv").read_text()
    assert text.startswith(
        "id,claim,paper,primary,effect,low,high,n,paper_effect,mde,n_needed,verdict,"
    )
    kept = pd.read_csv(tmp_path / "claims.csv", dtype=str)
    assert len(kept) == (checked.n > 0).sum() < len(checked) and set(kept.primary) == {
        "true",
        "false",
    }
    assert kept.set_index("id").effect[GAIN] == "5.0"
    assert len(claims.read_claims(tmp_path)) == len(kept)
    (tmp_path / "claims.csv").write_text("\n".join(text.split("\n")[:-2]) + "\n")
    with pytest.raises(ValueError, match=r"claims\.csv is cut, edited or missing"):
        claims.read_claims(tmp_path)
    (tmp_path / "claims.json").unlink()
    with pytest.raises(ValueError, match=r"claims\.csv has no claims\.json beside it"):
        claims.read_claims(tmp_path)


def test_every_claim_says_what_where_and_how():
    assert len({(claim.id, claim.data) for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.claim and claim.where and claim.test in {"above", "below", "same", "number"}
        assert (claim.tolerance > 0) == (claim.test in {"same", "number"}) and (
            claim.effect or claim.test != "number"
        )


def test_no_number_is_met_by_zero():
    """A tolerance as large as a printed gain would call no gain at all support."""
    for claim in CLAIMS:
        if claim.test == "number":
            assert all(abs(effect) > claim.tolerance for effect in claim.effect.values()), claim.id


def test_primary_claims_are_few_directions_by_the_converged_probe():
    primary = [claim for claim in CLAIMS if claim.primary]
    assert len(primary) == 17 and {claim.paper for claim in primary} == {
        "SDCLR",
        "MAK",
        "rwSAM",
        "BCL",
        "GH",
        "COLT",
        "TS",
    }
    for claim in primary:
        assert claim.test in {"above", "below"}
        if claim.left["rows"] in ("scores", "gap"):
            assert claim.left["protocol"] == claim.right["protocol"] == "linear_converged"


@pytest.mark.parametrize(
    "name, data, effect",
    [
        ("sdclr-vs-simclr-linear_converged-all", "cifar10", 82.00 - 75.55),
        ("sdclr-gain-fewshot_linear-few", "cifar100", 20.55 - 15.99),
        ("sdclr-gain-linear-balance", "cifar10", 5.06 - 5.13),
        ("balanced-vs-long-tailed-linear_converged-few", "cifar10", 71.47 - 54.21),
        ("mak-vs-k_center-linear_converged-all", "imagenet100", 72.7 - 70.0),
        ("mak-vs-random-20k-fewshot_finetune-all", "imagenet100", 54.9 - 52.3),
        ("mak-vs-random-mix-linear-balance", "imagenet100", 3.3 - 3.6),
        ("tailness-alone-linear_converged-all", "imagenet100", 70.9 - 71.2),
        ("ratio-2.5-trend-linear-all", "imagenet100", 71.8 - 72.7),
        ("sdclr+bcl-vs-sdclr-linear-all", "cifar100", 58.7 - 55.0),
        ("simclr-fewshot-bias", "cifar10", 9.80 - 5.13),
    ],
)
def test_the_papers_effects_are_differences_of_what_it_prints(name, data, effect):
    [claim] = [claim for claim in CLAIMS if claim.id == name]
    assert claim.effect[data] == pytest.approx(effect)


@pytest.mark.parametrize(
    "name",
    [
        "sdclr-pruning-finds-tail",
        "gh-vs-two_stage-linear_converged-all",
        "colt-vs-random-linear_converged-all",
        "bcl-vs-simclr-linear-few",
        "gap-simsiam-linear",
        "composition-mak-outsider-vs-tailness",
    ],
)
def test_where_no_difference_is_printed_there_is_no_effect(name):
    [claim] = [claim for claim in CLAIMS if claim.id == name]
    assert not claim.effect and np.isnan(claim.printed("cifar10")[0])
