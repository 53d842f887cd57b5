"""What an update costs, by counting, beside what is written down in golden/budgets.json: a number
that changes is meant to.

Kernels are those of small networks without a compiler: one for each operator that does work.
``python tests/bench/test_budgets.py`` writes anew.
"""

import json
from unittest import mock

import pytest
import torch
from tape import Launches, several, stand_in
from toy import FAMILY, IMAGES, planned

from longtail.bench import budget
from longtail.images import sources
from longtail.label import adjusted, supervised
from longtail.learn import norms, train
from longtail.learn.methods import gh
from longtail.store import gpu, paths

GOLDEN = paths.ROOT / "tests" / "golden" / "budgets.json"


def of_update(records, name, processes=1):
    """What the host launches for an update of a method, in its last phase: kernels one by one, or
    graphs and what goes into them.
    """
    run = planned(method=name)
    with stand_in(records), several(processes):
        encoder, method, optimizer = train.initialise(run)
        method.start(IMAGES, encoder if "rwsam" in name else None)
        step = train.Step(run, encoder, method, optimizer, IMAGES.images)
        for epoch in range(3):
            method.before_epoch(encoder, epoch)
        step(torch.arange(8), 0.1)
        with Launches() as launches:
            step(torch.arange(8), 0.1)
        return launches.count


def of_labelled_update(records):
    """The same for an update on labels: ResNet-32, LDAM-DRW."""
    schedule = supervised.Schedule(2, 8, 0.1, drops=(1,), drop=0.1, warmup_epochs=0)
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
        policy="digits",
        precision="float32",
    )
    method = adjusted.method_of(*adjusted.read_loss("ldam_drw"), [8, 8, 4], schedule)
    network = supervised.Network(run, 3, method)
    optimizer = supervised.optimizer_of(network, network.layer, method, schedule)
    batch = IMAGES.images[:8].float() / 255, IMAGES.labels[:8]
    with stand_in(records):
        update = supervised.Update(network, optimizer, IMAGES.labels)
        for _ in range(2):
            with Launches() as launches:
                update(method.loss(0), 0.1, *batch)
        return launches.count


def of_sinkhorn(records):
    """The same for Sinkhorn's 300 rounds where they are no part of a recorded update."""
    logits, prior = torch.zeros(2, 8, 6), torch.ones(6)
    with stand_in(records):
        assigned = gpu.Recorded(gh.sinkhorn)
        for _ in range(2):
            with Launches() as launches:
                assigned(((), 8), logits, prior)
        return launches.count


def decoders(cores):
    """Threads that decode at once where this process may use so many cores and torch one thread."""
    with mock.patch.object(sources.os, "sched_getaffinity", lambda process: set(range(cores))):
        return sources.decoders()


def exchanges(name, architecture):
    """Messages between processes in one update."""
    run = planned(method=name, architecture=architecture, head_layers=2)
    encoder, method, optimizer = train.initialise(run)
    method.start(IMAGES, None)
    with several() as sent:
        train.Step(run, encoder, method, optimizer, IMAGES.images)(torch.arange(16), 0.1)
    return len(sent)


