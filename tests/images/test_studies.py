"""Data sets, long tails and pools: who is in which list, and one clear line for whatever is missing
or broken.
"""

import importlib
import io
import itertools
import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.images import datasets, memory, places, sources, studies
from longtail.measure.groups import size_groups
from longtail.store import paths

GOLDEN = json.loads((paths.ROOT / "tests" / "golden" / "longtail_counts.json").read_text())["cases"]
SETTINGS = dict(
    dataset="digits",
    size=16,
    split=1,
    largest=40,
    factor=0.1,
    kind="exponential",
    pool_per_class=20,
    outsiders="letters",
    outsider_count=30,
)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    paths.DATA.mkdir()
    forget()
    yield paths.DATA
    forget()


def forget():
    """Drop what is kept in memory of files that a test writes."""
    datasets.load.cache_clear()
    studies.outsiders_of.cache_clear()


def study(**changes):
    return studies.study(**SETTINGS | changes)


def picture(level, size=(10, 8), kind="PNG"):
    """The bytes of an image file whose content tells ``level``."""
    content = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(content, kind)
    return content.getvalue()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 30
    return str(caught.value)


# ---- long tails


@pytest.mark.parametrize(
    "case",
    GOLDEN,
    ids=lambda case: case.get("list", f"{case['kind']} {case.get('n')} {case.get('classes')}"),
)
def test_counts_are_the_published_ones(case):
    if case["kind"] == "exp":
        assert (
            studies.long_tail_counts(
                case["n"] / case["classes"], case["classes"], case["imb_factor"], "exponential"
            )
            == case["counts"]
        )
        return
    published = sorted(case["counts_by_label"], reverse=True)
    kind = "pareto_imagenet100" if "imagenet" in case["list"] else "exponential"
    assert studies.long_tail_counts(published[0], len(published), 0.01, kind) == published


def test_the_other_kinds():
    assert studies.long_tail_counts(500, 4, 0.1, "step") == [500, 500, 50, 50]
    table = studies.long_tail_counts(1280, 100, 0, "pareto_imagenet100")
    assert (sum(table), table[0], table[-1]) == (12_205, 1280, 6)
    assert sum(studies.IMAGENET_100_LT) == 12_205 and table == studies.IMAGENET_100_LT
    scaled = studies.long_tail_counts(400, 100, 0, "pareto_imagenet100")
    assert (
        scaled[:4] == [400, 212, 159, 142]
        and scaled[-1] == 2
        and scaled == sorted(scaled, reverse=True)
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            (100, 10, 0.1, "zipf"),
            "no kind of long tail 'zipf'; there are exponential, step, pareto_imagenet100, as_is",
        ),
        (
            (50, 10, 0.01, "exponential"),
            "a class without images: largest 50 and factor 0.01 leave the smallest class 0",
        ),
        ((50, 10, 0.01, "step"), "a class without images"),
        ((50, 10, 0, "step"), "a class without images"),
        ((50, 10, float("nan"), "step"), "factor nan is no share"),
        ((50, 10, -0.5, "exponential"), "factor -0.5 is no share"),
        (
            (50, 10, 2, "exponential"),
            "factor 2 is no share; give the smallest class's share of the largest",
        ),
        (
            (400, 10, 0.01, "pareto_imagenet100"),
            "a table of 100 classes, the data have 10; use exponential",
        ),
    ],
)
def test_impossible_tails_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        studies.long_tail_counts(*arguments)


# ---- a study


def test_a_study_has_its_sizes():
    one = study()
    counts = studies.long_tail_counts(40, 10, 0.1, "exponential")
    assert sorted(one.counts, reverse=True) == counts
    assert torch.bincount(one.balanced.labels).tolist() == [sum(counts) // 10] * 10
    assert torch.bincount(one.few.labels).tolist() == [min(counts)] * 10
    assert (
        torch.bincount(one.test.labels).tolist() == [40] * 10
        and torch.bincount(one.validation.labels).tolist() == [10] * 10
    )
    assert len(one.train) == 1797 - 400 - 100
    assert torch.bincount(one.pool.labels + 1).tolist() == [30] + [20] * 10
    assert torch.bincount(study(labelled_per_class=5).train.labels).tolist() == [5] * 10
    for images in (one.seed, one.pool, one.test):
        assert (
            images.images.shape == (len(images), 3, 16, 16)
            and images.images.dtype == torch.uint8
            and len(images.names) == len(images)
        )


@pytest.mark.parametrize("split", [1, 2, 3])
def test_lists_are_disjoint_or_nested_as_they_should_be(split):
    one = study(split=split)
    names = {
        part: list(getattr(one, part).names)
        for part in ("seed", "balanced", "few", "train", "validation", "test", "pool")
    }
    assert all(len(set(listed)) == len(listed) for listed in names.values())
    known = {part: set(listed) for part, listed in names.items()}
    assert not known["pool"] & (known["seed"] | known["balanced"])
    for held in ("test", "validation"):
        assert not any(known[held] & known[part] for part in known if part != held)
    for part in (
        "seed",
        "balanced",
    ):  # S_b is a prefix of each class in both: labels of images already seen
        for label in range(10):
            order = [name for name in names[part] if name.split("/")[1] == str(label)]
            few = [name for name in names["few"] if name.split("/")[1] == str(label)]
            assert order[: len(few)] == few
    assert all(
        int(name.split("/")[1]) == label
        for name, label in zip(one.seed.names, one.seed.labels, strict=True)
    )


def test_splits_differ_by_the_order_of_classes():
    several = [study(split=split) for split in (1, 2, 3)]
    assert len({tuple(sorted(one.counts)) for one in several}) == 1
    assert len({tuple(one.counts) for one in several}) == 3
    assert (
        len({one.test.digest for one in several})
        == len({one.validation.digest for one in several})
        == 1
    )
    assert len({one.seed.digest for one in several}) == 3


def test_a_study_is_the_same_every_time():
    first = study()
    datasets.load.cache_clear()
    second = study()
    for part in ("seed", "balanced", "few", "train", "validation", "test", "pool"):
        assert getattr(first, part).digest == getattr(second, part).digest


def test_the_order_of_the_pool_tells_nothing():
    labels = study().pool.labels
    assert (labels.diff() == 0).float().mean() < 0.3 and labels[:60].unique().numel() > 8


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(pool_per_class=120),
            r"a class has \d+ images left for the pool, pool_per_class is 120; lower it, or "
            r"`largest`",
        ),
        (
            dict(largest=500),
            r"class \d has \d+ training images and the long tail needs \d+ of it; lower `largest`",
        ),
        (dict(largest=5, factor=0.01), "a class without images"),
        (dict(kind="zipf"), "no kind of long tail 'zipf'"),
        (
            dict(dataset="mnist"),
            "no data set 'mnist': there are digits, cifar10, cifar100, imagenet100, and any folder "
            "or zip",
        ),
    ],
)
def test_impossible_studies_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        study(**change)
    one_line(caught)


