"""Groups, their summary, and the protocols on a toy study: what is measured, and that it is
measured once.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from longtail.images import studies
from longtail.learn import encode, train
from longtail.measure import evaluate, probes
from longtail.measure.groups import SIZE_GROUPS, size_groups, summary
from longtail.store import paths, runs

GOLDEN = json.loads((paths.ROOT / "tests" / "golden" / "group_metrics.json").read_text())
CASES = [case for case in GOLDEN["cases"] if "train_counts" in case]
AGGREGATE = GOLDEN["cases"][-1]
COLUMNS = ["protocol", "selection", "group", "accuracy", "images", "sd", "repeats"]
STEPWISE = {
    name: how for name, how in evaluate.PROTOCOLS.items() if isinstance(how, evaluate.Protocol)
}
ONCE = {"classifier_seeds": 1, "label_sets": 1}


# ---- groups


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["dataset"])
def test_groups_and_their_summary_are_the_reference(case):
    groups = size_groups(
        case["train_counts"], "thresholds" if case["dataset"] == "imagenet100" else "thirds"
    )
    assert {
        name: [label for label, group in enumerate(groups) if group == name] for name in SIZE_GROUPS
    } == case["groups"]
    right = (
        case["correct_per_class"]
        if "correct_per_class" in case
        else np.diag(case["confusion_rows_true"])
    )
    found = summary(100 * np.array(right) / case["test_per_class"], groups)
    assert list(found) == ["many", "medium", "few", "balance", "all"]
    for bound, expected in (
        ("exact_abs", case["exact"]),
        ("reference_abs", case["reference_from_rounded_log"]),
    ):
        ours = {"std" if name == "balance" else name: value for name, value in found.items()}
        assert ours == pytest.approx(expected, abs=GOLDEN["tolerance"][bound], rel=0)


def test_balance_is_averaged_over_runs():
    balances = [
        summary(means, SIZE_GROUPS)["balance"] for means in AGGREGATE["runs_many_medium_few"]
    ]
    assert np.mean(balances) == pytest.approx(
        AGGREGATE["aggregate"]["std"]["mean"], abs=GOLDEN["tolerance"]["exact_abs"]
    )
    assert np.std(balances) == pytest.approx(
        AGGREGATE["aggregate"]["std"]["err"], abs=GOLDEN["tolerance"]["exact_abs"]
    )


@pytest.mark.parametrize(
    "rule, counts, expected",
    [
        ("thirds", [5, 9, 1, 7], "medium many few many"),
        ("thirds", [1, 2, 3, 4, 5, 6], "few few medium medium many many"),
        ("thresholds", [101, 100, 20, 19], "many medium medium few"),
        ("thresholds", [7, 7], "few few"),
        ("thirds", studies.long_tail_counts(50, 10, 0.1, "step"), "many " * 5 + "few " * 5),
        ("thirds", [9, 9, 3, 3, 3], "many many few few few"),
        ("thirds", [3, 9, 3, 9], "few many few many"),
        (
            "thirds",
            [9, 9, 9, 5, 5, 5, 5, 1, 1],
            "many many many medium medium medium medium few few",
        ),  # 1, 1, 5 were few by rank alone
        ("thirds", [9, 8, 2, 2, 2, 1], "many many medium medium medium few"),
    ],
)
def test_group_rules(rule, counts, expected):
    assert size_groups(counts, rule) == expected.split()


def test_classes_of_one_size_have_no_group():
    assert size_groups([4, 4, 4], "thirds") == ["", "", ""]


@pytest.mark.parametrize("seed", range(20))
def test_equal_classes_share_their_group_and_larger_ones_are_no_rarer(seed):
    counts = np.random.default_rng(seed).integers(1, 6, 12)
    places = [SIZE_GROUPS.index(group) for group in size_groups(counts, "thirds")]
    assert all(
        (one >= other)
        for a, one in zip(counts, places, strict=True)
        for b, other in zip(counts, places, strict=True)
        if a <= b
    )
    assert len(set(places)) >= 2


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        ValueError, match="no rule 'halves' for size groups; there are thirds and thresholds"
    ):
        size_groups([1, 2, 3], "halves")


def test_classes_of_another_data_set_have_no_group():
    groups = size_groups([0, 0, 0], "thirds")
    assert groups == ["", "", ""]
    found = summary([10, 20, 60], groups)
    assert found.keys() == {"balance", "all"} and np.isnan(found["balance"]) and found["all"] == 30


def test_a_summary_without_one_of_the_groups():
    assert summary([10, 20], ["few", "many"]) == {"many": 20, "few": 10, "balance": 5, "all": 15}


# ---- protocols


@pytest.fixture(scope="module")
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


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return runs.Results("test")


@pytest.fixture
def run(study, results):
    """A finished run: an encoder as it was initialised, whose batch norm has seen the seed."""
    made = runs.Run(
        dataset="digits",
        subset="long_tail",
        split=1,
        seed=1,
        method="sdclr",
        head_layers=3,
        architecture="convnet",
        size=16,
        policy="digits",
        epochs=2,
        batch_size=32,
        learning_rate=0.1,
        weight_decay=0.0,
        warmup_epochs=1,
        temperature=0.2,
        prune_fraction=0.5,
        precision="float32",
        images=study.seed.digest,
    )
    encoder, _, _ = train.initialise(made)
    with torch.no_grad():
        for _ in range(30):
            encoder(study.seed.images / 255)
    runs.write(results.folder(made) / "run.json", json.dumps(vars(made)))
    train.finish(made, results.folder(made), encoder, [], 1)
    results.ask("arms", [made], {})
    return made


@pytest.fixture
def short(monkeypatch):
    """The stepwise protocols with few epochs."""
    for name, protocol in STEPWISE.items():
        monkeypatch.setitem(
            evaluate.PROTOCOLS,
            name,
            replace(protocol, epochs=3, drops=tuple(k + 2 for k in range(len(protocol.drops)))),
        )


def test_published_settings():
    linear = evaluate.Protocol(
        "train", epochs=30, rate=30, drops=(10, 20), batch=128, validate_every=1
    )
    few = evaluate.Protocol("few", epochs=100, rate=30, drops=(40, 60), batch=128, validate_every=5)
    whole = evaluate.Protocol(
        "few", epochs=100, rate=0.02, drops=(), batch=64, validate_every=5, whole=True
    )
    assert {
        "linear": linear,
        "linear_longtail": replace(linear, labels="seed"),
        "fewshot_linear": few,
        "fewshot_finetune": whole,
    }.items() <= evaluate.PROTOCOLS.items()
    assert evaluate.PROTOCOLS["knn"] == probes.Nearest("train", neighbours=200, temperature=0.07)


def test_linear_separability(study, results, run):
    rows = evaluate.evaluate(run, results, study, "linear", "digits_classifier", classifier_seeds=2)
    assert (
        list(rows.columns) == COLUMNS
        and set(rows.protocol) == {"linear"}
        and set(rows.repeats) == {2}
    )
    table = rows.pivot(index="group", columns="selection", values="accuracy")
    assert set(table.columns) == {"last_epoch", "best_validation"}
    classes = [f"class {name}" for name in study.classes]
    assert set(table.index) == {"many", "medium", "few", "all", *classes} and not table.isna().any(
        axis=None
    )
    groups = np.array(size_groups(study.counts, "thirds"))
    for selection in table:
        accuracy = table.loc[classes, selection].to_numpy()
        assert table.loc["all", selection] == pytest.approx(accuracy.mean())
        for group in SIZE_GROUPS:
            assert table.loc[group, selection] == pytest.approx(accuracy[groups == group].mean())
        assert (accuracy >= 0).all() and (accuracy <= 100).all()
    images = rows[rows.selection == "last_epoch"].set_index("group").images
    assert images["all"] == 400 and images[classes].tolist() == [40] * 10
    assert images[["many", "medium", "few"]].tolist() == [160, 120, 120]
    assert table.loc["all"].min() > 40  # untrained features already tell digits apart; chance is 10


def test_labels_in_the_wrong_order_give_chance(study, results, run):
    labels = study.train.labels[
        torch.randperm(len(study.train), generator=torch.Generator().manual_seed(0))
    ]
    wrong = replace(study, train=replace(study.train, labels=labels))
    for protocol, selection in (
        ("linear", "last_epoch"),
        ("linear_converged", "converged"),
        ("knn", "nearest"),
    ):
        rows = evaluate.evaluate(
            run, results, wrong, protocol, "digits_classifier", **ONCE
        ).set_index(["selection", "group"])
        assert rows.accuracy[selection, "all"] < 25


def test_a_measurement_is_remembered_until_its_settings_change(
    study, results, run, short, monkeypatch
):
    arguments = (run, results, study, "linear", "digits_classifier")
    first = evaluate.evaluate(*arguments, classifier_seeds=3)
    calls, whole = [], evaluate.class_accuracies
    monkeypatch.setattr(
        evaluate, "class_accuracies", lambda *given: calls.append(given) or whole(*given)
    )
    pd.testing.assert_frame_equal(evaluate.evaluate(*arguments, classifier_seeds=3), first)
    evaluate.evaluate_all([arguments], 1, classifier_seeds=3)
    assert not calls
    changes = [
        {"seed": 2},
        {"validation_top": 5},
        {"batch": 64},
        {"drop_shift": 1},
        {"classifier_seeds": 2},
    ]
    for k, change in enumerate(changes, 1):
        evaluate.evaluate(*arguments, **change)
        evaluate.evaluate(*arguments, **change)
        evaluate.evaluate(*arguments, **change, l2=5.0, label_sets=3)  # of other protocols
        assert len(calls) == k
    evaluate.evaluate(
        run,
        results,
        replace(study, test=study.test.subset(range(300, 400))),
        "linear",
        "digits_classifier",
    )
    assert len(calls) == 6
    pd.testing.assert_frame_equal(
        evaluate.evaluate(*arguments, classifier_seeds=3), first
    )  # the same settings, the same numbers
    scores = results.scores(method="sdclr")
    assert len(scores) == 28 and set(scores.run) == {run.name}


@pytest.mark.parametrize(
    "protocol, floor", [("fewshot_linear", 40), ("fewshot_finetune", 60), ("linear_longtail", 12)]
)
def test_the_other_protocols_run(study, results, run, protocol, floor):
    before = train.encoder_of(run, results).state_dict()
    rows = evaluate.evaluate(
        run, results, study, protocol, "digits_classifier", classifier_seeds=2, label_sets=2
    )
    assert set(rows.selection) == {"last_epoch", "best_validation"} and not rows.isna().any(
        axis=None
    )
    assert len(rows) == 28 and set(rows.repeats) == {2}
    assert rows[rows.group == "all"].accuracy.max() > floor
    after = train.encoder_of(run, results).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_labels_elsewhere_are_scored_over_all_classes(study, results, run):
    there = replace(
        study, seed=study.seed.subset([])
    )  # the same labels, of classes without a size group
    rows, usual = (
        evaluate.evaluate(run, results, labels, protocol, "digits_classifier", **ONCE).set_index(
            ["selection", "group"]
        )
        for labels, protocol in ((there, "linear_transfer"), (study, "linear"))
    )
    assert {group for _, group in rows.index} == {
        "all",
        *(f"class {name}" for name in study.classes),
    }
    pd.testing.assert_frame_equal(
        rows.drop(columns="protocol"), usual.loc[rows.index].drop(columns="protocol")
    )


def test_fine_tuning_changes_the_trunk_and_a_frozen_trunk_stays(study, results, run, short):
    for kind, protocol, changes in (
        (evaluate.train_frozen, "fewshot_linear", False),
        (evaluate.train_whole, "fewshot_finetune", True),
    ):
        encoder = train.encoder_of(run, results)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        policy = evaluate.views.POLICIES["digits_classifier"]
        made = list(
            kind(encoder, run, [study.few], evaluate.PROTOCOLS[protocol], policy, 10, 1, [1])
        )
        assert [epoch for epoch, _ in made] == [1, 2, 3]
        after = encoder.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert bool(changed) == changes and all(
            "sets.1" not in name for name in changed
        )  # the pruned twin's statistics stay
        assert (
            not changes
            or {"trunk.conv.weight", "head.linears.0.weight", "trunk.norm.sets.0.running_mean"}
            <= changed
        )
        assert not {
            name for name in changed if name.startswith(("head.linears.1", "head.linears.2"))
        }


def test_the_best_on_validation_is_the_first_of_equals(study, results, run, monkeypatch):
    class Fixed:
        def __init__(self, label):
            self.label = label

        def __call__(self, inputs):
            return torch.nn.functional.one_hot(torch.full((len(inputs),), self.label), 10).float()

    monkeypatch.setattr(
        evaluate,
        "train_frozen",
        lambda *_: [(k + 1, Fixed(label)) for k, label in enumerate([3, 7, 5])],
    )  # all at 10 %
    protocol = replace(evaluate.PROTOCOLS["linear"], epochs=3)
    found = evaluate.class_accuracies(run, results, study, protocol, None, [1], [study.train], 1)
    assert found["best_validation"].argmax() == 3 and found["last_epoch"].argmax() == 5
    assert found["last_epoch"].max() == 100 and found["last_epoch"].sum() == 100


def test_hits_count_the_top():
    logits, labels = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]]), torch.tensor([0, 0, 0])
    assert evaluate.hits(torch.nn.Identity(), logits, labels)[:, 0].tolist() == [True, False, False]
    assert evaluate.hits(torch.nn.Identity(), logits, labels, top=2)[:, 0].tolist() == [
        True,
        False,
        True,
    ]
    assert evaluate.hits(
        torch.nn.Identity(), torch.cat([logits, logits.flip(1)], 1), labels, heads=2
    ).tolist() == [[True, False], [False, True], [False, False]]


def test_classifiers_trained_together_are_those_trained_alone(study, results, run, short):
    encoder, how = train.encoder_of(run, results), evaluate.PROTOCOLS["linear"]
    inputs = encode.features(encoder, study.test, run.precision)

    def logits(seeds):
        *_, (_, layer) = evaluate.train_frozen(
            encoder,
            run,
            [study.train],
            how,
            evaluate.views.POLICIES["digits_classifier"],
            10,
            1,
            seeds,
        )
        return layer(inputs).detach().unflatten(1, (len(seeds), -1))

    together = logits([1, 5, 9])
    assert not torch.allclose(together[:, 0], together[:, 1], rtol=0.05)
    for place, seed in enumerate([1, 5, 9]):
        alone = logits([seed])[:, 0]
        torch.testing.assert_close(
            together[:, place], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())
        )


def test_each_label_set_trains_a_classifier_of_its_own(study, results, run, short):
    how, policy = evaluate.PROTOCOLS["fewshot_linear"], evaluate.views.POLICIES["digits_classifier"]
    encoder, sets = train.encoder_of(run, results), studies.label_sets(study, 3, per_class=12)

    def weights(label_sets, seeds):
        *_, (_, layer) = evaluate.train_frozen(encoder, run, label_sets, how, policy, 10, 1, seeds)
        return layer.weight.detach().view(len(seeds), 10, -1)

    together = weights(sets, [1, 2, 3])
    torch.testing.assert_close(
        together[0], weights(sets[:1], [1])[0], rtol=1e-3, atol=1e-2
    )  # views are numbered by position
    swapped = weights([sets[0], sets[2], sets[1]], [1, 2, 3])
    torch.testing.assert_close(together[0], swapped[0], rtol=1e-3, atol=1e-2)
    assert (together[1] - swapped[1]).abs().max() > 0.1


@pytest.mark.parametrize("protocol", ["linear", "fewshot_linear", "fewshot_finetune"])
def test_scores_are_means_over_seeds_or_label_sets_and_their_deviation(
    study, results, run, short, protocol
):
    rows = evaluate.evaluate(
        run, results, study, protocol, "digits_classifier", classifier_seeds=3, label_sets=3
    )
    assert set(rows.repeats) == {3}
    how, policy = evaluate.PROTOCOLS[protocol], evaluate.views.POLICIES["digits_classifier"]
    sets = studies.label_sets(study, 3) if protocol.startswith("few") else [study.train]
    measured = evaluate.class_accuracies(run, results, study, how, policy, [1, 2, 3], sets, 1)
    alone = evaluate.class_accuracies(run, results, study, how, policy, [1], sets[:1], 1)
    groups, table = size_groups(study.counts, "thirds"), rows.set_index(["selection", "group"])
    for selection, accuracies in measured.items():
        torch.testing.assert_close(
            accuracies[:, :1], alone[selection], atol=2.6, rtol=0
        )  # the first is the published one
        for group in ("few", "all"):
            values = [summary(accuracies[:, repeat], groups)[group] for repeat in range(3)]
            assert table.accuracy[selection, group] == pytest.approx(np.mean(values))
            assert table.sd[selection, group] == pytest.approx(np.std(values, ddof=1))
    assert table.sd["last_epoch", "few"] > 0


@pytest.mark.parametrize("protocol", ["linear", "fewshot_finetune"])
def test_the_mean_over_seeds_is_the_mean_of_single_seeds(
    study, results, run, short, monkeypatch, protocol
):
    how, policy = evaluate.PROTOCOLS[protocol], evaluate.views.POLICIES["digits_classifier"]
    sets = studies.label_sets(study, 3) if how.labels == "few" else [study.train]
    of_views = encode.features
    if not how.whole:  # classifiers trained together share the views of the first seed
        monkeypatch.setattr(
            encode,
            "features",
            lambda *given, **view: of_views(*given, **{**view, "seed": 1} if view else view),
        )
    together = evaluate.class_accuracies(run, results, study, how, policy, [1, 2, 3], sets, 1)[
        "last_epoch"
    ].mean(1)
    single = [
        evaluate.class_accuracies(
            run, results, study, how, policy, [seed], [sets[place % len(sets)]], 1
        )["last_epoch"]
        for place, seed in enumerate([1, 2, 3])
    ]
    assert together.tolist() == pytest.approx(
        torch.cat(single, 1).mean(1).tolist(), abs=0.9
    )  # one image of a class is 2.5 / 3
    assert not torch.equal(single[0], single[1])


def test_one_repeat_has_no_deviation_and_none_is_refused(study, results, run, short):
    assert (
        evaluate.evaluate(run, results, study, "linear", "digits_classifier", **ONCE)
        .sd.isna()
        .all()
    )
    assert (evaluate.evaluate(run, results, study, "knn", "digits_classifier").sd == 0).all()
    for none in (
        {"protocol": "linear", "classifier_seeds": 0},
        {"protocol": "fewshot_linear", "label_sets": 0},
    ):
        with pytest.raises(ValueError, match="a mean over 0 repeats"):
            evaluate.evaluate(run, results, study, policy="digits_classifier", **none)


# ---- label sets


def test_label_sets_are_of_the_stated_size_without_duplicates(study):
    own = torch.bincount(study.few.labels).tolist()
    sets = studies.label_sets(study, 4)
    assert sets[0] is study.few and len({images.digest for images in sets}) == 4
    for images in sets:
        assert torch.bincount(images.labels).tolist() == own and len(set(images.names)) == len(
            images
        )
    larger = studies.label_sets(study, 3, per_class=7)
    assert [torch.bincount(images.labels).tolist() for images in larger] == [[7] * 10] * 3
    assert all(len(set(images.names)) == 70 for images in larger)
    assert [images.digest for images in studies.label_sets(study, 4)] == [
        images.digest for images in sets
    ]
    assert studies.label_sets(study, 4, seed=2)[1].digest != sets[1].digest
    assert [
        studies.label_sets(study, 1, per_class=own[0])[0].digest,
        len(studies.label_sets(study, 0)),
    ] == [study.few.digest, 0]


def test_label_sets_know_nothing_of_validation_and_test(study):
    hidden = {*study.validation.names, *study.test.names}
    label_of = dict(zip(study.train.names, study.train.labels.tolist(), strict=True))
    for images in studies.label_sets(study, 6)[1:] + studies.label_sets(study, 6, per_class=30):
        assert not hidden & set(images.names)
        assert [label_of[name] for name in images.names] == images.labels.tolist()


def test_label_sets_larger_than_the_labels_are_refused(study):
    with pytest.raises(
        ValueError,
        match="class 0 has 30 labels and a few-shot set takes 31 of it; lower few_per_class",
    ):
        studies.label_sets(study, 2, per_class=31)


def test_no_probe_reads_labels_of_validation_or_test_to_learn(study, results, run, short):
    """Other labels there change what is counted as right, never what a last epoch or a probe
    without a step size decides.
    """
    generator = torch.Generator().manual_seed(0)

    def relabelled(images):
        return replace(
            images, labels=images.labels[torch.randperm(len(images), generator=generator)]
        )

    other = replace(study, validation=relabelled(study.validation))
    for protocol, selection in (
        ("linear_converged", "converged"),
        ("knn", "nearest"),
        ("linear", "last_epoch"),
    ):
        first, second = (
            evaluate.evaluate(run, results, labels, protocol, "digits_classifier", **ONCE)
            for labels in (study, other)
        )
        pd.testing.assert_frame_equal(
            *(rows[rows.selection == selection] for rows in (first, second))
        )


# ---- steadiness


def test_the_converged_probe_is_steadier_than_a_tenth_of_a_point_on_few(study, results, run):
    asked = ["linear_converged", "knn", "linear"]
    table = evaluate.reseeding(
        run, results, study, asked, "digits_classifier", repeats=4, classifier_seeds=4
    )
    assert list(table.columns)[:3] == ["probe", "measure", "sd"] and set(table.repeats) == {4}
    sd = table[table.selection != "best_validation"].set_index(["probe", "measure"]).sd
    assert sd["linear_converged", "few"] <= 0.1 and sd["knn", "few"] <= 0.1
    assert sd["linear"].max() > 0.1  # the same table finds noise where there is some
    means = table[table.selection == "last_epoch"].set_index(["probe", "measure"]).sd_of_mean
    assert means["linear", "all"] == pytest.approx(sd["linear", "all"] / 2)
    assert len(results.read("reseeding-linear_converged")) == 14 and set(
        results.scores().protocol
    ) == {"linear"}
    with pytest.raises(ValueError, match="1 repeats have no spread"):
        evaluate.reseeding(run, results, study, ["knn"], "digits_classifier", repeats=1)


def test_a_probe_that_has_not_converged_is_not_steady(study, results, run, monkeypatch):
    """What the test above would find if L-BFGS were stopped at once: the measurement can fail."""
    monkeypatch.setattr(probes, "SMALLEST_GRADIENT", 0.05)
    table = evaluate.reseeding(
        run, results, study, ["linear_converged"], "digits_classifier", repeats=4, l2=1e-5
    )
    assert table.sd.max() > 0.1


def test_a_probe_without_a_step_size_gives_the_same_rows_again(study, results, run):
    for protocol in ("linear_converged", "knn"):
        first = evaluate.evaluate(run, results, study, protocol, "digits_classifier")
        next(results.folder(run).glob(f"scores-{protocol}-*.json")).unlink()
        pd.testing.assert_frame_equal(
            evaluate.evaluate(run, results, study, protocol, "digits_classifier"), first
        )
        assert first.set_index("group").accuracy["all"] > 50 and len(first) == 14


def test_the_l2_weight_is_chosen_on_validation_images(study, results, run):
    grid = [1e-3, 1e-1, 100.0]
    rows = evaluate.weights_on_validation(run, results, study, grid)
    assert (
        rows.l2.tolist() == grid and rows.accuracy[0] > rows.accuracy[2] + 5
    )  # nothing is learned with a weight of 100
    as_test = evaluate.evaluate(
        run,
        results,
        replace(study, test=study.validation),
        "linear_converged",
        "digits_classifier",
        l2=1e-3,
    )
    assert rows.accuracy[0] == pytest.approx(as_test.set_index("group").accuracy["all"])
    assert (
        evaluate.evaluate(
            run, results, study, "linear_converged", "digits_classifier", l2=100.0
        ).accuracy.mean()
        < rows.accuracy[0] - 5
    )
    other = replace(study, test=study.test.subset(range(10)))
    pd.testing.assert_frame_equal(evaluate.weights_on_validation(run, results, other, grid), rows)


# ---- while training


def test_a_curve_follows_the_encoders_that_were_kept(study, results, run, monkeypatch):
    run = replace(run, epochs=30)
    asked, encoder = [], train.initialise(run)[0].eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "snapshots", lambda run, results: {10: "", 20: ""}, raising=False)
        patch.setattr(
            train, "encoder_of", lambda run, results, epoch=None: asked.append(epoch) or encoder
        )
        rows = evaluate.curve(run, results, study)
    assert asked == [10, 20, None] and list(rows.columns) == ["epoch", "group", "accuracy"]
    assert rows.groupby("epoch").group.agg(set).to_dict() == {
        epoch: {"many", "medium", "few", "all"} for epoch in (10, 20, 30)
    }
    monkeypatch.setattr(train, "snapshots", lambda run, results: {}, raising=False)
    pd.testing.assert_frame_equal(
        evaluate.curve(run, results, study), rows
    )  # remembered: the encoders may go
    monkeypatch.setattr(train, "encoder_of", lambda run, results, epoch=None: encoder)
    last = (
        evaluate.evaluate(
            run, results, replace(study, test=study.validation), "knn", "digits_classifier"
        )
        .set_index("group")
        .accuracy
    )
    assert rows[rows.epoch == 30].set_index("group").accuracy.to_dict() == pytest.approx(
        last[["many", "medium", "few", "all"]].to_dict()
    )
    with pytest.raises(
        FileNotFoundError,
        match="snapshots has no encoders, which a curve needs; train the run again",
    ):
        evaluate.curve(replace(run, seed=7), results, study)


@pytest.mark.parametrize("count", [3, encode.CHUNK + 7])
def test_features_do_not_depend_on_chunks(study, results, run, monkeypatch, count):
    images = study.test.subset(torch.arange(count) % len(study.test))
    encoder = train.encoder_of(run, results)
    found = encode.features(encoder, images, "float32")
    assert found.shape == (count, 64) and not found.requires_grad
    monkeypatch.setattr(encode, "CHUNK", 100)
    torch.testing.assert_close(
        encode.features(encoder, images, "float32"), found, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"protocol": "svm"},
            "no protocol 'svm'; there are linear_converged, knn, linear, linear_longtail, "
            "linear_transfer, fewshot_linear, "
            "fewshot_finetune",
        ),
        ({"group_rule": "halves"}, "no rule 'halves'"),
    ],
)
def test_unknown_settings_are_refused(study, results, run, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(
            **dict(
                run=run, results=results, study=study, protocol="knn", policy="digits_classifier"
            )
            | change
        )
    assert not list(results.folder(run).glob("scores*"))


@pytest.mark.parametrize(
    "counts, rule", [("a long tail without many", "thresholds"), ("two classes", "thirds")]
)
def test_a_group_without_classes_has_no_row(study, results, run, short, monkeypatch, counts, rule):
    if counts == "two classes":
        lists = {part: getattr(study, part) for part in ("seed", "train", "validation", "test")}
        lists = {
            part: images.subset((images.labels < 2).nonzero()[:, 0])
            for part, images in lists.items()
        }
        study = replace(study, classes=("0", "1"), **lists)
    rows = evaluate.evaluate(
        run, results, study, "linear", "digits_classifier", group_rule=rule, classifier_seeds=2
    )
    assert set(rows.group) >= {"all", "class 0"} and not rows.isna().any(axis=None)
    assert set(rows.group) & set(SIZE_GROUPS) == set(size_groups(study.counts, rule))
