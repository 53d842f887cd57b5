"""Whether the GPU path is right, in under ten minutes on one GPU: ``python tests/gpu_smoke.py``;
exit status 0 when all holds.

Every line is a check and what it found. Without a GPU the same lines run on the processor, smaller,
with a tape in place of CUDA graphs (tape.py); what only a GPU has is then said to be left out.
"""

import contextlib
import os
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

import shelf
import torch
from tape import stand_in
from torch.nn import functional
from toy import FAMILY, image_set, planned, proximity_tolerance

from longtail.bench import budget, floor
from longtail.images import views
from longtail.label import supervised
from longtail.learn import norms, train
from longtail.pick import samplers, selection
from longtail.store import gpu, paths, processes

RATE = 0.05  # of the updates that are compared: few and small, so that rounding does not grow
IMAGES = image_set(20)


class Left(Exception):
    """Why a check is left out here."""


# ---- recorded against one by one


@contextlib.contextmanager
def one_by_one():
    """Inside, updates are not recorded; everything else, the compiled views too, is as it is when
    they are.
    """
    before = gpu.Recorded.__call__
    gpu.Recorded.__call__ = lambda recorded, kind, *tensors: recorded.work(*tensors)
    try:
        yield
    finally:
        gpu.Recorded.__call__ = before


@contextlib.contextmanager
def without_waiting():
    """Inside, a replay that waits for the device is an error; the tape refuses such calls when it
    records.
    """
    before = gpu.Graph.replay

    def replay(graph):
        if not gpu.here():
            return before(graph)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return before(graph)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    gpu.Graph.replay = replay
    try:
        yield
    finally:
        gpu.Graph.replay = before


def difference(ours, theirs):
    """Largest difference of two lists of tensors, over the size of the larger value or 1."""
    return max(
        float(((a.double() - b.double()).abs() / b.double().abs().clamp(min=1)).max())
        for a, b in zip(ours, theirs, strict=True)
    )


def checked(error, bound):
    """What was found, in words; ``AssertionError`` above the bound."""
    assert error <= bound, f"differs by {error:.2g}, allowed is {bound:g}"
    return "equal bit for bit" if error == 0 else f"differs by {error:.2g} of {bound:g} allowed"


def stopped(run, results, number):
    """Train until the update of this number, which fails as a lost machine would; a checkpoint is
    written after every epoch.
    """
    calls, whole = [], train.Step.__call__

    def call(step, index, rate):
        calls.append(step.run == run)
        if sum(calls) == number:
            raise KeyboardInterrupt
        return whole(step, index, rate)

    train.Step.__call__ = call
    try:
        with contextlib.suppress(KeyboardInterrupt):
            train.pretrain(run, IMAGES, results, progress=False, checkpoint_seconds=0)
    finally:
        train.Step.__call__ = whole
    assert (results.folder(run) / "last.pt").exists() and not results.is_done(run)


def replays(method):
    """Losses and weights of recorded updates, over two phases, a short last batch and a resume, and
    of those made one by one.
    """
    run, ends = planned(IMAGES, method=method, learning_rate=RATE), []
    for recorded in (False, True):
        results = shelf.apart(f"{method} {recorded}")
        with without_waiting() if recorded else one_by_one():
            if recorded:
                stopped(run, results, 8)  # in the middle of the third epoch
            train.pretrain(run, IMAGES, results, progress=False)
        encoder = train.encoder_of(run, results)
        ends.append(
            [
                torch.tensor(results.rows_of(run, "log.csv").loss.to_numpy()),
                *encoder.state_dict().values(),
            ]
        )
    return checked(
        difference(*ends), 2e-3 if gpu.here() else 0
    )  # weights are kept in half precision: a last place of it is 1e-3