def test_more_outsiders_than_there_are_is_refused(disk):
    write(disk / "scenes", {f"forest/{k}.png": picture(k) for k in range(4)})
    assert (study(outsiders="scenes", outsider_count=4).pool.labels == sources.UNKNOWN).sum() == 4
    with pytest.raises(ValueError, match="scenes has 4 images, outsider_count is 5"):
        study(outsiders="scenes", outsider_count=5)
    with pytest.raises(ValueError, match="nor all of them; say how many with outsider_count"):
        study(outsider_count=-1)
    with pytest.raises(ValueError, match="outsider_count is 3 but outsiders names none"):
        study(outsiders=[], outsider_count=3)


def test_each_place_of_a_pool_is_read_once_for_all_splits(disk, monkeypatch):
    places, read = ["one", "two", "three", "four"], []
    for place in places:
        write(disk / place, {"a.png": picture(len(place))})
    whole = sources.read_images
    monkeypatch.setattr(
        sources, "read_images", lambda files, size: read.append(len(files)) or whole(files, size)
    )
    for split in (1, 2, 3):
        study(outsiders=places, outsider_count=-1, split=split)
    assert read == [1] * len(places)


def test_a_pool_of_several_places_keeps_them_apart(disk):
    """Names tell the place, labels tell nothing, and folders of the study's own classes stay
    out.
    """
    write(
        disk / "scenes",
        {
            f"{name}/{k}.png": picture(k)
            for name in ("forest", "street", "3", "coast")
            for k in range(4)
        },
    )
    write(disk / "flat", {f"{k}.png": picture(k) for k in range(5)})
    one = study(outsiders=["scenes", "letters", "flat"], outsider_count=5, pool_per_class=0)
    assert [
        sum(name.startswith(place) for name in one.pool.names)
        for place in ("scenes/", "letters/letters/", "flat/")
    ] == [5, 5, 5]
    assert set(one.pool.labels.tolist()) == {sources.UNKNOWN}
    every = study(outsiders=["scenes"], outsider_count=-1, pool_per_class=0).pool
    assert sorted(every.names) == sorted(
        f"{name}/{k}.png" for name in ("forest", "street", "coast") for k in range(4)
    )
    drawn = [
        study(
            outsiders=["scenes", "flat"],
            outsider_count=-1,
            outsider_classes=2,
            pool_per_class=0,
            split=split,
        ).pool
        for split in (1, 2)
    ]
    assert (
        len(drawn[0]) == 8 + 5
        and len({name.split("/")[1] for name in drawn[0].names if name.startswith("scenes/")}) == 2
    )
    assert sorted(drawn[0].names) == sorted(drawn[1].names) and drawn[0].names != drawn[1].names


# ---- image sets


@pytest.mark.parametrize(
    "rule, largest, factor, words",
    [
        ("thirds", 40, 1.0, "no class is many or medium or few: the 10 classes have 40 images"),
        ("thresholds", 60, 0.1, "no class is many: the 10 classes have 60, "),
        ("step", 40, 0.1, "no class is medium: the 10 classes have 40, 4"),
    ],
)
def test_sizes_that_make_no_three_groups_are_refused_before_training(rule, largest, factor, words):
    one = study(largest=largest, factor=factor, kind="step" if rule == "step" else "exponential")
    groups = size_groups(one.counts, "thirds" if rule == "step" else rule)
    with pytest.raises(ValueError, match=words) as caught:
        studies.check_groups(one, groups)
    one_line(caught)
    studies.check_groups(study(), size_groups(study().counts, "thirds"))


def test_test_images_that_training_or_the_pool_hold_are_told(disk, capsys):
    files = parts("", ("ant", "bee", "cat"), train=40, test=5)
    files |= {f"test/{name}/copy.png": files[f"train/{name}/39.png"] for name in ("ant", "bee")}
    files = {
        name: content
        if "test" not in name or "copy" in name
        else picture(230 + number)  # other greys than in training
        for number, (name, content) in enumerate(
            (name, files[name]) for name in sorted(files, key=lambda name: "train" in name)
        )
    }
    write(disk, {f"mine/{name}": content for name, content in files.items()})
    write(disk, {"more/1.png": files["test/ant/copy.png"], "more/2.png": picture(255)})
    capsys.readouterr()
    rows = studies.tell_copies(
        study(
            dataset="mine",
            largest=20,
            factor=0.2,
            pool_per_class=0,
            outsiders=["more"],
            outsider_count=-1,
        )
    )
    found = {(row["list"], row["other"]): row for row in rows}
    assert (
        found["pool", "test"]["images"] == 1
        and found["pool", "test"]["first"] == "1.png = ant/copy.png"
    )
    assert (
        found["train", "test"]["images"]
        + found.get(("train", "validation"), {"images": 0})["images"]
        >= 1
    )
    assert "images of pool are in test, too (1.png = ant/copy.png)" in capsys.readouterr().out


