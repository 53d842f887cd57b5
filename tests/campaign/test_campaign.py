"""The campaign at its small size, a process of its own that forks safely, and what README tells of the full one."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import campaign  # noqa: E402

from longtail.store import paths  # noqa: E402


def test_no_case_of_a_small_campaign_ends_badly():
    done = subprocess.run(
        [sys.executable, campaign.__file__, "small"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"\n{kind.__name__}: " in f"\n{done.stdout}" for kind in campaign.KINDS)


def test_readme_quotes_the_counts_of_the_full_campaign():
    counts = pd.read_csv(campaign.COUNTS, index_col="kind")
    assert campaign.sentence(counts) in (paths.ROOT / "README.md").read_text().splitlines()
    assert not counts[list(campaign.BAD)].to_numpy().any() and set(counts.index) == {
        kind.__name__ for kind in campaign.KINDS
    }
    assert (counts[[*campaign.GOOD, *campaign.BAD]].sum(axis=1) == counts.cases).all()


@pytest.mark.parametrize(
    "answer, ended",
    [
        (("value", 1), "as before"),
        (("value", 2), "silently wrong"),
        (("error", "ValueError", "a/b is cut"), "named"),
        (("error", "KeyError", "a/b"), "no name"),
        (("hang",), "hang"),
        (("code run",), "code run"),
    ],
)
def test_how_a_case_ended(answer, ended):
    assert campaign.judged(answer, 1, ["a/b"]) == ended


DEEDS = {
    "os.system('true')": "code run",
    "open('{0}/x', 'w')": "outside",
    "len(b'xy' * (campaign.ALLOWED * 5 // 8))": "memory",
    "pickle.loads(pickle.dumps(campaign.Canary()))": "code run",
    "open('{0}/inside/x', 'w').close()": "value",
}


def test_what_a_case_may_not_do_is_noted(tmp_path):
    (tmp_path / "inside").mkdir()
    lines = [
        f"print(campaign.told(lambda: {line.format(tmp_path)}, Path('{tmp_path}/inside'))[0])"
        for line in DEEDS
    ]
    code = "\n".join(
        [
            "import os, pickle, sys",
            f"sys.path.insert(0, '{Path(campaign.__file__).parent}')",
            "from pathlib import Path",
            "import campaign",
            *lines,
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == list(DEEDS.values()), done.stderr
