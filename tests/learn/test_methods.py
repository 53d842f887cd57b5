"""What each method adds: the authors' steps, what it remembers, what it changes between epochs, and
how methods are joined.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from toy import FAMILY, IMAGES, image_set, planned

from longtail.learn import encode, methods, models, train
from longtail.learn.methods import bcl, colt, gh, rwsam
from longtail.store import paths, runs

SAM = json.loads((paths.ROOT / "tests" / "golden" / "sam_step.json").read_text())
STEPS = [case for case in SAM["cases"] if "X" in case["inputs"]]
NETS = [case for case in SAM["cases"] if "state_dict" in case["inputs"]]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return runs.Results("test")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, expected):
    torch.testing.assert_close(ours.detach(), tensor(expected), atol=SAM["tolerance"], rtol=0)


def started(method, images=IMAGES, **changes):
    """Encoder and method of a toy run that has met its images."""
    encoder, method, _ = train.initialise(planned(images, method=method, **changes))
    method.start(images, encoder)
    return encoder, method


def trained(method, results, epochs=4, **changes):
    """A finished toy run and what it noted: rows name, epoch, place, value."""
    run = planned(method=method, epochs=epochs, **changes)
    train.pretrain(run, IMAGES, results, progress=False)
    noted = results.folder(run) / "notes.csv.gz"
    return run, pd.read_csv(noted) if noted.exists() else None


# ---- sharpness-aware steps


class Line(rwsam.RwSAM):
    """The golden file's linear model: the second "view" is the wanted output."""

    def project(self, encoder, first, second):
        return encoder(first), second

    def objective(self, first, second, index):
        return (first - second).square().sum(1)


class Net(nn.Module):
    """The golden file's encoder and predictor."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(
            nn.Linear(6, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Linear(5, 4),
            nn.BatchNorm1d(4, affine=False),
        )
        self.pred = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 4))
        self.predictor = self.pred.forward

    def forward(self, x):
        return self.enc(x)


def sgd(model, inputs):
    return torch.optim.SGD(
        model.parameters(), inputs["lr"], inputs["momentum"], weight_decay=inputs["weight_decay"]
    )


def stepping(kind, inputs, **more):
    """A sharpness-aware method at the case's settings."""
    options = {"rho": inputs["rho"], "adaptive": inputs["adaptive"], **more}
    return kind(planned(method="rwsam", options=methods.write_options(options)))


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case["id"])
def test_uphill_and_back_on_a_line_is_the_reference(case):
    inputs, model = case["inputs"], nn.Linear(4, 2).double()
    model.load_state_dict({"weight": tensor(inputs["w"]), "bias": tensor(inputs["b"])})
    method, optimizer = stepping(Line, inputs), sgd(model, inputs)
    for x, y, weights, expected in zip(
        inputs["X"], inputs["Y"], inputs["weights"], case["expected"]["steps"], strict=True
    ):
        method.state["importance"] = tensor(weights)
        before = [parameter.clone() for parameter in model.parameters()]
        loss = method.backward(model, tensor(x), tensor(y), torch.arange(len(x)))
        assert (tensor(weights) * loss).mean().item() == pytest.approx(
            expected["weighted_loss_at_w"], abs=SAM["tolerance"]
        )
        assert all(
            torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True)
        )
        close(model.weight.grad, expected["grad_second"]["w"])
        optimizer.step()
        optimizer.zero_grad()
        close(model.weight, expected["params_after"]["w"])
        close(model.bias, expected["params_after"]["b"])


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case["id"])
def test_perturbations_are_the_reference(case):
    inputs, expected = case["inputs"], case["expected"]["steps"][0]
    weights, gradients = (
        [tensor(part[key]) for key in ("w", "b")] for part in (inputs, expected["grad_first"])
    )
    found = rwsam.sam_perturbation(weights, gradients, inputs["rho"], inputs["adaptive"])
    for ours, key in zip(found, ("w", "b"), strict=True):
        close(ours, expected["perturbation"][key])