def test_near_copies_of_test_images_are_told_where_pictures_differ(capsys):
    draw = np.random.default_rng(0)
    coarse = [
        Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
            (32, 32), Image.BICUBIC
        )
        for _ in range(40)
    ]
    changed = [
        coarse[0].transpose(Image.FLIP_LEFT_RIGHT),
        coarse[1].resize((24, 24)).resize((32, 32)),
        coarse[2],
    ]
    squares = [np.asarray(picture).transpose(2, 0, 1) for picture in [*coarse, *changed]]
    near = studies.near_copies(squares[:42])
    assert near[40:] == [0, 1] and near[:40] == [None] * 40 and not capsys.readouterr().out

    def images(places):
        return sources.ImageSet(
            torch.from_numpy(np.stack([squares[place] for place in places])),
            torch.zeros(len(places)),
            tuple(map(str, places)),
        )

    test, seed, pool = images(range(5)), images(range(5, 30)), images([*range(30, 40), 40, 41, 42])
    rows = studies.tell_copies(
        SimpleNamespace(test=test, seed=seed, train=seed, validation=images([39]), pool=pool)
    )
    assert [
        (row["list"], row["other"], row["kind"], row["images"], row["first"]) for row in rows
    ] == [("pool", "test", "exact", 1, "42 = 2"), ("pool", "test", "near", 2, "40 = 0")]
    assert "2 near copies of images of pool are in test, too (40 = 0)" in capsys.readouterr().out


def test_near_copies_are_not_told_among_pictures_that_are_all_alike(capsys, monkeypatch):
    grey = [np.full((3, 16, 16), value, np.uint8) for value in range(9)]
    lines = [
        np.where(np.arange(16) < 8 + number % 2, 250 - number, 5)
        .astype(np.uint8)[None, None]
        .repeat(3, 0)
        .repeat(16, 1)
        for number in range(9)
    ]
    assert studies.near_copies(grey + lines) == [None] * 18
    assert "near copies cannot be told" in capsys.readouterr().out
    monkeypatch.setattr(studies, "NEAR_COPIES_OF", 5)
    assert (
        studies.near_copies(grey) == [None] * 9
        and "up to 5 images, and these are 9" in capsys.readouterr().out
    )


def test_digest_covers_content_and_order_but_not_labels():
    one = study().few
    other = sources.ImageSet(one.images, one.labels.flip(0), one.names)
    assert other.digest == one.digest and len(one.digest) == 16
    changed = one.images.clone()
    changed[0, 0, 0, 0] ^= 1
    renamed = sources.ImageSet(one.images, one.labels, ("other", *one.names[1:]))
    digests = {
        one.digest,
        one.subset(range(1, len(one))).digest,
        one.subset([*range(1, len(one)), 0]).digest,
        renamed.digest,
        sources.ImageSet(changed, one.labels, one.names).digest,
        (one + one).digest,
    }
    assert len(digests) == 6


def test_subsets_and_sums_keep_images_labels_and_names_together():
    one = study().few
    part = one.subset([3, 0]) + one.subset(torch.tensor([5]))
    assert part.names == (one.names[3], one.names[0], one.names[5]) and len(part) == 3
    assert torch.equal(part.images, one.images[[3, 0, 5]]) and torch.equal(
        part.labels, one.labels[[3, 0, 5]]
    )


def test_letters_are_no_digits():
    drawn = datasets.letters(16, 60)
    assert set(drawn.labels.tolist()) == {sources.UNKNOWN} and drawn.images.shape == (60, 3, 16, 16)
    shown = {name.split("/")[1] for name in drawn.names}
    assert len(shown) > 15 and not shown & set("0123456789IOSZloiqsz")
    assert drawn.digest == datasets.letters(16, 60).digest
    assert datasets.letters(16, 20).digest == drawn.subset(range(20)).digest
    assert (drawn.images.float().flatten(1).std(1) > 20).all()


# ---- folders and zips

TREE = {
    "b/2.png": picture(20),
    "a/1.png": picture(10),
    "a/deep/3.jpg": picture(30, (8, 12), "JPEG"),
    "b/4.PNG": picture(40, (4, 4)),
}


def test_class_folders_give_labels(disk):
    found = sources.folder(write(disk / "tree", TREE), 6)
    assert found.names == (
        "a/1.png",
        "a/deep/3.jpg",
        "b/2.png",
        "b/4.PNG",
    ) and found.labels.tolist() == [0, 0, 1, 1]
    assert found.images.shape == (4, 3, 6, 6) and found.images.amax((1, 2, 3)).tolist() == [
        10,
        30,
        20,
        40,
    ]


def test_flat_images_have_no_labels(disk):
    found = sources.folder(write(disk / "flat", {"2.png": picture(20), "1.png": picture(10)}), 6)
    assert found.names == ("1.png", "2.png") and found.labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="flat is flat: evaluation needs a folder for each class"):
        study(dataset="flat")


@pytest.mark.parametrize("top", ["", "archive/"])
def test_a_zip_is_as_good_as_a_folder(disk, top):
    archive = zipped(
        disk / "tree.zip",
        ({top: b""} if top else {}) | {top + name: content for name, content in TREE.items()},
    )
    assert sources.folder(archive, 6).digest == sources.folder(write(disk / "tree", TREE), 6).digest
    assert sources.folder(archive / "a", 6).names == ("1.png", "deep/3.jpg")


def test_pictures_are_cut_to_their_middle(disk):
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = 200
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    assert (
        sources.folder(write(disk / "wide", {"1.png": file.getvalue()}), 10).images == 200
    ).all()
    assert sources.folder(disk / "wide", 5).images.float().mean() > 180


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "corrupt JPEG": picture(9, (64, 64), "JPEG")[:300],
    "cut JPEG": picture(9, (64, 64), "JPEG")[:-9],
    "cut PNG": picture(9)[:40],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_broken_file_is_named_and_skipped_only_on_request(disk, capsys, content, packed):
    files = TREE | {"b/broken.jpg": content}
    place = zipped(disk / "tree.zip", files) if packed else write(disk / "tree", files)
    with pytest.raises(
        ValueError,
        match=r"1 of 5 files are no readable images: b/broken\.jpg .*skip them with skip_broken",
    ) as caught:
        sources.folder(place, 6)
    assert str(place) in one_line(caught)
    assert len(sources.folder(place, 6, skip_broken=True)) == 4
    assert "skipped 1 files" in (listed := capsys.readouterr().out) and "b/broken.jpg" in listed


