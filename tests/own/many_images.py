"""How fast, and in how little memory, a large pool is read, scored and picked from, beside decoding
alone: ``python tests/own/many_images.py FOLDER [COUNT]``, for 100,000 images about half an hour on
one quiet core.

COUNT synthetic JPEG files of 64 to 96 pixels are made, half of them smooth and half of them noisy.
A request with ``memory: 4 GB`` picks from them with an encoder trained on 200 others; it is killed
once while it scores, and started again. The floor is the same files opened, decoded and cut to
squares, and nothing else. Printed: images a second of each, and the most that was resident.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from longtail.images import places, sources

REQUEST = {
    "seed_images": "seed",
    "pool_images": "pool",
    "memory": "4 GB",
    "size": 16,
    "views": 2,
    "epochs": 5,
    "warmup_epochs": 1,
    "picked_files": "none",
}
COMMAND = [sys.executable, "-m", "longtail.command.reproduce"]


def photographs(folder, count, draw):
    """JPEG files, no two alike, in folders of a thousand."""
    for number in range(count):
        wide, high = draw.integers(64, 97, 2)
        coarse = draw.integers(0, 256, (*draw.integers(3, 40, 2), 3), dtype=np.uint8)
        file = folder / f"{number // 1000:03d}/{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((wide, high)).save(file, quality=90)


def floor(folder):
    """Images a second that are read, decoded and cut to squares on one core."""
    files, began = places.files_of(folder).files, time.monotonic()
    for start in range(0, len(files), 4096):
        _, _, broken = sources.read_images(files[start : start + 4096], REQUEST["size"])
        assert not broken, broken[0]
    return len(files) / (time.monotonic() - began)


def carried_out(address, said, environment, until=None):
    """Carry out the request, and add what it prints to a file; kill it two seconds after there is
    a file ``until``.
    """
    with (
        open(said, "a") as file,
        subprocess.Popen([*COMMAND, address], env=environment, stdout=file) as process,
    ):
        while process.poll() is None:
            time.sleep(0.5)
            if until and list(address.parent.glob(until)):
                time.sleep(2)
                process.send_signal(signal.SIGKILL)
    return process.returncode


def main(root, count=100_000):
    """Make the pool where there is none, pick from it, and print how fast each part was."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # everything on one core
    draw = np.random.default_rng(0)
    for part, size in (("seed", 200), ("pool", count)):
        if not (root / part).exists():
            photographs(root / part, size, draw)
    address, said = root / "many.yaml", root / "said.txt"
    address.write_text(yaml.safe_dump(REQUEST))
    environment = os.environ | {"LONGTAIL_OUTPUT": str(root / "out")}
    begun = "out/results/runs/*/scoring/pool*/*.chunks"
    before = floor(root / "pool")
    first = carried_out(address, said, environment, begun)
    second = carried_out(address, said, environment)
    assert (first, second) == (-signal.SIGKILL, 0), "see what it said"
    for line in said.read_text().splitlines():
        if re.search(r"(read|scored) \d+ ", line):
            print(line)
    print(f"decoding alone: {before:.0f} images a second, {floor(root / 'pool'):.0f} afterwards")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"most that was resident: {peak:.2f} GiB; killed once, and went on")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), *map(int, sys.argv[2:]))
