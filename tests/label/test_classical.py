"""Thresholds, local clusters and synthetic points by their definitions; heads on a frozen encoder
end to end.
"""

import json

import numpy as np
import pytest
import torch

from longtail.images import studies
from longtail.label import adjusted, classical, supervised
from longtail.learn import train
from longtail.store import paths, runs

SCHEDULE = supervised.Schedule(
    epochs=10, batch_size=64, learning_rate=0.1, drops=(8,), drop=0.1, warmup_epochs=0
)


def golden(name):
    return json.loads((paths.ROOT / "tests" / "golden" / f"sup_{name}.json").read_text())["cases"]


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


BOTH = (torch.float64, 1e-9), (torch.float32, 1e-5)  # precisions and their relative bounds


def named(name):
    return pytest.mark.parametrize("case", golden(name), ids=lambda case: case["name"])


# ---- decisions


@named("threshold_moving")
def test_moved_thresholds_are_the_definition(case):
    inputs, want = case["inputs"], case["expected"]
    for dtype, bound in BOTH:
        probabilities, cost = (tensor(inputs[key], dtype) for key in ("probabilities", "cost"))
        moved = classical.move_threshold(probabilities, cost)
        torch.testing.assert_close(
            moved, tensor(want["moved_probabilities"], dtype), rtol=bound, atol=0
        )
        assert moved.argmax(1).tolist() == want["prediction"]
        if want["equals_logit_adjustment"]:
            shifted = adjusted.posthoc_logit_adjust(
                probabilities.log(), inputs["counts"], float(case["name"].split("tau")[1])
            )
            assert shifted.argmax(1).tolist() == moved.argmax(1).tolist()


def test_moved_thresholds_are_not_the_least_expected_cost_where_costs_of_a_row_differ():
    differ = 0
    for case in golden("threshold_moving"):
        cost, least = (
            tensor(case["inputs"]["cost"]),
            case["expected"]["minimum_expected_cost_prediction"],
        )
        moved = (
            classical.move_threshold(tensor(case["inputs"]["probabilities"]), cost)
            .argmax(1)
            .tolist()
        )
        if all(row[row > 0].unique().numel() == 1 for row in cost):
            assert moved == least
        differ += moved != least
    assert differ == 5  # as the golden file says of all its cases


def test_rows_of_equal_costs_give_the_least_expected_cost():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 4, generator=generator).softmax(1)
    cost = (torch.rand(4, 1, generator=generator) + 0.1).expand(4, 4).clone().fill_diagonal_(0)
    assert (
        classical.move_threshold(probabilities, cost).argmax(1) == (probabilities @ cost).argmin(1)
    ).all()


@named("plugin_am")
def test_plugin_threshold_is_the_definition(case):
    labels, want = torch.tensor(case["inputs"]["labels"]), case["expected"]
    threshold, truth = classical.plugin_threshold(labels), (labels > 0).long()
    assert threshold == pytest.approx(want["threshold"], rel=1e-12)
    for dtype, _ in BOTH:
        eta = tensor(case["inputs"]["eta"], dtype)
        assert torch.where(eta > threshold, 1, -1).tolist() == want["prediction"]
        shifted = adjusted.posthoc_logit_adjust(
            torch.stack([1 - eta, eta], 1).log(), torch.bincount(truth), 1.0
        )
        assert (
            torch.where(shifted.argmax(1) > 0, 1, -1).tolist() == want["prediction"]
        )  # the same rule in another form
        for cut, expected in (
            (threshold, {"balanced": "am", "class 0": "tnr", "class 1": "tpr"}),
            (0.5, {"balanced": "am_at_half"}),
        ):
            rows = supervised.network_rows(
                torch.stack([cut - eta, eta - cut], 1), truth, ["many", "few"]
            )
            found = {group: accuracy / 100 for group, accuracy, _ in rows}
            assert {key: found[group] for group, key in expected.items()} == pytest.approx(
                {key: want[key] for key in expected.values()}
            )


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
    for dtype, _ in BOTH:
        scores = tensor(inputs["sublabel_scores"], dtype).log()
        for together, key in (
            (torch.amax, "labels_from_argmax_subscore"),
            (torch.logsumexp, "labels_from_summed_subscores"),
        ):
            assert classical.class_logits(scores, of_sub, together).argmax(1).tolist() == want[key]


def test_large_classes_are_cut_and_small_ones_copied():
    assert classical.cluster_sizes([100, 40, 20, 10, 3]) == [[5, 2, 1, 1, 1], [1, 1, 1, 2, 7]]