HIDDEN = {".DS_Store": b"x", "a/._1.png": b"x", "a/.cache/1.png": picture(9), ".git/HEAD": b"x"}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_hidden_files_are_passed_over(disk, packed):
    place = (
        zipped(disk / "tree.zip", TREE | HIDDEN) if packed else write(disk / "tree", TREE | HIDDEN)
    )
    assert sources.folder(place, 6).names == ("a/1.png", "a/deep/3.jpg", "b/2.png", "b/4.PNG")


def test_a_damaged_member_of_a_zip_is_named(disk):
    archive = zipped(disk / "tree.zip", TREE)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(TREE["b/2.png"], TREE["b/2.png"][:-9] + bytes(9)))
    with pytest.raises(
        ValueError, match=r"1 of 4 files are no readable images: b/2\.png"
    ) as caught:
        sources.folder(archive, 6)
    assert str(archive) in one_line(caught)
    assert len(sources.folder(archive, 6, skip_broken=True)) == 3


def test_a_class_folder_without_images_is_named(disk):
    (write(disk / "tree", TREE) / "c").mkdir()
    with pytest.raises(ValueError, match="tree: class c has no images") as caught:
        sources.folder(disk / "tree", 6)
    one_line(caught)


def test_missing_and_empty_places_are_named(disk):
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere is missing: give a folder, a zip, or a list \(.txt\) of images",
    ) as caught:
        sources.folder(disk / "nowhere", 6)
    assert str(disk / "nowhere") in one_line(caught)
    (disk / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no readable images"):
        sources.folder(disk / "empty", 6)
    with pytest.raises(ValueError, match="text has no readable images"):
        sources.folder(write(disk / "text", {"1.png": b"x"}), 6, skip_broken=True)


def test_a_cut_zip_is_named(disk):
    archive = zipped(disk / "tree.zip", TREE)
    archive.write_bytes(archive.read_bytes()[:400])
    with pytest.raises(
        ValueError, match=r"tree\.zip cannot be read as \.zip .*fetch it again"
    ) as caught:
        sources.folder(archive, 6)
    one_line(caught)


def test_class_folders_make_a_study(disk):
    classes = ("ant", "bee", "cat")
    write(
        disk / "mine",
        {
            f"{name}/{k:02d}.png": picture(60 * c + k)
            for c, name in enumerate(classes)
            for k in range(24)
        },
    )
    one = study(dataset="mine", largest=6, factor=0.5, pool_per_class=4, outsider_count=0)
    assert one.classes == classes and sorted(one.counts) == [3, 4, 6]
    assert [len(one.test), len(one.validation), len(one.pool)] == [18, 6, 12]
    assert all(
        name.startswith(one.classes[label])
        for name, label in zip(one.pool.names, one.pool.labels, strict=True)
    )


def test_labels_of_another_data_set(disk):
    write(
        disk / "there",
        {
            f"{name}/{k:02d}.png": picture(60 * c + k)
            for c, name in enumerate(("ant", "bee"))
            for k in range(24)
        },
    )
    here = study()
    there = studies.elsewhere(here, "there", here.seed.images.shape[-1], 5)
    assert there.classes == ("ant", "bee") and there.counts == [0, 0] and there.pool is here.pool
    assert [len(there.train), len(there.validation), len(there.test)] == [10, 4, 12]
    assert all(
        name.startswith(there.classes[label])
        for name, label in zip(there.train.names, there.train.labels, strict=True)
    )
    names = [set(part.names) for part in (there.train, there.validation, there.test)]
    assert not any(left & right for left, right in itertools.combinations(names, 2))


def parts(root, classes=("ant", "bee"), **counts):
    """Files of class folders below train, val, …: names and contents."""
    return {
        f"{root}{part}/{name}/{k:02d}.png": picture(100 * c + k)
        for part, count in counts.items()
        for c, name in enumerate(classes)
        for k in range(count)
    }


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "in a zip"])
def test_folders_train_and_val_make_a_study(disk, capsys, packed):
    """Also where the data set lies inside a zip, beside a pool."""
    files = parts("seed/", train=40, val=3) | parts("pool/", ("cat", "bee"), train=6)
    below = {f"mine/{name}": content for name, content in files.items()}
    place = zipped(disk / "mine.zip", below) if packed else write(disk, below) / "mine"
    one = study(
        dataset=f"{place.name}/seed",
        largest=20,
        factor=0.5,
        pool_per_class=2,
        outsiders=[f"{place.name}/pool/train"],
        outsider_count=-1,
    )
    assert one.classes == ("ant", "bee") and sorted(one.counts) == [10, 20] and len(one.test) == 6
    assert torch.bincount(one.validation.labels).tolist() == [2, 2] and len(one.train) == 76
    assert not set(one.validation.names) & set(
        one.seed.names + one.balanced.names + one.train.names + one.pool.names
    )
    assert (
        len(one.pool) == 4 + 6 and (one.pool.labels == sources.UNKNOWN).sum() == 6
    )  # bee is no outsider
    assert (
        f"left out of {place.name}/pool/train: 1 folders named as classes of the study, bee first"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="has only folders named as classes of the study"):
        study(
            dataset=f"{place.name}/seed",
            largest=20,
            factor=0.5,
            pool_per_class=2,
            outsiders=[f"{place.name}/seed/train"],
            outsider_count=1,
        )
    assert (
        places.name_of(f"{place.name}/seed") == ("mine" if packed else "seed")
        and places.name_of("digits") == "digits"
    )