@pytest.mark.parametrize("case", NETS, ids=lambda case: case["id"])
def test_uphill_and_back_with_simsiam_and_batch_norm_is_the_reference(case):
    inputs, model = case["inputs"], Net().double()
    model.load_state_dict({name: tensor(values) for name, values in inputs["state_dict"].items()})
    method = stepping(methods.find("simsiam+rwsam"), inputs)
    method.state["importance"] = tensor(inputs["weights"])
    optimizer = sgd(model, inputs)
    method.backward(model, tensor(inputs["view1"]), tensor(inputs["view2"]), torch.arange(8))
    optimizer.step()
    for name, values in case["expected"][
        "state_dict_after"
    ].items():  # statistics moved in both passes
        close(model.state_dict()[name].double(), values)


def gradients(encoder, method):
    views = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder.zero_grad()
    method.backward(encoder, *views, torch.arange(8))
    return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])


def test_no_radius_is_no_sharpness_and_weights_turn_the_way_uphill():
    plain = gradients(*started("simsiam"))
    encoder, method = started("simsiam+rwsam", options="rho=0.0")
    method.state["importance"].fill_(1)
    torch.testing.assert_close(gradients(encoder, method), plain)
    assert encoder.predictor.norms[0].sets[0].num_batches_tracked == 4  # two views, two passes
    found = []
    for importance in (torch.ones(20), 5 * torch.ones(20), torch.arange(20.0)):
        encoder, method = started("simsiam+rwsam", options="rho=0.5")
        method.state["importance"].copy_(importance)
        found.append(gradients(encoder, method))
    torch.testing.assert_close(found[0], found[1])  # only the direction counts
    assert (found[0] - plain).norm() > 1e-3 * plain.norm() and (
        found[2] - found[0]
    ).norm() > 1e-4 * plain.norm()


def test_statistics_may_stay_in_the_second_pass():
    encoder, method = started("simsiam+rwsam", options="rho=0.5 freeze=True")
    once, plain = started("simsiam")
    method.state["importance"].fill_(1)
    gradients(encoder, method), gradients(once, plain)
    torch.testing.assert_close(dict(encoder.named_buffers()), dict(once.named_buffers()))


def test_importance_comes_from_the_same_run_without_it(results):
    run, noted = trained("simsiam+rwsam", results)
    reference = methods.find(run.method).reference(run)
    assert (reference.method, reference.options) == ("simsiam", "") and results.is_done(reference)
    features = encode.embed(train.encoder_of(reference, results).trunk, IMAGES.images)
    assert noted.value.tolist() == pytest.approx(
        rwsam.density_weights(features, clip=10.0).tolist(), abs=1e-4
    )
    joined = planned(method="bcl+rwsam", options="draws=2 rho=0.5")
    assert methods.find("bcl+rwsam").reference(joined).options == "draws=2 floor=10 memory=0.97"
    assert methods.find("rwsam").reference(planned(method="rwsam")).method == "simclr"


def test_the_oracle_reads_ranks_of_classes():
    labels = torch.tensor([2] * 10 + [0] * 6 + [1] * 4)
    _, method = started("rwsam_oracle", replace(IMAGES, labels=labels), options="phi=1.5")
    assert method.importance().tolist() == [1.0] * 10 + [1.5] * 6 + [2.25] * 4
    assert rwsam.Oracle.reference(method.run) is None


# ---- BCL


def test_strengths_follow_the_losses_of_earlier_epochs(results):
    _, noted = trained("bcl", results)
    assert (
        set(noted.name) == {"strength"}
        and sorted(set(noted.epoch)) == [1, 2, 3]
        and len(noted) == 60
    )
    encoder, method = started("bcl")
    method.before_epoch(encoder, 0)
    assert (method.state["strength"] == 0).all()
    loss = torch.linspace(1, 3, 20)
    method.remember("loss", torch.arange(20), loss, 0.97)
    method.before_epoch(encoder, 1)
    torch.testing.assert_close(method.state["strength"], bcl.memorization_scores(loss))


