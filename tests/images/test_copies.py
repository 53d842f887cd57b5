"""Copies of a picture are found however it was saved again, and no other picture is taken for
one.
"""

import io

import numpy as np
import pytest
from PIL import Image

from longtail.images import copies, pixels


def photograph(seed, wide=96, high=72):
    """A smooth picture with some noise, of colours of its own."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (wide, high), Image.BICUBIC
    )
    return Image.fromarray(
        (np.asarray(coarse) + draw.normal(0, 6, (high, wide, 3))).clip(0, 255).astype(np.uint8)
    )


def saved(picture, kind="JPEG", **options):
    """The picture as a reader finds it after it was saved."""
    with io.BytesIO() as content:
        picture.save(content, kind, **options)
        return pixels.opened(content.getvalue(), 48)


CHANGES = {
    "again": lambda picture: saved(picture, quality=70),
    "lossless": lambda picture: saved(picture, "PNG"),
    "half size": lambda picture: saved(picture.resize((48, 36), Image.LANCZOS), quality=90),
    "mirrored": lambda picture: saved(picture.transpose(Image.FLIP_LEFT_RIGHT), quality=92),
    "cropped": lambda picture: saved(picture.crop((4, 3, 92, 69)), quality=92),
    "cropped more": lambda picture: saved(picture.crop((8, 6, 88, 66)), quality=92),
    "mirrored and cropped": lambda picture: saved(
        picture.crop((4, 3, 92, 69)).transpose(Image.FLIP_LEFT_RIGHT), quality=80
    ),
}


def known(opened):
    """Contents, hashes and colours of opened pictures, as ``copies.leaders`` takes them."""
    hashes, colours = zip(*(copies.prints(picture) for picture, *_ in opened), strict=True)
    return [square.tobytes() for _, square, *_ in opened], np.stack(hashes), np.stack(colours)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("first", [True, False], ids=["after its picture", "before its picture"])
def test_every_copy_goes_to_its_picture_and_others_stay(change, first):
    originals, changed = (
        [saved(photograph(k), "PNG") for k in range(30)],
        [change(photograph(k)) for k in range(30)],
    )
    both = originals + changed if first else changed + originals
    leaders, similarity = copies.leaders(*known(both))
    assert (
        leaders.tolist() == [*range(30), *range(30)]
        and (similarity >= copies.ALIKE).all()
        and (similarity[:30] == 1).all()
    )
    exact = change is CHANGES["lossless"]
    assert (similarity[30:] == 1).all() == exact


def test_blank_pictures_are_copies_only_of_the_same_colour():
    opened = [
        saved(Image.new("RGB", (60, 60), colour), "PNG")
        for colour in ("black", "white", "black", "grey")
    ]
    assert copies.leaders(*known(opened))[0].tolist() == [0, 1, 0, 3]


def test_no_chain_joins_unlike_pictures():
    first, last = np.asarray(photograph(1), float), np.asarray(photograph(2), float)
    steps = [
        saved(Image.fromarray((first + (last - first) * k / 9).astype(np.uint8)), "PNG")
        for k in range(10)
    ]
    leaders, _ = copies.leaders(*known(steps))
    hashes, colours = known(steps)[1:]
    for place, leader in enumerate(leaders):
        near, _ = copies.nearest(np.array([place]), np.array([leader]), hashes, colours)
        assert leaders[leader] == leader and near[0] == leader
    assert leaders[9] != 0


def test_prints_survive_being_text():
    hashes, colours = copies.prints(photograph(3))
    again = copies.unpacked(copies.packed(hashes, colours))
    assert (again[0] == hashes).all() and (again[1] == colours).all()


def test_rows_tell_groups_by_whose_picture_they_copy():
    rows = copies.groups(
        ["seed", "test", "pool", "pool", "pool", "pool"],
        list("abcdef"),
        ["x", "y", "x", "z", "z", "w"],
        np.array([0, 1, 0, 3, 3, 1]),
        np.array([1, 1, 1, 1, 1, 0.95]),
    )
    assert rows.values.tolist() == [
        [1, "first", 1, "seed", "a", False],
        [1, "exact", 1, "pool", "c", False],
        [2, "first", 1, "test", "b", False],
        [2, "near", 0.95, "pool", "f", False],
        [3, "first", 1, "pool", "d", True],
        [3, "exact", 1, "pool", "e", False],
    ]


def test_equal_near_copies_are_exact_copies_of_each_other():
    rows = copies.groups(
        ["pool"] * 4,
        list("abcd"),
        ["x", "y", "y", "z"],
        np.array([0, 0, 0, 3]),
        np.array([1, 0.95, 0.95, 1]),
    )
    assert rows.kind.tolist() == ["first", "near", "exact"] and rows.path.tolist() == [
        "a",
        "b",
        "c",
    ]


def test_no_pictures_have_no_copies():
    leaders, similarity = copies.leaders([], *copies.no_prints())
    assert len(leaders) == len(similarity) == 0
