"""A sampler that is added as one record is everywhere: in picks, tables, figures with its colour,
requests and on their page.
"""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from longtail.store import paths

RECORD = """
SAMPLERS["first"] = Sampler(lambda budget, **_: torch.arange(budget), "the first", "As they come.", "#123456", "h")
"""
ASK = """
from longtail.own import gallery, request
from longtail.papers import figures
assert figures.SAMPLER["palette"]["the first"] == "#123456" and figures.SAMPLER["markers"]["the first"] == "h"
assert "first" in str(request.ASKED["samplers"].annotation) and gallery.SAMPLERS["first"].takes == "As they come."
"""
DOCUMENTED = """
import re, sys, torch
from longtail.pick import samplers
[code] = re.findall(r"```python\\n(.*?)```", open(sys.argv[1], encoding="utf-8").read(), re.DOTALL)
exec(code, vars(samplers))
pool, seed = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3)
picks = samplers.sample("densest", torch.rand(9), torch.rand(9), pool, seed, 3, 0.3, 1.5, generator_seed=0)
assert picks.tolist() == pool.norm(dim=1).argsort(descending=True)[:3].tolist()
"""
TINY = {
    "base": "demo",
    "about": "one epoch of one run",
    "hours": 0.1,
    "epochs": 1,
    "warmup_epochs": 0,
    "splits": [1],
    "seeds": [1],
    "once": [],
    "arms": ["simclr long_tail"],
    "views": 2,
    "budget": 40,
    "retrain": [],
    "equal_updates": [],
    "iterations": 50,
    "protocols": ["knn"],
    "samplers": [],
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of package and notebooks with one more record, and its answers to 01, 02, 05 and
    06.
    """
    root = tmp_path_factory.mktemp("grown")
    for folder in ("src", "notebooks"):
        shutil.copytree(
            paths.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    with open(root / "src/longtail/pick/samplers.py", "a") as file:
        file.write(RECORD)
    (root / "grown.yaml").write_text(
        "\n".join(f"{name}: {json.dumps(value)}" for name, value in TINY.items())
    )
    return root


def python(root, *words):
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "LONGTAIL_OUTPUT": str(root)}
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_record_reaches_figures_requests_and_pages(grown):
    python(grown, "-c", ASK)


def test_the_documented_example_is_a_sampler(grown):
    python(grown, "-c", DOCUMENTED, str(paths.ROOT / "CONTRIBUTING.md"))


def test_one_record_reaches_the_notebooks(grown):
    python(
        grown,
        "-m",
        "longtail.command.reproduce",
        "grown.yaml",
        "01",
        "02",
        "03",
        "05",
        "06",
        "--plain",
    )
    for name, column in (
        ("composition", "sampler"),
        ("picks", "sampler"),
        ("diversity", "sampler"),
        ("objective", "sampler"),
        ("tsne", "sampler"),
    ):
        rows = pd.read_csv(grown / f"figures/grown/{name}.csv")
        assert "first" in set(rows[column]), name
    picks = pd.read_csv(grown / "figures/grown/picks.csv")
    assert picks[picks.sampler == "first"]["index"].tolist() == list(range(24))
