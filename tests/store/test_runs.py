"""A run's name and folder, and measurements that are made once and cannot be altered unnoticed."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest

from longtail.store import paths, runs

RUN = runs.Run(dataset="toy", subset="long_tail", split=1, seed=2, method="simclr", head_layers=2, architecture="convnet", size=16,
               policy="digits", epochs=3, batch_size=8, learning_rate=0.5, weight_decay=1e-4, warmup_epochs=1, temperature=0.2,
               prune_fraction=0.9, precision="float32", images="0123456789abcdef")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return runs.Results("test")


def finished(results, run):
    runs.write(results.folder(run) / "run.json", json.dumps(asdict(run)))
    log = "epoch,step,loss,learning_rate,seconds\n1,3,2.5,0.1,0.01\n"
    runs.write(results.folder(run) / "log.csv", log)
    runs.write(results.folder(run) / "done.json", json.dumps({"log_sha256": runs.sha256(log.encode())}))
    return run


def rows(value=1.0):
    return pd.DataFrame({"group": ["many", "few"], "accuracy": [value, 2.0]})


def never():
    raise AssertionError("measured again")


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


@pytest.mark.parametrize("splits, seeds, expected", [
    ([1, 2], [5, 6], [(1, 5), (2, 6)]), ([3], [1, 2], [(3, 1), (3, 2)]), ([1, 2, 3], [9], [(1, 9), (2, 9), (3, 9)]), ([1], [1], [(1, 1)]),
])
def test_splits_and_seeds_broadcast(splits, seeds, expected):
    assert runs.pairs(splits, seeds) == expected


def test_splits_and_seeds_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="2 splits and 3 seeds: give as many of both, or one of either"):
        runs.pairs([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="0 splits and 1 seeds"):
        runs.pairs([], [1])


# ---- measurements

def test_a_measurement_is_made_once(tmp_path):
    settings = {"views": (1, 2), "protocol": "linear"}              # a tuple becomes a list in JSON and still is the same
    first = runs.remember(tmp_path, "scores", settings, rows)
    pd.testing.assert_frame_equal(runs.remember(tmp_path, "scores", settings, never), first)
    assert runs.is_remembered(tmp_path, "scores", settings) and not runs.is_remembered(tmp_path, "other", settings)
    pd.testing.assert_frame_equal(first, rows())


def test_other_settings_measure_again(tmp_path):
    runs.remember(tmp_path, "scores", {"views": 2}, rows)
    again = runs.remember(tmp_path, "scores", {"views": 3}, lambda: rows(7.0))
    assert again.accuracy[0] == 7
    assert runs.is_remembered(tmp_path, "scores", {"views": 3}) and not runs.is_remembered(tmp_path, "scores", {"views": 2})


def test_a_failed_measurement_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError, match="measured again"):
        runs.remember(tmp_path, "scores", {}, never)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2]),
    lambda path: path.write_text(path.read_text().replace("1.0", "9.0")),
    lambda path: path.unlink(),
], ids=["cut", "edited", "missing"])
def test_damaged_rows_are_refused_by_name(results, damage):
    run = finished(results, RUN)
    runs.remember(results.folder(run), "scores-linear", {}, rows)
    damage(results.folder(run) / "scores-linear.csv")
    for read in (lambda: runs.remember(results.folder(run), "scores-linear", {}, rows), results.scores):
        with pytest.raises(ValueError, match=r"scores-linear\.csv is cut, edited or missing") as caught:
            read()
        assert str(results.folder(run)) in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file.txt"
    runs.write(target, "old")
    runs.write(target, b"new")
    assert target.read_bytes() == b"new" and [file.name for file in target.parent.iterdir()] == ["file.txt"]

    def fail(*_):
        raise OSError("power cut")
    monkeypatch.setattr(runs.os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        runs.write(target, "half")
    assert target.read_bytes() == b"new"


# ---- all rows as one frame

def test_done_runs_are_found_by_their_fields(results):
    assert results.done() == [] and not results.is_done(RUN)
    made = [finished(results, replace(RUN, seed=seed, method=method)) for method in ("sdclr", "simclr") for seed in (1, 2, 3)]
    unfinished = replace(RUN, seed=9)
    runs.write(results.folder(unfinished) / "run.json", json.dumps(asdict(unfinished)))
    assert results.is_done(made[0]) and not results.is_done(unfinished)
    assert set(results.done()) == set(made)
    assert results.done() == sorted(made, key=lambda run: run.name)
    assert {run.seed for run in results.done(method="sdclr", seed=[1, 3])} == {1, 3}
    assert results.done(seed=9) == []


def test_an_unknown_field_is_refused(results):
    with pytest.raises(KeyError, match="a run has no field sed; it has dataset, subset"):
        results.done(sed=1)
    with pytest.raises(KeyError, match="a run has no field sed"):
        results.scores(sed=1)


def test_rows_carry_the_keys_of_their_run(results):
    for seed in (1, 2):
        run = finished(results, replace(RUN, seed=seed))
        runs.remember(results.folder(run), "scores-linear", {}, lambda seed=seed: rows(seed).assign(protocol="linear"))
        runs.remember(results.folder(run), "scores-few", {}, lambda: rows(50).assign(protocol="few"))
        runs.remember(results.folder(run), "phi", {}, lambda: pd.DataFrame({"phi": [1.5], "method": ["own"]}))
    scores = results.scores()
    assert list(scores.columns[:len(runs.KEYS)]) == runs.KEYS and len(scores) == 8
    assert scores.groupby("seed").run.unique().map(len).tolist() == [1, 1]
    assert results.scores(seed=2).accuracy.tolist() == [50, 2, 2, 2]
    assert results.read("phi").method.tolist() == ["own", "own"]            # a row's own value stands
    assert results.logs(seed=1)[["seed", "epoch", "loss"]].values.tolist() == [[1, 1, 2.5]]


def test_no_rows_still_have_their_columns(results):
    assert list(results.scores().columns) == [*runs.KEYS, "protocol", "selection", "group", "accuracy", "images"]
    assert list(results.read("phi").columns) == runs.KEYS and results.logs().empty


def test_a_measurement_without_rows_still_has_its_columns(results):
    """Such as what was picked from a pool whose labels nobody knows."""
    finished(results, RUN)
    runs.remember(results.folder(RUN), "composition", {}, lambda: rows()[:0])
    assert list(results.read("composition")) == [*runs.KEYS, "group", "accuracy"] and not len(results.read("composition"))


def test_settings_are_kept_for_later_notebooks(results):
    with pytest.raises(FileNotFoundError, match=r"data\.json is missing; 01_data writes it"):
        results.kept("data")
    results.keep("data", {"size": 16})
    assert results.kept("data") == {"size": 16}


@pytest.mark.parametrize("name, notebook", runs.KEEPERS.items())
def test_what_is_not_kept_yet_names_the_notebook_that_keeps_it(tmp_path, monkeypatch, name, notebook):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{name}\.json is missing; {notebook} writes it: run that first"):
        runs.Results("demo").kept(name)
    assert f'results.keep(\\"{name}\\"' in next(paths.NOTEBOOKS.glob(f"{notebook}.ipynb")).read_text()
