"""Pools measured in chunks: the bits of one pass in memory, whatever is killed and however many
processes share them.
"""

import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import several
import torch
import toy
from PIL import Image

from longtail.images import sources, studies
from longtail.learn import encode, train
from longtail.pick import ecle, samplers, scoring, selection
from longtail.store import paths, runs

ARRAYS = 1 + several.HOW["views"]  # features and one array a view
CHUNKS, SEED_CHUNKS = 4, 2  # of the pool and of the seed
LOSSES = "pool-ecle/values 0"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    done = subprocess.run(
        [sys.executable, paths.ROOT / "tests" / "several.py", "scoring", folder],
        capture_output=True,
        text=True,
    )
    assert (folder / "found.json").exists(), done.stderr
    return json.loads((folder / "found.json").read_text())


def test_measures_what_one_pass_in_memory_measures(found, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", several.CHUNK)
    images = several.Study().pool
    run, results = several.extractor(tmp_path, several.Study().seed)
    projections = ecle.project(run, results, images, several.HOW["views"])
    expected = ecle.ecle(projections, run.temperature, several.HOW["batch"], several.HOW["repeats"])
    assert found["whole"]["losses"] == expected.tolist()
    assert (
        found["whole"]["features"]
        == encode.features(train.encoder_of(run, results), images, run.precision).tolist()
    )
    assert (
        len(set(found["whole"]["measured"]))
        == len(found["whole"]["measured"])
        == CHUNKS * ARRAYS + SEED_CHUNKS + 2
    )


@pytest.mark.parametrize("moment", [*several.KILLS, "one dies", "random 0", "random 1"])
def test_what_was_killed_goes_on_where_it_stopped(found, moment):
    for what in ("losses", "features", "picks"):
        assert found[moment][what] == found["whole"][what]
    before, after = (set(found[moment][when]) for when in ("before", "measured"))
    assert len(after) == len(found[moment]["measured"]) and not before & after
    removed = (
        {name for name in found["whole"]["measured"] if "view" in name}
        if LOSSES in before
        else set()
    )  # no longer needed
    assert before | after | removed == set(found["whole"]["measured"])


def test_two_processes_share_the_chunks_and_give_the_same_bits(found):
    for rank in found["two"]:
        for what in ("losses", "features", "picks"):
            assert rank[what] == found["whole"][what]
    first, second = (rank["measured"] for rank in found["two"])
    assert sorted(first + second) == sorted(found["whole"]["measured"])
    assert len(second) == CHUNKS // 2 * ARRAYS + SEED_CHUNKS // 2


# ---- arrays on disk


def stored(folder, settings="a", rows=5):
    array = scoring.Stored(folder, "array", rows, {"of": settings})
    array.prepare((2,), np.float32)
    return array


ROWS = torch.arange(10, dtype=torch.float32).view(5, 2)


def test_an_array_is_whole_when_every_chunk_is_recorded(tmp_path):
    array = stored(tmp_path)
    assert array.missing(2) == [0, 2, 4] and not array.whole()
    array.put(2, ROWS[2:4])
    array.put(0, ROWS[:2])
    assert array.missing(2) == [4] and not array.whole()
    with pytest.raises(ValueError, match="is not what was written"):
        array.read()
    array.put(4, ROWS[4:])
    assert stored(tmp_path).whole() and torch.equal(stored(tmp_path).read(), ROWS)


def test_other_settings_start_again(tmp_path):
    array = stored(tmp_path)
    array.put(0, ROWS)
    assert not scoring.Stored(tmp_path, "array", 5, {"of": "b"}).whole()
    assert stored(tmp_path, "b").missing(5) == [0] and not array.whole()


def test_what_another_run_or_view_measured_is_measured_again(tmp_path):
    """Chunks and sums of one run, put into the folder of another with the same settings, or under
    another name, are none of its own.
    """
    mine, other = ((tmp_path / run / "scoring/pool-1234") for run in ("one", "two"))
    array = stored(mine)
    array.put(0, ROWS)
    scoring._keep_sum(mine / "sum.npz", {"of": "a"}, 3, ROWS)
    shutil.copytree(mine, other)
    assert array.intact() and not scoring.Stored(other, "array", 5, {"of": "a"}).whole()
    assert scoring._kept_sum(mine / "sum.npz", {"of": "a"})[0] == 3 and scoring._kept_sum(
        other / "sum.npz", {"of": "a"}
    ) == (0, 0)
    for file in (array.path, *array.records()):
        shutil.copy(file, file.with_name(file.name.replace("array", "view0")))
    assert not scoring.Stored(mine, "view0", 5, {"of": "a"}).whole()


def test_changed_rows_are_noticed_and_measured_again(tmp_path):
    array = stored(tmp_path)
    for start in (0, 2, 4):
        array.put(start, ROWS[start : start + 2])
    array.mapped()[3] = 7
    with pytest.raises(ValueError, match=r"rows \[\(2, 4\)\]\); delete"):
        array.read()
    assert array.missing(2) == [2]
    array.put(2, ROWS[2:4])
    assert torch.equal(array.read(), ROWS)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\3\4", "half"])
def test_a_cut_array_and_a_cut_sum_are_as_good_as_none(tmp_path, content):
    array = stored(tmp_path)
    array.put(0, ROWS)
    whole = array.path.read_bytes()
    array.path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert array.missing(2) == [0, 2, 4] and not array.whole() and not array.intact()
    array.prepare((ROWS.shape[1],), np.float32)
    array.put(0, ROWS)
    assert array.intact() and torch.equal(array.read(), ROWS)
    scoring._keep_sum(tmp_path / "sum.npz", {"of": "a"}, 3, ROWS)
    whole = (tmp_path / "sum.npz").read_bytes()
    assert scoring._kept_sum(tmp_path / "sum.npz", {"of": "a"})[0] == 3
    (tmp_path / "sum.npz").write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert scoring._kept_sum(tmp_path / "sum.npz", {"of": "a"}) == (0, 0)


def flipped(file, count):
    """The file with each of its first bits turned, one at a time."""
    content = file.read_bytes()
    for bit in range(8 * min(count, len(content))):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        yield
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["array.npy", "array.0.chunks", "sum.npz"])
def test_no_bit_of_a_file_changes_a_number(tmp_path, name):
    array = stored(tmp_path)
    array.put(0, ROWS)
    scoring._keep_sum(tmp_path / "sum.npz", {"of": "a"}, 3, ROWS)
    for _ in flipped(tmp_path / name, 1200):
        done, total = scoring._kept_sum(tmp_path / "sum.npz", {"of": "a"})
        assert done == 0 or done == 3 and torch.equal(total, ROWS)
        assert not array.intact() or torch.equal(array.read(), ROWS)


