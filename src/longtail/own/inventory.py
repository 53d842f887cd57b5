"""Every file of a request's places, opened once: its kind and size, whether it is an image, what
tells its copies.
"""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from longtail.images import copies, datasets, pixels, places, sources
from longtail.store import paths, runs

OPENED_AT_ONCE = 256  # files between two savings of the record


@dataclass(frozen=True, eq=False)
class Inventory:
    """The images of one part of a request (seed, pool or test set), in order."""

    title: str  # the part and its places, as messages begin
    # (name, what reads its bytes) of each; with several places, names begin with the place
    files: list
    paths: dict  # name -> path as the request would write it; in archives as `unzip -l` prints it
    # name -> class, by a list's or table's labels or by folders; empty where there is neither
    classes: dict
    rows: list  # what is known of each: dicts of kind, wide, high, content, prints, blank, remarks
    broken: list  # "path (reason)" of each file that is none
    notes: list  # what was left out

    def __len__(self):
        return len(self.files)

    def part(self, chosen):
        """Those of its images for which ``chosen`` (n booleans) is true."""
        return replace(
            self,
            files=[file for file, keep in zip(self.files, chosen, strict=True) if keep],
            rows=[row for row, keep in zip(self.rows, chosen, strict=True) if keep],
        )

    def in_files(self, size):
        """The images left in their files, without labels: a ``FileSet``."""
        names = tuple(name for name, _ in self.files)
        return sources.FileSet(
            sources.Files(self.files, size), torch.full((len(names),), sources.UNKNOWN), names
        )

    def prints(self):
        """Hashes (n, 6) and colours (n, 3, grid, grid, 3) of the images, see ``copies.prints``."""
        known = [copies.unpacked(row["prints"]) for row in self.rows]
        return (
            tuple(np.stack(part) for part in zip(*known, strict=True))
            if known
            else copies.no_prints()
        )

    def sentences(self):
        """What a person should know of the part: a few sentences."""
        kinds = Counter(row["kind"] for row in self.rows)
        said = [
            f"{len(self)} images: "
            f"{', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
            if kinds
            else "no images"
        ]
        if kinds:
            sides = [min(row["wide"], row["high"]) for row in self.rows]
            said[0] += f"; short sides {min(sides)} to {max(sides)} pixels"
        remarks = Counter(remark for row in self.rows for remark in row["remarks"])
        said += [f"{count} files: {remark}" for remark, count in remarks.most_common()]
        blank = sum(row["blank"] for row in self.rows)
        said += [f"{blank} images are of one colour"] * bool(blank)
        broken = (
            [f"{len(self.broken)} files are no readable images, such as {self.broken[0]}"]
            if self.broken
            else []
        )
        return [f"{self.title}: {sentence}" for sentence in said + self.notes + broken]


def take(part, given, size, record=None):
    """The ``Inventory`` of the places of a part.

    given: the text that names each place -> its path. record: a file that keeps what is known of
    each file until that file changes, so that a stopped inventory goes on.
    """
    files, paths, classes, notes, again = [], {}, {}, [], 0
    for text, place in given.items():
        found = places.files_of(place)
        front = f"{text}/" if len(given) > 1 else ""
        written = {name: as_written(text, place, name, read) for name, read in found.files}
        folders = sources.class_names(list(written))
        named = [folder for folder in folders if datasets.part_of(folder)[0]]
        if len(named) > 1:
            found.notes.append(f"all parts, {', '.join(named)}; {text}/… takes one")
        parts = len(named) == len(folders)  # train and test are no classes
        parts = parts and all(name.count("/") > 1 for name in written)
        known = found.labels or (
            {name: name.split("/")[parts] for name in written} if folders else {}
        )
        before = set(paths.values())  # a file that lies in two places is one image
        new = [(name, read) for name, read in found.files if written[name] not in before]
        files += [(front + name, read) for name, read in new]
        paths |= {front + name: written[name] for name, _ in new}
        classes |= {front + name: known[name] for name, _ in new if known.get(name) is not None}
        again += len(written) - len(new)
        notes += [f"{text}, {note}" if front else note for note in found.notes]
    notes += [f"{again} files lie in several of these places and count once"] * bool(again)
    title = f"{part}, {' + '.join(given)}"
    rows = dict(zip(files, all_opened(title, files, size, record), strict=True))
    good = [file for file, row in rows.items() if "problem" not in row]
    broken = [
        f"{paths[file[0]]} ({row['problem']})" for file, row in rows.items() if "problem" in row
    ]
    return Inventory(title, good, paths, classes, [rows[file] for file in good], broken, notes)


