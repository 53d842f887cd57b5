"""A request that states its memory stays within it: the peak of a process of its own, at sizes that
would fill it if all were held.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

COMMAND = """
import json, sys
from longtail.command import reproduce
code = reproduce.main([sys.argv[1]])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
json.dump({"code": code, "mib": peak / 1024}, open(sys.argv[2], "w"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory was resident")
def test_a_pool_is_scored_within_the_memory_that_is_stated(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    for part, count in (("seed", 8), ("pool", 40)):
        (tmp_path / part).mkdir()
        for number in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            coarse.resize((300, 260)).save(tmp_path / part / f"{number}.jpg")
    coarse.resize((5000, 4000)).save(tmp_path / "pool/large.png")  # 381 MiB while it is decoded
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "seed_images": "seed",
                "pool_images": "pool",
                "memory": "2 GB",
                "size": 640,
                "views": 2,
                "ecle_repeats": 1,
                "prototypes": 3,
                "budget": 4,
                "samplers": ["mak"],
                "epochs": 1,
                "warmup_epochs": 0,
                "batch_size": 4,
                "shown": 4,
            }
        )
    )
    monkeypatch.setenv("LONGTAIL_OUTPUT", str(tmp_path / "out"))
    subprocess.run(
        [sys.executable, "-c", COMMAND, tmp_path / "mine.yaml", tmp_path / "found.json"],
        check=True,
        timeout=900,
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["code"] == 0 and found["mib"] < 2048, found
