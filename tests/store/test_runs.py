"""A run's name and folder, and measurements that are made once and cannot be altered unnoticed."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import shelf

from longtail.store import paths, runs

RUN = runs.Run(
    dataset="toy",
    subset="long_tail",
    split=1,
    seed=2,
    method="simclr",
    head_layers=2,
    architecture="convnet",
    size=16,
    policy="digits",
    epochs=3,
    batch_size=8,
    learning_rate=0.5,
    weight_decay=1e-4,
    warmup_epochs=1,
    temperature=0.2,
    prune_fraction=0.9,
    precision="float32",
    images="0123456789abcdef",
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return runs.Results("test")


LOG = "epoch,step,loss,learning_rate,seconds\n1,3,2.5,0.1,0.01\n"


def finished(results, run, part="arms"):
    return shelf.finished(results, run, part, {"log.csv": LOG})


def rows(value=1.0):
    return pd.DataFrame({"group": ["many", "few"], "accuracy": [value, 2.0]})


def never():
    raise AssertionError("measured again")


def test_numbers_come_back_to_the_last_bit(tmp_path):
    generator = np.random.default_rng(0)
    wide = np.exp(generator.uniform(-600, 600, 20_000))
    frame = pd.DataFrame({"value": np.concatenate([generator.standard_normal(20_000), wide])})
    runs.write(tmp_path / "rows.csv", text := frame.to_csv(index=False))
    found = runs.read_rows(tmp_path / "rows.csv", runs.sha256(text.encode()))
    assert (found.value == frame.value).all()


# ---- names


@pytest.mark.parametrize("field", runs.FIELDS)
def test_every_field_changes_the_name(field):
    value = getattr(RUN, field)
    other = replace(RUN, **{field: value + "x" if isinstance(value, str) else value + 1})
    assert other.digest != RUN.digest and other.name != RUN.name
    assert replace(other, **{field: value}).name == RUN.name


def test_names_are_readable():
    assert RUN.name == f"simclr-toy_long_tail-split1-seed2-{RUN.digest}"
    assert len(RUN.digest) == 8 and int(RUN.digest, 16) >= 0
    picked = replace(RUN, added="mak", budget=40, schedule="updates")
    assert picked.name == f"simclr-toy_long_tail-split1-seed2-mak40-updates-{picked.digest}"


@pytest.mark.parametrize(
    "splits, seeds, expected",
    [
        ([1, 2], [5, 6], [(1, 5), (2, 6)]),
        ([3], [1, 2], [(3, 1), (3, 2)]),
        ([1, 2, 3], [9], [(1, 9), (2, 9), (3, 9)]),
        ([1], [1], [(1, 1)]),
    ],
)
def test_splits_and_seeds_broadcast(splits, seeds, expected):
    assert runs.pairs(splits, seeds) == expected


def test_splits_and_seeds_of_other_lengths_are_refused():
    with pytest.raises(
        ValueError, match="2 splits and 3 seeds: give as many of both, or one of either"
    ):
        runs.pairs([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="0 splits and 1 seeds"):
        runs.pairs([], [1])


# ---- measurements


def test_a_measurement_is_made_once(tmp_path):
    settings = {
        "views": (1, 2),
        "protocol": "linear",
    }  # a tuple becomes a list in JSON and still is the same
    first = runs.remember(tmp_path, "scores", settings, rows)
    pd.testing.assert_frame_equal(
        runs.remember(tmp_path, "scores", {**settings, "views": [1, 2]}, never), first
    )
    pd.testing.assert_frame_equal(first, rows())


def test_other_settings_are_measured_beside_what_is_there(results):
    run = finished(results, RUN)
    results.remember(run, "phi", {"views": 2}, rows)
    before = {file: file.read_bytes() for file in results.folder(run).iterdir()}
    assert results.remember(run, "phi", {"views": 3}, lambda: rows(7.0)).accuracy[0] == 7
    assert all(file.read_bytes() == content for file, content in before.items())
    assert (
        results.has(run, "phi", {"views": 2})
        and results.has(run, "phi", {"views": 3})
        and not results.has(run, "phi", {"views": 4})
    )
    assert results.read("phi").accuracy.tolist() == [7, 2]  # the settings that were asked for last
    pd.testing.assert_frame_equal(results.remember(run, "phi", {"views": 2}, never), rows())
    assert results.read("phi").accuracy.tolist() == [1, 2]


def test_of_two_commands_that_measure_at_once_the_first_is_kept_whole(tmp_path):
    """Rows with times differ each time: a table of one command must never stand beside the digest
    of the other.
    """
    both = threading.Barrier(2)

    def measured(value):
        both.wait()
        return rows(value)

    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(
                lambda value: runs.remember(tmp_path, "speed", {}, lambda: measured(value)),
                [3.0, 4.0],
            )
        )
    pd.testing.assert_frame_equal(*found)
    pd.testing.assert_frame_equal(runs.remember(tmp_path, "speed", {}, never), found[0])


def test_a_failed_measurement_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="measured again"):
        runs.remember(tmp_path, "scores", {}, never)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
        lambda path: path.write_text(path.read_text().replace("1.0", "9.0")),
        lambda path: path.unlink(),
    ],
    ids=["cut", "edited", "missing"],
)
def test_damaged_rows_are_refused_by_name(results, damage):
    run = finished(results, RUN)
    results.remember(run, "scores-linear", {}, rows)
    [file] = results.folder(run).glob("scores-linear-*.csv")
    damage(file)
    for read in (lambda: results.remember(run, "scores-linear", {}, rows), results.scores):
        with pytest.raises(
            ValueError, match=r"scores-linear-\w{8}\.csv is cut, edited or missing"
        ) as caught:
            read()
        assert str(results.folder(run)) in str(caught.value) and "\n" not in str(caught.value)


# ---- records


def swapped(first, second):
    first_content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_content)


def test_records_that_are_cut_edited_or_swapped_are_refused_by_name(results):
    one, two = (finished(results, replace(RUN, seed=seed)) for seed in (1, 2))
    for run in (one, two):
        for name in ("scores-linear", "scores-knn"):
            results.remember(
                run, name, {}, lambda run=run, name=name: rows(run.seed).assign(protocol=name)
            )
    folder = results.folder(one)
    file, other = ([*folder.glob(f"scores-{name}-*.json")][0] for name in ("linear", "knn"))
    elsewhere = results.folder(two) / file.name
    for damage, what in (
        (
            lambda: file.write_text(file.read_text().replace("seconds", "secunds")),
            "is cut or edited",
        ),
        (lambda: file.write_bytes(file.read_bytes()[:40]), "is no whole JSON file"),
        (lambda: swapped(file, elsewhere), rf"was written as {two.name}/scores-linear"),
        (lambda: swapped(file, other), rf"was written as {one.name}/scores-"),
    ):
        kept = {path: path.read_bytes() for path in (file, other, elsewhere)}
        damage()
        with pytest.raises(ValueError, match=what) as caught:
            results.scores()
        assert str(file.parent) in str(caught.value) or str(elsewhere) in str(caught.value)
        for path, content in kept.items():
            path.write_bytes(content)
    for name in ("done.json", "run.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes((results.folder(two) / name).read_bytes())
        with pytest.raises(ValueError, match=rf"{name} (was written as|describes another run)"):
            results.logs()
        (folder / name).write_bytes(kept)
    swapped(folder / "log.csv", results.folder(two) / "log.csv")  # equal logs: nothing is wrong
    assert len(results.logs()) == 2


def test_an_edited_plan_is_refused_by_name(results):
    finished(results, RUN)
    file = results.root / "plan.json"
    file.write_text(file.read_text().replace(RUN.name, replace(RUN, seed=9).name))
    with pytest.raises(ValueError, match=r"test/plan\.json is cut or edited"):
        results.done()


@pytest.mark.parametrize("change", [{"measured": None}, {"runs": {"arms": ["x"]}}, {"runs": []}])
def test_a_plan_of_another_version_is_told(results, change):
    finished(results, RUN)
    file = results.root / "plan.json"
    runs.write_record(file, runs.read_record(file) | change)
    for use in (results.names, lambda: results.keep("a", {})):
        with pytest.raises(ValueError, match=r"plan\.json was written by another version"):
            use()


def test_a_record_says_done_only_of_what_the_disk_has(results, monkeypatch):
    """``sync`` before ``done.json``: every file of the run, and every folder in it."""
    synced, folder = [], results.folder(RUN)
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}"))
    )
    for name in ("log.csv", "snapshots/epoch-1", "a.1.part"):
        runs.write(folder / name, name)
    runs.sync(folder)
    kept = [folder, folder / "log.csv", folder / "snapshots", folder / "snapshots/epoch-1"]
    assert sorted(synced) == sorted(map(str, kept)) and not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "x/../../../outside"},
        {"size": 10**6},
        {"size": "16"},
        {"seed": 2.0},
        {"imbalance": "x"},
    ],
)
def test_a_folder_is_the_run_that_its_name_says(results, tmp_path, change):
    folder = results.folder(finished(results, RUN))
    (folder / "run.json").write_text(json.dumps(asdict(RUN) | change))
    with pytest.raises(
        ValueError, match=r"run\.json describes another run than the name of its folder"
    ):
        runs.read_run(folder)


@pytest.mark.parametrize(
    "name", ["x/../../outside", "..", ".", "", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "x" * 300]
)
def test_no_name_leads_out_of_the_results(results, name):
    for make in (lambda: runs.Results(name), lambda: paths.inside(paths.RESULTS, name)):
        with pytest.raises(ValueError, match="cannot name a folder of results"):
            make()
    if "/" in name:
        with pytest.raises(ValueError, match="cannot name a folder of runs"):
            results.folder(replace(RUN, dataset=name))
    with pytest.raises(ValueError, match="no profile can be called runs"):
        runs.Results("runs")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file.txt"
    runs.write(target, "old")
    runs.write(target, b"new")
    assert target.read_bytes() == b"new" and [file.name for file in target.parent.iterdir()] == [
        "file.txt"
    ]

    def fail(*_):
        raise OSError(5, "power cut")

    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        runs.write(target, "half")
    assert target.read_bytes() == b"new"


# ---- all rows as one frame


def test_done_runs_are_found_by_their_fields(results):
    assert results.done() == [] and not results.is_done(RUN)
    made = [
        finished(results, replace(RUN, seed=seed, method=method))
        for method in ("sdclr", "simclr")
        for seed in (1, 2, 3)
    ]
    unfinished = replace(RUN, seed=9)
    runs.write(results.folder(unfinished) / "run.json", json.dumps(asdict(unfinished)))
    assert results.is_done(made[0]) and not results.is_done(unfinished)
    assert set(results.done()) == set(made)
    assert results.done() == sorted(made, key=lambda run: run.name)
    assert {run.seed for run in results.done(method="sdclr", seed=[1, 3])} == {1, 3}
    assert results.done(seed=9) == []
    assert runs.Results("another").done() == []  # which has asked for nothing


def test_an_unknown_field_is_refused(results):
    with pytest.raises(KeyError, match="a run has no field sed; it has dataset, subset"):
        results.done(sed=1)
    with pytest.raises(KeyError, match="a run has no field sed"):
        results.scores(sed=1)


def test_rows_carry_the_keys_of_their_run(results):
    for seed in (1, 2):
        run = finished(results, replace(RUN, seed=seed))
        results.remember(
            run, "scores-linear", {}, lambda seed=seed: rows(seed).assign(protocol="linear")
        )
        results.remember(run, "scores-few", {}, lambda: rows(50).assign(protocol="few"))
        results.remember(run, "phi", {}, lambda: pd.DataFrame({"phi": [1.5], "method": ["own"]}))
    scores = results.scores()
    assert list(scores.columns[: len(runs.KEYS)]) == runs.KEYS and len(scores) == 8
    assert scores.groupby("seed").run.unique().map(len).tolist() == [1, 1]
    assert results.scores(seed=2).accuracy.tolist() == [50, 2, 2, 2]
    assert results.read("phi").method.tolist() == ["own", "own"]  # a row's own value stands
    assert results.logs(seed=1)[["seed", "epoch", "loss"]].values.tolist() == [[1, 1, 2.5]]


def test_no_rows_still_have_their_columns(results):
    assert list(results.scores().columns) == [
        *runs.KEYS,
        "protocol",
        "selection",
        "group",
        "accuracy",
        "images",
    ]
    assert list(results.read("phi").columns) == runs.KEYS and results.logs().empty


def test_a_measurement_without_rows_still_has_its_columns(results):
    """Such as what was picked from a pool whose labels nobody knows."""
    finished(results, RUN)
    results.remember(RUN, "composition", {}, lambda: rows()[:0])
    assert list(results.read("composition")) == [*runs.KEYS, "group", "accuracy"] and not len(
        results.read("composition")
    )


def test_settings_are_kept_for_later_notebooks(results):
    with pytest.raises(FileNotFoundError, match=r"plan\.json has no data; 01_data writes it"):
        results.kept("data")
    results.keep("data", {"size": 16})
    assert results.kept("data") == {"size": 16}


@pytest.mark.parametrize("name, notebook", runs.KEEPERS.items())
def test_what_is_not_kept_yet_names_the_notebook_that_keeps_it(
    tmp_path, monkeypatch, name, notebook
):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"has no {name}; {notebook} writes it: run that first"
    ):
        runs.Results("demo").kept(name)
    assert (
        f'results.keep(\\"{name}\\"' in next(paths.NOTEBOOKS.glob(f"{notebook}.ipynb")).read_text()
    )


# ---- plans


def test_a_narrower_call_adds_to_a_plan_and_never_shrinks_it(results):
    made = [finished(results, replace(RUN, seed=seed)) for seed in (1, 2, 3)]
    results.ask("arms", made[1:2], {})
    assert results.done() == sorted(made, key=lambda run: run.name)
    later = finished(results, replace(RUN, seed=4))
    assert len(results.done()) == 4 and later in results.planned()
    other = replace(RUN, epochs=9)
    results.ask("arms", [other], {"epochs": 9})  # other settings: another plan
    assert results.names() == [other.name] and results.done() == []


def test_parts_of_a_plan_are_read_apart(results):
    arm, picked, labels = (
        finished(results, replace(RUN, **change), part)
        for change, part in (
            ({}, "arms"),
            ({"added": "mak", "budget": 4}, "picked"),
            ({"subset": "step", "imbalance": 10.0, "method": "ce"}, "labels"),
        )
    )
    for run in (arm, picked, labels):
        results.remember(run, "scores-linear", {}, rows)
    assert (
        set(results.done()) == {arm, picked}
        and results.done("labels") == [labels]
        and results.planned() == [arm]
    )
    assert set(results.scores("arms").run) == {arm.name} and set(results.scores().run) == {
        arm.name,
        picked.name,
    }
    assert labels.name == f"ce-toy_step10-split1-seed2-{labels.digest}"


def test_what_is_missing_is_told(results):
    made = [finished(results, replace(RUN, seed=seed)) for seed in (1, 2, 3, 4)]
    for run in made:
        results.remember(run, "scores-linear", {}, rows)
    results.remember(made[2], "pool-ecle", {}, rows)
    next(
        results.folder(made[2]).glob("pool-ecle-*.json")
    ).unlink()  # has a row for each image: not all of these are shipped
    assert results.complete() == "4 of 4 runs" and results.missing() == []
    (results.folder(made[0]) / "done.json").unlink()
    [record] = results.folder(made[1]).glob("scores-linear-*.json")
    record.unlink()
    assert results.missing() == [made[0].name, f"{made[1].name}/{record.stem}"]
    assert (
        results.complete() == f"3 of 4 runs; missing {made[0].name}, {made[1].name}/{record.stem}"
    )
    assert results.scores().run.nunique() == 2


def test_a_custom_profile_reads_what_its_base_asked_for(results):
    run = finished(results, RUN)
    results.keep("data", {"size": 16})
    results.remember(run, "phi", {"views": 2}, rows)
    custom = runs.Results("test-custom")
    assert (
        custom.kept("data") == {"size": 16}
        and custom.planned() == [run]
        and len(custom.read("phi")) == 2
    )
    custom.remember(run, "phi", {"views": 3}, lambda: rows(7.0))
    assert custom.read("phi").accuracy[0] == 7 and results.read("phi").accuracy[0] == 1
    other = finished(custom, replace(RUN, epochs=5))
    assert custom.planned() == [other] and results.planned() == [run]


def note_many(number):
    results = runs.Results("test")
    for seed in range(8):
        results.ask("arms", [replace(RUN, split=number, seed=seed)], {})


def test_two_commands_at_once_lose_nothing_of_a_plan(results):
    from multiprocessing import get_context

    workers = [get_context("fork").Process(target=note_many, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results.names()) == 16


def test_numbers_are_read_to_the_last_bit(tmp_path):
    values = [1 / 7, 0.1 + 0.2, 2**-1074, 1e22 / 3]
    runs.remember(tmp_path, "some", {}, lambda: pd.DataFrame({"value": values}))
    found = runs.remember(tmp_path, "some", {}, never)
    assert found.value.tolist() == values
