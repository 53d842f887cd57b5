"""Every file of a place, opened once: its kind and size, whether it is an image, what tells its copies. A stopped inventory goes on."""

import contextlib
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from longtail.images import pixels, places
from longtail.own import copies
from longtail.store import runs

CHUNK = 256         # files between two savings


@dataclass(frozen=True, eq=False)
class Inventory:
    """What lies in one place of a request, in order."""

    text: str           # as the request names it
    files: list         # (name, what reads its bytes) of the images
    rows: list          # what is known of each: dicts of kind, wide, high, content, prints, blank, remarks
    broken: list        # "name (reason)" of each file that is none
    notes: list         # what was left out

    @property
    def contents(self):
        """What tells the images' squares: equal texts, equal pixels."""
        return [row["content"] for row in self.rows]

    def prints(self):
        """Hashes (n, 6) and colours (n, 3, grid, grid, 3) of the images, see ``copies.prints``."""
        known = [copies.unpacked(row["prints"]) for row in self.rows]
        blank = np.zeros((0, 2 * len(copies.KEPT)), np.uint64), np.zeros((0, len(copies.KEPT), copies.GRID, copies.GRID, 3), np.uint8)
        return tuple(np.stack(part) for part in zip(*known, strict=True)) if known else blank

    def sentences(self):
        """What a person should know of the place: a few sentences."""
        kinds = Counter(row["kind"] for row in self.rows)
        said = [f"{len(self.rows)} images: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}" if kinds else "no images"]
        if kinds:
            sides = [min(row["wide"], row["high"]) for row in self.rows]
            said[0] += f"; short sides {min(sides)} to {max(sides)} pixels"
        remarks = Counter(remark for row in self.rows for remark in row["remarks"])
        said += [f"{count} files: {remark}" for remark, count in remarks.most_common()]
        blank = sum(row["blank"] for row in self.rows)
        said += [f"{blank} images are of one colour"] * bool(blank)
        return said + self.notes + [f"{len(self.broken)} files are no readable images, such as {self.broken[0]}"
                                    for _ in self.broken[:1]]


def take(text, place, size, record=None):
    """The ``Inventory`` of a place; ``record``: a file that keeps what is known of each file until it changes."""
    found = places.files_of(place)
    known = read_record(record, size) if record else {}
    rows, began = {}, time.monotonic()
    with tqdm(total=len(found.files), desc=f"reading {text}", unit=" files", mininterval=2, disable=None, leave=False) as bar, \
            ThreadPoolExecutor(torch.get_num_threads()) as openers:
        for start in range(0, len(found.files), CHUNK):
            some = found.files[start:start + CHUNK]
            fresh = list(openers.map(lambda file: known.get(key(file)) or examined(file, size), some))
            if record:
                save(record, size, [(key(file), row) for file, row in zip(some, fresh, strict=True) if key(file) not in known])
            rows |= {file: row for file, row in zip(some, fresh, strict=True)}
            bar.update(len(some))
    seconds = time.monotonic() - began
    if len(found.files) > 1000:
        print(f"read {len(found.files)} files of {text} in {seconds:.0f} s, {len(found.files) / seconds:.0f} a second", flush=True)
    files = [file for file, row in rows.items() if "problem" not in row]
    broken = [f"{name} ({row['problem']})" for (name, _), row in rows.items() if "problem" in row]
    return Inventory(text, files, [rows[file] for file in files], broken, found.notes)


def examined(file, size):
    """What is known of a file once it has been opened; the problem where it is no image.

    Copies are told by 8 bits, which say nothing of what a deeper grey holds beside them: it is a copy only of one as deep.
    """
    try:
        picture, square, remarks, kind, (wide, high) = pixels.opened(file[1](), size)
    except OSError as error:
        return {"problem": pixels.reason(error)}
    depth = next((remark for remark in sorted(remarks) if remark.startswith("grey of")), "")
    hashes, colours = copies.prints(picture)
    if depth:       # hashes of two depths then differ in about half of their bits
        hashes = hashes ^ np.uint64(int(runs.sha256(depth.encode())[:16], 16))
    return {"kind": kind, "wide": wide, "high": high, "remarks": sorted(remarks), "blank": pixels.blank(picture),
            "content": runs.sha256(square.tobytes() + depth.encode())[:16], "prints": copies.packed(hashes, colours)}


# ---- the record

def key(file):
    """What names a file and changes with it; empty for one that cannot be asked."""
    try:
        return f"{file[0]} {file[1].stamp()}"
    except OSError:
        return ""


def read_record(record, size):
    """What a record knows at this size: key -> what is known. A line cut by a kill is none."""
    lines = record.read_text(encoding="utf-8").split("\n") if record.exists() else []
    known = {}
    for line in lines[1:] if lines[:1] == [head(size)] else ():
        with contextlib.suppress(ValueError):
            name, row = json.loads(line)
            known[name] = row
    return known


def save(record, size, entries):
    """Add what was found of some files; a record of another size begins anew."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with open(record, "a+", encoding="utf-8") as file:
        file.seek(0)
        if file.readline() != f"{head(size)}\n":
            file.truncate(0)
            file.write(f"{head(size)}\n")
        file.write("".join(f"\n{json.dumps(entry)}" for entry in entries if entry[0]))


def head(size):
    """The first line of a record."""
    return json.dumps({"size": size, "bits": copies.BITS, "kept": copies.KEPT, "grid": copies.GRID})