def test_boosted_views_are_plain_where_nothing_is_remembered():
    _, method = started("bcl")
    levels = IMAGES.images.float()
    method.state["strength"].zero_()
    assert torch.equal(method.boost(levels.clone(), torch.arange(20), 1, 0), levels)
    method.state["strength"][3] = 1
    changed = (method.boost(levels.clone(), torch.arange(20), 1, 0) != levels).flatten(1).any(1)
    assert changed[3] and changed.sum() == 1


# ---- GH


def test_surrogate_classes_wait_for_the_warm_up(results, monkeypatch):
    weights, whole = [], gh.harmonization
    monkeypatch.setattr(gh, "harmonization", lambda *given: weights.append(1) or whole(*given))
    _, noted = trained("gh", results)
    assert len(weights) == 6  # three updates in each of the two epochs from warm=2 on
    assert sorted(set(noted.epoch)) == [2, 3] and noted.groupby(
        "epoch"
    ).value.sum().tolist() == pytest.approx([1, 1], abs=1e-4)


def test_surrogate_weight_rises_and_the_memory_turns_slow():
    encoder, method = started("gh", options="classes=6 ramp=4 refresh=2 warm=2", epochs=9)
    method.state["logits"][:] = torch.eye(6).repeat(4, 1)[:20]
    weights, pasts, priors = [], [], []
    for epoch in range(7):
        method.before_epoch(encoder, epoch)
        weights.append(method.state["weight"].item())
        pasts.append(round(method.state["past"].item(), 4))
        priors.append(epoch in method.notes.get("prior", {}))
    assert weights == [0, 0, 0.25, 0.5, 0.75, 1, 1] and pasts == [0.9] * 2 + [0.999] * 5
    assert priors == [False, False, True, False, True, False, True]
    torch.testing.assert_close(method.state["prior"], torch.tensor([4, 4, 3, 3, 3, 3]) / 20)


def test_more_directions_than_dimensions_are_refused():
    assert started("gh", options="classes=128 warm=2")[1].state["targets"].shape == (128, 128)
    with pytest.raises(ValueError, match="no 129 directions have equal angles in 128 dimensions"):
        started("gh", options="classes=129 warm=2")


def test_the_control_has_the_rates_of_gh_and_nothing_else(results):
    logs = []
    for method in ("gh", "two_stage"):
        run, _ = trained(method, results)
        logs.append(pd.read_csv(results.folder(run) / "log.csv"))
    assert (
        logs[0].learning_rate.tolist()
        == logs[1].learning_rate.tolist()
        == pytest.approx([0.1, 0.06, (0.06 + 1e-6) / 2, 1e-6])
    )
    assert (
        logs[0].loss[:2].tolist() == logs[1].loss[:2].tolist()
        and logs[0].loss[2] > logs[1].loss[2] + 0.1
    )
    with pytest.raises(
        ValueError,
        match=r"warm=4 must lie between 1 warm-up epochs and 4 epochs; give warm=… in the arm",
    ):
        started("two_stage", options="warm=4")


# ---- COLT


def test_images_of_the_pool_join_and_are_replaced(results, monkeypatch):
    seen, whole = [], colt.COLT.objective
    monkeypatch.setattr(
        colt.COLT, "objective", lambda self, *given: seen.append(given[-1]) or whole(self, *given)
    )
    run, noted = trained("colt", results)
    assert [len(index) for index in seen] == [8, 4] + [
        8,
        8,
        2,
    ] * 3  # a pool image joins from the second epoch on
    epochs = [torch.cat(seen[start:end]) for start, end in ((0, 2), (2, 5), (5, 8), (8, 11))]
    assert sorted(epochs[0].tolist()) == list(range(12))
    for epoch, known in zip(epochs[1:], (1, 1, 3), strict=True):
        picks = noted[noted.epoch == known].value.astype(int) + 12
        assert (
            sorted(epoch.tolist()) == [*range(12), *sorted(picks)]
            and len(set(picks)) == 6
            and max(picks) < 20
        )
    done = json.loads((results.folder(run) / "done.json").read_text())
    assert done["seed_images"] == 12


