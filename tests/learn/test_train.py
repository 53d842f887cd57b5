"""The one loop: rates, gradients, resume, and everything that must not change a run."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from shelf import apart
from tape import stand_in
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toy import FAMILY, IMAGES, RUN, image_set, planned

from longtail.images import sources
from longtail.learn import losses, methods, models, train
from longtail.measure import evaluate
from longtail.store import paths, runs

GOLDEN = json.loads((paths.ROOT / "tests" / "golden" / "lr_schedules.json").read_text())
SETTINGS = {
    key: value
    for key, value in vars(RUN).items()
    if key not in ("method", "subset", "split", "seed", "images", "head_layers")
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return runs.Results("test")


@pytest.fixture
def rates():
    """The learning rate of every optimiser step that is really made."""
    seen = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    yield seen
    handle.remove()


def weights(run, results):
    return load_file(results.folder(run) / "encoder.safetensors")


def log(run, results):
    return pd.read_csv(results.folder(run) / "log.csv").drop(columns="seconds")


def outcome(run, images, results, **how):
    train.pretrain(run, images, results, progress=False, **how)
    return weights(run, results), log(run, results)


def assert_same(first, second):
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    pd.testing.assert_frame_equal(first[1], second[1], check_exact=True)


def differ(first, second):
    return any(not torch.equal(first[0][name], second[0][name]) for name in first[0])


def stop_at(monkeypatch, method, step):
    """Make the method's backward fail at its ``step``-th call, as a lost machine would."""
    calls, whole = [], method.backward

    def backward(self, *arguments):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(method, "backward", backward)


# ---- rates


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda case: case.get("name", case["kind"])[:45]
)
def test_rates_are_the_reference(case):
    bound, kind = GOLDEN["tolerance"]["rel"], case["kind"]
    if kind == "classifier multistep":
        protocol = evaluate.PROTOCOLS["linear" if "linear" in case["name"] else "fewshot_linear"]
        shift = int("ImageNet" in case["name"])
        shifted = replace(protocol, drops=tuple(drop + shift for drop in protocol.drops))
        assert (protocol.epochs, protocol.rate) == (len(case["lr_per_epoch"]), case["base_lr"])
        found = [evaluate.stepped_rate(shifted, epoch) for epoch in range(1, protocol.epochs + 1)]
        assert found == pytest.approx(case["lr_per_epoch"], rel=bound)
        return
    iterations = case["iters_per_epoch"]
    points = case.get("lr_at_1based_iteration") or [*enumerate(case["lr_used_at_iteration"], 1)]
    warmup = 0 if "without warm-up" in kind else case.get("warmup_epochs", 10) * iterations
    found = [
        train.warmup_cosine(step, case["epochs"] * iterations, warmup, case["base_lr"], 1e-6)
        for step, _ in points
    ]
    assert found == pytest.approx([rate for _, rate in points], rel=bound)


def test_the_loop_uses_those_rates(results, rates):
    run = planned()
    outcome(run, IMAGES, results)
    assert rates == [train.warmup_cosine(step, 12, 3, 0.1, 1e-6) for step in range(1, 13)]
    assert min(rates) == rates[-1] == pytest.approx(1e-6) and 0 not in rates


@pytest.mark.parametrize("schedule, steps", [("updates", 12), ("epochs", 20)])
def test_schedule_counts_updates_or_epochs(results, rates, schedule, steps):
    images = IMAGES + image_set(20, seed=1)  # five batches an epoch, where the seed alone has three
    run = planned(images, added="random", budget=20, schedule=schedule)
    outcome(run, images, results)
    assert len(rates) == steps and rates[-1] == pytest.approx(1e-6)
    assert log(run, results).step.tolist() == [step for step in (5, 10, 15, 20) if step < steps] + [
        steps
    ]


@pytest.mark.parametrize("count, sizes", [(17, [8, 8]), (18, [8, 8, 2]), (5, [5])])
def test_a_last_batch_of_one_image_is_dropped(results, monkeypatch, count, sizes):
    images, seen, whole = image_set(count), [], methods.SimCLR.backward
    monkeypatch.setattr(
        methods.SimCLR,
        "backward",
        lambda self, *given: seen.append(given[-1]) or whole(self, *given),
    )
    outcome(planned(images, epochs=2), images, results)
    assert [len(index) for index in seen] == sizes * 2
    epochs = torch.cat(seen).view(2, -1)
    assert all(len(epoch.unique()) == sum(sizes) for epoch in epochs) and not torch.equal(*epochs)


