"""Thresholds, local clusters and synthetic points by their definitions; heads on a frozen encoder end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from longtail import classical, data, imbalance, paths, runs, supervised, train

SCHEDULE = supervised.Schedule(epochs=10, batch_size=64, learning_rate=0.1, drops=(8,), drop=0.1, warmup_epochs=0)


def golden(name):
    return json.loads((Path(__file__).parent / "golden" / f"sup_{name}.json").read_text())["cases"]


def named(name):
    return pytest.mark.parametrize("case", golden(name), ids=lambda case: case["name"])


# ---- decisions

@named("threshold_moving")
def test_moved_thresholds_are_the_definition(case):
    probabilities, cost = (torch.tensor(case["inputs"][key], dtype=torch.float64) for key in ("probabilities", "cost"))
    moved = classical.move_threshold(probabilities, cost)
    torch.testing.assert_close(moved, torch.tensor(case["expected"]["moved_probabilities"], dtype=torch.float64), rtol=1e-9, atol=0)
    assert moved.argmax(1).tolist() == case["expected"]["prediction"]
    if case["expected"]["equals_logit_adjustment"]:
        tau = float(case["name"].split("tau")[1])
        adjusted = imbalance.posthoc_logit_adjust(probabilities.log(), case["inputs"]["counts"], tau)
        assert adjusted.argmax(1).tolist() == moved.argmax(1).tolist()


def test_rows_of_equal_costs_give_the_least_expected_cost():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 4, generator=generator).softmax(1)
    cost = (torch.rand(4, 1, generator=generator) + 0.1).expand(4, 4).clone().fill_diagonal_(0)
    assert (classical.move_threshold(probabilities, cost).argmax(1) == (probabilities @ cost).argmin(1)).all()


@named("plugin_am")
def test_plugin_threshold_is_the_definition(case):
    labels, eta, want = np.array(case["inputs"]["labels"]), np.array(case["inputs"]["eta"]), case["expected"]
    threshold = classical.plugin_threshold(labels)
    assert threshold == pytest.approx(want["threshold"], rel=1e-12)
    for cut, key in ((threshold, "am"), (0.5, "am_at_half")):
        assert balanced_accuracy_score(labels, np.where(eta > cut, 1, -1)) == pytest.approx(want[key], rel=1e-12)


# ---- COG

@named("cog")
def test_sub_labels_and_copies_are_the_definition(case):
    inputs, want = case["inputs"], case["expected"]
    labels = torch.tensor(inputs["labels"])
    subs, of_sub = classical.sub_labels(labels, inputs["cluster"], inputs["clusters_per_class"])
    assert subs.tolist() == want["sublabels"] and of_sub.tolist() == want["sublabel_to_class"]
    assert torch.bincount(subs).tolist() == want["subclass_sizes"]
    assert of_sub[torch.tensor(inputs["predicted_sublabels"])].tolist() == want["predicted_labels"]
    index = classical.oversampled(labels, inputs["replication"])
    assert sorted(index.tolist()) == sorted(want["oversampled_index_multiset"])
    assert torch.bincount(subs[index]).tolist() == want["oversampled_subclass_sizes"]


def test_large_classes_are_cut_and_small_ones_copied():
    assert classical.cluster_sizes([100, 40, 20, 10, 3]) == [[5, 2, 1, 1, 1], [1, 1, 1, 2, 7]]


def test_clusters_are_found_inside_their_class():
    features = torch.tensor([[0.0], [0.1], [9.0], [9.1], [0.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    cluster = classical.local_clusters(features, labels, [2, 1])
    assert cluster[0] == cluster[1] != cluster[2] == cluster[3] and cluster[4:].tolist() == [0, 0]


# ---- SMOTE

@pytest.mark.parametrize("case", [case for case in golden("smote") if "X" in case["inputs"]], ids=lambda case: case["name"])
def test_synthetic_points_lie_between_near_ones_of_their_class(case):
    inputs, want = case["inputs"], case["expected"]
    features, labels = np.array(inputs["X"]), np.array(inputs["y"])
    rows, grown = classical.resize_classes(features, labels, dict(enumerate(want["counts_after"])), inputs["k_neighbors"], 3)
    assert np.bincount(grown).tolist() == want["counts_after"]
    assert (rows[:len(labels)] == features).all() and (grown[:len(labels)] == labels).all()
    for point, label in zip(rows[len(labels):], grown[len(labels):], strict=True):
        assert between(point, features[labels == label], inputs["k_neighbors"])


def between(point, members, neighbours):
    """Whether a point is base + gap · (neighbour − base) for one member and one of its nearest, with one gap for all coordinates."""
    for base in members:
        nearest = members[np.argsort(np.linalg.norm(members - base, axis=1), kind="stable")[1:neighbours + 1]]
        way, gone = nearest - base, point - base
        gap = (way @ gone) / (way ** 2).sum(1)
        if ((np.abs(gap[:, None] * way - gone).max(1) < 1e-9) & (gap > -1e-9) & (gap < 1 + 1e-9)).any():
            return True
    return False


@pytest.mark.parametrize("case", [case for case in golden("smote") if "majority" in case["inputs"]], ids=lambda case: case["name"])
def test_under_sampling_follows(case):
    sizes = case["inputs"]["majority"], case["inputs"]["minority"]
    labels = np.repeat([0, 1], sizes)
    features = np.random.default_rng(0).normal(size=(sum(sizes), 3))
    rows, changed = classical.resize_classes(features, labels, dict(enumerate(case["expected"]["counts_after"])))
    assert np.bincount(changed).tolist() == case["expected"]["counts_after"]
    assert {tuple(row) for row in rows[changed == 0]} <= {tuple(row) for row in features[labels == 0]}


# ---- bad input: one line that names it

@pytest.mark.parametrize("wrong, message", [
    (lambda: classical.resize_classes(np.zeros((14, 2)), np.repeat([0, 1], [10, 4]), {0: 10, 1: 10}), "class 1 has 4 images, SMOTE with 5"),
    (lambda: classical.resize_classes(np.zeros((11, 2)), np.repeat([0, 1], [10, 1]), {1: 2}, 0), "0 neighbours; SMOTE needs at least one"),
    (lambda: classical.move_threshold(torch.ones(2, 2) / 2, torch.tensor([[0.0, -1.0], [1.0, 0.0]])), "a cost is negative"),
    (lambda: classical.move_threshold(torch.ones(2, 2) / 2, torch.ones(2, 2)), "on the diagonal is not 0"),
    (lambda: classical.move_threshold(torch.ones(2, 3) / 3, torch.zeros(2, 2)), r"shape \(2, 2\) for 3 classes"),
    (lambda: classical.plugin_threshold([-1, -1]), "0 of 2 labels are positive"),
    (lambda: classical.local_clusters(torch.zeros(3, 2), torch.tensor([0, 0, 1]), [1, 2]), "class 1 has 1 images for 2 clusters")])
def test_bad_input_is_one_clear_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


# ---- heads

@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A study, its results and a finished run: an encoder as it was initialised."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "machine", dict)
    study = data.study("digits", 16, 1, 30, 0.1, "exponential", outsiders="letters")
    results = runs.Results("test")
    run = runs.Run(dataset="digits", subset="long_tail", split=1, seed=1, method="simclr", head_layers=2, architecture="convnet", size=16,
                   policy="digits", epochs=1, batch_size=64, learning_rate=0.01, weight_decay=0.0, warmup_epochs=0, temperature=0.2,
                   prune_fraction=0.9, precision="float32", images=study.seed.digest)
    train.pretrain(run, study.seed, results, progress=False)
    return run, results, study


def test_heads_learn_on_a_frozen_encoder_and_are_measured_once(encoder, monkeypatch):
    run, results, study = encoder
    before = (results.folder(run) / "encoder.pt").read_bytes()
    arms = ["ce", "posthoc_la", "la", "cb", "ldam", "resampling", "smote", "cog", "cog_os"]
    rows = classical.heads(*encoder, arms, SCHEDULE, neighbours=2)
    overall = rows[rows.group == "balanced"].set_index("head").accuracy
    assert list(overall.index) == arms and (overall > 20).all()         # ten classes
    few = rows[rows.group == "few"].set_index("head").accuracy
    assert few["posthoc_la"] > few["ce"]
    assert (results.folder(run) / "encoder.pt").read_bytes() == before
    monkeypatch.setattr(classical, "head_logits", None)
    assert classical.heads(*encoder, arms, SCHEDULE, neighbours=2).equals(rows)
    assert set(results.read("heads")["head"]) == set(arms)


def test_heads_see_what_the_classical_methods_prepare():
    counts = [32, 12, 4]
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    features = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    grown, new, of_sub = classical.prepared("smote", features, labels, counts, 3, 0)
    assert torch.bincount(new).tolist() == [16, 16, 16] and of_sub.tolist() == [0, 1, 2] and len(grown) == 48
    _, subs, of_sub = classical.prepared("cog", features, labels, counts, 3, 0)
    assert of_sub.tolist() == [0, 0, 0, 1, 2] and torch.bincount(of_sub[subs]).tolist() == counts
    _, subs, of_sub = classical.prepared("cog_os", features, labels, counts, 3, 0)
    assert torch.bincount(of_sub[subs]).tolist() == [32, 12, 12]