def synchronised_norm():
    """Of one layer: kernels that pass over its rows, passes that they make, messages, bytes kept
    for each number of its input.
    """
    passes, called, kept = (
        {"stats": 1, "elemt": 2, "backward_reduce": 2, "backward_elemt": 3},
        [],
        {},
    )
    before = {name: getattr(norms, f"batch_norm_{name}") for name in passes}
    x = torch.randn(64, 16, 8, 8).bfloat16().requires_grad_()

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    for name, kernel in before.items():
        setattr(
            norms,
            f"batch_norm_{name}",
            lambda *given, name=name, kernel=kernel: called.append(name) or kernel(*given),
        )
    try:
        with (
            several() as sent,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            norms.batch_norm(torch.nn.BatchNorm2d(16), x).sum().backward()
    finally:
        for name, kernel in before.items():
            setattr(norms, f"batch_norm_{name}", kernel)
    held = sum(tensor.numel() * tensor.itemsize for tensor in kept.values())
    return {
        "kernels": len(called),
        "passes": sum(passes[name] for name in called),
        "messages": len(sent),
        "bytes kept": round(held / x.numel(), 1),
    }


def counted():
    """All of it."""
    more = {
        "gh, two processes": lambda records: of_update(records, "gh", 2),
        "Sinkhorn alone": of_sinkhorn,
        "with labels, resnet32": of_labelled_update,
    }
    recorded = {
        "simclr": lambda records: of_update(records, "simclr"),
        "gh": lambda records: of_update(records, "gh"),
        **more,
    }
    return {
        "kernels of an update": {name: of_update(False, name) for name in FAMILY}
        | {name: ask(False) for name, ask in more.items()},
        "launches of a recorded update": {name: ask(True) for name, ask in recorded.items()},
        "threads that decode": {
            f"{cores} core{'s' * (cores > 1)}": decoders(cores) for cores in (1, 16)
        },
        "messages of an update": {
            f"{name}, {architecture}": exchanges(name, architecture)
            for name, architecture in (
                ("simclr", "convnet"),
                ("simclr", "resnet18_cifar"),
                ("sdclr", "resnet18_cifar"),
            )
        },
        "batch norm over processes": synchronised_norm(),
        "KiB kept of a view": {
            f"{architecture}, {size} px": round(budget.network(architecture, size)[2] / 1024)
            for architecture, size in (
                ("resnet18_cifar", 32),
                ("resnet18_cifar", 64),
                ("resnet50", 224),
            )
        },
        "GiB kept of an update": budget.published_profiles()
        .set_index("profile")["kept, GiB"]
        .round(1)
        .to_dict(),
    }


@pytest.fixture(scope="module")
def found():
    return counted()


@pytest.mark.parametrize("what", json.loads(GOLDEN.read_text()) if GOLDEN.exists() else [])
def test_counts_are_those_written_down(found, what):
    assert found[what] == json.loads(GOLDEN.read_text())[what]


def test_processes_exchange_less_than_half_of_what_a_composed_norm_would(found):
    """That took five messages a layer and three more: 113 for ResNet-18."""
    assert found["messages of an update"]["simclr, resnet18_cifar"] < 113 / 2


def test_a_recorded_update_is_one_launch_and_its_inputs(found):
    counts = dict(found["launches of a recorded update"])
    assert (
        counts.pop("gh, two processes") < found["kernels of an update"]["gh, two processes"] / 2
    )  # there only Sinkhorn is recorded
    assert (
        max(counts.values()) <= 5
        and min(found["kernels of an update"][name] for name in counts) > 300
    )


def test_every_profile_for_a_gpu_fits_the_memory_that_is_stated():
    rows = budget.published_profiles().set_index("profile")
    assert {"cifar10", "imagenet100-mix", "cifar100-supervised"} < set(
        rows.index
    ) and "cifar10-small" not in rows.index
    for name, row in rows.iterrows():
        assert 0 < row["kept, GiB"] < 0.75 * row["stated, GiB"], (
            name
        )  # the rest is for weights, views and convolutions' work space


def test_floors_are_those_found_by_hand():
    """Computed from the shapes on paper, for one H200: milliseconds of an update, minutes of
    ECLE.
    """
    cases = budget.cases().set_index("case")["H200, s"]
    assert cases["update, ResNet-18, 32 px, batch 512"] == pytest.approx(6.7e-3, rel=0.02)
    assert cases["update, ResNet-50, 224 px, batch 256"] == pytest.approx(37e-3, rel=0.02)
    assert cases["ECLE, 1.14 million images, 10 views, ResNet-50"] == pytest.approx(
        3.9 * 60, rel=0.02
    )


def test_hours_follow_from_runs_and_updates():
    """By hand: four arms of 2,000 epochs on five splits of 11,165 images."""
    settings = budget.gpu_profiles()["cifar10"]
    runs = list(budget.trainings(settings))
    assert len(runs) == 20 and {(run.epochs, *run.network) for run in runs} == {
        (2000, "resnet18_cifar", 32, 512, 2)
    }
    step = budget.least_seconds(budget.update_cost("resnet18_cifar", 32, 512), "H100")
    assert budget.hours("H100", settings) == pytest.approx(20 * 11_165 / 512 * 2000 * step / 3600)
    doubled = (
        {**settings, "arms": ["simsiam+rwsam long_tail"]},
        {**settings, "arms": ["simsiam long_tail"]},
    )
    assert budget.hours("H100", doubled[0]) == pytest.approx(2 * budget.hours("H100", doubled[1]))


def test_what_is_trained_follows_from_the_profile():
    """Picked images join the seed, but not where the updates stay as many; COLT's pool images do;
    labels need one view.
    """
    small = {
        **budget.gpu_profiles()["tiny"],
        "splits": [1],
        "seeds": [1],
        "arms": ["simclr long_tail", "untrained long_tail"],
    }
    runs = list(
        budget.trainings(
            {
                **small,
                "retrain": ["mak", "mak budget=6000"],
                "equal_updates": ["mak"],
                "overhead_epochs": 850,
            }
        )
    )
    seed = runs[0].images
    assert seed == 3575 and [(run.images - seed, run.epochs) for run in runs] == [
        (0, 500),
        (0, 0),
        (3000, 500),
        (6000, 500),
        (0, 500),
        (3000, 850),
    ]
    family = {
        **budget.gpu_profiles()["cifar10-family"],
        "splits": [1],
        "arms": ["simclr long_tail", "colt long_tail budget=10000"],
    }
    assert [run.images for run in budget.trainings(family)] == [11_165, 21_165]
    labelled = list(budget.trainings(budget.gpu_profiles()["cifar10-supervised"]))
    assert len(labelled) == 264 and {run.network for run in labelled} == {("resnet32", 32, 128, 1)}
    assert labelled[0].images == 11_203  # ratio 200, as LDAM's code counts


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(counted(), indent=1) + "\n")