@pytest.mark.parametrize(
    "images, change, message",
    [
        (IMAGES, {"warmup_epochs": 4}, "4 warm-up epochs leave nothing of 4; lower warmup_epochs"),
        (image_set(1), {}, "1 images make no batch of at least two"),
        (
            IMAGES,
            {"images": "0" * 16},
            f"was planned for images {'0' * 16}, these are {IMAGES.digest}",
        ),
        (IMAGES, {"method": "moco"}, "no method 'moco'; there are simclr, bcl, colt"),
        (IMAGES, {"architecture": "vit"}, "no architecture 'vit'"),
        (
            IMAGES,
            {"precision": "bfloat16_gpu"},
            "to be trained on a GPU and this machine has none; copy the finished run here",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(results, images, change, message):
    run = replace(planned(images), **change)
    with pytest.raises(ValueError, match=message):
        train.pretrain(run, images, results, progress=False)
    assert not results.is_done(run) and not (results.folder(run) / "log.csv").exists()


# ---- one step


def test_one_graph_has_the_gradient_of_the_authors_two_passes():
    run = planned(method="sdclr", head_layers=3)
    views = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients, statistics = [], []
    for authors in (False, True):
        encoder, method, _ = train.initialise(run)
        method.before_epoch(encoder, 0)
        if authors:  # three forwards, two backwards, the other branch constant in each
            with torch.no_grad():
                pruned = encoder(views[1], branch=1)
            dense = encoder(views[0], branch=0)
            losses.nt_xent(dense, pruned, 0.2).mean().backward()
            losses.nt_xent(dense.detach(), encoder(views[1], branch=1), 0.2).mean().backward()
        else:
            loss = method.backward(encoder, *views, torch.arange(8))
            assert loss.shape == (8,) and not loss.requires_grad
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])
        )
        statistics.append([part.running_mean for part in encoder.trunk.norm.sets])
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()
    torch.testing.assert_close(statistics[0][0], statistics[1][0])
    torch.testing.assert_close(
        statistics[0][1] * 1.9, statistics[1][1]
    )  # theirs sees view 2 twice: 1 − 0.9² = 0.19


def test_masks_change_once_an_epoch(results, monkeypatch):
    counts, whole = [], models.Encoder.refresh_masks
    monkeypatch.setattr(
        models.Encoder,
        "refresh_masks",
        lambda self, fraction: counts.append(fraction) or whole(self, fraction),
    )
    outcome(planned(method="sdclr", head_layers=3), IMAGES, results)
    assert counts == [0.5] * 4


# ---- the same numbers