def test_a_head_that_says_other_numbers_is_noticed_and_made_anew(tmp_path):
    array = stored(tmp_path)
    array.put(0, ROWS)
    array.path.write_bytes(array.path.read_bytes().replace(b"<f4", b"<i4"))
    assert array.missing(5) == [0]
    array = stored(tmp_path)
    array.put(0, ROWS)
    assert torch.equal(array.read(), ROWS)


def test_lines_cut_by_a_kill_are_no_chunks(tmp_path):
    array = stored(tmp_path)
    array.put(0, ROWS[:2])
    array.put(2, ROWS[2:4])
    record = array.records()[0]
    record.write_text(record.read_text()[:-30])
    assert array.missing(2) == [2, 4]
    array.put(2, ROWS[2:4])
    array.put(4, ROWS[4:])
    assert torch.equal(array.read(), ROWS)


# ---- images that stay in their files


def jpegs(count, reads):
    """Files of random pictures that note each reading of theirs."""
    generator = np.random.default_rng(0)

    def file(name):
        content = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(content, "JPEG")
        return name, lambda: reads.append(name) or content.getvalue()

    return [file(f"{number}.jpg") for number in range(count)]


def test_images_in_files_are_decoded_once_and_score_as_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", 8)
    reads = []
    files = jpegs(30, reads)
    lazy = sources.FileSet(
        sources.Files(files, 16), torch.full((30,), -1), tuple(name for name, _ in files)
    )
    memory = lazy.subset(range(30))
    assert memory.images.shape == (30, 3, 16, 16) and type(memory) is sources.ImageSet
    assert lazy.digest
    reads.clear()
    scores = []
    for name, images in (("lazy", lazy), ("memory", memory)):
        run, results = several.extractor(tmp_path / name, memory)
        scores.append(scoring.losses(run, results, images, "pool", **several.HOW))
    assert torch.equal(*scores)
    assert sorted(reads) == sorted(name for name, _ in files)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A data folder with class folders to make a long tail of and a folder of images to pick from,
    all of mixed sizes.
    """
    pictures, draw = (
        toy.image_set(70, 40).images.permute(0, 2, 3, 1).numpy(),
        np.random.default_rng(0),
    )
    for number, picture in enumerate(pictures):
        place = (
            tmp_path
            / "data"
            / (f"known/{'ab'[number % 2]}" if number < 40 else f"other/{number % 3}")
            / f"{number}.png"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).crop((0, 0, *draw.integers(20, 40, 2).tolist())).save(place)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    return {
        "dataset": "known",
        "size": 16,
        "split": 1,
        "largest": 10,
        "factor": 0.5,
        "kind": "exponential",
        "outsiders": ["other"],
        "outsider_count": -1,
    }


def test_a_pool_left_in_its_files_is_picked_from_as_one_in_memory(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK", 8)
    picks = []
    for in_files in (False, True):
        study = studies.study(**tree, pool_in_files=in_files)
        assert isinstance(study.pool, sources.FileSet) == in_files and len(study.pool) == 30
        run, results = several.extractor(tmp_path / str(in_files), study.seed)
        how = {"budget": 8, "alpha": 0.3, "ratio": 1.5, "prototypes": 3, **several.HOW}
        samplers.pick_all(
            run, results, study, [samplers.row(sampler, how) for sampler in ("mak", "k_center")]
        )
        picks.append(results.read("picks-*"))
        _, images = samplers.with_picks(
            run, study, picks[-1][picks[-1].sampler == "mak"], "mak", "epochs"
        )
        assert type(images) is sources.ImageSet and len(images) == len(study.seed) + 8
    pd.testing.assert_frame_equal(*picks)


# ---- what was measured before


class Pool(SimpleNamespace):
    def __len__(self):
        return len(self.names)


SHIPPED = sorted((paths.ROOT / "results").glob("runs/*/picks-*.json"))


@pytest.mark.parametrize("record", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_picks_are_remembered_without_their_encoder(record, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "encoder_of", None)
    monkeypatch.setattr(selection, "k_center", None)
    results = runs.Results("shipped")
    results.root, results.store = tmp_path, record.parents[1]
    settings, run = runs.read_record(record)["settings"], runs.read_run(record.parent)
    study = SimpleNamespace(
        pool=Pool(digest=settings["pool"], names=range(settings["budget"])),
        seed=SimpleNamespace(digest=settings["seed"]),
    )
    how = {
        name: settings[name]
        for name in (
            "sampler",
            "budget",
            "alpha",
            "ratio",
            "prototypes",
            "views",
            "batch",
            "repeats",
        )
    }
    picks = samplers.pick(run, results, study, **how)
    assert len(picks) == settings["budget"] and (picks.sampler == settings["sampler"]).all()


def test_chunks_hold_fewer_large_images_and_no_other_small_ones():
    sizes = {size: encode.chunk_of(size) for size in (16, 32, 48, 64, 96, 224, 1024)}
    assert sizes == {
        16: encode.CHUNK,
        32: encode.CHUNK,
        48: encode.CHUNK,
        64: encode.CHUNK,
        96: 455,
        224: 83,
        1024: 4,
    }
