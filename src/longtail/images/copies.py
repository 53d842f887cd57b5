"""Which pictures are the same: by content, or near copies (saved again, resized, mirrored,
cropped), by perceptual hash and look.

Measured on 100 photographs each of Tiny-ImageNet and of a synthetic kind: all copies in JPEG
quality 50, at half size, mirrored, brightened, without 4, 8 or 10 % at every side are found, and 81
and 96 of 100 that lost 5 % at two sides; of all pairs among 400 and 200 other pictures none is
taken for a copy.
"""

import base64

import numpy as np
import pandas as pd
from PIL import Image

KEPT = (
    1,
    0.92,
    0.84,
)  # shares of a picture's sides that are compared, the centre of it, each also mirrored
BITS = 12  # of 64 in which the hashes of near copies may differ
ALIKE = 0.9  # least correlation of their colours on a grid
RASTER = 12  # of that grid on a side
PAIRS = 2**21  # compared at once
PRINT_SETTINGS = {"bits": BITS, "kept": KEPT, "grid": RASTER}  # what kept prints depend on


def prints(picture):
    """What tells a PIL image's copies: 64-bit hashes (6,) of its views, uint64, and their colours
    on a grid (3, 12, 12, 3), uint8.

    Views are centre cuts, each as it is and mirrored; colours are of the first of each two, for
    mirroring turns them alike.
    """
    import imagehash

    picture, hashes, colours = picture.resize((64, 64), Image.BOX, reducing_gap=None), [], []
    for share in KEPT:
        edge = round(64 * (1 - share) / 2)
        cut = picture.crop((edge, edge, 64 - edge, 64 - edge))
        for view in (cut, cut.transpose(Image.FLIP_LEFT_RIGHT)):
            hashes.append(int.from_bytes(np.packbits(imagehash.phash(view).hash).tobytes(), "big"))
        colours.append(np.asarray(cut.resize((RASTER, RASTER), Image.BOX)))
    return np.array(hashes, np.uint64), np.stack(colours)


def packed(hashes, colours):
    """``prints`` as text."""
    return base64.b64encode(hashes.tobytes() + colours.tobytes()).decode()


def unpacked(text):
    """``prints`` of a text."""
    content = base64.b64decode(text)
    hashes = np.frombuffer(content[: 16 * len(KEPT)], np.uint64)
    return hashes, np.frombuffer(content[16 * len(KEPT) :], np.uint8).reshape(
        len(KEPT), RASTER, RASTER, 3
    )


def no_prints():
    """``prints`` of no picture."""
    return np.zeros((0, 2 * len(KEPT)), np.uint64), np.zeros(
        (0, len(KEPT), RASTER, RASTER, 3), np.uint8
    )


def leaders(contents, hashes, colours):
    """For each of n pictures the first one that it is a copy of (itself for none) and its
    similarity: int64 (n,), float64 (n,).

    contents: n texts, equal for equal content. A near copy goes to the picture most similar to it
    among those that are no copies, so that no chain joins pictures that are unlike; its similarity
    is the correlation of colours, 1 for equal content.
    """
    first = {}
    found = np.array(
        [first.setdefault(content, place) for place, content in enumerate(contents)], dtype=np.int64
    )
    similarity, unique = np.ones(len(found)), np.array(sorted(first.values()), dtype=np.int64)
    chosen, step = np.zeros(0, np.int64), 256
    for start in range(0, len(unique), step):
        some = unique[start : start + step]
        best, value = nearest(some, chosen, hashes, colours)
        new = []
        for place, leader, alike in zip(some, best, value, strict=True):
            if leader < 0 and new:  # those of this block that have become leaders meanwhile
                [leader], [alike] = nearest(np.array([place]), np.array(new), hashes, colours)
            if leader < 0:
                new.append(place)
            else:
                found[place], similarity[place] = leader, alike
        chosen = np.concatenate([chosen, np.array(new, np.int64)])
    return found[found] if len(found) else found, np.minimum(
        similarity, similarity[found] if len(found) else similarity
    )


def nearest(some, chosen, hashes, colours):
    """The most similar of ``chosen`` for each of ``some`` (positions) and its similarity, −1 and 0
    where none is a near copy.
    """
    best, value = np.full(len(some), -1), np.zeros(len(some))
    width = max(1, PAIRS // max(1, len(some)))
    for part in np.split(chosen, range(width, len(chosen), width)):
        for ours, theirs in [(0, view) for view in range(hashes.shape[1])] + [
            (view, 0) for view in range(1, hashes.shape[1])
        ]:
            rows, columns = np.nonzero(
                np.bitwise_count(hashes[some, ours][:, None] ^ hashes[part, theirs]) <= BITS
            )
            alike = correlation(cut(colours, some[rows], ours), cut(colours, part[columns], theirs))
            for row, column, much in zip(rows, columns, alike, strict=True):
                if much >= ALIKE and much > value[row]:
                    best[row], value[row] = part[column], much
    return best, value


def cut(colours, places, view):
    """Colours on the grid of one view of some pictures: (k, …)."""
    fields = colours[places, view // 2]
    return fields[:, :, ::-1] if view % 2 else fields


def correlation(left, right):
    """Correlation of colours, row by row: (k, …), (k, …) -> (k,); 0 where one has no contrast."""
    left, right = (
        rows.reshape(len(rows), np.prod(rows.shape[1:], dtype=int)).astype(np.float32)
        for rows in (left, right)
    )
    left, right = (rows - rows.mean(1, keepdims=True) for rows in (left, right))
    return (left * right).sum(1) / np.maximum(np.sqrt((left**2).sum(1) * (right**2).sum(1)), 1e-9)


def groups(places, names, contents, found, similarity):
    """Rows of ``duplicates.csv``, the pictures that have a copy: group, kind (exact or near),
    similarity, place, path, pickable.

    The first of each group, of the seed or test set where they have one, comes first; ``pickable``:
    whether it is of the pool and that one.
    """
    rows = pd.DataFrame({"leader": found, "similarity": similarity, "place": places, "path": names})
    again = pd.Series(contents, dtype=object).duplicated()  # also of a near copy
    rows["kind"] = np.where(
        np.arange(len(rows)) == rows.leader, "first", np.where(again, "exact", "near")
    )
    rows["pickable"] = (rows.place == "pool") & (rows.kind == "first")
    rows = rows[rows.leader.map(rows.leader.value_counts()) > 1].sort_values(
        "leader", kind="stable"
    )
    rows["group"] = pd.factorize(rows.leader)[0] + 1
    return rows[["group", "kind", "similarity", "place", "path", "pickable"]].round(
        {"similarity": 3}
    )