@pytest.mark.parametrize(
    "method, seconds, resumed",
    [
        *(pytest.param(method, 0, 2, id=f"{method} from a checkpoint") for method in FAMILY),
        *(
            pytest.param(method, 1e9, 0, id=f"{method} from the start")
            for method in ("simclr", "sdclr", "sdclr+bcl+gh+colt")
        ),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(results, monkeypatch, method, seconds, resumed):
    run, kind = planned(method=method), methods.find(method)
    with monkeypatch.context() as patch:
        stop_at(patch, kind, 8)  # in the middle of the third epoch
        with pytest.raises(KeyboardInterrupt):
            train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=seconds)
    assert not results.is_done(run) and (results.folder(run) / "last.pt").exists() == (seconds == 0)
    epochs, whole = [], kind.before_epoch
    monkeypatch.setattr(
        kind,
        "before_epoch",
        lambda self, encoder, epoch: epochs.append(epoch) or whole(self, encoder, epoch),
    )
    continued = outcome(run, IMAGES, results)
    assert epochs == [*range(resumed, 4)]
    assert results.is_done(run) and not (results.folder(run) / "last.pt").exists()
    elsewhere = apart("uninterrupted")
    assert_same(continued, outcome(run, IMAGES, elsewhere))
    noted = [folder / "notes.csv.gz" for folder in (results.folder(run), elsewhere.folder(run))]
    assert noted[0].exists() == bool(
        {"bcl", "gh", "colt", "rwsam", "rwsam_oracle"} & set(method.split("+"))
    )
    assert not noted[0].exists() or noted[0].read_bytes() == noted[1].read_bytes()


def test_a_seed_decides_everything(results):
    first = outcome(planned(), IMAGES, results)
    torch.manual_seed(12345)  # no hidden generator takes part
    assert_same(first, outcome(planned(), IMAGES, apart("again")))
    assert differ(first, outcome(planned(seed=2), IMAGES, results))


@pytest.mark.parametrize("method", ["simclr", "sdclr+bcl+gh+colt", "simsiam+rwsam"])
def test_labels_never_matter(results, method):
    shuffled = replace(IMAGES, labels=IMAGES.labels.flip(0))
    unknown = replace(IMAGES, labels=torch.full((20,), sources.UNKNOWN))
    assert IMAGES.digest == shuffled.digest == unknown.digest
    run = planned(method=method)
    first = outcome(run, IMAGES, results)
    for k, other in enumerate((shuffled, unknown)):
        assert planned(other, method=method).name == run.name
        assert_same(first, outcome(run, other, apart(f"other{k}")))


def test_two_processes_give_the_numbers_of_one(results):
    jobs = [(planned(seed=seed, epochs=2), IMAGES) for seed in (1, 2)]
    elsewhere = apart("two")
    train.pretrain_all(jobs, results, 1)
    train.pretrain_all(jobs, elsewhere, 2)
    for run, _ in jobs:
        assert_same(
            (weights(run, results), log(run, results)),
            (weights(run, elsewhere), log(run, elsewhere)),
        )


def test_bfloat16_trains_close_to_float32(results):
    (exact, exact_log), (half, half_log) = (
        outcome(planned(precision=precision, learning_rate=1e-3), IMAGES, results)
        for precision in ("float32", "bfloat16")
    )
    assert not torch.equal(exact["trunk.conv.weight"], half["trunk.conv.weight"])
    assert half_log.loss.tolist() == pytest.approx(exact_log.loss.tolist(), rel=0.03)


def test_where_a_gpu_rounds_its_bfloat16_is_a_run_of_its_own(results):
    with stand_in():  # whose arithmetic is the processor's
        there, log = outcome(planned(precision="bfloat16_gpu", learning_rate=1e-3), IMAGES, results)
    here, _ = outcome(planned(precision="bfloat16", learning_rate=1e-3), IMAGES, results)
    assert len(list(results.store.glob("*/run.json"))) == 2
    assert torch.equal(there["trunk.conv.weight"], here["trunk.conv.weight"])


def test_training_lowers_the_loss(results):
    loss = outcome(planned(epochs=12), IMAGES, results)[1].loss
    assert loss[9:].mean() < 0.8 * loss[:3].mean()


# ---- files


def test_a_done_run_is_left_alone(results, monkeypatch):
    run = planned()
    outcome(run, IMAGES, results)
    files = [
        file for file in results.folder(run).iterdir() if file.is_file() and file.name != "claim"
    ]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    assert {file.name for file in files} == {
        "run.json",
        "log.csv",
        "encoder.safetensors",
        "done.json",
    }
    monkeypatch.setattr(train, "train", None)
    train.pretrain(run, IMAGES, results)
    train.pretrain_all([(run, IMAGES)], results, 2)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before
    results.ask("arms", [run], {})
    assert results.done() == [run]


def other_seeds(content):
    """The checkpoint of another run, whole."""
    other = planned(seed=7)
    train.save_checkpoint(
        other,
        Path(os.environ["OTHER"]),
        dict(zip(("encoder", "method", "optimizer"), train.initialise(other), strict=True))
        | {"method": {}, "notes": {}},
        [{"step": 3}],
    )
    return Path(os.environ["OTHER"]).read_bytes()


HOSTILE = b"cposix\nsystem\n(S'false'\ntR."  # what pickle makes of ``os.system("false")``


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: b"something else",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        other_seeds,
        lambda content: (
            runs.sha256(HOSTILE).encode() + b" " + planned().name.encode() + b"\n" + HOSTILE
        ),
    ],
    ids=[
        "half",
        "start",
        "empty",
        "foreign",
        "one bit",
        "another seed",
        "a pickle that starts a program, with its right digest",
    ],
)
def test_a_checkpoint_that_is_damaged_or_anothers_is_not_used_and_a_line_says_so(
    results, monkeypatch, tmp_path, damage, capsys
):
    run, file = planned(), results.folder(planned()) / "last.pt"
    monkeypatch.setenv("OTHER", str(tmp_path / "other.pt"))
    with monkeypatch.context() as patch:
        stop_at(patch, methods.SimCLR, 8)
        with pytest.raises(KeyboardInterrupt):
            train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=0)
    file.write_bytes(damage(file.read_bytes()))
    found = outcome(run, IMAGES, results)
    assert (
        capsys.readouterr().out
        == f"{file} is damaged, or another run's; {run.name} starts again from its first epoch\n"
    )
    assert_same(found, outcome(run, IMAGES, apart("undisturbed")))