def test_train_val_and_test_have_each_their_use(disk):
    one = study(
        dataset=write(disk / "mine", parts("", train=40, val=3, test=5, other=1)).name,
        largest=40,
        factor=0.5,
        pool_per_class=0,
        outsider_count=0,
    )
    assert [len(one.train), len(one.validation), len(one.test)] == [80, 6, 10] and sorted(
        one.counts
    ) == [20, 40]
    assert one.test.images.amax((1, 2, 3)).tolist() == [*range(5), *range(100, 105)]
    write(disk / "mine", {"test/cat/1.png": picture(9)})
    forget()
    with pytest.raises(
        ValueError, match="class cat is in only one of train and test; give both the same classes"
    ) as caught:
        study(dataset="mine", outsider_count=0)
    one_line(caught)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("Train", "Validation", "Test"),
        ("Training", "dev", "Testing"),
        ("seg_train", "seg_val", "seg_test"),
        ("train_images", "eval_images", "test_images"),
        ("trainset", "valset", "testset"),
        ("TRAIN", "VAL", "TEST"),
        ("train2017", "val2017", "test2017"),
        ("training", "validation", "evaluation"),
        ("train_val", "dev", "hold-out"),
        ("seg_train/seg_train", "seg_val", "seg_test/seg_test"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "in a zip"])
def test_parts_in_every_spelling_are_used_as_what_they_are(disk, capsys, names, packed):
    train, validation, test = names
    files = parts("", **{train: 40, validation: 3, test: 5}) | {
        "README.dataset.txt": b"exported",
        "data.yaml": b"nc: 2",
    }
    place = zipped(disk / "mine.zip", files) if packed else write(disk / "mine", files)
    one = study(dataset=place.name, largest=40, factor=0.5, pool_per_class=0, outsider_count=0)
    assert one.classes == ("ant", "bee") and [
        len(one.train),
        len(one.validation),
        len(one.test),
    ] == [80, 6, 10]
    said = capsys.readouterr().out
    assert all(
        f"{name.split('/')[0]} is {part}" in said
        for name, part in zip(names, ("train", "validation", "test"), strict=True)
    )


def test_parts_without_a_test_set_say_what_serves_as_one(disk, capsys):
    write(disk / "mine", parts("all/", train=40, valid=3, extra=2))
    one = study(dataset="mine", largest=20, factor=0.5, pool_per_class=0, outsider_count=0)
    assert [len(one.test), len(one.validation)] == [6, 4] and one.classes == ("ant", "bee")
    assert (
        "valid is validation, and the test set, for there is no other; left out, as no part: extra"
        in capsys.readouterr().out
    )


def test_images_beside_the_parts_are_said_to_be_left_out(disk, capsys):
    write(disk / "mine", parts("", train=40, test=3) | {"cover.png": picture(0)})
    study(dataset="mine", largest=20, factor=0.5, pool_per_class=0, outsider_count=0)
    assert "left out, as no part: 1 files such as cover.png" in capsys.readouterr().out


def test_a_table_with_a_column_of_parts_trains_on_none_of_its_test_images(disk, capsys):
    rows = [
        (f"{part}{label}{n}.png", label, part)
        for part, count in {"Train": 40, "val": 3, "TEST": 5}.items()
        for label in ("ant", "bee")
        for n in range(count)
    ]
    write(disk / "mine", {f"all/{name}": picture(k) for k, (name, *_) in enumerate(rows)})
    text = "".join(f"all/{name},{label},{part}\n" for name, label, part in rows)
    (disk / "mine/labels.csv").write_text(f"file,label,split\n{text}")
    one = study(
        dataset="mine/labels.csv", largest=40, factor=0.5, pool_per_class=0, outsider_count=0
    )
    assert [len(one.train), len(one.validation), len(one.test)] == [80, 6, 10]
    assert all(name.startswith("all/TEST") for name in one.test.names)
    assert "labels.csv: TEST is test, Train is train, val is validation" in capsys.readouterr().out


def test_training_part_alone_is_the_data_set(disk):
    write(disk / "mine", parts("", train=40))
    assert study(
        dataset="mine", largest=20, factor=0.5, pool_per_class=0, outsider_count=0
    ).classes == ("ant", "bee")


def test_classes_named_as_parts_are_classes(disk):
    names = "train", "bus", "eval station"
    write(
        disk / "mine",
        {
            f"{name}/{k:02d}.png": picture(60 * c + k)
            for c, name in enumerate(names)
            for k in range(24)
        },
    )
    assert datasets.parts_of(disk / "mine") == (disk / "mine", {}, [])
    assert study(
        dataset="mine", largest=10, factor=0.5, pool_per_class=0, outsider_count=0
    ).classes == ("bus", "eval station", "train")


@pytest.mark.parametrize(
    "counts, words",
    [
        (dict(valid=3, test=3), "test, valid and no part to train on"),
        (dict(train=9, val=3, dev=3), "dev and val may be the same part"),
        (dict(train=9, Training=9, test=3), "Training and train may be the same part"),
    ],
)
def test_doubtful_parts_are_refused(disk, counts, words):
    write(disk / "mine", parts("", **counts))
    with pytest.raises(ValueError, match=words) as caught:
        study(dataset="mine", outsider_count=0)
    one_line(caught)


def test_a_file_beside_class_folders_and_a_single_class_are_named(disk):
    write(
        disk / "mine",
        {
            "ant/1.png": picture(1),
            "bee/2.png": picture(2),
            "cover.png": picture(3),
            "labels.csv": b"file,label",
        },
    )
    with pytest.raises(
        ValueError, match=r"1 images lie beside the class folders, such as cover\.png"
    ):
        study(dataset="mine", outsider_count=0)
    write(disk / "one", {"ant/1.png": picture(1), "ant/2.png": picture(2)})
    with pytest.raises(ValueError, match="one has one class, ant; a long tail needs several"):
        study(dataset="one", outsider_count=0)


