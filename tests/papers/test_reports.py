"""A paper is one file that is found by being there; the generated pages say what is in the papers'
files and in the rows.
"""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from longtail.papers import claims, printed, reports, tables
from longtail.store import paths, runs

NEW = """
name: New
year: 2024
title: A paper that somebody adds
profiles: {digits: [demo]}
settings: [{dataset: digits, method: [simclr, sdclr], epochs: 60}]
tables: {new_linear: {table: Table 9, protocol: linear}}
claims:
- {id: new, claim: SDCLR improves on SimCLR, where: Table 9, left: {method: sdclr}, right: {method: simclr}, cells: [[linear], [few, all]]}
- {id: odd, claim: Something that no row tells, where: 9, left: {rows: smell, measure: rose}, right: 0.0}
- {id: wrong, claim: A column that is not there, where: 9, left: {rows: phi, measure: few, flavour: sweet}, right: 1.0}
"""
NUMBERS = (
    "table,dataset,method,head_layers,protocol,runs,few,all\nTable "
    "9,digits,sdclr,3,linear,3,66.0,70.0\n"
    "Table 9,digits,simclr,2,linear,3,60.0,68.0\n"
)


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A copy of the papers' files with one more."""
    folder = tmp_path / "papers"
    shutil.copytree(printed.FOLDER, folder)
    monkeypatch.setattr(printed, "FOLDER", folder)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    (folder / "new.yaml").write_text(NEW)
    (folder / "new.csv").write_text(NUMBERS)
    return folder


def test_a_new_paper_is_one_file_and_its_table_and_claims_appear(added, monkeypatch):
    row = {
        "dataset": "digits",
        "data": "digits",
        "subset": "long_tail",
        "protocol": "linear",
        "schedule": "epochs",
        "added": "none",
        "architecture": "convnet",
        "epochs": 60,
        "seed": 1,
        "sampling_set": "none",
        "budget": 0,
        "prototypes": 0.0,
        "alpha": 0.0,
        "ratio": 0.0,
        "arm": None,
        "options": "",
        "seed_images": 231,
    }
    ours = pd.DataFrame(
        [
            row
            | {
                "method": method,
                "head_layers": layers,
                "split": split,
                "run": f"{method}{split}",
                "few": few + split / 10,
                "all": few + 9.0,
                "many": 80.0,
                "medium": 70.0,
                "balance": 5.0,
                "error": 0.0,
            }
            for split in (1, 2, 3)
            for method, layers, few in (("simclr", 2, 60), ("sdclr", 3, 65.5 + split / 10))
        ]
    )
    table = tables.with_ours(ours, printed.papers()["New"], "new_linear").set_index(
        ["row", "source"]
    )
    assert table.few["sdclr, 3-layer head", "difference"] == "-0.1" and list(table)[-4:] == [
        "few",
        "all",
        "status",
        "runs",
    ]
    assert table.runs["sdclr, 3-layer head", "ours"] == "sdclr1 sdclr2 sdclr3" and pd.isna(
        table.runs["sdclr, 3-layer head", "paper"]
    )
    monkeypatch.setattr(tables, "outcomes", lambda *_: ours)
    checked = claims.judged(runs.Results("nothing"))
    new = checked[checked.paper == "New"].set_index("id")
    assert (
        new.verdict["new-linear-few@digits"] == "supported"
        and new.paper_effect["new-linear-few@digits"] == 6.0
    )
    assert new.verdict["number-New-Table-9-sdclr-3-layer-head-linear-few@digits"] == "supported"
    assert (
        "New" in reports.reproduce_page()
        and "SDCLR improves on SimCLR | Table 9" in reports.reproduce_page()
    )


def test_a_claim_that_cannot_be_judged_is_reported_with_the_reason(added):
    checked = claims.judged(runs.Results("nothing")).set_index("id")
    assert (
        checked.note["odd@digits"] == "no rows with rows smell, measure rose"
        and checked.verdict["odd@digits"] == "not run"
    )
    assert "no column flavour" in checked.note["wrong@digits"]


def test_a_file_that_is_no_paper_is_named(added):
    (added / "new.yaml").write_text(NEW.replace("year:", "yaer:"))
    printed.read_paper.cache_clear()
    with pytest.raises(ValueError, match=r"new\.yaml is no paper's file.*yaer"):
        printed.papers()


def test_reproduce_names_every_table_figure_and_claim_with_a_command_that_exists():
    page = (paths.ROOT / "REPRODUCE.md").read_text(encoding="utf-8")
    stateless = [
        [line.rpartition(" | ")[0] for line in text.splitlines()]
        for text in (page, reports.reproduce_page())
    ]
    links = re.compile(r"\[[^]]*\]\(([^)]*)\)")
    shipped, now = (
        [links.sub(r"\1", line).replace("`", "") for line in lines] for lines in stateless
    )
    assert shipped == now, "write it anew: longtail.papers.reports.write_reports()"
    for paper in printed.papers().values():
        assert all(
            f"| {paper.name} | {table['table']}: " in page for table in paper.tables.values()
        )
        assert all(f"| {paper.name} | {figure} |" in page for figure in paper.figures)
        assert all(f"| {entry['claim']} | {entry['where']} | " in page for entry in paper.claims)
    asked = [command.split() for command in re.findall(r"`\./run_all\.sh ([^`]*)`", page)]
    assert {profile for profile, *_ in asked} <= set(reports.profiles())
    numbers = {path.name[:2] for path in paths.NOTEBOOKS.glob("*.ipynb")} | {"--redraw"}
    assert {word for _, *words in asked for word in words} <= numbers
    assert all((paths.ROOT / target).exists() for target in links.findall(page))


