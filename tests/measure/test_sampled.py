"""What was taken from a pool: whose classes, how far it reaches and what it cost, against counting
by hand and naive loops.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy import planned

from longtail.images import studies
from longtail.learn import train
from longtail.measure import sampled
from longtail.measure.groups import size_groups
from longtail.pick import samplers
from longtail.store import paths, runs

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def study():
    return studies.study(
        "digits",
        16,
        1,
        20,
        0.25,
        "exponential",
        labelled_per_class=30,
        pool_per_class=10,
        outsiders="letters",
        outsider_count=25,
    )


def named(study, names, classes=CIFAR10):
    """The study with a pool of these names, all without a label."""
    pool = study.pool.subset(range(len(names)))
    return replace(
        study,
        classes=classes,
        pool=replace(pool, names=tuple(names), labels=torch.full((len(names),), -1)),
    )


# ---- whose classes


def test_the_table_names_each_class_once_and_only_classes_of_cifar10():
    assert (
        set(sampled.counterparts().values()) <= set(CIFAR10) and len(sampled.counterparts()) == 24
    )
    assert all(
        wnid.startswith("n") and wnid[1:].isdigit() and len(wnid) == 9
        for wnid in sampled.counterparts()
    )


def test_labels_of_a_pool_follow_from_the_names_of_its_folders(study):
    names = [
        "n02123045/n02123045_1.JPEG",
        "tiny.zip/pool/train/n01644900/x.JPEG",
        "n02129165/lion.JPEG",
        "scenes/coast/1.png",
        "n02123045.JPEG",
        "n03796401/images/y.JPEG",
        "n04146614/school_bus.JPEG",
    ]
    assert sampled.pool_labels(named(study, names)).tolist() == [3, 6, -1, -1, -1, 9, -1]
    assert sampled.pool_labels(named(study, names, ("frog", "ship"))).tolist() == [
        -1,
        0,
        -1,
        -1,
        -1,
        -1,
        -1,
    ]
    assert sampled.pool_labels(named(study, names, study.classes)).tolist() == [-1] * 7


def test_a_known_label_stays(study):
    assert (
        torch.equal(sampled.pool_labels(study), study.pool.labels)
        and (study.pool.labels >= 0).any()
    )
    few = named(study, ["n02123045/1.JPEG"] * 2)
    few = replace(few, pool=replace(few.pool, labels=torch.tensor([5, -1])))
    assert sampled.pool_labels(few).tolist() == [5, 3]


def test_composition_of_a_pool_of_other_classes_counts_their_counterparts(study):
    mixed = named(
        study, ["n02123045/1.JPEG", "n02129165/1.JPEG", "n03662601/1.JPEG", "n02123045/2.JPEG"]
    )
    rows = sampled.mix(mixed, {"mine": pd.DataFrame({"index": [0, 1, 3]})})
    cats = size_groups(mixed.counts, "thirds")[3]
    assert rows.set_index("part").picks.to_dict() == {
        part: 2 * (part == cats) + (part == "outsider") for part in sampled.POOL_PARTS
    }
    assert not len(
        sampled.mix(named(study, ["scenes/1.png"] * 4), {"mine": pd.DataFrame({"index": [0, 1]})})
    )


def test_composition_shares_what_was_taken(study):
    groups = size_groups(study.counts, "thirds")
    part = np.array([groups[label] if label >= 0 else "outsider" for label in study.pool.labels])
    assert sampled.pool_parts(study).tolist() == part.tolist()
    mine = np.concatenate(
        [np.flatnonzero(part == "outsider")[:7], np.flatnonzero(part == "few")[:3]]
    )
    picks = {
        "random": pd.DataFrame({"index": np.random.default_rng(0).permutation(len(part))[:40]}),
        "mine": pd.DataFrame({"index": mine}),
    }
    rows = sampled.mix(study, picks)
    assert list(rows.columns) == ["sampler", "budget", "part", "share", "picks"]
    assert rows.groupby("sampler").share.sum().tolist() == pytest.approx([100, 100])
    assert rows.groupby("sampler").picks.sum().to_dict() == {"random": 40, "mine": 10}
    mine = rows[rows.sampler == "mine"].set_index("part")
    assert mine.share.to_dict() == pytest.approx(
        {"outsider": 70, "many": 0, "medium": 0, "few": 30}
    ) and set(mine.budget) == {10}


# ---- how far the picks reach


def test_spread_tells_collapse_from_spread():
    pool = torch.eye(4).repeat(5, 1)  # four directions, five copies of each
    collapsed, wide = sampled.dispersion(pool, [0, 4]), sampled.dispersion(pool, [0, 1, 2, 3])
    assert collapsed == pytest.approx({"coverage": 0.25, "nearest_pick_distance": 0.0})
    assert wide == pytest.approx({"coverage": 1.0, "nearest_pick_distance": 1.0})
    with pytest.raises(ValueError, match="at least two"):
        sampled.dispersion(pool, [3])


def distance(a, b):
    return 1 - float(a @ b / a.norm() / b.norm())


def rows_of(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_distance_to_the_nearest_is_that_of_a_loop():
    pool, seed, more = rows_of(30, 0), rows_of(7, 1), rows_of(3, 2)
    slow = [min(distance(image, center) for center in seed) for image in pool]
    found = sampled.to_nearest(pool, seed)
    assert found.tolist() == pytest.approx(slow, abs=1e-6)
    both = [min(distance(image, center) for center in [*seed, *more]) for image in pool]
    assert sampled.to_nearest(pool, more, found).tolist() == pytest.approx(both, abs=1e-6)


def test_objective_is_equation_5():
    found = sampled.objective(torch.tensor([3.0, 5.0]), torch.tensor([0.2, 0.4]), torch.tensor(0.7))
    assert found == pytest.approx(
        {"loss": 8, "seed_distance": 0.3, "covering_radius": 0.7, "objective": 7}
    )


HOW = {"alpha": 0.3, "ratio": 1.5, "prototypes": 4, "views": 3, "batch": 16, "repeats": 2}


@pytest.fixture
def extractor(study, tmp_path, monkeypatch):
    """An untrained extractor that counts as finished: run, results."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    run, results = planned(study.seed), runs.Results("test")
    finish(run, results, 5.0, study)
    return run, results