def as_written(text, place, name, read):
    """The path of a file as its request would write it, from the text that names its place
    there.
    """
    if read.own or not place.is_relative_to(read.file):
        held, front = places.container(place), Path(text)
        if places.is_list(held):  # names are relative to its folder
            front = front.parents[len(place.relative_to(held).parts)]
        return str(front / name)
    inside = len(place.relative_to(read.file).parts)
    return "/".join(
        [*Path(text).parts[: len(Path(text).parts) - inside], read.member or name]
    ).replace("//", "/")


def all_opened(title, files, size, record):
    """What is known of each file, in order: from the record, or found now by all cores and added to
    it.
    """
    known, rows, began = known_files(record, size) if record else {}, [], time.monotonic()
    with (
        tqdm(
            total=len(files),
            desc=f"reading {title}",
            unit=" files",
            mininterval=2,
            disable=None,
            leave=False,
        ) as bar,
        ThreadPoolExecutor(torch.get_num_threads()) as openers,
    ):
        for start in range(0, len(files), OPENED_AT_ONCE):
            some = files[start : start + OPENED_AT_ONCE]
            fresh = list(
                openers.map(lambda file: known.get(key(file)) or examined(file, size), some)
            )
            if record:
                add_to_record(
                    record,
                    size,
                    [
                        (key(file), row)
                        for file, row in zip(some, fresh, strict=True)
                        if key(file) not in known
                    ],
                )
            rows += fresh
            bar.update(len(some))
    if len(files) > 1000:
        seconds = time.monotonic() - began
        print(
            f"{title}: read {len(files)} files in {seconds:.0f} s, {len(files) / seconds:.0f} a "
            "second",
            flush=True,
        )
    return rows


def examined(file, size):
    """What is known of a file once it has been opened; the problem where it is no image.

    Copies are told by 8 bits, which say nothing of what a deeper grey holds beside them: it is a
    copy only of one as deep.
    """
    try:
        picture, square, remarks, kind, (wide, high) = pixels.opened(file[1](), size)
    except OSError as error:
        return {"problem": pixels.reason(error)}
    depth = next((remark for remark in sorted(remarks) if remark.startswith("grey of")), "")
    hashes, colours = copies.prints(picture)
    if depth:  # hashes of two depths then differ in about half of their bits
        hashes = hashes ^ np.uint64(int(runs.sha256(depth.encode())[:16], 16))
    return {
        "kind": kind,
        "wide": wide,
        "high": high,
        "remarks": sorted(remarks),
        "blank": pixels.blank(picture),
        "content": runs.sha256(square.tobytes() + depth.encode())[:16],
        "prints": copies.packed(hashes, colours),
    }


# ---- the record


def key(file):
    """What names a file and changes with it; empty for one that cannot be asked."""
    try:
        return f"{file[0]} {file[1].file} {file[1].stamp()}"
    except OSError:
        return ""


def known_files(record, size):
    """What a record knows at this size: key -> what is known. A line that is not as it was written
    is none.
    """
    lines = record.read_bytes().split(b"\n") if record.exists() else []
    known = {}
    for digest, _, text in (line.partition(b" ") for line in lines[1:]):
        if lines[0] == head(record, size) and digest == _check_of(text):
            name, row = json.loads(text)
            known[name] = row
    return known


def add_to_record(record, size, entries):
    """Add what was found of some files; a record of another size begins anew."""
    record.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(entry).encode() for entry in entries if entry[0]]
    lines = b"".join(b"\n%b %b" % (_check_of(text), text) for text in texts)
    with paths.writing(record, len(lines)), open(record, "a+b") as file:
        file.seek(0)
        if file.readline() != head(record, size) + b"\n":
            file.truncate(0)
            file.write(head(record, size) + b"\n")
        file.write(lines)


def head(record, size):
    """The first line of a record: its own address, and what decides the others; ``recipe`` is
    raised where files are read as other pictures.
    """
    address = "/".join(record.parts[-3:])
    told = {"file": address, "size": size, "recipe": 3, **copies.PRINT_SETTINGS}
    return json.dumps(told).encode()


def _check_of(text):
    """What stands before a line of a record and tells whether it is as it was written."""
    return runs.sha256(text)[:16].encode()