def test_costs_are_those_of_the_profiles():
    known = {
        "a": {"hours": 12, "gpus": 1},
        "b": {"hours": 2.5, "gpus": 4},
        "c": {"hours": 3, "cores": 2},
    }
    assert reports._costs(["a", "b"], known) == [
        "`./run_all.sh a`, `./run_all.sh b`",
        "4 GPUs",
        "22 GPU-hours",
    ]
    assert reports._costs(["c"], known) == ["`./run_all.sh c`", "2 CPU cores", "6 core-hours"]
    assert all(
        {"hours"} < {"hours", "gpus", "cores"} & settings.keys()
        for settings in reports.profiles().values()
    )


def test_a_finding_is_one_sentence():
    line = {
        "claim": "MAK beats random picks: overall accuracy",
        "data": "digits",
        "effect": -1.234,
        "unit": "points",
        "low": -3.0,
        "high": 0.5,
        "n": 3,
        "paper_effect": 1.5,
        "verdict": "smaller",
        "paper": "MAK",
        "primary": "true",
    }
    assert claims.finding(line) == (
        "MAK beats random picks: overall accuracy, on digits: -1.23 points (95 % interval -3 to "
        "+0.5, n = 3; "
        "the paper +1.5), smaller."
    )
    alone = line | {
        "low": np.nan,
        "high": np.nan,
        "n": 1,
        "paper_effect": np.nan,
        "unit": "% of the picks",
    }
    assert (
        claims.finding(alone)
        == "MAK beats random picks: overall accuracy, on digits: -1.23% of the picks (n = 1), smaller."
    )
    both = reports.findings(pd.DataFrame([line | {"primary": False}, line]))
    assert both == [f"{claims.finding(line)} (MAK, {kind})" for kind in ("primary", "exploratory")]


def test_readme_has_the_findings_of_the_headline_study_as_its_rows_have_them():
    judged = claims.read_claims(paths.RESULTS / "cifar10-small")
    table = reports.findings_table(judged)
    assert table.count("\n") > 5 and table in (paths.ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_says_how_many_untested_claims_exclude_the_printed_effect():
    judged = claims.read_claims(paths.RESULTS / "cifar10-small")
    untested = judged[judged.primary & (judged.verdict == "not tested")]
    outside = ~untested.paper_effect.between(untested.low, untested.high)
    assert untested.paper_effect.notna().all() and (outside.sum(), len(untested)) == (7, 8)
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert "The intervals of seven of these eight claims exclude the effect" in text


@pytest.mark.parametrize(
    "claim, where",
    [
        ("MAK over no extra images: overall accuracy", "equal epochs"),
        ("MAK over no extra images: overall accuracy", "equal updates"),
        (
            "SimCLR trained in bfloat16 on a GPU over SimCLR trained in bfloat16 on a CPU: overall",
            "",
        ),
    ],
)
def test_readme_tells_what_was_tried_as_the_shipped_table_has_it(claim, where):
    tried = pd.read_csv(paths.RESULTS / "cifar10-small" / "tables" / "tried.csv")
    (row,) = tried[
        tried.claim.str.startswith(claim) & tried["with"].str.contains(where)
    ].itertuples()
    told = f"{row.effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
    assert told in (paths.ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "claim, check",
    [
        ("bcl-vs-simclr-linear_converged-all", "strength: 0.023, needs 0.05"),
        ("ts-vs-simclr-linear_converged-all", ""),
        ("ts-vs-simclr-linear_converged-few", ""),
        ("gap-simsiam-linear_converged", ""),
    ],
)
def test_readme_tells_of_the_family_as_its_rows_have_it(claim, check):
    judged = claims.read_claims(paths.RESULTS / "cifar10-small-family").fillna({"check": ""})
    (row,) = judged[judged.id.str.startswith(f"{claim}@")].itertuples()
    told = f"{row.effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
    assert told in " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    assert row.check == check


def test_readme_tells_what_the_tail_costs_with_and_without_labels():
    results = runs.Results("cifar10-small-family")
    scores = results.scores(method=["simsiam", "supervised", "simclr"])
    scores = scores[(scores.protocol == "linear_converged") & (scores.group == "all")]
    means = scores.pivot_table(index="method", columns="subset", values="accuracy")
    costs = means.balanced - means.long_tail
    text = " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"supervised training gains {costs.supervised:.2f} points" in text
    assert f"SimSiam {costs.simsiam:.2f}" in text
    has = means.long_tail.map("{:.1f} %".format)
    assert f"it has {has.simsiam} on the" in text and f"has {has.supervised} and" in text
    assert f"SimCLR {has.simclr}" in text


def test_readme_tells_how_ts_lies_behind_at_either_temperature():
    """Encoders were kept every 20 epochs, where a swing of 40 has its ends."""
    results = runs.Results("cifar10-small-family")
    curve = results.read("curve", "arms", method=["simclr", "ts"], head_layers=2)
    curve = curve[curve.group == "all"]
    both = curve.pivot(index=["split", "epoch"], columns="method", values="accuracy")
    gaps = (both.ts - both.simclr).unstack("epoch")
    assert gaps.shape == (5, 10) and (gaps < 0).all(axis=None)
    lowest = gaps[[20, 60, 100, 140, 180]].mean(axis=None)
    highest = gaps[[40, 80, 120, 160, 200]].mean(axis=None)
    text = " ".join((paths.ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"by {lowest:.1f} points of nearest-neighbour accuracy" in text
    assert f"and by {highest:.1f} where it is highest" in text
