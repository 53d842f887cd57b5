"""Features that come from elsewhere are picked from without pixels, and those of a pool can be
taken elsewhere.
"""

import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from longtail.command import reproduce
from longtail.images import memory
from longtail.own import embeddings
from longtail.pick import samplers
from longtail.store import paths

KINDS = ["npy", "parquet"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Names and features of 12 seed and 40 pool images in files of both kinds."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    draw, found = torch.Generator().manual_seed(0), {}
    for part, count in (("seed", 12), ("pool", 40)):
        found[part] = (
            [f"{part}/{number:02d}.jpg" for number in range(count)],
            torch.randn(count, 16, generator=draw),
        )
        for kind in KINDS:
            embeddings.write_features(tmp_path / f"{part}.{kind}", *found[part])
    return found


def ask(folder, *words, **settings):
    (folder / "mine.yaml").write_text(yaml.safe_dump({"budget": 7, "prototypes": 3, **settings}))
    return reproduce.main([str(folder / "mine.yaml"), *words])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read(rows, tmp_path, kind):
    names, values = embeddings.read_features(tmp_path / f"pool.{kind}")
    assert (
        embeddings.holds(tmp_path / f"pool.{kind}")
        and names == rows["pool"][0]
        and torch.equal(values, rows["pool"][1])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_picks_are_those_of_the_samplers(rows, tmp_path, kind):
    assert ask(tmp_path, seed_images=f"seed.{kind}", pool_images=f"pool.{kind}") == 0
    table = pd.read_csv(tmp_path / "results/mine/picks.csv").set_index("sampler")
    (known, seed), (names, pool) = rows["seed"], rows["pool"]
    distance = samplers.proximity(pool, seed, 3)
    assert list(table.loc["proximity"].path) == [names[place] for place in distance.argsort()[:7]]
    assert list(table.loc["k_center"].path) == [
        names[place] for place in samplers.k_center(pool, seed, 7)
    ]
    cosine = torch.nn.functional.normalize(pool) @ torch.nn.functional.normalize(seed).T
    assert list(table.nearest_seed) == [
        known[cosine[names.index(path)].argmax()] for path in table.path
    ]
    assert (tmp_path / "results/mine/picks/k_center.txt").read_text().split() == list(
        table.loc["k_center"].path
    )
    assert set(table.index) == {"proximity", "k_center", "random"}


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"samplers": ["mak"]},
            "mak takes random views of pixels, which features lack; there are random, k_center, "
            "proximity",
        ),
        ({"epochs": 3, "views": 2}, "so that epochs, views would change nothing"),
        ({"test_images": "seed.npy"}, "there is no test_images"),
        (
            {"pool_images": "folder"},
            "features take the place of images in seed_images and pool_images",
        ),
    ],
)
def test_what_features_cannot_give_is_refused(rows, tmp_path, capsys, settings, words):
    (tmp_path / "folder").mkdir()
    assert ask(tmp_path, **{"seed_images": "seed.npy", "pool_images": "pool.npy", **settings}) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "results").exists()


def test_a_dry_run_says_what_features_there_are_and_what_is_wrong(rows, tmp_path, capsys):
    given = {"seed_images": "seed.npy", "pool_images": "pool.npy"}
    assert ask(tmp_path, "--dry-run", **given) == 0
    assert "seed: 12 rows of 16 features; pool: 40" in capsys.readouterr().out
    assert ask(tmp_path, "--dry-run", **given, budget=41) == 1
    assert "budget is 41, but there are 40 rows" in capsys.readouterr().err
    embeddings.write_features(tmp_path / "seed.npy", rows["seed"][0], rows["seed"][1][:, :9])
    assert ask(tmp_path, **given) == 1
    assert "the seed has 9 features, the pool 16; take both from one" in capsys.readouterr().err
    assert not (tmp_path / "results/mine/picks.csv").exists()


@pytest.mark.parametrize("name", ["pool.npy", "pool.parquet"])
def test_files_that_cannot_be_read_are_named(rows, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"no such thing")
    assert ask(tmp_path, seed_images="seed.npy", pool_images=name) == 2
    assert f"{name} cannot be read (" in capsys.readouterr().err


def test_names_that_do_not_fit_are_refused(rows, tmp_path, capsys):
    (tmp_path / "pool.txt").write_text("one\n")
    assert ask(tmp_path, seed_images="seed.npy", pool_images="pool.npy") == 1
    assert "40 rows float32 (16,) and 1 different of 1 names" in capsys.readouterr().err
    (tmp_path / "pool.txt").unlink()
    assert ask(tmp_path, seed_images="seed.npy", pool_images="pool.npy") == 1
    assert "needs the names of its rows in pool.txt" in capsys.readouterr().err


def test_tables_of_doubles_and_plain_lists_are_read(rows, tmp_path):
    import pyarrow
    from pyarrow import parquet

    values = np.random.default_rng(0).normal(size=(5, 3))
    table = pyarrow.table({"filename": list("abcde"), "vector": values.tolist(), "label": range(5)})
    parquet.write_table(table, tmp_path / "other.parquet")
    names, found = embeddings.read_features(tmp_path / "other.parquet")
    assert names == list("abcde") and np.array_equal(found.numpy(), values)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:300],
        lambda content: content.replace(b"(40,", b"(400000,"),
        lambda content: content.replace(b"}", b"("),
        lambda content: content.replace(b"<f4", b"|O8"),
        lambda content: content.replace(b"<f4", b">f4"),
    ],
)
def test_a_damaged_file_of_features_is_named(rows, tmp_path, capsys, spoil):
    file = tmp_path / "pool.npy"
    file.write_bytes(spoil(file.read_bytes()))
    assert ask(tmp_path, seed_images="seed.npy", pool_images="pool.npy") in (1, 2)
    err = capsys.readouterr().err
    assert str(file) in err and "Traceback" not in err


def test_a_table_of_features_larger_than_the_memory_is_refused(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(memory.BUDGET, "total", 4000)
    with pytest.raises(OSError, match="for the features of .*pool.parquet; raise it"):
        embeddings.read_features(tmp_path / "pool.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_ends_the_writing_of_features_in_words(rows, tmp_path, kind):
    """A memory map would end in a signal."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        with pytest.raises(OSError, match=f"writing 640000 bytes: '{disk}/x.{kind}'"):
            embeddings.write_features(disk / f"x.{kind}", ["a"] * 10_000, torch.randn(10_000, 16))
        assert not list(disk.glob("x.*part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
