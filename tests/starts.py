"""Runs that are started as notebooks start them, each in a process of its own: ``python starts.py
FOLDER COUNT``.

One run of 31 once stood still between its claim and its run.json. Whatever stands still for a
minute and a half leaves its stack in FOLDER/stuck-*.txt.
"""

import faulthandler
import json
import multiprocessing
import os
import sys
import time
from concurrent import futures
from dataclasses import replace
from pathlib import Path

import torch
import toy

from longtail.learn import train
from longtail.store import runs

PATIENCE = 90  # seconds


def start(number, root):
    """Seconds that one run of a single epoch took, and whether it is done."""
    with open(root / f"stuck-{number}.txt", "w") as stuck:
        faulthandler.dump_traceback_later(PATIENCE, file=stuck)
        began, images, results = time.monotonic(), toy.image_set(16), runs.Results("here")
        results.root, results.store = root, root / "runs"
        run = replace(toy.planned(images), seed=number, epochs=1, warmup_epochs=0)
        train.pretrain(run, images, results, progress=False, wait=False)
        faulthandler.cancel_dump_traceback_later()
    if not os.path.getsize(stuck.name):
        os.unlink(stuck.name)
    return time.monotonic() - began, results.is_done(run)


def main(root, count):
    """Start so many, two at a time, and write how many are done and the longest one's seconds."""
    root.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longtail.learn.train", "torch._dynamo", "toy"])
    with futures.ProcessPoolExecutor(
        2, context, torch.set_num_threads, (1,), max_tasks_per_child=1
    ) as pool:
        found = list(pool.map(start, range(count), [root] * count))
    (root / "found.json").write_text(
        json.dumps({"done": sum(done for _, done in found), "longest": max(found)[0]})
    )
    print(
        f"{count} starts, {sum(done for _, done in found)} done, the longest took "
        f"{max(found)[0]:.1f} s"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
