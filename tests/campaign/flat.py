"""Memory, open files and threads as a run is trained: ``python tests/campaign/flat.py [updates]``;
exit status 0 when all stay flat (10,000 updates: 490 to 491 MiB, 7 files, 2 threads).

A checkpoint, the log and snapshots are written on the way, as in any run.
"""

import os
import resource
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy import image_set, planned  # noqa: E402

from longtail.learn import train  # noqa: E402
from longtail.store import paths, runs  # noqa: E402

EPOCH = 50  # updates; the first tenth of the epochs warms up
ALLOWED = {"MiB": 12, "files": 0, "threads": 0}  # more than the most at any time before the middle


def held():
    """What this process holds now: resident memory, open files, threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MiB": pages * resource.getpagesize() / 2**20,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def watched(updates):
    """Train SDCLR with BCL's views for so many updates: rows updates, MiB, files, threads, one for
    each epoch.
    """
    images, rows, whole = image_set(8 * EPOCH), [], train.train_epoch
    run = planned(images, method="sdclr+bcl", epochs=max(10, updates // EPOCH), learning_rate=1e-3)

    def epoch(step, number, rates):
        losses = whole(step, number, rates)
        rows.append({"updates": (number + 1) * EPOCH, **held()})
        return losses

    train.train_epoch = epoch
    try:
        train.pretrain(run, images, runs.Results("flat"), progress=False, checkpoint_seconds=0)
    finally:
        train.train_epoch = whole
    return pd.DataFrame(rows)


def grown(rows):
    """What the second half of a run holds beyond the first, in words; empty when all is flat."""
    kept = rows[len(rows) // 10 :]
    first, second = kept[: len(kept) // 2].max(), kept[len(kept) // 2 :].max()
    return [
        f"{name} grew from {first[name]:.0f} to {second[name]:.0f}"
        for name, more in ALLOWED.items()
        if second[name] > first[name] + more
    ]


def main(updates=10_000):
    """Print ten moments of the run; the number of what grew."""
    with tempfile.TemporaryDirectory() as folder:
        paths.RESULTS = Path(folder)
        rows = watched(int(updates))
    print(rows[len(rows) // 10 - 1 :: len(rows) // 10].round(1).to_string(index=False))
    found = grown(rows)
    print("\n".join(found) or "all flat")
    return len(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(*sys.argv[1:]))