def labelled_rows(disk):
    """48 pictures of 4 classes in a flat folder: row by row their path and class."""
    rows = [(f"flat/{k:05d}.png", k % 4) for k in range(48)]
    write(disk, {name: picture(k, (12, 10)) for k, (name, _) in enumerate(rows)})
    return rows


def test_published_lists_with_labels_make_a_study(disk, capsys):
    rows = labelled_rows(disk)
    for part, some in (("train", rows[:32]), ("val", rows[32:40]), ("test", rows[40:])):
        write(
            disk, {f"LT_{part}.txt": "".join(f"{name} {label}\n" for name, label in some).encode()}
        )
    one = study(dataset="LT_train.txt", largest=8, factor=0.5, pool_per_class=0, outsider_count=0)
    assert one.classes == ("0", "1", "2", "3") and [
        len(one.train),
        len(one.validation),
        len(one.test),
    ] == [32, 8, 8]
    assert one.test.names == tuple(name for name, _ in rows[40:]) and one.test.labels.tolist() == [
        label for _, label in rows[40:]
    ]
    assert "LT_val.txt is validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "labels.csv",
            lambda rows: (
                "id,label\n" + "".join(f"{name[5:10]},kind {label}\n" for name, label in rows)
            ),
        ),
        (
            "labels.tsv",
            lambda rows: (
                "path\tsize\tspecies\n"
                + "".join(f"{name}\t9\tkind {label}\n" for name, label in rows)
            ),
        ),
        (
            "labels.json",
            lambda rows: json.dumps(
                [{"file_name": name[5:], "class": f"kind {label}"} for name, label in rows]
            ),
        ),
        (
            "labels.jsonl",
            lambda rows: "".join(
                json.dumps({"image": name, "label": f"kind {label}"}) + "\n" for name, label in rows
            ),
        ),
    ],
)
def test_tables_with_labels_make_a_study(disk, name, text):
    rows = labelled_rows(disk)
    write(disk, {name: text(rows).encode()})
    one = study(dataset=name, largest=6, factor=0.5, pool_per_class=0, outsider_count=0)
    assert one.classes == tuple(f"kind {label}" for label in range(4))
    assert all(
        int(name[5:10]) % 4 == label
        for name, label in zip(one.seed.names, one.seed.labels.tolist(), strict=True)
    )


def test_a_class_with_too_few_images_is_named(disk):
    write(
        disk / "mine",
        {
            f"{name}/{k:02d}.png": picture(k)
            for name, count in (("ant", 24), ("bee", 3))
            for k in range(count)
        },
    )
    with pytest.raises(
        ValueError,
        match=r"class bee has 2 training images and the long tail needs 4 of it; lower `largest`, or take",
    ):
        study(dataset="mine", outsider_count=0, pool_per_class=0, largest=8, factor=0.5)


@pytest.mark.parametrize("parts", [False, True], ids=["one folder", "with a test set"])
def test_a_long_tail_of_its_own_is_taken_as_it_is(disk, capsys, parts):
    sizes = {"ant": 40, "bee": 9, "cat": 3, "dog": 2, "elk": 1}
    write(
        disk / "mine",
        {
            f"{part}{name}/{k:02d}.png": picture(6 * k + number)
            for number, (name, count) in enumerate(sizes.items())
            for part, most in ((("train/", 99), ("test/", 2)) if parts else (("", 99),))
            for k in range(min(count, most))
        },
    )
    one = study(dataset="mine", outsider_count=0, pool_per_class=0, kind="as_is")
    held = (
        torch.bincount(one.test.labels, minlength=5),
        torch.bincount(one.validation.labels, minlength=5),
    )
    if parts:
        assert one.counts == [38, 8, 2, 2, 1] and held[0].tolist() == [2, 2, 2, 2, 1]
    else:
        assert one.counts == [26, 6, 2, 1, 1] and held[0].tolist() == [10, 2, 1, 1, 0]
        assert "1 of 5 classes have a single image and no test" in capsys.readouterr().out
    assert [a + b for a, b in zip(one.counts, held[1].tolist(), strict=True)] == (
        list(sizes.values()) if parts else [30, 7, 2, 1, 1]
    )
    assert torch.bincount(one.few.labels).tolist() == [1] * 5 and not set(one.seed.names) & set(
        one.validation.names
    )


# ---- published lists and missing data sets

CIFAR = dict(
    dataset="cifar10",
    size=32,
    lists="split",
    largest=4,
    factor=0.25,
    pool_per_class=0,
    outsider_count=0,
)  # 4, 2, 1 images


def fabricated_cifar(disk):
    """A JPEG copy of three classes of eight, and lists in the official order, where labels are 2 0
    1 2 0 1 …
    """
    official = np.tile([2, 0, 1], 8)
    zipped(
        disk / "cifar10-jpeg.zip",
        {
            f"{part}/{name}/{k:04d}.jpg": picture(80 * c + 3 * k, (32, 32))
            for part, count in (("train", 8), ("test", 2))
            for c, name in enumerate(("air", "bird", "car"))
            for k in range(count)
        },
    )
    lists = disk / "split"
    (lists / "cifar10").mkdir(parents=True)
    (lists / "cifar10_imbSub_with_subsets").mkdir()
    np.save(lists / "cifar10_train_labels.npy", official)
    arrays = {"cifar10/trainIdxList": range(3, 24), "cifar10/valIdxList": range(3)}
    arrays |= {
        f"cifar10_imbSub_with_subsets/split1_{name}": index
        for name, index in {
            "D_i": [4, 7, 10, 13, 3, 6, 5],
            "D_b": [4, 7, 3, 6, 5, 8],
            "S_b": [4, 3, 5],
        }.items()
    }
    for name, index in arrays.items():
        np.save(lists / f"{name}.npy", np.array(index))
    return official


