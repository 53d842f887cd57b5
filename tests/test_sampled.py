"""What was taken from a pool: whose classes, against counting by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from longtail import data, evaluate, sampled

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def study():
    return data.study("digits", 16, 1, 20, 0.25, "exponential", labelled_per_class=30, pool_per_class=10, outsiders="letters",
                      outsider_count=25)


def named(study, names, classes=CIFAR10):
    """The study with a pool of these names, all without a label."""
    pool = study.pool.subset(range(len(names)))
    return replace(study, classes=classes, pool=replace(pool, names=tuple(names), labels=torch.full((len(names),), -1)))


# ---- whose classes

def test_the_table_names_each_class_once_and_only_classes_of_cifar10():
    assert set(sampled.counterparts().values()) <= set(CIFAR10) and len(sampled.counterparts()) == 24
    assert all(wnid.startswith("n") and wnid[1:].isdigit() and len(wnid) == 9 for wnid in sampled.counterparts())


def test_labels_of_a_pool_follow_from_the_names_of_its_folders(study):
    names = ["n02123045/n02123045_1.JPEG", "tiny.zip/pool/train/n01644900/x.JPEG", "n02129165/lion.JPEG", "scenes/coast/1.png",
             "n02123045.JPEG", "n03796401/images/y.JPEG", "n04146614/school_bus.JPEG"]
    assert sampled.pool_labels(named(study, names)).tolist() == [3, 6, -1, -1, -1, 9, -1]
    assert sampled.pool_labels(named(study, names, ("frog", "ship"))).tolist() == [-1, 0, -1, -1, -1, -1, -1]
    assert sampled.pool_labels(named(study, names, study.classes)).tolist() == [-1] * 7


def test_a_known_label_stays(study):
    assert torch.equal(sampled.pool_labels(study), study.pool.labels) and (study.pool.labels >= 0).any()
    few = named(study, ["n02123045/1.JPEG"] * 2)
    few = replace(few, pool=replace(few.pool, labels=torch.tensor([5, -1])))
    assert sampled.pool_labels(few).tolist() == [5, 3]


def test_composition_of_a_pool_of_other_classes_counts_their_counterparts(study):
    mixed = named(study, ["n02123045/1.JPEG", "n02129165/1.JPEG", "n03662601/1.JPEG", "n02123045/2.JPEG"])
    rows = sampled.composition(mixed, {"mine": pd.DataFrame({"index": [0, 1, 3]})})
    cats = evaluate.size_groups(mixed.counts, "thirds")[3]
    assert rows.set_index("part").picks.to_dict() == {part: 2 * (part == cats) + (part == "outsider") for part in sampled.PARTS}
    assert not len(sampled.composition(named(study, ["scenes/1.png"] * 4), {"mine": pd.DataFrame({"index": [0, 1]})}))


def test_composition_shares_what_was_taken(study):
    groups = evaluate.size_groups(study.counts, "thirds")
    part = np.array([groups[label] if label >= 0 else "outsider" for label in study.pool.labels])
    assert sampled.pool_parts(study).tolist() == part.tolist()
    mine = np.concatenate([np.flatnonzero(part == "outsider")[:7], np.flatnonzero(part == "few")[:3]])
    picks = {"random": pd.DataFrame({"index": np.random.default_rng(0).permutation(len(part))[:40]}), "mine": pd.DataFrame({"index": mine})}
    rows = sampled.composition(study, picks)
    assert list(rows.columns) == ["sampler", "budget", "part", "share", "picks"]
    assert rows.groupby("sampler").share.sum().tolist() == pytest.approx([100, 100])
    assert rows.groupby("sampler").picks.sum().to_dict() == {"random": 40, "mine": 10}
    mine = rows[rows.sampler == "mine"].set_index("part")
    assert mine.share.to_dict() == pytest.approx({"outsider": 70, "many": 0, "medium": 0, "few": 30}) and set(mine.budget) == {10}
