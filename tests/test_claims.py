"""Verdicts on fabricated rows: every outcome, every sign, and never a verdict where nothing was run."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from longtail import claims, paths, runs, statements, tables

DIGITS = runs.Run(dataset="digits", subset="long_tail", split=1, seed=1, method="simclr", head_layers=2, architecture="convnet", size=16,
                  policy="digits", epochs=60, batch_size=128, learning_rate=0.5, weight_decay=1e-4, warmup_epochs=6, temperature=0.2,
                  prune_fraction=0.9, precision="float32", images="00000000")
SEEDS = {"cifar10": 11165, "cifar100": 9754, "imagenet100": 12205}
CIFAR = {"policy": "cifar", "warmup_epochs": 10, "dataset": "cifar10", "architecture": "resnet18_cifar", "size": 32,
         "epochs": 2000, "batch_size": 512}
IMAGENET = {"policy": "imagenet", "warmup_epochs": 10, "dataset": "imagenet100", "architecture": "resnet50", "size": 224,
            "epochs": 1000, "batch_size": 256}
SDCLR = {"method": "sdclr", "head_layers": 3}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty profile in a temporary folder."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runs, "machine", dict)      # asks git, slowly
    return runs.Results("tiny")


def finish(results, change, **rows):
    """Write a finished run of DIGITS with ``change`` and its measurements, name -> list of dicts."""
    run = runs.Run(**(asdict(DIGITS) | change))
    folder = results.folder(run)
    runs.write(folder / "run.json", json.dumps(asdict(run)))
    for name, values in rows.items():
        runs.remember(folder, name.replace("_of_", "-"), {}, lambda values=values: pd.DataFrame(values))
    runs.write(folder / "done.json", json.dumps({"commit": "1234abcd", "seed_images": SEEDS.get(run.dataset, 231)}))


def accuracies(many, medium, few, protocol="linear"):
    """Rows of one protocol as the evaluation writes them."""
    groups = {"many": many, "medium": medium, "few": few, "all": 0.4 * many + 0.3 * medium + 0.3 * few}
    return [{"protocol": protocol, "selection": "best_validation", "group": group, "accuracy": value, "images": 10}
            for group, value in groups.items()]


def encoders(results, gains, change=None):
    """SimCLR and SDCLR of several splits; SDCLR differs by ``gains`` in many, medium and few."""
    for split, gain in enumerate(gains, start=1):
        base = (change or {}) | {"split": split}
        finish(results, base, scores_of_linear=accuracies(80 + split, 70, 60))
        finish(results, base | SDCLR, scores_of_linear=accuracies(80 + split + gain[0], 70 + gain[1], 60 + gain[2]))


def verdict(checked, name):
    """The one row of a claim."""
    return checked.set_index("id").loc[name]


def test_nothing_run_gives_no_verdict(results):
    checked = claims.check(results)
    assert set(checked.verdict) == {"not run"} and set(checked.scope) == {"paper's data"} and checked.id.is_unique
    assert checked.effect.isna().all() and (checked.n == 0).all()
    assert claims.counts(checked)["not run"].sum() == len(checked)


def test_a_steady_gain_holds_with_the_interval_by_hand(results):
    encoders(results, [(1, 1, 4), (1, 1, 6), (1, 1, 5)])
    few = verdict(claims.check(results), "sdclr-gain-linear-few@digits")
    half = 4.302652729911275 * 1 / np.sqrt(3)                     # t of two degrees of freedom, deviation 1, three splits
    assert (few.verdict, few.n, few.scope, few.data) == ("holds", 3, "own data", "digits")
    assert [few.effect, few.low, few.high] == pytest.approx([5, 5 - half, 5 + half], abs=1e-3)


def test_the_sign_decides(results):
    encoders(results, [(1, 1, -4), (1, 1, -6), (1, 1, -5)])
    checked = claims.check(results)
    few, balance = (verdict(checked, f"sdclr-gain-linear-{measure}@digits") for measure in ("few", "balance"))
    assert (few.verdict, few.note) == ("differs", "not as claimed on average") and few.high < 0
    assert balance.verdict == "differs" and balance.effect > 0             # groups drift apart: a larger spread is worse
    assert verdict(checked, "sdclr-gain-linear-many@digits").verdict == "holds"


def test_a_noisy_gain_does_not_hold_and_says_why(results):
    encoders(results, [(0, 0, -3), (0, 0, 9), (0, 0, 1)])
    few = verdict(claims.check(results), "sdclr-gain-linear-few@digits")
    assert (few.verdict, few.note) == ("differs", "as claimed on average, interval too wide") and few.effect > 0 > few.low


def test_one_pair_is_no_verdict(results):
    encoders(results, [(1, 1, 5)])
    few = verdict(claims.check(results), "sdclr-gain-linear-few@digits")
    assert (few.verdict, few.n, few.effect) == ("not run", 1, 5) and np.isnan(few.low) and "another seed" in few.note


def test_only_equal_splits_seeds_and_lengths_are_paired(results):
    encoders(results, [(0, 0, 5), (0, 0, 5)])
    finish(results, SDCLR | {"split": 7}, scores_of_linear=accuracies(1, 1, 1))                # no SimCLR partner
    finish(results, SDCLR | {"epochs": 5}, scores_of_linear=accuracies(1, 1, 1))               # another length
    finish(results, SDCLR | {"subset": "balanced"}, scores_of_linear=accuracies(1, 1, 1))      # another seed list
    few = verdict(claims.check(results), "sdclr-gain-linear-few@digits")
    assert (few.n, few.effect) == (2, 5)


def test_runs_of_other_settings_are_neither_paired_nor_averaged(results):
    encoders(results, [(0, 0, 5), (0, 0, 5)])
    for split in (1, 2):
        finish(results, {"split": split, "weight_decay": 5e-4}, scores_of_linear=accuracies(80, 70, 30))        # no SDCLR at that decay
    assert verdict(claims.check(results), "sdclr-gain-linear-few@digits").effect == 5
    finish(results, SDCLR | {"prune_fraction": 0.3}, scores_of_linear=accuracies(1, 1, 1))
    few = verdict(claims.check(results), "sdclr-gain-linear-few@digits")
    assert few.verdict == "not run" and "several prune_fraction" in few.note


def test_the_papers_data_and_its_numbers_need_the_published_settings(results):
    encoders(results, [(0, 0, 5.5), (0, 0, 5.6)], CIFAR | {"epochs": 200})
    checked = claims.check(results)
    assert set(checked[checked.scope == "paper's data"].verdict) == {"not run"}
    assert verdict(checked, "sdclr-gain-linear-few@cifar10-(cut)").verdict == "holds"
    assert "number" not in set(checked[checked.scope == "own data"].test)


def test_numbers_are_judged_within_their_tolerance(results):
    encoders(results, [(5, 10, 16), (4, 10, 16)], CIFAR)
    checked = claims.check(results)
    sdclr = verdict(checked, "number-slides-linear-separability-sdclr-3-layer-head-linear-all@cifar10")
    assert sdclr.effect == pytest.approx(0.4 * 86 + 0.3 * 80 + 0.3 * 76 - 82.00) and (sdclr.verdict, sdclr.n) == ("holds", 2)
    simclr = verdict(checked, "number-slides-linear-separability-simclr-2-layer-head-linear-all@cifar10")
    assert simclr.effect == pytest.approx(0.4 * 81.5 + 0.3 * 70 + 0.3 * 60 - 75.55, abs=1e-3) and simclr.verdict == "differs"
    assert verdict(checked, "sdclr-gain-linear-few@cifar10").scope == "paper's data"
    assert not checked.id.str.endswith("(cut)").any()


def retrained(results, added, many, medium, few, pool="letters", change=None, **picked):
    """Two seeds of encoders retrained with picks."""
    usual = {"pool": pool, "alpha": 0.3, "prototypes": 10, "ratio": 1.5, "views": 10} | picked
    for seed, shift in ((1, 0.0), (2, 0.1)):
        rows = {} if added == "none" else {"picked": [usual]}
        budget = 0 if added == "none" else 40
        finish(results, {"added": added, "budget": budget, "seed": seed} | (change or {}), **rows,
               scores_of_linear=accuracies(many + shift, medium, few),
               scores_of_linear_longtail=accuracies(many, medium, few + shift, "linear_longtail"))


def test_sampling_ablation_sensitivity_overhead_and_downstream(results):
    retrained(results, "none", 80, 70, 60)
    retrained(results, "random", 82, 72, 62)
    retrained(results, "random", 82, 72, 62.2, change={"schedule": "overhead", "epochs": 102})
    retrained(results, "k_center", 81, 71, 61)
    retrained(results, "mak", 83, 75, 68)
    retrained(results, "mak", 83.2, 75, 68, change={"images": "1"}, alpha=0.7)
    retrained(results, "mak", 70, 60, 50, change={"images": "2"}, prototypes=20)
    found = claims.check(results).set_index("id").verdict
    for name in ("random-vs-none-linear-all", "mak-vs-random-linear-few", "mak-vs-random-linear-balance", "mak-vs-k_center-linear-all",
                 "k_center-vs-random-linear-all", "alpha-0.7-same-linear-all", "mak-vs-overhead-linear-all",
                 "overhead-same-linear-all", "mak-downstream-linear_longtail-all", "random-vs-none-same-linear-balance"):
        assert found[f"{name}@digits"] == "holds", name
    assert found["prototypes-20-same-linear-all@digits"] == "differs" and found["prototypes-20-trend-linear-all@digits"] == "holds"
    for name in ("mak-vs-random-20k-linear-all", "mak-vs-random-mix-linear-all", "mak-vs-random-fewshot_finetune-all",
                 "prototypes-50-same-linear-all", "tailness-alone-linear-all"):
        assert found[f"{name}@digits"] == "not run", name


def test_what_was_tried_changes_one_thing_at_a_time(results):
    same = {"schedule": "updates"}
    retrained(results, "none", 80, 70, 60)
    for added, gain, alpha, change in (("random", 1, 0.3, {}), ("random", 0, 0.3, same), ("mak", 3, 0.3, {}), ("mak", 0, 0.3, same),
                                       ("mak", 2, 0.5, {"images": "1"})):
        retrained(results, added, 80 + gain, 70 + gain, 60 + gain, change=change, alpha=alpha)
    tried = claims.check(results, asked=statements.TRIED).set_index("id")
    gains = {"none-linear-epochs-0.3": 3, "none-linear-updates-0.3": 0, "random-linear-epochs-0.3": 2, "random-linear-epochs-0.5": 1,
             "random-linear-updates-0.3": 0}
    assert {name: tried.effect[f"tried-mak-vs-{name}@digits"] for name in gains} == pytest.approx(gains)
    assert tried.n.sum() == 2 * len(gains) and not tried.index.isin([claim.id for claim in statements.CLAIMS]).any()


def test_pools_and_budgets_of_the_paper_are_told_apart(results):
    for pool, gain in (("imagenet900", 3), ("imagenet_places_mix", -3)):
        for added, few in (("random", 60), ("mak", 60 + gain)):
            retrained(results, added, 80, 70, few, pool, IMAGENET | {"budget": 10000, "images": pool})
            retrained(results, added, 80, 70, few - 9 * (added == "mak"), pool, IMAGENET | {"budget": 20000, "images": pool})
    effects = claims.check(results).set_index("id").effect
    names = ["mak-vs-random-linear-few", "mak-vs-random-20k-linear-few", "mak-vs-random-mix-linear-few"]
    assert [effects[f"{name}@imagenet100"] for name in names] == [3, -6, -3]


def test_phi_composition_and_diversity(results):
    for seed in (1, 2):
        noise = 0.01 * seed
        phi = [{"protocol": protocol, "views": views, "group": group, "phi": 1 + sign * (effect + noise)}
               for protocol, sign in (("test", 1), ("train", -1)) for views, scale in ((2, 0.2), (10, 1.0), (20, 1.02))
               for group, effect in (("many", -0.4 * scale), ("medium", 0.1 * scale), ("few", 0.4 * scale))]
        shares = [{"sampler": sampler, "budget": 40, "part": part, "share": share + noise, "picks": 40}
                  for sampler, outsider in (("random", 30), ("tailness", 80), ("mak", 5))
                  for part, share in (("outsider", outsider), ("few", 90 - outsider), ("medium", 5), ("many", 5))]
        spread = [{"sampler": sampler, "budget": 40, "coverage": 0.9, "nearest_pick_distance": distance + noise}
                  for sampler, distance in (("random", 0.3), ("tailness_proximity", 0.1), ("mak", 0.05))]
        finish(results, {"seed": seed}, scores_of_linear=accuracies(80, 70, 60), phi=phi, composition=shares, diversity=spread)
    checked = claims.check(results)
    found = checked.set_index("id").verdict
    for name in ("phi-few", "phi-many", "phi-few-with-views", "phi-many-with-views", "phi-few-steady",
                 "composition-tailness-outsider-vs-random", "composition-mak-outsider-vs-tailness",
                 "diversity-tailness_proximity-distance-vs-random"):
        assert found[f"{name}@digits"] == "holds", name
    assert found["diversity-mak-distance-vs-tailness_proximity@digits"] == "differs"
    assert found["composition-mak-many-vs-random@digits"] == "differs"          # no difference is no evidence
    assert verdict(checked, "phi-few@digits").effect == pytest.approx(0.415)    # the test protocol, not the training one


def test_steadiness_needs_more_than_ten_views(results):
    for seed in (1, 2):
        phi = [{"protocol": "test", "views": views, "group": group, "phi": 1.0} for views in (2, 10) for group in tables.GROUPS]
        finish(results, {"seed": seed}, scores_of_linear=accuracies(80, 70, 60), phi=phi)
    assert verdict(claims.check(results), "phi-few-steady@digits").verdict == "not run"


def test_the_family_is_judged_by_gain_and_by_tail(results):
    encoders(results, [(1, 1, 4), (1, 1, 6), (1, 1, 5)])
    for split in (1, 2, 3):
        finish(results, {"method": "bcl", "split": split, "options": "draws=1 floor=10"},
               scores_of_linear=accuracies(81 + split, 71, 63 + 0.1 * split))
        finish(results, {"method": "colt", "split": split, "budget": 40, "reserve": 90}, scores_of_linear=accuracies(80, 70, 61))
        finish(results, {"added": "random", "budget": 40, "split": split}, picked=[{"pool": "letters"}],
               scores_of_linear=accuracies(80, 70, 60 + 0.1 * split))
    checked = claims.check(results)
    for name in ("bcl-vs-simclr-linear-few", "bcl-vs-simclr-linear-tail", "bcl-vs-simclr-linear-balance", "colt-vs-random-linear-few"):
        assert verdict(checked, f"{name}@digits").verdict == "holds", name
    assert verdict(checked, "bcl-vs-simclr-linear-tail@digits").effect == pytest.approx(2.2)
    assert verdict(checked, "colt-vs-mak-linear-few@digits").verdict == "not run"
    assert "GH" not in set(checked[checked.scope == "own data"].paper)          # nothing of it was run


def test_what_the_tail_costs_is_the_balanced_list_less_the_long_tailed_one(results):
    for split, noise in ((1, 0.0), (2, 0.2), (3, 0.1)):
        for method, rate, lost in (("simsiam", 0.06, 2 + noise), ("supervised", 0.5, 9)):       # a rate is a method's own matter
            for subset, many in (("long_tail", 80), ("balanced", 80 + lost)):
                finish(results, {"method": method, "learning_rate": rate, "split": split, "subset": subset, "images": subset},
                       scores_of_linear=accuracies(many, many, many))
    found = verdict(claims.check(results), "gap-simsiam-linear@digits")
    assert (found.verdict, found.n, found.effect) == ("holds", 3, pytest.approx(-6.9)) and found.paper == "rwSAM"


def test_counts_and_files(results, tmp_path):
    encoders(results, [(1, 1, 4), (1, 1, 6), (1, 1, 5)])
    checked = claims.check(results)
    table = claims.counts(checked).set_index(["scope", "test"])
    assert table.sum().sum() == len(checked) and table.loc[("own data", "direction"), "holds"] >= 3
    tables.write(checked, "claims", tmp_path, claims.NOTE)
    assert len(pd.read_csv(tmp_path / "claims.csv")) == len(checked) and "own data" in (tmp_path / "claims.md").read_text()


def test_every_claim_says_what_where_and_how():
    assert len({claim.id for claim in claims.CLAIMS if claim.test != "number"}) == sum(claim.test != "number" for claim in claims.CLAIMS)
    for claim in claims.CLAIMS:
        assert claim.claim and claim.where and claim.test in {"above", "below", "same", "number"}
        assert (claim.tolerance > 0) == (claim.test in {"same", "number"}) and (claim.value == 0 or claim.test == "number")


def test_readme_tells_the_shipped_verdicts():
    readme = (paths.ROOT / "README.md").read_text()
    where = {"cifar10-lite": {"SDCLR", "MAK"}, "cifar10-lite-family": {"BCL", "GH", "rwSAM", "COLT"},
             "cifar10-supervised-lite": {"CB", "LDAM", "DDC"}}
    shipped = [pd.read_csv(paths.ROOT / f"results/{profile}/tables/claims.csv") for profile in where]
    shipped = [rows[rows.paper.isin(papers)] for rows, papers in zip(shipped, where.values(), strict=True)]
    for (scope, paper), rows in pd.concat(shipped).groupby(["scope", "paper"]):
        count = rows.verdict.value_counts()
        line = f"| {paper}, {scope} | {' | '.join(str(count.get(verdict, 0)) for verdict in ('holds', 'differs', 'not run'))} |"
        assert line in readme, line