def finish(run, results, seconds, study):
    runs.write(results.folder(run) / "run.json", json.dumps(asdict(run)))
    train.finish(
        run,
        results.folder(run),
        train.initialise(run)[0],
        [{"seconds": seconds}],
        len(study.seed) + run.budget,
    )


def test_objectives_of_picks_are_those_of_loops(extractor, study):
    run, results = extractor
    picks = {
        sampler: samplers.pick(run, results, study, sampler, 6, **HOW)
        for sampler in ("mak", "k_center", "proximity")
    }
    found = sampled.objectives(run, results, study, picks).set_index("sampler")
    pool, seed = samplers.pool_and_seed(run, results, study)
    for sampler, taken in picks.items():
        chosen = pool[taken["index"].tolist()]
        near = [min(distance(image, center) for center in seed) for image in chosen]
        radius = max(min(distance(image, center) for center in [*seed, *chosen]) for image in pool)
        assert found.loc[sampler].tolist() == pytest.approx(
            [6, taken.ecle.sum(), np.mean(near), radius, taken.ecle.sum() - np.mean(near) - radius],
            abs=1e-5,
        )
    alone = max(min(distance(image, center) for center in seed) for image in pool)
    assert (
        found.covering_radius["none"] == pytest.approx(alone, abs=1e-6)
        and found.covering_radius["k_center"] < alone
    )


def test_proximities_compare_prototypes_with_images(extractor, study):
    run, results = extractor
    found = (
        sampled.proximities(run, results, study, 6, **HOW).set_index(["quantity", "sampler"]).value
    )
    pool, seed = samplers.pool_and_seed(run, results, study)
    exact = np.array([min(distance(image, center) for center in seed) for image in pool])
    rough = samplers.score_pool(run, results, study, 3, 16, 2, 4)[1].numpy()
    assert found["rank_correlation", "pool"] == pytest.approx(
        stats.spearmanr(exact, rough).statistic, abs=1e-3
    )
    shared = set(np.argsort(exact)[:6]) & set(np.argsort(rough)[:6])
    assert found["overlap", "proximity"] == pytest.approx(len(shared) / 6)
    assert list(found["overlap"].index) == ["random", "proximity", "tailness_proximity", "mak"]
    assert found["overlap", "random"] == 6 / len(pool)
    assert (
        sampled.proximities(run, results, study, 6, **HOW | {"prototypes": len(study.seed)}).value
        > 0.999
    )[[0, 2, 3, 4]].all()


# ---- what it cost


def test_overhead_is_the_recorded_seconds_in_epochs_of_the_retraining(extractor, study):
    run, results = extractor
    taken = samplers.pick(run, results, study, "mak", 6, **HOW)
    for name, seconds in (
        ("pool-ecle", 7.0),
        ("pool-distance-k4", 0.5),
        ("picks-mak-6-a0.3-c1.5-k4", 0.25),
    ):
        [record] = results.folder(run).glob(f"{name}-*.json")
        runs.write_record(record, runs.read_record(record) | {"seconds": seconds})
    enlarged, _ = samplers.with_picks(run, study, taken, "mak", "epochs")
    finish(enlarged, results, 8.0, study)
    row = samplers.row("mak", {"budget": 6, **HOW})
    [found] = sampled.overhead(run, enlarged, results, row).to_dict("records")
    assert found == {
        "extractor": 5,
        "scoring": 7.5,
        "picking": 0.25,
        "retraining": 8,
        "equivalent_epochs": round(12.75 / 2, 2),
    }
    results.ask("picked", [enlarged], {})
    assert results.read("overhead").epochs.tolist() == [4] and results.read(
        "overhead"
    ).added.tolist() == ["mak"]