def labelled():
    """The same for training on labels, with two stages."""
    schedule, ends = supervised.Schedule(4, 8, RATE, drops=(2,), drop=0.1, warmup_epochs=1), []
    run = supervised.run_of(
        IMAGES,
        "ldam_drw",
        "step ratio=2",
        0,
        1,
        schedule,
        dataset="toy",
        largest=8,
        architecture="resnet32",
        size=16,
        policy="cifar_classifier",
        precision="float32",
    )
    for recorded in (False, True):
        with without_waiting() if recorded else one_by_one():
            network, _ = supervised.train_network(
                run, IMAGES, 3, paths.RESULTS / f"labels {recorded}"
            )
        ends.append(list(network.state_dict().values()))
    return checked(difference(*ends), 1e-3 if gpu.here() else 0)


def two_phases():
    """Memory when the second phase of a method is under way, against the first: graphs share it,
    and those of the first are gone.
    """
    run = planned(IMAGES, method="gh")
    side = {"architecture": "resnet18_cifar", "batch_size": 512} if gpu.here() else {}
    pixels = image_set(1000 if gpu.here() else 20, side=32 if gpu.here() else 16)
    encoder, method, optimizer = train.initialise(
        run := replace(run, size=pixels.images.shape[-1], **side)
    )
    pixels = replace(pixels, images=pixels.images.to(gpu.device()))
    method.start(pixels, None)
    step, held = train.Step(run, encoder, method, optimizer, pixels.images), []
    order = torch.arange(len(pixels), device=gpu.device())
    for epoch in (0, 2):  # before and after ``warm``
        method.before_epoch(encoder, epoch)
        step.epoch.fill_(epoch)
        for index in order.split(run.batch_size):
            step(index, RATE)
        gpu.synchronize()
        held.append(
            torch.cuda.memory_reserved() / 2**20 if gpu.here() else len(step.recorded.graphs)
        )
    assert len(step.recorded.graphs) == 2, (
        f"{len(step.recorded.graphs)} graphs are kept for two sizes of a batch"
    )
    assert held[1] <= 1.25 * held[0], f"{held[1]:.0f} where the first phase held {held[0]:.0f}"
    return f"{held[0]:.0f}, then {held[1]:.0f} {'MiB' if gpu.here() else 'graphs'}"


# ---- numbers that must not depend on the device


def pixels():
    """Random views of every law, against those of the processor without a compiler."""
    images, index, worst = image_set(64, side=32).images, torch.arange(64), 0
    for name, law in views.POLICIES.items():
        there = views.augment(
            images.to(gpu.device()),
            index.to(gpu.device()),
            law,
            1,
            2,
            0,
            fused=gpu.fuses(images.to(gpu.device())),
        )
        with contextlib.ExitStack() as stack:
            computes, gpu.computes = gpu.computes, lambda x: False
            stack.callback(setattr, gpu, "computes", computes)
            here = views.augment(images, index, law, 1, 2, 0)
        error = float((here - there.cpu()).abs().max())
        assert error <= 2e-5, f"{name} differs by {error:.2g}"
        worst = max(worst, error)
    return f"{len(views.POLICIES)} laws, {worst:.1e} at most"