def test_clusters_are_found_inside_their_class():
    features = torch.tensor([[0.0], [0.1], [9.0], [9.1], [0.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    cluster = classical.local_clusters(features, labels, [2, 1])
    assert cluster[0] == cluster[1] != cluster[2] == cluster[3] and cluster[4:].tolist() == [0, 0]


# ---- SMOTE


@pytest.mark.parametrize(
    "case",
    [case for case in golden("smote") if "X" in case["inputs"]],
    ids=lambda case: case["name"],
)
def test_synthetic_points_lie_between_near_ones_of_their_class(case):
    inputs, want = case["inputs"], case["expected"]
    features, labels, neighbours = (
        np.array(inputs["X"]),
        np.array(inputs["y"]),
        inputs["k_neighbors"],
    )
    rows, grown = classical.resize_classes(
        features, labels, dict(enumerate(want["counts_after"])), neighbours, 3
    )
    new, of_new = rows[len(labels) :], grown[len(labels) :]
    assert np.bincount(grown).tolist() == want["counts_after"]
    assert np.bincount(of_new, minlength=len(want["n_synthetic"])).tolist() == want["n_synthetic"]
    kept = (rows[: len(labels)] == features).all() and (grown[: len(labels)] == labels).all()
    assert kept == want["originals_first_and_unchanged"]
    for point, label in zip(new, of_new, strict=True):
        assert ways(point, features, np.flatnonzero(labels == label), neighbours)
    for point, label, way in zip(
        *(want[key] for key in ("example_synthetic", "example_synthetic_label", "witness")),
        strict=True,
    ):
        found = ways(np.array(point), features, np.flatnonzero(labels == label), neighbours)
        assert found[way["base"], way["neighbour"]] == pytest.approx(
            way["gap"]
        )  # so the check itself is right


def ways(point, features, members, neighbours):
    """Every (base, neighbour) of a class, with its gap, where a point is base + gap · (neighbour −
    base), one gap for all coordinates.
    """
    found = {}
    for base in members:
        near = members[
            np.argsort(np.linalg.norm(features[members] - features[base], axis=1), kind="stable")[
                1 : neighbours + 1
            ]
        ]
        way, gone = features[near] - features[base], point - features[base]
        gap = (way @ gone) / (way**2).sum(1)
        fits = (np.abs(gap[:, None] * way - gone).max(1) < 1e-9) & (gap > -1e-9) & (gap < 1 + 1e-9)
        found |= {
            (base, neighbour): size for neighbour, size in zip(near[fits], gap[fits], strict=True)
        }
    return found


@pytest.mark.parametrize(
    "case",
    [case for case in golden("smote") if "majority" in case["inputs"]],
    ids=lambda case: case["name"],
)
def test_under_sampling_follows(case):
    sizes = case["inputs"]["majority"], case["inputs"]["minority"]
    labels = np.repeat([0, 1], sizes)
    features = np.random.default_rng(0).normal(size=(sum(sizes), 3))
    rows, changed = classical.resize_classes(
        features, labels, dict(enumerate(case["expected"]["counts_after"]))
    )
    assert np.bincount(changed).tolist() == case["expected"]["counts_after"]
    assert {tuple(row) for row in rows[changed == 0]} <= {
        tuple(row) for row in features[labels == 0]
    }


# ---- bad input: one line that names it


def resized(counts, sizes, neighbours):
    return classical.resize_classes(
        np.zeros((sum(counts), 2)), np.repeat(range(len(counts)), counts), sizes, neighbours
    )


def moved(costs):
    return classical.move_threshold(torch.ones(2, 2) / 2, torch.tensor([costs, [1.0, 0.0]]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda: resized([10, 4], {0: 10, 1: 10}, 5),
            "class 1 has 4 images, SMOTE with 5 neighbours needs 6; ask for at most 3",
        ),
        (lambda: resized([10, 1], {1: 2}, 0), "0 neighbours; SMOTE needs at least one"),
        (
            lambda: resized([10, 1], {1: 2}, 1),
            "class 1 has 1 images, SMOTE with 1 neighbours needs 2; leave the class out",
        ),
        (
            lambda: resized([10], {1: 2}, 5),
            "class 1 has 0 images, SMOTE with 5 neighbours needs 6; leave the class out",
        ),
        (
            lambda: resized([10, 4], {0: -3}, 2),
            "-3 images of class 0 are asked for; ask for 0 or more",
        ),
        (
            lambda: classical.resize_classes(np.zeros((4, 2)), [[0], [0], [0], [1]], {0: 2}),
            r"labels are int64 of shape \(4, 1\)",
        ),
        (lambda: moved([0.0, -1.0]), "a cost is negative or not finite"),
        (lambda: moved([0.0, np.nan]), "a cost is negative or not finite"),
        (lambda: moved([0.0, np.inf]), "a cost is negative or not finite"),
        (lambda: moved([1.0, 1.0]), "on the diagonal is not 0"),
        (
            lambda: classical.move_threshold(torch.ones(2, 2) / 2, torch.zeros(2, 2)),
            "no class of image 0 has both a probability and a cost",
        ),
        (
            lambda: classical.move_threshold(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])),
            "no class of image 1 has both",
        ),
        (
            lambda: classical.move_threshold(torch.ones(2, 3) / 3, torch.zeros(2, 2)),
            r"shape \(2, 2\) for 3 classes",
        ),
        (lambda: classical.cluster_sizes([5, float("nan")]), "class 1 has nan training images"),
        (
            lambda: classical.sub_labels([[0, 1]], [0, 0], [1, 1]),
            r"labels are int64 of shape \(1, 2\)",
        ),
        (lambda: classical.oversampled([0.0, 1.0], [1, 1]), "labels are float32"),
        (
            lambda: classical.local_clusters(torch.zeros(2, 2), [[0], [1]], [1, 1]),
            r"labels are int64 of shape \(2, 1\)",
        ),
        (lambda: classical.plugin_threshold([[-1, 1]]), r"labels are int64 of shape \(1, 2\)"),
        (lambda: classical.plugin_threshold([-1, -1]), "0 of 2 labels are positive"),
        (
            lambda: classical.local_clusters(torch.zeros(3, 2), torch.tensor([0, 0, 1]), [1, 2]),
            "class 1 has 1 images for 2 clusters",
        ),
    ],
)
def test_bad_input_is_one_clear_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_labels_of_any_whole_numbers_are_the_same_labels():
    features, clusters = np.random.default_rng(0).normal(size=(9, 2)), [2, 1]
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    for given in (labels.tolist(), labels.int(), labels.numpy().astype(np.uint8)):
        cluster = classical.local_clusters(features, given, clusters)
        assert cluster.tolist() == classical.local_clusters(features, labels, clusters).tolist()
        assert (
            classical.sub_labels(given, cluster, clusters)[0].tolist()
            == classical.sub_labels(labels, cluster, clusters)[0].tolist()
        )
        assert (
            classical.oversampled(given, [1, 2]).tolist()
            == classical.oversampled(labels, [1, 2]).tolist()
        )
        assert classical.plugin_threshold(given) == classical.plugin_threshold(labels)
        for ours, other in zip(
            *(classical.resize_classes(features, which, {1: 6}, 2) for which in (given, labels)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, other)


# ---- heads


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """A study, its results and a finished run: an encoder as it was initialised."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "machine", dict)
    study = studies.study("digits", 16, 1, 30, 0.1, "exponential", outsiders="letters")
    results = runs.Results("test")
    run = runs.Run(
        dataset="digits",
        subset="long_tail",
        split=1,
        seed=1,
        method="simclr",
        head_layers=2,
        architecture="convnet",
        size=16,
        policy="digits",
        epochs=1,
        batch_size=64,
        learning_rate=0.01,
        weight_decay=0.0,
        warmup_epochs=0,
        temperature=0.2,
        prune_fraction=0.9,
        precision="float32",
        images=study.seed.digest,
    )
    train.pretrain(run, study.seed, results, progress=False)
    results.ask("arms", [run], {})
    return run, results, study


def test_heads_learn_on_a_frozen_encoder_and_are_measured_once(encoder, monkeypatch):
    run, results, study = encoder
    before = (results.folder(run) / "encoder.safetensors").read_bytes()
    arms = ["ce", "posthoc_la", "la", "cb", "ldam", "resampling", "smote", "cog", "cog_os"]
    rows = classical.heads(*encoder, arms, SCHEDULE, neighbours=2)
    overall = rows[rows.group == "balanced"].set_index("head").accuracy
    assert list(overall.index) == arms and (overall > 20).all()  # ten classes
    few = rows[rows.group == "few"].set_index("head").accuracy
    assert few["posthoc_la"] > few["ce"]
    assert (results.folder(run) / "encoder.safetensors").read_bytes() == before
    monkeypatch.setattr(classical, "head_logits", None)
    assert classical.heads(*encoder, arms, SCHEDULE, neighbours=2).equals(rows)
    assert set(results.read("heads")["head"]) == set(arms)


def test_heads_see_what_the_classical_methods_prepare():
    counts = [32, 12, 4]
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    features = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    grown, new, of_sub = classical.prepared("smote", features, labels, counts, 3, 0)
    assert (
        torch.bincount(new).tolist() == [16, 16, 16]
        and of_sub.tolist() == [0, 1, 2]
        and len(grown) == 48
    )
    _, subs, of_sub = classical.prepared("cog", features, labels, counts, 3, 0)
    assert of_sub.tolist() == [0, 0, 0, 1, 2] and torch.bincount(of_sub[subs]).tolist() == counts
    _, subs, of_sub = classical.prepared("cog_os", features, labels, counts, 3, 0)
    assert torch.bincount(of_sub[subs]).tolist() == [32, 12, 12]