def test_a_damaged_encoder_is_refused_by_name(results):
    run = planned()
    with pytest.raises(
        FileNotFoundError, match=r"encoder\.safetensors is missing: not all weights are shipped"
    ):
        train.encoder_of(run, results)
    outcome(run, IMAGES, results)
    assert not train.encoder_of(run, results).training
    file = results.folder(run) / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"encoder\.safetensors is not the file that training wrote"
    ):
        train.encoder_of(run, results)


def test_an_encoder_is_kept_in_half_precision_and_measured_as_kept(results, monkeypatch):
    ended = {}
    whole = train.keep_encoder
    monkeypatch.setattr(
        train,
        "keep_encoder",
        lambda path, encoder: (ended.update(encoder.state_dict()), whole(path, encoder)),
    )
    run = planned()
    outcome(run, IMAGES, results)
    kept = train.encoder_of(run, results).state_dict()
    assert kept.keys() == ended.keys() and any(
        not torch.equal(kept[name], ended[name]) for name in kept
    )
    for name, value in ended.items():
        assert kept[name].dtype == value.dtype and torch.equal(
            kept[name], value.half().to(value.dtype)
        ), name


def test_values_that_half_precision_cannot_hold_are_kept_whole(tmp_path):
    layer = torch.nn.Linear(2, 1)
    layer.weight.data[0, 0], layer.bias.data[0] = 1e6, 1 / 3
    train.keep_encoder(tmp_path / "layer.safetensors", layer)
    kept = load_file(tmp_path / "layer.safetensors")
    assert torch.equal(kept["weight"], layer.weight) and kept["bias"].dtype == torch.float16


def test_a_tenth_of_a_run_is_kept_at_a_time_and_the_same_after_a_kill(results, monkeypatch):
    assert (
        train.snapshot_epochs(200) == list(range(20, 200, 20))
        and train.snapshot_epochs(4) == [1, 2, 3]
        and not train.snapshot_epochs(1)
    )
    run = planned()
    outcome(run, IMAGES, results)
    assert list(train.snapshots(run, results)) == train.snapshot_epochs(run.epochs)
    first = {
        epoch: train.encoder_of(run, results, epoch).state_dict()
        for epoch in train.snapshots(run, results)
    }
    assert not torch.equal(
        first[1]["trunk.conv.weight"], train.encoder_of(run, results).trunk.conv.weight
    )
    again = apart("again")
    with monkeypatch.context() as patch:
        stop_at(patch, methods.SimCLR, 8)
        with pytest.raises(KeyboardInterrupt):
            train.pretrain(run, IMAGES, again, progress=False, checkpoint_seconds=0)
    train.pretrain(run, IMAGES, again, progress=False)
    for epoch, state in first.items():
        assert all(
            torch.equal(value, train.encoder_of(run, again, epoch).state_dict()[name])
            for name, value in state.items()
        )
    file = train.snapshots(run, again)[1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ValueError, match=r"epoch-0001-\w{8}\.safetensors is not the file that training wrote"
    ):
        train.encoder_of(run, again, 1)


def test_the_untrained_floor_is_the_network_before_its_first_update(results):
    arm = "untrained long_tail"
    study = SimpleNamespace(seed=IMAGES)
    run, images = train.plan(study, arm, 1, 1, SETTINGS)
    assert (run.epochs, run.warmup_epochs) == (0, 0)
    train.pretrain(run, images, results, progress=False)
    fresh = train.initialise(run)[0].state_dict()
    kept = train.encoder_of(run, results).state_dict()
    assert all(torch.equal(value.half(), kept[name].half()) for name, value in fresh.items())
    results.ask("arms", [run], {})
    assert results.is_done(run) and not len(results.logs()) and not train.snapshots(run, results)
    with pytest.raises(ValueError, match="makes no sense"):
        methods.find("untrained+bcl")


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[: len(text) // 2], lambda text: text.replace("4,12,", "4,13,")],
    ids=["cut", "edited"],
)
def test_a_damaged_log_is_refused_by_name(results, damage):
    run, file = planned(), results.folder(planned()) / "log.csv"
    outcome(run, IMAGES, results)
    results.ask("arms", [run], {})
    assert results.logs().step.tolist() == [3, 6, 9, 12]
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=r"log\.csv is cut, edited or missing"):
        results.logs()


