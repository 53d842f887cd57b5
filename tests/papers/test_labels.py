"""The printed tables beside fabricated runs: what is set against the papers, what never is, and
every verdict.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shelf

from longtail.label import adjusted
from longtail.papers import claims, printed, tables
from longtail.store import arms, paths, runs

PAPERS = ("CB", "LDAM", "DDC")
RUN = runs.Run(
    dataset="cifar10",
    subset="exponential",
    imbalance=100.0,
    largest=5000,
    split=0,
    seed=1,
    method="ce",
    head_layers=0,
    architecture="resnet32",
    size=32,
    policy="cifar_classifier",
    epochs=200,
    batch_size=128,
    learning_rate=0.1,
    weight_decay=2e-4,
    warmup_epochs=5,
    drops="160 180",
    drop=0.01,
    temperature=0.0,
    prune_fraction=0.0,
    precision="bfloat16",
    images="0" * 16,
)
DIGITS = {
    "dataset": "digits",
    "largest": 100,
    "architecture": "perceptron",
    "size": 8,
    "policy": "",
    "imbalance": 50.0,
    "epochs": 60,
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "machine", dict)
    return runs.Results("test")


def finish(results, arm, accuracy, few=50.0, posthoc=None, **changes):
    """Write a finished run with its accuracy over all test images and on rare classes."""
    method, parameters = adjusted.read_loss(arm)
    run = replace(RUN, **{"method": method, "options": arms.written([], parameters)} | changes)
    values = {method: accuracy} | ({"posthoc_la": posthoc} if posthoc else {})
    rows = [
        (name, group, value, 100)
        for name, value in values.items()
        for group, value in (("all", value), ("few", few), ("many", 90.0))
    ]
    frame = pd.DataFrame(rows, columns=["method", "group", "accuracy", "images"]).assign(
        protocol="network", selection="last_epoch"
    )
    shelf.finished(results, run, "labels")
    results.remember(run, "scores-network", {}, lambda: frame)


def cell(results, paper, method, ratio=100, kind="exponential", dataset="cifar10"):
    """The lines of one printed cell."""
    table = table_of(results, paper)
    return table[table.data.str.startswith(f"{dataset} {kind} {ratio:g},") & (table.row == method)]


def table_of(results, paper):
    return tables.with_ours(
        tables.outcomes(results), printed.papers()[paper], f"supervised_{paper.lower()}"
    )


def verdicts(results):
    return claims.judged(results).set_index("id")


# ---- tables


def test_printed_cells_are_complete_and_name_methods_that_exist():
    rows = pd.concat([printed.papers()[name].rows.assign(paper=name) for name in PAPERS])
    assert rows.groupby("paper").size().to_dict() == {"CB": 72, "LDAM": 72, "DDC": 32}
    assert set(rows.method.dropna()) <= set(adjusted.LOSSES) and set(
        rows[rows.method.isna()].row
    ) == {"HG-DRS"}
    known = rows.set_index(["paper", "row", "data"]).error_text
    assert (
        known["CB", "Softmax", "cifar10 exponential 100"]
        == known["LDAM", "ERM", "cifar10 exponential 100"]
        == "29.64"
    )
    assert (
        known["LDAM", "LDAM-DRW", "cifar100 step 10"] == "40.54"
        and known["DDC", "DDC", "cifar10 exponential 100"] == "19.19"
    )


def test_only_the_published_settings_are_subtracted(results):
    finish(results, "ce", 71.0)
    finish(results, "ce", 70.0, seed=2)
    finish(results, "ce", 60.0, jpeg=True)
    finish(results, "ce", 50.0, architecture="resnet10_small")
    finish(results, "ce", 40.0, largest=1000)
    lines = cell(results, "CB", "Softmax").groupby("status")
    assert lines.get_group("full").set_index("source").error.to_dict() == {
        "paper": "29.64",
        "ours": "29.50 ± 0.50 (n=2)",
        "difference": "-0.14",
    }
    assert lines.get_group("JPEG copy").error.tolist() == ["29.64", "40.00 (n=1)"]
    assert sorted(lines.get_group("cut").error) == ["29.64", "29.64", "50.00 (n=1)", "60.00 (n=1)"]
    assert not len(cell(results, "CB", "Softmax", ratio=50))


def ours(lines):
    return lines[lines.source == "ours"].error.tolist()


def test_a_row_is_found_by_all_its_parameters_unless_none_were_printed(results):
    finish(results, "sigmoid_focal gamma=2", 70.0)
    assert ours(cell(results, "CB", "Focal (gamma=2.0)")) == ["30.00 (n=1)"]
    assert not len(cell(results, "CB", "Focal (gamma=1.0)"))
    finish(results, "vs gamma=0.2 tau=1.2", 80.0)
    assert ours(cell(results, "DDC", "VS")) == ["20.00 (n=1)"]


def test_a_method_that_we_do_not_have_is_none_of_ours(results):
    finish(results, "ce", 70.0)
    assert len(cell(results, "LDAM", "ERM")) and not len(cell(results, "LDAM", "HG-DRS"))


def test_other_data_stand_apart(results):
    finish(results, "ce", 80.0, **DIGITS)
    finish(results, "cdt", 80.0, **DIGITS)  # no table has it
    [own] = table_of(results, "LDAM")[["row", "source", "error", "status"]].to_numpy().tolist()
    assert own == ["ce", "ours", "20.00 (n=1)", "own data"]
    assert tables.not_run(
        tables.outcomes(results), printed.papers()["LDAM"], "supervised_ldam"
    ) == (72, 72)


def gained(results):
    """Gains over cross-entropy, over all test images."""
    scores = tables.with_labels(results)
    return tables.paired_gains(
        scores[scores.group == "all"],
        lambda method: [] if method in ("ce", "posthoc_la") else ["ce"],
    )


def test_gains_are_paired_by_list_split_and_seed(results):
    for seed, (plain, other) in enumerate([(70.0, 75.0), (60.0, 61.0)], 1):
        finish(results, "ce", plain, seed=seed)
        finish(results, "la", other, seed=seed)
    finish(results, "la", 99.0, seed=3)
    gains = gained(results).sort_values("seed").gain
    assert gains[:2].tolist() == [5.0, 1.0] and np.isnan(gains.iloc[2])


@pytest.mark.parametrize(
    "change",
    [
        {"drops": "150 180"},
        {"batch_size": 64},
        {"weight_decay": 5e-4},
        {"precision": "float32"},
        {"jpeg": True},
        {"largest": 1000},
        {"policy": ""},
        {"architecture": "resnet10_small"},
        {"learning_rate": 0.05},
    ],
    ids=str,
)
def test_runs_of_other_settings_are_neither_averaged_nor_paired(results, change):
    for how, plain, other in (({}, 70.0, 75.0), (change, 50.0, 51.0)):
        finish(results, "ce", plain, **how)
        finish(results, "la", other, **how)
    assert sorted(ours(cell(results, "DDC", "CE"))) == ["30.00 (n=1)", "50.00 (n=1)"]
    assert sorted(gained(results).gain) == [1.0, 5.0]


# ---- claims


def test_nothing_run_gives_no_verdict_and_says_what_is_missing(results):
    checked = claims.judged(results)
    checked = checked[checked.paper.isin(PAPERS)]
    assert (
        set(checked.verdict) == {"not run"}
        and set(checked.scope) == {"paper's data"}
        and checked.id.is_unique
    )
    assert (
        set(checked.test) == {"above", "same", "number"}
        and (checked.n == 0).all()
        and checked["where"].all()
    )
    assert checked.note.str.contains("no rows with|no column").all()


def test_directions_sameness_and_numbers_on_the_papers_data(results):
    for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2)):
        finish(results, "ce", 70.4 + shift, few=40.0, posthoc=77.3 + shift, seed=seed)
        finish(results, "la", 77.4 + shift, few=60.0 + shift, seed=seed)
        finish(results, "ldam_drw", 60.0 + shift, few=30.0 + 9 * shift, seed=seed)
        finish(results, "focal", 70.1 + shift, seed=seed)
    found = verdicts(results)
    wanted = {
        "la-vs-ce": "supported",
        "posthoc-vs-ce": "supported",
        "la-vs-posthoc": "supported",
        "la-few": "supported",
        "ldam_drw-vs-ce": "contradicted",
        "ldam_drw-few": "contradicted",
        "focal-vs-ce": "supported",
        "number-CB-CIFAR-tables-Softmax-labels-error": "supported",
        "number-LDAM-Table-2-LDAM-DRW-labels-error": "contradicted",
        "ldam-vs-ce": "not run",
    }
    for stem, verdict in wanted.items():
        assert found.verdict[f"{stem}@cifar10-exponential-100"] == verdict, stem
    assert found.effect[
        "number-CB-CIFAR-tables-Softmax-labels-error@cifar10-exponential-100"
    ] == pytest.approx(100 - 70.5)
    assert (
        found.paper_effect["number-CB-CIFAR-tables-Softmax-labels-error@cifar10-exponential-100"]
        == 29.64
    )
    assert found.paper_effect["ldam_drw-vs-ce@cifar10-exponential-100"] == pytest.approx(
        29.64 - 22.97
    )  # errors, the other way round
    found = found[found.paper.isin(PAPERS)]
    assert set(found.notebook) == {"07_supervised"} and not found.primary.any()


def test_a_claim_about_few_reads_few(results):
    for seed, few in ((1, 10.0), (2, 20.0), (3, 15.0)):
        finish(results, "ce", 80.0, few=few, seed=seed)
        finish(results, "cb", 70.0, few=few + 5 + seed / 100, seed=seed)
    found = verdicts(results).verdict
    assert (
        found["cb-few@cifar10-exponential-100"] == "supported"
        and found["cb-vs-ce@cifar10-exponential-100"] == "contradicted"
    )
    assert verdicts(results).effect["cb-few@cifar10-exponential-100"] == pytest.approx(5.02)


@pytest.mark.parametrize(
    "gain, verdict",
    [(-4.0, "contradicted"), (0.5, "supported"), (2.0, "contradicted"), (1.0, "undecided")],
)
def test_without_imbalance_neither_a_gain_nor_a_loss_is_no_change(results, gain, verdict):
    for seed in (1, 2, 3):
        finish(results, "ce", 80.0 + seed, seed=seed, imbalance=1.0)
        finish(results, "ldam_drw", 80.0 + seed + gain + seed / 100, seed=seed, imbalance=1.0)
    assert verdicts(results).verdict["ldam_drw-balanced@cifar10-exponential-1"] == verdict


def test_other_runs_are_judged_apart_and_by_tail(results):
    for split in (1, 2, 3):
        for ratio, gain in ((50.0, 5.0), (10.0, -5.0)):
            finish(results, "ce", 70.0 + split, split=split, **DIGITS | {"imbalance": ratio})
            finish(
                results,
                "la",
                70.0 + split + gain + split / 100,
                split=split,
                **DIGITS | {"imbalance": ratio},
            )
        finish(results, "ce", 70.0, seed=split, jpeg=True)
        finish(results, "la", 75.0 + split / 100, seed=split, jpeg=True)
    found = verdicts(results)
    own = found[found.scope == "own data"]
    assert own.verdict["la-vs-ce@digits-exponential-50"] == "supported"
    assert own.verdict["la-vs-ce@digits-exponential-10"] == "contradicted"
    assert own.verdict[
        "la-vs-ce@cifar10-exponential-100-(JPEG-copy)"
    ] == "supported" and "number" not in set(own.test)
    assert found.verdict["la-vs-ce@cifar10-exponential-100"] == "not run"


def test_seeds_of_one_list_say_nothing_about_other_lists(results):
    for seed in (1, 2, 3):
        finish(results, "ce", 70.0 + seed, seed=seed, **DIGITS)
        finish(results, "la", 75.0 + seed + seed / 100, seed=seed, **DIGITS)
    one = verdicts(results).loc["la-vs-ce@digits-exponential-50"]
    assert (one.verdict, one.n, one.effect) == (
        "undecided",
        1,
        pytest.approx(5.02),
    ) and "run other splits" in one.note
    for split, gain in (
        (1, 9.0),
        (2, -2.0),
    ):  # two more lists: the lists differ, however much their seeds agree
        for seed in (1, 2, 3):
            finish(results, "ce", 70.0, seed=seed, split=split, **DIGITS)
            finish(results, "la", 70.0 + gain + seed / 100, seed=seed, split=split, **DIGITS)
    three = verdicts(results).loc["la-vs-ce@digits-exponential-50"]
    assert (three.verdict, three.n) == ("undecided", 3) and three.low < 0 and three.high > 9
