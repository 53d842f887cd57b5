"""Every file is opened once: what was found is kept, goes on after a kill, and is found anew where
a file changes.
"""

import os

import numpy as np
import pytest
from PIL import Image

from longtail.images import pixels
from longtail.own import inventory


@pytest.fixture
def place(tmp_path):
    """A folder of five small pictures and a text."""
    (tmp_path / "pool").mkdir()
    for number in range(5):
        colours = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "pool" / f"{number}.png")
    (tmp_path / "pool/text.jpg").write_text("none")
    return tmp_path / "pool"


@pytest.fixture
def opened(monkeypatch):
    """How many files are opened."""
    calls, real = [], pixels.opened
    monkeypatch.setattr(
        inventory.pixels, "opened", lambda content, size: calls.append(size) or real(content, size)
    )
    return calls


def test_what_was_found_is_kept_and_the_same(place, tmp_path, opened):
    first = inventory.take("pool", {"pool": place}, 16, tmp_path / "pool.jsonl")
    assert (
        len(opened) == 6
        and len(first.files) == 5
        and first.broken == ["pool/text.jpg (4 bytes of no known kind)"]
    )
    again = inventory.take("pool", {"pool": place}, 16, tmp_path / "pool.jsonl")
    assert len(opened) == 6 and (again.rows, again.broken) == (first.rows, first.broken)
    assert all(
        (left == right).all() for left, right in zip(first.prints(), again.prints(), strict=True)
    )
    assert first.sentences()[0] == "pool, pool: 5 images: 5 PNG; short sides 20 to 20 pixels"


def test_after_a_kill_only_the_rest_is_opened(place, tmp_path, opened):
    whole = inventory.take("pool", {"pool": place}, 16, record := tmp_path / "pool.jsonl")
    content = record.read_text()
    record.write_text(content[: content.rindex("\n") + 29])  # in the middle of its last line
    assert (
        inventory.take("pool", {"pool": place}, 16, record).rows == whole.rows
        and len(opened) == 6 + 1
    )
    assert (
        inventory.take("pool", {"pool": place}, 16, record).rows == whole.rows
        and len(opened) == 6 + 1
    )


DAMAGES = {
    "a row of another": lambda lines: lines[:2] + [lines[2][:16] + lines[3][16:]] + lines[3:],
    "a bit": lambda lines: [
        *lines[:3],
        lines[3][:40] + bytes([lines[3][40] ^ 128]) + lines[3][41:],
    ],
    "another's": lambda lines: [lines[0].replace(b"pool.jsonl", b"seed.jsonl"), *lines[1:]],
    "bytes": lambda lines: [b"\xff\xfe", b"\0"],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_of_the_record_is_none(place, tmp_path, damage):
    whole = inventory.take("pool", {"pool": place}, 16, record := tmp_path / "pool.jsonl")
    record.write_bytes(b"\n".join(damage(record.read_bytes().split(b"\n"))))
    assert inventory.take("pool", {"pool": place}, 16, record).rows == whole.rows


def test_changed_files_and_other_sizes_are_opened_again(place, tmp_path, opened):
    first = inventory.take("pool", {"pool": place}, 16, record := tmp_path / "pool.jsonl")
    Image.new("RGB", (30, 40), "red").save(place / "2.png")
    second = inventory.take("pool", {"pool": place}, 16, record)
    assert len(opened) == 6 + 1 and second.rows[2]["blank"] and second.rows[2]["high"] == 40
    assert [a["content"] == b["content"] for a, b in zip(first.rows, second.rows, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    inventory.take("pool", {"pool": place}, 8, record)
    assert len(opened) == 6 + 1 + 6 and opened[-6:] == [8] * 6


def test_without_a_record_nothing_is_written(place, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    inventory.take("pool", {"pool": place}, 16)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_deeper_grey_is_a_copy_only_of_one_as_deep(tmp_path):
    (tmp_path / "pool").mkdir()
    for number in range(3):
        y, x = np.mgrid[0:48, 0:64]
        grey = (np.sin(x / (4 + number)) * np.cos(y / (9 - number)) + 1) / 2
        for name, picture in {
            "8.png": (grey * 255).astype(np.uint8),
            "12.png": (grey * 4095).astype(np.uint16),
            "12.tif": (grey * 4095).astype(np.uint16),
            "16.tif": (grey * 65535).astype(np.uint16),
        }.items():
            Image.fromarray(picture).save(tmp_path / "pool" / f"{number}_{name}")
        Image.fromarray((grey * 255).astype(np.uint8)).save(
            tmp_path / "pool" / f"{number}_8.jpg", quality=70
        )
    found = inventory.take("pool", {"pool": tmp_path / "pool"}, 16)
    names = [name for name, _ in found.files]
    leaders, _ = inventory.copies.leaders([row["content"] for row in found.rows], *found.prints())
    for name, leader in zip(names, leaders, strict=True):
        assert names[leader] == {
            f"{name[0]}_8.png": f"{name[0]}_8.jpg",
            f"{name[0]}_12.tif": f"{name[0]}_12.png",
        }.get(name, name)


@pytest.mark.parametrize(
    "names, classes",
    [
        (["train/ant/1.png", "valid/bee/2.png"], {"ant", "bee"}),
        (["ant/x/1.png", "bee/x/2.png"], {"ant", "bee"}),
        (["ant/1.png", "train/x/2.png"], {"ant", "train"}),
        (["train/1.png", "test/2.png"], {"train", "test"}),
        (["1.png", "test/2.png"], set()),
    ],
)
def test_parts_of_a_data_set_are_no_classes_where_there_are_others(tmp_path, names, classes):
    for number, name in enumerate(names):
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(tmp_path / "pool" / name)
    found = inventory.take("pool", {"pool": tmp_path / "pool"}, 8)
    assert set(found.classes.values()) == classes
    parts = [name for name in ("test", "train", "valid") if f"{name}/" in "".join(names)]
    said = [f"all parts, {', '.join(parts)}; pool/… takes one"] if len(parts) > 1 else []
    assert [note for note in found.notes if "parts" in note] == said


def test_paths_of_a_part_of_a_table_are_those_of_its_files(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "all.csv").write_text("path,split\n1.png,train\n")
    for text in ("all.csv", "all.csv/train"):
        assert inventory.take("pool", {text: tmp_path / text}, 8).paths == {"1.png": "1.png"}


def test_a_file_that_lies_in_two_places_is_one_image(tmp_path):
    for name in ("a/1.png", "a/b/2.png", "a/b/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * int(name[-5]), 0, 0)).save(tmp_path / name)
    found = inventory.take("pool", {"a": tmp_path / "a", "a/b/": tmp_path / "a/b"}, 8)
    assert sorted(found.paths.values()) == ["a/1.png", "a/b/2.png", "a/b/3.png"] and len(found) == 3
    assert "2 files lie in several of these places and count once" in found.notes


def test_a_file_of_another_folder_is_another_one(tmp_path):
    for place, level in (("A", 10), ("B", 200)):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / place / "0.bmp")
        os.utime(tmp_path / place / "0.bmp", ns=(0, 0))
    record = tmp_path / "pool.jsonl"
    rows = [
        inventory.take("pool", {place: tmp_path / place}, 8, record).rows for place in ("A", "B")
    ]
    assert rows[0][0]["content"] != rows[1][0]["content"]
