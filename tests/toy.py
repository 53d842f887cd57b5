"""A run small enough to be made again and again, here and in processes of its own: ``toy.py folder
kills 'method images epochs'…``.
"""

import contextlib
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import tape
import torch
import torch._dynamo  # noqa: F401, which every optimiser needs: children that are killed need not import it
import tqdm

from longtail.images import sources
from longtail.learn import train
from longtail.store import paths, runs

# tqdm's lock is shared with forked processes: one that is killed while it holds it stops all others
tqdm.tqdm.set_lock(threading.RLock())
tqdm.tqdm.monitor_interval = 0  # no thread of its own: only a process of one thread forks safely

RUN = runs.Run(
    dataset="toy",
    subset="long_tail",
    split=1,
    seed=1,
    method="simclr",
    head_layers=2,
    architecture="convnet",
    size=16,
    policy="digits",
    epochs=4,
    batch_size=8,
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup_epochs=1,
    temperature=0.2,
    prune_fraction=0.5,
    precision="float32",
    images="",
)


def proximity_tolerance(width):
    """How far apart two machines' distances of the same features and prototypes can be, in float32.

    Twice the error of a product of two rounded rows of length 1, for any order of the sum.
    """
    return (width + 4) * torch.finfo(torch.float32).eps


def image_set(count, side=16, seed=0):
    """Random smooth pictures with labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").byte()
    return sources.ImageSet(
        images, torch.arange(count) % 3, tuple(f"toy/{k:03d}" for k in range(count))
    )


IMAGES = image_set(20)  # three batches an epoch: 8, 8, 4
_PICKING = {
    "reserve": 8,
    "budget": 6,
}  # 12 seed images make two batches an epoch; with 6 of a pool of 8 there are three
FAMILY = {  # every method, and several joined, at settings for four epochs of so few images
    "simclr": {},
    "sdclr": {},
    "simsiam": {},
    "supervised": {"head_layers": 1},
    "focal": {},
    "bcl": {"options": "draws=1 floor=10"},
    "sdclr+bcl": {"head_layers": 3, "options": "draws=2 floor=5"},
    "two_stage": {"options": "warm=2"},
    "gh": {"options": "classes=6 ramp=2 refresh=1 warm=2"},
    "colt": {**_PICKING, "options": "begin=1 clusters=3 nearest=4 repick=2"},
    "rwsam": {"options": "rho=0.5"},
    "ts": {"options": "period=2"},
    "sdclr+ts": {"head_layers": 3, "options": "high=0.5 period=4 shape=shuffled"},
    "simsiam+rwsam": {"options": "rho=0.5"},
    "simsiam+rwsam_oracle": {"options": "rho=0.5"},
    "sdclr+bcl+gh+colt": {
        **_PICKING,
        "head_layers": 3,
        "options": "begin=1 classes=6 clusters=3 draws=2 floor=5 nearest=4 ramp=2 refresh=1 repick=2 warm=2",
    },
}


def planned(images=IMAGES, **changes):
    """A run of RUN's settings on these images, its method's settings from FAMILY, with changes."""
    return replace(
        RUN, images=images.digest, **{**FAMILY.get(changes.get("method"), {}), **changes}
    )


def killed(work, moment):
    """Do ``work`` in a child that is killed after so many seconds, or in the middle of writing its
    next checkpoint.
    """
    if not (child := os.fork()):
        if moment == "checkpoint":
            Path.write_bytes = half_a_checkpoint
        work()
        os._exit(0)
    if moment != "checkpoint":
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def half_a_checkpoint(path, content):
    """What a process leaves that dies while it writes."""
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2] if "last.pt" in path.name else content)
    if "last.pt" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)


def main(folder, kills, *jobs):
    """Pre-train toy runs, each job a method, how many images and how many epochs, killed ``kills``
    times before they may end.
    """
    torch.set_num_threads(1)
    paths.RESULTS = Path(folder)
    with (
        tape.stand_in() if os.environ.get("TOY_STAND_IN") else contextlib.nullcontext()
    ):  # takes the branches of a GPU
        for job in jobs:
            make(int(kills), *job.split())


def make(kills, method, count, epochs):
    """One of these runs."""
    images = image_set(int(count))
    run = planned(images, method=method, epochs=int(epochs), warmup_epochs=0, learning_rate=1e-3)
    draw = random.Random(method)
    moments = ["checkpoint" if k % 4 == 3 else draw.uniform(0.05, 0.4) for k in range(kills)]

    def work():
        train.pretrain(run, images, runs.Results("toy"), progress=False, checkpoint_seconds=0)

    if not all([killed(work, moment) for moment in moments]):
        sys.exit("a process ended before it was killed: the run is too short")
    work()


if __name__ == "__main__":
    main(*sys.argv[1:])