def test_pool_images_are_never_remembered():
    encoder, method = started("sdclr+bcl+gh+colt")
    method.before_epoch(encoder, 1)
    index = torch.tensor([0, 5, 11, 12, 19, 3])
    first, second = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0)).unbind()
    method.objective(first, second, index)
    known = ~method.state["crowding"].isnan()
    assert known.nonzero()[:, 0].tolist() == [0, 3, 5, 11]
    assert (~method.state["loss"].isnan()).equal(known) and (
        ~method.state["logits"][:, 0].isnan()
    ).equal(known)
    expected = colt.crowding(first, second, 0.2, 4)
    torch.testing.assert_close(
        method.state["crowding"][index[[0, 1, 2, 5]]], expected[[0, 1, 2, 5]]
    )
    method.before_epoch(encoder, 2)
    assert (method.state["strength"][12:] == 0).all() and method.state["strength"][:12].max() > 0


@pytest.mark.parametrize("pool, budget", [(8, 0), (8, 9), (0, 0)])
def test_a_budget_that_the_pool_cannot_fill_is_refused(pool, budget):
    with pytest.raises(
        ValueError,
        match=f"cannot pick {budget} of a pool of {pool}; give budget=… in the arm, and a pool",
    ):
        started("colt", reserve=pool, budget=budget)


def test_picks_before_there_are_scores_are_refused():
    with pytest.raises(
        ValueError, match="begin=0, but first picks follow from an epoch's scores; give 1 or more"
    ):
        started("colt", options=FAMILY["colt"]["options"].replace("begin=1", "begin=0"))


# ---- temperature schedules


def test_every_epoch_has_its_temperature():
    encoder, method = started("ts", options="period=4", epochs=8)
    found = []
    for epoch in range(8):
        method.before_epoch(encoder, epoch)
        found.append(round(method.temperature.item(), 6))
    assert found == [0.55, 0.1, 0.55, 1, 0.55, 0.1, 0.55, 1]
    orders = [
        started("ts", options="period=8 shape=shuffled", epochs=40, seed=seed)[1].course
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(
        started("ts", options="period=8", epochs=40)[1].course
    )


def test_a_schedule_without_a_swing_is_the_fixed_temperature(results):
    """The control for the mean of the schedule: whatever TS gains beyond it comes from the
    schedule.
    """
    logs = []
    for method, more in {
        "ts": {"options": "high=0.55 low=0.55 period=2"},
        "simclr": {"temperature": 0.55},
    }.items():
        run, _ = trained(method, results, **more)
        logs.append(pd.read_csv(results.folder(run) / "log.csv").loss)
    assert logs[0].tolist() == pytest.approx(logs[1].tolist(), rel=1e-5)
    run, _ = trained("ts", results)
    assert (pd.read_csv(results.folder(run) / "log.csv").loss - logs[1]).abs().max() > 0.5


@pytest.mark.parametrize(
    "name", ["ts", "sdclr+ts", "focal+ts", "bcl+ts", "gh+ts", "colt+ts", "rwsam+ts"]
)
def test_every_contrastive_loss_reads_the_temperature(name):
    own = FAMILY[name.split("+")[0]]
    encoder, method = started(
        name,
        **{**own, "options": f"{own.get('options', '')} period=4".replace("period=2 ", "").strip()},
    )
    views, index = (
        torch.randn(2, 8, 128, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 3, 4, 5, 12, 13]),
    )
    if name == "colt+ts":
        method.state["extras"] = torch.tensor([12, 13])
    found = []
    for epoch in (1, 3):  # 0.1 and 1
        method.before_epoch(encoder, epoch) if name != "colt+ts" else method.state[
            "temperature"
        ].fill_(method.course[epoch])
        found.append(method.objective(*views, index))
    assert ((found[0] - found[1]).abs() > 0.1).all()
    if name == "colt+ts":  # scores of images stay comparable
        torch.testing.assert_close(
            method.state["crowding"][:6], colt.crowding(*views, method.run.temperature, 4)[:6]
        )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "period=3",
            "4 epochs are no whole number of periods; give period=… in the arm, such as period=1",
        ),
        ("", "no whole number of periods"),
        ("low=0.0 period=2", "give 0 < low ≤ high"),
        ("high=0.05 period=2", "from low=0.1 to high=0.05"),
        ("period=2 shape=square", "shape=square is neither cosine nor shuffled"),
    ],
)
def test_schedules_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        started("ts", options=options)


