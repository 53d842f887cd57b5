"""Images of two halves: which half tells the label and which tells nothing of it, and what is asked
of encoders.
"""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy.stats import chi2_contingency

from longtail.images import datasets, views
from longtail.label import halves
from longtail.learn import train
from longtail.papers import figures
from longtail.store import paths, runs

SETTINGS = {
    "dataset": "digits_halves",
    "size": 16,
    "architecture": "convnet",
    "policy": "halves",
    "epochs": 8,
    "batch_size": 32,
    "learning_rate": 0.15,
    "weight_decay": 1e-4,
    "warmup_epochs": 1,
    "temperature": 0.2,
    "prune_fraction": 0.9,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def asked():
    return halves.tasks(16, 1, 200, 0.02)


def sources(images):
    """The names of the pictures in half A and half B of every image."""
    return zip(*(name.split("+") for name in images.names), strict=True)


def digit(name):
    return int(name.split("/")[1])


def sets(asked):
    return [getattr(asked["half B"], role) for role in ("seed", "balanced", "few")] + [
        getattr(study, role) for study in asked.values() for role in ("train", "validation", "test")
    ]


def test_each_half_is_the_picture_that_its_name_says_on_black(asked):
    originals = datasets.digits(8)
    pixels = dict(
        zip(originals.names, originals.images, strict=True),
        blank=torch.zeros(3, 8, 8, dtype=torch.uint8),
    )
    for images in sets(asked):
        left, right = (torch.stack([pixels[name] for name in half]) for half in sources(images))
        assert (images.images[:, :, 4:12, :8] == left).all() and (
            images.images[:, :, 4:12, 8:] == right
        ).all()
        assert not images.images[:, :, :4].any() and not images.images[:, :, 12:].any()


@pytest.mark.parametrize("role", ["seed", "balanced", "few"])
def test_frequent_classes_are_named_by_half_a_and_rare_ones_by_half_b(asked, role):
    study = asked["half B"]
    images, frequent = (
        getattr(study, role),
        {label for label, count in enumerate(study.counts) if count == 200},
    )
    for label, left, right in zip(images.labels.tolist(), *sources(images), strict=True):
        assert label == digit(right if left == "blank" else left)
        assert (label in frequent) == (left != "blank") and digit(right) not in frequent


def test_half_b_of_frequent_images_tells_nothing_of_their_label(asked):
    pairs = [
        (digit(left), digit(right))
        for left, right in zip(*sources(asked["half B"].seed), strict=True)
        if left != "blank"
    ]
    table = pd.crosstab(*zip(*pairs, strict=True))
    assert (
        table.shape == (5, 5)
        and table.to_numpy().min() > 20
        and chi2_contingency(table).pvalue > 0.01
    )


def test_lists_are_as_large_as_asked_and_no_image_is_twice_in_one(asked):
    study = asked["half B"]
    assert sorted(study.counts) == [4] * 5 + [200] * 5
    assert torch.bincount(study.balanced.labels).tolist() == [102] * 10
    assert all(len(set(images.names)) == len(images) for images in sets(asked))


def test_no_picture_is_in_two_of_lists_validation_and_test(asked):
    parts = [
        {
            name
            for study in asked.values()
            for role in roles
            for half in sources(getattr(study, role))
            for name in half
        }
        - {"blank"}
        for roles in (("seed", "balanced", "train"), ("validation",), ("test",))
    ]
    assert not any(parts[a] & parts[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_tasks_ask_five_digits_each_and_two_of_them_the_same_images(asked):
    first, rare, second = asked.values()
    for role, count in (("train", 100), ("validation", 20), ("test", 50)):
        sizes = [
            torch.bincount(getattr(study, role).labels, minlength=10).tolist()
            for study in asked.values()
        ]
        assert all(sorted(size) == [0] * 5 + [count] * 5 for size in sizes)
        one, other = getattr(first, role), getattr(second, role)
        assert one.names == other.names and not (one.labels == other.labels).any()
        assert [digit(name) for name in list(sources(other))[1]] == other.labels.tolist()
        assert set(list(sources(getattr(rare, role)))[0]) == {"blank"}


def test_a_split_decides_everything(asked):
    again, other = (halves.tasks(16, split, 200, 0.02) for split in (1, 2))
    for ours, same, another in zip(sets(asked), sets(again), sets(other), strict=True):
        assert ours.digest == same.digest != another.digest and ours.labels.equal(same.labels)
    assert other["half B"].counts != asked["half B"].counts


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="pictures and the balanced list needs 153; lower largest"):
        halves.tasks(16, 1, 300, 0.02)


def test_views_keep_half_of_each_picture():
    drawn = views.parameters(torch.arange(20_000), views.POLICIES["halves"], 1, 0, 0, 16)
    begin, end = drawn["x"], drawn["x"] + drawn["width"]
    assert begin.max() <= 4 and end.min() >= 12 and not drawn["flip"].any()


@pytest.mark.parametrize(
    "half, able, unable",
    [
        (slice(0, 8), ["frequent classes"], ["half B", "rare classes"]),
        (slice(8, 16), ["half B", "rare classes"], ["frequent classes"]),
    ],
    ids=["A", "B"],
)
def test_who_sees_one_half_alone_answers_what_is_asked_of_it_and_no_more(asked, half, able, unable):
    encoder = SimpleNamespace(trunk=lambda pixels: pixels[:, 0, 4:12, half].flatten(1))
    found = {
        task: halves.separability(encoder, study, "float32", 100) for task, study in asked.items()
    }
    assert all(found[task] > 85 for task in able) and all(
        10 < found[task] < 30 for task in unable
    ), found


def test_accuracy_is_the_mean_over_disjoint_sets_of_labels(asked):
    encoder = SimpleNamespace(trunk=lambda pixels: pixels[:, 0, 4:12, :8].flatten(1))
    study = asked["frequent classes"]
    one, five, all_of_them = (
        halves.separability(encoder, study, "float32", count) for count in (2, 10, 100)
    )
    assert one < five < all_of_them
    assert five == halves.separability(encoder, study, "float32", 10)


def test_labels_teach_half_a_and_the_runs_stay_apart(tmp_path, monkeypatch):
    """From images to rows: a few epochs on labels help where the label is; what was measured is
    read again; the profile sees no run.
    """
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    small, apart = halves.tasks(16, 1, 60, 0.05), runs.Results("tiny")
    found, made = {}, []
    for method in ("untrained", "supervised"):
        run, images = train.plan(small["half B"], f"{method} long_tail", 1, 1, SETTINGS)
        train.pretrain(run, images, apart, progress=False)
        made.append(run)
        found[method] = halves.measure_halves(run, apart, small)
    rows = found["supervised"]
    assert list(rows) == ["task", "labels", "accuracy", "images"]
    assert len(rows) == 6 and set(rows.task) == set(halves.TASKS) and (rows.images == 250).all()
    gain = (rows.accuracy - found["untrained"].accuracy)[
        (rows.task == "frequent classes") & (rows.labels == 10)
    ].item()
    assert gain > 5
    monkeypatch.setattr(halves, "separability", None)
    assert halves.measure_halves(run, apart, small).equals(rows)
    apart.ask("halves", made, {})
    assert not apart.done() and len(apart.done("halves")) == 2
    assert figures._commits(rows.assign(run=run.name))[run.name] != "unknown"
