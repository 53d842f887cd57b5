"""What the published profiles must cost on a GPU, computed from shapes and two rates of the
machine: no number here is measured.
"""

import functools
import re
from dataclasses import dataclass

import pandas as pd
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from longtail.command import estimate, reproduce
from longtail.command.profiles import notebooks_of
from longtail.images import studies
from longtail.learn import methods, models
from longtail.store import paths

# Operations a second of a large bfloat16 product, bytes a second of a copy on the device, counted
# twice (seen on one machine of each
# kind), and of a product in float64 (datasheet).
MACHINES = {"H100": (790e12, 3.0e12, 67e12), "H200": (790e12, 4.3e12, 67e12)}
HALF = 2  # bytes of a bfloat16
# over every convolution's output: statistics, normalise and ReLU forward, two reductions and a
# write back
TRAINING_PASSES = 8
# with batch norm folded into the convolutions: each output written once and read once
SCORING_PASSES = 2
# times the floor: what SDCLR's update took with ResNet-18, 32 pixels, batches of 512, on one H200
# (gpu_smoke.py: 55,081 views a second)
EXPECTED = 2.8


# ---- of a network


@functools.cache
def network(architecture, size):
    """Of one view, by shapes alone: operations forward, numbers that its convolutions put out,
    bytes kept for the way back.
    """
    outputs, kept, views = [], {}, 2
    with torch.device("meta"):
        trunk, x = (
            models.trunk(architecture, 1).to(torch.bfloat16),
            torch.empty(views, 3, size, size, dtype=torch.bfloat16),
        )
    for module in trunk.modules():
        if isinstance(module, models.Conv):
            module.register_forward_hook(lambda module, _, y: outputs.append(y.numel()))

    def keep(tensor):
        if (
            tensor.ndim and len(tensor) == views
        ):  # of the views, not of the weights; a tensor kept by two operators counts once
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        trunk(x)
    held = sum(tensor.numel() * tensor.itemsize for tensor in kept.values())
    return counter.get_total_flops() / views, sum(outputs) / views, held / views


def update_cost(architecture, size, batch, views=2):
    """(operations, bytes) of one update by a batch, ``views`` of each image: backward takes twice
    the operations of forward.
    """
    operations, outputs, _ = network(architecture, size)
    return 3 * views * batch * operations, TRAINING_PASSES * HALF * views * batch * outputs


def memory(architecture, size, batch, views=2):
    """Bytes that an update keeps for the way back."""
    return views * batch * network(architecture, size)[2]


def scored(architecture, size, images, views):
    """(operations, bytes) of one pass of so many images, ``views`` times."""
    operations, outputs, _ = network(architecture, size)
    return images * views * operations, SCORING_PASSES * HALF * images * views * outputs


def selected(candidates, seeds, budget, width):
    """(operations, bytes) of K-center's products in float64: every candidate meets the seed, and
    half of the picks.
    """
    return 2 * candidates * (seeds + budget / 2) * width, 4 * candidates * width


def least_seconds(cost, machine, double=False):
    """The floor: arithmetic and memory one after the other, as they are unless fused."""
    operations, moved = cost
    rate, bandwidth, double_rate = MACHINES[machine]
    return operations / (double_rate if double else rate) + moved / bandwidth


# ---- the table

CASES = {  # case -> (cost, whether in float64)
    "update, ResNet-18, 32 px, batch 512": lambda: (update_cost("resnet18_cifar", 32, 512), False),
    "update, ResNet-18, 64 px, batch 256": lambda: (update_cost("resnet18_cifar", 64, 256), False),
    "update, ResNet-50, 224 px, batch 256": lambda: (update_cost("resnet50", 224, 256), False),
    "ECLE, 1.14 million images, 10 views, ResNet-50": lambda: (
        scored("resnet50", 224, 1_140_000, 10),
        False,
    ),
    "features of 1.14 million images, ResNet-50": lambda: (
        scored("resnet50", 224, 1_140_000, 1),
        False,
    ),
    "MAK's K-center, 15,000 candidates, 10,000 picks": lambda: (
        selected(15_000, 12_000, 10_000, 2048),
        True,
    ),
    "K-center of 1.14 million images, 512 first centers": lambda: (
        selected(1_140_000, 512, 0, 2048),
        True,
    ),
}