def picks():
    """K-center is the processor's; distances differ by the stated tolerance at most."""
    count = 6000 if gpu.here() else 600
    rows = torch.randn(count, 64, generator=torch.Generator().manual_seed(0)).relu() + 0.01
    pool, seed = rows[count // 6 :], rows[: count // 6]
    here, there = (
        selection.k_center(pool.to(where), seed.to(where), count // 3)
        for where in ("cpu", gpu.device())
    )
    assert torch.equal(here, there.cpu()), (
        f"{int((here != there.cpu()).sum())} of {len(here)} picks differ"
    )
    near, far = (
        samplers.proximity(pool.to(where), seed.to(where), 10).cpu()
        for where in ("cpu", gpu.device())
    )
    error, bound = float((near - far).abs().max()), proximity_tolerance(64)
    return f"{len(here)} picks equal; distances: {checked(error, bound)}"


def norm():
    """Batch norm over processes, of which this is the only one, against torch's own: values,
    slopes, running statistics.
    """
    generator, found, exchanges = torch.Generator().manual_seed(0), [], []
    x = torch.randn(32, 8, 6, 6, generator=generator).to(
        gpu.device(), memory_format=torch.channels_last
    )
    weight = torch.randn(32, 8, 6, 6, generator=generator).to(gpu.device())
    before = processes.rows_of_all, processes.summed
    processes.rows_of_all, processes.summed = (
        (lambda row: exchanges.append(1) or row[None]),
        (lambda values: exchanges.append(1) or values),
    )
    try:
        for synchronised in (True, False):
            layer, leaf = torch.nn.BatchNorm2d(8).to(gpu.device()), x.clone().requires_grad_()
            y = norms.batch_norm(layer, leaf) if synchronised else layer(leaf)
            (functional.relu(y) * weight).sum().backward()
            found.append(
                [
                    y.detach(),
                    leaf.grad,
                    layer.weight.grad,
                    layer.bias.grad,
                    layer.running_mean,
                    layer.running_var,
                ]
            )
    finally:
        processes.rows_of_all, processes.summed = before
    assert len(exchanges) == 2, f"{len(exchanges)} exchanges a layer"
    return f"{checked(difference(*found), 1e-4)}; two exchanges a layer"


# ---- speed


def case():
    """The run whose rate is measured: ResNet-18 at the published settings, or a toy."""
    return (
        planned(
            architecture="resnet18_cifar",
            size=32,
            policy="cifar",
            batch_size=512,
            precision="bfloat16",
            epochs=2000,
            method="sdclr",
            head_layers=3,
            prune_fraction=0.9,
        )
        if gpu.here()
        else planned(method="sdclr", head_layers=3)
    )


def throughput():
    """SDCLR's update against its floor, and the hours of training that follow for every published
    profile.
    """
    run = case()
    row = floor.training_rate(
        run, 11_165 if gpu.here() else 20, 50 if gpu.here() else 1, 3 if gpu.here() else 1
    )
    machine = "H200" if "H200" in gpu.name() else "H100"
    least = budget.least_seconds(
        budget.update_cost(run.architecture, run.size, row["batch"]), machine
    )
    times = 2 * row["batch"] / row["views_per_second"] / least if gpu.here() else budget.EXPECTED
    for name, settings in budget.gpu_profiles().items():
        hours = times * budget.hours(machine, settings)
        print(f"     {name}: {hours:.1f} hours of training expected on one {machine}", flush=True)
    of_floor = (
        f", {times:.1f} times the floor of one {machine}"
        if gpu.here()
        else f", hours computed from {times} times the floor"
    )
    return f"{row['views_per_second']:.0f} views a second, {row['share']:.0%} of a product's rate{of_floor}"


def compiled_encoder():
    """What LONGTAIL_COMPILE=1 gains."""
    if not gpu.here():
        raise Left("compiling takes minutes on a processor")
    rates = []
    for asked in ("", "1"):
        os.environ["LONGTAIL_COMPILE"] = asked
        rates.append(floor.training_rate(case(), 11_165, 50, 3)["views_per_second"])
    del os.environ["LONGTAIL_COMPILE"]
    return f"{rates[1] / rates[0]:.2f} times as fast"


CHECKS = {
    **{
        f"{method}, recorded against one by one": lambda method=method: replays(method)
        for method in FAMILY
    },
    "with labels, recorded against one by one": labelled,
    "memory of two phases": two_phases,
    "views against the processor's": pixels,
    "picks against the processor's": picks,
    "batch norm over processes": norm,
    "SDCLR's update": throughput,
    "the compiled encoder": compiled_encoder,
}


TIMED = {throughput, compiled_encoder}


def main():
    """Run all checks; the number of those that fail."""
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.nullcontext() if gpu.here() else stand_in(),
    ):
        paths.RESULTS = Path(folder)
        print(f"on {gpu.name()}", flush=True)
        for name, check in CHECKS.items():
            torch.backends.cudnn.deterministic = check not in TIMED
            try:
                print(f"ok   {name}: {check()}", flush=True)
            except Left as reason:
                print(f"--   {name}: {reason}", flush=True)
            except Exception as error:  # whatever a GPU path raises is the finding
                failed += 1
                print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
                traceback.print_exc()
    print(f"{failed} of {len(CHECKS)} checks failed" if failed else "all holds", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
