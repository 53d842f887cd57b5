"""A data set is added by one function: tried in a copy of the package, by a profile that names
it.
"""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from longtail.images import datasets
from longtail.store import paths

FUNCTION = '''

@data_set("stripes", classes=4)
def stripes(size, lists):
    """Upright stripes of four widths, with noise: 60 images of each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 4
    wave = (torch.arange(size) // (labels[:, None] + 1)) % 2 * 200
    noise = torch.randint(0, 56, (240, 3, size, size), generator=generator)
    images = (wave[:, None, None, :] + noise).to(torch.uint8)
    names = tuple(f"stripes/{label}/{k:03d}" for k, label in enumerate(labels.tolist()))
    return hold_out(ImageSet(images, labels, names), ("one", "two", "three", "four"), test=10, validation=5)
'''
PROFILE = {
    "base": "demo",
    "about": "stripes of four widths",
    "hours": 0.1,
    "dataset": "stripes",
    "largest": 30,
    "factor": 0.2,
    "pool_per_class": 10,
    "epochs": 2,
    "warmup_epochs": 0,
    "splits": [1],
    "seeds": [1],
    "once": [],
    "arms": ["simclr long_tail"],
    "protocols": ["knn"],
    "curves": [],
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of package and notebooks with one more function."""
    root = tmp_path_factory.mktemp("grown")
    for folder in ("src", "notebooks"):
        shutil.copytree(
            paths.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    with open(root / "src/longtail/images/datasets.py", "a") as file:
        file.write(FUNCTION)
    return root


def command(root, profile, *words):
    (root / "striped.yaml").write_text(
        "\n".join(f"{name}: {json.dumps(value)}" for name, value in profile.items())
    )
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "LONGTAIL_OUTPUT": str(root)}
    return subprocess.run(
        [sys.executable, "-m", "longtail.command.reproduce", "striped.yaml", *words],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_one_function_reaches_the_notebooks(grown):
    done = command(grown, PROFILE, "01", "02", "03", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    scores = next((grown / "results/runs").glob("simclr-stripes_*/scores-knn-*.csv"))
    assert {"class one", "class four", "few"} <= set(pd.read_csv(scores).group)


def test_a_profile_that_names_it_is_checked_before_anything_runs(grown):
    refused = command(grown, PROFILE | {"lists": "split"}, "01", "--plain")
    assert (
        refused.returncode
        and "lists are for cifar10, cifar100, imagenet100" in refused.stdout + refused.stderr
    )
    refused = command(grown, PROFILE | {"dataset": "spots"}, "01", "--plain")
    assert (
        refused.returncode
        and "there are digits, cifar10, cifar100, imagenet100, stripes"
        in refused.stdout + refused.stderr
    )


def test_every_named_data_set_says_how_many_classes_it_has():
    assert {name: data.classes for name, data in datasets.NAMED.items()} == {
        "digits": 10,
        "cifar10": 10,
        "cifar100": 100,
        "imagenet100": 100,
    }
    assert len(datasets.load("digits", 8).classes) == 10
