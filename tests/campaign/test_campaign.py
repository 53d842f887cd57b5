"""The campaign at its small size; a process of its own forks safely."""

import subprocess
import sys
from pathlib import Path


def test_no_case_of_a_small_campaign_ends_badly():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("campaign.py"), "small"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(kind in done.stdout for kind in ("kills", "torn", "parameters", "requests", "disk"))