def test_a_loss_that_is_no_number_stops_the_run(results, monkeypatch):
    run, calls, whole = planned(), [], methods.SimCLR.objective

    def objective(self, first, second, index):
        calls.append(1)
        return whole(self, first, second, index) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(methods.SimCLR, "objective", objective)
    with pytest.raises(
        FloatingPointError, match=rf"{run.name}: loss is nan at step 5; lower the learning rate"
    ):
        train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=0)
    assert {file.name for file in results.folder(run).iterdir()} == {
        "claim",
        "run.json",
        "log.csv",
        "last.pt",
        "snapshots",
    }
    assert log(run, results).epoch.tolist() == [1]
    saved = train.load_checkpoint(run, results.folder(run) / "last.pt")["encoder"]
    assert all(values.isfinite().all() for values in saved.values())


def test_a_run_is_held_by_one_process(results):
    run, folder = planned(), results.folder(planned())
    with runs.claim(folder, wait=True) as mine, runs.claim(folder, wait=False) as other:
        assert mine and not other
        waiting = threading.Thread(target=train.pretrain, args=(run, None, results), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        runs.write(folder / "done.json", "{}")
    waiting.join(10)
    assert not waiting.is_alive() and not (folder / "log.csv").exists()  # it found the run done


def test_a_killed_process_holds_nothing(results):
    folder = results.folder(planned())
    folder.mkdir(parents=True)
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder / "claim"], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with runs.claim(folder, wait=False) as mine:
            assert not mine
        other.kill()
        other.wait()
        with runs.claim(folder, wait=False) as mine:
            assert mine


# ---- methods and arms


class Pull(methods.SimCLR):
    """A method from outside: pulls the two views together, and counts its epochs."""

    branches, head_layers, epochs = 2, 1, []

    def before_epoch(self, encoder, epoch):
        self.epochs.append(epoch)

    def project(self, encoder, first, second):
        return encoder(first), encoder(second, branch=1)

    def objective(self, first, second, index):
        return (first - second).square().mean(1) + index * 0


def test_a_method_from_outside_needs_no_change_of_the_loop(results, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "pull", Pull)
    study = type("Study", (), {"seed": IMAGES, "balanced": image_set(4)})
    run, images = train.plan(study, "pull long_tail", 1, 3, SETTINGS)
    assert (run.method, run.head_layers, run.seed, images) == ("pull", 1, 3, IMAGES)
    loss = outcome(run, images, results)[1].loss
    assert Pull.epochs == [0, 1, 2, 3] and loss.iloc[-1] < loss[0]
    assert len(train.encoder_of(run, results).head.norms[0].sets) == 2


def test_an_arm_names_method_list_head_and_temperature():
    study = type("Study", (), {"seed": IMAGES, "balanced": image_set(4)})
    run, images = train.plan(study, "sdclr balanced head_layers=2 temperature=0.3", 4, 5, SETTINGS)
    assert (run.method, run.subset, run.head_layers, run.temperature, run.split, run.seed) == (
        "sdclr",
        "balanced",
        2,
        0.3,
        4,
        5,
    )
    assert images is study.balanced and run.images == images.digest
    run, _ = train.plan(study, "sdclr long_tail", 4, 5, SETTINGS)
    assert (run.head_layers, run.temperature) == (3, 0.2)
    for arm, message in {
        "simclr": "no arm 'simclr'",
        "simclr tail": "no arm 'simclr tail'",
        "moco long_tail": "no method 'moco'",
    }.items():
        with pytest.raises(ValueError, match=message):
            train.plan(study, arm, 1, 1, SETTINGS)


def divide(number):
    """A job of another process: it must be importable there."""
    return 1 / number


def test_side_by_side_keeps_the_order_and_raises_the_first_error_instead_of_waiting():
    assert train.side_by_side(divide, [(2,), (1,), (4,)], 2) == [0.5, 1.0, 0.25]
    with pytest.raises(ZeroDivisionError):
        train.side_by_side(divide, [(0,), *[(1,)] * 200], 2)
