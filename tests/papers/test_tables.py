"""Tables: means and balance by hand, what is set against the paper and what never is, the papers'
own numbers.
"""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import shelf

from longtail.images import views
from longtail.papers import printed, tables
from longtail.store import paths, runs

FULL = runs.Run(
    dataset="cifar10",
    subset="long_tail",
    split=1,
    seed=10,
    method="simclr",
    head_layers=2,
    architecture="resnet18_cifar",
    size=32,
    policy="cifar",
    epochs=2000,
    batch_size=512,
    learning_rate=0.5,
    weight_decay=1e-4,
    warmup_epochs=10,
    temperature=0.2,
    prune_fraction=0.9,
    precision="float32",
    images="00000000",
)
SEEDS = {"cifar10": 11165, "cifar100": 9754, "imagenet100": 12205}
MAK = {
    "dataset": "imagenet100",
    "policy": "imagenet",
    "architecture": "resnet50",
    "size": 224,
    "batch_size": 256,
    "epochs": 1000,
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty profile in a temporary folder."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runs, "machine", dict)  # asks git, slowly
    return runs.Results("tiny")


def finish(results, protocol, accuracies, picked=None, change=None):
    """Write a finished run of FULL with ``change``, its many, medium, few, all under one protocol,
    and how its images were picked.
    """
    run = runs.Run(**(asdict(FULL) | (change or {})))
    shelf.finished(results, run, seed_images=SEEDS.get(run.dataset, 231))
    rows = pd.DataFrame(
        {
            "protocol": protocol,
            "group": ["many", "medium", "few", "all"],
            "accuracy": accuracies,
            "images": 10,
        }
    )
    kinds = (
        {"last_epoch": 0, "best_validation": -1}
        if protocol not in ("linear_converged", "knn")
        else {{"linear_converged": "converged", "knn": "nearest"}[protocol]: 0}
    )
    rows = pd.concat(
        [rows.assign(selection=kind, accuracy=rows.accuracy + more) for kind, more in kinds.items()]
    )
    results.remember(run, f"scores-{protocol}", {}, lambda: rows)
    if picked:
        results.remember(run, "picked", {}, lambda: pd.DataFrame([{"views": 10} | picked]))


def table_of(results, name, selection="last_epoch"):
    """A paper's table beside ours, by the name of its file."""
    return tables.with_ours(tables.outcomes(results, selection), paper_of(name), name)


def paper_of(name):
    return next(paper for paper in printed.papers().values() if name in paper.tables)


def lines(table, **match):
    """The lines of a table whose columns have the given values."""
    return table[
        np.logical_and.reduce([table[key] == value for key, value in match.items()])
    ].set_index("source")


def test_mean_balance_and_difference_by_hand(results):
    finish(results, "linear", [80, 70, 60, 71], change={"split": 1})
    finish(results, "linear", [76, 76, 70, 74], change={"split": 2})
    ours = lines(table_of(results, "sdclr_linear"), status="full")
    assert ours.many["ours"] == "78.00 ± 2.00 (n=2)" and ours["all"]["ours"] == "72.50 ± 1.50 (n=2)"
    balances = np.array(
        [np.sqrt(200 / 3), np.sqrt(8)]
    )  # of 80, 70, 60 and of 76, 76, 70: population, run by run
    assert ours.balance["ours"] == f"{balances.mean():.2f} ± {balances.std():.2f} (n=2)"
    assert ours["all"]["paper"] == "75.55 ± 0.66 (n=5)" and ours["all"]["difference"] == "-3.05"
    assert (
        table_of(results, "sdclr_linear", "best_validation").set_index("source")["all"]["ours"]
        == "71.50 ± 1.50 (n=2)"
    )
    assert [name for name in ours if name in tables.MEASURES] == [
        "many",
        "medium",
        "few",
        "balance",
        "all",
    ]


def test_the_whole_table_has_every_printed_row_and_ours_where_they_are(results):
    finish(results, "linear", [80, 70, 60, 71])
    paper, ours = paper_of("sdclr_linear"), tables.outcomes(results)
    whole = tables.with_ours(ours, paper, "sdclr_linear", whole=True)
    printed_rows = whole[whole.source == "paper"]
    assert len(printed_rows) == len(paper.table("sdclr_linear"))
    assert set(printed_rows.status) == {"full", "not run"}
    known = whole[whole.status != "not run"].reset_index(drop=True)
    pd.testing.assert_frame_equal(known, table_of(results, "sdclr_linear"), check_dtype=False)


def test_protocols_with_a_single_classifier_stay_whatever_is_selected(results):
    for protocol, few in (("linear", 60), ("linear_converged", 61), ("knn", 55)):
        finish(results, protocol, [80, 70, few, 71])
    for selection, few in (("last_epoch", 60), ("best_validation", 59)):
        found = tables.outcomes(results, selection).set_index("protocol").few
        assert found.to_dict() == {"linear": few, "linear_converged": 61, "knn": 55}
    assert (
        tables.outcomes(results).few.tolist() == tables.outcomes(results, "last_epoch").few.tolist()
    )


@pytest.mark.parametrize(
    ("change", "status", "beside"),
    [
        (
            {"dataset": "digits", "architecture": "convnet", "size": 16, "epochs": 60},
            "own data",
            ["ours"],
        ),
        ({"epochs": 200}, "cut", ["paper", "ours"]),
        ({"epochs": 500}, "quarter", ["paper", "ours"]),
        ({"architecture": "resnet10_small"}, "cut", ["paper", "ours"]),
        ({"head_layers": 3}, "full", ["ours"]),
    ],
)
def test_unlike_things_are_never_subtracted(results, change, status, beside):
    finish(results, "linear", [80, 70, 60, 71], change=change)
    table = table_of(results, "sdclr_linear")
    assert (
        set(table.status) == {status}
        and table.source.tolist() == beside
        and table.many.iloc[-1] == "80.00 (n=1)"
    )
    missing = 5 if status == "full" and beside == ["paper", "ours"] else 6
    assert tables.not_run(tables.outcomes(results), paper_of("sdclr_linear"), "sdclr_linear") == (
        missing,
        6,
    )


def test_what_was_run_is_counted_row_by_row(results):
    finish(results, "linear", [80, 70, 60, 71])
    assert tables.not_run(tables.outcomes(results), paper_of("sdclr_linear"), "sdclr_linear") == (
        5,
        6,
    )


def test_pool_budget_and_picking_parameters_find_their_row(results):
    usual = {"pool": "imagenet900", "alpha": 0.3, "prototypes": 10, "ratio": 1.5}
    retrained = MAK | {"added": "mak", "budget": 10000}
    finish(results, "linear", [76, 71, 69, 72], usual, retrained)
    finish(results, "linear", [75, 71, 69, 71], usual, retrained | {"schedule": "updates"})
    finish(results, "linear", [74, 70, 68, 70], usual | {"alpha": 0.7}, retrained | {"images": "1"})
    finish(
        results,
        "linear",
        [90, 90, 90, 90],
        {**usual, "pool": "elsewhere"},
        retrained | {"images": "2"},
    )
    first = table_of(results, "mak_table1_linear")
    ours = lines(first, pool="imagenet900, 10000", row="mak")
    assert ours["all"].to_dict() == {
        "paper": "72.7 ± 0.4 (n=3)",
        "ours": "72.0 (n=1)",
        "ours, equal updates": "71.0 (n=1)",
        "difference": "-0.7",
    }
    assert list(lines(first, pool="elsewhere, 10000").index) == ["ours"]
    third = table_of(results, "mak_table3_linear")
    assert (
        lines(third, row="mak, alpha 0.7", pool="imagenet900, 10000")["all"]["difference"] == "-2.7"
    )
    assert "mak, alpha 0.5" not in set(third.row) and not first.row.str.contains("alpha").any()


def test_a_balanced_seed_is_no_row_and_the_overhead_control_has_its_own(results):
    finish(results, "linear", [99, 99, 99, 99], change=MAK | {"subset": "balanced"})
    finish(
        results,
        "linear",
        [70, 70, 70, 70],
        {"pool": "imagenet900"},
        MAK | {"added": "random", "budget": 10000, "schedule": "overhead", "epochs": 1700},
    )
    assert not len(table_of(results, "mak_table1_linear"))
    control = lines(table_of(results, "mak_overhead_linear"), status="full")
    assert (control.row.iloc[0], control["all"]["difference"]) == ("random, overhead", "-1.2")


def test_a_table_is_written_in_three_formats_and_not_without_a_number_of_ours(results, tmp_path):
    finish(results, "linear", [80, 70, 60, 71])
    table = table_of(results, "sdclr_linear")
    tables.write_table(table, "sdclr_linear", tmp_path)
    first = {
        suffix: (tmp_path / f"sdclr_linear.{suffix}").read_bytes()
        for suffix in ("csv", "md", "tex")
    }
    assert len(pd.read_csv(tmp_path / "sdclr_linear.csv")) == len(table) == 3
    assert b"\\toprule" in first["tex"] and "±".encode() not in first["tex"]
    assert (
        first["md"].decode().count("cifar10, resnet18_cifar, 2000 epochs") == 1
        and "| difference" in first["md"].decode()
    )
    tables.write_table(table, "sdclr_linear", tmp_path)
    assert first == {suffix: (tmp_path / f"sdclr_linear.{suffix}").read_bytes() for suffix in first}
    tables.write_table(table[:0], "sdclr_linear", tmp_path)
    assert not list(tmp_path.glob("sdclr_linear.*"))


@pytest.mark.parametrize(
    "name", [name for paper in printed.papers().values() for name in paper.tables]
)
def test_no_table_has_a_line_without_runs(results, name):
    assert (
        not len(table_of(results, name))
        and tables.not_run(tables.outcomes(results), paper_of(name), name)[0] > 0
    )


def test_an_unknown_table_is_refused(results):
    with pytest.raises(KeyError, match="sdclr_linear"):
        printed.papers()["SDCLR"].table("table1")


def test_spread_says_how_many_runs():
    assert (
        tables.spread([81.0, 81.4], 1) == "81.2 ± 0.2 (n=2)"
        and tables.spread([5.0]) == "5.0 (n=1)"
        and tables.spread([]) == "not run"
    )


WEIGHTS = {
    "cifar10": [0.4, 0.3, 0.3],
    "cifar100": [0.34, 0.33, 0.33],
    "imagenet100": [0.39, 0.48, 0.13],
}


def test_printed_numbers_agree_with_each_other():
    """All is the class-weighted mean of the groups, and no mean of Stds is below the Std of the
    mean groups: one row's are, in print.
    """
    papers = printed.papers()
    assert {name: len(paper.rows) for name, paper in papers.items() if not paper.usual} == {
        "MAK": 46,
        "SDCLR": 14,
        "BCL": 12,
        "COLT": 4,
        "rwSAM": 1,
        "GH": 0,
        "TS": 12,
    }
    odd = []
    for _, row in (
        pd.concat([papers["MAK"].rows, papers["SDCLR"].rows])
        .query("few == few and balance == balance")
        .iterrows()
    ):
        half = 0.5 * 10.0 ** -len(row["all_text"].split(".")[1])  # rounding of one printed number
        groups = row[tables.GROUPS].astype(float).to_numpy()
        assert abs(row["all"] - groups @ WEIGHTS[row.dataset]) <= 2 * half + 1e-9
        assert row.balance - groups.std() >= -2 * half
        if (
            abs(row["all"] - groups @ WEIGHTS[row.dataset]) > half
            and row.balance < groups.std() - half
        ):
            odd.append((row.table, row.sampling_set, row.added, row.protocol))
    assert odd == [("Table 1", "imagenet_places_mix", "mak", "linear")]


def test_every_printed_row_is_in_exactly_one_table():
    for paper in printed.papers().values():
        shown = pd.concat([paper.table(name) for name in paper.tables] or [paper.rows])
        assert shown.index.is_unique and len(shown) == (paper.rows.subset == "long_tail").sum()


@pytest.mark.parametrize(
    "paper, method, options",
    [
        ("SDCLR", "sdclr", ""),
        ("rwSAM", "simsiam+rwsam", "adaptive=True alpha=1.0 clip=10.0 freeze=False rho=7.0"),
        ("BCL", "bcl", "draws=1 floor=10 memory=0.97"),
        ("BCL", "sdclr+bcl", "draws=2 floor=5 memory=0.97"),
        (
            "GH",
            "gh",
            "classes=100 harmony=1.0 late_past=0.999 least=0 middle=0.6 past=0.9 ramp=10 "
            "refresh=20 warm=500",
        ),
        ("COLT", "colt", "begin=100 clusters=10 domain=0.2 memory=0.97 nearest=10 repick=25"),
    ],
)
def test_published_options(paper, method, options):
    found = [one for one in printed.papers()[paper].settings if one["method"] == method]
    assert {one["options"] for one in found} == {options} and all(
        one["policy"] in views.POLICIES for one in found
    )


def test_options_and_budget_tell_the_published_settings_of_the_family(results):
    bcl = {
        "dataset": "cifar100",
        "method": "bcl",
        "weight_decay": 5e-4,
        "options": "draws=1 floor=10 memory=0.97",
    }
    colt = {
        "dataset": "cifar100",
        "method": "colt",
        "budget": 10000,
        "reserve": 300000,
        "options": "begin=100 clusters=10 domain=0.2 memory=0.97 nearest=10 repick=25",
    }
    for change in (bcl, bcl | {"options": "draws=2 floor=10"}, colt, colt | {"budget": 5000}):
        finish(results, "linear", [80, 70, 60, 71], change=change)
    ours, papers = tables.outcomes(results), printed.papers()
    assert ours[tables.status(ours, papers["BCL"]) == "full"][
        ["method", "options"]
    ].values.tolist() == [["bcl", bcl["options"]]]
    assert ours[tables.status(ours, papers["COLT"]) == "full"][
        ["method", "budget"]
    ].values.tolist() == [["colt", 10000]]
    finish(results, "linear", [50, 45, 40, 47.15], change={"dataset": "cifar100", "budget": 0})
    shown = lines(table_of(results, "colt_linear"), row="simclr, 2-layer head")
    assert shown["all"].to_dict() == {
        "paper": "47.65",
        "ours": "47.15 (n=1)",
        "difference": "-0.50",
    }


def test_gains_pair_a_method_with_what_it_builds_on(results):
    for split, few in ((1, 60), (2, 62)):
        finish(results, "linear", [80, 70, 60, 71], change={"split": split})
        finish(results, "linear", [79, 70, few + 3, 72], change={"split": split, "method": "bcl"})
        finish(
            results,
            "linear",
            [70, 60, 50, 61],
            change={"split": split, "method": "sdclr+bcl", "head_layers": 3},
        )
    finish(results, "linear", [80, 70, 60, 71], change={"split": 3})  # nothing to pair with
    gains = tables.family_gains(tables.outcomes(results)).set_index("method")
    assert list(gains.index) == ["bcl"] and gains.n["bcl"] == 2 and gains.against["bcl"] == "simclr"
    assert (gains.few["bcl"], gains.many["bcl"], gains["all"]["bcl"]) == (
        "+4.0 ± 1.0",
        "-1.0 ± 0.0",
        "+1.0 ± 0.0",
    )
    finish(
        results,
        "linear",
        [60, 60, 60, 60],
        change={"split": 1, "method": "sdclr", "head_layers": 3},
    )
    assert (
        tables.family_gains(tables.outcomes(results)).set_index("method").few["sdclr+bcl"]
        == "-10.0"
    )  # one pair has no spread
    for method, all_of_them in (("simclr", 50), ("bcl", 53)):  # elsewhere no class is many or few
        finish(
            results,
            "linear_transfer",
            [np.nan] * 3 + [all_of_them],
            change={"split": 1, "method": method},
        )
    elsewhere = (
        tables.family_gains(tables.outcomes(results)).set_index("protocol").loc["linear_transfer"]
    )
    assert (
        elsewhere["all"] == "+3.0" and elsewhere[["many", "medium", "few", "balance"]].isna().all()
    )


def test_runs_of_other_settings_are_rows_of_their_own(results):
    strong = {"method": "bcl", "weight_decay": 5e-4, "options": "draws=2 floor=5"}
    for change, few in (
        ({}, 60),
        ({"weight_decay": 5e-4}, 50),
        (strong | {"options": "draws=1 floor=10"}, 53),
        (strong, 57),
    ):
        finish(results, "linear", [80, 70, few, few + 10], change={"epochs": 50, **change})
    ours = tables.outcomes(results)
    assert sorted(tables.encoders(ours)) == [
        "bcl, options draws=1 floor=10",
        "bcl, options draws=2 floor=5",
        "simclr, weight_decay 0.0001",
        "simclr, weight_decay 0.0005",
    ]
    gains = tables.family_gains(tables.outcomes(results))
    assert sorted(gains.few) == ["+3.0", "+7.0"] and set(gains.against) == {
        "simclr, weight_decay 0.0005"
    }
    shown = table_of(results, "colt_linear").query("source == 'ours'")
    assert sorted(shown["all"]) == [
        f"{few}.00 (n=1)" for few in (60, 70)
    ]  # BCL is no row of COLT's table


def test_harmony_is_also_set_against_its_control(results):
    for method, options, few in (
        ("simclr", "", 60),
        ("two_stage", "middle=0.6 warm=25", 61),
        ("gh", "classes=100 warm=25", 64),
    ):
        finish(results, "linear", [80, 70, few, 71], change={"method": method, "options": options})
    gains = tables.family_gains(tables.outcomes(results)).set_index(["method", "against"]).few
    assert gains.to_dict() == {
        ("two_stage", "simclr"): "+1.0",
        ("gh", "simclr"): "+4.0",
        ("gh", "two_stage"): "+3.0",
    }


def test_readme_tells_the_check_of_the_pruning_mechanism_as_the_shipped_rows_have_it():
    checks = (
        runs.Results("cifar10-small")
        .read("mechanism")
        .query("mechanism == 'pruning' and method == 'sdclr'")
    )
    checks = checks.pivot(index="split", columns="group", values="value").sort_index()
    told = ", ".join(
        f"split {row.Index}: {row.contrast:.2f} against {row.chance:.2f}"
        for row in checks.itertuples()
    )
    assert len(checks) > 1 and f"({told})" in (paths.ROOT / "README.md").read_text(encoding="utf-8")