# ---- labels


def test_supervised_learns_labels_and_needs_them(results):
    run, _ = trained("supervised", results, epochs=12)
    loss = pd.read_csv(results.folder(run) / "log.csv").loss
    assert loss.iloc[-1] < 0.5 * loss[0]
    unknown = image_set(20)
    unknown.labels.fill_(-1)
    with pytest.raises(ValueError, match="labels reach from -1 to -1; supervised needs 0 to 127"):
        started("supervised", unknown)


# ---- rates, networks


def test_simsiams_rate_falls_by_epoch_to_nothing():
    _, method = started("simsiam")
    course = train.course(method.run, 20)
    rates = [method.rates(epoch, course) for epoch in range(4)]
    assert all(len(set(epoch)) == 1 and len(epoch) == 3 for epoch in rates)
    assert [epoch[0] for epoch in rates] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    )
    assert rates[-1][0] == 0


def test_simsiams_network_has_the_published_widths():
    encoder = models.SiameseEncoder("resnet18_cifar", 2, 1)
    linears = *encoder.head.linears, *encoder.predictor.linears
    assert [(linear.in_features, linear.out_features) for linear in linears] == [
        (512, 2048),
        (2048, 2048),
        (2048, 512),
        (512, 2048),
    ]
    assert all(linear.bias is not None for linear in linears)
    assert [norm.sets[0].affine for norm in encoder.head.norms] == [True, False] and len(
        encoder.predictor.norms
    ) == 1
    z = encoder.train()(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(z.mean(0), torch.zeros(2048), atol=1e-5, rtol=0)
    assert encoder.predictor(z).shape == (4, 2048)


# ---- names, settings


def test_methods_join_in_one_order():
    joined = methods.find("sdclr+bcl+gh")
    assert [kind.__name__ for kind in joined.__mro__[1:6]] == [
        "GH",
        "TwoStage",
        "BCL",
        "SDCLR",
        "SimCLR",
    ]
    assert methods.find("sdclr+bcl+gh") is joined and (joined.branches, joined.head_layers) == (
        2,
        3,
    )
    assert set(methods.gathered(joined, "options")) == {
        "draws",
        "floor",
        "memory",
        "warm",
        "middle",
        "classes",
        "ramp",
        "refresh",
        "least",
        "harmony",
        "past",
        "late_past",
    }


@pytest.mark.parametrize(
    "name, message",
    [
        ("bcl+moco", "no method 'moco'; there are simclr, bcl, colt"),
        ("bcl+sdclr", "names a method twice or out of order"),
        ("bcl+bcl", "twice or out of order"),
        ("simclr+bcl", "without simclr"),
        ("two_stage+gh", "twice or out of order"),
        ("sdclr+simsiam", "'sdclr.simsiam' makes no sense: sdclr does not go with the rest"),
        ("simsiam+gh", "gh does not go"),
        ("supervised+colt", "colt does not go"),
        ("simsiam+ts", "simsiam does not go"),
        ("sdclr+untrained", "untrained does not go"),
    ],
)
def test_names_without_sense_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        methods.find(name)


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(
        ValueError,
        match="two methods are called bcl, in longtail.learn.methods.bcl and test_methods; rename one",
    ):
        type("Other", (methods.SimCLR,), {}, name="bcl")
    assert methods.find("bcl") is bcl.BCL


def test_every_method_is_tried_and_has_its_settings_typed():
    assert {part for name in FAMILY for part in name.split("+")} >= set(methods.METHODS) - {
        "untrained",
        "given",
    }
    kind = methods.find("simsiam+rwsam")
    assert methods.read_options(kind, {"rho": "2", "adaptive": "False"}) == {
        "rho": 2.0,
        "adaptive": False,
        "freeze": False,
        "alpha": 1.0,
        "clip": 10.0,
    }
    for given, message in (
        ({"rhos": "2"}, "rhos is no setting of a run or of this method; the method has rho"),
        ({"freeze": "0"}, "freeze=0 of 'freeze=0' cannot be read"),
        ({"rho": "big"}, "rho=big of .* cannot be read"),
        ({"rho": "-1"}, "rho is -1.0 in .*; it lies between 0 and 1000"),
    ):
        with pytest.raises(ValueError, match=message):
            methods.read_options(kind, given)


@pytest.mark.parametrize(
    "change", [{"batch_size": 1}, {"precision": "bf16"}, {"epochs": -5}, {"temperature": 0.0}]
)
def test_no_run_is_planned_out_of_range_whoever_asks(change):
    study = SimpleNamespace(seed=IMAGES, balanced=IMAGES, pool=IMAGES)
    decided = ("method", "subset", "split", "seed", "images", "head_layers", "options")
    settings = {key: value for key, value in vars(planned()).items() if key not in decided}
    [name] = change
    with pytest.raises(ValueError, match=f"{name} is .* it lies between|no precision bf16"):
        train.plan(study, "simclr long_tail", 1, 1, settings | change)


def test_an_arm_sets_what_it_names():
    study = SimpleNamespace(seed=IMAGES, balanced=image_set(4), pool=image_set(9, seed=3))
    settings = {
        key: value
        for key, value in vars(planned()).items()
        if key not in ("method", "subset", "split", "seed", "images", "head_layers", "options")
    }
    run, images = train.plan(
        study, "sdclr+bcl long_tail epochs=9 draws=2 weight_decay=5e-4", 1, 2, settings
    )
    assert (run.method, run.head_layers, run.epochs, run.weight_decay) == ("sdclr+bcl", 3, 9, 5e-4)
    assert run.options == "draws=2 floor=10 memory=0.97"
    assert images is IMAGES and run.reserve == 0
    run, images = train.plan(study, "colt balanced head_layers=3 budget=5 begin=2", 1, 2, settings)
    assert (run.reserve, run.budget, run.head_layers, len(images), run.seeds(len(images))) == (
        9,
        5,
        3,
        13,
        4,
    )
    assert (
        run.options == "begin=2 clusters=10 domain=0.2 memory=0.97 nearest=10 repick=25"
        and run.images == images.digest
    )
    for arm, message in {
        "simclr long_tail draws=2": "draws is no setting of a run or of this method; the method has none",
        "gh long_tail": "warm=500 must lie between 1 warm-up epochs and 4 epochs",
        "bcl long_tail split=3": "split is no setting",
        "bcl long_tail 2 0.1 7": "no arm",
    }.items():
        with pytest.raises(ValueError, match=message):
            train.plan(study, arm, 1, 1, settings)


def test_runs_from_before_the_family_keep_their_names():
    shipped = sorted((paths.ROOT / "results/runs").glob("*/run.json"))
    assert shipped
    for file in shipped:
        run = runs.Run(**json.loads(file.read_text()))
        assert run.name == file.parent.name
    assert planned(method="bcl", options="draws=2 floor=5").name != planned(method="bcl").name


def test_memory_is_of_the_first_pass_of_an_uphill_step():
    encoder, method, _ = train.initialise(
        planned(method="bcl+rwsam", options="draws=1 floor=10 rho=5.0")
    )
    method.start(IMAGES, encoder)
    method.before_epoch(encoder, 0)
    index = torch.arange(8)
    first, second = (
        IMAGES.images[index].float().add(noise).clamp(0, 255) / 255 for noise in (5, 25)
    )
    loss = method.backward(encoder, first, second, index)
    torch.testing.assert_close(method.state["loss"][index], loss)
    assert method.state["loss"][8:].isnan().all() and method.attends


# ---- a method from elsewhere

VICREG = '''
"""VICReg: variance, invariance, covariance (Bardes et al., ICLR 2022)."""

from torch.nn import functional

from longtail.learn.methods.simclr import SimCLR


class VICReg(SimCLR, name="vicreg"):
    """Both views of an image agree, every output varies, and no two outputs vary together."""

    options = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    clashes = ("simsiam", "supervised")

    def objective(self, first, second, index):
        agree = (first - second).square().mean(1)
        vary = sum(functional.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean() for rows in (first, second))
        covariances = [rows.T.cov().fill_diagonal_(0) for rows in (first, second)]
        together = sum(matrix.square().sum() / len(matrix) for matrix in covariances)
        return self.own["invariance"] * agree + self.own["variance"] * vary / 2 + self.own["covariance"] * together
'''

NOTEBOOKS = """
from types import SimpleNamespace

import toy
from shelf import apart
from longtail.learn import methods, train
from longtail.papers import figures
from longtail.store import paths, runs

assert methods.__file__.startswith(folder) and methods.find("vicreg").__doc__
toy.paths.RESULTS = paths.Path(folder) / "results"
study = SimpleNamespace(seed=toy.IMAGES, balanced=toy.IMAGES, pool=toy.IMAGES)
settings = {key: value for key, value in vars(toy.planned()).items()
            if key not in ("method", "subset", "split", "seed", "images", "head_layers", "options")}
arms = ["vicreg long_tail covariance=2", "sdclr+vicreg balanced"]
jobs = [train.plan(study, arm, 1, 1, settings) for arm in arms]
stopped, whole = apart("stopped"), apart("whole")
whole.ask("arms", [run for run, _ in jobs], {})
step, calls = train.Step.__call__, []

def fail(self, *given):
    calls.append(1)
    if len(calls) == 8:
        raise KeyboardInterrupt
    return step(self, *given)

train.Step.__call__ = fail
try:
    train.pretrain(*jobs[0], stopped, progress=False, checkpoint_seconds=0)
except KeyboardInterrupt:
    train.Step.__call__ = step
assert not stopped.is_done(jobs[0][0])
train.pretrain_all(jobs, stopped, 1)
train.pretrain_all(jobs, whole, 1)
first, second = (train.encoder_of(jobs[0][0], results).state_dict() for results in (stopped, whole))
assert all((first[name] == second[name]).all() for name in first)
logs = whole.logs().groupby("method").loss
assert (logs.last() < logs.first()).all()
figures.look(figures.METHOD, logs.first().index)
print(*[run.name for run, _ in jobs])
"""


def test_a_method_is_added_by_one_file(tmp_path):
    """Found in a copy of the package, trained alone and on SDCLR by the notebooks' calls, resumed,
    drawn; nothing else is edited.
    """
    shutil.copytree(
        paths.ROOT / "src" / "longtail",
        tmp_path / "longtail",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "longtail" / "learn" / "methods" / "vicreg.py").write_text(VICREG)
    places = os.pathsep.join(
        [str(tmp_path), str(paths.ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [sys.executable, "-c", f"folder = {str(tmp_path)!r}\n{NOTEBOOKS}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr
    assert [name.split("-")[0] for name in done.stdout.split()] == ["vicreg", "sdclr+vicreg"]