def test_published_lists_index_the_official_order(disk):
    official = fabricated_cifar(disk)
    one = study(**CIFAR | {"pool_per_class": 2})
    assert one.classes == ("air", "bird", "car") and one.counts == [4, 1, 2]
    assert (
        one.seed.labels.tolist()
        == official[[4, 7, 10, 13, 3, 6, 5]].tolist()
        == [0, 0, 0, 0, 2, 2, 1]
    )
    files = "air/0001 air/0002 air/0003 air/0004 car/0001 car/0002 bird/0001"
    assert one.seed.names == tuple(f"{file}.jpg" for file in files.split())
    assert one.seed.images[:, 0, 0, 0].tolist() == [3, 6, 9, 12, 163, 166, 83]
    assert (
        one.few.names == ("air/0001.jpg", "car/0001.jpg", "bird/0001.jpg")
        and len(one.balanced) == 6
    )
    assert set(one.validation.names) == {"air/0000.jpg", "bird/0000.jpg", "car/0000.jpg"}
    assert (
        not set(one.pool.names) & set(one.seed.names + one.balanced.names + one.validation.names)
        and len(one.pool) == 6
    )
    assert len(one.train) == 21 and len(one.test) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(largest=5),
            "the published list has classes of 4 to 1 images, 7 in all; largest, factor and kind "
            "ask for 5 to 1, 8 in all",
        ),
        (dict(kind="step"), "ask for 4 to 1, 6 in all; set them to the list's"),
        (
            dict(skip_broken=True),
            "name every image; leave them empty for cifar10, or give up skip_broken",
        ),
        (dict(dataset="digits"), "lists are for cifar10, cifar100, imagenet100"),
    ],
)
def test_lists_overrule_nothing_silently(disk, change, message):
    fabricated_cifar(disk)
    with pytest.raises(ValueError, match=message) as caught:
        study(**CIFAR | change)
    one_line(caught)


@pytest.mark.parametrize(
    "file",
    [
        "cifar10_imbSub_with_subsets/split1_D_b.npy",
        "cifar10/valIdxList.npy",
        "cifar10_train_labels.npy",
    ],
)
def test_a_missing_list_is_named(disk, file):
    fabricated_cifar(disk)
    (disk / "split" / file).unlink()
    with pytest.raises(FileNotFoundError, match=Path(file).name) as caught:
        study(**CIFAR)
    assert str(disk / "split" / file) in one_line(caught)


def test_missing_cifar_says_what_where_and_how(disk, monkeypatch):
    datasets = importlib.import_module(f"{sources.import_torchvision().__name__}.datasets")

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", unreachable)
    parts = (
        r"cifar10 is not in .*cifar10-jpeg\.zip.*no download succeeds \(no network\).*LONGTAIL_DATA"
    )
    with pytest.raises(FileNotFoundError, match=parts) as caught:
        study(dataset="cifar10", size=32)
    assert str(disk) in one_line(caught)


IMAGENET = {
    "LT_train": "t1 t2 u1 v1",
    "BL_train": "t1 u1 v1",
    "sub_balance_train_0.01": "t1 u1 v2",
    "val": "t3 u3 v3",
    "test": "T U V",
}


@pytest.fixture
def imagenet(disk):
    """Three classes with labels 2 0 1, one class outside, in the layout of ImageNet and of SDCLR's
    lists.
    """
    folders, labels = {"t": "n01", "u": "n02", "v": "n03", "w": "n04"}, {"t": 2, "u": 0, "v": 1}
    place = {
        f"{c}{k}": f"train/{wnid}/{wnid}_{k}.JPEG" for c, wnid in folders.items() for k in (1, 2, 3)
    }
    place |= {c.upper(): f"val/{wnid}/ILSVRC2012_val_{wnid}.JPEG" for c, wnid in folders.items()}
    write(
        disk / "imagenet",
        {name: picture(10 * k, (12, 10), "JPEG") for k, name in enumerate(place.values())},
    )
    for name, files in IMAGENET.items():
        lines = "".join(f"{place[file]} {labels[file[0].lower()]}\n" for file in files.split())
        write(
            disk / "split" / "imagenet-100",
            {f"{'I' if name in ('val', 'test') else 'i'}mageNet_100_{name}.txt": lines.encode()},
        )
    return disk


IMAGENET_100 = dict(
    dataset="imagenet100",
    size=8,
    lists="split",
    kind="step",
    largest=2,
    factor=0.5,
    pool_per_class=0,
    outsiders=["imagenet/train"],
    outsider_count=-1,
)


def test_imagenet_100_is_read_from_its_lists(imagenet):
    one = study(**IMAGENET_100)
    assert one.classes == ("n02", "n03", "n01") and one.counts == [1, 1, 2]
    assert one.seed.labels.tolist() == [2, 2, 0, 1] and one.seed.names[0] == "train/n01/n01_1.JPEG"
    assert one.test.labels.tolist() == [2, 0, 1] and one.validation.names == tuple(
        f"train/n0{c}/n0{c}_3.JPEG" for c in (1, 2, 3)
    )
    assert len(one.train) == 6 and not set(one.train.names) & set(one.validation.names)
    assert len(study(**IMAGENET_100 | {"labelled_per_class": 1}).train) == 3
    assert one.seed.images.shape == (4, 3, 8, 8)
    assert one.seed.images[:, 0, 4, 4].tolist() == pytest.approx(
        [0, 10, 30, 60], abs=3
    )  # each name has its own picture


def test_the_pool_of_imagenet_100_is_all_other_classes(imagenet):
    pool = study(**IMAGENET_100).pool
    assert sorted(pool.names) == [f"n04/n04_{k}.JPEG" for k in (1, 2, 3)] and set(
        pool.labels.tolist()
    ) == {sources.UNKNOWN}
    assert (
        len(study(**IMAGENET_100 | {"outsider_count": 2}).pool) == 2
        and len(study(**IMAGENET_100 | {"outsider_count": 0}).pool) == 0
    )