def cases():
    """The floors: case, operations and bytes, seconds on each machine. Computed, not measured."""
    rows = []
    for case, cost in CASES.items():
        (operations, moved), double = cost()
        rows.append(
            {
                "case": case,
                "TFLOP": operations / 1e12,
                "GB": moved / 1e9,
                **{
                    f"{machine}, s": least_seconds((operations, moved), machine, double)
                    for machine in MACHINES
                },
            }
        )
    return pd.DataFrame(rows)


def told(seconds):
    """A time in the unit that suits it."""
    return next(
        f"{seconds / length:.3g} {unit}"
        for unit, length in (("min", 60), ("s", 1), ("ms", 1e-3))
        if seconds >= length
    )


# ---- of the published profiles


@dataclass(frozen=True)
class Training:
    """A run, as far as its cost goes: rwSAM goes twice through its network in an update, and labels
    need one view of an image.
    """

    method: str
    images: int
    epochs: int
    network: tuple  # architecture, size, batch, views
    passes: int = 1

    def seconds(self, machine):
        """The floor of all its updates."""
        return (
            self.passes
            * self.epochs
            * self.images
            / self.network[2]
            * least_seconds(update_cost(*self.network), machine)
        )


def gpu_profiles():
    """Settings of the profiles that want a GPU, by name."""
    profiles = yaml.safe_load((paths.NOTEBOOKS / "profiles.yaml").read_text())
    return {
        name: settings for name, settings in profiles.items() if settings and settings.get("gpus")
    }


def trainings(settings):
    """The ``Training`` of every run that a profile makes: its arms, the seed with picked images,
    networks with labels.
    """
    books = [book for book in notebooks_of(paths.NOTEBOOKS) if book.number in settings["notebooks"]]
    values = reproduce.merged([(book, book.own(settings)) for book in books])
    classes = 10 if values["dataset"] == "cifar10" else 100

    def images(largest, factor, kind):
        return sum(studies.long_tail_counts(values[largest], classes, factor, kind))

    for book in (book for book in books if book.number in ("02", "05", "07")):
        for run in estimate.wanted(reproduce.only(book, values)):
            if "imbalance" in run:
                yield Training(
                    run["method"],
                    images("largest_class", 1 / run["imbalance"], run["subset"]),
                    run["epochs"],
                    (run["architecture"], run["size"], values["supervised_batch"], 1),
                )
            else:
                grows = (
                    run["added"] != "none"
                    and run["schedule"] != "updates"
                    or methods.find(run["method"]).picks
                )
                extra = run.get("budget", values.get("budget")) if grows else 0
                count = images("largest", values["factor"], values["kind"]) + extra
                yield Training(
                    run["method"],
                    count,
                    run["epochs"],
                    (run["architecture"], run["size"], run["batch_size"], 2),
                    1 + ("rwsam" in run["method"]),
                )


def hours(machine, settings):
    """The floor of a profile's training, in hours."""
    return sum(run.seconds(machine) for run in trainings(settings)) / 3600


def published_profiles():
    """Hours of training of each published profile: the floor, and ``EXPECTED`` times that.
    Computed, not measured.

    ``kept``: the most that an update keeps for the way back; ``stated``: the memory of the GPU that
    the profile asks for.
    """
    return pd.DataFrame(
        [
            {
                "profile": name,
                "runs": len(found := list(trainings(settings))),
                "kept, GiB": max(memory(*run.network) for run in found) / 2**30,
                "stated, GiB": int(re.search(r"one GPU of (\d+) GiB", settings["about"])[1]),
                **{
                    f"{machine} {word}, h": factor * hours(machine, settings)
                    for machine in MACHINES
                    for word, factor in (("floor", 1.0), ("expected", EXPECTED))
                },
            }
            for name, settings in gpu_profiles().items()
        ]
    )
