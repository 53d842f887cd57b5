"""No run stands still between its claim and its first file, however many are started
(tests/starts.py tries as many as asked).
"""

import json
import subprocess
import sys

from longtail.store import paths


def test_every_start_ends(tmp_path):
    command = [sys.executable, paths.ROOT / "tests" / "starts.py", tmp_path / "runs", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/found.json").read_text())["done"] == 8 and not list(
        (tmp_path / "runs").glob("stuck-*")
    )
    assert len(list((tmp_path / "runs/runs").glob("*/done.json"))) == 8