def test_a_mixed_pool_comes_from_two_places_or_from_a_list_with_sources(imagenet):
    """As ImageNet-Places-Mix: drawn classes of both, or the authors' lines, whose third column
    names the root.
    """
    write(
        imagenet / "places",
        {
            f"data/{name}/{k}.jpg": picture(100 + 10 * k, (30, 8), "JPEG")
            for name in ("sea", "lake")
            for k in (1, 2)
        },
    )
    mix = study(
        **IMAGENET_100 | {"outsiders": ["imagenet/train", "places/data"], "outsider_classes": 1}
    ).pool
    assert len(mix) == 3 + 2 and {name.rsplit("/", 2)[0] for name in mix.names} == {
        "imagenet/train",
        "places/data",
    }
    lines = (
        "train/n04/n04_2.JPEG 0 imagenet\ndata/sea/1.jpg 0 places\n\ndata/lake/2.jpg 17 places\n"
    )
    write(imagenet / "split", {"mix.txt": lines.encode()})
    listed = study(**IMAGENET_100 | {"outsiders": ["split/mix.txt"]}).pool
    assert sorted(listed.names) == [
        "imagenet/train/n04/n04_2.JPEG",
        "places/data/lake/2.jpg",
        "places/data/sea/1.jpg",
    ]
    assert set(listed.labels.tolist()) == {sources.UNKNOWN}


@pytest.mark.parametrize("lines", ["2.png\ndeep/1.png\n", "2.png 5\n\n./deep/1.png -1\n"])
def test_a_list_of_paths_is_as_good_as_a_folder(disk, lines):
    """Its order counts, labels are passed over, and paths are taken from where the list lies."""
    write(
        disk / "mine", {"2.png": picture(20), "deep/1.png": picture(10), "list.txt": lines.encode()}
    )
    found = sources.folder(disk / "mine" / "list.txt", 6)
    assert found.names == ("2.png", "deep/1.png") and found.labels.tolist() == [-1, -1]
    assert found.images.amax((1, 2, 3)).tolist() == [20, 10]
    write(disk / "mine", {"list.txt": b"2.png\ngone away.png\n"})
    with pytest.raises(
        ValueError,
        match=r"1 of 2 files are no readable images: gone away\.png \(no such file, line 2 of list\.txt\)",
    ):
        sources.folder(disk / "mine" / "list.txt", 6)


def test_a_pool_left_in_its_files_has_the_same_images(imagenet):
    held, left = study(**IMAGENET_100).pool, study(**IMAGENET_100 | {"pool_in_files": True}).pool
    assert left.names == held.names and torch.equal(left.labels, held.labels) and len(left) == 3
    assert torch.equal(left.images[0:3], held.images) and torch.equal(
        left.subset([2, 0]).images, held.images[[2, 0]]
    )
    assert len(left.images[3:]) == 0
    digests = {left.digest, left.shuffled(3).digest, left.shuffled(0, 2).digest, held.digest}
    assert (
        len(digests) == 4
        and left.digest == study(**IMAGENET_100 | {"pool_in_files": True}).pool.digest
    )
    (imagenet / "imagenet/train/n04/n04_2.JPEG").write_bytes(picture(77, (12, 10), "JPEG"))
    forget()
    assert study(**IMAGENET_100 | {"pool_in_files": True}).pool.digest not in digests
    (imagenet / "imagenet/train/n04/n04_2.JPEG").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no readable image: n04/n04_2\.JPEG \(empty\), in .*; remove it"
    ) as caught:
        left.images[0:3]
    one_line(caught)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(pool_per_class=1),
            "pool_in_files leaves the whole pool unread: it goes with pool_per_class 0 and without "
            "skip_broken",
        ),
        (dict(skip_broken=True), "pool_in_files leaves the whole pool unread"),
        (dict(outsiders=["letters"], outsider_count=3), "letters are drawn, not read"),
    ],
)
def test_what_cannot_stay_in_files_is_refused(disk, change, message):
    with pytest.raises(ValueError, match=message):
        study(**{"pool_per_class": 0, "pool_in_files": True} | change)


def test_files_in_a_zip_can_be_handed_to_another_process(disk):
    archive = zipped(disk / "tree.zip", TREE)
    left = sources.files(archive / "a", 6)
    assert torch.equal(
        pickle.loads(pickle.dumps(left)).images[0:2], sources.folder(archive / "a", 6).images
    )


def test_missing_parts_of_imagenet_are_named(imagenet):
    for part in (
        "split/imagenet-100/imageNet_100_LT_train.txt",
        "imagenet/train/n01/n01_2.JPEG",
        "imagenet/train/n02",
        "imagenet/val/n03/ILSVRC2012_val_n03.JPEG",
    ):
        (imagenet / part).rename(imagenet / "aside")
        forget()
        with pytest.raises(FileNotFoundError, match="is missing: ") as caught:
            study(**IMAGENET_100)
        assert str(imagenet / part) in one_line(caught)
        (imagenet / "aside").rename(imagenet / part)
    with pytest.raises(ValueError, match="imagenet100 is what SDCLR's lists name; set `lists`"):
        study(**IMAGENET_100 | {"lists": ""})


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_image_of_imagenet_is_named(imagenet, content):
    (imagenet / "imagenet/train/n01/n01_2.JPEG").write_bytes(content)
    with pytest.raises(ValueError, match=r"no readable image: .*n01_2\.JPEG"):
        study(**IMAGENET_100)


def test_absent_imagenet_is_one_clear_line(disk):
    parts = r"imagenet is missing: ImageNet has to be unpacked there as train/<wnid>.*LONGTAIL_DATA"
    with pytest.raises(FileNotFoundError, match=parts) as caught:
        study(**IMAGENET_100)
    assert str(disk) in one_line(caught)


def test_a_pool_that_would_fill_memory_stays_in_its_files(imagenet, monkeypatch):
    large = IMAGENET_100 | {"size": 48}
    assert type(study(**large).pool) is sources.ImageSet
    monkeypatch.setattr(memory.BUDGET, "total", 16000)
    left = study(**large).pool
    assert (
        isinstance(left, sources.FileSet)
        and left.digest == study(**large | {"pool_in_files": True}).pool.digest
    )
