"""The small size of the watch over memory and files, and what it would find."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import flat  # noqa: E402

STEADY = {
    "updates": range(50, 1050, 50),
    "MiB": [300.0, 310.0, *[311.0] * 18],
    "files": [9] * 20,
    "threads": [3] * 20,
}


def test_five_hundred_updates_hold_no_more_than_the_first():
    done = subprocess.run(
        [sys.executable, Path(flat.__file__), "500"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 12 and done.stdout.endswith("all flat\n")


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("MiB", [300 + k for k in range(20)], []),
        ("MiB", [300 + 3 * k for k in range(20)], ["MiB grew from 330 to 357"]),
        ("files", [9] * 15 + [10] * 5, ["files grew from 9 to 10"]),
        ("threads", [3] * 19 + [4], ["threads grew from 3 to 4"]),
    ],
)
def test_what_grows_is_named(name, values, words):
    assert flat.grown(pd.DataFrame(STEADY | {name: values})) == words
