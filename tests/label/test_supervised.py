"""Lists, schedules and networks as published; the loop resumes, never sees the test set, and is
scored on its raw logits.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import shelf
import torch

from longtail.images import datasets, studies
from longtail.label import adjusted, supervised
from longtail.learn import encode, models, train
from longtail.measure.groups import size_groups
from longtail.papers import tables
from longtail.store import paths, runs

SCHEDULE = supervised.Schedule(
    epochs=4, batch_size=16, learning_rate=0.1, drops=(3,), drop=0.1, warmup_epochs=1
)
SETTINGS = {
    "dataset": "digits",
    "largest": 20,
    "architecture": "perceptron",
    "size": 8,
    "policy": "digits_classifier",
    "precision": "float32",
}


def golden(name):
    return json.loads((paths.ROOT / "tests" / "golden" / f"sup_{name}.json").read_text())["cases"]


@pytest.fixture(scope="module")
def source():
    return datasets.load("digits", 8)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "machine", dict)  # asks git, slowly
    return runs.Results("test")


def planned(
    source, arm="ce", tail="exponential ratio=10", split=1, seed=1, schedule=SCHEDULE, **changes
):
    settings = SETTINGS | changes
    images = supervised.long_tail(source, tail, settings["largest"], split)
    return supervised.run_of(images, arm, tail, split, seed, schedule, **settings), images


def interrupt(*_):
    raise KeyboardInterrupt


def trained(source, folder, arm="ce", **changes):
    run, images = planned(source, arm, **changes)
    return supervised.train_network(run, images, 10, folder)[0]


def method_of(run, counts):
    return adjusted.method_of(
        *adjusted.read_loss(f"{run.method} {run.options}"), counts, supervised.schedule_of(run)
    )


# ---- lists


@pytest.mark.parametrize("case", golden("class_counts"), ids=lambda case: case["name"])
def test_class_sizes_are_the_reference(case):
    inputs, classes = case["inputs"], {"cifar10": 10, "cifar100": 100}[case["inputs"]["dataset"]]
    kind = {"exp": "exponential", "step": "step"}[inputs["imbalance"]]
    counts = studies.long_tail_counts(
        inputs["n_train"] // classes, classes, 1 / inputs["ratio"], kind
    )
    assert counts == case["expected"]["counts"] and sum(counts) == case["expected"]["total"]
    assert counts[0] / counts[-1] == pytest.approx(case["expected"]["actual_ratio"], rel=1e-12)


@pytest.mark.parametrize("case", golden("subset_selection"), ids=lambda case: case["name"])
def test_chosen_images_are_the_reference(case):
    labels, want = np.array(case["inputs"]["targets"]), case["expected"]
    chosen = supervised.subset_indices(labels, want["counts"], case["inputs"]["seed"])
    assert chosen.tolist() == want["indices"] and labels[chosen].tolist() == want["targets"]


def test_split_0_ranks_classes_by_index_and_others_permute_them(source):
    counts = [
        np.bincount(supervised.long_tail(source, "exponential ratio=10", 20, split).labels).tolist()
        for split in (0, 1, 2)
    ]
    assert counts[0] == studies.long_tail_counts(20, 10, 0.1, "exponential")
    assert sorted(counts[1]) == sorted(counts[2]) == sorted(counts[0]) and counts[1] != counts[2]


def test_more_images_than_a_class_has_are_refused(source):
    with pytest.raises(
        ValueError,
        match="class 0 has 138 training images and the long tail needs 900; lower the largest class",
    ):
        planned(source, split=0, largest=900)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda: supervised.subset_indices([0, 0, 1], [1, -1], 0),
            "the long tail needs -1 images of class 1; give 0 or more",
        ),
        (
            lambda: supervised.subset_indices([0, 0, 1], [float("nan"), 1], 0),
            "the long tail needs nan images of class 0",
        ),
        (
            lambda: supervised.subset_indices([[0, 0, 1]], [1, 1], 0),
            r"labels are int64 of shape \(1, 3\)",
        ),
        (
            lambda: supervised.network_rows(torch.eye(2), torch.tensor([[0, 1]]), ["many", "few"]),
            r"labels are int64 of shape \(1, 2\)",
        ),
    ],
)
def test_bad_input_is_one_clear_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tail",
    [
        "exponential",
        "100",
        "exponential 100",
        "ratio=5",
        "step ratio=ten",
        "exponential ratio=0",
        "step ratio=0",
        "exponential ratio=nan",
        "step ratio=nan",
        "step ratio=inf",
        "exponential ratio=-10",
        "step ratio=0.5",
    ],
)
def test_a_tail_without_its_ratio_is_refused(source, tail):
    with pytest.raises(ValueError, match="write its kind and the ratio"):
        planned(source, tail=tail)


# ---- network, schedule, draw


@pytest.mark.parametrize(
    "classes, arm, parameters", [(10, "ce", 464_154), (100, "ce", 470_004), (10, "ldam", 464_144)]
)
def test_resnet32_has_the_published_parameters(source, classes, arm, parameters):
    run, _ = planned(source, arm, architecture="resnet32", size=32)
    network = supervised.Network(run, classes, method_of(run, [5] * classes))
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, classes)


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    kept = models.Padded(2, 6, 2, branches=1).kept(torch.arange(32.0).view(1, 2, 4, 4), 0)
    assert (
        kept.shape == (1, 6, 2, 2)
        and kept[0, 2].tolist() == [[0, 2], [8, 10]]
        and kept[0, 3].tolist() == [[16, 18], [24, 26]]
    )
    assert kept[0, [0, 1, 4, 5]].abs().sum() == 0


@pytest.mark.parametrize(
    "case",
    [case for case in golden("schedules") if case["inputs"]["kind"] == "lr"],
    ids=lambda case: case["name"],
)
def test_rates_are_the_reference(case):
    schedule = supervised.Schedule(
        200, 128, case["inputs"]["base_lr"], drops=(160, 180), drop=0.01
    )  # LDAM, VS and DDC, CIFAR
    assert schedule.epochs == case["inputs"]["epochs"]
    assert [
        supervised.warmed_rate(schedule, epoch) for epoch in range(schedule.epochs)
    ] == pytest.approx(case["expected"], rel=1e-9)


@pytest.mark.parametrize("case", golden("cb_resampling"), ids=lambda case: case["name"])
def test_resampling_draws_with_the_reference_probabilities(case):
    counts, want = case["inputs"]["counts"], case["expected"]
    weights = (
        adjusted.method_of("resampling", {"b": case["inputs"]["beta"]}, counts, SCHEDULE)
        .draw(0)
        .cpu()
    )
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    each = weights[labels] / weights[labels].sum()
    firsts = np.cumsum([0, *counts[:-1]])
    assert each[firsts].tolist() == pytest.approx(want["per_sample_probability_by_class"], rel=1e-9)
    inverse = adjusted.inverse_weights(counts, 1.0) * torch.tensor(counts)
    assert (inverse / inverse.sum()).tolist() == pytest.approx(
        want["inverse_frequency_class_probability"], rel=1e-9
    )
    orders = [supervised.order_of(labels, weights, 1, epoch) for epoch in range(60)]
    assert any(len(order.unique()) < len(order) for order in orders) == want["replacement"]
    drawn = torch.stack([torch.bincount(labels[order], minlength=len(counts)) for order in orders])
    assert (drawn.sum(1) == want["epoch_length"]).all()
    share, deviation = drawn.sum(0) / drawn.sum(), (0.25 / drawn.sum()) ** 0.5
    assert (share - torch.tensor(want["class_probability"])).abs().max() < 5 * deviation


def test_the_loop_trains_on_what_was_drawn():
    labels, seen = torch.arange(2).repeat_interleave(torch.tensor([380, 20])), []

    def inputs(order, epoch):
        seen.append(labels[order])
        return torch.nn.functional.one_hot(labels[order]).float()

    for arm, share in (("ce", 0.05), ("resampling", 0.5)):
        plan, layer = (
            adjusted.method_of(*adjusted.read_loss(arm), [380, 20], SCHEDULE),
            torch.nn.Linear(2, 2),
        )
        optimizer = supervised.optimizer_of(layer, layer, plan, SCHEDULE)
        update = supervised.Update(layer, optimizer, labels)
        losses = [
            supervised.train_labelled_epoch(update, inputs, labels, plan, SCHEDULE, 1, epoch).mean()
            for epoch in range(SCHEDULE.epochs)
        ]
        assert len(losses) == len(seen) == SCHEDULE.epochs and losses[-1] < losses[0]
        assert torch.cat(seen).double().mean().item() == pytest.approx(share, abs=0.06)
        assert layer(torch.eye(2)).argmax(1).tolist() == [0, 1]
        seen.clear()


def test_plain_epochs_show_every_image_once_in_another_order():
    labels = torch.zeros(50, dtype=torch.int64)
    first, second = (supervised.order_of(labels, None, 3, epoch) for epoch in (0, 1))
    assert (
        sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
        and first.tolist() != second.tolist()
    )
    assert (
        supervised.order_of(labels, None, 3, 0).tolist()
        == first.tolist()
        != supervised.order_of(labels, None, 4, 0).tolist()
    )


def test_an_image_drawn_twice_is_seen_in_two_views(source, tmp_path, monkeypatch):
    seen = []

    def train_epoch(update, inputs, *rest):
        seen.append(inputs(torch.zeros(40, dtype=torch.int64), 0))
        raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "train_labelled_epoch", train_epoch)
    for k, policy in enumerate(("digits_classifier", "")):
        with pytest.raises(KeyboardInterrupt):
            trained(source, tmp_path / str(k), policy=policy)
    assert len(seen[0].unique(dim=0)) > 5 and len(seen[1].unique(dim=0)) == 1


def test_cosines_do_not_know_lengths():
    layer, features = supervised.Cosine(6, 4), torch.randn(5, 6)
    torch.testing.assert_close(layer(features), layer(7 * features))
    assert layer(features).abs().max() <= 1 and layer(layer.weight).argmax(1).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_the_bias_of_sigmoid_losses_starts_improbable_and_does_not_decay(source):
    run, _ = planned(source, "sigmoid_focal")
    network = supervised.Network(run, 10, method_of(run, [5] * 10))
    optimizer = supervised.optimizer_of(network, network.layer, method_of(run, [5] * 10), SCHEDULE)
    assert network.layer.bias.tolist() == pytest.approx([-np.log(9)] * 10)
    decays = {
        id(weight): group["weight_decay"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert (
        decays.pop(id(network.layer.bias)) == 0
        and set(decays.values()) == {2e-4}
        and len(decays) == 5
    )


# ---- the loop


def test_resumed_equals_uninterrupted(source, tmp_path, monkeypatch):
    whole = trained(source, tmp_path / "a", "ddc").state_dict()
    run, images = planned(source, "ddc")
    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
    ):  # dies in the last epoch
        whole_epoch = supervised.train_labelled_epoch
        patched.setattr(
            supervised,
            "train_labelled_epoch",
            lambda *given: whole_epoch(*given) if given[-1] < SCHEDULE.epochs - 1 else interrupt(),
        )
        supervised.train_network(run, images, 10, tmp_path / "b", checkpoint_seconds=0)
    assert len(train.load_checkpoint(run, tmp_path / "b" / "last.pt")["log"]) == SCHEDULE.epochs - 1
    resumed = supervised.train_network(run, images, 10, tmp_path / "b")[0].state_dict()
    assert whole.keys() == resumed.keys() and all(
        torch.equal(whole[key], resumed[key]) for key in whole
    )
    assert (tmp_path / "b" / "log.csv").read_text().count("\n") == SCHEDULE.epochs + 1


def test_test_labels_do_not_reach_training(source, results):
    run, images = planned(source)
    profiles = [shelf.apart(name) for name in "ab"]
    rows = [
        supervised.train_and_score(replace(source.test, labels=labels), 10, run, images, profile)
        for profile, labels in zip(
            profiles, (source.test.labels, source.test.labels.roll(1)), strict=True
        )
    ]
    first, second = (
        (profile.folder(run) / "log.csv").read_text().split("\n") for profile in profiles
    )
    assert [line.rsplit(",", 1)[0] for line in first] == [line.rsplit(",", 1)[0] for line in second]
    assert not rows[0].accuracy.equals(rows[1].accuracy)


def test_decisions_are_by_raw_logits(source, results):
    """Scales, shifts and margins belong to training: the largest plain logit is what is scored."""
    run, images = planned(source, "vs gamma=0.3", tail="exponential ratio=20")
    rows = supervised.train_and_score(source.test, 10, run, images, results)
    network = trained(source, results.root / "again", "vs gamma=0.3", tail="exponential ratio=20")
    logits = encode.in_chunks(network, source.test.images)
    right = (logits.argmax(1) == source.test.labels).double().mean().item()
    assert rows.set_index("group").accuracy["all"] == pytest.approx(100 * right)
    spec = adjusted.vs(np.bincount(images.labels), 0.3, 1.0)
    assert (spec.beta * logits + spec.iota).argmax(1).ne(logits.argmax(1)).any()


def test_plain_cross_entropy_is_also_decided_after_adjustment(source, results):
    run, images = planned(source)
    rows = supervised.train_and_score(source.test, 10, run, images, results)
    logits = encode.in_chunks(trained(source, results.root / "again"), source.test.images)
    decided = {
        "ce": logits.argmax(1),
        "posthoc_la": (
            logits - torch.tensor(np.bincount(images.labels) / len(images)).log()
        ).argmax(1),
    }
    right = {
        method: 100 * (chosen == source.test.labels).double().mean().item()
        for method, chosen in decided.items()
    }
    assert (
        rows[rows.group == "all"].set_index("method").accuracy.to_dict() == pytest.approx(right)
        and right["ce"] != right["posthoc_la"]
    )
    assert supervised.train_and_score(
        source.test, 10, *planned(source, "la"), results
    ).method.unique().tolist() == ["la"]


def test_scores_by_hand_on_an_uneven_test_set():
    logits, labels = torch.eye(3)[[0, 0, 0, 0, 1, 0]], torch.tensor([0, 0, 0, 0, 1, 2])
    rows = {
        group: (accuracy, images)
        for group, accuracy, images in supervised.network_rows(
            logits, labels, ["many", "medium", "few"]
        )
    }
    assert rows["many"] == (100, 4) and rows["few"] == (0, 1) and rows["class 1"] == (100, 1)
    assert rows["balanced"] == (pytest.approx(200 / 3), 6) and rows["all"] == (
        pytest.approx(500 / 6),
        6,
    )


def test_measured_once_and_read_with_its_settings(source, results, monkeypatch):
    jobs = [planned(source, arm) for arm in ("ce", "ldam_drw max_m=0.3")]
    results.ask("labels", [run for run, _ in jobs], {})
    supervised.train_all(jobs, source, results, 1)
    monkeypatch.setattr(supervised, "train_network", None)
    supervised.train_all(jobs, source, results, 1)
    found = tables.with_labels(results)
    assert set(found.run) == {run.name for run, _ in jobs} and set(found.method) == {
        "ce",
        "posthoc_la",
        "ldam_drw",
    }
    assert set(found.arm) == {"ce", "ldam_drw b=0.9999 max_m=0.3 s=30.0"}
    row = found[found.group == "all"].iloc[0]
    assert (row.dataset, row.imbalance, row.ratio, row.epochs, row.drops, row.jpeg) == (
        "digits",
        "exponential ratio=10",
        10,
        4,
        "3",
        False,
    )
    assert (
        not list(results.store.rglob("last.pt"))
        and not results.scores().size
        and not runs.Results("other").scores("labels").size
    )
    another = runs.Results("another")  # which asks for the same: nothing is trained again
    another.ask("labels", [run for run, _ in jobs], {})
    supervised.train_all(jobs, source, another, 1)
    assert len(another.scores("labels")) == len(found) and not another.missing()


@pytest.mark.parametrize(
    "change",
    [
        {"arm": "ce start=2"},
        {"arm": "ldam"},
        {"tail": "step ratio=10"},
        {"tail": "exponential ratio=5"},
        {"split": 2},
        {"seed": 2},
        {"policy": ""},
        {"schedule": replace(SCHEDULE, drop=0.01)},
        {"precision": "bfloat16"},
        {"largest": 21},
    ],
)
def test_every_choice_changes_the_name(source, change):
    run, other = planned(source)[0], planned(source, **change)[0]
    assert run.name != other.name and run.name == planned(source)[0].name
    assert run.name == f"ce-digits_exponential10-split1-seed1-{run.digest}"


def test_an_infinite_loss_stops_the_run(source, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"loss is (nan|inf) at step \d+; lower the learning rate"
    ):
        trained(source, tmp_path, schedule=replace(SCHEDULE, learning_rate=1e30))


def test_bfloat16_networks_give_single_precision(source, tmp_path):
    network = trained(source, tmp_path, precision="bfloat16")
    assert network(source.test.images[:3] / 255).dtype == torch.float32


def test_an_even_list_has_no_groups_and_all_its_scores():
    logits, labels = torch.eye(4)[[0, 1, 2, 2]], torch.arange(4)
    rows = supervised.network_rows(logits, labels, size_groups([7, 7, 7, 7], "thirds"))
    assert [group for group, *_ in rows] == [
        "balanced",
        "all",
        "class 0",
        "class 1",
        "class 2",
        "class 3",
    ] and rows[0][1] == 75


@pytest.mark.parametrize(
    "architecture, normal",
    [("resnet32", models.CIFAR_NORMAL), ("resnet10_small", (models.MEAN, models.STD))],
)
def test_the_published_network_has_the_published_constants(source, architecture, normal):
    run, _ = planned(source, architecture=architecture)
    trunk = supervised.Network(run, 3, method_of(run, [3, 2, 1])).trunk
    assert [values.flatten().tolist() for values in (trunk.mean, trunk.std)] == [
        pytest.approx(values) for values in normal
    ]
