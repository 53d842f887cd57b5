"""Groups, their summary, and the protocols on a toy study: what is measured, and that it is measured once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longtail import data, evaluate, paths, runs, train

GOLDEN = json.loads((Path(__file__).parent / "golden" / "group_metrics.json").read_text())
CASES = [case for case in GOLDEN["cases"] if "train_counts" in case]
AGGREGATE = GOLDEN["cases"][-1]
COLUMNS = ["protocol", "selection", "group", "accuracy", "images"]


# ---- groups

@pytest.mark.parametrize("case", CASES, ids=lambda case: case["dataset"])
def test_groups_and_their_summary_are_the_reference(case):
    groups = evaluate.size_groups(case["train_counts"], "thresholds" if case["dataset"] == "imagenet100" else "thirds")
    assert {name: [label for label, group in enumerate(groups) if group == name] for name in evaluate.SIZE_GROUPS} == case["groups"]
    right = case["correct_per_class"] if "correct_per_class" in case else np.diag(case["confusion_rows_true"])
    found = evaluate.summary(100 * np.array(right) / case["test_per_class"], groups)
    assert list(found) == ["many", "medium", "few", "balance", "all"]
    for bound, expected in (("exact_abs", case["exact"]), ("reference_abs", case["reference_from_rounded_log"])):
        ours = {"std" if name == "balance" else name: value for name, value in found.items()}
        assert ours == pytest.approx(expected, abs=GOLDEN["tolerance"][bound], rel=0)


def test_balance_is_averaged_over_runs():
    balances = [evaluate.summary(means, evaluate.SIZE_GROUPS)["balance"] for means in AGGREGATE["runs_many_medium_few"]]
    assert np.mean(balances) == pytest.approx(AGGREGATE["aggregate"]["std"]["mean"], abs=GOLDEN["tolerance"]["exact_abs"])
    assert np.std(balances) == pytest.approx(AGGREGATE["aggregate"]["std"]["err"], abs=GOLDEN["tolerance"]["exact_abs"])


@pytest.mark.parametrize("rule, counts, expected", [
    ("thirds", [5, 9, 1, 7], "medium many few many"), ("thirds", [1, 2, 3, 4, 5, 6], "few few medium medium many many"),
    ("thirds", [4, 4, 4], "few medium many"), ("thirds", [7, 7, 1, 7, 7, 7], "few medium few medium many many"),    # ties: by class index
    ("thresholds", [101, 100, 20, 19], "many medium medium few"),
    ("thirds", [5, 4] * 20, "medium few " * 6 + "many few " * 7 + "many medium " * 7),
])
def test_group_rules(rule, counts, expected):
    assert evaluate.size_groups(counts, rule) == expected.split()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="no rule 'halves' for size groups; there are thirds and thresholds"):
        evaluate.size_groups([1, 2, 3], "halves")


def test_classes_of_another_data_set_have_no_group():
    groups = evaluate.size_groups([0, 0, 0], "thirds")
    assert groups == ["", "", ""]
    found = evaluate.summary([10, 20, 60], groups)
    assert found.keys() == {"balance", "all"} and np.isnan(found["balance"]) and found["all"] == 30


def test_a_summary_without_one_of_the_groups():
    assert evaluate.summary([10, 20], ["few", "many"]) == {"many": 20, "few": 10, "balance": 5, "all": 15}


# ---- protocols

@pytest.fixture(scope="module")
def study():
    return data.study("digits", 16, 1, 20, 0.25, "exponential", labelled_per_class=30, pool_per_class=10, outsiders="letters",
                      outsider_count=25)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return runs.Results("test")


@pytest.fixture
def run(study, results):
    """A finished run: an encoder as it was initialised, whose batch norm has seen the seed."""
    made = runs.Run(dataset="digits", subset="long_tail", split=1, seed=1, method="sdclr", head_layers=3, architecture="convnet", size=16,
                    policy="digits", epochs=2, batch_size=32, learning_rate=0.1, weight_decay=0.0, warmup_epochs=1, temperature=0.2,
                    prune_fraction=0.5, precision="float32", images=study.seed.digest)
    encoder, _, _ = train.initialise(made)
    with torch.no_grad():
        for _ in range(30):
            encoder(study.seed.images / 255)
    runs.write(results.folder(made) / "run.json", json.dumps(vars(made)))
    train.finish(made, results.folder(made), encoder, [], 1)
    return made


@pytest.fixture
def short(monkeypatch):
    """The protocols with few epochs."""
    for name, protocol in evaluate.PROTOCOLS.items():
        monkeypatch.setitem(evaluate.PROTOCOLS, name, replace(protocol, epochs=3, drops=tuple(k + 2 for k in range(len(protocol.drops)))))


def test_published_settings():
    linear = evaluate.Protocol("train", epochs=30, rate=30, drops=(10, 20), batch=128, validate_every=1)
    few = evaluate.Protocol("few", epochs=100, rate=30, drops=(40, 60), batch=128, validate_every=5)
    whole = evaluate.Protocol("few", epochs=100, rate=0.02, drops=(), batch=64, validate_every=5, whole=True)
    assert {"linear": linear, "linear_longtail": replace(linear, labels="seed"), "fewshot_linear": few,
            "fewshot_finetune": whole}.items() <= evaluate.PROTOCOLS.items()


def test_linear_separability(study, results, run):
    rows = evaluate.evaluate(run, results, study, "linear", "digits_classifier")
    assert list(rows.columns) == COLUMNS and set(rows.protocol) == {"linear"}
    table = rows.pivot(index="group", columns="selection", values="accuracy")
    assert set(table.columns) == {"last_epoch", "best_validation"}
    classes = [f"class {name}" for name in study.classes]
    assert set(table.index) == {"many", "medium", "few", "all", *classes} and not table.isna().any(axis=None)
    groups = np.array(evaluate.size_groups(study.counts, "thirds"))
    for selection in table:
        accuracy = table.loc[classes, selection].to_numpy()
        assert table.loc["all", selection] == pytest.approx(accuracy.mean())
        for group in evaluate.SIZE_GROUPS:
            assert table.loc[group, selection] == pytest.approx(accuracy[groups == group].mean())
        assert (accuracy >= 0).all() and (accuracy <= 100).all()
    images = rows[rows.selection == "last_epoch"].set_index("group").images
    assert images["all"] == 400 and images[classes].tolist() == [40] * 10
    assert images[["many", "medium", "few"]].tolist() == [160, 120, 120]
    assert table.loc["all"].min() > 40                  # untrained features already tell digits apart; chance is 10


def test_labels_in_the_wrong_order_give_chance(study, results, run):
    labels = study.train.labels[torch.randperm(len(study.train), generator=torch.Generator().manual_seed(0))]
    wrong = replace(study, train=replace(study.train, labels=labels))
    rows = evaluate.evaluate(run, results, wrong, "linear", "digits_classifier").set_index(["selection", "group"])
    assert rows.accuracy["last_epoch", "all"] < 25


def test_a_measurement_is_remembered_until_its_settings_change(study, results, run, short, monkeypatch):
    arguments = (run, results, study, "linear", "digits_classifier")
    first = evaluate.evaluate(*arguments)
    calls, whole = [], evaluate.class_accuracies
    monkeypatch.setattr(evaluate, "class_accuracies", lambda *given: calls.append(given) or whole(*given))
    pd.testing.assert_frame_equal(evaluate.evaluate(*arguments), first)
    evaluate.evaluate_all([arguments], 1)
    assert not calls
    changes = [{"seed": 2}, {"validation_top": 5}, {"batch": 64}, {"drop_shift": 1}, {"group_rule": "thirds"}]
    for k, change in enumerate(changes, 1):
        evaluate.evaluate(*arguments, **change)
        evaluate.evaluate(*arguments, **change)
        assert len(calls) == k
    evaluate.evaluate(run, results, replace(study, test=study.test.subset(range(300, 400))), "linear", "digits_classifier")
    assert len(calls) == 6
    pd.testing.assert_frame_equal(evaluate.evaluate(*arguments), first)         # the same settings, the same numbers
    scores = results.scores(method="sdclr")
    assert len(scores) == 28 and set(scores.run) == {run.name}


@pytest.mark.parametrize("protocol, floor", [("fewshot_linear", 40), ("fewshot_finetune", 60), ("linear_longtail", 12)])
def test_the_other_protocols_run(study, results, run, protocol, floor):
    before = train.encoder_of(run, results).state_dict()
    rows = evaluate.evaluate(run, results, study, protocol, "digits_classifier")
    assert len(rows) == 28 and set(rows.selection) == {"last_epoch", "best_validation"} and not rows.isna().any(axis=None)
    assert rows[rows.group == "all"].accuracy.max() > floor
    pd.testing.assert_frame_equal(evaluate.evaluate(run, results, study, protocol, "digits_classifier"), rows)
    after = train.encoder_of(run, results).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_labels_elsewhere_are_scored_over_all_classes(study, results, run):
    there = replace(study, seed=study.seed.subset([]))      # the same labels, of classes without a size group
    rows, usual = (evaluate.evaluate(run, results, labels, protocol, "digits_classifier").set_index(["selection", "group"])
                   for labels, protocol in ((there, "linear_transfer"), (study, "linear")))
    assert {group for _, group in rows.index} == {"all", *(f"class {name}" for name in study.classes)}
    pd.testing.assert_frame_equal(rows.drop(columns="protocol"), usual.loc[rows.index].drop(columns="protocol"))


def test_fine_tuning_changes_the_trunk_and_a_frozen_trunk_stays(study, results, run, short):
    for kind, protocol, changes in ((evaluate.train_frozen, "fewshot_linear", False), (evaluate.train_whole, "fewshot_finetune", True)):
        encoder = train.encoder_of(run, results)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        policy = evaluate.views.POLICIES["digits_classifier"]
        made = list(kind(encoder, run, study.few, evaluate.PROTOCOLS[protocol], policy, 10, 1, [(1, 30.0)]))
        assert [epoch for epoch, _ in made] == [1, 2, 3]
        after = encoder.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert bool(changed) == changes and all("sets.1" not in name for name in changed)       # the pruned twin's statistics stay
        assert not changes or {"trunk.conv.weight", "head.linears.0.weight", "trunk.norm.sets.0.running_mean"} <= changed
        assert not {name for name in changed if name.startswith(("head.linears.1", "head.linears.2"))}


def test_the_best_on_validation_is_the_first_of_equals(study, results, run, monkeypatch):
    class Fixed:
        def __init__(self, label):
            self.label = label

        def __call__(self, inputs):
            return torch.nn.functional.one_hot(torch.full((len(inputs),), self.label), 10).float()

    monkeypatch.setattr(evaluate, "train_frozen", lambda *_: [(k + 1, Fixed(label)) for k, label in enumerate([3, 7, 5])])     # all at 10 %
    protocol = replace(evaluate.PROTOCOLS["linear"], epochs=3)
    found = evaluate.class_accuracies(run, results, study, protocol, None, 1, 1, [(1, 30.0)])
    assert found["best_validation"].argmax() == 3 and found["last_epoch"].argmax() == 5
    assert found["last_epoch"].max() == 100 and found["last_epoch"].sum() == 100


def test_hits_count_the_top():
    logits, labels = torch.tensor([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]]), torch.tensor([0, 0, 0])
    assert evaluate.hits(torch.nn.Identity(), logits, labels)[:, 0].tolist() == [True, False, False]
    assert evaluate.hits(torch.nn.Identity(), logits, labels, top=2)[:, 0].tolist() == [True, False, True]
    assert evaluate.hits(torch.nn.Identity(), torch.cat([logits, logits.flip(1)], 1), labels, heads=2).tolist() == [
        [True, False], [False, True], [False, False]]


@pytest.mark.parametrize("protocol", ["linear", "fewshot_linear"])
def test_classifiers_trained_together_are_those_trained_alone(study, results, run, short, protocol):
    together = evaluate.evaluate(run, results, study, protocol, "digits_classifier", seeds=[1, 5], rates=[30.0, 3.0])
    assert list(together.columns) == [*COLUMNS, "classifier_seed", "rate"] and len(together) == 4 * 28
    found = together.set_index(["classifier_seed", "rate"])
    assert together.groupby(["classifier_seed", "rate"]).accuracy.sum().nunique() == 4      # neither seed nor rate is without effect
    published = evaluate.evaluate(run, results, study, protocol, "digits_classifier")
    assert found.loc[(1, 30.0)].accuracy.tolist() == published.accuracy.tolist()
    slow = replace(evaluate.PROTOCOLS[protocol], rate=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluate.PROTOCOLS, protocol, slow)
        alone = evaluate.evaluate(run, results, study, protocol, "digits_classifier")
    assert (found.loc[(1, 3.0)].accuracy.to_numpy() - alone.accuracy.to_numpy()).tolist() == pytest.approx([0] * 28, abs=2.5)
    assert found.loc[(1, 3.0)].accuracy.mean() == pytest.approx(alone.accuracy.mean(), abs=0.3)


def test_only_frozen_trunks_share_features(study, results, run):
    with pytest.raises(ValueError, match="fewshot_finetune trains the trunk with its classifier"):
        evaluate.evaluate(run, results, study, "fewshot_finetune", "digits_classifier", seeds=[1, 2], rates=[0.02])


@pytest.mark.parametrize("count", [3, evaluate.CHUNK + 7])
def test_features_do_not_depend_on_chunks(study, results, run, monkeypatch, count):
    images = study.test.subset(torch.arange(count) % len(study.test))
    encoder = train.encoder_of(run, results)
    found = evaluate.features(encoder, images, "float32")
    assert found.shape == (count, 64) and not found.requires_grad
    monkeypatch.setattr(evaluate, "CHUNK", 100)
    torch.testing.assert_close(evaluate.features(encoder, images, "float32"), found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change, message", [
    ({"protocol": "knn"}, "no protocol 'knn'; there are linear, linear_longtail, linear_transfer, fewshot_linear, fewshot_finetune"),
    ({"group_rule": "halves"}, "no rule 'halves'"),
])
def test_unknown_settings_are_refused(study, results, run, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(**dict(run=run, results=results, study=study, protocol="linear", policy="digits_classifier") | change)
    assert not list(results.folder(run).glob("scores*"))


@pytest.mark.parametrize("counts, rule", [("a long tail without many", "thresholds"), ("two classes", "thirds")])
def test_a_group_without_classes_has_no_row(study, results, run, short, monkeypatch, counts, rule):
    if counts == "two classes":
        lists = {part: getattr(study, part) for part in ("seed", "train", "validation", "test")}
        lists = {part: images.subset((images.labels < 2).nonzero()[:, 0]) for part, images in lists.items()}
        study = replace(study, classes=("0", "1"), **lists)
    rows = evaluate.evaluate(run, results, study, "linear", "digits_classifier", group_rule=rule)
    assert set(rows.group) >= {"all", "class 0"} and not rows.isna().any(axis=None)
    assert set(rows.group) & set(evaluate.SIZE_GROUPS) == set(evaluate.size_groups(study.counts, rule))
